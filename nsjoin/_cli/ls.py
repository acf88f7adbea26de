"""``python -m nsjoin ls``: the namespaces as a table, a tree or JSON, in the form of lsns(8)."""

from __future__ import annotations

import json
import os
import pwd
import sys
from functools import cache
from typing import TYPE_CHECKING

from .._kernel.nstypes import BY_NAME
from ..discovery import Tree, iter_namespaces, tree
from ..exceptions import NamespaceError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from typing import Any

    from ..discovery import NamespaceInfo


_HEADING = ("NS", "TYPE", "NPROCS", "PID", "USER", "COMMAND")
_RIGHT = (2, 3)
#: How many of each kind are named; the others are counted.
_NAMED = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``ls``."""
    parser.add_argument("nstypes", nargs="*", metavar="nstype", help=f"list only these types: {', '.join(BY_NAME)}")
    parser.add_argument("--tree", action="store_true", help="show namespaces below their parents or owners")
    parser.add_argument(
        "--by",
        choices=("parent", "owner"),
        default="parent",
        help="with --tree: order user and pid namespaces by parent, or all by the user namespace that owns them",
    )
    parser.add_argument("--json", action="store_true", help="print JSON with every field")


def run(given: argparse.Namespace) -> int:
    """Print the namespaces to stdout and what could not be examined to stderr; return the exit status."""
    for nstype in given.nstypes:
        if nstype not in BY_NAME:
            given.parser.error(f"unknown namespace type {nstype!r}: one of {', '.join(BY_NAME)}")
    nstypes = frozenset(given.nstypes or BY_NAME)
    try:
        found = iter_namespaces()
    except NamespaceError as refused:
        print(f"nsjoin: {refused}", file=sys.stderr)
        return 1
    namespaces = list(found)
    roots = tree(namespaces, by=given.by) if given.tree else tuple(Tree(info, ()) for info in namespaces)
    roots = tuple(_pruned(roots, nstypes))
    try:
        # in one write: stdout may be unbuffered
        print(_json(roots) if given.json else _table(roots, namespaces), flush=True)
    except BrokenPipeError:  # the reader has gone; the flush at the interpreter's end must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for line in _unseen(len(found.refused), found.refused_sockets, found.hidden):
        print(f"nsjoin: {line}", file=sys.stderr)
    return 0


def _pruned(nodes: Iterable[Tree], nstypes: Collection[str]) -> Iterator[Tree]:
    """Yield the nodes of these types, and their ancestors."""
    for node in nodes:
        children = tuple(_pruned(node.children, nstypes))
        if children or node.namespace.nstype in nstypes:
            yield Tree(node.namespace, children)


def _unseen(processes: int, sockets: int, hidden: bool) -> Iterator[str]:
    if processes:
        yield f"may not look into {_count(processes, 'process', 'es')} (ptrace(2)): their namespaces may be missing"
    if sockets:
        yield f"{_count(sockets, 'socket')} may not be asked for the net namespace (pidfd_getfd(2), CAP_NET_ADMIN)"
    if hidden:
        yield "/proc hides the processes of other users (hidepid, proc(5)): their namespaces may be missing"


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else plural}"


# --- one namespace --------------------------------------------------------------------------------------------------


@cache
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@cache
def _process(pid: int) -> tuple[str | None, str | None]:
    """Return the user and the command of a process, None if it has ended."""
    try:
        user = _user(os.stat(f"/proc/{pid}").st_uid)
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().rstrip(b"\0").replace(b"\0", b" ")
        if not words:  # a kernel thread, or a zombie
            with open(f"/proc/{pid}/comm", "rb") as file:
                words = file.read().rstrip(b"\n")
    except OSError:
        return None, None
    return user, os.fsdecode(words)


def _json(roots: Sequence[Tree]) -> str:
    return json.dumps({"namespaces": [_plain(node) for node in roots]}, indent=3)


#: What the pairs of these fields are called.
_PAIRS = {"threads": ("pid", "tid"), "descriptors": ("pid", "fd"), "sockets": ("pid", "fd")}


def _plain(node: Tree) -> dict[str, Any]:
    """Return the fields of ``lsns --json``, then those that lsns(8) lacks."""
    info = node.namespace
    pid = info.pids[0] if info.pids else None
    user, command = _process(pid) if pid else (None, None)
    plain: dict[str, Any] = {
        "ns": info.id.ino,
        "type": info.nstype,
        "nprocs": len(info.pids),
        "pid": pid,
        "user": user,
        "command": command,
        "id": info.id.unique,
    }
    for name, value in info._asdict().items():
        if name in _PAIRS:
            plain[name] = [dict(zip(_PAIRS[name], pair)) for pair in value]
        elif name in ("owner", "parent"):
            plain[name] = value.ino if value else None
        elif name not in ("nstype", "id", "pids"):  # which lsns has under other names
            plain[name] = value
    if node.children:
        plain["children"] = [_plain(child) for child in node.children]
    return plain


def _keepers(info: NamespaceInfo, below: int) -> str:
    """Describe what keeps a namespace without a process."""
    kinds = (
        [f"thread {tid} of {pid}" for pid, tid in info.threads],
        [f"for children of {number}" for number in info.for_children],
        list(info.paths),
        [f"descriptor {fd} of {pid}" for pid, fd in info.descriptors],
        [f"socket {fd} of {pid}" for pid, fd in info.sockets],
        [f"{_count(below, 'namespace')} below"] if below else [],
    )
    words = []
    for kind in kinds:
        words += kind[:_NAMED]
        if len(kind) > _NAMED:
            words.append(f"{len(kind) - _NAMED} more")
    return f"[{', '.join(words)}]"


# --- the table ------------------------------------------------------------------------------------------------------


def _table(roots: Sequence[Tree], namespaces: Sequence[NamespaceInfo]) -> str:
    below: dict[int, int] = {}
    for info in namespaces:
        for above in {relation.ino for relation in (info.owner, info.parent) if relation is not None}:
            below[above] = below.get(above, 0) + 1
    lines = [_HEADING, *_lines(roots, below)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    room = os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else None
    return "\n".join(_line(line, widths)[:room] for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell.rjust(width) if index in _RIGHT else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(cells, widths))
    )
    return " ".join(padded).rstrip()


def _lines(nodes: Sequence[Tree], below: dict[int, int], further: str | None = None) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each node, the first with its branches drawn before it; ``further`` is None for the roots."""
    for index, node in enumerate(nodes):
        is_last = index == len(nodes) - 1
        branch, trunk = ("", "") if further is None else (("└─", "  ") if is_last else ("├─", "│ "))
        yield _cells(node.namespace, below, (further or "") + branch)
        yield from _lines(node.children, below, (further or "") + trunk)


def _cells(info: NamespaceInfo, below: dict[int, int], branch: str) -> tuple[str, ...]:
    pid = info.pids[0] if info.pids else None
    user, command = _process(pid) if pid else (None, _keepers(info, below.get(info.id.ino, 0)))
    cells = (branch + str(info.id.ino), info.nstype, str(len(info.pids)), str(pid or ""), user or "", command or "")
    return tuple("".join(letter if letter.isprintable() else "?" for letter in cell) for cell in cells)
