"""``call_in``: a function of this program, run inside by a forked child of it."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

from . import _guard, _shim, _transfer
from ._launch import NO_ATTRIBUTES, At, Expired, Failed, Ids, end, home, wait
from ._nstype import BY_NAME
from ._nstype import select as select_types
from ._plan import AGAIN, TRY, Step
from ._process import own_pid_namespace_is_left
from ._shim import ffi, lib
from ._start import start
from ._target import check_target
from .exceptions import CallDiedError, CallError, CallExitError, CallResultError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from ._launch import Cgroup, Launch
    from ._setns import CData
    from ._target import TargetLike

#: The kinds of messages from the child.
_FAILED, _RESULT, _EXCEPTION, _EXIT, _NO_RESULT = range(5)

_REPORT = struct.Struct("=3i")  # step, index, errno


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
    ``allow_imports`` is true: it would be a file of the target's, run with our rights.

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
        return (yield from call.result())
    finally:
        call.close()


class RemoteTraceback(Exception):  # noqa: N818 - it stands for a traceback
    """The cause of an exception that came from inside: its traceback there, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class _Call:
    """One call: what ``_start`` has to know of a job, and the parent's side of the child.

    Without pid, the child is a fork. With pid it is a fork of a fork, since only a child is born inside; the one in
    the middle waits for it, passes on how it ended, and ends it when we say so, or die.
    """

    def __init__(self, func: Callable[..., Any], args: Sequence[Any], allow_imports: bool) -> None:
        self.joins: Sequence[Step] = ()
        self.fork = False
        self.at_home = False
        self.go_home = False
        self.root = -1
        self.ids = Ids()
        self.attributes = NO_ATTRIBUTES  # the child stays as it is in all but its namespaces and ids
        self.check_cwd = False
        self.born_in: Cgroup | None = None
        self.allow_imports = allow_imports
        self._func = func
        self._args = args
        self._child = 0
        self._stack = ExitStack()
        self._channel: socket.socket | None = None
        self._message: _transfer.Message | None = None
        self._control: socket.socket | None = None

    # --- the parent

    def launch(self) -> Launch:
        """Fork, and wait until the child says how it went: the first that is heard of it, inside or not."""
        self.close()
        self._begin()
        try:
            self._message = yield from self._receive()
            if self._message is not None and self._message.kind == _FAILED:
                at, index, number = _REPORT.unpack(self._message.text)
                raise Failed(At(at), index, number)
        except BaseException:
            self.close()
            raise
        return self._child

    def _begin(self) -> None:
        if self._joins_mnt():
            _guard.prepare()
        flush_standard_streams()
        self._channel, theirs = socket.socketpair()
        self._control, control = socket.socketpair() if self.fork else (None, None)
        self._stack.enter_context(self._channel)
        self._stack.enter_context(self._control or nullcontext())
        caller = os.getpid()
        with theirs, control or nullcontext(), _born_at_home(self.at_home):
            # An exception of a signal handler would send the child up the frames of our callers.
            mask = ffi.new("uint64_t *")
            _shim.check(lib.nsjoin_block_signals(mask))
            try:
                self._child = os.fork()
                if self._child == 0:
                    _Child(self, self._func, self._args, theirs, control).run(caller, mask)
            finally:
                lib.nsjoin_restore_signals(mask)

    def _joins_mnt(self) -> bool:
        return any(step.nstypes & BY_NAME["mnt"].flag for step in self.joins)

    def _receive(self) -> Generator[int, None, _transfer.Message | None]:
        assert self._channel is not None
        receiving = _transfer.receive(self._channel)
        try:
            while True:
                next(receiving)
                yield self._channel.fileno()
        except StopIteration as stop:
            message: _transfer.Message | None = stop.value
            return message
        finally:
            receiving.close()

    def result(self) -> Generator[int, None, Any]:
        """What the function has returned or raised."""
        message = self._message
        status = yield from self._wait()
        if message is None:
            raise _died(status)
        if message.kind == _NO_RESULT:
            raise CallResultError(bytes(message.text).decode(), None)
        if message.kind == _EXIT:
            text = bytes(message.text).decode()
            raise CallExitError(f"the function called sys.exit({text})", status)
        return _load(message)

    def _wait(self) -> Generator[int, None, int]:
        try:
            pidfd = _shim.pidfd_open(self._child)
        except OSError:
            pidfd = -1  # an old kernel, or somebody else has reaped it
        if pidfd >= 0:
            try:
                yield pidfd
            finally:
                os.close(pidfd)
        child, self._child = self._child, 0
        try:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        except ChildProcessError:
            return 0  # its status is lost; the message is what counts

    def close(self) -> None:
        """End the child if it is there, and close everything."""
        child, self._child = self._child, 0
        if child and self._control is not None and self.fork:
            self._ask_to_end(child)
        self._stack.close()
        end(child)

    def _ask_to_end(self, middle: int) -> None:
        assert self._control is not None
        try:
            self._control.send(b"end")
            pidfd = _shim.pidfd_open(middle)
        except OSError:
            return
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(500)  # milliseconds; it has only to kill and reap
        os.close(pidfd)


def _died(status: int) -> CallError:
    if status < 0:
        return CallDiedError(f"the child was ended by signal {-status} ({signal.Signals(-status).name})", status)
    return CallExitError(f"the child ended without a result, with exit status {status}: os._exit?", status)


def _load(message: _transfer.Message) -> Any:
    try:
        loaded = message.load()
    except Exception as failure:
        raise CallResultError(f"what the call sent cannot be unpickled here: {failure!r}") from failure
    if message.kind == _RESULT:
        return loaded
    exception, text = loaded
    exception.__cause__ = RemoteTraceback(text)
    raise exception


@contextmanager
def _born_at_home(wanted: bool) -> Iterator[None]:
    """Where pid is joined the child has to be born in our own PID namespace: inside ``enter(pid, "pid")`` it is not."""
    if wanted and own_pid_namespace_is_left():
        with home():
            yield
    else:
        yield


def flush_standard_streams() -> None:
    """What is buffered before a fork would be written twice."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


class _Child:
    """The forked child. Nothing of it returns into the caller's frames."""

    def __init__(
        self,
        call: _Call,
        func: Callable[..., Any],
        args: Sequence[Any],
        channel: socket.socket,
        control: socket.socket | None,
    ) -> None:
        self._call = call
        self._func = func
        self._args = args
        self._channel = channel
        self._control = control

    def run(self, caller: int, mask: CData) -> NoReturn:
        status = 255
        try:
            lib.nsjoin_restore_signals(mask)
            self._prepare(caller)
            status = self._stand_between() if self._call.fork else self._call_it()
        except _StepFailed as failed:
            _transfer.send(self._channel, _FAILED, _REPORT.pack(*failed.args))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _prepare(self, caller: int) -> None:
        """Everything that the joiner does for a program, in its order."""
        call = self._call
        self._step(At.PLAN, 0, _shim.be_undumpable)
        if call.ids.drop_groups:
            self._step(At.GROUPS, 0, lambda: os.setgroups([]), errno.EPERM)
        _join(call.joins, self._step)
        if call.root >= 0:
            self._step(At.ROOT, 0, lambda: _change_root(call.root))
        _take_ids(call.ids, self._step)
        if call._joins_mnt():
            _guard.enter_thread(allow_imports=call.allow_imports)
        self._step(At.SESSION, 0, _shim.die_with_parent)
        if os.getppid() != caller and not call.fork:
            os._exit(255)  # it ended before that

    @staticmethod
    def _step(at: At, index: int, act: Callable[[], Any], allowed: int = 0) -> bool:
        try:
            act()
        except OSError as refused:
            if refused.errno != allowed:
                raise _StepFailed(at, index, refused.errno or 0) from None
            return False
        return True

    def _stand_between(self) -> int:
        """Fork once more, and pass on how that child ends."""
        middle_is_there, tie = os.pipe()
        try:
            child = os.fork()
        except OSError as refused:
            raise _StepFailed(At.CLONE, 0, refused.errno or 0) from None
        if child == 0:
            os.close(tie)
            _shim.die_with_parent()
            if select.select([middle_is_there], [], [], 0)[0]:
                os._exit(255)  # the middle ended before that
            os.close(middle_is_there)
            os._exit(self._call_it())
        self._channel.close()
        os.close(middle_is_there)
        return _end_as(self._wait_for(child))

    def _wait_for(self, child: int) -> int:
        try:
            pidfd = _shim.pidfd_open(child)
        except OSError:
            return os.waitpid(child, 0)[1]
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert self._control is not None
        poll.register(self._control, select.POLLIN)
        if pidfd not in dict(poll.poll()):
            os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1]

    def _call_it(self) -> int:
        if self._control is not None:
            self._control.close()
        kind, text, descriptors = self._outcome()
        flush_standard_streams()
        _transfer.send(self._channel, kind, text, descriptors)
        return 0

    def _outcome(self) -> tuple[int, bytes, list[int]]:
        """Call it: the message about how that went."""
        try:
            self._result = self._func(*self._args)  # kept: what is in it must stay open until it is sent
        except SystemExit as leaving:
            return _EXIT, repr(leaving.code).encode(), []
        except BaseException as exception:
            return _exception(exception)
        try:
            return (_RESULT, *_transfer.dump(self._result))
        except Exception as failure:
            return _NO_RESULT, f"the result cannot be pickled: {failure}".encode(), []


class _StepFailed(Exception):  # noqa: N818 - a report, not an error that callers see
    """At which step of the way inside, at which index, with which errno."""


def _change_root(root: int) -> None:
    os.fchdir(root)
    os.chroot(".")


def _join(joins: Sequence[Step], step: Callable[..., bool]) -> None:
    joined = 0
    for index, (fd, nstypes, how) in enumerate(joins):
        if how & AGAIN and joined & nstypes:
            continue
        allowed = errno.EPERM if how & TRY else 0
        if step(At.JOIN, index, lambda fd=fd, nstypes=nstypes: _shim.setns(fd, nstypes), allowed):
            joined |= nstypes


def _take_ids(ids: Ids, step: Callable[..., bool]) -> None:
    if ids.drop_groups:
        step(At.GROUPS, 0, lambda: os.setgroups([]), errno.EPERM)
    gid, uid = ids.gid, ids.uid
    if gid is not None:
        step(At.IDS, 1, lambda: os.setresgid(*gid), errno.EINVAL if ids.try_gid else 0)
    if uid is not None:
        step(At.IDS, 2, lambda: os.setresuid(*uid), errno.EINVAL if ids.try_uid else 0)


def _exception(exception: BaseException) -> tuple[int, bytes, list[int]]:
    try:
        text = "".join(traceback.format_exception(type(exception), exception, exception.__traceback__))
    except (ImportError, LookupError) as refused:  # traceback needs a module that the guard does not let it load
        text = f"{exception!r} (no traceback: {refused})"
    try:
        exception.__traceback__ = None
        return (_EXCEPTION, *_transfer.dump((exception, text)))
    except Exception as failure:
        return _NO_RESULT, f"the exception cannot be pickled ({failure}):\n{text}".encode(), []


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
