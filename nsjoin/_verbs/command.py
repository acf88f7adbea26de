"""TODO."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from .._engine.job import Ids, Job, environment
from .._kernel.nstypes import USER, mask, select
from .._target import likeness
from .._target.target import TARGET
from .spawn import _MADE_NUMBERS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


# --- what subprocess.Popen hands over -----------------------------------------------------------------------

#: The arguments of subprocess.Popen._execute_child by version: 3.11 added process_group at the end. They come by
#: position, so they are bound by name here, once.
_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
_OUR_ENDS = ("p2cwrite", "c2pread", "errread")
_PROGRAM = ("args", "executable", "preexec_fn", "close_fds", "pass_fds", "cwd", "env", "shell")
_PROCESS = ("restore_signals", "gid", "gids", "uid", "umask", "start_new_session")
_WINDOWS = ("startupinfo", "creationflags")
_KNOWN_ARGUMENTS = frozenset({*_PIPES, *_PROGRAM, *_PROCESS, *_WINDOWS, "process_group"})
_OPTIONAL_ARGUMENTS = frozenset({"process_group"})


def execute_child_arguments(function: Any = subprocess.Popen._execute_child) -> tuple[str, ...]:  # type: ignore[attr-defined]
    """The names of ``function``'s arguments after self, or TypeError if they are not those that we know how to obey."""
    code = function.__code__
    names: tuple[str, ...] = code.co_varnames[1 : code.co_argcount]
    unknown = set(names) ^ (_KNOWN_ARGUMENTS - (_OPTIONAL_ARGUMENTS - set(names)))
    if unknown:
        raise TypeError(
            f"nsjoin does not know subprocess.Popen._execute_child of Python {sys.version.split()[0]}: its arguments "
            f"differ in {', '.join(sorted(unknown))}; a newer nsjoin may"
        )
    return names


_ARGUMENTS = execute_child_arguments()
#: (uid_t)-1: what setresuid(2) takes for "unchanged", so it is nobody's id
_NO_ID = (1 << 32) - 1
#: The arguments of subprocess.Popen behind args that may be given by position.
_BY_POSITION = (
    *("bufsize", "executable", "stdin", "stdout", "stderr", "preexec_fn", "close_fds", "shell", "cwd", "env"),
    *("universal_newlines", "startupinfo", "creationflags", "restore_signals", "start_new_session", "pass_fds"),
)
#: What subprocess.Popen.__init__ hands to _execute_child as it is, and what it is by default.
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


def _bind(positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Add what was given by position to ``keywords``. TypeError."""
    if len(positional) > len(_BY_POSITION):
        raise TypeError(f"Popen takes {len(_BY_POSITION) + 1} arguments by position, not {len(positional) + 1}")
    for name, value in zip(_BY_POSITION, positional):
        if name in keywords:
            raise TypeError(f"Popen got multiple values for argument {name!r}")
        keywords[name] = value


def _asked(args: Any, keywords: dict[str, Any]) -> dict[str, Any]:
    """What the caller asks for, by the names of _execute_child's arguments.

    Kept here because subprocess.Popen.__init__ may be somebody else's by now: sentry-sdk's patch makes a copy of
    os.environ where env is None. So it is a copy of what can be changed on the way, too.
    """
    asked = {name: keywords.get(name, default) for name, default in _HANDED_ON.items()}
    asked["args"] = args[:] if isinstance(args, (list, tuple)) else args
    if isinstance(asked["env"], Mapping):
        asked["env"] = dict(asked["env"].items())
    asked["close_fds"] = asked["close_fds"] or bool(asked["pass_fds"])
    asked["process_group"] = -1 if asked["process_group"] is None else asked["process_group"]
    asked.update({name: None for keyword, name in _MADE_NUMBERS.items() if keywords.get(keyword) is None})
    return asked


class _Command(NamedTuple):
    files: list[bytes]
    argv: list[bytes]
    name: Any


def _command(args: Any, executable: Any, shell: bool, env: Any) -> _Command:
    """args, executable and shell as subprocess understands them, and the files to try: PATH is the child's.

    With the environment of the target, it is the joiner that has its PATH.
    """
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
    return _Command(files, [os.fsencode(arg) for arg in args], executable)


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


def _new_types(unshare: Iterable[str]) -> int:
    rows = select(unshare) if unshare != () else ()
    if USER in rows:
        raise ValueError(
            "a new user namespace needs somebody outside who maps its ids: make it with create('user', uid_map=...), "
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
    """None too for what is opened instead: ``Attributes.cwd``."""
    return None if cwd is None or cwd is TARGET or likeness.is_descriptor(cwd) else os.fsencode(cwd)


def _job(command: _Command, given: dict[str, Any]) -> Job:
    return Job(
        command.files,
        command.argv,
        _env_list(given["env"]),
        stdio=(given["p2cread"], given["c2pwrite"], given["errwrite"]),
        close_fds=bool(given["close_fds"]),
        pass_fds=_pass_fds(given["pass_fds"]),
        cwd=_cwd(given["cwd"]),
        umask=given["umask"],
        ids=Ids(_ids(given["uid"], "user"), _ids(given["gid"], "group"), _groups(given["gids"])),
        restore_signals=bool(given["restore_signals"]),
        new_session=bool(given["start_new_session"]),
        process_group=given.get("process_group", -1),
    )
