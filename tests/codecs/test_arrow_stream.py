"""What only Arrow streams have: messages, compressed buffers. What they share with Parquet is in test_tables."""

import io
import struct
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_laws import check_arbitrary_bytes, decode, decode_rows, signature
from onnx_serve.codecs.arrow_stream import codec
from onnx_serve.codecs.interface import Body, CodecOptions, MediaType
from onnx_serve.errors import DecodeError

VECTOR = signature(("x", "float", ["N"]))
MIXED = signature(("x", "float", ["N"]), ("s", "string", ["N"]), ("v", "float", ["N", "K"]))


def write(columns: Any, *, batch_rows: int | None = None, **options: Any) -> bytes:
    sink = io.BytesIO()
    table = pa.table(columns)
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, batch_rows)
    return sink.getvalue()


STREAM = write(
    {
        "x": np.arange(20, dtype=np.float32),
        "s": pa.array(["a", "b"] * 10).dictionary_encode(),
        "v": [[1.0, 2.0]] * 20,
    },
    batch_rows=15,
)


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "zstd"}, {"compression": "lz4"}, {"use_legacy_format": True}, {"emit_dictionary_deltas": True}],
    ids=str,
)  # fmt: skip
def test_every_kind_of_stream(options: dict[str, Any]) -> None:
    values = np.repeat(np.arange(300, dtype=np.float32), 10)
    text = pa.chunked_array(
        [pa.array(values.astype(str)[i : i + 700]).dictionary_encode() for i in range(0, 3000, 700)]
    )
    data = write(
        {"x": values, "s": text, "v": list(np.stack([values, -values], 1))}, batch_rows=700, **options
    )
    rows = decode_rows(codec, data, MIXED)

    np.testing.assert_array_equal(rows["x"], values)
    assert rows["s"].tolist() == values.astype(str).tolist()
    np.testing.assert_array_equal(rows["v"][:, 1], -values)


def test_a_stream_may_lack_its_end_mark() -> None:
    """A writer that is cut off between messages has written whole batches."""
    data = write({"x": [1.0]})
    assert data.endswith(b"\xff\xff\xff\xff\0\0\0\0")

    assert decode_rows(codec, data[:-8], VECTOR)["x"].tolist() == [1]


def null_rows(count: int) -> bytes:
    sink = io.BytesIO()
    batch = pa.record_batch({"x": pa.nulls(count)})
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def test_rows_without_bytes_are_bounded() -> None:
    data = null_rows(1000)
    assert len(decode_rows(codec, data, VECTOR)["x"]) == 1000

    with pytest.raises(DecodeError, match="unpacks to at most 67108864 bytes"):
        decode(codec, data.replace(struct.pack("<q", 1000), struct.pack("<q", 10**12)), VECTOR)


@pytest.mark.parametrize("rows", [1 << 25, 10**12])
def test_rows_are_bounded_before_they_are_made(rows: int) -> None:
    """An input without values needs no column: only the batch says how many rows there are."""
    empty = signature(("x", "float", ["N", 0]))
    batch = pa.record_batch({"x": pa.nulls(1000)}).select([])
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    data = sink.getvalue()
    assert decode_rows(codec, data, empty)["x"].shape == (1000, 0)

    assert codec.decode is not None
    many = data.replace(struct.pack("<q", 1000), struct.pack("<q", rows))
    blocks = chain.from_iterable(
        document.blocks
        for document in codec.decode(Body(io.BytesIO(many), len(many)), MediaType("x"), empty, CodecOptions())
    )
    if rows == 1 << 25:
        assert sum(len(block["x"]) for block in blocks) == rows
    else:
        with pytest.raises(DecodeError, match="unpacks to at most 67108864 bytes"):
            next(blocks)


def test_many_batches_of_rows_without_bytes_are_bounded() -> None:
    batch = pa.record_batch({"x": pa.nulls(9_000_000)})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        for _ in range(2):
            writer.write_batch(batch)

    with pytest.raises(DecodeError, match="unpacks to at most 67108864 bytes"):
        decode(codec, sink.getvalue(), signature(("x", "float", ["N"])))


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_small_streams_that_unpack_to_much_are_refused(compression: str) -> None:
    data = write({"x": np.zeros(17_000_000, np.float32)}, compression=compression)
    assert len(data) < 600_000

    with pytest.raises(DecodeError, match="unpacks to at most 67108864 bytes"):
        decode(codec, data, VECTOR)


def test_a_forged_size_of_a_compressed_buffer_is_refused() -> None:
    data = write({"x": np.zeros(1000, np.float32)}, compression="zstd")
    forged = data.replace(struct.pack("<q", 4000), struct.pack("<q", 1 << 50), 1)
    assert forged != data

    with pytest.raises(DecodeError, match="unpacks to at most"):
        decode(codec, forged, VECTOR)


def test_a_long_string_is_not_repeated_for_the_rows_that_mean_it() -> None:
    column = pa.DictionaryArray.from_arrays(np.zeros(20_000, np.int32), ["y" * 1_000_000])

    [(_, blocks)] = decode(codec, write({"x": column}), signature(("x", "string", ["N"])))
    assert sum(len(block["x"]) for block in blocks) == 20_000
    assert all(len(set(map(id, block["x"]))) == 1 for block in blocks)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "expected an Arrow stream, got a damaged one"),
        (b"ARROW1\0\0", 'expected an Arrow stream, got "ARRO" where a message begins'),
        (b"\xff\xff\xff\xff\xff", "where a message begins"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f", "where a message begins"),
        (b"\xff\xff\xff\xff\x08\0\0\0" + b"\xff" * 8, "got a damaged one (a message's header)"),
        (STREAM[:-100], "bytes early"),
    ],
    ids=["empty", "file", "cut size", "forged size", "header", "cut body"],
)
def test_damaged_streams_are_refused(data: bytes, problem: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(codec, data, MIXED)

    assert problem in str(caught.value)


def table_of(*fields: bytes) -> bytes:
    """A flatbuffer's table with these fields (none if empty), behind its list of their places."""
    place, places, content = 4, [], b""
    for field in fields:
        places.append(place if field else 0)
        content += field
        place += len(field)
    vtable = struct.pack(f"<{2 + len(fields)}H", 4 + 2 * len(fields), place, *places)
    return vtable + struct.pack("<i", len(vtable)) + content


def message_of(*fields: bytes) -> bytes:
    table = table_of(*fields)
    head = struct.pack("<I", 4 + 4 + 2 * len(fields)) + table
    return b"\xff\xff\xff\xff" + struct.pack("<I", len(head)) + head


def test_malformed_headers_of_messages_are_refused() -> None:
    for header in (
        message_of(b"", b"\x03\0\0\0"),
        message_of(b"", b"\x02\0\0\0"),
        message_of(
            b"",
            b"\x03\0\0\0",
            struct.pack("<I", 12 + 8),
            struct.pack("<q", 0) + table_of(b"", struct.pack("<II", 4, 1 << 30)),
        ),
    ):
        with pytest.raises(DecodeError, match=r"got a damaged one \(a message's header\)"):
            decode(codec, header, VECTOR)


@pytest.mark.parametrize("keep", range(0, len(STREAM) - 8, 41))
def test_a_stream_cut_anywhere_gives_whole_batches_or_is_refused(keep: int) -> None:
    try:
        [(_, blocks)] = decode(codec, STREAM[:keep], MIXED)
    except DecodeError:
        return
    assert sum(len(block["x"]) for block in blocks) in {0, 15, 20}


@given(st.lists(st.tuples(st.integers(0, len(STREAM) - 9), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=400)
def test_a_stream_with_changed_bytes_decodes_or_is_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(STREAM)
    for at, byte in changes:
        data[at] = byte
    check_arbitrary_bytes(codec, bytes(data), MIXED)


@given(st.binary(max_size=60))
@settings(max_examples=100)
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    check_arbitrary_bytes(codec, data, VECTOR)
    check_arbitrary_bytes(codec, b"\xff\xff\xff\xff" + struct.pack("<I", len(data)) + data, VECTOR)
