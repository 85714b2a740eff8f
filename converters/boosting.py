"""Boosted trees of any library: what its file says, reduced to trees, a base and a link.

xgboost, lightgbm and catboost each read their own format into a ``Boosting``; here it becomes a graph::

    features -> missing values -> trees (sums + base) -> link -> prediction | label, probabilities
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from converters.errors import ConversionError
from converters.graph import Graph
from converters.trees import Ensemble
from onnx_serve.tensors import Array

__all__ = ["KZERO", "Boosting", "label_array", "to_model"]


# What LightGBM takes for 0 (kZeroThreshold, include/LightGBM/meta.h): a float32 there.
KZERO = float(np.float32(1e-35))


@dataclass(frozen=True, slots=True)
class Boosting:
    """A model of boosted trees.

    Attributes:
        trees: The trees; ``dtype`` is the type in which the library compares features with thresholds.
        base: What each target starts from, before the link.
        link: From sums to predictions, one of the names in ``predictions``.
        sigmoid: The factor inside the link ``logistic``.
        classes: Class labels; empty for regressions and rankings.
        multilabel: Whether each target is a label of its own, 0 or 1.
        nan_as_zero: Features whose NaN counts as 0.
        zero_as_nan: Features whose zeros (up to ``KZERO``) count as missing.
        integral: Features that are cut to whole numbers first: categories.
        toward_zero: Whether they are cut as a C cast does, so that -0.5 is 0; otherwise downwards.
        missing: A number that counts as missing, besides NaN.
        scale: Factor of the trees' sums, for averages.
        names: Names of the features, or empty.
        linear: Weights [features, targets] instead of trees, for linear boosters.
    """

    trees: Ensemble
    base: Sequence[float]
    link: str
    sigmoid: float = 1.0
    classes: Sequence[Any] = ()
    multilabel: bool = False
    nan_as_zero: frozenset[int] = frozenset()
    zero_as_nan: frozenset[int] = frozenset()
    integral: frozenset[int] = frozenset()
    toward_zero: bool = False
    missing: float | None = None
    scale: float = 1.0
    names: Sequence[str] = ()
    linear: Array | None = None
    properties: Mapping[str, str] = field(default_factory=dict)

    def scores(self, graph: Graph, features: str) -> str:
        """Adds everything up to the link: FLOAT[N, targets]."""
        value = self._prepare(graph, features)
        if self.linear is not None:
            weights = graph.constant(self.linear, np.float32)
            product = graph.add("MatMul", value, weights)
            return graph.add("Add", product, graph.constant([self.base], np.float32))
        if self.scale == 1.0:
            return self.trees.emit(graph, value, self.base)
        sums = self.trees.emit(graph, value, [0.0] * len(self.base))
        scaled = graph.add("Mul", sums, graph.constant(self.scale, np.float32))
        return graph.add("Add", scaled, graph.constant([self.base], np.float32))

    def _prepare(self, graph: Graph, value: str) -> str:
        """Missing values and categories as the library sees them."""
        dtype = self.trees.dtype
        if self.missing is not None and not np.isnan(self.missing):
            gone = graph.add("Equal", value, graph.constant(self.missing, dtype))
            value = graph.add("Where", gone, graph.constant(np.nan, dtype), value)
        if self.integral:
            value = graph.add("Where", self._mask(graph, self.integral), self._cut(graph, value), value)
        if self.zero_as_nan:
            small = graph.add("LessOrEqual", graph.add("Abs", value), graph.constant(KZERO, dtype))
            gone = graph.add("And", small, self._mask(graph, self.zero_as_nan))
            value = graph.add("Where", gone, graph.constant(np.nan, dtype), value)
        if self.nan_as_zero:
            gone = graph.add("And", graph.add("IsNaN", value), self._mask(graph, self.nan_as_zero))
            value = graph.add("Where", gone, graph.constant(0, dtype), value)
        return value

    def _cut(self, graph: Graph, value: str) -> str:
        """Whole numbers; NaN stays NaN."""
        if not self.toward_zero:
            return graph.add("Floor", value)
        sign, size = graph.add("Sign", value), graph.add("Floor", graph.add("Abs", value))
        return graph.add("Mul", sign, size)

    def _mask(self, graph: Graph, features: frozenset[int]) -> str:
        return graph.constant([[feature in features for feature in range(self.trees.features)]], np.bool_)

    def predictions(self, graph: Graph, scores: str, output: str = "") -> str:
        """Adds the link: FLOAT[N, targets], for one class of two FLOAT[N, 1]."""
        kwargs = {"output": output}
        if self.link == "identity":
            return graph.add("Identity", scores, **kwargs)
        if self.link == "logistic":
            scaled = graph.add("Mul", scores, graph.constant(self.sigmoid, np.float32))
            return graph.add("Sigmoid", scaled, **kwargs)
        if self.link == "softmax":
            return graph.add("Softmax", scores, axis=1, **kwargs)
        if self.link == "exp":
            return graph.add("Exp", scores, **kwargs)
        if self.link == "log1p_exp":
            return graph.add("Softplus", scores, **kwargs)
        if self.link == "signed_square":
            return graph.add("Mul", scores, graph.add("Abs", scores), **kwargs)
        if self.link == "positive":
            positive = graph.add("Greater", scores, graph.constant(0, np.float32))
            return graph.add("Cast", positive, to=onnx.TensorProto.FLOAT, **kwargs)
        if self.link == "argmax":
            best = graph.add("ArgMax", scores, axis=1, keepdims=1)
            return graph.add("Cast", best, to=onnx.TensorProto.FLOAT, **kwargs)
        raise ConversionError(f"boosted trees: the link {self.link} is unknown")

    def probabilities(self, graph: Graph, scores: str, output: str = "") -> str:
        """Adds the link of a classifier: FLOAT[N, classes], or [N, labels]."""
        if self.multilabel or len(self.classes) != 2 or len(self.base) != 1:  # noqa: PLR2004  one sum tells two classes apart
            return self.predictions(graph, scores, output)
        one = self.predictions(graph, scores)
        rest = graph.add("Sub", graph.constant(1, np.float32), one)
        return graph.add("Concat", rest, one, axis=1, output=output)

    def label(self, graph: Graph, probabilities: str, output: str = "") -> str:
        """Adds the most probable class: [N], INT64 or STRING; of several labels, INT64[N, labels]."""
        if self.multilabel:
            likely = graph.add("Greater", probabilities, graph.constant(0.5, np.float32))
            return graph.add("Cast", likely, to=onnx.TensorProto.INT64, output=output)
        best = graph.add("ArgMax", probabilities, axis=1, keepdims=0)
        return graph.add("Gather", graph.constant(label_array(self.classes)), best, axis=0, output=output)


def label_array(classes: Sequence[Any]) -> Array:
    """Class labels as ONNX carries them: INT64 or STRING.

    Raises:
        ConversionError: They are neither whole numbers nor text.
    """
    array = np.asarray(classes)
    if array.dtype.kind in "iub":
        return array.astype(np.int64)
    if array.dtype.kind == "f" and np.array_equal(array, np.floor(array)):
        return array.astype(np.int64)
    if array.dtype.kind == "U" or all(isinstance(label, str) for label in array):
        return array.astype(str)
    raise ConversionError("class labels: expected whole numbers or text, got other values")


def to_model(boosting: Boosting) -> onnx.ModelProto:
    """The whole model: input ``features`` [N, features], outputs ``prediction``, or ``label`` and ``probabilities``."""
    graph = Graph()
    rows = np.zeros((1, boosting.trees.features), boosting.trees.dtype)
    scores = boosting.scores(graph, "features")
    if not boosting.classes:
        prediction = boosting.predictions(graph, scores, "prediction")
        width = 1 if boosting.link == "argmax" else len(boosting.base)
        return graph.model({"features": rows}, {prediction: np.zeros((1, width), np.float32)})
    probabilities = boosting.probabilities(graph, scores, "probabilities")
    label = boosting.label(graph, probabilities, "label")
    width = len(boosting.base) if boosting.multilabel else len(boosting.classes)
    shares = np.zeros((1, width), np.float32)
    labels = np.zeros((1, width), np.int64) if boosting.multilabel else label_array(boosting.classes[:1])
    return graph.model({"features": rows}, {label: labels, probabilities: shares})
