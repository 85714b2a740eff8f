"""The Open Inference Protocol with its real client, ``tritonclient.http``; ``make test-clients`` runs this.

The client lives in an environment of its own, the server in the main one, whose Python ``SERVER_PYTHON`` names.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from serving import free_port

pytest.importorskip(
    "tritonclient.http", reason="tritonclient is in the clients' environment: make test-clients"
)
import ml_dtypes
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

SERVE = Path(__file__).with_name("serve_for_clients.py")
START_S = 60
VALUES: dict[str, Any] = {
    "BYTES": np.array([["a", "é"], ["", "x" * 300]], object),
    "BOOL": np.array([[True, False]]),
    "INT8": np.array([[-128, 127]], np.int8),
    "INT16": np.array([[-32768, 32767]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1], [2**53 + 1, 0]], np.int64),
    "UINT8": np.array([[0, 255]], np.uint8),
    "UINT16": np.array([[0, 65535]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1]], np.uint64),
    "FP16": np.array([[1.5, 65504]], np.float16),
    "BF16": np.array([[1.5, 3e38]], ml_dtypes.bfloat16),
    "FP32": np.array([[0.1, 3.4e38], [np.inf, -np.inf]], np.float32),
    "FP64": np.array([[0.1, 1e308]], np.float64),
}


@contextmanager
def running(folder: Path, **env: str) -> Iterator[str]:
    """``host:port`` of a server in multi or single mode."""
    port = free_port()
    python = os.environ.get("SERVER_PYTHON", sys.executable)
    with (folder.parent / "log").open("wb") as log:
        process = subprocess.Popen(
            [python, str(SERVE), str(folder), str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **env},
        )
    try:
        deadline = time.monotonic() + START_S
        while True:
            assert process.poll() is None, (folder.parent / "log").read_text()
            assert time.monotonic() < deadline
            try:
                if requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).status_code == 200:
                    break
            except requests.ConnectionError:
                time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(40)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with running(tmp_path_factory.mktemp("server") / "models") as address:
        yield triton.InferenceServerClient(address)


def tensor(name: str, array: Any, datatype: str, *, binary: bool = True) -> Any:
    value = triton.InferInput(name, array.shape, datatype)
    return value.set_data_from_numpy(array, binary_data=binary)


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.is_model_ready("lin")
    assert client.is_model_ready("lin", "1")
    assert not client.is_model_ready("lin", "2")
    assert not client.is_model_ready("broken")
    metadata = client.get_model_metadata("lin", "1")
    assert metadata["versions"] == ["1", "3"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert metadata["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}]


def test_index_names_what_is_broken(client: Any) -> None:
    index = {(entry["name"], entry["version"]): entry for entry in client.get_model_repository_index()}

    assert index["broken", "1"]["state"] == "UNAVAILABLE"
    assert "not an ONNX model" in index["broken", "1"]["reason"]
    assert index["pair", "1"]["state"] == "READY"


@pytest.mark.parametrize("datatype", VALUES)
@pytest.mark.parametrize("answer", [True, False], ids=["binary-out", "json-out"])
@pytest.mark.parametrize("request_", [True, False], ids=["binary-in", "json-in"])
def test_every_datatype_goes_round(client: Any, datatype: str, answer: bool, request_: bool) -> None:
    """What the client sends comes back to the bit; BF16 has no JSON form in the client."""
    value = VALUES[datatype]
    if datatype == "BF16" and not request_:
        with pytest.raises(InferenceServerException, match="BF16"):
            tensor("x", value, datatype, binary=False)
        return
    if datatype == "FP32" and not request_:
        value = value[:1]  # the client writes infinities as a word that JSON does not have
    wanted = [triton.InferRequestedOutput("y", binary_data=answer)]
    result = client.infer(
        datatype, [tensor("x", value, datatype, binary=request_)], outputs=wanted, request_id="7"
    )

    got = result.as_numpy("y")
    if datatype == "BYTES":
        got = np.array([t.decode() if isinstance(t, bytes) else t for t in got.ravel()], object).reshape(
            got.shape
        )
    np.testing.assert_array_equal(got, value)
    assert result.get_response()["id"] == "7"


@pytest.mark.parametrize("shape", [(0, 2), (1, 2), (3, 2)], ids=str)
def test_any_number_of_rows(client: Any, shape: tuple[int, int]) -> None:
    value = np.zeros(shape, np.float32)

    assert client.infer("FP32", [tensor("x", value, "FP32")]).as_numpy("y").shape == shape


def test_rank_zero(client: Any) -> None:
    assert client.infer("scalar", [tensor("x", np.array(2.5, np.float32), "FP32")]).as_numpy("y") == 2.5


def test_outputs_by_name_and_mixed(client: Any) -> None:
    """Binary beside JSON, in the order that is asked for; without a wish all are binary."""
    inputs = [
        tensor("a", np.ones((2, 2), np.float32), "FP32", binary=False),
        tensor("b", np.array([1, 2**60]), "INT64"),
    ]
    wanted = [
        triton.InferRequestedOutput("twice", binary_data=True),
        triton.InferRequestedOutput("sum", binary_data=False),
    ]
    result = client.infer("pair", inputs, outputs=wanted)

    first, second = result.get_response()["outputs"]
    assert (first["name"], first["parameters"]) == ("twice", {"binary_data_size": 16})
    assert (second["name"], "data" in second) == ("sum", True)
    np.testing.assert_array_equal(result.as_numpy("twice"), [2, 2**61])
    everything = client.infer("pair", inputs)
    assert all("binary_data_size" in out["parameters"] for out in everything.get_response()["outputs"])


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_requests(client: Any, coding: str) -> None:
    value = np.ones((500, 4), np.float32)
    result = client.infer(
        "lin",
        [tensor("x", value, "FP32")],
        model_version="1",
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
        parameters={"mine": 1},
        priority=1,
        timeout=10_000_000,
    )

    assert result.as_numpy("y").shape == (500, 3)
    assert result.get_response()["model_version"] == "1"


def test_asynchronous_requests(client: Any) -> None:
    value = np.arange(8, dtype=np.float32).reshape(2, 4)
    pending = [client.async_infer("alone", [tensor("x", value * k, "FP32")]) for k in range(20)]

    base = client.infer("alone", [tensor("x", value, "FP32")]).as_numpy("y")
    for k, request in enumerate(pending):
        np.testing.assert_allclose(request.get_result().as_numpy("y"), base * k, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "array", "status", "words"),
    [
        ("nothing", np.ones((1, 4), np.float32), "404", "no model"),
        ("..", np.ones((1, 4), np.float32), "400", "expected a model's name"),
        ("broken", np.ones((1, 4), np.float32), "404", "cannot be served"),
        ("alone", np.ones((1, 5), np.float32), "400", "expected FLOAT"),
    ],
)
def test_errors_are_the_clients(client: Any, model: str, array: Any, status: str, words: str) -> None:
    with pytest.raises(InferenceServerException, match=words) as error:
        client.infer(model, [tensor("x", array, "FP32")])
    assert error.value.status() == status


def test_messages_through_sagemaker(tmp_path: Path) -> None:
    """The client's messages on /models/<name>/invoke, as on /invocations, with the platform's media type."""
    media_type = "application/vnd.sagemaker-triton.binary+json"
    value = np.ones((2, 2), np.float32)
    body, length = triton.InferenceServerClient.generate_request_body([tensor("x", value, "FP32")])
    with running(tmp_path / "models", SAGEMAKER_MULTI_MODEL="true") as address:
        triton.InferenceServerClient(address).load_model("FP32")
        answer = requests.post(
            f"http://{address}/models/FP32/invoke",
            data=body,
            headers={"Content-Type": f"{media_type};json-header-size={length}"},
            timeout=30,
        )
    name, _, header_length = answer.headers["Content-Type"].partition(";json-header-size=")
    assert name == media_type
    result = triton.InferenceServerClient.parse_response_body(
        answer.content, header_length=int(header_length)
    )
    np.testing.assert_array_equal(result.as_numpy("y"), value)


def test_load_and_unload(tmp_path: Path) -> None:
    """The repository extension in multi mode."""
    with running(tmp_path / "models", SAGEMAKER_MULTI_MODEL="true") as address:
        client = triton.InferenceServerClient(address)
        assert client.is_server_ready()
        assert "model_repository" in client.get_server_metadata()["extensions"]
        assert not client.is_model_ready("alone")
        client.load_model("alone")
        client.load_model("alone")
        assert client.is_model_ready("alone")
        states = {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}
        assert (states["alone"], states["pair"]) == ("READY", "UNAVAILABLE")
        value = np.ones((2, 4), np.float32)
        assert client.infer("alone", [tensor("x", value, "FP32")]).as_numpy("y").shape == (2, 3)
        client.unload_model("alone")
        with pytest.raises(InferenceServerException, match="no model"):
            client.unload_model("alone")
        with pytest.raises(InferenceServerException, match="cannot be served"):
            client.load_model("broken")
        with pytest.raises(InferenceServerException, match="not supported"):
            client.load_model("alone", config="{}")
