"""The outcome of a function inside as a message: made by the child of a call, read by the caller."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING

from ..exceptions import CallExitError, CallResultError
from . import data, raised, transfer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from typing_extensions import TypeAlias

    from .._setns import CData

    #: The kind of the message, its text, the descriptors that go with it.
    Message: TypeAlias = tuple[int, bytes, Sequence[int]]


#: The kinds of messages from the child. The first is C's: a step of the way inside has failed.
FAILED, DATA, PICKLE, RAISED, EXIT, NO_RESULT = range(6)

#: In what form an exception comes beside its description.
_BUILT_IN, _PICKLED, _AS_TEXT = "built-in", "pickled", "as text"

_MOST_CHARACTERS = 100_000


class RemoteTraceback(Exception):  # noqa: N818 - it stands for a traceback
    """The cause of an exception that came from inside: its traceback there, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


# --- inside -------------------------------------------------------------------------------------------------


def of_result(result: Any, *, data_only: bool) -> Message:
    """Return the message for a function that returned ``result``."""
    try:
        if data_only:
            return (DATA, *transfer.dump_data(result))
        try:
            return (DATA, *transfer.dump_few(result))
        except Exception:  # NotDataError, or raised by a file in it: pickle's own error explains
            return (PICKLE, *transfer.dump_pickle(result))
    except Exception as failure:
        what = 'is not what result="data" takes' if data_only else "cannot be pickled"
        return no_result(f"the result {what}: {failure}")


def of_exception(exception: BaseException, *, data_only: bool) -> Message:
    """Return the message for a function that raised ``exception``."""
    if isinstance(exception, SystemExit):
        return EXIT, _encode(raised.in_words(exception.code)), ()
    described = raised.describe(exception)
    try:
        text, descriptors = transfer.dump_data((described, _BUILT_IN, _built_in(exception, data_only)))
        return RAISED, text, descriptors
    except Exception as failure:  # not a built-in one, or what is in it is no data
        why = f'with result="data" it does not come itself: {failure}'
    descriptors = []
    form: tuple[str, Any] = (_AS_TEXT, why)
    if not data_only:
        try:
            pickled, descriptors = transfer.dump_pickle(exception)
            form = (_PICKLED, pickled)
        except Exception as failure:
            form = (_AS_TEXT, f"the exception cannot be pickled ({failure})"[:_MOST_CHARACTERS])
    return RAISED, data.dump((described, *form)), descriptors


def no_result(words: str) -> Message:
    """Return the message for a result that cannot be sent."""
    return NO_RESULT, _encode(words), ()


def _built_in(exception: BaseException, data_only: bool) -> tuple[str, Any, dict[str, Any]]:
    """Return its class, arguments and attributes; NotDataError unless it is a built-in exception."""
    cls = type(exception)
    if not isinstance(exception, Exception) or vars(builtins).get(cls.__name__) is not cls:
        raise data.NotDataError(f"{cls.__module__}.{cls.__qualname__} is no built-in exception")
    parts: Any = cls.__reduce__(exception)
    args = parts[1]
    state: dict[str, Any] = dict(parts[2] or ()) if len(parts) > 2 else {}
    if data_only:
        state = {name: value for name, value in state.items() if _is_data(value)}
    return cls.__name__, args, state


def _is_data(value: Any) -> bool:
    try:
        data.dump(value)
    except data.NotDataError:
        return False
    return True


def _encode(words: str) -> bytes:
    return words[:_MOST_CHARACTERS].encode("utf-8", "backslashreplace")


# --- outside ------------------------------------------------------------------------------------------------


def read(kind: int, text: bytes, call: CData, status: int, *, data_only: bool) -> Any:
    """Return what the function returned, or raise what it raised, or CallError."""
    if kind == NO_RESULT:
        raise CallResultError(_decode(text), None)
    if kind == EXIT:
        raise CallExitError(f"the function called sys.exit({_decode(text)})", status)
    if kind == RAISED:
        raise _exception(text, call, data_only)
    if kind == PICKLE and data_only:
        raise CallResultError('the call sent a pickle, which result="data" refuses')
    if kind not in (DATA, PICKLE):
        raise CallResultError(f"the call sent a message of an unknown kind, {kind}")
    try:
        return transfer.load_data(text, call) if kind == DATA else transfer.load_pickle(text, call)
    except Exception as failure:
        how = "read" if kind == DATA else "unpickled"
        raise CallResultError(f"what the call sent cannot be {how} here: {failure!r}") from failure


def _exception(text: bytes, call: CData, data_only: bool) -> BaseException:
    try:
        described, form, content = transfer.load_data(text, call)
        shown = raised.text(described)
    except Exception as failure:
        raise CallResultError(f"what the call sent cannot be read here: {failure!r}") from failure
    if form == _AS_TEXT or (form == _PICKLED and data_only):
        why = content if type(content) is str else 'the call sent a pickle, which result="data" refuses'
        return CallResultError(f"the function raised {_last_line(described)}; {why}:\n{shown}")
    try:
        exception = _made(*content) if form == _BUILT_IN else transfer.load_pickle(content, call)
        exception.__cause__ = RemoteTraceback(shown)
    except Exception as failure:
        words = f"the exception cannot be unpickled here: {failure!r}"
        raise CallResultError(f"{words}:\n{shown}") from failure
    return exception


def _made(name: str, args: Any, state: Any) -> Exception:
    """Make a built-in exception. Its constructor is Python's own, and executes nothing from its arguments."""
    cls = vars(builtins).get(name)
    if not isinstance(cls, type) or not issubclass(cls, Exception) or type(args) is not tuple:
        raise TypeError("this is no built-in exception")
    made = cls(*args)
    for attribute, value in dict(state).items():
        if attribute.startswith("__") and (attribute != "__notes__" or not _are_notes(value)):
            raise ValueError(f"{attribute} cannot be given to it")
        setattr(made, attribute, value)
    return made


def _are_notes(value: Any) -> bool:
    return type(value) is list and all(type(note) is str for note in value)


def _last_line(described: Any) -> str:
    return str(described[0][0]).translate(raised.ESCAPES)


def _decode(text: bytes) -> str:
    return text[:_MOST_CHARACTERS].decode("utf-8", "backslashreplace").translate(raised.ESCAPES)
