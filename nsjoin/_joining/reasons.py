"""Why a join failed: what the errno means for this namespace and this thread, found out after the fact."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from .._kernel import calls, procfs
from .._kernel.calls import lib
from .._kernel.nstypes import BY_NAME, PID, USER
from .._kernel.thread import missing_type, own_pid_namespace_is_left
from .._target.namespace import Namespace
from ..exceptions import JoinError, NamespaceError, error
from . import order, ownership

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._kernel.nstypes import NsType


def _error(number: int, at: int, row: NsType, user: Namespace | None) -> OSError:
    if at == lib.NSJOIN_HOLD_USER and user is not None:
        return error(JoinError, number, "setns", nstype="user", reason=of_setns(number, user))
    if at in (lib.NSJOIN_HOLD_CLONE, lib.NSJOIN_HOLD_TIME):
        return refusal(number, "create", (row,))
    if at == lib.NSJOIN_HOLD_OFFSETS:
        reason = _OFFSET_REASONS.get(number)
        return error(NamespaceError, number, "timens_offsets", nstype=row.name, reason=reason)
    if at == lib.NSJOIN_HOLD_ROOT:
        reason = "its init could not be given an empty root directory: mount(2) of a tmpfs, pivot_root(2)"
        return error(NamespaceError, number, "create", nstype=row.name, reason=reason)
    return OSError(number, os.strerror(number))


_OFFSET_REASONS = {
    errno.EPERM: "needs CAP_SYS_TIME in our user namespace",
    errno.ERANGE: "a clock would be negative, or beyond half of its range",
}


DEAD_PID_NAMESPACE = "the init process of this PID namespace has ended, so nothing can be born in it any more"


def of_setns(number: int, namespace: Namespace, *, with_user: bool = False) -> str | None:
    """The reason for errno ``number`` of setns(2) with ``namespace``; ``with_user``: a user namespace is joined too."""
    if number == errno.EPERM:
        return _of_eperm(namespace, with_user)
    explain = _OF_EINVAL.get(namespace.nstype) if number == errno.EINVAL else None
    if number == errno.EUSERS:
        return "only a process without threads can join a time namespace; use spawn_in"
    return explain(namespace) if explain else None


def _of_eperm(namespace: Namespace, with_user: bool) -> str:
    with ExitStack() as stack:
        owner = ownership.user_namespace(namespace, stack)
        caller = ownership.caller()
        if owner is None:
            return (
                "needs CAP_SYS_ADMIN in the user namespace that owns it, which is neither ours nor a descendant of ours"
            )
        if not order.has_power(caller, owner):
            return (
                f"needs CAP_SYS_ADMIN in user:[{owner.id.ino}], the user namespace that owns it, "  # type: ignore[attr-defined]
                f"which was made by uid {owner.owner_uid}; we are uid {caller.uid}"
            )
        if not caller.admin and not with_user and namespace.nstype != "user":
            return (
                "needs CAP_SYS_ADMIN in our own user namespace too; join the target's user namespace as well (spawn_in "
                "with 'user' among the namespaces) to have it there"
            )
    if namespace.nstype == "mnt":
        return "needs CAP_SYS_CHROOT in our own user namespace too, or is forbidden by a security module or seccomp"
    return (
        "we have the capabilities for it, so a security module or a seccomp filter forbids it; or, with spawn_in and "
        "not as root, they are not in the ambient set and execve(2) drops them (capabilities(7))"
    )


def _own_user(namespace: Namespace) -> str:
    with Namespace.current("user") as own:
        if own == namespace:
            return "it is the user namespace that we are in, which cannot be joined again"
    return "a process with threads, or a thread that shares its root directory with others, cannot change it"


def _no_descendant(namespace: Namespace) -> str | None:
    with ExitStack() as stack:
        own = stack.enter_context(Namespace.current("pid"))
        while namespace != own:
            try:
                namespace = stack.enter_context(namespace.parent())
            except NamespaceError:
                return "only our own PID namespace and its descendants can be joined, and this is none of them"
    return None


def _shared_root(namespace: Namespace) -> str:  # noqa: ARG001 - the signature of the table below
    return "this thread shares its root and working directory with others (CLONE_FS)"


_OF_EINVAL: dict[str, Callable[[Namespace], str | None]] = {
    "user": _own_user,
    "pid": _no_descendant,
    "mnt": _shared_root,
}


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
    if calls.is_admin():
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
        return procfs.names("thread-self/ns")
    except OSError:  # no /proc here: then it is not known
        return list(BY_NAME)


def _read(path: str) -> str:
    try:
        return procfs.read(path.partition("/proc/")[2]).strip()
    except OSError:  # not in this kernel, or no /proc here
        return ""
