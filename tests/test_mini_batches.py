import io
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_serve.batch.mini_batches import MiniBatch, line_batches, recordio_batches
from onnx_serve.errors import DecodeError, PayloadTooLarge

MAGIC = struct.pack("<I", 0xCED7230A)


def frame(payload: bytes, flag: int = 0) -> bytes:
    return MAGIC + struct.pack("<I", flag << 29 | len(payload)) + payload + bytes(-len(payload) % 4)


def lines(data: bytes, limit: int, *, single: bool = False) -> list[MiniBatch]:
    return list(line_batches(io.BytesIO(data), limit, single=single))


def records(data: bytes, limit: int, *, single: bool = False) -> list[MiniBatch]:
    return list(recordio_batches(io.BytesIO(data), limit, single=single))


def bodies(batches: list[MiniBatch]) -> list[bytes]:
    return [batch.data for batch in batches]


@pytest.mark.parametrize(
    ("data", "limit", "expected"),
    [
        (b"a\nb\nc\n", 4, [b"a\nb\n", b"c\n"]),
        (b"a\nb\nc", 5, [b"a\nb\nc"]),
        (b"a\nbb", 4, [b"a\nbb"]),
        (b"a\nbb", 3, [b"a\n", b"bb"]),
        (b"\n\nx\n", 2, [b"\n\n", b"x\n"]),
        (b"a\r\nb\r\n", 3, [b"a\r\n", b"b\r\n"]),
        (b'"a\nb",1\n', 5, [b'"a\n', b'b",1\n']),
        (b"", 4, [b""]),
    ],
    ids=["packed", "unterminated", "exactly full", "one over", "blank lines", "CRLF", "quotes", "empty"],
)
def test_lines_packed(data: bytes, limit: int, expected: list[bytes]) -> None:
    """As many whole lines as fit; a newline ends a line whatever surrounds it."""
    assert bodies(lines(data, limit)) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"a\n\nb", [b"a\n", b"\n", b"b"]), (b"a\n", [b"a\n"]), (b"", []), (b"\n", [b"\n"])],
)
def test_lines_one_by_one(data: bytes, expected: list[bytes]) -> None:
    assert bodies(lines(data, 10, single=True)) == expected


@pytest.mark.parametrize("single", [False, True], ids=["multi", "single"])
@pytest.mark.parametrize(("data", "number"), [(b"abcdef\n", 1), (b"a\nabcdef\nb\n", 2), (b"a\nb\nabcdef", 3)])
def test_a_line_over_the_limit_is_named(data: bytes, number: int, single: bool) -> None:
    with pytest.raises(PayloadTooLarge, match=f"record {number} is longer than the 5 bytes"):
        lines(data, 5, single=single)


def test_an_endless_line_is_not_read_to_its_end() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += size
            return b"x" * size

    for single in (False, True):
        stream = Endless()
        with pytest.raises(PayloadTooLarge):
            list(line_batches(stream, 1 << 16, single=single))  # type: ignore[arg-type]  # all that is used of a stream
        assert stream.given <= 2 << 20


texts = st.lists(st.sampled_from([b"a", b"bb", b"\n", b"\r", b",", b"cccc"]), max_size=40).map(b"".join)


@given(texts, st.integers(1, 30))
def test_packing_keeps_all_bytes_and_packs_greedily(data: bytes, limit: int) -> None:
    try:
        batches = lines(data, limit)
    except PayloadTooLarge:
        assert max(map(len, data.split(b"\n"))) + 1 > limit
        return
    assert b"".join(bodies(batches)) == data
    assert all(len(body) <= limit for body in bodies(batches))
    first = 1
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        assert batch.first == first
        assert batch.records == batch.data.count(b"\n") + (batch.data[-1:] not in (b"\n", b""))
        first += batch.records
        if following is not None:
            assert batch.data.endswith(b"\n")
            next_line = following.data.split(b"\n")[0] + (b"\n" if b"\n" in following.data else b"")
            assert len(batch.data) + len(next_line) > limit


@given(texts)
def test_single_records_are_the_lines(data: bytes) -> None:
    batches = lines(data, 1000, single=True)

    assert b"".join(bodies(batches)) == data
    assert [batch.first for batch in batches] == list(range(1, len(batches) + 1))
    assert all(body.count(b"\n") == 1 for body in bodies(batches[:-1]))


def test_recordio_multi_keeps_the_frames() -> None:
    parts = [frame(b"abc"), frame(b"defg"), frame(b"h")]
    data = b"".join(parts)

    assert records(data, 24) == [MiniBatch(parts[0] + parts[1], 1, 2), MiniBatch(parts[2], 3, 1)]
    assert records(data, 1000) == [MiniBatch(data, 1, 3)]
    assert records(b"", 1000) == [MiniBatch(b"", 1, 0)]


def test_recordio_single_takes_frames_and_padding_away() -> None:
    data = frame(b"abc") + frame(b"") + frame(b"defg")

    assert bodies(records(data, 1000, single=True)) == [b"abc", b"", b"defg"]


def test_a_record_cut_at_the_magic_number_is_one_record() -> None:
    data = frame(b"ab", 1) + frame(b"cd", 2) + frame(b"ef", 3) + frame(b"x")

    assert bodies(records(data, 1000, single=True)) == [b"ab" + MAGIC + b"cd" + MAGIC + b"ef", b"x"]
    assert [batch.records for batch in records(data, 36)] == [1, 1]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"abc", r"magic number .*\(record 1\)"),
        (frame(b"abcd") + b"12345678", r"magic number .*\(record 2\)"),
        (frame(b"abcd")[:-1], "expected 4 bytes, the file ends after 3"),
        (frame(b"ab", 2), "parts of a record in order"),
        (frame(b"ab", 1) + frame(b"cd"), "parts of a record in order"),
        (frame(b"ab", 1), "magic number"),
    ],
    ids=["no frame", "no second frame", "cut", "middle first", "whole after first", "no last"],
)
def test_recordio_that_is_none_is_refused_with_its_record(data: bytes, words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        records(data, 1000)


def test_a_recordio_record_over_the_limit_is_refused_before_it_is_read() -> None:
    huge = MAGIC + struct.pack("<I", (1 << 29) - 1)
    with pytest.raises(PayloadTooLarge, match="record 1"):
        records(huge, 1 << 20)


@given(st.binary(max_size=60) | st.lists(st.sampled_from([MAGIC, b"\0\0\0\0", b"\4\0\0\0", b"\4\0\0\x20", b"abcd"])).map(b"".join))  # fmt: skip
def test_any_bytes_as_recordio_raise_nothing_else(data: bytes) -> None:
    with suppress(DecodeError, PayloadTooLarge):
        assert b"".join(bodies(records(data, 100))) == data


@pytest.mark.parametrize("single", [False, True])
def test_a_stream_that_gives_less_than_asked_for_is_read_on(single: bool) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 3))

    data = frame(b"abcdef") + frame(b"gh")
    assert list(recordio_batches(Slow(data), 100, single=single)) == records(data, 100, single=single)
    assert list(line_batches(Slow(b"ab\ncdefg\nh"), 6, single=single)) == lines(
        b"ab\ncdefg\nh", 6, single=single
    )
