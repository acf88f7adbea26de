"""TODO."""

from __future__ import annotations

import errno
import os
import tempfile
import threading

from .._kernel import calls, procfs
from .._kernel.calls import ffi, lib

# --- the image ----------------------------------------------------------------------------------------------

_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_EXEC = 1, 2, 16  # MFD_EXEC: Linux 6.3
_F_ADD_SEALS, _ALL_SEALS = 1033, 15
_F_SEAL_EXEC = 32  # Linux 6.3


class _Image:
    """The joiner in a sealed memfd, made once for the process: whoever gets at it through /proc/PID/exe, as root of a
    target does (CVE-2019-5736), cannot change what the next launch runs.

    Where memfds cannot be executed (vm.memfd_noexec=2, Linux 6.3) or made, each launch gets an unlinked file instead.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fd = -1
        self._identity: tuple[int, int] | None = None
        self._memfd_runs = True

    def open(self) -> tuple[int, bool]:
        """A descriptor to execute, and whether it is to be closed afterwards."""
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
        flags = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
        try:
            try:
                fd = calls.memfd_create(b"nsjoin", flags | _MFD_EXEC)
            except OSError as refused:
                if refused.errno != errno.EINVAL:
                    raise
                fd = calls.memfd_create(b"nsjoin", flags)
        except OSError as refused:
            if refused.errno not in (errno.EACCES, errno.EPERM, errno.ENOSYS):
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
                os.close(writer)  # as long as somebody can write, execveat says ETXTBSY
        finally:
            os.unlink(path)
        return calls.above_stdio(fd)


def _seal(fd: int) -> None:
    import fcntl

    try:
        # without it, root of a target could take the x bits through /proc/PID/exe, and no launch would work any more
        fcntl.fcntl(fd, _F_ADD_SEALS, _ALL_SEALS | _F_SEAL_EXEC)
    except OSError as refused:
        if refused.errno not in (errno.EINVAL, errno.EPERM):  # before Linux 6.3; a seccomp filter
            raise
        fcntl.fcntl(fd, _F_ADD_SEALS, _ALL_SEALS)


def _image_bytes() -> bytes:
    return bytes(ffi.buffer(lib.nsjoin_image(), lib.nsjoin_image_size()))


_image = _Image()
