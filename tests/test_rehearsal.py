"""The rehearsal against containers that do one thing wrong each: every mistake has its finding."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import containers
from containers import CONTENT_TYPE, Behaviour, serving, sums
from onnx_serve.cli import main
from onnx_serve.rehearsal import container_process, rehearsal, rehearsal_startup, rehearsal_trials
from onnx_serve.rehearsal.rehearsal_rules import RULES
from serving import SAMPLES, free_port

LINES = [f"{i},{i + 1},{i * i}\n" for i in range(40)]
LINE = ["--split-type", "line", "--accept", "text/csv"]
SPAWN = Path(containers.__file__).with_name("misbehaving_container.py")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    path.write_text("".join(LINES))
    return path


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become tenths; no rule depends on the unit."""
    monkeypatch.setattr(rehearsal_startup, "PING_PERIOD_S", 0.02)
    monkeypatch.setattr(rehearsal_startup, "PING_TIMEOUT_S", 0.3)
    monkeypatch.setattr(rehearsal_startup, "_CONNECT_S", 5.0)
    monkeypatch.setattr(rehearsal_trials, "_LEVEL_S", 0.0)


class Outcome:
    """What the command did."""

    def __init__(self, code: int, report: dict[str, Any]) -> None:
        self.code = code
        self.report = report
        self.findings = {finding["name"]: finding for finding in report["findings"]}


def rehearse(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    code = main(["rehearse", "--format", "json", *map(str, arguments)])
    return Outcome(code, json.loads(capsys.readouterr().out))


def answering(body: bytes, status: int = 200, content_type: str | None = CONTENT_TYPE) -> Behaviour:
    """Always the same answer."""
    return Behaviour(answer=lambda _body, _number: (status, content_type, body))


def changing(change: Any, content_type: str | None = CONTENT_TYPE) -> Behaviour:
    """The right answer, changed."""
    return Behaviour(answer=lambda body, _: (200, content_type, change(sums(body))))


def reverse(answer: bytes) -> bytes:
    return b"".join(reversed(answer.splitlines(keepends=True)))


def test_a_good_container_passes_with_its_figures(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    with serving(Behaviour(parameters=containers.parameters())) as url:
        outcome = rehearse(capsys, "--url", url, "--input", data, *LINE)

    assert (outcome.code, outcome.findings) == (0, {})
    assert outcome.report["passed"] is True
    assert outcome.report["parameters"] == {
        "max_concurrent": 2,
        "strategy": "MULTI_RECORD",
        "max_payload_mb": 6,
        "sources": ["container"] * 3,
    }
    assert outcome.report["throughput"]["records"] == len(LINES)
    assert outcome.report["throughput"]["bytes_in"] == data.stat().st_size
    assert outcome.report["trials"]["records_compared"] == 8
    assert list(outcome.report["trials"]["requests_per_second"]) == ["1", "2", "4", "8"]


JOINED = ["--join-source", "input", "--assemble-with", "line"]
JSON_LINES = [*LINE[:2], "--accept", "application/jsonlines"]
SINGLE = [*LINE, "--strategy", "single"]


@pytest.mark.parametrize(
    ("behaviour", "options", "name", "severity"),
    [
        pytest.param(Behaviour(ping=lambda: (200, b"OK")), LINE, "ping body", "warns", id="ping-body"),
        pytest.param(answering(b"too large", 413), LINE, "payload refused", "fails", id="413"),
        pytest.param(answering(b"line 3", 400), LINE, "client error", "fails", id="400"),
        pytest.param(answering(b"oops", 500), LINE, "server error", "fails", id="500"),
        pytest.param(answering(b"", 204), LINE, "unexpected status", "fails", id="204"),
        pytest.param(answering(b"", 302), LINE, "unexpected status", "fails", id="302"),
        pytest.param(answering(b"", 0), LINE, "no answer", "fails", id="drops-the-connection"),
        pytest.param(Behaviour(cut=True), LINE, "no answer", "fails", id="cuts-the-answer"),
        pytest.param(changing(reverse), LINE, "order", "corrupts", id="misordered"),
        pytest.param(changing(lambda a: a.replace(b"\n", b",1\n", 1)), LINE, "ragged rows", "corrupts", id="ragged"),
        pytest.param(changing(lambda a: a + b"\n"), LINE, "blank lines", "corrupts", id="blank-line"),
        pytest.param(changing(lambda a: a + b"1\n"), LINE, "record count", "corrupts", id="a-line-too-many"),
        pytest.param(answering(b"1\n"), LINE, "record count", "corrupts", id="one-answer-for-all"),
        pytest.param(answering(b""), LINE, "record count", "corrupts", id="nothing"),
        pytest.param(answering(b"1\n"), [*LINE, *JOINED], "processing", "fails", id="join-mismatch"),
        pytest.param(answering(b"1\n"), [*LINE, *JOINED], "record count", "fails", id="join-count"),
        pytest.param(changing(bytes.strip), SINGLE, "no final newline", "corrupts", id="no-final-newline"),
        pytest.param(Behaviour(), [*LINE, "--assemble-with", "line"], "second newline", "warns", id="two-newlines"),
        pytest.param(changing(bytes, "text/csv; charset=utf-8"), LINE, "type with parameters", "warns", id="charset"),
        pytest.param(changing(bytes, None), LINE, "type missing", "warns", id="no-type"),
        pytest.param(changing(bytes, "text/html"), LINE, "type not accepted", "warns", id="other-type"),
        pytest.param(changing(lambda a: a.replace(b"\n", b'"x\n')), LINE, "csv syntax", "warns", id="bare-quote"),
        pytest.param(changing(lambda a: a.replace(b"\n", b'"x\n')), [*LINE, *JOINED], "csv syntax", "fails",
                     id="bare-quote-in-a-join"),
        pytest.param(changing(lambda a: a.replace(b"1\n", b"NaN\n"), "application/jsonlines"), JSON_LINES,
                     "json syntax", "warns", id="nan-in-json"),
        pytest.param(Behaviour(parameters=b"[]"), LINE, "parameters invalid", "warns", id="parameters-array"),
        pytest.param(Behaviour(parameters=b"\x00{"), LINE, "parameters invalid", "warns", id="parameters-garbage"),
        pytest.param(Behaviour(parameters=containers.parameters("3")), LINE, "parameters invalid", "warns",
                     id="parameters-text"),
        pytest.param(Behaviour(parameters=containers.parameters(strategy=["x"])), LINE, "parameters invalid", "warns",
                     id="parameters-strategy"),
        pytest.param(Behaviour(parameters=containers.parameters(50, payload=20)), LINE, "parameters out of bounds",
                     "warns", id="parameters-product"),
        pytest.param(Behaviour(parameters=containers.parameters(payload=10**6)), LINE, "parameters out of bounds",
                     "warns", id="parameters-huge"),
        pytest.param(Behaviour(parameters=containers.parameters(strategy="MultiRecord")), LINE, "parameters spelling",
                     "warns", id="parameters-spelling"),
    ],
)  # fmt: skip
def test_every_mistake_has_its_finding(
    capsys: pytest.CaptureFixture[str],
    data: Path,
    behaviour: Behaviour,
    options: list[str],
    name: str,
    severity: str,
) -> None:
    with serving(behaviour) as url:
        outcome = rehearse(capsys, "--url", url, "--input", data, *options)

    finding = outcome.findings[name]
    assert finding["severity"] == severity
    assert outcome.code == (severity != "warns")
    assert outcome.report["passed"] is (severity == "warns")
    assert finding["basis"] in {"documented", "observed", "assumed"}
    assert finding["why"]
    assert finding["fix"]
    assert finding["source"]


def test_the_refusal_is_told_in_the_containers_words(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    with serving(answering(b"expected 4 columns,\n got 3", 400)) as url:
        assert main(["rehearse", "--url", url, "--input", str(data), *LINE]) == 1

    text = capsys.readouterr().out
    assert text.startswith("FAILED")
    assert "status 400: expected 4 columns, got 3" in text
    assert f"rule: {RULES['client error'].basis}, {RULES['client error'].url}" in text


def test_a_client_error_is_not_repeated_and_a_server_error_is(
    capsys: pytest.CaptureFixture[str], data: Path
) -> None:
    counts = []
    for status in (400, 500):
        behaviour = answering(b"", status)
        with serving(behaviour) as url:
            rehearse(capsys, "--url", url, "--input", data, *LINE, "--no-trials")
        counts.append(len(behaviour.requests))

    assert counts == [1, 4]


def test_an_answer_at_the_second_attempt_is_a_warning(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    behaviour = Behaviour(
        answer=lambda body, n: (503, None, b"") if n == 1 else (200, CONTENT_TYPE, sums(body))
    )
    with serving(behaviour) as url:
        outcome = rehearse(capsys, "--url", url, "--input", data, *LINE, "--no-trials")

    assert (outcome.code, list(outcome.findings)) == (0, ["retried"])


def test_answers_that_depend_on_company_are_told(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    behaviour = Behaviour(
        answer=lambda body, _: (200, CONTENT_TYPE, sums(body) if body.count(b"\n") > 1 else b"-7.5\n")
    )
    with serving(behaviour) as url:
        outcome = rehearse(capsys, "--url", url, "--input", data, *LINE)

    assert (outcome.code, list(outcome.findings)) == (0, ["company"])


def test_a_hanging_container_is_bounded_by_the_jobs_time(
    capsys: pytest.CaptureFixture[str], data: Path
) -> None:
    release = threading.Event()

    def hang(_body: bytes, _number: int) -> containers.Answer:
        release.wait(30)
        return 200, CONTENT_TYPE, b""

    with serving(Behaviour(answer=hang)) as url:
        try:
            outcome = rehearse(
                capsys, "--url", url, "--input", data, *LINE, "--timeout-s", 1, "--max-retries", 0
            )
        finally:
            release.set()

    assert outcome.findings["timeout"]["severity"] == "fails"
    assert outcome.report["stopped"] is None, "its pings are answered"


def test_a_ping_that_waits_behind_requests_is_told(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    busy, ping_waits = threading.Event(), threading.Event()

    def ping() -> tuple[int, bytes]:
        if busy.is_set():
            ping_waits.set()
            threading.Event().wait(0.4)
        return 200, b""

    def answer(body: bytes, _number: int) -> containers.Answer:
        busy.set()
        ping_waits.wait(10)
        return 200, CONTENT_TYPE, sums(body)

    with serving(Behaviour(ping=ping, answer=answer)) as url:
        outcome = rehearse(capsys, "--url", url, "--input", data, *LINE, "--no-trials")

    assert outcome.code == 0
    assert outcome.findings["ping slow"]["severity"] == "warns"
    assert outcome.report["pings_while_busy"]["slowest_seconds"] > 0.3


def test_a_ping_that_turns_bad_is_told(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    busy, refused = threading.Event(), threading.Event()

    def ping() -> tuple[int, bytes]:
        if not busy.is_set():
            return 200, b""
        refused.set()
        return 503, b""

    def answer(body: bytes, _number: int) -> containers.Answer:
        busy.set()
        refused.wait(10)
        return 200, CONTENT_TYPE, sums(body)

    with serving(Behaviour(ping=ping, answer=answer)) as url:
        outcome = rehearse(capsys, "--url", url, "--input", data, *LINE, "--no-trials")

    assert outcome.findings["ping not 200"]["detail"] == "status 503"


def test_never_ready(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    with serving(Behaviour(ping=lambda: (503, b""))) as url:
        outcome = rehearse(capsys, "--url", url, "--input", data, "--ready-timeout-s", 1)

    assert (outcome.code, list(outcome.findings)) == (1, ["never ready"])
    assert "status 503" in outcome.findings["never ready"]["detail"]
    assert outcome.report["parameters"] is None
    assert outcome.report["advice"] == []


def test_slow_pings_count_as_none_while_starting(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    slow = iter([True])

    def ping() -> tuple[int, bytes]:
        if next(slow, False):
            threading.Event().wait(0.5)
        return 200, b""

    with serving(Behaviour(ping=ping)) as url:
        outcome = rehearse(capsys, "--url", url, "--input", data, *LINE, "--no-trials")

    assert (outcome.code, list(outcome.findings)) == (0, ["ping slow"])


def test_garbage_and_nobody_at_all(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    with containers.garbage(b"SSH-2.0-OpenSSH\r\n") as url:
        outcome = rehearse(capsys, "--url", url, "--input", data, "--ready-timeout-s", 1)
    assert "garbage" in outcome.findings["never ready"]["detail"]

    outcome = rehearse(
        capsys, "--url", f"http://127.0.0.1:{free_port()}", "--input", data, "--ready-timeout-s", 1
    )
    assert "refused" in outcome.findings["never ready"]["detail"]


def test_an_endless_answer_is_not_read(
    capsys: pytest.CaptureFixture[str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "ANSWER_BYTES", 1000)
    with serving(answering(b"1\n" * 1000)) as url:
        outcome = rehearse(capsys, "--url", url, "--input", data, *LINE)

    assert outcome.findings["answer too long"]["severity"] == "fails"


class TestRequests:
    def sent(
        self, capsys: pytest.CaptureFixture[str], data: Path, *options: object
    ) -> list[tuple[dict[str, str], bytes]]:
        behaviour = Behaviour(answer=lambda body, _: (200, "application/octet-stream", b""))
        with serving(behaviour) as url:
            rehearse(capsys, "--url", url, "--input", data, "--no-trials", *options)
        return behaviour.requests

    def test_headers_are_the_jobs_own(self, capsys: pytest.CaptureFixture[str], data: Path) -> None:
        [(headers, body)] = self.sent(
            capsys, data, "--content-type", "text/csv; label_size=0", "--accept", "a/b"
        )

        assert headers["Content-Type"] == "text/csv; label_size=0"
        assert headers["Accept"] == "a/b"
        assert headers["User-Agent"] == "Go-http-client/1.1"
        assert headers["Content-Length"] == str(len(body))
        assert body == data.read_bytes()

    def test_no_accept_unless_asked(self, capsys: pytest.CaptureFixture[str], data: Path) -> None:
        [(headers, _)] = self.sent(capsys, data)

        assert "Accept" not in headers

    def test_a_request_a_line(self, capsys: pytest.CaptureFixture[str], data: Path) -> None:
        sent = self.sent(capsys, data, *SINGLE)

        assert [body.decode() for _, body in sent] == LINES

    def test_any_size_is_sent_in_chunks(self, capsys: pytest.CaptureFixture[str], data: Path) -> None:
        [(headers, body)] = self.sent(capsys, data, "--max-payload-mb", 0)

        assert headers["Transfer-Encoding"] == "chunked"
        assert "Content-Length" not in headers
        assert body == data.read_bytes()

    def test_packed_by_payload(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        big = tmp_path / "big.csv"
        big.write_text("1,2,3\n" * 400_000)
        sent = self.sent(capsys, big, *LINE, "--max-payload-mb", 1, "--max-concurrent", 3)

        sizes = sorted(len(body) for _, body in sent)
        assert sum(sizes) == big.stat().st_size
        assert [len(sizes), max(sizes)] == [3, (1 << 20) // 6 * 6]


def test_outputs_are_put_together_in_order(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    with serving(Behaviour()) as url:
        outcome = rehearse(capsys, "--url", url, "--input", data, *SINGLE, "--max-concurrent", 4, *JOINED,
                           "--output", tmp_path / "out")  # fmt: skip

    assert outcome.code == 0
    expected = "".join(f"{line.strip()},{sums(line.encode()).decode()}" for line in LINES)
    assert (tmp_path / "out" / "data.csv.out").read_text() == expected
    assert outcome.report["files"][0]["bytes_out"] == len(expected)
    assert any("MultiRecord" in line for line in outcome.report["advice"])


def test_a_file_that_fails_leaves_nothing_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, text in (("a.csv", "1,2\n"), ("b.csv", "x\n"), ("c.csv", "3,4\n")):
        (folder / name).write_text(text)
    (folder / "d.csv.gz").write_bytes(b"not gzip")
    behaviour = Behaviour(
        answer=lambda body, _: (400, None, b"x") if body == b"x\n" else (200, CONTENT_TYPE, sums(body))
    )
    with serving(behaviour) as url:
        outcome = rehearse(capsys, "--url", url, "--input", folder, tmp_path / "missing.csv", *LINE,
                           "--output", tmp_path / "out")  # fmt: skip

    assert outcome.code == 1
    assert [file["done"] for file in outcome.report["files"]] == [True, False, True, False, False]
    assert outcome.findings["input unreadable"]["count"] == 2
    left = [path.name for path in (tmp_path / "out").iterdir() if not path.name.endswith(".lock")]
    assert sorted(left) == ["a.csv.out", "c.csv.out"]


def test_records_and_files_beyond_the_payload(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "wide.csv").write_text("1" * (1 << 20) + "0\n")
    for options in (LINE, []):
        with serving(Behaviour()) as url:
            outcome = rehearse(capsys, "--url", url, "--input", tmp_path, "--max-payload-mb", 1, *options)
        assert (outcome.code, list(outcome.findings)) == (1, ["record too large"])


def test_a_header_line_is_noticed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "headed.csv").write_text("alpha,beta\n1,2\n3,4\n")
    behaviour = Behaviour(answer=lambda body, _: (200, CONTENT_TYPE, b"0\n" * body.count(b"\n")))
    with serving(behaviour) as url:
        outcome = rehearse(capsys, "--url", url, "--input", tmp_path, *LINE)

    assert (outcome.code, list(outcome.findings)) == (0, ["header line"])


def test_an_input_filter_that_does_not_fit(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    with serving(Behaviour()) as url:
        outcome = rehearse(capsys, "--url", url, "--input", data, *LINE, "--input-filter", "$[7]")

    assert outcome.findings["processing"]["severity"] == "fails"
    assert "record 1" in outcome.findings["processing"]["detail"]


class TestOutputs:
    """What happens to outputs when something fails while they are written."""

    def run(
        self, capsys: pytest.CaptureFixture[str], data: Path, behaviour: Behaviour, *options: object
    ) -> Outcome:
        with serving(behaviour) as url:
            return rehearse(capsys, "--url", url, "--input", data, *SINGLE, "--max-concurrent", 1, "--no-trials",
                            "--output", data.parent / "out", *options)  # fmt: skip

    def left(self, data: Path) -> list[str]:
        return [path.name for path in (data.parent / "out").iterdir() if not path.name.endswith(".lock")]

    def test_a_failure_in_the_middle_leaves_nothing(
        self, capsys: pytest.CaptureFixture[str], data: Path
    ) -> None:
        behaviour = Behaviour(answer=lambda body, n: (400 if n > 3 else 200, CONTENT_TYPE, sums(body)))
        outcome = self.run(capsys, data, behaviour)

        assert outcome.code == 1
        assert outcome.report["files"][0]["requests"] == 3
        assert self.left(data) == []

    @pytest.mark.parametrize("name", ["data.csv.out", ".data.csv.out.partial"])
    def test_a_place_that_cannot_be_written(
        self, capsys: pytest.CaptureFixture[str], data: Path, name: str
    ) -> None:
        (data.parent / "out" / name).mkdir(parents=True)
        outcome = self.run(capsys, data, Behaviour())

        assert outcome.code == 1
        assert outcome.report["files"][0]["problem"].startswith("cannot write the output: ")

    def test_lines_are_ended_where_the_container_does_not(
        self, capsys: pytest.CaptureFixture[str], data: Path
    ) -> None:
        outcome = self.run(capsys, data, changing(bytes.strip), "--assemble-with", "line")

        assert (outcome.code, outcome.findings) == (0, {})
        assert (data.parent / "out" / "data.csv.out").read_bytes() == sums(data.read_bytes())


def test_a_file_of_any_size_that_cannot_be_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "data.csv.gz").write_bytes(b"not gzip")
    with serving(Behaviour()) as url:
        outcome = rehearse(capsys, "--url", url, "--input", tmp_path, "--max-payload-mb", 0)

    assert (outcome.code, list(outcome.findings)) == (1, ["input unreadable"])


def test_a_container_that_is_gone_ends_the_job(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in "abcdef":
        (tmp_path / f"{name}.csv").write_text("1\n")
    gone = threading.Event()

    def answer(_body: bytes, _number: int) -> containers.Answer:
        gone.set()
        return 0, None, b""

    behaviour = Behaviour(ping=lambda: (0 if gone.is_set() else 200, b""), answer=answer)
    with serving(behaviour) as url:
        outcome = rehearse(capsys, "--url", url, "--input", tmp_path, *LINE)

    assert outcome.report["stopped"] == "the container answers neither requests nor pings"
    assert outcome.report["files"][-1]["problem"] == f"not tried: {outcome.report['stopped']}"


def test_a_ping_that_never_ends_is_told(
    capsys: pytest.CaptureFixture[str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal_startup, "_GRACE_S", 0.0)
    busy, ping_waits, release = threading.Event(), threading.Event(), threading.Event()

    def ping() -> tuple[int, bytes]:
        if busy.is_set():
            ping_waits.set()
            release.wait(30)
        return 200, b""

    def answer(body: bytes, _number: int) -> containers.Answer:
        busy.set()
        ping_waits.wait(10)
        return 200, CONTENT_TYPE, sums(body)

    with serving(Behaviour(ping=ping, answer=answer)) as url:
        outcome = rehearse(capsys, "--url", url, "--input", data, *LINE, "--no-trials")
        release.set()

    assert outcome.findings["ping slow"]["detail"] == "more than 0.3 s"


def test_slow_connections_and_parameters_are_told(
    capsys: pytest.CaptureFixture[str], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With limits that nothing keeps."""
    monkeypatch.setattr(rehearsal_startup, "_CONNECT_S", -1.0)
    with serving(Behaviour()) as url:
        ask = rehearsal_startup.ask_parameters

        def impatiently(*arguments: Any) -> Any:
            monkeypatch.setattr(rehearsal_startup, "PING_TIMEOUT_S", -1.0)
            answered = ask(*arguments)
            monkeypatch.setattr(rehearsal_startup, "PING_TIMEOUT_S", 5.0)
            return answered

        monkeypatch.setattr(rehearsal_startup, "ask_parameters", impatiently)
        outcome = rehearse(capsys, "--url", url, "--input", data, *LINE, "--no-trials")

    assert {"connection slow", "parameters slow"} <= outcome.findings.keys()
    assert outcome.code == 0


def test_a_report_that_cannot_be_written_is_shown_all_the_same(
    capsys: pytest.CaptureFixture[str], data: Path
) -> None:
    with serving(Behaviour()) as url:
        code = main(["rehearse", "--url", url, "--input", str(data), *LINE, "--report", "/dev/null/x"])

    captured = capsys.readouterr()
    assert code == 2
    assert captured.out.startswith("PASSED")
    assert "--report" in captured.err


def test_in_a_thread_that_gets_no_signals(data: Path) -> None:
    codes: list[int] = []
    with serving(Behaviour()) as url:
        arguments = ["rehearse", "--url", url, "--input", str(data), *LINE, "--no-trials"]
        thread = threading.Thread(target=lambda: codes.append(main(arguments)))
        thread.start()
        thread.join(30)

    assert codes == [0]


def test_a_signal_ends_requests_that_hang(data: Path) -> None:
    """The container is not ours to end, and would answer in a minute."""
    waiting, release = threading.Event(), threading.Event()

    def hang(_body: bytes, _number: int) -> containers.Answer:
        waiting.set()
        release.wait(60)
        return 200, CONTENT_TYPE, b""

    with serving(Behaviour(answer=hang)) as url:
        process = subprocess.Popen(
            [sys.executable, "-m", "onnx_serve", "rehearse", "--url", url, "--input", str(data), *LINE],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert waiting.wait(30)
        process.terminate()
        _, problems = process.communicate(timeout=30)
        release.set()

    assert process.returncode == 130
    assert "Traceback" not in problems


class TestCommands:
    def spawn(self, *behaviour: str) -> list[str]:
        port = free_port()
        words = " ".join([sys.executable, str(SPAWN), *behaviour])
        return ["--command", words, "--container-port", str(port)]

    def test_dies_in_the_middle(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        for name in "abc":
            (tmp_path / f"{name}.csv").write_text("".join(LINES))
        outcome = rehearse(capsys, *self.spawn("die"), "--input", tmp_path, *SINGLE)

        assert outcome.code == 1
        assert outcome.findings["exited"]["detail"] == "exit code 7"
        assert "the container ended" in outcome.report["stopped"]
        assert "not tried" in outcome.report["files"][2]["problem"]
        assert "about to die" in outcome.report["container_log"]

    def test_dies_at_once(self, capsys: pytest.CaptureFixture[str], data: Path) -> None:
        outcome = rehearse(capsys, *self.spawn("never"), "--input", data)

        assert (outcome.code, list(outcome.findings)) == (1, ["exited"])
        assert outcome.findings["exited"]["detail"].startswith("exit code 3")

    def test_gets_the_platforms_variables_and_sigterm(
        self, capsys: pytest.CaptureFixture[str], data: Path
    ) -> None:
        arguments = [*self.spawn("environment"), "--env", "COLOUR=blue", "--max-payload-mb", "2", *SINGLE]
        outcome = rehearse(capsys, *arguments, "--input", data)

        assert outcome.code == 0, outcome.report
        assert {"COLOUR=blue", "SAGEMAKER_BATCH=true", "SAGEMAKER_BATCH_STRATEGY=SINGLE_RECORD",
                "SAGEMAKER_MAX_PAYLOAD_IN_MB=2", "got SIGTERM"} <= set(outcome.report["container_log"])  # fmt: skip

    def test_ignores_sigterm(
        self, capsys: pytest.CaptureFixture[str], data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(container_process.ContainerProcess.stop, "__defaults__", (0.2,))
        outcome = rehearse(capsys, *self.spawn("stubborn"), "--input", data, *LINE, "--no-trials")

        assert (outcome.code, list(outcome.findings)) == (0, ["ignores SIGTERM"])

    def test_our_own_server_passes(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rehearsal_startup, "PING_TIMEOUT_S", 10.0)
        (tmp_path / "iris.csv").write_text("5.1,3.5,1.4,0.2\n6.7,3.0,5.2,2.3\n" * 50)
        model = SAMPLES / "iris-classifier"
        port = free_port()
        command = f"{sys.executable} -m onnx_serve serve --host 127.0.0.1 --model-dir {model}"
        outcome = rehearse(capsys, "--command", command, "--container-port", port,
                           "--input", tmp_path, *LINE, "--report", tmp_path / "report.json")  # fmt: skip

        assert (outcome.code, outcome.findings) == (0, {})
        assert outcome.report["trials"]["records_compared"] == 8
        assert json.loads((tmp_path / "report.json").read_text()) == outcome.report

    def test_an_image_is_run_by_docker(
        self, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A program in docker's place starts a process where it is told to publish the port."""
        script = f"""#!/bin/sh
            test "$1" = version && exit 0
            port=$(echo "$6" | cut -d: -f2)
            SAGEMAKER_BIND_TO_PORT=$port exec {sys.executable} {SPAWN} good
        """
        (tmp_path / "docker").write_text(script)
        (tmp_path / "docker").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        outcome = rehearse(capsys, "--image", "im:1", "--input", data, *LINE, "--no-trials")

        assert (outcome.code, outcome.findings) == (0, {})
        assert outcome.report["container"] == "docker run im:1 serve"

    def test_a_signal_leaves_no_container(self, data: Path) -> None:
        arguments = self.spawn("hang")
        process = subprocess.Popen(
            [sys.executable, "-m", "onnx_serve", "rehearse", *arguments, "--input", str(data), *LINE],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            if "sending" in line:
                break
        process.terminate()
        _, problems = process.communicate(timeout=40)

        assert (process.returncode, "Traceback" in problems) == (130, False)
        with pytest.raises(SystemExit) as ended:
            container_is_gone(int(arguments[-1]))
        assert ended.value.code == 0


def container_is_gone(port: int) -> None:
    """Exits with 0 if the port can be had."""
    container_process._check_free(port)
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--url", "ftp://x"], "expected http://HOST:PORT"),
        (["--url", "http://h:99999"], "expected http://HOST:PORT"),
        (["--url", "http://h/?q"], "expected http://HOST:PORT"),
        (["--command", "/no/such/program"], "cannot start"),
        (["--command", "'"], "--command"),
        (["--command", ""], "expected a command"),
        (["--command", "true", "--env", "X"], "expected NAME=VALUE"),
        (["--command", "true", *["--env", "X=1"] * 17], "at most 16"),
        (["--url", "http://h", "--ready-timeout-s", "0"], "expected 1 or more"),
        (["--url", "http://h", "--max-retries", "9"], "--max-retries"),
        (["--url", "http://h", "--input-filter", "x"], "--input-filter"),
        (["--url", "http://h", "--report", "."], "--report"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], data: Path, options: list[str], words: str
) -> None:
    port = ["--container-port", str(free_port())] if "--command" in options else []

    assert main(["rehearse", "--input", str(data), *port, *options]) == 2
    problem = capsys.readouterr().err
    assert words in problem
    assert problem.count("\n") == 1


def test_a_port_in_use_is_told_before_the_command_starts(
    capsys: pytest.CaptureFixture[str], data: Path
) -> None:
    with serving(Behaviour()) as url:
        port = url.rpartition(":")[2]
        code = main(["rehearse", "--command", "true", "--container-port", port, "--input", str(data)])

    assert code == 2
    assert "SAGEMAKER_BIND_TO_PORT" in capsys.readouterr().err


def test_records_without_a_newline_are_tried_together(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_bytes(b"1,2")
    with serving(Behaviour()) as url:
        outcome = rehearse(capsys, "--url", url, "--input", tmp_path, *SINGLE)

    assert outcome.report["trials"]["takes_several"] is True


def test_a_folder_without_inputs_fails_the_job(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with serving(Behaviour()) as url:
        outcome = rehearse(capsys, "--url", url, "--input", tmp_path)

    assert (outcome.code, list(outcome.findings)) == (1, ["input unreadable"])
    assert outcome.findings["input unreadable"]["detail"] == "the folder holds no input"


def test_a_filter_reads_the_answer_as_what_it_is(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    """The records are CSV, the answers JSON."""
    answers = changing(
        lambda a: b"".join(b'{"y":%b}\n' % line for line in a.splitlines()), "application/jsonlines"
    )
    with serving(answers) as url:
        outcome = rehearse(capsys, "--url", url, "--input", data, *JSON_LINES, "--output-filter", "$.y")

    assert (outcome.code, outcome.findings) == (0, {})


def test_quotes_out_of_place_fail_a_join(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As the agent's own reader does: bare " in non quoted field."""
    (tmp_path / "a.csv").write_bytes(b'1,5"8\n')
    behaviour = answering(b"1\n")
    with serving(behaviour) as url:
        outcome = rehearse(
            capsys, "--url", url, "--input", tmp_path / "a.csv", *LINE, *JOINED, "--content-type", "text/csv"
        )

    assert (outcome.code, outcome.findings["processing"]["severity"]) == (1, "fails")


def test_the_report_is_lines_that_a_terminal_only_shows(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a\n\x1b[31mb.csv").write_bytes(b"1\n")
    with serving(answering(b"", 400)) as url:
        assert main(["rehearse", "--url", url, "--input", str(tmp_path)]) == 1

    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "  a\\n\\x1b[31mb.csv: client error" in shown
    assert "rule: observed, https://github.com/aws/amazon-sagemaker-examples/issues/898" in shown


def test_a_reader_that_has_gone_is_no_failure(data: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "onnx_serve",
        "rehearse",
        "--no-trials",
        "--input",
        str(data),
        *LINE,
        "--url",
    ]
    with (
        serving(Behaviour()) as url,
        subprocess.Popen([*command, url], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
        assert process.wait(60) == 0, errors
    assert b"Error" not in errors
