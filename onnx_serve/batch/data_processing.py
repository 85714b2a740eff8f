"""Batch Transform's data processing: filter the input, join it with the answer, filter the result.

https://docs.aws.amazon.com/sagemaker/latest/dg/batch-transform-data-processing.html: a row of CSV is an array, to
which a join appends the answer's columns; a JSON object gets the answer as ``SageMakerOutput``, any other JSON
value becomes ``{"SageMakerInput": ..., "SageMakerOutput": ...}``. The join takes the input as it was before its
filter. A newline inside a quoted CSV cell is not supported there, and so not here.

What a filter does not change is passed on byte for byte, so that no number loses a digit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from onnx_serve.batch import csv_rows
from onnx_serve.batch.json_path import ROOT, JsonPath
from onnx_serve.batch.media_types import CSV, JSON, JSON_LINES, bare
from onnx_serve.errors import DecodeError, MismatchError, RequestError, UnsupportedMediaType, quote

__all__ = ["DataProcessing", "data_format"]

_OUTPUT, _INPUT = b"SageMakerOutput", b"SageMakerInput"
_MAX_WIDTHS = 16
_FORMATS = {CSV: "csv", **dict.fromkeys((JSON, *JSON_LINES), "json")}


def data_format(media_type: str | None) -> str:
    """``csv`` or ``json``: the formats that records can be filtered and joined in.

    Raises:
        UnsupportedMediaType: Any other.
    """
    name = bare(media_type)
    if name not in _FORMATS:
        raise UnsupportedMediaType(
            f"filters and joins take text/csv, application/json or application/jsonlines, got {quote(name)}"
        )
    return _FORMATS[name]


@dataclass(frozen=True)
class DataProcessing:
    """What is done with records before and after they are sent. Thread-safe.

    Attributes:
        input_filter: What of each record is sent.
        join: Whether each record is put beside its answer.
        output_filter: What of each answer, or joined record, is kept.
    """

    input_filter: JsonPath = ROOT
    join: bool = False
    output_filter: JsonPath = ROOT
    _columns: dict[tuple[str, int], list[int]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def active(self) -> bool:
        """Whether anything is done at all."""
        return self.join or not (self.input_filter.is_root and self.output_filter.is_root)

    def request(self, data: bytes, media_type: str | None, *, whole: bool, first: int = 1) -> bytes:
        """The records that are sent.

        Args:
            data: Records of a file.
            media_type: Theirs.
            whole: Whether ``application/json`` in ``data`` is one document, instead of one a line.
            first: Number in its file of the first record, for messages.

        Raises:
            RequestError: A record is not what the media type says, or not what the filter selects from.
        """
        if self.input_filter.is_root:
            return data
        select = self._selector(self.input_filter, data_format(media_type))
        records = _records(data, whole=whole and bare(media_type) == JSON)
        return _text(_each(select, records, first, "input filter"))

    def answer(
        self,
        data: bytes,
        answer: bytes,
        media_type: str | None,
        *,
        whole: bool,
        first: int = 1,
    ) -> bytes:
        """What is kept of an answer.

        Args:
            data: The records before the input filter.
            answer: The answer to them.
            media_type: Of both.
            whole: As in ``request``.
            first: As in ``request``.

        Raises:
            RequestError: The answer has another number of records, or the filter does not fit it.
        """
        if self.output_filter.is_root and not self.join:
            return answer
        kind = data_format(media_type)
        whole = whole and bare(media_type) == JSON
        records = _records(answer, whole=whole)
        if self.join:
            originals = _records(data, whole=whole)
            if len(originals) != len(records):
                raise MismatchError(
                    f"join: expected one record in the answer for each of {len(originals)}, got {len(records)}"
                )
            join = _join_csv if kind == "csv" else _join_json
            pairs = list(zip(originals, records, strict=True))
            records = _each(lambda pair: join(*pair), pairs, first, "join")
        if not self.output_filter.is_root:
            records = _each(self._selector(self.output_filter, kind), records, first, "output filter")
        return _text(records)

    def _selector(self, path: JsonPath, kind: str) -> Callable[[bytes], bytes]:
        if kind == "csv":
            return lambda line: self._select_csv(line, path)
        return lambda text: orjson.dumps(path.select(_load(text)))

    def _select_csv(self, line: bytes, path: JsonPath) -> bytes:
        cells = csv_rows.cells(line)
        return b",".join([cells[column] for column in self._indices(path, len(cells))])

    def _indices(self, path: JsonPath, width: int) -> list[int]:
        """The columns that the path selects from rows of so many; the path is evaluated once a width."""
        key = (path.text, width)
        known = self._columns.get(key)
        if known is None:
            chosen = path.select(list(range(width)))
            known = chosen if isinstance(chosen, list) else [chosen]
            if not known:
                raise MismatchError(f"{path.text}: selects none of {width} columns")
            # Rows of one file have one width; a file of ragged rows must not fill the memory.
            if len(self._columns) >= _MAX_WIDTHS:
                self._columns.clear()
            self._columns[key] = known
        return known


def _records(data: bytes, *, whole: bool) -> list[bytes]:
    """The records of a body without their line ends."""
    if whole:
        return [data.strip()]
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


def _each(change: Callable[[Any], bytes], records: list[Any], first: int, what: str) -> list[bytes]:
    """Every record changed, with its number in the message when one cannot be."""
    changed = []
    for number, record in enumerate(records, first):
        try:
            changed.append(change(record))
        except RequestError as ex:
            raise DecodeError(f"{what}: {ex}", record=number) from ex
    return changed


def _text(records: list[bytes]) -> bytes:
    return b"".join([record + b"\n" for record in records])


def _join_csv(original: bytes, answer: bytes) -> bytes:
    for row in (original, answer):
        csv_rows.cells(row)
    return b"%b,%b" % (original, answer)


def _join_json(original: bytes, answer: bytes) -> bytes:
    """The pair as one object, spliced from their texts."""
    value = _load(original)
    _load(answer)
    original, answer = original.strip(), answer.strip()
    if not isinstance(value, dict):
        return b'{"%b":%b,"%b":%b}' % (_INPUT, original, _OUTPUT, answer)
    if _OUTPUT.decode() in value:
        raise MismatchError(f"the attribute {_OUTPUT.decode()} is reserved for the answer")
    return b'%b%b"%b":%b}' % (original[:-1].rstrip(), b"," if value else b"", _OUTPUT, answer)


def _load(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as ex:
        raise DecodeError(f"expected JSON, got {quote(text)}") from ex
