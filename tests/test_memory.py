"""Long bodies go through a server process in blocks: its memory does not grow with them."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import onnx_models
from serving import ServerProcess, start

WIDTH = 200
ROWS = 65_536
BODY_MEMORY = 4 << 20


def peak_kib(server: ServerProcess) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def csv_line(row: int) -> bytes:
    return b",".join(b"%d.%06d" % (row % 7, row + column) for column in range(WIDTH))


def csv_body() -> bytes:
    piece = b"\n".join(csv_line(row) for row in range(512)) + b"\n"
    return piece * (ROWS // 512)


def jsonlines_body() -> bytes:
    piece = b"\n".join(b"[" + csv_line(row) + b"]" for row in range(512)) + b"\n"
    return piece * (ROWS // 512)


def npy_body() -> bytes:
    body = io.BytesIO()
    np.save(body, np.ones((2 * ROWS, WIDTH), np.float32))
    return body.getvalue()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    onnx_models.linear(tmp_path / "model" / "m.onnx", WIDTH, 1)
    env = {"ONNX_SERVE_BODY_MEMORY_BYTES": str(BODY_MEMORY), "ONNX_SERVE_ANSWER_MEMORY_BYTES": "100000",
           "TMPDIR": str(tmp_path)}  # fmt: skip
    with start(tmp_path / "model", tmp_path / "log", env) as running:
        yield running


@pytest.mark.parametrize(
    ("content_type", "make"),
    [("text/csv", csv_body), ("application/jsonlines", jsonlines_body), ("application/x-npy", npy_body)],
)
def test_a_hundred_megabytes_need_memory_for_blocks_only(
    server: ServerProcess, content_type: str, make: Callable[[], bytes]
) -> None:
    body = make()
    assert len(body) > 100e6
    cut = body[: body.rindex(b"\n", 0, 2 << 20) + 1] if content_type != "application/x-npy" else None
    # A short body first: what every request needs once is not what a long one adds.
    if cut is None:
        small = io.BytesIO()
        np.save(small, np.ones((2000, WIDTH), np.float32))
        cut = small.getvalue()
    assert server.post(cut, content_type, content_type).status_code == 200
    before = peak_kib(server)
    answer = server.post(body, content_type, content_type)
    grown = peak_kib(server) - before

    assert answer.status_code == 200
    if content_type != "application/x-npy":
        assert answer.content.count(b"\n") == body.count(b"\n")
    assert grown < 48 << 10, f"{len(body) >> 20} MiB of body took {grown >> 10} MiB of memory"
