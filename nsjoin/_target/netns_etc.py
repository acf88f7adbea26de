"""What ``ip netns exec`` adds to a network namespace: its /sys, and the files of /etc/netns/NAME over those of /etc.

Both need a mount namespace. It is a new one, a copy of ours that receives our mounts, made in a thread that ends with
it: no process is needed, and nothing of it is left but the descriptor.
"""

from __future__ import annotations

import errno
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from .._engine import stays
from .._kernel import calls
from .._kernel.nstypes import MNT, NET, USER
from .._kernel.thread import home, own_pid_namespace_is_left
from ..exceptions import JoinError, NamespaceError, error
from . import pins
from .namespace import Namespace
from .target import OpenTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from typing import Any

    from .._kernel.nstypes import NsType
    from .target import Checked


# mount(2), umount2(2)
_MS_RDONLY, _MS_BIND, _MS_REC, _MS_SLAVE = 1, 4096, 16384, 1 << 19
_MNT_DETACH = 2


class WithEtc:
    """A target with the mount namespace that is made when it is opened, and ends with its last user."""

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
            namespaces = tuple(own(opened.process.namespace(row.name)) for row in self._rows)
        for index, net in enumerate(namespaces):
            if net.nstype == "net":
                path = self._checked[index] if isinstance(self._checked, tuple) else None
                return (*namespaces, own(make(net, _name(net, path))))
        raise ValueError("netns_etc is for joining net, and the target has no net namespace")


def _name(net: Namespace, path: object) -> str:
    """What ``ip netns`` calls it: by its path, or, as ``ip netns identify`` does it, the first name that means it."""
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
    raise error(NamespaceError, errno.ENOENT, "netns_etc", nstype="net", target=net.words(), reason=reason)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def make(net: Namespace, name: str) -> Namespace:
    """The mount namespace for ``net``, which ``ip netns`` calls ``name``. JoinError for ``net``, NamespaceError."""
    making: Future[tuple[Namespace, list[OSError]]] | None = None
    try:
        # where this thread's children are born in another PID namespace, it can start no thread: clone(2)
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
    """In a thread, which stays where it has gone."""
    if stays.is_borrowed(caller):
        reason = f"this is made in a new thread, and {stays.BORROWED}"
        raise error(NamespaceError, errno.EINVAL, "netns_etc", nstype="mnt", target=f"netns {name}", reason=reason)
    step = "setns"
    try:
        calls.setns(net.fileno(), NET.flag)
        step = "unshare"
        root = os.stat("/")
        calls.unshare(MNT.flag)
        made = Namespace.current("mnt")
        try:
            step = "mount"
            calls.mount("none", "/", _MS_SLAVE | _MS_REC)
            _mount_sys(name)
            unbound = list(_bind_etc(name))
            step = "setns"
            _check_root(made, root)
        except BaseException:
            made.close()
            raise
        return made, unbound
    except OSError as refused:
        if isinstance(refused, NamespaceError):
            raise
        kind = JoinError if step == "setns" else NamespaceError
        needs = "needs CAP_SYS_ADMIN here and over the network namespace" if refused.errno == errno.EPERM else None
        raise error(kind, refused.errno or 0, step, nstype="mnt", target=f"netns {name}", reason=needs) from None


def _mount_sys(name: str) -> None:
    """A sysfs shows the devices of the network namespace that it was mounted in: sysfs(5)."""
    flags = 0
    try:
        calls.umount("/sys", _MNT_DETACH)
    except OSError:  # none is mounted, or it is locked, as in a container: then above it, but no more writable than it
        flags = _MS_RDONLY if os.statvfs("/sys").f_flag & os.ST_RDONLY else 0
    calls.mount(name, "/sys", flags, "sysfs")


def _bind_etc(name: str) -> Iterator[OSError]:
    """Bind the files; what has no counterpart in /etc, or cannot be bound, is told and is no failure: as with ip."""
    folder = f"/etc/netns/{name}"
    for entry in sorted(_names(folder)):
        source, target = f"{folder}/{entry}", f"/etc/{entry}"
        try:
            calls.mount(source, target, _MS_BIND)
        except OSError as refused:
            yield OSError(refused.errno, refused.strerror, source, None, target)


def _check_root(made: Namespace, root: os.stat_result) -> None:
    """Whoever joins a mount namespace gets its own root directory."""
    calls.setns(made.fileno(), MNT.flag)
    if not os.path.samestat(root, os.stat("/")):
        reason = "our root directory is not that of our mount namespace (chroot), and would be left"
        raise error(NamespaceError, errno.EXDEV, "netns_etc", nstype="mnt", target="this thread", reason=reason)
