"""Rows made to tell a converted model from its original where they are likeliest to differ.

For trees: the range in which they split, every kind of missing value, and thresholds themselves and their
neighbours in float32 and float64. Everything is drawn from a fixed seed: the same model, the same rows.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from converters.parity import Probe
from onnx_serve.tensors import Array

__all__ = ["ROWS", "SEED", "matrix_probes", "nudged", "ranges_of"]

SEED = 20240607
ROWS = 1024
_MISSING_ROWS = 128
_NO_LIMIT = 1e38  # about the end of float32
_DEFAULT_RANGE = (-3.0, 3.0)


def ranges_of(thresholds: Mapping[int, Iterable[float]], features: int) -> Array:
    """For each feature the low and high end of values worth trying, [features, 2]."""
    ranges = np.tile(np.array(_DEFAULT_RANGE), (features, 1))
    for feature, values in thresholds.items():
        known = _within(values)
        if known.size:
            low, high = known.min(), known.max()
            margin = max(0.25 * (high - low), 0.1 * max(abs(low), abs(high)), 1e-6)
            ranges[feature] = low - margin, high + margin
    return ranges


def matrix_probes(
    ranges: Array,
    thresholds: Mapping[int, Iterable[float]],
    categories: Mapping[int, Iterable[int]],
    *,
    missing: bool,
    name: str = "features",
    rows: int = ROWS,
) -> list[Probe]:
    """Probes for one matrix of numbers.

    Args:
        ranges: ``[features, 2]``, low and high ends.
        thresholds: By feature, where answers jump.
        categories: By feature, the codes that are told apart; one beyond the highest stands for unseen ones.
        missing: Whether the original takes NaN.
        name: The model's input.
        rows: Rows of the first two probes.
    """
    generator = np.random.default_rng(SEED)
    base = _random(generator, ranges, categories, rows)
    # A row of zeros: what sparse data are full of.
    base[-1] = 0.0
    probes = [Probe("ranges", {name: base})]
    known = {feature: array for feature, values in thresholds.items() if (array := _within(values)).size}
    if known:
        close = _random(generator, ranges, categories, rows)
        for feature, values in known.items():
            # Each threshold once before any twice, as far as the rows reach.
            picked = generator.permutation(np.resize(generator.permutation(values), rows))
            close[:, feature] = nudged(generator, picked)
        probes.append(Probe("thresholds", {name: close}))
    if missing:
        holes = _random(generator, ranges, categories, min(_MISSING_ROWS, rows))
        holes[generator.random(holes.shape) < 0.3] = np.nan  # noqa: PLR2004  a share
        holes[0] = np.nan
        probes.append(Probe("missing", {name: holes}))
    return probes


def nudged(generator: np.random.Generator, values: Array) -> Array:
    """The values, or their neighbours in float32 or float64 on either side, chosen at random."""
    single = values.astype(np.float32)
    up, down = np.float32(np.inf), np.float32(-np.inf)
    choices = np.stack(
        [
            values,
            np.nextafter(values, np.inf),
            np.nextafter(values, -np.inf),
            single.astype(np.float64),
            np.nextafter(single, up).astype(np.float64),
            np.nextafter(single, down).astype(np.float64),
        ]
    )
    result: Array = choices[generator.integers(len(choices), size=len(values)), np.arange(len(values))]
    return result


def _within(values: Iterable[float]) -> Array:
    """The values in order, without those that stand for no limit."""
    return np.array(sorted(value for value in values if abs(value) < _NO_LIMIT))


def _random(
    generator: np.random.Generator, ranges: Array, categories: Mapping[int, Iterable[int]], rows: int
) -> Array:
    values: Array = generator.uniform(ranges[:, 0], ranges[:, 1], (rows, len(ranges)))
    for feature, codes in categories.items():
        known: list[Any] = sorted(codes)
        values[:, feature] = generator.choice([*known, max(known, default=0) + 1], rows)
    return values
