"""``enter``: this thread joins namespaces, and is brought back."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import ContextDecorator, ExitStack
from typing import TYPE_CHECKING

from . import _reason, _shim
from ._namespace import Namespace
from ._nstype import BY_FLAG, BY_NAME, mask, select
from ._shim import ffi, lib
from ._target import OpenTarget, Target, check_target
from .exceptions import JoinError, NamespaceError, RestoreError, error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from typing_extensions import Self

    from ._nstype import NsType
    from ._setns import CData
    from ._target import TargetLike

#: Answers of setns(2) with a pidfd after which the namespaces are joined one by one by their descriptors: an old kernel
#: (it needs Linux 5.8), a seccomp filter, or a refusal, which then names its namespace.
_TRY_DESCRIPTORS = frozenset({errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EBADF})


class _Refused(Exception):
    """The kernel refused the move ``index`` with ``errno``."""

    def __init__(self, index: int, errno: int) -> None:
        super().__init__(index, errno)
        self.index = index
        self.errno = errno


#: A struct nsjoin_stay that holds nothing.
_EMPTY_STAY = {"saved": [-1] * 8, "root": -1, "cwd": -1}


class enter(ContextDecorator):  # noqa: N801 - read as a verb: with enter(...)
    """Context manager and decorator: this thread joins namespaces of ``target``, and is restored on exit.

    ``target``: a pid; an object with one; a ``Target``; a ``Namespace``; the path of a namespace file; or an iterable
    of the last two. ``nstypes``: which types; may be left out unless the target is a process. All are joined or none.

    Only this thread moves. Threads and processes started inside are born there, and threads stay. ``"pid"`` affects
    processes started inside, not this one. With ``"mnt"`` the root is the target's, the working directory ``/``;
    the thread has its own working directory and umask from then on (unshare(2), CLONE_FS). With ``"ipc"``, pending
    SEM_UNDO operations of the thread are carried out. Inside ``"net"`` use sockets, netlink or /proc/thread-self/net:
    /proc/net is the main thread's. ``"user"`` cannot be entered, ``"time"`` only in a process without threads.

    Reusable, reentrant, and usable from several threads; with an open ``Target`` or ``Namespace`` nothing of the
    target is opened again. Needs CAP_SYS_ADMIN here and over the namespaces, for mnt CAP_SYS_CHROOT too.

    Raises JoinError (JoinPermissionError), TargetGoneError, NamespaceError: then nothing has changed. RestoreError from
    the exit: the thread is still inside and should end. RuntimeError if left in another thread than it was entered
    in: then nothing has changed either. TypeError and ValueError for bad arguments. setns(2); Linux 4.11.
    """

    def __init__(self, target: TargetLike, *nstypes: str) -> None:
        self._target = check_target(target)
        self._rows = select(nstypes)
        if not nstypes:
            if not isinstance(self._target, tuple):
                raise TypeError("enter a process by naming types, such as enter(pid, 'net')")
        _refuse(self._rows)
        self._stays: dict[int, list[CData]] = {}

    def __enter__(self) -> Self:
        target = self._target
        stay = ffi.new("struct nsjoin_stay *", _EMPTY_STAY)
        try:
            if isinstance(target, Target):
                self._join_process(stay, target)
            elif isinstance(target, tuple) and all(isinstance(member, Namespace) for member in target):
                self._join_namespaces(stay, target)  # type: ignore[arg-type]  # nothing to open or close
            else:
                with OpenTarget(target) as opened:
                    if opened.process is not None:
                        self._join_process(stay, opened.process)
                    else:
                        self._join_namespaces(stay, opened.namespaces)
            self._stays.setdefault(threading.get_ident(), []).append(stay)
        except BaseException:
            _go_back(stay)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        thread = threading.get_ident()
        stays = self._stays.get(thread)
        if not stays:
            raise RuntimeError("this enter was not entered in this thread, so it cannot be left here")
        _go_back(stays[-1])  # first, then forget it: a signal handler may raise in between
        stays.pop()
        if not stays:
            del self._stays[thread]

    def _join_process(self, stay: CData, process: Target) -> None:
        _refuse(self._rows)
        with ExitStack() as stack:
            root = -1
            if BY_NAME["mnt"] in self._rows:
                root = process.open_root()
                stack.callback(os.close, root)
            if process.pidfd >= 0:
                try:
                    return _join(stay, self._rows, ((process.pidfd, mask(self._rows)),), root)
                except _Refused as refused:
                    if refused.errno not in _TRY_DESCRIPTORS:
                        raise _process_error(refused, process, self._rows) from None
                _go_back(stay)
            opened = tuple(stack.enter_context(process.namespace(row.name)) for row in self._rows)
            return self._join_namespaces(stay, opened, root)

    def _join_namespaces(self, stay: CData, namespaces: Sequence[Namespace], root: int = -1) -> None:
        chosen = self._choose(namespaces)
        rows = tuple(BY_NAME[namespace.nstype] for namespace in chosen)
        _refuse(rows)
        moves = [(namespace.fileno(), row.flag) for namespace, row in zip(chosen, rows)]
        try:
            _join(stay, rows, moves, root)
        except _Refused as refused:
            culprit = chosen[refused.index]
            reason = _reason.of_setns(refused.errno, culprit)
            raise error(
                JoinError, refused.errno, "setns", nstype=culprit.nstype, target=culprit.words(), reason=reason
            ) from None

    def _choose(self, namespaces: Sequence[Namespace]) -> Sequence[Namespace]:
        """Those that are asked for, in the order of the table."""
        if len(namespaces) == 1 and (not self._rows or self._rows[0].name == namespaces[0].nstype):
            return namespaces
        by_type = {namespace.nstype: namespace for namespace in namespaces}
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
    if len(os.listdir("/proc/self/task")) > 1:
        raise error(JoinError, errno.EUSERS, "enter", nstype=row.name, reason=f"{row.alone}; use spawn_in")
    with Namespace.current(row.name) as own, Namespace.current(row.name, for_children=True) as for_children:
        if own != for_children:
            raise error(
                JoinError,
                errno.EINVAL,
                "enter",
                nstype=row.name,
                reason=f"setns moves {row.children} as well, and it could not be brought back: it differs; use spawn_in",
            )


def _process_error(refused: _Refused, process: Target, rows: tuple[NsType, ...]) -> NamespaceError:
    gone = process.gone_reason()
    number = errno.ESRCH if gone else refused.errno
    nstype = "+".join(row.name for row in rows)
    return error(JoinError, number, "setns", nstype=nstype, target=process.words(), reason=gone)


# --- the thread's way in and out ---------------------------------------------------------------------------------------


def _join(stay: CData, rows: tuple[NsType, ...], moves: Sequence[tuple[int, int]], root: int = -1) -> None:
    """Save where the thread is, then make the moves, each a descriptor and CLONE_NEW* bits. Going back is the caller's.

    ``root``: becomes the root once mnt is joined. _Refused, NamespaceError.
    """
    _save(stay, rows)
    for index, (fd, nstypes) in enumerate(moves):
        result = lib.nsjoin_move(stay, fd, nstypes)
        if result < 0:
            raise _Refused(index, -result)
    if root >= 0:
        os.fchdir(root)  # setns has moved to the root of the mount namespace, the target may be chrooted in it
        os.chroot(".")


def _save(stay: CData, rows: tuple[NsType, ...]) -> None:
    """Open everything that the way back needs: afterwards neither /proc nor a path can be relied on."""
    nstypes = [row.flag for row in rows]
    # of a PID namespace, setns(2) changes what children are born into, and nothing else
    requests = [row.get_for_children or 0 if row.name == "pid" else row.get for row in rows]
    result = lib.nsjoin_save(stay, len(rows), nstypes, requests)
    if -result in _shim.NO_SUCH_IOCTL and stay.saved[stay.failed] < 0:
        for index, row in enumerate(rows):
            if stay.saved[index] < 0:
                stay.saved[index] = _own_by_proc(row)
        result = lib.nsjoin_save(stay, len(rows), nstypes, requests)
    if result < 0:
        row = rows[stay.failed]
        reason = "its root or working directory cannot be opened for the way back" if row.name == "mnt" else None
        raise error(NamespaceError, -result, "save", nstype=row.name, target="this thread", reason=reason)


def _own_by_proc(row: NsType) -> int:
    try:
        return _shim.own_namespace(row, for_children=row.name == "pid")
    except OSError as refused:
        reason = _reason.of_missing_type(row) if refused.errno == errno.ENOENT else None
        raise error(
            NamespaceError, refused.errno or 0, "save", nstype=row.name, target="this thread", reason=reason
        ) from None


def _go_back(stay: CData) -> None:
    """The way back, as far as the thread has gone. RestoreError names the first namespace that it cannot return to."""
    result = lib.nsjoin_back(stay)
    if result < 0:
        row = BY_FLAG[stay.nstypes[stay.failed]]
        reason = "the thread is still inside, and should run nothing more than its end"
        raise error(RestoreError, -result, "setns", nstype=row.name, target="this thread", reason=reason)
