"""The onnxruntime that will serve decides what graphs are stamped with."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from converters.errors import ConversionError, ConversionRefused, MissingExtra
from converters.graph import HIGHEST_OPSET, OPSET, Graph
from converters.targets import Target, converting_for, find_target, fit, installed_target

try:
    import xgboost

    from converters import command, frameworks
    from converters.conversion import Request
except (ModuleNotFoundError, MissingExtra) as ex:
    pytest.skip(f"boosting models cannot be converted here: {ex}", allow_module_level=True)


def graph(opset: int, ir_version: int) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("x", "y")]
    made = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def loads(model: onnx.ModelProto) -> bool:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001  classes of onnxruntime's own
        return False
    return True


def test_what_the_installed_onnxruntime_knows_is_exact() -> None:
    """A graph of its opset and format loads, and of neither plus one."""
    target = installed_target()

    assert onnxruntime.__version__.startswith(f"{target.version}.")
    assert loads(graph(target.opset, target.ir_version))
    assert not loads(graph(target.opset + 1, target.ir_version))
    assert not loads(graph(target.opset, target.ir_version + 1))


@pytest.mark.parametrize(
    ("version", "opset", "default"),
    [("1.14", 18, 18), ("1.16.3", 19, 19), ("1.17", 20, 20), ("1.22.1", 22, 20), ("1.26", 26, 20), ("2.0", 26, 20)],
)  # fmt: skip
def test_a_release_is_known_by_its_number(version: str, opset: int, default: int) -> None:
    target = find_target(version)

    assert (target.opset, target.default_opset) == (opset, default)


def test_the_table_agrees_with_the_installed_release() -> None:
    """A release of the table that is installed knows what the table says; a later one at least that."""
    installed = installed_target()
    listed = find_target(installed.version)

    assert listed.opset <= installed.opset
    assert listed.ir_version <= installed.ir_version


@pytest.mark.parametrize(
    "version", ["", "latest", "1", "1.13", "0.9", "1.26.0.1", "1.26rc1", "1." + "9" * 40]
)
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(ConversionError, match="--target-onnxruntime: expected") as caught:
        find_target(version)
    assert len(str(caught.value)) < 200


def test_graphs_are_stamped_for_the_target() -> None:
    rows = {"x": np.zeros((1, 2), np.float32)}

    def made() -> int:
        made = Graph()
        model = made.model(rows, {made.add("Identity", "x", output="y"): rows["x"]})
        return int(model.opset_import[0].version)

    assert made() == HIGHEST_OPSET == OPSET[""]
    with converting_for("1.15") as target:
        assert (made(), target.ir_version) == (19, 8)
    with pytest.raises(ConversionError), converting_for("none"):
        pass
    assert made() == HIGHEST_OPSET


def test_a_graph_beyond_the_target_is_refused() -> None:
    target = Target("1.20", 21, 10)
    model = graph(21, 13)

    fit(model, target)
    assert model.ir_version == 10
    with pytest.raises(ConversionRefused, match=r"opset 23, and onnxruntime 1\.20 knows up to 21"):
        fit(graph(23, 10), target)


def test_a_whole_conversion_is_for_its_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line through the process that converts to the record."""
    rows = np.random.default_rng(3).normal(size=(50, 3))
    path = tmp_path / "x.ubj"
    xgboost.XGBRegressor(n_estimators=2).fit(rows, rows[:, 0]).save_model(path)

    words = ["convert", str(path), "-o", str(tmp_path / "m"), "--target-onnxruntime"]
    assert command.main([*words, "1.14"]) == 0
    assert '"target_onnxruntime": "1.14"' in (tmp_path / "m" / "parity.json").read_text()
    model = onnx.load(tmp_path / "m" / "model.onnx")
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18, "ai.onnx.ml": 3}
    assert model.ir_version == 8

    assert command.main([*words, "soon", "--force"]) == 2
    assert command.main([*words, "1.14", "--force", "--optimize"]) == 2
    err = capsys.readouterr().err
    assert "convert where onnxruntime 1.14 is installed" in err
    assert "expected a version such as 1.26" in err
    assert frameworks.convert_artifact(Request(str(path))).model.opset_import[0].version == HIGHEST_OPSET
