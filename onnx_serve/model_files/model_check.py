"""Whether a model file, and every file that onnxruntime would open with it, may be opened.

A model comes from somewhere else: it may name files of the server, by a path, a link or external data. Nothing
here opens anything but the model file itself, and that only when it is a plain file of the model folder.
"""

import os
from pathlib import Path

from onnx_serve.errors import ModelError, quote
from onnx_serve.model_files.external_data import ExternalData
from onnx_serve.model_files.model_folder import ModelFile
from onnx_serve.model_files.onnx_file import OnnxFile, read_onnx_file
from onnx_serve.model_files.regular_file import reason_of, require_regular

__all__ = ["check_model_file"]


def check_model_file(model: ModelFile, root: Path, *, allow_links: bool = False) -> OnnxFile:
    """Reads a model file and checks all that onnxruntime would open with it.

    The folder must not change between this check and the load: the platform mounts it read-only.

    Args:
        model: One of ``ModelFolder.models``.
        root: ``ModelFolder.root``, which the file must not leave by a link.
        allow_links: Whether the model file itself may be a link out of ``root`` or have further hard links;
            its external data never may.

    Raises:
        ModelError: The file is not a plain file of the folder, is no ONNX model, has the suffix of another
            format, or one of its tensors lies in a file that is missing, too short, or not a plain file of
            the model file's folder.
    """
    _check_place(model, root, allow_links=allow_links)
    summary = read_onnx_file(model.path, name=model.relative)
    _check_suffix(model, summary)
    sizes: dict[str, int] = {}
    folder = Path(os.path.realpath(model.path.parent))
    for data in summary.external_data:
        place = (
            f"{quote(model.relative)}: external data {quote(data.location)} of tensor {quote(data.tensor)}"
        )
        size = sizes.get(data.location)
        if size is None:
            size = sizes[data.location] = _check_external_file(data.location, folder, place)
        _check_range(data, size, place)
    return summary


def _check_place(model: ModelFile, root: Path, *, allow_links: bool) -> None:
    name = quote(model.relative)
    try:
        real = Path(os.path.realpath(model.path, strict=True))
        status = real.lstat()
    except (OSError, ValueError) as error:
        if model.path.is_symlink():
            raise ModelError(f"{name} is a broken link") from None
        raise ModelError(f"{name} cannot be read: {reason_of(error)}") from None
    require_regular(status.st_mode, name)
    if allow_links:
        return
    if not real.is_relative_to(os.path.realpath(root)):
        raise ModelError(f"{name} is a link out of the model folder: copy the file, or set allow_links")
    if status.st_nlink != 1:
        raise ModelError(f"{name} has {status.st_nlink} hard links: copy the file, or set allow_links")


def _check_suffix(model: ModelFile, summary: OnnxFile) -> None:
    """Refuses what onnxruntime, which goes by the suffix (in any case), would call a broken file.

    https://onnxruntime.ai/docs/performance/model-optimizations/ort-format-models.html
    """
    by_suffix = "ort" if model.path.suffix.lower() == ".ort" else "onnx"
    if summary.format != by_suffix:
        raise ModelError(
            f"{quote(model.relative)} is in {summary.format.upper()} format, but ends in .{by_suffix}: rename it "
            f"to end in .{summary.format}, because onnxruntime goes by the suffix"
        )


def _check_external_file(location: str, folder: Path, place: str) -> int:
    """The size of the file at an external data's location, which is found to be harmless."""
    parts = location.split("/")
    if not location or "\0" in location or "\\" in location or location.startswith("/") or ".." in parts:
        raise ModelError(f"{place}: expected a relative path without .. or backslashes")
    # onnxruntime writes addresses of its memory as */_ORT_MEM_ADDR_/*: in a file, that is an attack.
    if parts[0] == "*":
        raise ModelError(f"{place}: expected the path of a file")
    try:
        real = Path(os.path.realpath(folder / location, strict=True))
        status = real.lstat()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = "the file is missing" if missing else f"the file cannot be read: {reason_of(error)}"
        raise ModelError(f"{place}: {reason}") from None
    if not real.is_relative_to(folder):
        raise ModelError(f"{place}: the file is a link out of the model's folder")
    require_regular(status.st_mode, place)
    if status.st_nlink != 1:
        raise ModelError(f"{place}: the file has {status.st_nlink} hard links, copy it")
    if not os.access(real, os.R_OK):
        raise ModelError(f"{place}: the file cannot be read: Permission denied")
    return status.st_size


def _check_range(data: ExternalData, size: int, place: str) -> None:
    end = data.offset + (data.length or 0)
    if end > size:
        raise ModelError(f"{place}: expected at least {end} bytes, the file has {size}")
