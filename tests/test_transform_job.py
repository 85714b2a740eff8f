import dataclasses
from typing import Any

import pytest

from onnx_serve.batch.data_processing import DataProcessing
from onnx_serve.batch.json_path import parse_path
from onnx_serve.batch.transform_job import TransformJob
from onnx_serve.errors import SettingsError
from onnx_serve.execution_parameters import ExecutionParameters

FILTER = DataProcessing(parse_path("$[1:]"))
JOIN = DataProcessing(join=True)


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"max_payload_mb": 0},
        {"max_payload_mb": 100, "max_concurrent": 1},
        {"max_payload_mb": 20, "max_concurrent": 5},
        {"max_concurrent": 0},
        {"split_type": "line", "batch_strategy": "SINGLE_RECORD"},
        {"processing": FILTER, "content_type": "text/csv"},
        {"processing": JOIN, "split_type": "line", "assemble_with": "line", "accept": "text/csv"},
        {"processing": JOIN, "content_type": "application/json", "accept": "application/json"},
        {"timeout_s": 3600, "max_retries": 0},
    ],
)
def test_what_the_platform_takes_is_taken(choices: dict[str, Any]) -> None:
    TransformJob(**choices).check()


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"max_payload_mb": 101}, "--max-payload-mb: expected 0 to 100, got 101"),
        ({"max_payload_mb": -1}, "--max-payload-mb"),
        ({"max_concurrent": -1}, "--max-concurrent: expected 0 or more, got -1"),
        ({"max_payload_mb": 51, "max_concurrent": 2}, "expected at most 100, got 2 x 51"),
        ({"timeout_s": 0}, "--timeout-s: expected 1 to 3600"),
        ({"timeout_s": 3601}, "--timeout-s"),
        ({"max_retries": 4}, "--max-retries: expected 0 to 3"),
        ({"batch_strategy": "SINGLE_RECORD"}, "--strategy single"),
        ({"processing": FILTER, "max_payload_mb": 0}, "--max-payload-mb 0"),
        ({"processing": FILTER, "split_type": "recordio"}, "--split-type recordio"),
        ({"processing": FILTER, "content_type": "image/png"}, "--content-type: filters and joins take"),
        ({"processing": JOIN, "accept": "text/csv", "split_type": "line"}, "--assemble-with"),
        ({"processing": JOIN}, "--accept"),
        ({"processing": JOIN, "content_type": "text/csv", "accept": "application/json"}, "--accept"),
    ],
)
def test_what_the_platform_refuses_is_refused_by_its_option(choices: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        TransformJob(**choices).check()


def test_the_environment_holds_the_jobs_own_choices_only() -> None:
    """The variables are set before the container is asked, so its own answer is never in them."""
    assert TransformJob(max_concurrent=0).environment() == {"SAGEMAKER_BATCH": "true"}
    assert TransformJob(max_payload_mb=0, batch_strategy="SINGLE_RECORD", max_concurrent=4).environment() == {
        "SAGEMAKER_BATCH": "true",
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": "0",
        "SAGEMAKER_BATCH_STRATEGY": "SINGLE_RECORD",
        "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": "4",
    }


CONTAINER = ExecutionParameters(3, "SINGLE_RECORD", 33)


@pytest.mark.parametrize(
    ("choices", "answered", "resolved"),
    [
        ({}, None, (1, "MULTI_RECORD", 6)),
        ({}, CONTAINER, (3, "SINGLE_RECORD", 33)),
        ({"max_concurrent": 0}, CONTAINER, (3, "SINGLE_RECORD", 33)),
        ({"max_concurrent": 7, "batch_strategy": "MULTI_RECORD", "max_payload_mb": 2}, CONTAINER, (7, "MULTI_RECORD", 2)),
        ({"max_payload_mb": 0}, CONTAINER, (3, "SINGLE_RECORD", 0)),
        ({}, dataclasses.replace(CONTAINER, max_concurrent_transforms=0), (1, "SINGLE_RECORD", 33)),
        # A container's answer takes no more memory than a job may.
        ({}, ExecutionParameters(5, "MULTI_RECORD", 10_000), (1, "MULTI_RECORD", 100)),
        ({}, ExecutionParameters(10_000, "MULTI_RECORD", 6), (16, "MULTI_RECORD", 6)),
        ({}, ExecutionParameters(10_000, "MULTI_RECORD", 0), (100, "MULTI_RECORD", 0)),
        ({"max_payload_mb": 50}, CONTAINER, (2, "SINGLE_RECORD", 50)),
        ({"max_concurrent": 10}, CONTAINER, (10, "SINGLE_RECORD", 10)),
        ({"max_concurrent": 200}, CONTAINER, (200, "SINGLE_RECORD", 1)),
    ],
)  # fmt: skip
def test_the_job_decides_before_the_container_before_the_default(
    choices: dict[str, Any], answered: ExecutionParameters | None, resolved: tuple[int, str, int]
) -> None:
    assert TransformJob(**choices).resolve(answered) == resolved
