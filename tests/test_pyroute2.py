"""With pyroute2, which manages the namespace that its netlink socket was made in."""

from __future__ import annotations

import subprocess
import warnings

import pytest
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
