"""This thread's trips: what to save, into which namespaces to move, and the errors of it.

A trip is data that the compiled module carries out in one call, since a way there and back takes a few microseconds.
"""

from __future__ import annotations

import errno
import os
from functools import lru_cache
from typing import TYPE_CHECKING

from .._kernel import abi
from .._kernel.calls import ffi, lib
from .._kernel.nstypes import MNT, mask
from .._kernel.thread import has_user_namespace_above, own_namespace
from ..exceptions import JoinError, NamespaceError, error
from . import guard, stays

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .._kernel.nstypes import NsType
    from .._setns import CData


_TRIP = ffi.typeof("struct nsjoin_trip *")


class Refused(Exception):  # noqa: N818 - a report, which callers see explained
    """The kernel refused move ``index`` of a trip, with ``errno``."""

    def __init__(self, errno: int, index: int) -> None:
        super().__init__(errno, index)
        self.errno = errno
        self.index = index


# --- trips --------------------------------------------------------------------------------------------------


def by_pidfd(rows: tuple[NsType, ...], pidfd: int, root: int = -1) -> CData:
    """Return the trip into all of a process's namespaces at once. ``root``: becomes the root with mnt."""
    return _trip(rows, [(pidfd, mask(rows))], root)


def by_descriptors(rows: tuple[NsType, ...], fds: Sequence[int], root: int = -1) -> CData:
    """Return the trip into namespaces one by one. ``root``: becomes the root with mnt."""
    return _trip(rows, [(fd, row.flag) for fd, row in zip(fds, rows)], root)


def _trip(rows: tuple[NsType, ...], moves: Sequence[tuple[int, int]], root: int) -> CData:
    """Save each of ``rows``, then make the moves (descriptor, CLONE_NEW* bits)."""
    if MNT in rows:
        guard.prepare()
    trip = ffi.new(_TRIP, _saving(rows)[0])  # a copy
    trip.n_moves = len(moves)
    trip.moves = moves
    trip.root = root
    trip.check_way_back = has_user_namespace_above()
    return trip


@lru_cache(maxsize=64)
def _saving(rows: tuple[NsType, ...]) -> CData:
    """Return the part of a trip that names what to save."""
    trip = ffi.new(_TRIP)
    trip.n = len(rows)
    trip.nstypes = [row.flag for row in rows]
    # of a PID namespace, setns(2) changes what children are born into, and nothing else
    trip.requests = [row.get_for_children or 0 if row.name == "pid" else row.get for row in rows]
    return trip


# --- going --------------------------------------------------------------------------------------------------


def go(stay: CData, trip: CData, rows: Sequence[NsType]) -> None:
    """Move this thread, and keep the way back in ``stay``. Refused for a move; NamespaceError for all else."""
    result: int = lib.nsjoin_enter(stay, trip)
    if stay.stage == lib.NSJOIN_SAVE and abi.lacks("PIDFD_GET_*_NAMESPACE", -result):
        result = _go_by_proc(stay, trip, rows)
    if result == 0:
        return
    if stay.stage == lib.NSJOIN_MOVE:
        raise Refused(-result, stay.failed)
    raise own_error(-result, stay, rows)


def for_good(trip: CData, rows: Sequence[NsType], *, allow_imports: bool) -> Any:
    """Move this thread without a way back. Return the guard's state: hold it until the thread ends."""
    stay = ffi.new(stays.STAY)
    held = None
    try:
        go(stay, trip, rows)
        if stay.cwd >= 0:
            held = stand_guard(stay, allow_imports)
        stay.joined = 0  # nothing to go back to: only close what was saved
    finally:
        stays.leave(stay)
    return held


def stand_guard(stay: CData, allow_imports: bool) -> Any:
    """Guard this thread, which has joined mnt; return the guard's state before."""
    left = os.fstat(stay.saved[stay.n - 1]).st_ino  # mnt is the last of the table
    return guard.enter_thread(allow_imports=allow_imports, left=left)


def _go_by_proc(stay: CData, trip: CData, rows: Sequence[NsType]) -> int:
    """Save the namespaces by /proc and go, where the kernel gives none by pidfd (before Linux 6.11)."""
    stay.is_given = 1
    for index, row in enumerate(rows):
        stay.saved[index] = own_namespace(row, for_children=row.name == "pid")
        stay.n = index + 1
    return int(lib.nsjoin_enter(stay, trip))


def own_error(number: int, stay: CData, rows: Sequence[NsType]) -> NamespaceError:
    """Return the error for a step of a trip that is no move: saving, the root, the way back."""
    call = ffi.string(stay.call).decode()
    if stay.stage == lib.NSJOIN_ROOT:
        needs = "; it needs CAP_SYS_CHROOT" if (call, number) == ("chroot", errno.EPERM) else ""
        reason = f"the target's root directory cannot be made the root{needs}"
        return error(NamespaceError, number, call, nstype="mnt", target="this thread", reason=reason)
    row = rows[stay.failed]
    if stay.stage == lib.NSJOIN_NO_WAY_BACK:
        no_way_back = (
            f"there would be no way back, since this thread's {row.name} namespace belongs to a user namespace "
            "outside of this process's own; use spawn_in"
        )
        return error(JoinError, number, "enter", nstype=row.name, reason=no_way_back)
    if stay.stage == lib.NSJOIN_BACK:
        return stays.restore_error(number, stay, row)
    cannot = "this thread's root or working directory cannot be opened for the way back" if call == "open" else None
    return error(NamespaceError, number, call, nstype=row.name, target="this thread", reason=cannot)
