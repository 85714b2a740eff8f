"""Models of tables and text, as converters of classical machine learning write them.

Their weights are random: what they compute means nothing, what they cost is what such models cost.
"""

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from bench.onnx_graph import MICROSOFT, ML, Graph, Shape

FEATURES, CLASSES = 30, 3
WORDS = 5_000
CATEGORIES = {"colour": 12, "country": 60, "device": 8}
NUMBERS = ("age", "income", "balance", "tenure")

ROW: dict[str, tuple[int, Shape]] = {"x": (TensorProto.FLOAT, ["N", FEATURES])}


def linear(path: Path) -> None:
    """A logistic regression, as scikit-learn's converter writes it."""
    graph = Graph(1)
    graph.add(
        "LinearClassifier", "x", result="label", also=["probabilities"], domain=ML, classlabels_ints=list(range(CLASSES)),
        coefficients=graph.normal(CLASSES * FEATURES).tolist(), intercepts=[0.0] * CLASSES, post_transform="SOFTMAX",
    )  # fmt: skip
    graph.save(path, ROW, {"label": ["N"], "probabilities": ["N", CLASSES]})


def zipmap(path: Path) -> None:
    """A classifier that answers a map of probabilities for each row."""
    graph = Graph(2)
    labels = [f"class {index}" for index in range(10)]
    scores = graph.dense("x", FEATURES, len(labels))
    graph.add(
        "ZipMap",
        graph.add("Softmax", scores, axis=1),
        result="probabilities",
        domain=ML,
        classlabels_strings=labels,
    )
    graph.save(path, ROW, {"probabilities": None})


def _trees(count: int, depth: int, graph: Graph) -> dict[str, Any]:
    """Attributes of complete trees with random splits."""
    inner, nodes = 2**depth - 1, 2 ** (depth + 1) - 1
    ids = np.tile(np.arange(nodes), count)
    is_leaf = ids >= inner
    features = np.abs(graph.normal(len(ids)) * 1000).astype(np.int64) % FEATURES
    return {
        "nodes_treeids": np.repeat(np.arange(count), nodes).tolist(),
        "nodes_nodeids": ids.tolist(),
        "nodes_featureids": np.where(is_leaf, 0, features).tolist(),
        "nodes_values": np.where(is_leaf, 0, graph.normal(len(ids))).astype(float).tolist(),
        "nodes_modes": ["LEAF" if leaf else "BRANCH_LEQ" for leaf in is_leaf],
        "nodes_truenodeids": np.where(is_leaf, 0, 2 * ids + 1).tolist(),
        "nodes_falsenodeids": np.where(is_leaf, 0, 2 * ids + 2).tolist(),
        "nodes_missing_value_tracks_true": [0] * len(ids),
    }


def _leaves(count: int, depth: int, values: int) -> tuple[list[int], list[int], list[int]]:
    """Of every leaf's value: its tree, its node and which value it is."""
    leaves = np.arange(2**depth - 1, 2 ** (depth + 1) - 1)
    trees = np.repeat(np.arange(count), len(leaves) * values)
    nodes = np.tile(np.repeat(leaves, values), count)
    return trees.tolist(), nodes.tolist(), np.tile(np.arange(values), count * len(leaves)).tolist()


def forest(path: Path) -> None:
    """500 trees, 9 deep, that vote for a class."""
    graph, count, depth = Graph(3), 500, 9
    trees, nodes, classes = _leaves(count, depth, CLASSES)
    graph.add(
        "TreeEnsembleClassifier", "x", result="label", also=["probabilities"], domain=ML,
        classlabels_int64s=list(range(CLASSES)), class_treeids=trees, class_nodeids=nodes, class_ids=classes,
        class_weights=(np.abs(graph.normal(len(trees))) / count).tolist(), post_transform="NONE", **_trees(count, depth, graph),
    )  # fmt: skip
    graph.save(path, ROW, {"label": ["N"], "probabilities": ["N", CLASSES]})


def boosting(path: Path) -> None:
    """500 boosted trees, 6 deep, that add up to a number."""
    graph, count, depth = Graph(4), 500, 6
    trees, nodes, targets = _leaves(count, depth, 1)
    graph.add(
        "TreeEnsembleRegressor", "x", result="y", domain=ML, n_targets=1, target_treeids=trees, target_nodeids=nodes,
        target_ids=targets, target_weights=graph.normal(len(trees)).tolist(), **_trees(count, depth, graph),
    )  # fmt: skip
    graph.save(path, ROW, {"y": ["N", 1]})


def nearest_neighbours(path: Path) -> None:
    """The five nearest of 4096 points vote."""
    graph, points = Graph(5), 4096
    reference = graph.normal(points, FEATURES)
    product = graph.add("MatMul", "x", graph.constant(-2 * reference.T))
    distance = graph.add("Add", product, graph.constant((reference**2).sum(axis=1)))
    graph.add("TopK", distance, graph.constant([5]), result="distances", also=["nearest"], axis=1, largest=0)
    votes = np.eye(CLASSES, dtype=np.float32)[np.arange(points) % CLASSES]
    graph.add(
        "ReduceMean", graph.add("Gather", graph.constant(votes), "nearest"), graph.constant([1]),
        result="probabilities", keepdims=0,
    )  # fmt: skip
    graph.add("ArgMax", "probabilities", result="label", axis=1, keepdims=0)
    graph.save(path, ROW, {"label": ["N"], "probabilities": ["N", CLASSES]})


def text(path: Path) -> None:
    """Text in lower case, its words and pairs of words counted, a linear model over the counts."""
    graph, pairs = Graph(15), 5_000
    words = [f"w{index}" for index in range(WORDS)]
    bigrams = [word for index in range(pairs) for word in (words[index % 70], words[index // 70])]
    flat = graph.add("Reshape", "text", graph.constant([-1]))
    lower = graph.add(
        "StringNormalizer", flat, case_change_action="LOWER", is_case_sensitive=1, locale="C.UTF-8"
    )
    tokens = graph.add(
        "Tokenizer", lower, domain=MICROSOFT, mark=0, mincharnum=1, pad_value="#", tokenexp="[a-z0-9]+"
    )
    counts = graph.add(
        "TfIdfVectorizer", tokens, mode="TF", min_gram_length=1, max_gram_length=2, max_skip_count=0,
        pool_strings=words + bigrams, ngram_counts=[0, WORDS], ngram_indexes=list(range(WORDS + pairs)),
    )  # fmt: skip
    graph.add("Softmax", graph.dense(counts, WORDS + pairs, CLASSES), result="probabilities", axis=1)
    graph.save(path, {"text": (TensorProto.STRING, ["N", 1])}, {"probabilities": ["N", CLASSES]})


def columns(path: Path) -> None:
    """A pipeline of numbers and categories with one input for each column."""
    graph = Graph(16)
    parts = [graph.add("Scaler", name, domain=ML, offset=[0.5], scale=[2.0]) for name in NUMBERS]
    for name, count in CATEGORIES.items():
        known = [f"{name} {index}" for index in range(count)]
        hot = graph.add("OneHotEncoder", name, domain=ML, cats_strings=known, zeros=1)
        parts.append(graph.add("Reshape", hot, graph.constant([-1, count])))
    width = len(NUMBERS) + sum(CATEGORIES.values())
    graph.add(
        "LinearClassifier", graph.add("Concat", *parts, axis=1), result="label", also=["probabilities"], domain=ML,
        classlabels_ints=list(range(CLASSES)), coefficients=graph.normal(CLASSES * width).tolist(),
        intercepts=[0.0] * CLASSES, post_transform="SOFTMAX",
    )  # fmt: skip
    inputs: dict[str, tuple[int, Shape]] = {name: (TensorProto.FLOAT, ["N", 1]) for name in NUMBERS}
    inputs |= {name: (TensorProto.STRING, ["N", 1]) for name in CATEGORIES}
    graph.save(path, inputs, {"label": ["N"], "probabilities": ["N", CLASSES]})
