"""The input files of a batch job: found, named, opened."""

import glob
import gzip
import io
import itertools
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from onnx_serve.batch.command_process import printable
from onnx_serve.batch.output_folder import is_output_name
from onnx_serve.errors import DecodeError, ServeError, SettingsError, UnsupportedMediaType, quote

__all__ = ["CONTENT_TYPES", "InputFile", "find_inputs", "plain_file"]

CONTENT_TYPES = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".jsonl": "application/jsonlines",
    ".ndjson": "application/jsonlines",
    ".npy": "application/x-npy",
    ".npz": "application/x-npz",
    ".parquet": "application/vnd.apache.parquet",
    ".arrows": "application/vnd.apache.arrow.stream",
    ".recordio": "application/x-recordio-protobuf",
    ".rec": "application/x-recordio-protobuf",
    ".pbr": "application/x-recordio-protobuf",
    ".libsvm": "text/libsvm",
    ".svm": "text/libsvm",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".bmp": "image/bmp",
    ".gif": "image/gif",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
}
_BUFFER_BYTES = 1 << 20
_SPOOL_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class InputFile:
    """One input.

    Attributes:
        path: Where it is.
        name: Relative name of its output, without ``.out``: its own, below the folder that was given.
        size: Bytes on disk, 0 if it cannot be told.
        problem: Why it cannot be read; empty if nothing is known against it.
    """

    path: Path
    name: str
    size: int = 0
    problem: str = ""

    def content_type(self, chosen: str | None) -> str:
        """The job's choice, else what the suffix says; ``.gz`` is looked through.

        Raises:
            UnsupportedMediaType: The suffix says nothing.
        """
        if chosen is not None:
            return chosen
        suffixes = [suffix.lower() for suffix in self.path.suffixes]
        if suffixes and suffixes[-1] == ".gz":
            suffixes.pop()
        known = CONTENT_TYPES.get(suffixes[-1]) if suffixes else None
        if known is None:
            raise UnsupportedMediaType(
                f"expected a file of {' '.join(CONTENT_TYPES)}, or --content-type, got {quote(self.path.name)}"
            )
        return known

    def is_compressed(self, compression: str) -> bool:
        """Whether the file is to be decompressed: ``none``, ``gzip``, or ``auto`` for what its name says."""
        return compression == "gzip" or (compression == "auto" and self.path.suffix.lower() == ".gz")

    @contextmanager
    def open(self, compression: str, on_bytes: Callable[[int], None]) -> Iterator[BinaryIO]:
        """The file's bytes, decompressed. The stream can seek.

        Args:
            compression: As for ``is_compressed``.
            on_bytes: Told of the bytes read from disk, as they are read; what it raises ends the reading.

        Raises:
            OSError: The file cannot be read.
            DecodeError: It is not gzip, or has changed by the end of the block.
        """
        raw = _CountedFile(self.path, on_bytes)
        with io.BufferedReader(raw, _BUFFER_BYTES) as file:
            before = _state(raw.fileno())
            try:
                if self.is_compressed(compression):
                    with gzip.GzipFile(fileobj=file) as plain:
                        yield cast("BinaryIO", plain)
                else:
                    yield file
            except (gzip.BadGzipFile, EOFError, zlib.error) as ex:
                raise DecodeError(f"gzip: {ex}") from ex
            if _state(raw.fileno()) != before:
                raise DecodeError("the file was changed while it was read")


@contextmanager
def plain_file(stream: BinaryIO, *, compressed: bool) -> Iterator[tuple[BinaryIO, int]]:
    """The stream and its length; a compressed one is unpacked into a temporary file first.

    A gzip file does not say reliably how long its content is:
    https://www.rfc-editor.org/rfc/rfc1952#section-2.3.1 (ISIZE is modulo 2^32, and of the last member).

    Raises:
        ServeError: The temporary directory has no room.
    """
    if not compressed:
        length = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        yield stream, length
        return
    with SpooledTemporaryFile(_SPOOL_BYTES) as spool:
        while chunk := stream.read(_BUFFER_BYTES):
            try:
                spool.write(chunk)
            except OSError as ex:
                raise ServeError(
                    f"cannot unpack it into the temporary directory: {ex.strerror or ex}"
                ) from ex
        length = spool.tell()
        spool.seek(0)
        yield cast("BinaryIO", spool), length


class _CountedFile(io.FileIO):
    """A file that tells how much of it is read."""

    def __init__(self, path: Path, on_bytes: Callable[[int], None]) -> None:
        # Without O_NONBLOCK a named pipe put in the file's place would hang the job.
        super().__init__(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), closefd=True)
        self._on_bytes = on_bytes

    def readinto(self, buffer: "bytearray | memoryview", /) -> int | None:  # type: ignore[override]  # the stub wants a private protocol
        count = super().readinto(buffer)
        self._on_bytes(count or 0)
        return count

    def readall(self) -> bytes:
        data = super().readall()
        self._on_bytes(len(data))
        return data


def find_inputs(arguments: Iterable[str], output: Path) -> list[InputFile]:
    """The files that the arguments name, in their order, each once.

    An argument is a file, a folder with all that is below it, or a pattern (``**`` is any depth). Folders are
    read without hidden files, names that begin with an underscore (``_SUCCESS``: what Hadoop, Spark and Arrow
    take for no data) and the job's own outputs; links to folders are followed. Names are relative to the folder
    that was given, or to the part of the pattern before its first wildcard. A missing or unreadable input is in
    the list, with its problem, and so is a folder without any.

    Args:
        arguments: As on the command line.
        output: The folder of the outputs, to be left out where it lies within an input folder.

    Raises:
        SettingsError: Two inputs would have the same output.
    """
    found: dict[str, InputFile] = {}
    places: set[tuple[str, Path]] = set()
    for argument in arguments:
        for file in _expand(argument, _resolved(output)):
            place = (file.name, Path(os.path.normpath(file.path.absolute())))
            if place in places:
                continue
            if file.name in found:
                raise SettingsError(
                    printable(
                        f"expected one input for each output, got {found[file.name].path} and {file.path} "
                        f"for {file.name}.out"
                    )
                )
            places.add(place)
            found[file.name] = file
    return list(found.values())


def _expand(argument: str, output: Path) -> Iterator[InputFile]:
    path = Path(argument)
    if path.is_dir():
        files = list(_walk(path, output))
        yield from files or [InputFile(path, path.name or "input", problem="the folder holds no input")]
    elif not os.path.lexists(path) and glob.has_magic(argument):
        matches = sorted(glob.glob(argument, recursive=True))  # noqa: PTH207  takes absolute patterns, as a shell does
        if not matches:
            yield InputFile(path, argument.strip(os.sep) or "input", problem="no file matches")
        yield from _matched([Path(match) for match in matches], _fixed_part(path), output)
    else:
        yield _file(path, path.name or "input")


def _matched(matches: list[Path], folder: Path, output: Path) -> Iterator[InputFile]:
    in_circles: dict[Path, bool] = {}
    for match in matches:
        place = match.parent
        if place not in in_circles:
            in_circles[place] = _is_circle(folder, place.relative_to(folder))
        if not in_circles[place] and not match.is_dir() and not _is_output(match, output):
            yield _file(match, match.relative_to(folder).as_posix())


def _is_circle(folder: Path, below: Path) -> bool:
    """Whether the way down from a folder leads through a link to one above it."""
    if ".." in below.parts:
        return False
    way = [folder, *(folder.joinpath(*below.parts[: end + 1]) for end in range(len(below.parts)))]
    return len(set(map(_resolved, way))) < len(way)


def _fixed_part(pattern: Path) -> Path:
    """The folder before the first wildcard."""
    parts = itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts)
    return Path(*parts)


def _walk(folder: Path, output: Path) -> Iterator[InputFile]:
    problems: list[OSError] = []
    # Every folder with those above it, as they really are: a link to one of them would have no end.
    above = {os.fspath(folder): frozenset({_resolved(folder)})}
    for place, names, files in os.walk(folder, onerror=problems.append, followlinks=True):
        line = above.pop(place)
        names[:] = sorted(name for name in names if not name.startswith((".", "_")))
        for name in list(names):
            real = _resolved(Path(place, name))
            if real in line:
                names.remove(name)
            else:
                above[os.path.join(place, name)] = line | {real}  # noqa: PTH118  as os.walk names it
        for name in sorted(files):
            path = Path(place, name)
            if not name.startswith((".", "_")) and not _is_output(path, output):
                yield _file(path, path.relative_to(folder).as_posix())
    for problem in problems:
        path = Path(str(problem.filename))
        yield InputFile(path, path.relative_to(folder).as_posix(), problem=problem.strerror or str(problem))


def _is_output(path: Path, output: Path) -> bool:
    return is_output_name(path.name) and _resolved(path.parent).is_relative_to(output)


def _resolved(folder: Path) -> Path:
    """The folder's path without links and ``..``, by which it is compared with others."""
    return Path(os.path.realpath(folder))


def _file(path: Path, name: str) -> InputFile:
    try:
        status = path.stat()
    except (OSError, ValueError) as ex:
        return InputFile(path, name, problem=getattr(ex, "strerror", None) or str(ex))
    if not stat.S_ISREG(status.st_mode):
        return InputFile(path, name, problem="expected a regular file")
    return InputFile(path, name, status.st_size)


def _state(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns
