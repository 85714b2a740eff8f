"""Floats of 16 bits and less that NumPy has not: bfloat16, float8, float4. Their bits to float32 and back.

Each of their values is a float32, so reading bits is exact, and writing them rounds to the nearest value, ties
to the even code (FLOAT8E8M0: up), as ml_dtypes does from float32. A type whose codes number 256 or less is a table.

https://onnx.ai/onnx/technical/float8.html, https://onnx.ai/onnx/technical/float4.html,
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf (E8M0, E2M1)
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from onnx_serve.data_types import Array, DataType

__all__ = ["from_codes", "to_codes", "without_equal"]


@dataclass(frozen=True, slots=True)
class _Format:
    """How a code is read.

    Attributes:
        mantissa: Bits of the fraction.
        bias: Of the exponent.
        largest: The code of the largest finite value. With infinities, the next code is infinity.
        nan: The code of NaN, or None.
        infinity: Whether there are infinities.
        sign: The bit that negates, or 0 when there are only powers of two above 0.
        negative_zero: Whether ``sign`` alone is a zero.
    """

    mantissa: int
    bias: int
    largest: int
    nan: int | None
    infinity: bool = False
    sign: int = 0x80
    negative_zero: bool = True


_FORMATS = {
    DataType.FLOAT8E4M3FN: _Format(3, 7, 0x7E, 0x7F),
    DataType.FLOAT8E4M3FNUZ: _Format(3, 8, 0x7F, 0x80, negative_zero=False),
    DataType.FLOAT8E5M2: _Format(2, 15, 0x7B, 0x7E, infinity=True),
    DataType.FLOAT8E5M2FNUZ: _Format(2, 16, 0x7F, 0x80, negative_zero=False),
    DataType.FLOAT8E8M0: _Format(0, 127, 0xFE, 0xFF, sign=0),
    DataType.FLOAT4E2M1: _Format(1, 1, 0x7, None, sign=0x8),
}
_BFLOAT16_NAN = 0x7FC0
_BFLOAT16_EXPONENT = 0x7F80


@dataclass(frozen=True, slots=True)
class _Table:
    """A format as arrays.

    Attributes:
        values: The float32 of every code.
        bounds: For each code up to the largest, where the next one begins to be nearer; the last is where the
            type ends.
        format: The format.
    """

    values: npt.NDArray[np.float32]
    bounds: npt.NDArray[np.float32]
    format: _Format


@cache
def _table(dtype: DataType) -> _Table:
    form = _FORMATS[dtype]
    magnitudes = [_magnitude(code, form) for code in range(form.largest + 1)]
    # The last step goes on beyond the largest value.
    beyond = 2 * magnitudes[-1] - magnitudes[-2] if form.sign else 2 * magnitudes[-1]
    steps = zip(magnitudes, [*magnitudes[1:], beyond], strict=True)
    bounds = np.array([(low + high) / 2 for low, high in steps], np.float32)
    values = np.full(1 << dtype.bits, np.nan, np.float32)
    values[: len(magnitudes)] = magnitudes
    if form.infinity:
        values[form.largest + 1] = np.inf
    if form.sign:
        values[form.sign :] = -values[: form.sign]
        if not form.negative_zero:
            values[form.sign] = np.nan
    return _Table(values, bounds, form)


def _magnitude(code: int, form: _Format) -> float:
    if not form.sign:
        return 2.0 ** (code - form.bias)
    exponent, fraction = divmod(code, 1 << form.mantissa)
    if exponent:
        fraction += 1 << form.mantissa
    return float(fraction * 2.0 ** (max(exponent, 1) - form.bias - form.mantissa))


def from_codes(codes: Array, dtype: DataType) -> npt.NDArray[np.float32]:
    """The float32 values of these bits.

    Args:
        codes: uint16 for BFLOAT16, else uint8 below ``2 ** dtype.bits``; of any shape, which is kept.
        dtype: A float type that NumPy has not.
    """
    if dtype is DataType.BFLOAT16:
        wide: npt.NDArray[np.uint32] = codes.astype(np.uint32) << np.uint32(16)
        return wide.view(np.float32)
    values: npt.NDArray[np.float32] = _table(dtype).values[codes]
    return values


def to_codes(values: npt.NDArray[np.float32], dtype: DataType) -> Array:
    """The bits of the nearest values.

    Args:
        values: Of any shape, which is kept; none of those that ``without_equal`` marks.
        dtype: A float type that NumPy has not.

    Returns:
        uint16 for BFLOAT16, else uint8.
    """
    if dtype is DataType.BFLOAT16:
        return _to_bfloat16(values)
    table = _table(dtype)
    codes = _nearest(np.abs(values), table)
    form = table.format
    if form.sign:
        negative = np.signbit(values)
        codes[negative & (codes > 0) if not form.negative_zero else negative] |= form.sign
    if form.nan is not None:
        codes[np.isnan(values)] = form.nan
    return codes


def without_equal(values: npt.NDArray[np.float32], dtype: DataType) -> npt.NDArray[np.bool_]:
    """Where values have no neighbour in the type.

    That is beyond its largest value, an infinity or NaN that it has not, and for FLOAT8E8M0 what is not above 0.

    Args:
        values: Of any shape, which is kept.
        dtype: A float type that NumPy has not.
    """
    if dtype is DataType.BFLOAT16:
        exponents = _to_bfloat16(values) & np.uint16(_BFLOAT16_EXPONENT)
        return np.asarray(np.isfinite(values) & (exponents == _BFLOAT16_EXPONENT))
    table = _table(dtype)
    form = table.format
    last = table.bounds[-1]
    magnitudes = np.abs(values)
    # A value just between the largest and the next that there would be goes where other ties go.
    wrong = magnitudes >= last if form.largest % 2 or not form.sign else magnitudes > last
    if form.infinity:
        wrong &= np.isfinite(values)
    if form.nan is None:
        wrong |= np.isnan(values)
    if not form.sign:
        wrong |= values <= 0
    return np.asarray(wrong)


def _nearest(magnitudes: npt.NDArray[np.float32], table: _Table) -> npt.NDArray[np.uint8]:
    bounds = table.bounds
    codes = np.searchsorted(bounds, magnitudes)
    tie = bounds[np.minimum(codes, len(bounds) - 1)] == magnitudes
    up = tie & (codes % 2 == 1) if table.format.sign else tie
    return np.asarray(codes + up).astype(np.uint8)


def _to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Half of the last bit that stays is added, less one unit where that bit is even: ties go to even."""
    bits = np.ascontiguousarray(values).reshape(values.shape).view(np.uint32)
    codes = np.asarray(
        (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    )
    result: npt.NDArray[np.uint16] = codes.astype(np.uint16)
    result[np.isnan(values)] = _BFLOAT16_NAN
    return result
