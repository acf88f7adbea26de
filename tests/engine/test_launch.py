"""The launch: the plan as bytes, the sealed joiner, the wait for exec and what ends it, and that nothing is left."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from changed import NOBODY, join, memfds_do_not_run
from child import Held, children, expired, held, held_program, in_child, living_on
from conftest import (
    HAS_NAMESPACES_OF_PIDFDS,
    IS_ROOT,
    SEALS_THE_MODE,
    Running,
    dumpable,
    requires_namespaces_of_pidfds,
    requires_program,
    requires_root,
)
from jobs import Job, job_of

import nsjoin
from nsjoin._engine import children as children_
from nsjoin._engine import image
from nsjoin._engine.children import wait
from nsjoin._engine.job import At, Failed, Ids, Step
from nsjoin._engine.wire import pack
from nsjoin._kernel import calls as calls_
from nsjoin._kernel import thread as thread_
from nsjoin._kernel.calls import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="module", autouse=True)
def near():
    """A target that shares our file system; autouse, so that it is there before the guard takes stock."""
    running = Running(("pid", "uts"))
    yield running
    running.end()


F_GET_SEALS = 1034
#: seal, shrink, grow, write: no more of any (fcntl(2), "File Sealing")
ALL_SEALS = 1 | 2 | 4 | 8
SEAL_EXEC = 32


def run(job: Job) -> int:
    """Launch a job and wait for its program: the exit status."""
    _, status = os.waitpid(wait(job.launch()), 0)
    return status


def shell(script: str, **keywords: Any) -> Job:
    return job_of([b"/bin/sh"], [b"sh", b"-c", script.encode()], [], **keywords)


# --- the plan as bytes ---------------------------------------------------------------------------------------


def unpacked(plan: bytes) -> tuple[Any, Callable[[str, int, str], list[int]]]:
    """The head of a plan, and a function that reads its lists."""
    head = ffi.new("struct nsjoin_plan *")
    ffi.buffer(head)[:] = plan[: ffi.sizeof("struct nsjoin_plan")]

    def read(offset: str, count: int, ctype: str = "int32_t") -> list[int]:
        start = getattr(head, offset)
        return list(memoryview(plan[start : start + count * ffi.sizeof(ctype)]).cast("i"))

    return head, read


def test_a_plan_holds_what_the_job_says():
    job = job_of(
        [b"/a/prog", b"/b/prog"],
        [b"prog", b""],
        [b"A=1"],
        stdio=(-1, 5, 0),
        pass_fds=[9, 7, 2],
        joins=[Step(11, 0x20000000), Step(12, 0x10000000, 2)],
        fork=True,
        root=13,
        cwd=b"/here",
        umask=0o27,
        ids=Ids((1000, 1000, 1003), (1001, 1001, 1001), [1002, 4294967294]),
        new_session=True,
        process_group=0,
    )
    plan = pack(*job, [6, 11], [11, 12])
    head, read = unpacked(plan)
    assert (head.size, head.pid, head.step, head.error) == (len(plan), 0, 0, 0)
    assert head.flags == (
        lib.NSJOIN_FORK | lib.NSJOIN_CLOSE_FDS | lib.NSJOIN_RESTORE_SIGNALS | lib.NSJOIN_SETSID | lib.NSJOIN_SETPGID
    ) | (lib.NSJOIN_SETUID | lib.NSJOIN_SETGID | lib.NSJOIN_SETGROUPS | lib.NSJOIN_UMASK)
    assert (list(head.stdio), head.root, head.pgid, head.umask) == ([-1, 5, 0], 13, 0, 0o27)
    assert (list(head.uids), list(head.gids), head.n_groups) == ([1000, 1000, 1003], [1001, 1001, 1001], 2)
    assert read("groups", 2) == [1002, -2]
    assert read("keep", head.n_keep) == [7, 9, 11, 12], "sorted, each once, none of stdio"
    assert read("lent", head.n_lent) == [6, 11]
    assert read("joins", head.n_joins * 3) == [11, 0x20000000, 0, 12, 0x10000000, 2]
    assert (head.n_files, head.n_argv, head.n_envp) == (2, 2, 1)
    assert plan[head.text :] == b"/a/prog\0/b/prog\0prog\0\0A=1\0/here\0"
    assert plan[head.cwd :] == b"/here\0"
    # three lists, each with its NULL
    assert head.joins - head.tables == (2 + 2 + 1 + 3) * ffi.sizeof("void *")
    assert plan[head.tables : head.joins].count(0) == head.joins - head.tables
    assert head.tables % ffi.sizeof("void *") == 0


def test_a_plan_without_anything_says_so():
    head, _ = unpacked(pack(*job_of([b"/a"], [], [], close_fds=False, restore_signals=False)))
    assert (head.flags, head.cwd, head.root, list(head.stdio)) == (0, 0, -1, [-1, -1, -1])
    assert (head.n_joins, head.n_keep, head.n_lent, head.n_groups) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "job",
    [
        job_of([b"/a\0b"], [b"a"], []),
        job_of([b"/a"], [b"a\0"], []),
        job_of([b"/a"], [b"a"], [b"A=\0"]),
        job_of([b"/a"], [b"a"], [], cwd=b"\0"),
    ],
    ids=["file", "argument", "environment", "cwd"],
)
def test_a_nul_in_a_string_is_a_value_error(job):
    with pytest.raises(ValueError, match="embedded null byte"):
        pack(*job)
    with pytest.raises(ValueError, match="embedded null byte"):
        wait(job.launch())


# --- the launch ----------------------------------------------------------------------------------------------


def test_the_program_gets_its_argv_and_environment():
    reader, writer = os.pipe()
    try:
        job = job_of(
            [b"/no/such", b"/bin/sh"],
            [b"name", b"-c", b'echo "$0|$1|$A"', b"zero", b""],
            [b"A=x y"],
            stdio=(-1, writer, -1),
        )
        assert run(job) == 0
        assert os.read(reader, 100) == b"zero||x y\n"
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(
    ("keywords", "at", "number"),
    [
        ({"stdio": (999, -1, -1)}, At.LAUNCH, errno.EBADF),
        ({"pass_fds": [999]}, At.LAUNCH, errno.EBADF),
        ({"joins": [Step(0, 0x40000000)]}, At.JOIN, errno.EINVAL),
        ({"root": 0}, At.ROOT, errno.ENOTDIR),
        ({"cwd": b"/no/such"}, At.CWD, errno.ENOENT),
        ({"process_group": 1}, At.SESSION, errno.EPERM),
        ({"cwd": b"/etc/passwd"}, At.CWD, errno.ENOTDIR),
    ],
)
def test_a_failure_names_its_step_and_errno(keywords, at, number):
    with open("/dev/null") as null:
        if keywords.get("root") == 0:
            keywords = {"root": null.fileno()}
        if "joins" in keywords:
            keywords = {"joins": [Step(null.fileno(), 0x40000000)]}
        with pytest.raises(Failed) as caught:
            wait(shell("exit", **keywords).launch())
    assert (caught.value.at, caught.value.errno) == (at, number)


def test_the_join_that_failed_is_named_by_its_index(target):
    with open(f"/proc/{target.pid}/ns/uts") as uts, open("/dev/null") as null, pytest.raises(Failed) as caught:
        steps = [Step(uts.fileno(), 0x04000000, 1), Step(null.fileno(), 0x40000000)]
        wait(shell("exit", joins=steps).launch())
    assert (caught.value.at, caught.value.index) == (At.JOIN, 1)


def test_launch_that_is_never_awaited_is_ended(tmp_path):
    with held_program(tmp_path / "held") as program:
        launching = job_of([os.fsencode(program.path)], [b"held"], []).launch()
        barrier = next(launching)
        program.wait()
        assert not select.select([barrier], [], [], 0)[0], "it has not exec'd"
        del launching
        gc.collect()


@pytest.mark.parametrize(("program", "is_gone"), [("while :; do :; done", True), ("exec sleep inf", False)])
def test_killed_but_runnable_child_is_awaited(program, is_gone):
    """On a machine with much to do; what sleeps may hang in the kernel for ever, and is left to a later launch."""
    with subprocess.Popen(["sh", "-c", program]) as process:
        killer = threading.Timer(1, process.kill)
        killer.start()
        try:
            assert children_.reap(process.pid, 0.05) is is_gone
        finally:
            killer.join()


# --- the image -----------------------------------------------------------------------------------------------


def test_the_joiner_is_sealed_and_cannot_be_written():
    fd, is_to_be_closed = image._image.open()
    assert not is_to_be_closed
    assert fd > 2
    seals = fcntl.fcntl(fd, F_GET_SEALS)
    assert seals & ALL_SEALS == ALL_SEALS
    if SEALS_THE_MODE:
        assert seals & SEAL_EXEC
        with pytest.raises(PermissionError):
            os.fchmod(fd, 0o600)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    # through /proc/PID/exe it can be opened for writing by its owner, as CVE-2019-5736 did: to no avail
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            os.write(again, b"x")
    finally:
        os.close(again)
    assert os.pread(fd, 1 << 20, 0) == image._image_bytes()


def test_the_image_is_made_once():
    first = image._image.open()
    assert run(shell("exit 0")) == 0
    assert image._image.open() == first


@pytest.mark.parametrize("keeps_its_number", [False, True])
def test_the_image_is_made_again_after_a_program_has_closed_all_descriptors(target, keeps_its_number):
    def spawn() -> tuple[int, int]:
        first = nsjoin.run_in(target.pid, ["sh", "-c", "exit 7"]).returncode
        os.closerange(3, 1024)
        if keeps_its_number:  # the number means another file now, which must be neither executed nor closed
            other = os.memfd_create("other")
            os.dup2(other, number, inheritable=False)
        done = nsjoin.run_in(target.pid, ["sh", "-c", "exit 7"]).returncode
        if keeps_its_number:
            assert os.path.sameopenfile(other, number)
        return first, done

    number = image._image.open()[0]
    outcome: list[tuple[int, int]] = []
    assert in_child(lambda: outcome[0], lambda: outcome.append(spawn())) == (7, 7)


@pytest.fixture
def no_memfd(monkeypatch, tmp_path) -> Callable[[int], None]:
    """Make the kernel refuse executable memfds with an errno, to an image that has not been made yet."""

    def refuse(number: int) -> None:
        def memfd_create(name: bytes, flags: int) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(image, "_image", image._Image())
        monkeypatch.setattr(calls_, "memfd_create", memfd_create)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    return refuse


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOSYS])
def test_where_memfds_cannot_be_executed_a_file_serves_and_none_is_left(target, no_memfd, number, tmp_path):
    no_memfd(number)
    for _ in range(2):
        assert nsjoin.run_in(target.pid, ["sh", "-c", "exit 7"]).returncode == 7
        assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        nsjoin.spawn_in(target.pid, ["/no/such/program"])
    assert os.listdir(tmp_path) == []


def test_where_a_memfd_is_made_but_does_not_run_a_file_serves(target, monkeypatch, tmp_path):
    memfds_do_not_run(monkeypatch, tmp_path)
    for _ in range(2):
        assert nsjoin.run_in(target.pid, ["sh", "-c", "exit 7"]).returncode == 7
    assert not image._image._memfd_runs  # and it is closed: the guard of the tests would see it
    assert os.listdir(tmp_path) == []


def test_another_error_of_memfd_create_is_raised(target, no_memfd):
    no_memfd(errno.EMFILE)
    with pytest.raises(OSError, match="Too many open files"):
        nsjoin.spawn_in(target.pid, ["true"])


IN_NEW_PID_NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")


@requires_root
def test_with_memfd_noexec_2_it_works_all_the_same(tmp_path):
    # vm.memfd_noexec belongs to a PID namespace, Linux 6.3 (and is inherited, so it may only be raised in a new one)
    if not os.path.exists("/proc/sys/vm/memfd_noexec"):
        pytest.skip("this kernel has no vm.memfd_noexec: that needs Linux 6.3")
    refuse_memfds = 'echo 2 >/proc/sys/vm/memfd_noexec && exec "$@"'
    script = (
        "import os, nsjoin\n"
        "with nsjoin.Namespace.current('uts') as uts:\n"
        "    print(nsjoin.run_in(uts, ['sh', '-c', 'exit 7'], stdin=0).returncode)\n"
        "print(nsjoin._engine.image._image._memfd_runs, os.listdir(os.environ['TMPDIR']))\n"
    )
    done = subprocess.run(
        [*IN_NEW_PID_NAMESPACE, "sh", "-c", refuse_memfds, "sh", sys.executable, "-c", script],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("7\nFalse []\n", "")


# --- RLIMIT_FSIZE ---------------------------------------------------------------------------------------------


def limit_files(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def with_a_new_image() -> None:
    image._image.memfd_does_not_run()  # closes it
    image._image = image._Image()


@pytest.mark.parametrize(
    ("prepare", "size", "what"), [(with_a_new_image, 4096, "the joiner"), (lambda: None, 100, "the plan")]
)
def test_a_file_size_limit_that_a_launch_does_not_fit_in_is_named(near, prepare, size, what):
    def run_it() -> str:
        with pytest.raises(nsjoin.NamespaceError) as caught:
            nsjoin.run_in(near.pid, ["true"])
        assert (caught.value.step, caught.value.errno) == ("write", errno.EFBIG)
        assert signal.SIGXFSZ not in signal.sigpending()
        return str(caught.value)

    message = in_child(run_it, prepare, lambda: limit_files(size))
    assert what in message
    assert f"RLIMIT_FSIZE is {size}: raise it" in message


def test_a_file_size_limit_that_a_plan_fits_in_is_none(near):
    assert in_child(lambda: nsjoin.run_in(near.pid, ["true"]).returncode, lambda: limit_files(4096)) == 0


def write_unguarded(fd: int, data: bytes, what: str) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(fd, data[written:], written)


def test_unless_its_signal_is_blocked_the_limit_ends_the_caller(near, monkeypatch):
    monkeypatch.setattr(calls_, "write_all", write_unguarded)
    with pytest.raises(AssertionError, match=f"the child ended with status {signal.SIGXFSZ}"):
        in_child(lambda: nsjoin.run_in(near.pid, ["true"]).returncode, lambda: limit_files(100))


def test_no_handler_of_the_callers_runs_for_it_and_one_that_was_pending_before_still_does(near):
    called: list[int] = []

    def run_it() -> list[int]:
        for is_pending in (False, True):
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGXFSZ] if is_pending else [])
            if is_pending:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGXFSZ)
            with pytest.raises(nsjoin.NamespaceError):
                nsjoin.run_in(near.pid, ["true"])
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGXFSZ])
            called.append(0)
        return called

    def listen() -> None:
        limit_files(100)
        signal.signal(signal.SIGXFSZ, lambda number, _: called.append(number))

    assert in_child(run_it, listen) == [0, signal.SIGXFSZ, 0]


def test_a_result_of_a_call_that_does_not_fit_in_the_limit_is_named(near):
    def call_it() -> str:
        with pytest.raises(nsjoin.CallResultError) as caught:
            nsjoin.call_in(near.pid, bytes, 10_000_000, trust_target=True)
        return str(caught.value)

    assert "RLIMIT_FSIZE is 4096" in in_child(call_it, lambda: limit_files(4096))


@requires_root
def test_what_is_no_file_is_written_whatever_the_limit(near):
    def make_them() -> None:
        with nsjoin.create("user", uid_map=[(0, 0, 5)]), nsjoin.create("time", monotonic=5):
            assert nsjoin.call_in(near.pid, str, 1, trust_target=True) == "1"

    in_child(make_them, lambda: limit_files(0))


# --- held before exec ----------------------------------------------------------------------------------------


class Spawning(threading.Thread):
    """Spawns in a thread; what was raised is in ``error``."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__()
        self.work = lambda: nsjoin.run_in(*args, **keywords)
        self.error: BaseException | None = None
        self.result: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.work()
        except BaseException as error:
            self.error = error


def processes_of_the_launch(before: set[int], count: int) -> set[int]:
    new = children() - before
    assert len(new) == count
    return new


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can look into too: pytest's are private."""
    with tempfile.TemporaryDirectory(prefix="nsjoin-test-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


#: What a process has mapped that is of no file: stack, vdso and the like
ANONYMOUS = re.compile(r"\[.*\]|")


@requires_root
@pytest.mark.parametrize(("keywords", "count"), [({}, 2), ({"namespaces": ["uts", "net"]}, 1), ({"user": NOBODY}, 2)])
def test_while_the_program_is_held_before_exec_nothing_of_python_is_inside(start, folder, keywords, count):
    target = start("uts", "net", "pid")
    namespaces = {os.readlink(f"/proc/{target.pid}/ns/{nstype}") for nstype in ("uts", "net", "pid")}
    before, flag = children(), dumpable()
    with held_program(folder / "held") as program:
        spawning = Spawning(target.pid, [program.path], **keywords)
        program.wait()
        try:
            for pid in processes_of_the_launch(before, count):
                assert os.readlink(f"/proc/{pid}/exe") == "/memfd:nsjoin (deleted)"
                with open(f"/proc/{pid}/maps") as file:
                    mapped = {line.split(maxsplit=5)[5].strip() for line in file if len(line.split()) > 5}
                files = {name for name in mapped if not ANONYMOUS.fullmatch(name)}
                assert files == {"/memfd:nsjoin (deleted)", "/memfd:nsjoin-plan (deleted)"}
                # not dumpable: what it has in /proc belongs to root, so another user inside cannot look into it
                assert os.stat(f"/proc/{pid}/maps").st_uid == 0
                open_files = {
                    os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd") if int(fd) > 2
                }
                if not HAS_NAMESPACES_OF_PIDFDS:  # then they are joined by descriptors
                    open_files -= namespaces
                assert {re.sub(r"\[.*", "", name) for name in open_files} <= {"pipe:", "anon_inode:", "pidfd:"}
            assert dumpable() == flag
        finally:
            program.release()
            join(spawning)
    assert spawning.error is None
    assert spawning.result.returncode == 0
    assert dumpable() == flag


class Interrupt(Exception):  # noqa: N818 - no error, a signal
    """What a signal handler raises, as Ctrl-C's raises KeyboardInterrupt."""


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGUSR1, and SIGIO by which the kernel tells that exec is held, raise ``Interrupt`` in this thread."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupt

    before = [(number, signal.signal(number, interrupt)) for number in (signal.SIGIO, signal.SIGUSR1)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.parametrize("keywords", [{}, {"fork": False}], ids=["forking", "not forking"])
def test_ctrl_c_ends_the_wait_for_exec_and_leaves_nothing(near, tmp_path, interruptible, keywords):
    before = children()
    with held_program(tmp_path / "held") as program:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGIO])
        with pytest.raises(Interrupt):
            nsjoin.spawn_in(near.pid, [program.path], **keywords)
        assert children() == before


@pytest.mark.parametrize("keywords", [{}, {"fork": False}], ids=["forking", "not forking"])
def test_a_timeout_ends_the_wait_for_exec_and_leaves_nothing(near, tmp_path, keywords):
    before = children()
    with held_program(tmp_path / "held") as program:
        error = expired(
            lambda timeout: nsjoin.run_in(near.pid, [program.path, "argument"], timeout=timeout, **keywords),
            lambda _: signal.SIGIO in signal.sigpending(),  # the timeout did not come before exec
        )
        program.wait()
        assert children() == before
    assert error.cmd == [program.path, "argument"]


def stop_from_inside(target: int, program: Held, before: set[int]) -> None:
    """Wait until exec is held, have a process inside stop the one that is to become the program, and let exec go on."""
    program.wait()
    numbers = {pid: numbers_of(pid) for pid in children() - before}
    inner = max(numbers, key=lambda pid: len(numbers[pid]))
    nsjoin.run_in(target, ["sh", "-c", f"kill -STOP {numbers[inner][-1]}"], check=True)
    os.waitpid(inner, os.WUNTRACED)
    program.release()


def numbers_of(pid: int) -> list[str]:
    with open(f"/proc/{pid}/status") as file:
        return next(line.split()[1:] for line in file if line.startswith("NSpid"))


def test_ctrl_c_ends_the_wait_for_a_program_that_something_inside_has_stopped(near, tmp_path, interruptible):
    before = children()
    with held_program(tmp_path / "held") as program:

        def stop_and_interrupt() -> None:
            stop_from_inside(near.pid, program, before)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

        thread = threading.Thread(target=stop_and_interrupt)
        thread.start()
        with pytest.raises(Interrupt):
            nsjoin.spawn_in(near.pid, [program.path])
        join(thread)
        assert children() == before


def ends_beside_a_fork(target: int, fork: str, seconds: float | None) -> bool:
    """Whether a launch ends although a child lives on that another thread has forked while the joiner was held."""
    # the barrier is still open in this process by then, and the forked one gets a copy of it
    with held(f"/proc/self/fd/{image._image.open()[0]}") as joiner:
        spawning = Spawning(target, ["true"], timeout=seconds)
        joiner.wait()
        with living_on(fork):
            joiner.release()
            spawning.join(60)
            has_ended = not spawning.is_alive()
        join(spawning)
    assert (spawning.error is None) == (seconds is None), spawning.error
    assert isinstance(spawning.error, (subprocess.TimeoutExpired, type(None)))
    return has_ended and spawning.error is None


WITH_HANDLERS = ["os.fork", "fork(3)"]


@pytest.mark.parametrize("fork", WITH_HANDLERS)
def test_a_process_that_is_forked_meanwhile_does_not_hold_up_the_launch(near, fork):
    assert ends_beside_a_fork(near.pid, fork, None)


def test_without_the_handlers_of_fork_it_does_hold_up_the_launch(near):
    """A program that ran well is said to have taken too long: the forked process has the barrier."""
    assert not ends_beside_a_fork(near.pid, "clone(2)", 1)


def private(pid: int | str) -> set[str]:
    """Pipes, sockets and plans that a process has open."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # the directory's own
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return {link for link in found if link.startswith(("pipe:", "socket:", "/memfd:nsjoin-plan"))}


@requires_root
@pytest.mark.parametrize("fork", WITH_HANDLERS)
def test_the_child_of_a_fork_has_no_descriptor_of_a_launch_a_call_or_a_holder(near, tmp_path, fork):
    entered, go = tmp_path / "entered", tmp_path / "go"
    os.mkfifo(entered)
    os.mkfifo(go)

    def wait_inside() -> None:
        entered.write_bytes(b"here")
        go.read_bytes()

    before = private("self")
    calling = threading.Thread(target=lambda: nsjoin.call_in(near.pid, wait_inside, trust_target=True))
    with nsjoin.create("pid"), held_program(tmp_path / "held") as program:  # first: it blocks SIGIO, in all threads
        calling.start()
        entered.read_bytes()
        spawning = Spawning(near.pid, [program.path])
        program.wait()
        ours = private("self") - before
        with living_on(fork) as forked:
            copied = private(forked) & ours
        program.release()
        join(spawning)
    go.write_bytes(b"go")
    join(calling)
    assert {re.sub(r"\[.*", "", link) for link in ours} == {"/memfd:nsjoin-plan (deleted)", "pipe:", "socket:"}
    assert copied == set()


@requires_root
@pytest.mark.parametrize("fork", WITH_HANDLERS)
def test_sixty_four_threads_launch_and_create_while_others_fork(near, fork):
    """Each fork meets the launches somewhere else, and its child lives until all of them are through."""
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(3):
                assert nsjoin.run_in(near.pid, ["true"], timeout=120).returncode == 0
                nsjoin.create("uts").close()
                if number % 8 == 0:
                    assert nsjoin.call_in(near.pid, str, number, timeout=120, trust_target=True) == str(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(living_on(fork))
            nsjoin.run_in(near.pid, ["true"])  # in the meantime the others have come further
        for thread in threads:
            join(thread)
    assert failed == []


def test_a_program_that_is_killed_before_exec_has_died_by_that_signal(near, tmp_path):
    before = children()
    with held_program(tmp_path / "held") as program:
        spawning = Spawning(near.pid, [program.path])
        program.wait()
        for pid in children() - before:
            os.kill(pid, signal.SIGKILL)
        join(spawning)
    assert spawning.error is None
    assert spawning.result.returncode == -signal.SIGKILL


# --- faults that strace injects ------------------------------------------------------------------------------

REPORT = """
import os, sys, nsjoin
from nsjoin._engine import image
image._image.open()
nsjoin.Namespace.current("uts").close()  # this thread's own pidfd is kept
before = os.listdir("/proc/self/fd")
try:
    args = ["sh", "-c", "exit 7"]
    with nsjoin.spawn_in({pid}, args, cwd="/", start_new_session=True, fork={fork}) as process:
        process.wait()
    print("status", process.returncode)
except OSError as error:
    print(type(error).__name__, getattr(error, "step", None), error.errno)
sys.path.insert(0, {tests!r})
from child import children  # not before: it needs ctypes, and on PyPy that runs a program at its import
if children() or len(os.listdir("/proc/self/fd")) != len(before):
    print("left:", children(), os.listdir("/proc/self/fd"))
"""


def with_fault(pid: int | str, fault: str, path: str | None = None, *, fork: bool = True) -> list[str]:
    """What a Python program that spawns reports when strace injects ``fault`` into it and what it starts.

    ``path``: only into calls on a descriptor of this file.
    """
    options = [f"--inject={fault}", *(["-P", path] if path else [])]
    script = REPORT.format(pid=pid, tests=str(Path(__file__).parents[1]), fork=fork)
    with tempfile.NamedTemporaryFile("r") as log:
        done = subprocess.run(
            ["strace", "-f", "-qq", "-o", log.name, *options, sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "signal=" in fault or "(INJECTED)" in log.read(), "the fault did not come to pass"
    assert done.stderr == ""
    return done.stdout.splitlines()


@requires_program("strace")
@pytest.mark.parametrize(
    ("call", "step"),
    [("setns", "join"), ("close_range", "close"), ("chdir", "cwd")],
)
def test_a_joiner_that_is_killed_at_a_step_is_an_error_and_nothing_is_left(near, call, step):
    assert with_fault(near.pid, f"{call}:signal=KILL") == [f"JoinError {step} {errno.ECHILD}"]


@requires_root
@requires_program("strace")
def test_same_when_joining_by_descriptors(near):
    assert with_fault(repr(f"/proc/{near.pid}/ns/uts"), "setns:signal=KILL") == [f"JoinError join {errno.ECHILD}"]


@requires_program("strace")
def test_a_child_that_is_killed_before_exec_is_an_error_and_nothing_is_left(near):
    assert with_fault(near.pid, "setsid:signal=KILL") == [f"JoinError session {errno.ECHILD}"]


@requires_program("strace")
@pytest.mark.parametrize(
    ("fault", "path"),
    [
        pytest.param("close_range:error=ENOSYS", None, id="no close_range (before 5.9)"),
        pytest.param("pidfd_open:error=ENOSYS", None, id="no pidfd_open (before 5.3)"),
        pytest.param("pidfd_open:error=EPERM", None, id="pidfd_open forbidden by seccomp"),
        pytest.param(
            "setns:error=EINVAL",
            "anon_inode:[pidfd]",
            marks=requires_namespaces_of_pidfds,
            id="no setns by pidfd (before 5.8)",
        ),
        pytest.param(
            "setns:error=EPERM",
            "anon_inode:[pidfd]",
            marks=requires_namespaces_of_pidfds,
            id="setns by pidfd not permitted",
        ),
        pytest.param("ioctl:error=ENOTTY", "anon_inode:[pidfd]", id="no ioctls of pidfds (before 6.11)"),
        pytest.param("memfd_create:error=EINVAL:when=1", None, id="no MFD_EXEC (before 6.3)"),
    ],
)
def test_on_a_kernel_that_lacks_something_it_works_all_the_same(near, fault, path):
    if fault.startswith("setns") and not IS_ROOT:
        pytest.skip("only root's strace sees which files the joiner has open, as it is not dumpable")
    assert with_fault(near.pid, fault, path) == ["status 7"]


@requires_program("strace")
def test_where_memory_cannot_be_shared_the_launch_forks(near):
    # before Linux 6.2 clone(CLONE_VM) is EINVAL where time_for_children differs
    assert with_fault(near.pid, "clone:error=EINVAL:when=1", fork=False) == ["status 7"]


@requires_program("strace")
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("clone:error=EAGAIN:when=1", "BlockingIOError None 11"),
        ("pipe2:error=EMFILE:when=1", "OSError None 24"),
        ("setsid:error=EPERM", "PermissionError None 1"),
    ],
)
def test_a_call_that_fails_is_an_error_and_nothing_is_left(near, fault, expected):
    assert with_fault(near.pid, fault) == [expected]


# --- home ----------------------------------------------------------------------------------------------------


@requires_root
@pytest.mark.parametrize("failing", [(), (1,), (2,), ("a signal",)])
def test_failed_return_from_the_host_pid_namespace_is_reported(near, monkeypatch, failing):
    calls = []

    def setns(fd, nstype, real=calls_.setns):
        calls.append(fd)
        if len(calls) in failing:
            raise PermissionError(errno.EPERM, "injected")
        real(fd, nstype)
        if failing == ("a signal",) and len(calls) == 1:
            raise Interrupt

    def born_into() -> str:
        return os.readlink("/proc/thread-self/ns/pid_for_children")

    raised = {(): None, (1,): PermissionError, (2,): nsjoin.RestoreError, ("a signal",): Interrupt}[failing]
    with nsjoin.enter(near.pid, "pid"):
        away = born_into()
        monkeypatch.setattr(calls_, "setns", setns)
        with pytest.raises(raised) if raised else contextlib.nullcontext(), thread_.home():
            assert born_into() != away
        assert (born_into() == away) is (failing != (2,))
