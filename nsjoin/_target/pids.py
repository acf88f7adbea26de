"""A process's number in another PID namespace, and the process that has a number there."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, NamedTuple

from .._kernel import abi, calls, procfs
from ..exceptions import NamespaceError, error
from .namespace import Namespace, describe
from .proc_directory import check_proc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class _Way(NamedTuple):
    """One direction: the ioctl, the same without it, and the reason where there is no such number."""

    ask: Callable[[int, int], int]
    read: Callable[[int, Namespace], int | None]
    reason: str


def pid_from(pid: int, namespace: Namespace) -> int:
    """Return the caller's number of the process (or thread) ``pid`` of ``namespace``. TargetGoneError."""
    reason = "there is no such process in that PID namespace, or it is not visible in ours"
    return _translate(_Way(calls.pid_from, _read_from, reason), pid, namespace)


def pid_in(pid: int, namespace: Namespace) -> int:
    """Return the number in ``namespace`` of the process (or thread) ``pid``. TargetGoneError, NamespaceError."""
    reason = "there is no such process, or it is not visible in that PID namespace"
    return _translate(_Way(calls.pid_in, _read_in, reason), pid, namespace)


def _translate(way: _Way, pid: int, namespace: Namespace) -> int:
    target = f"process {pid}, {describe(namespace)}"
    found: int | None = None
    try:
        found = way.ask(namespace.fileno(), pid)
    except (OverflowError, ProcessLookupError):
        pass
    except OSError as refused:
        if not abi.lacks("NS_GET_PID_*", refused):
            raise error(NamespaceError, refused.errno or 0, "translate", target=target) from None
        found = way.read(pid, namespace)
    if found is None:
        raise error(NamespaceError, errno.ESRCH, "translate", target=target, reason=way.reason)
    return found


# --- before Linux 6.11: NSpid of /proc/PID/status (Linux 4.1), from the caller's PID namespace down to its own


def _read_in(pid: int, namespace: Namespace) -> int | None:
    check_proc(f"process {pid}")
    numbers = _numbers(pid)
    if not numbers:
        return None
    with Namespace.from_pid(pid, "pid") as own:
        return dict(zip(_chain(own), reversed(numbers))).get(namespace.id.ino)


def _read_from(pid: int, namespace: Namespace) -> int | None:
    check_proc(f"process {pid}")
    depth = len(_chain(namespace)) - 1
    if depth == 0:  # the caller's own
        return pid if _numbers(pid) else None
    refused: PermissionError | None = None
    for number in _all():
        if _numbers(number)[depth : depth + 1] != [pid]:
            continue
        try:
            with Namespace.from_pid(number, "pid") as own:
                if namespace.id.ino in _chain(own):
                    return number
        except ProcessLookupError:
            pass
        except PermissionError as why:  # perhaps another process is the one
            refused = why
    if refused is not None:
        raise refused
    return None


def _all() -> Iterator[int]:
    """Yield every number: first those of processes, which most callers ask for, then of their other threads."""
    processes = [name for name in procfs.names(".") if name.isdigit()]
    yield from map(int, processes)
    for process in processes:
        try:
            threads = procfs.names(f"{process}/task")
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        yield from (int(thread) for thread in threads if thread != process)


def _chain(namespace: Namespace) -> list[int]:
    """Return the inode numbers of a PID namespace and its ancestors up to the caller's, which live as long as it."""
    numbers = [namespace.id.ino]
    try:
        with namespace.parent() as parent:
            numbers += _chain(parent)
    except PermissionError:  # the parent of the caller's is outside
        pass
    return numbers


def _numbers(pid: int) -> list[int]:
    try:
        status = procfs.read(f"{pid}/status")
    except (FileNotFoundError, ProcessLookupError):
        return []
    found = re.search(r"^NSpid:(.*)$", status, re.MULTILINE)
    return [int(number) for number in found[1].split()] if found else []
