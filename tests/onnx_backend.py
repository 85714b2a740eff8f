"""The backend test collection of the ``onnx`` package, run by onnxruntime itself without any of our code.

https://github.com/onnx/onnx/blob/main/docs/OnnxBackendTest.md
"""

import ctypes
import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnx.backend.test.loader import DATA_DIR, load_model_tests

ort.set_default_logger_severity(4)

# ONNX's types that NumPy has not, by onnxruntime's word: what ml_dtypes calls them, and bits of an element.
FOREIGN: dict[str, tuple[Any, int]] = {
    "bfloat16": (ml_dtypes.bfloat16, 16),
    "float8e4m3fn": (ml_dtypes.float8_e4m3fn, 8),
    "float8e4m3fnuz": (ml_dtypes.float8_e4m3fnuz, 8),
    "float8e5m2": (ml_dtypes.float8_e5m2, 8),
    "float8e5m2fnuz": (ml_dtypes.float8_e5m2fnuz, 8),
    "float8e8m0": (ml_dtypes.float8_e8m0fnu, 8),
    "float4e2m1": (ml_dtypes.float4_e2m1fn, 4),
    "int4": (ml_dtypes.int4, 4),
    "uint4": (ml_dtypes.uint4, 4),
    "int2": (ml_dtypes.int2, 2),
    "uint2": (ml_dtypes.uint2, 2),
}
OPSETS = (25, 23, 21, 18, 13, 9, 7)
NUMBERS = {
    "bfloat16": 16, "float8e4m3fn": 17, "float8e4m3fnuz": 18, "float8e5m2": 19, "float8e5m2fnuz": 20,
    "float8e8m0": 24, "float4e2m1": 23, "uint4": 21, "int4": 22, "uint2": 25, "int2": 26,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One test: a model, inputs and the outputs that the collection expects.

    Attributes:
        name: ``node/test_abs``.
        model: The file's bytes.
        inputs: Arrays, lists and None, in the graph's order.
        outputs: The same.
        rtol: Relative tolerance of the expectation.
        atol: Absolute tolerance.
    """

    name: str
    model: bytes
    inputs: list[Any]
    outputs: list[Any]
    rtol: float
    atol: float


@dataclass(frozen=True)
class Reference:
    """What onnxruntime answers in-process.

    Attributes:
        feed: By input name, with ml_dtypes' types.
        outputs: By output name, with ml_dtypes' types.
        types: onnxruntime's type of every input and output.
    """

    feed: dict[str, Any]
    outputs: dict[str, Any]
    types: dict[str, str]


@functools.cache
def names() -> tuple[str, ...]:
    """All cases, sorted."""
    return tuple(sorted([*_node_cases(), *_stored_cases(), *_light_cases()]))


def case(name: str) -> Iterator[Case]:
    """The data sets of one case."""
    kind, _, _ = name.partition("/")
    if kind == "node":
        yield from _from_memory(name)
    elif kind == "light":
        yield _light(name)
    else:
        yield from _from_files(name)


@functools.cache
def _node_cases() -> dict[str, Any]:
    with warnings.catch_warnings():
        # The collection computes its expectations when it is imported, overflows and all.
        warnings.simplefilter("ignore")
        return {f"node/{test.name}": test for test in load_model_tests(kind="node")}


@functools.cache
def _stored_cases() -> dict[str, Any]:
    kinds = ("simple", "pytorch-converted", "pytorch-operator")
    return {f"{kind}/{test.name}": test for kind in kinds for test in load_model_tests(kind=kind)}


@functools.cache
def _light_cases() -> dict[str, Path]:
    return {f"light/{path.stem}": path for path in Path(DATA_DIR, "light").glob("*.onnx")}


def _from_memory(name: str) -> Iterator[Case]:
    test = _node_cases()[name]
    data = test.model.SerializeToString()
    for inputs, outputs in test.data_sets:
        yield Case(name, data, [*map(_plain, inputs)], [*map(_plain, outputs)], test.rtol, test.atol)


def _plain(value: Any) -> Any:
    """Protocol buffers and NumPy scalars, which some of the tests hold, as arrays."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _from_files(name: str) -> Iterator[Case]:
    test = _stored_cases()[name]
    folder = Path(test.model_dir)
    data = (folder / "model.onnx").read_bytes()
    graph = onnx.load_from_string(data).graph
    for data_set in sorted(folder.glob("test_data_set_*")):
        inputs = [_load(data_set / f"input_{i}.pb", graph.input[i].type)
                  for i in range(len(list(data_set.glob("input_*.pb"))))]  # fmt: skip
        outputs = [_load(data_set / f"output_{i}.pb", graph.output[i].type)
                   for i in range(len(list(data_set.glob("output_*.pb"))))]  # fmt: skip
        yield Case(name, data, inputs, outputs, test.rtol, test.atol)


def _light(name: str) -> Case:
    """A vision network whose weights are computed; its inputs are what the collection's own runner makes."""
    path = _light_cases()[name]
    model = onnx.load(path)
    held = {initializer.name for initializer in model.graph.initializer}
    inputs = []
    for graph_input in model.graph.input:
        if graph_input.name in held:
            continue
        shape = [size.dim_value for size in graph_input.type.tensor_type.shape.dim]
        count = int(np.prod(shape))
        inputs.append((np.arange(count).reshape(shape) / count).astype(np.float32))
    outputs = [_load(path.with_name(f"{path.stem}_output_{i}.pb"), graph_output.type)
               for i, graph_output in enumerate(model.graph.output)]  # fmt: skip
    return Case(name, path.read_bytes(), inputs, outputs, 1e-3, 1e-7)


def _load(path: Path, type_proto: onnx.TypeProto) -> Any:
    data = path.read_bytes()
    if type_proto.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if type_proto.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def passing(test: Case) -> tuple[Case, Reference] | None:
    """A case with its answer, or None if onnxruntime does not pass it.

    The collection declares the newest version of each operator, and some that are very old. Where onnxruntime has
    no kernel for that version, but passes the same test under another one, that is taken.
    """
    for version in (None, *OPSETS):
        candidate = test if version is None else _with_opset(test, version)
        found = reference(candidate)
        if found is not None:
            return candidate, found
    return None


def _with_opset(test: Case, version: int) -> Case:
    model = onnx.load_from_string(test.model)
    for opset in model.opset_import:
        if not opset.domain:
            opset.version = version
    return replace(test, model=model.SerializeToString())


def reference(test: Case, offset: int = 0) -> Reference | None:
    """The answer, or None if the installed onnxruntime cannot run the case or does not pass it.

    Args:
        test: The case.
        offset: Bytes by which inputs miss an address that is a multiple of 64. onnxruntime adds numbers up in
            an order that depends on it, so the last bit of a sum may too.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(test.model, options, providers=["CPUExecutionProvider"])
        specs = session.get_inputs()
        names = [spec.name for spec in specs]
        wanted = session.get_outputs()
        inputs = [_placed(value, offset) for value in test.inputs]
        feed = dict(zip(names, inputs, strict=False))
        outputs = _run(session, feed, [output.name for output in wanted], {o.name: o.type for o in wanted},
                       {spec.name: spec.type for spec in specs})  # fmt: skip
        for (name, value), expected in zip(outputs.items(), test.outputs, strict=True):
            _assert_similar(value, expected, test, name)
    except Exception:  # noqa: BLE001  onnxruntime's own classes, NumPy's, and AssertionError
        return None
    return Reference(feed, outputs, {node.name: node.type for node in (*specs, *wanted)})


def _placed(value: Any, offset: int) -> Any:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf" or offset % value.itemsize:
        return value
    room = np.empty(value.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 64 + offset
    placed = room[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
    placed[...] = value
    return placed


def _run(
    session: Any, feed: dict[str, Any], names: list[str], types: dict[str, str], given: dict[str, str]
) -> dict[str, Any]:
    sent = {name: _to_ort(value, given[name]) for name, value in feed.items()}
    if not any(_word(types[name]) in FOREIGN for name in names):
        return dict(zip(names, session.run(names, sent), strict=True))
    values = {
        name: value if isinstance(value, ort.OrtValue) else ort.OrtValue.ortvalue_from_numpy(value)
        for name, value in sent.items()
    }
    results = session.run_with_ort_values(names, values)
    return {name: _from_ort(result, _word(types[name])) for name, result in zip(names, results, strict=True)}


def _word(onnx_type: str) -> str:
    return onnx_type.rpartition("tensor(")[2].rstrip(")")


def pack(value: Any, word: str) -> bytes:
    """The bytes of an array of ml_dtypes, types of less than a byte side by side, the first in the lowest bits."""
    bits = FOREIGN[word][1]
    codes = np.ascontiguousarray(value).reshape(-1).view(np.uint16 if bits == 16 else np.uint8)
    if bits >= 8:
        return codes.tobytes()
    packed = bytearray(-(-codes.size * bits // 8))
    for index, code in enumerate(codes.tolist()):
        packed[index * bits // 8] |= (code & ((1 << bits) - 1)) << (index * bits % 8)
    return bytes(packed)


def unpack(data: bytes, word: str, shape: Any) -> Any:
    """The array of ml_dtypes that ``pack`` made these bytes of."""
    kind, bits = FOREIGN[word]
    if bits >= 8:
        return np.frombuffer(data, np.uint16 if bits == 16 else np.uint8).view(kind).reshape(shape)
    count = int(np.prod(shape))
    codes = [data[i * bits // 8] >> (i * bits % 8) & ((1 << bits) - 1) for i in range(count)]
    if word.startswith("int"):
        codes = [code - (1 << bits) if code >> (bits - 1) else code for code in codes]
        return np.array(codes, np.int8).astype(kind).reshape(shape)
    array = np.array(codes, np.uint8)
    return (array.view(kind) if word.startswith("float") else array.astype(kind)).reshape(shape)


def _to_ort(value: Any, onnx_type: str) -> Any:
    word = _word(onnx_type)
    if not isinstance(value, np.ndarray) or word not in FOREIGN:
        return value
    packed = pack(value, word)
    wide_type = np.uint16 if FOREIGN[word][1] == 16 else np.uint8
    codes = np.zeros(value.size, wide_type)
    codes.view(np.uint8)[: len(packed)] = np.frombuffer(packed, np.uint8)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(codes.reshape(value.shape), NUMBERS[word])


def _from_ort(value: Any, word: str) -> Any:
    if word not in FOREIGN:
        return value.numpy()
    shape = value.shape()
    size = -(-int(np.prod(shape)) * FOREIGN[word][1] // 8)
    return unpack(ctypes.string_at(value.data_ptr(), size) if size else b"", word, shape)


def _assert_similar(value: Any, expected: Any, test: Case, name: str) -> None:
    if expected is None:
        assert value is None, name
    elif isinstance(expected, list):
        assert len(value) == len(expected), name
        for item, other in zip(value, expected, strict=True):
            _assert_similar(item, other, test, name)
    elif isinstance(expected, dict):
        assert value == expected, name
    elif np.asarray(expected).dtype.kind in "OUS":
        np.testing.assert_array_equal(value, expected)
    else:
        assert value.dtype == expected.dtype, name
        np.testing.assert_allclose(wide(value), wide(expected), rtol=test.rtol, atol=test.atol)


def wide(value: Any) -> Any:
    """The value in NumPy's own types, where ml_dtypes' would be: as float32, int8 or uint8; lists item by item."""
    if isinstance(value, list):
        return [wide(item) for item in value]
    if not isinstance(value, np.ndarray) or not hasattr(ml_dtypes, value.dtype.name):
        return value
    return value.astype({"i": np.int8, "u": np.uint8}.get(value.dtype.name[0], np.float32))
