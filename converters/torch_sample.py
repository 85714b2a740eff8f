"""The user's sample as a torch model takes it: arrays by the names of ``forward``'s parameters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converters.errors import ConversionError
from converters.samples import read_sample
from converters.torch_inputs import example_of, input_names
from onnx_serve.errors import quote
from onnx_serve.tensors import Array, Tensors

__all__ = ["read", "to_feed", "weight_type"]


def read(path: Path) -> Mapping[str, Array] | Array:
    """Arrays by input name from ``.npz`` of any shapes, else rows as every converter reads them.

    Raises:
        ConversionError: It cannot be read.
    """
    if path.suffix.lower() == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError) as ex:
            raise ConversionError(f"--sample {quote(path.name)}: expected arrays: {quote(ex)}") from ex
    found = read_sample(path)
    return found.matrix if found.matrix is not None else found.columns


def to_feed(model: Any, sample: Mapping[str, Array] | Array | None, notes: list[str]) -> Tensors:
    """The sample by input name, in types that the model's weights suggest.

    Args:
        model: What is to be run.
        sample: Arrays by name, one array, or None for the example that an exported program carries.
        notes: Gets a sentence if types were changed.

    Raises:
        ConversionError: There is none, or it holds what is no number.
    """
    names = input_names(model)
    if sample is None:
        found = example_of(model) if isinstance(model, torch.export.ExportedProgram) else {}
        if not found:
            raise ConversionError(
                "torch models do not say what they take: give --sample, an .npz file with an array for each of the "
                f"inputs {', '.join(map(quote, names[:12]))}"
            )
    elif not isinstance(sample, Mapping):
        found = {names[0] if names else "x": np.asarray(sample)}
    elif set(sample) <= set(names):
        found = dict(sample)
    elif all(name == f"arr_{index}" for index, name in enumerate(sample)):  # numpy.savez without names
        found = {
            names[index] if index < len(names) else name: array
            for index, (name, array) in enumerate(sample.items())
        }
    elif len(names) == 1 and all(array.ndim == 1 and array.dtype.kind in "biuf" for array in sample.values()):
        found = {names[0]: np.stack(list(sample.values()), axis=1)}  # columns of a table
    else:
        found = dict(sample)
    _check_arrays(found)
    return _retyped(model, found, notes)


def _check_arrays(sample: Tensors) -> None:
    for name, array in sample.items():
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:  # noqa: PLR2004  bytes of float64
            raise ConversionError(f"sample: expected numbers for the input {quote(name)}, got {array.dtype}")
        if not array.size:
            raise ConversionError(
                f"sample: the array for the input {quote(name)} is empty, of shape {list(array.shape)}"
            )
    if not sample:
        raise ConversionError("sample: expected arrays, got none")


def weight_type(model: Any) -> str:
    """The widest float type of the weights, in which the module computes; ``float32`` without weights."""
    exported = isinstance(model, torch.export.ExportedProgram)
    weights = model.state_dict if exported else dict(model.named_parameters())
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}
    return next((kind for kind in ("float64", "float32", "float16") if kind in kinds), "float32")


def _retyped(model: Any, sample: Tensors, notes: list[str]) -> Tensors:
    """Floats of NumPy's default type in the type of the weights."""
    kind = weight_type(model)
    if kind == "float64" or all(array.dtype != np.float64 for array in sample.values()):
        return sample
    notes.append(f"the sample's float64 was taken as {kind}, the type of the weights")
    return {
        name: array.astype(kind) if array.dtype == np.float64 else array for name, array in sample.items()
    }
