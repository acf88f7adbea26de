"""Runs the interpreter's own test.test_subprocess, with subprocess.Popen replaced by nsjoin.Popen inside a live target.

``python tests/conformance/run.py [-k PATTERN] [--namespaces TYPE,...] [--json FILE]`` prints what is wrong and one row
of the table. Every case must end as it does for subprocess.Popen on this machine, but those of excused.py. Exits
non-zero if one does not, or for an excuse that is not needed any more.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import fnmatch
import gc
import importlib.util
import io
import json
import os
import platform
import resource
import signal
import site
import subprocess
import sys
import tempfile
import unittest
import warnings
from typing import TYPE_CHECKING, Any

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
from excused import CALLER_IS_SEEN, EXCUSED  # noqa: E402 - a file beside this one

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

COUNTS = ("passed", "failed", "excused", "skipped")
_SECONDS = 900  # of one run; on 2 busy cores the slowest, PyPy's, takes 70
_DESCRIPTORS = 1024  # test_no_leaking opens 1,026 and is skipped where it can

# --- one run, in a process of its own: ``run.py --child FILE`` ----------------------------------------------


def popen_inside(pid: int, namespaces: Sequence[str]) -> type[subprocess.Popen[bytes]]:
    """subprocess.Popen as the cases are to see it."""
    import nsjoin

    class Popen(nsjoin.Popen):  # type: ignore[type-arg]
        joined = tuple(namespaces)

        def __init__(self, *args: object, **keywords: object) -> None:
            super().__init__(*args, target=pid, namespaces=self.joined, **keywords)  # type: ignore[call-overload]

    return Popen


def cases(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """The cases of a suite, flat."""
    for member in suite:
        if isinstance(member, unittest.TestSuite):
            yield from cases(member)
        else:
            yield member


def short(case: unittest.TestCase) -> str:
    """Class.method, without what differs between interpreters."""
    return ".".join(case.id().split(".")[-2:])


def matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def import_cases(pattern: str) -> list[unittest.TestCase]:
    """Those of test_subprocess. It makes subclasses of subprocess.Popen, so that has been replaced already."""
    if importlib.util.find_spec("test.test_subprocess") is None:
        raise SystemExit("no test.test_subprocess; Debian: libpython3-testsuite, pypy3-lib-testsuite")
    try:
        importlib.import_module("_testcapi")
    except Exception:  # Debian's pypy3-lib-testsuite comes without its C source: FileNotFoundError
        sys.modules["_testcapi"] = None  # type: ignore[assignment]  # ImportError: then test_subprocess does without
    module = importlib.import_module("test.test_subprocess")
    return [
        case
        for case in cases(unittest.defaultTestLoader.loadTestsFromModule(module))
        if matches(short(case), [pattern])
    ]


def outcomes(chosen: Sequence[unittest.TestCase]) -> dict[str, str]:
    """Run; of each case "passed", "skipped", or the traceback."""
    result = unittest.TextTestRunner(stream=io.StringIO(), verbosity=0).run(unittest.TestSuite(chosen))
    outcome = {short(case): "passed" for case in chosen}
    outcome.update({short(case): "skipped" for case, _ in result.skipped})
    for case, text in (*result.failures, *result.errors):
        case = getattr(case, "test_case", case)  # a subtest speaks for its case
        outcome[short(case)] = text
    return outcome


def belongings() -> collections.Counter[str]:
    """What this process holds: descriptors by what they are, and children."""
    gc.collect()
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        held = [f"child {pid}" for pid in children.read().split()]
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the directory's own descriptor
            held.append(os.readlink(f"/proc/self/fd/{fd}"))
    return collections.Counter(held)


def child(file: str, pattern: str, pid: int, namespaces: Sequence[str]) -> None:
    """One run, of the plain subprocess.Popen if ``pid`` is 0; its outcomes go to ``file`` as JSON."""
    faulthandler.dump_traceback_later(_SECONDS, exit=True)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, hard))
    warnings.simplefilter("default")
    popen: Any = popen_inside(pid, namespaces) if pid else subprocess.Popen
    subprocess.Popen = popen  # type: ignore[misc]
    chosen = import_cases(pattern)
    subprocess.run([sys.executable, "-c", ""], check=True)  # what nsjoin makes once for the process is made now
    before = belongings()
    outcome = outcomes([case for case in chosen if not matches(short(case), CALLER_IS_SEEN)])
    if pid:
        popen.joined = tuple(nstype for nstype in namespaces if nstype != "pid")
    outcome.update(outcomes([case for case in chosen if matches(short(case), CALLER_IS_SEEN)]))
    left = belongings() - before
    outcome["(afterwards).nothing_is_left"] = f"left: {dict(left)}" if left else "passed"
    with open(file, "w") as opened:
        json.dump(outcome, opened)


# --- the comparison -----------------------------------------------------------------------------------------


class Target:
    """A process in new pid and uts namespaces; the file system is ours. For root: with a user namespace the program's
    ids would differ, and with them what the cases see."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["unshare", "--fork", "--pid", "--uts", "sh", "-c", "echo ready; exec sleep infinity"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise SystemExit(f"no target: {self._process.communicate()[1].decode()}")
        with open(f"/proc/{self._process.pid}/task/{self._process.pid}/children") as children:
            self.pid = int(children.read())

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *exc: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._process.communicate()


def base_interpreter() -> list[str]:
    """This interpreter outside of its virtual environment, where some cases are skipped; --path brings nsjoin along."""
    if sys.prefix == sys.base_prefix:
        return [sys.executable]
    return [os.path.realpath(sys.executable)]


def run(pattern: str, pid: int, namespaces: str) -> dict[str, str]:
    """One run, as a session of its own: a stray signal to its process group does not hit this one."""
    paths = [argument for path in site.getsitepackages() for argument in ("--path", path)]
    with tempfile.NamedTemporaryFile("r") as file:
        command = [*base_interpreter(), __file__, *paths, "--child", file.name, "-k", pattern]
        command += ["--pid", str(pid), "--namespaces", namespaces]
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        if ended.returncode != 0:
            what = "nsjoin.Popen" if pid else "subprocess.Popen"
            raise SystemExit(f"the run of {what} ended with {ended.returncode}:\n{ended.stdout.decode()}")
        return json.load(file)  # type: ignore[no-any-return]


def judge(plain: dict[str, str], inside: dict[str, str], everything: bool) -> tuple[dict[str, int], list[str]]:
    """Count, and say what is wrong. ``everything``: no case was left out, so that each excuse must have one."""
    counts = dict.fromkeys(COUNTS, 0)
    wrong = []
    excuses = [excuse for excuse in EXCUSED if excuse.applies()]
    for name in {**plain, **inside}:
        expected, outcome = plain.get(name, "passed"), inside.get(name, "it did not run")
        reason = next((excuse.reason for excuse in excuses if excuse.covers(name)), None)
        if reason is not None and outcome == "passed":
            wrong.append(f"{name}: excused ({reason}), but it passes")
        if outcome == "passed" or (outcome == "skipped" and (reason is not None or expected != "passed")):
            counts[outcome] += 1
        elif reason is not None:
            counts["excused"] += 1
        elif expected in ("passed", "skipped"):
            counts["failed"] += 1
            wrong.append(f"{name}: {expected} with subprocess.Popen, here:\n{outcome}")
        else:
            counts["skipped"] += 1
            print(f"{name}: fails with subprocess.Popen too:\n{expected}")
    unused = [excuse for excuse in excuses if everything and not any(map(excuse.covers, plain))]
    wrong += [f"{excuse.cases}: excused, but there is no such case" for excuse in unused]
    return counts, wrong


def compare(pattern: str, namespaces: str, file: str | None) -> int:
    plain = run(pattern, 0, namespaces)
    with Target() as target:
        inside = run(pattern, target.pid, namespaces)
    counts, wrong = judge(plain, inside, everything=pattern == "*")
    interpreter = f"{platform.python_implementation()} {platform.python_version()}"
    for line in wrong:
        print(line)
    print(f"| {interpreter} | {namespaces} | " + " | ".join(f"{counts[key]} {key}" for key in COUNTS) + " |")
    if file:
        table = {"interpreter": interpreter, "namespaces": namespaces, "counts": counts}
        with open(file, "w") as opened:
            json.dump({**table, "wrong": wrong, "plain": plain, "inside": inside}, opened, indent=1)
    return 1 if wrong or not counts["passed"] else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-k", default="*", metavar="PATTERN", help="only cases whose Class.method matches")
    parser.add_argument("--namespaces", default="pid,uts", metavar="TYPE,...", help="of these two; default: both")
    parser.add_argument("--json", metavar="FILE", help="write the counts, and the outcome of each case")
    for name in ("--child", "--pid", "--path"):
        parser.add_argument(name, action="append" if name == "--path" else "store", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.child:
        return compare(options.k, options.namespaces, options.json)
    for path in options.path:
        site.addsitedir(path)
    child(options.child, options.k, int(options.pid), options.namespaces.split(","))
    return 0


if __name__ == "__main__":
    sys.exit(main())
