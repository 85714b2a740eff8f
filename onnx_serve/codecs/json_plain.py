"""Plain numeric JSON documents, read without Python values in between.

What is proven to be plain becomes the document that ``json.exact`` makes of it, only faster; all else is
left to that.
"""

import threading
from contextlib import nullcontext
from typing import Any, TypeAlias

import numpy.typing as npt
import simdjson

from onnx_serve.codecs import oip_json
from onnx_serve.codecs.interface import Document, Layout
from onnx_serve.codecs.json_numbers import regular
from onnx_serve.codecs.json_objects import read_objects
from onnx_serve.codecs.json_values import Irregular
from onnx_serve.codecs.records import Grammar
from onnx_serve.errors import DecodeError, MismatchError
from onnx_serve.tensors import Signature

__all__ = ["read_plain"]

Array: TypeAlias = npt.NDArray[Any]

# Threads would only take turns with the interpreter's lock, but hold all their trees meanwhile: large documents are read
# one after the other.
_LARGE_BYTES = 1 << 20
_turn = threading.Lock()


def read_plain(data: bytes, model: Grammar, signature: Signature) -> Document | None:
    """The only document of a plain numeric body, straight from simdjson, or None when it is not that plain.

    Never another document than ``json.exact`` gives: whatever is not proven is left to it.
    """
    only = model.only
    if not (only and only.dtype.numpy.kind in "fiu") and b'"datatype"' not in data:
        return None
    with _turn if len(data) >= _LARGE_BYTES else nullcontext():
        return _read(data, model, signature)


def _read(data: bytes, model: Grammar, signature: Signature) -> Document | None:
    only = model.only
    try:
        if only and (array := read_objects(data, model)) is not None:
            return _records(array, model)
        # A parser of its own: one that is shared is neither thread-safe nor free while its arrays live.
        parsed: Any = simdjson.Parser().parse(data)
        if isinstance(parsed, simdjson.Array):
            return _rows(parsed, data, model)
        keys = list(parsed)
        if keys == ["instances"] and "instances" not in model.names:
            return _rows(parsed["instances"], data, model)
        if "inputs" in keys and "inputs" not in model.names:
            return _inputs(parsed, keys, data, model, signature)
    except (Irregular, DecodeError, MismatchError, ValueError, TypeError, RuntimeError, LookupError):
        pass
    return None


def _rows(array: Any, data: bytes, model: Grammar) -> Document:
    field = model.only
    if field is None:
        raise Irregular
    tensor, lists = regular(array, field.shape, field.dtype)
    if data.count(b"[") != lists:
        raise Irregular
    return _records(tensor, model)


def _records(tensor: Array, model: Grammar) -> Document:
    """Records of the only input as one block of rows, or a block each for a model without rows."""
    name = model.fields[0].name
    if model.has_rows:
        return Document(({name: tensor},))
    return Document([{name: tensor[run : run + 1].reshape(tensor.shape[1:])} for run in range(len(tensor))])


def _inputs(parsed: Any, keys: list[str], data: bytes, model: Grammar, signature: Signature) -> Document:
    inputs: Any = parsed["inputs"]
    first: Any = inputs[0] if isinstance(inputs, simdjson.Array) else None
    if isinstance(first, simdjson.Object):
        return oip_json.read_plain(parsed, data, signature)
    field = model.only
    if field is None or keys != ["inputs"]:
        raise Irregular
    if isinstance(inputs, simdjson.Object):
        if list(inputs) != [field.name]:
            raise Irregular
        inputs = inputs[field.name]
    length, shape = (None, field.shape) if model.has_rows else (field.shape[0], field.shape[1:])
    tensor, lists = regular(inputs, shape, field.dtype)
    if data.count(b"[") != lists or (isinstance(length, int) and length != len(tensor)):
        raise Irregular
    return Document(({field.name: tensor},), Layout.COLUMNS)
