"""The Open Inference Protocol v2 over HTTP, and version 1 of KServe's.

Paths and documents of v2: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md,
of loading and unloading: https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_model_repository.html,
of v1: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol.
Every error is the server's usual document, whose ``error`` is the protocol's.
"""

import re
from typing import Any, ClassVar

import falcon
import orjson

from onnx_serve import __version__
from onnx_serve.codecs.interface import Body
from onnx_serve.codecs.json_syntax import describe, parse
from onnx_serve.codecs.media_types import negotiate
from onnx_serve.codecs.media_types import parse as parse_media_type
from onnx_serve.codecs.oip_binary import MEDIA_TYPE
from onnx_serve.errors import DecodeError, NotAcceptable, UnknownModel, quote
from onnx_serve.oip_inference import OipInference, OipReply
from onnx_serve.repository import Repository
from onnx_serve.request_body import read_body, set_content
from onnx_serve.tensors import TensorSpec

__all__ = ["add_routes", "answer_binary", "is_binary"]

_HEADER_LENGTH = "Inference-Header-Content-Length"
_JSON = "application/json"
# Documents that only command the server.
_COMMAND_BYTES = 1 << 20
_VERSION = re.compile(r"[0-9]{1,18}")


def add_routes(app: "falcon.App[Any, Any]", repository: Repository) -> None:
    """Adds the protocols' paths to an application; those that load and unload in multi mode only."""
    model = "/v2/models/{name}"
    app.add_route("/v2", ServerMetadata(repository))
    app.add_route("/v2/health/live", Live())
    app.add_route("/v2/health/ready", Ready(repository))
    for place in (model, f"{model}/versions/{{version}}"):
        app.add_route(place, ModelMetadata(repository))
        app.add_route(f"{place}/ready", ModelReady(repository))
        app.add_route(f"{place}/infer", Infer(repository))
    app.add_route("/v2/repository/index", Index(repository))
    if repository.multi:
        app.add_route("/v2/repository/models/{name}/load", Load(repository))
        app.add_route("/v2/repository/models/{name}/unload", Unload(repository))
    app.add_route("/v1/models", ModelListV1(repository))
    app.add_route("/v1/models/{name}", ModelV1(repository))


class _Resource:
    def __init__(self, repository: Repository) -> None:
        self._repository = repository


class Live:
    """Whether the server answers."""

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Always, once the socket is open."""
        _write(resp, {"live": True})


class Ready(_Resource):
    """Whether requests can be answered: in multi mode also without any model."""

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """200 or 503, with the same in words."""
        ready = self._repository.ready
        resp.status = falcon.HTTP_200 if ready else falcon.HTTP_503
        _write(resp, {"ready": ready})


class ServerMetadata(_Resource):
    """Who answers, and which extensions of the protocol it knows."""

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """The server's name, version and extensions."""
        extensions = ["binary_tensor_data", *(["model_repository"] if self._repository.multi else [])]
        _write(resp, {"name": "onnx-serve", "version": __version__, "extensions": extensions})


class ModelMetadata(_Resource):
    """What a model takes and gives."""

    def on_get(
        self, _req: falcon.Request, resp: falcon.Response, name: str, version: str | None = None
    ) -> None:
        """Inputs, outputs and versions."""
        with self._repository.lease(name, _version(version)) as served:
            signature = served.inference.signature
        metadata = {
            "name": name,
            "versions": self._repository.versions(name),
            "platform": "onnxruntime_onnx",
            "inputs": [_tensor_metadata(spec) for spec in signature.inputs],
            "outputs": [_tensor_metadata(spec) for spec in signature.outputs],
        }
        _write(resp, metadata)


class ModelReady(_Resource):
    """Whether a model can be asked; one that is not loaded yet is loaded for it."""

    def on_get(
        self, _req: falcon.Request, resp: falcon.Response, name: str, version: str | None = None
    ) -> None:
        """200, or the reason why not."""
        with self._repository.lease(name, _version(version)):
            _write(resp, {"name": name, "ready": True})


class Infer(_Resource):
    """Inference, in JSON or with binary tensors, whatever ``Content-Type`` says: clients leave it out."""

    def on_post(
        self, req: falcon.Request, resp: falcon.Response, name: str, version: str | None = None
    ) -> None:
        """One message in, one out."""
        with (
            self._repository.lease(name, _version(version)) as served,
            read_body(req, self._repository) as body,
        ):
            reply = served.oip(body, _header_length(_HEADER_LENGTH, req.get_header(_HEADER_LENGTH)))
        resp.content_type = _JSON
        if reply.header_length is not None:
            resp.content_type = "application/octet-stream"
            resp.set_header(_HEADER_LENGTH, str(reply.header_length))
        set_content(resp, reply.content, reply.length)


class Index(_Resource):
    """Every model and version with its state."""

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """All of them, or with ``{"ready": true}`` those that are loaded."""
        only_ready = _command(req, self._repository).get("ready", False)
        if not isinstance(only_ready, bool):
            raise DecodeError(f'"ready": expected true or false, got {describe(only_ready)}')
        entries = self._repository.index()
        _write(
            resp,
            [
                {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
                for entry in entries
                if entry.state == "READY" or not only_ready
            ],
        )


class Load(_Resource):
    """Loads a model of the model folder, or loads it again."""

    def on_post(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """Nothing is uploaded, so no parameters are known."""
        if unknown := list(_command_parameters(req, self._repository)):
            raise DecodeError(
                f"parameters: {quote(unknown[0])} is not supported; models come from the model folder"
            )
        self._repository.load_model(name, again=True)
        resp.data = b""


class Unload(_Resource):
    """Unloads a model; there are no others that depend on it."""

    parameters: ClassVar = {"unload_dependents"}

    def on_post(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """Returns when the memory is free."""
        if unknown := [
            key for key in _command_parameters(req, self._repository) if key not in self.parameters
        ]:
            raise DecodeError(f"parameters: {quote(unknown[0])} is not supported")
        self._repository.unload_model(name)
        resp.data = b""


class ModelListV1(_Resource):
    """Version 1: the models' names."""

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """All of them, loaded or not."""
        _write(resp, {"models": [name for name, _ in self._repository.urls()]})


class ModelV1(_Resource):
    """Version 1: whether a model can be asked, and ``:predict``."""

    def on_get(self, _req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """200, or the reason why not."""
        with self._repository.lease(name):
            _write(resp, {"name": name, "ready": True})

    def on_post(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """``:predict``: JSON in, JSON out."""
        model, colon, verb = name.rpartition(":")
        if not colon or verb != "predict":
            raise falcon.HTTPRouteNotFound
        with (
            self._repository.lease(model) as served,
            read_body(req, self._repository) as body,
        ):
            reply = served.inference(body, _JSON, _JSON)
        resp.content_type = reply.media_type
        set_content(resp, reply.content, reply.length)


def is_binary(content_type: str | None) -> bool:
    """Whether a content type is SageMaker's for the protocol's messages."""
    return (content_type or "").strip()[: len(MEDIA_TYPE)].lower() == MEDIA_TYPE


def answer_binary(
    oip: OipInference, body: Body, content_type: str, accept: str | None, resp: falcon.Response
) -> None:
    """Answers a message whose media type tells where its JSON ends; the answer's tells the same.

    Args:
        oip: Of the model that is asked.
        body: The message.
        content_type: ``application/vnd.sagemaker-triton.binary+json;json-header-size=N``; without the
            parameter, the message is JSON.
        accept: The request's ``Accept``.
        resp: Gets the answer.
    """
    name = "json-header-size"
    if negotiate(accept or "*/*", (MEDIA_TYPE, _JSON)) is None:
        raise NotAcceptable(f"expected {MEDIA_TYPE} or {_JSON} in Accept, got {quote(accept)}")
    length = _header_length(name, parse_media_type(content_type).parameters.get(name))
    reply: OipReply = oip(body, length)
    resp.content_type = _JSON if reply.header_length is None else f"{MEDIA_TYPE};{name}={reply.header_length}"
    set_content(resp, reply.content, reply.length)


def _header_length(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not _VERSION.fullmatch(text.strip()):
        raise DecodeError(f"{name}: expected a number of bytes, got {quote(text)}")
    return int(text)


def _version(text: str | None) -> int | None:
    if text is None:
        return None
    if not _VERSION.fullmatch(text):
        raise UnknownModel(f"expected a version like 1, got {quote(text)}")
    return int(text)


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    """Free dimensions are -1; what is no tensor has its elements' type, and its own beside it."""
    if spec.is_tensor:
        shape = [size if isinstance(size, int) else -1 for size in spec.shape]
        return {"name": spec.name, "datatype": spec.dtype.oip, "shape": shape}
    parameters = {"onnx_type": spec.onnx_type}
    return {"name": spec.name, "datatype": spec.dtype.oip, "shape": [-1], "parameters": parameters}


def _command(req: falcon.Request, repository: Repository) -> dict[str, Any]:
    """The JSON object of a command, which may be left out."""
    with read_body(req, repository, _COMMAND_BYTES) as body:
        data = body.read_all()
    command = parse(data) if data.strip() else {}
    if not isinstance(command, dict):
        raise DecodeError(f"expected a JSON object, got {describe(command)}")
    return command


def _command_parameters(req: falcon.Request, repository: Repository) -> dict[str, Any]:
    parameters = _command(req, repository).get("parameters") or {}
    if not isinstance(parameters, dict):
        raise DecodeError(f'"parameters": expected an object, got {describe(parameters)}')
    return parameters


def _write(resp: falcon.Response, document: object) -> None:
    resp.content_type = _JSON
    resp.data = orjson.dumps(document)
