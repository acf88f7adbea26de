"""One look at every process, thread, descriptor and mount: the namespaces that exist, and what keeps each."""

from __future__ import annotations

import errno
import os
import re
from functools import partial
from typing import TYPE_CHECKING

from .._kernel import abi, calls, procfs
from .._kernel.nstypes import BY_NAME, MNT, NSTYPES
from .._kernel.thread import own_namespace
from ..exceptions import NamespaceError
from .process import Process
from .seen import EXHAUSTED, PATH, READ, Known

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .seen import Seen


_DIRECTORY = READ | os.O_DIRECTORY
#: One line of mountinfo, proc(5), that is a namespace: its root (the link's text), the place, its options.
_NSFS_LINE = re.compile(rb"^\d+ \d+ \S+ ([a-z]+:\[\d+\]) (\S+) .*? - nsfs ", re.MULTILINE)
_PROC_LINE = re.compile(rb"^\d+ \d+ (\S+) .*? - proc \S+ (\S+)$", re.MULTILINE)
_HIDING = frozenset({b"hidepid=2", b"hidepid=4", b"hidepid=invisible", b"hidepid=ptraceable"})

#: EAGAIN is also what comes of a rename anywhere at the same moment
_TRIES = 5

#: A process, or a thread, that ended during the look
_GONE = (FileNotFoundError, ProcessLookupError)


class Survey:
    """One look at everything; ``run`` fills in ``seen``, by link text, and what could not be seen."""

    _known: Known

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}
        self.refused: list[int] = []
        self.refused_sockets = 0
        self.hidden = False
        self._proc = -1
        have = procfs.names("thread-self/ns")
        rows = [row for row in NSTYPES if row.name in have]
        #: the links to read, and for those of children which link their own namespace is
        self._names = [f"ns/{row.name}" for row in rows]
        self._of: list[int | None] = [None] * len(rows)
        for index, row in enumerate(rows):
            if row.children in have:
                self._names.append(f"ns/{row.children}")
                self._of.append(index)
        self._nothing = [""] * len(self._names)
        self._mnt = self._names.index("ns/mnt")
        self._net = self._names.index("ns/net") if "net" in have else None
        self._own_mnt = procfs.read_link("thread-self/ns/mnt")
        #: whose descriptors to read, and the net namespace that they are in
        self._tables: list[tuple[int, str]] = []
        #: the bind mounts: the link's text, whose root in /proc ("" for ours), the path below it; and all such paths
        self._mounts: list[tuple[str, str, str]] = []
        self._places = {"/"}  # what the link of a descriptor says whose mount is gone
        self._nets_of_sockets: dict[str, Seen | None] = {}

    def run(self) -> None:
        self._proc = procfs.open_file(".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._known = Known(self._proc, self.seen)
            self._look()
        finally:
            os.close(self._proc)

    def _look(self) -> None:
        try:
            for name in os.listdir(self._proc):  # pids ascending
                if name.isdigit():
                    self._process(int(name))
            self._all_mount_namespaces()
            self._mountinfo()
            for number, net in self._tables:
                self._descriptors(number, net)
            for text, root, place in self._mounts:
                self._mount(text, root, place)
        finally:
            self._known.close()

    # --- processes and threads

    def _process(self, pid: int) -> None:
        """What /proc/PID has to say; while its directory is open, no other process can answer for this one."""
        try:
            proc = os.open(str(pid), _DIRECTORY, dir_fd=self._proc)
        except PermissionError:  # hidepid=1
            self.refused.append(pid)
            return
        except _GONE:
            return
        try:
            self._members(pid, proc)
        except PermissionError:
            if _is_there(proc):  # a link of a process that has just gone says EACCES too
                self.refused.append(pid)
        except _GONE:
            pass
        finally:
            os.close(proc)

    def _members(self, pid: int, proc: int) -> None:
        texts = self._texts(proc)
        self._note((pid,), texts, self._nothing, proc)
        if texts[self._mnt]:
            self._tables.append((pid, "" if self._net is None else texts[self._net]))
        if os.stat("task", dir_fd=proc).st_nlink > 3:  # two, and one for each thread
            self._threads(pid, proc, texts)

    def _note(
        self, who: tuple[int] | tuple[int, int], texts: list[str], known: list[str], directory: int, prefix: str = ""
    ) -> None:
        """Note a process, or a pair of process and thread, in the namespaces of its links but those in ``known``."""
        for index, (name, text, of) in enumerate(zip(self._names, texts, self._of)):
            if text and (text == known[index] or (of is not None and text == texts[of])):
                continue
            seen = self._known.meet(text, prefix + name, directory) if text else self._not_begun(who[-1], index, texts)
            if seen is None:
                continue
            if of is not None:
                seen.for_children.append(who[-1])
            elif len(who) == 1:
                seen.pids.append(who[0])
            else:
                seen.threads.append(who)

    def _not_begun(self, number: int, index: int, texts: list[str]) -> Seen | None:
        """The PID namespace for children of which none is born yet: it has no link in /proc, a pidfd tells it."""
        of = self._of[index]
        if of is None or not texts[self._mnt]:  # a zombie has no links either
            return None
        row = BY_NAME[self._names[of][3:]]
        try:
            with Process(number) as process:
                return self._known.adopt(process.open_namespace(row, for_children=True), row.name)
        except NamespaceError:  # it has ended; or before Linux 6.11
            return None

    def _texts(self, directory: int, prefix: str = "") -> list[str]:
        """The texts of the links; "" for what is not there: of a zombie most, and pid_for_children before the first."""
        texts = []
        for name in self._names:
            try:
                texts.append(os.readlink(prefix + name, dir_fd=directory))
            except FileNotFoundError:
                texts.append("")
        return texts

    def _threads(self, pid: int, proc: int, of_process: list[str]) -> None:
        task = os.open("task", _DIRECTORY, dir_fd=proc)
        try:
            tids = sorted(int(name) for name in os.listdir(task))
            for tid in tids:
                if tid != pid:
                    self._thread(pid, tid, task, of_process)
            if not of_process[self._mnt]:  # the main thread has ended: the others still have the descriptors
                self._tables += [(tid, "") for tid in tids if tid != pid][:1]
        finally:
            os.close(task)

    def _thread(self, pid: int, tid: int, task: int, of_process: list[str]) -> None:
        try:
            self._note((pid, tid), self._texts(task, f"{tid}/"), of_process, task, f"{tid}/")
        except _GONE:
            pass

    # --- mounts

    def _all_mount_namespaces(self) -> None:
        """Those without a process too, as far as we have power over them: the kernel has a list of all."""
        for previous in (False, True):
            at = own_namespace(MNT)
            try:
                while at >= 0:
                    done, at = at, _next_mount_namespace(at, previous)
                    self._known.adopt(done, "mnt")
            finally:
                if at >= 0:
                    os.close(at)

    def _mountinfo(self) -> None:
        """The bind mounts of namespaces in every mount namespace that has a process, ours first."""
        own, others = self.seen.get(self._own_mnt), []
        for text, seen in self.seen.items():
            if seen.nstype == "mnt" and seen is not own:
                others.append((text, [*seen.pids, *(tid for _, tid in seen.threads)]))
        lines = self._read("thread-self/mountinfo")
        self._nsfs_mounts(lines, "")
        self.hidden = _is_hiding(lines, os.fstat(self._proc).st_dev)
        for text, members in others:
            for number in members:
                try:
                    lines = self._read(f"{number}/mountinfo")
                    if os.readlink(f"{number}/ns/mnt", dir_fd=self._proc) != text:
                        continue  # it has left, or its pid is another process's by now
                except OSError:
                    continue
                self._nsfs_mounts(lines, f"{number}/root")
                break

    def _read(self, path: str) -> bytes:
        with open(os.open(path, READ, dir_fd=self._proc), "rb") as file:
            return file.read()

    def _nsfs_mounts(self, lines: bytes, root: str) -> None:
        for found in _NSFS_LINE.finditer(lines):
            place = os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda escape: bytes([int(escape[1], 8)]), found[2]))
            self._places.add(place)
            self._mounts.append((found[1].decode(), root, place))

    def _mount(self, text: str, root: str, place: str) -> None:
        """Note a bind mount, also one that cannot be opened: it is below another mount, or not ours to reach."""
        if text.partition(":")[0] not in BY_NAME:
            return
        seen = self._known.unopened(text)
        if not seen.opened:
            self._known.open(partial(self._find_mount, root, place))
        path = f"/proc/{root}{place}" if root else place
        if path not in seen.paths:
            seen.paths.append(path)

    def _find_mount(self, root: str, place: str) -> int:
        directory = os.open(root or "/", PATH | os.O_DIRECTORY, dir_fd=self._proc if root else None)
        try:
            return _open_without_asking(directory, place)
        finally:
            os.close(directory)

    # --- descriptors

    def _descriptors(self, number: int, net: str) -> None:
        try:
            folder = os.open(f"{number}/fd", _DIRECTORY, dir_fd=self._proc)
        except _GONE:
            return
        except PermissionError:  # looking into it was permitted a moment ago: it has become another program
            self.refused.append(number)
            return
        try:
            sockets = self._namespaces_in(folder, number)
        finally:
            os.close(folder)
        if sockets:
            self._sockets(number, sockets, net)

    def _namespaces_in(self, folder: int, number: int) -> list[tuple[int, str]]:
        """Note descriptors that are namespaces, and return those that are sockets."""
        sockets = []
        try:
            for name in os.listdir(folder):
                try:
                    text = os.readlink(name, dir_fd=folder)
                except FileNotFoundError:
                    continue
                if text.startswith("socket:"):
                    sockets.append((int(name), text))
                elif text in self._places or text.partition(":[")[0] in BY_NAME:
                    self._descriptor(number, int(name), text, folder)
        except (ProcessLookupError, PermissionError):  # it has ended: a link that was just found says EACCES then
            pass
        return sockets

    def _descriptor(self, number: int, fd: int, text: str, folder: int) -> None:
        if number == os.getpid() and (fd == self._proc or fd in self._known.held):
            return
        seen = self._known.meet(text, str(fd), folder)
        if seen is not None:
            seen.descriptors.append((number, fd))

    def _sockets(self, number: int, sockets: Sequence[tuple[int, str]], net: str) -> None:
        """Ask each socket once: it stays in the net namespace that it was made in, wherever it is handed on to."""
        for fd, text in sockets:
            if text not in self._nets_of_sockets:
                self._nets_of_sockets[text] = self._net_of_socket(number, fd)
            seen = self._nets_of_sockets[text]
            if seen is not None and seen is not self.seen.get(net):
                seen.sockets.append((number, fd))

    def _net_of_socket(self, number: int, fd: int) -> Seen | None:
        try:
            return self._known.adopt(open_socket_namespace(number, fd), "net")
        except PermissionError:
            self.refused_sockets += 1
        except OSError as refused:  # it has gone; or it is another kind of file by now, or of socket
            if refused.errno in EXHAUSTED:
                raise
        return None


def _open_without_asking(root: int, place: str) -> int:
    """What is mounted there is known to the kernel with all that is above it. A file system that wants to be asked all
    the same, as FUSE does, may never answer: EAGAIN."""
    for _ in range(_TRIES):
        try:
            return calls.openat2_cached(root, os.fsencode(place), PATH)
        except OSError as refused:
            if abi.lacks("RESOLVE_CACHED", refused):
                return os.open(place.lstrip("/"), PATH, dir_fd=root)
            if refused.errno != errno.EAGAIN:
                raise
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), place)


def _is_hiding(mountinfo: bytes, device: int) -> bool:
    """Whether the /proc of that device leaves out what we may not look into."""
    number = f"{os.major(device)}:{os.minor(device)}".encode()
    options = [line[2].split(b",") for line in _PROC_LINE.finditer(mountinfo) if line[1] == number]
    return any(not _HIDING.isdisjoint(words) for words in options) and not calls.is_admin()


def _is_there(proc: int) -> bool:
    try:
        os.stat("task", dir_fd=proc)
    except _GONE:
        return False
    except PermissionError:
        pass
    return True


def _next_mount_namespace(fd: int, previous: bool) -> int:
    try:
        return calls.next_mount_namespace(fd, previous=previous)
    except OSError as refused:
        if refused.errno != errno.ENOENT and not abi.lacks("NS_MNT_GET_NEXT", refused):  # ENOENT: it was the last one
            raise
        return -1


def open_socket_namespace(number: int, fd: int) -> int:
    """A descriptor of the net namespace of the socket that is the descriptor ``fd`` of a process (or thread)."""
    with Process(number) as process:
        copy = calls.pidfd_getfd(process.fileno(), fd)
    try:
        return calls.socket_namespace(copy)
    finally:
        os.close(copy)
