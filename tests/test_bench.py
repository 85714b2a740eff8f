"""The parts of bench/ that decide what is measured: packing, choices, intervals."""

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.agent import JobFailedError, parse_head
from bench.intervals import median_interval, ratio_interval
from bench.model_zoo import CSV, JSON, JSON_LINES, MODELS, NPY
from bench.parameter_sweep import MULTI, SINGLE, Choice, distinct, payloads
from bench.payloads import MIB, Source, draw

_SOURCES = {
    content_type: draw(MODELS["linear"], content_type) for content_type in (CSV, JSON_LINES, JSON, NPY)
}


def rows_of(content_type: str, body: bytes) -> int:
    """Records of a body, by an independent reader; each must be whole."""
    if content_type == NPY:
        array = np.load(io.BytesIO(body), allow_pickle=False)
        assert array.shape[1:] == (30,)
        return len(array)
    if content_type == CSV:
        records = list(csv.reader(io.StringIO(body.decode())))
    elif content_type == JSON:
        records = json.loads(body)["instances"]
    else:
        records = [json.loads(line) for line in body.splitlines()]
    assert all(len(record) == 30 for record in records)
    return len(records)


@pytest.mark.parametrize("content_type", _SOURCES)
@settings(max_examples=15, deadline=None)
@given(limit=st.integers(0, MIB))
def test_a_payload_is_within_its_limit_and_one_more_record_would_not_be(
    content_type: str, limit: int
) -> None:
    source = _SOURCES[content_type]
    fits = source.fits(limit)
    if fits:
        body = source.pack(fits).body
        assert len(body) <= limit
        assert rows_of(content_type, body) == fits
    assert len(source.pack(fits + 1).body) > limit - 128


def test_records_repeat_beyond_those_that_are_distinct() -> None:
    source = Source(CSV, (b"1\n", b"22\n"))
    assert (source.fits(11), source.fits(12)) == (4, 5)
    assert source.pack(5).body == b"1\n22\n1\n22\n1\n"


@given(count=st.integers(1, 50), per_payload=st.integers(1, 20))
def test_a_cut_file_keeps_all_records_and_only_the_last_payload_is_shorter(
    count: int, per_payload: int
) -> None:
    made = [payload.records for payload in Source(CSV, (b"1\n",)).cut(count, per_payload)]
    assert sum(made) == count
    assert set(made[:-1]) <= {per_payload}
    assert 0 < made[-1] <= per_payload


def test_padding_keeps_records_and_reaches_the_size() -> None:
    source = _SOURCES[JSON_LINES]
    body = source.pack(3, padded_to=9000).body
    assert len(body) == 9000
    assert rows_of(JSON_LINES, body) == 3


@pytest.mark.parametrize(
    "name", [name for name in MODELS if name not in {"resnet18", "unet", "ocr_detector"}]
)
def test_the_same_seed_draws_the_same_records(name: str) -> None:
    """Images are left out for their size alone."""
    model = MODELS[name]
    first = draw(model, model.formats[0])
    assert first == draw(model, model.formats[0])
    assert len(set(first.records)) > len(first.records) / 2


@settings(max_examples=25, deadline=None)
@given(records=st.integers(1, 10**6))
def test_choices_respect_the_platform_and_differ_in_what_is_sent(records: int) -> None:
    """https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTransformJob.html: a product of 100 MB."""
    source = _SOURCES[CSV]
    choices = distinct(source, records)
    assert all(choice.concurrent * choice.payload_mb <= 100 for choice in choices)
    sent = [
        (SINGLE, choice.concurrent)
        if choice.strategy == SINGLE
        else (
            per := min(source.fits(choice.payload_mb * MIB), records),
            min(choice.concurrent, -(-records // per)),
        )
        for choice in choices
    ]
    assert len(set(sent)) == len(sent)
    assert {choice.strategy for choice in choices} == {MULTI, SINGLE}


def test_a_record_larger_than_a_payload_fails_the_job() -> None:
    source = Source(CSV, (b"1" * 2 * MIB,))
    with pytest.raises(JobFailedError, match="exceeds"):
        list(payloads(source, 1, Choice(1, 1, MULTI)))


def test_the_interval_holds_the_median_and_shrinks_to_a_certain_value() -> None:
    spread = median_interval([0.8, 0.9, 1.0, 1.1, 1.2])
    assert spread.low < spread.median == 1.0 < spread.high
    assert median_interval([0.8, 0.9, 1.0, 1.1, 1.2]) == spread
    assert ratio_interval([2, 4, 6], [1, 2, 3]) == (2, 2, 2)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 12", (200, 12)),
        (b"HTTP/1.1 413 Too Large\r\nX: y\r\ncontent-length:0", (413, 0)),
    ],
)
def test_heads_tell_status_and_length(head: bytes, expected: tuple[int, int]) -> None:
    assert parse_head(head) == expected


def test_an_answer_without_a_length_fails_the_job() -> None:
    with pytest.raises(JobFailedError, match="Content-Length"):
        parse_head(b"HTTP/1.1 200 OK\r\nX: y")
