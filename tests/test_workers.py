"""Which thread answers: the one that reads the sockets what is brief, one of the pool everything else."""

import json
import threading
from collections.abc import Iterable, Mapping
from typing import Any
from wsgiref.types import StartResponse

import pytest

from onnx_serve import workers
from onnx_serve.channel import Channel
from test_server import LIMIT_S, Served, serving, until

BRIEF = {"/ping": 0.0, "/brief": 1e-4, "/lone": 0.9e-3, "/long": 1.0}


def estimate(path: str, _headers: Mapping[str, str], _body: bytes) -> float:
    return BRIEF.get(path, float("inf"))


class App:
    """Answers with the name of the thread that it runs on and the body; /hold waits for a gate, /fail fails."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/hold":
            self.entered.release()
            assert self.opened.wait(LIMIT_S)
        if path == "/fail":
            raise ZeroDivisionError
        body = environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps([threading.current_thread().name, body.decode()]).encode()]


def reader(served: Served) -> str:
    return served._thread.name


def ask(served: Served, path: str, body: bytes | Iterable[bytes] = b"{}", **more: Any) -> tuple[str, str]:
    """The thread that answered, and the body that it saw."""
    client = served.client()
    client.request("POST", path, body, **more)
    thread, seen = json.loads(client.getresponse().read())
    client.close()
    return thread, seen


@pytest.mark.parametrize(
    ("path", "is_brief"),
    [("/ping", True), ("/brief", True), ("/lone", True), ("/long", False), ("/other", False)],
)
def test_a_lone_request(path: str, is_brief: bool) -> None:
    with serving(App(), estimate=estimate) as served:
        for _ in range(3):
            # A thread of the pool that has just answered may not be idle yet.
            wait_for_idle(served)
            thread, body = ask(served, path)
            assert (thread == reader(served), body) == (is_brief, "{}")


def wait_for_idle(served: Served) -> None:
    """Until every thread of the pool waits for something to do."""
    pool = served.server._workers

    def is_idle() -> bool:
        with pool.lock:
            return bool(pool.started) and not pool.queue and not pool.active_count

    until(is_idle)


def test_without_an_estimate_the_pool_answers() -> None:
    with serving(App()) as served:
        wait_for_idle(served)
        assert ask(served, "/ping")[0] != reader(served)


@pytest.mark.parametrize(
    "body", [b"x" * (8 << 10) + b"x", [b"in ", b"chunks"]], ids=["longer than 8 KiB", "of unknown length"]
)
def test_only_small_bodies_of_known_length_are_looked_at(body: Any) -> None:
    whole = body if isinstance(body, bytes) else b"".join(body)
    with serving(App(), estimate=estimate) as served:
        wait_for_idle(served)
        thread, seen = ask(served, "/brief", body)
        assert thread != reader(served)
        assert seen == whole.decode()


def test_while_others_are_at_work_only_what_never_waits_is_brief() -> None:
    """They may hold what a brief request would wait for."""
    app = App()
    with serving(app, estimate=estimate) as served:
        wait_for_idle(served)
        holding = served.client()
        holding.request("POST", "/hold", b"")
        assert app.entered.acquire(timeout=LIMIT_S)
        assert ask(served, "/brief")[0] != reader(served)
        assert ask(served, "/ping")[0] == reader(served)
        app.opened.set()
        assert holding.getresponse().status == 200
        holding.close()


def test_a_ping_is_answered_while_every_thread_is_busy() -> None:
    app = App()
    with serving(app, threads=2, estimate=estimate) as served:
        holding = [served.client() for _ in range(3)]
        for client in holding:
            client.request("POST", "/hold", b"")
        for _ in range(2):
            assert app.entered.acquire(timeout=LIMIT_S)
        assert ask(served, "/ping")[0] == reader(served)
        app.opened.set()
        for client in holding:
            assert client.getresponse().status == 200
            client.close()


def test_several_at_once_have_less_time_each_and_all_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """They could run beside each other, so what takes longer than a hand-over goes to the pool."""
    monkeypatch.setattr(workers, "_AT_ONCE", 3)
    app = App()
    with serving(app, estimate=estimate) as served:
        wait_for_idle(served)
        held = threading.Event()
        # The reading thread is held while others arrive.
        monkeypatch.setattr(served.server._listener, "maintenance", lambda _now: held.wait(LIMIT_S))
        monkeypatch.setattr(served.server._listener, "next_channel_cleanup", 0)
        served.server._listener.pull_trigger()
        clients = [served.connect() for _ in range(8)]
        for path, client in zip(["/lone", "/brief"] * 4, clients, strict=True):
            client.sendall(b"POST %b HTTP/1.1\r\nContent-Length: 0\r\n\r\n" % path.encode())
        held.set()
        answers = [client.recv(1 << 16) for client in clients]
        for client in clients:
            client.close()
    for path, answer in zip(["/lone", "/brief"] * 4, answers, strict=True):
        assert answer.startswith(b"HTTP/1.1 200")
        if path == "/lone":
            assert reader(served).encode() not in answer


def test_requests_behind_each_other_are_answered_in_order() -> None:
    with serving(App(), estimate=estimate) as served, served.connect() as connection:
        requests = [
            b"POST %b HTTP/1.1\r\nContent-Length: 2\r\n\r\n%02d" % (path, number)
            for number, path in enumerate([b"/brief", b"/long", b"/brief", b"/brief", b"/ping"])
        ]
        connection.sendall(b"".join(requests))
        answers = b""
        while answers.count(b"HTTP/1.1 200") < 5 or not answers.endswith(b"]"):
            answers += connection.recv(1 << 16)
    positions = [answers.index(b'"%02d"' % number) for number in range(5)]
    assert positions == sorted(positions)


def test_a_brief_request_that_fails_takes_nobody_along() -> None:
    def quick(_path: str, _headers: Mapping[str, str], _body: bytes) -> float:
        return 0.0

    with serving(App(), estimate=quick) as served:
        client = served.client()
        client.request("POST", "/fail", b"")
        assert client.getresponse().status == 500
        client.close()
        assert ask(served, "/brief")[0] == reader(served)


def test_a_failure_of_the_library_costs_one_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Channel) -> None:
        raise ZeroDivisionError

    with serving(App(), estimate=estimate) as served:
        wait_for_idle(served)
        with monkeypatch.context() as patch, served.connect() as connection:
            patch.setattr(Channel, "service", fail)
            connection.sendall(b"GET /ping HTTP/1.1\r\n\r\n")
            assert connection.recv(1) == b""
        assert ask(served, "/ping")[0] == reader(served)
    assert "a connection failed" in caplog.text


def test_an_estimate_that_fails_is_no_estimate(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_path: str, _headers: Mapping[str, str], _body: bytes) -> float:
        raise ZeroDivisionError

    with serving(App(), estimate=fail) as served:
        for _ in range(2):
            assert ask(served, "/ping")[0] != reader(served)
    assert "cannot be estimated" in caplog.text


def test_a_drain_answers_brief_requests_that_have_come() -> None:
    with serving(App(), estimate=estimate) as served:
        client = served.client()
        client.request("POST", "/brief", b"")
        assert client.getresponse().read()
        client.request("POST", "/brief", b"")
        assert served.stop()
        answer = client.getresponse()
        assert answer.status == 200
        client.close()
