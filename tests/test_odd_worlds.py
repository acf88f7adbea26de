"""Worlds in which a target or a caller may live that are not like ours: docs/robustness.md has the table.

File systems that a process serves, interpreters that somebody has registered, memfds that are not executed, system
calls that are refused or kill, memory that is not overcommitted, and a target that becomes another while we look at it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from changed import ARG0, NOBODY, NR, SYS_MOUNT, SYS_SETNS, Filter, join
from child import children, held, in_child
from conftest import requires_program, requires_root
from test_attacks_hangs import mounted

import nsjoin
from nsjoin._engine import children as children_
from nsjoin._engine import image as image_
from nsjoin._kernel import abi, calls
from nsjoin._target import cgroups, likeness, survey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Running

HERE = Path(__file__).resolve().parent
HUNG = (HERE / "hung.py").read_text()
#: before Linux 6.7 there is one list of interpreters for all
BINFMT_MISC = "/proc/sys/fs/binfmt_misc"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can look into too: pytest's are private."""
    with tempfile.TemporaryDirectory(prefix="nsjoin-test-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.fixture
def static(folder) -> str:
    """A program that needs no file: it ends with 0."""
    program = folder / "static"
    program.write_bytes(image_._image_bytes())
    program.chmod(0o755)
    return str(program)


def line_of(running: Running) -> str:
    assert running.process.stdout is not None
    return running.process.stdout.readline().rstrip("\n")


# --- a file system that a process serves ------------------------------------------------------------------------------


def server(*arguments: str) -> str:
    return shlex.join([sys.executable, "-I", "-c", HUNG, *arguments])


def hung_at(start: Callable[..., Running], place: str, how: str = "lookup", *nstypes: str) -> Running:
    """A target that never gets an answer from what is mounted at ``place``."""
    running = start("mnt", "pid", *nstypes, program=f"exec {server(place, how)}")
    assert line_of(running) == "armed"
    return running


WAYS = {
    "a program": lambda pid, static: nsjoin.run_in(pid, [static], check=True, timeout=60),
    "a program like the target": lambda pid, static: nsjoin.run_in(
        pid, [static], like_target=True, check=True, timeout=60
    ),
    "a program with a score": lambda pid, static: nsjoin.run_in(
        pid, [static], oom_score_adj=500, check=True, timeout=60
    ),
    "a function": lambda pid, _: nsjoin.call_in(pid, os.getpid, trust_target=True, timeout=60),
    "a pid": lambda pid, _: nsjoin.translate_pid(1, from_=pid),
}


@requires_root
@pytest.mark.parametrize("place", ["/etc", "/proc"])
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_asked_of_an_etc_or_a_proc_that_never_answers(start, static, place, way):
    assert WAYS[way](hung_at(start, place).pid, static)


@requires_root
@pytest.mark.parametrize("keyword", ["root", "cwd"])
def test_a_directory_that_never_answers_does_not_outlast_the_timeout(start, static, keyword):
    target = hung_at(start, "/mnt", "access")
    fd = os.open(f"/proc/{target.pid}/root/mnt", os.O_PATH)
    before = children()
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            nsjoin.run_in(target.pid, [static], timeout=2, **{keyword: fd})
        assert line_of(target) == "hung"
    finally:
        os.close(fd)
        target.end()  # what hangs there cannot be killed before
        while children() - before:
            children_.reap_late()


@requires_root
def test_a_program_on_a_slow_file_system_runs_when_it_has_come(start, folder):
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    target = start("mnt", "pid", program=f"exec {server('/mnt', 'slow', str(fifo))}")
    assert line_of(target) == "armed"
    stop = threading.Event()

    def answer() -> None:
        while not stop.is_set():
            with open(fifo, "wb"):
                pass

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        done = nsjoin.run_in(target.pid, ["/mnt/file"], capture_output=True, text=True, timeout=60)
    finally:
        stop.set()
        os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))  # lets go who waits for a reader
        join(thread)
    assert done.stdout == "it came\n"


@requires_root
def test_lookup_of_a_user_name_waits_for_a_hanging_etc(start, static):
    """So SECURITY.md says: give numbers."""
    target = hung_at(start, "/etc")
    raised: list[BaseException] = []

    def run() -> None:
        try:
            nsjoin.run_in(target.pid, [static], user="daemon", timeout=0.1)
        except OSError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert line_of(target) == "hung"
    assert not raised
    target.end()
    join(thread)
    assert [error.errno for error in raised] == [errno.ECONNABORTED]
    assert nsjoin.run_in(os.getpid(), [static], user=NOBODY, namespaces=["uts"]).returncode == 0


@requires_root
def test_mount_made_in_a_user_namespace_does_not_block_callers_outside(start, static):
    """The kernel lets only processes in that user namespace ask such a server: EACCES (fuse(4), allow_other)."""
    target = hung_at(start, "/etc", "lookup", "user")
    with pytest.raises(PermissionError):
        nsjoin.run_in(target.pid, [static], user="daemon")


#: A namespace that is kept by a mount below what a process serves, which then stops; and a file that is open there.
KEPT = {
    "a bind mount": "unshare --net=/mnt/file true",
    "a descriptor": "exec 9</mnt/file; unshare --net=/mnt/file true",
}


@contextlib.contextmanager
def kept_below_fuse(start: Callable[..., Running], folder: Path, how: str) -> Iterator[Running]:
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    program = f"{server('/mnt', 'slow', str(fifo))} & read line </dev/null; sh -c {shlex.quote(WAIT)}; {KEPT[how]}; "
    target = start("mnt", "pid", "uts", program=f"{program} kill -STOP $!; echo kept; exec sleep infinity")
    try:
        for word in iter(lambda: line_of(target), "kept"):
            if word == "asked":
                with open(fifo, "wb"):
                    pass
        yield target
    finally:
        target.end()


WAIT = "until grep -q ' /mnt fuse' /proc/mounts; do :; done"


@requires_root
@pytest.mark.parametrize("how", KEPT)
def test_a_survey_does_not_wait_for_a_file_system_that_never_answers(start, folder, how):
    with kept_below_fuse(start, folder, how):
        found = [info for info in nsjoin.iter_namespaces() if any(p.endswith("/root/mnt/file") for p in info.paths)]
        assert [(info.nstype, info.pids) for info in found] == [("net", ())]


@requires_root
@pytest.mark.parametrize("how", KEPT)
def test_with_a_plain_open_and_fstat_it_would(start, folder, how, monkeypatch):
    monkeypatch.setattr(calls, "device", lambda fd: os.fstat(fd).st_dev)
    monkeypatch.setattr(
        survey, "_open_without_asking", lambda root, place: os.open(place.lstrip("/"), abi.O_PATH, dir_fd=root)
    )
    with kept_below_fuse(start, folder, how) as target:
        thread = threading.Thread(target=lambda: list(nsjoin.iter_namespaces()))
        thread.start()
        while "fuse" not in Path(f"/proc/self/task/{thread.native_id}/stack").read_text():
            assert thread.is_alive(), "it has not waited"
        target.end()
        join(thread)


# --- interpreters that somebody has registered ------------------------------------------------------------------------

#: Says what it got, and whether the file that the kernel has opened for it (flag O) can be written to, if it is ours.
INTERPRETER = r"""
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    char path[64];
    unsigned long given = getauxval(2); /* AT_EXECFD */
    snprintf(path, sizeof path, "/proc/self/fd/%lu", given);
    int fd = -1;
    if (given && !strcmp(argv[1], "/proc/self/exe"))
        while ((fd = open(path, O_RDWR)) < 0 && errno == ETXTBSY)
            sched_yield(); /* until the joiner, which has borne us, has ended */
    printf("%s given=%d written=%d", argv[1], given > 0, fd >= 0 && pwrite(fd, "hostile", 7, 0) == 7);
    return 0;
}
"""
#: Every ELF file but the interpreter, which differs in a byte that means nothing.
EVERYTHING = r":nsjoin-test:M::\x7fELF" + r"\x00" * 12 + ":" + r"\xff" * 4 + r"\x00" * 11 + r"\xff" + ":{}:{}"


@pytest.fixture
def interpreter(folder) -> str:
    (folder / "interpreter.c").write_text(INTERPRETER)
    path = folder / "interpreter"
    built = subprocess.run(["cc", "-static", "-o", path, f"{path}.c"], capture_output=True, check=False)
    if built.returncode != 0:
        pytest.skip("no static C library is installed")
    image = bytearray(path.read_bytes())
    image[15] = 1
    path.write_bytes(image)
    return str(path)


def registering(interpreter: str, flags: str) -> str:
    """Shell: registers it in a user namespace of its own; from then on, only what is built into the shell runs."""
    rule = shlex.quote(EVERYTHING.format(interpreter, flags))
    register = f"printf %s {rule} >{BINFMT_MISC}/register"
    return f"mount -t binfmt_misc none {BINFMT_MISC} && {register} && echo registered; read x"


@pytest.fixture
def interpreted(start, interpreter, request) -> Running:
    """A target that has registered the interpreter with flags that are the parameter."""
    target = start("user", "mnt", "pid", program=f"{registering(interpreter, request.param)} </dev/zero")
    if line_of(target) != "registered":
        pytest.skip("a user namespace has no list of interpreters of its own here (Linux 6.7)")
    return target


@requires_program("cc")
@pytest.mark.parametrize("interpreted", ["", "F", "O", "FOC"], indirect=True)
def test_an_interpreter_of_the_targets_gets_the_program_and_never_the_joiner(interpreted, request):
    given = "O" in request.node.callspec.params["interpreted"]
    done = nsjoin.run_in(interpreted.pid, ["/bin/true"], capture_output=True, text=True, check=True)
    assert done.stdout == f"/bin/true given={given:d} written=0"
    assert nsjoin.call_in(interpreted.pid, lambda: "called") == "called"


@requires_program("cc")
@pytest.mark.parametrize("interpreted", ["O", "FOC"], indirect=True)
def test_the_joiner_that_an_interpreter_of_the_targets_is_given_is_sealed(interpreted, folder):
    script = folder / "script"
    script.write_text("#!/proc/self/exe\n")
    script.chmod(0o755)
    done = nsjoin.run_in(interpreted.pid, [str(script)], capture_output=True, text=True, check=True)
    assert done.stdout == "/proc/self/exe given=1 written=0"


@requires_root
@requires_program("cc")
@pytest.mark.parametrize("interpreted", ["O"], indirect=True)
def test_without_the_seals_it_is_the_interpreters_to_write(interpreted, folder, monkeypatch):
    monkeypatch.setattr(image_, "_image", image_._Image())
    monkeypatch.setattr(image_, "_seal", lambda fd: None)
    script = folder / "script"
    script.write_text("#!/proc/self/exe\n")
    script.chmod(0o755)
    try:
        done = nsjoin.run_in(interpreted.pid, [str(script)], capture_output=True, text=True, check=True)
        image = os.pread(image_._image.open()[0], 7, 0)
    finally:
        image_._image.memfd_does_not_run()  # closes it
    assert (done.stdout, image) == ("/proc/self/exe given=1 written=1", b"hostile")


CAUGHT = """
import os, subprocess, sys, nsjoin
target = subprocess.Popen(["unshare", "--uts", "--fork", "sh", "-c", "echo ready; read end"], stdin=-1, stdout=-1)
target.stdout.readline()
subprocess.run(["mount", "-t", "binfmt_misc", "none", sys.argv[1]], check=True)
with open(f"{sys.argv[1]}/register", "w") as file:
    file.write(sys.argv[2])
(child,) = open(f"/proc/{target.pid}/task/{target.pid}/children").read().split()
try:
    nsjoin.run_in(int(child), ["true"])
except nsjoin.JoinError as error:
    print(error)
print(nsjoin.call_in(int(child), os.uname, trust_target=True)[1])
target.communicate(b"")
"""


@requires_program("cc")
def test_an_interpreter_of_the_callers_that_takes_the_joiner_is_named(interpreter):
    """It cannot have a file without a name that execve closes: ENOENT."""
    rule = EVERYTHING.format(interpreter, "")
    command = ["unshare", "--map-root-user", "--mount", sys.executable, "-c", CAUGHT, BINFMT_MISC, rule]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "mount" in done.stderr:
        pytest.skip("a user namespace has no list of interpreters of its own here (Linux 6.7)")
    assert "binfmt_misc" in done.stdout, done.stderr
    assert done.stdout.endswith(f"{os.uname()[1]}\n")


# --- memfds that are not executed -------------------------------------------------------------------------------------

NOEXEC = "/proc/sys/vm/memfd_noexec"
requires_memfd_noexec = pytest.mark.skipif(not os.path.exists(NOEXEC), reason="no vm.memfd_noexec (Linux 6.3)")

#: Alone in a PID namespace, whose setting it may change: it can only be made stricter.
RESTRICTED = """
import os, subprocess, sys, tempfile, nsjoin
from nsjoin._engine import image
with open("/proc/sys/vm/memfd_noexec", "w") as file:
    file.write(sys.argv[1])
target = subprocess.Popen(
    ["unshare", "--uts", "--pid", "--fork", "sh", "-c", "echo ready; read end"], stdin=-1, stdout=-1
)
target.stdout.readline()
(child,) = map(int, open(f"/proc/{target.pid}/task/{target.pid}/children").read().split())
if sys.argv[2:]:
    tempfile.tempdir = sys.argv[2]
try:
    called = nsjoin.call_in(child, lambda: "called", trust_target=True)
    print(nsjoin.run_in(child, ["true"]).returncode, called, end=" ")
    with nsjoin.create("net") as made:
        print(made.nstype, image._image._memfd_runs)
except nsjoin.JoinError as error:
    print(error)
target.communicate(b"")
"""


def restricted(*arguments: str) -> str:
    command = ["unshare", "--pid", "--mount-proc", "--fork", sys.executable, "-c", RESTRICTED, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


@requires_root
@requires_memfd_noexec
@pytest.mark.parametrize(("level", "memfd_runs"), [("1", True), ("2", False)])
def test_where_memfds_are_not_executed_a_file_is(level, memfd_runs):
    assert restricted(level) == f"0 called net {memfd_runs}\n"


@requires_root
@requires_memfd_noexec
def test_where_neither_memfds_nor_temporary_files_are_executed_the_error_says_what_to_do(folder):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "none", folder], check=True)
    try:
        said = restricted("2", str(folder))
    finally:
        subprocess.run(["umount", folder], check=True)
    assert "execveat of process" in said
    assert "vm.memfd_noexec" in said
    assert "TMPDIR" in said


@requires_root
@requires_memfd_noexec
def test_the_targets_setting_is_not_ours(start):
    target = start("mnt", "pid", program=f"echo 2 >{NOEXEC}; echo set; exec sleep infinity")
    assert line_of(target) == "set"
    assert nsjoin.run_in(target.pid, ["cat", NOEXEC], stdout=subprocess.PIPE).stdout == b"2\n"
    assert image_._image._memfd_runs
    assert Path(NOEXEC).read_text() != "2\n"


# --- system calls that are refused, or kill ---------------------------------------------------------------------------

#: What docker's profile refuses to who has none of the capabilities that each belongs to, with EPERM; clone3 with
#: ENOSYS, and clone only where it makes a namespace. By machine; the rest have the same numbers everywhere.
REFUSED = {
    "x86_64": (272, SYS_MOUNT, 166, 155, 250, 248, 249, 321, 323, 304, 312, 298),
    "aarch64": (97, SYS_MOUNT, 39, 41, 219, 217, 218, 280, 282, 265, 272, 241),
}[os.uname().machine]
REFUSED_EVERYWHERE = (428, 429, 430, 431, 432, 433, 442)
SYS_CLONE = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
NAMESPACES_OF_CLONE, CLONE3, KILL = 0x7E020000, 435, 0x80000000


def like_docker() -> None:
    one = Filter()
    one.load(NR)
    one.refuse_if(CLONE3, errno.ENOSYS)
    for number in (SYS_SETNS, *REFUSED, *REFUSED_EVERYWHERE):
        one.refuse_if(number, errno.EPERM)
    one.require(SYS_CLONE)
    one.load(ARG0)
    one.mask(NAMESPACES_OF_CLONE)
    one.allow_if(0)
    one.refuse(errno.EPERM)
    one.install()


def killed_for(*numbers: int) -> None:
    """As a filter does it that knows no better."""
    one = Filter()
    one.load(NR)
    for number in numbers:
        one.lines += [(0x15, 0, 1, number), (0x06, 0, 0, KILL)]
    one.install()


VERBS: dict[str, Callable[[int], object]] = {
    "run_in": lambda pid: nsjoin.run_in(pid, ["true"]),
    "call_in": lambda pid: nsjoin.call_in(pid, os.getpid, trust_target=True),
    "enter": lambda pid: nsjoin.enter(pid, "net").__enter__(),
    "create": lambda pid: nsjoin.create("net"),
}


@requires_root
@pytest.mark.parametrize("verb", VERBS)
def test_dockers_seccomp_profile_is_named_as_the_reason(target, verb):
    def refused() -> None:
        with pytest.raises(nsjoin.NamespaceError, match="a seccomp filter forbids it") as caught:
            VERBS[verb](target.pid)
        assert caught.value.errno == errno.EPERM

    in_child(refused, like_docker)


@requires_root
def test_a_joiner_that_a_filter_kills_is_an_error_and_leaves_nothing(target):
    def killed() -> None:
        with pytest.raises(nsjoin.JoinError, match="killed before it could run the program"):
            nsjoin.run_in(target.pid, ["true"])

    in_child(killed, lambda: killed_for(SYS_SETNS))


# --- memory -----------------------------------------------------------------------------------------------------------


def memory(*names: str) -> list[int]:
    """Lines of /proc/meminfo, in bytes."""
    with open("/proc/meminfo") as file:
        lines = dict(line.split(":") for line in file)
    return [int(lines[name].split()[0]) * 1024 for name in names]


@pytest.fixture
def no_overcommit() -> Iterator[None]:
    """vm.overcommit_memory=2, with as much to give as there is."""
    settings = [Path("/proc/sys/vm", name) for name in ("overcommit_ratio", "overcommit_memory")]
    before = [setting.read_text() for setting in settings]
    try:
        for setting, value in zip(settings, ("100", "2")):
            setting.write_text(value)
        yield
    finally:
        for setting, value in zip(reversed(settings), reversed(before)):
            setting.write_text(value)


@requires_root
def test_without_overcommit_a_program_of_a_big_caller_costs_no_memory_and_a_fork_does(target, no_overcommit):
    limit, given = memory("CommitLimit", "Committed_AS")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    size = (limit - given) * 6 // 10
    # private, writable memory that is never touched: it counts, and a fork would count it once more
    place = libc.mmap(None, ctypes.c_size_t(size), 3, 0x22, -1, ctypes.c_long(0))
    assert place != ctypes.c_void_p(-1).value
    try:
        assert nsjoin.run_in(target.pid, ["true"]).returncode == 0
        with nsjoin.create("net") as made:
            assert made.nstype == "net"
        with pytest.raises(OSError, match=os.strerror(errno.ENOMEM)):
            nsjoin.call_in(target.pid, os.getpid, trust_target=True)
    finally:
        libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(size))


# --- a target that becomes another while we look at it ----------------------------------------------------------------

#: When it does: after we have read who it is, after its environment and directory are open, before the launch.
MOMENTS = {
    "before its status is read": (likeness, "_status"),
    "after its status was read": (likeness, "_attributes"),
    "after all was read": (likeness, "_ids"),
}


@contextlib.contextmanager
def at(moment: str, act: Callable[[], object]) -> Iterator[None]:
    owner, name = MOMENTS[moment]
    do = getattr(owner, name)

    def late(*arguments: Any) -> Any:
        act()
        return do(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, late)
        yield


def effective_uid(pid: int) -> str:
    return status_of(pid, "Uid")[0].split()[1]


def status_of(pid: int, *labels: str) -> list[str]:
    with open(f"/proc/{pid}/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return [lines[label].strip() for label in labels]


WHO = ("Uid", "CapPrm", "CapEff")


def parsed(lines: list[str]) -> list[tuple[int, ...]]:
    uids, *capabilities = lines
    return [tuple(map(int, uids.split()[:3])), tuple(int(text, 16) for text in capabilities)]


@requires_root
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_target_that_executes_a_setuid_program_is_taken_as_it_was_at_one_moment(start, folder, moment, monkeypatch):
    taken = []
    read = likeness.read

    def note(*arguments: Any) -> Any:
        found = read(*arguments)
        taken.append((found.theirs.uids, found.attributes.capabilities[1:3]))
        return found

    monkeypatch.setattr(likeness, "read", note)
    program, fifo = folder / "setuid", folder / "fifo"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o4755)
    os.mkfifo(fifo)
    fifo.chmod(0o644)
    become = f"setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups"
    target = start("mnt", "pid", program=f"exec {become} sh -c 'echo armed; read x <{fifo}; exec {program} 1d'")
    assert line_of(target) == "armed"
    before = status_of(target.pid, *WHO)

    def go() -> None:
        if fifo.exists():
            fifo.write_text("go\n")
            fifo.unlink()
        while effective_uid(target.pid) != "0":
            os.sched_yield()

    with at(moment, go):
        done = nsjoin.run_in(
            target.pid, ["cat", "/proc/self/status"], like_target=True, capture_output=True, text=True, check=True
        )
    lines = dict(line.split(":", 1) for line in done.stdout.splitlines())
    after = status_of(target.pid, *WHO)
    assert before != after
    assert [lines[label].strip() for label in WHO] in (before, after)
    for ids, capabilities in taken:
        assert [ids, capabilities] in [parsed(before), parsed(after)]


@requires_root
@pytest.mark.parametrize("limit", ["as", "nofile", "stack", "fsize", "cpu", "nproc"])
def test_process_given_limits_from_inside_runs_or_dies_and_does_not_block_the_caller(start, folder, limit):
    """Whoever has its uid may, whatever it hides: prlimit(2) does not ask for more."""
    target = start("mnt", "pid")
    results: list[object] = []

    def run() -> None:
        try:
            results.append(nsjoin.run_in(target.pid, [program.path]).returncode)
        except OSError as error:
            results.append(error)

    before = children()
    (folder / "program").write_bytes(Path("/bin/true").read_bytes())
    (folder / "program").chmod(0o755)
    with held(str(folder / "program")) as program:
        thread = threading.Thread(target=run)
        thread.start()
        program.wait()
        (inner,) = [
            numbers[-1] for pid in children() - before if len(numbers := status_of(pid, "NSpid")[0].split()) > 1
        ]
        nsjoin.run_in(target.pid, ["prlimit", "--pid", inner, f"--{limit}=0"], check=True)
        program.release()
        join(thread)
    (result,) = results
    assert isinstance(result, OSError) or result <= 0 or result == 127


# --- cgroups ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_cgroups() -> Iterator[tuple[Path, Path]]:
    place = mounted("cgroup2", "rw") or mounted("cgroup", "pids")
    if place is None:
        pytest.skip("no cgroup hierarchy is mounted here")
    one, other = (Path(tempfile.mkdtemp(prefix="nsjoin-test-", dir=place)) for _ in range(2))
    yield one, other
    for cgroup in (one, other):
        if cgroup.exists():
            cgroup.rmdir()


@requires_root
@pytest.mark.parametrize("is_removed", [False, True])
def test_a_target_that_moves_is_followed_to_where_it_was_or_the_error_says_that_it_is_gone(
    start, two_cgroups, monkeypatch, is_removed
):
    one, other = two_cgroups
    target = start("mnt", "pid")
    (one / "cgroup.procs").write_text(str(target.pid))
    mounts = cgroups._mounts

    def move_meanwhile() -> Any:  # its paths have been read
        (other / "cgroup.procs").write_text(str(target.pid))
        if is_removed:
            one.rmdir()
        return mounts()

    monkeypatch.setattr(cgroups, "_mounts", move_meanwhile)
    try:
        if is_removed:
            with pytest.raises(nsjoin.JoinError, match="has been removed"):
                nsjoin.run_in(target.pid, ["true"], cgroup=nsjoin.TARGET)
        else:
            done = nsjoin.run_in(
                target.pid, ["cat", "/proc/self/cgroup"], cgroup=nsjoin.TARGET, capture_output=True, text=True
            )
            assert one.name in done.stdout
            assert other.name not in done.stdout
    finally:
        target.end()
