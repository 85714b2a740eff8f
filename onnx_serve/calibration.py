"""The process that measures a model: ``python -P -m onnx_serve.calibration PARENT``, started by its parent alone.

It reads a ``CalibrationRequest`` from standard input and writes a record to standard output each time it knows more,
so that one that is killed has still told how far it got. What it measures is in ``calibration_stages``; this module
makes sure that whatever the model does is done to this process only.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path

from onnx_serve import allocator
from onnx_serve.machine import read_machine

__all__ = ["main"]

_MIB = 1 << 20
# From linux/prctl.h: https://man7.org/linux/man-pages/man2/prctl.2.html
_PR_SET_PDEATHSIG = 1
# A profile of a model of thousands of nodes has some megabytes; one of a loop has no end.
_MAX_FILE_BYTES = 64 * _MIB
# Memory that is not the model's: buffers of feeds and outputs here, and the stack of a thread.
_OWN_BYTES = 96 * _MIB
_THREAD_BYTES = 10 * _MIB


def main(parent: int) -> int:
    """Measures what standard input asks for; the exit status.

    Args:
        parent: The process that must be alive for this one to go on.
    """
    _be_the_first_to_go(parent)
    allocator.tune(read_machine().memory_limit_bytes)

    # NumPy and onnxruntime are imported by these, and must find all of the above.
    from onnx_serve.calibration_files import to_json  # noqa: PLC0415
    from onnx_serve.calibration_measures import limit_memory  # noqa: PLC0415
    from onnx_serve.calibration_process import CalibrationRequest  # noqa: PLC0415
    from onnx_serve.calibration_record import Calibration  # noqa: PLC0415
    from onnx_serve.calibration_stages import measure  # noqa: PLC0415

    def report(record: Calibration) -> None:
        _write(to_json(record))

    def remark(text: str) -> None:
        _write(json.dumps({"remark": text}))

    request = CalibrationRequest.from_json(sys.stdin.read())
    limit_memory(request.memory_bytes + _OWN_BYTES + request.slots * _THREAD_BYTES)
    measure(request, report, remark)
    return 0


def _be_the_first_to_go(parent: int) -> None:
    """When memory runs out this process is killed and not its parent, and never does it outlive that."""
    # Without it the kernel chooses by size; outside of Linux there is no such file.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It has ended before the kernel was told.
        sys.exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_FILE_BYTES, _MAX_FILE_BYTES))


def _write(text: str) -> None:
    # Libraries may write to standard output, too: a record stands on a line of its own, whatever came before.
    data = f"\n{text}\n".encode()
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
