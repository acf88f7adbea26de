"""A Popen whose start does not block the loop."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

from .._engine.children import Expired
from .._kernel.nstypes import select as select_types
from .._target.accounts import numbers, whose_names
from .._target.target import TARGET, check_target
from .._verbs.run import kill
from .._verbs.spawn import Popen
from ._waiting import before, in_thread, until_readable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .._engine.job import Launch
    from .._target.target import TargetLike
    from .._verbs.keywords import Command


#: How long ``AsyncPopen.end`` waits for a killed child, in seconds: it blocks the loop's thread.
_REAP_SECONDS = 0.5


class AsyncPopen(Popen[bytes]):
    """A Popen that has been launched; ``finish`` waits until its program runs."""

    _launching: Launch
    _barrier: int
    _all_pipes: list[int]

    def _finish_start(self, starting: Launch, pipes: list[int]) -> None:
        self._barrier = next(starting)
        self._launching, self._all_pipes = starting, pipes

    async def finish(self, deadline: float | None) -> None:
        """Wait until the program runs. Raises what ``Popen`` raises, and Expired at ``deadline``."""
        try:
            while True:
                try:
                    await until_readable(self._barrier, deadline)
                except Expired as expired:
                    self._launching.throw(expired)  # ends what was started; comes back with the cause, if known
                self._barrier = next(self._launching)
        except StopIteration as stop:
            self._started(stop.value, self._all_pipes)

    def end(self) -> None:
        """Kill and reap now, without the loop, whether or not the program runs yet."""
        if self._child_created:
            kill(self, self._new_group)
            with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel: subprocess reaps it later
                self.wait(_REAP_SECONDS)
            return
        try:
            self._launching.close()
        finally:
            # subprocess.Popen does this only where its __init__ fails
            self._close_pipe_fds(*self._all_pipes)  # type: ignore[attr-defined]

    def try_wait(self) -> bool:
        """Reap the program if it has ended."""
        try:
            self.wait(0)
        except subprocess.TimeoutExpired:
            return False
        return True


async def launched(
    target: TargetLike, args: Command, deadline: float | None, keywords: dict[str, Any], pin: contextlib.ExitStack
) -> AsyncPopen:
    """Check the arguments, launch, and return the Popen. The caller must keep ``pin`` open until the program runs."""
    for name, allowed in (("bufsize", 0), ("universal_newlines", False), ("text", False)):
        if keywords.get(name):
            raise ValueError(f"{name} must be {allowed}")
    for name in ("encoding", "errors"):
        if keywords.get(name) is not None:
            raise ValueError(f"{name} must be None")
    groups = keywords.get("extra_groups")
    if groups is not None and groups is not TARGET:
        groups = keywords["extra_groups"] = list(groups)
    keywords["bufsize"] = 0
    target = await _with_numbers(target, keywords, deadline, pin)
    return AsyncPopen(args, target=target, **keywords)


async def _with_numbers(
    target: TargetLike, keywords: dict[str, Any], deadline: float | None, pin: contextlib.ExitStack
) -> Any:
    """Replace names of users and groups by the target's numbers, and return what to join; ``pin`` holds it meanwhile.

    In a thread: the target decides what its /etc/passwd is, and how long reading it takes.
    """
    checked = check_target(target)
    wanted = None if keywords["namespaces"] is None else select_types(keywords["namespaces"])
    keywords["namespaces"] = None if wanted is None else [row.name for row in wanted]
    if isinstance(checked, tuple):
        return checked  # an iterator cannot be read twice; Popen numbers the names
    joined, process = pin.enter_context(whose_names(checked, wanted, keywords))
    if process is not None:
        own = process.duplicate()  # the thread's: this task may be cancelled while it reads

        def look_up() -> Mapping[str, Any]:
            with own:
                return numbers(own, wanted, keywords)

        keywords.update(await before(deadline, in_thread(look_up)))
    return joined
