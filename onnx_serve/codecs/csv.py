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

**How.** The exact parser (``csv_parsers.parse_exactly``) defines all of this. NumPy's and pyarrow's parsers are only taken
at their word where they cannot differ from it: on any doubt or error of theirs the exact parser reads the
chunk again, and so every error names its line, column and value.
"""

import math
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson

from onnx_serve.codecs.csv_header import read_header
from onnx_serve.codecs.csv_parsers import parse
from onnx_serve.codecs.csv_records import BOM, first_width, locate, record_ends, whole_records
from onnx_serve.codecs.csv_table import make_table
from onnx_serve.codecs.interface import Answer, Body, Codec, CodecOptions, Document, MediaType
from onnx_serve.errors import DecodeError, EncodeError, quote
from onnx_serve.tensors import DataType, MapTable, Signature, Tensors, Value, Values

__all__ = ["codec", "decode", "encode"]

Array: TypeAlias = npt.NDArray[Any]

_CHARSETS = {"utf-8", "utf8", "us-ascii", "ascii"}
_NEEDS_QUOTES = re.compile(r'[",\r\n]|\A[ \t]|[ \t]\Z|\A\Z')


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
    yield Document(_blocks(chunks, header, signature, batch=options.batch))


def _blocks(chunks: Iterator[bytes], header: str, signature: Signature, *, batch: bool) -> Iterator[Tensors]:
    first = next(chunks, None)
    if first is None:
        return
    table, first, line = read_header(first, header, signature, batch=batch)
    for chunk in chain((first,), chunks):
        if table is None:
            yield from _free_runs(chunk, signature, line)
        elif signature.has_rows:
            if chunk:
                yield parse(chunk, table, line)
        elif chunk:
            runs = parse(chunk, table, line)
            rows = len(next(iter(runs.values())))
            yield from ({name: array[row, ...] for name, array in runs.items()} for row in range(rows))
        line += chunk.count(b"\n")


def _free_runs(chunk: bytes, signature: Signature, line: int) -> Iterator[Tensors]:
    """One block a line, each with a table of its own: without rows, lines need not be equally long."""
    found = record_ends(chunk)
    ends = [*(() if found is None else found.tolist()), len(chunk)]
    for start, end in zip([0, *ends], ends, strict=False):
        if record := chunk[start:end]:
            table = locate(make_table, signature, first_width(record, line), line=line)
            block = parse(record, table, line)
            yield {name: array[0, ...] for name, array in block.items()}
            line += record.count(b"\n")


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
    asks for it, when blanks surround them, and when they are empty, so that no line is blank.

    Raises:
        EncodeError: An output is no table: a sequence, a map, an optional without value, or no values.
    """
    separator = b""
    for answer in answers:
        for block in answer.blocks:
            if text := _encode_block(block, signature):
                sink.write(separator)
                sink.write(text)
                separator = b"\n"
    if options.text_trailing_newline:
        sink.write(separator)


def _encode_block(block: Values, signature: Signature) -> bytes:
    """The lines of a block, without the last newline."""
    matrices = [_matrix(name, value, has_rows=signature.has_rows) for name, value in block.items()]
    if len({len(matrix) for matrix in matrices}) > 1:
        sizes = ", ".join(f"{quote(name)} {len(m)}" for name, m in zip(block, matrices, strict=True))
        raise EncodeError(
            f"text/csv cannot hold outputs of different numbers of rows ({sizes}); application/jsonlines can"
        )
    if matrices and not len(matrices[0]):
        return b""
    matrices = [matrix for matrix in matrices if matrix.shape[1]]
    if not matrices:
        raise EncodeError("text/csv cannot hold records without values; application/jsonlines can")
    if len(matrices) > 1 and len({m.dtype for m in matrices}) == 1 and matrices[0].dtype.kind in "fiub":
        matrices = [np.concatenate(matrices, axis=1)]
    if len(matrices) == 1 and matrices[0].dtype.kind in "fiub":
        return _number_lines(matrices[0])
    columns = [
        _number_lines(matrix).split(b"\n") if matrix.dtype.kind in "fiub" else _string_lines(matrix)
        for matrix in matrices
    ]
    return b"\n".join(columns[0] if len(columns) == 1 else map(b",".join, zip(*columns, strict=True)))


def _matrix(name: str, value: Value, *, has_rows: bool) -> Array:
    """An output as ``[rows, values of a record]``."""
    array = value.values if isinstance(value, MapTable) else value
    if not isinstance(array, np.ndarray):
        kind = "no value" if array is None else "a sequence" if isinstance(array, list) else "a map"
        raise EncodeError(f"text/csv cannot hold output {quote(name)}, {kind}; application/jsonlines can")
    if DataType.of_array(array) is None:
        raise EncodeError(f"text/csv cannot hold output {quote(name)} of type {array.dtype}")
    if not has_rows:
        return array.reshape(1, array.size)
    if not array.ndim:
        raise EncodeError(f"text/csv cannot hold output {quote(name)}, one value for all rows")
    return array.reshape(len(array), math.prod(array.shape[1:]))


def _number_lines(matrix: Array) -> bytes:
    native = np.ascontiguousarray(matrix, matrix.dtype.newbyteorder("="))
    text = orjson.dumps(native, option=orjson.OPT_SERIALIZE_NUMPY)[2:-2].replace(b"],[", b"\n")
    if matrix.dtype.kind != "f" or b"null" not in text:
        return text
    # JSON has no word for these: its nulls stand where they are, in order.
    pieces = text.split(b"null")
    words = [
        b"nan" if math.isnan(value) else b"inf" if value > 0 else b"-inf"
        for value in native[~np.isfinite(native)].tolist()
    ]
    return b"".join(chain.from_iterable(zip(pieces, [*words, b""], strict=True)))


def _string_lines(matrix: Array) -> list[bytes]:
    cells = matrix.ravel().tolist()
    # Labels repeat: each is quoted and encoded once.
    quoted = {cell: _quoted(cell) for cell in set(cells)}
    texts = [quoted[cell] for cell in cells]
    width = matrix.shape[1]
    return texts if width == 1 else [b",".join(row) for row in zip(*[iter(texts)] * width, strict=True)]


def _quoted(cell: object) -> bytes:
    text = cell.decode("utf-8", "surrogateescape") if isinstance(cell, bytes) else cell
    if not isinstance(text, str):
        raise EncodeError(f"text/csv: expected strings, got {quote(cell)}")
    if _NEEDS_QUOTES.search(text):
        text = '"' + text.replace('"', '""') + '"'
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise EncodeError(f"text/csv: the string {quote(cell)} has no form in UTF-8") from None


codec = Codec(media_types=("text/csv",), decode=decode, encode=encode)
