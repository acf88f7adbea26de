"""Whether a start is one attempt here. Not in conftest.py, which programs under strace import: this calls setns(2)."""

from __future__ import annotations

import errno
import os

import pytest

from nsjoin._kernel import calls


def _joins_by_pidfd() -> bool:
    fd = -1
    try:
        fd = calls.pidfd_open(os.getpid())
        calls.setns(fd, 0x44000000)  # our own net and uts: for root no move, EPERM for others
    except OSError as refused:
        return refused.errno == errno.EPERM and fd >= 0
    finally:
        if fd >= 0:
            os.close(fd)
    return True


#: setns(2) with a pidfd, Linux 5.8; without it a start is an attempt that fails, and then one by descriptors.
JOINS_BY_PIDFD = _joins_by_pidfd()
requires_one_attempt = pytest.mark.skipif(
    not JOINS_BY_PIDFD, reason="counts what one attempt does; without setns(2) with a pidfd (Linux 5.8) there are two"
)
