"""The first line of a CSV body: names, or a record already."""

import re
from collections import Counter
from itertools import zip_longest

from onnx_serve.codecs.csv_cells import DECIMAL, FALSE_WORDS, TRUE_WORDS, is_number
from onnx_serve.codecs.csv_records import first_width, locate, records
from onnx_serve.codecs.csv_table import Field, Table, fixed_table, make_table, name_list
from onnx_serve.errors import DecodeError, quote
from onnx_serve.tensors import DataType, Signature

__all__ = ["read_header"]

_NUMBER_IN_FRONT = re.compile(rb"[ \t]*+" + DECIMAL.pattern.encode() + rb"[ \t]*+(?:[,\r\n]|\Z)")
# A longer first line may be anything: it is not split before its cells are counted.
_MAX_HEADER_BYTES = 64 << 10


def read_header(
    chunk: bytes, header: str, signature: Signature, *, batch: bool, marks_errors: bool = False
) -> tuple[Table | None, bytes, int]:
    """The table for the records, the first chunk without a line of names, and the line it starts at.

    The table is None if a line's columns decide it: every line's, for a run without rows and with a free
    dimension; or the first good record's, where a bad first one is no reason to refuse the others.

    Args:
        chunk: The body's first records, not empty.
        header: ``auto``, ``present``, ``absent`` or ``skip``.
        signature: The model's.
        batch: Whether the body may be any mini-batch of a file, of which only the first has the header.
        marks_errors: Whether a first line that is no header may be a bad record.

    Raises:
        DecodeError: There is a header where none may be, or the other way round; its names are wrong; or the
            model cannot be fed from CSV.
    """
    table = fixed_table(signature)
    is_fixed = table is not None
    if table is None:
        try:
            table = locate(make_table, signature, first_width(chunk), line=1)
        except DecodeError:
            if not marks_errors or header == "present":
                raise
            return None, chunk, 1
    without_header = table if is_fixed or (signature.has_rows and not marks_errors) else None
    if header == "absent" or (header != "present" and not _looks_like_header(chunk, table)):
        return without_header, chunk, 1
    if header == "auto" and batch:
        if marks_errors:
            return without_header, chunk, 1
        raise DecodeError(
            "the first line looks like a header; Batch Transform sends it in the first mini-batch only: "
            'remove it from the input files, or set csv_header to "skip" to answer it with a placeholder row; where '
            "it comes with all of its records, say so: text/csv; header=present",
            line=1,
        )
    return _after_header(
        chunk, header, table, batch=batch, own_tables=not is_fixed and not signature.has_rows
    )


def _after_header(
    chunk: bytes, header: str, table: Table, *, batch: bool, own_tables: bool
) -> tuple[Table | None, bytes, int]:
    """What ``read_header`` returns for a chunk that begins with names."""
    _, names, end = next(records(chunk, 1, _header_width(chunk, table)))
    if header == "skip":
        line = max(1, chunk.count(b"\n", 0, end))
        return None if own_tables else table, _placeholder(chunk, end, table), line
    if batch:
        _check_no_record(names, table)
    if table.is_named:
        table = _by_name(table, names)
    return None if own_tables else table, chunk[end:], 1 + chunk.count(b"\n", 0, end)


def _looks_like_header(chunk: bytes, table: Table) -> bool:
    """Whether the inputs are all numeric and no cell of the first line reads as a number."""
    if any(field.spec.dtype is DataType.STRING for field in table.fields) or _NUMBER_IN_FRONT.match(chunk):
        return False
    try:
        _, cells, _ = next(records(chunk, 1, _header_width(chunk, table)))
    except DecodeError:
        return False  # a bad record, as its reader will say
    return _number_column(cells, table) is None


def _check_no_record(cells: list[str], table: Table) -> None:
    """Refuses a header that may be a record, which would be lost without a trace.

    Raises:
        DecodeError: A number stands where the model takes one.
    """
    column = _number_column(cells, table)
    if column is not None:
        raise DecodeError(
            f'expected a header, as "present" says, got {quote(cells[column - 1])}; Batch Transform sends the header '
            'in the first mini-batch only: remove it from the input files and say "absent", or set csv_header to '
            '"skip" instead to answer it with a placeholder row',
            line=1,
            column=column,
        )


def _number_column(cells: list[str], table: Table) -> int | None:
    """The first column, from 1, that reads as a number or boolean and is not known to be a string's."""
    dtypes = table.dtypes()
    words = (*TRUE_WORDS, *FALSE_WORDS) if DataType.BOOL in dtypes else ()
    for column, (cell, dtype) in enumerate(zip_longest(cells, dtypes[: len(cells)]), 1):
        word = cell.strip(" \t")
        if dtype is not DataType.STRING and (is_number(word) or word.lower() in words):
            return column
    return None


def _header_width(chunk: bytes, table: Table) -> int | None:
    """How many cells the first line must have; None where wrong names are a better error than their number."""
    is_short = len(chunk) < _MAX_HEADER_BYTES or b"\n" in chunk[:_MAX_HEADER_BYTES]
    return None if table.is_named and is_short else table.width


def _placeholder(chunk: bytes, end: int, table: Table) -> bytes:
    """The chunk with zeros in place of its first line."""
    return b",".join([b"0"] * table.width) + (b"\n" if end < len(chunk) else b"") + chunk[end:]


def _by_name(table: Table, names: list[str]) -> Table:
    """The table with each input, of one column, at the place of its name."""
    expected = {field.spec.name for field in table.fields}
    count = Counter(names)
    problems = [
        f"{word} {name_list(wrong)}"
        for word, wrong in (
            ("missing", [field.spec.name for field in table.fields if field.spec.name not in count]),
            ("unknown", [name for name in count if name not in expected]),
            ("repeated", [name for name, times in count.items() if times > 1]),
        )
        if wrong
    ]
    if problems:
        raise DecodeError(f"expected the inputs' names as header: {'; '.join(problems)}", line=1)
    places = {name: place for place, name in enumerate(names)}
    fields = tuple(
        Field(field.spec, places[field.spec.name], places[field.spec.name] + 1, field.shape)
        for field in table.fields
    )
    return Table(fields, table.width, table.uniform)
