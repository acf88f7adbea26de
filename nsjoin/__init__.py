"""Join existing Linux namespaces from Python, correctly: what nsenter(1) is for shells, as a library."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import exceptions
from ._call import call_in
from ._enter import enter
from ._namespace import Namespace, NamespaceId
from ._run import run_in
from ._spawn import Popen, spawn_in
from ._target import TARGET, Target
from .exceptions import (
    CallDiedError,
    CallError,
    CallExitError,
    CallResultError,
    JoinError,
    JoinPermissionError,
    NamespaceError,
    NamespaceNotFoundError,
    NamespacePermissionError,
    NotANamespaceError,
    RestoreError,
    TargetGoneError,
)

if TYPE_CHECKING:
    from . import aio, futures
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
    "NamespaceId",
    "NamespaceNotFoundError",
    "NamespacePermissionError",
    "NotANamespaceError",
    "Popen",
    "RestoreError",
    "Target",
    "TargetGoneError",
    "aio",
    "call_in",
    "enter",
    "exceptions",
    "futures",
    "run_in",
    "spawn_in",
]


def __getattr__(name: str) -> object:
    """Load asyncio and concurrent.futures only for those who use them (PEP 562)."""
    import importlib

    if name in ("aio", "futures"):
        return importlib.import_module(f"{__name__}.{name}")
    if name == "NamespaceExecutor":
        return importlib.import_module(f"{__name__}.futures").NamespaceExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
