"""One pinned process: what may be asked of it cannot be answered by another one that got its pid later."""

from __future__ import annotations

import errno
import os
import re
import select
import warnings
from typing import TYPE_CHECKING

from .._kernel import abi, calls, procfs
from .._kernel.thread import missing_type, own_inodes
from ..exceptions import NamespaceError, TargetGoneError, error

if TYPE_CHECKING:
    from types import TracebackType
    from typing import NoReturn

    from typing_extensions import Self

    from .._kernel.nstypes import NsType


#: What pidfd_open(2) answers for a thread: the second since Linux 6.16.
_IS_A_THREAD = frozenset({errno.EINVAL, errno.ENOENT})
#: Answers of it that mean "no pidfds here": an old kernel, a seccomp filter, or no PIDFD_THREAD (Linux 6.9).
_NO_PIDFD = frozenset({errno.ENOSYS, errno.EPERM, errno.EINVAL})
_NO_PIDFD_REASON = "needs Linux 5.3, and 6.9 for a thread"


class Process:
    """A process held by a pidfd, or by its open /proc directory where the kernel has none: before Linux 5.3, and 6.9
    for a thread.
    """

    __slots__ = ("__weakref__", "_pid", "_pidfd", "_proc")

    def __init__(self, pid: int) -> None:
        """As ``from_pid``."""
        self._own(pid, *_pin(pid))

    @classmethod
    def _owning(cls, pid: int, pidfd: int, proc: int = -1) -> Self:
        """Take ownership of the descriptors of the process ``pid``."""
        made = cls.__new__(cls)
        made._own(pid, pidfd, proc)
        return made

    def _own(self, pid: int, pidfd: int, proc: int = -1) -> None:
        self._pid = pid
        self._proc = proc
        self._pidfd = pidfd  # the last: __del__ goes by it

    @classmethod
    def from_pid(cls, pid: int) -> Self:
        """Pin the process ``pid``, or the thread of that id.

        ValueError for a number that is no pid, TargetGoneError if there is no such process. pidfd_open(2).
        """
        return cls(pid)

    @classmethod
    def from_pidfd(cls, pidfd: int) -> Self:
        """Pin the process of ``pidfd``, which is duplicated and stays the caller's. TargetGoneError if it has ended."""
        own = calls.duplicate(pidfd)
        try:
            return cls._owning(_pid_of(own), own)
        except BaseException:
            os.close(own)
            raise

    @property
    def pid(self) -> int:
        """The process ID, as the process that made this object saw it. Readable when closed."""
        return self._pid

    def fileno(self) -> int:
        """Return the pidfd. ValueError if closed; NamespaceError (ENOSYS) before Linux 5.3, for a thread 6.9."""
        self._check_open()
        if self._pidfd < 0:
            raise error(NamespaceError, errno.ENOSYS, "pidfd_open", target=self.words(), reason=_NO_PIDFD_REASON)
        return self._pidfd

    @property
    def pidfd(self) -> int:
        """The pidfd, or -1 where the kernel gives none. ValueError if closed."""
        self._check_open()
        return self._pidfd

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._pidfd < 0 and self._proc < 0

    def is_alive(self) -> bool:
        """Whether the process is running; a zombie is not. ValueError if closed."""
        self._check_open()
        return self.state() == "alive"

    def state(self) -> str:
        """``"alive"``, ``"zombie"`` (ended, but not waited for by its parent) or ``"gone"``."""
        if self._pidfd < 0:
            return _proc_state(self._proc)
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(0):  # a pidfd is readable once its process has ended, Linux 5.3
            return "alive"
        return "zombie" if self._exists() else "gone"

    def _exists(self) -> bool:
        try:
            calls.pidfd_send_signal(self._pidfd, 0)
        except OSError as refused:
            return refused.errno != errno.ESRCH  # EPERM: it is there, and another user's
        return True

    def proc(self) -> int:
        """Return a descriptor of this process's /proc directory, which stays ours. TargetGoneError, NamespaceError."""
        self._check_open()
        if self._proc < 0:
            try:
                self._proc = self._checked(_open_proc(self._pid))
            except TargetGoneError:
                raise self.gone("open /proc") from None
        return self._proc

    def _checked(self, opened: int) -> int:
        """``opened``, a file of /proc/PID: while the pidfd's process exists nobody else has had its pid."""
        try:
            check_proc(self.words())
            if not self._exists():
                raise self.gone("open")
        except BaseException:
            os.close(opened)
            raise
        return opened

    def open_namespace(self, row: NsType, *, for_children: bool = False) -> int:
        """Return a new descriptor of a namespace of this process: by pidfd (Linux 6.11), else through /proc."""
        self._check_open()
        request, name = (row.get_for_children, row.children) if for_children else (row.get, row.name)
        if request is None or name is None:
            raise ValueError(f"a {row.name} namespace has no other one for children: only pid and time do")
        if self._pidfd >= 0:
            try:
                return calls.pidfd_namespace(self._pidfd, request)
            except OSError as refused:
                if refused.errno not in abi.NO_SUCH_IOCTL:
                    raise self._refused(refused, row) from None
        try:
            return os.open(f"ns/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc())
        except NamespaceError:
            raise
        except OSError as refused:
            raise self._refused(refused, row) from None

    def inodes(self, rows: tuple[NsType, ...]) -> tuple[int, ...]:
        """Inode numbers of this process's namespaces, 0 for a type that the kernel lacks."""
        self._check_open()
        if self._pidfd >= 0:
            try:
                return calls.inodes(self._pidfd, [row.get for row in rows])
            except OSError as refused:
                if refused.errno not in abi.NO_SUCH_IOCTL:
                    raise self._refused(refused, None) from None
        return tuple(self._inode(row) for row in rows)

    def shares(self, row: NsType) -> bool:
        """Whether this process is in the same namespace of that type as this thread, or the kernel has none."""
        self._check_open()
        if self._pidfd >= 0:
            result = calls.lib.nsjoin_is_shared(self._pidfd, row.get)
            if result >= 0:
                return result == 1
        return self.inodes((row,)) == own_inodes((row,))

    def _inode(self, row: NsType) -> int:
        try:
            return os.stat(f"ns/{row.name}", dir_fd=self.proc()).st_ino
        except NamespaceError:
            raise
        except OSError as refused:
            if refused.errno == errno.ENOENT and self.state() == "alive":
                return 0
            raise self._refused(refused, row) from None

    def open_root(self) -> int:
        """Return an O_PATH descriptor of this process's root directory."""
        try:
            if self._pidfd < 0 or self._proc >= 0:
                return calls.above_stdio(os.open("root", abi.O_PATH | os.O_CLOEXEC, dir_fd=self.proc()))
            return self._checked(calls.above_stdio(procfs.open_file(f"{self._pid}/root", abi.O_PATH)))
        except NamespaceError:
            raise
        except OSError as refused:
            raise self._refused(refused, None, "open root") from None

    def read_proc(self, name: str) -> str:
        """Return the text of one file of this process's /proc directory."""
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc())
        with open(fd, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()

    def words(self) -> str:
        """This process in an error message."""
        return f"process {self._pid}"

    def close(self) -> None:
        """Close the descriptors. Closing twice is no error."""
        pidfd, proc, self._pidfd, self._proc = self._pidfd, self._proc, -1, -1
        for fd in (pidfd, proc):
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._pid}{' closed' if self.closed else ''}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot copy or pickle {self!r}: it owns descriptors (from_pidfd gives another one)")

    def __del__(self) -> None:
        # it has none where the arguments were wrong, or a signal handler has raised
        if hasattr(self, "_pidfd") and not self.closed:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def _check_open(self) -> None:
        if self._pidfd < 0 and self._proc < 0:
            raise ValueError(f"this {type(self).__name__} is closed")

    def gone(self, step: str) -> NamespaceError:
        """The error for this process having ended; ``step`` is what was under way."""
        return TargetGoneError(errno.ESRCH, step, target=self.words(), reason=self.gone_reason())

    def gone_reason(self) -> str | None:
        """Why this process has no namespaces any more, None if it has."""
        state = self.state()
        if state == "zombie":
            return "it is a zombie: it has ended and has no namespaces, only its parent has not waited for it"
        return "the process has ended" if state == "gone" else None

    def _refused(self, refused: OSError, row: NsType | None, step: str = "open") -> NamespaceError:
        gone = self.gone_reason()
        number = errno.ESRCH if gone else refused.errno or 0
        reason = gone or self._reason(refused, row)
        return error(NamespaceError, number, step, nstype=row.name if row else None, target=self.words(), reason=reason)

    def _reason(self, refused: OSError, row: NsType | None) -> str | None:
        if refused.errno in (errno.EACCES, errno.EPERM):
            return (
                "looking into another process needs its uid and gid and no more capabilities than we have, or "
                "CAP_SYS_PTRACE in its user namespace (ptrace(2), PTRACE_MODE_READ)"
            )
        if refused.errno == errno.ENOENT:
            if row is None:
                return _hidden_reason(self._pid)
            return f"{missing_type(row)}; or /proc does not show them"
        return None


def _pin(pid: int) -> tuple[int, int]:
    """A pidfd of the process ``pid`` and -1, or -1 and its open /proc directory where the kernel gives no pidfd."""
    if isinstance(pid, bool) or not isinstance(pid, int):
        raise TypeError(f"a pid is an int, not {type(pid).__name__}")
    if pid <= 0:
        raise ValueError(f"a pid is positive, not {pid}")
    try:
        try:
            pidfd = calls.pidfd_open(pid)
        except OSError as refused:
            if refused.errno not in _IS_A_THREAD:
                raise
            pidfd = calls.pidfd_open(pid, abi.PIDFD_THREAD)
    except OSError as refused:
        if refused.errno in _NO_PIDFD:
            return -1, _open_own_proc(pid)
        raise error(NamespaceError, refused.errno or 0, "pidfd_open", target=f"process {pid}") from None
    except OverflowError:
        raise error(NamespaceError, errno.ESRCH, "pidfd_open", target=f"process {pid}") from None
    return calls.above_stdio(pidfd), -1


def _pid_of(pidfd: int) -> int:
    """The pid of a pidfd's process; TargetGoneError if it has ended, ValueError if it is no pidfd."""
    try:
        return calls.pidfd_pid(pidfd)
    except OSError as refused:
        if refused.errno == errno.ESRCH:
            raise TargetGoneError(errno.ESRCH, "pidfd", reason="the process has ended") from None
    found = re.search(r"^Pid:\s*(-?\d+)$", procfs.read(f"self/fdinfo/{pidfd}"), re.MULTILINE)
    if found is None:
        raise ValueError("this descriptor is no pidfd")
    pid = int(found[1])
    if pid <= 0:  # -1: it has ended; 0: it is not in our PID namespace
        raise TargetGoneError(
            errno.ESRCH, "pidfd", reason="the process has ended" if pid else "it is not visible in our PID namespace"
        )
    return pid


def _open_proc(pid: int) -> int:
    """Open /proc/PID; the descriptor pins the process: openat through it says ESRCH once it is gone, on any kernel."""
    try:
        fd = calls.above_stdio(procfs.open_file(f"{pid}", os.O_RDONLY | os.O_DIRECTORY))
    except OSError as refused:
        raise error(
            NamespaceError,
            errno.ESRCH if _pid_is_free(pid) else refused.errno or 0,
            "open /proc",
            target=f"process {pid}",
            reason=_hidden_reason(pid),
        ) from None
    return fd


def _open_own_proc(pid: int) -> int:
    fd = _open_proc(pid)
    try:
        check_proc(f"process {pid}")
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_proc(words: str | None = None) -> None:
    """Raise NamespaceError (EXDEV) if /proc has other pids than those this process knows. ``words``: the target."""
    if procfs.read_link("self") != str(os.getpid()):
        raise error(
            NamespaceError,
            errno.EXDEV,
            "open /proc",
            target=words,
            reason="the /proc that is mounted here belongs to another PID namespace, its pids are others",
        )


def _pid_is_free(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _hidden_reason(pid: int) -> str | None:
    if not os.path.exists("/proc/self"):
        return "/proc is not mounted here"
    if _pid_is_free(pid):
        return None
    return "the process exists, but this /proc hides it (mount option hidepid), or it just ended"


def _proc_state(proc: int) -> str:
    """The state by /proc/PID/stat, for kernels without pidfds."""
    try:
        fd = os.open("stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    except OSError:
        return "gone"
    with open(fd, "rb") as file:
        try:
            letter = file.read().rpartition(b")")[2].split()[0]
        except ProcessLookupError:
            return "gone"
    return "zombie" if letter in (b"Z", b"X") else "alive"
