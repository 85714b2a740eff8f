"""Sequences, maps and optionals in JSON, whatever stands there."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_laws import check_arbitrary_bytes, decode, signature
from onnx_serve.codecs import json as json_codec
from onnx_serve.codecs import jsonlines
from onnx_serve.codecs.json_nested import read_value
from onnx_serve.errors import DecodeError
from onnx_serve.tensors import RowAxis, Signature, TensorSpec
from onnx_serve.value_types import conform_value, parse_type

KINDS = (
    "seq(tensor(float))", "seq(tensor(string))", "seq(tensor(int4))", "map(int64,tensor(float))",
    "map(string,tensor(float))", "seq(map(string,tensor(double)))", "optional(tensor(bfloat16))",
    "optional(seq(tensor(int64)))",
)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
KEYS = st.sampled_from(
    ["x", "y", "shape", "data", "name", "datatype", "parameters", "1", "-0", "inputs", "instances"]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=10,
)


def model(kind: str, *others: TensorSpec, defaults: tuple[TensorSpec, ...] = ()) -> Signature:
    return Signature((TensorSpec("x", kind, ()), *others), (), RowAxis.NONE, defaults=defaults)


MODELS = [
    *map(model, KINDS),
    Signature((TensorSpec("x", "tensor(float)", (), any_shape=True),), (), RowAxis.NONE),
    model(KINDS[0], TensorSpec("y", "optional(tensor(float))", ())),
    model("tensor(float)", defaults=(TensorSpec("y", "tensor(float)", (2,)),)),
    Signature((), (), RowAxis.NONE),
]


@settings(max_examples=300)
@given(st.sampled_from(MODELS), VALUES, st.sampled_from(["{}", '{"inputs":%s}', '{"instances":%s}', '{"x":%s}', "[%s]",
       '{"inputs":{"x":%s}}', '{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":%s}]}']))  # fmt: skip
def test_any_json_is_read_or_refused(signature: Signature, value: Any, frame: str) -> None:
    text = frame.replace("%s", json.dumps(value)).encode()
    check_arbitrary_bytes(json_codec.codec, text, signature)
    check_arbitrary_bytes(jsonlines.codec, text, signature)


@settings(max_examples=100)
@given(
    st.lists(
        st.recursive(st.integers(-8, 7), lambda inner: st.lists(inner, min_size=2, max_size=2), max_leaves=4)
    )
)
def test_items_have_the_shape_of_their_lists(items: list[Any]) -> None:
    kind = parse_type("seq(tensor(int4))")
    assert kind is not None
    try:
        arrays = conform_value(read_value(items, kind, "x"), kind, "x")
    except DecodeError:
        # A list whose parts differ in depth; NumPy says so too.
        with pytest.raises(ValueError, match="inhomogeneous"):
            [np.array(item) for item in items]
    else:
        assert [array.tolist() for array in arrays] == items
        assert {array.dtype for array in arrays} <= {np.dtype(np.int8)}


@pytest.mark.parametrize("depth", [63, 64, 65, 500])
def test_deep_lists_end_in_an_array_or_an_error(depth: int) -> None:
    nested = "[" * depth + "1" + "]" * depth
    for text in (f'{{"inputs": {{"x": [{nested}]}}}}',
                 f'{{"inputs": [{{"name": "x", "data": [{{"shape": {[1] * depth}, "data": {nested}}}]}}]}}',
                 f'{{"inputs": [{{"name": "t", "shape": {[1] * depth}, "datatype": "FP32", "data": {nested}}}]}}'):  # fmt: skip
        target = (
            signature(("t", "float", [1] * depth), row_axis=RowAxis.NONE)
            if '"t"' in text
            else model(KINDS[0])
        )
        if depth == 63:
            [(_, [block])] = decode(json_codec.codec, text.encode(), target)
            [value] = block.values()
            assert np.array(value).size == 1
        else:
            with pytest.raises(DecodeError):
                decode(json_codec.codec, text.encode(), target)
