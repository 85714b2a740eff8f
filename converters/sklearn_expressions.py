"""Formulas over a graph's values, written as they are in NumPy.

``(x @ weights + offset).call("Cos") * 2.0`` adds three nodes to the graph. Constants take the type of the
expression beside them, which is the type that the whole formula is computed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, Union

import numpy as np
from onnx import TensorProto

from converters.boosting import label_array
from converters.graph import Graph
from onnx_serve.tensors import Array

__all__ = ["Expression", "Operand", "concat", "label_of", "where"]

Operand: TypeAlias = Union["Expression", Array, float]


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """A value of a graph.

    Attributes:
        graph: Where operations add their nodes.
        name: The value's name.
        dtype: NumPy's type of the formula's numbers.
    """

    graph: Graph
    name: str
    dtype: Any

    def call(self, operator: str, *operands: Operand, **attributes: Any) -> "Expression":
        """One more node, with this value as its first input."""
        names = [self.of(operand).name for operand in operands]
        return self.named(self.graph.add(operator, self.name, *names, **attributes))

    def of(self, value: Operand) -> "Expression":
        """A number or an array as a constant beside this value."""
        return value if isinstance(value, Expression) else self.named(self.graph.constant(value, self.dtype))

    def named(self, name: str) -> "Expression":
        """Another value of the same graph and type."""
        return Expression(self.graph, name, self.dtype)

    def whole(self, values: Any) -> str:
        """The name of a constant of whole numbers: indices, shapes, axes."""
        return self.graph.constant(values, np.int64)

    def columns(self, indices: Sequence[int] | Array) -> "Expression":
        """Some columns of a matrix, [N, len(indices)]."""
        return self.named(self.graph.add("Gather", self.name, self.whole(indices), axis=1))

    def reshape(self, *shape: int) -> "Expression":
        """The same values in another shape; 0 keeps a dimension, -1 takes what is left."""
        return self.named(self.graph.add("Reshape", self.name, self.whole(shape)))

    def total(self, axis: int = 1) -> "Expression":
        """The sum along an axis, which stays with length 1."""
        return self.named(self.graph.add("ReduceSum", self.name, self.whole([axis]), keepdims=1))

    def greatest(self, axis: int = 1) -> "Expression":
        """The greatest value along an axis, which stays with length 1."""
        return self.named(self.graph.add("ReduceMax", self.name, self.whole([axis]), keepdims=1))

    def highest(self) -> "Expression":
        """The position [N] of the greatest value of each row."""
        return self.call("ArgMax", axis=1, keepdims=0)

    def lowest(self) -> "Expression":
        """The position [N] of the least value of each row; of equal ones the first."""
        return self.call("ArgMin", axis=1, keepdims=0)

    def numbers(self) -> "Expression":
        """Truth values or whole numbers as the formula's numbers."""
        double = self.dtype == np.float64
        return self.call("Cast", to=TensorProto.DOUBLE if double else TensorProto.FLOAT)

    def rows(self, values: Array) -> "Expression":
        """The same row of values for each row of this matrix, [N, len(values)]."""
        graph = self.graph
        count = graph.add("Shape", self.name, end=1)
        shape = graph.add("Concat", count, self.whole([len(values)]), axis=0)
        return self.named(graph.add("Expand", self.of(values[None, :]).name, shape))

    def __add__(self, other: Operand) -> "Expression":
        return self.call("Add", other)

    def __sub__(self, other: Operand) -> "Expression":
        return self.call("Sub", other)

    def __mul__(self, other: Operand) -> "Expression":
        return self.call("Mul", other)

    def __truediv__(self, other: Operand) -> "Expression":
        return self.call("Div", other)

    def __matmul__(self, other: Operand) -> "Expression":
        return self.call("MatMul", other)

    def __pow__(self, other: Operand) -> "Expression":
        return self.call("Pow", other)

    def __neg__(self) -> "Expression":
        return self.call("Neg")

    def __ge__(self, other: Any) -> "Expression":
        return self.call("GreaterOrEqual", other)

    def __gt__(self, other: Any) -> "Expression":
        return self.call("Greater", other)

    def __lt__(self, other: Any) -> "Expression":
        return self.call("Less", other)

    def __le__(self, other: Any) -> "Expression":
        return self.call("LessOrEqual", other)


def where(condition: Expression, yes: Operand, no: Operand) -> Expression:
    """One value or the other, element by element."""
    return condition.call("Where", yes, no)


def concat(parts: Sequence[Expression]) -> Expression:
    """The matrices side by side."""
    return parts[0].call("Concat", *parts[1:], axis=1)


def label_of(classes: Any, position: Expression) -> Expression:
    """The class labels, INT64 or STRING, at some positions.

    Raises:
        ConversionError: They are neither whole numbers nor text.
    """
    graph = position.graph
    return position.named(graph.add("Gather", graph.constant(label_array(classes)), position.name, axis=0))
