"""What a scikit-learn estimator takes: one matrix, texts, or a table whose columns differ in type.

A fitted estimator remembers names and numbers of its columns, never their types. They are told by the
user's sample if there is one, else by the transformers that meet the columns first: an encoder knows its
categories, a vectorizer reads text, everything else takes numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.isotonic import IsotonicRegression
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.utils.validation import check_is_fitted

from converters.errors import ConversionError
from converters.samples import Sample, numbers_or_text
from onnx_serve.errors import quote
from onnx_serve.tensors import Array, Tensors

__all__ = [
    "MATRIX",
    "TEXT",
    "Column",
    "Inputs",
    "children",
    "describe",
    "first_steps",
    "indices_of",
    "keys_of",
]

MATRIX, TEXT = "features", "text"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the estimator's input.

    Attributes:
        name: Its name; ``column_3`` where the estimator was fitted without names.
        kind: ``number``, ``integer`` (whole numbers that are categories) or ``text``.
        categories: What an encoder knows of it, or empty.
        document: Whether its text is cut into words, not looked up.
    """

    name: str
    kind: str = "number"
    categories: tuple[Any, ...] = ()
    document: bool = False


@dataclass(frozen=True, slots=True)
class Inputs:
    """The estimator's input.

    Attributes:
        columns: Its columns, in the order of training.
        form: ``matrix`` (one input ``features``), ``text`` (one input ``text``), ``columns`` (one each), ``records``
            (the same, of which the estimator takes a list of dictionaries), or ``labels`` (one input of that name, which
            the estimator takes as an array [N]).
        named: Whether the estimator was fitted on named columns.
    """

    columns: tuple[Column, ...]
    form: str
    named: bool

    def rows(self, feed: Tensors) -> Any:
        """A feed as the estimator takes it: an array, a list of texts or a data frame."""
        if self.form == "text":
            return [str(text) for text in feed[TEXT][:, 0]]
        if self.form == "records":
            columns = [feed[column.name][:, 0].tolist() for column in self.columns]
            names = [column.name for column in self.columns]
            return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        if self.form == "labels":
            return feed[self.columns[0].name][:, 0]
        if self.form == "matrix":
            if not self.named:
                return feed[MATRIX]
            return _frame({column.name: feed[MATRIX][:, i] for i, column in enumerate(self.columns)})
        table = {
            column.name: feed[column.name][:, 0].astype(object)
            if column.kind == "text"
            else feed[column.name][:, 0]
            for column in self.columns
        }
        if self.named:
            return _frame(table)
        return np.stack([array.astype(object) for array in table.values()], axis=1)

    def feed(self, sample: Sample) -> Tensors:
        """A sample as a feed.

        Raises:
            ConversionError: It has other columns, or text where numbers are expected.
        """
        table = self._table(sample)
        if self.form == "text":
            return {TEXT: np.array([str(text) for text in table[self.columns[0].name]], object)[:, None]}
        arrays = {}
        for column in self.columns:
            array = table[column.name].reshape(-1)
            if column.kind == "text":
                array = np.array([str(value) for value in array], object)
            elif array.dtype.kind not in "biuf":
                raise ConversionError(f"--sample: the column {quote(column.name)} takes numbers, not text")
            else:
                array = array.astype(np.int64 if column.kind == "integer" else np.float64)
            arrays[column.name] = array
        if self.form == "matrix":
            return {MATRIX: np.stack(list(arrays.values()), axis=1)}
        return {name: array[:, None] for name, array in arrays.items()}

    def _table(self, sample: Sample) -> dict[str, Array]:
        names = [column.name for column in self.columns]
        if sample.matrix is not None:
            matrix = sample.matrix[:, None] if sample.matrix.ndim == 1 else sample.matrix
            if matrix.ndim != 2 or matrix.shape[1] != len(names):  # noqa: PLR2004  rows and columns
                raise ConversionError(
                    f"--sample: expected {len(names)} columns, got an array of shape {list(sample.matrix.shape)}"
                )
            return {name: numbers_or_text(column) for name, column in zip(names, matrix.T, strict=True)}
        if set(names) <= set(sample.columns):
            return sample.columns
        if not self.named and len(sample.columns) == len(names):
            return dict(zip(names, sample.columns.values(), strict=True))
        missing = [name for name in names if name not in sample.columns]
        raise ConversionError(
            f"--sample: expected {len(names)} columns, got {len(sample.columns)}; "
            f"missing {', '.join(map(quote, missing[:5]))}"
        )


def describe(estimator: Any, sample: Sample | None) -> Inputs:
    """What the estimator takes.

    Raises:
        ConversionError: It does not say how many columns, or takes what is no table.
    """
    steps = list(first_steps(estimator))
    if steps and all(hasattr(step, "build_analyzer") for step in steps):
        return Inputs((Column(TEXT, "text", document=True),), "text", named=False)
    if len(steps) == 1 and isinstance(steps[0], DictVectorizer):
        keys = keys_of(steps[0]).items()
        known = (Column(key, "text", tuple(values)) if values else Column(key) for key, values in keys)
        return Inputs(tuple(known), "records", named=False)
    # A pipeline asks its first step, which may be none.
    first = estimator if hasattr(estimator, "n_features_in_") or not steps else steps[0]
    names = getattr(first, "feature_names_in_", None)
    count = 1 if isinstance(first, IsotonicRegression) else getattr(first, "n_features_in_", None)
    if count is None:
        if type(estimator).__name__ in {"LabelEncoder", "LabelBinarizer"}:
            kinds = estimator.classes_.dtype.kind
            return Inputs((Column("labels", "text" if kinds in "OU" else "integer", tuple(estimator.classes_.tolist())),),
                          "labels", named=False)  # fmt: skip
        raise ConversionError(
            f"{type(estimator).__name__} does not say which columns it takes: expected an estimator of tables or of texts"
        )
    labels = [str(name) for name in names] if names is not None else [f"column_{i}" for i in range(count)]
    columns = [Column(label) for label in labels]
    for step in steps:
        for index, column in _kinds(step, labels):
            columns[index] = replace(column, name=labels[index])
    if sample is not None and sample.columns:
        columns = [_as_sampled(column, sample) for column in columns]
    by_name = any(isinstance(step, ColumnTransformer) for step in steps) and names is not None
    if any(column.kind != "number" for column in columns) or by_name:
        kinds = {column.kind for column in columns}
        # A matrix of one type costs less than a column each, and is what arrays were fitted on.
        if not (kinds == {"number"} and not by_name):
            return Inputs(tuple(columns), "columns", named=names is not None)
    return Inputs(tuple(columns), "matrix", named=names is not None)


def keys_of(vectorizer: Any) -> dict[str, list[str]]:
    """The keys of the dictionaries that a DictVectorizer knows, with the texts that it knows of each; numbers have none."""
    texts: dict[str, list[str]] = {}
    for name in vectorizer.feature_names_:
        key, separator, value = str(name).partition(vectorizer.separator)
        texts.setdefault(key, []).extend([value] if separator else [])
    return texts


def _as_sampled(column: Column, sample: Sample) -> Column:
    """The column with the type that the sample has, where nothing of the estimator speaks against it."""
    array = sample.columns.get(column.name)
    if array is None or column.categories or column.kind == "text":
        return column
    return column if array.dtype.kind in "biuf" else replace(column, kind="text")


def first_steps(estimator: Any) -> Iterator[Any]:
    """The estimators that meet the input itself."""
    if isinstance(estimator, Pipeline):
        steps = [step for _, step in estimator.steps if step is not None and step != "passthrough"]
        if steps:
            yield from first_steps(steps[0])
        return
    if isinstance(estimator, FeatureUnion):
        for _, step in estimator.transformer_list:
            if step not in {"drop", "passthrough"}:
                yield from first_steps(step)
        return
    inner = [child for name, child in children(estimator) if not name.startswith("final")]
    if inner and not isinstance(estimator, ColumnTransformer):
        for child in inner:
            yield from first_steps(child)
        return
    yield estimator


def children(estimator: Any) -> list[tuple[str, Any]]:
    """The fitted estimators that an estimator is made of, with their names; steps of a pipeline included."""
    if isinstance(estimator, Pipeline):
        return [(name, step) for name, step in estimator.steps if step is not None and step != "passthrough"]
    if isinstance(estimator, FeatureUnion):
        return [(name, step) for name, step in estimator.transformer_list if hasattr(step, "fit")]
    if isinstance(estimator, ColumnTransformer):
        return [(name, step) for name, step, _ in estimator.transformers_ if hasattr(step, "fit")]
    best = getattr(estimator, "best_estimator_", None)
    if hasattr(best, "fit"):
        return [("best_estimator_", best)]
    calibrated = getattr(estimator, "calibrated_classifiers_", None)
    if calibrated:
        return [(f"calibrated {i}", entry.estimator) for i, entry in enumerate(calibrated)]
    found = getattr(estimator, "estimators_", None)
    if found is not None:
        # A list, or an array [iterations, classes]; the template beside it, estimator_, is not fitted.
        fitted = [child for child in np.ravel(np.array([*found], object)) if hasattr(child, "fit")]
        pairs = getattr(estimator, "estimators", None)
        names = (
            [pair[0] for pair in pairs if pair[1] != "drop"]
            if isinstance(pairs, list) and pairs and isinstance(pairs[0], tuple)
            else []
        )
        result = [(names[i] if i < len(names) else str(i), child) for i, child in enumerate(fitted)]
        final = getattr(estimator, "final_estimator_", None)
        return [*result, ("final_estimator", final)] if hasattr(final, "fit") else result
    for name in ("estimator_", "regressor_", "estimator"):
        single = getattr(estimator, name, None)
        if hasattr(single, "fit"):
            return [(name, single)] if name != "estimator" or _is_fitted(single) else []
    return []


def _is_fitted(estimator: Any) -> bool:
    """Whether a template is none: FrozenEstimator and thresholds hold an estimator that was fitted before."""
    try:
        check_is_fitted(estimator)
    except (NotFittedError, TypeError):
        return False
    return True


def _kinds(step: Any, labels: Sequence[str]) -> Iterator[tuple[int, Column]]:
    """The columns of which a step tells more than that they are numbers."""
    if isinstance(step, CountVectorizer):
        yield 0, Column("", "text", document=True)
    elif not isinstance(step, ColumnTransformer):
        yield from _encoded(step, len(labels))
        return
    for _, inner, selection in getattr(step, "transformers_", ()):
        if not hasattr(inner, "fit"):
            continue
        indices = indices_of(selection, labels)
        for first in first_steps(inner):
            for position, column in _kinds(first, [labels[i] for i in indices]):
                yield indices[position], column


def _encoded(step: Any, count: int) -> Iterator[tuple[int, Column]]:
    """The columns whose categories an encoder knows, or whose text an imputer fills in."""
    for index, categories in enumerate((getattr(step, "categories_", None) or ())[:count]):
        values = np.asarray(categories)
        known = [value for value in values.tolist() if value is not None and value == value]  # noqa: PLR0124  NaN
        if values.dtype.kind in "OUS" and not all(isinstance(value, int | float) for value in known):
            yield index, Column("", "text", tuple(map(str, known)))
        elif values.dtype.kind in "iub":
            yield index, Column("", "integer", tuple(map(int, known)))
        else:
            yield index, Column("", "number", tuple(map(float, known)))
    statistics = np.asarray(getattr(step, "statistics_", ()))
    if statistics.dtype.kind in "OU":
        for index, value in enumerate(statistics.tolist()[:count]):
            if isinstance(value, str):
                yield index, Column("", "text", (value,))


def indices_of(selection: Any, labels: Sequence[str]) -> list[int]:
    """The columns that a ColumnTransformer gives to a step, as positions."""
    if isinstance(selection, str):
        return [labels.index(selection)]
    if isinstance(selection, slice):
        if isinstance(selection.start, str) or isinstance(selection.stop, str):
            start = labels.index(selection.start) if selection.start else 0
            stop = labels.index(selection.stop) + 1 if selection.stop else len(labels)
            return list(range(start, stop))
        return list(range(len(labels)))[selection]
    if isinstance(selection, int | np.integer):
        return [int(selection)]
    values = list(selection)
    if values and isinstance(values[0], bool | np.bool_):
        return [index for index, chosen in enumerate(values) if chosen]
    return [labels.index(value) if isinstance(value, str) else int(value) for value in values]


def _frame(table: dict[str, Array]) -> Any:
    try:
        import pandas as pd  # noqa: PLC0415  only for estimators fitted on named columns
    except ModuleNotFoundError:
        raise ConversionError(
            'the estimator was fitted on named columns, and pandas is not installed: pip install "onnx-serve[convert-sklearn]"'
        ) from None
    return pd.DataFrame(table)
