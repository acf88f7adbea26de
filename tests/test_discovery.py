"""Seeing namespaces: every one that lsns lists, those that it misses, and what keeps each."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest
from changed import become_nobody
from child import become_ordinary_user, in_child, wait_until_ended
from conftest import IS_ROOT, requires_program, requires_root

import nsjoin
from nsjoin import Namespace, NamespaceError, NamespaceId, NamespaceNotFoundError, _survey, discovery
from nsjoin._nstype import BY_NAME, NSTYPES
from nsjoin.discovery import NamespaceInfo, iter_namespaces, tree

ALL = tuple(row.name for row in NSTYPES)


def inode(pid, link):
    return os.stat(f"/proc/{pid}/ns/{link}").st_ino


def seen():
    return {info.id.ino: info for info in iter_namespaces()}


def flat(entries):
    for entry in entries:
        yield entry
        yield from flat(entry.get("children", []))


def lsns():
    done = subprocess.run(["lsns", "--json"], stdout=subprocess.PIPE, check=True)
    return {entry["ns"]: entry for entry in flat(json.loads(done.stdout)["namespaces"])}


@pytest.fixture
def script():
    """``script(text)`` starts Python code, which prints a line when it is ready and then waits for its stdin's end."""
    with ExitStack() as stack:

        def start_one(text, *args):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", text, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
            return process.pid, process.stdout.readline().split()

        yield start_one


# --- against lsns ----------------------------------------------------------------------------------------------------


@requires_program("lsns")
def test_every_namespace_that_lsns_lists_is_found_with_its_processes(start):
    targets = [start("mnt", "uts", "ipc", "net", "pid", "cgroup", "time"), start("user", "net"), start("uts")]
    # other programs' namespaces come and go meanwhile: those that were there before and after were there in between
    before = lsns()
    found = seen()
    after = lsns()
    assert before.keys() & after.keys() <= found.keys()
    ours = {inode(target.pid, nstype) for target in targets for nstype in target.nstypes}
    assert len(ours) >= 10
    for number in ours:
        info, entry = found[number], after[number]
        assert (info.nstype, len(info.pids), info.pids[0]) == (entry["type"], entry["nprocs"], entry["pid"])


@requires_program("lsns")
def test_an_ordinary_user_finds_what_lsns_lists_for_him(start):
    start("user", "net")

    def look():
        before, found, after = lsns(), seen(), lsns()
        return before.keys() & after.keys(), set(found)

    theirs, ours = in_child(look, become_ordinary_user)
    assert theirs
    assert theirs <= ours


# --- processes and threads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nstype", ALL)
def test_a_namespace_tells_its_type_id_owner_parent_and_processes(start, nstype):
    target = start(*ALL)
    info = seen()[inode(target.pid, nstype)]
    outside = () if nstype in ("pid", "time") else (target.process.pid,)  # unshare(1) itself stays outside of these
    assert info.nstype == nstype
    assert info.pids == (*outside, target.pid)
    assert info.owner_uid == os.geteuid()
    with Namespace.from_pid(target.pid, nstype) as namespace:
        assert info.id == namespace.id
        assert info.id.unique == namespace.id.unique
        with namespace.owner() as owner:
            assert info.owner == owner.id
    own_parent = os.stat(f"/proc/self/ns/{nstype}").st_ino if nstype in ("pid", "user") else None
    assert (info.parent and info.parent.ino) == own_parent
    assert (info.threads, info.paths, info.descriptors, info.sockets) == ((), (), (), ())


def test_our_own_namespaces_are_found_with_us_in_them():
    found = seen()
    for nstype in os.listdir("/proc/self/ns"):
        info = found[inode("self", nstype)]
        assert os.getpid() in info.pids
        assert os.getpid() not in info.for_children


@pytest.mark.parametrize("nstype", ["pid", "time"])
def test_who_will_bear_children_in_it_keeps_it(start, nstype):
    target = start(nstype)
    info = seen()[inode(target.pid, nstype)]
    assert info.for_children == (target.process.pid,)
    assert info.pids == (target.pid,)


UNSHARES = """
import ctypes, sys
assert ctypes.CDLL(None, use_errno=True).unshare(int(sys.argv[1]) | (0x10000000 if int(sys.argv[2]) else 0)) == 0
print(flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("nstype", ["pid", "time"])
def test_a_namespace_in_which_nothing_is_born_yet_is_found(script, nstype):
    pid, _ = script(UNSHARES, BY_NAME[nstype].flag, 0 if IS_ROOT else 1)
    infos = [info for info in iter_namespaces() if pid in info.for_children]
    assert [(info.nstype, info.pids, info.for_children) for info in infos] == [(nstype, (), (pid,))]
    with infos[0].open() as opened:
        assert opened.nstype == nstype


THREAD = """
import ctypes, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def body():
    for flags in sys.argv[1:]:
        assert libc.unshare(int(flags)) == 0, ctypes.get_errno()
    print(threading.get_native_id(), flush=True)
    sys.stdin.read()
threading.Thread(target=body).start()
"""


@requires_root
@pytest.mark.parametrize("nstype", ["net", "uts", "ipc", "cgroup", "mnt"])
def test_a_thread_in_another_namespace_than_its_process_is_found(script, nstype):
    clone_fs = 0x200
    pid, (tid,) = script(THREAD, clone_fs, BY_NAME[nstype].flag)
    info = seen()[inode(int(tid), nstype)]
    assert (info.nstype, info.pids, info.threads, info.for_children) == (nstype, (), ((pid, int(tid)),), ())
    with info.open() as opened:
        assert opened.id == info.id


@requires_root
def test_a_thread_whose_children_are_born_elsewhere_is_found(script):
    _, (tid,) = script(THREAD, BY_NAME["pid"].flag)
    infos = [info for info in iter_namespaces() if int(tid) in info.for_children]
    assert [(info.nstype, info.pids, info.threads) for info in infos] == [("pid", (), ())]
    assert infos[0].parent.ino == inode("self", "pid")


LEADERLESS = """
import ctypes, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
held = open(sys.argv[1])
main = threading.main_thread().native_id
def body():
    while open(f"/proc/self/task/{main}/stat").read().rpartition(")")[2].split()[0] != "Z":
        os.sched_yield()
    print(threading.get_native_id(), flush=True)
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=body).start()
libc.syscall(60 if os.uname().machine == "x86_64" else 93, 0)  # exit(2): this thread alone
"""


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="the number of exit(2)")
def test_the_threads_of_a_process_whose_main_thread_has_ended_are_found(start, script):
    target = start("uts", "net")
    number = inode(target.pid, "net")
    pid, (tid,) = script(LEADERLESS, f"/proc/{target.pid}/ns/net")
    found = seen()
    assert found[number].descriptors[0][0] == int(tid)
    assert (pid, int(tid)) in found[inode("self", "uts")].threads
    assert pid not in found[inode("self", "uts")].pids


def test_a_zombie_is_in_its_user_and_pid_namespace_only(start):
    ended = subprocess.Popen(["true"])
    wait_until_ended(ended.pid)
    found = seen()
    ended.wait()
    assert ended.pid in found[inode("self", "pid")].pids
    assert ended.pid in found[inode("self", "user")].pids
    assert ended.pid not in found[inode("self", "net")].pids


# --- what else keeps a namespace -------------------------------------------------------------------------------------


def test_an_open_descriptor_keeps_it(start):
    target = start("uts")
    with Namespace.from_pid(target.pid, "uts") as held:
        target.end()
        info = seen()[held.id.ino]
        assert (info.pids, info.descriptors) == ((), ((os.getpid(), held.fileno()),))
        with info.open() as opened:
            assert opened == held


def test_another_processes_descriptor_keeps_it(start, script):
    target = start("uts")
    number = inode(target.pid, "uts")
    pid, (fd,) = script(
        "import os, sys; print(os.open(sys.argv[1], os.O_RDONLY), flush=True); sys.stdin.read()",
        f"/proc/{target.pid}/ns/uts",
    )
    target.end()
    info = seen()[number]
    assert (info.pids, info.descriptors) == ((), ((pid, int(fd)),))
    with info.open() as opened:
        assert opened.id == info.id


@contextmanager
def pinned(source, path):
    path.touch()
    subprocess.run(["mount", "--bind", source, path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@requires_root
@pytest.mark.parametrize("name", ["blue", "a name\twith\n\\blanks"])
def test_a_bind_mount_keeps_it(start, tmp_path, name):
    target = start("uts")
    path = tmp_path / name
    with pinned(f"/proc/{target.pid}/ns/uts", path):
        target.end()
        info = seen()[path.stat().st_ino]
        assert (info.nstype, info.pids, info.descriptors, info.paths[0]) == ("uts", (), (), str(path))
        assert info.owner.ino == inode("self", "user")
        with info.open() as opened:
            assert opened.id == info.id


@requires_root
def test_a_descriptor_that_was_opened_through_a_bind_mount_is_one(start, tmp_path):
    target = start("uts")
    path = tmp_path / "blue"
    with ExitStack() as stack:
        stack.enter_context(pinned(f"/proc/{target.pid}/ns/uts", path))
        held = stack.enter_context(Namespace.from_path(path))
        assert os.readlink(f"/proc/self/fd/{held.fileno()}") == str(path)
        target.end()
        assert seen()[held.id.ino].descriptors == ((os.getpid(), held.fileno()),)
        stack.pop_all().close()
    with ExitStack() as stack:
        with pinned(f"/proc/{start('uts').pid}/ns/uts", path):
            held = stack.enter_context(Namespace.from_path(path))
        info = seen()[held.id.ino]  # the link's text is "/" by now
        assert (info.paths, info.descriptors) == ((), ((os.getpid(), held.fileno()),))


