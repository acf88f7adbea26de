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
    root = tmp_path if kind == "path" else directory
    with pytest.raises(FileNotFoundError):
        nsjoin.spawn_in(start("mnt").pid, ["/bin/sh"], root=root)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sh").symlink_to("/proc/self/exe")
    with pytest.raises(FileNotFoundError, match="sh"):  # the link is there, but not what it leads to
        nsjoin.spawn_in(start("mnt").pid, ["/bin/sh"], root=root)
    assert output(start("mnt").pid, ["stat", "-c", "%i", "/"], root="/") == f"{os.stat('/').st_ino}\n"


@requires_root
def test_the_targets_root_without_its_mount_namespace(start):
    target = start("mnt", program="mount -t tmpfs none /mnt && mkdir /mnt/x && exec chroot / sleep infinity")
    with pytest.raises(FileNotFoundError):
        nsjoin.spawn_in(target.pid, ["true"], namespaces=[], root=f"/proc/{target.pid}/root/mnt/x")
    assert output(target.pid, ["ls", "/mnt"], namespaces=[], root=nsjoin.TARGET, cwd="/") == "x\n"


def test_the_root_is_named_as_a_path_a_descriptor_or_target():
    with pytest.raises(TypeError, match="root is a path"):
        nsjoin.spawn_in(os.getpid(), ["true"], root=True)
    with pytest.raises(NotADirectoryError):
        nsjoin.spawn_in(os.getpid(), ["true"], root=sys.executable)


@requires_root
def test_credentials_are_preserved_in_another_user_namespace(start):
    target = start("user")
    assert output(target.pid, ["id", "-u"]) == "0\n"
    done = output(target.pid, ["id", "-u"], preserve_credentials=True, user=None)
    assert done == "0\n"  # root is mapped to root there
    empty = subprocess.Popen(["unshare", "--user", "sh", "-c", "echo ready; exec sleep infinity"], stdout=-1)
    try:
        assert empty.stdout.readline() == b"ready\n"
        groups = "Groups:\t" + " ".join(map(str, os.getgroups()))
        status = output(empty.pid, ["cat", "/proc/self/status"], preserve_credentials=True)
        assert "Uid:\t65534\t65534" in status
        assert groups.split()[0] in status
    finally:
        empty.kill()
        empty.communicate()
