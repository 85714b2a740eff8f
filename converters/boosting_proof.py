"""What the converters of boosting libraries share: from a ``Boosting`` and its library's answers to a conversion."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.boosting import Boosting, to_model
from converters.conversion import Conversion, Progress, Request, prove, say_nothing
from converters.parity import Original, Tolerances
from converters.probes import matrix_probes, ranges_of
from converters.samples import Sample, matrix_sample, read_sample
from onnx_serve.tensors import Array, Tensors

__all__ = ["TOLERANCES", "category_properties", "class_answers", "prove_boosting", "request_sample"]

TOLERANCES = Tolerances(rtol=1e-4, atol=1e-6)
_CATEGORIES = "onnx_serve.categories"
_CATEGORY_NOTE = f"categorical columns take the numbers of their categories, in the order that the metadata {_CATEGORIES} lists"


def prove_boosting(  # noqa: PLR0913  each is said by its name
    boosting: Boosting,
    original: Original,
    *,
    framework: str,
    family: str,
    sample: Sample | Array | None,
    tolerances: Mapping[str, float] | None,
    notes: tuple[str, ...] = (),
    progress: Progress = say_nothing,
) -> Conversion:
    """Makes the graph and proves it on the sample, on ranges, thresholds and missing values.

    Args:
        boosting: What the model computes.
        original: The library's own way to compute it.
        framework: The library.
        family: The model's class.
        sample: Rows to prove it on; made up if absent.
        tolerances: Overrides of ``TOLERANCES``, by field.
        notes: What the user should know.
        progress: Told what is being done.

    Raises:
        ConversionError: The sample has other columns.
        ConversionRefused: The graph answers otherwise.
    """
    trees = boosting.trees
    if _CATEGORIES in boosting.properties:
        notes = (*notes, _CATEGORY_NOTE)
    probes = [
        *matrix_sample(sample, trees.features, boosting.names),
        *matrix_probes(
            ranges_of(trees.thresholds, trees.features), trees.thresholds, trees.categories, missing=True
        ),
    ]
    return prove(
        to_model(boosting), original, probes,
        framework=framework, family=family, tolerances=TOLERANCES, overrides=tolerances,
        columns=boosting.names, classes=boosting.classes, notes=notes, properties=boosting.properties,
        progress=progress,
    )  # fmt: skip


def request_sample(request: Request) -> Sample | None:
    """The rows that the user gave, if any.

    Raises:
        ConversionError: They cannot be read.
    """
    return read_sample(Path(request.sample)) if request.sample else None


def category_properties(categories: Sequence[Any] | Mapping[str, Any]) -> dict[str, str]:
    """The metadata that tells which category each number stands for, or none; of categories in a data frame."""
    if not categories:
        return {}
    return {_CATEGORIES: json.dumps(categories, ensure_ascii=False, default=str)}


def class_answers(shares: Any, classes: Sequence[Any]) -> Tensors:
    """A classifier's answers by the share of one class of two, [N], or of each class, [N, classes]."""
    table = np.asarray(shares)
    if table.ndim == 1:
        table = np.stack([1 - table, table], axis=1)
    return {"label": np.asarray(classes)[table.argmax(axis=1)], "probabilities": table}
