"""The Falcon application: routes, and the one table from errors to statuses."""

import errno
import logging
import uuid
from typing import Any

import falcon
import orjson

from onnx_serve import errors, multi_model, oip
from onnx_serve.repository import Repository
from onnx_serve.sagemaker import ExecutionParametersResource, Invocations, Ping, inference_id

__all__ = ["STATUS", "create_app"]

_log = logging.getLogger("onnx_serve")

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# Falcon looks for the nearest base class, so a new error is a client's error until it is listed here.
STATUS: dict[type[errors.ServeError], str] = {
    errors.RequestError: falcon.HTTP_400,
    errors.UnknownModel: falcon.HTTP_404,
    errors.EncodeError: falcon.HTTP_406,
    errors.NotAcceptable: falcon.HTTP_406,
    errors.AlreadyLoaded: falcon.HTTP_409,
    errors.PayloadTooLarge: falcon.HTTP_413,
    errors.UnsupportedMediaType: falcon.HTTP_415,
    errors.InferenceError: falcon.HTTP_500,
    errors.NotReady: falcon.HTTP_503,
    errors.Overloaded: falcon.HTTP_503,
    errors.DeadlineExceeded: falcon.HTTP_504,
    errors.OutOfMemory: falcon.HTTP_507,
    # Nobody reads it; the number is nginx's for the same.
    errors.Abandoned: "499 Client Closed Request",
}


def create_app(repository: Repository) -> falcon.App[Any, Any]:
    """The WSGI application that serves a repository's models.

    Args:
        repository: May still be loading: until it is ready, requests get 503.
    """
    app = falcon.App()
    app.req_options.strip_url_path_trailing_slash = True
    app.add_route("/ping", Ping(repository))
    app.add_route("/invocations", Invocations(repository))
    app.add_route("/execution-parameters", ExecutionParametersResource(repository))
    oip.add_routes(app, repository)
    if repository.multi:
        multi_model.add_routes(app, repository)
    app.set_error_serializer(_serialize)
    app.add_error_handler(Exception, _answer_unforeseen)
    app.add_error_handler(falcon.HTTPError, _answer_http_error)
    app.add_error_handler(errors.ServeError, _answer)
    return app


def _status(ex: errors.ServeError) -> str:
    return next((STATUS[base] for base in type(ex).__mro__ if base in STATUS), falcon.HTTP_500)


def _answer(
    req: falcon.Request, resp: falcon.Response, ex: errors.ServeError, _params: dict[str, Any]
) -> None:
    status = _status(ex)
    if isinstance(ex, errors.InferenceError):
        _answer_failure(req, resp, ex, type(ex).__name__)
        return
    if not isinstance(ex, errors.NotReady):
        _log.warning("%s %s %s: %s%s", req.method, req.path, status[:3], ex, inference_id(req))
    if isinstance(ex, errors.Overloaded | errors.NotReady):
        resp.set_header("Retry-After", str(getattr(ex, "retry_after_s", 1)))
    _write(resp, status, str(ex), type(ex).__name__)


def _answer_unforeseen(
    req: falcon.Request, resp: falcon.Response, ex: Exception, _params: dict[str, Any]
) -> None:
    if isinstance(ex, MemoryError):
        _answer(req, resp, errors.OutOfMemory("this request needs more memory than there is"), _params)
        return
    if isinstance(ex, OSError) and ex.errno in _NO_SPACE:
        # Long bodies and answers lie in the temporary directory while they are made.
        _log.error("cannot write to the temporary directory: %s", ex.strerror)
        problem = "this request and its answer need more room on the server's disk than there is"
        _answer(req, resp, errors.OutOfMemory(problem), _params)
        return
    _answer_failure(req, resp, ex, "InternalServerError")


def _answer_failure(req: falcon.Request, resp: falcon.Response, ex: Exception, error_type: str) -> None:
    """The cause goes to the log, which is the operator's; the caller gets a reference to it."""
    reference = uuid.uuid4().hex[:8]
    _log.error(
        "%s %s 500 (reference %s)%s: %s", req.method, req.path, reference, inference_id(req), ex, exc_info=ex
    )
    message = (
        f"the model could not be run on this input; the server's log has the cause (reference {reference})"
    )
    _write(resp, falcon.HTTP_500, message, error_type)


def _answer_http_error(
    req: falcon.Request, resp: falcon.Response, ex: falcon.HTTPError, _params: dict[str, Any]
) -> None:
    """Falcon's own errors: an unknown path, a method that a path does not have, a bad header."""
    if ex.status == falcon.HTTP_404:
        message = (
            f"no such path: {errors.quote(req.path)}; there are /ping, /invocations, "
            "/execution-parameters, /v2, /v1/models, and /models in multi mode"
        )
    elif ex.status == falcon.HTTP_405:
        message = f"{req.path} does not take {req.method}"
    else:
        message = ex.description or ex.title
    for name, value in dict(ex.headers or {}).items():
        resp.set_header(name, value)
    _write(resp, ex.status, message, type(ex).__name__)


def _serialize(_req: falcon.Request, resp: falcon.Response, ex: falcon.HTTPError) -> None:
    _write(resp, ex.status, ex.description or ex.title, type(ex).__name__)


def _write(resp: falcon.Response, status: str | int, message: str, error_type: str) -> None:
    resp.status = status
    resp.content_type = "application/json"
    resp.stream = None
    resp.data = orjson.dumps({"error": message, "error_type": error_type}, option=orjson.OPT_APPEND_NEWLINE)
