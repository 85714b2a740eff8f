"""The binary tensor data extension, byte by byte."""

import io
import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from codec_laws import OPTIONS, signature
from onnx_serve.codecs.oip_binary import InferRequest, read_request, write_response
from onnx_serve.errors import DecodeError, EncodeError, MismatchError
from onnx_serve.tensors import DataType, MapTable, RowAxis, Signature, Values, conform

MODEL = signature(("x", "float", ["N", 2]), outputs=[("p", "float", ["N", 2]), ("q", "int64", ["N"])])
TEXT = signature(("t", "string", ["N"]), outputs=[("u", "string", ["N"])])
X = {"name": "x", "shape": [1, 2], "datatype": "FP32"}
# 1.5 and -2 as IEEE 754 single precision, least byte first.
RAW = bytes.fromhex("0000c03f 000000c0")
NATIVE = [member for member in DataType if member.is_native and member is not DataType.STRING]


def message(*raw: bytes, **request: Any) -> tuple[bytes, int]:
    """A body, and where its JSON ends."""
    header = json.dumps(request).encode()
    return header + b"".join(raw), len(header)


def binary(size: Any, **entry: Any) -> dict[str, Any]:
    return {**X, "parameters": {"binary_data_size": size}, **entry}


def answer(request: InferRequest, outputs: Values, model: Signature = MODEL) -> tuple[Any, bytes]:
    """The JSON of a response, and the bytes behind it."""
    sink = io.BytesIO()
    length = write_response(outputs, request, model, OPTIONS, sink, version="3")
    data = sink.getvalue()
    return json.loads(data[:length]), data[length or len(data) :]


def test_golden_request() -> None:
    """Bytes as the extension's document has them."""
    header = (
        b'{"id":"7","inputs":[{"name":"x","shape":[1,2],"datatype":"FP32",'
        b'"parameters":{"binary_data_size":8}}],'
        b'"outputs":[{"name":"q","parameters":{"binary_data":true}},{"name":"p"}]}'
    )
    request = read_request(header + RAW, len(header), MODEL)

    np.testing.assert_array_equal(request.tensors["x"], np.array([[1.5, -2]], np.float32))
    assert (request.request_id, request.outputs) == ("7", ("q", "p"))
    assert request.binary == {"q"}


@pytest.mark.parametrize(
    ("header", "binary_outputs"),
    [
        ('{"inputs":[%s],"parameters":{"binary_data_output":true}}', {"p", "q"}),
        (r'{"inputs":[%s],"\u0070arameters":{"binary\u005fdata_output":true}}', {"p", "q"}),
        ('{"inputs":[%s],"outputs":[{"name":"p","parameters":{"binary_data":true}}]}', {"p"}),
        ('{"inputs":[%s],"parameters":{"priority":1}}', set()),
        ('{"inputs":[%s]}', set()),
    ],
)
@pytest.mark.parametrize("length", [None, "all"])
def test_parameters_of_a_message_without_bytes_hold(
    header: str, binary_outputs: set[str], length: str | None
) -> None:
    """The quick way of plain numbers reads none, so it is taken where none decides."""
    body = (header % '{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}').encode()
    request = read_request(body, None if length is None else len(body), MODEL)

    assert request.binary == binary_outputs
    np.testing.assert_array_equal(request.tensors["x"], np.array([[1, 2]], np.float32))


def test_shared_memory_is_refused_beside_numbers() -> None:
    entry = {**X, "data": [1, 2], "parameters": {"shared_memory_region": "r"}}

    with pytest.raises(DecodeError, match="shared memory is not supported"):
        read_request(json.dumps({"inputs": [entry]}).encode(), None, MODEL)


def test_golden_response() -> None:
    request = InferRequest({}, "7", ("q", "p"), frozenset({"q"}))
    header, raw = answer(request, {"p": np.array([[0.5, 1]], np.float32), "q": np.array([258])})

    assert header == {
        "model_version": "3",
        "model_name": "model",
        "id": "7",
        "outputs": [
            {"name": "q", "datatype": "INT64", "shape": [1], "parameters": {"binary_data_size": 8}},
            {"name": "p", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 1.0]},
        ],
    }
    assert raw == bytes.fromhex("02 01 00 00 00 00 00 00")


def test_golden_strings() -> None:
    """Each element behind its length: four bytes, the least first."""
    raw = b"\x02\x00\x00\x00\xc3\xa9\x00\x00\x00\x00"
    entry = {"name": "t", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    body, length = message(raw, inputs=[entry], parameters={"binary_data_output": True})
    request = read_request(body, length, TEXT)

    assert request.tensors["t"].tolist() == ["é", ""]
    header, back = answer(request, {"u": request.tensors["t"]}, TEXT)
    assert back == raw
    assert header["outputs"][0]["datatype"] == "BYTES"


def test_bytes_are_shared_where_they_are_aligned() -> None:
    """A header padded with spaces to a multiple of eight costs no copy; any other is copied, not misread."""
    for padding in range(9):
        header = json.dumps({"inputs": [binary(8)]}).encode() + b" " * padding
        body = header + RAW
        array = read_request(body, len(header), MODEL).tensors["x"]
        address = np.frombuffer(body, np.uint8).__array_interface__["data"][0] + len(header)
        shared = array.__array_interface__["data"][0] == address
        assert shared == (address % 4 == 0)
        assert array.flags.aligned
        np.testing.assert_array_equal(array, np.array([[1.5, -2]], np.float32))


@given(data=st.data(), dtype=st.sampled_from([*NATIVE, DataType.BFLOAT16, DataType.STRING]))
@settings(max_examples=150, deadline=None)
def test_what_is_answered_can_be_asked(data: st.DataObject, dtype: DataType) -> None:
    """An output, written and read as an input again, is the same to the bit, whatever its type and shape."""
    shape = tuple(data.draw(st.lists(st.integers(0, 3), max_size=3)))
    if dtype is DataType.STRING:
        count = int(np.prod(shape))
        array = np.empty(count, object)
        array[:] = data.draw(st.lists(st.text(max_size=5), min_size=count, max_size=count))
        array = array.reshape(shape)
    elif dtype is DataType.BFLOAT16:
        array = data.draw(hnp.arrays(np.int8, shape)).astype(np.float32)
    else:
        array = data.draw(hnp.arrays(dtype.numpy, shape))
    model = signature(("v", dtype.ort, [None] * len(shape)), outputs=[("v", dtype.ort, [None] * len(shape))])
    header, raw = answer(InferRequest({}, None, (), frozenset({"v"})), {"v": array}, model)
    [entry] = header["outputs"]
    assert entry["parameters"]["binary_data_size"] == len(raw)
    body, length = message(raw, inputs=[entry])

    back = read_request(body, length, model).tensors["v"]
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tolist() == array.tolist() or back.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("request_", "raw", "words"),
    [
        ({"inputs": [binary(8)]}, b"", "expected 8 bytes of data, got 0"),
        ({"inputs": [binary(8)]}, RAW + b"x", "nothing behind the tensors' data, got 1 bytes"),
        ({"inputs": [binary(4)]}, RAW[:4], "expected 8 bytes for FLOAT[1, 2], got 4"),
        ({"inputs": [binary(-1)]}, b"", "binary_data_size, a number of bytes, got -1"),
        ({"inputs": [binary(1e300)]}, b"", "binary_data_size, a number of bytes, got 1e+300"),
        ({"inputs": [binary(True)]}, b"", "binary_data_size, a number of bytes, got true"),
        ({"inputs": [binary("8")]}, RAW, 'binary_data_size, a number of bytes, got "8"'),
        ({"inputs": [binary(2**62)]}, RAW, "expected 4611686018427387904 bytes of data, got 8"),
        ({"inputs": [binary(2**70)]}, RAW, "a number of bytes, got 1.18"),
        ({"inputs": [binary(8, shape=[2**39, 2**39])]}, RAW, "got 8"),
        ({"inputs": [binary(8, shape=[2**41])]}, RAW, "expected a shape like [2, 4]"),
        ({"inputs": [binary(0, shape=[0] + [2**39] * 60)]}, b"", "is too large"),
        ({"inputs": [binary(0, shape=[1] * 65)]}, b"", "expected a shape like [2, 4]"),
        ({"inputs": [binary(8, shape=[1.0, 2])]}, RAW, "expected a shape like [2, 4]"),
        ({"inputs": [binary(8, shape="1,2")]}, RAW, "expected a shape like [2, 4]"),
        ({"inputs": [binary(8, datatype="FLOAT128")]}, RAW, "expected a datatype of BOOL"),
        ({"inputs": [binary(8, datatype=7)]}, RAW, "expected a datatype of BOOL"),
        ({"inputs": [binary(8, name=7)]}, RAW, '"name": expected a string, got 7'),
        ({"inputs": [binary(8, data=[1, 2])]}, RAW, 'unknown key "data" beside binary_data_size'),
        ({"inputs": [binary(8), binary(8)]}, RAW * 2, 'expected each input once, got "x" again'),
        ({"inputs": [binary(8), {**X, "data": [1, 2]}]}, RAW, 'expected each input once, got "x" again'),
        ({"inputs": [{"parameters": {"binary_data_size": 0}}]}, b"", 'expected an object with "name"'),
        ({"inputs": [{**X, "parameters": [1]}]}, b"", 'expected an object of "parameters", got a list of 1'),
        ({"inputs": [7]}, b"x", "expected an object"),
        ({"inputs": {}}, b"x", 'expected an object with a list of "inputs"'),
        ({}, b"x", 'expected an object with a list of "inputs"'),
        ({"inputs": [{**X, "parameters": {"shared_memory_region": "r"}}]}, b"x", "shared memory is not supp"),
        ({"inputs": [binary(8)], "id": 7}, RAW, '"id": expected a string'),
        ({"inputs": [binary(8)], "what": 7}, RAW, 'unknown key "what"'),
        ({"inputs": [binary(8)], "parameters": 7}, RAW, 'expected an object of "parameters", got 7'),
        (
            {"inputs": [binary(8)], "parameters": {"binary_data_output": 1}},
            RAW,
            "binary_data_output: expected",
        ),
        ({"inputs": [binary(8)], "outputs": [{"name": "z"}]}, RAW, 'expected names of the outputs "p"'),
        (
            {"inputs": [binary(8)], "outputs": [{"name": "p", "parameters": {"binary_data": "yes"}}]},
            RAW,
            "binary_data: expected true or false",
        ),
        (
            {"inputs": [binary(8)], "outputs": [{"name": "p", "parameters": {"classification": 3}}]},
            RAW,
            "classification is not supported",
        ),
        (
            {"inputs": [binary(8)], "outputs": [{"name": "p", "parameters": {"shared_memory_region": "r"}}]},
            RAW,
            "shared memory is not supported",
        ),
        ({"inputs": [binary(2, datatype="BOOL")]}, b"\x00\x02", "expected bytes of 0 and 1 for BOOL"),
    ],
)
def test_wrong_requests(request_: dict[str, Any], raw: bytes, words: str) -> None:
    body, length = message(raw, **request_)
    with pytest.raises(DecodeError) as error:
        read_request(body, length, MODEL)
    assert words in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("raw", "count", "words"),
    [
        (b"\x01\x00\x00", 1, "expected 1 BYTES elements, got 3 bytes"),
        (b"\x05\x00\x00\x00abc", 1, "the data end within the BYTES element 0"),
        (b"\xff\xff\xff\xffabcd", 1, "the data end within the BYTES element 0"),
        (b"\x01\x00\x00\x00\xff", 1, "the BYTES element 0 is no UTF-8"),
        (b"\x00\x00\x00\x00x", 1, "got 1 bytes more"),
        (b"\x00\x00\x00\x00", 2**39, "expected 549755813888 BYTES elements, got 4 bytes"),
    ],
)
def test_wrong_strings(raw: bytes, count: int, words: str) -> None:
    """A count or a length that the body does not hold costs no memory."""
    entry = {"name": "t", "shape": [count], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    body, length = message(raw, inputs=[entry])
    with pytest.raises(DecodeError) as error:
        read_request(body, length, TEXT)
    assert words in str(error.value)


@pytest.mark.parametrize("length", [-1, 3, 2**64])
def test_header_beyond_the_body(length: int) -> None:
    with pytest.raises(DecodeError, match="expected a JSON header of"):
        read_request(b"{}", length, MODEL)


@given(st.binary(max_size=200), st.integers(0, 250))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_request_or_an_error(junk: bytes, length: int) -> None:
    """Junk, and junk in place of pieces of a message."""
    good, end = message(RAW, inputs=[binary(8)])
    for body, header in ((junk, length), (good[:length] + junk, end), (good[: end - length] + junk, None)):
        text = ""
        try:
            request = read_request(body, header, MODEL)
            conform(request.tensors, MODEL)
        except (DecodeError, MismatchError) as error:
            text = str(error)
        assert "\n" not in text
        assert len(text) < 1000


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x", 'input "x": expected FLOAT[N, 2], got BYTES'),
        ("z", 'expected the inputs "x" FLOAT[N, 2]: unknown "z"'),
    ],
    ids=["known", "unknown"],
)
def test_bytes_for_another_input_are_refused_before_they_are_strings(name: str, words: str) -> None:
    raw = b"\xff" * 8  # no strings
    body, length = message(raw, inputs=[binary(8, name=name, datatype="BYTES")])

    with pytest.raises(MismatchError) as caught:
        read_request(body, length, MODEL)
    assert words in str(caught.value)


def test_a_message_of_nothing_says_so() -> None:
    with pytest.raises(DecodeError, match="got an empty body"):
        read_request(b"", None, MODEL)


def test_a_wrong_shape_is_shown() -> None:
    body, length = message(RAW, inputs=[binary(8, shape=[-1, 2])])

    with pytest.raises(DecodeError, match=r'input "x": expected a shape like \[2, 4\], got \[-1, 2\]'):
        read_request(body, length, MODEL)


def test_strings_are_written_without_an_object_for_each() -> None:
    """A response of short strings takes about its own bytes."""
    count = 100_000
    request = InferRequest({}, None, (), frozenset({"u"}))
    texts = np.full(count, "ab", object)
    tracemalloc.start()
    _, raw = answer(request, {"u": texts}, TEXT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert raw == count * b"\x02\x00\x00\x00ab"
    assert peak < 6 * len(raw)


def test_plain_json_is_the_same_as_exact_json() -> None:
    """The fast way through simdjson and the slow one give one result."""
    plain, _ = message(inputs=[{**X, "data": [1.5, -2]}], id="a", outputs=[{"name": "p"}])
    exact, _ = message(inputs=[{**X, "data": [1.5, -2]}], id="a", outputs=[{"name": "p"}], parameters={})
    one, other = read_request(plain, None, MODEL), read_request(exact, None, MODEL)

    assert one.tensors["x"].tolist() == other.tensors["x"].tolist() == [[1.5, -2]]
    assert (one.request_id, one.outputs, one.binary) == (other.request_id, other.outputs, other.binary)
    assert one.binary == frozenset()


@pytest.mark.parametrize(
    ("model", "body", "shape"),
    [
        (MODEL, RAW * 3, (3, 2)),
        (signature(("x", "float", [2, 1])), RAW, (2, 1)),
        (signature(("x", "float", []), row_axis=RowAxis.NONE), RAW[:4], ()),
        (signature(("x", "float", [1, 2]), row_axis=RowAxis.FIXED), RAW * 3, (3, 2)),
        (signature(("x", "string", ["N"])), b"\x01\x00\x00\x00a", (1,)),
    ],
    ids=["rows", "fixed", "scalar", "fixed rows", "string"],
)
def test_raw_bodies(model: Signature, body: bytes, shape: tuple[int, ...]) -> None:
    """Without a header the size tells the shape, and the answer is binary."""
    request = read_request(body, 0, model)

    assert request.tensors[model.inputs[0].name].shape == shape
    assert request.binary == {spec.name for spec in model.outputs}


@pytest.mark.parametrize(
    ("model", "body", "words"),
    [
        (MODEL, RAW + b"x", "expected a multiple of 8 bytes, got 9 bytes"),
        (signature(("x", "int4", ["N"])), b"a", "do not tell how many elements of 4 bits"),
        (signature(("x", "float", ["N", "M"])), RAW, "several free dimensions"),
        (signature(("x", "float", [1]), ("y", "float", [1])), RAW, "a model of one input"),
        (signature(("x", "string", [2])), RAW, "an input of one element"),
        (signature(("x", "seq(tensor(float))", [])), RAW, "a tensor as input"),
    ],
    ids=["size", "half bytes", "free", "inputs", "strings", "sequence"],
)
def test_raw_bodies_that_tell_no_shape(model: Signature, body: bytes, words: str) -> None:
    with pytest.raises((DecodeError, MismatchError), match=words):
        read_request(body, 0, model)


def test_values_without_a_raw_form_are_json() -> None:
    """A table of maps stays JSON although bytes were asked for, and says so by its missing size."""
    model = signature(
        ("x", "float", ["N", 2]),
        outputs=[("m", "seq(map(int64,tensor(float)))", []), ("p", "float", ["N", 2])],
    )
    table = MapTable((0, 1), np.array([[0.25, 0.75]], np.float32))
    request = InferRequest({}, None, (), frozenset({"m", "p"}))
    header, raw = answer(request, {"m": table, "p": np.array([[1.5, -2]], np.float32)}, model)

    first, second = header["outputs"]
    assert "data" in first
    assert second["parameters"] == {"binary_data_size": 8}
    assert raw == RAW


def test_strings_without_utf8_have_no_form() -> None:
    request = InferRequest({}, None, (), frozenset({"u"}))
    with pytest.raises(EncodeError, match="UTF-8"):
        answer(request, {"u": np.array(["\ud800"], object)}, TEXT)


def test_outputs_of_any_layout_in_memory() -> None:
    """Transposed and big-endian arrays leave row by row, the least byte first."""
    values = np.arange(4, dtype=">i8").reshape(2, 2).T
    model = signature(("x", "int64", ["N"]), outputs=[("y", "int64", [2, 2])])
    _, raw = answer(InferRequest({}, None, (), frozenset({"y"})), {"y": values}, model)

    assert struct.unpack("<4q", raw) == (0, 2, 1, 3)
