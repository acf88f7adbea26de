"""``python -m nsjoin exec``: ``spawn_in`` with the options and exit statuses of nsenter(1)."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from .._kernel import procfs
from .._kernel.nstypes import BY_NAME, USER
from .._target.namespace import namespace_of, namespaces_of
from .._target.process import Process
from .._target.target import TARGET
from .._verbs.spawn import Popen
from ..exceptions import NamespaceError
from .options import TYPES, add_arguments, parse

if TYPE_CHECKING:
    import argparse
    from typing import Any


__all__ = ["add_arguments", "parse", "run"]

# --- from options to keywords -------------------------------------------------------------------------------


def _meaning(options: dict[str, str | None], stack: ExitStack) -> tuple[Any, dict[str, Any]]:
    """Return the target and the keywords of ``Popen``. ValueError, OSError."""
    pid = _number(options, "target")
    files = {nstype: options[name] for name, nstype in TYPES.items() if options.get(name)}
    named = [nstype for name, nstype in TYPES.items() if name in options and nstype not in files]
    if pid is None:
        _check_no_target(options)
    process = None if pid is None else stack.enter_context(Process(pid))
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
    needs = [name for name in ("all", "env", "root", "wd", *TYPES) if name in options and not options[name]]
    if needs:
        value = {"all": "", "env": "", "root": " or =DIR", "wd": " or =DIR"}.get(needs[0], " or =FILE")
        raise ValueError(f"--{needs[0]} needs a process (--target PID){value}")


def _number(options: dict[str, str | None], name: str) -> int | None:
    text = options.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"--{name} takes a number, not {text!r}")
    return int(text)


def _directories(options: dict[str, str | None], stack: ExitStack) -> dict[str, Any]:
    """Return ``root`` and ``cwd``: directories that are named, opened before anything is joined, or the target's."""
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
    # with user the joiner drops the groups before the join, as the namespace may deny setgroups(2)
    return {"user": uid, "group": gid, "extra_groups": None if gid is None or joins_user else []}


def _mixed(
    process: Process, named: list[str], files: dict[str, Any], keywords: dict[str, Any], stack: ExitStack
) -> list[Any]:
    """Return the namespaces of files and of a process as one target; open here whatever else is the process's."""
    every = namespaces_of(process) if keywords["namespaces"] is None else {}
    for namespace in every.values():
        stack.enter_context(namespace)
    taken = [namespace for nstype, namespace in every.items() if nstype not in files]
    taken += [stack.enter_context(namespace_of(process, BY_NAME[nstype])) for nstype in named if nstype not in every]
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
    """Run the program and return its exit status. A signal that ends it ends this process too."""
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
            status = signals.early[0]  # as if the signal had ended the program; it may have
    return _end_by(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


#: The exit status where execve(2) fails; 126 for every other errno.
_STATUS = {errno.ENOENT: 127}


def _fail(status: int, why: BaseException) -> int:
    print(f"nsjoin exec: {why}", file=sys.stderr)
    return status


def _command(program: list[str]) -> tuple[list[str], str]:
    """Return argv and the file. The default is a login shell: its argv[0] begins with "-"."""
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
        if refused.errno == errno.ENOEXEC and "/" in file:  # a script without "#!": as execvp(3)
            return _start(target, ["sh", file, *command[1:]], "/bin/sh", keywords)
        raise _NotRun(refused.errno, f"{refused.strerror}: {file!r}") from None


#: Signals that are sent to this process but meant for the program.
_FORWARDED = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGALRM")
#: A terminal sends these to the whole foreground process group, so the program gets them anyway.
_OF_TERMINAL = (signal.SIGINT, signal.SIGQUIT)


class _Signalled(BaseException):
    """A second signal has come before the program runs."""


def _ignored_signals() -> int:
    """Return them as bits. From /proc: PyPy's signal.getsignal does not know what was ignored before it started."""
    for line in procfs.read("self/status").splitlines():
        if line.startswith("SigIgn:"):
            return int(line.split()[1], 16)
    return 0


class _Signals:
    """Forward signals to the program. The first one before it runs is kept for it; the second one aborts the start.

    Signals that are ignored stay ignored, in both processes.
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
        # if SIGCHLD were ignored, the exit status would be lost
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
        """Forward signals to ``child`` from now on, and the one that came early."""
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
    """Wait until the program ends, stopping and continuing with it: a shell's job control then sees one job."""
    while True:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            child.returncode = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            return status
        os.kill(os.getpid(), signal.SIGSTOP)
        os.kill(child.pid, signal.SIGCONT)


def _end_by(number: int) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would be this process's, not the program's
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number  # this process is the init of a PID namespace, which ignores its own signals
