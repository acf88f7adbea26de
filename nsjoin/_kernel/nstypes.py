"""The table of namespace types: the facts of namespaces(7) as data."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable


#: How ``_IO(0xFF, n)`` of linux/pidfd.h is encoded: the requests PIDFD_GET_*_NAMESPACE (Linux 6.11).
_PIDFD_IOCTL = 0xFF00


class NsType(NamedTuple):
    """One type of namespace.

    ``name`` is its entry in /proc/PID/ns, ``flag`` its CLONE_NEW* bit, ``get`` the ioctl that turns a pidfd into a
    descriptor of it, and ``since`` the first Linux release that has it. ``children`` is the entry in /proc/PID/ns of
    the namespace that children are born into where that can be another one, ``get_for_children`` its ioctl.
    ``refusal`` says why ``enter`` never joins this type, ``alone`` why it does so only in a process without threads,
    ``executor`` why no worker of a NamespaceExecutor lives in one.
    """

    name: str
    flag: int
    get: int
    since: str
    children: str | None = None
    get_for_children: int | None = None
    refusal: str | None = None
    alone: str | None = None
    executor: str | None = None


#: In the order in which ``enter`` joins them. mnt is last: from then on, paths are the target's.
NSTYPES = (
    NsType(
        "user",
        0x10000000,
        _PIDFD_IOCTL | 9,
        "3.8",
        refusal="a process cannot come back from another user namespace, and the kernel refuses it beside threads",
        executor="a thread cannot change its user namespace beside others",
    ),
    NsType("cgroup", 0x02000000, _PIDFD_IOCTL | 1, "4.6"),
    NsType("ipc", 0x08000000, _PIDFD_IOCTL | 2, "2.6.19"),
    NsType("uts", 0x04000000, _PIDFD_IOCTL | 10, "2.6.19"),
    NsType("net", 0x40000000, _PIDFD_IOCTL | 4, "2.6.29"),
    NsType(
        "time",
        0x00000080,
        _PIDFD_IOCTL | 7,
        "5.6",
        "time_for_children",
        _PIDFD_IOCTL | 8,
        alone="the kernel lets only a process without threads join a time namespace",
        executor="a thread cannot change its time namespace beside others",
    ),
    NsType(
        "pid",
        0x20000000,
        _PIDFD_IOCTL | 5,
        "3.8",
        "pid_for_children",
        _PIDFD_IOCTL | 6,
        executor="a thread never changes its PID namespace, only processes that it starts are born inside",
    ),
    NsType("mnt", 0x00020000, _PIDFD_IOCTL | 3, "3.8"),
)

USER, CGROUP, IPC, UTS, NET, TIME, PID, MNT = NSTYPES

BY_NAME = {row.name: row for row in NSTYPES}
BY_FLAG = {row.flag: row for row in NSTYPES}


def lookup(nstype: str) -> NsType:
    """Return the row of ``nstype``; TypeError if it is not a str, ValueError if it is unknown."""
    if not isinstance(nstype, str):
        raise TypeError(f"a namespace type is a str, not {type(nstype).__name__}")
    try:
        return BY_NAME[nstype]
    except KeyError:
        raise ValueError(f"unknown namespace type {nstype!r}: one of {', '.join(BY_NAME)}") from None


def select(nstypes: Iterable[str]) -> tuple[NsType, ...]:
    """Return the rows of ``nstypes``, each once, in the table's order."""
    if isinstance(nstypes, (str, bytes)):
        raise TypeError(f"namespaces is an iterable of types, such as ({nstypes!r},), not a {type(nstypes).__name__}")
    return _select(tuple(nstypes))


@lru_cache(maxsize=64)
def _select(nstypes: tuple[str, ...]) -> tuple[NsType, ...]:
    wanted = {lookup(nstype) for nstype in nstypes}
    return tuple(row for row in NSTYPES if row in wanted)


def mask(rows: Iterable[NsType]) -> int:
    """Return the CLONE_NEW* bits of ``rows``."""
    bits = 0
    for row in rows:
        bits |= row.flag
    return bits
