"""One HTTP request as Batch Transform's agent makes it, and everything that can come of it, as data.

Nothing here raises for what a container does: a refused connection, garbage, silence and an answer without end
are outcomes to be reported. Every exchange is bounded in time and in memory.
"""

import http.client
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit

from onnx_serve.batch.kept_connection import KeptConnection, cause
from onnx_serve.codecs.interface import Body
from onnx_serve.errors import SettingsError, quote

__all__ = ["Address", "Client", "Exchange", "Failure", "parse_url"]

Failure = Literal["", "refused", "dropped", "timeout", "garbage", "too long"]

_READ_BYTES = 1 << 20
# Seen in the logs of transform jobs: https://github.com/aws/amazon-sagemaker-examples/issues/1620
_USER_AGENT = "Go-http-client/1.1"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a container answers, and the path before ``/ping``."""

    host: str
    port: int
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Exchange:
    """What came of a request.

    Attributes:
        failure: Why there is no answer; empty if there is one.
        detail: The failure in the words of the system or of Python.
        status: Of the answer, or 0.
        content_type: Of the answer, as it was sent; None without one.
        body: Of the answer.
        seconds: From the beginning of the connection, where there was none, to the last byte received.
    """

    failure: Failure = ""
    detail: str = ""
    status: int = 0
    content_type: str | None = None
    body: bytes = b""
    seconds: float = 0.0


def parse_url(url: str) -> Address:
    """The address of an ``http`` URL.

    Raises:
        SettingsError: It is something else.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = 80 if parts.port is None else parts.port
    except ValueError as ex:
        raise SettingsError(f"--url: expected http://HOST:PORT, got {quote(url)} ({ex})") from ex
    plain = not (parts.query or parts.fragment or parts.username) and not any(c <= " " for c in url)
    if parts.scheme != "http" or not parts.hostname or not plain:
        raise SettingsError(f"--url: expected http://HOST:PORT, got {quote(url)}")
    return Address(parts.hostname, port, parts.path.rstrip("/"))


class Client:
    """Requests to one address, on one connection that is kept open. For one thread, but for ``abort``.

    Args:
        address: Of the container.
        limit_bytes: Of an answer's body; of a longer one nothing is kept.
    """

    def __init__(self, address: Address, limit_bytes: int) -> None:
        self._prefix = address.prefix
        self._connection = KeptConnection(secure=False, host=address.host, port=address.port)
        self._limit_bytes = limit_bytes

    def get(self, path: str, timeout_s: float) -> Exchange:
        """``GET path``."""
        return self._exchange("GET", path, None, {}, timeout_s)

    def post(self, path: str, body: bytes | Body, headers: Mapping[str, str], timeout_s: float) -> Exchange:
        """``POST path``.

        Args:
            path: Of the resource.
            body: One of negative length is sent in chunks; its stream can seek.
            headers: All but those of the body's length.
            timeout_s: Until the answer's last byte.
        """
        sent = Body(io.BytesIO(body), len(body)) if isinstance(body, bytes) else body
        return self._exchange("POST", path, sent, headers, timeout_s)

    def close(self) -> None:
        """Closes the connection; the next request opens another."""
        self._connection.reset()

    def abort(self) -> None:
        """Ends a request that waits in another thread, and every later one."""
        self._connection.abort()

    def _exchange(
        self, method: str, path: str, body: Body | None, headers: Mapping[str, str], timeout_s: float
    ) -> Exchange:
        start = time.monotonic()
        reused = self._connection.is_open
        exchange = self._try(method, path, body, headers, timeout_s)
        # A server may close an idle connection at any time, which is nobody's failure.
        if reused and exchange.failure == "dropped":
            left = start + timeout_s - time.monotonic()
            exchange = self._try(method, path, body, headers, max(left, 0.001))
        return replace(exchange, seconds=time.monotonic() - start)

    def _try(
        self, method: str, path: str, body: Body | None, headers: Mapping[str, str], timeout_s: float
    ) -> Exchange:
        exchange = Exchange("dropped")
        try:
            if body is not None:
                body.stream.seek(0)
            with self._connection.exchange(
                method, self._prefix + path, body, {"User-Agent": _USER_AGENT, **headers}, timeout_s
            ) as answer:
                exchange = self._read(answer)
        except TimeoutError:
            exchange = Exchange("timeout", f"no complete answer within {timeout_s:g} s")
        except ConnectionRefusedError as ex:
            exchange = Exchange("refused", cause(ex))
        except (http.client.RemoteDisconnected, http.client.IncompleteRead, OSError) as ex:
            exchange = Exchange("dropped", cause(ex))
        except http.client.HTTPException as ex:
            exchange = Exchange("garbage", cause(ex))
        except ValueError as ex:
            exchange = Exchange("garbage", f"expected an answer in HTTP, got {quote(ex)}")
        finally:
            if exchange.failure:
                self._connection.reset()
        return exchange

    def _read(self, answer: http.client.HTTPResponse) -> Exchange:
        parts = []
        size = 0
        while part := answer.read(_READ_BYTES):
            size += len(part)
            if size > self._limit_bytes:
                return Exchange("too long", f"the answer is longer than {self._limit_bytes} bytes")
            parts.append(part)
        # A body of known length that is cut ends like a whole one in http.client when it is read in pieces.
        if answer.length:
            return Exchange(
                "dropped", f"the connection was closed {answer.length} bytes before the answer's end"
            )
        return Exchange("", "", answer.status, answer.headers.get("Content-Type"), b"".join(parts))
