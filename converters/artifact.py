"""Artifacts by their bytes, and model folders that appear whole or not at all.

``detect`` opens a file, reads a few kilobytes and tells its format; no byte is executed. The layouts:

- pickle: https://docs.python.org/3/library/pickletools.html; joblib: a pickle, possibly compressed
- skops: a zip archive with ``schema.json``, https://skops.readthedocs.io/en/stable/persistence.html
- torch: zip archives, https://docs.pytorch.org/docs/stable/notes/serialization.html and
  https://docs.pytorch.org/docs/stable/export/pt2_archive.html
- safetensors: https://github.com/huggingface/safetensors#format
- xgboost: JSON or UBJSON with ``learner``, https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html
- LightGBM: text that begins with ``tree``; CatBoost: ``CBM1``
"""

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import ConversionError
from onnx_serve.errors import quote
from onnx_serve.tensors import Array, Tensors

__all__ = [
    "EXTRAS",
    "FRAMEWORKS",
    "Format",
    "Golden",
    "check_output",
    "detect",
    "hash_arrays",
    "hash_file",
    "write_model_folder",
]

# Frameworks, with the extra of onnx-serve that brings what their conversion needs.
EXTRAS = {
    "sklearn": "convert-sklearn",
    "torch": "convert-torch",
    "xgboost": "convert-boosting",
    "lightgbm": "convert-boosting",
    "catboost": "convert-boosting",
}
FRAMEWORKS = tuple(EXTRAS)

_HEAD = 4096
_PROTOCOLS = (b"\x02", b"\x03", b"\x04", b"\x05")
# "{", an optional count, then a key as UBJSON counts it: https://ubjson.org/#container-types
_UBJ_KEYS = tuple(
    bytes([0x7B]) + marker for marker in (b"L\x00\x00\x00\x00\x00\x00\x00", b"i", b"U", b"#", b"$")
)
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x5d\x00\x00", b"\x04\x22\x4d\x18", b"\x78\x01", b"\x78\x5e",
               b"\x78\x9c", b"\x78\xda")  # fmt: skip
# The pickled number that opens a file of torch.save before 1.6 (torch/serialization.py, MAGIC_NUMBER).
_TORCH_LEGACY = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
# First bytes of pickles of protocol 0 and 1, for objects: a mark, or a global.
_OLD_PICKLES = (b"(", b"c", b"]", b"}")
_SAFETENSORS_MAX_HEADER = 100_000_000  # the library's own limit


class Format(Enum):
    """What a file holds.

    Attributes:
        framework: Whose it is, or None where only reading it tells (pickles).
        runs_code: Whether reading it runs code that the file names or holds.
    """

    PICKLE = ("pickle or joblib", None, True)
    SKOPS = ("skops", "sklearn", False)
    XGBOOST_JSON = ("xgboost JSON", "xgboost", False)
    XGBOOST_UBJ = ("xgboost UBJ", "xgboost", False)
    LIGHTGBM_TEXT = ("LightGBM text", "lightgbm", False)
    CATBOOST_CBM = ("CatBoost cbm", "catboost", False)
    TORCH_EXPORT = ("torch.export pt2", "torch", False)
    TORCHSCRIPT = ("TorchScript", "torch", True)
    TORCH_SAVE = ("torch.save", "torch", False)
    SAFETENSORS = ("safetensors", "torch", False)

    def __init__(self, title: str, framework: str | None, runs_code: bool) -> None:  # noqa: FBT001  a column
        self.title = title
        self.framework = framework
        self.runs_code = runs_code


@dataclass(frozen=True, slots=True)
class Golden:
    """A few rows and what the converted model answers to them, for the server to replay.

    Attributes:
        inputs: Arrays by input name, text as ``<U``.
        outputs: Arrays by output name, of as many rows, text as ``<U``.
    """

    inputs: Tensors
    outputs: Tensors


def detect(path: Path) -> Format:
    """The format of an artifact, told by its bytes.

    A file of ``torch.save`` may hold tensors alone or whole modules; only reading it tells, and
    ``torch.load(weights_only=True)`` does that without running code.

    Raises:
        ConversionError: It cannot be read, or is no artifact of a known format.
    """
    try:
        if not path.is_file():
            raise ConversionError(
                f"{quote(path.name)}: expected a file, found {'a folder' if path.is_dir() else 'none'}"
            )
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as ex:
        raise ConversionError(f"{quote(path.name)} cannot be read: {ex.strerror}") from ex
    found = _of_zip(path) if head.startswith(b"PK\x03\x04") else _of_head(head, size)
    if found is None:
        raise ConversionError(f"{quote(path.name)}: expected a trained model, got {_describe(head)}")
    return found


def _of_head(head: bytes, size: int) -> Format | None:
    text = head.lstrip()
    if head.startswith(b"CBM1"):
        return Format.CATBOOST_CBM
    if text.startswith((b"tree\n", b"tree\r\n")):
        return Format.LIGHTGBM_TEXT
    if text.startswith(b"{") and text[1:].lstrip().startswith(b'"') and b'"learner"' in head:
        return Format.XGBOOST_JSON
    if head.startswith(_UBJ_KEYS) and b"learner" in head:
        return Format.XGBOOST_UBJ
    # The header's length, in 8 bytes, then the header.
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= min(size, _SAFETENSORS_MAX_HEADER):
        return Format.SAFETENSORS
    if _TORCH_LEGACY in head[:16]:
        return Format.TORCH_SAVE
    # Protocol 2 and later open with the opcode PROTO and a number.
    if (head[:1] == b"\x80" and head[1:2] in _PROTOCOLS) or head.startswith((*_COMPRESSED, *_OLD_PICKLES)):
        return Format.PICKLE
    return None


def _of_zip(path: Path) -> Format | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as ex:
        raise ConversionError(f"{quote(path.name)} is a damaged or truncated archive: {ex}") from ex
    if "schema.json" in names:
        return Format.SKOPS
    inner = {name.partition("/")[2] or name for name in names}
    if "archive_format" in inner or any(name.endswith("serialized_exported_program.json") for name in inner):
        return Format.TORCH_EXPORT
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return Format.TORCHSCRIPT
    return Format.TORCH_SAVE if "data.pkl" in inner else None


def _describe(head: bytes) -> str:
    """What a file is that is no artifact, as far as its first bytes tell."""
    if not head:
        return "an empty file"
    if head.startswith(b"\x89HDF"):
        return "HDF5: export Keras models with model.export(format='onnx')"
    if head.startswith(b"PK\x03\x04"):
        return "another zip archive"
    if head[:1] == b"\x08" and b"ir_version" not in head and head[2:3] in (b"\x12", b"\x3a", b"\x42"):
        return "what looks like an ONNX model already: serve it as it is"
    return f"bytes that begin with {quote(head[:16])}"


def hash_file(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_arrays(arrays: Mapping[str, Array]) -> str:
    """A SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        plain = np.ascontiguousarray(array.astype(str) if array.dtype == object else array)
        digest.update(f"{name}|{plain.dtype.str}|{plain.shape}|".encode())
        digest.update(plain.tobytes())
    return digest.hexdigest()


def check_output(output: Path, *, force: bool) -> None:
    """Refuses an output that stands in the way, before any work is done.

    Raises:
        ConversionError: It exists and is no empty folder, or its parent is missing.
    """
    if not output.parent.is_dir():
        raise ConversionError(f"--output: the folder {quote(output.parent)} does not exist")
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise ConversionError(f"--output: expected a folder, {quote(output.name)} is something else")
    if output.is_dir() and any(output.iterdir()) and not force:
        raise ConversionError(f"--output: the folder {quote(output.name)} exists: add --force to replace it")


def write_model_folder(
    model: bytes,
    output: Path,
    *,
    parity: Mapping[str, Any],
    golden: Golden,
    external: Mapping[str, Path] | None = None,
    force: bool = False,
) -> None:
    """Writes a model folder: whole, or not at all.

    All files are written to a temporary folder beside ``output``, synchronised with the disk, and the
    folder is renamed; with ``force``, an existing folder is moved away first and removed last.

    Args:
        model: The content of ``model.onnx``.
        output: The folder; its parent exists.
        parity: The content of ``parity.json``; the model's SHA-256 is added.
        golden: Becomes ``sample.npz`` and ``golden.npz``.
        external: Files of external data, by their location relative to the model.
        force: Whether an existing folder is replaced.

    Raises:
        ConversionError: The folder exists, or the disk does not take it.
    """
    check_output(output, force=force)
    facts = {**parity, "model_sha256": hashlib.sha256(model).hexdigest()}
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    except OSError as ex:
        raise ConversionError(f"--output: {quote(output.parent)} cannot be written: {ex.strerror}") from ex
    try:
        folder.chmod(0o755)  # mkdtemp's 0700 would keep a container's user out
        for name, content in {
            "model.onnx": model,
            "parity.json": json.dumps(facts, indent=2).encode() + b"\n",
            "sample.npz": _npz(golden.inputs),
            "golden.npz": _npz(golden.outputs),
        }.items():
            _write(folder / name, content)
        for location, source in (external or {}).items():
            _copy(source, folder, location)
        _sync(folder)
        _move(folder, output)
    except OSError as ex:
        raise ConversionError(
            f"--output: {quote(output.name)} cannot be written: {ex.strerror or ex}"
        ) from ex
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _npz(arrays: Mapping[str, Array]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _copy(source: Path, folder: Path, location: str) -> None:
    target = folder / location
    if ".." in Path(location).parts or Path(location).is_absolute():
        raise ConversionError(f"external data: expected a place in the model folder, got {quote(location)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())


def _move(folder: Path, output: Path) -> None:
    """Renames the folder; the old one is put aside, so that a failure can put it back."""
    aside = folder.with_name(f"{folder.name}.old")
    replaced = output.is_dir()
    if replaced:
        output.rename(aside)
    try:
        folder.rename(output)
    except OSError:
        if replaced:
            aside.rename(output)
        raise
    _sync(output.parent)
    if replaced:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
