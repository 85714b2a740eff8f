"""HTTP in and out: waitress, tuned; signals; the drain at the end.

With ``channel``, ``request_parser`` and ``workers``, which it is made of, the only door to waitress.

One thread (the one in ``Server.run``) reads and writes all sockets; ``threads`` workers run the WSGI app, but for
requests that take next to no time, which that thread answers itself::

    accept -> Channel.recv -> RequestParser -> Workers -> worker: _Task -> app -> out buffer -> send
                                  |               |
                                  +-- error ------+-> _ErrorTask: our JSON, then the connection closes

Bodies are received whole before the app sees them: in memory up to a limit, then in an unlinked temporary file.
The subclasses below mend what waitress 3.0.2 (https://github.com/Pylons/waitress/tree/v3.0.2/src/waitress) leaves
open: each says what. Figures behind the settings: ``bench/waitress_settings.py``.
"""

import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from wsgiref.types import WSGIApplication

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.server import TcpWSGIServer

from onnx_serve.body_budget import BodyBudget
from onnx_serve.channel import Channel
from onnx_serve.errors import SettingsError
from onnx_serve.request_parser import HEADER_BYTES, LIBRARY_LOG
from onnx_serve.workers import Estimate, Workers, unknown

__all__ = ["Server", "default_connection_limit"]

LOG = logging.getLogger("onnx_serve")

_LARGEST_PORT = 65535
_BACKLOG = 2048
_RECV_BYTES = 1 << 20
_OUT_BUFFER_BYTES = 64 << 20
_CHANNEL_TIMEOUT_S = 120
_POLL_S = 1.0
_ACCEPTS_PER_WAKE = 64
_ACCEPT_PAUSE_S = 0.5
_REPEAT_LOG_S = 60.0
_MOST_CONNECTIONS = 4096
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


def default_connection_limit(descriptor_limit: int) -> int:
    """How many connections to keep open at once under a limit on open files.

    At least 1000 wherever the process may open 1152 files, and at most 4096, which one poll still looks
    through in a few milliseconds; the rest is for spooled bodies, model files and devices.

    Args:
        descriptor_limit: The soft ``RLIMIT_NOFILE``; negative means unlimited (``resource.RLIM_INFINITY``).
    """
    if descriptor_limit < 0:
        return _MOST_CONNECTIONS
    reserve = min(max(128, descriptor_limit // 8), descriptor_limit // 2)
    return max(1, min(descriptor_limit - reserve, _MOST_CONNECTIONS))


class _Listener(TcpWSGIServer):  # type: ignore[misc]  # waitress has no types
    """The listening socket and the connections accepted from it. For the I/O thread only."""

    logger = LIBRARY_LOG
    draining = False
    closed = False
    _accept_after = float("-inf")

    def readable(self) -> bool:
        """Whether to accept now; also the tick of the upkeep."""
        ready: bool = super().readable()
        return ready and time.monotonic() >= self._accept_after

    def handle_accept(self) -> None:
        """Accepts what waits, some at a time."""
        self.accept_waiting(_ACCEPTS_PER_WAKE)

    def accept_waiting(self, most: int) -> None:
        """Accepts up to ``most`` waiting connections, within the connection limit."""
        for _ in range(most):
            if len(self._map) >= self.adj.connection_limit or not self._accept_one():
                return

    def _accept_one(self) -> bool:
        try:
            accepted = self.accept()
        except OSError as error:
            self._accept_failed(error)
            return False
        if accepted is None:
            return False
        connection, address = accepted
        try:
            self.set_socket_options(connection)
            Channel(self, connection, address, self.adj, map=self._map)
        except OSError:
            connection.close()
        return True

    def _accept_failed(self, error: OSError) -> None:
        """Waits a little: the connection stays in the backlog and poll would report it again at once."""
        now = time.monotonic()
        if now - self._accept_after > _REPEAT_LOG_S:
            LOG.warning("cannot accept connections for now: %s", error.strerror)
        if error.errno in _EXHAUSTED:
            self._accept_after = now + _ACCEPT_PAUSE_S

    def maintenance(self, now: float) -> None:
        """Closes connections on which nothing moved for long: idle ones, and clients that stopped reading."""
        cutoff = now - self.adj.channel_timeout
        for channel in list(self.active_channels.values()):
            waits_for_client = channel.total_outbufs_len or not channel.requests
            if waits_for_client and channel.last_activity < cutoff:
                channel.handle_close()

    def pull_trigger(self) -> None:
        """Wakes the I/O thread. From any thread or signal handler.

        A full pipe already wakes it, and one that is closed in this very moment has nobody to wake.
        """
        if not self.closed and not self.task_dispatcher.is_dispatching:
            with contextlib.suppress(OSError):
                super().pull_trigger()

    def stop_listening(self) -> None:
        """Takes in the connections that clients see as made, then refuses more."""
        self.accept_waiting(_BACKLOG)
        wasyncore.dispatcher.close(self)

    def close_idle(self) -> int:
        """Closes the connections that wait for nothing; returns how many others there are."""
        for channel in list(self.active_channels.values()):
            if not channel.busy:
                channel.handle_close()
        return len(self.active_channels)

    def unanswered(self) -> int:
        """How many received requests have not been answered in full."""
        channels = self.active_channels.values()
        return sum(len(channel.requests) or bool(channel.total_outbufs_len) for channel in channels)

    def close(self) -> None:
        """Closes everything."""
        for channel in list(self.active_channels.values()):
            channel.handle_close()
        wasyncore.dispatcher.close(self)
        self.closed = True
        self.trigger.close()


class Server:
    """A listening HTTP server around a WSGI app.

    The socket is bound and listening once constructed: clients can connect, and are answered when ``run``
    runs. Serves once; ``run``, or ``close`` if it never runs, frees everything.

    Args:
        app: Called on ``threads`` threads at a time. ``environ["waitress.client_disconnected"]()`` tells it
            whether the client has closed the connection, or its sending side of it; asking costs a system call.
        host: Name or address to listen on; ``::`` takes IPv4 too where the system can.
        port: 0 for any free one; see ``port``.
        threads: Worker threads. A health check needs one that no inference can hold.
        body_memory_bytes: Larger bodies are spooled to a temporary file, which is gone after the answer.
        hard_body_limit_bytes: A body over it is refused with 413 while it is being received, so that most clients
            see a reset; 0 for none. Chunked bodies count with their framing.
        connection_limit: Further connections wait in the backlog; see ``default_connection_limit``.
        drain_timeout_s: How long ``run`` may go on after ``stop``.
        body_budget: Refuses bodies that memory cannot hold; None admits all.
        estimate: How long the app takes for a small request.

    Raises:
        SettingsError: The address cannot be listened on.
    """

    def __init__(  # noqa: PLR0913 - one keyword a setting
        self,
        app: WSGIApplication,
        *,
        host: str,
        port: int,
        threads: int,
        body_memory_bytes: int,
        hard_body_limit_bytes: int,
        connection_limit: int,
        drain_timeout_s: float = 25.0,
        body_budget: BodyBudget | None = None,
        estimate: Estimate = unknown,
    ) -> None:
        settings = Adjustments(
            recv_bytes=_RECV_BYTES,
            inbuf_overflow=body_memory_bytes,
            outbuf_overflow=_OUT_BUFFER_BYTES,
            outbuf_high_watermark=_OUT_BUFFER_BYTES,
            max_request_header_size=HEADER_BYTES,
            # Waitress refuses what reaches its limit.
            max_request_body_size=hard_body_limit_bytes + 1 if hard_body_limit_bytes else sys.maxsize,
            # Waitress counts its own two descriptors: this socket and the trigger.
            connection_limit=connection_limit + 2,
            backlog=_BACKLOG,
            channel_timeout=_CHANNEL_TIMEOUT_S,
            # Reading ahead costs 40 % of the small requests a second; seeing that a client left needs none.
            channel_request_lookahead=0,
            clear_untrusted_proxy_headers=True,
            expose_tracebacks=False,
            ident="onnx-serve",
            server_name=host,
        )
        if body_budget is not None:
            settings.body_budget = body_budget
        listening = _listen(host, port)
        self._threads = threads
        self._drain_timeout_s = drain_timeout_s
        self._stopping = False
        self._reason = ""
        self._aborting = False
        self._workers = Workers(estimate)
        self._map: dict[int, wasyncore.dispatcher] = {}
        self._listener = _Listener(
            app,
            self._map,
            _sock=listening,
            dispatcher=self._workers,
            adj=settings,
            sockinfo=(listening.family, listening.type, listening.proto, listening.getsockname()),
            bind_socket=False,
        )
        # A signal handler must not wait on a full pipe that only its own thread empties.
        os.set_blocking(self._listener.trigger.trigger, False)
        self.port: int = listening.getsockname()[1]

    def run(self) -> bool:
        """Serves until ``stop``, then drains.

        The drain refuses new connections at once, closes idle ones, and lets requests that are running, received
        or still arriving be answered in full.

        Returns:
            Whether all of them were answered within ``drain_timeout_s``.
        """
        try:
            with self._woken_by_signals():
                self._workers.start(self._threads)
                while not self._stopping:
                    self._serve_for(_POLL_S)
                return self._drain()
        finally:
            self.close()

    def stop(self, reason: str = "") -> None:
        """Makes ``run`` drain and return; during the drain, makes it return at once.

        From any thread and from signal handlers: it takes no lock. Before ``run``, makes it return soon.

        Args:
            reason: For the log, which says nothing without one.
        """
        self._reason = self._reason or reason
        if self._listener.draining:
            self._aborting = True
        self._stopping = True
        self._listener.pull_trigger()

    def handle_signals(self) -> None:
        """Has SIGTERM and SIGINT call ``stop``; from the main thread only.

        Process 1 of a container ignores SIGTERM unless a handler is installed:
        https://man7.org/linux/man-pages/man7/pid_namespaces.7.html
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda taken, _: self.stop(signal.Signals(taken).name))

    def close(self) -> None:
        """Frees the sockets of a server that will not run; ``run`` does so itself."""
        self._listener.close()

    @contextlib.contextmanager
    def _woken_by_signals(self) -> Iterator[None]:
        """Ends a poll on the main thread for a signal that another thread took, or that came just before it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.set_wakeup_fd(self._listener.trigger.trigger, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous)

    def _serve_for(self, seconds: float) -> None:
        """Reads and writes what sockets are ready, waiting so long for the first, and has requests answered."""
        wasyncore.poll2(0 if self._workers.has_received else seconds, self._map)
        self._workers.dispatch()

    def _drain(self) -> bool:
        deadline = time.monotonic() + self._drain_timeout_s

        def expired() -> bool:
            return self._aborting or time.monotonic() >= deadline

        if self._reason:
            LOG.info("%s: no new connections, finishing the requests at hand", self._reason)
        self._listener.draining = True
        self._listener.stop_listening()
        # Requests that have reached this machine count as received.
        self._serve_for(0)
        while self._listener.close_idle() and not expired():
            self._serve_for(max(0.0, min(_POLL_S, deadline - time.monotonic())))
        unanswered = self._listener.unanswered()
        running = self._workers.stop(expired)
        if unanswered or running:
            LOG.warning("stopped: %d request(s) abandoned", max(unanswered, running))
            return False
        LOG.debug("stopped: all requests answered")
        return True


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= _LARGEST_PORT:
        raise SettingsError(f"cannot listen on port {port}: expected 0 to {_LARGEST_PORT}")
    try:
        # Resolved first: create_server leaks its socket when a name cannot be encoded.
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        dual = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=dual)
    except (OSError, UnicodeError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise SettingsError(f"cannot listen on {host}:{port}: {cause}") from None
