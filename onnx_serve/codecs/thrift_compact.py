"""Thrift's compact protocol, in which Parquet writes its footer and the headers of its pages.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md

A structure is read as its fields by number, each with its type: what has another type than its schema says can then
be told from what is missing, as Thrift's own readers do.
"""

from typing import Any, TypeAlias

from onnx_serve.errors import DecodeError

__all__ = [
    "BINARY",
    "I32",
    "I64",
    "LIST",
    "STRUCT",
    "CutOffError",
    "Struct",
    "field",
    "read_struct",
    "write_struct",
]

_TRUE, _FALSE, _I8, _I16, I32, I64, _DOUBLE, BINARY, LIST = range(1, 10)
STRUCT = 12
_LIMITS = {_I16: 1 << 15, I32: 1 << 31, I64: 1 << 63}
# Fields by number: type and value. A list is the type of its items and the items.
Struct: TypeAlias = dict[int, tuple[int, Any]]

_MAX_DEPTH = 16
_MAX_VALUES = 1_000_000


class CutOffError(Exception):
    """The bytes end within the structure."""


def read_struct(data: bytes, what: str) -> tuple[Struct, int]:
    """The structure at the start of some bytes, and where it ends; errors call it ``what``.

    Raises:
        CutOffError: It has no end.
        DecodeError: It is malformed, or has more than a million values.
    """
    reader = _Reader(data, what)
    try:
        return reader.struct(0), reader.pos
    except IndexError:
        raise CutOffError from None


def field(struct: Struct, number: int, kind: int) -> Any:
    """A field's value, or None if there is none of that type."""
    found = struct.get(number)
    return found[1] if found is not None and found[0] == kind else None


class _Reader:
    """Reads from ``pos`` on; an IndexError says that the bytes end too early."""

    def __init__(self, data: bytes, what: str) -> None:
        self.pos = 0
        self._what = what
        self._data = data
        self._left = _MAX_VALUES

    def struct(self, depth: int) -> Struct:
        if depth > _MAX_DEPTH:
            raise DecodeError(f"{self._what} is nested too deeply")
        data = self._data
        fields: Struct = {}
        number = 0
        while head := data[self.pos]:
            self.pos += 1
            number = number + (head >> 4) if head >> 4 else self._signed()
            if number in fields:
                raise DecodeError(f"{self._what} has a field twice")
            if not 0 < number < _LIMITS[_I16]:
                raise DecodeError(f"{self._what} is malformed")
            kind = head & 15
            # In a structure, a boolean is its type.
            fields[number] = (kind, None if kind in {_TRUE, _FALSE} else self._value(kind, depth))
        self.pos += 1
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        self._left -= 1
        if self._left < 0:
            raise DecodeError(f"{self._what} has more than {_MAX_VALUES} values")
        if kind in _LIMITS:
            number = self._signed()
            # Readers that cut a longer number down would see another one.
            if not -_LIMITS[kind] <= number < _LIMITS[kind]:
                raise DecodeError(f"{self._what} is malformed")
            return number
        if kind == BINARY:
            return self._bytes(self._unsigned())
        if kind == STRUCT:
            return self.struct(depth + 1)
        if kind == LIST:
            return self._list(depth)
        if kind in {_TRUE, _FALSE, _I8}:
            return self._bytes(1)
        if kind == _DOUBLE:
            return self._bytes(8)
        # Parquet has neither sets nor maps.
        raise DecodeError(f"{self._what} is malformed")

    def _list(self, depth: int) -> tuple[int, list[Any]]:
        if depth > _MAX_DEPTH:
            raise DecodeError(f"{self._what} is nested too deeply")
        head = self._bytes(1)[0]
        count = head >> 4
        if count == 15:  # noqa: PLR2004 - a longer list has its length in a number of its own
            count = self._unsigned()
        return head & 15, [self._value(head & 15, depth + 1) for _ in range(count)]

    def _bytes(self, size: int) -> bytes:
        start, self.pos = self.pos, self.pos + size
        if self.pos > len(self._data):
            raise IndexError
        return self._data[start : self.pos]

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def _unsigned(self) -> int:
        value = shift = 0
        while (byte := self._data[self.pos]) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            self.pos += 1
            if shift > 63:  # noqa: PLR2004 - the bits of the longest number
                raise DecodeError(f"{self._what} is malformed")
        self.pos += 1
        return value | byte << shift


def write_struct(struct: Struct) -> bytes:
    """The bytes of a structure as ``read_struct`` gives it."""
    out = bytearray()
    _write_struct(out, struct)
    return bytes(out)


def _write_struct(out: bytearray, struct: Struct) -> None:
    for number, (kind, value) in struct.items():
        out.append(kind)
        _write_unsigned(out, number << 1)
        if kind not in {_TRUE, _FALSE}:
            _write_value(out, kind, value)
    out.append(0)


def _write_value(out: bytearray, kind: int, value: Any) -> None:
    if kind in _LIMITS:
        _write_unsigned(out, value << 1 if value >= 0 else ~(value << 1))
    elif kind == STRUCT:
        _write_struct(out, value)
    elif kind == LIST:
        item_kind, items = value
        out.append(0xF0 | item_kind)
        _write_unsigned(out, len(items))
        for item in items:
            _write_value(out, item_kind, item)
    else:
        if kind == BINARY:
            _write_unsigned(out, len(value))
        out += value


def _write_unsigned(out: bytearray, value: int) -> None:
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte, the eighth says that more follow
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
