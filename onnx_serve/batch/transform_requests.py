"""The requests of a batch job: files, whole or cut to records, as calls that send them.

Plain: every file is one request of any size. As the platform: records are packed into requests (``mini_batches``),
filtered and joined (``data_processing``). https://docs.aws.amazon.com/sagemaker/latest/dg/batch-transform.html
"""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, Protocol

from onnx_serve.batch.input_files import InputFile, plain_file
from onnx_serve.batch.mini_batches import MiniBatch, line_batches, recordio_batches
from onnx_serve.batch.transform_job import TransformJob
from onnx_serve.codecs.interface import Body
from onnx_serve.errors import PayloadTooLarge, ServeError, UnsupportedMediaType
from onnx_serve.execution_parameters import ExecutionParameters
from onnx_serve.inference import Reply

__all__ = ["Event", "Plan", "Requests", "Target"]

_MIB = 1 << 20
_COUNT_BYTES = 1 << 20
_DEFAULT_PAYLOAD_MB = 6
# A record of a job without a limit must still end somewhere.
_LONGEST_RECORD_BYTES = 1 << 30
_LINE_TYPES = ("text/csv", "application/jsonlines", "application/jsonl", "application/x-ndjson")
# What the answer to a whole file is asked for in, where nothing else is: text in, the same text out.
_MIRRORED = (*_LINE_TYPES, "application/json")


class Target(Protocol):
    """What answers requests: a model in this process, or a container.

    Attributes:
        counts_rows: Whether a call tells the rows it answered, and shows them as they are.
    """

    counts_rows: bool

    def __call__(self, body: Body, content_type: str | None, accept: str | None) -> tuple[Reply, int]:
        """The answer to one request, and how many rows it has; 0 if that is not known."""
        ...

    def execution_parameters(self) -> ExecutionParameters | None:
        """What it answers to ``/execution-parameters``, or None."""
        ...

    def close(self) -> None:
        """Ends it; requests under way may fail."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """How requests are made.

    Attributes:
        job: What the author chose.
        concurrent: Requests at once.
        single: One record a request.
        max_bytes: Of one request; 0 for any size.
    """

    job: TransformJob
    concurrent: int
    single: bool = False
    max_bytes: int = 0

    @classmethod
    def whole_files(cls, job: TransformJob, concurrent: int) -> "Plan":
        """Every file is one request."""
        return cls(job, concurrent)

    @classmethod
    def of_platform(cls, job: TransformJob, answered: ExecutionParameters | None) -> "Plan":
        """As Batch Transform would, from the job's choices and the container's answer."""
        concurrent, strategy, payload_mb = job.resolve(answered)
        single = strategy == "SINGLE_RECORD" and job.split_type != "none"
        if payload_mb == 0 and job.processing.active:
            payload_mb = _DEFAULT_PAYLOAD_MB
        return cls(job, concurrent, single, payload_mb * _MIB)

    @property
    def splits(self) -> bool:
        """Whether files are cut; a job of any payload sends them whole, unless record by record."""
        return self.job.split_type != "none" and (self.single or self.max_bytes > 0)


@dataclass(frozen=True, slots=True)
class Event:
    """What a call gives: an answer to be appended, the reason why a file failed, or (with neither) its end."""

    file: InputFile
    reply: Reply | None = None
    rows: int = 0
    error: str = ""


class Requests:
    """The requests of a job: calls that send one, in order, file by file.

    Args:
        plan: How they are made.
        target: Answers them.
        on_bytes: Told of the bytes read from disk.

    Attributes:
        failed: Names of the files of which no more requests are wanted.
    """

    def __init__(self, plan: Plan, target: Target, on_bytes: Callable[[int], None]) -> None:
        self.failed: set[str] = set()
        self._plan = plan
        self._job = plan.job
        self._target = target
        self._on_bytes = on_bytes

    def of(self, files: Iterable[InputFile]) -> Iterator[Callable[[], Event]]:
        """Calls for all files; each gives an event and raises nothing that is foreseen."""
        for file in files:
            content_type = ""
            problem = file.problem
            if not problem:
                try:
                    content_type = self._content_type(file)
                except ServeError as ex:
                    problem = str(ex)
            if problem:
                yield _constant(Event(file, error=problem))
            elif self._plan.splits:
                yield from self._split(file, content_type)
            else:
                yield _guarded(file, partial(self._whole, file, content_type))
                yield _constant(Event(file))

    def _content_type(self, file: InputFile) -> str:
        content_type = file.content_type(self._job.content_type)
        if self._job.processing.join and content_type != self._job.accept:
            raise UnsupportedMediaType(
                f"a join needs the same format for both, got {content_type} and --accept {self._job.accept}"
            )
        return content_type

    def _split(self, file: InputFile, content_type: str) -> Iterator[Callable[[], Event]]:
        batches = line_batches if self._job.split_type == "line" else recordio_batches
        try:
            with file.open(self._job.compression, self._on_bytes) as stream:
                limit = self._plan.max_bytes or _LONGEST_RECORD_BYTES
                for batch in batches(stream, limit, single=self._plan.single):
                    if file.name in self.failed:
                        return
                    yield _guarded(file, partial(self._mini_batch, file, content_type, batch))
            yield _constant(Event(file))
        except (ServeError, OSError) as ex:
            yield _constant(Event(file, error=_reason(ex)))

    def _mini_batch(self, file: InputFile, content_type: str, batch: MiniBatch) -> Event:
        try:
            reply = self._answer(batch.data, content_type, whole=False, first=batch.first)
        except (ServeError, OSError) as ex:
            last = batch.first + max(batch.records, 1) - 1
            raise ServeError(f"records {batch.first} to {last}: {_reason(ex)}") from ex
        return Event(file, reply, batch.records)

    def _whole(self, file: InputFile, content_type: str) -> Event:
        compressed = file.is_compressed(self._job.compression)
        with (
            file.open(self._job.compression, self._on_bytes) as stream,
            plain_file(stream, compressed=compressed) as (plain, length),
        ):
            limit = self._plan.max_bytes
            if limit and length > limit:
                raise PayloadTooLarge(
                    f"the file has {length} bytes, a request at most {limit} (MaxPayloadInMB): "
                    f"split it (--split-type line), or allow more (--max-payload-mb, 0 for any size)"
                )
            if self._job.processing.active:
                reply = self._answer(plain.read(), content_type, whole=True, first=1)
                return Event(file, reply, _lines(reply) or 1)
            sent = -1 if self._sends_chunks else length
            reply, rows = self._target(Body(plain, sent), content_type, self._accept(content_type))
        return Event(file, reply, rows if self._target.counts_rows else _lines(reply) or 1)

    @property
    def _sends_chunks(self) -> bool:
        """Whether a container gets bodies of no announced length, as with ``MaxPayloadInMB=0``."""
        return self._job.platform and not self._plan.max_bytes and not self._target.counts_rows

    def _accept(self, content_type: str) -> str | None:
        """What is asked for: by the platform exactly the job's choice; else at best what was sent."""
        if self._job.accept is not None or self._job.platform or self._target.counts_rows:
            return self._job.accept
        name = content_type.partition(";")[0].strip().lower()
        return name if name in _MIRRORED else None

    def _answer(self, data: bytes, content_type: str, *, whole: bool, first: int) -> Reply:
        """The answer to records in memory, with the job's filters and join."""
        processing = self._job.processing
        body = processing.request(data, content_type, whole=whole, first=first)
        reply, _ = self._target(Body(io.BytesIO(body), len(body)), content_type, self._accept(content_type))
        if processing.output_filter.is_root and not processing.join:
            return reply
        answer = _content(reply)
        kept = processing.answer(data, answer, self._job.accept or reply.media_type, whole=whole, first=first)
        return Reply(reply.media_type, kept, len(kept))


def _guarded(file: InputFile, call: Callable[[], Event]) -> Callable[[], Event]:
    def guarded() -> Event:
        try:
            return call()
        except (ServeError, OSError, MemoryError) as ex:
            return Event(file, error=_reason(ex))

    return guarded


def _constant(event: Event) -> Callable[[], Event]:
    return lambda: event


def _reason(ex: BaseException) -> str:
    if isinstance(ex, MemoryError):
        return "not enough memory"
    return (ex.strerror if isinstance(ex, OSError) else None) or str(ex)


def _content(reply: Reply) -> bytes:
    if isinstance(reply.content, bytes):
        return reply.content
    with reply.content as file:
        return file.read()


def _lines(reply: Reply) -> int:
    """Lines of an answer in a format of lines, else 0."""
    if reply.media_type.partition(";")[0].strip().lower() not in _LINE_TYPES:
        return 0
    if isinstance(reply.content, bytes):
        return reply.content.count(b"\n")
    file: BinaryIO = reply.content
    lines = 0
    while chunk := file.read(_COUNT_BYTES):
        lines += chunk.count(b"\n")
    file.seek(0)
    return lines
