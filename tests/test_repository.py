import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

import onnx_models
from onnx_serve.admission import Admission
from onnx_serve.errors import (
    DeadlineExceeded,
    ModelError,
    ModelNotFound,
    NotReady,
    OutOfMemory,
    Overloaded,
    SettingsError,
    UnknownModel,
)
from onnx_serve.machine import Machine, read_machine
from onnx_serve.model_files.external_data import ExternalData
from onnx_serve.model_files.model_folder import ModelFile
from onnx_serve.model_files.onnx_file import OnnxFile
from onnx_serve.model_loading import load_bytes
from onnx_serve.model_registry import ModelEntry, ModelRegistry, ModelSlot
from onnx_serve.repository import Repository
from onnx_serve.settings import Settings
from onnx_serve.tensors import RowAxis


def repository(folder: Path, machine: Machine | None = None, **settings: Any) -> Repository:
    chosen = dataclasses.replace(Settings(), model_dir=folder, **settings)
    return Repository(chosen, machine or read_machine())


def test_loads_the_only_model(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "any-name.onnx")
    models = repository(tmp_path, slots=3, block_rows=7)

    with pytest.raises(NotReady):
        models.default()
    with pytest.raises(NotReady):
        models.execution_parameters()
    models.load()
    assert models.ready
    engine = models.default().engine
    assert (engine.slots, engine.block_rows) == (3, 7)
    assert list(models.served) == ["any-name"]
    assert models.admission.permits == 4
    models.close()


def test_model_settings_apply(tmp_path: Path) -> None:
    onnx_models.two_inputs(tmp_path / "m.onnx")
    (tmp_path / "onnx_serve.yaml").write_text("outputs: [twice]\nblock_rows: 5\n")
    models = repository(tmp_path)
    models.load()

    assert [spec.name for spec in models.default().signature.outputs] == ["twice"]
    assert models.default().engine.block_rows == 5
    models.close()


def test_wrong_model_settings_are_told(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "m.onnx")
    (tmp_path / "onnx_serve.yaml").write_text("port: 1\n")

    with pytest.raises(SettingsError, match="port"):
        repository(tmp_path).load()


def test_foreign_files_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    onnx_models.linear(tmp_path / "m.onnx")
    (tmp_path / "config.yaml").write_text("something: else\n")
    with caplog.at_level("INFO"):
        models = repository(tmp_path)
        models.load()
    models.close()

    assert "config.yaml" in caplog.text


def test_several_models_and_no_choice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    onnx_models.linear(tmp_path / "a.onnx")
    onnx_models.lookup(tmp_path / "b.onnx")
    (tmp_path / "c.onnx").write_bytes(b"\x00" * 100)
    models = repository(tmp_path)
    models.load()

    assert sorted(models.served) == ["a", "b"]
    assert "c.onnx" in caplog.text
    with pytest.raises(ModelNotFound, match=r"3 models \(a, b, c\)"):
        models.default()
    assert models.execution_parameters().max_concurrent_transforms >= 1
    models.close()


def test_a_transform_job_needs_one_model(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "a.onnx")
    onnx_models.linear(tmp_path / "b.onnx")

    with pytest.raises(ModelError, match="a transform job needs one"):
        repository(tmp_path, batch=True).load()
    chosen = repository(tmp_path, batch=True, default_model="b")
    chosen.load()
    assert list(chosen.served) == ["b"]
    chosen.close()


def test_nothing_servable_is_an_error(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.onnx").write_bytes(b"\x00" * 100)

    with pytest.raises(ModelError, match="none of the 2 models can be served"):
        repository(tmp_path).load()


def test_the_default_is_model_onnx(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "model.onnx", rows=1)
    onnx_models.linear(tmp_path / "other.onnx")
    models = repository(tmp_path)
    models.load()

    assert models.default().signature.row_axis is RowAxis.FIXED
    models.close()


@pytest.mark.parametrize(
    ("settings", "timeout"),
    [({}, 10.0), ({"batch": True}, None), ({"queue_timeout_ms": 500, "batch": True}, 0.5)],
)
def test_how_long_a_request_may_wait(tmp_path: Path, settings: dict[str, Any], timeout: float | None) -> None:
    """In a transform job what was invited waits instead of failing."""
    assert repository(tmp_path, **settings).admission._timeout_s == timeout


def states(models: Repository) -> dict[tuple[str, str], str]:
    return {(entry.name, entry.version): entry.state for entry in models.index()}


def test_other_models_are_loaded_when_they_are_asked_for(tmp_path: Path) -> None:
    """Beside a default, and versions below the highest."""
    onnx_models.linear(tmp_path / "model.onnx")
    for version in (2, 10):
        onnx_models.linear(tmp_path / "v" / str(version) / "model.onnx", outputs=version)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    models = repository(tmp_path)
    models.load()
    assert states(models) == {
        ("broken", "1"): "UNAVAILABLE",
        ("model", "1"): "READY",
        ("v", "2"): "UNAVAILABLE",
        ("v", "10"): "UNAVAILABLE",
    }
    assert models.versions("v") == ["2", "10"]
    with models.lease("v") as served:
        assert served.model.signature.outputs[0].shape[1] == 10
    with models.lease("v", 2) as served:
        assert served.model.signature.outputs[0].shape[1] == 2
    with models.lease("model", 1) as served:
        assert served.inference is models.default()
    missing: list[tuple[str, int | None]] = [("v", 3), ("w", None), ("model", 2)]
    for name, number in missing:
        with pytest.raises(UnknownModel), models.lease(name, number):
            pass
    for _ in range(2):
        with pytest.raises(UnknownModel, match="not an ONNX model"), models.lease("broken"):
            pass
    assert states(models)["v", "2"] == "READY"
    models.close()


def test_many_models_without_a_default(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line for all of them; every one is ready."""
    for index in range(30):
        onnx_models.linear(tmp_path / f"m{index}.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    models = repository(tmp_path)
    with caplog.at_level("INFO"):
        models.load()

    assert len(models.served) == 30
    assert "30 models are loaded, 0 will be when they are asked for, 1 cannot be served" in caplog.text
    assert "m7: loaded" not in caplog.text
    models.close()


def test_a_start_is_bounded_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not loaded by then is loaded later; with nothing loaded there would be nothing to serve."""
    for index in range(5):
        onnx_models.linear(tmp_path / f"m{index}.onnx")
    monkeypatch.setattr("onnx_serve.repository._EAGER_S", 0)
    models = repository(tmp_path)
    models.load()

    assert 1 <= len(models.served) < 5
    for index in range(5):
        with models.lease(f"m{index}"):
            pass
    assert len(models.served) == 5
    models.close()


def test_a_start_is_bounded_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What does not fit is left, and refused when it is asked for, each time anew."""
    onnx_models.linear(tmp_path / "small.onnx")
    onnx_models.linear(tmp_path / "large.onnx", width=1000, outputs=1000)
    machine = dataclasses.replace(read_machine(), memory_limit_bytes=(256 + 20) << 20)
    models = repository(tmp_path, machine)
    models.load()

    assert list(models.served) == ["small"]
    assert "large: loading it needs about 23 MiB" in caplog.text
    for _ in range(2):
        with pytest.raises(OutOfMemory), models.lease("large"):
            pass
    assert states(models)["large", "1"] == "UNAVAILABLE"
    models.close()


def test_what_loading_needs(tmp_path: Path) -> None:
    """Twice what is inline, once what is external and mapped, and what any session takes; shared bytes once."""
    (tmp_path / "w").write_bytes(bytes(1000))
    parts = (
        ExternalData("a", "w", 0, 300),
        ExternalData("b", "w", 0, 300),
        ExternalData("c", "w", 400, None),
    )
    summary = OnnxFile("onnx", 50, external_data=parts)

    assert load_bytes(summary, tmp_path) == 2 * 50 + 300 + 600 + (16 << 20)
    # It is loaded from a copy of its bytes.
    summary = OnnxFile("onnx", 50, operators={"ai.onnx.ml::ZipMap": 1})
    assert load_bytes(summary, tmp_path) == 3 * 50 + (16 << 20)


@pytest.mark.parametrize(
    "error", [MemoryError(), ModelError("m: onnxruntime: Failed to allocate memory for x")]
)
def test_running_out_of_memory_at_load(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is found out: the caller is told 507, and the model may fit another time."""
    onnx_models.linear(tmp_path / "m" / "model.onnx")
    models = repository(tmp_path, mode="multi")
    models.load()

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("onnx_serve.model.load_model", fail)
        with pytest.raises(OutOfMemory):
            models.load_model("m")
    models.load_model("m")
    models.close()


class Registry:
    """A registry of slots that a test fills, with what it needs to look inside."""

    def __init__(self, folder: Path, *, permits: int = 4, waiting: int = 4) -> None:
        onnx_models.linear(folder / "m.onnx")
        self.repository = repository(folder)
        self.repository.load()
        self.served = self.repository.served["m"]
        self.filled = threading.Event()
        self.may_fill = threading.Event()
        self.models = ModelRegistry(Admission(permits, waiting, 10), self.fill)

    def fill(self, slot: ModelSlot) -> None:
        self.filled.set()
        assert self.may_fill.wait(30)
        slot.served = self.served

    def slot(self) -> ModelSlot:
        file = ModelFile("m", Path("m.onnx"), "m.onnx")
        return ModelSlot(file, Path(), self.repository.settings)

    def add(self) -> ModelSlot:
        slot = self.slot()
        self.models.fill_with({"m": ModelEntry("", {None: slot})})
        return slot


@pytest.mark.parametrize(("width", "released"), [(1024, 1), (4, 0)])
def test_what_a_large_model_leaves_in_the_heap_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, released: int
) -> None:
    """Tiny ones are loaded in less time than that takes, and there may be thousands of them."""
    releases: list[None] = []
    monkeypatch.setattr("onnx_serve.allocator.release", lambda: releases.append(None))
    onnx_models.linear(tmp_path / "m.onnx", width=width, outputs=2560)
    models = repository(tmp_path, mode="multi")
    models.load()
    models.load_model("m")
    assert len(releases) == released
    models.close()


def holds(slot: ModelSlot) -> object:
    """What a slot holds now: other threads change it."""
    return slot.served


def lease_in_thread(registry: Registry, outcomes: list[object]) -> threading.Thread:
    def lease() -> None:
        try:
            with registry.models.lease("m") as served:
                outcomes.append(served)
        except (UnknownModel, Overloaded) as error:
            outcomes.append(type(error))

    thread = threading.Thread(target=lease)
    thread.start()
    return thread


def test_a_model_is_loaded_once_for_all_who_wait(tmp_path: Path) -> None:
    """And those for whom there is no place to wait are told so at once."""
    registry = Registry(tmp_path, permits=2, waiting=1)
    registry.add()
    outcomes: list[object] = []
    threads = [lease_in_thread(registry, outcomes)]
    assert registry.filled.wait(30)
    assert registry.models.index()[0].state == "LOADING"
    threads += [lease_in_thread(registry, outcomes) for _ in range(3)]
    while Overloaded not in outcomes:
        threads[-1].join(0.01)
    registry.may_fill.set()
    for thread in threads:
        thread.join(30)
    assert outcomes.count(Overloaded) == 1
    assert outcomes.count(registry.served) == 3
    registry.repository.close()


def test_a_removal_waits_for_the_last_lease(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.may_fill.set()
    slot = registry.add()
    removed = threading.Event()

    def remove() -> None:
        with registry.models.change("m"):
            registry.models.remove("m")
        removed.set()

    with registry.models.lease("m") as served:
        thread = threading.Thread(target=remove)
        thread.start()
        while not slot.gone:
            thread.join(0.01)
        with pytest.raises(UnknownModel), registry.models.lease("m"):
            pass
        assert registry.models.index()[0].state == "LOADING"
        assert holds(slot) is served
        assert not removed.is_set()
    thread.join(30)
    assert removed.is_set()
    assert holds(slot) is None
    registry.repository.close()


def test_a_removal_gives_up_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is free, the request goes on, and the memory follows it."""
    monkeypatch.setattr("onnx_serve.model_registry._DRAIN_S", 0)
    registry = Registry(tmp_path)
    registry.may_fill.set()
    registry.add()
    with registry.models.lease("m") as served:
        with pytest.raises(DeadlineExceeded), registry.models.change("m"):
            registry.models.remove("m")
        assert served.inference.engine.slots
    with pytest.raises(UnknownModel):
        registry.models.find("m")
    registry.repository.close()


def test_a_model_removed_while_it_is_loaded_is_not_lent(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    slot = registry.add()
    outcomes: list[object] = []
    waiting = lease_in_thread(registry, outcomes)
    assert registry.filled.wait(30)

    def remove() -> None:
        with registry.models.change("m"):
            registry.models.remove("m")

    removing = threading.Thread(target=remove)
    removing.start()
    while not slot.gone:
        removing.join(0.01)
    registry.may_fill.set()
    for thread in (waiting, removing):
        thread.join(30)
    assert outcomes == [UnknownModel]
    assert slot.served is None
    registry.repository.close()
