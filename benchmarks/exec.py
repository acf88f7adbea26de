"""A program in a container, like the container's own, against the engine's own exec and nsenter.

Real containers are started from a busybox root file system, as in the tests; a runtime that does not start here is
named. Every case runs /bin/true inside and waits for it. A goal that is missed is printed, and is no failure.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _bench import Goal, Report, arguments, take_turns

import nsjoin

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from containers.engines import ENGINES
from containers.workshop import CannotStartError, workshop

if TYPE_CHECKING:
    from collections.abc import Callable

    from containers.engines import Container

    Case = Callable[[], object]

PROGRAM = ["/bin/true"]
#: To change the cgroup of a process can take longer than all the rest: the kernel waits until no process is just being
#: born or ending (an RCU grace period). Only version 2 has a way around, clone3(2) with CLONE_INTO_CGROUP.
ALL_BUT_CGROUP: dict[str, Any] = dict.fromkeys(
    ("env", "cwd", "user", "group", "extra_groups", "capabilities", "no_new_privs", "oom_score_adj", "lsm_label"),
    nsjoin.TARGET,
)
#: How much slower the engine's own exec is to be at least.
GOALS = {"podman": Goal(20, at_most=False)}
NSENTER_GOAL = Goal(2.5, at_most=False)


def by_nsjoin(target: nsjoin.Target, **keywords: Any) -> Case:
    return lambda: nsjoin.run_in(target, PROGRAM, check=True, **keywords)


def by_command(command: list[str], box: Container) -> Case:
    return lambda: subprocess.run(command, env=box.env, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def cases_of(box: Container, target: nsjoin.Target) -> dict[str, Case]:
    """The cases of one container; the names begin with its engine's."""
    name = box.engine
    cases = {
        f"{name}: nsjoin, like_target": by_nsjoin(target, like_target=True),
        f"{name}: nsjoin, all of that but the cgroup": by_nsjoin(target, **ALL_BUT_CGROUP),
        f"{name}: nsjoin, namespaces alone": by_nsjoin(target),
    }
    if shutil.which("nsenter") is not None:
        cases[f"{name}: nsenter -a"] = by_command(["nsenter", "-a", "-t", str(box.pid), *PROGRAM], box)
    if box.own_exec is not None:
        cases[f"{name}: its own exec"] = by_command([*box.own_exec, *PROGRAM], box)
    return cases


def works(name: str, case: Case) -> bool:
    """Whether a case can be measured: nsenter cannot enter every target that we can."""
    try:
        case()
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"not measured: {name}: {error}")
        return False
    return True


def pairs(cases: dict[str, Case]) -> list[tuple[str, str] | tuple[str, str, Goal]]:
    rows: list[tuple[str, str] | tuple[str, str, Goal]] = []
    for name in cases:
        engine, _, way = name.partition(": ")
        ours = f"{engine}: nsjoin, like_target"
        goal = NSENTER_GOAL if way == "nsenter -a" else GOALS.get(engine) if way == "its own exec" else None
        if name != ours and ours in cases:
            rows.append((name, ours) if goal is None else (name, ours, goal))
    return rows


def main() -> None:
    given = arguments(__doc__, rounds=100, short=3)
    report = Report("exec", given)
    cases: dict[str, Case] = {}
    with ExitStack() as stack:
        shop = stack.enter_context(workshop())
        for engine in ENGINES.values():
            try:
                box = stack.enter_context(engine.start(shop))
            except CannotStartError as error:
                print(f"not measured: {engine.name} does not start here: {error}")
                continue
            target = stack.enter_context(nsjoin.Target.from_pid(box.pid))
            cases.update((name, case) for name, case in cases_of(box, target).items() if works(name, case))
        if cases:
            title = "run_in(target, ['/bin/true'], like_target=True), and how many times as long the others take"
            report.table(title, take_turns(cases, given.rounds), pairs(cases))
    report.write()


if __name__ == "__main__":
    main()
