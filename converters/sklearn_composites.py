"""Estimators that ask others: delegates, thresholds, chains, codes, and regressors of a transformed target.

skl2onnx asks an estimator inside another one in the same way: it is declared as an operator of its own, whose
outputs are named when it is declared and computed by its own converter later.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto
from skl2onnx import update_registered_converter
from skl2onnx._parse import _parse_sklearn, _parse_sklearn_simple_model
from skl2onnx._supported_operators import sklearn_operator_name_map
from skl2onnx.common._registration import get_converter
from skl2onnx.common.data_types import Int64TensorType
from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes
from sklearn import compose, frozen, model_selection, multiclass, multioutput, semi_supervised
from sklearn.base import is_classifier
from sklearn.model_selection._search_successive_halving import HalvingGridSearchCV, HalvingRandomSearchCV
from sklearn.multiclass import _ConstantPredictor
from sklearn.pipeline import Pipeline

from converters.errors import ConversionError
from converters.sklearn_distances import squared_distances
from converters.sklearn_expressions import Expression, concat, label_of
from converters.sklearn_formulas import CLASSIFIER_OPTIONS, alias_of, features_of, give
from converters.sklearn_functions import invert
from converters.sklearn_inputs import children

__all__ = ["DELEGATES", "ahead", "allowed_options", "ask", "delegated", "feed", "numbers", "register"]

# By class, the attribute that holds the fitted estimator which answers.
DELEGATES = {
    frozen.FrozenEstimator: "estimator",
    model_selection.GridSearchCV: "best_estimator_",
    model_selection.RandomizedSearchCV: "best_estimator_",
    # Experimental: their public names need an import of their own.
    HalvingGridSearchCV: "best_estimator_",
    HalvingRandomSearchCV: "best_estimator_",
    semi_supervised.SelfTrainingClassifier: "estimator_",
}


def delegated(estimator: Any) -> Any:
    """The estimator that answers in the place of one that only holds it."""
    for kind, attribute in DELEGATES.items():
        if isinstance(estimator, kind) and hasattr(estimator, attribute):
            return delegated(getattr(estimator, attribute))
    return estimator


def register() -> None:
    """Registers these classes with skl2onnx."""
    for kind in DELEGATES:
        update_registered_converter(
            kind, alias_of(kind), _no_shapes, _delegate, parser=_parse_delegate, options=CLASSIFIER_OPTIONS
        )
    for kind, shapes, convert in (
        (model_selection.FixedThresholdClassifier, calculate_linear_classifier_output_shapes, _threshold),
        (model_selection.TunedThresholdClassifierCV, calculate_linear_classifier_output_shapes, _threshold),
        (multiclass.OutputCodeClassifier, calculate_linear_classifier_output_shapes, _output_code),
        (multioutput.ClassifierChain, _chain_shapes, _chain),
    ):
        update_registered_converter(kind, alias_of(kind), shapes, convert, options=CLASSIFIER_OPTIONS)
    update_registered_converter(
        multioutput.RegressorChain, alias_of(multioutput.RegressorChain), _chain_shapes, _chain
    )
    target = compose.TransformedTargetRegressor
    update_registered_converter(target, alias_of(target), _no_shapes, _transformed_target)


# --- Asking another estimator ---------------------------------------------------------------------------


def ask(scope: Any, container: Any, model: Any, inputs: Sequence[Any], *, raw: bool = False) -> list[Any]:
    """The variables of an inner estimator's outputs, of a classifier without a ZipMap.

    Args:
        scope: skl2onnx's, as converters get it.
        container: skl2onnx's, as converters get it.
        model: The inner estimator.
        inputs: The variables that it is asked about.
        raw: Whether a classifier should answer its decision function where it has one.
    """
    model = delegated(model)
    if isinstance(model, Pipeline):
        *before, (_, last) = children(model)
        for _, step in before:
            inputs = _parse_sklearn(scope, step, list(inputs))
        return ask(scope, container, last, inputs, raw=raw)
    if is_classifier(model):
        allowed = allowed_options(model)
        options = {"zipmap": False} if "zipmap" in allowed else {}
        scores = hasattr(model, "decision_function") and (raw or not hasattr(model, "predict_proba"))
        if "raw_scores" in allowed:
            options["raw_scores"] = scores
        scope.add_options(id(model), options)
        container.add_options(id(model), options)
        if "zipmap" not in allowed:  # its parser would add one all the same
            return list(_parse_sklearn_simple_model(scope, model, list(inputs)))
    return list(_parse_sklearn(scope, model, list(inputs)))


def allowed_options(model: Any) -> Any:
    """The options that an estimator's converter takes."""
    alias = sklearn_operator_name_map.get(type(model))
    allowed = get_converter(alias).get_allowed_options() if alias else None
    return allowed if isinstance(allowed, dict) else {}


def numbers(features: Expression, variable: Any) -> Expression:
    """An inner answer as a matrix of the type that the whole is computed in."""
    return features.named(variable.full_name).numbers()


def feed(scope: Any, operator: Any, values: Expression) -> Any:
    """The variable of a computed matrix [N, any], for inner estimators."""
    fed = scope.declare_local_variable("fed", type(operator.outputs[-1].type)([None, None]))
    fed.init_status(is_fed=True)
    values.graph.add("Identity", values.name, output=fed.full_name)
    return fed


def ahead(features: Expression, outputs: Sequence[Any]) -> Expression:
    """How sure an inner classifier of two classes is of the second, [N, 1]: the last column that it answers."""
    return numbers(features, outputs[-1]).reshape(0, -1).columns([-1])


def _no_shapes(operator: Any) -> None:
    """Leaves the outputs as the parser declared them: [N, any]."""


# --- Delegates --------------------------------------------------------------------------------------


def _parse_delegate(scope: Any, model: Any, inputs: Any, custom_parsers: Any = None) -> Any:
    inner = delegated(model)
    scope.add_options(id(inner), scope.get_options(model, fail=False))
    return _parse_sklearn(scope, inner, inputs, custom_parsers=custom_parsers)


def _delegate(scope: Any, operator: Any, container: Any) -> None:
    """Inside an estimator whose converter declares its parts itself."""
    outputs = ask(scope, container, operator.raw_operator, operator.inputs)
    features = features_of(scope, operator)
    give(container, operator, [features.named(variable.full_name) for variable in outputs])


# --- Thresholds -------------------------------------------------------------------------------------


def _threshold(scope: Any, operator: Any, container: Any) -> None:
    """A classifier of two classes with a threshold of its own."""
    model = operator.raw_operator
    inner = delegated(getattr(model, "estimator_", model.estimator))
    probable = hasattr(inner, "predict_proba")
    if model.response_method == "decision_function" and probable:
        raise ConversionError(
            f"{type(model).__name__}: a threshold on decision_function has no converter where there are probabilities too"
        )
    features = features_of(scope, operator)
    outputs = ask(scope, container, inner, operator.inputs)
    threshold, positive = _limit(model, probable=probable)
    classes = list(model.classes_)
    second = positive is None or positive == classes[1]
    sure = ahead(features, outputs)
    if not second:
        sure = -sure + 1.0 if probable else -sure
    above = (sure >= threshold).call("Cast", to=TensorProto.INT64).reshape(-1)
    label = label_of(classes if second else classes[::-1], above)
    give(container, operator, [label, numbers(features, outputs[-1])])


def _limit(model: Any, *, probable: bool) -> tuple[float, Any]:
    """The threshold, and the label that is given from there on; None for the second."""
    if isinstance(model, model_selection.TunedThresholdClassifierCV):
        return float(model.best_threshold_), model._curve_scorer._get_pos_label()  # noqa: SLF001  no public form
    if model.threshold == "auto":
        return (0.5 if probable else 0.0), model.pos_label
    return float(model.threshold), model.pos_label


# --- Chains and codes -------------------------------------------------------------------------------


def _chain_shapes(operator: Any) -> None:
    rows, count = operator.inputs[0].get_first_dimension(), len(operator.raw_operator.estimators_)
    if len(operator.outputs) > 1:
        operator.outputs[0].type = Int64TensorType([rows, count])
    last = operator.outputs[-1]
    last.type = type(last.type)([rows, count])


def _chain(scope: Any, operator: Any, container: Any) -> None:
    """Each estimator sees the features and what those before it predicted."""
    model = operator.raw_operator
    features = features_of(scope, operator)
    method = getattr(model, "chain_method_", "predict")
    seen, labels, shares = features, [], []
    for estimator in model.estimators_:
        outputs = ask(scope, container, estimator, [feed(scope, operator, seen)])
        label = numbers(features, outputs[0]).reshape(-1, 1)
        labels.append(label)
        shares.append(ahead(features, outputs) if is_classifier(model) else label)
        seen = concat([seen, label if method == "predict" else shares[-1]])
    places = np.argsort(model.order_)
    answers = [concat(shares).columns(places)]
    if is_classifier(model):
        whole = concat(labels).columns(places).call("Cast", to=TensorProto.INT64)
        answers = [whole, *answers]
    give(container, operator, answers)


def _output_code(scope: Any, operator: Any, container: Any) -> None:
    """The class whose code is nearest to what the classifiers of two classes say."""
    model = operator.raw_operator
    features = features_of(scope, operator)
    bits = []
    for estimator in model.estimators_:
        if isinstance(estimator, _ConstantPredictor):
            bits.append(features.rows(np.asarray(estimator.y_, np.float64).reshape(1)))
            continue
        outputs = ask(scope, container, estimator, operator.inputs, raw=True)
        bits.append(ahead(features, outputs))
    squares = squared_distances(concat(bits), model.code_book_)
    give(container, operator, [label_of(model.classes_, squares.lowest()), -squares])


# --- Regression of a transformed target -----------------------------------------------------------------


def _transformed_target(scope: Any, operator: Any, container: Any) -> None:
    model = operator.raw_operator
    features = features_of(scope, operator)
    [prediction] = ask(scope, container, model.regressor_, operator.inputs)
    width = 1 if model._training_dim == 1 else -1  # noqa: SLF001  no public form
    give(container, operator, [invert(model.transformer_, numbers(features, prediction).reshape(0, width))])
