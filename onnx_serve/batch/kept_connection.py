"""A kept HTTP connection whose every exchange ends by one point in time.

A socket's own timeout starts anew with every byte that comes, so a server that drips its answer could hold a
caller for ever.
"""

import http.client
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import cast

from onnx_serve.codecs.interface import Body
from onnx_serve.errors import quote

__all__ = ["KeptConnection", "cause"]

# The platform wants a connection accepted within 250 ms.
_CONNECT_S = 10.0
_SEND_BYTES = 1 << 18


class KeptConnection:
    """One connection to a server, opened when it is needed.

    Whoever uses it holds ``in_use``, from the request to the end of the answer; ``abort`` needs no lock.

    Args:
        secure: Whether it is TLS.
        host: The server's name or address.
        port: None for the scheme's.
    """

    def __init__(self, secure: bool, host: str, port: int | None) -> None:  # noqa: FBT001  a URL's first part
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._http = kind(host, port)
        self._aborted = False
        self.in_use = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether an exchange would use a connection that another one has used."""
        return self._http.sock is not None

    def exchange(
        self, method: str, path: str, body: Body | None, headers: dict[str, str], timeout_s: float
    ) -> http.client.HTTPResponse:
        """Sends a request and reads the head of the answer.

        Args:
            method: ``GET`` or ``POST``.
            path: Of the resource, with its query.
            body: None for none; one of negative length is sent in chunks, whatever its length.
            headers: All but ``Host`` and those of the body's length.
            timeout_s: Seconds after which everything ends, the answer's last byte too.

        Raises:
            OSError: No connection, or the time is over.
            HTTPException: What comes is no answer.
        """
        deadline = time.monotonic() + timeout_s
        if self._http.sock is None:
            self._connect(min(timeout_s, _CONNECT_S))
        if self._aborted:
            raise ConnectionAbortedError("the job was stopped")
        cast("_DeadlineSocket", self._http.sock).set_deadline(deadline)
        self._http.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            self._http.putheader(name, value)
        chunked = body is not None and body.length < 0
        if chunked:
            self._http.putheader("Transfer-Encoding", "chunked")
        elif body is not None:
            self._http.putheader("Content-Length", str(body.length))
        # A container that refuses a body closes the connection while it is being sent; its answer is there.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._http.endheaders(_pieces(body) if body else None, encode_chunked=chunked)
        return self._http.getresponse()

    def _connect(self, timeout_s: float) -> None:
        self._http.timeout = timeout_s
        self._http.connect()
        sock: socket.socket = self._http.sock
        # http.client sets TCP_NODELAY itself; of the socket it needs what the wrapper has.
        self._http.sock = _DeadlineSocket(sock)

    def reset(self) -> None:
        """Closes the connection; the next exchange opens another one."""
        self._http.close()

    def abort(self) -> None:
        """Makes an exchange in another thread fail, now or, if it is still connecting, then."""
        self._aborted = True
        if self._http.sock is not None:
            with suppress(OSError):
                cast("_DeadlineSocket", self._http.sock).shutdown()


def cause(ex: OSError | http.client.HTTPException) -> str:
    """What went wrong in an exchange, in words that do not need a traceback beside them."""
    if isinstance(ex, http.client.IncompleteRead):
        return "the connection was closed in the middle of the answer"
    if isinstance(ex, http.client.RemoteDisconnected):
        return "the connection was closed without an answer"
    if isinstance(ex, http.client.HTTPException):
        return f"expected an answer in HTTP, got {quote(str(ex) or type(ex).__name__)}"
    if isinstance(ex, TimeoutError):
        return "no answer in time"
    return str(ex.strerror or ex)


def _pieces(body: Body) -> Iterator[bytes]:
    """The body in pieces; one that is as long as it says, however long its file has become."""
    left = body.length if body.length >= 0 else None
    while left is None or left:
        piece = body.stream.read(_SEND_BYTES if left is None else min(_SEND_BYTES, left))
        if not piece:
            return
        if left is not None:
            left -= len(piece)
        yield piece


class _DeadlineSocket:
    """What ``http.client`` needs of a connected socket, plain or TLS. For one thread, but for ``shutdown``.

    Args:
        sock: Owned from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._deadline = 0.0
        self._open_files = 0
        self._closed = False

    def set_deadline(self, deadline: float) -> None:
        """Ends everything from now on at that time.

        Args:
            deadline: In ``time.monotonic()``'s seconds.
        """
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        """Sends everything.

        Raises:
            TimeoutError: The time is over.
        """
        self._sock.settimeout(self._left())
        self._sock.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """What comes, as a file; the connection stays open until that is closed too."""
        self._open_files += 1
        return io.BufferedReader(_Reader(self), 1 << 16)

    def close(self) -> None:
        """Closes the connection once no file made of it is open."""
        self._closed = True
        if not self._open_files:
            self._sock.close()

    def shutdown(self) -> None:
        """Makes a call that waits in another thread fail at once."""
        self._sock.shutdown(socket.SHUT_RDWR)

    def _recv_into(self, buffer: "bytearray | memoryview") -> int:
        self._sock.settimeout(self._left())
        return self._sock.recv_into(buffer)

    def _close_file(self) -> None:
        self._open_files -= 1
        if self._closed and not self._open_files:
            self._sock.close()

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


class _Reader(io.RawIOBase):
    """The receiving half as a raw file."""

    def __init__(self, sock: _DeadlineSocket) -> None:
        self._socket = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview", /) -> int:  # type: ignore[override]  # the stub wants a private protocol
        return self._socket._recv_into(buffer)  # noqa: SLF001  the other half of one thing

    def close(self) -> None:
        if not self.closed:
            self._socket._close_file()  # noqa: SLF001
        super().close()
