"""Operators that onnxruntime has not come from libraries that the operator of the server lists."""

import dataclasses
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import onnx_models
from onnx_serve.errors import ModelError, SettingsError
from onnx_serve.machine import read_machine
from onnx_serve.model import Model, SessionOptions, load_model
from onnx_serve.repository import Repository
from onnx_serve.session import EXTENSIONS
from onnx_serve.settings import Settings, with_model_settings


def load(path: Path, *libraries: str) -> Model:
    return load_model(path, path.stem, SessionOptions(custom_op_libraries=libraries))


def test_an_unknown_operator_names_the_setting(tmp_path: Path) -> None:
    path = onnx_models.extension(tmp_path / "m.onnx")

    with pytest.raises(ModelError, match=r"StringLower.*has to be listed in custom_op_libraries"):
        load(path)


def test_the_setting_reaches_the_session(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "m.onnx")
    settings = dataclasses.replace(
        Settings(), model_dir=tmp_path, custom_op_libraries=(str(tmp_path / "none.so"),)
    )

    with pytest.raises(ModelError, match="custom_op_libraries: expected a file, found none"):
        Repository(settings, read_machine()).load()


def test_a_model_folder_cannot_name_a_library(tmp_path: Path) -> None:
    file = tmp_path / "onnx_serve.yaml"
    file.write_text("custom_op_libraries: [ops.so]\n")

    with pytest.raises(SettingsError, match='"custom_op_libraries" is not a model\'s setting'):
        with_model_settings(Settings(), file)


def test_a_custom_library_that_is_missing_is_told(tmp_path: Path) -> None:
    path = onnx_models.linear(tmp_path / "m.onnx")

    with pytest.raises(ModelError, match=r'expected a file, found none called "ops\.so"'):
        load(path, "/nowhere/ops.so")


def test_a_custom_library_that_is_none_is_told_without_its_folder(tmp_path: Path) -> None:
    library = tmp_path / "operators.so"
    library.write_bytes(b"no library")

    with pytest.raises(ModelError, match=r"custom_op_libraries: operators\.so cannot be loaded") as caught:
        load(onnx_models.linear(tmp_path / "m.onnx"), str(library))
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.skipif(find_spec("onnxruntime_extensions") is not None, reason="it is installed")
def test_extensions_that_are_not_installed_name_the_extra(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r'pip install "onnx-serve\[extensions\]"'):
        load(onnx_models.linear(tmp_path / "m.onnx"), EXTENSIONS)


def test_the_extensions_package_says_where_its_library_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "ortextensions.so"
    library.write_bytes(b"no library")
    stand_in = SimpleNamespace(get_library_path=lambda: str(library))
    monkeypatch.setitem(sys.modules, "onnxruntime_extensions", stand_in)

    with pytest.raises(ModelError, match=f"{EXTENSIONS} cannot be loaded") as caught:
        load(onnx_models.linear(tmp_path / "m.onnx"), EXTENSIONS)
    assert "ortextensions.so" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_extensions_run(tmp_path: Path) -> None:
    """A model with an operator of onnxruntime-extensions loads if its library is listed, and not otherwise."""
    pytest.importorskip("onnxruntime_extensions")
    path = onnx_models.extension(tmp_path / "m.onnx")

    with pytest.raises(ModelError, match="cannot load"):
        load(path)
    run = load(path, EXTENSIONS).run
    assert run({"x": np.array(["Ab"], object)})["y"].tolist() == ["ab"]  # type: ignore[union-attr]
