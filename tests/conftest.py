"""Real targets for the tests, and the guard that proves after each test that nothing was left behind."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from nsjoin import Namespace
from nsjoin._engine import guard, image
from nsjoin._kernel import calls, thread
from nsjoin._kernel import nstypes as nstypes_

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IS_ROOT = os.geteuid() == 0
#: unshare(1)'s option for each type
OPTIONS = {
    "mnt": "--mount",
    "uts": "--uts",
    "ipc": "--ipc",
    "net": "--net",
    "pid": "--pid",
    "user": "--map-root-user",
    "cgroup": "--cgroup",
    "time": "--time",
}


class Running:
    """A process in new namespaces: ``pid`` is the process inside; ``end`` kills it and waits for all."""

    def __init__(self, nstypes: tuple[str, ...], program: str = "exec sleep infinity") -> None:
        if not IS_ROOT and "user" not in nstypes:
            nstypes = (*nstypes, "user")
        self.nstypes = nstypes
        options = [OPTIONS[nstype] for nstype in nstypes]
        if "pid" in nstypes and "mnt" in nstypes:
            options.append("--mount-proc")
        self.process = subprocess.Popen(
            ["unshare", "--fork", *options, "sh", "-c", f"echo ready; {program}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(f"unshare {' '.join(options)}: {self.process.stderr.read()}")
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as children:
            self.pid = int(children.read().split()[0])

    def end(self) -> None:
        if self.process.poll() is None:  # else unshare has waited for it, and its pid may be somebody else's by now
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    """``start("net", "mnt")`` gives a ``Running`` in new namespaces of these types, which ends with the test.

    An ordinary user's gets a user namespace as well. ``program=`` is what its shell runs once it is inside.
    """
    running: list[Running] = []

    def start_one(*nstypes: str, program: str = "exec sleep infinity") -> Running:
        running.append(Running(nstypes, program))
        return running[-1]

    yield start_one
    for one in running:
        one.end()


@pytest.fixture(scope="module")
def target() -> Iterator[Running]:
    """One target for the tests of a module that leave it as it is: every type but time, as root without user."""
    running = Running(("mnt", "uts", "ipc", "net", "pid", "cgroup"))
    yield running
    running.end()


requires_root = pytest.mark.skipif(not IS_ROOT, reason="joining without a user namespace is for root")


def requires_program(name: str) -> pytest.MarkDecorator:
    """Skip, and say so, where a tool of the system is not installed (``.ci/run`` installs them all)."""
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")


def _has_own_namespaces() -> bool:
    try:
        calls.inodes(-1, [nstypes_.BY_NAME["uts"].get])
    except OSError:
        return False
    return True


def _lists_mount_namespaces() -> bool:
    with Namespace.current("mnt") as own:
        try:
            os.close(calls.next_mount_namespace(own.fileno(), previous=False))
        except OSError as refused:
            return refused.errno != errno.ENOTTY
    return True


def _seals_the_mode() -> bool:
    fd = calls.memfd_create(b"probe", 2)  # MFD_ALLOW_SEALING
    try:
        fcntl.fcntl(fd, 1033, 32)  # F_ADD_SEALS, F_SEAL_EXEC
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


#: F_SEAL_EXEC, Linux 6.3
SEALS_THE_MODE = _seals_the_mode()

requires_list_of_mount_namespaces = pytest.mark.skipif(
    not _lists_mount_namespaces(), reason="this kernel has no list of mount namespaces (NS_MNT_GET_NEXT, Linux 6.12)"
)
HAS_NAMESPACES_OF_PIDFDS = _has_own_namespaces()
requires_namespaces_of_pidfds = pytest.mark.skipif(
    not HAS_NAMESPACES_OF_PIDFDS, reason="this kernel does not give a pidfd's namespaces (PIDFD_GET_*, Linux 6.11)"
)


@pytest.fixture(scope="session", autouse=True)
def _heed_signals() -> None:
    """nohup(1) ignores these signals, and a shell for what it runs in the background; programs are born with that.

    A handler becomes the default action where a program begins; ours are Python's own for Ctrl-C, and one that does
    nothing, which is as good as to ignore it.
    """
    with open("/proc/self/status") as status:  # PyPy's getsignal does not know
        (ignored,) = [int(line.split()[1], 16) for line in status if line.startswith("SigIgn")]
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if ignored >> (number - 1) & 1:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def _warm_up() -> None:
    """What is kept for the process's lifetime is made now: the sealed joiner, and this thread's own pidfd."""
    image._image.open()
    guard.prepare()
    # makes the pidfd where the kernel has it (6.9); elsewhere it reads /proc and keeps nothing
    thread.own_inodes((nstypes_.BY_NAME["uts"],))


_PR_GET_DUMPABLE = 3


def dumpable() -> int:
    """Return this process's dumpable flag: as root, the owner of /proc/self says nothing about it."""
    flag: int = ctypes.CDLL(None, use_errno=True).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
    return flag


def _state() -> dict[str, object]:
    """Everything about this process that a test must not change."""
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the directory's own descriptor
            descriptors[name] = os.readlink(f"/proc/self/fd/{name}")
    children = ""
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{task}/children") as file:
            children += file.read()
    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    return {
        "descriptors": descriptors,
        "children": sorted(children.split()),
        "namespaces": {
            name: os.readlink(f"/proc/thread-self/ns/{name}") for name in os.listdir("/proc/thread-self/ns")
        },
        "cwd": os.getcwd(),
        "root": os.readlink("/proc/thread-self/root"),
        "blocked signals": status["SigBlk"],
        "capabilities": status["CapEff"],
        "dumpable": dumpable(),
        "threads": status["Threads"],
    }


def wait_for_threads(number: int) -> None:
    """A thread that has been joined may still be ending in the kernel, and closes its own pidfd there."""
    end = time.monotonic() + 30
    while len(os.listdir("/proc/self/task")) > number and time.monotonic() < end:
        os.sched_yield()


@pytest.fixture(autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare descriptors, children, namespaces, cwd, root, signals and dumpable flag before and after each test.

    Targets of the module and of the test are started before and after it, so they are told apart by setup order.
    """
    if "target" in request.fixturenames:
        request.getfixturevalue("target")
    before = _state()
    yield
    wait_for_threads(int(str(before["threads"])))
    after = _state()
    for what, value in before.items():
        assert after[what] == value, f"{what} changed"
