"""The C and the layout: what the joiner is made of, what it calls, where it builds, and who may import whom."""

from __future__ import annotations

import ast
import contextlib
import ctypes
import fcntl
import os
import platform
import re
import runpy
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from conftest import IS_ROOT, Running, requires_program, requires_root
from jobs import Job, job_of

from nsjoin._engine import image, launch
from nsjoin._engine import job as job_
from nsjoin._engine.job import Ids, Step
from nsjoin._engine.wire import pack
from nsjoin._kernel import abi, nstypes
from nsjoin._kernel import calls as calls_
from nsjoin._verbs.command import execute_child_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PACKAGE = Path(launch.__file__).parent.parent
#: As setup.py does: the script imports nothing of the package.
BUILD: dict[str, Any] = runpy.run_path(str(PACKAGE / "_build_setns.py"))
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror")
CROSS = "aarch64-linux-gnu-gcc"


@pytest.fixture(scope="module", autouse=True)
def near():
    """A target that shares our file system; autouse, so that it is there before the guard takes stock."""
    running = Running(("pid", "uts"))
    yield running
    running.end()


def compiler() -> str:
    return str(sysconfig.get_config_var("CC") or "cc").split()[0]


def output(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def undefined(file: Path) -> set[str]:
    return {line.split()[-1].partition("@")[0] for line in output("nm", "-u", file).splitlines()}


# --- the joiner as a program ---------------------------------------------------------------------------------


@pytest.fixture
def joiner(tmp_path) -> Path:
    """The joiner that the compiled module holds."""
    path = tmp_path / "joiner"
    path.write_bytes(image._image_bytes())
    path.chmod(0o755)
    return path


#: Program headers of an ELF file (elf(5)) that only dynamic programs have
PT_DYNAMIC, PT_INTERP = 2, 3


def segment_types(program: bytes) -> list[int]:
    if program[4] == 1:  # ELFCLASS32
        (start,), (size, count) = struct.unpack_from("<I", program, 28), struct.unpack_from("<HH", program, 42)
    else:
        (start,), (size, count) = struct.unpack_from("<Q", program, 32), struct.unpack_from("<HH", program, 54)
    return [struct.unpack_from("<I", program, start + number * size)[0] for number in range(count)]


def test_the_joiner_is_small_and_static_without_interpreter(joiner):
    program = joiner.read_bytes()
    assert program[:4] == b"\x7fELF"
    if os.uname().machine in BUILD["FREESTANDING"]:
        assert len(program) < 16 * 1024
    types = segment_types(program)
    assert types
    assert not {PT_DYNAMIC, PT_INTERP} & set(types)


@requires_program("nm")
def test_the_joiner_needs_nothing_from_any_library(tmp_path):
    if os.uname().machine not in BUILD["FREESTANDING"]:
        pytest.skip("no system-call stubs for this machine: the joiner is linked with libc")
    # nothing implicit either, such as memcpy or __stack_chk_fail: the object file itself refers to nothing
    BUILD["compile_joiner"](tmp_path / "joiner.o", extra_flags=["-c"])
    assert undefined(tmp_path / "joiner.o") == set()
    BUILD["compile_joiner"](tmp_path / "joiner", extra_flags=["-Wl,--no-strip-discarded"])
    assert output("nm", "-u", tmp_path / "joiner") == ""


def test_the_joiner_in_the_module_is_that_of_the_source(joiner, tmp_path):
    BUILD["compile_joiner"](tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == joiner.read_bytes(), "build again: pip install -e ."


def test_the_joiner_ends_quietly_without_its_argument(joiner):
    done = subprocess.run([joiner], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# --- what the joiner calls -----------------------------------------------------------------------------------


def carry_out(
    command: Sequence[str | Path], job: Job, private: Sequence[int] = (), needed: Sequence[int] = (), **keywords: Any
) -> tuple[subprocess.CompletedProcess[str], tuple[int, ...]]:
    """Run ``command`` with the number of a plan's descriptor behind it: its result and the report."""
    plan = os.memfd_create("plan")
    try:
        os.write(plan, pack(*job, private, needed))
        os.lseek(plan, 0, os.SEEK_SET)
        for fd in (plan, *private, *needed):
            fcntl.fcntl(fd, fcntl.F_SETFD, 0)  # not by pass_fds: PyPy's fails for O_PATH descriptors
        done = subprocess.run(
            [*map(str, command), str(plan)],
            close_fds=False,
            capture_output=True,
            text=True,
            check=False,
            **keywords,
        )
        return done, launch._REPORT.unpack(os.pread(plan, launch._REPORT.size, 0))
    finally:
        os.close(plan)


def calls(log: Path) -> list[list[str]]:
    """The system calls of each process in a log of strace -f, in the order in which the processes appear."""
    processes: dict[str, list[str]] = {}
    for line in log.read_text().splitlines():
        pid, call = line.split(maxsplit=1)
        found = re.match(r"(\w+)\(", call)
        if found and "resumed" not in call:
            processes.setdefault(pid, []).append(found[1])
    return list(processes.values())


@pytest.fixture
def strace(joiner, tmp_path) -> Callable[..., list[list[str]]]:
    """``strace(job, ...)``: the calls that the joiner and its child make for this job, after their own execve."""

    def trace(job: Job, private: Sequence[int] = (), needed: Sequence[int] = ()) -> list[list[str]]:
        log = tmp_path / "log"
        options = ["strace", "-f", "-qq", "-o", log, "-e", "signal=none"]
        done, report = carry_out([*options, joiner], job, private, needed)
        assert report[1:] == (job_.At.EXEC, 0, 0), done.stderr
        first, *rest = calls(log)
        assert first[0] == "execve"
        return [first[1:], *rest]

    return trace


#: PR_SET_DUMPABLE: at first, and again after each step that may have changed credentials
HIDE = "prctl"
BEGINNING = ["read", "mmap", HIDE]
END = ["rt_sigprocmask", "execve"]


def up_to_exec(made: list[str]) -> list[str]:
    """Without what the program itself calls."""
    return made[: made.index("execve") + 1]


@requires_program("strace")
def test_an_empty_plan_makes_only_the_calls_that_any_makes(strace):
    job = job_of([b"/bin/true"], [b"true"], [], close_fds=False, restore_signals=False)
    (made,) = strace(job)
    assert up_to_exec(made) == [*BEGINNING, HIDE, *END]


def gaps(keep: list[int]) -> int:
    """How many ranges of descriptors above 2 are closed around those that are kept."""
    edges = [2, *sorted(keep)]
    return sum(after - before > 1 for before, after in zip(edges, edges[1:])) + 1


#: close_range(2) of no descriptor at all
HAS_CLOSE_RANGE = ctypes.CDLL(None).syscall(436, 0xFFFFFFFF, 0xFFFFFFFF, 0) == 0


@requires_root
@requires_program("strace")
@pytest.mark.skipif(not HAS_CLOSE_RANGE, reason="the order is that with close_range(2), Linux 5.9")
def test_a_plan_makes_exactly_its_calls_in_its_order(strace):
    with open("/proc/self/ns/uts") as uts, open("/dev/null") as null, open_root() as root:
        needed = [uts.fileno(), root]
        job = job_of(
            [b"/no/such", b"/bin/true"],
            [b"true"],
            [],
            stdio=(null.fileno(), 2, 1),
            joins=[Step(uts.fileno(), 0x04000000)],
            root=root,
            cwd=b"/",
            umask=0o22,
            ids=Ids((0, 0, 0), (0, 0, 0), [0]),
            new_session=True,
        )
        (made,) = strace(job, [null.fileno(), *needed], needed)
    assert up_to_exec(made) == [
        *BEGINNING,
        *["fcntl"] * 3,  # what came along is close-on-exec again at once
        *["fcntl"] * 2,  # 1 and 2 change places, so both are lifted first
        *["dup3"] * 3,
        *["close_range"] * gaps(needed),
        "setns",
        HIDE,
        *["fchdir", "chroot", "chdir", "umask"],
        *["setgroups", "setresgid", "setresuid"],
        HIDE,
        "setsid",
        *["rt_sigaction"] * 2,  # SIGPIPE, SIGXFSZ
        *END,
    ]
    assert made[len(up_to_exec(made))] == "execve", "the second of the files to try"


@contextlib.contextmanager
def open_root() -> Iterator[int]:
    fd = os.open("/", abi.O_PATH)
    try:
        yield fd
    finally:
        os.close(fd)


@requires_program("strace")
def test_with_a_pid_namespace_the_joiner_clones_and_its_child_does_the_rest(strace, near):
    flags = {"pid": 0x20000000} if IS_ROOT else {"user": 0x10000000, "pid": 0x20000000}
    files = [os.open(f"/proc/{near.pid}/ns/{name}", os.O_RDONLY) for name in flags]
    joins = [Step(fd, flag) for fd, flag in zip(files, flags.values())]
    job = job_of([b"/bin/true"], [b"true"], [], joins=joins, fork=True, close_fds=False, ids=Ids(drop_groups=True))
    try:
        made, childs = strace(job, files, files)
    finally:
        for fd in files:
            os.close(fd)
    assert made == [
        *BEGINNING,
        *["fcntl"] * len(files),
        "setgroups",  # before the joins, where root may, and after them, where the user namespace may
        *["setns", HIDE] * len(files),
        "setgroups",
        HIDE,
        "clone",
        "exit_group",
    ]
    assert up_to_exec(childs) == [*["rt_sigaction"] * 2, *END]


# --- the shim ------------------------------------------------------------------------------------------------

#: What the vfork child may call: in the caller's memory, beside its threads, only what is a system call and no more
AFTER_VFORK = {"syscall", "fcntl", "pwrite", "_exit", "__errno_location"}
#: What the rest of the shim calls: system calls too; the bookkeeping of the thread's own pidfd, the lock
#: against forks
IN_THE_CALLER = {"clone", "close", "fstat", "open", "fchdir", "chroot", "pipe2", "socketpair", "recv", "recvmsg"} | {
    "poll",
    "memcpy",
    "memset",
    "setsockopt",
    "sigaction",
    "mmap",
    "mount",
    "munmap",
    "umount2",
    "pthread_atfork",
    "__register_atfork",
    "pthread_key_create",
    "pthread_mutex_lock",
    "pthread_mutex_unlock",
    "pthread_once",
    "pthread_setspecific",
}


def plain(names: set[str]) -> set[str]:
    """Without what the C library calls its functions for files with 64-bit offsets, and what the linker makes."""
    return {name[:-2] if name.endswith("64") else name for name in names} - {"_GLOBAL_OFFSET_TABLE_", "__tls_get_addr"}


@pytest.fixture(scope="module")
def headers(tmp_path_factory) -> Path:
    """A folder with the generated joiner_image.h."""
    folder: Path = tmp_path_factory.mktemp("headers")
    BUILD["write_image_header"](folder)
    return folder


def compile_c(headers: Path, source: str, output_file: Path, *flags: str, cc: str | None = None) -> None:
    output(cc or compiler(), "-std=gnu11", f"-I{headers}", *flags, "-c", PACKAGE / source, "-o", output_file)


@requires_program("nm")
def test_the_shim_calls_nothing_but_what_is_listed_here(headers, tmp_path):
    compile_c(headers, "_c/shim.c", tmp_path / "shim.o", "-O2", "-fPIC", "-fno-stack-protector")
    assert plain(undefined(tmp_path / "shim.o")) <= AFTER_VFORK | IN_THE_CALLER


#: asm/ioctl.h of powerpc; mips, sparc and alpha have the same
POWERPC = """
#define _IOC_NONE 1U
#define _IOC_READ 2U
#define _IOC_WRITE 4U
#define _IOC(dir, type, nr, size) ((dir) << 29 | (size) << 16 | (type) << 8 | (nr))
"""
#: as written in Python, and as powerpc has it
REQUESTS = {
    abi.NS_GET_USERNS: 0x2000B701,
    abi.NS_GET_PID_IN_PIDNS: 0x4004B708,
    abi.NS_GET_ID: 0x4008B70D,
    abi.PIDFD_GET_INFO: 0xC040FF0B,
    nstypes.BY_NAME["user"].get: 0x2000FF09,
    abi.SIOCGSKNS: 0x894C,
}


@pytest.mark.parametrize(("macros", "is_powerpc"), [(POWERPC, True), ("#include <sys/ioctl.h>", False)])
def test_an_ioctl_has_the_number_that_the_machine_gives_it(tmp_path, macros, is_powerpc):
    function = re.search(r"static unsigned long native\(.*?\n}\n", (PACKAGE / "_c/calls.c").read_text(), re.DOTALL)
    assert function is not None
    main = 'int main(int n, char **of) { while (--n) printf("%lu\\n", native(strtoul(*++of, 0, 0))); return 0; }'
    source = tmp_path / "numbers.c"
    source.write_text(f"#include <stdio.h>\n#include <stdlib.h>\n{macros}\n{function[0]}\n{main}\n")
    output(compiler(), source, "-o", tmp_path / "numbers")
    found = [int(line) for line in output(tmp_path / "numbers", *map(str, REQUESTS)).split()]
    if not is_powerpc and platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("this machine may have its own numbers")
    assert found == list(REQUESTS.values() if is_powerpc else REQUESTS)


@requires_program("objdump")
@pytest.mark.parametrize("function", ["become_joiner", "become_holder"])
def test_the_vfork_child_calls_nothing_but_what_is_safe_in_the_callers_memory(headers, tmp_path, function):
    # a section for each function, so that the relocations of one section are what this function refers to
    flags = ("-O2", "-fPIC", "-fno-stack-protector", "-ffunction-sections")
    compile_c(headers, "_c/shim.c", tmp_path / "shim.o", *flags)
    symbols, ours = set(), [f".text.{function}"]
    for section in ours:  # grows: functions of this file that are not inlined
        found = referred_to(tmp_path / "shim.o", section)
        symbols |= found
        ours += sorted({symbol for symbol in found if symbol.startswith(".text.")} - set(ours))
    assert "syscall" in symbols
    data = {symbol for symbol in symbols if symbol.startswith((".rodata", ".data.rel.ro", ".LC", "no_environment"))}
    assert plain(symbols - data - set(ours)) <= AFTER_VFORK


def referred_to(object_file: Path, section: str) -> set[str]:
    listing = output("objdump", "-r", "-j", section, object_file)
    relocations = [line.split() for line in listing.splitlines() if re.match(r"[0-9a-f]{16} R_", line)]
    return {re.sub(r"[-+@].*", "", target) for _, _, target in relocations}


# --- compilers -----------------------------------------------------------------------------------------------

ANALYZED = [("_c/shim.c", ()), ("_c/joiner.c", ("-ffreestanding",)), ("_c/joiner.c", ("-DNSJOIN_HOSTED",))]


def has_analyzer() -> bool:
    done = subprocess.run(
        [compiler(), "-fanalyzer", "-E", "-x", "c", os.devnull], stdout=subprocess.DEVNULL, stderr=-3, check=False
    )
    return done.returncode == 0


@pytest.mark.parametrize(("source", "flags"), ANALYZED, ids=["shim", "joiner", "hosted joiner"])
@pytest.mark.parametrize("optimization", ["-O0", "-O2"])
def test_compiler_and_analyzer_give_no_warnings(headers, tmp_path, source, flags, optimization):
    if not has_analyzer():
        pytest.skip("this compiler has no -fanalyzer: it is gcc's")
    compile_c(headers, source, tmp_path / "object.o", *flags, *WARNINGS, "-fanalyzer", optimization)


@requires_program("musl-gcc")
@pytest.mark.parametrize(("source", "flags"), ANALYZED, ids=["shim", "joiner", "hosted joiner"])
def test_musl_gcc_gives_no_warnings(headers, tmp_path, source, flags):
    compile_c(headers, source, tmp_path / "object.o", *flags, *WARNINGS, "-O2", cc="musl-gcc")


def builds(tmp_path: Path) -> list[Path]:
    """The joiner built in every way that this machine can run."""
    made = []
    for name, keywords in (
        ("hosted", {"hosted": True}),
        ("musl", {"compiler": ["musl-gcc"]}),
        ("hosted-musl", {"compiler": ["musl-gcc"], "hosted": True}),
    ):
        BUILD["compile_joiner"](tmp_path / name, **keywords)
        made.append(tmp_path / name)
    return made


JOB = job_of(
    [b"/bin/sh"],
    [b"sh", b"-c", b"pwd; umask; echo $A; ls /proc/self/fd; exit 7"],
    [b"A=x", b"PATH=/usr/bin:/bin"],
    cwd=b"/usr",
    umask=0o27,
    new_session=True,
)


@requires_program("musl-gcc")
@pytest.mark.parametrize("which", [0, 1, 2], ids=["libc", "musl", "libc musl"])
def test_a_joiner_that_is_linked_with_libc_or_built_by_musl_gcc_does_the_same(tmp_path, which):
    done, report = carry_out([builds(tmp_path)[which]], JOB)
    assert (done.returncode, done.stdout) == (7, "/usr\n0027\nx\n0\n1\n2\n3\n")
    assert report[1:] == (job_.At.EXEC, 0, 0)


@requires_program("musl-gcc")
@pytest.mark.parametrize("which", [0, 1, 2], ids=["libc", "musl", "libc musl"])
def test_joiner_linked_with_libc_clones_into_a_pid_namespace(tmp_path, near, which, monkeypatch):
    import nsjoin

    path = builds(tmp_path)[which]
    monkeypatch.setattr(image, "_image", image._Image())
    monkeypatch.setattr(image, "_image_bytes", path.read_bytes)
    try:
        done = nsjoin.run_in(near.pid, ["sh", "-c", "echo $$; exit 7"], stdout=subprocess.PIPE)
        assert done.returncode == 7
        assert int(done.stdout) < 1000
        with pytest.raises(FileNotFoundError):
            nsjoin.run_in(near.pid, ["/no/such/program"])
    finally:
        os.close(image._image._fd)


@requires_program(CROSS)
def test_joiner_builds_for_aarch64_without_warnings(tmp_path):
    BUILD["compile_joiner"](tmp_path / "joiner", [CROSS], WARNINGS)
    program = (tmp_path / "joiner").read_bytes()
    assert struct.unpack_from("<H", program, 18) == (183,), "EM_AARCH64"
    assert len(program) < 16 * 1024
    assert not {PT_DYNAMIC, PT_INTERP} & set(segment_types(program))
    BUILD["compile_joiner"](tmp_path / "joiner.o", [CROSS], ["-c"])
    assert output(CROSS.replace("gcc", "nm"), "-u", tmp_path / "joiner.o") == ""


@requires_program(CROSS)
@requires_program("qemu-aarch64")
def test_the_joiner_for_aarch64_carries_out_a_plan(tmp_path):
    BUILD["compile_joiner"](tmp_path / "joiner", [CROSS])
    command = ["qemu-aarch64", tmp_path / "joiner"]
    # qemu's own descriptors are none of the plan's business: so none is closed
    job = job_of(
        JOB.program.files,
        [b"sh", b"-c", b"pwd; umask; echo $A; exit 7"],
        JOB.program.env,
        cwd=b"/usr",
        umask=0o27,
        close_fds=False,
    )
    done, report = carry_out(command, job)
    assert (done.returncode, done.stdout) == (7, "/usr\n0027\nx\n")
    assert report[1:] == (job_.At.EXEC, 0, 0)


@requires_program(CROSS)
@requires_program("qemu-aarch64")
def test_the_joiner_for_aarch64_joins_and_reports_what_fails(tmp_path, near):
    BUILD["compile_joiner"](tmp_path / "joiner", [CROSS])
    command = ["qemu-aarch64", tmp_path / "joiner"]
    if IS_ROOT:
        with open(f"/proc/{near.pid}/ns/uts") as uts:
            fds = [uts.fileno()]
            args = [b"readlink", b"/proc/self/ns/uts"]
            job = job_of([b"/bin/readlink"], args, [], joins=[Step(fds[0], 0x04000000)], close_fds=False)
            done, report = carry_out(command, job, fds, fds)
        assert done.stdout.strip() == os.readlink(f"/proc/{near.pid}/ns/uts")
        assert report[1:] == (job_.At.EXEC, 0, 0)
    for job, expected in (
        (job_of([b"/bin/true"], [b"true"], [], cwd=b"/no/such", close_fds=False), (job_.At.CWD, 0, 2)),
        (job_of([b"/no/such", b"/etc"], [b"true"], [], close_fds=False), (job_.At.EXEC, 0, 13)),
        (job_of([b"/bin/true"], [b"true"], [], stdio=(-1, 99, -1), close_fds=False), (job_.At.STDIO, 1, 9)),
    ):
        assert carry_out(command, job)[1][1:] == expected


# --- the layout ----------------------------------------------------------------------------------------------

#: A module imports only from the lines above its own; in a folder, only from the files to the left of "<" in its line.
FLOORS = """
exceptions
_kernel: abi capabilities nstypes < calls < procfs < thread
_engine: children data image raised warm < guard holder job transfer < answer stays wire < forked launch trip
_target: pins proc_directory < process < cgroups id_maps namespace < pids seen < survey target < accounts likeness netns_etc
_joining: identity order trust < ownership < reasons select < failures < start
_verbs: call command enter keywords < create spawn < run
discovery
aio: _waiting < _start < _program < _transport < __init__
futures
_cli: ls options < exec
__main__
__init__
"""  # noqa: E501
#: Run by setup.py, not part of the package at run time
NOT_IMPORTED = {"_build_setns"}


def module_name(file: Path) -> str:
    """Return ``_kernel/calls`` for that file; a folder is its ``__init__``."""
    return str(file.relative_to(PACKAGE).with_suffix(""))


SOURCES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py")) if file.stem not in NOT_IMPORTED}
C_SOURCES = sorted(PACKAGE.rglob("*.[ch]"))


def ranks() -> dict[str, tuple[int, int]]:
    """Return (rank of the folder, rank in the folder) of each module."""
    found = {}
    for floor, line in enumerate(FLOORS.split("\n")):
        folder, _, files = line.partition(":")
        if not files:
            found[folder] = (floor, 0)
            continue
        if "__init__" not in files:
            found[f"{folder}/__init__"] = (floor, 0)
        for rank, names in enumerate(files.split("<")):
            found.update({f"{folder}/{name}": (floor, rank) for name in names.split()})
    found.pop("")
    return found


RANK = ranks()


def module_of(parts: Sequence[str]) -> str | None:
    """Return the module of the package with this dotted name, or None if there is none: then it is a name in one."""
    name = "/".join(parts) or "__init__"
    return next((one for one in (name, f"{name}/__init__") if one in SOURCES or one == "_setns"), None)


class Import(NamedTuple):
    module: str
    #: Names that are taken from it; the local name where the module itself is imported
    names: tuple[str, ...]
    local: str | None


def imports_of(module: str) -> Iterator[Import]:
    """All imports of the package's own modules: those in functions and those under TYPE_CHECKING as well."""
    package = module.split("/")[:-1]
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top, *rest = alias.name.split(".")
                found = module_of(rest) if top == "nsjoin" else None
                if found is not None:
                    yield Import(found, (), alias.asname)
        elif isinstance(node, ast.ImportFrom):
            parts = node.module.split(".") if node.module else []
            if node.level:
                parts = [*package[: len(package) + 1 - node.level], *parts]
            elif parts[0] == "nsjoin":
                parts = parts[1:]
            else:
                continue
            for alias in node.names:
                found = module_of([*parts, alias.name])
                if found is not None:
                    yield Import(found, (), alias.asname or alias.name)
                else:
                    yield Import(str(module_of(parts)), (alias.name,), None)


def test_every_module_has_a_rank():
    assert set(SOURCES) == set(RANK), "give a new module its place in FLOORS"


@pytest.mark.parametrize("module", SOURCES)
def test_imports_go_downwards_only(module):
    lower = {one for one in RANK if RANK[one] < RANK[module]}
    upwards = {one.module for one in imports_of(module) if one.module not in {*lower, "_setns"}}
    if module.endswith("__init__"):
        upwards -= {module}  # a folder that takes what is in it
    assert upwards == set()


def test_only_calls_imports_the_compiled_module():
    used = {
        module: {name for one in imports_of(module) if one.module == "_setns" for name in one.names}
        for module in SOURCES
    }
    assert {module for module, names in used.items() if names - {"CData"}} == {"_kernel/calls"}


def private_names(module: str) -> set[str]:
    """Return the names with an underscore that a module uses of another one, imported or as an attribute."""
    imports = list(imports_of(module))
    found = {
        f"{one.module}:{name}" for one in imports if one.module != "_setns" for name in one.names if is_private(name)
    }
    modules = {one.local: one.module for one in imports if one.local is not None}
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used = modules.get(node.value.id)
            found.update([f"{used}:{node.attr}"] if used is not None and is_private(node.attr) else [])
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


#: "user -> module:name": still open, may only shrink
USED_PRIVATE_NAMES: frozenset[str] = frozenset(
    {
        "_cli/exec -> _cli/options:_TYPES",
        "_engine/holder -> _engine/image:_image",
        "_kernel/calls -> _kernel/abi:_CAP_SETGID",
        "_kernel/calls -> _kernel/abi:_CAP_SYS_ADMIN",
        "_kernel/calls -> _kernel/abi:_F_DUPFD_CLOEXEC",
        "_kernel/calls -> _kernel/abi:_NS_GET_ID",
        "_kernel/calls -> _kernel/abi:_NS_GET_NSTYPE",
        "_kernel/calls -> _kernel/abi:_NS_GET_OWNER_UID",
        "_kernel/calls -> _kernel/abi:_NS_GET_PARENT",
        "_kernel/calls -> _kernel/abi:_NS_GET_PID_FROM_PIDNS",
        "_kernel/calls -> _kernel/abi:_NS_GET_PID_IN_PIDNS",
        "_kernel/calls -> _kernel/abi:_NS_GET_USERNS",
        "_kernel/calls -> _kernel/abi:_NS_MNT_GET_NEXT",
        "_kernel/calls -> _kernel/abi:_NS_MNT_GET_PREV",
        "_kernel/calls -> _kernel/abi:_PIDFD_GET_INFO",
        "_kernel/calls -> _kernel/abi:_PIDFD_INFO_MASK_PID",
        "_kernel/calls -> _kernel/abi:_PIDFD_INFO_PID",
        "_kernel/calls -> _kernel/abi:_PIDFD_INFO_SIZE",
        "_kernel/calls -> _kernel/abi:_RESOLVE_CACHED",
        "_kernel/calls -> _kernel/abi:_RESOLVE_IN_ROOT",
        "_kernel/calls -> _kernel/abi:_RESOLVE_NO_MAGICLINKS",
        "_kernel/calls -> _kernel/abi:_RESOLVE_NO_SYMLINKS",
        "_kernel/calls -> _kernel/abi:_RESOLVE_NO_XDEV",
        "_kernel/calls -> _kernel/abi:_SIOCGSKNS",
        "_verbs/create -> _engine/holder:_Holder",
        "_verbs/create -> _engine/holder:_Wanted",
        "_verbs/create -> _joining/reasons:_error",
        "_verbs/enter -> _engine/trip:_STAY",
        "_verbs/enter -> _engine/trip:_enter",
        "_verbs/enter -> _engine/trip:_namespace_trip",
        "_verbs/enter -> _engine/trip:_own_error",
        "_verbs/enter -> _engine/trip:_trip",
        "aio/__init__ -> aio/_program:_Run",
        "aio/__init__ -> aio/_start:_launch",
        "aio/__init__ -> aio/_transport:_Transport",
        "aio/__init__ -> aio/_waiting:_until_readable",
        "aio/_program -> aio/_start:_Popen",
        "aio/_program -> aio/_waiting:_in_thread",
        "aio/_program -> aio/_waiting:_resolve",
        "aio/_start -> aio/_waiting:_before",
        "aio/_start -> aio/_waiting:_in_thread",
        "aio/_start -> aio/_waiting:_until_readable",
        "aio/_transport -> aio/_program:_Exit",
        "aio/_transport -> aio/_program:_Program",
        "aio/_transport -> aio/_start:_Popen",
        "aio/_transport -> aio/_waiting:_resolve",
    }
)


def test_no_module_uses_a_private_name_of_another():
    found = {f"{module} -> {name}" for module in SOURCES for name in private_names(module)}
    assert found - USED_PRIVATE_NAMES == set()


@pytest.mark.parametrize("module", SOURCES)
def test_python_files_and_functions_are_short(module):
    text = SOURCES[module].read_text()
    assert len(text.splitlines()) <= 350
    assert {name: lines for name, lines in function_lengths(text) if lines > 40} == {}


def function_lengths(text: str) -> Iterator[tuple[str, int]]:
    """Yield each function with its number of lines, those of its docstring not counted."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) is not None else 0
            yield node.name, node.end_lineno - node.lineno + 1 - docstring


@pytest.mark.parametrize("source", C_SOURCES, ids=lambda source: source.name)
def test_c_files_are_short(source):
    assert len(source.read_text().splitlines()) <= 400


@pytest.mark.parametrize("source", [*SOURCES.values(), *C_SOURCES], ids=lambda source: str(source.relative_to(PACKAGE)))
def test_nothing_waits_with_select(source):
    """select(2) has no room for descriptors from 1024 on, and a program may have that many open. poll(2) has."""
    found = re.findall(r"\bselect\.select\b|SelectSelector|\bFD_SET\b|\bp?select\(2\)|SYS_p?select", source.read_text())
    assert found == []


def header() -> str:
    text = (PACKAGE / "_c/shared.h").read_text()
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def test_the_compiled_module_has_exactly_the_names_of_the_header():
    functions = set(re.findall(r"\b(nsjoin_\w+)\([^)]*\);", header()))
    constants = set(re.findall(r"\bNSJOIN_\w+", header())) - {"NSJOIN_SHARED_H"}
    variables = set(re.findall(r"^extern .*?(\w+);$", header(), flags=re.MULTILINE))
    assert functions
    assert set(dir(calls_.lib)) == functions | constants | variables, "build again: pip install -e ."


def lib_names_in(source: Path) -> set[str]:
    """Return the names that a file looks up in ``lib``."""
    found = ast.walk(ast.parse(source.read_text()))
    attributes = [node for node in found if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "lib"}


def test_the_package_uses_only_names_that_the_compiled_module_has():
    """In place of a type checker, for which ``lib`` is Any."""
    used = {name for source in PACKAGE.rglob("*.py") for name in lib_names_in(source)}
    assert "nsjoin_launch" in used
    assert used - set(dir(calls_.lib)) == set()


def test_the_steps_are_those_of_the_header():
    steps = re.findall(r"NSJOIN_STEP_(\w+)", header())
    assert list(job_.At.__members__) == steps
    assert [int(step) for step in job_.At] == list(range(len(steps)))


# --- the contract with subprocess ----------------------------------------------------------------------------


def test_this_pythons_subprocess_hands_over_what_we_know():
    names = execute_child_arguments()
    assert {"args", "pass_fds", "errwrite", "start_new_session"} <= set(names)
    assert ("process_group" in names) == (sys.version_info >= (3, 11))
    assert names == execute_child_arguments(subprocess.Popen._execute_child)


def with_one_more(self, args, executable, preexec_fn, a_new_one):
    """What a future subprocess may have."""


def test_a_subprocess_with_other_arguments_is_refused_by_name():
    with pytest.raises(TypeError, match=r"does not know subprocess\.Popen\._execute_child of Python 3") as caught:
        execute_child_arguments(with_one_more)
    message = str(caught.value)
    assert "a_new_one" in message
    assert "pass_fds" in message
    assert "executable" not in message
    assert "a newer nsjoin may" in message
