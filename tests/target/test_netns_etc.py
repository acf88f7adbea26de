"""``netns_etc=True`` beside ``ip netns exec``; everything in a mount namespace of the test's own."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import os
import platform
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from changed import NR, Filter
from child import in_child
from conftest import requires_program, requires_root

import nsjoin
from nsjoin import aio
from nsjoin._kernel import calls

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [requires_root, requires_program("ip")]

NAME = "blue: one"  # of a file, so that nearly everything may stand in it
LOOK = (
    "pwd; cat /etc/resolv.conf /etc/hosts; ls /sys/class/net; readlink /proc/self/ns/net; "
    "cut -d' ' -f4-6 /proc/self/mountinfo"
)
SYS_MOUNT, SYS_SETNS = {"x86_64": (165, 308), "aarch64": (40, 268)}[platform.machine()]


def own_files() -> None:
    """/run and /etc of the test's own, with one network namespace that has a name, and files."""
    nsjoin.unshare("mnt")
    calls.mount("none", "/", 1 << 18 | 1 << 14)  # MS_PRIVATE | MS_REC
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", "/etc"], check=True)
    os.makedirs(f"/etc/netns/{NAME}")
    write("/etc/resolv.conf", "ours")
    write("/etc/hosts", "localhost")
    write(f"/etc/netns/{NAME}/resolv.conf", "inside")
    subprocess.run(["ip", "netns", "add", NAME], check=True)
    os.chdir("/usr")


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(f"{text}\n")


def read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def mounts() -> str:
    return read("/proc/thread-self/mountinfo")


def by_ip() -> str:
    done = subprocess.run(["ip", "netns", "exec", NAME, "sh", "-c", LOOK], stdout=-1, text=True, check=True)
    assert done.stdout.startswith("/usr\ninside\nlocalhost\nlo\nnet:[")
    return done.stdout


def compare() -> None:
    expected, before = by_ip(), mounts()
    look = ["sh", "-c", LOOK]
    with nsjoin.Namespace.from_netns(NAME) as blue, nsjoin.Namespace.current("uts") as uts:
        targets: list[nsjoin.Namespace | str | list[nsjoin.Namespace | str]] = [blue, f"/run/netns/{NAME}", [uts, blue]]
        for target in targets:
            done = nsjoin.run_in(target, look, netns_etc=True, stdout=-1, text=True, check=True)
            assert done.stdout == expected
        done = nsjoin.run_in(blue, look, namespaces=["net"], netns_etc=True, stdout=-1, text=True, check=True)
        assert done.stdout == expected
        with nsjoin.spawn_in(blue, ["sleep", "infinity"]) as inside:
            done = nsjoin.run_in(inside, look, namespaces=["net", "uts"], netns_etc=True, stdout=-1, text=True)
            assert done.stdout == expected
            inside.kill()
        other = asyncio.run(aio.run_in(blue, look, netns_etc=True, capture_output=True))
        assert other.stdout.decode() == expected
    assert mounts() == before


def test_a_program_finds_what_ip_netns_exec_shows_it():
    in_child(compare, own_files)


def enter_and_leave() -> None:
    before = mounts()
    with nsjoin.Namespace.from_netns(NAME) as blue:
        entering = nsjoin.enter(blue, netns_etc=True)
        for _ in range(2):
            with entering:
                assert (os.getcwd(), os.listdir("/sys/class/net")) == ("/usr", ["lo"])
                assert (read("/etc/resolv.conf"), read("/etc/hosts")) == ("inside", "localhost")
                sys.modules.pop("this", None)
                import this  # noqa: F401 - these are our own files
            assert (os.getcwd(), read("/etc/resolv.conf")) == ("/usr", "ours")
        with nsjoin.spawn_in(blue, ["sleep", "infinity"]) as inside:
            with nsjoin.enter(inside, "net", netns_etc=True):
                assert read("/etc/resolv.conf") == "inside"
            inside.kill()
    assert mounts() == before


def enter_an_iterator() -> None:
    with nsjoin.enter(iter([f"/run/netns/{NAME}"]), "net", netns_etc=True):
        assert read("/etc/resolv.conf") == "inside"
    assert read("/etc/resolv.conf") == "ours"


def test_a_target_may_be_an_iterator_which_is_read_only_once():
    in_child(enter_an_iterator, own_files)


def test_a_thread_finds_it_and_comes_back(capsys):
    in_child(enter_and_leave, own_files)


def within_a_pid_namespace() -> None:
    with nsjoin.create("pid") as space, nsjoin.enter(space):
        done = nsjoin.run_in(f"/run/netns/{NAME}", ["cat", "/etc/resolv.conf"], netns_etc=True, stdout=-1)
        assert done.stdout == b"inside\n"


def test_also_where_this_thread_can_start_no_threads():
    in_child(within_a_pid_namespace, own_files)


def without_counterpart() -> None:
    write(f"/etc/netns/{NAME}/missing", "inside")
    with pytest.raises(RuntimeWarning):  # it is an error here
        nsjoin.run_in(f"/run/netns/{NAME}", ["true"], netns_etc=True)
    with pytest.warns(RuntimeWarning, match="/missing is not bound over /etc/missing: No such file"):
        done = nsjoin.run_in(f"/run/netns/{NAME}", ["cat", "/etc/resolv.conf"], netns_etc=True, stdout=-1)
    assert done.stdout == b"inside\n"


def test_file_that_cannot_be_bound_is_reported_and_the_others_are_bound():
    in_child(without_counterpart, own_files)


def without_files() -> None:
    os.unlink(f"/etc/netns/{NAME}/resolv.conf")
    os.rmdir(f"/etc/netns/{NAME}")
    done = nsjoin.run_in(
        f"/run/netns/{NAME}", ["sh", "-c", "cat /etc/resolv.conf; ls /sys/class/net"], netns_etc=True, stdout=-1
    )
    assert done.stdout == b"ours\nlo\n"


def test_without_files_it_is_only_sys():
    in_child(without_files, own_files)


def without_name() -> None:
    with nsjoin.create("net") as made:
        with pytest.raises(nsjoin.NamespaceNotFoundError, match="no file in /run/netns is this namespace"):
            nsjoin.spawn_in(made, ["true"], netns_etc=True)
        os.unlink("/etc/resolv.conf")
        subprocess.run(["umount", "-l", "/run"], check=True)  # there may be no such directory at all
        subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
        with pytest.raises(nsjoin.NamespaceNotFoundError), nsjoin.enter(made, netns_etc=True):
            pass


def test_a_namespace_has_to_have_a_name():
    in_child(without_name, own_files)


@pytest.mark.parametrize(
    ("target", "namespaces", "text"),
    [
        ("/proc/self/ns/uts", None, "the target has no net namespace"),
        ("/proc/self/ns/net", ["uts"], "is for joining net"),
        ("/proc/self/ns/net", ["net", "mnt"], "instead of joining mnt"),
        (["/proc/self/ns/net", "/proc/self/ns/mnt"], None, "two mnt namespaces"),
        (os.getpid(), None, "name the types"),
        (os.getpid(), ["net", "user"], "user not"),
    ],
)
def test_what_it_does_not_fit_is_refused(target, namespaces, text, monkeypatch):
    monkeypatch.setattr("nsjoin._target.netns_etc._name", lambda net, path: "blue")
    with pytest.raises(ValueError, match=text):
        nsjoin.spawn_in(target, ["true"], namespaces=namespaces, netns_etc=True)


def refusing(number: int, argument: int | None = None, *, of: int = 0) -> Callable[[], None]:
    """A filter for one system call, or for it with one value of an argument."""

    def install() -> None:
        one = Filter()
        one.load(NR)
        one.require(number)
        if argument is not None:
            one.load(16 + 8 * of)
            one.require(argument)
        one.refuse(errno.EPERM)
        one.install()

    return install


FAILURES = {
    "setns": refusing(SYS_SETNS, 0x40000000, of=1),
    "unshare": refusing({"x86_64": 272, "aarch64": 97}[platform.machine()]),
    "mount": refusing(SYS_MOUNT),
    "mount of /sys": refusing(SYS_MOUNT, 0, of=3),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_where_a_step_fails_nothing_is_left(failure):
    def start() -> None:
        before = mounts()
        FAILURES[failure]()
        with pytest.raises(nsjoin.NamespacePermissionError if failure != "setns" else nsjoin.JoinError) as caught:
            nsjoin.spawn_in(f"/run/netns/{NAME}", ["true"], netns_etc=True)
        assert caught.value.step == failure.split()[0]
        assert "needs CAP_SYS_ADMIN" in str(caught.value)
        assert mounts() == before

    in_child(start, own_files)


def test_a_chroot_is_not_left():
    def change_root() -> None:
        own_files()
        os.mkdir("/etc/root")
        for folder in ("sys", "proc", "run", "etc"):
            os.mkdir(f"/etc/root/{folder}")
        for folder in ("proc", "run"):
            calls.mount(f"/{folder}", f"/etc/root/{folder}", 1 << 12 | 1 << 14)  # MS_BIND | MS_REC
        subprocess.run(["mount", "-t", "sysfs", "none", "/etc/root/sys"], check=True)
        calls.mount("/etc/root", "/etc/root", 1 << 12 | 1 << 14)
        os.chroot("/etc/root")
        os.chdir("/")

    def start() -> None:
        with pytest.raises(nsjoin.NamespaceError, match="chroot") as caught:
            nsjoin.spawn_in(f"/run/netns/{NAME}", ["true"], netns_etc=True)
        assert caught.value.errno == errno.EXDEV

    in_child(start, change_root)


IN_A_GREENLET = """
import os, sys
import nsjoin
from nsjoin._target import netns_etc
from nsjoin._engine import stays
from gevent import monkey

monkey.patch_all()
if "twin" in sys.argv:
    stays.is_borrowed = lambda by: False
before = [os.readlink(f"/proc/thread-self/ns/{name}") for name in ("net", "mnt")]
with nsjoin.Namespace.from_pid(int(sys.argv[1]), "net") as net:
    try:
        netns_etc.make(net, "blue").close()
    except nsjoin.NamespaceError as refused:
        print(refused)
after = [os.readlink(f"/proc/thread-self/ns/{name}") for name in ("net", "mnt")]
print("at home" if after == before else "moved")
"""


@pytest.mark.parametrize("is_checked", [True, False], ids=["", "twin"])
def test_where_threads_are_greenlets_it_is_refused_and_without_that_check_the_main_thread_is_moved(start, is_checked):
    if importlib.util.find_spec("gevent") is None:
        pytest.skip("gevent is not installed: .[test] has it for CPython")
    running = start("net")
    arguments = [str(running.pid), *([] if is_checked else ["twin"])]
    command = [sys.executable, "-W", "ignore", "-c", IN_A_GREENLET, *arguments]
    # a mount namespace of its own: without the check the program changes mounts
    done = subprocess.run(["unshare", "--mount", *command], stdout=-1, stderr=-1, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *said, where = done.stdout.splitlines()
    assert where == ("at home" if is_checked else "moved")
    assert [("netns_etc" in line, "greenlet" in line) for line in said] == ([(True, True)] if is_checked else [])
