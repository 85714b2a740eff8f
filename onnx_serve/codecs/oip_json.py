"""The Open Inference Protocol's JSON: inference requests and responses.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
import simdjson

from onnx_serve.codecs.interface import CodecOptions, Document, Layout
from onnx_serve.codecs.json_nested import check_shape, read_value, reshape
from onnx_serve.codecs.json_numbers import numbers
from onnx_serve.codecs.json_syntax import check_keys, describe, is_text
from onnx_serve.codecs.json_text import text
from onnx_serve.codecs.json_values import Field, Irregular
from onnx_serve.errors import DecodeError, EncodeError, quote
from onnx_serve.tensors import (
    DataType,
    Feed,
    Kind,
    Signature,
    TensorSpec,
    Value,
    Values,
    ValueType,
    conform,
)

__all__ = ["declared", "read_plain", "read_request", "requested", "response_text"]

Array: TypeAlias = npt.NDArray[Any]

_REQUEST_KEYS = {"inputs", "id", "parameters", "outputs"}
_TENSOR_KEYS = {"name", "shape", "datatype", "data"}
_PLAIN_TENSORS = (sorted(_TENSOR_KEYS), sorted({*_TENSOR_KEYS, "parameters"}))
_OUTPUTS_SHOWN = 300


def read_request(request: dict[str, Any], signature: Signature) -> Document:
    """An inference request.

    Args:
        request: It, parsed; ``inputs`` is a list.
        signature: The model's.

    Raises:
        DecodeError: It is none, or asks for outputs that the model does not have.
        MismatchError: It has no rows, so that no block comes to ``conform``, and this finds what does not fit.
    """
    check_keys(request, _REQUEST_KEYS, "in the request")
    request_id = request.get("id")
    if not (request_id is None or (isinstance(request_id, str) and is_text(request_id))):
        raise DecodeError(f'"id": expected a string, got {describe(request_id)}')
    values: Feed = {}
    others = {spec.name: spec.value_type for spec in signature.inputs if not spec.is_tensor}
    for entry in request["inputs"]:
        name, value = _value(entry, others)
        if name in values:
            raise DecodeError(f"expected each input once, got {quote(name)} again")
        values[name] = value
    return _document(values, request_id, _output_names(request.get("outputs"), signature), signature)


def _document(
    values: Feed, request_id: str | None, outputs: tuple[str, ...], signature: Signature
) -> Document:
    with_rows = [values[spec.name] for spec in signature.inputs if spec.name in values]
    if signature.has_rows and not any(array.shape[:1] != (0,) for array in with_rows):
        # No block will come to the judge.
        conform(values, signature)
        return Document((), Layout.OIP, request_id, outputs)
    return Document((values,), Layout.OIP, request_id, outputs)


def _output_names(entries: Any, signature: Signature) -> tuple[str, ...]:
    """The names in ``outputs``; null and an empty list, as some clients send them, ask for all."""
    if entries is None:
        return ()
    if not isinstance(entries, list):
        raise DecodeError(f'"outputs": expected a list, got {describe(entries)}')
    known = {spec.name for spec in signature.outputs}
    names: dict[str, None] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise DecodeError(f'"outputs": expected an object with "name", got {describe(entry)}')
        check_keys(entry, {"name", "parameters"}, 'in an object of "outputs"')
        name = entry["name"]
        if name not in known:
            outputs = ", ".join(f'"{spec.name}" {spec}' for spec in signature.outputs)
            shown = outputs if len(outputs) <= _OUTPUTS_SHOWN else f"{outputs[:_OUTPUTS_SHOWN]}..."
            raise DecodeError(f'"outputs": expected names of the outputs {shown}, got {quote(name)}')
        if name in names:
            raise DecodeError(f"expected each output once, got {quote(name)} again")
        names[name] = None
    return tuple(names)


def _value(entry: Any, others: dict[str, ValueType]) -> tuple[str, Any]:
    """An input's name and value; ``others`` are the types of the inputs that are no tensors."""
    name = entry.get("name") if isinstance(entry, dict) else None
    value_type = others.get(name) if isinstance(name, str) else None
    if not isinstance(name, str) or value_type is None:
        return _tensor(entry)
    check_keys(entry, {*_TENSOR_KEYS, "parameters"}, 'in an object of "inputs"')
    if "data" not in entry:
        raise DecodeError(f'input {quote(name)}: expected "data", {value_type.kind.value}')
    if entry.get("datatype", value_type.dtype.oip) != value_type.dtype.oip:
        raise DecodeError(
            f"input {quote(name)}: expected the datatype {value_type.dtype.oip}, got {describe(entry['datatype'])}"
        )
    data = entry["data"]
    if data is not None and value_type.kind is Kind.TENSOR and "shape" in entry:
        field = Field(name, value_type.dtype, check_shape(entry["shape"], name), None)
        return name, reshape(data, field)
    return name, read_value(data, value_type, name)


def _tensor(entry: Any) -> tuple[str, Array]:
    if not isinstance(entry, dict) or not entry.keys() >= _TENSOR_KEYS:
        raise DecodeError(
            f'"inputs": expected an object with "name", "shape", "datatype" and "data", got {describe(entry)}'
        )
    check_keys(entry, {*_TENSOR_KEYS, "parameters"}, 'in an object of "inputs"')
    field = declared(entry["name"], entry["shape"], entry["datatype"])
    return field.name, reshape(entry["data"], field)


def declared(name: Any, shape: Any, datatype: Any) -> Field:
    """What a tensor's entry says of it: its name, shape and type.

    Raises:
        DecodeError: One of them cannot be that.
    """
    if not isinstance(name, str):
        raise DecodeError(f'"name": expected a string, got {describe(name)}')
    sizes = check_shape(shape, name)
    dtype = DataType.of_oip(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        known = ", ".join(member.oip for member in DataType)
        raise DecodeError(f"input {quote(name)}: expected a datatype of {known}, got {describe(datatype)}")
    return Field(name, dtype, sizes, None)


def read_plain(parsed: Any, body: bytes, signature: Signature) -> Document:
    """An inference request with flat numeric data, straight from simdjson.

    Args:
        parsed: A ``simdjson.Object`` whose ``inputs`` is an array of objects.
        body: The text that it is of.
        signature: The model's.

    Raises:
        Irregular, DecodeError, MismatchError, ValueError, TypeError, LookupError: It is not that plain;
            ``read_request`` decides what that means.
    """
    keys = list(parsed)
    if len(set(keys)) != len(keys) or not _REQUEST_KEYS.issuperset(keys):
        raise Irregular
    request_id = parsed["id"] if "id" in keys else None
    wanted = parsed["outputs"] if "outputs" in keys else None
    if not isinstance(request_id, str | None) or not isinstance(wanted, simdjson.Array | None):
        raise Irregular
    entries = list(parsed["inputs"])
    # The list of inputs, a shape and flat data for each, that of outputs: no other list may be there, not in
    # the parameters either, of which none is read.
    if body.count(b"[") != 1 + 2 * len(entries) + (wanted is not None):
        raise Irregular
    tensors: Feed = {}
    others = {spec.name for spec in signature.inputs if not spec.is_tensor}
    for entry in entries:
        if sorted(entry) not in _PLAIN_TENSORS or entry["name"] in tensors or entry["name"] in others:
            raise Irregular
        shape, data = entry["shape"], entry["data"]
        if not isinstance(shape, simdjson.Array) or not isinstance(data, simdjson.Array):
            raise Irregular
        field = declared(entry["name"], shape.as_list(), entry["datatype"])
        tensors[field.name] = numbers(data, field.dtype).reshape(shape.as_list())
    names = _output_names(None if wanted is None else wanted.as_list(), signature)
    return _document(tensors, request_id, names, signature)


def requested(signature: Signature, names: tuple[str, ...]) -> Signature:
    """The signature with the outputs of these names only, in their order; with all of them for no name.

    Args:
        signature: The model's.
        names: Of outputs of the model, as ``Document.outputs`` has them.
    """
    if not names:
        return signature
    by_name = {spec.name: spec for spec in signature.outputs}
    return replace(signature, outputs=tuple(by_name[name] for name in names))


def response_text(
    outputs: Values, request_id: str | None, signature: Signature, options: CodecOptions
) -> bytes:
    """An inference response; sequences, maps and optionals have their ONNX type beside them.

    Args:
        outputs: By name, at least those of the signature.
        request_id: The request's ``id``, or None when it has none.
        signature: Its outputs are the response's, in its order.
        options: For the model's name, and numbers that are not finite.

    Raises:
        EncodeError: An output has no form in JSON.
    """
    head = b'{"model_name":' + orjson.dumps(options.model_name)
    if request_id is not None:
        head += b',"id":' + orjson.dumps(request_id)
    entries = (_output(outputs[spec.name], spec, options) for spec in signature.outputs)
    return head + b',"outputs":[' + b",".join(entries) + b"]}"


def _output(value: Value, spec: TensorSpec, options: CodecOptions) -> bytes:
    """One output tensor, or a sequence, map or optional with its ONNX type beside it."""
    entry: dict[str, Any] = {"name": spec.name}
    data: Any = value
    if isinstance(value, np.ndarray):
        entry["datatype"] = _datatype(value, spec)
        entry["shape"] = list(value.shape)
        data = value.reshape(-1)
    else:
        entry["datatype"] = spec.dtype.oip
        entry["shape"] = [0 if value is None else len(value)]
    if not spec.is_tensor:
        entry["parameters"] = {"onnx_type": spec.onnx_type}
        if isinstance(value, list):
            data = [_item(item) for item in value]
    return orjson.dumps(entry)[:-1] + b',"data":' + text(data, options) + b"}"


def _item(item: Any) -> Any:
    if isinstance(item, np.ndarray):
        return {"shape": list(item.shape), "data": item.reshape(-1)}
    return item


def _datatype(array: Array, spec: TensorSpec) -> str:
    dtype = spec.dtype if array.dtype == spec.dtype.numpy else DataType.of_array(array)
    if dtype is None:
        raise EncodeError(f"an output has elements of type {array.dtype}, which has no form in JSON")
    return dtype.oip
