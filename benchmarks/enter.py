"""Entering a namespace and coming back, against two bare setns(2) calls: the least that a way there and back can be.

Each sample is the mean of a batch, since one way there and back takes a few microseconds. A goal that is missed is
printed, and is no failure.
"""

from __future__ import annotations

import importlib
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from _bench import Goal, Report, arguments, become_root, running_target, take_turns

import nsjoin
from nsjoin._kernel import calls
from nsjoin._kernel.nstypes import BY_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

    Case = Callable[[], object]
    #: by type: the target's, and our own
    Opened = dict[str, tuple[nsjoin.Namespace, nsjoin.Namespace]]

TYPES = ("mnt", "uts", "ipc", "net", "pid", "cgroup")
BATCH = 20


def bare(namespaces: list[nsjoin.Namespace], own: list[nsjoin.Namespace]) -> Case:
    """There and back by setns(2) alone, with everything open."""
    there = [(namespace.fileno(), BY_NAME[namespace.nstype].flag) for namespace in namespaces]
    steps = there + [(namespace.fileno(), BY_NAME[namespace.nstype].flag) for namespace in reversed(own)]
    setns = calls.setns
    if len(steps) == 2:
        (fd, flag), (own_fd, _) = steps

        def pair() -> None:
            setns(fd, flag)
            setns(own_fd, flag)

        return pair

    def several() -> None:
        for fd, flag in steps:
            setns(fd, flag)

    return several


def prepared(*arguments: Any) -> Case:
    context = nsjoin.enter(*arguments)

    def case() -> None:
        with context:
            pass

    return case


def made(*arguments: Any) -> Case:
    enter = nsjoin.enter

    def case() -> None:
        with enter(*arguments):
            pass

    return case


def pyroute2_cases(pid: int) -> dict[str, Case]:
    """pyroute2 is no dependency: measured where it is installed."""
    try:
        netns = importlib.import_module("pyroute2.netns")  # whether or not it is there, the types are the same
    except ImportError:
        return {}
    path, own_path = f"/proc/{pid}/ns/net", f"/proc/{os.getpid()}/ns/net"

    def setns_twice() -> None:
        netns.setns(path, flags=0)
        netns.setns(own_path, flags=0)

    def push_and_pop() -> None:
        netns.pushns(path)
        netns.popns()

    return {"pyroute2 setns, twice": setns_twice, "pyroute2 pushns, popns": push_and_pop}


# --- the tables ---------------------------------------------------------------------------------------------


def one_type(report: Report, pid: int, target: nsjoin.Target, namespaces: Opened, rounds: int) -> None:
    base = "two bare setns"
    there, own = namespaces["net"]
    cases = {
        base: bare([there], [own]),
        "the same again": bare([there], [own]),
        "with e: (Namespace)": prepared(there),
        "with e: (Target, net)": prepared(target, "net"),
        "with enter(Namespace):": made(there),
        "with enter(Target, net):": made(target, "net"),
        "with enter(pid, net):": made(pid, "net"),
        "with enter(path):": made(f"/proc/{pid}/ns/net"),
    }
    others = pyroute2_cases(pid)
    goals = {"with e: (Namespace)": Goal(2.0), "with enter(pid, net):": Goal(12.0)}
    pairs: list[Any] = [(name, base, *([goals[name]] if name in goals else [])) for name in cases if name != base]
    pairs += [(name, "with enter(path):") for name in others]
    report.table("there and back, net", take_turns({**cases, **others}, rounds, BATCH), pairs)
    if not others:
        print("pyroute2 is not installed: left out")


def several_types(report: Report, pid: int, target: nsjoin.Target, namespaces: Opened, rounds: int) -> None:
    cases: dict[str, Case] = {}
    pairs = []
    for nstypes in (("uts", "ipc", "net"), ("pid",), ("mnt",), TYPES):
        words = "six" if nstypes == TYPES else "+".join(nstypes)
        there = [namespaces[nstype][0] for nstype in nstypes]
        base = f"{2 * len(nstypes)} bare setns, {words}"
        ours = {
            f"with e: (Namespaces), {words}": prepared(there),
            f"with e: (Target), {words}": prepared(target, *nstypes),
            f"with enter(pid): {words}": made(pid, *nstypes),
        }
        cases.update({base: bare(there, [namespaces[nstype][1] for nstype in nstypes]), **ours})
        pairs += [(name, base) for name in ours]
    report.table("there and back, other types and several at once", take_turns(cases, rounds, BATCH), pairs)


def main() -> None:
    become_root()
    given = arguments(__doc__, rounds=1000, short=60)
    report = Report("enter", given)
    with ExitStack() as stack:
        pid = stack.enter_context(running_target(*TYPES))
        target = stack.enter_context(nsjoin.Target.from_pid(pid))
        namespaces = {
            nstype: (
                stack.enter_context(target.namespace(nstype)),
                stack.enter_context(nsjoin.Namespace.current(nstype)),
            )
            for nstype in TYPES
        }
        one_type(report, pid, target, namespaces, given.rounds)
        several_types(report, pid, target, namespaces, max(given.rounds // 4, 2))
    report.write()


if __name__ == "__main__":
    main()
