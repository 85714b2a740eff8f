"""A Parquet file's footer, reduced to what reading its rows needs.

pyarrow ends the process on some contradictions in statistics and histograms, which rows can be read without
(``terminate called after throwing parquet::ParquetException``, seen with 26.0). So the footer is read here, and
pyarrow is given one that is written anew from what was read: it sees nothing that was not seen here.

https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from onnx_serve.codecs.sections import Bounded
from onnx_serve.codecs.thrift_compact import (
    BINARY,
    I32,
    I64,
    LIST,
    STRUCT,
    CutOffError,
    Struct,
    field,
    read_struct,
    write_struct,
)
from onnx_serve.errors import DecodeError, quote

__all__ = ["Chunk", "Footer", "RowGroup", "read_footer"]

_MAGIC = b"PAR1"
_TAIL = 8
_MAX_LENGTH = 1 << 24

# The fields that are kept, by number: type, and for structures and lists what is in them.
Kept: TypeAlias = Mapping[int, tuple[int, Any]]
_ANY: Kept = {}
_COLUMN: Kept = {
    1: (I32, None), 2: (LIST, I32), 3: (LIST, BINARY), 4: (I32, None), 5: (I64, None), 6: (I64, None),
    7: (I64, None), 9: (I64, None), 11: (I64, None),
}  # fmt: skip
_CHUNK: Kept = {2: (I64, None), 3: (STRUCT, _COLUMN)}
_GROUP: Kept = {1: (LIST, _CHUNK), 2: (I64, None), 3: (I64, None)}
_PAIR: Kept = {1: (BINARY, None), 2: (BINARY, None)}
_ELEMENT: Kept = {
    1: (I32, None), 2: (I32, None), 3: (I32, None), 4: (BINARY, None), 5: (I32, None), 6: (I32, None),
    7: (I32, None), 8: (I32, None), 10: (STRUCT, _ANY),
}  # fmt: skip
_FILE: Kept = {
    1: (I32, None), 2: (LIST, _ELEMENT), 3: (I64, None), 4: (LIST, _GROUP), 5: (LIST, _PAIR), 6: (BINARY, None),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chunk:
    """Where the pages of a column in a row group are.

    Attributes:
        start: The offset of the first.
        length: Bytes of all of them.
        values: How many values they hold, nulls too.
    """

    start: int
    length: int
    values: int


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Some rows of the table.

    Attributes:
        rows: How many.
        unpacked: Bytes of their pages after decompression, as the writer says.
        chunks: One for each leaf of the schema, in order.
    """

    rows: int
    unpacked: int
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Footer:
    """What a file says of its table.

    Attributes:
        rows: How many there are.
        groups: Its row groups.
        alone: A Parquet file of this footer and no pages, for pyarrow.
    """

    rows: int
    groups: tuple[RowGroup, ...]
    alone: bytes


def read_footer(file: Bounded) -> Footer:
    """The footer of a whole file.

    Raises:
        DecodeError: There is none, it is malformed, or longer than 16 MiB.
    """
    file.seek(0)
    head = file.read(len(_MAGIC))
    file.seek(max(0, file.length - _TAIL))
    tail = file.read(_TAIL)
    if head != _MAGIC or tail[4:] != _MAGIC or file.length < len(_MAGIC) + _TAIL:
        raise DecodeError(
            f'expected a Parquet file, which begins and ends with "PAR1", got {quote(head)} and {quote(tail[4:])}'
        )
    length = int.from_bytes(tail[:4], "little")
    if not 0 < length <= min(_MAX_LENGTH, file.length - len(_MAGIC) - _TAIL):
        raise DecodeError(
            f"expected a footer within the file, and of at most {_MAX_LENGTH} bytes, got {length}"
        )
    file.seek(file.length - _TAIL - length)
    try:
        struct, _ = read_struct(file.read(length), "the footer")
    except CutOffError:
        raise DecodeError("the footer has no end") from None
    kept = _keep(struct, _FILE)
    data = write_struct(kept)
    alone = _MAGIC + data + len(data).to_bytes(4, "little") + _MAGIC
    _, groups = _required(kept, 4, LIST)
    return Footer(_required(kept, 3, I64), tuple(map(_row_group, groups)), alone)


def _keep(struct: Struct, fields: Kept) -> Struct:
    """The wanted fields of a structure, if they have the types that they should; lists of other things are errors."""
    kept: Struct = {}
    for number, (kind, inner) in fields.items():
        value = field(struct, number, kind)
        if value is None:
            continue
        if kind == STRUCT:
            value = _keep(value, inner) if inner else value
        elif kind == LIST:
            item_kind, items = value
            if items and item_kind != (inner if isinstance(inner, int) else STRUCT):
                raise DecodeError("the footer is malformed")
            value = (item_kind, items if isinstance(inner, int) else [_keep(item, inner) for item in items])
        kept[number] = (kind, value)
    return kept


def _required(struct: Struct, number: int, kind: int) -> Any:
    value = field(struct, number, kind)
    if value is None or (kind == I64 and value < 0):
        raise DecodeError("the footer is malformed")
    return value


def _row_group(struct: Struct) -> RowGroup:
    _, chunks = _required(struct, 1, LIST)
    return RowGroup(_required(struct, 3, I64), _required(struct, 2, I64), tuple(map(_chunk, chunks)))


def _chunk(struct: Struct) -> Chunk:
    column = _required(struct, 3, STRUCT)
    start = _required(column, 9, I64)
    dictionary = field(column, 11, I64)
    # As pyarrow does: a dictionary, if there is one, comes first.
    if dictionary is not None and 0 < dictionary < start:
        start = dictionary
    return Chunk(start, _required(column, 7, I64), _required(column, 5, I64))
