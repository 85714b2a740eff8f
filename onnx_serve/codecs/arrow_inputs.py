"""Columns of Arrow tables as a model's inputs: what Parquet files and Arrow streams share.

A record is a row of the table. Its columns become inputs in one of four ways, the first that fits:

1. The columns have the inputs' names: each is one input, of one value a record or of a list.
2. The model has one input and the table one column, of lists or for one value a record: the name is of no matter.
3. Several inputs of one value each: the names must be the inputs', and the error says which are not.
4. Columns of single values fill the inputs in order, row-major; one input may have one free dimension.

Lists may be nested and, where the model has a free dimension, differ in length from row to row. Nulls are NaN for
floats and errors elsewhere. Dictionary columns are decoded. pandas' index columns (``__index_level_0__``) are left
out.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from onnx_serve.codecs import record_shape
from onnx_serve.errors import DecodeError, MismatchError, quote
from onnx_serve.tensors import Signature, Tensors, TensorSpec, cast

__all__ = ["DAMAGE", "Plan", "blocks", "decoded_limit", "plan"]

Array: TypeAlias = npt.NDArray[Any]
# pyarrow's stubs know what a column and its type have only where they are made.
ArrowArray: TypeAlias = Any
ArrowType: TypeAlias = Any

# What pyarrow is seen to raise on damaged files; its own errors are subclasses of these and of ArrowException.
DAMAGE = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError, NotImplementedError)

_ALWAYS_DECODED = 1 << 26
_MAX_RATIO = 100
_INDEX = re.compile(r"__index_level_\d+__")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Plan:
    """Which columns feed which input.

    Attributes:
        inputs: Each input with its columns: one, or one a value of a record.
        signature: The model's.
    """

    inputs: tuple[tuple[TensorSpec, tuple[str, ...]], ...]
    signature: Signature

    @property
    def columns(self) -> list[str]:
        """The columns to be read, in the table's order within each input."""
        return [name for _, names in self.inputs for name in names]

    def row_bytes(self) -> int:
        """About how many bytes a record has in memory, as far as the model says it."""
        return sum(
            (self.signature.record_width(spec) or len(names)) * spec.dtype.numpy.itemsize
            for spec, names in self.inputs
        )


def decoded_limit(length: int) -> int:
    """How many bytes a body may be in memory, all in all: a hundred times its length, and 64 MiB in any case."""
    return max(_ALWAYS_DECODED, _MAX_RATIO * length)


def plan(schema: pa.Schema, signature: Signature) -> Plan:
    """How a table's columns become the inputs.

    Raises:
        DecodeError: They cannot; the message names the columns that are missing, unknown or of no use.
    """
    names = [name for name in schema.names if not _INDEX.fullmatch(name)]
    again = next((name for name, count in Counter(names).items() if count > 1), None)
    if again is not None:
        raise DecodeError(f"expected each column once, got {quote(again)} again")
    types = dict(zip(schema.names, schema.types, strict=True))
    for name in names:
        _check_type(name, types[name])
    specs = signature.inputs
    if not specs or not all(spec.is_tensor for spec in specs):
        raise DecodeError(f"columns cannot feed the inputs {signature.describe_inputs() or '(none)'}")
    widths = [signature.record_width(spec) for spec in specs]
    if set(names) == {spec.name for spec in specs}:
        return Plan(tuple((spec, (spec.name,)) for spec in specs), signature)
    lists = [name for name in names if _is_list(types[name])]
    if len(specs) == len(names) == 1 and (lists or widths == [1]):
        return Plan(((specs[0], (names[0],)),), signature)
    if lists or (len(specs) > 1 and set(widths) == {1}):
        raise _wrong_names(names, signature)
    return _by_place(names, widths, signature)


def _by_place(names: list[str], widths: list[int | None], signature: Signature) -> Plan:
    left = len(names) - sum(width for width in widths if width is not None)
    free = widths.count(None)
    if left < 0 or free > 1 or (left and not free):
        expected = "" if free else f"{len(names) - left} columns of single values, or "
        raise DecodeError(
            f"expected {expected}a column of lists an input for {signature.describe_inputs()}, got {len(names)} columns"
        )
    inputs = []
    start = 0
    for spec, width in zip(signature.inputs, widths, strict=True):
        stop = start + (left if width is None else width)
        inputs.append((spec, tuple(names[start:stop])))
        start = stop
    return Plan(tuple(inputs), signature)


def _wrong_names(names: list[str], signature: Signature) -> DecodeError:
    expected = {spec.name: None for spec in signature.inputs}
    given = dict.fromkeys(names)
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in expected]
    parts = [
        f"{word} {', '.join(map(quote, some[:_SHOWN]))}{', ...' * (len(some) > _SHOWN)}"
        for word, some in (("missing", missing), ("unknown", unknown))
        if some
    ]
    return DecodeError(f"expected a column for each of {signature.describe_inputs()}: {'; '.join(parts)}")


def _check_type(name: str, kind: ArrowType) -> None:
    leaf = kind
    while _is_list(leaf):
        leaf = _storage(leaf).value_type
    if pat.is_dictionary(leaf):
        leaf = leaf.value_type
    elif pat.is_null(leaf) and leaf is kind:
        return
    if isinstance(kind, pa.FixedShapeTensorType) and sorted(kind.permutation or ()) != (
        kind.permutation or []
    ):
        raise DecodeError(f"column {quote(name)}: expected tensors whose dimensions are not permuted")
    if not (pat.is_boolean(leaf) or pat.is_integer(leaf) or pat.is_floating(leaf) or _is_text(leaf)):
        raise DecodeError(
            f"column {quote(name)}: expected numbers, booleans, strings or lists of them, got {quote(kind)}"
        )


def _is_text(kind: ArrowType) -> bool:
    return (
        pat.is_string(kind) or pat.is_large_string(kind) or pat.is_binary(kind) or pat.is_large_binary(kind)
    )


def _storage(kind: ArrowType) -> ArrowType:
    return kind.storage_type if isinstance(kind, pa.FixedShapeTensorType) else kind


def _is_list(kind: ArrowType) -> bool:
    kind = _storage(kind)
    return pat.is_list(kind) or pat.is_large_list(kind) or pat.is_fixed_size_list(kind)


def blocks(batch: pa.RecordBatch, table: Plan, first: int, block_bytes: int) -> Iterator[Tensors]:
    """The records of a batch, cut into blocks.

    Args:
        batch: Has the plan's columns.
        table: How they become inputs.
        first: The number of the first record in the body, from 1.
        block_bytes: About how large a block may be.

    Raises:
        DecodeError: A value is not what its input takes; the message names its column and record.
    """
    row_bytes = max(table.row_bytes(), batch.nbytes // max(1, batch.num_rows), 1)
    step = max(1, block_bytes // row_bytes) if table.signature.has_rows else 1
    for start, stop in _runs(batch, table):
        for row in range(start, stop, step):
            part = batch.slice(row, min(step, stop - row))
            columns = _by_name(part)
            block = {
                spec.name: _input(
                    {name: columns[name] for name in names}, part.num_rows, spec, table.signature, first + row
                )
                for spec, names in table.inputs
            }
            if not table.signature.has_rows:
                block = {name: array.reshape(array.shape[1:]) for name, array in block.items()}
            yield block


def _by_name(batch: pa.RecordBatch) -> dict[str, ArrowArray]:
    """A batch's columns. Asked for one by one, each would cost time in proportion to all of them."""
    return dict(zip(batch.schema.names, batch.columns, strict=True))


def _runs(batch: pa.RecordBatch, table: Plan) -> Iterator[tuple[int, int]]:
    """The rows whose lists have the same lengths, from and up to."""
    change = np.zeros(batch.num_rows, np.bool_)
    columns = _by_name(batch)
    for name in table.columns:
        column = columns[name]
        if pat.is_list(column.type) or pat.is_large_list(column.type):
            lengths = pc.list_value_length(column).fill_null(-1).to_numpy(zero_copy_only=False)
            change[1:] |= lengths[1:] != lengths[:-1]
    starts = [0, *np.flatnonzero(change).tolist(), batch.num_rows]
    return ((start, stop) for start, stop in pairwise(starts) if start < stop)


def _input(
    columns: Mapping[str, ArrowArray], rows: int, spec: TensorSpec, signature: Signature, first: int
) -> Array:
    """An input's values in these rows of its columns, ``[rows, *shape of a record]``."""
    if len(columns) == 1:
        [(name, column)] = columns.items()
        flat, written = _flatten(column, name, first)
        values = _elements(flat, spec, name, first, math.prod(written)).reshape(rows, math.prod(written))
    elif not columns:
        values, written = np.empty((rows, 0), spec.dtype.numpy), ()
    else:
        values, written = _matrix(columns, rows, spec, first), ()
    try:
        shape = record_shape.fit(values.shape[1], written, spec, signature)
    except DecodeError as ex:
        raise DecodeError(ex.problem, record=first) from None
    return values.reshape(rows, *shape)


def _matrix(columns: Mapping[str, ArrowArray], rows: int, spec: TensorSpec, first: int) -> Array:
    """Columns of single values side by side."""
    kinds = {column.type for column in columns.values()}
    if kinds <= {pa.float32()} or kinds <= {pa.float64()}:
        table = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
        values: Array = np.asarray(table.to_tensor(null_to_nan=True, row_major=True))
        try:
            return cast(values, spec)
        except MismatchError:
            pass  # which column and record: found below
    matrix = np.empty((rows, len(columns)), spec.dtype.numpy)
    for place, (name, column) in enumerate(columns.items()):
        matrix[:, place] = _elements(column, spec, name, first, 1)
    return matrix


def _flatten(column: ArrowArray, name: str, first: int) -> tuple[ArrowArray, tuple[int, ...]]:
    """The elements of a column of lists, and the shape of each row's; of single values, the column and ()."""
    shape: list[int] = []
    while _is_list(column.type):
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False))) // math.prod(shape)
            raise DecodeError(f"column {quote(name)}: expected a list, got null", record=first + row)
        if isinstance(column.type, pa.FixedShapeTensorType):
            shape += column.type.shape
            column = column.storage
        elif pat.is_fixed_size_list(column.type):
            shape.append(column.type.list_size)
        else:
            lengths = column.value_lengths().to_numpy(zero_copy_only=False)
            wrong = lengths != lengths[0] if len(lengths) else np.zeros(0, np.bool_)
            if wrong.any():
                at = int(wrong.argmax())
                raise DecodeError(
                    f"column {quote(name)}: expected lists of equal length, got {lengths[0]} and {lengths[at]}",
                    record=first + at // math.prod(shape),
                )
            shape.append(int(lengths[0]) if len(lengths) else 0)
        column = column.flatten()
    return column, tuple(shape)


def _elements(column: ArrowArray, spec: TensorSpec, name: str, first: int, width: int) -> Array:
    """The elements of a column in the input's type; ``width`` of them are a record."""
    try:
        values, nulls = _to_numpy(column)
        if nulls is not None:
            values = _with_nan(values, nulls, spec, name, first, width)
        return cast(values, spec)
    except (UnicodeDecodeError, pa.ArrowException):
        raise DecodeError(f"column {quote(name)}: expected strings in UTF-8") from None
    except MismatchError as ex:
        problem = ex
    for at in range(0, len(values), max(1, width)):
        try:
            cast(values[at : at + width], spec)
        except MismatchError as ex:
            raise DecodeError(f"column {quote(name)}, {ex}", record=first + at // width) from None
    raise problem


def _to_numpy(column: ArrowArray) -> tuple[Array, Array | None]:
    """The values of a column, with anything where there are none, and where those are, if any."""
    nulls = column.is_null().to_numpy(zero_copy_only=False) if column.null_count else None
    if isinstance(column, pa.DictionaryArray):
        indices = column.indices.fill_null(0).to_numpy(zero_copy_only=False)
        # A dictionary may be much longer than the rows: only what they use is made.
        used, places = np.unique(indices, return_inverse=True)
        if not len(column.dictionary):
            is_text = _is_text(column.dictionary.type)
            return np.zeros(len(indices), object if is_text else np.float64), nulls
        values, missing = _to_numpy(column.dictionary.take(pa.array(used)))
        if missing is not None:
            nulls = missing[places] if nulls is None else nulls | missing[places]
        return values[places], nulls
    if pat.is_null(column.type):
        return np.zeros(len(column), np.float64), nulls
    if pat.is_binary(column.type) or pat.is_large_binary(column.type):
        return _decoded(column.to_pylist()), nulls
    if nulls is not None and not pat.is_floating(column.type) and not _is_text(column.type):
        column = column.fill_null(pa.scalar(0).cast(column.type))
    return column.to_numpy(zero_copy_only=False), nulls


def _decoded(items: Sequence[bytes | None]) -> Array:
    array = np.empty(len(items), object)
    array[:] = [None if item is None else item.decode() for item in items]
    return array


def _with_nan(values: Array, nulls: Array, spec: TensorSpec, name: str, first: int, width: int) -> Array:
    if not spec.dtype.is_float or values.dtype.kind == "O":
        row = int(nulls.argmax()) // max(1, width)
        raise DecodeError(f"column {quote(name)}: expected {spec.dtype.name}, got null", record=first + row)
    filled = values.astype(np.promote_types(values.dtype, spec.dtype.numpy))
    filled[nulls] = np.nan
    return filled
