"""The stays of ``enter``: which namespaces each thread is inside of, and how it comes back.

A thread is in one place at a time, so its stays form a stack, and only the innermost can be left: to leave one beneath
it would put the thread where that one came from while the code of the inner one still runs, and the inner one's exit
would put it back into the outer one. Generators, tasks and greenlets of one thread end in any order all the same.

The stack is the kernel thread's: threading.local and get_ident() are a greenlet's once gevent or eventlet has patched
them, and the latter is given to a new thread as soon as an old one has ended.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

from .._kernel.calls import ffi, lib
from .._kernel.nstypes import BY_FLAG
from ..exceptions import RestoreError, error
from . import guard

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence
    from types import CodeType, FrameType
    from typing import Any
    from weakref import ref

    from .._kernel.nstypes import NsType
    from .._setns import CData
    from ..exceptions import NamespaceError

    #: of an ``enter``, which its stays do not keep alive
    Owner = ref[Any]


#: CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR: the module inspect has names for them, and costs an import
SUSPENDS = 0x20 | 0x80 | 0x200

NO_GUARD = object()  # of a stay without mnt

#: why a worker is refused
BORROWED = (
    "it is not a thread of its own but a greenlet in a thread that others use, which would be moved: gevent or "
    "eventlet has patched threading; leave that out, by monkey.patch_all(thread=False, queue=False) of gevent's or "
    "monkey_patch(thread=False) of eventlet's"
)

#: looked up once: a way there and back takes a few microseconds
this_thread, _leave = lib.nsjoin_thread, lib.nsjoin_leave

STAY = ffi.typeof("struct nsjoin_stay *")

#: by thread, the innermost last; a thread that is inside of nothing has none
_stacks: dict[int, list[Stay]] = {}


class Watch:
    """Notices that an event loop has run within a stay: every other task of the thread ran inside then."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._has_run = False
        self._handle = loop.call_soon(self._note)

    def _note(self) -> None:
        self._has_run = True

    def check(self) -> None:
        self._handle.cancel()
        if self._has_run:
            raise RuntimeError(
                "enter was held across an await, so other tasks ran in the target's namespaces; create the socket or "
                "file inside and await outside, or use a NamespaceExecutor"
            )


def watch() -> Watch | None:
    events = sys.modules.get("asyncio.events")
    loop = None if events is None else events._get_running_loop()
    return None if loop is None else Watch(loop)


class Stay:
    """One stay of one thread: from before its first join until the thread is back. Its ``enter`` uses it again."""

    __slots__ = ("c", "code", "frame", "guard", "is_left", "owner", "stack", "thread", "watch")

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.c: CData = ffi.new(STAY)
        self.thread = 0
        self.stack: list[Stay] | None = None  # that thread's, as long as this is on it
        self.frame = 0  # what entered: the id of a frame, and its code
        self.code: CodeType | None = None
        self.guard: Any = NO_GUARD  # the guard's state before
        self.watch: Watch | None = None
        self.is_left = False  # though the thread is inside yet, as long as inner ones are not left


def begin(stay: Stay, frame: FrameType) -> None:
    """Put ``stay`` on this thread's stack, before anything is saved or joined; the code of ``frame`` is to leave it.

    The garbage collector may close a generator at any moment, and so leave what that is inside of. From here on that
    is beneath this stay, and does not move the thread.
    """
    stay.frame = id(frame)
    stay.code = frame.f_code
    stay.guard = NO_GUARD
    stay.watch = None
    stay.is_left = False
    stay.thread = thread = this_thread()
    stack = _stacks.get(thread)
    if stack and stack[-1].is_left:  # by another thread
        _unwind(thread, stack)
    if not stack:
        stack = []
    stay.stack = stack
    stack.append(stay)
    _stacks[thread] = stack  # the collector may have emptied it just before, and taken it away


def find(owner: Owner, frame: FrameType) -> Stay | None:
    """Return the stay of ``owner`` that the code of ``frame`` leaves in this thread, None if it has none here."""
    stack = _stacks.get(this_thread())
    if not stack:
        return None
    top = stack[-1]
    if top.owner is owner and top.frame == id(frame) and not top.is_left:
        return top
    owned = [stay for stay in reversed(stack) if stay.owner is owner and not stay.is_left]
    for stay in owned:
        if _is_left_by(frame, stay):
            return stay
    return owned[0] if owned and _entered_elsewhere(owner, frame) is None else None


def _is_left_by(frame: FrameType, stay: Stay) -> bool:
    """Return whether the ``with`` in ``frame`` entered ``stay``, where several may run by turns.

    The frame of a ``with`` is the same at both ends. That of an ExitStack's method is not, and may have got the id of
    one that is no more; but then it runs other code.
    """
    alternates = frame.f_code.co_flags & SUSPENDS or "greenlet" in sys.modules
    return bool(alternates) and stay.frame == id(frame) and stay.code is frame.f_code


def end(stay: Stay) -> Sequence[Stay]:
    """Leave ``stay`` now, or once the inner stays are left; return those. Twice does nothing.

    RestoreError names the first namespace that the thread cannot return to.
    """
    stay.is_left = True
    stack = stay.stack
    if stack is None:
        return ()
    if stack[-1] is stay:
        _unwind(stay.thread, stack)
        return ()
    inner = stack[stack.index(stay) + 1 :]
    for one in inner:
        if one.owner() is None:  # its enter is gone, so nothing else can leave it
            one.is_left = True
    if stack[-1].is_left:
        _unwind(stay.thread, stack)
    return [one for one in inner if not one.is_left]


def _unwind(thread: int, stack: list[Stay]) -> None:
    """Come back from the innermost stays as long as they are left.

    Signal handlers and the garbage collector may leave others meanwhile, and a handler may raise: each step can be done
    twice, and what is not done yet is still on the stack.
    """
    failure: NamespaceError | None = None
    while stack and stack[-1].is_left:
        stay = stack[-1]
        result = _leave(stay.c)
        if result < 0 and failure is None:
            failure = restore_error(-result, stay.c, BY_FLAG[stay.c.nstypes[stay.c.failed]])
        if stay.guard is not NO_GUARD:
            guard.leave_thread(stay.guard)
        if stack and stack[-1] is stay:
            stack.pop()
            stay.stack = None
    if not stack and thread in _stacks:
        del _stacks[thread]
    if failure is not None:
        raise failure


def leave(stay: CData) -> None:
    """Bring the thread back from as far as it has gone. RestoreError names the first namespace that is out of reach."""
    result = _leave(stay)
    if result < 0:
        raise restore_error(-result, stay, BY_FLAG[stay.nstypes[stay.failed]])


def restore_error(number: int, stay: CData, row: NsType) -> NamespaceError:
    """Return the error of a failed way back."""
    reason = "this thread is still in the target's namespaces; let it exit"
    call = ffi.string(stay.call).decode()
    return error(RestoreError, number, call, nstype=row.name, target="this thread", reason=reason)


def is_borrowed(by: int) -> bool:
    """Return whether the thread that ``by`` started is not one of its own, so that a join would move another's.

    gevent and eventlet patch the start of a thread: it is then a greenlet in the thread that started it. The kernel's
    thread id shows that, and so does a greenlet that has a parent.
    """
    greenlet = sys.modules.get("greenlet")
    is_greenlet = greenlet is not None and greenlet.getcurrent().parent is not None
    thread = this_thread()
    return is_greenlet or thread == by or thread & 0xFFFFFFFF == os.getpid()


# --- what has gone wrong ------------------------------------------------------------------------------------


def out_of_order(stay: Stay, inner: Sequence[Stay]) -> RuntimeError:
    """Return the error for ``stay``, which was left before ``inner``."""
    return RuntimeError(
        f"{_words(stay)} was left before {', '.join(map(_words, reversed(inner)))}, which this thread entered later: "
        "it is still inside, and comes back when that is left; generators, tasks and greenlets share their thread's "
        "namespaces: hold no enter across a yield, an await or a switch; make the socket or file inside and use it "
        "outside, or use a NamespaceExecutor or call_in"
    )


def not_here(owner: Owner, frame: FrameType) -> RuntimeError:
    """Return the error for an exit in a thread that has no such stay.

    If it ends a generator's block that another thread began, that thread comes back with its next ``enter`` or exit.
    """
    text = "this enter was not entered in this thread, so it cannot be left here"
    stay = _entered_elsewhere(owner, frame)
    if stay is not None:
        stay.is_left = True
        comes_back = "comes back when it next enters or leaves anything"
        return RuntimeError(f"{text}: {_thread_words(stay.thread)} entered it, is still inside, and {comes_back}")
    threads = sorted({other.thread for other in _all_stays() if other.owner is owner and not other.is_left})
    if threads:
        return RuntimeError(f"{text}: {', '.join(map(_thread_words, threads))} entered it, and must leave it")
    return RuntimeError(f"{text}: no thread is inside of it")


def _entered_elsewhere(owner: Owner, frame: FrameType) -> Stay | None:
    """Return the stay that this very generator or coroutine began in another thread."""
    if not frame.f_code.co_flags & SUSPENDS:
        return None
    here = this_thread()
    for stay in _all_stays():
        if stay.owner is owner and stay.thread != here and not stay.is_left and _is_left_by(frame, stay):
            return stay
    return None


def _all_stays() -> list[Stay]:
    return [stay for stack in list(_stacks.values()) for stay in list(stack)]


def _words(stay: Stay) -> str:
    owner = stay.owner()
    target = "?" if owner is None else owner._describe()
    nstypes = "+".join(BY_FLAG[stay.c.nstypes[index]].name for index in range(stay.c.n))
    return f"enter({target}, {nstypes})"


def _thread_words(thread: int) -> str:
    tid = thread & 0xFFFFFFFF
    names = {getattr(known, "native_id", None): known.name for known in threading.enumerate()}
    return f"thread {tid} ({names[tid]})" if tid in names else f"thread {tid}"
