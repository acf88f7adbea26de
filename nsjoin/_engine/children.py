"""TODO."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from .._kernel import calls, procfs
from .launch import _LOOK_SECONDS, _state

if TYPE_CHECKING:
    from collections.abc import Generator


T = TypeVar("T")


class Expired(Exception):  # noqa: N818 - the same
    """The deadline passed before the program was running. What had been started is gone."""


# --- the launch ---------------------------------------------------------------------------------------------

#: Children that had been killed but did not end in time (hung in the kernel), reaped by a later launch. True: an init,
#: which ends once the last process of its PID namespace has been reaped, and that may be a program of the caller's.
_unreaped: dict[int, bool] = {}

_REAP_SECONDS = 0.5
_LONGEST_REAP = 30.0  # of one that gets no processor
_LONGEST_POLL = 86400.0  # poll(2) takes milliseconds in an int: 24.8 days


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
            pidfd = calls.pidfd_open(pid)
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


def _waits_for_us(init: int) -> bool:
    """Whether an init that has been killed cannot end, because a child of ours in its PID namespace is a zombie: to
    wait for that one is for its owner. /proc/PID/ns/pid is there for zombies too."""
    try:
        namespace = procfs.inode(f"{init}/ns/pid")
        tasks = procfs.names("self/task")
        # Linux 3.5 with CONFIG_PROC_CHILDREN; without it we wait for as long as for what hangs
        children = [int(pid) for task in tasks for pid in procfs.read(f"self/task/{task}/children").split()]
        zombies = [pid for pid in children if pid != init and _state(pid) == "Z"]
        return any(procfs.inode(f"{pid}/ns/pid") == namespace for pid in zombies)
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
