"""What the engine grants, and the server within it: processors, memory, a temporary directory on disk or in memory."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import onnx_models
from image.container import Container, container

MIB = 1 << 20
WIDTH = 64
BODY_BYTES = 100_000_000
MACHINE = "from onnx_serve.machine import read_machine; m = read_machine(); print({})"
# Swap would let a container exceed its memory.
MEMORY_512 = ("--memory=512m", "--memory-swap=512m")
BATCH = {"SAGEMAKER_BATCH": "true", "SAGEMAKER_MAX_PAYLOAD_IN_MB": "100"}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``y = x @ W``, 64 columns to one: nearly all the time goes into reading the body."""
    folder = tmp_path_factory.mktemp("wide")
    onnx_models.linear(folder / "model.onnx", WIDTH, 1)
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def limited(wide: Path) -> Iterator[Container]:
    """512 MB of memory, one processor's time, the temporary directory on disk."""
    with container(*MEMORY_512, "--cpus=1", "--volume=/tmp", model=wide, env=BATCH) as running:
        yield running


def test_memory_limit_is_seen(limited: Container) -> None:
    assert limited.python(MACHINE.format("m.memory_limit_bytes")) == str(512 * MIB)


def test_processor_quota_is_seen(limited: Container) -> None:
    assert limited.python(MACHINE.format("m.cpus, m.quota")) == "1 1.0"


def test_processor_set_is_seen(wide: Path) -> None:
    with container("--cpuset-cpus=0", model=wide) as running:
        assert running.python(MACHINE.format("m.cpus")) == "1"


def csv_body(rows: np.ndarray) -> bytes:
    return b"\n".join(b",".join(b"%.9g" % value for value in row) for row in rows) + b"\n"


def json_lines_body(rows: np.ndarray) -> bytes:
    return "\n".join(json.dumps(row) for row in rows.tolist()).encode() + b"\n"


def npy_body(rows: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


@pytest.mark.parametrize(
    ("media_type", "encode"),
    [
        pytest.param("text/csv", csv_body, id="csv"),
        pytest.param("application/jsonlines", json_lines_body, id="jsonlines"),
        pytest.param("application/x-npy", npy_body, id="npy"),
    ],
)
def test_100_mb_stream_through_512_mb(
    limited: Container, media_type: str, encode: Callable[[np.ndarray], bytes]
) -> None:
    """Every row is answered, and the peak stays under the limit with the whole body in flight."""
    sample = np.random.default_rng(5).uniform(-1, 1, (500, WIDTH)).astype(np.float32)
    expected = sample @ (np.arange(WIDTH, dtype=np.float32) / 10)
    if media_type == "application/x-npy":
        repeats = BODY_BYTES // sample.nbytes
        body = encode(np.tile(sample, (repeats, 1)))
    else:
        repeats = BODY_BYTES // len(encode(sample))
        body = encode(sample) * repeats

    answer = limited.post(body, media_type, media_type, timeout_s=300)

    assert answer.status_code == 200, answer.text[:500]
    if media_type == "application/x-npy":
        got = np.load(io.BytesIO(answer.content)).ravel()
    else:
        got = np.array([json.loads(line) for line in answer.content.splitlines()], np.float32).ravel()
    np.testing.assert_allclose(got, np.tile(expected, repeats), rtol=1e-4, atol=1e-4)
    assert limited.state["Running"]
    assert not limited.state["OOMKilled"]


def test_body_that_memory_cannot_hold_is_refused(wide: Path) -> None:
    """With the temporary directory in memory a spooled body counts as memory."""
    options = ("--memory=160m", "--memory-swap=160m", "--read-only", "--tmpfs=/tmp")
    body = csv_body(np.zeros((1, WIDTH), np.float32)) * (BODY_BYTES // (2 * WIDTH))
    with container(*options, model=wide, env={**BATCH, "ONNX_SERVE_BODY_MEMORY_BYTES": "1000000"}) as running:
        answer = running.post(body, "text/csv", timeout_s=120)
        again = running.post(csv_body(np.zeros((2, WIDTH), np.float32)), "text/csv")

    assert answer.status_code in {413, 503, 507}
    assert answer.json()["error"]
    assert again.status_code == 200
