"""Kernels that lack something, or forbid it: seccomp filters that answer for them. As a program: the table, or with
``--like 5.4 COMMAND...`` that command without what Linux 5.4 lacks.

Rows are features, each alone and all together, absent (ENOSYS; ENOTTY and EINVAL for what is not a call of its own)
and forbidden (EPERM, as container engines and hardened services do). A cell says what became of the operation of
``stage.py``.
"""

from __future__ import annotations

import argparse
import errno
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from changed import ARG0, ARG1, ARG2, NR, SYS_IOCTL, SYS_PIDFD_OPEN, SYS_SETNS, Filter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SYS_MEMFD_CREATE, SYS_EXECVEAT = {"x86_64": (319, 322), "aarch64": (279, 281)}[platform.machine()]
SYS_FCNTL, SYS_CLONE = {"x86_64": (72, 56), "aarch64": (25, 220)}[platform.machine()]
SYS_PIDFD_SEND_SIGNAL, SYS_CLONE3, SYS_CLOSE_RANGE, SYS_OPENAT2 = 424, 435, 436, 437
NS_GET_PID_FROM_PIDNS, NS_GET_PID_IN_PIDNS = 0x8004B706, 0x8004B708
NS_MNT_GET_NEXT, NS_MNT_GET_PREV, NS_GET_ID = 0x8010B70B, 0x8010B70C, 0x8008B70D
MFD_NOEXEC_SEAL, MFD_EXEC = 8, 16
F_ADD_SEALS, F_SEAL_EXEC = 1033, 32
CLONE_VM, CLONE_VFORK = 0x100, 0x4000
CLONE_FLAGS = (0, 0x80, 0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)


class Feature(NamedTuple):
    """What a kernel may lack: since which release it is there, what one without it answers, the filter for an errno."""

    name: str
    since: str
    absent: int
    refuse: Callable[[int], Filter]


def call(number: int) -> Callable[[int], Filter]:
    def refuse(error: int) -> Filter:
        one = Filter()
        one.load(NR)
        one.refuse_if(number, error)
        return one

    return refuse


def at(number: int, offset: int) -> Filter:
    """Begin at the argument at ``offset`` of that system call."""
    one = Filter()
    one.load(NR)
    one.require(number)
    one.load(offset)
    return one


def several_types_at_once(error: int) -> Filter:
    """setns(2) that a filter can tell to be with a pidfd: more than one type."""
    one = at(SYS_SETNS, ARG1)
    for flag in CLONE_FLAGS:
        one.allow_if(flag)
    one.refuse(error)
    return one


def flags(number: int, offset: int, bits: int) -> Callable[[int], Filter]:
    """Any of these in the argument at ``offset`` of that system call."""

    def refuse(error: int) -> Filter:
        one = at(number, offset)
        one.mask(bits)
        one.allow_if(0)
        one.refuse(error)
        return one

    return refuse


def seal_of_mode(error: int) -> Filter:
    one = at(SYS_FCNTL, ARG1)
    one.require(F_ADD_SEALS)
    one.load(ARG2)
    one.mask(F_SEAL_EXEC)
    one.refuse_if(F_SEAL_EXEC, error)
    return one


def memory_for_a_child_elsewhere() -> Filter:
    """Before Linux 6.2 it does not share its parent's where it is born in another time namespace; here nowhere."""
    one = at(SYS_CLONE, ARG0)
    one.mask(CLONE_VM | CLONE_VFORK)
    one.refuse_if(CLONE_VM | CLONE_VFORK, errno.EINVAL)
    return one


def pidfd_ioctls(error: int) -> Filter:
    one = at(SYS_IOCTL, ARG1)
    one.refuse_if(0xC040FF0B, error)  # PIDFD_GET_INFO
    one.mask(0xFFFFFF00)
    one.refuse_if(0xFF00, error)
    return one


def ioctls(*requests: int) -> Callable[[int], Filter]:
    def refuse(error: int) -> Filter:
        one = at(SYS_IOCTL, ARG1)
        for request in requests:
            one.refuse_if(request, error)
        return one

    return refuse


FEATURES = {
    feature.name: feature
    for feature in (
        Feature("pidfd_open", "5.3", errno.ENOSYS, call(SYS_PIDFD_OPEN)),
        Feature("pidfd_send_signal", "5.1", errno.ENOSYS, call(SYS_PIDFD_SEND_SIGNAL)),
        Feature("clone3", "5.3", errno.ENOSYS, call(SYS_CLONE3)),
        Feature("close_range", "5.9", errno.ENOSYS, call(SYS_CLOSE_RANGE)),
        Feature("setns with a pidfd", "5.8", errno.EINVAL, several_types_at_once),
        Feature("openat2", "5.6", errno.ENOSYS, call(SYS_OPENAT2)),
        Feature("MFD_EXEC", "6.3", errno.EINVAL, flags(SYS_MEMFD_CREATE, ARG1, MFD_NOEXEC_SEAL | MFD_EXEC)),
        Feature("F_SEAL_EXEC", "6.3", errno.EINVAL, seal_of_mode),
        Feature("PIDFD_THREAD", "6.9", errno.EINVAL, flags(SYS_PIDFD_OPEN, ARG1, os.O_EXCL)),
        Feature("pidfd ioctls", "6.11", errno.ENOTTY, pidfd_ioctls),
        Feature("NS_GET_PID", "6.11", errno.ENOTTY, ioctls(NS_GET_PID_FROM_PIDNS, NS_GET_PID_IN_PIDNS)),
        Feature("NS_MNT_GET_NEXT", "6.12", errno.ENOTTY, ioctls(NS_MNT_GET_NEXT, NS_MNT_GET_PREV)),
        Feature("NS_GET_ID", "6.18", errno.ENOTTY, ioctls(NS_GET_ID)),
        Feature("memfd_create", "3.17", errno.ENOSYS, call(SYS_MEMFD_CREATE)),
        Feature("execveat", "3.19", errno.ENOSYS, call(SYS_EXECVEAT)),
    )
}
#: What Linux 4.18 has is not part of "all": it only may be forbidden.
OLD = tuple(name for name, feature in FEATURES.items() if not feature.since.startswith("3."))
#: Between which some of them came: the oldest that nsjoin works on, and those of long support.
RELEASES = ("4.18", "5.4", "5.10", "6.1")


def refuse(names: Iterable[str], *, forbidden: bool) -> None:
    """In this process, and what it starts, for good."""
    for name in names:
        feature = FEATURES[name]
        feature.refuse(errno.EPERM if forbidden else feature.absent).install()


def lacking(release: str) -> tuple[str, ...]:
    """What a kernel of that release does not have."""
    return tuple(name for name in OLD if number(FEATURES[name].since) > number(release))


def number(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))


def rows() -> list[tuple[str, tuple[str, ...]]]:
    releases = [(f"all that {release} lacks", lacking(release)) for release in RELEASES]
    return [("nothing", ()), *((name, (name,)) for name in FEATURES), *releases]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--like", metavar="RELEASE", help="run the command without what this release lacks")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.like is None:
        make_table()
    else:
        refuse(lacking(options.like), forbidden=False)
        os.execvp(options.command[0], options.command)


def make_table() -> None:
    from harness import Stage
    from stage import OPERATIONS

    table: list[tuple[str, ...]] = [("without", "how", *OPERATIONS)]
    notes: dict[str, str] = {}
    with Stage() as stage:
        for label, names in rows():
            for forbidden in (False, True):
                answers = [stage.perform(name, refused=names, forbidden=forbidden) for name in OPERATIONS]
                cells = [note(answer, notes) for answer in answers]
                table.append((label, "forbidden" if forbidden else "absent", *cells))
    widths = [max(map(len, column)) for column in zip(*table)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    for text, mark in notes.items():
        print(f"[{mark}] {text}")


def note(answer: dict[str, Any], notes: dict[str, str]) -> str:
    wrong = [what for what in ("hung", "left", "changed") if answer[what]]
    if wrong:
        return f"WRONG: {', '.join(wrong)}"
    if answer["error"] is None:
        return "works"
    return f"error [{notes.setdefault(answer['error'], str(len(notes) + 1))}]"


if __name__ == "__main__":
    main()
