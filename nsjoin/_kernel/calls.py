"""The only importer of the compiled module: one typed function for each call, OSError where the kernel refuses."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
from typing import TYPE_CHECKING

from ..exceptions import NamespaceError, error
from . import abi

if TYPE_CHECKING:
    from collections.abc import Sequence


try:
    from .._setns import ffi, lib
except ImportError as missing:
    raise ImportError(
        "nsjoin's compiled module nsjoin._setns is missing. In a checkout, run 'pip install -e .' (a C compiler and "
        "Python's headers are needed); elsewhere, reinstall nsjoin for this interpreter."
    ) from missing


__all__ = ["ffi", "lib"]


def check(result: int) -> int:
    """Return ``result``, or raise the OSError that a negative one stands for."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def setns(fd: int, nstypes: int) -> None:
    """setns(2): this thread joins the namespace ``fd``, or the types ``nstypes`` of the process of a pidfd."""
    check(lib.nsjoin_setns(fd, nstypes))


def unshare(nstypes: int) -> None:
    """unshare(2) for this thread."""
    check(lib.nsjoin_unshare(nstypes))


def pidfd_open(pid: int, flags: int = 0) -> int:
    """pidfd_open(2), Linux 5.3; PyPy and old libraries have no ``os.pidfd_open``."""
    return check(lib.nsjoin_pidfd_open(pid, flags))


def pidfd_of(pid: int) -> int:
    """Return a pidfd of the process ``pid``, or of the thread of that id (Linux 6.9)."""
    try:
        return pidfd_open(pid)
    except OSError as refused:
        if refused.errno not in (errno.EINVAL, errno.ENOENT):  # a thread: ENOENT since Linux 6.16
            raise
    return pidfd_open(pid, abi.PIDFD_THREAD)


def pidfd_send_signal(pidfd: int, number: int) -> None:
    """pidfd_send_signal(2), Linux 5.1."""
    check(lib.nsjoin_pidfd_send_signal(pidfd, number))


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2), Linux 5.6: a copy of a descriptor of the pidfd's process."""
    return check(lib.nsjoin_pidfd_getfd(pidfd, fd))


def socket_namespace(fd: int) -> int:
    """Return a descriptor of the net namespace of the socket ``fd`` (SIOCGSKNS, Linux 4.9; CAP_NET_ADMIN there)."""
    return check(lib.nsjoin_ioctl(fd, abi.SIOCGSKNS))


def die_with_parent() -> None:
    """Let SIGKILL end this process when the thread that forked it ends (PR_SET_PDEATHSIG). New ids undo it."""
    check(lib.nsjoin_prctl(abi.PR_SET_PDEATHSIG, signal.SIGKILL))


def pidfd_pid(pidfd: int) -> int:
    """Return the pid of a pidfd's process as this process sees it (PIDFD_GET_INFO, Linux 6.13)."""
    info = ffi.new("unsigned char[]", abi.PIDFD_INFO_MASK_PID + bytes(abi.PIDFD_INFO_SIZE - 8))
    check(lib.nsjoin_ioctl_out(pidfd, abi.PIDFD_GET_INFO, info))
    return int.from_bytes(bytes(ffi.buffer(info, abi.PIDFD_INFO_SIZE))[abi.PIDFD_INFO_PID], "little")


def pidfd_namespace(pidfd: int, request: int) -> int:
    """Return a descriptor of one namespace of the pidfd's process (PIDFD_GET_*_NAMESPACE, Linux 6.11)."""
    return check(lib.nsjoin_ioctl(pidfd, request))


def inodes(pidfd: int, requests: Sequence[int]) -> tuple[int, ...]:
    """Return the inode numbers of the namespaces of the pidfd's process, or of this thread for -1.

    0 where the kernel has no such type. PIDFD_GET_*_NAMESPACE, Linux 6.11.
    """
    found = ffi.new("uint64_t[]", len(requests))
    check(lib.nsjoin_inodes(pidfd, len(requests), requests, found))
    return tuple(ffi.unpack(found, len(requests)))


def is_shared(pidfd: int, request: int) -> bool | None:
    """Return whether this thread is in that namespace of the pidfd's process; None where the ioctl fails."""
    result: int = lib.nsjoin_is_shared(pidfd, request)
    return None if result < 0 else result == 1


def own_namespace(request: int) -> int:
    """Return a descriptor of a namespace of this thread (PIDFD_GET_*_NAMESPACE, Linux 6.11), or -1."""
    return max(int(lib.nsjoin_own(request)), -1)


def is_dumpable() -> bool:
    """Return whether this process is dumpable, PR_SET_DUMPABLE(2const); if not, /proc/PID belongs to root."""
    return int(lib.nsjoin_prctl(abi.PR_GET_DUMPABLE, 0)) == 1


def namespace_type(fd: int) -> int:
    """Return the CLONE_NEW* flag of a namespace (NS_GET_NSTYPE, Linux 4.11); ENOTTY: ``fd`` is no namespace."""
    return check(lib.nsjoin_ioctl(fd, abi.NS_GET_NSTYPE))


def namespace_owner(fd: int) -> int:
    """Return a descriptor of the user namespace that owns the namespace ``fd`` (NS_GET_USERNS, Linux 4.9)."""
    return check(lib.nsjoin_ioctl(fd, abi.NS_GET_USERNS))


def namespace_parent(fd: int) -> int:
    """Return a descriptor of the parent of a pid or user namespace (NS_GET_PARENT, Linux 4.9)."""
    return check(lib.nsjoin_ioctl(fd, abi.NS_GET_PARENT))


def namespace_owner_uid(fd: int) -> int:
    """Return the uid that made the user namespace ``fd``, as this process sees it (NS_GET_OWNER_UID, Linux 4.11)."""
    uid = ffi.new("uint32_t *")
    check(lib.nsjoin_ioctl_out(fd, abi.NS_GET_OWNER_UID, uid))
    return int(uid[0])


def namespace_unique_id(fd: int) -> int | None:
    """Return the number that no other namespace gets until the next boot (NS_GET_ID, Linux 6.18), or None."""
    number = ffi.new("uint64_t *")
    result = lib.nsjoin_ioctl_out(fd, abi.NS_GET_ID, number)
    if abi.lacks("NS_GET_ID", -result):
        return None
    check(result)
    return int(number[0])


def pid_from(fd: int, pid: int) -> int:
    """Return this process's number of the process (or thread) ``pid`` of the PID namespace ``fd``.

    NS_GET_PID_FROM_PIDNS, Linux 6.11. ESRCH: there is no such process, or this process does not see it.
    """
    return check(lib.nsjoin_ioctl_value(fd, abi.NS_GET_PID_FROM_PIDNS, pid))


def pid_in(fd: int, pid: int) -> int:
    """Return the number of this process's ``pid`` in the PID namespace ``fd``.

    NS_GET_PID_IN_PIDNS, Linux 6.11. ESRCH: there is no such process, or that namespace does not see it.
    """
    return check(lib.nsjoin_ioctl_value(fd, abi.NS_GET_PID_IN_PIDNS, pid))


def next_mount_namespace(fd: int, *, previous: bool = False) -> int:
    """Return a descriptor of the mount namespace that was made next after (or before) ``fd``.

    Only of those over whose owner this thread has CAP_SYS_ADMIN. NS_MNT_GET_NEXT, Linux 6.12; ENOENT: there is none.
    """
    return check(lib.nsjoin_ioctl(fd, abi.NS_MNT_GET_PREV if previous else abi.NS_MNT_GET_NEXT))


def is_admin() -> bool:
    """Return whether this thread has CAP_SYS_ADMIN in its own user namespace."""
    return bool(check(lib.nsjoin_has(abi.CAP_SYS_ADMIN)))


def may_set_groups() -> bool:
    """Return whether this thread has CAP_SETGID in its own user namespace."""
    return bool(check(lib.nsjoin_has(abi.CAP_SETGID)))


def look(pidfd: int, requests: Sequence[int]) -> tuple[bool, tuple[int, ...], tuple[int, ...]]:
    """Return whether this thread has CAP_SYS_ADMIN, and the ``inodes`` of its namespaces and of the pidfd's process."""
    n = len(requests)
    found = ffi.new("uint64_t[]", 2 * n)
    is_admin = bool(check(lib.nsjoin_look(pidfd, n, requests, found)))
    numbers = tuple(ffi.unpack(found, 2 * n))
    return is_admin, numbers[:n], numbers[n:]


def openat2_in_root(root: int, path: bytes, flags: int) -> int:
    """openat2(2), Linux 5.6: no link leads out of ``root``, nor through /proc."""
    return check(lib.nsjoin_openat2(root, path, flags, abi.RESOLVE_IN_ROOT | abi.RESOLVE_NO_MAGICLINKS))


def openat2_on_mount(directory: int, path: bytes, flags: int) -> int:
    """openat2(2), Linux 5.6: on the mount of ``directory`` only, through no link; EXDEV where another one begins."""
    return check(lib.nsjoin_openat2(directory, path, flags, abi.RESOLVE_NO_XDEV | abi.RESOLVE_NO_SYMLINKS))


def write_all(fd: int, data: bytes, what: str) -> None:
    """Write ``data`` to the beginning of a file. NamespaceError (EFBIG) beyond RLIMIT_FSIZE.

    The limit holds for files in memory too. The caller does not get the SIGXFSZ that comes with EFBIG.
    """
    number = -lib.nsjoin_write(fd, data, len(data), 0)
    if number != errno.EFBIG:
        check(-number)
        return
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    reason = f"{what} needs a file (in memory) of {len(data)} bytes, and RLIMIT_FSIZE is {limit}: raise it (ulimit -f)"
    raise error(NamespaceError, number, "write", reason=reason)


def openat2_cached(root: int, path: bytes, flags: int) -> int:
    """openat2(2), Linux 5.12: as ``openat2_in_root``, and EAGAIN instead of a wait for a file system to answer."""
    return check(
        lib.nsjoin_openat2(root, path, flags, abi.RESOLVE_IN_ROOT | abi.RESOLVE_NO_MAGICLINKS | abi.RESOLVE_CACHED)
    )


def device(fd: int) -> int:
    """Return ``st_dev`` without asking the file system: fstat(2) may wait for a FUSE server for ever."""
    found: int = lib.nsjoin_device(fd)
    if found < 0 and abi.lacks("statx", -found):
        return os.fstat(fd).st_dev
    return found


def mount(source: str, target: str, flags: int, fstype: str | None = None) -> None:
    """mount(2); without ``fstype`` for bind mounts and changes of a mount."""
    kind = ffi.NULL if fstype is None else fstype.encode()
    check(lib.nsjoin_mount(os.fsencode(source), os.fsencode(target), kind, flags))


def umount(target: str | bytes | os.PathLike[str] | os.PathLike[bytes], flags: int) -> None:
    """umount2(2)."""
    check(lib.nsjoin_umount(os.fsencode(target), flags))


def bind(fd: int, on: int) -> None:
    """Mount the file ``fd`` on the file ``on``: open_tree(2) and move_mount(2), Linux 5.2."""
    check(lib.nsjoin_bind(fd, on))


def memfd_create(name: bytes, flags: int) -> int:
    """memfd_create(2), Linux 3.17."""
    return check(lib.nsjoin_memfd_create(name, flags))


def duplicate(fd: int) -> int:
    """Return a copy of ``fd``, close-on-exec and above 2, out of the way of a child's stdio."""
    return fcntl.fcntl(fd, abi.F_DUPFD_CLOEXEC, 3)


def above_stdio(fd: int) -> int:
    """Return ``fd``, or a copy above 2 in its place."""
    if fd > 2:
        return fd
    try:
        return duplicate(fd)
    finally:
        os.close(fd)
