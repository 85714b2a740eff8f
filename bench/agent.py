"""The client of a transform job: so many requests in flight, bodies made beforehand, answers thrown away.

It shares the machine's processors with the server that it measures, so it does as little as it can: a
thread and a kept connection for each request in flight, system calls on large buffers.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from bench.payloads import Payload

_BUFFER_BYTES = 1 << 18
_MAX_HEAD_BYTES = 1 << 16
_MESSAGE_BYTES = 300


class JobFailedError(Exception):
    """A request was not answered with 200: what came instead."""


@dataclass(frozen=True)
class JobResult:
    """What a job did.

    Attributes:
        records: Of answered requests.
        requests: Answered ones.
        seconds: From the first request to the last answer.
        client_s: Processor time that this process used meanwhile.
        finished: Whether all payloads were answered in the time allowed.
    """

    records: int
    requests: int
    seconds: float
    client_s: float
    finished: bool

    @property
    def rate(self) -> float:
        """Records a second."""
        return self.records / self.seconds


def head(content_type: str, length: int, path: str = "/invocations") -> bytes:
    """What precedes a body."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def run_job(
    port: int, content_type: str, payloads: Iterable[Payload], concurrent: int, limit_s: float = 3600
) -> JobResult:
    """Sends all payloads, so many at once, each as soon as an earlier one is answered.

    Args:
        port: The server's.
        content_type: Of the payloads; Accept is left open, as most jobs do.
        payloads: Drawn one by one.
        concurrent: Requests in flight.
        limit_s: After that long, requests in flight are given up.

    Raises:
        JobFailedError: An answer is not 200, or the connection breaks.
    """
    job = _Job(port, content_type, iter(payloads), time.perf_counter() + limit_s)
    threads = [threading.Thread(target=job.work) for _ in range(concurrent)]
    begin, client = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, client_s = time.perf_counter() - begin, time.process_time() - client
    if job.failure:
        raise JobFailedError(job.failure)
    return JobResult(job.records, job.requests, seconds, client_s, not job.late)


class _Job:
    """State that the threads of a job share."""

    def __init__(self, port: int, content_type: str, payloads: Iterator[Payload], end: float) -> None:
        self._port, self._content_type, self._payloads, self._end = port, content_type, payloads, end
        self._lock = threading.Lock()
        self.records = self.requests = 0
        self.failure, self.late = "", False

    def work(self) -> None:
        """One thread's part: a connection, one payload after another."""
        try:
            with socket.create_connection(("127.0.0.1", self._port)) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                buffer = bytearray(_BUFFER_BYTES)
                while (payload := self._next()) is not None:
                    self._exchange(connection, payload, buffer)
        except TimeoutError:
            self.late = True
        except (JobFailedError, OSError) as ex:
            self.failure = self.failure or str(ex) or type(ex).__name__

    def _next(self) -> Payload | None:
        if self.failure:
            return None
        with self._lock:
            return next(self._payloads, None)

    def _left(self) -> float:
        left = self._end - time.perf_counter()
        if left <= 0:
            raise TimeoutError
        return left

    def _exchange(self, connection: socket.socket, payload: Payload, buffer: bytearray) -> None:
        connection.settimeout(self._left())
        start = head(self._content_type, len(payload.body))
        # A refusal may come, and the connection go, before the whole body is sent: the answer tells why.
        with contextlib.suppress(ConnectionError):
            if len(payload.body) < _BUFFER_BYTES:
                connection.sendall(start + payload.body)
            else:
                connection.sendall(start)
                connection.sendall(payload.body)
        connection.settimeout(self._left())
        read_answer(connection, buffer)
        with self._lock:
            self.records += payload.records
            self.requests += 1


def read_answer(connection: socket.socket, buffer: bytearray) -> None:
    """Reads one answer and drops it.

    Raises:
        JobFailedError: It is not 200, or not whole.
    """
    have = 0
    while (end := buffer.find(b"\r\n\r\n", 0, have)) < 0:
        count = connection.recv_into(memoryview(buffer)[have:_MAX_HEAD_BYTES])
        if not count:
            raise JobFailedError("the server closed the connection without an answer")
        have += count
    status, length = parse_head(bytes(buffer[:end]))
    body = bytes(buffer[end + 4 : min(have, end + 4 + _MESSAGE_BYTES)]) if status != 200 else b""
    left = length - (have - end - 4)
    while left > 0:
        count = connection.recv_into(buffer, min(left, len(buffer)))
        if not count:
            raise JobFailedError("the server closed the connection within an answer")
        if status != 200 and len(body) < _MESSAGE_BYTES:
            body += bytes(buffer[: min(count, _MESSAGE_BYTES)])
        left -= count
    if status != 200:
        raise JobFailedError(f"{status} {body.decode(errors='replace')}")


def parse_head(text: bytes) -> tuple[int, int]:
    """The status and the length of the body.

    Raises:
        JobFailedError: It has no Content-Length.
    """
    lines = text.lower().split(b"\r\n")
    for line in lines[1:]:
        if line.startswith(b"content-length:"):
            return int(lines[0].split(b" ", 2)[1]), int(line[15:])
    raise JobFailedError(f"an answer without Content-Length: {lines[0].decode(errors='replace')}")
