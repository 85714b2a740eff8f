"""Names of models, and who uses which: leases, and an unload that waits for the last one.

A request holds a *lease* on a model while it uses it. A removal takes the name away first, so that no new lease
begins, then waits for the last one, then frees the model: a request sees a whole model or none.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from onnx_serve.admission import Admission
from onnx_serve.errors import AlreadyLoaded, DeadlineExceeded, InvalidName, UnknownModel, quote
from onnx_serve.model_files.model_folder import ModelFile
from onnx_serve.model_loading import Served
from onnx_serve.settings import Settings

__all__ = [
    "IndexEntry",
    "ModelEntry",
    "ModelRegistry",
    "ModelSlot",
    "check_name",
    "is_name",
]

_DRAIN_S = 60.0
_NAME = re.compile(r"(?!\.+$)[A-Za-z0-9._-]{1,255}")


def is_name(text: str) -> bool:
    """Whether a text can name a model: no dots alone, no separators, nothing that a log or a path minds."""
    return _NAME.fullmatch(text) is not None


def check_name(text: str) -> None:
    """Refuses what cannot name a model.

    Raises:
        InvalidName: It cannot.
    """
    if not is_name(text):
        raise InvalidName(
            f"expected a model's name of 1 to 255 letters, digits, dots, hyphens and underscores, got {quote(text)}"
        )


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One line of the index.

    Attributes:
        name: The model's.
        version: Its version; ``1`` for a file without one.
        state: ``READY``, ``LOADING`` or ``UNAVAILABLE``.
        reason: Why it is not ready.
    """

    name: str
    version: str
    state: str
    reason: str


@dataclass(slots=True, eq=False)
class ModelSlot:
    """One version of a model, loaded or not.

    Attributes:
        file: Its file.
        root: The folder that the file must not leave by a link.
        settings: The server's with the model's own.
        served: The model, while it is loaded.
        leases: Who uses it now.
        gone: Whether it may not be leased any more.
        failure: Why it cannot be served, once that is known.
        lock: Held to load or free it; the registry's guards the rest.
    """

    file: ModelFile
    root: Path
    settings: Settings
    served: Served | None = None
    leases: int = 0
    gone: bool = False
    failure: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def version(self) -> str:
        """The version as the protocols name it; a file without one is version 1."""
        return str(self.file.version or 1)


@dataclass(slots=True, eq=False)
class ModelEntry:
    """A name: its versions, the highest last, and where they come from in the caller's words."""

    url: str
    slots: dict[int | None, ModelSlot]

    @property
    def highest(self) -> ModelSlot:
        """What requests without a version mean."""
        return next(reversed(self.slots.values()))

    def find(self, version: int | None) -> ModelSlot | None:
        """A version, or the highest for None; a file without a version is version 1."""
        if version is None:
            return self.highest
        return self.slots.get(version) or (self.slots.get(None) if version == 1 else None)


class ModelRegistry:
    """The models by name. Thread-safe.

    Args:
        loads: Bounds those that load models or wait for that.
        fill: Sets ``served`` of a slot, or ``failure``, or raises; called with the slot's lock held.
    """

    def __init__(self, loads: Admission, fill: Callable[[ModelSlot], None]) -> None:
        self._loads = loads
        self._fill = fill
        self._changed = threading.Condition()
        self._entries: dict[str, ModelEntry] = {}
        self._busy: set[str] = set()

    @property
    def served(self) -> Mapping[str, Served]:
        """The loaded models by name, each in its highest version."""
        with self._changed:
            slots = [(name, entry.highest.served) for name, entry in self._entries.items()]
        return {name: served for name, served in slots if served is not None}

    def find(self, name: str) -> ModelEntry:
        """A model's versions and place.

        Raises:
            UnknownModel: There is no such model.
            InvalidName: That cannot be a name.
        """
        entry = self._entries.get(name)
        if entry is None:
            check_name(name)
            raise UnknownModel(f"there is no model {quote(name)}")
        return entry

    def urls(self) -> list[tuple[str, str]]:
        """Names and places of the models, by name."""
        with self._changed:
            return sorted((name, entry.url) for name, entry in self._entries.items())

    def index(self) -> list[IndexEntry]:
        """Every version of every model, and the names that are being loaded; in no order."""
        with self._changed:
            entries = dict(self._entries)
            loading = [IndexEntry(name, "1", "LOADING", "") for name in self._busy - self._entries.keys()]
        return loading + [
            _index_entry(name, slot) for name, entry in entries.items() for slot in entry.slots.values()
        ]

    def fill_with(self, entries: Mapping[str, ModelEntry]) -> None:
        """Takes in the models of a folder, at the start."""
        with self._changed:
            self._entries.update(entries)

    @contextmanager
    def lease(self, name: str, version: int | None = None) -> Iterator[Served]:
        """A model for the block's time, in which it is not freed; loaded now if it is not yet.

        Raises:
            UnknownModel: No such model or version, or it cannot be served.
            InvalidName: That cannot be a name.
            OutOfMemory: It does not fit in memory.
            Overloaded: Too many models are being loaded.
        """
        slot, served = self._take(name, version)
        try:
            yield served
        finally:
            # A served model in a traceback would outlive its slot.
            del served
            with self._changed:
                slot.leases -= 1
                if slot.gone:
                    self._changed.notify_all()

    @contextmanager
    def change(self, name: str, *, may_exist: bool = True) -> Iterator[None]:
        """Keeps other changes of a name out for the block's time.

        Raises:
            AlreadyLoaded: There is a model of that name, and it may not exist.
            Overloaded: Too many models are being loaded.
        """
        with self._loads.permit():
            with self._changed:
                self._changed.wait_for(lambda: name not in self._busy)
                if name in self._entries and not may_exist:
                    raise AlreadyLoaded(f"the model {quote(name)} is loaded already")
                self._busy.add(name)
            try:
                yield
            finally:
                with self._changed:
                    self._busy.discard(name)
                    self._changed.notify_all()

    def put(self, name: str, entry: ModelEntry) -> None:
        """Gives a name to a model, which takes the place of the one that had it; within ``change``.

        Raises:
            DeadlineExceeded: Requests still use the old one.
        """
        with self._changed:
            old = self._entries.get(name)
            self._entries[name] = entry
            _retire(old)
        self._free(old)

    def remove(self, name: str) -> None:
        """Takes a name away and frees its model; within ``change``.

        Raises:
            UnknownModel: There is no such model.
            InvalidName: That cannot be a name.
            DeadlineExceeded: Requests still use it; it is freed after the last of them.
        """
        with self._changed:
            entry = self.find(name)
            del self._entries[name]
            _retire(entry)
        self._free(entry)

    def close(self) -> None:
        """Ends the engines' threads."""
        with self._changed:
            slots = [slot for entry in self._entries.values() for slot in entry.slots.values()]
        for slot in slots:
            if slot.served is not None:
                slot.served.inference.engine.close()

    def _take(self, name: str, version: int | None) -> tuple[ModelSlot, Served]:
        """The slot of a lease that has begun, and what it holds."""
        with self._changed:
            slot = self._servable(name, version)
            if slot.served is not None:
                slot.leases += 1
                return slot, slot.served
        with self._loads.permit(), slot.lock:
            return slot, self._filled(name, slot)

    def _filled(self, name: str, slot: ModelSlot) -> Served:
        """What a slot holds, now or already, with a lease on it; the caller holds the slot's lock."""
        if slot.served is None and not slot.gone and not slot.failure:
            self._fill(slot)
        with self._changed:
            if slot.failure:
                raise _failed(name, slot)
            if slot.gone or slot.served is None:
                raise UnknownModel(f"the model {quote(name)} is not loaded")
            slot.leases += 1
            return slot.served

    def _servable(self, name: str, version: int | None) -> ModelSlot:
        slot = self.find(name).find(version)
        if slot is None:
            raise UnknownModel(f"the model {quote(name)} has no version {version}")
        if slot.failure:
            raise _failed(name, slot)
        return slot

    def _free(self, entry: ModelEntry | None) -> None:
        """Waits for the leases of a retired entry, then frees its models."""
        deadline = time.monotonic() + _DRAIN_S
        for slot in entry.slots.values() if entry else ():
            with slot.lock:
                self._wait_for_leases(slot, deadline)
                served, slot.served = slot.served, None
                if served is not None:
                    served.inference.engine.close()

    def _wait_for_leases(self, slot: ModelSlot, deadline: float) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: not slot.leases, deadline - time.monotonic()):
                raise DeadlineExceeded(f"requests still use the model {quote(slot.file.name)}")


def _failed(name: str, slot: ModelSlot) -> UnknownModel:
    return UnknownModel(f"the model {quote(name)} cannot be served: {slot.failure}")


def _retire(entry: ModelEntry | None) -> None:
    """Ends new leases; the caller holds the registry's lock."""
    for slot in entry.slots.values() if entry else ():
        slot.gone = True


def _index_entry(name: str, slot: ModelSlot) -> IndexEntry:
    if slot.served is not None:
        return IndexEntry(name, slot.version, "READY", "")
    if slot.lock.locked():
        return IndexEntry(name, slot.version, "LOADING", "")
    return IndexEntry(name, slot.version, "UNAVAILABLE", slot.failure or "loaded when it is asked for")
