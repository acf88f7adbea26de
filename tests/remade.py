"""A process that says its environment is elsewhere in its memory, as any process may.

    remade.py SIZE          as long as that, and the last NUL is missing
    remade.py SIZE hangs    in memory that nobody fills in: userfaultfd(2)

PR_SET_MM_MAP(2const) takes all addresses at once, so here are those of /proc/self/stat with another environment.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
import sys
from pathlib import Path

PR_SET_MM, PR_SET_MM_MAP = 35, 14
PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS = 3, 0x22
USERFAULTFD = {"x86_64": 323, "aarch64": 282}
USER_MODE_ONLY = 1
UFFDIO_API, UFFDIO_REGISTER, UFFD_API = 0xC018AA3F, 0xC020AA00, 0xAA

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.sbrk.restype = ctypes.c_void_p


def never_fill_in(address: int, size: int) -> None:
    fd = libc.syscall(USERFAULTFD[os.uname().machine], os.O_CLOEXEC | USER_MODE_ONLY)
    if fd < 0:
        sys.exit(f"userfaultfd: {os.strerror(ctypes.get_errno())}")
    fcntl.ioctl(fd, UFFDIO_API, bytearray(struct.pack("3Q", UFFD_API, 0, 0)))
    fcntl.ioctl(fd, UFFDIO_REGISTER, bytearray(struct.pack("4Q", address, size, 1, 0)))


def main(size: int, hangs: bool) -> None:
    address = libc.mmap(None, ctypes.c_size_t(size), PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, ctypes.c_long(0))
    if hangs:
        never_fill_in(address, size)
    else:
        words = b"WORD=theirs\0LAST="
        ctypes.memmove(address, words + b"x" * (size - len(words)), size)
    fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
    code, data, stack, arguments = (26, 27), (45, 46, 47), (28,), (48, 49)
    known = [[int(fields[number - 3]) for number in numbers] for numbers in (code, data, stack, arguments)]
    places = [*known[0], *known[1], libc.sbrk(0), *known[2], *known[3], address, address + size]
    plan = struct.pack("11QQIi", *places, 0, 0, -1)
    if libc.prctl(PR_SET_MM, PR_SET_MM_MAP, plan, ctypes.c_ulong(len(plan)), ctypes.c_ulong(0)) != 0:
        sys.exit(f"PR_SET_MM_MAP: {os.strerror(ctypes.get_errno())}")
    print("go", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:] == ["hangs"])
