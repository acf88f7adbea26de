"""``Popen``, ``spawn_in`` and ``run_in``: subprocess, inside. A job for the joiner is made here, and errors are told."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _identity, _ownership, _plan, _reason, _shim
from ._launch import At, Expired, Failed, Ids, Job, environment, launch
from ._namespace import Namespace
from ._nstype import BY_NAME, NSTYPES, mask, select
from ._process import own_inodes
from ._target import OpenTarget, check_target
from .exceptions import JoinError, NamespaceError, error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ._nstype import NsType
    from ._target import Target, TargetLike

# --- what subprocess.Popen hands over ----------------------------------------------------------------------------------

#: The arguments of subprocess.Popen._execute_child by version: 3.11 added process_group at the end. They come by
#: position, so they are bound by name here, once.
_KNOWN_ARGUMENTS = frozenset(
    "args executable preexec_fn close_fds pass_fds cwd env startupinfo creationflags shell p2cread p2cwrite c2pread "
    "c2pwrite errread errwrite restore_signals gid gids uid umask start_new_session process_group".split()
)
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


# --- what to join ------------------------------------------------------------------------------------------------------

#: Answers of setns(2) with a pidfd after which descriptors may still do: an old kernel (5.8 has it), a seccomp filter,
#: an owner who has to be entered first. They also tell which namespace it was.
_TRY_DESCRIPTORS = frozenset({errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EBADF})


class _Start:
    """One start: a job, a target, and what of it is to be joined."""

    def __init__(self, job: Job, target: OpenTarget, wanted: tuple[NsType, ...] | None, fork: bool) -> None:
        self.job = job
        self.target = target
        self.fork = fork
        self.asked = wanted
        self.rows: tuple[NsType, ...] = ()
        self.labels: list[str] = []

    def run(self, deadline: float | None) -> int:
        process = self.target.process
        with ExitStack() as stack:
            if process is None:
                namespaces = self._chosen(self.target.namespaces)
                self.rows = tuple(BY_NAME[namespace.nstype] for namespace in namespaces)
                self._complete(stack)
                return self._by_descriptors(namespaces, deadline, stack)
            self.rows = self._differing(process)
            self._complete(stack)
            if not self.rows or process.pidfd >= 0:
                try:
                    return self._by_pidfd(process, deadline)
                except Failed as failed:
                    if failed.at != At.JOIN or failed.errno not in _TRY_DESCRIPTORS:
                        raise
            opened = [stack.enter_context(process.namespace(row.name)) for row in self.rows]
            return self._by_descriptors(opened, deadline, stack)

    def _chosen(self, namespaces: Sequence[Namespace]) -> list[Namespace]:
        have = {namespace.nstype for namespace in namespaces}
        for row in self.asked or ():
            if row.name not in have:
                raise ValueError(f"the target has no {row.name} namespace, only {', '.join(sorted(have)) or 'none'}")
        rows = [row for row in NSTYPES if row.name in have and (self.asked is None or row in self.asked)]
        own = dict(zip(rows, own_inodes(tuple(rows))))
        by_type = {namespace.nstype: namespace for namespace in namespaces}
        return [by_type[row.name] for row in rows if by_type[row.name].id.ino != own[row]]

    def _differing(self, process: Target) -> tuple[NsType, ...]:
        """The types to join: those in which the process is elsewhere than this thread."""
        rows = NSTYPES if self.asked is None else self.asked
        theirs = process.inodes(rows)
        if self.asked is not None and 0 in theirs:
            row = rows[theirs.index(0)]
            raise JoinError(
                errno.EINVAL, "setns", nstype=row.name, target=process.words(), reason=_reason.of_missing_type(row)
            )
        return tuple(row for row, inode, own in zip(rows, theirs, own_inodes(rows)) if inode and inode != own)

    def _complete(self, stack: ExitStack) -> None:
        """What follows from the types that are joined: a fork, the root, who the program runs as."""
        names = {row.name for row in self.rows}
        root = -1
        if "mnt" in names and self.target.process is not None:
            root = self.target.process.open_root()
            stack.callback(os.close, root)
        ids = _identity.inside(self.job.ids, self.target.process) if "user" in names else self.job.ids
        joins_pid = "pid" in names
        self.job = self.job._replace(fork=self.fork and joins_pid, at_home=joins_pid, root=root, ids=ids)

    def _by_pidfd(self, process: Target, deadline: float | None) -> int:
        steps = [_plan.Step(process.pidfd, mask(self.rows))] if self.rows else []
        self.labels = ["+".join(row.name for row in self.rows)]
        return _launch(self.job._replace(joins=steps), deadline)

    def _by_descriptors(self, namespaces: Sequence[Namespace], deadline: float | None, stack: ExitStack) -> int:
        steps = _plan.order(_ownership.wanted(namespaces, stack), _ownership.caller()) if namespaces else []
        flags = {row.flag: row.name for row in NSTYPES}
        self.labels = [flags[step.nstypes] for step in steps]
        try:
            return _launch(self.job._replace(joins=steps), deadline)
        except Failed as failed:
            if failed.at != At.JOIN:
                raise
            label = self.labels[failed.index]
            culprit = next(namespace for namespace in namespaces if namespace.nstype == label)
            reason = _reason.of_setns(failed.errno, culprit, with_user="user" in self.labels)
            raise self._join_error(failed, "setns", label, reason) from None

    # --- errors

    def explain(self, failed: Failed, cwd: Any, name: Any) -> BaseException:
        """What to raise for ``failed``: subprocess's own exception for its own steps, JoinError for ours."""
        process = self.target.process
        if failed.errno == 0:
            return self._join_error(failed, failed.at.name.lower(), None, "the new process was killed before exec")
        if failed.at == At.JOIN:
            gone = process.gone_reason() if process is not None else None
            if gone:
                failed.errno = errno.ESRCH
            return self._join_error(failed, "setns", self.labels[failed.index], gone)
        if failed.at == At.ROOT:
            return self._join_error(failed, "chroot", "mnt", "needs CAP_SYS_CHROOT")
        if failed.at == At.CLONE and failed.errno == errno.ENOMEM:
            return self._join_error(failed, "clone", "pid", _reason.DEAD_PID_NAMESPACE)
        if failed.at == At.EXEC:
            return OSError(failed.errno, os.strerror(failed.errno), name)
        if failed.at == At.CWD:
            return OSError(failed.errno, os.strerror(failed.errno), cwd)
        return OSError(failed.errno, os.strerror(failed.errno))

    def _join_error(self, failed: Failed, step: str, nstype: str | None, reason: str | None) -> NamespaceError:
        number = failed.errno or errno.ECHILD
        return error(JoinError, number, step, nstype=nstype, target=self.target.words(), reason=reason)


def _launch(job: Job, deadline: float | None) -> int:
    try:
        return launch(job, deadline)
    except Failed as failed:
        if failed.at != At.LAUNCH or failed.errno != errno.EXDEV:
            raise
    with _home():
        return launch(job, deadline)


@contextmanager
def _home() -> Iterator[None]:
    """Holds this thread's pid_for_children at its own PID namespace: it is elsewhere inside ``enter(pid, "pid")``."""
    flag = BY_NAME["pid"].flag
    with Namespace.current("pid") as own, Namespace.current("pid", for_children=True) as away:
        _shim.setns(own.fileno(), flag)
        try:
            yield
        finally:
            _shim.setns(away.fileno(), flag)


# --- the public names --------------------------------------------------------------------------------------------------


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
        with OpenTarget(self._checked_target) as target:
            start = _Start(job, target, self._wanted, self._fork)
            try:
                self.pid = start.run(self._deadline)
            except Failed as failed:
                raise start.explain(failed, given["cwd"], command.name) from None
        self._child_created = True
        self._close_pipe_fds(  # type: ignore[attr-defined]
            *(given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"))
        )


def _job(command: _Command, given: dict[str, Any]) -> Job:
    return Job(
        files=command.files,
        argv=command.argv,
        env=_env_list(given["env"]),
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
    input: Any = None,
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
