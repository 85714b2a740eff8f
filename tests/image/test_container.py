"""SageMaker's contract, as the platform and a plain Docker user meet it: through a running container."""

import csv
import http.client
import io
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

import onnx_models
from image.container import LOCKED_DOWN, Container, container, docker, run_to_end
from serving import SAMPLES, free_port

IRIS = SAMPLES / "iris-classifier"
ROWS = (IRIS / "request.csv").read_bytes()
MEDIA_TYPES = {
    "csv": "text/csv",
    "json": "application/json",
    "jsonl": "application/jsonlines",
    "npy": "application/x-npy",
    "npz": "application/x-npz",
}


@pytest.fixture(scope="module")
def iris() -> Iterator[Container]:
    with container("--tmpfs=/tmp", *LOCKED_DOWN, model=IRIS) as running:
        yield running


@pytest.mark.parametrize("arguments", [pytest.param((), id="none"), pytest.param(("train",), id="train")])
def test_wrong_argument_prints_usage_and_exits_2(arguments: tuple[str, ...]) -> None:
    code, log = run_to_end(arguments=arguments)

    assert code == 2
    assert log[0].startswith("usage: onnx-serve")
    assert len(log) <= 3


def test_pings_fail_until_the_model_has_run_and_never_again() -> None:
    with container(model=IRIS, ready=False) as running:
        *before, first = running.pings()
        after = [running.get("/ping") for _ in range(20)]

    assert set(before) <= {503}
    assert first == 200
    assert {(answer.status_code, answer.content) for answer in after} == {(200, b"")}


def test_execution_parameters(iris: Container) -> None:
    answer = iris.get("/execution-parameters").json()

    assert set(answer) == {"MaxConcurrentTransforms", "BatchStrategy", "MaxPayloadInMB"}
    assert answer["BatchStrategy"] == "MULTI_RECORD"
    assert 1 <= answer["MaxConcurrentTransforms"] * answer["MaxPayloadInMB"] <= 100


def cells(answer: bytes) -> list[list[float | str]]:
    def value(cell: str) -> float | str:
        try:
            return float(cell)
        except ValueError:
            return cell

    return [[value(cell) for cell in row] for row in csv.reader(io.StringIO(answer.decode(), newline=""))]


def leaves(document: Any) -> Any:
    """A JSON document with its numbers ready for an approximate comparison."""
    if isinstance(document, dict):
        return {key: leaves(value) for key, value in document.items()}
    if isinstance(document, list):
        return [leaves(value) for value in document]
    return pytest.approx(document, rel=1e-5, abs=1e-6) if isinstance(document, float) else document


def check(suffix: str, got: bytes, expected: bytes) -> None:
    """Equal within the noise of another processor, in a format."""
    if suffix == "csv":
        assert cells(got) == [[leaves(value) for value in row] for row in cells(expected)]
    elif suffix in {"json", "jsonl"}:
        for line, wanted in zip(got.splitlines(), expected.splitlines(), strict=True):
            assert json.loads(line) == leaves(json.loads(wanted))
    elif suffix == "npy":
        np.testing.assert_allclose(
            np.load(io.BytesIO(got)), np.load(io.BytesIO(expected)), rtol=1e-5, atol=1e-6
        )
    else:
        arrays, wanted_arrays = np.load(io.BytesIO(got)), np.load(io.BytesIO(expected))
        for name in (name for name in wanted_arrays.files if f"{name}.keys" not in wanted_arrays.files):
            if name.endswith(".keys"):
                continue
            if wanted_arrays[name].dtype.kind == "f":
                np.testing.assert_allclose(arrays[name], wanted_arrays[name], rtol=1e-5, atol=1e-6)
            else:
                np.testing.assert_array_equal(arrays[name], wanted_arrays[name])


@pytest.mark.parametrize("model", sorted(folder.parent.name for folder in SAMPLES.glob("*/model.onnx")))
def test_every_format_of_a_sample_model(model: str) -> None:
    """Each request against its committed answer: in the same format, or as JSON lines where that one has none."""
    folder = SAMPLES / model
    requests_by_suffix = {file.suffix[1:]: file for file in sorted(folder.glob("request.*"))}
    assert len(requests_by_suffix) >= 4
    with container("--tmpfs=/tmp", *LOCKED_DOWN, model=folder) as running:
        for suffix, request in requests_by_suffix.items():
            tables = (folder / "response.npz").read_bytes()
            zip_map = suffix == "npz" and any(".keys" in name for name in np.load(io.BytesIO(tables)).files)
            answered = suffix if (folder / f"response.{suffix}").exists() and not zip_map else "jsonl"
            answer = running.post(request.read_bytes(), MEDIA_TYPES[suffix], MEDIA_TYPES[answered])

            assert answer.status_code == 200, (suffix, answer.text)
            assert answer.headers["Content-Type"] == MEDIA_TYPES[answered]
            check(answered, answer.content, (folder / f"response.{answered}").read_bytes())


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        pytest.param({}, {}, id="no variable of the job"),
        pytest.param({"SAGEMAKER_MAX_PAYLOAD_IN_MB": "2"}, {"MaxPayloadInMB": 2}, id="payload"),
        pytest.param({"SAGEMAKER_BATCH_STRATEGY": "SINGLE_RECORD"}, {"BatchStrategy": "SINGLE_RECORD"}, id="strategy"),
        pytest.param({"SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": "4"}, {"MaxConcurrentTransforms": 4}, id="concurrency"),
    ],
)  # fmt: skip
def test_batch_transform(env: dict[str, str], expected: dict[str, int | str]) -> None:
    """The job's own choices come back; answers have the request's format, a line each."""
    with container(model=IRIS, env={"SAGEMAKER_BATCH": "true", **env}) as running:
        parameters = running.get("/execution-parameters").json()
        answer = running.post(ROWS, "text/csv")
        too_large = (
            running.post(b"1,2,3,4\n" * (3 << 17), "text/csv") if "MaxPayloadInMB" in expected else None
        )

    assert parameters.items() >= expected.items()
    assert answer.headers["Content-Type"] == "text/csv"
    check("csv", answer.content, (IRIS / "response.csv").read_bytes())
    assert too_large is None or too_large.status_code == 413


def test_bind_to_port() -> None:
    port = free_port()
    with container(model=IRIS, env={"SAGEMAKER_BIND_TO_PORT": str(port)}, port=port) as running:
        assert running.post(ROWS, "text/csv").status_code == 200
        assert running.exec("healthcheck").returncode == 0


def test_default_port_is_8080() -> None:
    """Without a network nothing of the host is in the way: seen from inside, on every address."""
    program = (
        "import http.client, sys\n"
        "c = http.client.HTTPConnection('127.0.0.1', 8080, timeout=5); c.request('GET', '/ping')\n"
        "print(c.getresponse().status)"
    )
    with container(
        "--network=none", *LOCKED_DOWN, model=IRIS, env={"ONNX_SERVE_HOST": ""}, port=8080, ready=False
    ) as running:
        while running.exec("healthcheck", check=False).returncode != 0:
            assert running.state["Running"], running.log

        assert running.python(program) == "200"
        assert ":1F90 " in running.exec("cat", "/proc/net/tcp").stdout.upper()  # fmt: skip


def test_healthcheck(iris: Container) -> None:
    assert iris.exec("healthcheck").returncode == 0
    assert docker("exec", "--env=ONNX_SERVE_PORT=1", iris.name, "healthcheck", check=False).returncode == 1


def wait_until_measured(running: Container) -> None:
    deadline = time.monotonic() + 60
    while "measured in" not in running.log:
        assert time.monotonic() < deadline, running.log
        time.sleep(0.2)


def test_locked_down_container_writes_nothing_and_says_nothing_about_it() -> None:
    options = ("--env=HOME=/nowhere", "--tmpfs=/tmp", *LOCKED_DOWN)
    with container(*options, model=IRIS) as running:
        assert running.post(ROWS, "text/csv").status_code == 200
        wait_until_measured(running)
        assert running.exec("sh", "-c", "ls -A /tmp").stdout == ""
        log = running.log.splitlines()

    assert log
    assert all(" INFO " in line for line in log), log


def test_root_container_leaves_its_file_system_as_it_was() -> None:
    with container(model=IRIS) as running:
        assert running.post(ROWS, "text/csv").status_code == 200
        wait_until_measured(running)
        changes = docker("diff", running.name).stdout.splitlines()

    # The folder that the model is mounted at; what a measurement writes is gone when it ends.
    assert set(changes) <= {"C /opt", "A /opt/ml", "A /opt/ml/model", "C /tmp"}


def broken(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"no model")


def unreadable(folder: Path) -> None:
    onnx_models.linear(folder / "model.onnx").chmod(0)


@pytest.mark.parametrize(
    ("prepare", "code"),
    [
        pytest.param(broken, 3, id="broken"),
        pytest.param(unreadable, 3, id="unreadable"),
        pytest.param(Path.exists, 3, id="empty folder"),
    ],
)
def test_model_that_cannot_be_served_ends_the_container(tmp_path: Path, prepare: Any, code: int) -> None:
    """At once, with one line that says why; the platform would ask for half an hour otherwise."""
    folder = tmp_path / "model"
    folder.mkdir()
    prepare(folder)

    ended, log = run_to_end(*LOCKED_DOWN, "--tmpfs=/tmp", model=folder)

    assert ended == code
    assert len(log) == 1, log
    assert log[0].startswith("onnx-serve: ")


def test_missing_model_folder_ends_the_container() -> None:
    code, [line] = run_to_end()

    assert code == 3
    assert line.startswith("onnx-serve: ")
    assert "/opt/ml/model" in line


@pytest.mark.parametrize(
    ("config", "word"),
    [
        pytest.param("slot: 2\n", "slot", id="unknown key"),
        pytest.param("slots: many\n", "many", id="bad value"),
        pytest.param(None, "/config.yaml", id="no such file"),
    ],
)
def test_wrong_configuration_ends_the_container(tmp_path: Path, config: str | None, word: str) -> None:
    options = ["--env=ONNX_SERVE_CONFIG=/config.yaml"]
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
        options.append(f"--volume={tmp_path / 'config.yaml'}:/config.yaml:ro")

    code, [line] = run_to_end(*options, model=IRIS)

    assert code == 2
    assert word in line


class Accepted:
    """A request that the server is known to have begun to read: it answered ``100 Continue``."""

    def __init__(self, port: int, body: bytes) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.connection.connect()
        head = (
            f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nAccept: text/csv\r\n"
            f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
        )
        self.connection.sock.sendall(head.encode())
        received = b""
        while b"\r\n\r\n" not in received:
            received += self.connection.sock.recv(4096)
        assert received.startswith(b"HTTP/1.1 100 "), received
        self.connection.sock.sendall(body)

    def answer(self) -> tuple[int, bytes]:
        response = http.client.HTTPResponse(self.connection.sock, method="POST")
        response.begin()
        try:
            return response.status, response.read()
        finally:
            self.connection.close()


def test_sigterm_under_load_loses_no_accepted_request(tmp_path: Path) -> None:
    """Each row runs some tenths of a second: the signal finds requests running, waiting, and just received."""
    onnx_models.slow(tmp_path / "model" / "m.onnx", iterations=20_000)
    tmp_path.chmod(0o755)
    stop = threading.Event()
    outcomes: list[int | str] = []

    def keep_asking(running: Container) -> None:
        while not stop.is_set():
            try:
                outcomes.append(running.post(b"1,0,0,0\n", "text/csv", "text/csv").status_code)
            except requests.ConnectionError:
                outcomes.append("refused")
                return

    with container(model=tmp_path / "model") as running:
        clients = [threading.Thread(target=keep_asking, args=(running,)) for _ in range(4)]
        for client in clients:
            client.start()
        accepted = [Accepted(running.port, b"%d,0,0,0\n" % number) for number in range(1, 9)]
        docker("kill", "--signal=TERM", running.name)
        answers = [request.answer() for request in accepted]
        code = running.wait()
        stop.set()
        for client in clients:
            client.join(60)

    assert answers == [(200, b"%d.0,0.0,0.0,0.0\n" % number) for number in range(1, 9)]
    assert code == 0
    assert set(outcomes) <= {200, "refused"}


def test_killed_server_never_corrupts_an_answer() -> None:
    """SIGKILL is what the kernel sends to a container out of memory: clients get whole answers or none."""
    body = b"1,2,3,4\n" * 20_000
    whole: list[bytes] = []
    broken_off: list[Exception] = []
    first = threading.Event()

    def keep_asking(running: Container) -> None:
        while True:
            try:
                answer = running.post(body, "text/csv", "text/csv")
            except requests.RequestException as ex:
                broken_off.append(ex)
                return
            assert answer.status_code == 200
            whole.append(answer.content)
            first.set()

    with container(model=IRIS) as running:
        clients = [threading.Thread(target=keep_asking, args=(running,)) for _ in range(4)]
        for client in clients:
            client.start()
        assert first.wait(60)
        docker("kill", f"--signal={signal.SIGKILL.value}", running.name)
        for client in clients:
            client.join(60)

    assert len(broken_off) == len(clients)
    assert len(set(whole)) == 1
    assert whole[0].count(b"\n") == 20_000
