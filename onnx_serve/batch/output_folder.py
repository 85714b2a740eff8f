"""The folder that a batch job writes: one run at a time, and no file that is not whole.

An output is written beside its place under a hidden name, forced to disk, then renamed: whatever bears an output's
name is complete, and a run that was killed leaves nothing that counts. The hidden name is always the same, so the
next run writes over what such a run has left.
"""

import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from onnx_serve.errors import SettingsError, quote

__all__ = ["OutputFile", "OutputFolder", "is_output_name", "output_suffix"]

_LOCK = ".onnx-serve-transform.lock"
_COPY_BYTES = 1 << 20
# Small, so that a block's answer is seen on disk soon after the block.
_BUFFER_BYTES = 64 << 10
_PARQUET_TYPES = ("application/vnd.apache.parquet", "application/x-parquet")
_PARQUET = ".parquet"
_ENDINGS = (".out", f".out{_PARQUET}")


def output_suffix(media_type: str) -> str:
    """What follows ``NAME.out``: ``.parquet`` for an answer in Parquet, whose readers look for it, else nothing."""
    return _PARQUET if media_type in _PARQUET_TYPES else ""


def is_output_name(name: str) -> bool:
    """Whether an output is called like that."""
    return name.endswith(_ENDINGS)


class OutputFile:
    """One output while it is written. Not thread-safe.

    Args:
        path: Where it will be; folders above it are made.

    Attributes:
        sink: Where it can be written to directly; reads and seeks too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = path.with_name(f".{path.name}.partial")
        self._raw = _Partial(self._partial)
        self._file = io.BufferedRandom(self._raw, _BUFFER_BYTES)
        self.sink = cast("BinaryIO", self._file)
        self._length = 0

    @property
    def length(self) -> int:
        """Bytes written."""
        return self._length if self._file.closed else self._file.tell()

    @property
    def problem(self) -> OSError | None:
        """Why it could not be written to, once that has happened."""
        return self._raw.problem

    def append(self, content: bytes | BinaryIO) -> None:
        """Adds bytes, or the rest of a file.

        Raises:
            OSError: The disk is full, or broken.
        """
        if isinstance(content, bytes):
            self._file.write(content)
            return
        while chunk := content.read(_COPY_BYTES):
            self._file.write(chunk)

    def end_line(self) -> None:
        """Adds a newline unless the last byte is one, or there is none.

        Raises:
            OSError: The disk is full, or broken.
        """
        end = self._file.tell()
        if not end:
            return
        self._file.seek(end - 1)
        if self._file.read(1) != b"\n":
            self._file.write(b"\n")

    def commit(self, suffix: str = "") -> None:
        """Makes the file appear, complete.

        Args:
            suffix: Follows the name that ``path`` has.

        Raises:
            OSError: The disk is full, or broken; the file has not appeared.
        """
        self._file.flush()
        self._length = self._file.tell()
        os.fsync(self._raw.fileno())
        self._file.close()
        self._partial.replace(self.path.with_name(self.path.name + suffix))

    def discard(self) -> None:
        """Removes what was written; nothing happens after ``commit``."""
        with suppress(OSError):
            self._file.close()
        self._partial.unlink(missing_ok=True)


class _Partial(io.FileIO):
    """A file that remembers why it could not be written to: what writes into it may say it in other words."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.problem: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as ex:
            self.problem = self.problem or ex
            raise


class OutputFolder:
    """The folder with all outputs.

    Args:
        path: Made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def place(self, name: str) -> Path:
        """Where the output of the input of that name is, without the suffix that its format may add."""
        return self.path / f"{name}.out"

    def is_done(self, name: str, source: Path) -> bool:
        """Whether the output is there, and not older than its input."""
        try:
            newest = max(place.stat().st_mtime_ns for place in self._places(name) if place.exists())
            return newest >= source.stat().st_mtime_ns
        except (OSError, ValueError):
            return False

    def remove(self, name: str) -> None:
        """Removes the output of the input of that name, if there is one."""
        for place in self._places(name):
            with suppress(OSError):
                place.unlink()

    def _places(self, name: str) -> tuple[Path, ...]:
        return tuple(self.path / f"{name}{ending}" for ending in _ENDINGS)

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
        except FileExistsError as ex:
            raise SettingsError(f"--output {self.path}: expected a folder, got a file") from ex
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
