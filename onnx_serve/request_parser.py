"""HTTP requests as they are received: waitress's parser with what it leaves open mended.

Bodies are received whole: in memory up to a limit, then in an unlinked temporary file.
"""

import ctypes
import io
import logging
import re
import socket
from collections.abc import MutableMapping
from typing import Any

from waitress.adjustments import Adjustments
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.utilities import BadRequest, Error

from onnx_serve.body_budget import UNASKED_BYTES, UNLIMITED, BodyBudget

__all__ = [
    "HEADER_BYTES",
    "LIBRARY_LOG",
    "SMALL_RECV_BYTES",
    "InsufficientMemory",
    "InsufficientStorage",
    "RequestParser",
]

LOG = logging.getLogger("onnx_serve")

HEADER_BYTES = 1 << 16
SMALL_RECV_BYTES = 1 << 14
_CHUNK_LINE_BYTES = 1 << 10
_GROWTH_BYTES = 4 * UNASKED_BYTES

_REQUEST_LINE = re.compile(rb"[^ ]+ [^ ]+(?: HTTP/[0-9]\.[0-9])?")
_LEADING_SPACE = re.compile(rb"(?m)^([^:\r\n]*:)[ \t]+")
_TRANSFER_ENCODING = re.compile(rb"(?im)^transfer-encoding:[ \t]*([^\r\n]*)")


class _OneLine(logging.LoggerAdapter[logging.Logger]):
    """Waitress's own messages hold request paths as they came: no control character reaches the log."""

    def process(self, msg: object, kwargs: MutableMapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
        return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(msg)[:500]), kwargs


LIBRARY_LOG = _OneLine(LOG)


# https://docs.python.org/3/c-api/bytes.html#c.PyBytes_FromStringAndSize: "if v is NULL, the contents of the bytes
# object are uninitialized". ``bytes(length)`` writes zeros wherever malloc hands out memory used before.
_untouched_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)


class InsufficientStorage(Error):  # type: ignore[misc]  # waitress has no types
    """There is no room for the temporary file of a large body."""

    code = 507


class InsufficientMemory(Error):  # type: ignore[misc]  # waitress has no types
    """There is no memory for the body; its text says how much would be needed."""

    code = 413


class _Discarded:
    """A body that is not kept: received to its end all the same, since a client reads no answer before."""

    def append(self, piece: bytes) -> None:
        """Forgets the piece."""

    def getfile(self) -> io.BytesIO:
        """Nothing."""
        return io.BytesIO()

    def close(self) -> None:
        """Frees nothing."""

    def __len__(self) -> int:
        return 0


class _InPlace:
    """A body of known length in memory, where the socket's bytes go right to their place.

    The stream's own memory is received into, and its ``read()`` of all hands out that memory itself: the body is
    there once, and copied once, by the kernel.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        # All is reserved now, and none of it touched: a body that never comes takes no memory.
        self._file = io.BytesIO(_untouched_bytes(None, length))
        self._filled = 0

    def receive(self, connection: socket.socket, most: int) -> range:
        """Receives what there is, at most so much; returns which of the body's bytes came."""
        start = self._filled
        # No view outlives the call: the stream would hand out copies.
        with self._file.getbuffer() as memory, memory[start : start + most] as room:
            return range(start, start + connection.recv_into(room))

    def append(self, piece: bytes | range) -> None:
        """Takes the next piece: bytes, or which ones have been received."""
        if isinstance(piece, range):
            self._filled = piece.stop
        else:
            self._file.seek(self._filled)
            self._filled += self._file.write(piece)
        if self._filled == self._length:
            self._file.seek(0)

    def getfile(self) -> io.BytesIO:
        """The body, once it is whole; the same stream each time."""
        return self._file

    def close(self) -> None:
        """Frees the memory that the app does not hold."""
        self._file.close()


class RequestParser(HTTPRequestParser):  # type: ignore[misc]  # waitress has no types
    """A request as it is received, in time linear in its bytes and with bounded framing.

    Waitress's patterns take quadratic time on runs of spaces in a header and on some request lines (a 256 KiB
    header holds the one I/O thread for minutes), chunk lines may grow without end, and some invalid values
    raise instead of being answered.
    """

    # A request that fails on its first line has no others.
    command = ""
    path = ""
    error: Any = None
    _refusal: Error | None = None
    _awaited = 0  # bytes of memory that are counted in and have not come
    _asked_for = 0  # bytes of a chunked body that have been asked for

    def __init__(self, adj: Adjustments) -> None:
        super().__init__(adj)
        # Waitress hands nothing but its settings to a request.
        self._budget: BodyBudget = getattr(adj, "body_budget", UNLIMITED)

    def receive_in_place(self, connection: socket.socket, most: int) -> range | None:
        """Receives bytes of a body where they are kept, if it is one that can be received so.

        Returns:
            Which of its bytes came, for ``received``; none at the connection's end. None if there is no such body.
        """
        kept = None if self.body_rcv is None else self.body_rcv.getbuf()
        return kept.receive(connection, most) if isinstance(kept, _InPlace) else None

    def small_body(self, most: int) -> bytes | None:
        """The body, if it is of known length, in memory and no longer than so much; its stream stays where it is."""
        if self.body_rcv is None:
            return b""
        kept = self.body_rcv.getbuf()
        return (
            kept.getfile().getvalue() if isinstance(kept, _InPlace) and self.content_length <= most else None
        )

    def received(self, data: bytes | range) -> int:
        """Takes bytes of the request, or what ``receive_in_place`` gave; returns how many of them belong to it."""
        try:
            consumed: int = super().received(data)
        except OSError as error:
            LOG.error("cannot spool a request body: %s", error.strerror or "no temporary directory")  # noqa: TRY400 - the cause is in the line
            self.error = InsufficientStorage("")
            self.completed = True
            consumed = len(data)
        if self.chunked and not self.completed:
            framing = self.body_rcv
            if max(len(framing.control_line), len(framing.trailer)) > _CHUNK_LINE_BYTES:
                self.error = BadRequest("a chunk's size line or the trailer is too long")
                self.completed = True
        if self._awaited:
            self._settle(
                self._awaited if self.completed else self._budget.cost(consumed, spooled=self._spooled)
            )
        elif self.chunked and not self.completed and self._refusal is None:
            self._ask_for_growth()
        if self.completed:
            self.error = self.error or self._refusal
            if self.chunked and not (self.error or self._spooled):
                # Gives back what the stream grew ahead by, without which ``read()`` of all would be a copy.
                self.body_rcv.getfile().getvalue()
            # Waitress would answer 100 Continue and then wait for a body that never comes.
            self.expect_continue = False
        return consumed

    def close(self) -> None:
        """Frees the body, and the room that was kept for the rest of it."""
        self._settle(self._awaited)
        super().close()

    @property
    def _spooled(self) -> bool:
        if self.chunked:
            return bool(self.body_rcv.buf.overflowed)
        return bool(self.content_length > self.adj.inbuf_overflow)

    def _settle(self, cost: int) -> None:
        cost = min(cost, self._awaited)
        self._awaited -= cost
        if cost:
            self._budget.arrived(cost)

    def _ask_for_growth(self) -> None:
        """Lets a body of unknown length grow by another piece, if there is room."""
        if len(self.body_rcv.buf) < self._asked_for:
            return
        piece = _GROWTH_BYTES if self._spooled else min(_GROWTH_BYTES, self.adj.inbuf_overflow)
        self._asked_for = len(self.body_rcv.buf) + piece
        cost = self._budget.cost(piece, spooled=self._spooled)
        problem = self._budget.admit(cost)
        if problem is None:
            self._budget.arrived(cost)
        else:
            self._refuse(problem)

    def _refuse(self, problem: str) -> None:
        self._refusal = InsufficientMemory(problem)
        self.body_rcv.buf.close()
        self.body_rcv.buf = _Discarded()

    def parse_header(self, header_plus: bytes) -> None:
        """Parses the request line and the headers; raises ParsingError for what cannot be served."""
        first_line, newline, rest = header_plus.partition(b"\r\n")
        if not _REQUEST_LINE.fullmatch(first_line.rstrip()):
            raise ParsingError(f'the request line is invalid "{first_line.decode("latin-1")}"')
        # https://www.rfc-editor.org/rfc/rfc9112#section-5.2 lets a server refuse folded lines.
        if b"\n " in rest or b"\n\t" in rest:
            raise ParsingError("folded header lines are not supported")
        try:
            super().parse_header(first_line + newline + _LEADING_SPACE.sub(rb"\1", rest))
        except ValueError:
            raise ParsingError("the request target or Content-Length is invalid") from None
        self._check_framing(rest)
        if self._spooled:
            # It will not fit in memory: spool from the first byte.
            self.body_rcv.buf.overflow = 0
        if self.content_length:
            self._admit_body()

    def _admit_body(self) -> None:
        """Lets a body of known length in, if there is room; what stays in memory gets its place there."""
        cost = self._budget.cost(self.content_length, spooled=self._spooled)
        problem = self._budget.admit(cost)
        if problem is not None:
            self._refuse(problem)
            return
        self._awaited = cost
        if not self._spooled:
            self.body_rcv.buf = _InPlace(self.content_length)

    def _check_framing(self, headers: bytes) -> None:
        """Refuses what proxies and servers may frame differently: https://www.rfc-editor.org/rfc/rfc9112#section-6.1."""
        if "TRANSFER_ENCODING" in self.headers:
            raise ParsingError("Transfer-Encoding needs HTTP/1.1")
        if not self.chunked:
            return
        if "CONTENT_LENGTH" in self.headers:
            raise ParsingError("a request may not have both Content-Length and Transfer-Encoding")
        if [value.strip().lower() for value in _TRANSFER_ENCODING.findall(headers)] != [b"chunked"]:
            raise ParsingError("Transfer-Encoding must be chunked, once")
