"""``spawn_in``, ``run_in`` and ``call_in`` for asyncio: the loop's thread starts, and nobody waits in a thread.

The start belongs to the loop's thread, so that "the caller's namespaces" are those of the code that calls. It takes
what a vfork takes; the rest, until exec, is a descriptor that the loop watches, since something inside may hold the
program up there for ever. The exit is a pidfd that the loop watches: no SIGCHLD and no child watcher, so any thread's
loop will do, uvloop's too. Only where pidfds cannot be had (before Linux 5.3, a seccomp filter, no descriptor left) a
thread for each child waits for it.
"""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import contextlib
import errno
import functools
import os
import select
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

from . import _shim
from ._accounts import numbers
from ._call import Terms, calling
from ._launch import Expired
from ._nstype import select as select_types
from ._run import STATUS_IS_LOST, choose_streams, kill
from ._spawn import Popen
from ._start import MNT, USER
from ._target import TARGET, OpenTarget, Target, check_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from typing_extensions import Literal, Unpack

    from ._keywords import Command, RunKeywords
    from ._launch import Launch
    from ._target import TargetLike
    from .exceptions import NamespaceError

__all__ = ["call_in", "run_in", "spawn_in"]

_LIMIT = 1 << 16  # asyncio.create_subprocess_exec's

#: For how long a child that was killed may keep the loop's thread waiting, where there is no loop to wait in.
_REAP_SECONDS = 0.5


async def spawn_in(
    target: TargetLike,
    args: Command,
    *,
    namespaces: Iterable[str] | None = None,
    netns_etc: bool = False,
    fork: bool = True,
    limit: int = _LIMIT,
    **popen_kwargs: Unpack[RunKeywords],
) -> asyncio.subprocess.Process:
    """Start a program inside the namespaces of ``target``: ``nsjoin.spawn_in``, for asyncio.

    The result is what asyncio.create_subprocess_exec returns, and ``limit`` and the other keywords are as there: bytes
    only. Raises what ``nsjoin.Popen`` raises. If this call is cancelled, what it had started is killed and reaped;
    afterwards the process is its owner's, as with asyncio.
    """
    keywords: dict[str, Any] = {**popen_kwargs, "namespaces": namespaces, "netns_etc": netns_etc, "fork": fork}
    with contextlib.ExitStack() as pin:
        popen = await _launch(target, args, None, keywords, pin)
        protocol = asyncio.subprocess.SubprocessStreamProtocol(limit=limit, loop=asyncio.get_running_loop())
        transport = _Transport(popen, protocol)
        await transport.start(None)
    return asyncio.subprocess.Process(transport, protocol, asyncio.get_running_loop())


async def run_in(
    target: TargetLike,
    args: Command,
    *,
    namespaces: Iterable[str] | None = None,
    netns_etc: bool = False,
    fork: bool = True,
    input: bytes | bytearray | memoryview | None = None,  # noqa: A002 - as in subprocess.run
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    kill_group: bool = False,
    **popen_kwargs: Unpack[RunKeywords],
) -> subprocess.CompletedProcess[bytes]:
    """Run a program inside the namespaces of ``target``: ``nsjoin.run_in``, for asyncio. Bytes only.

    When ``timeout`` (seconds, from the call, the start included) expires or the task is cancelled, the program is
    killed, with ``kill_group`` its whole process group, and reaped, and nobody waits for those that still hold its
    pipes. subprocess.TimeoutExpired, subprocess.CalledProcessError (``check=True``), ChildProcessError if the exit
    status is lost, and what ``nsjoin.Popen`` raises.
    """
    keywords: dict[str, Any] = {**popen_kwargs, "namespaces": namespaces, "netns_etc": netns_etc, "fork": fork}
    keywords["_new_group"] = kill_group
    if input is not None:
        memoryview(input)  # TypeError for a str, before anything runs
    choose_streams(keywords, input, capture_output)
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        with contextlib.ExitStack() as pin:
            popen = await _launch(target, args, deadline, keywords, pin)
            run = _Run(popen, kill_group)
            await run.start(deadline)
    except Expired as expired:
        raise subprocess.TimeoutExpired(args, timeout or 0.0) from expired.__cause__
    await run.finish(input, deadline)
    returncode, stdout, stderr = popen.returncode, run.output(1), run.output(2)
    assert returncode is not None
    if run.expired:
        raise subprocess.TimeoutExpired(popen.args, timeout or 0.0, stdout, stderr) from run.held_up
    if popen._status_is_lost:
        raise ChildProcessError(errno.ECHILD, STATUS_IS_LOST)
    if check and returncode:
        raise subprocess.CalledProcessError(returncode, popen.args, stdout, stderr)
    return subprocess.CompletedProcess(popen.args, returncode, stdout, stderr)


async def call_in(
    target: TargetLike,
    func: Callable[..., Any],
    *args: Any,
    namespaces: Iterable[str] | None = None,
    timeout: float | None = None,
    allow_imports: bool = False,
    trust_target: bool = False,
    result: Literal["any", "data"] = "any",
) -> Any:
    """Call ``func(*args)`` inside the namespaces of ``target``: ``nsjoin.call_in``, for asyncio.

    The fork is made in the loop's thread, and the loop goes on meanwhile. If this call is cancelled, or ``timeout``
    (seconds) expires, the child is killed and reaped. All else is as there, with what it raises. The child has no
    running loop: ``func`` may start one of its own.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    call = calling(target, func, args, namespaces, Terms(allow_imports, trust_target, result))
    try:
        while True:
            await _until_readable(next(call), deadline)
    except StopIteration as stop:
        return stop.value
    except Expired:
        raise TimeoutError(f"the call has not returned after {timeout} seconds, and was killed") from None
    finally:
        call.close()


# --- the start ----------------------------------------------------------------------------------------------


class _Popen(Popen[bytes]):
    """A Popen that has been launched and need not run its program yet: ``finish`` waits for that."""

    _launching: Launch
    _barrier: int
    _all_pipes: list[int]

    def _finish_start(self, starting: Launch, pipes: list[int]) -> None:
        self._barrier = next(starting)
        self._launching, self._all_pipes = starting, pipes

    async def finish(self, deadline: float | None) -> None:
        """Wait until the program runs, or raise why it does not, or Expired."""
        try:
            while True:
                try:
                    await _until_readable(self._barrier, deadline)
                except Expired as expired:
                    self._launching.throw(expired)  # ends what was started, and may know what it waited for
                self._barrier = next(self._launching)
        except StopIteration as stop:
            self._started(stop.value, self._all_pipes)

    def end(self) -> None:
        """Kill and reap at once, without a loop, whether the program runs or not yet."""
        if self._child_created:
            kill(self, self._new_group)
            with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel; subprocess reaps it later
                self.wait(_REAP_SECONDS)
            return
        try:
            self._launching.close()
        finally:
            # subprocess.Popen does this where its __init__ fails, which is long over
            self._close_pipe_fds(*self._all_pipes)  # type: ignore[attr-defined]

    def try_wait(self) -> bool:
        """Reap the program if it has ended."""
        try:
            self.wait(0)
        except subprocess.TimeoutExpired:
            return False
        return True


async def _launch(
    target: TargetLike, args: Command, deadline: float | None, keywords: dict[str, Any], pin: contextlib.ExitStack
) -> _Popen:
    """Check the arguments and launch; ``pin`` is to be held until the program runs."""
    for name, allowed in (("bufsize", 0), ("universal_newlines", False), ("text", False)):
        if keywords.get(name):
            raise ValueError(f"{name} must be {allowed}")
    for name in ("encoding", "errors"):
        if keywords.get(name) is not None:
            raise ValueError(f"{name} must be None")
    groups = keywords.get("extra_groups")
    if groups is not None and groups is not TARGET:
        groups = keywords["extra_groups"] = list(groups)
    names = (keywords.get("user"), keywords.get("group"), *(groups if isinstance(groups, list) else ()))
    if any(isinstance(name, str) for name in names):
        target = await _look_up_names(target, keywords, deadline, pin)
    keywords["bufsize"] = 0
    return _Popen(args, target=target, **keywords)


async def _look_up_names(
    target: TargetLike, keywords: dict[str, Any], deadline: float | None, pin: contextlib.ExitStack
) -> TargetLike:
    """Replace names of users and groups by the target's numbers, as Popen does; ``pin`` holds the target meanwhile.

    In a thread: the target decides what its /etc/passwd is, and how long it takes to read it.
    """
    checked = check_target(target)
    wanted = None if keywords["namespaces"] is None else select_types(keywords["namespaces"])
    keywords["namespaces"] = None if wanted is None else [row.name for row in wanted]
    if isinstance(checked, tuple):
        return checked
    process = pin.enter_context(OpenTarget(checked)).process
    assert process is not None
    if (wanted is None or MNT in wanted) and not process.shares(MNT):
        joins_user = wanted is None or USER in wanted
        own = _copy(process)  # the thread's: we may be cancelled while it reads

        def look_up() -> Mapping[str, Any]:
            with own:
                return numbers(own, keywords, joins_user=joins_user)

        keywords.update(await _before(deadline, _in_thread(look_up)))
    return process


def _copy(process: Target) -> Target:
    pidfd = process.pidfd
    if pidfd < 0:
        return Target._owning(process.pid, -1, os.dup(process.proc()))
    return Target._owning(process.pid, os.dup(pidfd))


# --- waiting ------------------------------------------------------------------------------------------------


async def _until_readable(fd: int, deadline: float | None) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if poll.poll(0):
        return
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(fd, _resolve, readable)
    try:
        await _before(deadline, readable)
    finally:
        loop.remove_reader(fd)


async def _before(deadline: float | None, future: asyncio.Future[Any]) -> Any:
    """The future's result; Expired at ``deadline``, a time of time.monotonic, which need not be the loop's clock."""
    if deadline is None:
        return await future
    left = max(deadline - time.monotonic(), 0)
    timer = asyncio.get_running_loop().call_later(left, _resolve, future, None, Expired())
    try:
        return await future
    finally:
        timer.cancel()


def _resolve(future: asyncio.Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _in_thread(function: Callable[[], Any]) -> asyncio.Future[Any]:
    """Call ``function`` in a daemon thread of its own: what may hang must not fill up the loop's executor."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def tell(result: Any, error: BaseException | None) -> None:
        thread.join()  # it ends with this call
        _resolve(future, result, error)

    def run() -> None:
        result = error = None
        try:
            result = function()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, result, error)

    thread = threading.Thread(target=run, name="nsjoin.aio", daemon=True)
    thread.start()
    return future


class _Exit:
    """Reaps a program when it has ended, and then calls back."""

    def __init__(self, loop: asyncio.AbstractEventLoop, popen: _Popen, callback: Callable[[], object]) -> None:
        self._loop = loop
        self._popen = popen
        self._callback = callback
        try:
            self.pidfd = _shim.pidfd_open(popen.pid)
        except OSError:  # no pidfds here, no descriptor left, or reaped by somebody else: waitid tells
            self.pidfd = -1
            wait: Callable[[], object] = popen.wait  # PyPy has no waitid; a kill just then may come too late
            if hasattr(os, "waitid"):  # leaves the zombie to the loop's thread, so that what it kills is the program
                wait = functools.partial(os.waitid, os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
            _in_thread(wait).add_done_callback(self._on_waited)
        else:
            loop.add_reader(self.pidfd, self._on_exit)

    def _on_waited(self, waited: asyncio.Future[Any]) -> None:
        waited.exception()  # ChildProcessError: somebody else has reaped it
        if self._popen.try_wait():
            self._callback()

    def _on_exit(self) -> None:
        if not self._popen.try_wait():
            return  # somebody traces it, and has not let go of it yet
        self._loop.remove_reader(self.pidfd)
        self._close()
        self._callback()

    def _close(self) -> None:
        pidfd, self.pidfd = self.pidfd, -1
        os.close(pidfd)

    def __del__(self) -> None:
        if getattr(self, "pidfd", -1) >= 0:  # the loop was closed before the program had ended
            self._close()


# --- the program and its pipes ------------------------------------------------------------------------------


class _Pipe(asyncio.Protocol):
    """One of the program's pipes. ``program`` is told what happens to it."""

    transport: Any = None
    is_lost = False

    def __init__(self, program: _Program, fd: int) -> None:
        self._program = program
        self.fd = fd

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._program.pipe_data_received(self.fd, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._program.pipe_connection_lost(self.fd, exc)

    def pause_writing(self) -> None:
        self._program.pause_writing()

    def resume_writing(self) -> None:
        self._program.resume_writing()

    def abort(self) -> None:
        """Close it now; what has not been written is lost."""
        if self.is_lost:
            return
        if self.fd != 0:
            self.transport.close()
        elif not self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.transport.abort()  # asyncio's does not bear it twice, nor after a close that has nothing to write


class _Detached:
    """A pipe's descriptor for uvloop, which closes it and then ``close`` here, whatever the number means by then."""

    def __init__(self, file: Any) -> None:
        self._fd = os.dup(file.fileno())
        file.close()

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        """It is closed."""


class _Program:
    """A program with its pipes: what ``_Run`` and ``_Transport`` have in common."""

    def __init__(self, popen: _Popen) -> None:
        self._loop = asyncio.get_running_loop()
        self._popen = popen
        self._pipes: dict[int, _Pipe] = {}

    async def start(self, deadline: float | None) -> None:
        """Connect the pipes, which the launch gives us time for, and wait until the program runs.

        Whatever is raised, Expired included: nothing is left.
        """
        files = {0: self._popen.stdin, 1: self._popen.stdout, 2: self._popen.stderr}
        todo: dict[int, Any] = {fd: file for fd, file in files.items() if file is not None}
        # a task, and never cancelled half-way: uvloop would close a descriptor that we could not know to be closed
        connecting = self._loop.create_task(self._connect(todo)) if todo else None
        try:
            await self._popen.finish(deadline)
            if connecting is not None:
                await (connecting if connecting.done() else asyncio.shield(connecting))
            self._begin()
        except BaseException as raised:
            self._popen.end()
            if connecting is not None:
                connecting.add_done_callback(self._cut_off)
                while not isinstance(raised, GeneratorExit) and not (connecting.done() and self._is_cut_off()):
                    await asyncio.sleep(0)  # a closed transport closes its descriptor in the loop's next turn
            raise

    async def _connect(self, todo: dict[int, Any]) -> None:
        is_uvloop = type(self._loop).__module__.split(".")[0] == "uvloop"
        try:
            while todo:
                fd = max(todo)
                pipe = _Pipe(self, fd)
                connect: Any = self._loop.connect_read_pipe if fd else self._loop.connect_write_pipe
                file = todo.pop(fd)
                await connect(lambda pipe=pipe: pipe, _Detached(file) if is_uvloop else file)
                self._pipes[fd] = pipe
        finally:
            for file in todo.values():
                file.close()

    def _cut_off(self, connected: asyncio.Future[None] | None = None) -> None:
        """Close all pipes at once."""
        if connected is not None and not connected.cancelled():
            connected.exception()  # what is raised already says more
        for pipe in self._pipes.values():
            pipe.abort()

    def _is_cut_off(self) -> bool:
        return all(pipe.is_lost for pipe in self._pipes.values())

    def _begin(self) -> None:
        """The program runs."""

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        raise NotImplementedError

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        raise NotImplementedError

    def pause_writing(self) -> None:
        """What has been written waits for the program to read."""

    def resume_writing(self) -> None:
        """It has read most of it."""


class _Run(_Program):
    """One ``run_in``: takes all output, and ends everything when it has to.

    The program stays a zombie until its pipes are closed: as long as it is one, its number is its group's, and the
    group can be killed safely.
    """

    def __init__(self, popen: _Popen, kill_group: bool) -> None:
        super().__init__(popen)
        self.expired = False
        self.held_up: NamespaceError | None = None
        self._kill_group = kill_group
        self._output: dict[int, list[bytes]] = {
            fd: [] for fd, file in ((1, popen.stdout), (2, popen.stderr)) if file is not None
        }
        self._closed = self._loop.create_future()
        self._exit: _Exit | None = None
        self._exited: asyncio.Future[None] | None = None

    async def finish(self, given: bytes | bytearray | memoryview | None, deadline: float | None) -> None:
        """Feed ``given``, take all output, reap the program; at ``deadline`` kill it."""
        timer = None
        try:
            if deadline is not None:
                timer = self._loop.call_later(max(deadline - time.monotonic(), 0), self._expire)
            if 0 in self._pipes:
                self._feed(self._pipes[0].transport, given)
            if not self._is_cut_off():
                await self._closed
            await self._reap()
        except GeneratorExit:  # this coroutine is thrown away: nothing can be awaited any more
            self._kill()
            self._popen.end()
            raise
        except BaseException:
            self._kill()
            await self._reap()  # cancelled a second time here: it is reaped all the same, when the loop is told
            raise
        finally:
            if timer is not None:
                timer.cancel()

    @staticmethod
    def _feed(stdin: Any, given: bytes | bytearray | memoryview | None) -> None:
        if given and not stdin.is_closing():  # the program may have ended already
            stdin.write(given)
        stdin.close()  # once all is written

    async def _reap(self) -> None:
        if self._exit is None and not self._popen.try_wait():
            self._exit = _Exit(self._loop, self._popen, self._on_exit)
        if self._popen.returncode is None:
            self._exited = self._loop.create_future()
            await self._exited

    def _on_exit(self) -> None:
        if self._exited is not None:
            _resolve(self._exited)

    def _expire(self) -> None:
        self.expired = True
        self._kill()

    def _kill(self) -> None:
        self.held_up = kill(self._popen, self._kill_group)
        self._cut_off()

    def output(self, fd: int) -> bytes | None:
        """What the program has written there; None: not to us."""
        return b"".join(self._output[fd]) if fd in self._output else None

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._output[fd].append(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002 - EPIPE: as communicate does
        if self._is_cut_off():
            _resolve(self._closed)


class _Transport(_Program, asyncio.SubprocessTransport):
    """What asyncio.subprocess.Process and its protocol want of a transport."""

    def __init__(self, popen: _Popen, protocol: asyncio.subprocess.SubprocessStreamProtocol) -> None:
        _Program.__init__(self, popen)
        asyncio.SubprocessTransport.__init__(self, extra={"subprocess": popen})
        self._protocol: Any = protocol
        self._early: list[Callable[[], object]] | None = []
        self._exit: _Exit | None = None
        self._waiters: list[asyncio.Future[int]] = []
        self._is_closing = False
        self._is_finished = False

    def _begin(self) -> None:
        # in this order: uvloop tells at once of a program that has ended already
        self._protocol.connection_made(self)
        early, self._early = self._early or [], None
        for call in early:
            call()
        self._exit = _Exit(self._loop, self._popen, self._on_exit)

    # --- from the pipes and the process ---

    def _tell(self, call: Callable[..., object], *arguments: object) -> None:
        if self._early is None:
            call(*arguments)
        else:
            self._early.append(functools.partial(call, *arguments))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._tell(self._protocol.pipe_data_received, fd, data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._tell(self._protocol.pipe_connection_lost, fd, exc)
        self._tell(self._finish)

    def pause_writing(self) -> None:
        self._tell(self._protocol.pause_writing)

    def resume_writing(self) -> None:
        self._tell(self._protocol.resume_writing)

    def _on_exit(self) -> None:
        self._protocol.process_exited()
        for waiter in self._waiters:
            _resolve(waiter, self._popen.returncode)
        self._waiters.clear()
        self._finish()

    def _finish(self) -> None:
        if self._is_finished or self._popen.returncode is None or not self._is_cut_off():
            return
        self._is_finished = True
        self._protocol.connection_lost(None)

    # --- for the process's owner ---

    async def _wait(self) -> int:
        if self._popen.returncode is None:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter
        assert self._popen.returncode is not None
        return self._popen.returncode

    def get_pid(self) -> int:
        return self._popen.pid

    def get_returncode(self) -> int | None:
        return self._popen.returncode

    def get_pipe_transport(self, fd: int) -> asyncio.BaseTransport | None:
        return self._pipes[fd].transport if fd in self._pipes else None

    def send_signal(self, signal: int) -> None:
        """ProcessLookupError if the program has ended and been reaped."""
        if self._popen.returncode is not None:
            raise ProcessLookupError
        if self._exit is not None and self._exit.pidfd >= 0:
            _shim.pidfd_send_signal(self._exit.pidfd, signal)  # cannot hit another one, whoever reaps our children
        else:
            self._popen.send_signal(signal)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        """Close the pipes; as asyncio's, kill the program if it still runs."""
        if self._is_closing:
            return
        self._is_closing = True
        for pipe in self._pipes.values():
            pipe.transport.close()
        with contextlib.suppress(ProcessLookupError):
            self.kill()

    def __repr__(self) -> str:
        state = "running" if self._popen.returncode is None else f"returncode={self._popen.returncode}"
        return f"<nsjoin.aio transport pid={self._popen.pid} {state}>"
