"""Four ways from whole CSV records to a model's inputs, of which the exact one decides what they mean."""

import io
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import simdjson

from onnx_serve.codecs.csv_cells import NUMERIC_BYTES, READERS
from onnx_serve.codecs.csv_records import (
    count_newlines,
    count_records,
    locate,
    read_record,
    record_end,
    records,
)
from onnx_serve.codecs.csv_table import Field, Table
from onnx_serve.codecs.interface import BadRecord
from onnx_serve.errors import DecodeError
from onnx_serve.tensors import DataType, Tensors

__all__ = ["parse", "parse_each", "parse_exactly", "parse_plain", "parse_with_loadtxt"]

Array: TypeAlias = npt.NDArray[Any]

_PLAIN_NUMBER = b"0123456789+-.eE"
_WIDE: dict[str, Literal["d", "i", "u"]] = {"float64": "d", "int64": "i", "uint64": "u"}
_simdjson_turn = threading.Lock()
# Below this size, or above this many columns, loadtxt is faster than pyarrow, whose cost is 0.2 ms a call and
# 6 us a column; above, they are equally fast and pyarrow lets other threads run.
_ARROW_MIN_BYTES = 128 << 10
_ARROW_MAX_COLUMNS = 256
# pyarrow counts the bytes of a block in an int32.
_ARROW_MAX_BYTES = 1 << 30
_EXACT_CELLS = 1 << 16
# Older NumPy warns when it reads 3.0 as an integer.
_INTEGRAL = b'0123456789+-,"\t\r\n '


def parse(chunk: bytes, table: Table, line: int) -> Tensors:
    """The inputs of a chunk of whole records, by the fastest parser that reads it.

    Args:
        chunk: Not empty, without byte order mark.
        table: How columns fill the inputs.
        line: The 1-based line of the body that the chunk starts at.

    Raises:
        DecodeError: A record is not what the table says.
    """
    block = _parse_fast(chunk, table)
    return parse_exactly(chunk, table, line) if block is None else block


def _parse_fast(chunk: bytes, table: Table) -> Tensors | None:
    """The inputs by the library that suits the chunk; None if the exact parser suits it, or has to decide."""
    if table.uniform is None:
        # In the time that pyarrow needs for a column, the exact parser reads so many bytes.
        column_bytes = 600 if all(field.spec.dtype is DataType.STRING for field in table.fields) else 100
        is_for_arrow = 2048 + column_bytes * table.width < len(chunk) < _ARROW_MAX_BYTES
    else:
        is_for_arrow = table.width <= _ARROW_MAX_COLUMNS and _ARROW_MIN_BYTES <= len(chunk) < _ARROW_MAX_BYTES
        block = _parse_in_turn(chunk, table) if is_for_arrow else parse_plain(chunk, table)
        if block is not None:
            return block
    if is_for_arrow:
        from onnx_serve.codecs import csv_arrow  # noqa: PLC0415 - pyarrow is only imported for who needs it

        return (csv_arrow.parse_columns if table.uniform is None else csv_arrow.parse_uniform)(chunk, table)
    return None if table.uniform is None else parse_with_loadtxt(chunk, table)


def _parse_in_turn(chunk: bytes, table: Table) -> Tensors | None:
    """What ``parse_plain`` says, or None where another thread is at it.

    Two would wait for each other, under the interpreter's lock; pyarrow does without it.
    """
    if not _simdjson_turn.acquire(blocking=False):
        return None
    try:
        return parse_plain(chunk, table)
    finally:
        _simdjson_turn.release()


def parse_plain(chunk: bytes, table: Table) -> Tensors | None:
    """The inputs of a chunk that holds nothing but JSON's numbers, or None for what another parser has to read.

    Such lines are a JSON list once their ends are commas. simdjson reads it in two fifths of pyarrow's time, and
    flattens it: that every line has as many cells is shown by what is left without the bytes of numbers.

    Args:
        chunk: Whole records, not empty.
        table: Uniform.
    """
    assert table.uniform is not None
    text = chunk.replace(b"\r\n", b"\n") if b"\r" in chunk else chunk
    end = b"" if text.endswith(b"\n") else b"\n"
    rows = count_newlines(text) + len(end)
    if text.translate(None, _PLAIN_NUMBER) + end != (b"," * (table.width - 1) + b"\n") * rows:
        return None
    try:
        # A last element takes the comma of the last line, which would have to be cut off otherwise.
        listed = b"".join((b"[", text.replace(b"\n", b","), b",0]" if end else b"0]"))
        numbers: Any = simdjson.Parser().parse(listed)
        values = np.frombuffer(numbers.as_buffer(of_type=_WIDE[table.uniform.name]), table.uniform)[:-1]
    except (ValueError, TypeError, RuntimeError):
        return None
    # "-0" is an integer to simdjson, so that it has no sign.
    if table.uniform.kind == "f" and not values.all() and b"-0," in listed:
        return None
    return table.cut(values.reshape(rows, table.width)) if values.size == rows * table.width else None


def parse_with_loadtxt(chunk: bytes, table: Table) -> Tensors | None:
    """The inputs of a chunk by ``numpy.loadtxt``, or None for what is left to the exact parser.

    Args:
        chunk: Whole records, not empty.
        table: Uniform; a table of uint64 is read as far as int64 goes.
    """
    assert table.uniform is not None
    is_float = table.uniform.kind == "f"
    # A first line that is blank may be the only one, and then NumPy warns.
    if chunk.translate(None, NUMERIC_BYTES if is_float else _INTEGRAL) or chunk[:1] in b"\r\n":
        return None
    rows = count_records(chunk, table.width)
    # A newline in a quoted cell is a blank to NumPy.
    if rows is None or rows != chunk.count(b"\n") + (not chunk.endswith(b"\n")):
        return None
    try:
        values = np.loadtxt(
            io.BytesIO(chunk),
            dtype=np.float64 if is_float else np.int64,
            comments=None,
            delimiter=",",
            ndmin=2,
            quotechar='"',
        )
    except ValueError:
        return None
    return table.cut(values) if values.shape == (rows, table.width) else None


def parse_exactly(chunk: bytes, table: Table, line: int) -> Tensors:
    """The inputs of a chunk, cell by cell: what the other parsers have to agree with.

    Args:
        chunk: Whole records, not empty.
        table: How columns fill the inputs.
        line: The 1-based line of the body that the chunk starts at.

    Raises:
        DecodeError: A record is not what the table says; the message names line, column and value.
    """
    readers = [READERS[dtype] for dtype in table.dtypes()]
    found = records(chunk, line, table.width, blank=table.is_text_column)
    # Python's values take up to seventy times the room of their text: never a whole chunk of them.
    step = max(1, _EXACT_CELLS // max(1, table.width))
    blocks: list[Tensors] = []
    while rows := [_read_cells(cells, readers, number) for number, cells, _ in islice(found, step)]:
        blocks.append(_to_block(rows, table))
    if len(blocks) == 1:
        return blocks[0]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def parse_each(chunk: bytes, table: Table, line: int) -> Iterator[Tensors]:
    """The inputs of a chunk, of which each record may be bad: blocks of the good ones, and a ``BadRecord`` a bad one.

    After a line whose quotes are out of place, the next line is a record. The arguments are those of
    ``parse_exactly``.
    """
    readers = [READERS[dtype] for dtype in table.dtypes()]
    blank = table.is_text_column
    step = max(1, _EXACT_CELLS // max(1, table.width))
    rows: list[list[Any]] = []
    start = 0
    while start < len(chunk):
        error = None
        try:
            cells, end = read_record(chunk, start, line, table.width, blank=blank)
            rows.append(_read_cells(cells, readers, line))
        except DecodeError as ex:
            error, end = str(ex), record_end(chunk, start)
        if rows and (error or len(rows) == step or end == len(chunk)):
            yield _to_block(rows, table)
            rows = []
        if error:
            yield BadRecord(error)
        line += chunk.count(b"\n", start, end)
        start = end


def _read_cells(cells: list[str], readers: list[Callable[[str], Any]], line: int) -> list[Any]:
    try:
        return [read(cell) for read, cell in zip(readers, cells, strict=True)]
    except DecodeError:
        # Once more to the cell that raised, with its place.
        located = enumerate(zip(readers, cells, strict=True), 1)
        return [locate(read, cell, line=line, column=column) for column, (read, cell) in located]


def _to_block(rows: list[list[Any]], table: Table) -> Tensors:
    return {field.spec.name: _to_array(rows, field) for field in table.fields}


def _to_array(rows: list[list[Any]], field: Field) -> Array:
    dtype = field.spec.dtype
    values = [row[field.start : field.stop] for row in rows]
    array = np.array(values, np.float64 if dtype.is_float else dtype.numpy)
    return array.astype(dtype.numpy, copy=False).reshape(len(rows), *field.shape)
