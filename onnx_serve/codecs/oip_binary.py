"""The Open Inference Protocol's binary tensor data extension: JSON first, then the tensors' bytes.

A message is a JSON header and, behind it, the raw bytes of the tensors that say ``binary_data_size``, in the
header's order: little-endian, row-major, without padding; BYTES elements each behind their length as uint32.
How long the header is stands outside the message, in ``Inference-Header-Content-Length`` or in the parameter
``json-header-size`` of a media type. A message without binary tensors is plain JSON, which ``oip_json`` knows.

https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import numpy as np
import orjson
import simdjson

from onnx_serve.codecs import octet_stream, oip_json
from onnx_serve.codecs.interface import CodecOptions
from onnx_serve.codecs.json_syntax import describe, parse
from onnx_serve.codecs.json_values import Field, Irregular
from onnx_serve.errors import DecodeError, EncodeError, MismatchError, quote
from onnx_serve.raw_data import from_raw, raw_size, to_raw
from onnx_serve.tensors import Array, DataType, Feed, RowAxis, Signature, TensorSpec, Values

__all__ = ["MEDIA_TYPE", "InferRequest", "read_request", "write_response"]

# https://docs.aws.amazon.com/sagemaker/latest/dg/deploy-models-frameworks-triton.html
MEDIA_TYPE = "application/vnd.sagemaker-triton.binary+json"

_BINARY_KEYS = {"name", "shape", "datatype", "parameters"}
_LENGTH_BYTES = 4
_SHOWN = 100

# In the names of parameters that decide how tensors are read or written.
_DECISIVE = (b"binary_data", b"shared_memory", b"classification")


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One inference request.

    Attributes:
        tensors: Values by input name; those that came as bytes are not copied where their bytes are aligned.
        request_id: The request's ``id``, echoed in the response.
        outputs: Names of the outputs to answer, in order; empty for all.
        binary: Outputs to be answered as raw bytes, where they are tensors.
    """

    tensors: Feed
    request_id: str | None
    outputs: tuple[str, ...]
    binary: frozenset[str]


def read_request(body: bytes, header_length: int | None, signature: Signature) -> InferRequest:
    """An inference request with or without binary tensors.

    Args:
        body: The whole message.
        header_length: Bytes of its JSON header; None when all of it is JSON; 0 when all of it is the data of
            the model's only input.
        signature: The model's.

    Raises:
        DecodeError: It is no such request.
        MismatchError: A raw body is not what the model takes.
    """
    if header_length is None:
        if not body:
            raise DecodeError("expected a JSON document, got an empty body")
        header_length = len(body)
    elif header_length == 0:
        return _raw_request(body, signature)
    if not 0 < header_length <= len(body):
        raise DecodeError(f"expected a JSON header of {header_length} bytes, got a body of {len(body)}")
    header = body[:header_length]
    if header_length == len(body) and not _asks_for_more(header) and (plain := _plain(header, signature)):
        return plain
    request = parse(header)
    if not isinstance(request, dict) or not isinstance(request.get("inputs"), list):
        raise DecodeError(f'expected an object with a list of "inputs", got {describe(request)}')
    entries = request["inputs"]
    for entry in entries:
        _refuse_shared_memory(_parameters(entry, "inputs"))
    # Read as of a model without rows, whose tensors are not judged before the binary ones are there.
    rowless = replace(signature, row_axis=RowAxis.NONE)
    written = [entry for entry in entries if not _is_binary(entry)]
    document = oip_json.read_request({**request, "inputs": written}, rowless)
    [tensors] = document.blocks
    tensors = dict(tensors)
    for name, array in _binary_tensors(filter(_is_binary, entries), body, header_length, signature):
        if name in tensors:
            raise DecodeError(f"expected each input once, got {quote(name)} again")
        tensors[name] = array
    binary = _binary_outputs(request, signature)
    return InferRequest(tensors, document.request_id, document.outputs, binary)


def write_response(
    outputs: Values,
    request: InferRequest,
    signature: Signature,
    options: CodecOptions,
    sink: BinaryIO,
    version: str | None = None,
) -> int | None:
    """Writes an inference response.

    Sequences, maps and optionals, which have no raw form, are answered in JSON whatever was asked for.

    Args:
        outputs: By name, at least those that the request wants.
        request: Says which outputs are wanted, and which of them as bytes.
        signature: The model's.
        options: For the model's name, and numbers that are not finite.
        sink: Written to from its present position on.
        version: The model's, or None to leave it out.

    Returns:
        Bytes of the JSON header, or None when all that was written is JSON.

    Raises:
        EncodeError: An output has no form in the answer.
    """
    wanted = oip_json.requested(signature, request.outputs)
    frame = oip_json.response_text({}, request.request_id, replace(wanted, outputs=()), options)
    head = frame.removesuffix(b"]}")
    entries: list[bytes] = []
    pieces: list[memoryview] = []
    for spec in wanted.outputs:
        value = outputs[spec.name]
        if spec.name in request.binary and spec.is_tensor and isinstance(value, np.ndarray):
            pieces.append(_raw(value, spec.dtype))
            entries.append(_binary_entry(spec, value, pieces[-1].nbytes))
        else:
            single = oip_json.response_text(
                outputs, request.request_id, replace(wanted, outputs=(spec,)), options
            )
            entries.append(single[len(head) : -len(b"]}")])
    if version is not None:
        head = b'{"model_version":' + orjson.dumps(version) + b"," + head.removeprefix(b"{")
    header = head + b",".join(entries) + b"]}"
    sink.write(header)
    sink.writelines(pieces)
    return len(header) if pieces else None


def _asks_for_more(header: bytes) -> bool:
    """Whether there may be parameters that decide how tensors are read or written.

    A backslash may spell any of their names.
    """
    if b"\\" in header:
        return True
    return b"parameters" in header and any(word in header for word in _DECISIVE)


def _plain(data: bytes, signature: Signature) -> InferRequest | None:
    """A request of plain numbers in JSON, straight from simdjson; None leaves it to the exact way."""
    try:
        # A parser of its own: one that is shared is neither thread-safe nor free while its arrays live.
        parsed: Any = simdjson.Parser().parse(data)
        document = oip_json.read_plain(parsed, data, replace(signature, row_axis=RowAxis.NONE))
    except (Irregular, DecodeError, MismatchError, ValueError, TypeError, RuntimeError, LookupError):
        return None
    [tensors] = document.blocks
    return InferRequest(tensors, document.request_id, document.outputs, frozenset())


def _parameters(entry: Any, place: str) -> dict[str, Any]:
    """The ``parameters`` of an entry; of what is no entry, none, for ``oip_json`` to say what is wrong."""
    found = entry.get("parameters") if isinstance(entry, dict) else None
    if not isinstance(found, dict | None):
        raise DecodeError(f'"{place}": expected an object of "parameters", got {describe(found)}')
    return found or {}


def _is_binary(entry: Any) -> bool:
    return "binary_data_size" in _parameters(entry, "inputs")


def _refuse_shared_memory(parameters: dict[str, Any]) -> None:
    if "shared_memory_region" in parameters:
        raise DecodeError("shared memory is not supported: send the tensor's data")


def _binary_tensors(
    entries: Iterator[dict[str, Any]], body: bytes, start: int, signature: Signature
) -> Iterator[tuple[str, Array]]:
    """The tensors whose bytes stand behind the header, one after the other."""
    for entry in entries:
        spec = _declared(entry)
        if spec.dtype is DataType.STRING:
            _check_is_text(spec.name, signature)
        size = entry["parameters"]["binary_data_size"]
        if type(size) is not int or size < 0:
            raise DecodeError(
                f"input {quote(spec.name)}: expected a binary_data_size, a number of bytes, got {describe(size)}"
            )
        if size > len(body) - start:
            raise DecodeError(
                f"input {quote(spec.name)}: expected {size} bytes of data, got {len(body) - start}"
            )
        yield spec.name, _array(memoryview(body)[start : start + size], spec)
        start += size
    if start != len(body):
        raise DecodeError(f"expected nothing behind the tensors' data, got {len(body) - start} bytes")


def _check_is_text(name: str, signature: Signature) -> None:
    """Refuses BYTES for another input: as strings they would take many times their bytes, only to be refused."""
    specs = {spec.name: spec for spec in (*signature.inputs, *signature.defaults)}
    if name not in specs:
        raise MismatchError(f"expected the inputs {signature.describe_inputs()}: unknown {quote(name)}")
    if specs[name].dtype is not DataType.STRING:
        raise MismatchError(f"input {quote(name)}: expected {specs[name]}, got BYTES")


def _declared(entry: dict[str, Any]) -> Field:
    if missing := [key for key in ("name", "shape", "datatype") if key not in entry]:
        raise DecodeError(f'"inputs": expected an object with "{missing[0]}", got {describe(entry)}')
    if unknown := [key for key in entry if key not in _BINARY_KEYS]:
        raise DecodeError(f"unknown key {quote(unknown[0])} beside binary_data_size")
    return oip_json.declared(entry["name"], entry["shape"], entry["datatype"])


def _array(data: memoryview, spec: Field) -> Array:
    """A tensor's bytes as an array; a copy only where the bytes are not aligned for their type."""
    shape = [size for size in spec.shape if isinstance(size, int)]
    count = math.prod(shape)
    if spec.dtype is DataType.STRING:
        return _strings(data, spec.name, count).reshape(shape)
    size = raw_size(count, spec.dtype)
    if len(data) != size:
        raise DecodeError(
            f"input {quote(spec.name)}: expected {size} bytes for {_short(spec)}, got {len(data)}"
        )
    raw = np.frombuffer(data, np.uint8) if size else np.empty(0, np.uint8)
    if spec.dtype is DataType.BOOL and size and raw.max() > 1:
        raise DecodeError(f"input {quote(spec.name)}: expected bytes of 0 and 1 for BOOL, got another one")
    try:
        array = from_raw(raw, spec.dtype, shape)
    except ValueError:
        raise DecodeError(f"input {quote(spec.name)}: the shape {_short(spec)} is too large") from None
    return array if array.flags.aligned else array.copy()


def _short(spec: Field) -> str:
    text = str(spec)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _strings(data: memoryview, name: str, count: int) -> Array:
    """BYTES elements, each behind its length, as ``str``."""
    if count * _LENGTH_BYTES > len(data):
        raise DecodeError(f"input {quote(name)}: expected {count} BYTES elements, got {len(data)} bytes")
    texts = []
    start = 0
    for index in range(count):
        end = start + _LENGTH_BYTES
        stop = end + int.from_bytes(data[start:end], "little")
        if stop > len(data):
            raise DecodeError(f"input {quote(name)}: the data end within the BYTES element {index}")
        try:
            texts.append(str(data[end:stop], "utf-8"))
        except UnicodeDecodeError:
            raise DecodeError(f"input {quote(name)}: the BYTES element {index} is no UTF-8") from None
        start = stop
    if start != len(data):
        raise DecodeError(
            f"input {quote(name)}: expected {count} BYTES elements, got {len(data) - start} bytes more"
        )
    array = np.empty(count, object)
    array[:] = texts
    return array


def _raw_request(body: bytes, signature: Signature) -> InferRequest:
    """A body without a header: the data of the only input, whose shape its size tells.

    The extension calls it a raw binary request; its answer is binary.
    """
    if len(signature.inputs) != 1:
        raise MismatchError(f"a raw body needs a model of one input, got {signature.describe_inputs()}")
    [spec] = signature.inputs
    if not spec.is_tensor:
        raise MismatchError(f'a raw body needs a tensor as input, got "{spec.name}" {spec}')
    binary = frozenset(output.name for output in signature.outputs)
    if spec.dtype is DataType.STRING:
        shape = [size if isinstance(size, int) else 1 for size in spec.shape]
        if math.prod(shape) != 1:
            raise MismatchError(f'a raw body needs an input of one element, got "{spec.name}" {spec}')
    else:
        shape = octet_stream.shape_of(spec, signature, len(body))
    tensor = _array(memoryview(body), Field(spec.name, spec.dtype, tuple(shape), None))
    return InferRequest({spec.name: tensor}, None, (), binary)


def _binary_outputs(request: dict[str, Any], signature: Signature) -> frozenset[str]:
    """The outputs to be answered as bytes: by their own wish, else by the request's."""
    every = _flag(_parameters(request, "request"), "binary_data_output", default=False)
    # oip_json has found the entries in order.
    entries = request.get("outputs") or [{"name": spec.name} for spec in signature.outputs]
    binary = set()
    for entry in entries:
        parameters = _parameters(entry, "outputs")
        _refuse_shared_memory(parameters)
        if "classification" in parameters:
            raise DecodeError(f"output {quote(entry['name'])}: classification is not supported")
        if _flag(parameters, "binary_data", default=every):
            binary.add(entry["name"])
    return frozenset(binary)


def _flag(parameters: dict[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise DecodeError(f"{name}: expected true or false, got {describe(value)}")
    return value


def _binary_entry(spec: TensorSpec, value: Array, size: int) -> bytes:
    entry: dict[str, Any] = {"name": spec.name, "datatype": spec.dtype.oip, "shape": value.shape}
    return orjson.dumps({**entry, "parameters": {"binary_data_size": size}})


def _raw(value: Array, dtype: DataType) -> memoryview:
    """An array's elements in the protocol's order and byte order."""
    if dtype is DataType.STRING:
        return memoryview(_raw_strings(value))
    return to_raw(value, dtype).data


def _raw_strings(value: Array) -> bytearray:
    data = bytearray()
    try:
        for item in value.flat:
            raw = item.encode()
            data += len(raw).to_bytes(_LENGTH_BYTES, "little") + raw
    except UnicodeEncodeError:
        raise EncodeError("an output has a string with no form in UTF-8") from None
    return data
