"""``Target`` holds one process; and everything that may, or may not, be named as a target."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading

import pytest
from changed import NOBODY, become_old_kernel, forked, in_child, join
from child import wait_until_ended
from conftest import requires_namespaces_of_pidfds, requires_root

import nsjoin
from nsjoin import Namespace, NamespaceError, NamespacePermissionError, Target, TargetGoneError
from nsjoin._engine import guard
from nsjoin._kernel import calls
from nsjoin._kernel.nstypes import BY_NAME, NSTYPES
from nsjoin._target.namespace import describe
from nsjoin._target.process import Process
from nsjoin._target.target import OpenTarget, check_target

IN_TARGET = ("mnt", "uts", "ipc", "net", "pid", "cgroup")


@contextlib.contextmanager
def zombie():
    """The pid of a child that has ended and is not waited for before the end of the block."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    try:
        wait_until_ended(child)
        yield child
    finally:
        os.waitpid(child, 0)


def gone():
    """The pid of a process that was, and is no more."""
    with zombie() as pid:
        pass
    return pid


def on_every_kernel(test):
    """Run ``test`` here, and in children that have no namespaces by pidfd, and no pidfds."""

    def run(kernel):
        if kernel == "this":
            test()
        else:
            in_child(lambda: (become_old_kernel(pidfds=kernel == "5.3"), test()))

    return run


KERNELS = pytest.mark.parametrize("kernel", ["this", "5.3", "5.2"])


# --- one process ------------------------------------------------------------------------------------------------------


@KERNELS
def test_it_gives_the_namespaces_of_its_process(target, kernel):
    @on_every_kernel
    def test():
        with Target.from_pid(target.pid) as process:
            assert process.pid == target.pid
            assert process.is_alive()
            for nstype in IN_TARGET:
                with process.namespace(nstype) as namespace:
                    assert namespace.nstype == nstype
                    assert namespace.id.ino == os.stat(f"/proc/{target.pid}/ns/{nstype}").st_ino

    test(kernel)


@KERNELS
def test_namespaces_opens_all_of_them(target, kernel):
    @on_every_kernel
    def test():
        with contextlib.ExitStack() as stack, Target.from_pid(target.pid) as process:
            found = process.namespaces()
            for namespace in found.values():
                stack.enter_context(namespace)
            expected = {name for name in os.listdir("/proc/self/ns") if not name.endswith("_for_children")}
            assert set(found) == expected
            for name, namespace in found.items():
                assert (namespace.nstype, namespace.id.ino) == (name, os.stat(f"/proc/{target.pid}/ns/{name}").st_ino)

    test(kernel)


@KERNELS
def test_it_gives_what_children_are_born_into(target, kernel):
    @on_every_kernel
    def test():
        outside = target.process.pid
        with Target.from_pid(outside) as unshare, unshare.namespace("pid", for_children=True) as children:
            assert children.id.ino == os.stat(f"/proc/{target.pid}/ns/pid").st_ino
            with unshare.namespace("pid") as own:
                assert own.id.ino == os.stat("/proc/self/ns/pid").st_ino != children.id.ino

    test(kernel)


@requires_namespaces_of_pidfds
def test_what_children_are_born_into_is_known_before_there_is_any():
    """Before the first child, /proc says ENOENT; the kernel's ioctl gives the namespace."""

    def unshare_and_ask():
        calls.unshare(BY_NAME["user"].flag | BY_NAME["pid"].flag)
        assert not os.path.exists("/proc/self/ns/pid_for_children")
        with Target.from_pid(os.getpid()) as own, own.namespace("pid", for_children=True) as children:
            assert children.nstype == "pid"
            assert children.id.ino != os.stat("/proc/self/ns/pid").st_ino

    in_child(unshare_and_ask)


@pytest.mark.parametrize("nstype", ["mnt", "user", "net"])
def test_other_types_have_no_namespace_for_children(nstype):
    with Target.from_pid(os.getpid()) as own, pytest.raises(ValueError, match="only pid and time do"):
        own.namespace(nstype, for_children=True)


@pytest.mark.parametrize(
    ("nstype", "kind"), [("nett", ValueError), ("", ValueError), (None, TypeError), (3, TypeError)]
)
def test_an_unknown_type_is_refused(nstype, kind):
    with Target.from_pid(os.getpid()) as own, pytest.raises(kind, match="namespace type"):
        own.namespace(nstype)


@KERNELS
def test_a_zombie_is_not_alive_and_has_no_namespaces(kernel):
    @on_every_kernel
    def test():
        with zombie() as pid, Target.from_pid(pid) as process:
            assert process._process.state() == "zombie"
            assert not process.is_alive()
            for ask in (lambda: process.namespace("net"), process.namespaces, process._process.open_root):
                with pytest.raises(TargetGoneError, match="it is a zombie") as caught:
                    ask()
                assert caught.value.target == f"process {pid}"

    test(kernel)


@KERNELS
def test_ended_process_is_gone(kernel):
    @on_every_kernel
    def test():
        with zombie() as pid:
            process = Target.from_pid(pid)
        with process:
            assert process._process.state() == "gone"
            assert not process.is_alive()
            for ask in (lambda: process.namespace("net"), process.namespaces, process._process.open_root):
                with pytest.raises(TargetGoneError, match="No such process") as caught:
                    ask()
                assert caught.value.target == f"process {pid}"

    test(kernel)


@pytest.mark.parametrize("kernel", ["5.3", "5.2", "this"])
def test_another_process_with_its_pid_is_never_taken_for_it(kernel):
    """In a PID namespace of the test's own, whose next pid can be set: ns_last_pid, proc(5)."""

    def inside():
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mount(b"none", b"/", None, 1 << 18 | 1 << 14, None) == 0  # MS_PRIVATE | MS_REC
        assert libc.mount(b"proc", b"/proc", b"proc", 0, None) == 0
        if kernel != "this":
            become_old_kernel(pidfds=kernel == "5.3")
        with zombie() as pid:
            process = Target.from_pid(pid)
        with open("/proc/sys/kernel/ns_last_pid", "w") as last:
            last.write(str(pid - 1))
        with process, forked(lambda: None) as other:
            assert other == pid
            assert process._process.state() == "gone"
            for ask in (lambda: process.namespace("net"), process.namespaces, process._process.open_root):
                with pytest.raises(TargetGoneError):
                    ask()

    def in_new_pid_namespace():
        calls.unshare(BY_NAME["user"].flag | BY_NAME["pid"].flag | BY_NAME["mnt"].flag)
        in_child(inside)

    in_child(in_new_pid_namespace)


@pytest.mark.parametrize("pid", [2**22 + 1, 2**31 - 1, 2**31, 2**63, 10**50], ids=str)
@KERNELS
def test_no_process_is_gone(pid, kernel):
    @on_every_kernel
    def test():
        with pytest.raises(TargetGoneError, match=f"process {pid}: No such process"):
            Target.from_pid(pid)

    test(kernel)


def test_from_pid_of_a_reaped_process_raises_gone():
    with pytest.raises(ProcessLookupError):
        Target.from_pid(gone())


@pytest.mark.parametrize(
    ("pid", "kind"),
    [(True, TypeError), (False, TypeError), ("1", TypeError), (None, TypeError), (0, ValueError), (-7, ValueError)],
    ids=repr,
)
def test_from_pid_refuses_what_is_no_pid(pid, kind):
    with pytest.raises(kind, match="a pid is"):
        Target.from_pid(pid)


def test_from_pid_takes_a_thread():
    ids, started, done = [], threading.Event(), threading.Event()

    def live():
        ids.append(threading.get_native_id())
        started.set()
        done.wait()

    thread = threading.Thread(target=live)
    thread.start()
    started.wait()
    try:
        with Target.from_pid(ids[0]) as one, one.namespace("uts") as uts:
            assert one.is_alive()
            assert uts.id.ino == os.stat("/proc/self/ns/uts").st_ino
    finally:
        done.set()
        join(thread)


# --- its pidfd --------------------------------------------------------------------------------------------------------


def test_fileno_is_the_pidfd_which_becomes_readable_at_the_end(start):
    running = start("uts")
    with Target.from_pid(running.pid) as process:
        assert process.fileno() == process._process.pidfd > 2
        assert not os.get_inheritable(process.fileno())
        with open(f"/proc/self/fdinfo/{process.fileno()}") as info:
            assert f"Pid:\t{running.pid}\n" in info
        assert process.is_alive()
        running.end()
        assert not process.is_alive()


def test_from_pidfd_duplicates_and_leaves_the_caller_his_own(target):
    pidfd = calls.pidfd_open(target.pid)
    try:
        with Target.from_pidfd(pidfd) as process:
            assert process.pid == target.pid
            assert process.fileno() != pidfd
            with process.namespace("net") as net:
                assert net.id.ino == os.stat(f"/proc/{target.pid}/ns/net").st_ino
        assert os.fstat(pidfd)
    finally:
        os.close(pidfd)


def test_from_pidfd_works_without_the_ioctl_that_tells_the_pid(target):
    def test():
        become_old_kernel(pidfds=True)
        with Target.from_pidfd(calls.pidfd_open(target.pid)) as process:
            assert process.pid == target.pid

    in_child(test)


@pytest.mark.parametrize("kernel", ["this", "5.3"])
def test_from_pidfd_of_an_ended_process_raises_gone(kernel):
    @on_every_kernel
    def test():
        with zombie() as pid:
            pidfd = calls.pidfd_open(pid)
        try:
            with pytest.raises(TargetGoneError, match="has ended"):
                Target.from_pidfd(pidfd)
        finally:
            os.close(pidfd)

    test(kernel)


@pytest.mark.parametrize("path", ["/dev/null", "/", "/proc/self/ns/net", "/proc/self/status"])
def test_from_pidfd_refuses_any_other_descriptor(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(ValueError, match="no pidfd"):
            Target.from_pidfd(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("fd", [None, "0", -1], ids=repr)
def test_from_pidfd_refuses_what_is_no_descriptor(fd):
    with pytest.raises((TypeError, ValueError)):
        Target.from_pidfd(fd)


def test_from_pidfd_of_a_number_that_is_not_open_is_ebadf():
    with pytest.raises(OSError, match="Bad file descriptor"):
        Target.from_pidfd(1_000_000)


def test_without_pidfds_fileno_says_what_it_needs():
    def test():
        become_old_kernel(pidfds=False)
        with Target.from_pid(os.getppid()) as process:
            assert process._process.pidfd == -1
            with pytest.raises(NamespaceError, match=r"needs Linux 5\.3"):
                process.fileno()

    in_child(test)


# --- where the kernel, or /proc, does not help ------------------------------------------------------------------------


def lowest_free_descriptor():
    """What a leak would change; here /proc/self shows nothing of ours."""
    fd = os.dup(0)
    os.close(fd)
    return fd


def test_a_proc_of_another_pid_namespace_is_not_believed():
    """Its pids mean others: there our 1 is somebody else's."""

    def inside():
        become_old_kernel(pidfds=False)
        guard.is_guarded()  # the thread's own pidfd is its parent's since the fork, and is given up
        before = lowest_free_descriptor()
        with pytest.raises(NamespaceError, match="belongs to another PID namespace") as caught:
            Target.from_pid(os.getpid())
        gc.collect()  # a process that stayed open would warn now
        assert caught.value.step == "open /proc"
        assert lowest_free_descriptor() == before

    def in_new_pid_namespace():
        calls.unshare(BY_NAME["user"].flag | BY_NAME["pid"].flag)
        in_child(inside)  # pid 1 there, and /proc is still the outer one

    in_child(in_new_pid_namespace)


@requires_namespaces_of_pidfds
def test_by_pidfd_a_target_needs_no_proc():
    """Nor does it matter that there is none, or another's."""

    def inside():
        child = os.fork()
        if child == 0:
            signal.pause()
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mount(b"none", b"/proc", b"tmpfs", 0, None) == 0
        assert os.listdir("/proc") == []
        with Target.from_pid(child) as process, process.namespace("net") as net, Namespace.current("net") as own:
            assert process.is_alive()
            assert net == own
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    def in_new_pid_namespace():
        calls.unshare(BY_NAME["user"].flag | BY_NAME["pid"].flag | BY_NAME["mnt"].flag)
        in_child(inside)

    in_child(in_new_pid_namespace)


@requires_root
def test_an_ordinary_user_may_not_look_into_a_process_of_root(target):
    def test():
        os.setresuid(NOBODY, NOBODY, NOBODY)
        with Target.from_pid(target.pid) as process:
            assert process.is_alive()
            for ask in (lambda: process.namespace("net"), process.namespaces, process._process.open_root):
                with pytest.raises(NamespacePermissionError, match="CAP_SYS_PTRACE"):
                    ask()

    in_child(test)


PROMISED = {
    nsjoin.Target: "close closed fileno from_pid from_pidfd is_alive namespace namespaces pid pid_in",
    Namespace: (
        "close closed current fileno from_fd from_netns from_path from_pid id nstype owner owner_uid parent pin"
    ),
}


@pytest.mark.parametrize("kind", PROMISED)
def test_a_public_class_shows_only_its_documented_names(kind):
    assert [name for name in dir(kind) if not name.startswith("_")] == PROMISED[kind].split()


# --- its end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda process: process.fileno(),
        lambda process: process._process.pidfd,
        lambda process: process.is_alive(),
        lambda process: process.namespace("net"),
        lambda process: process.namespaces(),
        lambda process: process._process.proc(),
        lambda process: process.__enter__(),
    ],
    ids=["fileno", "pidfd", "is_alive", "namespace", "namespaces", "proc", "with"],
)
def test_use_after_close_is_an_error(use):
    process = Target.from_pid(os.getpid())
    process.close()
    process.close()
    assert process.closed
    assert process.pid == os.getpid()
    assert repr(process) == f"<Target {os.getpid()} closed>"
    with pytest.raises(ValueError, match="closed"):
        use(process)


def test_unclosed_object_warns_and_is_closed():
    process = Target.from_pid(os.getpid())
    fds = process.fileno(), process._process.proc()
    with pytest.warns(ResourceWarning, match=f"unclosed <Target {os.getpid()}>"):
        process = None  # that was the only reference
        gc.collect()  # PyPy does not count references
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_namespaces_closes_all_when_any_cannot_be_opened(monkeypatch):
    """The leak guard is the judge."""
    original = Process.open_namespace

    def open_most(self, row, *, for_children=False):
        if row is NSTYPES[-1]:
            raise KeyboardInterrupt
        return original(self, row, for_children=for_children)

    monkeypatch.setattr(Process, "open_namespace", open_most)
    with Target.from_pid(os.getpid()) as own, pytest.raises(KeyboardInterrupt):
        own.namespaces()


# --- what may be named as a target ------------------------------------------------------------------------------------


class HasPid:
    def __init__(self, pid):
        self.pid = pid


class IntSubclass(int):
    pass


def test_a_pid_is_a_target():
    assert check_target(7) == 7
    assert check_target(IntSubclass(7)) == 7
    assert check_target(2**70) == 2**70  # no such process, which only the kernel can say


def test_an_object_with_a_pid_is_a_target(target):
    assert check_target(HasPid(7)) == 7
    assert check_target(target) == target.pid
    assert check_target(target.process) == target.process.pid
    assert check_target(multiprocessing.current_process()) == os.getpid()


def test_an_open_target_or_namespace_is_a_target():
    with Target.from_pid(os.getpid()) as process, Namespace.current("net") as net, Namespace.current("uts") as uts:
        assert check_target(process) is process._process
        assert check_target(net) == (net,)
        assert check_target([net, uts]) == (net, uts)
        assert check_target(iter([net])) == (net,)
        assert check_target({net, uts}) in ((net, uts), (uts, net))
        assert check_target((net, "/run/netns/blue")) == (net, "/run/netns/blue")


@pytest.mark.parametrize("path", ["/run/netns/blue", b"/run/netns/blue", "relative", pathlib.Path("/run/netns/blue")])
def test_a_path_is_a_target(path):
    assert check_target(path) == (os.fspath(path),)
    assert check_target([path]) == (os.fspath(path),)


USES = {
    "check_target": check_target,
    "enter": lambda named: nsjoin.enter(named, "net"),
    "run_in": lambda named: nsjoin.run_in(named, ["true"]),
    "spawn_in": lambda named: nsjoin.spawn_in(named, ["true"]),
}
BAD_TARGETS = [
    (None, TypeError),
    (True, TypeError),
    (False, TypeError),
    (0, ValueError),
    (-1, ValueError),
    (-(2**70), ValueError),
    (1.0, TypeError),
    (1j, TypeError),
    (object(), TypeError),
    (HasPid(None), TypeError),  # a multiprocessing.Process before its start
    (HasPid(True), TypeError),
    (HasPid("7"), TypeError),
    (HasPid(0), ValueError),
    (HasPid(-1), ValueError),
    (multiprocessing.Process(), TypeError),
    ("", ValueError),
    (b"", ValueError),
    ("/run/netns/\0", ValueError),
    (b"/run/netns/\0", ValueError),
    ([7], TypeError),
    ([None], TypeError),
    ([[]], TypeError),
    ([], ValueError),
    ([HasPid(7)], TypeError),
    (["/run/netns/blue", 7], TypeError),
    ([""], ValueError),
    (["a\0"], ValueError),
    (bytearray(b"/run/netns/blue"), TypeError),
    ({7: "net"}, TypeError),
    (range(3), TypeError),
]


@pytest.mark.parametrize(("named", "kind"), BAD_TARGETS, ids=lambda value: repr(value)[:30])
@pytest.mark.parametrize("use", USES)
def test_anything_else_is_refused_before_any_system_call(named, kind, use):
    with pytest.raises(kind):
        USES[use](named)


def test_a_closed_target_or_namespace_is_refused():
    process, namespace = Target.from_pid(os.getpid()), Namespace.current("net")
    process.close()
    namespace.close()
    for closed in (process, namespace, [namespace], ["/proc/self/ns/uts", namespace]):
        with pytest.raises(ValueError, match="is closed"):
            check_target(closed)
        with pytest.raises(ValueError, match="is closed"):
            nsjoin.enter(closed, "net")
        with pytest.raises(ValueError, match="is closed"):
            nsjoin.run_in(closed, ["true"])


@pytest.mark.parametrize(
    ("namespaces", "kind"),
    [("net", TypeError), (b"net", TypeError), (["nett"], ValueError), ([None], TypeError), (5, TypeError)],
    ids=repr,
)
def test_namespaces_is_an_iterable_of_types(target, namespaces, kind):
    with pytest.raises(kind):
        nsjoin.run_in(target.pid, ["true"], namespaces=namespaces)


@pytest.mark.parametrize("path", ["/", "/proc/self", "/dev/null", "/proc/self/status"])
def test_a_path_of_another_file_is_refused_when_it_is_opened(path):
    with pytest.raises(nsjoin.NotANamespaceError, match="not a namespace file"):
        OpenTarget(check_target(path))
    with pytest.raises(nsjoin.NotANamespaceError):
        OpenTarget(check_target(["/proc/self/ns/net", path]))  # what was opened before is closed again


def test_two_namespaces_of_one_type_are_refused():
    with pytest.raises(ValueError, match="two net namespaces"):
        OpenTarget(check_target(["/proc/self/ns/net", "/proc/self/ns/uts", "/proc/self/ns/net"]))


def test_an_open_target_closes_only_what_it_has_opened():
    with Target.from_pid(os.getpid()) as process, Namespace.current("net") as net:
        with OpenTarget(check_target(process)) as opened:
            assert opened.process is process._process
            assert opened.describe() == f"process {os.getpid()}"
        with OpenTarget(check_target([net, "/proc/self/ns/uts"])) as opened:
            own, uts = opened.namespaces
            assert own is net
            assert opened.describe() == f"{describe(net)}, {describe(uts)}"
        assert not process.closed
        assert not net.closed
        assert uts.closed
    with OpenTarget(check_target(os.getpid())) as opened:
        process = opened.process
        assert process.is_alive()
    assert process.closed


def test_the_process_of_subprocess_is_a_target():
    program = [sys.executable, "-c", "input()"]
    with subprocess.Popen(program, stdin=subprocess.PIPE) as process, OpenTarget(check_target(process)) as opened:
        assert opened.process.pid == process.pid
