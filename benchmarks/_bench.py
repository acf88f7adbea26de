"""What the benchmarks share: cases that take turns within one run, robust figures, goals, targets to measure with."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import random
import shlex
import subprocess
import sys
import time
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    #: Microseconds by case, one for each round: index i of all lists was measured in the same round.
    Samples = dict[str, list[float]]

#: unshare(1)'s option for each type
_OPTIONS = {
    "mnt": "--mount",
    "uts": "--uts",
    "ipc": "--ipc",
    "net": "--net",
    "pid": "--pid",
    "user": "--map-root-user",
    "cgroup": "--cgroup",
    "time": "--time",
}


def arguments(description: str | None, rounds: int, short: int) -> argparse.Namespace:
    """The command line. ``rounds`` is the default, ``short`` the one of --short."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=None, metavar="N", help=f"rounds to measure (default {rounds})")
    parser.add_argument("--short", action="store_true", help="less of everything, for CI: only shows that it runs")
    parser.add_argument("--json", metavar="FILE", help="write all figures to FILE as well")
    given = parser.parse_args()
    if given.rounds is None:
        given.rounds = short if given.short else rounds
    if given.rounds < 2:
        parser.error("--rounds: at least 2")
    return given


def become_root() -> None:
    """As an ordinary user, begin again as root of a new user namespace, which owns all that is left and entered.

    The way back is a setns(2) too: it needs capabilities over the namespaces one comes from.
    """
    if os.geteuid() != 0:
        sys.stdout.flush()
        options = [*_OPTIONS.values(), "--fork", "--kill-child", "--mount-proc"]
        os.execvp("unshare", ["unshare", *options, *python(), *sys.argv])


def python() -> list[str]:
    """This interpreter with its -W options."""
    return [sys.executable, *(f"-W{option}" for option in sys.warnoptions)]


@contextlib.contextmanager
def running_target(*nstypes: str) -> Iterator[int]:
    """The pid of a process in new namespaces of these types. It reads from us, so it also ends when we are killed."""
    options = [_OPTIONS[nstype] for nstype in nstypes]
    command = ["unshare", "--fork", *options, "sh", "-c", "echo ready; exec cat >/dev/null"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"cannot start a target: {shlex.join(command)}")
        with open(f"/proc/{process.pid}/task/{process.pid}/children", encoding="ascii") as children:
            pid = int(children.read())
        yield pid


# --- measuring ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def take_turns(cases: Mapping[str, Callable[[], object]], rounds: int, calls: int = 1) -> Samples:
    """Each round runs every case, in an order of its own: drift and what others do hit all cases alike.

    A sample is the mean of ``calls`` calls, for what is too short to be timed one by one. The first round warms up.
    """
    samples: Samples = {name: [] for name in cases}
    order = list(cases.items())
    repeat = [None] * calls
    with undisturbed():
        for _ in range(rounds + 1):
            random.shuffle(order)
            for name, case in order:
                begin = time.perf_counter_ns()
                for _ in repeat:
                    case()
                samples[name].append((time.perf_counter_ns() - begin) / calls / 1000)
    return {name: values[1:] for name, values in samples.items()}


# --- the figures --------------------------------------------------------------------------------------------


class Goal(NamedTuple):
    """What a ratio is to be: ``at_most`` or at least ``limit``."""

    limit: float
    at_most: bool = True

    def met(self, ratio: float) -> bool:
        return ratio <= self.limit if self.at_most else ratio >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:.2f}"


class Row(NamedTuple):
    """One case against another one of the same rounds.

    ``ratio`` is that of the medians; ``paired`` comes from the median of the differences within each round, which is
    less moved by what changes slower than a round takes.
    """

    what: str
    against: str
    us: float
    us_against: float
    ratio: float
    paired: float
    goal: Goal | None

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return "met" if self.goal.met(self.ratio) else "missed"


class Report:
    """Collects what was measured; prints it as tables and writes it as JSON."""

    def __init__(self, name: str, given: argparse.Namespace) -> None:
        self._json = given.json
        self._data: dict[str, Any] = {"benchmark": name, "machine": machine(), "short": given.short, "tables": []}
        print(f"{name}: {', '.join(f'{key} {value}' for key, value in self._data['machine'].items())}")

    def table(
        self, title: str, samples: Samples, pairs: Sequence[tuple[str, str] | tuple[str, str, Goal]]
    ) -> list[Row]:
        """One line for each pair (case, the case it is held against, perhaps a goal)."""
        rows = [_compare(samples, *pair) for pair in pairs]
        count = len(next(iter(samples.values())))
        print(f"\n{title} ({count} rounds)")
        _print_rows(rows)
        self._data["tables"].append(
            {
                "title": title,
                "rounds": count,
                "cases": {name: _spread(values) for name, values in samples.items()},
                "rows": [_plain(row) for row in rows],
            }
        )
        return rows

    def write(self) -> None:
        if self._json:
            with open(self._json, "w", encoding="utf-8") as file:
                json.dump(self._data, file, indent=1)
                file.write("\n")


def machine() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "Python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.2f}",
    }


def _compare(samples: Samples, what: str, against: str, goal: Goal | None = None) -> Row:
    ours, theirs = samples[what], samples[against]
    us, us_against = median(ours), median(theirs)
    difference = median(one - other for one, other in zip(ours, theirs))
    return Row(what, against, us, us_against, us / us_against, 1 + difference / us_against, goal)


def _print_rows(rows: Sequence[Row]) -> None:
    lines = [("", "us", "against", "us", "ratio", "paired", "goal", "")]
    lines += [
        (
            row.what,
            f"{row.us:.1f}",
            row.against,
            f"{row.us_against:.1f}",
            f"{row.ratio:.2f}",
            f"{row.paired:.2f}",
            "" if row.goal is None else str(row.goal),
            row.verdict,
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        cells = [
            cell.ljust(width) if index in (0, 2, 7) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths))
        ]
        print("  ".join(cells).rstrip(), flush=True)


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = quantiles(values, n=4)
    return {
        "median_us": round(middle, 3),
        "q1_us": round(low, 3),
        "q3_us": round(high, 3),
        "min_us": round(min(values), 3),
    }


def _plain(row: Row) -> dict[str, Any]:
    goal = None if row.goal is None else {"limit": row.goal.limit, "at_most": row.goal.at_most, "verdict": row.verdict}
    return {**row._asdict(), "goal": goal}
