"""``Popen``, ``spawn_in`` and ``run_in``: subprocess, inside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from ._launch import Expired, Ids, Job, environment
from ._nstype import select
from ._start import start
from ._target import check_target

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ._target import TargetLike

# --- what subprocess.Popen hands over -----------------------------------------------------------------------

#: The arguments of subprocess.Popen._execute_child by version: 3.11 added process_group at the end. They come by
#: position, so they are bound by name here, once.
_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
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
_PREEXEC_FN_POSITION = 5  # among the positional arguments of subprocess.Popen after args


class _Command(NamedTuple):
    files: list[bytes]
    argv: list[bytes]
    name: Any


def _command(args: Any, executable: Any, shell: bool, env: Mapping[Any, Any] | None) -> _Command:
    """args, executable and shell as subprocess understands them, and the files to try: PATH is the child's."""
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
    if os.path.dirname(name):
        files = [name]
    else:
        files = [os.path.join(os.fsencode(folder), name) for folder in os.get_exec_path(env)]
    return _Command(files, [os.fsencode(arg) for arg in args], executable)


def _env_list(env: Mapping[Any, Any] | None) -> list[bytes]:
    if env is None:
        return environment()
    entries = []
    for name, value in env.items():
        key = os.fsencode(name)
        if b"=" in key:
            raise ValueError("illegal environment variable name")
        entries.append(key + b"=" + os.fsencode(value))
    return entries


# --- the public names ---------------------------------------------------------------------------------------


class Popen(subprocess.Popen):  # type: ignore[type-arg]
    """subprocess.Popen for a program inside the namespaces of ``target``.

    Takes the arguments of subprocess.Popen, except ``preexec_fn``, and by name:

    ``target``: a pid; an object with one; a ``Target``; a ``Namespace``; the path of a namespace file; or an iterable
    of the last two. ``namespaces``: the types to join, None for all that differ from this thread's. ``fork=False`` is
    ``nsenter --no-fork``: the program itself stays outside the PID namespace, only its children are born inside.

    The process is a direct child of ours, ``pid`` is its number as we see it, ``returncode`` its own. With mnt joined,
    its root is the target's, ``cwd`` and ``args[0]`` are looked up there, and ``cwd=None`` is ``/``. With user joined
    it runs as uid and gid 0 of that namespace where those are mapped, without supplementary groups where the kernel
    allows dropping them, unless ``user``, ``group`` or ``extra_groups`` say otherwise.

    Wait for it: as long as it is a zombie, a PID namespace whose init has ended does not go away (pid_namespaces(7)).

    Raises what subprocess.Popen raises for exec, cwd and descriptors; JoinError (JoinPermissionError) if a namespace
    cannot be joined, TargetGoneError if the target has ended, TypeError and ValueError for bad arguments. Nothing is
    left behind then. setns(2), clone(2); Linux 4.11, race-free from 5.3, one atomic join from 5.8.
    """

    def __init__(
        self,
        args: Any,
        *positional: Any,
        target: TargetLike,
        namespaces: Iterable[str] | None = None,
        fork: bool = True,
        _deadline: float | None = None,
        **keywords: Any,
    ) -> None:
        preexec_fn = positional[_PREEXEC_FN_POSITION - 1] if len(positional) >= _PREEXEC_FN_POSITION else None
        if preexec_fn is not None or keywords.get("preexec_fn") is not None:
            raise TypeError(
                "preexec_fn is not supported: between here and the program no Python runs, since it would run inside "
                "the target; use the other arguments, or call_in"
            )
        self._checked_target = check_target(target)
        self._wanted = None if namespaces is None else select(namespaces)
        self._fork = fork
        self._deadline = _deadline
        if not isinstance(args, (str, bytes, os.PathLike)):
            args = list(args)
            if not args:
                raise ValueError("args is empty")
        super().__init__(args, *positional, **keywords)

    def _execute_child(self, *arguments: Any) -> None:
        """Overrides subprocess.Popen: everything up to a running program."""
        given = dict(zip(_ARGUMENTS, arguments))
        command = _command(given["args"], given["executable"], given["shell"], given["env"])
        sys.audit("subprocess.Popen", command.name, given["args"], given["cwd"], given["env"])
        job = _job(command, given)
        self.pid = start(
            job, self._checked_target, self._wanted, self._fork, self._deadline, command.name, given["cwd"]
        )
        self._child_created = True
        self._close_pipe_fds(  # type: ignore[attr-defined]
            *(given[name] for name in _PIPES)
        )


def _job(command: _Command, given: dict[str, Any]) -> Job:
    return Job(
        command.files,
        command.argv,
        _env_list(given["env"]),
        stdio=(given["p2cread"], given["c2pwrite"], given["errwrite"]),
        close_fds=bool(given["close_fds"]),
        pass_fds=tuple(given["pass_fds"]),
        cwd=None if given["cwd"] is None else os.fsencode(given["cwd"]),
        umask=given["umask"],
        ids=Ids(given["uid"], given["gid"], given["gids"]),
        restore_signals=bool(given["restore_signals"]),
        new_session=bool(given["start_new_session"]),
        process_group=given.get("process_group", -1),
    )


def spawn_in(
    target: TargetLike, args: Any, *, namespaces: Iterable[str] | None = None, fork: bool = True, **popen_kwargs: Any
) -> Popen:
    """Start a program inside the namespaces of ``target`` and return its ``Popen``: all is said there."""
    return Popen(args, target=target, namespaces=namespaces, fork=fork, **popen_kwargs)


def run_in(
    target: TargetLike,
    args: Any,
    *,
    namespaces: Iterable[str] | None = None,
    input: Any = None,  # noqa: A002 - as in subprocess.run
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **popen_kwargs: Any,
) -> subprocess.CompletedProcess[Any]:
    """subprocess.run inside the namespaces of ``target``.

    ``timeout`` (seconds) counts from the call and ends the wait for exec too: something inside may hold the program
    up before it. When it expires the program is killed and reaped. subprocess.TimeoutExpired,
    subprocess.CalledProcessError (``check=True``), and what ``Popen`` raises.
    """
    if input is not None:
        if popen_kwargs.get("stdin") is not None:
            raise ValueError("stdin and input arguments may not both be used.")
        popen_kwargs["stdin"] = subprocess.PIPE
    if capture_output:
        if popen_kwargs.get("stdout") is not None or popen_kwargs.get("stderr") is not None:
            raise ValueError("stdout and stderr arguments may not be used with capture_output.")
        popen_kwargs["stdout"] = popen_kwargs["stderr"] = subprocess.PIPE
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        process = Popen(args, target=target, namespaces=namespaces, _deadline=deadline, **popen_kwargs)
    except Expired:
        raise subprocess.TimeoutExpired(args, timeout or 0.0) from None
    with process:
        try:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            stdout, stderr = process.communicate(input, timeout=left)
        except subprocess.TimeoutExpired as expired:
            process.kill()
            process.wait()
            expired.timeout = timeout or 0.0
            raise
        except BaseException:
            process.kill()
            raise
        returncode = process.poll()
    assert returncode is not None
    if check and returncode:
        raise subprocess.CalledProcessError(returncode, process.args, output=stdout, stderr=stderr)
    return subprocess.CompletedProcess(process.args, returncode, stdout, stderr)
