"""What a batch job tells while it runs: a bar on a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from onnx_serve.batch.command_process import printable

__all__ = ["Progress", "duration"]

_TERMINAL_INTERVAL_S = 0.2
_PLAIN_INTERVAL_S = 30.0
_BAR_WIDTH = 10
_LINE_WIDTH = 79
_CLEAR = "\r\x1b[K"
_MINUTE, _HOUR = 60, 3600


class Progress:
    """Counts what is done and shows it now and then. Thread-safe.

    Args:
        stream: Where it is shown; one line that is redrawn, if that is a terminal.
        files: Inputs to be worked on.
        total_bytes: Their size on disk, by which the time left is reckoned.
        clock: Seconds from any point on.
        quiet: Whether only what ``line`` gets is shown.
    """

    def __init__(
        self,
        stream: TextIO,
        files: int,
        total_bytes: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        quiet: bool = False,
    ) -> None:
        self._stream = stream
        self._files = files
        self._total_bytes = total_bytes
        self._clock = clock
        self._quiet = quiet
        self._lock = threading.Lock()
        self._is_terminal = stream.isatty()
        self._begin = clock()
        self._shown = self._begin
        self._done = self._rows = self._bytes = 0

    def add(self, *, rows: int = 0, read_bytes: int = 0, files: int = 0) -> None:
        """Counts rows that are answered, bytes that are read, files that are finished."""
        with self._lock:
            self._rows += rows
            self._bytes += read_bytes
            self._done += files
            now = self._clock()
            interval = _TERMINAL_INTERVAL_S if self._is_terminal else _PLAIN_INTERVAL_S
            if not self._quiet and now - self._shown >= interval:
                self._shown = now
                text = self._describe(now - self._begin)
                self._write(f"{_CLEAR}{text[:_LINE_WIDTH]}" if self._is_terminal else f"{text}\n")

    def line(self, text: str) -> None:
        """Shows a line that stays; what a terminal would not show as one is escaped."""
        with self._lock:
            clear = _CLEAR if self._is_terminal and not self._quiet else ""
            self._write(f"{clear}{printable(text)}\n")

    def close(self) -> None:
        """Removes the bar."""
        with self._lock:
            if self._is_terminal and not self._quiet:
                self._write(_CLEAR)

    def _describe(self, elapsed: float) -> str:
        part = min(self._bytes / self._total_bytes, 1.0) if self._total_bytes else 1.0
        left = f"{duration(elapsed * (1 - part) / part)} left" if part > 0 else "time left unknown"
        rate = self._rows / elapsed if elapsed > 0 else 0.0
        filled = round(part * _BAR_WIDTH)
        bar = f"[{'#' * filled}{'-' * (_BAR_WIDTH - filled)}] " if self._is_terminal else ""
        return f"{bar}{part:.0%}, {self._done}/{self._files} files, {self._rows:,} rows, {rate:,.0f} rows/s, {left}"

    def _write(self, text: str) -> None:
        # A job goes on when nobody looks any more (``2>&1 | head``).
        with suppress(BrokenPipeError):
            self._stream.write(text)
            self._stream.flush()


def duration(seconds: float) -> str:
    """``0:07``, ``12:34`` or ``1:02:03``."""
    whole = round(seconds)
    minutes = f"{whole % _HOUR // _MINUTE}"
    if whole >= _HOUR:
        return f"{whole // _HOUR}:{minutes:0>2}:{whole % _MINUTE:02}"
    return f"{minutes}:{whole % _MINUTE:02}"
