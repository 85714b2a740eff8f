"""What small requests gain from sharing runs, and from being answered without a change of threads.

    python -m bench.micro_batching ZOO [--models a,b] [--format json|csv|oip] [--connections N] [--quick] [--json FILE]

Three servers of each model run side by side: "off" gives each request a thread and a run of its own
(ONNX_SERVE_MERGING=never, ONNX_SERVE_BRIEF_REQUESTS=never), "shared" lets them share runs, and the third decides
everything by itself. 64 connections each have a request of one row in flight; the servers take turns, ten rounds. The
client is one process that waits on all connections at once; it shares the processors with the server, so what it uses
is printed.

throughput   requests a second, shared over off; and as it comes over off.
CPU          processor time of the server for a request, likewise.
ladder       how much cheaper a row gets in company, as the server measured it (its term merge_gain), or measured here.
achievable   what that leaves once everything around the run is counted: the server's time for a request without
             merging, over the same with the run made cheaper.
gain share   the median throughput gain over the achievable gain: (throughput - 1) / (achievable - 1).
"""

import argparse
import json
import os
import selectors
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort
import orjson

from bench.agent import JobFailedError, head, parse_head
from bench.intervals import Interval, ratio_interval
from bench.model_zoo import CSV, JSON, JSON_LINES, Records, ZooModel, build, chosen
from bench.payloads import draw
from bench.server_process import ServerProcess, StartFailedError, serving

_DISTINCT = 256
_CALIBRATION_S = 60
_LADDER = (1, 2, 4, 8, 16, 32, 64)
_RUN_S = 0.2
_WORTH = 1.1
_VARIANTS: tuple[dict[str, str], ...] = (
    {"ONNX_SERVE_MERGING": "never", "ONNX_SERVE_BRIEF_REQUESTS": "never"},
    {"ONNX_SERVE_BRIEF_REQUESTS": "never"},
    {},
)
_HEADER = (
    "model", "format", "req/s off", "off us CPU/req", "shared / off", "CPU shared / off", "ladder gain", "achievable gain",
    "gain share", "as it comes / off", "CPU as it comes / off", "client CPU", "notes",
)  # fmt: skip
_OIP_TYPES = {"f4": "FP32", "i8": "INT64"}


class Load(NamedTuple):
    """What a measurement saw: requests, their seconds, processor seconds of server and client."""

    requests: int
    seconds: float
    server_s: float
    client_s: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def cpu_s(self) -> float:
        """Of the server, a request."""
        return self.server_s / self.requests


@dataclass
class _Connection:
    """One connection: the request to send next, and what has come of the answer."""

    sock: socket.socket
    next: int
    received: bytearray
    missing: int = -1


def requests(model: ZooModel, kind: str) -> list[bytes]:
    """Whole requests of one distinct row each.

    Raises:
        ValueError: The model has no such format.
    """
    if kind == "oip":
        rng = np.random.default_rng(0)
        rows = [model.draw(rng, 1) for _ in range(_DISTINCT)]
        bodies = [orjson.dumps({"inputs": _oip(row)}) for row in rows]
        return [head("application/json", len(body), "/v2/models/model/infer") + body for body in bodies]
    content_type = {"json": JSON, "csv": CSV, "jsonlines": JSON_LINES}[kind]
    if content_type not in model.formats:
        raise ValueError(f"takes no {kind}")
    made = list(draw(model, content_type).single(_DISTINCT))
    return [head(content_type, len(payload.body)) + payload.body for payload in made]


def _oip(row: Records) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": _OIP_TYPES.get(array.dtype.str[1:], "BYTES"),
            "data": array.reshape(-1).tolist(),
        }
        for name, array in row.items()
    ]


def load(server: ServerProcess, sent: Sequence[bytes], connections: int, seconds: float) -> Load:
    """Keeps that many requests in flight for about that long.

    Raises:
        JobFailedError: An answer is not 200.
    """
    with selectors.DefaultSelector() as ready:
        for index in range(connections):
            sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            ready.register(sock, selectors.EVENT_READ, _Connection(sock, index, bytearray()))
        try:
            return _drive(server, sent, ready, seconds)
        finally:
            for key in list(ready.get_map().values()):
                key.data.sock.close()


def _drive(
    server: ServerProcess, sent: Sequence[bytes], ready: selectors.BaseSelector, seconds: float
) -> Load:
    connections: list[_Connection] = [key.data for key in ready.get_map().values()]
    server_s, client_s, begin = server.cpu_s, time.process_time(), time.perf_counter()
    for connection in connections:
        _send(connection, sent, len(connections))
    end, answered, waiting = begin + seconds, 0, len(connections)
    while waiting:
        events = ready.select(30)
        if not events:
            raise JobFailedError("no answer within 30 s")
        for key, _ in events:
            if _receive(key.data):
                answered += 1
                if time.perf_counter() < end:
                    _send(key.data, sent, len(connections))
                else:
                    waiting -= 1
    took = time.perf_counter() - begin
    return Load(answered, took, server.cpu_s - server_s, time.process_time() - client_s)


def _send(connection: _Connection, sent: Sequence[bytes], step: int) -> None:
    """One row's request: far smaller than a socket's buffer, except where rows are images."""
    data = memoryview(sent[connection.next % len(sent)])
    connection.next += step
    while data:
        try:
            data = data[connection.sock.send(data) :]
        except BlockingIOError:
            with selectors.DefaultSelector() as writable:
                writable.register(connection.sock, selectors.EVENT_WRITE)
                writable.select(30)


def _receive(connection: _Connection) -> bool:
    """Reads what has come; whether that completes an answer."""
    data = connection.sock.recv(1 << 16)
    if not data:
        raise JobFailedError("the server closed the connection")
    connection.received += data
    if connection.missing < 0:
        end = connection.received.find(b"\r\n\r\n")
        if end < 0:
            return False
        status, length = parse_head(bytes(connection.received[:end]))
        if status != 200:
            raise JobFailedError(f"{status} {bytes(connection.received[end + 4 : end + 300])!r}")
        connection.missing = end + 4 + length
    if len(connection.received) < connection.missing:
        return False
    connection.received.clear()
    connection.missing = -1
    return True


def ladder(model_dir: Path, model: ZooModel) -> tuple[float, float]:
    """Rows per CPU-second, best of the ladder over one row a run; and the CPU seconds of one row."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    session = ort.InferenceSession(model_dir / "model.onnx", options)
    rng = np.random.default_rng(0)
    costs = [_row_seconds(session, model.draw(rng, rows), rows) for rows in _LADDER]
    return costs[0] / min(costs), costs[0]


def _row_seconds(session: ort.InferenceSession, feed: Records, rows: int) -> float:
    session.run(None, feed)
    begin, runs = time.process_time(), 0
    while (took := time.process_time() - begin) < _RUN_S:
        session.run(None, feed)
        runs += 1
    return took / runs / rows


@dataclass(frozen=True)
class Gain:
    """One model's result: ``throughput`` and ``cpu`` of sharing runs, ``own_...`` of the server as it comes.

    ``ladder_gain`` is of the model alone, ``achievable`` of whole requests.
    """

    model: str
    kind: str
    off_rate: float
    off_cpu_s: float
    throughput: Interval
    cpu: Interval
    own_throughput: Interval
    own_cpu: Interval
    ladder_gain: float
    achievable: float
    client_share: float
    origin: str

    @property
    def share(self) -> float | None:
        """Of the achievable gain; None where there is hardly one."""
        return None if self.achievable < _WORTH else (self.throughput.median - 1) / (self.achievable - 1)


def compare(
    name: str, model: ZooModel, model_dir: Path, kind: str, connections: int, rounds: int, seconds: float
) -> Gain:
    """Runs the rounds.

    Raises:
        ValueError: The model has no such format.
        JobFailedError: A request fails.
        StartFailedError: A server does not start.
    """
    sent = requests(model, kind)
    with tempfile.TemporaryDirectory() as cache, ExitStack() as running:
        servers: list[ServerProcess] = []
        for variables in _VARIANTS:
            known = {"ONNX_SERVE_CALIBRATION_CACHE": cache}
            servers.append(running.enter_context(serving(model_dir, {**known, **variables})))
            terms = _calibrated(servers[-1])
        rounds_seen: list[list[Load]] = []
        for turn in range(rounds + 1):
            order = servers if turn % 2 else servers[::-1]
            seen = {server.port: load(server, sent, connections, seconds) for server in order}
            rounds_seen.append([seen[server.port] for server in servers])
    # The first round warms all of them up.
    off, shared, own = zip(*rounds_seen[1:], strict=True)
    return _gain(name, kind, (off, shared, own), _costs(terms, model_dir, model))


def _gain(name: str, kind: str, seen: Sequence[Sequence[Load]], costs: tuple[float, float, str]) -> Gain:
    off, shared, own = seen
    gain, row_s, origin = costs
    off_cpu_s = sorted(one.cpu_s for one in off)[len(off) // 2]
    cheaper = max(off_cpu_s - row_s * (1 - 1 / gain), off_cpu_s / gain)
    everyone = [*off, *shared, *own]
    return Gain(
        name,
        kind,
        sorted(one.rate for one in off)[len(off) // 2],
        off_cpu_s,
        _rates(shared, off),
        _costs_a_request(shared, off),
        _rates(own, off),
        _costs_a_request(own, off),
        gain,
        off_cpu_s / cheaper,
        sum(one.client_s for one in everyone) / sum(one.seconds for one in everyone),
        origin,
    )


def _rates(ours: Sequence[Load], others: Sequence[Load]) -> Interval:
    return ratio_interval([one.rate for one in ours], [one.rate for one in others])


def _costs_a_request(ours: Sequence[Load], others: Sequence[Load]) -> Interval:
    return ratio_interval([one.cpu_s for one in ours], [one.cpu_s for one in others])


def _calibrated(server: ServerProcess) -> Mapping[str, Any]:
    """The server's terms once it has measured its model, which it may do after it is ready."""
    end = time.perf_counter() + _CALIBRATION_S
    while (terms := server.answer().terms) and time.perf_counter() < end:
        if terms.get("calibration_origin") in {"measured", "cached", "shipped"}:
            break
        time.sleep(0.2)
    return terms


def _costs(terms: Mapping[str, Any], model_dir: Path, model: ZooModel) -> tuple[float, float, str]:
    if {"merge_gain", "one_row_s"} <= terms.keys() and terms["one_row_s"]:
        return float(terms["merge_gain"]), float(terms["one_row_s"]), "the server's"
    return *ladder(model_dir, model), "measured here"


def _row(gain: Gain) -> list[str]:
    share = gain.share
    return [
        gain.model, gain.kind, f"{gain.off_rate:,.0f}", f"{gain.off_cpu_s * 1e6:,.0f}", str(gain.throughput), str(gain.cpu),
        f"{gain.ladder_gain:.2f}", f"{gain.achievable:.2f}", "n/a" if share is None else f"{share:.0%}",
        str(gain.own_throughput), str(gain.own_cpu), f"{gain.client_share:.0%} of a CPU", f"ladder: {gain.origin}",
    ]  # fmt: skip


def main() -> None:
    """Measures the models and prints the table."""
    parser = argparse.ArgumentParser(description="Measures what small requests gain from sharing runs.")
    parser.add_argument("zoo", type=Path, help="folder of the models; those it lacks are built")
    parser.add_argument("--models", help="some of them, separated by commas (default: all)")
    parser.add_argument("--format", default="json", choices=["json", "csv", "jsonlines", "oip"])
    parser.add_argument("--connections", type=int, default=64, help="requests in flight (default: 64)")
    parser.add_argument("--rounds", type=int, default=10, help="interleaved rounds (default: 10)")
    parser.add_argument("--quick", action="store_true", help="shorter measurements, for a first look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    options = parser.parse_args()
    gains: list[Gain] = []
    for cells in (_HEADER, ("---",) * len(_HEADER)):
        print("| " + " | ".join(cells) + " |", flush=True)
    for name, model in chosen(options.models).items():
        try:
            gain = compare(
                name, model, build(options.zoo, name), options.format, options.connections, options.rounds,
                0.5 if options.quick else 2,
            )  # fmt: skip
        except (ValueError, JobFailedError, StartFailedError) as ex:
            print(f"{name}: {ex}", file=sys.stderr)
            continue
        gains.append(gain)
        print("| " + " | ".join(_row(gain)) + " |", flush=True)
        if options.json:
            options.json.write_text(
                json.dumps([{**asdict(one), "share": one.share} for one in gains], indent=1)
            )


if __name__ == "__main__":
    main()
