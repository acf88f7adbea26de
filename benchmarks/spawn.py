"""Starting a program inside, against the other ways to do it.

The program does nothing and is static, so that starting it is all there is to see. Every case starts it and waits for
it. A goal that is missed is printed, and is no failure.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from _bench import Goal, Report, arguments, become_root, python, running_target, take_turns, undisturbed

import nsjoin
from nsjoin._kernel import calls
from nsjoin._kernel.nstypes import mask, select

if TYPE_CHECKING:
    from collections.abc import Callable

    from _bench import Samples

    Case = Callable[[], object]

SIX = ("pid", "mnt", "uts", "ipc", "net", "cgroup")
EIGHT = (*SIX, "user", "time")
NSENTER = ("-p", "-m", "-u", "-i", "-n", "-C")
RESIDENT_MIB = (16, 256, 1024)
THREADS = (1, 4, 16)

#: Where there is no static libc: the system call exit_group(0).
WITHOUT_LIBC = r"""
void _start(void)
{
#if defined(__x86_64__)
    __asm__ volatile("syscall" : : "a"(231L), "D"(0L));
#elif defined(__aarch64__)
    register long number __asm__("x8") = 94, status __asm__("x0") = 0;
    __asm__ volatile("svc 0" : : "r"(number), "r"(status));
#else
#error "no static libc, and no system call is known for this machine"
#endif
    __builtin_trap();
}
"""


def compile_program(folder: str) -> str:
    """Compile the program; return its path."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    path = os.path.join(folder, "nothing")
    for source, options in (("int main(void){return 0;}", ()), (WITHOUT_LIBC, ("-nostdlib",))):
        command = [*compiler, "-static", "-O2", *options, "-x", "c", "-o", path, "-"]
        result = subprocess.run(command, input=source, stderr=subprocess.PIPE, text=True, check=False)
        if result.returncode == 0:
            return path
    raise SystemExit(f"{shlex.join(command)} failed:\n{result.stderr}")


# --- the ways -----------------------------------------------------------------------------------------------


def without(program: str) -> Case:
    return lambda: subprocess.Popen([program]).wait()


def inside(program: str, target: Any, namespaces: tuple[str, ...] | None) -> Case:
    return lambda: nsjoin.Popen([program], target=target, namespaces=namespaces).wait()


def by_nsenter(program: str, pid: int) -> Case:
    nsenter = shutil.which("nsenter")
    if nsenter is None:
        raise SystemExit("nsenter is not installed (util-linux)")
    command = [nsenter, "-t", str(pid), *NSENTER, program]
    return lambda: subprocess.Popen(command).wait()


def by_fork(program: str, pidfd: int, nstypes: int) -> Case:
    """What one would write with the standard library alone: fork, setns, fork again, exec; the first one relays."""
    setns: Callable[[int, int], None] = getattr(os, "setns", calls.setns)

    def outer() -> int:
        setns(pidfd, nstypes)
        pid = os.fork()
        if pid == 0:
            os.execv(program, [program])
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def case() -> None:
        pid = os.fork()
        if pid == 0:
            status = 127
            try:
                status = outer()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0, status

    return case


# --- the tables ---------------------------------------------------------------------------------------------


def ways(report: Report, program: str, pid: int, target: nsjoin.Target, all_eight: nsjoin.Target, rounds: int) -> None:
    base = "subprocess.Popen"
    cases = {
        base: without(program),
        "the same again": without(program),
        "net, Target": inside(program, target, ("net",)),
        "net, pid": inside(program, pid, ("net",)),
        "six, Target": inside(program, target, SIX),
        "six, pid": inside(program, pid, SIX),
        "all (None), Target": inside(program, target, None),
        "all (None), pid": inside(program, pid, None),
        "all of 8, with user and time": inside(program, all_eight, None),
        "subprocess + nsenter": by_nsenter(program, pid),
        "fork + setns + fork": by_fork(program, target.fileno(), mask(select(SIX))),
    }
    for name, case in cases.items():
        if case() not in (0, None):
            raise SystemExit(f"{name}: the program failed")
    net, six, faster = Goal(1.20), Goal(1.30), Goal(3.0, at_most=False)
    report.table(
        "nsjoin.Popen(...).wait() into pid+mnt+uts+ipc+net+cgroup (six), net alone, all",
        take_turns(cases, rounds),
        [
            ("the same again", base),
            ("net, Target", base, net),
            ("net, pid", base, net),
            ("six, Target", base, six),
            ("six, pid", base, six),
            ("all (None), Target", base),
            ("all (None), pid", base),
            ("all of 8, with user and time", base),
            ("subprocess + nsenter", "six, pid", faster),
            ("subprocess + nsenter", "six, Target", faster),
            ("fork + setns + fork", "six, Target"),
        ],
    )


def serve(given: argparse.Namespace) -> None:
    """One caller of a certain size: measures the cases that a line names, and writes what was measured."""
    size = given.worker << 20
    ballast = bytearray(size)
    ballast[::4096] = b"\1" * len(range(0, size, 4096))
    with nsjoin.Target.from_pid(given.pid) as target:
        cases = {
            "subprocess.Popen": without(given.program),
            "nsjoin": inside(given.program, target, SIX),
            "fork": by_fork(given.program, target.fileno(), mask(select(SIX))),
        }
        print("ready", flush=True)
        for line in sys.stdin:
            samples = take_turns({name: cases[name] for name in line.split()}, 2)
            print(json.dumps({name: min(values) for name, values in samples.items()}), flush=True)


class Worker:
    """A caller of ``mib`` MiB resident: a process of its own, since memory once used leaves its page tables behind."""

    def __init__(self, mib: int, program: str, pid: int, stack: ExitStack) -> None:
        self.mib = mib
        command = [*python(), __file__, f"--worker={mib}", f"--pid={pid}", f"--program={program}"]
        self._process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        if self._readline() != "ready\n":
            raise SystemExit(f"the caller of {mib} MiB ended")

    def _readline(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def measure(self, names: tuple[str, ...], samples: Samples) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(names) + "\n")
        self._process.stdin.flush()
        for name, us in json.loads(self._readline()).items():
            samples.setdefault(f"{name}, {self.mib} MiB", []).append(us)


def resident(report: Report, program: str, pid: int, rounds: int) -> None:
    small, middle, large = RESIDENT_MIB
    with ExitStack() as stack:
        workers = [Worker(mib, program, pid, stack) for mib in RESIDENT_MIB]
        # fork leaves the others cold caches and pages to copy, and takes long: it has rounds of its own
        for names, count in ((("subprocess.Popen", "nsjoin"), rounds), (("fork",), max(rounds // 10, 2))):
            samples: Samples = {}
            for _ in range(count):
                random.shuffle(workers)
                for worker in workers:
                    worker.measure(names, samples)
            pairs: list[Any] = []
            for name in names:
                goal = [Goal(1.10)] if name == "nsjoin" else []
                pairs.append((f"{name}, {middle} MiB", f"{name}, {small} MiB"))
                pairs.append((f"{name}, {large} MiB", f"{name}, {small} MiB", *goal))
            report.table(
                f"{' and '.join(names)} with 16, 256, 1024 MiB resident, nsjoin and fork into six", samples, pairs
            )


def throughput(pool: ThreadPoolExecutor, threads: int, each: int, case: Case) -> float:
    """Microseconds of wall time for one program, when as many threads start ``each`` one after the other."""
    barrier = threading.Barrier(threads + 1)

    def work() -> None:
        barrier.wait()
        for _ in range(each):
            case()

    futures = [pool.submit(work) for _ in range(threads)]
    barrier.wait()
    begin = time.perf_counter_ns()
    for future in futures:
        future.result()
    return (time.perf_counter_ns() - begin) / 1000 / (threads * each)


def threaded(report: Report, program: str, target: nsjoin.Target, rounds: int) -> None:
    cases = {
        "subprocess.Popen": without(program),
        "net": inside(program, target, ("net",)),
        "six": inside(program, target, SIX),
    }
    samples: Samples = {}
    for threads in THREADS:
        each = max(1, 16 // threads)
        order = list(cases.items())
        with ThreadPoolExecutor(threads) as pool, undisturbed():
            for _, case in order:
                throughput(pool, threads, 1, case)
            for _ in range(rounds):
                random.shuffle(order)
                for name, case in order:
                    us = throughput(pool, threads, each, case)
                    samples.setdefault(f"{name}, {threads} threads", []).append(us)
    pairs = [
        (f"{name}, {threads} threads", f"subprocess.Popen, {threads} threads")
        for name in ("net", "six")
        for threads in THREADS
    ]
    pairs += [(f"six, {threads} threads", f"six, {THREADS[0]} threads") for threads in THREADS[1:]]
    report.table("from several threads, wall time for one program", samples, pairs)


def main() -> None:
    become_root()
    given = arguments(__doc__, rounds=1000, short=40)
    report = Report("spawn", given)
    with ExitStack() as stack:
        program = compile_program(stack.enter_context(tempfile.TemporaryDirectory(prefix="nsjoin-benchmark-")))
        pid = stack.enter_context(running_target(*SIX))
        target = stack.enter_context(nsjoin.Target.from_pid(pid))
        all_eight = stack.enter_context(nsjoin.Target.from_pid(stack.enter_context(running_target(*EIGHT))))
        ways(report, program, pid, target, all_eight, given.rounds)
        resident(report, program, pid, max(given.rounds // 4, 2))
        threaded(report, program, target, max(given.rounds // 10, 2))
    report.write()


def worker_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--worker", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--program", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    if any(argument.startswith("--worker=") for argument in sys.argv):
        serve(worker_arguments())
    else:
        main()
