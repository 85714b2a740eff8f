"""Medians of paired measurements, with what may be said of them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_RESAMPLES = 10_000


class Interval(NamedTuple):
    """A median and its 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def median_interval(values: Sequence[float]) -> Interval:
    """The median and its bootstrap interval: of resamples with replacement, seeded.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile interval).

    Args:
        values: One or more; of paired measurements, their ratios.
    """
    data = np.asarray(values, float)
    drawn = np.random.default_rng(0).choice(data, (_RESAMPLES, len(data)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return Interval(float(np.median(data)), float(low), float(high))


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> Interval:
    """Of the ratios of pairs that were measured in turn."""
    return median_interval([first / second for first, second in zip(above, below, strict=True)])
