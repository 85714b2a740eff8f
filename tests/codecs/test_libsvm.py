import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_laws import check_arbitrary_bytes, decode, decode_rows, signature
from onnx_serve.codecs import libsvm
from onnx_serve.codecs.interface import CodecOptions, MediaType
from onnx_serve.codecs.libsvm import codec
from onnx_serve.errors import DecodeError
from onnx_serve.tensors import RowAxis, Signature

ROW = signature(("x", "float", ["N", 4]))
TWO = signature(("x", "float", ["N", 2, 1]), ("y", "int64", ["N"]))


def rows_of(body: bytes, model: Signature = ROW, **parameters: str) -> Any:
    return decode_rows(codec, body, model, media_type=MediaType("text/libsvm", parameters))["x"]


LINES = {
    "label": (b"1 0:1 2:-.5\n", [1, 0, -0.5, 0]),
    "no label": (b"0:1 2:2e1\n", [1, 0, 20, 0]),
    "only a label": (b"-1\n", [0, 0, 0, 0]),
    "query": (b"3 qid:7 1:+2.\n", [0, 2, 0, 0]),
    "comment": (b"1 3:5 # 0:1\n", [0, 0, 0, 5]),
    "blanks": (b"  1\t0:1   1:2 \r\n", [1, 2, 0, 0]),
    "any order": (b"1 3:4 0:1\n", [1, 0, 0, 4]),
    "no newline": (b"1 3:4", [0, 0, 0, 4]),
    "not finite": (b"nan 0:inf 1:-Infinity 2:1e999 3:0\n", [math.inf, -math.inf, math.inf, 0]),
}


@pytest.mark.parametrize(("line", "row"), LINES.values(), ids=LINES)
def test_a_line_is_a_record(line: bytes, row: list[float]) -> None:
    np.testing.assert_array_equal(rows_of(line), [row])


def test_parameters_say_where_indices_start_and_what_absent_values_are() -> None:
    body = b"1 1:5 4:6\n"

    np.testing.assert_array_equal(rows_of(body, indexing_mode="1"), [[5, 0, 0, 6]])
    np.testing.assert_array_equal(rows_of(b"0:1", missing="NaN"), [[1, math.nan, math.nan, math.nan]])


def test_values_fill_several_inputs_in_order() -> None:
    rows = decode_rows(codec, b"1 0:1 2:3\n1 1:2\n", TWO)

    np.testing.assert_array_equal(rows["x"], [[[1], [0]], [[0], [2]]])
    np.testing.assert_array_equal(rows["y"], [3, 0])


def test_without_rows_a_line_is_a_run() -> None:
    model = signature(("x", "float", [2, 2]), row_axis=RowAxis.NONE)

    [(_, blocks)] = decode(codec, b"1 0:1\n1 3:2\n", model)
    assert [block["x"].tolist() for block in blocks] == [[[1, 0], [0, 0]], [[0, 0], [0, 2]]]


def test_an_empty_body_has_no_records() -> None:
    [(_, blocks)] = decode(codec, b"", ROW)

    assert blocks == []


def test_short_lines_for_a_wide_model_come_in_blocks_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libsvm, "_BLOCK_VALUES", 10)

    [(_, blocks)] = decode(codec, b"1 1:1\n" * 5, ROW)
    assert [len(block["x"]) for block in blocks] == [2, 2, 1]


NUMBERS = st.sampled_from(["1", "-.5", "+2.", "3e2", "1E-3", "nan", "inf", "1e999", "0"])
PAIRS = st.builds(lambda i, v: f"{i}:{v}", st.sampled_from(["0", "1", "2", "3", "03", "4"]), NUMBERS)
TEXT = st.lists(
    st.one_of(PAIRS, PAIRS, NUMBERS, st.sampled_from([" ", "\n", "\n", "\r\n", "\t", "#", "qid:3", "x", ":", "1:", ",", "é"])),
    max_size=30,
)  # fmt: skip


@given(TEXT, st.sampled_from(["", " "]), st.integers(1, 40))
@settings(max_examples=300)
def test_numpys_parser_agrees_with_the_exact_one(tokens: list[str], separator: str, chunk_bytes: int) -> None:
    body = separator.join(tokens).encode()

    def outcome() -> Any:
        try:
            return decode(codec, body, ROW, options=CodecOptions(chunk_bytes=chunk_bytes))[0][1]
        except DecodeError as ex:
            return str(ex)

    got = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libsvm, "_parse", libsvm._parse_exactly)
        expected = outcome()
    np.testing.assert_equal(got, expected)


@pytest.mark.parametrize("label", ["", "1 ", "1 qid:4 "], ids=["bare", "label", "query"])
def test_plain_text_takes_numpys_parser(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(chunk: bytes, first: int) -> Any:
        pytest.fail("the exact parser was used")

    monkeypatch.setattr(libsvm, "_parse_exactly", refuse)
    assert len(rows_of(f"{label}0:1 3:2.5\n".encode() * 100)) == 100


ERRORS = {
    "blank": (b"1 0:1\n\n", "expected a label or index:value, got an empty line (line 2)"),
    "comment only": (b"# 1\n", "got an empty line (line 1)"),
    "label": (b"1.5,2.0\n", 'expected a label or index:value, got "1.5,2.0" (line 1)'),
    "pair": (b"1 0:1 5\n", 'expected index:value, got "5" (line 1)'),
    "value": (b"1 0:abc\n", 'expected index:value, got "0:abc" (line 1)'),
    "negative": (b"1 -1:3\n", 'expected index:value, got "-1:3"'),
    "long index": (b"1 " + b"9" * 30 + b":3\n", "expected index:value"),
    "underscore": (b"1 0:1_0\n", 'expected index:value, got "0:1_0"'),
    "beyond": (b"1 0:1\n1 9:1\n", "expected indices from 0 to 3, got 9 (line 2)"),
    "one": (b"1 4:1\n", "from 0 to 3, got 4; if the first index is 1, say so: text/libsvm; indexing_mode=1"),
    "twice": (b"1 0:1 0:2\n", "expected each index once, got 0 again (line 1)"),
    "twice apart": (b"1\n1 3:1 0:2 3:1\n", "expected each index once, got 3 again (line 2)"),
    "too large": (b"1 0:1\n1 0:1e39\n", 'input "x": expected FLOAT, got 1e+39 at [0] (line 2)'),
}


@pytest.mark.parametrize(("body", "problem"), ERRORS.values(), ids=ERRORS)
def test_errors_say_what_was_expected_and_where(body: bytes, problem: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(codec, body, ROW)

    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"2:1\n2:1.5\n", 'input "y": expected INT64, got 1.5'),
        (b"2:1\n2:9007199254740994\n", "exact below 2^53 only, got a greater one (line 2)"),
        (b"2:9007199254740991\n2:9007199254740993\n", "exact below 2^53 only, got a greater one (line 2)"),
        (b"2:nan\n", 'input "y": expected INT64, got nan'),
    ],
    ids=["fraction", "large", "rounded", "nan"],
)
def test_integers_are_exact_or_refused(body: bytes, problem: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(codec, body, TWO)

    assert problem in str(caught.value)
    assert caught.value.line == body.count(b"\n")


@pytest.mark.parametrize(
    ("parameters", "model", "problem"),
    [
        ({"indexing_mode": "2"}, ROW, 'expected indexing_mode=0 or indexing_mode=1, got "2"'),
        ({"missing": "-1"}, ROW, 'expected missing=0 or missing=nan, got "-1"'),
        ({}, signature(("x", "float", ["N", "K"])), "numbers for inputs of known size"),
        ({}, signature(("x", "string", ["N", 1])), "numbers for inputs of known size"),
        ({}, signature(("x", "seq(tensor(float))", ["N"])), "numbers for inputs of known size"),
        ({}, signature(), "takes no input"),
    ],
    ids=["indexing", "missing", "free", "strings", "sequence", "no input"],
)
def test_what_cannot_be_read_is_refused_at_once(
    parameters: dict[str, str], model: Signature, problem: str
) -> None:
    with pytest.raises(DecodeError, match=problem):
        decode(codec, b"", model, media_type=MediaType("text/libsvm", parameters))


@given(st.binary(max_size=60))
@settings(max_examples=150)
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    check_arbitrary_bytes(codec, data, ROW, CodecOptions(chunk_bytes=9))


def test_a_line_of_more_pairs_than_values_is_refused_before_it_is_parsed() -> None:
    line = b"1 " + b"0:1 " * 200_000
    tracemalloc.start()
    with pytest.raises(DecodeError, match=r"expected at most 4 index:value, got 200000 \(line 2\)"):
        decode(codec, b"1 0:1\n" + line + b"\n", ROW)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * len(line)


def test_a_long_line_with_a_query_and_a_comment_is_read() -> None:
    body = b"1 qid:7 0:1 3:2 # " + b"0:1 " * 200_000

    assert decode_rows(codec, body, ROW)["x"].tolist() == [[1, 0, 0, 2]]
