"""Launch the joiner, wait until it has exec'd the program, read its report.

This file does not know targets. A step that fails in the new process comes back as ``Failed``; whatever is raised, no
process, zombie or descriptor is left.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

from .._kernel import calls, procfs
from .._kernel.calls import ffi, lib
from .._kernel.thread import home, proc_says_born_elsewhere
from . import image
from .children import end, reap, reap_late, unreaped
from .job import At, Failed
from .wire import pack

if TYPE_CHECKING:
    from typing import Any

    from .job import Launch, Program, Started, Way


_REPORT = struct.Struct("4i")  # the head of struct nsjoin_plan: pid, step, index, error

# --- the launch ---------------------------------------------------------------------------------------------


def launch(program: Program, way: Way, started: Started) -> Launch:
    """Start ``program`` by ``way``; the result is its pid, a direct child of this process, once it has been exec'd.

    A generator, so that threads (``wait``) and event loops (``aio``) can wait each in their way: it yields a descriptor
    that hangs up (POLLHUP) when there is news. Whatever is thrown into it ends what was started and comes out again.
    Failed, ValueError (NUL in a string), OSError (no process or descriptor to be had).
    """
    if unreaped:
        reap_late()
    work: Any = ffi.gc(ffi.new("struct nsjoin_work *", (-1, (-1, -1), 0, procfs.is_away())), lib.nsjoin_finish)
    try:
        with image.opened() as executable:
            calls.check(lib.nsjoin_prepare(work))
            try:
                return (yield from _run(program, way, started, work, executable.fd))
            except Failed as failed:
                if failed.at != At.LAUNCH or not executable.should_retry(failed.errno):
                    raise
    finally:
        lib.nsjoin_finish(work)
    return (yield from launch(program, way, started))


def _run(program: Program, way: Way, started: Started, work: Any, executable: int) -> Launch:
    lent = _write_plan(program, way, work)
    arguments = (work, executable, b"%d" % work.plan, lent, len(lent))
    try:
        result = -errno.ENOTTY
        if not way.go_home:
            result = lib.nsjoin_launch(*arguments, lib.NSJOIN_CHECK_HOME if way.at_home else lib.NSJOIN_ANYWHERE)
        if result == -errno.ENOTTY:
            result = _launch_at_home(way.go_home, arguments)
        lib.nsjoin_close_barrier(work)
        if result == -errno.EXDEV:
            raise Failed(At.LAUNCH, 0, errno.EXDEV)
        calls.check(result)
        yield work.barrier[0]
        started.pid = _settle(way.fork, work)
        return started.pid
    except Failed:
        raise  # nothing is left of it
    except BaseException:
        started.pid = 0
        _abort(work, program, way)
        raise


def _write_plan(program: Program, way: Way, work: Any) -> list[int]:
    """Write the plan, and return the descriptors that go along to the joiner."""
    attributes = way.attributes
    needed = {work.barrier[1], *[step.fd for step in way.joins]}  # until the program is exec'd
    late = [way.root, attributes.cwd, way.born_in.directory if way.born_in else -1]
    if attributes.environ_inside:
        late.append(attributes.environ)
    needed.update([fd for fd in late if fd >= 0])
    sources = [fd for fd in program.stdio if fd >= 0]
    private = needed.union([fd for fd in sources if _ends_at_exec(fd, program.close_fds)]).difference(program.pass_fds)
    # the program could forge the report, or seem never to start; the attributes are used before the joiner closes
    private.update((work.plan, work.barrier[1]), attributes.descriptors())
    plan = pack(program, way, private, needed)
    calls.write_all(work.plan, plan, "the plan of the launch, with argv and environment,")
    return [*private, *needed, *sources, *program.pass_fds]


def _launch_at_home(go_home: bool, arguments: tuple[Any, int, bytes, list[int], int]) -> int:
    """Launch where the kernel cannot report beforehand where the joiner would be born (before Linux 6.11).

    ``go_home``: this thread's children would be born elsewhere. -EXDEV if they would, but not so.
    """
    if go_home:
        with home():
            return int(lib.nsjoin_launch(*arguments, lib.NSJOIN_AT_HOME))
    return -errno.EXDEV if proc_says_born_elsewhere() else int(lib.nsjoin_launch(*arguments, lib.NSJOIN_AT_HOME))


def _ends_at_exec(fd: int, close_fds: bool) -> bool:
    """Whether a descriptor that becomes stdio is closed in the program under its own number."""
    if close_fds and fd > 2:
        return True
    try:
        return not os.get_inheritable(fd)
    except OSError:  # EBADF: the launch will report it
        return True


def _report(work: Any) -> tuple[int, int, int, int]:
    return _REPORT.unpack(os.pread(work.plan, _REPORT.size, 0))


def _settle(fork: bool, work: Any) -> int:
    """Nobody holds the barrier, so everything has been exec'd or has ended: the program's pid, or Failed."""
    child, at, index, number = _report(work)
    running = at == At.EXEC and number == 0
    if fork or not running:
        reap(work.joiner)
        work.joiner = 0
    if running:
        return child if fork else int(work.joiner)
    if child > 0:
        reap(child)
    raise Failed(At(at), index, number)


def _abort(work: Any, program: Program, way: Way) -> None:
    """End what the launch has started. The joiner first: while it lives it may still clone; then what it has cloned.

    The program may run already, and have children: if it leads its process group, all of that ends.
    """
    home = max((cgroup.home for cgroup in way.attributes.cgroups), default=-1)
    try:
        end(work.joiner, leads_group=program.leads_group, home=home)
    finally:
        end(_report(work)[0], leads_group=program.leads_group, home=home)
