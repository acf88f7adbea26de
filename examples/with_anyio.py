"""nsjoin in an anyio program, and so in a trio one: blocking calls in threads, and cancellation that kills the program.

The same with trio alone: trio.to_thread.run_sync, trio.open_nursery, trio.CancelScope. Where the loop is asyncio's,
nsjoin.aio does it without threads, and can be cancelled before exec too. A thread is in its own namespaces, not in
those of ``enter`` around the call. Runs as root and as an ordinary user.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import partial
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

from _target import new_target

import nsjoin

if TYPE_CHECKING:
    import subprocess

if importlib.util.find_spec("anyio") is None:
    print("skipped: anyio is not installed")
    sys.exit(77)
anyio: Any = importlib.import_module("anyio")


async def communicate(process: subprocess.Popen[bytes], data: bytes | None) -> tuple[bytes, bytes]:
    """process.communicate, which ends at once when this task is cancelled: the program is killed and reaped."""

    async def kill_when_cancelled() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            process.kill()  # does nothing once the program has been waited for

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kill_when_cancelled)
        with anyio.CancelScope(shield=True):  # the thread is never left behind: it returns when the program is dead
            output: tuple[bytes, bytes] = await anyio.to_thread.run_sync(process.communicate, data)
        await anyio.sleep(0)  # if we were cancelled, it is told here
        tasks.cancel_scope.cancel()
    return output


async def run_in(target: int, args: list[str], data: bytes | None = None) -> tuple[int, bytes]:
    start = partial(nsjoin.spawn_in, target, args, stdin=PIPE, stdout=PIPE)
    with anyio.CancelScope(shield=True):
        process = await anyio.to_thread.run_sync(start)
    with process:
        output, _ = await communicate(process, data)
    return process.returncode, output


async def main(target: int) -> None:
    results: dict[int, tuple[int, bytes]] = {}

    async def one(number: int) -> None:
        results[number] = await run_in(target, ["sh", "-c", f"cat; exit {number}"], b"input %d" % number)

    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(one, number)
    assert results == {number: (number, b"input %d" % number) for number in range(5)}, results

    with anyio.move_on_after(0.2) as scope:
        await run_in(target, ["sleep", "infinity"])
    assert scope.cancelled_caught
    left = nsjoin.run_in(target, ["pgrep", "-x", "sleep"], capture_output=True).stdout
    assert left == b"", left


if __name__ == "__main__":
    with new_target("--pid", "--mount", "--mount-proc") as target:
        for backend in ("asyncio", "trio"):
            if importlib.util.find_spec(backend) is None:
                print(f"{backend}: not installed")
                continue
            anyio.run(main, target, backend=backend)
            print(f"{backend}: five programs at once, and one that was cancelled is gone")
