"""Requests that nobody waits for any more, and the runs that they leave behind.

Clients hang up, and requests have a deadline. What such a request has not begun is not begun, and a run that goes on
for it is ended: a model may loop for ever on some input, and each of these runs would keep a slot.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from onnx_serve.errors import Abandoned, DeadlineExceeded

__all__ = ["PATIENCE_S", "Deadline", "Gone", "RunWatch", "Terminable"]

# Tells whether nobody waits for an answer any more.
Gone = Callable[[], bool]
# Clients that give up do so after seconds.
PATIENCE_S = 0.5
_LOOK_EVERY_S = 1.0


class Deadline:
    """How long one request may take from now on.

    Args:
        timeout_s: Seconds; 0 for without bound.
        clock: Seconds that only grow.
    """

    def __init__(self, timeout_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._end = clock() + timeout_s if timeout_s else math.inf

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return self._clock() > self._end

    def check(self) -> None:
        """Passes a request that has time.

        Raises:
            DeadlineExceeded: It has none left.
        """
        if self.passed:
            raise DeadlineExceeded(f"the request took longer than {self._timeout_s:g} s")

    def gone(self, gone: Gone | None) -> Gone | None:
        """Tells whether the time is over or the client has gone; None where neither can be."""
        if self._end == math.inf:
            return gone
        return lambda: self.passed or (gone is not None and gone())


class Terminable(Protocol):
    """An ``onnxruntime.RunOptions``: its run ends before the next node, those of loops included, once this is set."""

    terminate: bool


@dataclass(eq=False, frozen=True, slots=True)
class _Run:
    options: Terminable
    gone: Gone
    since: float


class RunWatch:
    """Ends the runs that nobody waits for any more. Thread-safe.

    Its thread lives while there are runs, and looks at those that take long: asking whether a client has gone costs a
    system call.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._runs: set[_Run] = set()
        self._thread: threading.Thread | None = None

    @contextmanager
    def over(self, options: Terminable, gone: Gone) -> Iterator[None]:
        """Watches the run that is made within.

        Args:
            options: Of this run alone.
            gone: Asked from another thread.

        Raises:
            Abandoned: The run failed because it was ended.
        """
        run = _Run(options, gone, self._clock())
        with self._lock:
            self._runs.add(run)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look_on, name="onnx-serve-watch", daemon=True)
                self._thread.start()
        try:
            yield
        except Exception as ex:
            if options.terminate:
                raise Abandoned("the client has gone, and its run was ended") from ex
            raise
        finally:
            with self._lock:
                self._runs.remove(run)

    def look(self) -> None:
        """Ends what nobody waits for now."""
        began_before = self._clock() - PATIENCE_S
        with self._lock:
            runs = [run for run in self._runs if run.since <= began_before]
        for run in runs:
            if run.gone():
                run.options.terminate = True

    def _look_on(self) -> None:
        while self._has_runs():
            time.sleep(_LOOK_EVERY_S)
            self.look()

    def _has_runs(self) -> bool:
        """Whether the thread is needed; else the next run starts another."""
        with self._lock:
            if not self._runs:
                self._thread = None
            return bool(self._runs)
