"""Feeds made of a sample: other numbers of rows, other lengths, other values, all in the sample's own range.

A module says nothing of the values it takes: an index must be inside its table, a logarithm needs
positive numbers. What the sample holds is known to fit, so everything made here is made of it.
"""

import itertools
from collections.abc import Mapping

import numpy as np

from converters.errors import ConversionError
from onnx_serve.errors import quote
from onnx_serve.tensors import Array, Tensors

__all__ = ["Axis", "CannotRun", "fresh", "mix", "quoted_shapes", "resize", "unlike_all"]

# An input's name and the number of one of its dimensions.
Axis = tuple[str, int]


class CannotRun(ConversionError):
    """The original itself fails on a feed."""


def resize(feed: Tensors, sizes: Mapping[Axis, int]) -> Tensors:
    """The feed with some dimensions cut, or lengthened by repeating it from its start."""
    resized = dict(feed)
    for (name, axis), size in sizes.items():
        resized[name] = np.take(resized[name], np.arange(size), axis=axis, mode="wrap")
    return resized


def fresh(feed: Tensors, generator: np.random.Generator) -> Tensors:
    """Other values of the same types, shapes and ranges.

    Floats are uniform between each input's smallest and largest finite value; integers and booleans are
    drawn from those that occur.
    """
    return {name: _fresh(array, generator) for name, array in feed.items()}


def _fresh(array: Array, generator: np.random.Generator) -> Array:
    if array.dtype.kind != "f":
        return generator.choice(array.ravel(), array.shape) if array.size else array
    finite = array[np.isfinite(array)].astype(np.float64)
    if not finite.size:
        return array
    low, high = float(finite.min()), float(finite.max())
    if low == high:  # a sample of zeros or ones says nothing of the range
        low, high = low - 1, high + 1
    drawn = generator.uniform(low, high, array.shape)
    # What is not finite stays at its place: an attention mask of 0 and -inf keeps its pattern.
    return np.where(np.isfinite(array), drawn, array).astype(array.dtype)


def mix(feed: Tensors, sample: Tensors) -> Tensors:
    """The feed without rows of one value alone, in matrices of integers or booleans that have none in the sample.

    A mask that leaves nothing of a row is what no caller sends, and what attention answers at will.
    """
    return {name: _mixed(array, sample[name]) for name, array in feed.items()}


def _mixed(array: Array, sample: Array) -> Array:
    if array.dtype.kind not in "iub" or array.ndim != 2 or not array.size:  # noqa: PLR2004  [N, length]
        return array
    known = sample[(sample == sample[:, :1]).all(axis=1), 0]
    single = (array == array[:, :1]).all(axis=1) & ~np.isin(array[:, 0], known)
    mixed = array.copy()
    for row in np.flatnonzero(single):
        mixed[row, 0] = sample[sample != array[row, 0]].flat[0]
    return mixed


def unlike_all(feed: Tensors) -> int:
    """A small odd number, 3 or more, that is no size of any dimension in the feed."""
    taken = {size for array in feed.values() for size in array.shape}
    return next(size for size in itertools.count(3, 2) if size not in taken)


def quoted_shapes(feed: Tensors) -> str:
    """``"x" float32[3, 4], "y" int64[3]``, for messages."""
    shown = [f"{quote(name)} {array.dtype}{list(array.shape)}" for name, array in list(feed.items())[:6]]
    return ", ".join(shown) + (", ..." if len(feed) > len(shown) else "")
