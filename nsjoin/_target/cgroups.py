"""The cgroups of a process, found and opened: where ``cgroup=`` moves a program to. cgroups(7).

A path in /proc/PID/cgroup is relative to the root of the caller's cgroup namespace, one for each hierarchy (version 1
has several); /proc/self/mountinfo has the place where that hierarchy is mounted.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple

from .._engine.job import Cgroup
from .._kernel import abi, calls, procfs
from ..exceptions import JoinError, error, refusals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..exceptions import NamespaceError
    from .process import Process


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
    """Return the cgroups of ``process`` that this thread is not in, open in ``stack``. JoinError, OSError of /proc."""
    own = _paths(procfs.read("thread-self/cgroup"))
    theirs = _paths(process.read_proc("cgroup"))
    other = {controllers: path for controllers, path in theirs.items() if own.get(controllers) != path}
    if not other:
        return []
    mounts = _mounts()
    return [
        _open(*_find(mounts, controllers, path, process.describe()), stack)
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
    """Return the cgroup ``path`` in every hierarchy that has it, open in ``stack``; JoinError (ENOENT) if none has."""
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
    for line in procfs.read("thread-self/mountinfo").splitlines():
        before, _, behind = line.partition(" - ")
        kind, _, options = behind.split(" ", 2)
        device, root, point = (_unescape(field) for field in before.split(" ")[2:5])
        if kind in ("cgroup", "cgroup2"):
            controllers = frozenset(options.split(",")) if kind == "cgroup" else frozenset()
            major, minor = map(int, device.split(":"))
            # a later mount covers an earlier one
            found[point] = _Mount(os.makedev(major, minor), controllers, root, point)
    return list(found.values())


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def _find(mounts: list[_Mount], controllers: frozenset[str], path: str, name: str) -> tuple[_Mount, str]:
    for mount in mounts:
        # the options of a mount of version 1 name its controllers among others: rw, xattr, release_agent=...
        if bool(mount.controllers) == bool(controllers) and controllers <= mount.controllers:
            below = mount.below(path)
            if below is not None:
                return mount, below
    hierarchy = ",".join(sorted(controllers)) or "cgroup2"
    raise _error(errno.ENOENT, path, f"the hierarchy {hierarchy} of {name} is not mounted here, or not that part")


_DIRECTORY = abi.O_PATH | os.O_DIRECTORY
#: A FIFO or a terminal in the place of cgroup.procs must not block.
_PROCS = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY


def _open(mount: _Mount, below: str, stack: ExitStack) -> Cgroup:
    """The cgroup that is ``below`` the mount point, open in ``stack``. JoinError, also where it is frozen."""
    with refusals("cgroup", kind=JoinError, target=_place(mount, below), reason=refusal):
        opened = _open_even_if_frozen(mount, below, stack)
        held_up = _frozen(opened)
    if held_up:
        raise held_up
    return opened


def _open_even_if_frozen(mount: _Mount, below: str, stack: ExitStack) -> Cgroup:
    directory, procs = _open_procs(mount, below, stack)
    return Cgroup(directory, procs, not mount.controllers, _place(mount, below), _open_home(mount, stack))


def _place(mount: _Mount, below: str) -> str:
    return os.path.normpath(f"{mount.point}/{below}")


def _open_procs(mount: _Mount, below: str, stack: ExitStack) -> tuple[int, int]:
    """Open the directory of a cgroup and its file cgroup.procs. OSError."""
    point = os.open(mount.point, _DIRECTORY | os.O_CLOEXEC)
    try:
        directory = _open_below(mount, point, below, _DIRECTORY, stack)
    finally:
        os.close(point)
    return directory, _open_below(mount, directory, "cgroup.procs", _PROCS, stack)


def _open_home(mount: _Mount, stack: ExitStack) -> int:
    """``Cgroup.home``; -1 too where our own cgroup cannot be seen, or may not be written to."""
    if "freezer" not in mount.controllers:
        return -1
    paths = _paths(procfs.read("thread-self/cgroup")).items()
    own = next((path for controllers, path in paths if "freezer" in controllers), None)
    below = mount.below(own) if own else None
    try:
        return -1 if below is None else _open_procs(mount, below, stack)[1]
    except OSError:
        return -1


def _open_below(mount: _Mount, directory: int, name: str, flags: int, stack: ExitStack) -> int:
    """Open ``name`` in ``stack``, on the mount of ``directory`` and on no other: EXDEV. Whoever may mount here, as root
    of a container whose mounts come to us, could have put a file of his own, or one that never answers, on a cgroup."""
    fd = calls.above_stdio(_open_in(mount.device, directory, name, flags))
    stack.callback(os.close, fd)
    _check(mount.device, os.fstat(fd))
    return fd


def _open_in(device: int, directory: int, name: str, flags: int) -> int:
    try:
        return calls.openat2_on_mount(directory, os.fsencode(name), flags | os.O_CLOEXEC)
    except OSError as refused:
        if not abi.lacks("openat2", refused):
            raise
    # before it is opened too: of a device that alone may do something
    _check(device, os.stat(name, dir_fd=directory, follow_symlinks=False))
    return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)


def _check(device: int, status: os.stat_result) -> None:
    """OSError (EXDEV) for a file that is not of the cgroup hierarchy."""
    if status.st_dev != device:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))


# --- frozen cgroups -----------------------------------------------------------------------------------------

#: What moves into one stops there, the joiner too, and of version 1 it cannot even be killed.
_FROZEN = (
    "the cgroup is frozen, and the program would be as well: thaw it (resume or unpause the container), or name "
    "another one with cgroup="
)


def why_it_hangs(cgroups: Sequence[Cgroup]) -> NamespaceError | None:
    """Return the error for the first of these that is frozen by now, None if none is."""
    for cgroup in cgroups:
        try:
            frozen = _frozen(cgroup)
        except OSError:  # it has been removed
            continue
        if frozen:
            return frozen
    return None


def of_child(pid: int, stack: ExitStack) -> list[Cgroup]:
    """Return the cgroups in which a child of this process may be frozen, as far as they are visible."""
    try:
        own, theirs = _paths(procfs.read("thread-self/cgroup")), _paths(procfs.read(f"{pid}/cgroup"))
        other = {controllers: path for controllers, path in theirs.items() if own.get(controllers) != path}
        mounts = _mounts() if other else []
    except OSError:  # no /proc here, or it has ended
        return []
    found = []
    for controllers, path in other.items():
        with suppress(OSError):
            found.append(_open_even_if_frozen(*_find(mounts, controllers, path, f"process {pid}"), stack))
    return found


def _frozen(cgroup: Cgroup) -> NamespaceError | None:
    """Return the error if this cgroup is frozen, or about to be. OSError."""
    is_frozen = _is_frozen_v2 if cgroup.is_v2 else _is_frozen_v1
    return _error(errno.EBUSY, cgroup.place, _FROZEN) if is_frozen(cgroup.directory) else None


def _is_frozen_v1(directory: int) -> bool:
    """FROZEN or FREEZING, which it is as well if one above it is: freezer-subsystem.rst."""
    return _read_in(directory, "freezer.state") not in ("", "THAWED")


def _is_frozen_v2(directory: int) -> bool:
    """Linux 5.2. The event comes when the slowest process has stopped; a process that joins before that stops too."""
    return "frozen 1" in _read_in(directory, "cgroup.events").splitlines() or _is_to_be_frozen(directory)


def _is_to_be_frozen(directory: int) -> bool:
    """Whether cgroup.freeze says so, here or in a cgroup above, as far as that is mounted."""
    device = os.fstat(directory).st_dev
    with ExitStack() as stack:
        while True:
            if _read_in(directory, "cgroup.freeze") == "1":
                return True
            above = os.open("..", _DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
            stack.callback(os.close, above)
            if os.fstat(above).st_dev != device or os.path.sameopenfile(above, directory):
                return False
            directory = above


def _read_in(directory: int, name: str) -> str:
    """Return the text of a file of a cgroup; empty if this one has no such file."""
    try:
        fd = _open_in(os.fstat(directory).st_dev, directory, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return ""
    with open(fd, encoding="ascii") as file:
        return file.read().strip()


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
    """Return the reason for an errno of opening or writing cgroup.procs."""
    return _REFUSALS.get(number or 0)


def _error(number: int, path: str, reason: str | None) -> NamespaceError:
    return error(JoinError, number, "cgroup", target=path, reason=reason)
