"""This process's own /proc, and whether this thread has left the mount namespace that shows it.

In a foreign mount namespace a path that begins with /proc leads to a file of the target's choice. So a descriptor of
/proc is kept before the first join, and a thread that is away opens its files below that.
"""

from __future__ import annotations

import errno
import os
import threading

from ..exceptions import NamespaceError, error
from . import calls
from .abi import O_PATH
from .nstypes import MNT

_thread = threading.local()
#: Mount namespaces that threads have entered: a thread that was born in one is still there.
_foreign: set[int] = set()
_process_allows: bool | None = None  # set in the child of a call, all of which is away


def permission() -> bool | None:
    """Return whether this thread (or process), which is away, may load files there; None: it has not left."""
    own: bool | None = getattr(_thread, "allowed", None)
    return _process_allows if own is None else own


def is_away() -> bool:
    """Return whether this thread has entered a foreign mount namespace, or was born in one."""
    return permission() is not None or (bool(_foreign) and _own_mount()[1] in _foreign)


def must_be_home(step: str, what: str, nstype: str | None = None) -> None:
    """Raise NamespaceError (EPERM) while this thread is away; ``what`` is what a path would lead to there."""
    if is_away():
        reason = f"this thread is in a foreign mount namespace, where {what}; do it before it enters"
        raise error(NamespaceError, errno.EPERM, step, nstype=nstype, reason=reason)


def leave_thread(*, allowed: bool, left: int) -> tuple[bool | None, bool]:
    """Note that this thread has left the mount namespace ``left`` (0: unknown); ``allowed``: it may load files inside.

    Return what ``return_thread`` takes, and whether the thread has moved: it may have joined its own namespace.
    """
    before = getattr(_thread, "allowed", None)
    inode, identity = _own_mount()
    if inode and inode == left:
        return before, False
    _thread.allowed = allowed
    if inode and not allowed:  # 0 is unknown: it would stand for every thread
        _foreign.add(identity)
    return before, True


def return_thread(before: bool | None) -> None:
    """Note that this thread is back where it was before ``leave_thread`` returned ``before``."""
    _thread.allowed = before


def leave_process(*, allowed: bool) -> None:
    """Note that this process, which has one thread, has left its mount namespace for good."""
    global _process_allows
    _process_allows = allowed
    vars(_thread).clear()


def _own_mount() -> tuple[int, int]:
    """Return the inode and a unique id of this thread's mount namespace, or (0, 0) if unknown.

    The kernel reuses an inode as soon as its namespace has gone, but never a number of NS_GET_ID (Linux 6.18).
    """
    fd = calls.own_namespace(MNT.get)
    if fd < 0:  # before Linux 6.11; the /proc that is mounted here may be foreign
        inode = kept_inode("thread-self/ns/mnt")
        return inode, inode
    try:
        inode = os.fstat(fd).st_ino
        return inode, calls.namespace_unique_id(fd) or inode
    finally:
        os.close(fd)


# --- the /proc that is kept ---------------------------------------------------------------------------------

#: The descriptor and its (st_dev, st_ino); -1 and None: no thread has left yet, or there was no /proc.
_kept = -1
_identity: tuple[int, int] | None = None


def _has_gone_away() -> bool:
    """As ``is_away``, but False in the child of a call, which uses the /proc that is mounted inside."""
    return _process_allows is None and is_away()


def keep() -> None:
    """Keep a descriptor of the /proc that is mounted here, before this thread leaves it."""
    global _kept, _identity
    if _has_gone_away() or (_identity is not None and _is_ours()):
        return
    try:
        fd = os.open("/proc", O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        _kept, _identity = -1, None
        return
    try:
        kept = calls.duplicate(fd)  # above 2, out of the way of a child's stdio
    finally:
        os.close(fd)
    try:
        status = os.fstat(kept)
    except OSError:
        os.close(kept)
        raise
    _kept, _identity = kept, (status.st_dev, status.st_ino)


def _is_ours() -> bool:
    # a program that closes all descriptors it does not know, as daemons do, may reuse the number
    try:
        status = os.fstat(_kept)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise  # it is still open: a second one would leak
        return False
    return (status.st_dev, status.st_ino) == _identity


def place(path: str) -> tuple[str, int | None]:
    """Return ``path`` below this process's own /proc, as path and ``dir_fd``. OSError (ENOENT) where there is none."""
    if not _has_gone_away():
        return f"/proc/{path}", None
    if not _is_ours():
        raise FileNotFoundError(errno.ENOENT, "this process's own /proc is not open", f"/proc/{path}")
    return path, _kept


def open_file(path: str, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor, close-on-exec, of a file of this process's own /proc."""
    name, directory = place(path)
    return os.open(name, flags | os.O_CLOEXEC, dir_fd=directory)


def read(path: str) -> str:
    """Return the text of a file of this process's own /proc."""
    with open(open_file(path), encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def read_link(path: str) -> str:
    """Return where a link of this process's own /proc leads."""
    name, directory = place(path)
    return os.readlink(name, dir_fd=directory)


def names(path: str) -> list[str]:
    """Return the names in a directory of this process's own /proc."""
    fd = open_file(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def inode(path: str) -> int:
    """Return the inode number of what a link of this process's own /proc leads to."""
    name, directory = place(path)
    return os.stat(name, dir_fd=directory).st_ino


def kept_inode(path: str) -> int:
    """As ``inode``, below the kept /proc, wherever this thread is; 0 where none is open."""
    try:
        return os.stat(path, dir_fd=_kept).st_ino if _is_ours() else 0
    except OSError:
        return 0
