"""A container as Batch Transform's agent sees it: over HTTP, with the contract's three resources.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-batch-code.html. A request that gets no answer,
an answer that is no HTTP, or a status from 500 on is repeated, the same body at once, or after as long as
``Retry-After`` asks; what the container refuses with another status is not. The platform documents the number of
repetitions and not their cause; see ModelClientConfig in
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_ModelClientConfig.html.
"""

import errno
import http.client
import json
import threading
import urllib.parse
from collections.abc import Callable
from contextlib import suppress
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from onnx_serve import __version__
from onnx_serve.batch.kept_connection import KeptConnection, cause
from onnx_serve.batch.request_plan import Answered
from onnx_serve.codecs.interface import Body
from onnx_serve.errors import ContainerError, SettingsError, quote
from onnx_serve.execution_parameters import ExecutionParameters
from onnx_serve.inference import Reply

__all__ = ["Container"]

_OK, _SERVER_ERROR = 200, 500
_ANSWER_MEMORY_BYTES = 16 << 20
_READ_BYTES = 1 << 20
_MESSAGE_BYTES = 1 << 16
_MESSAGE_LENGTH = 500
_RESOURCE_TIMEOUT_S = 10.0
_LONGEST_PAUSE_S = 30.0
_HEADERS = {"User-Agent": f"onnx-serve/{__version__}"}


class Container:
    """Sends requests to a running server. Thread-safe: every thread has a kept connection of its own.

    Args:
        url: ``http://HOST:PORT``, or the whole address of what takes the place of ``/invocations``.
        timeout_s: Of one request, from its first byte to the answer's last.
        max_retries: Times that a failed request is repeated.
        pause: Waits so many seconds; by default until then or until ``close``.

    Raises:
        SettingsError: The address is not one.
    """

    counts_rows = False

    def __init__(
        self, url: str, timeout_s: float, max_retries: int, pause: Callable[[float], object] | None = None
    ) -> None:
        self.url = url
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._stopped = threading.Event()
        self._pause = pause or self._stopped.wait
        self._secure, self._host, self._port, self._path = _split_url(url)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[KeptConnection] = []

    def check(self) -> None:
        """Asks once whether the container is there and ready.

        Raises:
            ContainerError: It is not.
        """
        status, _ = self._get("/ping")
        if status >= _SERVER_ERROR:
            raise ContainerError(f"{self.url}: expected status 200 for /ping, got {status}: not ready")

    def execution_parameters(self) -> ExecutionParameters | None:
        """What the container answers to ``/execution-parameters``; None unless it is the three numbers.

        Raises:
            ContainerError: No HTTP comes back.
        """
        status, content = self._get("/execution-parameters")
        return _parameters(content) if status == _OK else None

    def __call__(
        self,
        body: Body,
        content_type: str | None,
        accept: str | None,
        sink: BinaryIO | None = None,  # noqa: ARG002  an answer that breaks off is asked for again
    ) -> Answered:
        """One request, repeated as often as the job allows.

        Args:
            body: Its stream can seek; a negative length is sent in chunks.
            content_type: Sent as it is; None for no such header.
            accept: As ``content_type``.
            sink: Not used.

        Returns:
            The answer; how many records it has is not known.

        Raises:
            ContainerError: There is no good answer, after all repetitions.
        """
        headers = dict(_HEADERS)
        if content_type:
            headers["Content-Type"] = content_type
        if accept:
            headers["Accept"] = accept
        start = body.stream.tell()
        repetition = 0
        while True:
            body.stream.seek(start)
            try:
                return Answered(self._post(body, headers))
            except ContainerError as ex:
                if ex.retry_after_s is None or self._stopped.is_set() or repetition >= self._max_retries:
                    raise
                if ex.retry_after_s:
                    self._pause(ex.retry_after_s)
            repetition += 1

    def close(self) -> None:
        """Closes all connections; requests under way fail."""
        with self._lock:
            self._stopped.set()
            connections = list(self._connections)
        for connection in connections:
            connection.abort()
            with connection.in_use:
                connection.reset()

    def _get(self, path: str) -> tuple[int, bytes]:
        """Status and the first bytes of a small resource."""
        connection = self._connection()
        timeout_s = min(self._timeout_s, _RESOURCE_TIMEOUT_S)
        with connection.in_use:
            try:
                with connection.exchange("GET", path, None, _HEADERS, timeout_s) as response:
                    return response.status, response.read(_MESSAGE_BYTES)
            except (OSError, http.client.HTTPException) as ex:
                raise ContainerError(f"{self.url}: {path}: {cause(ex)}") from ex
            finally:
                connection.reset()

    def _post(self, body: Body, headers: dict[str, str]) -> Reply:
        connection = self._connection()
        with connection.in_use:
            try:
                with self._response(connection, body, headers) as response:
                    reply = _reply(response)
            except BaseException as ex:
                connection.reset()
                failure = self._failure(ex)
                if failure is None:
                    raise
                raise failure from ex
            return reply

    def _response(
        self, connection: KeptConnection, body: Body, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        """The head of an answer; a connection that was closed while it was idle is nobody's failure."""
        start = body.stream.tell()
        reused = connection.is_open
        try:
            return connection.exchange("POST", self._path, body, headers, self._timeout_s)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            if not reused:
                raise
        connection.reset()
        body.stream.seek(start)
        return connection.exchange("POST", self._path, body, headers, self._timeout_s)

    def _failure(self, ex: BaseException) -> ContainerError | None:
        """What a failed exchange is to a job; None for what is not the network's doing."""
        if isinstance(ex, TimeoutError):
            return ContainerError(f"no answer within {self._timeout_s:g} s", 0)
        if isinstance(ex, http.client.HTTPException) or (isinstance(ex, OSError) and not _is_disk(ex)):
            return ContainerError(f"{self.url}: {cause(ex)}", 0)
        return None

    def _connection(self) -> KeptConnection:
        connection: KeptConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = KeptConnection(self._secure, self._host, self._port)
            with self._lock:
                if self._stopped.is_set():
                    raise ContainerError("the job was stopped")
                self._connections.append(connection)
        return connection


def _reply(response: http.client.HTTPResponse) -> Reply:
    """A good answer, complete.

    Raises:
        ContainerError: The status is not 200, the only one of success in the platform's contract.
    """
    if response.status != _OK:
        message = _message(response.read(_MESSAGE_BYTES))
        pause = _pause_s(response) if response.status >= _SERVER_ERROR else None
        raise ContainerError(f"status {response.status}: {message}", pause)
    # The sink is handed on with the reply.
    sink = cast("BinaryIO", SpooledTemporaryFile(_ANSWER_MEMORY_BYTES))  # noqa: SIM115
    try:
        while chunk := response.read(_READ_BYTES):
            sink.write(chunk)
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)  # noqa: TRY301  one place closes the sink
    except BaseException:
        sink.close()
        raise
    length = sink.tell()
    sink.seek(0)
    media_type = response.getheader("Content-Type") or ""
    if length > _ANSWER_MEMORY_BYTES:
        return Reply(media_type, sink, length)
    with sink:
        return Reply(media_type, sink.read(), length)


def _pause_s(response: http.client.HTTPResponse) -> float:
    """Seconds that the container asks for; 0 without a wish."""
    try:
        seconds = float(response.getheader("Retry-After") or 0)
    except ValueError:
        return 0
    return min(max(seconds, 0), _LONGEST_PAUSE_S) if seconds == seconds else 0  # noqa: PLR0124  NaN


def _message(content: bytes) -> str:
    """An error's text: what a JSON object calls ``error``, else the start of the body, on one line."""
    text = content.decode("utf-8", "replace")
    with suppress(ValueError, RecursionError):
        document = json.loads(text)
        if isinstance(document, dict) and isinstance(document.get("error"), str):
            text = document["error"]
    words = " ".join(text[: 4 * _MESSAGE_LENGTH].split())
    return "".join(c for c in words if c.isprintable())[:_MESSAGE_LENGTH] or "no message"


def _parameters(content: bytes) -> ExecutionParameters | None:
    try:
        document = json.loads(content)
        concurrent, payload = document.get("MaxConcurrentTransforms", 1), document.get("MaxPayloadInMB", 6)
        strategy = str(document.get("BatchStrategy", "MULTI_RECORD")).replace("_", "").upper()
    except (ValueError, AttributeError, RecursionError):
        return None
    names = {"MULTIRECORD": "MULTI_RECORD", "SINGLERECORD": "SINGLE_RECORD"}
    numbers = (concurrent, payload)
    if strategy not in names or not all(type(n) is int and 0 <= n <= 10_000 for n in numbers):  # noqa: PLR2004  beyond any sense
        return None
    return ExecutionParameters(concurrent, names[strategy], payload)


def _split_url(url: str) -> tuple[bool, str, int | None, str]:
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urllib.parse.SplitResult("", "", "", "", ""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or not url.isascii():
        raise SettingsError(f"--url: expected http://HOST:PORT, got {quote(url)}")
    path = parts.path if parts.path not in ("", "/") else "/invocations"
    return parts.scheme == "https", parts.hostname, port, f"{path}?{parts.query}" if parts.query else path


def _is_disk(ex: Exception) -> bool:
    """Whether the temporary directory failed and not the network."""
    return isinstance(ex, OSError) and ex.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
