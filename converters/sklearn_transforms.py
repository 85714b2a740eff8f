"""Estimators that predict, where a pipeline has them transform: k-means' distances, the axes of a discriminant analysis.

skl2onnx knows only their predictions. For the time of a conversion such a step is replaced by a ``Transforms`` that
holds it, which has a converter here.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from sklearn import cluster
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import FeatureUnion, Pipeline

from converters.sklearn_affine import affine
from converters.sklearn_distances import squared_distances
from converters.sklearn_expressions import Expression
from converters.sklearn_inputs import children
from converters.sklearn_messages import walk

__all__ = ["FORMULAS", "replaced"]

_CENTERS = {
    cluster.KMeans: "cluster_centers_",
    cluster.MiniBatchKMeans: "cluster_centers_",
    cluster.BisectingKMeans: "cluster_centers_",
    cluster.Birch: "subcluster_centers_",
}


class Transforms(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """An estimator of which only ``transform`` is asked."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def get_feature_names_out(self) -> Any:
        """The inner estimator's names of what it makes."""
        return self.inner.get_feature_names_out()


def _transform(model: Any, x: Expression) -> list[Expression]:
    inner = model.inner
    if isinstance(inner, LinearDiscriminantAnalysis):
        return [affine(inner.transform, inner.n_features_in_, x)]
    return [squared_distances(x, getattr(inner, _CENTERS[type(inner)])).call("Sqrt")]


FORMULAS = {Transforms: _transform}


@contextlib.contextmanager
def replaced(estimator: Any) -> Iterator[None]:
    """Within it, the steps that only transform are ``Transforms``, and pipelines have no steps that do nothing."""
    kept = [(part, name, getattr(part, name)) for _, part in walk(estimator, "") for name in _places(part)]
    try:
        for part, name, entries in kept:
            steps = children(part) if isinstance(part, Pipeline) else entries
            last = steps[-1] if isinstance(part, Pipeline) and steps else None
            setattr(part, name, [entry if entry is last else _replaced(entry) for entry in steps])
        yield
    finally:
        for part, name, entries in kept:
            setattr(part, name, entries)


def _places(part: Any) -> list[str]:
    """The attribute in which an estimator holds its steps."""
    names = {Pipeline: "steps", FeatureUnion: "transformer_list", ColumnTransformer: "transformers_"}
    return [name for kind, name in names.items() if isinstance(part, kind)]


def _replaced(entry: tuple[Any, ...]) -> tuple[Any, ...]:
    name, step, *rest = entry
    known = isinstance(step, LinearDiscriminantAnalysis) or type(step) in _CENTERS
    return (name, Transforms(step), *rest) if known else entry
