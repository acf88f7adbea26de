"""``create``: a new namespace, held by a descriptor, without moving the caller.

A process has to be born in a namespace for it to exist. It is a child that runs the joiner (_Holder below), ends as
soon as the namespace is open, and stays only where the namespace needs it: as the init of a PID namespace.
"""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from . import _guard, _idmap, _launch, _reason
from ._call import call_in
from ._namespace import Namespace
from ._nstype import BY_NAME, lookup
from ._process import Process, own_pid_namespace_is_left
from ._shim import ffi, lib
from ._unshare import refusal
from .exceptions import JoinError, NamespaceError, error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import FileIO

    from typing_extensions import Literal, Self

    from ._idmap import IdMap
    from ._nstype import NsType
    from ._setns import CData

PID, TIME, USER = BY_NAME["pid"], BY_NAME["time"], BY_NAME["user"]

#: The arguments that are for one type only, and what they are where they are not given.
_OPTIONS: dict[str, tuple[str, Any]] = {
    "uid_map": ("user", "root"),
    "gid_map": ("user", "root"),
    "monotonic": ("time", 0),
    "boottime": ("time", 0),
    "propagation": ("mnt", "private"),
    "keep": ("pid", False),
}

#: mount_namespaces(7); the bits of mount(2)
_PROPAGATION = {"private": 1 << 18, "slave": 1 << 19, "shared": 1 << 20, "unchanged": 0}


@overload
def create(nstype: Literal["pid"], *, user: Namespace | None = None, keep: bool = False) -> PidNamespace: ...
@overload
def create(
    nstype: str,
    *,
    user: Namespace | None = None,
    uid_map: IdMap | None = "root",
    gid_map: IdMap | None = "root",
    monotonic: float = 0,
    boottime: float = 0,
    propagation: Literal["private", "slave", "shared", "unchanged"] = "private",
    keep: bool = False,
) -> Namespace: ...
def create(nstype: str, *, user: Namespace | None = None, **options: Any) -> Namespace:
    """Make a namespace of type ``nstype`` and open it. No thread of ours moves, and no process stays behind.

    It lives as long as the ``Namespace`` is open, somebody is in it, or it is pinned (``Namespace.pin``).

    ``"pid"`` is the exception: a PID namespace lives as long as its init. So there is one, about 10 kB large, which
    reaps what is orphaned inside; the result is a ``PidNamespace``, whose ``close`` ends it and with it everything
    inside. It ends with this program too, however that ends; with ``keep=True`` it ends only when it is killed. Its
    root directory is empty, in a mount namespace of its own, and its other namespaces are ours: join the
    ``PidNamespace``, not its ``pid``.

    ``user``: the user namespace that is to own it, None for our own. Without CAP_SYS_ADMIN, make a ``"user"`` first and
    the others in it. It is entered in a forked child (see ``call_in``).

    ``uid_map``, ``gid_map`` of a ``"user"``: ranges (first id inside, first id outside, count), or ``"root"``: our own
    id is 0 inside; ``"current"``: it is the same inside; ``"auto"``: it is 0, and from 1 on come our subordinate ones
    (subuid(5)); None: nothing is mapped. More than our own id needs CAP_SETUID and CAP_SETGID, or the programs
    newuidmap and newgidmap. Where our own gid is all that is mapped, and not by CAP_SETGID, setgroups(2) is denied.

    ``monotonic``, ``boottime`` of a ``"time"``: what its clocks show more than ours, in seconds (time_namespaces(7)).

    ``propagation`` of a ``"mnt"``: how its mounts relate to ours (mount_namespaces(7)): ``"private"`` as with
    unshare(1), ``"slave"``, ``"shared"``, or ``"unchanged"``.

    Inside ``enter(..., "mnt")`` what needs a file or a program by its path is refused, as it would be the target's:
    ``"auto"``, newuidmap and newgidmap, offsets of clocks.

    NamespaceError (NamespacePermissionError) with the reason, TypeError and ValueError for bad arguments; then nothing
    is left. Needs CAP_SYS_ADMIN, for ``"user"`` nothing; offsets need CAP_SYS_TIME. clone(2), unshare(2); Linux 4.11,
    for time 5.6.
    """
    row = lookup(nstype)
    wanted = _wanted(row, options)
    owner = _foreign(user)
    if owner is None or row is PID:  # its init has to be our child
        return _make(wanted, owner)
    with call_in(owner, _make_file, row, options) as file:
        return Namespace.from_fd(file.fileno())


def _foreign(user: Namespace | None) -> Namespace | None:
    """The user namespace that is to be the owner, None for our own."""
    if user is None:
        return None
    if not isinstance(user, Namespace):
        raise TypeError(f"user is a Namespace, not {type(user).__name__}")
    if user.nstype != "user":
        raise ValueError(f"user is a user namespace, not a {user.nstype} namespace")
    with Namespace.current("user") as own:
        return None if user == own else user


class PidNamespace(Namespace):
    """A PID namespace that ``create`` has made, with the init that keeps it: a direct child of ours.

    ``close``, or the end of the ``with`` block, kills the init, and with it every process inside, and reaps it; where a
    child of ours inside has not been waited for, whose zombie keeps the init, that happens when it has been. In the
    child of a fork it only closes descriptors.
    """

    __slots__ = ("_holder",)

    _holder: _Holder

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        raise TypeError("only create('pid') makes a PidNamespace; Namespace(pid, 'pid') opens the one of a process")

    @classmethod
    def _owning(cls, fd: int, row: NsType) -> Self:
        os.close(fd)
        return cls(row)  # which raises

    @classmethod
    def _holding(cls, fd: int, row: NsType, holder: _Holder) -> Self:
        """Take ownership of ``fd`` and ``holder``."""
        made = cls.__new__(cls)
        made._holder = holder  # first: once there is a descriptor, __del__ closes both
        made._own(fd, row)
        return made

    @property
    def pid(self) -> int:
        """The pid of the init, as we see it. Readable when closed."""
        return self._holder.pid

    def close(self) -> None:
        """End the init (not with ``keep=True``) and close the descriptor. Closing twice is no error."""
        try:
            super().close()
        finally:
            self._holder.close()


class _Wanted(NamedTuple):
    """One namespace to make. ``maps``: ranges of uids and of gids; ``offsets``: the text for timens_offsets."""

    row: NsType
    maps: tuple[Sequence[tuple[int, ...]], Sequence[tuple[int, ...]]]
    offsets: bytes
    propagation: int
    keep: bool


def _wanted(row: NsType, options: dict[str, Any]) -> _Wanted:
    for name in options:
        if name not in _OPTIONS:
            raise TypeError(f"create has no argument {name!r}")
        if _OPTIONS[name][0] != row.name:
            raise TypeError(f"{name} is for {_OPTIONS[name][0]} namespaces only, not for {row.name}")
    given = {name: options.get(name, default) for name, (_, default) in _OPTIONS.items()}
    if given["propagation"] not in _PROPAGATION:
        raise ValueError(f"propagation is one of {', '.join(_PROPAGATION)}, not {given['propagation']!r}")
    maps: Any = ((), ())
    if row is USER:
        maps = _idmap.ranges(_idmap.UID, given["uid_map"]), _idmap.ranges(_idmap.GID, given["gid_map"])
    propagation = _PROPAGATION[given["propagation"]] if row.name == "mnt" else 0
    offsets = b"".join(_offset(name, given[name]) for name in ("monotonic", "boottime"))
    return _Wanted(row, maps, offsets, propagation, bool(given["keep"]))


def _offset(clock: str, seconds: float) -> bytes:
    whole, nanoseconds = divmod(round(seconds * 10**9), 10**9)
    return f"{clock} {whole} {nanoseconds}\n".encode() if whole or nanoseconds else b""


def _make_file(row: NsType, options: dict[str, Any]) -> FileIO:
    """In the child of ``call_in``, where our own ids are others: the new namespace as what comes back with its
    descriptor."""
    with _make(_wanted(row, options)) as namespace:
        return open(os.dup(namespace.fileno()), "rb", buffering=0)


def _make(wanted: _Wanted, user: Namespace | None = None) -> Namespace:
    holder = _Holder(wanted, user)
    is_kept = False
    try:
        holder.start(wanted)
        with Process.from_pid(holder.pid) as process:
            for kind, ranges in zip((_idmap.UID, _idmap.GID), wanted.maps):
                _idmap.write(process, kind, ranges)
            # a new time namespace is that of children until an execve enters it (Linux 6.2)
            for_children = wanted.row is TIME
            if wanted.row is not PID:
                return Namespace._owning(process.open_namespace(wanted.row, for_children=for_children), wanted.row)
            made = PidNamespace._holding(process.open_namespace(wanted.row), wanted.row, holder)
            is_kept = True
            return made
    finally:
        if not is_kept:
            holder.end()


# --- the process that holds it ------------------------------------------------------------------------------


class _Holder:
    """The process that is born in the new namespace, tied to a pipe: it ends when nobody holds the other end.

    What C knows of it stays in one place, so that no exception loses its pid.
    """

    __slots__ = ("_hold", "_owner", "_user", "pid")

    def __init__(self, wanted: _Wanted, user: Namespace | None) -> None:
        owner = user.fileno() if user else -1
        hold = (wanted.row.flag, wanted.propagation, owner, wanted.keep, -1, -1, 0, 0, _guard.is_away())
        self._hold: CData = ffi.gc(ffi.new("struct nsjoin_hold *", hold), lib.nsjoin_untie)
        self._user = user
        self._owner = os.getpid()
        self.pid = 0  # still to be read when it is reaped, and the number may be another's

    def start(self, wanted: _Wanted) -> None:
        """Start it: what is raised says what the kernel refused."""
        _launch._reap_late()
        with _launch.home() if own_pid_namespace_is_left() else nullcontext():
            self._start(wanted)
        self.pid = self._hold.pid

    def _start(self, wanted: _Wanted) -> None:
        offsets = wanted.offsets
        if offsets:
            _guard.must_be_home("timens_offsets", "a file of its owner's /proc would be written to", "time")
        image, image_is_ours = _launch._image.open()
        try:
            number = -lib.nsjoin_hold(self._hold, image, offsets or ffi.NULL, len(offsets))
        finally:
            if image_is_ours:
                os.close(image)
        if not number:
            return
        at = self._hold.step
        # as in _launch.launch: no memfd may be executed here; or a fork elsewhere has the file still open for writing
        if at == lib.NSJOIN_HOLD_EXEC and number == (errno.ETXTBSY if image_is_ours else errno.EACCES):
            if not image_is_ours:
                _launch._image.memfd_does_not_run()
            self._kill()
            self._start(wanted)
            return
        raise _error(number, at, wanted.row, self._user)

    def close(self) -> None:
        """End the process, unless it is to stay or another process's."""
        if not self._hold.stays:
            self.end()

    def end(self) -> None:
        """Untie the process, kill and reap it."""
        lib.nsjoin_untie(self._hold)
        self._kill()

    def _kill(self) -> None:
        if self._owner == os.getpid():
            _launch.end(self._hold.pid, is_init=bool(self._hold.nstypes & PID.flag))
            self._hold.pid = 0


def _error(number: int, at: int, row: NsType, user: Namespace | None) -> OSError:
    if at == lib.NSJOIN_HOLD_USER and user is not None:
        return error(JoinError, number, "setns", nstype="user", reason=_reason.of_setns(number, user))
    if at in (lib.NSJOIN_HOLD_CLONE, lib.NSJOIN_HOLD_TIME):
        return refusal(number, "create", (row,))
    if at == lib.NSJOIN_HOLD_OFFSETS:
        reason = _OFFSET_REASONS.get(number)
        return error(NamespaceError, number, "timens_offsets", nstype=row.name, reason=reason)
    if at == lib.NSJOIN_HOLD_ROOT:
        reason = "its init could not be given an empty root directory: mount(2) of a tmpfs, pivot_root(2)"
        return error(NamespaceError, number, "create", nstype=row.name, reason=reason)
    return OSError(number, os.strerror(number))


_OFFSET_REASONS = {
    errno.EPERM: "needs CAP_SYS_TIME in our user namespace",
    errno.ERANGE: "a clock would be negative, or beyond half of its range",
}
