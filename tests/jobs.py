"""Jobs for the joiner in tests: a program and the way to it, from one set of keywords."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from nsjoin._engine.job import Program, Started, Way
from nsjoin._engine.launch import launch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsjoin._engine.job import Launch


class Job(NamedTuple):
    """What ``launch`` and ``pack`` take."""

    program: Program
    way: Way

    def launch(self) -> Launch:
        return launch(self.program, self.way, Started())


def job_of(files: Sequence[bytes], argv: Sequence[bytes], env: Sequence[bytes], **keywords: Any) -> Job:
    """Return the job with these fields of ``Program`` and ``Way``."""
    of_way = {name: keywords.pop(name) for name in Way._fields if name in keywords}
    return Job(Program(files, argv, env, **keywords), Way(**of_way))
