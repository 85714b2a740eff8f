"""Refusing files that onnxruntime should not open."""

import importlib
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_folders import find, touch
from onnx_serve.errors import ModelError
from onnx_serve.model_files.model_check import check_model_file
from onnx_serve.model_files.model_folder import ModelFile, find_models


def saved(folder: Path, *tensors: TensorProto) -> onnx.ModelProto:
    """Writes model.onnx, which adds up its input and its initializers."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ["x", *(tensor.name for tensor in tensors)]
    graph = helper.make_graph(
        [helper.make_node("Sum", names, ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return model


def outside(location: str, offset: object = None, length: object = None, name: str = "w") -> TensorProto:
    """FLOAT[4] whose values lie elsewhere."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            pair = tensor.external_data.add()
            pair.key, pair.value = key, str(value)
    return tensor


def check(folder: Path, *, allow_links: bool = False) -> Any:
    found = find(folder)
    assert found.default
    return check_model_file(found.default, found.root, allow_links=allow_links)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder that is not the only thing in its parent."""
    path = tmp_path / "model"
    path.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    return path


def test_external_data_as_saved_by_onnx_passes_and_loads(folder: Path) -> None:
    """What passes is what onnxruntime loads."""
    weights = [numpy_helper.from_array(np.full(4, i + 1, np.float32), f"w{i}") for i in range(3)]
    model = saved(folder, *weights)
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    summary = check(folder)
    assert [data.location for data in summary.external_data] == ["w.data"] * 3
    ort: Any = importlib.import_module("onnxruntime")
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    [y] = session.run(None, {"x": np.zeros((2, 4), np.float32)})
    np.testing.assert_array_equal(y, np.full((2, 4), 6, np.float32))


def test_external_data_in_a_subfolder_and_through_a_link_inside(folder: Path) -> None:
    touch(folder, "weights/")
    (folder / "weights/w.bin").write_bytes(bytes(16))
    (folder / "linked.bin").symlink_to("weights/w.bin")
    saved(folder, outside("./weights/w.bin", 0, 16), outside("linked.bin", name="v"))
    assert len(check(folder).external_data) == 2


LOCATIONS: dict[str, tuple[str, str]] = {
    "none": ("", "expected a relative path"),
    "parent": ("../secret.bin", "expected a relative path without .. or backslashes"),
    "parent inside": ("a/../../secret.bin", "expected a relative path"),
    "parent at the end": ("a/..", "expected a relative path"),
    "absolute": ("/etc/passwd", "expected a relative path"),
    "backslash": ("..\\secret.bin", "expected a relative path"),
    "NUL": ("w.bin\0.txt", "expected a relative path"),
    "onnxruntime's memory": ("*/_ORT_MEM_ADDR_/*", "expected the path of a file"),
    "missing": ("v.bin", 'external data "v.bin" of tensor "w": the file is missing'),
    "folder": ("d", "expected a regular file, got a folder"),
    "the folder itself": (".", "expected a regular file, got a folder"),
    "below a file": ("w.bin/x", "the file cannot be read: Not a directory"),
    "too long": ("n" * 300, "the file cannot be read: File name too long"),
    "FIFO": ("fifo", "expected a regular file, got a FIFO"),
    "socket": ("socket", "expected a regular file, got a socket"),
    "link out": ("link", "the file is a link out of the model's folder"),
    "link to a device": ("device", "the file is a link out of the model's folder"),
    "folder linked out": ("up/secret.bin", "the file is a link out of the model's folder"),
    "circle": ("circle", "the file cannot be read: Too many levels of symbolic links"),
    "hard link": ("hard.bin", "the file has 2 hard links, copy it"),
}


@pytest.mark.parametrize(("location", "expected"), LOCATIONS.values(), ids=LOCATIONS)
@pytest.mark.parametrize("allow_links", [False, True], ids=["", "allow_links"])
def test_external_data_that_leaves_the_folder_is_refused(
    location: str,
    expected: str,
    allow_links: bool,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """allow_links is for the model file itself, never for its data."""
    touch(folder, "d/", "*/_ORT_MEM_ADDR_/*")
    (folder / "w.bin").write_bytes(bytes(16))
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(folder)
        listener.bind("socket")
    (folder / "link").symlink_to("../secret.bin")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "up").symlink_to("..")
    (folder / "circle").symlink_to("circle")
    (folder / "hard.bin").hardlink_to(folder.parent / "secret.bin")
    saved(folder, outside(location))
    with pytest.raises(ModelError) as caught:
        check(folder, allow_links=allow_links)
    text = str(caught.value)
    assert text.startswith('"model.onnx": external data ')
    assert expected in text
    assert text.isprintable()
    assert str(folder) not in text


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 16, ""),
        (4, 12, ""),
        (16, 0, ""),
        (16, None, ""),
        (None, None, ""),
        (0, 17, "expected at least 17 bytes, the file has 16"),
        (1, 16, "expected at least 17 bytes, the file has 16"),
        (17, None, "expected at least 17 bytes, the file has 16"),
        (17, 0, "expected at least 17 bytes, the file has 16"),
        (2**63, 2**63, "expected at least 18446744073709551616 bytes"),
        (-1, 4, "expected offset to be a whole number"),
        (0, -4, "expected length to be a whole number"),
    ],
)
def test_external_data_lies_within_its_file(
    offset: int | None, length: int | None, expected: str, folder: Path
) -> None:
    (folder / "w.bin").write_bytes(bytes(16))
    saved(folder, outside("w.bin", 0, 16, "v"), outside("w.bin", offset, length))
    if not expected:
        assert len(check(folder).external_data) == 2
        return
    with pytest.raises(ModelError, match=expected):
        check(folder)


def test_external_data_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the answer of access() is staged."""
    (folder / "w.bin").write_bytes(bytes(16))
    saved(folder, outside("w.bin"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ModelError, match="the file cannot be read: Permission denied"):
        check(folder)


def test_model_files_that_are_no_regular_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither opened nor waited for."""
    os.mkfifo(folder / "fifo.onnx")
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.onnx")
    (folder / "device.onnx").symlink_to("/dev/zero")
    found = find(folder)
    kinds = {"fifo": "a FIFO", "socket": "a socket", "device": "a device"}
    for name, kind in kinds.items():
        model = found.find(name)
        assert model
        for allow_links in (False, True):
            with pytest.raises(ModelError, match=f'^"{name}.onnx": expected a regular file, got {kind}$'):
                check_model_file(model, found.root, allow_links=allow_links)


def test_a_model_file_that_is_a_link(tmp_path: Path) -> None:
    """Inside the folder always, out of it with allow_links."""
    folder = tmp_path / "model"
    saved(folder / ".store")
    saved(tmp_path / "out")
    (folder / "inside.onnx").symlink_to(".store/model.onnx")
    (folder / "outside.onnx").symlink_to("../out/model.onnx")
    found = find(folder)
    inside, outside_ = found.models
    assert check_model_file(inside, found.root).operators == {"ai.onnx::Sum": 1}
    with pytest.raises(
        ModelError, match="is a link out of the model folder: copy the file, or set allow_links"
    ):
        check_model_file(outside_, found.root)
    assert check_model_file(outside_, found.root, allow_links=True).operators == {"ai.onnx::Sum": 1}


def test_a_model_file_below_a_linked_folder(tmp_path: Path) -> None:
    """The link may be anywhere on the way; data beside the real file is then beside the model."""
    real = tmp_path / "out"
    saved(real, outside("w.bin", 0, 16))
    (real / "w.bin").write_bytes(bytes(16))
    folder = tmp_path / "model"
    touch(folder, "x.txt")
    (folder / "a").symlink_to(real)
    found = find_models(folder, default_model=None, allow_links=True)
    [model] = found.models
    with pytest.raises(ModelError, match="is a link out of the model folder"):
        check_model_file(model, found.root)
    assert len(check_model_file(model, found.root, allow_links=True).external_data) == 1


def test_a_model_folder_that_is_itself_a_link(tmp_path: Path) -> None:
    """Where the folder lies is the operator's choice."""
    saved(tmp_path / "real")
    (tmp_path / "model").symlink_to("real")
    assert check(tmp_path / "model").format == "onnx"


def test_a_model_file_with_hard_links(folder: Path) -> None:
    saved(folder)
    (folder.parent / "other").hardlink_to(folder / "model.onnx")
    with pytest.raises(ModelError, match=r'"model.onnx" has 2 hard links: copy the file, or set allow_links'):
        check(folder)
    assert check(folder, allow_links=True).format == "onnx"


def test_model_files_that_cannot_be_read(folder: Path) -> None:
    touch(folder, "empty.onnx")
    with pytest.raises(ModelError, match=r'^"empty.onnx" is empty: expected an ONNX model$'):
        check(folder)
    for path in (folder / "gone.onnx", folder / "a\0b"):
        model = ModelFile("gone", path, "gone.onnx")
        with pytest.raises(
            ModelError, match=r'^"gone.onnx" cannot be read: (No such file|embedded null|.*null)'
        ):
            check_model_file(model, folder)


def test_messages_of_the_reader_name_the_file(folder: Path) -> None:
    touch(folder, "m/1/", "x.txt")
    (folder / "m/1/model.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelError, match=r'^"m/1/model.onnx" is a Git LFS pointer'):
        check(folder)


def test_links_in_a_circle_and_into_nothing_are_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").symlink_to("b.onnx")
    (tmp_path / "b.onnx").symlink_to("a.onnx")
    (tmp_path / "c.onnx").symlink_to("nothing")
    found = find(tmp_path)
    assert found.names == ("a", "b", "c")
    for model in found.models:
        with pytest.raises(ModelError, match=f'^"{model.relative}" is a broken link$'):
            check_model_file(model, found.root)


def ort_file(path: Path) -> None:
    """Writes a model in onnxruntime's own format."""
    ort: Any = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnx_path = path.with_name("source")
    saved(onnx_path)
    ort.InferenceSession(onnx_path / "model.onnx", options, providers=["CPUExecutionProvider"])


FORMATS: dict[str, tuple[str, str, str]] = {
    "onnx": ("m.onnx", "onnx", ""),
    "onnx in capitals": ("M.ONNX", "onnx", ""),
    "ort": ("m.ort", "ort", ""),
    "ort in capitals": ("M.ORT", "ort", ""),
    "ort called onnx": ("m.onnx", "ort", "is in ORT format, but ends in .onnx: rename it to end in .ort, "),
    "onnx called ort": ("M.ORT", "onnx", "is in ONNX format, but ends in .ort: rename it to end in .onnx, "),
}


@pytest.mark.parametrize(("name", "content", "refused"), FORMATS.values(), ids=FORMATS)
def test_content_and_suffix_agree(
    name: str, content: str, refused: str, tmp_path: Path, folder: Path
) -> None:
    """What is refused, onnxruntime could not load; what passes, it loads."""
    ort_file(tmp_path / "made.ort")
    source = tmp_path / ("made.ort" if content == "ort" else "source/model.onnx")
    (folder / name).write_bytes(source.read_bytes())
    ort: Any = importlib.import_module("onnxruntime")
    providers = ["CPUExecutionProvider"]
    if not refused:
        assert check(folder).format == content
        assert ort.InferenceSession(folder / name, providers=providers).get_inputs()[0].name == "x"
        return
    with pytest.raises(ModelError) as caught:
        check(folder)
    assert str(caught.value) == f'"{name}" {refused}because onnxruntime goes by the suffix'
    with pytest.raises(Exception, match="ONNXRuntimeError"):
        ort.InferenceSession(folder / name, providers=providers)
