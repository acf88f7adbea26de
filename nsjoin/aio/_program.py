"""TODO."""

from __future__ import annotations

import asyncio.subprocess
import functools
import os
import time
from typing import TYPE_CHECKING

from .._kernel import calls
from .._verbs.run import kill
from ._waiting import _in_thread, _resolve

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..exceptions import NamespaceError
    from ._start import _Popen


class _Exit:
    """Reaps a program when it has ended, and then calls back."""

    def __init__(self, loop: asyncio.AbstractEventLoop, popen: _Popen, callback: Callable[[], object]) -> None:
        self._loop = loop
        self._popen = popen
        self._callback = callback
        try:
            self.pidfd = calls.pidfd_open(popen.pid)
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
