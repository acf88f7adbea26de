"""Starting a program inside from asyncio, against asyncio.create_subprocess_exec without any namespace.

The program does nothing and is static; its output is a pipe, as in most uses. A goal that is missed is printed, and is
no failure. Before Python 3.12 asyncio has a thread wait for each child unless it is told not to: the other way, its
default since, is measured as well.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from _bench import Goal, Report, arguments, become_root, running_target, take_turns
from spawn import SIX, compile_program

import nsjoin
from nsjoin import aio

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from _bench import Samples

    Job = Callable[[], Coroutine[Any, Any, None]]

AT_ONCE = 50
GOAL = Goal(1.15)
BASE = "create_subprocess_exec"
BY_PIDFD = "create_subprocess_exec, PidfdChildWatcher"


def ways(program: str, target: nsjoin.Target) -> dict[str, Job]:
    async def without() -> None:
        process = await asyncio.create_subprocess_exec(program, stdin=DEVNULL, stdout=PIPE)
        await process.communicate()
        assert process.returncode == 0

    def spawn(namespaces: tuple[str, ...]) -> Job:
        async def job() -> None:
            process = await aio.spawn_in(target, [program], namespaces=namespaces, stdin=DEVNULL, stdout=PIPE)
            await process.communicate()
            assert process.returncode == 0

        return job

    def run(namespaces: tuple[str, ...]) -> Job:
        async def job() -> None:
            await aio.run_in(target, [program], namespaces=namespaces, stdin=DEVNULL, stdout=PIPE, check=True)

        return job

    jobs: dict[str, Job] = {
        BASE: without,
        "the same again": without,
        "spawn_in, net": spawn(("net",)),
        "spawn_in, six": spawn(SIX),
        "run_in, net": run(("net",)),
        "run_in, six": run(SIX),
    }
    if sys.version_info < (3, 12):
        jobs[BY_PIDFD] = without
    return jobs


def run_by_pidfd(loop: Any, work: Coroutine[Any, Any, None]) -> None:
    usual = asyncio.get_child_watcher()
    watcher = asyncio.PidfdChildWatcher()
    watcher.attach_loop(loop)
    asyncio.set_child_watcher(watcher)
    try:
        loop.run_until_complete(work)
    finally:
        asyncio.set_child_watcher(usual)


async def at_once(job: Job) -> None:
    await asyncio.gather(*[job() for _ in range(AT_ONCE)])


def measure(loop: Any, jobs: dict[str, Job], rounds: int, many: bool) -> Samples:
    def case(name: str, job: Job) -> Callable[[], object]:
        run = functools.partial(run_by_pidfd, loop) if name == BY_PIDFD else loop.run_until_complete
        return lambda: run(at_once(job) if many else job())

    samples = take_turns({name: case(name, job) for name, job in jobs.items()}, rounds)
    if many:
        samples = {name: [us / AT_ONCE for us in values] for name, values in samples.items()}
    return samples


def table(report: Report, title: str, samples: Samples) -> None:
    pairs: list[Any] = [
        (name, BASE, GOAL) if name.startswith(("spawn_in", "run_in")) else (name, BASE)
        for name in samples
        if name not in (BASE, BY_PIDFD)
    ]
    if BY_PIDFD in samples:
        pairs.append((BY_PIDFD, BASE))
        pairs += [(name, BY_PIDFD) for name in samples if name.startswith(("spawn_in", "run_in"))]
    report.table(title, samples, pairs)


def loops() -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {"asyncio": asyncio.SelectorEventLoop}
    try:
        uvloop = importlib.import_module("uvloop")  # whether or not it is there, the types are the same
    except ImportError:
        print("uvloop is not installed: asyncio's own loop only")
    else:
        found["uvloop"] = uvloop.new_event_loop
    return found


def main() -> None:
    become_root()
    given = arguments(__doc__, rounds=1000, short=40)
    report = Report("aio", given)
    with ExitStack() as stack:
        program = compile_program(stack.enter_context(tempfile.TemporaryDirectory(prefix="nsjoin-benchmark-")))
        target = stack.enter_context(nsjoin.Target.from_pid(stack.enter_context(running_target(*SIX))))
        jobs = ways(program, target)
        for name, new_loop in loops().items():
            loop = new_loop()
            asyncio.set_event_loop(loop)
            if name != "asyncio":  # it has its own way to wait, whatever asyncio is told
                jobs.pop(BY_PIDFD, None)
            table(report, f"{name}: one after the other", measure(loop, jobs, given.rounds, many=False))
            rounds = max(given.rounds // 20, 2)
            table(report, f"{name}: {AT_ONCE} at once, for each", measure(loop, jobs, rounds, many=True))
            asyncio.set_event_loop(None)
            loop.close()
    report.write()


if __name__ == "__main__":
    main()
