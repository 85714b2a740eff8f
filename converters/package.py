"""A model folder as ``model.tar.gz``, the form in which SageMaker takes models.

The archive is flat (https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html unpacks it
into ``/opt/ml/model``), holds regular files only, and depends on nothing but names and contents: the same folder
gives the same bytes. It is kept only if the server serves what is unpacked from it, and answers the golden rows as
they were answered at the conversion.
"""

import contextlib
import gzip
import io
import os
import tarfile
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import ConversionError, ConversionRefused
from converters.serving import ServerProcess, serving
from onnx_serve.errors import ModelError, quote
from onnx_serve.golden_rows import GOLDEN_FILE, SAMPLE_FILE, GoldenRows, compare
from onnx_serve.model_files.model_folder import find_models
from onnx_serve.parity_record import read_parity_record

__all__ = ["package"]

_NPZ = "application/x-npz"


def package(folder: Path, output: Path, *, force: bool = False) -> str:
    """Packs a model folder; returns what was packed, for a person.

    Raises:
        ConversionError: The folder cannot be read, or the file exists or cannot be written.
        ConversionRefused: The server does not serve the packed model, or answers its golden rows otherwise.
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
    """Unpacks it as SageMaker would, and serves it.

    Raises:
        ConversionRefused: A model in it does not load, or answers otherwise than it did at its conversion.
    """
    with tempfile.TemporaryDirectory(prefix="onnx-serve-package-") as name:
        folder = Path(name)
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        try:
            found = find_models(folder, default_model=None)
            # The server replays golden rows as it loads a model; here they also take the way over HTTP.
            with serving(folder, settings={"replay_golden_rows": "true"}) as server:
                server.ask("/ping")
                for model in found.names:
                    server.ask(f"/v2/models/{urllib.parse.quote(model, safe='')}")
                if found.default is not None:
                    _ask_golden_rows(server, found.default.path.parent)
        except (ModelError, ConversionRefused) as ex:
            raise ConversionRefused(f"the packed model is not kept: {ex}") from ex


def _ask_golden_rows(server: ServerProcess, folder: Path) -> None:
    """Posts the golden rows, if there are any, and compares the answer.

    Raises:
        ModelError: It differs.
        ConversionRefused: There is none.
    """
    record = read_parity_record(folder)
    if record is None:
        return
    body = (folder / SAMPLE_FILE).read_bytes()
    answer = server.ask("/invocations", body, {"Content-Type": _NPZ, "Accept": _NPZ})
    with np.load(io.BytesIO(answer), allow_pickle=False) as arrays:
        answers: dict[str, Any] = dict(arrays)
    with np.load(folder / GOLDEN_FILE, allow_pickle=False) as arrays:
        # The folder's settings may have the server leave outputs out.
        expected = {name: array for name, array in arrays.items() if name in answers}
    if not expected:
        raise ConversionRefused("none of the outputs of the golden rows is answered")
    compare(GoldenRows({}, expected, record), answers)
