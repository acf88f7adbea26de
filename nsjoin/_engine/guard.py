"""Refuse to load code of a foreign mount namespace while a thread is in it.

An import would execute the target's file with the caller's privileges; so would a codec, which Python imports on
demand, a library that is loaded by name, and a program that is started without the joiner. What Python and the C
library need sooner or later is loaded before the join (warm.py); everything else is refused.
"""

from __future__ import annotations

import errno
import functools
import importlib.machinery
import os
import sys
import threading
from typing import TYPE_CHECKING

from .._kernel import procfs
from ..exceptions import NamespaceError, error
from . import warm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any


_lock = threading.Lock()
_is_prepared = False
_announcing = threading.local()  # the event that nsjoin itself announces in this thread


class _Guard:
    """The first finder of sys.meta_path whenever a foreign mount namespace is joined. It finds nothing."""

    @staticmethod
    def find_spec(name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None) -> None:
        """Refuse a module that is a file, if this thread is elsewhere."""
        if is_guarded():
            _refuse_module(name)


def _refuse_module(name: str) -> None:
    """ImportError, or LookupError for a codec, unless the module comes without a file."""
    if _is_part_of_python(name):
        return
    text = (
        f"importing {name} here would run a file from the target's mount namespace; import it before entering, or pass "
        "allow_imports=True"
    )
    if name.startswith("encodings."):
        raise LookupError(text)  # an ImportError would be taken for "no such codec", and remembered
    raise ImportError(text, name=name)


def _is_part_of_python(name: str) -> bool:
    """Whether the module comes without a file: built in, or frozen."""
    finders = (importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter)
    return any(finder.find_spec(name) is not None for finder in finders)


# --- what the interpreter announces -------------------------------------------------------------------------


def _import(event: str, args: tuple[Any, ...]) -> None:
    """By a statement, before any finder is asked; or an extension module, when its file is about to be loaded."""
    if _is_refused(event):
        _refuse_module(args[0])


def _exec(event: str, args: tuple[Any, ...]) -> None:
    """The code of a module, whichever finder has found it: importlib's own functions announce nothing before."""
    code = args[0]
    if code.co_name == "<module>" and not code.co_filename.startswith("<") and _is_refused(event):
        raise ImportError(
            f"running {code.co_filename} here would run a file from the target's mount namespace; run it before "
            "entering, or pass allow_imports=True",
            path=code.co_filename,
        )


def _library(event: str, args: tuple[Any, ...]) -> None:
    name = args[-1]
    if (
        name is not None and _is_refused(event) and not (event == "ctypes.dlopen" and _is_loaded(name))
    ):  # None: the program itself
        what = f"loading {os.fsdecode(name)!r} here would run a library of the target's; load it before entering"
        raise _refusal(event, what)


def _program(event: str, _args: tuple[Any, ...]) -> None:
    if not _is_refused(event):
        return
    what = (
        "this would run the target's program with the caller's privileges, by a process that the target can look into; "
        "start it with spawn_in or run_in"
    )
    raise _refusal(event, what)


def _is_refused(event: str) -> bool:
    return is_guarded() and getattr(_announcing, "event", None) != event


def _refusal(step: str, what: str) -> NamespaceError:
    """An OSError, as callers of such functions expect where a program or library is not there."""
    reason = f"{what}, or pass allow_imports=True"
    return error(NamespaceError, errno.EPERM, step, nstype="mnt", target="this thread", reason=reason)


def _is_loaded(name: Any) -> bool:
    """Whether dlopen(3) would find it among what is loaded, and open no file."""
    if "/" in os.fsdecode(name):
        return False
    import ctypes

    with _Own("ctypes.dlopen"):
        try:
            ctypes.CDLL(os.fsdecode(name), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:
            return False
    return True


#: The audit events that are refused, and how. What is announced twice, such as os.spawnv's exec in its child, is there
#: twice: pty.spawn's child would leave through the caller's frames with the exception.
_EVENTS: dict[str, Callable[[str, tuple[Any, ...]], None]] = {
    "import": _import,
    "exec": _exec,
    "ctypes.dlopen": _library,
    "sqlite3.load_extension": _library,
    "subprocess.Popen": _program,
    "os.exec": _program,
    "os.posix_spawn": _program,
    "os.spawn": _program,
    "os.system": _program,
    "pty.spawn": _program,
    "_posixsubprocess.fork_exec": _program,
}


def _hook(event: str, args: tuple[Any, ...], events: Any = _EVENTS) -> None:
    """The audit hook. It is called for each event of the process, for good, also when modules have been emptied."""
    if event in events and is_guarded is not None:
        events[event](event, args)


class _Own:
    """What this thread announces within by this event is nsjoin's own doing, and safe."""

    def __init__(self, event: str) -> None:
        self._event = event

    def __enter__(self) -> None:
        _announcing.event = self._event

    def __exit__(self, *_: object) -> None:
        _announcing.event = None


def announce_program(*args: Any) -> None:
    """The event of a program that nsjoin starts: others are to hear of it; the joiner runs nothing of this place."""
    with _Own("subprocess.Popen"):
        sys.audit("subprocess.Popen", *args)


#: Functions that start a program or load a library and announce nothing, and where they are looked up when they are
#: called: multiprocessing's way, which runs sys.executable of that place, and what PyPy does without events.
_SILENT = [("_posixsubprocess", "fork_exec", "_posixsubprocess.fork_exec")]
if sys.implementation.name == "pypy":
    _SILENT += [
        ("os", "system", "os.system"),
        ("os", "execv", "os.exec"),
        ("os", "execve", "os.exec"),
        ("_ffi", "CDLL", "ctypes.dlopen"),
    ]


def _announce_what_is_silent() -> None:
    for module_name, name, event in _SILENT:
        module = importlib.import_module(module_name)
        setattr(module, name, _announced(getattr(module, name), event))


def _announced(function: Callable[..., Any], event: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def announced(*args: Any, **keywords: Any) -> Any:
        sys.audit(event, *args[:1])
        return function(*args, **keywords)

    return announced


# --- who is elsewhere ---------------------------------------------------------------------------------------


def is_guarded() -> bool:
    """Whether this thread may load nothing now: it has entered a foreign mount namespace, or was born in one."""
    allowed = procfs.permission()
    return procfs.is_away() if allowed is None else not allowed


class _Pin:
    """A pin of the time zone. It goes with what holds it: a stay, or a thread that lives inside until it ends."""

    def __init__(self) -> None:
        self._unpin = [warm.time_zone.unpin]
        warm.time_zone.pin()

    def release(self) -> None:
        while self._unpin:
            self._unpin.pop()()

    __del__ = release


def enter_thread(*, allow_imports: bool, left: int = 0) -> Any:
    """Note that this thread has left the mount namespace ``left`` (0: unknown). Returns what ``leave_thread`` takes."""
    before, has_left = procfs.leave_thread(allowed=allow_imports, left=left)
    return before, _Pin() if has_left else None


def enter_process(*, allow_imports: bool) -> None:
    """Note that this process, which has one thread, has left its mount namespace for good."""
    procfs.leave_process(allowed=allow_imports)
    warm.time_zone.pin()


def leave_thread(before: Any) -> None:
    """Note that this thread is back, or one level further out."""
    allowed, pin = before
    procfs.return_thread(allowed)
    if pin is not None:
        pin.release()


def prepare() -> None:
    """Prepare to join a mount namespace: keep the caller's /proc, load what is loaded lazily, install the guard.

    JoinError if something that libc will load is missing here.
    """
    procfs.keep()
    if _is_prepared and procfs.is_away():
        return  # what would be loaded now would be the files of that place
    if not _is_prepared:
        _prepare_once()
    if sys.meta_path[:1] != [_Guard]:  # not moved there: another thread may be going through the list
        sys.meta_path.insert(0, _Guard)
    warm.load_messages()
    warm.time_zone.read()


def _forget_other_threads() -> None:
    global _lock
    _lock = threading.Lock()  # one that is copied while another thread holds it is never released


os.register_at_fork(after_in_child=_forget_other_threads)


def _prepare_once() -> None:
    global _is_prepared
    with _lock:
        if _is_prepared:
            return
        warm.load()
        _announce_what_is_silent()
        sys.addaudithook(_hook)
        _is_prepared = True
