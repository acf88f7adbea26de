from __future__ import annotations

import asyncio
import ctypes
import http.client
import http.server
import importlib.util
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool

import pytest
from changed import in_child, in_thread
from child import bring_loopback_up
from conftest import IS_ROOT

import nsjoin
from nsjoin.futures import NamespaceExecutor

pytestmark = pytest.mark.skipif(not IS_ROOT, reason="joining without a user namespace is for root")


def here(nstype="net"):
    return os.readlink(f"/proc/thread-self/ns/{nstype}")


def test_workers_live_inside_and_the_caller_stays(target):
    before = here()
    with NamespaceExecutor(target.pid, "net", "uts", max_workers=3) as executor:
        barrier = threading.Barrier(3)  # so that each of the three does one

        def both(_number):
            barrier.wait()
            return here("net"), here("uts")

        inside = {(os.readlink(f"/proc/{target.pid}/ns/net"), os.readlink(f"/proc/{target.pid}/ns/uts"))}
        assert set(executor.map(both, range(3))) == inside
        assert here() == before
    assert here() == before


def test_the_pool_outlives_the_target(start):
    running = start("net")
    inside = os.readlink(f"/proc/{running.pid}/ns/net")
    with NamespaceExecutor(running.pid, "net", max_workers=1) as executor:
        running.end()
        assert executor.submit(here).result() == inside


def test_with_mnt_the_root_is_the_targets(start, tmp_path):
    (tmp_path / "only-here").touch()
    running = start("mnt", program=f"mount --bind {tmp_path} /mnt; echo done; exec sleep infinity")
    assert running.process.stdout.readline() == "done\n"
    with NamespaceExecutor(running.pid, "mnt", max_workers=1) as executor:
        assert executor.submit(os.listdir, "/mnt").result() == ["only-here"]
        assert executor.submit(os.getcwd).result() == "/"
    assert not os.path.exists("/mnt/only-here")


def test_exceptions_and_arguments_pass_through(target):
    with NamespaceExecutor(target.pid, "net") as executor:
        assert executor.submit(int, "11", base=2).result() == 3
        with pytest.raises(ZeroDivisionError):
            executor.submit(lambda: 1 / 0).result()
        assert executor.submit(here).result()  # that breaks nothing


def test_a_failed_join_breaks_the_pool_with_the_join_error(target):
    def drop_capabilities():  # of this thread alone
        head, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(head, none) == 0

    with NamespaceExecutor(target.pid, "net", max_workers=1) as executor:
        ThreadPoolExecutor.submit(executor, drop_capabilities).result()  # past the join
        with pytest.raises(nsjoin.JoinError, match="CAP_SYS_ADMIN"):
            executor.submit(here).result()
        with pytest.raises(BrokenThreadPool) as caught:
            executor.submit(here)
        assert isinstance(caught.value.__cause__, nsjoin.JoinPermissionError)


@pytest.mark.parametrize("nstype", ["user", "time", "pid"])
def test_what_a_thread_cannot_live_in_is_refused(target, nstype):
    with pytest.raises(nsjoin.JoinError, match="use call_in"):
        NamespaceExecutor(target.pid, nstype)
    with nsjoin.Namespace.from_pid(target.pid, nstype) as namespace, pytest.raises(nsjoin.JoinError):
        NamespaceExecutor(namespace)


def test_a_process_needs_types(target):
    with pytest.raises(TypeError, match="name the types"):
        NamespaceExecutor(target.pid)


def test_shutdown_leaves_no_thread_and_no_descriptor(target):
    threads = threading.active_count()
    executor = NamespaceExecutor(target.pid, "net", max_workers=4)
    list(executor.map(lambda _number: here(), range(20)))
    executor.shutdown()
    assert threading.active_count() == threads
    with pytest.raises(RuntimeError):
        executor.submit(here)


def test_the_asyncio_form(target):
    async def main():
        loop = asyncio.get_running_loop()
        with NamespaceExecutor(target.pid, "net", max_workers=2) as executor:
            return await asyncio.gather(*(loop.run_in_executor(executor, here) for _ in range(4)))

    assert set(asyncio.run(main())) == {os.readlink(f"/proc/{target.pid}/ns/net")}


PATCHED = """
import os, sys, nsjoin
PATCH
from nsjoin._engine import stays

def main_thread():
    return os.readlink(f"/proc/self/task/{os.getpid()}/ns/net")

home = main_thread()
if "twin" in sys.argv:
    stays.is_borrowed = lambda by: False
pool = nsjoin.NamespaceExecutor(f"/proc/{sys.argv[1]}/ns/net", "net", max_workers=1)
try:
    pool.submit(print, "inside").result(timeout=30)
except nsjoin.JoinError as refused:
    print(refused)
    try:
        pool.submit(print, "inside")
    except RuntimeError as broken:
        print(type(broken).__name__)
if SHUTDOWN:
    pool.shutdown()
print("at home" if main_thread() == home else "moved")
"""
PATCHES = {
    "gevent": "import nsjoin.futures; from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}


def run_patched(module, patch, *arguments):
    if importlib.util.find_spec(module) is None:  # not imported here: it would warn, and might patch
        pytest.skip(f"{module} is not installed: .[test] has it for CPython")
    program = PATCHED.replace("PATCH", patch).replace("SHUTDOWN", str("thread=False" in patch))
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("module", PATCHES)
def test_a_worker_that_is_a_greenlet_of_the_main_thread_is_refused(target, module):
    refused, broken, where = run_patched(module, PATCHES[module], target.pid)
    assert "NamespaceExecutor" in refused
    assert "greenlet" in refused
    assert "run_in or call_in" in refused
    assert (broken, where) == ("BrokenThreadPool", "at home")


@pytest.mark.parametrize("module", PATCHES)
def test_without_that_check_the_main_thread_is_moved_for_good(target, module):
    assert run_patched(module, PATCHES[module], target.pid, "twin") == ["inside", "moved"]


def test_eventlet_that_patches_before_nsjoin_is_imported_changes_nothing_of_that(target):
    patch = "import sys; [sys.modules.pop(name) for name in [*sys.modules] if name.startswith('nsjoin')]; "
    assert run_patched("eventlet", f"{patch}{PATCHES['eventlet']}; import nsjoin", target.pid)[-1] == "at home"


@pytest.mark.parametrize(
    ("module", "patch"),
    [
        ("gevent", "from gevent import monkey; monkey.patch_all(thread=False, queue=False)"),
        ("eventlet", "import eventlet; eventlet.monkey_patch(thread=False)"),
    ],
)
def test_where_threads_are_left_as_they_are_workers_live_inside(target, module, patch):
    assert run_patched(module, patch, target.pid) == ["inside", "at home"]


def test_a_worker_that_runs_in_the_thread_that_submits_is_refused_whoever_did_that(target, monkeypatch):
    """Not only greenlets: here, by a start that just runs."""

    def submit_and_start_nothing() -> None:
        before = here()
        executor = NamespaceExecutor(target.pid, "net")
        monkeypatch.setattr(threading.Thread, "start", lambda self: None)
        future = executor.submit(here)
        executor._work_queue.get_nowait().run()
        with pytest.raises(nsjoin.JoinError, match="not a thread of its own"):
            future.result()
        assert here() == before
        monkeypatch.undo()

    in_child(submit_and_start_nothing)
    in_child(lambda: in_thread(submit_and_start_nothing))


def test_a_task_may_submit_to_its_own_pool(target):
    with NamespaceExecutor(target.pid, "net", max_workers=2) as executor:
        inner = executor.submit(lambda: executor.submit(here)).result()
        assert inner.result() == os.readlink(f"/proc/{target.pid}/ns/net")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = here().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Be quiet."""


def test_eight_workers_in_eight_net_namespaces_serve_http_on_port_80_at_once(start):
    targets = [start("net") for _ in range(8)]
    for running in targets:
        nsjoin.call_in(running.pid, bring_loopback_up)
    executors = [NamespaceExecutor(running.pid, "net", max_workers=2) for running in targets]

    def serve_one(server):
        with server:
            server.handle_request()

    def ask():
        with socket.create_connection(("127.0.0.1", 80)) as plain:
            connection = http.client.HTTPConnection("127.0.0.1", 80)
            connection.sock = plain
            connection.request("GET", "/")
            return connection.getresponse().read().decode()

    servers = [executor.submit(http.server.HTTPServer, ("127.0.0.1", 80), Handler).result() for executor in executors]
    serving = [executor.submit(serve_one, server) for executor, server in zip(executors, servers)]
    answers = [executor.submit(ask).result() for executor in executors]
    for future in serving:
        future.result()
    assert answers == [os.readlink(f"/proc/{running.pid}/ns/net") for running in targets]
    assert len(set(answers)) == 8
    for executor in executors:
        executor.shutdown()
