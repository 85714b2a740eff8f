"""The child process that reads an artifact and converts it: ``python -P -m converters.worker FOLDER``.

The folder holds ``job.json``; the child writes ``conversion/`` and ``result.json`` there. Limits are set before
anything else is imported.
"""

import ctypes
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

__all__ = ["main"]

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
_MAX_FILE = 64 << 30


def main() -> int:
    """Runs the job of a folder; its errors go to ``result.json``."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    _limit(int(job.pop("memory_bytes")), float(job.pop("timeout_s")))
    if job["trust_pickle"]:
        _leave_network()
    from onnx_serve.errors import ServeError  # noqa: PLC0415  after the limits

    try:
        _convert(job, folder)
        result: dict[str, Any] = {"ok": True}
    except ServeError as ex:
        result = {"error": _kind(ex), "message": str(ex)}
    except MemoryError:
        result = {"error": "ConversionError", "message": "the conversion needs more memory than it was given"}
    except RecursionError:
        result = {"error": "ConversionError", "message": "the artifact is nested too deeply"}
    (folder / "result.json").write_text(json.dumps(result))
    return 0


def _kind(ex: Exception) -> str:
    from converters.errors import ConversionError, ConversionRefused  # noqa: PLC0415  after the limits

    refused = isinstance(ex, ConversionRefused) or not isinstance(ex, ConversionError)
    return "ConversionRefused" if refused else "ConversionError"


def _limit(memory_bytes: int, timeout_s: float) -> None:
    seconds = int(timeout_s * (os.cpu_count() or 1)) + 10
    for kind, wanted in {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: _MAX_FILE,
        resource.RLIMIT_CORE: 0,
    }.items():
        _, hard = resource.getrlimit(kind)
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (limit, limit))


def _leave_network() -> None:
    """Takes the network away, if the kernel lets this user do so; there is no promise."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)


def _convert(job: dict[str, Any], folder: Path) -> None:
    from converters.conversion import Request, save  # noqa: PLC0415
    from converters.frameworks import convert_artifact  # noqa: PLC0415
    from converters.isolation import PROGRESS  # noqa: PLC0415

    def progress(text: str) -> None:
        print(f"{PROGRESS}{text}", flush=True)

    save(convert_artifact(Request(**job), progress), folder / "conversion")


if __name__ == "__main__":
    sys.exit(main())
