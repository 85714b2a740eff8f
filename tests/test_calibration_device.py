"""What a calibration finds out about a GPU, with libraries and profiles that stand in for one."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fake_nvml
import onnx_models
from calibrations import make, make_key
from fake_nvml import GIB, MIB, FakeLibrary
from onnx_serve import cuda
from onnx_serve.calibration_device import DeviceMemory, device_entries, device_of, read_cpu_share
from onnx_serve.calibration_files import from_json, to_json
from onnx_serve.calibration_process import CalibrationProcess, CalibrationRequest
from onnx_serve.calibration_record import Calibration
from onnx_serve.errors import CalibrationError
from onnx_serve.nvml import Nvml

CPU = "CPUExecutionProvider"
VARIABLES = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}


def memory(library: FakeLibrary) -> DeviceMemory:
    asked = Nvml(lambda: library)
    return DeviceMemory(asked.gpus()[0], asked)


def test_without_a_gpu_there_is_nothing_to_take() -> None:
    device = DeviceMemory(None)
    with device.watched():
        pass

    assert (device.used(), device.growth, device.budget_bytes) == (0, 0, 0)


@pytest.mark.parametrize(
    ("processes", "free", "used"),
    [
        pytest.param([(os.getpid(), 300 * MIB)], 9 * GIB, 300 * MIB, id="this process is listed"),
        pytest.param([(1, 300 * MIB)], 9 * GIB, GIB, id="in a container it may not be"),
        pytest.param([], 11 * GIB, 0, id="others have given memory back meanwhile"),
    ],
)
def test_memory_taken(processes: list[tuple[int, int]], free: int, used: int) -> None:
    library = FakeLibrary()
    device = memory(library)
    library.processes, library.free = processes, free

    assert device.used() == used
    assert device.budget_bytes == 9 * GIB


def test_a_library_that_has_gone_silent_tells_of_nothing_taken() -> None:
    library = FakeLibrary()
    device = memory(library)
    library.errors.update(nvmlDeviceGetMemoryInfo=fake_nvml.GPU_IS_LOST)

    assert device.used() == 0


class Rising(FakeLibrary):
    """Memory that is taken and given back between two looks of the caller."""

    def _nvmlDeviceGetMemoryInfo(self, device: Any, memory: Any) -> int:  # noqa: N802
        looks = self.calls.count("nvmlDeviceGetMemoryInfo")
        memory._obj.free = (10 - (looks == 5)) * GIB
        return 0


def test_a_peak_between_begin_and_end_is_seen() -> None:
    """Whoever watches goes on until the fifth look, which finds a GiB less; before and after it is free."""
    library = Rising()
    device = memory(library)
    with device.watched():
        while library.calls.count("nvmlDeviceGetMemoryInfo") < 7:
            os.sched_yield()

    assert device.growth == GIB


@pytest.mark.parametrize(
    ("providers", "options", "index"),
    [
        pytest.param((cuda.CUDA, CPU), {}, 0, id="the first"),
        pytest.param((cuda.CUDA, CPU), {cuda.CUDA: {"device_id": 2}}, 2, id="the one chosen"),
        pytest.param((cuda.CUDA, CPU), {cuda.CUDA: {"device_id": 9}}, None, id="one that is not there"),
        pytest.param((CPU,), {}, None, id="on the cpu"),
    ],
)
def test_which_gpu_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, providers: Sequence[str], options: Any, index: int | None
) -> None:
    monkeypatch.setattr("onnx_serve.machine.NVML", Nvml(FakeLibrary))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    key = make_key(providers=tuple(providers))
    device = device_of(CalibrationRequest(key, Path("m"), "m", 2, GIB, provider_options=options))

    assert (device._gpu and device._gpu.index) == index


def node(
    operator: str, provider: str, duration: int, in_use: int = 0, peak: int = 0, delta: int = 0
) -> dict[str, Any]:
    arguments = {
        "op_name": operator,
        "provider": provider,
        "mem_bytes_in_use": str(in_use),
        "mem_in_use_peak": str(peak),
        "mem_in_use_delta": str(delta),
    }
    return {"cat": "Node", "name": f"{operator}_kernel_time", "dur": duration, "args": arguments}


def run(duration: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "dur": duration, "args": {}}


def write(path: Path, events: Sequence[dict[str, Any]]) -> Path:
    """As onnxruntime writes it: an event a line, between brackets."""
    path.write_text("[\n" + ",\n".join(map(json.dumps, events)) + "\n]\n")
    return path


COLD = [node("Conv", cuda.CUDA, 90_000), node("NonZero", CPU, 10), run(100_000)]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([], None, id="no run"),
        pytest.param([*COLD, node("Conv", cuda.CUDA, 5), run(100)], (0, 0, ()), id="all on the gpu"),
        pytest.param(
            [*COLD, node("Conv", cuda.CUDA, 5), node("NonZero", CPU, 25), run(100)],
            (0.5, 0.25, ("NonZero",)),
            id="of the last run, by its whole time",
        ),
        pytest.param(
            [node("If", CPU, 90), node("Add", CPU, 40), node("Mul", CPU, 50), run(100)],
            (1, 0.9, ("Mul", "Add")),
            id="bodies are not counted twice",
        ),
        pytest.param(
            [node(name, CPU, time) for name, time in zip("ABCDA", (30, 10, 20, 5, 1), strict=True)] + [run(50)],
            (1, 1, ("A", "C", "B")),
            id="three operators, at most the whole run",
        ),
        pytest.param([node("a\n" * 99, CPU, 1), run(10)], (1, 0.1, ("a" * 30,)), id="a name from a model"),
        pytest.param(
            [{"cat": "Node", "name": "x", "dur": "?", "args": {"provider": CPU}}, {"name": "model_run"}],
            (1, 0, ("",)),
            id="without times",
        ),
    ],
)  # fmt: skip
def test_share_of_the_cpu(tmp_path: Path, events: Sequence[dict[str, Any]], expected: Any) -> None:
    assert read_cpu_share(write(tmp_path / "profile.json", events)) == expected


def test_two_arenas_in_one_profile(tmp_path: Path) -> None:
    """Nodes of CUDA tell of the GPU's arena; runs that are not to count are left out of the line."""
    events = [
        node("Conv", cuda.CUDA, 1, in_use=1100, peak=1200, delta=100),
        node("NonZero", CPU, 1, in_use=60, peak=70, delta=10),
        run(10),
        node("Conv", cuda.CUDA, 1, in_use=1400, peak=1500, delta=100),
        run(10),
        node("Conv", cuda.CUDA, 1, in_use=1800, peak=1900, delta=100),
        run(10),
        node("Conv", cuda.CUDA, 1, in_use=1700, peak=1900, delta=100),
        run(10),
    ]
    entries = device_entries(write(tmp_path / "profile.json", events), [4, 8, 0])

    assert entries["device_warm_up_bytes"] == 200
    assert (entries["device_run_fixed_bytes"], entries["device_run_row_bytes"]) == (100, 100)
    assert replace(make(), **entries).device_run_bytes(8) == 900


def test_a_profile_that_tells_of_no_arena(tmp_path: Path) -> None:
    """As before onnxruntime 1.28."""
    event = {"cat": "Node", "name": "x", "dur": 5, "args": {"provider": cuda.CUDA, "op_name": "Conv"}}

    assert device_entries(write(tmp_path / "profile.json", [event, run(9)]), [1]) == {
        "cpu_node_share": 0,
        "cpu_time_share": 0,
        "cpu_operators": (),
    }
    assert device_entries(tmp_path / "absent.json", [1]) == {}


def child(tmp_path: Path, free_mib: int, *, listed: bool = True) -> Calibration:
    """A model measured on the CPU by a child that finds a library of GPUs; its key expects CUDA."""
    fake_nvml.build_library(tmp_path, free_mib=free_mib, listed=listed)
    request = CalibrationRequest(
        make_key(providers=(cuda.CUDA, CPU)),
        onnx_models.linear(tmp_path / "m.onnx", width=30, outputs=5).absolute(),
        "m",
        slots=2,
        memory_bytes=2 << 30,
        work_s=1.5,
        providers=[CPU],
    )
    variables = {**VARIABLES, "LD_LIBRARY_PATH": str(tmp_path)}
    return CalibrationProcess(request, 60, variables=variables).run()


@pytest.mark.parametrize("listed", [True, False])
def test_a_calibration_with_a_gpu(tmp_path: Path, *, listed: bool) -> None:
    """Its memory before the load, after it and at the burst's peak, by process or by what the GPU has lost."""
    record = child(tmp_path, 8192, listed=listed)

    assert (record.origin, record.reached, record.fits) == ("measured", "all", True)
    assert record.device_memory_bytes == int(8192 * 0.9 * MIB) + 1
    least, most = (100, 130) if listed else (1, 30)
    assert least * MIB <= record.device_session_bytes <= most * MIB
    # The library finds 1 MiB more at each look.
    assert 2 * MIB <= record.device_burst_bytes < 500 * MIB
    assert (record.cpu_node_share, record.cpu_operators) == (1, ("MatMul",))
    assert 0 < record.cpu_time_share <= 1
    assert from_json(to_json(record)) == record


def test_a_gpu_that_is_too_small(tmp_path: Path) -> None:
    """A model that fits the container and not the GPU does not fit, and the reason has both figures."""
    record = child(tmp_path, 405)

    assert record.device_memory_bytes == 105 * MIB
    assert (record.reached, record.fits, record.limited) == ("all", False, True)
    assert "MiB of the GPU's 105 MiB" in record.reason


@pytest.mark.parametrize(
    ("entry", "value", "words"),
    [
        ("cpu_time_share", 1.5, "a share of 0 to 1"),
        ("cpu_node_share", -0.1, "a share of 0 to 1"),
        ("cpu_node_share", True, "a share of 0 to 1"),
        ("cpu_operators", "NonZero", "a list of names"),
        ("cpu_operators", ["a\n"], "a line"),
        ("device_session_bytes", -1, "a whole number"),
        ("device_memory_bytes", 1.5, "a whole number"),
    ],
)
def test_a_forged_record_is_refused(entry: str, value: Any, words: str) -> None:
    document = {**json.loads(to_json(make())), entry: value}

    with pytest.raises(CalibrationError, match=f"{entry}: expected {words}"):
        from_json(json.dumps(document))
