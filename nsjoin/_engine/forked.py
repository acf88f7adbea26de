"""Fork the child of a call, wait for it, read its result: the engine of ``call_in``."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from itertools import starmap
from typing import TYPE_CHECKING, NamedTuple

from .._kernel import calls, procfs
from .._kernel.calls import ffi, lib
from .._kernel.nstypes import MNT, PID
from .._kernel.thread import own_namespace
from ..exceptions import CallDiedError, CallExitError, CallResultError, RestoreError, error
from . import answer, guard, raised, transfer
from .children import end, readable
from .job import NO_PROGRAM, At, Failed
from .wire import pack

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from typing import Any, NoReturn

    from .._setns import CData
    from ..exceptions import CallError
    from .job import Launch, Way


class Terms(NamedTuple):
    """What the caller of ``call_in`` permits."""

    allow_imports: bool
    trust_target: bool
    result: str


#: proc(5), /proc/PID/stat: field 48, arg_start, counted from that after the name in parentheses
_ARG_START = 48 - 3

_LOST = "this thread's children are still born in the target; let it exit"


class Call:
    """One call: the parent's side of the child.

    The child is a fork of this process, with pid born inside. Where this thread may not go there for the fork, or not
    come back, the child is a fork of a fork: the one in the middle joins, waits for it, passes on how it ended, and
    ends it when we say so, or die.
    """

    def __init__(self, func: Callable[..., Any], args: Sequence[Any], terms: Terms) -> None:
        self._child = _Child(func, args, terms)
        self._data_only = terms.result == "data"
        self._forked: list[int] = []
        self._work: Any = None
        self._plan: Any = None  # memory that the work points to, as the next
        self._argv_kept: Any = None
        self._text: Any = None
        self._status = 0

    def run(self, way: Way) -> Launch:
        """Fork, and wait until the child has ended: reading its message earlier would cost a copy of each page that we
        write to meanwhile, and Python writes to everything that it looks at."""
        self.close()
        try:
            self._begin(way)
            yield from self._wait()
            self._receive()
        except BaseException:
            self.close()
            raise
        return 0

    def _begin(self, way: Way) -> None:
        for step in way.joins:
            if step.nstypes & MNT.flag:
                self._child.is_guarded = True
                guard.prepare()
        flush_standard_streams()
        work = self._work = ffi.gc(ffi.new("struct nsjoin_call *"), lib.nsjoin_close_call)
        self._plan = ffi.new("char[]", pack(NO_PROGRAM, way))
        work.plan = ffi.cast("struct nsjoin_plan *", self._plan)
        work.argv, work.n_argv = own_arguments()
        work.argv_kept = self._argv_kept = ffi.new("char[]", work.n_argv)
        calls.check(lib.nsjoin_open_call(work))
        if way.fork and work.home < 0:  # before Linux 6.11
            work.home = own_namespace(PID)
        if way.fork and work.children < 0:
            work.children = own_namespace(PID, for_children=True)
        self._fork(work)

    def _fork(self, work: CData) -> None:
        lost = 0
        try:
            # An exception of a signal handler would send the child up the frames of our callers.
            calls.check(lib.nsjoin_begin_fork(work))
            self._forked.extend(_forks())  # nor does one come between the fork and our knowing of it: all in C
            if not self._forked[0]:
                self._child.run(work)
        except OSError as refused:
            if not work.is_born_inside or refused.errno != errno.ENOMEM:  # ENOMEM: nothing can be born there any more
                raise
            raise Failed(At.CLONE, 0, errno.ENOMEM) from None
        finally:
            lost = lib.nsjoin_end_fork(work)
        if lost:
            raise error(RestoreError, -lost, "setns", nstype="pid", target="this thread", reason=_LOST)

    def _wait(self) -> Generator[int, None, None]:
        work, child = self._work, self._forked[0]
        # without a pidfd (an old kernel, or somebody else has reaped it) the message tells, or that there will be none
        yield work.child if lib.nsjoin_watch(work, child) >= 0 else work.channel[0]
        try:
            status = os.waitpid(child, 0)[1]
        except ChildProcessError:
            status = 0  # it is lost; the message is what counts
        self._forked.clear()
        self._status = os.waitstatus_to_exitcode(status)
        if self._status < 0:
            self._end_what_is_left_behind()

    def _receive(self) -> None:
        try:
            self._text = transfer.receive(self._work)
            head = self._work.head
            failed = None
            if self._text is not None and head.kind == answer.FAILED:
                failed = Failed(At(head.step), head.index, head.error)
        except ValueError as wrong:  # BadMessageError, or no such step
            raise CallResultError(f"what the call sent cannot be read here: {wrong}") from None
        if failed is not None:
            raise failed

    def result(self) -> Any:
        """What the function has returned or raised."""
        if self._text is None:
            raise _died(self._status)
        kind = self._work.head.kind
        return answer.read(kind, self._text, self._work, self._status, data_only=self._data_only)

    def close(self) -> None:
        """End the child if it is there, and close everything."""
        try:
            for child in self._forked:
                if self._forks_twice():
                    self._ask_to_end(child)
                end(child)
                self._end_what_is_left_behind()
        finally:
            self._forked.clear()
            if self._work is not None:
                lib.nsjoin_close_call(self._work)

    def _end_what_is_left_behind(self) -> None:
        """End the child of the one in the middle, if that was killed and we are who gets its orphans.

        That is a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER) or a PID 1. The target's PID namespace does not end
        before the orphan is reaped.
        """
        work = self._work
        if not self._forks_twice():
            return
        pid = lib.nsjoin_left_behind(work)
        if pid == -errno.EAGAIN:  # it was killed before its child could say a word, or before it had one
            readable(work.control[0], 0.5)  # a hangup at once, unless a fork elsewhere has a copy of the other end
            pid = lib.nsjoin_left_behind(work)
        end(pid)  # that of somebody else's child is left alone

    def _forks_twice(self) -> bool:
        """Whether a process in the middle stands between this one and the child."""
        return bool(self._work.plan.flags & lib.NSJOIN_FORK) and not self._work.is_born_inside

    def _ask_to_end(self, middle: int) -> None:
        try:
            os.write(self._work.control[0], b"end")  # of this kind of socket, no SIGPIPE
            pidfd = calls.pidfd_open(middle)
        except OSError:
            return
        try:
            readable(pidfd, 0.5)  # it has only to kill and reap
        finally:
            os.close(pidfd)


def _forks() -> Iterator[int]:
    """Forks once."""
    return starmap(os.fork, ((),))


def own_arguments() -> tuple[int, int]:
    """Where the kernel finds what it shows as /proc/PID/cmdline: address and length; 0, 0 where nobody tells."""
    try:
        stat = procfs.read("thread-self/stat")
    except OSError:  # no /proc, as in some chroots
        return 0, 0
    fields = stat.rpartition(")")[2].split()
    start, end_ = int(fields[_ARG_START]), int(fields[_ARG_START + 1])
    return start, max(end_ - start, 0)


def _died(status: int) -> CallError:
    if status < 0:
        return CallDiedError(f"the child was ended by signal {-status} ({signal.Signals(-status).name})", status)
    return CallExitError(f"the child ended without a result, with exit status {status}: os._exit?", status)


def flush_standard_streams() -> None:
    """What is buffered before a fork would be written twice."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError):  # None, or closed
            continue


def forget_handlers() -> None:
    """In the child, while its signals are blocked: none of them runs code of the caller's, here or there.

    Whoever is inside can send them. The wakeup descriptor is the caller's: what is written to it runs the handlers of
    its event loop, in its process.
    """
    handled = lib.nsjoin_drop_handlers()
    signal.set_wakeup_fd(-1)
    for number in [bit + 1 for bit in range(64) if handled >> bit & 1]:
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)  # so that Python knows, and Python's of a fault too


class _Child:
    """The forked child. Nothing of it returns into the caller's frames."""

    def __init__(self, func: Callable[..., Any], args: Sequence[Any], terms: Terms) -> None:
        self.is_guarded = False
        self._func = func
        self._args = args
        self._terms = terms

    def run(self, work: CData) -> NoReturn:
        status = 255
        try:
            forget_handlers()
            lib.nsjoin_go_inside(work)
            if self.is_guarded:
                guard.enter_process(allow_imports=self._terms.allow_imports)
                raised.read_no_sources()
            in_the_middle = work.plan.flags & lib.NSJOIN_FORK and not work.is_born_inside
            status = self._stand_between(work) if in_the_middle else self._call_it(work)
        except BaseException as exception:
            raised.show(exception)
        finally:
            os._exit(status)

    def _stand_between(self, work: CData) -> int:
        """Fork once more, and pass on how that child ends."""
        try:
            middle_is_there, tie = os.pipe()
            lib.nsjoin_tell_of_birth(work)
            child = os.fork()
        except OSError as refused:
            lib.nsjoin_give_up(work, At.CLONE, 0, refused.errno or 0)
        if child == 0:
            os.close(tie)
            self._tie_to_the_middle(work, middle_is_there)
            os._exit(self._call_it(work))
        os.close(work.channel[1])
        os.close(middle_is_there)
        status = _wait_for(child, work.control[1])
        lib.nsjoin_tell_of_end(work)
        return _end_as(status)

    @staticmethod
    def _tie_to_the_middle(work: CData, middle_is_there: int) -> None:
        try:
            calls.die_with_parent()
            if readable(middle_is_there, 0):
                os._exit(255)  # the middle ended before that
        except OSError as refused:
            lib.nsjoin_give_up(work, At.SESSION, 0, refused.errno or 0)
        os.close(middle_is_there)
        os.close(work.control[1])

    def _call_it(self, work: CData) -> int:
        kind, text, descriptors = self._outcome()
        flush_standard_streams()
        try:
            transfer.send(work.channel[1], kind, text, descriptors)
        except BrokenPipeError:
            return 255  # the caller has gone
        except OSError as refused:
            transfer.send(work.channel[1], *answer.no_result(f"the result cannot be sent: {refused}"))
        return 0

    def _outcome(self) -> answer.Message:
        """Call it: the message about how that went."""
        data_only = self._terms.result == "data"
        try:
            self._result = self._func(*self._args)  # kept: what is in it must stay open until it is sent
        except BaseException as exception:
            frames = exception.__traceback__
            exception.__traceback__ = frames and frames.tb_next  # without this one
            return answer.of_exception(exception, data_only=data_only)
        return answer.of_result(self._result, data_only=data_only)


def _wait_for(child: int, control: int) -> int:
    """Wait for the child of the one in the middle, or until we are to end it."""
    try:
        poll = select.poll()
        pidfd = calls.pidfd_open(child)
        poll.register(pidfd, select.POLLIN)
        poll.register(control, select.POLLIN)
        if pidfd not in dict(poll.poll()):
            os.kill(child, signal.SIGKILL)
    except OSError:  # an old kernel, no memory: then it ends as we do
        pass
    return os.waitpid(child, 0)[1]


def _end_as(status: int) -> int:
    """End this process as the child with that status of waitpid has ended: its exit status, or by the same signal."""
    number = os.waitstatus_to_exitcode(status)
    if number >= 0:
        return number
    if -number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [-number])
    os.kill(os.getpid(), -number)
    return 128 - number
