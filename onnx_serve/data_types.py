"""The one table of element types: ONNX's names, onnxruntime's, NumPy's and the Open Inference Protocol's.

NumPy has no bfloat16, no float of 8 or 4 bits and no integer of 4 or 2. Their values travel in the next NumPy
type that holds each of them exactly, float32 or an integer of 8 bits, so that no format can mistake a bit
pattern for a number. Only at the doors where bits count (onnxruntime, raw bytes) do they get their own form:
``raw_data`` has it.

Names and numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (``TensorProto.DataType``), datatypes:
https://github.com/kserve/open-inference-protocol. That has no name for most of the small types, so they go by ONNX's.
"""

from enum import Enum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "DataType"]

Array: TypeAlias = npt.NDArray[Any]


class DataType(Enum):
    """Element types of tensors; the member's name is ONNX's (``TensorProto.DataType``).

    Attributes:
        ort: The word onnxruntime uses between the brackets of ``tensor(...)``.
        numpy: The NumPy type that carries it; strings travel as object arrays of ``str``.
        oip: The Open Inference Protocol's ``datatype``.
        onnx: ONNX's number.
        bits: Bits of one element in ONNX's ``raw_data``; 0 for strings, which have no such form.
        is_native: Whether ``numpy`` is the type itself. Otherwise it also holds values that are none of the type.
        is_float: Whether NaN or infinities, or fractions, are values of this type.
        is_integer: Whether only whole numbers are values of this type.
    """

    BOOL = ("bool", np.dtype(np.bool_), "BOOL", 9)
    UINT8 = ("uint8", np.dtype(np.uint8), "UINT8", 2)
    UINT16 = ("uint16", np.dtype(np.uint16), "UINT16", 4)
    UINT32 = ("uint32", np.dtype(np.uint32), "UINT32", 12)
    UINT64 = ("uint64", np.dtype(np.uint64), "UINT64", 13)
    INT8 = ("int8", np.dtype(np.int8), "INT8", 3)
    INT16 = ("int16", np.dtype(np.int16), "INT16", 5)
    INT32 = ("int32", np.dtype(np.int32), "INT32", 6)
    INT64 = ("int64", np.dtype(np.int64), "INT64", 7)
    FLOAT16 = ("float16", np.dtype(np.float16), "FP16", 10)
    FLOAT = ("float", np.dtype(np.float32), "FP32", 1)
    DOUBLE = ("double", np.dtype(np.float64), "FP64", 11)
    STRING = ("string", np.dtype(object), "BYTES", 8)
    BFLOAT16 = ("bfloat16", np.dtype(np.float32), "BF16", 16, 16)
    FLOAT8E4M3FN = ("float8e4m3fn", np.dtype(np.float32), "FLOAT8E4M3FN", 17, 8)
    FLOAT8E4M3FNUZ = ("float8e4m3fnuz", np.dtype(np.float32), "FLOAT8E4M3FNUZ", 18, 8)
    FLOAT8E5M2 = ("float8e5m2", np.dtype(np.float32), "FLOAT8E5M2", 19, 8)
    FLOAT8E5M2FNUZ = ("float8e5m2fnuz", np.dtype(np.float32), "FLOAT8E5M2FNUZ", 20, 8)
    FLOAT8E8M0 = ("float8e8m0", np.dtype(np.float32), "FLOAT8E8M0", 24, 8)
    FLOAT4E2M1 = ("float4e2m1", np.dtype(np.float32), "FLOAT4E2M1", 23, 4)
    UINT4 = ("uint4", np.dtype(np.uint8), "UINT4", 21, 4)
    INT4 = ("int4", np.dtype(np.int8), "INT4", 22, 4)
    UINT2 = ("uint2", np.dtype(np.uint8), "UINT2", 25, 2)
    INT2 = ("int2", np.dtype(np.int8), "INT2", 26, 2)

    def __init__(self, ort: str, numpy: np.dtype[Any], oip: str, onnx: int, bits: int = 0) -> None:
        self.ort = ort
        self.numpy = numpy
        self.oip = oip
        self.onnx = onnx
        self.bits = bits or (0 if numpy.kind == "O" else 8 * numpy.itemsize)
        self.is_native = not bits
        self.is_float = numpy.kind == "f"
        self.is_integer = numpy.kind in "iu"

    @property
    def limits(self) -> tuple[int, int]:
        """The least and the greatest value of an integer type."""
        assert self.is_integer
        signed = self.numpy.kind == "i"
        return (-1 << (self.bits - 1) if signed else 0), (1 << (self.bits - signed)) - 1

    @classmethod
    def of_ort(cls, word: str) -> "DataType | None":
        """The type onnxruntime calls ``word`` (``"float"``), or None."""
        return _BY_ORT.get(word)

    @classmethod
    def of_oip(cls, word: str) -> "DataType | None":
        """The type the Open Inference Protocol calls ``word`` (``"FP32"``), or None."""
        return _BY_OIP.get(word)

    @classmethod
    def of_array(cls, array: Array) -> "DataType | None":
        """The type of an array's elements, or None when ONNX has none (complex numbers, dates, records).

        Always one that NumPy has: whether a float32 is meant as a bfloat16, only the model says.
        """
        if array.dtype.kind in "US":
            return cls.STRING
        return _BY_NUMPY.get(array.dtype.newbyteorder("="))


_BY_ORT = {member.ort: member for member in DataType}
_BY_OIP = {member.oip: member for member in DataType}
_BY_NUMPY = {member.numpy: member for member in DataType if member.is_native}
