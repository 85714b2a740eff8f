"""The bytes of a tensor as ONNX lays them out in ``raw_data``, and onnxruntime in memory.

Elements follow each other row-major and little-endian. Types of 4 and 2 bits share bytes, the first element in
the lowest bits; what is left of the last byte is 0.
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (``TensorProto.raw_data``, ``int32_data``)
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnx_serve.data_types import Array, DataType
from onnx_serve.minifloats import from_codes, to_codes

__all__ = ["from_raw", "raw_size", "to_raw"]


def raw_size(count: int, dtype: DataType) -> int:
    """Bytes of so many elements of a type that is not STRING."""
    return -(-count * dtype.bits // 8)


def to_raw(array: Array, dtype: DataType) -> npt.NDArray[np.uint8]:
    """The bytes of an array.

    Args:
        array: Of ``dtype.numpy``, every element a value of the type.
        dtype: Any but STRING.

    Returns:
        ``[raw_size(array.size, dtype)]``; for types that NumPy has, a view of the array where that is contiguous.
    """
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
    if dtype.is_native:
        return flat.view(np.uint8)
    if dtype.is_float:
        flat = to_codes(flat.astype(np.float32, copy=False), dtype)
    if dtype.bits >= 8:  # noqa: PLR2004  a byte
        return flat.astype(flat.dtype.newbyteorder("<"), copy=False).view(np.uint8)
    return _pack(flat.view(np.uint8), dtype.bits)


def from_raw(raw: npt.NDArray[np.uint8], dtype: DataType, shape: Sequence[int]) -> Array:
    """The array of ``dtype.numpy`` that these bytes are; shares their memory for types that NumPy has.

    Args:
        raw: ``[raw_size(product of shape, dtype)]``.
        dtype: Any but STRING.
        shape: The array's.
    """
    if dtype.is_native:
        return raw.view(dtype.numpy.newbyteorder("<")).reshape(shape)
    count = int(np.prod(shape, dtype=np.int64))
    codes = raw if dtype.bits >= 8 else _unpack(raw, dtype.bits)[:count]  # noqa: PLR2004  a byte
    if dtype is DataType.BFLOAT16:
        codes = raw.view("<u2")
    if dtype.is_float:
        return from_codes(codes, dtype).reshape(shape)
    if dtype.numpy.kind == "i":
        # The sign bit is moved to the top of the byte, and back with copies of itself.
        spare = 8 - dtype.bits
        return ((codes << np.uint8(spare)).view(np.int8) >> np.int8(spare)).reshape(shape)
    return codes.reshape(shape)


def _pack(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    a_byte = 8 // bits
    padded = np.zeros(-(-len(codes) // a_byte) * a_byte, np.uint8)
    padded[: len(codes)] = codes & np.uint8((1 << bits) - 1)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    packed: npt.NDArray[np.uint8] = np.bitwise_or.reduce(padded.reshape(-1, a_byte) << shifts, axis=1)
    return packed


def _unpack(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes: npt.NDArray[np.uint8] = (packed[:, np.newaxis] >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(-1)
