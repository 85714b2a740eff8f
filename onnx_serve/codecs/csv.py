r"""``text/csv``: one record a line.

**A body** is UTF-8 text of records that end with LF or CRLF (the last may lack its ending); a byte order mark
in front is dropped. Every line is a record, a blank one too. Cells are separated by commas and quoted as RFC
4180 says (https://www.rfc-editor.org/rfc/rfc4180): quotes enclose a whole cell and are doubled inside it. The
columns fill the model's inputs in order, row-major.

**Cells.** Blanks (space, tab) around numbers and booleans are dropped, quotes around them mean nothing.

=========  =====================================================================================
input      a cell
=========  =====================================================================================
a float    ASCII decimal with optional sign and exponent (``1``, ``+.5``, ``-1.e3``); ``nan``, ``inf``,
           ``infinity`` with optional sign in any case; NaN when empty or spelled as in ``csv_cells``.
           It is read as float64 and then rounded to the input's type; text beyond float64 is an infinity,
           a finite float64 beyond the input's type is an error
an integer the same decimals, if they are whole and in the type's range: ``3``, ``3.0``, ``1e2``; always exact
BOOL       ``true``, ``false``, ``1``, ``0`` in any case
STRING     the text itself; an empty cell is the empty string
=========  =====================================================================================

**Header.** ``header=present|absent`` of the media type wins over the setting ``csv_header``. A first line of
names maps columns to inputs by name if there are several inputs of one value a record; otherwise columns go
by position. A line *looks like a header* when the model takes no strings and no cell reads as a number. Under
Batch Transform such a line is an error, because the platform's splitter sends it in the first mini-batch only;
``skip`` reads it as a record of zeros instead, whose prediction means nothing and only keeps the rows in step.
There ``present`` refuses a first line with a number in a column of numbers: it would be a record that is lost.

**How.** The exact parser (``csv_parsers.parse_exactly``) defines all of this. The parsers of simdjson, NumPy and pyarrow
are only taken at their word where they cannot differ from it: on any doubt or error of theirs the exact parser
reads the chunk again, and so every error names its line, column and value.
"""

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import BinaryIO

from onnx_serve.codecs.csv_header import read_header
from onnx_serve.codecs.csv_lines import LineWriter
from onnx_serve.codecs.csv_parsers import parse, parse_each, parse_exactly
from onnx_serve.codecs.csv_records import BOM, count_newlines, first_width, locate, record_end, whole_records
from onnx_serve.codecs.csv_table import Table, make_table
from onnx_serve.codecs.interface import Answer, BadRecord, Body, Codec, CodecOptions, Document, MediaType
from onnx_serve.errors import DecodeError, quote
from onnx_serve.tensors import Signature, Tensors

__all__ = ["codec", "decode", "encode"]

_CHARSETS = {"utf-8", "utf8", "us-ascii", "ascii"}


def decode(
    body: Body, media_type: MediaType, signature: Signature, options: CodecOptions
) -> Iterator[Document]:
    """One document, whose blocks are decoded chunk by chunk as they are asked for.

    Memory: three to ten times ``options.chunk_bytes``, the more the shorter the numbers are; a longer line is
    held whole.

    Raises:
        DecodeError: At once for the charset, else while the blocks are read.
    """
    charset = media_type.parameters.get("charset", "utf-8")
    if charset.lower() not in _CHARSETS:
        raise DecodeError(f"expected charset=utf-8, got {quote(charset)}")
    header = media_type.parameters.get("header")
    if header is not None and header.lower() not in {"present", "absent"}:
        raise DecodeError(f"expected header=present or header=absent, got {quote(header)}")
    header = options.csv_header if header is None else header.lower()
    chunks = whole_records(_pieces(body, options.chunk_bytes))
    yield Document(_blocks(chunks, header, signature, options))


def _blocks(
    chunks: Iterator[bytes], header: str, signature: Signature, options: CodecOptions
) -> Iterator[Tensors]:
    first = next(chunks, None)
    if first is None:
        return
    marks = options.marks_errors
    table, first, line = read_header(first, header, signature, batch=options.batch, marks_errors=marks)
    for chunk in chain((first,), chunks):
        if table is None and signature.has_rows:
            table = _first_table(chunk, signature, line)
        if table is None:
            yield from _own_tables(chunk, signature, line, marks_errors=marks)
        elif chunk:
            for block in _parse(chunk, table, line, marks_errors=marks):
                yield from (block,) if signature.has_rows else _runs(block)
        line += count_newlines(chunk)


def _parse(chunk: bytes, table: Table, line: int, *, marks_errors: bool) -> Iterable[Tensors]:
    try:
        return (parse(chunk, table, line),)
    except DecodeError:
        if not marks_errors:
            raise
        return parse_each(chunk, table, line)


def _runs(block: Tensors) -> Iterator[Tensors]:
    """Rows as runs of a model without rows."""
    if isinstance(block, BadRecord):
        yield block
    else:
        rows = len(next(iter(block.values())))
        yield from ({name: array[row, ...] for name, array in block.items()} for row in range(rows))


def _lines(chunk: bytes, line: int) -> Iterator[tuple[bytes, int]]:
    """Each record of a chunk, good or bad, and its line."""
    start = 0
    while start < len(chunk):
        end = record_end(chunk, start)
        yield chunk[start:end], line
        line += chunk.count(b"\n", start, end)
        start = end


def _first_table(chunk: bytes, signature: Signature, line: int) -> Table | None:
    """The table of the first good record, or None when there is none: what is bad sets no width for the others."""
    for record, place in _lines(chunk, line):
        try:
            table = make_table(signature, first_width(record, place))
            parse_exactly(record, table, place)
        except DecodeError:
            continue
        return table
    return None


def _own_tables(chunk: bytes, signature: Signature, line: int, *, marks_errors: bool) -> Iterator[Tensors]:
    """A block a line, each with a table of its own: without rows, lines need not be equally long."""
    for record, place in _lines(chunk, line):
        try:
            table = locate(make_table, signature, first_width(record, place), line=place)
            block = parse(record, table, place)
        except DecodeError as ex:
            if not marks_errors:
                raise
            yield BadRecord(str(ex))
        else:
            yield {name: array[0, ...] for name, array in block.items()}


def _pieces(body: Body, chunk_bytes: int) -> Iterator[bytes]:
    """The body's lines without its byte order mark."""
    pieces = body.lines(chunk_bytes)
    if first := next(pieces, b"").removeprefix(BOM):
        yield first
    yield from pieces


def encode(
    answers: Iterable[Answer],
    sink: BinaryIO,
    media_type: MediaType,  # noqa: ARG001 - the interface of every codec
    signature: Signature,
    options: CodecOptions,
) -> None:
    """One line a record, or a run if the model has no rows: its outputs flattened in order, no header.

    Floats are the shortest decimals that read back to the same float32 or float64 (float16 is written as
    float32), ``nan``, ``inf`` or ``-inf``; booleans are ``true`` and ``false``; strings are quoted where RFC 4180
    asks for it, when blanks surround them, and when they are empty, so that no line is blank. A bad record is
    the word ``ERROR`` in every column.

    Raises:
        EncodeError: An output is no table: a sequence, a map, an optional without value, or no values.
    """
    lines = LineWriter(sink, signature)
    for answer in answers:
        for block in answer.blocks:
            if isinstance(block, BadRecord):
                lines.write_error()
            else:
                lines.write(block)
    lines.end(newline=options.text_trailing_newline)


codec = Codec(media_types=("text/csv",), decode=decode, encode=encode, marks_errors=True)
