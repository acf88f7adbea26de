"""Our own /proc, also where /proc is somebody else's.

Once a thread has entered a foreign mount namespace, a path that begins with /proc leads to what its owner has put
there. So before that, a descriptor of our own is taken, and what that thread needs is opened below it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from typing import TYPE_CHECKING

from ..exceptions import NamespaceError, error
from . import calls
from .calls import lib
from .nstypes import MNT

if TYPE_CHECKING:
    from collections.abc import Callable

_thread = threading.local()
#: Mount namespaces that were entered: threads that were born there are there still.
_foreign: set[int] = set()
_process_allows: bool | None = None  # the child of a call, all of which is elsewhere


def is_away() -> bool:
    """Whether this thread has entered a foreign mount namespace, or was born in one."""
    if getattr(_thread, "allowed", None) is not None or _process_allows is not None:
        return True
    return bool(_foreign) and _own_mount()[1] in _foreign


def must_be_home(step: str, what: str, nstype: str | None = None) -> None:
    """NamespaceError (EPERM) while this thread is away: ``what`` would happen by a path, and that is its owner's."""
    if is_away():
        reason = f"this thread is in a foreign mount namespace, where {what}; do it before it enters"
        raise error(NamespaceError, errno.EPERM, step, nstype=nstype, reason=reason)


def _has_gone_away() -> bool:
    """The same, but for the child of a call, which is inside as a whole: it means the /proc that is there."""
    return _process_allows is None and is_away()


def _own_mount() -> tuple[int, int]:
    """The inode of this thread's mount namespace and what tells it from all others; 0 where nobody says it.

    An inode is given out again as soon as its namespace has gone; NS_GET_ID (Linux 6.18) is not.
    """
    fd = lib.nsjoin_own(MNT.get)
    if fd < 0:  # before Linux 6.11; and the /proc that is here may be anybody's
        inode = kept_inode("thread-self/ns/mnt")
        return inode, inode
    try:
        inode = os.fstat(fd).st_ino
        return inode, calls.namespace_unique_id(fd) or inode
    finally:
        os.close(fd)


def settle_process(allow_imports: bool) -> None:
    """Note that all of this process is away, for good."""
    global _process_allows
    _process_allows = allow_imports
    vars(_thread).clear()


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
