"""How long small requests are thought to take, and for which models."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import calibrations
import onnx_models
from codec_laws import signature
from onnx_serve import sizing as sizing_module
from onnx_serve.brief_requests import BriefRequests
from onnx_serve.calibration_record import Rung
from onnx_serve.machine import read_machine
from onnx_serve.record_cost import RecordCost, record_cost
from onnx_serve.repository import Repository
from onnx_serve.settings import Settings, load_settings
from onnx_serve.tensors import Feed, RowAxis, Values

COST = RecordCost(1e-4, 1, elements=4, input_bytes=16, answer_bytes=8, has_strings=False)
RELU = {"ai.onnx::Relu": 1}


@pytest.mark.parametrize(
    ("body", "records"),
    [
        (b"1,2,3,4", 1),
        (b"1,2,3,4\n", 2),  # the end of a line may be followed by another
        (b"1,2,3,4\n" * 10, 11),
        (b'{"instances":[[1,2,3,4]]}', 1),
        (b'{"instances":[[1,2,3,4],[5,6,7,8],[9,10,11,12]]}', 3),
        (b'{"instances":[{"a":1,"b":2,"c":3,"d":4}]}\n', 2),
        (b",,,", 1),
        (b"", 1),
    ],
)
def test_records_of_text_are_counted_by_what_separates_values(body: bytes, records: int) -> None:
    assert COST.of_text(body) == pytest.approx(records * 1e-4)


def test_long_strings_take_longer() -> None:
    texts = RecordCost(1e-4, 1, elements=1, input_bytes=20, answer_bytes=8, has_strings=True)
    assert texts.of_text(b"x" * 20) == pytest.approx(1e-4)
    assert texts.of_text(b"x" * 200) == pytest.approx(1e-3)
    assert texts.of_text(b"a\nb\nc") == pytest.approx(3e-4)


def test_tensors_are_counted_by_their_bytes() -> None:
    assert COST.of_tensors(bytes(16)) == pytest.approx(1e-4)
    assert COST.of_tensors(bytes(128 + 160)) == pytest.approx(18e-4)


def test_records_of_a_fixed_number_share_a_run() -> None:
    fixed = RecordCost(1e-3, 8, elements=1, input_bytes=4, answer_bytes=4, has_strings=False)
    assert [fixed.of_records(count) for count in (1, 8, 9)] == pytest.approx([1e-3, 1e-3, 2e-3])


def test_a_long_answer_is_never_brief() -> None:
    generator = RecordCost(1e-6, 1, elements=1, input_bytes=4, answer_bytes=12_000, has_strings=False)
    assert generator.of_records(1) == 1e-6
    assert generator.of_records(2) == math.inf


FREE = signature(("x", "float", ["N", 4]), outputs=[("y", "float", ["N", 2])])


@pytest.mark.parametrize(
    ("changes", "operators", "model"),
    [
        ({"origin": "guessed"}, RELU, FREE),
        ({"ladder": ()}, RELU, FREE),
        ({}, None, FREE),
        ({}, {"ai.onnx::Loop": 1}, FREE),
        ({}, RELU, signature(("x", "float", ["N", "T"]), outputs=[("y", "float", ["N", 2])])),
        ({}, RELU, signature(("x", "seq(tensor(float))", []), outputs=[("y", "float", ["N"])], row_axis=RowAxis.NONE)),
        ({}, {"ai.onnx::Resize": 1}, signature(("x", "int64", ["N", 2]), outputs=[("y", "float", ["N"])])),
    ],
    ids=["guessed", "not timed", "unknown operators", "a loop", "a free dimension", "a sequence", "sizes as inputs"],
)  # fmt: skip
def test_nothing_is_known_of_models_whose_runs_differ(changes: Any, operators: Any, model: Any) -> None:
    assert record_cost(FREE, calibrations.make(), RELU) is not None
    assert record_cost(model, calibrations.make(**changes), operators) is None


def test_the_cost_is_that_of_the_fewest_records() -> None:
    calibration = calibrations.make(
        ladder=(Rung(8, 2e-3, 1e-3), Rung(16, 3e-3, 2e-3)), row_elements=3, row_output_bytes=5
    )
    texts = signature(("s", "string", ["N", 3]), outputs=[("y", "float", ["N"])])
    assert record_cost(texts, calibration, RELU) == RecordCost(2e-3, 8, 3, 16, 5, has_strings=True)


def settings(folder: Path, **variables: str) -> Settings:
    return load_settings(config_file=None, environ={"ONNX_SERVE_MODEL_DIR": str(folder), **variables})


@pytest.fixture
def requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of a repository whose model has been measured; with settings."""
    repositories = []

    def make(**variables: str) -> tuple[BriefRequests, Repository]:
        onnx_models.linear(tmp_path / "model.onnx")
        measured = calibrations.make(ladder=(Rung(1, 1e-4, 1e-4),))
        monkeypatch.setattr(sizing_module.Sizing, "_known", lambda _: measured)
        repository = Repository(settings(tmp_path, **variables), read_machine())
        repositories.append(repository)
        repository.load()
        return BriefRequests(repository), repository

    yield make
    for repository in repositories:
        repository.close()


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/ping", {}, 0),
        ("/invocations", {"CONTENT_TYPE": "text/csv"}, 1e-4),
        ("/invocations", {"CONTENT_TYPE": "Text/CSV; charset=utf-8"}, 1e-4),
        ("/invocations", {"CONTENT_TYPE": "application/json"}, 1e-4),
        ("/invocations", {"CONTENT_TYPE": "application/jsonlines"}, 1e-4),
        ("/invocations", {"CONTENT_TYPE": "application/x-npy"}, 1e-4),
        ("/v2/models/model/infer", {"CONTENT_TYPE": "application/json"}, 1e-4),
        ("/v2/models/model/versions/1/infer", {"CONTENT_TYPE": "application/json"}, math.inf),
        ("/v2/models/other/infer", {"CONTENT_TYPE": "application/json"}, math.inf),
        ("/invocations", {"CONTENT_TYPE": "application/x-parquet"}, math.inf),
        ("/invocations", {"CONTENT_TYPE": "text/csv", "CONTENT_ENCODING": "gzip"}, math.inf),
        ("/invocations", {}, math.inf),
        ("/execution-parameters", {}, math.inf),
    ],
)
def test_what_is_known_of_a_request(
    requests: Any, path: str, headers: dict[str, str], expected: float
) -> None:
    brief, _ = requests()
    assert brief.estimate(path, headers, b"1,2,3,4") == pytest.approx(expected)


def test_nothing_is_brief_while_the_model_runs(requests: Any) -> None:
    brief, repository = requests()
    csv = ("/invocations", {"CONTENT_TYPE": "text/csv"}, b"1,2,3,4")
    during = []

    def run(feed: Feed) -> Values:
        during.append(brief.estimate(*csv))
        return {"y": feed["x"]}

    with repository.lease(None) as served:
        engine = served.inference.engine
        engine._run = run
        list(engine.map([{"x": np.zeros((1, 4), np.float32)}]))
    assert during == [math.inf]
    assert brief.estimate(*csv) == pytest.approx(1e-4)


def test_the_operator_may_leave_all_to_the_pool(requests: Any) -> None:
    brief, _ = requests(ONNX_SERVE_BRIEF_REQUESTS="never")
    assert brief.estimate("/invocations", {"CONTENT_TYPE": "text/csv"}, b"1,2,3,4") == math.inf
    assert brief.estimate("/ping", {}, b"") == 0


def test_an_unmeasured_model_is_not_brief(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "model.onnx")
    repository = Repository(settings(tmp_path), read_machine())
    brief = BriefRequests(repository)
    assert brief.estimate("/ping", {}, b"") == 0
    assert brief.estimate("/invocations", {"CONTENT_TYPE": "text/csv"}, b"1") == math.inf
    repository.load()
    assert brief.estimate("/invocations", {"CONTENT_TYPE": "text/csv"}, b"1") == math.inf
    repository.close()
