"""Load before a mount namespace is joined what the C library and Python load or read by path on first use.

Inside, each of these paths is the target's: its library would run in this process. So libraries are loaded outside and
stay, the name service is pinned to the caller's configuration, and the time zone to the caller's file.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import threading
import time
from typing import TYPE_CHECKING

from .._kernel.calls import ffi, lib
from ..exceptions import JoinError, error

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Iterator

    from .._setns import CData


#: The databases of nsswitch.conf(5), and what the C library does if the file is silent.
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

#: Libraries, which PyPy unloads once they are no longer referenced.
_kept: list[ctypes.CDLL] = []

_NO_LIBGCC = (
    "it cannot be loaded ({}), so the C library would load the target's, as soon as a thread ends by pthread_exit(3); "
    "install it (Debian: libgcc-s1, Fedora: libgcc)"
)


def load() -> None:
    """Load it all, once for the process. JoinError if a library is missing that libc would load from the target."""
    for name in _LOADED_LAZILY:
        with contextlib.suppress(ImportError):  # in a chroot without Python's files: then it is refused later too
            importlib.import_module(name)
    import ctypes

    libc = ctypes.CDLL(None)
    if _is_glibc():
        _load_what_libc_loads_lazily(libc)
    _pin_name_service(libc)


def _is_glibc() -> bool:
    """Musl loads nothing by itself, has no name service switch, and compares TZ with the name of the file."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):
        return False


def _load_what_libc_loads_lazily(libc: ctypes.CDLL) -> None:
    """All that glibc opens with its own dlopen besides the name service and character sets.

    pthread_exit(3), pthread_cancel(3) and backtrace(3) want the unwinder, and abort the process where there is none;
    getaddrinfo(3) wants libidn2 for AI_IDN, and does without. What has been loaded is found by its name, DT_SONAME.
    """
    import ctypes

    try:
        _kept.append(ctypes.CDLL("libgcc_s.so.1"))
    except OSError as refused:
        reason = _NO_LIBGCC.format(refused)
        raise error(JoinError, errno.ENOENT, "dlopen", nstype="mnt", target="libgcc_s.so.1", reason=reason) from None
    libc.backtrace((ctypes.c_void_p * 1)(), 1)  # keeps the addresses: from here on nothing is looked for
    with contextlib.suppress(OSError):
        _kept.append(ctypes.CDLL("libidn2.so.0"))


def _pin_name_service(libc: ctypes.CDLL) -> None:
    """Pin the caller's nsswitch.conf, and load its libraries: glibc reads the file again if it differs.

    What is fixed so is not asked of nscd(8) either, whose socket would be the target's.
    """
    configure = getattr(libc, "__nss_configure_lookup", None)  # glibc
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


# --- messages -----------------------------------------------------------------------------------------------

#: What gettext(3) chooses its catalogues by, besides the locale; LANGUAGE may name several, one for want of the other.
_CHOICES = ("LANGUAGE", "OUTPUT_CHARSET")
_known_choice: tuple[str | None, ...] = ()


def load_messages() -> None:
    """Before every join, as setlocale(3) may have been called since the last: have strerror(3) read its catalogues.

    For each new locale the C library opens a libc.mo, and a library (gconv) that converts that file's character set;
    also where the caller has no such file, as for C.UTF-8, but the target has. It remembers missing files.
    """
    import _locale  # built in

    global _known_choice
    os.strerror(errno.ENOENT)
    choice = (_locale.setlocale(_locale.LC_ALL, None), *map(os.environ.get, _CHOICES))
    if choice != _known_choice:
        for number in errno.errorcode:  # the second language's is opened for the first message that has only that
            os.strerror(number)
        _known_choice = choice


# --- the time zone ------------------------------------------------------------------------------------------

#: To glibc it means the same as no TZ at all. But then mktime(3), tzset(3) and strftime(3) look at the file each time
#: whether it is another one, and read it, for the whole process; of a TZ that is the same as before they read nothing.
_TIME_ZONE = b"TZ=:/etc/localtime"


class _TimeZone:
    """Our time zone, while a thread is in a foreign mount namespace: an entry of environ(7), but not of os.environ.

    The entry comes and goes as one pointer behind the last of an array that stays: other threads may be in getenv(3).
    """

    def __init__(self) -> None:
        self.entry = ffi.new("char[]", _TIME_ZONE)
        self._lock = threading.Lock()
        self._pins = 0
        self._arrays: list[CData] = []  # never freed: getenv(3) may be reading them
        self._place = 0  # of the entry in the last of them
        os.register_at_fork(after_in_child=self._forget_other_threads)

    def _forget_other_threads(self) -> None:
        self._lock = threading.Lock()  # one that is copied while another thread holds it is never released

    def read(self) -> None:
        """Read the caller's file, outside: mktime(3) calls tzset(3), which checks whether the file has changed."""
        if self._pins == 0:
            time.mktime((2000, 1, 1, 0, 0, 0, 0, 1, 0))

    def pin(self) -> None:
        """Until ``unpin`` has been called as often."""
        with self._lock:
            self._pins += 1
            if _is_glibc():
                self._add()

    def unpin(self) -> None:
        """Undo one ``pin``."""
        with self._lock:
            self._pins -= 1
            if self._pins == 0:
                self._remove()

    def _add(self) -> None:
        if self._is_as_left(ffi.NULL):
            self._arrays[-1][self._place] = self.entry
            return
        entries = environment()
        if any(ffi.string(entry).startswith(b"TZ=") for entry in entries):
            return  # pinned already, or set by the caller: glibc reads nothing while TZ stays the same
        self._place = len(entries)
        self._arrays.append(ffi.new("char *[]", [*entries, self.entry, ffi.NULL]))
        lib.environ = self._arrays[-1]

    def _remove(self) -> None:
        """As unsetenv(3) does: what is behind it moves up."""
        if self._is_as_left(self.entry):
            self._arrays[-1][self._place] = ffi.NULL
            return
        entries = environment()
        if self.entry in entries:
            place = entries.index(self.entry)
            for index, entry in enumerate([*entries[place + 1 :], ffi.NULL], place):
                lib.environ[index] = entry

    def _is_as_left(self, last: CData) -> bool:
        """Whether environ(7) is the last of these arrays, of the same length and with ``last`` at its end.

        setenv(3) makes another array to add something; unsetenv(3) moves what is behind.
        """
        if self._place == 0 or lib.environ != self._arrays[-1]:
            return False
        array = self._arrays[-1]
        return bool(array[self._place - 1]) and array[self._place] == last


def environment() -> list[CData]:
    """The entries of environ(7), to be read under the interpreter's lock."""
    pointers = lib.environ
    n = 0
    while pointers and pointers[n]:  # NULL after clearenv(3)
        n += 1
    return list(ffi.unpack(pointers, n)) if n else []


time_zone = _TimeZone()
