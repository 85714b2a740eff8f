"""``application/x-recordio-protobuf``: framed ``aialgs.data.Record`` messages, one a record.

https://docs.aws.amazon.com/sagemaker/latest/dg/cdf-inference.html; the schema is that of the SageMaker SDK,
https://github.com/aws/sagemaker-python-sdk/blob/v2.257.6/src/sagemaker/amazon/record.proto::

    Record          map<string, Value> features = 1, label = 2; string uid = 3, metadata = 4, configuration = 5
    Value           oneof { Float32Tensor = 2, Float64Tensor = 3, Int32Tensor = 7, Bytes = 9 }
    Float32Tensor   repeated float values = 1; repeated uint64 keys = 2, shape = 3; the others alike
    Bytes           repeated bytes value = 1; string content_type = 2

**In a request** the features are named as the inputs are, or a lone feature ``values``, as the SDK writes it, fills
the inputs in order, row-major. A tensor with ``keys`` is sparse: all other values are 0, and ``shape`` must agree
with the model's. ``Bytes`` are strings in UTF-8. ``label`` and all else is skipped.

**In an answer** each record's outputs are in ``label``: floats as they are (float16 as float32), integers and
booleans as 32-bit integers, strings as ``Bytes``, maps (ZipMap) as their values without the keys. A ``shape`` is
written for tensors of two dimensions or more.
"""

import math
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import groupby
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from onnx_serve.codecs import recordio_frames as frames
from onnx_serve.codecs import recordio_regular as regular
from onnx_serve.codecs.interface import Answer, Body, Codec, CodecOptions, Document, MediaType
from onnx_serve.codecs.recordio_features import Feature, assign
from onnx_serve.codecs.recordio_regular import Column
from onnx_serve.errors import DecodeError, EncodeError, quote
from onnx_serve.tensors import MapTable, Signature, Tensors, Value, Values

__all__ = ["codec", "decode", "encode"]

Array: TypeAlias = npt.NDArray[Any]

_NAME = "application/x-recordio-protobuf"
# Fewer equal records are read one by one, so that they may join their neighbours in a block.
_MIN_RUN = 16
# Values of one block: bounds what sparse records, written in a few bytes each, become in memory.
_BLOCK_VALUES = 1 << 20
_INT32 = np.iinfo(np.int32)
# Bytes of memory for a byte of a record that protobuf parses.
_PARSED_MULTIPLE = 24
_NUMBERS = {"float32_tensor": np.float32, "float64_tensor": np.float64, "int32_tensor": np.int32}


# --- Decoding --------------------------------------------------------------------------------------------------


def decode(
    body: Body, media_type: MediaType, signature: Signature, options: CodecOptions
) -> Iterator[Document]:
    """One document; a body that does not begin with a frame is one bare record, and an empty one has none.

    Memory: a few times ``options.chunk_bytes``, or one longer record.

    Raises:
        DecodeError: A frame or record is malformed, or its features are not the inputs'.
    """
    del media_type
    yield Document(_blocks(body, signature, options.chunk_bytes))


def _blocks(body: Body, signature: Signature, chunk_bytes: int) -> Iterator[Tensors]:
    held: list[Tensors] = []
    values = 0
    pattern: regular.Pattern | None = None
    for run in frames.runs(body, chunk_bytes):
        done = 0
        while done < run.count:
            rest = run.after(done)
            count = 0
            if signature.has_rows:
                # Most often the records go on as those of the run before.
                count = regular.equal_records(rest, pattern) if pattern else 0
                if not count and (pattern := regular.find_pattern(rest)):
                    count = regular.equal_records(rest, pattern)
            if pattern and count >= _MIN_RUN:
                yield from _joined(held)
                held, values = [], 0
                features = {part.name: Feature(regular.read(rest, part, count)) for part in pattern.packed}
                yield assign(features, signature, rest.number)
            else:
                count = 1
                body.check_room(
                    _PARSED_MULTIPLE * rest.length, f"a record of {rest.length} bytes", "send smaller records"
                )
                held.append(assign(_parse(rest), signature, rest.number))
                values += sum(array.size for array in held[-1].values())
            if values >= _BLOCK_VALUES or (held and not signature.has_rows):
                yield from _joined(held) if signature.has_rows else _apart(held)
                held, values = [], 0
            done += count
    yield from _joined(held)


def _joined(records: list[Tensors]) -> Iterator[Tensors]:
    """Records as blocks: those that follow each other and have equal types and shapes make one."""

    def kind(record: Tensors) -> list[tuple[Any, ...]]:
        return [(array.dtype, array.shape) for array in record.values()]

    for _, group in groupby(records, kind):
        same = list(group)
        yield {name: np.concatenate([record[name] for record in same]) for name in same[0]}


def _apart(records: list[Tensors]) -> Iterator[Tensors]:
    """Records as what one run each takes."""
    for record in records:
        yield {name: array.reshape(array.shape[1:]) for name, array in record.items()}


def _parse(run: frames.Run) -> dict[str, Feature]:
    """The features of a run's first record, by protobuf."""
    from google.protobuf.message import DecodeError as ParseError  # noqa: PLC0415 - only if records are irregular

    try:
        regular.check_size(run.data, run.start, run.start + run.length)
        record = _messages()["Record"].FromString(run.data[run.start : run.start + run.length])
        features = {entry.key: _feature(entry.key, entry.value) for entry in record.features}
    except DecodeError as ex:
        raise DecodeError(ex.problem, record=run.number) from None
    except (ParseError, UnicodeDecodeError):
        raise DecodeError("expected a protobuf message aialgs.data.Record", record=run.number) from None
    if len(features) < len(record.features):
        raise DecodeError("expected each feature once, got one twice", record=run.number)
    return features


def _feature(name: str, value: Any) -> Feature:
    kind = value.WhichOneof("value")
    if kind is None:
        raise DecodeError(f"feature {quote(name)}: expected a value, got none")
    content = getattr(value, kind)
    if kind == "bytes":
        strings = np.empty((1, len(content.value)), object)
        strings[0] = [_text(name, item) for item in content.value]
        return Feature(strings)
    keys = np.array(content.keys, np.uint64) if content.keys else None
    values = np.array(content.values, _NUMBERS[kind])[np.newaxis]
    return Feature(values, tuple(content.shape), keys)


def _text(name: str, item: bytes) -> str:
    try:
        return item.decode()
    except UnicodeDecodeError:
        raise DecodeError(f"feature {quote(name)}: expected strings in UTF-8, got {quote(item)}") from None


# --- Encoding --------------------------------------------------------------------------------------------------


def encode(
    answers: Iterable[Answer],
    sink: BinaryIO,
    media_type: MediaType,
    signature: Signature,
    options: CodecOptions,
) -> None:
    """One framed record a prediction, or a run if the model has no rows, all outputs in its ``label``.

    Raises:
        EncodeError: An output is neither tensor nor map of numbers, has another number of rows than the others,
            or an integer beyond 32 bits.
    """
    del media_type, options
    for answer in answers:
        sink.writelines(_encode_block(block, signature) for block in answer.blocks)


def _encode_block(block: Values, signature: Signature) -> bytes | memoryview:
    columns = [_column(name, value, has_rows=signature.has_rows) for name, value in block.items()]
    if len({len(column.values) for column in columns}) > 1:
        raise EncodeError(f"{_NAME} cannot hold outputs of different numbers of rows; application/json can")
    try:
        if all(column.values.dtype.kind in "fu" for column in columns):
            return regular.encode(columns)
        return b"".join(_encode_record(columns, row) for row in range(len(columns[0].values)))
    except ValueError:
        raise EncodeError(f"{_NAME} cannot hold a record of more than {frames.MAX_LENGTH} bytes") from None


def _column(name: str, value: Value, *, has_rows: bool) -> Column:
    """An output in a type that the format has; integers that all take one byte as uint8."""
    array = value.values if isinstance(value, MapTable) else value
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufOU":
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise EncodeError(f"{_NAME} holds tensors of numbers or strings; output {quote(name)} is {kind}")
    if has_rows and not array.ndim:
        raise EncodeError(f"{_NAME} cannot hold output {quote(name)}, one value for all rows")
    rows = array if has_rows else array[np.newaxis]
    record = rows.shape[1:]
    flat = rows.reshape(len(rows), math.prod(record))
    if flat.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # a signalling NaN of float16
            flat = flat.astype(np.float64 if flat.dtype.itemsize == 8 else np.float32, copy=False)  # noqa: PLR2004
    elif flat.dtype.kind in "biu":
        flat = _integers(name, flat)
    return Column(name, flat, record if len(record) > 1 else ())


def _integers(name: str, values: Array) -> Array:
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < _INT32.min or high > _INT32.max:
        raise EncodeError(
            f"{_NAME} holds integers of 32 bits; output {quote(name)} has {low if low < _INT32.min else high}"
        )
    # A number below 128 is one byte on the wire.
    return values.astype(np.uint8 if low >= 0 and high < 128 else np.int32)  # noqa: PLR2004


def _encode_record(columns: list[Column], row: int) -> bytes:
    """The frame of one record, by protobuf."""
    messages = _messages()
    record = messages["Record"]()
    for column in columns:
        entry = record.label.add(key=column.name)
        values = column.values[row].tolist()
        if column.values.dtype.kind in "OU":
            entry.value.bytes.SetInParent()
            entry.value.bytes.value.extend(_utf8(column.name, text) for text in values)
            continue
        kind = {"f4": "float32_tensor", "f8": "float64_tensor"}.get(
            column.values.dtype.str[1:], "int32_tensor"
        )
        tensor = getattr(entry.value, kind)
        tensor.SetInParent()
        tensor.values.extend(values)
        tensor.shape.extend(column.shape)
    data: bytes = record.SerializeToString()
    if len(data) > frames.MAX_LENGTH:
        raise ValueError(len(data))
    return frames.header(len(data)) + data + bytes(frames.padding(len(data)))


def _utf8(name: str, text: object) -> bytes:
    try:
        return text if isinstance(text, bytes) else str(text).encode()
    except UnicodeEncodeError:
        raise EncodeError(f"output {quote(name)}: the string {quote(text)} has no form in UTF-8") from None


# --- The messages ----------------------------------------------------------------------------------------------

# Field name, number, type and whether it is repeated. A map's wire form is that of repeated entries:
# https://protobuf.dev/programming-guides/encoding/#maps. As such, a name that is there twice can be refused.
_SCHEMA = {
    **{
        name: (("values", 1, kind, True), ("keys", 2, "uint64", True), ("shape", 3, "uint64", True))
        for name, kind in (("Float32Tensor", "float"), ("Float64Tensor", "double"), ("Int32Tensor", "int32"))
    },
    "Bytes": (("value", 1, "bytes", True), ("content_type", 2, "bytes", False)),
    "Value": (
        ("float32_tensor", 2, "Float32Tensor", False),
        ("float64_tensor", 3, "Float64Tensor", False),
        ("int32_tensor", 7, "Int32Tensor", False),
        ("bytes", 9, "Bytes", False),
    ),
    "Entry": (("key", 1, "string", False), ("value", 2, "Value", False)),
    "Record": (("features", 1, "Entry", True), ("label", 2, "Entry", True)),
}


@cache
def _messages() -> dict[str, Any]:
    """The classes of the schema's messages, by name."""
    # Most servers never see this format, and most requests of it need no protobuf.
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # noqa: PLC0415

    file = descriptor_pb2.FileDescriptorProto(name="record.proto", package="aialgs.data", syntax="proto2")
    field_type = descriptor_pb2.FieldDescriptorProto
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        if name == "Value":
            message.oneof_decl.add(name="value")
        for field, number, kind, repeated in fields:
            label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label)
            if kind in _SCHEMA:
                added.type, added.type_name = field_type.TYPE_MESSAGE, f".aialgs.data.{kind}"
            else:
                added.type = field_type.Type.Value(f"TYPE_{kind.upper()}")
                added.options.packed = repeated and kind != "bytes"
            if name == "Value":
                added.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"aialgs.data.{name}"))
        for name in _SCHEMA
    }


codec = Codec((_NAME,), decode, encode, mirrored=True)
