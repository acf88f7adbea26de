"""``Namespace``: opened in four ways, known by what it is, closed once."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import os
import pickle
import signal
import socket
import sys
import threading
import types
from typing import TYPE_CHECKING, Any

import pytest
from changed import NOBODY, become_old_kernel, in_child, join
from conftest import requires_namespaces_of_pidfds, requires_root

import nsjoin
from nsjoin import (
    Namespace,
    NamespaceError,
    NamespaceId,
    NamespaceNotFoundError,
    NamespacePermissionError,
    NotANamespaceError,
    TargetGoneError,
)
from nsjoin._kernel import abi, calls
from nsjoin._kernel.nstypes import BY_NAME
from nsjoin._target.process import Process
from nsjoin._verbs.create import PidNamespace
from nsjoin.aio import _program as aio_program
from nsjoin.aio import _start as aio_start
from nsjoin.aio import _transport as aio_transport

if TYPE_CHECKING:
    from collections.abc import Callable

ALL = ("user", "cgroup", "ipc", "uts", "net", "time", "pid", "mnt")
IN_TARGET = ("mnt", "uts", "ipc", "net", "pid", "cgroup")
NOT_NAMESPACES = ["a directory", "a file", "a FIFO", "a socket", "a device", "a link to a file"]


def inode(pid, entry):
    return os.stat(f"/proc/{pid}/ns/{entry}").st_ino


# --- four ways to open one --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nstype", IN_TARGET)
def test_from_pid_opens_the_namespace_that_the_process_is_in(target, nstype):
    with Namespace.from_pid(target.pid, nstype) as namespace:
        assert namespace.nstype == nstype
        assert namespace.id.ino == os.fstat(namespace.fileno()).st_ino == inode(target.pid, nstype)
        assert calls.namespace_type(namespace.fileno()) == BY_NAME[nstype].flag
        with Namespace.current(nstype) as own:
            assert own != namespace


@pytest.mark.parametrize("nstype", ["pid", "time"])
def test_from_pid_opens_what_children_are_born_into(start, nstype):
    outside = start("pid", "time").process.pid
    with Namespace.from_pid(outside, nstype, for_children=True) as children:
        assert children.nstype == nstype
        assert children.id.ino == inode(outside, f"{nstype}_for_children")
        with Namespace.from_pid(outside, nstype) as own:
            assert own != children
            assert own.id.ino == inode(os.getpid(), nstype)


@pytest.mark.parametrize("nstype", ["mnt", "uts", "ipc", "net", "user", "cgroup"])
def test_only_pid_and_time_have_another_one_for_children(nstype):
    with pytest.raises(ValueError, match="only pid and time do"):
        Namespace.from_pid(os.getpid(), nstype, for_children=True)
    with pytest.raises(ValueError, match="only pid and time do"):
        Namespace.current(nstype, for_children=True)


@requires_root
def test_from_pid_takes_the_id_of_a_thread():
    ids, done = [], threading.Event()

    def live_elsewhere():
        calls.unshare(BY_NAME["uts"].flag)
        ids.append(threading.get_native_id())
        moved.set()
        done.wait()

    moved = threading.Event()
    thread = threading.Thread(target=live_elsewhere)
    thread.start()
    moved.wait()
    try:
        with Namespace.from_pid(ids[0], "uts") as namespace:
            assert namespace.id.ino == os.stat(f"/proc/self/task/{ids[0]}/ns/uts").st_ino != inode(os.getpid(), "uts")
    finally:
        done.set()
        join(thread)


@pytest.mark.parametrize("nstype", ALL)
@pytest.mark.parametrize("kind", [str, os.fsencode, lambda path: FsPath(path)], ids=["str", "bytes", "PathLike"])
def test_from_path_finds_out_the_type(nstype, kind):
    with Namespace.from_path(kind(f"/proc/self/ns/{nstype}")) as namespace:
        assert namespace.nstype == nstype
        assert namespace.id.ino == inode("self", nstype)


class FsPath:
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


@requires_root
def test_from_path_opens_a_bind_mount(target, tmp_path):
    def open_bind_mount():
        libc = ctypes.CDLL(None, use_errno=True)
        calls.unshare(BY_NAME["mnt"].flag)
        assert libc.mount(b"none", b"/", None, 1 << 18 | 1 << 14, None) == 0  # MS_PRIVATE | MS_REC
        path = tmp_path / "blue"
        path.touch()
        source = f"/proc/{target.pid}/ns/net".encode()
        assert libc.mount(source, os.fsencode(path), None, 1 << 12, None) == 0  # MS_BIND
        with Namespace.from_path(path) as pinned:
            assert pinned.nstype == "net"
            assert pinned.id.ino == inode(target.pid, "net")

    in_child(open_bind_mount)


@pytest.mark.parametrize("nstype", ALL)
def test_from_fd_duplicates_and_leaves_the_caller_his_own(nstype):
    fd = os.open(f"/proc/self/ns/{nstype}", os.O_RDONLY)
    try:
        with Namespace.from_fd(fd) as namespace:
            assert namespace.nstype == nstype
            assert namespace.fileno() != fd
            assert namespace.id.ino == os.fstat(fd).st_ino
        assert os.fstat(fd).st_ino == namespace.id.ino
    finally:
        os.close(fd)


@pytest.mark.parametrize("nstype", ALL)
def test_current_is_this_threads(nstype):
    with Namespace.current(nstype) as namespace:
        assert (namespace.nstype, namespace.id.ino) == (nstype, inode("thread-self", nstype))


@pytest.mark.parametrize("nstype", [pytest.param("pid", marks=requires_namespaces_of_pidfds), "time"])
def test_current_for_children_is_what_children_get(nstype):
    def differ():
        calls.unshare(BY_NAME["user"].flag | BY_NAME[nstype].flag)
        with Namespace.current(nstype, for_children=True) as children, Namespace.current(nstype) as own:
            assert children.id.ino == inode("self", f"{nstype}_for_children") if nstype == "time" else children != own
            assert own.id.ino == inode("self", nstype) != children.id.ino

    in_child(differ)


@pytest.mark.parametrize("pidfds", [True, False], ids=["5.3", "5.2"])
def test_all_is_the_same_on_a_kernel_that_gives_no_namespace_by_pidfd(target, pidfds):
    def open_all():
        become_old_kernel(pidfds=pidfds)
        with pytest.raises(OSError, match=r"Inappropriate ioctl|Function not implemented"):
            calls.pidfd_namespace(calls.pidfd_open(os.getpid()), BY_NAME["net"].get)
        for nstype in IN_TARGET:
            with Namespace.from_pid(target.pid, nstype) as theirs, Namespace.current(nstype) as own:
                assert theirs.id == NamespaceId(os.stat(f"/proc/{target.pid}/ns/{nstype}").st_dev, theirs.id.ino, None)
                assert theirs.id.ino == inode(target.pid, nstype)
                assert own.id.ino == inode("self", nstype) != theirs.id.ino
        with Namespace.from_pid(target.process.pid, "pid", for_children=True) as children:
            assert children.id.ino == inode(target.pid, "pid")
        with Namespace.current("pid", for_children=True) as children:
            assert children.id.ino == inode("self", "pid")

    in_child(open_all)


@pytest.mark.parametrize("way", ["from_pid", "from_path", "from_fd", "current"])
def test_descriptors_are_closed_at_exec_and_above_stdio(way):
    def without_stdio():
        source = os.open("/proc/self/ns/uts", os.O_RDONLY)
        os.closerange(0, 3)
        argument = {"from_pid": (os.getpid(), "uts"), "from_path": ("/proc/self/ns/uts",), "from_fd": (source,)}
        with getattr(Namespace, way)(*argument.get(way, ("uts",))) as namespace:
            assert namespace.fileno() > 2
            assert not os.get_inheritable(namespace.fileno())
            assert all(not os.path.exists(f"/proc/self/fd/{number}") for number in range(3))

    in_child(without_stdio)


# --- what it is known by ----------------------------------------------------------------------------------------------


def test_two_are_equal_if_they_are_the_same_namespace(target):
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(Namespace.from_pid(target.pid, "net"))
        same = stack.enter_context(Namespace.from_path(f"/proc/{target.pid}/ns/net"))
        other = stack.enter_context(Namespace.from_pid(target.pid, "uts"))
        assert one == same
        assert hash(one) == hash(same)
        assert one != other
        assert {one, same, other} == {one, other}
        assert one != one.id
        assert one != one.fileno()


def test_type_id_equality_and_hash_can_be_read_when_closed(target):
    with Namespace.from_pid(target.pid, "net") as one:
        before = one.id, hash(one)
    assert (one.id, hash(one), one.nstype, one.closed) == (*before, "net", True)
    with Namespace.from_pid(target.pid, "net") as again:
        assert again == one
        assert {one: "found"}[again] == "found"


def test_the_id_is_the_file_and_the_kernels_own_number(target):
    with Namespace.from_pid(target.pid, "net") as namespace, Namespace.from_pid(target.pid, "uts") as other:
        status = os.fstat(namespace.fileno())
        assert namespace.id[:2] == (status.st_dev, status.st_ino)
        if namespace.id.unique is not None:  # Linux 6.18
            assert namespace.id.unique != other.id.unique


@pytest.mark.parametrize(
    ("one", "two", "equal"),
    [
        (NamespaceId(1, 2, None), NamespaceId(1, 2, None), True),
        (NamespaceId(1, 2, None), NamespaceId(1, 3, None), False),
        (NamespaceId(1, 2, None), NamespaceId(9, 2, None), False),
        (NamespaceId(1, 2, 7), NamespaceId(1, 2, 7), True),
        (NamespaceId(1, 2, 7), NamespaceId(1, 2, 8), False),  # the number was given out again
        (NamespaceId(1, 2, 7), NamespaceId(1, 2, None), True),  # one of them is known by an old kernel's means
        (NamespaceId(1, 2, 7), NamespaceId(1, 3, None), False),
    ],
)
def test_ids_compare_by_the_unique_number_where_both_have_it(one, two, equal):
    assert (one == two) is equal
    assert (one != two) is not equal
    if equal:
        assert hash(one) == hash(two)


@requires_root
def test_a_recycled_inode_number_is_another_namespace():
    def make():
        calls.unshare(BY_NAME["uts"].flag)
        with Namespace.current("uts") as namespace:
            return namespace

    def make_until_recycled():
        first = make()
        if first.id.unique is None:
            return  # before Linux 6.18 nothing tells them apart
        calls.unshare(BY_NAME["uts"].flag)  # ends the first one
        for _ in range(1000):
            again = make()
            if again.id[:2] == first.id[:2]:
                assert again != first
                return
            calls.unshare(BY_NAME["uts"].flag)
        raise AssertionError("the kernel gives no number out again any more: this test proves nothing")

    in_child(make_until_recycled)


# --- whose it is ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nstype", ["mnt", "uts", "ipc", "net", "pid", "cgroup"])
def test_the_owner_is_the_user_namespace_that_the_target_was_made_in(start, nstype):
    running = start("user", nstype)
    with Namespace.from_pid(running.pid, nstype) as namespace, namespace.owner() as owner:
        assert owner.nstype == "user"
        assert owner.id.ino == inode(running.pid, "user")
        assert namespace.owner_uid() == os.geteuid()


def test_parent_of_a_user_namespace_is_ours(start):
    running = start("user", "net")
    with Namespace.from_pid(running.pid, "user") as user, user.parent() as parent, user.owner() as owner:
        assert parent.id.ino == owner.id.ino == inode("self", "user")
        assert user.owner_uid() == os.geteuid()


def test_parent_of_a_pid_namespace_is_ours(target):
    with Namespace.from_pid(target.pid, "pid") as pid, pid.parent() as parent:
        assert parent.nstype == "pid"
        assert parent.id.ino == inode("self", "pid")


@pytest.mark.parametrize("nstype", ["mnt", "uts", "ipc", "net", "cgroup", "time"])
def test_only_pid_and_user_namespaces_have_parents(nstype):
    with Namespace.current(nstype) as namespace, pytest.raises(ValueError, match="only pid and user namespaces"):
        namespace.parent()


def test_what_lies_outside_of_ours_is_not_shown():
    def ask_from_inside():
        with Namespace.current("net") as outer:
            calls.unshare(BY_NAME["user"].flag)
            with pytest.raises(NamespacePermissionError, match="outside of the caller") as caught:
                outer.owner()
            assert (caught.value.step, caught.value.nstype) == ("NS_GET_USERNS", "net")
            assert str(outer.id.ino) in str(caught.value)
            with pytest.raises(NamespacePermissionError):
                outer.owner_uid()
        with Namespace.current("user") as own, pytest.raises(NamespacePermissionError) as caught:
            own.parent()
        assert caught.value.step == "NS_GET_PARENT"

    in_child(ask_from_inside)


@requires_root
def test_owner_uid_is_the_creator_of_the_user_namespace():
    def ask():
        with contextlib.ExitStack() as stack:
            reader, writer = os.pipe()
            child = os.fork()
            if child == 0:
                os.setresuid(NOBODY, NOBODY, NOBODY)
                calls.unshare(BY_NAME["user"].flag | BY_NAME["net"].flag)
                os.write(writer, b"!")
                signal.pause()
            stack.callback(os.waitpid, child, 0)
            stack.callback(os.kill, child, signal.SIGKILL)
            assert os.read(reader, 1) == b"!"
            for nstype in ("user", "net"):
                with Namespace.from_pid(child, nstype) as namespace:
                    assert namespace.owner_uid() == NOBODY

    in_child(ask)


# --- what is none -----------------------------------------------------------------------------------------------------


def make_not_a_namespace(kind, path):
    if kind == "a directory":
        path.mkdir()
    elif kind == "a file":
        path.write_text("text")
    elif kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        (path.parent / "file").write_text("text")
        path.symlink_to(path.parent / "file")
    return path


@pytest.mark.parametrize("kind", NOT_NAMESPACES)
def test_any_other_file_is_refused_and_never_waited_for(kind, tmp_path):
    path = make_not_a_namespace(kind, tmp_path / "other")

    def open_it():
        with pytest.raises(NotANamespaceError, match="not a namespace file") as caught:
            Namespace.from_path(path)
        assert isinstance(caught.value, ValueError)
        assert (caught.value.step, caught.value.target) == ("open", str(path))
        assert caught.value.errno == 22

    in_child(open_it)  # with a time limit: to open a FIFO for reading waits for a writer


@pytest.mark.parametrize("path", ["/proc/self/ns", "/proc/self/status", "/dev/null", "/proc/self/ns/../cmdline"])
def test_files_of_proc_and_dev_are_refused(path):
    with pytest.raises(NotANamespaceError):
        Namespace.from_path(path)


def test_a_fifo_put_in_place_of_the_file_meanwhile_is_not_waited_for(tmp_path, monkeypatch):
    path = make_not_a_namespace("a FIFO", tmp_path / "fifo")
    monkeypatch.setattr(os.path, "isfile", lambda _: True)  # as it was a moment ago

    def open_it():
        with pytest.raises(NotANamespaceError):
            Namespace.from_path(path)

    in_child(open_it)


@pytest.mark.parametrize("path", ["nowhere", "a/b/c"])
def test_a_missing_file_is_not_found(path, tmp_path):
    with pytest.raises(NamespaceNotFoundError) as caught:
        Namespace.from_path(tmp_path / path)
    assert str(tmp_path / path) in str(caught.value)


def test_a_file_in_the_place_of_a_directory_is_not_found(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NamespaceNotFoundError):
        Namespace.from_path(tmp_path / "file" / "net")


def test_a_loop_of_links_is_an_error(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(NamespaceError) as caught:
        Namespace.from_path(tmp_path / "loop")
    assert caught.value.target == str(tmp_path / "loop")


@requires_root
def test_what_may_not_be_opened_is_a_permission_error(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    closed = tmp_path / "closed" / "net"

    def open_both():
        os.setresuid(NOBODY, NOBODY, NOBODY)
        for path in (closed, "/proc/1/ns/net"):
            with pytest.raises(NamespacePermissionError) as caught:
                Namespace.from_path(path)
            assert caught.value.target == str(path)

    in_child(open_both)


@pytest.mark.parametrize("path", [None, 3, True, 1.0, ["/proc/self/ns/net"]], ids=repr)
def test_from_path_takes_paths_only(path):
    with pytest.raises(TypeError):
        Namespace.from_path(path)


def test_a_nul_in_the_path_is_a_value_error():
    with pytest.raises(ValueError, match="null"):
        Namespace.from_path("/proc/self/ns/net\0")


@pytest.mark.parametrize(
    "flags", [os.O_RDONLY, abi.O_PATH, abi.O_PATH | os.O_DIRECTORY], ids=["a file", "O_PATH of a file", "O_PATH"]
)
def test_from_fd_refuses_any_other_descriptor(flags, tmp_path):
    (tmp_path / "file").touch()
    fd = os.open(tmp_path if flags & os.O_DIRECTORY else tmp_path / "file", flags)
    try:
        with pytest.raises(NotANamespaceError, match=f"descriptor {fd}") as caught:
            Namespace.from_fd(fd)
        assert os.fstat(fd)
    finally:
        os.close(fd)
    assert caught.value.step == "open"


def test_an_o_path_descriptor_of_a_namespace_is_none_since_setns_does_not_take_it():
    fd = os.open("/proc/self/ns/net", abi.O_PATH)
    try:
        with pytest.raises(NotANamespaceError):
            Namespace.from_fd(fd)
    finally:
        os.close(fd)


def test_from_fd_refuses_pipes_and_sockets_and_pidfds():
    reader, writer = os.pipe()
    one, two = socket.socketpair()
    pidfd = calls.pidfd_open(os.getpid())
    try:
        for fd in (reader, writer, one.fileno(), pidfd):
            with pytest.raises(NotANamespaceError):
                Namespace.from_fd(fd)
    finally:
        one.close()
        two.close()
        for fd in (reader, writer, pidfd):
            os.close(fd)


@pytest.mark.parametrize("fd", [-1, None, "0", 1 << 40], ids=repr)
def test_from_fd_refuses_what_is_no_descriptor(fd):
    with pytest.raises((TypeError, ValueError, OverflowError)):
        Namespace.from_fd(fd)


def test_from_fd_of_a_number_that_is_not_open_is_ebadf():
    with pytest.raises(OSError, match="Bad file descriptor"):
        Namespace.from_fd(1_000_000)


@pytest.mark.parametrize(
    ("pid", "kind"),
    [(True, TypeError), ("1", TypeError), (None, TypeError), (1.0, TypeError), (0, ValueError), (-1, ValueError)],
    ids=repr,
)
def test_from_pid_refuses_what_is_no_pid(pid, kind):
    with pytest.raises(kind, match="a pid is"):
        Namespace.from_pid(pid, "net")


@pytest.mark.parametrize("pid", [2**22 + 1, 2**31 - 1, 2**31, 2**64, 10**100], ids=str)
def test_from_pid_of_no_process_says_that_it_is_gone(pid):
    with pytest.raises(TargetGoneError, match=f"process {pid}: No such process"):
        Namespace.from_pid(pid, "net")


@pytest.mark.parametrize("nstype", ["", "nett", "pid_for_children"])
def test_an_unknown_type_is_a_value_error(nstype):
    with pytest.raises(ValueError, match="unknown namespace type"):
        Namespace.from_pid(os.getpid(), nstype)
    with pytest.raises(ValueError, match="unknown namespace type"):
        Namespace.current(nstype)


# --- its end ----------------------------------------------------------------------------------------------------------


def test_with_closes_it():
    with Namespace.current("net") as namespace:
        assert not namespace.closed
        fd = namespace.fileno()
        assert os.fstat(fd)
    assert namespace.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_closing_twice_closes_nothing_else():
    namespace = Namespace.current("net")
    number = namespace.fileno()
    namespace.close()
    reader, writer = os.pipe()  # one of them gets the number
    try:
        assert number in (reader, writer)
        namespace.close()
        assert os.fstat(reader)
        assert os.fstat(writer)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize(
    "use",
    [
        lambda namespace: namespace.fileno(),
        lambda namespace: namespace.owner(),
        lambda namespace: namespace.parent(),
        lambda namespace: namespace.owner_uid(),
        lambda namespace: namespace.__enter__(),
    ],
    ids=["fileno", "owner", "parent", "owner_uid", "with"],
)
def test_use_after_close_is_an_error(use):
    namespace = Namespace.current("pid")
    namespace.close()
    with pytest.raises(ValueError, match="closed"):
        use(namespace)


def test_unclosed_object_warns_and_is_closed():
    namespace = Namespace.current("net")
    fd = namespace.fileno()
    with pytest.warns(ResourceWarning, match=r"unclosed <Namespace net:\["):
        namespace = None  # that was the only reference
        gc.collect()  # PyPy does not count references
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_object_that_was_never_opened_does_not_warn():
    with pytest.raises(OSError, match="Bad file descriptor"):
        Namespace._owning(1_000_000, BY_NAME["net"])
    gc.collect()


def test_the_repr_tells_type_number_and_whether_it_is_closed():
    with Namespace.current("net") as namespace:
        assert repr(namespace) == f"<Namespace {os.readlink('/proc/thread-self/ns/net')}>"
    assert repr(namespace).endswith(" closed>")


def test_it_keeps_a_namespace_without_processes_alive(start):
    running = start("net")
    with Namespace.from_pid(running.pid, "net") as namespace:
        number = namespace.id
        running.end()
        with Namespace.from_fd(namespace.fileno()) as again:
            assert again.id == number


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, pickle.dumps, lambda owner: pickle.dumps(owner, 0)],
    ids=["copy", "deep", "2", "0"],
)
@pytest.mark.parametrize("make", [lambda: Namespace.current("net"), lambda: nsjoin.Target.from_pid(os.getpid())])
def test_who_owns_a_descriptor_cannot_be_copied_or_pickled(copied, make):
    """Each of two would close it, the second one somebody else's by then; and in another process it names nothing."""
    with make() as owner:
        with pytest.raises(TypeError, match="it owns"):
            copied(owner)
        gc.collect()
        os.fstat(owner.fileno())


class Interrupt(Exception):  # noqa: N818 - no error, a signal
    """What a signal handler raises."""


def raise_at(number: int, codes: set[object], make: Callable[[], object]) -> bool:
    """Raise at the ``number``-th line of these functions, as a signal handler may; whether there is such a line."""
    left = number

    def trace(frame: Any, event: str, _argument: object) -> Any:
        nonlocal left
        if frame.f_code not in codes:
            return None
        if event == "line" or (event == "call" and number == 0):
            left -= 1
            if left < 0:
                raise Interrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        make()
    except Interrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("kind", [Namespace, Process, PidNamespace, nsjoin.NamespaceExecutor])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_object_whose_construction_was_interrupted_is_freed_silently(kind, monkeypatch):
    """An exception in __del__ would be an "Exception ignored"."""
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: ignored.append(repr(raised.exc_value)))
    names = ("__init__", "_own", "_owning", "_holding")
    ours = [vars(base) for base in kind.__mro__ if base.__module__.startswith("nsjoin")]
    made_by = [makers[name] for makers in ours for name in names if name in makers]
    codes = {getattr(maker, "__func__", maker).__code__ for maker in made_by}
    row = BY_NAME["net"]

    def interrupted(number: int) -> bool:
        fd, holder = os.open("/proc/self/ns/net", os.O_RDONLY), types.SimpleNamespace(close=lambda: None)
        make: dict[Any, Callable[[], object]] = {
            Namespace: lambda: Namespace._owning(fd, row).close(),
            Process: lambda: Process._owning(1, fd).close(),
            PidNamespace: lambda: PidNamespace._holding(fd, row, holder).close(),
            nsjoin.NamespaceExecutor: lambda: nsjoin.NamespaceExecutor("/proc/self/ns/net").shutdown(),
        }
        try:
            return raise_at(number, codes, make[kind])
        finally:
            gc.collect()
            with contextlib.suppress(OSError):
                os.close(fd)  # before the object has it, it is still the caller's

    number = 0
    while interrupted(number):
        number += 1
    assert number > 2
    assert ignored == []


BAD_ARGUMENTS: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (Namespace, (), {}),
    (Namespace, (1,), {}),
    (Namespace, (1, 2), {}),
    (Namespace, (1, BY_NAME["net"]), {}),
    (Namespace, (1, "nett"), {}),
    (Namespace, ("net", 1), {}),
    (Namespace, (True, "net"), {}),
    (Namespace, (0, "net"), {}),
    (Namespace, (1, "net"), {"for_children": True}),
    (Namespace.from_fd, ("net",), {}),
    (nsjoin.Target, (), {}),
    (nsjoin.Target, (1, 1), {}),
    (nsjoin.Target, ("1",), {}),
    (nsjoin.Target, (True,), {}),
    (nsjoin.Target, (0,), {}),
    (nsjoin.Target.from_pidfd, (1,), {}),
    (PidNamespace, (), {}),
    (PidNamespace, (1, "pid"), {}),
    (PidNamespace, (1, BY_NAME["pid"], 2), {}),
    (PidNamespace.from_pid, (1, "pid"), {}),
    (PidNamespace.from_path, ("/proc/self/ns/pid",), {}),
    (PidNamespace.current, ("pid",), {}),
    (nsjoin.enter, (), {}),
    (nsjoin.enter, (1,), {}),
    (nsjoin.enter, (1, "nett"), {}),
    (nsjoin.enter, (1, 1), {}),
    (nsjoin.Popen, (), {}),
    (nsjoin.Popen, (["true"],), {}),
    (nsjoin.Popen, (["true"],), {"target": None}),
    (nsjoin.Popen, (["true"],), {"target": 1, "no_such": 1}),
    (nsjoin.Popen, (["true"],), {"target": 1, "namespaces": 1}),
    (nsjoin.Popen, (["true"],), {"target": 1, "bufsize": "1"}),
    (nsjoin.Popen, (["true"],), {"target": 1, "preexec_fn": print}),
    (nsjoin.Popen, (), {"args": [], "target": 1, "stdin": -1}),
    (nsjoin.NamespaceExecutor, (), {}),
    (nsjoin.NamespaceExecutor, (1,), {}),
    (nsjoin.NamespaceExecutor, (None, "net"), {}),
    (nsjoin.NamespaceExecutor, ("/proc/self/ns/net", "nett"), {}),
    (nsjoin.NamespaceExecutor, ("/proc/self/ns/net",), {"max_workers": 0}),
    (nsjoin.NamespaceExecutor, ("/proc/self/ns/net",), {"max_workers": "1"}),
    (nsjoin.create, ("pidd",), {}),
    (aio_start.AsyncPopen, (["true"],), {"target": None}),
    (aio_program.Exit, (None,), {}),
    (aio_transport.Transport, (None,), {}),
]


@pytest.mark.parametrize(("kind", "arguments", "keywords"), BAD_ARGUMENTS, ids=repr)
@pytest.mark.filterwarnings("error")
def test_wrong_arguments_close_nothing_and_leave_nothing_that_complains(kind, arguments, keywords, monkeypatch):
    """The guard in conftest.py compares the descriptors, 0 to 2 among them, which a number of ours may be taken for."""
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", lambda raised: ignored.append(repr(raised.exc_value)))
    with pytest.raises((TypeError, ValueError)):
        kind(*arguments, **keywords)
    gc.collect()
    assert ignored == []


def test_the_natural_call_is_from_pid(target):
    with Namespace(target.pid, "net") as natural, Namespace.from_pid(target.pid, "net") as opened:
        assert natural == opened
    with Namespace(target.pid, "pid", for_children=True) as natural, Namespace(target.pid, "pid") as its_own:
        assert natural == its_own
    with nsjoin.Target(target.pid) as natural, nsjoin.Target.from_pid(target.pid) as opened:
        with natural.namespace("net") as net, opened.namespace("net") as same:
            assert (natural.pid, net) == (opened.pid, same)
    with pytest.raises(TargetGoneError):
        Namespace(2**22 + 1, "net")


def test_only_create_makes_a_pid_namespace_with_an_init():
    with pytest.raises(TypeError, match=r"only create\('pid'\).*Namespace\(pid, 'pid'\)"):
        PidNamespace(1, "pid")


def test_a_pid_namespace_says_what_it_is_and_ends_its_init_whatever_close_says(monkeypatch):
    ended = []
    holder = types.SimpleNamespace(close=lambda: ended.append(True))
    namespace = PidNamespace._holding(os.open("/proc/self/ns/pid", os.O_RDONLY), BY_NAME["pid"], holder)
    assert repr(namespace).startswith("<PidNamespace pid:[")
    fd = namespace.fileno()
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        namespace.close()
    assert ended
