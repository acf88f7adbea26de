"""Why the kernel refused: what an errno means for this step, namespace and thread, found out after the failure."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from .._kernel import calls, capabilities, procfs
from .._kernel.calls import lib
from .._kernel.nstypes import BY_NAME, PID, USER
from .._kernel.thread import missing_type, own_pid_namespace_is_left
from .._target import cgroups
from .._target.id_maps import IdRanges
from .._target.namespace import Namespace
from ..exceptions import JoinError, NamespaceError, error
from . import order, ownership

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .._kernel.nstypes import NsType


# --- a program: functions of (errno, index of the step) -----------------------------------------------------

KILLED = "the new process was killed before it could run the program"
NEEDS_CHROOT = "needs CAP_SYS_CHROOT"
NO_MOUNT_POINT = "the program's root directory is no mount point, so that its mounts cannot be made private"
DELETED = (
    "this directory has been deleted, and where it was is not below the target's root, so it could be a way out of it: "
    "name another one with cwd="
)
OUTSIDE = (
    "this directory is not below the target's root, so it would be a way out of it: name one below that root with cwd="
)
THEIRS = "this is the target's own working directory; name another one with cwd="
NOT_EXECUTED = (
    "neither a memfd (vm.memfd_noexec, or a security module) nor a temporary file may be executed here: set TMPDIR to "
    "a folder on a file system that is not mounted noexec"
)
INTERPRETED = (
    "an interpreter in /proc/sys/fs/binfmt_misc is registered for all programs of this machine, and it cannot open the "
    "joiner, which is a file without a name: narrow that entry, or disable it"
)
#: Indices of the steps of capabilities besides -1 and the numbers of capabilities: what securebits may forbid.
_BY_SECUREBITS, _AMBIENT = -2, 64
_OF_UNSHARE = {
    errno.EPERM: "needs CAP_SYS_ADMIN in the user namespace that the program is in",
    errno.ENOSPC: "a limit in /proc/sys/user, of this or an outer user namespace, or the depth of 32 is reached",
    errno.EINVAL: "this kernel lacks one of these types",
}


def of_environ(number: int, _index: int) -> str | None:
    return "it is longer than execve(2) accepts; pass a shorter env=" if number == errno.E2BIG else None


def of_capability(number: int, index: int) -> str | None:
    if number != errno.EPERM:
        return None
    if index == _BY_SECUREBITS or index >= _AMBIENT:
        return "securebits forbid it: KEEP_CAPS_LOCKED or NO_CAP_AMBIENT_RAISE (capabilities(7))"
    if index < 0:
        return "only what is permitted can be made inheritable, and what is in the bounding set (capabilities(7))"
    name = capabilities.name_of(index)
    return (
        f"{name}: only CAP_SETPCAP drops a capability from the bounding set, and none can be given that the "
        "caller lacks"
    )


def of_cgroup(number: int, _index: int) -> str | None:
    return cgroups.refusal(number)


def of_unshare(number: int, _index: int) -> str | None:
    return _OF_UNSHARE.get(number)


def of_score(number: int, _index: int) -> str | None:
    return "to lower it needs CAP_SYS_RESOURCE" if number in (errno.EACCES, errno.EPERM) else _of_proc(number)


def of_label(number: int, _index: int) -> str | None:
    reason = "no security module here gives labels" if number in (errno.EINVAL, errno.ENOENT) else None
    return _of_proc(number) or reason


def _of_proc(number: int) -> str | None:
    return "/proc is not mounted here" if number == errno.ENOENT and not os.path.exists("/proc/self") else None


# --- a new namespace's holder --------------------------------------------------------------------------------

_OF_OFFSETS = {
    errno.EPERM: "needs CAP_SYS_TIME in the caller's user namespace",
    errno.ERANGE: "a clock would be negative, or beyond half of its range",
}


def holder_error(number: int, at: int, row: NsType, user: Namespace | None) -> OSError:
    """Return what to raise for errno ``number`` of the holder's step ``at``; ``user``: the owner to be."""
    if at == lib.NSJOIN_HOLD_USER and user is not None:
        return error(JoinError, number, "setns", nstype="user", reason=of_setns(number, user))
    if at in (lib.NSJOIN_HOLD_CLONE, lib.NSJOIN_HOLD_TIME):
        return refusal(number, "create", (row,))
    if at == lib.NSJOIN_HOLD_OFFSETS:
        return error(NamespaceError, number, "timens_offsets", nstype=row.name, reason=_OF_OFFSETS.get(number))
    if at == lib.NSJOIN_HOLD_ROOT:
        reason = "its init could not be given an empty root directory: mount(2) of a tmpfs, pivot_root(2)"
        return error(NamespaceError, number, "create", nstype=row.name, reason=reason)
    return OSError(number, os.strerror(number))


# --- setns ----------------------------------------------------------------------------------------------------

DEAD_PID_NAMESPACE = (
    "the init process of this PID namespace has ended, so no process can be created in it any more; start the "
    "target again"
)


def of_setns(number: int, namespace: Namespace, *, with_user: bool = False) -> str | None:
    """Return why setns(2) with ``namespace`` failed, or None; ``with_user``: a user namespace is joined too."""
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
                "needs CAP_SYS_ADMIN in the user namespace that owns it, which is neither the caller's nor a "
                "descendant of it"
            )
        if not order.has_power(caller, owner):
            return (
                f"needs CAP_SYS_ADMIN in user:[{owner.id.ino}], the user namespace that owns it, "  # type: ignore[attr-defined]
                f"which was made by uid {owner.owner_uid}; the caller has uid {caller.uid}"
            )
        if not caller.admin and not with_user and namespace.nstype != "user":
            return (
                "needs CAP_SYS_ADMIN in the caller's user namespace too; join the target's user namespace as "
                "well (spawn_in with 'user' among the namespaces) to have it there"
            )
    if namespace.nstype == "mnt":
        return (
            "needs CAP_SYS_CHROOT in the caller's user namespace too, or is forbidden by a security module or seccomp"
        )
    return (
        "the caller has the capabilities for it, so a security module or a seccomp filter forbids it; or, with "
        "spawn_in and not as root, they are not in the ambient set and execve(2) drops them (capabilities(7))"
    )


def _own_user(namespace: Namespace) -> str:
    with Namespace.current("user") as own:
        if own == namespace:
            return "it is the user namespace of this thread, which cannot be joined again"
    return "a process with threads, or a thread that shares its root directory with others, cannot change it"


def _no_descendant(namespace: Namespace) -> str | None:
    with ExitStack() as stack:
        own = stack.enter_context(Namespace.current("pid"))
        while namespace != own:
            try:
                namespace = stack.enter_context(namespace.parent())
            except NamespaceError:
                return (
                    "only this thread's PID namespace and its descendants can be joined, and this is neither; "
                    "join it from an ancestor of it"
                )
    return None


def _shared_root(namespace: Namespace) -> str:  # noqa: ARG001 - the signature of the table below
    return "this thread shares its root and working directory with others (CLONE_FS)"


_OF_EINVAL: dict[str, Callable[[Namespace], str | None]] = {
    "user": _own_user,
    "pid": _no_descendant,
    "mnt": _shared_root,
}


# --- new namespaces ------------------------------------------------------------------------------------------


def refusal(number: int, step: str, rows: Sequence[NsType], *, moves_thread: bool = False) -> NamespaceError:
    """Return the error for new namespaces of ``rows`` that were refused; ``moves_thread``: this thread's own."""
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
        where = f"user:[{own.id.ino}], this thread's user namespace"
    if calls.is_admin():
        return f"this thread has CAP_SYS_ADMIN in {where}, so a security module or a seccomp filter forbids it"
    return f"needs CAP_SYS_ADMIN in {where}; without it, make a user namespace and these in it: create(..., user=...)"


#: Files that forbid new user namespaces with this value: Debian's, and AppArmor's on Ubuntu.
_USER_SWITCHES = {
    "/proc/sys/kernel/unprivileged_userns_clone": "0",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
}


def _no_user_namespace() -> str:
    for path, value in _USER_SWITCHES.items():
        if _read(path) == value:
            return f"{path} is {value}, which forbids it without CAP_SYS_ADMIN"
    for name, own in (("uid_map", os.geteuid()), ("gid_map", os.getegid())):
        ids = IdRanges.parse(name, _read(f"/proc/thread-self/{name}"), "this thread")
        if ids.outside(own) is None:
            return f"the caller's {name[:3]} is not mapped in its user namespace (/proc/thread-self/{name})"
    return "a process in a chroot may not, nor where a security module or a seccomp filter forbids it"


def _limit(rows: Sequence[NsType]) -> tuple[Sequence[NsType], str]:
    """Return the types whose limit may be reached, and the limits. The kernel does not report the numbers in use."""
    limits = {row: _read(f"/proc/sys/user/max_{row.name}_namespaces") for row in rows}
    culprits = [row for row, limit in limits.items() if limit == "0"] or list(rows)
    known = ", ".join(f"max_{row.name}_namespaces is {limits[row] or 'not readable'}" for row in culprits)
    nested = "; user and pid namespaces nest 32 deep at most" if {USER, PID} & set(culprits) else ""
    return culprits, (
        f"a limit on the number of namespaces is reached (/proc/sys/user: {known}), this one's or that of a user "
        f"namespace above{nested}"
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
