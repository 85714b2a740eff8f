"""What only Parquet has: footers, pages, encodings. What it shares with Arrow streams is in test_tables."""

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_laws import check_arbitrary_bytes, decode, decode_rows, signature
from onnx_serve.codecs import parquet, parquet_pages
from onnx_serve.codecs.interface import Body, CodecOptions
from onnx_serve.codecs.parquet import codec
from onnx_serve.codecs.parquet_footer import Chunk
from onnx_serve.codecs.sections import Bounded
from onnx_serve.codecs.thrift_compact import Struct, read_struct, write_struct
from onnx_serve.errors import DecodeError

VECTOR = signature(("x", "float", ["N"]))
TEXT = signature(("x", "string", ["N"]))
MIXED = signature(("x", "float", ["N"]), ("s", "string", ["N"]), ("v", "float", ["N", "K"]))


def write(columns: Any, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, **options)
    return sink.getvalue()


MIXED_FILE = write(
    {"x": np.arange(50, dtype=np.float32), "s": ["a", "b"] * 25, "v": [[1.0, 2.0]] * 50}, row_group_size=30
)


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_every_compression_page_version_and_encoding(
    compression: str, version: str, dictionary: bool
) -> None:
    values = np.repeat(np.arange(300, dtype=np.float32), 10)
    data = write(
        {"x": values, "s": values.astype(str), "v": list(np.stack([values, -values], 1))},
        compression=compression, data_page_version=version, use_dictionary=dictionary,
        row_group_size=1000, data_page_size=500, write_page_checksum=True,
    )  # fmt: skip
    rows = decode_rows(codec, data, MIXED, options=CodecOptions(chunk_bytes=3000))

    np.testing.assert_array_equal(rows["x"], values)
    assert rows["s"].tolist() == values.astype(str).tolist()
    np.testing.assert_array_equal(rows["v"][:, 1], -values)


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("x", "BYTE_STREAM_SPLIT"), ("s", "DELTA_BYTE_ARRAY"), ("s", "DELTA_LENGTH_BYTE_ARRAY"), ("n", "DELTA_BINARY_PACKED")],
)  # fmt: skip
def test_other_encodings(name: str, encoding: str) -> None:
    columns: dict[str, Any] = {
        "x": np.arange(900, dtype=np.float32),
        "s": [f"word {i}" for i in range(900)],
        "n": range(900),
    }
    data = write({name: columns[name]}, use_dictionary=False, column_encoding={name: encoding})
    kind = {"x": "float", "s": "string", "n": "int64"}[name]

    assert decode_rows(codec, data, signature((name, kind, ["N"])))[name].tolist() == list(columns[name])


def test_names_with_dots_are_columns_like_others() -> None:
    data = write({"a.b": [1.0], "a": [2.0], "a.b.c": [3.0]})
    model = signature(("a.b.c", "float", ["N"]), ("a.b", "float", ["N"]), ("a", "float", ["N"]))

    assert {name: array.tolist() for name, array in decode_rows(codec, data, model).items()} == {
        "a.b": [1], "a": [2], "a.b.c": [3],
    }  # fmt: skip


# Bombs.


def test_a_long_string_is_not_repeated_for_the_rows_that_mean_it() -> None:
    """A dictionary holds it once: decoded plainly, these 2 MB would be 20 GB."""
    column = pa.DictionaryArray.from_arrays(np.zeros(20_000, np.int32), ["y" * 1_000_000])
    [(_, blocks)] = decode(codec, write({"x": column}), TEXT)

    assert sum(len(block["x"]) for block in blocks) == 20_000
    for block in blocks:
        assert len(set(map(id, block["x"]))) == 1


def test_a_prefix_is_not_repeated_for_the_rows_that_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """DELTA_BYTE_ARRAY holds it once a page: batches are cut to what such a page may become."""
    monkeypatch.setattr(parquet, "_REPEATED_BYTES", 1 << 20)
    words = ["p" * 50_000 + str(i) for i in range(100)]
    data = write({"x": words}, use_dictionary=False, column_encoding={"x": "DELTA_BYTE_ARRAY"})
    assert len(data) < 100_000

    [(_, blocks)] = decode(codec, data, TEXT, options=CodecOptions(chunk_bytes=1 << 26))
    assert max(len(block["x"]) for block in blocks) <= (1 << 20) // 50_000
    assert [word for block in blocks for word in block["x"]] == words


REFUSED: dict[str, tuple[Any, str]] = {
    "repeated values": ({"x": np.zeros(17_000_000, np.float32)}, "unpacks to at most 67108864 bytes"),
    "repeated lists": (
        {"x": pa.array([np.zeros(17_000_000, np.float32)], pa.list_(pa.float32()))},
        "at most 67108864 bytes",
    ),
}


@pytest.mark.parametrize(("columns", "problem"), REFUSED.values(), ids=REFUSED)
def test_small_files_that_unpack_to_much_are_refused(columns: Any, problem: str) -> None:
    data = write(columns, compression="zstd")
    assert len(data) < 300_000

    with pytest.raises(DecodeError, match=problem):
        decode(codec, data, VECTOR)


def test_large_pages_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_MAX_PAGE", 1000)

    with pytest.raises(DecodeError, match="pages of at most 1000 bytes, got 40"):
        decode(codec, write({"x": np.arange(1000, dtype=np.float32)}, use_dictionary=False), VECTOR)


def test_large_lists_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_MAX_LISTS", 1000)

    with pytest.raises(DecodeError, match="lists of a row group to 1000"):
        decode(codec, write({"x": [[1.0] * 500]}), VECTOR)


# Damage.

GOOD = write({"x": np.arange(5, dtype=np.float32)})


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", 'begins and ends with "PAR1", got "" and ""'),
        (b"PAR1PAR1", 'begins and ends with "PAR1"'),
        (GOOD[:-1], 'begins and ends with "PAR1"'),
        (GOOD[:-8] + b"\xff\xff\xff\x7fPAR1", "expected a footer within the file, and of at most 16777216 bytes, got 2147483647"),
        (GOOD[:-8] + bytes(4) + b"PAR1", "expected a footer within the file"),
        (GOOD[:-8] + b"\x05\0\0\0PAR1", "the footer is malformed"),
        (GOOD[:4] + GOOD[9:], "a page's header"),
        (GOOD.replace(b"\x16\x0a\x19\x1c", b"\x16\x0c\x19\x1c"), "expected 6 rows, as the footer says, got 5"),
    ],
    ids=["empty", "magic only", "cut", "forged length", "no footer", "other footer", "shifted", "rows"],
)  # fmt: skip
def test_damaged_files_are_refused(data: bytes, problem: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(codec, data, VECTOR)

    assert problem in str(caught.value)


@pytest.mark.parametrize("keep", range(0, len(MIXED_FILE), 97))
def test_a_file_cut_anywhere_is_refused(keep: int) -> None:
    with pytest.raises(DecodeError):
        decode(codec, MIXED_FILE[:keep], MIXED)
    with pytest.raises(DecodeError):
        decode(codec, MIXED_FILE[:keep] + MIXED_FILE[-8:], MIXED)


@given(st.lists(st.tuples(st.integers(0, len(MIXED_FILE) - 9), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=250)
def test_a_file_with_changed_bytes_decodes_or_is_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(MIXED_FILE)
    for at, byte in changes:
        data[at] = byte
    check_arbitrary_bytes(codec, bytes(data), MIXED)


@given(st.binary(max_size=40), st.integers(0, 60))
@settings(max_examples=100)
def test_any_bytes_decode_or_are_refused(data: bytes, footer: int) -> None:
    check_arbitrary_bytes(codec, data, VECTOR)
    check_arbitrary_bytes(codec, b"PAR1" + data + struct.pack("<I", footer) + b"PAR1", VECTOR)


# Pages. Thrift's compact protocol: field header (step << 4 | type), zigzag numbers; 5 is i32, 8 binary, 12 struct.


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def number(value: int) -> bytes:
    return varint(value * 2 if value >= 0 else -value * 2 - 1)


def page(unpacked: int = 9, packed: int = 4, values: int = 7, extra: bytes = b"") -> bytes:
    """A data page of ``packed`` zeros."""
    head = b"\x15" + number(0) + b"\x15" + number(unpacked) + b"\x15" + number(packed)
    own = b"\x15" + number(values) + b"\x15" + number(7) + b"\0"
    return head + b"\x2c" + own + extra + b"\0" + bytes(packed)


def pages_of(data: bytes, values: int, length: int | None = None) -> list[parquet_pages.Page]:
    file = Bounded(Body(io.BytesIO(data), len(data)))
    return list(parquet_pages.pages(file, Chunk(0, len(data) if length is None else length, values)))


def test_pages_are_read_as_far_as_their_values_go() -> None:
    found = pages_of(page() + page(values=3) + b"anything", 10)

    assert [(each.unpacked, each.values, each.encoding) for each in found] == [(9, 7, 7), (9, 3, 7)]


def test_long_headers_are_read_whole() -> None:
    """Statistics hold the least and greatest string."""
    extra = b"\x1c\x18" + varint(5000) + bytes(5000) + b"\x17" + bytes(8) + b"\x11\x12\x13\x05\0"

    assert len(pages_of(page(extra=extra) + page(), 14)) == 2


PAGES: dict[str, tuple[bytes, int, str]] = {
    "ends": (page(), 8, "a column of 8 values ends after 7"),
    "no sizes": (b"\x15\0\0", 1, "a page's header has no sizes"),
    "sizes of another type": (
        page(packed=1).replace(b"\x15" + number(9), b"\x16" + number(9)),
        1,
        "has no sizes",
    ),
    "negative size": (page(packed=0).replace(number(9), number(-9)), 1, "a page's header has no sizes"),
    "negative values": (page(values=-1), 1, "a page has less than no values"),
    "no end": (b"\x15", 1, "a page's header has no end"),
    "cut string": (b"\x18" + varint(1 << 40), 1, "a page's header has no end"),
    "endless number": (b"\x15" + b"\xff" * 20, 1, "a page's header is malformed"),
    "set": (b"\x1a\x15\x02\0", 1, "a page's header is malformed"),
    "deep": (b"\x1c" * 30, 1, "a page's header is nested too deeply"),
    "deep lists": (b"\x19" + b"\x19" * 30, 1, "a page's header is nested too deeply"),
    "long number": (b"\x15" + number(1 << 31) + b"\0", 1, "a page's header is malformed"),
    "negative field": (b"\x05" + number(-1) + b"\2\0", 1, "a page's header is malformed"),
    "twice": (b"\x15\x02\x05\x02\x02\0", 1, "a page's header has a field twice"),
}


@pytest.mark.parametrize(("data", "values", "problem"), PAGES.values(), ids=PAGES)
def test_malformed_headers_of_pages_are_refused(data: bytes, values: int, problem: str) -> None:
    with pytest.raises(DecodeError, match=problem):
        pages_of(data, values)


def test_headers_of_many_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_serve.codecs.thrift_compact._MAX_VALUES", 1000)
    with pytest.raises(DecodeError, match="a page's header has more than 1000 values"):
        pages_of(b"\x19\xf3" + varint(1001) + bytes(1002), 1)


def test_structures_are_written_as_they_were_read() -> None:
    """Numbers, booleans, doubles, strings, lists short and long, structures in structures."""
    short, long = b"\x19\x25" + number(1) + number(-2), b"\x19\xf1" + varint(300) + b"\1\2" * 150
    extra = b"\x1c\x18\x03abc\x17" + bytes(8) + b"\x11\x12\x13\x05" + short + long + b"\x19\x2c\0\x15\x02\0\0"
    fields, _ = read_struct(page(packed=0, extra=extra), "it")

    again, end = read_struct(write_struct(fields), "it")
    assert again == fields
    assert end == len(write_struct(fields))
    assert fields[6][1][8] == (9, (12, [{}, {1: (5, 1)}]))


def changed(data: bytes, change: Callable[[Struct], None]) -> bytes:
    """A file whose footer is another one."""
    length = int.from_bytes(data[-8:-4], "little")
    fields, _ = read_struct(data[-8 - length : -8], "it")
    change(fields)
    footer = write_struct(fields)
    return data[: -8 - length] + footer + struct.pack("<I", len(footer)) + b"PAR1"


def without_columns(fields: Struct) -> None:
    fields[4][1][1][0][1] = (9, (12, []))


def with_numbers_for_groups(fields: Struct) -> None:
    fields[4] = (9, (5, [1]))


def with_fewer_values(fields: Struct) -> None:
    fields[4][1][1][0][1][1][1][0][3][1][5] = (6, 4)


def with_wrong_histogram(fields: Struct) -> None:
    """Statistics of sizes with more levels than there are: what pyarrow ends the process on."""
    fields[4][1][1][0][1][1][1][0][3][1][16] = (12, {3: (9, (6, [1, 2, 3, 4, 5, 6, 7]))})


FOOTERS: dict[str, tuple[Callable[[Struct], None], str]] = {
    "no columns": (without_columns, "expected 1 columns in a row group, got 0"),
    "numbers": (with_numbers_for_groups, "the footer is malformed"),
    "fewer values": (with_fewer_values, "a column of 5 rows has 4 values"),
    "no rows": (lambda fields: fields.update({3: (5, 5)}), "the footer is malformed"),
    "negative rows": (lambda fields: fields.update({3: (6, -1)}), "the footer is malformed"),
    "no schema": (lambda fields: fields.update({2: (5, 1)}), "expected a Parquet file, got a damaged one"),
}


@pytest.mark.parametrize(("change", "problem"), FOOTERS.values(), ids=FOOTERS)
def test_footers_that_contradict_themselves_are_refused(
    change: Callable[[Struct], None], problem: str
) -> None:
    with pytest.raises(DecodeError, match=problem):
        decode(codec, changed(GOOD, change), VECTOR)


def test_statistics_are_not_looked_at() -> None:
    assert decode_rows(codec, changed(GOOD, with_wrong_histogram), VECTOR)["x"].tolist() == [0, 1, 2, 3, 4]


def test_a_footer_without_end_is_refused() -> None:
    with pytest.raises(DecodeError, match="the footer has no end"):
        decode(codec, b"PAR1\x15\x01\0\0\0PAR1", VECTOR)


def test_pages_lie_within_the_file() -> None:
    with pytest.raises(DecodeError, match="lie outside of the file's 3 bytes"):
        pages_of(b"abc", 1, length=4)
