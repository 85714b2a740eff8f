"""SageMaker's contract: ``/ping``, ``/invocations`` and ``/execution-parameters``.

The contract is at https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html and
https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-batch-code.html.
"""

import falcon
import orjson

from onnx_serve.oip import answer_binary, is_binary
from onnx_serve.repository import Repository
from onnx_serve.request_body import read_body, set_content

__all__ = ["ExecutionParametersResource", "Invocations", "Ping", "inference_id", "invoke"]

_CUSTOM_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"
_INFERENCE_ID = "X-Amzn-SageMaker-Inference-Id"
# The platform allows 1024 visible characters; what is longer is not echoed.
_MAX_ATTRIBUTES = 1024


class Ping:
    """Health: 200 with an empty body once the model has run, 503 before. Nothing here ever waits."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def on_get(self, _req: falcon.Request, resp: falcon.Response) -> None:
        """Answers at once, whatever else the server does."""
        resp.status = falcon.HTTP_200 if self._repository.ready else falcon.HTTP_503
        resp.data = b""

    # The platform's page asks for POST too: "must accept POST requests to the /invocations and /ping".
    on_post = on_get
    on_head = on_get


class Invocations:
    """Inference: the body in the format of ``Content-Type``, the answer in one of ``Accept``."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answers one request; errors of ``inference`` get their statuses in ``app``."""
        if is_binary(req.content_type):
            invoke(self._repository, None, req, resp)
            return
        inference = self._repository.default()
        with read_body(req, self._repository) as body:
            reply = inference(body, req.content_type, req.accept)
        resp.content_type = reply.media_type
        set_content(resp, reply.content, reply.length)
        _echo_attributes(req, resp)


class ExecutionParametersResource:
    """What a transform job should send to this container."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Answers from memory, so never late enough to fail a job; ``?explain=true`` adds where it comes from."""
        # Local mode of the SageMaker Python SDK v2 is urllib3, and wants the spelling of the API.
        local_mode = (req.user_agent or "").startswith("python-urllib3/")
        parameters = self._repository.execution_parameters()
        resp.content_type = falcon.MEDIA_JSON
        resp.data = orjson.dumps(
            parameters.to_json(
                api_spelling=local_mode, explain=bool(req.get_param_as_bool("explain", default=False))
            )
        )


def invoke(repository: Repository, name: str | None, req: falcon.Request, resp: falcon.Response) -> None:
    """Has a model answer a request.

    Args:
        repository: Lends the model.
        name: The model's, or None for the default.
        req: The body in the format of ``Content-Type``.
        resp: Gets the answer in a format of ``Accept``.
    """
    with (
        repository.lease(name) as served,
        read_body(req, repository) as body,
    ):
        if is_binary(req.content_type):
            answer_binary(served.oip, body, req.content_type or "", req.accept, resp)
        else:
            reply = served.inference(body, req.content_type, req.accept)
            resp.content_type = reply.media_type
            set_content(resp, reply.content, reply.length)
    _echo_attributes(req, resp)


def _echo_attributes(req: falcon.Request, resp: falcon.Response) -> None:
    attributes = req.get_header(_CUSTOM_ATTRIBUTES)
    if attributes and len(attributes) <= _MAX_ATTRIBUTES:
        resp.set_header(_CUSTOM_ATTRIBUTES, attributes)


def inference_id(req: falcon.Request) -> str:
    """The caller's id for this request, ready to be put behind a log line; empty without one."""
    value = req.get_header(_INFERENCE_ID)
    return f" [inference {''.join(c for c in value[:64] if c.isprintable())}]" if value else ""
