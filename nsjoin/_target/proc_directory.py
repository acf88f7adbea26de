"""The /proc directory of one process: opened, checked, and why it is missing."""

from __future__ import annotations

import errno
import os

from .._kernel import calls, procfs
from ..exceptions import NamespaceError, error


def open_proc(pid: int) -> int:
    """Open /proc/PID. The descriptor pins the process: openat(2) through it fails with ESRCH once that is gone."""
    try:
        return calls.above_stdio(procfs.open_file(f"{pid}", os.O_RDONLY | os.O_DIRECTORY))
    except OSError as refused:
        number = errno.ESRCH if _pid_is_free(pid) else refused.errno or 0
        reason = hidden_reason(pid)
        raise error(NamespaceError, number, "open /proc", target=f"process {pid}", reason=reason) from None


def open_checked_proc(pid: int) -> int:
    """Open /proc/PID as ``open_proc``, and raise NamespaceError (EXDEV) if that /proc has other pids."""
    fd = open_proc(pid)
    try:
        check_proc(f"process {pid}")
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_proc(target: str | None = None) -> None:
    """Raise NamespaceError (EXDEV) if /proc has other pids than this process's PID namespace. OSError."""
    if procfs.read_link("self") != str(os.getpid()):
        reason = "the /proc that is mounted here belongs to another PID namespace, its pids are others"
        raise error(NamespaceError, errno.EXDEV, "open /proc", target=target, reason=reason)


def hidden_reason(pid: int) -> str | None:
    """Return why /proc has no directory of this process, None if the process has ended."""
    if not os.path.exists("/proc/self"):
        return "/proc is not mounted here"
    if _pid_is_free(pid):
        return None
    return "the process exists, but this /proc hides it (mount option hidepid), or it just ended"


def _pid_is_free(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def proc_state(proc: int) -> str:
    """Return the state by /proc/PID/stat, for kernels without pidfds: "alive", "zombie" or "gone"."""
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
