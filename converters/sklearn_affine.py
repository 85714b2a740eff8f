"""Transformers and regressors that multiply the features by a matrix and add a row.

The matrix is asked of the fitted estimator itself: what it makes of the rows 0 and of each unit vector.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn import cluster, cross_decomposition, decomposition, random_projection

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
}  # fmt: skip
