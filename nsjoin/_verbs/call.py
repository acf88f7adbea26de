"""``call_in``: a forked child of this process calls a function inside a target's namespaces."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .._engine.children import Expired, wait
from .._engine.forked import Call, Terms
from .._joining import trust
from .._joining.start import Request, start
from .._kernel.nstypes import select as select_types
from .._target.target import OpenTarget, check_target

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from typing import Any

    from typing_extensions import Literal

    from .._target.target import TargetLike


_RESULTS = ("any", "data")


def call_in(
    target: TargetLike,
    func: Callable[..., Any],
    *args: Any,
    namespaces: Iterable[str] | None = None,
    timeout: float | None = None,
    allow_imports: bool = False,
    trust_target: bool = False,
    result: Literal["any", "data"] = "any",
) -> Any:
    """Call ``func(*args)`` inside the namespaces of ``target`` and return its result.

    A forked child of this process makes the call, so lambdas and closures work: nothing but the result is sent.
    Sockets and files in the result, also deep inside, come back as descriptors. An exception of ``func`` is raised
    here, with the traceback from inside as its cause; its source lines are looked up here, not inside. ``target`` and
    ``namespaces`` are as for ``spawn_in``: the child is really inside the PID namespace, and with mnt its root is the
    target's.

    ``result="data"`` accepts no pickle, which can execute anything here: the result is None, bool, int, float, str,
    bytes, bytearray, a socket or file, or a list, tuple, dict, set or frozenset of these, up to a million objects and
    100 deep. Anything else, and an exception that is not one of Python's own, raises CallResultError.

    Signal handlers of this process do not run inside; the default actions apply there.

    ``timeout`` (seconds) covers the whole call: it raises TimeoutError and kills the child. CallResultError: the result
    cannot be sent. CallExitError: ``func`` called sys.exit or os._exit. CallDiedError: a signal ended the child. All
    three are CallError. JoinError and the like as for ``spawn_in``.

    With mnt, importing a module that is not loaded yet raises ImportError (LookupError for a codec) unless
    ``allow_imports`` is true: it would run a file of the target with this process's rights. Loading a library, or
    starting a program other than by nsjoin, raises NamespaceError (NamespacePermissionError) likewise.

    JoinPermissionError also if root inside could take over the child, and with it this process: pid is joined, that
    PID namespace does not belong to a user namespace within the caller's, and the target has or can get
    CAP_SYS_PTRACE, CAP_SYS_ADMIN or CAP_PERFMON, or is a namespace without a process, of which that is unknown.
    ``trust_target=True`` skips this check.

    fork(2) copies the locks of other threads as they are, so ``func`` must not need a lock that another thread may
    hold; Python 3.12 and later warn about threads. fork(2), setns(2), unix(7) (SCM_RIGHTS); Linux 4.11.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        return wait(calling(target, func, args, namespaces, Terms(allow_imports, trust_target, result)), deadline)
    except Expired:
        raise TimeoutError(f"the call has not returned after {timeout} seconds, and was killed") from None


def calling(
    target: TargetLike,
    func: Callable[..., Any],
    args: Sequence[Any],
    namespaces: Iterable[str] | None,
    terms: Terms,
) -> Generator[int, None, Any]:
    """Make the call as a generator that ``wait`` or an event loop drives; an exception thrown in ends the child."""
    checked = check_target(target)
    rows = None if namespaces is None else select_types(namespaces)
    if terms.result not in _RESULTS:
        raise ValueError(f"result is one of {', '.join(_RESULTS)}, not {terms.result!r}")
    call = Call(func, args, terms)
    with OpenTarget(checked) as opened:  # opened once for check and join: the pid may be reused
        if not terms.trust_target:
            trust.check(opened, rows)
        try:
            pinned = opened.namespaces if opened.process is None else opened.process
            yield from start(call.run, pinned, Request(rows))
            return call.result()
        finally:
            call.close()
