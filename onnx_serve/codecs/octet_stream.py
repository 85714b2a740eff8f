"""``application/octet-stream``: the elements of one tensor, little-endian, row-major, and nothing else.

A request's bytes are the only input, whose shape the model declares with at most one free dimension; with rows
that is the number of records. An answer's bytes are the only output. The bytes are those of ONNX's ``raw_data``
(see there): booleans are bytes of 0 and 1, types of 4 and 2 bits share bytes. Strings have no such form.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from onnx_serve.codecs.interface import Answer, Body, Codec, CodecOptions, Document, MediaType
from onnx_serve.errors import DecodeError, EncodeError, quote
from onnx_serve.raw_data import from_raw, raw_size, to_raw
from onnx_serve.tensors import DataType, MapTable, Signature, Tensors, TensorSpec, Value

__all__ = ["codec", "decode", "encode", "shape_of"]

Array: TypeAlias = npt.NDArray[Any]

_NAME = "application/octet-stream"
_BYTE = 8


def decode(
    body: Body, media_type: MediaType, signature: Signature, options: CodecOptions
) -> Iterator[Document]:
    """One document: the bytes as the model's only input, cut into blocks of records if it has rows.

    Memory: ``options.chunk_bytes`` or one longer record; the whole body without rows, or if records end within a byte.

    Raises:
        DecodeError: The model cannot be fed from bytes alone, or not from so many; or a boolean is no 0 or 1.
    """
    del media_type
    spec = _only_input(signature)
    shape = shape_of(spec, signature, body.length)
    if not signature.has_rows:
        yield Document({spec.name: _read(body, shape, spec)} for _ in range(1))
        return
    count, *record = shape
    record_bits = math.prod(record) * spec.dtype.bits
    step = max(1, count if record_bits % _BYTE else options.chunk_bytes * _BYTE // record_bits)
    yield Document(_rows(body, record, spec, count, step))


def shape_of(spec: TensorSpec, signature: Signature, length: int) -> list[int]:
    """The shape that so many raw bytes have as a model's only input; with rows, there may be any number of them.

    Args:
        spec: The input, of numbers or booleans.
        signature: The model's.
        length: Bytes.

    Raises:
        DecodeError: The input is not of so many bytes, or they do not tell its shape.
    """
    declared = (None, *signature.record_shape(spec)) if signature.has_rows else spec.shape
    sizes = [size for size in declared if isinstance(size, int)]
    free = len(declared) - len(sizes)
    unit_bits = math.prod(sizes) * spec.dtype.bits
    if free > 1 or (free and not unit_bits):
        raise DecodeError(
            f'input "{spec.name}" {spec}: raw bytes do not tell the sizes of several free dimensions; '
            "application/x-npy does"
        )
    if free and unit_bits < _BYTE:
        raise DecodeError(
            f'input "{spec.name}" {spec}: raw bytes do not tell how many elements of {unit_bits} bits are in the last one'
        )
    count = length * _BYTE // unit_bits if free else 1
    if raw_size(count * math.prod(sizes), spec.dtype) != length:
        unit = (
            f"{raw_size(math.prod(sizes), spec.dtype)} bytes"
            if unit_bits % _BYTE == 0
            else f"{unit_bits} bits"
        )
        expected = f"a multiple of {unit}" if free else unit
        raise DecodeError(f'input "{spec.name}" {spec}: expected {expected}, got {length} bytes')
    return [size if isinstance(size, int) else count for size in declared]


def _only_input(signature: Signature) -> TensorSpec:
    specs = signature.inputs
    if len(specs) != 1 or not specs[0].is_tensor or specs[0].dtype is DataType.STRING:
        raise DecodeError(
            f"raw bytes are for a model's only input, of numbers or booleans, and this model takes "
            f"{signature.describe_inputs() or 'no input'}"
        )
    return specs[0]


def _rows(body: Body, record: list[int], spec: TensorSpec, count: int, step: int) -> Iterator[Tensors]:
    for start in range(0, count, step):
        yield {spec.name: _read(body, [min(step, count - start), *record], spec)}


def _read(body: Body, shape: list[int], spec: TensorSpec) -> Array:
    """The next elements of the body, which share the memory that they were read to where they can."""
    missing = raw_size(math.prod(shape), spec.dtype)
    parts = []
    while missing:
        part = body.stream.read(missing)
        if not part:
            raise DecodeError(f"the body ends {missing} bytes early")
        parts.append(part)
        missing -= len(part)
    raw = np.frombuffer(parts[0] if len(parts) == 1 else b"".join(parts), np.uint8)
    if spec.dtype is DataType.BOOL and raw.size and raw.max() > 1:
        raise DecodeError(f'input "{spec.name}": expected booleans to be 0 or 1, got {raw.max()}')
    return from_raw(raw, spec.dtype, shape).astype(spec.dtype.numpy, copy=False)


def encode(
    answers: Iterable[Answer],
    sink: BinaryIO,
    media_type: MediaType,
    signature: Signature,
    options: CodecOptions,
) -> None:
    """Writes the only output's elements, all blocks after one another; maps (ZipMap) as their values.

    Elements that share bytes are held until all are there.

    Raises:
        EncodeError: Several outputs, or one that is no tensor of numbers or booleans.
    """
    del media_type, options
    if len(signature.outputs) != 1:
        names = ", ".join(quote(spec.name) for spec in signature.outputs[:5])
        raise EncodeError(
            f"{_NAME} holds one tensor, and this model has {len(signature.outputs)} outputs ({names}); "
            "application/x-npz holds them by name"
        )
    [spec] = signature.outputs
    arrays: Iterator[Array] = (
        _array(spec.name, block[spec.name]) for answer in answers for block in answer.blocks
    )
    if spec.dtype.bits % _BYTE:
        held = [array.reshape(-1) for array in arrays]
        arrays = iter([np.concatenate(held)] if held else [])
    sink.writelines(to_raw(array.astype(spec.dtype.numpy, copy=False), spec.dtype).data for array in arrays)


def _array(name: str, value: Value) -> Array:
    array = value.values if isinstance(value, MapTable) else value
    if isinstance(array, np.ndarray) and array.dtype.kind in "biuf":
        return array
    kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
    raise EncodeError(f"{_NAME} holds tensors of numbers or booleans; output {quote(name)} is {kind}")


# Not mirrored: bytes say neither type nor shape, and several outputs have no such form. Who wants them asks.
codec = Codec((_NAME,), decode, encode)
