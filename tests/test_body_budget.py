"""Bodies are let in by the memory that is left for them."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from onnx_serve.body_budget import BodyBudget
from onnx_serve.server import Server

MIB = 1 << 20


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    length = len(environ["wsgi.input"].read())
    answer = str(length).encode()
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]


@contextmanager
def serving(budget: BodyBudget, body_memory_bytes: int = 64 * MIB) -> Iterator[int]:
    server = Server(app, host="127.0.0.1", port=0, threads=2, body_memory_bytes=body_memory_bytes,
                    hard_body_limit_bytes=0, connection_limit=100, body_budget=budget)  # fmt: skip
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.port
    finally:
        server.stop()
        thread.join(30)


def exchange(port: int, head: str, body: bytes) -> tuple[int, bytes]:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(f"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}\r\n\r\n".encode() + body)
        answer = b""
        while piece := client.recv(65536):
            answer += piece
    header, _, content = answer.partition(b"\r\n\r\n")
    return int(header.split()[1]), content


def with_length(port: int, length: int) -> tuple[int, bytes]:
    return exchange(port, f"Content-Length: {length}", bytes(length))


def chunked(port: int, length: int) -> tuple[int, bytes]:
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    return exchange(port, "Transfer-Encoding: chunked", chunk * (length // 0x10000) + b"0\r\n\r\n")


def test_what_fits_comes_in_and_what_does_not_is_told() -> None:
    """The refused body is received to its end, so that its sender reads the answer."""
    with serving(BodyBudget(lambda: 30 * MIB, 10 * MIB, spool_is_memory=False)) as port:
        assert with_length(port, 19 * MIB) == (200, str(19 * MIB).encode())
        status, content = with_length(port, 22 * MIB)
        assert status == 413
        error = json.loads(content)
        assert error["error_type"] == "PayloadTooLarge"
        assert "needs 22 MiB of memory, and 20 MiB are left" in error["error"]
        assert with_length(port, 19 * MIB)[0] == 200


def test_small_bodies_are_not_asked_about() -> None:
    with serving(BodyBudget(lambda: 0, 0, spool_is_memory=True)) as port:
        assert with_length(port, 1000) == (200, b"1000")


@pytest.mark.parametrize(("spool_is_memory", "status"), [(False, 200), (True, 413)])
def test_a_spooled_body_takes_memory_only_in_a_tmpfs(spool_is_memory: bool, status: int) -> None:
    budget = BodyBudget(lambda: 3 * MIB, 0, spool_is_memory=spool_is_memory)

    with serving(budget, body_memory_bytes=MIB) as port:
        assert with_length(port, 8 * MIB)[0] == status


def test_a_chunked_body_asks_as_it_grows() -> None:
    with serving(BodyBudget(lambda: 5 * MIB, 0, spool_is_memory=True), body_memory_bytes=MIB) as port:
        assert chunked(port, 3 * MIB) == (200, str(3 * MIB).encode())
    left = iter([20 * MIB, 20 * MIB])
    with serving(BodyBudget(lambda: next(left, 0), 0, spool_is_memory=True), body_memory_bytes=MIB) as port:
        status, content = chunked(port, 32 * MIB)
        assert status == 413
        assert "left for it" in json.loads(content)["error"]


def test_bodies_on_their_way_count() -> None:
    budget = BodyBudget(lambda: 10 * MIB, 0, spool_is_memory=False)

    assert budget.admit(6 * MIB) is None
    assert budget.admit(6 * MIB) is not None
    budget.arrived(3 * MIB)
    assert budget.admit(6 * MIB) is None


def test_a_recent_look_serves_for_what_is_small_beside_it() -> None:
    """The figures are what is left at each look; bodies let in since then count against the last one."""
    now = 0.0
    looks = [100 * MIB, 100 * MIB, 90 * MIB, 10 * MIB]
    budget = BodyBudget(lambda: looks.pop(0), 0, spool_is_memory=False, clock=lambda: now)

    assert budget.admit(10 * MIB) is None
    budget.arrived(10 * MIB)
    assert budget.admit(11 * MIB) is None
    assert len(looks) == 3
    assert budget.admit(12 * MIB) is None  # 79 MiB are left of the first look: too few to go without another
    assert len(looks) == 2
    now = 0.2
    assert budget.admit(2 * MIB) is None
    assert len(looks) == 1
    now = 0.4
    assert budget.admit(11 * MIB) is not None
    assert looks == []


def test_an_upload_that_breaks_off_gives_its_room_back() -> None:
    budget = BodyBudget(lambda: 30 * MIB, 0, spool_is_memory=False)

    with serving(budget) as port:
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                client.sendall(
                    f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {20 * MIB}\r\n\r\nabc".encode()
                )
        status, _ = with_length(port, 20 * MIB)
        while status == 413:  # until the last of the five is seen to be gone
            status, _ = with_length(port, 20 * MIB)
    assert budget._announced == 0
