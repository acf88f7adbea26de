"""Who the program runs as: the target's own ids where the caller asks for them; else, once a user namespace has been
joined, 0 where that is mapped there, or the target's own.

Without an id that is mapped there, execve(2) drops every capability that joining has given.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from .._engine.job import Ids
from .._kernel import calls
from .._target.id_maps import IdRanges
from .._target.likeness import Theirs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .._target.process import Process

_NOT_THEIRS = Theirs(None, None, None)


class WantedIds(NamedTuple):
    """The ids that the caller asks for; None: not asked. ``keep``: a user namespace that is joined changes none."""

    uid: tuple[int, int, int] | None = None
    gid: tuple[int, int, int] | None = None
    groups: Sequence[int] | None = None
    keep: bool = False


NOTHING_WANTED = WantedIds()


def resolve(wanted: WantedIds, theirs: Theirs | None, process: Process | None, *, joins_user: bool) -> Ids:
    """Return the ids that the joiner sets: those asked for, those of the target, or root of its user namespace.

    ``joins_user``: the user namespace of ``process`` is joined, or (None) one that is known by a descriptor only.
    JoinError for an id of the target that is not mapped there.
    """
    ids = Ids(wanted.uid, wanted.gid, wanted.groups)
    theirs = theirs or _NOT_THEIRS
    if process is not None:
        ids = _taken(ids, theirs, process, joins_user)
    return _completed(ids, theirs, process) if joins_user and not wanted.keep else ids


def _taken(ids: Ids, theirs: Theirs, process: Process, joins_user: bool) -> Ids:
    uids, gids, groups = theirs

    def inside(ids: Any, map_name: str, step: str) -> Any:
        return IdRanges.of(process, map_name).all_inside(ids, step) if joins_user else ids

    if uids is not None and uids != os.getresuid():
        ids = ids._replace(uid=inside(uids, "uid_map", "setresuid"))
    if gids is not None and gids != os.getresgid():
        ids = ids._replace(gid=inside(gids, "gid_map", "setresgid"))
    if groups is None or sorted(groups) == sorted(os.getgroups()):
        return ids
    if calls.may_set_groups():  # before the joins: the target's user namespace may deny setgroups(2)
        return ids._replace(groups=groups, groups_first=True)
    return ids._replace(groups=inside(groups, "gid_map", "setgroups"))


def _completed(ids: Ids, theirs: Theirs, process: Process | None) -> Ids:
    """Fill in what was not asked for, in another user namespace. Ids that the target and the caller share stay."""
    if ids.uid is None and theirs.uids is None:
        uid, is_guess = _default(process, "uid_map", "Uid:")
        ids = ids._replace(uid=uid, try_uid=is_guess)
    if ids.gid is None and theirs.gids is None:
        gid, is_guess = _default(process, "gid_map", "Gid:")
        ids = ids._replace(gid=gid, try_gid=is_guess)
    return ids._replace(drop_groups=ids.groups is None and theirs.groups is None)


def _default(process: Process | None, map_name: str, label: str) -> tuple[tuple[int, int, int] | None, bool]:
    """Return (real, effective, saved) and whether they are a guess because the map is unreadable."""
    if process is None:
        return (0, 0, 0), True
    try:
        ids = IdRanges.of(process, map_name)
        status = process.read_proc("status").splitlines()
    except OSError:  # no /proc here, or one that hides the process
        return (0, 0, 0), True
    own = next(int(line.split()[1]) for line in status if line.startswith(label))
    id_ = 0 if ids.outside(0) is not None else ids.inside(own)
    return None if id_ is None else (id_, id_, id_), False
