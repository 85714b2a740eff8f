"""``application/vnd.apache.arrow.stream``: record batches in Arrow's streaming format.

https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format. Which columns feed which input is said in
``arrow_inputs``, what an answer's columns are in ``arrow_outputs``.

Nothing a stream declares is trusted: batches may hold and, compressed, unpack to a hundred times the body (in any
case to 64 MiB), and every array is validated before it is read.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from onnx_serve.codecs.interface import Answer, Body, Codec, CodecOptions, Document, MediaType
from onnx_serve.codecs.sections import Appended, Bounded
from onnx_serve.errors import DecodeError, quote
from onnx_serve.tensors import Signature, Tensors

__all__ = ["codec", "decode", "encode"]

_CONTINUATION = b"\xff\xff\xff\xff"
_MAX_METADATA = 1 << 24
_DICTIONARY, _RECORDS = 2, 3
_BATCH_BYTES = 1 << 20


def decode(
    body: Body, media_type: MediaType, signature: Signature, options: CodecOptions
) -> Iterator[Document]:
    """One document: the rows of all batches, cut into blocks of about ``options.chunk_bytes``.

    Memory: one record batch and its blocks; the stream's writer chose how large it is.

    Raises:
        DecodeError: The stream is damaged, refused or too large, or its columns are not what the model takes.
    """
    del media_type
    # pyarrow is loaded by the first request that needs it.
    from pyarrow import ipc  # noqa: PLC0415

    from onnx_serve.codecs import arrow_inputs  # noqa: PLC0415

    file = Bounded(body)
    _check_messages(file, arrow_inputs.decoded_limit(body.length))
    try:
        file.seek(0)
        schema = ipc.open_stream(file).schema
        plan = arrow_inputs.plan(schema, signature)
        file.seek(0)
        places = {name: place for place, name in enumerate(schema.names)}
        fields = [places[name] for name in plan.columns]
        reader = ipc.open_stream(file, options=ipc.IpcReadOptions(included_fields=fields, use_threads=False))
    except arrow_inputs.DAMAGE as ex:
        raise _damaged(ex) from None
    yield Document(_blocks(reader, plan, arrow_inputs.decoded_limit(body.length), options.chunk_bytes))


def _blocks(reader: Any, plan: Any, limit: int, block_bytes: int) -> Iterator[Tensors]:
    from onnx_serve.codecs import arrow_inputs  # noqa: PLC0415 - loads pyarrow

    done = 0
    while True:
        try:
            batch = reader.read_next_batch()
            batch.validate(full=True)
            # A column of nulls, or none at all, has rows without bytes.
            if (done + batch.num_rows) * max(1, plan.row_bytes()) > limit:
                raise _too_large(limit)
            yield from arrow_inputs.blocks(batch, plan, done + 1, block_bytes)
        except StopIteration:
            return
        except arrow_inputs.DAMAGE as ex:
            raise _damaged(ex) from None
        done += batch.num_rows


def _check_messages(file: Bounded, limit: int) -> None:
    """Reads what all messages say of their sizes, and refuses a stream that would need too much memory."""
    total = 0
    while (metadata := _read_metadata(file)) is not None:
        start = file.tell()
        try:
            message = _Table.root(metadata)
            length = message.number(3, "<q")
            if message.number(1, "<B") in {_DICTIONARY, _RECORDS}:
                batch = message.table(2)
                if message.number(1, "<B") == _DICTIONARY:
                    batch = batch.table(1)
                total += _batch_bytes(file, batch, start)
        except (struct.error, ValueError):
            raise DecodeError("expected an Arrow stream, got a damaged one (a message's header)") from None
        if total > limit:
            raise _too_large(limit)
        if not 0 <= length <= file.length - start:
            raise DecodeError(f"the stream ends {length - (file.length - start)} bytes early")
        file.seek(start + length)


def _read_metadata(file: Bounded) -> bytes | None:
    """The header of the next message, or None at the stream's end."""
    prefix = file.read(4)
    # Streams of before Arrow 0.15 have no continuation mark.
    size = file.read(4) if prefix == _CONTINUATION else prefix
    if not prefix or size == b"\0\0\0\0":
        return None
    length = int.from_bytes(size, "little")
    if len(size) < 4 or not 0 < length <= min(_MAX_METADATA, file.length - file.tell()):  # noqa: PLR2004 - an int32
        raise DecodeError(f"expected an Arrow stream, got {quote(prefix)} where a message begins")
    return file.read(length)


def _batch_bytes(file: Bounded, batch: "_Table", body: int) -> int:
    """How many bytes a batch is in memory: its buffers unpacked, and one byte each of its values at least."""
    total: int = max(0, *(struct.unpack_from("<q", batch.data, at)[0] for at in batch.structs(1, 16)), 0)
    if not batch.has(3):
        return total
    for at in batch.structs(2, 16):
        offset, length = struct.unpack_from("<qq", batch.data, at)
        if length:
            file.seek(body + offset)
            # -1: this buffer is not compressed.
            unpacked = struct.unpack("<q", file.read(8))[0]
            total += max(unpacked, length)
    return total


class _Table:
    """A table of a flatbuffer, read by field number: https://flatbuffers.dev/internals/."""

    def __init__(self, data: bytes, pos: int) -> None:
        self.data = data
        self._pos = pos
        self._vtable = pos - self._unpack("<i", pos)
        self._size = self._unpack("<H", self._vtable)

    @classmethod
    def root(cls, data: bytes) -> "_Table":
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def has(self, field: int) -> bool:
        return bool(self._field(field))

    def number(self, field: int, kind: str) -> int:
        """A number, or 0, which is what Arrow's schema has for those that are left out."""
        at = self._field(field)
        return self._unpack(kind, at) if at else 0

    def table(self, field: int) -> "_Table":
        return _Table(self.data, self._target(field))

    def structs(self, field: int, size: int) -> range:
        """Where each item of a list of structures starts."""
        if not self.has(field):
            return range(0)
        at = self._target(field)
        count = self._unpack("<I", at)
        if count * size > len(self.data):
            raise ValueError(count)
        return range(at + 4, at + 4 + count * size, size)

    def _field(self, field: int) -> int:
        slot = 4 + 2 * field
        offset = self._unpack("<H", self._vtable + slot) if slot < self._size else 0
        return self._pos + offset if offset else 0

    def _target(self, field: int) -> int:
        at = self._field(field)
        if not at:
            raise ValueError(field)
        return at + self._unpack("<I", at)

    def _unpack(self, kind: str, at: int) -> int:
        # A negative place would count from the end.
        if at < 0:
            raise ValueError(at)
        value: int = struct.unpack_from(kind, self.data, at)[0]
        return value


def _too_large(limit: int) -> DecodeError:
    return DecodeError(f"expected a stream that unpacks to at most {limit} bytes")


def _damaged(ex: BaseException) -> DecodeError:
    return DecodeError(f"expected an Arrow stream, got a damaged one ({quote(ex)})")


def encode(
    answers: Iterable[Answer],
    sink: BinaryIO,
    media_type: MediaType,
    signature: Signature,
    options: CodecOptions,
) -> None:
    """Writes one row a prediction and one column an output, in batches of about a MiB.

    Raises:
        EncodeError: An output has no form in a table, or another number of rows than the others.
    """
    del media_type, options
    from pyarrow import ipc  # noqa: PLC0415 - loaded by the first answer that needs it

    from onnx_serve.codecs import arrow_outputs  # noqa: PLC0415

    columns = arrow_outputs.schema(signature)
    tables = arrow_outputs.tables(answers, signature, columns, _BATCH_BYTES)
    first = next(tables, None)
    with ipc.new_stream(Appended(sink), columns) as writer:
        if first is not None:
            writer.write_table(first)
        for table in tables:
            writer.write_table(table)


codec = Codec(("application/vnd.apache.arrow.stream",), decode, encode, mirrored=True)
