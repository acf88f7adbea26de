"""A file that keeps a namespace: a bind mount of it, as ``ip netns`` and unshare(1) make it."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from .._kernel import abi, calls
from ..exceptions import refusals

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Union

    from typing_extensions import TypeAlias

    PathLike: TypeAlias = Union[str, bytes, os.PathLike[str], os.PathLike[bytes]]


#: Where ``ip netns`` (iproute2) and pyroute2 keep network namespaces by name.
NETNS_DIRECTORY = "/run/netns"


def netns_path(name: str) -> str:
    """Return the file that ``ip netns`` has for ``name``. TypeError, ValueError for an impossible name."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a network namespace is a str, not {type(name).__name__}")
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} is no name of a network namespace: it is that of a file in {NETNS_DIRECTORY}")
    return f"{NETNS_DIRECTORY}/{name}"


def pin(fd: int, path: PathLike, nstype: str) -> None:
    """Create the file ``path`` and mount the namespace ``fd`` on it. A failure leaves neither file nor mount behind."""
    name = os.fsdecode(path)
    with (
        refusals("pin", nstype=nstype, target=name, reason=lambda number: _reason(number, nstype)),
        ExitStack() as undo,
    ):
        if os.path.realpath(os.path.dirname(name)) == os.path.realpath(NETNS_DIRECTORY):
            _share(NETNS_DIRECTORY, undo)
        _mount(fd, path, undo)
        undo.pop_all()


def unpin(path: PathLike) -> None:
    """Unmount ``path``, which must be a namespace file, and remove it."""
    name = os.fsdecode(path)
    with refusals("unpin", target=name, reason=_UMOUNT_REASONS.get):
        calls.umount(path, abi.MNT_DETACH | abi.UMOUNT_NOFOLLOW)
    with refusals("unpin", target=name, reason=lambda _: "the namespace is unmounted, but its file cannot be removed"):
        os.unlink(path)


def _mount(fd: int, path: PathLike, undo: ExitStack) -> None:
    # O_EXCL: never over an existing file or link; by descriptor from then on, since the path may be replaced
    on = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        undo.callback(_take_away, path)
        try:
            calls.bind(fd, on)
        except OSError as refused:
            if not abi.lacks("open_tree", refused):
                raise
            calls.mount(f"/proc/thread-self/fd/{fd}", f"/proc/thread-self/fd/{on}", abi.MS_BIND)
    finally:
        os.close(on)


def _take_away(path: PathLike) -> None:
    _try(
        lambda: calls.umount(path, abi.MNT_DETACH | abi.UMOUNT_NOFOLLOW), errno.EINVAL, errno.EPERM
    )  # it is not mounted
    _try(lambda: os.unlink(path))


def _share(directory: str, undo: ExitStack) -> None:
    """Share the mounts in the directory with the mount namespaces copied from this one, as ``ip netns`` does."""
    try:
        os.mkdir(directory, 0o755)
        undo.callback(_try, lambda: os.rmdir(directory), errno.ENOTEMPTY, errno.EBUSY)
    except FileExistsError:
        pass
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ip takes it too
        try:
            calls.mount("none", directory, abi.MS_SHARED | abi.MS_REC)
        except OSError as refused:
            if refused.errno != errno.EINVAL:  # it is no mount point
                raise
            calls.mount(directory, directory, abi.MS_BIND | abi.MS_REC)
            undo.callback(_try, lambda: calls.umount(directory, abi.UMOUNT_NOFOLLOW), errno.EBUSY, errno.EINVAL)
            calls.mount("none", directory, abi.MS_SHARED | abi.MS_REC)
    finally:
        os.close(lock)


def _try(undo: Callable[[], None], *allowed: int) -> None:
    """Undo one step, unless others have undone it; ``allowed`` are errnos that mean they use it, or have undone it."""
    try:
        undo()
    except OSError as refused:
        if refused.errno not in (errno.ENOENT, *allowed):
            raise


def _reason(number: int, nstype: str) -> str | None:
    if number == errno.EPERM:
        return "needs CAP_SYS_ADMIN in the user namespace that owns this mount namespace"
    if number == errno.EINVAL and nstype == "mnt":
        return (
            "a mount namespace can be mounted only where no other mount namespace would get the mount too, that one "
            "itself included: in a directory whose mount is private (mount --make-private), and only in an older one"
        )
    if number == errno.ELOOP and nstype == "mnt":
        return "a mount namespace can be mounted only in an older one, by the numbers that the kernel has given them"
    return None


_UMOUNT_REASONS = {
    errno.EINVAL: "it is no mount point of this mount namespace, or one that came from a less privileged one (locked)",
    errno.EPERM: "needs CAP_SYS_ADMIN in the user namespace that owns this mount namespace",
}
