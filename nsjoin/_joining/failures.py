"""A failed step as the exception that a caller sees: which call, which namespace, which target, and why."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from .._engine.job import At, Failed
from .._kernel.nstypes import BY_FLAG, USER
from .._target.target import TARGET
from ..exceptions import JoinError, error
from . import reasons

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .._target.target import OpenTarget
    from ..exceptions import NamespaceError
    from .select import Selection


def explain(failed: Failed, target: OpenTarget, name: Any, cwd: Any, selection: Selection | None) -> BaseException:
    """Return what to raise for ``failed``: subprocess's own exception for its own steps, JoinError for the others.

    ``name`` and ``cwd`` are the file names of subprocess's errors.
    """
    if failed.errno == 0:
        killed = Failed(failed.at, 0, errno.ECHILD)
        return _join_error(killed, target, failed.at.name.lower(), None, reasons.KILLED)
    if failed.at == At.JOIN:
        return _of_join(failed, target, selection)
    if failed.at == At.WITNESS:
        return _gone_error(failed, target, ("ioctl", "statx")[failed.index])
    at, index, number = failed.args
    keys = (at, index, number), (at, None, number), (at, index, None)
    exact = next((_EXACT[key] for key in keys if key in _EXACT), None)
    if exact is not None:
        return _join_error(failed, target, *exact)
    if failed.at in _STEPS:
        step, reason_of = _STEPS[failed.at]
        reason = reason_of(failed.errno, failed.index) if reason_of else None
        return _join_error(failed, target, step, None, reason)
    if failed.at in _CALLS:
        calls = _CALLS[failed.at]
        return _join_error(failed, target, calls[min(failed.index, len(calls) - 1)], None, None)
    if failed.at == At.CWD and cwd is TARGET:
        return _join_error(failed, target, "chdir", "mnt", reasons.THEIRS)
    file = {At.EXEC: name, At.CWD: cwd}.get(failed.at)
    text = os.strerror(failed.errno)
    return OSError(failed.errno, text) if file is None else OSError(failed.errno, text, file)


def _of_join(failed: Failed, target: OpenTarget, selection: Selection | None) -> NamespaceError:
    if selection is None or selection.by_pidfd:
        return _gone_error(failed, target, "setns")
    row = BY_FLAG[selection.joins[failed.index].nstypes]
    culprit = next((namespace for namespace in selection.namespaces if namespace.nstype == row.name), None)
    if culprit is None:  # a user namespace on the way
        return _join_error(failed, target, "setns", row.name, None)
    reason = reasons.of_setns(failed.errno, culprit, with_user=USER in selection.rows)
    return _join_error(failed, target, "setns", row.name, reason)


#: (step, index, errno), None for any -> the system call, the type of namespace, and the reason.
_EXACT: dict[tuple[At, int | None, int | None], tuple[str, str | None, str | None]] = {
    (At.ROOT, 0, None): ("fchdir", "mnt", None),
    (At.ROOT, 1, errno.EPERM): ("chroot", "mnt", reasons.NEEDS_CHROOT),
    (At.ROOT, 1, None): ("chroot", "mnt", None),
    (At.CLONE, None, errno.ENOMEM): ("clone", "pid", reasons.DEAD_PID_NAMESPACE),
    (At.CWD, 1, None): ("chdir", "mnt", reasons.DELETED),
    (At.CWD, 0, errno.EXDEV): ("chdir", "mnt", reasons.OUTSIDE),
    (At.LAUNCH, 0, errno.EACCES): ("execveat", None, reasons.NOT_EXECUTED),
    (At.LAUNCH, 0, errno.ENOENT): ("execveat", None, reasons.INTERPRETED),
    (At.UNSHARE, 1, errno.EINVAL): ("mount", "mnt", reasons.NO_MOUNT_POINT),
    (At.UNSHARE, 1, None): ("mount", "mnt", None),
}

#: Steps that are reported under a name of their own, and the function of (errno, index) that returns the reason.
_STEPS: dict[At, tuple[str, Callable[[int, int], str | None] | None]] = {
    At.ENV: ("environ", reasons.of_environ),
    At.CGROUP: ("cgroup", reasons.of_cgroup),
    At.OOM_SCORE_ADJ: ("oom_score_adj", reasons.of_score),
    At.BOUNDING: ("capabilities", reasons.of_capability),
    At.CAPABILITIES: ("capabilities", reasons.of_capability),
    At.NO_NEW_PRIVS: ("no_new_privs", None),
    At.UNSHARE: ("unshare", reasons.of_unshare),
    At.LSM_LABEL: ("lsm_label", reasons.of_label),
}


#: The system calls of steps for which subprocess has no error of its own, by index.
_CALLS = {
    At.LAUNCH: ("execveat", "fcntl"),
    At.PLAN: ("fcntl",),
    At.HIDE: ("prctl",),
    At.CLOSE: ("prlimit",),  # the last of three ways to close: no other follows
    At.GROUPS: ("setgroups",),
    At.UMASK: ("umask",),
    At.IDS: ("setgroups", "setresgid", "setresuid"),
    At.KEYRING: ("keyctl",),
    At.CLONE: ("clone",),
}


def _gone_error(failed: Failed, target: OpenTarget, step: str) -> NamespaceError:
    """Return the error of a call with the target's pidfd, as TargetGoneError if the target has ended meanwhile."""
    gone = target.process.gone_reason() if target.process is not None else None
    if gone:
        failed = Failed(failed.at, failed.index, errno.ESRCH)
    return _join_error(failed, target, step, None, gone)


def _join_error(
    failed: Failed, target: OpenTarget, step: str, nstype: str | None, reason: str | None
) -> NamespaceError:
    return error(JoinError, failed.errno, step, nstype=nstype, target=target.describe(), reason=reason)
