"""What onnx-serve's settings of waitress are worth: ``python bench/waitress_settings.py [rounds]``.

Two server processes with one trivial WSGI app: waitress with its defaults, and ``onnx_serve.server.Server``.
Plain-socket clients with kept-alive connections drive them in turn, several rounds, so that both see the same
machine; the table gives the median requests per second, the median ratio of a round, and the server's processor
time per request, which a busy machine disturbs less. No model, no Falcon.
"""

import logging
import multiprocessing
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from wsgiref.types import StartResponse, WSGIEnvironment

import psutil
import waitress.server

from onnx_serve.server import Server

THREADS = 4
SECONDS = 1.0
LOADS = {
    "6 MB in, c=1": (6_000_000, 1),
    "6 MB in, c=4": (6_000_000, 4),
    "300 B in, c=1": (300, 1),
    "300 B in, c=8": (300, 8),
}


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Reads the body, as every codec does, and answers its length."""
    answer = b"%d" % len(environ["wsgi.input"].read())
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]


def serve_defaults(port: Connection) -> None:
    """Waitress as it comes, in a process of its own; it logs each request that waits, here to nowhere."""
    logging.getLogger("waitress").addHandler(logging.NullHandler())
    server = waitress.server.create_server(app, host="127.0.0.1", port=0)
    port.send(server.effective_port)
    server.run()


def serve_ours(port: Connection) -> None:
    """Our server, in a process of its own."""
    server = Server(
        app,
        host="127.0.0.1",
        port=0,
        threads=THREADS,
        body_memory_bytes=64 << 20,
        hard_body_limit_bytes=1 << 30,
        connection_limit=1000,
    )
    server.handle_signals()
    port.send(server.port)
    server.run()


def drive(port: int, body_bytes: int, until: float, counts: list[int]) -> None:
    """Sends one request after the other until the time is up, and appends how many were answered."""
    request = b"POST /invocations HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % body_bytes + b"x" * body_bytes
    end = b"\r\n\r\n%d" % body_bytes
    count = 0
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.perf_counter() < until:
            connection.sendall(request)
            answer = b""
            while not answer.endswith(end):
                piece = connection.recv(1 << 16)
                if not piece:
                    raise SystemExit("a server closed its connection")
                answer += piece
            count += 1
    counts.append(count)


def measure(port: int, server: psutil.Process, body_bytes: int, concurrency: int) -> tuple[float, float]:
    """Requests per second of one server, and its processor time per request in milliseconds."""
    counts: list[int] = []
    before = server.cpu_times()
    start = time.perf_counter()
    arguments = (port, body_bytes, start + SECONDS, counts)
    clients = [threading.Thread(target=drive, args=arguments) for _ in range(concurrency)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    if len(counts) != concurrency:
        raise SystemExit("a client failed")
    elapsed = time.perf_counter() - start
    after = server.cpu_times()
    cpu = after.user + after.system - before.user - before.system
    return sum(counts) / elapsed, cpu * 1e3 / sum(counts)


def start(target: Callable[[Connection], None]) -> tuple[int, SpawnProcess]:
    """Starts a server; returns its port and process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(sender,), daemon=True)
    process.start()
    return receiver.recv(), process


def main(rounds: int) -> None:
    """Measures and prints the table."""
    servers = [start(target) for target in (serve_defaults, serve_ours)]
    print(f"Medians of {rounds} rounds; CPU is the server's, per request.\n")
    print(
        "| load | defaults, req/s | ours, req/s | ratio (lowest, highest) | defaults, CPU ms | ours, CPU ms |"
    )
    print("|---|---|---|---|---|---|")
    for name, load in LOADS.items():
        sides: list[list[tuple[float, float]]] = [[], []]
        for _ in range(rounds + 1):
            for (port, process), results in zip(servers, sides, strict=True):
                results.append(measure(port, psutil.Process(process.pid), *load))
        rates, costs = zip(*(zip(*results[1:], strict=True) for results in sides), strict=True)
        ratios = sorted(ours / defaults for defaults, ours in zip(*rates, strict=True))
        defaults, ours = map(statistics.median, rates)
        defaults_cpu, ours_cpu = map(statistics.median, costs)
        print(
            f"| {name} | {defaults:.0f} | {ours:.0f} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f}, {ratios[-1]:.2f}) "
            f"| {defaults_cpu:.3f} | {ours_cpu:.3f} |",
            flush=True,
        )
    for _, process in servers:
        process.terminate()
        process.join()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
