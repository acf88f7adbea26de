"""Debug tools of the host in the network of a container that has none of them: ss, ip, and in the same way tcpdump.

``namespaces=["net"]`` joins the network alone, so programs, files and users are still the host's. Runs as root and as
an ordinary user, who needs the user namespace that has the network as well.
"""

from __future__ import annotations

import os
import socket
import subprocess

from _target import new_target, require_program

import nsjoin

require_program("ss", "iproute2")

NETWORK = ["net"] if os.geteuid() == 0 else ["user", "net"]

# The target's programs are gone, as in an image that has nothing but one program.
hidden = "mount -t tmpfs tmpfs /usr/sbin && mount -t tmpfs tmpfs /usr/bin"
with new_target("--net", "--mount", setup=f"ip link set lo up && {hidden}") as target:
    with nsjoin.call_in(target, socket.create_server, ("127.0.0.1", 8080), namespaces=NETWORK):
        listening = nsjoin.run_in(
            target, ["ss", "--listening", "--tcp", "--numeric"], namespaces=NETWORK, stdout=subprocess.PIPE, text=True
        )
        links = nsjoin.run_in(
            target, ["ip", "-brief", "link"], namespaces=NETWORK, stdout=subprocess.PIPE, text=True, check=True
        )
        # nsjoin.spawn_in(target, ["tcpdump", "-i", "any", "-w", "here.pcap"], namespaces=NETWORK) writes a file of ours
    print(f"in the network of process {target}, where no ss is:\n{listening.stdout}{links.stdout}", end="")

    # With all namespaces, ss is looked for where the target looks.
    found = True
    try:
        nsjoin.run_in(target, ["ss"])
    except FileNotFoundError:
        found = False

assert "127.0.0.1:8080" in listening.stdout
assert [line.split()[0] for line in links.stdout.splitlines()] == ["lo"]
assert not found
