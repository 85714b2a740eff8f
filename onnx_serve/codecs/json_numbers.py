"""Numbers of a JSON text as arrays, straight from simdjson's buffers.

This is a fast way to a part of what ``json_values`` accepts, for texts that are proven to be plain.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import simdjson

from onnx_serve.codecs.json_values import Irregular
from onnx_serve.errors import MismatchError
from onnx_serve.tensors import DataType, Dimension, TensorSpec
from onnx_serve.tensors import cast as cast_elements

__all__ = ["numbers", "regular"]

Array: TypeAlias = npt.NDArray[Any]

_WIDE = {"d": np.float64, "i": np.int64, "u": np.uint64}


def regular(nested: Any, shape: Sequence[Dimension], dtype: DataType) -> tuple[Array, int]:
    """A simdjson array as a NumPy array ``[N, *shape]``, and how many lists it must consist of.

    simdjson flattens whatever it is given. That nothing was flattened wrongly is proven when the lengths of
    all lists up to that depth are equal (checked here), and the text has no other list: the caller compares
    the second result with the number of ``[`` in it.

    Args:
        nested: A ``simdjson.Array``; an empty one has no shape to prove.
        shape: Sizes inside; a symbol or None stands for any size.
        dtype: A numeric type other than BOOL.

    Raises:
        Irregular, TypeError, ValueError: It is something else; the exact way decides what that means.
    """
    if not isinstance(nested, simdjson.Array) or not len(nested):
        raise Irregular
    dimensions = [len(nested)]
    lists = 1
    for axis, size in enumerate(shape):
        # Walked anew for each axis: the lists of millions of records are never there at once.
        level: Any = nested
        for _ in range(axis):
            level = chain.from_iterable(level)
        lengths = Counter(map(len, level))
        if len(lengths) != 1 or (isinstance(size, int) and size not in lengths):
            raise Irregular
        lists += lengths.total()
        dimensions += lengths
    flat = numbers(nested, dtype)
    if flat.size != math.prod(dimensions):
        raise Irregular
    return flat.reshape(dimensions), lists


def numbers(flat: Any, dtype: DataType) -> Array:
    """The numbers of a simdjson array in a numeric type; raises as ``regular`` does."""
    letter: Literal["d", "i", "u"] = "d" if dtype.is_float else "u" if dtype is DataType.UINT64 else "i"
    wide = np.frombuffer(flat.as_buffer(of_type=letter), _WIDE[letter])
    return _to_type(wide, dtype)


def _to_type(wide: Array, dtype: DataType) -> Array:
    """An array in another type, or Irregular where a value has no equal in it."""
    try:
        return cast_elements(wide, TensorSpec("", f"tensor({dtype.ort})", ()))
    except MismatchError:
        raise Irregular from None
