"""Packages, and the golden rows that they are proven with: read by the server, replayed, asked for over HTTP."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converted_folders import change_parity, parity_facts
from converters.errors import ConversionError, ConversionRefused, MissingExtra
from onnx_serve.golden_rows import read_golden_rows, replay
from onnx_serve.model import SessionOptions, load_model

try:
    import onnx
    from sklearn import linear_model

    from converters import conversion, parity, sklearn
    from converters.package import package
    from converters.serving import serving
except (ModuleNotFoundError, MissingExtra) as ex:
    pytest.skip(f"sklearn models cannot be converted here: {ex}", allow_module_level=True)

X = np.random.default_rng(5).normal(size=(200, 4))


@pytest.fixture(scope="module")
def regression() -> Any:
    return sklearn.convert(linear_model.LinearRegression().fit(X, X[:, 0]), precision="32")


@pytest.fixture
def folder(regression: Any, tmp_path: Path) -> Path:
    conversion.finish(regression, tmp_path / "m")
    return tmp_path / "m"


def test_a_model_folder_replays_its_golden_rows(folder: Path) -> None:
    """What a conversion writes is what the server reads: nothing is missing, and the rows are answered again."""
    facts = json.loads((folder / "parity.json").read_text())
    model = load_model(folder / "model.onnx", "m", SessionOptions())

    golden = read_golden_rows(folder / "model.onnx", model.signature)
    assert golden is not None
    assert len(golden.feed["features"]) == 5
    assert list(golden.outputs) == ["prediction"]
    record = golden.record
    assert (record.passed, record.seed) == (True, facts["seed"])
    assert record.outputs[0].scale > 0
    assert parity_facts({}).keys() <= facts.keys()
    replay(folder / "model.onnx", model.signature, model.run)


@pytest.mark.parametrize(("epoch", "year"), [("0", "1970"), ("99999999999", "5138"), ("never", "20")])
def test_the_time_of_a_conversion_can_be_set(
    epoch: str, year: str, regression: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    conversion.finish(regression, tmp_path / "m")
    assert json.loads((tmp_path / "m" / "parity.json").read_text())["converted_at"].startswith(year)


def test_golden_rows_of_a_fixed_number_of_rows_a_run_are_whole() -> None:
    """Five rows by two: three runs, the last one padded, and five answers."""
    node = onnx.helper.make_node("Neg", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 3]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    model = conversion.load_graph(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    )
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)

    assert np.array_equal(parity.golden_rows(model, {"x": rows}).outputs["y"], -rows)


def test_links_are_not_packed(folder: Path, tmp_path: Path) -> None:
    (folder / "link").symlink_to("model.onnx")
    with pytest.raises(ConversionError, match="is a link"):
        package(folder, tmp_path / "m.tar.gz")
    assert not (tmp_path / "m.tar.gz").exists()


def test_a_model_that_does_not_repeat_its_golden_rows_is_not_packed(folder: Path, tmp_path: Path) -> None:
    with np.load(folder / "golden.npz") as golden:
        wrong = {name: array + 1 for name, array in golden.items()}
    np.savez(folder / "golden.npz", allow_pickle=False, **wrong)
    with pytest.raises(ConversionRefused, match="golden rows"):
        package(folder, tmp_path / "m.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda folder: folder / "none", ConversionError, "is none"),
        (lambda folder: (folder / "empty").mkdir() or folder / "empty", ConversionError, "is empty"),
        (
            lambda folder: (folder / "model.onnx").write_bytes(b"x") and folder,
            ConversionRefused,
            "cannot be served",
        ),
    ],
)
def test_folders_that_cannot_be_served_are_not_packed(
    make: Any, error: type[Exception], words: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        package(make(folder), tmp_path / "m.tar.gz")


def test_the_packed_model_is_asked_over_http(folder: Path, tmp_path: Path) -> None:
    """A server that answers, but not as its folder says, is found out: its settings leave out what is golden."""
    (folder / "onnx_serve.yaml").write_text("outputs: [prediction]\n")
    package(folder, tmp_path / "m.tar.gz")
    with np.load(folder / "golden.npz") as golden:
        np.savez(folder / "golden.npz", allow_pickle=False, other=golden["prediction"])
    change_parity(folder, lambda facts: facts["parity"].update(unchecked_outputs=["other"]))
    with pytest.raises(ConversionRefused, match="none of the outputs of the golden rows is answered"):
        package(folder, tmp_path / "n.tar.gz")


def test_several_models_are_all_asked_for(folder: Path, tmp_path: Path) -> None:
    """Each name must be served; one that cannot be loaded is found although others can."""
    many = tmp_path / "many"
    for name in ("a", "b"):
        (many / name).mkdir(parents=True)
        (many / name / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    package(many, tmp_path / "m.tar.gz")
    (many / "b" / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-200])
    with pytest.raises(ConversionRefused, match="/v2/models/b"):
        package(many, tmp_path / "n.tar.gz")


def test_a_folder_without_golden_rows_is_packed(folder: Path, tmp_path: Path) -> None:
    for name in ("parity.json", "sample.npz", "golden.npz"):
        (folder / name).unlink()
    assert package(folder, tmp_path / "m.tar.gz").startswith("1 files")


def test_the_users_own_settings_play_no_part(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would not be there where the model is served."""
    for name, value in {
        "ONNX_SERVE_MODE": "multi",
        "SAGEMAKER_BIND_TO_PORT": "1",
        "ONNX_SERVE_SLOTS": "no",
    }.items():
        monkeypatch.setenv(name, value)
    package(folder, tmp_path / "m.tar.gz")


def test_a_server_that_is_not_ready_in_time_is_ended(folder: Path) -> None:
    with (
        pytest.raises(ConversionRefused, match=r"not served within 0\.001 s"),
        serving(folder, timeout_s=0.001),
    ):
        pass


def test_a_server_that_has_gone_is_reported(folder: Path) -> None:
    with serving(folder) as server, pytest.raises(ConversionRefused, match="GET /nothing with 404"):
        server.ask("/nothing")
    with pytest.raises(ConversionRefused, match="does not answer GET /ping"):
        server.ask("/ping")


def test_an_existing_archive_is_kept_and_none_goes_into_its_own_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "old.tar.gz").write_text("x")
    with pytest.raises(ConversionError, match="add --force"):
        package(folder, tmp_path / "old.tar.gz")
    with pytest.raises(ConversionError, match="outside of the model folder"):
        package(folder, folder / "m.tar.gz")
    with pytest.raises(ConversionError, match="does not exist"):
        package(folder, tmp_path / "none" / "m.tar.gz")
