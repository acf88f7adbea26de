"""TODO."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from .._kernel.calls import ffi, lib
from . import warm

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    #: Yields descriptors to wait for, takes nothing, returns a pid.
    Launch = Generator[int, None, int]


class At(enum.IntEnum):
    """The steps of the joiner, in their order: enum nsjoin_step."""

    LAUNCH = lib.NSJOIN_STEP_LAUNCH
    PLAN = lib.NSJOIN_STEP_PLAN
    HIDE = lib.NSJOIN_STEP_HIDE
    STDIO = lib.NSJOIN_STEP_STDIO
    ENV = lib.NSJOIN_STEP_ENV
    CGROUP = lib.NSJOIN_STEP_CGROUP
    CLOSE = lib.NSJOIN_STEP_CLOSE
    OOM_SCORE_ADJ = lib.NSJOIN_STEP_OOM_SCORE_ADJ
    GROUPS = lib.NSJOIN_STEP_GROUPS
    JOIN = lib.NSJOIN_STEP_JOIN
    WITNESS = lib.NSJOIN_STEP_WITNESS
    ROOT = lib.NSJOIN_STEP_ROOT
    CWD = lib.NSJOIN_STEP_CWD
    UNSHARE = lib.NSJOIN_STEP_UNSHARE
    UMASK = lib.NSJOIN_STEP_UMASK
    KEYRING = lib.NSJOIN_STEP_KEYRING
    BOUNDING = lib.NSJOIN_STEP_BOUNDING
    IDS = lib.NSJOIN_STEP_IDS
    CAPABILITIES = lib.NSJOIN_STEP_CAPABILITIES
    NO_NEW_PRIVS = lib.NSJOIN_STEP_NO_NEW_PRIVS
    CLONE = lib.NSJOIN_STEP_CLONE
    SESSION = lib.NSJOIN_STEP_SESSION
    LSM_LABEL = lib.NSJOIN_STEP_LSM_LABEL
    EXEC = lib.NSJOIN_STEP_EXEC


_EXEC = int(At.EXEC)


class Failed(Exception):  # noqa: N818 - a report, not an error that callers see
    """The new process failed ``at`` a step, at entry ``index`` of its list, with ``errno``; 0: it was killed there."""

    def __init__(self, at: At, index: int, errno: int) -> None:
        super().__init__(at, index, errno)
        self.at = at
        self.index = index
        self.errno = errno


class Theirs(NamedTuple):
    """Ids of the target as they are in our user namespace, which the program is to have; None: not those."""

    uids: tuple[int, int, int] | None
    gids: tuple[int, int, int] | None
    groups: tuple[int, ...] | None


class Ids(NamedTuple):
    """Who the program runs as: real, effective and saved ids; None: unchanged. ``try_``: one that is not mapped is no
    error. ``groups_first``: the groups are ids of the caller's user namespace, and set before the joins. ``theirs`` is
    what they are to be made from (_identity). ``keep``: a user namespace that is joined makes nobody root of it."""

    uid: tuple[int, int, int] | None = None
    gid: tuple[int, int, int] | None = None
    groups: Sequence[int] | None = None
    drop_groups: bool = False
    try_uid: bool = False
    try_gid: bool = False
    groups_first: bool = False
    theirs: Theirs | None = None
    keep: bool = False


_UNCHANGED = Ids()


class Attributes(NamedTuple):
    """What the program gets besides its namespaces and ids. Descriptors are -1, the rest None or empty: unchanged.

    ``environ`` is a /proc/PID/environ to read instead of ``Job.env``, or with ``environ_inside`` a /proc/PID, whose
    environ is opened when all is joined; ``cwd`` is a directory instead of ``Job.cwd``, ``root``
    one instead of the target's (_start makes it ``Job.root``).
    ``capabilities`` are the sets inheritable, permitted, effective, bounding, ambient as bits.
    """

    environ: int = -1
    cwd: int = -1
    root: int = -1
    cgroups: Sequence[Cgroup] = ()
    capabilities: tuple[int, int, int, int, int] | None = None
    no_new_privs: bool = False
    oom_score_adj: bytes | None = None
    lsm_label: bytes | None = None
    new_keyring: bool = False
    empty_environ: bool = False
    environ_inside: bool = False

    def descriptors(self) -> list[int]:
        """All that are open."""
        fds = [self.environ, self.cwd, *[fd for cgroup in self.cgroups for fd in cgroup[:2]]]
        return [fd for fd in fds if fd >= 0]


class Witness(NamedTuple):
    """A target that has to be in the user namespace ``user`` (its inode) still when all is joined; else EAGAIN."""

    pidfd: int
    user: int


class Cgroup(NamedTuple):
    """A cgroup to move into: its directory, its file cgroup.procs, whether it is of version 2, and where it is.

    ``home`` is the file cgroup.procs of the caller's own cgroup where this one's hierarchy is the freezer of version 1,
    else -1: what is frozen by that cannot be killed before it is out of there.
    """

    directory: int
    procs: int
    is_v2: bool
    place: str = ""
    home: int = -1


NO_ATTRIBUTES = Attributes()


class Job:
    """Everything that the joiner has to know.

    ``fork``: the program is a child of the joiner, born in the PID namespace that was joined. ``at_home``: the joiner
    is to be born in this process's own PID namespace, or Failed at LAUNCH with EXDEV; ``go_home`` sees to it.
    ``born_in``: which of ``attributes.cgroups`` the program is born in, with ``fork``; the joiner moves to the others.
    ``check_cwd``: fail at CWD with EXDEV if the working directory is not below the root. ``unshare``: CLONE_NEW* bits.
    """

    __slots__ = (
        "argv",
        "at_home",
        "attributes",
        "born_in",
        "check_cwd",
        "close_fds",
        "cwd",
        "env",
        "files",
        "fork",
        "go_home",
        "ids",
        "joins",
        "new_session",
        "pass_fds",
        "pid",
        "process_group",
        "restore_signals",
        "root",
        "stdio",
        "umask",
        "unshare",
        "witness",
    )

    def launch(self) -> Launch:
        """``launch`` for this job."""
        from .launch import launch

        return launch(self)

    def __init__(
        self,
        files: Sequence[bytes],
        argv: Sequence[bytes],
        env: Sequence[bytes],
        *,
        stdio: tuple[int, int, int] = (-1, -1, -1),
        close_fds: bool = True,
        pass_fds: Sequence[int] = (),
        joins: Sequence[Step] = (),
        fork: bool = False,
        at_home: bool = False,
        root: int = -1,
        cwd: bytes | None = None,
        umask: int = -1,
        ids: Ids = _UNCHANGED,
        restore_signals: bool = True,
        new_session: bool = False,
        process_group: int = -1,
        attributes: Attributes = NO_ATTRIBUTES,
        unshare: int = 0,
        check_cwd: bool = False,
    ) -> None:
        self.files = files
        self.argv = argv
        self.env = env
        self.stdio = stdio
        self.close_fds = close_fds
        self.pass_fds = pass_fds
        self.joins = joins
        self.fork = fork
        self.at_home = at_home
        self.go_home = False
        self.pid = 0  # of the program, once it runs: an exception on the way to the caller cannot lose it
        self.root = root
        self.cwd = cwd
        self.umask = umask
        self.ids = ids
        self.restore_signals = restore_signals
        self.new_session = new_session
        self.process_group = process_group
        self.attributes = attributes
        self.unshare = unshare
        self.check_cwd = check_cwd
        self.born_in: Cgroup | None = None
        self.witness: Witness | None = None

    @property
    def leads_group(self) -> bool:
        """Whether the program leads a process group of its own."""
        return self.new_session or self.process_group == 0


def environment() -> list[bytes]:
    """environ(7) as the C library has it: what a program gets that is given none; without what is pinned in it.

    Copied here, under the interpreter's lock: the launch runs without it, and another thread's putenv may free what the
    kernel would be reading.
    """
    return [ffi.string(entry) for entry in warm.environment() if entry != warm.time_zone.entry]


TRY = 1  # NSJOIN_TRY: EPERM is no error, a later step tries again
AGAIN = 2  # NSJOIN_AGAIN: only if no earlier step has joined this type


class Step(NamedTuple):
    """One setns(2): descriptor, CLONE_NEW* bits, and TRY or AGAIN."""

    fd: int
    nstypes: int
    how: int = 0
