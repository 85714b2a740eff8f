"""Every kind of value goes in and out of onnxruntime as it is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import onnx_models
import value_models
from onnx_serve.errors import InputRefused, ModelError
from onnx_serve.model import Model, SessionOptions, load_model
from onnx_serve.ort_values import make_call
from onnx_serve.raw_data import from_raw
from onnx_serve.tensors import DataType, MapTable, RowAxis, Signature, TensorSpec

FLOAT, INT64, STRING = value_models.FLOAT, value_models.INT64, value_models.STRING
# onnxruntime 1.32 has no kernel that takes or gives FLOAT4E2M1.
FOREIGN = [dtype for dtype in DataType if not dtype.is_native and dtype is not DataType.FLOAT4E2M1]


def load(path: Path) -> Model:
    return load_model(path, path.stem, SessionOptions())


def some_of(dtype: DataType, count: int) -> Any:
    """The first values of a type, code by code."""
    codes = (
        np.arange(count, dtype=np.uint16) * 1000 if dtype.bits == 16 else np.arange(count, dtype=np.uint8) + 1
    )
    return from_raw(codes.view(np.uint8), dtype, (count * (8 // min(dtype.bits, 8)),))


@pytest.mark.parametrize("dtype", FOREIGN, ids=lambda dtype: dtype.name)
def test_types_that_numpy_has_not_go_in_and_come_out(tmp_path: Path, dtype: DataType) -> None:
    model = load(value_models.there_and_back(tmp_path / "m.onnx", dtype.onnx))
    x = some_of(dtype, 13)

    assert str(model.signature.inputs[0]) == f"{dtype.name}[N]"
    for feed in (x, x[:1], x[:0], x[::2]):
        outputs: dict[str, Any] = model.run({"x": feed})
        assert outputs["z"].dtype == np.float32
        np.testing.assert_array_equal(outputs["z"], feed.astype(np.float32))
        assert outputs["y"].dtype == dtype.numpy
        np.testing.assert_array_equal(outputs["y"], feed)


@pytest.mark.parametrize("dtype", [d for d in FOREIGN if d.bits >= 4], ids=lambda dtype: dtype.name)
def test_a_scalar_of_a_type_that_numpy_has_not(tmp_path: Path, dtype: DataType) -> None:
    value = value_models.tensor("x", dtype.onnx, [])
    node = helper.make_node("Cast", ["x"], ["y"], to=FLOAT)
    path = value_models.save(tmp_path / "m.onnx", [node], [value], [value_models.tensor("y", FLOAT, [])])

    y: Any = load(path).run({"x": np.array(1, dtype.numpy)})["y"]
    assert y.shape == ()
    assert y == 1


def test_sequences(tmp_path: Path) -> None:
    model = load(value_models.echo(tmp_path / "m.onnx", value_models.sequence("x")))
    items = [np.ones((2, 3), np.float32), np.zeros((0, 2), np.float32), np.array(5, np.float32)]

    assert model.signature.row_axis is RowAxis.NONE
    for given in (items, []):
        y: Any = model.run({"x": given})["y"]
        assert [item.tolist() for item in y] == [item.tolist() for item in given]
    rows: Any = load(value_models.split(tmp_path / "s.onnx")).run({"x": np.eye(2, dtype=np.float32)})["y"]
    assert [row.tolist() for row in rows] == [[1, 0], [0, 1]]


def test_a_sequence_out_means_no_rows(tmp_path: Path) -> None:
    """Even if it happens to have as many items as there are rows."""
    assert load(value_models.split(tmp_path / "s.onnx")).signature.row_axis is RowAxis.NONE


@pytest.mark.parametrize(
    ("words", "given", "expected"),
    [(("a", "b"), {"b": 2.0, "c": 1.0}, [[0, 2]]), ((7, -1), {-1: 0.5, 7: 3.0}, [[3, 0.5]])],
)
def test_maps(tmp_path: Path, words: Any, given: Any, expected: Any) -> None:
    model = load(value_models.vectorizer(tmp_path / "m.onnx", words))

    assert model.run({"x": given})["y"].tolist() == expected  # type: ignore[union-attr]
    with pytest.raises(InputRefused, match="a map without entries"):
        model.run({"x": {}})


@pytest.mark.parametrize("of_sequence", [False, True])
def test_optionals(tmp_path: Path, of_sequence: bool) -> None:
    value = value_models.optional("x", of_sequence=of_sequence)
    echo, asks = tmp_path / "e.onnx", tmp_path / "a.onnx"
    given: Any = [np.ones(2, np.float32)] if of_sequence else np.ones(2, np.float32)

    outputs: Any = load(value_models.echo(echo, value)).run({"x": given})["y"]
    np.testing.assert_array_equal(outputs, given)
    assert load(echo).run({"x": None}) == {"y": None}
    has_value = load(value_models.has_value(asks, of_sequence=of_sequence))
    assert has_value.run({"x": given})["y"] == np.True_
    assert has_value.run({"x": None})["y"] == np.False_


def test_inputs_with_defaults(tmp_path: Path) -> None:
    model = load(value_models.scale(tmp_path / "m.onnx"))
    x = np.ones((3, 2), np.float32)

    assert model.signature.row_axis is RowAxis.FREE
    assert [str(spec) for spec in model.signature.defaults] == ["FLOAT[1]"]
    assert model.run({"x": x})["y"].tolist() == [[2, 2]] * 3  # type: ignore[union-attr]
    k = np.array([5], np.float32)
    assert model.run({"x": x, "k": k})["y"].tolist() == [[5, 5]] * 3  # type: ignore[union-attr]


def test_no_inputs(tmp_path: Path) -> None:
    model = load(value_models.constant(tmp_path / "m.onnx"))

    assert model.signature.inputs == ()
    assert model.run({})["y"].tolist() == [1, 2]  # type: ignore[union-attr]


def test_shapes_that_depend_on_the_data(tmp_path: Path) -> None:
    model = load(value_models.positions(tmp_path / "m.onnx"))

    for x, expected in (([0, 3, 0, 4], [[1, 3]]), ([0, 0], [[]]), ([], [[]])):
        assert model.run({"x": np.array(x, np.float32)})["y"].tolist() == expected  # type: ignore[union-attr]


def test_undeclared_shapes_and_scalars_are_told_apart(tmp_path: Path) -> None:
    free = load(value_models.any_shape(tmp_path / "a.onnx")).signature
    scalar = load(onnx_models.identity(tmp_path / "s.onnx", shape=[])).signature

    assert (str(free.inputs[0]), free.row_axis) == ("FLOAT of any shape", RowAxis.NONE)
    assert str(scalar.inputs[0]) == "FLOAT[]"


def test_a_foreign_type_beside_a_sequence(tmp_path: Path) -> None:
    model = load(value_models.mixed(tmp_path / "m.onnx"))

    outputs: Any = model.run({"x": np.array([[1, 2], [3, 257]], np.float32)})
    assert list(outputs) == ["s", "b"]
    assert outputs["b"].tolist() == [[1, 2], [3, 256]]
    assert [item.tolist() for item in outputs["s"]] == [[[1, 2]], [[3, 257]]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda path: value_models.vectorizer(path, value=value_models.INT64),
         'input "x": Python cannot feed a map of INT64 to onnxruntime'),
        (value_models.count, 'input "x": Python cannot feed a tensor of STRING to a model with an output of a type'),
        (lambda path: value_models.cast(path, TensorProto.FLOAT, TensorProto.FLOAT4E2M1), "cannot load the model"),
    ],
)  # fmt: skip
def test_what_python_cannot_feed_is_told_at_load(tmp_path: Path, build: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(build(tmp_path / "m.onnx"))


class Session:
    """In place of a session whose outputs no operator of onnxruntime makes."""

    def __init__(self, *outputs: Any) -> None:
        self.outputs = list(outputs)

    def run(self, names: list[str], feed: dict[str, Any], options: object) -> list[Any]:
        return self.outputs


def call(onnx_type: str, output: Any) -> Any:
    declared = Signature((), (TensorSpec("y", onnx_type, ()),), RowAxis.NONE)
    return make_call(Session(output), declared, None)({})["y"]


def test_maps_have_values_of_their_own_type() -> None:
    """What comes are Python's floats, which print as float64."""
    value = call("map(string,tensor(float))", {"a": 0.1, "b": 2.0})
    assert {key: (type(number), str(number)) for key, number in value.items()} == {
        "a": (np.float32, "0.1"), "b": (np.float32, "2.0"),
    }  # fmt: skip
    assert call("map(int64,tensor(string))", {1: "x"}) == {1: "x"}
    assert call("optional(map(string,tensor(float)))", None) is None


def test_sequences_of_maps_are_tables_where_the_keys_are_equal() -> None:
    kind = "seq(map(int64,tensor(float)))"
    table = call(kind, [{1: 0.5, 2: 0.25}, {2: 1.0, 1: 0.0}])
    assert isinstance(table, MapTable)
    assert list(table.dicts()) == [{1: 0.5, 2: 0.25}, {1: 0.0, 2: 1.0}]
    other = call(kind, [{1: 0.5}, {2: 0.1}])
    assert other == [{1: np.float32(0.5)}, {2: np.float32(0.1)}]
    assert call(kind, []).values.shape == (0, 0)


@pytest.mark.parametrize(
    ("what", "onnx_type", "message"),
    [
        ("input", "seq(map(string,tensor(float)))", "cannot feed a sequence of maps"),
        ("input", "seq(tensor(bfloat16))", "cannot feed a sequence of tensors of BFLOAT16"),
        ("output", "seq(tensor(float8e5m2))", "cannot get a sequence of tensors of FLOAT8E5M2"),
        ("output", "sparse_tensor(float)", r'output "y": the type sparse_tensor\(float\) is not supported'),
        ("input", "tensor(complex64)", r'input "y": the type tensor\(complex64\) is not supported'),
    ],
)
def test_types_that_no_python_value_carries(what: str, onnx_type: str, message: str) -> None:
    specs = (TensorSpec("y", onnx_type, ()),)
    declared = Signature(specs if what == "input" else (), specs if what == "output" else (), RowAxis.NONE)
    with pytest.raises(ModelError, match=message):
        make_call(Session(), declared, None)


class Value:
    """In place of an ``OrtValue`` that no model of these tests gives."""

    def __init__(self, device: str | None) -> None:
        self.device = device

    def has_value(self) -> bool:
        return self.device is not None

    def device_name(self) -> str | None:
        return self.device


class ValueSession(Session):
    def run_with_ort_values(self, names: list[str], feed: dict[str, Any], options: object) -> list[Any]:
        return self.outputs


def test_foreign_outputs_without_value_or_on_another_device() -> None:
    declared = Signature((), (TensorSpec("y", "optional(tensor(bfloat16))", ()),), RowAxis.NONE)

    assert make_call(ValueSession(Value(None)), declared, None)({}) == {"y": None}
    with pytest.raises(RuntimeError, match="on the device cuda"):
        make_call(ValueSession(Value("cuda")), declared, None)({})
