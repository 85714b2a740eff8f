"""Finds out what the default model needs on this machine, and draws the conclusions.

The order of a start in a transform job: what an earlier start or the model's maker measured is looked up; without
it a child process measures the model *before* this process loads anything, so that both never hold it; then
onnxruntime's arena gets its limit, the session is made once with its final options, and the platform's question is
answered from memory. Elsewhere nobody should wait: the session is made at once, and the child measures beside it;
what it finds changes the engine's plan and the answer, never the session.
"""

import importlib
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from onnx_serve import cuda
from onnx_serve.calibration_files import SHIPPED_NAME, find_calibration, store_calibration
from onnx_serve.calibration_process import CalibrationProcess, CalibrationRequest
from onnx_serve.calibration_record import Calibration, CalibrationKey, guess
from onnx_serve.errors import CalibrationError, ModelError
from onnx_serve.execution_parameters import ExecutionParameters, compute
from onnx_serve.machine import Machine
from onnx_serve.memory import MemoryEstimate, margin_bytes, release_and_settle
from onnx_serve.model_files.model_folder import ModelFile
from onnx_serve.model_files.onnx_file import OnnxFile
from onnx_serve.model_loading import Served, load_bytes
from onnx_serve.nvml import Gpu
from onnx_serve.record_cost import RecordCost, record_cost
from onnx_serve.settings import Settings
from onnx_serve.sized_load import sized_load
from onnx_serve.tensors import Signature
from onnx_serve.tuning import (
    LoadTuning,
    choose_slots,
    choose_threads,
    key_of,
    make_plan,
    reserve_bytes,
    runs_on_cuda,
    settled_threads,
)

__all__ = ["Sizing"]

_log = logging.getLogger("onnx_serve")

_MIB = 1 << 20
# The platform waits for the first ping of a transform job's container; for how long is not documented.
_FIRST_TIMEOUT_S = 15.0
_BESIDE_TIMEOUT_S = 60.0
_WORK_S = 10.0
# What a child holds before it has loaded anything: interpreter, NumPy and onnxruntime.
_CHILD_BYTES = 100 * _MIB
# Kept for the smallest requests, whatever the model takes.
_HOST_BYTES = 64 * _MIB
_LEAST_ARENA_BYTES = 64 * _MIB
# Of a run's time: with more of it on the processors, a GPU is not worth its price.
_CPU_SHARE = 0.1
# What the first large request of a text format brings in; here, so that it is measured and not guessed.
_LIBRARIES = ("pyarrow.csv", "simdjson", "orjson")


class Sizing:
    """The needs of one model on this machine, from before it is loaded until the server ends.

    ``prepare``, then ``conclude``, then perhaps ``measure_beside``, from one thread; ``stop`` from any.

    Args:
        file: The model's; checked.
        summary: What the file says of itself.
        settings: The server's with the model's own.
        machine: This container.
        sample: A request that lies in the model folder, or None.
        root: The model folder.
        whole_process: Whether the process exists for this model, so that its memory may be limited and the model
            measured.
    """

    def __init__(
        self,
        file: ModelFile,
        summary: OnnxFile,
        settings: Settings,
        machine: Machine,
        *,
        root: Path,
        sample: Path | None = None,
        whole_process: bool = False,
    ) -> None:
        self._file = file
        self._summary = summary
        self._settings = settings
        self._machine = machine
        self._root = root
        self._sample = sample
        self._whole_process = whole_process
        self._base_bytes = 0
        self._session_bytes = 0
        self._budget_bytes = 0
        self._calibration: Calibration | None = None
        self._process: CalibrationProcess | None = None
        self._stopped = threading.Event()

    @property
    def is_measured(self) -> bool:
        """Whether there is nothing more to find out."""
        return self._calibration is not None or not self._may_measure

    @property
    def _may_measure(self) -> bool:
        return self._whole_process and self._settings.calibration == "auto"

    def prepare(self, *, measure: bool) -> LoadTuning:
        """How the model is to be loaded; sets the limit of this process's arena.

        Args:
            measure: Whether to measure the model now if nobody has; takes seconds.

        Raises:
            ModelError: The model cannot fit in this machine's memory.
        """
        available = self._machine.memory_available_bytes()
        margin = margin_bytes(self._machine.memory_limit_bytes)
        self._budget_bytes = max(available - margin - _HOST_BYTES, 0)
        if self._whole_process:
            needed = load_bytes(self._summary, self._file.path.parent)
            if needed > self._budget_bytes:
                raise ModelError(self._too_large(f"loading it needs about {needed // _MIB} MiB"))
        self._calibration = self._known()
        if self._calibration is None and measure and self._may_measure:
            self._calibration = self._measure(
                min(self._budget_bytes, available - _CHILD_BYTES), _FIRST_TIMEOUT_S
            )
            if not self._calibration.fits:
                raise ModelError(self._too_large(self._calibration.reason))
        slots = choose_slots(self._settings, self._machine, self._calibration)
        threads = choose_threads(self._settings, self._machine, slots, self._calibration)
        if self._whole_process:
            from onnx_serve.session import register_arena  # noqa: PLC0415  the socket is open while it is imported

            register_arena(max(self._budget_bytes, _LEAST_ARENA_BYTES))
            if self._settings.batch:
                for library in _LIBRARIES:
                    importlib.import_module(library)
        self._base_bytes = self._machine.rss_bytes()
        # What the session will take is known only if it has been measured.
        session_bytes = 0 if self._calibration is None else self._calibration.session_bytes
        runs_limit = max(self._budget_bytes - session_bytes, 0)
        return LoadTuning(slots, threads, self._whole_process, self._calibration, runs_limit)

    def conclude(self, served: Served) -> ExecutionParameters:
        """What the platform is told, once the model is loaded and has run."""
        if not self._session_bytes:
            resident = release_and_settle(self._machine.rss_bytes)
            self._session_bytes = max(resident - self._base_bytes, 0)
        return self._parameters_of(served)

    def record_cost(self, signature: Signature) -> RecordCost | None:
        """What runs of few records take, if that is known and holds for all of them."""
        is_plain = self._summary.format == "onnx" and not self._settings.custom_op_libraries
        return record_cost(signature, self._calibration, self._summary.operators if is_plain else None)

    def measure_beside(self, served: Served, done: Callable[[ExecutionParameters], None]) -> None:
        """Measures the model while it serves, and has the engine run it as was found best.

        Args:
            served: The loaded model.
            done: Gets what the platform is told from now on; not called if nothing was found.
        """
        available = self._machine.memory_available_bytes() - margin_bytes(self._machine.memory_limit_bytes)
        needed = _CHILD_BYTES + max(load_bytes(self._summary, self._file.path.parent), self._session_bytes)
        if needed > available:
            _log.warning(
                "%s: not measured, figures are guessed: a second copy needs about %d MiB, of which %d MiB are left",
                self._file.name, needed // _MIB, max(available, 0) // _MIB,
            )  # fmt: skip
            return
        calibration = self._measure(available - _CHILD_BYTES, _BESIDE_TIMEOUT_S)
        if calibration.origin == "guessed" or not calibration.fits or self._stopped.is_set():
            return
        self._calibration = calibration
        engine = served.inference.engine
        runs_limit = max(self._budget_bytes - self._session_bytes, 0)
        engine.plan = make_plan(self._settings, engine.signature, engine.slots, calibration, runs_limit)
        done(self._parameters_of(served))

    def stop(self) -> None:
        """Ends a measurement at once."""
        self._stopped.set()
        process = self._process
        if process is not None:
            process.stop()

    def _known(self) -> Calibration | None:
        """What an earlier start or the model's maker measured."""
        cache = None if self._settings.calibration_cache is None else Path(self._settings.calibration_cache)
        places = [place for place in (self._file.path.parent, self._root) if (place / SHIPPED_NAME).is_file()]
        # The key takes reading the whole file.
        if self._settings.calibration != "auto" or (cache is None and not places):
            return None
        found = find_calibration(places, cache, self._key, self._budget_bytes)
        gpu = self._gpu()
        if found is None or gpu is None or found.device_needed_bytes <= cuda.budget_bytes(gpu):
            return found
        _log.info("%s: its calibration is not used: the GPU had more free memory then", self._file.name)
        return None

    def _gpu(self) -> Gpu | None:
        """The GPU that the model will run on, with its memory as it is now."""
        if not runs_on_cuda(self._settings, self._machine):
            return None
        return cuda.find_gpu(self._settings.provider_options, self._machine.gpus())

    @cached_property
    def _key(self) -> CalibrationKey:
        try:
            return key_of(self._file, self._summary, self._settings, self._machine)
        except CalibrationError as ex:
            raise ModelError(str(ex)) from ex

    def _measure(self, memory_bytes: int, timeout_s: float) -> Calibration:
        settings = self._settings
        slots = choose_slots(settings, self._machine, None)
        request = CalibrationRequest(
            key=self._key,
            # The child runs in a folder of its own.
            model=self._file.path.absolute(),
            name=self._file.name,
            slots=slots,
            memory_bytes=max(memory_bytes, 0),
            work_s=min(_WORK_S, timeout_s / 2),
            sample=self._sample and self._sample.absolute(),
            # Fewer slots than asked for leave more threads for each, unless that is settled.
            intra_op_threads=settled_threads(settings, self._machine, None),
            providers=settings.providers,
            provider_options=settings.provider_options,
            config=settings.session_options,
            outputs=settings.outputs,
            custom_op_libraries=settings.custom_op_libraries,
            row_wish=settings.rows,
        )
        self._process = CalibrationProcess(request, timeout_s)
        if self._stopped.is_set():
            self._process.stop()
        calibration = self._process.run()
        if settings.calibration_cache is not None:
            store_calibration(Path(settings.calibration_cache), calibration)
        return calibration

    def _parameters_of(self, served: Served) -> ExecutionParameters:
        calibration = self._calibration
        if calibration is None or calibration.origin == "guessed":
            calibration = self._guess(served, calibration)
        runs_bytes = reserve_bytes(calibration, served.inference.engine.plan)
        memory = MemoryEstimate(
            self._base_bytes, self._session_bytes, runs_bytes, self._machine.peak_rss_bytes()
        )
        load = sized_load(served, calibration, memory, self._settings, self._machine, self._gpu())
        parameters = compute(self._settings, load)
        if calibration.cpu_time_share > _CPU_SHARE:
            _log.warning(
                "%s: %.0f %% of a run's time is spent on the CPU, not on the GPU, most of it in %s",
                self._file.name, 100 * calibration.cpu_time_share, ", ".join(calibration.cpu_operators),
            )  # fmt: skip
        for warning in parameters.warnings:
            _log.warning("%s", warning)
        return parameters

    def _guess(self, served: Served, known: Calibration | None) -> Calibration:
        """What is assumed of a model that nobody has measured, or not to the end."""
        reason = (
            "calibration is set to never" if self._settings.calibration == "never" else "not measured yet"
        )
        guessed = guess(
            # It holds for nothing else and is kept nowhere.
            CalibrationKey("", "", (), self._machine.cpus, "", ""),
            served.model.signature,
            slots=served.inference.engine.slots,
            memory_bytes=self._budget_bytes,
            reason=reason if known is None else known.reason,
            session_bytes=self._session_bytes,
        )
        return guessed if known is None else replace(guessed, reached=known.reached, seconds=known.seconds)

    def _too_large(self, reason: str) -> str:
        return (
            f"{self._file.name}: the model does not fit: {reason}; {self._budget_bytes // _MIB} MiB are left for it "
            f"under this container's limit of {self._machine.memory_limit_bytes // _MIB} MiB"
        )
