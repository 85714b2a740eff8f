"""Which inputs of a model say nothing of their shape.

onnxruntime's Python interface gives ``[]`` as the shape of an input that is a scalar, and of one whose shape is
not declared; only the file tells them apart. Its type then has no field ``shape``:
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto (``TypeProto.Tensor``)
"""

import mmap
from pathlib import Path

from onnx_serve.protobuf_wire import LEN, ONCE, Buffer, MalformedError, Message, wanted_fields

__all__ = ["undeclared"]

_MODEL: Message = {7: ("graph", ONCE)}
_GRAPH: Message = {11: ("input", LEN)}
_VALUE_INFO: Message = {1: ("name", ONCE), 2: ("type", ONCE)}
_TYPE: Message = {1: ("tensor", ONCE)}
_TENSOR: Message = {2: ("shape", ONCE)}


def undeclared(path: Path) -> frozenset[str] | None:
    """Names of the graph's inputs that are tensors of undeclared shape; None when the file cannot say.

    Args:
        path: A model file that onnxruntime has loaded. One in onnxruntime's own format says nothing.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return frozenset(_names(data))
        except MalformedError:
            return None


def _names(data: Buffer) -> list[str]:
    names = []
    for _, graph, graph_end in wanted_fields(data, 0, len(data), _MODEL):
        for _, start, stop in wanted_fields(data, graph, graph_end, _GRAPH):
            fields = {name: (at, end) for name, at, end in wanted_fields(data, start, stop, _VALUE_INFO)}
            if {"name", "type"} <= fields.keys() and _has_no_shape(data, *fields["type"]):
                names.append(data[slice(*fields["name"])].decode("utf-8", "replace"))
    return names


def _has_no_shape(data: Buffer, start: int, stop: int) -> bool:
    for _, tensor, end in wanted_fields(data, start, stop, _TYPE):
        return not any(True for _ in wanted_fields(data, tensor, end, _TENSOR))
    return False
