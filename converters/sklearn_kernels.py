"""Estimators made of kernels, and of the random features that stand for kernels.

The kernels are those of ``sklearn.metrics.pairwise``, by the names and with the defaults that it gives them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn import kernel_approximation, kernel_ridge, neural_network, semi_supervised
from sklearn.metrics.pairwise import KERNEL_PARAMS

from converters.errors import ConversionError
from converters.sklearn_distances import squared_distances
from converters.sklearn_expressions import Expression, concat, label_of, where
from onnx_serve.tensors import Array

__all__ = ["FORMULAS"]


def _rbf(x: Expression, points: Array, gamma: float) -> Expression:
    return (squared_distances(x, points) * -gamma).call("Exp")


def _laplacian(x: Expression, points: Array, gamma: float) -> Expression:
    gaps = (x.reshape(0, 1, -1) - points[None]).call("Abs")
    return (gaps.total(2).reshape(0, -1) * -gamma).call("Exp")


def _polynomial(
    x: Expression, points: Array, gamma: float, degree: float = 3, coef0: float = 1
) -> Expression:
    return ((x @ points.T) * gamma + float(coef0)) ** float(degree)


def _sigmoid(x: Expression, points: Array, gamma: float, coef0: float = 1) -> Expression:
    return ((x @ points.T) * gamma + float(coef0)).call("Tanh")


def _linear(x: Expression, points: Array, gamma: float) -> Expression:  # noqa: ARG001  a linear kernel has no width
    return x @ points.T


def _cosine(x: Expression, points: Array, gamma: float) -> Expression:  # noqa: ARG001  as above
    lengths = np.sqrt((points**2).sum(axis=1, keepdims=True))
    sizes = (x * x).total().call("Sqrt")
    return (x / where(sizes > 0.0, sizes, 1.0)) @ (points / np.where(lengths > 0, lengths, 1.0)).T


_KERNELS: Mapping[str, Callable[..., Expression]] = {
    "rbf": _rbf, "laplacian": _laplacian, "poly": _polynomial, "polynomial": _polynomial,
    "sigmoid": _sigmoid, "linear": _linear, "cosine": _cosine,
}  # fmt: skip


def _kernel(model: Any, x: Expression, points: Any) -> Expression:
    """The kernel [N, P] between the rows and points [P, F].

    Raises:
        ConversionError: It is a function, or one that has no converter.
    """
    if not isinstance(model.kernel, str) or model.kernel not in _KERNELS:
        raise ConversionError(
            f"{type(model).__name__}: expected one of the kernels {', '.join(_KERNELS)}, got {model.kernel}"
        )
    dense = np.asarray(points.toarray() if hasattr(points, "toarray") else points, np.float64)
    parameters = {
        name: value
        for name in ("degree", "coef0")
        if name in KERNEL_PARAMS[model.kernel] and (value := getattr(model, name)) is not None
    }
    gamma = 1.0 / dense.shape[1] if model.gamma is None else float(model.gamma)
    return _KERNELS[model.kernel](x, dense, gamma, **parameters)


def _ridge(model: Any, x: Expression) -> list[Expression]:
    weights = np.asarray(model.dual_coef_, np.float64).reshape(len(model.dual_coef_), -1)
    return [_kernel(model, x, model.X_fit_) @ weights]


def _nystroem(model: Any, x: Expression) -> list[Expression]:
    return [_kernel(model, x, model.components_) @ model.normalization_.T]


def _spread_labels(model: Any, x: Expression) -> list[Expression]:
    """``LabelPropagation`` and ``LabelSpreading``: what the rows of the training say, weighted by nearness."""
    if model.kernel != "rbf":
        raise ConversionError(
            f"{type(model).__name__}: the only kernel with a converter is rbf, got {model.kernel}"
        )
    votes = _rbf(x, np.asarray(model.X_), float(model.gamma)) @ model.label_distributions_
    shares = votes / votes.total()
    return [label_of(model.classes_, shares.highest()), shares]


def _fourier(model: Any, x: Expression) -> list[Expression]:
    scale = float(np.sqrt(2.0 / model.n_components))
    return [(x @ model.random_weights_ + model.random_offset_).call("Cos") * scale]


def _skewed(model: Any, x: Expression) -> list[Expression]:
    return _fourier(model, (x + float(model.skewedness)).call("Log"))


def _additive_chi2(model: Any, x: Expression) -> list[Expression]:
    """``AdditiveChi2Sampler._transform_dense``; zeros stay zeros."""
    steps = model.sample_steps
    interval = {1: 0.8, 2: 0.5, 3: 0.4}[steps] if model.sample_interval is None else model.sample_interval
    zero = x <= 0.0
    known = where(zero, 1.0, x)
    parts = [(known * interval).call("Sqrt")]
    for step in range(1, steps):
        size = (known * float(2 * interval / np.cosh(np.pi * step * interval))).call("Sqrt")
        angle = known.call("Log") * float(step * interval)
        parts += [size * angle.call("Cos"), size * angle.call("Sin")]
    return [concat([where(zero, 0.0, part) for part in parts])]


def _hidden_units(model: Any, x: Expression) -> list[Expression]:
    return [(x @ model.components_.T + model.intercept_hidden_).call("Sigmoid")]


FORMULAS = {
    kernel_ridge.KernelRidge: _ridge,
    kernel_approximation.Nystroem: _nystroem,
    kernel_approximation.RBFSampler: _fourier,
    kernel_approximation.SkewedChi2Sampler: _skewed,
    kernel_approximation.AdditiveChi2Sampler: _additive_chi2,
    semi_supervised.LabelPropagation: _spread_labels,
    semi_supervised.LabelSpreading: _spread_labels,
    neural_network.BernoulliRBM: _hidden_units,
}
