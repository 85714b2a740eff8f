"""Converters of our own inside skl2onnx: trees, boosting libraries, and casts where it computes in double.

skl2onnx lets a class be registered with a converter
(https://onnx.ai/sklearn-onnx/auto_tutorial/plot_gexternal_lightgbm.html). Registered here are

- scikit-learn's trees, forests and histogram boosting (``sklearn_trees``);
- the estimators of xgboost, LightGBM and CatBoost, those that are installed;
- ``GradientBoosting*`` and ``AdaBoost*``, whose trees cast their features to float32 whatever they get:
  skl2onnx's converter, behind a cast where the graph is in double.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto
from skl2onnx import update_registered_converter
from skl2onnx._supported_operators import sklearn_operator_name_map
from skl2onnx.common._registration import get_converter, register_converter
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType
from skl2onnx.common.shape_calculator import (
    calculate_linear_classifier_output_shapes,
    calculate_linear_regressor_output_shapes,
)
from sklearn import ensemble

from converters.boosting import Boosting
from converters.errors import ConversionError
from converters.graph import Graph
from converters.sklearn_trees import (
    FORESTS,
    HISTOGRAMS,
    isolation_scores,
    multilabel_scores,
    read_forest,
    read_histogram,
)

__all__ = ["SINGLE_PRECISION", "boosting_of", "register"]

# They cast what they get to float32 (sklearn/tree/_classes.py, sklearn/ensemble/_gb.py).
_WRAPPED = (ensemble.GradientBoostingClassifier, ensemble.GradientBoostingRegressor)
SINGLE_PRECISION = (*FORESTS, *_WRAPPED, ensemble.IsolationForest)
# Most often of trees; skl2onnx's converters know float32 only.
_ADAPTIVE = (ensemble.AdaBoostClassifier, ensemble.AdaBoostRegressor)
_CLASSIFIER_OPTIONS = {
    "zipmap": [True, False, "columns"],
    "nocl": [True, False],
    "output_class_labels": [False, True],
    "raw_scores": [True, False],
}
Convert = Callable[[Any, Any, Any], None]
Read = Callable[[Any], Boosting | None]
_readers: dict[type, Read] = {}
_replaced: set[str] = set()


def register() -> None:
    """Registers what is not registered yet; called before each conversion, cheap after the first."""
    for kind in FORESTS:
        _replace(kind, lambda inner: _converter(read_forest, _several(inner)))
        _readers[kind] = read_forest
    for kind in (*_WRAPPED, *_ADAPTIVE):
        _replace(kind, _in_single)
    _replace(ensemble.IsolationForest, lambda _: _isolate)
    for kind in HISTOGRAMS:
        _add(kind, read_histogram)
    # A library that nobody imported has no estimator in the pipeline.
    if "xgboost" in sys.modules:
        _add_xgboost()
    if "lightgbm" in sys.modules:
        _add_lightgbm()
    if "catboost" in sys.modules:
        _add_catboost()


def boosting_of(model: Any) -> Boosting | None:
    """What a model of trees computes, or None for other models."""
    register()
    read = _readers.get(type(model))
    return None if read is None else read(model)


def _add_xgboost() -> None:
    import xgboost  # noqa: PLC0415  optional

    from converters.xgboost import read  # noqa: PLC0415

    for kind in (
        xgboost.XGBClassifier, xgboost.XGBRegressor, xgboost.XGBRFClassifier, xgboost.XGBRFRegressor, xgboost.XGBRanker,
    ):  # fmt: skip
        _add(kind, lambda model: read(model)[0])


def _add_lightgbm() -> None:
    import lightgbm  # noqa: PLC0415  optional

    from converters.lightgbm import read  # noqa: PLC0415

    for kind in (lightgbm.LGBMClassifier, lightgbm.LGBMRegressor, lightgbm.LGBMRanker):
        _add(kind, lambda model: read(model)[0])


def _add_catboost() -> None:
    import catboost  # noqa: PLC0415  optional

    from converters.catboost import read  # noqa: PLC0415

    for kind in (catboost.CatBoostClassifier, catboost.CatBoostRegressor, catboost.CatBoostRanker):
        _add(kind, lambda model: read(model)[0])


def _add(kind: type, read: Read) -> None:
    """Registers a class under a name of its own."""
    if kind in _readers:
        return
    classifies = kind.__name__.endswith("Classifier")
    shapes = (
        calculate_linear_classifier_output_shapes if classifies else calculate_linear_regressor_output_shapes
    )
    alias = f"OnnxServe{kind.__module__.partition('.')[0]}{kind.__name__}"
    update_registered_converter(
        kind, alias, shapes, _converter(read),
        options=_CLASSIFIER_OPTIONS if classifies else None,
        parser=_parser(alias) if kind.__module__.startswith("catboost") and classifies else None,
    )  # fmt: skip
    _readers[kind] = read


def _parser(alias: str) -> Any:
    """CatBoost's classes are no ClassifierMixin, by which skl2onnx knows that there are two outputs."""

    def parse(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:  # noqa: ARG001  skl2onnx names it
        operator = scope.declare_local_operator(alias, model)
        operator.inputs = inputs
        double = isinstance(inputs[0].type, DoubleTensorType)
        # The shapes' calculator puts the type of the labels right.
        label = scope.declare_local_variable("label", Int64TensorType())
        shares = scope.declare_local_variable(
            "probabilities", DoubleTensorType() if double else FloatTensorType()
        )
        operator.outputs.append(label)
        operator.outputs.append(shares)
        return operator.outputs

    return parse


def _replace(kind: type, wrap: Callable[[Convert], Convert]) -> None:
    """Puts a converter in the place of skl2onnx's, which ``wrap`` is given; shapes and options stay."""
    alias = sklearn_operator_name_map[kind]
    if alias in _replaced:
        return
    inner = get_converter(alias)
    register_converter(alias, wrap(inner), overwrite=True, options=inner.get_allowed_options())
    _replaced.add(alias)


def _converter(read: Read, otherwise: Convert | None = None) -> Convert:
    def convert(scope: Any, operator: Any, container: Any) -> None:
        model = operator.raw_operator
        boosting = read(model)
        if boosting is None:
            assert otherwise is not None
            otherwise(scope, operator, container)
            return
        if (
            container.has_options(model, "raw_scores")
            and container.get_options(model, {"raw_scores": False})["raw_scores"]
        ):
            raise ConversionError(
                f"{type(model).__name__}: raw scores inside another estimator have no converter"
            )
        if boosting.multilabel:
            raise ConversionError(
                f"{type(model).__name__}: several labels inside another estimator have no converter"
            )
        graph = Graph(scope.get_unique_operator_name("trees") + "_")
        wanted = TensorProto.DOUBLE if boosting.trees.dtype == np.float64 else TensorProto.FLOAT
        features = graph.add("Cast", operator.inputs[0].full_name, to=wanted)
        scores = boosting.scores(graph, features)
        if boosting.classes:
            label, probabilities = operator.outputs
            found = boosting.probabilities(graph, scores)
            boosting.label(graph, found, label.full_name)
            graph.add("Cast", found, output=probabilities.full_name, to=_element(probabilities))
        else:
            found = boosting.predictions(graph, scores)
            [prediction] = operator.outputs
            graph.add("Cast", found, output=prediction.full_name, to=_element(prediction))
        _splice(graph, container)

    return convert


def _several(inner: Convert) -> Convert:
    """The converter of forests with several sets of classes; skl2onnx's where the sets differ in size."""

    def convert(scope: Any, operator: Any, container: Any) -> None:
        model = operator.raw_operator
        if len({tuple(np.asarray(classes).tolist()) for classes in model.classes_}) != 1:
            inner(scope, operator, container)
            return
        graph = Graph(scope.get_unique_operator_name("forest") + "_")
        features = graph.add("Cast", operator.inputs[0].full_name, to=TensorProto.FLOAT)
        label, shares = multilabel_scores(model, graph, features)
        graph.add("Identity", label, output=operator.outputs[0].full_name)
        graph.add("Cast", shares, output=operator.outputs[1].full_name, to=_element(operator.outputs[1]))
        _splice(graph, container)

    return convert


def _isolate(scope: Any, operator: Any, container: Any) -> None:
    """The converter of ``IsolationForest``."""
    graph = Graph(scope.get_unique_operator_name("isolation") + "_")
    features = graph.add("Cast", operator.inputs[0].full_name, to=TensorProto.FLOAT)
    label, decision = isolation_scores(operator.raw_operator, graph, features)
    graph.add("Identity", label, output=operator.outputs[0].full_name)
    graph.add("Cast", decision, output=operator.outputs[1].full_name, to=_element(operator.outputs[1]))
    _splice(graph, container)


def _splice(graph: Graph, container: Any) -> None:
    container.nodes.extend(graph.nodes)
    container.initializers.extend(graph.initializers)
    container.node_domain_version_pair_sets.update({("", 18), ("ai.onnx.ml", 3)})


def _element(variable: Any) -> int:
    return int(TensorProto.DOUBLE if isinstance(variable.type, DoubleTensorType) else TensorProto.FLOAT)


# --- Behind a cast ----------------------------------------------------------------------------------


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


def _in_single(inner: Convert) -> Convert:
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
        _splice(graph, container)

    return convert
