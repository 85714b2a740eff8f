"""A server as a transform job starts it: a fresh process, the job's variables, a container's limits."""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.control_group import ControlGroup

_START_S = 120
_STOP_S = 3
# The shell writes its id into the groups, then becomes the server: both are the same process.
_ENTER = 'for file in $ENTRANCES; do echo $$ > "$file" || exit 97; done; exec "$@"'


class StartFailedError(Exception):
    """The server ended before it was ready, or was not ready in time.

    Attributes:
        code: Its exit code; negative for the signal that killed it; None if it went on without an answer.
    """

    def __init__(self, code: int | None, line: str) -> None:
        super().__init__(line)
        self.code = code


@dataclass(frozen=True)
class Answer:
    """What ``/execution-parameters`` answers.

    Attributes:
        concurrent: MaxConcurrentTransforms.
        payload_mb: MaxPayloadInMB.
        strategy: BatchStrategy.
        predicted_bytes: What the process is said to hold at most; None if it does not say.
        terms: What the numbers come from, by name.
        decided_by: The term that decided each.
    """

    concurrent: int
    payload_mb: int
    strategy: str
    predicted_bytes: int | None = None
    terms: Mapping[str, Any] = field(default_factory=dict)
    decided_by: Mapping[str, str] = field(default_factory=dict)

    @property
    def limit_mb(self) -> int:
        """The largest payload that a job sends: 0 stands for any size, of which the platform allows 100."""
        return self.payload_mb or 100

    def __str__(self) -> str:
        return f"{self.concurrent} x {self.payload_mb} MB, {self.strategy}"


@dataclass(frozen=True)
class ServerProcess:
    """A running server.

    Attributes:
        port: Where it listens.
        start_s: Seconds from its start to the first 200 for a ping.
        group: Its container's limits, if any.
    """

    process: "subprocess.Popen[bytes]"
    port: int
    start_s: float
    log_file: Path
    group: ControlGroup | None

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.process.poll() is None

    @property
    def peak_bytes(self) -> int:
        """The most memory it had resident so far (https://man7.org/linux/man-pages/man5/proc_pid_status.5.html)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    @property
    def cpu_s(self) -> float:
        """Processor time of all its threads so far (https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html)."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def last_line(self) -> str:
        """What it said last."""
        return _last_line(self.log_file)

    def answer(self) -> Answer:
        """Its execution parameters, with what they come from if it tells."""
        document = self.get("/execution-parameters?explain=true")
        explain = document.get("explain", {})
        return Answer(
            document["MaxConcurrentTransforms"],
            document["MaxPayloadInMB"],
            document["BatchStrategy"],
            explain.get("predicted_peak_bytes"),
            {term["name"]: term["value"] for term in explain.get("terms", [])},
            explain.get("decided_by", {}),
        )

    def get(self, path: str) -> dict[str, Any]:
        """A JSON document."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            document: dict[str, Any] = json.loads(connection.getresponse().read())
            return document
        finally:
            connection.close()


@contextmanager
def serving(
    model_dir: Path, variables: Mapping[str, str], limits: tuple[int, float] | None = None
) -> Iterator[ServerProcess]:
    """A server that is ready; it and its control group are gone afterwards.

    Args:
        model_dir: The model's folder.
        variables: Beside the environment's own, of which SAGEMAKER_* and ONNX_SERVE_* are left out.
        limits: Bytes of memory and processors of its container; None for the machine's.

    Raises:
        StartFailedError: It is not.
        ControlGroupError: The limits cannot be set here.
    """
    with ExitStack() as stack:
        group = stack.enter_context(ControlGroup(*limits)) if limits else None
        log = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".log"))
        port = _free_port()
        command = [sys.executable, "-m", "onnx_serve", "serve", "--model-dir", str(model_dir),
                   "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
        inherited = {
            name: text
            for name, text in os.environ.items()
            if not name.startswith(("SAGEMAKER", "ONNX_SERVE"))
        }
        entrances = " ".join(group.entrances) if group else ""
        begin = time.perf_counter()
        process = subprocess.Popen(
            ["/bin/sh", "-c", _ENTER, "sh", *command],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**inherited, **variables, "ENTRANCES": entrances},
        )
        stack.callback(_stop, process)
        log_file = Path(log.name)
        while not _ping(port):
            if process.poll() is not None:
                raise StartFailedError(process.returncode, _last_line(log_file))
            if time.perf_counter() - begin > _START_S:
                raise StartFailedError(None, f"not ready after {_START_S} s: {_last_line(log_file)}")
            time.sleep(0.01)
        yield ServerProcess(process, port, time.perf_counter() - begin, log_file, group)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _ping(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        # It would finish requests that a job gave up on.
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def _last_line(log_file: Path) -> str:
    lines = log_file.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
