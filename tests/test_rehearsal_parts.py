"""The parts of a rehearsal that need no container."""

import csv
import io
import itertools
import socket
import threading
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import containers
from containers import CONTENT_TYPE, Behaviour, serving
from onnx_serve.batch.transform_job import TransformJob
from onnx_serve.codecs.recordio_frames import MAGIC
from onnx_serve.errors import SettingsError
from onnx_serve.rehearsal import container_process, rehearsal_trials
from onnx_serve.rehearsal.answer_checks import AnswerChecks
from onnx_serve.rehearsal.http_exchange import Client, parse_url
from onnx_serve.rehearsal.rehearsal_findings import Findings
from onnx_serve.rehearsal.rehearsal_output import FileOutcome, Totals
from onnx_serve.rehearsal.rehearsal_report import Report, Settled
from onnx_serve.rehearsal.rehearsal_rules import RULES

RECORD = MAGIC + (4).to_bytes(4, "little") + b"abcd"


def names(
    answer: bytes,
    records: int,
    split: str = "line",
    content_type: str | None = CONTENT_TYPE,
    accept: str | None = None,
) -> list[str]:
    checks = AnswerChecks(accept, split, assemble_line=False, processing=False)
    return [name for name, _, _ in checks.check(content_type, answer, records)]


@pytest.mark.parametrize(
    ("answer", "records", "options", "expected"),
    [
        (b'"a,b",1\n"c ""d""",2\n', 2, {}, []),
        (b'"a,b",1\n"c,2\n', 2, {}, ["csv syntax"]),
        (b'"a",\n,"b"\n', 2, {}, []),
        (b'"a",1\n"b"\n', 2, {}, ["ragged rows"]),
        (b"1,2\r\n3,4\r\n", 2, {}, []),
        (b"1", 1, {}, []),
        (b"", 0, {}, []),
        (b"\r\n1\n", 2, {}, ["blank lines"]),
        (b'{"a":1}\n{"a":2}\n', 2, {"content_type": "application/json"}, []),
        (b"[1]\n[Infinity]\n", 2, {"content_type": "application/jsonlines"}, ["json syntax"]),
        (b'{"predictions":\n[1]}', 1, {"content_type": "application/json", "split": "none"}, []),
        (b'{"predictions"', 1, {"content_type": "application/json", "split": "none"}, ["json syntax"]),
        (RECORD * 3, 3, {"content_type": "application/x-recordio-protobuf", "split": "recordio"}, []),
        (RECORD, 3, {"content_type": "application/x-recordio-protobuf", "split": "recordio"}, ["record count"]),
        (RECORD[:-2], 1, {"content_type": "application/x-recordio-protobuf", "split": "recordio"}, ["record count"]),
        (b"\x00", 5, {"content_type": "application/x-npy"}, []),
        (b"1\n", 1, {"accept": "text/*"}, []),
        (b"1\n", 1, {"accept": "application/json, text/CSV"}, []),
        (b"1\n", 1, {"accept": "application/json"}, ["type not accepted"]),
    ],
)  # fmt: skip
def test_answers_are_judged(
    answer: bytes, records: int, options: dict[str, str], expected: list[str]
) -> None:
    assert names(answer, records, **options) == expected


@pytest.mark.parametrize(("accept", "hint"), [(None, True), ("application/json", False)])
def test_one_document_for_all_records_tells_how_to_ask_for_lines(accept: str | None, *, hint: bool) -> None:
    """Containers answer a request without Accept as they like, mostly in JSON."""
    checks = AnswerChecks(accept, "line", assemble_line=False, processing=False)
    [(name, what, _)] = checks.check("application/json", b'{"predictions":[1,2]}\n', 2)
    assert (name, what.partition(";")[0]) == (
        "record count", "2 records sent, 1 lines of application/json came back",
    )  # fmt: skip
    assert ("--accept" in what) is hint


def test_columns_are_those_of_the_whole_file() -> None:
    checks = AnswerChecks(None, "line", assemble_line=False, processing=False)
    assert list(checks.check(CONTENT_TYPE, b"1,2\n", 1)) == []
    assert [name for name, _, _ in checks.check(CONTENT_TYPE, b"1,2,3\n", 1)] == ["ragged rows"]


@settings(max_examples=200)
@given(st.binary(max_size=60), st.integers(0, 5), st.sampled_from([CONTENT_TYPE, "application/json", "x", None]),
       st.sampled_from(["none", "line", "recordio"]), st.booleans(), st.booleans())  # fmt: skip
def test_any_answer_is_judged_by_known_rules(
    answer: bytes, records: int, content_type: str | None, split: str, assemble: bool, processing: bool
) -> None:
    checks = AnswerChecks(content_type, split, assemble_line=assemble, processing=processing)
    for _ in range(2):
        assert {name for name, _, _ in checks.check(content_type, answer, records)} <= RULES.keys()


@given(st.lists(st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=5),
                         min_size=2, max_size=2), min_size=1, max_size=5))  # fmt: skip
def test_whatever_pythons_csv_writes_is_good_csv(rows: list[list[str]]) -> None:
    """The standard library's writer is the witness for RFC 4180."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    found = set(names(text.getvalue().encode(), len(rows)))
    assert found <= {"blank lines"}


def test_every_rule_is_complete() -> None:
    for name, rule in RULES.items():
        assert rule.severity in {"fails", "corrupts", "warns"}, name
        assert rule.basis in {"documented", "observed", "assumed"}, name
        assert all((rule.source, rule.why, rule.fix)), name


def test_the_document_lists_every_rule_as_it_is() -> None:
    rows = {}
    for line in (Path(__file__).parent.parent / "docs" / "rehearsal.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 4:
            rows[cells[0]] = cells[1:]
    assert {name: rows.get(name, [])[:2] for name in RULES} == {
        name: [rule.severity, rule.basis] for name, rule in RULES.items()
    }
    for name, rule in RULES.items():
        assert rule.source.rpartition("/")[2].removesuffix(".html") in rows[name][2], name


def test_findings_keep_the_first_place_and_the_gravest_severity() -> None:
    findings = Findings()
    findings.add("csv syntax", "a", "one")
    findings.add("csv syntax", "b", "two", "fails")
    findings.add("client error", "c")
    findings.add("ping body", "d")

    first, second, third = findings.all
    assert (first.name, first.severity, first.where, first.detail, first.count) == (
        "csv syntax",
        "fails",
        "a",
        "one",
        2,
    )
    assert (second.name, third.name) == ("client error", "ping body")
    assert "ping body" in findings
    assert "timeout" not in findings


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:1", ("h", 1, "")),
        ("h:8080", ("h", 8080, "")),
        ("http://h", ("h", 80, "")),
        ("http://[::1]:9/a/", ("::1", 9, "/a")),
    ],
)
def test_urls(url: str, expected: tuple[str, int, str]) -> None:
    address = parse_url(url)
    assert (address.host, address.port, address.prefix) == expected


@pytest.mark.parametrize(
    "url", ["", "https://h", "http://", "http://u@h", "http://h:x", "http://h\n", "http://[::1"]
)
def test_wrong_urls(url: str) -> None:
    with pytest.raises(SettingsError, match="expected http://HOST:PORT"):
        parse_url(url)


class TestClient:
    def test_a_connection_closed_while_idle_is_opened_again(self) -> None:
        """Two answers, each on a connection of its own although the first one promised to be kept."""
        listener = socket.create_server(("127.0.0.1", 0))

        def answer_twice() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
                connection.close()

        thread = threading.Thread(target=answer_twice)
        thread.start()
        client = Client(parse_url(f"127.0.0.1:{listener.getsockname()[1]}"), 100)
        exchanges = [client.post("/invocations", b"body", {}, 10) for _ in range(2)]
        thread.join()
        listener.close()
        client.close()

        assert [(exchange.status, exchange.body) for exchange in exchanges] == [(200, b"x"), (200, b"x")]

    def test_garbage(self) -> None:
        with containers.garbage(b"\x00\x01\x02\r\n\r\n") as url:
            exchange = Client(parse_url(url), 100).get("/ping", 5)
        assert exchange.failure == "garbage"

    def test_a_name_that_does_not_exist(self) -> None:
        exchange = Client(parse_url("http://no-such-host.invalid"), 100).get("/ping", 5)
        assert exchange.failure == "dropped"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (b"1,2", b"1,2", True),
        (b"0.1000001,x", b"0.1,x", True),
        (b"0.2,x", b"0.1,x", False),
        (b"nan", b"nan", True),
        (b"1", b"2", False),
        (b"1", b"1.0000001", True),
        (b"1,2", b"1", False),
        (b'{"a":[1,0.5]}', b'{"a":[1,0.50000001]}', True),
        (b'{"a":1}', b'{"b":1}', False),
        (b"[1]", b'"x"', False),
        (b"null", b"null ", True),
    ],
)
def test_answers_are_compared_as_numbers(one: bytes, other: bytes, expected: bool) -> None:
    assert rehearsal_trials._same(one, other) is expected
    assert rehearsal_trials._same(other, one) is expected


class TestTrials:
    def test_concurrency_stops_at_the_first_refusal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rehearsal_trials, "_LEVEL_S", 0.0)
        requests = itertools.count(1)
        behaviour = Behaviour(
            answer=lambda body, _: (200 if next(requests) < 4 else 503, CONTENT_TYPE, b"1\n")
        )
        with serving(behaviour) as url:
            rates = rehearsal_trials.find_concurrency(lambda: Client(parse_url(url), 100), b"1\n", {}, 4)
        assert list(rates) == [1]

    def test_concurrency_keeps_its_budget(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rehearsal_trials, "_BUDGET_S", 0.0001)
        monkeypatch.setattr(rehearsal_trials, "_rate", lambda *_: 1.0)
        with serving(Behaviour()) as url:
            rates = rehearsal_trials.find_concurrency(lambda: Client(parse_url(url), 100), b"1\n", {}, 8)
        assert list(rates) == [1]

    def test_a_record_refused_alone_is_told(self) -> None:
        sample = rehearsal_trials.Sample.of(b"1\n2\n", b"1\n2\n", CONTENT_TYPE, None)
        assert sample is not None
        findings = Findings()
        with (
            serving(Behaviour(answer=lambda _body, _number: (500, None, b""))) as url,
            closing(Client(parse_url(url), 100)) as client,
        ):
            rehearsal_trials.try_order(client, sample, findings)
        [finding] = findings.all
        assert (finding.name, finding.detail, finding.count) == ("company", "alone: status 500", 2)

    def test_a_record_that_hangs_alone_ends_the_trial(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rehearsal_trials, "_TIMEOUT_S", 0.05)
        sample = rehearsal_trials.Sample.of(b"1\n2\n3", b"1\n2\n3", CONTENT_TYPE, None)
        assert sample is not None
        release = threading.Event()
        findings = Findings()

        def hang(_body: bytes, _number: int) -> containers.Answer:
            release.wait(30)
            return 200, None, b""

        with serving(Behaviour(answer=hang)) as url, closing(Client(parse_url(url), 100)) as client:
            assert rehearsal_trials.try_order(client, sample, findings) == 1
            release.set()
        assert [finding.detail for finding in findings.all] == ["alone: timeout"]

    def test_an_answer_that_several_records_have_tells_no_order(self) -> None:
        sample = rehearsal_trials.Sample.of(b"1\n2\n3\n", b"0\n1\n1\n", CONTENT_TYPE, None)
        assert sample is not None
        findings = Findings()
        behaviour = Behaviour(answer=lambda _body, _number: (200, CONTENT_TYPE, b"1\n"))
        with serving(behaviour) as url, closing(Client(parse_url(url), 100)) as client:
            rehearsal_trials.try_order(client, sample, findings)
        assert [finding.name for finding in findings.all] == ["company"]

    @pytest.mark.parametrize(("body", "answer"), [(b"1\n", b"1\n"), (b"1\n2\n", b"1\n")])
    def test_no_sample_without_a_line_for_each_of_several(self, body: bytes, answer: bytes) -> None:
        assert rehearsal_trials.Sample.of(body, answer, CONTENT_TYPE, None) is None


def report(latencies: list[float], settled: Settled, job: TransformJob, **fields: object) -> Report:
    file = FileOutcome("a", done=True, requests=len(latencies), records=1000, bytes_in=1)
    made = Report("c", job, 1.0, settled, Totals(2.0, latencies, [file]))
    for name, value in fields.items():
        setattr(made, name, value)
    return made


SOURCES = ("job", "container", "default")
LINE_JOB = TransformJob(split_type="line")


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (report([400.0], Settled(1, "MULTI_RECORD", 6, SOURCES), LINE_JOB), "MaxPayloadInMB: 3; the slowest"),
        (report([0.01] * 20, Settled(4, "MULTI_RECORD", 6, SOURCES), LINE_JOB), "MaxPayloadInMB: up to 25"),
        (report([0.1], Settled(4, "MULTI_RECORD", 6, SOURCES), TransformJob()), "SplitType"),
        (report([0.1], Settled(4, "SINGLE_RECORD", 6, SOURCES), LINE_JOB, takes_several=True), "MultiRecord"),
        (report([0.1], Settled(1, "MULTI_RECORD", 6, SOURCES), LINE_JOB, rates={1: 1.0, 2: 1.9, 4: 2.0}),
         "MaxConcurrentTransforms: 2; "),
        (report([0.1], Settled(1, "MULTI_RECORD", 6, SOURCES), LINE_JOB, rates={1: 1.0, 2: 1.0}),
         "MaxConcurrentTransforms: 1 is right"),
        (report([0.1], Settled(1, "MULTI_RECORD", 6, SOURCES), LINE_JOB), "a million records take 33 min"),
    ],
)  # fmt: skip
def test_advice_follows_from_the_figures(made: Report, words: str) -> None:
    assert any(words in line for line in made.advice()), made.advice()
    assert words in made.to_text()


def test_a_report_names_at_most_twenty_files() -> None:
    files = [FileOutcome(f"f{number}", problem="bad") for number in range(25)]
    text = Report("c", LINE_JOB, 1.0, None, Totals(1.0, [], files)).to_text()

    assert "f19: bad" in text
    assert "f20" not in text
    assert "and 5 more" in text


def test_a_failed_report_ends_with_the_containers_log() -> None:
    findings = Findings()
    findings.add("type missing", "a.csv, request 1", severity="fails")
    findings.add("type missing", "a.csv, request 2")
    made = report(
        [0.1], Settled(1, "MULTI_RECORD", 6, SOURCES), LINE_JOB, findings=findings.all, log=["out of memory"]
    )

    assert "fails: type missing, 2 times, first at a.csv, request 1" in made.to_text()
    assert made.to_text().endswith("the end of the container's log\n  out of memory\n")


class TestDocker:
    def test_one_that_does_not_answer(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(container_process, "_DOCKER_S", 0.05)
        self.fake(tmp_path, "exec sleep 20", monkeypatch)
        with pytest.raises(SettingsError, match="does not answer within"):
            container_process._docker()

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(SettingsError, match="docker is not installed"):
            container_process._docker()

    def fake(self, folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
        docker = folder / "docker"
        docker.write_text(f"#!/bin/sh\n{script}\n")
        docker.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def test_without_a_daemon(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake(tmp_path, "echo 'Cannot connect to the daemon' >&2; exit 1", monkeypatch)
        with pytest.raises(SettingsError, match=r"docker cannot be used \(Cannot connect to the daemon\)"):
            container_process._docker()

    def test_run_serve_with_the_jobs_variables(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a program in the place of docker is told to do."""
        self.fake(
            tmp_path, 'test "$1" = version && exit 0; for word in "$@"; do echo "$word"; done', monkeypatch
        )
        with container_process.docker_container(
            "im", Path("/m"), {"A": "b c"}, {}, ["--gpus", "all"]
        ) as container:
            for _ in range(2000):
                if "serve" in container.log:
                    break
                threading.Event().wait(0.01)
            container.stop()
            words = container.log

        assert words[:3] == ["run", "--rm", "--name"]
        assert words[words.index("--publish") + 1] == f"127.0.0.1:{container.address.port}:8080"
        assert words[words.index("--env") + 1] == "A=b c"
        assert words[words.index("--volume") + 1] == "/m:/opt/ml/model:ro"
        assert words[-4:] == ["--gpus", "all", "im", "serve"]

    @pytest.mark.parametrize("port", [8080, 18080])
    def test_in_the_hosts_network_it_is_told_its_port(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: int
    ) -> None:
        """As ``SAGEMAKER_BIND_TO_PORT``, unless it is the platform's own."""
        self.fake(
            tmp_path, 'test "$1" = version && exit 0; for word in "$@"; do echo "$word"; done', monkeypatch
        )
        monkeypatch.setattr(container_process, "_check_free", lambda _port: None)
        with container_process.docker_container("im", None, {"A": "b"}, {}, host_port=port) as container:
            for _ in range(2000):
                if "serve" in container.log:
                    break
                threading.Event().wait(0.01)
            container.stop()
            words = container.log

        assert container.address.port == port
        assert "--publish" not in words
        assert words[words.index("--network") + 1] == "host"
        assert ("SAGEMAKER_BIND_TO_PORT=18080" in words) is (port == 18080)
        assert words[-2:] == ["im", "serve"]

    def test_one_that_will_not_end_is_killed_by_docker(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mark = tmp_path / "killed"
        self.fake(tmp_path, f"case $1 in version) exit 0;; kill) touch {mark};; "
                            "*) trap '' TERM; echo up; while :; do read x < /dev/zero; done;; esac", monkeypatch)  # fmt: skip
        with container_process.docker_container("im", None, {}, {}) as container:
            while not container.log:
                threading.Event().wait(0.01)
            assert container.stop(0.1) is False

        assert mark.exists()
        assert container.exit_code == -9
