"""Who the program runs as: the target's own ids where the caller asks for them; else, once a user namespace has been
joined, 0 where that is mapped there, or the target's own.

Without an id that is mapped there, execve(2) drops every capability that joining has given.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .._kernel import calls
from .._target.id_maps import _Map

if TYPE_CHECKING:
    from .._engine.job import Ids
    from .._target.process import Process


def resolve(ids: Ids, process: Process | None, *, joins_user: bool) -> Ids:
    """``ids`` as the joiner sets them. ``joins_user``: in the user namespace of ``process``, or None for one that is
    known by a descriptor only. JoinError for an id of the target that is not mapped there."""
    if ids.theirs is not None and process is not None:
        ids = _taken(ids, process, joins_user)
    return _completed(ids, process) if joins_user and not ids.keep else ids


def _taken(ids: Ids, process: Process, joins_user: bool) -> Ids:
    uids, gids, groups = ids.theirs or (None, None, None)
    if uids is not None and uids != os.getresuid():
        ids = ids._replace(uid=_Map.of(process, "uid_map").all_inside(uids, "setresuid") if joins_user else uids)
    if gids is not None and gids != os.getresgid():
        ids = ids._replace(gid=_Map.of(process, "gid_map").all_inside(gids, "setresgid") if joins_user else gids)
    if groups is None or sorted(groups) == sorted(os.getgroups()):
        return ids
    if calls.may_set_groups():  # before the joins: the target's user namespace may deny setgroups(2)
        return ids._replace(groups=groups, groups_first=True)
    return ids._replace(groups=_Map.of(process, "gid_map").all_inside(groups, "setgroups") if joins_user else groups)


def _completed(ids: Ids, process: Process | None) -> Ids:
    """What nobody has asked for, in another user namespace. Ids of the target that are ours too stay as they are."""
    theirs = ids.theirs or (None, None, None)
    if ids.uid is None and theirs[0] is None:
        uid, is_guess = _default(process, "uid_map", "Uid:")
        ids = ids._replace(uid=uid, try_uid=is_guess)
    if ids.gid is None and theirs[1] is None:
        gid, is_guess = _default(process, "gid_map", "Gid:")
        ids = ids._replace(gid=gid, try_gid=is_guess)
    return ids._replace(drop_groups=ids.groups is None and theirs[2] is None)


def _default(process: Process | None, map_name: str, label: str) -> tuple[tuple[int, int, int] | None, bool]:
    """The id, thrice, and whether it is only a guess since the map cannot be read."""
    if process is None:
        return (0, 0, 0), True
    try:
        ids = _Map.of(process, map_name)
        status = process.read_proc("status").splitlines()
    except OSError:  # no /proc here, or one that hides the process
        return (0, 0, 0), True
    own = next(int(line.split()[1]) for line in status if line.startswith(label))
    id_ = 0 if ids.has_root() else ids.inside(own)
    return None if id_ is None else (id_, id_, id_), False
