"""Converters of our own inside skl2onnx: trees, boosting libraries, and casts where it computes in double.

skl2onnx lets a class be registered with a converter
(https://onnx.ai/sklearn-onnx/auto_tutorial/plot_gexternal_lightgbm.html). Registered here are

- scikit-learn's trees, forests and histogram boosting (``sklearn_trees``);
- encoders of categories (``sklearn_encoders``);
- estimators that are formulas (``sklearn_formulas``) or ask others (``sklearn_composites``, ``_calibration``, ``_stacking``);
- the estimators of xgboost, LightGBM and CatBoost, those that are installed;
- ``GradientBoosting*`` and ``AdaBoost*``, whose trees cast their features to float32 whatever they get:
  skl2onnx's converter, behind a cast where the graph is in double.
"""

import contextlib
import contextvars
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
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
from sklearn import ensemble, neighbors

from converters import (
    sklearn_affine,
    sklearn_calibration,
    sklearn_composites,
    sklearn_distances,
    sklearn_encoders,
    sklearn_formulas,
    sklearn_functions,
    sklearn_imputers,
    sklearn_kernels,
    sklearn_records,
    sklearn_stacking,
    sklearn_transforms,
)
from converters.boosting import Boosting
from converters.errors import ConversionError
from converters.graph import Graph
from converters.sklearn_expressions import Expression
from converters.sklearn_formulas import CLASSIFIER_OPTIONS, alias_of, element, splice
from converters.sklearn_single import in_single
from converters.sklearn_trees import (
    FORESTS,
    HISTOGRAMS,
    isolation_scores,
    leaf_columns,
    multilabel_scores,
    read_forest,
    read_histogram,
)

__all__ = ["SINGLE_PRECISION", "boosting_of", "register", "zeros_missing"]

# They cast what they get to float32 (sklearn/tree/_classes.py, sklearn/ensemble/_gb.py).
_WRAPPED = (ensemble.GradientBoostingClassifier, ensemble.GradientBoostingRegressor)
SINGLE_PRECISION = (*FORESTS, *_WRAPPED, ensemble.IsolationForest, ensemble.RandomTreesEmbedding)
# Most often of trees; skl2onnx's converters know float32 only.
_ADAPTIVE = (ensemble.AdaBoostClassifier, ensemble.AdaBoostRegressor)
Convert = Callable[[Any, Any, Any], None]
Read = Callable[[Any], Boosting | None]
_readers: dict[type, Read] = {}
_replaced: set[str] = set()
_zeros_missing = contextvars.ContextVar("zeros_missing", default=False)


def register() -> None:
    """Registers what is not registered yet; called before each conversion, cheap after the first."""
    for kind in FORESTS:
        _replace(kind, lambda _: _converter(read_forest, _several))
        _readers[kind] = read_forest
    for kind in (*_WRAPPED, *_ADAPTIVE):
        _replace(kind, in_single)
    _replace(ensemble.IsolationForest, lambda _: _isolate)
    for kind in HISTOGRAMS:
        _add(kind, read_histogram)
    if "formulas" not in _replaced:
        for family in (
            sklearn_affine,
            sklearn_distances,
            sklearn_functions,
            sklearn_kernels,
            sklearn_transforms,
        ):
            sklearn_formulas.register(family.FORMULAS)
        sklearn_formulas.register({ensemble.RandomTreesEmbedding: _embed})
        sklearn_composites.register()
        for kind in (neighbors.KNeighborsClassifier, neighbors.KNeighborsRegressor):
            sklearn_formulas.prefer(
                kind, sklearn_distances.weighted_neighbours, sklearn_distances.is_weighted
            )
        sklearn_calibration.register()
        sklearn_stacking.register()
        sklearn_imputers.register()
        sklearn_encoders.register()
        sklearn_records.register()
        _replaced.add("formulas")
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
        _add(kind, lambda model: _sparse(read(model)[0]))


def _sparse(boosting: Boosting) -> Boosting:
    """The model with zeros as missing values: that is what xgboost takes the gaps of a sparse matrix for."""
    if not _zeros_missing.get():
        return boosting
    return replace(boosting, zero_as_nan=frozenset(range(boosting.trees.features)))


@contextlib.contextmanager
def zeros_missing(*, missing: bool) -> Iterator[None]:
    """Within it, conversions take the zeros that xgboost's estimators get for missing values, or do not."""
    token = _zeros_missing.set(missing)
    try:
        yield
    finally:
        _zeros_missing.reset(token)


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
    alias = alias_of(kind)
    update_registered_converter(
        kind, alias, shapes, _converter(read),
        options=_options(kind) if classifies else None,
        parser=_parser(alias) if kind.__module__.startswith("catboost") and classifies else None,
    )  # fmt: skip
    _readers[kind] = read


def _options(kind: type) -> dict[str, list[Any]]:
    """skl2onnx's options; without a decision function there are no raw scores to ask for."""
    if hasattr(kind, "decision_function"):
        return CLASSIFIER_OPTIONS
    return {name: values for name, values in CLASSIFIER_OPTIONS.items() if name != "raw_scores"}


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
        raw = (
            container.has_options(model, "raw_scores")
            and container.get_options(model, {"raw_scores": False})["raw_scores"]
        )
        if boosting.multilabel:
            raise ConversionError(
                f"{type(model).__name__}: several labels inside another estimator have no converter"
            )
        if len(operator.outputs) > 1 and not boosting.classes:
            raise ConversionError(
                f"{type(model).__name__}: by an objective of your own it answers sums, which no step can take for classes"
            )
        graph = Graph(scope.get_unique_operator_name("trees") + "_")
        wanted = TensorProto.DOUBLE if boosting.trees.dtype == np.float64 else TensorProto.FLOAT
        features = graph.add("Cast", operator.inputs[0].full_name, to=wanted)
        scores = boosting.scores(graph, features)
        if boosting.classes:
            label, probabilities = operator.outputs
            found = boosting.probabilities(graph, scores)
            boosting.label(graph, found, label.full_name)
            told = scores if raw else found
            graph.add("Cast", told, output=probabilities.full_name, to=element(probabilities))
        else:
            found = boosting.predictions(graph, scores)
            [prediction] = operator.outputs
            graph.add("Cast", found, output=prediction.full_name, to=element(prediction))
        splice(graph, container)

    return convert


def _several(scope: Any, operator: Any, container: Any) -> None:
    """The converter of forests with several sets of classes."""
    graph = Graph(scope.get_unique_operator_name("forest") + "_")
    features = graph.add("Cast", operator.inputs[0].full_name, to=TensorProto.FLOAT)
    label, shares = multilabel_scores(operator.raw_operator, graph, features)
    graph.add("Identity", label, output=operator.outputs[0].full_name)
    graph.add("Cast", shares, output=operator.outputs[1].full_name, to=element(operator.outputs[1]))
    splice(graph, container)


def _embed(model: Any, x: Expression) -> list[Expression]:
    """The formula of ``RandomTreesEmbedding``."""
    features = x.graph.add("Cast", x.name, to=TensorProto.FLOAT)
    return [x.named(leaf_columns(model, x.graph, features))]


def _isolate(scope: Any, operator: Any, container: Any) -> None:
    """The converter of ``IsolationForest``."""
    graph = Graph(scope.get_unique_operator_name("isolation") + "_")
    features = graph.add("Cast", operator.inputs[0].full_name, to=TensorProto.FLOAT)
    label, decision = isolation_scores(operator.raw_operator, graph, features)
    graph.add("Identity", label, output=operator.outputs[0].full_name)
    graph.add("Cast", decision, output=operator.outputs[1].full_name, to=element(operator.outputs[1]))
    splice(graph, container)
