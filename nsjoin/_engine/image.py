"""The joiner as an executable descriptor: a sealed memfd, made once for the process, or a file for each start."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from .._kernel import abi, calls, procfs
from .._kernel.calls import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

_ALL_SEALS = abi.F_SEAL_SEAL | abi.F_SEAL_SHRINK | abi.F_SEAL_GROW | abi.F_SEAL_WRITE


class _Image:
    """The joiner in a sealed memfd, made once for the process.

    Root of a target reaches it through /proc/PID/exe (CVE-2019-5736), but cannot change what the next launch runs.
    Where memfds cannot be executed (vm.memfd_noexec=2, Linux 6.3) or made, each launch gets an unlinked file instead.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fd = -1
        self._identity: tuple[int, int] | None = None
        self._memfd_runs = True

    def open(self) -> tuple[int, bool]:
        """Return a descriptor to execute, and whether it is a file of the caller's, which the caller closes."""
        if self._memfd_runs:
            if self._identity is not None and self._is_ours():
                return self._fd, False
            with self._lock:
                if self._identity is None or not self._is_ours():
                    self._make()
            if self._memfd_runs:
                return self._fd, False
        procfs.must_be_home("launch", "a file would be executed, in a temporary folder of its owner's")
        return self._file(), True

    def unlock(self) -> None:
        """In the child of a fork: a thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def memfd_does_not_run(self) -> None:
        """Learn that the kernel refuses to execute a memfd."""
        with self._lock:
            if self._memfd_runs and self._is_ours():
                os.close(self._fd)
            self._memfd_runs, self._identity = False, None

    def _is_ours(self) -> bool:
        # A program that closes all descriptors it does not know, as daemons do, may have given the number away.
        try:
            status = os.fstat(self._fd)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def _make(self) -> None:
        flags = abi.MFD_CLOEXEC | abi.MFD_ALLOW_SEALING
        try:
            try:
                fd = calls.memfd_create(b"nsjoin", flags | abi.MFD_EXEC)
            except OSError as refused:
                if not abi.lacks("MFD_EXEC", refused):
                    raise
                fd = calls.memfd_create(b"nsjoin", flags)
        except OSError as refused:
            if not abi.lacks("memfd_create", refused):
                raise
            self._memfd_runs = False
            return
        fd = calls.above_stdio(fd)
        try:
            calls.write_all(fd, _image_bytes(), "the joiner")
            _seal(fd)
            status = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._identity = fd, (status.st_dev, status.st_ino)

    @staticmethod
    def _file() -> int:
        writer, path = tempfile.mkstemp(prefix="nsjoin-")
        try:
            try:
                calls.write_all(writer, _image_bytes(), "the joiner")
                os.fchmod(writer, 0o500)
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            finally:
                os.close(writer)  # execveat(2) fails with ETXTBSY while the file is open for writing
        finally:
            os.unlink(path)
        return calls.above_stdio(fd)


def _seal(fd: int) -> None:
    import fcntl

    try:
        # without it, root of a target could clear the x bits through /proc/PID/exe, and every later launch would fail
        fcntl.fcntl(fd, abi.F_ADD_SEALS, _ALL_SEALS | abi.F_SEAL_EXEC)
    except OSError as refused:
        if not abi.lacks("F_SEAL_EXEC", refused):
            raise
        fcntl.fcntl(fd, abi.F_ADD_SEALS, _ALL_SEALS)


def _image_bytes() -> bytes:
    return bytes(ffi.buffer(lib.nsjoin_image(), lib.nsjoin_image_size()))


_image = _Image()


class Executable(NamedTuple):
    """An open image; ``is_file``: an unlinked file, as memfds cannot be executed here."""

    fd: int
    is_file: bool

    def should_retry(self, number: int) -> bool:
        """Learn from errno ``number`` of execveat(2), and return whether another try, with another image, may succeed.

        EACCES: memfds cannot be executed here. ETXTBSY: a fork in another thread has a copy of the descriptor by which
        this file was written.
        """
        if number != (errno.ETXTBSY if self.is_file else errno.EACCES):
            return False
        if not self.is_file:
            _image.memfd_does_not_run()
        return True


@contextmanager
def opened() -> Iterator[Executable]:
    """Open the joiner for execveat(2)."""
    fd, is_file = _image.open()
    try:
        yield Executable(fd, is_file)
    finally:
        if is_file:
            os.close(fd)


def _unlock() -> None:
    _image.unlock()


os.register_at_fork(after_in_child=_unlock)
