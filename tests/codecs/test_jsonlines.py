"""JSON lines: one record a line, one prediction a line."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
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
from onnx_serve.codecs import jsonlines, records
from onnx_serve.codecs.interface import MediaType
from onnx_serve.codecs.jsonlines import codec
from onnx_serve.errors import DecodeError, EncodeError, MismatchError
from onnx_serve.tensors import MapTable, RowAxis, Tensors, Value

WIDE = signature(("x", "float", ["N", 4]))
ONE = signature(("x", "float", ["N", 1]))
SCALAR = signature(("x", "double", ["N"]))
WHOLE = signature(("x", "int64", ["N", 2]))
SQUARE = signature(("x", "float", ["N", 2, 2]))
FREE = signature(("x", "int64", ["N", "S"]))
TEXT = signature(("t", "string", ["N", 1]))
MIXED = signature(("a", "float", ["N", 2]), ("b", "int64", ["N"]), ("c", "string", ["N", 1]))


def rows(body: str, model: Any = WIDE) -> dict[str, Any]:
    return {name: array.tolist() for name, array in decode_rows(codec, body.encode(), model).items()}


@pytest.mark.parametrize(
    ("model", "body", "expected"),
    [
        (WIDE, "[1,2,3,4]\n[5,6,7,8.5]\n", {"x": [[1, 2, 3, 4], [5, 6, 7, 8.5]]}),
        (WIDE, "[1,2,3,4]\n[5,6,7,8]", {"x": [[1, 2, 3, 4], [5, 6, 7, 8]]}),
        (WIDE, "[1,2,3,4]\r\n[5,6,7,8]\r\n", {"x": [[1, 2, 3, 4], [5, 6, 7, 8]]}),
        (WIDE, "\ufeff[1,2,3,4]\n", {"x": [[1, 2, 3, 4]]}),
        (WIDE, '{"features": [1,2,3,4]}\n{"features": [5,6,7,8]}\n', {"x": [[1, 2, 3, 4], [5, 6, 7, 8]]}),
        (WIDE, '{"x": [1,2,3,4]}\n{"x": [5,6,7,8]}\n', {"x": [[1, 2, 3, 4], [5, 6, 7, 8]]}),
        (
            WIDE,
            '{"data":{"features":{"values":[1,2,3,4]}}}\n{"data":{"features":{"values":[5,6,7,8]}}}',
            {"x": [[1, 2, 3, 4], [5, 6, 7, 8]]},
        ),
        (
            WIDE,
            '{"data":{"features":{"keys":[3,0],"shape":[4],"values":[1.5,2]}},"configuration":{"k":1}}\n[1,2,3,4]',
            {"x": [[2, 0, 0, 1.5], [1, 2, 3, 4]]},
        ),
        (WIDE, '{"features":[1,2,3,4],"configuration":{}}\n', {"x": [[1, 2, 3, 4]]}),
        (ONE, "1\n2.5\n", {"x": [[1], [2.5]]}),
        (ONE, "[1]\n2.5\n", {"x": [[1], [2.5]]}),
        (ONE, '{"x": 7}\n', {"x": [[7]]}),
        (SCALAR, "1\n2\n", {"x": [1, 2]}),
        (SCALAR, '{"features":[1]}\n{"features":[2]}\n', {"x": [1, 2]}),
        (WHOLE, "[9007199254740993,-9223372036854775808]\n", {"x": [[9007199254740993, -(2**63)]]}),
        (WHOLE, "[9007199254740993,1]\n[2,3]\n", {"x": [[9007199254740993, 1], [2, 3]]}),
        (WHOLE, "[1.0,2e3]\n", {"x": [[1, 2000]]}),
        (SQUARE, "[[1,2],[3,4]]\n[[5,6],[7,8]]\n", {"x": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]}),
        (SQUARE, '{"features":[1,2,3,4]}\n{"features":[5,6,7,8]}', {"x": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]}),
        (TEXT, '"a"\n["b]\\n["]\n', {"t": [["a"], ["b]\n["]]}),
        (MIXED, '[1,2,3,"z"]\n{"b":6,"c":"y","a":[4,5]}\n', {"a": [[1, 2], [4, 5]], "b": [3, 6], "c": [["z"], ["y"]]}),
        (signature(("x", "bool", ["N", 3])), "[true,false,1]\n[0,1,0]\n", {"x": [[1, 0, 1], [0, 1, 0]]}),
        (signature(("x", "bool", ["N", 1])), "[0]\n[1]\n", {"x": [[0], [1]]}),
        (signature(("features", "float", ["N"])), '{"features": 5}\n', {"features": [5]}),
        (signature(("x", "uint64", ["N", 1])), "[18446744073709551615]\n[0]\n", {"x": [[2**64 - 1], [0]]}),
    ],
)  # fmt: skip
def test_a_line_is_a_record(model: Any, body: str, expected: dict[str, Any]) -> None:
    assert rows(body, model) == expected


def test_non_finite_values_of_float_inputs() -> None:
    got = rows('[NaN,null,"NaN",1]\n[Infinity,"-Infinity",1e999,-1e999]\n')["x"]
    np.testing.assert_array_equal(got, [[np.nan, np.nan, np.nan, 1], [np.inf, -np.inf, np.inf, -np.inf]])


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        (WIDE, "[1,2,3,4]\n\n[5,6,7,8]\n", "expected a record, got an empty line (line 2)"),
        (WIDE, "[1,2,3,4]\n \t\r\n", "expected a record, got an empty line (line 2)"),
        (WIDE, "[1,2,3,4]\n[5,6,7,8]\n\n", "expected a record, got an empty line (line 3)"),
        (WIDE, "[1,2,3,4]\n[1,2,3,4,5]\n", 'input "x": expected FLOAT[4], got 5 values (line 2)'),
        (WIDE, "[1,2,3,4]\n[1,2,[3],4]\n", 'input "x": expected FLOAT[4], got a list of 1 at [2] (line 2)'),
        (WIDE, '[1,2,"abc",4]\n', 'input "x": expected FLOAT[4], got "abc" at [2] (line 1)'),
        (WIDE, "[1,2,true,4]\n", 'input "x": expected FLOAT[4], got true at [2] (line 1)'),
        (WIDE, "[1,2,1e39,4]\n", 'input "x": expected FLOAT[4], got 1e+39 at [2] (line 1)'),
        (WIDE, "5\n", 'input "x": expected FLOAT[4], got 5 (line 1)'),
        (WIDE, "{}\n", ('expected a list, an object with the inputs "x" FLOAT[N, 4], {"features": [...]} or '
         '{"data": {"features": {"values": [...]}}}, got {} (line 1)')),
        (WIDE, '{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6}\n', '"d", "e", ... (line 1)'),
        (WIDE, '{"instances":[[1,2,3,4]]}\n', 'got an object with the keys "instances" (line 1)'),
        (WIDE, '{"data":{"features":{"values":[1],"keys":[0]}}}\n', 'got an object with the keys "data" (line 1)'),
        (WIDE, "[1,2,3,4]\n[1,2,3,\n", "(line 2, column "),
        (WIDE, "[1,2,3,4]\n[1,2\n3,4]\n", "(line 2, column 5)"),
        (WIDE, "[1,2,3,4] [1,2,3,4]\n", "expected JSON: extra data (line 1, column 11)"),
        (WIDE, '{"features":{"a":1}}\n', 'expected a list of values for the inputs "x" FLOAT[N, 4], got an object with the keys "a"'),
        (WHOLE, "[1,1.5]\n", 'input "x": expected INT64[2], got 1.5 at [1] (line 1)'),
        (WHOLE, "[1,null]\n", 'input "x": expected INT64[2], got null at [1] (line 1)'),
        (WHOLE, "[1,NaN]\n", 'input "x": expected INT64[2], got NaN at [1] (line 1)'),
        (WHOLE, "[1,true]\n", 'input "x": expected INT64[2], got true at [1] (line 1)'),
        (WHOLE, "[1,-9223372036854775809]\n", "got -9.223372036854776e+18 at [1] (line 1)"),
        (WHOLE, "[1,9223372036854775808]\n", "got 9223372036854775808 at [1] (line 1)"),
        (WHOLE, "[1,9007199254740994.0]\n", "got 9007199254740994.0 at [1] (line 1)"),
        (WIDE, f"[1,{'9' * 5000}]\n", "expected JSON numbers of at most 4300 digits, got one of 5000 (line 1)"),
        (WHOLE, f"[1,{'9' * 4000}]\n", "got Infinity at [1] (line 1)"),
        (signature(("x", "int8", ["N", 1])), "[5]\n[300]\n", 'input "x": expected INT8[1], got 300 at [0] (line 2)'),
        (signature(("x", "bool", ["N", 1])), "[2]\n", 'input "x": expected BOOL[1], got 2 at [0] (line 1)'),
        (signature(("x", "bool", ["N", 1])), '["1"]\n', 'input "x": expected BOOL[1], got "1" at [0] (line 1)'),
        (TEXT, "[1]\n", 'input "t": expected STRING[1], got 1 at [0] (line 1)'),
        (TEXT, '["\\ud800"]\n', 'input "t": expected STRING[1], got "\\xd800" at [0] (line 1)'),
        (SQUARE, "[[1,2],[3]]\n", 'input "x": expected FLOAT[2, 2], got 1 values at [1] where 2 are due (line 1)'),
        (SQUARE, '{"features":[1,2,3]}\n', 'expected 4 values for the inputs "x" FLOAT[N, 2, 2], got 3 values'),
        (MIXED, "[1,2,3]\n", "expected 4 values for the inputs"),
        (MIXED, "5\n", "expected a list of values for the inputs"),
        (MIXED, '{"a":[1,2],"b":3}\n', 'got an object with the keys "a", "b" (line 1)'),
        (signature(("x", "float", ["N", "S", 2])), '{"features":[1,2]}\n', "cannot be divided among inputs of free"),
        (WIDE, '{"data":{"features":{"keys":[0],"shape":[5],"values":[1]}}}\n', 'expected "shape": [4], got a list'),
        (WIDE, '{"data":{"features":{"keys":[0],"shape":[true],"values":[1]}}}\n', 'expected "shape": [4]'),
        (WIDE, '{"data":{"features":{"keys":[4],"shape":[4],"values":[1]}}}\n', "expected keys from 0 to 3, got 4"),
        (WIDE, '{"data":{"features":{"keys":[0],"shape":[4],"values":[]}}}\n', 'as many "values" as "keys"'),
        (WIDE, '{"data":{"features":{"keys":[0,0],"shape":[4],"values":[1,2]}}}\n', "expected each key once"),
        (FREE, '{"data":{"features":{"keys":[0],"shape":[9999999999],"values":[1]}}}\n', "inputs of known size"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named(model: Any, body: str, message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(codec, body.encode(), model)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"[1,2],[3\n4]\n",
        b"[1,2]\n[3\n4]\n",
        b"[1,2],[3,4]\n",
        b"[1,2][3,4]\n[5,6]\n",
        b'{"features":[1,2]}\n{"features":[3,4]},{"features":[5,6]}\n{"features":[7\n8]}',
        b"[[1],2]\n[3,4]\n",
        b"[1,2]\n[3,[4]]\n[5,6]",
    ],
)
def test_records_do_not_reach_across_lines(body: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(codec, body, signature(("x", "float", ["N", 2])))


@pytest.mark.parametrize(
    "body",
    [
        b"[[1,2]\n[3,4]]\n[[5,6],[7,8]],[[9,8],[7,6]]\n",
        b"[[1,2],[3,4]]\n[[1,2]\n[3,4]]\n[[5,6],[7,8]],[[9,8],[7,6]]\n",
    ],
)
def test_deep_records_do_not_reach_across_lines(body: bytes) -> None:
    """As many records as lines, but not one a line."""
    with pytest.raises(DecodeError, match="expected JSON"):
        decode(codec, body, SQUARE)


@pytest.mark.parametrize("name", ["x[5]", "x:[5]"])
def test_a_name_that_looks_like_a_list_is_a_name(name: str) -> None:
    model = signature((name, "float", ["N", 1]))
    assert rows(f'{{"{name}": 5}}\n{{"{name}": 6}}\n', model) == {name: [[5], [6]]}
    other = name.replace("5", "6")
    with pytest.raises(DecodeError, match="line 2"):
        decode(codec, f'{{"{name}": 5}}\n{{"{other}": 5}}\n'.encode(), model)


def test_records_of_one_free_size_share_a_block() -> None:
    [(_, blocks)] = decode(codec, b"[1,2]\n[3,4]\n[5]\n[6,7,8]\n[9,9,9]\n", FREE)
    assert [block["x"].tolist() for block in blocks] == [
        [[1, 2], [3, 4]],
        [[5]],
        [[6, 7, 8], [9, 9, 9]],
    ]


def test_a_model_without_rows_runs_once_a_line() -> None:
    model = signature(("x", "float", ["S", 2]), ("k", "int64", []), row_axis=RowAxis.NONE)
    body = b'{"x":[[1,2],[3,4]],"k":1}\n{"x":[[5,6]],"k":2}\n'
    [(_, blocks)] = decode(codec, body, model)
    assert [(b["x"].shape, b["k"].shape, b["k"].item()) for b in blocks] == [((2, 2), (), 1), ((1, 2), (), 2)]
    with pytest.raises(DecodeError, match="line 2"):
        decode(codec, b'{"x":[[1,2]],"k":1}\n{"x":[[5]],"k":2}\n', model)


def test_an_empty_body_has_no_records() -> None:
    assert decode(codec, b"", WIDE) == decode(codec, b"", FREE)
    assert [blocks for _, blocks in decode(codec, b"", WIDE)] == [[]]


def test_chunks_change_neither_values_nor_line_numbers() -> None:
    lines = [f"[{i},{i + 1},{i + 2},{i + 3}]" for i in range(200)]
    options = replace(OPTIONS, chunk_bytes=64)
    [(_, blocks)] = decode(codec, "\n".join(lines).encode(), WIDE, options=options)
    assert len(blocks) > 10
    assert np.concatenate([block["x"] for block in blocks])[:, 0].tolist() == list(range(200))
    lines[150] = "[1,2,3]"
    with pytest.raises(DecodeError, match=r"got 3 values \(line 151\)"):
        decode(codec, "\n".join(lines).encode(), WIDE, options=options)


def test_sparse_records_become_blocks_of_bounded_size() -> None:
    """A few bytes a record must not become one array of all their zeros."""
    model = signature(("x", "float", ["N", 1 << 19]))
    line = b'{"data":{"features":{"keys":[7],"shape":[524288],"values":[1]}}}\n'
    [(_, blocks)] = decode(codec, line * 5, model)
    assert [len(block["x"]) for block in blocks] == [2, 2, 1]
    assert all(block["x"].sum() == len(block["x"]) for block in blocks)


def test_other_charsets_are_refused() -> None:
    with pytest.raises(DecodeError, match=r'expected charset=utf-8, got "latin-1"'):
        decode(
            codec, b"[1,2,3,4]", WIDE, media_type=MediaType("application/jsonlines", {"charset": "latin-1"})
        )
    utf8 = MediaType("application/jsonlines", {"charset": "UTF-8"})
    assert len(decode(codec, b"[1,2,3,4]", WIDE, media_type=utf8)) == 1


def test_inputs_that_json_cannot_give() -> None:
    with pytest.raises(MismatchError, match="is not supported"):
        decode(codec, b"[1]", signature(("x", "tensor(complex64)", ["N"])))


LINES = [
    b"[1,2,3,4]", b"[1.5,-2,3e2,0.1]", b"[5, 6,7,8]", b"[1,2,3]", b"[1,2,[3],4]", b"[1,2", b"3,4]", b"],[", b"",
    b'{"features": [1,2,3,4]}', b'{"features": [4,3,2,1.5]}', b'{"features":[1,2,3,4]}', b'{"x": [1,2,3,4]}',
    b"[1,2,3,4],[1,2,3,4]", b"[NaN,1,2,3]", b"[1,2,3,null]", b'{"features": [[1,2,3,4]]}', b'{"x[1]": [1,2,3,4]}',
    b"[9007199254740993,1,2,3]", b"[1,2,3,-0]", b"[1,2,3,-0.0]", b"[1,2,3,1e400]", b"[1,2,3,4]\r", b"[[1,2,3,4]]",
    b"[1,2,3,4]]", b"[[1,2,3,4]", b"[[1,2],[3,4]]", b"[[1,2]", b"[3,4]]", b"[[5,6],[7,8.5]]", b"[[1,2],[3,4]],[[5,6],[7,8]]",
]  # fmt: skip
BODIES = st.one_of(
    st.lists(st.sampled_from(LINES), min_size=1, max_size=4),
    st.sampled_from(LINES).flatmap(lambda line: st.lists(st.sampled_from([line, line, LINES[3]]), min_size=2, max_size=4)),
).map(b"\n".join)  # fmt: skip


@pytest.mark.parametrize("model", [WIDE, SQUARE, FREE, signature(("x", "int8", ["N", 4]))])
@given(body=BODIES)
@settings(max_examples=250, deadline=None)
def test_fast_and_exact_way_agree(model: Any, body: bytes) -> None:
    """Where the fast way has an answer, it is the exact way's, to the bit."""
    grammar = records.grammar(model)
    assert grammar.only
    array = jsonlines.uniform(body, grammar, grammar.only)
    if array is not None:
        expected = np.concatenate([block["x"] for block in jsonlines.exact(body, grammar, 1)])
        assert array.dtype == expected.dtype
        assert array.shape == expected.shape
        assert array.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "line",
    [
        b"[1.5,2,3,4]",
        b'{"features": [1,2,3,4]}',
        b'{"x":[1,2,3,4] }',
        b'{"data":{"features":{"values":[1,2,3,4]}}}',
    ],
)
def test_plain_lines_take_the_fast_way(line: bytes) -> None:
    grammar = records.grammar(WIDE)
    assert grammar.only
    for body in (line + b"\n" + line, line + b"\n" + line + b"\n", line + b"\r\n" + line + b"\r\n"):
        array = jsonlines.uniform(body, grammar, grammar.only)
        assert array is not None
        assert len(array) == 2


@given(
    data=st.one_of(
        st.binary(max_size=60), st.text(alphabet='[]{}",:0123e.-\n tfnulx', max_size=60).map(str.encode)
    )
)
@settings(max_examples=300, deadline=None)
@pytest.mark.parametrize("model", [WIDE, MIXED, FREE])
def test_arbitrary_bytes(model: Any, data: bytes) -> None:
    check_arbitrary_bytes(codec, data, model)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 1_000_000,
        b"[" + b"1" * 1_000_000 + b"]",
        b"\xff\n",
        b"[1]\x00\n",
        b"\n" * 100_000,
        b'{"' + b"k" * 100_000 + b'": 1}',
        b'["' + b"s" * 1_000_000 + b'",1,1,1]',
        b'["\\ud800",1,1,1]',
    ],
    ids=lambda body: repr(body[:12]),
)
def test_hostile_lines_are_errors(body: bytes) -> None:
    check_arbitrary_bytes(codec, body, WIDE)
    with pytest.raises(DecodeError):
        decode(codec, body, WIDE)


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint64, np.int8, np.bool_]),
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=4),
    )
)
@settings(max_examples=200, deadline=None)
def test_numbers_survive(array: Any) -> None:
    """What leaves reads back to the last bit; NaN and infinities too."""
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), np.array(np.nan, array.dtype), array)
    kind = {"f2": "float16", "f4": "float", "f8": "double", "b1": "bool"}.get(
        array.dtype.str[1:], array.dtype.name
    )
    model = signature(("x", kind, ["N", *array.shape[1:]]))
    check_round_trip(codec, {"x": array}, model.inputs)


def test_several_outputs_survive() -> None:
    values: dict[str, Value] = {
        "p": np.array([[0.1, 0.2], [np.nan, -np.inf]], np.float32),
        "label": np.array(["a\n", "],["], object),
        "big": np.array([2**63 - 1, -5]),
    }
    model = signature(("p", "float", ["N", 2]), ("label", "string", ["N"]), ("big", "int64", ["N"]))
    check_round_trip(codec, values, model.inputs)


P: tuple[str, str, list[int | str | None]] = ("p", "float", ["N", 2])
TABLE = MapTable((0, 1), np.array([[0.1, 0.9], [1, np.nan]], np.float32))


@pytest.mark.parametrize(
    ("outputs", "values", "lines"),
    [
        ([P], {"p": np.array([[0.1, 1], [2, 3]], np.float32)}, ["[0.1,1.0]", "[2.0,3.0]"]),
        ([P], {"p": np.array([0.1, 2], np.float32)}, ["0.1", "2.0"]),
        ([P], {"p": np.array([0.1, np.inf], np.float32)}, ["0.1", '"Infinity"']),
        ([P], {"p": np.array([[0.1, 1], [2, 3]], ">f4")}, ["[0.1,1.0]", "[2.0,3.0]"]),
        ([P], {"p": np.array([[1, 2], [3, 4]], np.int64).T}, ["[1,3]", "[2,4]"]),
        ([P], {"p": np.zeros((2, 1, 2), np.int8)}, ["[[0,0]]", "[[0,0]]"]),
        ([P], {"p": np.zeros((2, 0, 2), np.int8)}, ["[]", "[]"]),
        ([P], {"p": np.zeros((2, 2, 0), np.int8)}, ["[[],[]]", "[[],[]]"]),
        ([P], {"p": np.array(["a", '"\n'], object)}, ['"a"', '"\\"\\n"']),
        ([P], {"p": np.array(["a", "b"])}, ['"a"', '"b"']),
        ([P], {"p": TABLE}, ['{"0":0.1,"1":0.9}', '{"0":1.0,"1":null}']),
        ([P], {"p": MapTable((), np.zeros((2, 0), np.float32))}, ["{}", "{}"]),
        ([P], {"p": [np.array([1, 2]), {"k": np.float32(0.1), 3: None}]}, ["[1,2]", '{"k":0.1,"3":null}']),
        ([P], {"p": [[1.5, "s", True, 2], (np.float32(0.1), float("inf"))]}, ['[1.5,"s",true,2]', '[0.1,"Infinity"]']),
        ([P, ("q", "int64", ["N"])], {"p": TABLE, "q": np.array([7, 8])},
         ['{"p":{"0":0.1,"1":0.9},"q":7}', '{"p":{"0":1.0,"1":null},"q":8}']),
        ([("q", "int64", ["N"]), P], {"p": np.ones((2, 2), np.float32), "q": np.array([7, 8])},
         ['{"q":7,"p":[1.0,1.0]}', '{"q":8,"p":[1.0,1.0]}']),
        ([P, ('"%', "int64", ["N"])], {"p": np.ones((2, 1)), '"%': None}, ['{"p":[1.0],"\\"%":null}'] * 2),
        ([P, ("q", "float", ["N"])], {"p": MapTable((), np.zeros((2, 0))), "q": MapTable((), np.zeros((2, 0)))},
         ['{"p":{},"q":{}}'] * 2),
    ],
)  # fmt: skip
def test_a_prediction_is_a_line(outputs: Any, values: Any, lines: list[str]) -> None:
    data = encode(codec, [values], signature(outputs=outputs))
    assert data == "".join(f"{line}\n" for line in lines).encode()
    assert all(
        json.loads(line) == json.loads(again) for line, again in zip(lines, data.splitlines(), strict=True)
    )


@pytest.mark.parametrize(
    ("choice", "line"),
    [("string", '[null,"Infinity","-Infinity",0.1]'), ("null", "[null,null,null,0.1]"),
     ("literal", "[NaN,Infinity,-Infinity,0.1]")],
)  # fmt: skip
def test_non_finite_outputs(choice: Any, line: str) -> None:
    values: dict[str, Value] = {"p": np.array([[np.nan, np.inf, -np.inf, 0.1]], np.float32)}
    options = replace(OPTIONS, json_non_finite=choice)
    assert encode(codec, [values], signature(outputs=[P]), options=options) == line.encode() + b"\n"


def test_a_run_without_rows_is_one_line() -> None:
    model = signature(outputs=[P], row_axis=RowAxis.NONE)
    runs: list[dict[str, Value]] = [
        {"p": np.array(0.1, np.float32)},
        {"p": np.array([[1, 2], [3, 4]])},
        {"p": np.array([[1, np.nan]])},
        {"p": TABLE},
        {"p": {"a": np.ones(2)}},
        {"p": []},
        {"p": None},
    ]
    expected = ["0.1", "[[1,2],[3,4]]", "[[1.0,null]]", '[{"0":0.1,"1":0.9},{"0":1.0,"1":null}]', '{"a":[1.0,1.0]}',
                "[]", "null"]  # fmt: skip
    assert encode(codec, runs, model).decode().splitlines() == expected
    two = signature(outputs=[P, ("q", "int64", [])], row_axis=RowAxis.NONE)
    assert encode(codec, [{"p": np.ones(2), "q": np.array(3)}], two) == b'{"p":[1.0,1.0],"q":3}\n'


def test_blocks_join_and_the_last_newline_is_a_choice() -> None:
    block: dict[str, Value] = {"p": np.ones((1, 1), np.int64)}
    model = signature(outputs=[P])
    assert encode(codec, [block, {"p": np.ones((0, 1))}, block], model) == b"[1]\n[1]\n"
    without = replace(OPTIONS, text_trailing_newline=False)
    assert encode(codec, [block, block], model, options=without) == b"[1]\n[1]"
    assert encode(codec, [], model) == b""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones(1, np.complex64), "type complex64, which has no form in JSON"),
        (np.array(1.0), "expected a value for each row"),
        ({"a": 1}, "expected a value for each row"),
        (np.array([b"\xff"], object), "no form in JSON"),
        (np.array(["\ud800"], object), "no form in JSON"),
        (["\ud800"], "no form in JSON"),
    ],
)
def test_outputs_without_a_form(value: Any, message: str) -> None:
    with pytest.raises(EncodeError, match=message):
        encode(codec, [{"p": value}], signature(outputs=[P]))


def test_outputs_of_unequal_length_are_an_error() -> None:
    values: dict[str, Value] = {"p": np.ones((2, 1)), "q": np.ones(3)}
    with pytest.raises(EncodeError, match=r'output "q": expected 2 rows like the first output, got 3'):
        encode(codec, [values], signature(outputs=[P, ("q", "double", ["N"])]))


def test_decoded_blocks_are_the_models_types() -> None:
    [(_, [block])] = decode(codec, b'[1,2,3,"a"]\n', MIXED)
    kinds: Tensors = block
    assert [array.dtype.kind for array in kinds.values()] == ["f", "i", "O"]
