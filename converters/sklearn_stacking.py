"""``Stacking*``, and ``OneVsRestClassifier`` over classifiers without probabilities.

skl2onnx's converters ask every inner classifier of a stack for the same kind of answer, and a one-against-the-rest
for probabilities only; these ask each for what scikit-learn asks it (``stack_method_``).
"""

from typing import Any

from skl2onnx import update_registered_converter
from skl2onnx._supported_operators import sklearn_operator_name_map
from skl2onnx.common._registration import get_converter, register_converter
from skl2onnx.common.shape_calculator import (
    calculate_linear_classifier_output_shapes,
    calculate_linear_regressor_output_shapes,
)
from sklearn.ensemble import StackingClassifier, StackingRegressor
from sklearn.multiclass import OneVsRestClassifier

from converters.errors import ConversionError
from converters.sklearn_composites import ahead, ask, feed, numbers
from converters.sklearn_expressions import Expression, concat, label_of
from converters.sklearn_formulas import CLASSIFIER_OPTIONS, alias_of, features_of, give

__all__ = ["register"]


def register() -> None:
    """Registers the classes with skl2onnx."""
    update_registered_converter(
        StackingClassifier, alias_of(StackingClassifier), calculate_linear_classifier_output_shapes, _classify,
        options=CLASSIFIER_OPTIONS,
    )  # fmt: skip
    update_registered_converter(
        StackingRegressor, alias_of(StackingRegressor), calculate_linear_regressor_output_shapes, _predict
    )
    alias = sklearn_operator_name_map[OneVsRestClassifier]
    inner = get_converter(alias)

    def convert(scope: Any, operator: Any, container: Any) -> None:
        model = operator.raw_operator
        (inner if hasattr(model, "predict_proba") or model.multilabel_ else _against_the_rest)(
            scope, operator, container
        )

    register_converter(alias, convert, overwrite=True, options=inner.get_allowed_options())


def _classify(scope: Any, operator: Any, container: Any) -> None:
    model = operator.raw_operator
    if isinstance(model.classes_, list):
        raise ConversionError("StackingClassifier: several labels have no converter")
    features = features_of(scope, operator)
    label, scores = _answers(scope, operator, container, features)
    position = features.named(label.full_name)
    # The final estimator learnt the classes' numbers, not their names.
    give(container, operator, [label_of(model.classes_, position.reshape(-1)), numbers(features, scores)])


def _predict(scope: Any, operator: Any, container: Any) -> None:
    features = features_of(scope, operator)
    [prediction] = _answers(scope, operator, container, features)
    give(container, operator, [numbers(features, prediction)])


def _answers(scope: Any, operator: Any, container: Any, features: Expression) -> list[Any]:
    """What the final estimator makes of the others' answers."""
    model = operator.raw_operator
    parts = []
    for estimator, method in zip(model.estimators_, model.stack_method_, strict=True):
        outputs = ask(scope, container, estimator, operator.inputs, raw=method == "decision_function")
        said = numbers(features, outputs[0 if method == "predict" else -1]).reshape(0, -1)
        two = len(getattr(model, "classes_", ())) == 2  # noqa: PLR2004  one column tells two classes apart
        parts.append(said.columns([-1]) if two and method != "predict" else said)
    if model.passthrough:
        parts.append(features)
    return ask(scope, container, model.final_estimator_, [feed(scope, operator, concat(parts))])


def _against_the_rest(scope: Any, operator: Any, container: Any) -> None:
    model = operator.raw_operator
    features = features_of(scope, operator)
    scores = concat(
        [
            ahead(features, ask(scope, container, estimator, operator.inputs))
            for estimator in model.estimators_
        ]
    )
    give(container, operator, [label_of(model.classes_, scores.highest()), scores])
