"""``Popen(..., unshare=...)``: some namespaces are joined, others are new ones of the program's own."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest
from changed import in_child
from conftest import IS_ROOT, requires_root

import nsjoin

LINKS = "for t in mnt uts ipc net pid user cgroup time; do echo $t $(readlink /proc/self/ns/$t); done"


def links(pid: int | str = "self") -> dict[str, str]:
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in ("mnt", "uts", "ipc", "net", "user", "cgroup")}


def output(target: int, script: str, **keywords: object) -> str:
    result = nsjoin.run_in(target, ["sh", "-c", script], capture_output=True, text=True, check=True, **keywords)
    return result.stdout


@pytest.mark.parametrize("new", [("mnt",), ("uts", "ipc"), ("net", "cgroup"), ("mnt", "uts", "ipc", "net", "cgroup")])
def test_the_named_types_are_new_and_the_others_the_targets(target, new):
    found = dict(line.split() for line in output(target.pid, LINKS, unshare=new).splitlines())
    theirs, ours = links(target.pid), links()
    for name, link in theirs.items():
        assert (found[name] != link) == (name in new), name
        assert found[name] != ours[name] or link == ours[name], name


@pytest.mark.parametrize("new", [("pid",), ("pid", "time"), ("time",)])
def test_what_is_for_children_only_the_program_is_in(target, new):
    process = nsjoin.spawn_in(
        target.pid, ["sh", "-c", "echo $$; read _; exit 7"], unshare=new, stdin=-1, stdout=-1, text=True
    )
    with process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        assert (number == 1) == ("pid" in new)
        for name in ("pid", "time"):
            link = os.readlink(f"/proc/{process.pid}/ns/{name}")
            assert (link not in (os.readlink(f"/proc/{pid}/ns/{name}") for pid in (target.pid, "self"))) == (
                name in new
            )
        process.communicate("go\n")
    assert process.returncode == 7


def test_pid_is_either_joined_or_new(target):
    with pytest.raises(ValueError, match="only once"):
        nsjoin.spawn_in(target.pid, ["true"], unshare=("pid",), namespaces=("pid", "mnt"))


@requires_root
def test_what_is_mounted_there_stays_there(tmp_path):
    """Also where the caller's mounts are shared, as systemd makes them."""

    def mounts() -> None:
        nsjoin.run_in(os.getpid(), ["true"], namespaces=())
        subprocess.run(["mount", "--make-rshared", "/"], check=True)
        script = f"mount -t tmpfs none {tmp_path} && grep -c {tmp_path} /proc/self/mountinfo"
        assert output(os.getpid(), script, unshare=("mnt",), namespaces=()) == "1\n"
        with open("/proc/self/mountinfo") as file:
            assert str(tmp_path) not in file.read()

    def in_a_copy() -> None:
        import ctypes

        assert ctypes.CDLL(None).unshare(0x20000) == 0
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        mounts()

    in_child(in_a_copy)


def test_a_new_user_namespace_is_made_by_create(target):
    with pytest.raises(ValueError, match=r"create\('user'"):
        nsjoin.spawn_in(target.pid, ["true"], unshare=("user",))


@pytest.mark.parametrize(("new", "error"), [("net", TypeError), (("nett",), ValueError), ((1,), TypeError)])
def test_wrong_type_is_an_error_before_anything_starts(target, new, error):
    with pytest.raises(error):
        nsjoin.spawn_in(target.pid, ["true"], unshare=new)


def test_without_privileges_the_error_names_the_reason():
    def refused() -> None:
        if IS_ROOT:
            os.setgroups([])
            os.setresuid(65534, 65534, 65534)
        with pytest.raises(
            nsjoin.JoinPermissionError, match="unshare of process .*needs CAP_SYS_ADMIN in the user namespace"
        ):
            nsjoin.run_in(os.getpid(), ["true"], unshare=("net",), namespaces=())

    in_child(refused)


@requires_root
def test_also_where_the_target_is_namespaces(target):
    with nsjoin.Namespace.from_pid(target.pid, "pid") as pid, nsjoin.Namespace.from_pid(target.pid, "uts") as uts:
        result = nsjoin.run_in([pid, uts], ["sh", "-c", "echo $$; hostname"], unshare=("pid",), capture_output=True)
        assert result.stdout.split()[0] == b"1"
        assert os.stat(f"/proc/{target.pid}/ns/uts").st_ino == uts.id.ino


@requires_root
def test_a_root_that_is_no_mount_point_is_the_reason_that_its_mounts_cannot_be_private(target, tmp_path):
    with pytest.raises(nsjoin.JoinError, match=r"mount\(mnt\) of .*is no mount point") as caught:
        nsjoin.Popen(["true"], target=target.pid, namespaces=["uts"], root=tmp_path, unshare=["mnt"])
    assert (caught.value.errno, caught.value.step) == (errno.EINVAL, "mount")
