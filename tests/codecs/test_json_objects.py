"""Lists of objects around numbers: the fast way gives what the exact way gives, or leaves it to that."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_laws import signature
from onnx_serve.codecs import records
from onnx_serve.codecs.json import exact
from onnx_serve.codecs.json_objects import read_objects
from onnx_serve.codecs.json_plain import read_plain
from onnx_serve.errors import DecodeError, MismatchError
from onnx_serve.tensors import RowAxis, Signature, Tensors

PAIR = signature(("x", "float", ["N", 2]))
SQUARE = signature(("x", "float", ["N", 2, 2]))
FREE = signature(("x", "int64", ["N", "S"]))
SCALAR = signature(("x", "double", ["N"]))
IMAGE = signature(("x", "float", ["S", 2]), row_axis=RowAxis.NONE)
FEATURES = signature(("features", "float", ["N", 1, 2]))
DATA = signature(("data", "float", ["N", 2]))
INSTANCES = signature(("instances", "float", ["N", 2]))
MODELS = [PAIR, SQUARE, FREE, SCALAR, IMAGE, FEATURES, DATA, INSTANCES, signature(("x", "int8", ["N", 0]))]


def blocks(data: bytes, model: Signature) -> list[Tensors]:
    return [block for document in exact(data, records.grammar(model), model) for block in document.blocks]


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (PAIR, '{"instances":[{"features":[1,2]},{"features":[3,4.5]},{"features":[5,6]}]}'),
        (PAIR, ' { "instances" : [ { "features" : [1, 2] } , { "features" : [3, 4] } ] } \n'),
        (PAIR, '[{"features": [1, 2]}, {"features": [3, 4]}]'),
        (PAIR, '{"instances":[{"features":[1,2]}]}'),
        (PAIR, '[{"x":[1,2]},{"x":[3,4]}]'),
        (PAIR, json.dumps({"instances": [{"features": [1, 2]}, {"features": [3, 4]}]}, indent=1)),
        (PAIR, '{"instances":[{"data":{"features":{"values":[1,2]}}},{"data":{"features":{"values":[3,4]}}}]}'),
        (SQUARE, '{"instances":[{"features":[1,2,3,4]},{"features":[5,6,7,8]}]}'),
        (SQUARE, '{"instances":[{"x":[[1,2],[3,4]]},{"x":[[5,6],[7,8]]}]}'),
        (FREE, '{"instances":[{"features":[9007199254740993,2,3]},{"features":[4,5,6]}]}'),
        (SCALAR, '[{"features":[1]},{"features":[2]}]'),
        (IMAGE, '{"instances":[{"x":[[1,2]]},{"x":[[3,4]]}]}'),
        (FEATURES, '{"instances":[{"features":[[1,2]]},{"features":[[3,4]]}]}'),
        (DATA, '{"instances":[{"data":[1,2]},{"data":[3,4]}]}'),
        (INSTANCES, '[{"features":[1,2]}]'),
    ],
)  # fmt: skip
def test_equal_objects_take_the_fast_way(model: Signature, body: str) -> None:
    data = body.encode()
    grammar = records.grammar(model)
    array = read_objects(data, grammar)
    assert array is not None
    document = read_plain(data, grammar, model)
    assert document is not None
    for got, expected in zip(document.blocks, blocks(data, model), strict=True):
        assert got.keys() == expected.keys()
        for name, values in expected.items():
            assert got[name].dtype == values.dtype
            np.testing.assert_array_equal(got[name], values)


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (PAIR, '{"instances":[{"features":[1,2],[3,4]},{"features":[5,6]}]}'),
        (PAIR, '{"instances":[{"features":[1,2]},{"features":[3,4]},[5,6]]}'),
        (PAIR, '{"instances":[{"features":[1,2]},{"features":[3,4]},{"x":[5,6]}]}'),
        (PAIR, '{"instances":[{"features":[1,2]},{"features":[3]}]}'),
        (PAIR, '{"instances":[{"features":[1,2]},{"features":[3,[4]]}]}'),
        (PAIR, '{"instances":[{"features":[1,2]},{"features":[3,"4"]}]}'),
        (PAIR, '{"instances":[{"features":[1,2]},{"features":[3,{}]}]}'),
        (PAIR, '{"instances":[{"features":[1,2]},{"features":[3,4]}]'),
        (PAIR, '{"instances":[{"features":[1,2]},{"features":[3,4]}}'),
        (PAIR, '[{"features":[1,2]},{"features":[3,4]}]}'),
        (PAIR, '[{"features":[1,2]},{"features":[3,4]}] [1,2]'),
        (PAIR, '{"instances":[{"features":[1,2],"configuration":{}}]}'),
        (PAIR, '{"instances":[{"features":[1,2],"features":[3,4]}]}'),
        (PAIR, '{"instances":[{"feature":[1,2]}]}'),
        (PAIR, '{"instances":[{"features":[1,2]}]}' + " " * 300),
        (SQUARE, '[{"features":[[1,2],[3,4]]}]'),
        (SQUARE, '[{"x":[1,2,3,4]}]'),
        (SQUARE, '[{"x":[[1,2],[3,4]]},{"x":[[5,6],[7,8]],[[5,6],[7,8]]}]'),
        (signature(("x", "float", ["N", "S", 2])), '[{"features":[1,2]}]'),
        (SCALAR, '[{"x":[1]}]'),
        (DATA, '[{"data":{"features":{"values":[1,2]}}}]'),
        (INSTANCES, '{"instances":[{"features":[1,2]}]}'),
        (signature(("x", "int8", ["N", 1])), '[{"features":[300]}]'),
    ],
)
def test_what_is_not_proven_is_left_to_the_exact_way(model: Signature, body: str) -> None:
    data = body.encode()
    assert read_plain(data, records.grammar(model), model) is None


@pytest.mark.parametrize(
    "body", [b"[1,2]", b"[[1,2]]", b'{"instances":[[1,2]]}', b'{"features":[1,2]}', b'[{"x":1}]', b""]
)
def test_other_bodies_are_none_of_its_business(body: bytes) -> None:
    assert read_objects(body, records.grammar(PAIR)) is None


LISTS = st.sampled_from(["[1,2]", "[3.5,-0]", "[1,2,3]", "[[1,2]]", "[[1,2],[3,4]]", "[]", "[7]", "[1,2,3,4]", "[1, 2]",
                         "[[1,2],[3,4] ]", "[1,[2]]", '["a",1]', "5", "[1,2],[3,4]", "[300,1e39]"])  # fmt: skip
OBJECT = st.sampled_from(
    ['{{"features":{}}}', '{{"features": {}}}', '{{"x":{}}}', '{{"data":{{"features":{{"values":{}}}}}}}', "{}",
     '{{"features":{},"configuration":{{}}}}', '{{"data":{}}}', '{{"\\u0078":{}}}', '{{"x[1]":{}}}', '{{"instances":{}}}']
)  # fmt: skip


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Lists of objects, mostly equal but for their lists, mostly whole."""
    usual, items = draw(OBJECT), draw(st.lists(LISTS, min_size=1, max_size=2, unique=True))
    records = [
        draw(st.sampled_from([usual, usual, usual, draw(OBJECT)])).format(draw(st.sampled_from(items)))
        for _ in range(draw(st.integers(1, 4)))
    ]
    body = draw(st.sampled_from([",", ",", ", "])).join(records)
    frame = draw(
        st.sampled_from(
            ['{{"instances":[{}]}}', "[{}]", "[ {} ]\n", '{{"instances":[{}]', "[{}]]", "[{}],[1]"]
        )
    )
    return frame.format(body).encode()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: str(model.describe_inputs()))
@given(body=bodies())
@settings(max_examples=200, deadline=None)
def test_fast_and_exact_way_agree(model: Signature, body: bytes) -> None:
    """Where the fast way has records, they are the exact way's, to the bit."""
    document = read_plain(body, records.grammar(model), model)
    if document is None:
        return
    got = [(n, a.dtype, a.shape, a.tobytes()) for block in document.blocks for n, a in block.items()]
    expected = [(n, a.dtype, a.shape, a.tobytes()) for block in blocks(body, model) for n, a in block.items()]
    assert got == expected


@given(body=bodies(), cut=st.integers(0, 80), byte=st.sampled_from(b'[]{},:" \n1\xff\x00'))
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_is_seen_by_both(body: bytes, cut: int, byte: int) -> None:
    """No byte is outside the proof: with any one replaced, both ways still agree."""
    cut %= len(body)
    body = body[:cut] + bytes([byte]) + body[cut + 1 :]
    document = read_plain(body, records.grammar(PAIR), PAIR)
    if document is not None:
        [got] = document.blocks
        try:
            [expected] = blocks(body, PAIR)
        except (DecodeError, MismatchError) as ex:
            pytest.fail(f"{body!r}: {ex}")
        assert got["x"].tobytes() == expected["x"].tobytes()
