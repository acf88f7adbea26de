"""``NamespaceExecutor``: a pool of threads that live inside."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ._engine import guard, stays, trip
from ._kernel.nstypes import lookup, select
from ._target.namespace import Namespace, namespace_of
from ._target.target import OpenTarget, check_target
from ._verbs.enter import choose, join_error, rows_of, trip_into
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


class NamespaceExecutor(ThreadPoolExecutor):
    """A concurrent.futures.Executor whose worker threads live in namespaces of ``target``.

    ``target`` and ``nstypes`` are as for ``enter``: mnt, uts, ipc, net and cgroup. The namespaces are opened at once
    and kept, so the pool outlives the target. Each worker joins with its first task and stays; the other threads of
    the process are not touched. ``loop.run_in_executor(executor, func)`` is the asyncio form.

    ``max_workers`` and ``thread_name_prefix`` are as for ThreadPoolExecutor, ``allow_imports`` as for ``enter``. If a
    worker cannot join, its task gets the JoinError, and the pool is broken: later submissions raise BrokenThreadPool
    with that error as the cause. If gevent or eventlet has patched threading, a worker would be a greenlet in the
    caller's thread: it is refused the same way. Use the executor as a context manager, or call ``shutdown``. setns(2);
    Linux 4.11.
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
            self._namespaces = choose(select(nstypes), namespaces)
            self._allow_imports = allow_imports
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
                found = [self._stack.enter_context(namespace_of(opened.process, lookup(nstype))) for nstype in nstypes]
                if "mnt" in nstypes:
                    self._root = opened.process.open_root()
                    self._stack.callback(os.close, self._root)
            else:
                found = [self._stack.enter_context(Namespace.from_fd(given.fileno())) for given in opened.namespaces]
        for namespace in found:
            _check(namespace.nstype)
        return found

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Submit a call as Executor.submit does. BrokenThreadPool if a worker could not join."""
        if self._failure is not None:
            raise BrokenThreadPool("a worker could not join the namespaces of this pool") from self._failure
        if self._has_mnt:  # setlocale may have been called since the workers joined
            guard.prepare()
        return super().submit(self._run, stays.this_thread(), fn, args, kwargs)

    def _run(self, caller: int, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not hasattr(self._worker, "guard"):
            try:
                self._check_worker(caller)
                self._worker.guard = self._settle()
            except BaseException as failure:
                self._failure = failure
                raise
        return fn(*args, **kwargs)

    def _settle(self) -> Any:
        """Take this worker inside for good."""
        try:
            way = trip_into(self._namespaces, self._root)
            return trip.for_good(way, rows_of(self._namespaces), allow_imports=self._allow_imports)
        except trip.Refused as refused:
            raise join_error(refused, self._namespaces) from None

    def _check_worker(self, caller: int) -> None:
        """Refuse a worker that is no thread of its own: it would take the caller's thread inside. JoinError."""
        if stays.is_borrowed(caller) or stays.is_borrowed(self._home):
            reason = f"{stays.BORROWED}; or use run_in or call_in"
            raise error(JoinError, errno.EINVAL, "NamespaceExecutor", target="this worker", reason=reason)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut down as Executor.shutdown does, and close the namespaces once the workers have ended."""
        super().shutdown(wait=wait, cancel_futures=cancel_futures)
        if wait:
            self._stack.close()

    def __del__(self) -> None:
        if hasattr(self, "_stack"):  # a signal handler may have raised before __init__'s first line
            self._stack.close()


def _check(nstype: str) -> None:
    row = lookup(nstype)
    if row.executor:
        reason = f"{row.executor}; use call_in"
        raise error(JoinError, errno.EINVAL, "NamespaceExecutor", nstype=row.name, reason=reason)
