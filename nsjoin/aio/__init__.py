"""``spawn_in``, ``run_in`` and ``call_in`` for asyncio, without helper threads.

The launch is made in the loop's thread, so "the caller's namespaces" are those of the code that calls, and takes as
long as a vfork. From there until exec the loop watches a descriptor, since something inside may delay the program
without limit. For the exit it watches a pidfd: no SIGCHLD handler, no child watcher, so a loop in any thread will do,
uvloop's too. Only where there are no pidfds (before Linux 5.3, a seccomp filter, no descriptor left) does a thread wait
for each child; names of users and groups are looked up in a thread as well.
"""

from __future__ import annotations

import asyncio.subprocess
import contextlib
import errno
import subprocess
import time
from typing import TYPE_CHECKING

from .._engine.children import Expired
from .._engine.forked import Terms
from .._verbs.call import calling
from .._verbs.run import STATUS_IS_LOST, choose_streams
from ._program import Run
from ._start import launched
from ._transport import Transport
from ._waiting import until_readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from typing_extensions import Literal, Unpack

    from .._target.target import TargetLike
    from .._verbs.keywords import Command, PlainKeywords


__all__ = ["call_in", "run_in", "spawn_in"]

_LIMIT = 1 << 16  # asyncio.create_subprocess_exec's


async def spawn_in(
    target: TargetLike,
    args: Command,
    *,
    namespaces: Iterable[str] | None = None,
    netns_etc: bool = False,
    fork: bool = True,
    limit: int = _LIMIT,
    **popen_kwargs: Unpack[PlainKeywords],
) -> asyncio.subprocess.Process:
    """Start a program in ``target``'s namespaces: ``nsjoin.spawn_in`` for asyncio.

    Returns what asyncio.create_subprocess_exec returns, and takes its ``limit`` and ``nsjoin.Popen``'s keywords; bytes
    only. Raises what ``nsjoin.Popen`` raises. If this call is cancelled, whatever it has started is killed and reaped;
    once it has returned, the process is the caller's, as with asyncio.
    """
    keywords: dict[str, Any] = {**popen_kwargs, "namespaces": namespaces, "netns_etc": netns_etc, "fork": fork}
    with contextlib.ExitStack() as pin:
        popen = await launched(target, args, None, keywords, pin)
        protocol = asyncio.subprocess.SubprocessStreamProtocol(limit=limit, loop=asyncio.get_running_loop())
        transport = Transport(popen, protocol)
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
    **popen_kwargs: Unpack[PlainKeywords],
) -> subprocess.CompletedProcess[bytes]:
    """Run a program in ``target``'s namespaces: ``nsjoin.run_in`` for asyncio. Bytes only.

    When ``timeout`` expires (seconds from the call, the start included) or the task is cancelled, the program is
    killed, with ``kill_group`` its whole process group, and reaped; processes that still hold its pipes are not waited
    for. Raises subprocess.TimeoutExpired, subprocess.CalledProcessError (``check=True``), ChildProcessError if the exit
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
            popen = await launched(target, args, deadline, keywords, pin)
            run = Run(popen, kill_group)
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
    """Call ``func(*args)`` in ``target``'s namespaces: ``nsjoin.call_in`` for asyncio.

    The fork is made in the loop's thread; the loop runs on while the child does. If this call is cancelled or
    ``timeout`` (seconds) expires, the child is killed and reaped. Otherwise it returns and raises what
    ``nsjoin.call_in`` does. The child has no running loop: ``func`` may start its own.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    call = calling(target, func, args, namespaces, Terms(allow_imports, trust_target, result))
    try:
        while True:
            await until_readable(next(call), deadline)
    except StopIteration as stop:
        return stop.value
    except Expired:
        raise TimeoutError(f"the call has not returned after {timeout} seconds, and was killed") from None
    finally:
        call.close()
