"""What the converters of boosting libraries share: from a ``Boosting`` and its library's answers to a conversion."""

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

__all__ = ["TOLERANCES", "class_answers", "prove_boosting", "request_sample"]

TOLERANCES = Tolerances(rtol=1e-4, atol=1e-6)


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
    probes = [
        *matrix_sample(sample, trees.features, boosting.names),
        *matrix_probes(
            ranges_of(trees.thresholds, trees.features), trees.thresholds, trees.categories,
            missing=boosting.linear is None,
        ),
    ]  # fmt: skip
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


def class_answers(shares: Any, classes: Sequence[Any]) -> Tensors:
    """A classifier's answers by the share of one class of two, [N], or of each class, [N, classes]."""
    table = np.asarray(shares)
    if table.ndim == 1:
        table = np.stack([1 - table, table], axis=1)
    return {"label": np.asarray(classes)[table.argmax(axis=1)], "probabilities": table}
