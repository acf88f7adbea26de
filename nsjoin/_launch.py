"""Launches the joiner: the job, the sealed image, the wait for exec, the report.

Nothing here knows what a target is. What can go wrong in the new process comes back as ``Failed``; whatever is raised,
no process, zombie or descriptor is left.
"""

from __future__ import annotations

import enum
import errno
import os
import select
import signal
import struct
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from . import _guard, _procfs, _shim, _warm
from ._nstype import BY_NAME
from ._pack import pack
from ._process import own_namespace, own_pid_namespace_is_left
from ._shim import ffi, lib
from .exceptions import NamespaceError, RestoreError, error

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from ._plan import Step

    #: Yields descriptors to wait for, takes nothing, returns a pid.
    Launch = Generator[int, None, int]


T = TypeVar("T")


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


class Expired(Exception):  # noqa: N818 - the same
    """The deadline passed before the program was running. What had been started is gone."""


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
    return [ffi.string(entry) for entry in _warm.environment() if entry != _warm.time_zone.entry]


_REPORT = struct.Struct("4i")  # the head of struct nsjoin_plan: pid, step, index, error

# --- the image ----------------------------------------------------------------------------------------------

_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_EXEC = 1, 2, 16  # MFD_EXEC: Linux 6.3
_F_ADD_SEALS, _ALL_SEALS = 1033, 15
_F_SEAL_EXEC = 32  # Linux 6.3


class _Image:
    """The joiner in a sealed memfd, made once for the process: whoever gets at it through /proc/PID/exe, as root of a
    target does (CVE-2019-5736), cannot change what the next launch runs.

    Where memfds cannot be executed (vm.memfd_noexec=2, Linux 6.3) or made, each launch gets an unlinked file instead.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fd = -1
        self._identity: tuple[int, int] | None = None
        self._memfd_runs = True

    def open(self) -> tuple[int, bool]:
        """A descriptor to execute, and whether it is to be closed afterwards."""
        if self._memfd_runs:
            if self._identity is not None and self._is_ours():
                return self._fd, False
            with self._lock:
                if self._identity is None or not self._is_ours():
                    self._make()
            if self._memfd_runs:
                return self._fd, False
        _guard.must_be_home("launch", "a file would be executed, in a temporary folder of its owner's")
        return self._file(), True

    def unlock(self) -> None:
        """In the child of a fork: a thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def memfd_does_not_run(self) -> None:
        """Learn that the kernel refuses to execute a memfd."""
        with self._lock:
            if self._memfd_runs and self._is_ours():
                os.close(self._fd)
            self._memfd_runs, self._identity = False, None

    def _is_ours(self) -> bool:
        # A program that closes all descriptors it does not know, as daemons do, may have given the number away.
        try:
            status = os.fstat(self._fd)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def _make(self) -> None:
        flags = _MFD_CLOEXEC | _MFD_ALLOW_SEALING
        try:
            try:
                fd = _shim.memfd_create(b"nsjoin", flags | _MFD_EXEC)
            except OSError as refused:
                if refused.errno != errno.EINVAL:
                    raise
                fd = _shim.memfd_create(b"nsjoin", flags)
        except OSError as refused:
            if refused.errno not in (errno.EACCES, errno.EPERM, errno.ENOSYS):
                raise
            self._memfd_runs = False
            return
        fd = _shim.above_stdio(fd)
        try:
            _shim.write_all(fd, _image_bytes(), "the joiner")
            _seal(fd)
            status = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._identity = fd, (status.st_dev, status.st_ino)

    @staticmethod
    def _file() -> int:
        writer, path = tempfile.mkstemp(prefix="nsjoin-")
        try:
            try:
                _shim.write_all(writer, _image_bytes(), "the joiner")
                os.fchmod(writer, 0o500)
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            finally:
                os.close(writer)  # as long as somebody can write, execveat says ETXTBSY
        finally:
            os.unlink(path)
        return _shim.above_stdio(fd)


def _seal(fd: int) -> None:
    import fcntl

    try:
        # without it, root of a target could take the x bits through /proc/PID/exe, and no launch would work any more
        fcntl.fcntl(fd, _F_ADD_SEALS, _ALL_SEALS | _F_SEAL_EXEC)
    except OSError as refused:
        if refused.errno not in (errno.EINVAL, errno.EPERM):  # before Linux 6.3; a seccomp filter
            raise
        fcntl.fcntl(fd, _F_ADD_SEALS, _ALL_SEALS)


def _image_bytes() -> bytes:
    return bytes(ffi.buffer(lib.nsjoin_image(), lib.nsjoin_image_size()))


_image = _Image()

# --- the launch ---------------------------------------------------------------------------------------------

#: Children that had been killed but did not end in time (hung in the kernel), reaped by a later launch. True: an init,
#: which ends once the last process of its PID namespace has been reaped, and that may be a program of the caller's.
_unreaped: dict[int, bool] = {}

_REAP_SECONDS = 0.5
_LOOK_SECONDS = 0.02  # between looks at what holds up the end of an init
_LONGEST_REAP = 30.0  # of one that gets no processor
_LONGEST_POLL = 86400.0  # poll(2) takes milliseconds in an int: 24.8 days


def _forget_what_is_the_parents() -> None:
    _unreaped.clear()
    _image.unlock()


os.register_at_fork(after_in_child=_forget_what_is_the_parents)


def launch(job: Job) -> Launch:
    """Carry out ``job``; the result is the pid of the program, our direct child, once it has been exec'd.

    A generator, so that threads (``wait``) and event loops (``aio``) can wait each in their way: it yields a descriptor
    that hangs up (POLLHUP) when there is news. Whatever is thrown into it ends what was started and comes out again.
    Failed, ValueError (NUL in a string), OSError (no process or descriptor to be had).
    """
    if _unreaped:
        _reap_late()
    work: Any = ffi.gc(ffi.new("struct nsjoin_work *", (-1, (-1, -1), 0, _guard.is_away())), lib.nsjoin_finish)
    image, image_is_ours = -1, False
    try:
        _shim.check(lib.nsjoin_prepare(work))
        image, image_is_ours = _image.open()
        try:
            return (yield from _run(job, work, image))
        except Failed as failed:
            # ETXTBSY: a fork in another thread has a copy of the descriptor by which this launch's file was written
            if failed.at != At.LAUNCH or failed.errno != (errno.ETXTBSY if image_is_ours else errno.EACCES):
                raise
            if not image_is_ours:
                _image.memfd_does_not_run()
    finally:
        lib.nsjoin_finish(work)
        if image_is_ours:
            os.close(image)
    return (yield from launch(job))


def wait(launching: Generator[int, None, T], deadline: float | None = None) -> T:
    """Wait in this thread for the result of ``launch``, or of another generator that yields descriptors.

    Python's signal handlers run meanwhile, and may raise. ``deadline`` is a time of ``time.monotonic``: Expired.
    """
    try:
        while True:
            barrier = next(launching)
            try:
                _wait_for_news(barrier, deadline)
            except Expired as expired:
                launching.throw(expired)  # ends what was started, and may know what it waited for
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        launching.close()  # an exception while we waited: ends what was started


def _run(job: Job, work: Any, image: int) -> Launch:
    needed = {work.barrier[1], *[step.fd for step in job.joins]}
    if job.root >= 0:
        needed.add(job.root)
    early: list[int] = []  # used before the joiner closes what it does not need
    if job.attributes is not NO_ATTRIBUTES:
        early = job.attributes.descriptors()
        late = [job.attributes.cwd, job.born_in.directory if job.born_in else -1]
        if job.attributes.environ_inside:
            late.append(job.attributes.environ)
        needed.update([fd for fd in late if fd >= 0])
    sources = [fd for fd in job.stdio if fd >= 0]
    private = needed.union([fd for fd in sources if _ends_at_exec(fd, job.close_fds)]).difference(job.pass_fds)
    private.update((work.plan, work.barrier[1]), early)  # the program could forge the report, or seem never to start
    _shim.write_all(work.plan, pack(job, private, needed), "the plan of the launch, with argv and environment,")
    lent = [*private, *needed, *sources, *job.pass_fds]
    try:
        started = _begin(job, work, image, lent)
        lib.nsjoin_close_barrier(work)
        if started == -errno.EXDEV:
            raise Failed(At.LAUNCH, 0, errno.EXDEV)
        _shim.check(started)
        yield work.barrier[0]
        job.pid = _settle(job, work)
        return job.pid
    except Failed:
        raise  # nothing is left of it
    except BaseException:
        job.pid = 0
        _abort(work, job)
        raise


def _begin(job: Job, work: Any, image: int, lent: list[int]) -> int:
    def launch(at_home: int) -> int:
        return lib.nsjoin_launch(work, image, b"%d" % work.plan, lent, len(lent), at_home)

    if not job.at_home:
        return launch(lib.NSJOIN_ANYWHERE)
    if job.go_home:
        with home():
            return launch(lib.NSJOIN_AT_HOME)
    started = launch(lib.NSJOIN_CHECK_HOME)
    if started != -errno.ENOTTY:
        return started
    return -errno.EXDEV if _proc_says_born_elsewhere() else launch(lib.NSJOIN_AT_HOME)


def _proc_says_born_elsewhere() -> bool:
    """Before Linux 6.11. A joiner that is the first to be born there, and ends, would take that namespace with it."""
    try:
        return own_pid_namespace_is_left()
    except NamespaceError:  # no /proc, or not for us: the joiner sees where it is
        return False


@contextmanager
def home() -> Iterator[None]:
    """Holds this thread's pid_for_children at its own PID namespace: it is elsewhere inside ``enter(pid, "pid")``."""
    row = BY_NAME["pid"]
    with ExitStack() as stack:
        own = own_namespace(row)
        stack.callback(os.close, own)
        away = own_namespace(row, for_children=True)
        stack.callback(os.close, away)
        is_away = True  # also where the exception is a signal handler's, and comes after the call
        try:
            try:
                _shim.setns(own, row.flag)
            except OSError:
                is_away = False
                raise
            yield
        finally:
            if is_away:
                _come_back(away, row.flag)


def _come_back(away: int, nstype: int) -> None:
    try:
        _shim.setns(away, nstype)
    except OSError as refused:
        reason = "the thread's children are not born in the target any more, as they should be inside enter"
        raise error(
            RestoreError, refused.errno or 0, "setns", nstype="pid", target="this thread", reason=reason
        ) from None


def _ends_at_exec(fd: int, close_fds: bool) -> bool:
    """Whether a descriptor that becomes stdio is closed in the program under its own number."""
    if close_fds and fd > 2:
        return True
    try:
        return not os.get_inheritable(fd)
    except OSError:  # EBADF: the launch will say so
        return True


def _wait_for_news(barrier: int, deadline: float | None) -> None:
    poll = select.poll()
    poll.register(barrier, select.POLLIN)  # of a barrier, POLLHUP: nobody holds the write end any more
    while True:
        if deadline is None:
            if poll.poll():
                return
        else:
            left = deadline - time.monotonic()
            if poll.poll(min(max(left, 0), _LONGEST_POLL) * 1000):
                return
            if left <= 0:
                raise Expired


def _report(work: Any) -> tuple[int, int, int, int]:
    return _REPORT.unpack(os.pread(work.plan, _REPORT.size, 0))


def _settle(job: Job, work: Any) -> int:
    """Nobody holds the barrier, so everything has been exec'd or has ended: the program's pid, or Failed."""
    child, at, index, number = _report(work)
    running = at == _EXEC and number == 0
    if job.fork or not running:
        _reap(work.joiner)
        work.joiner = 0
    if running:
        return child if job.fork else int(work.joiner)
    if child > 0:
        _reap(child)
    raise Failed(At(at), index, number)


def _abort(work: Any, job: Job) -> None:
    """End what the launch has started. The joiner first: while it lives it may still clone; then what it has cloned.

    The program may run already, and have children: if it leads its process group, all of that ends.
    """
    home = max((cgroup.home for cgroup in job.attributes.cgroups), default=-1)
    try:
        end(work.joiner, leads_group=job.leads_group, home=home)
    finally:
        end(_report(work)[0], leads_group=job.leads_group, home=home)


def end(pid: int, *, leads_group: bool = False, home: int = -1, is_init: bool = False) -> None:
    """Kill and reap a child of ours. ``home``: of ``Cgroup``, where it goes once it has been killed.

    One that hangs in the kernel is reaped by a later launch, and an init that our own zombies hold up when they have
    been waited for.
    """
    if pid <= 0:
        return
    try:
        if leads_group and hasattr(os, "waitid"):  # not on PyPy
            # not reaped yet: until then nobody else gets its number, nor that of its group
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        elif os.waitpid(pid, os.WNOHANG)[0] == pid:
            if leads_group:
                _kill_group(pid)
            return
    except ChildProcessError:
        return  # not ours any more, so not ours to kill: somebody else has reaped it
    _unreaped[pid] = is_init
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended just now, and the kernel has reaped it, since SIGCHLD is ignored here
    if leads_group:
        _kill_group(pid)
    bring_home(pid, home)
    if _reap(pid, _REAP_SECONDS, is_init=is_init):
        _unreaped.pop(pid, None)  # another thread's launch may have reaped it meanwhile


def bring_home(pid: int, home: int) -> None:
    """Out of a cgroup that may be frozen: it thaws, and what has been sent to it reaches it. -1: not to be had."""
    if home < 0:
        return
    try:
        os.write(home, b"%d" % pid)
    except OSError:  # it has ended (ESRCH), or we may not: then a later launch reaps it
        return


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it had not made the group yet, or was its last member


def _reap(pid: int, seconds: float | None = None, *, is_init: bool = False) -> bool:
    """Wait for ``pid`` to end; False if it has not after ``seconds``, as a process that hangs in the kernel, or if it
    is an init that waits for us."""
    if seconds is not None and not _ends(pid, seconds, is_init):
        return False
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # reaped by the kernel (SIGCHLD ignored) or by a waitpid(-1) elsewhere: gone is gone
    return True


def _ends(pid: int, seconds: float, is_init: bool) -> bool:
    with ExitStack() as stack:
        poll = select.poll()
        try:
            pidfd = _shim.pidfd_open(pid)
        except OSError:  # no pidfds here, or somebody else has reaped it
            if not is_init:
                return True
        else:
            stack.callback(os.close, pidfd)
            poll.register(pidfd, select.POLLIN)
        begun = time.monotonic()
        while not poll.poll((_LOOK_SECONDS if is_init else seconds) * 1000):
            state = _state(pid)
            passed = time.monotonic() - begun
            if state == "Z" or (not state and is_init):
                return True
            if is_init and _waits_for_us(pid):
                return False
            if passed >= seconds and (state != "R" or passed > _LONGEST_REAP):
                return False
        return True


def _state(pid: int) -> str:
    """R: it only waits for a processor; what has been killed ends then, if late. What sleeps may never do. Z: it has
    ended. Nothing: it is gone, or there is no /proc."""
    try:
        stat = _procfs.read(f"{pid}/stat")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def _waits_for_us(init: int) -> bool:
    """Whether an init that has been killed cannot end, because a child of ours in its PID namespace is a zombie: to
    wait for that one is for its owner. /proc/PID/ns/pid is there for zombies too."""
    try:
        namespace = _procfs.inode(f"{init}/ns/pid")
        tasks = _procfs.names("self/task")
        # Linux 3.5 with CONFIG_PROC_CHILDREN; without it we wait for as long as for what hangs
        children = [int(pid) for task in tasks for pid in _procfs.read(f"self/task/{task}/children").split()]
        zombies = [pid for pid in children if pid != init and _state(pid) == "Z"]
        return any(_procfs.inode(f"{pid}/ns/pid") == namespace for pid in zombies)
    except OSError:  # a thread or a child has ended just now
        return False


def _reap_late(*, seconds: float = 0) -> None:
    """Reap what had been killed, if it has ended by now; an init that waits for us no more gets ``seconds``."""
    for pid in list(_unreaped):
        is_init = _unreaped.pop(pid, None)
        if is_init is None:
            continue  # another thread has it
        is_gone = False
        try:
            is_gone = _is_reaped(pid)
            if not is_gone and is_init and seconds and not _waits_for_us(pid):
                is_gone = _reap(pid, seconds, is_init=True)
                is_init = _waits_for_us(pid)  # else it hangs, or waits for somebody else: nobody waits for it again
        finally:
            if not is_gone:
                _unreaped[pid] = is_init


def _is_reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def child_has_been_reaped() -> None:
    """The caller has waited for a program: an init may have waited for just that, and ends now."""
    if _unreaped:
        _reap_late(seconds=_REAP_SECONDS)
