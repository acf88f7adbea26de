"""The types that checkers must reveal for the public calls. Checked by mypy --strict and pyright, never run."""

from __future__ import annotations

import subprocess
from typing import Any

from typing_extensions import assert_type

import nsjoin
from nsjoin._target.target import TargetLike

pid = 1

assert_type(nsjoin.spawn_in(pid, ["a"]), nsjoin.Popen[bytes])
assert_type(nsjoin.spawn_in(pid, ["a"], stdout=subprocess.PIPE, namespaces=("net",), fork=False), nsjoin.Popen[bytes])
assert_type(nsjoin.spawn_in(pid, "a", shell=True, text=True), nsjoin.Popen[str])
assert_type(nsjoin.spawn_in(pid, ["a"], encoding="utf-8"), nsjoin.Popen[str])
assert_type(nsjoin.spawn_in(pid, ["a"], errors="replace"), nsjoin.Popen[str])
assert_type(nsjoin.spawn_in(pid, ["a"], universal_newlines=True), nsjoin.Popen[str])
assert_type(nsjoin.Popen(["a"], target=pid), nsjoin.Popen[bytes])
assert_type(nsjoin.Popen(["a"], target=pid, text=True, user="me", cwd=b"/"), nsjoin.Popen[str])
assert_type(nsjoin.run_in(pid, ["a"]), "subprocess.CompletedProcess[bytes]")
assert_type(nsjoin.run_in(pid, ["a"], input=b"x", capture_output=True), "subprocess.CompletedProcess[bytes]")
assert_type(nsjoin.run_in(pid, ["a"], text=True, input="x", check=True), "subprocess.CompletedProcess[str]")
assert_type(nsjoin.run_in(pid, ["a"], encoding="utf-8", timeout=3, kill_group=True), "subprocess.CompletedProcess[str]")


assert_type(nsjoin.spawn_in(pid, ["a"], text=False, encoding=None), nsjoin.Popen[bytes])
assert_type(nsjoin.Popen(["a"], target=pid, encoding="utf-8"), nsjoin.Popen[str])
assert_type(nsjoin.Popen(["a"], target=pid, errors="replace"), nsjoin.Popen[str])
assert_type(nsjoin.Popen(["a"], target=pid, universal_newlines=True), nsjoin.Popen[str])
assert_type(nsjoin.Popen(["a"], -1, None, subprocess.PIPE, target=pid), nsjoin.Popen[Any])
assert_type(nsjoin.run_in(pid, ["a"], errors="replace"), "subprocess.CompletedProcess[str]")
assert_type(nsjoin.run_in(pid, ["a"], universal_newlines=True), "subprocess.CompletedProcess[str]")


def undecided(text: bool) -> None:
    assert_type(nsjoin.spawn_in(pid, ["a"], text=text), nsjoin.Popen[Any])
    assert_type(nsjoin.Popen(["a"], target=pid, text=text), nsjoin.Popen[Any])
    assert_type(nsjoin.run_in(pid, ["a"], text=text, input=b"x"), "subprocess.CompletedProcess[Any]")


# Every kind of target.
with nsjoin.Target.from_pid(pid) as target, nsjoin.Namespace.current("net") as namespace:
    assert_type(target, nsjoin.Target)
    assert_type(nsjoin.Target(pid), nsjoin.Target)
    assert_type(nsjoin.Namespace(pid, "pid", for_children=True), nsjoin.Namespace)
    assert_type(target.namespaces(), dict[str, nsjoin.Namespace])
    assert_type(namespace.id.unique, "int | None")
    for_all: list[TargetLike] = [target, namespace, "/run/netns/a", b"/run/netns/a", [namespace, "/run/netns/a"]]
    nsjoin.run_in(nsjoin.spawn_in(target, ["a"]), ["b"])

with nsjoin.enter(pid, "net", "uts") as inside:
    assert_type(inside, nsjoin.enter)


@nsjoin.enter("/run/netns/a")
def decorated(number: int) -> str:
    return str(number)


assert_type(decorated(1), str)

# What is taken from the target, and what replaces it.
nsjoin.spawn_in(pid, ["a"], like_target=True, oom_score_adj=5, no_new_privs=True, capabilities={"net_admin"})
nsjoin.run_in(pid, ["a"], env=nsjoin.TARGET, cwd=nsjoin.TARGET, user=nsjoin.TARGET, cgroup="/a", unshare=("mnt",))

nsjoin.call_in(pid, print, 1, namespaces=("net",), trust_target=True, result="data")

# Wrong arguments are refused.
nsjoin.run_in(pid, ["a"], text=True, input=b"x", namespace=())  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue,reportArgumentType]
nsjoin.Popen(["a"], target=pid, namespace=("net",))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue,reportArgumentType]
nsjoin.call_in(pid, print, result="json")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
nsjoin.spawn_in(pid, ["a"], capabilities=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue,reportArgumentType]
nsjoin.spawn_in(pid, ["a"], preexec_fn=print)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue,reportArgumentType]
nsjoin.spawn_in(pid, ["a"], namespace=("net",))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue,reportArgumentType]
nsjoin.enter(1.5, "net")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
nsjoin.Namespace.from_pid("1", "net")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
