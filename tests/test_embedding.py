"""Programs that nsjoin may be part of, each with a habit that a library has to live with."""

from __future__ import annotations

import importlib.util
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


def test_caller_that_ignores_sigchld_gets_a_lost_status_error(target):
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


def test_caller_that_reaps_everything_in_a_thread_gets_the_status_or_an_error(target):
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
def test_caller_with_closed_standard_descriptors(target, closed):
    prelude = f"saved = os.dup(1)\nfor fd in ({closed},): os.close(fd)"
    assert_right(run_program(prelude, target.pid, channel="saved"))


def test_caller_that_is_pid_1_of_a_namespace(start):
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


def test_caller_that_is_a_subreaper(target):
    prelude = "import ctypes\nassert ctypes.CDLL(None).prctl(36, 1) == 0  # PR_SET_CHILD_SUBREAPER"
    assert_right(run_program(prelude, target.pid))


def test_caller_with_10_000_descriptors(target):
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


def test_caller_whose_children_are_born_in_another_time_namespace(target):
    if not IS_ROOT:
        pytest.skip("unshare(CLONE_NEWTIME) needs CAP_SYS_ADMIN")
    prelude = """
    from nsjoin._kernel import calls
    calls.unshare(0x80)
    assert os.readlink("/proc/self/ns/time") != os.readlink("/proc/self/ns/time_for_children")
    """
    assert_right(run_program(prelude, target.pid))


def test_caller_that_closes_all_descriptors_it_does_not_know(target):
    prelude = """
    run_in(pid, ["true"])
    os.closerange(3, 1000)
    strangers = [os.open("/dev/null", os.O_RDONLY) for number in range(20)]
    """
    assert_right(run_program(prelude, target.pid))


def test_caller_that_has_forked_since_the_import(target):
    prelude = """
    run_in(pid, ["true"])
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert_right(run_program(prelude, target.pid))


# --- tracers, which put a function of their own in the place of subprocess.Popen.__init__ -----------------------------


def secret_of_the_caller(prelude: str, pid: int, keywords: str) -> list[str]:
    """Whether a program inside sees it: from run_in, and from aio.run_in."""
    epilogue = f"""
    import asyncio
    from nsjoin import TARGET, aio
    wanted = {{"capture_output": True, **{keywords}}}
    found = [run_in(pid, ["/usr/bin/env"], **wanted), asyncio.run(aio.run_in(pid, ["/usr/bin/env"], **wanted))]
    outcome["secret"] = ["seen" if b"SECRET=" in one.stdout else "unseen" for one in found]
    """
    own = "os.environ['SECRET'] = 'of the caller'\n"
    outcome = run_program(own + textwrap.dedent(prelude), pid, epilogue=epilogue)
    assert_right(outcome)
    found: list[str] = outcome["secret"]
    return found


SENTRY = """
import sentry_sdk
sentry_sdk.init(dsn=None, traces_sample_rate=1.0)
sentry_sdk.start_transaction(name="a request").__enter__()
"""
#: ddtrace's, which is large to install, on the same point: it changes the caller's own dict, too.
LIKE_DDTRACE = """
import subprocess
real = subprocess.Popen.__init__
def init(self, *args, env=None, **keywords):
    if env is None:
        env = dict(os.environ)
    env.update(SECRET="of the tracer")
    real(self, *args, env=env, **keywords)
subprocess.Popen.__init__ = init
"""
TRACERS = {"sentry": SENTRY, "one like ddtrace": LIKE_DDTRACE}


@pytest.fixture(params=TRACERS)
def tracer(request) -> str:
    # found, not imported: it would import eventlet into this process, which warns of each fork from then on
    if request.param == "sentry" and importlib.util.find_spec("sentry_sdk") is None:
        pytest.skip("sentry-sdk is not installed")
    return TRACERS[request.param]


@pytest.mark.parametrize("keywords", ["dict(like_target=True)", "dict(env=TARGET)", "dict(env={'A': 'b'})"])
def test_no_tracer_gives_the_environment_of_the_caller_to_the_target(target, tracer, keywords):
    assert secret_of_the_caller(tracer, target.pid, keywords) == ["unseen", "unseen"]


def test_where_what_the_caller_asks_for_is_not_kept_a_tracer_gives_it(target, tracer):
    forget = "import nsjoin._verbs.spawn\nnsjoin._verbs.spawn.asked = lambda args, keywords: {}\n"
    assert secret_of_the_caller(tracer + forget, target.pid, "dict(like_target=True)") == ["seen", "seen"]
