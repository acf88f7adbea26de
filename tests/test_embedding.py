"""Programs that nsjoin may be part of, each with a habit that a library has to live with."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
from conftest import IS_ROOT

BODY = """
import json, os, sys
from nsjoin import run_in
pid = int(sys.argv[1])
{prelude}
outcome = {{}}
try:
    for number in range(3):
        result = run_in(pid, ["sh", "-c", "echo $$; echo err >&2; exit 7"], capture_output=True, text=True)
        outcome = {{"status": result.returncode, "out": result.stdout, "err": result.stderr}}
except OSError as failure:
    outcome = {{"failure": str(failure)}}
outcome["descriptors"] = len(os.listdir("/proc/self/fd"))
outcome["children"] = open("/proc/thread-self/children").read()
{epilogue}
os.write({channel}, json.dumps(outcome).encode())
"""


def run_program(prelude, pid, *, epilogue="", wrapper=(), channel=1):
    script = BODY.format(prelude=textwrap.dedent(prelude), epilogue=textwrap.dedent(epilogue), channel=channel)
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", script, str(pid)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def assert_right(outcome):
    assert outcome["status"] == 7
    assert int(outcome["out"]) < 100
    assert outcome["err"] == "err\n"
    assert outcome["children"] == ""


def test_a_plain_program(target):
    assert_right(run_program("", target.pid))


def test_one_that_ignores_sigchld_is_told_that_the_status_is_lost(target):
    # who is reaped by the kernel is a child for a moment after waitpid has said ECHILD
    look_again = """
        import time
        for _ in range(500):
            outcome["children"] = open("/proc/thread-self/children").read()
            if not outcome["children"]:
                break
            time.sleep(0.01)
        """
    prelude = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    outcome = run_program(prelude, target.pid, epilogue=look_again)
    assert "its exit status is lost: this process ignores SIGCHLD" in outcome["failure"]
    assert outcome["children"] == ""


def test_one_that_reaps_everything_in_a_thread_gets_the_status_or_is_told(target):
    outcome = run_program(
        """
        import threading
        def reap():
            while True:
                try:
                    os.waitpid(-1, 0)
                except ChildProcessError:
                    pass
        threading.Thread(target=reap, daemon=True).start()
        """,
        target.pid,
    )
    if "failure" in outcome:
        assert "waitpid(-1)" in outcome["failure"]
        assert outcome["children"] == ""
    else:
        assert_right(outcome)


@pytest.mark.parametrize("closed", ["0", "1", "2", "0, 1, 2", "0, 2"])
def test_one_with_closed_standard_descriptors(target, closed):
    prelude = f"saved = os.dup(1)\nfor fd in ({closed},): os.close(fd)"
    assert_right(run_program(prelude, target.pid, channel="saved"))


def test_one_that_is_pid_1_of_a_namespace(start):
    # the target has to be below: a PID namespace cannot be joined from beside it
    wrapper = ["unshare", "--fork", "--pid", "--mount-proc"] + ([] if IS_ROOT else ["--map-root-user"])
    prelude = """
    import subprocess
    assert os.getpid() == 1
    below = subprocess.Popen(["unshare", "--fork", "--pid", "--net", "sh", "-c", "echo; exec sleep infinity"],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    below.stdout.readline()
    pid = int(open(f"/proc/{below.pid}/task/{below.pid}/children").read())
    """
    epilogue = """
    os.kill(pid, 9)
    below.communicate()
    outcome["children"] = open("/proc/thread-self/children").read()
    """
    assert_right(run_program(prelude, 0, epilogue=epilogue, wrapper=wrapper))


def test_one_that_is_a_subreaper(target):
    prelude = "import ctypes\nassert ctypes.CDLL(None).prctl(36, 1) == 0  # PR_SET_CHILD_SUBREAPER"
    assert_right(run_program(prelude, target.pid))


def test_one_with_10_000_descriptors(target):
    prelude = """
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (12000, 12000))
    null = os.open("/dev/null", os.O_RDONLY)
    for number in range(10000):
        os.set_inheritable(os.dup(null), True)
    """
    outcome = run_program(prelude, target.pid)
    assert_right(outcome)
    assert outcome["descriptors"] >= 10000


def test_one_whose_children_are_born_in_another_time_namespace(target):
    if not IS_ROOT:
        pytest.skip("unshare(CLONE_NEWTIME) needs CAP_SYS_ADMIN")
    prelude = """
    from nsjoin import _shim
    _shim.unshare(0x80)
    assert os.readlink("/proc/self/ns/time") != os.readlink("/proc/self/ns/time_for_children")
    """
    assert_right(run_program(prelude, target.pid))


def test_one_that_closes_all_descriptors_that_it_does_not_know(target):
    prelude = """
    run_in(pid, ["true"])
    os.closerange(3, 1000)
    strangers = [os.open("/dev/null", os.O_RDONLY) for number in range(20)]
    """
    assert_right(run_program(prelude, target.pid))


def test_one_that_has_forked_since(target):
    prelude = """
    run_in(pid, ["true"])
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert_right(run_program(prelude, target.pid))
