"""``SimpleImputer`` where skl2onnx has no converter: text, and columns that tell what was missing.

A tensor of text has no missing values, so that an imputer of text finds none to fill in.
"""

from typing import Any

import numpy as np
from skl2onnx import update_registered_converter
from skl2onnx._supported_operators import sklearn_operator_name_map
from skl2onnx.common._registration import get_converter
from skl2onnx.common.data_types import StringTensorType
from sklearn.impute import SimpleImputer

from converters.errors import ConversionError
from converters.graph import Graph
from converters.sklearn_expressions import Expression, concat, where
from converters.sklearn_formulas import alias_of, features_of, give, splice
from converters.sklearn_functions import is_missing
from onnx_serve.tensors import Array

__all__ = ["fills_text", "register"]


def register() -> None:
    """Registers the class with skl2onnx."""
    inner = get_converter(sklearn_operator_name_map[SimpleImputer])

    def convert(scope: Any, operator: Any, container: Any) -> None:
        model = operator.raw_operator
        if isinstance(operator.inputs[0].type, StringTensorType) and _finds_nothing(model):
            _pass(scope, operator, container)
        elif model.add_indicator:
            give(container, operator, [_filled(model, features_of(scope, operator))])
        else:
            inner(scope, operator, container)

    update_registered_converter(SimpleImputer, alias_of(SimpleImputer), _shapes, convert)


def fills_text(model: Any) -> bool:
    """Whether a step is an imputer of text whose missing values no request can hold."""
    if not isinstance(model, SimpleImputer) or not _finds_nothing(model):
        return False
    return any(isinstance(value, str) for value in np.ravel(np.asarray(model.statistics_, object)))


def _finds_nothing(model: Any) -> bool:
    """Whether what counts as missing is no text."""
    return not isinstance(model.missing_values, str)


def _shapes(operator: Any) -> None:
    model, [output] = operator.raw_operator, operator.outputs
    rows = operator.inputs[0].get_first_dimension()
    kept = len(_kept(model)) + (len(model.indicator_.features_) if model.add_indicator else 0)
    output.type = type(output.type)([rows, kept])


def _kept(model: Any) -> Array:
    """The columns that had values when the imputer was fitted."""
    statistics = np.asarray(model.statistics_)
    if statistics.dtype.kind == "f" and not model.keep_empty_features:
        return np.flatnonzero(~np.isnan(statistics))
    return np.arange(len(statistics))


def _pass(scope: Any, operator: Any, container: Any) -> None:
    model = operator.raw_operator
    if model.add_indicator:
        raise ConversionError("SimpleImputer: add_indicator=True has no converter for text")
    graph = Graph(scope.get_unique_operator_name("imputer") + "_")
    names = [variable.full_name for variable in operator.inputs]
    graph.add("Concat", *names, output=operator.outputs[0].full_name, axis=1)
    splice(graph, container)


def _filled(model: Any, x: Expression) -> Expression:
    missing = is_missing(model.missing_values, x)
    kept = _kept(model)
    statistics = np.nan_to_num(np.asarray(model.statistics_, np.float64))
    filled = where(missing, statistics[None, :], x).columns(kept)
    return concat([filled, missing.numbers().columns(model.indicator_.features_)])
