"""Find namespaces: all that the caller may see, and what keeps each of them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ._kernel.nstypes import NET
from ._target import survey
from ._target.namespace import Namespace
from ._target.proc_directory import check_proc
from ._target.seen import Seen
from ._target.survey import Survey
from .exceptions import NamespaceError, NamespaceNotFoundError, refusals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from ._target.namespace import NamespaceId


__all__ = ["NamespaceInfo", "NamespaceIterator", "Tree", "iter_namespaces", "tree"]


class NamespaceInfo(NamedTuple):
    """One namespace: what it is, whose, who is in it, and what else keeps it. All as it was at one moment."""

    nstype: str
    #: ``unique`` is None where it could not be opened
    id: NamespaceId
    #: the user namespace that owns it; None: it is outside the caller's, and the kernel does not report it (Linux 4.9)
    owner: NamespaceId | None
    #: the uid, as the caller sees it, that made the user namespace that this one is, or belongs to (Linux 4.11)
    owner_uid: int | None
    #: for pid and user; None: it is outside the caller's, or this is the first one (Linux 4.9)
    parent: NamespaceId | None
    #: the processes that are in it, ascending
    pids: tuple[int, ...]
    #: threads that are in it while their process (its main thread) is not: pairs of pid and thread id
    threads: tuple[tuple[int, int], ...]
    #: pids and thread ids of those that are not in it, but whose next children will be: ``pid`` and ``time``
    for_children: tuple[int, ...]
    #: its bind mounts, by paths that can be opened from here: in other mount namespaces, /proc/PID/root/...
    paths: tuple[str, ...]
    #: open descriptors of it: pairs of pid and number
    descriptors: tuple[tuple[int, int], ...]
    #: sockets in it whose process is not: pairs of pid and number
    sockets: tuple[tuple[int, int], ...]

    def open(self) -> Namespace:
        """Open it through whatever keeps it; the id is checked, so it is never a later namespace with the same number.

        NamespaceNotFoundError if nothing that kept it keeps it any more, or permits opening it.
        """
        for open_it in self._ways():
            try:
                found = open_it()
            except NamespaceError:
                continue
            if found.id == self.id:
                return found
            found.close()
        words = f"namespace {self.nstype}:[{self.id.ino}]"
        raise NamespaceNotFoundError(errno.ENOENT, "open", target=words, reason="nothing that kept it has it any more")

    def _ways(self) -> Iterator[Callable[[], Namespace]]:
        for number in (*self.pids, *(tid for _, tid in self.threads)):
            yield partial(Namespace.from_pid, number, self.nstype)
        for path in (*(f"/proc/{number}/fd/{fd}" for number, fd in self.descriptors), *self.paths):
            yield partial(Namespace.from_path, path)
        for number in self.for_children:
            yield partial(Namespace.from_pid, number, self.nstype, for_children=True)
        for number, fd in self.sockets:
            yield partial(_of_socket, number, fd)


def _of_socket(number: int, fd: int) -> Namespace:
    with refusals("SIOCGSKNS", target=f"descriptor {fd} of {number}"):
        return Namespace._owning(survey.open_socket_namespace(number, fd), NET)


class NamespaceIterator(Iterator[NamespaceInfo]):
    """What ``iter_namespaces`` returns: the namespaces, and what stood in the way of seeing more."""

    def __init__(self, found: Iterable[NamespaceInfo], survey: Survey) -> None:
        self._found = iter(found)
        #: pids of processes that the caller may not look into: their namespaces may be missing here
        self.refused = tuple(survey.refused)
        #: how many sockets could not be asked for their net namespace (pidfd_getfd(2), SIOCGSKNS)
        self.refused_sockets = survey.refused_sockets
        #: whether /proc hides other users' processes altogether (mount option hidepid)
        self.hidden = survey.hidden

    def __next__(self) -> NamespaceInfo:
        return next(self._found)


def iter_namespaces() -> NamespaceIterator:
    """Look at every process and return the namespaces that the caller may see, by inode number.

    That takes about 0.1 ms for each process, and is complete when this returns. Processes that vanish meanwhile are
    no error; the result counts those that were refused. Pids are those of the caller's PID namespace: NamespaceError
    (EXDEV) where another one's /proc is mounted, NamespaceNotFoundError where none is. namespaces(7), ioctl_nsfs(2),
    lsns(8).

    Namespaces that only a message on its way to a socket keeps (SCM_RIGHTS) are not seen, nor bind mounts in mount
    namespaces without a process.
    """
    try:
        check_proc()
    except FileNotFoundError as missing:
        raise NamespaceNotFoundError(missing.errno or 0, "open /proc", reason="/proc is not mounted here") from None
    look = survey.Survey()
    look.run()
    found = sorted((_info(seen) for seen in look.seen.values()), key=lambda info: info.id.ino)
    return NamespaceIterator(found, look)


def _info(seen: Seen) -> NamespaceInfo:
    return NamespaceInfo(*(_plain(getattr(seen, name)) for name in NamespaceInfo._fields))


def _plain(value: Any) -> Any:
    if isinstance(value, Seen):
        return value.id
    return tuple(value) if isinstance(value, list) else value


class Tree(NamedTuple):
    """A namespace with those below it."""

    namespace: NamespaceInfo
    children: tuple[Tree, ...]


def tree(namespaces: Iterable[NamespaceInfo] | None = None, *, by: str = "parent") -> tuple[Tree, ...]:
    """Return the roots of the hierarchies of user and pid namespaces; ``namespaces`` instead of ``iter_namespaces()``.

    With ``by="owner"`` there is one hierarchy, of the user namespaces, and each other namespace stands below its owner.
    Where the parent or owner is not visible, a namespace is a root itself. ValueError for another ``by``.
    """
    if by not in ("parent", "owner"):
        raise ValueError(f"by is 'parent' or 'owner', not {by!r}")
    found = list(iter_namespaces() if namespaces is None else namespaces)
    if by == "parent":
        found = [info for info in found if info.nstype in ("pid", "user")]
    seen = {info.id for info in found}
    below: dict[NamespaceId | None, list[NamespaceInfo]] = {}
    for info in found:
        above = info.owner if by == "owner" else info.parent
        below.setdefault(above if above in seen else None, []).append(info)

    def grow(above: NamespaceId | None) -> tuple[Tree, ...]:
        return tuple(Tree(info, grow(info.id)) for info in below.get(above, ()))

    return grow(None)
