"""Tiny ONNX models, each with one property that a test needs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, STRING, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING, TensorProto.BOOL
Shape = Sequence[int | str | None]


def tensor(name: str, kind: int, shape: Shape) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray] | None = None,
    *,
    ml: bool = False,
) -> Path:
    """Writes a checked model file and gives its path back."""
    initializers = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 18)] + ([helper.make_opsetid("ai.onnx.ml", 3)] if ml else [])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="onnx-serve tests")
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def linear(path: Path, width: int = 4, outputs: int = 3, rows: int | str | None = "N") -> Path:
    """``y = x @ W``: FLOAT[rows, width] to FLOAT[rows, outputs]."""
    weights = np.arange(width * outputs, dtype=np.float32).reshape(width, outputs) / 10
    node = helper.make_node("MatMul", ["x", "W"], ["y"])
    return save(
        path,
        [node],
        [tensor("x", FLOAT, [rows, width])],
        [tensor("y", FLOAT, [rows, outputs])],
        {"W": weights},
    )


def identity(path: Path, kind: int = FLOAT, shape: Shape = ("N", 4)) -> Path:
    """``y = x`` of any type and shape."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return save(path, [node], [tensor("x", kind, shape)], [tensor("y", kind, shape)])


def company(path: Path) -> Path:
    """Each row less the mean of all rows: a row's answer depends on the rows beside it."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    return save(
        path,
        nodes,
        [tensor("x", FLOAT, ["N", 2])],
        [tensor("y", FLOAT, ["N", 2])],
        {"axes": np.array([0], np.int64)},
    )


def positions(path: Path) -> Path:
    """Where FLOAT[N, 2] is not zero, INT64[M, 2]: the shapes suggest rows, the answer has none."""
    nodes = [helper.make_node("NonZero", ["x"], ["at"]), helper.make_node("Transpose", ["at"], ["y"])]
    return save(path, nodes, [tensor("x", FLOAT, ["N", 2])], [tensor("y", INT64, ["M", 2])])


def lookup(path: Path, entries: int = 10) -> Path:
    """An embedding table: INT64[N] to FLOAT[N, 2]; indices beyond it cannot be run."""
    table = np.arange(entries * 2, dtype=np.float32).reshape(entries, 2)
    node = helper.make_node("Gather", ["table", "i"], ["y"])
    return save(path, [node], [tensor("i", INT64, ["N"])], [tensor("y", FLOAT, ["N", 2])], {"table": table})


def two_inputs(path: Path) -> Path:
    """``a`` FLOAT[N, 2] and ``b`` INT64[N] to ``sum`` FLOAT[N, 2] and ``twice`` INT64[N]."""
    nodes = [
        helper.make_node("Cast", ["b"], ["bf"], to=FLOAT),
        helper.make_node("Unsqueeze", ["bf", "axis"], ["bc"]),
        helper.make_node("Add", ["a", "bc"], ["sum"]),
        helper.make_node("Add", ["b", "b"], ["twice"]),
    ]
    return save(
        path,
        nodes,
        [tensor("a", FLOAT, ["N", 2]), tensor("b", INT64, ["N"])],
        [tensor("sum", FLOAT, ["N", 2]), tensor("twice", INT64, ["N"])],
        {"axis": np.array([1], np.int64)},
    )


def zipmap(path: Path, labels: Sequence[int] = (0, 1, 2)) -> Path:
    """The rows of FLOAT[N, len(labels)] as a sequence of maps, like a scikit-learn classifier's."""
    node = helper.make_node(
        "ZipMap", ["x"], ["probabilities"], domain="ai.onnx.ml", classlabels_int64s=list(labels)
    )
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, []))
    )
    output = helper.make_value_info("probabilities", kind)
    graph = helper.make_graph([node], "zipmap", [tensor("x", FLOAT, ["N", len(labels)])], [output])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def slow(path: Path, width: int = 4, iterations: int = 20_000) -> Path:
    """``y = x`` after a loop whose first input value says how often 64x64 matrices are multiplied.

    A row of zeros costs nothing; a row that begins with 1 costs ``iterations`` multiplications.
    """
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["m_in", "m_in"], ["m2"]),
            helper.make_node("Clip", ["m2", "low", "high"], ["m_out"]),
            helper.make_node("Identity", ["go_in"], ["go_out"]),
        ],
        "body",
        [tensor("i", INT64, []), tensor("go_in", BOOL, []), tensor("m_in", FLOAT, [64, 64])],
        [tensor("go_out", BOOL, []), tensor("m_out", FLOAT, [64, 64])],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Floor", ["largest"], ["whole"]),
        helper.make_node("Mul", ["whole", "iterations"], ["times_f"]),
        helper.make_node("Cast", ["times_f"], ["times"], to=INT64),
        helper.make_node("Loop", ["times", "go", "m"], ["m_end"], body=body),
        helper.make_node("ReduceMax", ["m_end"], ["end"], keepdims=0),
        helper.make_node("Mul", ["end", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    constants = {
        "iterations": np.array(iterations, np.float32),
        "go": np.array(True),
        "m": np.full((64, 64), 0.01, np.float32),
        "low": np.array(0, np.float32),
        "high": np.array(1, np.float32),
        "zero": np.array(0, np.float32),
    }
    shape: Shape = ["N", width]
    return save(path, nodes, [tensor("x", FLOAT, shape)], [tensor("y", FLOAT, shape)], constants)


def extension(path: Path) -> Path:
    """STRING[N] in small letters, by an operator of onnxruntime-extensions."""
    node = helper.make_node("StringLower", ["x"], ["y"], domain="ai.onnx.contrib")
    graph = helper.make_graph([node], "test", [tensor("x", STRING, ["N"])], [tensor("y", STRING, ["N"])])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.contrib", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path
