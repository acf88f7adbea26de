"""What a call sends back: plain data and its bounds, exceptions as text, and bytes that no child of ours sends."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pickle
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_properties import more

from nsjoin import CallError, CallExitError, CallResultError
from nsjoin._engine import answer, transfer
from nsjoin._engine import data as data_
from nsjoin._engine import raised as raised_
from nsjoin._kernel import calls
from nsjoin._kernel.calls import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec=None))
    | st.binary()
    | st.binary().map(bytearray)
)
keys = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
plain = st.recursive(
    leaves,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner) | st.sets(keys),
    max_leaves=20,
)


def types_of(obj: Any) -> Any:
    """The types in an object, since 1 == True == 1.0."""
    if isinstance(obj, dict):
        return dict, [(types_of(key), types_of(value)) for key, value in obj.items()]
    if isinstance(obj, (list, tuple)):
        return type(obj), [types_of(member) for member in obj]
    return type(obj)


@more
@given(plain)
def test_plain_data_comes_back_as_it_was(obj):
    back = data_.load(data_.dump(obj))
    assert back == obj
    assert types_of(back) == types_of(obj)


@more
@given(plain, st.data())
def test_damaged_bytes_are_an_error_or_other_data(obj, data):
    text = bytearray(data_.dump(obj))
    for at in data.draw(st.lists(st.integers(0, len(text) - 1), min_size=1, max_size=5)):
        text[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError, TypeError):
        data_.load(bytes(text))


@more
@given(st.binary())
def test_any_bytes_are_an_error_or_data(text):
    with contextlib.suppress(ValueError, TypeError):
        data_.load(text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"x",
        b"N" * 2,
        b"i" + struct.pack("<Q", 1 << 62),
        b"l" + struct.pack("<Q", 1 << 62) + b"N",
        b"d" + struct.pack("<Q", 1) + b"N",
        b"d" + struct.pack("<Q", 1) + b"l" + struct.pack("<Q", 0) + b"N",
        b"e" + struct.pack("<Q", 1) + b"a" + struct.pack("<Q", 0),
        b"s" + struct.pack("<Q", 1) + b"\xff",
        (b"t" + struct.pack("<Q", 1)) * 100_000 + b"N",
        b"l" + struct.pack("<Q", data_.MAX_OBJECTS) + b"N" * data_.MAX_OBJECTS,
        b"oN",
    ],
    ids=range(12),
)
def test_bytes_that_are_no_data_are_an_error(text):
    with pytest.raises((ValueError, TypeError)):
        data_.load(text)


class Number(int):
    pass


def nested(depth: int) -> list[Any]:
    deep: list[Any] = []
    for _ in range(depth - 1):
        deep = [deep]
    return deep


def test_result_that_is_no_data_is_refused_by_its_type():
    with pytest.raises(data_.NotDataError, match=r"test_answer\.Number is no data"):
        data_.dump([{"one": Number(1)}])
    with pytest.raises(data_.NotDataError, match="more than 100 deep"):
        data_.dump(nested(101))
    assert data_.load(data_.dump(nested(100))) == nested(100)
    with pytest.raises(data_.NotDataError, match="more than 1000000 objects"):
        data_.dump([None] * 1_000_000)


# --- exceptions as text -----------------------------------------------------------------------------------------------


def raised(func: Any, *args: Any) -> BaseException:
    try:
        func(*args)
    except BaseException as exception:
        return exception
    raise AssertionError("nothing was raised")


def told(exception: BaseException) -> str:
    """As the caller tells of it: over there and back."""
    return raised_.text(data_.load(data_.dump(raised_.describe(exception))))


def fail_twice() -> None:
    try:
        raise KeyError("first")
    except KeyError as first:
        raise ValueError("second") from first


def fail_meanwhile() -> None:
    try:
        raise KeyError("first")
    except KeyError:
        raise ValueError("second")  # noqa: B904


def fail_deep(depth: int) -> None:
    if depth:
        fail_deep(depth - 1)
    raise ValueError("deep")


@pytest.mark.parametrize("func", [fail_twice, fail_meanwhile])
def test_exception_is_printed_as_python_prints_it(func):
    import traceback

    exception = raised(func)
    assert told(exception) == "".join(traceback.format_exception(type(exception), exception, exception.__traceback__))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes and groups are of Python 3.11")
def test_exception_notes_and_groups_are_printed():
    group = ExceptionGroup("several", [ValueError("one"), raised(fail_twice)])  # noqa: F821 - of Python 3.11
    group.add_note("a note")
    text = told(group)
    assert text.startswith("ExceptionGroup: several (2 sub-exceptions)\na note\n")
    assert "  | ValueError: one\n" in text
    assert '  |     raise KeyError("first")\n' in text


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def test_exception_text_is_bounded_and_free_of_terminal_escapes():
    text = told(raised(fail_deep, 400))
    assert "[301 more calls]" in text or "[302 more calls]" in text
    assert len(told(ValueError("x" * 100_000))) < 11_000
    assert told(ValueError("\x1b[2J\x9b31m\r\ttab")) == "ValueError: \\x1b[2J\\x9b31m\\x0d\ttab\n"
    assert "str() failed: RuntimeError" in told(SilentError())
    last = first = ValueError(0)
    for number in range(1000):
        last.__context__ = ValueError(number)
        last = last.__context__
    last.__context__ = first
    assert told(first).count("another exception occurred") == 49


def test_exceptions_that_are_each_others_context_are_printed_once():
    nodes = [("A", [], [], 0, -1, 1, []), ("B", [], [], 0, -1, 0, [0, 1])]
    assert raised_.text(nodes).splitlines()[::4] == ["B", "A"]


def test_source_lines_are_looked_up_in_regular_files_only(tmp_path):
    os.mkfifo(tmp_path / "fifo.py")
    (tmp_path / "large.py").touch()
    os.truncate(tmp_path / "large.py", 1 << 40)
    (tmp_path / "sound.py").write_text("one\ntwo\n")
    for name, line in (("fifo.py", ""), ("large.py", ""), ("nope.py", ""), ("sound.py", "    two\n")):
        node = ("E", [], [(str(tmp_path / name), 2, "f", None)], 0, -1, -1, [])
        assert raised_.text([node]).partition("in f\n")[2] == f"{line}E\n"
    node = ("E", [], [("/dev/zero", 1, "f", (1 << 40, 0, 1 << 40)), ("\0", 1, "f", None)], 0, -1, -1, [])
    assert "/dev/zero" in raised_.text([node])
    node = ("E", [], [(__file__, 1, "f", (1 << 40, 0, 1 << 40))], 0, -1, -1, [])
    assert '"""What a call sends back' in raised_.text([node])


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        [("E", [], [], 0, -1, -1)],
        [("E", [], [], 0, 1, -1, [])],
        [("E", [1], [], 0, -1, -1, [])],
        [("E", [], [("f", -1, "f", None)], 0, -1, -1, [])],
        [("E", [], [("f", 1, "f", (1, 2))], 0, -1, -1, [])],
        [("E", [], [], 0, -1, -1, [5])],
        [("E" * 20_000, [], [], 0, -1, -1, [])],
        [("E", [], [], 0, -1, -1, [])] * 51,
    ],
)
def test_what_describes_no_exception_is_an_error(wrong):
    with pytest.raises(ValueError, match="no description"):
        raised_.text(wrong)


# --- messages from somebody else --------------------------------------------------------------------------------------


NO_WAY = ffi.new("struct nsjoin_plan *")


@pytest.fixture
def call() -> Iterator[Any]:
    """A call whose child's end is ours to write to."""
    call = ffi.new("struct nsjoin_call *", {"plan": NO_WAY})
    calls.check(lib.nsjoin_open_call(call))
    yield call
    lib.nsjoin_close_call(call)


def receive(call: Any, *, data_only: bool = True) -> Any:
    text = transfer.receive(call)
    assert text is not None
    return answer.read(call.head.kind, text, call, 0, data_only=data_only)


def record(kind: int, text: bytes, length: int | None = None) -> bytes:
    return struct.pack("4iq", kind, 0, 0, 0, len(text) if length is None else length) + text


def post(call: Any, message: bytes, *fds: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=os.dup(call.channel[1])) as sender:
        socket.send_fds(sender, [message], fds)


@pytest.mark.parametrize("length", [-1, 0, 4, 1 << 40, (1 << 63) - 1])
def test_a_message_that_lies_about_its_length_is_refused(call, length):
    post(call, record(answer.DATA, b"NNN", length))
    with pytest.raises(transfer.BadMessageError, match="length"):
        transfer.receive(call)


IN_FILE = record(transfer._IN_FILE, b"")


def test_a_message_in_a_file_that_has_not_come_takes_no_descriptor_of_ours(call):
    post(call, IN_FILE)
    with pytest.raises(transfer.BadMessageError, match="has not"):
        transfer.receive(call)
    os.fstat(0)


def test_a_message_in_a_file_that_is_not_in_memory_is_refused(call, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    fifo = os.open(tmp_path / "fifo", os.O_RDWR)
    post(call, IN_FILE, fifo)
    os.close(fifo)
    with pytest.raises(transfer.BadMessageError, match="not one in memory"):
        transfer.receive(call)


def test_a_message_in_a_file_with_holes_is_refused(call):
    file = calls.memfd_create(b"test", 1)
    os.ftruncate(file, 1 << 50)
    post(call, IN_FILE, file)
    os.close(file)
    with pytest.raises(transfer.BadMessageError, match="holes"):
        transfer.receive(call)


def test_messages_in_files_of_files_are_refused(call):
    file = calls.memfd_create(b"test", 1)
    for _ in range(2):
        post(call, IN_FILE, file)
    os.close(file)
    with pytest.raises(transfer.BadMessageError, match="in place of a message"):
        transfer.receive(call)


@pytest.mark.parametrize(
    "fields",
    [
        (0, 1, 1, 0, None),
        (0, "rb", False, None, None),
        (-1, 1, 1, 0, None),
        (253, 1, 1, 0, None),
        ("0", 1, 1, 0, None),
        (0,),
        None,
    ],
)
@pytest.mark.parametrize("what", [b"o", b"f"])
def test_a_socket_whose_descriptor_has_not_come_is_none_of_ours(call, what, fields):
    post(call, record(answer.DATA, what + data_.dump(fields)))
    with pytest.raises(CallResultError, match="cannot be read here"):
        receive(call)
    os.fstat(0)


@pytest.mark.parametrize(
    "device",
    [
        (b"o", (0, "x", 1, 0, None)),
        (b"o", (0, 1, 1, 0, -5.0)),
        (b"f", (0, "rz", True, None, None)),
        (b"f", (0, "rb", True, "no such codec", None)),
        (b"f", (0, "w", 1, "utf-8", 5)),
    ],
)
def test_a_descriptor_that_nothing_can_be_made_of_is_closed(call, device):
    before = os.listdir("/proc/self/fd")
    ours = os.open("/dev/null", os.O_RDWR)
    post(call, record(answer.DATA, device[0] + data_.dump(device[1])), ours)
    os.close(ours)
    with pytest.raises(CallResultError, match="cannot be read here"):
        receive(call)
    lib.nsjoin_close_call(call)
    assert len(os.listdir("/proc/self/fd")) < len(before)


class Evil:
    def __reduce__(self) -> Any:
        return os.getenv, ("HOME",)


#: A pickle as the result, and in place of an exception.
PICKLES = [
    (answer.PICKLE, pickle.dumps(Evil())),
    (answer.RAISED, data_.dump(([("E", [], [], 0, -1, -1, [])], "pickled", pickle.dumps(Evil())))),
]


@pytest.mark.parametrize(("kind", "text"), PICKLES)
def test_no_pickle_is_executed_where_data_is_asked_for(call, kind, text, monkeypatch):
    post(call, record(kind, text))
    monkeypatch.setattr(os, "getenv", None)
    with pytest.raises(CallResultError, match='result="data" refuses'):
        receive(call)


@pytest.mark.parametrize(("kind", "text"), PICKLES)
def test_where_it_is_not_a_pickle_can_call_anything(call, kind, text, monkeypatch):
    called = []
    monkeypatch.setattr(os, "getenv", called.append)
    post(call, record(kind, text))
    with contextlib.suppress(CallError):
        receive(call, data_only=False)
    assert called == ["HOME"]


@pytest.mark.parametrize(
    "content",
    [
        ("SystemExit", (), {}),
        ("KeyboardInterrupt", (), {}),
        ("exec", ("import os",), {}),
        ("ValueError", [], {}),
        ("ValueError", (), {"__class__": 1}),
        ("ValueError", (), {"__notes__": "abc"}),
        ("UnicodeDecodeError", (1,), {}),
        ("nope", (), {}),
        None,
    ],
)
def test_only_exceptions_of_pythons_own_are_made(call, content):
    post(call, record(answer.RAISED, data_.dump(([("E", [], [], 0, -1, -1, [])], "built-in", content))))
    with pytest.raises(CallResultError, match="cannot be unpickled here"):
        receive(call)


@more
@given(st.integers(-3, 9), plain.map(data_.dump) | st.binary(), st.integers(0, 3))
def test_any_message_is_an_answer_or_a_call_error(kind, text, n_fds):
    call = ffi.new("struct nsjoin_call *", {"plan": NO_WAY})
    calls.check(lib.nsjoin_open_call(call))
    try:
        post(call, record(kind, text), *[call.channel[0]] * n_fds)
        with contextlib.suppress(CallError, transfer.BadMessageError):
            receive(call)
    finally:
        lib.nsjoin_close_call(call)


def test_message_text_is_bounded_and_free_of_terminal_escapes(call):
    post(call, record(answer.EXIT, b"\xff\x1b[2J"))
    with pytest.raises(CallExitError) as caught:
        receive(call)
    assert "\x1b" not in str(caught.value)
    assert errno.EBADMSG not in caught.value.args


def test_an_exception_that_python_has_is_made_anew(call):
    exception = raised(open, "/nope")
    kind, text, _ = answer.of_exception(exception, data_only=True)
    post(call, record(kind, text))
    with pytest.raises(FileNotFoundError) as caught:
        receive(call)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/nope")
    assert "No such file" in str(caught.value.__cause__)
    assert type(raised(io.StringIO("").fileno)).__name__ == "UnsupportedOperation"
