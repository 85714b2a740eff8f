"""Torch artifacts with their verdicts: a graph that answers as the original does, or a refusal with a reason."""

import functools
import io
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.errors import ConversionError, ConversionRefused, MissingExtra
from onnx_serve.model import SessionOptions, load_model
from onnx_serve.model_files.model_check import check_model_file
from onnx_serve.model_files.model_folder import find_models
from onnx_serve.tensors import Array, RowAxis, Tensors, format_shape

try:
    import onnx
    import torch
    from torch import nn

    import torch_models as zoo
    from converters import torch as converter
    from converters.artifact import detect
    from converters.conversion import Conversion, Request, finish, judge, load_graph
    from converters.torch_axes import Axes
    from converters.torch_exporters import CAPTURE, TRACE, name_outputs
except (ModuleNotFoundError, MissingExtra) as ex:
    pytest.skip(f"torch models cannot be converted here: {ex}", allow_module_level=True)

pytestmark = [
    # torch's own, of features that it means to drop: TorchScript, tree specifications.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.*were assigned during export:UserWarning"),
]

FREE = torch.export.Dim.DYNAMIC
CODE = Path(zoo.__file__).parent


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(20240607)
    torch.set_num_threads(1)  # tiny modules: threads would only wait for each other


def floats(*shape: int) -> Array:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def codes(*shape: int, below: int = 10) -> Array:
    return np.random.default_rng(7).integers(0, below, shape)


PADDING = np.array([[False] * 5, [False, False, False, True, True], [False, False, False, False, True]])


@dataclass(frozen=True)
class Sound:
    """An original that converts.

    Attributes:
        make: The original.
        sample: Its inputs.
        exporter: The one that succeeds.
        interface: Inputs and outputs of the graph.
        dynamic: What the user names.
        rows: How the server sees its rows.
        note: A part of some note, or empty.
    """

    make: Callable[[], Any]
    sample: Tensors
    exporter: str
    interface: str
    dynamic: tuple[str, ...] = ()
    rows: RowAxis = RowAxis.FREE
    note: str = ""


def scripted() -> Any:
    return torch.jit.script(zoo.Scripted())


def frozen() -> Any:
    return torch.jit.freeze(torch.jit.script(zoo.Perceptron().eval()))


def traced() -> Any:
    return torch.jit.trace(zoo.Lstm().eval(), torch.ones(2, 5, dtype=torch.int64))


def exported(module: Any, *args: Any, free: Any = None, **kwargs: Any) -> Any:
    return torch.export.export(module.eval(), args, kwargs, dynamic_shapes=free)


def exported_nested(free: Any = FREE) -> Any:
    x = torch.ones(3, 4)
    shapes = {"pair": {"a": {0: free}, "b": {0: free}}, "power": None, "shift": {0: free}}
    return exported(zoo.Nested(), {"a": x, "b": 2 * x}, 2, shift=3 * x, free=shapes)


SOUND = {
    "perceptron, one row": Sound(zoo.Perceptron, {"x": floats(1, 4)}, CAPTURE, "x[N, 4] -> output[N, 3]"),
    "convnet in training mode": Sound(
        lambda: zoo.ConvNet().train(), {"image": floats(2, 3, 8, 8)}, CAPTURE, "image[N, 3, 8, 8] -> output[N, 2]"
    ),
    "u-net": Sound(zoo.UNet, {"x": floats(2, 3, 8, 8)}, CAPTURE, "x[N, 3, 8, 8] -> output[N, 1, 8, 8]"),
    "u-net of any size": Sound(
        zoo.UNet, {"x": floats(2, 3, 8, 12)}, CAPTURE, "x[batch, 3, height, width] -> output[batch, 1, height, width]",
        dynamic=("x:0=batch", "x:2=height", "x:3=width"),
    ),
    "lstm over embeddings": Sound(
        zoo.Lstm, {"ids": codes(2, 5)}, TRACE, "ids[N, length] -> output_0[N, 3], output_1[N, length, 12]",
        note="not with the torch.export exporter",
    ),
    "gru, dictionary": Sound(
        zoo.Gru, {"x": floats(3, 6, 5)}, TRACE, "x[N, length, 5] -> states[N, length, 6], last[N, 2, 6]"
    ),
    "lstm, batch on dimension 1": Sound(
        lambda: nn.LSTM(4, 3), {"input": floats(5, 2, 4)}, TRACE,
        "input[batch, time, 4] -> output_0[batch, time, 3], output_1_0[batch, 1, 3], output_1_1[batch, 1, 3]",
        dynamic=("input:1=batch", "input:0=time"), note="the batch comes first",
    ),
    "lstm without rows": Sound(
        lambda: nn.LSTM(4, 3), {"input": floats(5, 2, 4)}, TRACE,
        "input[size, length, 4] -> output_0[size, length, 3], output_1_0[1, length, 3], output_1_1[1, length, 3]",
        rows=RowAxis.NONE, note="does not count rows",
    ),
    "transformer with padding": Sound(
        zoo.Encoder, {"x": floats(3, 5, 16), "padding": PADDING}, CAPTURE,
        "x[N, length, 16], padding[N, length] -> output[N, 16]",
    ),
    "transformer on the fast path": Sound(
        zoo.Positions, {"x": floats(3, 5, 16), "padding": PADDING}, CAPTURE,
        "x[N, length, 16], padding[N, length] -> output[N, length, 16]", note="fast path",
    ),
    "cross attention, two lengths": Sound(
        zoo.CrossAttention, {"query": floats(2, 5, 16), "key": floats(2, 6, 16)}, CAPTURE,
        "query[N, length, 16], key[N, length_2, 16] -> output_0[N, length, 16], output_1[N, length, length_2]",
    ),
    "embedding of a fixed width": Sound(zoo.Bag, {"codes": codes(2, 3)}, CAPTURE, "codes[N, 3] -> output[N, 2]"),
    "int32 codes": Sound(zoo.Bag, {"codes": codes(2, 3).astype(np.int32)}, CAPTURE, "codes[N, 3] -> output[N, 2]"),
    "two inputs by keyword": Sound(
        zoo.TwoTowers, {"item": floats(2, 3), "user": floats(2, 4)}, CAPTURE, "user[N, 4], item[N, 3] -> output[N]"
    ),
    "three inputs": Sound(
        zoo.TwoTowers, {"user": floats(2, 4), "bias": floats(2), "item": floats(2, 3)}, CAPTURE,
        "user[N, 4], bias[N], item[N, 3] -> output[N]",
    ),
    "every structure of answers": Sound(
        zoo.Structured, {"x": floats(2, 4)}, CAPTURE,
        "x[N, 4] -> x_output[N, 4], pair_low[N], pair_high[N], answer_logits[N, 4], answer_hidden_0[N, 4], "
        "answer_hidden_1[N, 4]",
    ),
    "any number of inputs": Sound(
        zoo.Sum, {"a": floats(2, 4), "b": floats(2, 4)}, CAPTURE, "a[N, 4], b[N, 4] -> output[N, 4]"
    ),
    "convolution over time": Sound(
        lambda: nn.Conv1d(3, 4, 3, padding=1), {"input": floats(2, 3, 9)}, CAPTURE,
        "input[N, 3, length] -> output[N, 4, length]",
    ),
    "learned positions": Sound(
        zoo.Learned, {"x": floats(2, 5, 4)}, CAPTURE, "x[N, length, 4] -> output[N, length, 4]", note="at most 32"
    ),
    "branch on the length": Sound(
        zoo.Branching, {"x": floats(2, 5, 4)}, CAPTURE, "x[N, 5, 4] -> output[N, 4]", note="not with the TorchScript"
    ),
    "three rows only": Sound(
        zoo.ThreeRows, {"x": floats(3, 4)}, CAPTURE, "x[3, 4] -> output[3, 2]", rows=RowAxis.FIXED, note="no dimension"
    ),
    "as many answers as steps": Sound(
        zoo.Steps, {"x": floats(2, 3, 4)}, CAPTURE, "x[N, 3, 4] -> output_0[N, 2], output_1[N, 2], output_2[N, 2]"
    ),
    "codes that go together": Sound(
        zoo.SumOfCodes, {"codes": np.array([[0, 9], [9, 0], [1, 2]])}, CAPTURE, "codes[N, 2] -> output[N, 4]"
    ),
    "numbers that go together": Sound(
        zoo.LogOfDifference, {"x": np.array([[2, 1], [1, 0], [9, 8]], np.float32)}, CAPTURE, "x[N, 2] -> output[N]"
    ),
    "as many answers as positive values": Sound(
        zoo.Positive, {"x": floats(3, 4)}, CAPTURE, "x[size, 4] -> output[u0]", rows=RowAxis.NONE
    ),
    "one answer for all rows": Sound(
        zoo.Mean, {"x": floats(3, 4)}, CAPTURE, "x[size, 4] -> output[1, 4]", rows=RowAxis.NONE
    ),
    "float64 sample, float32 weights": Sound(
        zoo.Perceptron, {"x": floats(2, 4).astype(np.float64)}, CAPTURE, "x[N, 4] -> output[N, 3]", note="float64"
    ),
    "float64 weights": Sound(
        lambda: zoo.Perceptron().double(), {"x": floats(2, 4).astype(np.float64)}, CAPTURE, "x[N, 4] -> output[N, 3]"
    ),
    "big-endian sample": Sound(zoo.Perceptron, {"x": floats(2, 4).astype(">f4")}, CAPTURE, "x[N, 4] -> output[N, 3]"),
    "scripted, control flow on values": Sound(
        scripted, {"x": floats(2, 4)}, TRACE, "x[N, 4] -> scaled[N, 3], sum[N]"
    ),
    "scripted, an argument left out": Sound(
        scripted, {"x": floats(2, 4), "shift": floats(2, 3)}, TRACE,
        "x[N, 4], shift[N, 3] -> scaled[N, 3], sum[N]",
    ),
    "scripted lstm, batch on dimension 1": Sound(
        lambda: torch.jit.script(zoo.TimeFirst()), {"x": floats(5, 2, 4)}, TRACE,
        "x[batch, time, 4] -> output[batch, time, 3]", dynamic=("x:1=batch", "x:0=time"),
    ),
    "frozen": Sound(frozen, {"x": floats(2, 4)}, TRACE, "x[N, 4] -> output[N, 3]"),
    "traced lstm": Sound(
        traced, {"ids": codes(2, 5)}, TRACE, "ids[N, length] -> output_0[N, 3], output_1[N, length, 12]"
    ),
    "exported": Sound(
        lambda: exported(zoo.Perceptron(), torch.ones(3, 4), free=({0: FREE},)), {"x": floats(5, 4)}, CAPTURE,
        "x[N, 4] -> output[N, 3]",
    ),
    "exported at three rows": Sound(
        lambda: exported(zoo.Perceptron(), torch.ones(3, 4)), {"x": floats(3, 4)}, CAPTURE, "x[3, 4] -> output[3, 3]",
        rows=RowAxis.FIXED, note="no dimension",
    ),
    "exported up to a length": Sound(
        lambda: exported(zoo.Branching(), torch.ones(3, 5, 4), free=({0: FREE, 1: FREE},)), {"x": floats(2, 5, 4)},
        CAPTURE, "x[N, length, 4] -> output[N, 4]", note="at most 10",
    ),
    "exported, nested arguments": Sound(
        exported_nested, {"pair_a": floats(2, 4), "pair_b": floats(2, 4), "shift": floats(2, 4)}, CAPTURE,
        "pair_a[N, 4], pair_b[N, 4], shift[N, 4] -> output[N, 4]",
    ),
    "exported lstm, batch on dimension 1": Sound(
        lambda: exported(nn.LSTM(4, 3), torch.ones(5, 3, 4), free=({1: FREE},)), {"input": floats(5, 2, 4)},
        CAPTURE, "input[batch, 5, 4] -> output_0[batch, 5, 3], output_1_0[batch, 1, 3], output_1_1[batch, 1, 3]",
        dynamic=("input:1=batch",),
    ),
}  # fmt: skip


def interface(converted: "Conversion") -> str:
    def shown(value: Any) -> str:
        dims = value.type.tensor_type.shape.dim
        return str(value.name) + format_shape([dim.dim_param or dim.dim_value for dim in dims])

    graph = converted.model.graph
    return f"{', '.join(map(shown, graph.input))} -> {', '.join(map(shown, graph.output))}"


def flat(result: Any) -> list[Array]:
    """The tensors of a result, in order: a witness of its own for what the converter takes apart."""
    if isinstance(result, torch.Tensor):
        return [result.numpy()]
    if isinstance(result, zoo.Answer):
        result = (result.logits, result.hidden)
    items = result.values() if isinstance(result, dict) else result
    return [array for item in items if item is not None for array in flat(item)]


@functools.cache
def converted(name: str) -> tuple[Any, Conversion]:
    """An original and its conversion, made once."""
    case = SOUND[name]
    torch.manual_seed(20240607)
    original = case.make()
    return original, converter.convert(original, case.sample, options=converter.Options(case.dynamic))


@pytest.mark.parametrize("name", SOUND)
def test_sound_artifacts_convert(name: str) -> None:
    case = SOUND[name]
    _, found = converted(name)
    assert interface(found) == case.interface
    assert found.properties["onnx_serve.exporter"] == case.exporter
    assert any(case.note in note for note in found.notes), found.notes
    report = judge(found)
    assert report.passed, list(report.lines())
    assert not report.unchecked
    assert load_graph(found.model).signature.row_axis is case.rows
    # No stack traces: they hold paths of the machine, and code.
    assert b".py" not in found.model.SerializeToString()


@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize(
    "name", ["convnet in training mode", "gru, dictionary", "every structure of answers"]
)
def test_the_graph_answers_as_torch_does(name: str, rows: int) -> None:
    """Against torch itself, without the converter's own probes and programs."""
    case = SOUND[name]
    module, found = converted(name)
    model = load_graph(found.model)
    for extra in (0, 4) if "length" in case.interface else (0,):
        feed = {}
        for input_name, array in case.sample.items():
            shape = [rows, *array.shape[1:]]
            shape[1] += extra
            feed[input_name] = np.random.default_rng(rows).standard_normal(shape).astype(np.float32)
        with torch.no_grad():
            expected = flat(module.eval()(**{key: torch.from_numpy(array) for key, array in feed.items()}))
        for actual, wanted in zip(model.run(feed).values(), expected, strict=True):
            assert isinstance(actual, np.ndarray)
            np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)


@dataclass(frozen=True)
class Unsound:
    """An original that is refused, with what the message says."""

    make: Callable[[], Any]
    sample: Any
    message: str
    error: type[Exception] = ConversionRefused
    dynamic: tuple[str, ...] = ()


X = {"x": floats(2, 4)}
UNSOUND = {
    "branch on values": Unsound(zoo.BranchOnValues, X, r'depends on the values .* at torch_models.py:\d+: "if x.sum\(\) > 0:"'),
    "loop on values": Unsound(zoo.LoopOnValues, X, r"torch_models.py:\d+.*range\(int"),
    "numpy inside": Unsound(zoo.Untraceable, X, r"torch_models.py:\d+.*x.numpy\(\)"),
    "operator that ONNX has not": Unsound(zoo.Bessel, X, "tried the torch.export exporter: .*; the TorchScript exporter: .*bessel"),
    "branch on the number of rows": Unsound(zoo.ManyRows, X, 'rows 21|"N 21"'),
    "scalar": Unsound(zoo.Scalar, X, "one number for the whole request"),
    "random": Unsound(zoo.Random, X, 'output "output" differs from one run to the next'),
    "rows in company": Unsound(zoo.Company, X, r"another answer alone .*--dynamic input:1=batch"),
    "batch on dimension 1 unsaid": Unsound(
        lambda: nn.TransformerEncoderLayer(8, 2, 16), {"src": floats(3, 2, 8)}, "another answer alone"
    ),
    "sample of another width": Unsound(zoo.Perceptron, {"x": floats(2, 5)}, r'cannot run "x" float32\[2, 5\].*2x5 and 4x8', ConversionError),
    "sample of floats for codes": Unsound(zoo.Bag, {"codes": floats(2, 3)}, "cannot run", ConversionError),
    "sample under other names": Unsound(zoo.Perceptron, {"y": floats(2, 4)}, 'missing "x"; unknown "y"', ConversionError),
    "sample that lacks an input": Unsound(zoo.TwoTowers, {"user": floats(2, 4)}, 'missing "item"', ConversionError),
    "sample for another script": Unsound(scripted, {"y": floats(2, 4)}, 'missing "x"; unknown "y"', ConversionError),
    "sample for another program": Unsound(exported_nested, X, 'unknown "x"', ConversionError),
    "sample of text": Unsound(zoo.Perceptron, {"x": np.array(["a"])}, "expected numbers", ConversionError),
    "sample of nothing": Unsound(zoo.Perceptron, {"x": floats(0, 4)}, "is empty", ConversionError),
    "no arrays": Unsound(zoo.Perceptron, {}, "expected arrays, got none", ConversionError),
    "no sample": Unsound(zoo.Perceptron, None, r'give --sample.* "x"', ConversionError),
    "answers a number": Unsound(lambda: zoo.Constant(3), X, 'answers with a int at "1"'),
    "answers bfloat16": Unsound(lambda: zoo.Constant(lambda x: x.bfloat16()), X, "bfloat16"),
    "answers complex numbers": Unsound(lambda: zoo.Constant(torch.fft.fft), X, "ONNX has none"),
    "answers nothing": Unsound(lambda: zoo.Constant(None).apply(_answer_nothing), X, "answers with nothing"),
    "fails": Unsound(lambda: zoo.Constant(lambda x: 1 / 0), X, "ZeroDivisionError", ConversionError),
    "scripted list": Unsound(lambda: torch.jit.script(zoo.First()), {"xs": floats(2, 4)}, r'"xs" .* is a List\[Tensor\]'),
    "scripted rows in company": Unsound(lambda: torch.jit.script(zoo.ScriptedBranch()), {"x": np.abs(floats(2, 4))}, "another answer alone"),
    "exported with a number as input": Unsound(
        lambda: exported(zoo.Power(), torch.ones(3, 4), 2, free=({0: FREE}, FREE)), X, '"exponent" .* is a SymIntArgument'
    ),
    "scripted without forward": Unsound(lambda: torch.jit.script(nn.LSTM(4, 3)), X, "no forward, or several"),
    "dynamic without a name": Unsound(zoo.Perceptron, X, "expected input:axis=name", ConversionError, ("x:0",)),
    "dynamic of another input": Unsound(zoo.Perceptron, X, 'one of the inputs "x", got "y"', ConversionError, ("y:0=batch",)),
    "dynamic beyond the rank": Unsound(zoo.Perceptron, X, "has 2 dimensions", ConversionError, ("x:2=batch",)),
    "dynamic where it is fixed": Unsound(
        zoo.Perceptron, X, 'runs at no other size of "width" than 4', ConversionError, ("x:0=batch", "x:1=width")
    ),
    "dynamic of several sizes": Unsound(
        zoo.TwoTowers, {"user": floats(2, 4), "item": floats(2, 3)}, "several sizes", ConversionError,
        ("user:1=width", "item:1=width"),
    ),
}  # fmt: skip


def _answer_nothing(module: Any) -> None:
    module.forward = lambda x: None


@pytest.mark.parametrize("name", UNSOUND)
def test_unsound_artifacts_are_refused_with_the_reason(name: str) -> None:
    case = UNSOUND[name]
    with pytest.raises(case.error, match=case.message) as caught:
        converter.convert(case.make(), case.sample, options=converter.Options(case.dynamic))
    assert len(str(caught.value).splitlines()) == 1


# --- Files ----------------------------------------------------------------------------------------


def write(folder: Path, name: str) -> Path:
    """An artifact by its name."""
    path = folder / name
    module = zoo.Perceptron()
    state = module.state_dict()
    checkpoint = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}
    saved = {
        "module.pt": module,
        "state.pt": state,
        "legacy.pt": state,
        "checkpoint.pt": checkpoint,
        "list.pt": [1, 2],
        "numbers.pt": {"epoch": 3},
    }
    if name == "program.pt2":
        torch.export.save(exported(module, torch.ones(3, 4), free=({0: FREE},)), path)
    elif name == "script.pt":
        torch.jit.save(torch.jit.script(module), str(path))
    elif name.endswith(".safetensors"):
        pytest.importorskip("safetensors", reason="safetensors is not installed")
        from safetensors.torch import (  # type: ignore[import-not-found,unused-ignore]  # optional  # noqa: PLC0415
            save_model,
        )

        save_model(zoo.Tied() if name.startswith("tied") else module, str(path))
    else:
        torch.save(saved[name], path, _use_new_zipfile_serialization=name != "legacy.pt")
    return path


def convert_file(
    path: Path,
    options: Mapping[str, str] | None = None,
    *,
    sample: Tensors | None = None,
    trust: bool = False,
) -> Conversion:
    file = path.with_name("sample.npz")
    if sample is not None:
        np.savez(file, x=sample["x"])
    request = Request(str(path), "torch", str(file) if sample is not None else None, trust, options or {})
    return converter.convert_file(request, detect(path))


FACTORY = {"factory": "torch_models:Perceptron", "import_path": str(CODE)}


@pytest.mark.parametrize(
    ("name", "trust", "options"),
    [
        ("program.pt2", False, {}),
        ("program.pt2", True, {}),
        ("script.pt", True, {}),
        ("module.pt", True, {"import_path": str(CODE)}),
        ("state.pt", False, FACTORY),
        ("legacy.pt", False, FACTORY),
        ("checkpoint.pt", False, FACTORY),
        ("perceptron.safetensors", False, FACTORY),
        ("tied.safetensors", False, FACTORY | {"factory": "torch_models:Tied"}),
    ],
)
def test_files_convert(tmp_path: Path, name: str, trust: bool, options: dict[str, str]) -> None:
    converted = convert_file(write(tmp_path, name), options, sample=X, trust=trust)
    assert interface(converted).startswith("x[N, 4] -> output[N, ")
    assert judge(converted).passed


REFUSED_FILES: dict[str, tuple[str, bool, dict[str, str], str]] = {
    "script untrusted": ("script.pt", False, {}, "--trust-pickle"),
    "module untrusted": ("module.pt", False, {}, "--trust-pickle .* or save module.state_dict"),
    "state without factory": ("state.pt", False, {}, "--factory module:callable"),
    "state of another module": ("state.pt", False, FACTORY | {"factory": "torch_models:UNet"}, 'missing "down.weight".*and 4 more; unknown "layers'),
    "state of other shapes": ("state.pt", False, FACTORY | {"factory": "torch_models:Wide"}, r"is \[8, 4\], not \[16, 4\]"),
    "list": ("list.pt", False, FACTORY, "expected a module or a state dict, got a list"),
    "numbers": ("numbers.pt", False, FACTORY, 'mapping has the keys "epoch"'),
    "factory of an exported program": ("program.pt2", False, FACTORY, "holds its module"),
    "factory of a module": ("module.pt", True, FACTORY, "holds its module"),
    "factory without a callable": ("state.pt", False, {"factory": "torch_models"}, "expected module:callable"),
    "factory that is missing": ("state.pt", False, FACTORY | {"factory": "torch_models:Nothing"}, "cannot be imported.*import_path"),
    "factory of no module": ("state.pt", False, FACTORY | {"factory": "torch_models:not_a_module"}, "got a int"),
    "factory that fails": ("state.pt", False, FACTORY | {"factory": "torch_models:failing"}, "no weights here"),
    "import path that is no folder": ("state.pt", False, FACTORY | {"import_path": "/nowhere"}, "the absolute path of a folder"),
    "unknown option": ("state.pt", False, {"colour": "red"}, 'got "colour"'),
    "opset of words": ("program.pt2", False, {"opset": "new"}, "expected a number"),
    "opset too old": ("program.pt2", False, {"opset": "9"}, "expected 18 to 23, got 9"),
    "dynamic": ("program.pt2", False, {"dynamic": "x:0=batch, x:1"}, 'got "x:1"'),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_FILES)
def test_files_are_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    file, trust, options, message = REFUSED_FILES[name]
    with pytest.raises(ConversionError, match=message):
        convert_file(write(tmp_path, file), options, sample=X, trust=trust)


@pytest.mark.parametrize(
    "name", ["program.pt2", "script.pt", "state.pt", "legacy.pt", "perceptron.safetensors"]
)
def test_truncated_files_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    content = path.read_bytes()
    for size in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ConversionError):
            convert_file(path, {} if name in {"program.pt2", "script.pt"} else FACTORY, sample=X, trust=True)


def test_a_module_whose_class_is_gone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "module.pt")
    monkeypatch.delattr(zoo, "Perceptron")
    with pytest.raises(ConversionError, match=r"names code that cannot be imported.*Perceptron"):
        convert_file(path, sample=X, trust=True)


def test_no_artifact_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"not a model at all")
    with pytest.raises(ConversionError, match="expected a trained model"):
        convert_file(path, sample=X)


def test_an_archive_with_code_among_its_tensors_is_refused(tmp_path: Path) -> None:
    """torch.export.load would fall back to unpickling the example with code."""
    path = write(tmp_path, "program.pt2")
    hostile = tmp_path / "hostile.pt2"
    buffer = io.BytesIO()
    torch.save(zoo.Perceptron(), buffer)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(hostile, "w") as target:
        for member in source.namelist():
            target.writestr(member, buffer.getvalue() if member.endswith(".pt") else source.read(member))
    with pytest.raises(ConversionError, match="holds more than tensors"):
        convert_file(hostile, sample=X)


def test_an_exported_program_brings_its_example(tmp_path: Path) -> None:
    converted = convert_file(write(tmp_path, "program.pt2"))
    assert converted.cases[0].probe.feed["x"].shape == (3, 4)
    nested = exported_nested()
    assert set(converter.convert(nested).cases[0].probe.feed) == {"pair_a", "pair_b", "shift"}
    nested.example_inputs = None
    with pytest.raises(ConversionError, match=r"give --sample.*pair_a"):
        converter.convert(nested)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("npy", None),
        ("csv", "a,b,c,d\n1,2,3,4\n5,6,7,8\n"),
        ("json", "[[1, 2, 3, 4], [5, 6, 7, 8]]"),
    ],
)
def test_samples_of_one_matrix_fill_the_only_input(tmp_path: Path, suffix: str, content: str | None) -> None:
    file = tmp_path / f"sample.{suffix}"
    rows = np.arange(1, 9, dtype=np.float64).reshape(2, 4)
    if content is None:
        np.save(file, rows)
    else:
        file.write_text(content)
    path = write(tmp_path, "program.pt2")
    request = Request(str(write(tmp_path, "state.pt")), "torch", str(file), options=FACTORY)
    converted = converter.convert_file(request, detect(path.with_name("state.pt")))
    np.testing.assert_array_equal(converted.cases[0].probe.feed["x"], rows)


def test_samples_without_names_fill_the_inputs_in_order() -> None:
    sample = {"arr_0": floats(2, 4), "arr_1": floats(2)}
    with pytest.raises(ConversionError, match='missing "item"'):
        converter.convert(zoo.TwoTowers(), sample)
    converted = converter.convert(zoo.TwoTowers(), sample | {"arr_2": floats(2, 3)})
    assert interface(converted) == "user[N, 4], bias[N], item[N, 3] -> output[N]"


def test_a_damaged_sample_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "state.pt")
    sample = tmp_path / "sample.npz"
    sample.write_bytes(b"PK")
    with pytest.raises(ConversionError, match="expected arrays"):
        converter.convert_file(Request(str(path), "torch", str(sample), options=FACTORY), detect(path))


def test_weights_beyond_the_limit_lie_beside_the_graph(tmp_path: Path) -> None:
    """In one file with a relative location, which the server follows inside the model's folder."""
    converted = converter.convert(
        nn.Linear(64, 64), floats(5, 64), options=converter.Options(external_bytes=0)
    )
    assert list(converted.external) == ["model.onnx.data"]
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(converted.model.SerializeToString())
    [source] = converted.external.values()
    shutil.move(source, folder / "model.onnx.data")
    shutil.rmtree(source.parent)
    found = find_models(folder, default_model=None).models[0]
    assert check_model_file(found, folder).external_data
    model = load_model(found.path, "model", SessionOptions())
    case = converted.cases[0]
    answer = model.run(case.probe.feed)["output"]
    assert isinstance(answer, np.ndarray)
    np.testing.assert_allclose(answer, case.expected["output"], rtol=1e-5, atol=1e-6)


def test_what_is_refused_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ConversionRefused):
        converter.convert(
            nn.Linear(512, 512), floats(5, 512), options=converter.Options(external_bytes=0),
            tolerances={"rtol": 0.0, "atol": 0.0},
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_a_model_folder_is_written_and_served(tmp_path: Path) -> None:
    output = tmp_path / "folder"
    report = finish(convert_file(write(tmp_path, "program.pt2"), sample=X), output)
    assert report.passed
    found = find_models(output, default_model=None).models[0]
    check_model_file(found, output)
    model = load_model(found.path, "model", SessionOptions())
    assert model.metadata["onnx_serve.exporter"] == CAPTURE
    assert model.signature.describe_inputs() == '"x" FLOAT[N, 4]'
    assert json.loads((output / "parity.json").read_text())["framework"] == "torch"


def test_a_graph_that_answers_otherwise_is_refused() -> None:
    """No tolerance at all: float32 sums differ in their last bits."""
    torch.manual_seed(0)
    wide = nn.Linear(512, 512)
    with pytest.raises(
        ConversionRefused, match=r"tried the torch.export exporter: .*; the TorchScript exporter: "
    ):
        converter.convert(wide, floats(5, 512), tolerances={"rtol": 0.0, "atol": 0.0})


@pytest.mark.parametrize("opset", [18, 23])
def test_the_opset_is_the_one_asked_for(opset: int) -> None:
    converted = converter.convert(zoo.Perceptron(), X, options=converter.Options(opset=opset))
    assert [entry.version for entry in converted.model.opset_import if not entry.domain] == [opset]


def test_unpickled_modules_convert_and_take_no_factory(tmp_path: Path) -> None:
    """Pickles of joblib and the standard library are read elsewhere, and come as objects."""
    sample = tmp_path / "sample.npz"
    np.savez(sample, x=X["x"])
    request = Request("model.pkl", "torch", str(sample), trust_pickle=True, options={"opset": "18"})
    assert judge(converter.convert_object(zoo.Perceptron(), request)).passed
    with pytest.raises(ConversionError, match="holds its module"):
        converter.convert_object(zoo.Perceptron(), replace(request, options=FACTORY))


def test_tolerances_are_checked() -> None:
    with pytest.raises(ConversionError, match='got "colour"'):
        converter.convert(zoo.Perceptron(), X, tolerances={"colour": 1.0})


def test_files_convert_by_the_command(tmp_path: Path) -> None:
    """In a process of its own, from which nothing but the folder comes back."""
    output = tmp_path / "folder"
    path = write(tmp_path, "program.pt2")
    words = [sys.executable, "-m", "converters", "convert", str(path), "--output", str(output)]
    done = subprocess.run(words, cwd=CODE.parent, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "note: N is free" in done.stderr
    assert (output / "model.onnx").is_file()


def test_files_of_safetensors_need_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "perceptron.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MissingExtra, match="safetensors is not installed"):
        convert_file(path, FACTORY, sample=X)


def test_outputs_get_the_dimensions_they_were_seen_to_have() -> None:
    """A free one that the exporter fixed, one of a number of its own, and one of unknown rank."""
    graph = onnx.GraphProto()
    shapes = ([3, 5, 2], [5, 1, 2], None)
    for name, shape in zip("abc", shapes, strict=True):
        graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    model = onnx.ModelProto(graph=graph)
    axes = Axes({("x", 0): "N", ("x", 1): "length"}, rows=True)
    runs = [
        (
            {"x": np.ones((rows, length))},
            {"a": np.ones((rows, length, 2)), "b": np.ones((rows * 2, 1, 2)), "c": np.ones(rows)},
        )
        for rows, length in ((3, 5), (9, 5), (7, 6))
    ]
    name_outputs(model, axes, runs)
    named = [
        [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim]
        for output in model.graph.output
    ]
    assert [list(map(str, dims)) for dims in named] == [["N", "length", "2"], ["b_0", "1", "2"], []]


def test_progress_is_told() -> None:
    told: list[str] = []
    converter.convert(zoo.Perceptron(), X, progress=told.append)
    assert told == ["running the original at other sizes", f"exporting with the {CAPTURE}"]
