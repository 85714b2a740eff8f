"""SageMaker's multi-model endpoint API: ``/models``, in multi mode only.

The platform loads a model before its first request, unloads others when it is told 507, and calls models by
names that it makes up: https://docs.aws.amazon.com/sagemaker/latest/dg/mms-container-apis.html.
"""

import re
from typing import Any

import falcon
import orjson

from onnx_serve.codecs.json_syntax import describe, parse
from onnx_serve.errors import DecodeError, quote
from onnx_serve.repository import Repository
from onnx_serve.request_body import read_body
from onnx_serve.sagemaker import invoke

__all__ = ["add_routes"]

_COMMAND_BYTES = 1 << 20
# Of Multi Model Server, which cuts what is more: https://github.com/awslabs/multi-model-server/blob/master/docs/management_api.md
_DEFAULT_LIMIT = 100
_MAX_LIMIT = 1000
_LIMIT = re.compile(r"0*[1-9][0-9]{0,18}")


def add_routes(app: "falcon.App[Any, Any]", repository: Repository) -> None:
    """Adds the API's paths to an application."""
    app.add_route("/models", Models(repository))
    app.add_route("/models/{name}", Model(repository))
    app.add_route("/models/{name}/invoke", Invoke(repository))


class Models:
    """The loaded models: listed in pages, and one more loaded."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """A page, by name: ``limit`` models behind ``next_page_token``."""
        limit = _limit(req.get_param("limit"))
        # The last name of a page is the token of the next one: models may come and go in between.
        after = req.get_param("next_page_token") or ""
        following = [pair for pair in self._repository.urls() if pair[0] > after]
        page = following[:limit]
        answer: dict[str, Any] = {"models": [_document(name, url) for name, url in page]}
        if len(following) > limit:
            answer["nextPageToken"] = page[-1][0]
        _write(resp, answer)

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """200 once it has run; 409 if the name is loaded, 507 if it does not fit in memory."""
        with read_body(req, self._repository, _COMMAND_BYTES) as body:
            command = parse(body.read_all())
        if not isinstance(command, dict):
            raise DecodeError(f'expected an object with "model_name" and "url", got {describe(command)}')
        name, url = (_text(command, key) for key in ("model_name", "url"))
        self._repository.load_model(name, url)
        _write(resp, _document(name, url))


class Model:
    """One loaded model."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def on_get(self, _req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """Its name and place, or 404."""
        _write(resp, _document(name, self._repository.url(name)))

    def on_delete(self, _req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """200 once its memory is free, or 404."""
        url = self._repository.url(name)
        self._repository.unload_model(name)
        _write(resp, _document(name, url))


class Invoke:
    """Inference on a loaded model, as ``/invocations`` does it."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def on_post(self, req: falcon.Request, resp: falcon.Response, name: str) -> None:
        """404 for a model that is not loaded."""
        invoke(self._repository, name, req, resp)


def _text(command: dict[str, Any], key: str) -> str:
    value = command.get(key)
    if not isinstance(value, str):
        raise DecodeError(f'"{key}": expected a string, got {describe(value)}')
    return value


def _limit(text: str | None) -> int:
    if text is None:
        return _DEFAULT_LIMIT
    if not _LIMIT.fullmatch(text):
        raise DecodeError(f"limit: expected a number of models, 1 or more, got {quote(text)}")
    return min(int(text), _MAX_LIMIT)


def _document(name: str, url: str) -> dict[str, str]:
    return {"modelName": name, "modelUrl": url}


def _write(resp: falcon.Response, document: object) -> None:
    resp.content_type = falcon.MEDIA_JSON
    resp.data = orjson.dumps(document)
