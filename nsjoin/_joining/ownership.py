"""Ask the kernel who owns namespaces: the arguments of ``order`` and the facts for ``reasons``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .._kernel import calls
from .._kernel.nstypes import BY_NAME
from .._target.namespace import Namespace
from ..exceptions import NamespaceError
from .order import Caller, UserNs, Wanted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack


def caller() -> Caller:
    """Return this thread's user namespace, effective uid, and whether it has CAP_SYS_ADMIN there."""
    with Namespace.current("user") as own:
        return Caller(own.id, os.geteuid(), calls.is_admin())


def user_namespace(namespace: Namespace, stack: ExitStack) -> UserNs | None:
    """Return the owner of ``namespace`` (of a user namespace: itself) and its visible ancestors, open in ``stack``.

    None: the owner is outside the caller's user namespace, so the caller has no power over it.
    """
    if namespace.nstype != "user":
        try:
            namespace = stack.enter_context(namespace.owner())
        except NamespaceError:
            return None
    return _with_ancestors(namespace, stack)


def _with_ancestors(user: Namespace, stack: ExitStack) -> UserNs:
    chain = [user]
    while True:
        try:
            chain.append(stack.enter_context(chain[-1].parent()))
        except NamespaceError:  # EPERM: the next one is outside the caller's
            break
    known: UserNs | None = None
    for member in reversed(chain):
        known = UserNs(member.id, member.fileno(), member.owner_uid(), known)
    assert known is not None
    return known


def wanted(namespaces: Sequence[Namespace], stack: ExitStack) -> list[Wanted]:
    """Return ``namespaces`` with their owners, for ``order``; ``stack`` owns the descriptors opened for it."""
    return [
        Wanted(BY_NAME[namespace.nstype], namespace.fileno(), user_namespace(namespace, stack))
        for namespace in namespaces
    ]
