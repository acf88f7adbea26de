"""Starts a job inside a target: finds out what there is to join, has the joiner do it, and tells what went wrong."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from .._engine.children import Expired
from .._engine.job import At, Failed, Step
from .._kernel import abi
from .._kernel.nstypes import BY_FLAG, BY_NAME, MNT, PID, TIME, USER, mask
from .._target import cgroups, likeness
from .._target.target import OpenTarget
from . import identity, order, ownership, reasons
from .failures import _explain, _join_error
from .select import _chosen, _differing, _has_left, _to_join, _without_new_pid

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from typing_extensions import Protocol

    from .._engine import job
    from .._engine.job import Attributes, Cgroup, Ids, Launch, Witness
    from .._kernel.nstypes import NsType
    from .._target.namespace import Namespace
    from .._target.target import Openable, Target

    class Startable(Protocol):
        """A job for the joiner, or for a forked child."""

        joins: Sequence[job.Step]
        fork: bool
        unshare: int
        at_home: bool
        go_home: bool
        root: int
        ids: Ids
        check_cwd: bool
        born_in: Cgroup | None
        witness: Witness | None
        attributes: Attributes

        def launch(self) -> Launch: ...


#: unshare(2) makes these for children only.
_FOR_CHILDREN = PID.flag | TIME.flag


def start(
    job: Startable,
    checked: Openable,
    wanted: tuple[NsType, ...] | None,
    fork: bool,
    name: Any = None,
    cwd: Any = None,
    choice: likeness.Choice | None = None,
) -> Launch:
    """Start ``job`` in the namespaces ``wanted`` (None: all) of a target; the result is the program's pid.

    ``name`` and ``cwd`` are the file names of subprocess's errors; ``choice`` is what the program takes over from the
    target besides. JoinError, TargetGoneError, NamespaceError, OSError, and what ``launch`` raises but Failed.
    """
    with OpenTarget(checked) as target:
        try:
            try:
                return (yield from _start_like(job, target, wanted, fork, choice, may_be_empty=False))
            except Failed as failed:
                if failed.at != At.ENV or failed.errno != errno.EAGAIN:
                    raise
            return (yield from _start_like(job, target, wanted, fork, choice, may_be_empty=True))
        except Failed as failed:
            raise _explain(failed, target, name, cwd) from None


def _start_like(
    job: Startable,
    target: OpenTarget,
    wanted: tuple[NsType, ...] | None,
    fork: bool,
    choice: likeness.Choice | None,
    *,
    may_be_empty: bool,
) -> Launch:
    """``may_be_empty``: the environment of the target; Failed at ENV with EAGAIN where it is and may not."""
    with ExitStack() as stack:
        if choice is not None:
            attributes, theirs = likeness.read(choice, target.process, wanted, stack)
            job.attributes = attributes._replace(empty_environ=may_be_empty)
            job.ids = job.ids._replace(theirs=theirs)
        stack.enter_context(_naming_what_hangs(job))
        if target.process is None:
            chosen = _chosen(target.namespaces, wanted)
            stack.enter_context(_prepared(job, None, tuple(BY_NAME[namespace.nstype] for namespace in chosen)))
            return (yield from _start_by_descriptors(job, target, chosen, fork))
        return (yield from _start_by_process(job, target, target.process, wanted, fork))


@contextmanager
def _naming_what_hangs(job: Startable) -> Iterator[None]:
    """Where the start takes too long: a cgroup that has been frozen since it was opened is the cause of ``Expired``."""
    try:
        yield
    except Expired as expired:
        raise expired from cgroups.why_it_hangs(job.attributes.cgroups)


def _start_by_process(
    job: Startable, target: OpenTarget, process: Target, wanted: tuple[NsType, ...] | None, fork: bool
) -> Launch:
    """Again if the target went to another user namespace just then: each time it is deeper, and 32 is the deepest."""
    while True:
        try:
            return (yield from _try_by_process(job, target, process, wanted, fork))
        except Failed as failed:
            if failed.at != At.WITNESS or failed.errno != errno.EAGAIN:
                raise


def _try_by_process(
    job: Startable, target: OpenTarget, process: Target, wanted: tuple[NsType, ...] | None, fork: bool
) -> Launch:
    found = _to_join(process, wanted) if process.pidfd >= 0 else None
    if found is not None:
        rows, job.witness = _without_new_pid(job, found[0]), found[1]
        steps = [Step(process.pidfd, mask(rows))] if rows else []
        try:
            with _prepared(job, process, rows):
                return (yield from _launch(job, rows, steps, fork))
        except Failed as failed:
            if failed.at != At.JOIN or failed.errno not in abi.TRY_DESCRIPTORS:
                raise
        finally:
            job.witness = None
    rows = _differing(process, wanted)
    with ExitStack() as stack:
        namespaces = [stack.enter_context(process.namespace(row.name)) for row in rows]
        stack.enter_context(_prepared(job, process, rows))
        if (wanted is None or USER in wanted) and _has_left(process, namespaces):
            raise Failed(At.WITNESS, 0, errno.EAGAIN)
        return (yield from _start_by_descriptors(job, target, namespaces, fork))


def _start_by_descriptors(job: Startable, target: OpenTarget, namespaces: Sequence[Namespace], fork: bool) -> Launch:
    rows = _without_new_pid(job, tuple(BY_NAME[namespace.nstype] for namespace in namespaces))
    namespaces = [namespace for namespace in namespaces if BY_NAME[namespace.nstype] in rows]
    with ExitStack() as stack:
        steps = order.order(ownership.wanted(namespaces, stack), ownership.caller()) if namespaces else []
        try:
            return (yield from _launch(job, rows, steps, fork))
        except Failed as failed:
            if failed.at != At.JOIN or failed.errno == 0:
                raise
            nstype = BY_FLAG[steps[failed.index].nstypes].name
            culprit = next(namespace for namespace in namespaces if namespace.nstype == nstype)
            reason = reasons.of_setns(failed.errno, culprit, with_user=USER in rows)
            raise _join_error(failed, target, "setns", nstype, reason) from None


# --- the launch ---------------------------------------------------------------------------------------------


@contextmanager
def _prepared(job: Startable, process: Target | None, rows: tuple[NsType, ...]) -> Iterator[None]:
    """``job`` with what it has to know of ``process``: who the program runs as, and the root to be changed to.

    Both are the target's to change once it is in another user namespace: enter this before the last look at that.
    """
    asked = job.ids
    root = -1
    try:
        if USER in rows or asked.theirs is not None:
            job.ids = identity.resolve(asked, process, joins_user=USER in rows)
        if job.attributes.root >= 0:
            job.root = job.attributes.root
        elif MNT in rows and process is not None:
            job.root = root = process.open_root()
        yield
    finally:
        job.ids, job.root = asked, -1
        if root >= 0:
            os.close(root)


def _launch(job: Startable, rows: tuple[NsType, ...], steps: Sequence[Step], fork: bool) -> Launch:
    """Launch with ``steps`` and what follows from them: a fork, and a working directory below the new root."""
    job.joins = steps
    job.at_home = PID in rows or bool(job.unshare & PID.flag)
    job.fork = fork and (job.at_home or bool(job.unshare & _FOR_CHILDREN))
    job.check_cwd = MNT in rows or job.root >= 0 or job.attributes.cwd >= 0
    return (yield from _launch_in_cgroup(job, USER in rows))


def _launch_in_cgroup(job: Startable, joins_user: bool) -> Launch:
    """Born in its cgroup, a process is spared the move, for which the kernel stops all forks and exits of the system:
    some 10 ms where nobody has moved for a while. But that is judged by the credentials that it has by then.
    """
    job.born_in = None
    if job.fork and not joins_user:
        job.born_in = next((cgroup for cgroup in job.attributes.cgroups if cgroup.is_v2), None)
    try:
        return (yield from _launch_at_home(job))
    except Failed as failed:
        if job.born_in is None or failed.at != At.CLONE:
            raise
    job.born_in = None
    return (yield from _launch_at_home(job))


def _launch_at_home(job: Startable) -> Launch:
    job.go_home = False
    try:
        return (yield from job.launch())
    except Failed as failed:
        if failed.at != At.LAUNCH or failed.errno != errno.EXDEV:
            raise
    job.go_home = True
    return (yield from job.launch())
