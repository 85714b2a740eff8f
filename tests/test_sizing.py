"""The order of a start: what is known, measured, limited and answered, and when."""

import dataclasses
import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import calibrations
import onnx_models
from onnx_serve.calibration_files import store_calibration, to_json
from onnx_serve.calibration_record import Calibration, CalibrationKey
from onnx_serve.errors import ModelError
from onnx_serve.execution_parameters import ExecutionParameters
from onnx_serve.machine import Machine, read_machine
from onnx_serve.memory import INTEGERS_DOCUMENT, NUMBERS_DOCUMENT, OBJECTS_DOCUMENT
from onnx_serve.model_files.model_check import check_model_file
from onnx_serve.model_files.model_folder import find_models
from onnx_serve.repository import Repository
from onnx_serve.settings import Settings
from onnx_serve.sized_load import _document, _record_bytes, _string_share
from onnx_serve.sizing import Sizing
from onnx_serve.tensors import RowAxis, Signature, TensorSpec
from onnx_serve.tuning import key_of

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx_models.linear(tmp_path / "model.onnx", outputs=3)
    return tmp_path


def settings(folder: Path, **values: Any) -> Settings:
    return dataclasses.replace(Settings(), model_dir=folder, **values)


def sizing_of(
    folder: Path, machine: Machine | None = None, *, whole_process: bool = True, **values: Any
) -> Sizing:
    file = find_models(folder, default_model=None).models[0]
    summary = check_model_file(file, folder, allow_links=False)
    return Sizing(
        file,
        summary,
        settings(folder, **values),
        machine or read_machine(),
        root=folder,
        whole_process=whole_process,
    )


def key(folder: Path, **values: Any) -> CalibrationKey:
    file = find_models(folder, default_model=None).models[0]
    summary = check_model_file(file, folder, allow_links=False)
    return key_of(file, summary, settings(folder, **values), read_machine())


@pytest.fixture(scope="module")
def measurement(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """A real measurement, of a model that every test here has a copy of."""
    folder = tmp_path_factory.mktemp("measured")
    onnx_models.linear(folder / "model.onnx", outputs=3)
    sizing = sizing_of(folder)
    found = sizing._measure(1 << 30, 60)
    assert found.origin == "measured", found.reason
    return found


def origin(parameters: ExecutionParameters) -> object:
    return next(term.value for term in parameters.terms if term.name == "calibration_origin")


def loaded(folder: Path, **values: Any) -> Repository:
    repository = Repository(settings(folder, **values), read_machine())
    repository.load()
    return repository


def test_a_shipped_measurement_is_used(folder: Path, measurement: Calibration) -> None:
    (folder / "calibration.json").write_text(to_json(dataclasses.replace(measurement, block_rows=77)))
    repository = loaded(folder)

    assert repository.default().engine.block_rows == 77
    assert origin(repository.execution_parameters()) == "shipped"
    repository.close()


def test_a_cached_measurement_is_used(folder: Path, tmp_path: Path, measurement: Calibration) -> None:
    cache = tmp_path / "cache"
    store_calibration(cache, dataclasses.replace(measurement, block_rows=55))
    repository = loaded(folder, calibration_cache=str(cache))

    assert repository.default().engine.block_rows == 55
    assert origin(repository.execution_parameters()) == "cached"
    repository.close()


@pytest.mark.parametrize("values", [{"outputs": ("y",)}, {"slots": 7}, {"rows": "alone"}])
def test_a_measurement_under_other_options_is_not(
    folder: Path, measurement: Calibration, values: dict[str, Any]
) -> None:
    (folder / "calibration.json").write_text(to_json(measurement))
    repository = loaded(folder, **values)

    assert origin(repository.execution_parameters()) == "guessed"
    repository.close()


def test_a_broken_file_is_passed_over(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "calibration.json").write_text("{}")
    repository = loaded(folder)

    assert origin(repository.execution_parameters()) == "guessed"
    assert "is not used" in caplog.text
    repository.close()


def test_within_another_process_nothing_is_measured(folder: Path) -> None:
    sizing = sizing_of(folder, whole_process=False)

    tuning = sizing.prepare(measure=True)
    assert (tuning.calibration, tuning.shared_arena) == (None, False)
    assert sizing.is_measured


def test_calibration_never(folder: Path, measurement: Calibration) -> None:
    (folder / "calibration.json").write_text(to_json(measurement))
    sizing = sizing_of(folder, whole_process=False, calibration="never")

    assert sizing.prepare(measure=True).calibration is None


def test_measured_beside_a_loaded_model(folder: Path) -> None:
    """The engine keeps serving; its plan and the answer change."""
    repository = loaded(folder)
    sizing = sizing_of(folder)
    answers: list[ExecutionParameters] = []
    with repository.lease(None) as served:
        before = served.inference.engine.plan
        sizing.measure_beside(served, answers.append)
        after = served.inference.engine.plan
        outputs = list(served.inference.engine.map([{"x": np.ones((2, 4), np.float32)}]))
    repository.close()
    [answer] = answers
    assert origin(answer) == "measured"
    assert before.record_elements == 0
    assert after.record_elements == 4
    assert len(outputs) == 1


def tiny(machine: Machine, limit_bytes: int, root: Path) -> Machine:
    """A machine with so much memory, all of it free."""
    (root / "proc").mkdir(parents=True, exist_ok=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: {limit_bytes // 1024} kB\nMemAvailable: {limit_bytes // 1024} kB\n"
    )
    return dataclasses.replace(
        machine, memory_limit_bytes=limit_bytes, memory_total_bytes=limit_bytes, groups=(), root=root
    )


def test_no_second_copy_where_it_may_not_fit(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    repository = loaded(folder)
    sizing = sizing_of(folder, tiny(read_machine(), 120 * MIB, tmp_path / "root"))
    with repository.lease(None) as served:
        sizing.measure_beside(served, lambda _: pytest.fail("nothing was measured"))
    repository.close()
    assert "a second copy needs about" in caplog.text


def test_a_model_that_cannot_fit_is_refused_with_need_and_limit(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "model.onnx", outputs=4_000_000)
    sizing = sizing_of(tmp_path, tiny(read_machine(), 200 * MIB, tmp_path / "root"))

    with pytest.raises(
        ModelError, match=r"loading it needs about 1\d\d MiB; \d+ MiB are left.*limit of 200 MiB"
    ):
        sizing.prepare(measure=True)


def test_stopping_ends_a_measurement_that_has_not_begun(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    repository = loaded(folder)
    sizing = sizing_of(folder)
    sizing.stop()
    with repository.lease(None) as served:
        sizing.measure_beside(served, lambda _: pytest.fail("nothing was measured"))
    repository.close()
    assert "stopped" in caplog.text


def test_closing_a_repository_ends_its_measurement(folder: Path) -> None:
    """Whoever waits for ``measure`` returns soon after ``close``, however long the model would have taken."""
    repository = loaded(folder)
    repository._sizing = sizing_of(folder)
    thread = threading.Thread(target=repository.measure)
    thread.start()
    repository.close()
    thread.join(30)
    assert not thread.is_alive()


def test_several_models_are_answered_without_measuring(tmp_path: Path) -> None:
    for name in ("a", "b"):
        onnx_models.linear(tmp_path / f"{name}.onnx", outputs=3)
    repository = loaded(tmp_path)

    document = repository.execution_parameters().to_json(explain=True)
    assert json.dumps(document)
    assert document["BatchStrategy"] == "MULTI_RECORD"
    repository.measure()
    repository.close()


@pytest.mark.parametrize(
    ("elements", "input_bytes", "record_bytes"), [(30, 120, 240), (1, 270, 270), (3, 24, 24), (0, 0, 8)]
)
def test_a_record_as_text_is_as_long_as_its_numbers_or_its_strings(
    elements: int, input_bytes: int, record_bytes: int
) -> None:
    """A text of 270 bytes is one element: it took a payload for thirty times as many records."""
    calibration = calibrations.make(row_elements=elements, row_input_bytes=input_bytes)

    assert _record_bytes(calibration) == record_bytes


@pytest.mark.parametrize(("length", "share"), [(270, (57 + 270) / 270), (3, 60 / 8)])
def test_strings_take_more_memory_than_their_text(length: int, share: float) -> None:
    """Short ones most of all; numbers have none."""
    calibration = calibrations.make(row_elements=1, row_input_bytes=length)
    texts = Signature((TensorSpec("x", "tensor(string)", ("N", 1)),), (), RowAxis.FREE)
    numbers = Signature((TensorSpec("x", "tensor(float)", ("N", 1)),), (), RowAxis.FREE)

    assert _string_share(texts, calibration) == share
    assert _string_share(numbers, calibration) == 0


def test_a_document_of_strings_holds_them_while_it_runs() -> None:
    """Objects were measured with strings in them."""
    inputs = [
        TensorSpec(name, f"tensor({kind})", ("N", 1)) for name, kind in (("s", "string"), ("i", "int64"))
    ]
    texts, integers, objects = (
        Signature(tuple(chosen), (), RowAxis.FREE) for chosen in (inputs[:1], inputs[1:], inputs)
    )

    assert _document(texts, 2) == NUMBERS_DOCUMENT._replace(held=NUMBERS_DOCUMENT.held + 2)
    assert _document(integers, 0) == INTEGERS_DOCUMENT
    assert _document(objects, 2) == OBJECTS_DOCUMENT
