"""Real sockets on loopback, tiny WSGI apps. Waits are on events and sockets, each with a limit."""

import contextlib
import errno
import http.client
import io
import json
import logging
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.parser import HTTPRequestParser

from onnx_serve import channel, request_parser
from onnx_serve import server as server_module
from onnx_serve.errors import SettingsError
from onnx_serve.server import Server, default_connection_limit

LIMIT_S = 20
MIB = 1 << 20
GET = b"GET /ping HTTP/1.1\r\n\r\n"


class Served:
    """A running server, and what ``run`` returned once it has ended."""

    def __init__(self, app: WSGIApplication, **options: Any) -> None:
        arguments: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": 0,
            "threads": 4,
            "body_memory_bytes": 16 * MIB,
            "hard_body_limit_bytes": 64 * MIB,
            "connection_limit": 1000,
        }
        self.server = Server(app, **{**arguments, **options})
        self.drained: bool | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self.drained = self.server.run()

    def start(self) -> None:
        self._thread.start()

    def join(self) -> bool | None:
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()
        return self.drained

    def stop(self) -> bool | None:
        self.server.stop()
        return self.join()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=LIMIT_S)

    def client(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=LIMIT_S)


@contextlib.contextmanager
def serving(app: WSGIApplication, **options: Any) -> Iterator[Served]:
    served = Served(app, **options)
    served.start()
    try:
        yield served
    finally:
        served.stop()


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Every test ends its workers. An engine of another module's test may still wait to be collected."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("onnx-serve-"):
            thread.join(LIMIT_S)
            assert not thread.is_alive()


def echo(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Answers with the body, and says how it came."""
    body = environ["wsgi.input"].read()
    start_response(
        "200 OK",
        [
            ("Content-Type", "application/octet-stream"),
            ("X-Length", environ.get("CONTENT_LENGTH", "none")),
            ("X-Memory", str(isinstance(environ["wsgi.input"], io.BytesIO))),
            ("X-Path", environ["PATH_INFO"]),
        ],
    )
    return [body]


class Gate:
    """An app that holds every request but /ping until it is opened."""

    def __init__(self, expected: int = 1) -> None:
        self.expected = expected
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/ping":
            self.entered.release()
            assert self.opened.wait(LIMIT_S)
        return echo(environ, start_response)

    def wait(self) -> None:
        """Until ``expected`` requests are being held."""
        for _ in range(self.expected):
            assert self.entered.acquire(timeout=LIMIT_S)


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes; a reset counts as closing."""
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(MIB):
            pieces.append(piece)
    return b"".join(pieces)


def read_answer(connection: socket.socket, method: str = "GET") -> tuple[http.client.HTTPResponse, bytes]:
    """One answer, parsed by the standard library."""
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    body = response.read()
    response.close()
    return response, body


def error_of(answer: bytes) -> tuple[int, dict[str, str]]:
    """Status and JSON of a raw answer that closes its connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    assert b"Connection: close" in head
    assert f"Content-Length: {len(body)}".encode() in head
    return int(head.split()[1]), json.loads(body)


# The limits


@given(st.integers(0, 1 << 22))
@settings(max_examples=200)
def test_connection_limit_leaves_descriptors_for_others(descriptors: int) -> None:
    limit = default_connection_limit(descriptors)
    assert 1 <= limit <= max(1, descriptors)
    assert descriptors < 1152 or 1000 <= limit <= descriptors - 128
    assert limit <= default_connection_limit(descriptors + 1)


@pytest.mark.parametrize(
    ("descriptors", "limit"),
    [(1024, 896), (1152, 1008), (65536, 4096), (resource.RLIM_INFINITY, 4096), (64, 32), (0, 1)],
)
def test_connection_limit(descriptors: int, limit: int) -> None:
    assert default_connection_limit(descriptors) == limit


def test_connections_over_the_limit_wait_until_one_closes() -> None:
    with serving(echo, connection_limit=1) as served, served.connect() as first:
        first.sendall(GET)
        read_answer(first)
        with served.connect() as second:
            second.sendall(GET)
            second.settimeout(0.1)
            with pytest.raises(TimeoutError):
                second.recv(1)
            second.settimeout(LIMIT_S)
            first.close()
            assert read_answer(second)[0].status == 200


# Starting


def test_clients_connect_before_run_and_are_answered_by_it() -> None:
    served = Served(echo)
    with served.connect() as connection:
        connection.sendall(GET)
        served.start()
        assert read_answer(connection)[0].status == 200
    assert served.stop() is True


def test_stop_before_run_ends_run() -> None:
    served = Served(echo)
    served.server.stop()
    served.server.stop()
    served.start()
    assert served.join() is True


def test_close_frees_the_port_of_a_server_that_never_ran() -> None:
    served = Served(echo)
    served.server.close()
    served.server.close()
    served.server.stop()
    again = Served(echo, port=served.server.port)
    assert again.server.port == served.server.port
    again.server.close()


@pytest.mark.parametrize(
    ("host", "port", "cause"),
    [
        ("127.0.0.1", 70000, "cannot listen on port 70000: expected 0 to 65535"),
        ("a" * 70, 0, "cannot listen on a*:0: "),
        ("nowhere.invalid", 0, "cannot listen on nowhere.invalid:0: "),
        ("192.0.2.1", 0, "cannot listen on 192.0.2.1:0: Cannot assign requested address"),
    ],
    ids=["port", "long name", "name", "foreign address"],
)
def test_an_address_that_cannot_be_listened_on(host: str, port: int, cause: str) -> None:
    with pytest.raises(SettingsError, match=cause):
        Served(echo, host=host, port=port)


def test_a_port_in_use_is_a_settings_error() -> None:
    served = Served(echo)
    with pytest.raises(SettingsError, match="Address already in use"):
        Served(echo, port=served.server.port)
    served.server.close()


def test_ipv6_wildcard_takes_ipv4_too() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this system has no dual-stack IPv6")
    with serving(echo, host="::") as served, served.connect() as connection:
        connection.sendall(GET)
        assert read_answer(connection)[0].status == 200


# Bodies


@pytest.mark.parametrize(
    ("length", "memory"), [(0, True), (1, True), (8 * MIB, True), (16 * MIB + 1, False), (20 * MIB, False)]
)
def test_bodies_come_back_whole_from_memory_and_from_a_file(length: int, memory: bool) -> None:
    body = os.urandom(min(length, 4096)).ljust(length, b"x")
    with serving(echo) as served, contextlib.closing(served.client()) as client:
        for _ in range(2):
            client.request("POST", "/invocations", body)
            response = client.getresponse()
            assert response.read() == body
            assert response.headers["X-Length"] == str(length)
            assert response.headers["X-Memory"] == str(memory)


def test_a_spooled_body_is_closed_and_nothing_stays_on_disk(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    inputs = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        inputs.append(environ["wsgi.input"])
        return echo(environ, start_response)

    with serving(app, body_memory_bytes=1000) as served, contextlib.closing(served.client()) as client:
        client.request("POST", "/", b"x" * 100_000)
        response = client.getresponse()
        assert response.headers["X-Memory"] == "False"
        assert response.read() == b"x" * 100_000
    assert [body.closed for body in inputs] == [True]
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_a_spooled_body_is_507(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with serving(echo, body_memory_bytes=1000) as served, served.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 16000\r\n\r\n" + b"x" * 16000)
        status, error = error_of(read_all(connection))
    assert (status, error["error_type"]) == (507, "OutOfMemory")
    assert "temporary space" in error["error"]


@pytest.mark.parametrize("body_memory_bytes", [MIB, 1000], ids=["memory", "spooled"])
def test_a_chunked_body_is_dechunked_and_measured(body_memory_bytes: int) -> None:
    pieces = [b"a" * 10, b"b" * 70_000, b"c"]
    with (
        serving(echo, body_memory_bytes=body_memory_bytes) as served,
        contextlib.closing(served.client()) as client,
    ):
        client.request("POST", "/", iter(pieces), encode_chunked=True)
        response = client.getresponse()
        assert response.read() == b"".join(pieces)
        assert response.headers["X-Length"] == "70011"


def test_chunks_are_read_a_little_at_a_time_and_large_bodies_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waitress copies the rest of what it read for each chunk: quadratic time in a mebibyte of tiny ones."""
    sizes: list[int] = []
    received = HTTPRequestParser.received

    def recording(self: HTTPRequestParser, data: bytes) -> int:
        sizes.append(len(data))
        count: int = received(self, data)
        return count

    monkeypatch.setattr(HTTPRequestParser, "received", recording)
    chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n"
    with serving(echo) as served, served.connect() as connection:
        connection.sendall(chunked)
        assert len(read_answer(connection)[1]) == 50_000
        assert max(sizes) <= 16384
        sizes.clear()
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 8000000\r\n\r\n" + b"x" * 8_000_000)
        assert len(read_answer(connection)[1]) == 8_000_000
        assert max(sizes) > 16384


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_a_body_is_the_same_however_it_arrives(lengths: list[int]) -> None:
    body = bytes(range(256)) * (sum(lengths) // 256 + 1)
    body = body[: sum(lengths)]
    parser = request_parser.RequestParser(Adjustments())
    parser.received(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body))
    rest = body
    for length in lengths:
        assert not parser.completed
        assert parser.received(rest[:length]) == length
        rest = rest[length:]
    assert parser.completed
    stream = parser.get_body_stream()
    assert stream is parser.get_body_stream()
    assert stream.read() == body
    parser.close()
    assert stream.closed


@contextlib.contextmanager
def receiving(length: int) -> Iterator[tuple[request_parser.RequestParser, socket.socket, socket.socket]]:
    """A parser that has the head of a request with such a body, and the two ends of its connection."""
    parser = request_parser.RequestParser(Adjustments(inbuf_overflow=1 << 40))
    parser.received(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % length)
    client, server = socket.socketpair()
    with client, server:
        yield parser, client, server
    parser.close()


def test_a_body_in_memory_is_there_once() -> None:
    """Received where the app reads it: neither gathering nor reading makes a copy."""
    body = bytes(range(256)) * 40_000
    tracemalloc.start()
    with receiving(len(body)) as (parser, client, server):
        parser.received(body[:100])
        sender = threading.Thread(target=client.sendall, args=(memoryview(body)[100:],))
        sender.start()
        while not parser.completed:
            placed = parser.receive_in_place(server, MIB)
            assert placed
            assert parser.received(placed) == len(placed)
        sender.join()
        stream = parser.get_body_stream()
        content = stream.read()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert content == body
    assert peak < 1.1 * len(body)


def test_what_follows_a_body_in_memory_is_left_for_the_next_request() -> None:
    with receiving(5) as (parser, client, server):
        client.sendall(b"abcdeGET / HTTP/1.1\r\n\r\n")
        assert parser.receive_in_place(server, MIB) == range(5)
        assert parser.received(range(5)) == 5
        assert parser.completed
        assert server.recv(3) == b"GET"


def test_a_body_that_is_announced_takes_no_memory() -> None:
    """Whether malloc, tuned as the server has it, maps it anew (60 MB) or not (20 MB)."""
    program = textwrap.dedent("""
        import resource
        from onnx_serve import allocator
        allocator.tune(1 << 34)
        from waitress.adjustments import Adjustments
        from onnx_serve.request_parser import RequestParser

        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize()

        used = bytearray(b"x") * 25_000_000
        del used
        before, parsers = resident(), []
        for length in (60_000_000, 20_000_000) * 4:
            parsers.append(RequestParser(Adjustments(inbuf_overflow=1 << 30)))
            parsers[-1].received(b"POST / HTTP/1.1\\r\\nContent-Length: %d\\r\\n\\r\\n" % length)
            parsers[-1].received(b"0123456789")
        print(resident() - before)
    """)
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(result.stdout) < 5_000_000


def test_a_chunked_body_in_memory_is_read_without_a_copy() -> None:
    parser = request_parser.RequestParser(Adjustments(inbuf_overflow=MIB))
    parser.received(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(10):
        parser.received(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
    parser.received(b"0\r\n\r\n")
    stream = parser.get_body_stream()
    assert stream.read() is stream.getvalue()
    assert len(stream.getvalue()) == 100_000
    parser.close()


@pytest.mark.parametrize("linger", [b"", struct.pack("ii", 1, 0)], ids=["closed", "reset"])
def test_a_client_that_leaves_within_a_body_in_memory(
    linger: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection is closed, its body freed, nothing logged; the others live on."""
    with serving(echo) as served:
        with served.connect() as connection:
            connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + b"x" * 50_000)
            if linger:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        with served.connect() as other:
            other.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + b"y" * 100_000)
            assert read_answer(other)[1] == b"y" * 100_000
    assert caplog.records == []


def test_a_body_of_single_bytes_needs_no_more_memory() -> None:
    """An object for each received byte would need fifty times as much."""
    length = 20_000
    parser = request_parser.RequestParser(Adjustments())
    parser.received(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (length + 1))
    tracemalloc.start()
    for _ in range(length):
        parser.received(b"x")
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    parser.close()
    assert used < 2 * length


def test_100_continue_comes_before_the_body_is_sent() -> None:
    with serving(echo) as served, served.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc")
        assert read_answer(connection)[1] == b"abc"


def test_100_continue_waits_for_the_answer_before_it() -> None:
    gate = Gate()
    with serving(gate) as served, served.connect() as connection:
        connection.sendall(
            b"POST /1 HTTP/1.1\r\nContent-Length: 1\r\n\r\n1"
            b"POST /ping HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
        )
        gate.wait()
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
        connection.settimeout(LIMIT_S)
        gate.opened.set()
        received = b""
        while not received.endswith(b"HTTP/1.1 100 Continue\r\n\r\n"):
            piece = connection.recv(1000)
            assert piece
            received += piece
        assert received.startswith(b"HTTP/1.1 200 OK")
        connection.sendall(b"abc")
        assert read_answer(connection)[1] == b"abc"


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n", 200),
        (b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: x\r\n\r\n", 400),
    ],
    ids=["no body", "too large", "malformed"],
)
def test_no_100_continue_where_no_body_is_wanted(request_head: bytes, status: int) -> None:
    with serving(echo) as served, served.connect() as connection:
        connection.sendall(request_head)
        assert connection.recv(100).split()[1] == str(status).encode()


# Connections


def test_a_connection_serves_many_requests() -> None:
    with serving(echo) as served, contextlib.closing(served.client()) as client:
        ports = set()
        for number in range(50):
            client.request("POST", f"/{number}", str(number))
            assert client.sock is not None
            ports.add(client.sock.getsockname()[1])
            assert client.getresponse().read() == str(number).encode()
        assert len(ports) == 1


def test_pipelined_requests_are_answered_in_order() -> None:
    with serving(echo) as served, served.connect() as connection:
        connection.sendall(
            b"".join(
                b"POST /%d HTTP/1.1\r\nContent-Length: 2\r\n\r\n%02d" % (number, number)
                for number in range(20)
            )
            + b"GET /last HTTP/1.1\r\nConnection: close\r\n\r\n"
        )
        answers = read_all(connection)
    paths = [line[8:] for line in answers.split(b"\r\n") if line.startswith(b"X-Path: ")]
    assert paths == [b"/%d" % number for number in range(20)] + [b"/last"]


def test_http_1_0_is_answered_and_closed_and_kept_alive_on_request() -> None:
    with serving(echo) as served:
        with served.connect() as connection:
            connection.sendall(b"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc")
            answer = read_all(connection)
            assert answer.startswith(b"HTTP/1.0 200 OK")
            assert answer.endswith(b"\r\n\r\nabc")
        with served.connect() as connection:
            for _ in range(2):
                connection.sendall(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                assert read_answer(connection)[0].headers["Connection"] == "Keep-Alive"


def test_proxy_headers_of_untrusted_clients_do_not_reach_the_app() -> None:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        seen.update(environ)
        return echo(environ, start_response)

    with serving(app) as served, served.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-Forwarded-For: 1.2.3.4\r\nX-Own: 1\r\n\r\n")
        assert read_answer(connection)[0].headers["Server"] == "onnx-serve"
    assert seen["HTTP_X_OWN"] == "1"
    assert "HTTP_X_FORWARDED_FOR" not in seen
    assert seen["SERVER_SOFTWARE"] == "onnx-serve"


# Malformed requests

_TRAILER = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
MALFORMED = {
    "no request line": (b"\x16\x03\x01\x02\r\n\r\n", 400, "request line is invalid"),
    "two spaces": (b"GET  / HTTP/1.1\r\n\r\n", 400, "request line is invalid"),
    "lower-case method": (b"get / HTTP/1.1\r\n\r\n", 400, "Malformed HTTP method"),
    "method of signs": (b"G(T / HTTP/1.1\r\n\r\n", 400, "Start line is invalid"),
    "no colon": (b"GET / HTTP/1.1\r\nHost\r\n\r\n", 400, "Invalid header"),
    "control character": (b"GET / HTTP/1.1\r\nA: \x1b[31m\r\n\r\n", 400, "Invalid header"),
    "bare CR": (b"GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", 400, 'Bare CR or LF found in header line: "A:b\\x0dc"'),
    "bare LF": (b"GET /\nx HTTP/1.1\r\n\r\n", 400, "Bare CR or LF"),
    "folded": (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400, "folded"),
    "bad URL": (b"GET http://[::1 HTTP/1.1\r\n\r\n", 400, "request target or Content-Length is invalid"),
    "letters as length": (
        b"POST / HTTP/1.1\r\nContent-Length: ten\r\n\r\n",
        400,
        "Content-Length is invalid",
    ),
    "negative length": (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "Content-Length is invalid"),
    "two lengths": (
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        400,
        "Content-Length is invalid",
    ),
    "endless length": (
        b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        400,
        "request target or Content-Length is invalid",
    ),
    "gzip coding": (
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        400,
        "Transfer-Encoding must be chunked",
    ),
    "chunked twice": (
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
        400,
        "Transfer-Encoding must be chunked, once",
    ),
    "length and chunks": (
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
        "both Content-Length and Transfer-Encoding",
    ),
    "chunks in HTTP/1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "needs HTTP/1.1"),
    "chunk size": (_TRAILER + b"zz\r\n", 400, "Invalid chunk size"),
    "chunk end": (_TRAILER + b"1\r\nabc\r\n0\r\n\r\n", 400, "Chunk not properly terminated"),
    "chunk extension": (_TRAILER + b"1;\x01\r\n", 400, "Invalid chunk extension"),
    "long chunk line": (_TRAILER + b"1;" + b"a" * 5000, 400, "too long"),
    "long trailer": (_TRAILER + b"0\r\nA: " + b"a" * 5000, 400, "too long"),
    "long headers": (b"GET / HTTP/1.1\r\nA: " + b"a" * 70_000, 431, "over 65536 bytes"),
    "large body": (b"POST / HTTP/1.1\r\nContent-Length: 1001\r\n\r\n", 413, "limit of 1000 bytes"),
    "large chunked body": (_TRAILER + b"7d0\r\n" + b"x" * 2000, 413, "limit of 1000 bytes"),
}


@pytest.mark.parametrize(("sent", "status", "problem"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_requests_are_answered_in_json(sent: bytes, status: int, problem: str) -> None:
    limit = 1 << 20 if b"chunk" in sent and status == 400 else 1000
    with serving(echo, hard_body_limit_bytes=limit) as served:
        with served.connect() as connection:
            connection.sendall(sent)
            got, error = error_of(read_all(connection))
        with served.connect() as connection:
            connection.sendall(GET)
            assert read_answer(connection)[0].status == 200
    assert got == status
    assert error.keys() == {"error", "error_type"}
    assert error["error_type"] == ("PayloadTooLarge" if status == 413 else "RequestError")
    assert problem in error["error"]
    assert error["error"].isprintable()
    assert len(error["error"]) < 200


def test_a_body_of_exactly_the_hard_limit_is_taken() -> None:
    with serving(echo, hard_body_limit_bytes=1000) as served, served.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000)
        assert read_answer(connection)[1] == b"x" * 1000


def test_a_hard_limit_of_zero_is_none() -> None:
    with serving(echo, hard_body_limit_bytes=0) as served, served.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000)
        assert read_answer(connection)[1] == b"x" * 1000


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nA:" + b" " * 65_000 + b"x\r\n\r\n", 200),
        (b"GET a://" + b"b" * 65_000 + b" x x\r\n\r\n", 400),
    ],
    ids=["spaces before a value", "request line"],
)
def test_headers_are_parsed_in_linear_time(sent: bytes, status: int) -> None:
    """Waitress's own patterns need 10 to 50 seconds for these, in which no other client is answered."""
    with serving(echo) as served, served.connect() as connection:
        connection.settimeout(5)
        connection.sendall(sent)
        assert read_answer(connection)[0].status == status


def test_header_values_keep_their_inner_spaces() -> None:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        seen.update(environ)
        return echo(environ, start_response)

    with serving(app) as served, served.connect() as connection:
        connection.sendall(b"GET /a:b HTTP/1.1\r\nA: \t x:  y \r\nB:\r\nC:z\r\n\r\n")
        assert read_answer(connection)[0].headers["X-Path"] == "/a:b"
    assert (seen["HTTP_A"], seen["HTTP_B"], seen["HTTP_C"]) == ("x:  y", "", "z")


@given(st.binary(max_size=300))
@settings(max_examples=60, deadline=None)
def test_arbitrary_bytes_end_in_an_answer_or_a_wait_for_more(sent: bytes) -> None:
    parser = request_parser.RequestParser(Adjustments())
    received = parser.received(sent)
    assert 0 <= received <= len(sent)
    if parser.error is not None:
        assert parser.completed
        status, error_type, text = channel._early_error(parser.error, parser.adj)
        assert status[0] in "45"
        assert error_type
        assert text.isprintable()
    parser.close()


# Answers


class Wire:
    """Stands where waitress's channel does and keeps each write."""

    def __init__(self, *, draining: bool = False) -> None:
        self.adj = Adjustments(ident="onnx-serve")
        self.server = self
        self.draining = draining
        self.requests: list[object] = [None]
        self.writes: list[bytes] = []

    def write_soon(self, data: bytes) -> int:
        self.writes.append(bytes(data))
        return len(data)

    def check_client_disconnected(self) -> bool:
        return False

    addr = ("127.0.0.1", 1)
    effective_port = 1
    server_name = "localhost"
    application: WSGIApplication


def written(app: WSGIApplication, request: bytes = GET, *, draining: bool = False) -> list[bytes]:
    """The separate writes of one answer."""
    wire = Wire(draining=draining)
    wire.application = app
    parser = request_parser.RequestParser(wire.adj)
    parser.received(request)
    channel._Task(wire, parser).service()
    return wire.writes


def answering(status: str, *body: bytes, length: int | None = None) -> WSGIApplication:
    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        start_response(status, [] if length is None else [("Content-Length", str(length))])
        return iter(body) if len(body) > 1 else list(body)

    return app


@pytest.mark.parametrize(
    ("app", "request_head", "writes"),
    [
        (answering("200 OK", b"abc"), GET, 1),
        (answering("200 OK", b"abc", length=3), GET, 1),
        (answering("404 Not Found", b"abc"), GET, 1),
        (answering("200 OK", b"x" * 65536), GET, 1),
        (answering("200 OK", b"x" * 65537), GET, 2),
        (answering("200 OK", b"ab", b"c", length=3), GET, 3),
        (answering("200 OK", b"ab", b"c"), GET, 4),
        (answering("200 OK", b"", length=0), GET, 1),
        (answering("204 No Content"), GET, 1),
        (answering("304 Not Modified"), GET, 1),
        (answering("200 OK", b"abc"), b"HEAD / HTTP/1.1\r\n\r\n", 1),
        (answering("200 OK", b"ab", b"c"), b"HEAD / HTTP/1.1\r\n\r\n", 1),
        (answering("200 OK", b"abc"), b"GET / HTTP/1.0\r\n\r\n", 1),
    ],
    ids=[
        "small", "small with length", "error", "largest", "larger", "pieces", "chunked", "empty", "204", "304",
        "HEAD", "HEAD of chunked", "HTTP/1.0",
    ],
)  # fmt: skip
def test_header_and_body_of_a_small_complete_answer_are_one_write(
    app: WSGIApplication, request_head: bytes, writes: int
) -> None:
    got = written(app, request_head)
    assert len(got) == writes
    head, end, rest = got[0].partition(b"\r\n\r\n")
    assert end
    assert head.startswith(b"HTTP/1.")
    if request_head.startswith(b"HEAD"):
        assert rest == b""


def test_an_answer_longer_than_its_content_length_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    assert b"".join(written(answering("200 OK", b"abcdef", length=3))).endswith(b"\r\n\r\nabc")
    assert "exceeded" in caplog.text


def test_writing_before_start_response_is_refused() -> None:
    with pytest.raises(RuntimeError, match="start_response"):
        written(lambda environ, start_response: [b"x"])


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_answers_during_the_drain_say_that_the_connection_closes(version: bytes) -> None:
    request = b"GET / HTTP/" + version + b"\r\nConnection: keep-alive\r\n\r\n"
    [answer] = written(answering("200 OK", b"abc"), request, draining=True)
    assert answer.count(b"Connection: close\r\n") == 1
    assert b"Keep-Alive" not in answer
    [answer] = written(answering("200 OK", b"abc"), request)
    assert b"Connection: close" not in answer


@pytest.mark.parametrize("pieces", [(b"abc",), (b"a", b"bc")], ids=["complete", "streamed"])
def test_head_answers_have_no_body(pieces: tuple[bytes, ...]) -> None:
    with serving(answering("200 OK", *pieces, length=3)) as served, served.connect() as connection:
        for _ in range(2):
            connection.sendall(b"HEAD / HTTP/1.1\r\n\r\n")
            response, body = read_answer(connection, "HEAD")
            assert (response.headers["Content-Length"], body) == ("3", b"")


def test_head_of_an_answer_without_length_ends_after_its_headers() -> None:
    with serving(answering("200 OK", b"a", b"bc")) as served, served.connect() as connection:
        connection.sendall(b"HEAD / HTTP/1.1\r\n\r\n")
        assert read_all(connection).endswith(b"\r\n\r\n")


def test_an_answer_without_length_is_chunked() -> None:
    with serving(answering("200 OK", b"a", b"bc")) as served, served.connect() as connection:
        connection.sendall(GET)
        response, body = read_answer(connection)
        assert (response.headers["Transfer-Encoding"], body) == ("chunked", b"abc")


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_answers_without_content(status: str) -> None:
    with serving(answering(status)) as served, served.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        answer = read_all(connection)
        assert answer.startswith(f"HTTP/1.1 {status}\r\n".encode())
        assert answer.endswith(b"\r\n\r\n")
        assert b"Content-Length" not in answer
        assert b"Transfer-Encoding" not in answer


class Files:
    """An app that answers with a file through ``wsgi.file_wrapper``, where there is one."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.files: list[Any] = []

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        file = tempfile.SpooledTemporaryFile(1000)  # noqa: SIM115 - the server closes it
        self.files.append(file)
        file.write(b"x" * self.size)
        file.seek(0)
        start_response("200 OK", [("Content-Length", str(self.size))])
        if "wsgi.file_wrapper" in environ:
            wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file)
            return wrapped
        file.close()
        return []


@pytest.mark.parametrize("size", [0, 10, 5 * MIB])
def test_a_file_is_sent_with_its_length_and_closed(size: int) -> None:
    app = Files(size)
    with serving(app) as served, contextlib.closing(served.client()) as client:
        for method in ("GET", "HEAD", "GET"):
            client.request(method, "/")
            response = client.getresponse()
            assert response.headers["Content-Length"] == str(size)
            assert len(response.read()) == (0 if method == "HEAD" else size)
    assert [file.closed for file in app.files] == [True] * 3


# What goes wrong


def test_an_app_that_raises_is_500_in_json_and_the_log_is_one_line_a_record(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        raise ValueError("secret")

    with serving(app) as served, served.connect() as connection:
        connection.sendall(b"GET /a%0aFORGED HTTP/1.1\r\n\r\n")
        status, error = error_of(read_all(connection))
    assert (status, error["error_type"]) == (500, "InternalServerError")
    assert "secret" not in error["error"]
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert record.name == "onnx_serve"
    assert record.getMessage() == "Exception while serving /a\\x0aFORGED"
    assert record.exc_info is not None


def test_an_app_that_exits_loses_only_its_connection(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/exit":
            raise SystemExit(1)
        return echo(environ, start_response)

    with serving(app, threads=1, body_memory_bytes=1) as served:
        with served.connect() as connection:
            connection.sendall(b"POST /exit HTTP/1.1\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9000)
            assert read_all(connection) == b""
        with served.connect() as connection:
            connection.sendall(GET)
            assert read_answer(connection)[0].status == 200
    assert [record.name for record in caplog.records if record.levelno >= logging.ERROR] == ["onnx_serve"]


def test_a_client_that_only_stops_sending_gets_its_answer() -> None:
    gate = Gate()
    with serving(gate) as served, served.connect() as connection:
        connection.sendall(b"POST /1 HTTP/1.1\r\nContent-Length: 1\r\n\r\n1")
        connection.shutdown(socket.SHUT_WR)
        gate.wait()
        gate.opened.set()
        assert read_all(connection).endswith(b"\r\n\r\n1")


def test_a_closed_connection_counts_as_disconnected() -> None:
    channels: list[channel.Channel] = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        channels.append(environ["waitress.client_disconnected"].__self__)
        return echo(environ, start_response)

    with serving(app) as served, served.connect() as connection:
        connection.sendall(GET)
        read_answer(connection)
        assert not channels[0].check_client_disconnected()
    assert channels[0].check_client_disconnected()


def test_an_unforeseen_exception_on_the_io_thread_closes_one_connection(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = HTTPRequestParser.received

    def failing(self: HTTPRequestParser, data: bytes) -> int:
        if data.startswith(b"BOOM"):
            raise RuntimeError("boom")
        count: int = received(self, data)
        return count

    monkeypatch.setattr(HTTPRequestParser, "received", failing)
    with serving(echo) as served, served.connect() as other:
        with served.connect() as connection:
            connection.sendall(b"BOOM")
            assert read_all(connection) == b""
        other.sendall(GET)
        assert read_answer(other)[0].status == 200
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        "a connection failed and is closed"
    ]


def test_urgent_data_closes_the_connection() -> None:
    """Left unread, it would make poll return at once for ever."""
    with serving(echo) as served, served.connect() as connection:
        connection.send(b"x", socket.MSG_OOB)
        assert read_all(connection) == b""


def test_running_out_of_descriptors_pauses_accepting(caplog: pytest.LogCaptureFixture) -> None:
    logged = threading.Event()

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "cannot accept" in record.getMessage():
                logged.set()

    watch = Watch()
    server_module.LOG.addHandler(watch)
    served = Served(echo)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with served.connect() as connection:
            connection.sendall(GET)
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            try:
                served.start()
                assert logged.wait(LIMIT_S)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert read_answer(connection)[0].status == 200
    finally:
        server_module.LOG.removeHandler(watch)
        assert served.stop() is True
    assert caplog.text.count("cannot accept connections for now: Too many open files") == 1


def test_exhaustion_is_logged_once_and_other_errors_do_not_pause(caplog: pytest.LogCaptureFixture) -> None:
    server = Served(echo).server
    listener = server._listener
    assert listener.readable()
    listener._accept_failed(OSError(errno.EPROTO, "Protocol error"))
    assert listener.readable()
    for _ in range(3):
        listener._accept_failed(OSError(errno.ENFILE, "Too many open files in system"))
    assert not listener.readable()
    server.close()
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "Protocol error",
        "Too many open files in system",
    ]


def test_a_client_gone_before_it_is_accepted_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(connection: socket.socket) -> None:
        monkeypatch.undo()
        raise OSError(errno.EINVAL, "gone")

    served = Served(echo)
    monkeypatch.setattr(served.server._listener, "set_socket_options", gone)
    served.start()
    with served.connect() as connection:
        assert read_all(connection) == b""
    with served.connect() as connection:
        connection.sendall(GET)
        assert read_answer(connection)[0].status == 200
    assert served.stop() is True


def test_a_full_wake_up_pipe_does_not_block() -> None:
    server = Served(echo).server
    for _ in range(100_000):
        server._listener.pull_trigger()
    server.stop()
    assert server.run() is True


def until(true: Callable[[], object]) -> None:
    """Waits for what another thread does without telling anyone; bounded."""
    tick = threading.Event()
    for _ in range(LIMIT_S * 200):
        if true():
            return
        tick.wait(0.005)
    pytest.fail("it never happened")


def reset(connection: socket.socket) -> None:
    """Closes with a reset, as a client that is killed does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("body_memory_bytes", [1000, 2 * MIB], ids=["spooled", "memory"])
@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["close", "reset"])
def test_a_client_that_leaves_during_its_upload_leaves_nothing_behind(
    leave: Callable[[socket.socket], None],
    body_memory_bytes: int,
) -> None:
    with serving(echo, body_memory_bytes=body_memory_bytes) as served:
        connection = served.connect()
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 100_000)
        channels = served.server._listener.active_channels
        until(
            lambda: [c for c in channels.values() if c.request and c.request.body_bytes_received == 100_000]
        )
        [channel] = channels.values()
        body = channel.request.get_body_stream()
        leave(connection)
        until(lambda: not channels)
        until(lambda: body.closed)
        with served.connect() as other:
            other.sendall(GET)
            assert read_answer(other)[0].status == 200


@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["close", "reset"])
def test_the_app_can_see_that_its_client_has_gone(leave: Callable[[socket.socket], None]) -> None:
    gate, noticed = Gate(), threading.Event()

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/ping":
            assert not environ["waitress.client_disconnected"]()
            gate.entered.release()
            until(environ["waitress.client_disconnected"])
            noticed.set()
        return echo(environ, start_response)

    with serving(app) as served:
        connection = served.connect()
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx")
        gate.wait()
        leave(connection)
        assert noticed.wait(LIMIT_S)
        with served.connect() as other:
            other.sendall(GET)
            assert read_answer(other)[0].status == 200


def test_a_client_that_leaves_while_its_answer_is_sent_does_no_harm() -> None:
    app = Files(32 * MIB)
    with serving(app) as served:
        connection = served.connect()
        connection.sendall(GET)
        assert connection.recv(1000)
        reset(connection)
        until(lambda: app.files and app.files[0].closed)
        with served.connect() as other:
            other.sendall(GET)
            read_answer(other)
    assert [file.closed for file in app.files] == [True, True]


def test_connections_on_which_nothing_moves_are_closed() -> None:
    with serving(echo) as served, served.connect() as idle:
        idle.sendall(GET)
        read_answer(idle)
        listener = served.server._listener
        listener.adj.channel_timeout = -1
        listener.next_channel_cleanup = 0
        listener.pull_trigger()
        assert read_all(idle) == b""


def test_a_client_that_stops_reading_frees_its_worker() -> None:
    """Its socket is never writable again, so waiting for that would hold the worker for ever."""
    ended = threading.Event()

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        try:
            for _ in range(256):
                yield b"x" * MIB
        finally:
            ended.set()

    with serving(app, threads=1) as served, served.connect() as connection:
        listener = served.server._listener
        listener.adj.outbuf_high_watermark = MIB
        connection.sendall(GET)
        until(lambda: [c for c in listener.active_channels.values() if c.total_outbufs_len > MIB])
        assert not ended.is_set()
        listener.adj.channel_timeout = -1
        listener.next_channel_cleanup = 0
        listener.pull_trigger()
        assert ended.wait(LIMIT_S)


def test_what_a_worker_is_sending_does_not_wake_the_io_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It found the socket ready and locked, again and again, and kept the interpreter from the worker."""
    seen: list[bool] = []
    send = channel.Channel.send

    def look(self: channel.Channel, *arguments: Any, **options: Any) -> Any:
        if threading.current_thread() is not served._thread:
            seen.append(self.writable())
        return send(self, *arguments, **options)

    monkeypatch.setattr(channel.Channel, "send", look)
    with serving(echo) as served, contextlib.closing(served.client()) as client:
        for _ in range(3):
            client.request("GET", "/")
            client.getresponse().read()
    assert seen == [False] * 3


@pytest.mark.parametrize("mark", [1000, MIB, 1 << 30])
def test_an_answer_in_pieces_that_the_socket_does_not_take_at_once_is_whole(mark: int) -> None:
    """The I/O thread sends what is left, also while the worker waits for it to."""
    pieces = [bytes([number]) * 3 * (MIB // 10) for number in range(100)]

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", str(sum(map(len, pieces))))])
        yield from pieces

    with serving(app) as served, contextlib.closing(served.client()) as client:
        served.server._listener.adj.outbuf_high_watermark = mark
        for _ in range(3):
            client.request("GET", "/")
            assert client.getresponse().read() == b"".join(pieces)


# Load


def test_a_health_check_has_a_thread_while_all_inferences_are_busy() -> None:
    inferences = 3
    gate = Gate(inferences)
    with serving(gate, threads=inferences + 2) as served, contextlib.ExitStack() as stack:
        for _ in range(inferences):
            connection = stack.enter_context(served.connect())
            connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx")
        gate.wait()
        ping = stack.enter_context(served.connect())
        ping.sendall(GET)
        assert read_answer(ping)[0].status == 200
        gate.opened.set()


def test_1100_idle_connections_do_not_end_the_server() -> None:
    """With select instead of poll, descriptor 1024 ends the process."""
    idle, needed = 1100, 2600
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"the limit on open files is {hard}, the test needs {needed}")
    raised = soft if soft == resource.RLIM_INFINITY or soft > needed else needed
    resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    try:
        limit = default_connection_limit(raised)
        assert limit > idle
        with serving(echo, connection_limit=limit) as served, contextlib.ExitStack() as stack:
            for _ in range(idle):
                stack.enter_context(served.connect())
            ping = stack.enter_context(served.connect())
            ping.sendall(GET)
            assert read_answer(ping)[0].status == 200
            assert len(served.server._listener.active_channels) == idle + 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Stopping


def test_stop_answers_what_runs_waits_and_arrives_and_refuses_the_rest() -> None:
    gate = Gate()
    served = Served(gate, threads=1)
    served.start()
    with (
        served.connect() as idle,
        served.connect() as running,
        served.connect() as waiting,
        served.connect() as arriving,
    ):
        idle.sendall(GET)
        read_answer(idle)
        running.sendall(
            b"".join(b"POST /%d HTTP/1.1\r\nContent-Length: 1\r\n\r\n%d" % (i, i) for i in (1, 2))
        )
        gate.wait()
        waiting.sendall(b"POST /3 HTTP/1.1\r\nContent-Length: 1\r\n\r\n3")
        arriving.sendall(b"POST /4 HTTP/1.1\r\nContent-Length: 2\r\n\r\n4")
        channels = served.server._listener.active_channels
        until(lambda: sum(len(c.requests) + bool(c.request) for c in channels.values()) == 4)

        served.server.stop()
        assert read_all(idle) == b""
        with pytest.raises(ConnectionRefusedError):
            served.connect()
        arriving.sendall(b"4")
        gate.opened.set()
        answers = [read_all(connection) for connection in (running, waiting, arriving)]
    assert served.join() is True
    assert [answer.rpartition(b"\r\n\r\n")[2] for answer in answers] == [b"2", b"3", b"44"]
    assert [answer.count(b"HTTP/1.1 200 OK") for answer in answers] == [2, 1, 1]
    # Only the last answer of a connection says so: what was already received comes after the others.
    assert [answer.count(b"Connection: close") for answer in answers] == [1, 1, 1]


def test_a_request_sent_just_before_stop_is_answered() -> None:
    """It is in the kernel's hands: neither accepted nor read."""
    served = Served(echo)
    with served.connect() as connection:
        connection.sendall(GET)
        served.server.stop()
        served.start()
        assert read_answer(connection)[0].status == 200
    assert served.join() is True


def test_the_drain_sends_a_large_answer_whole() -> None:
    served = Served(Files(32 * MIB))
    served.start()
    with served.connect() as connection:
        connection.sendall(GET)
        start = connection.recv(1000)
        served.server.stop()
        answer = start + read_all(connection)
    assert served.join() is True
    assert len(answer.partition(b"\r\n\r\n")[2]) == 32 * MIB


def test_a_drain_out_of_time_says_how_many_requests_it_abandons(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    served = Served(gate, threads=1, drain_timeout_s=0.05)
    served.start()
    with served.connect() as running, served.connect() as waiting:
        running.sendall(b"POST /1 HTTP/1.1\r\nContent-Length: 1\r\n\r\n1")
        gate.wait()
        waiting.sendall(b"POST /2 HTTP/1.1\r\nContent-Length: 1\r\n\r\n2")
        channels = served.server._listener.active_channels
        until(lambda: sum(len(c.requests) for c in channels.values()) == 2)
        assert served.stop() is False
        assert read_all(running) + read_all(waiting) == b""
    gate.opened.set()
    assert "stopped: 2 request(s) abandoned" in caplog.messages


def test_a_second_stop_ends_the_drain_at_once() -> None:
    gate = Gate()
    served = Served(gate, drain_timeout_s=1000)
    served.start()
    with served.connect() as running, served.connect() as idle:
        running.sendall(b"POST /1 HTTP/1.1\r\nContent-Length: 1\r\n\r\n1")
        gate.wait()
        served.server.stop()
        assert read_all(idle) == b""
        assert served.stop() is False
    gate.opened.set()


def test_the_drain_waits_for_a_request_whose_client_has_gone() -> None:
    """A run cut off by the end of the interpreter may crash it."""
    gate, ended = Gate(), threading.Event()

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        answer = gate(environ, start_response)
        ended.set()
        return answer

    served = Served(app, drain_timeout_s=1000)
    served.start()
    running, other = served.connect(), served.connect()
    with other:
        running.sendall(b"POST /1 HTTP/1.1\r\nContent-Length: 1\r\n\r\n1")
        gate.wait()
        reset(running)
        served.server.stop()
        assert read_all(other) == b""
        gate.opened.set()
    assert served.join() is True
    assert ended.is_set()


def test_the_drain_does_not_wait_for_an_upload_that_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "_UPLOAD_STALL_S", 0.0)
    served = Served(echo, drain_timeout_s=1000)
    served.start()
    with served.connect() as stalled:
        stalled.sendall(b"POST /1 HTTP/1.1\r\nContent-Le")
        until(lambda: [c for c in served.server._listener.active_channels.values() if c.request])
        assert served.stop() is True
        assert read_all(stalled) == b""


@pytest.fixture
def restored_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("restored_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_signals_stop_a_server_that_runs_beside_the_main_thread(number: signal.Signals) -> None:
    served = Served(echo)
    served.server.handle_signals()
    served.start()
    os.kill(os.getpid(), number)
    assert served.join() is True


@pytest.mark.usefixtures("restored_signals")
def test_a_signal_that_another_thread_takes_wakes_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not interrupt poll, so the handler would have to wait for the end of it."""
    monkeypatch.setattr(server_module, "_POLL_S", 1000.0)
    served = Served(echo)
    served.server.handle_signals()
    late = threading.Event()

    main = threading.main_thread().ident
    assert main is not None

    def client() -> None:
        with served.connect() as connection:
            connection.sendall(GET)
            read_answer(connection)
        until(lambda: not served.server._listener.active_channels)
        until(lambda: sys._current_frames()[main].f_code is wasyncore.poll2.__code__)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    def give_up() -> None:
        late.set()
        served.server.stop()

    watchdog = threading.Timer(LIMIT_S / 2, give_up)
    thread = threading.Thread(target=client)
    watchdog.start()
    thread.start()
    assert served.server.run() is True
    watchdog.cancel()
    watchdog.join()
    thread.join()
    assert not late.is_set()
    assert signal.set_wakeup_fd(-1) == -1


PROGRAM = """
import sys
from onnx_serve.server import Server

def app(environ, start_response):
    print("serving", flush=True)
    sys.stdin.readline()
    start_response("200 OK", [])
    return [b"answered"]

server = Server(
    app, host="127.0.0.1", port=0, threads=2, body_memory_bytes=1000, hard_body_limit_bytes=0, connection_limit=10
)
server.handle_signals()
print(server.port, flush=True)
raise SystemExit(0 if server.run() else 1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_process_told_to_stop_answers_its_request_and_exits_with_0(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-X", "dev", "-c", textwrap.dedent(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        port = int(process.stdout.readline())
        address = ("127.0.0.1", port)
        with (
            socket.create_connection(address, timeout=LIMIT_S) as connection,
            socket.create_connection(address, timeout=LIMIT_S) as idle,
        ):
            connection.sendall(GET)
            assert process.stdout.readline() == "serving\n"
            process.send_signal(number)
            assert read_all(idle) == b""
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address, timeout=LIMIT_S)
            process.stdin.write("go on\n")
            process.stdin.flush()
            assert read_answer(connection)[1] == b"answered"
        assert process.wait(LIMIT_S) == 0
        assert process.stderr.read() == ""
