import io
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from codec_laws import (
    OPTIONS,
    check_arbitrary_bytes,
    check_round_trip,
    decode,
    decode_rows,
    encode,
    signature,
)
from onnx_serve.codecs import recordio
from onnx_serve.codecs.interface import Answer, Body, Codec, CodecOptions, MediaType
from onnx_serve.codecs.recordio import codec
from onnx_serve.errors import DecodeError, EncodeError, MismatchError
from onnx_serve.tensors import DataType, MapTable, RowAxis, Signature, TensorSpec, Values

Array = npt.NDArray[Any]
MAGIC = bytes.fromhex("0a23d7ce")
ROW = signature(("x", "float", ["N", 3]))
TWO = signature(("x", "float", ["N", 2]), ("y", "int64", ["N"]))
# What the SageMaker SDK writes for [[1.5, 2, 3], [4, 5, 6]] in float32.
SDK = bytes.fromhex(
    "0a23d7ce1c0000000a1a0a0676616c7565731210120e0a0c0000c03f0000004000004040"
    "0a23d7ce1c0000000a1a0a0676616c7565731210120e0a0c000080400000a0400000c040"
)
SDK_ROWS = [[1.5, 2, 3], [4, 5, 6]]


def single(values: Any) -> Array:
    return np.array(values, np.float32)


def message(**features: dict[str, Any]) -> bytes:
    """A record by protobuf: ``message(x={"float32_tensor": {"values": [1.0]}})``."""
    record = recordio._messages()["Record"]()
    for name, value in features.items():
        entry = record.features.add(key=name)
        for kind, fields in value.items():
            getattr(entry.value, kind).SetInParent()
            for field, content in fields.items():
                getattr(getattr(entry.value, kind), field).extend(content)
    data: bytes = record.SerializeToString()
    return data


class Spooled(io.BytesIO):
    """Stands for a stream that is not in memory: it gives less at once than is asked for."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size if size is None or size < 0 else min(size, 700))


def rows_of(stream: BinaryIO, length: int, model: Signature, chunk_bytes: int) -> dict[str, Array]:
    """All that a stream holds from where it is, by input."""
    options = CodecOptions(chunk_bytes=chunk_bytes)
    [document] = recordio.decode(Body(stream, length), MediaType(""), model, options)
    blocks = list(document.blocks)
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def floats(values: Sequence[float], **more: Sequence[int]) -> dict[str, Any]:
    return {"float32_tensor": {"values": values, **more}}


def integers(values: Sequence[int], **more: Sequence[int]) -> dict[str, Any]:
    return {"int32_tensor": {"values": values, **more}}


def framed(*payloads: bytes) -> bytes:
    """Frames as the SageMaker SDK writes them: whole, never cut."""
    return b"".join(MAGIC + struct.pack("<I", len(data)) + data + bytes(-len(data) % 4) for data in payloads)


def cut(payload: bytes) -> bytes:
    """Frames as dmlc's writer makes them: cut at each aligned magic number, which is left out."""
    parts, start = [], 0
    for at in range(0, len(payload) - 3, 4):
        if payload[at : at + 4] == MAGIC:
            parts.append(payload[start:at])
            start = at + 4
    parts.append(payload[start:])
    flags = [0] if len(parts) == 1 else [1, *[2] * (len(parts) - 2), 3]
    return b"".join(
        MAGIC + struct.pack("<I", flag << 29 | len(part)) + part + bytes(-len(part) % 4)
        for flag, part in zip(flags, parts, strict=True)
    )


# Requests.


def test_the_sdks_bytes_are_decoded() -> None:
    np.testing.assert_array_equal(decode_rows(codec, SDK, ROW)["x"], single(SDK_ROWS))


def test_a_body_without_frame_is_one_bare_record() -> None:
    np.testing.assert_array_equal(decode_rows(codec, SDK[8:36], ROW)["x"], single(SDK_ROWS[:1]))


def test_an_empty_body_has_no_records() -> None:
    [(_, blocks)] = decode(codec, b"", ROW)

    assert blocks == []


def test_the_last_record_may_lack_its_padding() -> None:
    """Batch Transform takes padding away from single records."""
    data = framed(message(x=floats([1, 2, 3])), message(x=floats([4, 5, 6])))
    assert data.endswith(b"\xc0\x40\0")

    assert len(decode_rows(codec, data[:-1], ROW)["x"]) == 2


@pytest.mark.parametrize("places", [[0], [1, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 20])
def test_records_cut_at_the_magic_number_are_joined(places: list[int], chunk_bytes: int) -> None:
    """The number occurs as a float; the key's length aligns the values, as the cut needs."""
    rows = np.arange(3, dtype=np.float32)
    rows[places] = np.frombuffer(MAGIC, np.float32)[0]
    payload = message(xy=floats(rows.tolist()))
    model = signature(("xy", "float", ["N", 3]))
    body = cut(payload) + framed(payload) + cut(payload)
    assert body.count(MAGIC) == 3 + 2 * 0 + len(places) * 3

    decoded = decode_rows(codec, body, model, options=CodecOptions(chunk_bytes=chunk_bytes))
    np.testing.assert_array_equal(decoded["xy"], [rows] * 3)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 60), st.integers(1, 4))),
    st.sampled_from(["float32_tensor", "float64_tensor"]),
    st.integers(1, 3000),
)
@settings(max_examples=60)
def test_equal_records_are_decoded_as_each_alone(rows: Array, kind: str, chunk_bytes: int) -> None:
    """Runs are read as a matrix, a lone record by protobuf: both give the same bits."""
    model = signature(("x", kind[:5].replace("float", "double" if "64" in kind else "float"), ["N", "K"]))
    payloads = [message(x={kind: {"values": row}}) for row in rows.tolist()]

    together = decode_rows(codec, framed(*payloads), model, options=CodecOptions(chunk_bytes=chunk_bytes))
    alone = [decode_rows(codec, payload, model)["x"] for payload in payloads]
    np.testing.assert_array_equal(together["x"], np.concatenate(alone))
    np.testing.assert_array_equal(together["x"].astype(np.float32), rows)


@given(
    st.lists(
        st.tuples(st.sampled_from(["ab", "ba", "a b", "c"]), st.integers(1, 40)), min_size=1, max_size=5
    ),
    st.integers(0, 9),
    st.integers(1, 3000),
)
@settings(max_examples=40, deadline=None)
def test_records_of_several_writers_keep_their_order_and_values(
    parts: list[tuple[str, int]], offset: int, chunk_bytes: int
) -> None:
    """Of equal length, and with the features in another order, or with a label; from memory and from a file."""
    rows = np.arange(3 * sum(count for _, count in parts), dtype=np.float32).reshape(-1, 3)
    values = iter(rows.tolist())
    payloads = []
    for writer, count in parts:
        for _ in range(count):
            x, y, z = next(values)
            features = {"a": floats([x, y]), "b": floats([z])}
            payload = message(**{name: features[name] for name in ("ba" if writer == "ba" else "ab")})
            # Field 3 is the record's uid.
            payloads.append(payload + {"a b": b"\x1a\x01u", "c": b"\x1a\x01v"}.get(writer, b""))
    model = signature(("a", "float", ["N", 2]), ("b", "float", ["N", 1]))
    body = framed(*payloads)

    for stream in (io.BytesIO(bytes(offset) + body), Spooled(bytes(offset) + body)):
        stream.seek(offset)
        decoded = rows_of(stream, len(body), model, chunk_bytes)
        np.testing.assert_array_equal(np.hstack([decoded["a"], decoded["b"]]), rows)


@given(st.data())
@settings(max_examples=150)
def test_a_damaged_run_is_decoded_as_protobuf_does(data: st.DataObject) -> None:
    """Whatever byte changes, the matrix way and protobuf agree on values and errors."""
    body = bytearray(framed(*[message(x=floats([i, 1, 2]), z=floats([i])) for i in range(20)]))
    for at in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=2)):
        body[at] = data.draw(st.integers(0, 255))
    model = signature(("x", "float", ["N", "K"]), ("z", "float", ["N", 1]))

    def outcome(min_run: int) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recordio, "_MIN_RUN", min_run)
            try:
                blocks = decode(codec, bytes(body), model)[0][1]
            except (DecodeError, MismatchError) as ex:
                return str(ex)
            return [
                [array.tobytes() for array in row]
                for block in blocks
                for row in zip(*block.values(), strict=True)
            ]

    assert outcome(2) == outcome(1000)


def test_regular_records_need_no_protobuf() -> None:
    """Importing it is left to the first request that needs it; so is the rest of what codecs load."""
    script = (
        "import io, sys\n"
        "from codec_laws import decode_rows, signature\n"
        "from onnx_serve.codecs import recordio, parquet, arrow_stream, image\n"
        f"body = bytes.fromhex({SDK.hex()!r}) * 20\n"
        "decode_rows(recordio.codec, body, signature(('x', 'float', ['N', 3])))\n"
        "print([name for name in ('google.protobuf', 'pyarrow', 'PIL') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", ["x", "values"])
@pytest.mark.parametrize("count", [1, 30])
def test_a_default_is_not_overridden_by_records(name: str, count: int) -> None:
    model = replace(ROW, defaults=(TensorSpec("scale", "tensor(float)", (1,)),))
    plain = framed(*[message(**{name: floats([1, 2, 3])})] * count)
    naming = framed(*[message(**{name: floats([1, 2, 3]), "scale": floats([2])})] * count)

    assert decode_rows(codec, plain, model).keys() == {"x"}
    with pytest.raises(DecodeError, match=r'^expected no feature "scale": .* default .* \(record 1\)$'):
        decode(codec, naming, model)


def test_named_features_feed_the_inputs_of_those_names() -> None:
    rows = decode_rows(codec, framed(message(y=integers([7]), x=floats([1, 2]))), TWO)

    np.testing.assert_array_equal(rows["x"], [[1, 2]])
    np.testing.assert_array_equal(rows["y"], [7])


@pytest.mark.parametrize("count", [1, 40])
def test_a_lone_feature_fills_several_inputs_in_order(count: int) -> None:
    rows = decode_rows(codec, framed(*[message(values=floats([1, 2, 3])) for _ in range(count)]), TWO)

    np.testing.assert_array_equal(rows["x"], [[1, 2]] * count)
    np.testing.assert_array_equal(rows["y"], [3] * count)


@pytest.mark.parametrize("count", [1, 40])
def test_labels_are_skipped(count: int) -> None:
    """They are there in data for training."""
    label = message(y=floats([9])).replace(b"\x0a", b"\x12", 1)
    body = framed(*[label + message(x=floats([i, 1, 2])) + label for i in range(count)])

    assert decode_rows(codec, body, ROW)["x"][:, 0].tolist() == list(range(count))


def test_sparse_features_are_zero_elsewhere() -> None:
    """The SDK writes a row without values with a shape and no keys."""
    body = framed(
        message(values=floats([5, 6], keys=[2, 0], shape=[3])),
        message(values=floats([], shape=[3])),
        message(values=floats([1, 2, 3])),
    )
    np.testing.assert_array_equal(decode_rows(codec, body, ROW)["x"], [[6, 0, 5], [0, 0, 0], [1, 2, 3]])


def test_sparse_keys_count_row_major() -> None:
    model = signature(("x", "float", ["N", 2, 3]))
    body = framed(message(x=floats([9], keys=[4], shape=[2, 3])))

    np.testing.assert_array_equal(decode_rows(codec, body, model)["x"], [[[0, 0, 0], [0, 9, 0]]])


def test_a_written_shape_tells_free_dimensions() -> None:
    model = signature(("x", "float", ["N", "H", "W"]))
    body = framed(message(x=floats(range(6), shape=[2, 3])), message(x=floats(range(6), shape=[3, 2])))

    [(_, blocks)] = decode(codec, body, model)
    assert [block["x"].shape for block in blocks] == [(1, 2, 3), (1, 3, 2)]


def test_strings_travel_as_bytes() -> None:
    model = signature(("x", "string", ["N", 2]))
    body = framed(message(x={"bytes": {"value": ["é".encode(), b""]}}))

    assert decode_rows(codec, body, model)["x"].tolist() == [["é", ""]]


def test_without_rows_a_record_is_a_run() -> None:
    model = signature(("x", "float", ["H", 2]), row_axis=RowAxis.NONE)
    body = framed(message(x=floats([1, 2, 3, 4])), message(x=floats([5, 6])))

    [(_, blocks)] = decode(codec, body, model)
    assert [block["x"].tolist() for block in blocks] == [[[1, 2], [3, 4]], [[5, 6]]]


def test_sparse_records_come_in_blocks_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordio, "_BLOCK_VALUES", 1 << 12)
    model = signature(("x", "float", ["N", 1 << 10]))
    body = framed(*[message(x=floats([1], keys=[i], shape=[1 << 10])) for i in range(10)])

    [(_, blocks)] = decode(codec, body, model)
    assert [len(block["x"]) for block in blocks] == [4, 4, 2]


GOOD = message(x=floats([1, 2, 3]))
ERRORS = {
    "not a record": (b"hello", "expected a protobuf message aialgs.data.Record"),
    "magic": (framed(GOOD) + b"abcdefgh", "expected the magic number 0a23d7ce of a frame, got 61626364 (record 2)"),
    "short header": (framed(GOOD) + MAGIC, "the body ends after 4 of a frame's first 8 bytes (record 2)"),
    "truncated": (framed(GOOD)[:-7], "got 17 up to the body's end (record 1)"),
    "forged length": (MAGIC + b"\xff\xff\xff\x1f" + GOOD, "expected a frame of 536870911 bytes, got 23"),
    "flag": (MAGIC + b"\0\0\0\xff", "expected a frame's flag to be 0, 1, 2 or 3, got 7"),
    "middle first": (MAGIC + b"\0\0\0\x40", "expected a frame's flag to be 1, got 2"),
    "no last": (MAGIC + b"\0\0\0\x20", "the body ends before the last part of a record"),
    "whole inside": (MAGIC + b"\0\0\0\x20" + framed(GOOD), "expected a frame's flag to be 2 or 3, got 0"),
    "protobuf": (framed(b"\x0a\x02\x12\xff"), "expected a protobuf message"),
    "wire type": (framed(b"\x08\x01"), "the field features has the wire type 0"),
    "no features": (framed(b""), 'expected the features "x" or a lone "values", got none'),
    "name": (framed(message(z=floats([1]))), 'expected the features "x" or a lone "values", got "z"'),
    "twice": (framed(GOOD + GOOD), "expected each feature once"),
    "count": (framed(message(x=floats([1, 2]))), 'input "x": expected FLOAT[N, 3], got 2 values for a record'),
    "count of many": (framed(*[message(x=floats([1, 2]))] * 20), "got 2 values for a record (record 1)"),
    "shape": (framed(message(x=floats([1, 2, 3], shape=[9]))), "got 3 values for a record"),
    "dimensions": (framed(message(x=floats([1, 2, 3, 4], shape=[2, 2]))), "got 4 values of shape [2, 2] for a record"),
    "part of a float": (framed(*[GOOD.replace(b"\x0a\x0c", b"\x0a\x0b")[:-1].replace(b"\x0e", b"\x0d").replace(b"\x10", b"\x0f").replace(b"\x15", b"\x14")] * 20), "expected a protobuf message"),
    "no value": (framed(message(x={})), 'feature "x": expected a value, got none'),
    "sparse shape": (framed(message(x=floats([1], keys=[0], shape=[4]))), "expected a shape of 3 values, got [4]"),
    "sparse no shape": (framed(message(x=floats([1], keys=[0]))), "expected a shape of 3 values, got []"),
    "sparse key": (framed(message(x=floats([1], keys=[3], shape=[3]))), "expected keys below 3, got 3"),
    "sparse again": (framed(message(x=floats([1, 2], keys=[0, 0], shape=[3]))), "expected each key once"),
    "sparse count": (framed(message(x=floats([1], keys=[0, 1], shape=[3]))), "as many values as keys, got 1 and 2"),
    "utf-8": (framed(message(x={"bytes": {"value": [b"\xff"]}})), "expected strings in UTF-8"),
    "many": (framed(b"\x0a\x00" * 10_001), "expected at most 10000 features, got 10001"),
    "name utf-8": (framed(GOOD.replace(b"x", b"\xff")), "expected the features"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "problem"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_was_expected_and_where(body: bytes, problem: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(codec, body, ROW)

    assert problem in str(caught.value)
    assert "(record " in str(caught.value)


def test_a_sparse_record_never_sizes_a_free_dimension() -> None:
    model = signature(("x", "float", ["N", "K"]))
    body = framed(message(x=floats([1], keys=[0], shape=[1 << 40])))

    with pytest.raises(DecodeError, match=r"sparse: expected inputs of known size, got \[1099511627776\]"):
        decode(codec, body, model)


@pytest.mark.parametrize(
    ("values", "problem"),
    [([1, 2], "expected 3 values for the inputs"), ([1, 2, 3, 4], "got 4")],
    ids=["few", "many"],
)
def test_a_lone_feature_has_a_value_for_every_input(values: list[float], problem: str) -> None:
    with pytest.raises(DecodeError, match=problem):
        decode(codec, framed(message(values=floats(values))), TWO)


def test_a_lone_feature_cannot_feed_several_free_inputs() -> None:
    model = signature(("x", "float", ["N", "K"]), ("y", "float", ["N"]))

    with pytest.raises(DecodeError, match="one list cannot be divided among free sizes"):
        decode(codec, framed(message(values=floats([1]))), model)


def test_a_bare_record_is_bounded() -> None:
    class Endless:
        def read(self, size: int) -> bytes:
            return b"a" * min(size, 10)

    assert codec.decode is not None
    documents = codec.decode(Body(Endless(), 1 << 29), MediaType(""), ROW, OPTIONS)  # type: ignore[arg-type]
    with pytest.raises(DecodeError, match=r"less than 2\^29 bytes"):
        list(next(iter(documents)).blocks)


@given(st.binary(max_size=60), st.booleans(), st.sampled_from([ROW, TWO]))
@settings(max_examples=150)
def test_any_bytes_decode_or_are_refused(data: bytes, frame: bool, model: Any) -> None:
    check_arbitrary_bytes(codec, framed(data) if frame else data, model, CodecOptions(chunk_bytes=7))


# Answers.


def as_request(body: bytes) -> bytes:
    """An answer as a request: each record's labels as its features."""
    payloads = []
    for record in labels_of(body):
        record.features.extend(record.label)
        record.ClearField("label")
        payloads.append(record.SerializeToString())
    return framed(*payloads)


def encode_request(
    answers: Iterable[Answer], sink: BinaryIO, media_type: MediaType, model: Signature, options: CodecOptions
) -> None:
    written = io.BytesIO()
    recordio.encode(answers, written, media_type, model, options)
    sink.write(as_request(written.getvalue()))


ECHO = Codec(codec.media_types, codec.decode, encode_request)


@pytest.mark.parametrize(
    "dtype", [d for d in DataType if d is not DataType.STRING and d.is_native], ids=lambda d: d.name
)
@given(data=st.data())
@settings(max_examples=12)
def test_numbers_survive_the_round_trip(dtype: DataType, data: st.DataObject) -> None:
    limit = 2**31 - 1
    elements = None
    if dtype.is_integer:
        info = np.iinfo(dtype.numpy)
        elements = st.integers(max(info.min, -limit - 1), min(info.max, limit))
    shape = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)
    array = data.draw(hnp.arrays(dtype.numpy, shape, elements=elements))
    check_round_trip(ECHO, {"x": array}, [TensorSpec("x", f"tensor({dtype.ort})", (None,) * array.ndim)])


@given(
    hnp.arrays(
        object,
        hnp.array_shapes(max_dims=2, max_side=4),
        elements=st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    )
)
@settings(max_examples=20)
def test_strings_survive_the_round_trip(array: Array) -> None:
    check_round_trip(ECHO, {"x": array}, [TensorSpec("x", "tensor(string)", (None,) * array.ndim)])


def answer(*blocks: dict[str, Any], has_rows: bool = True) -> bytes:
    outputs = [(name, "float", [None]) for name in blocks[0]]
    model = signature(outputs=outputs, row_axis=RowAxis.FREE if has_rows else RowAxis.NONE)
    return encode(codec, blocks, model)


def labels_of(body: bytes) -> list[Any]:
    """Each framed record, read by protobuf."""
    records = []
    while body:
        magic, length = struct.unpack_from("<4sI", body)
        assert magic == MAGIC
        records.append(recordio._messages()["Record"].FromString(body[8 : 8 + length]))
        body = body[8 + length + -length % 4 :]
    return records


def labels(body: bytes) -> list[dict[str, Any]]:
    return [{entry.key: entry.value for entry in record.label} for record in labels_of(body)]


def test_an_answer_has_these_bytes() -> None:
    assert answer({"score": single([0.5])}).hex() == (
        "0a23d7ce1300000012110a0573636f7265120812060a040000003f00"
    )


@pytest.mark.parametrize("first", [0, 200, -1], ids=["one byte", "two bytes", "negative"])
def test_outputs_are_labels_by_name_as_protobuf_writes_them(first: int) -> None:
    """The matrix way (numbers of one byte) and protobuf's give the same messages."""
    block: Values = {
        "label": np.array([first, 127]),
        "probability": MapTable((0, 1), single([[0.25, 0.75], [1, 0]])),
        "embedding": np.arange(12, dtype=np.float64).reshape(2, 2, 3),
        "empty": np.zeros((2, 0), np.float32),
    }
    body = answer(block)
    records = labels(body)

    assert [list(record["label"].int32_tensor.values) for record in records] == [[first], [127]]
    assert list(records[0]["probability"].float32_tensor.values) == [0.25, 0.75]
    assert list(records[1]["embedding"].float64_tensor.values) == [6, 7, 8, 9, 10, 11]
    assert list(records[1]["embedding"].float64_tensor.shape) == [2, 3]
    assert records[0]["empty"].WhichOneof("value") == "float32_tensor"
    columns = [recordio._column(name, value, has_rows=True) for name, value in block.items()]
    assert b"".join(recordio._encode_record(columns, row) for row in range(2)) == body


def test_without_rows_an_answer_has_a_record_a_run() -> None:
    body = answer({"y": single([1, 2])}, {"y": single([3])}, has_rows=False)

    assert [list(record["y"].float32_tensor.values) for record in labels(body)] == [[1, 2], [3]]


UNENCODABLE = {
    "wide integer": (np.array([2**31]), 'holds integers of 32 bits; output "y" has 2147483648'),
    "sequence": ([np.zeros(1)], 'output "y" is list'),
    "none": (None, 'output "y" is NoneType'),
    "complex": (np.zeros(1, np.complex64), 'output "y" is complex64'),
    "scalar": (np.array(1.0), "one value for all rows"),
    "surrogate": (np.array(["\ud800"], object), "has no form in UTF-8"),
}


@pytest.mark.parametrize(("value", "problem"), UNENCODABLE.values(), ids=UNENCODABLE)
def test_outputs_without_a_form_are_refused(value: Any, problem: str) -> None:
    with pytest.raises(EncodeError, match=problem):
        answer({"y": value})


def test_outputs_of_different_numbers_of_rows_are_refused() -> None:
    with pytest.raises(EncodeError, match="different numbers of rows"):
        answer({"y": np.zeros(1), "z": np.zeros(2)})


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_a_record_too_long_for_a_frame_is_refused(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_serve.codecs.recordio_frames.MAX_LENGTH", 100)
    with pytest.raises(EncodeError, match="more than 100 bytes"):
        answer({"y": np.full((1, 200), 300, dtype)})
