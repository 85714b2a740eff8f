"""Large files cut at their records for a server, and its answers joined."""

import csv
import io
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_serve.batch.mini_batches import MiniBatch
from onnx_serve.batch.pieces import CutFile, can_cut, pieces
from onnx_serve.batch.record_counts import count_placeholders, count_records
from onnx_serve.batch.request_plan import Answered
from onnx_serve.errors import ContainerError, DecodeError, PayloadTooLarge
from onnx_serve.inference import Reply

CSV, JSONL, RECORDIO = "text/csv", "application/jsonlines", "application/x-recordio-protobuf"
CELLS = st.text(st.sampled_from('ab",\n'), max_size=6)
ROWS = st.lists(st.lists(CELLS, min_size=2, max_size=2), max_size=12)


def written(rows: list[list[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def read(data: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(data.decode(), newline="")))


@given(ROWS, st.integers(60, 90), st.booleans())
def test_csv_is_cut_between_records_only(rows: list[list[str]], limit: int, ended: bool) -> None:
    """Whatever is quoted: the pieces are the file, each fits, and each is whole records by Python's csv module."""
    data = written(rows)
    data = data if ended else data.removesuffix(b"\n")
    made = list(pieces(io.BytesIO(data), CSV, limit))

    assert b"".join(piece.data for piece in made) == data
    assert [row for piece in made for row in read(piece.data)] == rows
    assert all(len(piece.data) <= limit for piece in made)
    assert [piece.records for piece in made] == [len(read(piece.data)) for piece in made]
    assert [piece.first for piece in made] == [1 + sum(p.records for p in made[:i]) for i in range(len(made))]


@given(
    st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"")), max_size=20),
    st.integers(25, 60),
)
def test_lines_are_cut_at_newlines(lines: list[bytes], limit: int) -> None:
    data = b"".join(line + b"\n" for line in lines)
    made = list(pieces(io.BytesIO(data), JSONL, limit))

    assert b"".join(piece.data for piece in made) == data
    assert sum(piece.records for piece in made) == len(lines)
    assert all(len(piece.data) <= limit for piece in made)


class Dribble(io.RawIOBase):
    """A stream that gives a byte at a time, as a pipe may."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self._data.read(min(size, 1))


def test_a_stream_of_few_bytes_at_a_time_is_no_different() -> None:
    data = written([["a", 'b"\n']] * 20)
    assert list(pieces(Dribble(data), CSV, 50)) == list(pieces(io.BytesIO(data), CSV, 50))  # type: ignore[arg-type]  # reads as a BinaryIO does


def test_room_is_left_for_the_line_of_names() -> None:
    """It may have to be sent with every piece."""
    data = b"first,second\n" + b"1,2\n" * 100
    made = list(pieces(io.BytesIO(data), CSV, 100))

    assert max(len(piece.data) for piece in made[1:]) <= 100 - len(b"first,second\n")
    assert len(made[0].data) > 90


@pytest.mark.parametrize(
    ("content_type", "data", "error", "words"),
    [
        (CSV, b"1,2\n" + b"x" * 60 + b"\n", PayloadTooLarge, "record 2 is longer than the"),
        (CSV, b'1,2\n1,"' + b"2\n" * 60, PayloadTooLarge, "or has a quote out of place"),
        (JSONL, b"[1]\n" + b"x" * 60, PayloadTooLarge, "record 2 is longer than the 50 bytes"),
        (RECORDIO, b"not framed, and more than that", DecodeError, "magic number"),
    ],
)
def test_a_record_that_cannot_be_sent(
    content_type: str, data: bytes, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        list(pieces(io.BytesIO(data), content_type, 50))


def test_recordio_is_cut_between_frames() -> None:
    frames = [struct.pack("<II", 0xCED7230A, 4) + b"%04d" % i for i in range(9)]
    made = list(pieces(io.BytesIO(b"".join(frames)), RECORDIO, 30))

    assert [piece.data for piece in made] == [frames[i] + frames[i + 1] for i in (0, 2, 4, 6)] + [frames[8]]


@pytest.mark.parametrize(
    ("content_type", "accept", "expected"),
    [
        (CSV, CSV, True),
        ("Text/CSV; header=present", "application/jsonlines", True),
        ("application/x-ndjson", "application/jsonl", True),
        ("text/libsvm", CSV, True),
        ("text/libsvm", None, False),
        (RECORDIO, RECORDIO, True),
        (CSV, "application/json", False),
        ("application/json", "application/json", False),
        ("application/x-npy", "application/x-npy", False),
        ("application/vnd.apache.parquet", CSV, False),
    ],
)
def test_what_can_be_cut(content_type: str, accept: str | None, expected: bool) -> None:
    assert can_cut(content_type, accept) is expected


@pytest.mark.parametrize("content", [bytes, io.BytesIO], ids=["bytes", "file"])
@pytest.mark.parametrize(
    ("media_type", "answer", "records"),
    [
        (CSV, b'1\n"a\nb"\n3', 3),
        (CSV, b"", 0),
        (JSONL, b'"a"\n{"error":"x"}\n', 2),
        ("application/json", b"{}\n{}\n", 0),
        (CSV, b'"' + b"x\n" * (1 << 20) + b'"\n1\n', 2),
    ],
)
def test_records_of_an_answer(
    content: Callable[[bytes], Any], media_type: str, answer: bytes, records: int
) -> None:
    reply = Reply(media_type, content(answer), len(answer))
    assert count_records(reply) == records
    if not isinstance(reply.content, bytes):
        assert reply.content.tell() == 0


@pytest.mark.parametrize(
    ("media_type", "answer", "bad"),
    [
        (CSV, b'1,2\nERROR,ERROR\nERROR\r\n3,ERROR\n"ERROR"\nERRORS\nERROR', 3),
        (JSONL, b'{"error":"x"}\n{"errors":1}\n[{"error":"x"}]\n{"error": "y"}', 2),
        (JSONL, b'{"error":1}\n', 0),
        ("application/json", b'{"error":"x"}\n', 0),
        (CSV, b"ERROR,ERROR\n" * 200_000, 200_000),
    ],
)
@pytest.mark.parametrize("content", [bytes, io.BytesIO], ids=["bytes", "file"])
def test_placeholders_of_an_answer(
    content: Callable[[bytes], Any], media_type: str, answer: bytes, bad: int
) -> None:
    assert count_placeholders(Reply(media_type, content(answer), len(answer))) == bad


class Server:
    """Answers each line of CSV with a line, but for a first one of names."""

    def __init__(self, *, header: bool) -> None:
        self.bodies: list[bytes] = []
        self._header = header

    def __call__(self, body: bytes) -> Answered:
        self.bodies.append(body)
        lines = body.count(b"\n") - self._header
        return Answered(Reply(CSV, io.BytesIO(b"1\n" * lines), 0), lines)


PIECES = [MiniBatch(b"a,b\n1,2\n", 1, 2), MiniBatch(b"3,4\n5,6\n", 3, 2), MiniBatch(b"7,8\n", 5, 1)]


@pytest.mark.parametrize(("header", "rows", "prefix"), [(False, 5, b""), (True, 4, b"a,b\n")])
def test_names_that_the_server_took_go_with_every_piece(header: bool, rows: int, prefix: bytes) -> None:
    server = Server(header=header)
    cut = CutFile(CSV, server)

    assert sum(cut.answer(piece).rows for piece in PIECES) == rows
    assert server.bodies == [PIECES[0].data, prefix + PIECES[1].data, prefix + PIECES[2].data]


def test_answers_that_do_not_fit_together_are_refused_and_closed() -> None:
    replies: list[Reply] = []

    def answering(media_type: str, lines: int) -> Callable[[bytes], Answered]:
        def ask(_body: bytes) -> Answered:
            replies.append(Reply(media_type, io.BytesIO(b"1\n" * lines), 0))
            return Answered(replies[-1], lines)

        return ask

    with pytest.raises(ContainerError, match=r'got "application/json"; choose --accept'):
        CutFile(CSV, answering("application/json", 2)).answer(PIECES[0])
    with pytest.raises(
        ContainerError, match="expected an answer of 2 records, one for each that was sent, got 0"
    ):
        CutFile(CSV, answering(CSV, 0)).answer(PIECES[0])
    # In JSON lines no line is taken for names.
    with pytest.raises(ContainerError, match="of 2 records"):
        CutFile(JSONL, answering(CSV, 1)).answer(PIECES[0])
    cut = CutFile(CSV, answering(CSV, 2))
    cut.answer(PIECES[0])
    with pytest.raises(ContainerError, match="of 1 records, one for each that was sent, got 2"):
        cut.answer(PIECES[2])
    assert [reply.content.closed for reply in replies if isinstance(reply.content, io.BytesIO)] == [True, True, True, False, True]  # fmt: skip


def test_the_first_pieces_failure_is_that_of_all() -> None:
    """None of the others is sent."""
    sent: list[bytes] = []

    def ask(body: bytes) -> Answered:
        sent.append(body)
        raise ContainerError("status 400: no")

    cut = CutFile(CSV, ask)
    for piece in PIECES:
        with pytest.raises(ContainerError, match="status 400"):
            cut.answer(piece)
    assert sent == [PIECES[0].data]
