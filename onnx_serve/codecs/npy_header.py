"""The header of an ``.npy`` file: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.

It is read by a grammar of its own, not by ``ast.literal_eval``, whose documentation warns of exhausted memory
and stack on untrusted input (https://docs.python.org/3/library/ast.html#ast.literal_eval).
"""

import io
import math
import re
import struct
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnx_serve.errors import DecodeError, quote
from onnx_serve.tensors import format_shape

__all__ = ["Header", "Readable", "header_bytes", "read_exactly", "read_header", "show_shape"]

_MAGIC = b"\x93NUMPY"
# By major version: how the header's length is written.
_LENGTHS = {1: struct.Struct("<H"), 2: struct.Struct("<I"), 3: struct.Struct("<I")}
_MAX_HEADER = 10_000  # numpy.load's own default
_MAX_RANK = 64  # NumPy's own limit
# An array whose elements take no bytes could declare any number of them.
_MAX_ELEMENTS_WITHOUT_DATA = 1 << 16
# What separates Python's tokens; \s would take more, and NumPy would not read it.
_SPACE = " \t\f\r\n"
_ENTRY = re.compile(
    rf"""[{_SPACE}]*(?P<q>['"])(?P<key>\w+)(?P=q)[{_SPACE}]*:[{_SPACE}]*
    (?:(?P<r>['"])(?P<text>[^'"\\]*)(?P=r)|(?P<flag>True|False)|\((?P<shape>[^()]*)\)|(?P<fields>\[))
    [{_SPACE}]*(?P<comma>,?)[{_SPACE}]*""",
    re.VERBOSE,
)
_SIZE = re.compile(rf"[{_SPACE}]*(-?)(0|[1-9][0-9]{{0,18}})L?[{_SPACE}]*")  # Python 2 wrote 3L
_DTYPE = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|[US][0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Header:
    """What an ``.npy`` file says of its array.

    Attributes:
        dtype: Booleans, integers, floats, ``U`` or ``S``, in the file's byte order.
        shape: At most 64 dimensions.
        fortran_order: Whether the first dimension varies fastest in the file, where that differs from C.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the array's data in the file."""
        return self.dtype.itemsize * math.prod(self.shape)


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end only."""
        ...


def read_header(stream: Readable, length: int, place: str = "") -> Header:
    """The header of an ``.npy`` file, after which the stream stands at the data.

    Args:
        stream: At the file's first byte.
        length: Bytes of the whole file; what follows the header must be exactly what the header declares.
        place: Begins the errors' messages: nothing, or ``member "x.npy": ``.

    Raises:
        DecodeError: The header is malformed, its type is none of a tensor, or the sizes differ.
    """
    start = read_exactly(stream, min(length, 8), place)
    if start[:6] != _MAGIC:
        raise DecodeError(f'{place}expected an .npy file, which begins with "\\x93NUMPY", got {quote(start)}')
    size = _LENGTHS.get(start[6]) if start[7:] == b"\0" else None
    if size is None:
        raise DecodeError(
            f"{place}expected version 1.0, 2.0 or 3.0 of the .npy format, got {quote(start[6:].hex('.'))}"
        )
    (header_length,) = size.unpack(read_exactly(stream, size.size, place))
    if header_length > _MAX_HEADER:
        raise DecodeError(
            f"{place}expected an .npy header of at most {_MAX_HEADER} bytes, got {header_length}"
        )
    header = _parse_header(read_exactly(stream, header_length, place).decode("latin-1"), place)
    given = length - 8 - size.size - header_length
    if header.nbytes != given:
        raise DecodeError(
            f"{place}expected {header.nbytes} bytes of data for {header.dtype}{show_shape(header.shape)}, got {given}"
        )
    if not header.nbytes and math.prod(max(1, n) for n in header.shape) > _MAX_ELEMENTS_WITHOUT_DATA:
        raise DecodeError(
            f"{place}expected dimensions of at most {_MAX_ELEMENTS_WITHOUT_DATA} in all for an array "
            f"without data, got {show_shape(header.shape)}"
        )
    return header


def header_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """A header of version 1.0; its length does not depend on dimension 0.

    NumPy leaves room for that dimension to grow: ``GROWTH_AXIS_MAX_DIGITS`` in
    https://github.com/numpy/numpy/blob/main/numpy/lib/_format_impl.py.
    """
    header = io.BytesIO()
    fields = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()


def read_exactly(stream: Readable, size: int, place: str = "") -> bytes:
    """So many bytes of a stream, whatever it gives at once.

    Args:
        stream: At the first of them.
        size: Bytes, no more than the body is known to hold.
        place: Begins the error's message: nothing, or ``member "x.npy": ``.

    Raises:
        DecodeError: The stream ends early.
    """
    data = stream.read(size) if size else b""
    if len(data) == size:
        return data
    parts = [data]
    left = size - len(data)
    while left and parts[-1]:
        parts.append(stream.read(left))
        left -= len(parts[-1])
    if left:
        raise DecodeError(f"{place}the file ends {left} bytes early")
    return b"".join(parts)


def show_shape(shape: tuple[int, ...]) -> str:
    """``[3, 4]``, at most eight dimensions of it, for messages."""
    text = format_shape(shape[:8])
    return text if len(shape) <= 8 else f"{text[:-1]}, ...]"  # noqa: PLR2004 - a message's length


def _parse_header(text: str, place: str) -> Header:
    stripped = text.strip(_SPACE)
    inner = stripped[1:-1] if stripped[:1] == "{" and stripped[-1:] == "}" else ""
    fields: dict[str, Any] = {}
    end, more = 0, True
    while more and end < len(inner):
        entry = _ENTRY.match(inner, end)
        if entry is None:
            raise _malformed(text, place)
        if entry["fields"]:
            raise DecodeError(f"{place}expected numbers, booleans or strings, got a structured array")
        fields[entry["key"]] = _field(entry, place)
        end, more = entry.end(), bool(entry["comma"])
    descr, shape, fortran_order = (fields.get(key) for key in ("descr", "shape", "fortran_order"))
    types_fit = isinstance(descr, str) and isinstance(shape, tuple) and isinstance(fortran_order, bool)
    if end < len(inner) or len(fields) != 3 or not types_fit:  # noqa: PLR2004 - the three that were asked for
        raise _malformed(text, place)
    assert isinstance(descr, str)
    assert isinstance(shape, tuple)
    if len(shape) > _MAX_RANK:
        raise DecodeError(f"{place}expected at most {_MAX_RANK} dimensions, got {len(shape)}")
    return Header(_dtype(descr, place), shape, bool(fortran_order) and len(shape) > 1)


def _field(entry: re.Match[str], place: str) -> str | bool | tuple[int, ...]:
    if entry["text"] is not None:
        return entry["text"]
    if entry["flag"]:
        return entry["flag"] == "True"
    items = entry["shape"].split(",")
    sizes = []
    # A tuple of one ends with a comma, and any other may.
    for item in items[:-1] if not items[-1].strip(_SPACE) else items:
        size = _SIZE.fullmatch(item)
        if size is None or size[1] or len(items) == 1:
            raise DecodeError(
                f"{place}expected a shape such as (3, 4), of dimensions from 0 to 2^63, got "
                f"{quote(entry['shape'])}"
            )
        sizes.append(int(size[2]))
    return tuple(sizes)


def _dtype(descr: str, place: str) -> np.dtype[Any]:
    if "O" in descr:
        raise DecodeError(
            f"{place}object arrays are pickled and never read; send strings as an array of dtype <U "
            '(array.astype("U")) and numbers as one of a numeric dtype'
        )
    if not _DTYPE.fullmatch(descr):
        raise DecodeError(
            f"{place}expected a dtype of booleans, integers, floats of 2, 4 or 8 bytes, <U or |S, got {quote(descr)}"
        )
    try:
        return np.dtype(descr)
    except (TypeError, ValueError):
        raise DecodeError(f"{place}strings of dtype {quote(descr)} are too long") from None


def _malformed(text: str, place: str) -> DecodeError:
    return DecodeError(
        f"{place}expected an .npy header such as {{'descr': '<f4', 'fortran_order': False, "
        f"'shape': (3, 4)}}, got {quote(text)}"
    )
