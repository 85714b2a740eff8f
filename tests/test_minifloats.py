"""Bits and roundings are those of ml_dtypes, which onnx itself uses."""

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnx_serve.data_types import DataType
from onnx_serve.minifloats import from_codes, to_codes, without_equal

WITNESSES = {
    DataType.BFLOAT16: ml_dtypes.bfloat16,
    DataType.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    DataType.FLOAT8E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
    DataType.FLOAT8E5M2: ml_dtypes.float8_e5m2,
    DataType.FLOAT8E5M2FNUZ: ml_dtypes.float8_e5m2fnuz,
    DataType.FLOAT8E8M0: ml_dtypes.float8_e8m0fnu,
    DataType.FLOAT4E2M1: ml_dtypes.float4_e2m1fn,
}
ALL = pytest.mark.parametrize("dtype", WITNESSES, ids=lambda dtype: dtype.name)
Floats = npt.NDArray[np.float32]
# ml_dtypes takes the values that float32 holds without a leading 1 for larger ones than they are.
SMALLEST_E8M0 = np.finfo(np.float32).smallest_normal


def codes_of(dtype: DataType) -> npt.NDArray[np.uint8 | np.uint16]:
    return np.arange(2**dtype.bits, dtype=np.uint16 if dtype.bits == 16 else np.uint8)


def largest_of(dtype: DataType) -> np.float32:
    values = codes_of(dtype).view(WITNESSES[dtype]).astype(np.float32)
    return np.float32(values[np.isfinite(values)].max())


def assert_same(values: Floats, expected: Floats) -> None:
    """Equal to the bit, but for the bits of NaN."""
    np.testing.assert_array_equal(values, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(values)[numbers], np.signbit(expected)[numbers])


def check_rounding(values: Floats, dtype: DataType) -> None:
    kind = WITNESSES[dtype]
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(kind).astype(np.float32)
    refused = without_equal(values, dtype)
    kept = ~refused
    if dtype is DataType.FLOAT8E8M0:
        kept &= (values >= SMALLEST_E8M0) | np.isnan(values)
    assert_same(from_codes(to_codes(values[kept], dtype), dtype), expected[kept])
    # What is refused would have become another kind of number, or the largest one there is.
    largest = largest_of(dtype)
    other = ~np.isfinite(expected) | (np.abs(expected) == largest) | ~np.isfinite(values) | (values <= 0)
    assert other[refused].all()


@ALL
def test_every_code_is_the_value_that_it_is(dtype: DataType) -> None:
    codes = codes_of(dtype)

    assert_same(from_codes(codes, dtype), codes.view(WITNESSES[dtype]).astype(np.float32))


@ALL
def test_every_value_has_its_code(dtype: DataType) -> None:
    values = from_codes(codes_of(dtype), dtype)

    assert not without_equal(values, dtype).any()
    assert_same(from_codes(to_codes(values, dtype), dtype), values)


@ALL
def test_values_between_two_go_to_the_nearer_one(dtype: DataType) -> None:
    values = np.sort(from_codes(codes_of(dtype), dtype))
    values = values[np.isfinite(values)]
    middles = values[:-1] / 2 + values[1:] / 2
    up, down = np.float32(np.inf), np.float32(-np.inf)

    check_rounding(np.concatenate([middles, np.nextafter(middles, up), np.nextafter(middles, down)]), dtype)


@ALL
def test_what_lies_beyond_is_refused(dtype: DataType) -> None:
    largest = largest_of(dtype)
    special = np.array([largest, -largest, np.inf, -np.inf, np.nan, 0, -0.0, 1], np.float32)

    check_rounding(special, dtype)
    assert not without_equal(np.array([largest, 1], np.float32), dtype).any()
    if dtype not in {DataType.BFLOAT16, DataType.FLOAT8E8M0}:
        assert without_equal(np.array([1.25 * largest, -1.25 * largest], np.float32), dtype).all()


@ALL
@settings(max_examples=50)
@given(bits=hnp.arrays(np.uint32, st.integers(0, 50)))
def test_any_float_is_rounded_as_ml_dtypes_does(dtype: DataType, bits: npt.NDArray[np.uint32]) -> None:
    check_rounding(bits.view(np.float32), dtype)


@ALL
def test_shapes_are_kept(dtype: DataType) -> None:
    for shape in [(), (0, 3), (2, 1, 2)]:
        values = np.ones(shape, np.float32)
        assert to_codes(values, dtype).shape == shape
        assert from_codes(to_codes(values, dtype), dtype).shape == shape
        assert without_equal(values, dtype).shape == shape
