"""What is tried after a rehearsed job has gone well: the order of answers, and whether more at once is faster.

Both are bounded: a few records, and a few seconds.
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson

from onnx_serve.rehearsal.answer_checks import answer_lines
from onnx_serve.rehearsal.http_exchange import Client, Exchange
from onnx_serve.rehearsal.rehearsal_findings import Findings

__all__ = ["Sample", "find_concurrency", "takes_several", "try_order"]

_OK = 200
_RECORDS = 8
_SAMPLE_RECORDS = 10_000
_TIMEOUT_S = 60.0
_CONCURRENT = (1, 2, 4, 8)
_BUDGET_S = 5.0
# At each number of requests at once: long enough for small requests, often enough for large ones.
_LEVEL_S = 0.4
_LEAST_REQUESTS = 2
# Sums of floats in another order differ by this much at most, as measured for batches of other sizes.
_RELATIVE, _ABSOLUTE = 1e-4, 1e-5


@dataclass(frozen=True, slots=True)
class Sample:
    """The first records of one request and their answers, a line each; 10,000 at most.

    Attributes:
        records: With their newlines.
        answers: As many, without.
        media_type: Of the records.
        accept: What was asked for, or None.
    """

    records: list[bytes]
    answers: list[bytes]
    media_type: str
    accept: str | None

    @classmethod
    def of(cls, body: bytes, answer: bytes, media_type: str, accept: str | None) -> "Sample | None":
        """The sample of a request, or None unless it has several records and a line for each."""
        count = _count_lines(body)
        if count < 2 or count != _count_lines(answer):  # noqa: PLR2004  a pair
            return None
        kept = min(count, _SAMPLE_RECORDS)
        records = [line + b"\n" for line in body.split(b"\n", kept)[:kept]]
        return cls(records, answer.split(b"\n", kept)[:kept], media_type, accept)

    @property
    def headers(self) -> dict[str, str]:
        """Of its requests."""
        return {"Content-Type": self.media_type, **({"Accept": self.accept} if self.accept else {})}


def try_order(client: Client, sample: Sample, findings: Findings) -> int:
    """Sends a few records alone and compares each answer with the one at its place in company.

    Returns:
        How many were sent.
    """
    count = len(sample.records)
    places = sorted({index * (count - 1) // (_RECORDS - 1) for index in range(_RECORDS)})
    for sent, place in enumerate(places, 1):
        alone = client.post("/invocations", sample.records[place], sample.headers, _TIMEOUT_S)
        if _good(alone):
            _compare(alone.body, place, sample, findings)
            continue
        problem = alone.failure or f"status {alone.status}"
        findings.add("company", f"record {place + 1}", f"alone: {problem}")
        if alone.failure:
            return sent
    return len(places)


def _compare(alone: bytes, place: int, sample: Sample, findings: Findings) -> None:
    lines = answer_lines(alone)
    if len(lines) != 1 or _same(lines[0], sample.answers[place]):
        return
    where = f"record {place + 1}"
    elsewhere = [index for index, line in enumerate(sample.answers) if _same(lines[0], line)]
    # Many records may share an answer, a label say; only one that no other record has tells its place.
    if len(elsewhere) == 1:
        findings.add("order", where, f"its answer is at place {elsewhere[0] + 1}")
    else:
        findings.add("company", where, f"alone {_short(lines[0])}, else {_short(sample.answers[place])}")


def _count_lines(text: bytes) -> int:
    return text.count(b"\n") + (not text.endswith(b"\n") and bool(text))


def takes_several(client: Client, first: bytes, second: bytes, headers: dict[str, str]) -> bool:
    """Whether two records in one request get two lines."""
    # A file's last line may have no newline.
    both = first.removesuffix(b"\n") + b"\n" + second
    exchange = client.post("/invocations", both, headers, _TIMEOUT_S)
    return _good(exchange) and len(answer_lines(exchange.body)) == 2  # noqa: PLR2004  a pair


def find_concurrency(
    make_client: Callable[[], Client], body: bytes, headers: dict[str, str], most: int
) -> dict[int, float]:
    """Requests a second with 1, 2, 4 and 8 at once, as far as ``most`` and five seconds go.

    Returns:
        By requests at once; empty if a request failed or takes too long to be tried.
    """
    rates: dict[int, float] = {}
    clients = [make_client() for _ in range(min(most, max(_CONCURRENT)))]
    start = time.monotonic()
    try:
        for concurrent in (number for number in _CONCURRENT if number <= len(clients)):
            if rates:
                expected = max(_LEAST_REQUESTS * concurrent / rates[max(rates)], _LEVEL_S)
                if time.monotonic() - start + expected > _BUDGET_S:
                    break
            rate = _rate(clients[:concurrent], body, headers)
            if rate is None:
                break
            rates[concurrent] = rate
    finally:
        for client in clients:
            client.close()
    return rates


def _rate(clients: list[Client], body: bytes, headers: dict[str, str]) -> float | None:
    """Requests a second, all clients sending for a while, or None if one was not answered."""
    start = time.monotonic()

    def send(client: Client) -> int:
        count = 0
        while count < _LEAST_REQUESTS or time.monotonic() - start < _LEVEL_S:
            if not _good(client.post("/invocations", body, headers, _BUDGET_S)):
                return 0
            count += 1
        return count

    with ThreadPoolExecutor(len(clients)) as pool:
        counts = list(pool.map(send, clients))
    return sum(counts) / max(time.monotonic() - start, 1e-9) if all(counts) else None


def _good(exchange: Exchange) -> bool:
    return not exchange.failure and exchange.status == _OK


def _short(text: bytes) -> str:
    return text[:40].decode("utf-8", "replace")


def _same(one: bytes, other: bytes) -> bool:
    """Whether two lines say the same: to the letter, or in numbers within a float's noise."""
    if one == other:
        return True
    return _close(_value(one), _value(other))


def _value(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return [_cell(cell) for cell in line.split(b",")]


def _cell(cell: bytes) -> float | bytes:
    try:
        return float(cell)
    except ValueError:
        return cell


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_close, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_close(one[key], other[key]) for key in one)
    # Integers are labels and counts, which no rounding explains.
    if isinstance(one, float) and isinstance(other, int | float):
        both_nan = math.isnan(one) and math.isnan(other)
        return both_nan or math.isclose(one, other, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    if isinstance(one, int) and isinstance(other, float):
        return _close(other, one)
    return bool(one == other)
