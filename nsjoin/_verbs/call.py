"""``call_in``: a function of this program, run inside by a forked child of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .._engine.children import Expired, wait
from .._engine.forked import Terms, _Call
from .._joining import trust
from .._joining.start import start
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
    100 deep, or CallResultError is raised. So it is for an exception that is not one of Python's own.

    Signals that have a handler here have none inside: they do there what they do by default.

    ``timeout`` in seconds, for all of it: TimeoutError, and the child is killed. CallResultError: the result cannot be
    sent. CallExitError: ``func`` called sys.exit or os._exit. CallDiedError: a signal ended the child. All three
    are CallError. JoinError and the like as for ``spawn_in``.

    With mnt, a module that is not loaded yet is not loaded inside (ImportError, LookupError for a codec) unless
    ``allow_imports`` is true: it would be a file of the target's, run with our rights. So would a library, and a
    program that is started other than by nsjoin: NamespaceError (NamespacePermissionError).

    JoinPermissionError also where root inside could take over the child, and with it this program: pid is joined, that
    PID namespace does not belong to a user namespace within ours, and the target has or can get CAP_SYS_PTRACE,
    CAP_SYS_ADMIN or CAP_PERFMON; or what it can get cannot be told, as of a namespace without a process.
    ``trust_target=True`` goes there all the same.

    Beside threads: fork(2) copies their locks as they are, so ``func`` must not need one that another thread may hold;
    Python 3.12 and later warn of it. fork(2), setns(2), unix(7) (SCM_RIGHTS); Linux 4.11.
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
    """The call as a generator, to be driven by ``wait`` or an event loop; an exception from outside ends the child."""
    checked = check_target(target)
    rows = None if namespaces is None else select_types(namespaces)
    if terms.result not in _RESULTS:
        raise ValueError(f"result is one of {', '.join(_RESULTS)}, not {terms.result!r}")
    call = _Call(func, args, terms)
    with OpenTarget(checked) as opened:  # one for the look and the join: its pid could come to mean another process
        if not terms.trust_target:
            trust.check(opened, rows)
        try:
            yield from start(call, opened.namespaces if opened.process is None else opened.process, rows, True)
            return call.result()
        finally:
            call.close()
