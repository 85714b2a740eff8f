"""Parsed JSON values as arrays: what is accepted for an input, and what is wrong with the rest.

``json_numbers`` does the same for a part of it, numbers only, without making Python values of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from onnx_serve.codecs.json_syntax import describe, is_text
from onnx_serve.errors import DecodeError
from onnx_serve.tensors import DataType, Dimension, Kind, ValueType, format_shape

__all__ = ["Field", "Irregular", "column", "gather", "only_index", "tensor"]

Array: TypeAlias = npt.NDArray[Any]

# A float from here on may be a rounded neighbour of the whole number that was written.
_EXACT_WHOLE = 1 << 53
_NON_FINITE = {None: math.nan, "NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Irregular(Exception):
    """The values form no array of the wanted type and shape; who needs the reason asks ``tensor`` or ``column``."""


@dataclass(frozen=True, slots=True)
class Field:
    """One input, as a record sees it.

    Attributes:
        name: The input's.
        dtype: Its elements' type.
        shape: The shape of one record's value.
        width: Values in it, or None when a dimension is free or 0.
        value_type: Of an input that is no tensor; ``json_nested`` reads it. Else None.
    """

    name: str
    dtype: DataType
    shape: tuple[Dimension, ...]
    width: int | None
    value_type: ValueType | None = None

    def __str__(self) -> str:
        return f"{self.dtype.name}{format_shape(self.shape)}"

    @property
    def is_map(self) -> bool:
        """Whether an object is a value of the input."""
        return self.value_type is not None and self.value_type.kind is Kind.MAP

    def nest(self, flat: list[Any]) -> Any:
        """``width`` values as a record writes them: ``[1, 2, 3, 4]`` for ``[2, 2]`` is ``[[1, 2], [3, 4]]``."""
        if not self.shape:
            return flat[0]
        for size in cast("tuple[int, ...]", self.shape[:0:-1]):
            flat = [flat[start : start + size] for start in range(0, len(flat), size)]
        return flat

    def value(self, written: Any) -> Any:
        """A record's value, where a bare scalar also stands for a list of one value."""
        if self.width == 1 and self.shape and not isinstance(written, list | dict):
            return self.nest([written])
        return written


def column(values: Any, field: Field) -> Array:
    """One input's values of all records as one array ``[N, *field.shape]``.

    Raises:
        DecodeError: A record's value is not what the input takes, or their shapes differ.
    """
    if not isinstance(values, list):
        raise DecodeError(
            f'input "{field.name}": expected a list of records of {field}, got {describe(values)}'
        )
    if field.width == 1:
        values = [field.value(value) for value in values]
    try:
        return gather(values, field.shape, field.dtype)
    except Irregular:
        # Free sizes that the first record sets stay for all that follow.
        sizes = list(field.shape)
        faults = ((number, _fault(value, field, sizes, ())) for number, value in enumerate(values, 1))
        number, fault = next((number, fault) for number, fault in faults if fault)
        raise DecodeError(_expected(field, fault), record=number) from None


def tensor(value: Any, field: Field) -> Array:
    """One value as an array of the field's type and shape.

    Raises:
        DecodeError: It is none; without its place.
    """
    try:
        return only_index(gather([value], field.shape, field.dtype))
    except Irregular:
        fault = _fault(value, field, list(field.shape), ())
        raise DecodeError(_expected(field, fault)) from None


def only_index(array: Array) -> Array:
    """The only index of dimension 0; an array where ``array[0]`` would be a scalar."""
    return array.reshape(array.shape[1:])


def gather(values: Sequence[Any], shape: Sequence[Dimension], dtype: DataType) -> Array:
    """Nested lists as one array ``[len(values), *shape]``.

    Args:
        values: One nested list, or scalar, for each index of dimension 0.
        shape: Sizes inside; a symbol or None stands for any size, the same everywhere.
        dtype: The type of the elements.

    Raises:
        Irregular: Lists have other lengths or depths, or an element has no equal in the type.
    """
    dimensions = [len(values)]
    level = values
    for size in shape:
        if level and set(map(type, level)) != {list}:
            raise Irregular
        lengths = set(map(len, level)) or {size if isinstance(size, int) else 0}
        if len(lengths) > 1 or (isinstance(size, int) and lengths != {size}):
            raise Irregular
        dimensions += lengths
        level = list(chain.from_iterable(level))
    return _elements(level, dtype).reshape(dimensions)


def _elements(flat: Sequence[Any], dtype: DataType) -> Array:
    """JSON scalars as an array ``[len(flat)]`` of the type, or Irregular when one has no equal in it."""
    types = set(map(type, flat))
    if dtype is DataType.STRING:
        return _strings(flat, types)
    if dtype is DataType.BOOL:
        if not types <= {bool, int, float} or not set(flat) <= {0, 1}:
            raise Irregular
        return np.array(flat, np.bool_)
    if dtype.is_float:
        return _floats(flat, types, dtype)
    if types <= {int, float}:
        try:
            return np.array(list(map(_whole, flat)) if float in types else flat, dtype.numpy)
        except OverflowError:
            raise Irregular from None
    raise Irregular


def _strings(flat: Sequence[Any], types: set[type]) -> Array:
    if not types <= {str} or not is_text("".join(flat)):
        raise Irregular
    array = np.empty(len(flat), object)
    array[:] = flat
    return array


def _floats(flat: Sequence[Any], types: set[type], dtype: DataType) -> Array:
    if not types <= {int, float}:
        if not types <= {int, float, str, type(None)}:
            raise Irregular
        try:
            flat = [_NON_FINITE[item] if item is None or type(item) is str else item for item in flat]
        except KeyError:
            raise Irregular from None
    wide = np.array(flat, np.float64)
    if dtype is DataType.DOUBLE:
        return wide
    try:
        with np.errstate(over="raise"):
            return wide.astype(dtype.numpy)
    except FloatingPointError:
        raise Irregular from None


def _whole(number: float) -> int:
    """A whole number that was written as one, or as ``1.0``."""
    if isinstance(number, int):
        return number
    if not (abs(number) < _EXACT_WHOLE and number.is_integer()):
        raise Irregular
    return int(number)


def _expected(field: Field, fault: str) -> str:
    return f'input "{field.name}": expected {field}, got {fault}'


def _fault(value: Any, field: Field, sizes: list[Dimension], index: tuple[int, ...]) -> str:
    """What is wrong with the first wrong part of a value, and where in it; ``""`` when nothing is.

    A free size in ``sizes`` is set by the first list that it is met in.
    """
    place = f" at {list(index)}" if index else ""
    axis = len(index)
    if axis == len(sizes):
        try:
            _elements([value], field.dtype)
        except Irregular:
            return f"{describe(value)}{place}"
        return ""
    if not isinstance(value, list):
        return f"{describe(value)}{place}"
    size = sizes[axis]
    if not isinstance(size, int):
        sizes[axis] = size = len(value)
    if len(value) != size:
        due = "" if field.shape == (size,) else f" where {size} are due"
        return f"{len(value)} values{place}{due}"
    return next(filter(None, (_fault(v, field, sizes, (*index, i)) for i, v in enumerate(value))), "")
