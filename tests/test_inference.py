"""The way of a request without HTTP, with a plain function in place of a session."""

import io
import json
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import pytest

from codec_laws import signature
from onnx_serve.admission import Admission
from onnx_serve.batching import Engine
from onnx_serve.codecs.interface import Body, CodecOptions
from onnx_serve.errors import (
    DeadlineExceeded,
    DecodeError,
    InferenceError,
    NotAcceptable,
    Overloaded,
    PayloadTooLarge,
    SettingsError,
    UnsupportedMediaType,
)
from onnx_serve.inference import Inference, Limits
from onnx_serve.tensors import Signature, Tensors, Values

MODEL = signature(("x", "float", ["N", 2]), outputs=[("y", "float", ["N", 2])])
TWO_OUTPUTS = signature(("x", "float", ["N", 2]), outputs=[("y", "float", ["N", 2]), ("n", "int64", ["N"])])
GIB = 1 << 30


def double(feed: Tensors) -> Values:
    return {"y": feed["x"] * 2}


def inference(
    run: Callable[[Tensors], Values] = double,
    model: Signature = MODEL,
    *,
    admission: Admission | None = None,
    default_accept: str | None = None,
    limits: Limits | None = None,
    **options: Any,
) -> Inference:
    return Inference(
        Engine(run, model, slots=2, block_rows=8),
        admission or Admission(2, 2, 1.0),
        CodecOptions(**options),
        limits or Limits(1 << 20, lambda: GIB),
        default_accept,
    )


def ask(
    target: Inference, body: bytes, content_type: str | None = "text/csv", accept: str | None = None
) -> tuple[str, bytes]:
    reply = target(Body(io.BytesIO(body), len(body)), content_type, accept)
    content = reply.content if isinstance(reply.content, bytes) else read(reply.content)
    assert reply.length == len(content)
    return reply.media_type, content


def read(file: BinaryIO) -> bytes:
    with file:
        return file.read()


def test_csv_in_json_out() -> None:
    assert ask(inference(), b"1,2\n3,4\n") == ("application/json", b'{"predictions":[[2.0,4.0],[6.0,8.0]]}\n')


@pytest.mark.parametrize(
    ("content_type", "accept", "batch", "default_accept", "answered"),
    [
        ("text/csv", None, False, None, "application/json"),
        ("text/csv", "*/*", False, None, "application/json"),
        ("text/csv", "", False, None, "application/json"),
        ("text/csv", None, True, None, "text/csv"),
        ("text/csv", None, True, "application/jsonlines", "application/jsonlines"),
        ("text/csv", "text/*", False, None, "text/csv"),
        ("text/csv", "application/json", True, None, "application/json"),
        ("application/jsonlines", None, True, None, "application/jsonlines"),
    ],
)
def test_the_answers_format(
    content_type: str, accept: str | None, batch: bool, default_accept: str | None, answered: str
) -> None:
    target = inference(batch=batch, default_accept=default_accept)
    body = b"[1,2]" if "json" in content_type else b"1,2"

    assert ask(target, body, content_type, accept)[0] == answered


def test_a_default_that_nothing_answers_in_is_the_operators_mistake() -> None:
    with pytest.raises(
        SettingsError, match=r'default_accept: expected one of application/json.*"image/none"'
    ):
        inference(default_accept="image/none")


def test_binary_requests_are_answered_in_kind() -> None:
    def run(feed: Tensors) -> Values:
        return {"y": feed["x"], "n": np.arange(len(feed["x"]))}

    buffer = io.BytesIO()
    np.save(buffer, np.ones((3, 2), np.float32))
    assert ask(inference(), buffer.getvalue(), "application/x-npy")[0] == "application/x-npy"
    media_type, answer = ask(inference(run, TWO_OUTPUTS), buffer.getvalue(), "application/x-npy")
    assert media_type == "application/x-npz"
    assert set(np.load(io.BytesIO(answer))) == {"y", "n"}


@pytest.mark.parametrize(
    ("content_type", "accept", "kind", "words"),
    [
        (None, None, UnsupportedMediaType, "expected a Content-Type"),
        ("text/html", None, UnsupportedMediaType, '"text/html"'),
        ("nonsense", None, UnsupportedMediaType, "nonsense"),
        ("text/csv", "image/png", NotAcceptable, '"image/png"'),
    ],
)
def test_formats_are_chosen_before_anything_is_read(
    content_type: str | None, accept: str | None, kind: type[Exception], words: str
) -> None:
    class Unread(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise AssertionError("read")

    with pytest.raises(kind, match=words):
        inference()(Body(Unread(), 10), content_type, accept)


def test_errors_name_the_format_once() -> None:
    with pytest.raises(DecodeError) as caught:
        ask(inference(), b"1,2\n3,x\n")
    assert str(caught.value) == 'text/csv: expected a number, got "x" (line 2, column 2)'


def test_an_error_after_some_blocks_answers_nothing_of_them() -> None:
    """The answer is complete before its first byte is sent."""

    def run(feed: Tensors) -> Values:
        if feed["x"][0, 0] > 50:
            raise InferenceError("no")
        return double(feed)

    with pytest.raises(InferenceError):
        ask(inference(run), "\n".join(f"{row},0" for row in range(100)).encode(), accept="text/csv")


def test_long_answers_are_files() -> None:
    target = inference(limits=Limits(100, lambda: GIB))
    body = b"1,2\n" * 100

    reply = target(Body(io.BytesIO(body), len(body)), "text/csv", "text/csv")
    assert not isinstance(reply.content, bytes)
    assert read(reply.content) == b"2.0,4.0\n" * 100
    assert reply.length == 800


def test_whole_documents_must_fit_in_memory() -> None:
    """A document that cannot be cut is refused before it is parsed; formats of records are not."""
    target = inference(limits=Limits(1 << 20, lambda: 4 << 20))
    rows = 200_000

    with pytest.raises(PayloadTooLarge, match="send application/jsonlines"):
        ask(target, b'{"instances":[' + b",".join([b"[1,2]"] * rows) + b"]}", "application/json")
    assert ask(target, b"[1,2]\n" * rows, "application/jsonlines")[0] == "application/json"


def _archive(rows: int) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, x=np.zeros((rows, 2), np.float32))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content_type", "body", "message"),
    [
        ("application/jsonlines", b"[1," * 600_000, "a line of [0-9]* bytes or more .* send shorter lines"),
        ("text/csv", b"1," * 900_000, "a line of [0-9]* bytes or more .* send shorter lines"),
        ("text/libsvm", b"1 1:1" + b" 2:2" * 500_000, "a line of [0-9]* bytes or more .* send shorter lines"),
        ("application/x-npz", _archive(2_000_000), "an archive of [0-9]* bytes unpacked .* send fewer rows"),
        (
            "application/x-recordio-protobuf",
            b"\x0a" * 900_000,
            "a record of 900000 bytes .* send smaller records",
        ),
    ],
)
def test_what_is_held_whole_must_fit_in_memory(content_type: str, body: bytes, message: str) -> None:
    """One long line or record, or an archive that unpacks to a hundred times its size, is refused beforehand."""
    target = inference(limits=Limits(1 << 20, lambda: 15 << 20))

    with pytest.raises(PayloadTooLarge, match=message):
        ask(target, body, content_type)


def test_a_request_may_take_so_long_only() -> None:
    with pytest.raises(DeadlineExceeded, match="longer than"):
        ask(inference(limits=Limits(1 << 20, lambda: GIB, timeout_s=1e-9)), b"1,2\n")


def test_without_a_permit_nothing_is_decoded() -> None:
    admission = Admission(1, 0, None)
    target = inference(admission=admission)

    with admission.permit(), pytest.raises(Overloaded):
        ask(target, b"nonsense")
    assert ask(target, b"1,2")[1]


def test_the_permit_comes_back_after_an_error() -> None:
    target = inference(admission=Admission(1, 0, None))

    for _ in range(3):
        with pytest.raises(DecodeError):
            ask(target, b"nonsense")
    assert ask(target, b"1,2")[1]


def test_every_document_of_a_body_is_answered_in_its_own_layout() -> None:
    body = b'{"instances":[[1,2]]} {"inputs":{"x":[[3,4]]}}\n[[5,6],[7,8]]'

    _, answer = ask(inference(), body, "application/json")
    assert [json.loads(line) for line in answer.splitlines()] == [
        {"predictions": [[2, 4]]},
        {"outputs": {"y": [[6, 8]]}},
        {"predictions": [[10, 12], [14, 16]]},
    ]


def test_mixed_requests_at_once_each_get_their_own_answers() -> None:
    """Many threads, sizes, formats and failures; every answer is the one that the request alone would get."""
    target = inference(admission=Admission(3, 64, None))
    wrong: list[str] = []

    def call(caller: int) -> None:
        rng = np.random.default_rng(caller)
        for turn in range(25):
            rows = rng.integers(-9, 9, (int(rng.integers(1, 60)), 2))
            text = "\n".join(f"{a},{b}" for a, b in rows)
            broken = turn % 5 == 4
            try:
                _, answer = ask(target, (text + "\nx,1" * broken).encode(), "text/csv", "application/json")
            except DecodeError as ex:
                if not broken or f"line {len(rows) + 1}," not in str(ex):
                    wrong.append(str(ex))
            else:
                if broken or json.loads(answer)["predictions"] != (rows * 2).tolist():
                    wrong.append(text)

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
