"""What the execution parameters are computed from: a model's measurements and this machine, in their terms."""

from collections.abc import Iterable

from onnx_serve.calibration_record import Calibration
from onnx_serve.codecs import table
from onnx_serve.execution_parameters import Load, Term, max_inflight
from onnx_serve.machine import Machine
from onnx_serve.memory import (
    INTEGERS_DOCUMENT,
    NUMBERS_DOCUMENT,
    OBJECTS_DOCUMENT,
    DocumentMemory,
    HostMemory,
    MemoryEstimate,
    margin_bytes,
)
from onnx_serve.model_loading import Served
from onnx_serve.nvml import Gpu
from onnx_serve.run_plan import RunPlan
from onnx_serve.settings import Settings
from onnx_serve.tensors import DataType, Signature
from onnx_serve.tuning import choose_slots

__all__ = ["sized_load", "unsized_load"]

_MIB = 1 << 20
_GUESSED_RUNS_BYTES = 64 * _MIB
# A number as text, with its separator: what a float32 drawn at random takes is 10.
_TEXT_BYTES = 8
# A string of Python's beside its characters, sys.getsizeof(""), and the pointer to it.
_STRING_BYTES = 49 + 8


def sized_load(
    served: Served,
    calibration: Calibration,
    memory: MemoryEstimate,
    settings: Settings,
    machine: Machine,
    gpu: Gpu | None,
) -> Load:
    """For a model that has been measured, or whose needs have been guessed.

    Args:
        served: The loaded model.
        calibration: What was found, or is guessed.
        memory: What the process holds and runs of the model need.
        settings: The server's with the model's own.
        machine: This container.
        gpu: What the model runs on; None for the processors.
    """
    signature, plan = served.model.signature, served.inference.engine.plan
    string_share = _string_share(signature, calibration)
    host = _host(
        settings,
        machine,
        output_share=calibration.row_output_bytes / max(calibration.row_input_bytes, 1),
        several_outputs=len(signature.outputs) > 1,
        document=_document(signature, string_share),
        string_share=string_share,
    )
    margin = margin_bytes(machine.memory_limit_bytes)
    return Load(
        has_rows=signature.has_rows,
        # Few slots leave the other processors to decoding.
        slots=max(plan.slots, machine.cpus),
        memory=memory,
        host=host,
        available_bytes=machine.memory_available_bytes() - memory.runs_bytes - margin,
        bytes_per_s=calibration.rows_per_s * _record_bytes(calibration),
        terms=[*_terms(calibration, plan.block_rows, machine), *_device_terms(calibration, plan, gpu)],
    )


def unsized_load(settings: Settings, machine: Machine, loaded: Iterable[Served]) -> Load:
    """Where no model is the default, so that none is measured.

    Args:
        settings: The server's.
        machine: This container.
        loaded: The models that are loaded now.
    """
    models = list(loaded)
    return Load(
        has_rows=any(served.model.signature.has_rows for served in models),
        slots=choose_slots(settings, machine, None),
        memory=MemoryEstimate(machine.rss_bytes(), 0, len(models) * _GUESSED_RUNS_BYTES),
        host=_host(settings, machine, output_share=1.0, several_outputs=True, document=OBJECTS_DOCUMENT),
        available_bytes=machine.memory_available_bytes() - margin_bytes(machine.memory_limit_bytes),
    )


def _host(
    settings: Settings,
    machine: Machine,
    *,
    output_share: float,
    several_outputs: bool,
    document: DocumentMemory,
    string_share: float = 0,
) -> HostMemory:
    return HostMemory(
        permits=max_inflight(settings, machine, choose_slots(settings, machine, None)),
        chunk_bytes=settings.chunk_bytes,
        body_memory_bytes=settings.body_memory_bytes,
        answer_memory_bytes=settings.answer_memory_bytes,
        spool_is_memory=machine.temp_dir_is_memory(),
        output_share=output_share,
        several_outputs=several_outputs,
        document=document,
        worst_multiple=table.DEFAULT.whole,
        string_share=string_share,
    )


def _record_bytes(calibration: Calibration) -> int:
    """Bytes of a record as text: of its numbers, which are fewer as they are in memory, or of its strings."""
    return max(calibration.row_elements * _TEXT_BYTES, calibration.row_input_bytes, _TEXT_BYTES)


def _string_share(signature: Signature, calibration: Calibration) -> float:
    """Bytes of Python's strings for a byte of a record as text; 0 for records without strings."""
    strings = sum(
        signature.record_width(spec) or 1
        for spec in signature.inputs
        if spec.is_tensor and spec.dtype is DataType.STRING
    )
    if not strings:
        return 0
    return (strings * _STRING_BYTES + calibration.row_input_bytes) / _record_bytes(calibration)


def _document(signature: Signature, string_share: float) -> DocumentMemory:
    if len(signature.inputs) != 1:
        # Measured with objects of all kinds, strings included.
        return OBJECTS_DOCUMENT
    [spec] = signature.inputs
    numbers = INTEGERS_DOCUMENT if spec.is_tensor and spec.dtype.is_integer else NUMBERS_DOCUMENT
    return numbers._replace(held=numbers.held + string_share)


def _terms(calibration: Calibration, block_rows: int, machine: Machine) -> list[Term]:
    child = "measured by a child process"
    return [
        Term("calibration_origin", calibration.origin, "", calibration.reason or child),
        Term("calibration_seconds", round(calibration.seconds, 3), "s", child),
        Term("block_rows", block_rows, "rows", "the fewest with 95 % of the best rows a CPU-second"),
        Term(
            "activation_bytes", calibration.activation_bytes, "bytes", "runs in all slots, before the margin"
        ),
        Term("rows_per_s", round(calibration.rows_per_s, 1), "rows/s", "of all slots"),
        Term(
            "merge_gain", round(calibration.merge_gain, 2), "", "rows a CPU-second, best over one row a run"
        ),
        Term("one_row_s", calibration.one_row_s, "s", "a run of one row"),
        Term("cpus", machine.cpus, "", "affinity and quota"),
        Term(
            "memory_limit_bytes", machine.memory_limit_bytes, "bytes", "control groups, else physical memory"
        ),
    ]


def _device_terms(calibration: Calibration, plan: RunPlan, gpu: Gpu | None) -> list[Term]:
    """What is known of the GPU that a model runs on; nothing where it runs on none."""
    if gpu is None:
        return []
    terms = [Term("device_free_bytes", gpu.free_bytes, "bytes", f"of {gpu.name}, with the model loaded")]
    if not calibration.device_memory_bytes:
        return terms
    child = "measured by a child process"
    growth = max(plan.block_rows / max(calibration.block_rows, 1), 1.0)
    runs = int(calibration.with_margin(calibration.device_activation_bytes) * growth)
    operators = ", ".join(calibration.cpu_operators) or "none"
    return [
        Term("device_session_bytes", calibration.device_session_bytes, "bytes", child),
        Term("device_runs_bytes", runs, "bytes", "runs in all slots, with the margin"),
        *terms,
        Term("cpu_node_share", round(calibration.cpu_node_share, 3), "", "nodes on the CPU, by the profile"),
        Term(
            "cpu_time_share", round(calibration.cpu_time_share, 3), "", f"of a run, most of it: {operators}"
        ),
    ]
