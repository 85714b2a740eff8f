"""Batch jobs against a running server, and against one that is not."""

import io
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnx_serve.batch.container_client import Container
from onnx_serve.batch.input_files import find_inputs
from onnx_serve.batch.output_folder import OutputFolder
from onnx_serve.batch.progress import Progress
from onnx_serve.batch.transform import transform
from onnx_serve.batch.transform_job import TransformJob
from onnx_serve.batch.transform_requests import Plan
from onnx_serve.cli import main
from onnx_serve.codecs.interface import Body
from onnx_serve.inference import Reply
from serving import SAMPLES, ServerProcess, start

CSV = b"".join(b"%d.5,3,%d,0.2\n" % (row % 9, row % 7) for row in range(300))
JSONL = b"[5.1,3.5,1.4,0.2]\n" * 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with start(SAMPLES / "iris-classifier", tmp_path_factory.mktemp("server") / "log") as running:
        yield running


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.csv").write_bytes(CSV)
    (folder / "b.jsonl").write_bytes(JSONL)
    (folder / "c.json").write_bytes(b'{"instances": [[5.1, 3.5, 1.4, 0.2]]}')
    return folder


def run(output: Path, *arguments: object) -> int:
    return main(["transform", "--output", str(output), *map(str, arguments)])


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix == ".out"}


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--split-type", "line", "--max-payload-mb", "1", "--max-concurrent", "2", "--accept", "text/csv"],
        ["--split-type", "line", "--strategy", "single", "--accept", "application/jsonlines"],
        ["--max-payload-mb", "0", "--accept", "text/csv"],
        ["--split-type", "line", "--assemble-with", "line", "--accept", "text/csv", "--content-type", "text/csv",
         "--join-source", "input", "--output-filter", "$[0,-1]"],
    ],
    ids=["plain", "packed", "single", "chunked", "joined"],
)  # fmt: skip
def test_a_server_answers_what_the_model_in_this_process_does(
    server: ServerProcess,
    inputs: Path,
    tmp_path: Path,
    options: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [inputs] if not options else [inputs / "a.csv"]

    assert run(tmp_path / "url", *names, "--url", server.url, *options) == 0
    summary = capsys.readouterr().out
    assert run(tmp_path / "here", *names, "--model-dir", SAMPLES / "iris-classifier", *options) == 0
    assert read(tmp_path / "url") == read(tmp_path / "here")
    assert f"{321 if not options else 300} rows" in summary


def test_what_the_server_refuses_is_in_the_job_log(
    server: ServerProcess, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (inputs / "a.csv").write_bytes(b"1,2,x,4\n")

    assert run(tmp_path / "out", inputs, "--url", server.url) == 1
    assert 'a.csv: status 400: text/csv: expected a number, got "x"' in capsys.readouterr().err
    assert list(read(tmp_path / "out")) == ["b.jsonl.out", "c.json.out"]


def test_a_server_that_is_down_is_said_once(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    assert run(tmp_path / "out", inputs, "--url", url) == 1
    assert capsys.readouterr().err.splitlines() == [f"onnx-serve: {url}: /ping: Connection refused"]
    assert read(tmp_path / "out") == {}


def test_a_wrong_address_is_exit_2(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "out", inputs, "--url", "localhost:8080") == 2
    assert "--url: expected http://HOST:PORT" in capsys.readouterr().err


def test_a_server_that_dies_in_the_middle_fails_what_is_left(inputs: Path, tmp_path: Path) -> None:
    """And a rerun against another one does the rest."""
    out = tmp_path / "out"
    with start(SAMPLES / "iris-classifier", tmp_path / "log") as dying:
        container = Container(dying.url, timeout_s=10, max_retries=1)
        files = find_inputs([str(inputs)], out)
        plan = Plan.whole_files(TransformJob(), concurrent=1)
        requests = _Killing(container, dying)
        results = list(transform(files, OutputFolder(out), requests, plan, Progress(io.StringIO(), 3, 1)))
        container.close()
    assert [result.outcome for result in results] == ["done", "failed", "failed"]
    assert results[1].error.startswith(f"{dying.url}: ")
    assert list(read(out)) == ["a.csv.out"]

    with start(SAMPLES / "iris-classifier", tmp_path / "log") as living:
        assert run(out, inputs, "--url", living.url) == 0
    assert list(read(out)) == ["a.csv.out", "b.jsonl.out", "c.json.out"]


class _Killing:
    """A container whose server is killed after its first answer."""

    counts_rows = False

    def __init__(self, container: Container, server: ServerProcess) -> None:
        self._container = container
        self._server = server
        self.execution_parameters = container.execution_parameters
        self.close = container.close

    def __call__(self, body: Body, content_type: str | None, accept: str | None) -> tuple[Reply, int]:
        answered = self._container(body, content_type, accept)
        self._server.process.kill()
        self._server.process.wait()
        return answered
