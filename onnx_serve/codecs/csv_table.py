"""How the columns of a CSV line fill a model's inputs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnx_serve.errors import DecodeError, quote
from onnx_serve.tensors import DataType, Signature, Tensors, TensorSpec

__all__ = ["Field", "Table", "fixed_table", "make_table", "name_list", "narrow"]

Array: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Field:
    """The columns of one input.

    Attributes:
        spec: The input.
        start: Its first column, from 0.
        stop: The column after its last.
        shape: Of one record: ``stop - start`` values, row-major.
    """

    spec: TensorSpec
    start: int
    stop: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """How the columns of a line fill the inputs.

    Attributes:
        fields: One an input, in the model's order; together they cover every column once.
        width: The number of columns.
        uniform: The one type that carries every column exactly: float64, int64 or uint64; else None.
    """

    fields: tuple[Field, ...]
    width: int
    uniform: np.dtype[Any] | None

    def dtypes(self) -> list[DataType]:
        """The input type of each column."""
        ordered = sorted(self.fields, key=lambda field: field.start)
        return [field.spec.dtype for field in ordered for _ in range(field.start, field.stop)]

    @property
    def is_text_column(self) -> bool:
        """Whether a blank line is a record: the empty string."""
        return self.width == 1 and self.dtypes() == [DataType.STRING]

    @property
    def is_named(self) -> bool:
        """Whether a header's names say which column feeds which input."""
        return len(self.fields) > 1 and all(field.stop - field.start == 1 for field in self.fields)

    def cut(self, values: Array) -> Tensors | None:
        """The inputs of a table of ``uniform`` values ``[rows, width]``, or None if a value does not fit."""
        block: Tensors = {}
        for field in self.fields:
            part = narrow(values[:, field.start : field.stop], field.spec.dtype.numpy)
            if part is None:
                return None
            block[field.spec.name] = part.reshape(len(values), *field.shape)
        return block


@lru_cache(maxsize=64)
def fixed_table(signature: Signature) -> Table | None:
    """The table of a model whose records have one width, or None if it follows from a line's columns.

    Raises:
        DecodeError: The model cannot be fed from CSV.
    """
    _check_inputs(signature)
    if any(signature.record_width(spec) is None for spec in signature.inputs):
        return None
    return make_table(signature, 0)


def make_table(signature: Signature, columns: int) -> Table:
    """The table for lines of so many columns, which are of no matter if the model's records have one width.

    ``fixed_table`` has been asked first: the model can be fed from CSV.

    Raises:
        DecodeError: Not from so many columns.
    """
    widths = [signature.record_width(spec) for spec in signature.inputs]
    fields, start = [], 0
    left = columns - sum(width for width in widths if width is not None)
    for spec, width in zip(signature.inputs, widths, strict=True):
        shape = _free_shape(spec, signature, left) if width is None else signature.record_shape(spec)
        sizes = tuple(size for size in shape if isinstance(size, int))
        fields.append(Field(spec, start, start + math.prod(sizes), sizes))
        start = fields[-1].stop
    return Table(tuple(fields), start, _uniform({field.spec.dtype for field in fields}))


def _check_inputs(signature: Signature) -> None:
    """Refuses a model whose records no line of cells can hold."""
    for spec in signature.inputs:
        if not spec.is_tensor:
            raise DecodeError(f'the model cannot be fed from CSV: "{spec.name}" is {spec}')
    free = [spec for spec in signature.inputs if signature.record_width(spec) is None]
    if len(free) > 1:
        raise DecodeError(
            f"the model cannot be fed from CSV: {name_list(spec.name for spec in free)} have free dimensions"
        )
    for spec in free:
        if sum(not isinstance(size, int) for size in signature.record_shape(spec)) > 1:
            raise DecodeError(
                f'the model cannot be fed from CSV: "{spec.name}" {spec} has several free dimensions'
            )


def _free_shape(spec: TensorSpec, signature: Signature, columns: int) -> tuple[int, ...]:
    """The shape of one record of an input with a free dimension, given its number of columns."""
    shape = signature.record_shape(spec)
    others = math.prod(size for size in shape if isinstance(size, int))
    if columns < 0 or not others or columns % others:
        raise DecodeError(
            f'expected columns for {signature.describe_inputs()}, got {max(columns, 0)} for "{spec.name}"'
        )
    return tuple(size if isinstance(size, int) else columns // others for size in shape)


def _uniform(dtypes: set[DataType]) -> np.dtype[Any] | None:
    if all(dtype.is_float for dtype in dtypes):
        return np.dtype(np.float64)
    if dtypes == {DataType.UINT64}:
        return np.dtype(np.uint64)
    if all(dtype.is_integer for dtype in dtypes) and DataType.UINT64 not in dtypes:
        return np.dtype(np.int64)
    return None


def narrow(values: Array, target: np.dtype[Any]) -> Array | None:
    """Float64 or 64-bit integers in the input's type, or None if one does not fit.

    Args:
        values: Finite or not; finite values beyond a float type's range do not fit.
        target: A float type for float64, an integer type for integers. The same type: no copy is made.
    """
    if target == values.dtype:
        return values
    if target.kind == "f":
        try:
            with np.errstate(over="raise"):
                return values.astype(target)
        except FloatingPointError:
            return None
    limits = np.iinfo(target)
    if values.size and (values.min() < limits.min or values.max() > limits.max):
        return None
    return values.astype(target)


def name_list(names: Iterable[str]) -> str:
    """The names quoted, for a message: the first five, and how many more there are."""
    listed = [quote(name) for name in names]
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")  # noqa: PLR2004 - few enough for a line
