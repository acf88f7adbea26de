"""Launches the joiner: the job, the sealed image, the wait for exec, the report.

Nothing here knows what a target is. What can go wrong in the new process comes back as ``Failed``; whatever is raised,
no process, zombie or descriptor is left.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING

from .._kernel import calls, procfs
from .._kernel.calls import ffi, lib
from .._kernel.thread import _proc_says_born_elsewhere, home
from .children import _REAP_SECONDS, _reap, _reap_late, _unreaped, end
from .image import _image
from .job import _EXEC, NO_ATTRIBUTES, At, Failed
from .wire import pack

if TYPE_CHECKING:
    from typing import Any

    from .job import Job, Launch


_REPORT = struct.Struct("4i")  # the head of struct nsjoin_plan: pid, step, index, error
_LOOK_SECONDS = 0.02  # between looks at what holds up the end of an init


def _forget_what_is_the_parents() -> None:
    _unreaped.clear()
    _image.unlock()


os.register_at_fork(after_in_child=_forget_what_is_the_parents)


def launch(job: Job) -> Launch:
    """Carry out ``job``; the result is the pid of the program, our direct child, once it has been exec'd.

    A generator, so that threads (``wait``) and event loops (``aio``) can wait each in their way: it yields a descriptor
    that hangs up (POLLHUP) when there is news. Whatever is thrown into it ends what was started and comes out again.
    Failed, ValueError (NUL in a string), OSError (no process or descriptor to be had).
    """
    if _unreaped:
        _reap_late()
    work: Any = ffi.gc(ffi.new("struct nsjoin_work *", (-1, (-1, -1), 0, procfs.is_away())), lib.nsjoin_finish)
    image, image_is_ours = -1, False
    try:
        calls.check(lib.nsjoin_prepare(work))
        image, image_is_ours = _image.open()
        try:
            return (yield from _run(job, work, image))
        except Failed as failed:
            # ETXTBSY: a fork in another thread has a copy of the descriptor by which this launch's file was written
            if failed.at != At.LAUNCH or failed.errno != (errno.ETXTBSY if image_is_ours else errno.EACCES):
                raise
            if not image_is_ours:
                _image.memfd_does_not_run()
    finally:
        lib.nsjoin_finish(work)
        if image_is_ours:
            os.close(image)
    return (yield from launch(job))


def _run(job: Job, work: Any, image: int) -> Launch:
    needed = {work.barrier[1], *[step.fd for step in job.joins]}
    if job.root >= 0:
        needed.add(job.root)
    early: list[int] = []  # used before the joiner closes what it does not need
    if job.attributes is not NO_ATTRIBUTES:
        early = job.attributes.descriptors()
        late = [job.attributes.cwd, job.born_in.directory if job.born_in else -1]
        if job.attributes.environ_inside:
            late.append(job.attributes.environ)
        needed.update([fd for fd in late if fd >= 0])
    sources = [fd for fd in job.stdio if fd >= 0]
    private = needed.union([fd for fd in sources if _ends_at_exec(fd, job.close_fds)]).difference(job.pass_fds)
    private.update((work.plan, work.barrier[1]), early)  # the program could forge the report, or seem never to start
    calls.write_all(work.plan, pack(job, private, needed), "the plan of the launch, with argv and environment,")
    lent = [*private, *needed, *sources, *job.pass_fds]
    try:
        started = _begin(job, work, image, lent)
        lib.nsjoin_close_barrier(work)
        if started == -errno.EXDEV:
            raise Failed(At.LAUNCH, 0, errno.EXDEV)
        calls.check(started)
        yield work.barrier[0]
        job.pid = _settle(job, work)
        return job.pid
    except Failed:
        raise  # nothing is left of it
    except BaseException:
        job.pid = 0
        _abort(work, job)
        raise


def _begin(job: Job, work: Any, image: int, lent: list[int]) -> int:
    def launch(at_home: int) -> int:
        return lib.nsjoin_launch(work, image, b"%d" % work.plan, lent, len(lent), at_home)

    if not job.at_home:
        return launch(lib.NSJOIN_ANYWHERE)
    if job.go_home:
        with home():
            return launch(lib.NSJOIN_AT_HOME)
    started = launch(lib.NSJOIN_CHECK_HOME)
    if started != -errno.ENOTTY:
        return started
    return -errno.EXDEV if _proc_says_born_elsewhere() else launch(lib.NSJOIN_AT_HOME)


def _ends_at_exec(fd: int, close_fds: bool) -> bool:
    """Whether a descriptor that becomes stdio is closed in the program under its own number."""
    if close_fds and fd > 2:
        return True
    try:
        return not os.get_inheritable(fd)
    except OSError:  # EBADF: the launch will say so
        return True


def _report(work: Any) -> tuple[int, int, int, int]:
    return _REPORT.unpack(os.pread(work.plan, _REPORT.size, 0))


def _settle(job: Job, work: Any) -> int:
    """Nobody holds the barrier, so everything has been exec'd or has ended: the program's pid, or Failed."""
    child, at, index, number = _report(work)
    running = at == _EXEC and number == 0
    if job.fork or not running:
        _reap(work.joiner)
        work.joiner = 0
    if running:
        return child if job.fork else int(work.joiner)
    if child > 0:
        _reap(child)
    raise Failed(At(at), index, number)


def _abort(work: Any, job: Job) -> None:
    """End what the launch has started. The joiner first: while it lives it may still clone; then what it has cloned.

    The program may run already, and have children: if it leads its process group, all of that ends.
    """
    home = max((cgroup.home for cgroup in job.attributes.cgroups), default=-1)
    try:
        end(work.joiner, leads_group=job.leads_group, home=home)
    finally:
        end(_report(work)[0], leads_group=job.leads_group, home=home)


def _state(pid: int) -> str:
    """R: it only waits for a processor; what has been killed ends then, if late. What sleeps may never do. Z: it has
    ended. Nothing: it is gone, or there is no /proc."""
    try:
        stat = procfs.read(f"{pid}/stat")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def child_has_been_reaped() -> None:
    """The caller has waited for a program: an init may have waited for just that, and ends now."""
    if _unreaped:
        _reap_late(seconds=_REAP_SECONDS)
