"""A program, its pipes and its exit, driven by the loop; and ``Run``, which is ``run_in``'s.

``Run`` is no ``Transport``, which reaps a program as soon as it ends: a run keeps the zombie until its pipes close.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from typing import TYPE_CHECKING

from .._kernel import calls
from .._verbs.run import kill
from ._waiting import in_thread, resolve

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..exceptions import NamespaceError
    from ._start import AsyncPopen


class Exit:
    """Reap a program when it has ended, then call ``callback``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, popen: AsyncPopen, callback: Callable[[], object]) -> None:
        self._loop = loop
        self._popen = popen
        self._callback = callback
        try:
            self.pidfd = calls.pidfd_open(popen.pid)
        except OSError:  # no pidfds here, no descriptor left, or reaped elsewhere (ECHILD from waitid)
            self.pidfd = -1
            wait: Callable[[], object] = popen.wait  # PyPy has no waitid; a kill just then may come too late
            if hasattr(os, "waitid"):  # only the loop's thread reaps, so its kills cannot hit a reused pid
                wait = functools.partial(os.waitid, os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
            in_thread(wait).add_done_callback(self._on_waited)
        else:
            loop.add_reader(self.pidfd, self._on_exit)

    def _on_waited(self, waited: asyncio.Future[Any]) -> None:
        waited.exception()  # retrieved; ChildProcessError: reaped elsewhere
        if self._popen.try_wait():
            self._callback()

    def _on_exit(self) -> None:
        if not self._popen.try_wait():
            return  # a tracer has not released it yet
        self._loop.remove_reader(self.pidfd)
        self._close()
        self._callback()

    def _close(self) -> None:
        pidfd, self.pidfd = self.pidfd, -1
        os.close(pidfd)

    def __del__(self) -> None:
        if getattr(self, "pidfd", -1) >= 0:  # the loop was closed before the program ended
            self._close()


class _Pipe(asyncio.Protocol):
    """One of the program's pipes; it passes its events on to ``program``."""

    transport: Any = None
    is_lost = False

    def __init__(self, program: Program, fd: int) -> None:
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
        """Close the pipe now and discard what has not been written."""
        if self.is_lost:
            return
        if self.fd != 0:
            self.transport.close()
        elif not self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.transport.abort()  # asyncio's abort() fails when called twice, or after close() with an empty buffer


class _Detached:
    """A pipe's descriptor for uvloop, which closes the number and calls ``close`` when it may be reused already."""

    def __init__(self, file: Any) -> None:
        self._fd = os.dup(file.fileno())
        file.close()

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        """Do nothing: uvloop has closed the descriptor."""


class Program:
    """A program with its pipes: what ``Run`` and ``Transport`` share."""

    def __init__(self, popen: AsyncPopen) -> None:
        self.loop = asyncio.get_running_loop()
        self.popen = popen
        self.pipes: dict[int, _Pipe] = {}
        self.exit: Exit | None = None
        self._waiters: list[asyncio.Future[int]] = []

    async def start(self, deadline: float | None) -> None:
        """Connect the pipes while the launch goes on, and wait until the program runs.

        Whatever is raised, Expired included, leaves nothing behind.
        """
        files = {0: self.popen.stdin, 1: self.popen.stdout, 2: self.popen.stderr}
        todo: dict[int, Any] = {fd: file for fd, file in files.items() if file is not None}
        # a task that is never cancelled: after a cancelled connect uvloop may or may not have closed the descriptor
        connecting = self.loop.create_task(self._connect(todo)) if todo else None
        try:
            await self.popen.finish(deadline)
            if connecting is not None:
                await (connecting if connecting.done() else asyncio.shield(connecting))
            self.begin()
        except BaseException as raised:
            self.popen.end()
            if connecting is not None:
                connecting.add_done_callback(self.cut_off)
                while not isinstance(raised, GeneratorExit) and not (connecting.done() and self.is_cut_off()):
                    await asyncio.sleep(0)  # a closed transport closes its descriptor in the loop's next turn
            raise

    async def _connect(self, todo: dict[int, Any]) -> None:
        is_uvloop = type(self.loop).__module__.split(".")[0] == "uvloop"
        try:
            while todo:
                fd = max(todo)
                pipe = _Pipe(self, fd)
                connect: Any = self.loop.connect_read_pipe if fd else self.loop.connect_write_pipe
                file = todo.pop(fd)
                await connect(lambda pipe=pipe: pipe, _Detached(file) if is_uvloop else file)
                self.pipes[fd] = pipe
        finally:
            for file in todo.values():
                file.close()

    def cut_off(self, connected: asyncio.Future[None] | None = None) -> None:
        """Close all pipes now."""
        if connected is not None and not connected.cancelled():
            connected.exception()  # retrieved; the exception that ended the start is the one to raise
        for pipe in self.pipes.values():
            pipe.abort()

    def is_cut_off(self) -> bool:
        """Return whether all pipes are closed."""
        return all(pipe.is_lost for pipe in self.pipes.values())

    def watch(self) -> None:
        """Reap the program when it ends."""
        self.exit = Exit(self.loop, self.popen, self._on_exit)

    def _on_exit(self) -> None:
        self.process_exited()
        for waiter in self._waiters:
            resolve(waiter, self.popen.returncode)
        self._waiters.clear()

    async def reaped(self) -> int:
        """Wait until the program has been reaped, and return its exit status."""
        if self.popen.returncode is None:
            waiter = self.loop.create_future()
            self._waiters.append(waiter)
            await waiter
        assert self.popen.returncode is not None
        return self.popen.returncode

    def begin(self) -> None:
        """Handle that the program runs."""

    def process_exited(self) -> None:
        """Handle that the program has been reaped."""

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        raise NotImplementedError

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        raise NotImplementedError

    def pause_writing(self) -> None:
        """Handle that the program's stdin is full."""

    def resume_writing(self) -> None:
        """Handle that the program has read most of its stdin."""


class Run(Program):
    """One ``run_in``: collects the output, and ends everything at the deadline or on an exception.

    The program stays a zombie until its pipes are closed: as long as it is one, its number is its group's, and the
    group can be killed safely.
    """

    def __init__(self, popen: AsyncPopen, kill_group: bool) -> None:
        super().__init__(popen)
        self.expired = False
        self.held_up: NamespaceError | None = None
        self._kill_group = kill_group
        self._output: dict[int, list[bytes]] = {
            fd: [] for fd, file in ((1, popen.stdout), (2, popen.stderr)) if file is not None
        }
        self._closed = self.loop.create_future()

    async def finish(self, given: bytes | bytearray | memoryview | None, deadline: float | None) -> None:
        """Write ``given`` to stdin, collect all output, reap the program; kill it at ``deadline``."""
        timer = None
        try:
            if deadline is not None:
                timer = self.loop.call_later(max(deadline - time.monotonic(), 0), self._expire)
            if 0 in self.pipes:
                self._feed(self.pipes[0].transport, given)
            if not self.is_cut_off():
                await self._closed
            await self._reap()
        except GeneratorExit:  # the coroutine was closed, so nothing can be awaited any more
            self._kill()
            self.popen.end()
            raise
        except BaseException:
            self._kill()
            await self._reap()  # cancelled again here: the loop still reaps the program when it ends
            raise
        finally:
            if timer is not None:
                timer.cancel()

    @staticmethod
    def _feed(stdin: Any, given: bytes | bytearray | memoryview | None) -> None:
        if given and not stdin.is_closing():  # the program may have ended already
            stdin.write(given)
        stdin.close()  # after the last byte

    async def _reap(self) -> None:
        if self.exit is None and not self.popen.try_wait():
            self.watch()
        await self.reaped()

    def _expire(self) -> None:
        self.expired = True
        self._kill()

    def _kill(self) -> None:
        self.held_up = kill(self.popen, self._kill_group)
        self.cut_off()

    def output(self, fd: int) -> bytes | None:
        """Return what the program has written there; None where that is no pipe of this run."""
        return b"".join(self._output[fd]) if fd in self._output else None

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._output[fd].append(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:  # noqa: ARG002 - EPIPE: as communicate does
        if self.is_cut_off():
            resolve(self._closed)
