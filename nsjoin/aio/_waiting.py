"""TODO."""

from __future__ import annotations

import asyncio.subprocess
import contextlib
import select
import threading
import time
from typing import TYPE_CHECKING

from .._engine.children import Expired

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


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
