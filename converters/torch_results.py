"""What a torch model answers: the tensors in a nested result, their names, and their arrays."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from converters.errors import ConversionRefused
from onnx_serve.errors import quote
from onnx_serve.tensors import Array

__all__ = ["Leaf", "leaves_of", "output_names", "to_array"]

# The names on the way to a tensor, the expression that reaches it, and the tensor.
Leaf = tuple[tuple[Any, ...], str, Any]


def leaves_of(value: Any, names: tuple[Any, ...] = (), accessor: str = "") -> Iterator[Leaf]:
    """Every tensor of a result."""
    if isinstance(value, torch.Tensor):
        yield names, accessor, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves_of(item, (*names, key), f"{accessor}[{key!r}]")
    elif isinstance(value, list | tuple):
        labels = getattr(value, "_fields", range(len(value)))
        for index, (label, item) in enumerate(zip(labels, value, strict=True)):
            yield from leaves_of(item, (*names, label), f"{accessor}[{index}]")
    elif is_dataclass(value):
        for field in fields(value):
            yield from leaves_of(getattr(value, field.name), (*names, field.name), f"{accessor}.{field.name}")
    elif value is not None:
        place = ".".join(map(str, names))
        raise ConversionRefused(
            f"the module answers with a {type(value).__name__}{f' at {quote(place)}' if place else ''}: "
            "only tensors, and tuples, lists, dictionaries and dataclasses of them, can be answered"
        )


def output_names(paths: Sequence[tuple[Any, ...]], inputs: Sequence[str]) -> tuple[str, ...]:
    """A name for each output: its keys, else its position; none that an input or another has."""
    if not paths:
        raise ConversionRefused("the module answers with nothing")
    names: list[str] = []
    for path in paths:
        name = "_".join(map(str, path))
        if not path or isinstance(path[0], int):
            name = f"output_{name}" if path else "output"
        while name in inputs or name in names:
            name += "_output"
        names.append(name)
    return tuple(names)


def to_array(name: str, tensor: Any) -> Array:
    """A tensor as an array.

    Raises:
        ConversionRefused: No array, or no ONNX tensor, can hold it.
    """
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
        raise ConversionRefused(
            f"{quote(name)} is a {tensor.dtype} tensor of layout {tensor.layout}: ONNX has none"
        )
    if tensor.dtype is torch.bfloat16:
        raise ConversionRefused(f"{quote(name)} is bfloat16, which NumPy has not: convert module.float()")
    array: Array = tensor.detach().cpu().numpy()
    return array
