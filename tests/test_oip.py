"""The Open Inference Protocol's paths over the wire of Falcon's test client, with hand-written bytes."""

import dataclasses
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from falcon.testing import TestClient

import onnx_models
from codec_laws import signature
from onnx_serve.admission import Admission
from onnx_serve.app import create_app
from onnx_serve.batching import Engine
from onnx_serve.codecs.interface import Body, CodecOptions
from onnx_serve.errors import EncodeError
from onnx_serve.inference import Limits
from onnx_serve.machine import read_machine
from onnx_serve.oip_inference import OipInference
from onnx_serve.repository import Repository
from onnx_serve.settings import Settings
from onnx_serve.tensors import Feed, Values

# 1.5 and -2 as IEEE 754 single precision, least byte first.
RAW = bytes.fromhex("0000c03f 000000c0")
HEADER = (
    b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}],'
    b'"parameters":{"binary_data_output":true}}'
)
LENGTH = "Inference-Header-Content-Length"
TRITON = "application/vnd.sagemaker-triton.binary+json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    onnx_models.identity(root / "model.onnx", shape=("N", 2))
    onnx_models.two_inputs(root / "pair.onnx")
    onnx_models.linear(root / "lin" / "1" / "model.onnx", outputs=3)
    onnx_models.linear(root / "lin" / "12" / "model.onnx", outputs=2)
    onnx_models.zipmap(root / "zipmap.onnx")
    onnx_models.identity(root / "my model.onnx", shape=("N", 2))
    (root / "broken.onnx").write_bytes(b"no model")
    return root


def started(folder: Path, **settings: Any) -> Repository:
    repository = Repository(dataclasses.replace(Settings(), model_dir=folder, **settings), read_machine())
    repository.load()
    return repository


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    repository = started(folder)
    yield TestClient(create_app(repository))
    repository.close()


def infer(client: TestClient, body: bytes, model: str = "model", **headers: str) -> Any:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.simulate_post(f"/v2/models/{model}/infer", body=body, headers=sent)


def test_server(client: TestClient) -> None:
    assert client.simulate_get("/v2/health/live").json == {"live": True}
    assert client.simulate_get("/v2/health/ready").json == {"ready": True}
    metadata = client.simulate_get("/v2").json
    assert (metadata["name"], metadata["extensions"]) == ("onnx-serve", ["binary_tensor_data"])


def test_loading(folder: Path) -> None:
    """Live from the first moment, ready when a model is."""
    repository = Repository(dataclasses.replace(Settings(), model_dir=folder), read_machine())
    client = TestClient(create_app(repository))

    assert client.simulate_get("/v2/health/live").status_code == 200
    ready = client.simulate_get("/v2/health/ready")
    assert (ready.status_code, ready.json) == (503, {"ready": False})
    assert client.simulate_get("/v2/models/model").status_code == 503
    assert client.simulate_post("/v2/repository/index").json == []


def test_metadata(client: TestClient) -> None:
    assert client.simulate_get("/v2/models/lin/versions/1").json == {
        "name": "lin",
        "versions": ["1", "12"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
    }
    assert client.simulate_get("/v2/models/lin").json["outputs"][0]["shape"] == [-1, 2]
    [maps] = client.simulate_get("/v2/models/zipmap").json["outputs"]
    assert maps["parameters"] == {"onnx_type": "seq(map(int64,tensor(float)))"}
    assert (maps["datatype"], maps["shape"]) == ("FP32", [-1])


def test_ready(client: TestClient) -> None:
    for path in ("lin", "lin/versions/1", "lin/versions/12", "model/versions/1"):
        answer = client.simulate_get(f"/v2/models/{path}/ready")
        assert (answer.status_code, answer.json["ready"]) == (200, True)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("nothing", 404),
        ("lin/versions/2", 404),
        ("lin/versions/x", 404),
        ("lin/versions/-1", 404),
        ("lin/versions/" + "9" * 10_000, 404),
        ("broken", 404),
        ("..", 400),
        ("%2e%2e", 400),
        (".", 400),
        ("a%00b", 400),
        ("a%20b", 400),
        ("a%2Fb", 404),
        ("é", 400),
        ("a" * 255, 404),
        ("a" * 256, 400),
        ("a" * 10_000, 400),
        ("%0a", 400),
    ],
    ids=lambda value: str(value)[:20],
)
def test_names_that_name_nothing(client: TestClient, path: str, status: int) -> None:
    """Whatever is asked of them: an error as JSON, in one short line."""
    for verb, suffix in (("GET", ""), ("GET", "/ready"), ("POST", "/infer")):
        answer = client.simulate_request(verb, f"/v2/models/{path}{suffix}", body=b"{}")
        assert answer.status_code == status
        assert set(answer.json) == {"error", "error_type"}
        assert len(answer.json["error"]) < 300
        assert answer.json["error"].isprintable()


def test_a_known_name_may_be_odd(client: TestClient) -> None:
    """A file's name is what it is."""
    assert client.simulate_get("/v2/models/my%20model/ready").status_code == 200


def test_the_broken_neighbour_is_in_the_index(client: TestClient) -> None:
    index = client.simulate_post("/v2/repository/index").json
    entries = {(entry["name"], entry["version"]): entry for entry in index}

    assert list(entries) == sorted(entries, key=lambda key: (key[0], int(key[1])))
    assert entries["model", "1"] == {"name": "model", "version": "1", "state": "READY", "reason": ""}
    assert client.simulate_get("/v2/models/broken").status_code == 404
    index = client.simulate_post("/v2/repository/index").json
    [broken] = [entry for entry in index if entry["name"] == "broken"]
    assert broken["state"] == "UNAVAILABLE"
    assert "not an ONNX model" in broken["reason"]
    ready = client.simulate_post("/v2/repository/index", body=b'{"ready":true}').json
    assert {entry["state"] for entry in ready} == {"READY"}


@pytest.mark.parametrize("body", [b"[]", b"x", b'{"ready":1}', b"\xff"])
def test_wrong_index_requests(client: TestClient, body: bytes) -> None:
    assert client.simulate_post("/v2/repository/index", body=body).status_code == 400


def test_load_and_unload_are_of_multi_mode(client: TestClient) -> None:
    for path in ("/v2/repository/models/lin/load", "/v2/repository/models/lin/unload", "/models"):
        assert client.simulate_post(path).status_code == 404


def test_binary_in_binary_out(client: TestClient) -> None:
    answer = infer(client, HEADER + RAW, **{LENGTH: str(len(HEADER))})

    length = int(answer.headers[LENGTH])
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.content[length:] == RAW
    assert json.loads(answer.content[:length]) == {
        "model_version": "1",
        "model_name": "model",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}
        ],
    }


def test_json_in_json_out(client: TestClient) -> None:
    """Whatever Content-Type and Accept say, as clients leave them out or name others."""
    body = b'{"id":"a","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1.5,-2]}]}'
    answer = infer(client, body, Content_Type="text/plain", Accept="text/csv")

    assert answer.headers["Content-Type"] == "application/json"
    assert LENGTH not in answer.headers
    assert answer.json["id"] == "a"
    assert answer.json["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2.0]}]


def test_other_shapes_of_json_are_not_the_protocols(client: TestClient) -> None:
    for body in (b'{"instances":[[1,2]]}', b"[[1,2]]", b'{"inputs":[[1,2]]}', b'{"inputs":{"x":[[1,2]]}}'):
        assert infer(client, body).json["error_type"] == "DecodeError"


def test_no_rows_in_no_rows_out(client: TestClient) -> None:
    body = b'{"inputs":[{"name":"x","shape":[0,2],"datatype":"FP32","data":[]}]}'

    assert infer(client, body).json["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [0, 2], "data": []}
    ]


def test_many_rows(client: TestClient) -> None:
    """More rows than a block has come back as one tensor."""
    rows = np.arange(20_000, dtype=np.float32).reshape(-1, 2)
    header = HEADER.replace(b"[1,2]", b"[10000,2]").replace(b":8}", b":80000}")
    answer = infer(client, header + rows.tobytes(), **{LENGTH: str(len(header))})

    assert answer.content[int(answer.headers[LENGTH]) :] == rows.tobytes()


def test_version_and_requested_outputs(client: TestClient) -> None:
    body = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,1,1,1]}]}'
    for version, width in (("1", 3), ("12", 2)):
        answer = client.simulate_post(f"/v2/models/lin/versions/{version}/infer", body=body)
        assert answer.json["model_version"] == version
        assert answer.json["outputs"][0]["shape"] == [1, width]


@pytest.mark.parametrize("text", ["x", "-1", "1.5", "9" * 30, "", "0x10"])
def test_wrong_header_lengths(client: TestClient, text: str) -> None:
    answer = infer(client, HEADER + RAW, **{LENGTH: text})

    assert answer.status_code == 400
    assert "Inference-Header-Content-Length: expected a number of bytes" in answer.json["error"]


def test_raw_body(client: TestClient) -> None:
    answer = infer(client, RAW, **{LENGTH: "0"})

    assert answer.content[int(answer.headers[LENGTH]) :] == RAW


def test_compressed_bodies(client: TestClient) -> None:
    """On the protocol's paths and on SageMaker's."""
    headers = {LENGTH: str(len(HEADER)), "Content_Encoding": "gzip"}
    assert infer(client, gzip.compress(HEADER + RAW), **headers).content.endswith(RAW)
    sent = {"Content-Type": "text/csv", "Content-Encoding": "gzip", "Accept": "text/csv"}
    answer = client.simulate_post("/invocations", body=gzip.compress(b"1.5,-2\n"), headers=sent)
    assert answer.text == "1.5,-2.0\n"
    assert client.simulate_post("/invocations", body=b"1.5,-2\n", headers=sent).status_code == 400


def test_bodies_over_the_limit(folder: Path) -> None:
    """Before and after inflating."""
    repository = started(folder, max_body_bytes=1000)
    client = TestClient(create_app(repository))

    assert infer(client, b" " * 1001).status_code == 413
    bomb = gzip.compress(b" " * 1001)
    assert len(bomb) < 1000
    assert infer(client, bomb, Content_Encoding="gzip").status_code == 413
    answer = client.simulate_post(
        "/invocations", body=bomb, headers={"Content-Type": "text/csv", "Content-Encoding": "gzip"}
    )
    assert answer.status_code == 413
    repository.close()


@pytest.mark.parametrize("accept", [None, "*/*", TRITON, "application/json, text/csv;q=0.1"])
def test_sagemakers_media_type(client: TestClient, accept: str | None) -> None:
    """The default model on /invocations; the answer's media type says where its JSON ends."""
    sent = {"Content-Type": f"{TRITON};json-header-size={len(HEADER)}"}
    if accept:
        sent["Accept"] = accept
    answer = client.simulate_post("/invocations", body=HEADER + RAW, headers=sent)

    name, _, length = answer.headers["Content-Type"].partition(";json-header-size=")
    assert name == TRITON
    assert answer.content[int(length) :] == RAW


def test_sagemakers_media_type_with_json_only(client: TestClient) -> None:
    body = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1.5,-2]}]}'
    sent = {"Content-Type": TRITON, "X-Amzn-SageMaker-Custom-Attributes": "a=1"}
    answer = client.simulate_post("/invocations", body=body, headers=sent)

    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Amzn-SageMaker-Custom-Attributes"] == "a=1"
    assert answer.json["outputs"][0]["data"] == [1.5, -2.0]


@pytest.mark.parametrize(
    ("content_type", "accept", "status"),
    [
        (f"{TRITON};json-header-size=x", "*/*", 400),
        (f"{TRITON};json-header-size=9999", "*/*", 400),
        (f"{TRITON};json-header-size=5", "*/*", 400),
        (f"{TRITON};json-header-size=5", "text/csv", 406),
        (f"{TRITON} ;;= json", "*/*", 415),
    ],
)
def test_wrong_media_types(client: TestClient, content_type: str, accept: str, status: int) -> None:
    sent = {"Content-Type": content_type, "Accept": accept}

    assert client.simulate_post("/invocations", body=HEADER + RAW, headers=sent).status_code == status


def test_long_answers_come_from_a_file(folder: Path) -> None:
    repository = started(folder, answer_memory_bytes=100)
    client = TestClient(create_app(repository))
    header = HEADER.replace(b"[1,2]", b"[100,2]").replace(b":8}", b":800}")
    answer = infer(client, header + RAW * 100, **{LENGTH: str(len(header))})

    assert answer.content.endswith(RAW * 100)
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    repository.close()


def test_a_message_must_fit_in_memory(folder: Path) -> None:
    machine = dataclasses.replace(read_machine(), memory_limit_bytes=20 << 20)
    repository = Repository(dataclasses.replace(Settings(), model_dir=folder), machine)
    repository.load()
    client = TestClient(create_app(repository))
    body = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1.5,-2]}]}'

    answer = infer(client, body.ljust(2 << 20))
    assert answer.status_code == 413
    assert "needs about 40 MiB, of which 20 MiB are left" in answer.json["error"]
    repository.close()


def test_bytes_are_charged_for_the_strings_that_they_become(tmp_path: Path) -> None:
    onnx_models.identity(tmp_path / "model.onnx", onnx_models.STRING, ("N",))
    machine = dataclasses.replace(read_machine(), memory_limit_bytes=20 << 20)
    repository = Repository(dataclasses.replace(Settings(), model_dir=tmp_path), machine)
    repository.load()
    client = TestClient(create_app(repository))
    raw = b"\x02\0\0\0ab" * (2 << 20)
    entry = {
        "name": "x",
        "shape": [2 << 20],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [entry]}).encode()

    answer = infer(client, head + raw, Inference_Header_Content_Length=str(len(head)))
    assert answer.status_code == 413
    assert "needs about 240 MiB, of which 20 MiB are left; send less in one" in answer.json["error"]
    repository.close()


def test_a_deadline(folder: Path) -> None:
    repository = started(folder, request_timeout_ms=1)
    client = TestClient(create_app(repository))
    rows = 200_000
    header = HEADER.replace(b"[1,2]", b"[%d,2]" % rows).replace(b":8}", b":%d}" % (8 * rows))

    assert infer(client, header + RAW * rows, **{LENGTH: str(len(header))}).status_code == 504
    repository.close()


def test_version_one(client: TestClient) -> None:
    assert "pair" in client.simulate_get("/v1/models").json["models"]
    assert client.simulate_get("/v1/models/model").json == {"name": "model", "ready": True}
    answer = client.simulate_post("/v1/models/model:predict", body=b'{"instances":[[1.5,-2]]}')
    assert answer.json == {"predictions": [[1.5, -2.0]]}
    assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("nothing:predict", 404),
        ("model:explain", 404),
        ("model", 404),
        ("..:predict", 400),
        ("broken:predict", 404),
    ],
)
def test_version_one_without_a_model(client: TestClient, path: str, status: int) -> None:
    answer = client.simulate_post(f"/v1/models/{path}", body=b'{"instances":[[1,2]]}')

    assert answer.status_code == status
    assert answer.json["error"]


@pytest.mark.parametrize("limit", [0, 1 << 20], ids=["file", "memory"])
def test_an_answer_without_a_form_is_an_error(limit: int) -> None:
    """A string that is no Unicode text has no bytes; nothing of the answer is sent."""

    def run(_feed: Feed) -> Values:
        return {"y": np.array(["\ud800"], object)}

    model = signature(("x", "float", ["N", 2]), outputs=[("y", "string", ["N"])])
    engine = Engine(run, model, slots=1, block_rows=1)
    oip = OipInference(engine, Admission(1, 0, None), CodecOptions(), Limits(limit, lambda: 1 << 30))
    with pytest.raises(EncodeError, match="UTF-8"):
        oip(Body(io.BytesIO(HEADER + RAW), len(HEADER) + 8), len(HEADER))
    assert oip.signature is model
    engine.close()
