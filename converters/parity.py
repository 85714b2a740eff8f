"""The gate: the model that will serve, run by the session that will serve it, against the original.

A ``Probe`` is a set of rows in the original's own types, a ``Case`` is a probe with what the original
answers to it. ``judge`` casts each case's rows to the model's types as the server does, runs them in
several cuts (all at once, by seven, one by one) and returns a ``Report``; ``gate`` raises if it failed.

What counts as a difference: labels, other integers and strings must be equal, except that a label may
differ where the original's own two best scores are closer than the tolerance (a tie). A number may
differ by ``atol * scale + rtol * |expected|``, where ``scale`` is the largest finite magnitude that the
original answers in this output (of a ``prediction`` or a ``transformed`` matrix: in this column), to the user's
rows or to those made up. Rows whose answer is right for the inputs as the model's type rounds
them, and wrong for the inputs as they were, have crossed a threshold; they are counted apart, and fail too.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np

from converters.artifact import Golden
from converters.comparison import Incomparable, Tally, array_of, runs
from converters.errors import ConversionRefused
from converters.parity_report import Case, Difference, OutputReport, Probe, Report, Tolerances
from onnx_serve.errors import ServeError
from onnx_serve.model import Model
from onnx_serve.tensors import Array, Signature, Tensors, conform

__all__ = [
    "Case",
    "Difference",
    "Original",
    "OutputReport",
    "Probe",
    "Report",
    "Tolerances",
    "compare",
    "gate",
    "golden_rows",
    "judge",
    "record",
]

# From a feed in the original's own types (arrays by the model's input names, rows along dimension 0) to
# its answers: an array for each of the model's outputs that the original has too, by output name.
Original: TypeAlias = Callable[[Tensors], Tensors]

_WORST = 5


def compare(
    model: Model, original: Original, probes: Iterable[Probe], tolerances: Tolerances | None = None
) -> Report:
    """Asks the original and the model, and compares: ``record`` and ``judge`` in one."""
    return judge(model, record(original, probes, model.signature), tolerances or Tolerances())


def record(original: Original, probes: Iterable[Probe], signature: Signature) -> tuple[Case, ...]:
    """The original's answers to the probes, and to the probes as the model's input types round them.

    Raises:
        MismatchError: A probe is nothing the model takes.
    """
    cases = []
    for probe in probes:
        rounded = _rounded(probe.feed, conform(probe.feed, signature))
        cases.append(Case(probe, original(probe.feed), original(rounded) if rounded else None))
    return tuple(cases)


def gate(report: Report) -> None:
    """Lets a report pass that has passed.

    Raises:
        ConversionRefused: It has not; the message holds the figures and the worst rows.
    """
    if report.passed:
        return
    if report.problem:
        raise ConversionRefused(f"the converted model cannot be compared with the original: {report.problem}")
    if not report.outputs:
        raise ConversionRefused("the converted model has no output that the original has too")
    lines = "\n".join(report.lines())
    ties = max(output.ties / max(output.rows, 1) for output in report.outputs)
    if ties > report.tolerances.ties:
        lines += (
            f"\nTies alone, where the original's own scores leave the label open, are {ties:.3g} of the rows: "
            "--tolerance ties= allows another share"
        )
    raise ConversionRefused(f"the converted model does not answer as the original does:\n{lines}")


def judge(model: Model, cases: Sequence[Case], tolerances: Tolerances) -> Report:
    """Runs the cases through the model and compares with the recorded answers."""
    names = {case.probe.name: len(next(iter(case.probe.feed.values()))) for case in cases}
    tallies = {
        spec.name: Tally(spec.name, tolerances, cases)
        for spec in model.signature.outputs
        if any(spec.name in case.expected for case in cases)
    }
    unchecked = tuple(spec.name for spec in model.signature.outputs if spec.name not in tallies)
    problem = ""
    try:
        for case in cases:
            feed = conform(case.probe.feed, model.signature)
            for rows, values in runs(model, feed):
                for tally in tallies.values():
                    tally.add(case, rows, values)
    except (ServeError, Incomparable) as ex:
        problem = str(ex)
    worst = sorted((row for tally in tallies.values() for row in tally.worst), key=lambda row: -row.excess)
    reports = tuple(tally.report() for tally in tallies.values())
    return Report(reports, unchecked, problem, tuple(worst[:_WORST]), tolerances, names)


def golden_rows(model: Model, feed: Tensors) -> Golden:
    """What the model answers to a few rows, for ``golden.npz``; outputs that are no arrays are left out."""
    inputs = conform(feed, model.signature)
    parts: list[Tensors] = []
    for rows, values in runs(model, inputs):
        # Of a model with a fixed number of rows a run, the first cut takes several runs.
        if rows.start == 0 and parts:
            break
        parts.append({name: _text(array_of(value)) for name, value in values.items()})
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Golden({name: _text(array) for name, array in inputs.items()}, outputs)


def _text(array: Array) -> Array:
    """Text of a fixed width, as NumPy stores it without pickle."""
    return array.astype(str) if array.dtype == object else array


def _rounded(feed: Tensors, fed: Tensors) -> Tensors | None:
    """The fed values in the original's types, or None if nothing was lost on the way."""
    back = {name: fed[name].astype(array.dtype) for name, array in feed.items()}
    exact = all(
        np.array_equal(array, back[name], equal_nan=array.dtype.kind == "f") for name, array in feed.items()
    )
    return None if exact else back
