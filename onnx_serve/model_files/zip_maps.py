"""ZipMap left out of a model, whose answer is the tensor that ZipMap would have made maps of.

Classifiers from scikit-learn end in it by default (https://onnx.ai/onnx/operators/onnx_aionnxml_ZipMap.html).
onnxruntime makes a map for each row, and Python a dictionary under the interpreter's lock: 3.2 us a row of ten labels, where
the rest of a logistic regression takes 0.03 us (docs/measurements.md).

Messages and field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from onnx_serve.protobuf_wire import (
    LEN,
    NUMBERS,
    ONCE,
    MalformedError,
    Message,
    field_head,
    varint,
    wanted_fields,
)

__all__ = ["UnzippedModel", "ZipMap", "unzip"]

_GRAPH, _NODE, _OUTPUT = 7, 1, 12
_MODEL_FIELDS: Message = {_GRAPH: ("graph", ONCE)}
_GRAPH_FIELDS: Message = {_NODE: ("node", LEN), _OUTPUT: ("output", LEN)}
_VALUE_INFO_FIELDS: Message = {1: ("name", ONCE)}
_NODE_FIELDS: Message = {
    1: ("input", LEN),
    2: ("output", LEN),
    4: ("op_type", LEN),
    5: ("attribute", LEN),
    7: ("domain", LEN),
}
_ATTRIBUTE_FIELDS: Message = {1: ("name", ONCE), 8: ("ints", NUMBERS), 9: ("strings", LEN)}
_OPERATOR, _DOMAIN = b"ZipMap", b"ai.onnx.ml"
_LABELS = (b"classlabels_strings", b"classlabels_int64s")

_Span: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ZipMap:
    """One whose maps a model answers.

    Attributes:
        output: The model's output.
        source: The tensor that the maps are made of: FLOAT[N, K] or FLOAT[K].
        labels: One for each of the K columns, all different, all ``int`` or all ``str``.
    """

    output: str
    source: str
    labels: tuple[int | str, ...]

    @property
    def onnx_type(self) -> str:
        """The output's, in onnxruntime's words."""
        return f"seq(map({'string' if isinstance(self.labels[0], str) else 'int64'},tensor(float)))"


@dataclass(frozen=True, slots=True)
class UnzippedModel:
    """A model without the ZipMaps that end it.

    Attributes:
        data: Its bytes; every tensor that a ZipMap was made of is one of its outputs.
        outputs: What were the model's outputs, in order.
        zip_maps: What was left out, by output.
    """

    data: bytes
    outputs: tuple[str, ...]
    zip_maps: dict[str, ZipMap]


def unzip(path: Path) -> UnzippedModel | None:
    """The model without its last ZipMaps; None where there are none, or where onnxruntime is to say what is wrong.

    What else needs the maps is not looked for: onnxruntime does not load a model in which something is missing.

    Args:
        path: A model file; one that cannot be read or is no ONNX model has none.
    """
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            memoryview(data) as view,
        ):
            return _unzip(data, view)
    # ValueError: a name that is not UTF-8, or an empty file.
    except (MalformedError, OSError, ValueError):
        return None


def _unzip(data: mmap.mmap, view: memoryview) -> UnzippedModel | None:
    for _, start, stop in wanted_fields(data, 0, len(data), _MODEL_FIELDS):
        outputs: dict[str, _Span] = {}
        found: dict[str, ZipMap] = {}
        nodes: dict[str, _Span] = {}
        for field, at, end in wanted_fields(data, start, stop, _GRAPH_FIELDS):
            if field == "output":
                outputs[_name(data, at, end)] = _field(data, _OUTPUT, at, end)
            elif (zip_map := _zip_map(data, at, end)) is not None:
                found[zip_map.output] = zip_map
                nodes[zip_map.output] = _field(data, _NODE, at, end)
        zip_maps = {name: found[name] for name in outputs if name in found}
        if not zip_maps:
            return None
        left_out = [span for name in zip_maps for span in (nodes[name], outputs[name])]
        sources = {zip_map.source for zip_map in zip_maps.values()} - outputs.keys()
        head, _ = _field(data, _GRAPH, start, stop)
        graph = _edited(view, (start, stop), left_out, sorted(sources))
        return UnzippedModel(b"".join([view[:head], *graph, view[stop:]]), tuple(outputs), zip_maps)
    return None


def _edited(
    view: memoryview, graph: _Span, left_out: list[_Span], outputs: list[str]
) -> list[bytes | memoryview]:
    """The pieces of a graph without some of its fields and with more outputs, of which the name is enough."""
    added = [_encode(_OUTPUT, _encode(1, name.encode())) for name in outputs]
    kept = [view[at:end] for at, end in _between(left_out, *graph)]
    return [field_head(_GRAPH, sum(map(len, kept)) + sum(map(len, added))), *kept, *added]


def _zip_map(data: mmap.mmap, start: int, stop: int) -> ZipMap | None:
    """The ZipMap that a node is."""
    texts: dict[str, list[bytes]] = {name: [] for name, _ in _NODE_FIELDS.values()}
    labels: list[int | str] = []
    for field, at, end in wanted_fields(data, start, stop, _NODE_FIELDS):
        if field == "attribute":
            labels += _labels(data, at, end)
        else:
            texts[field].append(data[at:end])
            # Trees, as large as the file, are not stepped over: what a node calls comes before its attributes.
            if field == "op_type" and texts[field] != [_OPERATOR]:
                return None
    match texts:
        case {"op_type": [_], "domain": [domain], "input": [source], "output": [output]} if domain == _DOMAIN:
            if labels and len({type(label) for label in labels}) == 1 and len(set(labels)) == len(labels):
                return ZipMap(output.decode(), source.decode(), tuple(labels))
    return None


def _labels(data: mmap.mmap, start: int, stop: int) -> Iterator[int | str]:
    """Those that an attribute lists."""
    name = b""
    for field, at, end in wanted_fields(data, start, stop, _ATTRIBUTE_FIELDS):
        if field == "name":
            name = data[at:end]
        elif name not in _LABELS:
            return
        elif field == "strings":
            yield data[at:end].decode()
        else:
            pos = at
            while pos < end:
                value, pos = varint(data, pos, end)
                yield value - 2**64 if value >= 2**63 else value


def _name(data: mmap.mmap, start: int, stop: int) -> str:
    for _, at, end in wanted_fields(data, start, stop, _VALUE_INFO_FIELDS):
        return data[at:end].decode()
    return ""


def _field(data: mmap.mmap, number: int, start: int, stop: int) -> _Span:
    """A field with what stands before its value."""
    head = field_head(number, stop - start)
    if data[start - len(head) : start] != head:
        raise MalformedError("a length is longer than it has to be", start)
    return start - len(head), stop


def _encode(number: int, value: bytes) -> bytes:
    return field_head(number, len(value)) + value


def _between(spans: list[_Span], start: int, stop: int) -> Iterator[_Span]:
    """What lies between two offsets and in none of the spans."""
    for at, end in sorted(spans):
        yield start, at
        start = end
    yield start, stop
