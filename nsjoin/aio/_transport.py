"""TODO."""

from __future__ import annotations

import asyncio.subprocess
import contextlib
import functools
import signal
from typing import TYPE_CHECKING

from .._kernel import calls
from ._program import _Exit, _Program
from ._waiting import _resolve

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._start import _Popen


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
            calls.pidfd_send_signal(self._exit.pidfd, signal)  # cannot hit another one, whoever reaps our children
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
