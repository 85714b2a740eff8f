"""``onnx_serve.ray`` without Ray: the callable as an actor calls it. tests/clients/test_ray.py has the real Ray."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import onnx_models
from onnx_serve import ray_command
from onnx_serve.cli import main
from onnx_serve.errors import DecodeError, MismatchError, ModelError, SettingsError
from onnx_serve.ray import OnnxPredictor, batch_rows, predict, transform_files

PAIRS = pa.table(
    {"a": pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32(), 2)), "b": pa.array([7, 8, 9])}
)


def test_outputs_are_columns_after_those_kept(tmp_path: Path) -> None:
    onnx_models.two_inputs(tmp_path / "m.onnx")
    made = OnnxPredictor(tmp_path, keep=["b"])(PAIRS)

    assert made.column_names == ["b", "sum", "twice"]
    assert made.to_pylist()[2] == {"b": 9, "sum": [14.0, 15.0], "twice": 18}


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_one_line_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"onnx-serve\[ray\]"):
        predict(None, tmp_path, concurrency=1)


def test_a_model_without_rows_runs_each_record_by_itself(tmp_path: Path) -> None:
    onnx_models.positions(tmp_path / "m.onnx")
    made = OnnxPredictor(tmp_path, keep=["q"])(pa.table({"p": [1.0, 0.0, 2.0], "q": [3.0, 0.0, 0.0]}))

    assert made["q"].to_pylist() == [3.0, 0.0, 0.0]
    assert made.num_rows == 3


@pytest.mark.parametrize(
    ("keep", "words"), [(["none"], 'no column "none"'), (True, "has the name of an output")]
)
def test_what_cannot_be_kept(tmp_path: Path, keep: Any, words: str) -> None:
    onnx_models.linear(tmp_path / "m.onnx")
    table = pa.table({"y": [1.0], "a": [1.0], "b": [1.0], "c": [1.0]})

    with pytest.raises(MismatchError, match=words):
        OnnxPredictor(tmp_path, keep=keep)(table)


def test_bad_columns(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "m.onnx")
    with pytest.raises(DecodeError, match="expected 4 columns"):
        OnnxPredictor(tmp_path)(pa.table({"a": [1.0]}))


def test_no_model_and_no_such_setting(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        OnnxPredictor(tmp_path)
    with pytest.raises(SettingsError, match="ONNX_SERVE_COLOUR"):
        OnnxPredictor(tmp_path, settings={"colour": "blue"})


def test_a_gpu_that_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx_models.linear(tmp_path / "m.onnx")
    monkeypatch.setattr("onnx_serve.ray._assigned", lambda: (1, 1.0))
    with pytest.raises(ModelError, match="CUDAExecutionProvider"):
        OnnxPredictor(tmp_path)


def test_batch_rows_are_blocks_of_the_engine(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "m.onnx")
    assert batch_rows(tmp_path, num_cpus=3, settings={"block_rows": 10}) == 240


@pytest.mark.parametrize("names", [["a.csv", "b.parquet"], ["a.txt"], []])
def test_files_of_other_kinds(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).write_text("1\n")
    with pytest.raises(SettingsError, match=r"expected \.parquet or \.csv files"):
        transform_files([tmp_path / "in"], tmp_path / "out", tmp_path, concurrency=1)


def test_a_folder_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.parquet").write_text("")
    with pytest.raises(SettingsError, match="expected an empty folder"):
        transform_files([tmp_path], tmp_path / "out", tmp_path, concurrency=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--split-type", "line"], "--split-type: not with --engine ray"),
        (["--url", "http://h"], "--url: not with --engine ray"),
        (["--actors", "0"], "--actors: expected 1 or more"),
        (["--gpus-per-actor", "-1"], "--gpus-per-actor: expected 0 or more"),
    ],
)
def test_what_ray_does_not_take_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    arguments = ["transform", str(tmp_path), "--output", str(tmp_path / "out"), "--engine", "ray", *options]

    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_a_missing_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "none.csv")

    assert main(["transform", missing, "--output", str(tmp_path / "out"), "--engine", "ray"]) == 2
    assert "none.csv: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("first\n  last \n"), '"last"'),
        (ValueError(""), '"ValueError"'),
        (DecodeError("expected 4 columns", line=3), "expected 4 columns (line 3)"),
    ],
)
def test_the_servers_own_words_are_found_in_rays_errors(error: Exception, words: str) -> None:
    outer = RuntimeError("ray::MapWorker() failed\n" + str(error))
    outer.__cause__ = error

    assert ray_command._cause(outer) in {words, '"last"', '"ray::MapWorker() failed"'}
    assert ray_command._cause(error) == words


def test_ray_is_imported_only_when_needed() -> None:
    program = "import sys, onnx_serve.ray; print('ray' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
