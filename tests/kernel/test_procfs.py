"""Our own /proc: the descriptor that is kept of it, and what it does when that is gone or is another file's."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import TYPE_CHECKING

import pytest

from nsjoin._kernel import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def away(monkeypatch) -> Iterator[list[bool]]:
    """Nothing is kept yet; ``away[0]`` says whether this thread is in a foreign mount namespace."""
    answer = [False]
    for name, value in (("_kept", -1), ("_identity", None), ("_has_gone_away", lambda: answer[0])):
        monkeypatch.setattr(procfs, name, value)
    yield answer
    with contextlib.suppress(OSError):
        os.close(procfs._kept)


def keep() -> int:
    procfs.keep()
    return procfs._kept


def test_it_is_kept_once_above_stdio_and_not_inherited(away):
    before = set(os.listdir("/proc/self/fd"))
    kept = keep()
    assert keep() == kept > 2
    assert set(os.listdir("/proc/self/fd")) - before <= {str(kept)}
    assert not os.get_inheritable(kept)
    assert fcntl.fcntl(kept, fcntl.F_GETFL) & 0o10000000  # O_PATH


def test_it_stays_above_stdio_where_that_is_closed(away):
    copies = [os.dup(fd) for fd in (0, 1)]
    os.closerange(0, 2)
    try:
        kept = keep()
    finally:
        for fd, copy in enumerate(copies):
            os.dup2(copy, fd)
            os.close(copy)
    assert kept > 2


@pytest.mark.parametrize("number_goes_to", [None, "/"])
def test_one_that_has_been_closed_is_made_anew_and_never_mistaken(away, number_goes_to):
    kept = keep()
    os.close(kept)
    if number_goes_to:
        fd = os.open(number_goes_to, os.O_RDONLY)
        os.dup2(fd, kept)
        os.close(fd)
    away[0] = True
    with pytest.raises(FileNotFoundError, match="this process's own /proc is not open"):
        procfs.place("self")
    assert keep() == kept  # of what is there now, none is kept: it is somebody else's
    with pytest.raises(FileNotFoundError):
        procfs.read("self/stat")
    away[0] = False
    new = keep()
    away[0] = True
    assert procfs.names("self/ns")
    if number_goes_to:
        assert new != kept
        os.close(kept)


def test_what_is_asked_of_it_is_asked_below_the_descriptor(away, monkeypatch):
    kept = keep()
    away[0] = True
    assert procfs.place("self/ns") == ("self/ns", kept)
    assert procfs.read_link("self") == str(os.getpid())
    assert procfs.inode("self/ns/net") == os.stat("/proc/self/ns/net").st_ino
    assert set(procfs.names("self/ns")) == set(os.listdir("/proc/self/ns"))
    asked = []
    for name in ("open", "stat", "readlink"):
        call = getattr(os, name)

        def recorded(path, *args, call=call, **keywords):
            asked.append((str(path).startswith("/"), keywords.get("dir_fd")))
            return call(path, *args, **keywords)

        monkeypatch.setattr(os, name, recorded)
    with contextlib.suppress(OSError):
        procfs.read("self/stat")
        procfs.read_link("self")
        procfs.inode("self/ns/net")
        procfs.names("self")
    assert asked == [(False, kept)] * 4


def test_a_file_is_close_on_exec_and_nothing_stays_open(away):
    before = os.listdir("/proc/self/fd")
    fd = procfs.open_file("self/stat")
    assert not os.get_inheritable(fd)
    os.close(fd)
    procfs.names("self")
    assert os.listdir("/proc/self/fd") == before


def test_a_proc_that_went_is_forgotten(away, monkeypatch):
    kept = keep()
    os.close(kept)
    real = os.open

    def no_proc(path, *args, **keywords):
        if path == "/proc":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return real(path, *args, **keywords)

    monkeypatch.setattr(os, "open", no_proc)
    assert keep() == -1
    assert procfs._identity is None


def test_a_descriptor_that_cannot_be_looked_at_is_closed_or_kept_as_it_is(away, monkeypatch):
    real = os.fstat

    def refuse(fd):
        os.fstat = real  # the next time all is well
        raise OSError(errno.EOVERFLOW, "injected")

    def keep_and_be_refused():
        with monkeypatch.context() as patch:
            patch.setattr(os, "fstat", refuse)
            with pytest.raises(OSError, match="injected"):
                keep()

    before = os.listdir("/proc/self/fd")
    keep_and_be_refused()
    assert os.listdir("/proc/self/fd") == before
    kept = keep()
    keep_and_be_refused()
    assert procfs._kept == kept


def test_bytes_that_are_no_text_come_through(away, monkeypatch, tmp_path):
    (tmp_path / "file").write_bytes(b"a\xffb")
    monkeypatch.setattr(procfs, "place", lambda path: (str(tmp_path / path), None))
    assert os.fsencode(procfs.read("file")) == b"a\xffb"
