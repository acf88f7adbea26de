"""Children and threads of the tests that change themselves for good, and how they come to their end.

For what has no way back: dropped capabilities, another root, another user, a kernel that refuses system calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
import sys
import threading
import traceback
from typing import TYPE_CHECKING, NoReturn

from nsjoin._engine import image
from nsjoin._kernel import calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pytest

NOBODY = 65534
CAP_SYS_CHROOT, CAP_SYS_ADMIN = 18, 21
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 4, 22, 38


def in_child(func: Callable[[], object]) -> None:
    """Run ``func`` in a forked child, which may change itself for good; fail with its traceback if it raises."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _report_to(writer, func)
    os.close(writer)
    with open(reader) as file:
        text = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert (status, text) == (0, ""), text


def _report_to(writer: int, func: Callable[[], object]) -> NoReturn:
    text = "no report"
    unraisable: list[str] = []
    sys.unraisablehook = lambda raised: unraisable.append(f"{raised.exc_value!r} in {raised.object!r}")
    signal.alarm(60)  # a test that hangs ends as killed by SIGALRM
    try:
        func()
        text = "".join(unraisable)
    except BaseException:
        text = traceback.format_exc()
    finally:
        os.write(writer, text.encode())
        os._exit(0)


@contextlib.contextmanager
def forked(prepare: Callable[[], object]) -> Iterator[int]:
    """A child that has called ``prepare`` and waits; yields its pid."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            prepare()
            os.write(writer, b"!")
            os.close(writer)
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"!"
        yield child
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# --- threads ----------------------------------------------------------------------------------------------------------


def in_thread(func: Callable[[], object]) -> None:
    """Run ``func`` in a new thread, raise what it raises, and wait until the kernel has no such thread any more."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            func()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    join(thread)
    if raised:
        raise raised[0]


def join(thread: threading.Thread) -> None:
    """Wait for the thread; Python's join is over a little before the thread is gone."""
    number = thread.native_id
    thread.join()
    while os.path.exists(f"/proc/self/task/{number}"):
        os.sched_yield()


# --- less than we are -------------------------------------------------------------------------------------------------


def become_nobody() -> None:
    """An ordinary user, as after an exec: not dumpable, not even our own /proc would be ours."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    prctl(PR_SET_DUMPABLE, 1)


def drop_capability(number: int) -> None:
    """Out of this thread's effective and permitted sets; capset(2) with version 3 of its structure."""
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(head, sets) == 0
    word, bit = divmod(number, 32)
    for index in (3 * word, 3 * word + 1):
        sets[index] &= ~(1 << bit)
    assert libc.capset(head, sets) == 0


def prctl(option: int, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [item if isinstance(item, bytes) else ctypes.c_ulong(item) for item in (*arguments, 0, 0, 0)[:4]]
    if libc.prctl(option, *words) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


# --- an older kernel --------------------------------------------------------------------------------------------------


SECCOMP_MODE_FILTER = 2
#: struct seccomp_data: nr, and the low halves of the arguments on a little-endian machine
NR, ARG0, ARG1, ARG2, ARG3 = 0, 16, 24, 32, 40
SYS_IOCTL, SYS_SETNS = {"x86_64": (16, 308), "aarch64": (29, 268)}[platform.machine()]
SYS_MOUNT = {"x86_64": 165, "aarch64": 40}[platform.machine()]
SYS_EXECVEAT = {"x86_64": 322, "aarch64": 281}[platform.machine()]
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_PIDFD_OPEN = 428, 429, 434
_LOAD, _AND, _IF_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


class Filter:
    """A seccomp filter, line by line: ``load`` a word, then say what is to happen for which value of it."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, int, int, int]] = []

    def load(self, offset: int) -> None:
        self.lines.append((_LOAD, 0, 0, offset))

    def mask(self, bits: int) -> None:
        self.lines.append((_AND, 0, 0, bits))

    def require(self, value: int) -> None:
        """Everything else is allowed."""
        self.lines += [(_IF_EQUAL, 1, 0, value), (_RETURN, 0, 0, _ALLOW)]

    def allow_if(self, value: int) -> None:
        self.lines += [(_IF_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]

    def refuse_if(self, value: int, number: int) -> None:
        self.lines += [(_IF_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ERRNO | number)]

    def refuse(self, number: int) -> None:
        self.lines.append((_RETURN, 0, 0, _ERRNO | number))

    def install(self) -> None:
        """For this thread and what it starts, for good."""
        code = b"".join(struct.pack("HBBI", *line) for line in [*self.lines, (_RETURN, 0, 0, _ALLOW)])
        buffer = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("HP", len(code) // 8, ctypes.addressof(buffer))
        try:
            prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)
        except PermissionError:  # only who has CAP_SYS_ADMIN may without; and what inherits it is no older kernel's
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)


def become_old_kernel(*, pidfds: bool) -> None:
    """From here on no namespace is had by pidfd, as before Linux 6.11, and without ``pidfds`` there are none (5.2)."""
    old = Filter()
    old.load(NR)
    if not pidfds:
        old.refuse_if(SYS_PIDFD_OPEN, errno.ENOSYS)
    old.require(SYS_IOCTL)
    old.load(ARG1)
    old.refuse_if(0x8008B70D, errno.ENOTTY)  # NS_GET_ID
    old.mask(0xFF00)
    old.refuse_if(0xFF00, errno.ENOTTY)  # every request on a pidfd
    old.install()


def memfds_do_not_run(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """They are made, but refused at exec, as a security module does it; temporary files are in ``folder``."""
    create = calls.memfd_create

    def create_without_x(name: bytes, flags: int) -> int:
        fd = create(name, flags)
        os.fchmod(fd, 0o600)
        return fd

    monkeypatch.setattr(image, "_image", image._Image())
    monkeypatch.setattr(calls, "memfd_create", create_without_x)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
