"""Join existing Linux namespaces from Python, correctly: what nsenter(1) is for shells, as a library."""

from . import exceptions
from ._call import call_in
from ._enter import enter
from ._namespace import Namespace, NamespaceId
from ._run import run_in
from ._spawn import Popen, spawn_in
from ._target import Target
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

__all__ = [
    "CallDiedError",
    "CallError",
    "CallExitError",
    "CallResultError",
    "JoinError",
    "JoinPermissionError",
    "Namespace",
    "NamespaceError",
    "NamespaceId",
    "NamespaceNotFoundError",
    "NamespacePermissionError",
    "NotANamespaceError",
    "Popen",
    "RestoreError",
    "Target",
    "TargetGoneError",
    "call_in",
    "enter",
    "exceptions",
    "run_in",
    "spawn_in",
]
