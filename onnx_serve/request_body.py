"""What every front door does with bodies: limits, compressed requests, and replies of any length.

Content codings: https://www.rfc-editor.org/rfc/rfc9110.html#section-8.4.1
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

import falcon

from onnx_serve.codecs.interface import Body
from onnx_serve.errors import DecodeError, PayloadTooLarge, UnsupportedMediaType, quote
from onnx_serve.repository import Repository

__all__ = ["check_length", "inflate", "read_body", "set_content"]

# zlib's: gzip's header and trailer, or zlib's own, which "deflate" means in HTTP.
_CODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_CHUNK_BYTES = 1 << 16
# Where the operator sets no limit, a compressed body still has one.
_UNBOUNDED_BYTES = 1 << 30
_UNBOUNDED_RATIO = 100
# Members of a gzip body: these, and one for each so many bytes.
_MEMBERS = 1000
_MEMBER_BYTES = 256


@contextmanager
def read_body(req: falcon.Request, repository: Repository, most: int | None = None) -> Iterator[Body]:
    """The request's body for the block's time, inflated if ``Content-Encoding`` says so.

    Args:
        req: waitress has received its whole body, chunked or not, and tells its length.
        repository: Says how long a body may be, and how many may be inflated at once.
        most: Most bytes of it, before and after inflating; None for what the operator allows.

    Raises:
        PayloadTooLarge: It is longer.
        UnsupportedMediaType: It is compressed in another way than gzip or deflate, or twice.
        DecodeError: It is not what its coding says.
        Overloaded: Too many compressed bodies are being answered.
    """
    limit = repository.body_limit_bytes if most is None else most
    length = req.content_length or 0
    check_length(length, limit)
    gone = req.env.get("waitress.client_disconnected")
    body = Body(cast("BinaryIO", req.stream), length, gone)
    coding = (req.get_header("Content-Encoding") or "identity").strip().lower()
    if coding == "identity":
        yield body
        return
    if coding not in _CODINGS:
        raise UnsupportedMediaType(f"expected a Content-Encoding of gzip or deflate, got {quote(coding)}")
    # What comes out of a small body may be large, so it is not let wait in numbers for a place.
    with (
        repository.inflating.permit(),
        SpooledTemporaryFile(repository.settings.body_memory_bytes) as file,
    ):
        sink = cast("BinaryIO", file)
        length = inflate(body, coding, limit, sink)
        sink.seek(0)
        yield Body(sink, length, gone)


def check_length(length: int, limit: int) -> None:
    """Refuses a body that is longer than the limit; 0 is none.

    Raises:
        PayloadTooLarge: It is.
    """
    if limit and length > limit:
        raise PayloadTooLarge(
            f"expected a body of at most {limit} bytes, got {length}; the limit is the job's "
            f"MaxPayloadInMB (SAGEMAKER_MAX_PAYLOAD_IN_MB) or the setting max_body_bytes"
        )


def inflate(body: Body, coding: str, limit: int, sink: BinaryIO) -> int:
    """Writes a compressed body's content, never more than the limit of it.

    Args:
        body: Compressed; its length is that of the compressed bytes.
        coding: ``gzip`` (of one member or several), ``x-gzip`` or ``deflate``.
        limit: Most bytes of content; 0 for 1 GiB or a hundred times the compressed bytes, whichever is more.
        sink: Where to.

    Returns:
        Bytes of content.

    Raises:
        PayloadTooLarge: There is more content.
        DecodeError: The body is not compressed in that way, or ends early.
    """
    most = limit or max(_UNBOUNDED_BYTES, _UNBOUNDED_RATIO * body.length)
    inflater = zlib.decompressobj(_CODINGS[coding])
    members = length = 0
    unread = body.length
    pending = b""
    while True:
        if not pending and unread:
            pending = body.stream.read(min(_CHUNK_BYTES, unread))
            unread = unread - len(pending) if pending else 0
        if inflater.eof:
            if not pending:
                return length
            members += 1
            inflater = _next_member(coding, members, body.length)
        try:
            piece = inflater.decompress(pending, _CHUNK_BYTES)
        except zlib.error as ex:
            raise DecodeError(f"Content-Encoding: expected {coding}: {str(ex).rpartition(': ')[2]}") from None
        if not (piece or pending or inflater.eof):
            raise DecodeError(f"Content-Encoding: the body ends within its {coding} data")
        pending = inflater.unconsumed_tail or inflater.unused_data
        length += len(piece)
        if length > most:
            raise PayloadTooLarge(f"Content-Encoding {coding}: expected at most {most} bytes of content")
        sink.write(piece)


def _next_member(coding: str, members: int, length: int) -> "zlib._Decompress":
    """For what follows the end of a stream; a file of gzip may have several members.

    Empty members by the million would cost time for nothing.
    """
    if coding == "deflate" or members > _MEMBERS + length // _MEMBER_BYTES:
        raise DecodeError(f"Content-Encoding: expected nothing behind the {coding} data")
    return zlib.decompressobj(_CODINGS[coding])


def set_content(resp: falcon.Response, content: bytes | BinaryIO, length: int) -> None:
    """Has a complete answer sent: bytes, or a file from its present position on."""
    if isinstance(content, bytes):
        resp.data = content
    else:
        resp.set_stream(content, length)
