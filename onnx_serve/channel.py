"""One HTTP connection: requests in, answers out. Waitress's channel and tasks with what they leave open mended."""

import json
import logging
import socket
import time
from typing import Any

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.task import ErrorTask, Task, WSGITask
from waitress.utilities import Error

from onnx_serve.errors import quote
from onnx_serve.request_parser import (
    HEADER_BYTES,
    LIBRARY_LOG,
    SMALL_RECV_BYTES,
    InsufficientMemory,
    RequestParser,
)

__all__ = ["Channel"]

LOG = logging.getLogger("onnx_serve")

_JOIN_BYTES = 1 << 16
_UPLOAD_STALL_S = 5.0

# Waitress's error codes: what the client gets. Any other code is a 400.
_EARLY_ERRORS = {
    413: (
        "413 Content Too Large",
        "PayloadTooLarge",
        "the request body is over the server's limit of {limit} bytes",
    ),
    431: (
        "431 Request Header Fields Too Large",
        "RequestError",
        f"the request's headers are over {HEADER_BYTES} bytes",
    ),
    500: (
        "500 Internal Server Error",
        "InternalServerError",
        "internal server error; the server's log has its cause",
    ),
    501: (
        "400 Bad Request",
        "RequestError",
        "malformed HTTP request: Transfer-Encoding must be chunked, once",
    ),
    507: (
        "507 Insufficient Storage",
        "OutOfMemory",
        "the server has no temporary space left for the request body",
    ),
}


class _Answer(Task):  # type: ignore[misc]  # waitress has no types
    """Writes an answer: a small complete one in one send, none for HEAD, the last one of a drain with a close."""

    wrote_header: bool

    def build_response_header(self) -> bytes:
        """The status line and headers, up to and including the empty line."""
        if self.channel.server.draining and len(self.channel.requests) <= 1:
            self.request.headers["CONNECTION"] = "close"
        header: bytes = super().build_response_header()
        if self.request.command == "HEAD":
            self.chunked_response = False
        return header

    def write(self, data: bytes) -> None:
        """Writes a piece of the body, after the header if that is still to be written."""
        if self.request.command == "HEAD":
            data = b""
        if (
            self.wrote_header
            or not self.complete
            or not self.has_body
            or not 0 < len(data) <= _JOIN_BYTES
            or self.content_length != len(data)
        ):
            super().write(data)
            return
        self.channel.write_soon(self.build_response_header() + data)
        self.wrote_header = True
        self.content_bytes_written = len(data)


class _Task(_Answer, WSGITask):  # type: ignore[misc]  # waitress has no types
    """Answers a request through the app."""

    logger = LIBRARY_LOG

    def get_environment(self) -> dict[str, Any]:
        """The WSGI environment; no ``wsgi.file_wrapper`` for HEAD, whose body it would send."""
        environ: dict[str, Any] = super().get_environment()
        if self.request.command == "HEAD":
            environ.pop("wsgi.file_wrapper", None)
        return environ


class _ErrorTask(_Answer, ErrorTask):  # type: ignore[misc]  # waitress has no types
    """Answers a request that never reaches the app, in the form that the app's errors have."""

    logger = LIBRARY_LOG

    def execute(self) -> None:
        """Writes the error as JSON and has the connection closed."""
        self.status, error_type, message = _early_error(self.request.error, self.channel.adj)
        body = json.dumps({"error": message, "error_type": error_type}).encode()
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


def _early_error(error: Error, settings: Adjustments) -> tuple[str, str, str]:
    """The status line, error type and text for waitress's own view of what is wrong."""
    if isinstance(error, InsufficientMemory):
        return "413 Content Too Large", "PayloadTooLarge", error.body
    if error.code in _EARLY_ERRORS:
        status, error_type, message = _EARLY_ERRORS[error.code]
        return status, error_type, message.format(limit=settings.max_request_body_size - 1)
    # Waitress quotes the offending line whole.
    problem, _, line = error.body.partition(' "')
    came = f": {quote(line.removesuffix(chr(34)))}" if line else ""
    return "400 Bad Request", "RequestError", f"malformed HTTP request: {problem}{came}"


class Channel(HTTPChannel):  # type: ignore[misc]  # waitress has no types
    """One connection. The I/O thread alone opens and closes it; a worker may write to it."""

    task_class = _Task
    error_task_class = _ErrorTask
    parser_class = RequestParser
    logger = LIBRARY_LOG
    request: RequestParser | None  # the one being received
    requests: list[RequestParser]  # received, oldest first
    total_outbufs_len: int
    _is_sending = False  # a worker is

    @property
    def busy(self) -> bool:
        """Whether closing it now would lose a request, an answer, or an upload that still moves."""
        if self.requests or self.total_outbufs_len:
            return True
        return self.request is not None and time.time() - self.last_activity < _UPLOAD_STALL_S

    def recv(self, buffer_size: int) -> bytes | range:
        """Reads a body that is kept in memory to its place there, and else little unless much is to come.

        Waitress copies the rest of what it read for every chunk and every pipelined request in it: a
        mebibyte of tiny ones would take minutes.

        Returns:
            What ``RequestParser.received`` takes; nothing at the connection's end.
        """
        expected = 0
        if self.request is not None and self.request.body_rcv is not None:
            if (placed := self._recv_in_place(self.request, buffer_size)) is not None:
                return placed
            body = self.request.body_rcv
            expected = body.chunk_remainder if self.request.chunked else body.remain
        data: bytes = super().recv(min(buffer_size, max(expected, SMALL_RECV_BYTES)))
        return data

    def _recv_in_place(self, request: RequestParser, most: int) -> range | None:
        try:
            placed = request.receive_in_place(self.socket, most)
        except ConnectionError:
            placed = range(0)
        if placed is not None and not placed:
            self.handle_close()
        return placed

    def writable(self) -> bool:
        """Whether the I/O thread is to send: not what a worker is sending at this moment.

        Waitress's own answer is yes, but then the worker holds the lock. The I/O thread polled a socket that was ready,
        found it locked, and so on; the worker had its lock of the interpreter back after 5 ms, for each answer.
        """
        if self._is_sending and self.total_outbufs_len <= self.adj.outbuf_high_watermark:
            return False
        return bool(self.total_outbufs_len or self.will_close or self.close_when_flushed)

    def write_soon(self, data: Any) -> int:
        """Sends what the socket takes at once and leaves the rest to the I/O thread. For workers.

        Raises:
            ClientDisconnected: The client has gone.
        """
        self._is_sending = True
        try:
            written: int = super().write_soon(data)
        finally:
            self._is_sending = False
            if self.total_outbufs_len:
                self.server.pull_trigger()
        return written

    def check_client_disconnected(self) -> bool:
        """Whether the client has gone; waitress itself never looks while a request runs. For workers."""
        connection = self.socket
        if connection is None:
            return True
        try:
            return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def send_continue(self) -> None:
        """Sends 100 Continue; never closes, since a worker may call it."""
        line = b"HTTP/1.1 100 Continue\r\n\r\n"
        assert self.request is not None
        self.request.expect_continue = False
        with self.outbuf_lock:
            self.outbufs[-1].append(line)
            self.current_outbuf_count += len(line)
            self.total_outbufs_len += len(line)
            self.sent_continue = True
            self._flush_exception(self._flush_some, do_close=False)

    def service(self) -> None:
        """Answers the first request, on a worker."""
        try:
            super().service()
        except BaseException:
            # Waitress would keep the request queued and the connection open for ever.
            self.drop_requests()
            self.will_close = True
            self.server.pull_trigger()
            raise

    def drop_requests(self) -> None:
        """Forgets the requests that no worker is answering, and their bodies."""
        with self.requests_lock:
            requests, self.requests = self.requests, []
        for request in requests:
            request.close()

    def cancel(self) -> None:
        """Gives up its requests; only for a connection that waits for a worker."""
        self.drop_requests()
        super().cancel()

    def handle_close(self) -> None:
        """Closes the connection and the body that is still being received."""
        super().handle_close()
        with self.requests_lock:
            partial, self.request = self.request, None
        if partial is not None:
            partial.close()

    def handle_expt(self) -> None:
        """Closes on urgent data, which HTTP does not have and poll would report for ever."""
        self.handle_close()

    def handle_error(self) -> None:
        """Closes this connection only; called with the exception being handled."""
        LOG.exception("a connection failed and is closed")  # noqa: LOG004 - waitress calls this in its handler
        self.handle_close()
