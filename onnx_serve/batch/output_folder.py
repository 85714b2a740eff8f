"""The folder that a batch job writes: one run at a time, and no file that is not whole.

An output is written beside its place under a hidden name, forced to disk, then renamed: whatever bears an output's
name is complete, and a run that was killed leaves nothing that counts. The hidden name is always the same, so the
next run writes over what such a run has left.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from onnx_serve.errors import SettingsError, quote

__all__ = ["OutputFile", "OutputFolder"]

_LOCK = ".onnx-serve-transform.lock"
_COPY_BYTES = 1 << 20


class OutputFile:
    """One output while it is written. Not thread-safe.

    Args:
        path: Where it will be; folders above it are made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.length = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = path.with_name(f".{path.name}.partial")
        self._file = self._partial.open("wb", _COPY_BYTES)
        self._last = b"\n"

    def append(self, content: bytes | BinaryIO) -> None:
        """Adds bytes, or the rest of a file.

        Raises:
            OSError: The disk is full, or broken.
        """
        if isinstance(content, bytes):
            self._file.write(content)
            self.length += len(content)
            self._last = content[-1:] or self._last
            return
        while chunk := content.read(_COPY_BYTES):
            self.append(chunk)

    def end_line(self) -> None:
        """Adds a newline unless the last byte is one."""
        if self._last != b"\n":
            self.append(b"\n")

    def commit(self) -> None:
        """Makes the file appear, complete.

        Raises:
            OSError: The disk is full, or broken; the file has not appeared.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(self.path)

    def discard(self) -> None:
        """Removes what was written; nothing happens after ``commit``."""
        with suppress(OSError):
            self._file.close()
        self._partial.unlink(missing_ok=True)


class OutputFolder:
    """The folder with all outputs.

    Args:
        path: Made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def place(self, name: str) -> Path:
        """Where the output of the input of that name is."""
        return self.path / f"{name}.out"

    def is_done(self, name: str, source: Path) -> bool:
        """Whether the output is there, and not older than its input."""
        try:
            return self.place(name).stat().st_mtime_ns >= source.stat().st_mtime_ns
        except OSError:
            return False

    def remove(self, name: str) -> None:
        """Removes the output of the input of that name, if there is one."""
        with suppress(OSError):
            self.place(name).unlink()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps every other run out of the folder.

        A lock file with the process's id says who writes. Whether its writer still lives is told by a lock that
        the kernel holds on it and drops with the process, so one that a killed run has left is taken over, and
        a process id used again deceives nobody.

        Raises:
            SettingsError: The folder cannot be written to, or another run writes there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = self._acquire()
        except OSError as ex:
            raise SettingsError(f"--output {self.path}: {ex.strerror or ex}") from ex
        try:
            yield
        finally:
            with suppress(OSError):
                (self.path / _LOCK).unlink()
            os.close(descriptor)

    def _acquire(self) -> int:
        path = self.path / _LOCK
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The run that held it may have removed the file between the two calls.
                if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, f"{os.getpid()} on {os.uname().nodename}\n".encode())
                    return descriptor
            except BlockingIOError:
                holder = os.read(descriptor, 100).decode("utf-8", "replace").strip()
                os.close(descriptor)
                raise SettingsError(
                    f"--output {self.path}: another run writes there (process {quote(holder)}, {_LOCK})"
                ) from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
