from __future__ import annotations

import os
import stat
import warnings

import pytest
from conftest import IS_ROOT, requires_root

import nsjoin
from nsjoin import Namespace, NamespaceId, NotANamespaceError, _nstype, _shim

ALL = tuple(_nstype.BY_NAME)


@pytest.mark.parametrize("nstype", ALL)
def test_the_current_namespace_is_the_one_that_proc_shows(nstype):
    with Namespace.current(nstype) as namespace:
        status = os.stat(f"/proc/thread-self/ns/{nstype}")
        assert namespace.nstype == nstype
        assert namespace.id[:2] == (status.st_dev, status.st_ino)
        assert os.fstat(namespace.fileno()).st_ino == status.st_ino
        assert not os.get_inheritable(namespace.fileno())
        assert namespace.fileno() > 2


@pytest.mark.parametrize("nstype", ["mnt", "uts", "ipc", "net", "pid", "cgroup"])
def test_a_namespace_of_a_pid_is_the_targets_and_not_ours(target, nstype):
    with Namespace.from_pid(target.pid, nstype) as theirs, Namespace.current(nstype) as ours:
        assert theirs != ours
        assert theirs.id.ino == os.stat(f"/proc/{target.pid}/ns/{nstype}").st_ino


@pytest.mark.parametrize("nstype", ["pid", "time"])
def test_for_children_is_what_children_get(start, nstype):
    running = start(nstype)  # unshare itself is outside, its children are inside
    outside = running.process.pid
    with Namespace.from_pid(outside, nstype, for_children=True) as children:
        with Namespace.from_pid(running.pid, nstype) as inside, Namespace.from_pid(outside, nstype) as own:
            assert children == inside
            assert children != own


def test_only_pid_and_time_have_another_one_for_children():
    with pytest.raises(ValueError, match="only pid and time"):
        Namespace.current("net", for_children=True)
    with pytest.raises(ValueError, match="only pid and time"):
        Namespace.from_pid(os.getpid(), "net", for_children=True)


def test_equal_by_what_they_are_also_when_closed():
    one, two = Namespace.current("uts"), Namespace.from_path("/proc/self/ns/uts")
    other = Namespace.current("ipc")
    for namespace in (one, two, other):
        namespace.close()
    assert one == two
    assert hash(one) == hash(two)
    assert one != other
    assert len({one, two, other}) == 2
    assert one != "uts"
    assert "closed" in repr(one)


def test_ids_are_equal_by_the_unique_number_where_both_have_it():
    assert NamespaceId(4, 7, 1) == NamespaceId(4, 7, 1)
    assert NamespaceId(4, 7, 1) != NamespaceId(4, 7, 2)  # the inode number was given out again
    assert NamespaceId(4, 7, None) == NamespaceId(4, 7, 2)
    assert NamespaceId(4, 7, None) != NamespaceId(4, 8, None)
    assert hash(NamespaceId(4, 7, None)) == hash(NamespaceId(4, 7, 2))


def test_the_unique_number_is_the_kernels():
    with Namespace.current("net") as namespace:
        expected = _shim.namespace_unique_id(namespace.fileno())
        assert namespace.id.unique == expected
        if expected is None:
            assert os.uname().release.split(".")[0] < "7"


def test_a_path_may_be_any_bind_mount_or_link(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("/proc/self/ns/net")
    with Namespace.from_path(link) as by_link, Namespace.from_path(os.fsencode(link)) as by_bytes:
        assert by_link == by_bytes
        assert by_link.nstype == "net"


def test_from_fd_duplicates():
    with Namespace.current("net") as first:
        with Namespace.from_fd(first.fileno()) as second:
            assert second.fileno() != first.fileno()
        assert stat.S_ISREG(os.fstat(first.fileno()).st_mode)  # still open


@pytest.mark.parametrize("kind", ["directory", "file", "fifo", "device", "proc file"])
def test_other_files_are_not_namespaces(tmp_path, kind):
    path = {"device": "/dev/zero", "proc file": "/proc/self/status"}.get(kind, str(tmp_path / "thing"))
    if kind == "directory":
        os.mkdir(path)
    elif kind == "fifo":
        os.mkfifo(path)  # opening it for reading would hang
    elif kind == "file":
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    with pytest.raises(NotANamespaceError, match="not a namespace file") as caught:
        Namespace.from_path(path)
    assert isinstance(caught.value, ValueError)
    assert caught.value.target == path


def test_a_descriptor_by_path_only_is_no_namespace():
    fd = os.open("/proc/self/ns/net", os.O_PATH)
    try:
        with pytest.raises(NotANamespaceError):
            Namespace.from_fd(fd)
    finally:
        os.close(fd)


def test_a_missing_file_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        Namespace.from_path(tmp_path / "nope")
    assert isinstance(caught.value, nsjoin.NamespaceNotFoundError)


@pytest.mark.parametrize("bad", [None, 7, object()])
def test_a_path_is_a_path(bad):
    with pytest.raises(TypeError):
        Namespace.from_path(bad)


def test_a_nul_in_a_path_is_a_value_error():
    with pytest.raises(ValueError, match="null"):
        Namespace.from_path("/proc/self/ns/net\0")


def test_a_closed_namespace_says_so():
    namespace = Namespace.current("net")
    namespace.close()
    namespace.close()
    assert namespace.closed
    for use in (namespace.fileno, namespace.owner, namespace.owner_uid, namespace.__enter__):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_a_forgotten_namespace_warns_and_closes():
    namespace = Namespace.current("net")
    fd = namespace.fileno()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del namespace
    assert [warning.category for warning in caught] == [ResourceWarning]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_the_owner_of_a_targets_namespace_is_its_user_namespace(start):
    running = start("user", "net", "pid")
    with Namespace.from_pid(running.pid, "net") as net, Namespace.from_pid(running.pid, "user") as user:
        with net.owner() as owner:
            assert owner == user
            assert owner.nstype == "user"
        assert net.owner_uid() == user.owner_uid() == os.geteuid()


def test_the_parent_of_a_pid_or_user_namespace_is_ours(start):
    running = start("user", "pid")
    for nstype in ("pid", "user"):
        with Namespace.from_pid(running.pid, nstype) as inside, Namespace.current(nstype) as own:
            with inside.parent() as parent:
                assert parent == own
    with Namespace.current("net") as net, pytest.raises(ValueError, match="pid and user"):
        net.parent()


def test_what_is_outside_of_our_user_namespace_is_not_shown():
    with Namespace.current("user") as own, pytest.raises(PermissionError) as caught:
        own.parent()
    assert isinstance(caught.value, nsjoin.NamespacePermissionError)
    assert "outside" in str(caught.value)


@pytest.mark.parametrize("nstype", ["", "network", "NET", "pid_for_children"])
def test_an_unknown_type_is_a_value_error(nstype):
    with pytest.raises(ValueError, match="unknown namespace type"):
        Namespace.current(nstype)


@pytest.mark.parametrize("nstype", [None, 7, b"net", ["net"]])
def test_a_type_is_a_str(nstype):
    with pytest.raises(TypeError, match="is a str"):
        Namespace.current(nstype)


def test_descriptors_stay_above_stdio_where_those_are_closed():
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(0)
        namespace = Namespace.current("net")
        os.write(write, str(namespace.fileno()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    assert int(os.read(read, 10)) > 2
    os.close(read)


@requires_root
def test_a_bind_mount_keeps_and_shows_the_namespace(start, tmp_path):
    assert IS_ROOT
    running = start("net")
    path = tmp_path / "pinned"
    path.touch()
    with Namespace.from_pid(running.pid, "net") as inside:
        os.system(f"mount --bind /proc/{running.pid}/ns/net {path}")
        try:
            running.end()
            with Namespace.from_path(path) as pinned:
                assert pinned == inside
        finally:
            os.system(f"umount {path}")
