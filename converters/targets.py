"""The onnxruntime that is to serve the model, and the operator sets that it knows.

A release knows all opsets up to one; a graph stamped with a later one does not load. What the installed release
knows is found by loading graphs of one node. For others there is a table: up to 1.20 that of
https://onnxruntime.ai/docs/reference/compatibility.html, from 1.21 on what the releases' wheels were seen to load.

Graphs are stamped with the highest opset that their target knows, up to ``HIGHEST_OPSET``: kernels follow
schemas late, and an operator without one on the GPU is moved to the CPU without a word
(https://github.com/microsoft/onnxruntime/issues/26065 for opset 21, mended for the last operators by
https://github.com/microsoft/onnxruntime/pull/27728 in March 2026). No operator of opsets 21 and later is needed.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import onnx
import onnxruntime
from onnx import TensorProto, helper

from converters.errors import ConversionError, ConversionRefused
from converters.graph import HIGHEST_OPSET, OPSET
from onnx_serve.errors import quote

__all__ = ["INSTALLED", "Target", "converting_for", "find_target", "fit", "installed_target"]

INSTALLED = "installed"

# Release: highest opset of ai.onnx, highest version of the file format (IR).
_RELEASES: dict[tuple[int, int], tuple[int, int]] = {
    (1, 14): (18, 8),
    (1, 15): (19, 8),
    (1, 16): (19, 9),
    (1, 17): (20, 9),
    (1, 18): (21, 10),
    (1, 19): (21, 10),
    (1, 20): (21, 10),
    (1, 21): (22, 10),
    (1, 22): (22, 10),
    (1, 23): (23, 11),
    (1, 24): (25, 13),
    (1, 25): (26, 13),
}
_LOWEST_OPSET, _LOWEST_IR = 18, 8
_VERSION = re.compile(r"(\d{1,3})\.(\d{1,3})(?:\.\d{1,3})?")


@dataclass(frozen=True, slots=True)
class Target:
    """What a release of onnxruntime loads.

    Attributes:
        version: Its number, major and minor: ``1.26``.
        opset: The highest opset of ai.onnx that it knows.
        ir_version: The highest version of the file format.
    """

    version: str
    opset: int
    ir_version: int

    @property
    def default_opset(self) -> int:
        """What graphs are stamped with unless another opset is asked for."""
        return min(self.opset, HIGHEST_OPSET)


def find_target(version: str) -> Target:
    """The target of a version such as ``1.26`` or ``1.26.0``, or of ``installed``.

    A release later than all in the table knows at least what the last of them does.

    Raises:
        ConversionError: It is no version, or one from before 1.14, whose opset 17 lacks what converters use.
    """
    if version == INSTALLED:
        return installed_target()
    found = _VERSION.fullmatch(version)
    if found is None:
        raise ConversionError(
            f"--target-onnxruntime: expected a version such as 1.26, or {INSTALLED}, got {quote(version)}"
        )
    number = int(found[1]), int(found[2])
    known = [release for release in _RELEASES if release <= number]
    if not known:
        raise ConversionError(f"--target-onnxruntime: expected 1.14 or later, got {quote(version)}")
    opset, ir_version = _RELEASES[max(known)]
    return Target(f"{number[0]}.{number[1]}", opset, ir_version)


@cache
def installed_target() -> Target:
    """The installed onnxruntime, by what it loads."""
    opset, ir_version = _LOWEST_OPSET, _LOWEST_IR
    while _loads(opset + 1, _LOWEST_IR):
        opset += 1
    while _loads(_LOWEST_OPSET, ir_version + 1):
        ir_version += 1
    return Target(".".join(onnxruntime.__version__.split(".")[:2]), opset, ir_version)


@contextmanager
def converting_for(version: str) -> Iterator[Target]:
    """Has the converters in the block write graphs that a release of onnxruntime knows.

    Of one process at a time: the opset is the process's, not the thread's.

    Args:
        version: As ``find_target`` takes it.

    Raises:
        ConversionError: See ``find_target``.
    """
    target, before = find_target(version), OPSET[""]
    OPSET[""] = target.default_opset
    try:
        yield target
    finally:
        OPSET[""] = before


def fit(model: onnx.ModelProto, target: Target) -> None:
    """Stamps a graph with a file format that the target knows, whose features it does without.

    Raises:
        ConversionRefused: Its opset is beyond what the target knows.
    """
    opset = max((entry.version for entry in model.opset_import if not entry.domain), default=0)
    if opset > target.opset:
        raise ConversionRefused(
            f"the graph is of opset {opset}, and onnxruntime {target.version} knows up to {target.opset}"
        )
    model.ir_version = min(model.ir_version, target.ir_version)


def _loads(opset: int, ir_version: int) -> bool:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", values[:1], values[1:])
    model = onnx.ModelProto(ir_version=ir_version, graph=graph, opset_import=[helper.make_opsetid("", opset)])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception:  # noqa: BLE001  classes of onnxruntime's own
        return False
    return True
