"""Formats by their bytes, and folders that appear whole or not at all."""

import bz2
import errno
import gzip
import io
import json
import os
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters.artifact import Format, Golden, detect, hash_arrays, hash_file, write_model_folder
from converters.errors import ConversionError

GOLDEN = Golden({"x": np.zeros((2, 2))}, {"y": np.array(["a", "bc"])})


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name in names:
            packed.writestr(name, "x")
    return buffer.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


KNOWN = {
    "pickle 5": (pickle.dumps({"a": 1}, protocol=5), Format.PICKLE),
    "pickle 2": (pickle.dumps({"a": 1}, protocol=2), Format.PICKLE),
    "pickle 0": (pickle.dumps([1], protocol=0), Format.PICKLE),
    "joblib, gzip": (gzip.compress(pickle.dumps(1)), Format.PICKLE),
    "joblib, bz2": (bz2.compress(pickle.dumps(1)), Format.PICKLE),
    "skops": (archive("schema.json", "1.npy"), Format.SKOPS),
    "torchscript": (archive("m/data.pkl", "m/constants.pkl", "m/code/m.py"), Format.TORCHSCRIPT),
    "torch.save": (archive("m/data.pkl", "m/data/0"), Format.TORCH_SAVE),
    "torch.save, before 1.6": (pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2), Format.TORCH_SAVE),
    "torch.export": (archive("m/archive_format", "m/models/model.json"), Format.TORCH_EXPORT),
    "torch.export, first form": (archive("serialized_exported_program.json", "version"), Format.TORCH_EXPORT),
    "safetensors": (safetensors(), Format.SAFETENSORS),
    "xgboost JSON": (b' {\n "learner": {"attributes": {}}}', Format.XGBOOST_JSON),
    "xgboost UBJ": (b"{L\0\0\0\0\0\0\0\x07learner{L\0", Format.XGBOOST_UBJ),
    "lightgbm": (b"tree\nversion=v4\nnum_class=1\n", Format.LIGHTGBM_TEXT),
    "catboost": (b"CBM1\x10\0\0\0", Format.CATBOOST_CBM),
}
UNKNOWN = {
    "nothing": (b"", "an empty file"),
    "text": (b"hello world", 'begin with "hello world"'),
    "HDF5": (b"\x89HDF\r\n", "export Keras models"),
    "another archive": (archive("a.npy"), "another zip archive"),
    "half an archive": (archive("schema.json")[:30], "damaged or truncated archive"),
    "ONNX": (b"\x08\x08\x12\x07pytorch", "an ONNX model already"),
    "JSON": (b'{"a": 1}', "begin with"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_formats_are_told_by_their_bytes_not_by_their_names(name: str, tmp_path: Path) -> None:
    content, expected = KNOWN[name]
    path = tmp_path / "model.txt"
    path.write_bytes(content)
    assert detect(path) is expected


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_no_artifact_is_described(name: str, tmp_path: Path) -> None:
    content, words = UNKNOWN[name]
    path = tmp_path / "model.pkl"
    path.write_bytes(content)
    with pytest.raises(ConversionError) as caught:
        detect(path)
    assert words in str(caught.value)


def test_folders_and_missing_files_are_no_artifacts(tmp_path: Path) -> None:
    for path, words in ((tmp_path, "a folder"), (tmp_path / "none", "found none")):
        with pytest.raises(ConversionError, match=words):
            detect(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    content=st.binary(max_size=64),
    start=st.sampled_from([b"", b"PK\x03\x04", b"{L", b"\x80\x04", b"tree\n", b"CBM1"]),
)
def test_any_bytes_are_a_format_or_an_error(content: bytes, start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any"
    path.write_bytes(start + content)
    try:
        found: Format | ConversionError = detect(path)
    except ConversionError as ex:
        found = ex
    assert isinstance(found, Format) or "\n" not in str(found)


def test_hashes_tell_values_shapes_and_names_apart(tmp_path: Path) -> None:
    base = {"x": np.zeros((2, 3)), "t": np.array(["a"], object)}
    others: Sequence[dict[str, Any]] = (
        {"x": np.zeros((3, 2)), "t": base["t"]},
        {"y": base["x"], "t": base["t"]},
        {"x": base["x"], "t": np.array(["b"], object)},
        {"x": base["x"].astype(np.float32), "t": base["t"]},
    )
    hashes = {hash_arrays(arrays) for arrays in (base, *others)}
    assert len(hashes) == 1 + len(others)
    (tmp_path / "f").write_bytes(b"abc")
    assert hash_file(tmp_path / "f").startswith("ba7816bf")  # SHA-256 of "abc", FIPS 180-2


# --- Model folders ------------------------------------------------------------------------------------


def write(output: Path, **options: Any) -> None:
    write_model_folder(b"onnx", output, parity={"passed": True}, golden=GOLDEN, **options)


def test_a_model_folder_is_whole_and_readable_for_others(tmp_path: Path) -> None:
    weights = tmp_path / "w"
    weights.write_bytes(b"12")
    write(tmp_path / "m", external={"weights/w.bin": weights})
    folder = tmp_path / "m"
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "model.onnx", "parity.json", "sample.npz", "golden.npz", "weights/w.bin"
    }  # fmt: skip
    assert folder.stat().st_mode & 0o777 == 0o755
    assert json.loads((folder / "parity.json").read_text())["model_sha256"] == hash_file(
        folder / "model.onnx"
    )
    with np.load(folder / "golden.npz", allow_pickle=False) as golden:
        assert golden["y"].tolist() == ["a", "bc"]


def test_an_existing_folder_is_kept_unless_forced(tmp_path: Path) -> None:
    output = tmp_path / "m"
    output.mkdir()
    (output / "mine").write_text("x")
    with pytest.raises(ConversionError, match="add --force"):
        write(output)
    assert [path.name for path in output.iterdir()] == ["mine"]
    write(output, force=True)
    assert not (output / "mine").exists()
    assert (output / "model.onnx").read_bytes() == b"onnx"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_leaves_nothing_behind(
    call: str, force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "m"
    if force:
        output.mkdir()
        (output / "mine").write_text("x")
    rename = Path.rename

    failures = iter([True])

    def full(*arguments: Any) -> Any:
        """Fails once: putting the old folder back takes no space."""
        if call == "rename" and (Path(arguments[1]) != output or not next(failures, False)):
            return rename(*arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(*((os, "fsync", full) if call == "fsync" else (Path, "rename", full)))
        with pytest.raises(ConversionError, match="No space left on device"):
            write(output, force=force)
    assert [path.name for path in tmp_path.rglob("*")] == (["m", "mine"] if force else [])


@pytest.mark.parametrize(
    ("name", "words"), [("none/m", "does not exist"), ("file", "something else"), ("link", "something else")]
)
def test_places_that_cannot_be_a_folder_are_refused(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(ConversionError, match=words):
        write(tmp_path / name, force=True)


@pytest.mark.parametrize("location", ["../w", "/w"])
def test_external_data_stays_in_the_folder(location: str, tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"1")
    with pytest.raises(ConversionError, match="a place in the model folder"):
        write(tmp_path / "m", external={location: tmp_path / "w"})
    assert not (tmp_path / "m").exists()
