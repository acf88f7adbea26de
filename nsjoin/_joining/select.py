"""Which namespaces to join, and by what: the target's pidfd, or a descriptor of each."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

from .._engine.job import Step, Witness
from .._kernel import calls
from .._kernel.nstypes import BY_NAME, MNT, NSTYPES, PID, USER, mask
from .._kernel.thread import FIRST_USER_NAMESPACE, missing_type, own_inodes
from .._target.namespace import namespace_of
from ..exceptions import JoinError
from . import ownership
from .order import order

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from .._kernel.nstypes import NsType
    from .._target.namespace import Namespace
    from .._target.process import Process
    from .._target.target import OpenTarget


#: Joining one's own user namespace is EINVAL for the whole call; one's own mnt moves root and working directory.
_NEVER_ONES_OWN = (USER, MNT)


class Selection(NamedTuple):
    """The types to join and the steps that join them.

    ``by_pidfd``: in one step by the target's pidfd. Otherwise ``namespaces`` are the opened ones.
    """

    rows: tuple[NsType, ...]
    joins: Sequence[Step]
    by_pidfd: bool = False
    namespaces: Sequence[Namespace] = ()
    witness: Witness | None = None


def select(
    target: OpenTarget, wanted: tuple[NsType, ...] | None, unshare: int, by_descriptors: bool, stack: ExitStack
) -> Selection:
    """Return what to join of ``wanted`` (None: all that differ); ``stack`` owns the descriptors opened for it.

    Raises JoinError for a type that the kernel lacks, ValueError for one that the target does not have.
    """
    process = target.process
    if process is None:
        return _by_descriptors(_chosen(target.namespaces, wanted), unshare, stack)
    found = None if by_descriptors or process.pidfd < 0 else _to_join(process, wanted)
    if found is not None:
        rows = _without_new_pid(found[0], unshare)
        return Selection(rows, [Step(process.pidfd, mask(rows))] if rows else [], by_pidfd=True, witness=found[1])
    namespaces = [stack.enter_context(namespace_of(process, row)) for row in _differing(process, wanted)]
    return _by_descriptors(namespaces, unshare, stack)


def _by_descriptors(namespaces: Sequence[Namespace], unshare: int, stack: ExitStack) -> Selection:
    rows = _without_new_pid(tuple(BY_NAME[namespace.nstype] for namespace in namespaces), unshare)
    namespaces = [namespace for namespace in namespaces if BY_NAME[namespace.nstype] in rows]
    steps = order(ownership.wanted(namespaces, stack), ownership.caller()) if namespaces else []
    return Selection(rows, steps, namespaces=namespaces)


def _without_new_pid(rows: tuple[NsType, ...], unshare: int) -> tuple[NsType, ...]:
    """Leave out pid if a new one is made: unshare(2) is EINVAL once ``pid_for_children`` differs."""
    return tuple(row for row in rows if row is not PID) if unshare & PID.flag else rows


def wants_user(wanted: tuple[NsType, ...] | None) -> bool:
    """Return whether the user namespace is to be joined where it differs."""
    return wanted is None or USER in wanted


def has_left(process: Process, namespaces: Sequence[Namespace]) -> bool:
    """Return whether the target has left the user namespace in ``namespaces``, or else this thread's.

    A process that leaves its user namespace goes deeper and cannot come back. If it has not left, everything that was
    read and opened before belongs to that user namespace or one further out, not to one that the target made itself.
    """
    opened = next((namespace for namespace in namespaces if namespace.nstype == USER.name), None)
    return not process.shares(USER) if opened is None else process.inodes((USER,))[0] != opened.id.ino


def _to_join(process: Process, wanted: tuple[NsType, ...] | None) -> tuple[tuple[NsType, ...], Witness | None] | None:
    """Return the types to join by the pidfd, and the target that must not have left meanwhile.

    Joining a namespace again is harmless with CAP_SYS_ADMIN over its owner, so then only types of _NEVER_ONES_OWN are
    left out. In the first user namespace CAP_SYS_ADMIN is power over all others; elsewhere an ancestor may own some of
    this thread's namespaces. Return None if the joiner could not check whether the target has left.
    """
    try:
        is_admin, ours, theirs = calls.look(process.pidfd, [row.get for row in _NEVER_ONES_OWN])
    except OSError:  # Linux < 6.11, a seccomp filter, or the target has gone: _differing() raises the right error
        rows = _differing(process, wanted)
        return (rows, None) if USER in rows or not wants_user(wanted) else None
    if is_admin and ours[0] == FIRST_USER_NAMESPACE:
        own = [row for row, our, their in zip(_NEVER_ONES_OWN, ours, theirs) if our == their]
        rows = tuple(row for row in (NSTYPES if wanted is None else wanted) if row not in own)
    else:
        rows = _differing(process, wanted)
    stays = bool(rows) and wants_user(wanted) and USER not in rows
    return rows, Witness(process.pidfd, ours[0]) if stays else None


def _differing(process: Process, wanted: tuple[NsType, ...] | None) -> tuple[NsType, ...]:
    """Return the types whose namespace is not this thread's. Raise JoinError for a type that the kernel lacks."""
    rows = NSTYPES if wanted is None else wanted
    theirs = process.inodes(rows)
    if wanted is not None and 0 in theirs:
        row = rows[theirs.index(0)]
        reason = missing_type(row)
        raise JoinError(errno.EINVAL, "setns", nstype=row.name, target=process.describe(), reason=reason)
    return tuple(row for row, inode, own in zip(rows, theirs, own_inodes(rows)) if inode and inode != own)


def _chosen(namespaces: Sequence[Namespace], wanted: tuple[NsType, ...] | None) -> list[Namespace]:
    """Return the wanted ones, in the order of the table, without this thread's own."""
    by_type = {namespace.nstype: namespace for namespace in namespaces}
    for row in wanted or ():
        if row.name not in by_type:
            raise ValueError(f"the target has no {row.name} namespace, only {', '.join(sorted(by_type)) or 'none'}")
    rows = tuple(row for row in wanted or NSTYPES if row.name in by_type)
    return [by_type[row.name] for row, own in zip(rows, own_inodes(rows)) if by_type[row.name].id.ino != own]
