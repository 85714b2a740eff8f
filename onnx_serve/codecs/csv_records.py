"""Where the records and cells of CSV begin and end, by RFC 4180: https://www.rfc-editor.org/rfc/rfc4180."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_serve.errors import DecodeError

__all__ = [
    "BOM",
    "count_newlines",
    "count_records",
    "first_width",
    "has_blank_line",
    "locate",
    "read_record",
    "record_end",
    "record_ends",
    "records",
    "whole_records",
]

BOM = b"\xef\xbb\xbf"
_CELL = re.compile(rb'(?:"([^"]*+(?:""[^"]*+)*+)"|([^",\r\n]*+))(,|\r?\n|\r?\Z)')
_OPEN_CELL = re.compile(rb'"[^"]*+(?:""[^"]*+)*+\Z')
_BEFORE_QUOTE = np.frombuffer(b',\n"', np.uint8)
_AFTER_QUOTE = np.frombuffer(b',\r\n"', np.uint8)
# Bounds the memory for the places of quotes and newlines.
_MAX_QUOTED_BYTES = 64 << 20
# Below this, a call of NumPy's costs more than what it is called for.
_SMALL_BYTES = 4096


def records(
    chunk: bytes, line: int, width: int | None = None, *, blank: bool = True
) -> Iterator[tuple[int, list[str], int]]:
    """Each record's line, cells and end: the offset in the chunk of what follows it.

    Args:
        chunk: Whole records.
        line: Of the chunk's start.
        width: How many cells each must have, if known.
        blank: Whether a blank line is a record.

    Raises:
        DecodeError: A record is not UTF-8 text of so many properly quoted cells.
    """
    start = 0
    while start < len(chunk):
        cells, end = read_record(chunk, start, line, width, blank=blank)
        yield line, cells, end
        line += chunk.count(b"\n", start, end)
        start = end


def read_record(
    chunk: bytes, start: int, line: int, width: int | None, *, blank: bool
) -> tuple[list[str], int]:
    """The cells of the record that starts at an offset of a chunk, and its end; the rest as ``records``."""
    end = chunk.find(b"\n", start) + 1 or len(chunk)
    row = chunk[start:end].removesuffix(b"\n").removesuffix(b"\r")
    if b'"' in row:
        return _quoted_cells(chunk, start, line, width)
    if not row and not blank and width is not None:
        raise DecodeError(f"expected {_columns(width)}, got an empty line", line=line)
    if b"\r" in row:
        raise DecodeError("a carriage return inside a line", line=line)
    _check_width(row.count(b",") + 1, width, line)
    return _text(row, line).split(","), end


def record_end(chunk: bytes, start: int) -> int:
    """The end of any record, good or bad, that starts at an offset: of its line, if quotes are out of place."""
    end = chunk.find(b"\n", start) + 1 or len(chunk)
    if chunk.find(b'"', start, end) < 0:
        return end
    at = start
    while match := _CELL.match(chunk, at):
        at = match.end()
        if match[3] != b",":
            return at
    return end


def _quoted_cells(chunk: bytes, start: int, line: int, width: int | None) -> tuple[list[str], int]:
    """The cells of a record with quotes, and its end."""
    cells: list[str] = []
    count, at, ending = 0, start, b","
    while ending == b",":
        match = _CELL.match(chunk, at)
        if match is None:
            problem = (
                "a quoted cell has no end"
                if _OPEN_CELL.match(chunk, at)
                else "a quote or carriage return is out of place"
            )
            raise DecodeError(problem, line=line + chunk.count(b"\n", start, at), column=count + 1)
        quoted, plain, ending = match.groups()
        count += 1
        if width is None or count <= width:
            cells.append(_text(plain if quoted is None else quoted.replace(b'""', b'"'), line))
        at = match.end()
    _check_width(count, width, line)
    return cells, at


def _check_width(count: int, width: int | None, line: int) -> None:
    if width is not None and count != width:
        raise DecodeError(f"expected {_columns(width)}, got {count}", line=line)


def _columns(count: int) -> str:
    return f"{count} column" if count == 1 else f"{count} columns"


def _text(data: bytes, line: int) -> str:
    if b"\0" in data:
        raise DecodeError("expected text, got a NUL byte", line=line)
    try:
        return data.decode()
    except UnicodeDecodeError as ex:
        raise DecodeError(f"expected UTF-8, got the byte 0x{data[ex.start]:02x}", line=line) from None


def first_width(chunk: bytes, line: int = 1) -> int:
    """The number of cells of a chunk's first record, which starts at that 1-based line of the body.

    Raises:
        DecodeError: It has quotes, and they are out of place.
    """
    end = chunk.find(b"\n") + 1 or len(chunk)
    if chunk.find(b'"', 0, end) < 0:
        return chunk.count(b",", 0, end) + 1
    _, cells, _ = next(records(chunk, line))
    return len(cells)


def locate(function: Callable[..., Any], *args: Any, line: int, column: int | None = None) -> Any:
    """What the function returns for these arguments; a DecodeError of it gets this 1-based place."""
    try:
        return function(*args)
    except DecodeError as ex:
        raise DecodeError(ex.problem, line=line, column=column) from None


def whole_records(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Moves the cuts between pieces, which are at newlines, out of quoted cells.

    Only the last piece may lack its newline. A record longer than a piece is held whole; from a misplaced quote
    on, records may be cut anywhere: parsing stops there.
    """
    unfinished: list[bytes] = []  # a record that ends in the middle of a quoted cell
    for piece in pieces:
        # Looking for one is ten times as fast as counting none.
        quotes = piece.count(b'"') if b'"' in piece else 0
        if (quotes + bool(unfinished)) % 2 == 0:
            yield b"".join((*unfinished, piece)) if unfinished else piece
            unfinished = []
            continue
        ends = record_ends(piece, inside=bool(unfinished))
        # What follows a misplaced quote is not read: the exact parser stops there.
        end = len(piece) if ends is None else int(ends[-1]) if len(ends) else 0
        if end:
            yield b"".join((*unfinished, piece[:end]))
            unfinished = []
        if end < len(piece):
            unfinished.append(piece[end:])
    if unfinished:
        yield b"".join(unfinished)


def record_ends(chunk: bytes, *, inside: bool = False) -> npt.NDArray[np.intp] | None:
    """Offsets behind the newlines that end records, or None if quotes are out of place.

    Args:
        chunk: Bytes that start with a record or, if ``inside``, within a quoted cell.
        inside: Whether a quoted cell is open where the chunk starts.
    """
    text = np.frombuffer(chunk, np.uint8)
    newlines = np.flatnonzero(text == ord("\n"))
    quotes = np.flatnonzero(text == ord('"'))
    if not len(quotes):
        return newlines[:0] if inside else newlines + 1
    # Quotes open and close cells in turn, a pair in a cell does both.
    opening, closing = quotes[int(inside) :: 2], quotes[1 - inside :: 2]
    before = text[opening[opening > 0] - 1]
    after = text[closing[closing + 1 < len(text)] + 1]
    if not (np.isin(before, _BEFORE_QUOTE).all() and np.isin(after, _AFTER_QUOTE).all()):
        return None
    outside = (np.searchsorted(quotes, newlines) + inside) % 2 == 0
    ends: npt.NDArray[np.intp] = newlines[outside] + 1
    return ends


def count_newlines(chunk: bytes) -> int:
    """As ``bytes.count`` does, which takes ten times as long for a large chunk."""
    if len(chunk) < _SMALL_BYTES:
        return chunk.count(b"\n")
    return int(np.count_nonzero(np.frombuffer(chunk, np.uint8) == ord("\n")))


def count_records(chunk: bytes, width: int) -> int | None:
    """Records in a chunk, or None if quotes, carriage returns, NULs or (as far as it is cheap) commas are odd.

    Args:
        chunk: Whole records.
        width: How many cells each must have; of records with quotes only the first is looked at.
    """
    if b"\0" in chunk or chunk.startswith(BOM):
        return None
    if b"\r" in chunk and chunk.count(b"\r") != chunk.count(b"\r\n") + chunk.endswith(b"\r"):
        return None
    unended = not chunk.endswith(b"\n")
    if b'"' not in chunk:
        rows = count_newlines(chunk) + unended
        # Both libraries would make columns of any number of commas.
        return rows if chunk.count(b",") == rows * (width - 1) else None
    if len(chunk) > _MAX_QUOTED_BYTES or chunk.count(b'"') % 2:
        return None
    ends = record_ends(chunk)
    try:
        next(records(chunk, 1, width))
    except DecodeError:
        return None
    return None if ends is None else len(ends) + unended


def has_blank_line(chunk: bytes) -> bool:
    """Whether a line may be blank; blank lines within quoted cells count too."""
    return chunk[:1] in b"\r\n" or b"\n\n" in chunk or b"\n\r" in chunk
