"""Drives ``stage.py`` and attaches strace to it: which system calls a join makes, and what it does if one fails.

The table of what is injected is generated: one run of an operation shows its calls, and for each of them ``ERRORS``
says what the kernel may answer.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

from stage import BEGIN, END, INTO_USER

HERE = Path(__file__).resolve().parent
_NO_DESCRIPTORS = ("EMFILE", "ENFILE")
_FILTERED = ("ENOSYS", "EPERM")
_GONE = ("ENOENT", "EACCES")
#: What the kernel, or a seccomp filter, may answer to each call.
ERRORS = {
    "access": _GONE,
    "capget": ("EPERM",),
    "capset": ("EPERM", "EINVAL"),
    "getxattr": ("ENODATA", "EOPNOTSUPP"),
    "chdir": _GONE,
    "chroot": ("EPERM", "ENOENT"),
    "clock_nanosleep": ("EINTR",),
    "clone": ("EAGAIN", "ENOMEM", "EPERM"),
    "clone3": ("EAGAIN", "ENOMEM", "ENOSYS"),
    "close_range": (*_FILTERED, "EMFILE"),
    "dup": _NO_DESCRIPTORS,
    "dup2": ("EBADF", "EBUSY"),
    "dup3": ("EBADF", "EBUSY"),
    "execve": ("ENOENT", "EACCES", "ENOMEM", "ENOEXEC", "E2BIG", "ETXTBSY"),
    "execveat": ("EACCES", "ENOENT", "ENOMEM", "ENOSYS", "EPERM"),
    "fchdir": ("EACCES", "ENOENT"),
    "fcntl": ("EMFILE", "EBADF", "EINVAL"),
    "fork": ("EAGAIN", "ENOMEM"),
    "getdents64": ("ENOENT", "EIO"),
    "ioctl": ("ENOTTY", "EINVAL", "EPERM", "ENOMEM", "ESRCH", "EMFILE", "EOPNOTSUPP"),
    "keyctl": ("ENOSYS", "EPERM", "EDQUOT", "ENOMEM"),
    "lseek": ("ESPIPE",),
    "memfd_create": (*_FILTERED, *_NO_DESCRIPTORS, "ENOMEM"),
    "newfstatat": _GONE,
    "openat": (*_GONE, *_NO_DESCRIPTORS, "ENOMEM"),
    "openat2": (*_FILTERED, "ENOENT", "EAGAIN"),
    "pidfd_open": (*_FILTERED, "EMFILE", "ESRCH", "EINVAL"),
    "pidfd_send_signal": (*_FILTERED, "ESRCH"),
    "pipe2": _NO_DESCRIPTORS,
    "poll": ("EINTR", "ENOMEM"),
    "prctl": ("EINVAL", "EPERM"),
    "prlimit64": ("EPERM",),
    "pread64": ("EIO", "EINTR"),
    "pwrite64": ("ENOSPC", "ENOMEM", "EINTR"),
    "read": ("EINTR", "EIO"),
    "readlink": _GONE,
    "recvfrom": ("ENOMEM", "EINTR"),
    "recvmsg": ("ENOMEM", "EINTR"),
    "rt_sigaction": ("EINVAL",),
    "select": ("EINTR", "ENOMEM"),
    "pselect6": ("EINTR", "ENOMEM"),
    "sendmsg": ("ENOBUFS", "ETOOMANYREFS", "EINTR"),
    "setgroups": ("EPERM", "EINVAL", "ENOMEM"),
    "setns": ("EPERM", "EINVAL", "ENOMEM", "EUSERS", "ESRCH", "EBADF", "ENOSYS"),
    "setpgid": ("EPERM", "EACCES"),
    "setresgid": ("EPERM", "EINVAL", "EAGAIN"),
    "setresuid": ("EPERM", "EINVAL", "EAGAIN"),
    "setsid": ("EPERM",),
    "socket": (*_NO_DESCRIPTORS, "EPERM"),
    "socketpair": (*_NO_DESCRIPTORS, "ENOBUFS"),
    "statx": _GONE,
    "unshare": ("EPERM", "ENOMEM", "ENOSPC"),
    "vfork": ("EAGAIN", "ENOMEM"),
    "wait4": ("EINTR",),
    "waitid": ("EINTR",),
    "write": ("EINTR", "ENOSPC", "EIO"),
}
#: Not injected. Either they cannot fail when they are called as they are here, or the kernel has done its work also
#: when it says otherwise (close(2)), which strace cannot imitate: it makes the call not happen.
NEVER = frozenset(
    """
    arch_prctl brk clock_gettime close epoll_create1 epoll_ctl epoll_wait exit exit_group faccessat faccessat2
    fstat futex getcwd getegid geteuid getgid getgroups getpid getppid getrandom getresgid getresuid getsockname
    getsockopt gettid getuid kill madvise mmap mprotect mremap munmap restart_syscall rseq rt_sigpending
    rt_sigprocmask rt_sigreturn rt_sigtimedwait sched_getaffinity sched_yield set_robust_list set_tid_address
    setsockopt sysinfo
    umask uname
    """.split()  # noqa: SIM905 - it would be fifty lines
)


class Fault(NamedTuple):
    """``what`` (an error, or a signal) at the ``when``-th ``call`` of the caller, or of each process."""

    operation: str
    call: str
    when: int
    what: str
    everywhere: bool

    def option(self) -> str:
        kind = "signal" if self.what.startswith("SIG") else "error"
        return f"inject={self.call}:{kind}={self.what}:when={self.when}"

    def __str__(self) -> str:
        where = "any process" if self.everywhere else "caller"
        return f"{self.operation}: {self.call} #{self.when} of {where}: {self.what}"


class Stage:
    """The running ``stage.py`` with its target. A context manager."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Stage:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(TemporaryDirectory(prefix="nsjoin-faults-"))
            self.folder = Path(folder)
            self.targets = {into: stack.enter_context(running_target(into_user=into)) for into in (False, True)}
            program = build_program(self.folder)
            command = [sys.executable, "-Wignore", str(HERE / "stage.py"), str(program)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(self._end)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_unused: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        self._process.communicate(timeout=30)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def perform(
        self,
        operation: str,
        *options: str,
        limits: dict[str, int] | None = None,
        target: int | None = None,
        refused: Sequence[str] = (),
        forbidden: bool = False,
        meanwhile: Callable[[int], object] = lambda _pid: None,
    ) -> dict[str, Any]:
        """Run the operation under strace with these options; without any, without strace.

        ``refused`` and ``forbidden`` as for ``kernels.refuse``; ``meanwhile`` gets the pid of who performs it.
        """
        assert self._process.stdin is not None
        request = {
            "operation": operation,
            "limits": limits or {},
            "target": target or self.targets[operation in INTO_USER],
            "refused": list(refused),
            "forbidden": forbidden,
        }
        print(json.dumps(request), file=self._process.stdin, flush=True)
        pid = self._answer()["pid"]
        with traced(pid, options) if options else contextlib.nullcontext():
            os.kill(pid, signal.SIGUSR1)
            meanwhile(pid)
            return {"pid": pid, **self._answer()}

    # --- what there is to inject

    def calls(self, operation: str) -> tuple[list[str], list[list[str]]]:
        """The calls of the caller in what is measured, and of each other process until it is the program.

        Those of the caller before and after that count too, as they count for strace: they end in "!".
        """
        log = self.folder / "log"
        answer = self.perform(operation, "-f", "-o", str(log))
        assert answer["clear"], answer
        assert answer["error"] is None, answer
        return parse(log.read_text(), str(answer["pid"]))

    def faults(self, operation: str) -> list[Fault]:
        """One for each call and errno."""
        caller, others = self.calls(operation)
        faults = []
        for call, when in sorted(positions(caller)):
            faults += [Fault(operation, call, when, error, False) for error in errors_of(call)]
        for call, when in sorted(set().union(*map(positions, others))):
            faults += [Fault(operation, call, when, error, True) for error in errors_of(call)]
        return faults

    def kills(self, operation: str) -> list[Fault]:
        """The same with SIGKILL, at every call."""
        caller, others = self.calls(operation)
        faults = [Fault(operation, call, when, "SIGKILL", False) for call, when in sorted(positions(caller))]
        places = set().union(*map(positions, others))
        return faults + [Fault(operation, call, when, "SIGKILL", True) for call, when in sorted(places)]

    def inject(self, fault: Fault) -> dict[str, Any]:
        follow = ["-f"] if fault.everywhere else []
        options = ["-e", f"trace={fault.call}", "-e", fault.option()]
        return self.perform(fault.operation, *follow, *options, "-o", os.devnull)

    def end_target(self, fault: Fault) -> dict[str, Any]:
        """Who makes the call is stopped after it (SIGSTOP) until the target has lost its namespaces to a SIGKILL.

        Once in a thousand times the stopped process stays in the tracer's hands (strace 6.1, which waits, while the
        process stands in PTRACE_EVENT_EXIT): the kernel has killed it with its PID namespace just as strace let it go
        on. Then once more: what hangs for another reason hangs again.
        """
        answer = self._end_target_once(fault)
        return self._end_target_once(fault) if answer["hung"] else answer

    def _end_target_once(self, fault: Fault) -> dict[str, Any]:
        log = self.folder / "stops"
        if not log.exists():
            os.mkfifo(log)
        follow = ["-f"] if fault.everywhere else []
        options = [*follow, "-e", f"trace={fault.call}", "-e", fault.option(), "-o", str(log)]
        reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)  # before strace, which waits for somebody to read
        os.set_blocking(reader, True)
        with target_for(fault.operation) as target, open(reader) as lines:

            def kill(pid: int) -> None:
                for line in lines:
                    if "--- stopped by SIGSTOP" in line:
                        end(target)
                        with contextlib.suppress(ProcessLookupError):  # it was killed with its PID namespace
                            os.kill(int(line.split()[0]) if fault.everywhere else pid, signal.SIGCONT)

            return self.perform(fault.operation, *options, target=target, meanwhile=kill)

    def stops(self, operation: str) -> list[Fault]:
        """One for each call, for ``end_target``."""
        return [fault._replace(what="SIGSTOP") for fault in self.kills(operation) if fault.call != "exit_group"]


def end(target: int) -> None:
    """Not until it has been reaped: where it is the init of a PID namespace, it waits for all who are in it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(target, signal.SIGKILL)
    while has_namespaces(target):
        os.sched_yield()


def has_namespaces(pid: int) -> bool:
    try:
        os.stat(f"/proc/{pid}/ns/net")
    except OSError:
        return False
    return True


def errors_of(call: str) -> Sequence[str]:
    if call in NEVER:
        return ()
    if call not in ERRORS:
        raise LookupError(f"what may {call} answer? it is in neither ERRORS nor NEVER")
    return ERRORS[call]


def positions(calls: Sequence[str]) -> set[tuple[str, int]]:
    """Each call with its number among those of the same name, which is how strace counts."""
    seen: Counter[str] = Counter()
    found = set()
    for call in calls:
        name, only_counts, _ = call.partition("!")
        seen[name] += 1
        if not only_counts:
            found.add((name, seen[name]))
    return found


_LINE = re.compile(r"(?:(\d+) +)?(\w+)\((.*)")


def parse(log: str, caller: str) -> tuple[list[str], list[list[str]]]:
    """Calls by process; with "!" behind them those that only count: before and after what is measured."""
    by_process: dict[str, list[str]] = {caller: []}
    measuring = False
    running: set[str] = set()
    for line in log.splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        pid, call, rest = found[1] or caller, found[2], found[3]
        if pid in running:
            continue
        if call == "execve" and not rest.startswith('""') and ("= 0" in rest or "unfinished" in rest):
            running.add(pid)  # the program: what it does is not ours
        if pid == caller:
            measuring = (measuring or BEGIN in rest) and END not in rest
        if BEGIN in rest or (call == "newfstatat" and '""' in rest):
            call += "!"  # fstat(2), which cannot fail
        by_process.setdefault(pid, []).append(call if measuring or pid != caller else f"{call}!")
    return by_process.pop(caller), list(by_process.values())


# --- processes ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def traced(pid: int, options: Sequence[str]) -> Iterator[None]:
    """strace is attached to the process, and ends with it."""
    command = ["strace", "-qq", *options, "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        while tracer_of(pid) == 0:
            if strace.poll() is not None:
                assert strace.stderr is not None
                raise RuntimeError(f"strace: {strace.stderr.read()}")
        yield


def tracer_of(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("TracerPid:"))


@contextlib.contextmanager
def running_target(*, into_user: bool = False) -> Iterator[int]:
    """The pid of a process in new namespaces of every type but time, and user only if that is asked for."""
    options = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--mount-proc", "--fork", "--kill-child"]
    user = ["--map-root-user"] if into_user else []
    command = ["unshare", *options, *user, "sh", "-c", "echo ready; exec cat >/dev/null"]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", "no target"
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as children:
            pid = int(children.read())
        try:
            yield pid
        finally:
            process.kill()  # the end of its stdin is not enough: a descriptor that was left may hold it open


def target_for(operation: str) -> contextlib.AbstractContextManager[int]:
    """A new one that the operation can join."""
    return running_target(into_user=operation in INTO_USER)


#: Reads its stdin until that ends. Linked statically: no dynamic linker, whose calls would be taken for ours.
_PROGRAM = "#include <unistd.h>\nint main(void) { char c; while (read(0, &c, 1) > 0) ; return 0; }\n"


def build_program(folder: Path) -> Path:
    source, program = folder / "program.c", folder / "program"
    source.write_text(_PROGRAM)
    subprocess.run([os.environ.get("CC", "cc"), "-Os", "-static", "-o", program, source], check=True)
    folder.chmod(0o755)
    return program


def has_strace() -> bool:
    return shutil.which("strace") is not None


# --- the verdict --------------------------------------------------------------------------------------------


def verdict(fault: Fault, answer: dict[str, Any]) -> str | None:
    """What is wrong with how it went, None if nothing is."""
    if answer["hung"]:
        return "hung"
    if answer["left"]:
        return f"left behind: {answer['left']}"
    if answer["changed"] and not is_told(answer) and not is_subprocess_leak(fault, answer):
        return f"changed: {answer['details']} ({answer['error']})"
    if not answer["clear"]:
        return f"not a clear error: {answer['error']}\n{answer['traceback']}"
    if answer["status"] and fault.what != "SIGKILL":
        return f"the caller ended with {answer['status']}"
    return None


def is_told(answer: dict[str, Any]) -> bool:
    """The one change that is allowed: no way back, and RestoreError says so."""
    return {*answer["changed"]} <= {"namespaces", "root", "cwd"} and (answer["error"] or "").startswith("RestoreError")


def is_subprocess_leak(fault: Fault, answer: dict[str, Any]) -> bool:
    """Before Python 3.11, subprocess leaves its first pipes open where it gets no more."""
    return sys.version_info < (3, 11) and fault.call == "pipe2" and answer["changed"] == ["descriptors"]


class Tally:
    """Counts what was injected and how it went."""

    def __init__(self) -> None:
        self.by_operation: dict[str, Counter[str]] = {}
        self.wrong = 0
        self.messages: Counter[str] = Counter()

    def add(self, fault: Fault, answer: dict[str, Any]) -> str | None:
        """What is wrong with how it went, None if nothing is."""
        problem = verdict(fault, answer)
        counts = self.by_operation.setdefault(fault.operation, Counter())
        counts["injected"] += 1
        kind = (
            "wrong" if problem else "caller killed" if answer["status"] else "error" if answer["error"] else "success"
        )
        counts[kind] += 1
        if answer["error"]:
            self.messages[f"{fault.call} {fault.what}: {answer['error']}"] += 1
        self.wrong += problem is not None
        return problem

    def table(self) -> str:
        kinds = ("injected", "success", "error", "caller killed", "wrong")
        rows = [("", *kinds)]
        rows += [(name, *(str(counts[kind]) for kind in kinds)) for name, counts in self.by_operation.items()]
        total: Counter[str] = Counter()
        for counts in self.by_operation.values():
            total.update(counts)
        rows.append(("all", *(str(total[kind]) for kind in kinds)))
        return "\n".join(f"{row[0]:30}" + "".join(f"{cell:>15}" for cell in row[1:]) for row in rows)
