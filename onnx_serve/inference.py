"""The one way of a request: (body, content type, accept) to (body, content type).

It knows no HTTP and runs as well on pieces of a file. Both codecs are chosen before anything is read; a
permit is taken before anything is decoded; then blocks flow: decoded, judged by ``conform``, run by the
engine, and encoded into an answer that is complete before its first byte is sent, so that an error can
still be an error.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

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
    MediaType,
)
from onnx_serve.codecs.media_types import negotiate, parse
from onnx_serve.errors import (
    DeadlineExceeded,
    DecodeError,
    NotAcceptable,
    PayloadTooLarge,
    SettingsError,
    UnsupportedMediaType,
    quote,
)
from onnx_serve.tensors import Signature, Tensors, conform

__all__ = ["Inference", "Limits", "Reply"]

# Below this a whole document always fits, and asking the kernel for its memory costs more than the request.
_ALWAYS_FITS_BYTES = 1 << 20


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
        self._limits = limits
        self._default = None if default_accept is None else _encodable(default_accept)

    @property
    def signature(self) -> Signature:
        """What the model takes and gives."""
        return self.engine.signature

    def __call__(self, body: Body, content_type: str | None, accept: str | None) -> Reply:
        """One request.

        Args:
            body: Read once, to its end unless an error comes first.
            content_type: The request's ``Content-Type``.
            accept: The request's ``Accept``.

        Raises:
            ServeError: Whatever was wrong; see ``errors``.
        """
        media_type, codec, decode = _request_codec(content_type)
        answer_type, encode = self._answer_codec(accept, codec)
        self._check_fits(body, codec, media_type)
        with self._admission.permit():
            # The sink is handed on with the reply; it is closed here only when there is none.
            sink = cast("BinaryIO", SpooledTemporaryFile(self._limits.answer_memory_bytes))  # noqa: SIM115
            try:
                answers = self._answers(decode(body, media_type, self.signature, self._options))
                encode(answers, sink, answer_type, self.signature, self._options)
            except DecodeError as ex:
                sink.close()
                raise DecodeError(f"{media_type.name}: {ex}") from ex
            except BaseException:
                sink.close()
                raise
        length = sink.tell()
        sink.seek(0)
        if length > self._limits.answer_memory_bytes:
            return Reply(answer_type.name, sink, length)
        with sink:
            return Reply(answer_type.name, sink.read(), length)

    def _answers(self, documents: Iterable[Document]) -> Iterator[Answer]:
        deadline = time.monotonic() + self._limits.timeout_s if self._limits.timeout_s else None
        for document in documents:
            feeds = self._feeds(document.blocks, deadline)
            yield Answer(self.engine.map(feeds), document.layout, document.request_id, document.outputs)

    def _feeds(self, blocks: Iterable[Tensors], deadline: float | None) -> Iterator[Tensors]:
        for block in blocks:
            if deadline is not None and time.monotonic() > deadline:
                raise DeadlineExceeded(f"the request took longer than {self._limits.timeout_s:g} s")
            yield conform(block, self.signature)

    def _answer_codec(self, accept: str | None, request: Codec) -> tuple[MediaType, Encode]:
        """The answer's media type and how to write it, chosen by RFC 9110, section 12.5.1."""
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

    def _check_fits(self, body: Body, codec: Codec, media_type: MediaType) -> None:
        """A document that cannot be cut into blocks must fit in memory whole, several times over."""
        needed = int(codec.whole * body.length)
        if body.length <= _ALWAYS_FITS_BYTES or not needed:
            return
        available = self._limits.available_bytes()
        if needed > available:
            raise PayloadTooLarge(
                f"{media_type.name}: a body of {body.length} bytes is decoded whole and needs about "
                f"{needed >> 20} MiB, of which {available >> 20} MiB are left; send application/jsonlines, "
                f"text/csv or application/x-npy, which are decoded in blocks"
            )


def _encodable(name: str) -> Codec:
    codec = table.BY_MEDIA_TYPE.get(parse(name).name)
    if codec is None or codec.encode is None:
        names = ", ".join(codec.media_types[0] for codec in table.TABLE if codec.encode)
        raise SettingsError(f"default_accept: expected one of {names}; got {quote(name)}")
    return codec


# Clients repeat themselves: the same few headers come with every request.
@lru_cache(maxsize=256)
def _negotiate(accept: str, default: tuple[str, ...]) -> tuple[MediaType, Encode]:
    encoders = {name: codec.encode for codec in table.TABLE for name in codec.media_types if codec.encode}
    offered = [*default, *(name for name in encoders if name not in default)]
    chosen = negotiate(accept, offered)
    if chosen is None:
        raise NotAcceptable(f"expected one of {', '.join(offered)} in Accept, got {quote(accept)}")
    return MediaType(chosen), encoders[chosen]


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
