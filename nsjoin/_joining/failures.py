"""TODO."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from .._engine.job import At, Failed
from .._kernel import capabilities
from .._target import cgroups
from .._target.target import TARGET
from ..exceptions import JoinError, error
from . import reasons

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .._target.target import OpenTarget
    from ..exceptions import NamespaceError


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
        return _join_error(failed, target, "clone", "pid", reasons.DEAD_PID_NAMESPACE)
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
    name = capabilities.name_of(failed.index)
    return f"{name}: only CAP_SETPCAP drops a capability from the bounding set, and nothing gives one that we lack"


def _of_cgroup(failed: Failed) -> str | None:
    return cgroups.refusal(failed.errno)


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
