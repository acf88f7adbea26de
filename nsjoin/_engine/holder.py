"""TODO."""

from __future__ import annotations

import errno
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
    from .._target.namespace import Namespace


class _Wanted(NamedTuple):
    """One namespace to make. ``maps``: ranges of uids and of gids; ``offsets``: the text for timens_offsets."""

    row: NsType
    maps: tuple[Sequence[tuple[int, ...]], Sequence[tuple[int, ...]]]
    offsets: bytes
    propagation: int
    keep: bool


# --- the process that holds it ------------------------------------------------------------------------------


class HoldFailed(Exception):  # noqa: N818 - a report, not an error that callers see
    """The holder failed ``at`` a step (enum nsjoin_hold_step) with ``errno``."""

    def __init__(self, errno: int, at: int) -> None:
        super().__init__(errno, at)
        self.errno = errno
        self.at = at


class _Holder:
    """The process that is born in the new namespace, tied to a pipe: it ends when nobody holds the other end.

    What C knows of it stays in one place, so that no exception loses its pid.
    """

    __slots__ = ("_hold", "_owner", "_user", "pid")

    def __init__(self, wanted: _Wanted, user: Namespace | None) -> None:
        owner = user.fileno() if user else -1
        hold = (wanted.row.flag, wanted.propagation, owner, wanted.keep, -1, -1, 0, 0, procfs.is_away())
        self._hold: CData = ffi.gc(ffi.new("struct nsjoin_hold *", hold), lib.nsjoin_untie)
        self._user = user
        self._owner = os.getpid()
        self.pid = 0  # still to be read when it is reaped, and the number may be another's

    def start(self, wanted: _Wanted) -> None:
        """Start it: what is raised says what the kernel refused."""
        children._reap_late()
        with thread.home() if own_pid_namespace_is_left() else nullcontext():
            self._start(wanted)
        self.pid = self._hold.pid

    def _start(self, wanted: _Wanted) -> None:
        offsets = wanted.offsets
        if offsets:
            procfs.must_be_home("timens_offsets", "a file of its owner's /proc would be written to", "time")
        program, is_ours = image._image.open()
        try:
            number = -lib.nsjoin_hold(self._hold, program, offsets or ffi.NULL, len(offsets))
        finally:
            if is_ours:
                os.close(program)
        if not number:
            return
        at = self._hold.step
        # as in _launch.launch: no memfd may be executed here; or a fork elsewhere has the file still open for writing
        if at == lib.NSJOIN_HOLD_EXEC and number == (errno.ETXTBSY if is_ours else errno.EACCES):
            if not is_ours:
                image._image.memfd_does_not_run()
            self._kill()
            self._start(wanted)
            return
        raise HoldFailed(number, at)

    def close(self) -> None:
        """End the process, unless it is to stay or another process's."""
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
