"""Lets every system call of every kind of join fail in every way that ``harness.ERRORS`` knows.

``--kill``: who makes the call is killed there; ``--end-target``: the target is, right after it.

As root, with strace and a C compiler. All of it takes some minutes.
"""

from __future__ import annotations

import argparse
import sys

from harness import Stage, Tally
from stage import OPERATIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operation", action="append", choices=OPERATIONS, help="only these (default: all)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th fault")
    parser.add_argument("--kill", action="store_true", help="SIGKILL at each system call instead of errors")
    parser.add_argument("--end-target", action="store_true", help="the target ends after each system call")
    parser.add_argument("--messages", action="store_true", help="show every error")
    given = parser.parse_args()
    tally = Tally()
    with Stage() as stage:
        for operation in given.operation or OPERATIONS:
            find = stage.kills if given.kill else stage.stops if given.end_target else stage.faults
            inject = stage.end_target if given.end_target else stage.inject
            for fault in find(operation)[:: given.every]:
                problem = tally.add(fault, inject(fault))
                if problem:
                    print(f"WRONG {fault}: {problem}", flush=True)
    if given.messages:
        for message, count in sorted(tally.messages.items()):
            print(f"{count:5} {message}")
    print(tally.table())
    sys.exit(tally.wrong > 0)


if __name__ == "__main__":
    main()
