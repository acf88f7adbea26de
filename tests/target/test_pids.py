"""What a process is called in another PID namespace, both ways, by the kernel and through /proc."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
import threading

import pytest
from changed import become_nobody
from child import in_child, wait_until_ended
from conftest import HAS_NAMESPACES_OF_PIDFDS, IS_ROOT, requires_root

import nsjoin
from nsjoin import Namespace, NamespacePermissionError, Target, TargetGoneError, translate_pid
from nsjoin._kernel import calls


def no_ioctl(*_args):
    raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))


@pytest.fixture(params=["ioctl", "proc"])
def either_way(request, monkeypatch):
    """As the running kernel has it, and as one before Linux 6.11, which does not know these ioctls."""
    if request.param == "proc":
        monkeypatch.setattr(calls, "pid_from", no_ioctl)
        monkeypatch.setattr(calls, "pid_in", no_ioctl)


#: Through /proc, an ordinary user may not ask each process of that number whether it is the one.
NOT_FOUND = TargetGoneError if IS_ROOT else (TargetGoneError, NamespacePermissionError)


def numbers(pid):
    with open(f"/proc/{pid}/status") as status:
        return [int(number) for line in status if line.startswith("NSpid:") for number in line.split()[1:]]


@pytest.fixture
def nested(start):
    """A process in a PID namespace that is in another one: (the outer one's init, the inner one's second process)."""
    # sh is the outer one's init; what unshare(1) forks is a shell, the inner one's init, and has a child of its own
    inner = "unshare --pid --fork sh -c 'sleep infinity & echo $!; wait'"
    outer = start("pid", program=f"{inner} & wait")
    assert outer.process.stdout.readline() == "2\n"
    pid = outer.pid
    for _ in ("unshare", "the inner init", "its child"):
        with open(f"/proc/{pid}/task/{pid}/children") as children:
            (pid,) = map(int, children.read().split())
    return outer.pid, pid


def test_both_ways(start, either_way):
    target = start("pid")
    assert translate_pid(target.pid, to=target.pid) == 1
    assert translate_pid(1, from_=target.pid) == target.pid
    assert translate_pid(1, from_=target.pid, to=target.pid) == 1


def test_through_several_levels(nested, either_way):
    outer, inner = nested
    expected = numbers(inner)
    assert len(expected) == 3
    assert expected[2] == 2
    assert translate_pid(inner, to=outer) == expected[1]
    assert translate_pid(inner, to=inner) == 2
    assert translate_pid(2, from_=inner) == inner
    assert translate_pid(2, from_=inner, to=outer) == expected[1]
    assert translate_pid(expected[1], from_=outer, to=inner) == 2
    assert translate_pid(expected[1], from_=outer) == inner


def test_without_namespaces_a_pid_stays_what_it_is(either_way):
    assert translate_pid(os.getpid()) == os.getpid()


def test_namespaces_are_named_as_targets(start, either_way):
    target = start("pid")
    with Target.from_pid(target.pid) as process, process.namespace("pid") as namespace:
        for named in (process, namespace, [namespace], f"/proc/{target.pid}/ns/pid", target):
            assert translate_pid(target.pid, to=named) == 1
            assert translate_pid(1, from_=named) == target.pid


def test_target_knows_its_own_pid_inside(start, either_way):
    target = start("pid")
    with Target.from_pid(target.pid) as process, process.namespace("pid") as namespace:
        assert process.pid_in(namespace) == process.pid_in(target.pid) == 1
        assert process.pid_in(None) == target.pid


def test_process_invisible_in_the_namespace_has_no_pid_there(start, nested, either_way):
    target = start("pid")
    outer, inner = nested
    for pid, to in ((os.getpid(), target.pid), (target.pid, outer), (outer, inner)):
        with pytest.raises(TargetGoneError, match="not visible in that PID namespace"):
            translate_pid(pid, to=to)
    with Target.from_pid(target.pid) as process, pytest.raises(TargetGoneError):
        process.pid_in(outer)


def test_pid_that_no_process_has_there_is_an_error(start, nested, either_way):
    target = start("pid")
    for number in (2, 2**22 - 1):
        with pytest.raises(NOT_FOUND, match=r"no such process in that PID namespace|Permission denied"):
            translate_pid(number, from_=target.pid)


@pytest.mark.parametrize("number", [2**31, 2**64])
def test_a_number_that_no_process_can_have_is_an_error(start, number):
    target = start("pid")
    for keywords in ({}, {"from_": target.pid}, {"to": target.pid}):
        with pytest.raises(TargetGoneError):
            translate_pid(number, **keywords)


def test_ended_process_has_no_pid_inside(start, either_way):
    target = start("pid")
    with Target.from_pid(target.pid) as process, Namespace.from_pid(target.pid, "pid") as namespace:
        target.end()
        with pytest.raises(NOT_FOUND):
            translate_pid(1, from_=namespace)
        with pytest.raises(TargetGoneError):
            translate_pid(target.pid, to=namespace)
        with pytest.raises(TargetGoneError):
            process.pid_in(namespace)


def test_a_target_that_has_ended_does_not_tell_the_number_of_its_successor(monkeypatch):
    ended = subprocess.Popen(["true"])
    with Target.from_pid(ended.pid) as process:
        wait_until_ended(ended.pid)
        assert process.pid_in(None) == ended.pid, "a zombie still has its number"
        ended.wait()
        # as if another process had got the pid by now
        monkeypatch.setattr(calls, "pid_in", lambda _fd, pid: pid)
        with pytest.raises(TargetGoneError, match="the process has ended"):
            process.pid_in(None)


def test_a_pid_that_is_given_out_again_meanwhile_is_not_taken_for_the_process(start, monkeypatch):
    target = start("pid")
    answers = [target.pid, os.getpid()]
    monkeypatch.setattr(calls, "pid_from", lambda _fd, _pid: answers.pop(0))
    with pytest.raises(TargetGoneError):
        translate_pid(1, from_=target.pid)


@pytest.mark.usefixtures("either_way")
def test_a_thread_has_a_number_too():
    ready, done = threading.Event(), threading.Event()
    ids = []

    def body():
        ids.append(threading.get_native_id())
        ready.set()
        done.wait()

    thread = threading.Thread(target=body)
    thread.start()
    ready.wait()
    try:
        assert translate_pid(ids[0]) == ids[0] != os.getpid()
    finally:
        done.set()
        thread.join()


THREAD = """
import threading, time
threading.Thread(target=lambda: (print(threading.get_native_id(), flush=True), time.sleep(1000))).start()
"""


@pytest.mark.usefixtures("either_way")
def test_thread_of_another_pid_namespace_has_a_number_too(start):
    target = start("pid", program=f"exec {shlex.join([sys.executable, '-c', THREAD])}")
    number = int(target.process.stdout.readline())
    ours = translate_pid(number, from_=target.pid)
    assert str(ours) in os.listdir(f"/proc/{target.pid}/task")
    assert ours != target.pid
    assert translate_pid(ours, to=target.pid) == number


@pytest.mark.parametrize("pid", [0, -1])
def test_what_is_no_pid_is_a_value_error(pid):
    with pytest.raises(ValueError, match="a pid is positive"):
        translate_pid(pid)


@pytest.mark.parametrize("pid", [True, "1", None, 1.0])
def test_what_is_no_number_is_a_type_error(pid):
    with pytest.raises(TypeError):
        translate_pid(pid)


def test_another_type_of_namespace_is_a_value_error():
    with Namespace.current("net") as net:
        for keywords in ({"from_": net}, {"to": net}):
            with pytest.raises(ValueError, match="is no pid namespace"):
                translate_pid(os.getpid(), **keywords)


@requires_root
def test_unreadable_namespaces_are_reported(start, monkeypatch):
    target = start("pid")

    with Namespace.from_pid(target.pid, "pid") as namespace:

        def ask():
            if HAS_NAMESPACES_OF_PIDFDS:  # and with them, in Linux 6.11, this ioctl came
                assert translate_pid(target.pid, to=namespace) == 1, "the ioctl needs no power over the process"
            monkeypatch.setattr(calls, "pid_in", no_ioctl)
            monkeypatch.setattr(calls, "pid_from", no_ioctl)
            for keywords in ({"pid": target.pid, "to": namespace}, {"pid": 1, "from_": namespace}):
                with pytest.raises(NamespacePermissionError):
                    translate_pid(**keywords)

        in_child(ask, become_nobody)


def test_without_our_proc_the_fallback_raises_an_error(start, monkeypatch):
    target = start("pid")

    monkeypatch.setattr(calls, "pid_from", no_ioctl)
    with pytest.raises(nsjoin.NamespaceError, match="belongs to another PID namespace"):
        nsjoin.call_in(target.pid, translate_pid, 1, trust_target=True)
