"""``enter`` refuses beforehand where the kernel would not let this thread come back."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import os, subprocess, nsjoin

unshare = ["unshare", "--net", "sh", "-c", "echo ready; read end"]
own = os.readlink("/proc/thread-self/ns/net")
with subprocess.Popen(unshare, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as target:
    target.stdout.readline()
    nsjoin.Namespace.current("net").close()  # opens what is kept for the process's lifetime
    descriptors = os.listdir("/proc/self/fd")
    with nsjoin.Namespace.from_pid(target.pid, "net") as net:
        for enter in (nsjoin.enter(target, "net"), nsjoin.enter(net)):
            try:
                with enter:
                    print("entered")
            except nsjoin.JoinPermissionError as refused:
                print(refused)
    assert os.readlink("/proc/thread-self/ns/net") == own
    assert os.listdir("/proc/self/fd") == descriptors
"""


def run(*options: str) -> str:
    command = ["unshare", "--map-root-user", *options, sys.executable, "-W", "error", "-c", PROGRAM]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=60).stdout


def test_a_namespace_of_an_ancestor_user_namespace_is_not_left():
    said = run().splitlines()
    assert len(said) == 2
    for line in said:
        assert line.startswith("[Errno 1] enter(net): Operation not permitted: there would be no way back")


def test_a_namespace_of_our_own_user_namespace_is_left():
    assert run("--net") == "entered\nentered\n"
