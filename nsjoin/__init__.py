"""Join existing Linux namespaces from Python, correctly: what nsenter(1) is for shells, as a library."""

# General layout: imports run only downwards.
#
# aio, futures, discovery, _cli   faces: asyncio, an executor, a survey, the command line
# _verbs                          what a user calls: enter, spawn_in, run_in, call_in, create
# _joining                        what to join, in which order, as whom, and why it failed
# _target                         whose namespaces, and what the target is like
# _engine                         starts processes and moves threads
# _kernel, _c                     what the kernel offers; the compiled module

from __future__ import annotations

from typing import TYPE_CHECKING

from . import exceptions
from ._target.namespace import Namespace, NamespaceId, unpin
from ._target.target import TARGET, Target, translate_pid
from ._verbs.call import call_in
from ._verbs.create import PidNamespace, create, unshare
from ._verbs.enter import enter
from ._verbs.run import run_in
from ._verbs.spawn import Popen, spawn_in
from .exceptions import (
    CallDiedError,
    CallError,
    CallExitError,
    CallResultError,
    JoinError,
    JoinPermissionError,
    NamespaceError,
    NamespaceExistsError,
    NamespaceNotFoundError,
    NamespacePermissionError,
    NotANamespaceError,
    RestoreError,
    TargetGoneError,
)

if TYPE_CHECKING:
    from . import aio, discovery, futures
    from .discovery import NamespaceInfo, iter_namespaces
    from .futures import NamespaceExecutor

__all__ = [
    "TARGET",
    "CallDiedError",
    "CallError",
    "CallExitError",
    "CallResultError",
    "JoinError",
    "JoinPermissionError",
    "Namespace",
    "NamespaceError",
    "NamespaceExecutor",
    "NamespaceExistsError",
    "NamespaceId",
    "NamespaceInfo",
    "NamespaceNotFoundError",
    "NamespacePermissionError",
    "NotANamespaceError",
    "PidNamespace",
    "Popen",
    "RestoreError",
    "Target",
    "TargetGoneError",
    "aio",
    "call_in",
    "create",
    "discovery",
    "enter",
    "exceptions",
    "futures",
    "iter_namespaces",
    "run_in",
    "spawn_in",
    "translate_pid",
    "unpin",
    "unshare",
]


#: Loaded at first use (PEP 562): asyncio and concurrent.futures cost import time that most callers do not need.
_LAZY = {
    "aio": "aio",
    "discovery": "discovery",
    "futures": "futures",
    "NamespaceExecutor": "futures",
    "NamespaceInfo": "discovery",
    "iter_namespaces": "discovery",
}


def __getattr__(name: str) -> object:
    """Load a lazy name at its first use."""
    import importlib

    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_LAZY[name]}")
    return module if name == _LAZY[name] else getattr(module, name)
