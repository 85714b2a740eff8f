"""Batch jobs over files of every kind, their outputs against onnxruntime run beside them."""

import io
import json
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper

import onnx_models
from onnx_serve.batch.input_files import find_inputs
from onnx_serve.batch.local_model import LocalModel
from onnx_serve.batch.output_folder import OutputFolder
from onnx_serve.batch.progress import Progress
from onnx_serve.batch.request_plan import Plan
from onnx_serve.batch.transform import transform
from onnx_serve.batch.transform_job import TransformJob
from onnx_serve.cli import main
from onnx_serve.codecs import recordio
from onnx_serve.machine import read_machine
from onnx_serve.repository import Repository
from onnx_serve.settings import load_settings

ROWS = 1000
RECORDIO = "application/x-recordio-protobuf"
PARQUET = "application/vnd.apache.parquet"


@pytest.fixture(autouse=True)
def _many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNX_SERVE_BLOCK_ROWS", "64")
    monkeypatch.setenv("ONNX_SERVE_CHUNK_BYTES", "4096")


def run(model_dir: Path, output: Path, *arguments: object) -> int:
    return main(["transform", "--model-dir", str(model_dir), "--output", str(output), *map(str, arguments)])


def session_run(model: Path, **inputs: Any) -> list[Any]:
    """The answers that everything is compared with."""
    answers: list[Any] = ort.InferenceSession(str(model)).run(None, inputs)
    return answers


def files(folder: Path) -> list[str]:
    return sorted(
        p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."
    )


# --- Parquet ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A model of two inputs and two outputs, with data in several row groups and files."""
    onnx_models.two_inputs(tmp_path / "model" / "m.onnx")
    generator = np.random.default_rng(1)
    a, b = generator.random((ROWS, 2), np.float32), generator.integers(-9, 9, ROWS)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, rows in (("one.parquet", slice(0, 600)), ("deep/two.parquet", slice(600, None))):
        columns = {
            "a": pa.FixedSizeListArray.from_arrays(pa.array(a[rows].ravel()), 2),
            "b": pa.array(b[rows]),
        }
        pq.write_table(pa.table(columns), tmp_path / "in" / name, row_group_size=150)
    return tmp_path / "in", a, b


def test_parquet_becomes_parquet_that_its_readers_find(
    tmp_path: Path, pairs: tuple[Path, np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    source, a, b = pairs
    assert run(tmp_path / "model", tmp_path / "out", source) == 0
    assert files(tmp_path / "out") == ["deep/two.parquet.out.parquet", "one.parquet.out.parquet"]
    one = pq.read_table(tmp_path / "out" / "one.parquet.out.parquet")
    two = pq.read_table(tmp_path / "out" / "deep" / "two.parquet.out.parquet")
    made = pa.concat_tables([one, two])
    expected_sum, expected_twice = session_run(tmp_path / "model" / "m.onnx", a=a, b=b)

    np.testing.assert_array_equal(np.array(made["sum"].to_pylist(), np.float32), expected_sum)
    np.testing.assert_array_equal(made["twice"].to_numpy(), expected_twice)
    assert f"{ROWS:,} rows" in capsys.readouterr().out
    assert run(tmp_path / "model", tmp_path / "out", source) == 0
    assert "0 done, 2 finished before" in capsys.readouterr().out
    assert run(tmp_path / "model", tmp_path / "out", source, "--overwrite") == 0
    assert "2 done, 0 finished before" in capsys.readouterr().out


def test_an_output_beside_its_input_is_no_input(
    tmp_path: Path, pairs: tuple[Path, np.ndarray, np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    source, _, _ = pairs
    assert run(tmp_path / "model", source, source) == 0
    assert run(tmp_path / "model", source, source, "--overwrite") == 0
    assert "2 files: 2 done" in capsys.readouterr().out
    assert len(files(source)) == 4


@pytest.mark.parametrize(
    ("options", "name"),
    [
        pytest.param([], "rows.csv.out.parquet", id="plain"),
        pytest.param(["--max-concurrent", "2"], "rows.csv.out", id="platform"),
    ],
)
def test_csv_to_parquet(tmp_path: Path, options: list[str], name: str) -> None:
    """As the platform runs it the output is called as the platform calls it."""
    model = onnx_models.linear(tmp_path / "model" / "m.onnx")
    rows = np.random.default_rng(2).random((ROWS, 4), np.float32)
    np.savetxt(tmp_path / "rows.csv", rows, "%.9g", ",")

    assert run(model.parent, tmp_path / "out", tmp_path / "rows.csv", "--accept", PARQUET, *options) == 0
    assert files(tmp_path / "out") == [name]
    made = pq.read_table(tmp_path / "out" / name)
    [expected] = session_run(model, x=rows)
    np.testing.assert_allclose(np.array(made["y"].to_pylist()), expected, rtol=1e-5)


def test_parquet_to_csv(tmp_path: Path, pairs: tuple[Path, np.ndarray, np.ndarray]) -> None:
    source, a, b = pairs
    assert run(tmp_path / "model", tmp_path / "out", source / "one.parquet", "--accept", "text/csv") == 0
    made = np.loadtxt(tmp_path / "out" / "one.parquet.out", delimiter=",")
    expected = session_run(tmp_path / "model" / "m.onnx", a=a[:600], b=b[:600])
    np.testing.assert_allclose(made, np.column_stack(expected), rtol=1e-6)


# --- RecordIO --------------------------------------------------------------------------------------------------


def recordio_bytes(rows: np.ndarray) -> bytes:
    """By protobuf, as MXNet's writers frame it."""
    framed = []
    for row in rows:
        record = recordio._messages()["Record"]()
        record.features.add(key="values").value.float32_tensor.values.extend(row.tolist())
        payload = record.SerializeToString()
        framed.append(struct.pack("<II", 0xCED7230A, len(payload)) + payload + bytes(-len(payload) % 4))
    return b"".join(framed)


def recordio_labels(data: bytes) -> Iterator[list[float]]:
    stream = io.BytesIO(data)
    while head := stream.read(8):
        magic, length = struct.unpack("<II", head)
        assert magic == 0xCED7230A
        record = recordio._messages()["Record"]()
        record.ParseFromString(stream.read(length))
        stream.read(-length % 4)
        [label] = record.label
        yield list(label.value.float32_tensor.values)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="plain"),
        pytest.param(
            ["--split-type", "recordio", "--max-payload-mb", "1", "--accept", RECORDIO], id="packed"
        ),
        pytest.param(["--split-type", "recordio", "--strategy", "single", "--accept", RECORDIO], id="single"),
        pytest.param(["--split-type", "none", "--accept", RECORDIO], id="whole"),
    ],
)
def test_recordio(tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Records keep their order however they are packed; without frames, one by one, too."""
    count = 50 if "single" in options else 40_000 if "--max-payload-mb" in options else ROWS
    model = onnx_models.linear(tmp_path / "model" / "m.onnx")
    rows = np.random.default_rng(3).random((count, 4), np.float32)
    data = recordio_bytes(rows)
    (tmp_path / "rows.recordio").write_bytes(data)

    assert run(model.parent, tmp_path / "out", tmp_path / "rows.recordio", *options) == 0
    made = list(recordio_labels((tmp_path / "out" / "rows.recordio.out").read_bytes()))
    np.testing.assert_allclose(made, session_run(model, x=rows)[0], rtol=1e-5)
    assert f"{count:,} rows" in capsys.readouterr().out
    assert "--max-payload-mb" not in options or len(data) > 1 << 20


def test_recordio_to_json_lines_record_by_record(tmp_path: Path) -> None:
    """Answers to single records are put one behind the other, a line each."""
    model = onnx_models.linear(tmp_path / "model" / "m.onnx")
    rows = np.random.default_rng(3).random((20, 4), np.float32)
    (tmp_path / "rows.rec").write_bytes(recordio_bytes(rows))
    options = ["--split-type", "recordio", "--strategy", "single", "--accept", "application/jsonlines", "--assemble-with", "line"]  # fmt: skip

    assert run(model.parent, tmp_path / "out", tmp_path / "rows.rec", *options) == 0
    made = [json.loads(line) for line in (tmp_path / "out" / "rows.rec.out").read_text().splitlines()]
    np.testing.assert_allclose(made, session_run(model, x=rows)[0], rtol=1e-5)


# --- NPY -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--max-payload-mb", "0"]], ids=["plain", "platform"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path: Path, options: list[str], order: Any) -> None:
    """The header of the answer, whose number of rows is known last, is right in the file too."""
    model = onnx_models.linear(tmp_path / "model" / "m.onnx")
    rows = np.random.default_rng(4).random((ROWS, 4), np.float32)
    np.save(tmp_path / "rows.npy", np.asarray(rows, order=order))

    assert run(model.parent, tmp_path / "out", tmp_path / "rows.npy", *options) == 0
    made = np.load(tmp_path / "out" / "rows.npy.out", allow_pickle=False)
    np.testing.assert_allclose(made, session_run(model, x=rows)[0], rtol=1e-6)


def test_several_outputs_of_npy_are_an_archive(tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", ["x"], ["minus"]), helper.make_node("Add", ["x", "x"], ["twice"])]
    outputs = [onnx_models.tensor(name, TensorProto.FLOAT, ["N", 2]) for name in ("minus", "twice")]
    model = onnx_models.save(
        tmp_path / "model" / "m.onnx", nodes, [onnx_models.tensor("x", TensorProto.FLOAT, ["N", 2])], outputs
    )
    rows = np.random.default_rng(6).random((ROWS, 2), np.float32)
    np.save(tmp_path / "x.npy", rows)

    assert run(tmp_path / "model", tmp_path / "out", tmp_path / "x.npy") == 0
    made = np.load(tmp_path / "out" / "x.npy.out", allow_pickle=False)
    for name, expected in zip(("minus", "twice"), session_run(model, x=rows), strict=True):
        np.testing.assert_array_equal(made[name], expected)


# --- images ----------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A folder of pictures, and their pixels as the model takes them."""
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    node = helper.make_node("GlobalAveragePool", ["x"], ["pooled"])
    flat = helper.make_node("Flatten", ["pooled"], ["y"])
    onnx_models.save(
        tmp_path / "model" / "m.onnx",
        [node, flat],
        [onnx_models.tensor("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [onnx_models.tensor("y", TensorProto.FLOAT, ["N", 3])],
    )
    (tmp_path / "in" / "cats").mkdir(parents=True)
    generator = np.random.default_rng(5)
    tensors = {}
    for name, size in (("a.png", (6, 8)), ("b.jpg", (16, 24)), ("cats/c.jpeg", (9, 9)), ("d.PNG", (1, 1))):
        pixels = generator.integers(0, 256, (*size, 3), np.uint8)
        image.fromarray(pixels).save(tmp_path / "in" / name)
        seen = np.asarray(image.open(tmp_path / "in" / name).convert("RGB"))
        tensors[name] = (seen.transpose(2, 0, 1)[None] / 255).astype(np.float32)
    return tmp_path / "in", tensors


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        pytest.param([], lambda text: json.loads(text)["predictions"], id="json"),
        pytest.param(["--accept", "text/csv"], lambda text: [text.strip().split(",")], id="csv"),
        pytest.param(["--accept", "application/jsonlines", "--max-concurrent", "2"],
                     lambda text: [json.loads(text)], id="as-the-platform"),
    ],
)  # fmt: skip
def test_a_folder_of_images(
    tmp_path: Path, images: tuple[Path, dict[str, np.ndarray]], options: list[str], shape: Any
) -> None:
    source, tensors = images
    assert run(tmp_path / "model", tmp_path / "out", source, *options) == 0
    assert files(tmp_path / "out") == sorted(f"{name}.out" for name in tensors)
    for name, tensor in tensors.items():
        made = np.array(shape((tmp_path / "out" / f"{name}.out").read_text()), np.float32)
        np.testing.assert_allclose(made, session_run(tmp_path / "model" / "m.onnx", x=tensor)[0], rtol=1e-5)


def test_a_damaged_image_fails_alone(
    tmp_path: Path, images: tuple[Path, dict[str, np.ndarray]], capsys: pytest.CaptureFixture[str]
) -> None:
    source, tensors = images
    (source / "b.jpg").write_bytes((source / "b.jpg").read_bytes()[:300])

    assert run(tmp_path / "model", tmp_path / "out", source) == 1
    assert files(tmp_path / "out") == sorted(f"{name}.out" for name in tensors if name != "b.jpg")
    assert "4 files: 3 done, 0 finished before, 1 failed; 3 rows" in capsys.readouterr().out


# --- results as they come --------------------------------------------------------------------------------------


def test_answers_are_in_the_hidden_output_before_the_file_is_done(tmp_path: Path) -> None:
    """What was answered is on disk while later blocks run, and the output's name is not there yet."""
    onnx_models.identity(tmp_path / "model" / "m.onnx", shape=("N", 64))
    np.savetxt(tmp_path / "rows.csv", np.ones((20_000, 64)), "%.1f", ",")
    partial = tmp_path / "out" / ".rows.csv.out.partial"
    sizes: list[int] = []

    def look(_rows: int) -> None:
        assert not (tmp_path / "out" / "rows.csv.out").exists()
        sizes.append(partial.stat().st_size)

    settings = load_settings(
        config_file=None,
        environ={"SAGEMAKER_BATCH": "true", "ONNX_SERVE_BLOCK_ROWS": "1024"},
        flags={"model_dir": str(tmp_path / "model")},
    )
    repository = Repository(settings, read_machine())
    repository.load()
    model = LocalModel(repository, look)
    found = find_inputs([str(tmp_path / "rows.csv")], tmp_path / "out")
    plan = Plan.whole_files(TransformJob(), 1)
    [result] = transform(found, OutputFolder(tmp_path / "out"), model, plan, Progress(io.StringIO(), 1, 1))
    model.close()

    assert (result.outcome, result.rows) == ("done", 20_000)
    assert sizes == sorted(sizes)
    assert 0 < sizes[len(sizes) // 2] < result.written_bytes
    assert files(tmp_path / "out") == ["rows.csv.out"]


def test_an_error_in_the_last_record_leaves_nothing_of_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx_models.linear(tmp_path / "model" / "m.onnx")
    (tmp_path / "rows.csv").write_text("1,2,3,4\n" * 20_000 + "1,2,3,x\n")

    assert run(tmp_path / "model", tmp_path / "out", tmp_path / "rows.csv") == 1
    assert "(line 20001, column 4)" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".onnx-serve-transform.job"]


def test_long_answers_need_no_room_in_the_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNX_SERVE_ANSWER_MEMORY_BYTES", "1000")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    onnx_models.linear(tmp_path / "model" / "m.onnx")
    (tmp_path / "rows.csv").write_text("1,2,3,4\n" * 5000)

    assert run(tmp_path / "model", tmp_path / "out", tmp_path / "rows.csv") == 0
    assert (tmp_path / "out" / "rows.csv.out").read_bytes().count(b"\n") == 5000
