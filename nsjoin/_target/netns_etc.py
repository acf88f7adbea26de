"""What ``ip netns exec`` adds to a network namespace: its /sys, and the files of /etc/netns/NAME over those of /etc.

Both need a mount namespace: a new one, a copy of the caller's that receives its mounts, made in a thread that then
ends. No process is needed, and only the descriptor is left.
"""

from __future__ import annotations

import errno
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING

from .._engine import stays
from .._kernel import abi, calls
from .._kernel.nstypes import MNT, NET, USER
from .._kernel.thread import home, own_pid_namespace_is_left
from ..exceptions import JoinError, NamespaceError, error, refusals
from . import pins
from .namespace import Namespace, describe, namespace_of
from .target import OpenTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from typing import Any

    from .._kernel.nstypes import NsType
    from .target import Checked


class WithEtc:
    """A target with a mount namespace that is made when it is opened, and ends with its last user."""

    def __init__(self, checked: Checked, wanted: tuple[NsType, ...] | None) -> None:
        if wanted is not None and (NET not in wanted or MNT in wanted):
            raise ValueError("netns_etc is for joining net, and instead of joining mnt")
        if not isinstance(checked, tuple) and (wanted is None or USER in wanted):
            raise ValueError("netns_etc of a process: name the types to join, net among them and user not")
        self._checked = checked
        self._rows = wanted or ()
        self.wanted = None if wanted is None else (*wanted, MNT)

    def open(self, own: Callable[[Any], Any]) -> tuple[Namespace, ...]:
        opened = own(OpenTarget(self._checked))
        namespaces = opened.namespaces
        if opened.process is not None:
            namespaces = tuple(own(namespace_of(opened.process, row)) for row in self._rows)
        for index, net in enumerate(namespaces):
            if net.nstype == "net":
                path = self._checked[index] if isinstance(self._checked, tuple) else None
                return (*namespaces, own(make(net, _name(net, path))))
        raise ValueError("netns_etc is for joining net, and the target has no net namespace")


def _name(net: Namespace, path: object) -> str:
    """Return the name in ``ip netns``: by the path, or as ``ip netns identify``, the first that is this namespace."""
    directory = os.path.realpath(pins.NETNS_DIRECTORY)
    if isinstance(path, (str, bytes)):
        folder, name = os.path.split(os.fsdecode(path))
        if os.path.realpath(folder) == directory:
            return name
    for name in sorted(_names(directory)):
        with suppress(FileNotFoundError):  # deleted just now
            status = os.stat(pins.netns_path(name))
            if (status.st_dev, status.st_ino) == (net.id.dev, net.id.ino):
                return name
    reason = f"no file in {pins.NETNS_DIRECTORY} is this namespace, so that it has no name"
    raise error(NamespaceError, errno.ENOENT, "netns_etc", nstype="net", target=describe(net), reason=reason)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def make(net: Namespace, name: str) -> Namespace:
    """Make the mount namespace for ``net``, ``name`` in ``ip netns``. JoinError for ``net``, NamespaceError."""
    making: Future[tuple[Namespace, list[OSError]]] | None = None
    try:
        # a thread whose children are born in another PID namespace can start no thread: clone(2)
        with home() if own_pid_namespace_is_left() else nullcontext(), ThreadPoolExecutor(1) as thread:
            making = thread.submit(_make, net, name, stays.this_thread())
        made, unbound = making.result()
        for refused in unbound:
            text = f"{refused.filename} is not bound over {refused.filename2}: {refused.strerror}"
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        return made
    except BaseException:
        if making is not None and making.exception() is None:
            making.result()[0].close()
        raise


def _make(net: Namespace, name: str, caller: int) -> tuple[Namespace, list[OSError]]:
    """Make it, in a thread that is not brought back."""
    if stays.is_borrowed(caller):
        reason = f"this is made in a new thread, and {stays.BORROWED}"
        raise error(NamespaceError, errno.EINVAL, "netns_etc", nstype="mnt", target=f"netns {name}", reason=reason)
    to = partial(refusals, nstype="mnt", target=f"netns {name}", reason=_NEEDS.get)
    with to("setns", kind=JoinError):
        calls.setns(net.fileno(), NET.flag)
    with to("unshare"):
        root = os.stat("/")
        calls.unshare(MNT.flag)
        made = Namespace.current("mnt")
    try:
        with to("mount"):
            calls.mount("none", "/", abi.MS_SLAVE | abi.MS_REC)
            _mount_sys(name)
            unbound = list(_bind_etc(name))
        with to("setns", kind=JoinError):
            _check_root(made, root)
    except BaseException:
        made.close()
        raise
    return made, unbound


_NEEDS = {errno.EPERM: "needs CAP_SYS_ADMIN here and over the network namespace"}


def _mount_sys(name: str) -> None:
    """A sysfs shows the devices of the network namespace that it was mounted in: sysfs(5)."""
    flags = 0
    try:
        calls.umount("/sys", abi.MNT_DETACH)
    except OSError:  # none is mounted, or it is locked, as in a container: then above it, but no more writable than it
        flags = abi.MS_RDONLY if os.statvfs("/sys").f_flag & os.ST_RDONLY else 0
    calls.mount(name, "/sys", flags, "sysfs")


def _bind_etc(name: str) -> Iterator[OSError]:
    """Bind the files; yield an error for each that has no counterpart in /etc or cannot be bound, as ip only warns."""
    folder = f"/etc/netns/{name}"
    for entry in sorted(_names(folder)):
        source, target = f"{folder}/{entry}", f"/etc/{entry}"
        try:
            calls.mount(source, target, abi.MS_BIND)
        except OSError as refused:
            yield OSError(refused.errno, refused.strerror, source, None, target)


def _check_root(made: Namespace, root: os.stat_result) -> None:
    """Raise NamespaceError if joining the new mount namespace changes the root directory."""
    calls.setns(made.fileno(), MNT.flag)
    if not os.path.samestat(root, os.stat("/")):
        reason = "our root directory is not that of our mount namespace (chroot), and would be left"
        raise error(NamespaceError, errno.EXDEV, "netns_etc", nstype="mnt", target="this thread", reason=reason)
