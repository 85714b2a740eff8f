"""Estimators that compare rows with centres or with the rows they were trained on.

scikit-learn computes Euclidean distances as ``|x|^2 - 2xy + |y|^2`` (``sklearn.metrics.pairwise``), and so do these.
"""

from typing import Any

import numpy as np
from onnx import TensorProto, helper
from sklearn import cluster, covariance, impute, neighbors

from converters.errors import ConversionError
from converters.sklearn_expressions import Expression, concat, label_of, where
from onnx_serve.tensors import Array

__all__ = ["FORMULAS", "is_weighted", "squared_distances", "weighted_neighbours"]

# Squared, farther than anything that can be compared, in float32 too.
_FAR = 1e38


def squared_distances(x: Expression, points: Array) -> Expression:
    """Squared Euclidean distances [N, P] to points [P, F]."""
    points = np.asarray(points, np.float64)
    lengths: Array = (points**2).sum(axis=1)
    return ((x @ points.T) * -2.0 + (x * x).total() + lengths).call("Max", 0.0)


def _distances(x: Expression, points: Array, metric: str, kind: str) -> Expression:
    """Distances [N, P] by metrics that onnx-serve knows.

    Raises:
        ConversionError: The metric is another one.
    """
    if metric == "euclidean":
        return squared_distances(x, points).call("Sqrt")
    if metric not in {"manhattan", "chebyshev"}:
        raise ConversionError(f"{kind}: the metric {metric} has no converter")
    gaps = (x.reshape(0, 1, -1) - np.asarray(points)[None]).call("Abs")
    summed = gaps.total(2) if metric == "manhattan" else gaps.greatest(2)
    return summed.reshape(0, -1)


# --- Clusters ---------------------------------------------------------------------------------------


def _nearest_center(model: Any, x: Expression) -> list[Expression]:
    if not len(model.cluster_centers_):
        raise ConversionError(f"{type(model).__name__} found no clusters when it was fitted")
    squares = squared_distances(x, model.cluster_centers_)
    return [squares.lowest(), squares.call("Sqrt")]


def _birch(model: Any, x: Expression) -> list[Expression]:
    squares = squared_distances(x, model.subcluster_centers_)
    return [label_of(model.subcluster_labels_, squares.lowest()), squares.call("Sqrt")]


def _bisecting(model: Any, x: Expression) -> list[Expression]:
    """Down the tree of clusters, to the nearer one of two centres each time (``BisectingKMeans._predict_recursive``)."""
    mean = getattr(model, "_X_mean", 0.0)

    def label(node: Any) -> Expression:
        if node.left is None:
            return x.named(x.whole(node.label))
        squares = squared_distances(x, np.vstack([node.left.center, node.right.center]) + mean)
        return where(squares.columns([1]) >= squares.columns([0]), label(node.left), label(node.right))

    # The fitted tree has no public form.
    labels = label(model._bisecting_tree).reshape(-1)  # noqa: SLF001
    return [labels, squared_distances(x, model.cluster_centers_).call("Sqrt")]


# --- Classes ----------------------------------------------------------------------------------------


def _nearest_centroid(model: Any, x: Expression) -> list[Expression]:
    """Labels and probabilities; only Euclidean distances have probabilities."""
    spread = np.where(model.within_class_std_dev_ != 0, model.within_class_std_dev_, 1.0)
    squares = _distances(x / spread, model.centroids_ / spread, model.metric, "NearestCentroid") ** 2.0
    scores = -squares + 2.0 * np.log(model.class_prior_)
    best = scores
    if np.isclose(model.class_prior_, 1 / len(model.classes_)).all():
        # predict() compares plain distances then, whatever decision_function() weighs.
        best = -_distances(x, model.centroids_, model.metric, "NearestCentroid")
    return [label_of(model.classes_, best.highest()), scores.call("Softmax", axis=1)]


def _ellipse(model: Any, x: Expression) -> list[Expression]:
    """``EllipticEnvelope``: minus the Mahalanobis distance, from where outliers begin."""
    centered = x - model.location_
    scores = -((centered @ model.precision_) * centered).total() - model.offset_
    return [label_of([-1, 1], (scores >= 0.0).call("Cast", to=TensorProto.INT64).reshape(-1)), scores]


# --- Neighbours within a radius ------------------------------------------------------------------------


def _weights(model: Any, x: Expression) -> Expression:
    """What each row of the training counts, [N, rows]: 0 beyond the radius."""
    kind = type(model).__name__
    metric = model.effective_metric_
    if metric == "minkowski":
        metric = f"minkowski with p={model.p}"
    distances = _distances(x, model._fit_X, metric, kind)  # noqa: SLF001  no public form
    inside = (distances <= float(model.radius)).numbers()
    if model.weights == "uniform":
        return inside
    if model.weights != "distance":
        raise ConversionError(f"{kind}: weights by a function have no converter")
    # A row at distance 0 silences all others (sklearn.neighbors._base._get_weights).
    equal = (distances <= 0.0).numbers()
    any_equal = equal.greatest() > 0.0
    near = inside * where(distances <= 0.0, 1.0, distances).call("Reciprocal")
    return where(any_equal, equal, near)


def _radius_regressor(model: Any, x: Expression) -> list[Expression]:
    weights = _weights(model, x)
    targets = np.asarray(model._y, np.float64).reshape(len(model._fit_X), -1)  # noqa: SLF001
    # Without neighbours 0 / 0, which is scikit-learn's NaN.
    return [(weights @ targets) / weights.total()]


def _radius_classifier(model: Any, x: Expression) -> list[Expression]:
    if model.outputs_2d_:
        raise ConversionError("RadiusNeighborsClassifier: several labels have no converter")
    weights = _weights(model, x)
    votes = weights @ np.eye(len(model.classes_))[model._y]  # noqa: SLF001
    total = votes.total()
    alone = total <= 0.0
    shares = votes / where(alone, 1.0, total)
    if model.outlier_label_ is None:
        # scikit-learn raises an error here; so does the graph, with a position that no class has.
        beyond = shares.named(shares.whole(len(model.classes_)))
        return [label_of(model.classes_, where(alone.reshape(-1), beyond, shares.highest())), shares]
    outlier = np.asarray(model.outlier_label_[0])
    known = (model.classes_ == outlier).astype(np.float64)
    labels = [*model.classes_, outlier.item()]
    position = where(alone.reshape(-1), shares.named(shares.whole(len(labels) - 1)), shares.highest())
    return [label_of(np.asarray(labels), position), where(alone, known[None, :], shares)]


def is_weighted(model: Any) -> bool:
    """Whether a model of nearest neighbours weighs them by distances of a kind known here."""
    known = model.effective_metric_ in {"euclidean", "manhattan", "chebyshev"}
    one_label = not isinstance(getattr(model, "classes_", None), list)
    return bool(model.weights == "distance" and known and one_label)


def weighted_neighbours(model: Any, x: Expression) -> list[Expression]:
    """``KNeighborsClassifier`` and ``KNeighborsRegressor`` with ``weights="distance"``."""
    distances = _distances(x, model._fit_X, model.effective_metric_, type(model).__name__)  # noqa: SLF001
    near, position = _top(distances, model.n_neighbors)
    equal = where(near <= 0.0, 1.0, 0.0)
    inverse = where(near <= 0.0, 1.0, near).call("Reciprocal")
    weights = where(equal.greatest() > 0.0, equal, inverse)
    shares = (weights / weights.total()).reshape(0, 1, -1)
    if hasattr(model, "classes_"):
        values = np.eye(len(model.classes_))[model._y]  # noqa: SLF001
    else:
        values = np.asarray(model._y, np.float64).reshape(len(model._fit_X), -1)  # noqa: SLF001
    mean = (shares @ x.of(values).call("Gather", position, axis=0)).reshape(0, -1)
    return [label_of(model.classes_, mean.highest()), mean] if hasattr(model, "classes_") else [mean]


def _neighbours(model: Any, x: Expression) -> list[Expression]:
    """``NearestNeighbors.kneighbors``: where the nearest rows of the training stand, and how far they are."""
    distances = _distances(x, model._fit_X, model.effective_metric_, "NearestNeighbors")  # noqa: SLF001
    near, position = _top(distances, model.n_neighbors)
    return [position, near]


# --- Missing values filled from neighbours --------------------------------------------------------------


def _knn_imputer(model: Any, x: Expression) -> list[Expression]:
    """``KNNImputer.transform``: for each column the nearest rows of the training that have a value there."""
    if model.metric != "nan_euclidean" or not np.isnan(model.missing_values) or model.add_indicator:
        raise ConversionError(
            "KNNImputer: only metric='nan_euclidean', missing_values=nan and add_indicator=False have a converter"
        )
    fitted, holes = model._fit_X, model._mask_fit_X  # noqa: SLF001  no public form
    missing = x.call("IsNaN")
    distances = _nan_distances(x, missing, fitted, holes)
    filled = []
    for column, valid in enumerate(model._valid_mask):  # noqa: SLF001
        values = x.columns([column])
        donors = np.flatnonzero(~holes[:, column])
        if valid:
            fill = _donated(model, distances.columns(donors), fitted[donors, column])
            filled.append(where(values.call("IsNaN"), fill, values))
        elif model.keep_empty_features:
            filled.append(x.rows(np.zeros(1)))
    return [concat(filled)]


def _nan_distances(x: Expression, missing: Expression, fitted: Array, holes: Array) -> Expression:
    """Squared distances [N, rows] over the columns that both rows have; ``_FAR`` where there are none."""
    here = where(missing, 0.0, 1.0)
    known = where(missing, 0.0, x)
    there, points = 1.0 - holes, np.where(holes, 0.0, fitted)
    squares = ((known * known) @ there.T) + (here @ (points**2).T) - ((known @ points.T) * 2.0)
    shared = here @ there.T
    scaled = squares.call("Max", 0.0) / shared.call("Max", 1.0) * float(fitted.shape[1])
    return where(shared > 0.0, scaled, _FAR)


def _donated(model: Any, distances: Expression, donors: Array) -> Expression:
    """The mean [N, 1] of the nearest donors' values; of all donors where none can be compared."""
    squares, position = _top(distances, min(model.n_neighbors, len(donors)))
    usable = where(squares >= _FAR, 0.0, 1.0)
    if model.weights == "distance":
        zero = where(squares > 0.0, 0.0, 1.0)
        any_zero = zero.greatest() > 0.0
        inverse = where(squares > 0.0, squares, 1.0).call("Sqrt").call("Reciprocal")
        usable = usable * where(any_zero, zero, inverse)
    elif model.weights != "uniform":
        raise ConversionError("KNNImputer: weights by a function have no converter")
    taken = distances.of(donors).call("Gather", position, axis=0)
    total = usable.total()
    return where(total > 0.0, (taken * usable).total() / where(total > 0.0, total, 1.0), float(donors.mean()))


def _top(distances: Expression, count: int) -> tuple[Expression, Expression]:
    """The ``count`` least values of each row, and where they stand."""
    graph = distances.graph
    near, position = (f"{graph.prefix}{name}{len(graph.nodes)}" for name in ("near", "position"))
    inputs = [distances.name, distances.whole([count])]
    graph.nodes.append(helper.make_node("TopK", inputs, [near, position], f"{near}_node", largest=0))
    return distances.named(near), distances.named(position)


FORMULAS = {
    cluster.AffinityPropagation: _nearest_center,
    cluster.MeanShift: _nearest_center,
    cluster.Birch: _birch,
    cluster.BisectingKMeans: _bisecting,
    neighbors.NearestNeighbors: _neighbours,
    neighbors.NearestCentroid: _nearest_centroid,
    neighbors.RadiusNeighborsClassifier: _radius_classifier,
    neighbors.RadiusNeighborsRegressor: _radius_regressor,
    covariance.EllipticEnvelope: _ellipse,
    impute.KNNImputer: _knn_imputer,
}
