"""What a new process does, as records that are made once: the program, and the way to it; and the step that failed."""

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


class Failed(Exception):  # noqa: N818 - a report, not an error that callers see
    """The new process failed ``at`` a step, at entry ``index`` of its list, with ``errno``; 0: it was killed there."""

    def __init__(self, at: At, index: int, errno: int) -> None:
        super().__init__(at, index, errno)
        self.at = at
        self.index = index
        self.errno = errno


# --- the program ---------------------------------------------------------------------------------------------


class Program(NamedTuple):
    """The program and what subprocess.Popen knows of it. -1 and None: unchanged.

    ``files`` are tried in turn, ``stdio`` are the descriptors that become 0, 1 and 2.
    """

    files: Sequence[bytes]
    argv: Sequence[bytes]
    env: Sequence[bytes]
    stdio: tuple[int, int, int] = (-1, -1, -1)
    close_fds: bool = True
    pass_fds: Sequence[int] = ()
    cwd: bytes | None = None
    umask: int = -1
    restore_signals: bool = True
    new_session: bool = False
    process_group: int = -1

    @property
    def leads_group(self) -> bool:
        """Whether the program leads a process group of its own."""
        return self.new_session or self.process_group == 0


#: For a way that leads to no program
NO_PROGRAM = Program((), (), (), close_fds=False, restore_signals=False)


def environment() -> list[bytes]:
    """Return environ(7) as the C library has it, without what is pinned in it: what a program inherits.

    Copied here, under the interpreter's lock: the launch runs without it, and another thread's putenv(3) may free what
    the kernel would be reading.
    """
    return [ffi.string(entry) for entry in warm.environment() if entry != warm.time_zone.entry]


# --- the way to it -------------------------------------------------------------------------------------------

TRY = 1  # NSJOIN_TRY: EPERM is no error, a later step tries again
AGAIN = 2  # NSJOIN_AGAIN: only if no earlier step has joined this type


class Step(NamedTuple):
    """One setns(2): descriptor, CLONE_NEW* bits, and TRY or AGAIN."""

    fd: int
    nstypes: int
    how: int = 0


class Ids(NamedTuple):
    """The credentials to set: real, effective and saved ids; None: unchanged.

    ``try_uid``, ``try_gid``: an id that is not mapped (EINVAL) is no error. ``groups_first``: the groups are ids of the
    caller's user namespace, set before the joins. ``drop_groups``: no supplementary groups, where the kernel allows it.
    """

    uid: tuple[int, int, int] | None = None
    gid: tuple[int, int, int] | None = None
    groups: Sequence[int] | None = None
    drop_groups: bool = False
    try_uid: bool = False
    try_gid: bool = False
    groups_first: bool = False


class Witness(NamedTuple):
    """A target that must still be in the user namespace ``user`` (its inode) after the joins; else EAGAIN."""

    pidfd: int
    user: int


class Cgroup(NamedTuple):
    """A cgroup to move into: its directory, its file cgroup.procs, whether it is of version 2, and its path.

    ``home`` is the file cgroup.procs of the caller's own cgroup where this one's hierarchy is the freezer of version 1,
    else -1: what is frozen by that cannot be killed before it is moved out.
    """

    directory: int
    procs: int
    is_v2: bool
    place: str = ""
    home: int = -1


class Attributes(NamedTuple):
    """What the program gets besides namespaces and ids. Descriptors are -1, the rest None or empty: unchanged.

    ``environ`` is a /proc/PID/environ to read instead of ``Program.env``, or with ``environ_inside`` a /proc/PID whose
    environ is opened after the joins; with ``empty_environ`` it may be empty. ``cwd`` is a directory instead of
    ``Program.cwd``. ``capabilities`` are the sets inheritable, permitted, effective, bounding, ambient as bits.
    """

    environ: int = -1
    cwd: int = -1
    cgroups: Sequence[Cgroup] = ()
    capabilities: tuple[int, int, int, int, int] | None = None
    no_new_privs: bool = False
    oom_score_adj: bytes | None = None
    lsm_label: bytes | None = None
    new_keyring: bool = False
    empty_environ: bool = False
    environ_inside: bool = False

    def descriptors(self) -> list[int]:
        """Return all that are open."""
        fds = [self.environ, self.cwd, *[fd for cgroup in self.cgroups for fd in cgroup[:2]]]
        return [fd for fd in fds if fd >= 0]


NO_IDS = Ids()
NO_ATTRIBUTES = Attributes()


class Way(NamedTuple):
    """How a process gets from the caller to where the program or function runs.

    ``fork``: it is a child of the one that joins, born in the PID namespace that was joined. ``root``: a directory that
    becomes the root, -1: unchanged. ``unshare``: CLONE_NEW* bits. ``at_home``: the joiner must be born in the caller's
    own PID namespace, or fails at LAUNCH with EXDEV; ``go_home`` moves the caller's thread there for that moment.
    ``born_in``: the one of ``attributes.cgroups`` that the program is born in. ``check_cwd``: fail at CWD with EXDEV if
    the working directory is not below the root.
    """

    joins: Sequence[Step] = ()
    fork: bool = False
    root: int = -1
    ids: Ids = NO_IDS
    witness: Witness | None = None
    unshare: int = 0
    attributes: Attributes = NO_ATTRIBUTES
    born_in: Cgroup | None = None
    at_home: bool = False
    go_home: bool = False
    check_cwd: bool = False


class Started:
    """The pid of the program once it runs, else 0. Its maker has it before the launch, so no exception can lose it."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = 0
