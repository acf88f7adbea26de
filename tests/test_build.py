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
from typing import TYPE_CHECKING, Any

import pytest
from conftest import IS_ROOT, Running, requires_program, requires_root

from nsjoin._engine import image, launch
from nsjoin._engine import job as job_
from nsjoin._engine.job import Ids, Job, Step
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
        os.write(plan, pack(job, private, needed))
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
    job = Job([b"/bin/true"], [b"true"], [], close_fds=False, restore_signals=False)
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
        job = Job(
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
    job = Job([b"/bin/true"], [b"true"], [], joins=joins, fork=True, close_fds=False, ids=Ids(drop_groups=True))
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
#: What the rest of the shim calls: system calls too, those for ids in the child of a call, where there is one thread;
#: the bookkeeping of the thread's own pidfd, the lock against forks
IN_THE_CALLER = {"clone", "close", "fstat", "open", "fchdir", "chroot", "pipe2", "socketpair", "recv", "recvmsg"} | {
    "poll",
    "memcpy",
    "memset",
    "setsockopt",
    "sigaction",
    "setgroups",
    "setresgid",
    "setresuid",
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
    abi._NS_GET_USERNS: 0x2000B701,
    abi._NS_GET_PID_IN_PIDNS: 0x4004B708,
    abi._NS_GET_ID: 0x4008B70D,
    abi._PIDFD_GET_INFO: 0xC040FF0B,
    nstypes.BY_NAME["user"].get: 0x2000FF09,
    abi._SIOCGSKNS: 0x894C,
}


@pytest.mark.parametrize(("macros", "is_powerpc"), [(POWERPC, True), ("#include <sys/ioctl.h>", False)])
def test_an_ioctl_has_the_number_that_the_machine_gives_it(tmp_path, macros, is_powerpc):
    function = re.search(r"static unsigned long native\(.*?\n}\n", (PACKAGE / "_c/shim.c").read_text(), re.DOTALL)
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
def test_the_compiler_and_its_analyzer_have_nothing_to_say(headers, tmp_path, source, flags, optimization):
    if not has_analyzer():
        pytest.skip("this compiler has no -fanalyzer: it is gcc's")
    compile_c(headers, source, tmp_path / "object.o", *flags, *WARNINGS, "-fanalyzer", optimization)


@requires_program("musl-gcc")
@pytest.mark.parametrize(("source", "flags"), ANALYZED, ids=["shim", "joiner", "hosted joiner"])
def test_musl_gcc_has_nothing_to_say(headers, tmp_path, source, flags):
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


JOB = Job(
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
def test_such_a_joiner_bears_a_child_in_a_pid_namespace(tmp_path, near, which, monkeypatch):
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
def test_the_joiner_builds_for_aarch64_without_a_word(tmp_path):
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
    job = Job(
        JOB.files, [b"sh", b"-c", b"pwd; umask; echo $A; exit 7"], JOB.env, cwd=b"/usr", umask=0o27, close_fds=False
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
            job = Job([b"/bin/readlink"], args, [], joins=[Step(fds[0], 0x04000000)], close_fds=False)
            done, report = carry_out(command, job, fds, fds)
        assert done.stdout.strip() == os.readlink(f"/proc/{near.pid}/ns/uts")
        assert report[1:] == (job_.At.EXEC, 0, 0)
    for job, expected in (
        (Job([b"/bin/true"], [b"true"], [], cwd=b"/no/such", close_fds=False), (job_.At.CWD, 0, 2)),
        (Job([b"/no/such", b"/etc"], [b"true"], [], close_fds=False), (job_.At.EXEC, 0, 13)),
        (Job([b"/bin/true"], [b"true"], [], stdio=(-1, 99, -1), close_fds=False), (job_.At.STDIO, 1, 9)),
    ):
        assert carry_out(command, job)[1][1:] == expected


# --- the layout ----------------------------------------------------------------------------------------------

#: DESIGN.md, section 3: a module imports only what stands in a row above its own.
RANKS = (
    ("_nstype", "exceptions", "_setns", "_procfs"),
    ("_shim", "_plan", "_capabilities", "_data", "_raised"),
    ("_warm",),
    ("_process", "_pack", "_transfer", "_guard", "_pin"),
    ("_namespace", "_accounts", "_launch", "_idmap", "_stays", "_answer"),
    ("_translate",),
    ("_target", "_ownership", "_identity", "_cgroup", "_survey"),
    ("_reason", "_like", "_keywords", "_netns_etc", "_trust", "discovery"),
    ("_enter", "_start", "_unshare"),
    ("_spawn", "_call", "futures"),
    ("_run", "_create"),
    ("aio", "_ls", "_exec"),
    ("__main__",),
    ("__init__",),
)
RANK = {module: rank for rank, modules in enumerate(RANKS) for module in modules}
#: Run by setup.py, not part of the package at run time
NOT_IMPORTED = {"_build_setns"}
MODULES = sorted({path.stem for path in PACKAGE.glob("*.py")} - NOT_IMPORTED)


class Imports(ast.NodeVisitor):
    """Collects the package's own modules that a module imports, wherever in it, but for type checkers only."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.dump(node.test):
            self.generic_visit(node)
        for other in node.orelse:
            self.visit(other)

    def visit_Import(self, node: ast.Import) -> None:
        self.found.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("nsjoin."))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        if node.level == 0 and module.split(".")[0] != "nsjoin":
            return
        name = module if node.level else module.partition(".")[2]
        self.found.update([name] if name else [alias.name for alias in node.names])


def imports_of(module: str) -> set[str]:
    visitor = Imports()
    visitor.visit(ast.parse((PACKAGE / f"{module}.py").read_text()))
    return visitor.found


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards_only(module):
    assert module in RANK, "a new module: give it a rank in RANKS, and a place in DESIGN.md"
    for imported in imports_of(module):
        assert RANK[imported] < RANK[module], f"{module} imports {imported}, which is not below it"


def test_only_the_shim_imports_the_compiled_module():
    assert [module for module in MODULES if "_setns" in imports_of(module)] == ["_shim"]


@pytest.mark.parametrize("source", sorted(PACKAGE.glob("*.[pch]*")), ids=lambda source: source.name)
def test_nothing_waits_with_select(source):
    """select(2) has no room for descriptors from 1024 on, and a program may have that many open. poll(2) has."""
    found = re.findall(r"\bselect\.select\b|SelectSelector|\bFD_SET\b|\bp?select\(2\)|SYS_p?select", source.read_text())
    assert found == []


def test_every_rank_names_modules_that_exist():
    assert set(RANK) - {"_setns"} == set(MODULES)


def header() -> str:
    text = (PACKAGE / "_c/shared.h").read_text()
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def stub() -> ast.ClassDef:
    tree = ast.parse((PACKAGE / "_setns.pyi").read_text())
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "_Lib")


def test_the_stub_names_exactly_the_functions_and_constants_of_the_header():
    functions = {
        name: [re.split(r"[\s*]+", argument.strip())[-1] for argument in arguments.split(",")]
        for name, arguments in re.findall(r"\b(nsjoin_\w+)\(([^)]*)\);", header())
    }
    functions = {name: [] if arguments == ["void"] else arguments for name, arguments in functions.items()}
    constants = set(re.findall(r"\bNSJOIN_\w+", header())) - {"NSJOIN_SETNS_H"}
    variables = set(re.findall(r"^extern .*?(\w+);$", header(), flags=re.MULTILINE))
    assert {
        node.name: [argument.arg for argument in node.args.args[1:]]
        for node in stub().body
        if isinstance(node, ast.FunctionDef)
    } == functions
    fields = {node.target.id for node in stub().body if isinstance(node, ast.AnnAssign)}
    assert fields == constants | variables
    assert set(dir(calls_.lib)) == set(functions) | constants | variables, "build again: pip install -e ."


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
