"""Kernels that lack something, and seccomp filters that forbid it: everything that Linux 4.18 can do still works.

The features, the filters that stand for a kernel without them, and the table of all results: ``faults/kernels.py``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from changed import PR_SET_DUMPABLE, SYS_PIDFD_OPEN, become_nobody, in_child, join, prctl
from conftest import IS_ROOT, Running, requires_root

import nsjoin
import nsjoin.discovery
from nsjoin._kernel import abi, calls
from nsjoin._kernel.nstypes import BY_NAME, NSTYPES
from nsjoin._kernel.thread import own_inodes

sys.path.insert(0, str(Path(__file__).resolve().parent / "faults"))

import kernels
from harness import Stage
from stage import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOW = pytest.mark.parametrize("forbidden", [False, True], ids=["absent", "forbidden"])


@pytest.fixture(scope="module", autouse=True)
def stage() -> Iterator[Stage | None]:
    """Autouse, so that it is there before the guard takes stock."""
    if not IS_ROOT or shutil.which("cc") is None:
        yield None
        return
    with Stage() as running:
        yield running


def raw(number: int) -> Callable[[], object]:
    def make() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(number, -1, 0, 0, 0, 0) < 0:
            raise OSError(ctypes.get_errno(), "syscall")

    return make


#: something of each feature, as this kernel has it
USES: dict[str, Callable[[], object]] = {
    "pidfd_open": raw(SYS_PIDFD_OPEN),
    "pidfd_send_signal": raw(kernels.SYS_PIDFD_SEND_SIGNAL),
    "clone3": raw(kernels.SYS_CLONE3),
    "close_range": raw(kernels.SYS_CLOSE_RANGE),
    "setns with a pidfd": lambda: calls.setns(-1, 0x40000000 | 0x04000000),
    "openat2": raw(kernels.SYS_OPENAT2),
    "MFD_EXEC": lambda: os.close(calls.memfd_create(b"nsjoin", kernels.MFD_EXEC)),
    "F_SEAL_EXEC": lambda: fcntl.fcntl(0, kernels.F_ADD_SEALS, kernels.F_SEAL_EXEC),
    "PIDFD_THREAD": lambda: os.close(calls.pidfd_open(os.getpid(), abi.PIDFD_THREAD)),
    "pidfd ioctls": lambda: calls.inodes(0, [BY_NAME["net"].get]),
    "NS_GET_PID": lambda: calls.check(calls.lib.nsjoin_ioctl(0, kernels.NS_GET_PID_IN_PIDNS)),
    "NS_MNT_GET_NEXT": lambda: calls.check(calls.lib.nsjoin_ioctl(0, kernels.NS_MNT_GET_NEXT)),
    "NS_GET_ID": lambda: calls.check(calls.lib.nsjoin_ioctl(0, kernels.NS_GET_ID)),
    "memfd_create": lambda: os.close(calls.memfd_create(b"nsjoin", 1)),
    "execveat": raw(kernels.SYS_EXECVEAT),
}


@HOW
@pytest.mark.parametrize("name", kernels.FEATURES)
def test_the_filters_take_away_what_they_say(name, forbidden):
    def use() -> None:
        kernels.refuse([name], forbidden=forbidden)
        number = errno.EPERM if forbidden else kernels.FEATURES[name].absent
        with pytest.raises(OSError, match=rf"\[Errno {number}\]"):
            USES[name]()

    assert set(USES) == set(kernels.FEATURES)
    in_child(use)


@requires_root
@HOW
@pytest.mark.parametrize(("label", "names"), kernels.rows(), ids=[label for label, _ in kernels.rows()])
def test_everything_works_without(stage, label, names, forbidden):
    if stage is None:
        pytest.skip("needs a C compiler")
    for operation in OPERATIONS:
        answer = stage.perform(operation, refused=names, forbidden=forbidden)
        assert answer["error"] is None, f"{operation} without {label}: {answer}"
        assert (answer["changed"], answer["left"], answer["hung"]) == ([], [], False), answer


@requires_root
@HOW
@pytest.mark.parametrize(("label", "names"), kernels.rows(), ids=[label for label, _ in kernels.rows()])
def test_a_thread_comes_back_without(target, label, names, forbidden):
    """Where setns takes no pidfd, a stay begins twice: what the first has saved through /proc is closed by then."""

    def enters() -> None:
        kernels.refuse(names, forbidden=forbidden)
        before = own_inodes(NSTYPES)
        for nstypes in (("net",), ("net", "uts"), ("net", "uts", "ipc", "mnt")):
            with nsjoin.enter(target.pid, *nstypes, allow_imports=True):
                assert own_inodes(NSTYPES) != before
            assert own_inodes(NSTYPES) == before

    in_child(enters)


@HOW
@pytest.mark.parametrize(("label", "names"), kernels.rows(), ids=[label for label, _ in kernels.rows()])
def test_an_ordinary_user_comes_into_his_own_namespaces_without(label, names, forbidden):
    def joins() -> None:
        if IS_ROOT:
            become_nobody()
        target = Running(("user", "net", "pid", "uts", "ipc"))
        try:
            kernels.refuse(names, forbidden=forbidden)
            inode = os.stat(f"/proc/{target.pid}/ns/net").st_ino
            done = nsjoin.run_in(target.pid, ["readlink", "/proc/self/ns/net"], capture_output=True, text=True)
            assert done.stdout == f"net:[{inode}]\n", done
            assert nsjoin.call_in(target.pid, lambda: os.stat("/proc/self/ns/net").st_ino) == inode
            with nsjoin.Target.from_pid(target.pid) as pinned:
                target.end()
                with pytest.raises(nsjoin.TargetGoneError):
                    nsjoin.run_in(pinned, ["true"])
        finally:
            target.end()

    in_child(joins)


THREADS = [(label, names) for label, names in kernels.rows() if label.startswith(("PIDFD_THREAD", "pidfd_open", "all"))]


@requires_root
@HOW
@pytest.mark.parametrize(("label", "names"), THREADS, ids=[label for label, _ in THREADS])
def test_a_thread_is_a_target_without(label, names, forbidden):
    """Of a process that is in other namespaces than it."""
    found, done = [], threading.Event()

    def live_elsewhere() -> None:
        calls.unshare(BY_NAME["uts"].flag)
        found.append(threading.get_native_id())
        moved.set()
        done.wait()

    def look() -> None:
        kernels.refuse(names, forbidden=forbidden)
        inode = os.stat(f"/proc/{tid}/ns/uts").st_ino
        with nsjoin.Namespace.from_pid(tid, "uts") as uts, nsjoin.Target.from_pid(tid) as pinned:
            assert uts.id.ino == inode != os.stat("/proc/self/ns/uts").st_ino
            assert pinned.is_alive()
            with pytest.raises(nsjoin.NamespaceError, match=r"needs Linux 5\.3, and 6\.9 for a thread"):
                pinned.fileno()
        assert nsjoin.translate_pid(tid) == tid
        assert nsjoin.call_in(tid, lambda: os.stat("/proc/self/ns/uts").st_ino) == inode
        (info,) = (info for info in nsjoin.discovery.iter_namespaces() if info.id.ino == inode)
        assert info.threads == ((os.getppid(), tid),)
        with info.open() as opened:
            assert opened.id.ino == inode

    moved = threading.Event()
    thread = threading.Thread(target=live_elsewhere)
    thread.start()
    moved.wait()
    (tid,) = found
    try:
        in_child(look)
    finally:
        done.set()
        join(thread)


@pytest.mark.parametrize("new", [("time",), ("pid", "time"), ("pid",)])
def test_a_child_that_does_not_share_the_joiners_memory_is_started_as_well(target, new):
    def spawn() -> None:
        kernels.memory_for_a_child_elsewhere().install()
        with nsjoin.spawn_in(target.pid, ["sh", "-c", "echo $$; read _; exit 7"], unshare=new, **PIPES) as process:
            assert process.stdout is not None
            assert (int(process.stdout.readline()) == 1) == ("pid" in new)
            for name in new:
                assert os.readlink(f"/proc/{process.pid}/ns/{name}") != os.readlink(f"/proc/{target.pid}/ns/{name}")
            process.communicate("go\n")
        assert process.returncode == 7
        with pytest.raises(FileNotFoundError):
            nsjoin.spawn_in(target.pid, ["/no/such/program"], unshare=new)

    in_child(spawn)


PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}


def test_non_dumpable_caller_gets_an_explanation_before_6_11():
    def joins() -> None:
        if IS_ROOT:
            become_nobody()
        target = Running(("user", "net"))
        try:
            kernels.refuse(["pidfd ioctls"], forbidden=False)
            prctl(PR_SET_DUMPABLE, 0)
            for join in (nsjoin.spawn_in, nsjoin.call_in):
                with pytest.raises(nsjoin.NamespaceError, match="this process is not dumpable") as caught:
                    join(target.pid, ["true"] if join is nsjoin.spawn_in else os.getpid)
                assert (caught.value.step, caught.value.errno) == ("open", errno.EACCES)
        finally:
            target.end()

    in_child(joins)


@requires_root
def test_empty_pid_for_children_is_explained_before_6_11(target):
    """The kernel lets nobody open such a PID namespace, so there would be no way back to it."""

    def use() -> None:
        kernels.refuse(["pidfd ioctls"], forbidden=False)
        nsjoin.unshare("pid")
        for ask in (
            lambda: nsjoin.Namespace.current("pid", for_children=True),
            lambda: nsjoin.spawn_in(target.pid, ["true"]),
            lambda: nsjoin.call_in(target.pid, os.getpid, trust_target=True),
        ):
            with pytest.raises(nsjoin.NamespaceNotFoundError, match="nothing has been born yet: before Linux 6.11"):
                ask()
        with pytest.raises(nsjoin.NamespaceError, match="born in another PID namespace already"):
            nsjoin.unshare("pid")

    in_child(use)


@HOW
def test_without_close_range_a_descriptor_above_the_limit_is_closed_too(target, forbidden):
    """It was opened before RLIMIT_NOFILE was lowered."""

    def spawn() -> None:
        kernels.refuse(["close_range"], forbidden=forbidden)
        high = 700
        os.dup2(os.open("/", os.O_RDONLY), high, inheritable=True)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
        command = ["sh", "-c", "ls /proc/self/fd"]
        inside = nsjoin.run_in(target.pid, command, namespaces=NET, capture_output=True, text=True).stdout
        assert str(high) not in inside.split()
        kept = nsjoin.run_in(
            target.pid, command, namespaces=NET, close_fds=False, capture_output=True, text=True
        ).stdout
        assert str(high) in kept.split()

    in_child(spawn)


NET = ["net"] if IS_ROOT else ["user", "net"]
