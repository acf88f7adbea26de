"""``run_in``: subprocess.run for a program inside a target's namespaces."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, overload

from .._engine.children import Expired, bring_home
from .._target.cgroups import of_child, why_it_hangs
from .spawn import Popen

if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Unpack

    from .._target.target import TargetLike
    from ..exceptions import NamespaceError
    from .keywords import Command, RunByEncoding, RunByErrors, RunByNewlines, RunBytes, RunByText, RunUndecided


STATUS_IS_LOST = (
    "the program has ended, but its exit status is lost: this process ignores SIGCHLD, or something in it has waited "
    "for all children (waitpid(-1))"
)


@overload
def run_in(target: TargetLike, args: Command, **keywords: Unpack[RunByText]) -> subprocess.CompletedProcess[str]: ...
@overload
def run_in(
    target: TargetLike, args: Command, **keywords: Unpack[RunByEncoding]
) -> subprocess.CompletedProcess[str]: ...
@overload
def run_in(target: TargetLike, args: Command, **keywords: Unpack[RunByErrors]) -> subprocess.CompletedProcess[str]: ...
@overload
def run_in(
    target: TargetLike, args: Command, **keywords: Unpack[RunByNewlines]
) -> subprocess.CompletedProcess[str]: ...
@overload
def run_in(target: TargetLike, args: Command, **keywords: Unpack[RunBytes]) -> subprocess.CompletedProcess[bytes]: ...
@overload
def run_in(target: TargetLike, args: Command, **keywords: Unpack[RunUndecided]) -> subprocess.CompletedProcess[Any]: ...
def run_in(
    target: TargetLike,
    args: Any,
    *,
    input: Any = None,  # noqa: A002 - as in subprocess.run
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    kill_group: bool = False,
    **popen_kwargs: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a program in ``target``'s namespaces, wait for it, and return a subprocess.CompletedProcess.

    ``target`` is a pid, a ``Target``, a ``Namespace``, the path of a namespace file, or an iterable of the last two.
    ``input``, ``capture_output``, ``timeout`` and ``check`` are as for subprocess.run, the rest as for ``Popen``::

        nsjoin.run_in(pid, ["hostname"], namespaces=["uts"], capture_output=True, text=True).stdout

    ``timeout`` (seconds) counts from the call and includes the wait for exec, as something inside may delay it. When
    it expires, or another exception ends the wait, the program is killed and reaped. ``kill_group=True`` gives the
    program a process group of its own, and kills all of that.

    Raises subprocess.TimeoutExpired, subprocess.CalledProcessError (``check=True``), and what ``Popen`` raises;
    ChildProcessError if the exit status is lost because this process ignores SIGCHLD or calls waitpid(-1) elsewhere,
    where subprocess.run reports 0.
    """
    choose_streams(popen_kwargs, input, capture_output)
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        process = Popen(args, target=target, _deadline=deadline, _new_group=kill_group, **popen_kwargs)
    except Expired as expired:
        raise subprocess.TimeoutExpired(args, timeout or 0.0) from expired.__cause__
    with process:
        try:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            stdout, stderr = process.communicate(input, timeout=left)
        except subprocess.TimeoutExpired as expired:
            held_up = kill(process, kill_group)
            process.wait()
            expired.timeout = timeout or 0.0
            raise expired from held_up
        except BaseException:
            kill(process, kill_group)
            raise
        returncode = process.poll()
    assert returncode is not None
    if process._status_is_lost:
        raise ChildProcessError(errno.ECHILD, STATUS_IS_LOST)
    if check and returncode:
        raise subprocess.CalledProcessError(returncode, process.args, output=stdout, stderr=stderr)
    return subprocess.CompletedProcess(process.args, returncode, stdout, stderr)


def choose_streams(keywords: dict[str, Any], given: Any, capture_output: bool) -> None:
    """Add the pipes that ``input`` and ``capture_output`` need; ValueError as from subprocess.run."""
    if given is not None:
        if keywords.get("stdin") is not None:
            raise ValueError("stdin and input arguments may not both be used.")
        keywords["stdin"] = subprocess.PIPE
    if capture_output:
        if keywords.get("stdout") is not None or keywords.get("stderr") is not None:
            raise ValueError("stdout and stderr arguments may not be used with capture_output.")
        keywords["stdout"] = keywords["stderr"] = subprocess.PIPE


def kill(process: Popen[Any], group: bool) -> NamespaceError | None:
    """Kill the program, or the process group that it leads; return what has held it up, if known.

    Nothing ends in a frozen version 1 cgroup before it is thawed, so the program is moved out of it.
    """
    # the leader has not been waited for, so its number is still its group's
    if group and process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    if process.returncode is not None:
        return None
    with ExitStack() as stack:
        cgroups = of_child(process.pid, stack)
        held_up = why_it_hangs(cgroups)
        for cgroup in cgroups if held_up else ():
            bring_home(process.pid, cgroup.home)
        return held_up
