"""Who runs the app: a pool of threads, or for what takes next to no time the thread that reads the sockets.

Most of a small request is handing it from the thread that reads the sockets to another one and waiting for the
interpreter's lock there. What takes less time than that is answered between two polls
(docs/decisions/0010-brief-requests.md).
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping

from waitress.task import ThreadedTaskDispatcher

from onnx_serve.channel import Channel
from onnx_serve.request_parser import LIBRARY_LOG, RequestParser

__all__ = ["Estimate", "Workers", "unknown"]

LOG = logging.getLogger("onnx_serve")

# From path, headers by their name in WSGI without HTTP_, and body: seconds that the app takes at most, as far as is
# known; 0 if it waits for nothing, whatever other requests do.
Estimate = Callable[[str, Mapping[str, str], bytes], float]

_BRIEF_BYTES = 8 << 10
# The thread that reads the sockets takes what takes less time than handing it over, and what takes somewhat more if
# nothing else has come: others would be run beside it, or together.
_BRIEF_S = 0.25e-3
_LONE_S = 1e-3
_AT_ONCE = 64


def unknown(_path: str, _headers: Mapping[str, str], _body: bytes) -> float:
    """An estimate that leaves everything to the pool."""
    return float("inf")


class Workers(ThreadedTaskDispatcher):  # type: ignore[misc]  # waitress has no types
    """The threads that run the app. No log line for every request that waits; joined at the end.

    Args:
        estimate: How long the app will take for small bodies; called on the thread that reads the sockets.
    """

    logger = LIBRARY_LOG

    def __init__(self, estimate: Estimate = unknown) -> None:
        super().__init__()
        self.started: list[threading.Thread] = []
        # While it is true, the next poll is still to come, which sees everything that has changed.
        self.is_dispatching = False
        self._estimate = estimate
        self._reader = 0
        self._received: deque[Channel] = deque()

    def start_new_thread(self, target: Callable[[int], None], thread_no: int) -> None:
        """Starts one worker: a daemon, so that a hung request cannot keep the process."""
        thread = threading.Thread(
            target=target, args=(thread_no,), name=f"onnx-serve-{thread_no}", daemon=True
        )
        self.started.append(thread)
        thread.start()

    def start(self, threads: int) -> None:
        """Starts the pool, for requests that the calling thread will read."""
        self._reader = threading.get_ident()
        self.set_thread_count(threads)

    def add_task(self, task: Channel) -> None:
        """Takes a connection whose first request is complete."""
        if threading.get_ident() == self._reader:
            # The connection is locked while it receives: nothing may run now.
            self._received.append(task)
        else:
            self._hand_over(task)

    @property
    def has_received(self) -> bool:
        """Whether there is something to dispatch."""
        return bool(self._received)

    def dispatch(self) -> None:
        """Answers what is brief, and wakes a thread for everything else. For the thread that reads the sockets."""
        limit_s = _LONE_S if len(self._received) == 1 else _BRIEF_S
        self.is_dispatching = True
        # What comes in meanwhile, behind it on the same connection, waits for the next poll like everybody.
        for _ in range(min(len(self._received), _AT_ONCE)):
            channel = self._received.popleft()
            try:
                if self._is_brief(channel, limit_s):
                    channel.service()
                else:
                    self._hand_over(channel)
            except Exception:  # noqa: BLE001  it is logged, and costs one connection
                channel.handle_error()
        self.is_dispatching = False

    def stop(self, expired: Callable[[], bool]) -> int:
        """Ends the threads; returns how many were still running a request when time was up."""
        self.set_thread_count(0)
        for thread in self.started:
            while thread.is_alive() and not expired():
                thread.join(0.05)
        with self.lock:
            for waiting in (self._received, self.queue):
                while waiting:
                    waiting.popleft().cancel()
        return sum(thread.is_alive() for thread in self.started)

    def _is_brief(self, channel: Channel, limit_s: float) -> bool:
        request = channel.requests[0]
        # More than the socket takes would have to be sent by the very thread that waits for it.
        if request.error is not None or channel.total_outbufs_len:
            return False
        body = request.small_body(_BRIEF_BYTES)
        if body is None:
            return False
        seconds = self._seconds(request, body)
        # Threads of the pool may hold what the app waits for: permits, slots, locks.
        is_idle = not self.queue and not self.active_count
        return seconds == 0 or (is_idle and seconds <= limit_s)

    def _seconds(self, request: RequestParser, body: bytes) -> float:
        try:
            return self._estimate(request.path, request.headers, body)
        except Exception:
            # It sees what callers write, and the thread that it runs on is the only one of its kind.
            LOG.exception("the time of a request cannot be estimated")
            return float("inf")

    def _hand_over(self, channel: Channel) -> None:
        with self.lock:
            self.queue.append(channel)
            self.queue_cv.notify()
