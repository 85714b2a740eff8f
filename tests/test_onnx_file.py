"""onnx_file against the onnx package as witness, and against bytes that nobody should trust."""

import contextlib
import gzip
import importlib
import io
import os
import pickle
import socket
import struct
import tarfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.backend.test.case.node import collect_testcases

from onnx_serve.errors import ModelError
from onnx_serve.model_files import onnx_walk
from onnx_serve.model_files.external_data import ExternalData
from onnx_serve.model_files.onnx_file import OnnxFile, read_onnx, read_onnx_file
from onnx_serve.model_files.regular_file import kind_of_file

FLOAT = TensorProto.FLOAT
DecodeError: Any = importlib.import_module("google.protobuf.message").DecodeError
BUILT_IN = {"ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training"}


# The witness: what the onnx package reads from the same bytes.


def _graphs_and_tensors(
    nodes: Iterable[onnx.NodeProto], attributes: Iterable[onnx.AttributeProto] = ()
) -> Iterator[onnx.NodeProto | onnx.TensorProto]:
    """Every node below some nodes, and every tensor of their attributes and subgraphs."""
    for node in nodes:
        yield node
        yield from _graphs_and_tensors((), node.attribute)
    for attribute in attributes:
        sparse = [*attribute.sparse_tensors]
        sparse += [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        yield from attribute.tensors
        if attribute.HasField("t"):
            yield attribute.t
        for item in sparse:
            yield from (item.values, item.indices)
        graphs = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
        for graph in graphs:
            yield from _below(graph)


def _below(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto | onnx.TensorProto]:
    yield from graph.initializer
    for item in graph.sparse_initializer:
        yield from (item.values, item.indices)
    yield from _graphs_and_tensors(graph.node)


def _everything(model: onnx.ModelProto) -> list[onnx.NodeProto | onnx.TensorProto]:
    found = list(_below(model.graph))
    for function in model.functions:
        found += _graphs_and_tensors(function.node, function.attribute_proto)
    return found


def witness_operators(model: onnx.ModelProto) -> dict[str, int]:
    nodes = (item for item in _everything(model) if isinstance(item, onnx.NodeProto))
    return dict(Counter(f"{node.domain or 'ai.onnx'}::{node.op_type}" for node in nodes))


def witness_places(model: onnx.ModelProto) -> Iterator[tuple[str, dict[str, str]]]:
    for item in _everything(model):
        if isinstance(item, onnx.TensorProto) and item.data_location == TensorProto.EXTERNAL:
            yield item.name, {pair.key: pair.value for pair in item.external_data}


def witness_external(model: onnx.ModelProto) -> set[ExternalData]:
    return {
        ExternalData(
            tensor,
            place.get("location", ""),
            int(place.get("offset", "0")),
            int(place["length"]) if "length" in place else None,
        )
        for tensor, place in witness_places(model)
    }


def witness_weight_bytes(model: onnx.ModelProto) -> int:
    total = 0
    for item in _everything(model):
        if isinstance(item, onnx.TensorProto):
            total += len(item.raw_data) + 4 * len(item.float_data) + 8 * len(item.double_data)
            total += sum(map(len, item.string_data))
            for numbers in (item.int32_data, item.int64_data, item.uint64_data):
                total += sum(max(1, -(-(n % 2**64).bit_length() // 7)) for n in numbers)
    return total


def assert_same(found: OnnxFile, data: bytes) -> None:
    """Compares a summary with what the onnx package says."""
    model = onnx.ModelProto.FromString(data)
    initializers = {tensor.name for tensor in model.graph.initializer}
    initializers |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    assert found.format == "onnx"
    assert found.size_bytes == len(data)
    assert found.ir_version == model.ir_version
    assert found.producer == " ".join(filter(None, (model.producer_name, model.producer_version)))
    assert found.opsets == {item.domain or "ai.onnx": item.version for item in model.opset_import}
    assert found.operators == witness_operators(model)
    assert set(found.external_data) == witness_external(model)
    assert found.weight_bytes == witness_weight_bytes(model)
    assert found.metadata == {pair.key: pair.value for pair in model.metadata_props}
    assert list(found.inputs) == [i.name for i in model.graph.input if i.name not in initializers]
    functions = {(function.domain, function.name) for function in model.functions}
    called = {
        item.domain or "ai.onnx"
        for item in _everything(model)
        if isinstance(item, onnx.NodeProto) and (item.domain, item.op_type) not in functions
    }
    assert set(found.custom_domains) == {d for d in called - BUILT_IN if not d.startswith("com.microsoft")}


# Models by hand.


def model_of(*nodes: onnx.NodeProto, **fields: Any) -> onnx.ModelProto:
    """A model of some nodes with one input ``x`` and one output ``y``."""
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 4])],
        fields.pop("initializers", ()),
        sparse_initializer=fields.pop("sparse", ()),
    )
    return helper.make_model(graph, opset_imports=opsets, producer_name="tests", **fields)


def external_tensor(name: str, **entries: object) -> onnx.TensorProto:
    """A tensor whose values are said to lie outside."""
    tensor = TensorProto(name=name, data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        pair = tensor.external_data.add()
        pair.key, pair.value = key, str(value)
    return tensor


def branch(name: str, *tensors: onnx.TensorProto) -> onnx.GraphProto:
    """A subgraph without inputs."""
    node = helper.make_node("Constant", [], [f"{name}_out"], value=external_tensor(name, location=name))
    output = helper.make_tensor_value_info(f"{name}_out", FLOAT, None)
    return helper.make_graph([node], name, [], [output], tensors)


def rich_model() -> onnx.ModelProto:
    """Everything at once: subgraphs in subgraphs, functions, sparse and external tensors, metadata."""
    inner = helper.make_node("If", ["c"], ["i"], then_branch=branch("t1"), else_branch=branch("e1"))
    output = helper.make_tensor_value_info("i", FLOAT, None)
    outer = helper.make_graph(
        [inner], "outer", [], [output], [external_tensor("deep", location="d", offset=8)]
    )
    values = numpy_helper.from_array(np.array([1, 2], np.float32), "s")
    indices = numpy_helper.from_array(np.array([0, 3], np.int64), "s_indices")
    sparse = helper.make_sparse_tensor(values, indices, [4])
    outside = helper.make_sparse_tensor(external_tensor("sv", location="s", length=16), indices, [4])
    model = model_of(
        helper.make_node("If", ["c"], ["o"], then_branch=outer, else_branch=branch("e0")),
        helper.make_node("Constant", [], ["k"], sparse_value=outside),
        helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", scale=[1.0] * 9, offset=[2.0]),
        helper.make_node("Gelu", ["x"], ["z"], domain="com.microsoft"),
        helper.make_node("Local", ["x"], ["w"], domain="own"),
        helper.make_node("Missing", ["x"], ["v"], domain="elsewhere"),
        helper.make_node("Tokenizer", ["x"], ["u"], domain="com.example"),
        helper.make_node("Constant", [], ["strings"], value_strings=["a", "\xff", ""] * 9),
        initializers=[
            external_tensor("w", location="weights/w.bin", offset=4096, length=16, checksum="0"),
            numpy_helper.from_array(np.ones((3, 4), np.float32), "x2"),
            helper.make_tensor("ints", TensorProto.INT64, [3], [-1, 300, 0]),
            TensorProto(name="words", data_type=TensorProto.STRING, dims=[2], string_data=[b"alpha", b""]),
        ],
        sparse=[sparse],
        producer_version="1.2",
    )
    function = helper.make_function(
        "own",
        "Local",
        ["a"],
        ["b"],
        [helper.make_node("Abs", ["a"], ["c"]), helper.make_node("Neg", ["c"], ["b"])],
        [helper.make_opsetid("", 21)],
        attribute_protos=[helper.make_attribute("t", external_tensor("in_function", location="f"))],
    )
    model.functions.append(function)
    helper.set_model_props(model, {"task": "test", "labels": "a,b"})
    return model


RICH = rich_model().SerializeToString()
LOOP = parser.parse_model("""
    <ir_version: 9, opset_import: ["" : 21]>
    agraph (int64 n, bool c, float[4] x) => (float[4] y, float[k, 4] ys) {
        y, ys = Loop (n, c, x) <body = body (int64 i, bool cond, float[4] a) =>
                                       (bool cond_out, float[4] b, float[4] scan) {
            cond_out = Identity (cond)
            b = Add (a, a)
            scan = Identity (b)
        }>
    }
""").SerializeToString()
PLAIN = model_of(helper.make_node("Relu", ["x"], ["y"])).SerializeToString()

STORED = sorted(Path(onnx.__path__[0]).glob("backend/test/data/**/*.onnx"))


def varint(value: int) -> bytes:
    """A protobuf number."""
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def message(number: int, value: bytes | int) -> bytes:
    """A protobuf field: bytes with their length, or a number."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


IR = message(1, 10)
OPSET = message(8, message(2, 21))


def reading(data: bytes) -> OnnxFile:
    return read_onnx(data, name="model.onnx")


# Agreement with the witness.


def test_reads_every_stored_model_of_the_onnx_package() -> None:
    """The files that backends are tested with."""
    assert len(STORED) > 100
    for path in STORED:
        assert_same(read_onnx_file(path), path.read_bytes())


def test_reads_every_generated_model_of_the_onnx_package() -> None:
    """A model for each operator and version, including control flow, sequences, optionals and training."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generators compute with overflows on purpose
        models = [case.model for case in collect_testcases(None) if case.model is not None]
    assert len(models) > 1000
    for model in models:
        data = model.SerializeToString()
        assert_same(reading(data), data)


@pytest.mark.parametrize("data", [RICH, LOOP, PLAIN], ids=["rich", "loop", "plain"])
def test_reads_subgraphs_functions_and_attributes(data: bytes) -> None:
    assert_same(reading(data), data)


def test_summary_of_a_rich_model() -> None:
    """The same, spelled out, so that witness and reader cannot err alike."""
    found = reading(RICH)
    assert found.operators["ai.onnx::If"] == 2
    assert found.operators["own::Local"] == 1
    assert found.operators["ai.onnx::Abs"] == 1
    assert found.custom_domains == ("com.example", "elsewhere")
    assert found.producer == "tests 1.2"
    assert found.opsets == {"ai.onnx": 21, "ai.onnx.ml": 3}
    assert found.inputs == ("x",)
    assert ExternalData("w", "weights/w.bin", 4096, 16) in found.external_data
    names = {data.tensor for data in found.external_data}
    assert names == {"w", "deep", "t1", "e1", "e0", "sv", "in_function"}
    assert found.metadata == {"task": "test", "labels": "a,b"}


@pytest.mark.parametrize(
    ("domain", "custom"),
    [
        ("", False),
        ("ai.onnx.preview.training", False),
        ("com.microsoft", False),
        ("com.microsoft.nchwc", False),
        ("com.microsoft.extensions", True),
        ("com.microsofty", True),
        ("ai.onnx.contrib", True),
        ("ai.onnx.mlx", True),
    ],
)
def test_domains_that_need_a_library(domain: str, custom: bool) -> None:
    model = model_of(helper.make_node("Op", ["x"], ["y"], domain=domain))
    assert reading(model.SerializeToString()).custom_domains == ((domain,) if custom else ())


def test_external_data_as_the_onnx_package_saves_it(tmp_path: Path) -> None:
    """Offsets and lengths of several tensors in one file."""
    weights = [numpy_helper.from_array(np.ones((50, 10), np.float32), f"w{i}") for i in range(3)]
    model = model_of(helper.make_node("Relu", ["x"], ["y"]), initializers=weights)
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    found = read_onnx_file(path)
    assert_same(found, path.read_bytes())
    assert found.weight_bytes == 0
    assert [data.length for data in found.external_data] == [2000, 2000, 2000]
    assert {data.location for data in found.external_data} == {"m.data"}


def test_weights_are_stepped_over(tmp_path: Path) -> None:
    """A gigabyte of weights that is a hole in the file."""
    size = 2**30
    raw = message(8, b"w") + varint(9 << 3 | 2) + varint(size)
    tensor = varint(5 << 3 | 2) + varint(len(raw) + size) + raw
    graph = message(1, message(4, b"Relu")) + tensor
    path = tmp_path / "m.onnx"
    path.write_bytes(IR + OPSET + varint(7 << 3 | 2) + varint(len(graph) + size) + graph)
    os.truncate(path, path.stat().st_size + size)
    found = read_onnx_file(path)
    assert found.weight_bytes == size
    assert found.operators == {"ai.onnx::Relu": 1}


def test_formats_without_imports_have_opset_1() -> None:
    assert reading(message(1, 2) + message(7, b"")).opsets == {"ai.onnx": 1}


def test_names_that_are_no_utf8_are_read() -> None:
    node = message(4, b"R\xff") + message(7, b"\xfe")
    found = reading(IR + OPSET + message(7, message(1, node)))
    assert found.operators == {"\ufffd::R\ufffd": 1}


def test_long_values_are_cut() -> None:
    pair = message(1, b"vocabulary") + message(2, b"a" * 100_000)
    tensor = message(8, b"n" * 10_000) + message(14, 1)
    found = reading(IR + OPSET + message(14, pair) + message(7, message(5, tensor)))
    assert len(found.metadata["vocabulary"]) == 65_536
    assert len(found.external_data[0].tensor) == 4096


@pytest.mark.parametrize(
    "unknown",
    [
        message(999, 2**64 - 1),
        message(999, b"anything"),
        varint(999 << 3 | 1) + b"8 bytes.",
        varint(999 << 3 | 5) + b"4by.",
        b"\x3d1234" * 10_000,
        b"\x40\x01" * 3 + b"\x40\xff\x01" * 5000,
        varint(99 << 3 | 3)
        + message(7, b"\x12junk")
        + varint(98 << 3 | 3)
        + varint(98 << 3 | 4)
        + varint(99 << 3 | 4),
    ],
    ids=["varint", "bytes", "fixed64", "fixed32", "run of fixed32", "run of varints", "groups"],
)
def test_unknown_fields_are_skipped(unknown: bytes) -> None:
    """At every level, and as protobuf does."""
    node = unknown + message(4, b"Relu") + message(5, unknown)
    if unknown.startswith((b"\x3d", b"\x40")):
        node = message(4, b"Relu") + message(5, message(1, b"values") + unknown)
        unknown = b""
    data = unknown + IR + OPSET + unknown + message(7, unknown + message(1, node)) + unknown
    assert reading(data).operators == {"ai.onnx::Relu": 1}
    assert witness_operators(onnx.ModelProto.FromString(data)) == {"ai.onnx::Relu": 1}


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_numbers_of_a_tensor_may_be_packed_or_not(packed: bool) -> None:
    numbers = message(4, b"12345678") if packed else b"\x251234\x255678"
    data = IR + OPSET + message(7, message(5, message(8, b"w") + numbers))
    assert reading(data).weight_bytes == 8
    assert len(onnx.ModelProto.FromString(data).graph.initializer[0].float_data) == 2


# What is refused.


def nested(levels: int) -> bytes:
    """A model with graphs in each other."""
    graph = message(1, message(4, b"Relu"))
    for _ in range(levels):
        graph = message(1, message(4, b"If") + message(5, message(6, graph)))
    return IR + OPSET + message(7, graph)


def test_subgraphs_nest_up_to_a_limit() -> None:
    assert reading(nested(64)).operators == {"ai.onnx::If": 64, "ai.onnx::Relu": 1}
    with pytest.raises(ModelError, match="more than 64 graphs lie in each other"):
        reading(nested(65))


def in_graph(value: bytes) -> bytes:
    return IR + OPSET + message(7, value)


def in_tensor(value: bytes) -> bytes:
    return in_graph(message(5, message(8, b"w") + message(14, 1) + value))


def pair(key: bytes, value: bytes) -> bytes:
    return message(13, message(1, key) + message(2, value))


MALFORMED: dict[str, tuple[bytes, str]] = {
    "no graph": (IR + OPSET, r"it has no graph \(byte 6\)"),
    "no opset": (IR + message(7, b""), "it imports no operator set"),
    "truncated file": (PLAIN[:-9], "after the file, which may be truncated"),
    "length beyond the parent": (in_graph(b"\x0a\x05\x22\x09Relu"), r"ends 6 bytes after its message \(byte"),
    "length beyond 64 bits": (in_graph(b"\x0a" + b"\xff" * 9 + b"\x01"), "bytes after"),
    "tag without end": (IR + b"\xff" * 12, r"a number has no end \(byte 2\)"),
    "tag cut off": (IR + b"\xff", r"a number is cut off \(byte 2\)"),
    "value missing": (in_graph(b"\x0a"), "a number is cut off"),
    "varint missing": (in_graph(b"\x80\x08"), "a number is cut off"),
    "fixed32 cut off": (in_graph(b"\xf5\x01123"), "a field of 4 bytes ends 1 bytes after"),
    "wire type 7": (b"\x0f", "wire type 7"),
    "field 0": (b"\x02\x00", "a field has the number 0"),
    "field too large": (varint(2**29 << 3) + b"\x00", "a field has the number 536870912"),
    "wrong wire type": (message(1, b"abc"), "the field ir_version has the wire type 2, expected 0"),
    "group for a message": (IR + varint(7 << 3 | 3) + varint(7 << 3 | 4), "wire type 3"),
    "group without end": (IR + varint(99 << 3 | 3), "a group has no end"),
    "end without group": (IR + varint(99 << 3 | 4), "a group ends that has not begun"),
    "groups crossed": (varint(98 << 3 | 3) + varint(99 << 3 | 4), "a group ends that has not begun"),
    "groups too deep": (varint(99 << 3 | 3) * 65, "more than 64 groups"),
    "two graphs": (in_graph(b"") + message(7, b""), "the field graph is there twice"),
    "name too long": (in_graph(message(1, message(4, b"R" * 4097))), "a name has 4097 bytes"),
    "location twice": (
        in_tensor(pair(b"location", b"a") + pair(b"location", b"b")),
        'two entries "location"',
    ),
    "offset negative": (in_tensor(pair(b"offset", b"-1")), 'expected offset to be a whole number, got "-1"'),
    "length no number": (
        in_tensor(pair(b"length", b"1e3")),
        'expected length to be a whole number, got "1e3"',
    ),
    "length endless": (in_tensor(pair(b"length", b"9" * 5000)), "expected length to be a whole number"),
    "location no UTF-8": (in_tensor(pair(b"location", b"\xff")), "expected a location in UTF-8"),
    "location too long": (in_tensor(pair(b"location", b"a" * 4097)), "a location of at most 4096 bytes"),
}


@pytest.mark.parametrize(("data", "expected"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_bytes_are_refused_with_their_place(data: bytes, expected: str) -> None:
    with pytest.raises(ModelError, match=expected) as caught:
        reading(data)
    text = str(caught.value)
    assert text.startswith('"model.onnx" is not an ONNX model: ')
    assert text.endswith(")")
    assert "(byte " in text
    assert len(text) < 250


def test_a_tensor_split_over_two_fields_is_refused() -> None:
    """Protobuf would merge them: a place outside that neither half shows."""
    halves = message(5, message(14, 1)) + message(5, pair(b"location", b"/etc/passwd"))
    data = in_graph(message(1, message(4, b"Constant") + message(5, halves)))
    assert witness_external(onnx.ModelProto.FromString(data)) == {ExternalData("", "/etc/passwd")}
    with pytest.raises(ModelError, match="the field t is there twice"):
        reading(data)


def test_a_data_location_beyond_32_bits_counts_as_outside() -> None:
    """Protobuf cuts enumerations to 32 bits: 2**32 + 1 is EXTERNAL."""
    data = in_graph(message(5, pair(b"location", b"w.bin") + message(14, 2**32 + 1)))
    assert reading(data).external_data == (ExternalData("", "w.bin"),)


@pytest.mark.parametrize(
    "data",
    [
        IR + b"".join(message(8, message(1, bytes([65 + i]))) for i in range(5)),
        IR + b"".join(message(14, message(1, bytes([65 + i]))) for i in range(5)),
        IR + b"".join(message(25, message(1, bytes([65 + i]))) for i in range(5)),
        in_graph(b"".join(message(1, message(4, bytes([65 + i]))) for i in range(5))),
        in_graph(b"".join(message(5, message(8, bytes([65 + i]))) for i in range(5))),
        in_graph(b"".join(message(11, message(1, bytes([65 + i]))) for i in range(5))),
        in_graph(message(1, message(5, message(10, message(14, 1)) * 5))),
        in_graph(message(5, message(13, b"") * 5)),
    ],
    ids=[
        "opsets",
        "metadata",
        "functions",
        "operators",
        "initializers",
        "inputs",
        "external data",
        "entries of external data",
    ],
)
def test_names_are_bounded(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file makes more than a million entries of one kind."""
    monkeypatch.setattr(onnx_walk, "_MAX_ENTRIES", 4)
    with pytest.raises(ModelError, match="more than 4 names of one kind"):
        reading(data)


def _zip(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x")
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.onnx"))
    return buffer.getvalue()


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


LOOKALIKES: dict[str, tuple[bytes, str]] = {
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        "is a Git LFS pointer, not an ONNX model: run `git lfs pull`",
    ),
    "torch": (_zip("archive/data.pkl"), "a PyTorch archive, not an ONNX model: convert the model"),
    "zip": (_zip("model.onnx"), "a zip archive"),
    "gzip": (gzip.compress(PLAIN), "a compressed archive, not an ONNX model: unpack it"),
    "tar": (_tar(), "a tar archive"),
    "old torch": (pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2), "a PyTorch file"),
    "pickle": (pickle.dumps({"a": [1]}), "a Python pickle, not an ONNX model: convert the model"),
    "safetensors": (struct.pack("<Q", 20) + b'{"w":{"dtype":"F32"}}', "a safetensors file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(50), "a TensorFlow Lite model"),
    "npy": (_npy(), "a NumPy array"),
    "html": (b"\n<!DOCTYPE html><title>404</title>", "the download has failed"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an HTML or XML page"),
    "text": (b"hello\n" * 500, "a text file, not an ONNX model: expected ONNX's binary form"),
}


@pytest.mark.parametrize(("data", "expected"), LOOKALIKES.values(), ids=LOOKALIKES)
def test_other_files_are_called_by_their_name(data: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError) as caught:
        read_onnx_file(path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_2_gib_is_refused(tmp_path: Path) -> None:
    """Onnxruntime would read all of it to say less."""
    path = tmp_path / "m.onnx"
    path.write_bytes(PLAIN)
    os.truncate(path, 2**31)
    with pytest.raises(
        ModelError, match="an ONNX file ends at 2 GiB: save the model with its weights as external"
    ):
        read_onnx_file(path)


# Files.


def test_files_that_are_no_regular_files(tmp_path: Path) -> None:
    """None is opened, so none can block."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(ModelError, match='"fifo": expected a regular file, got a FIFO'):
        read_onnx_file(fifo)
    with pytest.raises(ModelError, match="got a folder"):
        read_onnx_file(tmp_path)
    with pytest.raises(ModelError, match="got a device"):
        read_onnx_file(Path("/dev/zero"))
    with socket.socket(socket.AF_UNIX) as listener:
        # A socket's address is short; a path of pytest's may not be.
        with contextlib.chdir(tmp_path):
            listener.bind("s")
        with pytest.raises(ModelError, match="got a socket"):
            read_onnx_file(tmp_path / "s")


def test_empty_missing_and_unspeakable_files(tmp_path: Path) -> None:
    empty = tmp_path / "empty.onnx"
    empty.touch()
    with pytest.raises(ModelError, match=r'"empty.onnx" is empty: expected an ONNX model'):
        read_onnx_file(empty)
    with pytest.raises(ModelError, match=r'"shown" cannot be read: No such file or directory$'):
        read_onnx_file(tmp_path / "missing.onnx", name="shown")
    with pytest.raises(ModelError, match="cannot be read: embedded null byte"):
        read_onnx_file(tmp_path / "a\0b", name="shown")
    with pytest.raises(ModelError, match="is empty"):
        reading(b"")


def test_names_for_kinds_of_files() -> None:
    assert kind_of_file(0o100644) == "a regular file"
    assert kind_of_file(0o160000) == "a special file"


def test_a_file_that_empties_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at its size and the map; os.fstat is where the race can be staged."""
    path = tmp_path / "m.onnx"
    path.write_bytes(PLAIN)
    status = path.stat()

    def fstat(descriptor: int) -> os.stat_result:
        os.truncate(path, 0)
        return status

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(ModelError, match="cannot be read: "):
        read_onnx_file(path)


def test_ort_files_are_recognised(tmp_path: Path) -> None:
    """A file that onnxruntime itself wrote in its format."""
    ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "m.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(PLAIN, options, providers=["CPUExecutionProvider"])
    found = read_onnx_file(tmp_path / "m.ort")
    assert found == OnnxFile("ort", (tmp_path / "m.ort").stat().st_size)


def test_a_producer_called_ortm_is_no_ort_file() -> None:
    """Its name stands where FlatBuffers have their identifier."""
    data = IR + message(2, b"ORTM") + OPSET + message(7, b"")
    assert data[4:8] == b"ORTM"
    assert reading(data).producer == "ORTM"


# Fuzzing.

SEEDS = (RICH, LOOP, PLAIN)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid model with some bytes flipped, cut out, or replaced by a piece of another model."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        size = draw(st.integers(1, 40))
        match draw(st.sampled_from(["flip", "cut", "truncate", "splice", "insert"])):
            case "flip" if data:
                data[at] ^= draw(st.integers(1, 255))
            case "cut":
                del data[at : at + size]
            case "truncate":
                del data[at:]
            case "splice":
                other = draw(st.sampled_from(SEEDS))
                start = draw(st.integers(0, len(other) - 1))
                data[at : at + size] = other[start : start + size]
            case _:
                data[at:at] = draw(st.binary(max_size=20))
    return bytes(data)


def assert_safe(content: bytes) -> None:
    """Either refused, or read just as protobuf reads it: nothing outside the file stays unseen."""
    model = None
    with contextlib.suppress(DecodeError):  # protobuf also parses what is skipped here
        model = onnx.ModelProto.FromString(content)
    found = None
    with contextlib.suppress(ModelError):
        found = reading(content)
    if model is None or found is None or found.format == "ort":
        return
    locations = {place.get("location", "") for _, place in witness_places(model)}
    assert locations <= {data.location for data in found.external_data}
    assert sum(found.operators.values()) == sum(witness_operators(model).values())


@settings(max_examples=400, deadline=None)
@given(mutated())
def test_mutated_models_are_refused_or_read_as_protobuf_reads_them(data: bytes) -> None:
    assert_safe(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", IR + OPSET, IR + OPSET + b"\x3a"]))
def test_arbitrary_bytes_are_refused_or_read_as_protobuf_reads_them(data: bytes, start: bytes) -> None:
    assert_safe(start + data)


def test_every_truncation_is_refused_or_read() -> None:
    """A download that stops anywhere."""
    for end in range(0, len(RICH), 7):
        assert_safe(RICH[:end])
