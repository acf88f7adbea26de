"""``Target``: one pinned process and its namespaces; and what callers may name as a target, opened."""

from __future__ import annotations

import enum
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Union

from .._kernel.nstypes import NSTYPES, lookup
from . import pids
from .namespace import Namespace
from .process import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Any

    from typing_extensions import Protocol, Self, TypeAlias

    class HasPid(Protocol):
        """subprocess.Popen, psutil.Process, asyncio.subprocess.Process, multiprocessing.Process, ..."""

        @property
        def pid(self) -> Any: ...

    _Path: TypeAlias = Union[str, bytes, os.PathLike[str], os.PathLike[bytes]]

    #: Whose namespaces to join: a process, or namespaces.
    TargetLike: TypeAlias = Union[int, "Target", HasPid, Namespace, _Path, Iterable[Union[Namespace, _Path]]]

    class Opener(Protocol):
        """What takes the place of a target whose namespaces are not all there yet; ``own`` what is to be closed."""

        def open(self, own: Callable[[Any], Any]) -> tuple[Namespace, ...]: ...


#: A target whose kind has been checked and of which nothing has been opened yet.
Checked = Union[int, "Target", tuple[Union[Namespace, str, bytes], ...]]
Openable = Union[Checked, "Opener"]


class AsTarget(enum.Enum):
    """The type of ``TARGET``."""

    TARGET = "TARGET"

    def __repr__(self) -> str:
        return "nsjoin.TARGET"


#: "As the target has it", for ``env=``, ``cwd=``, ``user=``, ``cgroup=``, ``capabilities=`` and others of ``Popen``.
TARGET = AsTarget.TARGET


class Target(Process):
    """One process, pinned: its pid cannot come to mean another one while this is open.

    ``Target(pid)`` is ``Target.from_pid(pid)``. A context manager that closes itself. Race-free: a pidfd (Linux 5.3),
    by which the kernel gives the namespaces too (Linux 6.11); before that, /proc/PID held open and checked.
    pidfd_open(2).
    """

    __slots__ = ()

    def namespace(self, nstype: str, *, for_children: bool = False) -> Namespace:
        """Open the namespace of type ``nstype`` that the process is in, or that its next children will be in.

        TargetGoneError, NamespacePermissionError, NamespaceError; ValueError if closed or for an unknown type.
        """
        row = lookup(nstype)
        return Namespace._owning(self.open_namespace(row, for_children=for_children), row)

    def namespaces(self) -> dict[str, Namespace]:
        """Open every namespace that the process is in, by type; the caller closes them."""
        have = self.inodes(NSTYPES)
        opened: dict[str, Namespace] = {}
        try:
            for row, inode in zip(NSTYPES, have):
                if inode:
                    opened[row.name] = self.namespace(row.name)
        except BaseException:
            for namespace in opened.values():
                namespace.close()
            raise
        return opened

    def pid_in(self, namespace: TargetLike | None) -> int:
        """Return what a PID namespace calls this process: that of a target, as for ``translate_pid``.

        TargetGoneError if it is not visible there, or has ended and been waited for.
        """
        with _pid_namespace(namespace) as opened:
            number = pids.pid_in(self.pid, opened)
        if self.state() == "gone":
            raise self.gone("translate")
        return number


def translate_pid(pid: int, from_: TargetLike | None = None, to: TargetLike | None = None) -> int:
    """Return what the PID namespace ``to`` calls the process (or thread) that is ``pid`` in ``from_``.

    Both are targets: a pid namespace, or a process that is in it; None is our own. TargetGoneError if there is no such
    process, or ``to`` does not see it, or we do not. NS_GET_PID_FROM_PIDNS and NS_GET_PID_IN_PIDNS of ioctl_nsfs(2),
    Linux 6.11; before that through /proc (Linux 4.11), where NamespacePermissionError means that it may not be read.
    """
    _check_pid(pid)
    with _pid_namespace(from_) as source, _pid_namespace(to) as destination:
        ours = pids.pid_from(pid, source)
        with Target.from_pid(ours) as pinned:
            # it may have ended before it was pinned: then that number is another one's, or will be
            if pids.pid_from(pid, source) != ours:
                raise pinned.gone("translate")
            return pids.pid_in(ours, destination)


@contextmanager
def _pid_namespace(target: TargetLike | None) -> Iterator[Namespace]:
    """Open the PID namespace of ``target``, or our own; ValueError for namespaces of which none is a pid namespace."""
    if target is None:
        with Namespace.current("pid") as own:
            yield own
        return
    with OpenTarget(check_target(target)) as opened:
        if opened.process is not None:
            with opened.process.namespace("pid") as namespace:
                yield namespace
            return
        found = [namespace for namespace in opened.namespaces if namespace.nstype == "pid"]
        if not found:
            raise ValueError(f"{opened.words()} is no pid namespace")
        yield found[0]


def check_target(target: Any) -> Checked:
    """Say what kind of target this is, without a system call; TypeError or ValueError if it is none."""
    if isinstance(target, (Target, Namespace)):
        if target.closed:
            raise ValueError(f"this {type(target).__name__} is closed")
        return target if isinstance(target, Target) else (target,)
    if isinstance(target, int):
        return _check_pid(target)
    if isinstance(target, (str, bytes, os.PathLike)):
        return (_check_path(target),)
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
        raise ValueError("an iterable as a target names at least one namespace")
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
        self.process: Target | None = None
        self.namespaces: tuple[Namespace, ...] = ()
        self._owned: list[Target | Namespace | OpenTarget] = []
        try:
            if isinstance(checked, Target):
                self.process = checked
            elif isinstance(checked, int):
                self.process = self._own(Target.from_pid(checked))
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

    def words(self) -> str:
        """This target in an error message."""
        if self.process is not None:
            return self.process.words()
        return ", ".join(namespace.words() for namespace in self.namespaces)

    def close(self) -> None:
        """Close what was opened here."""
        while self._owned:
            self._owned.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
