"""A hostile target: what root inside tries against whoever comes in, and that each attack works without its defence.

The attackers are real processes with all capabilities in the target's user namespace (hostile.py). That an attack can
succeed at all is shown with a joiner from whose source exactly one place was taken out.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import ctypes
import errno
import fcntl
import gc
import importlib.util
import json
import linecache
import logging
import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import traceback
import tty
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attempts import JOINS_BY_PIDFD, requires_one_attempt
from changed import NOBODY, NR, PR_SET_DUMPABLE, SYS_EXECVEAT, Filter, prctl
from child import children, held_program, in_child
from conftest import (
    HAS_NAMESPACES_OF_PIDFDS,
    SEALS_THE_MODE,
    requires_namespaces_of_pidfds,
    requires_root,
)

import nsjoin
from nsjoin import _build_setns, aio
from nsjoin._engine import children as children_
from nsjoin._engine import forked, guard, raised
from nsjoin._engine import image as image_
from nsjoin._joining import start as start_
from nsjoin._kernel import abi, procfs
from nsjoin._kernel.nstypes import MNT, USER
from nsjoin._kernel.thread import own_inodes
from nsjoin._target.process import Process

sys.path.insert(0, str(Path(__file__).resolve().parent / "faults"))

import kernels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Running

HERE = Path(__file__).resolve().parent
PROGRAM = (HERE / "hostile.py").read_text()  # not by its name: other users may not come that far
SYSTEM_PYTHON = "/usr/bin/python3"
#: Python's own: pytest sets another one.
THREADS_HOOK = (
    getattr(threading, "__excepthook__", None)  # Python 3.10
    or getattr(_thread, "_excepthook", None)
    or threading.excepthook  # PyPy, where it may be pytest's by now
)
DENIED = {"EPERM", "EACCES"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can look into too: pytest's are private."""
    with tempfile.TemporaryDirectory(prefix="nsjoin-test-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


#: C that is no part of the joiner
SHIM = ("shim.c", "calls.c", "thread.c", "launch.c", "fork.c", "hold.c")


@pytest.fixture
def weaken(monkeypatch, tmp_path) -> Iterator[Callable[[str, str], None]]:
    """``weaken(old, new)`` launches a joiner in whose source ``old``, which is there once, has become ``new``."""
    source = tmp_path / "joiner"
    source.mkdir()
    shutil.copytree(_build_setns.HERE / "_c", source / "_c")
    monkeypatch.setattr(_build_setns, "HERE", source)
    monkeypatch.setattr(image_, "_image", image_._Image())

    def replace(old: str, new: str) -> None:
        texts = {path: path.read_text() for path in (source / "_c").glob("*.[ch]") if path.name not in SHIM}
        places = [path for path, text in texts.items() for _ in range(text.count(old))]
        assert len(places) == 1, f"{len(places)} places have {old!r}"
        places[0].write_text(texts[places[0]].replace(old, new))
        _build_setns.compile_joiner(source / "image")
        image = (source / "image").read_bytes()
        monkeypatch.setattr(image_, "_image_bytes", lambda: image)

    yield replace
    image_._image.memfd_does_not_run()  # closes it


class Hostile:
    """A target that runs hostile.py, as root of its user namespace and PID 1 where it has a PID namespace."""

    def __init__(
        self,
        start: Callable[..., Running],
        nstypes: tuple[str, ...],
        *arguments: str,
        user: int | None = None,
        bounded: list[str] | None = None,
    ) -> None:
        """``user``: whose user namespace is inside of what else there is. ``bounded``: options of setpriv."""
        if "pid" not in nstypes:
            arguments = (*arguments, str(os.getpid()))
        command = [sys.executable, "-I", "-c", PROGRAM, *arguments]
        if user is not None:
            become = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"]
            command = [*become, "unshare", "--map-root-user", SYSTEM_PYTHON, *command[1:]]
        if bounded is not None:
            command = ["setpriv", *bounded, *command]
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


def tried(outcomes: list[dict[str, str | None]]) -> list[dict[str, str | None]]:
    """Without what older kernels hold off until exec: that is of the program then, which everyone inside may trace."""
    may_be_held_off = set() if HAS_NAMESPACES_OF_PIDFDS else {("ptrace", "HELD OFF")}
    return [dict(attacks.items() - may_be_held_off) for attacks in outcomes]


def assert_all_refused(outcomes: list[dict[str, str | None]]) -> None:
    assert outcomes, "nobody was seen"
    for attacks in tried(outcomes):
        assert {name: refused for name, refused in attacks.items() if refused not in DENIED} == {}


def assert_all_successful(outcomes: list[dict[str, str | None]]) -> None:
    assert outcomes, "nobody was seen"
    for attacks in tried(outcomes):
        assert {name: refused for name, refused in attacks.items() if refused is not None} == {}


@pytest.mark.parametrize("nstypes", WORLDS)
def test_processes_inside_cannot_inspect_the_child_before_exec(start, folder, nstypes):
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


def test_without_clearing_dumpable_again_the_attacks_succeed(start, folder, weaken):
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
def test_processes_inside_cannot_inspect_the_child_of_a_call(start, meeting, nstypes):
    hostile = Hostile(start, nstypes, "call", str(meeting))
    nsjoin.call_in(hostile.pid, let_it_try, meeting, timeout=60)
    assert_all_refused(hostile.outcomes())


@pytest.mark.parametrize("nstypes", WORLDS)
def test_without_the_flag_off_a_call_gives_all_our_memory_away(start, meeting, nstypes):
    hostile = Hostile(start, nstypes, "call", str(meeting))
    nsjoin.call_in(hostile.pid, let_it_try_undefended, meeting, timeout=60)
    assert_all_successful(hostile.outcomes())


#: What root of a container without a user namespace has, by default. CAP_SYS_PTRACE, CAP_PERFMON (maps and environ, on
#: newer kernels) or CAP_SYS_ADMIN are power over all that it sees.
CONTAINERS = "+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_raw,+sys_chroot,+mknod,+setfcap"

in_fork_hooks: list[Callable[[], None]] = []
os.register_at_fork(after_in_child=lambda: [hook() for hook in in_fork_hooks])


@requires_root
@requires_one_attempt
@pytest.mark.parametrize("nstypes", [*WORLDS, ("mnt", "pid")])
def test_processes_inside_cannot_inspect_the_child_at_its_birth(start, meeting, nstypes):
    # with pid the child is born inside: by the time that Python's hooks run there, it has joined nothing else yet
    bounded = [f"--bounding-set=-all,{CONTAINERS}"] if "user" not in nstypes else None
    hostile = Hostile(start, nstypes, "call", str(meeting), bounded=bounded)
    in_fork_hooks.append(lambda: let_it_try(meeting))
    try:
        nsjoin.call_in(hostile.pid, os.getpid, trust_target=True, timeout=60)
    finally:
        in_fork_hooks.clear()
    assert_all_refused(hostile.outcomes())


# --- call_in: signals -----------------------------------------------------------------------------------------

#: As a direct child, and as one that is born in the PID namespace or, for an ordinary user, is the child of a child.
PLACES = pytest.mark.parametrize("namespaces", [("user", "net"), ("user", "mnt", "pid")])


class Signalled:
    """Calls a function that waits inside, where the target then sends it signals."""

    def __init__(self, target: Running, namespaces: tuple[str, ...]) -> None:
        self._target = target
        self._keywords: dict[str, Any] = {"namespaces": namespaces, "timeout": 60}
        self._reader, self._writer = os.pipe()

    def call(self, number: int) -> str:
        """How the call ended, after one signal; a handler that only returns ends the function too."""
        sender = threading.Thread(target=self._send, args=(number,))
        sender.start()
        try:
            return str(nsjoin.call_in(self._target.pid, self._wait, **self._keywords))
        except nsjoin.CallDiedError as died:
            return f"ended by {-died.returncode}"
        except BaseException as raised:
            return repr(raised)
        finally:
            sender.join()

    async def acall(self, number: int) -> str:
        """The same with aio.call_in."""
        sender = asyncio.get_running_loop().run_in_executor(None, self._send, number)
        try:
            return str(await aio.call_in(self._target.pid, self._wait, **self._keywords))
        except nsjoin.CallDiedError as died:
            return f"ended by {-died.returncode}"
        finally:
            await sender

    def _send(self, number: int) -> None:
        inside = int(os.read(self._reader, 20))
        command = ["sh", "-c", f"kill -{number} {inside}"]  # the shell's own: there may be no kill(1)
        nsjoin.run_in(self._target.pid, command, check=True, **self._keywords)

    def _wait(self) -> str:
        signal.pthread_sigmask(signal.SIG_BLOCK, SENT)
        os.write(self._writer, str(os.getpid()).encode())
        # the signal is there when the handlers, if there are any, are let run
        while not signal.sigpending():
            os.sched_yield()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SENT)
        return "a handler has run inside"

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


SENT = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture
def signalled(start, namespaces) -> Iterator[Signalled]:
    one = Signalled(start("user", "mnt", "net", "pid"), namespaces)
    yield one
    one.close()


def handled_by_the_loop(signalled: Signalled) -> tuple[list[str], str]:
    """What the caller's event loop has been told to handle, and how the call ended."""

    async def main() -> tuple[list[str], str]:
        ran: list[str] = []
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, ran.append, "the caller's handler")
        outcome = await signalled.acall(signal.SIGUSR1)
        told = asyncio.get_running_loop().create_future()  # what is in the wakeup descriptor now is handled before this
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, told.set_result, None)
        os.kill(os.getpid(), signal.SIGUSR2)
        await told
        return ran, outcome

    return asyncio.run(main())


@PLACES
def test_a_signal_from_inside_runs_no_handler_of_the_callers_event_loop(signalled):
    assert handled_by_the_loop(signalled) == ([], f"ended by {signal.SIGUSR1:d}")


@PLACES
def test_with_the_callers_wakeup_descriptor_it_would(signalled, monkeypatch):
    monkeypatch.setattr(forked, "forget_handlers", lambda: None)
    # from 3.12 on asyncio, not trio or uvloop, takes the descriptor away in the child itself
    ran = [] if sys.version_info >= (3, 12) else ["the caller's handler"]
    assert handled_by_the_loop(signalled) == (ran, "a handler has run inside")


@PLACES
def test_a_signal_that_has_a_handler_ends_the_call(signalled):
    assert signalled.call(signal.SIGINT) == f"ended by {signal.SIGINT:d}"


@PLACES
def test_with_the_callers_handlers_a_signal_from_inside_is_an_exception_here(signalled, monkeypatch):
    monkeypatch.setattr(forked, "forget_handlers", lambda: None)
    assert signalled.call(signal.SIGINT) == "KeyboardInterrupt()"


def dumped(signalled: Signalled, path: Path) -> tuple[str, bool]:
    """How the call ended, and whether a handler in C, which Python does not know of, has run."""
    faulthandler = pytest.importorskip("faulthandler")
    with open(path, "w+") as file:
        faulthandler.register(signal.SIGUSR2, file=file)
        try:
            outcome = signalled.call(signal.SIGUSR2)
        finally:
            faulthandler.unregister(signal.SIGUSR2)
        return outcome, path.stat().st_size > 0


@PLACES
def test_signal_handler_in_c_does_not_run_in_the_child(signalled, folder):
    assert dumped(signalled, folder / "dump") == (f"ended by {signal.SIGUSR2:d}", False)


@PLACES
def test_a_handler_in_c_would_run_inside(signalled, folder, monkeypatch):
    monkeypatch.setattr(forked, "forget_handlers", lambda: None)
    assert dumped(signalled, folder / "dump") == ("a handler has run inside", True)


# --- call_in: what /proc shows of it ----------------------------------------------------------------------------


def cmdline_inside(target: Running) -> tuple[bytes, bytes, bytes]:
    """What a program inside reads of the process of a call: arguments, name; and the caller's arguments meanwhile."""
    told, tell = os.pipe()
    hear, say = os.pipe()

    def wait() -> None:
        os.write(tell, str(os.getpid()).encode())
        os.read(hear, 1)

    async def main() -> tuple[bytes, bytes, bytes]:
        call = asyncio.ensure_future(aio.call_in(target.pid, wait, timeout=60))
        inside = int(await asyncio.get_running_loop().run_in_executor(None, os.read, told, 20))
        files = [f"/proc/{inside}/{name}" for name in ("cmdline", "comm")]
        read = [(await aio.run_in(target.pid, ["cat", file], capture_output=True, check=True)).stdout for file in files]
        ours = Path("/proc/self/cmdline").read_bytes()
        os.write(say, b"x")
        await call
        return read[0], read[1], ours

    try:
        return asyncio.run(main())
    finally:
        for fd in (told, tell, hear, say):
            os.close(fd)


def test_the_callers_arguments_are_not_to_be_read_inside(start):
    ours = Path("/proc/self/cmdline").read_bytes()
    name = Path("/proc/self/comm").read_bytes()
    target = start("user", "mnt", "pid")
    assert cmdline_inside(target) == (bytes(len(ours)), b"nsjoin-call\n", ours)
    assert Path("/proc/self/cmdline").read_bytes() == ours
    assert Path("/proc/self/comm").read_bytes() == name


def test_without_clearing_them_the_callers_arguments_are_readable_inside(start, monkeypatch):
    monkeypatch.setattr(forked, "own_arguments", lambda: (0, 0))
    ours = Path("/proc/self/cmdline").read_bytes()
    assert len(ours) > 1
    assert cmdline_inside(start("user", "mnt", "pid"))[0] == ours


@requires_root
def test_child_stopped_before_its_first_instruction_cannot_be_inspected(start):
    """Without a user namespace the child is born inside. The target stops whatever comes, and reads what it can."""
    hostile = start("mnt", "pid", program=f"exec {shlex.join([sys.executable, '-I', '-c', STOPS_THE_NEWBORN])}")
    assert hostile.process.stdout.readline() == "armed\n"
    poll = select.poll()
    poll.register(hostile.process.stdout, select.POLLIN)
    while not poll.poll(0):
        nsjoin.call_in(hostile.pid, os.getpid, trust_target=True, timeout=60)
    assert json.loads(hostile.process.stdout.readline()) == []


#: kill(-1) reaches each process here but the sender; ProcessLookupError: there is none.
STOPS_THE_NEWBORN = """
import contextlib, json, os, signal
stopped, seen = 0, set()
print("armed", flush=True)
while stopped < 20:
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGSTOP)
        for pid in set(filter(str.isdigit, os.listdir("/proc"))) - {str(os.getpid())}:
            with contextlib.suppress(OSError):
                for name in ("cmdline", "comm"):
                    with open(f"/proc/{pid}/{name}") as file:
                        seen.add(file.read().strip(chr(0) + chr(10)))
                stopped += 1
        os.kill(-1, signal.SIGCONT)
print(json.dumps(sorted(seen - {"", "nsjoin-call"})), flush=True)
signal.pause()
"""


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
    else:  # who is in that PID namespace and not in its user namespace cannot be told: nobody is
        nsjoin.call_in(hostile.pid, let_it_try, meeting, timeout=60, trust_target=True)
    assert_all_refused(hostile.outcomes())


# --- files and programs by path, while a thread is away --------------------------------------------------------------


@pytest.fixture
def with_programs(start, folder) -> Callable[[str], Running]:
    """A target that has a program of its own at a path; it writes down who has run it, in ``folder``."""
    (folder / "program").write_text(f"#!/bin/sh\nid -u >>{folder}/ran\n")
    (folder / "program").chmod(0o755)
    (folder / "ran").touch()
    (folder / "ran").chmod(0o666)

    def make(place: str) -> Running:
        one = start("mnt", program=f"{place}; echo armed; exec sleep infinity")
        assert one.process.stdout.readline() == "armed\n"
        return one

    return make


A_NEWUIDMAP = "mount -t tmpfs none /mnt && ln -s {0}/program /mnt/newuidmap"
#: Its /proc has a program for each descriptor of whoever comes.
A_PROC = (
    "mount -t tmpfs none /proc && mkdir -p /proc/self/fd && for n in $(seq 2 200); do ln {0} -s /proc/self/fd/$n; done"
)


def map_ids(target: int) -> None:
    """As an ordinary user, who may not map more than his own id."""
    with nsjoin.enter(target, "mnt"):
        os.setresuid(NOBODY, NOBODY, 0)
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # as of a process that has always been his
        try:
            nsjoin.create("user", uid_map=[(0, NOBODY, 1), (1, 100000, 5)]).close()
        finally:
            os.setresuid(0, 0, 0)
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


def map_all_ids(target: int) -> None:
    with nsjoin.enter(target, "mnt"):
        nsjoin.create("user", uid_map="auto")


def no_execveat() -> None:
    without = Filter()
    without.load(NR)
    without.refuse_if(SYS_EXECVEAT, errno.EPERM)
    without.install()


def run_inside(target: int) -> None:
    with nsjoin.enter(target, "mnt"), nsjoin.Namespace.current("uts") as here:
        nsjoin.run_in([here], ["true"])


def create_inside(target: int) -> None:
    with nsjoin.enter(target, "mnt"):
        nsjoin.create("uts").close()


def never_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what nsjoin asks itself nor the audit hook knows that a thread is away."""
    monkeypatch.setattr(procfs, "is_away", lambda: False)
    monkeypatch.setattr(guard, "is_guarded", lambda: False)


@requires_root
@pytest.mark.parametrize("work", [map_ids, map_all_ids])
def test_no_program_and_no_file_of_the_target_serves_to_map_ids(with_programs, folder, monkeypatch, work):
    target = with_programs(A_NEWUIDMAP.format(folder))
    monkeypatch.setenv("PATH", "/mnt:/usr/bin:/bin")

    def is_refused() -> None:
        with pytest.raises(nsjoin.NamespacePermissionError, match="foreign mount namespace") as caught:
            work(target.pid)
        assert (caught.value.step, caught.value.nstype) == ("uid_map", "user")

    in_child(is_refused)
    assert (folder / "ran").read_text() == ""


@requires_root
def test_without_the_refusal_the_targets_newuidmap_runs(with_programs, folder, monkeypatch):
    target = with_programs(A_NEWUIDMAP.format(folder))
    monkeypatch.setenv("PATH", "/mnt:/usr/bin:/bin")
    never_away(monkeypatch)
    in_child(lambda: map_ids(target.pid))
    assert (folder / "ran").read_text() != ""


@requires_root
@pytest.mark.parametrize("work", [run_inside, create_inside])
def test_where_execveat_is_forbidden_nothing_of_the_targets_proc_runs_in_its_place(with_programs, folder, work):
    target = with_programs(A_PROC.format(folder / "program"))

    def is_refused() -> None:
        with pytest.raises(PermissionError):
            work(target.pid)

    in_child(is_refused, no_execveat)
    assert (folder / "ran").read_text() == ""


@requires_root
@pytest.mark.parametrize("work", [run_inside, create_inside])
def test_with_the_callers_path_the_targets_program_runs(with_programs, folder, monkeypatch, work):
    target = with_programs(A_PROC.format(folder / "program"))
    never_away(monkeypatch)
    # the namespace is looked for in the target's /proc as well, and not found: the program gets the time to run
    monkeypatch.setattr(children_, "end", lambda pid, **_: pid > 0 and os.waitpid(pid, 0))

    def try_it() -> None:
        with contextlib.suppress(OSError):
            work(target.pid)

    in_child(try_it, no_execveat)
    assert (folder / "ran").read_text() != ""


def launch_from_a_file(target: int) -> None:
    with nsjoin.enter(target, "mnt"), nsjoin.Namespace.current("uts") as here:
        nsjoin.run_in([here], ["true"])


def set_clocks(target: int) -> None:
    with nsjoin.enter(target, "mnt"):
        nsjoin.create("time", monotonic=1)


def look_up_a_name(target: int) -> None:
    with nsjoin.enter(target, "mnt"), nsjoin.Namespace.current("uts") as here:
        nsjoin.run_in([here], ["true"], user="root", namespaces=["uts"])


@requires_root
@pytest.mark.parametrize(
    ("work", "prepare"),
    [
        (launch_from_a_file, lambda: image_._image.memfd_does_not_run()),
        (set_clocks, int),
        (look_up_a_name, int),
    ],
)
def test_what_else_needs_a_path_is_refused_inside(start, work, prepare):
    target = start("mnt")

    def is_refused() -> None:
        with pytest.raises(nsjoin.NamespacePermissionError, match="foreign mount namespace"):
            work(target.pid)

    in_child(is_refused, prepare)


# --- call_in: who has power over all that he sees ------------------------------------------------------------------
NO_USER = ("mnt", "pid")


def powerful(start: Callable[..., Running], meeting: Path, capability: str) -> Hostile:
    """A container as docker starts it, with one more capability, and no user namespace."""
    return Hostile(start, NO_USER, "channel", str(meeting), bounded=[f"--bounding-set=-all,{CONTAINERS},+{capability}"])


def refusal(target: Any, **keywords: Any) -> str:
    with pytest.raises(nsjoin.JoinPermissionError, match=r"trust_target=True") as caught:
        nsjoin.call_in(target, os.getpid, **keywords)
    assert (caught.value.step, caught.value.nstype, caught.value.errno) == ("call_in", "pid", errno.EPERM)
    return str(caught.value.reason)


@requires_root
@pytest.mark.parametrize("capability", ["sys_ptrace", "sys_admin", "perfmon"])
def test_a_call_does_not_go_where_root_has_power_over_it(start, meeting, capability):
    hostile = powerful(start, meeting, capability)
    assert f"cap_{capability} in our user namespace" in refusal(hostile.pid)
    assert f"cap_{capability} in our user namespace" in refusal(hostile.pid, namespaces=["pid"])
    with pytest.raises(nsjoin.JoinPermissionError):
        asyncio.run(nsjoin.aio.call_in(hostile.pid, os.getpid))
    # the ways out that it names
    assert nsjoin.call_in(hostile.pid, os.getppid, namespaces=["mnt"]) == os.getpid()
    assert nsjoin.run_in(hostile.pid, ["true"], like_target=True).returncode == 0
    assert nsjoin.call_in(hostile.pid, os.getppid, trust_target=True) == 0


@requires_root
def test_without_the_refusal_a_forged_pickle_runs_in_the_caller(start, meeting):
    hostile = powerful(start, meeting, "sys_ptrace")
    result = nsjoin.call_in(hostile.pid, let_it_try, meeting, timeout=60, trust_target=True)
    assert {"pickle": None} in hostile.outcomes()
    assert result == os.getpid()  # the function returns None


@requires_root
def test_where_data_is_asked_for_their_pickle_is_refused(start, meeting):
    hostile = powerful(start, meeting, "sys_ptrace")
    with pytest.raises(nsjoin.CallResultError, match='result="data" refuses'):
        nsjoin.call_in(hostile.pid, let_it_try, meeting, timeout=60, trust_target=True, result="data")
    assert {"pickle": None} in hostile.outcomes()


#: PR_CAPBSET_DROP (prctl(2)) of all, which leaves to a process what it has.
WITHOUT_A_BOUNDING_SET = """
import ctypes, signal
for number in range(64):
    ctypes.CDLL(None).prctl(24, number, 0, 0, 0)
print("end", flush=True)
signal.pause()
"""


@requires_root
def test_call_is_refused_where_a_process_keeps_the_capability_in_another_set(start):
    target = start(*NO_USER, program=f"exec {shlex.join([sys.executable, '-I', '-c', WITHOUT_A_BOUNDING_SET])}")
    assert target.process.stdout.readline() == "end\n"
    assert status_of(target.pid, "CapBnd") == ["0" * 16]
    assert "cap_sys_ptrace" in refusal(target.pid)


@requires_root
def test_call_is_refused_where_power_over_it_is_unknown(start, monkeypatch):
    target = start(*NO_USER, "net", program=f"exec {shlex.join(['setpriv', '--bounding-set=-all', 'sleep', '1000'])}")
    paths = [f"/proc/{target.pid}/ns/{name}" for name in ("pid", "net")]
    assert "cannot be told" in refusal(paths)
    assert nsjoin.call_in(paths, os.getppid, namespaces=["net"]) == os.getpid()
    deeper = start(*NO_USER, program="exec unshare -U sh -c 'echo end; exec sleep 1000'")
    assert deeper.process.stdout.readline() == "end\n"
    assert "cannot be told" in refusal(deeper.pid)
    with nsjoin.enter(target.pid, "pid"):  # where all children of this thread are born
        assert "this thread's children are born in" in refusal(os.getpid(), namespaces=["net"])

    def refuse(*_args: object) -> None:
        raise PermissionError(errno.EACCES, "hidden")

    monkeypatch.setattr(Process, "read_proc", refuse)
    assert "cannot be read" in refusal(target.pid)


@requires_root
def test_call_is_allowed_where_no_process_has_power_over_it(start):
    bounded = ["setpriv", f"--bounding-set=-all,{CONTAINERS}", "sleep", "1000"]
    for nstypes in (NO_USER, ("pid", "user"), ("mnt",), ("mnt", "user")):
        target = start(*nstypes, program=f"exec {shlex.join(bounded)}" if nstypes == NO_USER else "exec sleep 1000")
        wait_for_program(target.pid, "setpriv", "sh")
        assert nsjoin.call_in(target.pid, os.getppid) == (0 if "pid" in nstypes else os.getpid())


def wait_for_program(pid: int, *before: str) -> None:
    """Wait until it runs something else than these."""
    while Path(f"/proc/{pid}/comm").read_text().strip() in before:
        os.sched_yield()


# --- call_in: what is shown of an exception -------------------------------------------------------------------------
#: In the place of our module's file: a FIFO, of which is told when somebody has opened it, or lines of theirs.
FIFO = "mkfifo {file}; echo armed; echo > {file}; echo opened; exec sleep infinity"
LINES = r"printf 'their line\ntheir line \033[2J\n' > {file}; echo armed; exec sleep infinity"
FAILING = """def fail():
    raise ValueError('our line')
"""


@pytest.fixture
def failing(folder) -> Any:
    """A module of ours, whose file has not been read for a traceback yet."""
    (folder / "failing.py").write_text(FAILING)
    spec = importlib.util.spec_from_file_location("failing", folder / "failing.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    linecache.cache.pop(module.__file__, None)


@pytest.fixture
def replaced(start, failing) -> Callable[[str], Running]:
    """``replaced(FIFO)`` is a target where something else is in the place of that file."""

    def replace(program: str) -> Running:
        file = failing.__file__
        mount = f"mount -t tmpfs none {Path(file).parent}"
        target = start("user", "mnt", "pid", program=f"{mount}; {program.format(file=file)}")
        assert target.process.stdout.readline() == "armed\n"
        return target

    return replace


def cause_of(target: Running, func: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match="our line") as caught:
        nsjoin.call_in(target.pid, func, timeout=60)
    return str(caught.value.__cause__)


@pytest.mark.parametrize("program", [FIFO, LINES])
def test_of_an_exception_inside_the_source_lines_are_ours(replaced, failing, program):
    text = cause_of(replaced(program), failing.fail)
    assert "    raise ValueError('our line')\n" in text
    assert "their line" not in text


@pytest.fixture
def formatted_inside(monkeypatch) -> None:
    def describe(exception: BaseException) -> list[Any]:
        text = "".join(traceback.format_exception(type(exception), exception, exception.__traceback__))
        return [(text, [], [], 0, -1, -1, [])]

    monkeypatch.setattr(raised, "describe", describe)
    monkeypatch.setattr(raised, "read_no_sources", lambda: None)


def test_traceback_formatted_in_the_child_shows_the_targets_lines(replaced, failing, formatted_inside):
    assert "their line" in cause_of(replaced(LINES), failing.fail)


def test_traceback_formatted_in_the_child_hangs_on_a_fifo(replaced, failing, formatted_inside):
    target = replaced(FIFO)
    cause_of(target, failing.fail)
    assert target.process.stdout.readline() == "opened\n"  # by the child; without who writes, it would wait for ever


def show_in_each_way(fail: Callable[[], object]) -> None:
    class Failing:
        def __del__(self) -> None:
            fail()

    Failing()
    gc.collect()
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    try:
        fail()
    except ValueError:
        logging.getLogger("nsjoin.test").exception("it has failed")
        traceback.print_exc()
    warnings.showwarning(UserWarning("a warning"), UserWarning, fail.__code__.co_filename, 1)


def test_what_the_function_shows_of_exceptions_itself_reads_no_files_of_the_targets(replaced, failing, capfd):
    target = replaced(FIFO)
    # PytestUnraisableExceptionWarning and the like are for what happens here
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "unraisablehook", sys.__unraisablehook__)
        patched.setattr(threading, "excepthook", THREADS_HOOK)
        patched.setattr(sys, "stderr", sys.__stderr__)
        nsjoin.call_in(target.pid, show_in_each_way, failing.fail, timeout=60)
    shown = capfd.readouterr().err
    assert "Exception ignored in: <function" in shown
    assert shown.count("ValueError: our line") >= (3 if THREADS_HOOK.__module__ in ("_thread", "threading") else 2)
    assert "their line" not in shown


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


def status_of(pid: int, *labels: str) -> list[str]:
    with open(f"/proc/{pid}/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return [lines[label].strip() for label in labels]


@requires_root
@pytest.mark.parametrize("like_target", [True, False])
def test_with_like_target_the_visible_child_never_has_more_capabilities_than_the_target(start, folder, like_target):
    # Who has CAP_SYS_PTRACE in our user namespace, as in some containers, can trace it, dumpable or not.
    bounded = "exec setpriv --bounding-set=-all,+sys_ptrace,+chown sh -c 'echo end; exec sleep infinity'"
    target = start("mnt", "pid", program=bounded)
    assert target.process.stdout.readline() == "end\n"
    theirs = status_of(target.pid, "CapPrm", "CapEff", "CapBnd")
    with held_program(folder / "held") as program:
        held = Held(program, target.pid, like_target=like_target)
        inside = [pid for pid in held.pids if len(status_of(pid, "NSpid")[0].split()) == 2]
        capabilities = [status_of(pid, "CapPrm", "CapEff", "CapBnd") for pid in inside]
        program.release()
        held.join()
    assert held.result.returncode == 0
    assert (capabilities == [theirs]) is like_target


#: A limit, and a seccomp filter that allows everything (struct sock_filter, struct sock_fprog).
LIMITED = """
import ctypes, os, resource, struct, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 7777))
allow = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000))
program = struct.pack("HxxxxxxQ" if ctypes.sizeof(ctypes.c_void_p) == 8 else "HxxI", 1, ctypes.addressof(allow))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.create_string_buffer(program)) == 0
print("end", flush=True)
os.execvp("sleep", ["sleep", "infinity"])
"""


def test_limits_and_filters_of_the_target_are_not_taken_over(start):
    command = [sys.executable, "-I", "-c", LIMITED]
    target = start("user", "mnt", "pid", program=f"ulimit -Hc 7777 && exec {shlex.join(command)}")
    assert target.process.stdout.readline() == "end\n"
    reader = ["sh", "-c", "grep -E 'NoNewPrivs|Seccomp:' /proc/self/status; grep core /proc/self/limits"]
    with open("/proc/self/limits") as file:
        ours = next(line for line in file if "core" in line)
    done = nsjoin.run_in(target.pid, reader, like_target=True, env=None, stdout=subprocess.PIPE, text=True, check=True)
    assert status_of(target.pid, "NoNewPrivs", "Seccomp") == ["1", "2"]
    assert done.stdout == f"NoNewPrivs:\t1\nSeccomp:\t{status_of(os.getpid(), 'Seccomp')[0]}\n{ours}"


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
                # the barrier, the target's pidfd, or its namespaces, the target's own root
                its_own = {"pidfd", "anon_inode"} if JOINS_BY_PIDFD else set(target.nstypes)
                assert others <= {"pipe", "/", *its_own}
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


# --- ways out: the working directory, the executable -----------------------------------------------------------------

#: Shell: the folders with programs and their libraries, which may be links to others, in the root directory {root} too.
WITH_PROGRAMS = """
for name in /usr /bin /sbin /lib /lib64; do
    if [ -L $name ]; then cp -P $name {root}/
    elif [ -d $name ]; then mkdir {root}$name && mount --rbind $name {root}$name
    fi
done
"""
#: A target that has chrooted into a folder of its own, and whose working directory has stayed outside.
JAILED = """
import os, signal, subprocess, sys
jail = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "none", jail], check=True)
for folder in ("proc", "inner"):
    os.mkdir(f"{jail}/{folder}")
subprocess.run(["mount", "-t", "proc", "none", f"{jail}/proc"], check=True)
subprocess.run(["sh", "-c", sys.argv[2]], check=True)
os.symlink("/proc/1/cwd", f"{jail}/out")
os.symlink("/proc/self/fd/50", f"{jail}/given")
os.symlink("/inner", f"{jail}/link")
os.chdir("/etc")
os.chroot(jail)
print("end", flush=True)
signal.pause()
"""
CHECK_CWD = "        check_cwd(plan);\n"


@pytest.fixture
def jailed(start, folder) -> Running:
    command = [sys.executable, "-I", "-c", JAILED, str(folder), WITH_PROGRAMS.format(root=folder)]
    running = start("user", "mnt", "pid", program=f"exec {shlex.join(command)}")
    assert running.process.stdout.readline() == "end\n"
    return running


@pytest.mark.parametrize("cwd", ["/out", "/proc/1/cwd", "/proc/1/cwd/.."])
def test_no_working_directory_is_a_way_out_of_the_root(jailed, cwd):
    with pytest.raises(nsjoin.JoinError, match="not below the target's root") as caught:
        nsjoin.run_in(jailed.pid, ["ls"], cwd=cwd)
    assert (caught.value.step, caught.value.errno) == ("chdir", errno.EXDEV)


def test_without_that_check_the_program_is_outside(jailed, weaken):
    weaken(CHECK_CWD, "        (void)check_cwd;\n")
    done = nsjoin.run_in(jailed.pid, ["ls"], cwd="/out", capture_output=True, text=True, check=True)
    assert "hostname" in done.stdout.split()


#: Where the target's working directory was, outside of its root, before it was deleted; "{}" is a folder out there.
DELETED_OUTSIDE = {
    "beside the root": "mkdir {}/d; cd {}/d; rmdir {}/d",
    "with those above it": "mkdir -p {}/a/b/c; cd {}/a/b/c; rm -r {}/a",
    # ".." has to fail there, since the root of the mount is not above it any more
    "moved out of a mount": "mkdir -p {}/a/d {}/jail/inner; mount --bind {}/a {}/jail/inner; cd {}/jail/inner/d; "
    "mv {}/a/d {}/d; rmdir {}/d",
    "on a mount that is gone": "mount -t tmpfs none {}/a; mkdir {}/a/d; cd {}/a/d; rmdir {}/a/d; umount -l {}/a",
}


@pytest.fixture(params=DELETED_OUTSIDE)
def deleted_outside(request, start, folder) -> Running:
    """A target like ``jailed``, whose working directory has been deleted."""
    root = f"{folder}/jail"
    jail = f"mkdir -p {root}/proc {folder}/a && mount -t tmpfs none {root} && mkdir {root}/proc"
    jail += WITH_PROGRAMS.format(root=root)
    go = DELETED_OUTSIDE[request.param].replace("{}", str(folder))
    chroot = 'import os, signal, sys; os.chroot(sys.argv[1]); print("end", flush=True); signal.pause()'
    command = [sys.executable, "-I", "-c", chroot, f"{folder}/jail"]
    mounts = f"mount -t proc none {root}/proc"
    running = start("user", "mnt", "pid", program=f"{jail}\n{mounts}; {go}; exec {shlex.join(command)}")
    assert running.process.stdout.readline() == "end\n"
    return running


@pytest.mark.parametrize("cwd", [nsjoin.TARGET, "/proc/1/cwd"])
def test_deleted_working_directory_is_no_way_out(deleted_outside, cwd):
    with pytest.raises(nsjoin.JoinError, match="been deleted.*name another one with cwd=") as caught:
        nsjoin.run_in(deleted_outside.pid, ["ls"], cwd=cwd)
    assert caught.value.step == "chdir"


@pytest.mark.parametrize("deleted_outside", ["beside the root"], indirect=True)
def test_without_a_look_at_where_it_was_the_program_is_outside(deleted_outside, weaken):
    weaken("    if (path[0] != '/') /*", "    if (deleted < 0 && path[0] != '/') /*")
    done = nsjoin.run_in(deleted_outside.pid, ["ls", ".."], cwd=nsjoin.TARGET, capture_output=True, text=True)
    assert "jail" in done.stdout.split()


@pytest.mark.parametrize("cwd", [None, "/", "/inner", "/link", "/proc/1/root", "inner/.."])
def test_a_working_directory_inside_is_taken(jailed, cwd):
    assert nsjoin.run_in(jailed.pid, ["ls"], cwd=cwd, capture_output=True).returncode == 0


@pytest.fixture
def leaking(start, folder) -> Iterator[tuple[Any, str, int]]:
    """A target with a link to /proc/self/fd/50 in a /proc where the joiner sees itself; 50 is a directory of ours."""
    running = start("user", "mnt", program=f"ln -s /proc/self/fd/50 {folder}/given; echo end; exec sleep infinity")
    assert running.process.stdout.readline() == "end\n"
    directory = os.open("/usr", os.O_RDONLY)
    ours = fcntl.fcntl(directory, fcntl.F_DUPFD, 50)
    os.close(directory)
    assert ours == 50
    yield running, str(folder / "given"), ours
    os.close(ours)


def test_a_directory_that_is_handed_in_is_no_working_directory(leaking):  # CVE-2024-21626
    running, link, ours = leaking
    for cwd in (link, "/proc/self/fd/50"):
        with pytest.raises(nsjoin.JoinError, match="not below the target's root"):
            nsjoin.run_in(running.pid, ["ls"], cwd=cwd, pass_fds=[ours])
        with pytest.raises(FileNotFoundError):
            nsjoin.run_in(running.pid, ["ls"], cwd=cwd)  # not handed in, it is not there


def test_without_that_check_a_link_leads_to_it(leaking, weaken):
    weaken(CHECK_CWD, "        (void)check_cwd;\n")
    running, link, ours = leaking
    done = nsjoin.run_in(running.pid, ["ls"], cwd=link, pass_fds=[ours], capture_output=True, text=True, check=True)
    assert done.stdout.split() == sorted(os.listdir("/usr"))


#: Standard input of the joiner that such a script is run by: "/:" is where it looks for the number of its plan, and
#: that is 0. So it waits, and the target can do with its executable what it wants.
SCRIPT = "/:"


@pytest.fixture
def self_script(start) -> Iterator[Any]:
    """A target whose program /: is a script for /proc/self/exe, and that program, waiting."""
    setup = "mount -t tmpfs none /mnt && printf '#!/proc/self/exe\\n' >/mnt/: && chmod +x /mnt/:"
    root = "mkdir /mnt/proc && mount -t proc none /mnt/proc" + WITH_PROGRAMS.format(root="/mnt")
    wait = "echo end; exec sleep 1d"
    running = start("user", "mnt", "pid", program=f"{setup} && {root} exec chroot /mnt sh -c '{wait}'")
    assert running.process.stdout.readline() == "end\n"
    with nsjoin.spawn_in(running.pid, [SCRIPT], stdin=subprocess.PIPE) as process:
        yield process, running
        process.communicate()


def executable_of(process: Any) -> int:
    """As root of the target gets it, which may look into /proc/PID of what runs there."""
    return os.open(f"/proc/{process.pid}/exe", os.O_RDONLY)


def overwrite(fd: int) -> None:
    """What CVE-2019-5736 does, once the program does not run any more."""
    writable = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    try:
        os.pwrite(writable, b"hostile", 0)
    finally:
        os.close(writable)


@requires_root
def test_a_script_for_proc_self_exe_reaches_only_the_sealed_joiner(self_script):
    process, running = self_script
    image = os.readlink(f"/proc/{process.pid}/exe")
    assert image == "/memfd:nsjoin (deleted)"
    fd = executable_of(process)
    try:
        process.communicate()
        acts = [overwrite, lambda fd: os.truncate(f"/proc/self/fd/{fd}", 0)]
        if SEALS_THE_MODE:
            acts.append(lambda fd: os.chmod(f"/proc/self/fd/{fd}", 0))
        for act in acts:
            with pytest.raises(PermissionError):
                act(fd)
        assert os.pread(fd, 1 << 20, 0) == image_._image_bytes()
    finally:
        os.close(fd)
    assert nsjoin.run_in(running.pid, ["true"]).returncode == 0


@requires_root
def test_without_the_seals_the_joiner_of_the_next_launch_is_the_targets(monkeypatch, unsealed, self_script):
    process, _ = self_script
    fd = executable_of(process)
    try:
        process.communicate()
        overwrite(fd)
        assert os.pread(image_._image.open()[0], 7, 0) == b"hostile"
    finally:
        os.close(fd)


@pytest.fixture
def unsealed(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(image_, "_image", image_._Image())
    monkeypatch.setattr(image_, "_seal", lambda fd: None)
    yield
    image_._image.memfd_does_not_run()  # closes it


@pytest.fixture
def by_file(monkeypatch) -> None:
    """No memfd can be executed here: each launch has an unlinked file of its own."""
    image = image_._Image()
    image._memfd_runs = False
    monkeypatch.setattr(image_, "_image", image)


@requires_root
def test_where_a_file_serves_only_that_launchs_own_can_be_written(by_file, self_script):
    process, running = self_script
    fd = executable_of(process)
    try:
        process.communicate()
        overwrite(fd)  # this is what the file gives up: it can be filled, too
        assert os.fstat(fd).st_nlink == 0
    finally:
        os.close(fd)
    assert nsjoin.run_in(running.pid, ["true"]).returncode == 0


@requires_root
def test_where_the_seals_do_not_cover_the_mode_a_target_that_takes_the_x_bits_leads_to_files(monkeypatch, self_script):
    """Before Linux 6.3."""
    _, running = self_script
    monkeypatch.setattr(image_, "_image", image_._Image())
    monkeypatch.setattr(image_, "_seal", lambda fd: fcntl.fcntl(fd, abi.F_ADD_SEALS, image_._ALL_SEALS))
    image, _ = image_._image.open()
    try:
        os.chmod(f"/proc/self/fd/{image}", 0)
        assert nsjoin.run_in(running.pid, ["true"]).returncode == 0
        assert not image_._image._memfd_runs
    finally:
        image_._image.memfd_does_not_run()  # closes it


CLOSE_PROC = "        SYS1(close, plan->proc);\n"
FIRST_NUMBERS = range(3, 20)


def led_outside(start: Callable[..., Running], **keywords: Any) -> list[int]:
    """By which descriptors of the process that becomes the program a link leads to a file of ours."""
    to_ours = f"/proc/self/fd/$n/{os.getpid()}/root/bin/true"
    setup = f"mount -t tmpfs none /mnt; for n in $(seq 3 20); do ln -s {to_ours} /mnt/$n; done"
    target = start("mnt", "pid", program=f"{setup}; echo end; exec sleep infinity")
    assert target.process.stdout.readline() == "end\n"
    found = []
    for number in FIRST_NUMBERS:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            nsjoin.run_in(target.pid, [f"/mnt/{number}"], check=True, **keywords)
            found.append(number)
    return found


@requires_root
@pytest.mark.parametrize("keywords", [{}, {"oom_score_adj": 500}], ids=["plain", "oom_score_adj"])
def test_no_link_leads_exec_to_a_file_of_ours(start, keywords):
    assert led_outside(start, **keywords) == []


@requires_root
def test_with_our_proc_still_open_a_link_leads_exec_to_our_file(start, weaken):
    weaken(CLOSE_PROC, "        (void)0;\n")
    assert led_outside(start, oom_score_adj=500) != []


# --- a target that moves between our look and the join ----------------------------------------------------------------

#: A process that goes to user and mount namespaces of its own when it is told, with a program there. Its argument is
#: its uid, and gid, in the user namespace that it leaves.
LEAVING = """
import ctypes, os, subprocess, sys
print("end", flush=True)
sys.stdin.readline()
assert ctypes.CDLL(None).unshare(0x10000000 | 0x20000) == 0
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {sys.argv[1]} 1"), ("gid_map", f"0 {sys.argv[1]} 1")):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
subprocess.run(["mount", "-t", "tmpfs", "none", "/mnt"], check=True)
with open("/mnt/program", "w") as program:
    program.write("#!/bin/sh\\nreadlink /proc/self/ns/user; grep CapEff /proc/self/status\\n")
os.chmod("/mnt/program", 0o755)
print("gone", flush=True)
sys.stdin.read()
"""


#: Where it comes from: a mount namespace of root's in which it is nobody, as in many containers, and a user namespace.
FROM = {
    "ours": (
        ["unshare", "--mount", "setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"],
        NOBODY,
    ),
    "a container's": (["unshare", "--user", "--map-root-user", "--mount"], 0),
}


class Leaving:
    def __init__(self, user_namespace: str = "ours") -> None:
        command, uid = FROM[user_namespace]
        self.process = subprocess.Popen(
            [*command, SYSTEM_PYTHON, "-I", "-c", LEAVING, str(uid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "end\n"
        self._has_gone = False

    def go(self) -> None:
        if self._has_gone:
            return
        self._has_gone = True
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "gone\n"


@pytest.fixture
def leaving(monkeypatch) -> Iterator[Leaving]:
    """It leaves after we have looked at where it is, and before anything is joined."""
    one = Leaving()
    resolve = start_.resolve

    def late(*args: Any, **keywords: Any) -> Any:
        one.go()
        return resolve(*args, **keywords)

    monkeypatch.setattr(start_, "resolve", late)
    yield one
    one.process.communicate()


@requires_root
@requires_namespaces_of_pidfds
def test_a_target_that_leaves_its_user_namespace_just_then_does_not_get_our_rights(leaving):
    done = nsjoin.run_in(leaving.process.pid, ["/mnt/program"], capture_output=True, text=True, check=True)
    namespace, _ = done.stdout.splitlines()
    assert namespace == os.readlink(f"/proc/{leaving.process.pid}/ns/user")


@requires_root
@requires_namespaces_of_pidfds
def test_target_that_leaves_its_user_namespace_during_a_call_gains_no_rights(leaving):
    namespace = nsjoin.call_in(leaving.process.pid, lambda: nsjoin.Namespace.current("user").id)
    with nsjoin.Namespace.from_pid(leaving.process.pid, "user") as theirs:
        assert namespace == theirs.id


@requires_root
@requires_namespaces_of_pidfds
def test_without_a_look_after_the_join_its_program_runs_as_our_root(leaving, weaken):
    weaken("    if (plan->witness >= 0)\n        check_user(plan);", "    (void)check_user;")
    done = nsjoin.run_in(leaving.process.pid, ["/mnt/program"], capture_output=True, text=True, check=True)
    namespace, capabilities = done.stdout.splitlines()
    assert namespace == os.readlink("/proc/self/ns/user")
    with open("/proc/self/status") as status:
        assert capabilities in status.read()


#: Where setns takes no pidfd, or pidfds tell no namespaces, these are opened one by one and looked at before the join.
#: The moments, and the newest kernels on which that is so.
MOMENTS = {
    "mnt is opened": (Process, "open_namespace", lambda arguments: arguments[1:] == (MNT,)),
    "its root is opened": (Process, "open_root", lambda _: True),
    "we look": (start_, "has_left", lambda _: True),
    "we join": (start_, "way_to", lambda arguments: not arguments[2].by_pidfd),
}
OLD = pytest.mark.parametrize(
    ("user_namespace", "release"), [("ours", "6.1"), ("ours", "5.4"), ("ours", "4.18"), ("a container's", "5.4")]
)


@contextlib.contextmanager
def one_that_leaves(user_namespace: str, moment: str, release: str) -> Iterator[tuple[Leaving, Callable[[], None]]]:
    """What to call in a child of ours: from then on the kernel is an old one, and it leaves just before that moment."""
    one = Leaving(user_namespace)

    def prepare() -> None:
        owner, name, is_it = MOMENTS[moment]
        do = getattr(owner, name)

        def late(*arguments: Any, **keywords: Any) -> Any:
            if is_it(arguments):
                one.go()
            return do(*arguments, **keywords)

        setattr(owner, name, late)
        kernels.refuse(kernels.lacking(release), forbidden=False)
        own_inodes((USER,))  # closes the pidfd of our parent that is kept for that

    try:
        yield one, prepare
    finally:
        one.process.communicate()


@requires_root
@OLD
@pytest.mark.parametrize("moment", [moment for moment in MOMENTS if moment != "we join"])
def test_on_old_kernels_one_that_leaves_before_we_look_is_followed(user_namespace, release, moment):
    def follow() -> None:
        done = nsjoin.run_in(leaving.process.pid, ["/mnt/program"], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[0] == os.readlink(f"/proc/{leaving.process.pid}/ns/user")

    with one_that_leaves(user_namespace, moment, release) as (leaving, prepare):
        in_child(follow, prepare)


@requires_root
@OLD
def test_on_old_kernels_one_that_leaves_after_that_has_lost_us(user_namespace, release):
    """We are where it was, with the root directory that it had there: none of its own making."""

    def program() -> None:
        with pytest.raises(FileNotFoundError):
            nsjoin.run_in(leaving.process.pid, ["/mnt/program"])

    def call() -> None:
        assert nsjoin.call_in(leaving.process.pid, os.listdir, "/mnt") == os.listdir("/mnt")

    for miss in (program, call):
        with one_that_leaves(user_namespace, "we join", release) as (leaving, prepare):
            namespace = os.readlink(f"/proc/{leaving.process.pid}/ns/user")
            in_child(miss, prepare)
            assert os.readlink(f"/proc/{leaving.process.pid}/ns/user") != namespace


@requires_root
@OLD
def test_on_old_kernels_without_that_look_its_program_runs_as_root_of_where_it_was(user_namespace, release):
    def program() -> str:
        start_.has_left = lambda *_: False
        done = nsjoin.run_in(leaving.process.pid, ["/mnt/program"], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[0]

    with one_that_leaves(user_namespace, "mnt is opened", release) as (leaving, prepare):
        namespace = os.readlink(f"/proc/{leaving.process.pid}/ns/user")
        assert in_child(program, prepare) == namespace
        assert os.readlink(f"/proc/{leaving.process.pid}/ns/user") != namespace


# --- a /proc that lies ------------------------------------------------------------------------------------------------

#: Whoever opens a namespace there waits for ever, since these are FIFOs.
LYING_PROC = """
mount -t tmpfs none /proc
for name in self thread-self; do
    mkdir -p /proc/$name/ns /proc/$name/fd
    for nstype in cgroup ipc mnt net pid pid_for_children time time_for_children user uts; do
        mkfifo /proc/$name/ns/$nstype
    done
done
echo end; exec sleep infinity
"""


@pytest.fixture
def lying(start) -> Running:
    running = start("mnt", "pid", "uts", program=LYING_PROC)
    assert running.process.stdout.readline() == "end\n"
    return running


def test_a_program_is_started_and_a_function_called_where_proc_lies(lying):
    listing = nsjoin.run_in(lying.pid, ["sh", "-c", "echo /proc/*"], capture_output=True, text=True, check=True)
    assert listing.stdout == "/proc/self /proc/thread-self\n"
    assert nsjoin.call_in(lying.pid, os.listdir, "/proc/self", trust_target=True) in (["ns", "fd"], ["fd", "ns"])
    with pytest.raises(FileNotFoundError):
        nsjoin.run_in(lying.pid, ["/no/such/program"])
    with pytest.raises(nsjoin.CallDiedError):
        nsjoin.call_in(lying.pid, lambda: os.kill(os.getpid(), signal.SIGKILL), trust_target=True)


IN_THE_NAME_OF_ANOTHER = r"""
mount --rbind / /mnt && mount -t tmpfs none /mnt/mnt
printf '#!/bin/sh\necho the liar is\n' >/mnt/mnt/whoami && chmod 755 /mnt/mnt/whoami
mount --bind /mnt/mnt/whoami /mnt$(command -v whoami)
mount -t tmpfs none /proc && ln -s {caller} /proc/self && mkdir /proc/{other} && ln -s /mnt /proc/{other}/root
echo ready; exec sleep infinity
"""


@requires_namespaces_of_pidfds
@requires_root
def test_another_target_is_not_looked_up_in_the_proc_that_lies(start, monkeypatch):
    """Inside ``enter(A, "mnt")``, A says where the root of B is: its own program would run in B, with our rights."""
    other = start("mnt", "uts")
    liar = start("mnt", program=IN_THE_NAME_OF_ANOTHER.format(caller=os.getpid(), other=other.pid))
    assert liar.process.stdout.readline() == "ready\n"

    def in_the_other() -> bytes:
        with nsjoin.enter(liar.pid, "mnt"):
            return nsjoin.run_in(other.pid, ["whoami"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout

    assert in_the_other() == b"root\n"
    monkeypatch.setattr(procfs, "place", lambda path: (f"/proc/{path}", None))  # without the descriptor of our own
    assert in_the_other() == b"the liar is\n"


@requires_root
def test_the_way_back_does_not_ask_the_proc_that_lies(lying):
    own = os.readlink("/proc/thread-self/ns/mnt")
    with nsjoin.Namespace.from_pid(lying.pid, "uts") as uts, nsjoin.enter(lying.pid, "mnt"):
        assert sorted(os.listdir("/proc")) == ["self", "thread-self"]
        with nsjoin.enter(uts):
            assert sorted(os.listdir("/proc/thread-self")) == ["fd", "ns"]
        with pytest.raises(nsjoin.JoinError, match="user"):
            nsjoin.enter(lying.pid, "user").__enter__()
    assert os.readlink("/proc/thread-self/ns/mnt") == own


# --- names, keys, terminals: what the target can make of what we ask or hand in ---------------------------------------


@pytest.fixture
def named(start, request) -> Running:
    """A target whose /etc/passwd is what the parameter's commands make of it."""
    setup = f"mount -t tmpfs none /etc && cd /etc && {request.param} && echo end; exec sleep infinity"
    running = start("mnt", "pid", program=setup)
    assert running.process.stdout.readline() == "end\n"
    return running


HOSTILE_PASSWD = {
    "a link out of the root": "mkdir jail && ln -s ../../../../../etc/passwd passwd",
    "a link to itself": "ln -s passwd passwd",
    "a fifo": "mkfifo passwd",
    "a folder": "mkdir passwd",
    "the kernel's log": "ln -s /proc/kmsg passwd",
    "a descriptor": "ln -s /proc/self/fd/0 passwd",
    "endless": "truncate -s 1T passwd",
}


@pytest.mark.parametrize("named", HOSTILE_PASSWD.values(), ids=HOSTILE_PASSWD.keys(), indirect=True)
def test_no_passwd_of_the_target_holds_us_up_or_leads_out(named):
    with pytest.raises((OSError, KeyError)) as caught:
        nsjoin.run_in(named.pid, ["true"], user="daemon")  # we have one
    assert not isinstance(caught.value, nsjoin.JoinError)


@requires_root
@pytest.mark.parametrize("named", ["echo 'nobody:x:0:0::/:/bin/sh' > passwd"], indirect=True)
def test_a_name_is_what_the_target_says_and_a_number_is_not(named):
    def uid(user: int | str) -> str:
        return nsjoin.run_in(named.pid, ["/usr/bin/id", "-u"], user=user, capture_output=True, text=True).stdout

    assert uid("nobody") == "0\n"
    assert uid(NOBODY) == f"{NOBODY}\n"


#: The number of keyctl(2) and of add_key(2) by machine.
KEY_CALLS = {"x86_64": (250, 248), "aarch64": (219, 217)}
READ_KEY = """
import ctypes
libc = ctypes.CDLL(None)
key = libc.syscall({keyctl}, 10, -3, b"user", b"nsjoin-test", 0)
text = ctypes.create_string_buffer(9)
libc.syscall({keyctl}, 11, key, text, 9)
print(text.value.decode())
"""


def with_a_key(pid: int, keyctl: int, add_key: int) -> list[str]:
    libc = ctypes.CDLL(None)
    assert libc.syscall(keyctl, 1, None) > 0, "no new session keyring"
    assert libc.syscall(add_key, b"user", b"nsjoin-test", b"secret", 6, -3) > 0
    program = [sys.executable, "-I", "-c", READ_KEY.format(keyctl=keyctl)]
    return [
        nsjoin.run_in(pid, program, capture_output=True, text=True, check=True, like_target=like_target).stdout.strip()
        for like_target in (False, True)
    ]


def test_with_like_target_the_callers_keys_stay_outside_and_without_it_they_do_not(start):
    calls = KEY_CALLS.get(os.uname().machine)
    if calls is None:
        pytest.skip("the numbers of these system calls are not known for this machine")
    target = start("user", "mnt", "pid")
    assert in_child(lambda: with_a_key(target.pid, *calls)) == ["secret", ""]


TYPE = "import fcntl, termios\nwith open('/dev/tty') as tty: fcntl.ioctl(tty, termios.TIOCSTI, b'!')"


def type_inside(pid: int, start_new_session: bool) -> str:
    """In a session of its own with a terminal: what a program inside can type there."""
    leader, follower = pty.openpty()
    os.setsid()
    fcntl.ioctl(follower, termios.TIOCSCTTY, 0)
    tty.setraw(follower)
    nsjoin.run_in(
        pid, [sys.executable, "-I", "-c", TYPE], stderr=subprocess.DEVNULL, start_new_session=start_new_session
    )
    os.set_blocking(follower, False)
    try:
        return os.read(follower, 9).decode()
    except BlockingIOError:
        return ""
    finally:
        os.close(leader)
        os.close(follower)


@pytest.mark.parametrize(("start_new_session", "typed"), [(False, "!"), (True, "")])
def test_only_in_a_session_of_its_own_a_program_cannot_type_into_our_terminal(start, start_new_session, typed):
    setting = Path("/proc/sys/dev/tty/legacy_tiocsti")
    if setting.exists() and setting.read_text() != "1\n":  # before Linux 6.2 everyone can
        pytest.skip("dev.tty.legacy_tiocsti is 0: nobody can")
    target = start("user", "mnt", "pid")

    def prepare() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the end of a terminal is a hangup for its session

    assert in_child(lambda: type_inside(target.pid, start_new_session), prepare) == typed


def with_a_key_and_a_filter(pid: int, keyctl: int, add_key: int) -> str:
    one = Filter()
    one.load(NR)
    one.refuse_if(keyctl, errno.EPERM)
    libc = ctypes.CDLL(None)
    assert libc.syscall(keyctl, 1, None) > 0, "no new session keyring"
    assert libc.syscall(add_key, b"user", b"nsjoin-test", b"secret", 6, -3) > 0
    one.install()
    program = [sys.executable, "-I", "-c", READ_KEY.format(keyctl=keyctl)]
    return nsjoin.run_in(pid, program, capture_output=True, text=True, check=True, like_target=True).stdout.strip()


def test_where_a_filter_forbids_a_new_keyring_it_forbids_the_program_to_read_the_old_one(start):
    calls = KEY_CALLS.get(os.uname().machine)
    if calls is None:
        pytest.skip("the numbers of these system calls are not known for this machine")
    target = start("user", "mnt", "pid")
    assert in_child(lambda: with_a_key_and_a_filter(target.pid, *calls)) == ""


# --- what spawn_in does not do ----------------------------------------------------------------------------------------


@requires_root
@pytest.mark.parametrize("like_target", [False, True])
def test_by_default_a_program_has_the_callers_privileges_and_environment(start, monkeypatch, like_target):
    monkeypatch.setenv("NSJOIN_TEST_SECRET", "secret")
    bounded = "exec env -u NSJOIN_TEST_SECRET setpriv --no-new-privs --bounding-set=-all,+chown"
    target = start("mnt", "pid", program=f"{bounded} sh -c 'echo end; exec sleep infinity'")
    assert target.process.stdout.readline() == "end\n"
    told = ["sh", "-c", "echo $NSJOIN_TEST_SECRET; exec cat /proc/self/status"]
    done = nsjoin.run_in(target.pid, told, like_target=like_target, capture_output=True, text=True, check=True)
    secret, _, status = done.stdout.partition("\n")
    lines = dict(line.split(":\t", 1) for line in status.splitlines())
    whose = target.pid if like_target else os.getpid()
    assert secret == ("" if like_target else "secret")
    assert [lines["CapEff"], lines["NoNewPrivs"]] == status_of(whose, "CapEff", "NoNewPrivs")
    assert status_of(target.pid, "CapEff") != status_of(os.getpid(), "CapEff")


HANDED_IN = "echo changed >/proc/self/fd/{file} && cat /proc/self/fd/{folder}/../beside"


@requires_root
def test_a_file_that_is_handed_in_can_be_opened_anew_and_a_folder_leads_to_what_is_beside_it(start, folder):
    (folder / "file").write_text("ours")
    (folder / "beside").write_text("beside")
    (folder / "inner").mkdir()
    target = start("mnt", "pid", program=f"mount -t tmpfs none {folder}; echo end; exec sleep infinity")
    assert target.process.stdout.readline() == "end\n"
    fds = [os.open(folder / name, os.O_RDONLY) for name in ("file", "inner")]
    try:
        program = ["sh", "-c", HANDED_IN.format(file=fds[0], folder=fds[1])]
        done = nsjoin.run_in(target.pid, program, pass_fds=fds, capture_output=True, text=True, check=True)
    finally:
        for fd in fds:
            os.close(fd)
    assert done.stdout == "beside"
    assert (folder / "file").read_text() == "changed\n"


@requires_root
def test_a_link_may_lead_to_a_program_of_ours_where_the_target_sees_us_and_like_target_only_where_it_may(start, folder):
    ours = program_in(folder)
    link = f"ln -s /proc/{os.getpid()}/root{ours} {folder}/link"
    bounded = "exec setpriv --bounding-set=-all,+chown sh -c 'echo end; exec sleep infinity'"
    target = start("mnt", program=f"mount -t tmpfs none {folder} && {link}; {bounded}")
    assert target.process.stdout.readline() == "end\n"
    with pytest.raises(FileNotFoundError):
        nsjoin.run_in(target.pid, [ours])
    assert nsjoin.run_in(target.pid, [f"{folder}/link"]).returncode == 0
    with pytest.raises(PermissionError):
        nsjoin.run_in(target.pid, [f"{folder}/link"], like_target=True)


def become_ordinary_user_with_a_group() -> None:
    os.setgroups([NOBODY - 1])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    prctl(PR_SET_DUMPABLE, 1)


@requires_root
def test_an_ordinary_user_keeps_his_groups_where_the_kernel_drops_none():
    """unshare(1) of an ordinary user writes "deny" to /proc/PID/setgroups, before it may map his group."""

    def groups_inside() -> str:
        command = ["unshare", "--map-root-user", "--mount", "sh", "-c", "echo end; read end"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as target:
            assert target.stdout is not None
            assert target.stdout.readline() == "end\n"
            done = nsjoin.run_in(target.pid, ["cat", "/proc/self/status"], stdout=subprocess.PIPE, text=True)
            target.communicate("end\n")
        return dict(line.split(":\t", 1) for line in done.stdout.splitlines())["Groups"].strip()

    assert in_child(groups_inside, become_ordinary_user_with_a_group) == str(NOBODY)  # as what is not mapped is shown


# --- what call_in does not promise ------------------------------------------------------------------------------------


def test_a_function_that_opens_the_targets_links_can_be_led_to_our_descriptors(start, folder):
    """So SECURITY.md says: what is opened there by name is the target's choice."""
    target = start(
        "user", "mnt", "pid", program=f"ln -s /proc/self/fd/50/passwd {folder}/link; echo end; exec sleep inf"
    )
    assert target.process.stdout.readline() == "end\n"
    directory = os.open("/etc", os.O_RDONLY)
    ours = fcntl.fcntl(directory, 1030, 50)  # F_DUPFD_CLOEXEC, for which PyPy has no name
    os.close(directory)
    try:
        with open("/etc/passwd") as file:
            assert nsjoin.call_in(target.pid, lambda: Path(folder, "link").read_text()) == file.read()
        with pytest.raises(subprocess.CalledProcessError):  # a program has nothing of ours there
            nsjoin.run_in(target.pid, ["cat", f"{folder}/link"], check=True, stderr=subprocess.DEVNULL)
    finally:
        os.close(ours)


def test_a_program_of_the_targets_that_a_function_starts_gets_at_our_python_and_one_of_spawn_in_does_not(start, folder):
    """CVE-2019-5736: so SECURITY.md says to start programs with spawn_in."""
    script = folder / "script"
    script.write_text("#!/proc/self/exe\nimport os; print(os.readlink('/proc/self/exe'))\n")
    script.chmod(0o755)
    target = start("user", "mnt", "pid")

    def start_it() -> str:
        return subprocess.run([str(script)], stdout=subprocess.PIPE, text=True).stdout

    with pytest.raises(PermissionError, match="start it with spawn_in or run_in, or pass allow_imports=True"):
        nsjoin.call_in(target.pid, start_it)
    said = nsjoin.call_in(target.pid, start_it, allow_imports=True)
    assert said == os.readlink("/proc/self/exe") + "\n"
    assert nsjoin.run_in(target.pid, [str(script)], stdout=subprocess.PIPE).stdout == b""  # the joiner does nothing
