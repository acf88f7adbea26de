"""``pin`` and ``unpin``, with ``ip netns`` in both directions; in a mount namespace of the test's own."""

from __future__ import annotations

import os
import subprocess

import pytest
from changed import CAP_SYS_ADMIN, drop_capability
from child import in_child
from conftest import requires_program, requires_root

import nsjoin
from nsjoin import _shim


def own_run() -> None:
    nsjoin.unshare("mnt")
    _shim.mount("none", "/", 1 << 18 | 1 << 14)  # MS_PRIVATE | MS_REC
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)


def mounts() -> str:
    with open("/proc/thread-self/mountinfo") as file:
        return file.read()


def both_directions() -> None:
    with nsjoin.create("net") as made:
        made.pin("/run/netns/blue")
        assert subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout.split() == ["blue"]
        with nsjoin.Namespace.from_netns("blue") as found:
            assert found == made
        with pytest.raises(FileExistsError):
            made.pin("/run/netns/blue")
    subprocess.run(["ip", "netns", "del", "blue"], check=True)
    subprocess.run(["ip", "netns", "add", "red"], check=True)
    nsjoin.unpin("/run/netns/red")
    assert os.listdir("/run/netns") == []


@requires_root
@requires_program("ip")
def test_ip_netns_sees_what_is_pinned_and_the_other_way_round():
    in_child(both_directions, own_run)


def fail_half_way() -> None:
    before = mounts()
    with nsjoin.create("net") as made:
        drop_capability(CAP_SYS_ADMIN)
        for path in ("/run/netns/blue", "/run/blue"):
            with pytest.raises(PermissionError):
                made.pin(path)
    assert os.listdir("/run") == []
    assert mounts() == before


@requires_root
def test_nothing_is_left_where_the_mount_fails():
    # the dropped capability outlives the function, so a child of the child drops it
    in_child(lambda: nsjoin.call_in(os.getpid(), fail_half_way), own_run)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_a_name_is_that_of_a_file(name):
    with pytest.raises(ValueError, match="no name"):
        nsjoin.Namespace.from_netns(name)


def test_what_is_no_namespace_is_left_alone(tmp_path):
    path = tmp_path / "plain"
    path.touch()
    with pytest.raises(nsjoin.NotANamespaceError):
        nsjoin.unpin(path)
    assert path.exists()
