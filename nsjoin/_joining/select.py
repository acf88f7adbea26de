"""TODO."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from .._engine.job import Witness
from .._kernel import calls
from .._kernel.nstypes import MNT, NSTYPES, PID, USER
from .._kernel.thread import FIRST_USER_NAMESPACE, missing_type, own_inodes
from ..exceptions import JoinError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._kernel.nstypes import NsType
    from .._target.namespace import Namespace
    from .._target.target import Target
    from .start import Startable


#: To join one's own user namespace is EINVAL for all of the call, one's own mnt moves root and working directory.
_NEVER_ONES_OWN = (USER, MNT)


def _has_left(process: Target, namespaces: Sequence[Namespace]) -> bool:
    """Whether the target is in another user namespace than ours, or the one in ``namespaces``.

    Who leaves one goes deeper, and never comes back: if it has not left, all that has been read and opened of it
    before belongs to there or further out, and not to where the target is root by its own doing.
    """
    opened = next((namespace for namespace in namespaces if namespace.nstype == USER.name), None)
    return not process.shares(USER) if opened is None else process.inodes((USER,))[0] != opened.id.ino


def _without_new_pid(job: Startable, rows: tuple[NsType, ...]) -> tuple[NsType, ...]:
    """A process whose children are born elsewhere can make no PID namespace (EINVAL), so it does not go there first."""
    return tuple(row for row in rows if row is not PID) if job.unshare & PID.flag else rows


# --- what to join -------------------------------------------------------------------------------------------


def _to_join(process: Target, wanted: tuple[NsType, ...] | None) -> tuple[tuple[NsType, ...], Witness | None] | None:
    """The types to name to setns(2) with a pidfd, and who has to be where afterwards.

    Only what the kernel would refuse, or do harm with, is left out: to join one's own is no move where one may do it.
    In the first user namespace CAP_SYS_ADMIN is power over all; elsewhere some of our own namespaces may belong to an
    ancestor of our user namespace. None where the joiner could not tell whether the target has left meanwhile.
    """
    wants_user = wanted is None or USER in wanted
    try:
        is_admin, ours, theirs = calls.look(process.pidfd, [row.get for row in _NEVER_ONES_OWN])
    except OSError:  # before Linux 6.11, a seccomp filter, or it is gone: who looks closer says so
        rows = _differing(process, wanted)
        return (rows, None) if USER in rows or not wants_user else None
    if is_admin and ours[0] == FIRST_USER_NAMESPACE:
        own = [row for row, our, their in zip(_NEVER_ONES_OWN, ours, theirs) if our == their]
        rows = tuple(row for row in (NSTYPES if wanted is None else wanted) if row not in own)
    else:
        rows = _differing(process, wanted)
    stays = bool(rows) and wants_user and USER not in rows
    return rows, Witness(process.pidfd, ours[0]) if stays else None


def _differing(process: Target, wanted: tuple[NsType, ...] | None) -> tuple[NsType, ...]:
    """The types in which the process is elsewhere than this thread. JoinError for one that the kernel lacks."""
    rows = NSTYPES if wanted is None else wanted
    theirs = process.inodes(rows)
    if wanted is not None and 0 in theirs:
        row = rows[theirs.index(0)]
        reason = missing_type(row)
        raise JoinError(errno.EINVAL, "setns", nstype=row.name, target=process.words(), reason=reason)
    return tuple(row for row, inode, own in zip(rows, theirs, own_inodes(rows)) if inode and inode != own)


def _chosen(namespaces: Sequence[Namespace], wanted: tuple[NsType, ...] | None) -> list[Namespace]:
    """Those that are wanted, in the order of the table, without those that this thread is in."""
    by_type = {namespace.nstype: namespace for namespace in namespaces}
    for row in wanted or ():
        if row.name not in by_type:
            raise ValueError(f"the target has no {row.name} namespace, only {', '.join(sorted(by_type)) or 'none'}")
    rows = tuple(row for row in wanted or NSTYPES if row.name in by_type)
    return [by_type[row.name] for row, own in zip(rows, own_inodes(rows)) if by_type[row.name].id.ino != own]
