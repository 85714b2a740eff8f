"""Runs of a session with every type of value that onnxruntime takes and gives.

NumPy arrays, lists, dictionaries and None go through ``session.run`` as they are. Element types that NumPy has
not go in and come out as ``OrtValue``s, whose memory holds their own bits. Measured with onnxruntime 1.32: an
``OrtValue`` may stand beside other values in a feed, cannot be made of strings, and its ``numpy()`` refuses
types that NumPy has not, or gives their bits for FLOAT8E4M3FN.
"""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, Protocol

import numpy as np

from onnx_serve.cuda import CUDA
from onnx_serve.errors import InputRefused, MismatchError, ModelError, quote
from onnx_serve.model_files.zip_maps import ZipMap
from onnx_serve.raw_data import from_raw, raw_size, to_raw
from onnx_serve.tensors import (
    Array,
    DataType,
    Feed,
    Kind,
    MapTable,
    Signature,
    TensorSpec,
    Value,
    Values,
    ValueType,
)

__all__ = ["Call", "make_call"]


class Call(Protocol):
    """A run of a session."""

    def __call__(self, feed: Feed, options: Any = None, /) -> Values:
        """From a feed to the outputs by name, with an ``onnxruntime.RunOptions`` or None."""


def make_call(
    session: Any,
    declared: Signature,
    ort_value: Any,
    *,
    zip_maps: Mapping[str, ZipMap] | None = None,
    io_binding: bool = False,
) -> Call:
    """From a feed to the outputs by name, converted as little as the model's types need.

    Args:
        session: An ``onnxruntime.InferenceSession``.
        declared: Its inputs and the outputs wanted.
        ort_value: The class ``onnxruntime.OrtValue``.
        zip_maps: By output, what the session is without: it gives the tensors instead.
        io_binding: Whether to bind inputs and outputs to the device of the session's first provider, where all of
            them are tensors of numbers that NumPy has; other models run as without.

    Returns:
        A thread-safe function. It raises what onnxruntime does, and ``InputRefused`` in place of a ZipMap.

    Raises:
        ModelError: Python cannot feed or get a value of the model.
    """
    names = [spec.name for spec in declared.outputs]
    left_out = {name: zip_map for name, zip_map in (zip_maps or {}).items() if name in names}
    if left_out:
        tensors = replace(declared, outputs=tuple(_unzipped(declared, left_out)))
        unzipped = make_call(session, tensors, ort_value, io_binding=io_binding)
        return _zipping_call(unzipped, names, left_out)
    inputs = {spec.name: _type_of(spec, "input") for spec in (*declared.inputs, *declared.defaults)}
    outputs = {spec.name: _type_of(spec, "output") for spec in declared.outputs}
    for name, value_type in inputs.items():
        _check_input(name, value_type)
    for name, value_type in outputs.items():
        if value_type.kind is not Kind.TENSOR and not value_type.dtype.is_native:
            raise ModelError(
                f'output "{name}": Python cannot get {value_type.kind.value} of {value_type.dtype.name}'
            )
    if io_binding and all(map(_is_bindable, (*inputs.values(), *outputs.values()))):
        return _bound_call(session, names, ort_value)
    foreign = {
        name: value_type.dtype for name, value_type in inputs.items() if not value_type.dtype.is_native
    }
    run = _plain_call(session, names)
    if any(not value_type.dtype.is_native for value_type in outputs.values()):
        _check_all_are_tensors(inputs)
        run = _value_call(session, outputs, ort_value)
    maps = {name: value_type for name, value_type in outputs.items() if value_type.kind.has_maps}
    if not foreign and not maps:
        return run

    def call(feed: Feed, options: Any = None) -> Values:
        for name, dtype in foreign.items():
            if feed.get(name) is not None:
                feed = {**feed, name: _to_ort(feed[name], dtype, ort_value)}
        values = run(feed, options)
        for name, value_type in maps.items():
            values[name] = _maps(values[name], value_type)
        return values

    return call


def _unzipped(declared: Signature, zip_maps: Mapping[str, ZipMap]) -> list[TensorSpec]:
    """The outputs, each once, with the tensors that maps are made of in place of the maps."""
    specs = {
        zip_maps[spec.name].source: TensorSpec(zip_maps[spec.name].source, "tensor(float)", ())
        for spec in declared.outputs
        if spec.name in zip_maps
    }
    return list(
        (specs | {spec.name: spec for spec in declared.outputs if spec.name not in zip_maps}).values()
    )


def _zipping_call(call: Call, names: list[str], zip_maps: Mapping[str, ZipMap]) -> Call:
    """A call whose outputs are maps where the session's are tensors."""
    tables = {name: _table_maker(zip_map) for name, zip_map in zip_maps.items()}

    def zipping_call(feed: Feed, options: Any = None) -> Values:
        values = call(feed, options)
        return {
            name: tables[name](values[zip_maps[name].source]) if name in tables else values[name]
            for name in names
        }

    return zipping_call


def _table_maker(zip_map: ZipMap) -> Callable[[Any], MapTable]:
    """From a tensor to the table of its maps, whose keys are sorted like those of C++'s ``std::map``."""
    order = sorted(range(len(zip_map.labels)), key=zip_map.labels.__getitem__)
    keys = tuple(zip_map.labels[column] for column in order)
    is_sorted = order == list(range(len(order)))

    def make(tensor: Array) -> MapTable:
        values = tensor if tensor.ndim > 1 else tensor[None]
        if values.shape[1:] != (len(keys),):
            raise InputRefused(
                f"the model cannot run this input: ZipMap of output {quote(zip_map.output)}: expected {len(keys)} columns, one for each label, "
                f"got the shape {list(tensor.shape)}"
            )
        return MapTable(keys, values if is_sorted else values[:, order])

    return make


def _type_of(spec: TensorSpec, what: str) -> ValueType:
    try:
        return spec.value_type
    except MismatchError as ex:
        raise ModelError(f"{what} {ex}") from None


def _check_input(name: str, value_type: ValueType) -> None:
    """Python's dictionaries become maps to FLOAT, and lists sequences of tensors only (pybind_mlvalue.cc)."""
    kind, dtype = value_type.kind, value_type.dtype
    if (
        kind is Kind.MAPS
        or (kind is Kind.MAP and dtype is not DataType.FLOAT)
        or (kind is Kind.TENSORS and not dtype.is_native)
    ):
        raise ModelError(f'input "{name}": Python cannot feed {kind.value} of {dtype.name} to onnxruntime')


def _check_all_are_tensors(inputs: dict[str, ValueType]) -> None:
    for name, value_type in inputs.items():
        if value_type.kind is not Kind.TENSOR or value_type.optional or value_type.dtype is DataType.STRING:
            raise ModelError(
                f'input "{name}": Python cannot feed {value_type.kind.value} of {value_type.dtype.name} to a model '
                "with an output of a type that NumPy has not"
            )


def _plain_call(session: Any, names: list[str]) -> Call:
    def call(feed: Feed, options: Any = None) -> Values:
        return dict(zip(names, session.run(names, feed, options), strict=True))

    return call


def _is_bindable(value_type: ValueType) -> bool:
    """Whether values of a type lie in memory as NumPy has them, so that any device can take them."""
    return (
        value_type.kind is Kind.TENSOR
        and not value_type.optional
        and value_type.dtype.is_native
        and value_type.dtype is not DataType.STRING
    )


def _bound_call(session: Any, names: list[str], ort_value: Any) -> Call:
    """A call whose inputs are on the session's device before the run, and whose outputs are fetched after it.

    Page-locked host memory is not to be had: Python's ``OrtDevice`` knows the default memory of CUDA only (1.32).
    """
    device, number = _device_of(session)

    def call(feed: Feed, options: Any = None) -> Values:
        binding = session.io_binding()
        for name, value in feed.items():
            # ascontiguousarray makes one dimension of none.
            array = np.ascontiguousarray(value).reshape(np.shape(value))
            binding.bind_ortvalue_input(name, ort_value.ortvalue_from_numpy(array, device, number))
        for name in names:
            # The shape is left to the run.
            binding.bind_output(name, device, number)
        session.run_with_iobinding(binding, options)
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))

    return call


def _device_of(session: Any) -> tuple[str, int]:
    """Where the session's first provider computes, in the words of ``OrtValue`` and ``IOBinding``."""
    first = session.get_providers()[0]
    if first != CUDA:
        return "cpu", 0
    return "cuda", int(session.get_provider_options()[first].get("device_id", 0))


def _value_call(session: Any, outputs: dict[str, ValueType], ort_value: Any) -> Call:
    """A call for outputs some of which have a type that NumPy has not."""
    tensors = [name for name, value_type in outputs.items() if value_type.kind is Kind.TENSOR]
    others = [name for name in outputs if name not in tensors]

    def call(feed: Feed, options: Any = None) -> Values:
        given = {
            name: ort_value.ortvalue_from_numpy(np.ascontiguousarray(value).reshape(value.shape))
            if isinstance(value, np.ndarray)
            else value
            for name, value in feed.items()
        }
        results = session.run_with_ort_values(tensors, given, options)
        values = {
            name: _from_ort(value, outputs[name].dtype) for name, value in zip(tensors, results, strict=True)
        }
        if others:
            # Sequences and maps cannot be read from an OrtValue: they take a run of their own.
            values.update(zip(others, session.run(others, feed, options), strict=True))
        return {name: values[name] for name in outputs}

    return call


def _to_ort(array: Array, dtype: DataType, ort_value: Any) -> Any:
    """An ``OrtValue`` of the array's bits, which it shares."""
    raw = to_raw(array, dtype)
    carrier = np.dtype(np.uint16) if dtype is DataType.BFLOAT16 else np.dtype(np.uint8)
    if dtype.bits < 8:  # noqa: PLR2004  a byte
        # onnxruntime takes the shape from the array, but reads several elements from each of its first bytes.
        roomy = np.zeros(array.size, np.uint8)
        roomy[: len(raw)] = raw
        raw = roomy
    return ort_value.ortvalue_from_numpy_with_onnx_type(raw.view(carrier).reshape(array.shape), dtype.onnx)


def _from_ort(value: Any, dtype: DataType) -> Any:
    """An array of its own; None for an optional without value."""
    if not value.has_value():
        return None
    if dtype.is_native:
        return value.numpy()
    # What no device was chosen for comes on the CPU; another one's memory cannot be read from here.
    if value.device_name() != "cpu":
        raise RuntimeError(f"an output came on the device {value.device_name()}")
    shape = value.shape()
    size = raw_size(int(np.prod(shape, dtype=np.int64)), dtype)
    # Read where it lies while the value is alive: of these types, from_raw always makes an array of its own.
    memory: Any = (ctypes.c_uint8 * size).from_address(value.data_ptr()) if size else b""
    raw = np.frombuffer(memory, np.uint8)
    return from_raw(raw, dtype, shape)


def _maps(value: Any, value_type: ValueType) -> Value:
    """Maps with values in their own type, where onnxruntime gives Python's; one column a key where that fits."""
    if value is None:
        return None
    if value_type.kind is Kind.MAP:
        return _typed(value, value_type.dtype)
    return _table(value, value_type.dtype)


def _table(maps: list[dict[Any, Any]], dtype: DataType) -> Value:
    """One column a key, if all maps have the same keys, as those of ZipMap do."""
    if not maps:
        return MapTable((), np.empty((0, 0), dtype.numpy))
    keys = tuple(maps[0])
    if any(entry.keys() != maps[0].keys() for entry in maps):
        return [_typed(entry, dtype) for entry in maps]
    # By key: maps with equal keys may hold them in another order.
    cells = chain.from_iterable(map(entry.__getitem__, keys) for entry in maps)
    values = np.fromiter(cells, dtype.numpy, len(maps) * len(keys))
    return MapTable(keys, values.reshape(len(maps), len(keys)))


def _typed(entry: dict[Any, Any], dtype: DataType) -> dict[Any, Any]:
    cells = np.empty(len(entry), dtype.numpy)
    cells[:] = list(entry.values())
    return dict(zip(entry, cells, strict=True))
