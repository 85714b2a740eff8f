"""How two answers compare: row by row for one output, over runs of different sizes."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from converters.parity_report import Case, Difference, OutputReport, Tolerances
from onnx_serve.model import Model
from onnx_serve.tensors import Array, MapTable, RowAxis, Tensors, Values

__all__ = ["Incomparable", "Tally", "array_of", "runs"]

_CUTS = (7, 1)  # rows a run, besides all at once
_CUT_ROWS = 70  # rows that are run in each of these cuts
_WORST = 5
_TINY = float(np.finfo(np.float32).tiny)  # below it, a relative error says nothing
_USERS = "sample"  # the probe of the user's rows
# Outputs whose columns are quantities of their own, each of its own magnitude.
_APART = frozenset({"prediction", "transformed"})


class Incomparable(Exception):
    """Two answers have shapes or kinds that cannot be compared."""


class Tally:
    """Collects the errors of one output, of a comparison of these cases."""

    def __init__(self, name: str, tolerances: Tolerances, cases: Sequence[Case]) -> None:
        self.name = name
        self.tolerances = tolerances
        self.scales = _scales(cases, name)
        self.scale = float(next(iter(self.scales.values())).max(initial=0.0))
        self.kind = "number"
        self.rows = self.disagreements = self.ties = self.outside = self.crossing = 0
        self.absolute: list[Array] = []
        self.relative: list[Array] = []
        self.worst: list[Difference] = []

    def add(self, case: Case, rows: slice, values: Values) -> None:
        """Compares one run's rows of one case."""
        actual = array_of(values[self.name])
        expected = _fit(case.expected[self.name][rows], actual, self.name)
        self.rows += len(actual)
        if expected.dtype.kind == "f":
            excess = self.numbers(expected, actual, self.scale_of(case, expected))
        else:
            excess = self.labels(case, rows, expected, actual)
        wrong = excess > 0
        if not wrong.any():
            return
        crossing = wrong & self.crosses(case, rows, actual)
        self.crossing += int(crossing.sum())
        self.outside += int((wrong & ~crossing).sum())
        for row in np.argsort(-excess, kind="stable")[: min(_WORST, int(wrong.sum()))]:
            shown = {name: array[rows][row] for name, array in case.probe.feed.items()}
            self.worst.append(
                Difference(
                    case.probe.name, rows.start + int(row), self.name, float(excess[row]),
                    _short(expected[row]), _short(actual[row]), _short_inputs(shown),
                )
            )  # fmt: skip
        self.worst = sorted(self.worst, key=lambda found: -found.excess)[:_WORST]

    def scale_of(self, case: Case, expected: Array) -> Array:
        """What ``Tolerances.atol`` is a share of in the rows of a case, for each column or for all."""
        scale = self.scales[case.probe.name]
        # In the model's shape, which _fit gave the answer, [N] may have become [N, 1] or the other way round.
        return scale if scale.shape == expected.shape[1:] else np.asarray(scale.max(initial=0.0))

    def numbers(self, expected: Array, actual: Array, scale: Array) -> Array:
        """For each row, by how much its largest error exceeds what is allowed; 0 within."""
        if actual.dtype.kind not in "fiub":
            raise Incomparable(f'output "{self.name}": expected numbers, got {actual.dtype}')
        expected, actual = expected.astype(np.float64), actual.astype(np.float64)
        excess, finite = self.excess(expected, actual, scale)
        error = np.abs(expected[finite] - actual[finite])
        magnitude = np.abs(expected[finite])
        self.absolute.append(error)
        known = magnitude > _TINY
        self.relative.append(error[known] / magnitude[known])
        return _row_max(excess)

    def excess(self, expected: Array, actual: Array, scale: Array) -> tuple[Array, Array]:
        """Element by element the error beyond the allowed one, and where both are finite."""
        finite = np.isfinite(expected) & np.isfinite(actual)
        # Equal infinities and two NaNs agree; anything else that is not finite is wrong beyond measure.
        same = (expected == actual) | (np.isnan(expected) & np.isnan(actual))
        allowed = self.tolerances.atol * scale + self.tolerances.rtol * np.abs(np.where(finite, expected, 0))
        with np.errstate(invalid="ignore"):
            error = np.where(finite, np.abs(expected - actual), np.where(same, 0.0, np.inf))
        return np.maximum(error - allowed, 0.0), finite

    def labels(self, case: Case, rows: slice, expected: Array, actual: Array) -> Array:
        """1 for each row with another label that is no tie, else 0."""
        self.kind = "label"
        differs = _row_max((expected != actual).astype(np.float64))
        ties = (differs > 0) & self.tied(case, rows, len(actual))
        self.disagreements += int(differs.sum())
        self.ties += int(ties.sum())
        return np.where(ties, 0.0, differs)

    def tied(self, case: Case, rows: slice, count: int) -> Array:
        """Where two of the original's scores are the best, within the tolerance."""
        tied = np.zeros(count, np.bool_)
        for name, scores in case.expected.items():
            if name == self.name or scores.dtype.kind != "f" or scores.ndim != 2 or scores.shape[1] < 2:  # noqa: PLR2004  two scores make a tie
                continue
            best = np.sort(scores[rows].astype(np.float64), axis=1)[:, -2:]
            scale = float(np.max(np.abs(best), initial=0.0, where=np.isfinite(best)))
            allowed = self.tolerances.atol * scale + self.tolerances.rtol * np.abs(best[:, 1])
            tied |= best[:, 1] - best[:, 0] <= allowed
        return tied

    def crosses(self, case: Case, rows: slice, actual: Array) -> Array:
        """Where the answer is the original's own to the rounded inputs."""
        if case.rounded is None:
            return np.zeros(len(actual), np.bool_)
        expected = _fit(case.rounded[self.name][rows], actual, self.name)
        if expected.dtype.kind == "f":
            excess, _ = self.excess(
                expected.astype(np.float64), actual.astype(np.float64), self.scale_of(case, expected)
            )
            return np.asarray(_row_max(excess) == 0)
        return np.asarray(_row_max((expected != actual).astype(np.float64)) == 0)

    def report(self) -> OutputReport:
        """The figures collected so far."""
        absolute, relative = (
            np.concatenate([*parts, np.zeros(0)]) for parts in (self.absolute, self.relative)
        )
        return OutputReport(
            self.name, self.kind, self.rows, self.disagreements, self.ties,
            _maximum(absolute), _p99(absolute), _maximum(relative), _p99(relative),
            self.outside, self.crossing, self.scale,
        )  # fmt: skip


def runs(model: Model, feed: Tensors) -> Iterator[tuple[slice, Values]]:
    """The outputs of a feed, in several cuts of its rows, each with the rows it answers."""
    rows = _rows(feed)
    axis = model.signature.row_axis
    if axis is RowAxis.NONE:
        yield slice(0, None), model.run(feed)
        return
    cuts = {rows: rows, **{cut: min(_CUT_ROWS, rows) for cut in _CUTS}}
    if axis is RowAxis.FIXED:
        cuts = {model.signature.fixed_rows: rows}
    for cut, limit in cuts.items():
        for start in range(0, limit, cut):
            part = slice(start, min(start + cut, limit))
            piece = {name: array[part] for name, array in feed.items()}
            short = model.signature.fixed_rows - (part.stop - start) if axis is RowAxis.FIXED else 0
            values = model.run({name: _pad(array, short) for name, array in piece.items()})
            yield part, {name: array_of(value)[: part.stop - start] for name, value in values.items()}


def _pad(array: Array, rows: int) -> Array:
    return np.concatenate([array, np.repeat(array[-1:], rows, axis=0)]) if rows > 0 else array


def _rows(feed: Tensors) -> int:
    return len(next(iter(feed.values())))


def array_of(value: Any) -> Array:
    """The array of an output, a MapTable's values included."""
    if isinstance(value, MapTable):
        return value.values
    if not isinstance(value, np.ndarray):
        raise Incomparable(f"outputs of type {type(value).__name__} cannot be compared")
    return value


def _fit(expected: Array, actual: Array, name: str) -> Array:
    """The expected answer in the model's shape: [N] and [N, 1] are the same answer."""
    if expected.shape[:1] != actual.shape[:1] or expected.size != actual.size:
        raise Incomparable(
            f'output "{name}": the original answers with shape {list(expected.shape)}, '
            f"the model with {list(actual.shape)}"
        )
    return expected.reshape(actual.shape)


def _scales(cases: Sequence[Case], name: str) -> dict[str, Array]:
    """By probe, the largest finite magnitudes of an output's answers: of each column, or of all; 0 for labels.

    The user's rows are measured by themselves: rows that are made up may reach magnitudes far from theirs.
    """
    scales: dict[str, Array] = {}
    for users in (True, False):
        chosen = [case for case in cases if (case.probe.name == _USERS) is users and name in case.expected]
        widths = {case.expected[name].shape[1:] for case in chosen}
        apart = name in _APART and len(widths) == 1
        magnitudes = [_magnitudes(case.expected[name], apart=apart) for case in chosen]
        scales |= {case.probe.name: np.max(magnitudes, axis=0) for case in chosen}
    return scales


def _magnitudes(array: Array, *, apart: bool) -> Array:
    if array.dtype.kind != "f":
        return np.zeros(())
    sizes = np.where(np.isfinite(array), np.abs(array), 0.0)
    return np.asarray(sizes.max(axis=0 if apart and array.ndim == 2 else None, initial=0.0))  # noqa: PLR2004  rows and columns


def _row_max(values: Array) -> Array:
    result: Array = values.reshape(len(values), -1).max(axis=1, initial=0.0)
    return result


def _maximum(values: Array) -> float:
    return float(values.max(initial=0.0))


def _p99(values: Array) -> float:
    return float(np.percentile(values, 99)) if values.size else 0.0


def _short(value: Any) -> str:
    return " ".join(np.array2string(np.asarray(value), precision=7, threshold=6).split())[:80]


def _short_inputs(values: dict[str, Any]) -> str:
    shown = [f"{name}={_short(value)}" for name, value in list(values.items())[:6]]
    return ", ".join(shown) + (", ..." if len(values) > len(shown) else "")
