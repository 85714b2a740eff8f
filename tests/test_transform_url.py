"""Batch jobs against a running server, and against one that is not."""

import gzip
import io
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

import containers
from containers import Behaviour
from onnx_serve.batch.container_client import Container
from onnx_serve.batch.input_files import find_inputs
from onnx_serve.batch.output_folder import OutputFolder
from onnx_serve.batch.progress import Progress
from onnx_serve.batch.request_plan import Answered, Plan
from onnx_serve.batch.transform import transform
from onnx_serve.batch.transform_job import TransformJob
from onnx_serve.cli import main
from onnx_serve.codecs.interface import Body
from serving import SAMPLES, ServerProcess, start

IRIS = SAMPLES / "iris-classifier"
CSV = b"".join(b"%d.5,3,%d,0.2\n" % (row % 9, row % 7) for row in range(300))
NEWLINE = b"\n"
# One feature of four float32 values, as protobuf writes it: the SageMaker SDK's "values".
_VALUES = struct.pack("<4f", 5.1, 3.5, 1.4, 0.2)
_TENSOR = b"\x0a" + bytes([len(_VALUES)]) + _VALUES
_VALUE = b"\x12" + bytes([len(_TENSOR)]) + _TENSOR
_ENTRY = b"\x0a\x06values\x12" + bytes([len(_VALUE)]) + _VALUE
RECORD = b"\x0a" + bytes([len(_ENTRY)]) + _ENTRY
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


def hangs(_body: bytes, _number: int) -> containers.Answer:
    NEVER.wait(20)
    return 200, "text/csv", b""


NEVER = threading.Event()


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        pytest.param(Behaviour(answer=hangs), "a.csv: no answer within 1 s", id="hangs"),
        pytest.param(Behaviour(answer=lambda body, _: (200, "text/csv", body), cut=True),
                     "a.csv: URL: the connection was closed in the middle of the answer", id="breaks-off"),
        pytest.param(Behaviour(answer=lambda _body, _number: (0, None, b"")),
                     "a.csv: URL: the connection was closed without an answer", id="dies"),
        pytest.param(Behaviour(answer=lambda _body, _number: (500, None, b"<html>\n\x00oops")),
                     "a.csv: status 500: <html> oops", id="fails"),
        pytest.param(Behaviour(ping=lambda: (503, b"")),
                     "URL: expected status 200 for /ping, got 503: not ready", id="never-ready"),
        pytest.param(None, "URL: /ping: expected an answer in HTTP, got ", id="garbage"),
    ],
)  # fmt: skip
def test_a_container_that_misbehaves_leaves_no_output(
    inputs: Path, tmp_path: Path, behaviour: Behaviour | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    served = containers.garbage(b"no HTTP\r\n\r\n") if behaviour is None else containers.serving(behaviour)
    with served as url:
        options = ["--url", url, "--timeout-s", "1", "--max-retries", "0"]
        assert run(tmp_path / "out", inputs / "a.csv", *options) == 1
        NEVER.set()
    assert f"onnx-serve: {words.replace('URL', url)}" in capsys.readouterr().err
    assert read(tmp_path / "out") == {}


# --- files larger than a request -------------------------------------------------------------------------------

BIG_CSV = CSV * 800
BIG_JSONL = b"[5.1,3.5,1.4,0.2]\n" * 150_000
NAMES = b"sepal_length,sepal_width,petal_length,petal_width\n"


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that takes a MiB at once, and names in the first line of CSV."""
    env = {"SAGEMAKER_MAX_PAYLOAD_IN_MB": "1"}
    with start(IRIS, tmp_path_factory.mktemp("small") / "log", env) as running:
        yield running


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        pytest.param("a.csv", BIG_CSV, [], id="csv"),
        pytest.param("a.csv", BIG_CSV.removesuffix(b"\n"), ["--accept", "application/jsonlines"], id="csv-to-lines"),
        pytest.param("a.jsonl", BIG_JSONL, [], id="jsonlines"),
        pytest.param("a.csv.gz", gzip.compress(BIG_CSV, 1), [], id="gzip"),
    ],
)  # fmt: skip
def test_a_file_larger_than_a_request_is_sent_in_pieces(
    small_server: ServerProcess,
    tmp_path: Path,
    name: str,
    content: bytes,
    options: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_bytes(content)
    plain = gzip.decompress(content) if name.endswith(".gz") else content
    assert len(plain) > 2 << 20
    assert small_server.post(plain, "text/csv").status_code == 413

    assert run(tmp_path / "url", tmp_path / name, "--url", small_server.url, *options) == 0
    assert f"{len(plain.splitlines()):,} rows" in capsys.readouterr().out
    assert run(tmp_path / "here", tmp_path / name, "--model-dir", IRIS, *options) == 0
    assert read(tmp_path / "url") == read(tmp_path / "here")


def test_a_line_of_names_goes_with_every_piece(
    small_server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_bytes(NAMES + BIG_CSV)
    (tmp_path / "b.csv").write_bytes(BIG_CSV)

    assert run(tmp_path / "url", tmp_path / "a.csv", tmp_path / "b.csv", "--url", small_server.url) == 0
    assert f"{2 * BIG_CSV.count(NEWLINE):,} rows" in capsys.readouterr().out
    made = read(tmp_path / "url")
    assert made["a.csv.out"] == made["b.csv.out"]


def test_what_is_wrong_with_a_piece_is_said_of_its_records(
    small_server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.csv").write_bytes(BIG_CSV + b"1,2,x,4\n")

    assert run(tmp_path / "out", tmp_path / "a.csv", "--url", small_server.url) == 1
    error = capsys.readouterr().err
    assert re.search(
        r'a\.csv: records \d+ to 240001: status 400: text/csv: expected a number, got "x"', error
    )
    assert read(tmp_path / "out") == {}


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_placeholders_of_a_server_are_counted(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    env = {"ONNX_SERVE_RECORD_ERRORS": "placeholder", "SAGEMAKER_MAX_PAYLOAD_IN_MB": "1"}
    lines = BIG_CSV + b"1,2,x,4\n" if name == "a.csv" else BIG_JSONL + b"[1]\n"
    (tmp_path / name).write_bytes(lines)
    with start(IRIS, tmp_path / "log", env) as marking:
        code = run(tmp_path / "out", tmp_path / name, "--url", marking.url, "--record-errors", "placeholder")

    assert code == 4
    assert f"{lines.count(NEWLINE):,} rows, 1 bad records, " in capsys.readouterr().out
    *_, last = (tmp_path / "out" / f"{name}.out").read_bytes().splitlines()
    assert last.startswith((b"ERROR,", b'{"error":"'))


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        pytest.param("a.json", b'{"instances": [' + b"[1,2,3,4]," * 200_000 + b"[1,2,3,4]]}", [], id="json"),
        pytest.param("a.csv", BIG_CSV, ["--accept", "application/json"], id="answer-in-json"),
    ],
)
def test_what_cannot_be_cut_is_the_servers_to_refuse(
    small_server: ServerProcess,
    tmp_path: Path,
    name: str,
    content: bytes,
    options: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / name).write_bytes(content)

    assert run(tmp_path / "out", tmp_path / name, "--url", small_server.url, *options) == 1
    assert f"{name}: status 413: " in capsys.readouterr().err
    assert read(tmp_path / "out") == {}


def test_recordio_in_pieces(small_server: ServerProcess, tmp_path: Path) -> None:
    """The answers are RecordIO too, one record behind the other."""
    request = b"".join(
        struct.pack("<II", 0xCED7230A, len(RECORD)) + RECORD + bytes(-len(RECORD) % 4) for _ in range(60_000)
    )
    (tmp_path / "a.recordio").write_bytes(request)
    assert len(request) > 2 << 20

    assert run(tmp_path / "url", tmp_path / "a.recordio", "--url", small_server.url) == 0
    assert run(tmp_path / "here", tmp_path / "a.recordio", "--model-dir", IRIS) == 0
    assert read(tmp_path / "url") == read(tmp_path / "here")
    assert len(read(tmp_path / "here")["a.recordio.out"]) > 60_000


class _Killing:
    """A container whose server is killed after its first answer."""

    counts_rows = False

    def __init__(self, container: Container, server: ServerProcess) -> None:
        self._container = container
        self._server = server
        self.execution_parameters = container.execution_parameters
        self.close = container.close

    def __call__(
        self, body: Body, content_type: str | None, accept: str | None, sink: BinaryIO | None = None
    ) -> Answered:
        answered = self._container(body, content_type, accept, sink)
        self._server.process.kill()
        self._server.process.wait()
        return answered


def _but_the_last(body: bytes, _number: int) -> containers.Answer:
    return 200, "text/csv", b"".join(body.splitlines(keepends=True)[:-1])


@pytest.mark.parametrize("content", [CSV, BIG_CSV], ids=["one-request", "pieces"])
@pytest.mark.parametrize("options", [[], ["--split-type", "line"]], ids=["plain", "platform"])
@pytest.mark.parametrize(
    "answer",
    [
        _but_the_last,
        lambda body, _: (200, "text/csv", body + b"\n"),
        lambda _body, _number: (200, "text/csv", b""),
        lambda body, _: (200, "application/jsonlines; charset=utf-8", b"1\n" + body),
    ],
    ids=["one-less", "blank-line", "empty", "one-more"],
)
def test_an_answer_of_another_number_of_records_fails_the_file(
    tmp_path: Path,
    content: bytes,
    options: list[str],
    answer: Callable[[bytes, int], containers.Answer],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line less may be a line of names that the server has taken; here the first one has numbers."""
    (tmp_path / "a.csv").write_bytes(content)
    behaviour = Behaviour(answer=answer, parameters=containers.parameters(payload=2))
    with containers.serving(behaviour) as url:
        assert run(tmp_path / "out", tmp_path / "a.csv", "--url", url, *options) == 1

    assert re.search(r"a\.csv: .*expected an answer of \d+ records", capsys.readouterr().err)
    assert read(tmp_path / "out") == {}


def test_names_may_be_numbers_where_the_type_says_so(small_server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"1,2,3,4\n" + CSV)
    (tmp_path / "b.csv").write_bytes(b"1,2,3,4\n" + BIG_CSV)
    options = [
        "--url",
        small_server.url,
        "--content-type",
        'text/csv; header="present"',
        "--accept",
        "text/csv",
    ]

    assert run(tmp_path / "out", tmp_path / "a.csv", tmp_path / "b.csv", *options) == 0
    assert [made.count(NEWLINE) for made in read(tmp_path / "out").values()] == [300, BIG_CSV.count(NEWLINE)]


@pytest.mark.parametrize("content", [NAMES, NAMES + CSV, b""], ids=["names-only", "names", "empty"])
def test_a_line_of_names_needs_no_answer(server: ServerProcess, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)

    assert run(tmp_path / "out", tmp_path / "a.csv", "--url", server.url) == 0
    assert read(tmp_path / "out")["a.csv.out"].count(NEWLINE) == content.removeprefix(NAMES).count(NEWLINE)
