"""The real server, in a process of its own on a free port of the loopback interface, for as long as a block lasts."""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from converters.errors import ConversionRefused
from converters.isolation import import_path

__all__ = ["ServerProcess", "serving"]

_HOST = "127.0.0.1"
_READY = re.compile(rf"ready on http://{re.escape(_HOST)}:(\d+)")
_MAX_LINE = 2000
_LAST_LINES = 5
_STOP_S = 30
# Settings of the user's own environment would not be there where the model is served, but for code that it needs.
_FOREIGN = ("ONNX_SERVE_", "SAGEMAKER_", "SM_MODEL_DIR", "MAX_CONTENT_LENGTH")
_KEPT = "ONNX_SERVE_CUSTOM_OP_LIBRARIES"


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A server that has loaded its models.

    Attributes:
        port: Of 127.0.0.1.
        timeout_s: Seconds that an answer may take.
    """

    port: int
    timeout_s: float

    def ask(self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
        """The body of an answer with status 200: to a POST of ``body``, or to a GET without one.

        Raises:
            ConversionRefused: The status is another, or there is no answer.
        """
        method = "GET" if body is None else "POST"
        with contextlib.closing(
            http.client.HTTPConnection(_HOST, self.port, timeout=self.timeout_s)
        ) as connection:
            try:
                connection.request(method, path, body, dict(headers or {}))
                response = connection.getresponse()
                content = response.read()
            except (OSError, http.client.HTTPException) as ex:
                raise ConversionRefused(
                    f"the server does not answer {method} {path}: {str(ex) or type(ex).__name__}"
                ) from ex
        if response.status != http.HTTPStatus.OK:
            text = " ".join(content[:_MAX_LINE].decode("utf-8", "replace").split())
            raise ConversionRefused(f"the server answers {method} {path} with {response.status}: {text}")
        return content


@contextlib.contextmanager
def serving(
    folder: Path, *, settings: Mapping[str, str] | None = None, timeout_s: float = 600
) -> Iterator[ServerProcess]:
    """Serves a model folder as ``onnx-serve serve`` does; the process is gone at the block's end.

    Args:
        folder: The model folder.
        settings: By name; further settings than the defaults and the folder's own.
        timeout_s: Seconds until it must be ready, and for each answer.

    Raises:
        ConversionRefused: It ends before it is ready, or is not ready in time.
    """
    environment = {
        key: value
        for key, value in os.environ.items()
        if key == _KEPT or not key.startswith((*_FOREIGN, "PYTHON"))
    }
    environment |= {f"ONNX_SERVE_{key.upper()}": value for key, value in (settings or {}).items()}
    environment |= {"PYTHONPATH": os.pathsep.join(import_path()), "ORT_DISABLE_TELEMETRY": "1"}
    process = subprocess.Popen(  # noqa: S603  this Python, and a folder of ours
        [sys.executable, "-P", "-m", "onnx_serve", "serve", "--model-dir", str(folder), "--host", _HOST, "--port", "0"],
        env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    with process.stderr as log:
        # A full pipe would stop the server.
        drain = threading.Thread(target=_drain, args=(log,), daemon=True)
        try:
            port = _wait(process, log, timeout_s)
            drain.start()
            yield ServerProcess(port, timeout_s)
        finally:
            _stop(process)
            if drain.ident is not None:
                drain.join()


def _wait(process: "subprocess.Popen[bytes]", log: IO[bytes], timeout_s: float) -> int:
    """The port, once the models are loaded.

    Raises:
        ConversionRefused: The process ends, or is killed as time is up.
    """
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(timeout_s, expire)
    timer.start()
    last: deque[str] = deque(maxlen=_LAST_LINES)
    try:
        while line := log.readline(_MAX_LINE):
            text = line.decode("utf-8", "replace").strip()
            if found := _READY.search(text):
                return int(found[1])
            last.append(text)
    finally:
        timer.cancel()
    if expired.is_set():
        raise ConversionRefused(f"the model is not served within {timeout_s:g} s")
    said = next((text for text in reversed(last) if text), "it said nothing")
    raise ConversionRefused(f"the model cannot be served: {said.removeprefix('onnx-serve: ')}")


def _drain(log: IO[bytes]) -> None:
    while log.readline(_MAX_LINE):
        pass


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ends the server, and then what it may have started, which would keep the pipe open."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
