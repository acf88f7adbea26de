"""Descriptors, deadlines and threads as futures of the running loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING

from .._engine.children import Expired, readable

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


async def until_readable(fd: int, deadline: float | None) -> None:
    """Wait until ``fd`` is readable or hung up. Expired at ``deadline``, a time of ``time.monotonic``."""
    if readable(fd, 0):
        return
    loop = asyncio.get_running_loop()
    has_news = loop.create_future()
    loop.add_reader(fd, resolve, has_news)
    try:
        await before(deadline, has_news)
    finally:
        loop.remove_reader(fd)


async def before(deadline: float | None, future: asyncio.Future[Any]) -> Any:
    """Return the future's result. Expired at ``deadline``, of ``time.monotonic``: the loop's clock may differ."""
    if deadline is None:
        return await future
    left = max(deadline - time.monotonic(), 0)
    timer = asyncio.get_running_loop().call_later(left, resolve, future, None, Expired())
    try:
        return await future
    finally:
        timer.cancel()


def resolve(future: asyncio.Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    """Give ``future`` its result, or its exception, unless it has one or was cancelled."""
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def in_thread(function: Callable[[], Any]) -> asyncio.Future[Any]:
    """Call ``function`` in a daemon thread of its own: a call that hangs must not occupy the loop's executor."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def finish(result: Any, error: BaseException | None) -> None:
        thread.join()  # its last statement has scheduled this call
        resolve(future, result, error)

    def run() -> None:
        result = error = None
        try:
            result = function()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(finish, result, error)

    thread = threading.Thread(target=run, name="nsjoin.aio", daemon=True)
    thread.start()
    return future
