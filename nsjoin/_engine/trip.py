"""TODO."""

from __future__ import annotations

import errno
from functools import lru_cache
from typing import TYPE_CHECKING

from .._kernel import abi
from .._kernel.calls import ffi, lib
from .._kernel.nstypes import BY_NAME, MNT
from .._kernel.thread import has_user_namespace_above, own_namespace
from ..exceptions import JoinError, NamespaceError, error
from . import guard, stays

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._kernel.nstypes import NsType
    from .._setns import CData
    from .._target.namespace import Namespace


_STAY = ffi.typeof("struct nsjoin_stay *")
_TRIP = ffi.typeof("struct nsjoin_trip *")


# --- the thread's way in and out ----------------------------------------------------------------------------


def _trip(rows: tuple[NsType, ...], moves: Sequence[tuple[int, int]], root: int = -1) -> CData:
    """Save each of ``rows``, then make the moves (descriptor, CLONE_NEW* bits). ``root``: becomes the root with mnt."""
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
    """The part of a trip that says what to save."""
    trip = ffi.new(_TRIP)
    trip.n = len(rows)
    trip.nstypes = [row.flag for row in rows]
    # of a PID namespace, setns(2) changes what children are born into, and nothing else
    trip.requests = [row.get_for_children or 0 if row.name == "pid" else row.get for row in rows]
    return trip


def _namespace_trip(namespaces: Sequence[Namespace], root: int = -1) -> CData:
    rows = tuple(BY_NAME[namespace.nstype] for namespace in namespaces)
    return _trip(rows, [(namespace.fileno(), row.flag) for namespace, row in zip(namespaces, rows)], root)


def _enter(stay: CData, trip: CData, rows: Sequence[NsType]) -> int:
    """Return 0, or the errno of the move ``stay.failed``; raise for everything else that fails."""
    result = lib.nsjoin_enter(stay, trip)
    if stay.stage == lib.NSJOIN_SAVE and -result in abi.NO_SUCH_IOCTL:
        result = _enter_by_proc(stay, trip, rows)
    if result == 0 or stay.stage == lib.NSJOIN_MOVE:
        return -result
    raise _own_error(-result, stay, rows)


def _own_error(number: int, stay: CData, rows: Sequence[NsType]) -> NamespaceError:
    """What has failed that is none of the moves."""
    call = _call_of(stay)
    if stay.stage == lib.NSJOIN_ROOT:
        needs = "; it needs CAP_SYS_CHROOT" if (call, number) == ("chroot", errno.EPERM) else ""
        reason = f"the target's root directory cannot be made the root{needs}"
        return error(NamespaceError, number, call, nstype="mnt", target="this thread", reason=reason)
    row = rows[stay.failed]
    if stay.stage == lib.NSJOIN_NO_WAY_BACK:
        no_way_back = (
            f"there would be no way back, since the {row.name} namespace that we are in belongs to a user namespace "
            "outside of ours; use spawn_in"
        )
        return error(JoinError, number, "enter", nstype=row.name, reason=no_way_back)
    if stay.stage == lib.NSJOIN_BACK:
        return stays.restore_error(number, stay, row)
    cannot = "this thread's root or working directory cannot be opened for the way back" if call == "open" else None
    return error(NamespaceError, number, call, nstype=row.name, target="this thread", reason=cannot)


def _call_of(stay: CData) -> str:
    """The system call that failed; ``save`` for one of those that open a namespace."""
    return ffi.string(stay.call).decode()


def _enter_by_proc(stay: CData, trip: CData, rows: Sequence[NsType]) -> int:
    """The same on kernels that do not give namespaces by pidfd (before Linux 6.11)."""
    stay.is_given = 1
    for index, row in enumerate(rows):
        stay.saved[index] = own_namespace(row, for_children=row.name == "pid")
        stay.n = index + 1
    return lib.nsjoin_enter(stay, trip)
