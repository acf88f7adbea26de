"""Sends one object through a unix socket: pickled, and the sockets and files in it as descriptors (SCM_RIGHTS)."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import socket
import struct
from array import array
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator

_HEAD = struct.Struct("=Bq")  # kind, length of the pickle
_MAX_DESCRIPTORS = 253  # SCM_MAX_FD, unix(7)
_CHUNK = 1 << 20
_MSG_CMSG_CLOEXEC = 0x40000000  # PyPy's socket has no name for it


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
    def __init__(self, file: io.BytesIO, descriptors: list[int]) -> None:
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
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(obj)
    return buffer.getvalue(), pickler.descriptors


def send(channel: socket.socket, kind: int, text: bytes = b"", descriptors: list[int] | None = None) -> None:
    """Send a message: its kind, and what ``dump`` gave."""
    head = _HEAD.pack(kind, len(text))
    if descriptors:
        socket.send_fds(channel, [head], descriptors)
    else:
        channel.sendall(head)
    channel.sendall(text)


class Message:
    """What ``receive`` has got: owns the descriptors until ``load`` makes objects of them."""

    def __init__(self, kind: int, length: int, descriptors: list[int]) -> None:
        self.kind = kind
        self.length = length
        self.text = bytearray()
        self._descriptors = descriptors

    def load(self) -> Any:
        """The object. Whatever unpickling raises; descriptors that nobody has taken are closed."""
        try:
            return _Unpickler(io.BytesIO(self.text), self._descriptors).load()
        finally:
            self.close()

    def close(self) -> None:
        """Close the descriptors that are still ours."""
        for fd in self._descriptors:
            if fd >= 0:
                os.close(fd)
        self._descriptors = []


def receive(channel: socket.socket) -> Generator[None, None, Message | None]:
    """Receive one message; yields whenever there is nothing to read yet. None: the other end has gone before."""
    head = b""
    descriptors: list[int] = []
    message: Message | None = None
    try:
        while message is None or len(message.text) < message.length:
            yield
            if message is None:
                part, new = _receive_head(channel, _HEAD.size - len(head))
                descriptors += new
                head += part
                if len(head) == _HEAD.size:
                    kind, length = _HEAD.unpack(head)
                    message = Message(kind, length, descriptors)
            else:
                part = channel.recv(min(_CHUNK, message.length - len(message.text)))
                message.text += part
            if not part:
                _close(descriptors)
                return None
    except BaseException:
        _close(descriptors)
        raise
    return message


def _receive_head(channel: socket.socket, size: int) -> tuple[bytes, list[int]]:
    # not socket.recv_fds, which does not pass on its flags (Python 3.9 to 3.13)
    room = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array("i").itemsize)
    part, ancillary, _, _ = channel.recvmsg(size, room, _MSG_CMSG_CLOEXEC)
    descriptors = array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    return part, list(descriptors)


def _close(descriptors: list[int]) -> None:
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)
