"""Plain data as bytes, and back: the reader makes built-in types only, and executes nothing.

The forms of the standard library do not fit: pickle and marshal trust their input; JSON has no bytes, tuples or sets,
and accepts subclasses. Here each object is a letter, a length where it has one, and its content. The reader expects
hostile bytes: it allocates nothing by a length before it has seen that many bytes, and bounds the depth, since hashing,
comparing and freeing nested tuples recurse in C.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


#: How deep containers nest; and how many objects there are, since an empty set is nine bytes here and 216 in memory.
MAX_DEPTH = 100
MAX_OBJECTS = 1_000_000

_LENGTH = struct.Struct("<Q")
_FLOAT = struct.Struct("<d")
#: From which length on a leaf is worth remembering, so that it is not written many times where pickle does it once.
_WORTHWHILE = 256


class NotDataError(TypeError):
    """The object contains something that is not data, or too much of it."""


class Device(NamedTuple):
    """A socket or file: ``what`` is its kind, ``fields`` is data about it."""

    what: bytes
    fields: Any


def _to_bytes(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)


_CONSTANTS = {b"N": None, b"T": True, b"F": False}
#: type: letter, to bytes
_LEAVES: dict[type, tuple[bytes, Callable[[Any], bytes]]] = {
    int: (b"i", _to_bytes),
    str: (b"s", lambda text: text.encode("utf-8", "surrogatepass")),
    bytes: (b"b", bytes),
    bytearray: (b"a", bytes),
}
#: letter: from bytes
_LEAF_MAKERS: dict[bytes, Callable[[bytes], Any]] = {
    b"i": lambda part: int.from_bytes(part, "little", signed=True),
    b"s": lambda part: part.decode("utf-8", "surrogatepass"),
    b"b": bytes,
    b"a": bytearray,
}
_CONTAINERS: dict[type, bytes] = {list: b"l", tuple: b"t", set: b"e", frozenset: b"z", dict: b"d"}
_CONTAINER_MAKERS: dict[bytes, Callable[[Iterable[Any]], Any]] = {
    b"l": list,
    b"t": tuple,
    b"e": set,
    b"z": frozenset,
    b"d": lambda flat: dict(zip(*[iter(flat)] * 2)),
}
#: letter: of what ``Device.what`` may be
_DEVICES = frozenset({b"o", b"f"})


class _Writer:
    def __init__(self, device: Callable[[Any], Device | None], most: int, *, may_repeat: bool) -> None:
        self.parts: list[bytes] = []
        self._device = device
        self._most = self._left = most
        self._may_repeat = may_repeat
        self._seen: set[int] = set()

    def write(self, obj: Any, depth: int) -> None:
        cls = type(obj)
        self._left -= 1
        if self._left < 0:
            raise NotDataError(f"more than {self._most} objects")
        if obj is None or cls is bool:
            self.parts.append(b"N" if obj is None else b"T" if obj else b"F")
        elif cls is float:
            self.parts.append(b"g" + _FLOAT.pack(obj))
        elif cls in _LEAVES:
            self._write_leaf(obj, *_LEAVES[cls])
        elif cls in _CONTAINERS:
            self._write_container(_CONTAINERS[cls], obj, depth)
        else:
            self._write_device(obj, depth)

    def _write_leaf(self, obj: Any, letter: bytes, to_bytes: Callable[[Any], bytes]) -> None:
        part = to_bytes(obj)
        if len(part) > _WORTHWHILE or (letter == b"a" and part):
            self._remember(obj)
        self.parts += (letter + _LENGTH.pack(len(part)), part)

    def _write_container(self, letter: bytes, obj: Any, depth: int) -> None:
        if depth == MAX_DEPTH:
            raise NotDataError(f"containers within each other more than {MAX_DEPTH} deep")
        if obj:
            self._remember(obj)
        self.parts.append(letter + _LENGTH.pack(len(obj)))
        for member in obj:
            self.write(member, depth + 1)
            if letter == b"d":
                self.write(obj[member], depth + 1)

    def _write_device(self, obj: Any, depth: int) -> None:
        device = self._device(obj)
        if device is None:
            raise NotDataError(f"{type(obj).__module__}.{type(obj).__qualname__} is no data")
        self.parts.append(device.what)
        self.write(device.fields, depth + 1)

    def _remember(self, obj: Any) -> None:
        if self._may_repeat:
            return
        if id(obj) in self._seen:
            raise NotDataError("the same object twice")
        self._seen.add(id(obj))


def _no_device(_obj: Any) -> None:
    return None


def dump(
    obj: Any,
    device: Callable[[Any], Device | None] = _no_device,
    *,
    most: int = MAX_OBJECTS,
    may_repeat: bool = True,
) -> bytes:
    """Return ``obj`` as bytes. ``device`` describes an object that is not data, or returns None.

    NotDataError, also for more than ``most`` objects and, unless ``may_repeat``, for a container that occurs twice:
    two would come back.
    """
    writer = _Writer(device, most, may_repeat=may_repeat)
    writer.write(obj, 0)
    return b"".join(writer.parts)


class _Reader:
    def __init__(self, text: bytes, device: Callable[[Device], Any] | None) -> None:
        self._text = text
        self._at = 0
        self._device = device
        self._left = MAX_OBJECTS

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._text):
            raise ValueError("it ends too early")
        part = self._text[self._at : end]
        self._at = end
        return part

    def read(self, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            raise ValueError("it has too many objects, or they are too deep within each other")
        letter = self.take(1)
        if letter in _CONSTANTS:
            return _CONSTANTS[letter]
        if letter == b"g":
            return _FLOAT.unpack(self.take(8))[0]
        if letter in _LEAF_MAKERS:
            return _LEAF_MAKERS[letter](self.take(self._length()))
        if letter in _CONTAINER_MAKERS:
            return self._read_container(letter, depth)
        if letter in _DEVICES and self._device is not None:
            return self._device(Device(letter, self.read(depth + 1)))
        raise ValueError(f"{letter!r} begins no object")

    def _read_container(self, letter: bytes, depth: int) -> Any:
        n = self._length() * (2 if letter == b"d" else 1)
        members = (self.read(depth + 1) for _ in range(n))  # one by one: n may be anything
        return _CONTAINER_MAKERS[letter](members)

    def _length(self) -> int:
        length: int = _LENGTH.unpack(self.take(8))[0]
        return length

    def end(self) -> None:
        if self._at != len(self._text):
            raise ValueError("something comes after it")


def load(text: bytes, device: Callable[[Device], Any] | None = None) -> Any:
    """Return the object that ``dump`` was given; ``device`` makes what ``dump``'s described.

    ValueError, TypeError (an unhashable key), and what ``device`` raises.
    """
    reader = _Reader(text, device)
    loaded = reader.read(0)
    reader.end()
    return loaded
