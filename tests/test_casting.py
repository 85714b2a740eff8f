"""Elements of one type as another: garbage bits are values as any others."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnx_serve.casting import cast_elements
from onnx_serve.data_types import DataType
from onnx_serve.errors import MismatchError

# By float type: the integers whose bits are its values, and a signalling NaN, which processors report on each use:
# IEEE 754-2019, 6.2.
FLOATS: dict[str, tuple[str, int]] = {
    "f2": ("u2", 0x7C01),
    "f4": ("u4", 0x7F80_0001),
    "f8": ("u8", 0x7FF0_0000_0000_0001),
}
NUMBERS = [dtype for dtype in DataType if dtype is not DataType.STRING]
INTEGERS = [dtype for dtype in NUMBERS if not dtype.is_float]


def of_bits(kind: str, bits: Any) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.array(bits, FLOATS[kind][0]).view(kind)
    return array


@given(dtype=st.sampled_from(NUMBERS), kind=st.sampled_from(sorted(FLOATS)), data=st.data())
@settings(max_examples=400, deadline=None)
def test_any_bits_are_cast_or_refused_without_a_warning(
    dtype: DataType, kind: str, data: st.DataObject
) -> None:
    """Warnings are errors here. What is cast has the value it had, but for a float's rounding."""
    word, signalling = FLOATS[kind]
    bits = data.draw(hnp.arrays(word, st.integers(1, 20), elements=st.integers(0, np.iinfo(word).max)))
    if data.draw(st.booleans()):
        bits[data.draw(st.integers(0, len(bits) - 1))] = signalling
    array = bits.view(kind)
    try:
        result = cast_elements(array, dtype, "x")
    except MismatchError as ex:
        assert str(ex).startswith(f'input "x": expected {dtype.name}, got ')  # noqa: PT017 - refusing is one of two right ways
        return
    if dtype is DataType.BOOL or not dtype.is_float:
        np.testing.assert_array_equal(result.astype(object), array.astype(object))
    elif dtype.is_native:
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(result, array.astype(dtype.numpy))


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("value", ["signalling nan", np.nan, np.inf, -np.inf, 0.5], ids=str)
def test_what_is_no_integer_is_refused_with_its_place(dtype: DataType, kind: str, value: float | str) -> None:
    array = np.zeros((2, 3), kind)
    array[1, 2] = of_bits(kind, FLOATS[kind][1]) if isinstance(value, str) else value
    with pytest.raises(MismatchError, match=rf'^input "x": expected {dtype.name}, got \S+ at \[1, 2\]$'):
        cast_elements(array, dtype, "x")


@pytest.mark.parametrize(("kind", "dtype"), [("f8", DataType.FLOAT), ("f4", DataType.DOUBLE), ("f4", DataType.FLOAT16)],
                         ids=lambda value: str(getattr(value, "name", value)))  # fmt: skip
def test_a_signalling_nan_stays_a_nan(kind: str, dtype: DataType) -> None:
    assert np.isnan(cast_elements(of_bits(kind, [FLOATS[kind][1]]), dtype, "x")).all()
