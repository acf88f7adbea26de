"""``pin`` and ``unpin``, with ``ip netns`` in both directions; in a mount namespace of the test's own."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, NoReturn
from unittest import mock

import pytest
from changed import (
    ARG3,
    CAP_SYS_ADMIN,
    NR,
    SYS_MOUNT,
    SYS_MOVE_MOUNT,
    SYS_OPEN_TREE,
    Filter,
    drop_capability,
    join,
)
from child import become_ordinary_user, in_child, own_run
from conftest import requires_program, requires_root

import nsjoin
from nsjoin._kernel import abi, calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MS_BIND, MS_REC, MS_SHARED = 1 << 12, 1 << 14, 1 << 20
MNT_DETACH = 2


def mounts() -> str:
    """What is mounted beneath /run: elsewhere a mount ends when another suite, say, removes its mount point."""
    with open("/proc/thread-self/mountinfo") as file:
        return beneath_run(file.read())


def beneath_run(mountinfo: str) -> str:
    return "".join(line for line in mountinfo.splitlines(keepends=True) if f"{line.split()[4]}/".startswith("/run/"))


def ip(*words: str) -> list[str]:
    """What ``ip netns`` prints, word by word; CalledProcessError if it fails."""
    return subprocess.run(["ip", "netns", *words], capture_output=True, text=True, check=True).stdout.split()


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


@contextmanager
def peer(propagation: str = "unchanged") -> Iterator[Callable[..., str]]:
    """Another mount namespace, which gets what is mounted in our /run; yields what runs a program in it."""
    mount("--make-shared", "/run")
    with nsjoin.create("mnt", propagation=propagation) as other:
        yield lambda *words: nsjoin.run_in(other, words, capture_output=True, text=True, check=True).stdout


@contextmanager
def unchanged() -> Iterator[None]:
    """The block leaves no file in /run and no mount, also in a mount namespace that shares it."""
    with peer() as there:
        files = sorted(os.listdir("/run"))
        before = mounts(), beneath_run(there("cat", "/proc/self/mountinfo"))
        assert all(before)
        yield
        assert sorted(os.listdir("/run")) == files
        assert (mounts(), beneath_run(there("cat", "/proc/self/mountinfo"))) == before


# --- ip netns, in both directions -------------------------------------------------------------------------------------


def ip_finds_what_is_pinned() -> None:
    with nsjoin.create("net") as made:
        made.pin("/run/netns/blue")
        assert ip() == ["blue"]
        with nsjoin.Namespace.from_netns("blue") as found:
            assert found == made
        with pytest.raises(FileExistsError):
            made.pin("/run/netns/blue")
        assert ip("exec", "blue", "readlink", "/proc/self/ns/net") == [f"net:[{made.id.ino}]"]
        with nsjoin.spawn_in(made, ["cat"], stdin=subprocess.PIPE) as running:
            assert ip("identify", str(running.pid)) == ["blue"]
            assert ip("pids", "blue") == [str(running.pid)]
    ip("del", "blue")
    assert os.listdir("/run/netns") == []
    with pytest.raises(nsjoin.NamespaceNotFoundError):
        nsjoin.Namespace.from_netns("blue")


@requires_root
@requires_program("ip")
def test_ip_netns_lists_enters_identifies_and_deletes_what_is_pinned():
    in_child(ip_finds_what_is_pinned, own_run)


def find_what_ip_adds() -> None:
    ip("add", "red")
    inside = ip("exec", "red", "readlink", "/proc/self/ns/net")
    with nsjoin.Namespace.from_netns("red") as red:
        assert inside == [f"net:[{red.id.ino}]"]
        done = nsjoin.run_in(red, ["readlink", "/proc/self/ns/net"], capture_output=True, text=True, check=True)
        assert done.stdout.split() == inside
        with nsjoin.enter(red):
            assert os.readlink("/proc/thread-self/ns/net") == inside[0]
        # it is all that keeps the namespace, so the second name is what keeps it then
        red.pin("/run/netns/crimson")
    nsjoin.unpin("/run/netns/red")
    assert ip() == ["crimson"]
    assert ip("exec", "crimson", "readlink", "/proc/self/ns/net") == inside
    nsjoin.unpin("/run/netns/crimson")
    assert ip() == os.listdir("/run/netns") == []


@requires_root
@requires_program("ip")
def test_what_ip_netns_adds_is_joined_pinned_again_and_unpinned():
    in_child(find_what_ip_adds, own_run)


def find_what_ip_attaches() -> None:
    with nsjoin.create("net") as made, nsjoin.spawn_in(made, ["cat"], stdin=subprocess.PIPE) as running:
        ip("attach", "green", str(running.pid))
        with nsjoin.Namespace.from_netns("green") as green:
            assert green == made
    nsjoin.unpin("/run/netns/green")


@requires_root
@requires_program("ip")
def test_what_ip_netns_attaches_is_the_programs_namespace():
    in_child(find_what_ip_attaches, own_run)


def round_trip_of(name: str) -> None:
    with nsjoin.create("net") as made:
        made.pin(f"/run/netns/{name}")
        assert os.listdir("/run/netns") == [name]
        listed = subprocess.run(["ip", "netns"], stdout=subprocess.PIPE, check=True).stdout
        assert listed == os.fsencode(name) + b"\n"
        with nsjoin.Namespace.from_netns(name) as found:
            assert found == made
    nsjoin.unpin(f"/run/netns/{name}")
    assert os.listdir("/run/netns") == []


@requires_root
@requires_program("ip")
@pytest.mark.parametrize("name", ["a b", "-n", "über", "a\nb", "\udcff", "a:b", "...", "n" * 255])
def test_a_name_may_have_any_character_of_a_file_name(name):
    in_child(lambda: round_trip_of(name), own_run)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_a_name_is_that_of_a_file(name):
    with pytest.raises(ValueError, match="no name"):
        nsjoin.Namespace.from_netns(name)


def a_mount_namespace_made_before_sees_it(propagation: str) -> None:
    with peer(propagation) as there:
        with nsjoin.create("net") as made:
            made.pin("/run/netns/blue")
            entered = there("ip", "netns", "exec", "blue", "readlink", "/proc/self/ns/net")
            assert entered == f"net:[{made.id.ino}]\n"
        nsjoin.unpin("/run/netns/blue")
        assert there("ip", "netns") == ""
        assert "blue" not in there("cat", "/proc/self/mountinfo")


@requires_root
@requires_program("ip")
@pytest.mark.parametrize("propagation", ["unchanged", "slave"])
def test_a_mount_namespace_that_was_there_before_sees_the_name_come_and_go(propagation):
    in_child(lambda: a_mount_namespace_made_before_sees_it(propagation), own_run)


def only_the_file_is_there() -> None:
    with nsjoin.create("mnt") as other, nsjoin.create("net") as made:
        made.pin("/run/netns/blue")
        nsjoin.call_in(other, there_it_is_no_namespace)
        with nsjoin.Namespace.from_netns("blue") as found:
            assert found == made
    nsjoin.unpin("/run/netns/blue")


def there_it_is_no_namespace() -> None:
    with pytest.raises(nsjoin.NotANamespaceError):
        nsjoin.Namespace.from_netns("blue")
    with pytest.raises(nsjoin.NotANamespaceError):
        nsjoin.unpin("/run/netns/blue")


@requires_root
def test_where_the_mount_has_not_come_the_file_is_no_namespace_and_stays():
    in_child(only_the_file_is_there, own_run)


def another_type_by_that_name() -> None:
    with nsjoin.create("uts") as made:
        made.pin("/run/netns/blue")
    with pytest.raises(nsjoin.NotANamespaceError, match="a uts namespace, not a network namespace"):
        nsjoin.Namespace.from_netns("blue")
    nsjoin.unpin("/run/netns/blue")


@requires_root
def test_another_type_of_namespace_is_no_network_namespace():
    in_child(another_type_by_that_name, own_run)


def pin_in_namespaces_of_his_own() -> None:
    with nsjoin.create("user") as user, nsjoin.create("mnt", user=user) as mnt, nsjoin.create("net", user=user) as net:
        assert nsjoin.call_in([user, mnt], pin_in_an_empty_run, net.fileno(), allow_imports=True) == ["blue"]
        with pytest.raises(PermissionError):
            net.pin("/run/netns/blue")


def pin_in_an_empty_run(net: int) -> list[str]:
    mount("-t", "tmpfs", "none", "/run")
    with nsjoin.Namespace.from_fd(net) as made:
        made.pin("/run/netns/blue")
        with nsjoin.Namespace.from_netns("blue") as found:
            assert found == made
    listed = ip()
    ip("del", "blue")
    assert os.listdir("/run/netns") == []
    return listed


@requires_program("ip")
def test_an_ordinary_user_pins_in_a_mount_namespace_of_his_own():
    in_child(pin_in_namespaces_of_his_own, become_ordinary_user)


# --- failures half way ------------------------------------------------------------------------------------------------


class Refused(NamedTuple):
    """A system call that fails from here on: mount(2) with these ``flags`` only, None for any."""

    call: int
    flags: int | None
    number: int

    def install(self) -> None:
        rule = Filter()
        rule.load(NR)
        rule.require(self.call)
        if self.flags is not None:
            rule.load(ARG3)
            rule.require(self.flags)
        rule.refuse(self.number)
        rule.install()


SHARE, BIND_DIRECTORY = MS_SHARED | MS_REC, MS_BIND | MS_REC
NO_OPEN_TREE = Refused(SYS_OPEN_TREE, None, errno.ENOSYS)
STEPS = {
    "the directory is shared": [Refused(SYS_MOUNT, SHARE, errno.EIO)],
    "the directory is bound": [Refused(SYS_MOUNT, BIND_DIRECTORY, errno.EIO)],
    "what was bound is shared": [Refused(SYS_MOUNT, SHARE, errno.EINVAL)],
    "open_tree": [Refused(SYS_OPEN_TREE, None, errno.EIO)],
    "move_mount": [Refused(SYS_MOVE_MOUNT, None, errno.EIO)],
    "mount, before Linux 5.2": [NO_OPEN_TREE, Refused(SYS_MOUNT, MS_BIND, errno.EIO)],
}


def fail_where(refused: list[Refused]) -> None:
    with unchanged(), nsjoin.create("net") as made:
        for one in refused:
            one.install()
        with pytest.raises(nsjoin.NamespaceError, match="pin") as caught:
            made.pin("/run/netns/blue")
        assert caught.value.errno == refused[-1].number


@requires_root
@pytest.mark.parametrize("step", STEPS)
def test_nothing_is_left_where_a_step_is_refused(step):
    in_child(lambda: fail_where(STEPS[step]), own_run)


def pin_with_mount() -> None:
    NO_OPEN_TREE.install()
    ip_finds_what_is_pinned()


@requires_root
@requires_program("ip")
def test_mount_does_it_where_there_is_no_open_tree():
    in_child(pin_with_mount, own_run)


def fail_half_way() -> None:
    with unchanged(), nsjoin.create("net") as made:
        nsjoin.call_in(os.getpid(), without_privilege, made.fileno())


def without_privilege(fd: int) -> None:
    with nsjoin.Namespace.from_fd(fd) as made:
        drop_capability(CAP_SYS_ADMIN)
        for path in ("/run/netns/blue", "/run/blue"):
            with pytest.raises(PermissionError, match="CAP_SYS_ADMIN"):
                made.pin(path)


@requires_root
def test_nothing_is_left_without_privilege():
    in_child(fail_half_way, own_run)


def a_mount_namespace_in_a_shared_mount() -> None:
    with nsjoin.create("mnt") as made:
        made.pin("/run/mnt")
        with nsjoin.Namespace.from_path("/run/mnt") as found:
            assert found == made
        nsjoin.unpin("/run/mnt")
        with unchanged(), pytest.raises(nsjoin.NamespaceError, match="whose mount is private") as caught:
            made.pin("/run/mnt")
        assert caught.value.errno == errno.EINVAL


def on_one_processor() -> None:
    """Linux 6.18 gives out numbers by processor, and takes the lower one for the older mount namespace."""
    command = ["taskset", "--pid", "--cpu-list", "0", str(os.getpid())]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


@requires_root
def test_a_mount_namespace_is_pinned_in_a_private_mount_only():
    in_child(a_mount_namespace_in_a_shared_mount, on_one_processor, own_run)


def our_own_mount_namespace() -> None:
    with unchanged(), nsjoin.Namespace.current("mnt") as own:
        with pytest.raises(nsjoin.NamespaceError, match="only in an older one") as caught:
            own.pin("/run/mnt")
        assert caught.value.errno in (errno.ELOOP, errno.EINVAL)


@requires_root
def test_a_mount_namespace_is_not_pinned_in_itself():
    in_child(our_own_mount_namespace, own_run)


def a_file_for_a_directory() -> None:
    with open("/run/netns", "w"):
        pass
    with unchanged(), nsjoin.create("net") as made, pytest.raises(nsjoin.NamespaceError, match="Not a dir"):
        made.pin("/run/netns/blue")


def a_link_to_nowhere() -> None:
    os.symlink("/run/nowhere", "/run/netns")
    with unchanged(), nsjoin.create("net") as made, pytest.raises(FileNotFoundError):
        made.pin("/run/netns/blue")


def no_room_for_the_file() -> None:
    mount("-o", "remount,nr_inodes=2", "/run")  # the root directory and netns
    with unchanged(), nsjoin.create("net") as made, pytest.raises(OSError, match="No space left"):
        made.pin("/run/netns/blue")


def a_read_only_directory() -> None:
    os.mkdir("/run/netns")
    mount("-o", "remount,ro", "/run")
    with unchanged(), nsjoin.create("net") as made, pytest.raises(OSError, match="Read-only"):
        made.pin("/run/netns/blue")


@requires_root
@pytest.mark.parametrize(
    "failure", [a_file_for_a_directory, a_link_to_nowhere, no_room_for_the_file, a_read_only_directory]
)
def test_nothing_is_left_where_the_file_system_refuses(failure):
    in_child(failure, own_run)


@contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """Within the block, no more than ``count`` can be opened."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    held: list[int] = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append(os.open("/", abi.O_PATH))
        for _ in range(count):
            os.close(held.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in held:
            os.close(fd)


def run_out_of_descriptors() -> None:
    with nsjoin.create("net") as made:
        for count in (0, 1):  # not even the directory's; not that of the tree to mount beside the file's
            with unchanged(), free_descriptors(count), pytest.raises(OSError, match="Too many open files"):
                made.pin("/run/netns/blue")
        with free_descriptors(2):
            made.pin("/run/netns/blue")
    nsjoin.unpin("/run/netns/blue")


@requires_root
def test_nothing_is_left_where_descriptors_run_out():
    in_child(run_out_of_descriptors, own_run)


def others_use_it_by_now(use: Callable[[], object]) -> None:
    def bind(_fd: int, _on: int) -> NoReturn:
        use()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with nsjoin.create("net") as made, mock.patch.object(calls, "bind", bind):
        with pytest.raises(nsjoin.NamespaceError, match="pin") as caught:
            made.pin("/run/netns/blue")
        assert caught.value.errno == errno.EIO


def ip_adds_meanwhile() -> None:
    others_use_it_by_now(lambda: ip("add", "red"))
    assert ip() == ["red"]
    assert "/run/netns/red" in mounts()
    ip("del", "red")


@requires_root
@requires_program("ip")
def test_what_ip_netns_adds_in_the_directory_meanwhile_stays():
    in_child(ip_adds_meanwhile, own_run)


def a_plain_file_meanwhile() -> None:
    before = mounts()
    others_use_it_by_now(lambda: open("/run/netns/plain", "w").close())
    assert os.listdir("/run/netns") == ["plain"]
    assert mounts() == before


@requires_root
def test_the_directory_stays_where_it_has_a_file_of_others_meanwhile():
    in_child(a_plain_file_meanwhile, own_run)


def remove_the_file() -> None:
    os.unlink("/run/netns/blue")


def remove_the_mount() -> None:
    calls.umount("/run/netns", MNT_DETACH)  # umount(8) would leave its /run/mount


def remove_everything() -> None:
    remove_the_mount()
    shutil.rmtree("/run/netns")


def remove_meanwhile(remove: Callable[[], object]) -> None:
    with unchanged():
        others_use_it_by_now(remove)


@requires_root
@pytest.mark.parametrize("remove", [remove_the_file, remove_the_mount, remove_everything])
def test_the_error_is_that_of_the_mount_where_others_have_undone_it_before(remove):
    in_child(lambda: remove_meanwhile(remove), own_run)


# --- the lock ---------------------------------------------------------------------------------------------------------


@contextmanager
def locked() -> Iterator[None]:
    """/run/netns as while ``ip netns add`` makes it shared."""
    os.mkdir("/run/netns")
    lock = os.open("/run/netns", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def waits_for_a_lock() -> bool:
    with open("/proc/locks") as file:
        return any(line.split()[1] == "->" and line.split()[5] == str(os.getpid()) for line in file)


def wait_for_ip() -> None:
    with nsjoin.create("net") as made:
        thread = threading.Thread(target=made.pin, args=("/run/netns/blue",))
        with locked():
            before = mounts()
            thread.start()
            while not waits_for_a_lock():
                assert thread.is_alive(), "it has not waited"
                os.sched_yield()
            assert mounts() == before
            assert os.listdir("/run/netns") == []
        join(thread)
    assert mounts().count(" /netns /run/netns ") == 1
    nsjoin.unpin("/run/netns/blue")


@requires_root
def test_it_waits_while_ip_netns_makes_the_directory():
    in_child(wait_for_ip, own_run)


def interrupt_the_wait() -> None:
    def interrupt() -> None:
        while not waits_for_a_lock():
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGINT)

    with nsjoin.create("net") as made:
        thread = threading.Thread(target=interrupt)
        with locked():
            before = mounts()
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                made.pin("/run/netns/blue")
            assert mounts() == before
            assert os.listdir("/run/netns") == []
        join(thread)


@requires_root
def test_the_wait_can_be_interrupted_and_leaves_nothing():
    in_child(interrupt_the_wait, own_run)


def pin_at_once() -> None:
    names = [f"n{number}" for number in range(6)]
    with nsjoin.create("net") as made:
        added = [subprocess.Popen(["ip", "netns", "add", name]) for name in names[:3]]
        threads = [threading.Thread(target=made.pin, args=(f"/run/netns/{name}",)) for name in names[3:]]
        for thread in threads:
            thread.start()
        assert [one.wait() for one in added] == [0, 0, 0]
        for thread in threads:
            join(thread)
    assert sorted(os.listdir("/run/netns")) == names
    assert mounts().count(" /netns /run/netns ") == 1
    for name in names:
        nsjoin.unpin(f"/run/netns/{name}")


@requires_root
@requires_program("ip")
def test_the_directory_is_mounted_once_where_many_begin_at_once():
    in_child(pin_at_once, own_run)


# --- unpin ------------------------------------------------------------------------------------------------------------


def test_what_is_no_namespace_is_left_alone(tmp_path):
    path = tmp_path / "plain"
    path.touch()
    with pytest.raises(nsjoin.NotANamespaceError):
        nsjoin.unpin(path)
    assert path.exists()


def a_link_is_left_alone() -> None:
    with nsjoin.create("net") as made:
        made.pin("/run/blue")
    os.symlink("/run/blue", "/run/link")
    with unchanged(), pytest.raises(nsjoin.NamespaceError, match="no mount point"):
        nsjoin.unpin("/run/link")
    nsjoin.unpin("/run/blue")


@requires_root
def test_a_link_to_a_namespace_file_is_left_alone():
    in_child(a_link_is_left_alone, own_run)


def the_file_cannot_be_removed() -> None:
    with nsjoin.create("net") as made:
        made.pin("/run/blue")
    mount("-o", "remount,ro", "/run")
    with pytest.raises(OSError, match="is unmounted, but its file cannot be removed"):
        nsjoin.unpin("/run/blue")
    assert "/run/blue" not in mounts()
    assert os.path.exists("/run/blue")


@requires_root
def test_pin_file_that_cannot_be_removed_is_reported():
    in_child(the_file_cannot_be_removed, own_run)
