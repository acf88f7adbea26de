"""``python -m nsjoin exec``: ``spawn_in`` with the options and the exit statuses of nsenter(1)."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from .._kernel import procfs
from .._kernel.nstypes import USER
from .._target.target import TARGET, Target
from .._verbs.spawn import Popen
from ..exceptions import NamespaceError
from .options import _TYPES

if TYPE_CHECKING:
    import argparse
    from typing import Any


# --- what it means ------------------------------------------------------------------------------------------


def _meaning(options: dict[str, str | None], stack: ExitStack) -> tuple[Any, dict[str, Any]]:
    """The target and the keywords of Popen. ValueError, OSError."""
    pid = _number(options, "target")
    files = {nstype: options[name] for name, nstype in _TYPES.items() if options.get(name)}
    named = [nstype for name, nstype in _TYPES.items() if name in options and nstype not in files]
    if pid is None:
        _check_no_target(options)
    process = None if pid is None else stack.enter_context(Target.from_pid(pid))
    joins_user = "user" in options or ("all" in options and process is not None and not process.shares(USER))
    keywords: dict[str, Any] = {
        "fork": "no-fork" not in options,
        "preserve_credentials": "preserve-credentials" in options,
        "close_fds": False,
        "env": TARGET if "env" in options else None,
        "namespaces": None if "all" in options else [*named, *files],
        **_directories(options, stack),
        **_ids(options, joins_user=joins_user),
    }
    if process is None:
        return list(files.values()) or os.getpid(), keywords
    return (_mixed(process, named, files, keywords, stack) if files else process), keywords


def _check_no_target(options: dict[str, str | None]) -> None:
    needs = [name for name in ("all", "env", "root", "wd", *_TYPES) if name in options and not options[name]]
    if needs:
        raise ValueError(
            f"--{needs[0]} needs a process (--target PID){'' if needs[0] in ('all', 'env') else ' or =FILE'}"
        )


def _number(options: dict[str, str | None], name: str) -> int | None:
    text = options.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"--{name} takes a number, not {text!r}")
    return int(text)


def _directories(options: dict[str, str | None], stack: ExitStack) -> dict[str, Any]:
    """A directory that is named is opened before anything is joined; otherwise it is the target's."""
    found: dict[str, Any] = {}
    for name, keyword in (("root", "root"), ("wd", "cwd")):
        path = options.get(name)
        if path:
            found[keyword] = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, found[keyword])
        elif name in options:
            found[keyword] = TARGET
    if "wdns" in options:
        found["cwd"] = options["wdns"]
    return found


def _ids(options: dict[str, str | None], *, joins_user: bool) -> dict[str, Any]:
    uid, gid = _number(options, "setuid"), _number(options, "setgid")
    # groups that are dropped for a user namespace are dropped before it, which may deny that
    return {"user": uid, "group": gid, "extra_groups": None if gid is None or joins_user else []}


def _mixed(
    process: Target, named: list[str], files: dict[str, Any], keywords: dict[str, Any], stack: ExitStack
) -> list[Any]:
    """The namespaces of a process and of files, as one target: what is the process's is opened here."""
    every = process.namespaces() if keywords["namespaces"] is None else {}
    for namespace in every.values():
        stack.enter_context(namespace)
    taken = [namespace for nstype, namespace in every.items() if nstype not in files]
    taken += [stack.enter_context(process.namespace(nstype)) for nstype in named if nstype not in every]
    joins_mnt = any(namespace.nstype == "mnt" for namespace in taken)
    if keywords.get("root") is TARGET or (joins_mnt and "root" not in keywords):
        keywords["root"] = process.open_root()
        stack.callback(os.close, keywords["root"])
    if keywords.get("cwd") is TARGET:
        keywords["cwd"] = os.open("cwd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=process.proc())
        stack.callback(os.close, keywords["cwd"])
    if keywords["env"] is TARGET:
        entries = (entry.partition("=") for entry in process.read_proc("environ").split("\0"))
        keywords["env"] = {name: value for name, equals, value in entries if name and equals}
    return [*files.values(), *taken]


# --- running ------------------------------------------------------------------------------------------------


def run(given: argparse.Namespace) -> int:
    """Run the program and return its exit status; the signal that has ended it ends this process too."""
    command, executable = _command(given.program)
    with _Signals() as signals:
        try:
            with ExitStack() as stack:
                target, keywords = _meaning(given.options, stack)
                child = _start(target, command, executable, keywords)
            signals.runs(child)
            status = _wait(child)
        except (OSError, ValueError, OverflowError, _Signalled) as refused:
            if not signals.early:
                return _fail(_STATUS.get(refused.errno or 0, 126) if isinstance(refused, _NotRun) else 1, refused)
            status = signals.early[0]  # as if it had ended the program, which it may have done
    return _end_by(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


#: Where the program is not run; every other errno is 126.
_STATUS = {errno.ENOENT: 127}


def _fail(status: int, why: BaseException) -> int:
    print(f"nsjoin exec: {why}", file=sys.stderr)
    return status


def _command(program: list[str]) -> tuple[list[str], str]:
    """argv and the file. Without a program it is a login shell: its name begins with "-"."""
    if program:
        return program, program[0]
    shell = os.environ.get("SHELL") or "/bin/sh"
    return [f"-{os.path.basename(shell)}"], shell


class _NotRun(OSError):  # noqa: N818 - not for callers
    """execve(2) has failed."""


def _start(target: Any, command: list[str], file: str, keywords: dict[str, Any]) -> Popen[Any]:
    try:
        process: Popen[Any] = Popen(command, executable=file, target=target, **keywords)
        return process
    except NamespaceError:
        raise
    except OSError as refused:
        if refused.filename != file:
            raise
        if refused.errno == errno.ENOEXEC and "/" in file:  # a script without "#!", as execvp(3) has it
            return _start(target, ["sh", file, *command[1:]], "/bin/sh", keywords)
        raise _NotRun(refused.errno, f"{refused.strerror}: {file!r}") from None


#: What people send to the process that they have started and mean for the program.
_FORWARDED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM")
#: A terminal sends these to the whole foreground process group, so that the program has them already.
_OF_TERMINAL = (signal.SIGINT, signal.SIGQUIT)


class _Signalled(BaseException):
    """A second signal before the program runs: its start hangs."""


def _ignored_signals() -> int:
    """As bits, from the kernel: PyPy's signal.getsignal does not know what was ignored before it started."""
    for line in procfs.read("self/status").splitlines():
        if line.startswith("SigIgn:"):
            return int(line.split()[1], 16)
    return 0


class _Signals:
    """Passes signals on to the program. The first that comes before it runs is kept for it, the second ends the start.

    Ignored ones stay ignored, here and there.
    """

    def __init__(self) -> None:
        self.early: list[int] = []
        self.child: Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        ignored = _ignored_signals()
        for number in (signal.Signals[name] for name in _FORWARDED):
            if not ignored >> number - 1 & 1:
                self._before[number] = signal.signal(number, self._take)
        # ignored, it would take the exit status away
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, _frame: object) -> None:
        if self.child is not None:
            self._forward(self.child, number)
        elif self.early:
            raise _Signalled
        else:
            self.early.append(number)

    def runs(self, child: Popen[bytes]) -> None:
        """``child`` is the program."""
        self.child = child
        while self.early:
            self._forward(child, self.early.pop())

    def _forward(self, child: Popen[bytes], number: int) -> None:
        if child.returncode is None and not (number in _OF_TERMINAL and _is_in_foreground()):
            os.kill(child.pid, number)


def _is_in_foreground() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:  # no controlling terminal
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)


def _wait(child: Popen[bytes]) -> int:
    """Wait for the program's end, and stop and go on with it, so that a shell's job control sees one job."""
    while True:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            child.returncode = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            return status
        os.kill(os.getpid(), signal.SIGSTOP)
        os.kill(child.pid, signal.SIGCONT)


def _end_by(number: int) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # whose core would it be
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number  # a PID namespace's init survives its own signals
