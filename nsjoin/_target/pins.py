"""Keeps a namespace by a file: a bind mount of the namespace, as ``ip netns`` and unshare(1) make it."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING

from .._kernel import calls
from ..exceptions import NamespaceError, error

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Union

    from typing_extensions import TypeAlias

    PathLike: TypeAlias = Union[str, bytes, os.PathLike[str], os.PathLike[bytes]]


#: Where ``ip netns`` (iproute2) and pyroute2 keep network namespaces by name.
NETNS_DIRECTORY = "/run/netns"

# mount(2), umount2(2)
_MS_BIND, _MS_REC, _MS_SHARED = 4096, 16384, 1 << 20
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8


def netns_path(name: str) -> str:
    """The file that ``ip netns`` has for ``name``. TypeError, ValueError for what is no name."""
    if not isinstance(name, str):
        raise TypeError(f"the name of a network namespace is a str, not {type(name).__name__}")
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} is no name of a network namespace: it is that of a file in {NETNS_DIRECTORY}")
    return f"{NETNS_DIRECTORY}/{name}"


def pin(fd: int, path: PathLike, nstype: str) -> None:
    """Make the file ``path`` and mount the namespace ``fd`` on it. Nothing is left of it where it fails."""
    words = os.fsdecode(path)
    with ExitStack() as undo:
        try:
            if os.path.realpath(os.path.dirname(words)) == os.path.realpath(NETNS_DIRECTORY):
                _share(NETNS_DIRECTORY, undo)
            _mount(fd, path, undo)
        except OSError as refused:
            reason = _reason(refused.errno or 0, nstype)
            raise error(NamespaceError, refused.errno or 0, "pin", nstype=nstype, target=words, reason=reason) from None
        undo.pop_all()


def unpin(path: PathLike) -> None:
    """Unmount the namespace file ``path``, which has been found to be one, and remove it."""
    words = os.fsdecode(path)
    try:
        calls.umount(path, _MNT_DETACH | _UMOUNT_NOFOLLOW)
    except OSError as refused:
        reason = _UMOUNT_REASONS.get(refused.errno or 0)
        raise error(NamespaceError, refused.errno or 0, "unpin", target=words, reason=reason) from None
    try:
        os.unlink(path)
    except OSError as refused:
        reason = "the namespace is unmounted, but its file cannot be removed"
        raise error(NamespaceError, refused.errno or 0, "unpin", target=words, reason=reason) from None


def _mount(fd: int, path: PathLike, undo: ExitStack) -> None:
    # O_EXCL: never over what is there, be it a link; by descriptor from then on, since the path may be replaced
    on = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        undo.callback(_take_away, path)
        try:
            calls.bind(fd, on)
        except OSError as refused:
            if refused.errno != errno.ENOSYS:
                raise
            calls.mount(f"/proc/thread-self/fd/{fd}", f"/proc/thread-self/fd/{on}", _MS_BIND)
    finally:
        os.close(on)


def _take_away(path: PathLike) -> None:
    _try(lambda: calls.umount(path, _MNT_DETACH | _UMOUNT_NOFOLLOW), errno.EINVAL, errno.EPERM)  # it is not mounted
    _try(lambda: os.unlink(path))


def _share(directory: str, undo: ExitStack) -> None:
    """As ``ip netns`` does it: what is mounted in the directory appears in the mount namespaces that come from ours."""
    try:
        os.mkdir(directory, 0o755)
        undo.callback(_try, lambda: os.rmdir(directory), errno.ENOTEMPTY, errno.EBUSY)
    except FileExistsError:
        pass
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ip takes it too
        try:
            calls.mount("none", directory, _MS_SHARED | _MS_REC)
        except OSError as refused:
            if refused.errno != errno.EINVAL:  # it is no mount point
                raise
            calls.mount(directory, directory, _MS_BIND | _MS_REC)
            undo.callback(_try, lambda: calls.umount(directory, _UMOUNT_NOFOLLOW), errno.EBUSY, errno.EINVAL)
            calls.mount("none", directory, _MS_SHARED | _MS_REC)
    finally:
        os.close(lock)


def _try(undo: Callable[[], None], *allowed: int) -> None:
    """Undo one thing, which others may have removed; ``allowed`` says that they use it by now, or have undone it."""
    try:
        undo()
    except OSError as refused:
        if refused.errno not in (errno.ENOENT, *allowed):
            raise


def _reason(number: int, nstype: str) -> str | None:
    if number == errno.EPERM:
        return "needs CAP_SYS_ADMIN in the user namespace that owns our mount namespace"
    if number == errno.EINVAL and nstype == "mnt":
        return (
            "a mount namespace can be mounted only where no other mount namespace would get the mount too, that one "
            "itself included: in a directory whose mount is private (mount --make-private), and only in an older one"
        )
    if number == errno.ELOOP and nstype == "mnt":
        return "a mount namespace can be mounted only in an older one, by the numbers that the kernel has given them"
    return None


_UMOUNT_REASONS = {
    errno.EINVAL: "it is no mount point of our mount namespace, or one that came from a less privileged one (locked)",
    errno.EPERM: "needs CAP_SYS_ADMIN in the user namespace that owns our mount namespace",
}
