"""Seeing namespaces: every one that lsns lists, those that it misses, and what keeps each."""

from __future__ import annotations

import errno
import json
import os
import pwd
import re
import resource
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest
from changed import become_nobody
from child import become_ordinary_user, in_child, wait_until_ended
from conftest import (
    IS_ROOT,
    requires_list_of_mount_namespaces,
    requires_namespaces_of_pidfds,
    requires_program,
    requires_root,
)

import nsjoin
from nsjoin import Namespace, NamespaceError, NamespaceId, NamespaceNotFoundError
from nsjoin._kernel import calls
from nsjoin._kernel.nstypes import BY_NAME, NSTYPES
from nsjoin._target import survey as survey_
from nsjoin.discovery import NamespaceInfo, iter_namespaces, tree

ALL = tuple(row.name for row in NSTYPES)


def inode(pid, link):
    return os.stat(f"/proc/{pid}/ns/{link}").st_ino


def is_ours(number):
    """Whether a process is of these tests: others on the machine may look at namespaces too, and hold them then."""
    try:
        return os.getpgid(number) == os.getpgrp()
    except ProcessLookupError:
        return False


def seen():
    """What there is by inode number, without the descriptors of processes that are none of ours."""
    return {
        info.id.ino: info._replace(descriptors=tuple(pair for pair in info.descriptors if is_ours(pair[0])))
        for info in iter_namespaces()
    }


def flat(entries):
    for entry in entries:
        yield entry
        yield from flat(entry.get("children", []))


def lsns():
    while (done := subprocess.run(["lsns", "--json"], stdout=subprocess.PIPE, check=False)).returncode:
        continue  # some process had ended while it looked
    written = done.stdout.decode(errors="surrogateescape")  # lsns writes any process's arguments byte for byte
    return {entry["ns"]: entry for entry in flat(json.loads(written)["namespaces"])}


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
    # other programs' namespaces come and go meanwhile: what was there before and after was there in between; a number
    # with other processes is another namespace that got it
    before = lsns()
    found = seen()
    after = lsns()
    assert {number for number, entry in before.items() if after.get(number) == entry} <= found.keys()
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
def test_process_whose_children_will_be_in_it_keeps_it(start, nstype):
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


@pytest.mark.parametrize("nstype", [pytest.param("pid", marks=requires_namespaces_of_pidfds), "time"])
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


@requires_namespaces_of_pidfds
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
    if not path.exists():
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


def test_a_bind_mount_in_another_mount_namespace_keeps_it(start, tmp_path):
    path = tmp_path / "pin"
    program = f"touch {path}; mount --bind /proc/self/ns/uts {path}; echo; exec unshare -u sleep infinity"
    place = start("uts", "mnt", program=program)
    place.process.stdout.readline()
    with Namespace.from_pid(place.process.pid, "uts") as first:
        info = seen()[first.id.ino]
    assert info.paths == (f"/proc/{place.process.pid}/root{path}",)
    assert not path.stat().st_size, "our mount namespace does not have it"
    with info.open() as opened:
        assert opened == first


@requires_root
def test_a_socket_keeps_the_net_namespace_that_it_was_made_in(start):
    target = start("net")
    number = inode(target.pid, "net")
    with nsjoin.enter(target.pid, "net"):
        made_inside = socket.socket()
    with made_inside, socket.fromfd(made_inside.fileno(), socket.AF_INET, socket.SOCK_STREAM) as again:
        target.end()
        info = seen()[number]
        assert (info.nstype, info.pids, info.descriptors) == ("net", (), ())
        assert info.sockets == tuple((os.getpid(), fd) for fd in sorted((made_inside.fileno(), again.fileno())))
        assert not any(
            (os.getpid(), made_inside.fileno()) in other.sockets for other in iter_namespaces() if other != info
        )
        with info.open() as opened:
            assert (opened.nstype, opened.id) == ("net", info.id)


def test_socket_in_the_namespace_of_its_process_is_not_listed():
    with socket.socket() as ours:
        assert not any((os.getpid(), ours.fileno()) in info.sockets for info in iter_namespaces())


@requires_root
@requires_list_of_mount_namespaces
def test_a_mount_namespace_that_nothing_visible_keeps_is_found(start):
    """A descriptor in a message that nobody has received yet: no process has it, but the kernel lists the namespace."""
    target = start("mnt")
    number = inode(target.pid, "mnt")
    with ExitStack() as stack:
        ends = [stack.enter_context(end) for end in socket.socketpair()]
        with Namespace.from_pid(target.pid, "mnt") as held:
            socket.send_fds(ends[0], [b"x"], [held.fileno()])
        target.end()
        info = seen()[number]
        assert info[5:] == ((), (), (), (), (), ())
        # and by who is in one that was made later: the list goes both ways
        assert nsjoin.call_in(start("mnt").pid, seen, namespaces=("mnt",))[number] == info
        with pytest.raises(NamespaceNotFoundError, match="nothing that kept it"):
            info.open()
    assert number not in seen()


def test_an_ancestor_without_processes_is_found_by_its_descendants(start):
    again = "exec unshare --map-root-user unshare --map-root-user sh -c 'echo inner; exec sleep infinity'"
    target = start("user", program=again)
    assert target.process.stdout.readline() == "inner\n"
    with Namespace.from_pid(target.pid, "user") as inner, inner.parent() as middle, middle.parent() as outer:
        expected = middle.id, outer.id
    info = seen()[expected[0].ino]
    assert (info.id, info.parent, info.owner) == (expected[0], expected[1], expected[1])
    assert info[5:] == ((), (), (), (), (), ()), "nothing keeps it but what is below it"


# --- opening ---------------------------------------------------------------------------------------------------------


def test_open_never_gives_another_namespace_in_its_place(start):
    target = start("uts")
    info = seen()[inode(target.pid, "uts")]
    target.end()
    moved = info._replace(pids=(os.getpid(),), descriptors=((os.getpid(), 0),), paths=("/no/such",))
    with pytest.raises(NamespaceNotFoundError) as caught:
        moved.open()
    assert str(info.id.ino) in str(caught.value)


# --- what is in the way ----------------------------------------------------------------------------------------------


@requires_root
def test_processes_that_an_ordinary_user_may_not_look_into_are_counted(start):
    target = start("net")

    def look():
        found = iter_namespaces()
        return found.refused, found.hidden, [info.pids for info in found]

    refused, hidden, members = in_child(look, become_nobody)
    assert target.pid in refused
    assert len(set(refused)) == len(refused)
    assert not hidden
    assert not any(target.pid in pids for pids in members)
    assert members, "his own"
    assert target.pid not in iter_namespaces().refused


@requires_root
@pytest.mark.parametrize(("option", "refused", "hidden"), [("1", True, False), ("2", False, True)])
def test_proc_that_hides_processes_is_reported(start, option, refused, hidden):
    target = start("mnt", program=f"mount -t proc -o hidepid={option} proc /proc; echo; exec sleep infinity")
    target.process.stdout.readline()

    def look():
        found = iter_namespaces()
        return target.pid in found.refused, found.hidden

    def move():
        """The plain system call, after which /proc is what is mounted there."""
        with Namespace.from_pid(target.pid, "mnt") as mnt:
            calls.setns(mnt.fileno(), BY_NAME["mnt"].flag)

    assert in_child(look, move) == (False, False), "root sees all"
    assert in_child(look, move, become_nobody) == (refused, hidden)


@requires_root
def test_sockets_that_do_not_tell_are_counted():
    def look():
        with socket.socket() as ours:
            found = iter_namespaces()
            return found.refused_sockets, [
                info.sockets for info in found if (os.getpid(), ours.fileno()) in info.sockets
            ]

    more, told = in_child(look, become_nobody)
    assert more >= 1
    assert told == []
    with socket.socket():
        assert iter_namespaces().refused_sockets == 0


@requires_root
def test_a_bind_mount_that_cannot_be_opened_is_found_by_its_number(start, tmp_path):
    target = start("uts")
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    with pinned(f"/proc/{target.pid}/ns/uts", hidden / "blue"):
        number = (hidden / "blue").stat().st_ino
        target.end()
        info = in_child(lambda: seen()[number], become_nobody)
    assert (info.nstype, info.paths[0], info.id) == ("uts", str(hidden / "blue"), (info.id.dev, number, None))
    assert (info.owner, info.owner_uid, info.parent) == (None, None, None)


@requires_root
def test_of_a_bind_mount_below_another_mount_the_namespace_is_not_mistaken(start, tmp_path):
    target = start("uts")
    path = tmp_path / "blue"
    with pinned(f"/proc/{target.pid}/ns/uts", path):
        number = path.stat().st_ino
        with pinned("/proc/self/ns/net", path):
            target.end()
            found = seen()
    assert (found[number].nstype, found[number].paths[0]) == ("uts", str(path))
    assert found[number].id.unique is None
    assert found[inode("self", "net")].paths[0] == str(path)


@requires_root
def test_what_lies_on_a_bind_mount_is_not_opened(start, tmp_path):
    target = start("uts")
    path, fifo = tmp_path / "blue", tmp_path / "fifo"
    os.mkfifo(fifo)
    with pinned(f"/proc/{target.pid}/ns/uts", path):
        number = path.stat().st_ino
        with pinned(fifo, path):
            target.end()
            # opening a FIFO waits for who writes: SIGALRM ends that child
            info = in_child(lambda: signal.alarm(10) or seen()[number])
    assert (info.paths[0], info.id.unique) == (str(path), None)


def test_the_descriptors_that_the_look_itself_needs_are_not_listed(start):
    start(*ALL)
    assert not [
        info.descriptors for info in iter_namespaces() if any(pid == os.getpid() for pid, _ in info.descriptors)
    ]


def test_a_few_descriptors_are_enough(start):
    targets = [start("uts", "ipc", "net") for _ in range(4)]
    numbers = {inode(target.pid, nstype) for target in targets for nstype in ("uts", "ipc", "net")}
    free = os.open("/", os.O_RDONLY)
    os.close(free)

    def look():
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 8, free + 8))
        return {number: seen()[number].owner for number in numbers}

    owners = in_child(look)
    assert all(owners.values())


def test_without_descriptors_it_says_so(start):
    free = os.open("/", os.O_RDONLY)
    os.close(free)

    def look():
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        with open("/proc/self/limits"):
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + 2, limits[1]))
            try:
                with pytest.raises(OSError, match="Too many open files"):
                    iter_namespaces()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    in_child(look)


def test_the_pids_of_another_proc_are_refused(start):
    target = start("pid")
    with pytest.raises(NamespaceError, match="belongs to another PID namespace") as caught:
        nsjoin.call_in(target.pid, iter_namespaces, trust_target=True)
    assert caught.value.errno == errno.EXDEV


def test_without_proc_it_says_so(start):
    target = start("mnt", program="mount -t tmpfs none /proc; echo; exec sleep infinity")
    target.process.stdout.readline()
    done = nsjoin.run_in(target.pid, [sys.executable, "-m", "nsjoin", "ls"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    said = done.stderr.splitlines()[-1]  # PyPy itself warns of that before
    assert said == "nsjoin: [Errno 2] open /proc: No such file or directory: /proc is not mounted here"


@requires_root
def test_from_within_another_mount_namespace_our_own_proc_is_read(start):
    target = start("mnt", program="mount -t tmpfs none /proc; echo; exec sleep infinity")
    target.process.stdout.readline()
    with nsjoin.enter(target.pid, "mnt"):
        found = seen()
    assert target.pid in found[inode(target.pid, "mnt")].pids
    assert os.getpid() in found[inode("self", "uts")].pids


# --- what vanishes meanwhile -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [0, 1, 4, 10])
def test_a_process_that_ends_while_it_is_looked_at_is_no_error(start, monkeypatch, after):
    target = start("uts", "net")
    number = inode(target.pid, "net")
    readlink, left = os.readlink, [after]

    def end_first(path, *, dir_fd=None):
        """Ends the target when it has been looked at so many times; the real call is made in any case."""
        if dir_fd is not None and readlink(f"/proc/self/fd/{dir_fd}") == f"/proc/{target.pid}":
            if left[0] == 0:
                target.end()
            left[0] -= 1
        return readlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "readlink", end_first)
    found = iter_namespaces()
    monkeypatch.undo()
    assert left[0] < 0 or after == 10
    infos = list(found)
    assert target.pid not in found.refused
    assert after == 10 or not any(target.pid in info.pids for info in infos if info.nstype == "net")
    assert number in {info.id.ino for info in infos} or after != 10


def test_a_process_that_is_gone_is_not_counted_as_refused(start, monkeypatch):
    target = start("uts")
    readlink = os.readlink

    def refuse(path, *, dir_fd=None):
        """What the kernel answers if the process ends between the search for the link and the look at it."""
        if dir_fd is not None and readlink(f"/proc/self/fd/{dir_fd}") == f"/proc/{target.pid}":
            target.end()
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return readlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "readlink", refuse)
    found = iter_namespaces()
    monkeypatch.undo()
    assert target.process.returncode is not None
    assert target.pid not in found.refused


def test_a_process_that_has_gone_before_its_turn_is_no_error(monkeypatch):
    gone = subprocess.Popen(["true"])
    gone.wait()
    listdir = os.listdir
    monkeypatch.setattr(
        os, "listdir", lambda path: [*listdir(path), str(gone.pid)] if path in ("/proc", "task") else listdir(path)
    )
    found = iter_namespaces()
    assert gone.pid not in found.refused
    assert not any(gone.pid in info.pids for info in found)


@pytest.mark.parametrize("what", ["descriptors", "a descriptor", "mountinfo", "a socket"])
def test_what_is_closed_meanwhile_is_no_error(start, script, monkeypatch, what):
    target = start("uts", "mnt")
    pid, _ = script(
        "import os, socket, sys; s = socket.socket(); os.open(sys.argv[1], 0); print(flush=True); sys.stdin.read()",
        f"/proc/{target.pid}/ns/uts",
    )

    def end_all():
        target.end()
        os.kill(pid, signal.SIGKILL)
        wait_until_ended(pid)

    survey = survey_.Survey()
    hooks = {
        "descriptors": "_descriptors",
        "a descriptor": "_descriptor",
        "mountinfo": "_mountinfo",
        "a socket": "_sockets",
    }
    real = getattr(survey, hooks[what])
    done = []

    def first_end(*args):
        if not done and (not args or args[0] == pid):
            done.append(True)
            end_all()
        return real(*args)

    setattr(survey, hooks[what], first_end)
    survey.run()
    assert done


def test_programs_that_come_and_go_are_no_error(start):
    start("uts", program="while :; do (true) & (:) & wait; done")
    for _ in range(20):
        assert os.getpid() in next(info for info in iter_namespaces() if info.nstype == "user").pids


# --- the hierarchy ---------------------------------------------------------------------------------------------------


def info(nstype, ino, owner=None, parent=None):
    ids = [number and NamespaceId(4, number, None) for number in (owner, parent)]
    return NamespaceInfo(nstype, NamespaceId(4, ino, ino), ids[0], 0, ids[1], (), (), (), (), (), ())


def plain(nodes):
    return [(node.namespace.id.ino, plain(node.children)) for node in nodes]


MADE = [
    info("user", 1),
    info("user", 2, owner=1, parent=1),
    info("user", 3, owner=2, parent=2),
    info("pid", 4, owner=1),
    info("pid", 5, owner=3, parent=4),
    info("net", 6, owner=3),
    info("uts", 7, owner=99),
    info("pid", 8, owner=99, parent=98),
]


def test_tree_puts_user_and_pid_namespaces_below_their_parents():
    assert plain(tree(MADE)) == [(1, [(2, [(3, [])])]), (4, [(5, [])]), (8, [])]


def test_tree_puts_everything_below_its_owner():
    assert plain(tree(iter(MADE), by="owner")) == [(1, [(2, [(3, [(5, []), (6, [])])]), (4, [])]), (7, []), (8, [])]


def test_tree_knows_no_other_order():
    with pytest.raises(ValueError, match="by is 'parent' or 'owner', not 'pid'"):
        tree(MADE, by="pid")


def test_tree_of_what_is_there(start):
    target = start("user", "pid", "net")
    for by, expected in (("parent", {"user", "pid"}), ("owner", {"user", "pid", "net", "mnt"})):
        nodes = list(tree(by=by))
        above = {}
        while nodes:
            node = nodes.pop()
            above.update((child.namespace.id.ino, node.namespace.id.ino) for child in node.children)
            nodes += node.children
            assert by == "owner" or node.namespace.nstype in expected
        own = {nstype: inode("self", nstype) for nstype in ("user", "pid")}
        assert above[inode(target.pid, "user")] == own["user"]
        pid_is_below = own["pid"] if by == "parent" else inode(target.pid, "user")
        assert above[inode(target.pid, "pid")] == pid_is_below


# --- python -m nsjoin ls ---------------------------------------------------------------------------------------------


def ls(*args, **keywords):
    command = [sys.executable, "-m", "nsjoin", "ls", *args]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False, **keywords)


def cmdline(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().split(b"\0")
    return b"" if b"-c" in words else words[0]


def line_of(done, number):
    (line,) = [line for line in done.stdout.splitlines() if str(number) in line.split()[0]]
    return line


def test_ls_prints_a_table_like_lsns(start):
    target = start("uts", "pid", program="exec sleep 4711")
    done = ls()
    assert done.returncode == 0
    heading, *lines = done.stdout.splitlines()
    assert heading.split() == ["NS", "TYPE", "NPROCS", "PID", "USER", "COMMAND"]
    assert [line.split()[0] for line in lines] == sorted(line.split()[0] for line in lines)
    user = pwd.getpwuid(os.geteuid()).pw_name
    line = line_of(done, inode(target.pid, "pid"))
    assert line.split() == [str(inode(target.pid, "pid")), "pid", "1", str(target.pid), user, "sleep", "4711"]
    assert line.index("sleep") == heading.index("COMMAND")
    assert line.index(str(target.pid)) + len(str(target.pid)) == heading.index("PID") + len("PID")
    assert line_of(done, inode(target.pid, "uts")).split()[1:4] == ["uts", "2", str(target.process.pid)]


def test_ls_of_some_types_prints_these(start):
    target = start("uts", "pid")
    done = ls("uts", "pid")
    assert {line.split()[1] for line in done.stdout.splitlines()[1:]} == {"uts", "pid"}
    assert line_of(done, inode(target.pid, "uts"))
    wrong = ls("net", "nett")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "unknown namespace type 'nett'" in wrong.stderr


def test_ls_says_what_keeps_a_namespace_without_processes(start):
    target = start("uts")
    with Namespace.from_pid(target.pid, "uts") as held, ExitStack() as stack:
        target.end()
        assert f"[descriptor {held.fileno()} of {os.getpid()}" in line_of(ls(), held.id.ino)
        more = [stack.enter_context(Namespace.from_fd(held.fileno())) for _ in range(2)]
        first, second, _ = sorted((held.fileno(), *(one.fileno() for one in more)))
        words = f"[descriptor {first} of {os.getpid()}, descriptor {second} of {os.getpid()}, "
        assert re.search(re.escape(words) + r"\d more\]$", line_of(ls(), held.id.ino))


@requires_root
def test_ls_names_bind_mounts(start, tmp_path):
    target = start("uts")
    with pinned(f"/proc/{target.pid}/ns/uts", tmp_path / "blue"):
        number = (tmp_path / "blue").stat().st_ino
        target.end()
        assert f"[{tmp_path / 'blue'}" in line_of(ls(), number)


@requires_program("lsns")
def test_ls_json_has_what_lsns_json_has_and_more(start):
    target = start("uts", "net", "pid")
    entries = {entry["ns"]: entry for entry in json.loads(ls("--json").stdout)["namespaces"]}
    theirs = lsns()
    for nstype in target.nstypes:
        ours, other = entries[inode(target.pid, nstype)], theirs[inode(target.pid, nstype)]
        other.pop("children", None)
        other.pop("netnsid", None)
        other.pop("nsfs", None)
        assert {key: ours[key] for key in other} == other
    with Namespace.from_pid(target.pid, "pid") as namespace:
        entry = entries[namespace.id.ino]
        assert entry["id"] == namespace.id.unique
    assert (entry["owner"], entry["owner_uid"]) == (inode(target.pid, "user"), os.geteuid())
    assert (entry["parent"], entry["for_children"]) == (inode("self", "pid"), [target.process.pid])
    assert entries[inode(target.pid, "uts")]["parent"] is None


def test_ls_json_tells_descriptors_without_a_process(start):
    target = start("uts")
    with Namespace.from_pid(target.pid, "uts") as held:
        target.end()
        (entry,) = [one for one in json.loads(ls("--json").stdout)["namespaces"] if one["ns"] == held.id.ino]
        assert {"pid": os.getpid(), "fd": held.fileno()} in entry["descriptors"]
    assert (entry["nprocs"], entry["pid"], entry["user"], entry["command"]) == (0, None, None, None)


def test_ls_tree_draws_branches(start):
    target = start("pid")
    lines = ls("--tree", "pid").stdout.splitlines()
    (ours,) = [line for line in lines if str(inode("self", "pid")) in line]
    (below,) = [line for line in lines if str(inode(target.pid, "pid")) in line]
    assert ours.startswith(str(inode("self", "pid")))
    assert below.startswith(("├─", "└─"))
    assert {line.split()[1] for line in lines[1:]} == {"pid"}
    roots = json.loads(ls("--tree", "--json", "pid").stdout)["namespaces"]
    (root,) = [entry for entry in roots if entry["ns"] == inode("self", "pid")]
    assert inode(target.pid, "pid") in {entry["ns"] for entry in root["children"]}


def test_ls_tree_by_owner_keeps_the_user_namespaces_that_lead_there(start):
    target = start("user", "net")
    roots = json.loads(ls("--tree", "--by", "owner", "--json", "net").stdout)["namespaces"]
    (root,) = [entry for entry in roots if entry["ns"] == inode("self", "user")]
    (user,) = [entry for entry in root["children"] if entry["ns"] == inode(target.pid, "user")]
    assert [entry["ns"] for entry in user["children"]] == [inode(target.pid, "net")]
    assert {entry["type"] for entry in flat(roots)} == {"user", "net"}


def test_ls_lets_no_control_characters_through(start):
    target = start("pid", program='exec python3 -c \'import os; os.execvp("sleep", ["x\\33red\\udcff", "inf"])\'')
    while b"red" not in cmdline(target.pid):
        os.sched_yield()
    done = ls("pid")
    assert line_of(done, inode(target.pid, "pid")).endswith(" x?red? inf")
    (entry,) = [one for one in json.loads(ls("--json").stdout)["namespaces"] if one["pid"] == target.pid]
    assert entry["command"] == "x\33red\udcff inf"


def test_ls_into_a_closed_pipe_is_quiet():
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "nsjoin", "ls"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(write)
    assert done.returncode == 0
    assert "Error" not in done.stderr


def test_a_command_is_needed():
    done = subprocess.run([sys.executable, "-m", "nsjoin"], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "COMMAND" in done.stderr


@requires_root
def test_ls_tells_what_an_ordinary_user_may_not_see(capfd):
    from nsjoin.__main__ import main

    assert in_child(lambda: main(["ls", "user"]), become_nobody) == 0
    printed = capfd.readouterr()
    assert re.search(r"^nsjoin: may not look into \d+ processes \(ptrace\(2\)\)", printed.err, re.MULTILINE)
    assert printed.out.startswith("NS ")
