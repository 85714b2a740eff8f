"""What a calibration runs: the sample request that came with a model, else made-up inputs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_serve import feeds
from onnx_serve.blocks import cut
from onnx_serve.calibration_record import FeedKind
from onnx_serve.errors import DecodeError
from onnx_serve.rows import Sample
from onnx_serve.tensors import Feed, MapTable, RowAxis, Signature, conform, row_count

__all__ = ["Feeder", "element_count", "feeders", "read_sample", "sample_of", "value_bytes"]

_MAX_SAMPLE_BYTES = 8 << 20
_MAX_FEED_BYTES = 32 << 20
# What is run again is in the processor's cache, unless so much was run since.
_DISTINCT_ROWS = 128
_DISTINCT_BYTES = 4 << 20
# The formats that ``model_folder`` looks for.
_MEDIA_TYPES = {
    ".json": "application/json",
    ".csv": "text/csv",
    ".jsonl": "application/jsonlines",
    ".npy": "application/x-npy",
    ".npz": "application/x-npz",
}


@dataclass(frozen=True, slots=True)
class Feeder:
    """Feeds of any number of rows, all like one that was found.

    Attributes:
        signature: The model's.
        kind: Where the feed comes from.
        feed: The one that was found; of one row or more.
    """

    signature: Signature
    kind: FeedKind
    feed: Feed

    @property
    def rows(self) -> int:
        """Rows of ``feed``; 1 for a model without rows."""
        return self.rows_of(self.feed)

    @property
    def _whole(self) -> set[str]:
        return {spec.name for spec in self.signature.defaults}

    def rows_of(self, feed: Feed) -> int:
        """Rows of a feed; 1 for a model without rows."""
        return (row_count(feed[self.signature.inputs[0].name]) or 1) if self.signature.has_rows else 1

    def __call__(self, rows: int) -> Feed | None:
        """A feed of so many rows, or None if it would be too large.

        A model without rows gets its one feed, and one with fixed rows a feed of these.
        """
        if self.signature.row_axis is RowAxis.NONE:
            return self.feed
        if self.signature.row_axis is RowAxis.FIXED:
            rows = self.signature.fixed_rows
        if rows > 1 and value_bytes(self.feed) / self.rows * rows > _MAX_FEED_BYTES:
            return None
        if self.kind == "sample":
            return feeds.tiled(self.feed, self.signature, rows)
        return feeds.resized(self.feed, self.signature, rows)

    def several(self, rows: int) -> list[Feed]:
        """Feeds of so many rows, together of enough that no row comes again soon; none if they would be too large."""
        count = 1
        if self.signature.row_axis is RowAxis.FREE:
            room = int(_DISTINCT_BYTES * self.rows // max(value_bytes(self.feed) * rows, 1))
            count = max(min(_DISTINCT_ROWS // rows, room), 1)
        block = self(rows * count)
        if block is None or count == 1:
            return [] if block is None else [block]
        return list(cut(block, rows, self._whole))


def feeders(signature: Signature, sample: Feed | None) -> Iterator[Feeder]:
    """What to try, the best first.

    Args:
        signature: The model's.
        sample: A real feed, or None.
    """
    if sample is not None:
        yield Feeder(signature, "sample", sample)
    for feed in feeds.guesses(signature, 1):
        yield Feeder(signature, "made up", feed)


def read_sample(path: Path, signature: Signature) -> Feed:
    """The first records of a sample request, as one feed.

    Args:
        path: A file named ``sample`` with the suffix of a format.
        signature: The model's.

    Raises:
        ServeError: It is not what its suffix says, or not what the model takes.
        OSError: It cannot be read.
    """
    # They bring pyarrow and other parsers, which a model without a sample does not need.
    from onnx_serve.codecs import table  # noqa: PLC0415
    from onnx_serve.codecs.interface import Body, CodecOptions, MediaType  # noqa: PLC0415

    name = _MEDIA_TYPES.get(path.suffix.lower(), "")
    codec = table.BY_MEDIA_TYPE.get(name)
    if codec is None or codec.decode is None:
        raise DecodeError(f"expected a file ending in {', '.join(_MEDIA_TYPES)}")
    length = path.stat().st_size
    if length > _MAX_SAMPLE_BYTES:
        raise DecodeError(f"expected at most {_MAX_SAMPLE_BYTES} bytes, got {length}")
    with path.open("rb") as file:
        for document in codec.decode(Body(file, length), MediaType(name), signature, CodecOptions()):
            for block in document.blocks:
                return conform(block, signature)
    raise DecodeError("expected a record, got none")


def sample_of(path: Path | None) -> Sample | None:
    """The sample request as what a model is warmed up with; raises as ``read_sample`` does once it is asked."""
    if path is None:
        return None
    return lambda signature, rows: Feeder(signature, "sample", read_sample(path, signature))(rows)


def value_bytes(value: Any) -> int:
    """Bytes of a feed, of outputs, or of one of their values: of numbers as arrays, of strings as UTF-8."""
    if isinstance(value, np.ndarray):
        return sum(map(value_bytes, value.flat)) if value.dtype.kind == "O" else value.nbytes
    if isinstance(value, MapTable):
        return value.values.nbytes
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    if isinstance(value, dict):
        return sum(map(value_bytes, value.values()))
    if isinstance(value, list):
        return sum(map(value_bytes, value))
    return int(getattr(value, "nbytes", 8 if value is not None else 0))


def element_count(value: Any) -> int:
    """Elements of a feed or of one of its values."""
    if isinstance(value, np.ndarray):
        return math.prod(value.shape)
    if isinstance(value, dict):
        return sum(map(element_count, value.values()))
    if isinstance(value, list):
        return sum(map(element_count, value))
    return int(value is not None)
