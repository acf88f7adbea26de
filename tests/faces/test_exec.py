"""``python -m nsjoin exec`` beside ``nsenter``: the same command lines, the same output and exit status."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from changed import become_nobody
from child import held_program
from conftest import requires_program, requires_root

import nsjoin
from nsjoin import __main__
from nsjoin._cli import exec as exec_
from nsjoin._cli import options as options_

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

EXEC = [sys.executable, "-m", "nsjoin", "exec"]
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"  # all of which an ordinary user may search
NAMESPACES = "for ns in mnt uts ipc net pid user cgroup time; do readlink /proc/self/ns/$ns; done"
ALL_IDS = "id -u; id -g; id -G; cat /proc/self/uid_map"


class Row(NamedTuple):
    """A command line, with targets and files in braces; the script is the last word of ``sh -c`` behind it."""

    words: str
    script: str | None = None
    status: int = 0
    env: dict[str, str] | None = None
    #: a line that stdout has, so that both are not wrong in the same way
    says: str | None = None


ROWS = {
    # each type alone
    "mnt": Row("-t {pid} -m", "ls /mnt; readlink /proc/self || echo no /proc", says="inside"),
    "uts": Row("-t {pid} -u", NAMESPACES),
    "ipc": Row("-t {pid} -i", NAMESPACES),
    "net": Row("-t {pid} -n", "ls /sys/class/net; cat /proc/self/net/dev | wc -l"),
    "pid": Row("-t {pid} -p", NAMESPACES),
    "cgroup": Row("-t {pid} -C", "cat /proc/self/cgroup"),
    "user": Row("-t {user} -U", ALL_IDS, says="0"),
    "time": Row("-t {time} -T", NAMESPACES),
    # several
    "pid and mnt": Row("-t {pid} -p -m", "ls /proc | grep -c ^1$; cat /proc/1/comm"),
    "letters in one word": Row("-aF -t {pid}", "readlink /proc/self/ns/pid_for_children || echo no /proc"),
    "letters that are a file": Row("-mu -t {pid} true", status=1),
    "the target's number in the same word": Row("-t{pid} -u -n", NAMESPACES),
    "long names": Row("--target {pid} --mount --uts --ipc --net --pid --cgroup", NAMESPACES),
    "a long name with =": Row("--target={pid} --net", NAMESPACES),
    "a long name cut short": Row("--targ {pid} --net --ut", NAMESPACES),
    "all": Row("-t {pid} -a", NAMESPACES),
    "all of a process with a user namespace": Row("-a -t {user}", f"{NAMESPACES}; {ALL_IDS}"),
    "--all and a type": Row("--all --net -t {pid}", NAMESPACES),
    "no types": Row("-t {pid}", NAMESPACES),
    "no target and no types": Row("", NAMESPACES),
    "-- before the program": Row("-t {pid} -u --", "echo $#"),
    "options of the program are its own": Row("-t {pid} -u echo -- -n -t --help", says="-- -n -t --help"),
    "time and all": Row("-t {time} -a", NAMESPACES),
    # files
    "a file as a long option": Row("--net={netns}", NAMESPACES),
    "a file in the same word": Row("-n{netns}", NAMESPACES),
    "= in the same word is part of the file": Row("-n={netns} true", status=1),
    "a file and a process": Row("-t {pid} --net={netns} -u", NAMESPACES),
    "a file and everything of a process": Row("-t {pid} -a --net={netns}", NAMESPACES),
    "a file of /proc": Row("--uts=/proc/{pid}/ns/uts", NAMESPACES),
    "a file of another type": Row("--net=/proc/{pid}/ns/uts true", status=1),
    "a file that is none": Row("--net=/etc/passwd true", status=1),
    "a file that is not there": Row("--net=/nowhere true", status=1),
    # directories
    "the target's working directory": Row("-t {pid} -m -w pwd", says="/tmp"),
    "the target's working directory, though it has been deleted": Row(
        "-t {deleted} -m -p -w", "readlink /proc/self/cwd", says="/mnt/gone (deleted)"
    ),
    "a directory for working in": Row("-t {pid} -u -w{tmp} pwd", says="{tmp}"),
    "a directory for working in, by its long name": Row("--wd={tmp} pwd", says="{tmp}"),
    "a directory in there": Row("-t {pid} -m -W /etc pwd", says="/etc"),
    "no working directory": Row("-t {pid} -m pwd", says="/"),
    "no working directory nor mount namespace": Row("-t {pid} -u", "pwd"),
    "the target's root": Row("-t {pid} -r ls /mnt", says="inside"),
    "the target's root and mount namespace": Row("-t {pid} -m -r ls /mnt", says="inside"),
    "the root of a chrooted target": Row("-t {chrooted} -r ls -d /only-here", says="/only-here"),
    "a directory as the root": Row("-t {pid} -m -r/ -w/ ls -di / /mnt"),
    "a directory as the root that is not there": Row("-r/nowhere true", status=1),
    "a directory for working in that is not there": Row("-w/nowhere true", status=1),
    # ids
    "a uid": Row("-t {pid} -u -S 1234", "id -u; id -g"),
    "a gid": Row("-t {pid} -u -G 1234", "id -u; id -g; id -G"),
    "uid and gid": Row("-t {pid} -a -S 1 -G 2", "id -u; id -g; id -G"),
    "uid and gid in a user namespace": Row("-t {user} -U -S 0 -G 0", ALL_IDS),
    "uid and gid and all": Row("-t {user} -a -S 0 -G 0", ALL_IDS),
    "an id that is not mapped": Row("-t {user} -U -S 7 true", status=1),
    "credentials preserved": Row("-t {user} -U --preserve-credentials", ALL_IDS),
    "credentials preserved where nothing is mapped": Row("-t {unmapped} -U --preserve-credentials", "id -u; id -g"),
    "credentials preserved, without a user namespace": Row("-t {pid} -u --preserve-credentials", "id -u"),
    "not a number as a uid": Row("-S root true", status=1),
    # no fork
    "no fork": Row("-t {pid} -p -F", "readlink /proc/self/ns/pid_for_children"),
    "no fork where there is nothing to fork for": Row("-t {pid} -u --no-fork", NAMESPACES),
    # exit statuses
    "the program's exit status": Row("-t {pid} -a", "exit 7", status=7),
    "the largest exit status": Row("-t {pid} -a", "exit 255", status=255),
    "without a fork": Row("-t {pid} -n", "exit 3", status=3),
    "a program that a signal ends": Row("-t {pid} -n", "kill -TERM $$", status=-signal.SIGTERM),
    "a program that is killed": Row("-t {pid} -p", "kill -KILL $$", status=-signal.SIGKILL),
    "a program that a signal with a core ends": Row(
        "-t {pid} -p", "ulimit -c 0; kill -SEGV $$", status=-signal.SIGSEGV
    ),
    "no such program": Row("-t {pid} -a no-such-program", status=127),
    "no such program, by path": Row("-t {pid} -n /no/such/program", status=127),
    "a program that is not executable": Row("-t {pid} -n /etc/passwd", status=126),
    "a program that is a directory": Row("-t {pid} -n /etc", status=126),
    "a script without #!": Row("-t {pid} -n {tmp}/script one", says="script one"),
    # errors of its own
    "no such process": Row("-t 4194305 -n true", status=1),
    "a pid that is none": Row("-t abc -n true", status=1),
    "an unknown letter": Row("-t {pid} -x true", status=1),
    "an unknown name": Row("-t {pid} --nothing true", status=1),
    "a name for two": Row("-t {pid} --u true", status=1),
    "a missing number": Row("-t", status=1),
    "an argument too much": Row("-t {pid} --all=yes true", status=1),
    "a type without target": Row("-n true", status=1),
    "all without target": Row("-a true", status=1),
    "the target's directory without target": Row("-w true", status=1),
    "the target's root without target": Row("-r true", status=1),
    # the shell
    "no arguments": Row("", status=5, env={"SHELL": "{tmp}/shell"}, says="-shell"),
    "no program": Row("-t {pid} -n", status=5, env={"SHELL": "{tmp}/shell"}, says="-shell"),
    "no shell": Row("-t {pid} -n", status=127, env={"SHELL": "/no/shell"}),
}

#: By an ordinary user, in a target that he has made.
OF_AN_ORDINARY_USER = {
    "credentials preserved": Row("-t {own} -U --preserve-credentials", "id -u; id -g; cat /proc/self/uid_map"),
    "with a network": Row("-t {own} -U -n --preserve-credentials", f"{NAMESPACES}; ls /sys/class/net"),
    "every type that is his": Row("-t {own} -U -n -p -m --preserve-credentials", "id -u; echo $$ | wc -w"),
    "a type without its user namespace": Row("-t {own} -n true", status=1),
    "root's namespaces": Row("-t {pid} -n true", status=1),
    "a uid": Row("-S 0 true", status=1),
    "the exit status": Row("-t {own} -U -p --preserve-credentials", "exit 9", status=9),
    "no such program": Row("-t {own} -U --preserve-credentials no-such-program", status=127),
}


class Excused(NamedTuple):
    """Where the two differ: what exec does, and why. ``status`` and ``says`` are exec's, ``nsenter_status`` is not."""

    row: Row
    nsenter_status: int
    why: str
    as_ordinary_user: bool = False


EXCUSED = {
    "its own user namespace": Excused(
        Row("-t {pid} -U echo run", says="run"),
        1,
        "where one is already, there is nothing to join: nsenter asks the kernel, which says EINVAL",
    ),
    "an ordinary user becomes root of his user namespace": Excused(
        Row("-t {own} -U id -u", says="0"),
        1,
        "supplementary groups cannot be dropped where setgroups(2) is denied: nsenter gives up, spawn_in keeps them",
        as_ordinary_user=True,
    ),
    "an ordinary user enters all": Excused(
        Row("-t {own} -a --preserve-credentials id -u", says="0"),
        1,
        "nsenter joins what it is in already, too, and here that belongs to root: EPERM",
        as_ordinary_user=True,
    ),
    "the target's root and a working directory outside of it": Excused(
        Row("-t {pid} -r -w/ true", status=1),
        0,
        "the same, without a mount namespace",
    ),
    "a user namespace without uid 0": Excused(
        Row("-t {unmapped} -U id -u", says="65534"),
        1,
        "uid 0 is not mapped there: nsenter gives up, spawn_in keeps the uid",
    ),
    "a working directory outside of the root": Excused(
        Row("-t {pid} -m -w{tmp} true", status=1),
        0,
        "the program would be outside of the target's root, and that is a way out of it",
    ),
    "the root of a chrooted target without -r": Excused(
        Row("-t {chrooted} -m ls -d /only-here", says="/only-here"),
        2,
        "inside is where the target is: nsenter -m leaves its root for that of the mount namespace",
    ),
}


#: What the targets are: how unshare(1) makes them, and what they do then.
_ROOT_OF_ITS_OWN = (
    "mount -t tmpfs none /mnt; mkdir /mnt/usr /mnt/only-here; mount --bind /usr /mnt/usr; cp -P /bin /lib /lib64 /mnt; "
    "exec chroot /mnt sleep infinity"
)
_ALL = "--mount --uts --ipc --net --pid --cgroup --fork --mount-proc"
TARGETS = {
    "pid": (_ALL, "mount -t tmpfs none /mnt; touch /mnt/inside; cd /tmp; echo ready; exec sleep infinity"),
    "deleted": (
        _ALL,
        "mount -t tmpfs none /mnt; mkdir /mnt/gone; cd /mnt/gone; rmdir /mnt/gone; echo ready; exec sleep infinity",
    ),
    "user": ("--map-root-user --uts --fork", "echo ready; exec sleep infinity"),
    "unmapped": ("--user --fork", "echo ready; exec sleep infinity"),
    "time": ("--time --boottime 1000 --uts --fork", "echo ready; exec sleep infinity"),
    "chrooted": ("--mount --fork", f"echo ready; {_ROOT_OF_ITS_OWN}"),
    "own": ("--map-root-user --net --pid --mount --fork", "echo ready; exec sleep infinity"),
}


@contextlib.contextmanager
def running(options: str, program: str, become: Callable[[], None] | None = None) -> Iterator[int]:
    """A process in new namespaces: its pid."""
    with subprocess.Popen(
        ["unshare", *options.split(), "sh", "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=become,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as children:
            pid = int(children.read().split()[0])
        while "chroot" in program and os.readlink(f"/proc/{pid}/root") == "/":
            os.sched_yield()
        yield pid
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What stands in braces: targets, which end with the module, the file of a network and a directory."""
    tmp = tmp_path_factory.mktemp("exec")
    (tmp / "script").write_text('echo script "$1"\n')
    (tmp / "script").chmod(0o755)
    shutil.copy("/bin/sh", tmp / "shell")
    with contextlib.ExitStack() as stack:
        pids = {
            name: stack.enter_context(running(*how, become_nobody if name == "own" else None))
            for name, how in TARGETS.items()
        }
        with nsjoin.create("net") as namespace:
            namespace.pin(tmp / "pinned")
        stack.callback(nsjoin.unpin, tmp / "pinned")
        yield {"tmp": str(tmp), "netns": str(tmp / "pinned"), **{name: str(pid) for name, pid in pids.items()}}


# --- the comparison -----------------------------------------------------------------------------------------


def command_line(row: Row, places: dict[str, str]) -> list[str]:
    words = row.words.format(**places).split()
    return words if row.script is None else [*words, "sh", "-c", row.script]


def done_by(command: list[str], row: Row, places: dict[str, str], **keywords: Any) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ, PATH=PATH, **{name: value.format(**places) for name, value in (row.env or {}).items()})
    return subprocess.run(
        command,
        input="echo $0; exit 5",
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
        check=False,
        **keywords,
    )


def by_nsenter(row: Row, places: dict[str, str], **keywords: Any) -> subprocess.CompletedProcess[str]:
    return done_by(["nsenter", *command_line(row, places)], row, places, **keywords)


def by_exec(row: Row, places: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return done_by([*EXEC, *command_line(row, places)], row, places)


def by_exec_as_nobody(row: Row, places: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """In a fork: an ordinary user may not be able to read the interpreter and the package."""
    assert __main__._COMMANDS["exec"][0] == exec_.__name__  # so that nothing is left to import
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        pid = os.fork()
        if pid == 0:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            sys.stderr = open(2, "w", buffering=1, closefd=False)
            os.environ["PATH"] = PATH
            become_nobody()
            os._exit(__main__.main(["exec", *command_line(row, places)]))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess([], status, stdout.read(), stderr.read())


def compare(row: Row, places: dict[str, str], ours: Any, theirs: Any) -> None:
    assert ours.returncode == row.status, ours.stderr
    assert (ours.stdout, ours.returncode) == (theirs.stdout, theirs.returncode), theirs.stderr
    assert bool(ours.stderr) == bool(theirs.stderr), (ours.stderr, theirs.stderr)
    assert "Traceback" not in ours.stderr
    assert row.says is None or row.says.format(**places) in ours.stdout.splitlines()


pytestmark = [requires_root, requires_program("nsenter")]


@pytest.mark.parametrize("name", ROWS)
def test_exec_and_nsenter_say_the_same(name: str, places: dict[str, str]) -> None:
    compare(ROWS[name], places, by_exec(ROWS[name], places), by_nsenter(ROWS[name], places))


@pytest.mark.parametrize("name", OF_AN_ORDINARY_USER)
def test_exec_and_nsenter_say_the_same_to_an_ordinary_user(name: str, places: dict[str, str]) -> None:
    row = OF_AN_ORDINARY_USER[name]
    theirs = by_nsenter(row, places, preexec_fn=become_nobody)
    compare(row, places, by_exec_as_nobody(row, places), theirs)


@pytest.mark.parametrize("name", EXCUSED)
def test_exec_and_nsenter_differ_for_a_reason(name: str, places: dict[str, str]) -> None:
    excused = EXCUSED[name]
    row = excused.row
    ours = by_exec_as_nobody(row, places) if excused.as_ordinary_user else by_exec(row, places)
    theirs = by_nsenter(row, places, preexec_fn=become_nobody if excused.as_ordinary_user else None)
    assert ours.returncode == row.status, ours.stderr
    assert row.says is None or ours.stdout == f"{row.says}\n"
    assert theirs.returncode == excused.nsenter_status, excused.why


def test_the_table_is_long_enough() -> None:
    assert len(ROWS) + len(OF_AN_ORDINARY_USER) >= 40


# --- what is no table ---------------------------------------------------------------------------------------


def test_help_is_short_and_names_every_option() -> None:
    done = subprocess.run([*EXEC, "--help"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "usage: python -m nsjoin exec [options] [program [argument ...]]"
    assert len(lines) < 35
    assert max(map(len, lines)) <= 110
    for option in options_.OPTIONS:
        assert f"--{option.name}" in done.stdout
    assert subprocess.run([*EXEC, "-t", "1", "-h"], capture_output=True, text=True, check=True).stdout == done.stdout


def test_every_option_is_one_of_nsenters_and_takes_the_same() -> None:
    usage = subprocess.run(["nsenter", "--help"], capture_output=True, text=True, check=True).stdout
    newer = {"env"}  # util-linux 2.39
    for option in options_.OPTIONS:
        match = re.search(rf"--{option.name}\b(\[=<)?( <)?", usage)
        if match is None:
            assert option.name in newer
            continue
        takes = "::" if match[1] else ":" if match[2] else ""
        assert option.takes == takes, option
        assert not option.short or f"-{option.short}" in usage


def test_the_environment_is_the_targets(places: dict[str, str]) -> None:
    with subprocess.Popen(["sleep", "infinity"], env={"ONLY": "here", "PATH": PATH}) as process:
        places = {**places, "pid": str(process.pid)}
        for words in ("-t {pid} -e", "-t {pid} -e --net={netns}"):
            done = by_exec(Row(words + " env"), places)
            assert (done.stdout, done.stderr) == (f"ONLY=here\nPATH={PATH}\n", "")
        process.kill()


def lines_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@contextlib.contextmanager
def exec_running(places: dict[str, str], script: str, **keywords: Any) -> Iterator[subprocess.Popen[str]]:
    command = [*EXEC, "-t", places["pid"], "-p", "bash", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **keywords) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1])
def test_a_signal_reaches_the_program(places: dict[str, str], number: int) -> None:
    # nsenter 2.38 ends by it, and the program goes on without anybody who waits for it
    name = signal.Signals(number).name[3:]
    script = f"trap 'echo got {name}; exit 6' {name}; echo ready; while :; do sleep 0.01; done"
    with exec_running(places, script, start_new_session=True) as process:
        assert lines_of(process) == "ready\n"
        process.send_signal(number)
        assert lines_of(process) == f"got {name}\n"
        assert process.wait(60) == 6


def test_a_signal_that_the_program_does_not_take_ends_both(places: dict[str, str]) -> None:
    with exec_running(places, "echo ready; exec sleep infinity") as process:
        assert lines_of(process) == "ready\n"
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM


def test_an_ignored_signal_stays_ignored(places: dict[str, str]) -> None:
    script = "echo ready; read line; echo still here"
    ignore = partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    with exec_running(places, script, stdin=subprocess.PIPE, preexec_fn=ignore) as process:
        assert lines_of(process) == "ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.communicate("\n", timeout=60)[0] == "still here\n"
        assert process.returncode == 0


def test_it_stops_and_goes_on_with_the_program(places: dict[str, str]) -> None:
    with exec_running(places, "echo ready; kill -STOP $$; echo goes on; exit 4") as process:
        assert lines_of(process) == "ready\n"
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        process.send_signal(signal.SIGCONT)
        assert lines_of(process) == "goes on\n"
        assert process.wait(60) == 4


def test_the_exit_status_is_known_where_the_caller_ignores_sigchld(places: dict[str, str]) -> None:
    ignore = partial(signal.signal, signal.SIGCHLD, signal.SIG_IGN)
    with exec_running(places, "exit 8", preexec_fn=ignore) as process:
        assert process.wait(60) == 8


def test_stdin_and_other_descriptors_are_inherited(places: dict[str, str]) -> None:
    reading, writing = os.pipe()
    with exec_running(places, f"cat; echo further >&{writing}", stdin=subprocess.PIPE, pass_fds=[writing]) as process:
        os.close(writing)
        assert process.communicate("given\n", timeout=60)[0] == "given\n"
    with open(reading) as file:
        assert file.read() == "further\n"


def test_a_terminal_sends_its_signals_only_once(places: dict[str, str]) -> None:
    script = "trap 'echo got; n=x$n' INT; echo ready; while [ -z $n ]; do sleep 0.01; done; sleep 0.1; echo =$n="
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(EXEC[0], [*EXEC, "-t", places["pid"], "-p", "sh", "-c", script])
    with open(terminal, "rb+", buffering=0) as file:
        said = b""
        while b"ready" not in said:
            said += file.read(100)
        file.write(b"\x03")
        while said.count(b"=") < 2:
            said += file.read(100)
        assert os.waitpid(pid, 0)[1] == 0  # before the terminal hangs up
    assert said.count(b"got") == 1
    assert b"=x=" in said


def test_a_second_signal_ends_a_start_that_hangs(places: dict[str, str], tmp_path: Path) -> None:
    with held_program(tmp_path / "held") as program:
        command = [*EXEC, "-t", places["pid"], "-p", str(tmp_path / "held")]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            program.wait()
            process.send_signal(signal.SIGUSR1)  # handlers run in the order of the numbers
            process.send_signal(signal.SIGTERM)
            assert process.communicate(timeout=60)[1] == ""
            assert process.returncode in (-signal.SIGUSR1, -signal.SIGTERM)  # PyPy runs them in another order
