"""What only a GPU can show: answers, the limit of its memory, two streams, and figures against what is really used.

They run where there is an NVIDIA GPU and an onnxruntime with CUDA: ``pytest -m gpu tests/test_gpu.py``.
"""

import io
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import requests
from onnx import helper

from onnx_models import FLOAT, Shape, save, tensor
from onnx_serve import cuda
from onnx_serve.batching import Engine
from onnx_serve.errors import ModelError, OutOfMemory
from onnx_serve.machine import read_gpus, read_machine
from onnx_serve.model import Model, SessionOptions, load_model
from onnx_serve.nvml import NVML, Gpu
from onnx_serve.tensors import Feed
from serving import ServerProcess, start

MIB = 1 << 20
CPU = "CPUExecutionProvider"
ON_CUDA = (cuda.CUDA, CPU)
# TF32 would round what is multiplied to ten bits: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
EXACT = {cuda.CUDA: {"use_tf32": "0"}}
WIDTH = 64
# The arena and, outside of it, what CUDA's libraries load at a run.
OUTSIDE_BYTES = 512 * MIB
REASON = (
    "the installed onnxruntime has no CUDA"
    if cuda.CUDA not in ort.get_available_providers()
    else "there is no NVIDIA GPU that this process may use"
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda.CUDA not in ort.get_available_providers() or not read_gpus(), reason=REASON),
]


@pytest.fixture
def gpu() -> Gpu:
    return read_gpus()[0]


def convolutions(path: Path) -> Path:
    """FLOAT[N, 3, 64, 64] through two convolutions to FLOAT[N, 10]."""
    rng = np.random.default_rng(1)
    weights = {
        "K": rng.standard_normal((32, 3, 3, 3)) / 5,
        "L": rng.standard_normal((32, 32, 3, 3)) / 17,
        "W": rng.standard_normal((32, 10)) / 6,
    }
    nodes = [
        helper.make_node("Conv", ["x", "K"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "L"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "W"], ["y"]),
    ]
    constants = {name: value.astype(np.float32) for name, value in weights.items()}
    return save(
        path, nodes, [tensor("x", FLOAT, ["N", 3, 64, 64])], [tensor("y", FLOAT, ["N", 10])], constants
    )


def attention(path: Path) -> Path:
    """FLOAT[N, S, 64], each place as a mean of all by likeness: a run needs S * S numbers a row, and more."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["x", "t"], ["scores"]),
        helper.make_node("Mul", ["scores", "scale"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "x"], ["y"]),
    ]
    shape: Shape = ["N", "S", WIDTH]
    scale = np.array(1 / math.sqrt(WIDTH), np.float32)
    return save(path, nodes, [tensor("x", FLOAT, shape)], [tensor("y", FLOAT, shape)], {"scale": scale})


def on_the_cpu_alone(path: Path) -> Path:
    """A large product on the GPU, then an operator that CUDA has not."""
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"]),
        helper.make_node("Normalizer", ["h"], ["y"], domain="ai.onnx.ml", norm="L2"),
    ]
    width = 2048
    weights = {"W": np.eye(width, dtype=np.float32)}
    shape: Shape = ["N", width]
    return save(path, nodes, [tensor("x", FLOAT, shape)], [tensor("y", FLOAT, shape)], weights, ml=True)


def images(rows: int) -> Feed:
    return {"x": np.random.default_rng(rows).standard_normal((rows, 3, 64, 64), np.float32)}


def tokens(rows: int, length: int = 128) -> Feed:
    return {"x": np.random.default_rng(rows).standard_normal((rows, length, WIDTH), np.float32)}


CASES = [
    pytest.param(convolutions, images, id="convolutions"),
    pytest.param(attention, tokens, id="attention"),
]


def load(path: Path, **options: Any) -> Model:
    return load_model(path, path.stem, SessionOptions(**{"providers": ON_CUDA, **options}))


def used_bytes(gpu: Gpu, pid: int) -> int:
    """What a process has taken of a GPU; where it is not listed, what the GPU has lost since it was described."""
    own = NVML.used_bytes(gpu, pid)
    if own is not None:
        return own
    free = NVML.free_bytes(gpu)
    assert free is not None
    return gpu.free_bytes - free


def check_close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4 * float(np.abs(expected).max()))


@pytest.mark.parametrize("io_binding", [False, True], ids=["plain", "bound"])
@pytest.mark.parametrize(("build", "feed_of"), CASES)
def test_answers_are_those_of_the_cpu(
    tmp_path: Path, build: Callable[[Path], Path], feed_of: Callable[[int], Feed], *, io_binding: bool
) -> None:
    path = build(tmp_path / "m.onnx")
    device = load(path, provider_options=EXACT, io_binding=io_binding)
    host = load(path, providers=[CPU])

    assert device.providers[0] == cuda.CUDA
    for rows in (1, 3, 16):
        check_close(device.run(feed_of(rows))["y"], host.run(feed_of(rows))["y"])


def test_the_limit_is_what_is_free_less_a_margin(tmp_path: Path, gpu: Gpu) -> None:
    taken = load(convolutions(tmp_path / "m.onnx")).provider_options[cuda.CUDA]

    assert taken["arena_extend_strategy"] == "kSameAsRequested"
    assert 0.8 * cuda.budget_bytes(gpu) <= int(taken["gpu_mem_limit"]) <= gpu.total_bytes


def test_asked_for_by_name_it_must_start(tmp_path: Path) -> None:
    """A device that is not there is an error, and no silent step down to the CPU."""
    path = convolutions(tmp_path / "m.onnx")

    with pytest.raises(ModelError):
        load(path, provider_options={cuda.CUDA: {"device_id": "99"}})


def test_over_the_limit_a_run_fails_and_the_session_lives_on(tmp_path: Path, gpu: Gpu) -> None:
    """Blocks are halved until they fit; one row that cannot fit is told so, and the next one is answered."""
    limit = 256 * MIB
    path = attention(tmp_path / "m.onnx")
    before = used_bytes(gpu, os.getpid())
    model = load(path, provider_options={cuda.CUDA: {"gpu_mem_limit": limit, "use_tf32": "0"}})
    host = load(path, providers=[CPU])
    engine = Engine(model.run, model.signature, slots=2, block_rows=64)

    with pytest.raises(OutOfMemory, match="MiB"):
        # 1.6 GB of scores.
        list(engine.map([tokens(1, 20_000)]))
    feed = tokens(64, 1024)
    with pytest.raises(OutOfMemory):
        # Twice 256 MiB of scores at once.
        model.run(feed)
    [*parts] = engine.map([feed])
    check_close(np.concatenate([part["y"] for part in parts]), host.run(feed)["y"])
    assert engine.block_rows < 64
    assert used_bytes(gpu, os.getpid()) - before <= limit + OUTSIDE_BYTES
    engine.close()


def test_shapes_that_grow_do_not_use_up_the_limit(tmp_path: Path) -> None:
    """Each length needs 40 MB or less; what shorter ones needed must not stay in the way."""
    limit = {cuda.CUDA: {"gpu_mem_limit": 128 * MIB}}
    model = load(attention(tmp_path / "m.onnx"), provider_options=limit)

    for length in range(100, 2000, 50):
        y: Any = model.run(tokens(1, length))["y"]
        assert np.isfinite(y).all()


@pytest.mark.parametrize(("build", "feed_of"), CASES)
def test_two_streams_at_once(
    tmp_path: Path, build: Callable[[Path], Path], feed_of: Callable[[int], Feed]
) -> None:
    """Runs that overlap answer as they would one by one."""
    model = load(build(tmp_path / "m.onnx"), provider_options=EXACT)
    feeds = [feed_of(rows) for rows in (1, 2, 3, 5, 8, 13)]
    alone = [model.run(feed)["y"] for feed in feeds]
    together = threading.Barrier(cuda.CUDA_SLOTS)

    def run(turn: int) -> None:
        together.wait(60)
        for step in range(30):
            index = (turn + step) % len(feeds)
            check_close(model.run(feeds[index])["y"], alone[index])

    with ThreadPoolExecutor(cuda.CUDA_SLOTS) as pool:
        list(pool.map(run, range(cuda.CUDA_SLOTS)))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers of one model, as a transform job would: measured before the first ping."""
    running = []

    def begin(build: Callable[[Path], Path], sample: Feed | None = None, **env: str) -> ServerProcess:
        build(tmp_path / "model/model.onnx")
        if sample is not None:
            (tmp_path / "model/sample.npy").write_bytes(npy(sample))
        variables = {
            "SAGEMAKER_BATCH": "true",
            "ONNX_SERVE_CALIBRATION": "auto",
            "ONNX_SERVE_PROVIDERS": "cuda,cpu",
            **env,
        }
        running.append(start(tmp_path / "model", tmp_path / "log", variables))
        return running[-1].__enter__()

    yield begin
    for process in running:
        process.__exit__(None, None, None)


def npy(feed: Feed) -> bytes:
    file = io.BytesIO()
    np.save(file, feed["x"])
    return file.getvalue()


def explained(server: ServerProcess) -> dict[str, dict[str, Any]]:
    answer = requests.get(f"{server.url}/execution-parameters?explain=true", timeout=60)
    return {term["name"]: term for term in answer.json()["explain"]["terms"]}


@pytest.mark.parametrize(("build", "feed_of"), CASES)
def test_predicted_memory_of_the_gpu_is_what_a_server_takes(
    server: Callable[..., ServerProcess],
    gpu: Gpu,
    build: Callable[[Path], Path],
    feed_of: Callable[[int], Feed],
) -> None:
    """Under requests that fill all slots, by NVML of the server's process."""
    running = server(build, feed_of(4))
    terms = explained(running)
    assert terms["calibration_origin"]["value"] == "measured", running.log
    predicted = terms["device_session_bytes"]["value"] + terms["device_runs_bytes"]["value"]
    rows = int(terms["block_rows"]["value"])
    body, peak, deadline = npy(feed_of(4 * rows)), 0, time.monotonic() + 5
    with ThreadPoolExecutor(4) as pool:
        while time.monotonic() < deadline:
            requests_ = [pool.submit(running.post, body, "application/x-npy") for _ in range(4)]
            assert {request.result().status_code for request in requests_} == {200}
            peak = max(peak, used_bytes(gpu, running.process.pid))

    assert 1.0 <= predicted / peak <= 1.3, (predicted, peak)


def test_a_record_too_large_for_the_gpu_is_507(server: Callable[..., ServerProcess]) -> None:
    """And the server answers what fits, before and after."""
    options = json.dumps({cuda.CUDA: {"gpu_mem_limit": 256 * MIB}})
    running = server(attention, ONNX_SERVE_PROVIDER_OPTIONS=options)

    statuses = [
        running.post(npy(tokens(1, length)), "application/x-npy").status_code for length in (64, 20_000, 64)
    ]
    assert statuses == [200, 507, 200], running.log


def test_what_stays_on_the_cpu_is_told(server: Callable[..., ServerProcess]) -> None:
    running = server(on_the_cpu_alone)
    terms = explained(running)

    assert terms["cpu_node_share"]["value"] > 0
    assert "Normalizer" in terms["cpu_time_share"]["source"]


def test_the_gpu_is_described() -> None:
    machine = read_machine()

    assert machine.has_gpu
    assert any(line.startswith("GPU 0: ") for line in machine.describe())
    assert NVML.driver_version() is not None
