"""An exception, with its causes and groups, as plain data and as the text that Python shows.

``describe`` runs in the child of ``call_in`` and reads no files: Python finds source lines by file name, and inside
those names are the target's. ``text`` runs in the caller and looks the lines up there.
"""

from __future__ import annotations

import linecache
import os
import stat
import sys
import threading
import traceback
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Any


#: More than these are left out by ``describe``, and an error for ``text``.
_MOST_EXCEPTIONS, _MOST_FRAMES, _MOST_NOTES, _MOST_CHARACTERS = 50, 100, 20, 10_000
#: A longer statement is shown without the mark at its columns.
_MOST_LINES, _MOST_COLUMNS = 100, 1_000
_MOST_SOURCE = 1 << 24  # bytes of a file

_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"

#: Control characters but for tab and newline: a terminal would obey them.
ESCAPES = {number: f"\\x{number:02x}" for number in (*range(0x20), *range(0x7F, 0xA0)) if chr(number) not in "\t\n"}


class Node(NamedTuple):
    """One exception. The others that belong to it are numbers in the list, -1 for none.

    A frame is (file, line, function, None or (last line, first column, last column)); ``left_out`` are missing in the
    middle of them.
    """

    summary: str
    notes: list[str]
    frames: list[tuple[str, int, str, tuple[int, int, int] | None]]
    left_out: int
    cause: int
    context: int
    members: list[int]


# --- inside -------------------------------------------------------------------------------------------------


def describe(exception: BaseException) -> list[tuple[Any, ...]]:
    """Return data for ``text``: the exception first, then its causes, contexts and members of groups."""
    queue = [exception]

    def number_of(other: Any) -> int:
        for number, known in enumerate(queue):
            if known is other:
                return number
        if not isinstance(other, BaseException) or len(queue) == _MOST_EXCEPTIONS:
            return -1
        queue.append(other)
        return len(queue) - 1

    # the list grows meanwhile
    return [tuple(_node(one, number_of)) for one in queue]


def _node(exception: BaseException, number_of: Callable[[Any], int]) -> Node:
    passed = list(_walk(exception.__traceback__))
    left_out = max(0, len(passed) - _MOST_FRAMES)
    if left_out:
        passed = passed[: _MOST_FRAMES // 2] + passed[-_MOST_FRAMES // 2 :]
    is_plain = exception.__cause__ is None and not exception.__suppress_context__
    return Node(
        _summary(exception),
        [_words(note) for note in islice(_list_of(exception, "__notes__"), _MOST_NOTES)],
        [_frame(entry) for entry in passed],
        left_out,
        number_of(exception.__cause__),
        number_of(exception.__context__ if is_plain else None),
        [n for n in map(number_of, _list_of(exception, "exceptions") if _is_group(exception) else ()) if n >= 0],
    )


def _walk(entry: TracebackType | None) -> Iterator[TracebackType]:
    while entry is not None:
        yield entry
        entry = entry.tb_next


def _summary(exception: BaseException) -> str:
    cls = type(exception)
    name = cls.__qualname__ if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}.{cls.__qualname__}"
    words = _words(exception)
    return f"{name}: {words}"[:_MOST_CHARACTERS] if words else name[:_MOST_CHARACTERS]


def _words(obj: object) -> str:
    try:
        return f"{obj!s}"[:_MOST_CHARACTERS]
    except Exception as failure:  # whatever its __str__ raises
        return f"<str() failed: {type(failure).__name__}>"


def in_words(obj: object) -> str:
    """Return the repr of any object."""
    try:
        return repr(obj)
    except Exception as failure:  # whatever its __repr__ raises
        return f"<{type(obj).__name__}, whose repr() raises {type(failure).__name__}>"


def _list_of(exception: BaseException, name: str) -> list[Any] | tuple[Any, ...]:
    try:
        found = getattr(exception, name, ())
    except Exception:  # whatever a property raises
        return ()
    return found if isinstance(found, (list, tuple)) else ()


def _is_group(exception: BaseException) -> bool:
    """Python's own (3.11), or that of the package exceptiongroup."""
    return any(cls.__name__ == "BaseExceptionGroup" for cls in type(exception).__mro__)


def _frame(entry: TracebackType) -> tuple[str, int, str, tuple[int, int, int] | None]:
    code: Any = entry.tb_frame.f_code
    position = None
    if hasattr(code, "co_positions"):  # Python 3.11
        _, *places = next(islice(code.co_positions(), entry.tb_lasti // 2, None), (None,) * 4)
        position = _position(places)
    return code.co_filename[:_MOST_CHARACTERS], entry.tb_lineno or 0, code.co_name[:_MOST_CHARACTERS], position


def read_no_sources() -> None:
    """Make this process show exceptions and warnings without source lines that are not loaded yet.

    For the child of a call, whose files are the target's: a FIFO in the place of a module would block it.
    """
    linecache.updatecache = lambda *_args, **_keywords: []
    linecache.checkcache = lambda *_args, **_keywords: None
    # these two are in C, and look for the lines themselves; a hook that was set by others stays
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _show_unraisable
    if getattr(threading.excepthook, "__module__", None) in ("_thread", "threading"):
        threading.excepthook = _show_uncaught


def _show_unraisable(unraisable: Any) -> None:
    show(unraisable.exc_value, f"{unraisable.err_msg or 'Exception ignored in'}: {in_words(unraisable.object)}\n")


def _show_uncaught(args: Any) -> None:
    if not isinstance(args.exc_value, SystemExit):
        show(args.exc_value, f"Exception in thread {_words(args.thread.name if args.thread else '')}:\n")


def show(exception: BaseException | None, heading: str = "") -> None:
    """Write the exception to stderr, without source lines."""
    if sys.stderr is not None:
        shown = "" if exception is None else text(describe(exception), look_up=False)
        sys.stderr.write(heading + shown)


def _position(places: list[Any]) -> tuple[int, int, int] | None:
    last, first_column, last_column = places
    return None if None in places else (last, first_column, last_column)


# --- outside ------------------------------------------------------------------------------------------------


def text(described: Any, *, look_up: bool = True) -> str:
    """Return what Python shows of the exception that ``describe`` was given. ValueError for anything else.

    Source lines are those that this process finds by file name, in regular files of up to 16 MB.
    """
    nodes = _checked(described)
    shown = "".join(_chain(nodes, 0, set(), _source_line if look_up else _no_line))
    return shown.translate(ESCAPES)


def _checked(described: Any) -> list[Node]:
    if type(described) is not list or not 1 <= len(described) <= _MOST_EXCEPTIONS:
        raise ValueError("this is no description of an exception")
    nodes = [_checked_node(entry, len(described)) for entry in described]
    if any(node is None for node in nodes):
        raise ValueError("this is no description of an exception")
    return [node for node in nodes if node is not None]


def _checked_node(entry: Any, n: int) -> Node | None:
    if type(entry) is not tuple or tuple(map(type, entry)) != (str, list, list, int, int, int, list):
        return None
    node = Node(*entry)
    is_sound = (
        len(node.summary) <= _MOST_CHARACTERS
        and len(node.notes) <= _MOST_NOTES
        and len(node.frames) <= _MOST_FRAMES
        and all(type(note) is str and len(note) <= _MOST_CHARACTERS for note in node.notes)
        and all(map(_is_frame, node.frames))
        and all(type(number) is int and -1 <= number < n for number in (node.cause, node.context, *node.members))
    )
    return node if is_sound else None


def _is_frame(frame: Any) -> bool:
    if type(frame) is not tuple or tuple(map(type, frame))[:3] != (str, int, str) or len(frame) != 4:
        return False
    file, line, function, position = frame
    if max(len(file), len(function)) > _MOST_CHARACTERS or not 0 <= line < 1 << 31:
        return False
    return position is None or (type(position) is tuple and tuple(map(type, position)) == (int, int, int))


def _chain(nodes: list[Node], number: int, seen: set[int], look_up: Callable[[str, int], str]) -> Iterator[str]:
    seen.add(number)
    node = nodes[number]
    for other, how in ((node.cause, _CAUSE), (node.context, _CONTEXT)):
        if other >= 0 and other not in seen:
            yield from _chain(nodes, other, seen, look_up)
            yield how
    if node.frames:
        yield "Traceback (most recent call last):\n"
    half = len(node.frames) // 2 if node.left_out else len(node.frames)
    yield from _stack(node.frames[:half], look_up)
    if node.left_out:
        yield f"  [{node.left_out} more calls]\n"
    yield from _stack(node.frames[half:], look_up)
    yield f"{node.summary}\n"
    yield from (f"{note}\n" for note in node.notes)
    for place, member in enumerate(node.members, 1):
        if member >= 0 and member not in seen:
            yield f"  +---------------- {place} ----------------\n"
            for part in _chain(nodes, member, seen, look_up):
                yield from (f"  | {line}" for line in part.splitlines(keepends=True))


def _stack(frames: list[tuple[Any, ...]], look_up: Callable[[str, int], str]) -> list[str]:
    return traceback.StackSummary.from_list([_summary_of(frame, look_up) for frame in frames]).format()


def _summary_of(frame: tuple[Any, ...], look_up: Callable[[str, int], str]) -> traceback.FrameSummary:
    file, line, function, position = frame
    found = look_up(file, line)
    if not found or position is None or sys.version_info < (3, 11):
        return traceback.FrameSummary(file, line, function, line=found)
    last, first_column, last_column = position
    if not (line <= last < line + _MOST_LINES and 0 <= first_column < _MOST_COLUMNS and last_column >= 0):
        return traceback.FrameSummary(file, line, function, line=found)
    places: dict[str, Any] = {"end_lineno": last, "colno": first_column, "end_colno": min(last_column, _MOST_COLUMNS)}
    return traceback.FrameSummary(file, line, function, **places)


def _no_line(_file: str, _line: int) -> str:
    return ""


def _source_line(file: str, line: int) -> str:
    linecache.checkcache(file)
    if file not in linecache.cache and not _is_source(file):
        return ""
    return linecache.getline(file, line)[:_MOST_COLUMNS].strip()


def _is_source(file: str) -> bool:
    """Whether the file may be opened: its name comes from another process."""
    try:
        status = os.stat(file)
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size <= _MOST_SOURCE
