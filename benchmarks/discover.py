"""Seeing all namespaces, against lsns(8): the whole process against the whole process, and the function alone.

The machine is filled first: 1,000 processes in 200 namespaces, beside what runs there anyway. A goal that is missed is
printed, and is no failure.
"""

from __future__ import annotations

import compileall
import json
import os
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from _bench import Goal, Report, arguments, become_root, python, take_turns

import nsjoin
from nsjoin import discovery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LSNS = ["lsns", "--json"]
LS = [*python(), "-m", "nsjoin", "ls", "--json"]
#: Five namespaces for each group of processes, by the links of the process that makes them
OPTIONS = ("--mount", "--uts", "--ipc", "--net", "--pid", "--mount-proc", "--kill-child")
LINKS = ("mnt", "uts", "ipc", "net", "pid_for_children")


def start_group(stack: ExitStack, processes: int) -> set[int]:
    """Start ``processes`` processes in namespaces of their own and return the numbers of these.

    They end when we do: one reads from us, and the others are killed with it.
    """
    script = (
        f"i=1; while [ $i -lt {processes} ]; do sleep infinity & i=$((i + 1)); done; echo ready; exec cat >/dev/null"
    )
    command = ["unshare", "--fork", *OPTIONS, "sh", "-c", script]
    group = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    assert group.stdout is not None
    if group.stdout.readline() != "ready\n":
        raise SystemExit(f"cannot start a group: {' '.join(command)}")
    return {os.stat(f"/proc/{group.pid}/ns/{link}").st_ino for link in LINKS}


def program(command: list[str]) -> Callable[[], object]:
    """A whole process, to its end; its output is read, and its warnings are not.

    lsns gives up, with status 1, when a process ends that it is looking at: so the status is not checked.
    """
    return lambda: subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)


def numbers(entries: list[dict[str, Any]]) -> Iterator[int]:
    """Those of all entries; lsns puts some below others."""
    for entry in entries:
        yield entry["ns"]
        yield from numbers(entry.get("children", []))


def check(started: set[int]) -> None:
    """What is compared has to be the same work: both list all that was started."""
    for command in (LSNS, LS):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
        listed = set(numbers(json.loads(done.stdout)["namespaces"]))
        if not started <= listed:
            raise SystemExit(f"{' '.join(command)} does not list {sorted(started - listed)}")
        print(f"{' '.join(command)}: {len(listed)} namespaces")


def main() -> None:
    become_root()
    given = arguments(__doc__, rounds=50, short=3)
    report = Report("discover", given)
    compileall.compile_dir(os.path.dirname(nsjoin.__file__), quiet=1)  # as an installation does
    groups, processes = (4, 5) if given.short else (40, 25)
    with ExitStack() as stack:
        started = set[int]().union(*[start_group(stack, processes) for _ in range(groups)])
        check(started)
        cases: dict[str, Callable[[], object]] = {
            "lsns --json": program(LSNS),
            "python -m nsjoin ls --json": program(LS),
            "python -c 'import nsjoin'": program([*python(), "-c", "import nsjoin"]),
            "iter_namespaces()": lambda: list(nsjoin.iter_namespaces()),
            "iter_namespaces(), tree()": lambda: discovery.tree(),
        }
        samples = take_turns(cases, given.rounds)
        base = "lsns --json"
        pairs: list[tuple[str, str] | tuple[str, str, Goal]] = [
            ("python -m nsjoin ls --json", base, Goal(1.0)),
            ("iter_namespaces()", base, Goal(1.0)),
            ("iter_namespaces(), tree()", "iter_namespaces()"),
            ("python -c 'import nsjoin'", base),
        ]
        report.table(f"{groups * processes} processes in {len(started)} namespaces", samples, pairs)
    report.write()


if __name__ == "__main__":
    main()
