"""Values of every kind in requests and answers, beyond what the backend collection has."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

import onnx_models
import value_models
from onnx_serve.admission import Admission
from onnx_serve.batching import Engine
from onnx_serve.codecs.interface import Body, CodecOptions
from onnx_serve.errors import RequestError
from onnx_serve.inference import Inference, Limits
from onnx_serve.model import SessionOptions, load_model

JSON, LINES, NPZ, CSV = "application/json", "application/jsonlines", "application/x-npz", "text/csv"
SEQUENCE = value_models.sequence("x")
TEXTS = value_models.sequence("x", value_models.STRING)
OPTIONAL = value_models.optional("x")
OPTIONAL_SEQUENCE = value_models.optional("x", of_sequence=True)
Build = Callable[[Path], Path]


def echo(value: Any) -> Build:
    return lambda path: value_models.echo(path, value)


def foreign(name: str) -> Build:
    return lambda path: value_models.there_and_back(path, getattr(TensorProto, name))


def serve(build: Build, folder: Path, *, block_rows: int = 2) -> Inference:
    model = load_model(build(folder / "m.onnx"), "m", SessionOptions())
    engine = Engine(model.run, model.signature, slots=2, block_rows=block_rows)
    return Inference(engine, Admission(2, 2, 1.0), CodecOptions(), Limits(1 << 20, lambda: 1 << 30))


def ask(inference: Inference, media_type: str, body: bytes, accept: str | None = None) -> bytes:
    reply = inference(Body(io.BytesIO(body), len(body)), media_type, accept or media_type)
    assert isinstance(reply.content, bytes)
    return reply.content


def oip(data: Any, **entry: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", **entry, "data": data}]}


@pytest.mark.parametrize(
    ("build", "body", "answer"),
    [
        (echo(SEQUENCE), {"inputs": {"x": [[1, 2], [[3]], 4]}}, {"outputs": {"y": [[1, 2], [[3]], 4]}}),
        (echo(SEQUENCE), {"inputs": [[1, 2], 4]}, {"outputs": {"y": [[1, 2], 4]}}),
        (echo(SEQUENCE), {"instances": [[[1, 2]], []]}, {"predictions": [[[1, 2]], []]}),
        (echo(SEQUENCE), {"instances": [{"x": [None, "Infinity"]}]}, {"predictions": [[None, "Infinity"]]}),
        (echo(SEQUENCE), [[[1, 2], 3]], {"predictions": [[[1, 2], 3]]}),
        (echo(SEQUENCE), {"inputs": {"x": [{"shape": [1, 2], "data": [5, 6]}]}}, {"outputs": {"y": [[[5, 6]]]}}),
        (echo(SEQUENCE), {"inputs": [{"shape": [], "data": [5]}]}, {"outputs": {"y": [5]}}),
        (echo(TEXTS), {"inputs": {"x": ["é", ["a", ""]]}}, {"outputs": {"y": ["é", ["a", ""]]}}),
        (value_models.item, {"inputs": {"s": [[1], [2, 3]], "i": 1}}, {"outputs": {"y": [2, 3]}}),
        (value_models.item, {"instances": [{"s": [7], "i": 0}, {"i": -1, "s": [8, 9]}]}, {"predictions": [7, 9]}),
        (value_models.split, {"inputs": {"x": [[1, 2], [3, 4]]}}, {"outputs": {"y": [[1, 2], [3, 4]]}}),
        (value_models.vectorizer, {"inputs": {"x": {"b": 2}}}, {"outputs": {"y": [[0, 2]]}}),
        (value_models.vectorizer, {"instances": [{"a": 1}, {"x": {"b": 0.5}}]},
         {"predictions": [[[1, 0]], [[0, 0.5]]]}),
        (lambda path: value_models.vectorizer(path, (7, -1)), {"inputs": {"x": {"-1": 2}}}, {"outputs": {"y": [[0, 2]]}}),
        (echo(OPTIONAL), {"inputs": {"x": None}}, {"outputs": {"y": None}}),
        (echo(OPTIONAL), {"inputs": {}}, {"outputs": {"y": None}}),
        (echo(OPTIONAL), {"inputs": {"x": [[1]]}}, {"outputs": {"y": [[1]]}}),
        (echo(OPTIONAL), {"instances": [None, 1, {"x": [2]}, {}]}, {"predictions": [None, 1, [2], None]}),
        (echo(OPTIONAL_SEQUENCE), {"inputs": {"x": [[1], 2]}}, {"outputs": {"y": [[1], 2]}}),
        (echo(OPTIONAL_SEQUENCE), {"inputs": {"x": None}}, {"outputs": {"y": None}}),
        (value_models.constant, {"inputs": {}}, {"outputs": {"y": [1, 2]}}),
        (value_models.constant, {"instances": [{}, {}]}, {"predictions": [[1, 2], [1, 2]]}),
        (value_models.constant, {}, {"predictions": [[1, 2]]}),
        (value_models.positions, {"inputs": {"x": [0, 5, 6]}}, {"outputs": {"y": [[1, 2]]}}),
        (value_models.any_shape, {"inputs": {"x": [[1], [2]]}}, {"outputs": {"y": [[2], [4]]}}),
        (value_models.any_shape, {"instances": [3, [[4]]]}, {"predictions": [6, [[8]]]}),
        (value_models.scale, {"inputs": {"x": [[1, 2]] * 5}}, {"outputs": {"y": [[2, 4]] * 5}}),
        (value_models.scale, {"inputs": {"x": [[1, 2]] * 5, "k": [10]}}, {"outputs": {"y": [[10, 20]] * 5}}),
        (value_models.scale, {"inputs": {"x": [], "k": [10]}}, {"outputs": {"y": []}}),
        (value_models.mixed, {"inputs": {"x": [[1, 257]]}}, {"outputs": {"s": [[[1, 257]]], "b": [[1, 256]]}}),
        (foreign("BFLOAT16"), {"inputs": {"x": [257, None, "-Infinity"]}},
         {"outputs": {"y": [256, None, "-Infinity"], "z": [256, None, "-Infinity"]}}),
        (foreign("FLOAT8E4M3FN"), {"inputs": {"x": [0.3, -448]}}, {"outputs": {"y": [0.3125, -448], "z": [0.3125, -448]}}),
        (foreign("INT4"), {"inputs": {"x": [-8, 7, 1]}}, {"outputs": {"y": [-8, 7, 1], "z": [-8, 7, 1]}}),
    ],
)  # fmt: skip
def test_json(tmp_path: Path, build: Build, body: Any, answer: Any) -> None:
    assert json.loads(ask(serve(build, tmp_path), JSON, json.dumps(body).encode())) == answer


@pytest.mark.parametrize(
    ("build", "body", "output"),
    [
        (echo(SEQUENCE), oip([{"shape": [1, 2], "data": [1, 2]}, {"shape": [0, 3], "data": []}], shape=[2]),
         {"datatype": "FP32", "shape": [2], "parameters": {"onnx_type": "seq(tensor(float))"},
          "data": [{"shape": [1, 2], "data": [1, 2]}, {"shape": [0, 3], "data": []}]}),
        (echo(SEQUENCE), oip([[1, 2]]),
         {"datatype": "FP32", "shape": [1], "parameters": {"onnx_type": "seq(tensor(float))"},
          "data": [{"shape": [2], "data": [1, 2]}]}),
        (echo(OPTIONAL), oip(None, shape=[0], parameters={"onnx_type": "optional(tensor(float))"}),
         {"datatype": "FP32", "shape": [0], "parameters": {"onnx_type": "optional(tensor(float))"}, "data": None}),
        (echo(OPTIONAL), oip([1, 2], shape=[2, 1]),
         {"datatype": "FP32", "shape": [2, 1], "parameters": {"onnx_type": "optional(tensor(float))"}, "data": [1, 2]}),
        (echo(OPTIONAL), {"inputs": [{"name": "x", "data": None}]},
         {"datatype": "FP32", "shape": [0], "parameters": {"onnx_type": "optional(tensor(float))"}, "data": None}),
        (value_models.vectorizer, oip({"a": 1}, shape=[1]), {"datatype": "FP32", "shape": [1, 2], "data": [1, 0]}),
        (value_models.constant, {"inputs": []}, {"datatype": "FP32", "shape": [2], "data": [1, 2]}),
        (value_models.any_shape, oip([1, 2], shape=[1, 2]), {"datatype": "FP32", "shape": [1, 2], "data": [2, 4]}),
        (value_models.scale,
         {"inputs": [*oip([1, 2] * 3, shape=[3, 2])["inputs"], {"name": "k", "datatype": "FP32", "shape": [1], "data": [3]}]},
         {"datatype": "FP32", "shape": [3, 2], "data": [3, 6] * 3}),
        (value_models.scale,
         {"inputs": [*oip([], shape=[0, 2])["inputs"], {"name": "k", "datatype": "FP32", "shape": [1], "data": [3]}]},
         {"datatype": "FP32", "shape": [0, 2], "data": []}),
        (foreign("UINT2"), oip([0, 3, 1], shape=[3], datatype="UINT2"), {"datatype": "UINT2", "shape": [3], "data": [0, 3, 1]}),
        (foreign("BFLOAT16"), oip([1.5], shape=[1], datatype="BF16"), {"datatype": "BF16", "shape": [1], "data": [1.5]}),
        (foreign("FLOAT8E5M2"), oip([1.5], shape=[1]), {"datatype": "FLOAT8E5M2", "shape": [1], "data": [1.5]}),
    ],
)  # fmt: skip
def test_open_inference_protocol(tmp_path: Path, build: Build, body: Any, output: Any) -> None:
    response = json.loads(ask(serve(build, tmp_path), JSON, json.dumps(body).encode()))

    assert response["outputs"][0] == {"name": "y", **output}


def test_json_lines(tmp_path: Path) -> None:
    body = b'{"s": [1, [2]], "i": 1}\n{"s": [3], "i": 0}\n'

    assert ask(serve(value_models.item, tmp_path), LINES, body) == b"[2.0]\n3.0\n"


def test_npz_leaves_out_what_has_no_value(tmp_path: Path) -> None:
    def archive(**arrays: Any) -> bytes:
        file = io.BytesIO()
        np.savez(file, **arrays)
        return file.getvalue()

    optional = serve(echo(OPTIONAL), tmp_path)
    assert np.load(io.BytesIO(ask(optional, NPZ, archive()))).files == []
    answer = np.load(io.BytesIO(ask(optional, NPZ, archive(x=np.ones(2)))))
    assert answer["y"].tolist() == [1, 1]
    scale = serve(value_models.scale, tmp_path)
    x = np.ones((5, 2))
    for arrays, factor in (({"x": x}, 2), ({"anything": x}, 2), ({"x": x, "k": np.array([4])}, 4)):
        assert np.load(io.BytesIO(ask(scale, NPZ, archive(**arrays))))["y"].tolist() == [[factor] * 2] * 5
    assert np.load(io.BytesIO(ask(scale, NPZ, archive(x=x[:0], k=np.ones(1)))))["y"].shape == (0, 2)


def test_csv_has_the_numbers_of_types_that_numpy_has_not(tmp_path: Path) -> None:
    inference = serve(
        lambda path: value_models.cast(path, TensorProto.BFLOAT16, TensorProto.BFLOAT16), tmp_path
    )

    assert ask(inference, CSV, b"257\n0.1\n-inf\n") == b"256.0\n0.1001\n-inf\n".replace(
        b"0.1001", b"0.100097656"
    )


@pytest.mark.parametrize(
    ("build", "media_type", "body", "message"),
    [
        (echo(SEQUENCE), JSON, {"inputs": {"x": 5}}, 'input "x": expected a list, a sequence of tensors, got 5'),
        (echo(SEQUENCE), JSON, {"inputs": {"x": None}}, 'input "x": expected a list, a sequence of tensors, got null'),
        (echo(SEQUENCE), JSON, {"inputs": {"x": [["a"]]}}, 'input "x": expected FLOAT[1], got "a" at [0]'),
        (echo(SEQUENCE), JSON, {"inputs": {"x": [[1], [[1], 2]]}}, 'input "x": expected FLOAT[2, 1], got 2 at [1]'),
        (echo(SEQUENCE), JSON, {"inputs": {"x": [{"shape": [2], "data": [1]}]}}, "expected 2 values for the shape [2]"),
        (echo(SEQUENCE), JSON, {"inputs": {"x": [{"shape": [1]}]}}, 'expected an object with "shape" and "data"'),
        (echo(SEQUENCE), JSON, {"inputs": {"x": [{"shape": [-1], "data": []}]}}, "expected a shape like [2, 4], got [-1]"),
        (echo(SEQUENCE), JSON, {"inputs": {"x": [{"shape": [0, 1 << 39, 1 << 39], "data": []}]}}, "is too large"),
        (echo(SEQUENCE), JSON, {"inputs": {"x": [{"a": 1}]}}, 'unknown key "a" in an item of a sequence'),
        (echo(SEQUENCE), JSON, {"instances": [[1], {"z": 1}]}, 'an object with the keys "z" (record 2)'),
        (echo(SEQUENCE), JSON, oip([1], datatype="FP64"), 'input "x": expected the datatype FP32, got "FP64"'),
        (echo(SEQUENCE), JSON, {"inputs": [{"name": "x", "datatype": "FP32"}]}, 'input "x": expected "data", a sequence'),
        (echo(SEQUENCE), JSON, {"inputs": [{"name": "x", "data": [], "z": 1}]}, 'unknown key "z" in an object of "inputs"'),
        (echo(SEQUENCE), JSON, oip([1, 2], shape=[2]) | {"inputs": oip([1])["inputs"] * 2}, 'expected each input once, got "x" again'),
        (echo(SEQUENCE), CSV, "1,2\n", "the model cannot be fed from CSV"),
        (echo(SEQUENCE), LINES, '[1]\n"a"\n', 'got "a" (line 2)'),
        (value_models.item, JSON, {"instances": [[1, 2]]}, "expected an object with the inputs"),
        (value_models.item, JSON, {"inputs": {"s": [1]}}, 'missing "i"'),
        (value_models.vectorizer, JSON, {"inputs": {"x": [1]}}, 'input "x": expected an object, a map, got a list of 1'),
        (value_models.vectorizer, JSON, {"inputs": {"x": {"a": "b"}}}, 'input "x": expected FLOAT[1], got "b" at [0]'),
        (value_models.vectorizer, JSON, {"inputs": {"x": {}}}, "a map without entries"),
        (lambda path: value_models.vectorizer(path, (7, 8)), JSON, {"inputs": {"x": {"1.5": 2}}}, 'expected integers as keys, got "1.5"'),
        (lambda path: value_models.vectorizer(path, (7, 8)), JSON, {"inputs": {"x": {str(2**63): 2}}}, "expected integers as keys"),
        (lambda path: value_models.vectorizer(path, (7, 8)), JSON, {"inputs": {"x": {"0": 1, "-0": 2}}}, "expected each key once"),
        (value_models.constant, JSON, {"inputs": {"x": 1}}, 'unknown "x"'),
        (value_models.constant, JSON, oip([1], shape=[1]), 'unknown "x"'),
        (value_models.scale, JSON, {"instances": [{"x": [1, 2], "k": [3]}]}, "expected a list, an object with the inputs"),
        (value_models.scale, JSON, {"inputs": {"x": [[1, 2]], "k": [3, 4]}}, 'input "k": expected FLOAT[1], got 2 values'),
        (foreign("INT4"), JSON, {"inputs": {"x": [0, 8]}}, 'input "x": expected INT4, got 8 at [1]'),
        (foreign("FLOAT8E4M3FN"), JSON, {"inputs": {"x": [500]}}, 'input "x": expected FLOAT8E4M3FN, got 500.0 at [0]'),
        (foreign("FLOAT8E8M0"), JSON, {"inputs": {"x": [0]}}, 'input "x": expected FLOAT8E8M0, got 0.0 at [0]'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    tmp_path: Path, build: Build, media_type: str, body: Any, message: str
) -> None:
    sent = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    with pytest.raises(RequestError) as caught:
        ask(serve(build, tmp_path), media_type, sent, JSON)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_are_exact_beyond_what_a_double_holds(tmp_path: Path) -> None:
    inference = serve(lambda path: onnx_models.identity(path, onnx_models.INT64, ["N"]), tmp_path)
    numbers = [2**63 - 1, -(2**63), 2**53 + 1]

    answer = ask(inference, JSON, json.dumps({"inputs": {"x": numbers}}).encode())
    assert json.loads(answer) == {"outputs": {"y": numbers}}


# The models of the examples in docs/formats.md, in their order.
EXAMPLES = (value_models.item, value_models.vectorizer, echo(OPTIONAL), value_models.scale, echo(SEQUENCE))


def documented() -> list[tuple[Any, Any]]:
    text = (Path(__file__).parent.parent / "docs" / "formats.md").read_text()
    section = text.partition("## Value types\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    return list(zip(blocks[::2], blocks[1::2], strict=True))


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_documents_examples_answer_as_shown(tmp_path: Path, number: int) -> None:
    assert len(documented()) == len(EXAMPLES)
    body, answer = documented()[number]

    answered = ask(serve(EXAMPLES[number], tmp_path), JSON, body.encode())
    assert json.loads(answered) == json.loads(answer)
