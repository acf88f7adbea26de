"""While a thread is in a foreign mount namespace, no code of that place is to run in this process, nor as a program of
ours.

An import would execute the target's file with our rights; so would a codec, which Python imports by need, a library
that is loaded by its name, and a program that is started without the joiner. What Python and the C library need sooner
or later is therefore loaded before the join (_warm.py), and what is left is refused.
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
from .._kernel.procfs import _foreign, _has_gone_away, _own_mount, _process_allows, _thread, is_away, settle_process
from ..exceptions import NamespaceError, error
from . import warm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any


_lock = threading.Lock()
_is_prepared = False


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
            f"{code.co_filename} may be a file of the foreign mount namespace that this thread is in, and would run "
            "with our rights; run it before, or say allow_imports=True",
            path=code.co_filename,
        )


def _library(event: str, args: tuple[Any, ...]) -> None:
    name = args[-1]
    if (
        name is not None and _is_refused(event) and not (event == "ctypes.dlopen" and _is_loaded(name))
    ):  # None: the program itself
        what = f"the library {os.fsdecode(name)!r} would be the target's, and run with our rights; load it before"
        raise _refusal(event, what)


def _program(event: str, _args: tuple[Any, ...]) -> None:
    if not _is_refused(event):
        return
    what = (
        "the program would be the target's, and run with our rights and by a process of ours that the target can look "
        "into; start it with spawn_in or run_in"
    )
    raise _refusal(event, what)


def _is_refused(event: str) -> bool:
    return is_guarded() and getattr(_thread, "own", None) != event


def _refusal(step: str, what: str) -> NamespaceError:
    """An OSError, as callers of such functions expect where a program or library is not there."""
    reason = f"{what}, or say allow_imports=True"
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
#: twice: pty.spawn's child would go up the frames of our callers with the exception.
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
        _thread.own = self._event

    def __exit__(self, *_: object) -> None:
        _thread.own = None


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
    allowed = getattr(_thread, "allowed", None)
    if allowed is None:
        allowed = _process_allows
    return is_away() if allowed is None else not allowed


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
    """This thread has left the mount namespace ``left`` (0: unknown). Returns what ``leave_thread`` needs."""
    before = getattr(_thread, "allowed", None)
    inode, identity = _own_mount()
    if inode and inode == left:  # it was there already, at home or not
        return before, None
    _thread.allowed = allow_imports
    if inode and not allow_imports:  # 0: nobody tells, and every thread would be taken for one inside
        _foreign.add(identity)
    return before, _Pin()


def enter_process(*, allow_imports: bool) -> None:
    """This process, which has one thread, has left its mount namespace for good."""
    settle_process(allow_imports)
    warm.time_zone.pin()


def leave_thread(before: Any) -> None:
    """This thread is back, or one level further out."""
    _thread.allowed, pin = before
    if pin is not None:
        pin.release()


def prepare() -> None:
    """Before a mount namespace is joined: keep our own /proc, and load what the C library and Python load lazily; the
    first time, stand guard. JoinError where something that they will load is not here."""
    procfs.keep(_has_gone_away)
    if _is_prepared and is_away():
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
