"""Check that no process inside may have power over the child of ``call_in``, which is a copy of this process.

The child is not dumpable, so only CAP_SYS_PTRACE in the caller's user namespace gives access to it (ptrace(2)): to its
memory and, by pidfd_getfd(2), to the socket of its result, which this process unpickles. Which processes have that
capability and see the child follows from the PID namespace that the child is born in.
"""

from __future__ import annotations

import errno
import re
from contextlib import ExitStack
from typing import TYPE_CHECKING

from .._kernel import capabilities
from .._kernel.nstypes import PID, USER
from .._kernel.thread import own_inodes, own_namespace
from .._target.namespace import Namespace, namespace_of
from ..exceptions import JoinError, NamespaceNotFoundError, NamespacePermissionError, error

if TYPE_CHECKING:
    from .._kernel.nstypes import NsType
    from .._target.process import Process
    from .._target.target import OpenTarget


_PID, _USER = PID, USER

#: CAP_PERFMON reads maps and environ on newer kernels, CAP_SYS_ADMIN on those before it (Linux 5.8).
_POWERS = ("sys_ptrace", "sys_admin", "perfmon")
#: What a process has now, may get by execve(2), and may get by it from a file's inheritable set: capabilities(7).
_SETS = ("CapPrm", "CapBnd", "CapInh")

_WAYS_OUT = (
    "the function would run in a copy of this process, and who has such a capability could read its memory and send "
    "what is unpickled here. Run a program instead, with spawn_in(..., like_target=True); name namespaces= without "
    "pid; or say trust_target=True, if all that runs inside may do what this process may"
)


def check(target: OpenTarget, wanted: tuple[NsType, ...] | None) -> None:
    """Raise JoinPermissionError if a process inside may have power over a child that goes into ``target``.

    TargetGoneError, NamespaceError.
    """
    with ExitStack() as stack:
        namespace, words, process = _joined(target, wanted, stack), target.describe(), target.process
        if namespace is None:
            namespace, words, process = (
                _of_children(stack),
                "the namespace that this thread's children are born in",
                None,
            )
        if namespace is None or _belongs_to_a_descendant(namespace):
            return
        reason = _cannot_be_told(words) if process is None else _reason(process)
    if reason is not None:
        raise error(JoinError, errno.EPERM, "call_in", nstype="pid", target=words, reason=f"{reason}; {_WAYS_OUT}")


def _joined(target: OpenTarget, wanted: tuple[NsType, ...] | None, stack: ExitStack) -> Namespace | None:
    """Return the PID namespace of the target if it is joined and not this thread's own."""
    if wanted is not None and _PID not in wanted:
        return None
    if target.process is not None:
        return None if target.process.shares(_PID) else stack.enter_context(namespace_of(target.process, _PID))
    own = own_inodes((_PID,))[0]
    others = (member for member in target.namespaces if member.nstype == "pid" and member.id.ino != own)
    return next(others, None)


def _of_children(stack: ExitStack) -> Namespace | None:
    """Return the other PID namespace that this thread's children are born in; None: its own, or a still empty one."""
    try:
        namespace = stack.enter_context(Namespace._owning(own_namespace(_PID, for_children=True), _PID))
    except NamespaceNotFoundError:  # before Linux 6.11, where nothing has been born there yet
        return None
    return None if namespace.id.ino == own_inodes((_PID,))[0] else namespace


def _belongs_to_a_descendant(namespace: Namespace) -> bool:
    """Return whether a user namespace below the caller's owns it: its processes have no capability there."""
    try:
        with namespace.owner() as owner:
            return owner.id.ino != own_inodes((_USER,))[0]
    except NamespacePermissionError:  # an ancestor, whose capabilities count in the caller's
        return False


def _reason(process: Process) -> str | None:
    """Return why not to go to ``process``; None: neither it nor a program that it executes has such a capability.

    It stands for the others in its PID namespace, of which the kernel keeps no list.
    """
    try:
        status = process.read_proc("status")
    except OSError as refused:
        if process.gone_reason():
            raise process.gone("read /proc") from None
        return f"its capabilities cannot be read ({refused})"
    if not process.shares(_USER):  # after that: it may leave our user namespace, but not come back
        return _cannot_be_told(process.describe())
    sets = dict(re.findall(r"^(Cap\w+):\s*([0-9a-f]+)$", status, re.MULTILINE))
    has = [name for name in _POWERS if any(_holds(sets.get(label), name) for label in _SETS)]
    return f"it has, or can get, {', '.join(f'cap_{name}' for name in has)} in our user namespace" if has else None


def _holds(hexadecimal: str | None, name: str) -> bool:
    """Return whether a set has the capability; a set that /proc does not show counts as full."""
    return hexadecimal is None or bool(int(hexadecimal, 16) & capabilities.bits((name,)))


def _cannot_be_told(words: str) -> str:
    return (
        f"the PID namespace of {words} belongs to our user namespace, and which capabilities those in it have there "
        "cannot be told"
    )
