"""``root=``, ``cwd=`` as an open descriptor, and ``preserve_credentials=``."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
from conftest import requires_root

import nsjoin


def output(target, args, **keywords):
    return nsjoin.run_in(target, args, stdout=subprocess.PIPE, text=True, check=True, **keywords).stdout


@pytest.fixture
def directory(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_an_open_directory_is_the_working_directory(start, directory, tmp_path):
    assert output(start("uts").pid, ["/bin/pwd"], namespaces=["user"] * bool(os.getuid()), cwd=directory) == (
        f"{tmp_path}\n"
    )


def test_a_working_directory_that_the_target_cannot_reach_is_refused(start, directory):
    with pytest.raises(nsjoin.JoinError, match="a way out of it") as caught:
        nsjoin.spawn_in(start("mnt").pid, ["true"], cwd=directory)
    assert caught.value.errno == errno.EXDEV


@requires_root
@pytest.mark.parametrize("kind", ["path", "descriptor"])
def test_the_root_is_a_directory_of_the_callers(start, directory, tmp_path, kind):
    target = start("mnt")
    with pytest.raises(FileNotFoundError) as caught:  # nothing in there can be run
        nsjoin.spawn_in(target.pid, ["/bin/sh"], root=tmp_path if kind == "path" else directory)
    assert caught.value.filename == "/bin/sh"
    with pytest.raises(PermissionError):  # it is a directory there, and only there
        (tmp_path / "bin" / "sh").mkdir(parents=True)
        nsjoin.spawn_in(target.pid, ["/bin/sh"], root=tmp_path if kind == "path" else directory)


@requires_root
def test_the_targets_root_without_its_mount_namespace(start):
    target = start("mnt", program="mount -t tmpfs none /mnt && mkdir /mnt/x && exec sleep infinity")
    while not os.path.exists(f"/proc/{target.pid}/root/mnt/x"):
        os.sched_yield()
    assert output(target.pid, ["ls", "/mnt"], namespaces=[], root=nsjoin.TARGET) == "x\n"
    with pytest.raises(FileNotFoundError, match="no-such"):
        nsjoin.spawn_in(target.pid, ["true"], namespaces=[], root=nsjoin.TARGET, cwd="/mnt/no-such")


def test_the_root_is_named_as_a_path_a_descriptor_or_target():
    with pytest.raises(TypeError, match="root is a path"):
        nsjoin.spawn_in(os.getpid(), ["true"], root=True)
    with pytest.raises(NotADirectoryError):
        nsjoin.spawn_in(os.getpid(), ["true"], root=sys.executable)


@requires_root
def test_credentials_are_preserved_in_another_user_namespace():
    command = ["unshare", "--user", "sh", "-c", "echo ready; exec sleep infinity"]  # where no id is mapped
    with subprocess.Popen(command, stdout=subprocess.PIPE) as target:
        assert target.stdout.readline() == b"ready\n"
        status = output(target.pid, ["cat", "/proc/self/status"], preserve_credentials=True)
        target.kill()
    assert "Uid:\t65534\t65534\t65534\t65534\n" in status
    assert "CapEff:\t0000000000000000\n" in status


@requires_root
def test_groups_are_preserved_in_another_user_namespace(start):
    target = start("user")
    for preserve, groups in ((False, "0\n"), (True, "0 65534\n")):
        command = (
            "import nsjoin, sys; nsjoin.run_in(int(sys.argv[1]), ['id', '-G'], preserve_credentials=%s, check=True)"
        )
        done = subprocess.run(
            ["setpriv", "--groups", "0,7", sys.executable, "-c", command % preserve, str(target.pid)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        assert done.stdout == groups
