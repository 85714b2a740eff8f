"""Records out of files, packed into requests as Batch Transform's agent does it.

MULTI_RECORD puts as many whole records into a request as ``MaxPayloadInMB`` allows, SINGLE_RECORD one; a record
that alone exceeds it is an error; requests never span files:
https://docs.aws.amazon.com/sagemaker/latest/dg/batch-transform.html and ``batch-transform-errors.html`` beside it.
Lines end at a newline, whatever quotes surround it, and keep it and a carriage return before it; blank lines are
records too. RecordIO records keep their frames in MULTI_RECORD and lose them in SINGLE_RECORD:
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_TransformInput.html (SplitType).

A file is read once; what is held of it is at most two requests.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from onnx_serve.codecs.recordio_frames import MAGIC, padding
from onnx_serve.errors import DecodeError, PayloadTooLarge

__all__ = ["MiniBatch", "line_batches", "recordio_batches"]

_FRAME = struct.Struct("<4sI")
_LENGTH_BITS = 29
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)


@dataclass(frozen=True, slots=True)
class MiniBatch:
    """The body of one request.

    Attributes:
        data: One or more records; nothing for an empty file.
        first: The number in its file of the first one, from 1.
        records: How many they are.
    """

    data: bytes
    first: int
    records: int


def line_batches(stream: BinaryIO, limit_bytes: int, *, single: bool) -> Iterator[MiniBatch]:
    """The lines of a file in requests.

    An empty file is one empty request, or with ``single`` none at all: so it is in the local mode of the
    SageMaker Python SDK v2.

    Args:
        stream: Read from its position to its end.
        limit_bytes: Of one request.
        single: One line a request.

    Raises:
        PayloadTooLarge: A line is longer than the limit.
    """
    return _single_lines(stream, limit_bytes) if single else _packed_lines(stream, limit_bytes)


def recordio_batches(stream: BinaryIO, limit_bytes: int, *, single: bool) -> Iterator[MiniBatch]:
    """The records of a RecordIO file in requests; arguments as for ``line_batches``.

    Raises:
        DecodeError: Something else stands where a frame is due, or the file ends within one.
        PayloadTooLarge: A record is longer than the limit.
    """
    records = _recordio(stream, limit_bytes)
    if single:
        for number, (_, payload) in enumerate(records, 1):
            yield MiniBatch(payload, number, 1)
        return
    packed: list[bytes] = []
    first = number = 1
    size = 0
    for number, (frames, _) in enumerate(records, 1):
        if packed and size + len(frames) > limit_bytes:
            yield MiniBatch(b"".join(packed), first, len(packed))
            packed, first, size = [], number, 0
        packed.append(frames)
        size += len(frames)
    yield MiniBatch(b"".join(packed), first, len(packed))


def _packed_lines(stream: BinaryIO, limit_bytes: int) -> Iterator[MiniBatch]:
    first = 1
    rest = b""
    while True:
        # One byte more than fits tells the end of the file from a full request.
        data = rest + _read(stream, limit_bytes + 1 - len(rest))
        is_last = len(data) <= limit_bytes
        end = len(data) if is_last else data.rfind(b"\n", 0, limit_bytes) + 1
        if not end and not is_last:
            raise _too_large(limit_bytes, first)
        lines = data.count(b"\n", 0, end) + (end > 0 and data[end - 1 : end] != b"\n")
        if end or first == 1:
            yield MiniBatch(data[:end], first, lines)
        if is_last:
            return
        first += lines
        rest = data[end:]


def _single_lines(stream: BinaryIO, limit_bytes: int) -> Iterator[MiniBatch]:
    number = 0
    while line := stream.readline(limit_bytes + 1):
        number += 1
        if len(line) > limit_bytes:
            raise _too_large(limit_bytes, number)
        yield MiniBatch(line, number, 1)


def _recordio(stream: BinaryIO, limit_bytes: int) -> Iterator[tuple[bytes, bytes]]:
    """Each record with its frames, and its payload alone."""
    number = 1
    while head := _read(stream, _FRAME.size):
        frames: list[bytes] = []
        parts: list[bytes] = []
        left = limit_bytes
        while True:
            flag, payload, frame = _frame(stream, head, number, left)
            left -= len(frame)
            if (flag in (_MIDDLE, _LAST)) != bool(frames):
                raise DecodeError("RecordIO: expected the parts of a record in order", record=number)
            frames.append(frame)
            parts.append(payload)
            if flag in (_WHOLE, _LAST):
                break
            head = _read(stream, _FRAME.size)
        # The magic number inside a record is where it was cut, and left out.
        yield b"".join(frames), MAGIC.join(parts)
        number += 1


def _frame(stream: BinaryIO, head: bytes, number: int, limit_bytes: int) -> tuple[int, bytes, bytes]:
    """The frame's flag, its payload, and the whole of it."""
    if len(head) < _FRAME.size or not head.startswith(MAGIC):
        raise DecodeError("RecordIO: expected the magic number 0xced7230a and a length", record=number)
    word = _FRAME.unpack(head)[1]
    length = word & ((1 << _LENGTH_BITS) - 1)
    padded = length + padding(length)
    if _FRAME.size + padded > limit_bytes:
        raise _too_large(limit_bytes, number)
    data = _read(stream, padded)
    if len(data) < padded:
        raise DecodeError(
            f"RecordIO: expected {padded} bytes, the file ends after {len(data)}", record=number
        )
    return word >> _LENGTH_BITS, data[:length], head + data


def _read(stream: BinaryIO, size: int) -> bytes:
    """So many bytes, or fewer at the stream's end only."""
    data = stream.read(size)
    if len(data) == size or not data:
        return data
    parts = [data]
    missing = size - len(data)
    while missing and (part := stream.read(missing)):
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _too_large(limit_bytes: int, number: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"record {number} is longer than the {limit_bytes} bytes that MaxPayloadInMB allows a request"
    )
