import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_serve.execution_parameters import (
    ExecutionParameters,
    Load,
    Term,
    body_limit_bytes,
    compute,
    max_inflight,
)
from onnx_serve.machine import read_machine
from onnx_serve.memory import FORMATS, NUMBERS_DOCUMENT, HostMemory, MemoryEstimate
from onnx_serve.settings import Settings

MIB, GIB = 1 << 20, 1 << 30
HOST = HostMemory(
    3,
    MIB,
    64 * MIB,
    16 * MIB,
    spool_is_memory=False,
    output_share=0.1,
    several_outputs=False,
    document=NUMBERS_DOCUMENT,
    worst_multiple=20,
)


def settings(**values: Any) -> Settings:
    return dataclasses.replace(Settings(), **values)


def load(**values: Any) -> Load:
    usual = Load(
        has_rows=True,
        slots=2,
        memory=MemoryEstimate(80 * MIB, 20 * MIB, 10 * MIB),
        host=HOST,
        available_bytes=8 * GIB,
    )
    return dataclasses.replace(usual, **values)


def numbers(answer: ExecutionParameters) -> tuple[int, int]:
    return answer.max_concurrent_transforms, answer.max_payload_mb


@pytest.mark.parametrize(
    ("slots", "available", "expected"),
    [
        (1, 8 * GIB, (2, 50)),
        (2, 8 * GIB, (3, 33)),
        (4, 8 * GIB, (5, 20)),
        (64, 64 * GIB, (5, 20)),
        # 21 bytes for a byte of a JSON document.
        (2, 1500 * MIB, (2, 33)),
        (2, 700 * MIB, (1, 33)),
        (2, 300 * MIB, (1, 14)),
        (2, 0, (1, 1)),
    ],
)
def test_computed_from_slots_and_memory(slots: int, available: int, expected: tuple[int, int]) -> None:
    """Concurrency is given up before payload, and the platform's bound on the product always holds."""
    answer = compute(settings(), load(slots=slots, available_bytes=available))

    assert numbers(answer) == expected
    assert answer.max_concurrent_transforms * answer.max_payload_mb <= 100


@pytest.mark.parametrize(
    ("mb_per_s", "expected"),
    [
        (0, (3, 33)),
        (100, (3, 33)),
        (1, (3, 20)),  # 60 s
        (0.1, (3, 6)),  # the platform's usual payload in 180 s
        (0.04, (2, 6)),  # 300 s
        (0.01, (1, 3)),
        (1e-6, (1, 1)),
    ],
)
def test_a_payload_ends_in_time(mb_per_s: float, expected: tuple[int, int]) -> None:
    """A minute if that leaves the usual payload; at most half of the platform's ten minutes."""
    answer = compute(settings(), load(bytes_per_s=mb_per_s * MIB))

    assert numbers(answer) == expected


def test_the_time_of_a_request_is_no_matter_of_its_payload_without_rows() -> None:
    assert numbers(compute(settings(), load(has_rows=False, bytes_per_s=1))) == (3, 33)


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ({"max_payload_mb": 100}, (1, 100)),
        ({"max_payload_mb": 6}, (3, 6)),
        ({"max_payload_mb": 0}, (3, 0)),
        ({"max_concurrent_transforms": 10}, (10, 10)),
        ({"max_concurrent_transforms": 200}, (200, 1)),
        ({"max_concurrent_transforms": 8, "max_payload_mb": 6}, (8, 6)),
    ],
)
@pytest.mark.parametrize("available", [8 * GIB, 0])
def test_the_jobs_own_variables_win(job: dict[str, Any], available: int, expected: tuple[int, int]) -> None:
    answer = compute(settings(**job), load(available_bytes=available))

    chosen = [key for key in ("max_concurrent_transforms", "max_payload_mb") if key in job]
    assert [getattr(answer, key) for key in chosen] == [job[key] for key in chosen]
    if available:
        assert numbers(answer) == expected


def test_a_choice_of_the_job_that_does_not_fit_is_a_warning() -> None:
    job = settings(max_concurrent_transforms=8, max_payload_mb=6)

    assert compute(job, load()).warnings == []
    [warning] = compute(job, load(available_bytes=100 * MIB)).warnings
    assert warning.startswith("MaxConcurrentTransforms and MaxPayloadInMB of the job ask for up to 8 x 6 MB")
    assert "100 MiB that are left" in warning
    [warning] = compute(job, load(bytes_per_s=MIB / 20)).warnings
    assert "about 960 s" in warning


def test_strategy_follows_the_model_unless_the_job_says() -> None:
    assert compute(settings(), load()).batch_strategy == "MULTI_RECORD"
    assert compute(settings(), load(has_rows=False)).batch_strategy == "SINGLE_RECORD"
    answer = compute(settings(batch_strategy="SINGLE_RECORD"), load())
    assert answer.batch_strategy == "SINGLE_RECORD"
    assert answer.decided_by["BatchStrategy"] == "the job (SAGEMAKER_BATCH_STRATEGY)"


def test_document_has_the_platforms_keys_and_spelling() -> None:
    answer = compute(settings(), load())

    assert answer.to_json() == {
        "MaxConcurrentTransforms": 3,
        "BatchStrategy": "MULTI_RECORD",
        "MaxPayloadInMB": 33,
    }
    assert answer.to_json(api_spelling=True)["BatchStrategy"] == "MultiRecord"


@pytest.mark.parametrize(
    ("values", "decided"),
    [
        ({}, ("slots + 1", "the platform's limit")),
        ({"available_bytes": 1500 * MIB}, ("memory", "the platform's limit")),
        ({"available_bytes": 300 * MIB}, ("memory", "memory")),
        ({"bytes_per_s": MIB}, ("slots + 1", "time")),
    ],
)
def test_the_explanation_says_what_decided(values: dict[str, Any], decided: tuple[str, str]) -> None:
    explained = compute(settings(), load(terms=[Term("x", 1, "m", "here")], **values)).to_json(explain=True)

    explain = explained["explain"]
    keys = ("MaxConcurrentTransforms", "MaxPayloadInMB")
    assert tuple(explain["decided_by"][key] for key in keys) == decided
    assert explain["terms"][-1] == {"name": "x", "value": 1, "unit": "m", "source": "here"}
    assert {"base_bytes", "session_bytes", "runs_bytes"} <= {term["name"] for term in explain["terms"]}


def test_the_predicted_peak_is_that_of_the_format_that_takes_most() -> None:
    answer = compute(settings(), load())
    peaks = {term.name: term.value for term in answer.terms if term.name.startswith("peak_bytes ")}

    assert peaks.keys() == {f"peak_bytes {name}" for name in FORMATS}
    assert answer.predicted_peak_bytes == max(peaks.values()) == peaks["peak_bytes application/json"]
    held = (80 + 20 + 10) * MIB
    assert min(peaks.values()) > held + answer.max_concurrent_transforms * answer.max_payload_mb * MIB  # type: ignore[operator]


def test_people_read_every_term_with_its_unit() -> None:
    lines = compute(settings(), load(terms=[Term("speed", 5, "rows/s", "clock")])).describe()

    assert "MaxPayloadInMB: 33 (the platform's limit)" in lines
    assert "session_bytes: 20.0 MiB (growth by loading and the first run)" in lines
    assert lines[-1] == "speed: 5 rows/s (clock)"


@given(
    concurrent=st.integers(1, 20),
    payload=st.integers(1, 100 * MIB),
    spool=st.booleans(),
    share=st.floats(0, 100),
)
def test_more_requests_need_more_memory(concurrent: int, payload: int, *, spool: bool, share: float) -> None:
    host = dataclasses.replace(HOST, spool_is_memory=spool, output_share=share)

    for name in FORMATS:
        assert 0 <= host.bytes(concurrent, payload, name) <= host.bytes(concurrent + 1, payload, name)
    assert host.worst_bytes(concurrent, payload) <= host.worst_bytes(concurrent + 1, payload)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, GIB),
        ({"batch": True}, 100 * MIB + (64 << 10)),
        ({"batch": True, "max_payload_mb": 6}, 6 * MIB + (64 << 10)),
        ({"batch": True, "max_payload_mb": 0}, 0),
        ({"max_body_bytes": 1000}, 1000),
        ({"max_body_bytes": 0}, 0),
        ({"max_body_bytes": 1000, "max_payload_mb": 1}, MIB + (64 << 10)),
    ],
)
def test_body_limit(values: dict[str, Any], expected: int) -> None:
    assert body_limit_bytes(settings(**values)) == expected


@pytest.mark.parametrize(("answered", "expected_mb"), [(33, 33), (6, 6), (2, 6)])
def test_what_was_answered_is_what_is_read(answered: int, expected_mb: int) -> None:
    """Never less than the platform's usual payload: a job may not have asked."""
    answer = ExecutionParameters(1, "MULTI_RECORD", answered)

    assert body_limit_bytes(settings(batch=True), answer) == expected_mb * MIB + (64 << 10)


@pytest.mark.parametrize(
    ("values", "slots", "expected"),
    [
        ({}, 4, 5),
        ({}, 1, 3),  # a processor each
        ({"max_concurrent_transforms": 8}, 2, 9),
        ({"max_inflight": 1}, 2, 1),
    ],
)
def test_requests_in_flight(values: dict[str, Any], slots: int, expected: int) -> None:
    machine = dataclasses.replace(read_machine(), cpus=2)

    assert max_inflight(settings(**values), machine, slots) == expected
