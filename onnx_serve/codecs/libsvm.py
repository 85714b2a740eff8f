r"""``text/libsvm``: sparse records of numbers, one a line: ``[label] [qid:n] index:value ... [# comment]``.

https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/; SageMaker's LibSVMSerializer sends it. The values fill
the model's inputs in order, row-major; label and query are skipped. Every line is a record, and a line without
any of this is an error. Values are float64, as in LIBSVM: ``1``, ``-.5``, ``1e3``, ``nan``, ``inf``.

Two things are not in the text, and differ by who wrote it. Parameters of the media type say them:

* ``indexing_mode=0`` (the first value has index 0; the default, as in XGBoost and so in SageMaker's container) or
  ``indexing_mode=1`` (index 1, as in LIBSVM): https://xgboost.readthedocs.io/en/stable/tutorials/input_format.html
* ``missing=0`` (what is absent is 0; the default, as in LIBSVM) or ``missing=nan`` (NaN, as in XGBoost).

**How.** The exact parser (``_parse_exactly``) defines all of this. NumPy's is used on text that a strict pattern
matches, where the two cannot differ.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnx_serve.codecs.interface import Body, Codec, CodecOptions, Document, MediaType
from onnx_serve.errors import DecodeError, MismatchError, quote
from onnx_serve.tensors import DataType, Signature, Tensors, TensorSpec, cast

__all__ = ["codec", "decode"]

Array: TypeAlias = npt.NDArray[Any]

# Values of one block: bounds what lines of a few bytes become in memory.
_BLOCK_VALUES = 1 << 20
# A longer index is beyond any model.
_MAX_DIGITS = 18
_EXACT_WHOLE = 1 << 53
_NUMBER = rb"[+-]?(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][+-]?\d++)?"
_PAIRS = rb"(?:[ ]\d{1,15}:" + _NUMBER + rb"(?=[ \n]))*+[ ]?\n"
_LABELLED = re.compile(rb"(?:" + _NUMBER + rb"(?=[ \n])(?:[ ]qid:\d++)?" + _PAIRS + rb")*+")
_UNLABELLED = re.compile(rb"(?:\d{1,15}:" + _NUMBER + rb"(?=[ \n])" + _PAIRS + rb")*+")
_QUERY = re.compile(rb"qid:\d+")
_FLOAT = re.compile(_NUMBER + rb"|[+-]?(?:nan|inf(?:inity)?)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Lines:
    """Some lines' values: ``values[i]`` stands in line ``first + rows[i]`` at ``indices[i]``; rows ascend."""

    first: int
    count: int
    rows: Array
    indices: Array
    values: Array


@dataclass(frozen=True, slots=True)
class _Table:
    """What the lines are to fill: ``width`` values a record, cut into the inputs."""

    signature: Signature
    width: int
    first_index: int
    absent: float


def decode(
    body: Body, media_type: MediaType, signature: Signature, options: CodecOptions
) -> Iterator[Document]:
    """One document, whose blocks are decoded chunk by chunk as they are asked for.

    Memory: about ten times ``options.chunk_bytes``, and a million values or one longer record.

    Raises:
        DecodeError: At once for the media type's parameters and the model, else while the blocks are read.
    """
    table = _make_table(media_type, signature)
    yield Document(_blocks(body, table, options.chunk_bytes))


def _make_table(media_type: MediaType, signature: Signature) -> _Table:
    first_index = media_type.parameters.get("indexing_mode", "0")
    if first_index not in {"0", "1"}:
        raise DecodeError(f"expected indexing_mode=0 or indexing_mode=1, got {quote(first_index)}")
    missing = media_type.parameters.get("missing", "0").lower()
    if missing not in {"0", "nan"}:
        raise DecodeError(f"expected missing=0 or missing=nan, got {quote(missing)}")
    widths = [signature.record_width(spec) for spec in signature.inputs]
    known = [width for width in widths if width is not None]
    numeric = all(spec.is_tensor and spec.dtype is not DataType.STRING for spec in signature.inputs)
    if not known or len(known) < len(widths) or not numeric:
        raise DecodeError(
            f"the format holds numbers for inputs of known size, and this model takes "
            f"{signature.describe_inputs() or 'no input'}"
        )
    return _Table(signature, sum(known), int(first_index), float(missing))


def _blocks(body: Body, table: _Table, chunk_bytes: int) -> Iterator[Tensors]:
    line = 1
    for chunk in body.lines(chunk_bytes):
        if len(chunk) > chunk_bytes:
            _check_long_line(chunk.partition(b"\n")[0], line, table)
        lines = _parse(chunk, line)
        _check_indices(lines, table)
        step = max(1, _BLOCK_VALUES // max(1, table.width))
        for start in range(0, lines.count, step):
            block = _dense(lines, start, min(lines.count, start + step), table)
            if table.signature.has_rows:
                yield block
            else:
                rows = len(next(iter(block.values())))
                yield from ({name: array[row, ...] for name, array in block.items()} for row in range(rows))
        line += lines.count


def _check_long_line(text: bytes, number: int, table: _Table) -> None:
    """Refuses a line of more pairs than a record has values, before they take many times their bytes."""
    pairs = text.partition(b"#")[0].count(b":")
    if pairs > table.width + 1:  # the query's
        raise DecodeError(f"expected at most {table.width} index:value, got {pairs}", line=number)


def _parse(chunk: bytes, first: int) -> _Lines:
    """The values of whole lines, by NumPy where the text is plain."""
    plain = chunk if chunk.endswith(b"\n") else chunk + b"\n"
    labels = 1
    if not _LABELLED.fullmatch(plain):
        labels = 0
        if not _UNLABELLED.fullmatch(plain):
            return _parse_exactly(chunk, first)
    if b"q" in plain:
        plain = _QUERY.sub(b"", plain)
    text = np.frombuffer(plain, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    rows = np.searchsorted(ends, np.flatnonzero(text == ord(":")))
    numbers = np.fromstring(plain.translate(_SPACES), np.float64, sep=" ")
    if labels:
        sizes = 1 + 2 * np.bincount(rows, minlength=len(ends))
        numbers = np.delete(numbers, np.cumsum(sizes) - sizes)
    pairs = numbers.reshape(-1, 2)
    return _Lines(first, len(ends), rows, pairs[:, 0].astype(np.int64), pairs[:, 1])


_SPACES = bytes.maketrans(b":\n", b"  ")


def _parse_exactly(chunk: bytes, first: int) -> _Lines:
    """The values of whole lines, one by one.

    Raises:
        DecodeError: A line is not as the module says.
    """
    rows: list[int] = []
    indices: list[int] = []
    values: list[float] = []
    lines = chunk.removesuffix(b"\n").split(b"\n")
    for row, text in enumerate(lines):
        tokens = text.partition(b"#")[0].split()
        if not tokens:
            raise DecodeError("expected a label or index:value, got an empty line", line=first + row)
        if b":" not in tokens[0]:
            if not _FLOAT.fullmatch(tokens[0]):
                raise DecodeError(
                    f"expected a label or index:value, got {quote(tokens[0])}", line=first + row
                )
            del tokens[0]
        if tokens and _QUERY.fullmatch(tokens[0]):
            del tokens[0]
        for token in tokens:
            index, _, value = token.partition(b":")
            # isdigit of bytes knows ASCII's digits only.
            if not (index.isdigit() and len(index) <= _MAX_DIGITS and _FLOAT.fullmatch(value)):
                raise DecodeError(f"expected index:value, got {quote(token)}", line=first + row)
            rows.append(row)
            indices.append(int(index))
            values.append(float(value))
    return _Lines(
        first, len(lines), np.array(rows, np.intp), np.array(indices, np.int64), np.array(values, np.float64)
    )


def _check_indices(lines: _Lines, table: _Table) -> None:
    """Refuses indices that the model has no value for, and those that a line has twice."""
    low, high = table.first_index, table.first_index + table.width - 1
    wrong = (lines.indices < low) | (lines.indices > high)
    if wrong.any():
        at = int(wrong.argmax())
        hint = ""
        if not low and lines.indices[at] == high + 1:
            hint = "; if the first index is 1, say so: text/libsvm; indexing_mode=1"
        raise DecodeError(
            f"expected indices from {low} to {high}, got {lines.indices[at]}{hint}",
            line=lines.first + int(lines.rows[at]),
        )
    places = lines.rows * table.width + lines.indices
    if (np.diff(places) <= 0).any():
        order = np.argsort(places, kind="stable")
        again = np.diff(places[order]) == 0
        if again.any():
            at = int(order[1:][again.argmax()])
            raise DecodeError(
                f"expected each index once, got {lines.indices[at]} again",
                line=lines.first + int(lines.rows[at]),
            )


def _dense(lines: _Lines, start: int, stop: int, table: _Table) -> Tensors:
    """The inputs of the lines from ``start`` up to ``stop``."""
    first, last = np.searchsorted(lines.rows, (start, stop))
    dense = np.full((stop - start, table.width), table.absent)
    columns = lines.indices[first:last] - table.first_index
    dense[lines.rows[first:last] - start, columns] = lines.values[first:last]
    block: Tensors = {}
    left = 0
    for spec in table.signature.inputs:
        shape = [size for size in table.signature.record_shape(spec) if isinstance(size, int)]
        part = dense[:, left : left + math.prod(shape)]
        block[spec.name] = _cast(part, spec, lines.first + start).reshape(len(dense), *shape)
        left += math.prod(shape)
    return block


def _cast(values: Array, spec: TensorSpec, line: int) -> Array:
    """The values in the input's type, or an error that names the first line with another value."""
    if spec.dtype.is_integer and (np.abs(values) >= _EXACT_WHOLE).any():
        row = int((np.abs(values) >= _EXACT_WHOLE).any(axis=1).argmax())
        raise DecodeError(
            f'input "{spec.name}": the values are float64, exact below 2^53 only, got a greater one',
            line=line + row,
        )
    try:
        return cast(values, spec)
    except MismatchError:
        for row, record in enumerate(values):
            try:
                cast(record, spec)
            except MismatchError as ex:
                raise DecodeError(str(ex), line=line + row) from None
        raise  # pragma: no cover - some row is wrong if all together are


codec = Codec(("text/libsvm", "text/x-libsvm"), decode, None)
