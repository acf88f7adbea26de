"""The cgroups of a process, found and opened: where ``cgroup=`` moves a program to. cgroups(7).

A path in /proc/PID/cgroup is relative to the root of our cgroup namespace, one for each hierarchy (version 1 has
several); where that hierarchy is mounted, /proc/self/mountinfo tells.
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from . import _procfs, _shim
from ._launch import Cgroup
from .exceptions import JoinError, error

if TYPE_CHECKING:
    from contextlib import ExitStack

    from ._process import Process


class _Mount(NamedTuple):
    controllers: frozenset[str]  # empty: version 2
    root: str
    point: str

    def directory(self, path: str) -> str | None:
        """Where the cgroup ``path`` is in our file system; None if it is not below what is mounted."""
        root = self.root.rstrip("/")
        below = path[len(root) :]
        # "/../x" is outside of our cgroup namespace: cgroup_namespaces(7). In the file system it would be another place
        if not (path + "/").startswith(root + "/") or ".." in below.split("/"):
            return None
        return self.point + below


def of_process(process: Process, stack: ExitStack) -> list[Cgroup]:
    """The cgroups of ``process`` that are not this thread's own, open in ``stack``. JoinError, OSError of /proc."""
    own = _paths(_procfs.read("thread-self/cgroup"))
    theirs = _paths(process.read_proc("cgroup"))
    other = {controllers: path for controllers, path in theirs.items() if own.get(controllers) != path}
    if not other:
        return []
    mounts = _mounts()
    return [_open(_find(mounts, controllers, path, process), stack) for controllers, path in other.items()]


def of_path(path: str, stack: ExitStack) -> list[Cgroup]:
    """The cgroup ``path`` in every hierarchy that has it, open in ``stack``; JoinError (ENOENT) if none has."""
    found: dict[frozenset[str], tuple[str, bool]] = {}
    for mount in _mounts():
        folder = mount.directory(path)
        if folder is not None and os.path.isdir(folder):
            found.setdefault(mount.controllers, (folder, not mount.controllers))
    if not found:
        raise _error(errno.ENOENT, path, "no mounted cgroup hierarchy has it")
    return [_open(place, stack) for place in found.values()]


def _paths(text: str) -> dict[frozenset[str], str]:
    fields = (line.split(":", 2) for line in text.splitlines())
    return {frozenset(filter(None, controllers.split(","))): path for _, controllers, path in fields}


def _mounts() -> list[_Mount]:
    """Where cgroup hierarchies are mounted, some of them more than once: proc_pid_mountinfo(5)."""
    found: dict[str, _Mount] = {}
    for line in _procfs.read("thread-self/mountinfo").splitlines():
        before, _, behind = line.partition(" - ")
        kind, _, options = behind.split(" ", 2)
        root, point = (_unescape(field) for field in before.split(" ")[3:5])
        found.pop(point, None)  # what comes later lies above it: a path leads there
        if kind in ("cgroup", "cgroup2"):
            controllers = frozenset(options.split(",")) if kind == "cgroup" else frozenset()
            found[point] = _Mount(controllers, root, point)
    return list(found.values())


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def _find(mounts: list[_Mount], controllers: frozenset[str], path: str, process: Process) -> tuple[str, bool]:
    for mount in mounts:
        # the options of a mount of version 1 name its controllers among others: rw, xattr, release_agent=...
        if bool(mount.controllers) == bool(controllers) and controllers <= mount.controllers:
            folder = mount.directory(path)
            if folder is not None:
                return folder, not controllers
    hierarchy = ",".join(sorted(controllers)) or "cgroup2"
    raise _error(
        errno.ENOENT, path, f"the hierarchy {hierarchy} of {process.words()} is not mounted here, or not that part"
    )


def _open(place: tuple[str, bool], stack: ExitStack) -> Cgroup:
    folder, is_v2 = place
    try:
        directory = _shim.above_stdio(os.open(folder, _shim.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        stack.callback(os.close, directory)
        procs = _shim.above_stdio(os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory))
        stack.callback(os.close, procs)
    except OSError as refused:
        raise _error(refused.errno or 0, folder, refusal(refused.errno)) from None
    return Cgroup(directory, procs, is_v2)


#: What the kernel means where a process may not move into a cgroup.
_REFUSALS = {
    errno.ENOENT: "this cgroup has been removed",
    errno.ENODEV: "this cgroup has been removed",
    errno.EBUSY: "a cgroup whose controllers are enabled for its children takes no processes itself",
    errno.EOPNOTSUPP: "this cgroup is threaded, or an invalid domain, and takes no processes",
    errno.EACCES: "needs write permission for cgroup.procs there and in the nearest common ancestor (cgroups(7))",
    errno.EPERM: "needs write permission for cgroup.procs there and in the nearest common ancestor (cgroups(7))",
    errno.EAGAIN: "pids.max of the cgroup, or another limit, is reached",
}


def refusal(number: int | None) -> str | None:
    """The reason for an errno of opening or writing cgroup.procs."""
    return _REFUSALS.get(number or 0)


def _error(number: int, path: str, reason: str | None) -> OSError:
    return error(JoinError, number, "cgroup", target=path, reason=reason)
