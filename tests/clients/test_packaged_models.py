"""Models that somebody else trained, exported and ships, served and compared with onnxruntime in this process."""

import io
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
import pytest

from clients.conftest import ServePackaged
from clients.packaged_models import MODELS, Array, model_path
from serving import ServerProcess

triton: Any = pytest.importorskip(
    "tritonclient.http", reason="tritonclient is in the clients' environment: make test-clients"
)
from tritonclient.utils import np_to_triton_dtype  # noqa: E402 - after the skip

Feed: TypeAlias = Mapping[str, Array]

# The clients and what they are made of warn of their own business.
pytestmark = pytest.mark.filterwarnings("ignore")
RANDOM = np.random.default_rng(7)


def normal(*shape: int, scale: float = 0.1) -> Array:
    return (RANDOM.standard_normal(shape) * scale).astype(np.float32)


# Two requests to each model, of different shapes where it takes them.
FEEDS: dict[str, list[Feed]] = {
    "notes": [{"serving_default_input_2:0": normal(n, 43844, 1)} for n in (1, 2)],
    "file type": [{"bytes": RANDOM.integers(0, 257, (n, 2048), np.int32)} for n in (1, 5)],
    "orientation": [{"x": normal(n, 3, 224, 224, scale=1)} for n in (1, 3)],
    "text places": [{"x": normal(1, 3, size, 96, scale=1)} for size in (64, 160)],
    "text direction": [{"x": normal(n, 3, 48, 192, scale=1)} for n in (1, 4)],
    "text": [{"x": normal(2, 3, 48, width, scale=1)} for width in (96, 160)],
    "speech": [{"input": normal(n, 576), "state": normal(2, n, 128), "sr": np.array(16000)} for n in (1, 3)],
    "speech in sequence": [
        {"input": normal(n, 576), "h": normal(1, 1, 128), "c": normal(1, 1, 128)} for n in (1, 9)
    ],
    "pitch": [
        {"audio": normal(1, n), "fmin": np.array(60, np.float32), "fmax": np.array(800, np.float32)}
        for n in (4000, 16000)
    ],
}


@cache
def in_process(name: str) -> list[dict[str, Array]]:
    """The outputs for each feed, from onnxruntime in this process."""
    session = ort.InferenceSession(model_path(name))
    names = [spec.name for spec in session.get_outputs()]
    return [dict(zip(names, session.run(None, dict(feed)), strict=True)) for feed in FEEDS[name]]


def by_npz(server: ServerProcess, feed: Feed) -> dict[str, Array]:
    body = io.BytesIO()
    np.savez(body, **feed)  # type: ignore[arg-type]  # names of inputs are no names of arguments
    answer = server.post(body.getvalue(), "application/x-npz")
    assert answer.status_code == 200, answer.text
    return dict(np.load(io.BytesIO(answer.content)))


def by_json(server: ServerProcess, feed: Feed) -> dict[str, Array]:
    body = json.dumps({"inputs": {name: value.tolist() for name, value in feed.items()}})
    answer = server.post(body, "application/json")
    assert answer.status_code == 200, answer.text
    return {name: np.array(value) for name, value in answer.json()["outputs"].items()}


def by_tritonclient(server: ServerProcess, feed: Feed) -> dict[str, Array]:
    """The Open Inference Protocol with binary tensors."""
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=60) as client:
        [model] = client.get_model_repository_index()
        inputs = []
        for name, value in feed.items():
            tensor = triton.InferInput(name, value.shape, np_to_triton_dtype(value.dtype))
            inputs.append(tensor.set_data_from_numpy(value))
        result = client.infer(model["name"], inputs)
        return {
            output["name"]: result.as_numpy(output["name"]) for output in result.get_response()["outputs"]
        }


@pytest.mark.parametrize("ask", [by_npz, by_json, by_tritonclient])
@pytest.mark.parametrize("name", list(MODELS))
def test_answers_are_onnxruntimes(
    serve_packaged: ServePackaged,
    name: str,
    ask: Callable[[ServerProcess, Feed], dict[str, Array]],
) -> None:
    """Every output, by every way that carries several inputs; within what a cut into other blocks may change."""
    server = serve_packaged(name)
    for feed, expected in zip(FEEDS[name], in_process(name), strict=True):
        got = ask(server, feed)

        assert list(got) == list(expected)
        for output, value in expected.items():
            assert got[output].shape == value.shape
            np.testing.assert_allclose(got[output], value, rtol=1e-4, atol=1e-5)
