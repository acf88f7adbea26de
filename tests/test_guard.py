"""The attacks on a caller who is in a foreign mount namespace: a planted module, codec, and name service library."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import pytest
from changed import in_child
from conftest import requires_namespaces_of_pidfds, requires_root

import nsjoin
from nsjoin import _guard, _shim
from nsjoin._nstype import BY_NAME

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
    assert "planted_module is not loaded yet, and to load it now would run a file of the foreign" in out
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
    assert "encodings.cp037 is not loaded yet" in out
    assert r"b'\xa7'" in out


def test_a_thread_that_was_born_inside_is_guarded_too_and_others_are_not(planted):
    body = """
    import importlib, threading
    def attempt(name):
        importlib.invalidate_caches()  # else what is listed of a folder may be from outside
        try:
            __import__(name)
        except ImportError as refused:
            print(name, "refused" if "foreign mount namespace" in str(refused) else refused)
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
    from nsjoin import _guard
    _guard._pin_name_service = lambda: None
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
def test_a_mount_namespace_is_not_taken_for_one_that_has_gone(start):
    """The kernel gives inode numbers of namespaces out again at once."""

    def use() -> None:
        first = start("mnt")
        with nsjoin.Namespace.from_pid(first.pid, "mnt") as namespace:
            known = namespace.id
        with nsjoin.enter(first.pid, "mnt"):
            assert _guard.is_guarded()
        assert (known.unique or known.ino) in _guard._foreign
        first.end()
        while first.process.poll() is None:
            os.sched_yield()
        for _ in range(200):  # until one of ours gets the number, if nobody else has got it before
            _shim.unshare(BY_NAME["mnt"].flag)
            if os.stat("/proc/thread-self/ns/mnt").st_ino == known.ino:
                break
        assert known.unique is None or not _guard.is_guarded()

    in_child(use)
