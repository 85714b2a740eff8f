"""The requests of a batch job: files, whole or cut to records, as calls that send them.

Plain: every file is one request of any size, whose answer goes into its output while it is made; a server gets
a large file in pieces (``pieces``). As the platform: records are packed into requests (``mini_batches``), filtered
and joined (``data_processing``). https://docs.aws.amazon.com/sagemaker/latest/dg/batch-transform.html
"""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import BinaryIO

from onnx_serve.batch.input_files import InputFile, plain_file
from onnx_serve.batch.media_types import CSV, JSON, JSON_LINES, RECORDIO, bare
from onnx_serve.batch.mini_batches import MiniBatch, line_batches, recordio_batches
from onnx_serve.batch.output_folder import OutputFile, OutputFolder
from onnx_serve.batch.pieces import CutFile, can_cut, checked, pieces
from onnx_serve.batch.record_counts import count_placeholders, count_records, has_lines
from onnx_serve.batch.request_plan import Answered, Plan, Target
from onnx_serve.codecs.interface import Body
from onnx_serve.errors import PayloadTooLarge, ServeError, UnsupportedMediaType
from onnx_serve.inference import Reply

__all__ = ["Event", "Requests"]

# A record of a job without a limit must still end somewhere.
_LONGEST_RECORD_BYTES = 1 << 30
# What the answer to a whole file is asked for in, where nothing else is: the same as went in.
_MIRRORED = (CSV, *JSON_LINES, JSON, RECORDIO)


@dataclass(frozen=True, slots=True)
class Event:
    """What a call gives: an answer to be appended, the reason why a file failed, or (with neither) its end.

    Attributes:
        file: The input.
        reply: The answer.
        rows: Records in the answer.
        bad_records: Of them, those answered by a placeholder.
        error: Why the file failed.
        output: What has the answer already.
        starts_line: Whether the answer must begin on a line of its own.
    """

    file: InputFile
    reply: Reply | None = None
    rows: int = 0
    bad_records: int = 0
    error: str = ""
    output: OutputFile | None = None
    starts_line: bool = False


class Requests:
    """The requests of a job: calls that send one, in order, file by file.

    Args:
        plan: How they are made.
        target: Answers them.
        output: Where answers to whole files go.
        on_bytes: Told of the bytes read from disk.

    Attributes:
        failed: Names of the files of which no more requests are wanted.
    """

    def __init__(
        self, plan: Plan, target: Target, output: OutputFolder, on_bytes: Callable[[int], None]
    ) -> None:
        self.failed: set[str] = set()
        self._plan = plan
        self._job = plan.job
        self._target = target
        self._output = output
        self._on_bytes = on_bytes
        self._written: dict[str, OutputFile] = {}

    def release(self, name: str) -> None:
        """Leaves the output of a file to the caller, who has its event."""
        self._written.pop(name, None)

    def close(self) -> None:
        """Discards the outputs that nobody has taken; no call may be under way."""
        for name in list(self._written):
            self._discard(name)

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
            elif self._plan.holds_bodies and can_cut(content_type, self._accept(content_type)):
                yield from self._cut(file, content_type)
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
        with _placed(batch):
            answered = self._answer(batch.data, content_type, whole=False, first=batch.first)
            if not self._target.counts_rows and has_lines(answered.reply.media_type):
                checked(answered, batch.records)
        return Event(file, answered.reply, batch.records, answered.bad_records)

    def _cut(self, file: InputFile, content_type: str) -> Iterator[Callable[[], Event]]:
        """One request, or as many as the server's payload needs."""
        accept = self._accept(content_type)

        def ask(data: bytes) -> Answered:
            return self._ask(Body(io.BytesIO(data), len(data)), content_type, accept)

        cut = CutFile(content_type, ask)
        try:
            with file.open(self._job.compression, self._on_bytes) as stream:
                batches = pieces(stream, content_type, self._plan.max_bytes)
                first, second = next(batches), next(batches, None)
                if second is None:
                    yield _guarded(file, lambda: _event(file, cut.whole(first)))
                else:
                    for piece in chain((first, second), batches):
                        if file.name in self.failed:
                            return
                        yield _guarded(file, partial(self._piece, file, cut, piece))
            yield _constant(Event(file))
        except (ServeError, OSError) as ex:
            yield _constant(Event(file, error=_reason(ex)))

    def _piece(self, file: InputFile, cut: CutFile, piece: MiniBatch) -> Event:
        with _placed(piece):
            answered = cut.answer(piece)
        return replace(_event(file, answered), starts_line=has_lines(answered.reply.media_type))

    def _whole(self, file: InputFile, content_type: str) -> Event:
        try:
            return self._ask_whole(file, content_type)
        except BaseException:
            self._discard(file.name)
            raise

    def _ask_whole(self, file: InputFile, content_type: str) -> Event:
        compressed = file.is_compressed(self._job.compression)
        with (
            file.open(self._job.compression, self._on_bytes) as stream,
            plain_file(stream, compressed=compressed) as (plain, length),
        ):
            limit = self._plan.max_bytes if self._job.platform else 0
            if limit and length > limit:
                raise PayloadTooLarge(
                    f"the file has {length} bytes, a request at most {limit} (MaxPayloadInMB): "
                    f"split it (--split-type line), or allow more (--max-payload-mb, 0 for any size)"
                )
            if self._job.processing.active:
                return _event(file, self._answer(plain.read(), content_type, whole=True, first=1))
            return self._stream(file, Body(plain, -1 if self._sends_chunks else length), content_type)

    def _stream(self, file: InputFile, body: Body, content_type: str) -> Event:
        """The answer to a file, in its output as far as the target writes it there."""
        try:
            output = self._written[file.name] = OutputFile(self._output.place(file.name))
        except OSError as ex:
            raise _unwritable(ex) from ex
        try:
            answered = self._ask(body, content_type, self._accept(content_type), output.sink)
        except Exception as ex:
            if output.problem is not None:
                raise _unwritable(output.problem) from ex
            raise
        return replace(_event(file, answered), output=output)

    def _ask(
        self, body: Body, content_type: str, accept: str | None, sink: BinaryIO | None = None
    ) -> Answered:
        """The target's answer, with all that can be counted in it."""
        answered = self._target(body, content_type, accept, sink)
        if self._target.counts_rows:
            return answered
        reply = answered.reply
        bad = count_placeholders(reply) if self._job.record_errors == "placeholder" else 0
        rows = count_records(reply) if has_lines(reply.media_type) else 1
        return Answered(reply, rows, bad)

    def _discard(self, name: str) -> None:
        output = self._written.pop(name, None)
        if output is not None:
            with suppress(OSError):
                output.discard()

    @property
    def _sends_chunks(self) -> bool:
        """Whether a container gets bodies of no announced length, as with ``MaxPayloadInMB=0``."""
        return self._job.platform and not self._plan.max_bytes and not self._target.counts_rows

    def _accept(self, content_type: str) -> str | None:
        """What is asked for: by the platform exactly the job's choice; else at best what was sent."""
        if self._job.accept is not None or self._job.platform or self._target.counts_rows:
            return self._job.accept
        name = bare(content_type)
        return name if name in _MIRRORED else None

    def _answer(self, data: bytes, content_type: str, *, whole: bool, first: int) -> Answered:
        """The answer to records in memory, with the job's filters and join."""
        processing = self._job.processing
        body = processing.request(data, content_type, whole=whole, first=first)
        answered = self._ask(Body(io.BytesIO(body), len(body)), content_type, self._accept(content_type))
        if processing.output_filter.is_root and not processing.join:
            return answered
        media_type = answered.reply.media_type
        answer = _content(answered.reply)
        kept = processing.answer(data, answer, self._job.accept or media_type, whole=whole, first=first)
        return replace(answered, reply=Reply(media_type, kept, len(kept)))


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


def _event(file: InputFile, answered: Answered) -> Event:
    return Event(file, answered.reply, answered.rows, answered.bad_records)


@contextmanager
def _placed(batch: MiniBatch) -> Iterator[None]:
    """Says in errors which records of the file they are about."""
    try:
        yield
    except (ServeError, OSError) as ex:
        last = batch.first + max(batch.records, 1) - 1
        raise ServeError(f"records {batch.first} to {last}: {_reason(ex)}") from ex


def _unwritable(ex: OSError) -> ServeError:
    return ServeError(f"cannot write the output: {ex.strerror or ex}")
