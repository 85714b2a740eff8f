"""A file as requests to a server: cut at its records where it is too large for one, its answers counted and joined.

Formats whose records end by themselves can be cut, and answers of lines, or of RecordIO, can be put one behind the
other. Unlike the platform's splitter (``mini_batches``) a cut never falls inside a quoted cell of CSV.

A server may take the first line of CSV for names, and then must get it with every piece; the platform never sends
it again. Which of the two a server does is told by its answer to the first piece: it lacks one line, and the first
line may be one of names. Any other number of records is an error: lines would not stand for their records.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import BinaryIO

from onnx_serve.batch.csv_rows import is_number
from onnx_serve.batch.media_types import CSV, JSON_LINES, RECORDIO, bare
from onnx_serve.batch.mini_batches import MiniBatch, line_batches, recordio_batches
from onnx_serve.batch.record_counts import count_lines, has_lines, slices
from onnx_serve.batch.request_plan import Answered
from onnx_serve.errors import ContainerError, PayloadTooLarge, quote
from onnx_serve.inference import Reply

__all__ = ["CutFile", "can_cut", "checked", "pieces"]

# https://www.rfc-editor.org/rfc/rfc4180#section-3
_HEADER = re.compile(r";\s*header\s*=\s*\"?present\b", re.IGNORECASE)


def can_cut(content_type: str, accept: str | None) -> bool:
    """Whether files of the one type can be cut, and answers of the other joined."""
    asked = bare(accept or "")
    return bare(content_type) in (CSV, *JSON_LINES, "text/libsvm", RECORDIO) and _can_join(asked)


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
    name = bare(content_type)
    if name == CSV:
        return _csv_pieces(stream, limit_bytes)
    batches = recordio_batches if name == RECORDIO else line_batches
    return batches(stream, limit_bytes, single=False)


class CutFile:
    """Asks for the answers to the pieces of one file. Thread-safe; calls wait for that of the first piece.

    Args:
        content_type: Of the file.
        ask: Sends a body, and gives its answer, with its records if it has lines.
    """

    def __init__(self, content_type: str, ask: Callable[[bytes], Answered]) -> None:
        self._is_csv = bare(content_type) == CSV
        self._says_names = _HEADER.search(content_type) is not None
        self._ask = ask
        self._header: Future[bytes] = Future()

    def whole(self, piece: MiniBatch) -> Answered:
        """The answer to a file that is one piece, in whatever format; its records are checked if it has lines.

        Raises:
            ContainerError: It has another number of records than the piece.
            ServeError: What ``ask`` raises.
        """
        answered = self._ask(piece.data)
        if not has_lines(answered.reply.media_type):
            return answered
        return checked(answered, piece.records - self._took_names(answered, piece))

    def answer(self, piece: MiniBatch) -> Answered:
        """The answer to one of several pieces, with its records.

        Raises:
            ContainerError: It has another number of records than the piece, or is of a format that cannot be joined.
            ServeError: What ``ask`` raises; for the first piece, for every later one too.
        """
        if piece.first > 1:
            answered = self._ask_joinable(self._header.result() + piece.data, piece.records)
            return checked(answered, piece.records)
        try:
            answered = self._ask_joinable(piece.data, piece.records)
            has_header = self._took_names(answered, piece)
            checked(answered, piece.records - has_header)
        except BaseException as ex:
            self._header.set_exception(ex)
            raise
        self._header.set_result(_first_record(piece.data) if has_header else b"")
        return answered

    def _took_names(self, answered: Answered, piece: MiniBatch) -> bool:
        """Whether the server has taken the first line for names."""
        if not self._is_csv or answered.rows != piece.records - 1:
            return False
        # A record that got lost is no such line.
        return self._says_names or not any(map(is_number, _first_record(piece.data).split(b",")))

    def _ask_joinable(self, body: bytes, expected: int) -> Answered:
        """The answer, with its records as far as they can be counted."""
        answered = self._ask(body)
        media_type = answered.reply.media_type
        if not _can_join(bare(media_type)):
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


def checked(answered: Answered, expected: int) -> Answered:
    """The answer, if it has as many records as expected.

    Raises:
        ContainerError: It has not; it is closed.
    """
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
    return name in (CSV, *JSON_LINES, RECORDIO)
