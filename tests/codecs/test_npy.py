import io
import math
import struct
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from codec_laws import (
    OPTIONS,
    arrays_of,
    check_arbitrary_bytes,
    check_round_trip,
    decode,
    decode_rows,
    encode,
    signature,
)
from onnx_serve.codecs.interface import Answer, Body, CodecOptions, MediaType
from onnx_serve.codecs.npy import codec
from onnx_serve.errors import DecodeError, EncodeError, MismatchError
from onnx_serve.tensors import DataType, MapTable, RowAxis, Signature, TensorSpec, Value, Values

Array = npt.NDArray[Any]
MATRIX = signature(("x", "float", ["N", 4]), outputs=[("y", "float", ["N", 4])])
NUMERIC = [dtype for dtype in DataType if dtype is not DataType.STRING]
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5)
# What NumPy's fixed-width strings can hold: no NUL at the end, no surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).map(lambda text: text.rstrip("\0"))


def saved(array: Array, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version, allow_pickle=False)
    return file.getvalue()


def loaded(data: bytes) -> Array:
    array: Array = np.load(io.BytesIO(data), allow_pickle=False)
    return array


def model_of(array: Array, row_axis: RowAxis = RowAxis.FREE) -> Signature:
    """A model whose only input and output are like the array, every dimension free."""
    dtype = DataType.of_array(array)
    assert dtype is not None
    shape = [None] * array.ndim
    return signature(("x", dtype.ort, shape), outputs=[("y", dtype.ort, shape)], row_axis=row_axis)


def forged(header: str | bytes, data: bytes = b"", version: int = 1, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else header.encode()
    size = len(text) if length is None else length
    return (
        b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", size) + text + data
    )


def header_of(descr: str = "'<f4'", shape: str = "(1, 4)", fortran_order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran_order}, 'shape': {shape}, }}"


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    """Any array of a tensor type, in any byte order and memory order."""
    dtype = draw(st.sampled_from([d.numpy for d in NUMERIC] + [np.dtype("<U3"), np.dtype("S3")]))
    elements = {
        "U": TEXT.map(lambda text: text[:3].rstrip("\0")),
        "S": st.binary(max_size=3).map(lambda b: bytes(c & 0x7F for c in b).rstrip(b"\0")),
    }
    array = draw(hnp.arrays(dtype, SHAPES, elements=elements.get(dtype.kind), fill=st.nothing()))
    array = array.astype(dtype.newbyteorder(draw(st.sampled_from("<>"))))
    return np.asfortranarray(array) if draw(st.booleans()) else array


class ShortReads(io.BytesIO):
    """A stream that, as sockets do, gives less than is asked for."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size if size is None or size < 0 else max(1, size // 2))


# Round trips.


@pytest.mark.parametrize("dtype", NUMERIC, ids=lambda dtype: dtype.name)
@given(data=st.data())
@settings(max_examples=15)
def test_numbers_survive_the_round_trip_to_the_last_bit(dtype: DataType, data: st.DataObject) -> None:
    array = data.draw(arrays_of(dtype, data.draw(SHAPES)))
    spec = TensorSpec("x", f"tensor({dtype.ort})", (None,) * array.ndim)
    check_round_trip(codec, {"x": array}, [spec])


@given(hnp.arrays(object, SHAPES, elements=TEXT))
@settings(max_examples=50)
def test_strings_survive_the_round_trip(array: Array) -> None:
    check_round_trip(codec, {"x": array}, [TensorSpec("x", "tensor(string)", (None,) * array.ndim)])


@given(arrays(), st.sampled_from([(1, 0), (2, 0), (3, 0)]), st.integers(1, 200))
@settings(max_examples=200)
def test_what_numpy_saved_is_decoded_in_blocks_of_any_size(
    array: Array, version: tuple[int, int], chunk_bytes: int
) -> None:
    """numpy.save is the witness: every type, order and version of the format."""
    rows = decode_rows(
        codec, saved(array, version), model_of(array), options=CodecOptions(chunk_bytes=chunk_bytes)
    )
    expected = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
    np.testing.assert_array_equal(rows["x"], expected)
    assert rows["x"].dtype.isnative


def test_blocks_share_the_memory_of_a_body_that_is_in_memory() -> None:
    data = saved(np.arange(4000, dtype=np.float32).reshape(1000, 4))
    body = Body(io.BytesIO(data), len(data))
    assert codec.decode is not None
    [document] = codec.decode(body, MediaType(""), MATRIX, CodecOptions(chunk_bytes=1600))
    blocks = [block["x"] for block in document.blocks]
    assert [len(block) for block in blocks] == [100] * 10
    for block in blocks:
        assert np.shares_memory(block, np.frombuffer(data, np.uint8))


@given(arrays(), st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_elements_that_lie_askew_are_decoded(array: Array, offset: int) -> None:
    """An array need not begin at a multiple of its elements' size: behind a longer header, or in another stream."""
    data = bytes(offset) + saved(array)
    stream = io.BytesIO(data)
    stream.seek(offset)
    assert codec.decode is not None
    [document] = codec.decode(Body(stream, len(data) - offset), MediaType(""), model_of(array), OPTIONS)
    blocks = [block["x"] for block in document.blocks]
    np.testing.assert_array_equal(np.concatenate(blocks), array)
    assert all(block.flags.aligned for block in blocks)


@given(arrays())
@settings(max_examples=100)
def test_an_answer_is_what_numpy_would_save(array: Array) -> None:
    value = array.astype(object) if array.dtype.kind == "U" else array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind == "S":
        return
    data = encode(codec, [{"y": value}], model_of(value))
    expected = loaded(data)
    np.testing.assert_array_equal(expected, value)
    assert data == saved(np.ascontiguousarray(expected))


def test_a_block_holds_about_chunk_bytes_and_at_least_a_row() -> None:
    data = saved(np.arange(400, dtype=np.float32).reshape(100, 4))
    sizes = {}
    for chunk_bytes in (1, 160, 1000, 1 << 20):
        [(_, blocks)] = decode(codec, data, MATRIX, options=CodecOptions(chunk_bytes=chunk_bytes))
        sizes[chunk_bytes] = [len(block["x"]) for block in blocks]
    assert sizes == {1: [1] * 100, 160: [10] * 10, 1000: [62, 38], 1 << 20: [100]}


def test_blocks_are_read_only_as_they_are_asked_for() -> None:
    data = saved(np.zeros((100, 4), np.float32))
    stream = io.BytesIO(data)
    assert codec.decode is not None
    options = CodecOptions(chunk_bytes=160)
    [document] = codec.decode(Body(stream, len(data)), MediaType("application/x-npy"), MATRIX, options)
    next(iter(document.blocks))
    assert stream.tell() == 128 + 160


def test_native_numbers_are_not_copied() -> None:
    [(_, [block])] = decode(codec, saved(np.ones((3, 4), np.float32)), MATRIX)
    assert isinstance(block["x"].base, bytes)


def test_a_stream_of_short_reads_is_read_to_its_end() -> None:
    array = np.arange(40, dtype=np.float32).reshape(10, 4)
    data = saved(array)
    assert codec.decode is not None
    [document] = codec.decode(Body(ShortReads(data), len(data)), MediaType("a/b"), MATRIX, OPTIONS)
    np.testing.assert_array_equal(np.concatenate([block["x"] for block in document.blocks]), array)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_without_rows_the_array_is_one_block(shape: tuple[int, ...], order: Any) -> None:
    array = np.arange(math.prod(shape), dtype=np.int64).reshape(shape, order=order)
    [(_, [block])] = decode(
        codec, saved(array), model_of(array, RowAxis.NONE), options=CodecOptions(chunk_bytes=1)
    )
    assert block["x"].shape == shape
    np.testing.assert_array_equal(block["x"], array)


def test_rank_0_for_a_model_with_rows_is_a_mismatch() -> None:
    with pytest.raises(MismatchError, match=r"expected FLOAT\[N, 4\], got FLOAT\[\]"):
        decode(codec, saved(np.array(1, np.float32)), MATRIX)


def test_no_rows_are_no_blocks() -> None:
    [(_, blocks)] = decode(codec, saved(np.empty((0, 4), np.float32)), MATRIX)
    assert blocks == []


@pytest.mark.parametrize(
    "array",
    [np.empty((0, 5), np.float32), np.empty(0, np.float32), np.empty((0, 4), "U3")],
    ids=["5", "1-D", "text"],
)
def test_no_rows_that_would_not_fit_are_a_mismatch(array: Array) -> None:
    with pytest.raises(MismatchError, match=r'input "x": expected FLOAT'):
        decode(codec, saved(array), MATRIX)


def test_an_array_for_several_inputs_names_the_format_that_takes_names() -> None:
    model = signature(("a", "float", ["N"]), ("b", "float", ["N"]))
    with pytest.raises(DecodeError, match=r'"a" FLOAT\[N\], "b" FLOAT\[N\]; application/x-npz takes'):
        decode(codec, saved(np.ones(3, np.float32)), model)


# Bad bodies.

GOOD = saved(np.ones((1, 4), np.float32))
DATA = b"\0" * 16


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b"", r'begins with "\\x93NUMPY", got ""', id="empty"),
        pytest.param(b'{"instances": [[1]]}', r'begins with .*, got "{\\"|begins with .*, got "{"inst', id="JSON"),
        pytest.param(b"PK\3\4" + DATA, r"expected an \.npy file", id="ZIP"),
        pytest.param(b"\x80\x04K\x01.", r"expected an \.npy file", id="pickle"),
        pytest.param(GOOD[:7], r"version 1.0, 2.0 or 3.0", id="cut in the version"),
        pytest.param(GOOD[:9], r"the file ends 1 bytes early", id="cut in the header's length"),
        pytest.param(GOOD[:50], r"the file ends 78 bytes early", id="cut in the header"),
        pytest.param(GOOD[:-1], r"expected 16 bytes of data for float32\[1, 4\], got 15", id="cut in the data"),
        pytest.param(GOOD + b"\0", r"expected 16 bytes .* got 17", id="too long"),
        pytest.param(b"\x93NUMPY\x04\x00" + DATA, r'version 1.0, 2.0 or 3.0 .*, got "04.00"', id="version 4.0"),
        pytest.param(b"\x93NUMPY\x01\x01" + DATA, r'got "01.01"', id="version 1.1"),
        pytest.param(forged(b" " * 20_000), r"header of at most 10000 bytes, got 20000", id="long header"),
        pytest.param(forged(b"", version=2, length=2**32 - 1), r"at most 10000 bytes, got 4294967295", id="4 GiB"),
        pytest.param(forged(""), r"expected an \.npy header such as", id="empty header"),
        pytest.param(forged("{}"), r"expected an \.npy header such as", id="empty dictionary"),
        pytest.param(forged("(" * 9000), r"expected an \.npy header such as", id="deep nesting"),
        pytest.param(forged("{" + "-" * 9000 + "1}"), r"expected an \.npy header such as", id="deep unary"),
        pytest.param(forged("{ " + " " * 9000 + "x}"), r"expected an \.npy header such as", id="spaces"),
        pytest.param(forged(header_of() + "x"), r"expected an \.npy header such as", id="text after"),
        pytest.param(forged("__import__('os')"), r"expected an \.npy header such as", id="code"),
        pytest.param(forged("{'descr': '<f4' 'fortran_order': False, 'shape': (1,)}"), r"such as", id="no comma"),
        pytest.param(forged("{'descr': '<f4', 'shape': (1, 4)}"), r"such as", id="key missing"),
        pytest.param(forged("{'a': '', " + header_of()[1:]), r"such as", id="key too many"),
        pytest.param(forged(header_of("False")), r"such as", id="descr no text"),
        pytest.param(forged(header_of(fortran_order="'no'")), r"such as", id="order no boolean"),
        pytest.param(forged(header_of(fortran_order="1")), r"such as", id="order a number"),
        pytest.param(forged(header_of(shape="'4'")), r"such as", id="shape a text"),
        pytest.param(forged(header_of(shape="4")), r"such as", id="shape a number"),
        pytest.param(forged(header_of(shape="(4)")), r'shape such as \(3, 4\), .*got "4"', id="no tuple"),
        pytest.param(forged(header_of(shape="(,)")), r"shape such as", id="only a comma"),
        pytest.param(forged(header_of(shape="(1,,4)")), r"shape such as", id="two commas"),
        pytest.param(forged(header_of(shape="(-1, 4)"), DATA), r"shape such as", id="negative"),
        pytest.param(forged(header_of(shape="(1.0, 4)"), DATA), r"shape such as", id="fraction"),
        pytest.param(forged(header_of(shape="(1e0, 4)"), DATA), r"shape such as", id="exponent"),
        pytest.param(forged(header_of(shape=f"({'9' * 5000},)")), r"shape such as", id="too many digits"),
        pytest.param(forged(header_of(shape="(4611686018427387904, 4)")), r"expected 73786976294838206464 bytes",
                     id="wraps to 0 in 64 bits"),
        pytest.param(forged(header_of(shape="(1000000000, 4)"), DATA), r"expected 16000000000 bytes", id="huge"),
        pytest.param(forged(header_of(shape="(1000000000000, 0)")), r"at most 65536 in all", id="huge without data"),
        pytest.param(forged(header_of("'<U0'", "(1000000000000,)")), r"at most 65536 in all", id="empty strings"),
        pytest.param(forged(header_of(shape=f"({'1,' * 65})"), b"\0\0\0\0"), r"at most 64 dimensions", id="rank 65"),
        pytest.param(forged(header_of(shape=f"({'1,' * 20})"), b""), r"1, 1, 1, \.\.\.\], got 0", id="rank 20"),
        pytest.param(forged(header_of("'|O'"), DATA), r"pickled and never read; send strings as .*<U", id="objects"),
        pytest.param(forged(header_of("[('a', '<f4')]"), DATA), r"structured array", id="structured"),
        pytest.param(forged(header_of("('<f4', (2,))"), DATA), r"such as", id="subarray"),
        pytest.param(forged(header_of("'<M8[ns]'"), DATA), r'dtype of .* got "<M8\[ns\]"', id="dates"),
        pytest.param(forged(header_of("'<c8'"), DATA), r'got "<c8"', id="complex"),
        pytest.param(forged(header_of("'<f16'"), DATA), r'got "<f16"', id="long double"),
        pytest.param(forged(header_of("'|V4'"), DATA), r'got "\|V4"', id="void"),
        pytest.param(forged(header_of("'<U999999999'"), DATA), r"are too long", id="string overflow"),
        pytest.param(forged(header_of("'|b1'"), b"\0\1\2\0"), r"booleans to be 0 or 1, got 2", id="boolean 2"),
        pytest.param(forged(header_of("'<U1'"), b"\0\0\x11\0" + DATA[:12]), r"got code 0x110000", id="past Unicode"),
        pytest.param(forged(header_of("'>U1'"), b"\0\0\xd8\0" + DATA[:12]), r"got code 0xd800", id="surrogate"),
        pytest.param(forged(header_of("'<U1'", "(2, 2)", "True"), b"\0\0\x11\0" + DATA[:12]), r"0x110000", id="F"),
    ],
)  # fmt: skip
def test_a_bad_body_says_what_was_expected(body: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message) as caught:
        decode(codec, body, MATRIX)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        "{'shape':(1,4),'descr':'<f4','fortran_order':False}",
        '{"descr": "<f4", "fortran_order": False, "shape": (1, 4)}\n',
        " {'descr' : '<f4' , 'fortran_order' : True , 'shape' : ( 1 , 4 , ) , } \n",
        "{'descr': '=f4', 'fortran_order': False, 'shape': (1L, 4L), }",
    ],
    ids=["dense", "double quotes", "wide", "Python 2"],
)
def test_other_writers_headers_are_read(header: str) -> None:
    data = forged(header, np.arange(4, dtype="<f4").tobytes())
    np.testing.assert_array_equal(decode_rows(codec, data, MATRIX)["x"], [[0, 1, 2, 3]])


@pytest.mark.parametrize("kind", ["<U0", "|S0"])
def test_strings_of_no_width_are_empty_strings(kind: str) -> None:
    model = signature(("x", "string", ["N"]))
    rows = decode_rows(codec, forged(header_of(f"'{kind}'", "(3,)")), model)
    assert rows["x"].tolist() == ["", "", ""]


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_body_shorter_than_its_length_is_an_error(order: Any) -> None:
    data = saved(np.ones((50, 4), np.float32, order=order))
    assert codec.decode is not None
    [document] = codec.decode(Body(io.BytesIO(data[:-100]), len(data)), MediaType("a/b"), MATRIX, OPTIONS)
    with pytest.raises(DecodeError, match="the file ends 100 bytes early"):
        list(document.blocks)


@given(st.binary(max_size=300) | st.binary(max_size=40).map(lambda end: GOOD[: len(GOOD) - 16] + end))
def test_arbitrary_bytes_are_decoded_or_refused(data: bytes) -> None:
    check_arbitrary_bytes(codec, data, MATRIX)


@given(st.text("{}[]()'\",: \n<>|=fUSbiuOM0123456789LTrueFalsdco_rnhp-", max_size=80), st.integers(1, 3))
@example("'" * 80, 1)
def test_arbitrary_headers_are_decoded_or_refused(text: str, version: int) -> None:
    check_arbitrary_bytes(codec, forged(text, DATA, version), MATRIX)


@given(st.data())
@settings(max_examples=200)
def test_a_damaged_file_is_refused_or_read_as_numpy_reads_it(data: st.DataObject) -> None:
    body = bytearray(saved(np.arange(4, dtype=np.int16)))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    model = signature(("x", "double", ["N"]))
    check_arbitrary_bytes(codec, bytes(body), model)
    try:
        rows = decode_rows(codec, bytes(body), model)
    except (DecodeError, MismatchError, IndexError):
        return
    np.testing.assert_array_equal(rows["x"], loaded(bytes(body)))


@pytest.mark.parametrize(
    "body",
    [
        forged(header_of(shape="(1000000000, 4)"), DATA),
        forged(header_of(shape="(4, 1000000000)", fortran_order="True"), DATA),
        forged(b"", version=3, length=2**31),
        forged(header_of(shape="(0, 1000000000000)")),
        forged(header_of("'<U500000000'", "(1,)"), DATA),
    ],
    ids=["rows", "fortran", "header", "no data", "string"],
)
def test_a_forged_size_allocates_nothing(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            decode(codec, body, MATRIX)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_memory_depends_on_the_block_not_on_the_body() -> None:
    data = saved(np.zeros((1 << 18, 4), np.float32))
    stream = io.BytesIO(data)
    assert codec.decode is not None
    options = CodecOptions(chunk_bytes=1 << 16)
    tracemalloc.start()
    try:
        for document in codec.decode(Body(stream, len(data)), MediaType("a/b"), MATRIX, options):
            assert sum(len(block["x"]) for block in document.blocks) == 1 << 18
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# Answers.


def answers(*documents: Sequence[Value]) -> list[Answer]:
    return [Answer([cast("Values", {"y": value}) for value in values]) for values in documents]


def written(found: list[Answer], model: Signature, before: bytes = b"") -> bytes:
    assert codec.encode is not None
    sink = io.BytesIO(before)
    sink.seek(len(before))
    codec.encode(found, sink, MediaType("application/x-npy"), model, OPTIONS)
    assert sink.tell() == len(sink.getvalue())
    return sink.getvalue()


def test_documents_are_joined_along_the_rows() -> None:
    first, second = np.ones((2, 3), np.float32), np.zeros((9, 3), np.float32)
    result = loaded(written(answers([first], [second, first]), MATRIX))
    np.testing.assert_array_equal(result, np.concatenate([first, second, first]))


def test_the_header_is_patched_where_the_answer_begins() -> None:
    array = np.ones((2, 3), np.float32)
    data = written(answers([array, array]), MATRIX, before=b"before")
    assert data[:6] == b"before"
    assert loaded(data[6:]).shape == (4, 3)


def test_text_is_as_wide_as_its_longest_string_in_any_block() -> None:
    model = signature(outputs=[("y", "string", ["N"])])
    blocks = [np.array(["a", ""], object), np.array(["bcd"], object), np.array(["é"])]
    result = loaded(written(answers(blocks), model))
    assert result.dtype == "<U3"
    assert result.tolist() == ["a", "", "bcd", "é"]


def test_maps_are_written_as_their_values() -> None:
    model = signature(outputs=[("y", "seq(map(int64,tensor(float)))", [])])
    tables = [MapTable((3, 7), np.array([[0.25, 0.75]], np.float32)) for _ in range(2)]
    np.testing.assert_array_equal(
        loaded(written(answers(tables), model)), np.array([[0.25, 0.75]] * 2, np.float32)
    )


@pytest.mark.parametrize(
    ("output", "row_axis", "shape", "dtype"),
    [
        (("y", "double", ["N", 3, None, "M"]), RowAxis.FREE, (0, 3, 0, 0), "<f8"),
        (("y", "int8", [4, 3]), RowAxis.NONE, (0, 4, 3), "|i1"),
        (("y", "string", ["N", 2]), RowAxis.FREE, (0, 2), "<U1"),
        (("y", "seq(map(string,tensor(float)))", []), RowAxis.FREE, (0, 0), "<f4"),
    ],
    ids=["numbers", "no rows", "strings", "maps"],
)
def test_no_blocks_give_the_declared_shape(output: Any, row_axis: RowAxis, shape: Any, dtype: str) -> None:
    result = loaded(written(answers([], []), signature(outputs=[output], row_axis=row_axis)))
    assert result.shape == shape
    assert result.dtype.str == dtype


@pytest.mark.parametrize("shape", [(), (2,), (2, 0), (0, 2), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [np.float16, object], ids=["numbers", "strings"])
def test_without_rows_one_run_is_written_as_it_is_and_several_are_stacked(
    shape: tuple[int, ...], dtype: Any
) -> None:
    run = np.full(shape, "a" if dtype is object else 1, dtype)
    model = signature(outputs=[("y", "string" if dtype is object else "float16", [None] * len(shape))],
                      row_axis=RowAxis.NONE)  # fmt: skip
    one = loaded(written(answers([run]), model))
    assert one.shape == shape
    np.testing.assert_array_equal(one, run)
    several = loaded(written(answers([run], [run, run]), model))
    assert several.shape == (3, *shape)
    np.testing.assert_array_equal(several, np.stack([run] * 3))


ONES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([ONES, ONES[:, :2]], r'output "y": expected float32\[2, 3\] in every part .*, got float32\[2, 2\]'),
        ([ONES, ONES.astype(np.float64)], r"got float64\[2, 3\]"),
        ([ONES, ONES[0]], r"got float32\[3\]"),
        ([ONES, np.array(["a"], object)], r"got object\[1\]"),
        ([np.array(["a"], object), ONES], r"got float32\[2, 3\]"),
        ([np.float32(1)], r"tensors of numbers, booleans or strings, got float32"),
        ([np.array(1.0), np.array(1.0)], r"expected float64\[\] in every part"),
        ([[ONES]], r"tensors of numbers, booleans or strings, got list"),
        ([{"a": ONES}], r"got dict"),
        ([None], r"got NoneType"),
        ([np.ones(2, np.complex64)], r"got complex64"),
        ([MapTable((1,), ONES[:, :1]), MapTable((2,), ONES[:, :1])], r'output "y": the maps differ in their keys'),
        ([np.array(["a\0"], object)], r"lose NUL characters at their end"),
        ([np.array(["a" * 100_000] + [""] * 3000, object)], r"\(100000 characters\), need 1200400000 bytes"),
    ],
    ids=["shape", "dtype", "rank", "text after numbers", "numbers after text", "scalar", "rank 0", "sequence", "map",
         "nothing", "complex", "keys", "NUL", "wide text"],
)  # fmt: skip
def test_what_has_no_form_is_an_error(values: list[Any], message: str) -> None:
    with pytest.raises(EncodeError, match=message):
        written(answers(values), MATRIX)


def test_runs_of_different_shapes_are_an_error() -> None:
    with pytest.raises(EncodeError, match=r"expected float32\[1, 2, 3\] .* got float32\[1, 2, 2\]"):
        written(
            answers([ONES], [ONES[:, :2]]),
            signature(outputs=[("y", "float", [None, None])], row_axis=RowAxis.NONE),
        )


def test_several_outputs_name_the_format_that_holds_them() -> None:
    model = signature(outputs=[("label", "int64", ["N"]), ("p", "float", ["N", 2])])
    with pytest.raises(
        EncodeError, match=r'2 outputs \("label", "p"\); application/x-npz holds them by name'
    ):
        written([], model)


def test_a_sequence_without_blocks_is_an_error() -> None:
    with pytest.raises(EncodeError, match=r"got seq\(tensor\(float\)\)"):
        written([], signature(outputs=[("y", "seq(tensor(float))", [])]))


def test_nothing_is_written_before_the_first_block() -> None:
    """An error of the first run leaves the sink empty."""

    def failing() -> Iterator[Values]:
        yield from map(refuse, [1])

    def refuse(_: int) -> Values:
        raise MismatchError("no")

    assert codec.encode is not None
    sink: BinaryIO = io.BytesIO()
    with pytest.raises(MismatchError):
        codec.encode([Answer(failing())], sink, MediaType("a/b"), MATRIX, OPTIONS)
    assert sink.tell() == 0


def test_numbers_are_streamed() -> None:
    block = np.zeros((1 << 14, 4), np.float32)
    assert codec.encode is not None

    class Sink(io.BytesIO):
        """Counts what is written instead of keeping it."""

        place = size = 0

        def write(self, data: Any, /) -> int:
            self.place += len(data)
            self.size = max(self.size, self.place)
            return len(data)

        def tell(self) -> int:
            return self.place

        def seek(self, place: int, whence: int = 0, /) -> int:
            assert whence == 0
            self.place = place
            return place

    sink = Sink()
    tracemalloc.start()
    try:
        blocks: Any = ({"y": block.copy()} for _ in range(64))
        codec.encode([Answer(blocks)], sink, MediaType("a/b"), MATRIX, OPTIONS)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert sink.size == 128 + 64 * block.nbytes
