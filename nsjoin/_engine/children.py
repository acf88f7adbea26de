"""Wait for what was started, end it, reap it: the one place that kills."""

from __future__ import annotations

import os
import select
import signal
import time
from typing import TYPE_CHECKING, TypeVar

from .._kernel import calls, procfs

if TYPE_CHECKING:
    from collections.abc import Generator

T = TypeVar("T")

#: Children that were killed but did not end in time (hung in the kernel), reaped by a later launch. True: an init,
#: which ends once the last process of its PID namespace has been reaped, and that may be a program of the caller's.
unreaped: dict[int, bool] = {}

_REAP_SECONDS = 0.5
_LOOK_SECONDS = 0.02  # between looks at what holds up the end of an init
_LONGEST_REAP = 30.0  # of a process that gets no processor
_LONGEST_POLL = 86400.0  # poll(2) takes milliseconds in an int: 24.8 days


os.register_at_fork(after_in_child=unreaped.clear)  # they are children of the parent


class Expired(Exception):  # noqa: N818 - a report, not an error that callers see
    """The deadline passed before the program was running. What had been started is gone."""


def readable(fd: int, seconds: float | None = None) -> bool:
    """Wait until ``fd`` is readable or hung up; False after ``seconds``. Python's signal handlers run meanwhile."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if seconds is None else min(max(seconds, 0), _LONGEST_POLL) * 1000))


def wait(launching: Generator[int, None, T], deadline: float | None = None) -> T:
    """Wait in this thread for the result of ``launch``, or of another generator that yields descriptors.

    Python's signal handlers run meanwhile, and may raise. ``deadline`` is a time of ``time.monotonic``: Expired.
    """
    try:
        while True:
            fd = next(launching)
            try:
                _wait_for_news(fd, deadline)
            except Expired as expired:
                launching.throw(expired)  # ends what was started, and may know what it waited for
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        launching.close()  # an exception during the wait: ends what was started


def _wait_for_news(fd: int, deadline: float | None) -> None:
    while not readable(fd, None if deadline is None else deadline - time.monotonic()):
        if deadline is not None and time.monotonic() >= deadline:
            raise Expired


# --- ending -------------------------------------------------------------------------------------------------


def end(pid: int, *, leads_group: bool = False, home: int = -1, is_init: bool = False) -> None:
    """Kill and reap a child. ``home``: as in ``Cgroup``, the cgroup that it is moved to once it has been killed.

    A child that hangs in the kernel is reaped by a later launch; an init that waits for zombies of the caller's, once
    those have been waited for.
    """
    if pid <= 0:
        return
    try:
        if leads_group and hasattr(os, "waitid"):  # not on PyPy
            # not reaped yet: until then no other process gets its number, nor that of its group
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        elif os.waitpid(pid, os.WNOHANG)[0] == pid:
            if leads_group:
                _kill_group(pid)
            return
    except ChildProcessError:
        return  # reaped elsewhere: the number may be another process's by now
    unreaped[pid] = is_init
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended just now, and the kernel has reaped it, since SIGCHLD is ignored here
    if leads_group:
        _kill_group(pid)
    bring_home(pid, home)
    if reap(pid, _REAP_SECONDS, is_init=is_init):
        unreaped.pop(pid, None)  # another thread's launch may have reaped it meanwhile


def bring_home(pid: int, home: int) -> None:
    """Move a process out of a cgroup that may be frozen: it thaws, and signals reach it. ``home`` -1: impossible."""
    if home < 0:
        return
    try:
        os.write(home, b"%d" % pid)
    except OSError:  # it has ended (ESRCH), or this is not permitted: a later launch reaps it
        return


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it had not made the group yet, or was its last member


# --- reaping ------------------------------------------------------------------------------------------------


def reap(pid: int, seconds: float | None = None, *, is_init: bool = False) -> bool:
    """Wait for ``pid`` to end.

    False if it has not after ``seconds``, as a process that hangs in the kernel, or if it is an init that waits for
    this process.
    """
    if seconds is not None and not _ends(pid, seconds, is_init):
        return False
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # reaped by the kernel (SIGCHLD ignored) or by a waitpid(-1) elsewhere: gone is gone
    return True


def _ends(pid: int, seconds: float, is_init: bool) -> bool:
    try:
        pidfd = calls.pidfd_open(pid)
    except OSError:  # no pidfds here, or reaped elsewhere
        return not is_init or _ends_by_looks(pid, seconds, is_init, -1)
    try:
        return _ends_by_looks(pid, seconds, is_init, pidfd)
    finally:
        os.close(pidfd)


def _ends_by_looks(pid: int, seconds: float, is_init: bool, pidfd: int) -> bool:
    begun = time.monotonic()
    while not _has_news(pidfd, _LOOK_SECONDS if is_init else seconds):
        state = _state(pid)
        passed = time.monotonic() - begun
        if state == "Z" or (not state and is_init):
            return True
        if is_init and _waits_for_us(pid):
            return False
        if passed >= seconds and (state != "R" or passed > _LONGEST_REAP):
            return False
    return True


def _has_news(pidfd: int, seconds: float) -> bool:
    if pidfd >= 0:
        return readable(pidfd, seconds)
    select.poll().poll(seconds * 1000)
    return False


def _state(pid: int) -> str:
    """Return the state as in /proc/PID/stat, ``""`` if it is gone or there is no /proc.

    A killed process that is runnable (R) and merely lacks CPU time will exit; one asleep in the kernel may not.
    """
    try:
        stat = procfs.read(f"{pid}/stat")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def _waits_for_us(init: int) -> bool:
    """Whether an init that was killed cannot end because a child of this process in its PID namespace is a zombie.

    Its owner must wait for that one. /proc/PID/ns/pid exists for zombies too.
    """
    try:
        namespace = procfs.inode(f"{init}/ns/pid")
        tasks = procfs.names("self/task")
        # Linux 3.5 with CONFIG_PROC_CHILDREN; without it the wait is as long as for a process that hangs
        children = [int(pid) for task in tasks for pid in procfs.read(f"self/task/{task}/children").split()]
        zombies = [pid for pid in children if pid != init and _state(pid) == "Z"]
        return any(procfs.inode(f"{pid}/ns/pid") == namespace for pid in zombies)
    except OSError:  # a thread or a child has ended just now
        return False


def reap_late(*, seconds: float = 0) -> None:
    """Reap the children that did not end in time, if they have by now; an init that waits no more gets ``seconds``."""
    for pid in list(unreaped):
        is_init = unreaped.pop(pid, None)
        if is_init is None:
            continue  # another thread has it
        is_gone = False
        try:
            is_gone = _is_reaped(pid)
            if not is_gone and is_init and seconds and not _waits_for_us(pid):
                is_gone = reap(pid, seconds, is_init=True)
                is_init = _waits_for_us(pid)  # else it hangs, or waits for another process: not waited for again
        finally:
            if not is_gone:
                unreaped[pid] = is_init


def child_has_been_reaped() -> None:
    """Note that the caller has waited for a program: an init may have waited for just that, and ends now."""
    if unreaped:
        reap_late(seconds=_REAP_SECONDS)


def _is_reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
