"""Stays of ``enter`` that end in another order, or in another thread, than they began: generators, tasks, greenlets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from changed import in_child, in_thread, join
from conftest import requires_root

import nsjoin
from nsjoin import enter
from nsjoin._engine import stays
from nsjoin._kernel import procfs
from nsjoin._target.namespace import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

TYPES = ("mnt", "uts", "ipc", "net", "pid", "cgroup")


def here(nstype: str = "net") -> str:
    return os.readlink(f"/proc/thread-self/ns/{nstype}")


def net_of(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


@pytest.fixture
def places(start):
    """Two targets; and afterwards no thread is inside of anything."""
    yield start(*TYPES), start(*TYPES)
    assert stays._stacks == {}


def hold(context: enter) -> Generator[None]:
    with context:
        yield


def suspended(context: enter) -> Generator[None]:
    generator = hold(context)
    next(generator)
    return generator


class State:
    """All that a stay may change of this thread; opened outside, since /proc may be another's inside."""

    def __init__(self) -> None:
        self.directory = os.open("/proc/thread-self", os.O_RDONLY)
        self.names = sorted(os.listdir("/proc/thread-self/ns"))

    def now(self) -> object:
        links = {name: os.readlink(f"ns/{name}", dir_fd=self.directory) for name in self.names}
        place = [os.stat(name, dir_fd=self.directory)[:3] for name in ("root", "cwd")]
        return links, place, getattr(procfs._thread, "allowed", None)


@contextlib.contextmanager
def state():
    opened = State()
    try:
        yield opened
    finally:
        os.close(opened.directory)


# --- generators ---------------------------------------------------------------------------------------------


@requires_root
@pytest.mark.parametrize("nstypes", [*((nstype,) for nstype in TYPES), TYPES], ids="+".join)
def test_generators_closed_in_the_order_they_were_entered_bring_the_thread_back(places, nstypes, tmp_path, monkeypatch):
    """Of every type; with mnt that includes root, working directory, and what may be imported."""
    monkeypatch.chdir(tmp_path)
    one, other = places
    with state() as thread, nsjoin.Target.from_pid(other.pid) as target:
        before = thread.now()
        first = suspended(enter(one.pid, *nstypes))
        second = suspended(enter(target, *nstypes, allow_imports=True))
        inside = thread.now()
        with pytest.raises(RuntimeError, match="was left before") as caught:
            first.close()
        assert thread.now() == inside != before
        second.close()
        assert thread.now() == before
        assert os.getcwd() == str(tmp_path)
    said = str(caught.value)
    assert said.startswith(
        f"enter(process {one.pid}, {'+'.join(sorted(nstypes, key=TYPES.index))}) was left before"
    ) or (set(said.partition(")")[0].rpartition(" ")[2].split("+")) == set(nstypes))
    assert f"enter(process {other.pid}, " in said
    assert "NamespaceExecutor" in said


@requires_root
def test_without_the_stack_the_thread_stays_in_the_second_namespace(places, monkeypatch):
    """What each exit did before: go back to where its own entry came from."""

    def end(stay: stays.Stay) -> tuple[()]:
        stay.is_left = True
        assert stay.stack is not None
        stays.leave(stay.c)
        stay.stack.remove(stay)
        stay.stack = None
        return ()

    def test() -> None:
        monkeypatch.setattr(stays, "end", end)
        before = here()
        first, second = (suspended(enter(one.pid, "net")) for one in places)
        first.close()
        assert here() == before  # but second goes on as if it were inside
        second.close()
        assert here() == net_of(places[0].pid) != before

    in_child(test)


@requires_root
def test_three_generators_in_any_order(places):
    orders = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    before = here()
    for order in orders:
        generators = [suspended(enter(place.pid, "net")) for place in (*places, places[0])]
        left: list[int] = []
        for number in order:
            is_last = set(range(number + 1, 3)) <= set(left)
            with contextlib.nullcontext() if is_last else pytest.raises(RuntimeError, match="was left before"):
                generators[number].close()
            left.append(number)
        assert here() == before, order


@requires_root
def test_types_of_both_are_named_and_each_comes_back(places):
    one, other = places
    before = here("uts"), here("net")
    first = suspended(enter([f"/proc/{one.pid}/ns/uts", f"/proc/{one.pid}/ns/net"]))
    with nsjoin.Namespace.from_pid(other.pid, "net") as net:
        second = suspended(enter(net))
        words = describe(net)
    with pytest.raises(RuntimeError) as caught:
        first.close()
    second.close()
    assert f"enter(/proc/{one.pid}/ns/uts /proc/{one.pid}/ns/net, uts+net) was left before enter({words}, net)" in str(
        caught.value
    )
    assert (here("uts"), here("net")) == before


@requires_root
def test_the_exception_of_the_block_is_the_context_of_that(places):
    first, second = (suspended(enter(one.pid, "net")) for one in places)
    with pytest.raises(RuntimeError, match="was left before") as caught:
        first.throw(ZeroDivisionError)
    second.close()
    assert isinstance(caught.value.__context__, ZeroDivisionError)


@requires_root
def test_one_object_in_two_generators_tells_them_apart(places):
    """Its exit is the exit of the generator that calls it, not of whichever entered last."""
    before = here()
    context = enter(places[0].pid, "net")
    first, second = suspended(context), suspended(context)
    with pytest.raises(RuntimeError, match="was left before"):
        first.close()
    assert here() != before
    second.close()
    assert here() == before


@requires_root
def test_without_the_frame_check_the_first_generator_silently_continues_inside(places, monkeypatch):
    monkeypatch.setattr(stays, "_is_left_by", lambda frame, stay: False)
    monkeypatch.setattr(stays, "id", lambda frame: 0, raising=False)
    before = here()
    context = enter(places[0].pid, "net")
    first, second = suspended(context), suspended(context)
    first.close()
    assert here() == net_of(places[0].pid) != before
    second.close()


@requires_root
def test_one_object_many_times_in_one_exit_stack_is_in_order(places):
    before = here()
    context = enter(places[0].pid, "net")
    for _ in range(50):
        with contextlib.ExitStack() as stack, context:
            for _ in range(5):
                stack.enter_context(context)
            with context, contextlib.ExitStack() as inner:
                inner.enter_context(context)
                assert here() == net_of(places[0].pid)
                inner.pop_all().close()
        assert here() == before


@requires_root
def test_a_with_within_a_generator_that_is_held_is_in_order(places):
    before = here()
    first = suspended(enter(places[0].pid, "net"))
    with enter(places[1].pid, "net"):
        assert here() == net_of(places[1].pid)
    assert here() == net_of(places[0].pid)
    first.close()
    assert here() == before


@requires_root
def test_outer_enter_block_restores_the_thread_after_an_abandoned_one(places):
    before = here()
    with enter(places[0].pid, "net"):
        enter(places[1].pid, "net").__enter__()
        gc.collect()
        assert here() == net_of(places[1].pid)
    assert here() == before


@requires_root
def test_abandoned_enter_lasts_without_an_outer_block(places):
    def test() -> None:
        enter(places[0].pid, "net").__enter__()
        gc.collect()
        with enter(places[1].pid, "net"):
            pass
        assert here() == net_of(places[0].pid)

    in_child(test)


@requires_root
def test_a_failed_way_back_of_one_does_not_keep_the_others_inside(places, monkeypatch):
    def test() -> None:
        before = here("net"), here("uts")
        first = suspended(enter(places[0].pid, "net"))
        second = suspended(enter(places[1].pid, "uts"))
        with pytest.raises(RuntimeError, match="was left before"):
            first.close()
        os.close(
            next(stay for stay in stays._all_stays() if stay.owner() is not None and stay.is_left is False).c.saved[0]
        )
        with pytest.raises(nsjoin.RestoreError) as caught:
            second.close()
        assert caught.value.nstype == "uts"
        assert (here("net"), here("uts")) == (before[0], os.readlink(f"/proc/{places[1].pid}/ns/uts"))

    in_child(test)


@requires_root
def test_a_collector_that_closes_a_generator_while_another_enters_does_not_move_the_thread(places, monkeypatch):
    """Between what is saved and what is joined, or just before: then the inner one would come back to nowhere."""
    before = here()
    first = [suspended(enter(places[0].pid, "net"))]
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: unraisable.append(raised.exc_value))
    entering = enter(places[1].pid, "net")
    join_opened = entering._join_opened
    monkeypatch.setattr(entering, "_join_opened", lambda stay: (join_opened(stay), first.clear(), gc.collect()))
    with entering:
        assert first == []
        assert here() == net_of(places[1].pid)
    assert here() == before
    assert [type(error) for error in unraisable] == [RuntimeError]


# --- threads ------------------------------------------------------------------------------------------------


@requires_root
def test_the_error_names_the_thread_that_entered(places):
    context = enter(places[0].pid, "net")
    errors: list[BaseException] = []

    def leave() -> None:
        with pytest.raises(RuntimeError, match="not entered in this thread") as caught:
            context.__exit__(None, None, None)
        errors.append(caught.value)

    with context:
        thread = threading.Thread(target=leave)
        thread.start()
        join(thread)
        assert here() == net_of(places[0].pid)
    assert f"thread {threading.get_native_id()} (MainThread) entered it, and must leave it" in str(errors[0])


class Worker:
    """A thread that does one thing after the other."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], object]] = []
        self.results: list[object] = []
        self.ready, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self.run, name="the worker")
        self.thread.start()

    def run(self) -> None:
        while self.ready.acquire() and self.jobs:
            self.results.append(self.jobs.pop()())
            self.done.release()

    def do(self, job: Callable[[], object]) -> object:
        self.jobs.append(job)
        self.ready.release()
        self.done.acquire()
        return self.results.pop()

    def end(self) -> None:
        self.ready.release()
        join(self.thread)


@requires_root
def test_a_generator_closed_in_another_thread_moves_neither_and_the_first_comes_back_with_its_next(places):
    worker = Worker()
    try:
        before = here()
        context = enter(places[0].pid, "net")
        generator = hold(context)
        worker.do(lambda: next(generator))
        with context:  # of our own, which is not what that generator leaves
            with pytest.raises(RuntimeError, match=r"\(the worker\) entered it, is still inside, and comes back when"):
                generator.close()
            assert here() == net_of(places[0].pid)
        assert here() == before
        assert worker.do(here) == net_of(places[0].pid)
        assert worker.do(enter(places[1].pid, "uts")(here)) == before
        assert worker.do(here) == before
    finally:
        worker.end()


@requires_root
def test_a_generator_collected_in_another_thread_does_not_keep_an_outer_block_inside(places, monkeypatch):
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: unraisable.append(raised.exc_value))
    before = here()
    with enter(places[0].pid, "net"):
        held = [suspended(enter(places[1].pid, "net"))]
        in_thread(lambda: (held.clear(), gc.collect()))
        assert here() == net_of(places[1].pid)
    assert here() == before
    assert [type(error) for error in unraisable] == [RuntimeError]


@requires_root
def test_a_new_thread_is_not_taken_for_one_that_has_ended_inside(places):
    """It gets the same get_ident() at once: its exit would move it to where that one came from."""
    context = enter(places[0].pid, "net")
    idents: list[int] = []

    def enter_and_end() -> None:
        context.__enter__()
        idents.append(threading.get_ident())

    def leave() -> None:
        nsjoin.unshare("net")
        before = here()
        with pytest.raises(RuntimeError, match="not entered in this thread"):
            context.__exit__(None, None, None)
        assert here() == before
        idents.append(threading.get_ident())

    def test() -> None:
        for job in (enter_and_end, leave):
            in_thread(job)
        assert len(set(idents)) == 1

    in_child(test)
    stays._stacks.clear()


def test_main_and_starting_threads_are_not_taken_for_workers():
    results: list[bool] = []
    assert stays.is_borrowed(0)
    in_thread(lambda: results.extend((stays.is_borrowed(0), stays.is_borrowed(stays.this_thread()))))
    assert results == [False, True]


def test_a_greenlet_of_any_thread_is_no_worker(monkeypatch):
    results: list[bool] = []

    class Greenlet:
        parent: object = None

        @classmethod
        def getcurrent(cls) -> type[Greenlet]:
            return cls

    monkeypatch.setitem(sys.modules, "greenlet", Greenlet)
    for parent in (None, "the greenlet that switched to it"):
        Greenlet.parent = parent
        in_thread(lambda: results.append(stays.is_borrowed(0)))
    assert results == [False, True]


def test_a_frame_that_has_got_the_id_of_one_that_is_no_more_is_told_from_it_by_its_code():
    def generator(code: object) -> Generator[bool]:
        frame = sys._getframe()
        stay = stays.Stay(lambda: None)  # type: ignore[arg-type]
        stay.frame, stay.code = id(frame), code or frame.f_code
        yield stays._is_left_by(frame, stay)

    assert next(generator(None))
    assert not next(generator(in_thread.__code__))


# --- event loops and greenlets ------------------------------------------------------------------------------


@requires_root
def test_two_asyncio_tasks_that_overlap_bring_the_thread_back(places):
    one, other = places

    async def hold(pid: int, entered: asyncio.Event, end: asyncio.Event) -> None:
        with enter(pid, "net"):
            entered.set()
            await end.wait()

    async def main() -> tuple[object, str, object, str]:
        events = [asyncio.Event() for _ in range(4)]
        first = asyncio.ensure_future(hold(one.pid, *events[:2]))
        await events[0].wait()
        second = asyncio.ensure_future(hold(other.pid, *events[2:]))
        await events[2].wait()
        events[1].set()
        (said,) = await asyncio.gather(first, return_exceptions=True)
        between = here()
        events[3].set()
        (other_said,) = await asyncio.gather(second, return_exceptions=True)
        return said, between, other_said, here()

    before = here()
    first, between, second, after = asyncio.run(main())
    assert isinstance(first, RuntimeError)
    assert isinstance(second, RuntimeError)
    assert "was left before" in str(first)
    assert between == net_of(other.pid)
    assert "held across an await" in str(second)
    assert after == before


#: Two that overlap and end in the order in which they entered; each program defines ``both(one, two)``.
FRAME = """
import os, sys, nsjoin
from nsjoin import enter
from nsjoin._engine import stays

def here():
    return os.readlink("/proc/thread-self/ns/net")

def told(error):
    assert "was left before" in str(error), error
    print("told")

HEAD
home = here()
both("/proc/%s/ns/net" % sys.argv[1], "/proc/%s/ns/net" % sys.argv[2])
assert here() == home
assert stays._stacks == {}
print("home")
"""
TRIO = """
import trio

async def hold(path, entered, end):
    try:
        with enter(path, "net"):
            entered.set()
            await end.wait()
    except RuntimeError as error:
        told(error)

async def main(one, two):
    events = [trio.Event() for _ in range(4)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, one, *events[:2])
        await events[0].wait()
        nursery.start_soon(hold, two, *events[2:])
        await events[2].wait()
        events[1].set()
        await trio.testing.wait_all_tasks_blocked()
        events[3].set()

import trio.testing

def both(one, two):
    trio.run(main, one, two)
"""
GREENLETS = """
def hold(context, wait):
    try:
        with context:
            wait()
    except RuntimeError as error:
        told(error)

def decorated(context, wait):
    try:
        context(wait)()
    except RuntimeError as error:
        told(error)

def both(one, two):
    shared = enter(one, "net")
    for function in (hold, decorated):
        for contexts in ((enter(one, "net"), enter(two, "net")), (shared, shared)):
            spawn_two(function, contexts)
            assert here() == home
            print("home")
"""
GEVENT = (
    """
from gevent import monkey
monkey.patch_all()
import gevent, gevent.event

def spawn_two(function, contexts):
    ends = [gevent.event.Event() for _ in contexts]
    both = [gevent.spawn(function, context, end.wait) for context, end in zip(contexts, ends)]
    gevent.idle()
    for greenlet, end in zip(both, ends):
        end.set()
        greenlet.join()
"""
    + GREENLETS
)
EVENTLET = (
    """
import eventlet
eventlet.monkey_patch()
from eventlet.event import Event

def spawn_two(function, contexts):
    ends = [Event() for _ in contexts]
    both = [eventlet.spawn(function, context, end.wait) for context, end in zip(contexts, ends)]
    eventlet.sleep(0)
    for greenlet, end in zip(both, ends):
        end.send()
        greenlet.wait()
"""
    + GREENLETS
)


def run(program: str, *arguments: object) -> list[str]:
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def needs(module: str) -> None:
    if importlib.util.find_spec(module) is None:  # not imported here: it would patch, and warn
        pytest.skip(f"{module} is not installed: .[test] has it for CPython")


LOOPS = {
    "trio": (TRIO, ["told", "home"]),
    "gevent": (GEVENT, ["told", "home"] * 4 + ["home"]),
    "eventlet": (EVENTLET, ["told", "home"] * 4 + ["home"]),
}


@requires_root
@pytest.mark.parametrize("module", LOOPS)
def test_two_tasks_or_greenlets_that_overlap_bring_the_thread_back(start, module):
    needs(module)
    head, expected = LOOPS[module]
    assert run(FRAME.replace("HEAD", head), start("net").pid, start("net").pid) == expected


@requires_root
def test_where_eventlet_has_patched_before_nsjoin_is_imported_the_thread_is_still_the_kernels(start):
    needs("eventlet")
    program = "import eventlet; eventlet.monkey_patch()\n" + FRAME.replace("HEAD", EVENTLET)
    assert run(program, start("net").pid, start("net").pid) == LOOPS["eventlet"][1]


GENERATORS = """
def hold(path):
    with enter(path, "net"):
        yield

def both(one, two):
    first, second = hold(one), hold(two)
    next(first), next(second)
    try:
        first.close()
    except RuntimeError as error:
        told(error)
    second.close()
"""
SELF_STARTED = """
import subprocess, sys
targets = [subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; read end"], stdin=-1, stdout=-1) for _ in range(2)]
for target in targets:
    target.stdout.readline()
sys.argv[1:] = [target.pid for target in targets]
"""


@pytest.mark.parametrize("module", ["", *LOOPS])
def test_same_as_root_of_an_own_user_namespace(module):
    if module:
        needs(module)
    head, expected = LOOPS[module] if module else (GENERATORS, ["told", "home"])
    program = SELF_STARTED + FRAME.replace("HEAD", head) + "\nfor target in targets: target.communicate()\n"
    command = ["unshare", "--map-root-user", "--net", sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stdout.splitlines()) == (0, expected), done.stderr
