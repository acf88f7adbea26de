"""Print the table: every container that starts here, and how a program that nsjoin starts in it compares.

``python -m tests.containers [ENGINE...]``, as root or as an ordinary user. The exit status is 1 if anything differs,
or if no container starts here.
"""

from __future__ import annotations

import sys

from .compare import NOT_SO, Cell, compare
from .engines import ENGINES, Container
from .fields import COLUMNS
from .workshop import CannotStartError, workshop

_HEAD = ("", *list(COLUMNS)[:1], "status", "signal", *list(COLUMNS)[1:])


def main(names: list[str]) -> int:
    """Print the table for these engines, or all."""
    notes: dict[str, int] = {}
    lines = [_HEAD]
    cannot: list[str] = []
    with workshop() as shop:
        for engine in map(ENGINES.__getitem__, names or ENGINES):
            for case in engine.cases:
                title = f"{engine.name}, {case}"
                try:
                    with engine.start(shop, case) as box:
                        row = compare_or_tell(box)
                except CannotStartError as error:
                    cannot.append(f"{title}: does not start here: {error}")
                    continue
                cells = [
                    row[column].word + "".join(f" [{notes.setdefault(n, len(notes) + 1)}]" for n in row[column].notes)
                    for column in _HEAD[1:]
                ]
                lines.append((title, *cells))
    print_table(lines)
    print(*(f"[{number}] {note}" for note, number in notes.items()), *cannot, sep="\n")
    return len(lines) == 1 or any(cell.startswith(NOT_SO) for line in lines for cell in line)


def compare_or_tell(box: Container) -> dict[str, Cell]:
    """The row; where nsjoin raises an error, that in every cell."""
    try:
        return compare(box)
    except OSError as error:
        return dict.fromkeys(_HEAD[1:], Cell(NOT_SO, (f"{type(error).__name__}: {error}",)))


def print_table(lines: list[tuple[str, ...]]) -> None:
    """Print it, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


sys.exit(main(sys.argv[1:]))
