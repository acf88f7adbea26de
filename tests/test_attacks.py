"""A hostile target: what root inside tries against whoever comes in, and that each attack works without its defence.

The attackers are real processes with all capabilities in the target's user namespace (hostile.py). That an attack can
succeed at all is shown with a joiner from whose source exactly one place was taken out.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from changed import PR_SET_DUMPABLE

import nsjoin
from nsjoin import _build_setns, _launch, _shim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Running

HERE = Path(__file__).resolve().parent
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
    for name in ("_joiner.c", "_setns.h"):
        shutil.copy(_build_setns.HERE / name, source)
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

    def __init__(self, start: Callable[..., Running], nstypes: tuple[str, ...], *arguments: str) -> None:
        if "pid" not in nstypes:
            arguments = (*arguments, str(os.getpid()))
        command = [sys.executable, "-I", str(HERE / "hostile.py"), *arguments]
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


def call_that_waits(hostile: Hostile, folder: Path, **keywords: Any) -> None:
    """A function that lets the target do what it wants, while its process has our memory."""
    for name in ("come", "go"):
        os.mkfifo(folder / name)

    def let_it_try() -> None:
        with open(folder / "come", "w"):
            pass
        with open(folder / "go") as go:
            go.read()

    nsjoin.call_in(hostile.pid, let_it_try, **keywords)


@pytest.fixture
def set_again_by_the_kernel(monkeypatch) -> None:
    """What a kernel with fs.suid_dumpable=1 does with the flag when a user namespace is joined or ids change."""
    real_setns, real_setresuid = _shim.setns, os.setresuid

    def setns(fd: int, nstypes: int) -> None:
        real_setns(fd, nstypes)
        _shim.check(_shim.lib.nsjoin_prctl(PR_SET_DUMPABLE, 1))

    def setresuid(*ids: int) -> None:
        real_setresuid(*ids)
        _shim.check(_shim.lib.nsjoin_prctl(PR_SET_DUMPABLE, 1))

    monkeypatch.setattr(_shim, "setns", setns)
    monkeypatch.setattr(os, "setresuid", setresuid)


@pytest.mark.parametrize("nstypes", WORLDS)
def test_nobody_inside_can_look_into_the_process_of_a_call(start, folder, nstypes):
    hostile = Hostile(start, nstypes, "call", str(folder))
    call_that_waits(hostile, folder)
    assert_all_refused(hostile.outcomes())


def test_nor_where_the_kernel_sets_the_flag_again(start, folder, set_again_by_the_kernel):
    hostile = Hostile(start, WORLDS[0], "call", str(folder))
    call_that_waits(hostile, folder)
    assert_all_refused(hostile.outcomes())


def test_without_the_flag_off_a_call_gives_all_our_memory_away(start, folder, monkeypatch):
    hostile = Hostile(start, WORLDS[0], "call", str(folder))
    monkeypatch.setattr(_shim, "be_undumpable", lambda: None)
    call_that_waits(hostile, folder)
    assert_all_successful(hostile.outcomes())
