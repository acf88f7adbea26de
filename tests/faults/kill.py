"""Kills at random moments of random joins: the caller, a process that it has started, or the target.

As root, with strace's companions of ``harness.py`` but without strace. Each round must end, with a clear error where it
had no success, and leave nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter

from harness import Fault, Stage, Tally, target_for
from stage import OPERATIONS

VICTIMS = ("caller", "descendant", "target")
#: seconds: about as long as a join takes here
LONGEST = 0.006
#: what opens namespaces before anybody can be killed
PREPARED = "call_with_one_in_the_middle"


def kill_one(stage: Stage, chance: random.Random, tally: Tally) -> str | None:
    """One round; what is wrong with how it went, None if nothing is."""
    victim = chance.choice(VICTIMS)
    operation = chance.choice([name for name in OPERATIONS if victim != "target" or name != PREPARED])
    moment = chance.uniform(0, LONGEST)
    with target_for(operation) if victim == "target" else contextlib.nullcontext() as target:

        def kill(pid: int) -> None:
            time.sleep(moment)
            prey = {"caller": pid, "target": target}.get(victim) or descendant(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(prey, signal.SIGKILL)

        answer = stage.perform(operation, target=target, meanwhile=kill)
    fault = Fault(operation, f"{victim} killed after {moment * 1000:.2f} ms", 0, "SIGKILL", everywhere=False)
    return tally.add(fault, answer)


def descendant(pid: int) -> int:
    """A child of the process; if it has none just now, itself."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        with open(f"/proc/{pid}/task/{pid}/children") as children:
            found = children.read().split()
        if found:
            return int(found[-1])
    return pid


def kill_many(stage: Stage, rounds: int, seed: int) -> tuple[Tally, Counter[str]]:
    """The same seed kills the same victims at the same moments."""
    chance = random.Random(seed)
    tally = Tally()
    wrong: Counter[str] = Counter()
    for _ in range(rounds):
        problem = kill_one(stage, chance, tally)
        if problem:
            wrong[problem] += 1
    return tally, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    given = parser.parse_args()
    print(f"{given.rounds} rounds, --seed {given.seed}", flush=True)
    with Stage() as stage:
        tally, wrong = kill_many(stage, given.rounds, given.seed)
    for problem, count in wrong.most_common():
        print(f"WRONG {count} times: {problem}")
    print(tally.table())
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
