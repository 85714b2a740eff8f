"""The models being served, by name and version.

In single mode they are those of one folder, found at the start: ready at once if they can be loaded in time and
memory, else on their first request. In multi mode there are none until a caller loads them, and callers unload them.
"""

import importlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from onnx_serve import allocator
from onnx_serve.admission import Admission
from onnx_serve.batching import Engine
from onnx_serve.errors import (
    ModelError,
    ModelNotFound,
    NotReady,
    OutOfMemory,
    SettingsError,
    UnservableModel,
    quote,
)
from onnx_serve.execution_parameters import ExecutionParameters, body_limit_bytes, compute, max_inflight
from onnx_serve.inference import Inference
from onnx_serve.load_places import entry_at, find_place, names_in
from onnx_serve.machine import Machine
from onnx_serve.model_files.model_check import check_model_file
from onnx_serve.model_files.model_folder import ModelFolder, find_models
from onnx_serve.model_loading import Loader, Served
from onnx_serve.model_registry import IndexEntry, ModelEntry, ModelRegistry, ModelSlot, check_name
from onnx_serve.record_cost import RecordCost
from onnx_serve.settings import Settings, with_model_settings
from onnx_serve.sized_load import unsized_load
from onnx_serve.sizing import Sizing
from onnx_serve.tuning import choose_slots

__all__ = ["Repository", "Served"]

_log = logging.getLogger("onnx_serve")

_QUEUE_TIMEOUT_S = 10.0
# Models beyond this time are loaded when they are first asked for.
_EAGER_S = 20.0
_DESCRIBED_MODELS = 20
_LOADS_WAITING = 16
_INFLATING_WAITING = 16
_LOAD_QUEUE_S = 50.0


class _ServerAdmission(Admission):
    """Counts the threads of what waits elsewhere, too, so that the health check always finds one."""

    def __init__(self, permits: int, waiting_room: int, timeout_s: float | None, *others: Admission) -> None:
        super().__init__(permits, waiting_room, timeout_s)
        self._others = others

    @property
    def threads(self) -> int:
        """Threads that the server needs for requests, for the others, and for the rest."""
        return super().threads + sum(other.permits + other.waiting_room for other in self._others)


class Repository:
    """Loads models, and lends them to requests.

    It lives as long as the server. ``load`` runs once, in any thread; until it has returned, ``ready`` is
    false and every request gets ``NotReady``. Everything else is thread-safe.

    Args:
        settings: Of the server; the model folder's own settings are added by ``load``.
        machine: What this container has.
        whole_process: Whether this process exists for the repository: the default model is then measured, and
            onnxruntime's memory limited.
    """

    def __init__(self, settings: Settings, machine: Machine, *, whole_process: bool = False) -> None:
        self.settings = settings
        self.machine = machine
        self.multi = settings.mode == "multi"
        self.ready = False
        self.folder: ModelFolder | None = None
        self._whole_process = whole_process
        self._sizing: Sizing | None = None
        self.body_limit_bytes = body_limit_bytes(settings)
        permits, timeout_s = (
            max_inflight(settings, machine, choose_slots(settings, machine, None)),
            _queue_timeout_s(settings),
        )
        # Loads wait apart from requests: a slow one holds neither their permits nor the health check.
        self._loads = Admission(max(machine.cpus, 2), _LOADS_WAITING, _LOAD_QUEUE_S)
        self.inflating = Admission(permits, _INFLATING_WAITING, timeout_s)
        self.admission = _ServerAdmission(
            permits, settings.waiting_room, timeout_s, self._loads, self.inflating
        )
        self._loader = Loader(machine, self.admission)
        self._models = ModelRegistry(self._loads, self._load_slot)
        self._parameters: ExecutionParameters | None = None
        self._cost: RecordCost | None = None
        self._engine: Engine | None = None

    @property
    def served(self) -> Mapping[str, Served]:
        """The loaded models by name, each in its highest version."""
        return self._models.served

    def load(self) -> None:
        """Finds the models, loads those that can be asked for, runs each once, and becomes ready.

        In multi mode there is nothing to find: callers load what they need. In a transform job the default model is
        measured first, for seconds; elsewhere ``measure`` does that later.

        Raises:
            ModelError: There is no model, the one that ``/invocations`` would use cannot be served, or a
                batch job finds several and no choice.
            SettingsError: The model folder's ``onnx_serve.yaml`` is wrong.
        """
        if self.multi:
            self.folder = ModelFolder(Path(self.settings.model_dir), (), None)
        else:
            self.folder = self._load_folder()
        if self._parameters is None:
            load = unsized_load(self.settings, self.machine, self.served.values())
            self._take(compute(self.settings, load))
        self.ready = True
        # In multi mode nothing has needed onnxruntime yet; the first load should not wait for its import.
        importlib.import_module("onnx_serve.model")

    def measure(self) -> None:
        """Measures the default model if that is still to be done; serving goes on meanwhile."""
        if (
            self._sizing is None
            or self._sizing.is_measured
            or self.folder is None
            or self.folder.default is None
        ):
            return
        with self.lease(None) as served:
            self._sizing.measure_beside(served, self._take)
            self._note_cost(self._sizing, served)

    def default(self) -> Inference:
        """The model that ``/invocations`` uses.

        Raises:
            NotReady: It is still loading.
            ModelNotFound: There are several models and none is the default.
        """
        with self.lease(None) as served:
            return served.inference

    @contextmanager
    def lease(self, name: str | None, version: int | None = None) -> Iterator[Served]:
        """A model for the block's time, in which it is not unloaded; loaded now if it is not yet.

        Args:
            name: As the request has it; None for the one that ``/invocations`` uses.
            version: The version; None for the highest.

        Raises:
            NotReady: The server is still starting.
            UnknownModel: No such model or version, or it cannot be served.
            InvalidName: That cannot be a name.
            ModelNotFound: No name, and none is the default.
            OutOfMemory: It does not fit in memory.
            Overloaded: Too many models are being loaded.
        """
        folder = self.folder
        if not self.ready or folder is None:
            raise NotReady("the model is still loading")
        if name is None:
            if folder.default is None:
                raise ModelNotFound(_multi_hint() if self.multi else _ambiguity(folder))
            name, version = folder.default.name, folder.default.version
        with self._models.lease(name, version) as served:
            yield served

    def execution_parameters(self) -> ExecutionParameters:
        """What ``/execution-parameters`` answers.

        Raises:
            NotReady: The model is still loading, so what it needs is not known.
        """
        if self._parameters is None:
            raise NotReady("the model is still loading")
        return self._parameters

    @property
    def record_cost(self) -> RecordCost | None:
        """What few records take the default model now; None if that is not known, or if they would have to wait."""
        return self._cost if self._engine is not None and self._engine.is_idle else None

    def index(self) -> list[IndexEntry]:
        """Every model and version, by name; in multi mode also what lies in the model folder unloaded."""
        found = self._models.index()
        if self.multi:
            known = {entry.name for entry in found}
            found += [
                IndexEntry(name, "1", "UNAVAILABLE", "not loaded")
                for name in names_in(Path(self.settings.model_dir))
                if name not in known
            ]
        return sorted(found, key=lambda entry: (entry.name, int(entry.version)))

    def versions(self, name: str) -> list[str]:
        """The versions of a model, the highest last.

        Raises:
            UnknownModel: There is no such model.
        """
        return [slot.version for slot in self._models.find(name).slots.values()]

    def url(self, name: str) -> str:
        """Where a model was loaded from, as the caller named it.

        Raises:
            UnknownModel: It is not loaded.
            InvalidName: That cannot be a name.
        """
        return self._models.find(name).url

    def urls(self) -> list[tuple[str, str]]:
        """Names and places of the models, by name."""
        return self._models.urls()

    def load_model(self, name: str, url: str | None = None, *, again: bool = False) -> None:
        """Loads a model under a name; multi mode only.

        Args:
            name: 1 to 255 letters, digits, dots, hyphens and underscores, not dots alone.
            url: Its folder or file; by default what the model folder holds under the name.
            again: Whether a loaded model of that name is replaced, once the new one runs.

        Raises:
            InvalidName: The name or the place is not acceptable.
            AlreadyLoaded: A model of that name is loaded, and ``again`` is false.
            UnknownModel: There is nothing at the place.
            UnservableModel: What is there cannot be served.
            OutOfMemory: It does not fit in memory; the models that are loaded stay.
            Overloaded: Too many models are being loaded.
        """
        check_name(name)
        root = Path(self.settings.model_dir)
        with self._models.change(name, may_exist=again):
            place = find_place(root, name, url, allow_links=self.settings.allow_links)
            try:
                entry = entry_at(place, name, url or str(place), self.settings)
                slot = entry.highest
                slot.served = self._loader.load(slot.file, slot.root, slot.settings, admit=True)
            except (ModelError, SettingsError) as ex:
                _log.error("%s: %s", name, ex)
                raise UnservableModel(f"the model {quote(name)} cannot be served: {ex}") from ex
            self._models.put(name, entry)

    def unload_model(self, name: str) -> None:
        """Unloads a model; multi mode only. Its memory is free when this returns.

        Raises:
            UnknownModel: It is not loaded.
            InvalidName: That cannot be a name.
            DeadlineExceeded: Requests still use it; its memory is freed after the last of them.
            Overloaded: Too many models are being loaded.
        """
        with self._models.change(name):
            self._models.remove(name)
        allocator.release()
        _log.info("%s: unloaded", name)

    def close(self) -> None:
        """Ends the engines' threads, and a measurement."""
        if self._sizing is not None:
            self._sizing.stop()
        self._models.close()

    def _note_cost(self, sizing: Sizing, served: Served) -> None:
        if self.settings.brief_requests == "auto":
            self._cost = sizing.record_cost(served.model.signature)
            self._engine = served.inference.engine

    def _take(self, parameters: ExecutionParameters) -> None:
        self._parameters = parameters
        self.body_limit_bytes = body_limit_bytes(self.settings, parameters)

    def _load_slot(self, slot: ModelSlot, *, admit: bool = True, log_level: int = logging.INFO) -> None:
        """Loads a slot's model; a failure stays with the slot, for files do not change."""
        try:
            slot.served = self._loader.load(
                slot.file, slot.root, slot.settings, admit=admit, log_level=log_level
            )
        except ModelError as ex:
            _log.error("%s", ex)
            slot.failure = str(ex)

    def _load_folder(self) -> ModelFolder:
        """Single mode: finds the models and loads those that should be ready."""
        settings = self.settings
        folder = find_models(
            Path(settings.model_dir), default_model=settings.default_model, allow_links=settings.allow_links
        )
        if folder.settings_file is not None:
            settings = self.settings = with_model_settings(settings, folder.settings_file)
        if folder.ignored:
            _log.info("ignored in the model folder: %s", ", ".join(folder.ignored))
        if folder.default is None and settings.batch:
            raise ModelError(f"{_ambiguity(folder)}; a transform job needs one")
        entries: dict[str, ModelEntry] = {}
        for file in folder.models:
            entry = entries.setdefault(file.name, ModelEntry(str(folder.root), {}))
            entry.slots[file.version] = ModelSlot(file, folder.root, settings)
        if folder.default is not None:
            slot = entries[folder.default.name].slots[folder.default.version]
            self._load_default(slot, folder.sample_file)
        else:
            self._load_all(list(entries.values()))
        self._models.fill_with(entries)
        return folder

    def _load_default(self, slot: ModelSlot, sample: Path | None) -> None:
        """Loads the model that ``/invocations`` uses, as what is known of it tells."""
        sizing = self._sizing = Sizing(
            slot.file,
            check_model_file(slot.file, slot.root, allow_links=slot.settings.allow_links),
            slot.settings,
            self.machine,
            root=slot.root,
            sample=sample,
            whole_process=self._whole_process,
        )
        tuning = sizing.prepare(measure=slot.settings.batch)
        try:
            slot.served = self._loader.load(
                slot.file, slot.root, slot.settings, admit=False, tuning=tuning, sample=sample
            )
        except OutOfMemory as ex:
            raise ModelError(str(ex)) from ex
        self._take(sizing.conclude(slot.served))
        self._note_cost(sizing, slot.served)

    def _load_all(self, entries: list[ModelEntry]) -> None:
        """Loads every model; a broken one is reported and disturbs no other."""
        deadline = time.monotonic() + _EAGER_S
        level = logging.INFO if len(entries) <= _DESCRIBED_MODELS else logging.DEBUG

        any_loaded = threading.Event()

        def fill(entry: ModelEntry) -> None:
            if time.monotonic() >= deadline and any_loaded.is_set():
                return
            try:
                self._load_slot(entry.highest, log_level=level)
            except OutOfMemory as ex:
                _log.warning("%s", ex)
            if entry.highest.served is not None:
                any_loaded.set()

        with ThreadPoolExecutor(self.machine.cpus, thread_name_prefix="onnx-serve-load") as threads:
            list(threads.map(fill, entries))
        loaded = sum(entry.highest.served is not None for entry in entries)
        later = sum(entry.highest.served is None and not entry.highest.failure for entry in entries)
        if not any_loaded.is_set():
            raise ModelError(f"none of the {len(entries)} models can be served")
        if len(entries) > _DESCRIBED_MODELS or later:
            _log.info("%d models are loaded, %d will be when they are asked for, %d cannot be served",
                      loaded, later, len(entries) - loaded - later)  # fmt: skip


def _multi_hint() -> str:
    return "there is no default model in multi mode: use /models/<name>/invoke or /v2/models/<name>/infer"


def _ambiguity(folder: ModelFolder) -> str:
    names = folder.names
    return (
        f"there are {len(names)} models ({', '.join(names[:10])}) and none is the default: "
        f"set default_model (ONNX_SERVE_DEFAULT_MODEL), or name one model.onnx"
    )


def _queue_timeout_s(settings: Settings) -> float | None:
    """Seconds a request may wait; in a batch job what was invited waits instead of failing."""
    if isinstance(settings.queue_timeout_ms, int):
        return settings.queue_timeout_ms / 1000
    return None if settings.batch else _QUEUE_TIMEOUT_S
