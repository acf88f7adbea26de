"""nsjoin's program in a container beside the engine's own exec and the container's own program, field by field."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import nsjoin

from . import fields
from .workshop import hierarchies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .engines import Container
    from .fields import Fields

#: Where an engine's own exec gives something else than its container's program has. nsjoin then gives the latter.
EXEC_DIFFERS = {
    ("podman", "environ"): "podman exec does not give HOSTNAME, which podman run does",
    ("podman", "Groups"): "podman exec leaves the user's own group out of the supplementary ones",
    ("crun", "NoNewPrivs"): "crun exec sets it only if its own option says so",
    ("crun", "oom_score_adj"): "crun exec leaves it as the caller has it",
    ("crun", "cgroup"): "crun exec does not enter version 2's cgroup where version 1 is mounted too",
    ("lxc", "environ"): "lxc-attach --clear-env adds a PATH",
    ("lxc", "cgroup"): "lxc-attach puts what it starts into .lxc, a cgroup beside that of the container's program",
}
#: What nsjoin gives neither as the engine nor as the target does.
NOT_COPIED = {
    "limits": "resource limits stay the caller's",
    "Umask": "the file mode creation mask stays the caller's; umask= sets it",
    "Seccomp": "a filter cannot be read from another process and so not be copied",
}

SAME, AS_TARGET, NOT_SO, LACKS = "same", "target", "DIFFERS", "lacks"


class Cell(NamedTuple):
    """``same`` as the engine's exec; as the ``target``, where that differs or there is none; or what is not so."""

    word: str
    notes: tuple[str, ...] = ()


# --- the three -------------------------------------------------------------------------------------------------


def by_engine(box: Container, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """What the engine's own exec makes of it. Its exit status for a signal is that of a shell."""
    assert box.own_exec is not None
    result = subprocess.run(
        [*box.own_exec, *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=box.env, check=False
    )
    if result.returncode > 128:
        result.returncode = 128 - result.returncode
    return result


def by_nsjoin(box: Container, argv: Sequence[str], **keywords: Any) -> subprocess.CompletedProcess[str]:
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    return nsjoin.run_in(box.pid, argv, **options, **keywords)


def fields_of(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert result.returncode == 0, (result.stdout, result.stderr)
    found = fields.parse(result.stdout)
    found["cgroup"] = "\n".join(line for line in found["cgroup"].splitlines() if not is_only_inside(line))
    return found


def is_only_inside(line: str) -> bool:
    """A hierarchy without controllers that is mounted in the container, but not here: nsjoin leaves it out."""
    name = line.split(":")[1]
    return name.startswith("name=") and not any(name in controllers for _, _, controllers in hierarchies())


def fields_of_target(box: Container) -> dict[str, str]:
    """What the container's own program has, as seen from inside, where ids and paths are those of the container."""
    status = Path(f"/proc/{box.pid}/status").read_text()
    inside = int(status.partition("\nNSpid:")[2].splitlines()[0].split()[-1])
    return fields_of(by_nsjoin(box, fields.reader(inside)))


# --- the comparison --------------------------------------------------------------------------------------------


def compare(box: Container) -> dict[str, Cell]:
    """One row of the table: a cell for each column."""
    ours = fields_of(by_nsjoin(box, fields.reader(), like_target=True))
    target = fields_of_target(box)
    theirs = None if box.own_exec is None else fields_of(by_engine(box, fields.reader()))
    row = {"status": status(box), "signal": signal_arrives(box)}
    for column, names in fields.COLUMNS.items():
        row[column] = worst([compare_field(box.engine, name, ours, theirs, target) for name in names])
    return row


def compare_field(engine: str, name: str, ours: Fields, theirs: Fields | None, target: Fields) -> Cell:
    if theirs is not None and ours[name] == theirs[name]:
        return Cell(SAME)
    if ours[name] == target[name] and theirs is None:
        return Cell(AS_TARGET)
    if ours[name] == target[name] and (engine, name) in EXEC_DIFFERS:
        return Cell(AS_TARGET, (EXEC_DIFFERS[engine, name],))
    if name in NOT_COPIED:
        return Cell(LACKS, (NOT_COPIED[name],))
    others = {"the target": target} if theirs is None else {"its own exec": theirs, "the target": target}
    told = "; ".join(f"{who} {difference(other[name], ours[name])}" for who, other in others.items())
    return Cell(NOT_SO, (f"{name}: {told}",))


def difference(expected: str, has: str) -> str:
    """The lines in which two texts differ."""
    lacks = [line for line in expected.splitlines() if line not in has.splitlines()]
    more = [line for line in has.splitlines() if line not in expected.splitlines()]
    return f"has {lacks} where nsjoin has {more}" if lacks or more else "has the same"


def worst(cells: Sequence[Cell]) -> Cell:
    """The cell for all: its word is the least good one."""
    word = max((cell.word for cell in cells), key=(SAME, AS_TARGET, LACKS, NOT_SO).index)
    return Cell(word, tuple(dict.fromkeys(note for cell in cells for note in cell.notes)))


def status(box: Container) -> Cell:
    """Exit statuses arrive, and a death by signal as subprocess tells it."""
    cells = []
    for program, expected in (("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", -9)):
        argv = ["/bin/sh", "-c", program]
        told = by_nsjoin(box, argv, like_target=True).returncode
        exec_told = expected if box.own_exec is None else by_engine(box, argv).returncode
        if told == expected == exec_told:
            cells.append(Cell(AS_TARGET if box.own_exec is None else SAME))
        else:
            cells.append(Cell(NOT_SO, (f"{program}: nsjoin says {told}, the engine {exec_told}, not {expected}",)))
    return worst(cells)


def signal_arrives(box: Container) -> Cell:
    """A signal reaches the program itself. (To send one to an engine's exec ends that, and not always the program.)"""
    with nsjoin.spawn_in(box.pid, ["/bin/sleep", "86399"], like_target=True) as process:
        process.terminate()
    left = by_nsjoin(box, ["/bin/ps"]).stdout.count("sleep 86399")
    if process.returncode == -15 and left == 0:
        return Cell(AS_TARGET if box.own_exec is None else SAME)
    return Cell(NOT_SO, (f"terminate: status {process.returncode}, {left} left",))
