"""A file that is too large for one request to a server: cut at its records, its answers counted and joined in order.

Formats whose records end by themselves can be cut, and answers of lines, or of RecordIO, can be put one behind the
other. Unlike the platform's splitter (``mini_batches``) a cut never falls inside a quoted cell of CSV.

A server may take the first line of CSV for names, and then must get it with every piece; the platform never sends
it again. Which of the two a server does is told by its answer to the first piece: it lacks one line.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import BinaryIO

from onnx_serve.batch.mini_batches import MiniBatch, line_batches, recordio_batches
from onnx_serve.batch.record_counts import count_lines, has_lines, slices
from onnx_serve.batch.request_plan import Answered
from onnx_serve.errors import ContainerError, PayloadTooLarge, quote
from onnx_serve.inference import Reply

__all__ = ["CutFile", "can_cut", "pieces"]

_CSV, _RECORDIO = "text/csv", "application/x-recordio-protobuf"
_LINES = ("application/jsonlines", "application/jsonl", "application/x-ndjson")


def can_cut(content_type: str, accept: str | None) -> bool:
    """Whether files of the one type can be cut, and answers of the other joined."""
    asked = _bare(accept or "")
    return _bare(content_type) in (_CSV, *_LINES, "text/libsvm", _RECORDIO) and _can_join(asked)


def pieces(stream: BinaryIO, content_type: str, limit_bytes: int) -> Iterator[MiniBatch]:
    """The records of a file in requests, one of nothing for an empty file.

    Args:
        stream: Read from its position to its end.
        content_type: One that can be cut.
        limit_bytes: Of one request.

    Raises:
        PayloadTooLarge: A record is longer than the limit.
        DecodeError: RecordIO without its frames.
    """
    name = _bare(content_type)
    if name == _CSV:
        return _csv_pieces(stream, limit_bytes)
    batches = recordio_batches if name == _RECORDIO else line_batches
    return batches(stream, limit_bytes, single=False)


class CutFile:
    """Asks for the answers to the pieces of one file. Thread-safe; calls wait for that of the first piece.

    Args:
        content_type: Of the file.
        ask: Sends a body, and gives its answer with its records if it has lines.
    """

    def __init__(self, content_type: str, ask: Callable[[bytes], Answered]) -> None:
        self._is_csv = _bare(content_type) == _CSV
        self._ask = ask
        self._header: Future[bytes] = Future()

    def answer(self, piece: MiniBatch) -> Answered:
        """The answer to a piece, with its records.

        Raises:
            ContainerError: It has another number of records than the piece, or is of a format that cannot be joined.
            ServeError: What ``ask`` raises; for the first piece, for every later one too.
        """
        if piece.first > 1:
            answered = self._ask_joinable(self._header.result() + piece.data, piece.records)
            return _checked(answered, piece.records)
        try:
            answered = self._ask_joinable(piece.data, piece.records)
            has_header = self._is_csv and answered.rows == piece.records - 1
            _checked(answered, piece.records - has_header)
        except BaseException as ex:
            self._header.set_exception(ex)
            raise
        self._header.set_result(_first_record(piece.data) if has_header else b"")
        return answered

    def _ask_joinable(self, body: bytes, expected: int) -> Answered:
        """The answer, with its records as far as they can be counted."""
        answered = self._ask(body)
        media_type = answered.reply.media_type
        if not _can_join(_bare(media_type)):
            _close(answered.reply)
            raise ContainerError(
                f"expected an answer of lines to each part of the file, so that they can be joined, got "
                f"{quote(media_type)}; choose --accept text/csv or application/jsonlines"
            )
        return answered if has_lines(media_type) else replace(answered, rows=expected)


def _csv_pieces(stream: BinaryIO, limit_bytes: int) -> Iterator[MiniBatch]:
    first = 1
    rest = b""
    limit = limit_bytes
    while True:
        # One byte more than fits tells the end of the file from a full request.
        data = rest + stream.read(limit + 1 - len(rest))
        while len(data) <= limit and (more := stream.read(limit + 1 - len(data))):
            data += more
        is_last = len(data) <= limit
        end = len(data) if is_last else _last_end(data, limit)
        if not end and not is_last:
            raise PayloadTooLarge(
                f"record {first} is longer than the {limit} bytes that fit in a request (MaxPayloadInMB), or has a "
                f"quote out of place"
            )
        piece = data[:end]
        records = count_lines(slices(piece), quoted=True)
        if end or first == 1:
            yield MiniBatch(piece, first, records)
        if is_last:
            return
        if first == 1:
            # Room for the line of names that may have to be repeated.
            names = len(_first_record(piece))
            limit -= names if 2 * names < limit else 0
        first += records
        rest = data[end:]


def _last_end(data: bytes, limit: int) -> int:
    """Behind the last newline of the first so many bytes that ends a record; 0 if there is none."""
    end = data.rfind(b"\n", 0, limit) + 1
    quotes = data.count(b'"', 0, end)
    while end and quotes % 2:
        before = data.rfind(b"\n", 0, end - 1) + 1
        quotes -= data.count(b'"', before, end)
        end = before
    return end


def _first_record(data: bytes) -> bytes:
    """With its newline."""
    end = data.find(b"\n") + 1
    while end and data.count(b'"', 0, end) % 2:
        end = data.find(b"\n", end) + 1
    return data[:end] if end else data


def _checked(answered: Answered, expected: int) -> Answered:
    if answered.rows != expected:
        _close(answered.reply)
        raise ContainerError(
            f"expected an answer of {expected} records, one for each that was sent, got {answered.rows}"
        )
    return answered


def _close(reply: Reply) -> None:
    if not isinstance(reply.content, bytes):
        reply.content.close()


def _can_join(name: str) -> bool:
    return name in (_CSV, *_LINES, _RECORDIO)


def _bare(media_type: str) -> str:
    return media_type.partition(";")[0].strip().lower()
