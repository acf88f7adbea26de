"""``call_in``: a function of this program, run inside by a forked child of it."""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import time
import traceback
from itertools import starmap
from typing import TYPE_CHECKING, Any, NoReturn

from . import _guard, _shim, _transfer
from ._launch import NO_ATTRIBUTES, At, Expired, Failed, Ids, end, wait
from ._nstype import BY_NAME
from ._nstype import select as select_types
from ._process import own_namespace
from ._shim import ffi, lib
from ._start import start
from ._target import check_target
from .exceptions import CallDiedError, CallError, CallExitError, CallResultError, RestoreError, error

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from ._launch import Cgroup, Launch, Witness
    from ._plan import Step
    from ._setns import CData
    from ._target import TargetLike

#: The kinds of messages from the child.
_FAILED, _RESULT, _EXCEPTION, _EXIT, _NO_RESULT = range(5)

_PID, _MNT = BY_NAME["pid"], BY_NAME["mnt"].flag

_UNCHANGED = Ids()
_LOST = "the thread's children are still born in the target, and it should run nothing more than its end"


def call_in(
    target: TargetLike,
    func: Callable[..., Any],
    *args: Any,
    namespaces: Iterable[str] | None = None,
    timeout: float | None = None,
    allow_imports: bool = False,
) -> Any:
    """Call ``func(*args)`` inside the namespaces of ``target`` and return its result.

    A forked child of this process makes the call, so lambdas and closures work: nothing but the result is pickled.
    Sockets and files in the result, also deep inside, come back as descriptors. An exception of ``func`` is raised
    here, with the traceback from inside as its cause. ``target`` and ``namespaces`` are as for ``spawn_in``: the child
    is really inside the PID namespace, and with mnt its root is the target's.

    ``timeout`` in seconds, for all of it: TimeoutError, and the child is killed. CallResultError: the result cannot be
    pickled. CallExitError: ``func`` called sys.exit or os._exit. CallDiedError: a signal ended the child. All three
    are CallError. JoinError and the like as for ``spawn_in``.

    With mnt, a module that is not loaded yet is not loaded inside (ImportError, LookupError for a codec) unless
    ``allow_imports`` is true: it would be a file of the target's, run with our rights. So would a library, and a
    program that is started other than by nsjoin: NamespaceError (NamespacePermissionError).

    Beside threads: fork(2) copies their locks as they are, so ``func`` must not need one that another thread may hold;
    Python 3.12 and later warn of it. fork(2), setns(2), unix(7) (SCM_RIGHTS); Linux 4.11.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        return wait(calling(target, func, args, namespaces, allow_imports), deadline)
    except Expired:
        raise TimeoutError(f"the call has not returned after {timeout} seconds, and was killed") from None


def calling(
    target: TargetLike,
    func: Callable[..., Any],
    args: Sequence[Any],
    namespaces: Iterable[str] | None,
    allow_imports: bool,
) -> Generator[int, None, Any]:
    """The call as a generator, to be driven by ``wait`` or an event loop; an exception from outside ends the child."""
    checked = check_target(target)
    rows = None if namespaces is None else select_types(namespaces)
    call = _Call(func, args, allow_imports)
    try:
        yield from start(call, checked, rows, True)
        return call.result()
    finally:
        call.close()


class RemoteTraceback(Exception):  # noqa: N818 - it stands for a traceback
    """The cause of an exception that came from inside: its traceback there, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class _Call:
    """One call: what ``_start`` has to know of a job, and the parent's side of the child.

    The child is a fork of this process, with pid born inside. Where this thread may not go there for the fork, or not
    come back, the child is a fork of a fork: the one in the middle joins, waits for it, passes on how it ended, and
    ends it when we say so, or die.
    """

    def __init__(self, func: Callable[..., Any], args: Sequence[Any], allow_imports: bool) -> None:
        self.joins: Sequence[Step] = ()
        self.fork = False
        self.at_home = False
        self.go_home = False
        self.root = -1
        self.ids = _UNCHANGED
        self.attributes = NO_ATTRIBUTES  # the child stays as it is in all but its namespaces and ids
        self.unshare = 0
        self.check_cwd = False
        self.born_in: Cgroup | None = None
        self.witness: Witness | None = None
        self._child = _Child(func, args, allow_imports)
        self._forked: list[int] = []
        self._work: Any = None
        self._text: Any = None
        self._status = 0

    def launch(self) -> Launch:
        """Fork, and wait until the child has ended: reading its message earlier would cost a copy of each page that we
        write to meanwhile, and Python writes to everything that it looks at."""
        self.close()
        try:
            self._begin()
            yield from self._wait()
            self._text = _transfer.receive(self._work)
            head = self._work.head
            if self._text is not None and head.kind == _FAILED:
                raise Failed(At(head.step), head.index, head.error)
        except BaseException:
            self.close()
            raise
        return 0

    def _begin(self) -> None:
        for step in self.joins:
            if step.nstypes & _MNT:
                self._child.is_guarded = True
                _guard.prepare()
        flush_standard_streams()
        work = self._work = ffi.gc(ffi.new("struct nsjoin_call *"), lib.nsjoin_close_call)
        work.n_joins, work.joins, work.root = len(self.joins), self.joins, self.root
        work.witness, work.user = self.witness or (-1, 0)
        if self.ids is not _UNCHANGED:
            _fill_ids(work, self.ids)
        if self.fork:
            work.flags |= lib.NSJOIN_FORK
        _shim.check(lib.nsjoin_open_call(work))
        if self.fork and work.home < 0:  # before Linux 6.11
            work.home = own_namespace(_PID)
        if self.fork and work.children < 0:
            work.children = own_namespace(_PID, for_children=True)
        self._fork(work)

    def _fork(self, work: CData) -> None:
        lost = 0
        try:
            # An exception of a signal handler would send the child up the frames of our callers.
            _shim.check(lib.nsjoin_begin_fork(work))
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

    def result(self) -> Any:
        """What the function has returned or raised."""
        if self._text is None:
            raise _died(self._status)
        kind = self._work.head.kind
        if kind == _NO_RESULT:
            raise CallResultError(bytes(self._text).decode(), None)
        if kind == _EXIT:
            raise CallExitError(f"the function called sys.exit({bytes(self._text).decode()})", self._status)
        try:
            loaded = _transfer.load(self._text, self._work)
        except Exception as failure:
            raise CallResultError(f"what the call sent cannot be unpickled here: {failure!r}") from failure
        if kind == _RESULT:
            return loaded
        exception, text = loaded
        exception.__cause__ = RemoteTraceback(text)
        raise exception

    def close(self) -> None:
        """End the child if it is there, and close everything."""
        try:
            for child in self._forked:
                if self.fork and not self._work.is_born_inside:
                    self._ask_to_end(child)
                end(child)
        finally:
            self._forked.clear()
            if self._work is not None:
                lib.nsjoin_close_call(self._work)

    def _ask_to_end(self, middle: int) -> None:
        try:
            os.write(self._work.control[0], b"end")  # of this kind of socket, no SIGPIPE
            pidfd = _shim.pidfd_open(middle)
        except OSError:
            return
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(500)  # milliseconds; it has only to kill and reap
        finally:
            os.close(pidfd)


def _forks() -> Iterator[int]:
    """Forks once."""
    return starmap(os.fork, ((),))


def _fill_ids(work: CData, ids: Ids) -> None:
    for wanted, flag in (
        (ids.uid is not None, lib.NSJOIN_SETUID),
        (ids.gid is not None, lib.NSJOIN_SETGID),
        (ids.drop_groups, lib.NSJOIN_DROP_GROUPS),
        (ids.try_uid, lib.NSJOIN_TRY_UID),
        (ids.try_gid, lib.NSJOIN_TRY_GID),
    ):
        if wanted:
            work.flags |= flag
    work.uid, work.gid = (ids.uid or (0,))[0], (ids.gid or (0,))[0]


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


class _Child:
    """The forked child. Nothing of it returns into the caller's frames."""

    def __init__(self, func: Callable[..., Any], args: Sequence[Any], allow_imports: bool) -> None:
        self.is_guarded = False
        self._func = func
        self._args = args
        self._allow_imports = allow_imports

    def run(self, work: CData) -> NoReturn:
        status = 255
        try:
            lib.nsjoin_go_inside(work)
            if self.is_guarded:
                _guard.enter_process(allow_imports=self._allow_imports)
            in_the_middle = work.flags & lib.NSJOIN_FORK and not work.is_born_inside
            status = self._stand_between(work) if in_the_middle else self._call_it(work)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _stand_between(self, work: CData) -> int:
        """Fork once more, and pass on how that child ends."""
        try:
            middle_is_there, tie = os.pipe()
            child = os.fork()
        except OSError as refused:
            lib.nsjoin_give_up(work, At.CLONE, 0, refused.errno or 0)
        if child == 0:
            os.close(tie)
            self._tie_to_the_middle(work, middle_is_there)
            os._exit(self._call_it(work))
        os.close(work.channel[1])
        os.close(middle_is_there)
        return _end_as(_wait_for(child, work.control[1]))

    @staticmethod
    def _tie_to_the_middle(work: CData, middle_is_there: int) -> None:
        try:
            _shim.die_with_parent()
            if select.select([middle_is_there], [], [], 0)[0]:
                os._exit(255)  # the middle ended before that
        except OSError as refused:
            lib.nsjoin_give_up(work, At.SESSION, 0, refused.errno or 0)
        os.close(middle_is_there)
        os.close(work.control[1])

    def _call_it(self, work: CData) -> int:
        kind, text, descriptors = self._outcome()
        flush_standard_streams()
        try:
            _transfer.send(work.channel[1], kind, text, descriptors)
        except BrokenPipeError:
            return 255  # the caller has gone
        except OSError as refused:
            _transfer.send(work.channel[1], _NO_RESULT, f"the result cannot be sent: {refused}".encode())
        return 0

    def _outcome(self) -> tuple[int, bytes, Sequence[int]]:
        """Call it: the message about how that went."""
        try:
            self._result = self._func(*self._args)  # kept: what is in it must stay open until it is sent
        except SystemExit as leaving:
            return _EXIT, repr(leaving.code).encode(), ()
        except BaseException as exception:
            return _exception(exception)
        try:
            return (_RESULT, *_transfer.dump(self._result))
        except Exception as failure:
            return _NO_RESULT, f"the result cannot be pickled: {failure}".encode(), ()


def _wait_for(child: int, control: int) -> int:
    """Wait for the child of the one in the middle, or until we are to end it."""
    try:
        poll = select.poll()
        pidfd = _shim.pidfd_open(child)
        poll.register(pidfd, select.POLLIN)
        poll.register(control, select.POLLIN)
        if pidfd not in dict(poll.poll()):
            os.kill(child, signal.SIGKILL)
    except OSError:  # an old kernel, no memory: then it ends as we do
        pass
    return os.waitpid(child, 0)[1]


def _exception(exception: BaseException) -> tuple[int, bytes, Sequence[int]]:
    try:
        text = "".join(traceback.format_exception(type(exception), exception, exception.__traceback__))
    except (ImportError, LookupError) as refused:  # traceback needs a module that the guard does not let it load
        text = f"{exception!r} (no traceback: {refused})"
    try:
        exception.__traceback__ = None
        return (_EXCEPTION, *_transfer.dump((exception, text)))
    except Exception as failure:
        return _NO_RESULT, f"the exception cannot be pickled ({failure}):\n{text}".encode(), ()


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
