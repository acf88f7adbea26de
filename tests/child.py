"""Processes for tests that must not happen to the test process itself, and a program that is held before exec."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import mmap
import os
import pickle
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import traceback
import warnings
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from changed import become_nobody
from conftest import IS_ROOT, _state, wait_for_threads

import nsjoin
from nsjoin._kernel import calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

T = TypeVar("T")


def wait_until_ended(pid: int) -> None:
    """Wait for a child, and leave it a zombie. By waitid(2) of libc: PyPy's os has none, old kernels have no pidfd."""
    p_pid, wexited, wnowait = 1, 4, 0x01000000
    assert ctypes.CDLL(None).waitid(p_pid, pid, ctypes.create_string_buffer(128), wexited | wnowait) == 0


def _wait_for_sigio(seconds: int) -> bool:
    """Take SIGIO, which is blocked; sigtimedwait(2) by libc, since PyPy's signal has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    mask = (ctypes.c_ulong * 16)(1 << (signal.SIGIO - 1))
    for _ in range(100):
        if libc.sigtimedwait(mask, None, (ctypes.c_long * 2)(seconds, 0)) == signal.SIGIO:
            return True
        if ctypes.get_errno() != errno.EINTR:  # a handler has run, as for SIGCHLD
            return False
    return False


def _fork_by_python(reader: int, writer: int, there: int) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of a fork beside threads
        forked = os.fork()
    if forked == 0:
        os.close(writer)
        os.write(there, b"x")
        os.read(reader, 1)
        os._exit(0)
    return forked


@functools.lru_cache
def _forks_in_c() -> Any:
    """Not fork(3) by ctypes: beside threads, its child must not run Python."""
    with tempfile.TemporaryDirectory() as folder:
        library = os.path.join(folder, "forks.so")
        source = os.path.join(os.path.dirname(__file__), "forks.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
        return ctypes.CDLL(library).fork_and_live_on


#: os.fork; fork(3) as a library of C calls it, so that Python's hooks are not run; and one that runs none of C either.
FORKS: dict[str, Callable[[int, int, int], int]] = {
    "os.fork": _fork_by_python,
    "fork(3)": lambda *ends: int(_forks_in_c()(1, *ends)),
    "clone(2)": lambda *ends: int(_forks_in_c()(0, *ends)),
}


@contextlib.contextmanager
def living_on(fork: str) -> Iterator[int]:
    """The pid of a child that is forked now, lives until the end of the block, and then is waited for."""
    reader, writer = os.pipe()
    is_there, there = os.pipe()
    forked = FORKS[fork](reader, writer, there)
    try:
        os.read(is_there, 1)  # the handlers of fork have run
        yield forked
    finally:
        for fd in (writer, reader, is_there, there):
            os.close(fd)
        os.waitpid(forked, 0)


def become_ordinary_user() -> None:
    """As root: become nobody, for good."""
    if IS_ROOT:
        become_nobody()


def bring_loopback_up() -> None:
    """What ``ip link set lo up`` does; in a network namespace of a target, by ``call_in``."""
    siocsifflags, iff_up = 0x8914, 1
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, siocsifflags, struct.pack("16sh22x", b"lo", iff_up))


def close_stdio() -> None:
    os.closerange(0, 3)


def own_run() -> None:
    """In a mount namespace of our own from here on, with an empty /run; nothing of it reaches others."""
    nsjoin.unshare("mnt")
    calls.mount("none", "/", 1 << 18 | 1 << 14)  # MS_PRIVATE | MS_REC
    # what ip netns leaves there would be in the list of mounts as well, below the new /run
    while subprocess.run(["umount", "--lazy", "/run/netns"], stderr=subprocess.DEVNULL, check=False).returncode == 0:
        pass
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)


def in_child(function: Callable[[], T], *prepare: Callable[[], object]) -> T:
    """Return what ``function`` returns in a forked child, which first calls ``prepare``.

    Its result comes back through shared memory, since descriptors are what some of these functions close. What it
    leaves behind of its own (descriptors, children, namespaces, ...) is an error.
    """
    with mmap.mmap(-1, 1 << 20) as shared:
        pid = os.fork()
        if pid == 0:
            shared[:] = _outcome(function, prepare).ljust(len(shared), b"\0")
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"the child ended with status {status}"
        succeeded, value = pickle.loads(shared[:])
    assert succeeded, value
    result: T = value
    return result


def _outcome(function: Callable[[], object], prepare: tuple[Callable[[], object], ...]) -> bytes:
    try:
        for step in prepare:
            step()
        before = _state()
        value = function()
        wait_for_threads(int(str(before["threads"])))
        after = _state()
        assert after == before, f"left behind: {[what for what in before if after[what] != before[what]]}"
        return pickle.dumps((True, value))
    except BaseException:
        return pickle.dumps((False, traceback.format_exc()))


def expired(
    run: Callable[[float], object], is_far_enough: Callable[[subprocess.TimeoutExpired], object]
) -> subprocess.TimeoutExpired:
    """What ``run(timeout)`` raises, with the first timeout that lets the program get far enough on this machine."""
    for timeout in (0.2, 1, 5, 25):
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            run(timeout)
        assert caught.value.timeout == timeout
        if is_far_enough(caught.value):
            return caught.value
    raise AssertionError(f"the program did not get far enough in {timeout} seconds: {caught.value!r}")


def children(pid: int | str = "self") -> set[int]:
    """Return the pids of the children of a process (of this one), whichever of its threads started them."""
    found = ""
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/task/{task}/children") as file:
            found += file.read()
    return set(map(int, found.split()))


class Held:
    """A file that the kernel lets nobody open, so that nobody executes it, until ``release``."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def hold(self) -> None:
        # A write lease: who opens the file, and execve does, waits until the holder gives the lease up (fcntl(2),
        # "Leases"), and the holder gets SIGIO: the process that is to become this program is at its very last step.
        fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    def wait(self) -> None:
        """Wait until execve is held. SIGIO has to be blocked, before the thread that spawns is started."""
        assert _wait_for_sigio(30), "nobody came to execve"

    def release(self) -> None:
        if self._fd >= 0:
            # not just by closing: a process that was forked meanwhile has it open too
            fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextlib.contextmanager
def held(path: str) -> Iterator[Held]:
    """Hold who executes the file; SIGIO is blocked in this thread meanwhile, and none is left pending."""
    one = Held(path)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
    try:
        one.hold()
        yield one
        one.release()
    finally:
        one.close()
        if signal.SIGIO in signal.sigpending():
            signal.sigwait([signal.SIGIO])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGIO])


@contextlib.contextmanager
def held_program(path: Path) -> Iterator[Held]:
    """A new program at ``path`` that is held before exec."""
    shutil.copy("/bin/true", path)
    with held(str(path)) as program:
        yield program
