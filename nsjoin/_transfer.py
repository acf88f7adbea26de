"""Sends one object through a unix socket: pickled, and the sockets and files in it as descriptors (SCM_RIGHTS)."""

from __future__ import annotations

import errno
import io
import os
import pickle
import socket
import struct
from typing import TYPE_CHECKING, Any

from . import _shim
from ._shim import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._setns import CData

_HEAD = struct.Struct("4iq")  # struct nsjoin_head
_IN_FILE = -1  # the kind of a record that carries the text of the next one
_MAX_DESCRIPTORS = 253  # SCM_MAX_FD, unix(7)
_MFD_CLOEXEC = 1


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.descriptors: list[int] = []

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is socket.socket:
            return ("socket", self._add(obj.fileno()), obj.family, obj.type, obj.proto, obj.gettimeout())
        if isinstance(obj, (io.FileIO, io.BufferedReader, io.BufferedWriter, io.BufferedRandom, io.TextIOWrapper)):
            return self._file_id(obj)
        return None

    def _file_id(self, file: Any) -> Any:
        if file.readable() and file.seekable():
            file.seek(file.tell())  # what was read ahead goes back
        if file.writable():
            file.flush()
        options: dict[str, Any] = {"buffering": 0} if isinstance(file, io.FileIO) else {}
        if isinstance(file, io.TextIOWrapper):
            options = {"encoding": file.encoding, "errors": file.errors}
        return ("file", self._add(file.fileno()), file.mode, options)

    def _add(self, fd: int) -> int:
        if fd < 0:
            raise ValueError("a closed socket cannot be returned")
        if len(self.descriptors) == _MAX_DESCRIPTORS:
            raise ValueError(f"more than {_MAX_DESCRIPTORS} sockets and files in one result")
        self.descriptors.append(fd)
        return len(self.descriptors) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, descriptors: Any) -> None:
        super().__init__(file)
        self._descriptors = descriptors

    def persistent_load(self, pid: Any) -> Any:
        kind, index, *rest = pid
        fd, self._descriptors[index] = self._descriptors[index], -1  # from here on the new object's
        if kind == "socket":
            family, type_, proto, timeout = rest
            made = socket.socket(family, type_, proto, fileno=fd)
            made.settimeout(timeout)
            return made
        mode, options = rest
        return open(fd, mode, **options)


def dump(obj: Any) -> tuple[bytes, list[int]]:
    """The pickle of ``obj`` and the descriptors that belong to it. Whatever pickle raises."""
    try:
        return pickle.dumps(obj, pickle.HIGHEST_PROTOCOL), []  # all in C; refuses sockets and files
    except Exception:  # whatever an object raises: once more, and then it counts
        buffer = io.BytesIO()
        pickler = _Pickler(buffer)
        pickler.dump(obj)
        return buffer.getvalue(), pickler.descriptors


def load(text: Any, call: CData) -> Any:
    """The object that ``dump`` was given, from what ``receive`` returned. Whatever unpickling raises."""
    return _Unpickler(io.BytesIO(text), call.fds).load() if call.n_fds else pickle.loads(text)


def send(channel: int, kind: int, text: bytes = b"", descriptors: Sequence[int] = ()) -> None:
    """Send ``text`` as one record, with copies of the descriptors; what is too large for one, as a file in memory."""
    try:
        _send_record(channel, kind, text, descriptors)
    except OSError as refused:
        if refused.errno != errno.EMSGSIZE:
            raise
        with open(_shim.memfd_create(b"nsjoin-result", _MFD_CLOEXEC), "wb", buffering=0) as file:
            _shim.write_all(file.fileno(), text, "the result")
            _send_record(channel, _IN_FILE, b"", [file.fileno()])
        _send_record(channel, kind, b"", descriptors)


def _send_record(channel: int, kind: int, text: bytes, descriptors: Sequence[int]) -> None:
    record = _HEAD.pack(kind, 0, 0, 0, len(text)) + text
    if not descriptors:
        os.write(channel, record)
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=os.dup(channel)) as sender:
        socket.send_fds(sender, [record], descriptors)


def receive(call: CData) -> Any:
    """The text of the message that the child has left, a buffer, or None. Its kind is ``call.head.kind``.

    Does not wait: for a child that has ended. OSError where its descriptors cannot be taken.
    """
    length = lib.nsjoin_next_length(call)
    if length == -errno.ENODATA:
        return None
    _shim.check(length)
    text = ffi.new("char[]", length)
    _shim.check(lib.nsjoin_receive(call, text))
    if call.head.kind != _IN_FILE:
        return ffi.buffer(text, length)
    fd, call.fds[0] = call.fds[0], -1
    with open(fd, "rb") as file:
        file.seek(0)
        written = file.read()
    return None if receive(call) is None else written
