"""SageMaker's multi-model endpoint API."""

import dataclasses
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
from falcon.testing import TestClient

import onnx_models
from onnx_serve.app import create_app
from onnx_serve.errors import SettingsError
from onnx_serve.machine import Machine, read_machine
from onnx_serve.repository import Repository
from onnx_serve.settings import Settings, load_settings
from serving import start

ROW = b'{"instances":[[1,1,1,1]]}'


def served(folder: Path, machine: Machine | None = None, **settings: Any) -> Repository:
    chosen = dataclasses.replace(Settings(), model_dir=folder, mode="multi", **settings)
    repository = Repository(chosen, machine or read_machine())
    repository.load()
    return repository


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The platform's layout: a folder a model, named by a hash."""
    for width, name in enumerate(("a1", "b2", "c3"), 1):
        onnx_models.linear(tmp_path / name / "model" / "model.onnx", outputs=width)
    (tmp_path / "broken" / "model").mkdir(parents=True)
    (tmp_path / "broken" / "model" / "model.onnx").write_bytes(b"no model")
    return tmp_path


@pytest.fixture
def repository(folder: Path) -> Iterator[Repository]:
    repository = served(folder)
    yield repository
    repository.close()


@pytest.fixture
def client(repository: Repository) -> TestClient:
    return TestClient(create_app(repository))


def load(client: TestClient, name: Any, url: Any) -> Any:
    return client.simulate_post("/models", body=json.dumps({"model_name": name, "url": str(url)}))


def invoke(client: TestClient, name: str, body: bytes = ROW, content_type: str = "application/json") -> Any:
    return client.simulate_post(f"/models/{name}/invoke", body=body, headers={"Content-Type": content_type})


def test_ready_with_no_model(client: TestClient) -> None:
    assert client.simulate_get("/ping").status_code == 200
    assert client.simulate_get("/v2/health/ready").status_code == 200
    assert client.simulate_get("/models").json == {"models": []}
    assert client.simulate_get("/execution-parameters").status_code == 200
    answer = client.simulate_post("/invocations", body=ROW, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "/models/<name>/invoke" in answer.json["error"]


def test_a_models_life(client: TestClient, folder: Path) -> None:
    """Loaded, listed, asked, unloaded; 409 and 404 exactly where the platform expects them."""
    url = folder / "a1" / "model"
    document = {"modelName": "d2295a7526", "modelUrl": str(url)}

    assert invoke(client, "d2295a7526").status_code == 404
    loaded = load(client, "d2295a7526", url)
    assert (loaded.status_code, loaded.json) == (200, document)
    again = load(client, "d2295a7526", url)
    assert (again.status_code, again.json["error_type"]) == (409, "AlreadyLoaded")
    assert client.simulate_get("/models").json == {"models": [document]}
    assert client.simulate_get("/models/d2295a7526").json == document
    answer = invoke(client, "d2295a7526")
    assert answer.json["predictions"] == [[pytest.approx(0.6)]]
    assert client.simulate_delete("/models/d2295a7526").status_code == 200
    for verb, path in (("GET", ""), ("DELETE", ""), ("POST", "/invoke")):
        gone = client.simulate_request(verb, f"/models/d2295a7526{path}", body=ROW)
        assert (gone.status_code, gone.json["error_type"]) == (404, "UnknownModel")
    assert load(client, "d2295a7526", url).status_code == 200


def test_a_failed_load_leaves_nothing(client: TestClient, folder: Path) -> None:
    """And the name stays free."""
    broken = load(client, "m", folder / "broken" / "model")
    assert (broken.status_code, broken.json["error_type"]) == (400, "UnservableModel")
    assert "not an ONNX model" in broken.json["error"]
    assert client.simulate_get("/models/m").status_code == 404
    assert load(client, "m", folder / "nothing" / "model").status_code == 404
    assert load(client, "m", folder / "a1" / "model").status_code == 200


def test_every_format_of_invocations(client: TestClient, folder: Path) -> None:
    load(client, "m", folder / "b2" / "model")

    assert invoke(client, "m", b"1,1,1,1\n", "text/csv").json["predictions"]
    assert invoke(client, "m", b"1,1\n", "text/csv").status_code == 400
    assert invoke(client, "m", ROW, "text/nothing").status_code == 415
    binary = "application/vnd.sagemaker-triton.binary+json"
    body = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,1,1,1]}]}'
    assert invoke(client, "m", body, binary).json["outputs"][0]["shape"] == [1, 2]
    assert client.simulate_post("/v2/models/m/infer", body=body).json["model_name"] == "m"


def test_pages(client: TestClient, folder: Path) -> None:
    """Every model once, whatever comes and goes between the pages."""
    for index in range(7):
        assert load(client, f"m{index}", folder / "a1" / "model").status_code == 200
    names = []
    token: str | None = None
    pages = 0
    while pages == 0 or token:
        params = {"limit": "3", **({"next_page_token": token} if token else {})}
        page = client.simulate_get("/models", params=params).json
        names += [model["modelName"] for model in page["models"]]
        token = page.get("nextPageToken")
        pages += 1
        client.simulate_delete("/models/m1")
    assert names == [f"m{index}" for index in range(7)]
    assert pages == 3
    assert "nextPageToken" not in client.simulate_get("/models").json


@pytest.mark.parametrize("limit", ["0", "-1", "x", "", "1e3", "1.0", "²"])
def test_wrong_limits(client: TestClient, limit: str) -> None:
    assert client.simulate_get("/models", params={"limit": limit}).status_code == 400


@pytest.mark.parametrize("limit", ["1001", "9999", "99999", "1" + 18 * "0"])
def test_more_than_a_page_can_hold_is_cut(client: TestClient, limit: str) -> None:
    assert client.simulate_get("/models", params={"limit": limit}).json == {"models": []}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"x",
        b"{}",
        b'{"model_name":"m"}',
        b'{"model_name":1,"url":"/x"}',
        b'{"model_name":"m","url":[]}',
    ],
)
def test_wrong_load_requests(client: TestClient, body: bytes) -> None:
    answer = client.simulate_post("/models", body=body)

    assert answer.status_code == 400
    assert answer.json["error_type"] == "DecodeError"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "...", "a/b", "../a1", "a b", "a\0b", "é", "a" * 256, "a" * 10_000]
)
def test_names_that_are_none(client: TestClient, folder: Path, name: str) -> None:
    answer = load(client, name, folder / "a1" / "model")

    assert (answer.status_code, answer.json["error_type"]) == (400, "InvalidName")
    assert len(answer.json["error"]) < 300


@pytest.mark.parametrize("name", ["d2295a7526f9df36354b8a2c4adc4f63", "a.b-c_D", "-", "a" * 255, "..a"])
def test_names_are_opaque(client: TestClient, folder: Path, name: str) -> None:
    assert load(client, name, folder / "a1" / "model").status_code == 200
    assert invoke(client, name).status_code == 200


@pytest.mark.parametrize("path", ["%2e%2e", "..", "a%00b", "a" * 10_000, "%0a"])
def test_paths_that_name_nothing(client: TestClient, path: str) -> None:
    for verb, suffix in (("GET", ""), ("DELETE", ""), ("POST", "/invoke")):
        answer = client.simulate_request(verb, f"/models/{path}{suffix}", body=ROW)
        assert answer.status_code == 400


@pytest.mark.parametrize(
    "url",
    [
        "{root}/../outside",
        "{root}/a1/../../outside",
        "/etc/passwd",
        "/proc/self/mem",
        "outside",
        "file://{root}/a1",
        "",
        "{root}/a1\0",
        "{root}/a1\ud800",
        "/",
        "{root}/link",
    ],
)
def test_places_outside_of_the_model_folder(tmp_path: Path, url: str) -> None:
    """Neither loaded nor said to exist."""
    root = tmp_path / "root"
    onnx_models.linear(tmp_path / "outside" / "model.onnx")
    onnx_models.linear(root / "a1" / "model.onnx")
    (root / "link").symlink_to(tmp_path / "outside")
    repository = served(root)
    answer = load(TestClient(create_app(repository)), "m", url.format(root=root))

    assert (answer.status_code, answer.json["error_type"]) == (400, "InvalidName")
    assert str(tmp_path / "outside") not in answer.text


def test_links_where_they_are_allowed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    onnx_models.linear(tmp_path / "outside" / "model.onnx")
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    repository = served(root, allow_links=True)
    client = TestClient(create_app(repository))

    assert load(client, "m", root / "link").status_code == 200
    assert load(client, "n", root / ".." / "outside").status_code == 400
    repository.close()


def test_a_path_too_long_for_the_system(client: TestClient, folder: Path) -> None:
    assert load(client, "m", folder / ("x" * 5000)).status_code == 404


def test_places(client: TestClient, folder: Path) -> None:
    """A folder, a folder in it, a file, and Triton's layout with its highest version."""
    for name, url in (("m1", folder / "a1"), ("m2", folder / "a1" / "model" / "model.onnx")):
        assert load(client, name, url).status_code == 200
    for version in (1, 2):
        onnx_models.linear(folder / "v" / str(version) / "model.onnx", outputs=version)
    assert load(client, "m3", folder / "v").status_code == 200
    assert len(invoke(client, "m3").json["predictions"][0]) == 2
    body = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1,1,1,1]}]}'
    first = client.simulate_post("/v2/models/m3/versions/1/infer", body=body)
    assert (first.json["model_version"], first.json["outputs"][0]["shape"]) == ("1", [1, 1])
    onnx_models.linear(folder / "w" / "model" / "7" / "model.onnx")
    assert load(client, "m5", folder / "w" / "model").status_code == 200
    assert client.simulate_get("/v2/models/m5/versions/7").json["versions"] == ["7"]
    for name in ("one", "two"):
        onnx_models.linear(folder / "several" / f"{name}.onnx")
    several = load(client, "m4", folder / "several")
    assert (several.status_code, several.json["error_type"]) == (400, "UnservableModel")


def test_a_models_own_settings(client: TestClient, folder: Path) -> None:
    onnx_models.two_inputs(folder / "own" / "model.onnx")
    (folder / "own" / "onnx_serve.yaml").write_text("outputs: [twice]\n")
    onnx_models.linear(folder / "wrong" / "model.onnx")
    (folder / "wrong" / "onnx_serve.yaml").write_text("port: 1\n")

    assert load(client, "m", folder / "own").status_code == 200
    assert [out["name"] for out in client.simulate_get("/v2/models/m").json["outputs"]] == ["twice"]
    wrong = load(client, "n", folder / "wrong")
    assert (wrong.status_code, wrong.json["error_type"]) == (400, "UnservableModel")
    assert "port" in wrong.json["error"]


def test_what_does_not_fit_is_refused_before_it_is_opened(folder: Path) -> None:
    """507 makes the platform unload others and try again; what is loaded stays."""
    machine = dataclasses.replace(read_machine(), memory_limit_bytes=(256 << 20) + (20 << 20))
    repository = served(folder, machine)
    client = TestClient(create_app(repository))
    assert load(client, "small", folder / "a1").status_code == 200
    onnx_models.linear(folder / "large" / "model.onnx", width=1000, outputs=1000)

    answer = load(client, "large", folder / "large")
    assert (answer.status_code, answer.json["error_type"]) == (507, "OutOfMemory")
    assert "needs about 23 MiB, of which 20 MiB are left" in answer.json["error"]
    assert invoke(client, "small").status_code == 200
    assert client.simulate_post("/v2/repository/models/large/load").status_code == 507
    assert client.simulate_get("/models/large").status_code == 404
    repository.close()


def test_repository_extension(client: TestClient, folder: Path) -> None:
    """By the name in the model folder; loaded again without a gap; unloaded."""
    onnx_models.linear(folder / "flat.onnx", outputs=1)
    states = {
        entry["name"]: (entry["state"], entry["reason"])
        for entry in client.simulate_post("/v2/repository/index").json
    }
    assert states["flat"] == ("UNAVAILABLE", "not loaded")
    for name in ("a1", "flat"):
        assert client.simulate_post(f"/v2/repository/models/{name}/load", body=b"{}").status_code == 200
        assert client.simulate_get(f"/v2/models/{name}/ready").status_code == 200
    onnx_models.linear(folder / "flat.onnx", outputs=2)
    assert client.simulate_post("/v2/repository/models/flat/load").status_code == 200
    assert len(invoke(client, "flat").json["predictions"][0]) == 2
    (folder / "flat.onnx").write_bytes(b"no model")
    assert client.simulate_post("/v2/repository/models/flat/load").status_code == 400
    assert invoke(client, "flat").status_code == 200
    body = b'{"parameters":{"unload_dependents":false}}'
    assert client.simulate_post("/v2/repository/models/flat/unload", body=body).status_code == 200
    assert client.simulate_post("/v2/repository/models/flat/unload").status_code == 404
    assert client.simulate_post("/v2/repository/models/nothing/load").status_code == 404
    assert client.simulate_post("/v2/repository/models/%2e%2e/load").status_code == 400


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("load", b'{"parameters":{"config":"{}"}}'),
        ("load", b'{"parameters":{"file:1/model.onnx":"AAAA"}}'),
        ("load", b'{"parameters":[1]}'),
        ("unload", b'{"parameters":{"what":1}}'),
        ("unload", b"[1]"),
    ],
)
def test_commands_with_what_is_not_supported(client: TestClient, verb: str, body: bytes) -> None:
    assert client.simulate_post(f"/v2/repository/models/a1/{verb}", body=body).status_code == 400


def test_an_index_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """The platform makes it with the first model."""
    client = TestClient(create_app(served(tmp_path / "later")))

    assert client.simulate_post("/v2/repository/index").json == []
    assert load(client, "m", tmp_path / "later" / "m").status_code == 404


class Stress:
    """What threads do to two names, and what they find wrong."""

    rounds = 10

    def __init__(self, client: TestClient, folder: Path) -> None:
        self.client = client
        self.folder = folder
        self.wrong: list[object] = []

    def change(self, name: str, place: str) -> None:
        for _ in range(self.rounds):
            loaded = load(self.client, name, self.folder / place).status_code
            unloaded = self.client.simulate_delete(f"/models/{name}").status_code
            if loaded not in {200, 409} or unloaded not in {200, 404}:
                self.wrong.append((name, place, loaded, unloaded))

    def ask(self, name: str) -> None:
        for _ in range(3 * self.rounds):
            answer = invoke(self.client, name)
            if answer.status_code == 200:
                [prediction] = answer.json["predictions"]
                if not np.allclose(prediction, EXPECTED[len(prediction)]):
                    self.wrong.append(prediction)
            elif (answer.status_code, answer.json["error_type"]) != (404, "UnknownModel"):
                self.wrong.append(answer.json)

    def look(self) -> None:
        for _ in range(self.rounds):
            listed = self.client.simulate_get("/models").json["models"]
            index = self.client.simulate_post("/v2/repository/index").json
            states = {entry["state"] for entry in index}
            if len(listed) > 2 or not states <= {"READY", "LOADING", "UNAVAILABLE"}:
                self.wrong.append((listed, index))


def test_stress(repository: Repository, client: TestClient, folder: Path) -> None:
    """Loads, unloads and requests of the same names at the same time: each a whole model's answer, or none.

    A model is told by the number of its outputs. After it all the registry is as it should be.
    """
    stress = Stress(client, folder)
    tasks: list[tuple[Callable[..., None], tuple[str, ...]]] = [(stress.look, ())]
    tasks += [(stress.change, pair) for pair in (("x", "a1"), ("x", "b2"), ("y", "b2"), ("y", "c3"))]
    tasks += [(stress.ask, (name,)) for name in ("x", "y", "x", "y")]
    threads = [threading.Thread(target=task, args=arguments) for task, arguments in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert stress.wrong == []
    for name in ("x", "y"):
        client.simulate_delete(f"/models/{name}")
        assert load(client, name, folder / "a1").status_code == 200
        assert invoke(client, name).status_code == 200
    assert [name for name, _ in repository.urls()] == ["x", "y"]


EXPECTED = {outputs: np.ones(4) @ (np.arange(4 * outputs).reshape(4, outputs) / 10) for outputs in (1, 2, 3)}


def test_the_platforms_variables_and_folders() -> None:
    """``SAGEMAKER_MULTI_MODEL`` chooses the mode; the platform's folders get their plural."""

    def where(**environ: str) -> tuple[str, str]:
        loaded = load_settings(config_file=None, environ=environ)
        return loaded.mode, str(loaded.model_dir)

    assert where() == ("single", "/opt/ml/model")
    assert where(SAGEMAKER_MULTI_MODEL="false") == ("single", "/opt/ml/model")
    assert where(SAGEMAKER_MULTI_MODEL="true") == ("multi", "/opt/ml/models")
    assert where(ONNX_SERVE_MODE="multi", SAGEMAKER_BASE_DIR="/b") == ("multi", "/b/models")
    assert where(SAGEMAKER_MULTI_MODEL="TRUE", ONNX_SERVE_MODEL_DIR="/m") == ("multi", "/m")
    with pytest.raises(SettingsError, match=r'SAGEMAKER_MULTI_MODEL: .* single or multi, got "maybe"'):
        where(SAGEMAKER_MULTI_MODEL="maybe")


def test_unloading_gives_the_memory_back(tmp_path: Path) -> None:
    """In a server of its own, several times over: what a model of 22 MB took is there again after DELETE."""
    for index in range(2):
        onnx_models.linear(tmp_path / f"m{index}" / "model.onnx", width=2400, outputs=2400)
    rows = {"instances": [[0.5] * 2400] * 4}
    with start(tmp_path, tmp_path / "log", {"SAGEMAKER_MULTI_MODEL": "true"}) as server:
        process = psutil.Process(server.process.pid)

        def resident() -> float:
            return process.memory_info().rss / (1 << 20)

        def turn() -> tuple[float, float]:
            for index in range(2):
                body = {"model_name": f"n{index}", "url": str(tmp_path / f"m{index}")}
                assert requests.post(f"{server.url}/models", json=body, timeout=60).status_code == 200
                answer = requests.post(f"{server.url}/models/n{index}/invoke", json=rows, timeout=60)
                assert answer.status_code == 200
            full = resident()
            for index in range(2):
                assert requests.delete(f"{server.url}/models/n{index}", timeout=60).status_code == 200
            return full, resident()

        _, before = turn()
        for _ in range(2):
            full, after = turn()
            assert full > before + 40
            assert after < before + 10
        assert requests.get(f"{server.url}/ping", timeout=5).status_code == 200


def test_the_log_tells_of_loads(client: TestClient, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        load(client, "m", folder / "a1")
        client.simulate_delete("/models/m")
    assert "m: loaded on CPUExecutionProvider" in caplog.text
    assert "m: unloaded" in caplog.text
    assert os.fspath(folder) not in caplog.text
