"""Sequences of JSON documents: joined where that is faster, and answered as if each were alone."""

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_laws import signature
from onnx_serve.admission import Admission
from onnx_serve.batching import Engine
from onnx_serve.codecs import json as json_codec
from onnx_serve.codecs import records
from onnx_serve.codecs.interface import Body, CodecOptions
from onnx_serve.errors import DecodeError, InputRefused, ServeError
from onnx_serve.inference import Inference, Limits
from onnx_serve.tensors import Feed, RowAxis, Signature, Values

FIXED = signature(("x", "float", ["N", 2]), outputs=[("y", "float", ["N", 2])])
FREE = signature(("x", "float", ["N", "L"]), outputs=[("y", "float", ["N", "L"])])
ONE_RUN = signature(("x", "float", ["L"]), outputs=[("y", "float", ["L"])], row_axis=RowAxis.NONE)
PAIR = signature(
    ("x", "float", ["N", 2]), ("k", "int64", ["N"]), outputs=[("y", "float", ["N", 2]), ("k", "int64", ["N"])]
)


def run(feed: Feed) -> Values:
    return {"y": feed["x"] * 2} | ({"k": feed["k"]} if "k" in feed else {})


def inference(model: Signature, record_errors: Any = "fail", **more: Any) -> Inference:
    engine = Engine(more.pop("run", run), model, slots=2, block_rows=16)
    options = CodecOptions(record_errors=record_errors)
    return Inference(engine, Admission(2, 2, 1.0), options, Limits(1 << 20, lambda: 1 << 30))


def ask(target: Inference, body: str, accept: str = "application/json") -> str:
    data = body.encode()
    reply = target(Body(io.BytesIO(data), len(data)), "application/json", accept)
    assert isinstance(reply.content, bytes)
    return reply.content.decode()


NUMBERS = st.integers(-9, 9) | st.sampled_from([0.5, None, "NaN"])
LISTS = st.lists(NUMBERS, min_size=1, max_size=3)
ROWS = (
    LISTS
    | LISTS.map(lambda row: {"features": row})
    | LISTS.map(lambda row: {"x": row})
    | st.tuples(LISTS, st.integers(0, 9)).map(lambda pair: {"x": pair[0], "k": pair[1]})
)
DOCUMENTS = (
    ROWS
    | st.lists(ROWS, max_size=4)
    | st.lists(ROWS, max_size=4).map(lambda rows: {"instances": rows})
    | LISTS.map(lambda row: {"inputs": [row]})
    | st.sampled_from([5, "x", {"z": 1}, {"instances": 1}, []])
)


@pytest.mark.parametrize("record_errors", ["fail", "placeholder"])
@pytest.mark.parametrize("model", [FIXED, FREE, ONE_RUN, PAIR], ids=["fixed", "free", "one run", "pair"])
@settings(max_examples=80, deadline=None)
@given(documents=st.lists(DOCUMENTS.map(json.dumps), min_size=2, max_size=8))
def test_each_document_is_answered_as_if_it_were_alone(
    model: Signature, record_errors: str, documents: list[str]
) -> None:
    """The same line for each, or the error of the first bad one; only its number is added."""
    target = inference(model, record_errors)
    expected = ""
    error: ServeError | None = None
    for number, document in enumerate(documents, 1):
        try:
            line = ask(target, document)
        except ServeError as ex:
            error = error or ex
            if isinstance(ex, DecodeError) and error is ex:
                error = DecodeError(str(ex).replace(": ", f": document {number}: ", 1))
        else:
            predictions = json.loads(line).get("predictions", [])
            errors = {item["error"] for item in predictions if isinstance(item, dict) and "error" in item}
            for text in map(json.dumps, errors):
                line = line.replace(text, f'"document {number}: {text[1:]}')
            expected += line
    body = "\n".join(documents)

    if error is None:
        assert ask(target, body) == expected
        for accept in ("application/jsonlines", "text/csv"):
            assert len(ask(target, body, accept).splitlines()) == sum(
                len(answer.get("predictions", answer.get("outputs", {}).get("y", [])))
                for answer in map(json.loads, expected.splitlines())
            )
    else:
        with pytest.raises(type(error)) as caught:
            ask(target, body)
        assert str(caught.value) == str(error)


def test_the_first_error_names_its_document_and_record() -> None:
    lines = ["[1,2]", "[]", '{"instances": [[1,2],[3,4],[5,"x"]]}', "[6]"]

    with pytest.raises(DecodeError) as caught:
        ask(inference(FIXED), "\n".join(lines))
    assert str(caught.value) == (
        'application/json: document 3: input "x": expected FLOAT[2], got "x" at [1] (record 3)'
    )


def test_documents_of_one_record_share_runs() -> None:
    runs: list[int] = []

    def count(feed: Feed) -> Values:
        runs.append(len(feed["x"]))
        return run(feed)

    body = "\n".join(f'{{"features": [{row}, 0]}}' for row in range(160))
    answer = ask(inference(FIXED, run=count), body)
    assert runs == [16] * 10
    assert answer == "".join(f'{{"predictions":[[{2.0 * row},0.0]]}}\n' for row in range(160))


def test_large_documents_are_answered_by_themselves() -> None:
    """Their answers are written as they come."""
    large = json.dumps([[row, 1] for row in range(1025)])
    body = f"[1,2]\n{large}\n[3,4]\n"
    model = records.grammar(FIXED)

    sizes = [tuple(document.sizes) for document in json_codec.exact(body.encode(), model, FIXED)]
    assert sizes == [(1,), (), (1,)]
    got = [json.loads(line)["predictions"] for line in ask(inference(FIXED), body).splitlines()]
    assert [len(rows) for rows in got] == [1, 1025, 1]
    np.testing.assert_array_equal(got[1], [[2 * row, 2] for row in range(1025)])


@pytest.mark.parametrize(
    ("row", "problem"),
    [("[5]", "expected FLOAT[2], got 1 values"), ("[13,0]", "no 13"), ("[[]]", "got 1 values")],
)
def test_errors_in_large_documents_name_them_too(row: str, problem: str) -> None:
    def refuse(feed: Feed) -> Values:
        if (feed["x"] == 13).any():
            raise InputRefused("no 13")
        return run(feed)

    large = ",".join(["[1,2]"] * 1500 + [row])
    body = f"[1,2]\n[{large}]\n"

    answer = ask(inference(FIXED, "placeholder", run=refuse), body)
    error = json.loads(answer.splitlines()[1])["predictions"][1500]["error"]
    assert error.startswith("document 2: ")
    assert error.endswith("(record 1501)")
    assert problem in error
    with pytest.raises((DecodeError, InputRefused), match=problem.replace("[", r"\[")):
        ask(inference(FIXED, run=refuse), body)


def test_not_too_many_documents_are_joined() -> None:
    body = b"[1,2]\n" * 70_000

    sizes = [len(document.sizes) for document in json_codec.exact(body, records.grammar(FIXED), FIXED)]
    assert sizes == [65536, 70_000 - 65536]
