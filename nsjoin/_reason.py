"""Why a join failed: what the errno means for this namespace and this thread, found out after the fact."""

from __future__ import annotations

import errno
from contextlib import ExitStack
from typing import TYPE_CHECKING

from . import _ownership, _plan
from ._namespace import Namespace
from .exceptions import NamespaceError

if TYPE_CHECKING:
    from collections.abc import Callable


DEAD_PID_NAMESPACE = "the init process of this PID namespace has ended, so nothing can be born in it any more"


def of_setns(number: int, namespace: Namespace, *, with_user: bool = False) -> str | None:
    """The reason for errno ``number`` of setns(2) with ``namespace``; ``with_user``: a user namespace is joined too."""
    if number == errno.EPERM:
        return _of_eperm(namespace, with_user)
    explain = _OF_EINVAL.get(namespace.nstype) if number == errno.EINVAL else None
    if number == errno.EUSERS:
        return "only a process without threads can join a time namespace; use spawn_in"
    return explain(namespace) if explain else None


def _of_eperm(namespace: Namespace, with_user: bool) -> str:
    with ExitStack() as stack:
        owner = _ownership.user_namespace(namespace, stack)
        caller = _ownership.caller()
        if owner is None:
            return (
                "needs CAP_SYS_ADMIN in the user namespace that owns it, which is neither ours nor a descendant of ours"
            )
        if not _plan.has_power(caller, owner):
            return (
                f"needs CAP_SYS_ADMIN in user:[{owner.id.ino}], the user namespace that owns it, "  # type: ignore[attr-defined]
                f"which was made by uid {owner.owner_uid}; we are uid {caller.uid}"
            )
        if not caller.admin and not with_user and namespace.nstype != "user":
            return (
                "needs CAP_SYS_ADMIN in our own user namespace too; join the target's user namespace as well (spawn_in "
                "with 'user' among the namespaces) to have it there"
            )
    if namespace.nstype == "mnt":
        return "needs CAP_SYS_CHROOT in our own user namespace too, or is forbidden by a security module or seccomp"
    return (
        "we have the capabilities for it, so a security module or a seccomp filter forbids it; or, with spawn_in and "
        "not as root, they are not in the ambient set and execve(2) drops them (capabilities(7))"
    )


def _own_user(namespace: Namespace) -> str:
    with Namespace.current("user") as own:
        if own == namespace:
            return "it is the user namespace that we are in, which cannot be joined again"
    return "a process with threads, or a thread that shares its root directory with others, cannot change it"


def _no_descendant(namespace: Namespace) -> str | None:
    with ExitStack() as stack:
        own = stack.enter_context(Namespace.current("pid"))
        while namespace != own:
            try:
                namespace = stack.enter_context(namespace.parent())
            except NamespaceError:
                return "only our own PID namespace and its descendants can be joined, and this is none of them"
    return None


def _shared_root(namespace: Namespace) -> str:  # noqa: ARG001 - the signature of the table below
    return "this thread shares its root and working directory with others (CLONE_FS)"


_OF_EINVAL: dict[str, Callable[[Namespace], str | None]] = {
    "user": _own_user,
    "pid": _no_descendant,
    "mnt": _shared_root,
}
