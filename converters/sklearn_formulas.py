"""Estimators that are a formula: from the matrix of features to their answers, without trees or parts.

Each family's module has a table from classes to formulas; ``register`` puts them into skl2onnx. A formula is
given the fitted estimator and its features [N, F], and returns an expression for each of the estimator's outputs:
the transformed matrix or the prediction; the labels and the distances of a clustering; the labels and the
probabilities of a classifier; the labels and the scores of a detector of outliers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from onnx import TensorProto
from skl2onnx import update_registered_converter
from skl2onnx._supported_operators import sklearn_operator_name_map
from skl2onnx.common._registration import get_converter, register_converter
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, guess_tensor_type
from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes
from sklearn.base import ClassifierMixin

from converters.graph import Graph
from converters.sklearn_expressions import Expression

__all__ = [
    "CLASSIFIER_OPTIONS",
    "Formula",
    "alias_of",
    "element",
    "features_of",
    "give",
    "prefer",
    "register",
    "splice",
]

Formula: TypeAlias = Callable[[Any, Expression], Sequence[Expression]]
CLASSIFIER_OPTIONS: dict[str, list[Any]] = {
    "zipmap": [True, False, "columns"],
    "nocl": [True, False],
    "output_class_labels": [False, True],
    "raw_scores": [True, False],
}


def register(formulas: Mapping[type, Formula]) -> None:
    """Registers the classes, in the place of skl2onnx's converters where it has some."""
    for kind, formula in formulas.items():
        classifies = issubclass(kind, ClassifierMixin)
        # skl2onnx takes every ClusterMixin for one that tells clusters, and has a parser of its own for some others.
        only_transforms = hasattr(kind, "transform") and not hasattr(kind, "predict")
        update_registered_converter(
            kind, alias_of(kind), calculate_linear_classifier_output_shapes if classifies else _shapes,
            _converter(formula), options=CLASSIFIER_OPTIONS if classifies else None,
            parser=_parse_transformer if only_transforms else None,
        )  # fmt: skip


def prefer(kind: type, formula: Formula, when: Callable[[Any], bool]) -> None:
    """Puts a formula before skl2onnx's converter, for the estimators that ``when`` holds for."""
    alias = sklearn_operator_name_map[kind]
    inner, own = get_converter(alias), _converter(formula)

    def convert(scope: Any, operator: Any, container: Any) -> None:
        (own if when(operator.raw_operator) else inner)(scope, operator, container)

    register_converter(alias, convert, overwrite=True, options=inner.get_allowed_options())


def alias_of(kind: type) -> str:
    """The name under which skl2onnx knows a converter of ours."""
    return f"OnnxServe{kind.__module__.partition('.')[0]}{kind.__name__}"


def _converter(formula: Formula) -> Callable[[Any, Any, Any], None]:
    def convert(scope: Any, operator: Any, container: Any) -> None:
        features = features_of(scope, operator)
        give(container, operator, formula(operator.raw_operator, features))

    return convert


def features_of(scope: Any, operator: Any) -> Expression:
    """The operator's inputs as one matrix of the type that its numbers are answered in, in a new graph."""
    graph = Graph(scope.get_unique_operator_name("formula") + "_")
    wanted = element(operator.outputs[-1])
    parts = [graph.add("Cast", variable.full_name, to=wanted) for variable in operator.inputs]
    name = parts[0] if len(parts) == 1 else graph.add("Concat", *parts, axis=1)
    return Expression(graph, name, np.float64 if wanted == TensorProto.DOUBLE else np.float32)


def give(container: Any, operator: Any, answers: Sequence[Expression]) -> None:
    """Makes expressions the operator's outputs, and their graph a part of the whole."""
    graph = answers[0].graph
    for variable, answer in zip(operator.outputs, answers, strict=True):
        if isinstance(variable.type, DoubleTensorType | FloatTensorType):
            graph.add("Cast", answer.name, output=variable.full_name, to=element(variable))
        else:
            graph.add("Identity", answer.name, output=variable.full_name)
    splice(graph, container)


def splice(graph: Graph, container: Any) -> None:
    """Joins a graph to the one that skl2onnx is making."""
    container.nodes.extend(graph.nodes)
    container.initializers.extend(graph.initializers)
    container.node_domain_version_pair_sets.update({("", 18), ("ai.onnx.ml", 3)})


def element(variable: Any) -> int:
    """ONNX's type of a variable's numbers: DOUBLE, or FLOAT for all others."""
    return int(TensorProto.DOUBLE if isinstance(variable.type, DoubleTensorType) else TensorProto.FLOAT)


def _parse_transformer(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:  # noqa: ARG001  skl2onnx names it
    operator = scope.declare_local_operator(alias_of(type(model)), model)
    operator.inputs = inputs
    operator.outputs.append(scope.declare_local_variable("variable", guess_tensor_type(inputs[0].type)))
    return operator.outputs


def _shapes(operator: Any) -> None:
    rows = operator.inputs[0].get_first_dimension()
    model = operator.raw_operator
    if len(operator.outputs) > 1:
        operator.outputs[0].type = Int64TensorType([rows])
    last = operator.outputs[-1]
    last.type = type(last.type)([rows, _width(model)])


def _width(model: Any) -> int | None:
    """How many columns a transformer answers with, where it says so."""
    try:
        return len(model.get_feature_names_out())
    except (AttributeError, ValueError):
        return None
