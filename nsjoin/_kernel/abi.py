"""Numbers of kernel headers, and the features that older kernels lack, with the errnos that mean so."""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

# linux/nsfs.h, ioctl_nsfs(2)
NS_GET_USERNS = 0xB701
NS_GET_PARENT = 0xB702
NS_GET_NSTYPE = 0xB703
NS_GET_OWNER_UID = 0xB704
NS_GET_PID_FROM_PIDNS = 0x8004B706  # these two take their argument by value
NS_GET_PID_IN_PIDNS = 0x8004B708
NS_MNT_GET_NEXT = 0x8010B70B
NS_MNT_GET_PREV = 0x8010B70C
NS_GET_ID = 0x8008B70D

# linux/sockios.h
SIOCGSKNS = 0x894C

# linux/pidfd.h: PIDFD_GET_INFO with the 64 bytes that Linux 6.13 knows; the 32-bit pid stands at offset 16
PIDFD_GET_INFO = 0xC040FF0B
PIDFD_INFO_SIZE = 64
PIDFD_INFO_PID = slice(16, 20)
PIDFD_INFO_MASK_PID = (1).to_bytes(8, "little")
PIDFD_THREAD = os.O_EXCL

# linux/capability.h
CAP_SETGID = 6
CAP_SYS_ADMIN = 21

# linux/prctl.h
PR_SET_PDEATHSIG, PR_GET_DUMPABLE = 1, 3

# linux/openat2.h
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_IN_ROOT, RESOLVE_CACHED = 1, 2, 4, 16, 32

# linux/fcntl.h; PyPy has no names for these
O_PATH = 0o10000000
F_DUPFD_CLOEXEC, F_ADD_SEALS, F_GET_SEALS = 1030, 1033, 1034
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_EXEC = 1, 2, 4, 8, 32

# linux/memfd.h
MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_EXEC = 1, 2, 16

# linux/mount.h, sys/mount.h
MS_RDONLY, MS_BIND, MS_REC, MS_SLAVE, MS_SHARED = 1, 4096, 16384, 1 << 19, 1 << 20
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8


class Feature(NamedTuple):
    """A call, or a part of one, that some kernels lack.

    ``since`` is the first Linux release that has it. ``absent`` holds the errnos that mean "not here", those of a
    seccomp filter among them; None: every errno does. ``instead`` says what nsjoin does then.
    """

    call: str
    since: str
    absent: frozenset[int] | None
    instead: str


_CALL = frozenset({errno.ENOSYS, errno.EPERM})
_FLAG = _CALL | {errno.EINVAL}
#: EPERM also answers a caller without permission to look; /proc answers the same then.
_IOCTL = _FLAG | {errno.ENOTTY, errno.EOPNOTSUPP}

FEATURES = (
    Feature("memfd_create", "3.17", _CALL | {errno.EACCES}, "executes the joiner from an unlinked file"),
    Feature("NS_GET_USERNS", "4.9", _IOCTL, "reports no owner and no parent"),
    Feature("statx", "4.11", None, "calls fstat(2), which may wait for a file system"),
    Feature("open_tree", "5.2", frozenset({errno.ENOSYS}), "calls mount(2) through /proc"),
    Feature("pidfd_open", "5.3", _CALL, "holds the process by its directory in /proc"),
    Feature("openat2", "5.6", _CALL, "opens one component of the path after the other"),
    Feature("CLONE_INTO_CGROUP", "5.7", None, "moves the process into its cgroup"),
    # EPERM, EINVAL: also where the owner of a namespace must be entered first. The descriptors tell which one it is.
    Feature("setns with a pidfd", "5.8", _IOCTL - {errno.EOPNOTSUPP} | {errno.EBADF}, "joins one namespace at a time"),
    Feature("close_range", "5.9", None, "closes what /proc/self/fd lists, or every number"),
    Feature("RESOLVE_CACHED", "5.12", _FLAG, "opens the path, which may wait for a file system"),
    Feature("MFD_EXEC", "6.3", frozenset({errno.EINVAL}), "leaves the flag out"),
    Feature("F_SEAL_EXEC", "6.3", frozenset({errno.EINVAL, errno.EPERM}), "leaves the seal out"),
    Feature("PIDFD_THREAD", "6.9", _FLAG, "holds the thread by its directory in /proc"),
    Feature("PIDFD_GET_*_NAMESPACE", "6.11", _IOCTL, "opens /proc/PID/ns"),
    Feature("NS_GET_PID_*", "6.11", _IOCTL, "reads NSpid in /proc/PID/status"),
    Feature("NS_MNT_GET_NEXT", "6.12", None, "finds only mount namespaces that something else keeps"),
    Feature("PIDFD_GET_INFO", "6.13", None, "reads /proc/self/fdinfo"),
    Feature("NS_GET_ID", "6.18", _IOCTL, "identifies a namespace by device and inode"),
)

_ABSENT = {row.call: row.absent for row in FEATURES}


def absent(call: str) -> frozenset[int] | None:
    """Return the errnos by which ``call``, a row of FEATURES, says that it is not there; None: every errno."""
    return _ABSENT[call]


def lacks(call: str, refused: OSError | int) -> bool:
    """Return whether an error, or an errno, of ``call`` means that this kernel or a filter does not have it."""
    number = refused if isinstance(refused, int) else refused.errno
    errnos = _ABSENT[call]
    return errnos is None or number in errnos
