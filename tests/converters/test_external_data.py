"""Weights beside the graph: moved there, brought back, and optional steps on models that have them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters import command, external_data
from converters.errors import ConversionError, MissingExtra
from converters.external_data import join_weights, split_weights

try:
    from converters import conversion, parity, reductions  # noqa: F401  reductions says what is missing
except MissingExtra as ex:
    pytest.skip(f"nothing can be converted here: {ex}", allow_module_level=True)

WEIGHTS = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)


def network() -> onnx.ModelProto:
    """Two layers; the second one's weights are a constant inside a branch, whose condition must not move."""
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["w2"], value=numpy_helper.from_array(WEIGHTS.T.copy(), "w2"))],
        "branch", [], [helper.make_tensor_value_info("w2", TensorProto.FLOAT, [64, 64])],
    )  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("If", ["yes"], ["w"], then_branch=inner, else_branch=inner),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])],
        [numpy_helper.from_array(WEIGHTS, "w1"), numpy_helper.from_array(np.array(True), "yes")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def external(folder: Path) -> tuple[onnx.ModelProto, dict[str, Path]]:
    return split_weights(network(), folder, limit=1000)


def converted(folder: Path) -> Any:
    rows = np.random.default_rng(2).normal(size=(20, 64)).astype(np.float32)
    model, files = external(folder)
    return conversion.prove(
        model, lambda feed: {"y": feed["x"] @ WEIGHTS @ WEIGHTS.T}, [parity.Probe("rows", {"x": rows})],
        framework="torch", family="Network", tolerances=parity.Tolerances(rtol=1e-3, atol=5e-5), external=files,
    )  # fmt: skip


def test_small_models_keep_their_weights(tmp_path: Path) -> None:
    model, files = split_weights(network(), tmp_path / "w")

    assert files == {}
    assert join_weights(model, files) is model
    assert not (tmp_path / "w").exists()


def test_a_model_of_small_tensors_needs_no_file(tmp_path: Path) -> None:
    """Shapes and the like stay in the graph, whatever the limit."""
    model = network()
    del model.graph.initializer[0]

    assert split_weights(model, tmp_path, limit=0)[1] == {}


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    model, files = external(tmp_path / "w")
    assert model.ByteSize() < 3 * WEIGHTS.nbytes  # those of the two branches
    assert list(files) == ["model.onnx.data"]

    whole = join_weights(model, files)
    assert np.array_equal(numpy_helper.to_array(whole.graph.initializer[0]), WEIGHTS)
    answers: list[Any] = [
        conversion.load_graph(made, kept).run({"x": WEIGHTS}) for made, kept in ((model, files), (whole, {}))
    ]
    assert np.array_equal(answers[0]["y"], answers[1]["y"])


def test_tensors_of_branches_and_functions_are_found() -> None:
    """Wherever a tensor stands, it may be external: in branches, lists of tensors, and functions."""
    model = network()
    function = model.functions.add(name="f", domain="d")
    function.node.append(
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(WEIGHTS[:1], "c"))
    )
    node = model.graph.node.add(op_type="Lists")
    node.attribute.append(helper.make_attribute("tensors", [numpy_helper.from_array(WEIGHTS[:2], "t")]))
    node.attribute.append(helper.make_attribute("graphs", [model.graph.node[1].attribute[0].g]))

    assert sorted(tensor.name for tensor in external_data._tensors(model)) == [
        "c",
        "t",
        "w1",
        "w2",
        "w2",
        "w2",
        "yes",
    ]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda files: {"other": files["model.onnx.data"]}, 'the graph names "model.onnx.data"'),
        (lambda files: files["model.onnx.data"].write_bytes(b"short") and files, 'ends before "w1" does'),
    ],
    ids=["another name", "too short"],
)
def test_missing_weights_are_named(damage: Any, words: str, tmp_path: Path) -> None:
    model, files = external(tmp_path)

    with pytest.raises(ConversionError, match=words):
        join_weights(model, damage(files))


def test_weights_beyond_a_message_are_refused_with_the_reason(tmp_path: Path) -> None:
    """Before anything is read: three tensors of 1 GiB each, of which the file has not a byte."""
    model, files = external(tmp_path)
    for index in range(3):
        tensor = model.graph.initializer.add(name=f"big{index}", data_type=TensorProto.FLOAT, dims=[1 << 28])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="model.onnx.data")

    with pytest.raises(ConversionError, match=r"are 32\d+ bytes, and tools .* at most 2147483647 bytes"):
        join_weights(model, files)


@pytest.mark.parametrize("step", ["optimize", "float16", "quantize"])
def test_optional_steps_take_models_with_external_weights(step: str, tmp_path: Path) -> None:
    said: list[str] = []
    reduced, figures = command._reduce(converted(tmp_path / "w"), [step], {}, said.append, tmp_path / "new")

    [entry] = figures["steps"]
    assert entry["step"] == step
    assert reduced.external == {}
    if step != "optimize":
        assert entry["bytes_after"] < 0.8 * entry["bytes_before"]
    conversion.finish(reduced, tmp_path / "m", figures=figures)
    assert json.loads((tmp_path / "m" / "parity.json").read_text())["steps"] == [entry]


def test_large_weights_stay_beside_the_graph_after_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_weights, "__defaults__", (1000,))

    reduced, _ = command._reduce(converted(tmp_path / "w"), ["float16"], {}, lambda _: None, tmp_path / "new")
    conversion.finish(reduced, tmp_path / "m")

    assert (tmp_path / "m" / "model.onnx.data").stat().st_size >= WEIGHTS.nbytes // 2


def test_without_steps_nothing_is_touched(tmp_path: Path) -> None:
    made = converted(tmp_path / "w")

    assert command._reduce(made, [], {}, lambda _: None, tmp_path) == (made, {})
