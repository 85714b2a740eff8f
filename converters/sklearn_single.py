"""skl2onnx's converters that know float32 only, in graphs that are in double: between two casts."""

from collections.abc import Callable
from typing import Any, TypeAlias

from onnx import TensorProto
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

from converters.graph import Graph
from converters.sklearn_formulas import splice

__all__ = ["in_single"]

Convert: TypeAlias = Callable[[Any, Any, Any], None]


class _Single:
    """An operator as its converter sees it, with float32 in the place of float64."""

    def __init__(self, operator: Any, scope: Any) -> None:
        self._operator = operator
        self.inputs = [_float_of(variable, scope) for variable in operator.inputs]
        self.outputs = [
            _float_of(variable, scope) if isinstance(variable.type, DoubleTensorType) else variable
            for variable in operator.outputs
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operator, name)

    @property
    def input_full_names(self) -> list[str]:
        return [variable.full_name for variable in self.inputs]

    @property
    def output_full_names(self) -> list[str]:
        return [variable.full_name for variable in self.outputs]


def _float_of(variable: Any, scope: Any) -> Any:
    """A value beside another one; fed, as it is the casts here that give it."""
    made = scope.declare_local_variable(
        f"{variable.raw_name}_single", FloatTensorType(list(variable.type.shape))
    )
    made.init_status(is_fed=True)
    return made


def in_single(inner: Convert) -> Convert:
    """skl2onnx's converter between two casts where the input is double."""

    def convert(scope: Any, operator: Any, container: Any) -> None:
        if not isinstance(operator.inputs[0].type, DoubleTensorType):
            inner(scope, operator, container)
            return
        single = _Single(operator, scope)
        graph = Graph(scope.get_unique_operator_name("single") + "_")
        for source, target in zip(operator.inputs, single.inputs, strict=True):
            graph.add("Cast", source.full_name, output=target.full_name, to=TensorProto.FLOAT)
        inner(scope, single, container)
        for source, target in zip(single.outputs, operator.outputs, strict=True):
            if source is not target:
                graph.add("Cast", source.full_name, output=target.full_name, to=TensorProto.DOUBLE)
        splice(graph, container)

    return convert
