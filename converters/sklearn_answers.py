"""What a scikit-learn estimator answers, by the names of the converted model's outputs."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import is_classifier, is_clusterer, is_outlier_detector
from sklearn.feature_selection import SelectorMixin

from converters.errors import ConversionError, ConversionRefused
from converters.parity import Original, Probe
from converters.sklearn_inputs import Inputs
from converters.sklearn_messages import one_line
from onnx_serve.errors import quote
from onnx_serve.tensors import Array, Tensors

__all__ = ["accepted", "answers_of", "check_answers", "classes_of", "original_of"]


def answers_of(estimator: Any) -> dict[str, Callable[[Any], Any]]:
    """The estimator's answers by the names of the outputs, in skl2onnx's order."""
    if isinstance(estimator, SelectorMixin):
        return {"transformed": estimator.transform}
    if is_classifier(estimator) or (hasattr(estimator, "predict_proba") and hasattr(estimator, "predict")):
        if hasattr(estimator, "predict_proba"):
            return {"label": estimator.predict, "probabilities": estimator.predict_proba}
        if hasattr(estimator, "decision_function"):
            return {"label": estimator.predict, "scores": estimator.decision_function}
        return {"label": estimator.predict}
    if is_outlier_detector(estimator) and hasattr(estimator, "predict"):
        return {"label": estimator.predict, "scores": estimator.decision_function}
    if is_clusterer(estimator) and hasattr(estimator, "predict"):
        return {"label": estimator.predict, "scores": getattr(estimator, "transform", estimator.predict)}
    if hasattr(estimator, "predict"):
        return {"prediction": estimator.predict}
    if hasattr(estimator, "transform"):
        return {"transformed": estimator.transform}
    raise ConversionError(f"{type(estimator).__name__} has neither predict nor transform: nothing to serve")


def original_of(inputs: Inputs, answers: Mapping[str, Callable[[Any], Any]]) -> Original:
    """The estimator's way to answer a feed."""

    def answer(feed: Tensors) -> Tensors:
        rows = inputs.rows(feed)
        if len(inputs.columns) == 1 and inputs.columns[0].name == "labels":
            rows = rows[:, 0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names of columns, and of numbers that overflow
            return {name: _dense(ask(rows), name) for name, ask in answers.items()}

    return answer


def _dense(values: Any, name: str) -> Array:
    """An answer as one array: sparse ones filled, one probability matrix a label stacked, two-sided scores."""
    if hasattr(values, "toarray"):
        values = values.toarray()
    if isinstance(values, list) and values and all(isinstance(part, np.ndarray) for part in values):
        if len({part.shape for part in values}) != 1:
            raise ConversionRefused(
                "its labels have different numbers of classes, so that no array holds them"
            )
        return np.stack(values, axis=1)
    array = np.asarray(values)
    if name == "scores" and array.ndim == 1:
        return np.asarray(array, np.float64)[:, None]
    return array


def _accepts(original: Original, feed: Tensors) -> bool:
    try:
        answers = original(feed)
    except Exception:  # noqa: BLE001  estimators raise what they like on what they do not take
        return False
    # An answer that is itself NaN says only that nothing was computed.
    return all(array.dtype.kind != "f" or not np.isnan(array).all() for array in answers.values())


def accepted(original: Original, probes: Sequence[Probe]) -> list[Probe]:
    """The probes that the estimator takes; if it takes none, those of their kin without signs or fractions."""
    taken = [probe for probe in probes if _accepts(original, probe.feed)]
    if taken:
        return taken
    changes: dict[str, Callable[[Array], Array]] = {
        "positive": np.abs,
        "whole": lambda array: np.floor(np.abs(array)),
    }
    for name, change in changes.items():
        feed = {
            key: change(array) if array.dtype.kind == "f" else array for key, array in probes[0].feed.items()
        }
        if _accepts(original, feed):
            return [Probe(name, feed)]
    return []


def check_answers(original: Original, probes: Sequence[Probe]) -> None:
    """Asks the estimator about the user's sample.

    Raises:
        ConversionError: It does not take these rows.
    """
    for probe in probes:
        try:
            original(probe.feed)
        except ConversionRefused:
            raise
        except Exception as ex:  # as above: whatever it is, the sample does not fit
            raise ConversionError(
                f"--sample: the estimator does not take these rows: {quote(one_line(ex))}"
            ) from ex


def classes_of(estimator: Any) -> list[Any]:
    """The class labels in the order of the probabilities, or none."""
    classes = getattr(estimator, "classes_", None)
    if classes is None or isinstance(classes, list) or not is_classifier(estimator):
        return []
    return list(np.asarray(classes).tolist())
