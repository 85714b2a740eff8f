"""A model's outputs as Arrow tables: what Parquet files and Arrow streams share.

A row is a prediction, or a run if the model has no rows; a column is an output. The types follow from the model
alone, so that answers to equal requests, and to none, have equal schemas: single values as they are, tensors as
nested lists (of fixed size where the model says it), maps (ZipMap) as Arrow maps.
"""

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pat

from onnx_serve.codecs.interface import Answer
from onnx_serve.errors import EncodeError, MismatchError, quote
from onnx_serve.tensors import DataType, MapTable, Signature, TensorSpec, Value, Values

__all__ = ["schema", "tables"]

Array: TypeAlias = npt.NDArray[Any]
# pyarrow's stubs know what a column and its type have only where they are made.
ArrowArray: TypeAlias = Any
ArrowType: TypeAlias = Any

_MAP_KEY = re.compile(r"map\((\w+),")


def schema(signature: Signature) -> pa.Schema:
    """The columns of an answer.

    Raises:
        EncodeError: An output is a sequence, an optional, or of a type that Arrow has none for.
    """
    return pa.schema([(spec.name, _column_type(spec, signature)) for spec in signature.outputs])


def _column_type(spec: TensorSpec, signature: Signature) -> ArrowType:
    try:
        dtype = spec.dtype
    except MismatchError:
        dtype = None
    if dtype is None or not (spec.is_tensor or spec.is_map_sequence):
        raise EncodeError(
            f"tables hold tensors and maps of numbers or strings; output {quote(spec.name)} is {spec.onnx_type}"
        )
    leaf = pa.string() if dtype is DataType.STRING else pa.from_numpy_dtype(dtype.numpy)
    if spec.is_map_sequence:
        key = _MAP_KEY.search(spec.onnx_type)
        kind: ArrowType = pa.map_(pa.string() if key and key[1] == "string" else pa.int64(), leaf)
        return kind if signature.has_rows else pa.list_(kind)
    kind = leaf
    for size in reversed(signature.record_shape(spec)):
        # Parquet's readers disagree on fixed sizes of 0.
        kind = pa.list_(kind, size) if isinstance(size, int) and size > 0 else pa.list_(kind)
    return kind


def tables(
    answers: Iterable[Answer], signature: Signature, columns: pa.Schema, table_bytes: int
) -> Iterator[pa.Table]:
    """The outputs in tables of about so many bytes or one larger block; no block, no table.

    Raises:
        EncodeError: Outputs have different numbers of rows, or are not as the model declares them.
    """
    held: list[pa.RecordBatch] = []
    size = 0
    for answer in answers:
        for block in answer.blocks:
            held.append(_batch(block, signature, columns))
            size += held[-1].nbytes
            if size >= table_bytes:
                yield pa.Table.from_batches(held, columns).combine_chunks()
                held, size = [], 0
    if held:
        yield pa.Table.from_batches(held, columns).combine_chunks()


def _batch(block: Values, signature: Signature, columns: pa.Schema) -> pa.RecordBatch:
    arrays = []
    for spec in signature.outputs:
        try:
            arrays.append(
                _array(block[spec.name], columns.field(spec.name).type, has_rows=signature.has_rows)
            )
        except (pa.ArrowException, ValueError, TypeError) as ex:
            raise EncodeError(
                f"output {quote(spec.name)}: expected {spec}, which the model declares: {quote(ex)}"
            ) from None
    if len({len(array) for array in arrays}) > 1:
        raise EncodeError("tables cannot hold outputs of different numbers of rows; application/json can")
    return pa.RecordBatch.from_arrays(arrays, schema=columns)


def _array(value: Value, kind: ArrowType, *, has_rows: bool) -> ArrowArray:
    if isinstance(value, MapTable):
        return _maps(value, kind) if has_rows else pa.array([list(map(dict, value.dicts()))], kind)
    if not isinstance(value, np.ndarray):
        raise TypeError(type(value).__name__)
    return _nested(value if has_rows else value[np.newaxis], kind)


def _nested(array: Array, kind: ArrowType) -> ArrowArray:
    """An array whose dimension 0 becomes the rows, and every other one a list."""
    sizes: list[int] = []
    leaf = kind
    while pat.is_list(leaf) or pat.is_fixed_size_list(leaf):
        leaf = leaf.value_type
        sizes.append(array.shape[len(sizes) + 1] if len(sizes) + 1 < array.ndim else -1)
    if len(sizes) + 1 != array.ndim:
        raise ValueError(f"{array.ndim} dimensions")
    flat = np.ascontiguousarray(array).reshape(-1)
    # Objects as a list: pyarrow takes arrays of fixed-width text, but not of objects, for anything but text.
    made: ArrowArray = pa.array(flat.tolist() if flat.dtype.kind in "OSU" else flat, leaf)
    kinds = [kind]
    for _ in sizes[1:]:
        kinds.append(kinds[-1].value_type)
    for depth in range(len(sizes) - 1, -1, -1):
        rows = math.prod(array.shape[: depth + 1])
        made = _list(made, rows, sizes[depth], kinds[depth])
    return made


def _list(items: ArrowArray, rows: int, size: int, kind: ArrowType) -> ArrowArray:
    if pat.is_fixed_size_list(kind):
        if kind.list_size != size:
            raise ValueError(f"{size} values")
        return pa.FixedSizeListArray.from_arrays(items, size)
    offsets = np.arange(rows + 1, dtype=np.int64) * size
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items, type=kind)


def _maps(table: MapTable, kind: ArrowType) -> ArrowArray:
    rows, width = table.values.shape
    offsets: Any = pa.array(np.arange(rows + 1, dtype=np.int64) * width, pa.int32())
    keys: ArrowArray = pa.array(list(table.keys), kind.key_type).take(
        pa.array(np.tile(np.arange(width), rows))
    )
    flat = table.values.reshape(-1)
    items: ArrowArray = pa.array(flat.tolist() if flat.dtype.kind in "OSU" else flat, kind.item_type)
    return pa.MapArray.from_arrays(offsets, keys, items)
