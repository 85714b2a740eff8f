"""How much of the in-process ceiling survives HTTP, how fast small requests are, and how fast it starts.

    python bench/invocations.py [--seconds S]

Every figure of a table comes from one run of this program: HTTP and the ceiling take turns, round by round,
so that a noisy neighbour hits both. The ceiling is the same decoding, session and encoding called directly in
this process, by as many threads as the HTTP client has connections.
"""

import argparse
import http.client
import io
import itertools
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_serve.codecs.interface import Body
from onnx_serve.inference import Inference
from onnx_serve.machine import read_machine
from onnx_serve.repository import Repository
from onnx_serve.settings import load_settings

ROWS, WIDTH = 20_000, 30
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Payload:
    """One body to be answered.

    Attributes:
        content_type: Also what the answer is asked for in.
        body: The bytes.
    """

    content_type: str
    body: bytes


def build_mlp(path: Path) -> None:
    """A perceptron of 30-64-3 with seeded weights: cheap, so that what surrounds it shows."""
    rng = np.random.default_rng(0)
    sizes = [WIDTH, 64, 3]
    nodes, constants, value = [], [], "x"
    for layer, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        weights = rng.standard_normal((rows, columns)).astype(np.float32) / rows
        constants.append(numpy_helper.from_array(weights, f"W{layer}"))
        nodes.append(helper.make_node("MatMul", [value, f"W{layer}"], [f"h{layer}"]))
        value = f"a{layer}"
        nodes.append(helper.make_node("Tanh", [f"h{layer}"], [value]))
    nodes.append(helper.make_node("Softmax", [value], ["y"], axis=1))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def payloads() -> list[Payload]:
    """The same rows in every format."""
    rows = np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(np.float32)
    lines = [",".join(map(str, row)) for row in rows]
    npy = io.BytesIO()
    np.save(npy, rows)
    return [
        Payload("text/csv", "\n".join(lines).encode()),
        Payload("application/json", ('{"instances":[[' + "],[".join(lines) + "]]}").encode()),
        Payload("application/jsonlines", ("[" + "]\n[".join(lines) + "]").encode()),
        Payload("application/x-npy", npy.getvalue()),
    ]


@contextmanager
def serving(model_dir: Path) -> Iterator[tuple[int, float, int]]:
    """A server process: its port, the seconds from its start to the first 200, and its process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begin = time.perf_counter()
    command = [sys.executable, "-m", "onnx_serve", "serve", "--model-dir", str(model_dir),
               "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while not _ping(port):
            if process.poll() is not None or time.perf_counter() - begin > 60:
                raise SystemExit("the server did not start")
            time.sleep(0.005)
        yield port, time.perf_counter() - begin, process.pid
    finally:
        process.terminate()
        process.wait(30)


def _ping(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except ConnectionError:
        return False
    finally:
        connection.close()


def in_process(model_dir: Path) -> Inference:
    """What the server calls for a request, without the server."""
    settings = load_settings(config_file=None, environ={}, flags={"model_dir": str(model_dir)})
    repository = Repository(settings, read_machine())
    repository.load()
    return repository.default()


def call_http(port: int, payload: Payload) -> Callable[[], None]:
    """One request on a kept connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": payload.content_type, "Accept": payload.content_type}

    def call() -> None:
        connection.request("POST", "/invocations", payload.body, headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise SystemExit(f"{payload.content_type}: {response.status} {answer[:200]!r}")

    return call


def call_direct(inference: Inference, payload: Payload) -> Callable[[], None]:
    """The same request without HTTP."""

    def call() -> None:
        body = Body(io.BytesIO(payload.body), len(payload.body))
        inference(body, payload.content_type, payload.content_type)

    return call


def requests_per_second(calls: list[Callable[[], None]], seconds: float) -> float:
    """Each callable is repeated by a thread of its own for about that long."""
    counts = [0] * len(calls)
    end = time.perf_counter() + seconds

    def repeat(index: int) -> None:
        while time.perf_counter() < end:
            calls[index]()
            counts[index] += 1

    begin = time.perf_counter()
    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begin)


def compare_large(port: int, inference: Inference, seconds: float, rounds: int = 7) -> None:
    """Prints rows/s through HTTP over rows/s in process, for each format and concurrency."""
    print(
        f"\n{ROWS} x {WIDTH} float32 rows a request, MLP; ratio = HTTP / in process, median of {rounds} rounds"
    )
    print(f"{'format':24}{'MB':>6}{'clients':>9}{'in process rows/s':>20}{'HTTP rows/s':>14}{'ratio':>8}")
    for payload in payloads():
        for concurrency in (1, 4):
            over_http = [call_http(port, payload) for _ in range(concurrency)]
            direct = [call_direct(inference, payload)] * concurrency
            figures = []
            for turn in range(rounds):
                pair = [over_http, direct] if turn % 2 else [direct, over_http]
                measured = [requests_per_second(calls, seconds) * ROWS for calls in pair]
                figures.append(measured if turn % 2 else measured[::-1])
            http_rate, direct_rate = (statistics.median(column) for column in zip(*figures, strict=True))
            ratio = statistics.median(first / second for first, second in figures)
            print(f"{payload.content_type:24}{len(payload.body) / 1e6:6.1f}{concurrency:9}"
                  f"{direct_rate:20,.0f}{http_rate:14,.0f}{ratio:8.2f}")  # fmt: skip


def small_requests(port: int, connections: int, seconds: float) -> tuple[float, float, float]:
    """Requests per second, and the 50th and 99th percentile of latency in ms, of one-row JSON requests."""
    body = json.dumps({"instances": [[0.5] * WIDTH]}).encode()
    head = (
        "POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    )
    request = f"{head}{len(body)}\r\n\r\n".encode() + body
    poll = selectors.DefaultSelector()
    sent: dict[int, float] = {}
    for _ in range(connections):
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(client, selectors.EVENT_READ, client)
        client.sendall(request)
        sent[client.fileno()] = time.perf_counter()
    latencies = []
    begin = time.perf_counter()
    while (now := time.perf_counter()) - begin < seconds:
        for key, _ in poll.select(1):
            client = key.data
            answer = client.recv(65536)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"unexpected answer: {answer[:200]!r}")
            now = time.perf_counter()
            latencies.append(now - sent[key.fd])
            client.sendall(request)
            sent[key.fd] = now
    elapsed = time.perf_counter() - begin
    for key in list(poll.get_map().values()):
        key.data.close()
    low, high = np.percentile(latencies, [50, 99]) * 1000
    return len(latencies) / elapsed, float(low), float(high)


def compare_small(port: int, inference: Inference, seconds: float) -> None:
    """Prints the rate and latency of one-row JSON requests."""
    payload = Payload("application/json", json.dumps({"instances": [[0.5] * WIDTH]}).encode())
    ceiling = requests_per_second([call_direct(inference, payload)], seconds)
    print(f"\none-row JSON requests, MLP; in process by one thread: {ceiling:,.0f} a second")
    print(f"{'connections':>12}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'ratio':>8}")
    for connections in (1, 8, 64):
        rate, low, high = small_requests(port, connections, seconds)
        print(f"{connections:12}{rate:12,.0f}{low:9.2f}{high:9.2f}{rate / ceiling:8.2f}")


def memory_kib(pid: int, field: str = "VmRSS") -> int:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0


def main() -> None:
    """Runs everything and prints the tables."""
    parser = argparse.ArgumentParser(description="Speed through HTTP against the in-process ceiling.")
    parser.add_argument("--seconds", type=float, default=1.0, help="seconds a measurement (default: 1)")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        model_dir = Path(folder)
        build_mlp(model_dir / "model.onnx")
        starts, rests = [], []
        for _ in range(5):
            with serving(model_dir) as (_, start, pid):
                starts.append(start)
                rests.append(memory_kib(pid))
        print(f"start to first 200 on /ping: median {statistics.median(starts):.2f} s of 5 "
              f"({min(starts):.2f} to {max(starts):.2f})")  # fmt: skip
        print(f"memory at rest: {statistics.median(rests) / 1024:.0f} MiB resident")
        inference = in_process(model_dir)
        with serving(model_dir) as (port, _, pid):
            compare_small(port, inference, 2 * seconds)
            compare_large(port, inference, seconds)
            print(f"\nmemory of the server afterwards: {memory_kib(pid) / 1024:.0f} MiB resident, "
                  f"{memory_kib(pid, 'VmHWM') / 1024:.0f} MiB at the peak")  # fmt: skip
        inference.engine.close()


if __name__ == "__main__":
    main()
