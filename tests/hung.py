"""A file system in which nothing is ever found, and nobody who looks for something comes back.

    hung.py FOLDER              mounts it there, prints "armed", then "hung" for each that has come to hang
    hung.py FOLDER lookup,...   the requests that are never answered, instead of lookup alone
    hung.py FOLDER slow FIFO    it has a program, "file", which is found when somebody has opened FIFO for writing

FUSE, by hand: a request that has been read and is never answered holds who made it, also against SIGKILL.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

LOOKUP, GETATTR, OPEN, READ, RELEASE, INIT, ACCESS = 1, 3, 14, 15, 18, 26, 34
NAMES = {"lookup": LOOKUP, "getattr": GETATTR, "access": ACCESS}
HEAD = struct.Struct("<IIQQIIII")
INITIAL = struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 16, 0, 12, 9, 1 << 16, 1, 16, 0, 0)
#: struct fuse_attr
ATTRIBUTES = struct.Struct("<6Q3I7I")
#: What is said of it may not be kept, so that each who asks the kernel comes to us.
ROOT = struct.pack("<QII", 0, 0, 0) + ATTRIBUTES.pack(1, 0, 0, 0, 0, 0, 0, 0, 0, 0o40755, 2, 0, 0, 0, 4096, 0)
SCRIPT = b"#!/bin/sh\necho it came\n"
FILE = ATTRIBUTES.pack(2, len(SCRIPT), 1, 0, 0, 0, 0, 0, 0, 0o100755, 1, 0, 0, 0, 4096, 0)
ENOENT, ENOSYS = 2, 38


def slow(opcode: int, node: int, body: bytes, fifo: str) -> bytes | int:
    """What the slow one answers: bytes, or an errno."""
    if opcode == LOOKUP:
        if body != b"file\0":
            return ENOENT
        print("asked", flush=True)
        with open(fifo, "rb") as file:
            file.read()
        return struct.pack("<5Q", 2, 0, 0, 0, 0) + FILE
    if opcode == GETATTR:
        return struct.pack("<QII", 0, 0, 0) + FILE if node == 2 else ROOT
    if opcode == READ:
        offset, size = struct.unpack_from("<QI", body, 8)
        return SCRIPT[offset : offset + size]
    return {OPEN: bytes(16), RELEASE: b"", INIT: INITIAL}.get(opcode, ENOSYS)


def main(folder: str, how: str = "lookup", fifo: str = "") -> None:
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"hung", folder.encode(), b"fuse", 0, options.encode()) != 0:
        sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
    print("armed", flush=True)
    hangs = set() if fifo else {NAMES[name] for name in how.split(",")}
    while True:
        request = os.read(fd, 1 << 18)
        _, opcode, unique, node, *_ = HEAD.unpack_from(request)
        if opcode in hangs:
            print("hung", flush=True)
            continue
        if fifo:
            answer = slow(opcode, node, request[HEAD.size :], fifo)
        else:
            answer = {INIT: INITIAL, GETATTR: ROOT}.get(opcode, ENOSYS)
        body, error = (b"", answer) if isinstance(answer, int) else (answer, 0)
        os.write(fd, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)


if __name__ == "__main__":
    main(*sys.argv[1:])
