"""``run_in``: subprocess.run, inside."""

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

    from typing_extensions import Literal, Unpack

    from .._target.target import TargetLike
    from ..exceptions import NamespaceError
    from .keywords import Command, SpawnKeywords


STATUS_IS_LOST = (
    "the program has ended, but its exit status is lost: this process ignores SIGCHLD, or something in it has waited "
    "for all children (waitpid(-1))"
)


@overload
def run_in(
    target: TargetLike,
    args: Command,
    *,
    input: str | None = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    kill_group: bool = False,
    text: Literal[True],
    encoding: str | None = None,
    errors: str | None = None,
    universal_newlines: bool | None = None,
    **popen_kwargs: Unpack[SpawnKeywords],
) -> subprocess.CompletedProcess[str]: ...
@overload
def run_in(
    target: TargetLike,
    args: Command,
    *,
    input: str | None = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    kill_group: bool = False,
    text: bool | None = None,
    encoding: str,
    errors: str | None = None,
    universal_newlines: bool | None = None,
    **popen_kwargs: Unpack[SpawnKeywords],
) -> subprocess.CompletedProcess[str]: ...
@overload
def run_in(
    target: TargetLike,
    args: Command,
    *,
    input: str | None = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    kill_group: bool = False,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str,
    universal_newlines: bool | None = None,
    **popen_kwargs: Unpack[SpawnKeywords],
) -> subprocess.CompletedProcess[str]: ...
@overload
def run_in(
    target: TargetLike,
    args: Command,
    *,
    input: str | None = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    kill_group: bool = False,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    universal_newlines: Literal[True],
    **popen_kwargs: Unpack[SpawnKeywords],
) -> subprocess.CompletedProcess[str]: ...
@overload
def run_in(
    target: TargetLike,
    args: Command,
    *,
    input: bytes | bytearray | memoryview | None = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    kill_group: bool = False,
    text: Literal[False] | None = None,
    encoding: None = None,
    errors: None = None,
    universal_newlines: Literal[False] | None = None,
    **popen_kwargs: Unpack[SpawnKeywords],
) -> subprocess.CompletedProcess[bytes]: ...
@overload
def run_in(
    target: TargetLike,
    args: Command,
    *,
    input: Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    kill_group: bool = False,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    universal_newlines: bool | None = None,
    **popen_kwargs: Unpack[SpawnKeywords],
) -> subprocess.CompletedProcess[Any]: ...
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
    """subprocess.run inside the namespaces of ``target``; takes what ``spawn_in`` takes.

    ``timeout`` (seconds) counts from the call and ends the wait for exec too: something inside may hold the program
    up before it. When it expires, or another exception ends the wait, the program is killed and reaped; with
    ``kill_group`` it gets a process group of its own, and all of that is killed. subprocess.TimeoutExpired,
    subprocess.CalledProcessError (``check=True``), and what ``Popen`` raises; ChildProcessError if the exit status
    cannot be had, since this process ignores SIGCHLD or has a waitpid(-1) elsewhere; subprocess.run says 0 there.
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
    """Add the pipes that ``input`` and ``capture_output`` mean; ValueError as from subprocess.run."""
    if given is not None:
        if keywords.get("stdin") is not None:
            raise ValueError("stdin and input arguments may not both be used.")
        keywords["stdin"] = subprocess.PIPE
    if capture_output:
        if keywords.get("stdout") is not None or keywords.get("stderr") is not None:
            raise ValueError("stdout and stderr arguments may not be used with capture_output.")
        keywords["stdout"] = keywords["stderr"] = subprocess.PIPE


def kill(process: Popen[Any], group: bool) -> NamespaceError | None:
    """Kill the program, or the whole process group that it leads; the result is what has held it up, if that is known.

    In a frozen cgroup of version 1 nothing ends before it is thawed: the program is moved out of it.
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
