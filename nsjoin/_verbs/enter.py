"""``enter``: this thread joins namespaces, and is brought back."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import ContextDecorator, ExitStack
from typing import TYPE_CHECKING
from weakref import ref

from .._engine import stays
from .._engine.guard import enter_thread, prepare
from .._engine.trip import _STAY, _enter, _namespace_trip, _own_error, _trip
from .._joining import reasons
from .._kernel import abi, procfs
from .._kernel.calls import ffi, lib
from .._kernel.nstypes import BY_NAME, MNT, mask, select
from .._target.namespace import Namespace
from .._target.netns_etc import WithEtc
from .._target.target import OpenTarget, Target, check_target
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
    """Context manager and decorator: this thread joins namespaces of ``target``, and is restored on exit.

    ``target``: a pid; an object with one; a ``Target``; a ``Namespace``; the path of a namespace file; or an iterable
    of the last two. ``nstypes``: which types; may be left out unless the target is a process. All are joined or none.

    Only this thread moves. Threads and processes started inside are born there, and threads stay. ``"pid"`` affects
    processes started inside, not this one. With ``"mnt"`` the root is the target's, the working directory ``/``;
    the thread has its own working directory and umask from then on (unshare(2), CLONE_FS). With ``"ipc"``, pending
    SEM_UNDO operations of the thread are carried out. Inside ``"net"`` use sockets, netlink or /proc/thread-self/net:
    /proc/net is the main thread's. ``"user"`` cannot be entered, ``"time"`` only in a process without threads.

    Inside a foreign ``"mnt"``, a module that is not loaded yet would be a file of the target's, run with our rights:
    ImportError, LookupError for a codec, unless ``allow_imports`` is true. So would a library, and a program that is
    started other than by nsjoin: NamespaceError (NamespacePermissionError). The name service (users, groups, hosts)
    keeps the configuration and the libraries that it has outside, and the time zone is ours.

    ``netns_etc=True`` with ``"net"`` is what ``ip netns exec`` does besides, as said of ``Popen``: for this thread,
    /sys and /etc are those for that network namespace. Modules may be loaded, as these are our own files.

    Not to be held across an ``await``, a ``yield`` or a greenlet's switch: whatever else the thread runs meanwhile runs
    inside. Where asyncio's loop has run within it, leaving raises RuntimeError, once the thread is back. So does
    leaving before what the thread has entered later: then the thread comes back when the last of those is left.

    Python may run a signal handler before the first line of an exit; if that handler raises just then, as Ctrl-C's
    does, the thread is not brought back (docs of ``signal``). Where that matters, join in a thread other than the main
    one, which runs no handlers, or use call_in.

    Reusable, reentrant, and usable from several threads; with an open ``Target`` or ``Namespace`` nothing of the
    target is opened again. Needs CAP_SYS_ADMIN here and over the namespaces, for mnt CAP_SYS_CHROOT too.

    Raises JoinError (JoinPermissionError), TargetGoneError, NamespaceError: then nothing has changed. RestoreError from
    the exit: the thread is still inside and should end. RuntimeError if left in another thread than it was entered
    in: then nothing has changed either, and where that was the end of a generator, the thread that entered comes back
    with its next ``enter`` or exit. TypeError and ValueError for bad arguments. setns(2); Linux 4.11.
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
        self._allow_imports = allow_imports or netns_etc  # those are our own files
        self._trip: CData | None = None
        self._may_join_mnt = not self._rows or MNT in self._rows
        if isinstance(self._target, tuple) and all(isinstance(member, Namespace) for member in self._target):
            self._given = self._choose(self._target)  # type: ignore[arg-type]
            rows = tuple(BY_NAME[namespace.nstype] for namespace in self._given)
            _refuse(rows)
            self._may_join_mnt = MNT in rows
            if not any(row.alone for row in rows):  # else each time anew: there may be threads by then
                self._trip = _namespace_trip(self._given)
        self._ref = ref(self)
        self._spare: list[stays.Stay] = []  # those that are over: to make one costs a tenth of a way there and back

    def __call__(self, func: _Func) -> _Func:
        """As a decorator. TypeError for a coroutine or generator function, whose body would run after the exit."""
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
            elif isinstance(self._target, Target):
                self._join_process(stay.c, self._target)
            else:
                self._join_opened(stay.c)
            if self._may_join_mnt and stay.c.cwd >= 0:
                stay.guard = self._stand_guard(stay.c)
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

    def _words(self) -> str:
        """What was named, in an error message."""
        if isinstance(self._named, int):
            return f"process {self._named}"
        if isinstance(self._named, Target):
            return self._named.words()
        return " ".join(
            member.words() if isinstance(member, Namespace) else os.fsdecode(member) for member in self._named
        )

    def settle(self, root: int = -1) -> Any:
        """Join for good: this thread is not brought back. For given namespaces; ``root`` becomes the root with mnt.

        What is returned belongs to the thread, and must be held until it ends.
        """
        stay = ffi.new(_STAY)
        guard = None
        try:
            self._join_namespaces(stay, self._given, root)
            if stay.cwd >= 0:
                guard = self._stand_guard(stay)
            stay.joined = 0  # nothing to go back to: only close what was saved
        finally:
            stays.leave(stay)
        return guard

    def _stand_guard(self, stay: CData) -> Any:
        left = os.fstat(stay.saved[stay.n - 1]).st_ino  # mnt is the last of the table
        return enter_thread(allow_imports=self._allow_imports, left=left)

    def _join_given(self, stay: CData, trip: CData) -> None:
        for namespace in self._given:
            if namespace.closed:  # its number may be another file's by now
                raise ValueError("this Namespace is closed")
        if self._given[-1].nstype == "mnt":  # the last of the table; the trip is older than this join
            prepare()
        result = lib.nsjoin_enter(stay, trip)
        if result == 0:
            return
        if stay.stage == lib.NSJOIN_BACK:  # where this thread is now is not where it belongs: not to be saved as that
            raise _own_error(-result, stay, [BY_NAME[namespace.nstype] for namespace in self._given])
        self._join_namespaces(stay, self._given)  # once more, to tell why

    def _join_opened(self, stay: CData) -> None:
        before = os.getcwd() if self._netns_etc else None
        with OpenTarget(self._target) as opened:
            if opened.process is not None:
                self._join_process(stay, opened.process)
            else:
                self._join_namespaces(stay, self._choose(opened.namespaces))
        if before is not None:
            os.chdir(before)  # the mount namespace is a copy of ours

    def _join_process(self, stay: CData, process: Target) -> None:
        _refuse(self._rows)
        with ExitStack() as stack:
            root = -1
            if MNT in self._rows:
                root = process.open_root()
                stack.callback(os.close, root)
            if process.pidfd >= 0:
                trip = _trip(self._rows, [(process.pidfd, mask(self._rows))], root)
                number = _enter(stay, trip, self._rows)
                if not number:
                    return
                if number not in abi.TRY_DESCRIPTORS:
                    raise _process_error(number, process, self._rows)
            opened = tuple(stack.enter_context(process.namespace(row.name)) for row in self._rows)
            self._join_namespaces(stay, opened, root)

    def _join_namespaces(self, stay: CData, namespaces: Sequence[Namespace], root: int = -1) -> None:
        rows = tuple(BY_NAME[namespace.nstype] for namespace in namespaces)
        _refuse(rows)
        number = _enter(stay, _namespace_trip(namespaces, root), rows)
        if number:
            culprit = namespaces[stay.failed]
            reason = reasons.of_setns(number, culprit)
            raise error(JoinError, number, "setns", nstype=culprit.nstype, target=culprit.words(), reason=reason)

    def _choose(self, namespaces: Sequence[Namespace]) -> Sequence[Namespace]:
        """Those that are asked for, in the order of the table."""
        by_type = {namespace.nstype: namespace for namespace in namespaces}
        if len(by_type) < len(namespaces):
            raise ValueError("the target names two namespaces of one type")
        rows = self._rows or select(by_type)
        for row in rows:
            if row.name not in by_type:
                raise ValueError(f"the target has no {row.name} namespace, only {', '.join(sorted(by_type))}")
        return [by_type[row.name] for row in rows]


def _refuse(rows: tuple[NsType, ...]) -> None:
    for row in rows:
        if row.refusal:
            raise error(JoinError, errno.EINVAL, "enter", nstype=row.name, reason=f"{row.refusal}; use spawn_in")
        if row.alone:
            _refuse_beside_threads(row)


def _refuse_beside_threads(row: NsType) -> None:
    # the kernel counts its own way: threads of C libraries too
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


def _process_error(number: int, process: Target, rows: tuple[NsType, ...]) -> NamespaceError:
    gone = process.gone_reason()
    nstype = "+".join(row.name for row in rows)
    kernel_says = errno.ESRCH if gone else number
    return error(JoinError, kernel_says, "setns", nstype=nstype, target=process.words(), reason=gone)
