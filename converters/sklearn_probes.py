"""Rows made for a scikit-learn estimator: what it was scaled to, split at, and knows the categories of."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from sklearn.preprocessing import Binarizer

from converters.boosting import Boosting
from converters.parity import Probe
from converters.probes import ROWS, SEED, matrix_probes, nudged, ranges_of
from converters.sklearn_inputs import MATRIX, TEXT, Column, Inputs, children, first_steps, indices_of
from onnx_serve.tensors import Array, Tensors

__all__ = ["make_probes", "texts"]

# Words that tokenizers and case mappings disagree about: accents, apostrophes, digits, other scripts.
_HARD_TEXTS = (
    "", " ", "a", "café ÉCOLE naïve", "l'été à Paris, s'il vous plaît", "don't can't it's", "Ünïcode ßtraße GROSS",
    "snake_case x1 12 3.5", "tab\tand\nline", "日本 語 テスト", "PRIVET Привет ПРИВЕТ", "e\u0301cole", "x²y ½", "-- !? ...",
)  # fmt: skip
_UNSEEN = "unseen é"
_UNSEEN_NUMBER = 987654
_TEXT_ROWS = 256
_MISSING_ROWS = 64
_CATEGORY_ROWS = 64
_NO_LIMIT = 1e38  # about the end of float32


def make_probes(estimator: Any, inputs: Inputs) -> Iterator[Probe]:
    """Probes for an estimator, with missing values and unseen categories, which it may refuse."""
    if inputs.form == "text":
        documents = texts(estimator)
        yield Probe("texts", {TEXT: np.array(documents, object)[:, None]})
        return
    count = len(inputs.columns)
    thresholds = _thresholds(estimator, count)
    ranges = _ranges(estimator, inputs, thresholds)
    if inputs.form == "matrix":
        yield from _matrix_probes(estimator, inputs, ranges, thresholds)
        return
    yield from _table_probes(estimator, inputs, ranges, thresholds)


def _matrix_probes(
    estimator: Any, inputs: Inputs, ranges: Array, thresholds: dict[int, set[float]]
) -> Iterator[Probe]:
    categories: dict[int, Sequence[Any]] = {
        i: column.categories for i, column in enumerate(inputs.columns) if column.categories
    }
    for step in first_steps(estimator):
        boosting = _boosting(step)
        sets = {} if boosting is None else boosting.trees.categories
        categories |= {feature: sorted(codes) for feature, codes in sets.items() if codes}
    known = np.zeros((0, len(inputs.columns)))
    for probe in matrix_probes(ranges, thresholds, {}, missing=True, name=MATRIX):
        feed = dict(probe.feed)
        for index, codes in categories.items():
            feed[MATRIX][:, index] = np.resize(np.array(codes, np.float64), len(feed[MATRIX]))
        if probe.name == "thresholds":
            feed = {MATRIX: np.nan_to_num(feed[MATRIX])}
        known = known if len(known) else feed[MATRIX]
        yield Probe(probe.name, feed)
    for index, codes in categories.items():
        for name, values in {"unseen": _neighbours(codes), "missing": np.array([np.nan])}.items():
            rows = known[:_CATEGORY_ROWS].copy()
            rows[::2, index] = np.resize(values, len(rows[::2]))
            yield Probe(f"{name} {inputs.columns[index].name}", {MATRIX: rows})


def _neighbours(categories: Sequence[Any]) -> Array:
    """Numbers that are no category, and that a cast might take for one."""
    known = np.array(categories, np.float64)
    beyond = known.max(initial=0.0) + np.array([1, 2.0**32])
    near = (known + 0.5, known - 0.5, np.nextafter(known, np.inf), -1.0 - np.abs(known))
    values = np.concatenate([*near, beyond, [_UNSEEN_NUMBER]])
    return np.setdiff1d(values[np.isfinite(values)], known)


def _table_probes(
    estimator: Any, inputs: Inputs, ranges: Array, thresholds: dict[int, set[float]]
) -> Iterator[Probe]:
    generator = np.random.default_rng(SEED)
    documents = texts(estimator) if any(column.document for column in inputs.columns) else []

    def table(rows: int) -> Tensors:
        return {
            column.name: _column(generator, column, ranges[i], documents, rows)[:, None]
            for i, column in enumerate(inputs.columns)
        }

    plain = table(ROWS)
    yield Probe("ranges", plain)
    numbers = [
        i for i, column in enumerate(inputs.columns) if column.kind == "number" and not column.categories
    ]
    if any(i in thresholds for i in numbers):
        close = table(ROWS)
        for i in numbers:
            values = np.array(sorted(thresholds.get(i, ())))
            if values.size:
                close[inputs.columns[i].name][:, 0] = nudged(
                    generator, np.resize(generator.permutation(values), ROWS)
                )
        yield Probe("thresholds", close)
    for i, column in enumerate(inputs.columns):
        if column.categories:
            unseen = table(_CATEGORY_ROWS)
            unseen[column.name][::2, 0] = np.resize(_unseen(column), _CATEGORY_ROWS // 2)
            yield Probe(f"unseen {column.name}", unseen)
        if column.kind == "number":
            holes = table(_MISSING_ROWS)
            holes[inputs.columns[i].name][::3] = np.nan
            yield Probe(f"missing {column.name}", holes)


def _unseen(column: Column) -> Any:
    """What is no category of a column, in the column's own type."""
    if column.kind == "text":
        return [_UNSEEN]
    values = _neighbours(column.categories)
    if column.kind == "number":
        return values
    return np.setdiff1d(values.astype(np.int64), np.array(column.categories, np.int64))


def _column(
    generator: np.random.Generator, column: Column, span: Array, documents: list[str], rows: int
) -> Array:
    if column.document:
        return np.resize(np.array(documents, object), rows)
    if column.categories:
        kinds = {"text": object, "integer": np.int64, "number": np.float64}
        values = np.array(column.categories, kinds[column.kind])
        result: Array = values[generator.integers(len(values), size=rows)]
        return result
    if column.kind == "text":
        return np.array([_UNSEEN] * rows, object)
    return generator.uniform(span[0], span[1], rows)


# --- Texts ------------------------------------------------------------------------------------------


def texts(estimator: Any) -> list[str]:
    """Documents made of the vocabulary's words, in several spellings, and texts that are hard to cut."""
    generator = np.random.default_rng(SEED)
    words = sorted(
        {
            word
            for step in _everything(estimator)
            for term in list(getattr(step, "vocabulary_", None) or ())[:5000]
            if isinstance(term, str)
            for word in term.split()
        }
    ) or ["word"]
    documents = list(_HARD_TEXTS)
    separators = (" ", ", ", ".  ", "-", "'", "\n")
    for _ in range(_TEXT_ROWS - len(documents)):
        chosen = [words[i] for i in generator.integers(len(words), size=generator.integers(1, 12))]
        cased = [
            (str.upper(word), word.capitalize(), word, word, f"{word}é")[generator.integers(5)]
            for word in chosen
        ]
        # Upper case of ß is SS, and of a final sigma forgets which one it was.
        documents.append(str(separators[generator.integers(len(separators))]).join(cased))
    return documents


# --- Ranges and thresholds --------------------------------------------------------------------------


def _everything(estimator: Any) -> Iterator[Any]:
    yield estimator
    for _, child in children(estimator):
        yield from _everything(child)


def _ranges(estimator: Any, inputs: Inputs, thresholds: dict[int, set[float]]) -> Array:
    count = len(inputs.columns)
    ranges = ranges_of(thresholds, count)
    for step in first_steps(estimator):
        found = _known_range(step)
        if found is not None and found.shape == (count, 2) and np.isfinite(found).all():
            touched = [i for i in range(count) if i not in thresholds]
            ranges[touched] = found[touched]
    parts = [
        (step, selection)
        for outer in first_steps(estimator)
        for step, selection in _selections(outer, inputs)
    ]
    for step, indices in parts:
        for first in first_steps(step):
            found = _known_range(first)
            if found is not None and found.shape == (len(indices), 2) and np.isfinite(found).all():
                ranges[indices] = found
    return ranges


def _selections(step: Any, inputs: Inputs) -> Iterator[tuple[Any, list[int]]]:
    labels = [column.name for column in inputs.columns]
    for _, inner, selection in getattr(step, "transformers_", ()):
        if hasattr(inner, "fit"):
            yield inner, indices_of(selection, labels)


def _known_range(step: Any) -> Array | None:
    """The range of each feature that a fitted step remembers, [features, 2]."""
    if getattr(step, "data_min_", None) is not None:
        return _span(step.data_min_, step.data_max_)
    if getattr(step, "quantiles_", None) is not None:
        return _span(step.quantiles_[0], step.quantiles_[-1])
    if getattr(step, "bin_edges_", None) is not None:
        return _span([edges[0] for edges in step.bin_edges_], [edges[-1] for edges in step.bin_edges_])
    for center, scale in (("mean_", "scale_"), ("center_", "scale_"), ("theta_", "var_")):
        if getattr(step, center, None) is None:
            continue
        middle = np.atleast_2d(getattr(step, center))
        width: Any = getattr(step, scale, None)
        size = np.ones_like(middle) if width is None else np.atleast_2d(width)
        size = np.sqrt(size) if scale == "var_" else size
        if middle.shape == size.shape:
            return _span((middle - 3 * size).min(axis=0), (middle + 3 * size).max(axis=0))
    for name in ("_fit_X", "X_train_", "support_vectors_", "cluster_centers_", "X_fit_"):
        rows = getattr(step, name, None)
        if isinstance(rows, np.ndarray) and rows.ndim == 2 and len(rows) and rows.dtype.kind == "f":  # noqa: PLR2004  rows and columns
            return _span(rows.min(axis=0), rows.max(axis=0))
    return None


def _span(low: Any, high: Any) -> Array:
    low, high = np.asarray(low, np.float64).ravel(), np.asarray(high, np.float64).ravel()
    margin = 0.1 * (high - low) + 1e-9
    return np.stack([low - margin, high + margin], axis=1)


def _thresholds(estimator: Any, count: int) -> dict[int, set[float]]:
    """By input column, where trees split it; through transformers that can be inverted."""
    found: dict[int, set[float]] = {}
    for features, values in _splits(estimator, lambda rows: rows):
        for row_features, row in zip(features, values, strict=True):
            if row_features < count and row.shape == (count,) and np.isfinite(row[row_features]):
                found.setdefault(int(row_features), set()).add(float(row[row_features]))
    return found


def _splits(estimator: Any, back: Callable[[Array], Array | None]) -> Iterator[tuple[Array, Array]]:
    """Pairs of features [S] and rows [S, columns] that hold the thresholds in the input's own scale."""
    steps = getattr(estimator, "steps", None)
    if steps is not None:
        for _, step in steps:
            if step is None or step == "passthrough":
                continue
            yield from _splits(step, back)
            back = _through(step, back)
        return
    for features, thresholds, width in _tree_splits(estimator):
        rows = np.zeros((len(features), width))
        rows[np.arange(len(features)), features] = thresholds
        original = back(rows)
        if original is not None:
            yield features, original
    for _, child in children(estimator):
        if not hasattr(estimator, "transformers_") and child is not getattr(
            estimator, "final_estimator_", None
        ):
            yield from _splits(child, back)


def _cuts(estimator: Any) -> Sequence[Any]:
    """By column, where a ``KBinsDiscretizer`` or a ``Binarizer`` cuts it."""
    if getattr(estimator, "bin_edges_", None) is not None:
        return list(estimator.bin_edges_)
    if isinstance(estimator, Binarizer):
        return [[estimator.threshold]] * int(estimator.n_features_in_)
    return ()


def _through(step: Any, back: Callable[[Array], Array | None]) -> Callable[[Array], Array | None]:
    def inverse(rows: Array) -> Array | None:
        try:
            original = step.inverse_transform(rows)
        except Exception:  # noqa: BLE001  a step that cannot be inverted raises what it likes
            return None
        dense = np.asarray(original)
        return back(dense) if dense.shape == rows.shape else None

    return inverse


def _tree_splits(estimator: Any) -> Iterator[tuple[Array, Array, int]]:
    """Features, thresholds and the number of features, of a tree, of boosted trees, or of what cuts columns in steps."""
    cuts = _cuts(estimator)
    for feature, values in enumerate(cuts):
        yield np.full(len(values), feature), np.asarray(values, np.float64), len(cuts)
    tree = getattr(estimator, "tree_", None)
    if tree is not None and hasattr(tree, "threshold"):
        inner = tree.feature >= 0
        yield tree.feature[inner], tree.threshold[inner], int(tree.n_features)
        return
    boosting = _boosting(estimator)
    if boosting is None:
        return
    for feature, values in boosting.trees.thresholds.items():
        limited = [value for value in values if abs(value) < _NO_LIMIT]
        yield np.full(len(limited), feature), np.array(limited), boosting.trees.features


def _boosting(estimator: Any) -> Boosting | None:
    from converters.sklearn_operators import boosting_of  # noqa: PLC0415  it may import the libraries

    return boosting_of(estimator)
