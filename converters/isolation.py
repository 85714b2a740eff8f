"""A process of its own for what reads artifacts: no environment, limits, an end, and no network if that can be.

Reading a pickle runs the code in it, and the native libraries end the process on some damaged files. Both
happen in a child that starts from nothing but Python's path. This is no sandbox: the child may read and write
what the user may.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO

from converters.conversion import Conversion, Progress, Request, load, say_nothing
from converters.errors import ConversionError, ConversionRefused
from onnx_serve.errors import quote
from onnx_serve.machine import read_machine

__all__ = ["PROGRESS", "convert_apart", "import_path"]

PROGRESS = "progress: "
_FAILURES = {error.__name__: error for error in (ConversionError, ConversionRefused)}
_MAX_RESULT = 1 << 20
_MAX_LINE = 500
_CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT})
_LIBRARIES = 16 << 30  # address space that the frameworks' libraries and threads reserve without using it


@contextlib.contextmanager
def convert_apart(
    request: Request, *, timeout_s: float, memory_bytes: int | None = None, progress: Progress = say_nothing
) -> Iterator[Conversion]:
    """Converts in a child process; the conversion's files live as long as the context.

    Args:
        request: What to convert.
        timeout_s: Seconds after which the child is killed.
        memory_bytes: Its address space at most; by default, the machine's memory.
        progress: Told what the child does.

    Raises:
        ConversionError: The child reports it, is killed, or comes to a bad end.
        ConversionRefused: The child reports it.
    """
    with tempfile.TemporaryDirectory(prefix="onnx-serve-convert-") as name:
        folder = Path(name)
        job = {
            **asdict(request),
            "memory_bytes": memory_bytes or read_machine().memory_limit_bytes + _LIBRARIES,
            "timeout_s": timeout_s,
        }
        (folder / "job.json").write_text(json.dumps(job))
        _run(folder, timeout_s, progress)
        yield load(folder / "conversion")


def _run(folder: Path, timeout_s: float, progress: Progress) -> None:
    environment = {
        "PYTHONPATH": os.pathsep.join(import_path()),
        "ORT_DISABLE_TELEMETRY": "1",
        "LANG": "C.UTF-8",
        "HOME": str(folder),
        "USER": "onnx-serve",  # torch looks for a user's name, and unnamed users have none
        "TMPDIR": str(folder),
    }
    with (folder / "stderr").open("wb") as stderr:
        child = subprocess.Popen(  # noqa: S603  this Python, and a folder of ours
            [sys.executable, "-P", "-m", "converters.worker", str(folder)],
            env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr,
            start_new_session=True, cwd=folder,
        )  # fmt: skip
    timed_out = False

    def stop(*_: object) -> None:
        nonlocal timed_out
        timed_out = True
        _kill(child)

    timer = threading.Timer(timeout_s, stop)
    timer.start()
    try:
        assert child.stdout is not None
        with child.stdout:
            _follow(child.stdout, progress)
        code = child.wait()
    finally:
        timer.cancel()
        _kill(child)
        child.wait()
    if timed_out:
        raise ConversionError(
            f"the conversion took longer than {timeout_s:g} s: raise --timeout if it should"
        )
    _judge(folder, code)


def import_path() -> list[str]:
    """Where this process finds modules, without this folder, whose modules have the frameworks' names."""
    entries = [Path(entry).resolve() for entry in sys.path]
    return [str(entry) for entry in entries if entry != Path(__file__).resolve().parent]


def _follow(stream: IO[bytes], progress: Progress) -> None:
    """Reads what the child prints, in bounded pieces: the artifact's code may print anything."""
    while line := stream.readline(_MAX_LINE):
        text = line.decode("utf-8", "replace").strip()
        if text.startswith(PROGRESS):
            # No control characters either: they would reach the user's terminal.
            shown = "".join(letter if letter.isprintable() else "?" for letter in text)
            progress(shown.removeprefix(PROGRESS))


def _judge(folder: Path, code: int) -> None:
    path = folder / "result.json"
    if not path.is_file() or path.stat().st_size > _MAX_RESULT:
        hint = _last_line(folder / "stderr")
        raise ConversionError(f"{_end(code)}{f'; its last words: {hint}' if hint else ''}")
    result = json.loads(path.read_text())
    if result.get("error") in _FAILURES:
        raise _FAILURES[result["error"]](str(result["message"]))


def _end(code: int) -> str:
    """How a process that left no result ended, and what may be the reason."""
    if -code in _CRASHES:
        return (
            f"a library crashed ({signal.Signals(-code).name}) in the process that read the artifact: the artifact may "
            "be damaged, or made by a version of the library that differs from the one installed here"
        )
    cause = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return (
        f"the process that read the artifact was ended {cause}: the artifact may be damaged, or need more memory "
        "or time than it was given"
    )


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 2000, 0))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return quote(lines[-1]) if lines else ""


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Ends the child and what it started; its session is its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
