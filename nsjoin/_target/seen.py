"""The namespaces that a survey meets: each opened once, held, and asked for its relations."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from .._kernel import abi, calls
from .._kernel.nstypes import BY_FLAG
from .namespace import NamespaceId

if TYPE_CHECKING:
    from collections.abc import Callable


PATH = abi.O_PATH | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_CLOEXEC
#: Errors that do not depend on the file
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass(eq=False)
class Seen:
    """A namespace during a survey: the fields of ``NamespaceInfo``, and whether it has been opened."""

    nstype: str
    id: NamespaceId
    owner: Seen | None = None
    owner_uid: int | None = None
    parent: Seen | None = None
    pids: list[int] = field(default_factory=list)
    threads: list[tuple[int, int]] = field(default_factory=list)
    for_children: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    descriptors: list[tuple[int, int]] = field(default_factory=list)
    sockets: list[tuple[int, int]] = field(default_factory=list)
    opened: bool = False


class Known:
    """The namespaces met so far, by their link's text, such as ``net:[4026531833]``.

    Reading that link is the cheapest way to ask the kernel: one call that opens nothing. The number in it is reused at
    once, so each namespace is opened when it is first met, and held until the end: meanwhile the same text means the
    same namespace.
    """

    def __init__(self, proc: int, seen: dict[str, Seen]) -> None:
        """``proc`` is a descriptor of /proc, which stays the caller's; ``seen`` is filled in."""
        self.seen = seen
        self.held: set[int] = set()
        self._proc = proc
        self._device = os.stat("thread-self/ns/mnt", dir_fd=proc).st_dev  # nsfs
        # half of the descriptors are left to the program; beyond that, a namespace is only asked, not held
        self._hold_below = os.sysconf("SC_OPEN_MAX") // 2

    def close(self) -> None:
        """Close everything that is held."""
        for fd in self.held:
            os.close(fd)

    def adopt(self, fd: int, nstype: str) -> Seen:
        """The namespace of ``fd``, which is held or closed; on first sight its relations are asked, and met too."""
        try:
            status = os.fstat(fd)
            text = f"{nstype}:[{status.st_ino}]"
            seen = self.seen.get(text) or self.unopened(text)
            if not seen.opened:
                seen.opened = True
                seen.id = NamespaceId(status.st_dev, status.st_ino, calls.namespace_unique_id(fd))
                self._ask(seen, fd)
                if fd < self._hold_below:
                    self.held.add(fd)
                    fd = -1
            return seen
        finally:
            if fd >= 0:
                os.close(fd)

    def _ask(self, seen: Seen, fd: int) -> None:
        owner = _if_told(calls.namespace_owner, fd)
        seen.owner = None if owner is None else self.adopt(owner, "user")
        if seen.nstype == "user":
            seen.parent = seen.owner  # the kernel's answers are the same
            seen.owner_uid = _if_told(calls.namespace_owner_uid, fd)
            return
        seen.owner_uid = seen.owner.owner_uid if seen.owner else None
        if seen.nstype == "pid":
            parent = _if_told(calls.namespace_parent, fd)
            seen.parent = None if parent is None else self.adopt(parent, "pid")

    def meet(self, text: str, path: str, directory: int) -> Seen | None:
        """The namespace of that link's text, which ``path`` leads to.

        None if it vanished. Where it has changed since the text was read, the one that is there now.
        """
        seen = self.seen.get(text)
        if seen is not None and seen.opened:
            return seen
        return self.open(partial(os.open, path, PATH, dir_fd=directory))

    def unopened(self, text: str) -> Seen:
        """A namespace of which the link's text is all that is known."""
        nstype, _, number = text[:-1].partition(":[")
        return self.seen.setdefault(text, Seen(nstype, NamespaceId(self._device, int(number), None)))

    def open(self, find: Callable[[], int]) -> Seen | None:
        """``find`` gives an O_PATH descriptor of what lies there."""
        try:
            fd = self._open_file(find())
            if fd is None:
                return None
            try:
                nstype = BY_FLAG[calls.namespace_type(fd)].name
            except BaseException:
                os.close(fd)
                raise
            return self.adopt(fd, nstype)
        except KeyError:  # a type that a newer kernel has
            return None
        except OSError as refused:
            if refused.errno in EXHAUSTED:
                raise
            return None

    def _open_file(self, at: int) -> int | None:
        """Open a file of nsfs. What lies there may be another file by now, and opening a device or a FIFO does
        something: so there is only an O_PATH descriptor, which is closed."""
        try:
            if calls.device(at) != self._device:
                return None
            return os.open(f"thread-self/fd/{at}", READ, dir_fd=self._proc)
        finally:
            os.close(at)


def _if_told(ask: Callable[[int], int], fd: int) -> int | None:
    """The kernel's answer; None where it is outside of our namespace, or asked of an older kernel."""
    try:
        return ask(fd)
    except OSError as refused:
        if refused.errno != errno.EPERM and not abi.lacks("NS_GET_USERNS", refused):
            raise
        return None
