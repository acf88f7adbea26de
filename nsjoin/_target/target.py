"""``Target``, ``TARGET`` and ``translate_pid``; and the targets that callers may name: checked, then opened."""

from __future__ import annotations

import enum
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Union

from .._kernel.nstypes import PID, lookup
from . import pids
from .namespace import Namespace, describe, namespace_of, namespaces_of
from .process import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Any, NoReturn

    from typing_extensions import Protocol, Self, TypeAlias

    class HasPid(Protocol):
        """subprocess.Popen, psutil.Process, asyncio.subprocess.Process, multiprocessing.Process, ..."""

        @property
        def pid(self) -> Any: ...

    _Path: TypeAlias = Union[str, bytes, os.PathLike[str], os.PathLike[bytes]]

    #: Whose namespaces to join: a process, or namespaces.
    TargetLike: TypeAlias = Union[int, "Target", HasPid, Namespace, _Path, Iterable[Union[Namespace, _Path]]]

    class Opener(Protocol):
        """A target whose namespaces are made when it is opened; ``own`` takes what must be closed with it."""

        def open(self, own: Callable[[Any], Any]) -> tuple[Namespace, ...]: ...


#: A target whose kind has been checked and of which nothing has been opened yet.
Checked = Union[int, Process, tuple[Union[Namespace, str, bytes], ...]]
Openable = Union[Checked, "Opener"]


class AsTarget(enum.Enum):
    """The type of ``TARGET``."""

    TARGET = "TARGET"

    def __repr__(self) -> str:
        return "nsjoin.TARGET"


#: "As the target has it", for ``env=``, ``cwd=``, ``user=``, ``cgroup=``, ``capabilities=`` and others of ``Popen``.
TARGET = AsTarget.TARGET


class Target:
    """One process or thread, pinned: its pid cannot come to mean another one while this object is open.

    ``Target(pid)`` is ``Target.from_pid(pid)``. It holds a pidfd (Linux 5.3; 6.9 for a thread), by which the kernel
    gives the namespaces too (Linux 6.11); before that, /proc/PID held open and checked. A context manager that closes
    itself. Raises TargetGoneError if there is no such process, TypeError and ValueError for a number that is no pid.
    pidfd_open(2). ::

        with nsjoin.Target(pid) as target, target.namespace("net") as net:
            print(target.is_alive(), net.id)
    """

    __slots__ = ("__weakref__", "_process")

    def __init__(self, pid: int) -> None:
        """As ``from_pid``."""
        self._process = Process(pid)

    @classmethod
    def from_pid(cls, pid: int) -> Self:
        """Pin the process ``pid``, or the thread of that id.

        ValueError for a number that is no pid, TargetGoneError if there is no such process. pidfd_open(2).
        """
        return cls(pid)

    @classmethod
    def from_pidfd(cls, pidfd: int) -> Self:
        """Pin the process of ``pidfd``, which is duplicated and stays the caller's.

        TargetGoneError if the process has ended, ValueError if ``pidfd`` is not a pidfd, OSError (EBADF).
        """
        made = cls.__new__(cls)
        made._process = Process.from_pidfd(pidfd)
        return made

    @property
    def pid(self) -> int:
        """The process ID, in the PID namespace of the process that made this object. Readable when closed."""
        return self._process.pid

    def fileno(self) -> int:
        """Return the pidfd. ValueError if closed; NamespaceError (ENOSYS) before Linux 5.3, for a thread 6.9."""
        return self._process.fileno()

    def is_alive(self) -> bool:
        """Whether the process is running; a zombie is not. ValueError if closed."""
        return self._process.is_alive()

    def namespace(self, nstype: str, *, for_children: bool = False) -> Namespace:
        """Open the namespace of type ``nstype`` that the process is in, or that its next children will be in.

        TargetGoneError, NamespacePermissionError, NamespaceError; ValueError if closed or for an unknown type.
        """
        return namespace_of(self._process, lookup(nstype), for_children=for_children)

    def namespaces(self) -> dict[str, Namespace]:
        """Open every namespace that the process is in, by type; the caller closes them. Errors as of ``namespace``."""
        return namespaces_of(self._process)

    def pid_in(self, namespace: TargetLike | None) -> int:
        """Return the number of this process in a PID namespace: that of a target, as for ``translate_pid``.

        TargetGoneError if it is not visible there, or has ended and been waited for.
        """
        with _pid_namespace(namespace) as opened:
            number = pids.pid_in(self.pid, opened)
        if self._process.state() == "gone":
            raise self._process.gone("translate")
        return number

    def close(self) -> None:
        """Close the descriptors. Closing twice is no error."""
        self._process.close()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._process.closed

    def __enter__(self) -> Self:
        self._process.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pid}{' closed' if self.closed else ''}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot copy or pickle {self!r}: it owns descriptors (from_pidfd makes another Target)")


def translate_pid(pid: int, from_: TargetLike | None = None, to: TargetLike | None = None) -> int:
    """Return the number in the PID namespace ``to`` of the process (or thread) that is ``pid`` in ``from_``.

    Both are targets: a pid namespace, or a process that is in it; None is the caller's own. TargetGoneError if there is
    no such process, or if it is not visible in ``to``, or not to the caller. NS_GET_PID_FROM_PIDNS and
    NS_GET_PID_IN_PIDNS of ioctl_nsfs(2), Linux 6.11; before that through /proc (Linux 4.11): NamespacePermissionError
    where that may not be read. ::

        nsjoin.translate_pid(1, container_pid)  # the host's pid of the container's init
    """
    _check_pid(pid)
    with _pid_namespace(from_) as source, _pid_namespace(to) as destination:
        ours = pids.pid_from(pid, source)
        with Process(ours) as pinned:
            # it may have ended before it was pinned: its pid is then free, or another process's
            if pids.pid_from(pid, source) != ours:
                raise pinned.gone("translate")
            return pids.pid_in(ours, destination)


@contextmanager
def _pid_namespace(target: TargetLike | None) -> Iterator[Namespace]:
    """Open the PID namespace of ``target``, or the caller's own; ValueError if it has none."""
    if target is None:
        with Namespace.current("pid") as own:
            yield own
        return
    with OpenTarget(check_target(target)) as opened:
        if opened.process is not None:
            with namespace_of(opened.process, PID) as namespace:
                yield namespace
            return
        found = [namespace for namespace in opened.namespaces if namespace.nstype == "pid"]
        if not found:
            raise ValueError(f"{opened.describe()} is no pid namespace")
        yield found[0]


def check_target(target: Any) -> Checked:
    """Return what kind of target this is, without a system call; TypeError or ValueError if it is none."""
    if isinstance(target, Target):
        target = target._process
    if isinstance(target, Process):
        if target.closed:
            raise ValueError("this Target is closed")
        return target
    if isinstance(target, int):
        return _check_pid(target)
    if isinstance(target, (Namespace, str, bytes, os.PathLike)):
        return (_check_member(target),)
    if hasattr(target, "pid"):
        return _check_pid(target.pid)
    try:
        members = iter(target)
    except TypeError:
        raise TypeError(
            "a target is a pid, an object with one, a Target, a Namespace, the path of a namespace file, or an "
            f"iterable of the last two, not {type(target).__name__}"
        ) from None
    checked = tuple(_check_member(member) for member in members)
    if not checked:
        raise ValueError("an iterable as a target must name at least one namespace")
    return checked


def _check_pid(pid: object) -> int:
    if isinstance(pid, bool) or not isinstance(pid, int):
        raise TypeError(f"a pid is an int, not {type(pid).__name__}")
    if pid <= 0:
        raise ValueError(f"a pid is positive, not {pid}")
    return pid


def _check_path(path: _Path) -> str | bytes:
    plain = os.fspath(path)
    if not plain:
        raise ValueError("the path of a namespace file is not empty")
    if (0 if isinstance(plain, bytes) else "\0") in plain:  # type: ignore[operator, unused-ignore]
        raise ValueError("embedded null byte")
    return plain


def _check_member(member: object) -> Namespace | str | bytes:
    if isinstance(member, Namespace):
        if member.closed:
            raise ValueError("this Namespace is closed")
        return member
    if isinstance(member, (str, bytes, os.PathLike)):
        return _check_path(member)
    raise TypeError(
        f"an iterable as a target has Namespaces and paths of namespace files in it, not {type(member).__name__}"
    )


class OpenTarget:
    """A target with everything open: a process or namespaces, never both. Closes what it has opened itself."""

    __slots__ = ("_owned", "namespaces", "process")

    def __init__(self, checked: Openable) -> None:
        self.process: Process | None = None
        self.namespaces: tuple[Namespace, ...] = ()
        self._owned: list[Process | Namespace | OpenTarget] = []
        try:
            if isinstance(checked, Process):
                self.process = checked
            elif isinstance(checked, int):
                self.process = self._own(Process(checked))
            elif isinstance(checked, tuple):
                self.namespaces = tuple(
                    member if isinstance(member, Namespace) else self._own(Namespace.from_path(member))
                    for member in checked
                )
            else:
                self.namespaces = checked.open(self._own)
            self._check_types()
        except BaseException:
            self.close()
            raise

    def _own(self, opened: Any) -> Any:
        self._owned.append(opened)
        return opened

    def _check_types(self) -> None:
        seen: set[str] = set()
        for namespace in self.namespaces:
            if namespace.nstype in seen:
                raise ValueError(f"the target names two {namespace.nstype} namespaces")
            seen.add(namespace.nstype)

    def describe(self) -> str:
        """Return what error messages call this target."""
        if self.process is not None:
            return self.process.describe()
        return ", ".join(map(describe, self.namespaces))

    def close(self) -> None:
        """Close what this object has opened."""
        while self._owned:
            self._owned.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
