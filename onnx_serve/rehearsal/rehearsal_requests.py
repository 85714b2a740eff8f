"""The requests of a rehearsed job: files, cut to records and packed as Batch Transform's agent does it."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from onnx_serve.batch.csv_rows import is_number
from onnx_serve.batch.input_files import InputFile
from onnx_serve.batch.mini_batches import MiniBatch, line_batches, recordio_batches
from onnx_serve.batch.request_plan import Plan
from onnx_serve.batch.transform_job import TransformJob
from onnx_serve.errors import DecodeError, PayloadTooLarge

__all__ = ["Streamed", "Work", "cut_file", "header_line"]

# A record of a job without a limit of its requests must still end somewhere.
_LONGEST_RECORD_BYTES = 1 << 30
_LOOKED_AT_BYTES = 1 << 16
_LOOKED_AT_LINES = 20


@dataclass(slots=True)
class Work:
    """One request, or with neither batch nor ``streamed`` the end of a file.

    Attributes:
        number: Of the request in its file, from 1.
        streamed: Whether the whole file is sent as it is read, without a limit.
    """

    file: InputFile
    media_type: str
    number: int = 0
    batch: MiniBatch | None = None
    body: bytes = b""
    streamed: bool = False


def cut_file(file: InputFile, media_type: str, job: TransformJob, plan: Plan) -> Iterator[Work]:
    """The requests of a file, before its records are filtered.

    Args:
        file: Read once; a file of any size that is one request is not read here.
        media_type: Of it.
        job: What the job's author chose.
        plan: How requests are made of it.

    Raises:
        PayloadTooLarge: A record, or a file that is not split, exceeds the payload.
        DecodeError: The file is not gzip, or not RecordIO.
        OSError: It cannot be read.
    """
    if not plan.splits and not plan.max_bytes:
        yield Work(file, media_type, 1, streamed=True)
        return
    with file.open(job.compression, lambda _: None) as stream:
        limit = plan.max_bytes or _LONGEST_RECORD_BYTES
        if plan.splits:
            cut = line_batches if job.split_type == "line" else recordio_batches
            batches = cut(stream, limit, single=plan.single)
        else:
            batches = _whole(stream.read(limit + 1), limit)
        for number, batch in enumerate(batches, 1):
            yield Work(file, media_type, number, batch)


class Streamed:
    """A file's stream for a body of any size, of which a failure to read is no failure of the connection.

    Args:
        stream: The file's.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def seek(self, offset: int) -> int:
        """As a file's."""
        return self._stream.seek(offset)

    def read(self, size: int = -1) -> bytes:
        """As a file's.

        Raises:
            DecodeError: The file cannot be read, or is not gzip.
        """
        try:
            return self._stream.read(size)
        except (OSError, EOFError, zlib.error) as ex:
            raise DecodeError((ex.strerror if isinstance(ex, OSError) else None) or str(ex)) from ex


def header_line(data: bytes) -> str:
    """The first line if it is unlike all that follow: no cell of it a number, all of theirs; else nothing."""
    lines = data[:_LOOKED_AT_BYTES].splitlines()[:_LOOKED_AT_LINES]
    if len(lines) < 2 or any(map(is_number, lines[0].split(b","))):  # noqa: PLR2004  a header and a record
        return ""
    # The last one may be cut.
    cells = [cell for line in lines[1:-1] or lines[1:] for cell in line.split(b",")]
    return lines[0][:80].decode("utf-8", "replace") if all(map(is_number, cells)) else ""


def _whole(data: bytes, limit: int) -> Iterator[MiniBatch]:
    if len(data) > limit:
        raise PayloadTooLarge(
            f"the file is longer than the {limit} bytes that MaxPayloadInMB allows a request"
        )
    yield MiniBatch(data, 1, 1)
