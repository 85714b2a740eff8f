"""Tensors and what a model says of them: the vocabulary of everything between bytes and onnxruntime.

``Signature`` is what a model takes and gives, ``DataType`` (from ``data_types``) names the elements.
``conform`` is the only judge of names, types and shapes: what passes it can be fed to the session.

Names follow https://onnx.ai/onnx/repo-docs/IR.html (types, symbolic dimensions) and
https://github.com/kserve/open-inference-protocol (datatypes).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

import numpy as np

from onnx_serve.casting import cast_elements
from onnx_serve.data_types import Array, DataType
from onnx_serve.errors import MismatchError, quote
from onnx_serve.value_types import Kind, ValueType, conform_value, parse_type

__all__ = [
    "Array",
    "DataType",
    "Dimension",
    "Feed",
    "Kind",
    "MapTable",
    "RowAxis",
    "Signature",
    "TensorSpec",
    "Tensors",
    "Value",
    "ValueType",
    "Values",
    "cast",
    "conform",
    "format_shape",
    "row_count",
]

Dimension: TypeAlias = int | str | None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output as the model declares it.

    Attributes:
        name: The name in the graph.
        onnx_type: The type as onnxruntime spells it: ``tensor(float)``, ``seq(map(int64,tensor(float)))``.
        shape: Dimensions: a number, a symbol (equal symbols have equal values), or None (free);
            of no meaning when ``onnx_type`` is no tensor.
        any_shape: Whether the model takes a tensor of any number of dimensions here; ``shape`` is then empty.
    """

    name: str
    onnx_type: str
    shape: tuple[Dimension, ...]
    any_shape: bool = False

    @property
    def is_tensor(self) -> bool:
        """Whether the value is one tensor of ``shape``, not a sequence, map, optional, or of any shape."""
        return self.onnx_type.startswith("tensor(") and not self.any_shape

    @property
    def is_map_sequence(self) -> bool:
        """Whether the value is a sequence of maps, as the operator ZipMap gives: one map a row."""
        return self.onnx_type.startswith("seq(map(")

    @property
    def is_optional(self) -> bool:
        """Whether there may be no value."""
        return self.onnx_type.startswith("optional(")

    @property
    def value_type(self) -> ValueType:
        """The type, taken apart.

        Raises:
            MismatchError: If onnx-serve does not carry it.
        """
        value_type = parse_type(self.onnx_type)
        if value_type is None:
            raise MismatchError(f'"{self.name}": the type {self.onnx_type} is not supported')
        return value_type

    @property
    def dtype(self) -> DataType:
        """The type of the (innermost) tensor's elements.

        Raises:
            MismatchError: If onnx-serve does not carry that type.
        """
        return self.value_type.dtype

    def __str__(self) -> str:
        """``FLOAT[N, 4]``: the type and shape as messages and documents show them."""
        if self.any_shape:
            return f"{self.dtype.name} of any shape"
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
# Inputs by name: arrays for tensors, and a ``Value`` for the rest.
Feed: TypeAlias = dict[str, Any]


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
        defaults: Inputs that may be left out, because the model holds a value for them (IR.html, "initializer").
            A request gives one for all its records: dimension 0 never counts rows.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    row_axis: RowAxis
    fixed_rows: int = 0
    defaults: tuple[TensorSpec, ...] = ()

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


def row_count(value: Value) -> int | None:
    """How many rows a value has along dimension 0, or None when it has no such dimension."""
    if isinstance(value, np.ndarray):
        return len(value) if value.ndim else None
    return len(value) if isinstance(value, MapTable | list) else None


def format_shape(shape: Sequence[Dimension]) -> str:
    """``[N, 4]``: symbols by name, an unnamed free dimension as ``N`` in front and ``?`` elsewhere."""
    words = [("?" if axis else "N") if size is None else str(size) for axis, size in enumerate(shape)]
    return f"[{', '.join(words)}]"


def conform(values: Mapping[str, Any], signature: Signature) -> Feed:
    """The feed that a model takes, made of decoded values, or an error that says what does not fit.

    Values may change type where nothing is lost (int64 into INT32, 1.0 into INT8) and where the input is
    a float (float64 into FLOAT is rounded, but never to infinity). An array that already fits is
    returned itself, not copied. An optional that is left out has no value; an input with a default may be left out.

    Args:
        values: By input name: arrays of any NumPy type, and for inputs that are no tensors what ``Value`` says.
        signature: The model's; with rows, dimension 0 of every array counts them, whatever their number.

    Raises:
        MismatchError: A name, type, shape or value is not what the model takes.
    """
    specs = signature.inputs
    if len(values) != len(specs) or not all(spec.name in values for spec in specs):
        values, specs = _fill(values, signature)
    symbols: dict[str, int] = {}
    feed: Feed = {}
    for spec in specs:
        value = values[spec.name]
        if spec.is_tensor:
            if not isinstance(value, np.ndarray):
                raise MismatchError(f'input "{spec.name}": expected {spec}, got {_kind(value)}')
            _check_shape(value, spec, signature, symbols)
            feed[spec.name] = cast_elements(value, spec.dtype, spec.name)
        else:
            feed[spec.name] = conform_value(value, spec.value_type, spec.name)
    return feed


def _fill(values: Mapping[str, Any], signature: Signature) -> tuple[dict[str, Any], tuple[TensorSpec, ...]]:
    """The values with None for optionals that are left out, and the specs of all that are there."""
    filled = {spec.name: None for spec in signature.inputs if spec.is_optional} | dict(values)
    specs = (*signature.inputs, *(spec for spec in signature.defaults if spec.name in values))
    if filled.keys() != {spec.name for spec in specs}:
        raise _wrong_names(values, signature)
    return filled, specs


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def cast(array: Array, spec: TensorSpec) -> Array:
    """The array in the input's element type, if no value changes by more than a float's rounding.

    Raises:
        MismatchError: A value has no equal in that type; the message names the first one and its index.
    """
    return cast_elements(array, spec.dtype, spec.name)


def _check_shape(array: Array, spec: TensorSpec, signature: Signature, symbols: dict[str, int]) -> None:
    """Compares a shape with the declared one; ``symbols`` carries values from input to input."""
    fits = array.ndim == len(spec.shape)
    has_rows = signature.has_rows and spec not in signature.defaults
    for axis, (size, declared) in enumerate(zip(array.shape, spec.shape, strict=False)):
        if axis == 0 and has_rows:
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


def _wrong_names(tensors: Mapping[str, Any], signature: Signature) -> MismatchError:
    missing = [spec.name for spec in signature.inputs if spec.name not in tensors and not spec.is_optional]
    known = {spec.name for spec in (*signature.inputs, *signature.defaults)}
    unknown = [name for name in tensors if name not in known]
    parts = []
    if missing:
        parts.append(f"missing {', '.join(map(quote, missing[:5]))}")
    if unknown:
        parts.append(f"unknown {', '.join(map(quote, unknown[:5]))}")
    return MismatchError(f"expected the inputs {signature.describe_inputs()}: {'; '.join(parts)}")
