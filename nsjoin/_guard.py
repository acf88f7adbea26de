"""While a thread is in a foreign mount namespace, no code of that place is to run in this process.

An import would execute the target's file with our rights; so would a codec, which Python imports by need, and a name
service library, which the C library loads by what *that* /etc/nsswitch.conf says. What Python itself needs sooner or
later is therefore loaded before the first join, the name service is pinned to our own configuration, and what is left
is refused.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.machinery
import os
import re
import sys
import threading
from typing import TYPE_CHECKING, Any

from . import _procfs, _shim
from ._nstype import BY_NAME
from ._shim import lib
from .exceptions import NamespaceError, error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

#: The databases of nsswitch.conf(5), and what the C library does where the file says nothing.
_DATABASES = {
    "aliases": "files",
    "ethers": "files",
    "group": "files",
    "group_compat": "nis",
    "gshadow": "files",
    "hosts": "dns files",
    "initgroups": "files",
    "netgroup": "files",
    "networks": "files",
    "passwd": "files",
    "passwd_compat": "nis",
    "protocols": "files",
    "publickey": "files",
    "rpc": "files",
    "services": "files",
    "shadow": "files",
    "shadow_compat": "nis",
}
#: Functions that load every library of a database, and look nothing up: setpwent(3) and the like.
_ENUMERATIONS = ("pwent", "grent", "spent", "hostent", "netent", "protoent", "servent")

_lock = threading.Lock()
_is_prepared = False
_thread = threading.local()
#: Mount namespaces that were entered: threads that were born there are there still.
_foreign: set[int] = set()
_process_allows: bool | None = None  # the child of a call, all of which is elsewhere


class _Guard:
    """The first finder of sys.meta_path, from the first join of a foreign mount namespace on. It finds nothing."""

    @staticmethod
    def find_spec(name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None) -> None:
        """Refuse a module that is a file, if this thread is elsewhere: ImportError, or LookupError for a codec."""
        if not is_guarded() or _is_part_of_python(name):
            return
        text = (
            f"{name} is not loaded yet, and to load it now would run a file of the foreign mount namespace that this "
            "thread is in; load it before, or say allow_imports=True"
        )
        if name.startswith("encodings."):
            raise LookupError(text)  # an ImportError would be taken for "no such codec", and remembered
        raise ImportError(text, name=name)


def _is_part_of_python(name: str) -> bool:
    """Whether the module comes without a file: built in, or frozen."""
    finders = (importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter)
    return any(finder.find_spec(name) is not None for finder in finders)


def is_guarded() -> bool:
    """Whether this thread may load nothing now: it has entered a foreign mount namespace, or was born in one."""
    allowed = getattr(_thread, "allowed", None)
    if allowed is None:
        allowed = _process_allows
    return is_away() if allowed is None else not allowed


def is_away() -> bool:
    """Whether this thread has entered a foreign mount namespace, or was born in one."""
    if getattr(_thread, "allowed", None) is not None or _process_allows is not None:
        return True
    return bool(_foreign) and _own_mount()[1] in _foreign


def must_be_home(step: str, what: str, nstype: str | None = None) -> None:
    """NamespaceError (EPERM) while this thread is away: ``what`` would happen by a path, and that is its owner's."""
    if is_away():
        reason = f"this thread is in a foreign mount namespace, where {what}; do it before it enters"
        raise error(NamespaceError, errno.EPERM, step, nstype=nstype, reason=reason)


def _has_gone_away() -> bool:
    """The same, but for the child of a call, which is inside as a whole: it means the /proc that is there."""
    return _process_allows is None and is_away()


def _own_mount() -> tuple[int, int]:
    """The inode of this thread's mount namespace and what tells it from all others; 0 where nobody says it.

    An inode is given out again as soon as its namespace has gone; NS_GET_ID (Linux 6.18) is not.
    """
    fd = lib.nsjoin_own(BY_NAME["mnt"].get)
    if fd < 0:  # before Linux 6.11; and the /proc that is here may be anybody's
        inode = _procfs.kept_inode("thread-self/ns/mnt")
        return inode, inode
    try:
        inode = os.fstat(fd).st_ino
        return inode, _shim.namespace_unique_id(fd) or inode
    finally:
        os.close(fd)


def enter_thread(*, allow_imports: bool, left: int = 0) -> Any:
    """This thread has left the mount namespace ``left`` (0: unknown). Returns what ``leave_thread`` needs."""
    before = getattr(_thread, "allowed", None)
    inode, identity = _own_mount()
    if inode and inode == left:  # it was there already, at home or not
        return before
    _thread.allowed = allow_imports
    if inode and not allow_imports:  # 0: nobody tells, and every thread would be taken for one inside
        _foreign.add(identity)
    return before


def enter_process(*, allow_imports: bool) -> None:
    """This process, which has one thread, has left its mount namespace for good."""
    global _process_allows
    _process_allows = allow_imports
    vars(_thread).clear()


def leave_thread(before: Any) -> None:
    """This thread is back, or one level further out."""
    _thread.allowed = before


def prepare() -> None:
    """Before a mount namespace is joined: keep our own /proc; the first time, load what will be needed, pin the name
    service, stand guard."""
    global _is_prepared
    _procfs.keep(_has_gone_away)
    if _is_prepared:
        return
    with _lock:
        if _is_prepared:
            return
        _load_what_python_loads_lazily()
        _pin_name_service()
        sys.meta_path.insert(0, _Guard)
        _is_prepared = True


#: The codecs of host names and file names, and what tracebacks and warnings are shown with.
_LOADED_LAZILY = (
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.utf_8",
    "linecache",
    "traceback",
    "ast",
    "unicodedata",
)


def _load_what_python_loads_lazily() -> None:
    for name in _LOADED_LAZILY:
        with contextlib.suppress(ImportError):  # in a chroot without Python's files: then it is refused later too
            importlib.import_module(name)


def _pin_name_service() -> None:
    """Fix what our nsswitch.conf says, and load its libraries: glibc would read the file anew where it differs."""
    import ctypes

    libc = ctypes.CDLL(None)
    configure = getattr(libc, "__nss_configure_lookup", None)  # glibc; musl has no name service switch
    if configure is None:
        return
    lines = dict(_own_lines())
    for database, default in _DATABASES.items():
        configure(database.encode(), lines.get(database, default).encode())
    for name in _ENUMERATIONS:
        with contextlib.suppress(AttributeError):
            getattr(libc, f"set{name}")(0)
            getattr(libc, f"end{name}")()


def _own_lines() -> Iterator[tuple[str, str]]:
    with contextlib.suppress(FileNotFoundError), open("/etc/nsswitch.conf", encoding="utf-8", errors="replace") as file:
        for line in file:
            database, colon, services = line.partition("#")[0].partition(":")
            if colon and re.fullmatch(r"\s*\w+\s*", database):
                yield database.strip(), services.strip()
