"""Weights in a file of their own beside the graph, and back into it.

A protobuf message holds at most 2 GiB (https://protobuf.dev/programming-guides/proto-limits/#total), so larger
models keep their weights in files of external data: https://onnx.ai/onnx/repo-docs/ExternalData.html.
onnxruntime maps such a file into memory, and holds weights inside the graph twice while it loads.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import onnx
from onnx.external_data_helper import uses_external_data

from converters.errors import ConversionError
from onnx_serve.errors import quote

__all__ = ["EXTERNAL_BYTES", "join_weights", "split_weights"]

# Weights of more bytes than that in all go beside the graph.
EXTERNAL_BYTES = 1 << 30

# Shapes, axes and conditions stay in the graph: onnxruntime needs their values before it opens other files.
_SMALL = 1024
_LOCATION = "model.onnx.data"
_MAX_MESSAGE = (1 << 31) - 1
# Of a tensor's place in the message, beside its data.
_OVERHEAD = 64


def split_weights(
    model: onnx.ModelProto, folder: Path, limit: int = EXTERNAL_BYTES
) -> tuple[onnx.ModelProto, dict[str, Path]]:
    """Moves the weights to a file of external data if they are larger than ``limit`` bytes; small ones stay.

    Args:
        model: With all weights inside; changed if they are moved.
        folder: Where the file is written; made if missing.
        limit: Bytes.

    Returns:
        The graph, and the file by its location relative to the model.
    """
    if sum(_tensor_bytes(tensor) for tensor in model.graph.initializer) <= limit:
        return model, {}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    onnx.save_model(
        model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=_LOCATION,
        size_threshold=_SMALL,
    )  # fmt: skip
    moved = onnx.load_model(path, load_external_data=False)
    return moved, {_LOCATION: folder / _LOCATION} if (folder / _LOCATION).exists() else {}


def join_weights(model: onnx.ModelProto, files: Mapping[str, Path]) -> onnx.ModelProto:
    """The graph with its weights inside; the model itself if they are.

    Args:
        model: Not changed.
        files: Of external data, by their location as the graph names it.

    Raises:
        ConversionError: They are too large for one message, or a file is missing or too short.
    """
    if not files:
        return model
    size = model.ByteSize() + sum(
        _length(tensor) + _OVERHEAD for tensor in _tensors(model) if uses_external_data(tensor)
    )
    if size > _MAX_MESSAGE:
        raise ConversionError(
            f"the model and its weights are {size} bytes, and tools that change graphs take them whole, as one "
            f"protobuf message of at most {_MAX_MESSAGE} bytes"
        )
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for tensor in _tensors(whole):
        if uses_external_data(tensor):
            tensor.raw_data = _read(tensor, files)
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
    return whole


def _read(tensor: onnx.TensorProto, files: Mapping[str, Path]) -> bytes:
    place = _place(tensor)
    location = place.get("location", "")
    path = files.get(location)
    if path is None:
        raise ConversionError(
            f"external data: the graph names {quote(location)}, which the conversion has not"
        )
    length = _length(tensor)
    with path.open("rb") as file:
        file.seek(int(place.get("offset", 0)))
        data = file.read(length)
    if len(data) != length:
        raise ConversionError(f"external data: {quote(location)} ends before {quote(tensor.name)} does")
    return data


def _length(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor that lies outside of the graph."""
    return int(_place(tensor).get("length", _element_bytes(tensor)))


def _place(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    return len(tensor.raw_data) or _element_bytes(tensor)


def _element_bytes(tensor: onnx.TensorProto) -> int:
    size: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(math.prod(tensor.dims)) * size


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a model that may be external: initializers and attributes, at any depth."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for inner in attribute.graphs:
                yield from _graph_tensors(inner)
