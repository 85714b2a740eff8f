"""A real server that measures its model: in a transform job before it is ready, elsewhere beside."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import requests
from onnx import helper

import onnx_models
import serving
from onnx_models import FLOAT, INT64

MIB = 1 << 20
MEASURED = {"ONNX_SERVE_CALIBRATION": "auto"}
JOB = {**MEASURED, "SAGEMAKER_BATCH": "true"}


def explained(server: serving.ServerProcess) -> dict[str, Any]:
    answer = requests.get(f"{server.url}/execution-parameters?explain=true", timeout=10)
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    return document


def term(document: dict[str, Any], name: str) -> Any:
    return next(term["value"] for term in document["explain"]["terms"] if term["name"] == name)


def test_a_job_is_answered_with_what_was_measured(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "model.onnx", width=30)
    with serving.start(tmp_path, tmp_path / "log", JOB) as server:
        plain = requests.get(f"{server.url}/execution-parameters", timeout=10).json()
        document = explained(server)
        assert server.post("1," * 29 + "1\n", "text/csv").status_code == 200
        resident = next(
            int(line.split()[1]) << 10
            for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
    assert plain == {key: value for key, value in document.items() if key != "explain"}
    assert set(plain) == {"MaxConcurrentTransforms", "BatchStrategy", "MaxPayloadInMB"}
    assert term(document, "calibration_origin") == "measured"
    assert term(document, "session_bytes") + term(document, "base_bytes") <= resident
    assert document["explain"]["predicted_peak_bytes"] > resident
    assert "measured in" in server.log


@pytest.mark.parametrize("brief", ["auto", "never"])
def test_whichever_thread_answers_the_answers_are_the_same(tmp_path: Path, brief: str) -> None:
    """Small, large and wrong requests at once, of a model that is measured and quick."""
    onnx_models.linear(tmp_path / "model.onnx", width=4, outputs=3)
    row = "0.5,1,-2,3"
    kinds = {
        "one": (row, "application/json"),
        "many": ("\n".join([row] * 20_000), "text/csv"),
        "wrong": ("1,2,x,4", "application/json"),
        "short": ("1,2", "application/json"),
    }
    with serving.start(tmp_path, tmp_path / "log", {**JOB, "ONNX_SERVE_BRIEF_REQUESTS": brief}) as server:

        def ask(kind: str) -> tuple[int, str]:
            body, accept = kinds[kind]
            answer = server.post(body, "text/csv", accept)
            assert requests.get(f"{server.url}/ping", timeout=5).status_code == 200
            return answer.status_code, answer.text

        expected = {kind: ask(kind) for kind in kinds}
        order = ["one", "wrong", "one", "short", "one", "many"] * 25
        with ThreadPoolExecutor(8) as clients:
            assert list(clients.map(ask, order)) == [expected[kind] for kind in order]
    assert {kind: status for kind, (status, _) in expected.items()} == {
        "one": 200, "many": 200, "wrong": 400, "short": 400,
    }  # fmt: skip
    weights = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
    answered = json.loads(expected["one"][1])["predictions"]
    np.testing.assert_allclose(answered, [np.array([0.5, 1, -2, 3], np.float32) @ weights], rtol=1e-5)


def test_an_endpoint_serves_before_it_is_measured(tmp_path: Path) -> None:
    onnx_models.slow(tmp_path / "model.onnx")
    with serving.start(tmp_path, tmp_path / "log", MEASURED) as server:
        assert term(explained(server), "calibration_origin") == "guessed"
        assert server.post("1,2,3,4\n", "text/csv").status_code == 200
        serving_until(lambda: term(explained(server), "calibration_origin") == "measured")


def serving_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def explosive(path: Path) -> Path:
    """A model of some hundred bytes that asks for 4 TB when it is run."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Mul", ["shape", "factor"], ["large"]),
        helper.make_node(
            "ConstantOfShape", ["large"], ["zeros"],
            value=onnx.numpy_helper.from_array(np.zeros(1, np.float32)),
        ),
        helper.make_node("ReduceSum", ["zeros", "axes"], ["sum"], keepdims=1),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]  # fmt: skip
    constants = {"factor": np.array([1_000_000, 1_000_000], np.int64), "axes": np.array([0, 1], np.int64)}
    inputs = [onnx_models.tensor("x", FLOAT, ["N", 1])]
    return onnx_models.save(path, nodes, inputs, [onnx_models.tensor("y", FLOAT, ["N", 1])], constants)


def endless(path: Path) -> Path:
    """A model whose loop ends after 2^62 rounds."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["last"], ["next"])],
        "body",
        [onnx_models.tensor("round", INT64, []), onnx_models.tensor("go", onnx_models.BOOL, []),
         onnx_models.tensor("last", FLOAT, ["N", 1])],
        [onnx_models.tensor("go_on", onnx_models.BOOL, []), onnx_models.tensor("next", FLOAT, ["N", 1])],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["rounds", "", "x"], ["y"], body=body)
    inputs = [onnx_models.tensor("x", FLOAT, ["N", 1])]
    return onnx_models.save(
        path, [loop], inputs, [onnx_models.tensor("y", FLOAT, ["N", 1])], {"rounds": np.array(2**62)}
    )


def test_a_model_that_explodes_ends_a_job_with_need_and_limit(tmp_path: Path) -> None:
    explosive(tmp_path / "model.onnx")
    with serving.start(tmp_path, tmp_path / "log", JOB, ready=False) as server:
        assert server.process.wait(60) == 3
    assert "the model does not fit: the run needs more memory than there is: " in server.log
    assert "ConstantOfShape asked for 3814697 MiB" in server.log


def test_a_model_that_explodes_fails_its_own_requests_only(tmp_path: Path) -> None:
    """On an endpoint the server lives on, whatever the child found."""
    explosive(tmp_path / "model.onnx")
    with serving.start(tmp_path, tmp_path / "log", MEASURED) as server:
        for _ in range(3):
            answer = server.post("1\n", "text/csv")
            assert (answer.status_code, answer.json()["error_type"]) == (507, "OutOfMemory")
            assert requests.get(f"{server.url}/ping", timeout=5).status_code == 200
        serving_until(lambda: "not measured" in server.log)
        assert term(explained(server), "calibration_origin") == "guessed"


def test_runs_that_never_end_leave_with_their_clients(tmp_path: Path) -> None:
    """More of them than the server has permits; each would keep a slot for good."""
    onnx_models.slow(tmp_path / "model.onnx")
    with serving.start(tmp_path, tmp_path / "log", {"ONNX_SERVE_MAX_INFLIGHT": "2"}) as server:

        def leave() -> None:
            with pytest.raises(requests.Timeout):
                requests.post(
                    f"{server.url}/invocations",
                    "1e12,0,0,0",
                    headers={"Content-Type": "text/csv"},
                    timeout=0.5,
                )

        with ThreadPoolExecutor(4) as clients:
            for done in [clients.submit(leave) for _ in range(4)]:
                done.result()
        assert requests.get(f"{server.url}/ping", timeout=5).status_code == 200
        for _ in range(2):
            assert server.post("0,1,2,3", "text/csv").status_code == 200


def test_a_run_that_never_ends_has_a_deadline(tmp_path: Path) -> None:
    onnx_models.slow(tmp_path / "model.onnx")
    with serving.start(tmp_path, tmp_path / "log", {"ONNX_SERVE_REQUEST_TIMEOUT_MS": "700"}) as server:
        answer = server.post("1e12,0,0,0", "text/csv")
        assert (answer.status_code, answer.json()["error_type"]) == (504, "DeadlineExceeded")
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1e12, 0, 0, 0]}
        answer = requests.post(f"{server.url}/v2/models/model/infer", json={"inputs": [tensor]}, timeout=60)
        assert answer.status_code == 504
        assert server.post("0,1,2,3", "text/csv").status_code == 200


@pytest.mark.parametrize(
    ("variable", "nonsense"),
    [
        ("MAX_CONCURRENT_TRANSFORMS", "abc"),
        ("MAX_CONCURRENT_TRANSFORMS", "-1"),
        ("MAX_CONCURRENT_TRANSFORMS", "1000000000"),
        ("MAX_PAYLOAD_IN_MB", "much"),
        ("BATCH_STRATEGY", "BOTH"),
    ],
)
def test_nonsense_from_the_job_is_a_line_and_a_safe_answer(
    tmp_path: Path, variable: str, nonsense: str
) -> None:
    onnx_models.linear(tmp_path / "model.onnx")
    env = {"SAGEMAKER_BATCH": "true", f"SAGEMAKER_{variable}": nonsense}
    with serving.start(tmp_path, tmp_path / "log", env) as server:
        document = explained(server)
    assert 1 <= document["MaxConcurrentTransforms"] <= 5
    assert document["MaxConcurrentTransforms"] * document["MaxPayloadInMB"] <= 100
    assert f"SAGEMAKER_{variable}" in server.log


def wide(path: Path, mebibytes: int) -> Path:
    """A linear model with so many MiB of weights."""
    return onnx_models.linear(path, width=1024, outputs=mebibytes * 256)


def test_the_child_and_not_the_server_meets_the_limit(tmp_path: Path) -> None:
    """In 512 MB, with a model of which two copies do not fit: measured first, served in what is left."""
    wide(tmp_path / "model.onnx", 100)
    with (
        serving.memory_group(512 * MIB) as group,
        serving.start(tmp_path, tmp_path / "log", JOB, memory_group=group) as server,
    ):
        document = explained(server)
        body = "\n".join([",".join(["1"] * 1024)] * 200)
        assert [server.post(body, "text/csv").status_code for _ in range(3)] == [200] * 3
    assert term(document, "memory_limit_bytes") == 512 * MIB
    assert document["explain"]["predicted_peak_bytes"] <= 512 * MIB


def test_a_model_that_cannot_fit_ends_the_start_with_need_and_limit(tmp_path: Path) -> None:
    wide(tmp_path / "model.onnx", 300)
    with (
        serving.memory_group(512 * MIB) as group,
        serving.start(tmp_path, tmp_path / "log", JOB, memory_group=group, ready=False) as server,
    ):
        assert server.process.wait(60) == 3
    assert "MiB" in server.log
    assert "limit of 512 MiB" in server.log


def test_a_signal_ends_a_start_that_measures(tmp_path: Path) -> None:
    """A model that never returns: SIGTERM ends the child and the server at once."""
    endless(tmp_path / "model.onnx")
    with serving.start(tmp_path, tmp_path / "log", JOB, ready=False) as server:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        serving_until(lambda: server.process.poll() is not None or any_child(server.process.pid))
        server.process.terminate()
        server.process.wait(20)
    assert not children.exists()


def any_child(pid: int) -> bool:
    return any(path.read_text().strip() for path in Path(f"/proc/{pid}/task").glob("*/children"))
