"""With pyroute2, which manages the namespace that its netlink socket was made in, and keeps namespaces by name."""

from __future__ import annotations

import os
import subprocess
import warnings

import pytest
from child import in_child, own_run
from conftest import requires_program, requires_root

import nsjoin

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own, on import
    pyroute2 = pytest.importorskip("pyroute2")


@requires_root
@requires_program("ip")
def test_links_and_addresses_made_within_enter_are_the_targets(start):
    running = start("net")
    with nsjoin.enter(running.pid, "net"):
        ip = pyroute2.IPRoute()
    with ip:
        assert [link.get_attr("IFLA_IFNAME") for link in ip.get_links()] == ["lo"]
        ip.link("add", ifname="inside0", kind="veth", peer="inside1")
        (index,) = ip.link_lookup(ifname="inside0")
        ip.addr("add", index=index, address="192.0.2.1", prefixlen=24)
        ip.link("set", index=index, state="up")
    command = ["nsenter", f"--net=/proc/{running.pid}/ns/net", "ip", "-brief", "address", "show", "inside0"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.split()[0].startswith("inside0")
    assert "192.0.2.1/24" in shown
    seen = nsjoin.run_in(running.pid, ["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
    assert "inside1" in seen
    outside = subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
    assert "inside0" not in outside


# --- names ------------------------------------------------------------------------------------------------------------


def pyroute2_finds_what_is_pinned() -> None:
    with nsjoin.create("net") as made:
        made.pin("/run/netns/blue")
        assert pyroute2.netns.listnetns() == ["blue"]
        pyroute2.netns.pushns("blue")
        try:
            with nsjoin.Namespace.current("net") as current:
                assert current == made
        finally:
            pyroute2.netns.popns()
        with pyroute2.NetNS("blue", flags=0) as inside:
            inside.link("add", ifname="inside0", kind="veth", peer="inside1")
        links = nsjoin.run_in(made, ["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
        assert "inside0" in links
        with nsjoin.spawn_in(made, ["cat"], stdin=subprocess.PIPE) as running:
            assert pyroute2.netns.pid_to_ns(running.pid) == "blue"
            assert pyroute2.netns.ns_pids() == {"blue": [running.pid]}
    pyroute2.netns.remove("blue")
    assert os.listdir("/run/netns") == []
    with pytest.raises(nsjoin.NamespaceNotFoundError):
        nsjoin.Namespace.from_netns("blue")


@requires_root
@requires_program("ip")
def test_pyroute2_lists_enters_manages_and_removes_what_is_pinned():
    in_child(pyroute2_finds_what_is_pinned, own_run)


def find_what_pyroute2_creates() -> None:
    pyroute2.netns.create("red")
    with nsjoin.Namespace.from_netns("red") as red, nsjoin.Namespace.current("net") as own:
        assert red != own
        inode = os.stat("/var/run/netns/red").st_ino
        done = nsjoin.run_in(red, ["readlink", "/proc/self/ns/net"], capture_output=True, text=True, check=True)
        assert done.stdout == f"net:[{inode}]\n"
        with nsjoin.enter("/var/run/netns/red"), nsjoin.Namespace.current("net") as current:
            assert current == red
        with nsjoin.spawn_in(red, ["cat"], stdin=subprocess.PIPE) as running:
            pyroute2.netns.attach("green", running.pid)
        with nsjoin.Namespace.from_netns("green") as green:
            assert green == red
        red.pin("/var/run/netns/crimson")  # pyroute2's own way to write it
    assert sorted(pyroute2.netns.listnetns()) == ["crimson", "green", "red"]
    with open("/proc/thread-self/mountinfo") as file:
        assert file.read().count(" /netns /run/netns ") == 1
    for name in ("crimson", "green", "red"):
        nsjoin.unpin(f"/run/netns/{name}")
    assert pyroute2.netns.listnetns() == []


@requires_root
def test_what_pyroute2_creates_and_attaches_is_joined_pinned_again_and_unpinned():
    in_child(find_what_pyroute2_creates, own_run)


def fail_beside_pyroute2() -> None:
    pyroute2.netns.create("red")
    with nsjoin.create("net") as made:
        with pytest.raises(FileExistsError):
            made.pin("/run/netns/red")
        made.pin("/run/netns/blue")
    with pytest.raises(FileExistsError):
        pyroute2.netns.attach("blue", os.getpid())
    for name in ("blue", "red"):
        with nsjoin.Namespace.from_netns(name) as found, nsjoin.Namespace.current("net") as own:
            assert found != own
        pyroute2.netns.remove(name)


@requires_root
def test_neither_takes_a_name_that_the_other_has():
    in_child(fail_beside_pyroute2, own_run)
