"""The features of RecordIO's records as a model's inputs: by name, by place, dense or sparse."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnx_serve.codecs import record_shape
from onnx_serve.errors import DecodeError, quote
from onnx_serve.tensors import Signature, Tensors, TensorSpec, format_shape

__all__ = ["Feature", "assign"]

Array: TypeAlias = npt.NDArray[Any]

_DEFAULT = "values"  # the SDK's name for the features of a record
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of N records: values ``[N, K]``, and where the writer gave them a shape and (N is 1) keys."""

    values: Array
    shape: tuple[int, ...] = ()
    keys: Array | None = None


def assign(features: Mapping[str, Feature], signature: Signature, number: int) -> Tensors:
    """The inputs of N records, each array's dimension 0 being N; ``number`` is the first one's."""
    names = [spec.name for spec in signature.inputs]
    try:
        if features.keys() == set(names):
            return {spec.name: _input(features[spec.name], spec, signature) for spec in signature.inputs}
        if features.keys() == {_DEFAULT} and len(names) == 1:
            spec = signature.inputs[0]
            return {spec.name: _input(features[_DEFAULT], spec, signature)}
        if features.keys() == {_DEFAULT} and names:
            return _spread(features[_DEFAULT], signature)
    except DecodeError as ex:
        raise DecodeError(ex.problem, record=number) from None
    if given := features.keys() & {spec.name for spec in signature.defaults}:
        raise DecodeError(
            f"expected no feature {quote(min(given))}: records take the model's default of that input, and "
            f'the Open Inference Protocol, {{"inputs": {{...}}}} in JSON or NPZ can give another',
            record=number,
        )
    raise DecodeError(
        f"expected the features {_list(names)} or a lone {quote(_DEFAULT)}, "
        f"got {_list(list(features)) or 'none'}",
        record=number,
    )


def _input(feature: Feature, spec: TensorSpec, signature: Signature) -> Array:
    """A feature as an input's values, ``[N, *shape of a record]``."""
    width = signature.record_width(spec)
    values = _dense(feature, width, f'input "{spec.name}" {spec}')
    shape = record_shape.fit(values.shape[1], feature.shape, spec, signature)
    return values.reshape(len(values), *shape)


def _spread(feature: Feature, signature: Signature) -> Tensors:
    """One feature cut into the values of all inputs."""
    widths = [signature.record_width(spec) for spec in signature.inputs]
    inputs = signature.describe_inputs()
    if None in widths:
        raise DecodeError(
            f"expected a feature for each of the inputs {inputs}: one list cannot be divided among free sizes"
        )
    known = [width for width in widths if width is not None]
    values = _dense(feature, sum(known), f"inputs {inputs}")
    if values.shape[1] != sum(known):
        raise DecodeError(f"expected {sum(known)} values for the inputs {inputs}, got {values.shape[1]}")
    parts = np.split(values, np.cumsum(known)[:-1], axis=1)
    return {
        spec.name: part.reshape(len(values), *(n for n in signature.record_shape(spec) if isinstance(n, int)))
        for spec, part in zip(signature.inputs, parts, strict=True)
    }


def _dense(feature: Feature, width: int | None, place: str) -> Array:
    """The values of a feature, with zeros where a sparse one has none."""
    empty = feature.keys is None and not feature.values.size and math.prod(feature.shape or (0,)) > 0
    if feature.keys is None and not empty:
        return feature.values
    # The size comes from the model, never from the request.
    if width is None or math.prod(feature.shape or (0,)) != width:
        wanted = "inputs of known size" if width is None else f"a shape of {width} values"
        raise DecodeError(f"{place}, sparse: expected {wanted}, got {format_shape(feature.shape[:8])}")
    dense = np.zeros((1, width), feature.values.dtype)
    if feature.keys is None:
        return dense
    if len(feature.keys) != feature.values.shape[1]:
        raise DecodeError(
            f"{place}, sparse: expected as many values as keys, got {feature.values.shape[1]} and {len(feature.keys)}"
        )
    if feature.keys.max() >= width:
        raise DecodeError(f"{place}, sparse: expected keys below {width}, got {feature.keys.max()}")
    if len(np.unique(feature.keys)) != len(feature.keys):
        raise DecodeError(f"{place}, sparse: expected each key once")
    dense[0, feature.keys.astype(np.intp)] = feature.values[0]
    return dense


def _list(names: list[str]) -> str:
    return ", ".join(map(quote, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
