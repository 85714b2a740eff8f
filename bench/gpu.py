"""What the engine makes of a GPU, against the same session fed from the GPU's own memory.

    python -m bench.gpu FOLDER [--models resnet18,transformer] [--rows 1,8,32] [--pairs N] [--seconds S] [--cpu] [--json FILE]

For a machine with driver 580 and onnxruntime-gpu 1.31 (CUDA 13); --cpu runs the same on processors, to try it out.

ceiling      rows a second of IO binding with inputs and outputs that stay on the GPU, as many threads as slots.
bound        the same slots through the model with SessionOptions(io_binding=True): copies counted.
plain        through the model as the server runs it.
engine       blocks from one caller through the engine, in order, as a request's are.

The ways take turns; ratios are of neighbours, with the 95 % interval of their median. Memory comes first, before
anything but the engine has used the GPU: what a calibration predicts over what NVML then counts.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort

from bench.intervals import ratio_interval
from bench.zoo_networks import PIXELS, VOCABULARY, resnet18, transformer
from onnx_serve import cuda
from onnx_serve.batching import Engine
from onnx_serve.calibration_device import DeviceMemory
from onnx_serve.calibration_files import make_key
from onnx_serve.calibration_process import CalibrationProcess, CalibrationRequest
from onnx_serve.calibration_record import Calibration
from onnx_serve.machine import read_gpus, read_machine
from onnx_serve.model import Model, SessionOptions, load_model
from onnx_serve.model_files.onnx_file import read_onnx_file
from onnx_serve.tensors import Feed

_TOKENS = 128
_CALIBRATION_S = 120
_MEMORY_S = 3.0
_WAYS = ("ceiling", "bound", "plain", "engine")
Way = Callable[[float], float]


class Case(NamedTuple):
    """A model and what it is fed."""

    save: Callable[[Path], None]
    feed: Callable[[int], Feed]


class Devices(NamedTuple):
    """What the sessions run on."""

    providers: tuple[str, ...]
    name: str


def _images(rows: int) -> Feed:
    return {"image": np.random.default_rng(rows).standard_normal((rows, 3, PIXELS, PIXELS), np.float32)}


def _tokens(rows: int) -> Feed:
    ids = np.random.default_rng(rows).integers(1, VOCABULARY, (rows, _TOKENS))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


CASES = {"resnet18": Case(resnet18, _images), "transformer": Case(transformer, _tokens)}


def _rows_per_s(rows: int, run: Callable[[int], object], seconds: float) -> float:
    """Of as many threads as there are slots, each running until the time is up."""
    start, done = threading.Barrier(cuda.CUDA_SLOTS), [0] * cuda.CUDA_SLOTS

    def work(slot: int) -> None:
        start.wait(60)
        deadline = time.perf_counter() + seconds
        while time.perf_counter() < deadline:
            run(slot)
            done[slot] += rows

    started = time.perf_counter()
    with ThreadPoolExecutor(cuda.CUDA_SLOTS) as pool:
        list(pool.map(work, range(cuda.CUDA_SLOTS)))
    return sum(done) / (time.perf_counter() - started)


def _ceiling(path: Path, devices: Devices, feed: Feed, rows: int) -> Way:
    """Inputs and outputs stay where the session computes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = max(read_machine().cpus // cuda.CUDA_SLOTS, 1)
    options.enable_mem_pattern = False
    given = cuda.with_defaults(None, read_gpus())
    providers = [(name, given.get(name, {})) for name in devices.providers]
    session = ort.InferenceSession(str(path), options, providers=providers)
    inputs = {name: ort.OrtValue.ortvalue_from_numpy(value, devices.name, 0) for name, value in feed.items()}
    bindings = []
    for _ in range(cuda.CUDA_SLOTS):
        binding = session.io_binding()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            binding.bind_output(output.name, devices.name, 0)
        bindings.append(binding)
    return lambda seconds: _rows_per_s(rows, lambda slot: session.run_with_iobinding(bindings[slot]), seconds)


def _through_model(model: Model, feed: Feed, rows: int) -> Way:
    return lambda seconds: _rows_per_s(rows, lambda _: model.run(feed), seconds)


def _through_engine(engine: Engine, feed: Feed, rows: int) -> Way:
    def measure(seconds: float) -> float:
        started = time.perf_counter()

        def blocks() -> Iterator[Feed]:
            while time.perf_counter() < started + seconds:
                yield feed

        done = sum(rows for _ in engine.map(blocks()))
        return done / (time.perf_counter() - started)

    return measure


def _load(path: Path, devices: Devices, *, io_binding: bool = False) -> Model:
    threads = max(read_machine().cpus // cuda.CUDA_SLOTS, 1)
    options = SessionOptions(devices.providers, intra_op_threads=threads, io_binding=io_binding)
    return load_model(path, path.stem, options)


def _calibrate(path: Path, case: Case, devices: Devices) -> Calibration:
    machine = read_machine()
    sample = path.with_name(f"{path.stem}.npz").absolute()
    np.savez(sample, **case.feed(4))
    request = CalibrationRequest(
        make_key(path, read_onnx_file(path), providers=devices.providers, cpus=machine.cpus, options={}),
        path.absolute(),
        path.stem,
        cuda.CUDA_SLOTS,
        machine.memory_available_bytes() // 2,
        work_s=20,
        sample=sample,
        providers=devices.providers,
    )
    return CalibrationProcess(request, _CALIBRATION_S).run()


def _memory(model: Model, record: Calibration, case: Case, before: DeviceMemory) -> dict[str, Any]:
    """What was predicted over what is taken after a burst like that of the calibration."""
    rows = record.block_rows
    engine = Engine(model.run, model.signature, slots=record.slots, block_rows=rows)
    _through_engine(engine, case.feed(rows), rows)(_MEMORY_S)
    engine.close()
    used = before.used()
    return {
        "block_rows": rows,
        "predicted_mib": record.device_needed_bytes >> 20,
        "used_mib": used >> 20,
        "predicted_over_used": round(record.device_needed_bytes / used, 3) if used else None,
        "cpu_time_share": round(record.cpu_time_share, 3),
        "cpu_operators": record.cpu_operators,
    }


def measure(
    path: Path, case: Case, devices: Devices, counts: Sequence[int], pairs: int, seconds: float
) -> dict[str, Any]:
    """All figures of one model.

    Args:
        path: Its file.
        case: What it is fed.
        devices: What it runs on.
        counts: Rows of a block.
        pairs: Turns of each way.
        seconds: Of a turn.
    """
    record = _calibrate(path, case, devices)
    before = DeviceMemory(next(iter(read_gpus()), None))
    plain = _load(path, devices)
    figures: dict[str, Any] = {"memory": _memory(plain, record, case, before), "rows": {}}
    bound = _load(path, devices, io_binding=True)
    for rows in counts:
        feed = case.feed(rows)
        engine = Engine(plain.run, plain.signature, slots=cuda.CUDA_SLOTS, block_rows=rows)
        ways = {
            "ceiling": _ceiling(path, devices, feed, rows),
            "bound": _through_model(bound, feed, rows),
            "plain": _through_model(plain, feed, rows),
            "engine": _through_engine(engine, feed, rows),
        }
        rates: dict[str, list[float]] = {name: [] for name in _WAYS}
        for turn in range(pairs + 1):
            for name, way in ways.items():
                rate = way(seconds)
                # The first turn looks for algorithms and fills arenas.
                if turn:
                    rates[name].append(rate)
        engine.close()
        figures["rows"][rows] = rates
    return figures


def _print(name: str, figures: dict[str, Any]) -> None:
    print(f"\n{name}: {json.dumps(figures['memory'])}")
    print("| rows | ceiling rows/s | bound / ceiling | plain / ceiling | engine / ceiling | bound / plain |")
    print("|---|---|---|---|---|---|")
    for rows, rates in figures["rows"].items():
        ratios = [ratio_interval(rates[way], rates["ceiling"]) for way in _WAYS[1:]]
        ratios.append(ratio_interval(rates["bound"], rates["plain"]))
        cells = " | ".join(map(str, ratios))
        print(f"| {rows} | {np.median(rates['ceiling']):.4g} | {cells} |", flush=True)


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="bench.gpu", description="The engine on a GPU against IO binding.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    devices = Devices((cuda.CUDA, "CPUExecutionProvider"), "cuda")
    if given.cpu:
        devices = Devices(("CPUExecutionProvider",), "cpu")
    print(f"{ort.package_name} {ort.__version__}, CUDA {ort.cuda_version or 'none'}")
    print("\n".join(read_machine().describe()))
    given.folder.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in given.models.split(","):
        path = given.folder / f"{name}.onnx"
        if not path.exists():
            CASES[name].save(path)
        counts = [int(rows) for rows in given.rows.split(",")]
        results[name] = measure(path, CASES[name], devices, counts, given.pairs, given.seconds)
        _print(name, results[name])
    if given.json is not None:
        given.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
