"""Joins in a storm of signals: SIGCHLD, SIGALRM and SIGINT, with handlers that return and with handlers that raise.

As root. With handlers that return, every join succeeds. What a handler raises comes out, and then nothing is left: no
process, no zombie, no changed namespace, working directory, root or signal mask. Descriptors are counted: an exception
may come between a system call of Python's own and the statement that keeps its result. So it may between the return of
``spawn_in`` and the caller's assignment: then subprocess has the Popen, and reaps the program when it has ended. And it
may come at the first instruction of a context manager's __exit__, before any statement of ours: so ``enter`` is not
among these.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from harness import build_program, running_target
from stage import INTO_USER, OPERATIONS, Job, look, prepare

from nsjoin._kernel import calls

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNALS = (signal.SIGCHLD, signal.SIGALRM, signal.SIGINT)
#: what is looked at after each storm whose handlers raise
STAYS = ("children", "namespaces", "cwd", "root", "blocked signals", "capabilities", "dumpable")
#: by whether handlers raise; what needs another target, or is prepared before, is not among them
_WITHOUT_MORE = [name for name in OPERATIONS if name not in {*INTO_USER, "call_with_one_in_the_middle"}]
NAMES = {False: _WITHOUT_MORE, True: [name for name in _WITHOUT_MORE if not name.startswith("enter")]}


class Interrupted(BaseException):
    """What a handler raises."""


@contextlib.contextmanager
def storm(number: int) -> Iterator[None]:
    """Another process sends the signal to this one, at random moments less than a millisecond apart."""
    caller = os.getpid()
    sender = os.fork()
    if sender == 0:
        signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(ProcessLookupError):
            while os.getppid() == caller:
                os.kill(caller, number)
                time.sleep(random.uniform(0, 0.001))
        os._exit(0)
    try:
        yield
    finally:
        os.kill(sender, signal.SIGKILL)
        os.waitpid(sender, 0)


class Storm:
    """Joins in storms, and counts."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.received = self.joins = self.interrupted = 0
        self.descriptors: list[str] = []
        self._may_raise = False

    def _handle(self, _number: int, _frame: Any) -> None:
        self.received += 1
        if self._may_raise:
            self._may_raise = False
            raise Interrupted

    def run(self, number: int, rounds: int, *, raising: bool) -> None:
        """Each operation so many times; what was changed is an AssertionError."""
        before_handler = signal.signal(number, self._handle)
        before = look()
        try:
            with storm(number):
                for _ in range(rounds):
                    for name in NAMES[raising]:
                        self._join(name, raising=raising)
        finally:
            signal.signal(number, before_handler)
        reap_lost()
        after = look()
        self.descriptors += [link for fd, link in after["descriptors"].items() if fd not in before["descriptors"]]
        for what in STAYS if raising else before:
            assert after[what] == before[what], f"{what}: {before[what]}, after it {after[what]}"

    def _join(self, name: str, *, raising: bool) -> None:
        self.joins += 1
        job = Job(self.job.target, self.job.program)
        try:
            try:
                self._may_raise = raising
                OPERATIONS[name](job)
            finally:
                self._may_raise = False
        except Interrupted:
            self.interrupted += 1
        job.finish()


def reap_lost() -> None:
    """End the programs whose Popen nobody has got, but subprocess has. They end by themselves, their stdin is closed,
    unless the descriptor of its other end is among those that are left.
    """
    for popen in list(subprocess._active):
        popen.kill()
    deadline = time.monotonic() + 20
    while subprocess._active and time.monotonic() < deadline:
        time.sleep(0.001)
        subprocess._cleanup()


def prepare_thread() -> None:
    prepare()
    calls.unshare(0x200)  # CLONE_FS, which enter("mnt") does for good


def kinds(links: list[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(link.partition(":[")[0] for link in links).items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100, help="of each operation for each signal and handler")
    given = parser.parse_args()
    prepare_thread()
    with running_target() as target, TemporaryDirectory() as folder:
        program = str(build_program(Path(folder)))
        for number in SIGNALS:
            for raising in (False, True):
                one = Storm(Job(target, program))
                one.run(number, given.rounds, raising=raising)
                how = "raises" if raising else "returns"
                print(
                    f"{number.name}, handler {how}: {one.received} signals, {one.joins} joins, {one.interrupted} "
                    f"interrupted, {len(one.descriptors)} descriptors left {kinds(one.descriptors)}",
                    flush=True,
                )


if __name__ == "__main__":
    sys.exit(main())
