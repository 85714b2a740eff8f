"""``application/x-npy``: one array in NumPy's format, https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.

A request's array is for the model's only input, an answer's is its only output. An array in C order is
read and written a block of rows at a time. One in Fortran order (``fortran_order: True``), whose rows lie
scattered over the file, is held whole while its blocks are made.

Object arrays are pickles and are neither read nor written: strings travel as ``<U`` (in requests ``|S``
with UTF-8 too).
"""

import io
import math
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, BinaryIO, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from onnx_serve.codecs.interface import Answer, Body, Codec, CodecOptions, Document, MediaType
from onnx_serve.codecs.npy_header import Header, header_bytes, read_exactly, read_header, show_shape
from onnx_serve.errors import DecodeError, EncodeError, quote
from onnx_serve.tensors import MapTable, Signature, Tensors, TensorSpec, Value, conform

__all__ = [
    "Header",
    "array_of",
    "codec",
    "decode",
    "empty_output",
    "encode",
    "header_bytes",
    "joined",
    "read_header",
    "stacked",
    "to_native",
    "write_array",
]

Array: TypeAlias = npt.NDArray[Any]

_NAME = "application/x-npy"
_MAX_TEXT_BYTES = 1 << 30
_TEXT_PIECE_BYTES = 1 << 20


class _Writable(Protocol):
    def write(self, data: bytes | memoryview, /) -> Any: ...


def decode(
    body: Body, media_type: MediaType, signature: Signature, options: CodecOptions
) -> Iterator[Document]:
    """One document: the array as the model's only input, dimension 0 its records.

    Memory: about ``options.chunk_bytes`` for an array in C order, or one longer row; the whole body and such a
    block for one in Fortran order. None beside the body where it is in memory and its bytes are right as they are.

    Raises:
        DecodeError: The body is no ``.npy`` file that can be read, or the model has not one input.
        MismatchError: The array has no rows, and would not fit if it had some.
    """
    del media_type
    if len(signature.inputs) != 1:
        raise DecodeError(
            f"an array is for a model's only input, and this model takes "
            f"{signature.describe_inputs() or 'no input'}; application/x-npz takes arrays by input name"
        )
    header = read_header(body.stream, body.length)
    name = signature.inputs[0].name
    if signature.has_rows and header.shape[:1] == (0,):
        conform({name: np.empty(header.shape, header.dtype)}, signature)
        yield Document(())
    elif signature.has_rows and header.shape:
        rows = max(1, options.chunk_bytes * header.shape[0] // max(1, header.nbytes))
        yield Document({name: block} for block in _read_rows(body.stream, header, rows))
    else:
        yield Document(_whole(body.stream, header, name))


def _read_rows(stream: BinaryIO, header: Header, rows: int) -> Iterator[Array]:
    """Blocks of that many rows; the last has what is left."""
    count, *record = header.shape
    if header.fortran_order:
        data = _next_bytes(stream, header.nbytes)
        _check_elements(data, header.dtype)
        whole: Array = np.ndarray(header.shape, header.dtype, data, order="F")
        for start in range(0, count, rows):
            block = whole[start : start + rows]
            yield block.astype(header.dtype.newbyteorder("="), order="C")
        return
    for start in range(0, count, rows):
        shape = (min(rows, count - start), *record)
        data = _next_bytes(stream, header.dtype.itemsize * math.prod(shape))
        yield to_native(data, header, shape)


def _whole(stream: BinaryIO, header: Header, name: str) -> Iterator[Tensors]:
    yield {name: to_native(_next_bytes(stream, header.nbytes), header, header.shape)}


def _next_bytes(stream: BinaryIO, size: int) -> bytes | memoryview:
    """So many bytes of a stream; those of a body in memory are shared with it, not copied."""
    if type(stream) is io.BytesIO:
        start = stream.tell()
        # The stream's own memory, not a copy of it, in CPython since 3.5: https://bugs.python.org/issue22003
        data = memoryview(stream.getvalue())[start : start + size]
        if len(data) == size:
            stream.seek(start + size)
            return data
    return read_exactly(stream, size)


def to_native(data: bytes | memoryview, header: Header, shape: tuple[int, ...], place: str = "") -> Array:
    """The array that these bytes are, in C order and this machine's byte order.

    It shares the memory of ``data`` where the bytes are right as they are, and lie where elements may.

    Args:
        data: The elements of an array of that shape.
        header: Its type and order.
        shape: All of the header's, or fewer rows.
        place: Begins the errors' messages: nothing, or ``member "x.npy": ``.

    Raises:
        DecodeError: A boolean is neither 0 nor 1, or a character is none of Unicode's.
    """
    _check_elements(data, header.dtype, place)
    array: Array = np.ndarray(shape, header.dtype, data, order="F" if header.fortran_order else "C")
    copied = not array.flags.aligned
    return array.astype(header.dtype.newbyteorder("="), order="C", copy=copied)


def _check_elements(data: bytes | memoryview, dtype: np.dtype[Any], place: str = "") -> None:
    """Refuses bit patterns that NumPy takes but that are no value of the type."""
    if dtype.kind == "b" and len(data):
        largest = int(np.frombuffer(data, np.uint8).max())
        if largest > 1:
            raise DecodeError(f"{place}expected booleans to be 0 or 1, got {largest}")
    elif dtype.kind == "U" and len(data):
        codes = np.frombuffer(data, np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        wrong = (codes > 0x10FFFF) | ((codes >= 0xD800) & (codes <= 0xDFFF))  # noqa: PLR2004 - Unicode's limits
        if wrong.any():
            raise DecodeError(f"{place}expected Unicode characters, got code {hex(codes[wrong.argmax()])}")


def encode(
    answers: Iterable[Answer],
    sink: BinaryIO,
    media_type: MediaType,
    signature: Signature,
    options: CodecOptions,
) -> None:
    """Writes the only output, all answers after one another along dimension 0, as ``numpy.save`` would.

    Maps of numbers (ZipMap) are written as their values, ``[N, K]``, without the keys; application/x-npz
    has both. Without rows one run is written as it is, several are stacked on a new dimension 0. Answers
    without a block give the declared shape with 0 for dimension 0 and for each free one. Numbers are
    streamed; strings are held, because their width is in the header.

    Raises:
        EncodeError: Several outputs, an output that is no tensor, rows or runs of different shapes, or
            strings that the format cannot hold.
    """
    del media_type, options
    if len(signature.outputs) != 1:
        names = ", ".join(quote(spec.name) for spec in signature.outputs[:5])
        raise EncodeError(
            f"{_NAME} holds one array, and this model has {len(signature.outputs)} outputs ({names}); "
            "application/x-npz holds them by name"
        )
    [spec] = signature.outputs
    keys: dict[str, tuple[int | str, ...]] = {}
    values = (block[spec.name] for answer in answers for block in answer.blocks)
    arrays = stacked((array_of(value, spec.name, keys) for value in values), signature)
    first = next(arrays, None)
    if first is None:
        first = empty_output(spec, signature)
    if first.dtype.kind in "OU":
        held = [first, *arrays]
        dtype, shape = joined(held, spec.name)
        sink.write(header_bytes(dtype, shape))
        for array in held:
            write_array(sink, array, dtype)
    else:
        _write_stream(sink, first, arrays, spec.name)


def array_of(value: Value, name: str, keys: dict[str, tuple[int | str, ...]]) -> Array:
    """The array that stands for an output's value: a tensor itself, a table of maps by its values.

    Args:
        value: One block's.
        name: The output's.
        keys: The keys of the tables seen so far, by output name; added to.

    Raises:
        EncodeError: The value is neither, or its keys differ from those of the blocks before.
    """
    if isinstance(value, MapTable):
        if keys.setdefault(name, value.keys) != value.keys:
            raise EncodeError(f"output {quote(name)}: the maps differ in their keys, so they are no array")
        value = value.values
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biufOU":
        kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise EncodeError(
            f"output {quote(name)}: NumPy's format holds tensors of numbers, booleans or strings, got {kind}"
        )
    return value


def stacked(arrays: Iterator[Array], signature: Signature) -> Iterator[Array]:
    """The arrays to be joined along dimension 0: without rows, several runs get a new one."""
    runs = [] if signature.has_rows else list(islice(arrays, 2))
    several = len(runs) > 1
    for array in chain(runs, arrays):
        yield array[np.newaxis] if several else array


def empty_output(spec: TensorSpec, signature: Signature) -> Array:
    """The output of no run: the declared shape, with 0 for dimension 0 and for what is free.

    Raises:
        EncodeError: The output is neither a tensor nor a sequence of maps.
    """
    if spec.is_map_sequence:
        record: tuple[int | str | None, ...] = (None,)
    elif spec.is_tensor:
        record = signature.record_shape(spec)
    else:
        raise EncodeError(f"output {quote(spec.name)}: NumPy's format holds tensors, got {spec.onnx_type}")
    return np.empty((0, *(size if isinstance(size, int) else 0 for size in record)), spec.dtype.numpy)


def joined(arrays: list[Array], name: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """The type and shape in the file of these arrays after one another along dimension 0.

    Args:
        arrays: At least one.
        name: The output's, for errors.

    Raises:
        EncodeError: They do not fit together, or hold strings that the format cannot.
    """
    for array in arrays[1:]:
        _check_follows(array, arrays[0], name)
    shape = arrays[0].shape
    if shape:
        shape = (sum(map(len, arrays)), *shape[1:])
    if arrays[0].dtype.kind in "OU":
        return _text_dtype(arrays, name), shape
    return arrays[0].dtype.newbyteorder("<"), shape


def write_array(sink: _Writable, array: Array, dtype: np.dtype[Any]) -> None:
    """Writes the elements in C order as ``dtype``; strings a piece at a time."""
    flat = array.reshape(-1)
    step = max(1, _TEXT_PIECE_BYTES // dtype.itemsize if dtype.kind == "U" else flat.size)
    for start in range(0, flat.size, step):
        piece = np.ascontiguousarray(flat[start : start + step].astype(dtype, copy=False))
        sink.write(piece.view(np.uint8).data)


def _write_stream(sink: BinaryIO, first: Array, rest: Iterator[Array], name: str) -> None:
    """Writes numbers as they come, and the number of rows into the header at the end."""
    dtype = first.dtype.newbyteorder("<")
    start = sink.tell()
    sink.write(header_bytes(dtype, first.shape))
    write_array(sink, first, dtype)
    rows = len(first) if first.ndim else 0
    for array in rest:
        _check_follows(array, first, name)
        write_array(sink, array, dtype)
        rows += len(array)
    if first.ndim and rows != len(first):
        end = sink.tell()
        sink.seek(start)
        sink.write(header_bytes(dtype, (rows, *first.shape[1:])))
        sink.seek(end)


def _check_follows(array: Array, first: Array, name: str) -> None:
    same_dtype = array.dtype == first.dtype or (array.dtype.kind in "OU" and first.dtype.kind in "OU")
    if same_dtype and array.ndim == first.ndim > 0 and array.shape[1:] == first.shape[1:]:
        return
    raise EncodeError(
        f"output {quote(name)}: expected {first.dtype}{show_shape(first.shape)} in every part of the answer but for "
        f"dimension 0, got {array.dtype}{show_shape(array.shape)}"
    )


def _text_dtype(arrays: list[Array], name: str) -> np.dtype[Any]:
    """The fixed width that all strings fit in."""
    width = 1
    for text in chain.from_iterable(array.flat for array in arrays):
        width = max(width, len(text))
        if text[-1:] == "\0":
            raise EncodeError(
                f"output {quote(name)}: NumPy's strings lose NUL characters at their end; ask for another format"
            )
    size = sum(array.size for array in arrays) * width * 4
    if size > _MAX_TEXT_BYTES:
        raise EncodeError(
            f"output {quote(name)}: strings of one width, that of the longest ({width} characters), need {size} "
            f"bytes, more than {_MAX_TEXT_BYTES}; application/jsonlines has no such width"
        )
    return np.dtype(f"<U{width}")


# The SageMaker SDK's TorchTensorSerializer sends arrays under the second name.
codec = Codec((_NAME, "tensor/pt"), decode, encode, mirrored=True)
