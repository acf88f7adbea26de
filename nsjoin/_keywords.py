"""The keyword arguments of ``Popen``, ``spawn_in`` and ``run_in`` as types. Imported by type checkers only."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import IO, Any, Union

from typing_extensions import TypeAlias, TypedDict

StrOrBytesPath: TypeAlias = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]
Command: TypeAlias = Union[StrOrBytesPath, Sequence[StrOrBytesPath]]
File: TypeAlias = Union[int, IO[Any], None]
Env: TypeAlias = Union[Mapping[bytes, StrOrBytesPath], Mapping[str, StrOrBytesPath]]


class RunKeywords(TypedDict, total=False):
    """What subprocess.Popen takes, without what decides between str and bytes, and without stdin, stdout, stderr."""

    bufsize: int
    executable: StrOrBytesPath | None
    close_fds: bool
    shell: bool
    cwd: StrOrBytesPath | None
    env: Env | None
    restore_signals: bool
    start_new_session: bool
    pass_fds: Collection[int]
    user: str | int | None
    group: str | int | None
    extra_groups: Iterable[str | int] | None
    umask: int
    pipesize: int
    process_group: int | None
    stdin: File
    stdout: File
    stderr: File


class SpawnKeywords(RunKeywords, total=False):
    """The same, and how to join."""

    namespaces: Iterable[str] | None
    fork: bool
