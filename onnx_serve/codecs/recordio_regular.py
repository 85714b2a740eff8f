"""Equal ``Record`` messages read and written as a matrix of bytes, without protobuf.

Messages that one writer makes for the rows of one table have equal bytes but for the packed floats in them.
The first one is read by its wire format; how many follow that differ in those floats only is a comparison.

Wire format: https://protobuf.dev/programming-guides/encoding/. The schema is in ``recordio``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnx_serve.codecs import recordio_frames as frames
from onnx_serve.codecs.recordio_frames import Run
from onnx_serve.errors import DecodeError
from onnx_serve.protobuf_wire import (
    LEN,
    ONCE,
    MalformedError,
    Message,
    encode_varint,
    field_head,
    wanted_fields,
)

__all__ = [
    "MAX_FEATURES",
    "Column",
    "Packed",
    "Pattern",
    "check_size",
    "encode",
    "equal_records",
    "find_pattern",
    "read",
]

Array: TypeAlias = npt.NDArray[Any]

MAX_FEATURES = 10_000
_NEAR = 4

_RECORD: Message = {1: ("features", LEN), 2: ("label", LEN)}
_ENTRY: Message = {1: ("key", ONCE), 2: ("value", ONCE)}
_VALUE: Message = {2: ("<f4", ONCE), 3: ("<f8", ONCE), 7: ("int32", ONCE), 9: ("bytes", ONCE)}
_TENSOR: Message = {1: ("values", LEN), 2: ("keys", LEN), 3: ("shape", LEN)}
_LABEL = 2
_KINDS = {"f4": 2, "f8": 3, "u1": 7}


@dataclass(frozen=True, slots=True)
class Packed:
    """Where a record holds a feature's floats.

    Attributes:
        name: The feature's.
        start: The offset of the first byte in the record.
        stop: The offset behind the last.
        dtype: The floats' type.
    """

    name: str
    start: int
    stop: int
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A record whose features are plain lists of packed floats.

    Attributes:
        data: Holds it.
        start: Where it starts.
        length: Its bytes.
        packed: Its features, at least one, in their order in it.
    """

    data: bytes
    start: int
    length: int
    packed: tuple[Packed, ...]

    def fixed(self) -> Iterator[tuple[int, int]]:
        """Offsets of the parts around the floats, in order: where each starts, and where it ends."""
        start = 0
        for part in self.packed:
            yield start, part.start
            start = part.stop
        yield start, self.length


@dataclass(frozen=True, slots=True)
class Column:
    """One output of some records.

    Attributes:
        name: Its key in each record's ``label``.
        values: ``[N, K]`` of float32, float64, or uint8 below 128.
        shape: Written along if there is one.
    """

    name: str
    values: Array
    shape: tuple[int, ...] = ()


def check_size(data: bytes, start: int, stop: int) -> None:
    """Refuses a record whose parsed form would be many times as large as its bytes.

    Raises:
        DecodeError: It is no ``Record``, or has more than ``MAX_FEATURES`` features and labels.
    """
    try:
        count = sum(1 for _ in wanted_fields(data, start, stop, _RECORD))
    except MalformedError as ex:
        raise DecodeError(f"expected a protobuf message aialgs.data.Record: {ex}") from None
    if count > MAX_FEATURES:
        raise DecodeError(f"expected at most {MAX_FEATURES} features, got {count}")


def find_pattern(run: Run) -> Pattern | None:
    """What the first record of a run is like, if all its features are plain lists of packed floats."""
    found: list[Packed] = []
    try:
        for field, entry, entry_stop in wanted_fields(run.data, run.start, run.start + run.length, _RECORD):
            if field == "features":
                packed = _packed_feature(run.data, entry, entry_stop, run.start)
                if packed is None:
                    return None
                found.append(packed)
    except (MalformedError, UnicodeDecodeError):
        return None
    if not len({packed.name for packed in found}) == len(found) > 0:
        return None
    return Pattern(run.data, run.start, run.length, tuple(found))


def _packed_feature(data: bytes, start: int, stop: int, record: int) -> Packed | None:
    parts = {name: (a, b) for name, a, b in wanted_fields(data, start, stop, _ENTRY)}
    if parts.keys() != {"key", "value"}:
        return None
    name = data[slice(*parts["key"])].decode()
    values = list(wanted_fields(data, *parts["value"], _VALUE))
    if len(values) != 1 or values[0][0] not in {"<f4", "<f8"}:
        return None
    dtype = np.dtype(values[0][0])
    tensor = list(wanted_fields(data, *values[0][1:], _TENSOR))
    if len(tensor) != 1 or tensor[0][0] != "values":
        return None
    _, first, last = tensor[0]
    if (last - first) % dtype.itemsize or first == last:
        return None
    return Packed(name, first - record, last - record, dtype)


def equal_records(run: Run, pattern: Pattern) -> int:
    """How many records of the run, from the first, are equal to the pattern but for the floats."""
    if run.length != pattern.length:
        return 0
    # Where records differ often, looking far ahead of each would take quadratic time.
    for near in range(min(run.count, _NEAR)):
        if not _is_equal(run, near, pattern):
            return near
    equal = np.ones(run.count, np.bool_)
    for start, stop in pattern.fixed():
        for offset, size in _words(start, stop):
            kind = np.dtype(f"<u{size}")
            words: Array = np.ndarray((run.count,), kind, run.data, run.start + offset, (run.step,))
            [word] = np.frombuffer(pattern.data, kind, 1, pattern.start + offset)
            equal &= words == word
    return run.count if equal.all() else int(equal.argmin())


def _is_equal(run: Run, index: int, pattern: Pattern) -> bool:
    """Whether a record of the run is equal to the pattern."""
    one, other = run.start + index * run.step, pattern.start
    return all(
        run.data[one + start : one + stop] == pattern.data[other + start : other + stop]
        for start, stop in pattern.fixed()
    )


def _words(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Offsets and sizes of words that cover some bytes: as few as can be, the last may overlap the one before."""
    size = next(size for size in (8, 4, 2, 1) if size <= max(1, stop - start))
    for offset in range(start, stop, size):
        yield min(offset, stop - size), size


def read(run: Run, part: Packed, count: int) -> Array:
    """The floats of a feature in the first records of the run, ``[count, K]``, in this machine's byte order."""
    size = part.dtype.itemsize
    shape = (count, (part.stop - part.start) // size)
    values: Array = np.ndarray(shape, part.dtype, run.data, run.start + part.start, (run.step, size))
    return np.array(values, part.dtype.newbyteorder("="))


def encode(columns: Sequence[Column]) -> memoryview:
    """Frames of one record a row, its columns in ``label``, as protobuf would write them.

    Args:
        columns: At least one; of the same number of rows.

    Raises:
        ValueError: A record would be too long for a frame.
    """
    record = bytearray()
    places: list[tuple[int, Array]] = []
    for column in columns:
        kind = column.values.dtype.newbyteorder("<")
        width = column.values.shape[1] * kind.itemsize
        head, tail = _entry(column, width)
        start = len(record) + len(head)
        places.append((start, np.ascontiguousarray(column.values, kind).view(np.uint8)))
        record += head + bytes(width) + tail
    if len(record) > frames.MAX_LENGTH:
        raise ValueError(len(record))
    frame = frames.header(len(record)) + record + bytes(frames.padding(len(record)))
    out = np.empty((len(columns[0].values), len(frame)), np.uint8)
    out[:] = np.frombuffer(frame, np.uint8)
    for start, values in places:
        first = start + len(frame) - len(record) - frames.padding(len(record))
        out[:, first : first + values.shape[1]] = values
    return out.data


def _entry(column: Column, width: int) -> tuple[bytes, bytes]:
    """What stands before and behind the values in an entry of ``label``."""
    head, tail = _field(1, b"", width, b"") if width else (b"", b"")
    if column.shape:
        tail += b"".join(_field(3, b"".join(map(encode_varint, column.shape)), 0, b""))
    head, tail = _field(_KINDS[column.values.dtype.str[1:]], head, width, tail)
    head, tail = _field(2, head, width, tail)
    key = b"".join(_field(1, column.name.encode(), 0, b""))
    return _field(_LABEL, key + head, width, tail)


def _field(number: int, head: bytes, size: int, tail: bytes) -> tuple[bytes, bytes]:
    """A field of ``head``, ``size`` bytes and ``tail``: what stands before those bytes, and behind them."""
    return field_head(number, len(head) + size + len(tail)) + head, tail
