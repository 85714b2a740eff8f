"""The one way of a request: (body, content type, accept) to (body, content type).

It knows no HTTP and runs as well on pieces of a file. Both codecs are chosen before anything is read; a
permit is taken before anything is decoded; then blocks flow: decoded, judged by ``conform``, run by the
engine, and encoded into an answer that is complete before its first byte is sent, so that an error can
still be an error.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from onnx_serve import record_errors
from onnx_serve.abandonment import PATIENCE_S, Deadline, Gone
from onnx_serve.admission import Admission
from onnx_serve.batching import Engine
from onnx_serve.codecs import table
from onnx_serve.codecs.interface import (
    Answer,
    Body,
    Codec,
    CodecOptions,
    Decode,
    Document,
    Encode,
    Layout,
    MediaType,
)
from onnx_serve.codecs.media_types import negotiate, parse
from onnx_serve.errors import (
    Abandoned,
    DecodeError,
    NotAcceptable,
    SettingsError,
    UnsupportedMediaType,
    quote,
)
from onnx_serve.tensors import Feed, Signature, Tensors, Values, conform

__all__ = ["SMALL_BYTES", "Inference", "Limits", "Reply", "check_wanted"]

# Up to this an answer is sent as it is; a longer one is read from where it was written, without another copy.
_COPIED_BYTES = 1 << 20
# Requests of so few bytes take next to no memory: many of them may be let in to share a run.
SMALL_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer.

    Attributes:
        media_type: Its bare media type: clients compare it to the letter.
        content: The bytes, or for a long answer a file at its start, closed by whoever reads it.
        length: Bytes of content.
    """

    media_type: str
    content: bytes | BinaryIO
    length: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take.

    Attributes:
        answer_memory_bytes: Longer answers are spooled to the temporary directory.
        available_bytes: Tells how much memory is left now.
        timeout_s: Seconds from the permit to the last block; 0 for none.
    """

    answer_memory_bytes: int
    available_bytes: Callable[[], int]
    timeout_s: float = 0


class Inference:
    """Answers requests for one model. Thread-safe.

    Args:
        engine: Runs the model.
        admission: Shared by all models of the server.
        options: The operator's choices about formats.
        limits: What one request may take.
        default_accept: The media type answered when the caller has no wish; None to choose by the request.

    Raises:
        SettingsError: No codec answers in ``default_accept``.
    """

    def __init__(
        self,
        engine: Engine,
        admission: Admission,
        options: CodecOptions,
        limits: Limits,
        default_accept: str | None = None,
    ) -> None:
        self.engine = engine
        self._admission = admission
        self._options = options
        self._failing = replace(options, record_errors="fail")
        self._limits = limits
        self._default = None if default_accept is None else _encodable(default_accept)

    @property
    def signature(self) -> Signature:
        """What the model takes and gives."""
        return self.engine.signature

    def __call__(
        self,
        body: Body,
        content_type: str | None,
        accept: str | None,
        sink: BinaryIO | None = None,
        on_block: Callable[[Values], None] | None = None,
    ) -> Reply:
        """One request.

        Args:
            body: Read once, to its end unless an error comes first.
            content_type: The request's ``Content-Type``.
            accept: The request's ``Accept``.
            sink: Takes the answer as blocks end, and the reply has no content; after an error what it holds means
                nothing. Without one the answer is complete before there is a reply.
            on_block: Told of the outputs of each block, or of its ``BadRecord``, before they are encoded.

        Raises:
            ServeError: Whatever was wrong; see ``errors``.
        """
        media_type, codec, decode = _request_codec(content_type)
        answer_type, encode, has_place = self._answer_codec(accept, codec)
        options = self._options if has_place else self._failing
        body = replace(body, room=self._limits.available_bytes)
        body.check_room(
            int(codec.whole * body.length),
            f"{media_type.name}: a body of {body.length} bytes",
            "send application/jsonlines, text/csv or application/x-npy, which are decoded in blocks",
        )
        since = time.monotonic()
        with self._admission.permit(small=self.engine.merges and body.length <= SMALL_BYTES):
            check_wanted(body, since)
            # It is handed on with the reply; it is closed here only when there is none.
            spool = cast("BinaryIO", SpooledTemporaryFile(self._limits.answer_memory_bytes))  # noqa: SIM115
            deadline = Deadline(self._limits.timeout_s)
            try:
                documents = decode(body, media_type, self.signature, options)
                answers = self._answers(documents, options, deadline, body.gone, on_block)
                encode(answers, spool if sink is None else sink, answer_type, self.signature, options)
            except DecodeError as ex:
                spool.close()
                raise DecodeError(f"{media_type.name}: {ex}") from ex
            except Abandoned:
                spool.close()
                deadline.check()
                raise
            except BaseException:
                spool.close()
                raise
        length = spool.tell()
        spool.seek(0)
        if length > min(_COPIED_BYTES, self._limits.answer_memory_bytes):
            return Reply(answer_type.name, spool, length)
        with spool:
            return Reply(answer_type.name, spool.read(), length)

    def _answers(
        self,
        documents: Iterable[Document],
        options: CodecOptions,
        deadline: Deadline,
        gone: Gone | None,
        on_block: Callable[[Values], None] | None,
    ) -> Iterator[Answer]:
        def judge(block: Tensors) -> Feed:
            deadline.check()
            return conform(block, self.signature)

        gone = deadline.gone(gone)
        for document in documents:
            outputs: Iterator[Values]
            if options.marks_errors and document.layout is Layout.RECORDS:
                outputs = record_errors.answer(document, self.engine, judge, gone)
            else:
                outputs = self.engine.map(map(judge, document.blocks), gone)
            if on_block is not None:
                outputs = _told(outputs, on_block)
            yield Answer(outputs, document.layout, document.request_id, document.outputs, document.sizes)

    def _answer_codec(self, accept: str | None, request: Codec) -> tuple[MediaType, Encode, bool]:
        """The answer's media type, how to write it, and whether it has a place for bad records.

        Chosen by RFC 9110, section 12.5.1.
        """
        return _negotiate(accept or "*/*", self._default_answer(request).media_types)

    def _default_answer(self, request: Codec) -> Codec:
        """The operator's choice; in batch jobs and for binary formats the request's own; else JSON."""
        if self._default is not None:
            return self._default
        mirrored = request.mirrored or self._options.batch
        if not mirrored or request.encode is None:
            return table.DEFAULT
        if request is table.NPY and len(self.signature.outputs) > 1:
            return table.NPZ
        return request


def _told(blocks: Iterable[Values], on_block: Callable[[Values], None]) -> Iterator[Values]:
    for block in blocks:
        on_block(block)
        yield block


def check_wanted(body: Body, since: float) -> None:
    """Spares the work of a request whose sender has gone, once it is its turn.

    Args:
        body: Tells whether its sender has gone.
        since: When the request began to wait, by the monotonic clock; only one that has waited long is looked at.

    Raises:
        Abandoned: It has.
    """
    if body.gone is not None and time.monotonic() - since >= PATIENCE_S and body.gone():
        raise Abandoned("the client has gone")


def _encodable(name: str) -> Codec:
    codec = table.BY_MEDIA_TYPE.get(parse(name).name)
    if codec is None or codec.encode is None:
        names = ", ".join(codec.media_types[0] for codec in table.TABLE if codec.encode)
        raise SettingsError(f"default_accept: expected one of {names}; got {quote(name)}")
    return codec


# Clients repeat themselves: the same few headers come with every request.
@lru_cache(maxsize=256)
def _negotiate(accept: str, default: tuple[str, ...]) -> tuple[MediaType, Encode, bool]:
    encoders = {name: codec.encode for codec in table.TABLE for name in codec.media_types if codec.encode}
    offered = [*default, *(name for name in encoders if name not in default)]
    chosen = negotiate(accept, offered)
    if chosen is None:
        raise NotAcceptable(f"expected one of {', '.join(offered)} in Accept, got {quote(accept)}")
    return MediaType(chosen), encoders[chosen], table.BY_MEDIA_TYPE[chosen].marks_errors


@lru_cache(maxsize=256)
def _request_codec(content_type: str | None) -> tuple[MediaType, Codec, Decode]:
    if not content_type:
        raise UnsupportedMediaType(
            f"expected a Content-Type, one of {', '.join(table.decodable())}; got none "
            f"(a transform job sends what TransformInput.ContentType says)"
        )
    media_type = parse(content_type)
    codec = table.BY_MEDIA_TYPE.get(media_type.name)
    if codec is None or codec.decode is None:
        raise UnsupportedMediaType(
            f"expected a Content-Type of {', '.join(table.decodable())}; got {quote(media_type.name)}"
        )
    return media_type, codec, codec.decode
