"""What skl2onnx is shown in the place of parameters and selections that it refuses or takes for something else."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sklearn import ensemble, preprocessing
from sklearn.compose import ColumnTransformer

from converters.sklearn_inputs import indices_of
from converters.sklearn_messages import walk
from converters.sklearn_transforms import replaced

__all__ = ["plain"]

# By class, a parameter, a value of it that skl2onnx refuses, and one that answers the same: sparse answers are
# filled, and nobody asks for what transform() of a voting gives.
_PLAIN: tuple[tuple[type, str, Any, Any], ...] = (
    (ensemble.VotingClassifier, "flatten_transform", True, False),
    (preprocessing.KBinsDiscretizer, "encode", "onehot", "onehot-dense"),
)

_VOTING = ensemble.VotingClassifier | ensemble.VotingRegressor


@contextlib.contextmanager
def plain(estimator: Any) -> Iterator[None]:
    """Within it, the estimator is changed to what skl2onnx takes, without another answer; afterwards it is as before."""
    with _plain_selections(estimator), _plain_parameters(estimator), replaced(estimator):
        yield


@contextlib.contextmanager
def _plain_parameters(estimator: Any) -> Iterator[None]:
    """Parameters that skl2onnx refuses, though they do not change the answers, as it takes them."""
    changed = [
        (step, name, given, taken)
        for _, step in walk(estimator, "")
        for kind, name, given, taken in _PLAIN
        if isinstance(step, kind) and getattr(step, name) == given
    ]
    changed += [
        (step, "weights", step.weights, np.asarray(step.weights))
        for _, step in walk(estimator, "")
        if isinstance(step, _VOTING) and isinstance(step.weights, list | tuple)
    ]
    try:
        for step, name, _, taken in changed:
            setattr(step, name, taken)
        yield
    finally:
        for step, name, given, _ in changed:
            setattr(step, name, given)


@contextlib.contextmanager
def _plain_selections(estimator: Any) -> Iterator[None]:
    """Lists in the place of a ColumnTransformer's masks and slices, which skl2onnx takes for something else."""
    kept = [
        (step, step.transformers_) for _, step in walk(estimator, "") if isinstance(step, ColumnTransformer)
    ]
    try:
        for step, transformers in kept:
            names = getattr(step, "feature_names_in_", None)
            labels = [str(name) for name in names] if names is not None else [""] * step.n_features_in_
            step.transformers_ = [
                (name, inner, selection if isinstance(selection, str) else _listed(selection, labels))
                for name, inner, selection in transformers
            ]
        yield
    finally:
        for step, transformers in kept:
            step.transformers_ = transformers


def _listed(selection: Any, labels: Sequence[str]) -> list[Any]:
    indices = indices_of(selection, labels)
    return [labels[index] for index in indices] if any(labels) else indices
