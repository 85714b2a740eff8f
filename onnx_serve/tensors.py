"""Tensors and what a model says of them: the vocabulary of everything between bytes and onnxruntime.

``DataType`` is the one table between ONNX's names, onnxruntime's, NumPy's and the Open Inference
Protocol's. ``Signature`` is what a model takes and gives. ``conform`` is the only judge of names, types
and shapes: what passes it can be fed to the session.

Names follow https://onnx.ai/onnx/repo-docs/IR.html (types, symbolic dimensions) and
https://github.com/kserve/open-inference-protocol (datatypes).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnx_serve.errors import MismatchError, quote

__all__ = ["DataType", "MapTable", "RowAxis", "Signature", "TensorSpec", "Tensors", "Value", "conform"]

Array: TypeAlias = npt.NDArray[Any]


class DataType(Enum):
    """Element types of tensors; the member's name is ONNX's (``TensorProto.DataType``).

    Attributes:
        ort: The word onnxruntime uses between the brackets of ``tensor(...)``.
        numpy: The NumPy type that carries it; strings travel as object arrays of ``str``.
        oip: The Open Inference Protocol's ``datatype``.
    """

    BOOL = ("bool", np.dtype(np.bool_), "BOOL")
    UINT8 = ("uint8", np.dtype(np.uint8), "UINT8")
    UINT16 = ("uint16", np.dtype(np.uint16), "UINT16")
    UINT32 = ("uint32", np.dtype(np.uint32), "UINT32")
    UINT64 = ("uint64", np.dtype(np.uint64), "UINT64")
    INT8 = ("int8", np.dtype(np.int8), "INT8")
    INT16 = ("int16", np.dtype(np.int16), "INT16")
    INT32 = ("int32", np.dtype(np.int32), "INT32")
    INT64 = ("int64", np.dtype(np.int64), "INT64")
    FLOAT16 = ("float16", np.dtype(np.float16), "FP16")
    FLOAT = ("float", np.dtype(np.float32), "FP32")
    DOUBLE = ("double", np.dtype(np.float64), "FP64")
    STRING = ("string", np.dtype(object), "BYTES")

    def __init__(self, ort: str, numpy: np.dtype[Any], oip: str) -> None:
        self.ort = ort
        self.numpy = numpy
        self.oip = oip

    @property
    def is_float(self) -> bool:
        """Whether NaN and infinities are values of this type."""
        return self.numpy.kind == "f"

    @property
    def is_integer(self) -> bool:
        """Whether only whole numbers are values of this type."""
        return self.numpy.kind in "iu"

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
        """The type of an array's elements, or None when ONNX has none (complex numbers, dates, records)."""
        if array.dtype.kind in "US":
            return cls.STRING
        return _BY_NUMPY.get(array.dtype.newbyteorder("="))


_BY_ORT = {member.ort: member for member in DataType}
_BY_OIP = {member.oip: member for member in DataType}
_BY_NUMPY = {member.numpy: member for member in DataType}

Dimension: TypeAlias = int | str | None
_TENSOR = re.compile(r"tensor\((\w+)\)")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output as the model declares it.

    Attributes:
        name: The name in the graph.
        onnx_type: The type as onnxruntime spells it: ``tensor(float)``, ``seq(map(int64,tensor(float)))``.
        shape: Dimensions: a number, a symbol (equal symbols have equal values), or None (free);
            of no meaning when ``onnx_type`` is no tensor.
    """

    name: str
    onnx_type: str
    shape: tuple[Dimension, ...]

    @property
    def is_tensor(self) -> bool:
        """Whether the value is one tensor, not a sequence, map or optional."""
        return self.onnx_type.startswith("tensor(")

    @property
    def is_map_sequence(self) -> bool:
        """Whether the value is a sequence of maps, as the operator ZipMap gives: one map a row."""
        return self.onnx_type.startswith("seq(map(")

    @property
    def dtype(self) -> DataType:
        """The type of the (innermost) tensor's elements.

        Raises:
            MismatchError: If onnx-serve does not carry that type.
        """
        match = _TENSOR.search(self.onnx_type)
        dtype = DataType.of_ort(match[1]) if match else None
        if dtype is None:
            raise MismatchError(f'"{self.name}": the type {self.onnx_type} is not supported')
        return dtype

    def __str__(self) -> str:
        """``FLOAT[N, 4]``: the type and shape as messages and documents show them."""
        if not self.is_tensor:
            return self.onnx_type
        return f"{self.dtype.name}{format_shape(self.shape)}"


@dataclass(frozen=True, slots=True)
class MapTable:
    """A sequence of N maps that share their K keys, one column a key.

    This is how the outputs of ZipMap travel: a list of N dictionaries costs a hundred times the memory
    and loses that the values are float32.

    Attributes:
        keys: The K keys, all ``int`` or all ``str``, in the maps' order.
        values: ``[N, K]``, in the type of the maps' values.
    """

    keys: tuple[int | str, ...]
    values: Array

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> "MapTable":
        return MapTable(self.keys, self.values[rows])

    def dicts(self) -> Iterator[dict[int | str, Any]]:
        """The N maps, with NumPy scalars as values."""
        return (dict(zip(self.keys, row, strict=True)) for row in self.values)


# What an input or output may be. A list is a sequence whose items are values again.
Value: TypeAlias = Array | MapTable | list[Any] | dict[Any, Any] | None
Tensors: TypeAlias = dict[str, Array]
Values: TypeAlias = dict[str, Value]


class RowAxis(Enum):
    """How a model's dimension 0 relates to records.

    FREE: dimension 0 of every input and output counts rows, any number a run.
    FIXED: the same, but a run takes exactly ``Signature.fixed_rows`` rows.
    NONE: the model has no rows: a request is one run.
    """

    FREE = "free"
    FIXED = "fixed"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives.

    Attributes:
        inputs: The required inputs, in the model's order.
        outputs: The outputs, in the order they are answered in.
        row_axis: Whether dimension 0 counts records.
        fixed_rows: Rows of one run when ``row_axis`` is FIXED, else 0.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    row_axis: RowAxis
    fixed_rows: int = 0

    @property
    def has_rows(self) -> bool:
        """Whether a batch of several records is one set of tensors."""
        return self.row_axis is not RowAxis.NONE

    def record_shape(self, spec: TensorSpec) -> tuple[Dimension, ...]:
        """The shape that one record has in this input: without dimension 0 if that counts rows."""
        return spec.shape[1:] if self.has_rows else spec.shape

    def record_width(self, spec: TensorSpec) -> int | None:
        """How many values one record gives this input, or None when a dimension is free."""
        width = 1
        for size in self.record_shape(spec):
            if not isinstance(size, int):
                return None
            width *= size
        return width

    def describe_inputs(self) -> str:
        """``"x" FLOAT[N, 4], "y" INT64[N]``, for messages."""
        return ", ".join(f'"{spec.name}" {spec}' for spec in self.inputs)


def format_shape(shape: Sequence[Dimension]) -> str:
    """``[N, 4]``: symbols by name, an unnamed free dimension as ``N`` in front and ``?`` elsewhere."""
    words = [("?" if axis else "N") if size is None else str(size) for axis, size in enumerate(shape)]
    return f"[{', '.join(words)}]"


def conform(tensors: Mapping[str, Array], signature: Signature) -> Tensors:
    """The feed that a model takes, made of decoded tensors, or an error that says what does not fit.

    Values may change type where nothing is lost (int64 into INT32, 1.0 into INT8) and where the input is
    a float (float64 into FLOAT is rounded, but never to infinity). An array that already fits is
    returned itself, not copied.

    Args:
        tensors: Arrays by input name, any NumPy type.
        signature: The model's; with rows, dimension 0 of every array counts them, whatever their number.

    Raises:
        MismatchError: A name, type, shape or value is not what the model takes.
    """
    if tensors.keys() != {spec.name for spec in signature.inputs}:
        raise _wrong_names(tensors, signature)
    symbols: dict[str, int] = {}
    feed: Tensors = {}
    for spec in signature.inputs:
        array = tensors[spec.name]
        _check_shape(array, spec, signature, symbols)
        feed[spec.name] = cast(array, spec)
    return feed


def cast(array: Array, spec: TensorSpec) -> Array:
    """The array in the input's element type, if no value changes by more than a float's rounding.

    Raises:
        MismatchError: A value has no equal in that type; the message names the first one and its index.
    """
    dtype = spec.dtype
    target = dtype.numpy
    if array.dtype == target and target.kind != "O":
        return array
    if DataType.of_array(array) is None:
        raise MismatchError(f'input "{spec.name}": expected {dtype.name}, got elements of type {array.dtype}')
    if dtype is DataType.STRING:
        return _cast_to_string(array, spec)
    if array.dtype.kind in "OUS":
        raise _wrong_value(spec, array, np.ones(array.shape, np.bool_))
    if dtype.is_float:
        return _cast_to_float(array, spec)
    if dtype is DataType.BOOL:
        wrong = (array != 0) & (array != 1)
    elif array.dtype.kind == "b" or np.can_cast(array.dtype, target):
        return array.astype(target)
    else:
        wrong = _out_of_range(array, target)
    if wrong.any():
        raise _wrong_value(spec, array, wrong)
    return array.astype(target)


def _cast_to_float(array: Array, spec: TensorSpec) -> Array:
    target = spec.dtype.numpy
    try:
        # Raising is cheaper than looking for new infinities afterwards.
        with np.errstate(over="raise"):
            return array.astype(target)
    except FloatingPointError:
        with np.errstate(over="ignore"):
            wrong = np.isinf(array.astype(target)) & np.isfinite(array)
        raise _wrong_value(spec, array, wrong) from None


def _cast_to_string(array: Array, spec: TensorSpec) -> Array:
    if array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype.kind == "S":
        try:
            return np.char.decode(array, "utf-8").astype(object)
        except UnicodeDecodeError:
            raise MismatchError(
                f'input "{spec.name}": expected STRING, got bytes that are no UTF-8'
            ) from None
    flat = array.ravel()
    if array.dtype.kind != "O" or not all(type(item) is str for item in flat):
        wrong = np.array([type(item) is not str for item in flat], np.bool_).reshape(array.shape)
        raise _wrong_value(spec, array, wrong)
    return array


def _out_of_range(array: Array, target: np.dtype[Any]) -> npt.NDArray[np.bool_]:
    """Where values are fractions, not finite, or beyond the integer type."""
    limits = np.iinfo(target)
    if array.dtype.kind in "iu":
        # Compared as Python integers, so that int64 against uint64 never goes through float64.
        wrong = np.zeros(array.shape, np.bool_)
        if limits.min > np.iinfo(array.dtype).min:
            wrong |= array < limits.min
        if limits.max < np.iinfo(array.dtype).max:
            wrong |= array > limits.max
        return wrong
    wide = array.astype(np.float64)
    # float(limits.max) may round up to the first value that no longer fits, hence "not below max + 1".
    in_range = (wide >= float(limits.min)) & (wide < float(limits.max + 1))
    result: npt.NDArray[np.bool_] = ~(in_range & (wide == np.floor(wide)))
    return result


def _check_shape(array: Array, spec: TensorSpec, signature: Signature, symbols: dict[str, int]) -> None:
    """Compares a shape with the declared one; ``symbols`` carries values from input to input."""
    fits = array.ndim == len(spec.shape)
    for axis, (size, declared) in enumerate(zip(array.shape, spec.shape, strict=False)):
        if axis == 0 and signature.has_rows:
            rows = symbols.setdefault("", size)
            if rows != size:
                raise MismatchError(
                    f'input "{spec.name}": expected {rows} rows like "{signature.inputs[0].name}", got {size}'
                )
        elif isinstance(declared, str):
            if symbols.setdefault(declared, size) != size:
                raise MismatchError(
                    f'input "{spec.name}": expected {spec} with {declared} = {symbols[declared]} as in the '
                    f"inputs before, got {format_shape(array.shape)}"
                )
        elif declared is not None and declared != size:
            fits = False
    if not fits:
        dtype = DataType.of_array(array)
        word = dtype.name if dtype else str(array.dtype)
        raise MismatchError(f'input "{spec.name}": expected {spec}, got {word}{format_shape(array.shape)}')


def _wrong_names(tensors: Mapping[str, Array], signature: Signature) -> MismatchError:
    expected = [spec.name for spec in signature.inputs]
    missing = [name for name in expected if name not in tensors]
    unknown = [name for name in tensors if name not in expected]
    parts = []
    if missing:
        parts.append(f"missing {', '.join(map(quote, missing[:5]))}")
    if unknown:
        parts.append(f"unknown {', '.join(map(quote, unknown[:5]))}")
    return MismatchError(f"expected the inputs {signature.describe_inputs()}: {'; '.join(parts)}")


def _wrong_value(spec: TensorSpec, array: Array, wrong: npt.NDArray[np.bool_]) -> MismatchError:
    index = np.unravel_index(int(np.argmax(wrong)), array.shape) if array.size else ()
    value = array[index] if array.size else "nothing"
    shown = quote(value) if isinstance(value, str | bytes) else value
    place = f" at {[int(i) for i in index]}" if index else ""
    return MismatchError(f'input "{spec.name}": expected {spec.dtype.name}, got {shown}{place}')
