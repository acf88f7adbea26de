"""user= and group= by name: as the target's /etc/passwd and /etc/group have them."""

from __future__ import annotations

import errno
import os

import pytest
from conftest import requires_root

import nsjoin
from nsjoin._kernel import abi, calls
from nsjoin._target import accounts

SETUP = """
mount -t tmpfs none /etc
echo 'root:x:0:0::/:/bin/sh
dweller:x:1234:4321::/:/bin/sh' > /etc/passwd
echo 'root:x:0:
dwellers:x:4321:
more:x:4322:' > /etc/group
echo inside; exec sleep infinity
"""


@pytest.fixture
def dwelling(start):
    running = start("mnt", "user" if os.geteuid() else "pid", program=SETUP)
    assert running.process.stdout.readline() == "inside\n"
    return running


def ids(pid, **keywords):
    result = nsjoin.run_in(pid, ["/usr/bin/id"], capture_output=True, text=True, check=True, **keywords)
    return result.stdout.strip()


@requires_root
def test_names_are_the_targets(dwelling):
    assert ids(dwelling.pid, user="dweller", group="dwellers", extra_groups=["more", 7]).split() == [
        "uid=1234(dweller)",
        "gid=4321(dwellers)",
        "groups=4321(dwellers),7,4322(more)",
    ]


@requires_root
def test_numbers_stay_numbers(dwelling):
    assert ids(dwelling.pid, user=1234).startswith("uid=1234(dweller) gid=0(root)")


@requires_root
def test_a_missing_name_is_a_key_error(dwelling):
    with pytest.raises(KeyError, match=r"user not found in /etc/passwd of process \d+: 'daemon'"):
        ids(dwelling.pid, user="daemon")  # we have one, the target has not
    with pytest.raises(KeyError, match="group not found in /etc/group"):
        ids(dwelling.pid, group="daemon")


@requires_root
def test_without_the_mount_namespace_they_are_ours(dwelling):
    assert ids(dwelling.pid, namespaces=("pid",), user="daemon").startswith("uid=1(daemon)")
    with pytest.raises(KeyError):
        ids(dwelling.pid, namespaces=("pid",), user="dweller")


@requires_root
def test_a_namespace_alone_has_no_names(dwelling):
    with nsjoin.Namespace.from_pid(dwelling.pid, "mnt") as mnt, pytest.raises(ValueError, match="give its number"):
        nsjoin.run_in(mnt, ["true"], user="dweller")


@pytest.fixture(params=["openat2", "by steps"])
def either_way(request, monkeypatch):
    if request.param == "by steps":

        def refuse(*_args):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(calls, "openat2_in_root", refuse)


@pytest.fixture
def root(tmp_path):
    """A root directory with links that lead out of it, if they are followed from ours."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "real").write_text("inside")
    (tmp_path / "etc" / "passwd").symlink_to("/real")
    (tmp_path / "etc" / "up").symlink_to("../../../../real")
    (tmp_path / "etc" / "host").symlink_to("/etc/hostname")
    (tmp_path / "etc" / "loop").symlink_to("loop")
    (tmp_path / "etc" / "self").symlink_to("/proc/self/environ")
    os.mkfifo(tmp_path / "etc" / "fifo")
    fd = os.open(tmp_path, abi.O_PATH)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("path", ["etc/passwd", "etc/up", "/etc/../etc//./passwd", "../../real"])
def test_links_stay_inside_the_root(root, path, either_way):
    fd = accounts.open_in_root(root, path)
    try:
        assert os.read(fd, 100) == b"inside"
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("etc/host", errno.ENOENT),
        ("etc/self", errno.ENOENT),
        ("etc/loop", errno.ELOOP),
        ("etc/nope", errno.ENOENT),
        ("etc/fifo", errno.EINVAL),
        ("etc", errno.EINVAL),
        ("real/x", errno.ENOTDIR),
    ],
)
def test_what_is_not_a_file_inside_is_refused(root, path, number, either_way):
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        accounts.open_in_root(root, path)
    assert caught.value.errno == number
