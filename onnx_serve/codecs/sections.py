"""Parts of a stream as streams of their own, for libraries that count offsets from a file's first byte."""

import io
from typing import Any, BinaryIO

from onnx_serve.codecs.interface import Body

__all__ = ["Appended", "Bounded"]


class Bounded(io.RawIOBase):
    """A body as a file that can be read anywhere; the body's stream must be seekable.

    No read asks the stream for more bytes than there are, so that a forged length reserves no memory. Closing
    it leaves the stream open.
    """

    def __init__(self, body: Body) -> None:
        super().__init__()
        self._stream = body.stream if body.stream.seekable() else io.BytesIO(body.read_all())
        self._start = self._stream.tell()
        self.length = self._stream.seek(0, io.SEEK_END) - self._start
        self._pos = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes, as many as there are."""
        left = max(0, self.length - self._pos)
        size = left if size is None or size < 0 else min(size, left)
        self._stream.seek(self._start + self._pos)
        data = self._stream.read(size)
        self._pos += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves to an offset in the part, and tells it."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._pos, io.SEEK_END: self.length}[whence]
        self._pos = max(0, origin + offset)
        return self._pos

    def tell(self) -> int:
        """The offset in the part."""
        return self._pos


class Appended(io.RawIOBase):
    """What is written to a stream from now on. Closing it leaves the stream open."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self._written = 0

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any, /) -> int:
        """Writes bytes or a buffer of them."""
        size = memoryview(data).nbytes
        self._stream.write(data)
        self._written += size
        return size

    def tell(self) -> int:
        """How many bytes were written."""
        return self._written
