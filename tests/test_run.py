"""``run_in(kill_group=)``: what was started inside ends with it."""

from __future__ import annotations

import subprocess
import sys

import pytest

import nsjoin

GROUP = "sleep 300 & echo $$ $! >&2; wait"


def test_a_timeout_with_kill_group_ends_the_whole_group(start):
    target = start("pid", "mnt")
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        nsjoin.run_in(target.pid, ["sh", "-c", GROUP], capture_output=True, timeout=0.5, kill_group=True)
    assert caught.value.timeout == 0.5
    leader, member = map(int, caught.value.stderr.split())
    # killed, and reaped by the init of the namespace, which our sleep does not do: at most a zombie
    states = nsjoin.call_in(target.pid, lambda: {pid: state(pid) for pid in (leader, member)})
    assert set(states.values()) <= {"gone", "Z"}


def state(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def test_without_it_only_the_program_is_killed_and_nobody_waits_for_the_rest(start):
    target = start("pid", "mnt")
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        nsjoin.run_in(target.pid, ["sh", "-c", GROUP], capture_output=True, timeout=0.5)
    member = int(caught.value.stderr.split()[1])
    assert nsjoin.call_in(target.pid, lambda: state(member)) == "S"


def test_the_program_leads_its_group(start):
    target = start("pid", "mnt")
    code = "import os; print(os.getpid() == os.getpgid(0), os.getsid(0) == os.getpid())"
    keywords = {"capture_output": True, "text": True}
    assert nsjoin.run_in(target.pid, [sys.executable, "-c", code], kill_group=True, **keywords).stdout == "True False\n"
    with_session = nsjoin.run_in(
        target.pid, [sys.executable, "-c", code], kill_group=True, start_new_session=True, **keywords
    )
    assert with_session.stdout == "True True\n"
    assert nsjoin.run_in(target.pid, [sys.executable, "-c", code], **keywords).stdout == "False False\n"
