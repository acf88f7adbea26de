"""``enter``: this thread joins namespaces, and is restored."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import ContextDecorator, ExitStack
from typing import TYPE_CHECKING
from weakref import ref

from .._engine import guard, stays, trip
from .._joining import reasons
from .._kernel import abi, procfs
from .._kernel.calls import lib
from .._kernel.nstypes import BY_NAME, MNT, select
from .._target.namespace import Namespace, describe, namespace_of
from .._target.netns_etc import WithEtc
from .._target.process import Process
from .._target.target import OpenTarget, check_target
from ..exceptions import JoinError, error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Any, TypeVar

    from typing_extensions import Self

    from .._kernel.nstypes import NsType
    from .._setns import CData
    from .._target.target import Openable, TargetLike
    from ..exceptions import NamespaceError

    _Func = TypeVar("_Func", bound=Callable[..., Any])


class enter(ContextDecorator):  # noqa: N801 - read as a verb: with enter(...)
    """Join namespaces of ``target`` with this thread, and restore it on exit: a context manager and a decorator.

    ``target``: a pid; an object with one; a ``Target``; a ``Namespace``; the path of a namespace file; or an iterable
    of the last two. ``nstypes``: which types; may be left out unless the target is a process. All are joined or none.

    Only this thread moves. Threads and processes started inside are born there, and threads stay. ``"pid"`` affects
    processes started inside, not this one. With ``"mnt"`` the root is the target's, the working directory ``/``;
    the thread has its own working directory and umask from then on (unshare(2), CLONE_FS). With ``"ipc"``, pending
    SEM_UNDO operations of the thread are carried out. Inside ``"net"`` use sockets, netlink or /proc/thread-self/net:
    /proc/net is the main thread's. ``"user"`` cannot be entered, ``"time"`` only in a process without threads.

    Inside a foreign ``"mnt"``, importing a module that is not loaded yet would run a file of the target with this
    process's rights: it raises ImportError (LookupError for a codec) unless ``allow_imports`` is true. Loading a
    library, or starting a program other than by nsjoin, raises NamespaceError (NamespacePermissionError) likewise. The
    name service (users, groups, hosts) keeps its configuration and libraries from outside, and so does the time zone.

    ``netns_etc=True`` with ``"net"`` adds what ``ip netns exec`` does, as ``Popen`` documents: this thread sees the
    /sys and /etc of that network namespace. Imports are allowed, as the files are those of the caller.

    Do not hold it across an ``await``, a ``yield`` or a greenlet's switch: whatever else the thread runs meanwhile runs
    inside. If asyncio's loop has run within it, the exit restores the thread and raises RuntimeError. So does an exit
    out of order; the thread then comes back when the last inner ``enter`` is left.

    Python may run a signal handler before the first line of an exit; if that handler raises just then, as Ctrl-C's
    does, the thread is not restored (see ``signal``). Where that matters, join in a thread other than the main one,
    which runs no handlers, or use call_in.

    Reusable, reentrant, and usable from several threads; with an open ``Target`` or ``Namespace`` nothing of the
    target is opened again. Needs CAP_SYS_ADMIN here and over the namespaces, for mnt CAP_SYS_CHROOT too.

    Raises JoinError (JoinPermissionError), TargetGoneError or NamespaceError, and changes nothing then; TypeError and
    ValueError for bad arguments. The exit raises RestoreError if the thread is still inside: let it end. It raises
    RuntimeError, and changes nothing, in a thread that has not entered; if a generator's end left it there, the thread
    that entered comes back with its next ``enter`` or exit. setns(2); Linux 4.11.
    """

    def __init__(self, target: TargetLike, *nstypes: str, allow_imports: bool = False, netns_etc: bool = False) -> None:
        self._named = check_target(target)
        self._target: Openable = self._named
        self._rows = select(nstypes)
        if not nstypes and not isinstance(self._target, tuple):
            raise TypeError("enter a process by naming types, such as enter(pid, 'net')")
        _refuse(self._rows)
        self._netns_etc = netns_etc
        if netns_etc:
            self._target = with_etc = WithEtc(self._named, self._rows or None)
            self._rows = with_etc.wanted or ()
        self._allow_imports = allow_imports or netns_etc  # the files are the caller's own
        self._trip: CData | None = None
        self._may_join_mnt = not self._rows or MNT in self._rows
        if isinstance(self._target, tuple) and all(isinstance(member, Namespace) for member in self._target):
            self._given = choose(self._rows, self._target)  # type: ignore[arg-type]
            rows = rows_of(self._given)
            _refuse(rows)
            self._may_join_mnt = MNT in rows
            if not any(row.alone for row in rows):  # otherwise checked at each join: there may be threads by then
                self._trip = trip_into(self._given)
        self._ref = ref(self)
        self._spare: list[stays.Stay] = []  # stays to reuse: making one costs a tenth of a way there and back

    def __call__(self, func: _Func) -> _Func:
        """Decorate ``func``. TypeError for a coroutine or generator function, whose body would run after the exit."""
        if getattr(getattr(func, "__code__", None), "co_flags", 0) & stays.SUSPENDS:
            raise TypeError("enter cannot decorate a coroutine or generator function: its body would run outside")
        return super().__call__(func)

    def __enter__(self) -> Self:
        try:
            stay = self._spare.pop() if self._spare else stays.Stay(self._ref)
        except IndexError:  # another thread has taken the last one
            stay = stays.Stay(self._ref)
        try:
            stays.begin(stay, sys._getframe(1))
            if self._trip is not None:
                self._join_given(stay.c, self._trip)
            elif isinstance(self._target, Process):
                self._join_process(stay.c, self._target)
            else:
                self._join_opened(stay.c)
            if self._may_join_mnt and stay.c.cwd >= 0:
                stay.guard = trip.stand_guard(stay.c, self._allow_imports)
            if "asyncio.events" in sys.modules:
                stay.watch = stays.watch()
            return self
        except BaseException:
            stays.end(stay)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        frame = sys._getframe(1)
        stay: stays.Stay | None = None
        inner: Sequence[stays.Stay] = ()
        try:
            stay = stays.find(self._ref, frame)
            if stay is not None:
                inner = stays.end(stay)
        finally:
            # a signal handler may have raised before that; twice does nothing
            meant = stay or stays.find(self._ref, frame)
            if meant is not None and meant.stack is not None:
                stays.end(meant)
        if stay is None:
            raise stays.not_here(self._ref, frame)
        if inner:
            raise stays.out_of_order(stay, inner)
        watch, stay.watch = stay.watch, None  # which knows the event loop
        self._spare.append(stay)
        if watch is not None:
            watch.check()

    def _describe(self) -> str:
        """Return what was named, for an error message."""
        if isinstance(self._named, int):
            return f"process {self._named}"
        if isinstance(self._named, Process):
            return self._named.describe()
        return " ".join(
            describe(member) if isinstance(member, Namespace) else os.fsdecode(member) for member in self._named
        )

    def _join_given(self, stay: CData, given_trip: CData) -> None:
        for namespace in self._given:
            if namespace.closed:  # its number may be another file's by now
                raise ValueError("this Namespace is closed")
        if self._given[-1].nstype == "mnt":  # the last of the table; the trip is older than this join
            guard.prepare()
        result = lib.nsjoin_enter(stay, given_trip)
        if result == 0:
            return
        if stay.stage == lib.NSJOIN_BACK:  # a join now would save a foreign namespace as the way back
            raise trip.own_error(-result, stay, rows_of(self._given))
        _join_namespaces(stay, self._given)  # once more, to learn why

    def _join_opened(self, stay: CData) -> None:
        before = os.getcwd() if self._netns_etc else None
        with OpenTarget(self._target) as opened:
            if opened.process is not None:
                self._join_process(stay, opened.process)
            else:
                _join_namespaces(stay, choose(self._rows, opened.namespaces))
        if before is not None:
            os.chdir(before)  # the mount namespace is a copy of the caller's

    def _join_process(self, stay: CData, process: Process) -> None:
        _refuse(self._rows)
        with ExitStack() as stack:
            root = -1
            if MNT in self._rows:
                root = process.open_root()
                stack.callback(os.close, root)
            if process.pidfd >= 0:
                try:
                    trip.go(stay, trip.by_pidfd(self._rows, process.pidfd, root), self._rows)
                    return
                except trip.Refused as refused:
                    if not abi.lacks("setns with a pidfd", refused.errno):
                        raise _process_error(refused.errno, process, self._rows) from None
            opened = tuple(stack.enter_context(namespace_of(process, row)) for row in self._rows)
            _join_namespaces(stay, opened, root)


def choose(rows: tuple[NsType, ...], namespaces: Sequence[Namespace]) -> Sequence[Namespace]:
    """Return those of ``namespaces`` that ``rows`` name, all by default, in the order of the table. ValueError."""
    by_type = {namespace.nstype: namespace for namespace in namespaces}
    if len(by_type) < len(namespaces):
        raise ValueError("the target names two namespaces of one type")
    rows = rows or select(by_type)
    for row in rows:
        if row.name not in by_type:
            raise ValueError(f"the target has no {row.name} namespace, only {', '.join(sorted(by_type))}")
    return [by_type[row.name] for row in rows]


def rows_of(namespaces: Sequence[Namespace]) -> tuple[NsType, ...]:
    """Return the rows of the table for ``namespaces``."""
    return tuple(BY_NAME[namespace.nstype] for namespace in namespaces)


def trip_into(namespaces: Sequence[Namespace], root: int = -1) -> CData:
    """Return this thread's trip into ``namespaces``."""
    return trip.by_descriptors(rows_of(namespaces), [namespace.fileno() for namespace in namespaces], root)


def join_error(refused: trip.Refused, namespaces: Sequence[Namespace]) -> NamespaceError:
    """Explain a refused move of the trip into ``namespaces``."""
    culprit = namespaces[refused.index]
    reason = reasons.of_setns(refused.errno, culprit)
    return error(JoinError, refused.errno, "setns", nstype=culprit.nstype, target=describe(culprit), reason=reason)


def _join_namespaces(stay: CData, namespaces: Sequence[Namespace], root: int = -1) -> None:
    rows = rows_of(namespaces)
    _refuse(rows)
    try:
        trip.go(stay, trip_into(namespaces, root), rows)
    except trip.Refused as refused:
        raise join_error(refused, namespaces) from None


def _refuse(rows: tuple[NsType, ...]) -> None:
    for row in rows:
        if row.refusal:
            raise error(JoinError, errno.EINVAL, "enter", nstype=row.name, reason=f"{row.refusal}; use spawn_in")
        if row.alone:
            _refuse_beside_threads(row)


def _refuse_beside_threads(row: NsType) -> None:
    # the kernel counts the threads of C libraries too
    if len(procfs.names("self/task")) > 1:
        raise error(JoinError, errno.EUSERS, "enter", nstype=row.name, reason=f"{row.alone}; use spawn_in")
    with Namespace.current(row.name) as own, Namespace.current(row.name, for_children=True) as for_children:
        if own != for_children:
            raise error(
                JoinError,
                errno.EINVAL,
                "enter",
                nstype=row.name,
                reason=f"setns moves {row.children} too, which differs and could not be brought back; use spawn_in",
            )


def _process_error(number: int, process: Process, rows: tuple[NsType, ...]) -> NamespaceError:
    gone = process.gone_reason()
    nstype = "+".join(row.name for row in rows)
    kernel_says = errno.ESRCH if gone else number
    return error(JoinError, kernel_says, "setns", nstype=nstype, target=process.describe(), reason=gone)
