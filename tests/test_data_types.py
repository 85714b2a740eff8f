import numpy as np
import onnx
import pytest

from onnx_serve.data_types import DataType

BY_NAME = pytest.mark.parametrize("dtype", DataType, ids=lambda dtype: dtype.name)


@BY_NAME
def test_names_lead_back_to_the_type(dtype: DataType) -> None:
    assert DataType.of_ort(dtype.ort) is dtype
    assert DataType.of_oip(dtype.oip) is dtype
    assert dtype.ort == dtype.name.lower()


@BY_NAME
def test_names_and_numbers_are_onnxs(dtype: DataType) -> None:
    assert getattr(onnx.TensorProto, dtype.name) == dtype.onnx


def test_only_types_that_onnxruntime_has_not_are_left_out() -> None:
    names = set(onnx.TensorProto.DataType.keys()) - {"UNDEFINED"}
    left_out = {"COMPLEX64", "COMPLEX128", "FLOAT6E2M3", "FLOAT6E3M2"}

    assert names - {dtype.name for dtype in DataType} <= left_out


@BY_NAME
def test_arrays_are_of_the_types_that_numpy_has(dtype: DataType) -> None:
    found = DataType.of_array(np.empty(0, dtype.numpy))

    assert found is not None
    assert found.is_native
    assert (found is dtype) == dtype.is_native
    assert found.bits > dtype.bits or dtype.is_native


@BY_NAME
def test_limits_are_those_of_the_bits(dtype: DataType) -> None:
    if not dtype.is_integer:
        return
    least, greatest = dtype.limits
    assert greatest - least + 1 == 2**dtype.bits
    assert least == (-(2 ** (dtype.bits - 1)) if dtype.name.startswith("INT") else 0)


def test_arrays_that_onnx_has_no_word_for() -> None:
    assert DataType.of_array(np.empty(0, np.complex64)) is None
    assert DataType.of_array(np.empty(0, "M8[s]")) is None
    assert DataType.of_ort("float12") is None
    assert DataType.of_oip("FP12") is None
    assert DataType.of_array(np.empty(0, ">f4")) is DataType.FLOAT
    assert DataType.of_array(np.empty(0, "<U3")) is DataType.STRING
