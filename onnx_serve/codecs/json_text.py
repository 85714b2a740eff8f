"""Outputs as JSON text, written by columns: orjson where it writes what is wanted, else pieces that are joined."""

from dataclasses import dataclass
from json import JSONEncoder
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson

from onnx_serve.codecs.interface import BadRecord, CodecOptions
from onnx_serve.errors import EncodeError
from onnx_serve.tensors import MapTable, Signature, Value, Values

__all__ = ["join_records", "text"]

Array: TypeAlias = npt.NDArray[Any]

_quoted = JSONEncoder(ensure_ascii=False).encode
# NaN, Infinity and -Infinity; for "null" orjson's own way is right as it is.
_NON_FINITE = {
    "string": (b"null", b'"Infinity"', b'"-Infinity"'),
    "literal": (b"NaN", b"Infinity", b"-Infinity"),
}


@dataclass(frozen=True, slots=True)
class _Column:
    """The text of an output's records, in pieces: each record is ``literal cell literal cell ... tail``."""

    rows: int
    parts: list[tuple[bytes, list[bytes]]]
    tail: bytes = b""


def join_records(values: Values, separator: bytes, signature: Signature, options: CodecOptions) -> bytes:
    """The JSON texts of a block's records, one after the other.

    Args:
        values: Outputs by name, or a bad record, which is the object ``{"error": "..."}``.
        separator: A comma or a newline.
        signature: The model's; without rows, the block is one record.
        options: For numbers that are not finite.

    Raises:
        EncodeError: An output has no form in JSON.
    """
    if isinstance(values, BadRecord):
        # Half a surrogate pair, which a JSON text may hold and an error may quote, has no form in UTF-8.
        return _dump({"error": values.error.encode(errors="replace").decode()})
    names = [spec.name for spec in signature.outputs]
    if len(names) == 1 and signature.has_rows:
        value = values[names[0]]
        if isinstance(value, np.ndarray) and value.ndim and value.size and _is_plain(value, options):
            joined = _dump(value)[1:-1]
            return joined if separator == b"," else joined.replace(*_between_rows(value, separator))
    if signature.has_rows:
        columns = _columns({name: values[name] for name in names}, options)
    else:
        columns = [_Column(1, [(b"", [text(values[name], options)])]) for name in names]
    if len(names) == 1:
        return _interleave(columns[0], separator)
    parts: list[tuple[bytes, list[bytes]]] = []
    literal = b"{"
    for name, column in zip(names, columns, strict=True):
        literal += orjson.dumps(name) + b":"
        for lead, cells in column.parts:
            parts.append((literal + lead, cells))
            literal = b""
        literal += column.tail + b","
    return _interleave(_Column(columns[0].rows, parts, literal[:-1] + b"}"), separator)


def _interleave(column: _Column, separator: bytes) -> bytes:
    if not column.parts or not column.rows:
        return separator.join([column.tail] * column.rows)
    stride = 2 * len(column.parts)
    pieces = [b""] * (stride * column.rows)
    for index, (literal, cells) in enumerate(column.parts):
        before = literal if index else column.tail + separator + literal
        pieces[2 * index :: stride] = [before] * column.rows
        pieces[2 * index + 1 :: stride] = cells
    pieces[0] = column.parts[0][0]
    pieces.append(column.tail)
    return b"".join(pieces)


def _columns(values: Values, options: CodecOptions) -> list[_Column]:
    """A column for each output of a model with rows, all of the same length."""
    sized = {name: _column(name, value, options) for name, value in values.items() if value is not None}
    rows = next((column.rows for column in sized.values()), 1)
    for name, column in sized.items():
        if column.rows != rows:
            raise EncodeError(
                f'output "{name}": expected {rows} rows like the first output, got {column.rows}'
            )
    nothing = _Column(rows, [(b"", [b"null"] * rows)])
    return [sized.get(name, nothing) for name in values]


def _column(name: str, value: Value, options: CodecOptions) -> _Column:
    if isinstance(value, MapTable):
        return _map_column(value, options)
    if isinstance(value, list):
        return _Column(len(value), [(b"", [text(item, options) for item in value])])
    if not isinstance(value, np.ndarray) or not value.ndim:
        raise EncodeError(f'output "{name}": expected a value for each row, got one for all')
    if value.size and _is_plain(value, options):
        separator, _ = _between_rows(value, b"")
        rank = value.ndim
        # The outermost brackets are the array's, the next ones each row's first and last.
        rows = _dump(value)[rank:-rank].split(separator)
        return _Column(len(value), [(b"[" * (rank - 1), rows)], b"]" * (rank - 1))
    return _Column(len(value), [(b"", _rows(value, options))])


def _map_column(table: MapTable, options: CodecOptions) -> _Column:
    count = len(table.keys)
    cells = _cells(table.values.ravel(), options)
    parts = [
        ((b"," if index else b"{") + orjson.dumps(str(key)) + b":", cells[index::count])
        for index, key in enumerate(table.keys)
    ]
    return _Column(len(table), parts, b"}" if parts else b"{}")


def text(value: Any, options: CodecOptions) -> bytes:
    """The JSON text of a whole output, or of an item of a sequence or map.

    Raises:
        EncodeError: It has no form in JSON.
    """
    if value is None:
        return b"null"
    if isinstance(value, MapTable):
        return b"[" + _interleave(_map_column(value, options), b",") + b"]"
    if isinstance(value, list | tuple):
        return b"[" + b",".join([text(item, options) for item in value]) + b"]"
    if isinstance(value, dict):
        pairs = (orjson.dumps(str(key)) + b":" + text(item, options) for key, item in value.items())
        return b"{" + b",".join(pairs) + b"}"
    if isinstance(value, str | bool | int):
        return _dump(value)
    array = np.asarray(value)[None]
    if _is_plain(array, options):
        return _dump(array)[1:-1]
    return _rows(array, options)[0]


def _is_plain(array: Array, options: CodecOptions) -> bool:
    """Whether orjson writes the array as it is to be written."""
    if array.dtype.kind == "f":
        return options.json_non_finite == "null" or bool(np.isfinite(array).all())
    return array.dtype.kind in "biu"


def _dump(value: object) -> bytes:
    if isinstance(value, np.ndarray):
        value = np.ascontiguousarray(value, value.dtype.newbyteorder("="))
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError as ex:
        raise _no_form(ex) from None


def _no_form(ex: Exception) -> EncodeError:
    return EncodeError(f"an output has a value with no form in JSON: {ex}")


def _between_rows(array: Array, separator: bytes) -> tuple[bytes, bytes]:
    """What orjson writes between the rows of a non-empty array, and the same with another separator."""
    closing, opening = b"]" * (array.ndim - 1), b"[" * (array.ndim - 1)
    return closing + b"," + opening, closing + separator + opening


def _cells(flat: Array, options: CodecOptions) -> list[bytes]:
    """The texts of an array's elements."""
    if flat.dtype.kind in "OU":
        items = flat.tolist()
        try:
            # Labels repeat. Not orjson: each of its results keeps a kilobyte, and 2 us to get it.
            texts = {item: _quoted(item).encode() for item in set(items)}
        except (TypeError, UnicodeEncodeError) as ex:
            raise _no_form(ex) from None
        return [texts[item] for item in items]
    if flat.dtype.kind not in "biuf":
        raise EncodeError(f"an output has elements of type {flat.dtype}, which has no form in JSON")
    if not flat.size:
        return []
    cells = _dump(flat)[1:-1].split(b",")
    if not _is_plain(flat, options):
        # orjson wrote null for all of them.
        nan, infinity, minus_infinity = _NON_FINITE[options.json_non_finite]
        for where, word in (
            (np.isnan(flat), nan),
            (flat == np.inf, infinity),
            (flat == -np.inf, minus_infinity),
        ):
            for index in np.flatnonzero(where).tolist():
                cells[index] = word
    return cells


def _rows(array: Array, options: CodecOptions) -> list[bytes]:
    """The text of each index of dimension 0, for any array."""
    level = _cells(array.ravel(), options)
    for axis in range(array.ndim - 1, 0, -1):
        size = array.shape[axis]
        lists = int(np.prod(array.shape[:axis]))
        level = [b"[" + b",".join(level[i * size : (i + 1) * size]) + b"]" for i in range(lists)]
    return level
