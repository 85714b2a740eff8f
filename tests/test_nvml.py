"""What this process learns of its GPUs, and that it learns nothing, quietly and in time, where that is impossible."""

import ctypes
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fake_nvml
from fake_nvml import GIB, GPU_IS_LOST, INSTANCE, MIB, UUIDS, FakeLibrary
from onnx_serve.nvml import NVML, Gpu, Nvml, _Memory, _Process

FIRST, SECOND, THIRD = UUIDS


def nvml(library: Any) -> Nvml:
    return Nvml(lambda: library)


def test_structures_have_the_documented_sizes() -> None:
    """https://docs.nvidia.com/deploy/nvml-api/: three long integers; two between integers, with their padding."""
    assert ctypes.sizeof(_Memory) == 24
    assert ctypes.sizeof(_Process) == 24
    assert (_Process.pid.offset, _Process.used.offset, _Process.gpu_instance.offset) == (0, 8, 16)


def test_a_gpu_and_what_it_has() -> None:
    gpu = nvml(FakeLibrary()).gpus()[1]

    assert gpu == Gpu(1, "Tesla T4", SECOND, 16 * GIB, 10 * GIB, (7, 5))
    assert str(gpu) == "1: Tesla T4, compute capability 7.5, 10240 MiB free of 16384 MiB"


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        pytest.param(None, [FIRST, SECOND, THIRD], id="not set"),
        pytest.param("", [], id="empty"),
        pytest.param("-1", [], id="none"),
        pytest.param("NoDevFiles", [], id="as containers say none"),
        pytest.param("2,0", [THIRD, FIRST], id="in another order"),
        pytest.param(" 1 , 2 ", [SECOND, THIRD], id="blanks"),
        pytest.param("0,7,1", [FIRST], id="those before an unknown one"),
        pytest.param("1,-1,0", [SECOND], id="those before -1"),
        pytest.param("0,0", [FIRST], id="twice"),
        pytest.param(SECOND, [SECOND], id="uuid"),
        pytest.param(f"{THIRD},{FIRST}", [THIRD, FIRST], id="uuids"),
        pytest.param("GPU-9999", [THIRD], id="the beginning of a uuid"),
        pytest.param("GPU-1b2c", [], id="a beginning of two uuids"),
        pytest.param("GPU-", [], id="a beginning of all uuids"),
        pytest.param("GPU-00000000", [], id="unknown uuid"),
        pytest.param(INSTANCE, [INSTANCE], id="an instance of a divided gpu"),
        pytest.param(f"{FIRST},MIG-1,{SECOND}", [FIRST], id="unknown instance"),
        pytest.param("99999999999999999999", [], id="a number beyond any"),
    ],
)
def test_visible_gpus(visible: str | None, uuids: list[str]) -> None:
    """What CUDA would show, numbered as CUDA numbers it."""
    gpus = nvml(FakeLibrary()).gpus(visible)

    assert [gpu.uuid for gpu in gpus] == uuids
    assert [gpu.index for gpu in gpus] == list(range(len(uuids)))


def test_an_instance_may_have_no_compute_capability() -> None:
    [gpu] = nvml(FakeLibrary()).gpus(INSTANCE)

    assert gpu.compute_capability == (0, 0)


@given(visible=st.text())
def test_any_text_names_some_gpus_or_none(visible: str) -> None:
    assert {gpu.uuid for gpu in nvml(FakeLibrary()).gpus(visible)} <= {*UUIDS, INSTANCE}


def test_it_is_loaded_at_the_first_question_and_once() -> None:
    library = FakeLibrary()
    opened: list[int] = []

    def open_library() -> Any:
        opened.append(1)
        return library

    asked = Nvml(open_library)
    assert not opened
    for _ in range(3):
        asked.gpus("0")
    assert len(opened) == library.calls.count("nvmlInit_v2") == 1


@pytest.mark.parametrize(
    ("function", "unknown"),
    [
        ("nvmlInit_v2", {"gpus", "used", "free", "driver"}),
        ("nvmlDeviceGetCount_v2", {"gpus"}),
        ("nvmlDeviceGetHandleByIndex_v2", {"gpus"}),
        ("nvmlDeviceGetHandleByUUID", {"used", "free"}),
        ("nvmlDeviceGetUUID", {"gpus"}),
        ("nvmlDeviceGetName", {"gpus"}),
        ("nvmlDeviceGetMemoryInfo", {"gpus", "free"}),
        ("nvmlDeviceGetComputeRunningProcesses_v3", {"used"}),
        ("nvmlSystemGetDriverVersion", {"driver"}),
    ],
)
def test_any_error_means_that_nothing_is_known(
    function: str, unknown: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    """And one line for those who look for it, however often it is asked."""
    library = FakeLibrary(processes=[(7, MIB)])
    gpu = nvml(library).gpus()[0]
    library.errors[function] = GPU_IS_LOST
    asked = nvml(library)

    with caplog.at_level(logging.DEBUG, "onnx_serve"):
        for _ in range(3):
            answers = {
                "gpus": asked.gpus(),
                "used": asked.used_bytes(gpu, 7),
                "free": asked.free_bytes(gpu),
                "driver": asked.driver_version(),
            }
    assert {name for name, answer in answers.items() if not answer} == unknown
    [record] = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.DEBUG, f"NVML: {function} gave error 15")


def test_without_the_library_there_are_no_gpus(caplog: pytest.LogCaptureFixture) -> None:
    """It is looked for once, and that is said once."""
    tried: list[int] = []

    def open_library() -> Any:
        tried.append(1)
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    asked = Nvml(open_library)
    with caplog.at_level(logging.DEBUG, "onnx_serve"):
        assert asked.gpus() == []
        assert asked.gpus("0") == []
        assert asked.driver_version() is None
    assert len(tried) == len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.DEBUG


def test_a_library_that_is_too_old() -> None:
    """A function that it has not is an error like any other; version 2 of the list of processes does."""
    assert nvml(FakeLibrary(missing=frozenset(["nvmlDeviceGetUUID"]))).gpus() == []
    old = nvml(
        FakeLibrary(processes=[(7, MIB)], missing=frozenset(["nvmlDeviceGetComputeRunningProcesses_v3"]))
    )
    assert old.used_bytes(old.gpus()[0], 7) == MIB


def test_a_driver_that_never_answers(caplog: pytest.LogCaptureFixture) -> None:
    """It is waited for once; then nothing is known, at once."""
    never = threading.Event()
    tried: list[int] = []

    def open_library() -> Any:
        tried.append(1)
        never.wait()
        raise OSError("too late")

    asked = Nvml(open_library, patience_s=0.01)
    try:
        with caplog.at_level(logging.DEBUG, "onnx_serve"):
            assert asked.gpus() == []
            assert asked.driver_version() is None
        assert len(tried) == 1
        assert [record.getMessage() for record in caplog.records] == ["NVML: no answer within 0.01 s"]
    finally:
        never.set()


def test_no_thread_to_ask_with(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    asked = nvml(FakeLibrary())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert asked.gpus() == []
    assert len(asked.gpus()) == 3


@pytest.mark.parametrize(
    ("processes", "used"),
    [
        pytest.param([], None, id="none listed"),
        pytest.param([(8, MIB)], None, id="another one listed"),
        pytest.param([(8, MIB), (7, 3 * MIB)], 3 * MIB, id="listed"),
        pytest.param([(7, 2 * MIB), (7, 3 * MIB)], 5 * MIB, id="in two instances"),
        pytest.param([(7, (1 << 64) - 1)], None, id="memory not told"),
        pytest.param([(pid, MIB) for pid in range(1000)], MIB, id="more than there was room for"),
        pytest.param([(7, 0)], 0, id="nothing taken"),
        pytest.param([(8, MIB)] * 100_000, None, id="more than any machine has"),
    ],
)
def test_memory_of_a_process(processes: list[tuple[int, int]], used: int | None) -> None:
    asked = nvml(FakeLibrary(processes=processes))

    assert asked.used_bytes(asked.gpus()[0], 7) == used


def test_free_memory_is_read_anew() -> None:
    library = FakeLibrary()
    asked = nvml(library)
    gpu = asked.gpus()[0]
    library.free = 5 * GIB

    assert asked.free_bytes(gpu) == 5 * GIB
    assert asked.driver_version() == "535.183.01"


def test_a_real_shared_library(tmp_path: Path) -> None:
    """Compiled C takes the structures, pointers and lengths as they are passed."""
    asked = nvml(fake_nvml.open_built(fake_nvml.build_library(tmp_path)))
    [gpu] = asked.gpus("0")

    assert (gpu.name, gpu.uuid, gpu.compute_capability) == ("Fake GPU", "GPU-fake", (8, 6))
    assert (gpu.total_bytes, gpu.free_bytes) == (16 * GIB, 8 * GIB)
    assert asked.used_bytes(gpu, os.getpid()) == 101 * MIB
    assert asked.used_bytes(gpu, os.getpid() + 1) is None
    assert asked.driver_version() == "580.65.06"
    assert [other.uuid for other in asked.gpus("GPU-fa")] == ["GPU-fake"]


def test_a_real_shared_library_that_cannot_start(tmp_path: Path) -> None:
    assert nvml(fake_nvml.open_built(fake_nvml.build_library(tmp_path, init=9))).gpus() == []


def test_this_machine() -> None:
    """With or without a driver, the answers agree with each other."""
    gpus = NVML.gpus()

    assert all(0 <= gpu.free_bytes <= gpu.total_bytes for gpu in gpus)
    assert NVML.gpus("") == []
    assert not gpus or NVML.driver_version() is not None
