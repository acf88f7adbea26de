"""``TARGET`` and ``like_target``: what a program takes over from its target, each alone, and what they refuse."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from changed import PR_SET_DUMPABLE, drop_capability, in_child, prctl
from child import wait_until_ended
from conftest import (
    HAS_NAMESPACES_OF_PIDFDS,
    IS_ROOT,
    Running,
    requires_namespaces_of_pidfds,
    requires_program,
    requires_root,
)

import nsjoin
from nsjoin import TARGET
from nsjoin._engine import children, job
from nsjoin._joining import failures
from nsjoin._joining import start as start_
from nsjoin._kernel import abi, capabilities, procfs
from nsjoin._kernel import calls as calls_
from nsjoin._target import cgroups as cgroups_
from nsjoin._target import likeness
from nsjoin._target import target as target_
from nsjoin._target.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CREDENTIALS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
CAP_SETGID, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON = 6, 19, 21, 38
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
PR_CAPBSET_DROP = 24
#: What the target's shell runs, with something of everything that can be taken over.
SETPRIV = "--regid 1001 --groups 1002,1003 --bounding-set=-all,+net_admin,+net_raw,+setpcap,+kill --no-new-privs"


def status(pid: int | str) -> dict[str, str]:
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: " ".join(value.split()) for name, _, value in lines if name in CREDENTIALS}


def of_program(target: object, **keywords: object) -> dict[str, str]:
    """The same of a program inside, as we see it."""
    with nsjoin.spawn_in(target, ["cat"], stdin=subprocess.PIPE, **keywords) as process:
        found = status(process.pid)
        process.stdin.close()
    assert process.returncode == 0
    return found


def output(target: object, *args: str, **keywords: object) -> str:
    return nsjoin.run_in(target, args, stdout=subprocess.PIPE, text=True, check=True, **keywords).stdout


def until_it_sleeps(pid: int) -> None:
    """A process's environment is another one after exec."""
    while Path(f"/proc/{pid}/comm").read_text() != "sleep\n":
        os.sched_yield()


@contextlib.contextmanager
def ended(command: list[str], word: str = "go", **keywords: object) -> Iterator[subprocess.Popen[str]]:
    """A program that has said ``word``, killed afterwards."""
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **keywords)
    try:
        assert program.stdout.readline() == f"{word}\n"
        if "sleep infinity" in command[-1]:
            until_it_sleeps(program.pid)
        yield program
    finally:
        program.kill()
        program.communicate()


@pytest.fixture
def begin(start) -> Callable[..., Running]:
    """``begin("pid", ..., as_=options of setpriv, script=shell)`` gives a target that has become what was asked."""

    def begin_one(*nstypes: str, as_: str = "", script: str = "true") -> Running:
        become = f"exec setpriv {as_} " if as_ else "exec "
        running = start(*nstypes, program=f"{script}; {become} /bin/sh -c 'echo go; exec /bin/sleep infinity'")
        assert running.process.stdout.readline() == "go\n"
        until_it_sleeps(running.pid)
        return running

    return begin_one


# --- like the target as a whole ---------------------------------------------------------------------------------------


@requires_root
@pytest.mark.parametrize(
    "who",
    ["", "--reuid 1000", "--ruid 0 --euid 1000", "--reuid 1000 --inh-caps=+net_raw,+kill --ambient-caps=+net_raw"],
)
def test_root_gets_every_credential_of_its_target(begin, who):
    target = begin("mnt", "pid", "uts", as_=f"{SETPRIV} {who}")
    theirs = status(target.pid)
    assert theirs != of_program(target.pid)
    assert of_program(target.pid, like_target=True) == theirs


def test_ordinary_user_gets_the_credentials_of_a_target_with_a_user_namespace(start):
    target = start("user", "mnt", "pid")
    assert of_program(target.pid, like_target=True) == status(target.pid)


@pytest.mark.parametrize("options", ["--map-current-user", "--map-root-user"])
def test_credentials_come_from_a_target_with_its_own_capabilities_in_a_user_namespace(options):
    become = "--bounding-set=-all,+net_raw,+kill,+setpcap --inh-caps=-all,+net_raw --ambient-caps=-all,+net_raw"
    script = ["sh", "-c", "echo go; exec sleep infinity"]
    command = ["unshare", "--user", "--keep-caps", options, "setpriv", "--no-new-privs", *become.split(), *script]
    with ended(command) as target:
        theirs = status(target.pid)
        assert int(theirs["CapAmb"], 16) == 1 << 13
        assert of_program(target.pid, like_target=True) == theirs


def test_environment_directory_and_score_come_along(begin):
    target = begin("user", "mnt", "pid", script="export WORD='a = b'; cd /usr/lib; echo 321 >/proc/self/oom_score_adj")
    script = "echo $WORD; pwd; cat /proc/self/oom_score_adj"
    assert output(target.pid, "sh", "-c", script, like_target=True) == "a = b\n/usr/lib\n321\n"
    assert output(target.pid, "sh", "-c", script, env={"WORD": "mine"}, like_target=True).startswith("mine\n/usr/lib")
    assert output(target.pid, "sh", "-c", script, cwd="/usr", like_target=True).startswith("a = b\n/usr\n")


def test_what_is_said_goes_before_what_the_target_has(begin):
    target = begin("user", "mnt", "pid", script="echo 321 >/proc/self/oom_score_adj")
    script = "cat /proc/self/oom_score_adj; grep NoNewPrivs /proc/self/status"
    said = output(target.pid, "sh", "-c", script, like_target=True, oom_score_adj=400, no_new_privs=True)
    assert said.split() == ["400", "NoNewPrivs:", "1"]


# --- each alone -------------------------------------------------------------------------------------------------------


@requires_root
@pytest.mark.parametrize(
    ("keyword", "changes"),
    [
        ("user", {"Uid", "CapPrm", "CapEff"}),
        ("group", {"Gid"}),
        ("extra_groups", {"Groups"}),
        ("no_new_privs", {"NoNewPrivs"}),
        ("capabilities", {"CapBnd", "CapPrm", "CapEff"}),
    ],
)
def test_each_alone_changes_only_its_own(begin, keyword, changes):
    target = begin("mnt", "pid", as_=f"{SETPRIV} --reuid 1000")
    plain, theirs = of_program(target.pid), status(target.pid)
    found = of_program(target.pid, **{keyword: TARGET})
    assert {name for name in found if found[name] != plain[name]} == changes
    if keyword != "capabilities":  # root gets the bounding set at exec: capabilities(7)
        assert {name: found[name] for name in changes} == {name: theirs[name] for name in changes}


def test_the_environments_path_finds_the_program(begin, tmp_path):
    program = tmp_path / "word"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    tmp_path.chmod(0o755)
    target = begin("user", "mnt", script=f"export PATH=/nowhere::/{'x' * 5000}:{tmp_path}:/bin")
    assert output(target.pid, "word", env=TARGET) == "found\n"
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        nsjoin.run_in(target.pid, ["no-such-program"], env=TARGET)
    without = begin("user", "mnt", script="unset PATH")
    found = output(without.pid, "env", env=TARGET, cwd="/")  # in os.defpath: /bin:/usr/bin
    assert not [line for line in found.splitlines() if line.startswith("PATH=")]


def test_a_large_environment_comes_whole(start):
    words = {f"WORD{number}": "x" * 1000 for number in range(1500)}
    target = subprocess.Popen(["sh", "-c", "echo go; exec sleep infinity"], env=words, stdout=subprocess.PIPE)
    try:
        target.stdout.readline()
        until_it_sleeps(target.pid)
        found = output(target.pid, "/usr/bin/env", env=TARGET, namespaces=())
        assert words.items() <= dict(line.partition("=")[::2] for line in found.splitlines()).items()
    finally:
        target.kill()
        target.communicate()


def test_no_environment_at_all_is_one_too(begin):
    target = begin("user", "mnt", script="cd /")
    with nsjoin.spawn_in(target.pid, ["env", "-i", "/bin/sleep", "infinity"], stdin=subprocess.PIPE) as bare:
        until_it_sleeps(bare.pid)
        assert output(bare.pid, "/usr/bin/env", env=TARGET) == ""
        bare.kill()


def test_an_environment_that_goes_while_it_is_opened_is_read_again(begin, monkeypatch):
    """execve(2) between our open and our read."""
    target = begin("user", "mnt", script="export WORD=theirs")
    opened = likeness._open

    def open_an_empty_one_first(process, name, flags, stack):
        if name == "environ":
            monkeypatch.setattr(likeness, "_open", opened)
            fd = os.memfd_create("empty")
            stack.callback(os.close, fd)
            return fd
        return opened(process, name, flags, stack)

    monkeypatch.setattr(likeness, "_open", open_an_empty_one_first)
    assert output(target.pid, "sh", "-c", "echo $WORD", env=TARGET) == "theirs\n"


REMADE = [sys.executable, "-I", str(Path(__file__).parents[1] / "remade.py")]


def test_an_environment_may_lack_its_last_null_character():
    with ended([*REMADE, "5000"]) as target:
        found = output(target.pid, "/usr/bin/env", env=TARGET, namespaces=())
        assert found == f"WORD=theirs\nLAST={'x' * (5000 - 17)}\n"


def test_environment_too_large_for_execve_is_an_error():
    with ended([*REMADE, str(7 << 20)]) as target:
        with pytest.raises(nsjoin.JoinError, match="environ of process .* longer than execve") as caught:
            nsjoin.Popen(["true"], target=target.pid, env=TARGET, namespaces=())
        assert caught.value.errno == errno.E2BIG


def test_environment_page_that_is_never_filled_does_not_block_the_caller():
    """Today's kernel reads it as an empty one; if another waits for it, it is the joiner who waits."""
    with ended([*REMADE, "4096", "hangs"]) as target, contextlib.suppress(subprocess.TimeoutExpired):
        assert nsjoin.run_in(target.pid, ["/bin/true"], env=TARGET, namespaces=(), timeout=5).returncode == 0


def test_env_and_cwd_may_be_given_by_position(begin):
    target = begin("user", "mnt", script="cd /usr/lib; export WORD=theirs")
    arguments = (["sh", "-c", "pwd; echo $WORD"], -1, None, None, subprocess.PIPE, None, None, True, False)
    with nsjoin.Popen(*arguments, TARGET, TARGET, target=target.pid) as process:
        assert process.communicate()[0] == b"/usr/lib\ntheirs\n"


#: How a shell comes to be in a directory that has been deleted: "{}" is a folder of its own.
DELETED = {
    "the directory": "mkdir {}/d; cd {}/d; rmdir {}/d",
    "it and those above it": "mkdir -p {}/a/b/c; cd {}/a/b/c; rm -r {}/a",
    "another one has its name": "mkdir {}/d; cd {}/d; rmdir {}/d; mkdir {}/d; touch {}/d/file",
    "the root of a mount": "mkdir {}/d {}/m; mount --bind {}/d {}/m; cd {}/m; rmdir {}/d",
    "below another mount": "mount -t tmpfs a {}; mkdir {}/d; cd {}/d; rmdir {}/d; mount -t tmpfs b {}",
}


@pytest.mark.parametrize("how", DELETED)
@pytest.mark.parametrize("keywords", [{"like_target": True}, {"cwd": TARGET}, {"cwd": TARGET, "namespaces": ("mnt",)}])
def test_a_program_starts_in_the_targets_working_directory_though_it_is_deleted(begin, tmp_path, how, keywords):
    if not IS_ROOT and keywords.get("namespaces"):
        keywords = {"cwd": TARGET}  # an ordinary user joins mnt with user only
    target = begin("mnt", "pid", script=DELETED[how].replace("{}", str(tmp_path)))
    with nsjoin.spawn_in(target.pid, ["cat"], stdin=subprocess.PIPE, **keywords) as process:
        assert os.path.samestat(os.stat(f"/proc/{process.pid}/cwd"), os.stat(f"/proc/{target.pid}/cwd"))
        assert os.readlink(f"/proc/{process.pid}/cwd").endswith(" (deleted)")
        process.stdin.close()
    assert process.returncode == 0


def test_deleted_working_directory_works_with_aio_and_by_path(begin, tmp_path):
    target = begin("mnt", "pid", script=f"mkdir {tmp_path}/d; cd {tmp_path}/d; rmdir {tmp_path}/d")
    look = ["readlink", "/proc/self/cwd"]
    found = asyncio.run(nsjoin.aio.run_in(target.pid, look, like_target=True, capture_output=True)).stdout.decode()
    assert found == f"{tmp_path}/d (deleted)\n"
    assert output(target.pid, *look, cwd="/proc/1/cwd") == found


@requires_root
def test_unsearchable_working_directory_is_reported_as_the_targets(begin, tmp_path):
    target = begin("mnt", script=f"cd {tmp_path}; chmod 0 .")

    def without_capabilities() -> None:
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            prctl(PR_CAPBSET_DROP, capability)  # or root's exec would give it back
            drop_capability(capability)
        with pytest.raises(nsjoin.JoinPermissionError, match="the target's own working directory; name another"):
            nsjoin.run_in(target.pid, ["true"], cwd=TARGET)

    in_child(without_capabilities)


@requires_root
def test_a_directory_outside_of_the_root_is_no_working_directory(begin, tmp_path):
    target = begin("mnt", script=f"mount -t tmpfs none {tmp_path}; cd {tmp_path}")
    with pytest.raises(nsjoin.JoinError, match="a way out") as caught:
        nsjoin.run_in(target.pid, ["true"], cwd=TARGET, namespaces=())
    assert caught.value.errno == errno.EXDEV


# --- ids through the maps of a user namespace -------------------------------------------------------------------------


@requires_root
def test_ids_are_translated_and_an_unmapped_id_is_an_error(start):
    outer = subprocess.Popen(["unshare", "-U", "sh", "-c", "echo go; exec sleep infinity"], stdout=subprocess.PIPE)
    try:
        outer.stdout.readline()
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{outer.pid}/{name}").write_text("0 100000 1000\n")
        become = [
            "setpriv",
            "--reuid",
            "5",
            "--regid",
            "6",
            "--groups",
            "7",
            "sh",
            "-c",
            "echo go; exec sleep infinity",
        ]
        with nsjoin.spawn_in(outer.pid, become, stdout=subprocess.PIPE) as target:
            target.stdout.readline()
            theirs = status(target.pid)
            ids = [theirs[name] for name in ("Uid", "Gid", "Groups")]
            assert [text.split()[0] for text in ids] == ["100005", "100006", "100007"]
            found = of_program(target.pid, user=TARGET, group=TARGET, extra_groups=TARGET)
            assert [found[name] for name in ("Uid", "Gid", "Groups")] == ids
            assert of_program(target.pid, like_target=True) == theirs
            target.kill()
    finally:
        outer.kill()
        outer.communicate()


@requires_root
def test_the_environment_of_another_uid_in_a_user_namespace_of_ours_is_read_inside():
    """Which is nobody's whom the caller has power over, until it is root there: as in rootless containers."""
    command = ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", "unshare", "-U", "sleep", "infinity"]
    with subprocess.Popen(command) as outer:
        try:
            until_it_sleeps(outer.pid)
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{outer.pid}/{name}").write_text("0 1000 1\n1 100000 10\n")
            become = ["setpriv", "--reuid", "5", "--regid", "6", "--clear-groups", "sh", "-c", "exec sleep infinity"]
            with nsjoin.spawn_in(outer.pid, become, env={"WORD": "theirs", "PATH": "/bin:/usr/bin"}) as target:
                until_it_sleeps(target.pid)

                def as_the_owner() -> None:
                    os.setgroups([])
                    os.setresgid(1000, 1000, 1000)
                    os.setresuid(1000, 1000, 1000)
                    prctl(PR_SET_DUMPABLE, 1)
                    with pytest.raises(PermissionError):
                        Path(f"/proc/{target.pid}/environ").read_bytes()
                    assert output(target.pid, "sh", "-c", "echo $WORD", env=TARGET) == "theirs\n"

                try:
                    in_child(as_the_owner)
                finally:
                    target.kill()
        finally:
            outer.kill()


def become_dumpable_where_needed() -> None:
    """After a change of ids; before Linux 6.11 who is not cannot see its own namespaces."""
    if not HAS_NAMESPACES_OF_PIDFDS:
        prctl(PR_SET_DUMPABLE, 1)


@requires_root
def test_id_not_mapped_in_the_target_is_an_error():
    program = subprocess.Popen(
        ["setpriv", "--reuid", "1000", "--clear-groups", "unshare", "-U", "sh", "-c", "echo go; exec sleep infinity"],
        stdout=-1,
    )
    try:
        program.stdout.readline()
        with pytest.raises(nsjoin.JoinError, match=r"id 1000 of process \d+ is not mapped in its uid_map"):
            nsjoin.run_in(program.pid, ["true"], user=TARGET)

        def as_the_same_user() -> None:  # for whom it is the same id of the kernel's, so it stays
            os.setgroups([])
            os.setresuid(1000, 1000, 1000)
            become_dumpable_where_needed()
            found = of_program(program.pid, user=TARGET, group=TARGET, extra_groups=TARGET, env=TARGET)
            assert found["Uid"] == "1000 1000 1000 1000"

        in_child(as_the_same_user)
    finally:
        program.kill()
        program.communicate()


@requires_root
@pytest.mark.parametrize(
    ("keyword", "options", "text"),
    [
        ("group", ["--regid", "1001"], r"setresgid .*id 1001 of process \d+ is not mapped in its gid_map"),
        ("extra_groups", ["--groups", "1002"], r"setgroups .*id 1002 of process \d+ is not mapped in its gid_map"),
    ],
)
def test_the_error_names_the_call_that_sets_such_an_id(keyword, options, text):
    keep = [] if keyword == "extra_groups" else ["--clear-groups"]
    command = ["setpriv", *options, *keep, "unshare", "-U", "sh", "-c", "echo go; exec sleep infinity"]
    with ended(command) as target:

        def refused() -> None:
            os.setgroups([])
            drop_capability(CAP_SETGID)  # else groups of any number are set before the user namespace is joined
            with pytest.raises(nsjoin.JoinError, match=text):
                nsjoin.Popen(["true"], target=target.pid, **{keyword: TARGET})

        in_child(refused)


@requires_root
def test_an_ordinary_user_keeps_groups_that_are_the_targets_too():
    def with_groups() -> None:
        os.setgroups([5000, 5001])
        os.setresgid(1000, 1000, 1000)
        os.setresuid(1000, 1000, 1000)
        become_dumpable_where_needed()
        with ended(["unshare", "-Ur", "sh", "-c", "echo go; exec sleep infinity"]) as target:
            theirs = status(target.pid)
            assert theirs["Groups"] == "5000 5001"
            assert of_program(target.pid, like_target=True) == theirs

    in_child(with_groups)


# --- said explicitly --------------------------------------------------------------------------------------------------


@requires_root
@pytest.mark.parametrize("names", [["net_admin"], {"CAP_NET_ADMIN"}, ("Cap_Net_Admin", "net_admin")])
@pytest.mark.parametrize("user", [None, 1000])
def test_exactly_the_capabilities_that_are_named(target, names, user):
    found = of_program(target.pid, capabilities=names, user=user)
    assert {int(found[name], 16) for name in CREDENTIALS if name.startswith("Cap")} == {1 << 12}


@requires_root
def test_no_capability_at_all(target):
    found = of_program(target.pid, capabilities=())
    assert {int(found[name], 16) for name in CREDENTIALS if name.startswith("Cap")} == {0}


@pytest.mark.parametrize("flag", [True, False])
def test_no_new_privs(start, flag):
    assert of_program(start("user", "pid").pid, no_new_privs=flag)["NoNewPrivs"] == str(int(flag))


def test_the_table_of_capabilities_is_the_kernels():
    header = Path("/usr/include/linux/capability.h")
    if not header.exists():
        pytest.skip("linux/capability.h is not installed")
    numbers = re.findall(r"^#define CAP_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE)
    assert [name.lower() for name, _ in sorted(numbers, key=lambda pair: int(pair[1]))] == list(capabilities.NAMES)


@pytest.mark.parametrize(
    ("keywords", "error", "text"),
    [
        ({"capabilities": "net_admin"}, TypeError, "iterable of names"),
        ({"capabilities": b"net_admin"}, TypeError, "iterable of names"),
        ({"capabilities": [21]}, TypeError, "named by a str"),
        ({"capabilities": ["net_admiral"]}, ValueError, "unknown capability 'net_admiral'"),
        ({"no_new_privs": 1}, TypeError, "no_new_privs is a bool"),
        ({"oom_score_adj": "5"}, TypeError, "oom_score_adj is an int"),
        ({"oom_score_adj": True}, TypeError, "oom_score_adj is an int"),
        ({"oom_score_adj": -1001}, ValueError, "from -1000 to 1000"),
        ({"lsm_label": ""}, ValueError, "is not empty"),
        ({"oom_score_adj": 1001}, ValueError, "from -1000 to 1000"),
        ({"cgroup": "relative"}, ValueError, "begins with '/'"),
        ({"cgroup": "/a/../b"}, ValueError, "as in /proc/PID/cgroup"),
        ({"cgroup": 5}, TypeError, "expected str"),
        ({"lsm_label": b"x"}, TypeError, "lsm_label is a str"),
        ({"lsm_label": "a\0b"}, ValueError, "no null character"),
    ],
)
def test_wrong_value_is_an_error_before_anything_starts(target, keywords, error, text):
    with pytest.raises(error, match=text):
        nsjoin.Popen(["true"], target=target.pid, **keywords)


@pytest.mark.parametrize("keyword", ["env", "cwd", "user", "group", "extra_groups", "cgroup", "capabilities"])
def test_only_a_process_can_be_taken_after(keyword):
    with pytest.raises(ValueError, match=f"TARGET for {keyword} needs a target that is a process"):
        nsjoin.Popen(["true"], target="/proc/self/ns/net", **{keyword: TARGET})


def test_capabilities_count_in_a_user_namespace_that_has_to_be_joined(start):
    target = start("user", "net")
    with pytest.raises(ValueError, match="count in its user namespace, which is not among namespaces="):
        nsjoin.Popen(["true"], target=target.pid, namespaces=["net"], capabilities=TARGET)


def test_capabilities_of_our_own_user_namespace_need_not_be_joined(start):
    target = start("net") if IS_ROOT else None
    pid = target.pid if target else os.getpid()
    plain = of_program(pid, namespaces=["net"] if target else (), capabilities=TARGET)
    assert plain["CapEff"] == status(pid)["CapEff"]


@requires_root
def test_ids_that_are_said_go_before_the_targets(start):
    found = of_program(start("uts").pid, like_target=True, user=1000, group=1001, extra_groups=[1002])
    assert [found[name].split()[0] for name in ("Uid", "Gid", "Groups")] == ["1000", "1001", "1002"]


@pytest.mark.parametrize("score", [-1000, 1000])
def test_the_least_and_the_greatest_score_are_taken(score):
    choice = likeness.choose({"oom_score_adj": score}, like_target=False)
    assert choice is not None
    assert choice.oom_score_adj == str(score).encode()


#: What only a program that makes these calls itself can be: exec makes the saved id and the effective set others.
UNLIKE_AFTER_EXEC = """
import ctypes, os, struct, sys, time
libc = ctypes.CDLL(None)
if sys.argv[1] == "ids":
    os.setgroups([])
    os.setresgid(1001, 1002, 1003)
    os.setresuid(1000, 0, 1000)
else:
    head, sets = struct.pack("Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    assert libc.capget(head, sets) == 0
    effective, permitted, *rest = struct.unpack("6I", sets)
    assert libc.capset(head, struct.pack("6I", 0, permitted, rest[0], 0, *rest[2:])) == 0
print("go", flush=True)
time.sleep(3600)
"""


@requires_root
def test_real_effective_and_saved_ids_are_three():
    with ended([sys.executable, "-I", "-c", UNLIKE_AFTER_EXEC, "ids"]) as target:
        assert status(target.pid)["Gid"] == "1001 1002 1003 1002"
        found = of_program(target.pid, namespaces=(), user=TARGET, group=TARGET)
        assert (found["Uid"], found["Gid"]) == ("1000 0 0 0", "1001 1002 1002 1002")  # saved is effective after exec


@requires_root
def test_permitted_capabilities_need_not_be_effective():
    with ended([sys.executable, "-I", "-c", UNLIKE_AFTER_EXEC, "capabilities"]) as target:
        assert int(status(target.pid)["CapEff"], 16) == 0
        assert of_program(target.pid, namespaces=(), capabilities=TARGET)["CapPrm"] == status(target.pid)["CapPrm"]


def test_a_kernel_that_does_not_tell_of_no_new_privs():
    with (
        Process(os.getpid()) as me,
        pytest.raises(nsjoin.JoinError, match=r"since Linux 4\.10") as caught,
    ):
        likeness._no_new_privs(me, {})
    assert caught.value.errno == errno.ENOSYS


def test_a_capability_that_this_table_does_not_know_is_called_by_its_number():
    last = len(capabilities.NAMES) - 1
    assert (capabilities.name_of(last), capabilities.name_of(last + 1)) == (
        "cap_checkpoint_restore",
        f"capability {last + 1}",
    )


@requires_root
def test_a_proc_that_may_not_be_read_is_the_targets_error(start):
    target = start("uts")

    def without_ptrace() -> None:
        os.setresgid(65534, 65534, 65534)  # another's process
        for capability in (CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON):  # each of them does on recent kernels
            drop_capability(capability)
        with pytest.raises(
            nsjoin.NamespacePermissionError, match=f"read /proc of process {target.pid}.*CAP_SYS_PTRACE"
        ):
            nsjoin.Popen(["true"], target=target.pid, env=TARGET, namespaces=())

    in_child(without_ptrace)


@requires_program("strace")
def test_what_is_the_same_is_not_written_and_a_keyring_is_made_only_where_all_is_as_the_target():
    def calls(keywords: str) -> str:
        code = f"import nsjoin, os; nsjoin.run_in(os.getpid(), ['true'], namespaces=(), {keywords})"
        command = ["strace", "-f", "-e", "trace=openat2,keyctl", sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr

    alone, whole = calls("oom_score_adj=nsjoin.TARGET, no_new_privs=True"), calls("like_target=True")
    assert "oom_score_adj" not in alone + whole
    assert "keyctl(" not in alone
    assert "keyctl(KEYCTL_JOIN_SESSION_KEYRING" in whole


def test_unreadable_security_label_is_reported():
    class Unlabelled:
        def __init__(self, number: int) -> None:
            self.number = number

        def read_proc(self, name: str) -> str:
            raise OSError(self.number, f"injected for {name}")

    assert [likeness._own_label(Unlabelled(number)) for number in (errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP)] == [
        None,
        None,
        None,
    ]
    with pytest.raises(OSError, match=r"injected for attr/current"):
        likeness._own_label(Unlabelled(errno.EACCES))


def test_refused_operation_names_the_missing_capability(start):
    def refused() -> None:
        if IS_ROOT:
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)
        here = {"target": os.getpid(), "namespaces": ()}
        with pytest.raises(nsjoin.JoinPermissionError, match="capabilities .*cap_chown: only CAP_SETPCAP"):
            nsjoin.Popen(["true"], capabilities=(), **here)
        with pytest.raises(
            nsjoin.JoinPermissionError, match="capabilities .*only what is permitted can be made inherit"
        ):
            nsjoin.Popen(["true"], capabilities={"net_raw"}, **here)
        with pytest.raises(nsjoin.JoinPermissionError, match="oom_score_adj .*needs CAP_SYS_RESOURCE"):
            nsjoin.Popen(["true"], oom_score_adj=-500, **here)

    in_child(refused)


@requires_root
@pytest.mark.parametrize("locked", [1 << 5, 1 << 6])
def test_refusal_by_securebits_is_explained(locked):
    """SECBIT_KEEP_CAPS_LOCKED and SECBIT_NO_CAP_AMBIENT_RAISE: prctl(2), PR_SET_SECUREBITS."""

    def refused() -> None:
        prctl(28, locked)
        with pytest.raises(nsjoin.JoinPermissionError, match="capabilities .*securebits forbid it"):
            nsjoin.Popen(["true"], target=os.getpid(), namespaces=(), capabilities=["net_admin"])

    in_child(refused)


def test_label_without_a_security_module_is_an_error(target):
    if Path("/sys/kernel/security/lsm").exists():
        pytest.skip("this kernel has security modules that may give labels")
    with pytest.raises(nsjoin.JoinError, match="lsm_label .*no security module here gives labels"):
        nsjoin.run_in(target.pid, ["true"], lsm_label="profile", namespaces=["mnt"] if IS_ROOT else None)


@requires_namespaces_of_pidfds
@requires_root
@requires_program("strace")
def test_the_label_is_written_last_of_all_before_exec(start):
    target = start("mnt", "pid")
    code = f"import nsjoin; nsjoin.run_in({target.pid}, ['true'], lsm_label='some profile')"
    done = subprocess.run(
        ["strace", "-f", "-e", "trace=openat2,write,setns", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    calls = [
        line for line in done.stderr.splitlines() if "setns(" in line or "attr/exec" in line or "some profile" in line
    ]
    assert [re.search(r"(setns|attr/exec|write)", line)[1] for line in calls[:3]] == ["setns", "attr/exec", "write"]
    assert re.search(r'write\(\d+, "some profile", 12\) += -1 EINVAL', calls[2])  # no security module here


@pytest.mark.parametrize(
    ("apparmor", "label", "written"),
    [
        ("Y", "docker-default (enforce)", b"exec docker-default"),
        ("Y", "docker-default", b"exec docker-default"),
        ("Y", "unconfined", b"exec unconfined"),
        ("Y", "/usr/bin/a (b", b"exec /usr/bin/a (b"),
        ("N", "system_u:system_r:container_t:s0:c1,c2", b"system_u:system_r:container_t:s0:c1,c2"),
        (None, "system_u:system_r:container_t:s0", b"system_u:system_r:container_t:s0"),
    ],
)
def test_a_label_is_written_as_its_security_module_takes_it(monkeypatch, tmp_path, apparmor, label, written):
    """What decides that is a file of the kernel's, another one here."""
    enabled = tmp_path / "enabled"
    if apparmor:
        enabled.write_text(f"{apparmor}\n")
    monkeypatch.setattr(likeness, "_APPARMOR", str(enabled))
    assert likeness._label(label) == written


@requires_root
def test_the_targets_label_is_that_of_its_proc_unless_it_is_ours(start, tmp_path):
    """No kernel here gives labels, so they lie in files over those of the kernel, in a mount namespace of ours."""
    target = start("uts")
    for name in ("ours", "theirs"):
        (tmp_path / name).write_text(f"{name} (enforce)\n\0")

    def labelled() -> None:
        nsjoin.unshare("mnt")
        for label, pid in (("ours", os.getpid()), ("theirs", target.pid)):
            subprocess.run(["mount", "--bind", f"{tmp_path}/{label}", f"/proc/{pid}/attr/current"], check=True)
        subprocess.run(
            ["mount", "--bind", f"{tmp_path}/ours", f"/proc/{os.getpid()}/task/{os.getpid()}/attr/current"], check=True
        )
        with Process(target.pid) as process, Process(os.getpid()) as me:
            assert likeness._own_label(process) == "theirs (enforce)"
            assert likeness._own_label(me) is None

    in_child(labelled)


@requires_namespaces_of_pidfds
@requires_root
@pytest.mark.parametrize("keywords", [{"oom_score_adj": 5}, {"lsm_label": "profile"}])
def test_what_is_written_to_proc_needs_one(keywords):
    def without_proc() -> None:
        nsjoin.unshare("mnt")
        with nsjoin.Namespace.current("uts") as target:
            subprocess.run(["umount", "-l", "/proc"], check=True)
            with pytest.raises(nsjoin.JoinError, match=f"{next(iter(keywords))} .*/proc is not mounted here"):
                nsjoin.Popen(["true"], target=target, **keywords)

    in_child(without_proc)


# --- cgroups ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A new cgroup with one name in every hierarchy, removed afterwards."""
    name = f"/nsjoin-like-{os.getpid()}"
    folders = [Path(mount.point + name) for mount in cgroups_._mounts()]
    made = []
    try:
        for folder in folders:
            if folder.exists():  # this hierarchy is mounted twice
                continue
            folder.mkdir()
            made.append(folder)
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (folder / file).exists() and (folder.parent / file).exists():  # the root of version 2 has none
                    (folder / file).write_text((folder.parent / file).read_text())
        yield name
    finally:
        for folder in made:
            folder.rmdir()


def paths(text: str) -> dict[str, str]:
    """By their controllers the cgroups in the hierarchies that are mounted here; a container may have left another."""
    mounts = cgroups_._mounts()
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        names = set(filter(None, controllers.split(",")))
        if any(names <= mount.controllers and bool(names) == bool(mount.controllers) for mount in mounts):
            found[controllers] = path
    return found


@requires_root
@pytest.mark.parametrize("namespaces", [None, ("mnt", "uts")])
def test_into_every_hierarchy_that_has_it(target, cgroup, namespaces):
    with nsjoin.spawn_in(target.pid, ["cat"], stdin=subprocess.PIPE, cgroup=cgroup, namespaces=namespaces) as process:
        assert set(paths(Path(f"/proc/{process.pid}/cgroup").read_text()).values()) == {cgroup}
        process.stdin.close()
    assert set(paths(Path("/proc/self/cgroup").read_text()).values()) != {cgroup}


@requires_root
def test_cgroup_of_the_target_that_was_removed_is_reported(start, cgroup):
    target = start("pid", "mnt")
    for mount in cgroups_._mounts():
        Path(f"{mount.point}{cgroup}/cgroup.procs").write_text(str(target.pid))
    with nsjoin.spawn_in(target.pid, ["cat"], stdin=subprocess.PIPE, cgroup=TARGET) as process:
        assert set(paths(Path(f"/proc/{process.pid}/cgroup").read_text()).values()) == {cgroup}
        process.stdin.close()
    target.end()
    with pytest.raises(nsjoin.JoinError, match=r"cgroup of /no/such: .*no mounted cgroup hierarchy has it"):
        nsjoin.Popen(["true"], target=os.getpid(), cgroup="/no/such")


@pytest.fixture
def bare_name(tmp_path) -> Iterator[str]:
    """A name for a hierarchy of version 1 without controllers, and none of that name afterwards."""
    name = f"nsjoin-{os.getpid()}"
    yield name
    # it goes with its last mount, but not if it has cgroups then; and what has been removed is there for a little while
    for _ in range(100):
        if f":name={name}:" not in Path("/proc/self/cgroup").read_text():
            return
        subprocess.run(["mount", "-t", "cgroup", "-o", f"none,name={name}", "none", tmp_path], check=True)
        for cgroup in [path for path in tmp_path.iterdir() if path.is_dir()]:
            cgroup.rmdir()
        time.sleep(0.05)
        subprocess.run(["umount", tmp_path], check=True)
        time.sleep(0.05)
    pytest.fail(f"the hierarchy {name} stays")


@requires_root
@pytest.mark.parametrize("is_mounted_here", [False, True])
def test_a_hierarchy_that_limits_nothing_is_left_out_where_it_is_mounted_only_inside(bare_name, start, is_mounted_here):
    """As systemd-nspawn has one."""
    mount = f"mount -t cgroup -o none,name={bare_name} none /mnt"
    move = "mkdir /mnt/sub && echo $$ >/mnt/sub/cgroup.procs"
    target = start("mnt", "pid", program=f"{mount} && {move} && echo moved && exec sleep inf")
    assert target.process.stdout.readline() == "moved\n"

    def test() -> None:
        nsjoin.unshare("mnt")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        if is_mounted_here:
            subprocess.run(mount, shell=True, check=True)
        with nsjoin.spawn_in(target.pid, ["cat"], stdin=subprocess.PIPE, cgroup=TARGET) as process:
            cgroups = Path(f"/proc/{process.pid}/cgroup").read_text()
            process.stdin.close()
        assert f":name={bare_name}:{'/sub' if is_mounted_here else '/'}\n" in cgroups

    in_child(test)


def version_2() -> str | None:
    """Where it is mounted."""
    return next((mount.point for mount in cgroups_._mounts() if not mount.controllers), None)


@requires_root
@pytest.mark.skipif(version_2() is None, reason="cgroup v2 is not mounted")
@pytest.mark.parametrize("covered", [False, True])
def test_one_outside_of_our_cgroup_namespace_is_found_where_a_mount_shows_it(start, cgroup, covered):
    """Its path is "/..", which in a directory of ours would be another place: that beside the mount."""
    target, point = start("pid", "uts"), version_2()

    def in_a_cgroup_namespace() -> None:
        Path(f"{point}{cgroup}/cgroup.procs").write_text("0")
        nsjoin.unshare("cgroup", "mnt")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        if covered:  # by one that shows only what is below our cgroup
            for kind in ("tmpfs", "cgroup2"):  # the kernel puts no file system right above itself
                subprocess.run(["mount", "-t", kind, "none", point], check=True)
            with pytest.raises(
                nsjoin.JoinError, match=r"cgroup of /\.\.: .*cgroup2 of .* is not mounted here, or not that"
            ):
                nsjoin.Popen(["true"], target=target.pid, cgroup=TARGET)
            return
        with nsjoin.spawn_in(target.pid, ["cat"], stdin=subprocess.PIPE, cgroup=TARGET) as process:
            assert paths(Path(f"/proc/{process.pid}/cgroup").read_text())[""] == "/.."
            process.stdin.close()

    in_child(in_a_cgroup_namespace)


@requires_root
def test_a_mount_of_the_hierarchy_that_shows_it_is_found(start, cgroup, tmp_path):
    """Beside one that shows another part, and one that lies below something else."""
    target = start("pid", "uts")
    two = [mount for mount in cgroups_._mounts() if not mount.controllers or "freezer" in mount.controllers]

    def with_more_mounts() -> None:
        nsjoin.unshare("mnt")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        for number, mount in enumerate(two):
            everything = tmp_path / str(number)
            everything.mkdir()
            subprocess.run(["mount", "--bind", mount.point, everything], check=True)
            subprocess.run(["mount", "--bind", mount.point + cgroup, mount.point], check=True)
            Path(f"{everything}{cgroup}/cgroup.procs").write_text(str(target.pid))
        with nsjoin.spawn_in(target.pid, ["cat"], stdin=subprocess.PIPE, cgroup=TARGET) as process:
            assert list(paths(Path(f"/proc/{process.pid}/cgroup").read_text()).values()).count(cgroup) == len(two)
            process.stdin.close()
        with nsjoin.spawn_in(target.pid, ["cat"], stdin=subprocess.PIPE, cgroup="/") as process:
            assert set(paths(Path(f"/proc/{process.pid}/cgroup").read_text()).values()) == {"/"}
            process.stdin.close()

    in_child(with_more_mounts)
    target.end()  # else its cgroup could not be removed


@pytest.fixture(params=["openat2", "before it"])
def with_or_without_openat2(request, monkeypatch):
    if request.param == "before it":

        def refuse(*_args):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(calls_, "openat2_on_mount", refuse)


@requires_root
@pytest.mark.parametrize("what", ["the cgroup, with a FIFO", "its file, by a FIFO", "its file, by a plain file"])
@pytest.mark.usefixtures("with_or_without_openat2")
def test_nothing_that_is_mounted_on_a_cgroup_is_opened_or_written_to(start, cgroup, tmp_path, what):
    target = start("pid", "uts")
    for mount in cgroups_._mounts():
        Path(f"{mount.point}{cgroup}/cgroup.procs").write_text(str(target.pid))

    def with_mounts() -> None:
        nsjoin.unshare("mnt")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        false = tmp_path / "cgroup.procs"
        if "FIFO" in what:
            os.mkfifo(false)
        else:
            false.touch()
        for mount in cgroups_._mounts():
            folder = mount.point + cgroup
            pair = [tmp_path, folder] if "the cgroup" in what else [false, f"{folder}/cgroup.procs"]
            subprocess.run(["mount", "--bind", *pair], check=True)
        for asked in (cgroup, TARGET):
            with pytest.raises(nsjoin.JoinError, match="something else is mounted there, on the cgroup") as caught:
                nsjoin.Popen(["true"], target=target.pid, cgroup=asked)
            assert caught.value.errno == errno.EXDEV
        assert false.lstat().st_size == 0

    in_child(with_mounts)
    target.end()  # else its cgroup could not be removed


@requires_root
def test_a_hierarchy_that_lies_below_another_mount_is_not_looked_for_there(cgroup, tmp_path):
    def covered() -> None:
        nsjoin.unshare("mnt")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        for mount in cgroups_._mounts():
            folder = f"{tmp_path}/{os.path.basename(mount.point)}{cgroup}"
            os.makedirs(folder)
            os.mkfifo(f"{folder}/cgroup.procs")
        subprocess.run(["mount", "--bind", tmp_path, "/sys/fs/cgroup"], check=True)
        with pytest.raises(nsjoin.JoinError, match="no mounted cgroup hierarchy has it"):
            nsjoin.Popen(["true"], target=os.getpid(), namespaces=(), cgroup=cgroup)

    in_child(covered)


def test_a_cgroup_of_a_like_name_is_not_below_what_is_mounted():
    mount = next(iter(cgroups_._mounts()))._replace(root="/a/b")
    paths_below = {"/a/b": ".", "/a/b/c": "c", "/a/bc": None, "/a": None, "/a/b/../c": None, "/a/b/": "."}
    assert {path: mount.below(path) for path in paths_below} == paths_below


def test_a_mount_point_may_have_a_space_in_its_name(monkeypatch, tmp_path):
    place = tmp_path / "with a\\ space"
    place.mkdir()
    line = str(place).replace("\\", "\\134").replace(" ", "\\040")
    device = place.stat().st_dev
    text = f"30 20 {os.major(device)}:{os.minor(device)} / {line} rw - cgroup2 none rw\n"
    monkeypatch.setattr(procfs, "read", lambda name: text)
    assert cgroups_._mounts() == [cgroups_._Mount(device, frozenset(), "/", str(place))]


@requires_root
def test_a_file_that_takes_the_place_just_then_is_not_written_to(monkeypatch, cgroup):
    """Before Linux 5.6, between the look and the open."""
    with tempfile.TemporaryFile() as other, contextlib.ExitStack() as stack:
        monkeypatch.setattr(calls_, "openat2_on_mount", lambda *_args: os.dup(other.fileno()))
        with pytest.raises(nsjoin.JoinError, match="something else is mounted there"):
            cgroups_.of_path(cgroup, stack)


@requires_root
def test_a_mount_that_covers_the_hierarchy_just_then_is_seen(monkeypatch, cgroup, tmp_path):
    mounts = [mount._replace(point=str(tmp_path)) for mount in cgroups_._mounts()]
    monkeypatch.setattr(cgroups_, "_mounts", lambda: mounts)
    monkeypatch.setattr(cgroups_._Mount, "_is_seen", lambda _self: True)
    (tmp_path / cgroup[1:]).mkdir()
    with (
        pytest.raises(nsjoin.JoinError, match=f"cgroup of {tmp_path}.*something else"),
        contextlib.ExitStack() as stack,
    ):
        cgroups_.of_path(cgroup, stack)


@requires_root
def test_its_descriptors_do_not_stand_where_stdio_goes(target, cgroup):
    def without_stdio() -> None:
        before = [os.dup(fd) for fd in range(3)]
        os.closerange(0, 3)
        try:
            with contextlib.ExitStack() as stack, Process(target.pid) as process:
                opened = [fd for found in cgroups_.of_path(cgroup, stack) for fd in found[:2]]
                opened += [likeness._open(process, "cwd", abi.O_PATH, stack), likeness._ours("/", stack)]
                assert min(opened) > 2
        finally:
            for fd, copy in enumerate(before):
                os.dup2(copy, fd)
                os.close(copy)

    in_child(without_stdio)


@requires_root
@pytest.mark.skipif(version_2() is None, reason="cgroup v2 is not mounted")
@pytest.mark.parametrize("types", [("uts",), ("uts", "pid")])
def test_a_threaded_cgroup_says_that_it_takes_no_processes(target, types):
    top = Path(version_2(), f"nsjoin-threaded-{os.getpid()}")
    for folder in (top, top / "threaded", top / "other"):
        folder.mkdir()
    try:
        (top / "threaded" / "cgroup.type").write_text("threaded")  # which makes the other one an invalid domain
        with pytest.raises(nsjoin.JoinError, match="threaded, or an invalid domain") as caught:
            nsjoin.Popen(["true"], target=target.pid, namespaces=types, cgroup=f"/{top.name}/other")
        assert caught.value.errno == errno.EOPNOTSUPP
    finally:
        for folder in (top / "threaded", top / "other", top):
            folder.rmdir()


@requires_root
def test_ordinary_user_gets_an_error_that_names_what_a_cgroup_move_needs(cgroup):
    def as_nobody() -> None:
        os.setresuid(65534, 65534, 65534)
        with pytest.raises(nsjoin.JoinPermissionError, match="needs write permission for cgroup.procs"):
            nsjoin.Popen(["true"], target=os.getpid(), namespaces=(), cgroup=cgroup)

    in_child(as_nobody)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENODEV, "has been removed"),
        (errno.EBUSY, "takes no processes itself"),
        (errno.EAGAIN, r"pids\.max"),
        (errno.EPERM, "needs write permission"),
    ],
)
def test_what_the_kernel_means_is_said(number, words):
    failed = job.Failed(job.At.CGROUP, 0, number)
    with nsjoin.Target.from_pid(os.getpid()) as me, target_.OpenTarget(target_.check_target(me)) as opened:
        assert re.search(words, str(failures.explain(failed, opened, None, None, None)))


def hierarchy(kind: str) -> Path | None:
    """Where a hierarchy that freezes is mounted."""
    for mount in cgroups_._mounts():
        if "freezer" in mount.controllers if kind == "v1" else not mount.controllers:
            return Path(mount.point)
    return None


class Freezer:
    """The freezer of one version: ``folder`` is a cgroup of ours in it, and ``below`` one below that."""

    FILES: ClassVar = {"v1": ("freezer.state", "FROZEN", "THAWED"), "v2": ("cgroup.freeze", "1", "0")}

    def __init__(self, kind: str, name: str) -> None:
        place = hierarchy(kind)
        if place is None:
            pytest.skip(f"no cgroup {kind} hierarchy that freezes is mounted here")
        self.kind = kind
        self.folder = place / name[1:]
        self.below = self.folder / "below"
        self.below.mkdir()
        self.names = (name, f"{name}/below")

    def freeze(self) -> None:
        file, frozen, _ = self.FILES[self.kind]
        (self.folder / file).write_text(frozen)

    def thaw(self) -> None:
        file, _, thawed = self.FILES[self.kind]
        (self.folder / file).write_text(thawed)

    def processes(self) -> str:
        return (self.folder / "cgroup.procs").read_text() + (self.below / "cgroup.procs").read_text()


@pytest.fixture(params=["v1", "v2"])
def freezer(request, cgroup) -> Iterator[Freezer]:
    one = Freezer(request.param, cgroup)
    yield one
    one.thaw()
    for pid in list(children.unreaped):  # of version 1, what is frozen cannot even be killed before
        wait_until_ended(pid)
    children.reap_late()
    assert not children.unreaped
    assert one.processes() == ""
    one.below.rmdir()


@pytest.fixture
def frozen_just_then(freezer, monkeypatch) -> Freezer:
    """It is frozen when it has been looked at, and before anything moves there."""
    way = start_.way_to

    def freeze_and_decide(*arguments: Any) -> Any:
        freezer.freeze()
        return way(*arguments)

    monkeypatch.setattr(start_, "way_to", freeze_and_decide)
    return freezer


FROZEN = r"cgroup of /\S*nsjoin-like-\S*: .*: the cgroup is frozen.*thaw it.*cgroup="
RUNS = [nsjoin.run_in, lambda *given, **more: asyncio.run(nsjoin.aio.run_in(*given, **more))]
WITH_AND_WITHOUT_PID = pytest.mark.parametrize("types", [("pid", "uts"), ("uts",)])


@requires_root
@WITH_AND_WITHOUT_PID
@pytest.mark.parametrize("level", [0, 1])
def test_a_frozen_cgroup_is_refused_before_anything_moves_there(target, freezer, types, level):
    freezer.freeze()
    with pytest.raises(nsjoin.JoinError, match=FROZEN) as caught:
        nsjoin.spawn_in(target.pid, ["true"], namespaces=types, cgroup=freezer.names[level])
    assert (caught.value.step, caught.value.errno) == ("cgroup", errno.EBUSY)
    assert freezer.processes() == ""


@requires_root
@pytest.mark.parametrize("level", [0, 1])
def test_cgroup_of_a_paused_container_is_refused(start, freezer, level):
    paused = start("pid", "mnt", "uts")
    folder = (freezer.folder, freezer.below)[level]
    (folder / "cgroup.procs").write_text(str(paused.pid))
    freezer.freeze()
    try:
        for keywords in ({"like_target": True}, {"cgroup": TARGET}):
            with pytest.raises(nsjoin.JoinError, match=FROZEN):
                nsjoin.run_in(paused.pid, ["true"], **keywords)
        with pytest.raises(nsjoin.JoinError, match=FROZEN):
            asyncio.run(nsjoin.aio.run_in(paused.pid, ["true"], like_target=True))
        assert nsjoin.run_in(paused.pid, ["true"]).returncode == 0  # that joins namespaces only
        assert folder.joinpath("cgroup.procs").read_text() == f"{paused.pid}\n"
    finally:
        freezer.thaw()
        paused.end()


@requires_root
def test_an_order_to_freeze_that_is_not_carried_out_yet_counts(freezer, monkeypatch):
    """As long as one of its processes sleeps in the kernel, cgroup.events says "frozen 0"."""
    if freezer.kind == "v1":
        pytest.skip("freezer.state says FREEZING then")
    read = cgroups_._read_in
    not_yet = {"cgroup.events": "populated 1\nfrozen 0"}
    monkeypatch.setattr(cgroups_, "_read_in", lambda fd, name: not_yet[name] if name in not_yet else read(fd, name))
    freezer.freeze()
    for name in freezer.names:
        with pytest.raises(nsjoin.JoinError, match=FROZEN):
            nsjoin.spawn_in(os.getpid(), ["true"], namespaces=(), cgroup=name)


@requires_root
@WITH_AND_WITHOUT_PID
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("run", RUNS)
def test_cgroup_frozen_during_the_move_is_a_timeout_and_leaves_nothing(target, frozen_just_then, types, level, run):
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        run(target.pid, ["true"], namespaces=types, cgroup=frozen_just_then.names[level], timeout=0.3)
    assert isinstance(caught.value.__cause__, nsjoin.JoinError)
    assert re.search(FROZEN, str(caught.value.__cause__))
    assert not children.unreaped  # and it is frozen still
    assert frozen_just_then.processes() == ""


@requires_root
@pytest.mark.parametrize(("run", "kill_group"), list(zip(RUNS, [True, False])))
def test_program_frozen_later_does_not_block_the_caller(start, freezer, run, kill_group):
    target = start("uts")
    file, frozen, _ = freezer.FILES[freezer.kind]
    # what it reads it gets once its start is over
    freeze_oneself = ["sh", "-c", f"read word; echo {frozen} >{freezer.folder / file}; while :; do :; done"]
    keywords = {"cgroup": freezer.names[1], "kill_group": kill_group, "input": b"go\n"}
    for timeout in (1, 5, 25):  # the first that lets it get so far on this machine
        freezer.thaw()
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            run(target.pid, freeze_oneself, timeout=timeout, **keywords)
        assert caught.value.timeout == timeout
        if caught.value.__cause__ is not None:
            break
    assert re.search(FROZEN, str(caught.value.__cause__))
    assert freezer.processes() == ""


@requires_root
@WITH_AND_WITHOUT_PID
@pytest.mark.parametrize("freezer", ["v1"], indirect=True)
def test_without_the_way_home_the_joiner_stays_there(target, frozen_just_then, types, monkeypatch):
    monkeypatch.setattr(cgroups_, "_open_home", lambda mount, stack: -1)
    while not frozen_just_then.processes():  # on a loaded machine it may not have come that far
        with pytest.raises(subprocess.TimeoutExpired):
            nsjoin.run_in(target.pid, ["true"], namespaces=types, cgroup=frozen_just_then.names[0], timeout=0.3)
        monkeypatch.setattr(cgroups_, "_frozen", lambda cgroup: None)
    assert children.unreaped


@requires_root
@WITH_AND_WITHOUT_PID
def test_without_a_look_before_it_hangs(target, freezer, types, monkeypatch):
    monkeypatch.setattr(cgroups_, "_frozen", lambda cgroup: None)
    freezer.freeze()
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        nsjoin.run_in(target.pid, ["true"], namespaces=types, cgroup=freezer.names[0], timeout=0.3)
    assert caught.value.__cause__ is None


@requires_root
@requires_program("strace")
@pytest.mark.skipif(version_2() is None, reason="cgroup v2 is not mounted")
@pytest.mark.parametrize("refused", [None, "EACCES", "ENOSYS"])
def test_born_in_version_2_where_pid_is_joined(start, cgroup, refused):
    """Also where a clone into it is refused: then it moves."""
    target = start("pid", "mnt")
    code = (
        "import nsjoin, subprocess\n"
        f"p = nsjoin.spawn_in({target.pid}, ['cat'], stdin=-1, cgroup={cgroup!r})\n"
        "print(open(f'/proc/{p.pid}/cgroup').read()); p.stdin.close(); p.wait()"
    )
    inject = ["-e", f"inject=clone3:error={refused}"] if refused else []
    done = subprocess.run(
        ["strace", "-f", "-o", "/dev/stderr", "-e", "trace=clone3", *inject, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "CLONE_INTO_CGROUP" in done.stderr
    assert refused or re.search(r"clone3\(.*CLONE_INTO_CGROUP.* = \d", done.stderr)
    assert set(paths(done.stdout.strip()).values()) == {cgroup}


# --- the rest ---------------------------------------------------------------------------------------------------------


@requires_root
def test_a_new_session_keyring_where_all_is_as_the_target(target):
    libc = "import ctypes; print(ctypes.CDLL(None).syscall({}, 0, -3, 0))"
    number = {"x86_64": 250, "aarch64": 219}[os.uname().machine]

    def serial(**keywords: object) -> int:
        return int(output(target.pid, sys.executable, "-c", libc.format(number), **keywords))

    def with_keyring_of_its_own() -> None:
        import ctypes

        ours = ctypes.CDLL(None).syscall(number, 1, None)  # KEYCTL_JOIN_SESSION_KEYRING
        if ours < 0:
            return  # no keys in this kernel
        assert serial() == ours
        assert serial(like_target=True) != ours

    in_child(with_keyring_of_its_own)


@pytest.mark.parametrize("close_fds", [True, False])
def test_no_descriptor_of_ours_is_left(begin, request, close_fds):
    target = begin("user", "mnt", "pid", script="cd /usr; echo 321 >/proc/self/oom_score_adj")
    keywords = {"cgroup": request.getfixturevalue("cgroup")} if IS_ROOT else {}
    command = ["ls", "/proc/self/fd"]
    plain = subprocess.run(command, stdout=subprocess.PIPE, text=True, close_fds=close_fds, check=True).stdout
    assert output(target.pid, *command, like_target=True, close_fds=close_fds, **keywords) == plain


def test_aio_takes_the_same_keywords(begin):
    target = begin("user", "mnt", "pid", script="cd /usr/lib; export WORD=theirs")

    async def main() -> bytes:
        done = await nsjoin.aio.run_in(
            target.pid, ["sh", "-c", "pwd; echo $WORD"], stdout=subprocess.PIPE, like_target=True, extra_groups=TARGET
        )
        return done.stdout

    assert asyncio.run(main()) == b"/usr/lib\ntheirs\n"


def test_a_target_that_has_ended_is_gone(start):
    target = start("user", "pid")
    with nsjoin.Target.from_pid(target.pid) as process:
        os.kill(target.pid, signal.SIGKILL)
        target.process.wait()
        with pytest.raises(nsjoin.TargetGoneError):
            nsjoin.Popen(["true"], target=process, like_target=True)


def test_target_is_shown_by_its_name():
    assert repr(TARGET) == "nsjoin.TARGET"
