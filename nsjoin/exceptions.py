"""The errors: each names the step, the namespace, the target, the errno and, where it is known, the reason."""

from __future__ import annotations

import errno as _errno
import os
from contextlib import contextmanager as _contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "CallDiedError",
    "CallError",
    "CallExitError",
    "CallResultError",
    "JoinError",
    "JoinPermissionError",
    "NamespaceError",
    "NamespaceExistsError",
    "NamespaceNotFoundError",
    "NamespacePermissionError",
    "NotANamespaceError",
    "RestoreError",
    "TargetGoneError",
]


class NamespaceError(OSError):
    """An operation on a namespace failed.

    ``errno`` and ``strerror`` are the kernel's. ``step`` is the step that failed (``"setns"``, ``"open"``, ...),
    ``nstype`` the type of namespace, or several joined by ``+`` (None: no particular one), ``target`` a description of
    the target, and ``reason`` explains the errno (None: no explanation is known).
    """

    def __init__(
        self,
        errno: int,
        step: str,
        *,
        nstype: str | None = None,
        target: str | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(errno, os.strerror(errno))
        self.step = step
        self.nstype = nstype
        self.target = target
        self.reason = reason

    def __str__(self) -> str:
        what = f"{self.step}({self.nstype})" if self.nstype else self.step
        where = f" of {self.target}" if self.target else ""
        why = f": {self.reason}" if self.reason else ""
        return f"[Errno {self.errno}] {what}{where}: {self.strerror}{why}"

    def __reduce__(self) -> tuple[object, ...]:
        state = {"step": self.step, "nstype": self.nstype, "target": self.target, "reason": self.reason}
        return type(self), (self.errno, self.step), {**self.__dict__, **state}


class NamespacePermissionError(NamespaceError, PermissionError):
    """Opening or querying a namespace is not permitted (EPERM, EACCES)."""


class NamespaceNotFoundError(NamespaceError, FileNotFoundError):
    """The namespace file does not exist (ENOENT, ENOTDIR)."""


class NamespaceExistsError(NamespaceError, FileExistsError):
    """The file where a namespace should be pinned exists already (EEXIST)."""


class NotANamespaceError(NamespaceError, ValueError):
    """The file or descriptor is not a namespace (a directory, a plain file, an O_PATH descriptor)."""


class TargetGoneError(NamespaceError, ProcessLookupError):
    """The target does not exist, is a zombie, or ended meanwhile (ESRCH)."""


class JoinError(NamespaceError):
    """A namespace could not be joined; nothing has changed."""


class JoinPermissionError(JoinError, PermissionError):
    """Joining a namespace is not permitted (EPERM, EACCES); nothing has changed."""


class RestoreError(NamespaceError):
    """The thread could not be restored: it is still in a foreign namespace. Let it exit."""


class CallError(RuntimeError):
    """``call_in`` has no result, although the child had joined the target.

    ``returncode`` is the child's exit status, negative for a signal as with subprocess; None: the child did not exit.
    """

    def __init__(self, message: str, returncode: int | None = None) -> None:
        super().__init__(message, returncode)
        self.returncode = returncode

    def __str__(self) -> str:
        return str(self.args[0])


class CallResultError(CallError):
    """The result or the exception cannot be sent or read, or ``result="data"`` does not allow it."""


class CallExitError(CallError):
    """The function called sys.exit or os._exit."""


class CallDiedError(CallError):
    """A signal ended the child."""


#: (class, errno) -> the class that is raised, so that ``except PermissionError`` works as with ``os``.
_BY_ERRNO: dict[tuple[type[NamespaceError], int], type[NamespaceError]] = {
    (NamespaceError, _errno.EPERM): NamespacePermissionError,
    (NamespaceError, _errno.EACCES): NamespacePermissionError,
    (NamespaceError, _errno.ENOENT): NamespaceNotFoundError,
    (NamespaceError, _errno.ENOTDIR): NamespaceNotFoundError,
    (NamespaceError, _errno.EEXIST): NamespaceExistsError,
    (NamespaceError, _errno.ESRCH): TargetGoneError,
    (JoinError, _errno.EPERM): JoinPermissionError,
    (JoinError, _errno.EACCES): JoinPermissionError,
    (JoinError, _errno.ESRCH): TargetGoneError,
}


def error(
    kind: type[NamespaceError],
    errno: int,
    step: str,
    *,
    nstype: str | None = None,
    target: str | None = None,
    reason: str | None = None,
) -> NamespaceError:
    """Return an error of ``kind`` for ``errno``, of the subclass that is also the built-in class of that errno."""
    cls = _BY_ERRNO.get((kind, errno), kind)
    return cls(errno, step, nstype=nstype, target=target, reason=reason)


@_contextmanager
def refusals(
    step: str,
    *,
    kind: type[NamespaceError] = NamespaceError,
    nstype: str | None = None,
    target: str | None = None,
    reason: Callable[[int], str | None] | None = None,
) -> Iterator[None]:
    """Raise an OSError of the block as ``error`` does; a NamespaceError passes. ``reason`` gets the errno."""
    try:
        yield
    except NamespaceError:
        raise
    except OSError as refused:
        number = refused.errno or 0
        why = reason(number) if reason else None
        raise error(kind, number, step, nstype=nstype, target=target, reason=why) from None
