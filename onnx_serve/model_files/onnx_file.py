"""What an ONNX file says of itself, read without onnx, protobuf or onnxruntime.

The file is mapped, and its fields are stepped over: weights are never touched, so that a file of 2 GB
costs the pages of its node list. Nothing here trusts the file. What cannot be read is a ``ModelError`` of one
line that says where, or what the file is instead.
"""

import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from onnx_serve.errors import ModelError, quote
from onnx_serve.model_files.external_data import ExternalData
from onnx_serve.model_files.onnx_walk import ModelWalk
from onnx_serve.model_files.regular_file import reason_of, require_regular
from onnx_serve.protobuf_wire import Buffer, MalformedError

__all__ = ["OnnxFile", "read_onnx", "read_onnx_file"]

# A protobuf message cannot be larger: https://protobuf.dev/programming-guides/proto-limits/
_MAX_FILE_BYTES = 2**31 - 1

# Domains whose operators onnxruntime has; com.microsoft.extensions and ai.onnx.contrib belong to
# onnxruntime-extensions, a library of its own: https://github.com/microsoft/onnxruntime-extensions
_BUILT_IN = re.compile(
    r"ai\.onnx(\.ml|\.training|\.preview|\.preview\.training)?|com\.microsoft(?!\.extensions$)(\..+)?"
)


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A summary of a model file.

    Attributes:
        format: By content: ``onnx`` (protobuf), or ``ort`` (FlatBuffers), of which nothing else is known.
        size_bytes: The file's size.
        ir_version: Version of the ONNX format; 0 when the file does not say.
        producer: Name and version of the program that wrote it.
        opsets: Version by domain, as the model imports them; the default domain is ``ai.onnx``.
        operators: How many nodes call ``domain::Operator``, with those of subgraphs and of model-local
            functions (each body once).
        custom_domains: Domains of operators that neither onnxruntime nor the model itself defines: they
            need a library of custom operators.
        external_data: Of all tensors that onnxruntime reads: initializers, sparse ones, and those in
            attributes, in the model's graph, its subgraphs and functions; not of ``training_info``.
        weight_bytes: Bytes of tensors in the file itself, as they are stored.
        metadata: ``metadata_props``; a value is cut at 64 KiB.
        inputs: Names of the graph's inputs that have no initializer, in order.
    """

    format: Literal["onnx", "ort"]
    size_bytes: int
    ir_version: int = 0
    producer: str = ""
    opsets: Mapping[str, int] = field(default_factory=dict)
    operators: Mapping[str, int] = field(default_factory=dict)
    custom_domains: tuple[str, ...] = ()
    external_data: tuple[ExternalData, ...] = ()
    weight_bytes: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()


def read_onnx_file(path: Path, *, name: str = "") -> OnnxFile:
    """Reads a model file.

    A file that shrinks while it is read kills the process, as with any mapped file: model folders are
    read-only.

    Args:
        path: A regular file, or a link to one.
        name: What messages call it; the file's name by default.

    Raises:
        ModelError: It is no regular file, cannot be read, or is not an ONNX model.
    """
    name = name or path.name
    try:
        # Opening a device may have effects, so its kind is asked before, and again of what was opened.
        _check_regular(path.stat(), name)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise ModelError(f"{quote(name)} cannot be read: {reason_of(error)}") from None
    try:
        _check_regular(os.fstat(descriptor), name)
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ModelError(f"{quote(name)} cannot be read: {reason_of(error)}") from None
    finally:
        os.close(descriptor)
    with mapped:
        return read_onnx(mapped, name=name)


def read_onnx(data: Buffer, *, name: str) -> OnnxFile:
    """Reads the bytes of a model file.

    Args:
        data: The whole file; not kept.
        name: What messages call it.

    Raises:
        ModelError: The bytes are not an ONNX model.
    """
    head = data[:1024]
    if not head:
        raise ModelError(f"{quote(name)} is empty: expected an ONNX model")
    # FlatBuffers: the root table's offset, then the identifier. A protobuf that has these four letters
    # there has a first word that points beyond the file.
    if head[4:8] == b"ORTM" and int.from_bytes(head[:4], "little") < len(data):
        return OnnxFile("ort", len(data))
    if len(data) > _MAX_FILE_BYTES:
        raise ModelError(
            f"{quote(name)} has {len(data)} bytes, and an ONNX file ends at 2 GiB: save the model with its "
            "weights as external data"
        )
    walk = ModelWalk(data)
    try:
        walk.run()
    except MalformedError as error:
        for pattern, what, advice in _LOOKALIKES:
            if pattern.match(head):
                raise ModelError(f"{quote(name)} is {what}, not an ONNX model: {advice}") from None
        raise ModelError(f"{quote(name)} is not an ONNX model: {error}") from None
    return OnnxFile(
        format="onnx",
        size_bytes=len(data),
        ir_version=walk.ir_version,
        producer=" ".join(filter(None, walk.producer.values())),
        opsets=walk.opsets or {"ai.onnx": 1},
        operators=walk.operators(),
        custom_domains=tuple(sorted(d for d in walk.foreign_domains() if not _BUILT_IN.fullmatch(d))),
        external_data=tuple(walk.external),
        weight_bytes=walk.weight_bytes,
        metadata=walk.metadata,
        inputs=walk.inputs(),
    )


def _check_regular(status: os.stat_result, name: str) -> None:
    require_regular(status.st_mode, quote(name))
    if not status.st_size:
        raise ModelError(f"{quote(name)} is empty: expected an ONNX model")


_CONVERT = "convert the model to ONNX first"
_LOOKALIKES = tuple(
    (re.compile(pattern, re.DOTALL), what, advice)
    for pattern, what, advice in (
        (rb"version https://git-lfs", "a Git LFS pointer", "run `git lfs pull` before packing the model"),
        (rb"PK\x03\x04.*data\.pkl", "a PyTorch archive", _CONVERT),
        (rb"PK\x03\x04", "a zip archive", "unpack it, or " + _CONVERT),
        (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "a compressed archive", "unpack it"),
        (rb".{257}ustar", "a tar archive", "unpack it"),
        (rb"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", "a PyTorch file", _CONVERT),
        (rb"\x80[\x02-\x05]", "a Python pickle", _CONVERT),
        (rb".{6}\x00\x00\{\s*\"", "a safetensors file, which has weights and no graph", _CONVERT),
        (rb"\x89HDF\r\n", "an HDF5 file", _CONVERT),
        (rb".{4}TFL3", "a TensorFlow Lite model", _CONVERT),
        (rb"\x93NUMPY", "a NumPy array", "expected a model"),
        (
            rb"\s*<(?i:!doctype|html|\?xml)",
            "an HTML or XML page",
            "the download has failed, fetch the model again",
        ),
        (rb"(?:\xef\xbb\xbf)?[\t\n\r\x20-\x7e]+\Z", "a text file", "expected ONNX's binary form"),
    )
)
