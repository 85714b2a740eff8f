"""What SageMaker's endpoint service does between ``boto3`` and a container, in one small HTTP server.

Paths, headers and errors are those of the API model of ``sagemaker-runtime``:
https://github.com/boto/botocore/blob/develop/botocore/data/sagemaker-runtime/2017-05-13/service-2.json
"""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import requests

__all__ = ["Endpoint"]

# "SageMaker strips all POST headers except those supported by InvokeEndpoint":
# https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
_TO_CONTAINER = (
    "Content-Type",
    "Accept",
    "X-Amzn-SageMaker-Custom-Attributes",
    "X-Amzn-SageMaker-Inference-Id",
    "X-Amzn-SageMaker-Target-Model",
    "X-Amzn-SageMaker-Target-Variant",
)
_TO_CALLER = ("Content-Type", "X-Amzn-SageMaker-Custom-Attributes")
_STREAM_CONTENT_TYPE = "X-Amzn-SageMaker-Content-Type"
_MESSAGE_LENGTH = 2048
_PART_BYTES = 1000


class _Handler(BaseHTTPRequestHandler):
    """``POST /endpoints/NAME/invocations`` and ``.../invocations-response-stream``."""

    protocol_version = "HTTP/1.1"
    server: "Endpoint"

    def do_POST(self) -> None:
        """Passes the request on, and what came back in the service's form."""
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        _, _, name, operation = self.path.split("/")
        url = self.server.names.get(name)
        if url is None:
            self._refuse(400, "ValidationError", {"Message": f"Endpoint {name} of account 0 not found."})
            return
        sent = {header: self.headers[header] for header in _TO_CONTAINER if header in self.headers}
        if operation == "invocations-response-stream":
            sent["Accept"] = self.headers.get("X-Amzn-SageMaker-Accept", "*/*")
        self.server.seen = sent
        # requests would add headers of its own; None takes them out.
        bare: dict[str, str | None] = {"User-Agent": None, "Accept-Encoding": None, "Accept": None, **sent}
        answer = requests.post(f"{url}/invocations", body, headers=bare, timeout=60)
        if answer.status_code != requests.codes.ok:
            self._model_error(answer)
        elif operation == "invocations":
            headers = {header: answer.headers[header] for header in _TO_CALLER if header in answer.headers}
            self._respond(200, headers, answer.content)
        else:
            content_type = answer.headers["Content-Type"]
            headers = {
                "Content-Type": "application/vnd.amazon.eventstream",
                _STREAM_CONTENT_TYPE: content_type,
            }
            parts = range(0, len(answer.content), _PART_BYTES)
            events = b"".join(_event(answer.content[start : start + _PART_BYTES]) for start in parts)
            self._respond(200, headers, events)

    def _model_error(self, answer: requests.Response) -> None:
        side = "client" if answer.status_code < requests.codes.server_error else "server"
        message = answer.text[:_MESSAGE_LENGTH]
        content: dict[str, str | int] = {
            "Message": f'Received {side} error ({answer.status_code}) from primary with message "{message}".',
            "OriginalStatusCode": answer.status_code,
            "OriginalMessage": message,
            "LogStreamArn": "",
        }
        self._refuse(424, "ModelError", content)

    def _refuse(self, status: int, error_type: str, content: Mapping[str, str | int]) -> None:
        headers = {"Content-Type": "application/json", "x-amzn-ErrorType": error_type}
        self._respond(status, headers, json.dumps(content).encode())

    def _respond(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: what a request did is in its answer."""


class Endpoint(ThreadingHTTPServer):
    """The service, on a free port of the loopback interface.

    Attributes:
        names: Where the container of each endpoint listens.
        seen: The headers that the last request brought to its container.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.names: dict[str, str] = {}
        self.seen: Mapping[str, str] = {}

    @property
    def url(self) -> str:
        """For the ``endpoint_url`` of a client."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextmanager
    def serving(self) -> Iterator["Endpoint"]:
        """Answers requests for the block's time."""
        thread = Thread(target=self.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


def _event(payload: bytes) -> bytes:
    """A ``PayloadPart``: https://docs.aws.amazon.com/transcribe/latest/dg/event-stream.html has the encoding."""
    named = {
        ":message-type": "event",
        ":event-type": "PayloadPart",
        ":content-type": "application/octet-stream",
    }
    headers = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value.encode()
        for name, value in named.items()
    )
    prelude = struct.pack("!II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack("!I", zlib.crc32(message))
