"""``DictVectorizer``: one input for each key of its dictionaries, instead of the dictionaries themselves."""

from typing import Any

import numpy as np
from skl2onnx import update_registered_converter
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
from sklearn.feature_extraction import DictVectorizer

from converters.graph import ML, Graph
from converters.sklearn_formulas import alias_of, element, splice
from converters.sklearn_inputs import keys_of

__all__ = ["register"]


def register() -> None:
    """Registers the class with skl2onnx."""
    update_registered_converter(DictVectorizer, alias_of(DictVectorizer), _shapes, _convert, parser=_parse)


def _parse(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:  # noqa: ARG001  skl2onnx names it
    operator = scope.declare_local_operator(alias_of(DictVectorizer), model)
    operator.inputs = inputs
    double = any(isinstance(variable.type, DoubleTensorType) for variable in inputs)
    kind = DoubleTensorType if double else FloatTensorType
    operator.outputs.append(scope.declare_local_variable("variable", kind()))
    return operator.outputs


def _shapes(operator: Any) -> None:
    [output] = operator.outputs
    rows = operator.inputs[0].get_first_dimension()
    output.type = type(output.type)([rows, len(operator.raw_operator.feature_names_)])


def _convert(scope: Any, operator: Any, container: Any) -> None:
    """Numbers as they are, and 1 in the column of a text that is known; others have none."""
    model = operator.raw_operator
    graph = Graph(scope.get_unique_operator_name("records") + "_")
    inputs = {variable.raw_name: variable.full_name for variable in operator.inputs}
    wanted = element(operator.outputs[0])
    parts, names = [], []
    for key, values in keys_of(model).items():
        if values:
            found = graph.add("OneHotEncoder", inputs[key], domain=ML, cats_strings=values, zeros=1)
            part = graph.add("Reshape", found, graph.constant([-1, len(values)], np.int64))
        else:
            part = inputs[key]
        parts.append(graph.add("Cast", part, to=wanted))
        names += [f"{key}{model.separator}{value}" for value in values] or [key]
    places = [names.index(name) for name in model.feature_names_]
    joined = graph.add("Concat", *parts, axis=1)
    graph.add(
        "Gather", joined, graph.constant(places, np.int64), output=operator.outputs[0].full_name, axis=1
    )
    splice(graph, container)
