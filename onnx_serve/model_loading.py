"""From a model file to something that answers requests: checked, admitted, loaded and tried."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_serve import allocator, golden_rows
from onnx_serve.admission import Admission
from onnx_serve.batching import Engine
from onnx_serve.blocks import join
from onnx_serve.calibration_feeds import sample_of
from onnx_serve.calibration_files import SHIPPED_NAME, find_calibration
from onnx_serve.codecs.interface import CodecOptions, ImageOptions
from onnx_serve.errors import ModelError, OutOfMemory
from onnx_serve.inference import Inference, Limits
from onnx_serve.machine import Machine
from onnx_serve.memory import MemoryWatch
from onnx_serve.model_files.model_check import check_model_file
from onnx_serve.model_files.model_folder import ModelFile
from onnx_serve.model_files.onnx_file import OnnxFile
from onnx_serve.oip_inference import OipInference
from onnx_serve.run_errors import is_out_of_memory
from onnx_serve.run_plan import default_block_rows
from onnx_serve.settings import Settings
from onnx_serve.tuning import LoadTuning, choose_slots, choose_threads, key_of, make_plan

if TYPE_CHECKING:
    from onnx_serve.model import Model

__all__ = ["Loader", "Served", "load_bytes"]

_log = logging.getLogger("onnx_serve")

_MIB = 1 << 20
# Left for requests and for what the kernel needs; docs/decisions has the order of start.
_RESERVE_BYTES = 256 * _MIB
_RESERVE_SHARE = 20
_SESSION_BYTES = 16 * _MIB
# Smaller models are loaded in less time than it takes to look for what they have left in the heap.
_LARGE_BYTES = 8 * _MIB


@dataclass(frozen=True, slots=True)
class Served:
    """One loaded model.

    Attributes:
        model: What onnxruntime made of the file.
        file: What the file says of itself.
        inference: Answers requests for it.
        oip: Answers those of the Open Inference Protocol.
    """

    model: "Model"
    file: OnnxFile
    inference: Inference
    oip: OipInference


class Loader:
    """Loads model files within the memory there is. Thread-safe.

    Args:
        machine: What this container has.
        admission: Shared by all models.
    """

    def __init__(self, machine: Machine, admission: Admission) -> None:
        self._machine = machine
        self._admission = admission
        self._watch = MemoryWatch(
            machine.memory_available_bytes, machine.memory_limit_bytes, allocator.release
        )
        self._lock = threading.Lock()
        self._pending_bytes = 0

    def load(
        self,
        file: ModelFile,
        root: Path,
        settings: Settings,
        *,
        admit: bool,
        log_level: int = logging.INFO,
        tuning: LoadTuning | None = None,
        sample: Path | None = None,
    ) -> Served:
        """Loads a model and runs it once.

        Args:
            file: Its file; nothing of it has been read.
            root: The folder that the file must not leave by a link.
            settings: The server's with the model's own.
            admit: Whether to refuse what would not fit in memory before onnxruntime opens it.
            log_level: Of the line that describes it.
            tuning: How it is to be run; None for what its maker has measured, if that is there, and the rest guessed.
            sample: A request that came with it, to run it with.

        Raises:
            ModelError: The file cannot be served.
            OutOfMemory: It does not fit, as far as its files tell, or as onnxruntime found.
        """
        summary = check_model_file(file, root, allow_links=settings.allow_links)
        with self._room(load_bytes(summary, file.path.parent) if admit else 0, file.name):
            try:
                if tuning is not None:
                    return self._served(file, summary, settings, log_level, tuning, sample)
                tuning = self._usual_tuning(file, root, summary, settings)
                served = self._served(file, summary, settings, log_level, tuning, sample)
            except ModelError as ex:
                if is_out_of_memory(str(ex)):
                    raise OutOfMemory(str(ex)) from ex
                raise
            except MemoryError as ex:
                raise OutOfMemory(f"{file.name}: loading it needs more memory than there is") from ex
        if summary.size_bytes >= _LARGE_BYTES:
            # Beside the others; whoever tunes a model alone in its process does so, too, and measures it.
            allocator.release()
        return served

    @contextmanager
    def _room(self, needed: int, name: str) -> Iterator[None]:
        """Sets memory aside while a model is loaded, so that loads at the same time do not count on the same."""
        with self._lock:
            limit = self._machine.memory_limit_bytes
            kept = max(_RESERVE_BYTES, limit // _RESERVE_SHARE) + self._pending_bytes
            # Asking the kernel costs as much as loading a tiny model; without a need nothing is asked.
            available = max(self._machine.memory_available_bytes() - kept, 0) if needed else 0
            if needed > available:
                raise OutOfMemory(
                    f"{name}: loading it needs about {needed // _MIB} MiB, of which {available // _MIB} MiB are left"
                )
            self._pending_bytes += needed
        try:
            yield
        finally:
            with self._lock:
                self._pending_bytes -= needed

    def _usual_tuning(self, file: ModelFile, root: Path, summary: OnnxFile, settings: Settings) -> LoadTuning:
        """For a model that shares the memory with others: nobody waits until it is measured."""
        places = [file.path.parent, root]
        calibration = None
        if any((place / SHIPPED_NAME).is_file() for place in places):
            key = key_of(file, summary, settings, self._machine)
            available = self._machine.memory_available_bytes()
            calibration = find_calibration(places, None, key, available)
        slots = choose_slots(settings, self._machine, calibration)
        threads = choose_threads(settings, self._machine, slots, calibration)
        return LoadTuning(slots, threads, calibration=calibration)

    def _served(
        self,
        file: ModelFile,
        summary: OnnxFile,
        settings: Settings,
        log_level: int,
        tuning: LoadTuning,
        sample: Path | None,
    ) -> Served:
        # Importing onnxruntime takes a fifth of a second, in which the socket is open already.
        from onnx_serve.model import SessionOptions, load_model  # noqa: PLC0415

        model = load_model(
            file.path,
            file.name,
            SessionOptions(
                providers=settings.providers,
                provider_options=settings.provider_options,
                intra_op_threads=tuning.threads,
                config=settings.session_options,
                outputs=settings.outputs,
                custom_op_libraries=settings.custom_op_libraries,
                row_wish=settings.rows,
                sample=sample_of(sample),
                shared_arena=tuning.shared_arena,
            ),
        )
        engine = Engine(
            model.run,
            model.signature,
            slots=tuning.slots,
            block_rows=default_block_rows(model.signature),
            run_watched=model.run_watched,
            pressed=self._watch.pressed,
        )
        engine.plan = make_plan(
            settings, model.signature, tuning.slots, tuning.calibration, tuning.runs_limit_bytes
        )
        _log.log(log_level, "%s: loaded on %s, %s, rows %s, opset %s, %d slots, blocks of %d rows",
                 file.name, ", ".join(model.providers), model.signature.describe_inputs(),
                 model.signature.row_axis.value, summary.opsets.get("ai.onnx", "?"),
                 engine.slots, engine.block_rows)  # fmt: skip
        if settings.replay_golden_rows:
            golden_rows.replay(
                file.path,
                model.signature,
                lambda feed: join(list(engine.map([feed]))),
                allow_links=settings.allow_links,
            )
        limits = Limits(
            settings.answer_memory_bytes,
            self._machine.memory_available_bytes,
            settings.request_timeout_ms / 1000,
        )
        options = CodecOptions(
            model_name=file.name,
            batch=settings.batch,
            csv_header=settings.csv_header,
            json_non_finite=settings.json_non_finite,
            text_trailing_newline=settings.text_trailing_newline,
            chunk_bytes=settings.chunk_bytes,
            record_errors=settings.record_errors,
            image=ImageOptions(**settings.image) if settings.image else None,
        )
        version = str(file.version or 1)
        return Served(
            model,
            summary,
            Inference(engine, self._admission, options, limits, settings.default_accept),
            OipInference(engine, self._admission, options, limits, version),
        )


def load_bytes(summary: OnnxFile, folder: Path) -> int:
    """Bytes of memory that loading a model needs at its peak, judged by its files.

    onnxruntime holds inline weights twice while it makes a session, and maps external data. A model that may end in
    ZipMap is loaded from a copy of its bytes.

    Args:
        summary: The file's.
        folder: Where external data is looked for.
    """
    external = {
        (data.location, data.offset): data.length
        if data.length is not None
        else max((folder / data.location).stat().st_size - data.offset, 0)
        for data in summary.external_data
    }
    copies = 3 if "ai.onnx.ml::ZipMap" in summary.operators else 2
    return copies * summary.size_bytes + sum(external.values()) + _SESSION_BYTES
