"""Who the program runs as after a user namespace has been joined: 0 where it is mapped, else the target's own id.

Without an id that is mapped there, execve(2) drops every capability that joining has given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._launch import Ids

if TYPE_CHECKING:
    from ._process import Process


def inside(ids: Ids, process: Process | None) -> Ids:
    """``ids`` completed for the user namespace of ``process``; None: one that is known by a descriptor only."""
    uid, try_uid = (ids.uid, False) if ids.uid is not None else _default(process, "uid_map", "Uid:")
    gid, try_gid = (ids.gid, False) if ids.gid is not None else _default(process, "gid_map", "Gid:")
    return Ids(uid, gid, ids.groups, drop_groups=ids.groups is None, try_uid=try_uid, try_gid=try_gid)


def _default(process: Process | None, map_name: str, label: str) -> tuple[int | None, bool]:
    """The id, and whether it is only a guess since the map cannot be read."""
    if process is None:
        return 0, True
    try:
        lines = process.read_proc(map_name).splitlines()
        status = process.read_proc("status").splitlines()
    except OSError:  # no /proc here, or one that hides the process
        return 0, True
    own = next(int(line.split()[1]) for line in status if line.startswith(label))
    ranges = [tuple(map(int, line.split())) for line in lines]
    if any(inside == 0 and count for inside, _, count in ranges):
        return 0, False
    # the middle column of the map is as we see it, like the ids in status: user_namespaces(7)
    mapped = (inside + own - outside for inside, outside, count in ranges if outside <= own < outside + count)
    return next(mapped, None), False
