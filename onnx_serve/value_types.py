"""The types of values that are no plain tensors: sequences, maps and optionals, as onnxruntime spells them.

What carries them: a sequence is a list, a map a dictionary, an optional without value None, and with one just
that value. https://onnx.ai/onnx/repo-docs/IR.html#standard-data-types
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

import numpy as np

from onnx_serve.casting import cast_elements
from onnx_serve.data_types import DataType
from onnx_serve.errors import MismatchError, quote

__all__ = ["Kind", "ValueType", "conform_value", "parse_type"]

_OPTIONAL = re.compile(r"optional\((.*)\)")
_SEQUENCE = re.compile(r"seq\((.*)\)")
_MAP = re.compile(r"map\((\w+),tensor\((\w+)\)\)")
_TENSOR = re.compile(r"tensor\((\w+)\)")


class Kind(Enum):
    """What a value is, but for being optional."""

    TENSOR = "a tensor"
    MAP = "a map"
    TENSORS = "a sequence of tensors"
    MAPS = "a sequence of maps"

    @property
    def is_sequence(self) -> bool:
        """Whether a list carries it."""
        return self in {Kind.TENSORS, Kind.MAPS}

    @property
    def has_maps(self) -> bool:
        """Whether it is a map, or a sequence of maps."""
        return self in {Kind.MAP, Kind.MAPS}


@dataclass(frozen=True, slots=True)
class ValueType:
    """A type, taken apart.

    Attributes:
        kind: What the value is.
        dtype: Of the (innermost) tensor's elements, or of a map's values.
        key: Of a map's keys: INT64 or STRING; else None.
        optional: Whether there may be no value.
    """

    kind: Kind
    dtype: DataType
    key: DataType | None = None
    optional: bool = False


@cache
def parse_type(onnx_type: str) -> ValueType | None:
    """``optional(seq(tensor(float)))`` taken apart, or None for types that onnx-serve does not carry."""
    optional = _OPTIONAL.fullmatch(onnx_type)
    inner = optional[1] if optional else onnx_type
    sequence = _SEQUENCE.fullmatch(inner)
    item = sequence[1] if sequence else inner
    if mapping := _MAP.fullmatch(item):
        key, dtype = DataType.of_ort(mapping[1]), DataType.of_ort(mapping[2])
        if dtype is None or key not in {DataType.INT64, DataType.STRING}:
            return None
        return ValueType(Kind.MAPS if sequence else Kind.MAP, dtype, key, bool(optional))
    tensor = _TENSOR.fullmatch(item)
    dtype = DataType.of_ort(tensor[1]) if tensor else None
    if dtype is None:
        return None
    return ValueType(Kind.TENSORS if sequence else Kind.TENSOR, dtype, None, bool(optional))


def conform_value(value: Any, value_type: ValueType, name: str) -> Any:
    """A sequence, map or optional with all elements in the type's own, or an error that says what does not fit.

    Args:
        value: What a codec decoded: lists, dictionaries, arrays of any NumPy type, None.
        value_type: The input's.
        name: The input's, for errors.

    Raises:
        MismatchError: It is another kind of value, or an element has no equal in the type.
    """
    if value is None and value_type.optional:
        return None
    if value_type.kind is Kind.TENSOR:
        return _conform_tensor(value, value_type, name)
    if value_type.kind is Kind.MAP:
        return _conform_map(value, value_type, name)
    if not isinstance(value, list):
        raise _mismatch(value_type, value, name)
    item: Callable[[Any, ValueType, str], Any] = (
        _conform_tensor if value_type.kind is Kind.TENSORS else _conform_map
    )
    return [item(entry, value_type, name) for entry in value]


def _conform_tensor(value: Any, value_type: ValueType, name: str) -> Any:
    if not isinstance(value, np.ndarray):
        raise _mismatch(value_type, value, name)
    return cast_elements(value, value_type.dtype, name)


def _conform_map(value: Any, value_type: ValueType, name: str) -> Any:
    if not isinstance(value, Mapping):
        raise _mismatch(value_type, value, name)
    wanted = int if value_type.key is DataType.INT64 else str
    for key in value:
        if type(key) is not wanted:
            raise MismatchError(f'input "{name}": expected keys of type {wanted.__name__}, got {quote(key)}')
    if value_type.dtype is DataType.STRING:
        cells = np.empty(len(value), object)
        cells[:] = list(value.values())
    else:
        cells = np.array(list(value.values())) if value else np.empty(0, value_type.dtype.numpy)
    try:
        values = cast_elements(cells, value_type.dtype, name)
    except MismatchError:
        raise MismatchError(
            f'input "{name}": expected a map to {value_type.dtype.name}, got a value that is none'
        ) from None
    return dict(zip(value, values.tolist(), strict=True))


def _mismatch(value_type: ValueType, value: Any, name: str) -> MismatchError:
    article = "nothing" if value is None else f"a {type(value).__name__}"
    return MismatchError(f'input "{name}": expected {value_type.kind.value}, got {article}')
