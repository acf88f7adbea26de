"""Start and end the process that keeps a new namespace: a child that runs the joiner and waits on a pipe."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

from .._kernel import procfs, thread
from .._kernel.calls import ffi, lib
from .._kernel.nstypes import PID
from .._kernel.thread import own_pid_namespace_is_left
from . import children, image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._kernel.nstypes import NsType
    from .._setns import CData


class Wanted(NamedTuple):
    """One namespace to make. ``maps``: ranges of uids and of gids; ``offsets``: the text for timens_offsets."""

    row: NsType
    maps: tuple[Sequence[tuple[int, ...]], Sequence[tuple[int, ...]]]
    offsets: bytes
    propagation: int
    keep: bool


class HoldFailed(Exception):  # noqa: N818 - a report, not an error that callers see
    """The holder failed ``at`` a step (enum nsjoin_hold_step) with ``errno``."""

    def __init__(self, errno: int, at: int) -> None:
        super().__init__(errno, at)
        self.errno = errno
        self.at = at


class Holder:
    """The process that is born in the new namespace, tied to a pipe: it ends when the other end is closed.

    C writes its pid into one struct, so that no exception loses it.
    """

    __slots__ = ("_hold", "_owner", "pid")

    def __init__(self, wanted: Wanted, owner: int) -> None:
        """``owner``: a descriptor of the user namespace that is to own it, -1: the caller's."""
        hold = (wanted.row.flag, wanted.propagation, owner, wanted.keep, -1, -1, 0, 0, procfs.is_away())
        self._hold: CData = ffi.gc(ffi.new("struct nsjoin_hold *", hold), lib.nsjoin_untie)
        self._owner = os.getpid()
        self.pid = 0  # still to be read when it is reaped, and the number may be another's

    def start(self, wanted: Wanted) -> None:
        """Start the process. HoldFailed, OSError."""
        children.reap_late()
        with thread.home() if own_pid_namespace_is_left() else nullcontext():
            self._start(wanted)
        self.pid = self._hold.pid

    def _start(self, wanted: Wanted) -> None:
        offsets = wanted.offsets
        if offsets:
            procfs.must_be_home("timens_offsets", "a file of its owner's /proc would be written to", "time")
        with image.opened() as executable:
            number = -lib.nsjoin_hold(self._hold, executable.fd, offsets or ffi.NULL, len(offsets))
            if not number:
                return
            at = self._hold.step
            if at != lib.NSJOIN_HOLD_EXEC or not executable.should_retry(number):
                raise HoldFailed(number, at)
        self._kill()
        self._start(wanted)

    def close(self) -> None:
        """End the process, unless it must stay or is another process's child."""
        if not self._hold.stays:
            self.end()

    def end(self) -> None:
        """Untie the process, kill and reap it."""
        lib.nsjoin_untie(self._hold)
        self._kill()

    def _kill(self) -> None:
        if self._owner == os.getpid():
            children.end(self._hold.pid, is_init=bool(self._hold.nstypes & PID.flag))
            self._hold.pid = 0
