"""What the C library loads and reads by path when it first needs it: as root, in a container of an ordinary user.

The target has its own file at each of these paths. Libraries are real ones, which leave a file behind where they run.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import requires_program, requires_root

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    requires_root,
    requires_program("gcc"),
    pytest.mark.skipif(
        not os.confstr("CS_GNU_LIBC_VERSION"), reason="of the C libraries only glibc loads others by itself"
    ),
]

PRELUDE = """
import os, sys
import nsjoin
pid = int(sys.argv[1])
def in_enter(action):
    with nsjoin.enter(pid, "mnt"):
        return action()
def in_prepared(action, *, kept=[]):
    if not kept:
        kept.append(nsjoin.enter([nsjoin.Namespace.from_pid(pid, "mnt")]))
    with kept[0]:
        return action()
def in_call(action):
    return nsjoin.call_in(pid, action, namespaces=("mnt",))
def in_pool(action, *, kept=[]):
    if not kept:
        kept.append(nsjoin.NamespaceExecutor(pid, "mnt", max_workers=1))
    return kept[0].submit(action).result()
"""
WAYS = ["in_enter", "in_prepared", "in_call", "in_pool"]

SOURCE = """
#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void attack(void) { close(open(MARKER, O_CREAT | O_WRONLY, 0600)); }
"""


class Container:
    """An ordinary user's container, and the caller who goes there as root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.marker = folder / "marker"
        self._process: subprocess.Popen[str] | None = None

    def library(self) -> Path:
        """A library that leaves the marker, as whoever loads it."""
        source, library = self.folder / "evil.c", self.folder / "evil.so"
        source.write_text(SOURCE)
        command = ["gcc", "-shared", "-fPIC", f'-DMARKER="{self.marker}"', "-o", str(library), str(source)]
        subprocess.run(command, check=True)
        return library

    def start(self, program: str) -> None:
        """``program``: what its shell does before, as root of its user namespace."""
        become = ["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups"]
        inside = ["unshare", "--map-root-user", "--mount", "sh", "-ec", f"{program}; echo done; exec sleep infinity"]
        self._process = subprocess.Popen([*become, *inside], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "done\n"

    def visit(self, body: str, **environment: str) -> tuple[int, str]:
        """Run ``body`` after PRELUDE, in a process of its own: its exit status, and what it prints."""
        assert self._process is not None
        script = PRELUDE + textwrap.dedent(body)
        done = subprocess.run(
            [sys.executable, "-c", script, str(self._process.pid)],
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            env={"PATH": "/usr/bin:/bin", **environment},
        )
        return done.returncode, done.stdout

    def last_words(self) -> str:
        """What it prints at its end, which it is asked for."""
        assert self._process is not None
        self._process.terminate()
        return self._process.communicate()[0]

    def end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            self._process.communicate()


@pytest.fixture
def container() -> Iterator[Container]:
    with tempfile.TemporaryDirectory(prefix="nsjoin-test-") as path:  # pytest's folders are private
        os.chmod(path, 0o755)
        made = Container(Path(path))
        try:
            yield made
        finally:
            made.end()


def path_of_library(name: str) -> str:
    """Where the dynamic linker finds it."""
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    found = re.search(rf"^\s*{re.escape(name)} .*=> (\S+)$", listed, re.MULTILINE)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return os.path.realpath(found[1])


# --- the unwinder -------------------------------------------------------------------------------------------

#: How a thread that is inside comes to need the unwinder.
UNWINDERS = {
    "a daemon thread that is inside while the interpreter ends": """
    import threading
    inside = threading.Event()
    def stay():
        with nsjoin.enter(pid, "mnt"):
            inside.set()
            while True:
                os.sched_yield()
    thread = threading.Thread(target=stay, daemon=True)
    thread.start()
    inside.wait()
    class Slow:
        def __del__(self, exists=os.path.exists, give_way=os.sched_yield, path=f"/proc/self/task/{thread.native_id}"):
            while exists(path):
                give_way()
    slow = Slow()
    """,
    "pthread_exit": """
    import ctypes, threading
    libc = ctypes.CDLL(None)
    inside = threading.Event()
    def stay():
        nsjoin.enter(pid, "mnt").__enter__()
        inside.set()
        libc.pthread_exit(None)
    thread = threading.Thread(target=stay, daemon=True)
    thread.start()
    inside.wait()
    while os.path.exists(f"/proc/self/task/{thread.native_id}"):
        os.sched_yield()
    os._exit(0)
    """,
    "backtrace": """
    import ctypes
    libc = ctypes.CDLL(None)
    in_enter(lambda: libc.backtrace((ctypes.c_void_p * 9)(), 9))
    """,
}
ends_daemon_threads = pytest.mark.skipif(
    sys.version_info >= (3, 14) or sys.implementation.name != "cpython",
    reason="only CPython before 3.14 ends daemon threads by pthread_exit",
)
HOW_UNWOUND = [pytest.param(name, marks=[ends_daemon_threads] if "daemon" in name else []) for name in UNWINDERS]


@pytest.fixture
def evil_unwinder(container: Container) -> Container:
    """Its libgcc_s.so.1 is another one."""
    container.start(f"mount --bind {container.library()} {path_of_library('libgcc_s.so.1')}")
    return container


@pytest.mark.parametrize("how", HOW_UNWOUND)
def test_the_targets_unwinder_is_not_loaded(evil_unwinder: Container, how: str) -> None:
    assert evil_unwinder.visit(UNWINDERS[how]) == (0, "")
    assert not evil_unwinder.marker.exists()


has_no_unwinder = pytest.mark.skipif(
    sys.implementation.name == "pypy", reason="PyPy is linked with the unwinder, and has always loaded it"
)


@has_no_unwinder
@pytest.mark.parametrize("how", HOW_UNWOUND)
def test_without_preloading_the_targets_unwinder_runs_as_root(evil_unwinder: Container, how: str) -> None:
    weaken = "from nsjoin._engine import warm\nwarm._load_what_libc_loads_lazily = lambda libc: None\n"
    evil_unwinder.visit(weaken + textwrap.dedent(UNWINDERS[how]))
    assert evil_unwinder.marker.stat().st_uid == 0


def test_a_thread_that_ends_inside_an_image_without_the_unwinder_does_not_abort_the_process(
    container: Container,
) -> None:
    container.start(f"mount --bind /dev/null {path_of_library('libgcc_s.so.1')}")
    assert container.visit(UNWINDERS["pthread_exit"]) == (0, "")


@has_no_unwinder
def test_without_an_unwinder_of_our_own_nothing_is_joined(container: Container) -> None:
    container.start("true")
    body = f"""
    import ctypes
    nsjoin._kernel.calls.unshare(0x20000)  # CLONE_NEWNS
    nsjoin._kernel.calls.lib.nsjoin_mount(b"", b"/", b"", 0x44000)  # MS_REC | MS_PRIVATE
    ours = {path_of_library("libgcc_s.so.1").encode()!r}
    nsjoin._kernel.calls.lib.nsjoin_mount(b"/dev/null", ours, b"", 0x1000)  # MS_BIND
    before = os.readlink("/proc/thread-self/ns/mnt")
    try:
        in_enter(lambda: print("inside"))
    except nsjoin.JoinError as refused:
        print(refused)
    assert os.readlink("/proc/thread-self/ns/mnt") == before
    """
    status, printed = container.visit(body)
    assert status == 0
    assert printed.startswith(
        "[Errno 2] dlopen(mnt) of libgcc_s.so.1: No such file or directory: it cannot be loaded ("
    )
    assert printed.endswith("install it (Debian: libgcc-s1, Fedora: libgcc)\n")


IDN = """
import socket
AI_IDN = 0x40
def look_up():
    try:
        socket.getaddrinfo("b\\u00fccher.invalid".encode(), 1, flags=AI_IDN | socket.AI_NUMERICHOST)
    except OSError:
        pass
"""


@pytest.mark.parametrize("is_weakened", [False, True])
def test_the_targets_library_for_host_names_is_loaded_only_if_ours_was_not_before(
    container: Container, is_weakened: bool
) -> None:
    container.start(f"mount --bind {container.library()} {path_of_library('libidn2.so.0')}")
    weaken = "from nsjoin._engine import warm\nwarm._load_what_libc_loads_lazily = lambda libc: None\n"
    change = weaken if is_weakened else ""
    body = f"{change}import locale\nlocale.setlocale(locale.LC_ALL, 'C.UTF-8')\n{IDN}in_enter(look_up)\n"
    assert container.visit(body) == (0, "")
    assert container.marker.exists() == is_weakened


# --- messages and character sets ----------------------------------------------------------------------------


def catalogue(charset: str) -> bytes:
    """A libc.mo, as msgfmt(1) makes them, with one translation."""
    messages = {b"": f"Content-Type: text/plain; charset={charset}\n".encode(), b"No such file or directory": b"evil"}
    n, strings, tables = len(messages), b"", [b"", b""]
    for index, texts in enumerate((messages, messages.values())):
        for text in texts:
            tables[index] += len(text).to_bytes(4, "little") + (28 + 16 * n + len(strings)).to_bytes(4, "little")
            strings += text + b"\0"
    head = (0x950412DE, 0, n, 28, 28 + 8 * n, 0, 0)
    return b"".join(number.to_bytes(4, "little") for number in head) + tables[0] + tables[1] + strings


@pytest.fixture
def evil_messages(container: Container) -> Container:
    """It translates the C library's messages, in a character set whose library is another one."""
    modules = [*Path("/usr/lib").glob("*/gconv/ISO8859-2.so"), *Path("/usr").glob("lib*/gconv/ISO8859-2.so")]
    if not modules:
        pytest.skip("glibc's character sets are not installed")
    (container.folder / "libc.mo").write_bytes(catalogue("ISO-8859-2"))
    place = "/usr/share/locale/C.UTF-8/LC_MESSAGES"
    container.start(
        f"mount -t tmpfs tmpfs /usr/share/locale; mkdir -p {place}; cp {container.folder}/libc.mo {place}; "
        f"mount --bind {container.library()} {modules[0].resolve()}"
    )
    return container


MESSAGES = """
import locale
def fail():
    try:
        os.stat("/nowhere")
    except OSError as failed:
        return failed.strerror
assert {how}(fail) == "No such file or directory"
locale.setlocale(locale.LC_ALL, "C.UTF-8")
print({how}(fail))
if {how} is in_pool:
    in_pool.__kwdefaults__["kept"][0].shutdown()
"""


@pytest.mark.parametrize("how", WAYS)
def test_an_error_message_inside_reads_no_translation_of_the_targets(evil_messages: Container, how: str) -> None:
    """Also where setlocale was called after the first join."""
    assert evil_messages.visit(MESSAGES.format(how=how)) == (0, "No such file or directory\n")
    assert not evil_messages.marker.exists()


@pytest.mark.parametrize("how", WAYS)
def test_without_preloading_the_targets_character_set_runs_as_root(evil_messages: Container, how: str) -> None:
    weaken = "from nsjoin._engine import warm\nwarm.load_messages = lambda: None\n"
    evil_messages.visit(weaken + MESSAGES.format(how=how))
    assert evil_messages.marker.stat().st_uid == 0


# --- the time zone ------------------------------------------------------------------------------------------

ZONES = Path("/usr/share/zoneinfo")
requires_zones = pytest.mark.skipif(not (ZONES / "Asia/Tokyo").exists(), reason="tzdata is not installed")

#: Whatever has glibc look at the time zone's file anew.
TIMES = {
    "mktime": "time.mktime((2020, 1, 1, 0, 0, 0, 0, 1, 0))",
    "tzset": "time.tzset()",
    "strftime": "time.strftime('%Z')",
}

TIME = """
import time
before = time.mktime((2020, 1, 1, 0, 0, 0, 0, 1, 0)), time.tzname, time.localtime(0)[:]
{how}(lambda: {call})
assert before == (time.mktime((2020, 1, 1, 0, 0, 0, 0, 1, 0)), time.tzname, time.localtime(0)[:])
assert "TZ" not in os.environ
print("the same")
"""


@pytest.fixture
def other_zone(container: Container) -> Container:
    """Its /etc/localtime is another zone's."""
    (container.folder / "zone").write_bytes((ZONES / "Asia/Tokyo").read_bytes())
    container.start(f"mount --bind {container.folder}/zone {os.path.realpath('/etc/localtime')}")
    return container


@requires_zones
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("call", TIMES)
def test_our_time_zone_stays_ours_inside_and_afterwards(other_zone: Container, call: str, how: str) -> None:
    body = TIME.format(how=how, call=TIMES[call])
    assert other_zone.visit(body) == (0, "the same\n")


NO_PIN = "from nsjoin._engine import warm\nwarm.time_zone.pin = warm.time_zone.unpin = lambda: None\n"


@requires_zones
def test_without_a_pin_the_targets_time_zone_becomes_that_of_the_process(other_zone: Container) -> None:
    body = """
    import time
    in_enter(time.tzset)
    print(time.tzname[0])
    """
    assert other_zone.visit(NO_PIN + textwrap.dedent(body)) == (0, "JST\n")


@pytest.fixture
def fifo(container: Container) -> Container:
    """Its /etc/localtime is a FIFO that nobody writes to."""
    container.start(
        f"mount -t tmpfs tmpfs {container.folder}; mkfifo {container.folder}/fifo; "
        f"mount --bind {container.folder}/fifo {os.path.realpath('/etc/localtime')}"
    )
    return container


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("call", TIMES)
def test_fifo_as_the_targets_time_zone_does_not_block(fifo: Container, call: str, how: str) -> None:
    assert fifo.visit(TIME.format(how=how, call=TIMES[call])) == (0, "the same\n")


def test_without_a_pin_a_fifo_stops_the_whole_process(fifo: Container) -> None:
    body = """
    import signal, time
    signal.alarm(1)  # its default action: a handler of Python's would never be run
    in_enter(time.tzset)
    """
    assert fifo.visit(NO_PIN + textwrap.dedent(body)) == (-signal.SIGALRM, "")


def test_the_pin_of_the_time_zone_is_seen_neither_in_os_environ_nor_by_programs_nor_afterwards(
    container: Container,
) -> None:
    container.start("true")
    body = """
    import ctypes, subprocess
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    def look():
        os.environ["LATER"] = "1"  # setenv(3) makes a new environ(7)
        program = nsjoin.run_in(os.getpid(), ["env"], namespaces=("uts",), capture_output=True, text=True)
        return getenv(b"TZ"), "TZ" in os.environ, "TZ=" in program.stdout, "LATER=1" in program.stdout
    for _ in range(3):
        print(*in_enter(look), getenv(b"TZ"), getenv(b"LATER"), "TZ=" in subprocess.check_output(["env"], text=True))
        del os.environ["LATER"]
    """
    assert container.visit(body) == (0, "b':/etc/localtime' False False True None b'1' False\n" * 3)


def test_a_time_zone_that_the_caller_has_set_is_left_alone(container: Container) -> None:
    container.start("true")
    body = """
    from nsjoin._kernel import calls
    from nsjoin._engine import warm
    def look():
        entries = map(calls.ffi.string, warm.environment())
        return [entry for entry in entries if entry.startswith(b"TZ=")]
    print(in_enter(look), look())
    """
    assert container.visit(body, TZ="Asia/Tokyo") == (0, "[b'TZ=Asia/Tokyo'] [b'TZ=Asia/Tokyo']\n")


def test_the_child_of_a_fork_does_not_wait_for_what_another_thread_was_doing(container: Container) -> None:
    container.start("true")
    body = """
    import signal, threading
    from nsjoin._engine import guard
    from nsjoin._engine import warm
    locked, end = threading.Event(), threading.Event()
    def hold():
        with guard._lock, warm.time_zone._lock:
            locked.set()
            end.wait()
    holder = threading.Thread(target=hold)
    holder.start()
    locked.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        in_enter(lambda: None)
        os._exit(0)
    end.set()
    holder.join()
    print(os.waitpid(child, 0)[1])
    """
    assert container.visit(body) == (0, "0\n")


# --- the name service ---------------------------------------------------------------------------------------

#: What listens where the C library looks for nscd(8), and tells how often it was asked.
DAEMON = """
import signal, socket, sys
def end(*_):
    print(asked, flush=True)
    sys.exit()
asked = 0
listening = socket.socket(socket.AF_UNIX)
listening.bind("/run/nscd/socket")
listening.listen()
signal.signal(signal.SIGTERM, end)
print("done", flush=True)
while True:
    listening.accept()[0].close()
    asked += 1
"""


@pytest.mark.parametrize("is_weakened", [False, True])
def test_the_targets_name_service_daemon_is_asked_only_without_the_pin(container: Container, is_weakened: bool) -> None:
    daemon = f"exec /usr/bin/python3 -c {shlex.quote(DAEMON)}"
    container.start(f"mount -t tmpfs tmpfs /run; mkdir /run/nscd; {daemon}")
    change = "from nsjoin._engine import warm\nwarm._pin_name_service = lambda libc: None\n" if is_weakened else ""
    body = f"""{change}
import grp, pwd, socket
def look_up():
    for function, *arguments in ((pwd.getpwuid, 54321), (grp.getgrgid, 54321), (socket.getaddrinfo, "localhost", 1)):
        try:
            function(*arguments)
        except (KeyError, socket.gaierror):  # without /etc/hosts
            pass
    os.getgrouplist("root", 0)
in_enter(look_up)
"""
    assert container.visit(body) == (0, "")
    assert (container.last_words() != "0\n") == is_weakened


# --- what is not held ---------------------------------------------------------------------------------------

#: Each reads a file of the C library's own, while the interpreter's lock is held (getpwall) or not.
READS = {
    "/etc/passwd": "__import__('pwd').getpwall()",
    "/etc/group": "os.getgrouplist('nobody', 1)",
    "/etc/hosts": "__import__('socket').getaddrinfo('name.invalid', 1)",
}


def start_with_fifo(container: Container, path: str) -> None:
    folder, name = container.folder, os.path.basename(path)  # in a copy of /etc, where that file may be missing
    container.start(
        f"mount -t tmpfs tmpfs {folder}; cp -r /etc/. {folder} 2>/dev/null || true; "
        f"rm -f {folder}/{name}; mkfifo {folder}/{name}; mount --bind {folder} /etc"
    )


@pytest.mark.parametrize("path", READS)
def test_a_fifo_that_the_c_library_reads_holds_up_enter_and_of_call_in_only_the_child(
    container: Container, path: str
) -> None:
    """So SECURITY.md says: Ctrl-C does not help while C code waits for the file."""
    start_with_fifo(container, path)
    modules = "import grp, pwd, signal, socket\n"
    inside = f"signal.alarm(1)\nin_enter(lambda: {READS[path]})\n"
    assert container.visit(modules + inside) == (-signal.SIGALRM, "")
    called = f"""
try:
    nsjoin.call_in(pid, lambda: {READS[path]}, namespaces=("mnt",), timeout=0.5)
except TimeoutError as expired:
    print("killed" in str(expired))
"""
    assert container.visit(modules + called) == (0, "True\n")


def test_a_file_of_the_targets_can_be_read_from_outside(container: Container) -> None:
    """So SECURITY.md says, and O_NONBLOCK is what a FIFO does not hold up."""
    start_with_fifo(container, "/etc/passwd")
    body = """
    with nsjoin.Target.from_pid(pid) as target:
        fd = os.open(f"/proc/{target.pid}/root/etc/passwd", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        print(os.read(fd, 100), target.is_alive())
    """
    assert container.visit(body) == (0, "b'' True\n")


def test_setlocale_inside_reads_the_targets_locales(container: Container) -> None:
    """So SECURITY.md says to call it before: no event tells of it."""
    if not os.path.isdir("/usr/lib/locale/C.utf8"):
        pytest.skip("glibc has its C.UTF-8 built in here, or elsewhere")
    container.start(
        f"mount -t tmpfs tmpfs {container.folder}; cp -r /usr/lib/locale/C.utf8 {container.folder}/xx_XX; "
        f"mount --bind {container.folder} /usr/lib/locale"
    )
    body = """
    import locale
    try:
        locale.setlocale(locale.LC_ALL, "xx_YY")
    except locale.Error:
        print("not there")
    print(in_enter(lambda: locale.setlocale(locale.LC_ALL, "xx_XX")))
    """
    assert container.visit(body) == (0, "not there\nxx_XX\n")


def test_workers_that_have_ended_inside_leave_no_time_zone_pinned(container: Container) -> None:
    container.start("true")
    body = """
    import ctypes, gc
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    with nsjoin.Namespace(pid, "mnt") as mnt, nsjoin.NamespaceExecutor(mnt) as pool:
        print(pool.submit(getenv, b"TZ").result())
    gc.collect()  # PyPy's ends what a thread has held
    print(getenv(b"TZ"))
    """
    assert container.visit(body) == (0, "b':/etc/localtime'\nNone\n")
