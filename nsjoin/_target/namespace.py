"""``Namespace``: one open namespace, identified by the kernel's id and not by a path or a pid."""

from __future__ import annotations

import errno
import os
import warnings
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from .._kernel import calls
from .._kernel.nstypes import BY_FLAG, NSTYPES, lookup
from .._kernel.thread import own_namespace
from ..exceptions import NotANamespaceError, refusals
from . import pins
from .process import Process

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import NoReturn

    from typing_extensions import Self

    from .._kernel.nstypes import NsType


class NamespaceId(NamedTuple):
    """The identity of a namespace.

    ``dev`` and ``ino`` identify it only while a descriptor is held (the kernel reuses inode numbers at once);
    ``unique`` does until the next boot (NS_GET_ID, Linux 6.18; None before). Ids compare by ``unique`` if both have it.
    """

    dev: int
    ino: int
    unique: int | None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NamespaceId):
            return NotImplemented
        if self.unique is not None and other.unique is not None:
            return self.unique == other.unique
        return self[:2] == other[:2]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self[:2])


class Namespace:
    """One open namespace; the descriptor keeps it alive, also when its last process has ended.

    ``Namespace(pid, nstype)`` is ``Namespace.from_pid(pid, nstype)``. A context manager that closes itself. Two are
    equal if they are the same namespace; ``nstype`` and ``id`` are readable when closed. ioctl_nsfs(2), namespaces(7).
    ::

        with nsjoin.Namespace.from_path("/run/netns/blue") as blue:
            nsjoin.run_in(blue, ["ip", "link"])
    """

    __slots__ = ("__weakref__", "_fd", "_id", "_row")

    def __init__(self, pid: int, nstype: str, *, for_children: bool = False) -> None:
        """As ``from_pid``."""
        row = lookup(nstype)
        with Process(pid) as process:
            self._own(process.open_namespace(row, for_children=for_children), row)

    @classmethod
    def _owning(cls, fd: int, row: NsType) -> Self:
        """Take ownership of ``fd``, which is a namespace of the type ``row``."""
        made = cls.__new__(cls)
        made._own(fd, row)
        return made

    def _own(self, fd: int, row: NsType) -> None:
        self._fd = -1
        self._row = row
        fd = calls.above_stdio(fd)
        try:
            status = os.fstat(fd)
            self._id = NamespaceId(status.st_dev, status.st_ino, calls.namespace_unique_id(fd))
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    @classmethod
    def from_pid(cls, pid: int, nstype: str, *, for_children: bool = False) -> Self:
        """Open the namespace that the process (or thread) ``pid`` is in, or that its next children will be in.

        ``for_children`` is for ``"pid"`` and ``"time"``: /proc/PID/ns/pid_for_children and time_for_children.
        TargetGoneError, NamespacePermissionError, NamespaceError; TypeError and ValueError for bad arguments.
        """
        return cls(pid, nstype, for_children=for_children)

    @classmethod
    def from_path(cls, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> Self:
        """Open a namespace file: ``/run/netns/NAME``, ``/proc/PID/ns/TYPE``, or any bind mount of one.

        NamespaceNotFoundError, NamespacePermissionError; NotANamespaceError (a ValueError) for any other file.
        """
        name = os.fsdecode(path)
        with refusals("open", target=name):
            if not os.path.isfile(path):
                os.stat(path)
                raise NotANamespaceError(errno.EINVAL, "open", target=name, reason="not a namespace file")
            # if a FIFO or a device takes its place, opening that must neither hang nor have an effect
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        return cls._of(fd, name)

    @classmethod
    def from_netns(cls, name: str) -> Self:
        """Open the network namespace that ``ip netns`` and pyroute2 know by ``name``: the file /run/netns/NAME.

        Errors as for ``from_path``; ValueError also for a name with a slash, and if it is not a network namespace.
        """
        path = pins.netns_path(name)
        opened = cls.from_path(path)
        if opened.nstype != "net":
            opened.close()
            reason = f"it is a {opened.nstype} namespace, not a network namespace"
            raise NotANamespaceError(errno.EINVAL, "open", target=path, reason=reason)
        return opened

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """Open the namespace of the descriptor ``fd``, which is duplicated and stays the caller's.

        NotANamespaceError (a ValueError) if it is not one; an O_PATH descriptor is not.
        """
        return cls._of(calls.duplicate(fd), f"descriptor {fd}")

    @classmethod
    def current(cls, nstype: str, *, for_children: bool = False) -> Self:
        """Open the namespace that this thread is in, or that its next children will be in."""
        row = lookup(nstype)
        if for_children and row.children is None:
            raise ValueError(f"a {nstype} namespace has no other one for children: only pid and time do")
        return cls._owning(own_namespace(row, for_children=for_children), row)

    @classmethod
    def _of(cls, fd: int, name: str) -> Self:
        try:
            row = BY_FLAG[calls.namespace_type(fd)]
        except (OSError, KeyError) as refused:
            os.close(fd)
            reason = "an unknown type of namespace" if isinstance(refused, KeyError) else "not a namespace file"
            raise NotANamespaceError(errno.EINVAL, "open", target=name, reason=reason) from None
        return cls._owning(fd, row)

    @property
    def nstype(self) -> str:
        """The type: its name in /proc/PID/ns."""
        return self._row.name

    @property
    def id(self) -> NamespaceId:
        """The identity: device, inode number and, since Linux 6.18, a number that is unique until the next boot."""
        return self._id

    def fileno(self) -> int:
        """Return the descriptor; ValueError if closed."""
        if self._fd < 0:
            raise ValueError("this Namespace is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._fd < 0

    def owner(self) -> Namespace:
        """Open the user namespace that owns this one. NamespacePermissionError if that is neither the caller's user
        namespace nor a descendant of it. NS_GET_USERNS, Linux 4.9."""
        return self._related(calls.namespace_owner, "NS_GET_USERNS")

    def parent(self) -> Namespace:
        """Open the parent of this pid or user namespace. ValueError for another type; NamespacePermissionError if the
        parent is outside the caller's namespace, or this is the first one. NS_GET_PARENT, Linux 4.9."""
        if self.nstype not in ("pid", "user"):
            raise ValueError(f"only pid and user namespaces have parents, not {self.nstype}")
        return self._related(calls.namespace_parent, "NS_GET_PARENT")

    def owner_uid(self) -> int:
        """Return the uid that made this user namespace, or the one that owns this. NS_GET_OWNER_UID, Linux 4.11."""
        if self.nstype == "user":
            return calls.namespace_owner_uid(self.fileno())
        with self.owner() as owner:
            return owner.owner_uid()

    def _related(self, ask: Callable[[int], int], step: str) -> Namespace:
        fd, name = self.fileno(), describe(self)
        with refusals(step, nstype=self.nstype, target=name, reason=_OUTSIDE.get):
            related = ask(fd)
        return Namespace._of(related, name)

    def pin(self, path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None:
        """Keep this namespace by a new file: bind-mount it on ``path``, where ``from_path`` and nsenter(1) find it.

        It lives on without processes and descriptors until ``unpin(path)``. In /run/netns, ``ip netns`` and pyroute2
        find a network namespace too: that directory is created, and made a shared mount, as ``ip netns add`` does, so
        that other mount namespaces see it. A PID namespace lives only as long as its init (pid_namespaces(7)).

        NamespaceExistsError (a FileExistsError) if there is such a file, NamespaceNotFoundError if there is no such
        directory, NamespacePermissionError, NamespaceError; ValueError if closed. A failure leaves neither file nor
        mount behind. Needs CAP_SYS_ADMIN. mount(2), ip-netns(8).
        """
        pins.pin(self.fileno(), path, self.nstype)

    def close(self) -> None:
        """Close the descriptor. Closing twice is no error."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        self.fileno()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Namespace):
            return NotImplemented
        return self._id == other._id

    def __hash__(self) -> int:
        return hash(self._id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.nstype}:[{self._id.ino}]{' closed' if self.closed else ''}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"cannot copy or pickle {self!r}: it owns a descriptor (from_fd makes another Namespace)")

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:  # none where the arguments were wrong, or a signal handler raised
            warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.close()


#: Of NS_GET_USERNS and NS_GET_PARENT.
_OUTSIDE = {errno.EPERM: "it is outside of the caller's namespace"}


def describe(namespace: Namespace) -> str:
    """Return what error messages call this namespace."""
    return f"namespace {namespace.nstype}:[{namespace.id.ino}]"


def namespace_of(process: Process, row: NsType, *, for_children: bool = False) -> Namespace:
    """Open a namespace of a pinned process. TargetGoneError, NamespacePermissionError, NamespaceError, ValueError."""
    return Namespace._owning(process.open_namespace(row, for_children=for_children), row)


def namespaces_of(process: Process) -> dict[str, Namespace]:
    """Open every namespace that a pinned process is in, by type; the caller closes them."""
    with ExitStack() as stack:
        rows = [row for row, inode in zip(NSTYPES, process.inodes(NSTYPES)) if inode]
        opened = {row.name: stack.enter_context(namespace_of(process, row)) for row in rows}
        stack.pop_all()
    return opened


def unpin(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> None:
    """Unmount the namespace file ``path`` and remove it, as ``ip netns delete`` does.

    The namespace itself lives on as long as anything else keeps it. For files that ``Namespace.pin``, ``ip netns``,
    pyroute2 or ``unshare --net=FILE`` has made.

    NotANamespaceError (a ValueError) if ``path`` is not a namespace file, which is then left alone.
    NamespaceNotFoundError, NamespacePermissionError, NamespaceError (EINVAL: not a mount, such as /proc/PID/ns/net).
    Needs CAP_SYS_ADMIN. umount(2).
    """
    with Namespace.from_path(path):
        pins.unpin(path)
