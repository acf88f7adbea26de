"""A pinned process: queries never reach a later process that reuses the pid."""

from __future__ import annotations

import errno
import os
import re
import select
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .._kernel import abi, calls, procfs
from .._kernel.thread import missing_type, own_inodes
from ..exceptions import NamespaceError, TargetGoneError, error, refusals
from .proc_directory import check_proc, hidden_reason, open_checked_proc, open_proc, proc_state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from typing_extensions import Self

    from .._kernel.nstypes import NsType


_NO_PIDFD_REASON = "needs Linux 5.3, and 6.9 for a thread"


class Process:
    """A process or thread held by a pidfd, or by its open /proc directory where the kernel has none: before Linux 5.3,
    and 6.9 for a thread. The inside of a ``Target``.
    """

    __slots__ = ("_pid", "_pidfd", "_proc")

    def __init__(self, pid: int) -> None:
        """Pin the process, or the thread of that id. TypeError, ValueError; TargetGoneError. pidfd_open(2)."""
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
        self._pidfd = pidfd  # last: __del__ looks for it

    @classmethod
    def from_pidfd(cls, pidfd: int) -> Self:
        """Pin the process of ``pidfd``, which is duplicated. TargetGoneError if it has ended, ValueError if not one."""
        own = calls.duplicate(pidfd)
        try:
            return cls._owning(_pid_of(own), own)
        except BaseException:
            os.close(own)
            raise

    def duplicate(self) -> Self:
        """Return another owner of the same process, for a thread that may outlive this one."""
        self._check_open()
        if self._pidfd < 0:
            return self._owning(self._pid, -1, calls.duplicate(self._proc))
        return self._owning(self._pid, calls.duplicate(self._pidfd))

    @property
    def pid(self) -> int:
        """The process ID, in the PID namespace of the process that made this object. Readable when closed."""
        return self._pid

    def fileno(self) -> int:
        """Return the pidfd. ValueError if closed; NamespaceError (ENOSYS) before Linux 5.3, for a thread 6.9."""
        if self.pidfd < 0:
            raise error(NamespaceError, errno.ENOSYS, "pidfd_open", target=self.describe(), reason=_NO_PIDFD_REASON)
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
        """Return ``"alive"``, ``"zombie"`` (ended, but not waited for by its parent) or ``"gone"``."""
        if self._pidfd < 0:
            return proc_state(self._proc)
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(0):  # a pidfd is readable once its process has ended, Linux 5.3
            return "alive"
        return "zombie" if self._exists() else "gone"

    def _exists(self) -> bool:
        try:
            calls.pidfd_send_signal(self._pidfd, 0)
        except OSError as refused:
            return refused.errno != errno.ESRCH  # EPERM: it exists, and is another user's
        return True

    def proc(self) -> int:
        """Return this process's /proc directory, a descriptor that this object owns. NamespaceError."""
        self._check_open()
        if self._proc < 0:
            try:
                self._proc = self._checked(open_proc(self._pid))
            except TargetGoneError:
                raise self.gone("open /proc") from None
        return self._proc

    def _checked(self, opened: int) -> int:
        """Return ``opened``, a file of /proc/PID, if it is this process's: while that exists, its pid is not reused."""
        try:
            check_proc(self.describe())
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
        with self.refusals("open", row):
            if self._pidfd >= 0:
                try:
                    return calls.pidfd_namespace(self._pidfd, request)
                except OSError as refused:
                    if not abi.lacks("PIDFD_GET_*_NAMESPACE", refused):
                        raise
            return os.open(f"ns/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc())

    def inodes(self, rows: tuple[NsType, ...]) -> tuple[int, ...]:
        """Return the inode numbers of this process's namespaces, 0 for a type that the kernel lacks."""
        self._check_open()
        if self._pidfd >= 0:
            with self.refusals("open"):
                try:
                    return calls.inodes(self._pidfd, [row.get for row in rows])
                except OSError as refused:
                    if not abi.lacks("PIDFD_GET_*_NAMESPACE", refused):
                        raise
        return tuple(self._inode(row) for row in rows)

    def _inode(self, row: NsType) -> int:
        with self.refusals("open", row):
            try:
                return os.stat(f"ns/{row.name}", dir_fd=self.proc()).st_ino
            except NamespaceError:
                raise
            except FileNotFoundError:
                if self.state() != "alive":
                    raise
                return 0

    def shares(self, row: NsType) -> bool:
        """Whether this process is in the same namespace of that type as this thread, or the kernel has none."""
        self._check_open()
        if self._pidfd >= 0:
            is_shared = calls.is_shared(self._pidfd, row.get)
            if is_shared is not None:
                return is_shared
        return self.inodes((row,)) == own_inodes((row,))

    def open_root(self) -> int:
        """Return an O_PATH descriptor of this process's root directory."""
        with self.refusals("open root"):
            if self._pidfd < 0 or self._proc >= 0:
                return calls.above_stdio(os.open("root", abi.O_PATH | os.O_CLOEXEC, dir_fd=self.proc()))
            return self._checked(calls.above_stdio(procfs.open_file(f"{self._pid}/root", abi.O_PATH)))

    def read_proc(self, name: str) -> str:
        """Return the text of one file of this process's /proc directory. NamespaceError, OSError."""
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc())
        with open(fd, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()

    def describe(self) -> str:
        """Return what error messages call this process."""
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

    def __del__(self) -> None:
        # there is no descriptor where the arguments were wrong, or a signal handler has raised
        if hasattr(self, "_pidfd") and not self.closed:
            warnings.warn(f"unclosed <Target {self._pid}>", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("this Target is closed")

    # --- why it failed

    def gone(self, step: str) -> NamespaceError:
        """Return the error for this process having ended; ``step`` is what was under way."""
        return TargetGoneError(errno.ESRCH, step, target=self.describe(), reason=self.gone_reason())

    def gone_reason(self) -> str | None:
        """Return why this process has no namespaces any more, None if it has some."""
        state = self.state()
        if state == "zombie":
            return "it is a zombie: it has ended and has no namespaces, only its parent has not waited for it"
        return "the process has ended" if state == "gone" else None

    @contextmanager
    def refusals(self, step: str, row: NsType | None = None) -> Iterator[None]:
        """Raise an OSError of the block as NamespaceError, with its reason; TargetGoneError if it has ended."""
        try:
            yield
        except NamespaceError:
            raise
        except OSError as refused:
            gone = self.gone_reason()
            number = errno.ESRCH if gone else refused.errno or 0
            reason = gone or self._reason(number, row)
            nstype = row.name if row else None
            raise error(NamespaceError, number, step, nstype=nstype, target=self.describe(), reason=reason) from None

    def _reason(self, number: int, row: NsType | None) -> str | None:
        if number in (errno.EACCES, errno.EPERM):
            return (
                "looking into another process needs its uid and gid and no more capabilities than this process has, "
                "or CAP_SYS_PTRACE in its user namespace (ptrace(2), PTRACE_MODE_READ)"
            )
        if number == errno.ENOENT:
            return f"{missing_type(row)}; or /proc does not show them" if row else hidden_reason(self._pid)
        return None


def _pin(pid: int) -> tuple[int, int]:
    """Return a pidfd of the process ``pid`` and -1, or -1 and its open /proc directory if the kernel gives no pidfd."""
    if isinstance(pid, bool) or not isinstance(pid, int):
        raise TypeError(f"a pid is an int, not {type(pid).__name__}")
    if pid <= 0:
        raise ValueError(f"a pid is positive, not {pid}")
    with refusals("pidfd_open", target=f"process {pid}"):
        try:
            return calls.above_stdio(calls.pidfd_of(pid)), -1
        except OverflowError:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
        except OSError as refused:
            if not abi.lacks("PIDFD_THREAD", refused):  # or pidfd_open(2) itself
                raise
    return -1, open_checked_proc(pid)


def _pid_of(pidfd: int) -> int:
    """Return the pid of a pidfd's process; TargetGoneError if it has ended, ValueError if it is no pidfd."""
    try:
        return calls.pidfd_pid(pidfd)
    except OSError as refused:
        if refused.errno == errno.ESRCH:
            raise TargetGoneError(errno.ESRCH, "pidfd", reason="the process has ended") from None
    found = re.search(r"^Pid:\s*(-?\d+)$", procfs.read(f"self/fdinfo/{pidfd}"), re.MULTILINE)
    if found is None:
        raise ValueError("this descriptor is no pidfd")
    pid = int(found[1])
    if pid <= 0:  # -1: it has ended; 0: it is not in this PID namespace
        reason = "the process has ended" if pid else "it is not visible in this process's PID namespace"
        raise TargetGoneError(errno.ESRCH, "pidfd", reason=reason)
    return pid
