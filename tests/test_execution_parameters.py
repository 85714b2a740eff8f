import dataclasses
from typing import Any

import pytest

from codec_laws import signature
from onnx_serve.execution_parameters import body_limit_bytes, compute, max_inflight
from onnx_serve.settings import Settings
from onnx_serve.tensors import RowAxis

ROWS = signature(("x", "float", ["N", 4]))
WHOLE = signature(("x", "float", [3, 4]), row_axis=RowAxis.NONE)
MIB, GIB = 1 << 20, 1 << 30


def settings(**values: Any) -> Settings:
    return dataclasses.replace(Settings(), **values)


@pytest.mark.parametrize(
    ("slots", "available", "expected"),
    [
        (1, 8 * GIB, (2, 50)),
        (2, 8 * GIB, (3, 33)),
        (4, 8 * GIB, (5, 20)),
        (64, 64 * GIB, (5, 20)),
        (2, 512 * MIB, (2, 33)),
        (2, 400 * MIB, (1, 33)),
        (2, 300 * MIB, (1, 14)),
        (2, 100 * MIB, (1, 1)),
    ],
)
def test_computed_from_slots_and_memory(slots: int, available: int, expected: tuple[int, int]) -> None:
    """Concurrency is given up before payload, and the platform's bound on the product always holds."""
    answer = compute(settings(), ROWS, slots, available)

    assert (answer.max_concurrent_transforms, answer.max_payload_mb) == expected
    assert answer.max_concurrent_transforms * answer.max_payload_mb <= 100


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
def test_the_jobs_own_variables_win(job: dict[str, Any], expected: tuple[int, int]) -> None:
    answer = compute(settings(**job), ROWS, 2, 8 * GIB)

    assert (answer.max_concurrent_transforms, answer.max_payload_mb) == expected


def test_strategy_follows_the_model_unless_the_job_says() -> None:
    assert compute(settings(), ROWS, 2, GIB).batch_strategy == "MULTI_RECORD"
    assert compute(settings(), WHOLE, 2, GIB).batch_strategy == "SINGLE_RECORD"
    job = settings(batch_strategy="SINGLE_RECORD")
    assert compute(job, ROWS, 2, GIB).batch_strategy == "SINGLE_RECORD"


def test_document_has_the_platforms_keys_and_spelling() -> None:
    answer = compute(settings(), ROWS, 2, 8 * GIB)

    assert answer.to_json() == {
        "MaxConcurrentTransforms": 3,
        "BatchStrategy": "MULTI_RECORD",
        "MaxPayloadInMB": 33,
    }
    assert answer.to_json(api_spelling=True)["BatchStrategy"] == "MultiRecord"


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


@pytest.mark.parametrize(
    ("values", "slots", "expected"),
    [({}, 2, 3), ({"max_concurrent_transforms": 8}, 2, 9), ({"max_inflight": 1}, 2, 1)],
)
def test_requests_in_flight(values: dict[str, Any], slots: int, expected: int) -> None:
    assert max_inflight(settings(**values), slots) == expected
