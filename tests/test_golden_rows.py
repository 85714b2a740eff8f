"""Golden rows: replayed when asked, refused when an answer differs, and never trusted."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onnx_models
from converted_folders import change_golden, change_parity, convert, parity_facts
from onnx_serve import cli
from onnx_serve.errors import InferenceError, ModelError, OutOfMemory
from onnx_serve.golden_rows import GoldenRows, compare, read_golden_rows, replay
from onnx_serve.model import SessionOptions, load_model
from onnx_serve.parity_record import ParityRecord, Tolerances, read_parity_record
from onnx_serve.tensors import Array, Feed, MapTable, Tensors, Values
from serving import start

ROWS = np.arange(20, dtype=np.float32).reshape(5, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    convert(tmp_path / "m", onnx_models.linear, {"x": ROWS})
    return tmp_path / "m"


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replayed(path: Path, **options: Any) -> None:
    model = load_model(path, "model", SessionOptions())
    replay(path, model.signature, model.run, **options)


@pytest.mark.parametrize(
    ("make", "feed"),
    [
        (onnx_models.linear, {"x": ROWS}),
        (onnx_models.two_inputs, {"a": ROWS[:, :2], "b": np.arange(5)}),
        (onnx_models.zipmap, {"x": ROWS[:, :3]}),
        (partial(onnx_models.identity, kind=onnx_models.STRING, shape=("N", 1)), {"x": np.array([["é"], [""]])}),
        (partial(onnx_models.linear, rows=5), {"x": ROWS}),
    ],
    ids=["one input", "two inputs", "maps", "text", "fixed rows"],
)  # fmt: skip
def test_answers_that_did_not_change_pass(
    make: Callable[[Path], Path], feed: Tensors, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = convert(tmp_path / "m", make, feed)

    with caplog.at_level("INFO", logger="onnx_serve"):
        replayed(path)

    assert "the golden rows are answered as they were" in caplog.text


def test_a_difference_names_output_row_element_and_both_values(folder: Path) -> None:
    change_golden(folder, lambda outputs: {"y": outputs["y"] + np.eye(5, 3, -2, dtype=np.float32)})

    with pytest.raises(ModelError, match=r'output "y", row 3 of 5, element \[0\]: expected 19.6, got 18.6'):
        replayed(folder / "model.onnx")


def test_a_model_without_golden_rows_is_served_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replayed(onnx_models.linear(tmp_path / "model.onnx"))

    assert "there are no golden rows" in caplog.text


def test_golden_rows_are_those_of_model_onnx(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Another model of the folder has none; alone, a model may have any name."""
    other = onnx_models.identity(folder / "other.onnx")
    replayed(other)
    assert "other.onnx: there are no golden rows" in caplog.text

    (folder / "model.onnx").rename(other)
    caplog.clear()
    replayed(other)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "sample.npz").unlink(), "sample.npz is missing"),
        (lambda folder: (folder / "parity.json").unlink(), "parity.json is missing"),
        (lambda folder: [(folder / n).unlink() for n in ("sample.npz", "golden.npz")],
         "sample.npz and golden.npz is missing"),
        (lambda folder: (folder / "sample.npz").write_bytes(b"PK\x03\x04"), "sample.npz: expected a ZIP archive"),
        (lambda folder: np.savez(folder / "sample.npz", x=np.array([{}], object)), "object arrays are pickled"),
        (lambda folder: np.savez(folder / "sample.npz", x=ROWS[:, :3]), r"sample.npz: input \"x\": expected"),
        (lambda folder: np.savez(folder / "sample.npz", x=ROWS[:0]), "expected arrays with rows"),
        (lambda folder: np.savez(folder / "sample.npz", z=ROWS, w=ROWS), "sample.npz"),
        (lambda folder: np.savez(folder / "golden.npz", other=ROWS), "golden.npz"),
        (lambda folder: np.savez(folder / "golden.npz", y=ROWS), r"output \"y\": expected shape \[5, 4\], got \[5, 3\]"),
        (lambda folder: onnx_models.linear(folder / "model.onnx", outputs=2), "is of another model file"),
        (lambda folder: change_parity(folder, lambda facts: {**facts, "model_sha256": ""}), "SHA-256 is missing"),
        (lambda folder: make_fifo(folder / "golden.npz"), "golden.npz: expected a regular file, got a FIFO"),
        (lambda folder: [(folder / "golden.npz").rename(folder / "g"), (folder / "golden.npz").symlink_to("g")],
         "golden.npz is a link"),
    ],
)  # fmt: skip
def test_damaged_files_are_one_clear_line(damage: Callable[[Path], Any], words: str, folder: Path) -> None:
    damage(folder)

    with pytest.raises(ModelError, match=words) as caught:
        replayed(folder / "model.onnx")
    assert "\n" not in str(caught.value)
    assert str(folder) not in str(caught.value)


def test_links_are_followed_where_links_are_allowed(folder: Path) -> None:
    (folder / "golden.npz").rename(folder / "g")
    (folder / "golden.npz").symlink_to("g")

    replayed(folder / "model.onnx", allow_links=True)


def test_large_files_are_not_read(folder: Path) -> None:
    with (folder / "sample.npz").open("r+b") as file:
        file.truncate((1 << 28) + 1)

    with pytest.raises(ModelError, match=r"sample.npz: expected at most 268435456 bytes"):
        replayed(folder / "model.onnx")


def test_outputs_that_the_operator_leaves_out_are_not_compared(tmp_path: Path) -> None:
    path = convert(tmp_path / "m", onnx_models.two_inputs, {"a": ROWS[:, :2], "b": np.arange(5)})
    change_golden(path.parent, lambda outputs: {**outputs, "twice": outputs["twice"] + 1})
    model = load_model(path, "model", SessionOptions(outputs=("sum",)))

    replay(path, model.signature, model.run)

    golden = read_golden_rows(path, model.signature)
    assert golden is not None
    assert list(golden.outputs) == ["sum"]


def test_a_run_that_fails_is_a_model_error_but_for_memory(folder: Path) -> None:
    model = load_model(folder / "model.onnx", "model", SessionOptions())

    def fails(error: Exception) -> Callable[[Feed], Values]:
        def run(_: Feed) -> Values:
            raise error

        return run

    with pytest.raises(ModelError, match="golden rows: the model does not run them: broken"):
        replay(folder / "model.onnx", model.signature, fails(InferenceError("broken")))
    with pytest.raises(OutOfMemory):
        replay(folder / "model.onnx", model.signature, fails(OutOfMemory("full")))


# --- What counts as a difference ------------------------------------------------------------------------


def golden(record: ParityRecord, **outputs: Any) -> GoldenRows:
    return GoldenRows({}, {name: np.asarray(array) for name, array in outputs.items()}, record)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> ParityRecord:
    folder = tmp_path_factory.mktemp("record")
    convert(folder, onnx_models.linear, {"x": ROWS})
    found = read_parity_record(folder)
    assert found is not None
    return replace(found, outputs=(), tolerances=Tolerances(rtol=1e-3, atol=1e-4, rows=0.0))


SCORES = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]], np.float32)


@pytest.mark.parametrize(
    ("expected", "actual", "passes"),
    [
        ([1.0, 2.0], [1.0005, 2.0], True),
        ([1.0, 2.0], [1.01, 2.0], False),
        ([1000.0, 0.0], [1000.0, 0.05], True),  # a share of the largest magnitude
        ([np.nan, np.inf, -np.inf], [np.nan, np.inf, -np.inf], True),
        ([np.nan], [0.0], False),
        ([np.inf], [-np.inf], False),
        ([1.0], [np.inf], False),
        (1.0, 1.0, True),
        (1.0, 2.0, False),
        ([1, 2], [1, 2], True),
        ([1, 2], [1, 3], False),
        ([1, 2], np.array(["1", "2"], object), False),
        ([1.0, 2.0], np.array(["1", "2"], object), False),
        (["a", "é"], np.array(["a", "é"], object), True),
        (["a", "é"], np.array(["a", "e"], object), False),
        ([True], [False], False),
    ],
)
def test_what_counts_as_a_difference(expected: Any, actual: Any, passes: bool, record: ParityRecord) -> None:
    rows = golden(record, y=expected)
    answers: Values = {"y": np.asarray(actual)}

    if passes:
        compare(rows, answers)
    else:
        with pytest.raises(ModelError, match=r'golden rows: output "y", row [12] of'):
            compare(rows, answers)  # fmt: skip


@pytest.mark.parametrize(("label", "passes"), [(1, True), (0, False)])
def test_a_label_may_change_where_two_scores_tie(label: int, passes: bool, record: ParityRecord) -> None:
    """Row 2 of three has equal scores: either label is right there, and only there."""
    rows = golden(record, label=[0, 0, 1], scores=SCORES)
    answers: Values = {"label": np.array([0, 1, label]), "scores": SCORES}

    if passes:
        compare(rows, answers)
    else:
        with pytest.raises(ModelError, match='output "label", row 3 of 3: expected 1, got 0'):
            compare(rows, answers)


def test_a_share_of_rows_may_differ_where_the_conversion_allowed_it(record: ParityRecord) -> None:
    loose = replace(record, tolerances=replace(record.tolerances, rows=0.05))
    rows = golden(loose, y=[1.0, 2.0, 3.0])

    compare(rows, {"y": np.array([1.0, 2.0, 4.0])})
    with pytest.raises(ModelError):
        compare(rows, {"y": np.array([1.0, 5.0, 4.0])})


def test_answers_of_another_kind_are_differences(record: ParityRecord) -> None:
    rows = golden(record, y=[[1.0, 2.0]])

    with pytest.raises(ModelError, match='output "y": expected an array, got list'):
        compare(rows, {"y": [1.0]})
    with pytest.raises(ModelError, match="expected an array, got NoneType"):
        compare(rows, {})
    compare(rows, {"y": MapTable((0, 1), np.array([[1.0, 2.0]], np.float32))})


@settings(max_examples=50)
@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6),
    factor=st.floats(-1, 1),
)
def test_within_the_tolerance_passes_and_twice_beyond_does_not(
    values: list[float], factor: float, record: ParityRecord
) -> None:
    expected: Array = np.array(values)
    allowed = 1e-4 * np.abs(expected).max() + 1e-3 * np.abs(expected)

    compare(golden(record, y=expected), {"y": expected + 0.999 * factor * allowed})

    if np.abs(expected).max() > 1e-300:  # below, twice nothing is nothing
        with pytest.raises(ModelError):
            compare(golden(record, y=expected), {"y": expected + 2 * allowed})


# --- In the server --------------------------------------------------------------------------------------


def test_the_server_refuses_to_serve_other_answers(folder: Path, tmp_path: Path) -> None:
    change_golden(folder, lambda outputs: {"y": outputs["y"] * 2})

    result = subprocess.run(
        [sys.executable, "-m", "onnx_serve", "serve", "--model-dir", str(folder), "--port", "0"],
        env={**os.environ, "ONNX_SERVE_REPLAY_GOLDEN_ROWS": "true"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 3
    assert 'onnx-serve: golden rows: output "y", row 1 of 5' in result.stderr


def test_the_server_replays_only_when_asked(folder: Path, tmp_path: Path) -> None:
    with start(folder, tmp_path / "log", {"ONNX_SERVE_REPLAY_GOLDEN_ROWS": "true"}) as server:
        assert "the golden rows are answered as they were at the conversion" in server.log
    change_golden(folder, lambda outputs: {"y": outputs["y"] * 2})
    with start(folder, tmp_path / "log2") as server:
        assert server.post("1,2,3,4", "text/csv").status_code == 200


# --- inspect --------------------------------------------------------------------------------------------


def inspected(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["inspect", "--model-dir", str(folder)]) == 0
    return capsys.readouterr().out


def test_inspect_shows_the_conversion(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = inspected(folder, capsys)

    for words in (
        "parity: passed, sklearn RandomForestClassifier",
        "y: 1164 rows, largest error 2.5e-07, relative 3e-06",
        "tolerances: rtol 0.0001, atol 1e-05, rows outside 0",
        "converted: 2026-01-02T03:04:05+00:00",
        "seed: 20240607",
        "versions: onnxruntime 1.28.0, scikit-learn 1.7.0",
        f"SHA-256 of the artifact: {'a' * 64}",
        "(this file)",
    ):
        assert words in out, words


def test_inspect_says_what_is_wrong_with_a_conversion(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def worsen(facts: dict[str, Any]) -> dict[str, Any]:
        facts["parity"]["passed"] = False
        facts["parity"]["unchecked_outputs"] = ["extra"]
        facts["parity"]["outputs"] = [
            facts["parity"]["outputs"][0] | {"kind": "label", "label_disagreements": 2}
        ]
        del facts["seed"], facts["converted_at"], facts["versions"]
        return {**facts, "model_sha256": "0" * 64}

    change_parity(folder, worsen)
    out = inspected(folder, capsys)

    for words in ("parity: FAILED", "y: 1164 rows, 2 labels differ", "extra: not compared", "seed: unknown",
                  "converted: at an unknown time", "versions: unknown", "(NOT this file, which has "):  # fmt: skip
        assert words in out, words


def test_inspect_says_that_there_is_no_record_or_none_that_can_be_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "parity.json").write_text("{")
    assert "parity: cannot be read: parity.json: expected JSON" in inspected(folder, capsys)
    (folder / "parity.json").unlink()
    assert "parity: not recorded (no parity.json beside the model)" in inspected(folder, capsys)


def test_the_record_used_here_is_what_a_converter_writes() -> None:
    """Its fields are those of converters' own tests; a field missing here would hide a change there."""
    facts = parity_facts({"y": ROWS})
    assert {"framework", "family", "parity", "versions", "seed", "converted_at"} <= facts.keys()
