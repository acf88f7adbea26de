"""The keyword arguments of ``Popen``, ``spawn_in`` and ``run_in`` as types. Imported by type checkers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Union

from typing_extensions import Literal, Required, TypedDict

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


class PlainKeywords(TypedDict, total=False):
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


class SpawnKeywords(PlainKeywords, total=False):
    """The same, and how to join."""

    namespaces: Iterable[str] | None
    netns_etc: bool
    fork: bool


class ByText(SpawnKeywords, total=False):
    """Text by ``text=True``."""

    text: Required[Literal[True]]
    encoding: str | None
    errors: str | None
    universal_newlines: bool | None


class ByEncoding(SpawnKeywords, total=False):
    """Text by ``encoding``."""

    text: bool | None
    encoding: Required[str]
    errors: str | None
    universal_newlines: bool | None


class ByErrors(SpawnKeywords, total=False):
    """Text by ``errors``."""

    text: bool | None
    encoding: str | None
    errors: Required[str]
    universal_newlines: bool | None


class ByNewlines(SpawnKeywords, total=False):
    """Text by ``universal_newlines=True``."""

    text: bool | None
    encoding: str | None
    errors: str | None
    universal_newlines: Required[Literal[True]]


class Bytes(SpawnKeywords, total=False):
    """Bytes."""

    text: Literal[False] | None
    encoding: None
    errors: None
    universal_newlines: Literal[False] | None


class Undecided(SpawnKeywords, total=False):
    """Text or bytes."""

    text: bool | None
    encoding: str | None
    errors: str | None
    universal_newlines: bool | None


class _Run(TypedDict, total=False):
    capture_output: bool
    timeout: float | None
    check: bool
    kill_group: bool


class _TextInput(_Run, total=False):
    input: str | None


class _BytesInput(_Run, total=False):
    input: bytes | bytearray | memoryview | None


class _AnyInput(_Run, total=False):
    input: Any


class RunByText(ByText, _TextInput, total=False):
    """The same for ``run_in``."""


class RunByEncoding(ByEncoding, _TextInput, total=False):
    """The same for ``run_in``."""


class RunByErrors(ByErrors, _TextInput, total=False):
    """The same for ``run_in``."""


class RunByNewlines(ByNewlines, _TextInput, total=False):
    """The same for ``run_in``."""


class RunBytes(Bytes, _BytesInput, total=False):
    """The same for ``run_in``."""


class RunUndecided(Undecided, _AnyInput, total=False):
    """The same for ``run_in``."""
