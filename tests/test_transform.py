"""Batch jobs from the command line to the output files, with the model in this process."""

import csv
import gzip
import io
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

import onnx_models
from onnx_serve.batch import transform_command
from onnx_serve.batch.data_processing import DataProcessing
from onnx_serve.batch.input_files import InputFile, find_inputs
from onnx_serve.batch.json_path import parse_path
from onnx_serve.batch.output_folder import OutputFolder
from onnx_serve.batch.progress import Progress
from onnx_serve.batch.request_plan import Answered, Plan
from onnx_serve.batch.transform import FileResult, transform
from onnx_serve.batch.transform_job import TransformJob
from onnx_serve.cli import main
from onnx_serve.codecs.interface import Body
from onnx_serve.errors import InferenceError
from onnx_serve.execution_parameters import ExecutionParameters
from onnx_serve.inference import Reply
from serving import SAMPLES

WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3) / 10


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    onnx_models.linear(folder / "model.onnx")
    return folder


def run(model_dir: Path, output: Path, *arguments: object) -> int:
    return main(["transform", "--model-dir", str(model_dir), "--output", str(output), *map(str, arguments)])


def rows(count: int, first: int = 0) -> np.ndarray:
    return (np.arange(count * 4, dtype=np.float32).reshape(count, 4) + first) / 7


def csv_bytes(array: np.ndarray) -> bytes:
    return b"".join(b",".join(str(cell).encode() for cell in row) + b"\n" for row in array)


def read_csv(path: Path) -> np.ndarray:
    return np.array(list(csv.reader(path.read_text().splitlines())), np.float32)


def outputs(folder: Path) -> list[str]:
    """All files but the record of the job, which tells a rerun whose outputs these are."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name != ".onnx-serve-transform.job")


def test_every_format_comes_out_as_itself(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array, source = rows(50), tmp_path / "in"
    (source / "deep").mkdir(parents=True)
    (source / "a.csv").write_bytes(csv_bytes(array))
    (source / "b.jsonl").write_text("".join(json.dumps(row.tolist()) + "\n" for row in array))
    (source / "c.json").write_text(json.dumps({"instances": array.tolist()}))
    np.save(source / "deep" / "d.npy", array)
    np.savez(source / "e.npz", x=array)
    (source / "f.csv.gz").write_bytes(gzip.compress(csv_bytes(array)))
    out = tmp_path / "out"

    assert run(model_dir, out, source) == 0
    expected = array @ WEIGHTS
    assert outputs(out) == [
        "a.csv.out",
        "b.jsonl.out",
        "c.json.out",
        "deep/d.npy.out",
        "e.npz.out",
        "f.csv.gz.out",
    ]
    np.testing.assert_allclose(read_csv(out / "a.csv.out"), expected, rtol=1e-5)
    assert (out / "f.csv.gz.out").read_bytes() == (out / "a.csv.out").read_bytes()
    lines = (out / "b.jsonl.out").read_text().splitlines()
    np.testing.assert_allclose([json.loads(line) for line in lines], expected, rtol=1e-5)
    np.testing.assert_allclose(
        json.loads((out / "c.json.out").read_text())["predictions"], expected, rtol=1e-5
    )
    np.testing.assert_allclose(np.load(out / "deep" / "d.npy.out"), expected, rtol=1e-5)
    np.testing.assert_allclose(np.load(out / "e.npz.out")["y"], expected, rtol=1e-5)
    summary = capsys.readouterr().out
    assert summary.startswith("6 files: 6 done, 0 finished before, 0 failed; 300 rows, ")


def test_many_blocks_keep_their_order(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks run on several slots at once; the answer goes through a temporary file."""
    monkeypatch.setenv("ONNX_SERVE_BLOCK_ROWS", "64")
    monkeypatch.setenv("ONNX_SERVE_CHUNK_BYTES", "4096")
    monkeypatch.setenv("ONNX_SERVE_ANSWER_MEMORY_BYTES", "10000")
    array = rows(20_000)
    (tmp_path / "a.csv").write_bytes(csv_bytes(array))

    assert run(model_dir, tmp_path / "out", tmp_path / "a.csv") == 0
    np.testing.assert_allclose(read_csv(tmp_path / "out" / "a.csv.out"), array @ WEIGHTS, rtol=1e-4)


def test_accept_and_content_type_are_the_jobs_choice(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(csv_bytes(rows(3)))
    code = run(model_dir, tmp_path / "out", tmp_path / "data", "--content-type", "text/csv", "--accept", "application/jsonlines")  # fmt: skip

    assert code == 0
    assert len([json.loads(line) for line in (tmp_path / "out" / "data.out").read_text().splitlines()]) == 3


def test_a_model_without_rows_counts_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx_models.positions(tmp_path / "model" / "model.onnx")
    np.save(tmp_path / "a.npy", np.ones((5, 2), np.float32))

    assert run(tmp_path / "model", tmp_path / "out", tmp_path / "a.npy") == 0
    assert ", 0 failed; 1 rows, " in capsys.readouterr().out
    assert np.load(tmp_path / "out" / "a.npy.out").shape == (10, 2)


def test_a_job_may_run_in_any_thread(model_dir: Path, tmp_path: Path) -> None:
    """Only the main thread may take signals."""
    (tmp_path / "a.csv").write_bytes(csv_bytes(rows(1)))
    codes: list[int] = []
    thread = threading.Thread(
        target=lambda: codes.append(run(model_dir, tmp_path / "out", tmp_path / "a.csv"))
    )
    thread.start()
    thread.join(60)

    assert codes == [0]


def test_a_folder_of_several_models_is_exit_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        onnx_models.linear(tmp_path / "model" / f"{name}.onnx")
    (tmp_path / "a.csv").touch()

    assert run(tmp_path / "model", tmp_path / "out", tmp_path / "a.csv") == 3
    assert "there are 2 models (one, two)" in capsys.readouterr().err


def test_a_failed_file_leaves_nothing_and_the_others_go_on(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.csv").write_bytes(csv_bytes(rows(2)))
    (source / "b.csv").write_bytes(csv_bytes(rows(2)) + b"1,2,three,4\n")
    (source / "c.csv").write_bytes(b"1,2\n")
    (source / "d.txt").write_bytes(b"x")
    (source / "e.json.gz").write_bytes(b"no gzip")
    (source / "f.npy").symlink_to("nowhere")
    (source / "g.csv").write_bytes(csv_bytes(rows(2)))

    assert run(model_dir, out, source) == 1
    assert outputs(out) == ["a.csv.out", "g.csv.out"]
    captured = capsys.readouterr()
    assert captured.out.startswith("7 files: 2 done, 0 finished before, 5 failed; 4 rows, ")
    for words in (
        'b.csv: text/csv: expected a number, got "three" (line 3, column 3)',
        "c.csv: ",
        "d.txt: expected a file of .csv",
        "e.json.gz: gzip: Not a gzipped file",
        "f.npy: No such file or directory",
    ):
        assert f"onnx-serve: {words}" in captured.err
    assert "Traceback" not in captured.err


def test_finished_inputs_are_skipped_unless_they_changed(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name in ("a.csv", "b.csv", "c.csv"):
        (source / name).write_bytes(csv_bytes(rows(2)))
    assert run(model_dir, out, source) == 0
    (out / "a.csv.out").write_bytes(b"mine")
    (out / "b.csv.out").unlink()
    written = (out / "c.csv.out").stat().st_mtime_ns
    (source / "c.csv").write_bytes(csv_bytes(rows(5)))
    os.utime(source / "c.csv", ns=(written + 1, written + 1))
    capsys.readouterr()

    assert run(model_dir, out, source) == 0
    assert "3 files: 2 done, 1 finished before, 0 failed; 7 rows" in capsys.readouterr().out
    assert (out / "a.csv.out").read_bytes() == b"mine"
    assert run(model_dir, out, source, "--overwrite") == 0
    assert (out / "a.csv.out").read_bytes() == (out / "b.csv.out").read_bytes()


def test_another_job_does_not_add_to_the_outputs(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither another format nor another model: the folder would hold answers of both."""
    own = tmp_path / "own"
    onnx_models.linear(own / "model.onnx")
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.csv").write_bytes(csv_bytes(rows(2)))
    assert run(own, out, source) == 0
    (source / "b.csv").write_bytes(csv_bytes(rows(2)))

    assert run(own, out, source, "--accept", "application/json") == 2
    assert run(model_dir, out, source) == 2
    assert "holds outputs of another model or of other options" in capsys.readouterr().err
    assert outputs(out) == ["a.csv.out"]
    assert run(own, out, source) == 0
    onnx_models.linear(own / "model.onnx", outputs=2)
    assert run(own, out, source) == 2
    assert run(own, out, source, "--overwrite") == 0
    assert read_csv(out / "a.csv.out").shape == (2, 2)
    assert run(own, out, source, "--timeout-s", "5", "--quiet") == 0


def test_what_is_to_be_done_again_is_gone_if_it_fails(model_dir: Path, tmp_path: Path) -> None:
    """Else the next run would take the former output for this one's."""
    (tmp_path / "a.csv").write_bytes(csv_bytes(rows(2)))
    assert run(model_dir, tmp_path / "out", tmp_path / "a.csv") == 0
    written = (tmp_path / "out" / "a.csv.out").stat().st_mtime_ns
    (tmp_path / "a.csv").write_bytes(b"1,2\n")
    os.utime(tmp_path / "a.csv", ns=(written, written))

    assert run(model_dir, tmp_path / "out", tmp_path / "a.csv", "--overwrite") == 1
    assert outputs(tmp_path / "out") == []


def test_a_folder_that_cannot_be_written_to_is_exit_2(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_bytes(csv_bytes(rows(2)))
    (tmp_path / "out" / ".onnx-serve-transform.job.partial").mkdir(parents=True)

    assert run(model_dir, tmp_path / "out", tmp_path / "a.csv") == 2
    assert "onnx-serve: --output " in capsys.readouterr().err


def test_when_all_is_finished_no_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.csv").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "in.csv.out").touch()

    assert run(tmp_path / "no model here", tmp_path / "out", tmp_path / "in.csv") == 0
    assert "1 files: 0 done, 1 finished before" in capsys.readouterr().out
    assert run(tmp_path / "no model here", tmp_path / "out", tmp_path / "missing.csv") == 1
    assert "0 done, 0 finished before, 1 failed" in capsys.readouterr().out


def test_a_folder_may_be_input_and_output(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(csv_bytes(rows(2)))

    assert run(model_dir, tmp_path, tmp_path) == 0
    assert run(model_dir, tmp_path, tmp_path, "--overwrite") == 0
    assert outputs(tmp_path) == ["a.csv", "a.csv.out"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--max-payload-mb", "101"], 2, "--max-payload-mb"),
        (["--input-filter", "id"], 2, "--input-filter: expected a JSONPath that starts with $"),
        (["--output-filter", "$" * 70], 2, "--output-filter: expected a JSONPath of at most 63"),
        (["--url", "http://localhost:1"], 2, "--url and --model-dir"),
    ],
)
def test_wrong_arguments_are_exit_2(
    model_dir: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a.csv").touch()

    assert run(model_dir, tmp_path / "out", tmp_path / "a.csv", *arguments) == code
    assert words in capsys.readouterr().err


def test_no_model_is_exit_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").touch()
    (tmp_path / "model").mkdir()

    assert run(tmp_path / "model", tmp_path / "out", tmp_path / "a.csv") == 3
    assert outputs(tmp_path / "out") == []
    assert capsys.readouterr().err.count("\n") == 1


def test_two_runs_into_one_folder_are_exit_2(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_bytes(csv_bytes(rows(1)))
    with OutputFolder(tmp_path / "out").lock():
        assert run(model_dir, tmp_path / "out", tmp_path / "a.csv") == 2
    assert "another run writes there" in capsys.readouterr().err
    assert run(model_dir, tmp_path / "out", tmp_path / "a.csv") == 0


def test_a_full_disk_fails_the_file_and_leaves_no_half(model_dir: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk's: both are errors of write()."""
    (tmp_path / "big.csv").write_bytes(csv_bytes(rows(20_000)))
    (tmp_path / "small.csv").write_bytes(csv_bytes(rows(2)))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    result = subprocess.run(
        [sys.executable, "-m", "onnx_serve", "transform", "--model-dir", str(model_dir), "--output",
         str(tmp_path / "out"), str(tmp_path / "big.csv"), str(tmp_path / "small.csv")],
        capture_output=True, text=True, preexec_fn=limit, check=False, timeout=60,
    )  # fmt: skip

    assert result.returncode == 1, result.stderr
    assert "big.csv: cannot write the output: File too large" in result.stderr
    assert outputs(tmp_path / "out") == ["small.csv.out"]


def test_a_full_file_system(model_dir: Path, tmp_path: Path) -> None:
    """A real one of 256 KiB, in a mount namespace that goes with the command."""
    (tmp_path / "big.csv").write_bytes(csv_bytes(rows(20_000)))
    (tmp_path / "small.csv").write_bytes(csv_bytes(rows(2)))
    (tmp_path / "out").mkdir()
    arguments = ["-m", "onnx_serve", "transform", "--model-dir", model_dir, "--output", tmp_path / "out",
                 tmp_path / "big.csv", tmp_path / "small.csv"]  # fmt: skip
    script = 'mount -t tmpfs -o size=256k tmpfs "$1" || exit 77; out=$1; shift; "$@"; code=$?; ls -A "$out"; exit $code'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", tmp_path / "out", sys.executable, *arguments]
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=60)
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip("file systems cannot be mounted here")

    assert result.returncode == 1, result.stderr
    assert "big.csv: cannot write the output: No space left on device" in result.stderr
    assert "2 files: 1 done, 0 finished before, 1 failed" in result.stdout
    assert result.stdout.splitlines()[-2:] == [".onnx-serve-transform.job", "small.csv.out"]


def test_quiet_shows_the_summary_only(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(csv_bytes(rows(3)))
    command = [sys.executable, "-m", "onnx_serve", "transform", str(tmp_path / "a.csv")]
    command += ["--model-dir", str(model_dir), "--output", str(tmp_path / "out")]

    shown = [
        subprocess.run([*command, *more], capture_output=True, text=True, check=True, timeout=60).stderr
        for more in ([], ["--quiet", "--overwrite"])
    ]
    assert "INFO" in shown[0]
    assert shown[1] == ""


def test_a_temporary_directory_without_room_is_named(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compressed files are unpacked there."""
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(csv_bytes(rows(2)) * 500_000, 1))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))

    assert run(model_dir, tmp_path / "out", tmp_path / "a.csv.gz") == 1
    assert "a.csv.gz: cannot unpack it into the temporary directory: No such file" in capsys.readouterr().err


def test_killed_in_the_middle_a_rerun_completes(tmp_path: Path) -> None:
    """The killed run has one output, no half of another, and a lock that holds nobody up."""
    model_dir, source, out = tmp_path / "model", tmp_path / "in", tmp_path / "out"
    onnx_models.slow(model_dir / "model.onnx", iterations=20_000_000)
    source.mkdir()
    (source / "a.csv").write_text("0,0,0,0\n" * 3)
    (source / "b.csv").write_text("0,0,0,0\n" * 3 + "1,0,0,0\n")
    command = [sys.executable, "-m", "onnx_serve", "transform", "--model-dir", str(model_dir), "--output", str(out), str(source)]  # fmt: skip
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, env={**os.environ, "ONNX_SERVE_SLOTS": "1"}
    ) as process:
        _wait_for(out / "a.csv.out", process)
        process.kill()
    assert "a.csv.out" in outputs(out)
    assert "b.csv.out" not in outputs(out)
    assert (out / ".onnx-serve-transform.lock").exists()

    (source / "b.csv").write_text("0,0,0,0\n" * 4)
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert result.stdout.startswith("2 files: 1 done, 1 finished before, 0 failed; 4 rows"), result.stderr
    assert outputs(out) == ["a.csv.out", "b.csv.out"]


def _wait_for(path: Path, process: "subprocess.Popen[Any]") -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- bad records in their places -------------------------------------------------------------------------------

MARKED = ["--record-errors", "placeholder"]
BAD_CSV = b"1,2,3,4\nx,2,3,4\n5,6,7\n5,6,7,8\n"


def test_bad_records_are_answered_in_their_places_and_counted(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.csv").write_bytes(BAD_CSV)
    (source / "b.jsonl").write_text("[1,2,3,4]\n[1]\nnothing\n")
    (source / "c.csv").write_bytes(csv_bytes(rows(3)))

    assert run(model_dir, out, source, *MARKED) == 4
    lines = (out / "a.csv.out").read_text().splitlines()
    assert [line.count("ERROR") for line in lines] == [0, 3, 3, 0]
    answers = [json.loads(line) for line in (out / "b.jsonl.out").read_text().splitlines()]
    assert [isinstance(answer, dict) and list(answer) == ["error"] for answer in answers] == [
        False,
        True,
        True,
    ]
    captured = capsys.readouterr()
    assert "3 files: 3 done, 0 finished before, 0 failed; 10 rows, 4 bad records, " in captured.out
    assert (
        "onnx-serve: a.csv: 2 of 4 records are bad\nonnx-serve: b.jsonl: 2 of 3 records are bad\n"
        in captured.err
    )


def test_a_rerun_still_says_how_many_records_are_bad(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_bytes(BAD_CSV)
    (tmp_path / "b.csv").write_bytes(BAD_CSV)
    out = tmp_path / "out"
    assert run(model_dir, out, tmp_path / "a.csv", tmp_path / "b.csv", *MARKED) == 4
    (out / "b.csv.out").unlink()
    (tmp_path / "b.csv").write_bytes(csv_bytes(rows(1)))
    capsys.readouterr()

    for _ in range(2):
        assert run(model_dir, out, tmp_path / "a.csv", tmp_path / "b.csv", *MARKED) == 4
        assert ", 2 bad records, " in capsys.readouterr().out
    assert run(model_dir, out, tmp_path / "a.csv", tmp_path / "b.csv") == 2
    (tmp_path / "a.csv").write_bytes(csv_bytes(rows(1)))
    assert run(model_dir, out, tmp_path / "a.csv", tmp_path / "b.csv", *MARKED, "--overwrite") == 0
    assert "bad" not in capsys.readouterr().out


def test_a_failed_file_says_more_than_bad_records(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong with a whole file still fails it, and then that is the exit code."""
    (tmp_path / "a.csv").write_bytes(BAD_CSV)
    (tmp_path / "b.npy").write_bytes(b"no array")

    assert run(model_dir, tmp_path / "out", tmp_path / "a.csv", tmp_path / "b.npy", *MARKED) == 1
    assert "2 files: 1 done, 0 finished before, 1 failed; 4 rows, 2 bad records, " in capsys.readouterr().out


@pytest.mark.parametrize("strategy", ["multi", "single"])
def test_bad_records_in_a_join_stay_beside_their_input(
    model_dir: Path, tmp_path: Path, strategy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the platform's rules: the placeholder's columns are joined and filtered as an answer's are."""
    (tmp_path / "a.csv").write_bytes(b"one,1,2,3,4\ntwo,x,2,3,4\nthree,5,6,7,8\n")
    options = ["--split-type", "line", "--assemble-with", "line", "--accept", "text/csv", "--input-filter", "$[1:]",
               "--join-source", "input", "--output-filter", "$[0,-1]", "--strategy", strategy]  # fmt: skip

    assert run(model_dir, tmp_path / "out", tmp_path / "a.csv", *options, *MARKED) == 4
    made = [line.split(",") for line in (tmp_path / "out" / "a.csv.out").read_text().splitlines()]
    assert [row[0] for row in made] == ["one", "two", "three"]
    assert [row[1] == "ERROR" for row in made] == [False, True, False]
    assert "3 rows, 1 bad records, " in capsys.readouterr().out


def test_a_joined_object_has_the_error_as_its_output(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id":1,"x":[1,2,3,4]}\n{"id":2,"x":[1]}\n')
    options = ["--split-type", "line", "--assemble-with", "line", "--accept", "application/jsonlines",
               "--content-type", "application/jsonlines", "--input-filter", "$.x", "--join-source", "input",
               "--output-filter", "$['id','SageMakerOutput']"]  # fmt: skip

    assert run(model_dir, tmp_path / "out", tmp_path / "a.jsonl", *options, *MARKED) == 4
    good, bad = map(json.loads, (tmp_path / "out" / "a.jsonl.out").read_text().splitlines())
    assert (good["id"], bad["id"]) == (1, 2)
    assert list(bad["SageMakerOutput"]) == ["error"]


# --- as the platform -------------------------------------------------------------------------------------------


class Recorder:
    """A container that answers each line with a line, and keeps what it was asked."""

    def __init__(
        self,
        answered: ExecutionParameters | None = None,
        *,
        newline: bytes = b"\n",
        fails_on: bytes | None = None,
    ) -> None:
        self.counts_rows = False
        self.closed = False
        self.requests: list[tuple[bytes, str | None, str | None]] = []
        self._answered = answered
        self._newline = newline
        self._fails_on = fails_on

    def __call__(
        self, body: Body, content_type: str | None, accept: str | None, sink: BinaryIO | None = None
    ) -> Answered:
        data = body.stream.read()
        self.requests.append((data, content_type, accept))
        if self._fails_on is not None and self._fails_on in data:
            raise InferenceError("it fails")
        lines = [b"<" + line + b">" for line in data.split(b"\n") if line]
        content = b"\n".join(lines) + self._newline if lines else b""
        return Answered(Reply(accept or content_type or "", content, len(content)))

    def execution_parameters(self) -> ExecutionParameters | None:
        return self._answered

    def close(self) -> None:
        self.closed = True


def run_job(
    tmp_path: Path, files: dict[str, bytes], job: TransformJob, target: Recorder
) -> tuple[list[FileResult], dict[str, bytes]]:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir(exist_ok=True)
    for name, data in files.items():
        (source / name).write_bytes(data)
    job.check()
    plan = Plan.of_platform(job, target.execution_parameters())
    found = find_inputs([str(source)], out)
    results = list(transform(found, OutputFolder(out), target, plan, Progress(io.StringIO(), len(found), 1)))
    return results, {name: (out / name).read_bytes() for name in outputs(out)} if out.exists() else {}


def platform(**choices: Any) -> TransformJob:
    return TransformJob(platform=True, **choices)


def bodies(target: Recorder) -> list[bytes]:
    return [data for data, _, _ in target.requests]


MIB = 1 << 20


@pytest.mark.parametrize(
    ("choices", "answered", "expected"),
    [
        ({}, None, [b"a\nb\n"]),
        ({"split_type": "line"}, None, [b"a\nb\n"]),
        ({"split_type": "line", "batch_strategy": "SINGLE_RECORD"}, None, [b"a\n", b"b\n"]),
        ({"split_type": "line"}, ExecutionParameters(1, "SINGLE_RECORD", 6), [b"a\n", b"b\n"]),
        ({"split_type": "line", "batch_strategy": "MULTI_RECORD"}, ExecutionParameters(1, "SINGLE_RECORD", 6), [b"a\nb\n"]),
        ({"split_type": "line", "max_payload_mb": 0}, None, [b"a\nb\n"]),
        ({"split_type": "line", "max_payload_mb": 0, "batch_strategy": "SINGLE_RECORD"}, None, [b"a\n", b"b\n"]),
    ],
)  # fmt: skip
def test_strategy_and_split_type(
    tmp_path: Path, choices: dict[str, Any], answered: ExecutionParameters | None, expected: list[bytes]
) -> None:
    target = Recorder(answered)
    results, written = run_job(tmp_path, {"x.csv": b"a\nb\n"}, platform(**choices), target)

    assert bodies(target) == expected
    assert written == {"x.csv.out": b"<a>\n<b>\n"}
    assert [(result.outcome, result.rows) for result in results] == [("done", 2)]


def test_content_type_and_accept_are_sent_as_they_are(tmp_path: Path) -> None:
    """Without a choice Accept is not sent at all."""
    target = Recorder()
    run_job(tmp_path, {"x.csv": b"a\n"}, platform(), target)
    run_job(
        tmp_path, {"x.csv": b"a\n"}, platform(content_type="text/csv; header=absent", accept="a/b"), target
    )

    assert [request[1:] for request in target.requests] == [
        ("text/csv", None),
        ("text/csv; header=absent", "a/b"),
    ]


def test_payloads_are_packed_to_the_limit_and_answers_kept_in_order(tmp_path: Path) -> None:
    line = b"x" * 99_999 + b"\n"
    target = Recorder(ExecutionParameters(3, "MULTI_RECORD", 33))
    results, written = run_job(
        tmp_path, {"x.csv": line * 50}, platform(split_type="line", max_payload_mb=1), target
    )

    assert sorted(map(len, bodies(target))) == [1_000_000] * 5
    assert written["x.csv.out"] == (b"<" + line[:-1] + b">\n") * 50
    assert results[0].rows == 50


@pytest.mark.parametrize(
    ("assemble", "newline", "expected"),
    [
        ("none", b"\n", b"<a>\n<b>\n"),
        ("none", b"", b"<a><b>"),
        ("line", b"", b"<a>\n<b>\n"),
        ("line", b"\n", b"<a>\n<b>\n"),
    ],
)
def test_assemble_with(tmp_path: Path, assemble: Any, newline: bytes, expected: bytes) -> None:
    job = platform(split_type="line", batch_strategy="SINGLE_RECORD", assemble_with=assemble)
    _, written = run_job(tmp_path, {"x.csv": b"a\nb"}, job, Recorder(newline=newline))

    assert written == {"x.csv.out": expected}


@pytest.mark.parametrize(("strategy", "requests"), [("MULTI_RECORD", [b""]), ("SINGLE_RECORD", [])])
def test_an_empty_file_has_an_empty_output(tmp_path: Path, strategy: str, requests: list[bytes]) -> None:
    target = Recorder()
    _, written = run_job(
        tmp_path, {"x.csv": b""}, platform(split_type="line", batch_strategy=strategy), target
    )

    assert bodies(target) == requests
    assert written == {"x.csv.out": b""}


def test_one_failed_request_fails_its_file_only(tmp_path: Path) -> None:
    """With the records that it held, and no further requests than those under way."""
    target = Recorder(fails_on=b"bad")
    files = {"a.csv": b"1\n", "b.csv": b"1\nbad\n" + b"2\n" * 100, "c.csv": b"3\n"}
    results, written = run_job(
        tmp_path, files, platform(split_type="line", batch_strategy="SINGLE_RECORD"), target
    )

    assert written == {"a.csv.out": b"<1>\n", "c.csv.out": b"<3>\n"}
    assert [result.outcome for result in results] == ["done", "failed", "done"]
    assert results[1].error == "records 2 to 2: it fails"
    assert len(target.requests) < 10


@pytest.mark.parametrize(
    ("choices", "data", "words"),
    [
        ({"max_payload_mb": 1}, b"x" * (MIB + 1), "the file has 1048577 bytes, a request at most 1048576"),
        ({"max_payload_mb": 1, "split_type": "line"}, b"a\n" + b"x" * (MIB + 1), "record 2 is longer than"),
        ({"split_type": "recordio"}, b"not framed", "RecordIO: expected the magic number"),
        ({"split_type": "line", "processing": DataProcessing(parse_path("$[3]"))}, b"1,2\n", "input filter: .*no index 3"),
        ({"split_type": "line", "compression": "gzip"}, b"a\n", "gzip: Not a gzipped file"),
    ],
)  # fmt: skip
def test_what_cannot_be_sent_fails_its_file(
    tmp_path: Path, choices: dict[str, Any], data: bytes, words: str
) -> None:
    results, written = run_job(tmp_path, {"x.csv": data, "y.csv": data}, platform(**choices), Recorder())

    assert written == {}
    for result in results:
        assert result.outcome == "failed"
        assert re.search(words, result.error), result.error


def test_filters_and_join(tmp_path: Path) -> None:
    processing = DataProcessing(parse_path("$[1:]"), True, parse_path("$[0,-1]"))
    job = platform(split_type="line", assemble_with="line", accept="text/csv", processing=processing)
    target = Recorder()
    _, written = run_job(tmp_path, {"x.csv": b"id1,7,8\nid2,9,10\n"}, job, target)

    assert bodies(target) == [b"7,8\n9,10\n"]
    assert written == {"x.csv.out": b"id1,8>\nid2,10>\n"}


def test_json_lines_are_records_without_a_split_type_too(tmp_path: Path) -> None:
    """A filter or a join takes each line, as the media type says."""
    lines = b'{"id": 1, "x": 2}\n{"id": 2, "x": 3}\n'
    processing = DataProcessing(
        parse_path("$.x"), join=True, output_filter=parse_path("$['id','SageMakerOutput']")
    )
    job = platform(
        processing=processing, content_type="application/jsonlines", accept="application/jsonlines"
    )
    target = _Same()
    _, written = run_job(tmp_path, {"x.jsonl": lines}, job, target)

    assert bodies(target) == [b"2\n3\n"]
    assert written["x.jsonl.out"] == b'{"id":1,"SageMakerOutput":2}\n{"id":2,"SageMakerOutput":3}\n'


class _Same(Recorder):
    """A container that answers with what was sent."""

    def __call__(
        self, body: Body, content_type: str | None, accept: str | None, sink: BinaryIO | None = None
    ) -> Answered:
        data = body.stream.read()
        self.requests.append((data, content_type, accept))
        return Answered(Reply(accept or content_type or "", data, len(data)))


LONG = b"x" * 200_000


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        pytest.param(b'"%b, and more",2\n' % LONG, b'"%b, and more"\n' % LONG, id="a-long-cell"),
        pytest.param(b'"plain",2\n', b'"plain"\n', id="as-it-was-written"),
        pytest.param(b'5"8,2\n', None, id="a-bare-quote"),
        pytest.param(b'"a"b,2\n', None, id="behind-a-quoted-cell"),
    ],
)
def test_cells_of_csv_are_what_the_agents_reader_takes(
    tmp_path: Path, line: bytes, kept: bytes | None
) -> None:
    """For a filter and for a join; what is not filtered is not read at all."""
    only_first = DataProcessing(parse_path("$[0]"))
    target = _Same()
    [result], written = run_job(tmp_path, {"x.csv": line}, platform(processing=only_first), target)
    assert written == ({} if kept is None else {"x.csv.out": kept})
    assert ("a row of CSV as in RFC 4180" in result.error) is (kept is None)

    join = platform(processing=DataProcessing(join=True), accept="text/csv")
    _, joined = run_job(tmp_path, {"x.csv": line}, join, _Same())
    assert joined == ({} if kept is None else {"x.csv.out": line[:-1] + b"," + line})


def test_a_whole_json_document_is_filtered_and_joined(tmp_path: Path) -> None:
    class Echo(Recorder):
        def __call__(
            self, body: Body, content_type: str | None, accept: str | None, sink: BinaryIO | None = None
        ) -> Answered:
            return Answered(Reply("application/json", body.stream.read(), 0))

    job = platform(accept="application/json", processing=DataProcessing(parse_path("$.x"), join=True))
    _, written = run_job(tmp_path, {"x.json": b'{\n"id": 1,\n"x": [1, 2]}\n'}, job, Echo())

    assert json.loads(written["x.json.out"]) == {"id": 1, "x": [1, 2], "SageMakerOutput": [1, 2]}


def test_a_join_needs_one_format(tmp_path: Path) -> None:
    job = platform(accept="application/json", processing=DataProcessing(join=True))
    results, _ = run_job(tmp_path, {"x.csv": b"1\n"}, job, Recorder())

    assert "a join needs the same format for both" in results[0].error


class InFile(Recorder):
    """Gives every answer as a file, as a long one is."""

    def __call__(
        self, body: Body, content_type: str | None, accept: str | None, sink: BinaryIO | None = None
    ) -> Answered:
        reply = super().__call__(body, content_type, accept).reply
        assert isinstance(reply.content, bytes)
        return Answered(Reply(reply.media_type, io.BytesIO(reply.content), reply.length))


@pytest.mark.parametrize("split", ["none", "line"])
def test_long_answers_are_files_that_are_closed(tmp_path: Path, split: Any) -> None:
    results, written = run_job(tmp_path, {"x.csv": b"1\n2\n"}, platform(split_type=split), InFile())
    assert written == {"x.csv.out": b"<1>\n<2>\n"}
    assert results[0].rows == 2

    job = platform(split_type=split, processing=DataProcessing(output_filter=parse_path("$[-1]")))
    assert run_job(tmp_path, {"x.csv": b"1,2\n3,4\n"}, job, InFile())[1] == {"x.csv.out": b"2>\n4>\n"}


def test_a_payload_of_any_size_is_cut_all_the_same_for_a_filter(tmp_path: Path) -> None:
    """A filter works in memory; the container that wants any size gets the platform's default."""
    job = platform(split_type="line", processing=DataProcessing(parse_path("$[0]")))
    plan = Plan.of_platform(job, ExecutionParameters(2, "MULTI_RECORD", 0))

    assert (plan.max_bytes, plan.concurrent, plan.splits) == (6 * MIB, 2, True)


def test_not_enough_memory_fails_the_file(tmp_path: Path) -> None:
    class Small(Recorder):
        def __call__(
            self, body: Body, content_type: str | None, accept: str | None, sink: BinaryIO | None = None
        ) -> Answered:
            raise MemoryError

    results, _ = run_job(tmp_path, {"x.csv": b"1\n", "y.csv": b"1\n"}, platform(), Small())

    assert [result.error for result in results] == ["not enough memory"] * 2


def test_what_a_whole_file_is_asked_for_in_is_its_own_text_format(tmp_path: Path) -> None:
    """A server outside a batch job answers JSON where nothing is asked for."""
    files = {"a.csv": b"1\n", "b.jsonl": b"1\n", "c.json": b"1\n", "d.png": b"1\n", "e.npy": b"1\n"}
    source, target = tmp_path / "in", Recorder()
    source.mkdir()
    for name, data in files.items():
        (source / name).write_bytes(data)
    plan = Plan.whole_files(TransformJob(), 1)
    results = list(
        transform(
            find_inputs([str(source)], tmp_path),
            OutputFolder(tmp_path),
            target,
            plan,
            Progress(io.StringIO(), 5, 5),
        )
    )

    assert [accept for _, _, accept in target.requests] == ["text/csv", "application/jsonlines", "application/json", None, None]  # fmt: skip
    assert [result.outcome for result in results] == ["done"] * 5


def test_gzip_is_unpacked_before_it_is_split(tmp_path: Path) -> None:
    target = Recorder()
    _, written = run_job(
        tmp_path, {"x.csv.gz": gzip.compress(b"a\nb\n")}, platform(split_type="line"), target
    )

    assert bodies(target) == [b"a\nb\n"]
    assert written == {"x.csv.gz.out": b"<a>\n<b>\n"}


@pytest.mark.parametrize("name", ["x.csv", "x.recordio"])
def test_recordio(tmp_path: Path, name: str) -> None:
    frames = b"".join(struct.pack("<II", 0xCED7230A, 4) + payload for payload in (b"aaaa", b"bbbb"))
    target = Recorder()
    job = platform(
        split_type="recordio", batch_strategy="SINGLE_RECORD", content_type="application/x-recordio-protobuf"
    )
    results, _ = run_job(tmp_path, {name: frames}, job, target)

    assert bodies(target) == [b"aaaa", b"bbbb"]
    assert results[0].rows == 2


def test_no_more_requests_at_once_than_chosen(tmp_path: Path) -> None:
    """Three are under way together, and never a fourth."""
    barrier = threading.Barrier(3)
    running = threading.Semaphore(3)

    class Slow(Recorder):
        def __call__(
            self, body: Body, content_type: str | None, accept: str | None, sink: BinaryIO | None = None
        ) -> Answered:
            assert running.acquire(blocking=False)
            barrier.wait(10)
            running.release()
            return super().__call__(body, content_type, accept)

    job = platform(split_type="line", batch_strategy="SINGLE_RECORD", max_concurrent=3)
    results, written = run_job(tmp_path, {"x.csv": b"1\n2\n3\n", "y.csv": b"4\n5\n6\n"}, job, Slow())

    assert [result.outcome for result in results] == ["done", "done"]
    assert written["y.csv.out"] == b"<4>\n<5>\n<6>\n"


def test_stopping_leaves_nothing_half_done_and_closes_the_target(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name in ("a.csv", "b.csv", "c.csv"):
        (source / name).write_bytes(b"1\n" * 50)
    target = Recorder()
    files = [InputFile(path, path.name) for path in sorted(source.iterdir())]
    plan = Plan.of_platform(platform(split_type="line", batch_strategy="SINGLE_RECORD"), None)
    job = transform(files, OutputFolder(out), target, plan, Progress(io.StringIO(), 3, 1))
    assert next(job).name == "a.csv"
    job.close()

    assert target.closed
    assert outputs(out) == ["a.csv.out"]


def test_an_interrupt_in_the_middle_of_a_file_leaves_nothing_of_it(tmp_path: Path) -> None:
    class Interrupted(Recorder):
        def __call__(
            self, body: Body, content_type: str | None, accept: str | None, sink: BinaryIO | None = None
        ) -> Answered:
            if len(self.requests) == 10:
                raise KeyboardInterrupt
            return super().__call__(body, content_type, accept)

    target = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        run_job(
            tmp_path,
            {"x.csv": b"1\n" * 50},
            platform(split_type="line", batch_strategy="SINGLE_RECORD"),
            target,
        )

    assert target.closed
    assert outputs(tmp_path / "out") == []


def test_after_an_interrupt_no_file_is_read_on(tmp_path: Path) -> None:
    """The other file's request is stopped at its next read, however much there is to read."""
    errors: list[OSError] = []
    reading, closed = threading.Event(), threading.Event()

    class Interrupted(Recorder):
        def __call__(
            self, body: Body, content_type: str | None, accept: str | None, sink: BinaryIO | None = None
        ) -> Answered:
            if body.stream.read(1) == b"a":
                assert reading.wait(10)
                raise KeyboardInterrupt
            reading.set()
            assert closed.wait(10)
            try:
                return Answered(Reply("", body.stream.read(), 0))
            except OSError as ex:
                errors.append(ex)
                raise

        def close(self) -> None:
            closed.set()

    size = 3 * MIB
    with pytest.raises(KeyboardInterrupt):
        run_job(tmp_path, {"a": b"a" * size, "b": b"b" * size}, platform(content_type="text/csv", max_concurrent=2), Interrupted())  # fmt: skip

    assert [error.strerror for error in errors] == ["the job was stopped"]


@pytest.mark.parametrize(
    ("content", "words", "requests"),
    [
        pytest.param(b"bad,1\n" * 2_000_000, "records 1 to 174762: it fails", 1, id="first-piece"),
        pytest.param(b"1,2\n" * 1000 + b"x" * (MIB + 1), "record 1001 is longer than", 1, id="a-long-record"),
    ],
)
def test_a_failed_piece_fails_its_file_and_no_more_are_sent(
    tmp_path: Path, content: bytes, words: str, requests: int
) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    (tmp_path / "b.csv").write_bytes(b"1,2\n")
    target = Recorder(ExecutionParameters(1, "MULTI_RECORD", 1), fails_on=b"bad")
    found = find_inputs([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")], tmp_path / "out")
    plan = Plan.of_server(TransformJob(), target.execution_parameters())
    results = list(
        transform(found, OutputFolder(tmp_path / "out"), target, plan, Progress(io.StringIO(), 2, 1))
    )

    assert [result.outcome for result in results] == ["failed", "done"]
    assert words in results[0].error
    assert len(target.requests) == requests + (content[:1] == b"b")
    assert outputs(tmp_path / "out") == ["b.csv.out"]


@pytest.mark.parametrize("split", ["none", "line"])
def test_a_hidden_output_that_cannot_be_made_fails_its_file(tmp_path: Path, split: Any) -> None:
    (tmp_path / "out" / ".a.csv.out.partial").mkdir(parents=True)
    results, _ = run_job(tmp_path, {"a.csv": b"1\n", "b.csv": b"2\n"}, platform(split_type=split), Recorder())

    assert [result.outcome for result in results] == ["failed", "done"]
    assert results[0].error == "cannot write the output: Is a directory"


def test_an_output_that_cannot_be_made_fails_its_file(tmp_path: Path) -> None:
    (tmp_path / "out" / "a.csv.out").mkdir(parents=True)
    results, _ = run_job(tmp_path, {"a.csv": b"1\n", "b.csv": b"2\n"}, platform(), Recorder())

    assert [result.outcome for result in results] == ["failed", "done"]
    assert results[0].error.startswith("cannot write the output: ")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_job_with_its_code(tmp_path: Path, number: int, code: int) -> None:
    model_dir, out = tmp_path / "model", tmp_path / "out"
    onnx_models.slow(model_dir / "model.onnx", iterations=4_000)
    (tmp_path / "a.csv").write_text("0,0,0,0\n")
    (tmp_path / "b.csv").write_text("1,0,0,0\n" * 2000)
    # What a shell starts in the background ignores SIGINT, and so would everything below it.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "onnx_serve", "transform", "--model-dir", str(model_dir),
               "--output", str(out), str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]  # fmt: skip
    env = {**os.environ, "ONNX_SERVE_BLOCK_ROWS": "1", "ONNX_SERVE_SLOTS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        _wait_for(out / "a.csv.out", process)
        process.send_signal(number)
        printed, errors = process.communicate(timeout=60)

    assert process.returncode == code, errors
    assert printed.startswith("2 files: 1 done, 0 finished before, 0 failed")
    assert "stopped; the same command again does what is left" in errors
    assert outputs(out) == ["a.csv.out"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_first_file_ends_the_job_too(
    model_dir: Path,
    tmp_path: Path,
    number: int,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> list[InputFile]:
        signal.raise_signal(number)
        return []

    monkeypatch.setattr(transform_command, "find_inputs", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run(model_dir, tmp_path / "out", tmp_path) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert "stopped; the same command again" in capsys.readouterr().err


def test_a_reader_that_has_gone_stops_nothing(model_dir: Path, tmp_path: Path) -> None:
    """``onnx-serve transform ... | head``, and of standard error too."""
    (tmp_path / "a.csv").write_bytes(csv_bytes(rows(3)))
    (tmp_path / "b.csv").write_bytes(b"x\n")
    (tmp_path / "c.csv").write_bytes(csv_bytes(rows(3)))
    command = [sys.executable, "-m", "onnx_serve", "transform", "--model-dir", str(model_dir), "--output",
               str(tmp_path / "out"), *(str(tmp_path / name) for name in ("a.csv", "b.csv", "c.csv"))]  # fmt: skip
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(command, stdout=writing, stderr=writing) as process:
        os.close(writing)
        assert process.wait(60) == 1
    assert outputs(tmp_path / "out") == ["a.csv.out", "c.csv.out"]

    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE) as process:
        os.close(writing)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"Traceback" not in errors
    assert b"Broken" not in errors


def test_a_failure_is_one_line_whatever_the_file_is_called(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(b"a\n\x1b[31m\xff \xc3\xbc.csv")
    (tmp_path / name).write_bytes(b"x\n")

    assert run(model_dir, tmp_path / "out", tmp_path, "--quiet") == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("onnx-serve: ")]
    assert line.startswith("onnx-serve: a\\n\\x1b[31m\\udcff ü.csv: text/csv: ")


def test_an_output_that_is_a_file_is_exit_2(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_bytes(csv_bytes(rows(1)))

    assert run(model_dir, tmp_path / "a.csv", tmp_path / "a.csv") == 2
    assert "a.csv: expected a folder, got a file" in capsys.readouterr().err


def test_a_sample_model_as_the_platform_would_run_it(tmp_path: Path) -> None:
    """Split and packed or whole, the same records get the same answers."""
    model_dir = SAMPLES / "iris-classifier"
    (tmp_path / "iris.csv").write_bytes(csv_bytes(rows(500)))
    for name, options in {
        "plain": ["--accept", "text/csv"],
        "multi": ["--split-type", "line", "--accept", "text/csv"],
        "single": [
            "--split-type",
            "line",
            "--strategy",
            "single",
            "--accept",
            "text/csv",
            "--assemble-with",
            "line",
        ],
        "whole": ["--max-concurrent", "2"],
        "any": ["--max-payload-mb", "0"],
    }.items():
        assert run(model_dir, tmp_path / name, tmp_path / "iris.csv", *options) == 0
        assert (tmp_path / name / "iris.csv.out").read_bytes() == (
            tmp_path / "plain" / "iris.csv.out"
        ).read_bytes()
