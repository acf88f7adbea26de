"""Errors say why: for each reason that can be computed, the case made for real, and its words."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading

import pytest
from changed import (
    CAP_SYS_ADMIN,
    CAP_SYS_CHROOT,
    become_nobody,
    become_old_kernel,
    drop_capability,
    forked,
    in_child,
    join,
)
from child import wait_until_ended
from conftest import requires_root

from nsjoin import (
    JoinError,
    JoinPermissionError,
    Namespace,
    NamespaceError,
    NotANamespaceError,
    Target,
    TargetGoneError,
    enter,
    run_in,
)
from nsjoin._joining import reasons
from nsjoin._kernel import calls
from nsjoin._kernel import nstypes as nstypes_
from nsjoin._kernel.nstypes import BY_NAME
from nsjoin._kernel.thread import missing_type
from nsjoin._target.process import Process

NO_PROCESS = 2**22 + 1  # above the highest pid_max


def flags(*nstypes):
    return sum(BY_NAME[nstype].flag for nstype in nstypes)


@contextlib.contextmanager
def ended(*, reaped):
    """The pid of a process that has ended: a zombie, or reaped."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    wait_until_ended(child)
    if reaped:
        os.waitpid(child, 0)
    try:
        yield child
    finally:
        if not reaped:
            os.waitpid(child, 0)


def ways_into(target, *nstypes):
    """Each way to join, as a function; none may succeed."""

    def by_enter():
        with enter(target, *nstypes):
            raise AssertionError("inside")

    return by_enter, lambda: run_in(target, ["true"], namespaces=nstypes)


# --- the target -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [0, 1], ids=["enter", "run_in"])
def test_no_such_process(way):
    with pytest.raises(TargetGoneError, match=rf"process {NO_PROCESS}: No such process") as caught:
        ways_into(NO_PROCESS, "net")[way]()
    assert caught.value.errno == errno.ESRCH


@pytest.mark.parametrize("nstypes", [("net",), ("mnt",), ("net", "pid", "mnt")])
@pytest.mark.parametrize("way", [0, 1], ids=["enter", "run_in"])
def test_a_zombie(way, nstypes):
    with ended(reaped=False) as pid, pytest.raises(TargetGoneError, match="it is a zombie") as caught:
        ways_into(pid, *nstypes)[way]()
    assert (caught.value.errno, caught.value.target) == (errno.ESRCH, f"process {pid}")


@pytest.mark.parametrize("way", [0, 1], ids=["enter", "run_in"])
def test_a_zombie_without_pidfds(way):
    def test():
        become_old_kernel(pidfds=False)
        with ended(reaped=False) as pid, pytest.raises(TargetGoneError, match="it is a zombie"):
            ways_into(pid, "net")[way]()

    in_child(test)


@pytest.mark.parametrize("nstypes", [("net",), ("mnt",)])
@pytest.mark.parametrize("way", [0, 1], ids=["enter", "run_in"])
def test_target_that_ended_after_it_was_pinned(start, way, nstypes):
    running = start("net", "mnt")
    with Target.from_pid(running.pid) as process:
        running.end()
        with pytest.raises(TargetGoneError, match="the process has ended"):
            ways_into(process, *nstypes)[way]()


@requires_root
def test_a_dead_pid_namespace(start):
    """setns succeeds, and clone says ENOMEM."""
    running = start("pid")
    with Namespace.from_pid(running.pid, "pid") as namespace:
        running.end()
        with pytest.raises(JoinError, match="init process of this PID namespace has ended") as caught:
            run_in(namespace, ["true"])
        assert (caught.value.step, caught.value.nstype, caught.value.errno) == ("clone", "pid", errno.ENOMEM)
        assert str(namespace.id.ino) in caught.value.target


@pytest.mark.parametrize("path", ["/", "/dev/null", "/proc/self/status"])
@pytest.mark.parametrize("way", [0, 1], ids=["enter", "run_in"])
def test_not_a_namespace_file(way, path):
    with pytest.raises(NotANamespaceError, match="not a namespace file") as caught:
        ways_into(path, "net")[way]()
    assert caught.value.target == path


@pytest.mark.parametrize("way", [0, 1], ids=["enter", "run_in"])
def test_another_type_than_asked_for(way):
    with pytest.raises(ValueError, match="the target has no net namespace, only uts"):
        ways_into("/proc/self/ns/uts", "net")[way]()


# --- the kernel -------------------------------------------------------------------------------------------------------


def test_a_type_that_this_kernel_lacks():
    row = BY_NAME["net"]._replace(name="vest", flag=0x8, get=0xFFFE, since="9.9")
    release = os.uname().release
    with Process(os.getpid()) as own, pytest.raises(NamespaceError, match=r"Linux 9\.9") as caught:
        own.open_namespace(row)
    assert "no vest namespaces" in caught.value.reason
    assert missing_type(row) == f"this kernel ({release}) has no vest namespaces: they need Linux 9.9"


@pytest.fixture
def kernel_without_vest(monkeypatch):
    """The table has a type that this kernel has not; it is told by the ioctl and by /proc as one would be."""
    row = BY_NAME["net"]._replace(name="vest", flag=0x8, get=0xFFFE, since="9.9")
    monkeypatch.setitem(BY_NAME, "vest", row)
    nstypes_._select.cache_clear()
    monkeypatch.setattr(nstypes_, "NSTYPES", (row, *nstypes_.NSTYPES))
    yield
    nstypes_._select.cache_clear()


@pytest.mark.usefixtures("kernel_without_vest")
@pytest.mark.parametrize("way", [0, 1], ids=["enter", "run_in"])
def test_a_type_that_this_kernel_lacks_cannot_be_joined(target, way):
    with pytest.raises(NamespaceError, match=r"has no vest namespaces.*need Linux 9\.9") as caught:
        ways_into(target.pid, "vest")[way]()
    assert caught.value.nstype == "vest"


@pytest.mark.usefixtures("kernel_without_vest")
def test_a_type_that_this_kernel_lacks_has_no_current_one():
    with pytest.raises(NamespaceError, match=r"no vest namespaces: they need Linux 9\.9"):
        Namespace.current("vest")


# --- user -------------------------------------------------------------------------------------------------------------


def test_our_own_user_namespace():
    with pytest.raises(JoinError, match="spawn_in"):
        enter(os.getpid(), "user")
    with Namespace.current("user") as own:
        assert "the user namespace of this thread" in reasons.of_setns(errno.EINVAL, own)


def test_a_user_namespace_beside_threads(start):
    running = start("user")
    with Namespace.from_pid(running.pid, "user") as user:
        assert "with threads" in reasons.of_setns(errno.EINVAL, user)
        with pytest.raises(JoinError, match="spawn_in"):
            enter(user)


# --- capabilities -----------------------------------------------------------------------------------------------------


@requires_root
@pytest.mark.parametrize("nstype", ["mnt", "uts", "ipc", "net", "pid", "cgroup"])
def test_missing_capabilities_name_the_user_namespace_and_its_maker(nstype):
    """root's user namespace and nobody: what nobody lacks, and where, and whose that is."""

    def test():
        with Namespace.current(nstype) as namespace, Namespace.current("user") as own:
            number = own.id.ino
            become_nobody()
            with pytest.raises(JoinPermissionError, match="CAP_SYS_ADMIN") as caught, enter(namespace):
                raise AssertionError("inside")
            assert (caught.value.errno, caught.value.step, caught.value.nstype) == (errno.EPERM, "setns", nstype)
            assert f"user:[{number}]" in caught.value.reason
            assert "made by uid 0; the caller has uid 65534" in caught.value.reason

    in_child(test)


@requires_root
def test_missing_capabilities_over_another_users_namespace(start):
    running = start("user", "net")

    def test():
        with Namespace.from_pid(running.pid, "net") as net, net.owner() as owner:
            become_nobody()
            for attempt in ways_into(net, "net"):
                with pytest.raises(JoinPermissionError, match="CAP_SYS_ADMIN") as caught:
                    attempt()
                assert f"user:[{owner.id.ino}]" in caught.value.reason
                assert "made by uid 0; the caller has uid 65534" in caught.value.reason

    in_child(test)


@requires_root
def test_the_owner_lacks_capabilities_at_home():
    """Alice may enter what she made only through its user namespace: setns asks for CAP_SYS_ADMIN in her own too."""

    def test():
        become_nobody()
        with forked(lambda: calls.unshare(flags("user", "net"))) as pid, Target.from_pid(pid) as process:
            for attempt in ways_into(process, "net"):
                with pytest.raises(JoinPermissionError, match="in the caller's user namespace too") as caught:
                    attempt()
                assert "'user'" in caught.value.reason
            assert run_in(process, ["true"], namespaces=["user", "net"]).returncode == 0

    in_child(test)


@requires_root
def test_what_belongs_to_a_user_namespace_outside_of_ours():
    def test():
        with Namespace.current("net") as outer:
            calls.unshare(flags("user"))
            with pytest.raises(JoinPermissionError, match=r"no way back.*this thread's net namespace"), enter(outer):
                raise AssertionError("inside")
            assert "neither the caller's nor a descendant of it" in reasons.of_setns(errno.EPERM, outer)

    in_child(test)


@requires_root
def test_mnt_needs_cap_sys_chroot_too(target):
    def test():
        drop_capability(CAP_SYS_CHROOT)
        with pytest.raises(JoinPermissionError, match="CAP_SYS_CHROOT") as caught, enter(target.pid, "mnt"):
            raise AssertionError("inside")
        assert caught.value.nstype == "mnt"

    in_child(test)


@requires_root
def test_root_without_capabilities(target):
    def test():
        with Namespace.current("user") as own:
            drop_capability(CAP_SYS_ADMIN)
            with pytest.raises(JoinPermissionError, match="CAP_SYS_ADMIN") as caught, enter(target.pid, "net"):
                raise AssertionError("inside")
            assert f"user:[{own.id.ino}]" in caught.value.reason

    in_child(test)


@requires_root
def test_looking_into_another_users_process(target):
    def test():
        become_nobody()
        for attempt in ways_into(target.pid, "net"):
            with pytest.raises(NamespaceError, match=r"CAP_SYS_PTRACE|CAP_SYS_ADMIN") as caught:
                attempt()
            assert isinstance(caught.value, PermissionError)

    in_child(test)


# --- pid namespaces, threads, /proc -----------------------------------------------------------------------------------


@requires_root
def test_a_pid_namespace_that_is_no_descendant(start):
    sibling = start("pid")

    def inside():
        for namespace in kept:
            for attempt in ways_into(namespace, "pid"):
                with pytest.raises(JoinError, match="only this thread's PID namespace and its descendants") as caught:
                    attempt()
                assert (caught.value.errno, caught.value.nstype) == (errno.EINVAL, "pid")

    def in_new_pid_namespace():
        kept.append(Namespace.current("pid"))  # the parent
        kept.append(Namespace.from_pid(sibling.pid, "pid"))
        with contextlib.ExitStack() as stack:
            for namespace in kept:
                stack.enter_context(namespace)
            calls.unshare(flags("pid"))
            in_child(inside)

    kept = []
    in_child(in_new_pid_namespace)


@requires_root
def test_a_descendant_has_no_such_reason(target):
    with Namespace.from_pid(target.pid, "pid") as namespace:
        assert reasons.of_setns(errno.EINVAL, namespace) is None


@requires_root
def test_threads_are_the_reason_that_time_cannot_be_entered(start):
    running = start("time")
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with Namespace.from_pid(running.pid, "time") as namespace:
            with pytest.raises(OSError, match="Too many users") as caught:
                calls.setns(namespace.fileno(), BY_NAME["time"].flag)
            assert "without threads" in reasons.of_setns(caught.value.errno, namespace)
        with pytest.raises(JoinError, match="without threads"), enter(running.pid, "time"):
            raise AssertionError("inside")
    finally:
        done.set()
        join(thread)


@requires_root
def test_threads_that_share_the_root_are_the_reason_that_mnt_cannot_be_joined(target):
    def test():
        done = threading.Event()
        thread = threading.Thread(target=done.wait, daemon=True)
        thread.start()
        with Namespace.from_pid(target.pid, "mnt") as namespace:
            with pytest.raises(OSError, match="Invalid argument") as caught:
                calls.setns(namespace.fileno(), BY_NAME["mnt"].flag)
            assert "shares its root and working directory" in reasons.of_setns(caught.value.errno, namespace)

    in_child(test)


def hide_processes():
    """A /proc in a mount namespace of our own that shows an ordinary user no process of others."""
    libc = ctypes.CDLL(None, use_errno=True)
    calls.unshare(flags("mnt"))
    assert libc.mount(b"none", b"/", None, 1 << 18 | 1 << 14, None) == 0  # MS_PRIVATE | MS_REC
    assert libc.mount(b"proc", b"/proc", b"proc", 0, b"hidepid=2") == 0
    become_nobody()


@requires_root
@pytest.mark.parametrize(
    "ask", [Target.from_pid, lambda pid: Namespace.from_pid(pid, "net")], ids=["Target", "Namespace"]
)
def test_a_hidden_proc_without_pidfds(target, ask):
    def test():
        hide_processes()
        become_old_kernel(pidfds=False)
        assert not os.path.exists(f"/proc/{target.pid}")
        with pytest.raises(NamespaceError, match=r"this /proc hides it \(mount option hidepid\)") as caught:
            ask(target.pid)
        assert not isinstance(caught.value, TargetGoneError)
        with pytest.raises(TargetGoneError):
            ask(NO_PROCESS)

    in_child(test)


@requires_root
@pytest.mark.parametrize("what", ["root", "net"])
def test_a_hidden_proc_on_a_kernel_that_gives_no_namespace_by_pidfd(target, what):
    def test():
        hide_processes()
        become_old_kernel(pidfds=True)
        with Target.from_pid(target.pid) as process:
            with pytest.raises(NamespaceError, match=r"this /proc hides it \(mount option hidepid\)") as caught:
                process._process.open_root() if what == "root" else process.namespace("net")
            assert not isinstance(caught.value, TargetGoneError)

    in_child(test)


def test_no_proc_at_all():
    def inside():
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mount(b"none", b"/proc", b"tmpfs", 0, None) == 0
        become_old_kernel(pidfds=False)
        with pytest.raises(NamespaceError, match="/proc is not mounted here"):
            Target.from_pid(os.getppid())

    def in_new_mount_namespace():
        calls.unshare(flags("user", "mnt"))
        in_child(inside)

    in_child(in_new_mount_namespace)


def test_an_errno_without_a_known_meaning_gets_no_reason():
    with Namespace.current("net") as namespace:
        assert reasons.of_setns(errno.EIO, namespace) is None
        assert reasons.of_setns(errno.EINVAL, namespace) is None


@requires_root
def test_with_all_capabilities_a_refusal_is_a_security_modules():
    with Namespace.current("net") as namespace:
        assert "security module" in reasons.of_setns(errno.EPERM, namespace)
