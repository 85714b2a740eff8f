"""What the pages of a Parquet file say they unpack to, read before anything is unpacked.

pyarrow reserves and fills what a page's header asks for, up to 2 GiB, and repeats values as often as run lengths
say. Neither is bounded by the file's size, so the headers are read first.

Pages and encodings: https://parquet.apache.org/docs/file-format/data-pages/, the headers' fields:
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from collections.abc import Iterator
from dataclasses import dataclass

from onnx_serve.codecs.parquet_footer import Chunk
from onnx_serve.codecs.sections import Bounded
from onnx_serve.codecs.thrift_compact import I32, STRUCT, CutOffError, Struct, field, read_struct
from onnx_serve.errors import DecodeError

__all__ = ["DELTA_STRINGS", "Page", "pages"]

# DELTA_LENGTH_BYTE_ARRAY and DELTA_BYTE_ARRAY: pyarrow cannot read them as dictionaries.
DELTA_STRINGS = frozenset({6, 7})
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
# Where the page's own header is, and in it the encoding; by the page's type.
_HEADERS = {_DATA: (5, 2), _DICTIONARY: (7, 2), _DATA_V2: (8, 4)}
_FIRST_READ = 512
_MAX_HEADER = 1 << 20


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a column.

    Attributes:
        unpacked: Bytes after decompression.
        values: How many values it holds, nulls too; 0 for a dictionary.
        encoding: How they are encoded.
    """

    unpacked: int
    values: int
    encoding: int


def pages(file: Bounded, chunk: Chunk) -> Iterator[Page]:
    """The pages of a column, as far as a reader goes that is told to read so many values.

    Raises:
        DecodeError: A header is malformed, or the pages end before that many values.
    """
    start, stop = chunk.start, chunk.start + chunk.length
    if stop > file.length:
        raise DecodeError(f"a column's pages lie outside of the file's {file.length} bytes")
    seen = 0
    while seen < chunk.values:
        if start >= stop:
            raise DecodeError(f"a column of {chunk.values} values ends after {seen}")
        header, size = _read_header(file, start, stop)
        packed, unpacked = field(header, 3, I32), field(header, 2, I32)
        if packed is None or unpacked is None or packed < 0 or unpacked < 0:
            raise DecodeError("a page's header has no sizes")
        page = _page(header, unpacked)
        if page.values < 0:
            raise DecodeError("a page has less than no values")
        seen += page.values
        start += size + packed
        yield page


def _page(header: Struct, unpacked: int) -> Page:
    kind = field(header, 1, I32)
    place, encoding = _HEADERS.get(kind, (0, 0))
    own = field(header, place, STRUCT) or {}
    values = 0 if kind == _DICTIONARY else field(own, 1, I32) or 0
    return Page(unpacked, values, field(own, encoding, I32) or 0)


def _read_header(file: Bounded, start: int, stop: int) -> tuple[Struct, int]:
    """A page's header and its length."""
    size = _FIRST_READ
    while True:
        file.seek(start)
        try:
            return read_struct(file.read(min(size, stop - start)), "a page's header")
        except CutOffError:
            if size >= min(_MAX_HEADER, stop - start):
                raise DecodeError("a page's header has no end") from None
            size *= 8
