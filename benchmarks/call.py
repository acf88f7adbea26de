"""``call_in`` against a plain fork, pipe and pickle written in Python: what being inside costs.

A goal that is missed is printed, and is no failure.
"""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING

from _bench import Goal, Report, arguments, become_root, running_target, take_turns

import nsjoin

if TYPE_CHECKING:
    from collections.abc import Callable


def plain_call(func: Callable[[], object]) -> object:
    """The least that a call in a forked child can be."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, pickle.dumps(func()))
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        result: object = pickle.load(pipe)
    os.waitpid(child, 0)
    return result


def main() -> None:
    given = arguments(__doc__, rounds=500, short=20)
    become_root()
    report = Report("call_in", given)
    with running_target("mnt", "uts", "ipc", "net", "pid", "cgroup") as pid, nsjoin.Target.from_pid(pid) as target:
        cases: dict[str, Callable[[], object]] = {
            "fork + pipe + pickle": lambda: plain_call(os.getpid),
            "net": lambda: nsjoin.call_in(target, os.getpid, namespaces=("net",)),
            "mnt, uts, ipc, net, cgroup": lambda: nsjoin.call_in(
                target, os.getpid, namespaces=("mnt", "uts", "ipc", "net", "cgroup")
            ),
            "pid": lambda: nsjoin.call_in(target, os.getpid, namespaces=("pid",), trust_target=True),
            "all": lambda: nsjoin.call_in(target, os.getpid, trust_target=True),
        }
        samples = take_turns(cases, given.rounds)
        plain = "fork + pipe + pickle"
        without, with_pid = Goal(1.3), Goal(2.3)
        report.table(
            "call_in(target, os.getpid)",
            samples,
            [
                ("net", plain, without),
                ("mnt, uts, ipc, net, cgroup", plain, without),
                ("pid", plain, with_pid),
                ("all", plain, with_pid),
            ],
        )
    report.write()


if __name__ == "__main__":
    main()
