"""What a calibration found out about a model: pure data, and the guess that stands in for it.

A model on a machine is described by how long runs of some rows take and what memory they need beside the loaded
session. ``docs/decisions/0008-calibration.md`` has the formula and its evidence.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

from onnx_serve.run_plan import default_block_rows
from onnx_serve.tensors import RowAxis, Signature

__all__ = [
    "Calibration",
    "CalibrationKey",
    "FeedKind",
    "Origin",
    "Reached",
    "Rung",
    "guess",
]

Origin = Literal["measured", "cached", "shipped", "guessed"]
Reached = Literal["nothing", "loaded", "ran", "ladder", "all"]
FeedKind = Literal["sample", "made up"]

_MIB = 1 << 20
# What a run may need beyond what was seen: threads that peak together, an arena cut into other pieces.
_MARGIN = 1.15
_MARGIN_DATA_DEPENDENT = 1.5
_MARGIN_BYTES = 8 * _MIB
# Company pays where it saves a third of the work: also of runs of microseconds, which take turns otherwise.
_MERGE_GAIN = 1.3
_GUESSED_BYTES = 64 * _MIB
_GUESSED_MULTIPLE = 8


class Rung(NamedTuple):
    """One run, the best of its repetitions.

    Attributes:
        rows: Rows of the feed; 1 for a model without rows.
        wall_s: Seconds it took.
        cpu_s: Seconds of processor time it took, of all threads.
    """

    rows: int
    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class CalibrationKey:
    """What a calibration holds for: with any other of these, the figures may be others.

    Attributes:
        model_sha256: Of the model file, and of the names and sizes of its external data: the values of weights
            change neither the time nor the memory of a run.
        onnxruntime: The package and its version, ``"onnxruntime 1.32.0"``.
        providers: The execution providers that were asked for.
        cpus: Processors that may be kept busy.
        machine: The processor's architecture, ``"x86_64"``.
        options: A digest of all other options of the session.
    """

    model_sha256: str
    onnxruntime: str
    providers: tuple[str, ...]
    cpus: int
    machine: str
    options: str

    @property
    def digest(self) -> str:
        """A name for files: 32 hexadecimal digits."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def on_device(self) -> bool:
        """Whether runs happen elsewhere than on the processors, so that processor time says little."""
        return any(provider != "CPUExecutionProvider" for provider in self.providers)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a model needs on a machine. Bytes are of memory; all figures are beside those of an idle process.

    Attributes:
        key: What the figures hold for.
        origin: Where they come from.
        reason: Why they are a guess, or why the model does not fit; else empty.
        reached: How far the measuring process came: ``loaded`` a session, ``ran`` a feed, climbed the ``ladder``
            of row counts, or did ``all``.
        memory_bytes: The budget for the session and its runs that was kept to.
        fits: Whether the session and one run of the fewest rows fit that budget; False also if the process was
            killed for its memory before it had loaded the model.
        limited: Whether the budget, not speed, decided ``slots`` or ``block_rows``.
        load_peak_bytes: Growth of resident memory at the peak of loading, the runs of the warm-up included.
        session_bytes: The growth that stays after loading.
        arena_bytes: In use in onnxruntime's arena once the model is loaded: weights.
        warm_up_bytes: More than that in use in the arena at the peak of the warm-up: resident since then, and free
            for later runs.
        slots: Concurrent runs.
        block_rows: Rows of one run at most: the fewest with 95 % of the best rows per CPU-second that fit.
        ladder: Runs of rising row counts, on one thread; empty in a guess.
        run_fixed_bytes: In use in the arena by a run of n rows, beyond ``arena_bytes``: this + ``run_row_bytes`` n.
        run_row_bytes: See there; both are 0 where onnxruntime does not tell (before 1.28).
        burst_bytes: Growth of resident memory at the peak of an uneven burst over all slots, after loading.
        row_input_bytes: Of one record as input tensors; strings by their UTF-8 bytes.
        row_output_bytes: Of one record's outputs.
        row_elements: Input elements of one record; free dimensions of real requests may have more.
        data_dependent: Whether a run's memory depends on more than its number of rows.
        arena_only: Whether what runs need lies in the arena, but for copies of outputs; else a limit of the arena
            limits little, and resident memory is the only bound.
        feed: What was run: the sample that came with the model, or made-up values.
        seconds: How long all of it took.
        device_memory_bytes: What may be taken of the GPU's memory; 0 for a model on the processors alone, and then so
            is all that follows.
        device_session_bytes: Of the GPU's memory, taken once the model is loaded: CUDA's context, weights, warm-up.
        device_warm_up_bytes: In use in the GPU's arena at the peak of the warm-up, beyond weights.
        device_run_fixed_bytes: In use there by a run of n rows: this + ``device_run_row_bytes`` n.
        device_run_row_bytes: See there.
        device_burst_bytes: Growth of what is taken of the GPU's memory at the peak of the burst.
        cpu_node_share: Of the nodes, those that run on the processors although there is a GPU.
        cpu_time_share: Of a run's time, that of these nodes.
        cpu_operators: Of these nodes, the operators that took the most time, the largest first.
    """

    key: CalibrationKey
    origin: Origin
    reason: str
    reached: Reached
    memory_bytes: int
    fits: bool
    limited: bool
    load_peak_bytes: int
    session_bytes: int
    arena_bytes: int
    warm_up_bytes: int
    slots: int
    block_rows: int
    ladder: tuple[Rung, ...]
    run_fixed_bytes: int
    run_row_bytes: int
    burst_bytes: int
    row_input_bytes: int
    row_output_bytes: int
    row_elements: int
    data_dependent: bool
    arena_only: bool
    feed: FeedKind
    seconds: float
    device_memory_bytes: int = 0
    device_session_bytes: int = 0
    device_warm_up_bytes: int = 0
    device_run_fixed_bytes: int = 0
    device_run_row_bytes: int = 0
    device_burst_bytes: int = 0
    cpu_node_share: float = 0.0
    cpu_time_share: float = 0.0
    cpu_operators: tuple[str, ...] = ()

    def run_bytes(self, rows: int) -> int:
        """What one run of so many rows has in use at its peak: in the arena, and its outputs' copies for Python."""
        return self.run_fixed_bytes + (self.run_row_bytes + self.row_output_bytes) * rows

    @property
    def activation_bytes(self) -> int:
        """What runs on all slots add to the resident memory of a server that has loaded the model."""
        in_use = self.slots * self.run_bytes(self.block_rows) - self.warm_up_bytes
        return max(self.burst_bytes, in_use)

    @property
    def reserve_bytes(self) -> int:
        """The activations with a margin: to be left free once the model is loaded."""
        return self.with_margin(self.activation_bytes)

    def with_margin(self, activation_bytes: int) -> int:
        """What to leave free for so much expected growth."""
        margin = _MARGIN_DATA_DEPENDENT if self.data_dependent else _MARGIN
        return math.ceil(margin * activation_bytes) + _MARGIN_BYTES

    @property
    def needed_bytes(self) -> int:
        """What loading and running the model add to an idle process at their peak."""
        return max(self.load_peak_bytes, self.session_bytes + self.reserve_bytes)

    @property
    def within_budget(self) -> bool:
        """Whether the loaded model and its runs fit what there is, of the GPU's memory too if there is one."""
        if not self.fits_device(self.slots, self.block_rows, self.device_burst_bytes // self.slots):
            return False
        return self.session_bytes + self.reserve_bytes <= self.memory_bytes

    @property
    def device_activation_bytes(self) -> int:
        """What runs on all slots add to what a server that has loaded the model takes of the GPU's memory."""
        in_use = self.slots * self.device_run_bytes(self.block_rows) - self.device_warm_up_bytes
        return max(self.device_burst_bytes, in_use)

    @property
    def device_needed_bytes(self) -> int:
        """The GPU's memory for the loaded model and its runs, with their margin."""
        return self.device_session_bytes + self.with_margin(self.device_activation_bytes)

    def fits_device(self, slots: int, rows: int, grown_bytes: int) -> bool:
        """Whether runs of so many rows on so many slots fit the GPU's memory, if there is a GPU.

        Args:
            slots: Concurrent runs.
            rows: Of each.
            grown_bytes: By how much one of them was seen to grow what is taken of the GPU's memory.
        """
        in_use = slots * self.device_run_bytes(rows) - self.device_warm_up_bytes
        needed = self.device_session_bytes + self.with_margin(max(in_use, slots * grown_bytes))
        return not self.device_memory_bytes or needed <= self.device_memory_bytes

    def device_run_bytes(self, rows: int) -> int:
        """What one run of so many rows has in use in the GPU's arena, as far as onnxruntime tells."""
        return self.device_run_fixed_bytes + self.device_run_row_bytes * rows

    @property
    def intra_op_threads(self) -> int:
        """Threads of one run that keep all processors busy."""
        return max(self.key.cpus // self.slots, 1)

    @property
    def one_row_s(self) -> float:
        """Seconds of a run of the fewest rows; 0 if unknown."""
        return self.ladder[0].wall_s if self.ladder else 0.0

    @property
    def block_s(self) -> float:
        """Seconds of a run of ``block_rows`` rows, or of the most rows below that were tried; 0 if unknown."""
        runs = [rung.wall_s for rung in self.ladder if rung.rows <= self.block_rows]
        return runs[-1] if runs else 0.0

    @property
    def rows_per_s(self) -> float:
        """Rows a second with blocks of ``block_rows`` on all slots; 0 if unknown."""
        runs = [rung for rung in self.ladder if rung.rows <= self.block_rows]
        return self.slots * runs[-1].rows / max(runs[-1].wall_s, 1e-9) if runs else 0.0

    @property
    def merge_gain(self) -> float:
        """By how much company makes a row cheaper: the best rows a second of work over those of a row alone."""
        rates = [self.rate(rung) for rung in self.ladder]
        return max(rates) / rates[0] if rates else 1.0

    @property
    def merges(self) -> bool:
        """Whether requests of few rows are worth putting together."""
        return self.merge_gain > _MERGE_GAIN

    def rate(self, rung: Rung) -> float:
        """Rows per second of work: of processor time, or by the clock where a device does the work."""
        return rung.rows / max(rung.wall_s if self.key.on_device else rung.cpu_s, 1e-9)

    def suits(self, memory_bytes: int) -> bool:
        """Whether the figures also serve under another budget: it holds them, and allows not much more."""
        if not self.fits or self.needed_bytes > memory_bytes:
            return False
        return not self.limited or memory_bytes <= _MARGIN * self.memory_bytes


def guess(
    key: CalibrationKey,
    signature: Signature | None,
    *,
    slots: int,
    memory_bytes: int,
    reason: str = "",
    reached: Reached = "nothing",
    session_bytes: int = 0,
) -> Calibration:
    """Figures for a model that has not been measured, on the large side.

    Activations are taken for 64 MiB, eight times a block's inputs and outputs, or as much as the session, whichever
    is most. Free dimensions count as 1.

    Args:
        key: The model's and the machine's.
        signature: The model's; None before it is loaded: then blocks are of one row, and once it is loaded one
            guesses again.
        slots: Concurrent runs.
        memory_bytes: The budget.
        reason: Why this is a guess.
        reached: How far the measuring process came.
        session_bytes: What loading the model added to resident memory, as far as known.
    """
    rows, row_input, row_output, elements = 1, 0, 0, 0
    if signature is not None:
        rows = _guessed_rows(signature)
        row_input = _record_bytes(signature, outputs=False)
        row_output = _record_bytes(signature, outputs=True)
        elements = sum(signature.record_width(spec) or 1 for spec in signature.inputs)
    block = (row_input + row_output) * rows
    return Calibration(
        key=key,
        origin="guessed",
        reason=reason,
        reached=reached,
        memory_bytes=memory_bytes,
        fits=True,
        limited=False,
        load_peak_bytes=session_bytes,
        session_bytes=session_bytes,
        arena_bytes=0,
        warm_up_bytes=0,
        slots=slots,
        block_rows=rows,
        ladder=(),
        run_fixed_bytes=0,
        run_row_bytes=0,
        burst_bytes=max(_GUESSED_BYTES, _GUESSED_MULTIPLE * block, session_bytes),
        row_input_bytes=row_input,
        row_output_bytes=row_output,
        row_elements=elements,
        data_dependent=False,
        arena_only=False,
        feed="made up",
        seconds=0.0,
    )


def _guessed_rows(signature: Signature) -> int:
    if signature.row_axis is RowAxis.FREE:
        return default_block_rows(signature)
    return max(signature.fixed_rows, 1)


def _record_bytes(signature: Signature, *, outputs: bool) -> int:
    return sum(
        (signature.record_width(spec) or 1) * spec.dtype.numpy.itemsize
        for spec in (signature.outputs if outputs else signature.inputs)
    )
