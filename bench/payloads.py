"""Records of a zoo's model as a batch job sends them: encoded once, packed into bodies beforehand.

A payload holds whole records, as many as fit, as the platform's ``MULTI_RECORD`` does, or one, as its
``SINGLE_RECORD`` does (https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTransformJob.html).
The platform splits lines; for JSON and NPY, which it sends whole, a payload stands for a file.
"""

import io
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from bench.model_zoo import CSV, JSON, JSON_LINES, NPY, Records, ZooModel

MIB = 1 << 20
_DISTINCT_BYTES, _DISTINCT_RECORDS = 3 << 20, 20_000
_DRAWN_AT_ONCE = 64
_FRAME_BYTES = 128


@dataclass(frozen=True)
class Payload:
    """The body of one request, and how many records it holds."""

    body: bytes
    records: int


@dataclass(frozen=True)
class Source:
    """Distinct records of one model in one format; a longer file repeats them.

    Attributes:
        content_type: The format.
        records: Each one encoded: a line with its newline, an element of a JSON list, bytes of an array.
        shape: Of one record's array; for NPY.
        element: Type of its elements, as NPY names it.
    """

    content_type: str
    records: tuple[bytes, ...]
    shape: tuple[int, ...] = ()
    element: str = ""

    @property
    def mean_bytes(self) -> float:
        """Of a record."""
        return sum(map(len, self.records)) / len(self.records)

    def fits(self, limit_bytes: int) -> int:
        """How many records a body of that size holds; 0 if not one."""
        room = limit_bytes - (_FRAME_BYTES if self.content_type in {JSON, NPY} else 0)
        rounds, rest = divmod(max(room, 0), self._ends[-1])
        return rounds * len(self._ends) + bisect_right(self._ends, rest)

    @cached_property
    def _ends(self) -> list[int]:
        """Where each record ends in a body, commas counted."""
        comma = self.content_type == JSON
        return list(accumulate(len(record) + comma for record in self.records))

    def pack(self, count: int, *, padded_to: int = 0) -> Payload:
        """A body of so many records, in JSON lines padded with blanks to a size."""
        whole, rest = divmod(count, len(self.records))
        records = self.records * whole + self.records[:rest]
        if padded_to and self.content_type == JSON_LINES:
            records = tuple(record.rjust(padded_to // count) for record in records)
        return Payload(self._frame(records), count)

    def single(self, count: int) -> Iterator[Payload]:
        """So many records, one in a body."""
        bodies = [Payload(self._frame((record,)), 1) for record in self.records[:count]]
        for index in range(count):
            yield bodies[index % len(bodies)]

    def cut(self, count: int, per_payload: int) -> Iterator[Payload]:
        """A file of ``count`` records in bodies of ``per_payload``, the last one shorter."""
        whole, rest = divmod(count, per_payload)
        if whole:
            payload = self.pack(per_payload)
            yield from (payload for _ in range(whole))
        if rest:
            yield self.pack(rest)

    def _frame(self, records: tuple[bytes, ...]) -> bytes:
        if self.content_type == JSON:
            return b'{"instances":[' + b",".join(records) + b"]}"
        return (self._npy_header(len(records)) if self.content_type == NPY else b"") + b"".join(records)

    def _npy_header(self, rows: int) -> bytes:
        header = io.BytesIO()
        described: dict[str, Any] = {
            "descr": self.element,
            "fortran_order": False,
            "shape": (rows, *self.shape),
        }
        np.lib.format.write_array_header_1_0(header, described)
        return header.getvalue()


def draw(model: ZooModel, content_type: str, seed: int = 0) -> Source:
    """Seeded records of a model in a format, of some megabytes and at least eight."""
    rng = np.random.default_rng(seed)
    encoded: list[bytes] = []
    size, at_once = 0, 8
    while len(encoded) < 8 or (size < _DISTINCT_BYTES and len(encoded) < _DISTINCT_RECORDS):
        drawn = model.draw(rng, at_once)
        encoded += _encode(drawn, at_once, content_type)
        size, at_once = sum(map(len, encoded)), _DRAWN_AT_ONCE if size < _DISTINCT_BYTES else 8
    if content_type != NPY:
        return Source(content_type, tuple(encoded))
    [array] = drawn.values()
    return Source(content_type, tuple(encoded), array.shape[1:], array.dtype.str)


def _encode(records: Records, count: int, content_type: str) -> Iterator[bytes]:
    if content_type == NPY:
        [array] = records.values()
        return (array[row].tobytes() for row in range(count))
    if content_type == CSV:
        return (b",".join(_cells(array[row]) for array in records.values()) + b"\n" for row in range(count))
    newline = b"\n" if content_type == JSON_LINES else b""
    return (_element(records, row) + newline for row in range(count))


def _cells(array: npt.NDArray[Any]) -> bytes:
    """The values of a record's input, comma-separated; quoted text has no quotes inside."""
    return _dump(array.reshape(-1))[1:-1]


def _element(records: Records, row: int) -> bytes:
    """A record in JSON: the only input's value, or an object of all."""
    if len(records) == 1:
        return _dump(next(iter(records.values()))[row])
    return b"{%b}" % b",".join(
        b'"%b":%b' % (name.encode(), _dump(array[row])) for name, array in records.items()
    )


def _dump(array: npt.NDArray[Any]) -> bytes:
    plain = array.tolist() if array.dtype == object else np.ascontiguousarray(array)
    return orjson.dumps(plain, option=orjson.OPT_SERIALIZE_NUMPY)
