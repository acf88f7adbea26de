"""Send one object through a unix socket, as data or a pickle; its sockets and files go as descriptors (SCM_RIGHTS).

The receiver expects hostile bytes, except for a pickle that the caller has asked for.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import pickle
import re
import socket
import struct
from typing import TYPE_CHECKING

from .._kernel import abi, calls
from .._kernel.calls import ffi, lib
from . import data

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .._setns import CData


_HEAD = struct.Struct("4iq")  # struct nsjoin_head
_IN_FILE = -1  # the kind of a record that carries the text of the next one
_MAX_DESCRIPTORS = 253  # SCM_MAX_FD, unix(7)

_SOCKET, _FILE = b"o", b"f"
_FILES = (io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)
_FILE_MODE = re.compile(r"[rwax](b?\+?|\+b)")
#: Of more objects the pickle is made instead where it may be: in C it takes a tenth of the time.
_FEW = 1_000


class BadMessageError(ValueError):
    """What has come is not what the child of a call sends."""


class _Outgoing:
    """The sockets and files of one message."""

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def device(self, obj: Any) -> data.Device | None:
        """Describe ``obj`` if it is a socket or file, with the index of its descriptor; None if it is not."""
        if type(obj) is socket.socket:
            index = self._add(obj.fileno())
            return data.Device(_SOCKET, (index, int(obj.family), int(obj.type), obj.proto, obj.gettimeout()))
        return self._file(obj) if isinstance(obj, _FILES) else None

    def _file(self, file: Any) -> data.Device:
        if file.readable() and file.seekable():
            file.seek(file.tell())  # what was read ahead goes back
        if file.writable():
            file.flush()
        encoding, errors = (file.encoding, file.errors) if isinstance(file, io.TextIOWrapper) else (None, None)
        is_buffered = not isinstance(file, io.FileIO)
        return data.Device(_FILE, (self._add(file.fileno()), file.mode, is_buffered, encoding, errors))

    def _add(self, fd: int) -> int:
        if fd < 0:
            raise ValueError("a closed socket cannot be returned")
        if len(self.descriptors) == _MAX_DESCRIPTORS:
            raise ValueError(f"more than {_MAX_DESCRIPTORS} sockets and files in one result")
        self.descriptors.append(fd)
        return len(self.descriptors) - 1


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.outgoing = _Outgoing()

    def persistent_id(self, obj: Any) -> Any:
        device = self.outgoing.device(obj)
        return None if device is None else tuple(device)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, call: CData) -> None:
        super().__init__(file)
        self._call = call

    def persistent_load(self, pid: Any) -> Any:
        return _make_device(data.Device(*pid), self._call)


def dump_data(obj: Any) -> tuple[bytes, list[int]]:
    """Return ``obj`` as data, and its descriptors. data.NotDataError; OSError, ValueError for a file."""
    outgoing = _Outgoing()
    return data.dump(obj, outgoing.device), outgoing.descriptors


def dump_few(obj: Any) -> tuple[bytes, list[int]]:
    """Return the same, or raise data.NotDataError where a pickle is better: it is faster, or keeps one object one."""
    outgoing = _Outgoing()
    return data.dump(obj, outgoing.device, most=_FEW, may_repeat=False), outgoing.descriptors


def load_data(text: bytes, call: CData) -> Any:
    """Return the object that ``dump_data`` was given, from what ``receive`` returned. Raises built-in exceptions."""
    return data.load(text, lambda device: _make_device(device, call))


def dump_pickle(obj: Any) -> tuple[bytes, list[int]]:
    """Return the pickle of ``obj``, and its descriptors. Raises whatever pickle raises."""
    try:
        return pickle.dumps(obj, pickle.HIGHEST_PROTOCOL), []  # all in C; refuses sockets and files
    except Exception:  # whatever an object raises: tried once more, and then raised
        buffer = io.BytesIO()
        pickler = _Pickler(buffer)
        pickler.dump(obj)
        return buffer.getvalue(), pickler.outgoing.descriptors


def load_pickle(text: bytes, call: CData) -> Any:
    """Return the object that ``dump_pickle`` was given, from what ``receive`` returned, or raise what pickle raises."""
    return _Unpickler(io.BytesIO(text), call).load() if call.n_fds else pickle.loads(text)


# --- sockets and files that have come ------------------------------------------------------------------------


def _make_device(device: data.Device, call: CData) -> Any:
    """Make the object, which from then on owns the descriptor that the call owned."""
    if type(device.fields) is not tuple or len(device.fields) != 5:
        raise ValueError("this is no socket and no file")
    index, *fields = device.fields
    if type(index) is not int or not 0 <= index < call.n_fds or call.fds[index] < 0:
        raise ValueError("a descriptor has not come, or belongs to something else")
    if device.what == _SOCKET:
        return _make_socket(call, index, *fields)
    return _make_file(call, index, *fields)


def _make_socket(call: CData, index: int, family: int, type_: int, proto: int, timeout: float | None) -> socket.socket:
    made = socket.socket(family, type_, proto, fileno=call.fds[index])
    call.fds[index] = -1
    try:
        made.settimeout(timeout)
    except BaseException:
        made.close()
        raise
    return made


def _make_file(call: CData, index: int, mode: str, is_buffered: bool, encoding: str | None, errors: str | None) -> Any:
    """Make what open() makes, step by step: if open() fails, it is unknown whether it has closed the descriptor."""
    if _FILE_MODE.fullmatch(mode) is None:
        raise ValueError(f"{mode!r} is no mode of a file")
    if not {type(encoding), type(errors)} <= {str, type(None)}:  # PyPy looks later
        raise TypeError("a codec is named by a str")
    made: Any = io.FileIO(call.fds[index], mode)
    call.fds[index] = -1
    try:
        if is_buffered:
            buffered = io.BufferedRandom if "+" in mode else io.BufferedReader if mode[0] == "r" else io.BufferedWriter
            made = buffered(made)
        if encoding is not None:
            is_terminal = made.isatty()
            made = io.TextIOWrapper(made, encoding, errors, line_buffering=is_terminal)
            made.mode = mode
    except BaseException:
        made.close()
        raise
    return made


# --- records ------------------------------------------------------------------------------------------------


def send(channel: int, kind: int, text: bytes = b"", descriptors: Sequence[int] = ()) -> None:
    """Send ``text`` as one record with the descriptors; text too large for a record goes as a memfd."""
    try:
        _send_record(channel, kind, text, descriptors)
    except OSError as refused:
        if refused.errno != errno.EMSGSIZE:
            raise
        with open(calls.memfd_create(b"nsjoin-result", abi.MFD_CLOEXEC), "wb", buffering=0) as file:
            calls.write_all(file.fileno(), text, "the result")
            _send_record(channel, _IN_FILE, b"", [file.fileno()])
        _send_record(channel, kind, b"", descriptors)


def _send_record(channel: int, kind: int, text: bytes, descriptors: Sequence[int]) -> None:
    record = _HEAD.pack(kind, 0, 0, 0, len(text)) + text
    if not descriptors:
        os.write(channel, record)
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=os.dup(channel)) as sender:
        socket.send_fds(sender, [record], descriptors)


def receive(call: CData) -> bytes | None:
    """Return the text of the message that the child has left, or None. Its kind is ``call.head.kind``.

    Does not wait: the child must have ended. OSError if its descriptors cannot be received, BadMessageError.
    """
    text = _receive_record(call)
    if text is None or call.head.kind != _IN_FILE:
        return text
    if call.n_fds != 1:
        raise BadMessageError("a file was to come, and has not")
    fd, call.fds[0], call.n_fds = call.fds[0], -1, 0
    with open(fd, "rb", buffering=0) as file:
        written = _read(file)
    if _receive_record(call) is None:
        return None
    if call.head.kind == _IN_FILE:
        raise BadMessageError("a file comes in place of a message")
    return written


def _receive_record(call: CData) -> bytes | None:
    length = lib.nsjoin_next_length(call)
    if length == -errno.ENODATA:
        return None
    if length == -errno.EBADMSG:
        raise BadMessageError("the length of a message is not what it says")
    calls.check(length)
    text = ffi.new("char[]", length)
    calls.check(lib.nsjoin_receive(call, text))
    return bytes(ffi.buffer(text, length))


def _read(file: io.FileIO) -> bytes:
    """Read all of a memfd. Any other file could block for ever, and one with holes be larger than all memory."""
    try:
        fcntl.fcntl(file, abi.F_GET_SEALS)  # tmpfs and hugetlbfs have it, and no others
    except OSError:
        raise BadMessageError("the file that has come is not one in memory") from None
    status = os.fstat(file.fileno())
    if status.st_size > status.st_blocks * 512:
        raise BadMessageError("the file that has come has holes")
    parts, at = [], 0
    while at < status.st_size:
        part = os.pread(file.fileno(), status.st_size - at, at)  # up to 2 GB at once
        if not part:
            raise BadMessageError("the file that has come has shrunk")
        parts.append(part)
        at += len(part)
    return b"".join(parts)
