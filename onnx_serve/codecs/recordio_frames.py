"""RecordIO's framing: records one after another, each behind a magic number and its length.

A frame is ``uint32 magic``, ``uint32 (flag << 29 | length)``, both little-endian, ``length`` bytes and zeros up
to a multiple of 4. The flag is 0 for a whole record and 1, 2, 3 for the first, middle and last part of one that
was cut where the magic number occurs in it; the number itself is left out between the parts.
https://github.com/dmlc/dmlc-core/blob/main/include/dmlc/recordio.h
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnx_serve.codecs.interface import Body
from onnx_serve.errors import DecodeError

__all__ = ["MAGIC", "MAX_LENGTH", "Run", "header", "padding", "runs"]

MAGIC = struct.pack("<I", 0xCED7230A)
MAX_LENGTH = (1 << 29) - 1
_HEADER = struct.Struct("<4sI")
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive records of one length.

    Attributes:
        data: Holds them; not only them.
        start: Where the first one's payload starts.
        length: Bytes of each payload.
        step: Bytes from one payload's start to the next one's.
        count: How many they are.
        number: The first one's number in the body, from 1.
    """

    data: bytes
    start: int
    length: int
    step: int
    count: int
    number: int

    def after(self, done: int) -> "Run":
        """The records behind so many of them."""
        start = self.start + done * self.step
        return Run(self.data, start, self.length, self.step, self.count - done, self.number + done)


def header(length: int) -> bytes:
    """What stands before a whole record of so many bytes."""
    return _HEADER.pack(MAGIC, length)


def padding(length: int) -> int:
    """How many zeros follow a payload of so many bytes."""
    return -length % 4


def runs(body: Body, chunk_bytes: int) -> Iterator[Run]:
    """All records of a body in order; a body that does not begin with the magic number is one bare record.

    Batch Transform takes frames away when it splits by RecordIO and sends records one by one:
    https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_TransformInput.html (SplitType).

    Args:
        body: No bytes at all are no records.
        chunk_bytes: Bytes that are held at once; a longer record is held whole.

    Raises:
        DecodeError: Something else stands where a frame is due, or the body ends within one.
    """
    window = _Window(body, chunk_bytes)
    if not window.fill(1):
        return
    if not (window.fill(4) and window.data.startswith(MAGIC, window.pos)):
        if body.length > MAX_LENGTH:
            raise DecodeError(f"expected a record of less than 2^29 bytes, got {body.length}")
        window.fill(body.length)
        yield Run(window.data, window.pos, len(window.data) - window.pos, 0, 1, 1)
        return
    number = 1
    while window.fill(1):
        flag, length = _read_header(window, number)
        if flag == _WHOLE:
            run = _equal_frames(window, length, number, chunk_bytes)
            yield run
            number += run.count
        else:
            payload = b"".join(_parts(window, flag, length, number))
            yield Run(payload, 0, len(payload), 0, 1, number)
            number += 1


class _Window:
    """The part of a body that is in memory, from ``pos`` on not yet used: all of it where the stream is."""

    def __init__(self, body: Body, chunk_bytes: int) -> None:
        self.data = b""
        self.pos = 0
        self._stream = body.stream
        self._left = body.length
        self._chunk_bytes = chunk_bytes
        if type(body.stream) is io.BytesIO:
            # The stream's own memory, not a copy of it, in CPython since 3.5: https://bugs.python.org/issue22003
            self.data, self.pos, self._left = body.stream.getvalue(), body.stream.tell(), 0

    def fill(self, size: int) -> bool:
        """Whether there are so many bytes left; if so, they are in ``data`` from ``pos`` on."""
        held = len(self.data) - self.pos
        if held >= size:
            return True
        # A forged length must not reserve memory: nothing is read that the body does not hold.
        if size - held > self._left:
            return False
        parts = [self.data[self.pos :]] if held else []
        missing = min(max(size, self._chunk_bytes) - held, self._left)
        while missing and (part := self._stream.read(missing)):
            parts.append(part)
            missing -= len(part)
            self._left -= len(part)
        self.data, self.pos = b"".join(parts), 0
        return len(self.data) >= size

    def rest(self) -> int:
        """How many bytes the body has from ``pos`` on."""
        return len(self.data) - self.pos + self._left


def _read_header(window: _Window, number: int) -> tuple[int, int]:
    """The flag and length of the frame at ``pos``, whose payload is then in memory."""
    if not window.fill(_HEADER.size):
        raise DecodeError(f"the body ends after {window.rest()} of a frame's first 8 bytes", record=number)
    magic, word = _HEADER.unpack_from(window.data, window.pos)
    if magic != MAGIC:
        raise DecodeError(f"expected the magic number 0a23d7ce of a frame, got {magic.hex()}", record=number)
    flag, length = word >> 29, word & MAX_LENGTH
    if flag > _LAST:
        raise DecodeError(f"expected a frame's flag to be 0, 1, 2 or 3, got {flag}", record=number)
    if not window.fill(_HEADER.size + length):
        raise DecodeError(
            f"expected a frame of {length} bytes, got {window.rest() - _HEADER.size} up to the body's end",
            record=number,
        )
    window.fill(min(_HEADER.size + length + padding(length), window.rest()))
    return flag, length


def _equal_frames(window: _Window, length: int, number: int, most_bytes: int) -> Run:
    """The frames in memory, up to so many bytes, that have the same first 8 bytes as the one at ``pos``."""
    start, data = window.pos, window.data
    step = _HEADER.size + length + padding(length)
    first = data[start : start + _HEADER.size]
    count = 1
    if data[start + step : start + step + _HEADER.size] == first:
        held = max(1, min(most_bytes, len(data) - start) // step)
        words: npt.NDArray[np.uint64] = np.ndarray((held,), "<u8", data, start, (step,))
        equal = words == words[0]
        count = held if equal.all() else int(equal.argmin())
    # The last frame of a body may lack its padding.
    window.pos = min(start + max(count, 1) * step, len(data))
    return Run(data, start + _HEADER.size, length, step, max(count, 1), number)


def _parts(window: _Window, flag: int, length: int, number: int) -> Iterator[bytes]:
    """The payloads of the frames that make one record, with the magic numbers between them."""
    expected: tuple[int, ...] = (_FIRST,)
    while True:
        if flag not in expected:
            raise DecodeError(
                f"expected a frame's flag to be {' or '.join(map(str, expected))}, got {flag}", record=number
            )
        start = window.pos + _HEADER.size
        yield window.data[start : start + length]
        window.pos = min(start + length + padding(length), len(window.data))
        if flag == _LAST:
            return
        yield MAGIC
        expected = (_MIDDLE, _LAST)
        if not window.fill(1):
            raise DecodeError("the body ends before the last part of a record", record=number)
        flag, length = _read_header(window, number)
