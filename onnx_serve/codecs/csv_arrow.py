"""CSV by pyarrow, which lets other threads run meanwhile.

Importing pyarrow takes tens of milliseconds: this module is imported by the first body that goes through it.
"""

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from onnx_serve.codecs.csv_cells import FALSE_WORDS, MISSING_WORDS, NUMERIC_BYTES, TRUE_WORDS
from onnx_serve.codecs.csv_records import count_records, has_blank_line
from onnx_serve.codecs.csv_table import Table, narrow
from onnx_serve.tensors import DataType, Tensors

__all__ = ["parse_columns", "parse_uniform"]

Array: TypeAlias = npt.NDArray[Any]

_BLOCK_BYTES = 128 << 10
_TEXT = pa.string()


def parse_uniform(chunk: bytes, table: Table) -> Tensors | None:
    """The inputs of a chunk whose columns are of one numeric type, or None for what is left to the exact parser.

    Args:
        chunk: Whole records, not empty, less than 1 GiB.
        table: Uniform.
    """
    rows = count_records(chunk, table.width)
    if rows is None or chunk.translate(None, NUMERIC_BYTES) or (table.width == 1 and has_blank_line(chunk)):
        return None
    assert table.uniform is not None
    is_float = table.uniform.kind == "f"
    block: Tensors = {f.spec.name: np.empty((rows, *f.shape), f.spec.dtype.numpy) for f in table.fields}
    done = 0
    options = _convert_options(
        [pa.from_numpy_dtype(table.uniform)] * table.width, MISSING_WORDS if is_float else ()
    )
    try:
        # A block at a time, so that the wide columns of a whole chunk are never there at once.
        with pacsv.open_csv(_arrow_input(chunk), *_read_options(chunk, _BLOCK_BYTES), options) as batches:
            for batch in batches:
                if batch.num_columns != table.width or done + batch.num_rows > rows:
                    return None
                values = batch.to_tensor(null_to_nan=is_float, row_major=True).to_numpy()
                parts = table.cut(values)
                if parts is None:
                    return None
                for name, part in parts.items():
                    block[name][done : done + len(part)] = part
                done += len(values)
    except pa.ArrowInvalid:
        return None
    return block if done == rows else None


def parse_columns(chunk: bytes, table: Table) -> Tensors | None:
    """The inputs of a chunk whose columns are of any types, or None for what is left to the exact parser.

    Args:
        chunk: Whole records, not empty, less than 1 GiB.
        table: Of any types.
    """
    rows = count_records(chunk, table.width)
    if rows is None or (table.width == 1 and not table.is_text_column and has_blank_line(chunk)):
        return None
    dtypes = table.dtypes()
    # pyarrow reads 0x1f as an integer: where that may be, integers are taken as text and then converted.
    hexadecimal = b"0x" in chunk or b"0X" in chunk
    types = [_TEXT if hexadecimal and dtype.is_integer else _arrow_type(dtype) for dtype in dtypes]
    try:
        columns = pacsv.read_csv(
            _arrow_input(chunk), *_read_options(chunk, len(chunk) + 2), _convert_options(types, MISSING_WORDS)
        )
        if columns.shape != (rows, table.width):
            return None
        arrays = [
            _to_numpy(column.chunk(0), dtype)
            for column, dtype in zip(columns.itercolumns(), dtypes, strict=True)
        ]
    except pa.ArrowInvalid:
        return None
    block: Tensors = {}
    for field in table.fields:
        part = np.empty((rows, field.stop - field.start), field.spec.dtype.numpy)
        for place, values in enumerate(arrays[field.start : field.stop]):
            narrowed = None if values is None else narrow(values, part.dtype)
            if narrowed is None:
                return None
            part[:, place] = narrowed
        block[field.spec.name] = part.reshape(rows, *field.shape)
    return block


def _arrow_type(dtype: DataType) -> pa.DataType:
    """The type that a column is read as; a dictionary makes one Python string of equal cells."""
    if dtype is DataType.STRING:
        return pa.dictionary(pa.int32(), pa.string())
    if dtype.is_float:
        return pa.float64()
    return pa.from_numpy_dtype(dtype.numpy)


def _to_numpy(column: Any, dtype: DataType) -> Array | None:
    """A column's values, or None in doubt: nothing where there must be a value, or an odd spelling of NaN."""
    if dtype is DataType.STRING:
        values: Array = column.dictionary.to_numpy(zero_copy_only=False)[column.indices.to_numpy()]
        return values
    if not dtype.is_float:
        if column.type == _TEXT:
            if pc.any(pc.match_substring(column, "x", ignore_case=True)).as_py():
                return None
            column = column.cast(pa.from_numpy_dtype(dtype.numpy))
        return None if column.null_count else column.to_numpy(zero_copy_only=False)
    values = column.to_numpy(zero_copy_only=False)
    # pyarrow reads nan(1) as NaN.
    return values if np.count_nonzero(np.isnan(values)) == column.null_count else None


def _arrow_input(chunk: bytes) -> Any:  # the annotations of pyarrow.csv know Python's files only
    # pyarrow refuses a lone line without an ending.
    return pa.BufferReader(chunk if chunk.endswith(b"\n") else chunk + b"\n")


def _read_options(chunk: bytes, block_bytes: int) -> tuple[pacsv.ReadOptions, pacsv.ParseOptions]:
    return (
        pacsv.ReadOptions(use_threads=False, block_size=block_bytes, autogenerate_column_names=True),
        pacsv.ParseOptions(newlines_in_values=b'"' in chunk, ignore_empty_lines=False),
    )


def _convert_options(types: list[pa.DataType], missing: Iterable[str]) -> pacsv.ConvertOptions:
    return pacsv.ConvertOptions(
        column_types={f"f{place}": kind for place, kind in enumerate(types)},
        null_values=list(missing),
        true_values=[spelling for word in TRUE_WORDS for spelling in {word, word.title(), word.upper()}],
        false_values=[spelling for word in FALSE_WORDS for spelling in {word, word.title(), word.upper()}],
        strings_can_be_null=False,
    )
