"""Permits: how many requests are worked on at once, and how many may wait for that."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from onnx_serve.errors import Overloaded

__all__ = ["Admission"]


class Admission:
    """Bounds the requests that are decoded, run and encoded at the same time. Thread-safe.

    Whoever is let in holds one of ``permits``; at most ``waiting_room`` others wait for one. That bounds
    the memory of all requests together, and the threads they hold, so that the health check always finds
    one. Small requests that may share a run are let in at once and count as waiting all the time: they can only
    be put together when many of them have come that far.

    Args:
        permits: Requests worked on at once.
        waiting_room: Requests that may wait.
        timeout_s: Seconds that one may wait; None for as long as it takes.
    """

    def __init__(self, permits: int, waiting_room: int, timeout_s: float | None) -> None:
        self.permits = permits
        self.waiting_room = waiting_room
        self._timeout_s = timeout_s
        self._free = threading.Semaphore(permits)
        self._lock = threading.Lock()
        self._waiting = 0

    @property
    def threads(self) -> int:
        """Threads that the server needs: one for each request let in or waiting, and two for the rest."""
        return self.permits + self.waiting_room + 2

    @contextmanager
    def permit(self, *, small: bool = False) -> Iterator[None]:
        """Holds a permit for the block's time.

        Args:
            small: Whether the request takes next to no memory and may share its runs with others.

        Raises:
            Overloaded: The waiting room is full, or no permit became free in time.
        """
        if small:
            with self._place_in_waiting_room():
                yield
            return
        if not self._free.acquire(blocking=False):
            self._wait()
        try:
            yield
        finally:
            self._free.release()

    def _wait(self) -> None:
        with self._place_in_waiting_room():
            if not self._free.acquire(timeout=self._timeout_s):
                raise Overloaded(f"no permit became free within {self._timeout_s:g} s")

    @contextmanager
    def _place_in_waiting_room(self) -> Iterator[None]:
        with self._lock:
            if self._waiting >= self.waiting_room:
                raise Overloaded(
                    f"{self.permits} requests are being worked on and {self._waiting} are waiting"
                )
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1
