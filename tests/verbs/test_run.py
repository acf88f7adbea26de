"""``run_in(kill_group=)``: what was started inside ends with it."""

from __future__ import annotations

import os
import sys

from child import expired

import nsjoin

GROUP = "sleep 300 & echo $$ $! >&2; wait"


def test_a_timeout_with_kill_group_ends_the_whole_group(start):
    target = start("pid", "mnt")
    keywords = {"capture_output": True, "kill_group": True}
    error = expired(
        lambda timeout: nsjoin.run_in(target.pid, ["sh", "-c", GROUP], timeout=timeout, **keywords),
        lambda error: error.stderr,
    )
    leader, member = map(int, error.stderr.split())

    def wait_until_both_are_killed():
        # the init of the namespace reaps what is not our child, but our sleep does not do so: at most a zombie
        while not {state(leader), state(member)} <= {"gone", "Z"}:
            os.sched_yield()

    nsjoin.call_in(target.pid, wait_until_both_are_killed, timeout=30, trust_target=True)


def state(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def test_without_a_process_group_only_the_program_is_killed(start):
    target = start("pid", "mnt")
    error = expired(
        lambda timeout: nsjoin.run_in(target.pid, ["sh", "-c", GROUP], capture_output=True, timeout=timeout),
        lambda error: error.stderr,
    )
    member = int(error.stderr.split()[1])
    assert nsjoin.call_in(target.pid, lambda: state(member), trust_target=True) not in {"gone", "Z"}


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
