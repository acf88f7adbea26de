"""spawn_in and run_in for asyncio: in asyncio's own loop and, where it is installed, in uvloop's."""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import contextlib
import errno
import gc
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from typing import TYPE_CHECKING, Any

import pytest
from child import children, expired, held_program
from conftest import IS_ROOT, requires_root

import nsjoin
from nsjoin import aio
from nsjoin._kernel import calls

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from child import Held
    from conftest import Running

    Run = Callable[[Coroutine[Any, Any, Any]], Any]

MEGABYTE = 1 << 20


def run_in_loop(new_loop: Callable[[], asyncio.AbstractEventLoop], main: Coroutine[Any, Any, Any]) -> Any:
    loop = new_loop()
    mishaps: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: mishaps.append(context))
    try:
        return loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        gc.collect()  # whatever was not closed warns now, within the test
        assert not left
        assert not mishaps


@pytest.fixture(scope="module", autouse=True)
def _warm_up_uvloop() -> None:
    """libuv keeps a pipe for the process's lifetime once a loop of it has run."""
    os.environ["UV_USE_IO_URING"] = "0"  # its kernel thread counts as one of ours, and ends some time after the loop
    with contextlib.suppress(ImportError):
        import uvloop

        run_in_loop(uvloop.new_event_loop, asyncio.sleep(0))


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine to its end, in a loop of each kind."""
    if request.param == "asyncio":
        return lambda main: run_in_loop(asyncio.SelectorEventLoop, main)
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")
    return lambda main: run_in_loop(uvloop.new_event_loop, main)


async def readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await asyncio.wait_for(ready.wait(), 30)
    finally:
        loop.remove_reader(fd)


class Mouth:
    """A pipe for a program's stdout that is not aio's: tells that the program runs, and that nobody has it any more."""

    def __enter__(self) -> Mouth:
        self.read_end, self.fd = os.pipe()
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.read_end)
        os.close(self.fd)

    async def says(self) -> bytes:
        await readable(self.read_end)
        return os.read(self.read_end, 1000)

    def is_shut(self) -> bool:
        """Whether we hold the last write end: then there is an end of file once ours is closed, until we have one."""
        os.set_blocking(self.read_end, False)
        os.close(self.fd)
        try:
            return os.read(self.read_end, 1000) == b""
        except BlockingIOError:
            return False
        finally:
            self.fd = os.open(os.devnull, os.O_WRONLY)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    with held_program(tmp_path / "program") as program:
        yield program


async def reached() -> None:
    """Wait until execve is held. That the loop goes on meanwhile is what the tests are about."""
    end = time.monotonic() + 30
    while signal.SIGIO not in signal.sigpending():
        assert time.monotonic() < end, "nobody came to execve"
        await asyncio.sleep(0.001)


#: The program is outside the mount namespace, so that the test's files are there.
NO_MNT = ("uts", "ipc", "net", "pid") if IS_ROOT else ("user", "uts", "ipc", "net", "pid")

# --- run_in -------------------------------------------------------------------------------------------------


def test_output_and_exit_code_come_back(run: Run, target: Running) -> None:
    done = run(aio.run_in(target.pid, ["sh", "-c", "echo out; echo err >&2; exit 7"], capture_output=True))
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")
    assert done.args == ["sh", "-c", "echo out; echo err >&2; exit 7"]


def test_a_program_runs_inside(run: Run, target: Running) -> None:
    done = run(aio.run_in(target.pid, ["sh", "-c", "echo $$; readlink /proc/self/ns/uts"], stdout=PIPE, check=True))
    pid, uts = done.stdout.split()
    assert int(pid) < 1000
    assert uts.decode() == os.readlink(f"/proc/{target.pid}/ns/uts")


def test_namespaces_and_fork_are_obeyed(run: Run, target: Running) -> None:
    namespaces = ["pid"] if IS_ROOT else ["user", "pid"]
    done = run(aio.run_in(target.pid, ["sh", "-c", "echo $$"], namespaces=namespaces, fork=False, capture_output=True))
    assert int(done.stdout) > 20  # outside the PID namespace, as with nsenter --no-fork
    done = run(aio.run_in(target.pid, ["readlink", "/proc/self/ns/uts"], namespaces=namespaces, capture_output=True))
    assert done.stdout.decode().strip() == os.readlink("/proc/self/ns/uts")


def test_a_program_without_pipes_is_waited_for(run: Run, target: Running) -> None:
    done = run(aio.run_in(target.pid, ["sh", "-c", "exit 3"]))
    assert (done.returncode, done.stdout, done.stderr) == (3, None, None)


def test_a_signal_is_a_negative_exit_code(run: Run, target: Running) -> None:
    assert run(aio.run_in(target.pid, ["sh", "-c", "kill -9 $$"])).returncode == -9


def test_input_larger_than_a_pipe_comes_back(run: Run, target: Running) -> None:
    data = os.urandom(MEGABYTE)
    for given in (data, bytearray(data), memoryview(data)):
        done = run(aio.run_in(target.pid, ["cat"], input=given, stdout=PIPE))
        assert done.stdout == data
        assert done.stderr is None


def test_empty_input_is_an_end_of_file(run: Run, target: Running) -> None:
    assert run(aio.run_in(target.pid, ["cat"], input=b"", capture_output=True)).stdout == b""


def test_a_program_need_not_read_its_input(run: Run, target: Running) -> None:
    assert run(aio.run_in(target.pid, ["true"], input=bytes(MEGABYTE))).returncode == 0


def test_stderr_goes_where_stdout_goes(run: Run, target: Running) -> None:
    done = run(aio.run_in(target.pid, ["sh", "-c", "echo a; echo b >&2"], stdout=PIPE, stderr=STDOUT))
    assert (done.stdout, done.stderr) == (b"a\nb\n", None)


def test_check_raises_with_the_output(run: Run, target: Running) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(aio.run_in(target.pid, ["sh", "-c", "echo a; echo b >&2; exit 5"], capture_output=True, check=True))
    assert (caught.value.returncode, caught.value.stdout, caught.value.stderr) == (5, b"a\n", b"b\n")


def test_a_timeout_kills_the_program_and_keeps_its_output(run: Run, target: Running) -> None:
    command = ["sh", "-c", "echo a; exec sleep inf"]
    error = expired(
        lambda timeout: run(aio.run_in(target.pid, command, capture_output=True, timeout=timeout)),
        lambda error: error.stdout,
    )
    assert (error.stdout, error.stderr) == (b"a\n", b"")


def test_a_timeout_ends_a_program_that_does_not_read(run: Run, target: Running) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run(aio.run_in(target.pid, ["sleep", "inf"], input=bytes(MEGABYTE), timeout=0.1))


def test_a_timeout_counts_after_the_pipes_are_closed_too(run: Run, target: Running) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run(aio.run_in(target.pid, ["sh", "-c", "exec >&- 2>&-; sleep inf"], capture_output=True, timeout=0.2))


def test_a_timeout_that_is_not_reached_changes_nothing(run: Run, target: Running) -> None:
    assert run(aio.run_in(target.pid, ["echo", "a"], stdout=PIPE, timeout=600)).stdout == b"a\n"


def test_a_survivor_that_holds_the_pipes_does_not_outlast_the_timeout(run: Run, target: Running) -> None:
    command = ["sh", "-c", "sleep 3600 & echo $!"]
    error = expired(
        lambda timeout: run(aio.run_in(target.pid, command, capture_output=True, timeout=timeout)),
        lambda error: error.stdout,
    )
    survivor = int(error.stdout)
    nsjoin.run_in(target.pid, ["sh", "-c", f"kill -9 {survivor}"], check=True)


def test_kill_group_ends_the_survivors_of_a_program_that_has_ended(run: Run, target: Running) -> None:
    command = ["sh", "-c", "sleep 3600 & echo started >&2"]
    with Mouth() as mouth:
        keywords: dict[str, Any] = {"stdout": PIPE, "stderr": mouth.fd, "kill_group": True}
        expired(
            lambda timeout: run(aio.run_in(target.pid, command, timeout=timeout, **keywords)),
            lambda _: select.select([mouth.read_end], [], [], 0)[0],
        )
        assert os.read(mouth.read_end, 1000) == b"started\n"
        wait_until_shut(mouth)


def wait_until_shut(mouth: Mouth) -> None:
    """The last writer has been killed; the kernel closes its descriptors a moment later."""
    os.close(mouth.fd)
    mouth.fd = os.open(os.devnull, os.O_WRONLY)
    assert select.select([mouth.read_end], [], [], 30)[0], "somebody still has it"
    assert os.read(mouth.read_end, 1000) == b""


def test_a_cancelled_run_kills_and_reaps(run: Run, target: Running) -> None:
    async def main(mouth: Mouth) -> None:
        command = ["sh", "-c", "echo started; exec sleep inf"]
        task = asyncio.ensure_future(aio.run_in(target.pid, command, stdout=mouth.fd, stdin=PIPE, stderr=PIPE))
        assert await mouth.says() == b"started\n"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert mouth.is_shut()

    with Mouth() as mouth:
        run(main(mouth))


def test_a_cancelled_run_kills_its_group(run: Run, target: Running) -> None:
    async def main(mouth: Mouth) -> None:
        command = ["sh", "-c", "sleep 3600 & echo started; wait"]
        task = asyncio.ensure_future(aio.run_in(target.pid, command, stdout=mouth.fd, kill_group=True))
        assert await mouth.says() == b"started\n"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Mouth() as mouth:
        run(main(mouth))
        wait_until_shut(mouth)


def test_kill_group_ends_all_although_the_loop_has_not_noticed_yet_that_it_runs(run: Run, target: Running) -> None:
    async def main(mouth: Mouth) -> None:
        command = ["sh", "-c", "sleep 3600 & echo started; wait"]
        task = asyncio.ensure_future(aio.run_in(target.pid, command, stdout=mouth.fd, kill_group=True))
        await asyncio.sleep(0)  # launches
        assert os.read(mouth.read_end, 1000) == b"started\n"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with Mouth() as mouth:
        run(main(mouth))
        wait_until_shut(mouth)


def test_a_run_may_be_cancelled_at_any_moment(run: Run, target: Running) -> None:
    """Turn by turn of the loop, from before the launch to after the end; the guard sees what is left."""

    async def main() -> int:
        for turns in range(1000):
            task = asyncio.ensure_future(aio.run_in(target.pid, ["cat"], input=b"a", capture_output=True))
            for _ in range(turns):
                await asyncio.sleep(0)
            if task.done():
                assert task.result().stdout == b"a"
                return turns
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return 0

    assert run(main()) > 3


def test_a_run_that_is_thrown_away_leaves_nothing(run: Run, target: Running) -> None:
    async def main(mouth: Mouth) -> None:
        command = ["sh", "-c", "echo started; exec sleep inf"]
        coroutine = aio.run_in(target.pid, command, stdout=mouth.fd, stderr=PIPE)
        steps = coroutine.__await__()
        future = next(steps)
        while not select.select([mouth.read_end], [], [], 0)[0]:
            future._asyncio_future_blocking = False
            if not future.done():
                await asyncio.wait([future], timeout=0.01)
            if future.done():
                future = next(steps)
        steps.close()
        assert os.read(mouth.read_end, 1000) == b"started\n"
        assert mouth.is_shut()
        while len(asyncio.all_tasks()) > 1:  # closes the pipes
            await asyncio.sleep(0)

    with Mouth() as mouth:
        run(main(mouth))


# --- spawn_in -----------------------------------------------------------------------------------------------


def test_a_process_has_the_interface_of_asyncio(run: Run, target: Running) -> None:
    async def main() -> None:
        process = await aio.spawn_in(target.pid, ["cat"], stdin=PIPE, stdout=PIPE, stderr=PIPE)
        assert isinstance(process, asyncio.subprocess.Process)
        assert process.pid in children()
        assert process.returncode is None
        assert await process.communicate(b"hello") == (b"hello", b"")
        assert process.returncode == 0
        assert await process.wait() == 0
        for signal_again in (process.kill, process.terminate, lambda: process.send_signal(signal.SIGUSR1)):
            with pytest.raises(ProcessLookupError):
                signal_again()

    run(main())


def test_streams_talk_with_the_program(run: Run, target: Running) -> None:
    async def main() -> None:
        command = ["sh", "-c", "while read line; do echo got $line; echo log $line >&2; done; exit 4"]
        process = await aio.spawn_in(target.pid, command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for line in (b"one\n", b"two\n"):
            process.stdin.write(line)
            await process.stdin.drain()
            assert await process.stdout.readline() == b"got " + line
            assert await process.stderr.readline() == b"log " + line
        process.stdin.close()
        await process.stdin.wait_closed()
        assert await process.stdout.read() == b""
        assert await process.wait() == 4

    run(main())


def test_without_pipes_there_are_no_streams(run: Run, target: Running) -> None:
    async def main() -> None:
        process = await aio.spawn_in(target.pid, ["true"], stdin=DEVNULL)
        assert (process.stdin, process.stdout, process.stderr) == (None, None, None)
        assert await process.communicate() == (None, None)
        assert process.returncode == 0

    run(main())


def test_signals_reach_the_program_itself(run: Run, target: Running) -> None:
    async def main() -> None:
        command = ["sh", "-c", "trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done"]
        process = await aio.spawn_in(target.pid, command, stdout=PIPE)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGUSR1)
        assert await process.wait() == 9
        for method, number in (("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)):
            process = await aio.spawn_in(target.pid, ["sleep", "inf"])
            getattr(process, method)()
            assert await process.wait() == -number

    run(main())


def test_a_writer_waits_for_a_program_that_does_not_read(run: Run, target: Running) -> None:
    """cat cannot pass on more than pipes and buffers take, until we read."""

    async def main() -> None:
        process = await aio.spawn_in(target.pid, ["cat"], stdin=PIPE, stdout=PIPE, limit=1000)
        assert process.stdin is not None
        assert process.stdout is not None
        data = os.urandom(4 * MEGABYTE)
        process.stdin.write(data)
        drained = asyncio.ensure_future(process.stdin.drain())
        stdout = process.stdout
        assert await stdout.readexactly(1000) == data[:1000]
        assert not drained.done()
        rest = await stdout.readexactly(len(data) - 1000)
        assert rest == data[1000:]
        await drained
        process.stdin.close()
        assert await process.wait() == 0

    run(main())


def test_limit_bounds_a_line(run: Run, target: Running) -> None:
    async def main() -> None:
        process = await aio.spawn_in(target.pid, ["sh", "-c", "echo 123456789"], stdout=PIPE, limit=4)
        assert process.stdout is not None
        with pytest.raises(ValueError, match="limit"):
            await process.stdout.readline()
        await process.communicate()

    run(main())


def test_wait_returns_although_a_survivor_holds_the_pipe(run: Run, target: Running) -> None:
    async def main() -> None:
        process = await aio.spawn_in(target.pid, ["sh", "-c", "sleep 3600 & echo $!"], stdout=PIPE, stdin=PIPE)
        assert process.stdout is not None
        survivor = int(await process.stdout.readline())
        assert await process.wait() == 0
        nsjoin.run_in(target.pid, ["sh", "-c", f"kill -9 {survivor}"], check=True)
        assert await process.stdout.read() == b""

    run(main())


def test_a_cancelled_wait_leaves_the_program_alone(run: Run, target: Running) -> None:
    async def main() -> None:
        process = await aio.spawn_in(target.pid, ["cat"], stdin=PIPE)
        waiters = [asyncio.ensure_future(process.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        await asyncio.sleep(0)
        assert process.returncode is None
        await process.communicate(b"")
        assert waiters[0].cancelled()
        assert await asyncio.gather(*waiters[1:]) == [0, 0]

    run(main())


def test_process_that_is_never_awaited_is_reaped(run: Run, target: Running) -> None:
    async def main() -> None:
        process = await aio.spawn_in(target.pid, ["true"])
        pid = process.pid
        del process
        while pid in children():
            await asyncio.sleep(0.001)

    run(main())


def test_the_transport_closes_as_asyncios_does(run: Run, target: Running) -> None:
    async def main() -> None:
        process = await aio.spawn_in(target.pid, ["cat"], stdin=PIPE, stdout=PIPE)
        transport: Any = process._transport  # type: ignore[attr-defined]
        assert isinstance(transport, asyncio.SubprocessTransport)
        assert transport.get_extra_info("subprocess").pid == process.pid == transport.get_pid()
        assert not transport.is_closing()
        transport.close()
        transport.close()
        assert transport.is_closing()
        assert await process.wait() == -signal.SIGKILL

    run(main())


# --- the start ----------------------------------------------------------------------------------------------


def test_an_exec_that_is_held_up_does_not_hold_up_the_loop(run: Run, target: Running, held: Held) -> None:
    async def main() -> None:
        task = asyncio.ensure_future(aio.run_in(target.pid, [held.path], namespaces=NO_MNT))
        await reached()
        other = await aio.run_in(target.pid, ["echo", "meanwhile"], stdout=PIPE)
        assert other.stdout == b"meanwhile\n"
        assert not task.done()
        held.release()
        assert (await task).returncode == 0

    run(main())


@pytest.mark.parametrize("start", [aio.run_in, aio.spawn_in])
def test_a_start_that_is_cancelled_leaves_nothing(start: Any, run: Run, target: Running, held: Held) -> None:
    async def main() -> None:
        pipes = {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE}
        task = asyncio.ensure_future(start(target.pid, [held.path], namespaces=NO_MNT, **pipes))
        await reached()
        before = len(children())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(children()) == before - (1 if "pid" not in NO_MNT else 2)  # the joiner and the program to be

    run(main())


def test_a_start_that_is_thrown_away_leaves_nothing(run: Run, target: Running, held: Held) -> None:
    async def main() -> None:
        coroutine = aio.run_in(target.pid, [held.path], namespaces=NO_MNT)
        steps = coroutine.__await__()
        next(steps)
        await reached()
        steps.close()

    run(main())


def test_a_timeout_counts_from_the_start(run: Run, target: Running, held: Held) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run(aio.run_in(target.pid, [held.path], namespaces=NO_MNT, timeout=0.05, capture_output=True))


def test_errors_are_those_of_popen(run: Run, target: Running, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    keywords: dict[str, Any] = {"namespaces": NO_MNT, "stdin": PIPE, "stdout": PIPE, "stderr": PIPE}

    async def main(start: Any) -> None:
        with pytest.raises(FileNotFoundError) as missing:
            await start(target.pid, ["/nonexistent"], **keywords)
        assert missing.value.filename == "/nonexistent"
        with pytest.raises(PermissionError):
            await start(target.pid, [str(plain)], **keywords)
        with pytest.raises(FileNotFoundError) as missing:
            await start(target.pid, ["true"], cwd="/nonexistent", **keywords)
        assert missing.value.filename == "/nonexistent"
        with pytest.raises(nsjoin.TargetGoneError):
            await start(ended(), ["true"])
        with pytest.raises(nsjoin.NamespaceNotFoundError):
            await start("/nonexistent", ["true"])
        with pytest.raises(ValueError, match="embedded null byte"):
            await start(target.pid, ["a\0b"], stdout=PIPE)

    for start in (aio.run_in, aio.spawn_in):
        run(main(start))


def ended() -> int:
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


@pytest.mark.parametrize(
    "keywords",
    [
        {"text": True},
        {"universal_newlines": True},
        {"encoding": "utf-8"},
        {"errors": "strict"},
        {"bufsize": 1},
        {"bufsize": -1},
    ],
)
def test_text_and_buffers_are_refused_as_by_asyncio(keywords: dict[str, Any], target: Running) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="must be") as theirs:
            await asyncio.create_subprocess_exec("true", **keywords)
        for start in (aio.run_in, aio.spawn_in):
            with pytest.raises(ValueError, match="must be") as ours:
                await start(target.pid, ["true"], **keywords)
            assert ours.value.args == theirs.value.args

    run_in_loop(asyncio.SelectorEventLoop, main())  # uvloop has words of its own


def test_bad_arguments_start_nothing(run: Run, target: Running) -> None:
    async def main() -> None:
        with pytest.raises(TypeError):
            await aio.run_in(target.pid, ["cat"], input="text")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="input"):
            await aio.run_in(target.pid, ["cat"], input=b"a", stdin=PIPE)
        with pytest.raises(ValueError, match="capture_output"):
            await aio.run_in(target.pid, ["cat"], capture_output=True, stdout=PIPE)
        for start in (aio.run_in, aio.spawn_in):
            with pytest.raises(TypeError, match="preexec_fn"):
                await start(target.pid, ["true"], preexec_fn=print)  # type: ignore[call-arg]
            with pytest.raises(ValueError, match="args is empty"):
                await start(target.pid, [])
            with pytest.raises(TypeError):
                await start(target.pid, ["true"], no_such_keyword=1)  # type: ignore[call-arg]
            with pytest.raises(ValueError, match="positive"):
                await start(0, ["true"])

    run(main())


@requires_root
def test_names_of_users_and_groups_are_the_targets(run: Run, start: Callable[..., Running], tmp_path: Path) -> None:
    passwd, group = tmp_path / "passwd", tmp_path / "group"
    passwd.write_text("somebody:x:4321:4321::/:/bin/sh\n")
    group.write_text("some:x:4322:\nmore:x:4323:\n")
    program = f"mount --bind {passwd} /etc/passwd && mount --bind {group} /etc/group && echo done; exec sleep inf"
    one = start("mnt", program=program)
    assert one.process.stdout is not None
    assert one.process.stdout.readline() == "done\n"
    who: dict[str, Any] = {"user": "somebody", "group": "some", "extra_groups": iter(["more"])}
    done = run(aio.run_in(one.pid, ["sh", "-c", "id -u; id -g; id -G"], stdout=PIPE, **who))
    assert done.stdout.split() == [b"4321", b"4322", b"4322", b"4323"]
    with pytest.raises(KeyError, match="nobody"):
        run(aio.run_in(one.pid, ["true"], user="nobody"))


# --- loops, threads, signals --------------------------------------------------------------------------------


def test_a_loop_in_another_thread_will_do(run: Run, target: Running) -> None:
    results: list[Any] = []

    def work() -> None:
        results.append(run(aio.run_in(target.pid, ["sh", "-c", "cat; exit 6"], input=b"a", capture_output=True)))

    thread = threading.Thread(target=work)
    thread.start()
    own = f"/proc/self/task/{thread.native_id}"
    thread.join()
    while os.path.exists(own):  # its own pidfd is closed when the kernel's thread ends, after Python's
        pass
    assert (results[0].returncode, results[0].stdout) == (6, b"a")


def test_no_thread_or_sigchld_handler_is_needed_to_wait(run: Run, target: Running) -> None:
    async def main() -> None:
        handler, threads = signal.getsignal(signal.SIGCHLD), threading.active_count()
        process = await aio.spawn_in(target.pid, ["cat"], stdin=PIPE, stdout=PIPE)
        assert threading.active_count() == threads
        assert signal.getsignal(signal.SIGCHLD) == handler
        await process.communicate(b"")

    run(main())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EMFILE])
def test_without_pidfds_a_thread_waits(number: int, run: Run, target: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """This kernel has pidfds, so what it would say without is put in its place."""

    def refuse(pid: int, flags: int = 0) -> int:
        raise OSError(number, os.strerror(number))

    async def main() -> None:
        with nsjoin.Target.from_pid(target.pid) as pinned:
            monkeypatch.setattr(calls, "pidfd_open", refuse)
            done = await aio.run_in(pinned, ["sh", "-c", "exec >&-; sleep 0.01; exit 7"], stdout=PIPE)
            assert done.returncode == 7
            process = await aio.spawn_in(pinned, ["cat"], stdin=PIPE, stdout=PIPE)
            process.kill()
            assert await process.wait() == -signal.SIGKILL
            task = asyncio.ensure_future(aio.run_in(pinned, ["sleep", "inf"]))
            while len(children()) < 2 and not task.done():
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        monkeypatch.undo()

    run(main())


def test_a_lost_exit_status_is_said(run: Run, target: Running) -> None:
    usual = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(ChildProcessError, match="status is lost"):
            run(aio.run_in(target.pid, ["sh", "-c", "exit 7"], stdout=PIPE))
    finally:
        signal.signal(signal.SIGCHLD, usual)


@pytest.fixture
def room_for_descriptors() -> Iterator[None]:
    """200 programs at a time hold some 1,500 descriptors; before Linux 6.11 up to 4,500, as each start has its target's
    namespaces open. An ordinary user's soft limit is 1,024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_at_once(run: Run, target: Running, room_for_descriptors: None) -> None:
    async def one(number: int, room: asyncio.Semaphore, pinned: nsjoin.Target) -> None:
        async with room:
            command = ["sh", "-c", f"cat; echo err{number} >&2; exit {number % 100}"]
            done = await aio.run_in(pinned, command, input=b"%d" % number * 100, capture_output=True)
            assert done.returncode == number % 100
            assert done.stdout == b"%d" % number * 100
            assert done.stderr == b"err%d\n" % number

    async def main() -> None:
        room = asyncio.Semaphore(200)
        with nsjoin.Target.from_pid(target.pid) as pinned:
            await asyncio.gather(*[one(number, room, pinned) for number in range(1000)])

    run(main())


def test_importing_nsjoin_does_not_import_asyncio() -> None:
    code = "import sys, nsjoin; assert 'asyncio' not in sys.modules; import nsjoin.aio; assert nsjoin.aio.run_in"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_loop_that_is_closed_too_early_leaves_no_descriptor(run: Run, target: Running) -> None:
    """Popen warns of the program that still runs, as subprocess does; the pidfd is closed all the same."""
    kept: list[Any] = []

    async def main() -> None:
        kept.append(await aio.spawn_in(target.pid, ["sleep", "inf"]))

    run(main())
    popen = kept.pop()._transport.get_extra_info("subprocess")
    gc.collect()
    popen.kill()
    popen.wait()
