"""How a model is run on this machine: from what the operator chose, what was measured, and what there is."""

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_serve import cuda
from onnx_serve.calibration_files import make_key
from onnx_serve.calibration_record import Calibration, CalibrationKey
from onnx_serve.machine import Machine
from onnx_serve.model_files.model_folder import ModelFile
from onnx_serve.model_files.onnx_file import OnnxFile
from onnx_serve.run_plan import RunPlan, default_block_rows
from onnx_serve.settings import Settings
from onnx_serve.tensors import Signature

__all__ = [
    "LoadTuning",
    "choose_slots",
    "choose_threads",
    "favours_latency",
    "key_of",
    "make_plan",
    "reserve_bytes",
    "runs_on_cuda",
    "settled_threads",
]

# Below this, threads lose more by taking turns with the interpreter's lock than by taking turns with the model:
# one slot gave 1.3 times the runs of two for a logistic regression of 5 us (docs/measurements.md).
_ONE_SLOT_S = 0.2e-3
# From this on, a caller of an endpoint notices whether one processor or all of them work on its request.
_LATENCY_S = 5e-3
# Runs of a fixed number of rows, often one, that a thread makes in a row: about so long, and with outputs of so much.
_CONSECUTIVE_S = 10e-3
_CONSECUTIVE_BYTES = 1 << 20
_MOST_CONSECUTIVE = 256
_UNMEASURED_RUNS = 8
# The widest number.
_NUMBER_BYTES = 8


@dataclass(frozen=True, slots=True)
class LoadTuning:
    """How a model is to be loaded and run.

    Attributes:
        slots: Runs at once, at most.
        threads: Threads inside one run.
        shared_arena: Whether its session allocates from the process's arena, which has a limit.
        calibration: What is known of it, or None.
        runs_limit_bytes: What all its runs together may need; 0 if that is not known.
    """

    slots: int
    threads: int
    shared_arena: bool = False
    calibration: Calibration | None = None
    runs_limit_bytes: int = 0


def key_of(file: ModelFile, summary: OnnxFile, settings: Settings, machine: Machine) -> CalibrationKey:
    """What a calibration of a model under these settings holds for. Reads the whole file.

    Args:
        file: The model's.
        summary: What it says of itself.
        settings: The server's with the model's own.
        machine: This container.

    Raises:
        CalibrationError: The file cannot be read.
    """
    slots = choose_slots(settings, machine, None)
    providers: Sequence[str] = ("CPUExecutionProvider",)
    if not isinstance(settings.providers, str):
        providers = settings.providers
    elif runs_on_cuda(settings, machine):
        providers = (cuda.CUDA, *providers)
    gpu = cuda.find_gpu(settings.provider_options, machine.gpus()) if cuda.CUDA in providers else None
    options = {
        # Another device has another speed and another memory.
        **({} if gpu is None else {"gpu": [gpu.name, gpu.total_bytes]}),
        "provider_options": settings.provider_options,
        "session_options": settings.session_options,
        "outputs": settings.outputs,
        "custom_op_libraries": settings.custom_op_libraries,
        "rows": settings.rows,
        "slots": slots,
        "threads": choose_threads(settings, machine, slots, None),
    }
    return make_key(file.path, summary, providers=providers, cpus=machine.cpus, options=options)


def runs_on_cuda(settings: Settings, machine: Machine) -> bool:
    """Whether a model will run on a GPU first of all, as far as that is known before it is loaded.

    Args:
        settings: The server's.
        machine: This container.
    """
    return cuda.is_expected(settings.providers, has_gpu=machine.has_gpu)


def favours_latency(settings: Settings, calibration: Calibration | None) -> bool:
    """Whether all processors should work on one run, rather than one on each of several.

    Not in a batch job, where several runs at once give the most records a second.

    Args:
        settings: The server's.
        calibration: What is known before the session is made.
    """
    if settings.objective != "auto":
        return settings.objective == "latency"
    if settings.batch or calibration is None or calibration.origin == "guessed":
        return False
    return calibration.one_row_s > _LATENCY_S


def choose_slots(settings: Settings, machine: Machine, calibration: Calibration | None) -> int:
    """Runs at once: the operator's number, else a processor each, two on a GPU, or fewer where memory is short.

    Args:
        settings: The server's.
        machine: This container.
        calibration: What is known before the session is made.
    """
    if isinstance(settings.slots, int):
        return settings.slots
    slots = cuda.CUDA_SLOTS if runs_on_cuda(settings, machine) else machine.cpus
    if favours_latency(settings, calibration):
        # Two runs overlap where one waits for its slowest thread.
        slots = min(slots, 2)
    return slots if calibration is None else max(min(slots, calibration.slots), 1)


def choose_threads(settings: Settings, machine: Machine, slots: int, calibration: Calibration | None) -> int:
    """Threads inside one run: the operator's number, else the processors shared among the slots.

    Args:
        settings: The server's.
        machine: This container.
        slots: Runs at once.
        calibration: What is known before the session is made.
    """
    return settled_threads(settings, machine, calibration) or max(machine.cpus // slots, 1)


def settled_threads(settings: Settings, machine: Machine, calibration: Calibration | None) -> int | None:
    """Threads inside one run where they do not follow from the slots; None where they do."""
    if isinstance(settings.intra_op_threads, int):
        return settings.intra_op_threads
    return machine.cpus if favours_latency(settings, calibration) else None


def make_plan(
    settings: Settings,
    signature: Signature,
    slots: int,
    calibration: Calibration | None,
    limit_bytes: int,
) -> RunPlan:
    """What the engine keeps to.

    Args:
        settings: The server's with the model's own.
        signature: The model's.
        slots: Runs at once, at most.
        calibration: What was measured, or None while nothing is known.
        limit_bytes: What all runs together may need.
    """
    measured = calibration if calibration is not None and calibration.origin != "guessed" else None
    rows = settings.block_rows
    if not isinstance(rows, int):
        # Of a guess only what memory has decided is worth keeping.
        known = measured or (calibration if calibration is not None and calibration.limited else None)
        rows = known.block_rows if known is not None else default_block_rows(signature)
    merges = settings.merging == "always"
    runs = _consecutive_runs(signature, measured)
    if measured is None:
        return RunPlan(rows, slots, merges, consecutive_runs=runs)
    if not isinstance(settings.slots, int) and measured.block_s * runs < _ONE_SLOT_S:
        slots = 1
    return RunPlan(
        rows,
        slots,
        merges or (settings.merging == "auto" and measured.merges),
        measured.row_elements,
        measured.run_fixed_bytes,
        measured.run_row_bytes,
        limit_bytes,
        runs,
    )


def _consecutive_runs(signature: Signature, measured: Calibration | None) -> int:
    """How many runs of a fixed number of rows a thread makes in a row; their outputs are held until the last."""
    if not signature.fixed_rows:
        return 1
    widths = [signature.record_width(spec) for spec in signature.outputs]
    if measured is not None and measured.one_row_s:
        runs, row_bytes = int(_CONSECUTIVE_S / measured.one_row_s), measured.row_output_bytes
    elif None not in widths:
        runs, row_bytes = _UNMEASURED_RUNS, _NUMBER_BYTES * sum(width or 0 for width in widths)
    else:
        return 1
    fitting = _CONSECUTIVE_BYTES // max(signature.fixed_rows * row_bytes, 1)
    return max(min(runs, fitting, _MOST_CONSECUTIVE), 1)


def reserve_bytes(calibration: Calibration, plan: RunPlan) -> int:
    """Bytes to set aside for runs under a plan; more than was measured where the operator chose larger blocks."""
    growth = max(plan.block_rows / max(calibration.block_rows, 1), 1.0)
    return int(calibration.reserve_bytes * growth)
