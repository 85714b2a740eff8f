"""text/csv: what cells mean, columns and shapes, errors, encoding."""

import csv as reference_csv
import io
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_laws import (
    arrays_of,
    check_arbitrary_bytes,
    check_round_trip,
    decode,
    decode_rows,
    encode,
    signature,
)
from onnx_serve.codecs import csv
from onnx_serve.codecs.interface import Body, CodecOptions
from onnx_serve.errors import DecodeError, EncodeError
from onnx_serve.tensors import DataType, MapTable, RowAxis, Signature, TensorSpec

MODELS = {
    "float": signature(("x", "float", ["N", 2])),
    "double": signature(("x", "double", ["N", 2])),
    "half": signature(("x", "float16", ["N", 2])),
    "one float": signature(("x", "float", ["N"])),
    "int8": signature(("x", "int8", ["N", 2])),
    "int64": signature(("x", "int64", ["N", 2])),
    "uint64": signature(("x", "uint64", ["N", 2])),
    "bool": signature(("x", "bool", ["N", 2])),
    "string": signature(("x", "string", ["N"])),
    "strings": signature(("x", "string", ["N", 2])),
    "int, string": signature(("i", "int32", ["N", 1]), ("s", "string", ["N"])),
    "float, int": signature(("f", "double", ["N", 1]), ("i", "int64", ["N"])),
}
TEXT = st.text('a,"\r\n ', max_size=6) | st.text(max_size=4).filter(lambda text: "\0" not in text)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(*[TEXT] * 2), min_size=1),
    st.integers(1, 40),
)
def test_strings_written_by_pythons_csv_come_back(rows: list[tuple[str, str]], chunk_bytes: int) -> None:
    text = io.StringIO(newline="")
    reference_csv.writer(text, quoting=reference_csv.QUOTE_ALL).writerows(rows)
    options = CodecOptions(chunk_bytes=chunk_bytes)
    tensors = decode_rows(csv.codec, text.getvalue().encode(), MODELS["strings"], options=options)
    assert tensors["x"].tolist() == [list(row) for row in rows]


@pytest.mark.parametrize("header", ["auto", "present", "absent", "skip"])
@given(data=st.binary(max_size=40) | st.text('01",\n\ra', max_size=20).map(str.encode))
@settings(max_examples=60, deadline=None)
def test_arbitrary_bytes_raise_only_the_callers_errors(
    data: bytes, header: Literal["auto", "present", "absent", "skip"]
) -> None:
    for name in ("float", "int, string", "strings", "float, int"):
        check_arbitrary_bytes(csv.codec, data, MODELS[name], CodecOptions(csv_header=header, chunk_bytes=9))
    free = signature(("x", "float", ["N", None]), row_axis=RowAxis.NONE)
    check_arbitrary_bytes(csv.codec, data, free, CodecOptions(csv_header=header, chunk_bytes=9))


@pytest.mark.parametrize(
    ("model", "body", "expected"),
    [
        ("float", b"1,2\n3,4", [[1, 2], [3, 4]]),
        ("float", b'\xef\xbb\xbf+.5, 2.\t\r\n"3",1e999\r\n', [[0.5, 2], [3, np.inf]]),
        ("float", b"NA,\nnull,-iNfinity\n", [[np.nan, np.nan], [np.nan, -np.inf]]),
        ("double", b"1e309,0.1\n", [[np.inf, 0.1]]),
        ("half", b"65519.99,0.1\n", [[65504, np.float16(0.1)]]),
        ("int8", b"-128,1.27e2\n", [[-128, 127]]),
        ("int64", b"9007199254740993,-9223372036854775808\n", [[2**53 + 1, -(2**63)]]),
        ("uint64", b"18446744073709551615,0e99999999999999999999\n", [[2**64 - 1, 0]]),
        ("bool", b"TRUE,0\nfalse, 1\n", [[True, False], [False, True]]),
        ("string", b'a\n\n"b"""\n NA \n', ["a", "", 'b"', " NA "]),
        ("strings", b'"a\nb",\n1,"c,d"', [["a\nb", ""], ["1", "c,d"]]),
        ("string", b"a\nb\n\n", ["a", "b", ""]),
    ],
)
def test_cells(model: str, body: bytes, expected: Any) -> None:
    array = decode_rows(csv.codec, body, MODELS[model])["x"]
    assert array.dtype == MODELS[model].inputs[0].dtype.numpy
    np.testing.assert_array_equal(array, np.array(expected, array.dtype))


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        ("float", b"1,2\n1,2\n1,abc\n", 'expected a number, got "abc" (line 3, column 2)'),
        ("float", b"1,2\n3,4,5\n", "expected 2 columns, got 3 (line 2)"),
        ("float", b'1,2\n"3"\n', "expected 2 columns, got 1 (line 2)"),
        ("float", b"1,2\n\n3,4\n", "expected 2 columns, got an empty line (line 2)"),
        ("one float", b"1\n\r\n", "expected 1 column, got an empty line (line 2)"),
        ("strings", b"a,b\n\n", "expected 2 columns, got an empty line (line 2)"),
        ("float", b"1e39,1\n", 'expected a number in the range of FLOAT, got "1e39" (line 1, column 1)'),
        ("half", b"1,65520\n", 'expected a number in the range of FLOAT16, got "65520" (line 1, column 2)'),
        ("int8", b"1,128\n", 'expected an integer from -128 to 127, got "128" (line 1, column 2)'),
        ("int64", b"1,1.5\n", 'expected an integer, got "1.5" (line 1, column 2)'),
        ("int64", b"1,\n", 'expected an integer, got "" (line 1, column 2)'),
        ("int64", b"1,1e99\n", "expected an integer from -9223372036854775808 to 9223372036854775807, got"),
        ("int64", b"1,-1e99\n", "expected an integer from -9223372036854775808 to 9223372036854775807, got"),
        ("bool", b"1,yes\n", 'expected true, false, 1 or 0, got "yes" (line 1, column 2)'),
        ("string", b"a\n\x00\n", "expected text, got a NUL byte (line 2)"),
        ("string", b"a\nb\xff\n", "expected UTF-8, got the byte 0xff (line 2)"),
        ("string", b'a\n5" disk\n', "a quote or carriage return is out of place (line 2, column 1)"),
        ("strings", b'a,"b\nc"\nd,"e"f\n', "a quote or carriage return is out of place (line 3, column 2)"),
        ("strings", b'a,b\n"c,\nd\n', "a quoted cell has no end (line 2, column 1)"),
        ("string", b"a\nb\rc\n", "a carriage return inside a line (line 2)"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [3, 1 << 20])
def test_errors_name_line_column_and_value(model: str, body: bytes, message: str, chunk_bytes: int) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(csv.codec, body, MODELS[model], options=CodecOptions(chunk_bytes=chunk_bytes))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "model", [MODELS["string"], MODELS["float"], MODELS["int64"], signature(("x", "float", ["N", 300]))]
)
@pytest.mark.parametrize(
    "body", [b"1" * 10**6, b"," * 10**6, b"1." + b"0" * 10**6, b'"' + b"\n" * 10**6, b'"' * (10**6 + 1)]
)
def test_monstrous_cells_and_lines_are_read_or_refused_in_linear_time(model: Signature, body: bytes) -> None:
    check_arbitrary_bytes(csv.codec, body, model, CodecOptions(chunk_bytes=1 << 12))


@pytest.mark.parametrize("body", [b"", b"\xef\xbb\xbf"])
def test_a_body_of_nothing_is_a_document_without_blocks(body: bytes) -> None:
    [(_, blocks)] = decode(csv.codec, body, MODELS["float"])
    assert blocks == []


@pytest.mark.parametrize(
    ("chunk_bytes", "rows"),
    [(1 << 20, [2]), (8, [2]), (7, [1, 1]), (6, [1, 1]), (4, [1, 1])],
    ids=[
        "one chunk",
        "one byte to spare",
        "exactly one chunk",
        "a last read within the line",
        "a line each read",
    ],
)
def test_a_last_line_without_newline_is_in_the_block_of_what_is_read_with_it(
    chunk_bytes: int, rows: list[int]
) -> None:
    options = CodecOptions(chunk_bytes=chunk_bytes)
    [(_, blocks)] = decode(csv.codec, b"1,2\n3,4", MODELS["float"], options=options)
    assert [len(block["x"]) for block in blocks] == rows
    assert [row for block in blocks for row in block["x"].tolist()] == [[1, 2], [3, 4]]


class ShortReads(io.BytesIO):
    """A stream that, as sockets do, gives less than is asked for."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size if size is None or size < 0 else max(1, size // 3))


@given(st.lists(st.sampled_from(["a", "bcd", "\n", "\n\n"])).map("".join), st.integers(1, 12))
def test_the_lines_of_a_body(text: str, chunk_bytes: int) -> None:
    """All bytes in order, in pieces as long as they may be, cut behind newlines only, from any stream."""
    data = text.encode()
    pieces = list(Body(io.BytesIO(data), len(data)).lines(chunk_bytes))
    assert b"".join(pieces) == data
    assert all(pieces)
    assert all(piece.endswith(b"\n") for piece in pieces[:-1])
    assert all(b"\n" not in piece[:-chunk_bytes] for piece in pieces), "only a line makes a piece longer"
    last_read = data[len(data) - len(data) % chunk_bytes :]
    if last_read:
        assert pieces[-1].endswith(last_read), "a last line alone"
    short = Body(cast("BinaryIO", ShortReads(data)), len(data))
    assert list(short.lines(chunk_bytes)) == pieces


def test_blocks_come_while_the_body_is_read() -> None:
    [(_, blocks)] = decode(csv.codec, b"1,2\n" * 100, MODELS["float"], options=CodecOptions(chunk_bytes=40))
    assert [len(block["x"]) for block in blocks] == [10] * 10


def test_columns_fill_inputs_in_order_row_major() -> None:
    model = signature(("a", "float", ["N", 2, 2]), ("b", "int64", ["N"]), ("c", "string", ["N", 1]))
    tensors = decode_rows(csv.codec, b"1,2,3,4,5,x\n6,7,8,9,0,y\n", model)
    assert tensors["a"].tolist() == [[[1, 2], [3, 4]], [[6, 7], [8, 9]]]
    assert tensors["b"].tolist() == [5, 0]
    assert tensors["c"].tolist() == [["x"], ["y"]]


@pytest.mark.parametrize("body", [b"1,2,3,4,5\n6,7,8,9,0\n", b'"1",2,3,4,5\n6,7,8,9,0\n'])
def test_one_free_dimension_follows_from_the_columns(body: bytes) -> None:
    model = signature(("a", "float", ["N"]), ("b", "float", ["N", "L", 2]))
    tensors = decode_rows(csv.codec, body, model)
    assert tensors["b"].tolist() == [[[2, 3], [4, 5]], [[7, 8], [9, 0]]]


@pytest.mark.parametrize(
    ("inputs", "body", "message"),
    [
        ([("x", "float", ["N", "L", 2])], b"1,2,3\n", "got 3 for"),
        ([("a", "float", ["N", 3]), ("x", "float", ["N", "L"])], b"1,2\n", "got 0 for"),
        ([("x", "float", ["N", "L", 0])], b"1\n", "got 1 for"),
        ([("x", "float", ["N", "H", "W"])], b"1\n", "cannot be fed from CSV"),
        (
            [("x", "float", ["N", "L"]), ("y", "float", ["N", "L"])],
            b"1\n",
            'fed from CSV: "x", "y" have free',
        ),
        ([("x", "seq(tensor(float))", [])], b"1\n", "cannot be fed from CSV"),
        ([("x", "float", ["N", "L"])], b"1,2\n3\n", "expected 2 columns, got 1 (line 2)"),
        ([], b"1\n", "expected 0 columns, got 1 (line 1)"),
    ],
)
def test_bodies_that_no_table_fits(inputs: Any, body: bytes, message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(csv.codec, body, signature(*inputs))
    assert message in str(caught.value)


@pytest.mark.parametrize("chunk_bytes", [4, 1 << 20])
def test_without_rows_each_line_is_one_run(chunk_bytes: int) -> None:
    options = CodecOptions(chunk_bytes=chunk_bytes)
    fixed = signature(("x", "float", [2, 1]), ("y", "int64", []), row_axis=RowAxis.NONE)
    [(_, blocks)] = decode(csv.codec, b"1,2,3\n4,5,6\n", fixed, options=options)
    assert [(b["x"].tolist(), b["y"].shape, int(b["y"])) for b in blocks] == [
        ([[1], [2]], (), 3),
        ([[4], [5]], (), 6),
    ]
    free = signature(("s", "string", ["L"]), row_axis=RowAxis.NONE)
    [(_, blocks)] = decode(csv.codec, b'a,b\n"c\nd"\n\n"e"', free, options=options)
    assert [b["s"].tolist() for b in blocks] == [["a", "b"], ["c\nd"], [""], ["e"]]
    numbers = signature(("x", "float", ["L"]), row_axis=RowAxis.NONE)
    with pytest.raises(DecodeError, match=r'got "x" \(line 4, column 1\)'):
        decode(csv.codec, b"1\n2,3\n4\nx", numbers, options=options)


def outputs(*names: str, row_axis: RowAxis = RowAxis.FREE) -> Signature:
    return signature(outputs=[(name, "float", ["N"]) for name in names], row_axis=row_axis)


F32 = np.array([[0.1, 1], [np.nan, -np.inf], [np.inf, 16777216]], np.float32)
LABELS = np.array(["a", 'b"', "", " c", "d,e", "f\ng", "h\r"], object)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"y": F32}, b"0.1,1.0\nnan,-inf\ninf,16777216.0\n"),
        ({"y": F32.T}, b"0.1,nan,inf\n1.0,-inf,16777216.0\n"),
        ({"y": F32.astype(">f4")}, b"0.1,1.0\nnan,-inf\ninf,16777216.0\n"),
        ({"y": F32.reshape(1, 3, 2)}, b"0.1,1.0,nan,-inf,inf,16777216.0\n"),
        ({"y": np.array([2**64 - 1], np.uint64)}, b"18446744073709551615\n"),
        ({"y": np.array([True, False])}, b"true\nfalse\n"),
        ({"y": LABELS}, b'a\n"b"""\n""\n" c"\n"d,e"\n"f\ng"\n"h\r"\n'),
        ({"y": np.array([["a", "b"], ["c", "\u00e9"]])}, "a,b\nc,\u00e9\n".encode()),
        ({"y": np.array([b"a"])}, b"a\n"),
        ({"l": np.array([1, 2]), "p": F32[:2]}, b"1,0.1,1.0\n2,nan,-inf\n"),
        ({"l": LABELS[5:], "p": F32[:2, 0]}, b'"f\ng",0.1\n"h\r",nan\n'),
        ({"a": F32[:, 0], "b": F32}, b"0.1,0.1,1.0\nnan,nan,-inf\ninf,inf,16777216.0\n"),
        ({"m": MapTable((1, 0), F32)}, b"0.1,1.0\nnan,-inf\ninf,16777216.0\n"),
        ({"a": np.empty((2, 0)), "b": np.array([1, 2])}, b"1\n2\n"),
        ({"y": np.empty((0, 3), np.float32)}, b""),
    ],
)
def test_encoding(values: dict[str, Any], expected: bytes) -> None:
    assert encode(csv.codec, [values], outputs(*values)) == expected


def test_without_rows_a_run_is_a_line() -> None:
    model = outputs("a", "b", row_axis=RowAxis.NONE)
    block: dict[str, Any] = {"a": np.array([[1, 2], [3, 4]]), "b": np.array(0.5)}
    assert encode(csv.codec, [block, block], model) == b"1,2,3,4,0.5\n" * 2
    table: dict[str, Any] = {"a": MapTable(("x", "y"), np.array([[1, 2], [3, 4]]))}
    assert encode(csv.codec, [table], outputs("a", row_axis=RowAxis.NONE)) == b"1,2,3,4\n"


@pytest.mark.parametrize(("newline", "expected"), [(True, b"1\n2\n3\n"), (False, b"1\n2\n3")])
def test_only_the_last_newline_is_optional(newline: bool, expected: bytes) -> None:
    blocks: list[dict[str, Any]] = [
        {"y": np.array([1, 2])},
        {"y": np.array([], np.int64)},
        {"y": np.array([3])},
    ]
    options = CodecOptions(text_trailing_newline=newline)
    assert encode(csv.codec, blocks, outputs("y"), options=options) == expected
    assert encode(csv.codec, [], outputs("y"), options=options) == b""


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"y": [np.array([1])]}, 'cannot hold output "y", a sequence; application/jsonlines can'),
        ({"y": {1: 2.0}}, 'cannot hold output "y", a map; application/jsonlines can'),
        ({"y": None}, 'cannot hold output "y", no value; application/jsonlines can'),
        ({"y": np.array(1.0)}, "one value for all rows"),
        ({"y": np.array([1j])}, "of type complex128"),
        ({"y": np.empty((2, 0))}, "records without values; application/jsonlines can"),
        (
            {"a": np.array([1]), "b": np.array([1, 2])},
            'numbers of rows ("a" 1, "b" 2); application/jsonlines can',
        ),
        ({"y": np.array([1.5], object)}, 'expected strings, got "1.5"'),
        ({"y": np.array(["\ud800"], object)}, "no form in UTF-8"),
    ],
)
def test_outputs_that_are_no_table(values: dict[str, Any], message: str) -> None:
    with pytest.raises(EncodeError) as caught:
        encode(csv.codec, [values], outputs(*values))
    assert message in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from([dtype for dtype in DataType if dtype is not DataType.STRING]))
def test_numbers_come_back_to_the_last_bit(data: st.DataObject, dtype: DataType) -> None:
    array = data.draw(arrays_of(dtype, (data.draw(st.integers(1, 5)), 2)))
    specs = [TensorSpec("x", f"tensor({dtype.ort})", ("N", 2))]
    check_round_trip(csv.codec, {"x": array}, specs)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=1))
def test_strings_come_back(cells: list[str]) -> None:
    specs = [TensorSpec("x", "tensor(string)", ("N",)), TensorSpec("y", "tensor(int64)", ("N", 1))]
    array = np.array(cells, object)
    check_round_trip(csv.codec, {"x": array}, specs[:1])
    check_round_trip(csv.codec, {"x": array, "y": np.arange(len(cells)).reshape(-1, 1)}, specs)


def test_pythons_csv_reads_what_is_written() -> None:
    data = encode(csv.codec, [{"l": LABELS, "i": np.arange(7)}], outputs("l", "i"))
    rows = list(reference_csv.reader(io.StringIO(data.decode(), newline=""), strict=True))
    assert rows == [[label, str(i)] for i, label in enumerate(LABELS)]
