"""Inputs made up for a model nobody has called yet: for the first run, and to measure runs.

A feed is "safe" when it is unlikely to make a graph fail or grow: floats are fresh and distinct (zeros
leave NonZero empty, equal rows stay in cache), integers are 1 or 0 (valid for every embedding table, never
a huge Range or Tile), strings are short ASCII words, and a free dimension gets a size that its name or
place suggests. One guess may not fit, so ``guesses`` gives several, likeliest first.
"""

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from onnx_serve.casting import cast_elements
from onnx_serve.tensors import (
    Array,
    DataType,
    Dimension,
    Feed,
    Kind,
    RowAxis,
    Signature,
    TensorSpec,
)

__all__ = ["guesses", "resized", "tiled"]

_LENGTH = re.compile(r"seq|len|time|token|step|frame", re.IGNORECASE)
# Height and width of images and length of sequences, tried in this order: sizes that published vision and
# text models are exported for, all but the last image sizes multiples of 32 (strides of deep networks).
_SIZES = ((224, 128), (320, 128), (64, 64), (48, 512), (32, 16))
_MAX_FEED_BYTES = 64 << 20
_WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "item", "value", "alpha")


def guesses(signature: Signature, rows: int, *, seed: int = 0) -> Iterator[Feed]:
    """Feeds of ``rows`` rows each, from the likeliest guess to the least.

    Args:
        signature: The model's. Without rows, ``rows`` is the size of an unnamed free dimension 0.
        rows: Rows of the feed; with a fixed number of rows a run, that number is used instead.
        seed: Equal seeds give equal feeds, so that runs can be compared.

    Yields:
        Values by input name, 64 MiB at most; nothing when every guess is larger.
    """
    rows = signature.fixed_rows if signature.row_axis is RowAxis.FIXED else rows
    integers = (1, 0) if any(spec.dtype.is_integer for spec in signature.inputs) else (1,)
    tried: set[tuple[object, ...]] = set()
    for (pixels, length), integer in itertools.product(_SIZES, integers):
        symbols: dict[str, int] = {}
        shapes = [
            (rows, length) if spec.any_shape else _shape(spec, rows, pixels, length, symbols)
            for spec in signature.inputs
        ]
        guess = (*shapes, integer)
        if guess in tried or _size_bytes(signature, shapes) > _MAX_FEED_BYTES:
            continue
        tried.add(guess)
        generator = np.random.default_rng(seed)
        yield {
            spec.name: _value(spec, shape, integer, generator)
            for spec, shape in zip(signature.inputs, shapes, strict=True)
        }


def resized(feed: Feed, signature: Signature, rows: int, *, seed: int = 0) -> Feed:
    """A made-up feed like this one with another number of rows, all of them fresh.

    Args:
        feed: One of ``guesses``, for a model with rows.
        signature: The model's.
        rows: At least 1.
        seed: Equal seeds give equal feeds.
    """
    generator = np.random.default_rng(seed)
    return {
        spec.name: _values(
            spec.dtype,
            (rows, *feed[spec.name].shape[1:]),
            int(feed[spec.name].flat[0]) if spec.dtype.is_integer and feed[spec.name].size else 1,
            generator,
        )
        for spec in signature.inputs
    }


def tiled(feed: Feed, signature: Signature, rows: int) -> Feed:
    """A real feed with so many rows: its own over and over, in order.

    Args:
        feed: Of one row or more, for a model with rows.
        signature: The model's; inputs with a default have no rows and stay.
        rows: At least 1.
    """
    whole = {spec.name for spec in signature.defaults}
    return {
        name: array if name in whole else np.take(array, np.arange(rows) % len(array), axis=0)
        for name, array in feed.items()
    }


def _size_bytes(signature: Signature, shapes: list[tuple[int, ...]]) -> int:
    return sum(
        math.prod(shape) * spec.dtype.numpy.itemsize
        for spec, shape in zip(signature.inputs, shapes, strict=True)
    )


def _shape(spec: TensorSpec, rows: int, pixels: int, length: int, symbols: dict[str, int]) -> tuple[int, ...]:
    """The spec's shape with its free dimensions chosen; equal symbols get equal sizes."""
    shape = []
    for axis, declared in enumerate(spec.shape):
        size = (
            declared
            if isinstance(declared, int)
            else _free_size(len(spec.shape), axis, declared, rows, (pixels, length))
        )
        if isinstance(declared, str):
            size = symbols.setdefault(declared, size)
        shape.append(size)
    return tuple(shape)


def _free_size(rank: int, axis: int, name: Dimension, rows: int, sizes: tuple[int, int]) -> int:
    pixels, length = sizes
    if axis == 0:
        return rows
    if rank == 4 and not (isinstance(name, str) and _LENGTH.search(name)):  # noqa: PLR2004  N, C, H, W
        return 3 if axis == 1 else pixels
    return length


def _value(spec: TensorSpec, shape: tuple[int, ...], integer: int, generator: np.random.Generator) -> Any:
    kind = spec.value_type.kind
    if kind is Kind.TENSOR:
        return _values(spec.dtype, shape, integer, generator)
    if kind is Kind.TENSORS:
        # Their shapes are not declared; vectors of one length can be stacked, joined and added.
        return [_values(spec.dtype, (2,), integer, generator) for _ in range(2)]
    keys = _WORDS[:2] if spec.value_type.key is DataType.STRING else [0, 1]
    values = _values(spec.dtype, (2,), integer, generator).tolist()
    entry = dict(zip(keys, values, strict=True))
    return entry if kind is Kind.MAP else [entry]


def _values(dtype: DataType, shape: tuple[int, ...], integer: int, generator: np.random.Generator) -> Array:
    if dtype is DataType.STRING:
        texts = map(" ".join, generator.choice(_WORDS, (math.prod(shape), 6)).tolist())
        return np.array([*texts, ""], object)[:-1].reshape(shape)
    if dtype is DataType.BOOL:
        return np.ones(shape, np.bool_)
    if dtype.is_float and not dtype.is_native:
        # Above 0, which FLOAT8E8M0 has not.
        return cast_elements(1 - generator.random(shape, np.float32), dtype, "")
    if dtype.is_float:
        return generator.random(shape, np.float32).astype(dtype.numpy)
    return np.full(shape, integer, dtype.numpy)
