"""What Ray Data costs over the same session in one process: ``.venv-clients/bin/python bench/ray_overhead.py``.

One model, one table in memory, the same batches; both run three times in turn, the best of each counts. Ray's own
start and that of its actor are told apart from its rate.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import ray.data

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import onnx_models
from onnx_serve.ray import OnnxPredictor, batch_rows, predict

COLUMNS = 30


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    values = np.random.default_rng(1).random((rows, COLUMNS), np.float32)
    table = pa.table({f"f{i}": values[:, i] for i in range(COLUMNS)})
    with tempfile.TemporaryDirectory() as folder:
        onnx_models.linear(Path(folder) / "m.onnx", width=COLUMNS)
        size = batch_rows(folder)
        predictor = OnnxPredictor(folder)
        start = time.perf_counter()
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        started = time.perf_counter() - start
        ray.data.DataContext.get_current().enable_progress_bars = False
        dataset = ray.data.from_arrow([table.slice(i, 20 * size) for i in range(0, rows, 20 * size)])
        alone, with_ray = [], []
        for _ in range(3):
            start = time.perf_counter()
            for i in range(0, rows, size):
                predictor(table.slice(i, size))
            alone.append(time.perf_counter() - start)
            start = time.perf_counter()
            predict(dataset, folder, concurrency=1, batch_size=size).materialize()
            with_ray.append(time.perf_counter() - start)
        few = ray.data.from_arrow(table.slice(0, 10))
        start = time.perf_counter()
        predict(few, folder, concurrency=1, batch_size=size).materialize()
        first = time.perf_counter() - start
    print(f"batches of {size} rows, {rows} rows of {COLUMNS} columns")
    print(f"in process  {min(alone):6.2f} s  {rows / min(alone):12,.0f} rows/s")
    print(
        f"Ray Data    {min(with_ray):6.2f} s  {rows / min(with_ray):12,.0f} rows/s, of it {first:.2f} s for ten rows"
    )
    print(f"ray.init    {started:6.2f} s")


if __name__ == "__main__":
    main()
