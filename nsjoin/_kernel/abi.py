"""TODO."""

from __future__ import annotations

import errno
import os

# linux/nsfs.h, ioctl_nsfs(2)
_NS_GET_USERNS = 0xB701
_NS_GET_PARENT = 0xB702
_NS_GET_NSTYPE = 0xB703
_NS_GET_OWNER_UID = 0xB704
_NS_GET_PID_FROM_PIDNS = 0x8004B706  # Linux 6.11; these two take their argument by value
_NS_GET_PID_IN_PIDNS = 0x8004B708
_NS_MNT_GET_NEXT = 0x8010B70B  # Linux 6.12
_NS_MNT_GET_PREV = 0x8010B70C
_NS_GET_ID = 0x8008B70D  # Linux 6.18

#: linux/sockios.h
_SIOCGSKNS = 0x894C

#: linux/pidfd.h: PIDFD_GET_INFO with the 64 bytes that Linux 6.13 knows; the 32-bit pid stands at offset 16.
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_SIZE = 64
_PIDFD_INFO_PID = slice(16, 20)
_PIDFD_INFO_MASK_PID = (1).to_bytes(8, "little")
PIDFD_THREAD = os.O_EXCL  # Linux 6.9

# linux/capability.h
_CAP_SETGID = 6
_CAP_SYS_ADMIN = 21

# linux/openat2.h
_RESOLVE_NO_XDEV, _RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_IN_ROOT, _RESOLVE_CACHED = 1, 2, 4, 16, 32

# PyPy has no names for these two.
_F_DUPFD_CLOEXEC = 1030
O_PATH = 0o10000000

#: What an ioctl answers that the running kernel does not know, or a seccomp filter forbids (EPERM, as the kernel says
#: too to who may not look: then /proc says it as well).
NO_SUCH_IOCTL = frozenset({errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})

#: What setns(2) with a pidfd answers where the namespaces' descriptors may still do, one by one: an old kernel (it
#: needs Linux 5.8), a seccomp filter, an owner who has to be entered first. They also tell which namespace it was.
TRY_DESCRIPTORS = frozenset({errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EBADF, errno.ENOTTY})
