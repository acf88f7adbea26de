"""TODO."""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

from .._engine.children import Expired
from .._kernel.nstypes import MNT, USER
from .._kernel.nstypes import select as select_types
from .._target.accounts import numbers
from .._target.target import TARGET, OpenTarget, Target, check_target
from .._verbs.run import kill
from .._verbs.spawn import Popen
from ._waiting import _before, _in_thread, _until_readable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .._engine.job import Launch
    from .._target.target import TargetLike
    from .._verbs.keywords import Command


#: For how long a child that was killed may keep the loop's thread waiting, where there is no loop to wait in.
_REAP_SECONDS = 0.5


# --- the start ----------------------------------------------------------------------------------------------


class _Popen(Popen[bytes]):
    """A Popen that has been launched and need not run its program yet: ``finish`` waits for that."""

    _launching: Launch
    _barrier: int
    _all_pipes: list[int]

    def _finish_start(self, starting: Launch, pipes: list[int]) -> None:
        self._barrier = next(starting)
        self._launching, self._all_pipes = starting, pipes

    async def finish(self, deadline: float | None) -> None:
        """Wait until the program runs, or raise why it does not, or Expired."""
        try:
            while True:
                try:
                    await _until_readable(self._barrier, deadline)
                except Expired as expired:
                    self._launching.throw(expired)  # ends what was started, and may know what it waited for
                self._barrier = next(self._launching)
        except StopIteration as stop:
            self._started(stop.value, self._all_pipes)

    def end(self) -> None:
        """Kill and reap at once, without a loop, whether the program runs or not yet."""
        if self._child_created:
            kill(self, self._new_group)
            with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel; subprocess reaps it later
                self.wait(_REAP_SECONDS)
            return
        try:
            self._launching.close()
        finally:
            # subprocess.Popen does this where its __init__ fails, which is long over
            self._close_pipe_fds(*self._all_pipes)  # type: ignore[attr-defined]

    def try_wait(self) -> bool:
        """Reap the program if it has ended."""
        try:
            self.wait(0)
        except subprocess.TimeoutExpired:
            return False
        return True


async def _launch(
    target: TargetLike, args: Command, deadline: float | None, keywords: dict[str, Any], pin: contextlib.ExitStack
) -> _Popen:
    """Check the arguments and launch; ``pin`` is to be held until the program runs."""
    for name, allowed in (("bufsize", 0), ("universal_newlines", False), ("text", False)):
        if keywords.get(name):
            raise ValueError(f"{name} must be {allowed}")
    for name in ("encoding", "errors"):
        if keywords.get(name) is not None:
            raise ValueError(f"{name} must be None")
    groups = keywords.get("extra_groups")
    if groups is not None and groups is not TARGET:
        groups = keywords["extra_groups"] = list(groups)
    names = (keywords.get("user"), keywords.get("group"), *(groups if isinstance(groups, list) else ()))
    if any(isinstance(name, str) for name in names):
        target = await _look_up_names(target, keywords, deadline, pin)
    keywords["bufsize"] = 0
    return _Popen(args, target=target, **keywords)


async def _look_up_names(
    target: TargetLike, keywords: dict[str, Any], deadline: float | None, pin: contextlib.ExitStack
) -> TargetLike:
    """Replace names of users and groups by the target's numbers, as Popen does; ``pin`` holds the target meanwhile.

    In a thread: the target decides what its /etc/passwd is, and how long it takes to read it.
    """
    checked = check_target(target)
    wanted = None if keywords["namespaces"] is None else select_types(keywords["namespaces"])
    keywords["namespaces"] = None if wanted is None else [row.name for row in wanted]
    if isinstance(checked, tuple):
        return checked
    process = pin.enter_context(OpenTarget(checked)).process
    assert process is not None
    if (wanted is None or MNT in wanted) and not process.shares(MNT):
        joins_user = wanted is None or USER in wanted
        own = _copy(process)  # the thread's: we may be cancelled while it reads

        def look_up() -> Mapping[str, Any]:
            with own:
                return numbers(own, keywords, joins_user=joins_user)

        keywords.update(await _before(deadline, _in_thread(look_up)))
    return process


def _copy(process: Target) -> Target:
    pidfd = process.pidfd
    if pidfd < 0:
        return Target._owning(process.pid, -1, os.dup(process.proc()))
    return Target._owning(process.pid, os.dup(pidfd))
