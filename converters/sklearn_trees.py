"""scikit-learn's trees and forests, read from their arrays.

skl2onnx has converters of its own for them, which send every missing value to the right, whatever the tree
learnt. How a row finds its way: ``_apply_dense`` in ``sklearn/tree/_tree.pyx``: features are cast to float32,
thresholds are float64, ``feature <= threshold`` goes left, a missing value goes where ``missing_go_to_left``
says. Histogram boosting compares in float64, and its categories are bits of a set:
``sklearn/ensemble/_hist_gradient_boosting/_predictor.pyx``; an unknown category goes where a missing one goes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn import ensemble, tree
from sklearn.base import is_classifier
from sklearn.ensemble._iforest import _average_path_length

from converters.boosting import Boosting, label_array
from converters.errors import ConversionError
from converters.graph import Graph
from converters.trees import Ensemble, Leaf, Split, round_down
from onnx_serve.tensors import Array

__all__ = [
    "FORESTS",
    "HISTOGRAMS",
    "isolation_scores",
    "leaf_columns",
    "multilabel_scores",
    "read_forest",
    "read_histogram",
]

FORESTS = (
    tree.DecisionTreeClassifier, tree.DecisionTreeRegressor, tree.ExtraTreeClassifier, tree.ExtraTreeRegressor,
    ensemble.RandomForestClassifier, ensemble.RandomForestRegressor,
    ensemble.ExtraTreesClassifier, ensemble.ExtraTreesRegressor,
)  # fmt: skip
HISTOGRAMS = (ensemble.HistGradientBoostingClassifier, ensemble.HistGradientBoostingRegressor)
_LINKS = {
    "HalfBinomialLoss": "logistic", "HalfMultinomialLoss": "softmax",
    "HalfSquaredError": "identity", "AbsoluteError": "identity", "PinballLoss": "identity",
    "HalfPoissonLoss": "exp", "HalfGammaLoss": "exp",
}  # fmt: skip


def read_forest(model: Any) -> Boosting | None:
    """What a fitted tree or forest computes; None if it tells several sets of classes at once."""
    if is_classifier(model) and model.n_outputs_ > 1:
        return None
    members = getattr(model, "estimators_", [model])
    targets = len(model.classes_) if is_classifier(model) else model.n_outputs_
    trees = Ensemble(model.n_features_in_, targets, np.float32)
    for member in members:
        values = member.tree_.value.reshape(member.tree_.node_count, targets)
        if is_classifier(model):
            values = values / values.sum(axis=1, keepdims=True)
        _grow(trees, member.tree_, values / len(members))
    classes = tuple(np.asarray(model.classes_).tolist()) if is_classifier(model) else ()
    return Boosting(trees, [0.0] * targets, "identity", classes=classes)


def multilabel_scores(model: Any, graph: Graph, features: str) -> tuple[str, str]:
    """Adds a forest with several sets of equally many classes: labels [N, sets] and shares FLOAT[N, sets, classes]."""
    members = getattr(model, "estimators_", [model])
    sets, width = len(model.classes_), len(model.classes_[0])
    if any(len(classes) != width for classes in model.classes_):
        raise ConversionError(
            f"{type(model).__name__}: its labels have different numbers of classes, so that no array holds them"
        )
    trees = Ensemble(model.n_features_in_, sets * width, np.float32)
    for member in members:
        values = member.tree_.value / member.tree_.value.sum(axis=2, keepdims=True)
        _grow(trees, member.tree_, values.reshape(len(values), sets * width) / len(members))
    sums = trees.emit(graph, features, [0.0] * (sets * width))
    shares = graph.add("Reshape", sums, graph.constant([-1, sets, width], np.int64))
    best = graph.add("ArgMax", shares, axis=2, keepdims=0)
    # The classes stand in one row, a set after the other.
    place = graph.add("Add", best, graph.constant([np.arange(sets) * width], np.int64))
    return graph.add(
        "Gather", graph.constant(label_array(np.concatenate(model.classes_).tolist())), place, axis=0
    ), shares


def leaf_columns(model: Any, graph: Graph, features: str) -> str:
    """Adds a fitted ``RandomTreesEmbedding``: 1 in the column of each tree's leaf, FLOAT[N, leaves]."""
    leaves = model.one_hot_encoder_.categories_
    width = sum(map(len, leaves))
    trees = Ensemble(model.n_features_in_, width, np.float32)
    start = 0
    for member, known in zip(model.estimators_, leaves, strict=True):
        places = {int(leaf): start + place for place, leaf in enumerate(known)}
        _grow(trees, member.tree_, lambda node: Leaf([1.0], places[node]))  # noqa: B023  called at once
        start += len(known)
    return trees.emit(graph, features, [0.0] * width)


def isolation_scores(model: Any, graph: Graph, features: str) -> tuple[str, str]:
    """Adds a fitted ``IsolationForest``: its label INT64[N, 1] and its decision function FLOAT[N, 1].

    The score is 2 to the power of minus the mean depth over the expected one, ``IsolationForest.score_samples``.
    """
    trees = Ensemble(model.n_features_in_, 1, np.float32)
    expected = len(model.estimators_) * _average_path_length(np.array([model._max_samples]))[0]  # noqa: SLF001  no public form
    for member, columns in zip(model.estimators_, model.estimators_features_, strict=True):
        inner = member.tree_
        values = (_depths(inner) + _average_path_length(inner.n_node_samples))[:, None] / expected
        _grow(trees, inner, values, columns)
    mean = trees.emit(graph, features, [0.0])
    scores = graph.add("Pow", graph.constant(2.0, np.float32), graph.add("Neg", mean))
    decision = graph.add("Sub", graph.constant(-model.offset_, np.float32), scores)
    inlier = graph.add("GreaterOrEqual", decision, graph.constant(0, np.float32))
    label = graph.add("Where", inlier, graph.constant(1, np.int64), graph.constant(-1, np.int64))
    return label, decision


def _depths(inner: Any) -> Array:
    depths = np.zeros(inner.node_count)
    for node in range(inner.node_count):  # children come after their parent
        for child in (inner.children_left[node], inner.children_right[node]):
            if child >= 0:
                depths[child] = depths[node] + 1
    return depths


def _grow(trees: Ensemble, inner: Any, values: Array | Callable[[int], Leaf], columns: Any = None) -> None:
    """Adds a tree of scikit-learn's; its leaves give a row of ``values``, or what ``values`` makes of their number."""
    left, right = inner.children_left, inner.children_right
    missing = getattr(inner, "missing_go_to_left", np.zeros(inner.node_count))

    def visit(node: int) -> Split | Leaf:
        if left[node] < 0:
            return values(node) if callable(values) else Leaf(values[node].tolist())
        feature = int(inner.feature[node] if columns is None else columns[inner.feature[node]])
        threshold = round_down(float(inner.threshold[node]))
        return Split(
            feature,
            "BRANCH_LEQ",
            threshold,
            int(left[node]),
            int(right[node]),
            missing_true=bool(missing[node]),
        )

    trees.grow(0, visit)


def read_histogram(model: Any) -> Boosting:
    """What a fitted ``HistGradientBoosting*`` computes.

    Raises:
        ConversionError: Its categories are text, or its loss is unknown.
    """
    targets = model.n_trees_per_iteration_
    trees = Ensemble(model.n_features_in_, targets, np.float64)
    columns, codes = _categories(model)
    # The fitted state has no public form, here and below.
    bitsets = model._bin_mapper.make_known_categories_bitsets()  # noqa: SLF001
    for iteration in model._predictors:  # noqa: SLF001
        for target, predictor in enumerate(iteration):
            trees.grow(0, _hist_visitor(predictor, target, columns, codes, bitsets))
    loss = type(model._loss).__name__  # noqa: SLF001
    if loss not in _LINKS:
        raise ConversionError(f"{type(model).__name__}: the loss {loss} has no converter")
    base = np.broadcast_to(np.ravel(model._baseline_prediction), targets)  # noqa: SLF001
    classes = tuple(np.asarray(model.classes_).tolist()) if is_classifier(model) else ()
    return Boosting(trees, [float(value) for value in base], _LINKS[loss], classes=classes)


def _categories(model: Any) -> tuple[list[int], dict[int, Array]]:
    """The raw column of each of the trees' features, and by raw column the categories its codes stand for."""
    preprocessor = getattr(model, "_preprocessor", None)
    features = model.n_features_in_
    if preprocessor is None:
        return list(range(features)), {}
    # Fitting puts the categorical columns first.
    categorical = np.flatnonzero(model.is_categorical_).tolist()
    numeric = np.flatnonzero(~model.is_categorical_).tolist()
    encoder = preprocessor.named_transformers_["encoder"]
    codes = {}
    for column, found in zip(categorical, encoder.categories_, strict=True):
        if np.asarray(found).dtype.kind not in "biuf":
            raise ConversionError(
                f"{type(model).__name__}: the categories of column {column} are text, which stands beside numbers "
                "in one input: encode it in a pipeline with OrdinalEncoder"
            )
        codes[column] = np.asarray(found, np.float64)
    return [*categorical, *numeric], codes


def _hist_visitor(
    predictor: Any, target: int, columns: list[int], codes: dict[int, Array], bitsets: tuple[Array, Array]
) -> Any:
    nodes = predictor.nodes
    known, positions = bitsets

    def visit(index: int) -> Split | Leaf:
        node = nodes[index]
        if node["is_leaf"]:
            return Leaf([float(node["value"])], target)
        feature, left, right = int(node["feature_idx"]), int(node["left"]), int(node["right"])
        column, to_left = columns[feature], bool(node["missing_go_to_left"])
        if not node["is_categorical"]:
            return Split(
                column, "BRANCH_LEQ", float(node["num_threshold"]), left, right, missing_true=to_left
            )
        chosen = _members(predictor.raw_left_cat_bitsets[node["bitset_idx"]])
        if to_left:
            # Right takes only the known categories that are not in the set.
            others = _members(known[positions[feature]]) - chosen
            return Split(column, "", 0.0, right, left, members=_raw(others, codes[column]))
        return Split(column, "", 0.0, left, right, members=_raw(chosen, codes[column]))

    return visit


def _members(bitset: Array) -> set[int]:
    return {32 * word + bit for word, bits in enumerate(bitset) for bit in range(32) if int(bits) >> bit & 1}


def _raw(members: set[int], codes: Array) -> tuple[Any, ...]:
    """The categories as the columns hold them."""
    return tuple(float(codes[member]) for member in sorted(members) if member < len(codes))
