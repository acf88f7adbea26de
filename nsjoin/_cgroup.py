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
    device: int  # st_dev of everything in this hierarchy
    controllers: frozenset[str]  # empty: version 2
    root: str
    point: str

    def below(self, path: str) -> str | None:
        """The cgroup ``path`` as seen from the mount point; None if it is not a part of what can be seen there."""
        root = self.root.rstrip("/")
        below = path[len(root) :]
        # "/../x" is outside of our cgroup namespace: cgroup_namespaces(7). In the file system it would be another place
        if not (path + "/").startswith(root + "/") or ".." in below.split("/"):
            return None
        return below.strip("/") or "." if self._is_seen() else None

    def _is_seen(self) -> bool:
        """Whether its mount point does not lie below another mount."""
        try:
            return os.stat(self.point).st_dev == self.device
        except OSError:
            return False


def of_process(process: Process, stack: ExitStack) -> list[Cgroup]:
    """The cgroups of ``process`` that are not this thread's own, open in ``stack``. JoinError, OSError of /proc."""
    own = _paths(_procfs.read("thread-self/cgroup"))
    theirs = _paths(process.read_proc("cgroup"))
    other = {controllers: path for controllers, path in theirs.items() if own.get(controllers) != path}
    if not other:
        return []
    mounts = _mounts()
    return [
        _open(*_find(mounts, controllers, path, process), stack)
        for controllers, path in other.items()
        if not _is_only_theirs(controllers, mounts)
    ]


def _is_only_theirs(controllers: frozenset[str], mounts: list[_Mount]) -> bool:
    """Whether this is a hierarchy of version 1 that has a name but no controller, so that it limits nothing, and that
    is mounted nowhere here: systemd-nspawn makes name=systemd for a container where the host has version 2 only.
    """
    is_bare = bool(controllers) and all(controller.startswith("name=") for controller in controllers)
    return is_bare and not any(controllers <= mount.controllers for mount in mounts)


def of_path(path: str, stack: ExitStack) -> list[Cgroup]:
    """The cgroup ``path`` in every hierarchy that has it, open in ``stack``; JoinError (ENOENT) if none has."""
    found: dict[frozenset[str], Cgroup] = {}
    for mount in _mounts():
        below = mount.below(path)
        if below is not None and mount.controllers not in found:
            try:
                found[mount.controllers] = _open(mount, below, stack)
            except JoinError as refused:
                if refused.errno not in (errno.ENOENT, errno.ENOTDIR):
                    raise
    if not found:
        raise _error(errno.ENOENT, path, "no mounted cgroup hierarchy has it")
    return list(found.values())


def _paths(text: str) -> dict[frozenset[str], str]:
    fields = (line.split(":", 2) for line in text.splitlines())
    return {frozenset(filter(None, controllers.split(","))): path for _, controllers, path in fields}


def _mounts() -> list[_Mount]:
    """Where cgroup hierarchies are mounted, some of them more than once: proc_pid_mountinfo(5)."""
    found: dict[str, _Mount] = {}
    for line in _procfs.read("thread-self/mountinfo").splitlines():
        before, _, behind = line.partition(" - ")
        kind, _, options = behind.split(" ", 2)
        device, root, point = (_unescape(field) for field in before.split(" ")[2:5])
        if kind in ("cgroup", "cgroup2"):
            controllers = frozenset(options.split(",")) if kind == "cgroup" else frozenset()
            major, minor = map(int, device.split(":"))
            # what comes later lies above what was there
            found[point] = _Mount(os.makedev(major, minor), controllers, root, point)
    return list(found.values())


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def _find(mounts: list[_Mount], controllers: frozenset[str], path: str, process: Process) -> tuple[_Mount, str]:
    for mount in mounts:
        # the options of a mount of version 1 name its controllers among others: rw, xattr, release_agent=...
        if bool(mount.controllers) == bool(controllers) and controllers <= mount.controllers:
            below = mount.below(path)
            if below is not None:
                return mount, below
    hierarchy = ",".join(sorted(controllers)) or "cgroup2"
    raise _error(
        errno.ENOENT, path, f"the hierarchy {hierarchy} of {process.words()} is not mounted here, or not that part"
    )


_DIRECTORY = _shim.O_PATH | os.O_DIRECTORY
#: No FIFO, and no terminal, that lies where cgroup.procs is looked for holds us up.
_PROCS = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY


def _open(mount: _Mount, below: str, stack: ExitStack) -> Cgroup:
    """The cgroup that is ``below`` the mount point, open in ``stack``. JoinError."""
    place = os.path.normpath(f"{mount.point}/{below}")
    try:
        point = os.open(mount.point, _DIRECTORY | os.O_CLOEXEC)
        try:
            directory = _open_below(mount, point, below, _DIRECTORY, stack)
        finally:
            os.close(point)
        procs = _open_below(mount, directory, "cgroup.procs", _PROCS, stack)
    except OSError as refused:
        raise _error(refused.errno or 0, place, refusal(refused.errno)) from None
    return Cgroup(directory, procs, not mount.controllers)


def _open_below(mount: _Mount, directory: int, name: str, flags: int, stack: ExitStack) -> int:
    """Open ``name`` in ``stack``, on the mount of ``directory`` and on no other: EXDEV. Whoever may mount here, as root
    of a container whose mounts come to us, could have put a file of his own, or one that never answers, on a cgroup."""
    try:
        fd = _shim.openat2_on_mount(directory, os.fsencode(name), flags | os.O_CLOEXEC)
    except OSError as refused:
        if refused.errno not in (errno.ENOSYS, errno.EPERM):  # before Linux 5.6, or a seccomp filter
            raise
        # before it is opened too: of a device that alone may do something
        _check(mount, os.stat(name, dir_fd=directory, follow_symlinks=False))
        fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    fd = _shim.above_stdio(fd)
    stack.callback(os.close, fd)
    _check(mount, os.fstat(fd))
    return fd


def _check(mount: _Mount, status: os.stat_result) -> None:
    """OSError (EXDEV) for a file that is not of the cgroup hierarchy."""
    if status.st_dev != mount.device:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


#: What the kernel means where a process may not move into a cgroup.
_REFUSALS = {
    errno.ENOENT: "this cgroup has been removed",
    errno.ENODEV: "this cgroup has been removed",
    errno.EBUSY: "a cgroup whose controllers are enabled for its children takes no processes itself",
    errno.EOPNOTSUPP: "this cgroup is threaded, or an invalid domain, and takes no processes",
    errno.EACCES: "needs write permission for cgroup.procs there and in the nearest common ancestor (cgroups(7))",
    errno.EPERM: "needs write permission for cgroup.procs there and in the nearest common ancestor (cgroups(7))",
    errno.EXDEV: "something else is mounted there, on the cgroup hierarchy",
    errno.EAGAIN: "pids.max of the cgroup, or another limit, is reached",
}


def refusal(number: int | None) -> str | None:
    """The reason for an errno of opening or writing cgroup.procs."""
    return _REFUSALS.get(number or 0)


def _error(number: int, path: str, reason: str | None) -> OSError:
    return error(JoinError, number, "cgroup", target=path, reason=reason)
