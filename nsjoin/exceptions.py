"""The errors: each says what was done, to which namespace, of which target, what the kernel answered, and why."""

from __future__ import annotations

import errno as _errno
import os

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

    ``errno`` and ``strerror`` are the kernel's; ``step`` is what was under way (``"setns"``, ``"open"``, ...),
    ``nstype`` the type of namespace or several joined by ``+`` (None: no particular one), ``target`` the target in
    words, ``reason`` why, as far as it could be computed (None: the errno says it all).
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
    """Opening a namespace, or asking about it, is not permitted (EPERM, EACCES)."""


class NamespaceNotFoundError(NamespaceError, FileNotFoundError):
    """There is no such namespace file (ENOENT)."""


class NamespaceExistsError(NamespaceError, FileExistsError):
    """There is a file already where a namespace should be pinned (EEXIST)."""


class NotANamespaceError(NamespaceError, ValueError):
    """The file or descriptor is not a namespace (a directory, a plain file, an O_PATH descriptor)."""


class TargetGoneError(NamespaceError, ProcessLookupError):
    """The target is no more: no such process, a zombie, or one that ended meanwhile (ESRCH)."""


class JoinError(NamespaceError):
    """A namespace could not be joined; nothing has changed."""


class JoinPermissionError(JoinError, PermissionError):
    """A namespace could not be joined for want of privileges (EPERM, EACCES)."""


class RestoreError(NamespaceError):
    """The way back failed: this thread is still in a foreign namespace, and should run nothing more than its end."""


class CallError(RuntimeError):
    """``call_in`` has no result, though the child was inside.

    ``returncode`` is the child's exit status, negative for a signal as with subprocess, None where it went on.
    """

    def __init__(self, message: str, returncode: int | None = None) -> None:
        super().__init__(message, returncode)
        self.returncode = returncode

    def __str__(self) -> str:
        return str(self.args[0])


class CallResultError(CallError):
    """The result, or the exception, cannot be sent or be read here; or is not what ``result="data"`` takes."""


class CallExitError(CallError):
    """The function called sys.exit or os._exit."""


class CallDiedError(CallError):
    """A signal ended the child."""


#: The class that is raised for a class and an errno, so that ``except PermissionError`` works as with ``os``.
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
    """Return the error of ``kind`` for ``errno``, in the subclass that also is the built-in class of that errno."""
    cls = _BY_ERRNO.get((kind, errno), kind)
    return cls(errno, step, nstype=nstype, target=target, reason=reason)
