from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from codec_laws import check_arbitrary_bytes, check_round_trip, decode, decode_rows, encode, signature
from onnx_serve.codecs.interface import Body, CodecOptions, MediaType
from onnx_serve.codecs.octet_stream import codec
from onnx_serve.errors import DecodeError, EncodeError
from onnx_serve.tensors import DataType, MapTable, RowAxis, Signature, TensorSpec

Array = npt.NDArray[Any]
NUMERIC = [dtype for dtype in DataType if dtype.is_native and dtype is not DataType.STRING]
ROW = signature(("x", "float", ["N", 3]))


def single(values: Any) -> Array:
    return np.array(values, np.float32)


@pytest.mark.parametrize("dtype", NUMERIC, ids=lambda dtype: dtype.name)
@given(data=st.data())
@settings(max_examples=10)
def test_numbers_survive_the_round_trip(dtype: DataType, data: st.DataObject) -> None:
    array = data.draw(hnp.arrays(dtype.numpy, hnp.array_shapes(max_dims=3, max_side=4)))
    check_round_trip(codec, {"x": array}, [TensorSpec("x", f"tensor({dtype.ort})", (None, *array.shape[1:]))])


@given(hnp.arrays(np.int8, st.tuples(st.integers(1, 5), st.integers(2, 5)), elements=st.integers(-8, 7)))
@settings(max_examples=30)
def test_elements_that_share_bytes_survive_the_round_trip(array: npt.NDArray[np.int8]) -> None:
    """Rows of an odd number of 4-bit integers end within a byte."""
    check_round_trip(codec, {"x": array}, [TensorSpec("x", "tensor(int4)", (None, array.shape[1]))])


def test_bytes_are_little_endian_and_row_major() -> None:
    data = np.arange(6, dtype="<f4").tobytes()

    np.testing.assert_array_equal(decode_rows(codec, data, ROW)["x"], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("chunk_bytes", [1, 24, 1 << 20])
def test_rows_come_in_blocks(chunk_bytes: int) -> None:
    data = np.arange(30, dtype="<f4").tobytes()

    [(_, blocks)] = decode(codec, data, ROW, options=CodecOptions(chunk_bytes=chunk_bytes))
    assert [len(block["x"]) for block in blocks] == {1: [1] * 10, 24: [2] * 5}.get(chunk_bytes, [10])


def test_a_stream_may_give_less_than_is_asked_for() -> None:
    class Slow:
        def __init__(self) -> None:
            self.left = 24

        def read(self, size: int) -> bytes:
            size = min(size, 5, self.left)
            self.left -= size
            return bytes(size)

    assert codec.decode is not None
    [document] = codec.decode(Body(Slow(), 24), MediaType(""), ROW, CodecOptions())  # type: ignore[arg-type]
    assert [block["x"].shape for block in document.blocks] == [(2, 3)]
    [document] = codec.decode(Body(Slow(), 36), MediaType(""), ROW, CodecOptions())  # type: ignore[arg-type]
    with pytest.raises(DecodeError, match="the body ends 12 bytes early"):
        list(document.blocks)


SHAPES: dict[str, tuple[list[Any], int, tuple[int, ...]]] = {
    "known": ([2, 3], 24, (2, 3)),
    "scalar": ([], 4, ()),
    "one free": ([2, "T"], 32, (2, 4)),
    "free and empty": ([2, "T"], 0, (2, 0)),
}


@pytest.mark.parametrize(("shape", "length", "expected"), SHAPES.values(), ids=SHAPES)
def test_without_rows_the_bytes_are_one_run(shape: list[Any], length: int, expected: tuple[int, ...]) -> None:
    model = signature(("x", "float", shape), row_axis=RowAxis.NONE)

    [(_, [block])] = decode(codec, bytes(length), model)
    assert block["x"].shape == expected


def test_an_empty_body_has_no_records() -> None:
    [(_, blocks)] = decode(codec, b"", ROW)

    assert blocks == []


FREE = signature(("x", "float", [2, "T"]), row_axis=RowAxis.NONE)
FIXED = signature(("x", "float", [2, 3]), row_axis=RowAxis.NONE)
ERRORS: dict[str, tuple[int, Signature, str]] = {
    "rows": (13, ROW, 'input "x" FLOAT[N, 3]: expected a multiple of 12 bytes, got 13 bytes'),
    "known": (20, FIXED, 'input "x" FLOAT[2, 3]: expected 24 bytes, got 20 bytes'),
    "free": (12, FREE, 'input "x" FLOAT[2, T]: expected a multiple of 8 bytes, got 12 bytes'),
    "several free": (12, signature(("x", "float", ["N", "T"])), '"x" FLOAT[N, T]: raw bytes do not tell'),
    "nothing": (0, signature(("x", "float", ["N", 0])), "raw bytes do not tell"),
    "part of a byte": (1, signature(("x", "int4", ["N"])), "raw bytes do not tell how many elements"),
    "nibbles": (4, signature(("x", "int4", ["N", 3])), "expected a multiple of 12 bits, got 4 bytes"),
    "strings": (4, signature(("x", "string", ["N"])), "this model takes"),
    "sequence": (4, signature(("x", "seq(tensor(float))", [])), "this model takes"),
    "two inputs": (4, signature(("x", "float", ["N"]), ("y", "float", ["N"])), "a model's only input"),
    "no input": (4, signature(), "takes no input"),
}


@pytest.mark.parametrize(("length", "model", "problem"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_was_expected(length: int, model: Signature, problem: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(codec, bytes(length), model)

    assert problem in str(caught.value)


def test_booleans_are_zero_or_one() -> None:
    model = signature(("x", "bool", ["N"]))

    assert decode_rows(codec, b"\0\1", model)["x"].tolist() == [False, True]
    with pytest.raises(DecodeError, match="expected booleans to be 0 or 1, got 2"):
        decode(codec, b"\0\2", model)


def test_maps_are_their_values() -> None:
    model = signature(outputs=[("y", "seq(map(int64,tensor(float)))", [])])

    data = encode(codec, [{"y": MapTable((0, 1), single([[1, 2]]))}], model)
    assert np.frombuffer(data, "<f4").tolist() == [1, 2]


def test_no_answer_is_no_bytes() -> None:
    for kind in ("float", "int4"):
        assert encode(codec, [], signature(outputs=[("y", kind, ["N"])])) == b""


@pytest.mark.parametrize(
    ("value", "problem"),
    [(np.array(["a"], object), 'output "y" is object'), ([1], 'output "y" is list'), (None, "is NoneType")],
    ids=["strings", "sequence", "none"],
)
def test_outputs_without_a_form_are_refused(value: Any, problem: str) -> None:
    with pytest.raises(EncodeError, match=problem):
        encode(codec, [{"y": value}], signature(outputs=[("y", "float", ["N"])]))


def test_several_outputs_are_refused() -> None:
    model = signature(outputs=[("y", "float", ["N"]), ("z", "float", ["N"])])

    with pytest.raises(EncodeError, match=r'2 outputs \("y", "z"\); application/x-npz'):
        encode(codec, [], model)


@given(st.binary(max_size=30), st.sampled_from([ROW, FREE, FIXED]))
@settings(max_examples=60)
def test_any_bytes_decode_or_are_refused(data: bytes, model: Signature) -> None:
    check_arbitrary_bytes(codec, data, model)
