"""The attacks on a caller who is in a foreign mount namespace: a planted module, codec, and name service library."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import textwrap
import threading

import pytest
from changed import in_child
from conftest import requires_namespaces_of_pidfds, requires_root

import nsjoin
from nsjoin._engine import guard
from nsjoin._kernel import calls, procfs
from nsjoin._kernel.nstypes import BY_NAME

pytestmark = requires_root

EVIL = "open({marker!r}, 'w').close()\n"

#: Each attack: what the target plants (a shell script, FOLDER is a folder of the test's own), and what the caller does.
PRELUDE = """
import os, sys, traceback
sys.path.append(sys.argv[2])
import nsjoin
pid = int(sys.argv[1])
def in_enter(action):
    with nsjoin.enter(pid, "mnt"{allow}):
        return action()
def in_call(action):
    return nsjoin.call_in(pid, action, namespaces=("mnt",){allow})
"""


@pytest.fixture
def planted(start, tmp_path):
    """A target that sees, in a folder of our sys.path, a module, a codec and a library that are not there outside."""
    folder, evil = tmp_path / "site", tmp_path / "evil"
    folder.mkdir()
    evil.mkdir()
    marker = tmp_path / "marker"
    (evil / "planted_module.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    running = start("mnt", program=f"mount --bind {evil} {folder}; echo done; exec sleep infinity")
    assert running.process.stdout.readline() == "done\n"
    return running, folder, marker


def run(planted, body, *, allow=""):
    running, folder, _ = planted
    script = PRELUDE.format(allow=allow) + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-c", script, str(running.pid), str(folder)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("how", ["in_enter", "in_call"])
def test_a_planted_module_is_not_run(planted, how):
    body = f"""
    try:
        {how}(lambda: __import__("planted_module"))
    except ImportError as refused:
        print(refused)
    import json
    print("imports work outside")
    """
    out = run(planted, body)
    assert "importing planted_module here would run a file from the target's mount namespace" in out
    assert "imports work outside" in out
    assert not planted[2].exists()


@pytest.mark.parametrize("how", ["in_enter", "in_call"])
def test_with_allow_imports_the_attack_works(planted, how):
    body = f"""
    import importlib
    def action():
        importlib.invalidate_caches()  # the folder looks the same from outside
        import planted_module
    {how}(action)
    """
    run(planted, body, allow=", allow_imports=True")
    assert planted[2].exists()


@pytest.mark.parametrize("how", ["in_enter", "in_call"])
def test_what_is_loaded_or_built_in_stays_usable(planted, how):
    body = f"""
    def action():
        import json.decoder, os.path, itertools, _thread, time
        import faulthandler  # built in, and not loaded before
        return "host".encode("idna") + "x".encode("utf-8")
    import json.decoder
    print({how}(action))
    """
    assert "hostx" in run(planted, body)


@pytest.mark.parametrize("how", ["in_enter", "in_call"])
def test_a_planted_codec_is_not_run_and_the_real_one_is_there_afterwards(planted, how):
    body = f"""
    try:
        {how}(lambda: "x".encode("cp037"))
    except LookupError as refused:
        print(refused)
    print("x".encode("cp037"))
    """
    out = run(planted, body)
    assert "importing encodings.cp037 here would run a file" in out
    assert r"b'\xa7'" in out


def test_a_thread_that_was_born_inside_is_guarded_too_and_others_are_not(planted):
    body = """
    import importlib, threading
    def attempt(name):
        importlib.invalidate_caches()  # else what is listed of a folder may be from outside
        try:
            __import__(name)
        except ImportError as refused:
            print(name, "refused" if "the target's mount namespace" in str(refused) else refused)
        else:
            print(name, "loaded")
    outside = threading.Event()
    inside = threading.Event()
    def stranger():
        inside.wait()
        attempt("csv")
        outside.set()
    other = threading.Thread(target=stranger)
    other.start()
    with nsjoin.enter(pid, "mnt"):
        inside.set()
        outside.wait()
        born = threading.Thread(target=attempt, args=("planted_module",))
        born.start()
        born.join()
    other.join()
    late = threading.Thread(target=attempt, args=("colorsys",))
    late.start()
    late.join()
    """
    assert run(planted, body).splitlines() == ["csv loaded", "planted_module refused", "colorsys loaded"]
    assert not planted[2].exists()


# --- finders that come first ---------------------------------------------------------------------------------

EARLY = """
import importlib.machinery, importlib.util
importlib.invalidate_caches()  # loads what it needs itself
class Own:
    def __init__(self, path):
        self.path = path
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        with open(self.path) as file:
            exec(compile(file.read(), self.path, "exec"), module.__dict__)
class Early:
    @staticmethod
    def find_spec(name, path=None, target=None):
        importlib.invalidate_caches()
        found = importlib.machinery.PathFinder.find_spec(name, path, target)
        if found and {own_loader}:
            found.loader = Own(found.origin)
        return found
def come_first():
    sys.meta_path.insert(0, Early)
def come_alone():
    sys.meta_path = [Early, *sys.meta_path]
def load():
    {load}
def attempt(action):
    try:
        action()
    except ImportError as refused:
        print("refused")
"""
LOADS = {
    "by a statement": "import planted_module",
    "by a function": "importlib.import_module('planted_module')",
    "by its spec": "spec = Early.find_spec('planted_module'); m = importlib.util.module_from_spec(spec); "
    "spec.loader.exec_module(m)",
    "as a script": "import runpy; runpy.run_path(sys.argv[2] + '/planted_module.py')",
}


@pytest.mark.parametrize("come", ["come_first", "come_alone"])
@pytest.mark.parametrize("own_loader", [False, True])
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("how", ["in_enter", "in_call"])
def test_a_finder_that_is_put_first_later_does_not_win(planted, how, load, own_loader, come):
    """After the first join, and also by the thread that is inside."""
    body = EARLY.format(own_loader=own_loader, load=LOADS[load]) + textwrap.dedent(f"""
    import runpy
    {how}(lambda: None)
    attempt(lambda: {how}(lambda: ({come}(), load())))
    {come}()
    attempt(lambda: {how}(load))
    """)
    assert run(planted, body) == "refused\nrefused\n"
    assert not planted[2].exists()


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("how", ["in_enter", "in_call"])
def test_without_the_hook_such_a_finder_wins(planted, how, load):
    body = EARLY.format(own_loader=False, load=LOADS[load]) + textwrap.dedent(f"""
    import runpy
    from nsjoin._engine import guard
    guard._EVENTS.clear()
    {how}(lambda: (come_first(), load()))
    """)
    run(planted, body)
    assert planted[2].exists()


def test_a_finder_that_is_put_first_between_two_joins_is_not_even_asked(planted):
    body = """
    import importlib
    class Early:
        @staticmethod
        def find_spec(name, path=None, target=None):
            print("asked for", name)
    in_enter(lambda: None)
    sys.meta_path.insert(0, Early)
    def load():
        try:
            importlib.import_module("planted_module")
        except ImportError:
            print("refused")
    in_enter(load)
    """
    assert run(planted, body) == "refused\n"


# --- programs and libraries ----------------------------------------------------------------------------------

#: Each way to a program or library of the target's: FOLDER is a folder of its own, where PATH leads.
PROGRAMS = {
    "subprocess": "subprocess.run([FOLDER + '/program'])",
    "subprocess by its name": "subprocess.run(['program'])",
    "a shell": "subprocess.run(FOLDER + '/program', shell=True)",
    "os.system": "os.system(FOLDER + '/program')",
    "os.popen": "os.popen(FOLDER + '/program').read()",
    "os.spawnv": "os.spawnv(os.P_WAIT, FOLDER + '/program', ['program'])",
    "os.spawnlp": "os.spawnlp(os.P_WAIT, 'program', 'program')",
    "os.posix_spawn": "os.waitpid(os.posix_spawn(FOLDER + '/program', ['program'], {}), 0)",
    "os.posix_spawnp": "os.waitpid(os.posix_spawnp('program', ['program'], os.environ), 0)",
    "os.execv": "os.execv(FOLDER + '/program', ['program'])",
    "os.execvpe": "os.execvpe('program', ['program'], os.environ)",
    "pty.spawn": "pty.spawn([FOLDER + '/program'])",
    "asyncio": "asyncio.run(run_program())",
    "multiprocessing": "start_process()",
    "platform": "platform.processor()",
    "ctypes.util": "ctypes.util.find_library('nowhere')",
    "ctypes.CDLL": "ctypes.CDLL(FOLDER + '/evil.so')",
    "ctypes.cdll": "ctypes.cdll.LoadLibrary('evil.so')",
    "sqlite3": "load_extension()",
}
PROGRAMS_PRELUDE = """
import asyncio, ctypes, ctypes.util, platform, pty, sqlite3, subprocess
import multiprocessing.popen_spawn_posix, multiprocessing.resource_tracker
FOLDER = sys.argv[2]
async def run_program():
    await (await asyncio.create_subprocess_exec(FOLDER + "/program")).wait()
def start_process():
    multiprocessing.set_executable(FOLDER + "/program")
    multiprocessing.resource_tracker._resource_tracker._fd = os.open("/dev/null", os.O_WRONLY)  # as if it ran
    multiprocessing.resource_tracker._resource_tracker._check_alive = lambda: True
    process = multiprocessing.get_context("spawn").Process(target=print)
    process.start()
    process.join()
def load_extension():
    connection = sqlite3.connect(":memory:")
    connection.enable_load_extension(True)
    connection.load_extension(FOLDER + "/evil.so")
def action():
    try:
        {call}
    except OSError as failed:
        return str(failed)
"""


@pytest.fixture
def planted_programs(start, tmp_path):
    """A target that sees programs and a library in a folder of ours that is empty outside, and first in PATH."""
    folder, evil, marker, source = (tmp_path / name for name in ("bin", "evil", "marker", "evil.c"))
    folder.mkdir()
    evil.mkdir()
    for name in ("program", "uname", "gcc", "cc", "ld"):
        (evil / name).write_text(f"#!/bin/sh\n: > {marker}\n")
        (evil / name).chmod(0o755)
    source.write_text(NSS_SOURCE)
    define = f'-DMARKER="{marker}"'
    subprocess.run(["gcc", "-shared", "-fPIC", define, "-o", str(evil / "evil.so"), str(source)], check=True)
    running = start("mnt", program=f"mount --bind {evil} {folder}; echo done; exec sleep infinity")
    assert running.process.stdout.readline() == "done\n"
    return running, folder, marker


def start_inside(planted_programs, way, how, allow=""):
    """Run the action that starts a program: it prints what that returned, or may end the process."""
    running, folder, _ = planted_programs
    script = PRELUDE.format(allow=allow) + PROGRAMS_PRELUDE.format(call=PROGRAMS[way]) + f"print({how}(action))\n"
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "LD_LIBRARY_PATH": str(folder)}
    command = [sys.executable, "-c", script, str(running.pid), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def is_known_here(way):
    """Reasons to skip: what this interpreter has not, and of which it tells nobody anything."""
    if way.startswith("os.posix_spawn") and not hasattr(os, "posix_spawn"):
        pytest.skip("PyPy has no posix_spawn")
    if way == "sqlite3" and not hasattr(sqlite3.Connection, "enable_load_extension"):
        pytest.skip("this sqlite3 loads no extensions")
    if way == "sqlite3" and (sys.version_info < (3, 10) or sys.implementation.name == "pypy"):
        pytest.skip("this Python has no event for an extension of sqlite3")


@pytest.mark.parametrize("how", ["in_enter", "in_call"])
@pytest.mark.parametrize("way", PROGRAMS)
def test_no_program_or_library_of_the_targets_is_started(planted_programs, way, how):
    is_known_here(way)
    done = start_inside(planted_programs, way, how)
    assert not planted_programs[2].exists()
    assert done.returncode == 0, done.stderr
    if way not in ("platform", "ctypes.util", "os.spawnv", "os.spawnlp"):  # these say nothing, or 127
        assert "of this thread: Operation not permitted: " in done.stdout
        assert "would run" in done.stdout
        assert "or pass allow_imports=True" in done.stdout


@pytest.mark.parametrize("way", PROGRAMS)
def test_with_allow_imports_each_of_these_is_started(planted_programs, way):
    is_known_here(way)
    start_inside(planted_programs, way, "in_enter", ", allow_imports=True")
    assert planted_programs[2].exists()


def test_a_library_that_is_loaded_stays_usable_by_its_name(planted):
    body = """
    import ctypes
    def action():
        return ctypes.CDLL("libc.so.6").getpid() + ctypes.CDLL(None).getpid()
    assert in_enter(action) == 2 * os.getpid()
    """
    run(planted, body)


def test_what_nsjoin_starts_is_started_inside_too_and_others_hear_of_it(planted):
    body = """
    import asyncio
    import nsjoin.aio
    heard = []
    sys.addaudithook(lambda event, args: heard.append(args[0]) if event == "subprocess.Popen" else None)
    def action():
        nsjoin.run_in(pid, ["true"], check=True, namespaces=("mnt",))
        nsjoin.spawn_in(pid, ["/bin/true"], namespaces=("mnt",)).wait()
        asyncio.run(nsjoin.aio.run_in(pid, ["true"], check=True, namespaces=("mnt",)))
        return nsjoin.call_in(pid, os.getuid, namespaces=("mnt",)), len(heard)
    with nsjoin.enter(pid, "mnt"):
        print(action())
    print(nsjoin.call_in(pid, action, namespaces=("mnt",)))
    """
    assert run(planted, body) == "(0, 3)\n(0, 6)\n"


def test_threads_outside_start_programs_and_load_modules_meanwhile(planted):
    body = """
    import ctypes, subprocess, threading
    def action():
        subprocess.run(["true"], check=True)
        os.system("true")
        ctypes.CDLL("libm.so.6")
        import csv
        print("done")
    with nsjoin.enter(pid, "mnt"):
        go = threading.Event()
    go = threading.Event()
    other = threading.Thread(target=lambda: (go.wait(), action()))
    other.start()
    with nsjoin.enter(pid, "mnt"):
        go.set()
        other.join()
    """
    assert run(planted, body) == "done\n"


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="PyPy finalizes nothing at its end")
def test_the_hook_is_no_hindrance_while_the_interpreter_ends(planted):
    body = """
    import subprocess
    in_enter(lambda: None)
    class Late:
        def __del__(self, system=os.system, audit=sys.audit, write=os.write, run=exec, code=compile("1", "/x", "exec")):
            system("true")
            run(code)
            audit("subprocess.Popen", "true", ["true"], None, None)
            write(1, b"done")
    os.late = Late()  # a module that is emptied after ours
    """
    assert run(planted, body) == "done"


# --- the name service ----------------------------------------------------------------------------------------

NSS_SOURCE = """
#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void attack(void) { close(open(MARKER, O_CREAT | O_WRONLY, 0600)); }
"""


@pytest.fixture
def planted_nss(start, tmp_path):
    """A target whose nsswitch.conf names a library that is there only inside, and first in the library path."""
    marker, source = tmp_path / "marker", tmp_path / "evil.c"
    folder, evil = tmp_path / "lib", tmp_path / "evil"
    folder.mkdir()
    evil.mkdir()
    source.write_text(NSS_SOURCE)
    library = evil / "libnss_evil.so.2"
    define = f'-DMARKER="{marker}"'
    subprocess.run(["gcc", "-shared", "-fPIC", define, "-o", str(library), str(source)], check=True)
    (tmp_path / "nsswitch.conf").write_text("passwd: evil files\ngroup: evil files\nhosts: evil files\n")
    program = (
        f"mount --bind {evil} {folder}; mount --bind {tmp_path}/nsswitch.conf /etc/nsswitch.conf; "
        "echo done; exec sleep infinity"
    )
    running = start("mnt", program=program)
    assert running.process.stdout.readline() == "done\n"
    return running, folder, marker


LOOKUPS = {
    "passwd": "__import__('pwd').getpwuid(54321)",
    "group": "__import__('grp').getgrgid(54321)",
    "hosts": "__import__('socket').getaddrinfo('localhost', 1)",
}


def look_up(planted_nss, body):
    running, folder, _ = planted_nss
    environment = {"LD_LIBRARY_PATH": str(folder), "PATH": "/usr/bin:/bin"}
    script = PRELUDE.format(allow="") + "import pwd, grp, socket\n" + textwrap.dedent(body)
    command = [sys.executable, "-c", script, str(running.pid), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", ["in_enter", "in_call"])
@pytest.mark.parametrize("database", LOOKUPS)
def test_a_planted_name_service_library_is_not_run(planted_nss, database, how):
    body = f"""
    def action():
        try:
            {LOOKUPS[database]}
        except (KeyError, OSError):  # gaierror: there may be no /etc/hosts
            pass
    {how}(action)
    """
    look_up(planted_nss, body)
    assert not planted_nss[2].exists()


def test_without_the_pin_that_attack_works(planted_nss):
    body = """
    from nsjoin._engine import warm
    warm._pin_name_service = lambda libc: None
    def action():
        try:
            pwd.getpwuid(54321)
        except KeyError:
            pass
    in_enter(action)
    """
    look_up(planted_nss, body)
    assert planted_nss[2].exists()


def test_nothing_is_changed_before_the_first_foreign_mount_namespace(target):
    script = f"""
import sys
before = list(sys.meta_path)
import nsjoin
with nsjoin.enter({target.pid}, "net"):
    import csv
assert sys.meta_path == before
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert threading.active_count() == 1


@requires_namespaces_of_pidfds
@requires_root
def test_new_mount_namespace_is_not_mistaken_for_one_that_is_gone(start):
    """The kernel gives inode numbers of namespaces out again at once."""

    def use() -> None:
        first = start("mnt")
        with nsjoin.Namespace.from_pid(first.pid, "mnt") as namespace:
            known = namespace.id
        with nsjoin.enter(first.pid, "mnt"):
            assert guard.is_guarded()
        assert (known.unique or known.ino) in procfs._foreign
        first.end()
        while first.process.poll() is None:
            os.sched_yield()
        for _ in range(200):  # until one of ours gets the number, if nobody else has got it before
            calls.unshare(BY_NAME["mnt"].flag)
            if os.stat("/proc/thread-self/ns/mnt").st_ino == known.ino:
                break
        assert known.unique is None or not guard.is_guarded()

    in_child(use)
