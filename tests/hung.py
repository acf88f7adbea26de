"""A file system in which nothing is ever found, and nobody who looks for something comes back.

    hung.py FOLDER      mounts it there, prints "armed", then "hung" for each that has come to hang

FUSE, by hand: a request that has been read and is never answered holds who made it, also against SIGKILL.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

LOOKUP, GETATTR, INIT = 1, 3, 26
HEAD = struct.Struct("<IIQQIIII")
INITIAL = struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 16, 0, 12, 9, 1 << 16, 1, 16, 0, 0)
ROOT = struct.pack("<QII6Q3I7I", 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
ENOSYS = 38


def main(folder: str) -> None:
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"hung", folder.encode(), b"fuse", 0, options.encode()) != 0:
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    print("armed", flush=True)
    answers = {INIT: INITIAL, GETATTR: ROOT}
    while True:
        _, opcode, unique, *_ = HEAD.unpack_from(os.read(fd, 1 << 18))
        if opcode == LOOKUP:
            print("hung", flush=True)
            continue
        answer = answers.get(opcode)
        body = answer or b""
        os.write(fd, struct.pack("<IiQ", 16 + len(body), 0 if answer else -ENOSYS, unique) + body)


if __name__ == "__main__":
    main(sys.argv[1])
