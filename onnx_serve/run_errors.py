"""What onnxruntime says when a run or a load fails, and whose fault that is."""

import os
import re
from pathlib import Path

from onnx_serve.errors import InferenceError, InputRefused, OutOfMemory, ServeError

__all__ = ["is_out_of_memory", "one_line", "run_error"]

_MIB = 1 << 20
_MAX_CHARACTERS = 500
# Exporters name nodes by their whole path in the source.
_NODE_NAME = re.compile(r" Name:'[^']*'")
# How onnxruntime words that an allocation failed: the arena of any device (core/framework/bfc_arena.cc), CUDA, and
# the libraries that allocate beside it (cuda_call.cc: CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_..._ALLOCATION_FAILED).
_OUT_OF_MEMORY = ("Failed to allocate memory", "Available memory of", "out of memory", "bad allocation",
                  "bad_alloc", "ALLOC_FAILED", "ALLOCATION_FAILED")  # fmt: skip
_ALLOCATION = re.compile(
    r"Available memory of (?P<left>\d+) is smaller than requested bytes of (?P<asked>\d+)"
    r"|requested buffer of size (?P<wanted>\d+)"
)
# How onnxruntime words that an operator failed (core/framework/sequential_executor.cc); the status message
# may begin with the path of a source file.
_NODE_FAILED = re.compile(
    r"while running (?P<operator>\w+) node\..*?Status Message: (?:/\S+ )?(?P<status>.*)"
)
# onnxruntime_pybind_mlvalue.cc: what it says of an empty dictionary.
_EMPTY_MAP = "Size of dictionary is empty"
_CUDA_FAILURE = re.compile(r"CU\w+ failure \d+: [^;]+")
_DEVICE_FAILED = re.compile(r"CUDA|CUDNN|CUBLAS|cuda|HIP|TensorRT")


def is_out_of_memory(message: str) -> bool:
    """Whether onnxruntime, or the C++ library, says that an allocation failed."""
    return any(words in message for words in _OUT_OF_MEMORY)


def run_error(message: str) -> ServeError:
    """Whose fault it is that a run failed, judged by onnxruntime's words.

    A model that has run once fails on a conforming feed because of the values or free dimensions in it: an
    index beyond a table, shapes that cannot be broadcast. Memory and devices are the exceptions.
    """
    if _EMPTY_MAP in message:
        return InputRefused("onnxruntime cannot take a map without entries")
    if is_out_of_memory(message):
        return OutOfMemory(f"the run needs more memory than there is{_asked_for(message)}")
    failed = _NODE_FAILED.search(message)
    if failed and not _DEVICE_FAILED.search(message):
        return InputRefused(f"the model cannot run this input: {failed['operator']}: {failed['status']}")
    return InferenceError(message)


def _asked_for(message: str) -> str:
    """How much was asked for and how much was left, as far as onnxruntime's words tell."""
    sizes = _ALLOCATION.search(message)
    if sizes is None:
        return f": {message}"
    asked = int(sizes["asked"] or sizes["wanted"])
    left = "" if sizes["left"] is None else f" of which {int(sizes['left']) / _MIB:.0f} MiB are left"
    failed = _NODE_FAILED.search(message)
    operator = f"{failed['operator']} asked for" if failed else "it asked for"
    return f": {operator} {asked / _MIB:.0f} MiB{left}"


def one_line(ex: Exception, path: Path | None = None) -> str:
    """The message of onnxruntime without its code prefix, line breaks and the model's folder."""
    text = " ".join(str(ex).split())
    if path is not None:
        text = text.replace(f"{path.parent}{os.sep}", "")
    # CUDA's own words stand between a C++ signature of half a kilobyte and the expression that failed.
    if failure := _CUDA_FAILURE.search(text):
        text = failure[0]
    text = text.removeprefix("[ONNXRuntimeError] : ")
    # What went wrong comes last, and decides whether a smaller run is tried.
    return (text if len(text) <= _MAX_CHARACTERS else _NODE_NAME.sub("", text))[:_MAX_CHARACTERS]
