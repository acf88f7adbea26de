"""What subprocess.Popen hands over, as a program and the ids that it runs with.

subprocess.Popen.__init__ calls _execute_child by position; its arguments get their names here, in one place.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from .._engine.job import Program, environment
from .._joining.identity import WantedIds
from .._kernel.nstypes import USER, mask, select
from .._target import likeness
from .._target.target import TARGET

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


#: The arguments of subprocess.Popen._execute_child; Python 3.11 added process_group at the end.
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
_CALLERS_ENDS = ("p2cwrite", "c2pread", "errread")
_PROGRAM = ("args", "executable", "preexec_fn", "close_fds", "pass_fds", "cwd", "env", "shell")
_PROCESS = ("restore_signals", "gid", "gids", "uid", "umask", "start_new_session")
_WINDOWS = ("startupinfo", "creationflags")
_KNOWN_ARGUMENTS = frozenset({*PIPES, *_PROGRAM, *_PROCESS, *_WINDOWS, "process_group"})
_OPTIONAL_ARGUMENTS = frozenset({"process_group"})


def execute_child_arguments(function: Any = subprocess.Popen._execute_child) -> tuple[str, ...]:  # type: ignore[attr-defined]
    """Return the names of ``function``'s arguments after self; TypeError if nsjoin does not know them."""
    code = function.__code__
    names: tuple[str, ...] = code.co_varnames[1 : code.co_argcount]
    unknown = set(names) ^ (_KNOWN_ARGUMENTS - (_OPTIONAL_ARGUMENTS - set(names)))
    if unknown:
        raise TypeError(
            f"nsjoin does not know subprocess.Popen._execute_child of Python {sys.version.split()[0]}: its arguments "
            f"differ in {', '.join(sorted(unknown))}; a newer nsjoin may"
        )
    return names


ARGUMENTS = execute_child_arguments()
#: (uid_t)-1: "unchanged" for setresuid(2), so it is no id
_NO_ID = (1 << 32) - 1
#: The arguments of subprocess.Popen after args that may be given by position.
_BY_POSITION = (
    *("bufsize", "executable", "stdin", "stdout", "stderr", "preexec_fn", "close_fds", "shell", "cwd", "env"),
    *("universal_newlines", "startupinfo", "creationflags", "restore_signals", "start_new_session", "pass_fds"),
)
#: The arguments that subprocess.Popen.__init__ turns into numbers, and the names of these.
MADE_NUMBERS = {"user": "uid", "group": "gid", "extra_groups": "gids"}
#: The arguments that subprocess.Popen.__init__ passes on unchanged, and their defaults.
_HANDED_ON: dict[str, Any] = {
    "executable": None,
    "close_fds": True,
    "pass_fds": (),
    "cwd": None,
    "env": None,
    "shell": False,
    "restore_signals": True,
    "start_new_session": False,
    "umask": -1,
    "process_group": None,
}


def bind(positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Add the arguments given by position to ``keywords``. TypeError."""
    if len(positional) > len(_BY_POSITION):
        raise TypeError(f"Popen takes {len(_BY_POSITION) + 1} arguments by position, not {len(positional) + 1}")
    for name, value in zip(_BY_POSITION, positional):
        if name in keywords:
            raise TypeError(f"Popen got multiple values for argument {name!r}")
        keywords[name] = value


def asked(args: Any, keywords: dict[str, Any]) -> dict[str, Any]:
    """Return what the caller asks for, by the names of _execute_child's arguments.

    A patched subprocess.Popen.__init__ may change it: sentry-sdk's replaces ``env=None`` by a copy of os.environ. So
    mutable arguments are copied as well.
    """
    kept = {name: keywords.get(name, default) for name, default in _HANDED_ON.items()}
    kept["args"] = args[:] if isinstance(args, (list, tuple)) else args
    if isinstance(kept["env"], Mapping):
        kept["env"] = dict(kept["env"].items())
    kept["close_fds"] = kept["close_fds"] or bool(kept["pass_fds"])
    kept["process_group"] = -1 if kept["process_group"] is None else kept["process_group"]
    kept.update({name: None for keyword, name in MADE_NUMBERS.items() if keywords.get(keyword) is None})
    return kept


class Command(NamedTuple):
    """The files to try, the arguments, and the name for subprocess's errors."""

    files: list[bytes]
    argv: list[bytes]
    name: Any


def command_of(args: Any, executable: Any, shell: bool, env: Any) -> Command:
    """Return the command that subprocess would run. PATH is the child's; the joiner searches the target's."""
    if isinstance(args, (str, bytes)):
        args = [args]
    elif isinstance(args, os.PathLike):
        if shell:
            raise TypeError("path-like args is not allowed when shell is true")
        args = [args]
    else:
        args = list(args)
    if shell:
        args = ["/bin/sh", "-c", *args]
        if executable:
            args[0] = executable
    if executable is None:
        executable = args[0]
    name = os.fsencode(executable)
    if os.path.dirname(name) or env is TARGET:
        files = [name]
    else:
        files = [os.path.join(os.fsencode(folder), name) for folder in os.get_exec_path(env)]
    return Command(files, [os.fsencode(arg) for arg in args], executable)


def _env_list(env: Any) -> list[bytes]:
    if env is None:
        return environment()
    if env is TARGET:
        return []
    entries = []
    for name, value in env.items():
        key = os.fsencode(name)
        if b"=" in key:
            raise ValueError("illegal environment variable name")
        entries.append(key + b"=" + os.fsencode(value))
    return entries


def new_types(unshare: Iterable[str]) -> int:
    """Return the CLONE_NEW* bits of ``unshare``. ValueError."""
    rows = select(unshare) if unshare != () else ()
    if USER in rows:
        raise ValueError(
            "the ids of a new user namespace must be mapped from outside: make it with create('user', uid_map=...), "
            "and name it among the targets"
        )
    return mask(rows)


def _pass_fds(fds: Iterable[Any]) -> tuple[int, ...]:
    numbers = tuple(sorted(set(map(int, fds))))
    if numbers and not 0 <= numbers[0] <= numbers[-1] < 1 << 31:
        raise ValueError("bad value(s) in fds_to_keep")
    return numbers


def _ids(number: int | None, what: str) -> tuple[int, int, int] | None:
    if number is None:
        return None
    if number >= _NO_ID:
        raise OverflowError(f"{what} id {number} is too large")
    return number, number, number


def _groups(numbers: Iterable[int] | None) -> list[int] | None:
    if numbers is None:
        return None
    groups = list(numbers)
    if any(not 0 <= number < _NO_ID for number in groups):
        raise ValueError("invalid group id")
    return groups


def _cwd(cwd: Any) -> bytes | None:
    """Return the path, None for what is opened instead (``Attributes.cwd``)."""
    return None if cwd is None or cwd is TARGET or likeness.is_descriptor(cwd) else os.fsencode(cwd)


def program_of(command: Command, given: dict[str, Any], *, new_group: bool) -> Program:
    """Return the program that subprocess's arguments ``given`` mean; ``new_group``: it leads a process group.

    OSError (EBADF) for a descriptor that is not open, or is one of the caller's ends of the pipes.
    """
    new_session = bool(given["start_new_session"])
    program = Program(
        command.files,
        command.argv,
        _env_list(given["env"]),
        stdio=(given["p2cread"], given["c2pwrite"], given["errwrite"]),
        close_fds=bool(given["close_fds"]),
        pass_fds=_pass_fds(given["pass_fds"]),
        cwd=_cwd(given["cwd"]),
        umask=given["umask"],
        restore_signals=bool(given["restore_signals"]),
        new_session=new_session,
        process_group=0 if new_group and not new_session else given.get("process_group", -1),
    )
    callers = [given[name] for name in _CALLERS_ENDS]
    for fd in (*program.stdio, *program.pass_fds):
        if fd >= 0 and fd in callers:  # stderr=STDOUT, and 1 was closed and became an end of a pipe
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if fd >= 0:
            os.get_inheritable(fd)  # EBADF now: a descriptor opened later could get that number
    return program


def ids_of(given: dict[str, Any], *, keep: bool) -> WantedIds:
    """Return the ids that subprocess's arguments ``given`` ask for. OverflowError, ValueError."""
    return WantedIds(_ids(given["uid"], "user"), _ids(given["gid"], "group"), _groups(given["gids"]), keep)
