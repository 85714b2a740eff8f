"""Elements from one type into another, if no value changes by more than a float's rounding."""

from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_serve import minifloats
from onnx_serve.data_types import Array, DataType
from onnx_serve.errors import MismatchError, quote

__all__ = ["cast_elements"]


def cast_elements(array: Array, dtype: DataType, name: str) -> Array:
    """The array in another element type; itself when it has that type already.

    Integers are exact. Floats are rounded to the nearest value, never to infinity; the types below 32 bits that
    NumPy has not are rounded from float32, as onnxruntime does.

    Args:
        array: Of any NumPy type.
        dtype: The type wanted.
        name: The input's, for errors.

    Raises:
        MismatchError: A value has no equal in that type; the message names the first one and its index.
    """
    target = dtype.numpy
    if array.dtype == target and target.kind != "O" and dtype.is_native:
        return array
    if DataType.of_array(array) is None:
        raise MismatchError(f'input "{name}": expected {dtype.name}, got elements of type {array.dtype}')
    if dtype is DataType.STRING:
        return _to_string(array, name)
    if array.dtype.kind in "OUS":
        raise _wrong_value(name, dtype, array, np.ones(array.shape, np.bool_))
    if dtype.is_float:
        return _to_float(array, dtype, name)
    if dtype is DataType.BOOL:
        wrong = (array != 0) & (array != 1)
    elif array.dtype.kind == "b" or (dtype.is_native and np.can_cast(array.dtype, target)):
        return array.astype(target)
    else:
        wrong = _out_of_range(array, dtype)
    if wrong.any():
        raise _wrong_value(name, dtype, array, wrong)
    return array.astype(target, copy=False)


def _to_float(array: Array, dtype: DataType, name: str) -> Array:
    target = dtype.numpy
    try:
        # Raising is cheaper than looking for new infinities afterwards. A signalling NaN stays a NaN.
        with np.errstate(over="raise", invalid="ignore"):
            wide = array.astype(target, copy=False)
    except FloatingPointError:
        with np.errstate(over="ignore", invalid="ignore"):
            wrong = np.isinf(array.astype(target)) & np.isfinite(array)
        raise _wrong_value(name, dtype, array, wrong) from None
    if dtype.is_native:
        return wide
    wrong = minifloats.without_equal(wide, dtype)
    if wrong.any():
        raise _wrong_value(name, dtype, array, wrong)
    return minifloats.from_codes(minifloats.to_codes(wide, dtype), dtype)


def _to_string(array: Array, name: str) -> Array:
    if array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype.kind == "S":
        try:
            # Not by numpy.char.decode, which makes an array of four bytes a character first.
            texts = [item.decode() for item in array.ravel().tolist()]
        except UnicodeDecodeError:
            raise MismatchError(f'input "{name}": expected STRING, got bytes that are no UTF-8') from None
        return np.array(texts, object).reshape(array.shape)
    flat = array.ravel()
    if array.dtype.kind != "O" or not all(type(item) is str for item in flat):
        wrong = np.array([type(item) is not str for item in flat], np.bool_).reshape(array.shape)
        raise _wrong_value(name, DataType.STRING, array, wrong)
    return array


def _out_of_range(array: Array, dtype: DataType) -> npt.NDArray[np.bool_]:
    """Where values are fractions, not finite, or beyond the integer type."""
    least, greatest = dtype.limits
    if array.dtype.kind in "iu":
        # Compared as Python integers, so that int64 against uint64 never goes through float64.
        wrong = np.zeros(array.shape, np.bool_)
        given = np.iinfo(array.dtype)
        if least > given.min:
            wrong |= array < least
        if greatest < given.max:
            wrong |= array > greatest
        return wrong
    # A signalling NaN is as wrong as any, and no cause for a warning.
    with np.errstate(invalid="ignore"):
        wide = array.astype(np.float64)
        # float(greatest) may round up to the first value that no longer fits, hence "not below greatest + 1".
        in_range = (wide >= float(least)) & (wide < float(greatest + 1))
        result: npt.NDArray[np.bool_] = ~(in_range & (wide == np.floor(wide)))
    return result


def _wrong_value(name: str, dtype: DataType, array: Array, wrong: npt.NDArray[np.bool_]) -> MismatchError:
    index = np.unravel_index(int(np.argmax(wrong)), array.shape) if array.size else ()
    value: Any = array[index] if array.size else "nothing"
    shown = quote(value) if isinstance(value, str | bytes) else value
    place = f" at {[int(i) for i in index]}" if index else ""
    return MismatchError(f'input "{name}": expected {dtype.name}, got {shown}{place}')
