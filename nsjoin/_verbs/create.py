"""``create``: a new namespace, held by a descriptor, without moving the caller; and ``unshare``, which moves it.

A namespace needs a process that is born in it: a child that runs the joiner (``_engine.holder``). It ends when the
namespace is open, and stays only as the init of a PID namespace.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, overload

from .._engine.holder import Holder, HoldFailed, Wanted
from .._joining.reasons import holder_error, refusal
from .._kernel import calls
from .._kernel.nstypes import PID, TIME, USER, lookup, mask, select
from .._target import id_maps
from .._target.namespace import Namespace, namespace_of
from .._target.process import Process
from .call import call_in

if TYPE_CHECKING:
    from io import FileIO
    from typing import Any

    from typing_extensions import Literal, Self

    from .._kernel.nstypes import NsType
    from .._target.id_maps import IdMap


#: The arguments that are for one type only: that type, and the default.
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
    """Make a namespace of type ``nstype`` and open it. No thread of the caller moves, and no process stays behind.

    It lives as long as the ``Namespace`` is open, a process is in it, or it is pinned (``Namespace.pin``).

    ``"pid"`` is the exception: a PID namespace lives as long as its init. ``create`` starts one of about 10 kB, which
    reaps orphans inside, and returns a ``PidNamespace``, whose ``close`` ends the init and with it every process
    inside. The init also ends with this process, however that ends; with ``keep=True`` only when it is killed. Its root
    directory is empty, in a mount namespace of its own, and its other namespaces are the caller's: join the
    ``PidNamespace``, not its ``pid``.

    ``user``: the user namespace that will own it, None for the caller's. Without CAP_SYS_ADMIN, make a ``"user"`` first
    and the others in it. It is entered in a forked child (see ``call_in``).

    ``uid_map``, ``gid_map`` of a ``"user"``: ranges (first id inside, first id outside, count), or ``"root"``: the
    caller's id is 0 inside; ``"current"``: it is the same inside; ``"auto"``: it is 0, and its subordinate ids follow
    from 1 (subuid(5)); None: nothing is mapped. More than the caller's id needs CAP_SETUID and CAP_SETGID, or the
    programs newuidmap and newgidmap. setgroups(2) is denied if only the caller's gid is mapped, without CAP_SETGID.

    ``monotonic``, ``boottime`` of a ``"time"``: its clocks' offsets to the caller's, in seconds (time_namespaces(7)).

    ``propagation`` of a ``"mnt"``: how its mounts relate to the caller's (mount_namespaces(7)): ``"private"`` as with
    unshare(1), ``"slave"``, ``"shared"``, or ``"unchanged"``.

    Inside ``enter(..., "mnt")``, ``"auto"``, newuidmap, newgidmap and offsets of clocks are refused: their paths would
    lead to the target's files.

    Raises NamespaceError (NamespacePermissionError) with the reason, TypeError and ValueError for bad arguments, and
    leaves nothing behind then. Needs CAP_SYS_ADMIN, for ``"user"`` nothing; offsets need CAP_SYS_TIME. clone(2),
    unshare(2); Linux 4.11, for time 5.6.
    """
    row = lookup(nstype)
    wanted = _wanted(row, options)
    owner = _foreign(user)
    if owner is None or row is PID:  # its init must be a child of this process
        return _make(wanted, owner)
    with call_in(owner, _make_file, row, options) as file:
        return Namespace.from_fd(file.fileno())


def _foreign(user: Namespace | None) -> Namespace | None:
    """Return the user namespace that will be the owner, None for the caller's."""
    if user is None:
        return None
    if not isinstance(user, Namespace):
        raise TypeError(f"user is a Namespace, not {type(user).__name__}")
    if user.nstype != "user":
        raise ValueError(f"user is a user namespace, not a {user.nstype} namespace")
    with Namespace.current("user") as own:
        return None if user == own else user


class PidNamespace(Namespace):
    """A PID namespace that ``create`` has made, with the init that keeps it: a direct child of this process.

    ``close``, or the end of the ``with`` block, kills the init, and with it every process inside, and reaps it. While a
    child of this process is a zombie inside, it keeps the init: the init is reaped once the child has been waited for.
    In the child of a fork, ``close`` only closes descriptors.
    """

    __slots__ = ("_holder",)

    _holder: Holder

    def __init__(self, *_arguments: object, **_keywords: object) -> None:
        raise TypeError("only create('pid') makes a PidNamespace; Namespace(pid, 'pid') opens the one of a process")

    @classmethod
    def _owning(cls, fd: int, row: NsType) -> Self:
        os.close(fd)
        return cls(row)  # which raises

    @classmethod
    def _holding(cls, fd: int, row: NsType, holder: Holder) -> Self:
        """Take ownership of ``fd`` and ``holder``."""
        made = cls.__new__(cls)
        made._holder = holder  # first: once there is a descriptor, __del__ closes both
        made._own(fd, row)
        return made

    @property
    def pid(self) -> int:
        """The pid of the init, as the caller sees it. Readable when closed."""
        return self._holder.pid

    def close(self) -> None:
        """End the init (not with ``keep=True``) and close the descriptor. Closing twice is no error."""
        try:
            super().close()
        finally:
            self._holder.close()


def _wanted(row: NsType, options: dict[str, Any]) -> Wanted:
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
        maps = id_maps.ranges(id_maps.UID, given["uid_map"]), id_maps.ranges(id_maps.GID, given["gid_map"])
    propagation = _PROPAGATION[given["propagation"]] if row.name == "mnt" else 0
    offsets = b"".join(_offset(name, given[name]) for name in ("monotonic", "boottime"))
    return Wanted(row, maps, offsets, propagation, bool(given["keep"]))


def _offset(clock: str, seconds: float) -> bytes:
    whole, nanoseconds = divmod(round(seconds * 10**9), 10**9)
    return f"{clock} {whole} {nanoseconds}\n".encode() if whole or nanoseconds else b""


def _make_file(row: NsType, options: dict[str, Any]) -> FileIO:
    """Return the new namespace as a file, which ``call_in`` can send; called in its child, whose ids are others."""
    with _make(_wanted(row, options)) as namespace:
        return open(os.dup(namespace.fileno()), "rb", buffering=0)


def _make(wanted: Wanted, user: Namespace | None = None) -> Namespace:
    holder = Holder(wanted, user.fileno() if user else -1)
    is_kept = False
    try:
        try:
            holder.start(wanted)
        except HoldFailed as failed:
            raise holder_error(failed.errno, failed.at, wanted.row, user) from None
        with Process(holder.pid) as process:
            for kind, ranges in zip((id_maps.UID, id_maps.GID), wanted.maps):
                id_maps.write(process, kind, ranges)
            # a new time namespace is that of children until an execve enters it (Linux 6.2)
            for_children = wanted.row is TIME
            if wanted.row is not PID:
                return namespace_of(process, wanted.row, for_children=for_children)
            made = PidNamespace._holding(process.open_namespace(wanted.row), wanted.row, holder)
            is_kept = True
            return made
    finally:
        if not is_kept:
            holder.end()


def unshare(*nstypes: str) -> None:
    """Put this thread into new namespaces of these types, for good: unshare(2), all or none.

    This affects the thread and what it starts later. ``"pid"`` and ``"time"`` affect only processes started later, the
    first of which is the init of the PID namespace. ``"mnt"`` gives the thread a working directory and umask of its
    own; its mounts still propagate as before (mount_namespaces(7)). ``"user"`` works only in a process without threads,
    and maps no ids. ``create`` makes a namespace without moving the thread.

    Raises NamespaceError (NamespacePermissionError) with the reason; TypeError and ValueError for bad arguments. Needs
    CAP_SYS_ADMIN, except for ``"user"``, which gives it for the others named with it. Linux 3.8; cgroup 4.6, time 5.6.
    """
    if not nstypes:
        raise TypeError("name the types of the new namespaces, such as unshare('net')")
    rows = select(nstypes)
    try:
        calls.unshare(mask(rows))
    except OSError as refused:
        raise refusal(refused.errno or 0, "unshare", rows, moves_thread=True) from None
