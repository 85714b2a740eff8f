"""How fast batch jobs over files are, against what the same codec and session do without files, and what they hold.

    python -m bench.transform [--rows N] [--rounds N] [--large-mb N] [--pandas PYTHON]

Every ratio is of two things that took turns in one run of this program, so that a noisy neighbour hits both; the
median of the rounds is printed. Files are made in a temporary folder and removed.

ceiling         ``Inference`` called with the file's bytes in memory, the answer thrown away: all cores, no files.
job             ``transform`` in the same process, from a file to a file, forced to disk.
naive           what one writes first: the csv module, one array, one ``session.run``, the csv module.
pandas          the same with ``read_csv`` and ``to_csv``, where ``--pandas`` names a Python that has pandas.
--url           the whole command against a server on this machine, over the whole command with the model inside.
first result    the first bytes of the hidden output of a large file, and the first output of many small ones.
"""

import argparse
import csv
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from bench.invocations import build_mlp, serving
from onnx_serve.batch.input_files import find_inputs
from onnx_serve.batch.local_model import LocalModel
from onnx_serve.batch.output_folder import OutputFolder
from onnx_serve.batch.progress import Progress
from onnx_serve.batch.request_plan import Plan
from onnx_serve.batch.transform import transform
from onnx_serve.batch.transform_job import TransformJob
from onnx_serve.codecs.interface import Body
from onnx_serve.machine import read_machine
from onnx_serve.repository import Repository
from onnx_serve.settings import load_settings

WIDTH, CLASSES, TREES, DEPTH = 30, 3, 50, 6
_BLOCK_ROWS = 20_000


def build_forest(path: Path) -> None:
    """Complete trees with seeded splits: a classifier of 50 trees, 6 deep, over 30 features."""
    rng = np.random.default_rng(0)
    inner, nodes = 2**DEPTH - 1, 2 ** (DEPTH + 1) - 1
    trees, ids = np.repeat(np.arange(TREES), nodes), np.tile(np.arange(nodes), TREES)
    is_leaf = ids >= inner
    leaves = np.flatnonzero(is_leaf)
    node = helper.make_node(
        "TreeEnsembleClassifier",
        ["x"],
        ["label", "probabilities"],
        domain="ai.onnx.ml",
        classlabels_int64s=list(range(CLASSES)),
        nodes_treeids=trees.tolist(),
        nodes_nodeids=ids.tolist(),
        nodes_featureids=np.where(is_leaf, 0, rng.integers(0, WIDTH, len(ids))).tolist(),
        nodes_values=np.where(is_leaf, 0, rng.standard_normal(len(ids))).astype(float).tolist(),
        nodes_modes=["LEAF" if leaf else "BRANCH_LEQ" for leaf in is_leaf],
        nodes_truenodeids=np.where(is_leaf, 0, 2 * ids + 1).tolist(),
        nodes_falsenodeids=np.where(is_leaf, 0, 2 * ids + 2).tolist(),
        nodes_missing_value_tracks_true=[0] * len(ids),
        class_treeids=np.repeat(trees[leaves], CLASSES).tolist(),
        class_nodeids=np.repeat(ids[leaves], CLASSES).tolist(),
        class_ids=np.tile(np.arange(CLASSES), len(leaves)).tolist(),
        class_weights=(rng.random(len(leaves) * CLASSES) / TREES).tolist(),
        post_transform="NONE",
    )
    graph = helper.make_graph(
        [node],
        "forest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", CLASSES]),
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)


def write_csv(path: Path, *, rows: int = 0, size: int = 0) -> int:
    """So many rows, or bytes, of seeded numbers, the same block over and over; how many rows it has."""
    block = np.random.default_rng(1).standard_normal((_BLOCK_ROWS, WIDTH)).astype(np.float32)
    text = "".join(",".join(map(str, row)) + "\n" for row in block).encode()
    blocks = max(rows // _BLOCK_ROWS if rows else size // len(text), 1)
    with path.open("wb") as file:
        for _ in range(blocks):
            file.write(text)
    return blocks * _BLOCK_ROWS


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def naive(model: Path, source: Path, target: Path) -> None:
    """The loop that one writes first."""
    session = ort.InferenceSession(str(model))
    with source.open(newline="") as file:
        array = np.array([[float(cell) for cell in row] for row in csv.reader(file)], np.float32)
    outputs = [np.atleast_2d(output.T).T for output in session.run(None, {"x": array})]
    with target.open("w", newline="") as file:
        csv.writer(file).writerows(np.hstack(outputs).tolist())


# Whole and timed by itself, without its imports: pandas is in another environment.
_PANDAS = """
import os, sys, time
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np, onnxruntime as ort, pandas as pd
model, source, target = sys.argv[1:]
begin = time.perf_counter()
session = ort.InferenceSession(model)
array = pd.read_csv(source, header=None, dtype=np.float32).to_numpy()
outputs = [output.reshape(len(array), -1) for output in session.run(None, {"x": array})]
pd.concat([pd.DataFrame(output) for output in outputs], axis=1).to_csv(target, header=False, index=False)
print(time.perf_counter() - begin)
"""


def naive_pandas(python: str, model: Path, source: Path, target: Path) -> float:
    """Seconds of the loop with pandas."""
    line = [python, "-c", _PANDAS, *map(str, (model, source, target))]
    return float(subprocess.run(line, capture_output=True, check=True, text=True).stdout)


def compare(model_dir: Path, source: Path, rows: int, rounds: int, pandas: str) -> None:
    """Prints a job's rows per second over the ceiling's, and the naive loops'."""
    settings = load_settings(
        config_file=None, environ={"SAGEMAKER_BATCH": "true"}, flags={"model_dir": str(model_dir)}
    )
    # Two of the same: the job counts the rows of its own.
    repositories = [Repository(settings, read_machine()) for _ in range(2)]
    for repository in repositories:
        repository.load()
    inference = repositories[0].default()
    data = source.read_bytes()
    out = model_dir / "out"

    def ceiling() -> None:
        reply = inference(Body(io.BytesIO(data), len(data)), "text/csv", "text/csv")
        if not isinstance(reply.content, bytes):
            reply.content.close()

    model = LocalModel(repositories[1], lambda _rows: None)

    def job() -> None:
        files = find_inputs([str(source)], out)
        progress = Progress(io.StringIO(), len(files), len(data))
        plan = Plan.whole_files(TransformJob(), model.slots + 1)
        [result] = transform(files, OutputFolder(out), model, plan, progress)
        if result.rows != rows:
            raise SystemExit(f"expected {rows} rows, got {result}")

    ratios, rates = [], []
    for _ in range(rounds):
        took = seconds(ceiling), seconds(job)
        ratios.append(took[0] / took[1])
        rates.append([rows / second for second in took])
    slow = seconds(lambda: naive(model_dir / "model.onnx", source, out / "naive.csv"))
    fast = [statistics.median(column) for column in zip(*rates, strict=True)]
    print(
        f"{model_dir.name:8} ceiling {fast[0]:12,.0f} rows/s   job {fast[1]:12,.0f} rows/s   "
        f"job / ceiling {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})   "
        f"naive {rows / slow:10,.0f} rows/s, job / naive {fast[1] * slow / rows:.1f}"
    )
    if pandas:
        slow = naive_pandas(pandas, model_dir / "model.onnx", source, out / "pandas.csv")
        print(f"{'':8} pandas {rows / slow:10,.0f} rows/s, job / pandas {fast[1] * slow / rows:.1f}")
    model.close()
    repositories[0].close()
    shutil.rmtree(out)


# A process counts as its own peak what its parent held when it was made: between them stands a small one.
_MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
sys.exit(code)
"""


def command(*arguments: object) -> tuple[float, int]:
    """Runs ``onnx-serve transform``: seconds, and its peak memory in MiB."""
    line = [sys.executable, "-m", "onnx_serve", "transform", "--quiet", *map(str, arguments)]
    begin = time.perf_counter()
    measured = subprocess.run([sys.executable, "-c", _MEASURE, *line], capture_output=True, check=False)
    if measured.returncode:
        raise SystemExit(f"exit code {measured.returncode}: {line}")
    return time.perf_counter() - begin, int(measured.stdout)


def compare_url(model_dir: Path, source: Path, rounds: int) -> None:
    """Prints what a server in between costs."""
    out = model_dir / "out"
    split = ("--split-type", "line", "--accept", "text/csv")
    with serving(model_dir) as (port, _, _):
        url = ("--url", f"http://127.0.0.1:{port}")
        ways = {
            "in process": ("--model-dir", model_dir),
            "--url": url,
            "in process, mini-batches": ("--model-dir", model_dir, *split),
            "--url, mini-batches": (*url, *split),
        }
        took: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, options in ways.items():
                took[way].append(command(source, "--output", out, "--overwrite", *options)[0])
    base = took["in process"]
    for way, times in took.items():
        ratio = statistics.median(first / second for first, second in zip(base, times, strict=True))
        print(
            f"{way:26} {statistics.median(times):6.2f} s, speed over the first {ratio:.2f}, start-up included"
        )
    shutil.rmtree(out)


def first_result(model_dir: Path, source: Path, place: Path, what: str) -> None:
    """Prints when there is something at a place below the output folder, and when all is done."""
    out = model_dir / "out"
    begin = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "onnx_serve", "transform", "--quiet", str(source), "--output", str(out),
         "--model-dir", str(model_dir)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        while process.poll() is None:
            with suppress(OSError):
                if (out / place).stat().st_size:
                    break
            time.sleep(0.001)
        first = time.perf_counter() - begin
        process.wait()
    print(f"{what}: first result after {first:.2f} s, the last after {time.perf_counter() - begin:.2f} s")
    shutil.rmtree(out)


def write_many(folder: Path) -> None:
    """200 files of 100 rows."""
    folder.mkdir()
    line = ",".join(["0.5"] * WIDTH) + "\n"
    for number in range(200):
        (folder / f"{number:03}.csv").write_text(line * 100)


def compare_memory(model_dir: Path, folder: Path, large_mb: int) -> None:
    """Prints peak memory of a small and of a large file."""
    peaks = []
    for size_mb in (large_mb // 10, large_mb):
        source = folder / f"{size_mb}mb.csv"
        rows = write_csv(source, size=size_mb * 10**6)
        took, peak = command(source, "--output", folder / "out", "--overwrite", "--model-dir", model_dir)
        peaks.append(peak)
        print(f"{size_mb:6} MB: {peak} MiB at the peak, {took:.1f} s, {rows / took:,.0f} rows/s")
        source.unlink()
        shutil.rmtree(folder / "out")
    print(f"peak, large over small: {peaks[1] / peaks[0]:.2f}")


def main() -> None:
    """Runs everything and prints the tables."""
    parser = argparse.ArgumentParser(description="Speed and memory of batch jobs over files.")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the CSV file (default: 1000000)")
    parser.add_argument("--rounds", type=int, default=5, help="of every comparison (default: 5)")
    parser.add_argument(
        "--large-mb", type=int, default=1000, help="the larger file for memory (default: 1000)"
    )
    parser.add_argument("--pandas", metavar="PYTHON", default="", help="a Python with pandas and onnxruntime")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {"mlp": build_mlp, "forest": build_forest}
        source = folder / "rows.csv"
        rows = write_csv(source, rows=options.rows)
        print(
            f"{rows:,} rows x {WIDTH} columns, {source.stat().st_size / 1e6:.0f} MB of CSV, {os.cpu_count()} CPUs"
        )
        for model, build in models.items():
            (folder / model).mkdir()
            build(folder / model / "model.onnx")
            compare(folder / model, source, rows, options.rounds, options.pandas)
        compare_url(folder / "mlp", source, min(options.rounds, 3))
        first_result(folder / "mlp", source, Path(".rows.csv.out.partial"), "one large file")
        source.unlink()
        write_many(folder / "many")
        first_result(folder / "mlp", folder / "many", Path("000.csv.out"), "200 files of 100 rows")
        compare_memory(folder / "mlp", folder, options.large_mb)


if __name__ == "__main__":
    main()
