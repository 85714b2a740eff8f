"""A real server process on a free port of the loopback interface."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

SAMPLES = Path(__file__).parent.parent / "sample_models"
START_S = 60


@dataclass(frozen=True)
class ServerProcess:
    """A running server.

    Attributes:
        port: Where it listens.
        process: To signal it and wait for it.
        log_file: What it has written to standard output and error.
    """

    port: int
    process: "subprocess.Popen[bytes]"
    log_file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def post(
        self,
        body: bytes | str | Iterator[bytes],
        content_type: str,
        accept: str | None = None,
        **headers: str,
    ) -> requests.Response:
        """``POST /invocations``; keyword arguments are further headers, with ``_`` for ``-``."""
        sent = {
            "Content-Type": content_type,
            **{name.replace("_", "-"): text for name, text in headers.items()},
        }
        if accept is not None:
            sent["Accept"] = accept
        return requests.post(f"{self.url}/invocations", data=body, headers=sent, timeout=60)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log
            try:
                if requests.get(f"{self.url}/ping", timeout=5).status_code == 200:
                    return
            except requests.ConnectionError:
                pass
            time.sleep(0.02)
        raise AssertionError(f"not ready within {START_S} s: {self.log}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """A control group whose processes have so much memory; skips where none can be made."""
    version_1 = Path("/sys/fs/cgroup/memory")
    parent = version_1 if version_1.is_dir() else Path("/sys/fs/cgroup")
    group = parent / f"onnx-serve-test-{os.getpid()}"
    limit = "memory.limit_in_bytes" if parent == version_1 else "memory.max"
    try:
        group.mkdir()
    except OSError as ex:
        pytest.skip(f"no control group can be made here: {ex.strerror}")
    try:
        try:
            (group / limit).write_text(str(limit_bytes))
        except OSError as ex:
            pytest.skip(f"no memory limit can be set here: {ex.strerror}")
        yield group
    finally:
        for _ in range(100):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.05)


@contextmanager
def start(
    model_dir: Path,
    log_file: Path,
    env: Mapping[str, str] | None = None,
    *,
    ready: bool = True,
    memory_group: Path | None = None,
) -> Iterator[ServerProcess]:
    """Starts ``onnx-serve serve`` as a user would, and ends it, if it still runs, when the block does.

    Models are not measured unless ``env`` says so: most tests need neither the figures nor the seconds.

    Args:
        model_dir: The model folder.
        log_file: Gets what the server writes.
        env: Variables beside those of this process.
        ready: Whether to wait for the first 200.
        memory_group: A control group for the process and its children.
    """
    port = free_port()
    command = [sys.executable, "-m", "onnx_serve", "serve", "--model-dir", str(model_dir),
               "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    if memory_group is not None:
        join = f'echo $$ > "{memory_group}/cgroup.procs" && exec "$@"'
        command = ["sh", "-c", join, "sh", *command]
    inherited = {
        name: text for name, text in os.environ.items() if not name.startswith(("SAGEMAKER", "ONNX_SERVE"))
    }
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**inherited, "ONNX_SERVE_CALIBRATION": "never", **(env or {})},
        )
    server = ServerProcess(port, process, log_file)
    try:
        if ready:
            server.wait_until_ready()
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
