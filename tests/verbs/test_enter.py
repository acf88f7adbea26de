"""``enter``: this thread, and nothing else, is inside for the length of the block, and comes back whole."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import resource
import signal
import socket
import sys
import threading
import warnings
from types import SimpleNamespace

import pytest
from changed import (
    ARG0,
    ARG1,
    CAP_SYS_ADMIN,
    CAP_SYS_CHROOT,
    NR,
    SYS_SETNS,
    Filter,
    become_old_kernel,
    drop_capability,
    forked,
    in_child,
    in_thread,
    join,
)
from conftest import requires_namespaces_of_pidfds, requires_root

from nsjoin import JoinError, JoinPermissionError, Namespace, RestoreError, Target, TargetGoneError, enter, run_in
from nsjoin._engine import stays
from nsjoin._kernel import abi
from nsjoin._kernel import calls as calls_
from nsjoin._kernel.calls import lib
from nsjoin._kernel.nstypes import BY_NAME
from nsjoin._verbs import enter as enter_

pytestmark = requires_root

TYPES = ("mnt", "uts", "ipc", "net", "pid", "cgroup")
#: what of /proc/thread-self/ns changes with each
ENTRIES = {nstype: "pid_for_children" if nstype == "pid" else nstype for nstype in TYPES}


class Watch:
    """A thread's namespaces, root and cwd, also where its /proc is out of sight: the directory is opened before."""

    def __init__(self, task="/proc/thread-self"):
        self.directory = os.open(task, os.O_RDONLY)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        os.close(self.directory)

    def namespaces(self):
        return {name: os.readlink(f"ns/{name}", dir_fd=self.directory) for name in NAMES}

    def place(self):
        return [os.stat(name, dir_fd=self.directory)[:3] for name in ("root", "cwd")]

    def all(self):
        return self.namespaces(), self.place()


NAMES = sorted(os.listdir("/proc/thread-self/ns"))


def links(pid):
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in NAMES}


@contextlib.contextmanager
def bystander():
    """A thread that waits, and that shares root and cwd with this one; yields its task directory."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait, daemon=True)
    thread.start()
    try:
        yield f"/proc/self/task/{thread.native_id}"
    finally:
        done.set()
        join(thread)


def new_namespaces(nstype, count):
    """So many new namespaces, open, made by a thread that ends."""
    made = []

    def make():
        for _ in range(count):
            calls_.unshare(BY_NAME[nstype].flag)
            made.append(Namespace.current(nstype))

    in_thread(make)
    return made


@contextlib.contextmanager
def closing(namespaces):
    try:
        yield namespaces
    finally:
        for namespace in namespaces:
            namespace.close()


# --- in and out -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nstype", TYPES)
def test_each_type_alone(target, nstype):
    theirs = links(target.pid)[nstype]
    with Watch() as watch:
        before = watch.all()
        with enter(target.pid, nstype):
            inside = watch.namespaces()
        assert watch.all() == before
    changed = {name: link for name, link in inside.items() if link != before[0][name]}
    assert changed == {ENTRIES[nstype]: theirs}


def all_together(target):
    theirs = links(target.pid)
    with Watch() as watch:
        before = watch.all()
        with enter(target.pid, *TYPES):
            inside = watch.namespaces()
            assert os.getcwd() == "/"
        assert watch.all() == before
    assert inside == {**before[0], **{ENTRIES[nstype]: theirs[nstype] for nstype in TYPES}}


def test_all_together(target):
    all_together(target)


def test_all_together_in_a_process_with_threads(target):
    with bystander() as task, Watch(task) as other:
        before = other.all()
        all_together(target)
        in_thread(lambda: all_together(target))
        assert other.all() == before


@pytest.mark.parametrize("pidfds", [True, False], ids=["5.3", "5.2"])
def test_all_together_on_a_kernel_that_gives_no_namespace_by_pidfd(target, pidfds):
    def test():
        become_old_kernel(pidfds=pidfds)
        all_together(target)
        before = sorted(os.listdir("/proc/self/fd"))
        all_together(target)
        with bystander() as task, Watch(task) as other:
            untouched = other.all()
            in_thread(lambda: all_together(target))
            assert other.all() == untouched
        assert sorted(os.listdir("/proc/self/fd")) == before

    in_child(test)


def test_a_kernel_whose_setns_takes_no_pidfd_gets_descriptors(target):
    """Before Linux 5.8 a pidfd is EINVAL: here, several types at once are."""

    def test():
        several = Filter()
        several.load(NR)
        several.require(SYS_SETNS)
        several.load(ARG1)
        for nstype in TYPES:
            several.allow_if(BY_NAME[nstype].flag)
        several.refuse(errno.EINVAL)
        several.install()
        with pytest.raises(OSError, match="Invalid"), Target.from_pid(target.pid) as process:
            calls_.setns(process.fileno(), BY_NAME["net"].flag | BY_NAME["uts"].flag)
        all_together(target)

    in_child(test)


@pytest.mark.parametrize("way", ["object", "Target", "Namespaces", "paths", "both", "one path", "one Namespace"])
def test_every_kind_of_target_can_be_entered(target, way):
    theirs = links(target.pid)
    with contextlib.ExitStack() as stack, Watch() as watch:
        process = stack.enter_context(Target.from_pid(target.pid))
        net, uts = (stack.enter_context(process.namespace(nstype)) for nstype in ("net", "uts"))
        paths = [f"/proc/{target.pid}/ns/{nstype}" for nstype in ("net", "uts")]
        named = {
            "object": SimpleNamespace(pid=target.pid),
            "Target": process,
            "Namespaces": [net, uts],
            "paths": paths,
            "both": [net, paths[1]],
            "one path": paths[0],
            "one Namespace": net,
        }[way]
        expected = ["net"] if way.startswith("one") else ["net", "uts"]
        before = watch.namespaces()
        with enter(named, *expected):
            assert watch.namespaces() == {**before, **{nstype: theirs[nstype] for nstype in expected}}
        assert watch.namespaces() == before
        if not isinstance(named, (SimpleNamespace, Target)):
            with enter(named):  # they say themselves what there is to join
                assert watch.namespaces() == {**before, **{nstype: theirs[nstype] for nstype in expected}}


def test_only_the_named_ones_of_several_are_joined(target):
    paths = [f"/proc/{target.pid}/ns/{nstype}" for nstype in TYPES]
    with Watch() as watch:
        before = watch.namespaces()
        with enter(paths, "uts"):
            assert watch.namespaces() == {**before, "uts": links(target.pid)["uts"]}


def test_entering_own_namespace_is_a_no_op():
    with Watch() as watch:
        before = watch.all()
        with enter(os.getpid(), "net", "uts", "ipc", "pid", "cgroup"):
            assert watch.all() == before
        with enter(os.getpid(), "mnt"):
            assert watch.namespaces() == before[0]
        assert watch.all() == before


def test_a_socket_made_inside_belongs_there_and_works_outside(target):
    with enter(target.pid, "net"):
        listening = socket.socket()
    siocgskns = 0x894C  # the network namespace of a socket, Linux 4.10
    with listening:
        fd = calls_.check(calls_.lib.nsjoin_ioctl(listening.fileno(), siocgskns))
    try:
        assert os.fstat(fd).st_ino == os.stat(f"/proc/{target.pid}/ns/net").st_ino
    finally:
        os.close(fd)


# --- the target's files -----------------------------------------------------------------------------------------------


def test_cwd_and_root_are_the_targets_inside_and_our_own_after(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Watch() as watch:
        before = watch.all()
        with enter(target.pid, "mnt"):
            assert os.getcwd() == "/"
        assert watch.all() == before
        assert os.getcwd() == str(tmp_path)


def test_a_deleted_working_directory_is_come_back_to(target, tmp_path):
    def test():
        (tmp_path / "gone").mkdir()
        os.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        before = os.stat(".")[:3]
        with enter(target.pid, "mnt"):
            assert os.getcwd() == "/"
        assert os.stat(".")[:3] == before
        with pytest.raises(FileNotFoundError):
            os.getcwd()

    in_child(test)


@requires_namespaces_of_pidfds
def test_thread_returns_to_its_chroot_from_the_targets_root(target, tmp_path):
    (tmp_path / "jail" / "here").mkdir(parents=True)

    def test():
        with Namespace.from_pid(target.pid, "mnt") as namespace:
            os.chroot(tmp_path / "jail")
            os.chdir("/here")
            before = os.stat("/")[:3], os.stat(".")[:3]
            with enter(namespace):
                assert "etc" in os.listdir("/")
                assert os.path.isdir(tmp_path / "jail")
            assert (os.stat("/")[:3], os.stat(".")[:3]) == before
            assert os.listdir("/") == ["here"]

    in_child(test)


def test_a_chrooted_targets_root_is_the_root_inside(tmp_path):
    (tmp_path / "jail" / "inmate").mkdir(parents=True)

    def chroot():
        calls_.unshare(BY_NAME["mnt"].flag)
        os.chroot(tmp_path / "jail")

    with forked(chroot) as pid:
        for nstypes in (("mnt",), ("mnt", "uts", "pid")):
            with enter(pid, *nstypes):
                assert os.listdir("/") == os.listdir(".") == ["inmate"]
                assert os.getcwd() == "/"
            assert "inmate" not in os.listdir("/")
        with Target.from_pid(pid) as process, enter(process, "mnt"):
            assert os.listdir("/") == ["inmate"]
        in_child(lambda: (become_old_kernel(pidfds=False), enter(pid, "mnt").__enter__(), check_jail()))


def check_jail():
    assert os.listdir("/") == ["inmate"]


def test_other_threads_root_and_cwd_stay_where_they_are(target):
    """A pidfd and mnt moved them all in a thread that shares them; see unshare(2), CLONE_FS."""
    with bystander() as task, Watch(task) as other:
        before = other.all()
        with enter(target.pid, "mnt"):
            assert other.all() == before
        with Target.from_pid(target.pid) as process, process.namespace("mnt") as mnt, enter([mnt]):
            assert other.all() == before
        in_thread(lambda: check_within(target, other, before))
        assert other.all() == before


def check_within(target, other, before):
    with enter(target.pid, "mnt", "net"):
        assert other.all() == before


def test_a_thread_born_inside_stays_there_and_its_parent_comes_back(target):
    """It shares root and cwd with its parent, for whom going back is EINVAL until it has unshared them again."""
    theirs = links(target.pid)
    with Watch() as watch, contextlib.ExitStack() as stack:
        before = watch.all()
        with enter(target.pid, "mnt", "net"):
            task = stack.enter_context(bystander())
        assert watch.all() == before
        for nstype in ("mnt", "net"):
            assert os.readlink(f"{task}/ns/{nstype}") == theirs[nstype]


# --- pid --------------------------------------------------------------------------------------------------------------


def pid_of_a_fork():
    """What a child of now sees as its own pid, and its PID namespace as we see it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, str(os.getpid()).encode())
        signal.pause()
    try:
        return int(os.read(reader, 20)), os.readlink(f"/proc/{child}/ns/pid")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)


def test_pid_changes_what_children_are_born_into_and_nothing_else(target):
    theirs = links(target.pid)["pid"]
    ours = links("thread-self")["pid"]
    own_pid = os.getpid()
    assert links("thread-self")["pid_for_children"] == ours
    assert pid_of_a_fork()[1] == ours
    with enter(target.pid, "pid"):
        within = links("thread-self")
        assert (within["pid"], within["pid_for_children"]) == (ours, theirs)
        assert os.getpid() == own_pid
        inside, link = pid_of_a_fork()
        assert link == theirs
        assert inside < 10_000 < 10_000 + own_pid
    assert links("thread-self")["pid_for_children"] == ours
    assert pid_of_a_fork()[1] == ours


def test_what_children_were_born_into_before_is_come_back_to(target, start):
    other = start("pid")
    with enter(other.pid, "pid"):
        with enter(target.pid, "pid"):
            assert links("thread-self")["pid_for_children"] == links(target.pid)["pid"]
        assert links("thread-self")["pid_for_children"] == links(other.pid)["pid"]


def test_a_child_forked_inside_is_there_and_can_leave_for_itself(target):
    theirs = links(target.pid)
    before = links("thread-self")

    def child_leaves(inside):
        assert links("thread-self")["net"] == theirs["net"]
        inside.__exit__(None, None, None)
        assert links("thread-self") == before

    with enter(target.pid, "net", "uts") as inside:
        in_child(lambda: child_leaves(inside))
        assert links("thread-self") == {**before, "net": theirs["net"], "uts": theirs["uts"]}
    assert links("thread-self") == before


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_inside_comes_out_and_so_does_the_thread(target, kind):
    with Watch() as watch:
        before = watch.all()
        with pytest.raises(kind, match="mine"), enter(target.pid, *TYPES):
            raise kind("mine")
        assert watch.all() == before


@pytest.mark.parametrize("by", ["pid", "Target", "Namespaces"])
def test_when_a_later_join_fails_the_former_are_undone(target, by):
    """mnt, which comes last, needs CAP_SYS_CHROOT too."""

    def test():
        with contextlib.ExitStack() as stack, Watch() as watch:
            process = stack.enter_context(Target.from_pid(target.pid))
            opened = [stack.enter_context(process.namespace(nstype)) for nstype in ("mnt", "net", "uts")]
            named = {"pid": target.pid, "Target": process, "Namespaces": opened}[by]
            os.chdir("/tmp")
            drop_capability(CAP_SYS_CHROOT)
            with enter(process, "net", "uts"):
                pass
            before, descriptors = watch.all(), os.listdir("/proc/self/fd")
            with (
                pytest.raises(JoinPermissionError, match="CAP_SYS_CHROOT") as caught,
                enter(named, "mnt", "net", "uts"),
            ):
                raise AssertionError("inside")
            assert (caught.value.step, caught.value.nstype, caught.value.errno) == ("setns", "mnt", errno.EPERM)
            assert watch.all() == before
            assert os.listdir("/proc/self/fd") == descriptors

    in_child(test)


@pytest.mark.parametrize("nstypes", [("net",), ("mnt",), ("uts", "mnt", "pid"), TYPES])
def test_a_target_that_has_ended_changes_nothing(start, nstypes):
    running = start(*TYPES)
    with Target.from_pid(running.pid) as process, Watch() as watch:
        inside = enter(process, *nstypes)
        running.end()
        before = watch.all()
        for again in (inside, enter(running.pid, *nstypes)):
            with pytest.raises(TargetGoneError) as caught, again:
                raise AssertionError("inside")
            assert caught.value.errno == errno.ESRCH
        assert watch.all() == before


def test_a_missing_file_or_a_closed_namespace_leaves_stdin_open(target):
    """What had not begun must not be undone."""

    def test():
        before = [os.fstat(fd) for fd in range(3)]
        namespace = Namespace.from_pid(target.pid, "net")
        process = Target.from_pid(target.pid)
        prepared = [enter(namespace), enter([namespace, "/proc/self/ns/uts"]), enter(process, "mnt"), enter("/nowhere")]
        namespace.close()
        process.close()
        for one in prepared:
            with pytest.raises((OSError, ValueError)), one:
                raise AssertionError("inside")
            assert [os.fstat(fd) for fd in range(3)] == before

    in_child(test)


def test_a_closed_namespace_is_not_entered_by_its_old_number(target):
    with Namespace.from_pid(target.pid, "net") as namespace:
        prepared = enter(namespace)
        number = namespace.fileno()
    fd = os.open(f"/proc/{target.pid}/ns/net", os.O_RDONLY)
    if fd != number:
        os.dup2(fd, number)
        os.close(fd)
    try:
        with pytest.raises(ValueError, match="is closed"), prepared:
            raise AssertionError("inside")
    finally:
        os.close(number)


def test_leaving_in_another_thread_is_refused_and_changes_nothing(target):
    inside = enter(target.pid, "net", "mnt")
    go, ended, failures = threading.Event(), threading.Event(), []

    def leave_here():
        go.wait()
        try:
            with Watch() as own:
                before = own.all()
                with pytest.raises(RuntimeError, match="not entered in this thread"):
                    inside.__exit__(None, None, None)
                assert own.all() == before
        except BaseException as error:
            failures.append(error)
        ended.set()

    thread = threading.Thread(target=leave_here)
    thread.start()  # before this one enters, so that it is outside and sees our /proc
    with Watch() as watch:
        before = watch.all()
        with inside:
            within = watch.all()
            go.set()
            ended.wait()
            assert watch.all() == within != before
        assert watch.all() == before
    join(thread)
    assert failures == []


def test_leaving_twice_is_refused(target):
    inside = enter(target.pid, "net")
    with inside:
        pass
    before = links("thread-self")
    with pytest.raises(RuntimeError, match="not entered in this thread"):
        inside.__exit__(None, None, None)
    assert links("thread-self") == before


def test_a_way_back_that_fails_is_loud(target):
    theirs = links(target.pid)

    def test():
        descriptors = sorted(os.listdir("/proc/self/fd"))
        before = links("thread-self")
        with pytest.raises(RestoreError, match="let it exit") as caught, enter(target.pid, "net", "uts"):
            drop_capability(CAP_SYS_ADMIN)
        assert (caught.value.errno, caught.value.step, caught.value.target) == (errno.EPERM, "setns", "this thread")
        assert caught.value.nstype == "net"  # the first of the way back
        assert links("thread-self") == {**before, "net": theirs["net"], "uts": theirs["uts"]}
        assert not isinstance(caught.value, JoinError)
        assert sorted(os.listdir("/proc/self/fd")) == descriptors

    in_child(test)


def test_a_way_back_that_fails_keeps_the_exception_of_the_block(target):
    @enter(target.pid, "net")
    def drop_and_raise():
        drop_capability(CAP_SYS_ADMIN)
        raise ValueError("mine")

    def test():
        with pytest.raises(RestoreError) as caught:
            drop_and_raise()
        assert isinstance(caught.value.__context__, ValueError)

    in_child(test)


def test_what_can_be_undone_is_undone_although_another_is_not(target):
    def test():
        theirs, before = links(target.pid), links("thread-self")
        with pytest.raises(RestoreError) as caught, enter(target.pid, "net", "uts", "pid"):
            refuse_setns("net")
        assert caught.value.nstype == "net"
        assert links("thread-self") == {**before, "net": theirs["net"]}

    in_child(test)


def refuse_setns(*nstypes, but=None):
    """From here on setns is EPERM for these types, but not with the descriptor ``but``."""
    refusing = Filter()
    refusing.load(NR)
    refusing.require(SYS_SETNS)
    if but is not None:
        refusing.load(ARG0)
        refusing.allow_if(but)
    refusing.load(ARG1)
    for nstype in nstypes:
        refusing.refuse_if(BY_NAME[nstype].flag, errno.EPERM)
    refusing.install()


def test_a_failed_join_whose_undo_fails_is_a_restore_error(target):
    def test():
        theirs, before = links(target.pid), links("thread-self")
        with Namespace.from_pid(target.pid, "uts") as uts, Namespace.from_pid(target.pid, "net") as net:
            refuse_setns("net", "uts", but=uts.fileno())  # into uts, no further, and not back
            with pytest.raises(RestoreError) as caught, enter([uts, net]):
                raise AssertionError("inside")
        assert caught.value.nstype == "uts"
        assert links("thread-self") == {**before, "uts": theirs["uts"]}

    in_child(test)


@requires_namespaces_of_pidfds
def test_after_a_way_back_that_failed_nothing_more_is_tried(target, monkeypatch):
    """A second try would save a foreign namespace as the one to come back to."""

    class Counting:
        calls = 0

        def __getattr__(self, name):
            return getattr(lib, name)

        def nsjoin_enter(self, stay, trip):
            self.calls += 1
            return lib.nsjoin_enter(stay, trip)

    def test():
        counting = Counting()
        with Namespace.from_pid(target.pid, "uts") as uts, Namespace.from_pid(target.pid, "net") as net:
            inside = enter([uts, net])
            refuse_setns("net", "uts", but=uts.fileno())
            monkeypatch.setattr(enter_, "lib", counting)
            with pytest.raises(RestoreError):
                inside.__enter__()
        assert counting.calls == 1

    in_child(test)


@requires_namespaces_of_pidfds
def test_in_a_chroot_without_proc_open_namespaces_are_all_that_is_needed(target, tmp_path):
    def test():
        with contextlib.ExitStack() as stack:
            namespaces = [stack.enter_context(Namespace.from_pid(target.pid, nstype)) for nstype in ("net", "mnt")]
            watch = stack.enter_context(Watch())
            os.chroot(tmp_path)
            os.chdir("/")
            before = watch.all()
            with enter(namespaces):
                assert watch.namespaces()["net"] == f"net:[{namespaces[0].id.ino}]"
            assert watch.all() == before

    in_child(test)


def test_a_way_back_that_was_lost_since_the_last_time_is_noticed(target):
    """A process may unshare its user namespace at any time; all else that it is in then belongs to an ancestor."""

    def test():
        with enter(target.pid, "net"):
            pass
        calls_.unshare(BY_NAME["user"].flag)
        before = links("thread-self")
        with (
            forked(lambda: calls_.unshare(BY_NAME["net"].flag)) as pid,
            pytest.raises(JoinPermissionError, match="no way"),
        ):
            enter(pid, "net")(print)()
        assert links("thread-self") == before

    in_child(test)


# --- what is never entered --------------------------------------------------------------------------------------------


def test_user_is_refused_before_anything_is_joined(start):
    running = start("user", "net")
    with Watch() as watch:
        before = watch.all()
        for nstypes in (["user"], ["net", "user"]):
            with pytest.raises(JoinError, match="spawn_in") as caught:
                enter(running.pid, *nstypes)
            assert (caught.value.nstype, caught.value.step) == ("user", "enter")
        with Namespace.from_pid(running.pid, "user") as user, Namespace.from_pid(running.pid, "net") as net:
            for named in (user, [net, user], [net, f"/proc/{running.pid}/ns/user"], f"/proc/{running.pid}/ns/user"):
                with pytest.raises(JoinError, match="spawn_in"), enter(named):
                    raise AssertionError("inside")
                assert watch.all() == before


def test_time_beside_threads_is_refused_before_anything_is_joined(start):
    running = start("time", "net")
    with bystander(), Watch() as watch:
        before = watch.all()
        with pytest.raises(JoinError, match="spawn_in") as caught, enter(running.pid, "net", "time"):
            raise AssertionError("inside")
        assert (caught.value.nstype, caught.value.errno) == ("time", errno.EUSERS)
        path = f"/proc/{running.pid}/ns/time"
        with pytest.raises(JoinError, match="spawn_in"), enter([path, f"/proc/{running.pid}/ns/net"]):
            raise AssertionError("inside")
        assert watch.all() == before


def test_time_beside_threads_is_refused_also_where_the_threads_came_later(start):
    running = start("time")
    inside = enter(running.pid, "time")
    with Target.from_pid(running.pid) as process, process.namespace("time") as namespace:
        prepared = enter(namespace)
        with bystander():
            for one in (inside, prepared):
                with pytest.raises(JoinError, match="spawn_in"), one:
                    raise AssertionError("inside")


def test_time_alone_in_a_process_without_threads(start):
    running = start("time", "net")
    theirs = links(running.pid)

    def test():
        with Watch() as watch:
            before = watch.namespaces()
            with enter(running.pid, "time", "net"):
                within = watch.namespaces()
            assert watch.namespaces() == before
        assert (within["time"], within["net"]) == (theirs["time"], theirs["net"])

    in_child(test)


def test_time_is_refused_where_the_way_back_would_lose_the_childrens(start):
    running = start("time")

    def test():
        calls_.unshare(BY_NAME["time"].flag)  # of children only
        before = links("self")
        with pytest.raises(JoinError, match="time_for_children"), enter(running.pid, "time"):
            raise AssertionError("inside")
        assert links("self") == before

    in_child(test)


def test_a_process_is_entered_by_naming_types(target):
    with pytest.raises(TypeError, match="by naming types"):
        enter(target.pid)
    with Target.from_pid(target.pid) as process, pytest.raises(TypeError, match="by naming types"):
        enter(process)


def test_a_type_that_the_named_namespaces_lack_is_a_value_error(target):
    path = f"/proc/{target.pid}/ns/net"
    with pytest.raises(ValueError, match="no uts namespace, only net"), enter(path, "uts"):
        raise AssertionError("inside")
    with Namespace.from_path(path) as namespace, pytest.raises(ValueError, match="no uts namespace, only net"):
        enter(namespace, "uts")
    with pytest.raises(ValueError, match="two net"), enter([path, path]):
        raise AssertionError("inside")
    with Namespace.from_path(path) as namespace, pytest.raises(ValueError, match="two"):
        enter([namespace, namespace])


# --- again and again --------------------------------------------------------------------------------------------------


def prepared_targets(target, stack):
    process = stack.enter_context(Target.from_pid(target.pid))
    net, mnt = (stack.enter_context(process.namespace(nstype)) for nstype in ("net", "mnt"))
    return enter(target.pid, "net", "mnt"), enter(process, "net", "mnt"), enter([net, mnt])


def test_it_can_be_used_again_and_within_itself(target):
    theirs = links(target.pid)
    with contextlib.ExitStack() as stack, Watch() as watch:
        before = watch.all()
        inner = {**before[0], "net": theirs["net"], "mnt": theirs["mnt"]}
        # by pid, /proc is needed, and inside the target's is another one
        for one in prepared_targets(target, stack)[2:]:
            for _ in range(3):
                with one:
                    assert watch.namespaces() == inner
                    with one:
                        assert watch.namespaces() == inner
                    assert watch.namespaces() == inner
                    assert os.getcwd() == "/"
                assert watch.all() == before
        for one in prepared_targets(target, stack):
            for _ in range(3):
                with one:
                    assert watch.namespaces() == inner
                assert watch.all() == before


def test_a_decorated_function_runs_inside_also_when_it_calls_itself(target):
    theirs = links(target.pid)["net"]
    before = links("thread-self")["net"]

    @enter(target.pid, "net")
    def depth(n):
        """Its own words."""
        assert os.readlink("/proc/thread-self/ns/net") == theirs
        below = depth(n - 1) if n else []
        assert os.readlink("/proc/thread-self/ns/net") == theirs
        return [n, *below]

    assert depth(3) == [3, 2, 1, 0]
    assert depth.__doc__ == "Its own words."
    assert links("thread-self")["net"] == before
    in_thread(lambda: depth(1))


def test_nested_enters_are_undone_in_reverse(target, start):
    other = start("net", "uts")
    with Watch() as watch:
        before = watch.namespaces()
        with enter(target.pid, "net"):
            one = watch.namespaces()
            with enter(other.pid, "net", "uts"):
                assert watch.namespaces()["net"] == links(other.pid)["net"]
            assert watch.namespaces() == one
        assert watch.namespaces() == before


def test_one_enter_object_serves_several_threads_at_once(target):
    inside = enter(target.pid, "net")
    theirs = links(target.pid)["net"]
    both = threading.Barrier(2)

    def stay():
        before = links("thread-self")["net"]
        with inside:
            both.wait()
            assert links("thread-self")["net"] == theirs
            both.wait()
        assert links("thread-self")["net"] == before

    thread = threading.Thread(target=stay)
    thread.start()
    stay()
    join(thread)
    assert stays._stacks == {}


def test_with_a_prepared_namespace_nothing_of_the_target_is_opened_again(start):
    """It may even have ended: the namespace is there as long as it is open."""
    running = start("net")
    theirs = links(running.pid)["net"]
    with Namespace.from_pid(running.pid, "net") as namespace:
        running.end()
        with enter(namespace):
            assert links("thread-self")["net"] == theirs


def test_64_threads_each_in_another_net_namespace_a_thousand_times():
    count, rounds = 64, 1000
    wrong, all_ready = [], threading.Barrier(count)
    before = links("thread-self")["net"]

    def live(namespace):
        try:
            theirs, ours = f"net:[{namespace.id.ino}]", os.readlink("/proc/thread-self/ns/net")
            inside = enter(namespace)
            all_ready.wait()
            for _ in range(rounds):
                with inside:
                    within = os.readlink("/proc/thread-self/ns/net")
                after = os.readlink("/proc/thread-self/ns/net")
                if (within, after) != (theirs, ours):
                    wrong.append((within, after))
        except BaseException as error:
            wrong.append(error)

    with closing(new_namespaces("net", count)) as namespaces, bystander() as task:
        assert len({namespace.id for namespace in namespaces}) == count
        threads = [threading.Thread(target=live, args=[namespace]) for namespace in namespaces]
        for thread in threads:
            thread.start()
        for thread in threads:
            join(thread)
        assert os.readlink(f"{task}/ns/net") == before
    assert wrong == []
    assert links("thread-self")["net"] == before


# --- the descriptors that it keeps ------------------------------------------------------------------------------------


#: the last number that a descriptor may have
LAST = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 4096) - 1


def close_all_and_reuse():
    """As a daemon does; then every number up to 255 is /dev/null."""
    os.closerange(3, LAST)
    while os.open("/dev/null", os.O_RDONLY) < 255:
        pass
    return [os.fstat(fd)[:3] for fd in range(3, 256)]


def test_a_program_that_closes_all_descriptors_does_no_harm_and_gets_none(target):
    theirs = links(target.pid)

    def use(writer):
        before = links("thread-self")
        with enter(target.pid, "net"):
            pass
        report = os.dup2(writer, LAST)
        reused = close_all_and_reuse()
        for _ in range(2):
            with enter(target.pid, "net", "mnt", "uts"):
                pass
            with enter(f"/proc/{target.pid}/ns/net"):
                assert links("thread-self") == {**before, "net": theirs["net"]}
            assert links("thread-self") == before
            assert [os.fstat(fd)[:3] for fd in range(3, 256)] == reused
        os.write(report, b"main ")
        in_thread(lambda: use_in_thread(reused))
        assert [os.fstat(fd)[:3] for fd in range(3, 256)] == reused  # nor at the end of a thread
        os.write(report, b"thread")

    def use_in_thread(reused):
        os.closerange(3, 256)  # so that what is kept gets a number that is used again
        with enter(target.pid, "uts"):
            pass
        assert close_all_and_reuse() == reused

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # not in_child, whose report would be closed with the rest
        try:
            use(writer)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as file:
        assert file.read() == "main thread"
    assert os.waitpid(child, 0)[1] == 0


def test_where_0_to_2_are_closed_nothing_of_it_lies_there(target):
    def test():
        os.closerange(0, 3)
        with enter(target.pid, *(nstype for nstype in TYPES if nstype != "mnt")), Watch() as watch:
            assert watch.directory == 0
            assert {int(name) for name in os.listdir("/proc/self/fd")} & {1, 2} <= {1}  # 1 is listdir's own
        with enter(target.pid, "mnt"):
            assert os.open("/", abi.O_PATH) == 0

    in_child(test)


def test_the_child_of_a_fork_does_not_take_its_parents_pidfd_for_its_own(target):
    """The kept pidfd names the thread that made it: in a child, saving by it would save the parent's namespaces."""

    def test():
        with enter(target.pid, "net"):
            pass  # now there is a kept one
        in_child(child)

    def child():
        calls_.unshare(BY_NAME["net"].flag)
        own = links("self")["net"]
        with enter(target.pid, "net"):
            pass
        assert links("self")["net"] == own

    in_child(test)


def test_a_thread_that_ends_leaves_no_descriptor(target):
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        in_thread(lambda: enter(target.pid, "net")(lambda: None)())
    assert os.listdir("/proc/self/fd") == before


def test_what_is_started_inside_is_born_inside(target):
    theirs = links(target.pid)
    with enter(target.pid, "net", "uts"):
        output = run_in(os.getpid(), ["readlink", "/proc/self/ns/net"], namespaces=[], capture_output=True, text=True)
    assert output.stdout.strip() == theirs["net"]


# --- imports after ----------------------------------------------------------------------------------------------------


def load_something_new():
    before = set(sys.modules)
    for name in ("this_module_is_nowhere", "colorsys", "chunk", "sndhdr", "nturl2path", "mailcap", "cmd", "pyclbr"):
        with contextlib.suppress(ModuleNotFoundError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(name)
    assert set(sys.modules) - before


@pytest.mark.parametrize("kernel", ["this", "5.3", "5.2"])
def test_after_a_stay_in_a_foreign_mnt_modules_can_be_loaded_again(target, kernel):
    def test():
        if kernel != "this":
            become_old_kernel(pidfds=kernel == "5.3")
        with enter(target.pid, "mnt"), pytest.raises(ImportError, match="import it before entering"):
            importlib.import_module("sched")
        load_something_new()
        in_thread(lambda: importlib.import_module("sched"))

    in_child(test)


def test_another_thread_can_load_modules_meanwhile(target):
    def test():
        go, done, failures = threading.Event(), threading.Event(), []

        def load():
            go.wait()
            try:
                load_something_new()
            except BaseException as error:
                failures.append(error)
            done.set()

        thread = threading.Thread(target=load)
        thread.start()
        with enter(target.pid, "mnt"):
            go.set()
            done.wait()
        assert failures == []

    in_child(test)
    in_child(lambda: (become_old_kernel(pidfds=True), test()))


@requires_namespaces_of_pidfds
def test_our_own_mnt_is_not_foreign():
    def test():
        with enter(os.getpid(), "mnt"):
            importlib.import_module("sched")
        load_something_new()

    in_child(test)
