"""A model folder as ``model.tar.gz``, the form in which SageMaker takes models.

The archive is flat (https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html unpacks it
into ``/opt/ml/model``), holds regular files only, and depends on nothing but names and contents: the same folder
gives the same bytes. It is kept only if it loads from the archive and repeats its golden rows.
"""

import contextlib
import gzip
import os
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from converters.errors import ConversionError, ConversionRefused
from onnx_serve.errors import ModelError, quote
from onnx_serve.model import Model, SessionOptions, load_model
from onnx_serve.model_files.model_check import check_model_file
from onnx_serve.model_files.model_folder import find_models
from onnx_serve.tensors import MapTable, conform

__all__ = ["package"]


def package(folder: Path, output: Path, *, force: bool = False) -> str:
    """Packs a model folder; returns what was packed, for a person.

    Raises:
        ConversionError: The folder cannot be read, or the file exists or cannot be written.
        ConversionRefused: The packed model does not load, or does not repeat its golden rows.
    """
    if output.exists() and not force:
        raise ConversionError(f"--output: {quote(output.name)} exists: add --force to replace it")
    if not output.parent.is_dir():
        raise ConversionError(f"--output: the folder {quote(output.parent)} does not exist")
    try:
        files = list(_files(folder))
        if output.resolve().is_relative_to(folder.resolve()):
            raise ConversionError("--output: expected a place outside of the model folder")
        with _temporary(output) as temporary:
            _write(folder, files, temporary)
            _verify(temporary)
            temporary.replace(output)
    except OSError as ex:
        raise ConversionError(f"{quote(output.name)} cannot be written: {ex.strerror or ex}") from ex
    return f"{len(files)} files, {output.stat().st_size} bytes"


def _files(folder: Path) -> Iterator[Path]:
    """The folder's regular files, in order.

    Raises:
        ConversionError: It is none, is empty, or holds a link or a device.
    """
    if not folder.is_dir():
        raise ConversionError(f"expected a model folder, {quote(folder.name)} is none")
    found = False
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ConversionError(f"{quote(name)} is a link or no regular file: copy what it stands for")
        if path.is_file():
            found = True
            yield path
    if not found:
        raise ConversionError(f"the model folder {quote(folder.name)} is empty")


@contextlib.contextmanager
def _temporary(output: Path) -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(prefix=f".{output.name}-", dir=output.parent)
    os.close(descriptor)
    path = Path(name)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _write(folder: Path, files: list[Path], target: Path) -> None:
    with (
        target.open("wb") as raw,
        # Without a name and a time, the header is the same for the same contents.
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for path in files:
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
            entry.size, entry.mode, entry.mtime = path.stat().st_size, 0o644, 0
            with path.open("rb") as content:
                archive.addfile(entry, content)
    target.chmod(0o644)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _verify(archive: Path) -> None:
    """Unpacks it as SageMaker would, and serves it."""
    with tempfile.TemporaryDirectory(prefix="onnx-serve-package-") as name:
        folder = Path(name)
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        try:
            found = find_models(folder, default_model=None)
            for file in found.models:
                check_model_file(file, found.root)
                model = load_model(file.path, file.name, SessionOptions())
                if (file.path.parent / "golden.npz").is_file() and len(found.models) == 1:
                    _repeat(file.path.parent, model)
        except ModelError as ex:
            raise ConversionRefused(f"the packed model cannot be served: {ex}") from ex


def _repeat(folder: Path, model: Model) -> None:
    """Compares with the golden rows that the conversion left."""
    with (
        np.load(folder / "sample.npz", allow_pickle=False) as rows,
        np.load(folder / "golden.npz", allow_pickle=False) as golden,
    ):
        answers = model.run(conform(dict(rows), model.signature))
        for name, expected in golden.items():
            actual = answers[name]
            values = actual.values if isinstance(actual, MapTable) else np.asarray(actual)
            if expected.dtype.kind == "f":
                same = np.allclose(values, expected, rtol=1e-4, atol=1e-6, equal_nan=True)
            else:
                same = bool(np.array_equal(values.astype(str), expected.astype(str)))
            if not same:
                raise ConversionRefused(
                    f'the packed model does not repeat its golden rows: output "{name}" differs'
                )
