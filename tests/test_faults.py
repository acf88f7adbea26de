"""What fails, or is killed, at any moment: an error that says so, or success; and nothing is left, changed or stuck.

A sample of what the programs in ``faults/`` do in full: ``inject.py``, also with ``--kill`` and ``--end-target``,
``kill.py`` and ``storm.py``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from changed import become_nobody, become_old_kernel, in_child
from conftest import IS_ROOT, Running, requires_root

import nsjoin
from nsjoin._engine import image
from nsjoin._kernel import calls

sys.path.insert(0, str(Path(__file__).resolve().parent / "faults"))

import kill
import storm
from harness import Fault, Stage, Tally
from stage import OPERATIONS, Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

can_inject = pytest.mark.skipif(
    not IS_ROOT or shutil.which("strace") is None or shutil.which("cc") is None,
    reason="needs root, strace and a C compiler",
)
#: of the generated table, each so many is injected here
EVERY = 16


@pytest.fixture(scope="module", autouse=True)
def stage() -> Iterator[Stage | None]:
    """Autouse, so that it is there before the guard takes stock."""
    if not IS_ROOT or shutil.which("strace") is None or shutil.which("cc") is None:
        yield None
        return
    with Stage() as running:
        yield running


def sample(faults: list[Fault], inject: Callable[[Fault], dict[str, Any]]) -> None:
    tally = Tally()
    wrong = []
    offset = list(OPERATIONS).index(faults[0].operation)
    for fault in faults[offset % EVERY :: EVERY]:
        problem = tally.add(fault, inject(fault))
        if problem:
            wrong.append(f"{fault}: {problem}")
    print(f"of {len(faults)} faults\n{tally.table()}")
    assert tally.by_operation, "nothing was injected"
    assert not wrong, "\n".join(wrong)


@can_inject
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_system_call_may_fail(stage, operation):
    sample(stage.faults(operation), stage.inject)


@can_inject
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_process_may_be_killed_at_each_system_call(stage, operation):
    sample(stage.kills(operation), stage.inject)


@can_inject
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_target_may_end_at_each_system_call(stage, operation):
    sample(stage.stops(operation), stage.end_target)


@can_inject
def test_the_caller_a_child_and_the_target_may_be_killed_at_any_moment(stage):
    tally, wrong = kill.kill_many(stage, 60, seed=os.getpid())
    print(tally.table())
    assert not wrong


@requires_root
@pytest.mark.parametrize("raising", [False, True])
@pytest.mark.parametrize("number", storm.SIGNALS)
def test_joins_go_on_in_a_storm_of_signals(stage, number, raising):
    def joins() -> None:
        if raising:  # may lose a descriptor, or leave it to an object of Python's to be closed with a warning
            warnings.simplefilter("ignore", ResourceWarning)
            sys.unraisablehook = lambda _raised: None
        storm.prepare_thread()
        one = storm.Storm(Job(stage.targets[False], str(stage.folder / "program")))
        one.run(number, 2, raising=raising)
        assert one.received > one.interrupted > 0 or not raising

    if stage is None:
        pytest.skip("needs strace and a C compiler")
    in_child(joins)


# --- nothing left to be had ------------------------------------------------------------------------------------------


@can_inject
@pytest.mark.parametrize("operation", ["spawn", "spawn_by_descriptors", "enter_several", "call_with_pid"])
def test_with_any_number_of_descriptors_left_it_works_or_says_that_there_are_none(stage, operation):
    outcomes = []
    for limit in range(8, 40):
        answer = stage.perform(operation, limits={"RLIMIT_NOFILE": limit})
        assert (answer["clear"], answer["changed"], answer["left"], answer["hung"]) == (True, [], [], False), answer
        if answer["error"]:
            assert answer["errno"] == errno.EMFILE, answer
        outcomes.append(answer["error"] is None)
    assert True in outcomes
    assert False in outcomes


@pytest.mark.parametrize("join", [nsjoin.spawn_in, nsjoin.call_in])
def test_exhausted_process_limit_is_explained(join):
    """RLIMIT_NPROC, from which only root is exempt."""

    def without_processes() -> None:
        if IS_ROOT:
            become_nobody()
        target = Running(("user", "net"))
        before = resource.getrlimit(resource.RLIMIT_NPROC)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, before[1]))
        try:
            with pytest.raises(BlockingIOError):
                join(target.pid, ["true"] if join is nsjoin.spawn_in else os.getpid)
            assert children_of(os.getpid()) == [target.process.pid]
        finally:
            resource.setrlimit(resource.RLIMIT_NPROC, before)
            target.end()

    in_child(without_processes)


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        return list(map(int, children.read().split()))


@contextlib.contextmanager
def pids_group() -> Iterator[str]:
    """A new group of the controller pids, of cgroups version 1 or 2."""
    for top in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
        group = f"{top}/nsjoin-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            os.mkdir(group)
            if os.path.exists(f"{group}/pids.max"):
                try:
                    yield group
                finally:
                    os.rmdir(group)
                return
            os.rmdir(group)
    pytest.skip("there is no cgroup controller pids to be had here")


@requires_root
@pytest.mark.parametrize("fork", ["the joiner's", "its child's"])
def test_reached_pids_max_is_explained(target, fork):
    def limited(group: str) -> None:
        Path(group, "cgroup.procs").write_text(str(os.getpid()))
        Path(group, "pids.max").write_text("1" if fork == "the joiner's" else "2")
        with pytest.raises(OSError, match=rf"\[Errno {errno.EAGAIN}\]"):
            nsjoin.spawn_in(target.pid, ["true"])
        assert children_of(os.getpid()) == []
        if fork == "the joiner's":
            with pytest.raises(BlockingIOError):
                nsjoin.call_in(target.pid, os.getpid, trust_target=True)
            assert children_of(os.getpid()) == []

    with pids_group() as group:
        in_child(lambda: limited(group))


@requires_root
def test_full_tmp_is_an_error_and_nothing_stays_in_it(target):
    """Where memfds are not executed, the joiner is a file for the time of a launch."""

    def with_full_tmp() -> None:
        calls.unshare(0x00020000)  # CLONE_NEWNS
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4096", "nsjoin", "/tmp"], check=True)
        filler = Path("/tmp/filler")
        filler.write_bytes(bytes(4096))
        image._image.memfd_does_not_run()
        with pytest.raises(OSError, match="No space left") as caught:
            nsjoin.run_in(target.pid, ["true"], namespaces=["net", "pid"])
        assert caught.value.errno == errno.ENOSPC
        assert os.listdir("/tmp") == ["filler"]
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=1m", "/tmp"], check=True)
        assert nsjoin.run_in(target.pid, ["true"], namespaces=["net", "pid"]).returncode == 0
        assert os.listdir("/tmp") == []

    in_child(with_full_tmp)


#: Calls that have no file of their own to be named by, and that no other way is tried for.
NAMED = ("setns", "prctl", "fcntl", "ioctl", "statx", "fchdir", "chroot", "unshare", "setgroups")


@can_inject
@pytest.mark.parametrize("operation", ["spawn", "spawn_into_user", "enter_several"])
def test_the_error_names_the_call_that_failed_and_its_errno(stage, operation):
    faults = [fault for fault in stage.faults(operation) if fault.call in NAMED]
    first_errno_of_each = {fault[:3]: fault for fault in reversed(faults)}
    named = set()
    for fault in first_errno_of_each.values():
        message = stage.inject(fault)["error"] or ""
        found = re.match(r"(?:Join|Restore|Namespace)\w*Error: \[Errno (\d+)\] (\w+)", message)
        if found:  # else another way was found, or it is one of those of which subprocess tells no more than the errno
            assert (int(found[1]), found[2]) == (getattr(errno, fault.what), fault.call), f"{fault}: {message}"
            named.add(fault.call)
    assert named >= {"setns", "fchdir", "chroot"}
    assert operation == "enter_several" or named >= {"prctl", "fcntl"}


# --- the target ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "join",
    [
        lambda target: nsjoin.spawn_in(target, ["true"]),
        lambda target: nsjoin.run_in(target, ["true"], namespaces=["net"]),
        lambda target: nsjoin.call_in(target, os.getpid),
        lambda target: nsjoin.enter(target, "net").__enter__(),
    ],
    ids=["spawn_in", "run_in", "call_in", "enter"],
)
@pytest.mark.parametrize("kernel", ["this", "without namespaces by pidfd", "without pidfds"])
def test_a_target_that_ends_once_it_is_pinned_is_gone(start, join, kernel):
    def pinned() -> None:
        if kernel != "this":
            become_old_kernel(pidfds=kernel != "without pidfds")
        running = Running(("net", "pid"))
        with nsjoin.Target.from_pid(running.pid) as target:
            running.end()
            with pytest.raises(nsjoin.TargetGoneError):
                join(target)

    in_child(pinned)


REUSE = """
import os, signal, sys
import nsjoin
sys.path.insert(0, {tests!r})
from changed import become_old_kernel
if not {pidfds!r}:
    become_old_kernel(pidfds=False)
LAST = "/proc/sys/kernel/ns_last_pid"

def child():
    pid = os.fork()
    if pid == 0:
        signal.pause()
    return pid

def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

for _ in range(3):
    first = child()
    with nsjoin.Target.from_pid(first) as target:
        end(first)
        with open(LAST, "w") as last:
            last.write(str(first - 1))
        second = child()
        assert second == first, (first, second)
        assert not target.is_alive()
        for join in (
            lambda: nsjoin.spawn_in(target, ["true"], namespaces=["net"]),
            lambda: nsjoin.call_in(target, os.getpid),
            lambda: nsjoin.enter(target, "net").__enter__(),
            lambda: target.namespace("net"),
        ):
            try:
                join()
            except nsjoin.TargetGoneError:
                continue
            raise AssertionError("somebody else, who has the pid by now, was taken for the target")
        end(second)
print("never taken for another")
"""


@requires_root
@pytest.mark.parametrize("pidfds", [True, False])
def test_a_pid_that_is_given_out_again_is_not_the_target(pidfds):
    """In a PID namespace of the test's own, where the next pid can be chosen: proc(5), ns_last_pid."""
    script = textwrap.dedent(REUSE.format(tests=str(Path(__file__).resolve().parent), pidfds=pidfds))
    command: list[Any] = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-Wignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "never taken for another\n"), done.stderr
