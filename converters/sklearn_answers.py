"""What a scikit-learn estimator answers, by the names of the converted model's outputs."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import is_classifier, is_clusterer, is_outlier_detector
from sklearn.feature_selection import SelectorMixin
from sklearn.neighbors import NearestNeighbors

from converters.errors import ConversionError, ConversionRefused
from converters.parity import Original, Probe
from converters.sklearn_inputs import Inputs
from converters.sklearn_messages import one_line
from onnx_serve.errors import quote
from onnx_serve.tensors import Array, Tensors

_LARGEST = 1 << 27  # numbers in the answers to one probe: 1 GiB
_ALONE = 256
_FEW = 8  # rows that prove something

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
        answers = {"label": estimator.predict}
        return answers | ({"scores": estimator.transform} if hasattr(estimator, "transform") else {})
    if isinstance(estimator, NearestNeighbors):
        return {
            "index": lambda rows: estimator.kneighbors(rows, return_distance=False),
            "distance": lambda rows: estimator.kneighbors(rows)[0],
        }
    if hasattr(estimator, "predict"):
        return {"prediction": estimator.predict}
    if hasattr(estimator, "transform"):
        return {"transformed": estimator.transform}
    raise ConversionError(f"{type(estimator).__name__} has neither predict nor transform: nothing to serve")


def original_of(inputs: Inputs, answers: Mapping[str, Callable[[Any], Any]]) -> Original:
    """The estimator's way to answer a feed."""

    def answer(feed: Tensors) -> Tensors:
        rows = inputs.rows(feed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about names of columns, and of numbers that overflow
            return {name: _dense(ask(rows), name) for name, ask in answers.items()}

    return answer


def _dense(values: Any, name: str) -> Array:
    """An answer as one array: sparse ones filled, one probability matrix a label stacked, two-sided scores."""
    if hasattr(values, "toarray"):
        if np.prod(values.shape, dtype=float) > _LARGEST:
            raise ConversionRefused(
                f"its answers have {values.shape[1]} columns, almost all of them 0: too many for the dense arrays of ONNX"
            )
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
    except ConversionRefused:  # whatever the rows
        raise
    except Exception:  # noqa: BLE001  estimators raise what they like on what they do not take
        return False
    # An answer that is itself NaN says only that nothing was computed; one without columns says all it can.
    return all(
        array.dtype.kind != "f" or not array.size or not np.isnan(array).all() for array in answers.values()
    )


def accepted(original: Original, probes: Sequence[Probe]) -> list[Probe]:
    """The probes that the estimator takes.

    If it takes none, those of their kin without signs or fractions, and last those of their rows that it takes alone.

    Raises:
        ConversionRefused: Its answers are no arrays, whatever the rows.
    """
    taken = [probe for probe in probes if _accepts(original, probe.feed)]
    if taken or not probes:
        return taken
    changes: dict[str, Callable[[Array], Array]] = {
        "positive": np.abs,
        "whole": lambda array: np.floor(np.abs(array)),
    }
    kin = []
    for name, change in changes.items():
        feed = {
            key: change(array) if array.dtype.kind == "f" else array for key, array in probes[0].feed.items()
        }
        if _accepts(original, feed):
            return [Probe(name, feed)]
        kin.append(Probe(f"{name} rows", feed))
    for probe in (Probe("rows", probes[0].feed), *kin):
        feed = _rows_taken(original, probe.feed)
        if len(next(iter(feed.values()))) >= _FEW:
            return [Probe(probe.name, feed)]
    return []


def _rows_taken(original: Original, feed: Tensors) -> Tensors:
    """The rows, of the first ``_ALONE``, that the estimator takes one at a time."""
    count = min(_ALONE, len(next(iter(feed.values()))))
    rows = [
        row
        for row in range(count)
        if _accepts(original, {key: array[row : row + 1] for key, array in feed.items()})
    ]
    return {key: array[rows] for key, array in feed.items()}


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
