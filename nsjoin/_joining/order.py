"""What to join in which order. Pure: everything that the kernel knows comes as arguments, so every rule is a table row.

The kernel asks for CAP_SYS_ADMIN twice: over the user namespace that owns the namespace to join, and in the user
namespace that the joining process is in at that moment (setns(2)). So an unprivileged process has to enter a user
namespace first, and a privileged one must not before it has joined what that user namespace does not own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .._engine.job import AGAIN, TRY, Step

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from .._kernel.nstypes import NsType


class UserNs(NamedTuple):
    """One user namespace and the uid that made it; ``parent`` None: not visible from here."""

    id: Hashable
    fd: int
    owner_uid: int | None
    parent: UserNs | None


class Wanted(NamedTuple):
    """One namespace to join. ``owner`` is its user namespace (None: unknown) or, of type user, itself."""

    row: NsType
    fd: int
    owner: UserNs | None


class Caller(NamedTuple):
    """Who joins: the user namespace it is in, its uid, and whether it has CAP_SYS_ADMIN there."""

    user: Hashable
    uid: int
    admin: bool


def lineage(user: UserNs | None) -> Iterator[UserNs]:
    """Yield ``user``, its parent, and so on."""
    while user is not None:
        yield user
        user = user.parent


def has_power(caller: Caller, user: UserNs) -> bool:
    """Return whether the caller has all capabilities over ``user``: user_namespaces(7), "Capabilities"."""
    for ancestor in lineage(user):
        if ancestor.id == caller.user:
            return caller.admin
        if ancestor.parent is not None and ancestor.parent.id == caller.user and ancestor.owner_uid == caller.uid:
            return True
    return False


def order(wanted: Sequence[Wanted], caller: Caller) -> list[Step]:
    """Return the steps that join ``wanted``, which holds at most one namespace of each type and none of the caller's.

    A user namespace is entered only if one is wanted: then first those on its line of descent that own something we
    have no power over yet, and the wanted one last. What no order is known for is tried before and after.
    """
    rest = [want for want in wanted if want.row.name != "user"]
    user = next((want for want in wanted if want.row.name == "user"), None)
    goal = user.owner if user is not None else None
    is_admin = caller.admin
    steps: list[Step] = []
    while True:
        ready = [want for want in rest if _may_join(caller, want)]
        rest = [want for want in rest if want not in ready]
        steps += [Step(want.fd, want.row.flag) for want in ready]
        if user is None or goal is None or caller.user == goal.id:
            break
        stop = _next_user(rest, caller, goal) or goal
        steps.append(Step(user.fd if stop is goal else stop.fd, user.row.flag))
        caller = Caller(stop.id, caller.uid, True)
    if user is not None and goal is None:
        steps.append(Step(user.fd, user.row.flag))
    if user is None or not is_admin:  # without CAP_SYS_ADMIN here nothing but a user namespace can be joined first
        return steps + [Step(want.fd, want.row.flag) for want in rest]
    before = [Step(want.fd, want.row.flag, TRY) for want in rest]
    return before + steps + [Step(want.fd, want.row.flag, AGAIN) for want in rest]


def _may_join(caller: Caller, want: Wanted) -> bool:
    return caller.admin and want.owner is not None and has_power(caller, want.owner)


def _next_user(rest: Sequence[Wanted], caller: Caller, goal: UserNs) -> UserNs | None:
    """The outermost user namespace on the way to ``goal`` that owns something in ``rest``, if we may enter it."""
    owners = {want.owner.id for want in rest if want.owner is not None}
    for user in reversed(list(lineage(goal))):
        if user.id in owners and user.id != caller.user and has_power(caller, user):
            return user
    return None
