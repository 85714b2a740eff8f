"""Transformers and regressors that multiply the features by a matrix and add a row, once or in layers.

Where there is one matrix, it is asked of the fitted estimator itself: what it makes of the rows 0 and of each unit vector.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn import cluster, cross_decomposition, decomposition, neural_network, random_projection

from converters.errors import ConversionError
from converters.sklearn_expressions import Expression
from onnx_serve.tensors import Array

__all__ = ["FORMULAS", "affine"]


_ROWS = 256  # unit vectors asked at once, so that wide matrices cost no square of their width


def affine(answer: Callable[[Array], Any], count: int, x: Expression) -> Expression:
    """The matrix and the row behind an affine answer to ``count`` features, as a formula."""
    parts = []
    for start in range(0, count, _ROWS):
        # The zeros lead each question: some estimators answer one row without its dimension.
        units = np.vstack([np.zeros((1, count)), np.eye(min(_ROWS, count - start), count, start)])
        values = answer(units)
        dense = np.asarray(values.toarray() if hasattr(values, "toarray") else values, np.float64)
        parts.append(dense.reshape(len(units), -1))
    offset: Array = parts[0][0]
    return x @ (np.vstack([part[1:] for part in parts]) - offset) + offset


def _affine(model: Any, x: Expression) -> list[Expression]:
    answer = model.predict if hasattr(model, "predict") else model.transform
    return [affine(answer, model.n_features_in_, x)]


def _agglomeration(model: Any, x: Expression) -> list[Expression]:
    if model.pooling_func is not np.mean:
        raise ConversionError(
            f"FeatureAgglomeration: the only pooling_func with an ONNX form is np.mean, got {model.pooling_func}"
        )
    return _affine(model, x)


def _layers(model: Any, x: Expression) -> list[Expression]:
    """``MLPRegressor``; skl2onnx's converter makes one column of several targets."""
    last = len(model.coefs_) - 1
    for layer, (weights, offset) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
        x = _ACTIVATIONS[model.out_activation_ if layer == last else model.activation](x @ weights + offset)
    return [x]


# sklearn/neural_network/_base.py; poisson losses answer with exp.
_ACTIVATIONS: Mapping[str, Callable[[Expression], Expression]] = {
    "identity": lambda x: x,
    "relu": lambda x: x.call("Relu"),
    "tanh": lambda x: x.call("Tanh"),
    "logistic": lambda x: x.call("Sigmoid"),
    "exp": lambda x: x.call("Exp"),
}


FORMULAS = {
    **dict.fromkeys(
        (
            cross_decomposition.CCA, cross_decomposition.PLSCanonical, cross_decomposition.PLSSVD,
            decomposition.FactorAnalysis, decomposition.FastICA, decomposition.MiniBatchSparsePCA,
            decomposition.SparsePCA, random_projection.SparseRandomProjection,
        ),
        _affine,
    ),
    cluster.FeatureAgglomeration: _agglomeration,
    neural_network.MLPRegressor: _layers,
}  # fmt: skip
