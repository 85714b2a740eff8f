"""A model without its last ZipMaps answers what onnxruntime answers for the whole model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import onnx_models
from onnx_serve import session as session_module
from onnx_serve.errors import InputRefused, ModelError
from onnx_serve.model import Model, SessionOptions, load_model
from onnx_serve.model_files.zip_maps import UnzippedModel, unzip
from onnx_serve.tensors import MapTable

X = np.array([[0.5, 2, -3], [1e-7, np.inf, 4], [np.nan, 0, 1]], np.float32)


def zip_map(source: str, output: str, labels: Sequence[int | str]) -> onnx.NodeProto:
    kind = "strings" if isinstance(labels[0], str) else "int64s"
    node = helper.make_node("ZipMap", [source], [output], domain="ai.onnx.ml")
    node.attribute.append(helper.make_attribute(f"classlabels_{kind}", labels))
    return node


def maps(name: str, labels: Sequence[int | str]) -> onnx.ValueInfoProto:
    key = onnx_models.STRING if isinstance(labels[0], str) else onnx_models.INT64
    return helper.make_value_info(
        name,
        helper.make_sequence_type_proto(
            helper.make_map_type_proto(key, helper.make_tensor_type_proto(onnx_models.FLOAT, []))
        ),
    )


def classifier(
    path: Path,
    labels: Sequence[int | str],
    *,
    shape: onnx_models.Shape = ("N", 3),
    more_nodes: Sequence[onnx.NodeProto] = (),
    more_outputs: Sequence[onnx.ValueInfoProto] = (),
) -> Path:
    """``-x`` as maps, behind one output and before another."""
    nodes = [helper.make_node("Abs", ["x"], ["first"]), helper.make_node("Neg", ["x"], ["scores"])]
    outputs = [onnx_models.tensor("first", onnx_models.FLOAT, shape), maps("maps", labels), *more_outputs]
    graph = helper.make_graph(
        [*nodes, zip_map("scores", "maps", labels), *more_nodes],
        "classifier",
        [onnx_models.tensor("x", onnx_models.FLOAT, shape)],
        outputs,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def load(path: Path, **options: Any) -> Model:
    return load_model(path, path.stem, SessionOptions(**options))


def whole(path: Path, x: np.ndarray) -> dict[str, Any]:
    """What onnxruntime answers for the file as it is."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(
        zip([output.name for output in session.get_outputs()], session.run(None, {"x": x}), strict=True)
    )


def same(table: Any, expected: list[dict[Any, float]]) -> bool:
    assert isinstance(table, MapTable)
    assert table.values.dtype == np.float32
    return repr([dict(zip(table.keys, row, strict=True)) for row in table.values.tolist()]) == repr(expected)


@pytest.mark.parametrize(
    "labels", [(0, 1, 2), (7, -1, 2**62), ("a", "b", "c"), ("z", "", "ä"), ("\U0001f600", "\uffff", "~")]
)
@pytest.mark.parametrize("x", [X, X[:1], X[:0]])
def test_maps_are_those_of_the_whole_model(
    tmp_path: Path, labels: Sequence[int | str], x: np.ndarray
) -> None:
    path = classifier(tmp_path / "m.onnx", labels)
    model, expected = load(path), whole(path, x)

    assert unzip(path) is not None
    assert [(spec.name, spec.onnx_type) for spec in model.signature.outputs] == [
        (output.name, output.type) for output in ort.InferenceSession(path).get_outputs()
    ]
    values = model.run({"x": x})
    assert list(values) == ["first", "maps"]
    assert same(values["maps"], expected["maps"])
    np.testing.assert_array_equal(values["first"], expected["first"])


def test_one_row_without_a_dimension_of_rows(tmp_path: Path) -> None:
    path = classifier(tmp_path / "m.onnx", [1, 2, 3], shape=[3])

    assert same(load(path).run({"x": X[0]})["maps"], whole(path, X[0])["maps"])


def test_the_session_makes_no_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    create = session_module._create_session

    def keep(*arguments: Any) -> Any:
        made.append(create(*arguments))
        return made[-1]

    monkeypatch.setattr(session_module, "_create_session", keep)
    load(classifier(tmp_path / "m.onnx", ["a", "b", "c"]))

    [session] = made
    assert [(output.name, output.type) for output in session.get_outputs()] == [
        ("first", "tensor(float)"),
        ("scores", "tensor(float)"),
    ]
    # It keeps no second copy of the file.
    assert not [value for value in vars(session).values() if isinstance(value, bytes)]


def test_a_tensor_that_is_also_an_output_or_made_maps_of_twice(tmp_path: Path) -> None:
    path = classifier(
        tmp_path / "m.onnx",
        ["a", "b", "c"],
        more_nodes=[zip_map("scores", "again", [9, 8, 7]), zip_map("first", "other", [1, 2, 3])],
        more_outputs=[
            onnx_models.tensor("scores", onnx_models.FLOAT, ["N", 3]),
            maps("again", [0]),
            maps("other", [0]),
        ],
    )
    expected = whole(path, X)
    values = load(path).run({"x": X})
    assert list(values) == list(expected) == ["first", "maps", "scores", "again", "other"]
    assert all(same(values[name], expected[name]) for name in ("maps", "again", "other"))
    np.testing.assert_array_equal(values["scores"], -X)

    chosen = load(path, outputs=["other", "maps"]).run({"x": X})
    assert list(chosen) == ["other", "maps"]
    assert same(chosen["other"], expected["other"])


@pytest.mark.parametrize("labels", [["a", "b", "b"], [1, 1, 2]])
def test_equal_labels_are_left_to_onnxruntime(tmp_path: Path, labels: Sequence[int | str]) -> None:
    path = classifier(tmp_path / "m.onnx", labels)

    assert unzip(path) is None
    assert same(load(path).run({"x": X})["maps"], whole(path, X)["maps"])


def test_a_model_that_cannot_do_without_is_loaded_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = classifier(tmp_path / "m.onnx", ["a", "b", "c"])
    unzipped = unzip(path)
    assert unzipped is not None
    broken = UnzippedModel(unzipped.data[:-3], unzipped.outputs, unzipped.zip_maps)
    monkeypatch.setattr(session_module, "unzip", lambda _: broken)

    assert same(load(path).run({"x": X})["maps"], whole(path, X)["maps"])


def test_too_few_columns_are_the_callers_mistake(tmp_path: Path) -> None:
    model = load(classifier(tmp_path / "m.onnx", ["a", "b", "c"], shape=["N", "M"]))

    with pytest.raises(InputRefused, match=r'"maps": expected 3 columns, one for each label, got .*\[3, 2\]'):
        model.run({"x": X[:, :2]})


def test_weights_beside_the_file_are_found(tmp_path: Path) -> None:
    weights = np.arange(2048, dtype=np.float32).reshape(2, 1024)
    labels = list(range(1024))
    node = helper.make_node("MatMul", ["x", "w"], ["scores"])
    graph = helper.make_graph(
        [node, zip_map("scores", "maps", labels)],
        "classifier",
        [onnx_models.tensor("x", onnx_models.FLOAT, ["N", 2])],
        [maps("maps", labels)],
        [numpy_helper.from_array(weights, "w")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    path = tmp_path / "m.onnx"
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").stat().st_size == weights.nbytes

    table = load(path).run({"x": np.ones((1, 2), np.float32)})["maps"]
    assert isinstance(table, MapTable)
    np.testing.assert_array_equal(table.values, weights.sum(0)[None])


def test_other_models_have_none(tmp_path: Path) -> None:
    assert unzip(onnx_models.linear(tmp_path / "m.onnx")) is None
    (tmp_path / "m.ort").write_bytes(b"\x18\0\0\0ORTM" + bytes(64))
    assert unzip(tmp_path / "m.ort") is None


def test_what_cannot_be_read_is_left_to_onnxruntime(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()

    for name in ("empty.onnx", "gone.onnx"):
        assert unzip(tmp_path / name) is None
        with pytest.raises(ModelError, match="onnxruntime cannot load the model"):
            load(tmp_path / name)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 500), byte=st.integers(0, 255))
def test_any_bytes_are_read(tmp_path: Path, place: int, byte: int) -> None:
    """A changed byte gives another model or none, never an error."""
    path = classifier(tmp_path / "m.onnx", ["a", "b", "c"])
    data = bytearray(path.read_bytes())
    data[place % len(data)] = byte
    path.write_bytes(data)

    unzipped = unzip(path)
    assert unzipped is None or len(unzipped.data) < len(data) + 100
