"""Everything at once, from threads, for long: descriptors, processes, threads and memory have to stay what they were.

Prints a line for each interval. Samples are taken while no operation is under way, so descriptors and threads have to
be exactly as many as at first, and zombies none; the resident memory has to be flat: over the second half, the
straight line through its samples may rise by the tolerance at most. The exit status is 1 where that does not hold.

``--spawns`` and ``--enters`` are soaks of one kind, which end after so many operations.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

from _bench import become_root, machine, running_target

import nsjoin
from nsjoin import aio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    #: Carries out some operations, and tells how many
    Kind = Callable[[], int]

SIX = ("mnt", "uts", "ipc", "net", "pid", "cgroup")
TRUE = ["true"]
#: How far the line through the resident memory's second half may rise, as a share of the mean
TOLERANCE, SHORT_TOLERANCE = 0.02, 0.10
#: A burst of ``enter`` is each way so many times
_TIMES = 25


class Failed(Exception):  # noqa: N818 - raised inside, to be brought out
    """What a function raises inside."""


def fail() -> None:
    raise Failed


class Work:
    """The kinds of operation, all in one target."""

    def __init__(self, target: nsjoin.Target) -> None:
        self.target = target
        self._own = threading.local()
        self._inside = [
            nsjoin.enter(target, "net"),
            nsjoin.enter(target, *SIX),
            nsjoin.enter(target.pid, "uts", "ipc"),
            nsjoin.enter(f"/proc/{target.pid}/ns/net"),
        ]
        self.kinds: dict[str, Kind] = {
            "spawn_in": self.spawn_in,
            "run_in": self.run_in,
            "enter": self.enter,
            "call_in": self.call_in,
            "aio": self.aio,
            "refused": self.refused,
        }

    def spawn_in(self) -> int:
        with nsjoin.spawn_in(self.target, TRUE) as process:
            assert process.wait() == 0
        return 1

    def run_in(self) -> int:
        done = nsjoin.run_in(self.target, ["cat"], input=b"in and out", capture_output=True, check=True)
        assert done.stdout == b"in and out"
        return 1

    def enter(self) -> int:
        for inside in self._inside:
            for _ in range(_TIMES):
                with inside:
                    pass
        return len(self._inside) * _TIMES

    def call_in(self) -> int:
        assert (
            nsjoin.call_in(self.target, os.getppid, trust_target=True) == 0
        )  # the parent is outside of the PID namespace
        return 1

    def refused(self) -> int:
        """What raises: a program and a directory that are not there, a deadline, an exception inside, no such type."""
        refused: list[tuple[type[BaseException], Callable[[], object]]] = [
            (FileNotFoundError, lambda: nsjoin.spawn_in(self.target, ["/nowhere"])),
            (FileNotFoundError, lambda: nsjoin.spawn_in(self.target, TRUE, cwd="/nowhere")),
            (subprocess.TimeoutExpired, lambda: nsjoin.run_in(self.target, ["sleep", "9"], timeout=0.001)),
            (Failed, lambda: nsjoin.call_in(self.target, fail, trust_target=True)),
            (nsjoin.JoinError, lambda: nsjoin.enter(self.target, "user")),
        ]
        for kind, call in refused:
            try:
                call()
            except kind:
                continue
            raise AssertionError(f"not refused: {kind.__name__}")
        return len(refused)

    def aio(self) -> int:
        if not hasattr(self._own, "loop"):
            self._own.loop = asyncio.new_event_loop()
        done: int = self._own.loop.run_until_complete(self._at_once())
        return done

    async def _at_once(self) -> int:
        async def spawn() -> None:
            process = await aio.spawn_in(self.target, TRUE, stdout=subprocess.PIPE)
            await process.communicate()

        jobs: list[Any] = [
            spawn(),
            spawn(),
            aio.run_in(self.target, ["cat"], input=b"in and out", capture_output=True, check=True),
            aio.call_in(self.target, os.getpid, trust_target=True),
        ]
        await asyncio.gather(*jobs)
        return len(jobs)

    def close_loop(self) -> None:
        """Of this thread."""
        if hasattr(self._own, "loop"):
            self._own.loop.close()

    def mixed(self) -> Iterator[str]:
        """Every kind, in an order of chance, without end."""
        while True:
            yield random.choice(list(self.kinds))


# --- the threads ----------------------------------------------------------------------------------------------


class Worker:
    """One thread. It holds ``busy`` while an operation is under way."""

    def __init__(self, soak: Soak, plan: Iterable[str]) -> None:
        self._soak, self._plan = soak, plan
        self.busy = threading.Lock()
        self.done: Counter[str] = Counter()

    def run(self) -> None:
        kinds = self._soak.work.kinds
        try:
            for kind in self._soak.used:
                kinds[kind]()  # what is kept for the thread's lifetime is made now
            self._soak.warm.wait()
            for kind in self._plan:
                self._soak.go.wait()
                if self._soak.over:
                    break
                with self.busy:
                    self.done[kind] += kinds[kind]()
        except BaseException:
            self._soak.warm.abort()
            raise
        finally:
            self._soak.work.close_loop()


class Soak:
    """Runs the threads and takes the samples."""

    def __init__(self, work: Work, used: Sequence[str], plans: Sequence[Iterable[str]]) -> None:
        self.work, self.used = work, used
        self.go, self.over = threading.Event(), False
        self.warm = threading.Barrier(len(plans) + 1)
        self._workers = [Worker(self, plan) for plan in plans]
        self._begin = 0.0
        self.samples: list[Sample] = []

    def run(self, seconds: float, interval: float) -> None:
        """Until that time has passed, or all plans are carried out, or one has failed, which is raised."""
        with ThreadPoolExecutor(len(self._workers)) as pool:
            futures = [pool.submit(worker.run) for worker in self._workers]
            try:
                with contextlib.suppress(threading.BrokenBarrierError):
                    self.warm.wait()
                    self._sample_each(interval, seconds, lambda: self._has_ended(futures))
            finally:
                self.over = True
                self.go.set()
            for future in futures:
                future.result()

    @staticmethod
    def _has_ended(futures: Sequence[Future[None]]) -> bool:
        return all(future.done() for future in futures) or any(
            future.done() and future.exception() for future in futures
        )

    def _sample_each(self, interval: float, seconds: float, has_ended: Callable[[], bool]) -> None:
        self._begin = next_time = time.monotonic()
        while True:
            ended = has_ended() or time.monotonic() >= self._begin + seconds
            self._sample()
            if ended:
                return
            next_time += interval
            while time.monotonic() < next_time and not has_ended():
                time.sleep(min(0.1, interval))

    def _sample(self) -> None:
        """While all workers rest."""
        self.go.clear()
        with contextlib.ExitStack() as stack:
            for worker in self._workers:
                stack.enter_context(worker.busy)
            done = sum((worker.done for worker in self._workers), Counter())
            threads = self.samples[0].threads if self.samples else 0
            sample = take_sample(time.monotonic() - self._begin, done, self.work.target.pid, threads)
        self.go.set()
        print_line(sample, self.samples[-1] if self.samples else None, self.used)
        self.samples.append(sample)


# --- the samples ----------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """This process, at rest."""

    seconds: float
    operations: dict[str, int]
    descriptors: int
    zombies: int
    threads: int
    rss_kb: int


def take_sample(seconds: float, operations: Counter[str], target: int, threads: int) -> Sample:
    """``threads`` as at first: what has been joined may still be ending in the kernel, and is waited for."""
    end = time.monotonic() + 10
    while threads and len(os.listdir("/proc/self/task")) > threads and time.monotonic() < end:
        time.sleep(0.001)
    with open("/proc/self/statm", encoding="ascii") as statm:
        rss = int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024
    return Sample(
        round(seconds, 3),
        dict(operations),
        len(os.listdir("/proc/self/fd")) - 1,  # the directory's own
        count_zombies(os.getpid()) + count_zombies(target),
        len(os.listdir("/proc/self/task")),
        rss,
    )


def count_zombies(parent: int) -> int:
    zombies = 0
    for task in os.listdir(f"/proc/{parent}/task"):
        with open(f"/proc/{parent}/task/{task}/children", encoding="ascii") as children:
            for child in children.read().split():
                with open(f"/proc/{child}/stat", encoding="ascii", errors="replace") as stat:
                    zombies += stat.read().rpartition(")")[2].split()[0] == "Z"
    return zombies


def print_line(sample: Sample, before: Sample | None, used: Sequence[str]) -> None:
    if before is None:
        print("seconds  descriptors  zombies  threads  RSS kB  " + "  ".join(f"{kind} (a second)" for kind in used))
    seconds = sample.seconds - before.seconds if before else 0
    counts = []
    for kind in used:
        done = sample.operations.get(kind, 0)
        rate = (done - before.operations.get(kind, 0)) / seconds if before and seconds else 0
        counts.append(f"{done} ({rate:.0f})".rjust(len(kind) + 11))
    head = f"{sample.seconds:7.1f}  {sample.descriptors:11}  {sample.zombies:7}  {sample.threads:7}  {sample.rss_kb:6}"
    print(head + "  " + "  ".join(counts), flush=True)


# --- what has to hold -----------------------------------------------------------------------------------------


def rise(samples: Sequence[Sample]) -> float:
    """How far the least-squares line through the RSS of the second half rises over it, as a share of the mean."""
    half = [sample for sample in samples if sample.seconds >= samples[-1].seconds / 2]
    x, y = [sample.seconds for sample in half], [float(sample.rss_kb) for sample in half]
    middle_x, middle_y = mean(x), mean(y)
    spread = sum((at - middle_x) ** 2 for at in x)
    slope = sum((at - middle_x) * (value - middle_y) for at, value in zip(x, y)) / spread if spread else 0.0
    return slope * (x[-1] - x[0]) / middle_y


def changes(samples: Sequence[Sample], tolerance: float) -> list[str]:
    """What has not held."""
    first = samples[0]
    found = [
        f"{what}: {first._asdict()[what]} at first, {sample._asdict()[what]} after {sample.seconds:.1f} s"
        for sample in samples
        for what in ("descriptors", "zombies", "threads")
        if sample._asdict()[what] != first._asdict()[what]
    ]
    if first.zombies:
        found.append(f"zombies: {first.zombies} at first")
    if rise(samples) > tolerance:
        found.append(f"RSS rises by {rise(samples):.1%} over the second half; {tolerance:.0%} is allowed")
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--minutes", type=float, default=10, metavar="N", help="all kinds, for so long (default 10)")
    kind.add_argument("--spawns", type=int, default=0, metavar="N", help="so many spawn_in, and nothing else")
    kind.add_argument("--enters", type=int, default=0, metavar="N", help="so many pairs of in and out, nothing else")
    kind.add_argument("--short", action="store_true", help="all kinds, for 6 seconds, for CI: only shows that it runs")
    parser.add_argument("--threads", type=int, default=4, metavar="N", help="default 4")
    parser.add_argument("--interval", type=float, default=None, metavar="SECONDS", help="between samples")
    parser.add_argument("--json", metavar="FILE", help="write all samples to FILE as well")
    return parser.parse_args()


def make_soak(given: argparse.Namespace, work: Work) -> Soak:
    """A kind's count is divided among the threads, in bursts."""
    for kind, count, burst in (("spawn_in", given.spawns, 1), ("enter", given.enters, work.enter())):
        if count:
            bursts = -(-count // burst)
            shares = [len(range(first, bursts, given.threads)) for first in range(given.threads)]
            return Soak(work, [kind], [[kind] * share for share in shares])
    return Soak(work, list(work.kinds), [work.mixed() for _ in range(given.threads)])


def write(path: str, given: argparse.Namespace, samples: Sequence[Sample], tolerance: float) -> None:
    options = {key: value for key, value in vars(given).items() if key != "json" and value}
    data = {
        "benchmark": "soak",
        "machine": machine(),
        "options": options,
        "samples": [sample._asdict() for sample in samples],
        "changes": changes(samples, tolerance),
    }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(data, file)
        file.write("\n")


def main() -> None:
    given = arguments()
    become_root()
    counted = given.spawns or given.enters
    seconds = 6.0 if given.short else float("inf") if counted else given.minutes * 60
    interval = given.interval or (1.0 if counted else seconds / (12 if given.short else 60))
    tolerance = SHORT_TOLERANCE if given.short else TOLERANCE
    with running_target(*SIX) as pid, nsjoin.Target.from_pid(pid) as target:
        soak = make_soak(given, Work(target))
        soak.run(seconds, interval)
    if given.json:
        write(given.json, given, soak.samples, tolerance)
    found = changes(soak.samples, tolerance)
    print("\n".join(found) if found else f"flat; RSS rises by {rise(soak.samples):.2%} over the second half")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
