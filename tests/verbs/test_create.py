"""``create``: namespaces that are new, nobody of ours in them, nothing left behind."""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
from changed import NR, SYS_MOUNT, Filter, join, memfds_do_not_run
from child import FORKS, become_ordinary_user, children, in_child, wait_until_ended
from conftest import requires_namespaces_of_pidfds, requires_program, requires_root
from faults.kernels import FEATURES, refuse

import nsjoin
from nsjoin._engine import children as children_
from nsjoin._engine import image
from nsjoin._kernel import calls
from nsjoin._verbs import spawn

TYPES = ["mnt", "uts", "ipc", "net", "cgroup", "user", "time", "pid"]


@requires_root
@pytest.mark.parametrize("nstype", TYPES)
def test_a_new_namespace_is_not_ours_and_a_program_runs_inside(nstype):
    with nsjoin.create(nstype) as made, nsjoin.Namespace.current(nstype) as own:
        assert made.nstype == nstype
        assert made != own
        command = ["readlink", f"/proc/self/ns/{nstype}"]
        done = nsjoin.run_in(made, command, capture_output=True, text=True, check=True)
        assert done.stdout == f"{nstype}:[{made.id.ino}]\n"


@requires_root
def test_offsets_are_those_of_the_clocks_inside():
    with nsjoin.create("time", boottime=1000.5, monotonic=-1) as made:
        shown = nsjoin.run_in(made, ["cat", "/proc/self/timens_offsets"], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["monotonic", "-1", "0", "boottime", "1000", "500000000"]


@requires_root
def test_ranges_are_mapped():
    with nsjoin.create("user", uid_map=[(0, 0, 5), (10, 100, 7)]) as made:
        shown = nsjoin.run_in(made, ["cat", "/proc/self/uid_map"], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["0", "0", "5", "10", "100", "7"]


def make_as_ordinary_user() -> None:
    with nsjoin.create("user") as user, nsjoin.create("net", user=user) as net, net.owner() as owner:
        assert owner == user
    with pytest.raises(nsjoin.NamespacePermissionError, match="CAP_SYS_ADMIN"):
        nsjoin.create("net")


def test_an_ordinary_user_makes_a_user_namespace_first():
    in_child(make_as_ordinary_user, become_ordinary_user)


def reach_the_limit() -> None:
    with open("/proc/sys/user/max_net_namespaces", "w") as file:
        file.write("0")
    with pytest.raises(nsjoin.NamespaceError, match="max_net_namespaces is 0") as caught:
        nsjoin.create("net")
    assert caught.value.errno == errno.ENOSPC


@requires_root
def test_a_limit_is_named():
    def own_limits() -> None:
        # entered by a child of its own, whose limits are its own namespace's
        with nsjoin.create("user", uid_map=[(0, 0, 65536)], gid_map=[(0, 0, 65536)]) as user:
            nsjoin.call_in(user, reach_the_limit)

    in_child(own_limits)


def make_and_use() -> None:
    for nstype in ("uts", "pid"):
        with nsjoin.create(nstype) as made:
            assert nsjoin.run_in(made, ["true"]).returncode == 0
            if isinstance(made, nsjoin.PidNamespace):
                only_an_empty_root(made.pid)
                assert os.listdir(f"/proc/{made.pid}/cwd") == []


@requires_root
@pytest.mark.parametrize("forbidden", [False, True])
@pytest.mark.parametrize("feature", FEATURES)
def test_what_the_kernel_lacks_is_done_without(feature, forbidden):
    def refuse_it() -> None:
        refuse([feature], forbidden=forbidden)
        nsjoin.Namespace.current("uts").close()  # what is kept from before the fork is not used any more

    in_child(make_and_use, refuse_it)


@requires_root
def test_where_a_memfd_is_made_but_does_not_run_a_file_serves(monkeypatch, tmp_path):
    memfds_do_not_run(monkeypatch, tmp_path)
    make_and_use()
    assert not image._image._memfd_runs
    assert os.listdir(tmp_path) == []


def closed_with_a_program_inside() -> tuple[nsjoin.PidNamespace, nsjoin.Popen[bytes]]:
    """One whose init has been killed, and with it a program of ours that nobody has waited for yet."""
    made = nsjoin.create("pid")
    inside = nsjoin.spawn_in(made, ["sleep", "infinity"])
    made.close()
    return made, inside


def is_child(pid: int) -> bool:
    """Whether it is our child still, be it a zombie."""
    return pid in children()


@requires_root
@pytest.mark.parametrize("how", ["wait", "poll", "communicate"])
def test_the_init_is_reaped_when_the_last_program_inside_has_been_waited_for(how):
    made, inside = closed_with_a_program_inside()
    assert is_child(made.pid), "the zombie inside, which is the caller's, keeps it"
    wait_until_ended(inside.pid)
    getattr(inside, how)()
    assert inside.returncode == -signal.SIGKILL
    assert not is_child(made.pid)


@requires_root
def test_unless_that_ends_it_it_stays_a_zombie_until_a_later_launch(monkeypatch):
    monkeypatch.setattr(spawn, "child_has_been_reaped", lambda: None)
    made, inside = closed_with_a_program_inside()
    assert inside.wait() == -signal.SIGKILL
    wait_until_ended(made.pid)
    assert is_child(made.pid)
    nsjoin.create("uts").close()
    assert not is_child(made.pid)


@requires_root
def test_close_does_not_wait_for_an_init_that_waits_for_us(monkeypatch):
    monkeypatch.setattr(children_, "_REAP_SECONDS", 3600)
    made = nsjoin.create("pid")
    inside = nsjoin.spawn_in(made, ["sleep", "infinity"])
    closing = threading.Thread(target=made.close)
    closing.start()
    closing.join(60)
    is_still_waiting = closing.is_alive()
    assert inside.wait() == -signal.SIGKILL
    join(closing)
    assert not is_still_waiting
    assert not is_child(made.pid)


@requires_root
def test_the_status_of_what_the_caller_has_started_inside_stays_the_callers():
    """A process of his own, which no Popen of ours knows, keeps the init too."""
    made = nsjoin.create("pid")
    with nsjoin.enter(made, "pid"):
        inside = subprocess.Popen(["sleep", "infinity"])
    made.close()
    nsjoin.create("uts").close()
    with nsjoin.Namespace.current("uts") as here:
        assert nsjoin.run_in(here, ["true"]).returncode == 0
    assert inside.wait() == -signal.SIGKILL
    wait_until_ended(made.pid)
    nsjoin.create("uts").close()
    assert not is_child(made.pid)


@requires_root
def test_the_init_ends_with_its_owner():
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        made = nsjoin.create("pid")
        os.write(writer, b"%d" % made.pid)
        select.select([], [], [])
    with nsjoin.Target.from_pid(int(os.read(reader, 20))) as init:
        os.kill(child, 9)
        os.waitpid(child, 0)
        assert select.select([init], [], [], 60)[0]
    os.close(reader)
    os.close(writer)


@requires_root
@pytest.mark.parametrize("fork", ["os.fork", "fork(3)"])
def test_the_init_ends_with_its_owner_although_a_fork_of_that_lives_on(fork):
    """The fork has copied every descriptor that the owner had, that of the tie among them."""
    reader, writer = os.pipe()
    ends, held = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(held)
        made = nsjoin.create("pid")
        FORKS[fork](ends, os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY))
        os.write(writer, b"%d" % made.pid)
        select.select([], [], [])
    try:
        with nsjoin.Target.from_pid(int(os.read(reader, 20))) as init:
            os.kill(child, 9)
            os.waitpid(child, 0)
            assert select.select([init], [], [], 60)[0]
    finally:
        for fd in (reader, writer, ends, held):
            os.close(fd)


def end_one_that_the_kernel_reaps() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with subprocess.Popen(["true"]) as process:
        gone = process.pid

    def ends_right_after(pid: int, options: int, waitpid: Any = os.waitpid) -> tuple[int, int]:
        return (0, 0) if options else waitpid(pid, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "waitpid", ends_right_after)
        children_.end(gone)
    assert gone not in children_.unreaped


def test_where_sigchld_is_ignored_an_init_may_go_at_any_moment():
    in_child(end_one_that_the_kernel_reaps)


@requires_root
def test_a_kept_init_outlives_close():
    made = nsjoin.create("pid", keep=True)
    made.close()
    os.kill(made.pid, 9)  # it was there
    assert os.waitpid(made.pid, 0)[1] == 9


@pytest.mark.parametrize(("nstype", "options"), [("net", {"keep": True}), ("pid", {"uid_map": "root"})])
def test_an_argument_of_another_type_is_refused(nstype, options):
    with pytest.raises(TypeError, match="namespaces only"):
        nsjoin.create(nstype, **options)


LOOK_OUT = "mount -t proc none /proc && exec {}ls -A /proc/1/root/"
CONFINED = "setpriv --bounding-set=-all --inh-caps=-all "


@requires_root
def test_processes_inside_cannot_see_the_host_through_the_init():
    """Its root directory is empty; who has its uid, and no power over it, may not even go there: ptrace(2)."""
    with nsjoin.create("pid") as space:
        for how, status in ((CONFINED, 2), ("", 0)):
            look = ["sh", "-c", LOOK_OUT.format(how)]
            done = nsjoin.run_in([space], look, unshare=("mnt",), capture_output=True)
            assert (done.returncode, done.stdout) == (status, b""), done


def only_an_empty_root(pid: int) -> None:
    with open(f"/proc/{pid}/mountinfo") as file:
        (root,) = [line for line in file if line.split()[4] == "/" and " - tmpfs " in line]
    assert root.split()[5].startswith("ro,")
    assert os.listdir(f"/proc/{pid}/root") == os.listdir(f"/proc/{pid}/root/..") == []


@requires_root
def test_nothing_of_our_mounts_stays_busy_and_none_of_its_own_is_seen():
    with open("/proc/self/mountinfo") as ours:
        before = ours.read()
        with nsjoin.create("pid") as space, open(f"/proc/{space.pid}/mountinfo") as its:
            only_an_empty_root(space.pid)
            assert len(its.readlines()) == 1
            ours.seek(0)
            assert ours.read() == before


@requires_root
def test_in_a_chroot_its_root_is_empty_too(tmp_path):
    """Which is no mount point, as mount(2) and pivot_root(2) want it."""

    def change_root() -> None:
        nsjoin.unshare("mnt")
        calls.mount("none", "/", 1 << 18 | 1 << 14)  # MS_PRIVATE | MS_REC
        (tmp_path / "proc").mkdir()
        calls.mount("/proc", str(tmp_path / "proc"), 1 << 12)  # MS_BIND
        os.chroot(tmp_path)
        os.chdir("/")

    in_child(with_an_empty_root, change_root)


@requires_root
@requires_program("strace")
def test_it_is_ours_only_once_its_holder_has_memory_of_its_own(tmp_path):
    """CLONE_VFORK ends in the midst of execve, when who may look at the holder's namespaces is still judged by ours.
    In the child of call_in, which nobody may look into, an ordinary user was told EACCES now and then.
    """
    log = tmp_path / "log"
    command = [sys.executable, "-c", "import nsjoin; nsjoin.create('uts').close()"]
    subprocess.run(["strace", "-f", "-o", log, "-e", "trace=poll,execveat", *command], check=True)
    # the kernel closes what is close-on-exec when the new memory is there
    assert re.search(r"execveat\(2, .*revents=POLLHUP", log.read_text(), re.DOTALL)


def with_an_empty_root() -> None:
    with nsjoin.create("pid") as space:
        only_an_empty_root(space.pid)


def no_mount() -> None:
    without_mount = Filter()
    without_mount.load(NR)
    without_mount.refuse_if(SYS_MOUNT, errno.EACCES)
    without_mount.install()
    with pytest.raises(nsjoin.NamespacePermissionError, match="empty root directory") as caught:
        nsjoin.create("pid")
    assert (caught.value.step, caught.value.nstype) == ("create", "pid")


@requires_root
def test_there_is_no_init_with_our_root():
    in_child(no_mount)


def make_pid_namespace_in_user_namespace() -> None:
    with nsjoin.create("user") as user, nsjoin.create("pid", user=user) as space:
        with space.owner() as owner:
            assert owner == user
        only_an_empty_root(space.pid)
        shown = nsjoin.run_in([user, space], ["sh", "-c", "echo $$; readlink /proc/self/ns/user"], stdout=-1, text=True)
        assert shown.stdout.split() == ["2", f"user:[{user.id.ino}]"]
        with open("/proc/self/status") as status:  # a change of our credentials would show in the owner of this file
            assert os.fstat(status.fileno()).st_uid == os.geteuid()
    with pytest.raises(ProcessLookupError):
        os.kill(space.pid, 0)


@requires_root
def test_an_init_is_born_in_another_user_namespace():
    in_child(make_pid_namespace_in_user_namespace)


def test_an_ordinary_users_init_is_born_in_his_user_namespace():
    in_child(make_pid_namespace_in_user_namespace, become_ordinary_user)


@requires_root
def test_no_init_is_born_in_a_user_namespace_that_may_not_be_joined():
    with nsjoin.create("user") as roots:

        def make() -> None:
            with pytest.raises(nsjoin.JoinPermissionError, match="made by uid 0; the caller has uid 65534") as caught:
                nsjoin.create("pid", user=roots)
            assert (caught.value.step, caught.value.nstype) == ("setns", "user")

        in_child(make, become_ordinary_user)


def make_in_own_user_namespace() -> None:
    with nsjoin.Namespace.current("user") as own:
        for nstype in ("pid", "uts"):
            with nsjoin.create(nstype, user=own) as made, made.owner() as owner:
                assert owner == own


@requires_root
def test_our_own_user_namespace_is_the_owner_as_without_user():
    make_in_own_user_namespace()


def with_an_init_in_a_user_namespace() -> None:
    with nsjoin.create("user") as user:
        assert nsjoin.call_in(user, output_in_a_new_pid_namespace) == "2"


def output_in_a_new_pid_namespace() -> str:
    with nsjoin.create("pid") as space:
        only_an_empty_root(space.pid)
        return nsjoin.run_in([space], ["sh", "-c", "echo $$"], stdout=-1, text=True).stdout.strip()


@requires_namespaces_of_pidfds  # the child of a call cannot look into its own /proc/self/ns
def test_an_ordinary_user_makes_one_in_a_user_namespace():
    in_child(with_an_init_in_a_user_namespace, become_ordinary_user)
