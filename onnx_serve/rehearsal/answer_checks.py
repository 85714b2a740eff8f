"""Looks at the answers to the mini-batches of one file: are they what a transform job can be put together of?

The rules are those of ``rehearsal_rules``; what is checked here needs no container.
"""

import io
from collections.abc import Iterator

import orjson

from onnx_serve.batch import csv_rows
from onnx_serve.batch.media_types import CSV, JSON, JSON_LINES, RECORDIO, bare
from onnx_serve.batch.mini_batches import recordio_batches
from onnx_serve.errors import DecodeError, ServeError, quote
from onnx_serve.rehearsal.rehearsal_rules import Severity

__all__ = ["AnswerChecks", "answer_lines"]

# A broken rule, what came, and a graver severity where the job makes it so.
Problem = tuple[str, str, Severity | None]


def answer_lines(answer: bytes) -> list[bytes]:
    """The lines of a text; the newline at its end ends the last one."""
    lines = answer.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


class AnswerChecks:
    """The checks of one file's answers, in their order. Not thread-safe.

    Args:
        accept: What the job asks for, or None.
        split: How the job splits: ``none``, ``line`` or ``recordio``.
        assemble_line: Whether the job ends each answer with a newline.
        processing: Whether the job filters or joins, so that the agent itself reads the records.
    """

    def __init__(self, accept: str | None, split: str, *, assemble_line: bool, processing: bool) -> None:
        self._accept = accept
        self._split = split
        self._assemble_line = assemble_line
        self._processing = processing
        self._columns: int | None = None
        self._open_end = False

    def check(self, content_type: str | None, answer: bytes, records: int) -> Iterator[Problem]:
        """What is wrong with the next answer.

        Args:
            content_type: Of the answer.
            answer: Its body.
            records: In its request.
        """
        yield from self._check_type(content_type)
        kind = bare(content_type) or bare(self._accept)
        text = kind.startswith("text/") or kind in (*JSON_LINES, JSON)
        if text:
            yield from self._check_end(answer)
        if self._split == "none":
            if kind == JSON and answer.strip():
                yield from self._check_json([answer])
            return
        if text:
            yield from self._check_lines(answer, records, kind)
        elif kind == RECORDIO:
            yield from _check_recordio(answer, records)

    def _check_type(self, content_type: str | None) -> Iterator[Problem]:
        if not content_type:
            yield "type missing", "", None
            return
        if ";" in content_type:
            yield "type with parameters", f"got {quote(content_type)}", None
        accepted = {bare(part) for part in (self._accept or "*/*").split(",")}
        wild = any(part.endswith("/*") for part in accepted)
        if not wild and bare(content_type) not in accepted:
            yield "type not accepted", f"expected {quote(self._accept)}, got {quote(content_type)}", None

    def _check_end(self, answer: bytes) -> Iterator[Problem]:
        if not answer:
            return
        ended = answer.endswith(b"\n")
        if self._assemble_line:
            # What is filtered or joined is written anew, record by record.
            if ended and not self._processing:
                yield "second newline", "", None
        elif self._open_end:
            yield "no final newline", "the answer before this one ends without one", None
        self._open_end = not ended and not self._processing

    def _check_lines(self, answer: bytes, records: int, kind: str) -> Iterator[Problem]:
        lines = answer_lines(answer)
        if records and len(lines) != records:
            graver: Severity | None = "fails" if self._processing else None
            came = f"{records} records sent, {len(lines)} lines of {kind} came back"
            if self._accept is None:
                came += "; the job leaves the answer's type to the container, --accept names one"
            yield "record count", came, graver
        blank = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
        if blank is not None:
            yield "blank lines", f"line {blank} of the answer", None
        lines = [line for line in lines if line.strip()]
        if kind == CSV:
            yield from self._check_csv(lines)
        elif kind in (*JSON_LINES, JSON):
            yield from self._check_json(lines)

    def _check_csv(self, lines: list[bytes]) -> Iterator[Problem]:
        for number, line in enumerate(lines, 1):
            row = line.removesuffix(b"\r")
            try:
                columns = len(csv_rows.cells(row))
            except DecodeError:
                yield "csv syntax", f"line {number}: {quote(row)}", "fails" if self._processing else None
                return
            if self._columns is None:
                self._columns = columns
            elif columns != self._columns:
                yield "ragged rows", f"line {number}: expected {self._columns} columns, got {columns}", None
                return

    def _check_json(self, documents: list[bytes]) -> Iterator[Problem]:
        for number, document in enumerate(documents, 1):
            try:
                orjson.loads(document)
            except orjson.JSONDecodeError:
                yield (
                    "json syntax",
                    f"line {number}: {quote(document)}",
                    "fails" if self._processing else None,
                )
                return


def _check_recordio(answer: bytes, records: int) -> Iterator[Problem]:
    try:
        came = sum(1 for _ in recordio_batches(io.BytesIO(answer), len(answer) + 1, single=True))
    except ServeError as ex:
        yield "record count", str(ex), None
        return
    if came != records:
        yield "record count", f"{records} records sent, {came} came back", None
