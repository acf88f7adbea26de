"""What all tests rely on."""

from __future__ import annotations

import subprocess

from conftest import Running


def test_a_target_that_has_ended_is_not_killed_again():
    """Its pid may be somebody else's by then."""
    running = Running(("uts",))
    running.end()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        running.pid = other.pid
        running.end()
    assert other.returncode == 0  # it has read to the end
