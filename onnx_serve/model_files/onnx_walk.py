"""One pass over the messages of an ONNX model: what is called, what is imported, what lies outside.

Weights are stepped over, subgraphs are put aside instead of recursed into, and the number of names kept is
bounded: time and memory grow with the file's size at most.

Messages and field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3
"""

from collections import Counter
from collections.abc import Sized

from onnx_serve.model_files.external_data import ExternalData, parse_external_data
from onnx_serve.protobuf_wire import (
    LEN,
    MAX_DEPTH,
    NUMBERS,
    ONCE,
    VARINT,
    Buffer,
    MalformedError,
    Message,
    varint,
    wanted_fields,
)

__all__ = ["ModelWalk"]

_MAX_NAME_BYTES = 4096
_MAX_METADATA_BYTES = 65_536
_MAX_ENTRIES = 1_000_000
_FIRST_IR_VERSION_WITH_OPSETS = 3

_MODEL: Message = {
    1: ("ir_version", VARINT),
    2: ("producer_name", LEN),
    3: ("producer_version", LEN),
    7: ("graph", ONCE),
    8: ("opset_import", LEN),
    14: ("metadata_props", LEN),
    25: ("functions", LEN),
}
_GRAPH: Message = {
    1: ("node", LEN),
    5: ("initializer", LEN),
    11: ("input", LEN),
    15: ("sparse_initializer", LEN),
}
_FUNCTION: Message = {
    1: ("name", LEN),
    7: ("node", LEN),
    10: ("domain", LEN),
    11: ("attribute_proto", LEN),
}
_NODE: Message = {4: ("op_type", LEN), 5: ("attribute", LEN), 7: ("domain", LEN)}
_ATTRIBUTE: Message = {
    5: ("t", ONCE),
    6: ("g", ONCE),
    10: ("tensors", LEN),
    11: ("graphs", LEN),
    22: ("sparse_tensor", ONCE),
    23: ("sparse_tensors", LEN),
}
_SPARSE_TENSOR: Message = {1: ("values", ONCE), 2: ("indices", ONCE)}
_TENSOR: Message = {
    4: ("float_data", NUMBERS),
    5: ("int32_data", NUMBERS),
    6: ("string_data", LEN),
    7: ("int64_data", NUMBERS),
    8: ("name", LEN),
    9: ("raw_data", LEN),
    10: ("double_data", NUMBERS),
    11: ("uint64_data", NUMBERS),
    13: ("external_data", LEN),
    14: ("data_location", VARINT),
}
_OPSET: Message = {1: ("domain", LEN), 2: ("version", VARINT)}
_PAIR: Message = {1: ("key", LEN), 2: ("value", LEN)}
_VALUE_INFO: Message = {1: ("name", LEN)}


class ModelWalk:
    """One pass over a model: methods add to the sums, and put subgraphs aside for later.

    Args:
        data: The whole file; kept as long as the walk.

    Attributes:
        ir_version: Version of the ONNX format; 0 when the file does not say.
        producer: Name and version of the program that wrote it, as far as the file has them.
        opsets: Version by domain, as the model imports them; the default domain is ``ai.onnx``.
        external: Places of tensors outside the file.
        weight_bytes: Bytes of tensors in the file, as they are stored.
        metadata: ``metadata_props``; a value is cut at 64 KiB.
    """

    def __init__(self, data: Buffer) -> None:
        self.data = data
        self.ir_version = 0
        self.producer: dict[str, str] = {}
        self.opsets: dict[str, int] = {}
        self.external: list[ExternalData] = []
        self.weight_bytes = 0
        self.metadata: dict[str, str] = {}
        self._graphs: list[tuple[int, int, int]] = []
        self._calls: Counter[tuple[bytes, bytes]] = Counter()
        self._functions: set[tuple[bytes, bytes]] = set()
        self._initializers: set[bytes] = set()
        self._inputs: dict[bytes, None] = {}

    def run(self) -> None:
        """Reads the model and everything below it; once.

        Raises:
            MalformedError: The bytes are no model.
        """
        has_graph = False
        for field_name, start, stop in wanted_fields(self.data, 0, len(self.data), _MODEL):
            match field_name:
                case "graph":
                    has_graph = True
                    self._graph(start, stop, 0)
                case "opset_import":
                    self._opset(start, stop)
                case "metadata_props":
                    key, value = self._pair(start, stop)
                    self.metadata[_text(key)] = _text(value)
                    _check_count(self.metadata, start)
                case "functions":
                    self._function(start, stop)
                case "ir_version":
                    self.ir_version = self._number(start, stop)
                case _:
                    self.producer[field_name] = _text(self._cut(start, stop))
        while self._graphs:
            self._graph(*self._graphs.pop())
        if not has_graph:
            raise MalformedError("it has no graph", len(self.data))
        # Older formats have no imports: https://github.com/onnx/onnx/blob/main/docs/IR.md
        if not self.opsets and self.ir_version >= _FIRST_IR_VERSION_WITH_OPSETS:
            raise MalformedError("it imports no operator set", len(self.data))

    def operators(self) -> dict[str, int]:
        """How many nodes call ``domain::Operator``, in alphabetical order."""
        names: Counter[str] = Counter()
        for (domain, operator), count in self._calls.items():
            names[f"{_domain(domain)}::{_text(operator)}"] += count
        return dict(sorted(names.items()))

    def foreign_domains(self) -> set[str]:
        """Domains of the calls that no function of the model answers."""
        return {_domain(domain) for domain, _ in self._calls.keys() - self._functions}

    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs that have no initializer, in order."""
        return tuple(_text(name) for name in self._inputs if name not in self._initializers)

    def _graph(self, start: int, stop: int, depth: int) -> None:
        """A graph at some depth of nesting; the model's own has depth 0."""
        for field_name, a, b in wanted_fields(self.data, start, stop, _GRAPH):
            if field_name == "node":
                self._node(a, b, depth)
            elif field_name == "input":
                if not depth:
                    self._graph_input(a, b)
            else:
                name = self._tensor(a, b) if field_name == "initializer" else self._sparse_tensor(a, b)
                if not depth:
                    self._initializers.add(name)
                    _check_count(self._initializers, a)

    def _graph_input(self, start: int, stop: int) -> None:
        """The name of an input of the model."""
        for _, a, b in wanted_fields(self.data, start, stop, _VALUE_INFO):
            self._inputs[self._cut(a, b)] = None
        _check_count(self._inputs, start)

    def _function(self, start: int, stop: int) -> None:
        """A model-local function: what it is called, and its body."""
        name = domain = b""
        for field_name, a, b in wanted_fields(self.data, start, stop, _FUNCTION):
            match field_name:
                case "node":
                    self._node(a, b, 0)
                case "attribute_proto":
                    self._attribute(a, b, 0)
                case "name":
                    name = self._name(a, b)
                case _:
                    domain = self._name(a, b)
        self._functions.add((domain, name))
        _check_count(self._functions, start)

    def _node(self, start: int, stop: int, depth: int) -> None:
        """A call of an operator, with what its attributes hold."""
        operator = domain = b""
        for field_name, a, b in wanted_fields(self.data, start, stop, _NODE):
            if field_name == "attribute":
                self._attribute(a, b, depth)
            elif field_name == "op_type":
                operator = self._name(a, b)
            else:
                domain = self._name(a, b)
        self._calls[domain, operator] += 1
        _check_count(self._calls, start)

    def _attribute(self, start: int, stop: int, depth: int) -> None:
        """Tensors and graphs among a node's attributes."""
        for field_name, a, b in wanted_fields(self.data, start, stop, _ATTRIBUTE):
            if field_name in {"t", "tensors"}:
                self._tensor(a, b)
            elif field_name in {"sparse_tensor", "sparse_tensors"}:
                self._sparse_tensor(a, b)
            elif depth < MAX_DEPTH:
                self._graphs.append((a, b, depth + 1))
            else:
                raise MalformedError(f"more than {MAX_DEPTH} graphs lie in each other", a)

    def _sparse_tensor(self, start: int, stop: int) -> bytes:
        """Its values and indices; the name is that of the values."""
        name = b""
        for field_name, a, b in wanted_fields(self.data, start, stop, _SPARSE_TENSOR):
            part = self._tensor(a, b)
            name = part if field_name == "values" else name
        return name

    def _tensor(self, start: int, stop: int) -> bytes:
        """Adds a tensor's bytes, or its place outside; returns its name."""
        name = b""
        entries: list[tuple[int, int]] = []
        is_external = False
        for field_name, a, b in wanted_fields(self.data, start, stop, _TENSOR):
            if field_name == "name":
                name = self._cut(a, b)
            elif field_name == "external_data":
                entries.append((a, b))
                _check_count(entries, a)
            elif field_name == "data_location":
                # protobuf cuts the number to 32 bits: whatever is not plainly DEFAULT may be EXTERNAL.
                is_external = self._number(a, b) != 0
            else:
                self.weight_bytes += b - a
        if is_external:
            pairs = (self._pair(a, b) for a, b in entries)
            self.external.append(parse_external_data(_text(name), pairs, start))
            _check_count(self.external, start)
        return name

    def _opset(self, start: int, stop: int) -> None:
        """Domain and version of an imported operator set."""
        domain, version = b"", 0
        for field_name, a, b in wanted_fields(self.data, start, stop, _OPSET):
            if field_name == "domain":
                domain = self._name(a, b)
            else:
                version = self._number(a, b)
        self.opsets[_domain(domain)] = version
        _check_count(self.opsets, start)

    def _pair(self, start: int, stop: int) -> tuple[bytes, bytes]:
        """A key and its value."""
        texts = {"key": b"", "value": b""}
        for field_name, a, b in wanted_fields(self.data, start, stop, _PAIR):
            texts[field_name] = self.data[a : min(b, a + _MAX_METADATA_BYTES)]
        return texts["key"], texts["value"]

    def _number(self, start: int, stop: int) -> int:
        """A signed number of 64 bits."""
        value = varint(self.data, start, stop)[0]
        return value - 2**64 if value >= 2**63 else value

    def _name(self, start: int, stop: int) -> bytes:
        """A name that must be whole."""
        if stop - start > _MAX_NAME_BYTES:
            raise MalformedError(f"a name has {stop - start} bytes", start)
        return self.data[start:stop]

    def _cut(self, start: int, stop: int) -> bytes:
        """A name that is only shown."""
        return self.data[start : min(stop, start + _MAX_NAME_BYTES)]


def _check_count(entries: Sized, at: int) -> None:
    if len(entries) > _MAX_ENTRIES:
        raise MalformedError(f"more than {_MAX_ENTRIES} names of one kind", at)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")


def _domain(name: bytes) -> str:
    return _text(name) or "ai.onnx"
