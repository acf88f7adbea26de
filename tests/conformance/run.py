"""Runs the interpreter's own test.test_subprocess, with subprocess.Popen replaced by nsjoin.Popen inside a live target.

Every case that passes for subprocess.Popen on this machine has to pass, but those of excused.py. Usage:
``python tests/conformance/run.py [--json FILE] [-k PATTERN]``; prints one row of the table and exits non-zero for a
failure, or for an excuse that is not needed any more.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import io
import json
import os
import platform
import signal
import subprocess
import sys
import unittest
import warnings

import nsjoin

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from excused import EXCUSED, HARMFUL

PlainPopen = subprocess.Popen


class Target:
    """A process in new pid and uts namespaces; the file system is ours. Rootless in a user namespace as well."""

    def __init__(self) -> None:
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        self.process = PlainPopen(
            ["unshare", "--fork", "--pid", "--uts", *user, "sh", "-c", "echo ready; exec sleep infinity"],
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as children:
            self.pid = int(children.read())

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.process.communicate()


def popen_inside(pid: int) -> type:
    """subprocess.Popen as the tests are to see it."""

    class Popen(nsjoin.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: object, **keywords: object) -> None:
            super().__init__(*args, target=pid, **keywords)  # type: ignore[call-overload]

    return Popen


def cases(suite: unittest.TestSuite) -> list[unittest.TestCase]:
    """The cases of a suite, flat."""
    found: list[unittest.TestCase] = []
    for member in suite:
        found += cases(member) if isinstance(member, unittest.TestSuite) else [member]
    return found


def short(case: unittest.TestCase) -> str:
    """Class.method, without what differs between interpreters."""
    return ".".join(case.id().split(".")[-2:])


def is_harmful(name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in HARMFUL)


def run(pattern: str, harmless: bool = False) -> dict[str, str]:
    """Outcome of each case: passed, skipped, or failed with the traceback."""
    try:
        importlib.import_module("_testcapi")
    except (ImportError, OSError):
        sys.modules["_testcapi"] = None  # type: ignore[assignment]  # Debian's pypy3 ships half of it
    # anew, since its own subclasses of subprocess.Popen are made at import
    sys.modules.pop("test.test_subprocess", None)
    test_subprocess = importlib.import_module("test.test_subprocess")
    suite = unittest.defaultTestLoader.loadTestsFromModule(test_subprocess)
    chosen = [case for case in cases(suite) if fnmatch.fnmatch(short(case), pattern)]
    if harmless:
        chosen = [case for case in chosen if not is_harmful(short(case))]
    result = unittest.TextTestRunner(stream=io.StringIO(), verbosity=0).run(unittest.TestSuite(chosen))
    outcome = {short(case): "passed" for case in chosen}
    outcome.update({short(case): "skipped" for case, _ in result.skipped})
    for case, text in (*result.failures, *result.errors):
        case = getattr(case, "test_case", case)  # a subtest speaks for its case
        outcome[short(case)] = text
    return outcome


def excuse(name: str) -> str | None:
    """Why this case need not pass on this interpreter."""
    table = {**EXCUSED, **HARMFUL}
    return next((reason for pattern, reason in table.items() if fnmatch.fnmatch(name, pattern)), None)


def judge(plain: dict[str, str], inside: dict[str, str]) -> tuple[dict[str, int], list[str]]:
    """Count, and say what is wrong."""
    counts = {"passed": 0, "failed": 0, "excused": 0, "skipped": 0}
    wrong = []
    for name in plain:
        outcome = inside.get(name, "not run")
        reason = excuse(name)
        if outcome in ("passed", "skipped"):
            counts[outcome] += 1
            if reason and outcome == "passed":
                wrong.append(f"{name}: excused ({reason}), but it passes")
        elif reason:
            counts["excused"] += 1
        elif plain.get(name) == "passed":
            counts["failed"] += 1
            wrong.append(f"{name}:\n{outcome}")
        else:
            counts["skipped"] += 1  # subprocess.Popen does not pass it here either
    return counts, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-k", default="*", metavar="PATTERN", help="only cases whose Class.method matches")
    parser.add_argument("--json", metavar="FILE", help="write the outcome of each case")
    options = parser.parse_args()
    warnings.simplefilter("default")
    plain = run(options.k)
    target = Target()
    try:
        subprocess.Popen = popen_inside(target.pid)  # type: ignore[misc]
        inside = run(options.k, harmless=True)
    finally:
        subprocess.Popen = PlainPopen  # type: ignore[misc]
        target.end()
    counts, wrong = judge(plain, inside)
    interpreter = f"{platform.python_implementation()} {platform.python_version()}"
    print("\n".join(wrong))
    print(f"| {interpreter} | " + " | ".join(f"{counts[key]} {key}" for key in counts) + " |")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"interpreter": interpreter, "counts": counts, "plain": plain, "inside": inside}, file, indent=1)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
