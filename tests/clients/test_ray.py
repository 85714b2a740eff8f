"""``onnx_serve.ray`` with a real local Ray: results are those of the in-process run. ``make test-clients`` runs this."""

import io
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import onnx_models
from onnx_serve.cli import main
from onnx_serve.codecs.interface import Body
from onnx_serve.machine import read_machine
from onnx_serve.ray import OnnxPredictor, predict, transform_files
from onnx_serve.ray.actors import ActorPool, actor_pool, machines
from onnx_serve.repository import Repository
from onnx_serve.settings import load_settings

# Ray reports its use over the network unless told not to.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    ray: Any = pytest.importorskip("ray", reason="ray is in the clients' environment: make test-clients")
    data: Any = pytest.importorskip("ray.data")

# Ray and the libraries below it warn of their own business.
pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = 5_000
SAMPLES = Path(__file__).parents[2] / "sample_models"
ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Ray on this machine alone, two actors wide, with its workers able to import what the tests do."""
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, configure_logging=False,
             object_store_memory=200 << 20)  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def pairs() -> pa.Table:
    generator = np.random.default_rng(5)
    a = generator.random((ROWS, 2), np.float32)
    columns = {
        "a": pa.FixedSizeListArray.from_arrays(pa.array(a.reshape(-1)), 2),
        "b": pa.array(generator.integers(-9, 9, ROWS)),
    }
    return pa.table(columns)


def in_process(folder: Path, table: pa.Table) -> pa.Table:
    """The same rows through the one way of a request, in this process and in one piece."""
    repository = Repository(
        load_settings(config_file=None, environ={}, flags={"model_dir": str(folder)}), read_machine()
    )
    repository.load()
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    length = sink.tell()
    sink.seek(0)
    reply = repository.default()(Body(sink, length), ARROW, ARROW)
    content = reply.content if isinstance(reply.content, bytes) else reply.content.read()
    answer: pa.Table = pa.ipc.open_stream(content).read_all()
    repository.close()
    return answer


def plain(table: pa.Table) -> list[dict[str, Any]]:
    return table.combine_chunks().to_pylist()


def collected(dataset: Any) -> pa.Table:
    """All rows; blocks without rows carry a schema of their own."""
    tables = [block for block in ray.get(dataset.to_arrow_refs()) if block.num_rows]
    return pa.concat_tables(tables)


def test_many_inputs_and_outputs_equal_the_in_process_run(tmp_path: Path, pairs: pa.Table) -> None:
    onnx_models.two_inputs(tmp_path / "m.onnx")
    made = predict(data.from_arrow(pairs), tmp_path, concurrency=2, batch_size=700)

    assert plain(collected(made)) == plain(in_process(tmp_path, pairs))


def test_one_input_of_many_columns_with_kept_ones(tmp_path: Path) -> None:
    generator = np.random.default_rng(7)
    features = pa.table({f"f{i}": generator.random(ROWS) for i in range(4)})
    onnx_models.linear(tmp_path / "m.onnx")
    made = collected(predict(data.from_arrow(features), tmp_path, concurrency=1, batch_size=999, keep=["f2"]))

    assert made.column_names == ["f2", "y"]
    assert plain(made.select(["y"])) == plain(in_process(tmp_path, features))
    assert made["f2"].to_pylist() == features["f2"].to_pylist()


def test_a_classifier_of_the_samples(tmp_path: Path) -> None:
    """Labels and probabilities, from text: what the documents show."""
    request = json.loads((SAMPLES / "iris-classifier" / "request.json").read_text())
    rows = next(iter(request.values()))
    names = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    values = [list(row.values()) if isinstance(row, dict) else row for row in rows]
    flat = [row[0] if isinstance(row[0], list) else row for row in values]
    table = pa.table({name: [float(row[i]) for row in flat] for i, name in enumerate(names)})
    made = predict(data.from_arrow(table), SAMPLES / "iris-classifier", concurrency=1, num_cpus=2)

    assert plain(collected(made)) == plain(in_process(SAMPLES / "iris-classifier", table))


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl", "npy"])
def test_files_to_partitioned_files(tmp_path: Path, kind: str) -> None:
    generator = np.random.default_rng(3)
    onnx_models.linear(tmp_path / "model" / "m.onnx")
    folder = tmp_path / "in"
    folder.mkdir()
    parts = []
    for number in range(3):
        part = pa.table({f"f{i}": generator.random(100).round(3) for i in range(4)})
        parts.append(part)
        if kind == "csv":
            np.savetxt(folder / f"{number}.csv", np.array(part.columns).T, "%.3f", ",")
        elif kind == "jsonl":
            rows = zip(*(column.to_pylist() for column in part.columns), strict=True)
            (folder / f"{number}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        elif kind == "npy":
            np.save(folder / f"{number}.npy", np.array(part.columns).T)
        else:
            pq.write_table(part, folder / f"{number}.parquet")
    written = transform_files([folder], tmp_path / "out", tmp_path / "model", concurrency=2, batch_size=64)

    assert written.files == len(list((tmp_path / "out").glob("*.parquet"))) > 0
    assert (written.rows, written.bad_records) == (300, 0)
    made = pq.read_table(tmp_path / "out")
    expected = in_process(tmp_path / "model", pa.concat_tables(parts))
    assert sorted(map(str, plain(made))) == sorted(map(str, plain(expected)))


def test_without_a_choice_actors_are_what_the_cluster_holds(tmp_path: Path, pairs: pa.Table) -> None:
    """Of the three CPUs here two, and one for reading and writing; batches by the engine's blocks."""
    onnx_models.two_inputs(tmp_path / "m.onnx")
    made = predict(data.from_arrow(pairs), tmp_path, settings={"block_rows": 10}, keep=["b"])

    assert actor_pool(machines()) == ActorPool(1, 2, 0)
    assert plain(collected(made).select(["sum", "twice"])) == plain(in_process(tmp_path, pairs))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_bad_records_are_marked_where_they_stand(tmp_path: Path, kind: str) -> None:
    onnx_models.lookup(tmp_path / "model" / "m.onnx")
    records = [*range(10), 99, 3]
    if kind == "parquet":
        pq.write_table(pa.table({"i": records}), tmp_path / "a.parquet")
    else:
        (tmp_path / f"a.{kind}").write_text("".join(f"{record}\n" for record in records) + "x\n")
    written = transform_files([tmp_path / f"a.{kind}"], tmp_path / "out", tmp_path / "model",
                              settings={"record_errors": "placeholder"}, concurrency=1)  # fmt: skip

    bad = 1 if kind == "parquet" else 2
    assert (written.rows, written.bad_records) == (11 + bad, bad)
    made = pq.read_table(tmp_path / "out")
    assert sorted(filter(None, made["y"].to_pylist())) == sorted(
        [2.0 * i, 2.0 * i + 1] for i in [*range(10), 3]
    )


def test_settings_and_slots_reach_the_actor(tmp_path: Path) -> None:
    """What an actor sees of its share of the machine."""
    onnx_models.linear(tmp_path / "m.onnx")

    def look(table: pa.Table, folder: str) -> pa.Table:
        predictor = OnnxPredictor(folder, settings={"block_rows": 32})
        engine = predictor._repository.default().engine
        return pa.table({"slots": [engine.slots], "block_rows": [engine.block_rows]})

    made = data.from_arrow(pa.table({"x": [1]})).map_batches(
        look, fn_args=[str(tmp_path)], batch_format="pyarrow", num_cpus=2
    )
    assert made.take_all() == [{"slots": 2, "block_rows": 32}]


def test_errors_of_a_batch_reach_the_caller(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "m.onnx")
    wrong = data.from_arrow(pa.table({"x": [1.0], "y": [2.0]}))

    with pytest.raises(Exception, match="expected 4 columns of single values"):
        predict(wrong, tmp_path, concurrency=1, batch_size=10).take_all()


class TestCommand:
    """``onnx-serve transform --engine ray`` in the Ray that runs already."""

    def test_writes_what_the_in_process_run_answers(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        onnx_models.linear(tmp_path / "model" / "m.onnx")
        (tmp_path / "a.csv").write_text("1,2,3,4\n5,6,7,8\n")
        (tmp_path / "b.csv").write_text("9,10,11,12\n")
        code = main(["transform", str(tmp_path / "*.csv"), "--output", str(tmp_path / "out"), "--engine", "ray",
                     "--model-dir", str(tmp_path / "model"), "--keep", "f0"])  # fmt: skip

        assert code == 0
        printed = capsys.readouterr().out
        assert printed.startswith("2 files: ")
        assert printed.endswith("; 3 rows\n")
        table = pa.table({f"f{i}": [float(i + 1 + 4 * row) for row in range(3)] for i in range(4)})
        made = pq.read_table(tmp_path / "out").sort_by("f0")
        assert made["y"].to_pylist() == in_process(tmp_path / "model", table)["y"].to_pylist()

    def test_a_bad_record_is_told_in_the_servers_words(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        onnx_models.linear(tmp_path / "model" / "m.onnx")
        (tmp_path / "a.csv").write_text("1,2,3\n")
        code = main(["transform", str(tmp_path / "a.csv"), "--output", str(tmp_path / "out"), "--engine", "ray",
                     "--model-dir", str(tmp_path / "model")])  # fmt: skip

        assert code == 1
        assert "expected 4 columns of single values" in capsys.readouterr().err

    def test_bad_records_are_counted_and_are_the_exit_code(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        onnx_models.linear(tmp_path / "model" / "m.onnx")
        (tmp_path / "a.jsonl").write_text("[1,2,3,4]\n[1,2]\n")
        code = main(["transform", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "out"), "--engine", "ray",
                     "--model-dir", str(tmp_path / "model"), "--record-errors", "placeholder"])  # fmt: skip

        assert code == 4
        assert capsys.readouterr().out.endswith("; 2 rows, 1 bad records\n")
