"""``Popen`` and ``spawn_in``: subprocess.Popen, inside."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, AnyStr, overload

from .._engine import guard
from .._engine.children import _unreaped, end, wait
from .._engine.launch import child_has_been_reaped
from .._joining.start import start
from .._kernel.nstypes import MNT, PID, USER, select
from .._target import likeness
from .._target.accounts import check_own_names, numbers
from .._target.namespace import Namespace
from .._target.netns_etc import WithEtc
from .._target.target import TARGET, OpenTarget, check_target
from .command import _ARGUMENTS, _OUR_ENDS, _PIPES, _asked, _bind, _command, _job, _new_types

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from typing_extensions import Literal, Unpack

    from .._engine.job import Job, Launch
    from .._kernel.nstypes import NsType
    from .._target.target import Openable, TargetLike
    from .keywords import Command, SpawnKeywords

#: What it makes numbers of.
_MADE_NUMBERS = {"user": "uid", "group": "gid", "extra_groups": "gids"}
_PREEXEC_FN_IS_REFUSED = (
    "preexec_fn is not supported: between here and the program no Python runs, since it would run inside the target; "
    "use the other arguments, or call_in"
)


# --- the public names ---------------------------------------------------------------------------------------


class Popen(subprocess.Popen[AnyStr]):
    """subprocess.Popen for a program inside the namespaces of ``target``.

    Takes the arguments of subprocess.Popen, except ``preexec_fn``, and by name:

    ``target``: a pid; an object with one; a ``Target``; a ``Namespace``; the path of a namespace file; or an iterable
    of the last two. ``namespaces``: the types to join, None for all that differ from this thread's. ``fork=False`` is
    ``nsenter --no-fork``: the program itself stays outside the PID namespace, only its children are born inside.

    What is asked for here counts, whatever a patch of subprocess.Popen.__init__ (a tracer's) makes of it.

    The process is a direct child of ours, ``pid`` is its number as we see it, ``returncode`` its own. With mnt joined,
    its root is the target's, ``cwd`` and ``args[0]`` are looked up there, and ``cwd=None`` is ``/``. With user joined
    it runs as uid and gid 0 of that namespace where those are mapped, without supplementary groups where the kernel
    allows dropping them, unless ``user``, ``group`` or ``extra_groups`` say otherwise; ``preserve_credentials=True``
    leaves all of them as they are, with the capabilities that execve(2) leaves to such a user there.

    ``netns_etc=True`` is what ``ip netns exec`` does besides: in a mount namespace that is a copy of ours, /sys shows
    the devices of the network namespace, and the files of /etc/netns/NAME lie over those of /etc. NAME is what
    ``ip netns`` calls it; without one NamespaceNotFoundError. The working directory stays the same. Of a process,
    ``namespaces`` has to name ``"net"``. A file that cannot be bound is a RuntimeWarning.

    ``root`` is another root directory: TARGET for the target's, also without mnt, or a directory of the caller's by its
    path or an open descriptor; it is opened before anything is joined, and needs CAP_SYS_CHROOT. ``cwd`` may be a
    descriptor too. A working directory that is not below the root is refused (JoinError, EXDEV).

    ``unshare``: types of which the program gets new namespaces, after the joins (unshare(2)); not ``"user"``, and
    ``"pid"`` instead of joining it. Mounts made in a new mnt do not propagate.

    ``like_target=True`` is all of the following from the target, where nothing else is said, with a new session keyring
    (keyrings(7)); ``TARGET`` is each alone. It is read before anything is joined, and the target has to be a process.
    What cannot be had is a JoinError. Resource limits, umask and seccomp filters are never taken over.

    - ``env``, ``cwd``, ``user``, ``group``, ``extra_groups``: also as subprocess takes them. ``TARGET`` ids are the
      effective ones at exec; those of a user namespace are translated through its maps. The target's working directory
      may have been deleted.
    - ``cgroup``: or its path as in /proc/PID/cgroup, in every hierarchy that has it (cgroups(7)); of version 2 the
      program is born in it where pid is joined too (Linux 5.7). A target's hierarchy of version 1 that has only a name
      is left out where it is not mounted here. One that is frozen, as a paused container's, is a JoinError (EBUSY).
    - ``capabilities``: or names such as ``{"net_admin"}``: these in every set and no others, so that they outlast exec
      without root too. Bounding, permitted, effective, inheritable and ambient sets; root gets the bounding set at exec
      (capabilities(7)). Those of a target count in its user namespace, which has to be joined then.
    - ``no_new_privs``: or a bool (PR_SET_NO_NEW_PRIVS(2const); of a target from Linux 4.10).
    - ``oom_score_adj``: or -1000 to 1000 (proc_pid_oom_score_adj(5)).
    - ``lsm_label``: or the profile or context for exec, of AppArmor or SELinux (proc_pid_attr(5)).

    Wait for it: as long as it is a zombie, a PID namespace whose init has ended does not go away (pid_namespaces(7)).

    Raises what subprocess.Popen raises for exec, cwd and descriptors; JoinError (JoinPermissionError) if a namespace
    cannot be joined, TargetGoneError if the target has ended, TypeError and ValueError for bad arguments. Nothing is
    left behind then. setns(2), clone(2); Linux 4.11, race-free from 5.3, one atomic join from 5.8.
    """

    _checked_target: Openable
    _choice: likeness.Choice | None
    _args: Any
    _asked: dict[str, Any]
    _unshare: int
    _wanted: tuple[NsType, ...] | None
    _fork: bool
    _preserve_credentials: bool
    _netns_etc: bool
    _deadline: float | None
    _new_group: bool
    _status_is_lost = False

    if TYPE_CHECKING:

        @overload
        def __init__(
            self: Popen[str],
            args: Command,
            *,
            target: TargetLike,
            text: Literal[True],
            encoding: str | None = None,
            errors: str | None = None,
            universal_newlines: bool | None = None,
            **keywords: Unpack[SpawnKeywords],
        ) -> None: ...
        @overload
        def __init__(
            self: Popen[str],
            args: Command,
            *,
            target: TargetLike,
            text: bool | None = None,
            encoding: str,
            errors: str | None = None,
            universal_newlines: bool | None = None,
            **keywords: Unpack[SpawnKeywords],
        ) -> None: ...
        @overload
        def __init__(
            self: Popen[str],
            args: Command,
            *,
            target: TargetLike,
            text: bool | None = None,
            encoding: str | None = None,
            errors: str,
            universal_newlines: bool | None = None,
            **keywords: Unpack[SpawnKeywords],
        ) -> None: ...
        @overload
        def __init__(
            self: Popen[str],
            args: Command,
            *,
            target: TargetLike,
            text: bool | None = None,
            encoding: str | None = None,
            errors: str | None = None,
            universal_newlines: Literal[True],
            **keywords: Unpack[SpawnKeywords],
        ) -> None: ...
        @overload
        def __init__(
            self: Popen[bytes],
            args: Command,
            *,
            target: TargetLike,
            text: Literal[False] | None = None,
            encoding: None = None,
            errors: None = None,
            universal_newlines: Literal[False] | None = None,
            **keywords: Unpack[SpawnKeywords],
        ) -> None: ...
        @overload
        def __init__(
            self: Popen[Any],
            args: Command,
            *positional: Any,
            target: TargetLike,
            text: bool | None = None,
            encoding: str | None = None,
            errors: str | None = None,
            universal_newlines: bool | None = None,
            _deadline: float | None = None,
            _new_group: bool = False,
            **keywords: Unpack[SpawnKeywords],
        ) -> None: ...

    def __init__(
        self,
        args: Any,
        *positional: Any,
        target: TargetLike,
        namespaces: Iterable[str] | None = None,
        netns_etc: bool = False,
        fork: bool = True,
        unshare: Iterable[str] = (),
        like_target: bool = False,
        preserve_credentials: bool = False,
        _deadline: float | None = None,
        _new_group: bool = False,
        **keywords: Any,
    ) -> None:
        _bind(positional, keywords)
        if keywords.get("preexec_fn") is not None:
            raise TypeError(_PREEXEC_FN_IS_REFUSED)
        self._choice = likeness.choose(keywords, like_target=like_target)
        self._checked_target = checked = check_target(target)
        self._wanted = None if namespaces is None else select(namespaces)
        self._netns_etc = netns_etc
        if netns_etc:
            self._checked_target = with_etc = WithEtc(checked, self._wanted)
            self._wanted = with_etc.wanted
        self._fork = fork
        self._preserve_credentials = preserve_credentials
        self._unshare = _new_types(unshare)
        if self._unshare & PID.flag and self._wanted is not None and PID in self._wanted:
            raise ValueError("the kernel makes no new PID namespace within one that is joined: name pid only once")
        self._deadline = _deadline
        self._new_group = _new_group
        self._init_subprocess(args, keywords)

    def _init_subprocess(self, args: Any, keywords: dict[str, Any]) -> None:
        """subprocess.Popen.__init__, or whatever has been put in its place."""
        if not isinstance(args, (list, tuple, str, bytes, os.PathLike)):
            args = list(args)  # an iterator can be looked into only once
        if isinstance(args, (list, tuple)) and not args:
            raise ValueError("args is empty")
        self._args, self._asked = args, _asked(args, keywords)
        for name in ("env", "cwd"):
            if keywords.get(name) is TARGET:
                keywords[name] = None  # nobody on the way has to know what TARGET is
        if isinstance(keywords.get("env"), Mapping):
            keywords["env"] = dict(keywords["env"].items())  # ddtrace adds to it: not to the caller's own
        if not any(keywords.get(name) is not None for name in _MADE_NUMBERS):
            super().__init__(args, **keywords)
            return
        if not isinstance(keywords.get("extra_groups"), (str, type(None))):
            keywords["extra_groups"] = list(keywords["extra_groups"])  # it is looked into twice
        with _named_ids(self, keywords):
            super().__init__(args, **keywords)

    def _execute_child(self, *arguments: Any) -> None:
        """Overrides subprocess.Popen: everything up to a running program."""
        given = dict(zip(_ARGUMENTS, arguments))
        given.update(self._asked)
        self.args = self._args
        if self._netns_etc and given["cwd"] is None:
            given["cwd"] = os.getcwd()  # that mount namespace is a copy of ours
        choice = self._choose(given)
        command = _command(given["args"], given["executable"], given["shell"], given["env"])
        guard.announce_program(command.name, given["args"], given["cwd"], given["env"])
        job: Job = _job(command, given)
        ours = [given[name] for name in _OUR_ENDS]
        for fd in (*job.stdio, *job.pass_fds):
            if fd >= 0 and fd in ours:  # stderr=STDOUT where 1 was closed, and has become an end of a pipe
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            if fd >= 0:
                os.get_inheritable(fd)  # EBADF now: a descriptor that we open could get that number
        job.unshare = self._unshare
        job.ids = job.ids._replace(keep=self._preserve_credentials)
        if self._new_group and not job.new_session:
            job.process_group = 0
        starting = start(job, self._checked_target, self._wanted, self._fork, command.name, given["cwd"], choice)
        try:
            self._finish_start(starting, [given[name] for name in _PIPES])
        except BaseException:
            end(job.pid, leads_group=job.leads_group)
            self._child_created = False
            raise

    def _choose(self, given: dict[str, Any]) -> likeness.Choice | None:
        """env and cwd of the target too."""
        choice = self._choice
        whole = choice is not None and choice.whole
        if whole:
            given.update({name: TARGET for name in ("env", "cwd") if given[name] is None})
        env, cwd = given["env"] is TARGET, given["cwd"]
        is_open = cwd is TARGET or likeness.is_descriptor(cwd)
        if not env and not is_open:
            return choice
        return (choice or likeness.Choice())._replace(env=env, cwd=cwd if is_open else None)

    def _finish_start(self, starting: Launch, pipes: list[int]) -> None:
        """Wait until the program runs. aio overrides this: it waits in its own way."""
        self._started(wait(starting, self._deadline), pipes)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        """Overrides subprocess.Popen, to know when it has to guess: ``returncode`` is 0 then, as with subprocess."""
        try:
            return os.waitpid(self.pid, wait_flags)
        except ChildProcessError:
            self._status_is_lost = True
            return self.pid, 0

    def _handle_exitstatus(self, *arguments: Any, _unreaped: dict[int, bool] = _unreaped) -> None:
        """Overrides subprocess.Popen: poll, wait and ``__del__`` come here, that also at the interpreter's end, when
        the names of this module may be gone."""
        super()._handle_exitstatus(*arguments)  # type: ignore[misc]
        if _unreaped:
            child_has_been_reaped()

    def _started(self, pid: int, pipes: list[int]) -> None:
        self.pid = pid
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


@contextmanager
def _named_ids(popen: Popen[Any], keywords: dict[str, Any]) -> Iterator[None]:
    """Names of users and groups become the numbers that they have in the target, where its mount namespace is joined.

    The process is pinned for as long as the start takes, so that names and namespaces are the same one's.
    """
    names = (keywords.get("user"), keywords.get("group"), *(keywords.get("extra_groups") or ()))
    target = popen._checked_target
    if not any(isinstance(name, str) for name in names) or isinstance(keywords.get("extra_groups"), str):
        check_own_names(keywords)
        yield  # an extra_groups that is a str is an error, which subprocess raises
        return
    if popen._netns_etc or not (popen._wanted is None or MNT in popen._wanted):
        check_own_names(keywords)
        yield
        return
    if isinstance(target, tuple):
        if any(not isinstance(member, Namespace) or member.nstype == "mnt" for member in target):
            raise ValueError("a user or group can be named only where the target is a process; give its number")
        check_own_names(keywords)
        yield
        return
    with OpenTarget(target) as opened:
        assert opened.process is not None
        popen._checked_target = opened.process
        if not opened.process.shares(MNT):
            joins_user = popen._wanted is None or USER in popen._wanted
            keywords.update(numbers(opened.process, keywords, joins_user=joins_user))
        else:
            check_own_names(keywords)
        yield


@overload
def spawn_in(
    target: TargetLike,
    args: Command,
    *,
    text: Literal[True],
    encoding: str | None = None,
    errors: str | None = None,
    universal_newlines: bool | None = None,
    **popen_kwargs: Unpack[SpawnKeywords],
) -> Popen[str]: ...
@overload
def spawn_in(
    target: TargetLike,
    args: Command,
    *,
    text: bool | None = None,
    encoding: str,
    errors: str | None = None,
    universal_newlines: bool | None = None,
    **popen_kwargs: Unpack[SpawnKeywords],
) -> Popen[str]: ...
@overload
def spawn_in(
    target: TargetLike,
    args: Command,
    *,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str,
    universal_newlines: bool | None = None,
    **popen_kwargs: Unpack[SpawnKeywords],
) -> Popen[str]: ...
@overload
def spawn_in(
    target: TargetLike,
    args: Command,
    *,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    universal_newlines: Literal[True],
    **popen_kwargs: Unpack[SpawnKeywords],
) -> Popen[str]: ...
@overload
def spawn_in(
    target: TargetLike,
    args: Command,
    *,
    text: Literal[False] | None = None,
    encoding: None = None,
    errors: None = None,
    universal_newlines: Literal[False] | None = None,
    **popen_kwargs: Unpack[SpawnKeywords],
) -> Popen[bytes]: ...
@overload
def spawn_in(
    target: TargetLike,
    args: Command,
    *,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    universal_newlines: bool | None = None,
    **popen_kwargs: Unpack[SpawnKeywords],
) -> Popen[Any]: ...
def spawn_in(target: TargetLike, args: Any, **popen_kwargs: Any) -> Popen[Any]:
    """Start a program inside the namespaces of ``target`` and return its ``Popen``: all is said there."""
    return Popen(args, target=target, **popen_kwargs)
