"""A started program as the transport that ``asyncio.subprocess.Process`` needs, made from public loop calls alone."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
from typing import TYPE_CHECKING

from .._kernel import calls
from ._program import Program

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ._start import AsyncPopen


class Transport(Program, asyncio.SubprocessTransport):
    """A transport for asyncio.subprocess.Process and its protocol.

    Events that come before the protocol is connected wait in ``_early``.
    """

    def __init__(self, popen: AsyncPopen, protocol: asyncio.subprocess.SubprocessStreamProtocol) -> None:
        Program.__init__(self, popen)
        asyncio.SubprocessTransport.__init__(self, extra={"subprocess": popen})
        self._protocol: Any = protocol
        self._early: list[Callable[[], object]] | None = []
        self._is_closing = False
        self._is_finished = False

    def begin(self) -> None:
        # in this order: for a program that has ended already, uvloop calls back at once
        self._protocol.connection_made(self)
        early, self._early = self._early or [], None
        for call in early:
            call()
        self.watch()

    # --- from the pipes and the process ---

    def _pass_on(self, call: Callable[..., object], *arguments: object) -> None:
        if self._early is None:
            call(*arguments)
        else:
            self._early.append(functools.partial(call, *arguments))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._pass_on(self._protocol.pipe_data_received, fd, data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._pass_on(self._protocol.pipe_connection_lost, fd, exc)
        self._pass_on(self._finish)

    def pause_writing(self) -> None:
        self._pass_on(self._protocol.pause_writing)

    def resume_writing(self) -> None:
        self._pass_on(self._protocol.resume_writing)

    def process_exited(self) -> None:
        self._protocol.process_exited()
        self._finish()

    def _finish(self) -> None:
        if self._is_finished or self.popen.returncode is None or not self.is_cut_off():
            return
        self._is_finished = True
        self._protocol.connection_lost(None)

    # --- for asyncio.subprocess.Process ---

    async def _wait(self) -> int:
        return await self.reaped()

    def get_pid(self) -> int:
        return self.popen.pid

    def get_returncode(self) -> int | None:
        return self.popen.returncode

    def get_pipe_transport(self, fd: int) -> asyncio.BaseTransport | None:
        return self.pipes[fd].transport if fd in self.pipes else None

    def send_signal(self, signal: int) -> None:
        """Send a signal. ProcessLookupError if the program has been reaped."""
        if self.popen.returncode is not None:
            raise ProcessLookupError
        if self.exit is not None and self.exit.pidfd >= 0:
            calls.pidfd_send_signal(self.exit.pidfd, signal)  # cannot hit a process that reuses the pid
        else:
            self.popen.send_signal(signal)

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
        """Close the pipes and, as asyncio's transport does, kill the program if it still runs."""
        if self._is_closing:
            return
        self._is_closing = True
        for pipe in self.pipes.values():
            pipe.transport.close()
        with contextlib.suppress(ProcessLookupError):
            self.kill()

    def __repr__(self) -> str:
        state = "running" if self.popen.returncode is None else f"returncode={self.popen.returncode}"
        return f"<nsjoin.aio transport pid={self.popen.pid} {state}>"
