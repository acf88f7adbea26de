"""Starts a job inside a target: finds out what there is to join, has the joiner do it, and tells what went wrong."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from . import _capabilities, _cgroup, _identity, _like, _ownership, _plan, _reason, _shim
from ._launch import At, Expired, Failed, Witness
from ._namespace import Namespace
from ._nstype import BY_FLAG, BY_NAME, NSTYPES, mask
from ._process import FIRST_USER_NAMESPACE, missing_type, own_inodes
from ._target import TARGET, OpenTarget
from .exceptions import JoinError, error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Protocol

    from ._launch import Attributes, Cgroup, Ids, Launch
    from ._nstype import NsType
    from ._target import Openable, Target
    from .exceptions import NamespaceError

    class Startable(Protocol):
        """A job for the joiner, or for a forked child."""

        joins: Sequence[_plan.Step]
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


MNT, PID, USER = BY_NAME["mnt"], BY_NAME["pid"], BY_NAME["user"]

#: unshare(2) makes these for children only.
_FOR_CHILDREN = PID.flag | BY_NAME["time"].flag

#: To join one's own user namespace is EINVAL for all of the call, one's own mnt moves root and working directory.
_NEVER_ONES_OWN = (USER, MNT)


def start(
    job: Startable,
    checked: Openable,
    wanted: tuple[NsType, ...] | None,
    fork: bool,
    name: Any = None,
    cwd: Any = None,
    choice: _like.Choice | None = None,
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
    choice: _like.Choice | None,
    *,
    may_be_empty: bool,
) -> Launch:
    """``may_be_empty``: the environment of the target; Failed at ENV with EAGAIN where it is and may not."""
    with ExitStack() as stack:
        if choice is not None:
            attributes, theirs = _like.read(choice, target.process, wanted, stack)
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
        raise expired from _cgroup.why_it_hangs(job.attributes.cgroups)


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
        steps = [_plan.Step(process.pidfd, mask(rows))] if rows else []
        try:
            with _prepared(job, process, rows):
                return (yield from _launch(job, rows, steps, fork))
        except Failed as failed:
            if failed.at != At.JOIN or failed.errno not in _shim.TRY_DESCRIPTORS:
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


def _has_left(process: Target, namespaces: Sequence[Namespace]) -> bool:
    """Whether the target is in another user namespace than ours, or the one in ``namespaces``.

    Who leaves one goes deeper, and never comes back: if it has not left, all that has been read and opened of it
    before belongs to there or further out, and not to where the target is root by its own doing.
    """
    opened = next((namespace for namespace in namespaces if namespace.nstype == USER.name), None)
    return not process.shares(USER) if opened is None else process.inodes((USER,))[0] != opened.id.ino


def _start_by_descriptors(job: Startable, target: OpenTarget, namespaces: Sequence[Namespace], fork: bool) -> Launch:
    rows = _without_new_pid(job, tuple(BY_NAME[namespace.nstype] for namespace in namespaces))
    namespaces = [namespace for namespace in namespaces if BY_NAME[namespace.nstype] in rows]
    with ExitStack() as stack:
        steps = _plan.order(_ownership.wanted(namespaces, stack), _ownership.caller()) if namespaces else []
        try:
            return (yield from _launch(job, rows, steps, fork))
        except Failed as failed:
            if failed.at != At.JOIN or failed.errno == 0:
                raise
            nstype = BY_FLAG[steps[failed.index].nstypes].name
            culprit = next(namespace for namespace in namespaces if namespace.nstype == nstype)
            reason = _reason.of_setns(failed.errno, culprit, with_user=USER in rows)
            raise _join_error(failed, target, "setns", nstype, reason) from None


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
        is_admin, ours, theirs = _shim.look(process.pidfd, [row.get for row in _NEVER_ONES_OWN])
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
            job.ids = _identity.resolve(asked, process, joins_user=USER in rows)
        if job.attributes.root >= 0:
            job.root = job.attributes.root
        elif MNT in rows and process is not None:
            job.root = root = process.open_root()
        yield
    finally:
        job.ids, job.root = asked, -1
        if root >= 0:
            os.close(root)


def _launch(job: Startable, rows: tuple[NsType, ...], steps: Sequence[_plan.Step], fork: bool) -> Launch:
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


# --- errors -------------------------------------------------------------------------------------------------


def _explain(failed: Failed, target: OpenTarget, name: Any, cwd: Any) -> BaseException:
    """What to raise for ``failed``: subprocess's own exception for its own steps, JoinError for ours."""
    if failed.errno == 0:
        reason = "the new process was killed before it could run the program"
        return _join_error(Failed(failed.at, 0, errno.ECHILD), target, failed.at.name.lower(), None, reason)
    if failed.at == At.JOIN:
        return _gone_error(failed, target, "setns")
    if failed.at == At.WITNESS:
        return _gone_error(failed, target, ("ioctl", "statx")[failed.index])
    if failed.at == At.ROOT:
        step = ("fchdir", "chroot")[failed.index]
        needs = "needs CAP_SYS_CHROOT" if (step, failed.errno) == ("chroot", errno.EPERM) else None
        return _join_error(failed, target, step, "mnt", needs)
    if failed.at == At.CLONE and failed.errno == errno.ENOMEM:
        return _join_error(failed, target, "clone", "pid", _reason.DEAD_PID_NAMESPACE)
    if failed.at == At.CWD and (failed.index == 1 or failed.errno == errno.EXDEV or cwd is TARGET):
        reason = _DELETED if failed.index == 1 else _OUTSIDE if failed.errno == errno.EXDEV else _THEIRS
        return _join_error(failed, target, "chdir", "mnt", reason)
    if failed.at == At.UNSHARE and failed.index == 1:
        return _join_error(failed, target, "mount", "mnt", _NO_MOUNT_POINT if failed.errno == errno.EINVAL else None)
    if failed.at in _STEPS:
        step, explain = _STEPS[failed.at]
        return _join_error(failed, target, step, None, explain(failed) if explain else None)
    if failed.at in _CALLS:
        calls = _CALLS[failed.at]
        why = _JOINER_REASONS.get(failed.errno) if (failed.at, failed.index) == (At.LAUNCH, 0) else None
        return _join_error(failed, target, calls[min(failed.index, len(calls) - 1)], None, why)
    file = {At.EXEC: name, At.CWD: cwd}.get(failed.at)
    if file is None:
        return OSError(failed.errno, os.strerror(failed.errno))
    return OSError(failed.errno, os.strerror(failed.errno), file)


#: The system calls of steps for which subprocess has no error of its own; of ids, by index.
_CALLS = {
    At.LAUNCH: ("execveat", "fcntl"),
    At.PLAN: ("fcntl",),
    At.HIDE: ("prctl",),
    At.CLOSE: ("prlimit",),  # the last of three ways, and the only one that nothing comes after
    At.GROUPS: ("setgroups",),
    At.UMASK: ("umask",),
    At.IDS: ("setgroups", "setresgid", "setresuid"),
    At.KEYRING: ("keyctl",),
    At.CLONE: ("clone",),
}
#: Why the joiner's file is not executed.
_JOINER_REASONS = {
    errno.EACCES: "neither a memfd (vm.memfd_noexec, or a security module) nor a temporary file may be executed here: "
    "set TMPDIR to a folder on a file system that is not mounted noexec",
    errno.ENOENT: "an interpreter in /proc/sys/fs/binfmt_misc takes all programs of this machine, and it cannot be "
    "given the joiner, which is a file without a name",
}
_NO_MOUNT_POINT = "the program's root directory is no mount point, so that its mounts cannot be made private"
_DELETED = (
    "this directory has been deleted, and where it was is not below the target's root, so it could be a way out of it: "
    "name another one with cwd="
)
_THEIRS = "this is the target's own working directory; cwd= names another one"
_OUTSIDE = "this directory is not below the target's root, so it would be a way out of it"


def _of_environ(failed: Failed) -> str | None:
    return "it is longer than what execve(2) takes" if failed.errno == errno.E2BIG else None


#: Indices of the steps of capabilities besides -1 and the numbers of capabilities: what securebits may forbid.
_BY_SECUREBITS, _AMBIENT = -2, 64


def _of_capability(failed: Failed) -> str | None:
    if failed.errno != errno.EPERM:
        return None
    if failed.index == _BY_SECUREBITS or failed.index >= _AMBIENT:
        return "securebits forbid it: KEEP_CAPS_LOCKED or NO_CAP_AMBIENT_RAISE (capabilities(7))"
    if failed.index < 0:
        return "only what is permitted can be made inheritable, and what is in the bounding set (capabilities(7))"
    name = _capabilities.name_of(failed.index)
    return f"{name}: only CAP_SETPCAP drops a capability from the bounding set, and nothing gives one that we lack"


def _of_cgroup(failed: Failed) -> str | None:
    return _cgroup.refusal(failed.errno)


def _of_unshare(failed: Failed) -> str | None:
    return _UNSHARE_REASONS.get(failed.errno)


_UNSHARE_REASONS = {
    errno.EPERM: "needs CAP_SYS_ADMIN in the user namespace that the program is in",
    errno.ENOSPC: "a limit in /proc/sys/user, of this or an outer user namespace, or the depth of 32 is reached",
    errno.EINVAL: "this kernel lacks one of these types",
}


def _of_score(failed: Failed) -> str | None:
    if failed.errno in (errno.EACCES, errno.EPERM):
        return "to lower it needs CAP_SYS_RESOURCE"
    return _of_proc(failed)


def _of_label(failed: Failed) -> str | None:
    reason = "no security module here gives labels" if failed.errno in (errno.EINVAL, errno.ENOENT) else None
    return _of_proc(failed) or reason


def _of_proc(failed: Failed) -> str | None:
    return "/proc is not mounted here" if failed.errno == errno.ENOENT and not os.path.exists("/proc/self") else None


#: The steps by which a program takes after its target: what they are called, and why they fail.
_STEPS: dict[At, tuple[str, Callable[[Failed], str | None] | None]] = {
    At.ENV: ("environ", _of_environ),
    At.CGROUP: ("cgroup", _of_cgroup),
    At.OOM_SCORE_ADJ: ("oom_score_adj", _of_score),
    At.BOUNDING: ("capabilities", _of_capability),
    At.CAPABILITIES: ("capabilities", _of_capability),
    At.NO_NEW_PRIVS: ("no_new_privs", None),
    At.UNSHARE: ("unshare", _of_unshare),
    At.LSM_LABEL: ("lsm_label", _of_label),
}


def _gone_error(failed: Failed, target: OpenTarget, step: str) -> NamespaceError:
    """A call with the target's pidfd has failed; setns(2) for no reason for which descriptors were tried as well."""
    gone = target.process.gone_reason() if target.process is not None else None
    if gone:
        failed = Failed(failed.at, failed.index, errno.ESRCH)
    return _join_error(failed, target, step, None, gone)


def _join_error(
    failed: Failed, target: OpenTarget, step: str, nstype: str | None, reason: str | None
) -> NamespaceError:
    return error(JoinError, failed.errno, step, nstype=nstype, target=target.words(), reason=reason)
