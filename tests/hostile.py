"""What a hostile target runs: it waits for a process that comes in, and tries everything to look into it.

    hostile.py lease PROGRAM     comes when somebody executes PROGRAM, and holds it before exec until it has tried all
    hostile.py call FOLDER       comes when somebody writes into FOLDER/come, which waits for FOLDER/go
    hostile.py channel FOLDER    the same, but takes the sockets of who came, and sends a pickle through each

With a number as third argument, only children of that process are looked into: for targets that see other processes
too. Prints "armed", then a line of JSON for each victim: {attack: null, or the name of the errno that refused it}.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import signal
import stat
import struct
import sys
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
PIDFD_OPEN, PIDFD_GETFD = 434, 438
PTRACE_SEIZE = 0x4206
IMAGE = 0x400000  # where a program that is not position-independent is loaded, such as the joiner


class Span(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


class HeldOff(Exception):  # noqa: N818 - neither refused nor successful
    """On older kernels (6.1) whoever execs holds the mutex that ptrace takes first: it cannot be tried before exec."""


def ptrace(pid: int) -> None:
    """In a child, which lets go again by ending."""
    child = os.fork()
    if child == 0:
        signal.alarm(5)  # the kernel ends a lease, and what is attacked becomes the program, after 45 seconds
        number = 0 if libc.ptrace(PTRACE_SEIZE, pid, None, None) == 0 else ctypes.get_errno()
        os._exit(number)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        raise HeldOff
    number = os.WEXITSTATUS(status)
    if number:
        raise OSError(number, "")


def read_memory(pid: int) -> None:
    """By process_vm_readv; EFAULT: it would have been allowed, only there is nothing at that address."""
    room = ctypes.create_string_buffer(4)
    ours, theirs = Span(ctypes.addressof(room), 4), Span(IMAGE, 4)
    try:
        check(libc.process_vm_readv(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0))
    except OSError as refused:
        if refused.errno != errno.EFAULT:
            raise


def take_descriptor(pid: int) -> None:
    pidfd = check(libc.syscall(PIDFD_OPEN, pid, 0))
    try:
        os.close(check(libc.syscall(PIDFD_GETFD, pidfd, 0, 0)))
    except OSError as refused:
        if refused.errno != errno.EBADF:  # allowed, only its standard input is closed
            raise
    finally:
        os.close(pidfd)


def opens(name: str) -> Callable[[int], None]:
    return lambda pid: os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY))


ATTACKS: dict[str, Callable[[int], object]] = {
    "ptrace": ptrace,
    "process_vm_readv": read_memory,
    "pidfd_getfd": take_descriptor,
    "mem": opens("mem"),
    "mem for writing": lambda pid: os.close(os.open(f"/proc/{pid}/mem", os.O_RDWR)),
    "maps": opens("maps"),
    "environ": opens("environ"),
    "auxv": opens("auxv"),
    "fd": lambda pid: os.readlink(f"/proc/{pid}/fd/0"),
    "fdinfo": opens("fdinfo/0"),
    "exe": lambda pid: os.readlink(f"/proc/{pid}/exe"),
    "cwd": lambda pid: os.readlink(f"/proc/{pid}/cwd"),
    "root": lambda pid: os.listdir(f"/proc/{pid}/root/"),
    "ns": lambda pid: os.readlink(f"/proc/{pid}/ns/mnt"),
}


def outcome(attack: Callable[[int], object], pid: int) -> str | None:
    try:
        attack(pid)
    except OSError as refused:
        return errno.errorcode[refused.errno or 0]
    except HeldOff:
        return "HELD OFF"
    return None


def outcomes(pid: int) -> dict[str, str | None]:
    return {name: outcome(function, pid) for name, function in ATTACKS.items()}


def processes() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def parent_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("PPid:"))
    except OSError:  # somebody else's, which has ended
        return 0


def attack(before: set[int], caller: int | None) -> None:
    victims = processes() - before
    if caller is not None:
        victims = {pid for pid in victims if parent_of(pid) == caller}
    for pid in sorted(victims):
        print(json.dumps(outcomes(pid)), flush=True)


def lease(program: str, caller: int | None) -> None:
    """A write lease: who executes the file waits until we give it up, and we get SIGIO (fcntl(2), "Leases")."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
    fd = os.open(program, os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    before = processes()
    print("armed", flush=True)
    signal.sigwait([signal.SIGIO])
    attack(before, caller)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    os.close(fd)


#: struct nsjoin_head of a pickle (_answer.PICKLE), and one that executes os.getpid() where it is loaded.
PICKLE = b"cos\ngetpid\n(tR."
RECORD = struct.pack("4iq", 2, 0, 0, 0, len(PICKLE)) + PICKLE


def send_pickles(pid: int) -> None:
    pidfd = check(libc.syscall(PIDFD_OPEN, pid, 0))
    for number in range(256):
        fd = libc.syscall(PIDFD_GETFD, pidfd, number, 0)
        if fd >= 0 and stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.write(fd, RECORD)


def call(folder: str, caller: int | None, then: Callable[[set[int], int | None], None] | None = None) -> None:
    before = processes()
    print("armed", flush=True)
    with open(f"{folder}/come") as come:
        come.read()
    (then or attack)(before, caller)
    with open(f"{folder}/go", "w") as go:
        go.write("go")


def channel(folder: str, caller: int | None) -> None:
    def take(before: set[int], _caller: int | None) -> None:
        for pid in sorted(processes() - before):
            print(json.dumps({"pickle": outcome(send_pickles, pid)}), flush=True)

    call(folder, caller, take)


if __name__ == "__main__":
    how, argument, *rest = sys.argv[1:]
    {"lease": lease, "call": call, "channel": channel}[how](argument, int(rest[0]) if rest else None)
    print("end", flush=True)
    while True:
        signal.pause()
