"""``Popen`` and ``spawn_in``: subprocess.Popen for a program inside a target's namespaces."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, AnyStr, overload

from .._engine import guard
from .._engine.children import child_has_been_reaped, end, unreaped, wait
from .._engine.job import Started
from .._engine.launch import launch
from .._joining.start import Request, start
from .._kernel.nstypes import PID, select
from .._target import likeness
from .._target.accounts import numbered
from .._target.netns_etc import WithEtc
from .._target.target import TARGET, check_target
from .command import ARGUMENTS, MADE_NUMBERS, PIPES, asked, bind, command_of, ids_of, new_types, program_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from typing_extensions import Unpack

    from .._engine.job import Launch
    from .._target.target import Openable, TargetLike
    from .keywords import ByEncoding, ByErrors, ByNewlines, Bytes, ByText, Command, Undecided


_PREEXEC_FN_IS_REFUSED = (
    "preexec_fn is not supported, as Python code would run inside the target before exec; "
    "use the other arguments, or call_in"
)

# --- the public names ---------------------------------------------------------------------------------------


class Popen(subprocess.Popen[AnyStr]):
    """A subprocess.Popen whose program runs inside the namespaces of ``target``.

    Takes the arguments of subprocess.Popen except ``preexec_fn``, and the following by name::

        with nsjoin.Popen(["ip", "addr"], target=pid, namespaces=["net"], stdout=subprocess.PIPE) as process:
            print(process.stdout.read())

    ``target`` is a pid; an object with a ``pid``; a ``Target``; a ``Namespace``; the path of a namespace file; or an
    iterable of the last two. ``namespaces`` names the types to join; None means all that differ from this thread's.
    ``fork=False`` is ``nsenter --no-fork``: the program stays outside the PID namespace, and its children are inside.
    These arguments count even if a patched subprocess.Popen.__init__ (a tracer's) changes them.

    The program is a direct child of this process: ``pid`` is its number as the caller sees it, ``returncode`` its own
    status. With mnt joined, its root is the target's, ``cwd`` and ``args[0]`` are looked up there, and ``cwd=None``
    means ``/``. With user joined, it runs as uid 0 and gid 0 of that namespace where those are mapped, and without
    supplementary groups where the kernel allows dropping them, unless ``user``, ``group`` or ``extra_groups`` is given.
    ``preserve_credentials=True`` keeps the ids, the groups, and the capabilities that execve(2) leaves to such a user.

    ``netns_etc=True`` adds what ``ip netns exec`` does: in a copy of this mount namespace, /sys shows the devices of
    the network namespace, and the files of /etc/netns/NAME cover those of /etc. NAME is the namespace's name in
    ``ip netns``; NamespaceNotFoundError if it has none. The working directory stays the same. For a process as target,
    ``namespaces`` must name ``"net"``. A file that cannot be bound causes a RuntimeWarning.

    ``root`` sets the root directory: TARGET for the target's, which works without mnt too, or a path or descriptor of
    the caller's. It is opened before the joins and needs CAP_SYS_CHROOT. ``cwd`` may also be a descriptor. A working
    directory outside the root raises JoinError (EXDEV).

    ``unshare`` names types of which the program gets new namespaces after the joins (unshare(2)): not ``"user"``, and
    ``"pid"`` only if pid is not joined. Mounts made in a new mnt namespace do not propagate.

    ``like_target=True`` takes each of the following from the target unless you pass it explicitly, and starts a new
    session keyring (keyrings(7)). ``TARGET`` takes a single one. The target must be a process, and is read before the
    joins; JoinError for what cannot be taken. Resource limits, umask and seccomp filters are never taken.

    - ``env``, ``cwd``, ``user``, ``group``, ``extra_groups``: or a value as for subprocess. ``TARGET`` ids are the
      effective ones at exec; those of a user namespace are translated through its maps. The target's working directory
      may have been deleted.
    - ``cgroup``: or a path as in /proc/PID/cgroup, used in every hierarchy that has it (cgroups(7)). With pid joined,
      the program is born in its version 2 cgroup (Linux 5.7). A target's version 1 hierarchy that has only a name is
      skipped if it is not mounted here. A frozen cgroup, such as a paused container's, raises JoinError (EBUSY).
    - ``capabilities``: or names such as ``{"net_admin"}``: exactly these in every set, so that they survive exec
      without root too. Bounding, permitted, effective, inheritable and ambient sets; root gets the bounding set at exec
      (capabilities(7)). The target's capabilities apply in its user namespace, which must be joined.
    - ``no_new_privs``: or a bool (PR_SET_NO_NEW_PRIVS(2const); from a target since Linux 4.10).
    - ``oom_score_adj``: or -1000 to 1000 (proc_pid_oom_score_adj(5)).
    - ``lsm_label``: or the AppArmor profile or SELinux context for exec (proc_pid_attr(5)).

    Wait for the program: while it is a zombie, a PID namespace whose init has ended persists (pid_namespaces(7)).

    Raises what subprocess.Popen raises for exec, cwd and descriptors; JoinError (JoinPermissionError) if a namespace
    cannot be joined; TargetGoneError if the target has ended; TypeError and ValueError for bad arguments. Nothing is
    left behind then. setns(2), clone(2); Linux 4.11, race-free since 5.3, one atomic join since 5.8.
    """

    _checked_target: Openable
    _args: Any
    _asked: dict[str, Any]
    _request: Request
    _preserve_credentials: bool
    _netns_etc: bool
    _deadline: float | None
    _new_group: bool
    _status_is_lost = False

    if TYPE_CHECKING:

        @overload
        def __init__(self: Popen[str], args: Command, *, target: TargetLike, **keywords: Unpack[ByText]) -> None: ...
        @overload
        def __init__(
            self: Popen[str], args: Command, *, target: TargetLike, **keywords: Unpack[ByEncoding]
        ) -> None: ...
        @overload
        def __init__(self: Popen[str], args: Command, *, target: TargetLike, **keywords: Unpack[ByErrors]) -> None: ...
        @overload
        def __init__(
            self: Popen[str], args: Command, *, target: TargetLike, **keywords: Unpack[ByNewlines]
        ) -> None: ...
        @overload
        def __init__(self: Popen[bytes], args: Command, *, target: TargetLike, **keywords: Unpack[Bytes]) -> None: ...
        @overload
        def __init__(
            self: Popen[Any],
            args: Command,
            *positional: Any,
            target: TargetLike,
            _deadline: float | None = None,
            _new_group: bool = False,
            **keywords: Unpack[Undecided],
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
        bind(positional, keywords)
        if keywords.get("preexec_fn") is not None:
            raise TypeError(_PREEXEC_FN_IS_REFUSED)
        choice = likeness.choose(keywords, like_target=like_target)
        self._checked_target = checked = check_target(target)
        wanted = None if namespaces is None else select(namespaces)
        self._netns_etc = netns_etc
        if netns_etc:
            self._checked_target = with_etc = WithEtc(checked, wanted)
            wanted = with_etc.wanted
        self._preserve_credentials = preserve_credentials
        self._request = request = Request(wanted, fork, new_types(unshare), choice=choice)
        if request.unshare & PID.flag and wanted is not None and PID in wanted:
            raise ValueError("the kernel makes no new PID namespace within one that is joined: name pid only once")
        self._deadline = _deadline
        self._new_group = _new_group
        self._keep(args, keywords)
        if not any(keywords.get(name) is not None for name in MADE_NUMBERS):
            super().__init__(self._args, **keywords)
            return
        with numbered(self._checked_target, wanted, keywords) as self._checked_target:
            super().__init__(self._args, **keywords)

    def _keep(self, args: Any, keywords: dict[str, Any]) -> None:
        """Keep what is asked for; make ``keywords`` fit for subprocess.Popen.__init__, or the patch in its place."""
        if not isinstance(args, (list, tuple, str, bytes, os.PathLike)):
            args = list(args)  # an iterator can be read only once
        if isinstance(args, (list, tuple)) and not args:
            raise ValueError("args is empty")
        self._args, self._asked = args, asked(args, keywords)
        for name in ("env", "cwd"):
            if keywords.get(name) is TARGET:
                keywords[name] = None  # subprocess and its patches do not know TARGET
        if isinstance(keywords.get("env"), Mapping):
            keywords["env"] = dict(keywords["env"].items())  # a copy: ddtrace adds to it
        if not isinstance(keywords.get("extra_groups"), (str, type(None))):
            keywords["extra_groups"] = list(keywords["extra_groups"])  # it is read twice

    def _execute_child(self, *arguments: Any) -> None:
        """Start the program; overrides subprocess.Popen."""
        given = dict(zip(ARGUMENTS, arguments))
        given.update(self._asked)
        self.args = self._args
        if self._netns_etc and given["cwd"] is None:
            given["cwd"] = os.getcwd()  # that mount namespace is a copy of the caller's
        choice = self._choose(given)
        command = command_of(given["args"], given["executable"], given["shell"], given["env"])
        guard.announce_program(command.name, given["args"], given["cwd"], given["env"])
        program = program_of(command, given, new_group=self._new_group)
        ids = ids_of(given, keep=self._preserve_credentials)
        request = self._request._replace(ids=ids, choice=choice, name=command.name, cwd=given["cwd"])
        started = Started()
        try:
            run = partial(launch, program, started=started)
            self._finish_start(start(run, self._checked_target, request), [given[name] for name in PIPES])
        except BaseException:
            end(started.pid, leads_group=program.leads_group)
            self._child_created = False
            raise

    def _choose(self, given: dict[str, Any]) -> likeness.Choice | None:
        """Return what to take from the target, env and cwd included."""
        choice = self._request.choice
        whole = choice is not None and choice.whole
        if whole:
            given.update({name: TARGET for name in ("env", "cwd") if given[name] is None})
        env, cwd = given["env"] is TARGET, given["cwd"]
        is_open = cwd is TARGET or likeness.is_descriptor(cwd)
        if not env and not is_open:
            return choice
        return (choice or likeness.Choice())._replace(env=env, cwd=cwd if is_open else None)

    def _finish_start(self, starting: Launch, pipes: list[int]) -> None:
        """Wait until the program runs; aio overrides this with a wait of its own."""
        self._started(wait(starting, self._deadline), pipes)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        """Wait as subprocess.Popen does, and note a lost status, for which ``returncode`` is 0 as with subprocess."""
        try:
            return os.waitpid(self.pid, wait_flags)
        except ChildProcessError:
            self._status_is_lost = True
            return self.pid, 0

    def _handle_exitstatus(self, *arguments: Any, _unreaped: dict[int, bool] = unreaped) -> None:
        """Note that the child was reaped; poll, wait and ``__del__`` call this.

        ``__del__`` may run at the interpreter's end, when this module's names may be gone.
        """
        super()._handle_exitstatus(*arguments)  # type: ignore[misc]
        if _unreaped:
            child_has_been_reaped()

    def _started(self, pid: int, pipes: list[int]) -> None:
        self.pid = pid
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


@overload
def spawn_in(target: TargetLike, args: Command, **popen_kwargs: Unpack[ByText]) -> Popen[str]: ...
@overload
def spawn_in(target: TargetLike, args: Command, **popen_kwargs: Unpack[ByEncoding]) -> Popen[str]: ...
@overload
def spawn_in(target: TargetLike, args: Command, **popen_kwargs: Unpack[ByErrors]) -> Popen[str]: ...
@overload
def spawn_in(target: TargetLike, args: Command, **popen_kwargs: Unpack[ByNewlines]) -> Popen[str]: ...
@overload
def spawn_in(target: TargetLike, args: Command, **popen_kwargs: Unpack[Bytes]) -> Popen[bytes]: ...
@overload
def spawn_in(target: TargetLike, args: Command, **popen_kwargs: Unpack[Undecided]) -> Popen[Any]: ...
def spawn_in(target: TargetLike, args: Any, **popen_kwargs: Any) -> Popen[Any]:
    """Start a program in ``target``'s namespaces and return its ``Popen``, which documents the arguments.

    ``target`` is a pid, a ``Target``, a ``Namespace``, the path of a namespace file, or an iterable of the last two.
    ``namespaces`` names the types to join, by default all that differ. Arguments and errors are those of ``Popen``::

        process = nsjoin.spawn_in(pid, ["sleep", "1"], namespaces=["net", "pid"])
        process.wait()
    """
    return Popen(args, target=target, **popen_kwargs)
