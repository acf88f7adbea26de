"""This thread's own namespaces, and its way home to its own PID namespace before a launch."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from ..exceptions import NamespaceError, NamespaceNotFoundError, RestoreError, error
from . import abi, calls, procfs
from .nstypes import PID, USER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .nstypes import NsType


def proc_says_born_elsewhere() -> bool:
    """Return whether this thread's children are born in another PID namespace, as far as /proc shows it.

    For kernels before Linux 6.11. A joiner that is the first process of that namespace would end it when it ends.
    """
    try:
        return own_pid_namespace_is_left()
    except NamespaceError:  # no /proc, or not readable: the joiner checks where it is
        return False


@contextmanager
def home() -> Iterator[None]:
    """Let this thread's children be born in its own PID namespace meanwhile, also inside ``enter(pid, "pid")``."""
    with ExitStack() as stack:
        own = own_namespace(PID)
        stack.callback(os.close, own)
        away = own_namespace(PID, for_children=True)
        stack.callback(os.close, away)
        is_away = True  # also where a signal handler raises, after the call
        try:
            try:
                calls.setns(own, PID.flag)
            except OSError:
                is_away = False
                raise
            yield
        finally:
            if is_away:
                _come_back(away, PID.flag)


def _come_back(away: int, nstype: int) -> None:
    try:
        calls.setns(away, nstype)
    except OSError as refused:
        reason = "this thread's children are no longer born in the target, as they should be inside enter: leave it"
        raise error(
            RestoreError, refused.errno or 0, "setns", nstype="pid", target="this thread", reason=reason
        ) from None


#: PROC_USER_INIT_INO: the inode number of the first user namespace, on every kernel that has them.
FIRST_USER_NAMESPACE = 0xEFFFFFFD

#: proc(5), on the ownership of /proc/PID.
_NOT_DUMPABLE = (
    "this process is not dumpable (prctl(2), PR_SET_DUMPABLE), as it is after a change of ids, or in the child of "
    "call_in: only root may open its namespaces in /proc, and before Linux 6.11 there is no other way to them"
)

_NOTHING_BORN = (
    "this thread's children will be born in a new PID namespace, in which nothing has been born yet: before Linux "
    "6.11 it cannot be opened; start a first process there"
)


def has_user_namespace_above() -> bool:
    """Return whether an ancestor of this thread's user namespace may own its other namespaces."""
    try:
        return own_inodes((USER,))[0] != FIRST_USER_NAMESPACE
    except OSError:  # before Linux 6.11 and without /proc, as in a chroot
        return True


def own_inodes(rows: tuple[NsType, ...]) -> tuple[int, ...]:
    """Return the inode numbers of this thread's namespaces, 0 for a type that the kernel lacks. NamespaceError."""
    try:
        return calls.inodes(-1, [row.get for row in rows])
    except OSError as refused:
        if not abi.lacks("PIDFD_GET_*_NAMESPACE", refused):
            raise
    try:
        have = set(procfs.names("thread-self/ns")) if rows else ()
        return tuple(procfs.inode(f"thread-self/ns/{row.name}") if row.name in have else 0 for row in rows)
    except (PermissionError, FileNotFoundError) as refused:
        raise _own_refused(refused, None) from None


def own_namespace(row: NsType, *, for_children: bool = False) -> int:
    """Return a descriptor of this thread's namespace, or of that of its next children. NamespaceError."""
    request, name = (row.get_for_children, row.children) if for_children else (row.get, row.name)
    fd = calls.own_namespace(request) if request is not None else -1
    if fd >= 0:
        return fd
    try:
        # thread-self: Linux 3.17; /proc/self is the main thread's
        return calls.above_stdio(procfs.open_file(f"thread-self/ns/{name}"))
    except OSError as refused:
        raise _own_refused(refused, row, for_children) from None


def _own_refused(refused: OSError, row: NsType | None, for_children: bool = False) -> NamespaceError:
    reason = None
    if refused.errno == errno.EACCES and not calls.is_dumpable():
        reason = _NOT_DUMPABLE
    elif refused.errno == errno.ENOENT:
        reason = _missing_reason(row, for_children)
    nstype = row.name if row else None
    return error(NamespaceError, refused.errno or 0, "open", nstype=nstype, target="this thread", reason=reason)


def _missing_reason(row: NsType | None, for_children: bool) -> str:
    if row is None or not os.path.exists("/proc/thread-self/ns"):
        return "before Linux 6.11 that needs /proc, which is not mounted here: mount it"
    if for_children and os.path.exists("/proc/thread-self/ns/pid"):
        return _NOTHING_BORN
    return missing_type(row)


def missing_type(row: NsType) -> str:
    """Return the reason for an error where the running kernel has no such namespaces."""
    return f"this kernel ({os.uname().release}) has no {row.name} namespaces: they need Linux {row.since}"


def own_pid_namespace_is_left() -> bool:
    """Return whether this thread's children are born outside of its own PID namespace, as in ``enter(pid, "pid")``."""
    with ExitStack() as stack:
        own = own_namespace(PID)
        stack.callback(os.close, own)
        try:
            children = own_namespace(PID, for_children=True)
        except NamespaceNotFoundError:  # _NOTHING_BORN
            return True
        stack.callback(os.close, children)
        return os.fstat(own).st_ino != os.fstat(children).st_ino
