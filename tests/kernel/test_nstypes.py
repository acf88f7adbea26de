"""The table of types is what this kernel says, and what users name is looked up in it."""

from __future__ import annotations

import os

import pytest
from conftest import requires_namespaces_of_pidfds

from nsjoin._kernel import calls, nstypes
from nsjoin._kernel.nstypes import BY_FLAG, BY_NAME, NSTYPES

ALL = ("user", "cgroup", "ipc", "uts", "net", "time", "pid", "mnt")
NOT_STRINGS = [None, 1, True, b"net", 0x40000000, ("net",), object()]


def test_the_table_has_what_the_kernel_lists_for_a_process():
    names = {row.name for row in NSTYPES} | {row.children for row in NSTYPES if row.children}
    assert set(os.listdir("/proc/self/ns")) <= names
    assert names == {*ALL, "pid_for_children", "time_for_children"}


@pytest.mark.parametrize("row", NSTYPES, ids=lambda row: row.name)
def test_the_flag_is_the_one_that_the_kernel_gives_for_the_namespace(row):
    fd = os.open(f"/proc/self/ns/{row.name}", os.O_RDONLY)
    try:
        assert calls.namespace_type(fd) == row.flag
    finally:
        os.close(fd)


@requires_namespaces_of_pidfds
@pytest.mark.parametrize("row", NSTYPES, ids=lambda row: row.name)
def test_the_ioctl_gives_the_namespace_that_proc_shows(start, row):
    running = start("mnt", "uts", "ipc", "net", "pid", "user", "cgroup", "time")
    own = os.stat(f"/proc/self/ns/{row.name}").st_ino
    pidfd = calls.pidfd_open(running.pid)
    try:
        fd = calls.pidfd_namespace(pidfd, row.get)
    finally:
        os.close(pidfd)
    try:
        assert os.fstat(fd).st_ino == os.stat(f"/proc/{running.pid}/ns/{row.name}").st_ino != own
    finally:
        os.close(fd)


@requires_namespaces_of_pidfds
@pytest.mark.parametrize("name", ["pid", "time"])
def test_the_ioctl_for_children_gives_their_namespace(start, name):
    # unshare(1) itself stays outside: only its children are born in the new namespace
    outside = start("pid", "time").process.pid
    row = BY_NAME[name]
    pidfd = calls.pidfd_open(outside)
    try:
        fd = calls.pidfd_namespace(pidfd, row.get_for_children)
    finally:
        os.close(pidfd)
    try:
        inode = os.fstat(fd).st_ino
    finally:
        os.close(fd)
    assert inode == os.stat(f"/proc/{outside}/ns/{row.children}").st_ino != os.stat(f"/proc/{outside}/ns/{name}").st_ino


def test_user_is_first_and_mnt_last_so_that_paths_stay_ours_to_the_end():
    assert tuple(row.name for row in NSTYPES) == ALL


def test_only_user_is_refused_and_only_time_needs_to_be_alone():
    assert [row.name for row in NSTYPES if row.refusal] == ["user"]
    assert [row.name for row in NSTYPES if row.alone] == ["time"]
    assert [row.name for row in NSTYPES if row.executor] == ["user", "time", "pid"]
    assert [row.name for row in NSTYPES if row.children] == ["time", "pid"]


@pytest.mark.parametrize("name", ALL)
def test_lookup_finds_a_row_by_name(name):
    row = nstypes.lookup(name)
    assert row.name == name
    assert BY_FLAG[row.flag] is row


@pytest.mark.parametrize("name", ["", "Net", "network", "pid_for_children", "net\0", " net", "mount"])
def test_lookup_of_an_unknown_type_names_the_known_ones(name):
    with pytest.raises(ValueError, match="unknown namespace type") as caught:
        nstypes.lookup(name)
    assert all(known in str(caught.value) for known in ALL)


@pytest.mark.parametrize("name", NOT_STRINGS, ids=repr)
def test_lookup_takes_strings_only(name):
    with pytest.raises(TypeError, match="a namespace type is a str"):
        nstypes.lookup(name)


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ((), ()),
        (["mnt", "net"], ("net", "mnt")),
        (("net", "net", "uts", "net"), ("uts", "net")),
        (reversed(ALL), ALL),
        ({"pid": 1, "user": 2}, ("user", "pid")),
        ((name for name in ("pid", "cgroup")), ("cgroup", "pid")),
    ],
    ids=["none", "list", "repeated", "iterator", "dict", "generator"],
)
def test_select_gives_each_row_once_in_the_order_of_the_table(asked, rows):
    assert tuple(row.name for row in nstypes.select(asked)) == rows


@pytest.mark.parametrize("word", ["net", "", b"net"], ids=repr)
def test_select_does_not_take_a_word_for_a_list_of_letters(word):
    with pytest.raises(TypeError, match="an iterable of types"):
        nstypes.select(word)


@pytest.mark.parametrize("member", [*NOT_STRINGS, ["net"]], ids=repr)
def test_select_takes_strings_only(member):
    with pytest.raises(TypeError):
        nstypes.select(["net", member])


@pytest.mark.parametrize("word", [None, 5, 1.0])
def test_select_takes_iterables_only(word):
    with pytest.raises(TypeError):
        nstypes.select(word)


def test_select_refuses_a_list_with_an_unknown_type_in_it():
    with pytest.raises(ValueError, match="'nett'"):
        nstypes.select(["net", "nett"])


def test_mask_is_all_the_flags():
    assert nstypes.mask(NSTYPES) == 0x7E020080
    assert nstypes.mask([]) == 0
    assert nstypes.mask([BY_NAME["mnt"], BY_NAME["net"]]) == 0x40020000
