"""JSON documents: sequences of them, envelopes, the Open Inference Protocol's tensors."""

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from codec_laws import OPTIONS, check_arbitrary_bytes, decode, encode, signature
from onnx_serve.codecs import json as json_codec
from onnx_serve.codecs import records
from onnx_serve.codecs.interface import Answer, Body, Document, Layout, MediaType
from onnx_serve.codecs.json import codec
from onnx_serve.codecs.json_plain import read_plain
from onnx_serve.errors import DecodeError, EncodeError, MismatchError
from onnx_serve.tensors import MapTable, RowAxis, Signature, Value, Values, conform

R, C, O = Layout.RECORDS, Layout.COLUMNS, Layout.OIP  # noqa: E741 - three letters keep the tables readable

X3 = signature(("x", "float", ["N", 3]))
ONE = signature(("x", "float", ["N", 1]))
SCALAR = signature(("x", "float", ["N"]))
FREE = signature(("x", "float", ["N", "S"]))
SQUARE = signature(("x", "float", ["N", 2, 2]))
DOT = signature(("x", "float", ["N", 1, 1]))
TEXT = signature(("t", "string", ["N"]))
PAIR = signature(("a", "float", ["N", 1]), ("b", "int64", ["N"]))
MIXED = signature(("a", "float", ["N", 2]), ("b", "string", ["N"]))
IMAGE = signature(("x", "float", [2, "W"]), row_axis=RowAxis.NONE)
POINT = signature(("x", "double", []), row_axis=RowAxis.NONE)


def documents(body: str | bytes, model: Signature) -> list[tuple[Layout, list[dict[str, Any]]]]:
    data = body if isinstance(body, bytes) else body.encode()
    return [
        (layout, [{name: array.tolist() for name, array in block.items()} for block in blocks])
        for layout, blocks in decode(codec, data, model)
    ]


def oip(*inputs: Any, **more: Any) -> str:
    return json.dumps({"inputs": inputs, **more})


def x_tensor(shape: Any, data: Any, datatype: Any = "FP32", name: Any = "x") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


TWO = {"x": [[1, 2, 3], [4, 5, 6]]}


@pytest.mark.parametrize(
    ("model", "body", "layout", "blocks"),
    [
        (X3, '{"instances": [[1,2,3],[4,5,6]]}', R, [TWO]),
        (X3, '\ufeff {"instances": [[1,2,3],[4,5,6]]}\n', R, [TWO]),
        (X3, '{"instances": [[1,2,3],[4,5,6]], "params": {"a": [1]}}', R, [TWO]),
        (X3, '{"instances": [{"features": [1,2,3]}, {"x": [4,5,6]}]}', R, [TWO]),
        (X3, '{"instances": [{"data":{"features":{"values":[1,2,3]}}}, [4,5,6]]}', R, [TWO]),
        (X3, '{"instances": []}', R, []),
        (X3, "[]", R, []),
        (X3, "[[1,2,3],[4,5,6]]", R, [TWO]),
        (X3, '[{"x":[1,2,3]},{"features":[4,5,6]}]', R, [TWO]),
        (X3, "[1,2,3]", R, [{"x": [[1, 2, 3]]}]),
        (X3, '{"x": [1,2,3]}', R, [{"x": [[1, 2, 3]]}]),
        (X3, '{"features": [1,2,3]}', R, [{"x": [[1, 2, 3]]}]),
        (X3, '{"data":{"features":{"values":[1,2,3]}}}', R, [{"x": [[1, 2, 3]]}]),
        (X3, '{"inputs": {"x": [[1,2,3],[4,5,6]]}}', C, [TWO]),
        (X3, '{"inputs": [[1,2,3],[4,5,6]], "params": {}}', C, [TWO]),
        (X3, '{"inputs": []}', C, []),
        (X3, '{"inputs": {"x": []}}', C, []),
        (X3, oip(x_tensor([2, 3], [1, 2, 3, 4, 5, 6])), O, [TWO]),
        (X3, oip(x_tensor([2, 3], [[1, 2, 3], [4, 5, 6]])), O, [TWO]),
        (X3, oip(x_tensor([2, 3], [1, 2, 3, 4, 5, 6], "INT8"), parameters={}, outputs=[]), O, [TWO]),
        (X3, oip(x_tensor([2, 3], [1, 2, 3, 4, 5, 6], "FP16"), id="a"), O, [TWO]),
        (X3, oip(x_tensor([2, 3], [1, 2, 3, 4, 5, 6]) | {"parameters": {"p": 1}}), O, [TWO]),
        (X3, oip(x_tensor([0, 3], [])), O, []),
        (X3, '{"dataframe_split": {"columns":["p","q","r"],"data":[[1,2,3],[4,5,6]],"index":[0,1]}}', R, [TWO]),
        (X3, '{"dataframe_split": {"data":[[1,2,3],[4,5,6]]}}', R, [TWO]),
        (X3, '{"dataframe_split": {"data":[]}}', R, []),
        (X3, '{"dataframe_split": {"columns":["x"],"data":[[[1,2,3]],[[4,5,6]]]}}', R, [TWO]),
        (X3, '{"dataframe_split": {"columns":[1,2,3],"data":[]}}', R, []),
        (X3, '{"dataframe_records": [{"p":1,"q":2,"r":3},{"q":5,"p":4,"r":6}]}', R, [TWO]),
        (X3, '{"dataframe_records": []}', R, []),
        (ONE, "[1,2,3]", R, [{"x": [[1], [2], [3]]}]),
        (ONE, "[[1],[2]]", R, [{"x": [[1], [2]]}]),
        (ONE, "5", R, [{"x": [[5]]}]),
        (ONE, '{"x": 5}', R, [{"x": [[5]]}]),
        (ONE, '{"inputs": [1,[2]]}', C, [{"x": [[1], [2]]}]),
        (SCALAR, "[1,2,3]", R, [{"x": [1, 2, 3]}]),
        (SCALAR, '{"instances": [1,2]}', R, [{"x": [1, 2]}]),
        (SCALAR, '{"instances": ["NaN", {"features": [2]}, {"x": 3}]}', R, [{"x": [None, 2, 3]}]),
        (FREE, "[1,2,3,4]", R, [{"x": [[1, 2, 3, 4]]}]),
        (FREE, "[[1,2],[3,4],[5]]", R, [{"x": [[1, 2], [3, 4]]}, {"x": [[5]]}]),
        (FREE, "[[],[]]", R, [{"x": [[], []]}]),
        (FREE, '{"dataframe_split": {"columns":["p","q"],"data":[[1,2],[3,4]]}}', R, [{"x": [[1, 2], [3, 4]]}]),
        (SQUARE, "[[1,2],[3,4]]", R, [{"x": [[[1, 2], [3, 4]]]}]),
        (SQUARE, "[[[1,2],[3,4]]]", R, [{"x": [[[1, 2], [3, 4]]]}]),
        (SQUARE, '{"dataframe_records": [{"p":1,"q":2,"r":3,"s":4}]}', R, [{"x": [[[1, 2], [3, 4]]]}]),
        (DOT, "[1,2]", R, [{"x": [[[1]], [[2]]]}]),
        (TEXT, '["a","b"]', R, [{"t": ["a", "b"]}]),
        (TEXT, '"a"', R, [{"t": ["a"]}]),
        (TEXT, oip(x_tensor([2], ["a", "é"], "BYTES", "t")), O, [{"t": ["a", "é"]}]),
        (PAIR, "[[1,2],[3,4]]", R, [{"a": [[1], [3]], "b": [2, 4]}]),
        (PAIR, "[1,2]", R, [{"a": [[1]], "b": [2]}]),
        (PAIR, '{"b": 2, "a": 1}', R, [{"a": [[1]], "b": [2]}]),
        (PAIR, '{"inputs": {"b": [2,4], "a": [[1],[3]]}}', C, [{"a": [[1], [3]], "b": [2, 4]}]),
        (PAIR, '{"dataframe_split": {"columns":["b","a"],"data":[[2,1],[4,3]]}}', R, [{"a": [[1], [3]], "b": [2, 4]}]),
        (PAIR, '{"dataframe_records": [{"b":2,"a":1},{"a":3,"b":4}]}', R, [{"a": [[1], [3]], "b": [2, 4]}]),
        (PAIR, oip(x_tensor([1, 1], [1], name="a"), x_tensor([1], [9007199254740993], "INT64", "b")), O,
         [{"a": [[1]], "b": [9007199254740993]}]),
        (MIXED, '{"dataframe_split": {"columns":[1,2,"u"],"data":[[1,2,"s"]]}}', R, [{"a": [[1, 2]], "b": ["s"]}]),
        (MIXED, '[1,2,"s"]', R, [{"a": [[1, 2]], "b": ["s"]}]),
        (IMAGE, "[[1,2,3],[4,5,6]]", R, [TWO]),
        (IMAGE, "[[[1,2,3],[4,5,6]],[[1],[2]]]", R, [TWO, {"x": [[1], [2]]}]),
        (IMAGE, "[[[1,2,3],[4,5,6]],[[1,2,3],[4,5,6]]]", R, [TWO, TWO]),
        (IMAGE, '{"inputs": [[1,2,3],[4,5,6]]}', C, [TWO]),
        (IMAGE, oip(x_tensor([2, 0], [])), O, [{"x": [[], []]}]),
        (POINT, "5", R, [{"x": 5}]),
        (POINT, "[1,2]", R, [{"x": 1}, {"x": 2}]),
        (POINT, '{"inputs": 5}', C, [{"x": 5}]),
        (POINT, oip(x_tensor([], [5])), O, [{"x": 5}]),
        (signature(("x", "int64", ["N", 2])), '{"inputs": [[9007199254740993,1]]}', C, [{"x": [[9007199254740993, 1]]}]),
        (signature(("x", "uint64", ["N"])), oip(x_tensor([1], [2**64 - 1], "UINT64")), O, [{"x": [2**64 - 1]}]),
        (signature(("x", "bool", ["N"])), oip(x_tensor([3], [True, 0, 1], "BOOL")), O, [{"x": [True, False, True]}]),
        # Names of inputs come before envelopes.
        (signature(("instances", "float", ["N", 2])), '{"instances": [1,2]}', R, [{"instances": [[1, 2]]}]),
        (signature(("inputs", "float", ["N", 2])), '{"inputs": [1,2]}', R, [{"inputs": [[1, 2]]}]),
        (signature(("features", "float", ["N", 2, 1])), '{"dataframe_split": {"columns":[1,2],"data":[[1,2]]}}', R,
         [{"features": [[[1], [2]]]}]),
    ],
)  # fmt: skip
def test_shapes_of_documents(model: Signature, body: str, layout: Layout, blocks: Any) -> None:
    [(got_layout, got)] = documents(body, model)
    assert got_layout is layout
    assert json.loads(json.dumps(got).replace("NaN", "null")) == blocks


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        (X3, "", "expected a JSON document, got an empty body"),
        (X3, " \n\n ", "expected a JSON document, got an empty body"),
        (X3, "5", 'or an object with the inputs "x" FLOAT[N, 3], got 5'),
        (X3, '{"foo": 1}', ('{"dataframe_records": [...]}, a list of records, or an object with the inputs "x" FLOAT[N, 3], '
         'got an object with the keys "foo"')),
        (X3, '{"instances": 5}', '"instances": expected a list of records, got 5'),
        (X3, '{"instances": [[1,2,3]], "signature_name": "s"}', 'unknown key "signature_name" beside "instances"'),
        (X3, '{"instances": [], "inputs": []}', 'unknown key "inputs" beside "instances"'),
        (X3, '{"instances": [[1,2,3],[1,2]]}', 'input "x": expected FLOAT[3], got 2 values (record 2)'),
        (X3, '{"instances": [[1,2,3],[1,[2],3]]}', 'input "x": expected FLOAT[3], got a list of 1 at [1] (record 2)'),
        (X3, '{"instances": [[1,2,3],4]}', 'input "x": expected FLOAT[3], got 4 (record 2)'),
        (X3, '{"instances": [[1,2,3],["a",2,3]]}', 'input "x": expected FLOAT[3], got "a" at [0] (record 2)'),
        (X3, '{"instances": [[1,2,1e39]]}', 'input "x": expected FLOAT[3], got 1e+39 at [2] (record 1)'),
        (X3, '{"instances": [{"z": 1}]}', 'got an object with the keys "z" (record 1)'),
        (X3, "[1,2]", "a flat list of 2 values is neither one record of 3 values nor a list of records"),
        (X3, "[[[1,2,3]]]", "2 lists deep, or one record, 1 deep, got a list 3 deep"),
        (SQUARE, "[1,2,3,4]", "3 lists deep, or one record, 2 deep, got a list 1 deep"),
        (PAIR, "[1,2,3]", "a flat list of 3 values is neither one record of 2 values"),
        (PAIR, "[[1,2],[3,4.5]]", 'input "b": expected INT64[], got 4.5 (record 2)'),
        (PAIR, '{"a": 1}', 'expected {"instances": [...]}'),
        (PAIR, '{"inputs": {"a": [1], "z": [2]}}', 'missing "b"; unknown "z"'),
        (PAIR, '{"inputs": [[1,2]]}', '"inputs": expected an object with "a" FLOAT[N, 1], "b" INT64[N], got a list of 1'),
        (PAIR, '{"inputs": {"a": 5, "b": [1]}}', 'input "a": expected a list of records of FLOAT[1], got 5'),
        (X3, '{"inputs": [[1,2,3],[1,2]]}', 'input "x": expected FLOAT[3], got 2 values (record 2)'),
        (FREE, '{"inputs": [[1,2],[3,4],[5]]}', 'input "x": expected FLOAT[S], got 1 values where 2 are due (record 3)'),
        (IMAGE, '{"inputs": [[1,2]]}', 'input "x": expected FLOAT[2, W], got 1 values where 2 are due'),
        (IMAGE, '{"inputs": 5}', 'input "x": expected FLOAT[2, W], got 5'),
        (X3, '{"dataframe_split": {"columns": []}}', 'expected an object with "data"'),
        (X3, '{"dataframe_split": {"data": [[1,2]]}}', "expected 3 columns"),
        (PAIR, '{"dataframe_split": {"data": [[1,2]]}}', "columns:"),
        (X3, '{"dataframe_split": {"columns": 1, "data": []}}', '"dataframe_split": expected lists, got 1 and a list of 0'),
        (X3, '{"dataframe_split": {"columns": [], "data": [], "names": 1}}', 'unknown key "names" in "dataframe_split"'),
        (X3, '{"dataframe_split": {"columns":["p","q"],"data":[[1,2]]}}', "expected 3 columns, or columns named"),
        (X3, '{"dataframe_split": {"columns":["p","q","q"],"data":[]}}', "expected each column once"),
        (X3, '{"dataframe_split": {"columns":["p","q","r"],"data":[[1,2,3],[1,2]]}}', "one a column, got a list of 2 (record 2)"),
        (X3, '{"dataframe_split": {"columns":["p","q","r"],"data":[[1,2,"k"]]}}', 'got "k" at [2] (record 1)'),
        (PAIR, '{"dataframe_split": {"columns":["a","z"],"data":[[1,2]]}}', ('columns: expected the names "a" FLOAT[N, 1], '
         '"b" INT64[N]: missing "b"; unknown "z"')),
        (X3, '{"dataframe_records": {"x": 1}}', '"dataframe_records": expected a list of records'),
        (X3, '{"dataframe_records": [{"x": [1,2,3]}, 5]}', "expected an object by column name, got 5 (record 2)"),
        (X3, '{"dataframe_records": [5]}', "expected an object by column name, got 5 (record 1)"),
        (X3, '{"dataframe_records": [{"p": 1}, {"q": 1}]}', "(record 2)"),
        (X3, oip(5, x_tensor([1], [1])), 'input "x": expected FLOAT[3], got 5 (record 1)'),
        (X3, oip({"name": "x"}), 'expected an object with "name", "shape", "datatype" and "data"'),
        (X3, oip(x_tensor([1, 3], [1, 2, 3]), 5), 'expected an object with "name", "shape", "datatype" and "data", got 5'),
        (X3, oip(x_tensor([1, 3], [1, 2, 3]) | {"z": 1}), 'unknown key "z" in an object of "inputs"'),
        (X3, oip(x_tensor([1, 3], [1, 2, 3]), z=1), 'unknown key "z" in the request'),
        (X3, oip(x_tensor([1, 3], [1, 2, 3]), id=5), '"id": expected a string, got 5'),
        (X3, oip(x_tensor([1, 3], [1, 2, 3]), id="\ud800"), '"id": expected a string'),
        (X3, oip(x_tensor([1, 3], [1, 2, 3]), x_tensor([1, 3], [1, 2, 3])), 'expected each input once, got "x" again'),
        (X3, oip(x_tensor([1, 3], [1, 2, 3], name=5)), '"name": expected a string, got 5'),
        (X3, oip(x_tensor([2, 3], [1, 2, 3])), 'input "x": expected 6 values for the shape [2, 3], got 3 values'),
        (X3, oip(x_tensor([1, 3], 5)), 'input "x": expected FLOAT[3], got 5'),
        (X3, oip(x_tensor([1, 3], [[1, 2, 3, 4]])), "got 4 values at [0] where 3 are due"),
        (X3, oip(x_tensor([1, 3], [1, [2], 3])), 'input "x": expected FLOAT[3], got a list of 1 at [1]'),
        (X3, oip(x_tensor([1, 3], [1, "b", 3])), 'input "x": expected FLOAT[3], got "b" at [1]'),
        (X3, oip(x_tensor([-1, 3], [])), 'input "x": expected a shape like [2, 4], got [-1, 3]'),
        (X3, oip(x_tensor([True, 3], [])), "expected a shape like [2, 4], got [true, 3]"),
        (X3, oip(x_tensor([10**18, 3], [])), "expected a shape like [2, 4]"),
        (X3, oip(x_tensor([1] * 65, [1])), "expected a shape like [2, 4]"),
        (X3, oip(x_tensor(5, [])), "expected a shape like [2, 4], got 5"),
        (X3, oip(x_tensor([0, 1 << 39, 1 << 39], [])), 'input "x": the shape '),
        (X3, oip(x_tensor([1, 3], [1, 2, 3], "FLOAT")), 'UINT4, INT4, UINT2, INT2, got "FLOAT"'),
        (X3, oip(x_tensor([1, 3], [1, 2, 3], 5)), "expected a datatype of BOOL, "),
        (X3, oip(x_tensor([1, 3], [1, 2, 300], "INT8")), 'input "x": expected INT8[3], got 300 at [2]'),
        (X3, "[[1,2,3]", "expected JSON: expecting ',' delimiter (line 1, column 9)"),
        (X3, '{"instances":\n [[1,2,x]]}', "(line 2, column 8)"),
        (X3, "[[1,2,3]][[4,5,6]]", "expected JSON: expecting whitespace after a document (line 1, column 10)"),
        (X3, "[[1,2,3]]\n[[1,2,NaN]]\n[[1,2]]\n", 'document 3: input "x": expected FLOAT[3], got 2 values (record 1)'),
        (X3, "[[1,2,3]]\n[1,2]", "document 2: a flat list of 2 values"),
        (X3, "[[1,2,3]]\n[1,2", "(line 2, column 5)"),
        (X3, b'{"instances":\n["\xff"]}', "expected UTF-8, got the byte 0xff (line 2, column 3)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(model: Signature, body: str | bytes, message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        documents(body, model)
    assert message in str(caught.value)


def test_no_rows_of_the_wrong_shape_are_judged_too() -> None:
    with pytest.raises(MismatchError, match=r"expected FLOAT\[N, 3\]"):
        documents(oip(x_tensor([0, 4], [])), X3)
    with pytest.raises(MismatchError, match="expected 0 rows"):
        documents('{"inputs": {"a": [], "b": [1]}}', PAIR)


def test_documents_are_read_one_by_one() -> None:
    """Each is what it is alone, however they are separated and whichever parser it takes; small ones are joined."""
    alone = ["[1,2,3]", '{"instances": [[4,5,6],[7,8,9]]}', '{"inputs": [[1,2,3]]}', '{"instances": [["NaN",1,null]]}',
             '{"instances":\n [[1, 2,\r\n 3]]}', oip(x_tensor([1, 3], [1, 2, 3])), "[]", "[[NaN,1,2]]"]  # fmt: skip
    first = (R, [{"x": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}])
    nan = float("nan")
    expected: list[tuple[Layout, list[Any]]] = [
        first,
        (C, [{"x": [[1, 2, 3]]}]),
        (R, [{"x": [[nan, 1, nan], [1, 2, 3]]}]),
        (O, [{"x": [[1, 2, 3]]}]),
        (R, [{"x": [[nan, 1, 2]]}]),
    ]
    for separator in ("\n", "\n\n", " \t", "\r\n"):
        got = documents(separator.join(alone), X3)
        assert [layout for layout, _ in got] == [layout for layout, _ in expected]
        for (_, [block]), (_, [wanted]) in zip(got, expected, strict=True):
            np.testing.assert_array_equal(block["x"], wanted["x"])
        assert documents(separator.join(alone[:2]), X3) == [first]


def test_the_request_id_is_kept() -> None:
    tensor = x_tensor([1, 3], [1, 2, 3])
    for data in (oip(tensor, id="42").encode(), oip(tensor, id="42", parameters={}).encode()):
        assert codec.decode
        [document] = codec.decode(
            Body(io.BytesIO(data), len(data)), MediaType("application/json"), X3, OPTIONS
        )
        assert document.request_id == "42"


def test_other_charsets_are_refused() -> None:
    with pytest.raises(DecodeError, match="expected charset=utf-8"):
        decode(codec, b"[]", X3, media_type=MediaType("application/json", {"charset": "utf-16"}))


def way(documents: Any, model: Signature) -> list[tuple[Layout, str | None, list[tuple[Any, ...]]]]:
    """Documents as something to compare to the bit; runs of rows joined, since their cuts are free."""
    result = []
    for document in documents:
        blocks = list(document.blocks)
        if model.has_rows and blocks:
            blocks = [{name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}]
        feed = [conform(block, model) for block in blocks]
        arrays = [
            (name, a.dtype, a.shape, a.tobytes()) for block in feed for name, a in sorted(block.items())
        ]
        result.append((document.layout, document.request_id, arrays))
    return result


PIECES = ['{"instances":', '{"inputs":', '{"x":', "[", "[", "[", "]", "]", "]", "}", ",", ",", "1", "2.5", "-0.0", "-0",
          "9007199254740993", "1e400", "1e39", "300", "NaN", "null", '"a"', "true", '"["', " ", '"x":', '"instances":']  # fmt: skip
NEST = st.sampled_from(["1", "2.5", "-3", "0.1", "9007199254740993", "7"])
ROW = st.one_of(
    st.tuples(NEST, NEST, NEST).map(lambda row: f"[{','.join(row)}]"),
    st.sampled_from(
        ["[1,2]", "[1,2,[3]]", "[1,2,null]", "[1,2,3,4]", "[]", "5", '["a",1,2]', "[300,1,2]", "[[1,2,3]]"]
    ),
)
ROWS = st.lists(ROW, max_size=4).map(lambda rows: f"[{', '.join(rows)}]")
SHAPE = st.sampled_from(["[1,3]", "[2,3]", "[3]", "[0,3]", "[3,1]", "[2,-1]", "[1,[3]]"])
FLAT = st.lists(NEST, max_size=6).map(lambda row: f"[{','.join(row)}]")
ENTRY = st.tuples(SHAPE, st.one_of(FLAT, ROWS), st.sampled_from(["FP32", "INT64", "INT8", "BYTES", "X"])).map(
    lambda e: f'{{"name":"x","shape":{e[0]},"datatype":"{e[2]}","data":{e[1]}}}'
)
BODIES = st.one_of(
    ROWS,
    ROWS.map('{{"instances":{}}}'.format),
    ROWS.map('{{"inputs":{}}}'.format),
    ROWS.map('{{"inputs":{{"x":{}}}}}'.format),
    ROWS.map('{{"instances":[],"instances":{}}}'.format),
    ROWS.map('{{"x":{}}}'.format),
    st.lists(ENTRY, min_size=1, max_size=2).map(lambda entries: f'{{"inputs":[{",".join(entries)}]}}'),
    ENTRY.map('{{"inputs":[{}],"id":"[7]"}}'.format),
    ENTRY.map('{{"id":"7","inputs":[{}]}}'.format),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
)


@pytest.mark.parametrize(
    "model",
    [
        X3,
        FREE,
        SCALAR,
        IMAGE,
        POINT,
        signature(("x", "int8", ["N", 3])),
        signature(("x", "uint64", ["N", 3])),
    ],
    ids=lambda model: str(model.inputs[0]),
)
@given(body=BODIES)
@settings(max_examples=120, deadline=None)
def test_fast_and_exact_way_agree(model: Signature, body: str) -> None:
    """Where the fast way has a document, it is the exact way's only one, to the bit."""
    grammar = records.grammar(model)
    data = body.encode()
    document = read_plain(data, grammar, model)
    if document is None:
        return
    assert outcome([document], model) == outcome(json_codec.exact(data, grammar, model), model)


def outcome(documents: Any, model: Signature) -> Any:
    """What comes of documents in the end: arrays, or the judge's refusal."""
    try:
        return way(documents, model)
    except MismatchError as ex:
        return str(ex)


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (X3, '{"instances": [[1,2,3],[4,5,6]]}'),
        (X3, "[[1,2,3],[4,5,6.5]]"),
        (X3, '{"inputs": [[1,2,3]]}'),
        (X3, '{"inputs": {"x": [[1,2,3]]}}'),
        (X3, oip(x_tensor([1, 3], [1, 2, 3]), id="5")),
        (SQUARE, '{"instances": [[[1,2],[3,4]],[[5,6],[7,8]]]}'),
        (IMAGE, '{"inputs": [[1,2,3],[4,5,6]]}'),
        (IMAGE, '{"instances": [[[1,2,3],[4,5,6]]]}'),
        (PAIR, oip(x_tensor([1, 1], [1], name="a"), x_tensor([1], [1], "INT64", "b"))),
    ],
)
def test_plain_bodies_take_the_fast_way(model: Signature, body: str) -> None:
    assert isinstance(read_plain(body.encode(), records.grammar(model), model), Document)


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (X3, "[[1,2,3],[4,5],[6,7,8,9]]"),
        (X3, "[[1,2,3],[4,[5],6]]"),
        (X3, '{"instances": [[1,2,3]], "instances": [[4,5,6]]}'),
        (X3, '{"inputs": {"x": [[1,2,3]], "x": [[4,5,6]]}}'),
        (X3, '{"inputs": {"y": [[1,2,3]]}}'),
        (X3, '{"inputs": 5}'),
        (X3, '{"inputs": []}'),
        (X3, oip(5)),
        (X3, oip(x_tensor([1, 3], [1, 2, [3]]))),
        (X3, oip(x_tensor([1, 3], [1, 2, 3]), 5)),
        (X3, oip(x_tensor([1, 3], [1, 2, 3], "FP8"))),
        (X3, oip(x_tensor([1, 3], [1, 2], "FP32"))),
        (X3, oip(x_tensor([1, 3], [1, 2, 3]), x_tensor([1, 3], [1, 2, 3]))),
        (X3, oip(x_tensor("[]", "[[["))),
        (X3, oip(x_tensor([1, 3], [1, 2, 3]), id=5)),
        (X3, oip(x_tensor([[1]], 5))),
        (X3, oip(x_tensor([0, 4], []))),
        (IMAGE, '{"inputs": [[1,2,3]]}'),
        (POINT, '{"inputs": [1]}'),
        (PAIR, '[[1,2]] "datatype"'),
        (PAIR, '{"instances": [[1,2]], "datatype": 1}'),
        (PAIR, '["datatype"]'.replace("[", "[[[").replace("]", "]]]")),
        (PAIR, '{"inputs": [[1,2]], "datatype": 1}'),
        (PAIR, '{"inputs": {"datatype": 1}}'),
    ],
)
def test_what_is_not_proven_is_left_to_the_exact_way(model: Signature, body: str) -> None:
    assert read_plain(body.encode(), records.grammar(model), model) is None


@given(data=st.one_of(st.binary(max_size=60), st.text(alphabet='[]{}",:0123e.-\n tfnulx', max_size=60).map(str.encode),
                      st.lists(st.sampled_from(PIECES), max_size=12).map("".join).map(str.encode)))  # fmt: skip
@settings(max_examples=250, deadline=None)
@pytest.mark.parametrize("model", [X3, MIXED, IMAGE], ids=["rows", "mixed", "one run"])
def test_arbitrary_bytes(model: Signature, data: bytes) -> None:
    check_arbitrary_bytes(codec, data, model)


@given(body=BODIES)
@settings(max_examples=250, deadline=None)
def test_arbitrary_documents(body: str) -> None:
    check_arbitrary_bytes(codec, body.encode(), X3)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b"[" * 900 + b"]" * 900,
        b'{"inputs":' * 100_000,
        b"[[1,2," + b"1" * 1_000_000 + b"]]",
        b'{"instances":[[1,2,"' + b"s" * 1_000_000 + b'"]]}',
        b'{"' + b"k" * 1_000_000 + b'":1}',
        b"[[1,2,3]]\x00",
        b"\x00",
        b'{"instances":["\\ud800"]}',
        b"\xef\xbb\xbf\xef\xbb\xbf[]",
        b"\xff\xfe[\x00]\x00",
        b"[[1,2,3]]," * 1000,
        b"1 " * 50_000,
        b'{"inputs":[{"name":"x","datatype":"FP32","data":[],"shape":[' + b"1," * 100_000 + b"1]}]}",
    ],
    ids=lambda body: repr(body[:12]),
)
def test_hostile_bodies_are_errors(body: bytes) -> None:
    check_arbitrary_bytes(codec, body, X3)
    with pytest.raises(DecodeError):
        decode(codec, body, X3)


P: tuple[str, str, list[int | str | None]] = ("p", "float", ["N", 2])
Q: tuple[str, str, list[int | str | None]] = ("q", "string", ["N"])
MAPS: tuple[str, str, list[int | str | None]] = ("m", "seq(map(int64,tensor(float)))", [])
SEQ: tuple[str, str, list[int | str | None]] = ("s", "seq(tensor(int64))", [])
OPTIONAL: tuple[str, str, list[int | str | None]] = ("o", "optional(tensor(float))", [])
BLOCK: Values = {"p": np.array([[0.1, 1], [2, np.inf]], np.float32), "q": np.array(["a", "b"], object)}
TABLE = MapTable((0, 1), np.array([[0.1, 0.9], [1, 0]], np.float32))
NONE = RowAxis.NONE


@pytest.mark.parametrize(
    ("model", "layout", "blocks", "text"),
    [
        (signature(outputs=[P]), R, [BLOCK], '{"predictions":[[0.1,1.0],[2.0,"Infinity"]]}'),
        (signature(outputs=[Q]), R, [BLOCK, BLOCK], '{"predictions":["a","b","a","b"]}'),
        (signature(outputs=[Q, P]), R, [BLOCK],
         '{"predictions":[{"q":"a","p":[0.1,1.0]},{"q":"b","p":[2.0,"Infinity"]}]}'),
        (signature(outputs=[P]), R, [], '{"predictions":[]}'),
        (signature(outputs=[P]), R, [{"p": np.ones((0, 2))}], '{"predictions":[]}'),
        (signature(outputs=[MAPS]), R, [{"m": TABLE}], '{"predictions":[{"0":0.1,"1":0.9},{"0":1.0,"1":0.0}]}'),
        (signature(outputs=[P], row_axis=NONE), R, [BLOCK, BLOCK],
         '{"predictions":[[[0.1,1.0],[2.0,"Infinity"]],[[0.1,1.0],[2.0,"Infinity"]]]}'),
        (signature(outputs=[P, Q]), C, [BLOCK], '{"outputs":{"p":[[0.1,1.0],[2.0,"Infinity"]],"q":["a","b"]}}'),
        (signature(outputs=[Q]), C, [BLOCK, BLOCK], '{"outputs":{"q":["a","b","a","b"]}}'),
        (signature(outputs=[P, MAPS]), C, [], '{"outputs":{"p":[],"m":[]}}'),
        (signature(outputs=[MAPS]), C, [{"m": TABLE[:1]}, {"m": TABLE[1:]}],
         '{"outputs":{"m":[{"0":0.1,"1":0.9},{"0":1.0,"1":0.0}]}}'),
        (signature(outputs=[MAPS]), C, [{"m": TABLE[:1]}, {"m": MapTable(("a",), np.ones((1, 1)))}, {"m": [{}]}],
         '{"outputs":{"m":[{"0":0.1,"1":0.9},{"a":1.0},{}]}}'),
        (signature(outputs=[("y", "float", [])], row_axis=NONE), C, [{"y": np.array(0.1, np.float32)}],
         '{"outputs":{"y":0.1}}'),
        (signature(outputs=[P, Q]), O, [BLOCK],
         ('{"model_name":"model","id":"7","outputs":[{"name":"p","datatype":"FP32","shape":[2,2],'
         '"data":[0.1,1.0,2.0,"Infinity"]},{"name":"q","datatype":"BYTES","shape":[2],"data":["a","b"]}]}')),
        (signature(outputs=[P]), O, [],
         '{"model_name":"model","id":"7","outputs":[{"name":"p","datatype":"FP32","shape":[0,2],"data":[]}]}'),
        (signature(outputs=[MAPS, SEQ, OPTIONAL], row_axis=NONE), O,
         [{"m": TABLE[:1], "s": [np.array([[1, 2]]), np.array(3)], "o": None}],
         ('{"model_name":"model","id":"7","outputs":['
         '{"name":"m","datatype":"FP32","shape":[1],"parameters":{"onnx_type":"seq(map(int64,tensor(float)))"},'
         '"data":[{"0":0.1,"1":0.9}]},'
         '{"name":"s","datatype":"INT64","shape":[2],"parameters":{"onnx_type":"seq(tensor(int64))"},'
         '"data":[{"shape":[1,2],"data":[1,2]},{"shape":[],"data":[3]}]},'
         '{"name":"o","datatype":"FP32","shape":[0],"parameters":{"onnx_type":"optional(tensor(float))"},"data":null}]}')),
        (signature(outputs=[MAPS], row_axis=NONE), O, [{"m": [{"k": np.float32(0.1)}]}],
         ('{"model_name":"model","id":"7","outputs":[{"name":"m","datatype":"FP32","shape":[1],'
         '"parameters":{"onnx_type":"seq(map(int64,tensor(float)))"},"data":[{"k":0.1}]}]}')),
    ],
)  # fmt: skip
def test_answers(model: Signature, layout: Layout, blocks: list[Values], text: str) -> None:
    sink = io.BytesIO()
    assert codec.encode
    codec.encode([Answer(iter(blocks), layout, "7")], sink, MediaType("application/json"), model, OPTIONS)
    assert sink.getvalue().decode() == text + "\n"
    json.loads(text)


def test_several_answers_are_lines() -> None:
    answers = [Answer([BLOCK], R), Answer([], R), Answer([BLOCK], C), Answer([BLOCK], O)]
    model = signature(outputs=[Q])
    for options, tail in ((OPTIONS, b"\n"), (replace(OPTIONS, text_trailing_newline=False), b"")):
        sink = io.BytesIO()
        assert codec.encode
        codec.encode(answers, sink, MediaType("application/json"), model, options)
        assert sink.getvalue() == (
            b'{"predictions":["a","b"]}\n{"predictions":[]}\n{"outputs":{"q":["a","b"]}}\n'
            b'{"model_name":"model","outputs":[{"name":"q","datatype":"BYTES","shape":[2],"data":["a","b"]}]}'
            + tail
        )
    sink = io.BytesIO()
    assert codec.encode
    codec.encode([], sink, MediaType("application/json"), model, OPTIONS)
    assert sink.getvalue() == b""


def test_rows_are_written_as_they_come() -> None:
    """A block is in the sink before the next is asked for, and nothing before the first."""
    sink = io.BytesIO()
    seen = []

    def blocks() -> Any:
        for _ in range(3):
            seen.append(sink.getvalue())
            yield {"q": np.array([1])}

    assert codec.encode
    codec.encode([Answer(blocks())], sink, MediaType("application/json"), signature(outputs=[Q]), OPTIONS)
    assert seen == [b"", b'{"predictions":[1', b'{"predictions":[1,1']


@pytest.mark.parametrize(
    ("model", "layout", "blocks", "message"),
    [
        (
            signature(outputs=[P]),
            C,
            [{"p": np.ones((1, 2))}, {"p": np.ones((1, 3))}],
            "rows have different shapes",
        ),
        (signature(outputs=[P]), C, [{"p": None}, {"p": None}], "expected a value for each row"),
        (signature(outputs=[P], row_axis=NONE), C, [BLOCK, BLOCK], "expected one run, got 2"),
        (signature(outputs=[P]), O, [{"p": np.ones(1, np.complex64)}], "complex64, which has no form"),
    ],
)
def test_arrays_that_cannot_be_made(model: Signature, layout: Layout, blocks: Any, message: str) -> None:
    with pytest.raises(EncodeError, match=message):
        encode(codec, blocks, model, layout=layout)


@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint64, np.int8, np.bool_]),
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=4),
    )
)
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("layout", [R, C, O])
def test_numbers_survive(layout: Layout, array: Any) -> None:
    """An answer read back as a request has the same bits, NaN's payload aside."""
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), np.array(np.nan, array.dtype), array)
    kind = {"f2": "float16", "f4": "float", "f8": "double", "b1": "bool"}.get(
        array.dtype.str[1:], array.dtype.name
    )
    spec = ("x", kind, ["N", *array.shape[1:]])
    model = signature(spec, outputs=[spec])
    values: dict[str, Value] = {"x": array}
    data = encode(codec, [values], model, layout=layout)
    data = data.replace(b'"predictions"', b'"instances"').replace(b'"outputs"', b'"inputs"')
    [(got, [block])] = decode(codec, data.replace(b'"model_name":"model",', b""), model)
    assert got is layout
    assert block["x"].dtype == array.dtype
    assert block["x"].tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_standard_parser_reads_the_same_numbers(dtype: Any) -> None:
    """Python's ``json`` as an independent witness, of many bit patterns."""
    bits = np.random.default_rng(7).integers(0, 256, 4000 * np.dtype(dtype).itemsize, dtype=np.uint8)
    array = bits.view(dtype)
    array = array[np.isfinite(array)][:3000].reshape(-1, 3)
    kind = "float" if dtype is np.float32 else "double"
    model = signature(("x", kind, ["N", 3]), outputs=[("x", kind, ["N", 3])])
    data = encode(codec, [{"x": array}], model)
    witness = np.array(json.loads(data)["predictions"]).astype(dtype)
    assert witness.tobytes() == array.tobytes()
    [(_, [block])] = decode(codec, json.dumps({"instances": array.tolist()}).encode(), model)
    assert block["x"].tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "written", ["9007199254740993.0", "9007199254740992.0", "-9007199254740993.0", "9007199254740993e0"]
)
def test_a_whole_number_that_may_have_been_rounded_is_refused(written: str) -> None:
    """2^53 + 1 with a point reads as 2^53: nobody can tell them apart any more."""
    model = signature(("x", "int64", ["N", 1]))
    with pytest.raises(DecodeError, match=r"expected INT64\[1\], got -?900719925474099"):
        decode(codec, f"[[{written}]]".encode(), model)
    [(_, [block])] = decode(codec, b"[[9007199254740991.0]]", model)
    assert block["x"].tolist() == [[9007199254740991]]


def test_names_that_differ_are_told_but_for_those_that_may_be_left_out() -> None:
    model = signature(("a", "float", [2]), ("b", "optional(tensor(float))", [2]), row_axis=RowAxis.NONE)
    with pytest.raises(DecodeError, match=r'missing "a"; unknown "c"$'):
        decode(codec, b'{"inputs": {"c": [1, 2]}}', model)


def test_a_column_that_is_there_twice_is_named() -> None:
    with pytest.raises(DecodeError, match='expected each column once, got "q" again'):
        decode(codec, b'{"dataframe_split": {"columns": ["p", "q", "q"], "data": [[1, 2, 3]]}}', X3)
