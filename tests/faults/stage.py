"""Joins on request, each time in a fork of its own that a tracer can be attached to, and tells how it went.

Reads requests and writes answers as lines of JSON, for ``harness.py``. Everything that a join must not change or leave
behind is compared in the fork itself; orphans come to this process, which is a subreaper.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import kernels
from changed import drop_capability, prctl
from conftest import _state

import nsjoin
from nsjoin._engine import guard
from nsjoin._engine import image as image_
from nsjoin._kernel import calls
from nsjoin._kernel.nstypes import BY_NAME
from nsjoin._kernel.thread import own_inodes

if TYPE_CHECKING:
    from collections.abc import Callable

PR_SET_CHILD_SUBREAPER = 36
CAP_SYS_PTRACE = 19
TYPES = ("mnt", "uts", "ipc", "net", "pid", "cgroup")
#: what the program may end with: a SIGKILL for any process may be for it
ENDS = (0, -signal.SIGKILL)
#: a path that nobody has: strace shows it, and so where what is to be measured begins and ends
BEGIN, END = "/nsjoin-begins", "/nsjoin-ends"


class Job:
    """What the operations need: the target, a program that reads its stdin until it ends, and what was started."""

    def __init__(self, target: int, program: str) -> None:
        self.target = target
        self.program = program
        self.paths = [f"/proc/{target}/ns/{name}" for name in TYPES if name != "mnt"]
        self.given: list[nsjoin.Namespace] = []
        self.started: nsjoin.Popen[Any] | None = None

    def inodes(self, pid: int | str, *names: str) -> list[int]:
        return [os.stat(f"/proc/{pid}/ns/{name}").st_ino for name in names]

    def check(self, pid: int | str, *names: str) -> None:
        assert self.inodes(pid, *names) == self.inodes(self.target, *names), "success, and not inside"

    def start(self, *names: str, target: Any = None, **popen: Any) -> None:
        """Outside of what is measured, the started program is looked at and ended."""
        wanted = names or None
        self.started = nsjoin.spawn_in(target or self.target, [self.program], namespaces=wanted, stdin=-1, **popen)
        self.names = names or TYPES

    def finish(self) -> None:
        if self.started is None:
            return
        try:
            self.check(self.started.pid, *self.names)
        finally:
            self.started.communicate(timeout=20)
        assert self.started.returncode in ENDS, f"the program ended with {self.started.returncode}"


def spawn(job: Job) -> None:
    job.start()


def spawn_without_pid(job: Job) -> None:
    job.start("net", "uts")


def spawn_by_descriptors(job: Job) -> None:
    job.start("net", "uts", "pid", target=job.paths)


def spawn_with_everything(job: Job) -> None:
    passed = os.open("/", os.O_RDONLY)
    try:
        job.start(
            stdout=-1,
            stderr=-2,
            cwd="/",
            user="root",
            group=0,
            extra_groups=[0],
            umask=0o77,
            env={"PATH": os.path.dirname(job.program)},
            pass_fds=[passed],
            start_new_session=True,
        )
    finally:
        os.close(passed)


def spawn_like_the_target(job: Job) -> None:
    job.start(like_target=True)


def spawn_into_user(job: Job) -> None:
    job.start("user", "net", "pid", "mnt")


def run(job: Job) -> None:
    done = nsjoin.run_in(job.target, [job.program], input=b"text", capture_output=True, timeout=20)
    assert done.returncode in ENDS, f"the program ended with {done.returncode}"


def enter_net(job: Job) -> None:
    with nsjoin.enter(job.target, "net"):
        inside = os.stat("/proc/thread-self/ns/net").st_ino
    assert [inside] == job.inodes(job.target, "net"), "success, and not inside"


def enter_several(job: Job) -> None:
    with nsjoin.enter(job.target, "net", "uts", "ipc", "cgroup", "pid", "mnt", allow_imports=True):
        inside = os.stat("/proc").st_dev  # the target has mounted its own
    assert inside == os.stat(f"/proc/{job.target}/root/proc").st_dev, "success, and not inside"


def enter_by_descriptors(job: Job) -> None:
    with nsjoin.enter(job.paths, "net", "uts"):
        inside = [os.stat(f"/proc/thread-self/ns/{name}").st_ino for name in ("net", "uts")]
    assert inside == job.inodes(job.target, "net", "uts"), "success, and not inside"


def own(*names: str) -> list[int]:
    return [os.stat(f"/proc/self/ns/{name}").st_ino for name in names]


def call(job: Job) -> None:
    assert nsjoin.call_in(job.target, own, "net", namespaces=["net"]) == job.inodes(job.target, "net")


def call_with_pid(job: Job) -> None:
    assert nsjoin.call_in(job.target, own, *TYPES, trust_target=True) == job.inodes(job.target, *TYPES), (
        "success, and not inside"
    )


def call_with_one_in_the_middle(job: Job) -> None:
    assert nsjoin.call_in(job.given, own, "net", "pid", trust_target=True) == [
        namespace.id.ino for namespace in job.given
    ]


def call_into_user(job: Job) -> None:
    assert nsjoin.call_in(job.target, own, "user", "pid") == job.inodes(job.target, "user", "pid"), "not inside"


def call_for_a_socket(job: Job) -> None:
    with nsjoin.call_in(job.target, socket.socket, namespaces=["net"]) as made:
        made.getsockname()


OPERATIONS: dict[str, Callable[[Job], None]] = {
    function.__name__: function
    for function in (
        spawn,
        spawn_without_pid,
        spawn_by_descriptors,
        spawn_with_everything,
        spawn_like_the_target,
        spawn_into_user,
        run,
        enter_net,
        enter_several,
        enter_by_descriptors,
        call,
        call_with_pid,
        call_with_one_in_the_middle,
        call_into_user,
        call_for_a_socket,
    )
}
#: whose target has a user namespace as well
INTO_USER = frozenset({"spawn_into_user", "call_into_user"})


def prepare() -> None:
    """What is kept for the lifetime of a process, or a thread."""
    image, is_for_one_launch = image_._image.open()
    if is_for_one_launch:
        os.close(image)
    guard.prepare()
    for name in ("ascii", "latin-1", "utf-8"):
        codecs.lookup(name)  # Python imports them by need, and what an import does when it fails is Python's
    own_inodes((BY_NAME["uts"],))


def in_fork(name: str, job: Job, result: int, request: dict[str, Any]) -> None:
    """The operation between two looks at this process; its outcome as JSON into ``result``."""
    if name == "call_with_one_in_the_middle":
        job.given = [nsjoin.Namespace.from_pid(job.target, nstype) for nstype in ("net", "pid")]
        drop_capability(CAP_SYS_PTRACE)
    kernels.refuse(request["refused"], forbidden=request["forbidden"])
    for limit, value in request["limits"].items():
        resource.setrlimit(getattr(resource, limit), (value, value))
    prepare()
    if name.startswith("enter_several"):
        calls.unshare(0x200)  # CLONE_FS, as enter does, so that its second time changes nothing
    before = look()
    os.write(result, b"\n")
    signal.sigwait([signal.SIGUSR1])
    outcome = measured(OPERATIONS[name], job)
    after = look()
    if after != before:
        after = look()  # the fault may have hit the look
    outcome["changed"] = [what for what in before if after[what] != before[what]]
    outcome["details"] = {what: [str(before[what]), str(after[what])] for what in outcome["changed"]}
    answer = json.dumps(outcome).encode()
    try:
        os.write(result, answer)
    except OSError:  # that was the fault
        os.write(result, answer)


def look() -> dict[str, Any]:
    """Everything that must stay as it is; but the joiner's image is kept or not, as the kernel executes it or not."""
    state: dict[str, Any] = _state()
    state["descriptors"] = {fd: link for fd, link in state["descriptors"].items() if "memfd:nsjoin" not in link}
    return state


def measured(operation: Callable[[Job], None], job: Job) -> dict[str, Any]:
    try:
        os.access(BEGIN, os.F_OK)
        operation(job)
        os.access(END, os.F_OK)
        job.finish()
    except BaseException as error:
        is_clear = isinstance(error, (OSError, nsjoin.CallError, KeyError)) and bool(
            str(error)
        )  # KeyError: no such user
        return {
            "error": f"{type(error).__name__}: {error}",
            "errno": getattr(error, "errno", None),
            "clear": is_clear,
            "traceback": "" if is_clear else traceback.format_exc(),
        }
    return {"error": None, "clear": True}


def serve(program: str) -> None:
    """For each request, as ``harness.Stage.perform`` writes them: the pid, and when it has ended, how that was."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    for line in sys.stdin:
        request = json.loads(line)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            try:
                in_fork(request["operation"], Job(request["target"], program), writer, request)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(writer)
        os.read(reader, 1)  # all is prepared: what a tracer sees from here on is the same each time
        print(json.dumps({"pid": pid}), flush=True)
        answer = outcome_of(pid, reader, 20)
        os.close(reader)
        print(json.dumps(answer), flush=True)


def outcome_of(pid: int, reader: int, seconds: float) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    hung = not select.select([reader], [], [], seconds)[0]
    text = b"" if hung else os.read(reader, 1 << 16)
    if hung:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    answer: dict[str, Any] = json.loads(text) if text else {"error": None, "clear": True, "changed": []}
    return {**answer, "hung": hung, "status": status, "left": remaining(deadline)}


def remaining(deadline: float) -> list[str]:
    """The orphans that have not ended by then; they are killed."""
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.001)  # a child, and none that has ended
    left = []
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        for child in children.read().split():
            with open(f"/proc/{child}/status") as status:
                left.append(f"{child} {status.readline().split()[1]}")
            os.kill(int(child), signal.SIGKILL)
            os.waitpid(int(child), 0)
    return left


if __name__ == "__main__":
    serve(sys.argv[1])
