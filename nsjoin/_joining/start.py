"""Start a program or a call in a target: decide what to join, run, try again what may succeed, explain what failed."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from .._engine.children import Expired
from .._engine.job import At, Failed, Way
from .._kernel import abi
from .._kernel.nstypes import MNT, PID, TIME, USER
from .._target import cgroups, likeness
from .._target.target import OpenTarget
from .failures import explain
from .identity import NOTHING_WANTED, resolve
from .select import has_left, select, wants_user

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .._engine.job import Attributes, Launch
    from .._kernel.nstypes import NsType
    from .._target.target import Openable
    from .identity import WantedIds
    from .select import Selection

#: unshare(2) makes these for children only.
_FOR_CHILDREN = PID.flag | TIME.flag


class Request(NamedTuple):
    """What the caller asks for. ``wanted``: the types to join, None for all that differ.

    ``choice`` is what to take over from the target besides; ``name`` and ``cwd`` are the file names of subprocess's
    errors.
    """

    wanted: tuple[NsType, ...] | None
    fork: bool = True
    unshare: int = 0
    ids: WantedIds = NOTHING_WANTED
    choice: likeness.Choice | None = None
    name: Any = None
    cwd: Any = None


class Relaxed(NamedTuple):
    """What earlier attempts have shown to be necessary."""

    by_descriptors: bool = False
    moves_to_cgroup: bool = False
    go_home: bool = False
    empty_environ: bool = False


class Attempt(NamedTuple):
    """What was tried. ``selection`` is None if preparing the attempt failed."""

    way: Way = Way()
    selection: Selection | None = None

    @property
    def by_pidfd(self) -> bool:
        return self.selection is not None and self.selection.by_pidfd


class _Row(NamedTuple):
    """A failure after which another attempt may succeed, and what that attempt changes. ``errnos`` None: any."""

    at: At
    errnos: frozenset[int] | None
    applies: Callable[[Attempt], bool]
    relax: dict[str, bool]


_EAGAIN, _EXDEV = frozenset({errno.EAGAIN}), frozenset({errno.EXDEV})

AGAIN = (
    # A process that is in execve(2) shows an empty environ, and so does one without an environment: read it once more.
    _Row(
        At.ENV,
        _EAGAIN,
        lambda last: not last.way.attributes.empty_environ,
        {"empty_environ": True, "by_descriptors": False},
    ),
    # The target has left its user namespace. It can only go deeper, 32 levels at most (user_namespaces(7)). One
    # setns(2) with its pidfd may then join what descriptors cannot in any order.
    _Row(At.WITNESS, _EAGAIN, lambda _: True, {"by_descriptors": False}),
    # Descriptors may do where a pidfd may not, and they show which namespace was refused.
    _Row(At.JOIN, abi.absent("setns with a pidfd"), lambda last: last.by_pidfd, {"by_descriptors": True}),
    # The kernel checks the credentials at the time of clone(2), after the joins; a move is checked before them.
    _Row(
        At.CLONE, abi.absent("CLONE_INTO_CGROUP"), lambda last: last.way.born_in is not None, {"moves_to_cgroup": True}
    ),
    # This thread's children are born in another PID namespace.
    _Row(At.LAUNCH, _EXDEV, lambda last: not last.way.go_home, {"go_home": True}),
)


def relaxed_by(failed: Failed, last: Attempt, relaxed: Relaxed) -> Relaxed | None:
    """Return what the next attempt does differently; None: no other attempt can succeed."""
    for row in AGAIN:
        if row.at == failed.at and (row.errnos is None or failed.errno in row.errnos) and row.applies(last):
            return relaxed._replace(**row.relax)
    return None


def start(run: Callable[[Way], Launch], checked: Openable, request: Request) -> Launch:
    """Have ``run`` carry out a way into a target as ``request`` says; return what it returns.

    Raises JoinError, TargetGoneError, NamespaceError, OSError, and what ``run`` raises except Failed.
    """
    relaxed = Relaxed()
    with OpenTarget(checked) as target:
        while True:
            last = Attempt()
            with ExitStack() as stack:
                try:
                    last = _prepare(target, request, relaxed, stack)
                    return (yield from run(last.way))
                except Expired as expired:  # a cgroup that was frozen after it had been opened may be the cause
                    raise expired from cgroups.why_it_hangs(last.way.attributes.cgroups)
                except Failed as failed:
                    changed = relaxed_by(failed, last, relaxed)
                    if changed is None:
                        raise explain(failed, target, request.name, request.cwd, last.selection) from None
                    relaxed = changed


def _prepare(target: OpenTarget, request: Request, relaxed: Relaxed, stack: ExitStack) -> Attempt:
    """Prepare one attempt; ``stack`` owns the descriptors that are opened for it. Raises Failed at WITNESS.

    Once the target is in another user namespace, it can change its ids and its root. So both are read before the last
    check that it has not left: here, or by the joiner after the joins (``Way.witness``).
    """
    process, wanted, choice = target.process, request.wanted, request.choice
    taken = likeness.NOTHING if choice is None else likeness.read(choice, process, wanted, stack)
    selection = select(target, wanted, request.unshare, relaxed.by_descriptors, stack)
    ids = resolve(request.ids, taken.theirs, process, joins_user=USER in selection.rows)
    root = taken.root
    if root < 0 and MNT in selection.rows and process is not None:
        root = process.open_root()
        stack.callback(os.close, root)
    if (
        process is not None
        and not selection.by_pidfd
        and wants_user(wanted)
        and has_left(process, selection.namespaces)
    ):
        raise Failed(At.WITNESS, 0, errno.EAGAIN)
    return Attempt(way_to(request, relaxed, selection, taken.attributes, root)._replace(ids=ids), selection)


def way_to(request: Request, relaxed: Relaxed, selection: Selection, attributes: Attributes, root: int) -> Way:
    """Return the way that follows from the namespaces to join; pure. The ids are still to be filled in.

    A process that is born in its cgroup need not be moved there; for a move the kernel stops all forks and exits of the
    system, some 10 ms where no process has moved for a while.
    """
    at_home = PID in selection.rows or bool(request.unshare & PID.flag)
    fork = request.fork and (at_home or bool(request.unshare & _FOR_CHILDREN))
    born_in = None
    if fork and USER not in selection.rows and not relaxed.moves_to_cgroup:
        born_in = next((cgroup for cgroup in attributes.cgroups if cgroup.is_v2), None)
    return Way(
        joins=selection.joins,
        fork=fork,
        root=root,
        witness=selection.witness,
        unshare=request.unshare,
        attributes=attributes._replace(empty_environ=relaxed.empty_environ),
        born_in=born_in,
        at_home=at_home,
        go_home=relaxed.go_home,
        check_cwd=MNT in selection.rows or root >= 0 or attributes.cwd >= 0,
    )
