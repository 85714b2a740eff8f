"""Calibrations of real models: in this process for what is found, in a child for what may go wrong."""

import io
import json
import logging
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnx_models
import value_models
from calibrations import MIB
from codec_laws import signature
from onnx_models import BOOL, FLOAT, INT64, STRING, save, tensor
from onnx_serve.calibration_feeds import Feeder, element_count, read_sample, value_bytes
from onnx_serve.calibration_files import make_key
from onnx_serve.calibration_graph import arena_only, data_dependent, has_loops, operators_of
from onnx_serve.calibration_process import CalibrationProcess, CalibrationRequest
from onnx_serve.calibration_record import Calibration
from onnx_serve.calibration_stages import measure
from onnx_serve.model_files.onnx_file import read_onnx_file
from onnx_serve.tensors import MapTable, Signature

# So that coverage sees the child, too.
VARIABLES = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}


def request_for(path: Path, **changes: Any) -> CalibrationRequest:
    key = make_key(path, read_onnx_file(path), providers="auto", cpus=2, options={})
    request = CalibrationRequest(key, path.absolute(), path.stem, 2, 2 << 30, work_s=1.2)
    return replace(request, **changes)


@pytest.fixture
def calibrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Calibration]:
    """Measures in this process; the last record, whose predecessors must have been a story."""
    monkeypatch.chdir(tmp_path)

    def calibrate(path: Path, *, remarks: list[str] | None = None, **changes: Any) -> Calibration:
        records: list[Calibration] = []
        measure(request_for(path, **changes), records.append, ([] if remarks is None else remarks).append)
        stages = ["nothing", "loaded", "ran", "ladder", "all"]
        reached = [stages.index(record.reached) for record in records]
        assert reached == sorted(reached)
        assert all(record.origin == "guessed" and record.reason for record in records[:-1])
        return records[-1]

    return calibrate


def child(path: Path, timeout_s: float = 30, **changes: Any) -> Calibration:
    request = request_for(path, **{"work_s": 4.0, **changes})
    return CalibrationProcess(request, timeout_s, variables=VARIABLES).run()


def test_a_childs_remarks_reach_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sample = tmp_path / "sample.json"
    sample.write_text("{")
    record = child(onnx_models.linear(tmp_path / "m.onnx"), sample=sample)

    assert record.feed == "made up"
    assert "the sample is not used" in caplog.text


def check_whole(record: Calibration) -> None:
    """What holds for every calibration that came to its end."""
    assert (record.origin, record.reached, record.reason, record.fits) == ("measured", "all", "", True)
    assert record.rows_per_s > 0
    assert record.block_rows in [rung.rows for rung in record.ladder]
    assert record.reserve_bytes < 200 * MIB


def test_a_child_measures_a_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    record = child(onnx_models.linear(tmp_path / "m.onnx", width=30, outputs=5))

    check_whole(record)
    assert (record.slots, record.row_input_bytes, record.row_output_bytes) == (2, 120, 20)
    assert (record.row_elements, record.feed) == (30, "made up")
    assert record.ladder[0].rows == 1
    assert record.block_rows > 1
    assert record.arena_only
    assert not record.data_dependent
    assert record.arena_bytes > 0
    assert len(caplog.messages) == 1


def hidden(path: Path, width: int) -> Path:
    """FLOAT[N, 1] through a hidden layer that is all of a run's memory: ``4 * width`` bytes a row."""
    nodes = [
        helper.make_node("MatMul", ["x", "A"], ["h"]),
        helper.make_node("ReduceMax", ["h", "axis"], ["y"], keepdims=1),
    ]
    constants: dict[str, Any] = {"A": np.ones((1, width), np.float32), "axis": np.array([1], np.int64)}
    shape: onnx_models.Shape = ["N", 1]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return value_models.save(
        path, nodes, [tensor("x", FLOAT, shape)], [tensor("y", FLOAT, shape)], initializers
    )


def test_the_profile_tells_what_a_row_needs(calibrate: Callable[..., Calibration], tmp_path: Path) -> None:
    """A row has the hidden layer in the arena, which deals in chunks; weights are in it from the start."""
    row = 4 * 100_000
    record = calibrate(hidden(tmp_path / "m.onnx", 100_000))

    check_whole(record)
    assert row <= record.run_row_bytes <= 2 * row
    assert row <= record.arena_bytes <= 2 * row
    assert 3 * row <= record.warm_up_bytes <= 6 * row


def test_little_memory_makes_blocks_smaller_then_slots_fewer(tmp_path: Path) -> None:
    # 16 MB a row; the warm-up of three rows has left room for three.
    path = hidden(tmp_path / "m.onnx", 4_000_000)
    roomy = child(path)
    fewer = child(path, memory_bytes=roomy.session_bytes + 30 * MIB, slots=8)

    assert (roomy.slots, roomy.limited) == (2, False)
    assert fewer.limited
    assert fewer.slots < 8
    assert fewer.fits
    assert fewer.session_bytes + fewer.reserve_bytes <= fewer.memory_bytes


def test_a_budget_that_one_row_is_too_much_for_is_said_to_be(
    calibrate: Callable[..., Calibration], tmp_path: Path
) -> None:
    record = calibrate(onnx_models.linear(tmp_path / "m.onnx"), memory_bytes=MIB)

    assert (record.origin, record.reached, record.fits) == ("measured", "all", False)
    assert (record.slots, record.block_rows) == (1, 1)
    assert "one row it needs about" in record.reason
    assert "of 1 MiB" in record.reason


@pytest.mark.parametrize(
    ("build", "rows"),
    [
        (lambda path: onnx_models.linear(path, rows=16), 16),
        (onnx_models.company, 1),
        (onnx_models.positions, 1),
        (value_models.constant, 1),
        (value_models.any_shape, 1),
        (value_models.item, 1),
        (value_models.vectorizer, 1),
        (lambda path: value_models.echo(path, value_models.optional("x")), 1),
        (lambda path: value_models.cast(path, FLOAT, onnx.TensorProto.BFLOAT16), None),
        (lambda path: onnx_models.identity(path, STRING, ["N", 2]), None),
        (onnx_models.zipmap, None),
        (onnx_models.lookup, None),
        (value_models.scale, None),
        (lambda path: onnx_models.slow(path, iterations=2), None),
    ],
    ids=[
        "fixed rows", "alone", "no rows", "no input", "any shape", "sequence", "map", "optional",
        "bfloat16", "strings", "zipmap", "embedding", "default", "loop",
    ],
)  # fmt: skip
def test_every_kind_of_model_is_measured(
    calibrate: Callable[..., Calibration], tmp_path: Path, build: Callable[[Path], Path], rows: int | None
) -> None:
    record = calibrate(build(tmp_path / "m.onnx"))

    check_whole(record)
    if rows is not None:
        assert [rung.rows for rung in record.ladder] == [rows]
        assert not record.merges


def limitless(path: Path) -> Path:
    """Goes round for as long as its input is above zero, which made-up ones are."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Identity", ["v_in"], ["v_out"]),
        ],
        "body",
        [tensor("i", INT64, []), tensor("go_in", BOOL, []), tensor("v_in", FLOAT, ["N", 2])],
        [tensor("go_out", BOOL, []), tensor("v_out", FLOAT, ["N", 2])],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["go"], to=BOOL),
        helper.make_node("Loop", ["", "go", "x"], ["y"], body=body),
    ]
    return save(path, nodes, [tensor("x", FLOAT, ["N", 2])], [tensor("y", FLOAT, ["N", 2])])


def test_a_loop_without_end_is_ended_by_the_clock(tmp_path: Path) -> None:
    record = child(limitless(tmp_path / "m.onnx"), timeout_s=2)

    assert (record.origin, record.reached) == ("guessed", "nothing")
    assert "longer than 2 s" in record.reason


def explosive(path: Path, per_row: int = 1 << 33) -> Path:
    """A few hundred bytes that ask for eight gigabytes for every row."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["rows"]),
        helper.make_node("Mul", ["rows", "many"], ["count"]),
        helper.make_node("ConstantOfShape", ["count"], ["z"]),
        helper.make_node("ReduceSum", ["z"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    constants = {"first": np.array([0], np.int64), "many": np.array([per_row // 4], np.int64)}
    shape: onnx_models.Shape = ["N", 1]
    return save(path, nodes, [tensor("x", FLOAT, shape)], [tensor("y", FLOAT, shape)], constants)


def test_a_model_that_explodes_when_it_is_run_is_stopped_by_its_limit(tmp_path: Path) -> None:
    record = child(explosive(tmp_path / "m.onnx"), memory_bytes=300 * MIB)

    assert (record.origin, record.reached, record.fits) == ("guessed", "loaded", False)
    assert "memory" in record.reason
    assert "of 300 MiB" in record.reason


def test_a_model_whose_weights_do_not_fit_is_said_not_to(tmp_path: Path) -> None:
    # 100 MB of weights, which are there twice for a moment, beside what a child may have for itself.
    record = child(hidden(tmp_path / "m.onnx", 25_000_000), memory_bytes=20 * MIB)

    assert (record.origin, record.reached, record.fits) == ("guessed", "nothing", False)
    assert "of 20 MiB" in record.reason


def test_a_model_that_cannot_be_loaded_is_a_guess(
    calibrate: Callable[..., Calibration], tmp_path: Path
) -> None:
    record = calibrate(onnx_models.extension(tmp_path / "m.onnx"))

    assert (record.origin, record.reached, record.fits) == ("guessed", "nothing", True)
    assert "custom_op_libraries" in record.reason


def test_a_model_that_refuses_every_guess_is_a_guess(
    calibrate: Callable[..., Calibration], tmp_path: Path
) -> None:
    node = helper.make_node("Gather", ["table", "i"], ["y"])
    table = np.zeros((0, 2), np.float32)
    path = save(
        tmp_path / "m.onnx",
        [node],
        [tensor("i", INT64, ["N"])],
        [tensor("y", FLOAT, ["N", 2])],
        {"table": table},
    )
    record = calibrate(path)

    assert (record.origin, record.reached) == ("guessed", "loaded")
    assert "no made-up input runs: the model cannot run this input" in record.reason


def test_without_time_the_burst_is_left_out(calibrate: Callable[..., Calibration], tmp_path: Path) -> None:
    record = calibrate(onnx_models.linear(tmp_path / "m.onnx"), work_s=0.0)

    assert (record.origin, record.reached) == ("guessed", "ladder")
    assert "no time left" in record.reason
    assert len(record.ladder) == 1


npy = io.BytesIO()
np.save(npy, np.arange(24, dtype=np.float32).reshape(6, 4))
npz = io.BytesIO()
np.savez(npz, x=np.ones((3, 4), np.float32))


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("sample.json", b'{"instances": [[1, 2, 3, 4], [5, 6, 7, 8]]}', 2),
        ("sample.csv", b"1,2,3,4\n", 1),
        ("sample.jsonl", b"[1,2,3,4]\n[5,6,7,8]\n", 2),
        ("sample.npy", npy.getvalue(), 6),
        ("sample.npz", npz.getvalue(), 3),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_samples_of_every_format_are_fed(tmp_path: Path, name: str, content: bytes, rows: int) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    model = signature(("x", "float", ["N", 4]))

    feed = read_sample(path, model)
    feeder = Feeder(model, "sample", feed)
    assert len(feed["x"]) == feeder.rows == rows
    for count in (1, 2, 7):
        grown = feeder(count)
        assert grown is not None
        np.testing.assert_array_equal(grown["x"], feed["x"][np.arange(count) % rows])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("sample.json", b'{"instances": [[1, 2]]}', "expected"),
        ("sample.csv", b"a,b,c,d\ne,f,g,h\n", "is not used"),
        ("sample.jsonl", b"", "expected a record, got none"),
        ("sample.npy", b"\x93NUMPY\x01", "is not used"),
        ("sample.txt", b"1,2,3,4", "expected a file ending in"),
        ("sample.csv", None, "cannot be read"),
        ("sample.csv", b"1,2,3,4\n" * (1 << 21), "expected at most"),
    ],
    ids=["wrong width", "no numbers", "empty", "cut short", "no format", "absent", "too long"],
)
def test_a_bad_sample_is_a_remark_and_inputs_are_made_up(
    calibrate: Callable[..., Calibration], tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    sample = tmp_path / name
    if content is not None:
        sample.write_bytes(content)
    remarks: list[str] = []

    record = calibrate(onnx_models.linear(tmp_path / "m.onnx"), sample=sample, remarks=remarks, work_s=0.2)
    assert record.feed == "made up"
    assert len(remarks) == 1
    assert words in remarks[0]
    assert "made up" in remarks[0]


def test_a_good_sample_is_what_is_measured(calibrate: Callable[..., Calibration], tmp_path: Path) -> None:
    """Its values decide: made-up words are shorter, and a free dimension has its real size."""
    sample = tmp_path / "sample.jsonl"
    sample.write_text(json.dumps(["x" * 500] * 7))
    remarks: list[str] = []
    record = calibrate(
        onnx_models.identity(tmp_path / "m.onnx", STRING, ["N", "M"]), sample=sample, remarks=remarks
    )

    check_whole(record)
    assert (record.feed, record.row_input_bytes, record.row_elements) == ("sample", 3500, 7)
    assert remarks == []


def test_a_sample_that_the_model_refuses_is_a_remark(
    calibrate: Callable[..., Calibration], tmp_path: Path
) -> None:
    sample = tmp_path / "sample.csv"
    sample.write_text("1000\n")
    remarks: list[str] = []
    record = calibrate(onnx_models.lookup(tmp_path / "m.onnx"), sample=sample, remarks=remarks, work_s=0.2)

    assert record.feed == "made up"
    assert "the sample does not run" in remarks[0]


@pytest.mark.parametrize(
    ("model", "operators", "dependent", "arena"),
    [
        (signature(("x", "float", ["N", 4])), {"ai.onnx::MatMul": 1, "com.microsoft::Gelu": 1}, False, True),
        (signature(("x", "float", ["N", 4])), {"ai.onnx::NonZero": 1}, True, True),
        (signature(("x", "float", ["N", "M"])), {"ai.onnx::MatMul": 1}, True, True),
        (signature(("x", "float", ["N", 4])), None, True, False),
        (signature(("x", "string", ["N"])), {"ai.onnx::Identity": 1}, True, False),
        (signature(("x", "seq(tensor(float))", [])), {"ai.onnx::Identity": 1}, True, False),
        (signature(("x", "float", ["N", 4])), {"ai.onnx.ml::TreeEnsembleRegressor": 1}, False, False),
        (signature(("x", "float", ["N", 4]), ("n", "int64", ["N", 2])), {"ai.onnx::Resize": 1}, True, True),
        (signature(("x", "float", ["N", 4])), {"ai.onnx::Resize": 1}, False, True),
        (signature(("x", "int64", ["N", 64])), {"ai.onnx::Expand": 1}, False, True),
    ],
    ids=[
        "plain", "by value", "free dimension", "unknown graph", "strings", "sequence", "trees", "sizes as input",
        "constant sizes", "tokens",
    ],
)  # fmt: skip
def test_what_depends_on_more_than_rows_is_recognised(
    model: Signature, operators: dict[str, int] | None, *, dependent: bool, arena: bool
) -> None:
    assert data_dependent(model, operators) is dependent
    assert arena_only(model, operators) is arena


def test_graphs_that_do_not_tell_are_known_as_such(tmp_path: Path) -> None:
    ort = tmp_path / "m.ort"
    ort.write_bytes(b"\x08\0\0\0ORTM" + bytes(100))

    assert operators_of(ort) is None
    assert operators_of(tmp_path / "absent.onnx") is None
    assert not has_loops(None)
    assert has_loops(operators_of(limitless(tmp_path / "loop.onnx")))
    assert not has_loops(operators_of(onnx_models.linear(tmp_path / "m.onnx")))


def test_values_are_counted() -> None:
    values = {
        "a": np.ones((2, 3), np.float32),
        "b": np.array(["é", "ab"], object),
        "c": [np.ones(4, np.int64), {"k": 1.0}],
        "d": MapTable((1, 2), np.ones((5, 2), np.float32)),
        "e": None,
    }

    assert value_bytes(values) == 24 + 4 + 32 + 8 + 40
    assert element_count({**values, "d": None}) == 6 + 2 + 4 + 1


def test_feeds_have_no_more_than_their_share_of_memory() -> None:
    model = signature(("x", "float", ["N", 1 << 20]))
    feeder = Feeder(model, "made up", {"x": np.zeros((1, 1 << 20), np.float32)})

    assert feeder(8) is not None
    assert feeder(16) is None
    assert feeder.several(16) == []
    assert [len(feed["x"]) for feed in feeder.several(4)] == [4]


def test_rows_that_are_run_in_turn_are_distinct() -> None:
    model = signature(("x", "float", ["N", 4]))
    feeder = Feeder(model, "made up", {"x": np.zeros((1, 4), np.float32)})

    rows = np.concatenate([feed["x"] for feed in feeder.several(2)])
    assert len(np.unique(rows, axis=0)) == len(rows) == 128


START = [sys.executable, "-P", "-m", "onnx_serve.calibration"]


def test_the_child_offers_itself_to_the_kernel_and_ends_with_its_parent() -> None:
    """Its parent is killed while it waits for a request that never comes."""
    program = (
        "import os, pathlib, subprocess, time\n"
        f"child = subprocess.Popen([*{START!r}, str(os.getpid())], stdin=subprocess.PIPE)\n"
        "score = pathlib.Path(f'/proc/{child.pid}/oom_score_adj')\n"
        "while score.read_text().strip() != '1000': pass\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        watch = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        # Readable once the process has ended.
        ended, _, _ = select.select([watch], [], [], 30)
        os.close(watch)
    assert ended


def test_a_child_whose_parent_has_gone_does_nothing() -> None:
    result = subprocess.run(
        [*START, "1"], input=b"not even read", capture_output=True, timeout=60, check=False
    )

    assert (result.returncode, result.stdout, result.stderr) == (1, b"", b"")


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group of 300 MB; skipped where none can be made."""
    roots = {"memory.limit_in_bytes": Path("/sys/fs/cgroup/memory"), "memory.max": Path("/sys/fs/cgroup")}
    for limit, root in roots.items():
        group = root / f"onnx-serve-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(300 * MIB))
            yield group
        except OSError:
            continue
        else:
            return
        finally:
            group.rmdir()
    pytest.skip("no control group can be made here")


def test_the_kernel_kills_the_child_and_the_reason_says_so(tmp_path: Path, memory_group: Path) -> None:
    """With a budget larger than what there really is."""
    entering = (
        "import os, sys\n"
        f"open({str(memory_group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
        f"os.execv(sys.executable, [*{START!r}, sys.argv[1]])\n"
    )
    command = [sys.executable, "-c", entering]
    small = request_for(onnx_models.linear(tmp_path / "small.onnx"))
    large = request_for(explosive(tmp_path / "large.onnx", 1 << 29))

    assert CalibrationProcess(small, 60, command=command).run().origin == "measured"
    record = CalibrationProcess(large, 60, command=command).run()
    assert (record.origin, record.reached, record.fits) == ("guessed", "nothing", False)
    assert "killed, most likely because memory ran out" in record.reason
