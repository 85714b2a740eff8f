"""Tiny ONNX models, one for each kind of value that onnxruntime takes or gives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, STRING, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING, TensorProto.BOOL


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
) -> Path:
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 25), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=12), path)
    return path


def tensor(name: str, kind: int, shape: Sequence[int | str | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def sequence(name: str, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_value_info(
        name, helper.make_sequence_type_proto(helper.make_tensor_type_proto(kind, None))
    )


def optional(name: str, *, of_sequence: bool = False) -> onnx.ValueInfoProto:
    inner = helper.make_tensor_type_proto(FLOAT, None)
    inner = helper.make_sequence_type_proto(inner) if of_sequence else inner
    return helper.make_value_info(name, helper.make_optional_type_proto(inner))


def mapping(name: str, key: int, value: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_value_info(
        name, helper.make_map_type_proto(key, helper.make_tensor_type_proto(value, None))
    )


def cast(path: Path, kind: int, to: int) -> Path:
    """``y = x`` in another type: kind[N] to to[N]."""
    return save(
        path,
        [helper.make_node("Cast", ["x"], ["y"], to=to)],
        [tensor("x", kind, ["N"])],
        [tensor("y", to, ["N"])],
    )


def there_and_back(path: Path, kind: int) -> Path:
    """kind[N] to float, to kind[N] again as ``y``, and the float as ``z``."""
    nodes = [
        helper.make_node("Cast", ["x"], ["z"], to=FLOAT),
        helper.make_node("Cast", ["z"], ["y"], to=kind),
    ]
    return save(
        path, nodes, [tensor("x", kind, ["N"])], [tensor("y", kind, ["N"]), tensor("z", FLOAT, ["N"])]
    )


def item(path: Path) -> Path:
    """The item ``i`` of the sequence ``s``."""
    nodes = [helper.make_node("SequenceAt", ["s", "i"], ["y"])]
    return save(path, nodes, [sequence("s"), tensor("i", INT64, [])], [tensor("y", FLOAT, None)])


def echo(path: Path, value: onnx.ValueInfoProto) -> Path:
    """Any value called ``x``, as ``y``."""
    output = onnx.ValueInfoProto(name="y", type=value.type)
    return save(path, [helper.make_node("Identity", ["x"], ["y"])], [value], [output])


def split(path: Path) -> Path:
    """The rows of FLOAT[N, 2], a sequence of FLOAT[2]."""
    nodes = [helper.make_node("SplitToSequence", ["x"], ["y"], axis=0, keepdims=0)]
    return save(path, nodes, [tensor("x", FLOAT, ["N", 2])], [sequence("y")])


def vectorizer(path: Path, words: Sequence[str] | Sequence[int] = ("a", "b"), value: int = FLOAT) -> Path:
    """A map of these keys as FLOAT[1, len(words)], as scikit-learn's DictVectorizer."""
    strings = isinstance(words[0], str)
    vocabulary: Any = {"string_vocabulary" if strings else "int64_vocabulary": list(words)}
    node = helper.make_node("DictVectorizer", ["x"], ["y"], domain="ai.onnx.ml", **vocabulary)
    return save(
        path, [node], [mapping("x", STRING if strings else INT64, value)], [tensor("y", value, [1, 2])]
    )


def has_value(path: Path, *, of_sequence: bool = False) -> Path:
    """Whether the optional ``x`` has a value."""
    node = helper.make_node("OptionalHasElement", ["x"], ["y"])
    return save(path, [node], [optional("x", of_sequence=of_sequence)], [tensor("y", BOOL, [])])


def scale(path: Path, default: float = 2.0) -> Path:
    """``y = x * k``, FLOAT[N, 2], where ``k`` is FLOAT[1] and has a default."""
    k = numpy_helper.from_array(np.array([default], np.float32), "k")
    node = helper.make_node("Mul", ["x", "k"], ["y"])
    return save(
        path,
        [node],
        [tensor("x", FLOAT, ["N", 2]), tensor("k", FLOAT, [1])],
        [tensor("y", FLOAT, ["N", 2])],
        [k],
    )


def constant(path: Path) -> Path:
    """``y = [1, 2]``; no input."""
    value = numpy_helper.from_array(np.array([1, 2], np.float32))
    return save(path, [helper.make_node("Constant", [], ["y"], value=value)], [], [tensor("y", FLOAT, [2])])


def positions(path: Path) -> Path:
    """Where FLOAT[N] is not zero: INT64[1, M], M known after the run only."""
    return save(
        path,
        [helper.make_node("NonZero", ["x"], ["y"])],
        [tensor("x", FLOAT, ["N"])],
        [tensor("y", INT64, [1, "M"])],
    )


def count(path: Path) -> Path:
    """How many texts STRING[N] has, as BFLOAT16."""
    nodes = [
        helper.make_node("Size", ["x"], ["n"]),
        helper.make_node("Cast", ["n"], ["y"], to=TensorProto.BFLOAT16),
    ]
    return save(path, nodes, [tensor("x", STRING, ["N"])], [tensor("y", TensorProto.BFLOAT16, [])])


def any_shape(path: Path) -> Path:
    """``y = 2 x``, whatever the shape."""
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    return save(path, nodes, [tensor("x", FLOAT, None)], [tensor("y", FLOAT, None)])


def mixed(path: Path) -> Path:
    """FLOAT[N, 2] as BFLOAT16, and its rows as a sequence."""
    nodes = [
        helper.make_node("Cast", ["x"], ["b"], to=TensorProto.BFLOAT16),
        helper.make_node("SplitToSequence", ["x"], ["s"], axis=0),
    ]
    outputs = [sequence("s"), tensor("b", TensorProto.BFLOAT16, ["N", 2])]
    return save(path, nodes, [tensor("x", FLOAT, ["N", 2])], outputs)
