"""What a program takes over from its target besides namespaces: environment, ids, cgroup, capabilities ...

Everything is read from the pinned process *before* joining; the target's own /proc is never trusted.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from .._engine.job import NO_ATTRIBUTES, Attributes
from .._kernel import abi, calls, capabilities, procfs
from .._kernel.nstypes import USER
from ..exceptions import JoinError, error
from . import cgroups
from .target import TARGET

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import ExitStack
    from typing import Any

    from .._kernel.nstypes import NsType
    from .process import Process


_IDS = ("user", "group", "extra_groups")
#: TARGET, or a directory of the caller's, which is opened before anything is joined.
_DIRECTORIES = ("cwd", "root")
#: Of struct nsjoin_plan, and in Attributes.capabilities.
_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


class Choice(NamedTuple):
    """What the caller asks for: of each attribute TARGET, a value, or None. ``ids`` names those that are TARGET;
    ``whole``: so is everything that is not chosen."""

    ids: frozenset[str] = frozenset()
    cgroup: Any = None
    capabilities: Any = None
    no_new_privs: Any = None
    oom_score_adj: Any = None
    lsm_label: Any = None
    env: bool = False
    cwd: Any = None
    root: Any = None
    whole: bool = False

    def of_target(self) -> list[str]:
        """Return the keywords that need a process as the target."""
        named = ["env"] if self.env else []
        named += [name for name in _DIRECTORIES if getattr(self, name) is TARGET]
        return [*named, *sorted(self.ids), *[name for name in _ATTRIBUTES if getattr(self, name) is TARGET]]


def choose(keywords: dict[str, Any], *, like_target: bool) -> Choice | None:
    """Take our keywords, and subprocess's where they are TARGET, out of ``keywords``; None if there are none.

    TypeError, ValueError.
    """
    ids = set()
    for name in _IDS:
        if keywords.get(name) is TARGET or (like_target and keywords.get(name) is None):
            keywords.pop(name, None)
            ids.add(name)
    default = TARGET if like_target else None
    values: dict[str, Any] = {}
    for name, row in _ATTRIBUTES.items():
        value = keywords.pop(name, None)
        value = default if value is None else value
        values[name] = value if value is None or value is TARGET else row.check(value)
    root = keywords.pop("root", None)
    if root is not None and not is_directory(root):
        raise TypeError(f"root is a path, the descriptor of a directory or TARGET, not {type(root).__name__}")
    if not ids and root is None and all(value is None for value in values.values()):
        return None
    return Choice(frozenset(ids), **values, root=root, whole=like_target)


def is_descriptor(value: Any) -> bool:
    """Whether it is an int, as os.chdir and os.listdir take one."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_directory(value: Any) -> bool:
    """Whether it may name a directory of the caller's or the target's."""
    return value is TARGET or is_descriptor(value) or isinstance(value, (str, bytes, os.PathLike))


# --- explicit values ----------------------------------------------------------------------------------------


def _check_cgroup(value: Any) -> str:
    path = os.fsdecode(value)
    if not path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"cgroup is the path of a cgroup as in /proc/PID/cgroup, which begins with '/', not {value!r}")
    return path


def _check_capabilities(value: Any) -> tuple[int, int, int, int, int]:
    """Return the five sets: inheritable and ambient too, since execve(2) drops the others for all but root."""
    bits = capabilities.bits(value)
    return bits, bits, bits, bits, bits


def _check_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"no_new_privs is a bool or TARGET, not {type(value).__name__}")
    return value


def _check_score(value: Any) -> bytes:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"oom_score_adj is an int or TARGET, not {type(value).__name__}")
    if not -1000 <= value <= 1000:
        raise ValueError(f"oom_score_adj is from -1000 to 1000, not {value}")
    return b"%d" % value


def _check_label(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"lsm_label is a str or TARGET, not {type(value).__name__}")
    if not value or "\0" in value:
        raise ValueError("lsm_label is not empty and has no null character")
    return value


# --- the target's own ---------------------------------------------------------------------------------------


class Theirs(NamedTuple):
    """Ids of the target as they are in the caller's user namespace; None: not to be taken over."""

    uids: tuple[int, int, int] | None
    gids: tuple[int, int, int] | None
    groups: tuple[int, ...] | None


class Taken(NamedTuple):
    """What was read: attributes, ids, and a directory that becomes the root (-1: none)."""

    attributes: Attributes = NO_ATTRIBUTES
    theirs: Theirs | None = None
    root: int = -1


NOTHING = Taken()


def read(choice: Choice, process: Process | None, wanted: tuple[NsType, ...] | None, stack: ExitStack) -> Taken:
    """Return what ``choice`` means for ``process``; descriptors are open in ``stack``.

    ValueError, NamespaceError; OSError for a directory of the caller's.
    """
    choice = choice._replace(**{name: _ours(getattr(choice, name), stack) for name in _DIRECTORIES})
    if process is None:
        if choice.of_target():
            raise ValueError(f"TARGET for {', '.join(choice.of_target())} needs a target that is a process")
        return Taken(_attributes(choice, None, {}, stack), root=_directory(choice.root, None, "root", stack))
    with process.refusals("read /proc"):
        status = _status(process)
        if choice.capabilities is TARGET:
            _check_user_namespace(process, wanted)  # when they have been read: it may leave, but not come back
        attributes = _attributes(choice, process, status, stack)
        if choice.env:
            attributes = _with_environment(attributes, process, wanted, stack)
        return Taken(attributes, _ids(choice, status), _directory(choice.root, process, "root", stack))


def _status(process: Process) -> dict[str, str]:
    lines = (line.partition(":") for line in process.read_proc("status").splitlines())
    return {name: value.strip() for name, _, value in lines}


def _check_user_namespace(process: Process, wanted: tuple[NsType, ...] | None) -> None:
    """Capabilities count in one user namespace: those that root of a container has there are none that it has here."""
    if wanted is not None and USER not in wanted and not process.shares(USER):
        raise ValueError(
            f"the capabilities of {process.describe()} count in its user namespace, which is not among namespaces="
        )


def _ids(choice: Choice, status: Mapping[str, str]) -> Theirs | None:
    if not choice.ids:
        return None
    uids = _three(status["Uid"]) if "user" in choice.ids else None
    gids = _three(status["Gid"]) if "group" in choice.ids else None
    groups = tuple(map(int, status["Groups"].split())) if "extra_groups" in choice.ids else None
    return Theirs(uids, gids, groups)


def _three(line: str) -> tuple[int, int, int]:
    real, effective, saved, _ = map(int, line.split())  # the fourth follows the effective one: setfsuid(2)
    return real, effective, saved


def _attributes(choice: Choice, process: Any, status: Mapping[str, str], stack: ExitStack) -> Attributes:
    found: dict[str, Any] = {}
    for name, row in _ATTRIBUTES.items():
        chosen = getattr(choice, name)
        if chosen is TARGET:
            found[row.field] = row.read(process, status, stack)
        elif chosen is not None:
            found[row.field] = row.given(chosen, stack)
    return Attributes(cwd=_directory(choice.cwd, process, "cwd", stack), new_keyring=choice.whole, **found)


def _with_environment(
    attributes: Attributes, process: Process, wanted: tuple[NsType, ...] | None, stack: ExitStack
) -> Attributes:
    """Open environ. That of another uid in a user namespace of the caller's is readable to its root: the joiner."""
    try:
        return attributes._replace(environ=_open(process, "environ", os.O_RDONLY, stack))
    except PermissionError:
        if (wanted is not None and USER not in wanted) or process.shares(USER):
            raise
    directory = _open(process, ".", abi.O_PATH | os.O_DIRECTORY, stack)
    return attributes._replace(environ=directory, environ_inside=True)


def _ours(chosen: Any, stack: ExitStack) -> Any:
    """Open a directory of the caller's: inside, its path may mean another one."""
    if chosen is None or chosen is TARGET:
        return chosen
    flags = abi.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    fd = os.open(".", flags, dir_fd=chosen) if is_descriptor(chosen) else os.open(chosen, flags)
    fd = calls.above_stdio(fd)
    stack.callback(os.close, fd)
    return fd


def _directory(chosen: Any, process: Any, name: str, stack: ExitStack) -> int:
    if chosen is TARGET:
        return _open(process, name, abi.O_PATH | os.O_DIRECTORY, stack)
    return -1 if chosen is None else int(chosen)


def _open(process: Process, name: str, flags: int, stack: ExitStack) -> int:
    fd = calls.above_stdio(os.open(name, flags | os.O_CLOEXEC, dir_fd=process.proc()))
    stack.callback(os.close, fd)
    return fd


def _no_new_privs(process: Process, status: Mapping[str, str]) -> bool:
    if "NoNewPrivs" not in status:
        reason = "the kernel reports no_new_privs of a process since Linux 4.10; pass True or False"
        raise error(JoinError, errno.ENOSYS, "no_new_privs", target=process.describe(), reason=reason)
    return status["NoNewPrivs"] == "1"


def _oom_score_adj(process: Process) -> bytes | None:
    """Return None if it is this process's own: writing it again may need CAP_SYS_RESOURCE."""
    theirs = process.read_proc("oom_score_adj").strip()
    return None if procfs.read("self/oom_score_adj").strip() == theirs else theirs.encode()


# --- security modules ---------------------------------------------------------------------------------------

#: Errors of reading /proc/PID/attr/current where no security module has labels.
_NO_LABELS = frozenset({errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP})
_APPARMOR = "/sys/module/apparmor/parameters/enabled"


def _own_label(process: Process) -> str | None:
    """Return the label of ``process``; None if there are no labels, or if it is this thread's too."""
    try:
        theirs = process.read_proc("attr/current")
        ours = procfs.read("thread-self/attr/current")
    except OSError as refused:
        if refused.errno in _NO_LABELS:
            return None
        raise
    return None if theirs == ours else theirs.strip("\0\n")


def _label(label: str | None) -> bytes | None:
    """Return ``label`` as /proc/self/attr/exec takes it: AppArmor's needs a command, and not the mode that it shows."""
    if label is None:
        return None
    if _has_apparmor():
        name, _, mode = label.rpartition(" (")
        label = "exec " + (name if name and mode.endswith(")") else label)
    return os.fsencode(label)


def _has_apparmor() -> bool:
    procfs.must_be_home("lsm_label", f"{_APPARMOR} is its owner's")
    try:
        with open(_APPARMOR, encoding="ascii") as file:
            return file.read().strip() == "Y"
    except OSError:  # not compiled in, or no /sys here
        return False


# --- the table ----------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """An attribute: its field of ``Attributes``, the check of a value, that value opened, and the target's own."""

    field: str
    check: Callable[[Any], Any]
    read: Callable[[Process, Mapping[str, str], ExitStack], Any]
    given: Callable[[Any, ExitStack], Any] = lambda value, _: value


#: By keyword: what TARGET can stand for, and what ``like_target=True`` sets to it where the caller passes nothing.
_ATTRIBUTES = {
    "cgroup": _Row(
        "cgroups", _check_cgroup, lambda process, _, stack: cgroups.of_process(process, stack), cgroups.of_path
    ),
    "capabilities": _Row(
        "capabilities", _check_capabilities, lambda _, status, __: tuple(int(status[name], 16) for name in _SETS)
    ),
    "no_new_privs": _Row("no_new_privs", _check_flag, lambda process, status, _: _no_new_privs(process, status)),
    "oom_score_adj": _Row("oom_score_adj", _check_score, lambda process, *_: _oom_score_adj(process)),
    "lsm_label": _Row(
        "lsm_label",
        _check_label,
        lambda process, *_: _label(_own_label(process)),
        lambda label, _: _label(label),
    ),
}
