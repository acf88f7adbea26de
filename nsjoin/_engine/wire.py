"""A job as the joiner reads it: one flat buffer: struct nsjoin_plan, tables, strings; offsets for pointers."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from .._kernel.calls import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from .job import Job


_HEAD_SIZE = ffi.sizeof("struct nsjoin_plan")
_POINTER_SIZE = ffi.sizeof("void *")


def _flags(job: Job) -> int:
    ids = job.ids
    return sum(
        (
            job.fork and lib.NSJOIN_FORK,
            job.close_fds and lib.NSJOIN_CLOSE_FDS,
            job.restore_signals and lib.NSJOIN_RESTORE_SIGNALS,
            job.new_session and lib.NSJOIN_SETSID,
            job.process_group >= 0 and lib.NSJOIN_SETPGID,
            ids.uid is not None and lib.NSJOIN_SETUID,
            ids.gid is not None and lib.NSJOIN_SETGID,
            ids.groups is not None and (lib.NSJOIN_GROUPS_FIRST if ids.groups_first else lib.NSJOIN_SETGROUPS),
            ids.drop_groups and lib.NSJOIN_DROP_GROUPS,
            ids.try_uid and lib.NSJOIN_TRY_UID,
            ids.try_gid and lib.NSJOIN_TRY_GID,
            job.umask >= 0 and lib.NSJOIN_UMASK,
            job.check_cwd and lib.NSJOIN_CHECK_CWD,
        )
    )


def _put_attributes(head: Any, job: Job) -> list[bytes]:
    """The fields and flags of ``job.attributes``; returns oom_score_adj and lsm_label, which are strings."""
    attributes = job.attributes
    head.environ, head.cwd_fd = attributes.environ, attributes.cwd
    head.cgroup = job.born_in.directory if job.born_in else -1
    if attributes.environ >= 0 and b"/" not in job.files[0]:
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


def pack(job: Job, private: Iterable[int] = (), needed: Iterable[int] = ()) -> bytes:
    """``job`` as the joiner reads it: struct nsjoin_plan, tables, strings. ValueError for a NUL in a string.

    ``private`` are the descriptors that come along and that no program gets, ``needed`` those of them that the joiner
    uses after it has closed the rest.
    """
    head: Any = ffi.new("struct nsjoin_plan *")
    head.flags = _flags(job)
    attributes = job.attributes
    extra = _put_attributes(head, job)
    strings = [*job.files, *job.argv, *job.env, *extra]
    if job.cwd is not None:
        strings.append(job.cwd)
    text = b"\0".join(strings) + b"\0"
    if text.count(b"\0") != len(strings):
        raise ValueError("embedded null byte")

    joins = array("i", [number for step in job.joins for number in step])
    keep = array("i", sorted({fd for fd in (*job.pass_fds, *needed) if fd > 2}))
    lent = array("i", private)
    groups = array("I", job.ids.groups or ())
    cgroups = array("i", [cgroup.procs for cgroup in attributes.cgroups if cgroup is not job.born_in])

    head.stdio = job.stdio
    head.root = job.root
    head.witness, head.user = job.witness or (-1, 0)
    head.unshare = job.unshare
    head.pgid = max(job.process_group, 0)
    head.umask = max(job.umask, 0)
    if job.ids.uid is not None:
        head.uids = job.ids.uid
    if job.ids.gid is not None:
        head.gids = job.ids.gid
    head.n_joins, head.n_keep, head.n_lent, head.n_groups = len(job.joins), len(keep), len(lent), len(groups)
    head.n_cgroups = len(cgroups)
    head.n_files, head.n_argv, head.n_envp = len(job.files), len(job.argv), len(job.env)

    head.tables = _HEAD_SIZE
    room = (len(job.files) + len(job.argv) + len(job.env) + 3) * _POINTER_SIZE
    offset = _HEAD_SIZE + room
    head.joins, offset = offset, offset + 4 * len(joins)
    head.keep, offset = offset, offset + 4 * len(keep)
    head.lent, offset = offset, offset + 4 * len(lent)
    head.groups, offset = offset, offset + 4 * len(groups)
    head.cgroups, offset = offset, offset + 4 * len(cgroups)
    head.text = offset
    head.size = offset + len(text)
    end = head.size
    if job.cwd is not None:
        head.cwd = end = end - len(job.cwd) - 1
    if attributes.lsm_label is not None:
        head.lsm_label = end = end - len(attributes.lsm_label) - 1
    if attributes.oom_score_adj is not None:
        head.oom_score_adj = end - len(attributes.oom_score_adj) - 1
    return b"".join((ffi.buffer(head), bytes(room), joins, keep, lent, groups, cgroups, text))
