"""Properties, on cases that hypothesis makes up: the same ones in each run (``derandomize``).

More of them, and others: ``NSJOIN_EXAMPLES=10000 pytest tests/test_properties.py``.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, NamedTuple

import pytest
from conftest import Running, _state, requires_root, wait_for_threads
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nsjoin

if TYPE_CHECKING:
    from collections.abc import Iterator

#: With mnt and pid it would have a /proc of its own, in which _state could not look.
WORLDS = (("mnt", "uts", "net"), ("uts", "ipc", "pid"), ("mnt", "cgroup", "ipc"))
EXAMPLES = int(os.environ.get("NSJOIN_EXAMPLES", "0"))

more = settings(
    max_examples=EXAMPLES or 200,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Stay(NamedTuple):
    """One ``enter``, and what happens inside, before an exception if there is one."""

    world: int
    nstypes: tuple[str, ...]
    #: how the target is named: its pid, a Target, its Namespaces, their files, or one that has ended
    how: str
    inside: list[Stay]
    fails: bool


class DeliberateError(Exception):
    """Raised inside."""


def stays(inside: st.SearchStrategy[list[Stay]]) -> st.SearchStrategy[list[Stay]]:
    def stay(world: int) -> st.SearchStrategy[Stay]:
        nstypes = st.lists(st.sampled_from(WORLDS[world]), min_size=1, unique=True).map(tuple)
        how = st.sampled_from(["pid", "target", "namespaces", "files", "ended"])
        return st.builds(Stay, st.just(world), nstypes, how, inside, st.booleans())

    return st.lists(st.integers(0, len(WORLDS) - 1).flatmap(stay), min_size=1, max_size=3)


JOURNEYS = st.recursive(st.just([]), stays, max_leaves=8)


@pytest.fixture(scope="module")
def worlds() -> Iterator[list[Running]]:
    running = [Running(nstypes) for nstypes in WORLDS]
    yield running
    for one in running:
        one.end()


def gone() -> nsjoin.Target:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    target = nsjoin.Target.from_pid(pid)
    os.waitpid(pid, 0)
    return target


def travel(journey: list[Stay], targets: list[nsjoin.Target]) -> int:
    """Make it, and look around after each stay. How many there were."""
    return sum(go(stay, targets) for stay in journey)


def go(stay: Stay, targets: list[nsjoin.Target]) -> int:
    before, target, count = _state(), targets[stay.world], 1
    opened = [target.namespace(nstype) for nstype in stay.nstypes] if stay.how == "namespaces" else []
    given_target = {
        "pid": target.pid,
        "target": target,
        "namespaces": opened,
        "files": [f"/proc/{target.pid}/ns/{nstype}" for nstype in stay.nstypes],
        "ended": targets[-1],
    }[stay.how]
    try:
        with nsjoin.enter(given_target, *stay.nstypes):
            for nstype in stay.nstypes:
                with nsjoin.Namespace.current(nstype, for_children=nstype == "pid") as here:
                    assert os.stat(f"/proc/{target.pid}/ns/{nstype}").st_ino == here.id.ino
            count += travel(stay.inside, targets)
            if stay.fails:
                raise DeliberateError
        assert not stay.fails
    except DeliberateError:
        assert stay.fails
    except nsjoin.TargetGoneError:
        assert stay.how == "ended"
    finally:
        for namespace in opened:
            namespace.close()
    after = _state()
    assert after == before, [what for what in before if after[what] != before[what]]
    return count


@pytest.fixture(scope="module")
def targets(worlds) -> Iterator[list[nsjoin.Target]]:
    opened = [*(nsjoin.Target.from_pid(one.pid) for one in worlds), gone()]
    for target in opened[:-1]:
        target.namespace("uts").close()  # what it keeps open from the first time on
    yield opened
    for target in opened:
        target.close()


@requires_root
@more
@given(JOURNEYS)
def test_whatever_is_entered_and_whatever_is_raised_everything_is_as_before(targets, journey):
    travel(journey, targets)


@requires_root
@settings(more, max_examples=max(EXAMPLES // 10, 20))
@given(JOURNEYS)
def test_the_same_in_a_thread_and_no_other_thread_moves(targets, journey):
    before, failed = _state(), []

    def run() -> None:
        try:
            nsjoin.Namespace.current("uts").close()  # the thread's own pidfd is kept until its end
            travel(journey, targets)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    wait_for_threads(int(str(before["threads"])))
    assert failed == []
    assert _state() == before
