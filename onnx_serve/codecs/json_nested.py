"""Sequences, maps and optionals as JSON writes them.

A sequence is a list of its items, a map an object, an optional without value ``null``. A tensor among the items is
a nested list, whose shape is that of its lists, or ``{"shape": [...], "data": [...]}``, which also says how long
the lists are that no list holds. The keys of a map of integers are those integers in strings.
"""

import math
import re
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnx_serve.codecs.json_syntax import check_keys, describe
from onnx_serve.codecs.json_values import Field, tensor
from onnx_serve.errors import DecodeError, quote
from onnx_serve.tensors import DataType, Kind, ValueType

__all__ = ["check_shape", "read_value", "reshape"]

Array: TypeAlias = npt.NDArray[Any]

# NumPy's limit, less the dimension that counts records while values are read; and a bound that no product of
# sizes overflows it with.
_MAX_RANK = 63
_MAX_SIZE = 1 << 40
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")
_INT64 = range(-(1 << 63), 1 << 63)


def read_value(written: Any, value_type: ValueType, name: str) -> Any:
    """One input's value.

    Args:
        written: It, parsed.
        value_type: Of an input that is no tensor.
        name: The input's, for errors.

    Raises:
        DecodeError: It is none of the type; without its place in the body.
    """
    if written is None and value_type.optional:
        return None
    kind = value_type.kind
    if kind is Kind.TENSOR:
        return _tensor(written, value_type.dtype, name)
    if kind is Kind.MAP:
        return _map(written, value_type, name)
    if not isinstance(written, list):
        raise DecodeError(f'input "{name}": expected a list, {kind.value}, got {describe(written)}')
    if kind is Kind.MAPS:
        return [_map(item, value_type, name) for item in written]
    return [_tensor(item, value_type.dtype, name) for item in written]


def check_shape(shape: Any, name: str) -> tuple[int, ...]:
    """The sizes in a list that says an array's shape.

    Raises:
        DecodeError: It is no list of at most 63 sizes.
    """
    sizes = shape if isinstance(shape, list) and len(shape) <= _MAX_RANK else [None]
    if not all(type(size) is int and 0 <= size < _MAX_SIZE for size in sizes):
        shown = f"[{', '.join(map(describe, shape[:5]))}]" if isinstance(shape, list) else describe(shape)
        raise DecodeError(f"input {quote(name)}: expected a shape like [2, 4], got {shown}")
    return tuple(sizes)


def reshape(data: Any, field: Field) -> Array:
    """Flat or nested values as an array of the field's shape, whose sizes are all known.

    Raises:
        DecodeError: They are not as many, or no values of the type.
    """
    shape = tuple(size for size in field.shape if isinstance(size, int))
    if shape and isinstance(data, list) and data and isinstance(data[0], list):
        return tensor(data, field)
    count = math.prod(shape)
    if isinstance(data, list) and len(data) != count:
        raise DecodeError(
            f'input "{field.name}": expected {count} values for the shape {list(shape)}, got {len(data)} values'
        )
    flat = tensor(data, Field(field.name, field.dtype, (count,), count))
    try:
        return flat.reshape(shape)
    except ValueError:
        raise DecodeError(f"input {quote(field.name)}: the shape {field} is too large") from None


def _tensor(written: Any, dtype: DataType, name: str) -> Array:
    if isinstance(written, dict):
        check_keys(written, {"shape", "data"}, "in an item of a sequence")
        if len(written) != 2:  # noqa: PLR2004  both of them
            raise DecodeError(
                f'input "{name}": expected an object with "shape" and "data", got {describe(written)}'
            )
        return reshape(written["data"], Field(name, dtype, check_shape(written["shape"], name), None))
    sizes: list[int] = []
    level = written
    while isinstance(level, list) and len(sizes) < _MAX_RANK:
        sizes.append(len(level))
        level = level[0] if level else None
    return tensor(written, Field(name, dtype, tuple(sizes), None))


def _map(written: Any, value_type: ValueType, name: str) -> dict[Any, Any]:
    if not isinstance(written, dict):
        raise DecodeError(f'input "{name}": expected an object, a map, got {describe(written)}')
    values = tensor(list(written.values()), Field(name, value_type.dtype, (len(written),), None))
    keys: list[Any] = list(written)
    if value_type.key is DataType.INT64:
        keys = [_integer(key, name) for key in keys]
        if len(set(keys)) != len(keys):
            raise DecodeError(f'input "{name}": expected each key once')
    return dict(zip(keys, values.tolist() if values.dtype == np.dtype(object) else values, strict=True))


def _integer(key: str, name: str) -> int:
    number = int(key) if _INTEGER.fullmatch(key) else None
    if number is None or number not in _INT64:
        raise DecodeError(f'input "{name}": expected integers as keys, got {quote(key)}')
    return number
