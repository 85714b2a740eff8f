"""The process that measures a model, as its parent sees it: started, listened to, ended.

A model may crash, hang or take all memory when it is first run. That happens in a child process, so that the server
lives on: whatever becomes of the child, ``run`` gives a calibration, and says why if it is a guess.
"""

import contextlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from onnx_serve.calibration_files import from_json
from onnx_serve.calibration_record import Calibration, CalibrationKey, guess
from onnx_serve.errors import CalibrationError

__all__ = ["CalibrationProcess", "CalibrationRequest"]

_log = logging.getLogger("onnx_serve")

_MIB = 1 << 20
_MAX_OUTPUT_BYTES = 1 << 20
_MAX_REASON = 400
_CHILD = (sys.executable, "-P", "-m", "onnx_serve.calibration")
# What the child needs to find its libraries and devices and to speak. Nothing else, credentials least of all.
_INHERITED = frozenset(
    (
        "PATH", "HOME", "TMPDIR", "TZ", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "LD_PRELOAD",
        "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "GLIBC_TUNABLES", "ARROW_DEFAULT_MEMORY_POOL",
    )
)  # fmt: skip
_INHERITED_PREFIXES = ("CUDA_", "CUDNN_", "NVIDIA_", "MALLOC_", "OMP_", "ORT_")


@dataclass(frozen=True, slots=True)
class CalibrationRequest:
    """What to measure, and within which bounds. All of it has a form in JSON.

    Attributes:
        key: What the calibration will hold for.
        model: The model file; checked by ``model_check`` before.
        name: What callers call the model.
        slots: Concurrent runs that are wanted.
        memory_bytes: The budget for loading the model, and for the session and its runs, beside an idle process.
        work_s: Seconds of work, about; the parent's timeout is the bound that holds.
        sample: A request that came with the model, or None: then its inputs are made up.
        intra_op_threads: Threads of one run; None shares the processors among the slots.
        providers: As in ``SessionOptions``, and so the rest.
        provider_options: By provider.
        config: Entries of the session's configuration.
        outputs: Names of the outputs to answer.
        custom_op_libraries: Libraries of custom operators.
        row_wish: How records become rows, if the operator knows.
    """

    key: CalibrationKey
    model: Path
    name: str
    slots: int
    memory_bytes: int
    work_s: float = 10.0
    sample: Path | None = None
    intra_op_threads: int | None = None
    providers: str | Sequence[str] = "auto"
    provider_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    outputs: Sequence[str] = ()
    custom_op_libraries: Sequence[str] = ()
    row_wish: Literal["auto", "free", "alone", "as_sent"] = "auto"

    def to_json(self) -> str:
        """What the child reads."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "CalibrationRequest":
        """What the parent wrote."""
        entries = json.loads(text)
        key = CalibrationKey(**{**entries["key"], "providers": tuple(entries["key"]["providers"])})
        sample = entries["sample"] and Path(entries["sample"])
        return cls(**{**entries, "key": key, "model": Path(entries["model"]), "sample": sample})


class CalibrationProcess:
    """One run of the child. ``run`` is called once; ``stop`` from any thread, at any time.

    Args:
        request: What to measure.
        timeout_s: Seconds after which the child is killed.
        variables: Environment variables for the child, beside those it inherits.
        command: What is started, with the number of this process; reads the request from standard input and writes records to standard output, one
            a line, each time it knows more.
    """

    def __init__(
        self,
        request: CalibrationRequest,
        timeout_s: float,
        *,
        variables: Mapping[str, str] | None = None,
        command: Sequence[str] = _CHILD,
    ) -> None:
        self._request = request
        self._timeout_s = timeout_s
        self._variables = dict(variables or {})
        self._command = [*command, str(os.getpid())]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()

    def run(self) -> Calibration:
        """Measures, and says so in the log once. Never raises; blocks for ``timeout_s`` at most."""
        started = time.monotonic()
        listener = _Listener(self._request)
        try:
            with tempfile.TemporaryDirectory(prefix="onnx-serve-", ignore_cleanup_errors=True) as folder:
                end = self._converse(Path(folder), listener, started + self._timeout_s)
        except OSError as ex:
            end = _End(f"the measuring process cannot be started: {ex.strerror or type(ex).__name__}")
        record = listener.record
        if record is None or record.reached != "all":
            record = replace(_after(end, record, self._request), seconds=time.monotonic() - started)
        _say(self._request.name, record)
        return record

    def stop(self) -> None:
        """Kills the child at once, or keeps it from being started; ``run`` then gives a guess."""
        with self._lock:
            self._stopped.set()
            if self._process is not None:
                self._process.kill()

    def _converse(self, folder: Path, listener: "_Listener", deadline: float) -> "_End":
        """Starts the child and listens until it ends or is ended."""
        order = folder / "request.json"
        order.write_text(self._request.to_json(), encoding="utf-8")
        with order.open("rb") as request, self._lock:
            if self._stopped.is_set():
                return _End("stopped")
            self._process = process = subprocess.Popen(  # noqa: S603 - this interpreter
                self._command,
                stdin=request,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**_environment(), **self._variables},
                # Signals of a terminal are the server's to answer.
                start_new_session=True,
            )
        assert process.stdout is not None
        late = f"it took longer than {self._timeout_s:g} s"
        with process.stdout:
            try:
                problem = _listen(process.stdout.fileno(), listener, deadline, late)
                if not problem:
                    process.wait(timeout=max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                problem = late
            finally:
                # Without effect on a process that has ended.
                process.kill()
                process.wait()
        if self._stopped.is_set():
            return _End("stopped")
        return _End(listener.last_words(problem)) if problem else _describe_end(process.returncode, listener)


class _End(NamedTuple):
    """How the child ended.

    Attributes:
        problem: What was wrong; empty if nothing was.
        by_memory: Whether memory ran out.
    """

    problem: str
    by_memory: bool = False


class _Listener:
    """Sorts what the child says into records, remarks, and all else; keeps little of it."""

    def __init__(self, request: CalibrationRequest) -> None:
        self.record: Calibration | None = None
        self._request = request
        self._rest = b""
        self._other = ""

    def hear(self, data: bytes) -> None:
        """More of the child's output."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace").strip()
            if text:
                self._hear_line(text)

    def last_words(self, otherwise: str) -> str:
        """What the child said last that was no record."""
        words = self._other or _one_line(self._rest.decode("utf-8", "replace")).strip()
        return f"{otherwise}; it said: {words}" if words else otherwise

    def _hear_line(self, text: str) -> None:
        if text.startswith('{"remark": '):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                _log.warning(
                    "%s: calibration: %s", self._request.name, str(json.loads(text)["remark"])[:_MAX_REASON]
                )
            return
        try:
            record = from_json(text)
        except CalibrationError:
            self._other = _one_line(text)
            return
        if record.key == self._request.key:
            self.record = record


def _listen(stream: int, listener: _Listener, deadline: float, late: str) -> str:
    """Hears all that comes until the stream's end; says why if it stops before."""
    heard = 0
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            data = os.read(stream, 1 << 16)
            if not data:
                return ""
            heard += len(data)
            if heard > _MAX_OUTPUT_BYTES:
                return f"it wrote more than {_MAX_OUTPUT_BYTES} bytes"
            listener.hear(data)
    return late


def _describe_end(status: int, listener: _Listener) -> _End:
    if status == -signal.SIGKILL:
        # The kernel's doing: the child asks to be chosen first when memory runs out.
        return _End("it was killed, most likely because memory ran out", by_memory=True)
    if status < 0:
        # Signals without a name exist.
        name = signal.strsignal(-status) or f"signal {-status}"
        return _End(listener.last_words(f"it crashed ({name})"))
    if status:
        return _End(listener.last_words(f"it failed with exit status {status}"))
    return _End("")


def _after(end: _End, record: Calibration | None, request: CalibrationRequest) -> Calibration:
    """The guess that stands in for what a child did not get to."""
    if record is not None and record.reason and not end.problem:
        return record
    problem = end.problem or "it ended before it was done"
    if record is None:
        if end.by_memory:
            problem += f" ({_of_memory('while the model was loaded', request)})"
        record = guess(
            request.key,
            None,
            slots=request.slots,
            memory_bytes=request.memory_bytes,
            reason=problem[:_MAX_REASON],
        )
        return replace(record, fits=not end.by_memory)
    if end.by_memory:
        problem += f" ({_of_memory(f'at least {record.session_bytes // _MIB} MiB for the session', request)})"
        rows = record.ladder[0].rows if record.ladder else 1
        record = replace(record, slots=1, block_rows=rows, limited=True)
    return replace(record, origin="guessed", reason=problem[:_MAX_REASON])


def _of_memory(need: str, request: CalibrationRequest) -> str:
    return f"{need}, of {request.memory_bytes // _MIB} MiB"


def _say(name: str, record: Calibration) -> None:
    if record.origin == "guessed":
        _log.warning(
            "%s: not measured, figures are guessed: %s (reached: %s, %.1f s)",
            name, record.reason, record.reached, record.seconds,
        )  # fmt: skip
        return
    _log.info(
        "%s: measured in %.1f s with %s inputs: session %d MiB, runs %d MiB, blocks of %d rows on %d slots, "
        "%.4g rows/s%s",
        name, record.seconds, record.feed, record.session_bytes // _MIB, record.reserve_bytes // _MIB,
        record.block_rows, record.slots, record.rows_per_s, "" if record.fits else f"; {record.reason}",
    )  # fmt: skip


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    # Its threads' buffers would be taken for the model's.
    return {**kept, "ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_REASON])
