"""Bytes are those that the onnx package writes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import numpy_helper

import onnx_backend
from codec_laws import arrays_of
from onnx_serve.data_types import DataType
from onnx_serve.raw_data import from_raw, raw_size, to_raw

NUMERIC = [dtype for dtype in DataType if dtype is not DataType.STRING]
ALL = pytest.mark.parametrize("dtype", NUMERIC, ids=lambda dtype: dtype.name)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)


@ALL
@settings(max_examples=30)
@given(data=st.data())
def test_bytes_are_what_onnx_writes(dtype: DataType, data: st.DataObject) -> None:
    array = data.draw(arrays_of(dtype, data.draw(SHAPES)))
    kind = onnx_backend.FOREIGN[dtype.ort][0] if dtype.ort in onnx_backend.FOREIGN else dtype.numpy
    # Of NaN there are several codes; ours is one of them, and onnx keeps what it gets.
    array = np.where(np.isnan(array), np.zeros((), array.dtype) + 1, array) if dtype.is_float else array

    raw = to_raw(array, dtype)
    assert raw.tobytes() == numpy_helper.from_array(array.astype(kind)).raw_data
    assert len(raw) == raw_size(array.size, dtype)


@ALL
@settings(max_examples=30)
@given(data=st.data())
def test_bytes_give_the_array_back(dtype: DataType, data: st.DataObject) -> None:
    array = data.draw(arrays_of(dtype, data.draw(SHAPES)))

    back = from_raw(to_raw(array, dtype), dtype, array.shape)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    np.testing.assert_array_equal(back, array)


@ALL
def test_strided_arrays_are_written_in_their_order(dtype: DataType) -> None:
    array = np.arange(12).reshape(3, 4).astype(dtype.numpy) % 2
    array = array.astype(dtype.numpy) + (dtype is DataType.FLOAT8E8M0)

    assert to_raw(array.T, dtype).tobytes() == to_raw(np.ascontiguousarray(array.T), dtype).tobytes()


def test_types_that_numpy_has_share_memory() -> None:
    array = np.arange(6, dtype=np.float32)

    assert np.shares_memory(to_raw(array, DataType.FLOAT), array)
    assert np.shares_memory(from_raw(to_raw(array, DataType.FLOAT), DataType.FLOAT, (2, 3)), array)


def test_foreign_byte_order_is_turned() -> None:
    assert to_raw(np.array([1.5], ">f4"), DataType.FLOAT).tobytes() == np.array([1.5], "<f4").tobytes()
