"""A hostile target: what root inside tries against whoever comes in, and that each attack works without its defence.

The attackers are real processes with all capabilities in the target's user namespace (hostile.py). That an attack can
succeed at all is shown with a joiner from whose source exactly one place was taken out.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shlex
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from changed import NOBODY, PR_SET_DUMPABLE
from child import children, held_program
from conftest import requires_root

import nsjoin
from nsjoin import _build_setns, _launch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Running

HERE = Path(__file__).resolve().parent
PROGRAM = (HERE / "hostile.py").read_text()  # not by its name: other users may not come that far
SYSTEM_PYTHON = "/usr/bin/python3"
DENIED = {"EPERM", "EACCES"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can look into too: pytest's are private."""
    with tempfile.TemporaryDirectory(prefix="nsjoin-test-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.fixture
def weaken(monkeypatch, tmp_path) -> Iterator[Callable[[str, str], None]]:
    """``weaken(old, new)`` launches a joiner in whose source ``old``, which is there once, has become ``new``."""
    source = tmp_path / "joiner"
    source.mkdir()
    for file in (*_build_setns.HERE.glob("*.c"), *_build_setns.HERE.glob("*.h")):
        shutil.copy(file, source)
    monkeypatch.setattr(_build_setns, "HERE", source)
    monkeypatch.setattr(_launch, "_image", _launch._Image())

    def replace(old: str, new: str) -> None:
        text = (source / "_joiner.c").read_text()
        assert text.count(old) == 1, f"{text.count(old)} places have {old!r}"
        (source / "_joiner.c").write_text(text.replace(old, new))
        _build_setns.compile_joiner(source / "image")
        image = (source / "image").read_bytes()
        monkeypatch.setattr(_launch, "_image_bytes", lambda: image)

    yield replace
    _launch._image.memfd_does_not_run()  # closes it


class Hostile:
    """A target that runs hostile.py, as root of its user namespace and PID 1 where it has a PID namespace."""

    def __init__(
        self, start: Callable[..., Running], nstypes: tuple[str, ...], *arguments: str, user: int | None = None
    ) -> None:
        """``user``: of root's user namespaces one is theirs, inside of what else there is."""
        if "pid" not in nstypes:
            arguments = (*arguments, str(os.getpid()))
        command = [sys.executable, "-I", "-c", PROGRAM, *arguments]
        if user is not None:
            become = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"]
            command = [*become, "unshare", "--map-root-user", SYSTEM_PYTHON, *command[1:]]
        self.running = start(*nstypes, program=f"exec {shlex.join(command)}")
        self.pid = self.running.pid
        assert self._line() == "armed"

    def _line(self) -> str:
        assert self.running.process.stdout is not None
        return self.running.process.stdout.readline().rstrip("\n")

    def outcomes(self) -> list[dict[str, str | None]]:
        """What came of the attacks, one dictionary for each process that was found."""
        lines = iter(self._line, "end")
        return [json.loads(line) for line in lines]


def program_in(folder: Path) -> str:
    return str(shutil.copy("/bin/true", folder / "program"))


# --- between join and exec -----------------------------------------------------------------------------------

#: With a PID namespace the child of the joiner is seen from inside, without one the joiner too.
WORLDS = [("user", "mnt", "pid"), ("user", "mnt")]


def assert_all_refused(outcomes: list[dict[str, str | None]]) -> None:
    assert outcomes, "nobody was seen"
    for attacks in outcomes:
        assert {name: refused for name, refused in attacks.items() if refused not in DENIED} == {}


def assert_all_successful(outcomes: list[dict[str, str | None]]) -> None:
    assert outcomes, "nobody was seen"
    for attacks in outcomes:
        assert {name: refused for name, refused in attacks.items() if refused is not None} == {}


@pytest.mark.parametrize("nstypes", WORLDS)
def test_nobody_inside_can_look_into_the_process_before_exec(start, folder, nstypes):
    program = program_in(folder)
    hostile = Hostile(start, nstypes, "lease", program)
    assert nsjoin.run_in(hostile.pid, [program]).returncode == 0
    assert_all_refused(hostile.outcomes())


@pytest.mark.parametrize("nstypes", WORLDS)
def test_without_the_dumpable_flag_off_each_of_these_attacks_succeeds(start, folder, nstypes, weaken):
    weaken("must(plan, SYS5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0));", "(void)plan;")
    program = program_in(folder)
    hostile = Hostile(start, nstypes, "lease", program)
    assert nsjoin.run_in(hostile.pid, [program]).returncode == 0
    assert_all_successful(hostile.outcomes())


#: What the kernel does after a change of credentials where fs.suid_dumpable is 1.
SUID_DUMPABLE_1 = "SYS5(prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);"
AFTER_THE_JOINS = "    if (plan->root >= 0)\n        change_root(plan);"
AFTER_THE_IDS = "    set_ids(plan);\n"
BEFORE_THE_CLONE = "    if (plan->flags & NSJOIN_FORK)\n        bear(plan);"


def test_the_flag_is_off_also_where_the_kernel_sets_it_with_the_ids(start, folder, weaken):
    weaken(AFTER_THE_IDS, AFTER_THE_IDS + SUID_DUMPABLE_1)
    program = program_in(folder)
    hostile = Hostile(start, WORLDS[0], "lease", program)
    assert nsjoin.run_in(hostile.pid, [program]).returncode == 0
    assert_all_refused(hostile.outcomes())


def test_if_it_were_not_put_off_after_that_the_attacks_would_succeed(start, folder, weaken):
    weaken(BEFORE_THE_CLONE, SUID_DUMPABLE_1 + BEFORE_THE_CLONE)
    program = program_in(folder)
    hostile = Hostile(start, WORLDS[0], "lease", program)
    assert nsjoin.run_in(hostile.pid, [program]).returncode == 0
    assert_all_successful(hostile.outcomes())


# --- call_in -------------------------------------------------------------------------------------------------


@pytest.fixture
def meeting(folder) -> Path:
    """A folder with the pipes by which a function inside and the target wait for each other."""
    for name in ("come", "go"):
        os.mkfifo(folder / name)
        os.chmod(folder / name, 0o666)
    return folder


def let_it_try(meeting: Path) -> None:
    """Inside: let the target do what it wants, while this process has our memory."""
    with open(meeting / "come", "w"):
        pass
    with open(meeting / "go") as go:
        go.read()


def let_it_try_undefended(meeting: Path) -> None:
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    let_it_try(meeting)


@pytest.mark.parametrize("nstypes", WORLDS)
def test_nobody_inside_can_look_into_the_process_of_a_call(start, meeting, nstypes):
    hostile = Hostile(start, nstypes, "call", str(meeting))
    nsjoin.call_in(hostile.pid, let_it_try, meeting)
    assert_all_refused(hostile.outcomes())


@pytest.mark.parametrize("nstypes", WORLDS)
def test_without_the_flag_off_a_call_gives_all_our_memory_away(start, meeting, nstypes):
    hostile = Hostile(start, nstypes, "call", str(meeting))
    nsjoin.call_in(hostile.pid, let_it_try_undefended, meeting)
    assert_all_successful(hostile.outcomes())


@pytest.fixture
def suid_dumpable() -> Iterator[None]:
    """fs.suid_dumpable=1: after a change of credentials the kernel sets the flag."""
    path = "/proc/sys/fs/suid_dumpable"
    with open(path) as file:
        before = file.read()
    try:
        with open(path, "w") as file:
            file.write("1")
        yield
    finally:
        with open(path, "w") as file:
            file.write(before)


@requires_root
@pytest.mark.parametrize("how", ["call", "lease"])
def test_with_suid_dumpable_1_they_are_hidden_too(start, meeting, suid_dumpable, how):
    # a user namespace of somebody else's: to join it is a change of ids
    program = program_in(meeting)
    os.chown(program, NOBODY, NOBODY)
    hostile = Hostile(start, ("mnt", "pid"), how, program if how == "lease" else str(meeting), user=NOBODY)
    if how == "lease":
        assert nsjoin.run_in(hostile.pid, [program]).returncode == 0
    else:
        nsjoin.call_in(hostile.pid, let_it_try, meeting)
    assert_all_refused(hostile.outcomes())


# --- what there is to see before exec -----------------------------------------------------------------------------


def is_in_memory(pid: int, text: bytes) -> bool:
    """Look through all that can be read of the memory of a process; as root, who may."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            span, mode, *_ = line.split()
            begin, end = (int(number, 16) for number in span.split("-"))
            if mode.startswith("r") and "[v" not in line:  # vvar and the like are the kernel's
                memory.seek(begin)
                if text in memory.read(end - begin):
                    return True
    return False


class Held(threading.Thread):
    """Starts a program that is held before exec; ``pids`` are those of our new children by then."""

    def __init__(self, program: Any, target: int, **keywords: Any) -> None:
        super().__init__()
        self._before = children()
        self._work = lambda: nsjoin.run_in(target, [program.path], **keywords)
        self.result: Any = None
        self.start()
        program.wait()
        self.pids = children() - self._before

    def run(self) -> None:
        self.result = self._work()


SECRET = b"the caller's own: %d" % os.getpid()


@requires_root
def test_before_exec_neither_memory_nor_descriptors_of_the_caller_are_inside(start, folder):
    target = start("user", "mnt", "pid")
    os.environ["NSJOIN_TEST_SECRET"] = SECRET.decode()
    ours = os.open("/etc", os.O_RDONLY)
    os.set_inheritable(ours, True)
    given = os.open(folder, os.O_RDONLY)
    try:
        with held_program(folder / "held") as program:
            held = Held(program, target.pid, env={"GIVEN": "the program's own"}, pass_fds=[given])
            assert held.pids
            for pid in held.pids:
                assert is_in_memory(pid, b"the program's own")
                assert not is_in_memory(pid, SECRET)
                open_files = {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
                assert open_files.pop(given) == str(folder)
                others = {name.partition(":")[0] for fd, name in open_files.items() if fd > 2}
                # the barrier, the target's pidfd, the target's own root
                assert others <= {"pipe", "anon_inode", "pidfd", "/"}
                with open(f"/proc/{pid}/environ", "rb") as file:
                    assert file.read() == b""
            program.release()
            held.join()
        assert held.result.returncode == 0
        assert is_in_memory(os.getpid(), SECRET)  # that is how it would be found
    finally:
        os.close(ours)
        os.close(given)
        del os.environ["NSJOIN_TEST_SECRET"]


def test_the_program_has_only_its_stdio_and_what_it_was_given(start, folder):
    target = start("user", "mnt", "pid")
    ours = fcntl.fcntl(0, fcntl.F_DUPFD, 50)  # inheritable
    given = os.open(folder, os.O_RDONLY)
    try:
        listing = ["sh", "-c", "echo /proc/self/fd/*"]
        done = nsjoin.run_in(target.pid, listing, pass_fds=[given], capture_output=True, check=True)
    finally:
        os.close(ours)
        os.close(given)
    found = {int(name.rpartition(b"/")[2]) for name in done.stdout.split()}
    assert found > {0, 1, 2, given}
    assert len(found) == 5  # and the directory that the shell lists
    assert ours not in found
