"""``unshare``: this thread in new namespaces; and why the kernel refuses to make one."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from . import _procfs, _shim
from ._namespace import Namespace
from ._nstype import BY_NAME, mask, select
from ._process import missing_type, own_pid_namespace_is_left
from .exceptions import NamespaceError, error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._nstype import NsType

USER, PID = BY_NAME["user"], BY_NAME["pid"]


def unshare(*nstypes: str) -> None:
    """Put this thread into new namespaces of these types, for good: unshare(2), all or none.

    Only this thread and what it starts from now on. ``"pid"`` and ``"time"`` are for processes started from now on,
    the first of which is the init of the PID namespace. ``"mnt"`` gives the thread a working directory and umask of its
    own; its mounts still propagate as before (mount_namespaces(7)). ``"user"`` only in a process without threads, and
    nothing is mapped in it yet. ``create`` makes a namespace without moving anybody.

    NamespaceError (NamespacePermissionError) with the reason; TypeError and ValueError for bad arguments. Needs
    CAP_SYS_ADMIN, but for ``"user"``, which makes that of the others named with it. Linux 3.8; cgroup 4.6, time 5.6.
    """
    if not nstypes:
        raise TypeError("name the types of the new namespaces, such as unshare('net')")
    rows = select(nstypes)
    try:
        _shim.unshare(mask(rows))
    except OSError as refused:
        raise refusal(refused.errno or 0, "unshare", rows, moves_thread=True) from None


def refusal(number: int, step: str, rows: Sequence[NsType], *, moves_thread: bool = False) -> NamespaceError:
    """The error for errno ``number`` where new namespaces of ``rows`` were refused; ``moves_thread``: this one."""
    culprit, reason = rows, None
    if number == errno.EPERM:
        reason = _no_user_namespace() if USER in rows else _no_power()
    elif number in (errno.ENOSPC, errno.EUSERS):  # EUSERS before Linux 4.9
        culprit, reason = _limit(rows)
    elif number == errno.EINVAL:
        culprit, reason = _invalid(rows, moves_thread)
    nstype = "+".join(row.name for row in culprit)
    return error(NamespaceError, number, step, nstype=nstype, target="this thread", reason=reason)


def _no_power() -> str:
    with Namespace.current("user") as own:
        where = f"user:[{own.id.ino}], our user namespace"
    if _shim.is_admin():
        return f"we have CAP_SYS_ADMIN in {where}, so a security module or a seccomp filter forbids it"
    return f"needs CAP_SYS_ADMIN in {where}; without it, make a user namespace and these in it: create(..., user=...)"


#: Files that forbid new user namespaces when they say so: Debian's, and AppArmor's of Ubuntu.
_USER_SWITCHES = {
    "/proc/sys/kernel/unprivileged_userns_clone": "0",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
}


def _no_user_namespace() -> str:
    for path, value in _USER_SWITCHES.items():
        if _read(path) == value:
            return f"{path} is {value}, which forbids it without CAP_SYS_ADMIN"
    for name, own in (("uid_map", os.geteuid()), ("gid_map", os.getegid())):
        ranges = [tuple(map(int, line.split())) for line in _read(f"/proc/thread-self/{name}").splitlines()]
        if not any(inside <= own < inside + count for inside, _, count in ranges):
            return f"our own {name[:3]} is not mapped in our user namespace (/proc/thread-self/{name})"
    return "a process in a chroot may not, nor where a security module or a seccomp filter forbids it"


def _limit(rows: Sequence[NsType]) -> tuple[Sequence[NsType], str]:
    """The types whose limit may be it, and what the limits are; how many there are is not told by the kernel."""
    limits = {row: _read(f"/proc/sys/user/max_{row.name}_namespaces") for row in rows}
    culprits = [row for row, limit in limits.items() if limit == "0"] or list(rows)
    known = ", ".join(f"max_{row.name}_namespaces is {limits[row] or 'not readable'}" for row in culprits)
    nested = "; user and pid namespaces nest 32 deep at most" if {USER, PID} & set(culprits) else ""
    return culprits, (
        f"a limit on the number of namespaces is reached (/proc/sys/user: {known}), ours or that of a user namespace "
        f"above{nested}"
    )


def _invalid(rows: Sequence[NsType], moves_thread: bool) -> tuple[Sequence[NsType], str | None]:
    for row in rows:
        if row.name not in _own_types():
            return (row,), missing_type(row)
    if USER in rows and moves_thread:
        return (USER,), "a process with threads cannot leave its user namespace; use create, or spawn_in"
    if PID in rows and own_pid_namespace_is_left():
        return (PID,), "this thread's children are born in another PID namespace already, which is not undone"
    return rows, None


def _own_types() -> list[str]:
    try:
        return _procfs.names("thread-self/ns")
    except OSError:  # no /proc here: then it is not known
        return list(BY_NAME)


def _read(path: str) -> str:
    try:
        return _procfs.read(path.partition("/proc/")[2]).strip()
    except OSError:  # not in this kernel, or no /proc here
        return ""
