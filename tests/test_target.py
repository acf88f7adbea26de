from __future__ import annotations

import errno
import os
import signal
import subprocess
import types
import warnings

import pytest

import nsjoin
from nsjoin import Namespace, Target, TargetGoneError, _nstype, _process, _shim
from nsjoin._target import OpenTarget, check_target


@pytest.fixture
def sleeper():
    with subprocess.Popen(["sleep", "infinity"]) as process:
        yield process
        process.kill()


@pytest.fixture(params=["by pidfd", "by /proc"])
def either_way(request, monkeypatch):
    """Kernels with pidfds, and, simulated, those without: neither pidfd_open nor the ioctls on one."""
    if request.param == "by /proc":

        def refuse(*_args):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        for name in ("pidfd_open", "pidfd_namespace", "inodes"):
            monkeypatch.setattr(_shim, name, refuse)
    return request.param


def test_a_target_is_one_process(sleeper, either_way):
    with Target.from_pid(sleeper.pid) as target:
        assert target.pid == sleeper.pid
        assert target.is_alive()
        assert repr(target) == f"<Target {sleeper.pid}>"
        if either_way == "by pidfd":
            signal.pidfd_send_signal(target.fileno(), 0)
        else:
            with pytest.raises(nsjoin.NamespaceError, match=r"Linux 5\.3"):
                target.fileno()
    assert target.closed
    assert target.pid == sleeper.pid
    with pytest.raises(ValueError, match="closed"):
        target.is_alive()


def test_its_namespaces_are_those_of_proc(target, either_way):
    with Target.from_pid(target.pid) as pinned:
        opened = pinned.namespaces()
        for nstype, namespace in opened.items():
            with namespace:
                assert namespace.id.ino == os.stat(f"/proc/{target.pid}/ns/{nstype}").st_ino
        assert set(opened) == set(_nstype.BY_NAME)
        with pinned.namespace("pid", for_children=True) as children, pinned.namespace("pid") as own:
            assert children == own


def test_inodes_are_those_of_proc(target, either_way):
    rows = _nstype.NSTYPES
    with Target.from_pid(target.pid) as pinned:
        assert pinned.inodes(rows) == tuple(os.stat(f"/proc/{target.pid}/ns/{row.name}").st_ino for row in rows)
    assert _process.own_inodes(rows) == tuple(os.stat(f"/proc/thread-self/ns/{row.name}").st_ino for row in rows)


def test_a_zombie_is_not_alive_and_says_so(sleeper, either_way):
    with Target.from_pid(sleeper.pid) as target:
        sleeper.kill()
        os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
        assert not target.is_alive()
        with pytest.raises(TargetGoneError, match="zombie") as caught:
            target.namespace("net").close()
        assert caught.value.errno == errno.ESRCH


def test_one_that_has_ended_says_so(sleeper, either_way):
    with Target.from_pid(sleeper.pid) as target:
        sleeper.kill()
        sleeper.wait()
        assert not target.is_alive()
        with pytest.raises(TargetGoneError, match="has ended") as caught:
            target.namespace("net").close()
        assert isinstance(caught.value, ProcessLookupError)


def test_no_such_process_is_told_at_once(sleeper, either_way):
    sleeper.kill()
    sleeper.wait()
    with pytest.raises(TargetGoneError, match=f"process {sleeper.pid}"):
        Target.from_pid(sleeper.pid)


def test_from_pidfd_duplicates_and_finds_the_pid(sleeper, monkeypatch):
    pidfd = _shim.pidfd_open(sleeper.pid)
    try:
        with Target.from_pidfd(pidfd) as target:
            assert target.pid == sleeper.pid
            assert target.fileno() != pidfd

        def refuse(_pidfd):
            raise OSError(errno.ENOTTY, "")

        monkeypatch.setattr(_shim, "pidfd_pid", refuse)  # before Linux 6.13
        with Target.from_pidfd(pidfd) as target:
            assert target.pid == sleeper.pid
        sleeper.kill()
        sleeper.wait()
        with pytest.raises(TargetGoneError, match="has ended"):
            Target.from_pidfd(pidfd)
        monkeypatch.undo()
        with pytest.raises(TargetGoneError, match="has ended"):
            Target.from_pidfd(pidfd)
    finally:
        os.close(pidfd)
    with open("/dev/null") as file, pytest.raises(ValueError, match="no pidfd"):
        Target.from_pidfd(file.fileno())


def test_a_forgotten_target_warns_and_closes():
    target = Target.from_pid(os.getpid())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del target
    assert [warning.category for warning in caught] == [ResourceWarning]


BAD = [
    (True, TypeError, "a pid is an int"),
    (False, TypeError, "a pid is an int"),
    (0, ValueError, "positive"),
    (-1, ValueError, "positive"),
    (None, TypeError, "a target is"),
    (1.0, TypeError, "a target is"),
    ("", ValueError, "empty"),
    (b"", ValueError, "empty"),
    ("/run/netns/a\0b", ValueError, "null"),
    (b"/run/netns/a\0b", ValueError, "null"),
    ([1], TypeError, "an iterable as a target"),
    ([None], TypeError, "an iterable as a target"),
    ({"a": 1}.values(), TypeError, "an iterable as a target"),
    (types.SimpleNamespace(pid=None), TypeError, "a pid is an int"),
    (types.SimpleNamespace(pid=True), TypeError, "a pid is an int"),
    (types.SimpleNamespace(pid=-5), ValueError, "positive"),
]


@pytest.mark.parametrize(("bad", "kind", "text"), BAD)
def test_bad_targets_are_refused_before_any_system_call(bad, kind, text, monkeypatch):
    monkeypatch.setattr(_shim, "pidfd_open", None)  # whoever calls it gets a TypeError of another text
    for use in (
        lambda: nsjoin.spawn_in(bad, ["true"]),
        lambda: nsjoin.run_in(bad, ["true"]),
        lambda: nsjoin.enter(bad, "net"),
    ):
        with pytest.raises(kind, match=text):
            use()


def test_closed_targets_are_refused():
    target, namespace = Target.from_pid(os.getpid()), Namespace.current("net")
    target.close()
    namespace.close()
    for closed in (target, namespace, [namespace]):
        with pytest.raises(ValueError, match="closed"):
            nsjoin.spawn_in(closed, ["true"])
        with pytest.raises(ValueError, match="closed"):
            nsjoin.enter(closed, "net")


@pytest.mark.parametrize("bad", ["net", b"net", "", 7, True])
def test_namespaces_is_an_iterable_of_types(bad):
    with pytest.raises(TypeError):
        nsjoin.spawn_in(os.getpid(), ["true"], namespaces=bad)


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match="unknown namespace type 'network'"):
        nsjoin.spawn_in(os.getpid(), ["true"], namespaces=("network",))
    with pytest.raises(ValueError, match="unknown namespace type 'network'"):
        nsjoin.enter(os.getpid(), "network")


def test_a_huge_pid_is_no_process():
    with pytest.raises(TargetGoneError):
        Target.from_pid(1 << 40)
    with pytest.raises(TargetGoneError):
        Target.from_pid((1 << 31) - 1)


def test_what_has_a_pid_is_a_target(sleeper):
    checked = check_target(sleeper)
    assert checked == sleeper.pid
    with OpenTarget(checked) as opened:
        assert opened.process is not None
        assert opened.process.pid == sleeper.pid
    assert opened.process.closed


def test_an_open_target_closes_only_what_it_has_opened():
    with Namespace.current("net") as ours:
        with OpenTarget(check_target([ours, "/proc/self/ns/uts"])) as opened:
            mine = opened.namespaces[1]
            assert [namespace.nstype for namespace in opened.namespaces] == ["net", "uts"]
        assert mine.closed
        assert not ours.closed


def test_two_namespaces_of_one_type_are_no_target():
    with pytest.raises(ValueError, match="two net"):
        nsjoin.spawn_in(["/proc/self/ns/net", "/proc/self/ns/net"], ["true"])


def test_a_directory_is_no_target():
    with pytest.raises(ValueError, match="not a namespace file"):
        nsjoin.spawn_in("/tmp", ["true"])


def test_a_thread_id_is_a_target_too():
    import threading

    started, stop = threading.Event(), threading.Event()
    ids = []

    def body():
        ids.append(threading.get_native_id())
        started.set()
        stop.wait()

    thread = threading.Thread(target=body)
    thread.start()
    started.wait()
    try:
        with Target.from_pid(ids[0]) as target, target.namespace("net") as namespace:
            assert namespace.id.ino == os.stat("/proc/self/ns/net").st_ino
    finally:
        stop.set()
        thread.join()
