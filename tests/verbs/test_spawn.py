"""spawn_in, run_in and Popen on real targets: really inside, a direct child, and otherwise subprocess."""

from __future__ import annotations

import errno
import inspect
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import conftest
import pytest
from changed import NOBODY, become_old_kernel, join
from child import become_ordinary_user, children, close_stdio, in_child, wait_until_ended
from conftest import IS_ROOT, Running, requires_program, requires_root

import nsjoin
from nsjoin import JoinError, JoinPermissionError, Namespace, NamespacePermissionError, Target, TargetGoneError
from nsjoin._engine import launch
from nsjoin._kernel import calls
from nsjoin._verbs import command as command_
from nsjoin._verbs import spawn as spawn_

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: Lists the shell's own descriptors; the one that it has the folder open with is closed again when it looks.
OPEN_DESCRIPTORS = "for fd in /proc/self/fd/*; do [ -e $fd ] && echo $fd; done; :"
ALL_TYPES = ("mnt", "uts", "ipc", "net", "pid", "user", "cgroup", "time")


# These two are autouse so that they are there before the guard takes stock of the first test that uses them.


@pytest.fixture(scope="module", autouse=True)
def near():
    """A target that shares our file system, so that subprocess can be asked the same there."""
    running = Running(("pid", "uts"))
    yield running
    running.end()


@pytest.fixture(scope="module", autouse=True)
def near_without_pid():
    """The same without a PID namespace: there the program's own steps are the joiner's."""
    running = Running(("uts",))
    yield running
    running.end()


def output(target: Any, script: str, **keywords: Any) -> list[str]:
    """What a shell inside prints, in lines."""
    done = nsjoin.run_in(target, ["sh", "-c", script], capture_output=True, text=True, **keywords)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def links(pid: int | str, nstypes: Iterable[str]) -> list[str]:
    return [os.readlink(f"/proc/{pid}/ns/{nstype}") for nstype in nstypes]


def links_inside(target: Any, nstypes: Iterable[str], **keywords: Any) -> list[str]:
    return output(target, f"cd /proc/self/ns && readlink {' '.join(nstypes)}", **keywords)


def status_of(pid: int | str, field: str) -> list[str]:
    with open(f"/proc/{pid}/status") as file:
        return next(line.split()[1:] for line in file if line.startswith(f"{field}:"))


# --- really inside, and ours ---------------------------------------------------------------------------------


@requires_program("ps")
def test_the_program_has_a_small_pid_and_sees_its_own_ps(target):
    pid, *processes = output(target.pid, "echo $$; ps -o pid= -o comm=")
    seen = [line.split() for line in processes]
    assert 1 < int(pid) < 1000
    assert [pid, "sh"] in seen
    assert "ps" in [command for _, command in seen]
    assert str(os.getpid()) not in [number for number, _ in seen]


def test_the_program_sees_its_own_children_and_they_see_it(target):
    pid, parent = output(target.pid, "echo $$; sh -c 'echo $PPID'; :")
    assert pid == parent


def test_popen_pid_is_our_direct_child_and_the_program_itself(target):
    with nsjoin.spawn_in(
        target.pid, ["sh", "-c", "echo $$; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        inside = process.stdout.readline().strip()
        assert process.pid in children()
        assert status_of(process.pid, "NSpid") == [str(process.pid), inside]
        assert Path(f"/proc/{process.pid}/comm").read_text() == "sh\n"
    assert process.returncode == 1  # read met the end of its input


@pytest.mark.parametrize("keywords", [{}, {"fork": False}], ids=str)
def test_exit_status_and_signal_are_the_programs_own(target, keywords):
    assert nsjoin.run_in(target.pid, ["sh", "-c", "exit 7"], **keywords).returncode == 7
    # not by $$: the target's /proc and pids are not those of a program that stays outside
    process = nsjoin.spawn_in(target.pid, ["sleep", "infinity"], **keywords)
    process.kill()
    assert process.wait() == -9


def test_a_program_that_kills_itself_has_died_by_that_signal(target):
    assert nsjoin.run_in(target.pid, ["sh", "-c", "kill -9 $$"]).returncode == -9


def test_terminate_reaches_the_program_itself(target):
    script = "trap 'kill $!; exit 42' TERM; sleep infinity & echo ready; wait"
    with nsjoin.spawn_in(target.pid, ["sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait() == 42


def all_eight() -> None:
    running = Running(ALL_TYPES)
    try:
        expected = links(running.pid, ALL_TYPES)
        assert not set(expected) & set(links("self", ALL_TYPES))
        assert links_inside(running.pid, ALL_TYPES) == expected
        assert links_inside(running.pid, ALL_TYPES, namespaces=ALL_TYPES) == expected
        assert output(running.pid, "id -u; id -g") == ["0", "0"]
        with Target.from_pid(running.pid) as process:
            namespaces = process.namespaces()
            try:
                assert set(namespaces) == set(ALL_TYPES)
                assert links_inside(namespaces.values(), ALL_TYPES) == expected
            finally:
                for namespace in namespaces.values():
                    namespace.close()
    finally:
        running.end()


@requires_root
def test_all_eight_types_at_once_as_root():
    all_eight()


def test_all_eight_types_at_once_as_an_ordinary_user():
    in_child(all_eight, become_ordinary_user)


@requires_root
def test_only_the_types_that_are_named_are_joined(target):
    inside = links_inside(target.pid, ALL_TYPES, namespaces=["uts", "net"])
    expected = dict(zip(ALL_TYPES, links("self", ALL_TYPES)))
    expected.update(zip(("uts", "net"), links(target.pid, ("uts", "net"))))
    assert dict(zip(ALL_TYPES, inside)) == expected


def test_fork_false_leaves_the_program_outside_and_only_its_children_inside(target):
    names = ["pid"] if IS_ROOT else ["pid", "user"]
    script = "echo $$; sh -c 'echo $$; readlink /proc/self/ns/pid'; :"
    args = ["sh", "-c", script]
    with nsjoin.spawn_in(target.pid, args, namespaces=names, fork=False, stdout=subprocess.PIPE, text=True) as process:
        own, childs, childs_namespace = process.communicate()[0].split()
    assert int(own) == process.pid
    assert int(childs) < 1000
    assert childs_namespace == links(target.pid, ["pid"])[0]


@pytest.fixture
def chrooted(start, tmp_path) -> Running:
    """A target whose root is not the root of its mount namespace, which setns(2) would lead to."""
    (tmp_path / "new").mkdir()
    script = (
        f"cd {tmp_path} && mount --rbind / new && mount -t tmpfs tmpfs new/mnt && touch new/mnt/only-in-the-chroot && "
        "PATH=$PATH:/usr/sbin:/sbin exec chroot new sh -c 'echo chrooted; exec sleep infinity'"
    )
    running: Running = start("mnt", "pid", program=script)
    assert running.process.stdout.readline() == "chrooted\n"
    return running


def test_a_target_chrooted_in_its_mount_namespace_is_seen_with_that_root(chrooted):
    assert output(chrooted.pid, "ls /mnt; pwd") == ["only-in-the-chroot", "/"]
    assert output(chrooted.pid, "ls", cwd="/mnt") == ["only-in-the-chroot"]
    names = ["mnt"] if IS_ROOT else ["mnt", "user"]
    assert output(chrooted.pid, "ls /mnt", namespaces=names) == ["only-in-the-chroot"]


def test_cwd_and_path_are_looked_up_inside(start):
    script = (
        "mount -t tmpfs tmpfs /mnt && mkdir /mnt/bin /mnt/here && echo '#!/bin/sh\npwd' >/mnt/bin/only-inside && "
        "chmod +x /mnt/bin/only-inside && echo mounted && exec sleep infinity"
    )
    running = start("mnt", program=script)
    assert running.process.stdout.readline() == "mounted\n"
    keywords = {"env": {"PATH": "/mnt/bin:/usr/bin:/bin"}, "stdout": subprocess.PIPE, "text": True}
    assert nsjoin.run_in(running.pid, ["only-inside"], cwd="/mnt/here", **keywords).stdout == "/mnt/here\n"
    assert nsjoin.run_in(running.pid, ["only-inside"], **keywords).stdout == "/\n"
    with pytest.raises(FileNotFoundError):
        subprocess.run(["only-inside"], check=False, **keywords)


def test_without_mnt_the_working_directory_is_ours(near):
    assert output(near.pid, "pwd -P") == [os.path.realpath(os.getcwd())]
    assert output(near.pid, "pwd", cwd="/usr") == ["/usr"]


# --- targets of every kind -----------------------------------------------------------------------------------


def test_a_target_may_be_a_popen_a_target_or_namespaces(target):
    expected = links(target.pid, ["uts", "net"])

    class HasPid:
        pid = target.pid

    names = ["uts", "net"]
    assert links_inside(HasPid(), names) == expected
    with Target.from_pid(target.pid) as process:
        assert links_inside(process, names) == expected


@requires_root
def test_a_target_may_be_a_path_or_several(target):
    folder = f"/proc/{target.pid}/ns"
    assert links_inside(f"{folder}/net", ["net", "uts"]) == links(target.pid, ["net"]) + links("self", ["uts"])
    assert links_inside([Path(folder, "net"), f"{folder}/uts"], ["net", "uts"]) == links(target.pid, ["net", "uts"])


@requires_root
def test_chained_targets_give_the_pid_of_one_and_the_net_of_another(start):
    first, second = start("pid"), start("net")
    with Namespace.from_pid(first.pid, "pid") as pid, Namespace.from_pid(second.pid, "net") as net:
        assert links_inside([pid, net], ["pid", "net"]) == links(first.pid, ["pid"]) + links(second.pid, ["net"])
        assert int(output([pid, net], "echo $$")[0]) < 50


@requires_root
def test_root_joins_a_net_namespace_of_the_first_user_namespace_beside_another_user_namespace(start):
    inner = "exec unshare --user --map-root-user --pid --kill-child sh -c 'echo inner; exec sleep infinity'"
    outer = start("net", program=inner)
    assert outer.process.stdout.readline() == "inner\n"
    (pid,) = children(outer.pid)
    names = ["net", "pid", "user"]
    expected = links(pid, names)
    assert not set(expected) & set(links("self", names))
    assert links_inside(pid, names) == expected
    with Target.from_pid(pid) as process:
        namespaces = [process.namespace(name) for name in names]
        try:
            assert links_inside(namespaces, names) == expected
        finally:
            for namespace in namespaces:
                namespace.close()


def test_an_ordinary_user_joins_a_target_whose_user_namespace_he_owns():
    def inside() -> list[str]:
        running = Running(("user", "mnt", "pid", "net", "uts", "ipc", "cgroup"))
        try:
            assert links_inside(running.pid, running.nstypes) == links(running.pid, running.nstypes)
            return output(running.pid, "echo $$; id -u; id -g; cat /proc/self/uid_map")
        finally:
            running.end()

    pid, uid, gid, uid_map = in_child(inside, become_ordinary_user)
    assert int(pid) < 50
    assert (uid, gid) == ("0", "0")
    assert uid_map.split() == ["0", str(NOBODY if IS_ROOT else os.getuid()), "1"]


BUBBLEWRAP = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
READY_AND_SLEEP = ("sh", "-c", "echo ready; exec sleep infinity")
AS_NOBODY = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups".split()


class Bubblewrap:
    """A sandbox with --dev: the outer of its two user namespaces owns the others, the program is in the inner one."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        self.process = subprocess.Popen(
            [*BUBBLEWRAP, "--die-with-parent", "--info-fd", str(writer), *READY_AND_SLEEP],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=[writer],
        )
        os.close(writer)
        with open(reader) as info:
            about = info.read()
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(self.process.stderr.read())
        self.pid = int(about.split('"child-pid":')[1].split(",")[0])

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.process.communicate()


def join_bubblewrap(read: Callable[[int, tuple[str, ...]], list[str]]) -> None:
    sandbox = Bubblewrap()
    try:
        names = tuple(name for name in ALL_TYPES if name != "time")
        expected = links(sandbox.pid, names)
        assert not set(expected) & set(links("self", names))
        with Target.from_pid(sandbox.pid) as process, process.namespace("net") as net, net.owner() as owner:
            assert owner.id.ino != int(expected[names.index("user")][6:-1]), "not the case of two user namespaces"
        # it is this that nsenter(1) cannot do, neither user first nor user last
        nsenter = subprocess.run(["nsenter", "-a", "-t", str(sandbox.pid), "true"], capture_output=True, check=False)
        assert nsenter.returncode != 0
        assert read(sandbox.pid, names) == expected
    finally:
        sandbox.end()


def whole(pid: int, names: tuple[str, ...]) -> list[str]:
    assert int(output(pid, "echo $$")[0]) < 50
    return links_inside(pid, names)


def by_descriptors(pid: int, names: tuple[str, ...]) -> list[str]:
    namespaces = [Namespace.from_pid(pid, name) for name in names]
    try:
        return links_inside(namespaces, names)
    finally:
        for namespace in namespaces:
            namespace.close()


@requires_program("bwrap")
@pytest.mark.parametrize("read", [whole, by_descriptors])
def test_the_ordinary_user_joins_rootless_bubblewrap_with_dev_where_nsenter_fails(read):
    in_child(lambda: join_bubblewrap(read), become_ordinary_user)


@requires_root
@requires_program("bwrap")
@pytest.mark.parametrize("read", [whole, by_descriptors])
def test_root_joins_the_rootless_bubblewrap_of_a_user(read):
    process = subprocess.Popen(
        [*AS_NOBODY, *BUBBLEWRAP, *READY_AND_SLEEP],
        stdout=subprocess.PIPE,
        cwd="/",
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        (pid,) = children(process.pid)
        names = tuple(name for name in ALL_TYPES if name != "time")
        expected = links(pid, names)
        assert not set(expected) & set(links("self", names))
        assert read(pid, names) == expected
        os.kill(pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()


def spawn_inside_enter(target: int, other: int) -> None:
    with nsjoin.enter(other, "pid"):
        before = os.readlink("/proc/thread-self/ns/pid_for_children")
        assert before == links(other, ["pid"])[0]
        args = ["sh", "-c", "echo $$; read line"]
        with nsjoin.spawn_in(target, args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            inside = process.stdout.readline().strip()
            assert process.pid in children()
            assert status_of(process.pid, "NSpid") == [str(process.pid), inside]
            assert links(process.pid, ["pid"]) == links(target, ["pid"])
        assert os.readlink("/proc/thread-self/ns/pid_for_children") == before


@requires_root
def test_inside_enter_of_another_pid_namespace_the_pid_is_right(target, start):
    spawn_inside_enter(target.pid, start("pid").pid)


@requires_root
def test_inside_enter_of_another_pid_namespace_the_pid_is_right_on_an_old_kernel_too(target, start):
    # where the namespaces of a thread cannot be compared by pidfd, the new process itself looks where it was born
    other = start("pid")
    in_child(lambda: spawn_inside_enter(target.pid, other.pid), lambda: become_old_kernel(pidfds=True))


# --- subprocess's keywords -----------------------------------------------------------------------------------


def descriptors(run: Callable[..., Any], **keywords: Any) -> list[str]:
    # the shell itself lists, since $$ is no number of this /proc where mnt is not joined
    listing = run(["sh", "-c", OPEN_DESCRIPTORS], stdout=subprocess.PIPE, text=True, **keywords)
    return [line.rpartition("/")[2] for line in listing.stdout.splitlines()]


def test_only_stdio_and_pass_fds_are_open_in_the_program(target, near):
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    try:
        for pid in (target.pid, near.pid):
            for keywords in ({}, {"pass_fds": [writer]}, {"close_fds": False}):
                inside = descriptors(lambda *args, pid=pid, **more: nsjoin.run_in(pid, *args, **more), **keywords)
                assert inside == descriptors(subprocess.run, **keywords), keywords
        assert descriptors(lambda *args, **more: nsjoin.run_in(target.pid, *args, **more)) == ["0", "1", "2"]
    finally:
        os.close(reader)
        os.close(writer)


def test_a_passed_descriptor_is_the_same_open_file(target):
    reader, writer = os.pipe()
    with open(reader) as pipe:
        try:
            output(target.pid, f"echo through >/proc/self/fd/{writer}", pass_fds=[writer])
        finally:
            os.close(writer)
        assert pipe.read() == "through\n"


def test_a_source_of_stdio_may_be_any_of_the_three(target):
    # stderr where stdout was and the other way round: each would overwrite what the other is made from
    def swapped() -> bytes:
        reader, writer = os.pipe()
        os.dup2(writer, 2)
        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
        nsjoin.run_in(target.pid, ["sh", "-c", "echo out; echo err >&2"], stdout=2, stderr=1)
        os.dup2(1, 2)
        os.close(writer)
        return os.read(reader, 100)

    assert in_child_unguarded(swapped) == b"out\n"


def in_child_unguarded(function: Callable[[], bytes]) -> bytes:
    """For a function that rearranges the child's own descriptors."""
    found: list[bytes] = []
    return in_child(lambda: found[0], lambda: found.append(function()))


@pytest.mark.parametrize("restore", [True, False])
def test_restore_signals_and_mask_are_as_with_subprocess(near, restore):
    def signals(run: Callable[..., Any]) -> list[str]:
        args = ["grep", "^Sig[BIC]", "/proc/self/status"]
        return run(args, stdout=subprocess.PIPE, text=True, restore_signals=restore).stdout.splitlines()

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        inside = signals(lambda *args, **keywords: nsjoin.run_in(near.pid, *args, **keywords))
        assert inside == signals(subprocess.run)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    fields = {line.split(":")[0]: int(line.split()[1], 16) for line in inside}
    assert fields["SigBlk"] >> signal.SIGUSR1 - 1 & 1
    assert fields["SigIgn"] >> signal.SIGPIPE - 1 & 1 == (not restore)


def test_umask_is_the_given_one_or_ours(near):
    assert output(near.pid, "umask", umask=0o027) == ["0027"]
    assert output(near.pid, "umask", umask=0) == ["0000"]
    before = os.umask(0o035)
    try:
        assert output(near.pid, "umask") == ["0035"]
    finally:
        os.umask(before)


@requires_root
@pytest.mark.parametrize(
    "keywords",
    [
        {"user": 1234},
        {"group": 2345},
        {"extra_groups": [3456, 4567]},
        {"extra_groups": []},
        {"user": 1234, "group": 2345, "extra_groups": [3456]},
    ],
    ids=str,
)
def test_user_group_and_extra_groups_are_as_with_subprocess(near, keywords):
    args = ["grep", "-E", "^(Uid|Gid|Groups|CapEff|CapPrm):", "/proc/self/status"]
    expected = subprocess.run(args, capture_output=True, text=True, check=True, **keywords).stdout
    assert nsjoin.run_in(near.pid, args, capture_output=True, text=True, **keywords).stdout == expected


def test_with_a_user_namespace_the_program_is_its_root_without_groups(start):
    running = start("user", "uts")
    uid, gid, groups, capabilities = output(
        running.pid, "sed -n 's/^[UG]id:.//p; s/^Groups:.//p; s/^CapEff:.//p' /proc/self/status"
    )
    assert uid.split() == gid.split() == ["0"] * 4
    assert int(capabilities, 16) & 1 << 21, "CAP_SYS_ADMIN"
    if IS_ROOT:
        assert groups.split() == []


def test_where_0_is_not_mapped_the_program_runs_as_the_targets_own_user(start, monkeypatch):
    monkeypatch.setitem(conftest.OPTIONS, "user", "--map-user=1000")
    running = start("user", "uts")
    assert output(running.pid, "id -u") == ["1000"]


def test_a_user_that_is_not_mapped_is_an_error(start):
    running = start("user", "uts")
    with pytest.raises(OSError, match="Invalid argument") as caught:
        nsjoin.run_in(running.pid, ["true"], user=1234)
    assert caught.value.errno == errno.EINVAL


def test_start_new_session_and_process_group(target):
    with nsjoin.spawn_in(target.pid, ["cat"], stdin=subprocess.PIPE) as process:
        assert (os.getsid(process.pid), os.getpgid(process.pid)) == (os.getsid(0), os.getpgid(0))
    with nsjoin.spawn_in(target.pid, ["cat"], stdin=subprocess.PIPE, start_new_session=True) as process:
        assert (os.getsid(process.pid), os.getpgid(process.pid)) == (process.pid, process.pid)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="process_group is new in Python 3.11")
def test_process_group_is_as_in_subprocess(target, near):
    with nsjoin.spawn_in(target.pid, ["cat"], stdin=subprocess.PIPE, process_group=0) as leader:
        assert (os.getsid(leader.pid), os.getpgid(leader.pid)) == (os.getsid(0), leader.pid)
    assert_same_error(near.pid, ["true"], process_group=1)


def test_pipes_text_and_communicate(target):
    with nsjoin.spawn_in(
        target.pid,
        ["sh", "-c", "cat; echo err >&2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.communicate("grüße\n") == ("grüße\n", "err\n")
    merged = nsjoin.run_in(
        target.pid, ["sh", "-c", "echo out; echo err >&2"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert merged.stdout == b"out\nerr\n"
    more_than_a_pipe_holds = os.urandom(1 << 20)
    copied = nsjoin.run_in(target.pid, ["cat"], input=more_than_a_pipe_holds, stdout=subprocess.PIPE)
    assert copied.stdout == more_than_a_pipe_holds


def test_stdout_may_be_a_file_or_nothing(target, tmp_path):
    with open(tmp_path / "out", "w") as file:
        nsjoin.run_in(target.pid, ["echo", "to a file"], stdout=file)
    assert (tmp_path / "out").read_text() == "to a file\n"
    done = nsjoin.run_in(target.pid, ["sh", "-c", "readlink /proc/self/fd/0 >&2"], stdin=subprocess.DEVNULL, stderr=-1)
    assert done.stderr == b"/dev/null\n"


def test_shell_executable_and_env(target):
    done = nsjoin.run_in(target.pid, "echo $0 $WORD", shell=True, env={"WORD": "x y"}, stdout=subprocess.PIPE)
    assert done.stdout == b"/bin/sh x y\n"
    done = nsjoin.run_in(target.pid, ["other name", "-c", "echo $0"], executable="/bin/sh", stdout=subprocess.PIPE)
    assert done.stdout == b"other name\n"
    done = nsjoin.run_in(target.pid, ["/usr/bin/env"], env={b"A": b"\xff", "B": ""}, stdout=subprocess.PIPE)
    assert done.stdout == b"A=\xff\nB=\n"


def test_without_env_the_program_gets_ours(target, monkeypatch):
    monkeypatch.setenv("NSJOIN_TEST", "from os.environ")
    assert output(target.pid, "echo $NSJOIN_TEST") == ["from os.environ"]


def test_arguments_may_be_given_by_position_as_to_subprocess(target):
    process = nsjoin.Popen(
        ["sh", "-c", "echo out; echo err >&2"], -1, None, None, subprocess.PIPE, subprocess.PIPE, target=target.pid
    )
    with process:
        assert process.communicate() == (b"out\n", b"err\n")


def test_popen_is_a_subprocess_popen_and_keeps_its_args(target):
    args = ("sh", "-c", "exit 3")
    with nsjoin.Popen(args, target=target.pid) as process:
        assert isinstance(process, subprocess.Popen)
        assert process.args == args
    assert process.returncode == 3


def test_args_may_be_an_iterator(target):
    with nsjoin.Popen(iter(["sh", "-c", "exit 3"]), target=target.pid) as process:
        assert process.wait() == 3


# --- run_in --------------------------------------------------------------------------------------------------


def test_run_in_returns_what_subprocess_run_returns(near):
    args = ["sh", "-c", "cat; echo err >&2; exit 3"]
    keywords: dict[str, Any] = {"input": "in\n", "capture_output": True, "text": True}
    assert vars(nsjoin.run_in(near.pid, args, **keywords)) == vars(subprocess.run(args, check=False, **keywords))


def test_run_in_checks_the_status(target):
    with pytest.raises(subprocess.CalledProcessError) as caught:
        nsjoin.run_in(target.pid, ["sh", "-c", "echo out; exit 3"], check=True, stdout=subprocess.PIPE)
    assert (caught.value.returncode, caught.value.output) == (3, b"out\n")
    nsjoin.run_in(target.pid, ["true"], check=True)


def test_run_in_kills_and_reaps_after_its_timeout(target):
    before = children()
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        nsjoin.run_in(target.pid, ["sh", "-c", "echo begun; exec sleep infinity"], timeout=0.3, capture_output=True)
    assert caught.value.timeout == 0.3
    assert caught.value.cmd == ["sh", "-c", "echo begun; exec sleep infinity"]
    assert children() == before


@pytest.mark.parametrize("keywords", [{"stdin": -1, "input": b""}, {"stdout": -1, "capture_output": True}], ids=str)
def test_run_in_refuses_what_subprocess_run_refuses(target, keywords):
    with pytest.raises(ValueError, match="may not"):
        nsjoin.run_in(target.pid, ["true"], **keywords)


# --- errors: exactly subprocess's ----------------------------------------------------------------------------


def assert_same_error(target: Any, args: Any, **keywords: Any) -> BaseException:
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - which one is what this compares
        subprocess.Popen(args, **keywords).wait()
    with pytest.raises(Exception) as ours:  # noqa: PT011
        nsjoin.Popen(args, target=target, **keywords).wait()
    assert ours.type is theirs.type
    if isinstance(theirs.value, OSError):
        # where it can, Python 3.13 uses posix_spawn, which makes a str of a path
        if isinstance(args, os.PathLike):
            ours.value.filename = os.fspath(ours.value.filename)
            theirs.value.filename = os.fspath(theirs.value.filename)
        assert (ours.value.errno, ours.value.filename) == (theirs.value.errno, theirs.value.filename)
        assert str(ours.value) == str(theirs.value)
    return ours.value


@pytest.fixture
def files(tmp_path):
    """Files that cannot be executed, each for a reason of its own."""
    tmp_path.chmod(0o755)
    for name, text, mode in (
        ("not-executable", "#!/bin/sh\n", 0o644),
        ("bad-interpreter", "#!/no/such/interpreter\n", 0o755),
        ("empty", "", 0o755),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    return tmp_path


@pytest.fixture(params=["near", "near_without_pid"])
def nearby(request):
    """A target with and one without a PID namespace: the program's own step fails in another process then."""
    return request.getfixturevalue(request.param).pid


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no-such-file", FileNotFoundError),
        ("not-executable", PermissionError),
        ("bad-interpreter", FileNotFoundError),
        ("empty", OSError),
        ("", PermissionError),
        ("not-executable/below", NotADirectoryError),
    ],
)
def test_a_program_that_cannot_run_is_subprocesss_error(nearby, files, name, expected):
    path = f"{files}/{name}"
    for args in ([path], path, [os.fsencode(path), "argument"], files / name):
        assert type(assert_same_error(nearby, args)) is expected
    assert_same_error(nearby, ["named otherwise"], executable=path)
    assert_same_error(nearby, "no-such-program-anywhere")
    # in the folders of PATH the first error that tells something wins
    path = f"/no/such/folder:{files}:{files / 'empty'}"
    assert_same_error(nearby, [name or "no-such-file"], env={"PATH": path})


@pytest.mark.parametrize(
    ("cwd", "expected"),
    [("/no/such/folder", FileNotFoundError), ("/etc/passwd", NotADirectoryError), ("", FileNotFoundError)],
)
def test_a_cwd_that_is_not_there_is_subprocesss_error(nearby, cwd, expected):
    for given in (cwd, os.fsencode(cwd)):
        assert type(assert_same_error(nearby, ["true"], cwd=given)) is expected


def test_the_working_directory_is_tried_before_the_program(nearby):
    error = assert_same_error(nearby, ["no-such-program-anywhere"], cwd="/no/such/folder")
    assert error.filename == "/no/such/folder"


@pytest.mark.parametrize(
    ("args", "keywords"),
    [
        (["a\0b"], {}),
        (["true", "a\0b"], {}),
        ("a\0b", {"shell": True}),
        (["true"], {"executable": "a\0b"}),
        (["true"], {"cwd": "a\0b"}),
        (["true"], {"env": {"A": "b\0c"}}),
        (["true"], {"env": {"A\0B": "c"}}),
        (["true"], {"env": {"A=B": "c"}}),
        (["true"], {"env": {b"A=B": b"c"}}),
        (["true"], {"env": {"=A": "c"}}),
        (["true"], {"env": {1: "c"}}),
        (["true"], {"env": {"A": None}}),
        ([None], {}),
        (["true", 1], {}),
        (None, {}),
        (1, {}),
        (["true"], {"bufsize": "1"}),
        (["true"], {"cwd": 1.5}),
        (["true"], {"user": -1}),
        (["true"], {"user": 1 << 40}),
        (["true"], {"user": 1.5}),
        (["true"], {"user": "no such user"}),
        (["true"], {"group": -1}),
        (["true"], {"group": "no such group"}),
        (["true"], {"extra_groups": "no such group"}),
        (["true"], {"extra_groups": [-1]}),
        (["true"], {"umask": "022"}),
        pytest.param(
            ["true"],
            {"umask": 1 << 40},
            marks=pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy's subprocess takes any number"),
        ),
        (["true"], {"pass_fds": [-1]}),
        (["true"], {"pass_fds": [1 << 40]}),
        (["true"], {"pass_fds": ["zero"]}),
        (["true"], {"pass_fds": 1}),
        (["true"], {"stdout": "a name"}),
        (["true"], {"text": True, "universal_newlines": False}),
        (["true"], {"no_such_keyword": 1}),
        (Path("true"), {"shell": True}),
        ("", {}),
        ([""], {}),
        (["true"], {"executable": ""}),
    ],
    ids=str,
)
def test_bad_arguments_are_subprocesss_errors(near, args, keywords):
    assert_same_error(near.pid, args, **keywords)


@pytest.mark.parametrize("keywords", [{"stdin": 999}, {"stdout": 999}, {"stderr": 999}, {"pass_fds": [999]}], ids=str)
def test_a_descriptor_that_is_not_open_is_subprocesss_error(nearby, keywords):
    assert assert_same_error(nearby, ["true"], **keywords).errno == errno.EBADF


def test_arguments_too_long_for_the_kernel_are_subprocesss_error(nearby):
    assert assert_same_error(nearby, ["/bin/true", "x" * (1 << 22)]).errno == errno.E2BIG


def test_empty_args_are_a_value_error(target):
    for args in ([], ()):
        with pytest.raises(ValueError, match="empty"):
            nsjoin.Popen(args, target=target.pid)


def test_preexec_fn_is_refused_with_the_reason(target):
    with pytest.raises(TypeError, match="Python code would run inside"):
        nsjoin.Popen(["true"], target=target.pid, preexec_fn=os.setsid)
    with pytest.raises(TypeError, match="Python code would run inside"):
        nsjoin.Popen(["true"], -1, None, None, None, None, os.setsid, target=target.pid)
    with nsjoin.Popen(["true"], -1, None, None, None, None, None, target=target.pid) as process:
        assert process.wait() == 0


@pytest.mark.parametrize(
    ("target", "keywords", "expected"),
    [
        (True, {}, TypeError),
        (0, {}, ValueError),
        (-1, {}, ValueError),
        (1.5, {}, TypeError),
        (None, {}, TypeError),
        ("", {}, ValueError),
        ("a\0b", {}, ValueError),
        ([1], {}, TypeError),
        (1, {"namespaces": "net"}, TypeError),
        (1, {"namespaces": ["network"]}, ValueError),
        (1, {"namespaces": [1]}, TypeError),
    ],
    ids=str,
)
def test_a_bad_target_or_type_is_refused(target, keywords, expected):
    with pytest.raises(expected):
        nsjoin.spawn_in(target, ["true"], **keywords)


def test_a_directory_or_a_plain_file_is_no_namespace(tmp_path):
    (tmp_path / "plain").touch()
    for path in (tmp_path, tmp_path / "plain"):
        with pytest.raises(ValueError, match="not a namespace file"):
            nsjoin.spawn_in(path, ["true"])


def test_a_closed_namespace_or_target_is_refused(target):
    namespace, process = Namespace.from_pid(target.pid, "net"), Target.from_pid(target.pid)
    namespace.close()
    process.close()
    for closed in (namespace, [namespace], process):
        with pytest.raises(ValueError, match="closed"):
            nsjoin.spawn_in(closed, ["true"])


# --- errors: our own -----------------------------------------------------------------------------------------


@requires_root
def test_a_dead_pid_namespace_is_a_join_error_with_the_reason(start):
    running = start("pid", "uts")
    with Namespace.from_pid(running.pid, "pid") as held:
        os.kill(running.pid, signal.SIGKILL)
        running.process.wait()
        with pytest.raises(JoinError, match="init process of this PID namespace has ended") as caught:
            nsjoin.spawn_in(held, ["true"])
    assert caught.value.errno == errno.ENOMEM
    assert caught.value.nstype == "pid"
    assert f"pid:[{held.id.ino}]" in str(caught.value)


def test_a_zombie_and_then_a_process_that_is_gone_are_target_gone_errors():
    ended = subprocess.Popen(["true"])
    wait_until_ended(ended.pid)
    with Target.from_pid(ended.pid) as pinned:
        for target in (ended.pid, ended, pinned):
            with pytest.raises(TargetGoneError, match="zombie") as caught:
                nsjoin.spawn_in(target, ["true"])
            assert caught.value.errno == errno.ESRCH
            assert str(ended.pid) in str(caught.value)
        ended.wait()
        for target in (ended.pid, ended, pinned):
            with pytest.raises(TargetGoneError, match="No such process"):
                nsjoin.spawn_in(target, ["true"])
            with pytest.raises(TargetGoneError):
                nsjoin.spawn_in(target, ["true"], namespaces=["net"])


def test_unused_pid_raises_target_gone_error():
    free = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    for pid in (free, 1 << 40):
        with pytest.raises(TargetGoneError):
            nsjoin.spawn_in(pid, ["true"])


@requires_root
def test_missing_privileges_name_the_capability_the_user_namespace_and_its_owner(target):
    def refused() -> tuple[str, int, str, bool]:
        with pytest.raises(JoinPermissionError) as caught:
            nsjoin.spawn_in(namespace, ["true"])
        error = caught.value
        return str(error), error.errno, error.nstype, isinstance(error, PermissionError)

    with Namespace.from_pid(target.pid, "net") as namespace:
        message, number, nstype, is_permission_error = in_child(refused, become_ordinary_user)
    assert "CAP_SYS_ADMIN" in message
    assert links("self", ["user"])[0] in message
    assert "uid 0" in message
    assert f"uid {NOBODY}" in message
    assert (number, nstype, is_permission_error) == (errno.EPERM, "net", True)


@requires_root
def test_a_process_of_another_user_is_a_permission_error_with_the_reason(target):
    def refused() -> str:
        with pytest.raises(NamespacePermissionError) as caught:
            nsjoin.spawn_in(target.pid, ["true"])
        return str(caught.value)

    assert "CAP_SYS_PTRACE" in in_child(refused, become_ordinary_user)


@requires_root
def test_our_own_user_namespace_and_a_pid_namespace_that_is_no_descendant_are_explained(start):
    with Namespace.current("user") as own, Target.from_pid(os.getpid()) as me:
        assert nsjoin.run_in(own, ["true"]).returncode == 0  # all of it is ours already: nothing to join
        assert nsjoin.run_in(me, ["true"], namespaces=["user"]).returncode == 0


def test_a_type_that_the_target_does_not_have_among_its_namespaces_is_a_value_error(target):
    with Namespace.from_pid(target.pid, "net") as net, pytest.raises(ValueError, match="no uts namespace"):
        nsjoin.spawn_in(net, ["true"], namespaces=["uts"])


# --- callers of every kind -----------------------------------------------------------------------------------


def test_a_caller_with_closed_stdio_gets_programs_with_the_right_one(target):
    def spawn() -> tuple[Any, ...]:
        piped = nsjoin.run_in(target.pid, ["sh", "-c", "cat; echo err >&2"], input=b"in\n", capture_output=True)
        only_out = nsjoin.run_in(target.pid, ["sh", "-c", OPEN_DESCRIPTORS], stdout=subprocess.PIPE)
        # who has no stdio hands on none: as with subprocess, what the program opens first becomes it
        theirs = subprocess.run(["sh", "-c", OPEN_DESCRIPTORS], stdout=subprocess.PIPE, check=False)
        return piped.stdout, piped.stderr, only_out.stdout == theirs.stdout, only_out.stdout

    out, err, is_same, listing = in_child(spawn, close_stdio)
    assert (out, err) == (b"in\n", b"err\n")
    assert is_same, listing


def test_an_end_of_a_pipe_that_is_ours_is_not_taken_for_the_closed_stdout(target):
    """It would get the end to write of its own stdin, and never see the end of it."""

    def spawn():
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            nsjoin.Popen(["true"], target=target.pid, stdin=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert caught.value.errno == errno.EBADF

    in_child(spawn, lambda: os.closerange(0, 2))


def test_a_caller_with_closed_stdio_gets_the_right_errors(target):
    def spawn() -> None:
        with pytest.raises(FileNotFoundError):
            nsjoin.spawn_in(target.pid, ["/no/such/program"])
        with Namespace.from_pid(target.pid, "net") as net:
            assert net.fileno() > 2

    in_child(spawn, close_stdio)


def test_a_caller_that_ignores_sigchld_gets_its_errors_all_the_same(target):
    def spawn() -> None:
        for keywords in ({}, {"fork": False}):
            for args, expected in ((["/no/such/program"], FileNotFoundError), (["/etc"], PermissionError)):
                with pytest.raises(expected):
                    nsjoin.spawn_in(target.pid, args, **keywords)
            with nsjoin.spawn_in(target.pid, ["echo", "out"], stdout=subprocess.PIPE, **keywords) as process:
                assert process.communicate()[0] == b"out\n"
            # the kernel has thrown the status away, so what subprocess would call 0 is said to be lost
            with pytest.raises(ChildProcessError, match="ignores SIGCHLD"):
                nsjoin.run_in(target.pid, ["true"], **keywords)

    in_child(spawn, lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))


def reap_everything(stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            os.sched_yield()


def test_a_caller_that_reaps_every_child_elsewhere_gets_its_errors_all_the_same(target):
    def spawn() -> None:
        stop = threading.Event()
        thread = threading.Thread(target=reap_everything, args=[stop])
        thread.start()
        try:
            for _ in range(25):
                with pytest.raises(FileNotFoundError):
                    nsjoin.spawn_in(target.pid, ["/no/such/program"])
                with nsjoin.spawn_in(target.pid, ["echo", "out"], stdout=subprocess.PIPE) as process:
                    assert process.communicate()[0] == b"out\n"
        finally:
            stop.set()
            join(thread)

    in_child(spawn)


def test_many_threads_spawn_at_once(target, near):
    results: list[tuple[int, str, int]] = []

    def spawn(numbers: Iterable[int]) -> None:
        for number in numbers:
            pid = (target, near)[number % 2].pid
            args = ["sh", "-c", f"echo {number}; exit {number % 100}"]
            done = nsjoin.run_in(pid, args, stdout=subprocess.PIPE, text=True)
            results.append((number, done.stdout, done.returncode))
            with pytest.raises(FileNotFoundError):
                nsjoin.spawn_in(pid, ["/no/such/program"])

    threads = [threading.Thread(target=spawn, args=[range(first, 320, 16)]) for first in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread)
    assert sorted(results) == [(number, f"{number}\n", number % 100) for number in range(320)]


@requires_root
def test_a_caller_that_is_itself_the_init_of_a_pid_namespace(start, tmp_path):
    script = tmp_path / "init.py"
    script.write_text(
        "import os, subprocess, nsjoin\n"
        "assert os.getpid() == 1\n"
        "with subprocess.Popen(['unshare', '--pid', '--kill-child', 'sh', '-c', 'echo ready; exec sleep infinity'],\n"
        "                      stdout=subprocess.PIPE) as outer:\n"
        "    outer.stdout.readline()\n"
        "    with open(f'/proc/{outer.pid}/task/{outer.pid}/children') as file:\n"
        "        pid = int(file.read())\n"
        "    with nsjoin.spawn_in(pid, ['sh', '-c', 'echo $$; exit 7'], stdout=subprocess.PIPE) as process:\n"
        "        print(process.communicate()[0].decode().strip(), process.returncode)\n"
        "    outer.kill()\n"
    )
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("2 7\n", "")


#: What a patch of subprocess.Popen.__init__ may have made of what it was given.
DISTORTED: dict[str, Any] = {
    "env": {"WORD": "theirs"},
    "cwd": "/dev",
    "executable": "/bin/true",
    "shell": True,
    "close_fds": False,
    "pass_fds": (),
    "umask": 0o777,
    "start_new_session": True,
    "restore_signals": False,
    "user": 65534,
    "group": 65534,
    "extra_groups": [65534],
}


@pytest.fixture
def distorted(monkeypatch) -> None:
    """subprocess.Popen.__init__ as a tracer's, which has other ideas."""
    real = subprocess.Popen.__init__

    def init(self, args, *positional, **keywords):
        real(self, ["echo", "theirs"], **{**keywords, **DISTORTED})

    monkeypatch.setattr(subprocess.Popen, "__init__", init)


@requires_root
@pytest.mark.usefixtures("distorted")
@pytest.mark.parametrize("by_position", [False, True])
def test_what_is_asked_for_counts_and_not_what_a_patch_of_subprocess_makes_of_it(near, by_position):
    script = "echo $WORD; pwd; umask; id -u; id -g; cut -d' ' -f6 /proc/self/stat; [ -e /proc/self/fd/$0 ]; echo $?"
    reader, writer = os.pipe()
    args = ["sh", "-c", script, str(writer)]
    keywords: dict[str, Any] = {"pass_fds": [writer], "env": {"WORD": "ours", "PATH": os.defpath}, "cwd": "/usr"}
    if by_position:
        positional = (-1, None, None, subprocess.PIPE, None, None, True, False, keywords["cwd"], keywords["env"])
        process = nsjoin.Popen(args, *positional, target=near.pid, pass_fds=[writer], umask=0o27)
    else:
        process = nsjoin.Popen(args, target=near.pid, stdout=subprocess.PIPE, umask=0o27, **keywords)
    with process:
        found = process.communicate()[0].decode().split()
    for fd in (reader, writer):
        os.close(fd)
    assert found == ["ours", "/usr", "0027", "0", "0", str(os.getsid(0)), "0"]
    assert process.args is args


@pytest.mark.usefixtures("distorted")
def test_where_that_is_not_kept_the_patch_decides(near, monkeypatch):
    monkeypatch.setattr(spawn_, "asked", lambda args, keywords: {})
    monkeypatch.setitem(DISTORTED, "shell", False)
    monkeypatch.setitem(DISTORTED, "executable", None)
    for name in ("user", "group", "extra_groups"):
        monkeypatch.delitem(DISTORTED, name)
    assert output(near.pid, "echo ours") == ["theirs"]


@pytest.mark.parametrize(
    ("positional", "keywords", "text"),
    [
        ((-1, None), {"executable": "/bin/true"}, "multiple values for argument 'executable'"),
        ((-1, *[None] * 20), {}, "takes 17 arguments by position, not 22"),
        ((-1, None, None, None, None, print), {}, "preexec_fn is not supported"),
    ],
)
def test_arguments_by_position_are_those_of_subprocess(near, positional, keywords, text):
    with pytest.raises(TypeError, match=text):
        nsjoin.Popen(["true"], *positional, target=near.pid, **keywords)


def test_the_names_of_arguments_by_position_are_those_of_subprocess():
    taken = inspect.signature(subprocess.Popen).parameters.values()
    assert tuple(one.name for one in taken if one.kind == one.POSITIONAL_OR_KEYWORD) == ("args", *command_._BY_POSITION)
    defaults = {one.name: one.default for one in taken}
    assert {name: defaults.get(name) for name in command_._HANDED_ON} == command_._HANDED_ON


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"user": -1}, ValueError),
        ({"group": -5}, ValueError),
        ({"extra_groups": [0, -1]}, ValueError),
        ({"user": 1.5}, TypeError),
        ({"group": ()}, TypeError),
        ({"extra_groups": [b"root"]}, TypeError),
    ],
)
def test_what_is_no_id_is_the_error_of_subprocess_and_leaves_no_pipe(target, keywords, error):
    with pytest.raises(error):
        nsjoin.spawn_in(target.pid, ["true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **keywords)


# --- how deep ------------------------------------------------------------------------------------------------

MOST_FRAMES = 9


class CountingLib:
    """The compiled module, which notes the Python frames that lead from ``spawn_in`` to ``nsjoin_launch``."""

    def __init__(self) -> None:
        self.frames: list[str] = []

    def __getattr__(self, name):
        return getattr(calls.lib, name)

    def nsjoin_launch(self, *arguments):
        frame = sys._getframe(1)
        self.frames = [frame.f_code.co_name]
        while frame.f_code.co_name != "spawn_in":
            frame = frame.f_back
            self.frames.append(frame.f_code.co_name)
        return calls.lib.nsjoin_launch(*arguments)


@pytest.mark.parametrize(
    "keywords", [{}, {"namespaces": ["user", "uts"]}, {"env": nsjoin.TARGET}], ids=["all", "named", "TARGET"]
)
def test_few_frames_lie_between_spawn_in_and_the_compiled_call(target, monkeypatch, keywords):
    counting = CountingLib()
    monkeypatch.setattr(launch, "lib", counting)
    assert nsjoin.spawn_in(target.pid, ["true"], **keywords).wait() == 0
    print(f"{len(counting.frames)} frames: {' < '.join(counting.frames)}")
    assert len(counting.frames) <= MOST_FRAMES
