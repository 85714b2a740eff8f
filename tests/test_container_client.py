"""The client against servers that behave, and against servers that do not."""

import errno
import io
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from onnx_serve.batch.container_client import Container
from onnx_serve.codecs.interface import Body
from onnx_serve.errors import ContainerError, SettingsError
from onnx_serve.execution_parameters import ExecutionParameters
from onnx_serve.inference import Reply

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/csv\r\nContent-Length: 2\r\n\r\n1\n"


class Server:
    """Accepts connections and plays one part of a script on each request; keeps what it was sent.

    A part is the answer's bytes, or a function of the connection; after None the connection is closed.
    """

    def __init__(self, *script: "bytes | Callable[[socket.socket], None] | None") -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.stop = threading.Event()
        self._script = list(script)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self.stop.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        with connection, suppress(OSError):
            while request := read_request(connection):
                self.requests.append(request)
                part = self._script.pop(0) if self._script else OK
                if part is None:
                    return
                if isinstance(part, bytes):
                    connection.sendall(part)
                    if b"Content-Length" not in part and b"chunked" not in part:
                        return
                else:
                    part(connection)


def read_request(connection: socket.socket) -> bytes:
    """A whole request; nothing when the client has closed the connection."""
    file = connection.makefile("rb")
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        if not (line := file.readline()):
            return b""
        head += line
    headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
    if headers.get(b"Transfer-Encoding") != b"chunked":
        return head + file.read(int(headers.get(b"Content-Length", 0)))
    body = b""
    while not body.endswith(b"\r\n0\r\n\r\n"):
        body += file.readline()
    return head + body


@contextmanager
def serving(*script: "bytes | Callable[[socket.socket], None] | None") -> Iterator[Server]:
    server = Server(*script)
    try:
        yield server
    finally:
        server.close()


def post(
    container: Container,
    data: bytes = b"5\n",
    content_type: str | None = "text/csv",
    accept: str | None = None,
) -> bytes:
    answered = container(Body(io.BytesIO(data), len(data)), content_type, accept)
    assert answered.rows == 0
    return content_of(answered.reply)


def content_of(reply: Reply) -> bytes:
    if isinstance(reply.content, bytes):
        return reply.content
    with reply.content as file:
        return file.read()


def answer(status: int, body: bytes, *headers: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers])
    return f"{head}\r\n\r\n".encode() + body


@contextmanager
def client(
    url: str, timeout_s: float = 10, max_retries: int = 0, pauses: list[float] | None = None
) -> Iterator[Container]:
    container = Container(url, timeout_s, max_retries, None if pauses is None else pauses.append)
    try:
        yield container
    finally:
        container.close()


def test_a_request_is_what_the_platform_sends() -> None:
    with serving() as server, client(server.url) as container:
        assert post(container, b"5\n", "text/csv", "application/json") == b"1\n"
        post(container, b"6\n", None, None)

    first, second = (request.decode().split("\r\n") for request in server.requests)
    assert first[0] == "POST /invocations HTTP/1.1"
    assert {"Content-Type: text/csv", "Accept: application/json", "Content-Length: 2", "5\n"} <= set(first)
    assert not [line for line in second if line.startswith(("Content-Type", "Accept"))]
    assert server.connections == 1


@pytest.mark.parametrize(
    ("suffix", "path"),
    [
        ("", "/invocations"),
        ("/", "/invocations"),
        ("/models/a/invoke", "/models/a/invoke"),
        ("/x?y=1", "/x?y=1"),
    ],
)
def test_the_address_may_name_the_resource(suffix: str, path: str) -> None:
    with serving() as server, client(server.url + suffix) as container:
        post(container)

    assert server.requests[0].split()[1].decode() == path


@pytest.mark.parametrize(
    "url", ["", "localhost:8080", "ftp://host", "http://", "http://host:port", "http://user@host", "http://[::1", "http://h\u00e9"]
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="--url: expected http://HOST:PORT"):
        Container(url, 1, 0)


def test_a_body_of_no_length_is_sent_in_chunks() -> None:
    data = b"x" * 600_000
    with serving() as server, client(server.url) as container:
        container(Body(io.BytesIO(data), -1), None, None)

    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert b"Content-Length" not in head
    sizes, rest = [], body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        sizes.append(int(size, 16))
        rest = rest[sizes[-1] + 2 :]
    assert sum(sizes) == len(data)
    assert sizes[-1] == 0


def test_a_long_answer_is_a_file_and_chunks_are_joined() -> None:
    big = answer(200, b"y" * (17 << 20))
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"
    with serving(big, chunked) as server, client(server.url) as container:
        reply = container(Body(io.BytesIO(b""), 0), None, None).reply
        assert not isinstance(reply.content, bytes)
        assert (reply.length, len(content_of(reply))) == (17 << 20, 17 << 20)
        assert post(container) == b"abc"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            answer(400, b'{"error": "expected 4\\n columns", "error_type": "MismatchError"}'),
            "status 400: expected 4 columns",
        ),
        (answer(413, b"too\r\nlarge \x00"), "status 413: too large"),
        (answer(404, b""), "status 404: no message"),
        (answer(400, b"[" * 60_000), r"status 400: \[\["),
        (answer(302, b"", "Location: /elsewhere"), "status 302"),
        (answer(201, b"1\n"), "status 201: 1"),
        (answer(204, b""), "status 204"),
    ],
)
def test_a_refusal_is_not_repeated(script: bytes, words: str) -> None:
    with serving(script) as server, client(server.url, max_retries=3) as container:
        with pytest.raises(ContainerError, match=words) as error:
            post(container)
        assert len(str(error.value)) < 600

    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (answer(500, b"oops"), "status 500: oops"),
        (None, "closed without an answer"),
        (b"garbage that is no HTTP\r\n\r\n", "expected an answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "closed in the middle"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "closed in the middle"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "closed in the middle"),
        (b"\x00" * 70_000, "HTTP"),
    ],
    ids=["500", "closed", "garbage", "half", "half a chunk", "no chunk", "endless line"],
)
def test_a_failure_is_repeated_as_often_as_allowed(script: bytes | None, words: str) -> None:
    def fail(connection: socket.socket) -> None:
        connection.sendall(script or b"")
        connection.shutdown(socket.SHUT_RDWR)

    with serving(fail, fail, OK) as server, client(server.url, max_retries=2) as container:
        assert post(container, b"same\n") == b"1\n"
    assert [request.partition(b"\r\n\r\n")[2] for request in server.requests] == [b"same\n"] * 3

    with serving(fail, fail) as server, client(server.url, max_retries=1) as container:
        with pytest.raises(ContainerError, match=words):
            post(container)
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("header", "pause"), [("7", [7.0]), ("9999", [30.0]), ("-1", []), ("soon", []), ("nan", []), ("", [])]
)
def test_retry_after_is_waited_for_within_reason(header: str, pause: list[float]) -> None:
    pauses: list[float] = []
    script = answer(503, b"busy", f"Retry-After: {header}")
    with serving(script) as server, client(server.url, max_retries=1, pauses=pauses) as container:
        assert post(container) == b"1\n"

    assert pauses == pause


def test_a_connection_closed_while_idle_is_no_failure() -> None:
    """Not even where no repetition is allowed."""

    def answer_and_close(connection: socket.socket) -> None:
        connection.sendall(OK)
        connection.shutdown(socket.SHUT_RDWR)

    with serving(answer_and_close, OK) as server, client(server.url, max_retries=0) as container:
        assert post(container) == b"1\n"
        assert post(container) == b"1\n"
        assert server.connections == 2


def test_an_answer_while_the_body_is_being_sent_is_heard() -> None:
    """A server that refuses a body does not read it."""
    refusal = answer(413, b"at most 6 MB", "Connection: close")
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def refuse() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(refusal)
            connection.shutdown(socket.SHUT_WR)
            done.wait(10)

    thread = threading.Thread(target=refuse)
    thread.start()
    # Larger than what sockets buffer: sending ends with the time, or with the closed connection.
    data = b"x" * (32 << 20)
    with listener, client(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.5) as container:
        with pytest.raises(ContainerError):
            post(container, data)
        done.set()
        thread.join(10)


def test_nobody_listening_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with client(url) as container:
        for call in (container.check, container.execution_parameters, lambda: post(container)):
            with pytest.raises(ContainerError, match=f"^{url}: .*Connection refused$"):
                call()


@pytest.mark.parametrize(
    "drip", [b"", b"H", OK[:-2] + b"1"], ids=["silent", "head by bytes", "body by bytes"]
)
def test_a_server_that_hangs_is_given_up(drip: bytes) -> None:
    """Also one that sends a byte now and then: the time is for the whole exchange."""
    server: Server

    def hang(connection: socket.socket) -> None:
        connection.sendall(drip[:-1])
        while not server.stop.wait(0.05):
            connection.sendall(drip[-1:] or b"")

    if len(drip) > 2:
        drip = drip.replace(b"Content-Length: 2", b"Content-Length: 999")
    with serving(hang) as server, client(server.url, timeout_s=0.3) as container:
        with pytest.raises(ContainerError, match=r"no answer within 0\.3 s"):
            post(container)
        server.stop.set()


def test_close_ends_a_request_in_another_thread() -> None:
    waiting = threading.Event()
    server: Server
    errors: list[ContainerError] = []

    def hang(_connection: socket.socket) -> None:
        waiting.set()
        server.stop.wait(10)

    with serving(hang) as server:
        container = Container(server.url, 60, 3)

        def ask() -> None:
            with pytest.raises(ContainerError) as error:
                post(container)
            errors.append(error.value)

        thread = threading.Thread(target=ask)
        thread.start()
        assert waiting.wait(10)
        container.close()
        thread.join(10)
        assert not thread.is_alive()
        with pytest.raises(ContainerError):
            container.check()
    assert len(errors) == 1


def test_ping() -> None:
    with (
        serving(answer(200, b""), answer(404, b""), answer(503, b"")) as server,
        client(server.url) as container,
    ):
        container.check()
        container.check()
        with pytest.raises(ContainerError, match="got 503: not ready"):
            container.check()

    assert {request.split(b"\r\n")[0] for request in server.requests} == {b"GET /ping HTTP/1.1"}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b'{"MaxConcurrentTransforms": 3, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 33}', (3, "MULTI_RECORD", 33)),
        (200, b'{"MaxConcurrentTransforms": 1, "BatchStrategy": "SingleRecord", "MaxPayloadInMB": 0}', (1, "SINGLE_RECORD", 0)),
        (200, b'{"MaxConcurrentTransforms": 2}', (2, "MULTI_RECORD", 6)),
        (200, b"{}", (1, "MULTI_RECORD", 6)),
        (404, b'{"MaxConcurrentTransforms": 3}', None),
        (200, b"not json", None),
        (200, b"[1]", None),
        (200, b"\xff\xfe", None),
        (200, b"[" * 60_000, None),
        (200, b'{"MaxPayloadInMB": "6"}', None),
        (200, b'{"MaxPayloadInMB": true}', None),
        (200, b'{"MaxPayloadInMB": -1}', None),
        (200, b'{"BatchStrategy": "ALL"}', None),
    ],
)  # fmt: skip
def test_execution_parameters(status: int, body: bytes, expected: tuple[int, str, int] | None) -> None:
    with serving(answer(status, body)) as server, client(server.url) as container:
        answered = container.execution_parameters()

    assert answered == (None if expected is None else ExecutionParameters(*expected))


def test_a_temporary_directory_that_is_full_is_not_the_containers_failure() -> None:
    class Full(io.BytesIO):
        def read(self, _size: int | None = -1, /) -> bytes:
            raise OSError(errno.ENOSPC, "No space left on device")

    with serving() as server, client(server.url, max_retries=3) as container:
        with pytest.raises(OSError, match="No space left"):
            container(Body(Full(b"x"), 1), None, None)
        assert post(container) == b"1\n"
    assert server.connections == 2


def test_a_file_that_grew_is_sent_as_long_as_was_said() -> None:
    with serving() as server, client(server.url) as container:
        container(Body(io.BytesIO(b"12345"), 3), None, None)

    assert server.requests[0].endswith(b"\r\n\r\n123")


def test_tls_is_tried_where_the_address_says_so() -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer_without() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(10_000)
            connection.sendall(b"no TLS here")

    thread = threading.Thread(target=answer_without)
    thread.start()
    with listener, client(f"https://127.0.0.1:{listener.getsockname()[1]}") as container:
        with pytest.raises(ContainerError, match=r"(?i)ssl"):
            post(container)
        thread.join(10)


def test_a_job_stopped_while_it_waits_does_not_try_again() -> None:
    with serving(answer(503, b"", "Retry-After: 30")) as server:
        container = Container(server.url, 10, 3, lambda _seconds: container.close())
        with pytest.raises(ContainerError, match="the job was stopped"):
            post(container)
    assert len(server.requests) == 1
