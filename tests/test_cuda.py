"""What follows from a GPU for sessions, slots, terms and words, as far as that shows without one."""

import dataclasses
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto

import onnx_models
import onnx_serve.machine as machine_module
import value_models
from calibrations import MIB, make, make_key
from codec_laws import signature
from fake_nvml import FakeLibrary
from onnx_serve import cuda
from onnx_serve.calibration_files import store_calibration
from onnx_serve.calibration_record import Calibration
from onnx_serve.errors import InferenceError, ModelError, OutOfMemory
from onnx_serve.machine import Machine, read_machine
from onnx_serve.model import SessionOptions, _arena, load_model
from onnx_serve.model_files.model_check import check_model_file
from onnx_serve.model_files.model_folder import find_models
from onnx_serve.nvml import Gpu, Nvml
from onnx_serve.ort_values import _device_of
from onnx_serve.repository import Repository
from onnx_serve.run_errors import one_line, run_error
from onnx_serve.settings import Settings
from onnx_serve.sizing import Sizing
from onnx_serve.tensors import DataType
from onnx_serve.tuning import choose_slots, choose_threads, key_of, make_plan, runs_on_cuda

GIB = 1 << 30
CPU = "CPUExecutionProvider"
ON_CUDA = (cuda.CUDA, CPU)
T4 = Gpu(0, "Tesla T4", "GPU-1", 16 * GIB, 10 * GIB, (7, 5))
FULL = Gpu(1, "Tesla T4", "GPU-2", 16 * GIB, 100 * MIB, (7, 5))
MODEL = signature(("x", "float", ["N", 30]), outputs=[("y", "float", ["N", 3])])


def machine_with(*gpus: Gpu, cpus: int = 8, root: Path = Path("/")) -> Machine:
    return Machine(cpus, cpus, None, 1 << 34, 1 << 34, (), root, lambda: list(gpus))


def settings(**values: Any) -> Settings:
    return dataclasses.replace(Settings(), **values)


@pytest.fixture
def with_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where onnxruntime-gpu is installed."""
    folder = tmp_path / "packages/onnxruntime_gpu-1.26.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.26.0\n")
    monkeypatch.syspath_prepend(str(folder.parent))


@pytest.mark.parametrize(
    ("free", "budget"),
    [
        pytest.param(10 * GIB, 9 * GIB, id="a tenth is left"),
        pytest.param(2000 * MIB, 1700 * MIB, id="300 MiB are left"),
        pytest.param(100 * MIB, 64 * MIB, id="a full gpu"),
        pytest.param(0, 64 * MIB, id="nothing left"),
    ],
)
def test_budget_of_the_arena(free: int, budget: int) -> None:
    assert cuda.budget_bytes(dataclasses.replace(T4, free_bytes=free)) == budget


@pytest.mark.parametrize(
    ("given", "gpus", "expected"),
    [
        pytest.param(None, [], {"arena_extend_strategy": "kSameAsRequested"}, id="no gpu is known"),
        pytest.param(
            {}, [T4], {"arena_extend_strategy": "kSameAsRequested", "gpu_mem_limit": 9 * GIB}, id="defaults"
        ),
        pytest.param(
            {cuda.CUDA: {"device_id": "1"}},
            [T4, FULL],
            {"arena_extend_strategy": "kSameAsRequested", "gpu_mem_limit": 64 * MIB, "device_id": "1"},
            id="of the gpu that was chosen",
        ),
        pytest.param(
            {cuda.CUDA: {"gpu_mem_limit": 5, "arena_extend_strategy": "kNextPowerOfTwo"}},
            [T4],
            {"arena_extend_strategy": "kNextPowerOfTwo", "gpu_mem_limit": 5},
            id="the operator's win",
        ),
        pytest.param(
            {cuda.CUDA: {"device_id": 7, "cudnn_conv_algo_search": "DEFAULT"}},
            [T4],
            {"arena_extend_strategy": "kSameAsRequested", "device_id": 7, "cudnn_conv_algo_search": "DEFAULT"},
            id="a gpu that nobody knows has no limit",
        ),
    ],
)  # fmt: skip
def test_options_of_the_provider(given: Any, gpus: list[Gpu], expected: dict[str, Any]) -> None:
    assert cuda.with_defaults(given, gpus)[cuda.CUDA] == expected


def test_other_providers_keep_theirs_and_nothing_given_is_changed() -> None:
    given = {CPU: {"a": "1"}, cuda.CUDA: {"b": "2"}}

    assert cuda.with_defaults(given, [T4])[CPU] == {"a": "1"}
    assert given == {CPU: {"a": "1"}, cuda.CUDA: {"b": "2"}}


def test_a_session_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where onnxruntime says that it has CUDA; none is here, so the session that is made has the CPU only."""
    asked: list[Any] = []
    session = ort.InferenceSession

    def open_session(path: str, options: Any, *, providers: list[Any], **others: Any) -> Any:
        asked.append(providers)
        return session(path, options, providers=[CPU])

    monkeypatch.setattr(machine_module, "NVML", Nvml(FakeLibrary))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(ON_CUDA))
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(ort, "InferenceSession", open_session)
    load_model(onnx_models.linear(tmp_path / "m.onnx"), "m", SessionOptions())
    with pytest.raises(ModelError, match="CUDAExecutionProvider could not be started"):
        load_model(onnx_models.linear(tmp_path / "m.onnx"), "m", SessionOptions(ON_CUDA))

    options = {"arena_extend_strategy": "kSameAsRequested", "gpu_mem_limit": 9 * GIB}
    assert asked == 2 * [[(cuda.CUDA, options), (CPU, {})]]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        pytest.param(
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. "
            "Name:'Conv_111' Status Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* "
            "onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to allocate "
            "memory for requested buffer of size 104857600",
            ": Conv asked for 100 MiB",
            id="the arena, from the device",
        ),
        pytest.param(
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Cast node. Name:'c' Status "
            "Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:354 void* onnxruntime::BFCArena::"
            "AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Available memory of 34699008 is smaller than "
            "requested bytes of 945041920",
            "901 MiB of which 33 MiB are left",
            id="the arena, over its limit",
        ),
        pytest.param(
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: /onnxruntime_src/"
            "onnxruntime/core/providers/cuda/cuda_call.cc:129 CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; "
            "expr=cudaMalloc((void**)&p, size);",
            "CUDA failure 2: out of memory",
            id="cuda",
        ),
        pytest.param(
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Gemm node. Name:'fc1' Status "
            "Message: cuda_call.cc:114 CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=h",
            "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
            id="cublas",
        ),
        pytest.param(
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node. Name:'c' Status "
            "Message: CUDNN failure 4003: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0",
            "CUDNN failure 4003",
            id="cudnn",
        ),
    ],
)
def test_words_for_memory_of_a_device(message: str, said: str) -> None:
    """They make the engine halve a run, and not fail it. As in https://github.com/microsoft/onnxruntime/issues."""
    error = run_error(one_line(RuntimeError(message)))

    assert isinstance(error, OutOfMemory)
    assert said in str(error)


def test_a_long_name_of_a_node_hides_no_cause() -> None:
    message = f"Non-zero status code returned while running Conv node. Name:'{'/layer' * 90}' Status Message: Failed to allocate memory for requested buffer of size 8"

    assert isinstance(run_error(one_line(RuntimeError(message))), OutOfMemory)


@pytest.mark.parametrize(
    ("providers", "options", "device", "arena"),
    [
        ([CPU], {CPU: {}}, ("cpu", 0), ""),
        (list(ON_CUDA), {cuda.CUDA: {"device_id": "3"}, CPU: {}}, ("cuda", 3), "gpu:3"),
        (list(ON_CUDA), {cuda.CUDA: {}, CPU: {}}, ("cuda", 0), "gpu:0"),
    ],
)
def test_where_a_session_computes(
    providers: list[str], options: dict[str, Any], device: tuple[str, int], arena: str
) -> None:
    """In the words of bindings, and of the option that gives an arena's memory back."""
    session = SimpleNamespace(get_providers=lambda: providers, get_provider_options=lambda: options)

    assert _device_of(session) == device
    assert _arena(session) == arena


def test_a_device_that_fails_is_not_short_of_memory() -> None:
    message = "Non-zero status code returned while running Conv node. Status Message: CUDA failure 700: an illegal memory access was encountered ; GPU=0"

    assert type(run_error(one_line(RuntimeError(message)))) is InferenceError


@pytest.mark.parametrize(
    ("providers", "gpus", "expected"),
    [
        ("auto", [T4], True),
        ("auto", [], False),
        (ON_CUDA, [], True),
        ((CPU,), [T4], False),
        ((CPU, cuda.CUDA), [T4], False),
    ],
)
@pytest.mark.usefixtures("with_package")
def test_whether_a_model_will_run_on_a_gpu(
    tmp_path: Path, providers: Any, gpus: list[Gpu], expected: Any
) -> None:
    machine = machine_with(*gpus, root=tmp_path)

    assert runs_on_cuda(settings(providers=providers), machine) is expected


def test_without_the_package_auto_is_the_cpu() -> None:
    assert not runs_on_cuda(settings(), machine_with(T4))


@pytest.mark.parametrize(("visible", "expected"), [(None, True), ("0", True), ("", False), (" -1 ", False)])
def test_a_driver_whose_gpus_nobody_can_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: Any
) -> None:
    """As where the container has CUDA and not NVML; an empty variable hides them all."""
    file = tmp_path / "proc/driver/nvidia/version"
    file.parent.mkdir(parents=True)
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert machine_with(root=tmp_path).has_gpu is expected
    assert machine_with(T4, root=tmp_path / "other").has_gpu
    assert not machine_with(root=tmp_path / "other").has_gpu


@pytest.mark.parametrize(
    ("values", "cpus", "calibration", "expected"),
    [
        ({}, 8, None, (2, 4)),
        ({}, 1, None, (2, 1)),
        ({}, 8, make(slots=1), (1, 8)),
        ({}, 8, make(slots=8), (2, 4)),
        ({"slots": 5}, 8, None, (5, 1)),
        ({"intra_op_threads": 3}, 8, None, (2, 3)),
        ({"objective": "latency"}, 8, None, (2, 8)),
    ],
)
def test_two_streams(
    values: dict[str, Any], cpus: int, calibration: Calibration | None, expected: tuple[int, int]
) -> None:
    """Whatever the processors, which share what stays with them."""
    chosen, machine = settings(providers=ON_CUDA, **values), machine_with(T4, cpus=cpus)
    slots = choose_slots(chosen, machine, calibration)

    assert (slots, choose_threads(chosen, machine, slots, calibration)) == expected


def test_gpus_are_described(tmp_path: Path) -> None:
    lines = read_machine(tmp_path, gpus=lambda: [T4, FULL]).describe()

    assert [line for line in lines if line.startswith("GPU")] == [
        "GPU 0: Tesla T4, compute capability 7.5, 10240 MiB free of 16384 MiB",
        "GPU 1: Tesla T4, compute capability 7.5, 100 MiB free of 16384 MiB",
    ]
    assert not any(line.startswith("GPU") for line in read_machine(tmp_path, gpus=list).describe())


def test_a_key_names_the_gpu(tmp_path: Path) -> None:
    """Figures of one GPU say nothing of another; free memory is no part of it."""
    onnx_models.linear(tmp_path / "model.onnx")
    file = find_models(tmp_path, default_model=None).models[0]
    summary = check_model_file(file, tmp_path, allow_links=False)

    def key(gpu: Gpu, **values: Any) -> Any:
        return key_of(file, summary, settings(**values), machine_with(gpu))

    other = dataclasses.replace(T4, name="NVIDIA A10G")
    busy = dataclasses.replace(T4, free_bytes=GIB)
    assert key(T4, providers=ON_CUDA).providers == ON_CUDA
    assert key(T4, providers=ON_CUDA) == key(busy, providers=ON_CUDA)
    assert key(T4, providers=ON_CUDA) != key(other, providers=ON_CUDA)
    assert key(T4, providers=(CPU,)) == key(other, providers=(CPU,))


@pytest.mark.usefixtures("with_package")
def test_the_key_of_auto_names_what_will_run(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "model.onnx")
    file = find_models(tmp_path, default_model=None).models[0]
    summary = check_model_file(file, tmp_path, allow_links=False)

    assert key_of(file, summary, settings(), machine_with(T4)).providers == ON_CUDA
    assert key_of(file, summary, settings(), machine_with(root=tmp_path)).providers == (CPU,)


ON_GPU = make(
    key=make_key(providers=ON_CUDA),
    device_memory_bytes=2000 * MIB,
    device_session_bytes=500 * MIB,
    device_run_row_bytes=10 * MIB,
    device_burst_bytes=100 * MIB,
    cpu_node_share=0.25,
    cpu_time_share=0.5,
    cpu_operators=("NonZero", "Loop"),
)


@pytest.mark.parametrize(
    ("changes", "slots", "rows", "grown", "fits"),
    [
        pytest.param({}, 2, 2, 0, True, id="plenty"),
        pytest.param({}, 2, 64, 0, True, id="just"),
        pytest.param({}, 2, 65, 0, False, id="by the arena"),
        pytest.param({}, 2, 2, 650 * MIB, False, id="by what was seen"),
        pytest.param({}, 1, 2, 650 * MIB, True, id="on one slot"),
        pytest.param({"device_warm_up_bytes": 100 * MIB}, 2, 65, 0, True, id="with what the warm-up left"),
        pytest.param({"device_memory_bytes": 0}, 99, 9999, 1 << 40, True, id="no gpu"),
    ],
)
def test_what_fits_a_gpu(changes: dict[str, Any], slots: int, rows: int, grown: int, *, fits: bool) -> None:
    assert dataclasses.replace(ON_GPU, **changes).fits_device(slots, rows, grown) is fits


def test_a_record_is_within_both_budgets() -> None:
    assert ON_GPU.within_budget
    assert ON_GPU.device_activation_bytes == 100 * MIB
    assert not dataclasses.replace(ON_GPU, device_session_bytes=1900 * MIB).within_budget
    assert not dataclasses.replace(ON_GPU, session_bytes=ON_GPU.memory_bytes).within_budget


def sizing_of(folder: Path, gpu: Gpu, **values: Any) -> Sizing:
    file = find_models(folder, default_model=None).models[0]
    summary = check_model_file(file, folder, allow_links=False)
    chosen = settings(model_dir=folder, providers=ON_CUDA, **values)
    return Sizing(file, summary, chosen, machine_with(gpu), root=folder)


def test_terms_and_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The device's figures stand beside the process's, and what stays on the CPU is named."""
    onnx_models.linear(tmp_path / "model.onnx")
    repository = Repository(settings(model_dir=tmp_path), read_machine())
    repository.load()
    sizing = sizing_of(tmp_path, T4)
    with repository.lease(None) as served, caplog.at_level(logging.WARNING):
        guessed = {term.name: term.value for term in sizing.conclude(served).terms}
        assert "of a run's time is spent on the CPU" not in caplog.text
        sizing._calibration = ON_GPU
        served.inference.engine.plan = make_plan(settings(), MODEL, 2, ON_GPU, 0)
        answer = sizing.conclude(served)
    repository.close()

    measured = {term.name: term for term in answer.terms}
    assert guessed["device_free_bytes"] == measured["device_free_bytes"].value == 10 * GIB
    assert "device_session_bytes" not in guessed
    assert measured["device_session_bytes"].value == 500 * MIB
    assert measured["device_runs_bytes"].value == 123 * MIB
    assert (measured["cpu_node_share"].value, measured["cpu_time_share"].value) == (0.25, 0.5)
    assert "NonZero, Loop" in measured["cpu_time_share"].source
    assert "model: 50 % of a run's time is spent on the CPU, not on the GPU, most of it in NonZero, Loop" in (
        caplog.text
    )


def test_a_calibration_under_more_free_memory_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    onnx_models.linear(tmp_path / "model.onnx")
    caplog.set_level(logging.INFO)
    cache = tmp_path / "cache"
    found = {}
    for gpu in (T4, dataclasses.replace(T4, free_bytes=GIB // 2)):
        sizing = sizing_of(tmp_path, gpu, calibration_cache=str(cache))
        store_calibration(cache, dataclasses.replace(ON_GPU, key=sizing._key))
        found[gpu.free_bytes] = sizing.prepare(measure=False).calibration
    assert found[10 * GIB] is not None
    assert found[GIB // 2] is None
    assert "the GPU had more free memory then" in caplog.text


# On the CPU's arena, which is given the GPU's manner of growing: longer and longer feeds leave it in pieces.
TIDYING = """
import sys
from pathlib import Path
import numpy as np
import onnxruntime as ort
import onnx_models
from onnx import helper
from onnx_serve.errors import OutOfMemory
from onnx_serve.model import _Runner, _spec
from onnx_serve.ort_values import make_call
from onnx_serve.tensors import RowAxis, Signature

folder, arena, io_binding = sys.argv[1:]
nodes = [
    helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
    helper.make_node("MatMul", ["x", "t"], ["squares"]),
    helper.make_node("Softmax", ["squares"], ["shares"]),
    helper.make_node("ReduceSum", ["shares"], ["y"], keepdims=1),
]
values = [onnx_models.tensor(name, onnx_models.FLOAT, shape) for name, shape in (("x", ["S", 4]), ("y", [1, 1]))]
path = onnx_models.save(Path(folder) / "m.onnx", nodes, values[:1], values[1:])
memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
same_as_requested = {"max_mem": 48 << 20, "arena_extend_strategy": 1, "initial_chunk_size_bytes": -1,
                     "max_dead_bytes_per_chunk": -1}
ort.create_and_register_allocator(memory, ort.OrtArenaCfg(same_as_requested))
options = ort.SessionOptions()
options.intra_op_num_threads, options.enable_mem_pattern, options.log_severity_level = 1, False, 4
options.add_session_config_entry("session.use_env_allocators", "1")
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
declared = Signature(tuple(map(_spec, session.get_inputs())), tuple(map(_spec, session.get_outputs())), RowAxis.NONE)
runner = _Runner(make_call(session, declared, ort.OrtValue, io_binding=bool(int(io_binding))), arena)
for length in (*range(100, 1800, 50), 9000, 1750):
    feed = {"x": np.ones((length, 4), np.float32)}
    try:
        outputs = runner.run_watched(feed, lambda: False) if length % 100 else runner.run(feed)
        [[y]] = outputs["y"]
        print(length, "right" if abs(y / length - 1) < 0.01 else y)
    except OutOfMemory as ex:
        print(length, "refused" if "MiB are left" in str(ex) else ex)
"""


@pytest.mark.parametrize("io_binding", [0, 1])
@pytest.mark.parametrize(
    ("arena", "refused"), [pytest.param("", True, id="as it is"), pytest.param("cpu:0", False, id="tidied")]
)
def test_an_arena_in_pieces_is_tidied_before_a_run_is_refused(
    tmp_path: Path, arena: str, io_binding: int, *, refused: bool
) -> None:
    """1750 squares are 12 MiB, twice, of 48 MiB: too much for an arena that has kept what smaller ones needed."""
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    command = [sys.executable, "-c", TIDYING, str(tmp_path), arena, str(io_binding)]
    said = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert said.returncode == 0, said.stderr

    answers = dict(line.split() for line in said.stdout.splitlines())
    assert answers.pop("9000") == "refused"
    assert answers["1000"] == "right"
    assert set(answers.values()) == ({"right", "refused"} if refused else {"right"})
    assert answers["1750"] == ("refused" if refused else "right")


NUMBERS = [dtype for dtype in DataType if dtype.is_native and dtype is not DataType.STRING]


@pytest.mark.parametrize("dtype", NUMBERS, ids=lambda dtype: dtype.name)
def test_bound_inputs_and_outputs_change_no_value(tmp_path: Path, dtype: DataType) -> None:
    """On the CPU: every type and layout of array, and every shape, down to no rows at all."""
    path = onnx_models.identity(tmp_path / "m.onnx", dtype.onnx)
    plain = load_model(path, "m", SessionOptions(providers=[CPU]))
    bound = load_model(path, "m", SessionOptions(providers=[CPU], io_binding=True))
    values = np.arange(40).astype(dtype.numpy)
    for x in (
        values.reshape(10, 4),
        values.reshape(10, 4)[::3],
        np.asfortranarray(values.reshape(10, 4)),
        values.reshape(10, 4)[:0],
        np.broadcast_to(values[:4], (3, 4)),
    ):
        expected: Any = plain.run({"x": x})["y"]
        y: Any = bound.run({"x": x})["y"]
        assert (y.dtype, y.shape) == (expected.dtype, x.shape)
        assert y.tobytes() == expected.tobytes() == np.ascontiguousarray(x).tobytes()


def test_outputs_of_a_bound_run_are_the_callers_own(tmp_path: Path) -> None:
    """Neither a later run nor the end of the session touches them."""
    path = onnx_models.linear(tmp_path / "m.onnx")
    model = load_model(path, "m", SessionOptions(providers=[CPU], io_binding=True))
    first: Any = model.run({"x": np.eye(4, dtype=np.float32)})["y"]
    kept = first.copy()
    model.run({"x": np.ones((4, 4), np.float32)})
    del model

    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("save", "feed"),
    [
        pytest.param(onnx_models.two_inputs, None, id="several inputs and outputs"),
        pytest.param(value_models.scale, None, id="an input with a default"),
        pytest.param(lambda path: onnx_models.identity(path, shape=[]), {"x": np.array(3, np.float32)}, id="a scalar"),
        pytest.param(lambda path: onnx_models.identity(path, TensorProto.STRING, ["N"]), {"x": np.array(["a", "ä"], object)}, id="strings"),
        pytest.param(onnx_models.zipmap, None, id="maps"),
        pytest.param(value_models.split, None, id="a sequence"),
        pytest.param(value_models.has_value, {"x": None}, id="an optional"),
        pytest.param(lambda path: value_models.there_and_back(path, TensorProto.BFLOAT16), None, id="a type that NumPy has not"),
    ],
)  # fmt: skip
def test_binding_is_for_plain_tensors_and_others_run_as_ever(
    tmp_path: Path, save: Any, feed: dict[str, Any] | None
) -> None:
    path = save(tmp_path / "m.onnx")
    plain = load_model(path, "m", SessionOptions(providers=[CPU]))
    bound = load_model(path, "m", SessionOptions(providers=[CPU], io_binding=True))
    if feed is None:
        feed = {
            spec.name: np.ones([2 if not isinstance(size, int) else size for size in spec.shape], spec.dtype.numpy)
            for spec in plain.signature.inputs
        }  # fmt: skip

    for name, expected in plain.run(feed).items():
        assert repr(bound.run(feed)[name]) == repr(expected)


def test_a_bound_run_fails_like_another(tmp_path: Path) -> None:
    path = onnx_models.lookup(tmp_path / "m.onnx")
    errors = []
    for io_binding in (False, True):
        model = load_model(path, "m", SessionOptions(providers=[CPU], io_binding=io_binding))
        with pytest.raises(Exception, match="out of data bounds") as caught:
            model.run({"i": np.array([99])})
        errors.append((type(caught.value), str(caught.value)))
        assert model.run({"i": np.array([9])})["y"].shape == (1, 2)  # type: ignore[union-attr]
    assert errors[0] == errors[1]
