"""The Open Inference Protocol in JSON: which outputs a response holds."""

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_laws import OPTIONS, signature
from onnx_serve.codecs import records
from onnx_serve.codecs.interface import Answer, Body, Document, Layout, MediaType
from onnx_serve.codecs.json import codec, exact
from onnx_serve.codecs.json_plain import read_plain
from onnx_serve.errors import DecodeError
from onnx_serve.tensors import Signature, Values

MODEL = signature(
    ("x", "float", ["N", 2]),
    outputs=[("p", "float", ["N", 2]), ("q", "int64", ["N"]), ("r", "string", ["N"])],
)
OUTPUTS: Values = {
    "p": np.array([[0.5, 1]], np.float32),
    "q": np.array([7]),
    "r": np.array(["a"], object),
}
X = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}


def request(**more: Any) -> bytes:
    return json.dumps({"inputs": [X]} | more).encode()


def read(data: bytes, model: Signature = MODEL) -> Document:
    assert codec.decode
    [document] = codec.decode(
        Body(io.BytesIO(data), len(data)), MediaType("application/json"), model, OPTIONS
    )
    return document


def respond(*answers: Answer) -> list[dict[str, Any]]:
    sink = io.BytesIO()
    assert codec.encode
    codec.encode(answers, sink, MediaType("application/json"), MODEL, OPTIONS)
    return [json.loads(line) for line in sink.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("outputs", "names"),
    [
        ([{"name": "q"}], ("q",)),
        ([{"name": "r"}, {"name": "p"}], ("r", "p")),
        ([{"name": "q", "parameters": {"binary_data": False}}], ("q",)),
        ([], ()),
        (None, ()),
    ],
)
def test_requested_outputs_are_known_to_the_document(outputs: Any, names: tuple[str, ...]) -> None:
    assert read(request(outputs=outputs)).outputs == names
    # The same by way of Python values, and with no rows.
    assert read(request(outputs=outputs, parameters={"a": []})).outputs == names
    no_rows = json.dumps({"inputs": [X | {"shape": [0, 2], "data": []}], "outputs": outputs})
    document = read(no_rows.encode())
    assert (document.outputs, list(document.blocks)) == (names, [])


def test_all_outputs_are_meant_when_none_is_named() -> None:
    assert read(request()).outputs == ()


@pytest.mark.parametrize("names", [("q",), ("r", "p"), ("r", "q", "p")])
def test_a_response_holds_the_requested_outputs_in_the_requested_order(names: tuple[str, ...]) -> None:
    [response] = respond(Answer([OUTPUTS], Layout.OIP, "7", names))
    assert [output["name"] for output in response["outputs"]] == list(names)
    assert list(response) == ["model_name", "id", "outputs"]


def test_a_response_holds_all_outputs_in_the_models_order_otherwise() -> None:
    [response] = respond(Answer([OUTPUTS], Layout.OIP))
    assert [output["name"] for output in response["outputs"]] == ["p", "q", "r"]
    assert list(response) == ["model_name", "outputs"]
    assert response["model_name"] == OPTIONS.model_name


def test_requested_outputs_are_those_of_one_document() -> None:
    first, second, third = respond(
        Answer([OUTPUTS, OUTPUTS], Layout.OIP, None, ("q",)),
        Answer([OUTPUTS], Layout.OIP),
        Answer([OUTPUTS], Layout.COLUMNS),
    )
    assert first["outputs"] == [{"name": "q", "datatype": "INT64", "shape": [2], "data": [7, 7]}]
    assert len(second["outputs"]) == len(third["outputs"]) == 3


def test_an_output_that_is_not_requested_need_not_form_one_array() -> None:
    blocks = [OUTPUTS, {**OUTPUTS, "p": np.ones((1, 3), np.float32)}]
    [response] = respond(Answer(blocks, Layout.OIP, None, ("r",)))
    assert response["outputs"] == [{"name": "r", "datatype": "BYTES", "shape": [2], "data": ["a", "a"]}]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([{"name": "z"}], ('"outputs": expected names of the outputs "p" FLOAT[N, 2], "q" INT64[N], "r" STRING[N], '
         'got "z"')),
        ([{"name": "q"}, {"name": "q"}], 'expected each output once, got "q" again'),
        ([{"name": "q", "z": 1}], 'unknown key "z" in an object of "outputs"'),
        ([{"name": 5}], '"outputs": expected an object with "name", got an object with the keys "name"'),
        ([{}], '"outputs": expected an object with "name", got {}'),
        (["q"], '"outputs": expected an object with "name", got "q"'),
        ({"name": "q"}, '"outputs": expected a list, got an object with the keys "name"'),
        ("q", '"outputs": expected a list, got "q"'),
        ([{"name": "\ud800"}], '"outputs": expected names of the outputs'),
    ],
)  # fmt: skip
def test_wrong_outputs_are_named(outputs: Any, message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        read(request(outputs=outputs))
    assert str(caught.value).startswith(message)


def test_a_message_about_many_outputs_is_short() -> None:
    many = signature(("x", "float", ["N", 2]), outputs=[(f"output{i}", "float", ["N"]) for i in range(1000)])
    with pytest.raises(DecodeError) as caught:
        read(request(outputs=[{"name": "z" * 1000}]), many)
    assert len(str(caught.value)) < 500


NAMED = st.sampled_from(
    ['{"name":"p"}', '{"name":"q"}', '{"name":"z"}', '{"name":"p","name":"q"}', '{"name":["q"]}', '"q"', "[]"]
)
WANTED = st.one_of(
    st.lists(NAMED, max_size=3).map(lambda entries: f"[{','.join(entries)}]"),
    st.sampled_from(["null", "{}", '"["', "5"]),
)


AGAIN = st.sampled_from(["", "", ',"outputs":[]', ',"outputs":null', ',"id":null', ',"id":"a","id":"b"'])


@given(wanted=WANTED, again=AGAIN)
@settings(max_examples=300, deadline=None)
def test_fast_and_exact_way_agree_on_outputs(wanted: str, again: str) -> None:
    body = f'{{"inputs":[{json.dumps(X)}],"outputs":{wanted}{again}}}'.encode()
    grammar = records.grammar(MODEL)
    document = read_plain(body, grammar, MODEL)
    if document is not None:
        [expected] = exact(body, grammar, MODEL)
        assert (document.outputs, document.request_id) == (expected.outputs, expected.request_id)


PARAMETERS = st.sampled_from(
    ["{}", '{"a":1}', '{"a":{"data":5,"inputs":"x"}}', '{"a":[1]}', '{"a":"["}', "null", "5", '{"a":NaN}', '{"a":1,"a":2}',
     '{"binary_data_size":16}', '{"a":%s}' % (10 ** 30), '{"a":"\\ud800"}', '{"a":1e999}', '{"a":01}',
     *('{"a":' * depth + "1" + "}" * depth for depth in (900, 1019, 1020, 1021, 1022, 1023, 1024, 1025))]
)  # fmt: skip


@pytest.mark.parametrize("place", ["request", "input", "twice in the request", "twice in the input"])
@given(parameters=PARAMETERS)
@settings(max_examples=60, deadline=None)
def test_fast_and_exact_way_agree_on_parameters(place: str, parameters: str) -> None:
    """What is in them decides nothing, so long as it is JSON."""
    more = f',"parameters":{parameters}' * (2 if "twice" in place else 1)
    of_input, of_request = ("", more) if "request" in place else (more, "")
    body = f'{{"inputs":[{json.dumps(X)[:-1]}{of_input}}}]{of_request}}}'.encode()
    grammar = records.grammar(MODEL)
    document = read_plain(body, grammar, MODEL)
    if document is not None:
        [expected] = exact(body, grammar, MODEL)
        [block], [wanted] = document.blocks, expected.blocks
        np.testing.assert_array_equal(block["x"], wanted["x"])


def test_requests_with_parameters_take_the_fast_way() -> None:
    body = request(parameters={"priority": 1}, inputs=[X | {"parameters": {"content_type": "np"}}])
    document = read_plain(body, records.grammar(MODEL), MODEL)
    assert document is not None
    [block] = document.blocks
    np.testing.assert_array_equal(block["x"], [[1, 2]])


def test_named_outputs_take_the_fast_way() -> None:
    body = request(outputs=[{"name": "q"}], id="7")
    document = read_plain(body, records.grammar(MODEL), MODEL)
    assert document is not None
    assert (document.outputs, document.request_id) == (("q",), "7")
