"""The keyword arguments of ``Popen``, ``spawn_in`` and ``run_in`` as types. Imported by type checkers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Union

from typing_extensions import Literal, TypedDict

from .._target.target import AsTarget

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable

    from typing_extensions import TypeAlias


StrOrBytesPath: TypeAlias = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]
Command: TypeAlias = Union[StrOrBytesPath, Sequence[StrOrBytesPath]]
File: TypeAlias = Union[int, IO[Any], None]
Env: TypeAlias = Union[Mapping[bytes, StrOrBytesPath], Mapping[str, StrOrBytesPath]]


#: What ``nsjoin.TARGET`` is.
AsTheTarget: TypeAlias = Literal[AsTarget.TARGET]


class RunKeywords(TypedDict, total=False):
    """What subprocess.Popen takes, without what decides between str and bytes, and what is taken from the target."""

    bufsize: int
    executable: StrOrBytesPath | None
    close_fds: bool
    shell: bool
    cwd: StrOrBytesPath | int | AsTheTarget | None
    root: StrOrBytesPath | int | AsTheTarget | None
    env: Env | AsTheTarget | None
    restore_signals: bool
    start_new_session: bool
    pass_fds: Collection[int]
    user: str | int | AsTheTarget | None
    group: str | int | AsTheTarget | None
    extra_groups: Iterable[str | int] | AsTheTarget | None
    umask: int
    pipesize: int
    process_group: int | None
    unshare: Iterable[str]
    like_target: bool
    preserve_credentials: bool
    cgroup: str | os.PathLike[str] | AsTheTarget | None
    capabilities: Iterable[str] | AsTheTarget | None
    no_new_privs: bool | AsTheTarget | None
    oom_score_adj: int | AsTheTarget | None
    lsm_label: str | AsTheTarget | None
    stdin: File
    stdout: File
    stderr: File


class SpawnKeywords(RunKeywords, total=False):
    """The same, and how to join."""

    namespaces: Iterable[str] | None
    netns_etc: bool
    fork: bool
