"""Routes and statuses, through Falcon's own test client."""

import dataclasses
import errno
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import falcon
import numpy as np
import pytest
from falcon.testing import TestClient

import onnx_models
from codec_laws import signature
from onnx_serve import errors
from onnx_serve.admission import Admission
from onnx_serve.app import STATUS, create_app
from onnx_serve.batching import Engine
from onnx_serve.codecs.interface import CodecOptions
from onnx_serve.inference import Inference, Limits
from onnx_serve.machine import read_machine
from onnx_serve.repository import Repository
from onnx_serve.settings import Settings
from onnx_serve.tensors import Tensors, Values

MODEL = signature(("x", "float", ["N", 2]), outputs=[("y", "float", ["N", 2])])


class OneModel(Repository):
    """A repository that is ready with a plain function in place of a session."""

    def __init__(self, run: Callable[[Tensors], Values], **settings: Any) -> None:
        super().__init__(dataclasses.replace(Settings(), **settings), read_machine())
        engine = Engine(run, MODEL, slots=1, block_rows=8)
        limits = Limits(self.settings.answer_memory_bytes, lambda: 1 << 30)
        self._inference = Inference(engine, Admission(2, 0, None), CodecOptions(), limits)
        self.ready = True

    def default(self) -> Inference:
        return self._inference


def client(run: Callable[[Tensors], Values] = lambda feed: {"y": feed["x"]}, **settings: Any) -> TestClient:
    return TestClient(create_app(OneModel(run, **settings)))


def failing(error: Exception) -> Callable[[Tensors], Values]:
    def run(_feed: Tensors) -> Values:
        raise error

    return run


def post(target: TestClient, body: bytes = b"1,2", **headers: str) -> Any:
    sent = {"Content-Type": "text/csv", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return target.simulate_post("/invocations", body=body, headers=sent)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InputRefused("Gather: index 9"), 400),
        (errors.MismatchError("x"), 400),
        (errors.ModelNotFound("x"), 400),
        (errors.EncodeError("x"), 406),
        (errors.PayloadTooLarge("x"), 413),
        (errors.UnsupportedMediaType("x"), 415),
        (errors.NotReady("x"), 503),
        (errors.Overloaded("x", retry_after_s=7), 503),
        (errors.DeadlineExceeded("x"), 504),
        (errors.OutOfMemory("x"), 507),
        (MemoryError(), 507),
        (OSError(errno.ENOSPC, "No space left on device"), 507),
        (OSError(errno.EIO, "Input/output error"), 500),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_error_has_its_status(error: Exception, status: int) -> None:
    response = post(client(failing(error)))

    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/json"
    assert set(response.json) == {"error", "error_type"}
    if status == 503:
        assert response.headers["Retry-After"] in {"1", "7"}


@pytest.mark.parametrize("error", [errors.InferenceError("secret /path"), RuntimeError("secret /path")])
def test_what_the_server_is_to_blame_for_stays_in_its_log(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller gets a reference that finds the cause in the log."""
    response = post(client(failing(error)))

    assert response.status_code == 500
    assert "secret" not in response.text
    reference = response.json["error"].rsplit("reference ", 1)[1].rstrip(")")
    assert f"(reference {reference})" in caplog.text
    assert "secret /path" in caplog.text


def test_every_error_of_the_tree_has_a_status() -> None:
    """Operators' errors never reach a request; all others are in the table, or below one that is."""
    names = [getattr(errors, name) for name in errors.__all__ if name not in {"quote", "ServeError"}]
    operators = {
        errors.SettingsError,
        errors.CalibrationError,
        errors.ModelError,
        errors.ContainerError,
    }

    assert [kind for kind in names if kind not in operators and not issubclass(kind, tuple(STATUS))] == []


def test_a_body_over_the_limit_names_limit_and_variable() -> None:
    response = post(client(max_body_bytes=10), b"1,2\n" * 100)

    assert response.status_code == 413
    assert "at most 10 bytes, got 400" in response.json["error"]
    assert "SAGEMAKER_MAX_PAYLOAD_IN_MB" in response.json["error"]


def test_long_answers_are_streamed_with_their_length() -> None:
    response = post(client(answer_memory_bytes=100), b"1,2\n" * 100, Accept="text/csv")

    assert response.headers["Content-Length"] == "800"
    assert response.content == b"1.0,2.0\n" * 100


def test_attributes_beyond_the_platforms_limit_are_not_echoed() -> None:
    name = "X-Amzn-SageMaker-Custom-Attributes"

    assert post(client(), X_Amzn_SageMaker_Custom_Attributes="a=1").headers[name] == "a=1"
    assert name not in post(client(), X_Amzn_SageMaker_Custom_Attributes="a" * 2000).headers


def test_an_inference_id_cannot_forge_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        post(client(), b"x", X_Amzn_SageMaker_Inference_Id="a\tb" + "c" * 100)
    assert "[inference ab" + "c" * 61 + "]" in caplog.text


def test_loading_answers_503_everywhere(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "m.onnx")
    repository = Repository(dataclasses.replace(Settings(), model_dir=tmp_path), read_machine())
    target = TestClient(create_app(repository))

    assert target.simulate_get("/ping").status_code == 503
    assert post(target).status_code == 503
    assert target.simulate_get("/execution-parameters").json["error_type"] == "NotReady"
    repository.load()
    assert target.simulate_get("/ping").status_code == 200
    assert post(target, b"1,2,3,4").status_code == 200
    assert target.simulate_get("/execution-parameters").status_code == 200
    repository.close()


def test_falcons_own_errors_are_ours() -> None:
    target = client()

    assert target.simulate_get("/ping/").status_code == 200
    missing = target.simulate_get("/no%0Awhere", headers={"Accept": "text/html"})
    assert missing.json["error_type"] == "HTTPRouteNotFound"
    assert "\n" not in missing.json["error"]
    wrong = target.simulate_put("/invocations")
    assert wrong.status_code == 405
    assert "POST" in wrong.headers["Allow"]


def test_other_http_errors_keep_their_words() -> None:
    class Teapot:
        def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
            raise falcon.HTTPBadRequest(title="short", description="and stout")

    app = create_app(OneModel(lambda feed: {"y": feed["x"]}))
    app.add_route("/teapot", Teapot())
    response = TestClient(app).simulate_get("/teapot")

    assert response.json == {"error": "and stout", "error_type": "HTTPBadRequest"}


def test_npy_in_npy_out() -> None:
    body = io.BytesIO()
    np.save(body, np.ones((2, 2)))

    response = post(client(), body.getvalue(), Content_Type="application/x-npy")
    np.testing.assert_array_equal(np.load(io.BytesIO(response.content)), np.ones((2, 2), np.float32))
    assert json.loads(post(client(), b"[[1,2]]", Content_Type="application/json").text)["predictions"]
