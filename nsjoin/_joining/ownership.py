"""Who owns the namespaces at hand, asked of the kernel: the arguments of ``_plan`` and the grounds of ``_reason``."""

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
    """This thread, as the kernel judges it."""
    with Namespace.current("user") as own:
        return Caller(own.id, os.geteuid(), calls.is_admin())


def user_namespace(namespace: Namespace, stack: ExitStack) -> UserNs | None:
    """The user namespace that owns ``namespace`` (or is it), with its ancestors as far as we see; open in ``stack``.

    None where the kernel does not tell: it is outside of our user namespace, so that we have no power over it.
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
        except NamespaceError:  # EPERM: the next one is outside of ours
            break
    known: UserNs | None = None
    for member in reversed(chain):
        known = UserNs(member.id, member.fileno(), member.owner_uid(), known)
    assert known is not None
    return known


def wanted(namespaces: Sequence[Namespace], stack: ExitStack) -> list[Wanted]:
    """``namespaces`` with their owners, for ``_plan.order``; what had to be opened stays open in ``stack``."""
    return [
        Wanted(BY_NAME[namespace.nstype], namespace.fileno(), user_namespace(namespace, stack))
        for namespace in namespaces
    ]
