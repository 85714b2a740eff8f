"""Compressed bodies: exact, bounded, and never trusted."""

import dataclasses
import gzip
import io
import zlib

import pytest
from falcon.testing import create_req
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_serve.codecs.interface import Body
from onnx_serve.errors import DecodeError, Overloaded, PayloadTooLarge, UnsupportedMediaType
from onnx_serve.machine import read_machine
from onnx_serve.repository import Repository
from onnx_serve.request_body import inflate, read_body
from onnx_serve.settings import Settings


def content(data: bytes, coding: str = "gzip", limit: int = 0) -> bytes:
    sink = io.BytesIO()
    length = inflate(Body(io.BytesIO(data), len(data)), coding, limit, sink)
    assert length == len(sink.getvalue())
    return sink.getvalue()


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4), st.integers(1, 4000))
@settings(max_examples=60, deadline=None)
def test_what_was_compressed_comes_back(members: list[bytes], times: int) -> None:
    """Also from several gzip members, and where content or body exceed what is read at once."""
    data = [member * times for member in members]

    assert content(b"".join(map(gzip.compress, data))) == b"".join(data)
    assert content(zlib.compress(data[0]), "deflate") == data[0]


def test_large_and_incompressible_bodies() -> None:
    data = bytes(range(256)) * 3000 + zlib.compress(bytes(200_000))

    assert content(gzip.compress(data, 0)) == data


def test_the_limit_is_on_the_content() -> None:
    data = gzip.compress(bytes(1000))

    assert content(data, limit=1000) == bytes(1000)
    with pytest.raises(PayloadTooLarge, match="at most 999 bytes"):
        content(data, limit=999)


def test_a_bomb_stops_at_the_limit() -> None:
    """A gigabyte of zeros in a megabyte, and in it another: what is written stays below the limit."""
    bomb = zlib.compressobj(9, wbits=31)
    data = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(64)) + bomb.flush()

    class Counting(io.BytesIO):
        written = 0

        def write(self, piece: object) -> int:
            assert isinstance(piece, bytes)
            Counting.written += len(piece)
            return len(piece)

    with pytest.raises(PayloadTooLarge):
        inflate(Body(io.BytesIO(data), len(data)), "gzip", 1 << 20, Counting())
    assert Counting.written <= 1 << 20


def test_no_limit_has_one_for_what_is_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_serve.request_body._UNBOUNDED_BYTES", 1000)
    data = gzip.compress(bytes(1 << 20))

    with pytest.raises(PayloadTooLarge, match=f"at most {100 * len(data)} bytes"):
        content(data)


def test_members_for_nothing_are_refused() -> None:
    """Empty members cost twenty bytes each, and time."""
    assert content(gzip.compress(b"") * 1000) == b""
    with pytest.raises(DecodeError, match="nothing behind the gzip data"):
        content(gzip.compress(b"") * 2000)


@pytest.mark.parametrize(
    ("data", "coding", "words"),
    [
        (b"", "gzip", "ends within"),
        (b"not gzip", "gzip", "expected gzip: incorrect header check"),
        (gzip.compress(b"abc" * 100)[:-5], "gzip", "ends within"),
        (gzip.compress(b"abc")[:-8] + bytes(8), "gzip", "incorrect data check"),
        (gzip.compress(b"abc") + b"junk", "gzip", "incorrect header check"),
        (gzip.compress(b"abc"), "deflate", "incorrect header check"),
        (zlib.compress(b"abc") + b"junk", "deflate", "nothing behind the deflate data"),
    ],
)
def test_what_is_not_compressed_that_way(data: bytes, coding: str, words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        content(data, coding)


@given(st.binary(max_size=100))
@settings(max_examples=100, deadline=None)
def test_any_bytes_inflate_or_raise(data: bytes) -> None:
    for coding in ("gzip", "deflate"):
        text = ""
        try:
            content(data, coding, limit=10_000)
            content(gzip.compress(b"abc") + data, "gzip", limit=10_000)
        except (DecodeError, PayloadTooLarge) as error:
            text = str(error)
        assert "\n" not in text


def repository(limit: int = 0, memory: int = 0) -> Repository:
    settings = dataclasses.replace(Settings(), max_body_bytes=limit, body_memory_bytes=memory, max_inflight=1)
    return Repository(dataclasses.replace(settings, queue_timeout_ms=0), read_machine())


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "compress"])
def test_other_codings(coding: str) -> None:
    request = create_req(method="POST", body=b"abc", headers={"Content-Encoding": coding})
    with (
        pytest.raises(UnsupportedMediaType, match="Content-Encoding of gzip or deflate"),
        read_body(request, repository()),
    ):
        pass


@pytest.mark.parametrize("memory", [0, 10, 1 << 20])
@pytest.mark.parametrize("coding", ["GZIP", " x-gzip "])
def test_bodies_of_requests(coding: str, memory: int) -> None:
    """In memory or in a temporary file, which is closed with the request."""
    data = gzip.compress(b"a,b\n" * 100)
    request = create_req(method="POST", body=data, headers={"Content-Encoding": coding})
    with read_body(request, repository(400, memory)) as body:
        assert (body.length, body.read_all()) == (400, b"a,b\n" * 100)
    with pytest.raises(ValueError, match="closed"):
        body.read_all()


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "identity"}, {"Content-Encoding": ""}])
def test_plain_bodies(headers: dict[str, str]) -> None:
    request = create_req(method="POST", body=b"abc", headers=headers)
    with read_body(request, repository(3)) as body:
        assert body.read_all() == b"abc"
    with pytest.raises(PayloadTooLarge, match="at most 2 bytes, got 3"), read_body(request, repository(2)):
        pass
    with pytest.raises(PayloadTooLarge, match="at most 1 bytes"), read_body(request, repository(3), most=1):
        pass


def test_few_bodies_are_inflated_at_once() -> None:
    """A second one finds no place while the first is being answered; a plain one needs none."""
    models = repository()
    data = gzip.compress(b"abc")
    first, second = (
        create_req(method="POST", body=data, headers={"Content-Encoding": "gzip"}) for _ in range(2)
    )
    with read_body(first, models):
        with pytest.raises(Overloaded), read_body(second, models):
            pass
        with read_body(create_req(method="POST", body=b"abc"), models) as body:
            assert body.length == 3
    with read_body(second, models) as body:
        assert body.read_all() == b"abc"


def test_the_server_has_threads_for_all_who_wait() -> None:
    """And one more for the health check."""
    models = repository()
    waiting = models.inflating.permits + models.inflating.waiting_room
    assert models.admission.threads > models.admission.permits + models.admission.waiting_room + waiting
