"""What the commands that run batch jobs have in common: how they are stopped, and how they print."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["EXIT_INTERRUPTED", "EXIT_TERMINATED", "Terminated", "print_out", "printable", "sigterm_raises"]

# As a shell has them: 128 and the signal's number.
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143


class Terminated(BaseException):
    """SIGTERM came; like Ctrl-C's it is nothing for those to catch who catch every error."""


@contextmanager
def sigterm_raises(kind: type[BaseException]) -> Iterator[None]:
    """Makes SIGTERM end the block as Ctrl-C does, so that nothing half done is left; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise kind

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_out(text: str) -> None:
    """Writes to standard output; a reader that has gone (``| head``) is no failure."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left is not to be tried again at exit: https://docs.python.org/3/library/signal.html#note-on-sigpipe
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def printable(text: str) -> str:
    """The text as one line that a terminal only shows: file names may hold newlines and escape sequences."""
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)
