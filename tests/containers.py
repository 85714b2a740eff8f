"""Containers for a rehearsal: plain HTTP servers of which each does one thing wrong."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["CONTENT_TYPE", "Behaviour", "garbage", "serving", "sums"]

CONTENT_TYPE = "text/csv"
Answer = tuple[int, str | None, bytes]


def sums(body: bytes) -> bytes:
    """One line a record: the sum of its cells."""
    lines = body.decode().splitlines()
    return "".join(f"{sum(map(float, line.split(','))):g}\n" for line in lines).encode()


@dataclass
class Behaviour:
    """What a container does; by default everything right.

    Attributes:
        ping: Status and body of each ping.
        parameters: Body of /execution-parameters, or None for 404.
        answer: From a request's body and number (from 1) to status, content type and body.
        cut: Whether the connection is closed in the middle of each answer.
        requests: What has come: paths, headers and bodies.
    """

    ping: Callable[[], tuple[int, bytes]] = lambda: (200, b"")
    parameters: bytes | None = None
    answer: Callable[[bytes, int], Answer] = lambda body, _: (200, CONTENT_TYPE, sums(body))
    cut: bool = False
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """The container's URL while it runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body in one packet: the wait of Nagle's algorithm would be a slow container.
        wbufsize = -1

        def do_GET(self) -> None:
            if self.path == "/ping":
                status, body = behaviour.ping()
                self.reply(status, None, body)
            elif behaviour.parameters is None:
                self.reply(404, None, b"")
            else:
                self.reply(200, "application/json", behaviour.parameters)

        def do_POST(self) -> None:
            body = self.read_body()
            with behaviour.lock:
                behaviour.requests.append((dict(self.headers), body))
                number = len(behaviour.requests)
            self.reply(*behaviour.answer(body, number), cut=behaviour.cut)

        def read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers["Content-Length"]))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def reply(self, status: int, content_type: str | None, body: bytes, *, cut: bool = False) -> None:
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            if content_type is not None:
                self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body) + (10 if cut else 0)))
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = cut

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def garbage(text: bytes) -> Iterator[str]:
    """Answers every connection with bytes that are no HTTP."""
    listener = socket.create_server(("127.0.0.1", 0))
    stopped = threading.Event()

    def run() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                if stopped.is_set():
                    return
                connection.recv(65536)
                connection.sendall(text)

    thread = threading.Thread(target=run)
    thread.start()
    port = listener.getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stopped.set()
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join()
        listener.close()


def parameters(concurrent: object = 2, strategy: object = "MULTI_RECORD", payload: object = 6) -> bytes:
    """An answer to /execution-parameters."""
    return json.dumps(
        {"MaxConcurrentTransforms": concurrent, "BatchStrategy": strategy, "MaxPayloadInMB": payload}
    ).encode()
