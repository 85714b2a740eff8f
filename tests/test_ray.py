"""``onnx_serve.ray`` without Ray: the callable as an actor calls it. tests/clients/test_ray.py has the real Ray."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import helper

import onnx_models
from onnx_serve import ray_command
from onnx_serve.batch.command_process import Terminated
from onnx_serve.batch.output_folder import OutputFolder
from onnx_serve.cli import main
from onnx_serve.errors import DecodeError, MismatchError, ModelError, RequestError, SettingsError
from onnx_serve.ray import OnnxPredictor, Written, actors, batch_rows, predict, transform_files
from onnx_serve.ray.actors import ActorPool, actor_pool

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
    monkeypatch.setattr(actors, "assigned", lambda: (1, 1.0))
    with pytest.raises(ModelError, match="CUDAExecutionProvider"):
        OnnxPredictor(tmp_path)


@pytest.mark.parametrize(
    ("machines", "choices", "expected"),
    [
        pytest.param([{"CPU": 16.0}], {}, (1, 15, 0), id="one-machine-but-a-cpu"),
        pytest.param([{"CPU": 16.0}] * 3, {}, (3, 15, 0), id="three-machines"),
        pytest.param([{"CPU": 16.0}, {"CPU": 4.0}], {}, (6, 3, 0), id="of-two-sizes"),
        pytest.param([{"CPU": 1.0}], {}, (1, 0.5, 0), id="one-cpu"),
        pytest.param([{"CPU": 2.0}], {}, (1, 1, 0), id="two-cpus"),
        pytest.param([{"CPU": 1.0}, {"CPU": 8.0}], {}, (15, 0.5, 0), id="a-small-one-and-a-large-one"),
        pytest.param([{"CPU": 33.0, "GPU": 4.0}], {}, (4, 8, 1), id="one-actor-a-gpu"),
        pytest.param([{"CPU": 9.0, "GPU": 1.0}, {"CPU": 64.0}], {}, (1, 8, 1), id="only-where-gpus-are"),
        pytest.param([{"CPU": 3.0, "GPU": 8.0}], {}, (4, 0.5, 1), id="fewer-cpus-than-gpus"),
        pytest.param([{"CPU": 9.0, "GPU": 1.0}], {"gpus": 0}, (1, 8, 0), id="no-gpu-by-choice"),
        pytest.param([{"CPU": 9.0, "GPU": 1.0}], {"gpus": 0.5}, (2, 4, 0.5), id="half-a-gpu"),
        pytest.param([{"CPU": 16.0}], {"cpus": 4}, (3, 4, 0), id="cpus-by-choice"),
        pytest.param([{"CPU": 4.0}], {"cpus": 4}, (1, 4, 0), id="all-cpus-by-choice"),
        pytest.param([{"CPU": 16.0}], {"actors": 2}, (2, 15, 0), id="actors-by-choice"),
        pytest.param([{"CPU": 16.0}], {"actors": 9, "cpus": 40, "gpus": 1}, (9, 40, 1), id="all-by-choice"),
        pytest.param([{"CPU": 0.0}, {"CPU": 8.0}], {}, (1, 7, 0), id="a-machine-without-cpus"),
    ],
)  # fmt: skip
def test_actors_use_what_the_cluster_has(
    machines: list[dict[str, float]], choices: dict[str, Any], expected: tuple[int, float, float]
) -> None:
    """And, unless by choice, never all CPUs of a machine: reading and writing need one."""
    assert actor_pool(machines, **choices) == ActorPool(*expected)


@pytest.mark.parametrize(
    ("machines", "choices"), [([{"CPU": 4.0}], {"gpus": 1}), ([{"CPU": 4.0}], {"cpus": 8}), ([], {})]
)
def test_an_actor_that_fits_no_machine(machines: list[dict[str, float]], choices: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="no machine of the cluster has"):
        actor_pool(machines, **choices)


class FakeRay(ModuleType):
    """What ``ray`` says of a cluster, for where it is not installed."""

    def __init__(self, *, initialized: bool, assigned: dict[str, float] | None = None) -> None:
        super().__init__("ray")
        self.data = ModuleType("ray.data")
        self.addresses: list[str | None] = []
        self._initialized = initialized
        self._assigned = assigned

    def is_initialized(self) -> bool:
        return self._initialized

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0}},
            {"Alive": False, "Resources": {"CPU": 64.0}},
        ]

    def get_runtime_context(self) -> "FakeRay":
        return self

    def get_assigned_resources(self) -> dict[str, float]:
        assert self._assigned is not None
        return self._assigned

    def init(self, address: str | None, **_options: Any) -> None:
        self.addresses.append(address)
        if address == "nowhere":
            raise ConnectionError("no cluster")


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeRay]:
    def make(**options: Any) -> FakeRay:
        fake = FakeRay(**options)
        monkeypatch.setitem(sys.modules, "ray", fake)
        monkeypatch.setitem(sys.modules, "ray.data", fake.data)
        return fake

    return make


def test_machines_that_live_are_counted(fake_ray: Callable[..., FakeRay]) -> None:
    fake_ray(initialized=True)
    assert actors.machines() == [{"CPU": 4.0, "GPU": 1.0}]
    fake_ray(initialized=False)
    assert actors.machines() == [{"CPU": 1.0}]


@pytest.mark.parametrize(
    ("initialized", "assigned", "expected"),
    [
        (True, {"CPU": 3.0, "GPU": 1.0}, (3, 1.0)),
        (True, {"CPU": 0.5}, (1, 0.0)),
        (True, None, (1, 0)),
        (False, {"CPU": 3.0}, (1, 0)),
    ],
)
def test_an_actor_takes_what_ray_gave_it(
    fake_ray: Callable[..., FakeRay], initialized: bool, assigned: dict[str, float] | None, expected: Any
) -> None:
    """In the driver, and outside of Ray, that is one CPU."""
    fake_ray(initialized=initialized, assigned=assigned)
    assert actors.assigned() == expected


def test_a_cluster_that_is_not_there_is_one_line(fake_ray: Callable[..., FakeRay]) -> None:
    fake = fake_ray(initialized=False)
    actors.connect()
    with pytest.raises(SettingsError, match='Ray: no cluster at "nowhere": "no cluster"'):
        actors.connect("nowhere")
    assert fake.addresses == [None, "nowhere"]


class FakeData:
    """Ray Data that reads one table and maps it in this process."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.read: list[str] = []
        self.options: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("read_"):
            raise AttributeError(name)

        def read(_paths: list[str], **_options: Any) -> FakeData:
            self.read.append(name)
            return self

        return read

    def ActorPoolStrategy(self, **sizes: int) -> dict[str, int]:  # noqa: N802  Ray's name
        return sizes

    def map_batches(self, call: Any, **options: Any) -> "FakeData":
        self.options = options
        made = call(*options["fn_constructor_args"], **options["fn_constructor_kwargs"])
        self.table = made(self.table)
        return self

    def write_parquet(self, folder: str) -> None:
        Path(folder).mkdir()
        pq.write_table(self.table, Path(folder) / "part.parquet")


@pytest.mark.parametrize(
    ("name", "table", "settings", "reader", "rows"),
    [
        ("a.parquet", {"i": [1, 2]}, {}, "read_parquet", (2, 0)),
        ("a.npy", {"data": [1, 2]}, {}, "read_numpy", (2, 0)),
        ("a.csv", {"f0": [1, 2]}, {}, "read_csv", (2, 0)),
        ("a.csv", {"text": ["1", "x", "99"]}, {"record_errors": "placeholder"}, "read_text", (3, 2)),
        ("a.jsonl", {"text": ["1", "2"]}, {}, "read_text", (2, 0)),
        ("a.ndjson", {"text": ["1", "{"]}, {"record_errors": "placeholder"}, "read_text", (2, 1)),
    ],
)  # fmt: skip
def test_how_files_are_read(  # noqa: PLR0913, PLR0917  the columns of a table
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_ray: Callable[..., FakeRay],
    name: str,
    table: dict[str, list[Any]],
    settings: dict[str, str],
    reader: str,
    rows: tuple[int, int],
) -> None:
    """By their kind, with actors of the size that the cluster gives; what was written says what it is."""
    fake = fake_ray(initialized=True, assigned={"CPU": 3.0})
    data = FakeData(pa.table(table))
    monkeypatch.setattr(fake, "data", data)
    onnx_models.lookup(tmp_path / "model" / "m.onnx")
    (tmp_path / name).touch()
    written = transform_files(
        [tmp_path / name], tmp_path / "out", tmp_path / "model", settings=settings, num_gpus=0
    )

    assert written == Written(1, *rows)
    assert data.read == [reader]
    assert (data.options["num_cpus"], data.options["num_gpus"]) == (3, None)
    assert data.options["compute"] == {"min_size": 1, "max_size": 1}
    assert data.options["batch_size"] == batch_rows(tmp_path / "model", num_cpus=3)


def test_names_in_csv_and_placeholders_do_not_go_together(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    with pytest.raises(SettingsError, match="without a line of names"):
        transform_files(
            [tmp_path / "a.csv"],
            tmp_path / "out",
            tmp_path,
            header=True,
            settings={"record_errors": "placeholder"},
        )


@pytest.mark.parametrize(
    ("lines", "options", "code", "words"),
    [
        ("1\n2\n", [], 0, "1 files: 1 files written; 2 rows\n"),
        (
            "1\nx\n",
            ["--record-errors", "placeholder"],
            4,
            "1 files: 1 files written; 2 rows, 1 bad records\n",
        ),
        ("1\nx\n", [], 1, ""),
    ],
)
def test_the_command_says_what_was_written(  # noqa: PLR0913, PLR0917  the columns of a table
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_ray: Callable[..., FakeRay],
    capsys: pytest.CaptureFixture[str],
    lines: str,
    options: list[str],
    code: int,
    words: str,
) -> None:
    fake = fake_ray(initialized=True, assigned={"CPU": 3.0})
    monkeypatch.setattr(fake, "data", FakeData(pa.table({"text": lines.splitlines()})))
    onnx_models.lookup(tmp_path / "model" / "m.onnx")
    (tmp_path / "a.jsonl").write_text(lines)
    arguments = ["transform", tmp_path / "a.jsonl", "--output", tmp_path / "out", "--model-dir", tmp_path / "model",
                 "--engine", "ray", "--gpus-per-actor", "0", *options]  # fmt: skip

    assert main(list(map(str, arguments))) == code
    captured = capsys.readouterr()
    assert captured.out == words
    assert ("onnx-serve: application/jsonlines: " in captured.err) is (code == 1)


def test_slots_are_whole() -> None:
    assert [ActorPool(1, cpus, 0).slots for cpus in (0.5, 1, 7)] == [1, 1, 7]


def test_a_kept_column_that_is_no_input_is_not_fed(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "linear" / "m.onnx")
    onnx_models.two_inputs(tmp_path / "two" / "m.onnx")
    table = pa.table({"id": ["p", "q"], **{f"f{i}": [1.0, 2.0] for i in range(4)}})

    assert OnnxPredictor(tmp_path / "linear", keep=["id"])(table).column_names == ["id", "y"]
    named = PAIRS.append_column("id", pa.array(["p", "q", "r"]))
    assert OnnxPredictor(tmp_path / "two", keep=["id", "b"])(named).column_names == [
        "id",
        "b",
        "sum",
        "twice",
    ]
    with pytest.raises(DecodeError, match="got 5 columns"):
        OnnxPredictor(tmp_path / "linear")(table)
    with pytest.raises(DecodeError, match="got 6 columns"):
        OnnxPredictor(tmp_path / "linear", keep=["f0"])(table.append_column("g", pa.array([1, 2])))


class TensorType(pa.ExtensionType):
    """A column of tensors as Ray has it: a list a row, and the shape of all."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        super().__init__(pa.large_list(pa.float32()), "test.tensor")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""


@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_rays_tensors_are_fed_as_arrays(tmp_path: Path, shape: tuple[int, ...]) -> None:
    onnx_models.identity(tmp_path / "m.onnx", shape=("N", *shape))
    rows = [[float(4 * row + i) for i in range(4)] for row in range(7)]
    chunks = [
        pa.ExtensionArray.from_storage(TensorType(shape), pa.array(rows[part], pa.large_list(pa.float32())))
        for part in (slice(0, 2), slice(2, 7))
    ]
    table = pa.table({"data": pa.chunked_array(chunks)}).slice(1)
    made = OnnxPredictor(tmp_path)(table)

    assert np.array(made["y"].to_pylist()).reshape(6, 4).tolist() == rows[1:]


LINES = pa.table({"text": ["[1, 2, 3, 4]", "[1, 2, 3]", "", "[5, 6, 7, 8]", '["x", 1, 1, 1]']})


def test_lines_are_decoded_as_the_server_does(tmp_path: Path) -> None:
    onnx_models.identity(tmp_path / "m.onnx")
    predictor = OnnxPredictor(tmp_path, lines="application/jsonlines")

    assert predictor(LINES.slice(3, 1))["y"].to_pylist() == [[5, 6, 7, 8]]
    with pytest.raises(RequestError, match="application/jsonlines: "):
        predictor(LINES)
    csv = OnnxPredictor(tmp_path, lines="text/csv; header=absent", keep=["text"])
    assert csv(pa.table({"text": ["1,2,3,4"]})).to_pylist() == [{"text": "1,2,3,4", "y": [1, 2, 3, 4]}]


def test_bad_records_have_nulls_and_what_is_wrong(tmp_path: Path) -> None:
    onnx_models.identity(tmp_path / "m.onnx")
    marking = {"record_errors": "placeholder"}
    made = OnnxPredictor(tmp_path, lines="application/jsonlines", settings=marking)(LINES)

    assert made["y"].to_pylist() == [[1, 2, 3, 4], None, None, [5, 6, 7, 8], None]
    assert [error is None for error in made["error"].to_pylist()] == [True, False, False, True, False]
    assert made["error"][4].as_py().startswith("application/jsonlines: ")
    bad = OnnxPredictor(tmp_path, lines="application/jsonlines", settings=marking)(LINES.slice(1, 2))
    assert bad.schema == made.schema


def test_bad_values_of_a_table_are_marked_and_bad_columns_are_not(tmp_path: Path) -> None:
    """What is wrong with every record is wrong with the job."""
    onnx_models.lookup(tmp_path / "lookup" / "m.onnx")
    predictor = OnnxPredictor(tmp_path / "lookup", settings={"record_errors": "placeholder"})
    made = predictor(pa.table({"i": [1, 99, 3, None, 0] * 20}))

    assert [row is None for row in made["y"].to_pylist()] == [False, True, False, True, False] * 20
    with pytest.raises(DecodeError, match="column"):
        predictor(pa.table({"i": [1], "j": [2]}))


def test_an_output_called_error_cannot_be_told_from_an_error(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["error"])
    onnx_models.save(
        tmp_path / "m.onnx",
        [node],
        [onnx_models.tensor("x", onnx_models.FLOAT, ["N"])],
        [onnx_models.tensor("error", onnx_models.FLOAT, ["N"])],
    )
    with pytest.raises(MismatchError, match='"error" has the name of an output'):
        OnnxPredictor(tmp_path, settings={"record_errors": "placeholder"})(pa.table({"x": [1.0]}))


def test_batch_rows_are_blocks_of_the_engine(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "m.onnx")
    assert batch_rows(tmp_path, num_cpus=3, settings={"block_rows": 10}) == 240


@pytest.mark.parametrize("names", [["a.csv", "b.parquet"], ["a.txt"], []])
def test_files_of_other_kinds(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).write_text("1\n")
    with pytest.raises(SettingsError, match=r"expected files of one kind, \.parquet, "):
        transform_files([tmp_path / "in"], tmp_path / "out", tmp_path, concurrency=1)


def test_a_folder_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.parquet").write_text("")
    with pytest.raises(SettingsError, match="expected an empty folder"):
        transform_files([tmp_path], tmp_path / "out", tmp_path, concurrency=1)


class Failing(FakeData):
    """Ray that fails when a part is written."""

    def __init__(self, table: pa.Table, error: BaseException) -> None:
        super().__init__(table)
        self.error = error

    def write_parquet(self, folder: str) -> None:
        super().write_parquet(folder)
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError("No space left"), 1, "No space left"),
        (KeyboardInterrupt(), 130, "stopped; nothing was written"),
        (Terminated(), 143, "stopped; nothing was written"),
    ],
)
def test_a_job_that_fails_leaves_nothing_that_could_be_taken_for_its_output(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_ray: Callable[..., FakeRay],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    words: str,
) -> None:
    """And what a killed one has left, under a name that readers leave out, is no obstacle to the next."""
    fake = fake_ray(initialized=True, assigned={"CPU": 1.0})
    monkeypatch.setattr(actors, "connect", lambda _address: None)
    monkeypatch.setattr("onnx_serve.ray.connect", lambda _address: None)
    monkeypatch.setattr(fake, "data", Failing(pa.table({"i": [1, 2]}), error))
    onnx_models.lookup(tmp_path / "model" / "m.onnx")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.parquet").touch()
    (tmp_path / "in" / "_SUCCESS").touch()
    out = tmp_path / "out"
    arguments = ["transform", str(tmp_path / "in"), "--engine", "ray", "--model-dir", str(tmp_path / "model")]

    assert main([*arguments, "--output", str(out)]) == code
    assert words in capsys.readouterr().err
    assert list(out.iterdir()) == []

    (out / "_partial").mkdir()
    (out / "_partial" / "half.parquet").touch()
    monkeypatch.setattr(fake, "data", FakeData(pa.table({"i": [1, 2]})))
    assert transform_files([tmp_path / "in"], out, tmp_path / "model", num_gpus=0) == Written(1, 2, 0)
    assert [path.name for path in out.iterdir()] == ["part.parquet"]


def test_two_jobs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").touch()
    with (
        OutputFolder(tmp_path / "out").lock(),
        pytest.raises(SettingsError, match="another run writes there"),
    ):
        transform_files([tmp_path / "a.parquet"], tmp_path / "out", tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--compression", "gzip"], "--compression: not with --engine ray"),
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
