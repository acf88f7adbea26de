"""The shim's C under ASan and UBSan, TSan and valgrind: builds driver.c in each way and runs it; the joiner, hosted,
with ASan and UBSan; and two programs of libFuzzer. As root; with gcc, clang and valgrind, those that are installed. ::

    python tests/sanitizers/run.py --rounds 50

Each run has to end with 0 and to write nothing to stderr.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "nsjoin"
sys.path.insert(0, str(PACKAGE))

import _build_setns  # noqa: E402 - as setup.py runs it, it is no module of the package

COMPILERS = [found for found in ("gcc", "clang", "clang-14") if shutil.which(found)][:2]
FLAGS = ("-std=gnu11", "-g", "-O1", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Werror", f"-I{PACKAGE}")
#: -z now: the vfork child must not run the dynamic linker in the caller's memory (_build_setns.py)
DRIVER = ("-D_GNU_SOURCE", "-pthread", "-Wl,-z,now", str(HERE / "driver.c"))
ASAN = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREADS = 16
#: bytes of libFuzzer's input
LONGEST_CASE = 1000
#: valgrind runs one thread at a time, and every descendant of the driver as well
VALGRIND_ROUNDS = 5
VALGRIND = ("valgrind", "-q", "--error-exitcode=99", f"--suppressions={HERE / 'valgrind.supp'}", "--log-file={log}")
#: what valgrind 3.19 says of pidfd_open(2) and NS_GET_USERNS, which it does not know
UNKNOWN_TO_VALGRIND = ("-- ", "Warning: noted but unhandled ioctl 0xb701", "spurious value errors", "README_MISSING")
#: TSan takes fork(2) in a threaded process for a mistake; ours calls what call_in's child calls, and ends
TSAN_ENVIRONMENT = {"TSAN_OPTIONS": "die_after_fork=0:halt_on_error=1"}


class Run(NamedTuple):
    name: str
    compiler: str
    flags: tuple[str, ...] = ()
    joiner: str = "-"
    environment: dict[str, str] = {}  # noqa: RUF012 - never changed


def runs(folder: Path) -> list[Run]:
    found = []
    for compiler in COMPILERS:
        hosted = folder / f"joiner-{compiler}"
        flags = (*FLAGS, *ASAN, "-DNSJOIN_HOSTED", str(PACKAGE / "_c/joiner.c"), str(HERE / "options.c"))
        subprocess.run([compiler, *flags, "-o", hosted], check=True)
        found += [
            Run("ASan and UBSan", compiler, ASAN),
            Run("TSan", compiler, ("-fsanitize=thread",), environment=TSAN_ENVIRONMENT),
            Run("the joiner hosted, ASan and UBSan", compiler, joiner=str(hosted)),
        ]
    return found


def run(one: Run, folder: Path, rounds: int) -> None:
    program = folder / "driver"
    subprocess.run([one.compiler, *FLAGS, f"-I{folder}", *one.flags, *DRIVER, "-o", program], check=True)
    observe(f"{one.name}, {one.compiler}", [program, "-", one.joiner, str(THREADS), str(rounds)], one.environment)


def run_valgrind(folder: Path) -> None:
    """Of a program that is a file: valgrind 3.19 does not execute a memfd."""
    program, joiner, log = folder / "driver", folder / "joiner", folder / "valgrind"
    _build_setns.compile_joiner(joiner)
    subprocess.run([COMPILERS[0], *FLAGS, f"-I{folder}", *DRIVER, "-o", program], check=True)
    command = [*(part.format(log=f"{log}.%p") for part in VALGRIND), program, joiner, joiner, str(THREADS)]
    observe("valgrind", [*command, str(VALGRIND_ROUNDS)])
    lines = [line for path in folder.glob("valgrind.*") for line in path.read_text().splitlines()]
    errors = [line for line in lines if not any(known in line for known in UNKNOWN_TO_VALGRIND)]
    if errors:
        sys.exit("\n".join(["valgrind:", *errors]))


def fuzz(name: str, folder: Path, cases: int, *flags: str) -> None:
    """By libFuzzer, which only clang has."""
    program, log = folder / name, folder / f"{name}.log"
    sanitize = ("-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
    subprocess.run([COMPILERS[-1], *FLAGS, *flags, *sanitize, str(HERE / f"{name}.c"), "-o", program], check=True)
    start = time.monotonic()
    # without length control: a case that is too short says nothing of what the kernel of fuzz_joiner.c answers
    command = [program, f"-runs={cases}", f"-max_len={LONGEST_CASE}", "-len_control=0"]
    with log.open("w") as output:
        done = subprocess.run(command, cwd=folder, stderr=output, timeout=3600)
    print(f"{name}: {cases} cases; {time.monotonic() - start:.1f} s", flush=True)
    if done.returncode:
        sys.exit(log.read_text())


def observe(name: str, command: list[object], environment: dict[str, str] | None = None) -> None:
    start = time.monotonic()
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
        timeout=600,
    )
    print(f"{name}: {done.stdout.strip()}; {time.monotonic() - start:.1f} s", flush=True)
    if done.returncode or done.stderr:
        sys.exit(f"{name}: exit status {done.returncode}\n{done.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="by each of the threads (default: %(default)s)")
    parser.add_argument("--cases", type=int, default=1_000_000, help="for libFuzzer (default: %(default)s)")
    given = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        _build_setns.write_image_header(folder)
        for one in runs(folder):
            run(one, folder, given.rounds)
        if shutil.which("valgrind"):
            run_valgrind(folder)
        if COMPILERS[-1].startswith("clang"):
            fuzz("fuzz_receive", folder, given.cases, "-D_GNU_SOURCE", f"-I{folder}")
            fuzz("fuzz_joiner", folder, given.cases)


if __name__ == "__main__":
    main()
