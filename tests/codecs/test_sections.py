import io

from onnx_serve.codecs.interface import Body
from onnx_serve.codecs.sections import Appended, Bounded


def test_a_body_is_a_file_of_its_own() -> None:
    stream = io.BytesIO(b"before0123456789")
    stream.seek(6)
    file = Bounded(Body(stream, 10))

    assert file.readable()
    assert file.seekable()
    assert file.read(3) == b"012"
    assert file.tell() == 3
    assert file.seek(-2, io.SEEK_END) == 8
    assert file.seek(1, io.SEEK_CUR) == 9
    assert file.read() == b"9"
    assert file.read(5) == b""
    assert file.seek(-7) == 0
    assert file.read(None) == b"0123456789"


def test_no_more_is_asked_for_than_there_is() -> None:
    class Watched(io.BytesIO):
        asked = 0

        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            self.asked = max(self.asked, size)
            return super().read(size)

    stream = Watched(b"0123")
    Bounded(Body(stream, 4)).read(1 << 40)
    assert stream.asked == 4


def test_what_is_appended_counts_from_its_start() -> None:
    stream = io.BytesIO(b"before")
    stream.seek(0, io.SEEK_END)

    with Appended(stream) as file:
        assert file.writable()
        assert file.write(memoryview(b"0123")) == 4
        assert file.tell() == 4
    assert stream.getvalue() == b"before0123"


def test_closing_leaves_the_stream_open() -> None:
    stream = io.BytesIO(b"0123")
    Bounded(Body(stream, 4)).close()
    Appended(stream).close()

    assert not stream.closed
