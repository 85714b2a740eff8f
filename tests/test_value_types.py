from typing import Any

import numpy as np
import pytest

from onnx_serve.data_types import DataType
from onnx_serve.errors import MismatchError
from onnx_serve.value_types import Kind, ValueType, conform_value, parse_type


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tensor(float)", ValueType(Kind.TENSOR, DataType.FLOAT)),
        ("optional(tensor(int4))", ValueType(Kind.TENSOR, DataType.INT4, None, optional=True)),
        ("seq(tensor(string))", ValueType(Kind.TENSORS, DataType.STRING)),
        ("optional(seq(tensor(bool)))", ValueType(Kind.TENSORS, DataType.BOOL, None, optional=True)),
        ("map(int64,tensor(double))", ValueType(Kind.MAP, DataType.DOUBLE, DataType.INT64)),
        ("seq(map(string,tensor(float)))", ValueType(Kind.MAPS, DataType.FLOAT, DataType.STRING)),
        ("sparse_tensor(float)", None),
        ("tensor(complex64)", None),
        ("seq(seq(tensor(float)))", None),
        ("map(double,tensor(float))", None),
        ("map(string,tensor(complex64))", None),
        ("map(string,map(string,tensor(float)))", None),
        ("", None),
    ],
)
def test_types_are_taken_apart(text: str, expected: ValueType | None) -> None:
    assert parse_type(text) == expected


def test_kinds_say_what_carries_them() -> None:
    assert [kind for kind in Kind if kind.is_sequence] == [Kind.TENSORS, Kind.MAPS]
    assert [kind for kind in Kind if kind.has_maps] == [Kind.MAP, Kind.MAPS]


@pytest.mark.parametrize(
    ("onnx_type", "value", "expected"),
    [
        ("optional(tensor(float))", None, None),
        ("optional(tensor(float))", np.array([1, 2]), np.array([1, 2], np.float32)),
        ("seq(tensor(int8))", [np.array([1.0]), np.array(2)], [np.array([1], np.int8), np.array(2, np.int8)]),
        ("seq(tensor(bfloat16))", [np.array([257.0])], [np.array([256], np.float32)]),
        ("map(string,tensor(float))", {"a": 1, "b": np.float64(0.5)}, {"a": 1.0, "b": 0.5}),
        ("map(int64,tensor(string))", {1: "x"}, {1: "x"}),
        ("map(int64,tensor(float))", {}, {}),
        ("seq(map(int64,tensor(int64)))", [{1: 2}, {}], [{1: 2}, {}]),
    ],
)
def test_values_change_type_without_loss(onnx_type: str, value: Any, expected: Any) -> None:
    value_type = parse_type(onnx_type)
    assert value_type is not None

    result = conform_value(value, value_type, "x")
    np.testing.assert_equal(result, expected)
    for item, other in zip(*map(arrays_in, (result, expected)), strict=True):
        assert item.dtype == other.dtype


def arrays_in(value: Any) -> list[Any]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, np.ndarray)]


@pytest.mark.parametrize(
    ("onnx_type", "value", "message"),
    [
        ("seq(tensor(float))", None, 'input "x": expected a sequence of tensors, got nothing'),
        ("seq(tensor(float))", np.zeros(2), 'input "x": expected a sequence of tensors, got a ndarray'),
        ("seq(tensor(float))", [1.0], 'input "x": expected a sequence of tensors, got a float'),
        ("seq(tensor(int8))", [np.array([300])], 'input "x": expected INT8, got 300 at [0]'),
        ("optional(tensor(float))", [], 'input "x": expected a tensor, got a list'),
        ("map(string,tensor(float))", np.zeros(1), 'input "x": expected a map, got a ndarray'),
        ("map(string,tensor(float))", {1: 1.0}, 'input "x": expected keys of type str, got "1"'),
        ("map(int64,tensor(float))", {True: 1.0}, 'input "x": expected keys of type int, got "True"'),
        (
            "map(int64,tensor(float))",
            {1: "a"},
            'input "x": expected a map to FLOAT, got a value that is none',
        ),
        (
            "map(int64,tensor(string))",
            {1: 2},
            'input "x": expected a map to STRING, got a value that is none',
        ),
        ("seq(map(int64,tensor(float)))", [np.zeros(1)], "expected a sequence of maps, got a ndarray"),
    ],
)
def test_other_values_are_refused(onnx_type: str, value: Any, message: str) -> None:
    value_type = parse_type(onnx_type)
    assert value_type is not None
    with pytest.raises(MismatchError) as caught:
        conform_value(value, value_type, "x")
    assert message in str(caught.value)
