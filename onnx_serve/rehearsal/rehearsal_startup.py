"""The beginning of a transform job: the container is pinged until it is ready, then asked for its parameters.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-batch-code.html; the rate of pings in batch jobs and
their end after 30 minutes are seen in https://github.com/aws/amazon-sagemaker-examples/issues/815.
"""

import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Self

import orjson

from onnx_serve.errors import quote
from onnx_serve.execution_parameters import ExecutionParameters
from onnx_serve.rehearsal.http_exchange import Address, Client, Exchange
from onnx_serve.rehearsal.rehearsal_findings import Findings

__all__ = ["Pulse", "ask_parameters", "wait_until_ready"]

PING_TIMEOUT_S = 2.0
PING_PERIOD_S = 1.0
# What a late ping is given while a job runs, so that the report can say how late it was.
_LATE_S = 30.0
_GRACE_S = 1.0
_CONNECT_S = 0.25
_OK = 200
_MAX_PRODUCT_MB = 100
_MAX_CONCURRENT = 1000
_SMALL_BODY_BYTES = 1 << 16
_STRATEGIES = {
    "MULTI_RECORD": "MULTI_RECORD",
    "SINGLE_RECORD": "SINGLE_RECORD",
    "MultiRecord": "MULTI_RECORD",
    "SingleRecord": "SINGLE_RECORD",
}
_PING, _PARAMETERS = "GET /ping", "GET /execution-parameters"


def wait_until_ready(
    address: Address,
    findings: Findings,
    exit_code: Callable[[], int | None],
    limit_s: float,
    tell: Callable[[str], None],
) -> float | None:
    """Pings about once a second until the answer is 200.

    Args:
        address: Of the container.
        findings: Gets what is wrong.
        exit_code: How the container has ended, or None.
        limit_s: Seconds after which to give up.
        tell: Gets a line now and then on what is being waited for.

    Returns:
        Seconds until it was ready, or None.
    """
    client = Client(address, _SMALL_BODY_BYTES)
    start = time.monotonic()
    last = ""
    try:
        while (waited := time.monotonic() - start) < limit_s:
            code = exit_code()
            if code is not None:
                findings.add("exited", _PING, f"exit code {code} after {waited:.1f} s")
                return None
            exchange = client.get("/ping", min(PING_TIMEOUT_S, max(limit_s - waited, 0.01)))
            if exchange.status == _OK:
                _check_body(exchange, findings)
                return time.monotonic() - start
            if exchange.failure == "timeout":
                findings.add("ping slow", f"{_PING}, before it was ready", exchange.detail)
            state = _state(exchange)
            if state != last:
                tell(f"waiting for {_PING}: {state}")
                last = state
            time.sleep(max(PING_PERIOD_S - exchange.seconds, 0.0))
    finally:
        client.close()
    findings.add("never ready", _PING, f"given up after {limit_s:g} s; last: {last}")
    return None


def ask_parameters(address: Address, findings: Findings) -> ExecutionParameters | None:
    """What the container answers; None when it answers something else than 200, which is its right."""
    client = Client(address, _SMALL_BODY_BYTES)
    exchange = client.get("/execution-parameters", _LATE_S)
    client.close()
    if exchange.seconds > PING_TIMEOUT_S:
        findings.add("parameters slow", _PARAMETERS, f"{exchange.seconds:.1f} s")
    if exchange.status != _OK:
        return None
    try:
        document = orjson.loads(exchange.body)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        findings.add("parameters invalid", _PARAMETERS, f"expected a JSON object, got {quote(exchange.body)}")
        return None
    strategy = _strategy(document, findings)
    payload = _number(document, "MaxPayloadInMB", 6, _MAX_PRODUCT_MB, findings)
    concurrent = _number(document, "MaxConcurrentTransforms", 1, _MAX_CONCURRENT, findings)
    if concurrent * payload > _MAX_PRODUCT_MB:
        findings.add("parameters out of bounds", _PARAMETERS, f"{concurrent} x {payload} MB")
        concurrent = max(_MAX_PRODUCT_MB // payload, 1)
    return ExecutionParameters(concurrent, strategy, payload)


def _strategy(document: dict[str, Any], findings: Findings) -> str:
    value = document.get("BatchStrategy", "MULTI_RECORD")
    known = _STRATEGIES.get(value) if isinstance(value, str) else None
    if known is None:
        findings.add("parameters invalid", _PARAMETERS, f"BatchStrategy: got {quote(value)}")
        return "MULTI_RECORD"
    if known != value:
        findings.add("parameters spelling", _PARAMETERS, f"got {quote(value)}")
    return known


def _number(document: dict[str, Any], key: str, default: int, most: int, findings: Findings) -> int:
    value = document.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        findings.add("parameters invalid", _PARAMETERS, f"{key}: expected a whole number, got {quote(value)}")
        return default
    if value > most:
        findings.add(
            "parameters out of bounds", _PARAMETERS, f"{key}: expected at most {most}, got {quote(value)}"
        )
        return most
    return value


class Pulse:
    """Goes on pinging while a job runs, in a thread of its own: a busy container must stay healthy.

    Use as a context manager.

    Args:
        address: Of the container.
        findings: Gets pings that are late or refused.

    Attributes:
        count: Pings answered or failed.
        slowest_s: Seconds of the slowest one.
    """

    def __init__(self, address: Address, findings: Findings) -> None:
        self.count = 0
        self.slowest_s = 0.0
        self._address = address
        self._findings = findings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="onnx-serve-pulse", daemon=True)

    def __enter__(self) -> Self:
        """Starts pinging."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops; a ping under way gets its time, as it began while the job ran."""
        self._stop.set()
        patience = PING_TIMEOUT_S + _GRACE_S
        self._thread.join(patience)
        if self._thread.is_alive():
            self._findings.add("ping slow", f"{_PING}, while the job ran", f"more than {patience:g} s")

    def _run(self) -> None:
        client = Client(self._address, _SMALL_BODY_BYTES)
        while not self._stop.is_set():
            self._connect()
            exchange = client.get("/ping", _LATE_S)
            # One that was under way when the job ended says nothing of the job.
            if not self._stop.is_set() or exchange.status == _OK:
                self._take(exchange)
            self._stop.wait(max(PING_PERIOD_S - exchange.seconds, 0.0))
        client.close()

    def _connect(self) -> None:
        start = time.monotonic()
        try:
            socket.create_connection((self._address.host, self._address.port), _LATE_S).close()
        except OSError:
            return  # the ping says so
        seconds = time.monotonic() - start
        if seconds > _CONNECT_S:
            self._findings.add("connection slow", "while the job ran", f"{seconds * 1000:.0f} ms")

    def _take(self, exchange: Exchange) -> None:
        self.count += 1
        self.slowest_s = max(self.slowest_s, exchange.seconds)
        if exchange.failure == "timeout" or exchange.seconds > PING_TIMEOUT_S:
            self._findings.add("ping slow", f"{_PING}, while the job ran", f"{exchange.seconds:.1f} s")
        elif exchange.status != _OK:
            self._findings.add("ping not 200", f"{_PING}, while the job ran", _state(exchange))


def _check_body(exchange: Exchange, findings: Findings) -> None:
    if exchange.body:
        findings.add("ping body", _PING, f"expected an empty body, got {quote(exchange.body)}")


def _state(exchange: Exchange) -> str:
    return f"status {exchange.status}" if not exchange.failure else f"{exchange.failure} ({exchange.detail})"
