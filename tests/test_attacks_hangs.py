"""A hostile target that never lets go: whoever waits for it comes back all the same, and what hangs is ended later."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from changed import join
from child import children, held_program, wait_until_ended
from conftest import requires_root

import nsjoin
from nsjoin._engine import children as children_

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Running

HUNG = (Path(__file__).resolve().parent / "hung.py").read_text()


class Interrupt(Exception):  # noqa: N818 - no error, a signal
    """What a signal handler raises, as Ctrl-C's raises KeyboardInterrupt."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Raises ``Interrupt`` in the main thread."""

    def handler(number: int, frame: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGUSR1, handler)
    yield lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


class Hung:
    def __init__(self, start: Callable[..., Running], folder: str) -> None:
        command = [sys.executable, "-I", "-c", HUNG, folder]
        self.running = start("user", "mnt", "pid", program=f"exec {shlex.join(command)}")
        self.pid = self.running.pid
        self.file = f"{folder}/file"
        self.wait("armed")

    def wait(self, word: str) -> None:
        assert self.running.process.stdout is not None
        assert self.running.process.stdout.readline() == f"{word}\n"

    def hold(self, attempt: Callable[[float], object]) -> None:
        """``attempt(timeout)`` comes to hang, with the first timeout that is long enough for that on this machine, and
        it expires.
        """
        for timeout in (0.3, 2, 10, 50):
            with pytest.raises((subprocess.TimeoutExpired, TimeoutError)):
                attempt(timeout)
            if select.select([self.running.process.stdout], [], [], 0.3)[0]:
                self.wait("hung")
                return
        raise AssertionError("it did not come that far")


@pytest.fixture
def hung(start) -> Iterator[Hung]:
    before = children()
    with tempfile.TemporaryDirectory(prefix="nsjoin-test-") as folder:
        one = Hung(start, folder)
        wrapper = children() - before
        yield one
        os.kill(one.pid, signal.SIGKILL)  # and with it all that has hung there
        for pid in children() - before - wrapper:
            wait_until_ended(pid)
        assert nsjoin.run_in(os.getpid(), ["true"], namespaces=["uts"]).returncode == 0  # a later launch reaps
        one.running.end()
    assert children() == before


WAYS = {
    "the program": lambda hung: {"args": [hung.file]},
    "the working directory": lambda hung: {"args": ["true"], "cwd": hung.file},
}


@requires_root
@pytest.mark.parametrize("way", WAYS)
def test_a_timeout_ends_the_wait_for_a_file_that_hangs(hung, way):
    hung.hold(lambda timeout: nsjoin.run_in(hung.pid, timeout=timeout, **WAYS[way](hung)))


@requires_root
@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_ends_the_wait_for_a_file_that_hangs(hung, way, interrupt):
    def when_it_hangs() -> None:
        hung.wait("hung")
        interrupt()

    thread = threading.Thread(target=when_it_hangs)
    thread.start()
    with pytest.raises(Interrupt):
        nsjoin.spawn_in(hung.pid, **WAYS[way](hung))
    join(thread)


@requires_root
def test_a_timeout_ends_a_call_that_hangs(hung):
    hung.hold(lambda timeout: nsjoin.call_in(hung.pid, os.stat, hung.file, timeout=timeout))


# --- frozen ----------------------------------------------------------------------------------------------------------


def mounted(kind: str, option: str) -> str | None:
    """Where a cgroup hierarchy is mounted."""
    with open("/proc/self/mounts") as mounts:
        for line in mounts:
            _, place, type_, options, *_ = line.split()
            if type_ == kind and option in options.split(","):
                return place
    return None


class Freezer:
    """A cgroup of our own in one of the two kinds of hierarchy."""

    def __init__(self, kind: str) -> None:
        place = mounted(*{"v1": ("cgroup", "freezer"), "v2": ("cgroup2", "rw")}[kind])
        if place is None:
            pytest.skip(f"no cgroup {kind} hierarchy that freezes is mounted here")
        self._kind = kind
        self._path = Path(tempfile.mkdtemp(prefix="nsjoin-test-", dir=place))

    def freeze(self, pids: set[int]) -> None:
        for pid in pids:
            (self._path / "cgroup.procs").write_text(str(pid))
        self._set(True)

    def _set(self, frozen: bool) -> None:
        name, words = {"v1": ("freezer.state", ("THAWED", "FROZEN")), "v2": ("cgroup.freeze", "01")}[self._kind]
        (self._path / name).write_text(words[frozen])

    def thaw(self) -> None:
        self._set(False)

    def end(self) -> None:
        self.thaw()
        self._path.rmdir()


@pytest.fixture(params=["v1", "v2"])
def freezer(request) -> Iterator[Freezer]:
    one = Freezer(request.param)
    yield one
    one.end()


@requires_root
def test_ctrl_c_ends_the_wait_for_a_program_that_is_frozen_before_exec(start, freezer, interrupt):
    target = start("pid", "uts")
    before = children()
    with tempfile.TemporaryDirectory() as folder, held_program(Path(folder) / "held") as program:

        def freeze() -> None:
            program.wait()
            freezer.freeze(children() - before)
            program.release()
            interrupt()

        thread = threading.Thread(target=freeze)
        thread.start()
        with pytest.raises(Interrupt):
            nsjoin.spawn_in(target.pid, [program.path])
        join(thread)
    freezer.thaw()  # of v1, what is frozen cannot even be killed before
    for pid in children() - before:
        wait_until_ended(pid)
    children_.reap_late()
    assert children() == before
