"""``CalibratedClassifierCV``: curves over what inner classifiers say, and the mean of their shares.

skl2onnx's converter asks for raw scores where scikit-learn takes probabilities and the other way round, and knows
no temperatures; this one follows ``sklearn.calibration._CalibratedClassifier.predict_proba``.
"""

from typing import Any

import numpy as np
from skl2onnx import update_registered_converter
from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes
from sklearn.calibration import CalibratedClassifierCV
from sklearn.isotonic import IsotonicRegression

from converters.sklearn_composites import ask, delegated, numbers
from converters.sklearn_expressions import Expression, concat, label_of, where
from converters.sklearn_formulas import CLASSIFIER_OPTIONS, alias_of, features_of, give
from converters.sklearn_functions import interpolate

__all__ = ["register"]

_TINY = 1e-12  # what _convert_to_logits adds to probabilities


def register() -> None:
    """Registers the class with skl2onnx."""
    update_registered_converter(
        CalibratedClassifierCV, alias_of(CalibratedClassifierCV), calculate_linear_classifier_output_shapes, _convert,
        options=CLASSIFIER_OPTIONS,
    )  # fmt: skip


def _convert(scope: Any, operator: Any, container: Any) -> None:
    model = operator.raw_operator
    features = features_of(scope, operator)
    total: Expression | None = None
    for member in model.calibrated_classifiers_:
        inner = delegated(member.estimator)
        outputs = ask(scope, container, inner, operator.inputs, raw=True)
        said = numbers(features, outputs[-1])
        shares = _temperate(member, inner, said) if member.method == "temperature" else _curved(member, said)
        total = shares if total is None else total + shares
    assert total is not None
    mean = total / float(len(model.calibrated_classifiers_))
    give(container, operator, [label_of(model.classes_, mean.highest()), mean])


def _curved(member: Any, said: Expression) -> Expression:
    """A curve for each class; of two classes only the second has one."""
    count = len(member.classes)
    if count == 2:  # noqa: PLR2004  as said
        second = _curve(member.calibrators[0], said.reshape(0, -1).columns([-1]))
        return concat([-second + 1.0, second])
    known = np.searchsorted(member.classes, member.estimator.classes_)
    if len(known) == 2:  # noqa: PLR2004  a fold without a third class has one score, and scikit-learn takes it for the first's
        said = said.reshape(0, -1).columns([-1])
    curves = {
        int(place): _curve(calibrator, said.columns([column]))
        for column, (place, calibrator) in enumerate(zip(known, member.calibrators, strict=False))
    }
    shares = concat([curves.get(place) or said.rows(np.zeros(1)) for place in range(count)])
    total = shares.total()
    return where(total > 0.0, shares / where(total > 0.0, total, 1.0), 1.0 / count)


def _curve(calibrator: Any, x: Expression) -> Expression:
    if isinstance(calibrator, IsotonicRegression):
        return interpolate(calibrator, x)
    return (x * -float(calibrator.a_) - float(calibrator.b_)).call("Sigmoid")


def _temperate(member: Any, inner: Any, said: Expression) -> Expression:
    """Logits over a temperature; probabilities become logits by their logarithm."""
    if not hasattr(inner, "decision_function"):
        logits = (said + _TINY).call("Log")
    elif len(member.classes) == 2:  # noqa: PLR2004  one score tells two classes apart
        ahead = said.reshape(0, -1).columns([-1])
        logits = concat([-ahead, ahead])
    else:
        logits = said
    return (logits * float(member.calibrators[0].beta_)).call("Softmax", axis=1)
