"""Every sample model, every format in and out, through a real server, against the committed answers."""

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from serving import SAMPLES, ServerProcess, start

TYPES = {
    "csv": "text/csv",
    "json": "application/json",
    "jsonl": "application/jsonlines",
    "npy": "application/x-npy",
    "npz": "application/x-npz",
}
MODELS = sorted(folder.name for folder in SAMPLES.iterdir() if folder.is_dir())
CASES = [
    (model, request.suffix[1:], response.suffix[1:])
    for model in MODELS
    for request in sorted((SAMPLES / model).glob("request.*"))
    for response in sorted((SAMPLES / model).glob("response.*"))
]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ServerProcess]]:
    """Servers by model, each started when it is first asked for."""
    with ExitStack() as stack:

        class Servers(dict[str, ServerProcess]):
            def __missing__(self, model: str) -> ServerProcess:
                log_file = tmp_path_factory.mktemp(model) / "log"
                self[model] = stack.enter_context(start(SAMPLES / model, log_file))
                return self[model]

        yield Servers()


@pytest.mark.parametrize(("model", "asked", "answered"), CASES)
def test_answers_are_the_committed_ones(
    servers: dict[str, ServerProcess], model: str, asked: str, answered: str
) -> None:
    folder = SAMPLES / model
    response = servers[model].post((folder / f"request.{asked}").read_bytes(), TYPES[asked], TYPES[answered])

    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == TYPES[answered]
    expected = (folder / f"response.{answered}").read_bytes()
    got = parse(answered, response.content)
    if (asked, answered) == ("npz", "json"):
        got = {"predictions": predictions(got["outputs"])}
    assert_close(got, parse(answered, expected))
    if answered in {"csv", "json", "jsonl"}:
        assert response.content.count(b"\n") == expected.count(b"\n")


def predictions(columns: dict[str, list[Any]]) -> list[Any]:
    """What came as one array an output, as one value a record: the layout of the other requests' answers."""
    if len(columns) == 1:
        [column] = columns.values()
        return column
    return [dict(zip(columns, record, strict=True)) for record in zip(*columns.values(), strict=True)]


def parse(suffix: str, data: bytes) -> Any:
    if suffix == "csv":
        return list(csv.reader(io.StringIO(data.decode())))
    if suffix == "json":
        return json.loads(data)
    if suffix == "jsonl":
        return [json.loads(line) for line in data.splitlines()]
    loaded = np.load(io.BytesIO(data), allow_pickle=False)
    return dict(loaded) if suffix == "npz" else loaded


def assert_close(got: Any, expected: Any) -> None:
    """Equal structure, names, order and labels; numbers within float32's noise between processors."""
    if isinstance(expected, dict):
        assert list(got) == list(expected)
        for name, value in expected.items():
            assert_close(got[name], value)
    elif isinstance(expected, list):
        assert len(got) == len(expected)
        for item, other in zip(got, expected, strict=True):
            assert_close(item, other)
    elif isinstance(expected, np.ndarray):
        assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(got, expected)
    elif isinstance(expected, float):
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-5)
    elif isinstance(expected, str):
        assert_cell(got, expected)
    else:
        assert got == expected


def assert_cell(got: str, expected: str) -> None:
    """A CSV cell: a label to the letter, a fraction as a number."""
    if re.fullmatch(r"-?[0-9]+\.[0-9]+(e-?[0-9]+)?", expected):
        assert float(got) == pytest.approx(float(expected), rel=1e-4, abs=1e-5)
    else:
        assert got == expected


def test_every_sample_is_covered() -> None:
    """A folder without requests or answers would pass unseen."""
    assert len(MODELS) >= 6
    assert {model for model, _, _ in CASES} == set(MODELS)
    assert {asked for _, asked, _ in CASES} == set(TYPES)
