"""``NamespaceExecutor``: a pool of threads that live inside."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ._engine import guard, stays
from ._kernel.nstypes import lookup
from ._target.namespace import Namespace
from ._target.target import OpenTarget, check_target
from ._verbs.enter import enter
from .exceptions import JoinError, error

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from typing import Any

    from typing_extensions import ParamSpec, TypeVar

    from ._target.target import TargetLike

    P = ParamSpec("P")

    T = TypeVar("T")


__all__ = ["NamespaceExecutor"]

#: Types that a worker thread cannot live in, and why.
_REFUSED = {
    "user": "a thread cannot change its user namespace beside others",
    "time": "a thread cannot change its time namespace beside others",
    "pid": "a thread never changes its PID namespace, only processes that it starts are born inside",
}


class NamespaceExecutor(ThreadPoolExecutor):
    """A concurrent.futures.Executor whose worker threads live in namespaces of ``target``.

    ``target`` and ``nstypes`` are as for ``enter``: mnt, uts, ipc, net and cgroup. The namespaces are opened at once
    and kept, so the pool outlives the target. Each worker joins with its first task and stays; the other threads of
    the process are not touched. ``loop.run_in_executor(executor, func)`` is the asyncio form.

    ``max_workers`` and ``thread_name_prefix`` are as for ThreadPoolExecutor, ``allow_imports`` as for ``enter``. If a
    worker cannot join, its task gets the JoinError, and the pool is broken: what is submitted later raises
    BrokenThreadPool with that as its cause. So it is where gevent or eventlet has patched threading, and a worker would
    be a greenlet in the caller's thread. Use it as a context manager, or call ``shutdown``. setns(2); Linux 4.11.
    """

    def __init__(
        self,
        target: TargetLike,
        *nstypes: str,
        max_workers: int | None = None,
        thread_name_prefix: str = "nsjoin",
        allow_imports: bool = False,
    ) -> None:
        self._stack = ExitStack()
        self._root = -1
        for nstype in nstypes:
            _check(nstype)
        with self._stack:
            namespaces = self._open(target, nstypes)
            self._enter = enter(namespaces, *nstypes, allow_imports=allow_imports)
            self._has_mnt = any(namespace.nstype == "mnt" for namespace in namespaces)
            super().__init__(max_workers=max_workers, thread_name_prefix=thread_name_prefix)
            self._stack = self._stack.pop_all()
        self._worker = threading.local()
        self._home = stays.this_thread()
        self._failure: BaseException | None = None

    def _open(self, target: TargetLike, nstypes: tuple[str, ...]) -> list[Namespace]:
        checked = check_target(target)
        if not isinstance(checked, tuple) and not nstypes:
            raise TypeError("name the types to join, such as NamespaceExecutor(pid, 'net')")
        with OpenTarget(checked) as opened:
            if opened.process is not None:
                found = [self._stack.enter_context(opened.process.namespace(nstype)) for nstype in nstypes]
                if "mnt" in nstypes:
                    self._root = opened.process.open_root()
                    self._stack.callback(os.close, self._root)
            else:
                found = [self._stack.enter_context(Namespace.from_fd(given.fileno())) for given in opened.namespaces]
        for namespace in found:
            _check(namespace.nstype)
        return found

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As Executor.submit. BrokenThreadPool if a worker could not join."""
        if self._failure is not None:
            raise BrokenThreadPool("a worker could not join the namespaces of this pool") from self._failure
        if self._has_mnt:  # setlocale may have been called since the workers joined
            guard.prepare()
        return super().submit(self._run, stays.this_thread(), fn, args, kwargs)

    def _run(self, caller: int, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not hasattr(self._worker, "guard"):
            try:
                self._check_worker(caller)
                self._worker.guard = self._enter.settle(self._root)
            except BaseException as failure:
                self._failure = failure
                raise
        return fn(*args, **kwargs)

    def _check_worker(self, caller: int) -> None:
        """Before the first join: a worker that is none would take the thread of the caller inside, for good."""
        if stays.is_borrowed(caller) or stays.is_borrowed(self._home):
            reason = f"{stays.BORROWED}; or use run_in or call_in"
            raise error(JoinError, errno.EINVAL, "NamespaceExecutor", target="this worker", reason=reason)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As Executor.shutdown. The descriptors of the namespaces are closed once the workers have ended."""
        super().shutdown(wait=wait, cancel_futures=cancel_futures)
        if wait:
            self._stack.close()

    def __del__(self) -> None:
        if hasattr(self, "_stack"):  # it has none where a signal handler has raised before the first line
            self._stack.close()


def _check(nstype: str) -> None:
    row = lookup(nstype)
    reason = _REFUSED.get(row.name)
    if reason:
        raise error(JoinError, errno.EINVAL, "NamespaceExecutor", nstype=row.name, reason=f"{reason}; use call_in")
