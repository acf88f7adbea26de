"""Names of users and groups in the target: its /etc/passwd and /etc/group, read as data.

Never through the target's NSS, which would run its libraries with the caller's rights, and never outside its root: a
symbolic link of the target's cannot make the caller read a file of its own.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .._kernel import abi, calls, procfs
from .._kernel.nstypes import MNT, USER
from .id_maps import IdRanges
from .namespace import Namespace
from .process import Process
from .target import TARGET, OpenTarget

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from .._kernel.nstypes import NsType
    from .target import Openable


#: More than any real file has; the rest is not read.
_LIMIT = 4 << 20
_MAX_LINKS = 40  # as the kernel, path_resolution(7)


@contextmanager
def numbered(target: Openable, wanted: tuple[NsType, ...] | None, keywords: dict[str, Any]) -> Iterator[Openable]:
    """Replace names of users and groups in ``keywords`` by their numbers: the target's where its mnt is joined.

    Yields what to join. KeyError, ValueError, TypeError, NamespaceError.
    """
    with whose_names(target, wanted, keywords) as (joined, process):
        if process is None:
            check_own_names(keywords)
        else:
            keywords.update(numbers(process, wanted, keywords))
        yield joined


@contextmanager
def whose_names(
    target: Openable, wanted: tuple[NsType, ...] | None, keywords: Mapping[str, Any]
) -> Iterator[tuple[Openable, Process | None]]:
    """Yield what to join, and the process whose files number the names in ``keywords``; None: they are the caller's.

    That process stays pinned meanwhile, so that names and namespaces are of the same one.
    """
    groups = keywords.get("extra_groups")
    names = (keywords.get("user"), keywords.get("group"), *(() if groups is TARGET else groups or ()))
    # an extra_groups that is a str is an error, which subprocess raises
    is_named = any(isinstance(name, str) for name in names) and not isinstance(groups, str)
    if not is_named or not (wanted is None or MNT in wanted):
        yield target, None
    elif isinstance(target, (int, Process)):
        with OpenTarget(target) as opened:
            assert opened.process is not None
            yield opened.process, None if opened.process.shares(MNT) else opened.process
    else:
        members = target if isinstance(target, tuple) else ()
        if any(not isinstance(member, Namespace) or member.nstype == "mnt" for member in members):
            raise ValueError("a user or group can be named only where the target is a process; give its number")
        yield target, None


def numbers(process: Process, wanted: tuple[NsType, ...] | None, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``user``, ``group`` and ``extra_groups`` of ``keywords`` with names replaced by the target's numbers.

    KeyError if the target has no such name. Unless its user namespace is joined, the numbers are those that the caller
    sees; ValueError if one is not mapped.
    """
    joins_user = wanted is None or USER in wanted
    given = {name: keywords[name] for name in ("user", "group") if keywords.get(name) is not None}
    found = {name: _number(process, name, value, joins_user) for name, value in given.items()}
    if keywords.get("extra_groups") is not None:
        found["extra_groups"] = [_number(process, "group", name, joins_user) for name in keywords["extra_groups"]]
    return found


def check_own_names(keywords: Mapping[str, Any]) -> None:
    """Raise KeyError for an unknown name of the caller's, TypeError and ValueError as subprocess for an impossible id:
    subprocess checks only when it has made pipes, and before Python 3.11.4 it leaves those open."""
    user, group, others = (keywords.get(name) for name in ("user", "group", "extra_groups"))
    if user is not None:
        _check_own("User", user)
    if group is not None:
        _check_own("Group", group)
    if not isinstance(others, str):  # an error, which subprocess raises
        for name in others or ():
            _check_own("Group", name)


def _check_own(what: str, value: Any) -> None:
    if isinstance(value, str):
        procfs.must_be_home("getpwnam", "/etc/passwd and /etc/group are its owner's (a number will do)")
        _look_up_own(what, value)
    elif not isinstance(value, int):
        raise TypeError(f"{what} must be a string or an integer, not {type(value)}")
    elif value < 0:
        raise ValueError(f"{what} ID cannot be negative, got {value}")


def _look_up_own(what: str, name: str) -> None:
    import grp
    import pwd

    if what == "User":
        pwd.getpwnam(name)
    else:
        grp.getgrnam(name)


def _number(process: Process, what: str, name: Any, joins_user: bool) -> Any:
    if not isinstance(name, str):
        return name
    number = _lookup(process, "etc/passwd" if what == "user" else "etc/group", name, what)
    return number if joins_user else _outside(process, "uid_map" if what == "user" else "gid_map", number)


def _outside(process: Process, map_name: str, number: int) -> int:
    outside = IdRanges.of(process, map_name).outside(number)
    if outside is None:
        raise ValueError(f"id {number} of the target is not mapped in {map_name} of {process.describe()}")
    return outside


def _lookup(process: Process, path: str, name: str, what: str) -> int:
    root = process.open_root()
    try:
        for fields in _entries(root, path):
            if fields[0] == os.fsencode(name) and len(fields) > 2 and fields[2].isdigit():
                return int(fields[2])
    finally:
        os.close(root)
    raise KeyError(f"{what} not found in /{path} of {process.describe()}: {name!r}")


def _entries(root: int, path: str) -> Iterator[list[bytes]]:
    try:
        fd = open_in_root(root, path)
    except FileNotFoundError:
        return
    with open(fd, "rb") as file:  # read it all and close: a caller may stop iterating early
        text = file.read(_LIMIT)
    for line in text.splitlines():
        yield line.split(b":")


def open_in_root(root: int, path: str) -> int:
    """Open a regular file for reading, resolving every link as a process with the root ``root`` would.

    Nothing else is opened even for a moment: of a device, or /proc/kmsg, that alone can do something.
    """
    flags = abi.O_PATH | os.O_CLOEXEC
    try:
        place = calls.openat2_in_root(root, os.fsencode(path), flags)
    except OSError as refused:
        if not abi.lacks("openat2", refused):
            raise
        place = _walk(root, path)
    try:
        status = os.fstat(place)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        if status.st_size == 0:  # as files of proc and tracefs report
            raise FileNotFoundError(errno.ENOENT, "an empty file", path)
        return procfs.open_file(f"self/fd/{place}", os.O_RDONLY | os.O_NOCTTY)
    finally:
        os.close(place)


def _walk(root: int, path: str) -> int:
    """An O_PATH descriptor, component by component: none is followed by the kernel, and ".." stops at the root."""
    todo = path.split("/")[::-1]
    trail = [os.dup(root)]
    links = 0
    try:
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if len(trail) > 1:
                    os.close(trail.pop())
                continue
            fd = os.open(part, abi.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=trail[-1])
            trail.append(fd)
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                link = os.readlink("", dir_fd=fd)
                os.close(trail.pop())
                if link.startswith("/"):
                    while len(trail) > 1:
                        os.close(trail.pop())
                todo += link.split("/")[::-1]
        return trail.pop()
    finally:
        for fd in trail:
            os.close(fd)
