"""``call_in``: a function of this program, run inside."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import logging
import os
import pickle
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from changed import drop_capability, prctl
from child import bring_loopback_up, children, in_child, wait_until_ended
from conftest import IS_ROOT, requires_root

import nsjoin
from nsjoin import CallDiedError, CallExitError, CallResultError
from nsjoin._engine import answer, forked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TYPES = ("mnt", "uts", "ipc", "net", "pid", "cgroup")
#: without pid one fork, with pid two
NET, PID = (("net",), ("pid",)) if IS_ROOT else (("user", "net"), ("user", "pid"))
#: As root, the target here is a plain unshare(1) with all of our capabilities: call_in wants to hear that we trust it.
call_in = partial(nsjoin.call_in, trust_target=True)
call_in_loop = partial(nsjoin.aio.call_in, trust_target=True)
BOTH = pytest.mark.parametrize("namespaces", [NET, PID])


def test_it_is_really_inside(target):
    assert 1 < call_in(target.pid, os.getpid) < 100
    pids = call_in(target.pid, lambda: sorted(int(name) for name in os.listdir("/proc") if name.isdigit()))
    assert pids[0] == 1
    assert len(pids) < 5
    for nstype in TYPES:
        inside = call_in(target.pid, lambda nstype=nstype: os.stat(f"/proc/self/ns/{nstype}").st_ino)
        assert inside == os.stat(f"/proc/{target.pid}/ns/{nstype}").st_ino


def test_all_eight_types(start):
    running = start("mnt", "uts", "ipc", "net", "pid", "cgroup", "time", "user")
    names = [*TYPES, "time", "user"]
    inside = call_in(running.pid, lambda: {name: os.stat(f"/proc/self/ns/{name}").st_ino for name in names})
    assert inside == {name: os.stat(f"/proc/{running.pid}/ns/{name}").st_ino for name in names}
    assert call_in(running.pid, lambda: (os.getuid(), os.getgid(), os.getcwd())) == (0, 0, "/")


@BOTH
def test_closures_and_arguments_are_not_pickled(target, namespaces):
    lock = threading.Lock()  # cannot be pickled
    assert call_in(target.pid, lambda a, b: (a, b, lock.locked()), 1, {2}, namespaces=namespaces) == (1, {2}, False)


@BOTH
def test_an_exception_keeps_type_message_and_traceback(target, namespaces):
    def where_it_fails():
        raise LookupError("no such thing", 7)

    with pytest.raises(LookupError) as caught:
        call_in(target.pid, where_it_fails, namespaces=namespaces)
    assert caught.value.args == ("no such thing", 7)
    assert "in where_it_fails" in str(caught.value.__cause__)
    assert 'raise LookupError("no such thing", 7)' in str(caught.value.__cause__)


@BOTH
def test_what_has_no_result_says_why(target, namespaces):
    def call(func, *args):
        return call_in(target.pid, func, *args, namespaces=namespaces)

    with pytest.raises(CallResultError, match="the result cannot be pickled: .*lambda"):
        call(lambda: lambda: 1)
    with pytest.raises(CallExitError, match=r"called sys\.exit\('bye'\)"):
        call(sys.exit, "bye")
    with pytest.raises(CallExitError, match="exit status 3: os._exit") as caught:
        call(os._exit, 3)
    assert caught.value.returncode == 3
    with pytest.raises(CallDiedError, match="signal 9 .SIGKILL.") as died:
        call(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert died.value.returncode == -signal.SIGKILL
    with pytest.raises(CallDiedError, match="SIGUSR1"):
        call(lambda: os.kill(os.getpid(), signal.SIGUSR1))


class UnpicklableError(Exception):
    def __reduce__(self):
        raise TypeError("not me")


class NotHereError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")  # pickled as one argument, made with two


@BOTH
def test_exception_that_cannot_be_transferred_arrives_as_text(target, namespaces):
    def fail(kind, *args):
        raise kind(*args)

    with pytest.raises(CallResultError, match=r"(?s)the exception cannot be pickled .not me.*in fail"):
        call_in(target.pid, fail, UnpicklableError, namespaces=namespaces)
    with pytest.raises(CallResultError, match="cannot be unpickled here"):
        call_in(target.pid, fail, NotHereError, 1, 2, namespaces=namespaces)


@BOTH
def test_a_timeout_kills_the_child(target, namespaces):
    with pytest.raises(TimeoutError, match=r"after 0\.2 seconds"):
        call_in(target.pid, signal.pause, namespaces=namespaces, timeout=0.2)
    with pytest.raises(TimeoutError):
        call_in(target.pid, lambda: os.kill(os.getpid(), signal.SIGSTOP), namespaces=namespaces, timeout=0.2)


@BOTH
def test_ctrl_c_kills_the_child(target, namespaces):
    def interrupt(*_args):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            call_in(target.pid, signal.pause, namespaces=namespaces)
    finally:
        signal.signal(signal.SIGALRM, before)


@requires_root
def test_when_the_caller_dies_the_child_does(target):
    read, write = os.pipe()
    caller = os.fork()
    if caller == 0:
        os.close(read)

        def hold():
            os.write(write, b"inside")
            signal.pause()

        with contextlib.suppress(BaseException):
            call_in(target.pid, hold, namespaces=("pid",))
        os._exit(0)
    os.close(write)
    assert os.read(read, 10) == b"inside"
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    assert os.read(read, 1) == b""  # hangs up once nobody holds the other end: child and the one in the middle
    os.close(read)


@BOTH
def test_sockets_and_files_come_back_as_descriptors(target, namespaces, tmp_path):
    (tmp_path / "read").write_text("one\ntwo\n")

    def make():
        text = open(tmp_path / "read")
        assert text.readline() == "one\n"
        binary = open(tmp_path / "written", "wb")
        binary.write(b"before ")
        made, peer = socket.socketpair()
        made.settimeout(5)
        return {"text": text, "deep": [(binary,)], "pair": (made, peer)}

    result = call_in(target.pid, make, namespaces=namespaces)
    text, binary, (made, peer) = result["text"], result["deep"][0][0], result["pair"]
    with text, binary, made, peer:
        assert text.readline() == "two\n"
        binary.write(b"after")
        made.send(b"through")
        assert peer.recv(10) == b"through"
        assert made.gettimeout() == 5
        assert not os.get_inheritable(made.fileno())
    assert (tmp_path / "written").read_bytes() == b"before after"


def test_a_listening_socket_lives_in_the_targets_net_namespace(start):
    running = start("net", "user")
    call_in(running.pid, bring_loopback_up)

    def listen_inside():
        return socket.create_server(("127.0.0.1", 80))

    with call_in(running.pid, listen_inside) as server:
        served = threading.Thread(target=lambda: serve_once(server))
        served.start()
        done = nsjoin.run_in(running.pid, [sys.executable, "-c", CLIENT], capture_output=True, check=True)
        served.join()
    assert done.stdout == b"from outside"


CLIENT = "import socket, sys; sys.stdout.write(socket.create_connection(('127.0.0.1', 80)).recv(100).decode())"


def serve_once(server):
    connection, _ = server.accept()
    with connection:
        connection.send(b"from outside")


def test_too_many_or_closed_descriptors_are_an_error(target):
    with pytest.raises(CallResultError, match="253"):
        call_in(target.pid, lambda: [open("/dev/null") for _ in range(254)], namespaces=NET)
    closed = socket.socket()
    closed.close()
    with pytest.raises(CallResultError, match="closed socket"):
        call_in(target.pid, lambda: closed, namespaces=NET)


PLAIN = [None, True, -5, 2**100, 0.5, "text \ud800", b"\0", bytearray(b"x"), (1, [2]), {3, frozenset({4})}, {(5,): {}}]


@BOTH
def test_plain_results_come_without_pickle(target, namespaces, monkeypatch):
    monkeypatch.setattr(pickle, "dumps", None)  # in the child too, which is a copy
    monkeypatch.setattr(pickle, "loads", None)
    for result in ("any", "data"):
        assert call_in(target.pid, lambda: PLAIN, namespaces=namespaces, result=result) == PLAIN


def test_what_is_one_object_stays_one_unless_data_is_asked_for(target):
    def twice():
        one = [1]
        return one, one

    first, second = call_in(target.pid, twice, namespaces=NET)
    assert first is second
    first, second = call_in(target.pid, twice, namespaces=NET, result="data")
    assert (first, second) == ([1], [1])
    assert first is not second


class OfOurs:
    def __eq__(self, other):
        return isinstance(other, OfOurs)


def test_with_data_only_a_result_that_needs_pickle_is_refused_by_its_type(target):
    assert call_in(target.pid, OfOurs, namespaces=NET) == OfOurs()
    with pytest.raises(CallResultError, match=r'not what result="data" takes: test_call\.OfOurs is no data'):
        call_in(target.pid, lambda: [OfOurs()], namespaces=NET, result="data")
    with pytest.raises(CallResultError, match="253"):
        call_in(target.pid, lambda: [open("/dev/null") for _ in range(254)], namespaces=NET, result="data")
    made, text = call_in(target.pid, lambda: (socket.socket(), "x" * (1 << 20)), namespaces=NET, result="data")
    with made:
        assert made.family == socket.AF_INET
    assert len(text) == 1 << 20
    with pytest.raises(ValueError, match="result is one of any, data, not 'json'"):
        call_in(target.pid, os.getpid, result="json")


def test_a_pickle_in_place_of_data_is_refused_by_the_caller(target, monkeypatch):
    monkeypatch.setattr(answer, "of_result", lambda *_, **__: (answer.PICKLE, pickle.dumps(OfOurs()), ()))
    assert call_in(target.pid, os.getpid, namespaces=NET) == OfOurs()
    with pytest.raises(CallResultError, match='result="data" refuses'):
        call_in(target.pid, os.getpid, namespaces=NET, result="data")


class OwnError(Exception):
    pass


def test_with_data_only_builtin_exceptions_arrive_and_others_become_text(target):
    def fail(exception):
        raise exception

    for exception in (KeyError("key"), OSError(2, "no", "file"), UnicodeDecodeError("utf-8", b"x", 0, 1, "why")):
        with pytest.raises(type(exception)) as caught:
            call_in(target.pid, fail, exception, namespaces=NET, result="data")
        assert str(caught.value) == str(exception)
        assert "in fail" in str(caught.value.__cause__)
    with pytest.raises(CallResultError, match=r"(?s)raised test_call\.OwnError: mine; .*no built-in.*in fail"):
        call_in(target.pid, fail, OwnError("mine"), namespaces=NET, result="data")
    with pytest.raises(OwnError, match="mine"):
        call_in(target.pid, fail, OwnError("mine"), namespaces=NET)


def test_large_results(target):
    for size in (1000, 100 << 10, 200 << 10, 300 << 10, 20 << 20):
        assert len(call_in(target.pid, lambda size=size: bytes(size), namespaces=NET)) == size
    made, text = call_in(target.pid, lambda: (socket.socket(), "x" * (1 << 20)), namespaces=NET)
    with made:
        assert made.family == socket.AF_INET
    assert len(text) == 1 << 20


@BOTH
def test_pythons_fork_hooks_have_run(target, namespaces):
    ran = []
    os.register_at_fork(after_in_child=lambda: ran.append(os.getpid()))
    random.seed(1)
    here = random.Random(1).random()

    def look():
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            return "a running loop"
        logging.getLogger("nsjoin.test").debug("its locks are whole")
        return (len(ran), threading.current_thread() is threading.main_thread(), threading.active_count())

    forks = 1 if IS_ROOT or "pid" not in namespaces else 2  # a thread cannot go into a user namespace to fork there
    assert call_in(target.pid, look, namespaces=namespaces) == (forks, True, 1)
    assert random.random() == here
    assert ran == []


def test_what_is_printed_is_printed_once(target, capfd):
    print("before", end=" ")
    call_in(target.pid, lambda: print("inside", end=" "), namespaces=PID)
    print("after")
    assert capfd.readouterr().out == "before inside after\n"


@requires_root
def test_inside_enter_the_child_is_still_the_callers(start, target):
    other = start("pid")
    with nsjoin.enter(other.pid, "pid"):
        inside = call_in(target.pid, lambda: os.stat("/proc/self/ns/pid").st_ino, namespaces=("pid", "mnt"))
    assert inside == os.stat(f"/proc/{target.pid}/ns/pid").st_ino


def test_inside_enter_a_call_that_does_not_ask_for_pid_is_made_there(start, target):
    if not IS_ROOT:
        pytest.skip("entering a PID namespace is for root")
    other = start("pid")
    with nsjoin.enter(other.pid, "pid"):
        inside = call_in(target.pid, lambda: os.stat("/proc/self/ns/net").st_ino, namespaces=("net",))
        assert 1 < call_in(target.pid, os.getpid, namespaces=("net",)) < 100
    assert inside == os.stat(f"/proc/{target.pid}/ns/net").st_ino


def children_are_born_in():
    return os.stat("/proc/thread-self/ns/pid_for_children").st_ino


@requires_root
def test_hooks_of_others_run_while_this_thread_is_at_home(target):
    seen = []
    is_watching = True

    def look():
        if is_watching:
            seen.append(children_are_born_in())

    os.register_at_fork(before=look, after_in_parent=look)
    try:
        call_in(target.pid, os.getpid, namespaces=("pid",))
    finally:
        is_watching = False
    assert seen == [children_are_born_in()] * 2


@requires_root
def test_a_child_that_is_born_inside_ends_when_its_caller_has_ended_before(target):
    """Held in a fork hook of Python's until its caller is gone, which PR_SET_PDEATHSIG then does not tell any more."""
    ran_reader, ran_writer = os.pipe()
    go_reader, go_writer = os.pipe()

    def hold():
        os.write(ran_writer, b"born")
        os.read(go_reader, 1)

    caller = os.fork()
    if caller == 0:
        os.close(go_writer)
        os.close(ran_reader)
        os.register_at_fork(after_in_child=hold)
        call_in(target.pid, lambda: os.write(ran_writer, b"called"), namespaces=("pid",))
        os._exit(0)
    os.close(ran_writer)
    assert os.read(ran_reader, 10) == b"born"
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    os.write(go_writer, b"x")
    assert os.read(ran_reader, 10) == b""
    for fd in (ran_reader, go_reader, go_writer):
        os.close(fd)


def test_a_child_that_dies_is_noticed_while_another_call_holds_a_copy_of_its_socket(target):
    """The second child is forked while the first call's socket is open, and lives until we let it go."""
    born, first_goes, second_goes = os.pipe(), os.pipe(), os.pipe()

    def first():
        os.write(born[1], b"1")
        os.read(first_goes[0], 1)
        os.kill(os.getpid(), signal.SIGKILL)

    def second():
        os.write(born[1], b"2")
        os.read(second_goes[0], 1)

    async def main():
        loop = asyncio.get_running_loop()
        calls = []
        for func in (first, second):
            calls.append(asyncio.ensure_future(call_in_loop(target.pid, func, namespaces=NET)))
            await loop.run_in_executor(None, os.read, born[0], 1)
        os.write(first_goes[1], b"x")
        with pytest.raises(CallDiedError):
            await calls[0]
        os.write(second_goes[1], b"x")
        await calls[1]

    asyncio.run(main())
    for fd in (*born, *first_goes, *second_goes):
        os.close(fd)


def test_join_errors_are_those_of_spawn_in(target, start):
    gone = start("net", "pid")
    gone.end()
    with pytest.raises(nsjoin.TargetGoneError):
        call_in(gone.pid, os.getpid)
    with pytest.raises(ValueError, match="unknown namespace type"):
        call_in(target.pid, os.getpid, namespaces=("nope",))
    with pytest.raises(TypeError):
        call_in(None, os.getpid)


@requires_root
def test_dead_pid_namespace_is_explained(start):
    running = start("pid")
    with nsjoin.Namespace.from_pid(running.pid, "pid") as namespace:
        running.end()
        with pytest.raises(nsjoin.JoinError, match="init process of this PID namespace has ended"):
            call_in(namespace, os.getpid)


def test_the_child_cannot_be_looked_into(target):
    get_dumpable = 3
    assert call_in(target.pid, lambda: ctypes.CDLL(None).prctl(get_dumpable, 0, 0, 0, 0)) == 0


def test_many_calls_leave_nothing(target):
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in range(50):
        assert call_in(target.pid, lambda number=number: number) == number
    assert len(os.listdir("/proc/self/fd")) == descriptors


# --- the process in the middle ----------------------------------------------------------------------------------------

CAP_SYS_PTRACE, PR_SET_CHILD_SUBREAPER = 19, 36


def fork_twice() -> None:
    """From here on a call with pid has a process in the middle, as for an ordinary user: fork.c, "born inside"."""
    if IS_ROOT:
        drop_capability(CAP_SYS_PTRACE)


def as_a_subreaper() -> None:
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    fork_twice()


@pytest.fixture
def place(target) -> Iterator[Any]:
    """aio.call_in into the target's PID namespace; opened before, since it takes the capability that is dropped."""
    if not IS_ROOT:
        yield functools.partial(nsjoin.aio.call_in, target.pid, namespaces=PID)
        return
    with nsjoin.Namespace.from_pid(target.pid, "pid") as namespace:
        yield functools.partial(nsjoin.aio.call_in, namespace, trust_target=True)


def test_more_than_1024_descriptors(place):
    """select(2) has room for no more."""

    def calls() -> int:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        many = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(1100)]
        try:
            return asyncio.run(place(os.getpid))
        finally:
            for fd in many:
                os.close(fd)

    assert 1 < in_child(calls, fork_twice) < 1000


async def heard(told: int, call: asyncio.Future[Any]) -> None:
    """Wait until somebody inside says that it is there."""
    loop = asyncio.get_running_loop()
    here = loop.create_future()
    loop.add_reader(told, lambda: here.done() or here.set_result(os.read(told, 9)))
    await asyncio.wait({call, here}, return_when=asyncio.FIRST_COMPLETED)
    loop.remove_reader(told)
    assert here.done(), call.result()


def disturbed(
    call_there: Callable[..., Any], function: Callable[[int], object], disturb: Callable[..., object]
) -> tuple[str, set[int]]:
    """How a call of a subreaper's ends after ``disturb(middle, call)``, and the children that it leaves."""
    told, tell = os.pipe()
    other = subprocess.Popen(["true"])  # a zombie that is not the call's to reap
    wait_until_ended(other.pid)

    async def main() -> str:
        call = asyncio.ensure_future(call_there(function, tell))
        await heard(told, call)
        (middle,) = children() - {other.pid}
        assert len(children(middle)) == 1
        disturb(middle, call)
        try:
            return f"{await call}"
        except (CallDiedError, asyncio.CancelledError) as ended:
            return type(ended).__name__

    outcome = asyncio.run(main())
    left = children() - {other.pid}
    assert other.wait() == 0
    os.close(told)
    os.close(tell)
    for orphan in left:
        os.kill(orphan, signal.SIGKILL)
        os.waitpid(orphan, 0)
    return outcome, left


def hold(tell: int) -> None:
    os.write(tell, b"here")
    signal.pause()


def kill(middle: int, _call: object) -> None:
    os.kill(middle, signal.SIGKILL)


def stop_and_cancel(middle: int, call: asyncio.Future[Any]) -> None:
    """It does not do what the caller asks it to, and is killed by the caller."""
    os.kill(middle, signal.SIGSTOP)
    call.cancel()


DISTURBED = pytest.mark.parametrize(
    ("disturb", "outcome"), [(kill, "CallDiedError"), (stop_and_cancel, "CancelledError")]
)


@DISTURBED
def test_what_a_killed_middle_leaves_to_a_subreaper_is_reaped(place, disturb, outcome):
    """Unreaped, it would keep the target's PID namespace from ending."""
    assert in_child(lambda: disturbed(place, hold, disturb), as_a_subreaper) == (outcome, set())


@DISTURBED
def test_without_the_search_the_killed_middle_stays(place, disturb, outcome, monkeypatch):
    monkeypatch.setattr(forked.Call, "_end_what_is_left_behind", lambda _: None)
    ended, left = in_child(lambda: disturbed(place, hold, disturb), as_a_subreaper)
    assert ended == outcome
    assert len(left) == 1


@DISTURBED
def test_it_is_also_reaped_where_a_hook_still_holds_it(place, disturb, outcome):
    """It has told of its birth before any hook of Python's, and is not tied to the one in the middle yet."""
    forks: list[int] = []
    told: list[int] = []

    def hold_the_second() -> None:
        forks.append(os.getpid())
        if len(forks) == 2:
            hold(told[0])

    def call() -> tuple[str, set[int]]:
        os.register_at_fork(after_in_child=hold_the_second)

        def call_there(_function: object, tell: int) -> Any:
            told.append(tell)
            return place(os.getpid)

        return disturbed(call_there, hold, disturb)

    assert in_child(call, as_a_subreaper) == (outcome, set())


# --- aio.call_in ------------------------------------------------------------------------------------------------------


def test_the_loop_goes_on_while_it_waits(target):
    # all five are inside at once, and wait there for what only the loop will say
    inside, say_inside = os.pipe()
    hear, say = os.pipe()

    def function(number):
        os.write(say_inside, b"i")
        return os.read(hear, 1), number

    async def main():
        calls = [asyncio.ensure_future(call_in_loop(target.pid, function, n, timeout=60)) for n in range(5)]
        said = b""
        while len(said) < len(calls):
            assert not any(call.done() for call in calls)
            await asyncio.sleep(0.001)
            if select.select([inside], [], [], 0)[0]:
                said += os.read(inside, len(calls))
        os.write(say, b"s" * len(calls))
        return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [(b"s", number) for number in range(5)]
    for fd in (inside, say_inside, hear, say):
        os.close(fd)


def test_cancellation_and_timeout_kill_the_child(target):
    read, write = os.pipe()

    def pause():
        os.write(write, b"inside")
        signal.pause()

    async def main():
        call = asyncio.ensure_future(call_in_loop(target.pid, pause))
        assert await asyncio.get_running_loop().run_in_executor(None, os.read, read, 10) == b"inside"
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(TimeoutError):
            await call_in_loop(target.pid, signal.pause, timeout=0.2)
        with pytest.raises(ZeroDivisionError):
            await call_in_loop(target.pid, lambda: 1 / 0)

    asyncio.run(main())
    os.close(read)
    os.close(write)


def test_a_loop_can_be_run_inside(target):
    async def inside():
        await asyncio.sleep(0)
        return os.getpid()

    async def main():
        return await call_in_loop(target.pid, lambda: asyncio.run(inside()))

    assert asyncio.run(main()) < 100
