"""uid_map and gid_map of a user namespace: read, translated, written. user_namespaces(7)."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

from .._kernel import procfs
from ..exceptions import JoinError, NamespaceError, error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any, Union

    from typing_extensions import Literal, TypeAlias

    from .process import Process

    #: Ranges (first id inside, first id outside, count), or a word for them.
    IdMap: TypeAlias = Union[Literal["root", "current", "auto"], Iterable[tuple[int, int, int]]]


class IdRanges(NamedTuple):
    """A uid_map or gid_map as this process sees it: ranges of (inside, outside, count). user_namespaces(7)."""

    name: str
    ranges: list[tuple[int, ...]]
    owner: str  # the process, as error messages call it

    @classmethod
    def of(cls, process: Process, name: str) -> IdRanges:
        """Read the map of a pinned process. NamespaceError, OSError."""
        return cls.parse(name, process.read_proc(name), process.describe())

    @classmethod
    def parse(cls, name: str, text: str, owner: str) -> IdRanges:
        """Parse the text of /proc/PID/uid_map or gid_map."""
        return cls(name, [tuple(map(int, line.split())) for line in text.splitlines()], owner)

    def inside(self, id_: int) -> int | None:
        """Return the id inside for one that this process sees, as in /proc/PID/status; None: it is not mapped."""
        mapped = (inside + id_ - outside for inside, outside, count in self.ranges if outside <= id_ < outside + count)
        return next(mapped, None)

    def outside(self, id_: int) -> int | None:
        """Return the id that this process sees for one inside; None: it is not mapped."""
        mapped = (outside + id_ - inside for inside, outside, count in self.ranges if inside <= id_ < inside + count)
        return next(mapped, None)

    def all_inside(self, ids: Sequence[int], step: str) -> Any:
        """Return all of them inside; JoinError, in the name of the system call ``step``, for one that is not mapped."""
        found = tuple(self.inside(id_) for id_ in ids)
        if None not in found:
            return found
        number = ids[found.index(None)]
        reason = f"id {number} of {self.owner} is not mapped in its {self.name}"
        raise error(JoinError, errno.EINVAL, step, target=self.owner, reason=reason)


_END_OF_IDS = 1 << 32


class Kind(NamedTuple):
    """Users or groups: the map, the caller's own id, the file of subordinate ids, and the program that maps those."""

    name: str
    own: Callable[[], int]
    subordinate: str
    program: str
    capability: str


UID = Kind("uid_map", os.geteuid, "/etc/subuid", "newuidmap", "CAP_SETUID")
GID = Kind("gid_map", os.getegid, "/etc/subgid", "newgidmap", "CAP_SETGID")


def ranges(kind: Kind, given: IdMap | None) -> list[tuple[int, ...]]:
    """Return the ranges that ``given`` stands for. TypeError, ValueError; NamespaceError without subordinate ids."""
    if given is None:
        return []
    if isinstance(given, str):
        if given not in _WORDS:
            raise ValueError(f"{kind.name} is ranges, or one of {', '.join(map(repr, _WORDS))}, not {given!r}")
        return _WORDS[given](kind)
    found = [tuple(map(int, one)) for one in given]
    for one in found:
        if len(one) != 3 or min(one[:2]) < 0 or one[2] < 1 or max(one[:2]) + one[2] > _END_OF_IDS:
            raise ValueError(f"{kind.name} has ranges of three numbers, (inside, outside, count), not {one}")
    return found


def _auto(kind: Kind) -> list[tuple[int, ...]]:
    """Return the caller's own id as 0, and all its subordinate ones from 1 on."""
    found: list[tuple[int, ...]] = [(0, kind.own(), 1)]
    inside = 1
    for first, count in _subordinate(kind):
        found.append((inside, first, count))
        inside += count
    if len(found) == 1:
        reason = f"uid {os.geteuid()} has no subordinate ids in {kind.subordinate}"
        raise error(NamespaceError, errno.EPERM, kind.name, nstype="user", reason=reason)
    return found


_WORDS: dict[str, Callable[[Kind], list[tuple[int, ...]]]] = {
    "root": lambda kind: [(0, kind.own(), 1)],
    "current": lambda kind: [(kind.own(), kind.own(), 1)],
    "auto": _auto,
}


def _subordinate(kind: Kind) -> Iterator[tuple[int, int]]:
    """Yield the caller's lines of subuid(5) or subgid(5): both name users, by name or number."""
    procfs.must_be_home(kind.name, f"{kind.subordinate} is its owner's", "user")
    import pwd  # the name service is asked only here

    owners = {str(os.geteuid())}
    try:
        owners.add(pwd.getpwuid(os.geteuid()).pw_name)
    except KeyError:
        pass
    try:
        with open(kind.subordinate, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.strip().split(":") for line in file]
    except FileNotFoundError:
        return
    for line in lines:
        if len(line) == 3 and line[0] in owners:
            yield int(line[1]), int(line[2])


def write(process: Process, kind: Kind, wanted: Sequence[tuple[int, ...]]) -> None:
    """Write a map of the user namespace of ``process``: directly where the kernel allows, else by newuidmap(1)."""
    if not wanted:
        return
    text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in wanted)
    number = _write(process, kind.name, text)
    if number == errno.EPERM and kind is GID and _is_own_only(kind, wanted):
        # a caller that may not set groups may not drop one inside either: that group may deny it a file
        number = _write(process, "setgroups", "deny") or _write(process, kind.name, text)
    elif number == errno.EPERM:
        _run_program(process, kind, wanted)
        return
    if number:
        reason = "ranges overlap, or there are more than 340 of them" if number == errno.EINVAL else None
        raise error(NamespaceError, number, kind.name, nstype="user", reason=reason)


def _is_own_only(kind: Kind, wanted: Sequence[tuple[int, ...]]) -> bool:
    return len(wanted) == 1 and tuple(wanted[0][1:]) == (kind.own(), 1)


#: How long an execve may take between closing descriptors, for which nsjoin_hold waits, and making the process
#: dumpable: it is not interrupted.
_EXEC_SECONDS = 1


def _write(process: Process, name: str, text: str) -> int:
    """Write a file of the process's /proc directory: 0 or the errno."""
    deadline = time.monotonic() + _EXEC_SECONDS
    while True:
        number = _write_now(process, name, text)
        # the child of an undumpable process, such as that of a call, is undumpable until execve(2) is through, and its
        # files belong to root until then: proc(5)
        if number != errno.EACCES or time.monotonic() > deadline:
            return number
        time.sleep(0.001)


def _write_now(process: Process, name: str, text: str) -> int:
    """Write it in one write(2), as the kernel requires."""
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=process.proc())
        try:
            os.write(fd, text.encode("ascii"))
        finally:
            os.close(fd)
    except NamespaceError:
        raise
    except OSError as refused:
        return refused.errno or 0
    return 0


def _run_program(process: Process, kind: Kind, wanted: Sequence[tuple[int, ...]]) -> None:
    procfs.must_be_home(kind.name, f"the program {kind.program} is its owner's, run with our capabilities", "user")
    numbers = [str(number) for one in wanted for number in one]
    try:
        done = subprocess.run(
            [kind.program, str(process.pid), *numbers],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        said = done.stderr.strip() or f"exit status {done.returncode}"
        failed = done.returncode != 0
    except FileNotFoundError:
        said, failed = "it is not installed (package uidmap)", True
    if failed:
        reason = f"more than our own id needs {kind.capability}, or the program {kind.program}: {said}"
        raise error(NamespaceError, errno.EPERM, kind.name, nstype="user", reason=reason)
