"""``subprocess.Popen`` says what ``nsjoin.Popen`` has to do: random arguments, environments, descriptors, directories,
ids, masks and signals, given to both. The program (told.c) writes down what it sees; that, or the error, must be equal.

As root, from the checkout, for as long as you like; ``--seed`` is printed, and repeats a run::

    python tests/fuzz.py --cases 20000
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

from conftest import Running
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import nsjoin
from nsjoin._kernel import abi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: where the caller's files are, so that a case can name them; the odd ones are inheritable
FILES = range(50, 54)
SAVED = 100
#: hypothesis remembers each case of a run, so that none comes twice: a long run is made of several
CASES_PER_SEED = 10_000


class Case(NamedTuple):
    args: Any
    keywords: dict[str, Any]
    closed: frozenset[int]
    blocked: frozenset[int]


class Outcome(NamedTuple):
    """Of a program: what it saw, its exit status. Of an error: class, errno, filename."""

    seen: bytes
    status: object


def descriptors() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the list's own
            os.fstat(int(name))
            found.add(int(name))
    return found


class Workshop:
    """The program, a directory with things that cannot be executed, and a target that shares the file system."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as stack:
            self.folder = Path(stack.enter_context(TemporaryDirectory(prefix="nsjoin-fuzz-", dir="/tmp")))
            self.folder.chmod(0o755)
            self.report = self.folder / "report"
            for name in ("report", "plain", "no interpreter", "script"):
                (self.folder / name).write_text("#!/no/such\n" if name == "no interpreter" else "exit 3\n")
            self.report.chmod(0o666)
            (self.folder / "no interpreter").chmod(0o755)
            (self.folder / "script").chmod(0o755)
            (self.folder / "folder").mkdir()
            self._compile()
            self.target = Running(("pid", "uts", "ipc"))
            stack.callback(self.target.end)
            for number in FILES:
                stack.callback(os.close, self._open(number))
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def _compile(self) -> None:
        source = Path(__file__).resolve().parent / "told.c"
        flags = ["-O1", "-static", f'-DREPORT="{self.report}"']
        subprocess.run(["cc", *flags, str(source), "-o", str(self.folder / "told")], check=True)

    def _open(self, number: int) -> int:
        fd = os.open(self.folder / f"file {number}", os.O_RDWR | os.O_CREAT, 0o666)
        os.dup2(fd, number, inheritable=bool(number % 2))
        os.close(fd)
        return number

    # --- one case ---------------------------------------------------------------------------------------------------

    def check(self, case: Case) -> Outcome:
        """Both outcomes are equal, or AssertionError; returns it."""
        expected = self.observe(case, self.oracle)
        found = self.observe(case, lambda *args, **keywords: nsjoin.Popen(*args, target=self.target.pid, **keywords))
        assert found == expected, f"{case}\nnsjoin: {found}\nsubprocess: {expected}"
        return expected

    @staticmethod
    def oracle(*args: Any, **keywords: Any) -> subprocess.Popen[bytes]:
        """subprocess by its own fork: posix_spawn, which it takes for some, refuses the name "" in an environment."""
        with mock.patch.object(subprocess, "_USE_POSIX_SPAWN", False):
            return subprocess.Popen(*args, **keywords)

    def observe(self, case: Case, popen: Callable[..., Any]) -> Outcome:
        os.truncate(self.report, 0)
        with as_the_case_says(case):
            before = descriptors()
            try:
                process = popen(case.args, **case.keywords)
            except (OSError, ValueError, TypeError, OverflowError, subprocess.SubprocessError, LookupError) as error:
                if popen is self.oracle:  # before 3.11.4 it makes its pipes, looks at ids, and leaves the pipes
                    for fd in descriptors() - before:
                        os.close(fd)
                # of several wrong arguments in one call, which is found first is nobody's promise
                name = ValueError if isinstance(error, (ValueError, OverflowError, LookupError)) else type(error)
                return Outcome(b"", (name, getattr(error, "errno", None), _filename(error, case)))
            with process:
                if process.stdin is not None:
                    process.stdin.close()
                status = process.wait(60)
        return Outcome(self.report.read_bytes(), status)

    # --- what there is to choose from

    def cases(self) -> st.SearchStrategy[Case]:
        keywords = st.fixed_dictionaries({}, optional=self._keywords())
        few = st.frozensets(st.integers(0, 2), max_size=3)
        signals = st.frozensets(st.sampled_from([signal.SIGUSR1, signal.SIGTERM, signal.SIGCHLD, signal.SIGRTMIN]))
        closed: st.SearchStrategy[frozenset[int]] = st.one_of(st.just(frozenset()), few)
        return st.builds(_case, self._args(), keywords, closed, signals)

    def _names(self) -> st.SearchStrategy[Any]:
        program = self.folder / "told"
        odd = [*(str(self.folder / name) for name in ("plain", "no interpreter", "script", "folder", "missing"))]
        usual = st.sampled_from([str(program), bytes(program), program, "told"])
        return st.one_of(usual, usual, st.sampled_from([*odd, "told/", "", ".", "./told", "plain/told", b"x" * 5000]))

    def _args(self) -> st.SearchStrategy[Any]:
        return st.one_of(
            st.builds(lambda name, rest: [name, *rest], self._names(), st.lists(_strings())), self._names()
        )

    def _env(self) -> st.SearchStrategy[Any]:
        folder = str(self.folder)
        paths = st.sampled_from([folder, f"{folder}/plain:{folder}", f"/none:{folder}/", "", ":", f"{folder}/folder"])
        rest = st.dictionaries(_strings(), _strings(), max_size=5)
        return st.builds(lambda path, more: {**more, "PATH": path}, paths, rest) | rest | st.none()

    def _keywords(self) -> dict[str, st.SearchStrategy[Any]]:
        places = [
            self.folder,
            str(self.folder),
            bytes(self.folder / "folder"),
            self.folder / "plain",
            "/no/such",
            "",
            ".",
        ]
        numbers = st.sampled_from([0, 1, 2, *FILES])
        file = st.one_of(st.none(), st.sampled_from([subprocess.PIPE, subprocess.DEVNULL]), numbers)
        ids = st.sampled_from([0, 1, 65534, 12345, "nobody", "no such name", -1, -5, 2**32 - 2, 2**40])
        found: dict[str, st.SearchStrategy[Any]] = {
            "env": self._env(),
            "executable": self._names(),
            "cwd": st.sampled_from(places),
            "close_fds": st.booleans(),
            "restore_signals": st.booleans(),
            "start_new_session": st.booleans(),
            "pass_fds": st.lists(numbers, max_size=5),
            "umask": st.integers(-2, 0o777),
            "user": ids,
            "group": ids.filter(lambda name: name != "nobody") | st.just("nogroup"),
            "extra_groups": st.lists(st.sampled_from([0, 5, 99, 65534, "nogroup", "no such name", -1]), max_size=4),
            "stdin": file,
            "stdout": file,
            "stderr": file | st.just(subprocess.STDOUT),
        }
        if sys.version_info >= (3, 11):
            found["process_group"] = st.sampled_from([None, -1, 0])
        return found


def _case(args: Any, keywords: dict[str, Any], closed: frozenset[int], blocked: frozenset[int]) -> Case:
    """Names nothing that is closed: a pipe of subprocess itself may be there, and is then what the program gets."""
    for name in ("stdin", "stdout", "stderr"):
        if keywords.get(name) in closed:
            del keywords[name]
    if keywords.get("stderr") == subprocess.STDOUT and keywords.get("stdout") is None and 1 in closed:
        del keywords["stderr"]
    if "pass_fds" in keywords:
        keywords["pass_fds"] = [fd for fd in keywords["pass_fds"] if fd not in closed]
    if keywords.get("pass_fds"):  # else subprocess warns that it does so
        keywords["close_fds"] = True
    return Case(args, keywords, closed, blocked)


def _filename(error: Exception, case: Case) -> object:
    """Before 3.13, subprocess blames the working directory for whatever failed before exec."""
    filename = getattr(error, "filename", None)
    blameless = filename is not None and filename == case.keywords.get("cwd") and os.path.isdir(filename)
    return None if blameless and sys.version_info < (3, 13) else filename


def _strings() -> st.SearchStrategy[Any]:
    return st.one_of(st.text(max_size=20), st.binary(max_size=20), st.text(alphabet="ab=*$ \n", max_size=5))


@contextlib.contextmanager
def as_the_case_says(case: Case) -> Iterator[None]:
    """Without some of stdin, stdout and stderr, and with signals blocked."""
    saved = {fd: fcntl.fcntl(fd, abi.F_DUPFD_CLOEXEC, SAVED) for fd in case.closed}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, case.blocked)
    try:
        for fd in saved:
            os.close(fd)
        yield
    finally:
        for fd, copy in saved.items():
            os.dup2(copy, fd)
            os.close(copy)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def run(workshop: Workshop, cases: int, number: int) -> Counter[str]:
    """How many there were of each outcome. ``number`` is the seed."""
    counts: Counter[str] = Counter()

    @seed(number)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(workshop.cases())
    def check(case: Case) -> None:
        outcome = workshop.check(case)
        counts["programs" if outcome.seen else "errors"] += 1

    check()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 20), help="of the first CASES_PER_SEED cases")
    given = parser.parse_args()
    print(f"{given.cases} cases, --seed {given.seed}", flush=True)
    workshop = Workshop()
    start = time.monotonic()
    counts: Counter[str] = Counter()
    try:
        for number, done in enumerate(range(0, given.cases, CASES_PER_SEED), given.seed):
            counts += run(workshop, min(CASES_PER_SEED, given.cases - done), number)
            agree = f"{sum(counts.values())} cases agree: {dict(counts)}"
            print(f"{agree}; {time.monotonic() - start:.0f} s, --seed {number}", flush=True)
    finally:
        workshop.close()


if __name__ == "__main__":
    main()
