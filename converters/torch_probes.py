"""What the original is asked, so that its graph can be judged: each free dimension at several sizes."""

from collections.abc import Iterator, Mapping

import numpy as np

from converters.parity import Probe
from converters.probes import SEED
from converters.torch_axes import Axes
from converters.torch_feeds import Axis, CannotRun, fresh, mix, resize, unlike_all
from converters.torch_program import Program
from onnx_serve.tensors import Tensors

__all__ = ["example_for", "make_probes"]

_ROWS = 9  # parity runs them at once, as 7 and 2, and one by one
_ALL_SIZES = (1, 2, 7)
_MAX_BOUND = 4096  # a larger one is a limit of memory rather than of the code


def example_for(feed: Tensors, axes: Axes) -> Tensors:
    """The feed to export with: each dimension 0 that is free at a size of its own, which is never 1.

    Exporters fix dimensions of size 1, and take dimensions of one size for the same
    (https://docs.pytorch.org/docs/stable/export.html, "0/1 specialization").
    """
    for symbol in dict.fromkeys(symbol for (_, axis), symbol in axes.names.items() if axis == 0):
        feed = axes.resized(feed, {symbol: unlike_all(feed)})
    return feed


def make_probes(program: Program, feed: Tensors, axes: Axes, bounds: Mapping[str, int]) -> Iterator[Probe]:
    """The sample, fresh rows in batches of 1, 2 and 7, and each other length that the original runs.

    Args:
        program: The original.
        feed: The sample.
        axes: The free dimensions.
        bounds: The largest sizes for which a captured program stands. Where the original goes on beyond,
            perhaps on another branch, the graph must answer as well.
    """
    yield Probe("sample", feed)
    generator = np.random.default_rng(SEED)
    for name, sizes in _sizes(axes, bounds):
        repeated = mix(resize(feed, sizes), feed)
        try:
            expected = program(repeated)
        except CannotRun:
            continue
        yield Probe(name, _valid(program, mix(fresh(repeated, generator), feed), expected) or repeated)


def _sizes(axes: Axes, bounds: Mapping[str, int]) -> Iterator[tuple[str, dict[Axis, int]]]:
    first = [axis for axis in axes.names if axis[1] == 0]
    if not first:
        yield "fresh values", {}
    for rows in ((_ROWS,) if axes.rows else _ALL_SIZES) if first else ():
        yield f"rows {rows}", dict.fromkeys(first, rows)
    for symbol, others in axes.sizes.items():
        beyond = [bounds[symbol] + 1] if bounds.get(symbol, _MAX_BOUND) < _MAX_BOUND else []
        for size in dict.fromkeys((*others, *beyond)):
            yield f"{symbol} {size}", dict.fromkeys(axes.of(symbol), size)
    for symbol, bound in bounds.items():
        if symbol not in axes.sizes and bound < _MAX_BOUND and axes.of(symbol):
            yield f"{symbol} {bound + 1}", dict.fromkeys(axes.of(symbol), bound + 1)


def _valid(program: Program, made: Tensors, expected: Tensors) -> Tensors | None:
    """Fresh values, unless the original fails on them or answers NaN where it does not to the sample."""
    try:
        answers = program(made)
    except CannotRun:
        return None
    for name, array in expected.items():
        if answers[name].shape != array.shape:
            return None
        if not np.isfinite(answers[name]).all() and np.isfinite(array).all():
            return None
    return made
