"""``unshare``: this thread in new namespaces, and why the kernel refuses."""

from __future__ import annotations

import errno
import os
import threading

import pytest
from changed import CAP_SYS_ADMIN, drop_capability, in_child, in_thread
from child import become_ordinary_user
from conftest import HAS_NAMESPACES_OF_PIDFDS, requires_namespaces_of_pidfds, requires_root

import nsjoin


def own(nstype: str) -> nsjoin.NamespaceId:
    with nsjoin.Namespace.current(nstype) as namespace:
        return namespace.id


def children(nstype: str) -> nsjoin.NamespaceId:
    with nsjoin.Namespace.current(nstype, for_children=True) as namespace:
        return namespace.id


@requires_root
def test_this_thread_moves_and_no_other_one():
    def move() -> None:
        before = own("net"), own("uts"), own("ipc")
        nsjoin.unshare("net", "uts")
        assert own("net") != before[0]
        assert own("uts") != before[1]
        assert own("ipc") == before[2]

    before = own("net"), own("uts")
    in_thread(move)
    assert (own("net"), own("uts")) == before


@requires_root
@pytest.mark.parametrize("nstype", [pytest.param("pid", marks=requires_namespaces_of_pidfds), "time"])
def test_pid_and_time_are_for_what_is_started_from_now_on(nstype):
    def move() -> None:
        before = own(nstype)
        nsjoin.unshare(nstype)
        assert own(nstype) == before
        assert children(nstype) != before

    in_child(move)


def test_an_ordinary_user_gets_a_user_namespace_and_others_in_it():
    def move() -> None:
        become_ordinary_user()
        before = own("user"), own("net")
        with pytest.raises(nsjoin.NamespacePermissionError, match="make a user namespace") as caught:
            nsjoin.unshare("net")
        assert caught.value.errno == errno.EPERM
        assert (own("user"), own("net")) == before
        nsjoin.unshare("user", "net")
        assert own("user") != before[0]
        assert own("net") != before[1]

    in_child(move)


@requires_root
def test_the_capability_that_is_missing_is_named():
    def move() -> None:
        drop_capability(CAP_SYS_ADMIN)
        with pytest.raises(nsjoin.NamespacePermissionError, match="needs CAP_SYS_ADMIN in user:"):
            nsjoin.unshare("uts")

    in_child(move)


def test_a_user_that_is_not_mapped_cannot_make_a_user_namespace():
    def move() -> None:
        become_ordinary_user()
        nsjoin.unshare("user")
        with pytest.raises(nsjoin.NamespacePermissionError, match="the caller's uid is not mapped"):
            nsjoin.unshare("user")

    in_child(move)


def test_beside_threads_a_user_namespace_is_refused_with_the_reason():
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    before = own("user")
    thread.start()
    try:
        with pytest.raises(nsjoin.NamespaceError, match="a process with threads") as caught:
            nsjoin.unshare("user")
        assert caught.value.errno == errno.EINVAL
        assert own("user") == before
    finally:
        done.set()
        thread.join()


@requires_root
def test_a_second_pid_namespace_is_refused_with_the_reason():
    def move() -> None:
        nsjoin.unshare("pid")
        first = children("pid") if HAS_NAMESPACES_OF_PIDFDS else None
        with pytest.raises(nsjoin.NamespaceError, match="born in another PID namespace already") as caught:
            nsjoin.unshare("pid")
        assert caught.value.errno == errno.EINVAL
        assert first is None or children("pid") == first

    in_child(move)


@requires_root
def test_all_or_none_and_the_limit_that_is_reached_is_named():
    def move() -> None:
        with open("/proc/sys/user/max_uts_namespaces", "w") as file:
            file.write("0")
        before = own("net")
        with pytest.raises(nsjoin.NamespaceError, match="max_uts_namespaces is 0") as caught:
            nsjoin.unshare("net", "uts")
        assert caught.value.errno == errno.ENOSPC
        assert "max_net" not in str(caught.value)
        assert own("net") == before

    # limits are a user namespace's own
    with nsjoin.create("user", uid_map=[(0, 0, 65536)], gid_map=[(0, 0, 65536)]) as user:
        nsjoin.call_in(user, move)


def test_user_namespaces_nest_no_deeper_than_the_kernel_says():
    def move() -> None:
        become_ordinary_user()
        with pytest.raises(nsjoin.NamespaceError, match="nest 32 deep at most") as caught:
            for _ in range(40):
                uid, gid = os.geteuid(), os.getegid()
                nsjoin.unshare("user")
                for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                    with open(f"/proc/self/{name}", "w") as file:
                        file.write(text)
        assert caught.value.errno in (errno.ENOSPC, errno.EUSERS)

    in_child(move)


@pytest.mark.parametrize(("nstypes", "kind"), [((), TypeError), (("nonsense",), ValueError), ((1,), TypeError)])
def test_bad_arguments_move_no_thread(nstypes, kind):
    before = own("net")
    with pytest.raises(kind):
        nsjoin.unshare(*nstypes)
    assert own("net") == before
