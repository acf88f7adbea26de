"""Our own /proc, also where /proc is somebody else's.

Once a thread has entered a foreign mount namespace, a path that begins with /proc leads to what its owner has put
there. So before that, a descriptor of our own is taken, and what that thread needs is opened below it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_O_PATH = 0o10000000  # PyPy has no names for these two
_F_DUPFD_CLOEXEC = 1030

#: The descriptor and what it is known by; -1 and None: there was no /proc to keep, or nobody has gone away yet.
_kept = -1
_identity: tuple[int, int] | None = None


def _is_never_away() -> bool:
    return False


_is_away: Callable[[], bool] = _is_never_away


def keep(is_away: Callable[[], bool]) -> None:
    """Keep the /proc that is here now: this thread is about to leave it. ``is_away`` says whether a thread has."""
    global _kept, _identity, _is_away
    _is_away = is_away
    if is_away() or (_identity is not None and _is_ours()):
        return
    try:
        fd = os.open("/proc", _O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        _kept, _identity = -1, None
        return
    try:
        kept = fcntl.fcntl(fd, _F_DUPFD_CLOEXEC, 3)  # where a child's stdio goes, it would be in the way
    finally:
        os.close(fd)
    try:
        status = os.fstat(kept)
    except OSError:
        os.close(kept)
        raise
    _kept, _identity = kept, (status.st_dev, status.st_ino)


def _is_ours() -> bool:
    # A program that closes all descriptors it does not know, as daemons do, may have given the number away.
    try:
        status = os.fstat(_kept)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise  # it is still open: another one beside it would never be closed
        return False
    return (status.st_dev, status.st_ino) == _identity


def place(path: str) -> tuple[str, int | None]:
    """``path`` below our own /proc, as path and ``dir_fd``. OSError (ENOENT) where there is none."""
    if not _is_away():
        return f"/proc/{path}", None
    if not _is_ours():
        raise FileNotFoundError(errno.ENOENT, "our own /proc is not open", f"/proc/{path}")
    return path, _kept


def open_file(path: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor, close-on-exec, of a file of our own /proc."""
    name, directory = place(path)
    return os.open(name, flags | os.O_CLOEXEC, dir_fd=directory)


def read(path: str) -> str:
    """The text of a file of our own /proc."""
    with open(open_file(path), encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def read_link(path: str) -> str:
    """Where a link of our own /proc leads."""
    name, directory = place(path)
    return os.readlink(name, dir_fd=directory)


def names(path: str) -> list[str]:
    """What is in a directory of our own /proc."""
    fd = open_file(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def inode(path: str) -> int:
    """The inode number of what a link of our own /proc leads to."""
    name, directory = place(path)
    return os.stat(name, dir_fd=directory).st_ino


def kept_inode(path: str) -> int:
    """The same, of the /proc that was kept, wherever this thread is; 0 where none is open."""
    try:
        return os.stat(path, dir_fd=_kept).st_ino if _is_ours() else 0
    except OSError:
        return 0
