"""Write a program and the way to it as the joiner reads them: struct nsjoin_plan, tables, strings; no pointers."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from .._kernel.calls import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from .job import Program, Way

_HEAD_SIZE = ffi.sizeof("struct nsjoin_plan")
_POINTER_SIZE = ffi.sizeof("void *")


def _flags(program: Program, way: Way) -> int:
    ids = way.ids
    return sum(
        (
            way.fork and lib.NSJOIN_FORK,
            program.close_fds and lib.NSJOIN_CLOSE_FDS,
            program.restore_signals and lib.NSJOIN_RESTORE_SIGNALS,
            program.new_session and lib.NSJOIN_SETSID,
            program.process_group >= 0 and lib.NSJOIN_SETPGID,
            ids.uid is not None and lib.NSJOIN_SETUID,
            ids.gid is not None and lib.NSJOIN_SETGID,
            ids.groups is not None and (lib.NSJOIN_GROUPS_FIRST if ids.groups_first else lib.NSJOIN_SETGROUPS),
            ids.drop_groups and lib.NSJOIN_DROP_GROUPS,
            ids.try_uid and lib.NSJOIN_TRY_UID,
            ids.try_gid and lib.NSJOIN_TRY_GID,
            program.umask >= 0 and lib.NSJOIN_UMASK,
            way.check_cwd and lib.NSJOIN_CHECK_CWD,
        )
    )


def _put_attributes(head: Any, program: Program, way: Way) -> list[bytes]:
    """Fill in the fields and flags of ``way.attributes``; return oom_score_adj and lsm_label, which are strings."""
    attributes = way.attributes
    head.environ, head.cwd_fd = attributes.environ, attributes.cwd
    head.cgroup = way.born_in.directory if way.born_in else -1
    if attributes.environ >= 0 and b"/" not in program.files[0]:
        head.flags |= lib.NSJOIN_SEARCH
    if attributes.environ_inside:
        head.flags |= lib.NSJOIN_ENVIRON_INSIDE
    if attributes.no_new_privs:
        head.flags |= lib.NSJOIN_NO_NEW_PRIVS
    if attributes.empty_environ:
        head.flags |= lib.NSJOIN_EMPTY_ENVIRON
    if attributes.new_keyring:
        head.flags |= lib.NSJOIN_NEW_KEYRING
    if attributes.capabilities is not None:
        head.flags |= lib.NSJOIN_CAPABILITIES
        head.inheritable, head.permitted, head.effective, head.bounding, head.ambient = attributes.capabilities
    return [text for text in (attributes.oom_score_adj, attributes.lsm_label) if text is not None]


def _put_fields(head: Any, program: Program, way: Way) -> None:
    head.stdio = program.stdio
    head.root = way.root
    head.witness, head.user = way.witness or (-1, 0)
    head.unshare = way.unshare
    head.pgid = max(program.process_group, 0)
    head.umask = max(program.umask, 0)
    if way.ids.uid is not None:
        head.uids = way.ids.uid
    if way.ids.gid is not None:
        head.gids = way.ids.gid
    head.n_files, head.n_argv, head.n_envp = len(program.files), len(program.argv), len(program.env)


def _put_tables(
    head: Any, program: Program, way: Way, private: Iterable[int], needed: Iterable[int], offset: int
) -> list[array[int]]:
    """Set the offsets and lengths of the tables, which begin at ``offset``, and return them in their order."""
    moved_to = [cgroup.procs for cgroup in way.attributes.cgroups if cgroup is not way.born_in]
    tables = {
        "joins": array("i", [number for step in way.joins for number in step]),
        "keep": array("i", sorted({fd for fd in (*program.pass_fds, *needed) if fd > 2})),
        "lent": array("i", private),
        "groups": array("I", way.ids.groups or ()),
        "cgroups": array("i", moved_to),
    }
    for name, table in tables.items():
        setattr(head, name, offset)
        setattr(head, f"n_{name}", len(table))
        offset += 4 * len(table)
    head.n_joins = len(way.joins)
    head.text = offset
    return list(tables.values())


def pack(program: Program, way: Way, private: Iterable[int] = (), needed: Iterable[int] = ()) -> bytes:
    """Return the plan: struct nsjoin_plan, tables, strings. ValueError for a NUL in a string.

    ``private`` are the descriptors that come along and that no program gets, ``needed`` those of them that the joiner
    uses after it has closed the rest.
    """
    head: Any = ffi.new("struct nsjoin_plan *")
    head.flags = _flags(program, way)
    _put_fields(head, program, way)
    attributes = way.attributes
    strings = [*program.files, *program.argv, *program.env, *_put_attributes(head, program, way)]
    if program.cwd is not None:
        strings.append(program.cwd)
    text = b"".join([string + b"\0" for string in strings])
    if text.count(b"\0") != len(strings):
        raise ValueError("embedded null byte")
    head.tables = _HEAD_SIZE
    room = (len(program.files) + len(program.argv) + len(program.env) + 3) * _POINTER_SIZE
    tables = _put_tables(head, program, way, private, needed, _HEAD_SIZE + room)
    head.size = end = head.text + len(text)
    for name, string in (
        ("cwd", program.cwd),
        ("lsm_label", attributes.lsm_label),
        ("oom_score_adj", attributes.oom_score_adj),
    ):
        if string is not None:
            end -= len(string) + 1
            setattr(head, name, end)
    return b"".join((ffi.buffer(head), bytes(room), *tables, text))
