"""Ensembles of trees as one ``TreeEnsembleRegressor`` whose thresholds are exactly the library's.

The operator (https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsembleRegressor.html, version 3) takes double
thresholds beside double features, answers float32, and adds the weights of the leaves in the features' type.
A split on a set of categories becomes a chain of ``BRANCH_EQ`` nodes that share one true branch, which
onnxruntime folds into a set again, so that it costs no copies of the branch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from onnx import numpy_helper

from converters.graph import ML, Graph

__all__ = ["Ensemble", "Leaf", "Split", "round_down"]


_NODE_KEYS = (
    "treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids",
    "missing_value_tracks_true",
)  # fmt: skip
# What no feature is equal to: for sets without a member, which still send missing values to one side.
_NO_CATEGORY = -float(np.finfo(np.float32).max)
_LEAF_KEYS = ("treeids", "nodeids", "ids", "weights")


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a row adds to each target when it ends here."""

    values: Sequence[float]
    target: int = 0


@dataclass(frozen=True, slots=True)
class Split:
    """A question; rows for which it holds go on to ``true``.

    Attributes:
        feature: Column of the features.
        mode: ``BRANCH_LEQ`` and the like: the feature stands on the left.
        threshold: What it is compared with.
        true, false: Keys of the next nodes, as ``Ensemble.grow``'s ``visit`` knows them.
        missing_true: Whether a NaN goes on to ``true``.
        members: For a split on a set (``threshold`` and ``mode`` are of no meaning): the categories.
    """

    feature: int
    mode: str
    threshold: float
    true: Any
    false: Any
    missing_true: bool = False
    members: tuple[int, ...] | None = None


Visit: TypeAlias = Callable[[Any], Split | Leaf]


@dataclass(slots=True)
class Ensemble:
    """Trees over ``features`` columns that add to ``targets`` sums.

    Attributes:
        thresholds: For each feature, what it is compared with, for probes.
        categories: For each feature, the categories it is asked for, for probes.
    """

    features: int
    targets: int
    dtype: Any = np.float64
    nodes: dict[str, list[Any]] = field(default_factory=lambda: {key: [] for key in _NODE_KEYS})
    leaves: dict[str, list[Any]] = field(default_factory=lambda: {key: [] for key in _LEAF_KEYS})
    trees: int = 0
    thresholds: dict[int, set[float]] = field(default_factory=dict)
    categories: dict[int, set[int]] = field(default_factory=dict)

    def grow(self, root: Any, visit: Visit) -> None:
        """Adds a tree.

        Args:
            root: The key of its root.
            visit: From a node's key to what it is; called once a node.
        """
        tree, count = self.trees, 1
        self.trees += 1
        pending = [(root, 0)]
        while pending:
            key, number = pending.pop()
            node = visit(key)
            if isinstance(node, Leaf):
                self._leaf(tree, number, node)
                continue
            members = node.members
            if members is None:
                self.thresholds.setdefault(node.feature, set()).add(node.threshold)
                self._node(tree, number, node, node.mode, node.threshold, count, count + 1)
                pending += [(node.true, count), (node.false, count + 1)]
                count += 2
                continue
            self.categories.setdefault(node.feature, set()).update(members)
            count = self._chain(tree, number, node, members or (_NO_CATEGORY,), count, pending)

    def _chain(
        self, tree: int, number: int, node: Split, members: Sequence[float], count: int,
        pending: list[tuple[Any, int]],
    ) -> int:  # fmt: skip
        """A set as one equality after the other; returns the next free number."""
        true, false = count, count + 1
        following = count + 2
        for position, member in enumerate(members):
            last = position == len(members) - 1
            self._node(tree, number, node, "BRANCH_EQ", member, true, false if last else following)
            if not last:
                number, following = following, following + 1
        pending += [(node.true, true), (node.false, false)]
        return following

    def _node(
        self, tree: int, number: int, node: Split, mode: str, value: float, true: int, false: int
    ) -> None:
        row = (tree, number, node.feature, mode, value, true, false, int(node.missing_true))
        for column, cell in zip(self.nodes.values(), row, strict=True):
            column.append(cell)

    def _leaf(self, tree: int, number: int, leaf: Leaf) -> None:
        for column, cell in zip(self.nodes.values(), (tree, number, 0, "LEAF", 0.0, 0, 0, 0), strict=True):
            column.append(cell)
        for offset, value in enumerate(leaf.values):
            for column, cell in zip(
                self.leaves.values(), (tree, number, leaf.target + offset, value), strict=True
            ):
                column.append(cell)

    def emit(self, graph: Graph, features: str, base: Iterable[float]) -> str:
        """Adds the operator; its output is FLOAT[N, targets], the sums plus ``base``.

        Args:
            graph: The graph to add to.
            features: A value [N, features] of type ``dtype``.
            base: What each target starts from.
        """
        start = np.array(list(base), np.float64)
        if not self.trees:  # the operator takes no empty ensemble
            self.grow(0, lambda _: Leaf([0.0]))
        values = {
            "nodes_values": self.nodes["values"],
            "target_weights": self.leaves["weights"],
            "base_values": start,
        }
        tensors = (
            {
                f"{key}_as_tensor": numpy_helper.from_array(np.array(array, np.float64), key)
                for key, array in values.items()
            }
            if self.dtype == np.float64
            else {key: np.array(array, np.float32) for key, array in values.items()}
        )
        attributes: dict[str, Any] = {
            **{f"nodes_{key}": column for key, column in self.nodes.items() if key != "values"},
            **{f"target_{key}": column for key, column in self.leaves.items() if key != "weights"},
            **tensors,
        }
        return graph.add("TreeEnsembleRegressor", features, domain=ML, n_targets=self.targets, **attributes)


def round_down(value: float) -> float:
    """The largest float32 that is not above ``value``: ``x <= value`` is the same for every float32 ``x``."""
    with np.errstate(over="ignore"):  # beyond float32's range: an infinity, or the number before it
        rounded = np.float32(value)
        return float(np.nextafter(rounded, np.float32(-np.inf)) if float(rounded) > value else rounded)
