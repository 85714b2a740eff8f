"""``onnx-serve rehearse --image`` with a real engine: the image under test plays the container."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import onnx_models
from image.container import IMAGE, docker
from serving import SAMPLES, free_port

IRIS = SAMPLES / "iris-classifier"
JOB = ["--split-type", "line", "--accept", "text/csv"]
# The engine of these tests has no bridge, and its client may not be the first in the path.
ENVIRON = {**os.environ, "PATH": f"{Path(os.environ.get('DOCKER', 'docker')).parent}:{os.environ['PATH']}"}


def rehearse(*arguments: object, image: str = IMAGE, bridge: bool = False) -> "tuple[int, dict[str, Any]]":
    """Exit code and report of the whole command."""
    network = [] if bridge else ["--host-network", "--container-port", str(free_port())]
    command = [sys.executable, "-m", "onnx_serve", "rehearse", "--image", image, *network, "--format", "json",
               *map(str, arguments)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=ENVIRON)
    assert done.returncode in {0, 1}, done.stderr
    return done.returncode, json.loads(done.stdout)


def findings(report: dict[str, Any]) -> set[str]:
    return {finding["name"] for finding in report["findings"]}


def left_over() -> str:
    return docker("ps", "--all", "--quiet", "--filter", "name=onnx-serve-rehearsal").stdout


def test_the_image_passes_and_answers_what_the_sample_does(tmp_path: Path) -> None:
    code, report = rehearse("--model-dir", IRIS, "--input", IRIS / "request.csv", *JOB, "--output", tmp_path)

    assert (code, findings(report), report["passed"]) == (0, set(), True)
    assert report["parameters"]["sources"] == ["container"] * 3
    assert report["throughput"]["records"] == (IRIS / "request.csv").read_text().count("\n")
    assert report["trials"]["records_compared"] > 1
    answers = (tmp_path / "request.csv.out").read_text().splitlines()
    expected = (IRIS / "response.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in answers] == [line.split(",")[0] for line in expected]
    assert left_over() == ""


def test_the_port_is_published_where_docker_has_a_bridge() -> None:
    if "bridge" not in docker("network", "ls", "--format", "{{.Driver}}").stdout.split():
        pytest.skip("this engine has no bridge")
    code, report = rehearse(
        "--model-dir", IRIS, "--input", IRIS / "request.csv", *JOB, "--no-trials", bridge=True
    )

    assert (code, findings(report)) == (0, set())


def test_the_jobs_variables_reach_the_container(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("5.1,3.5,1.4,0.2\n" * 4)
    code, report = rehearse("--model-dir", IRIS, "--input", data, *JOB, "--strategy", "single", "--no-trials",
                            "--env", "ONNX_SERVE_LOG_LEVEL=debug")  # fmt: skip

    assert (code, findings(report)) == (0, set())
    assert report["parameters"]["strategy"] == "SINGLE_RECORD"
    assert any("SINGLE_RECORD" in line for line in report["container_log"]), report["container_log"]


def test_bad_records_are_what_the_job_would_fail_of(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("5.1,3.5,1.4,0.2\n1,2,x,4\n")
    code, report = rehearse("--model-dir", IRIS, "--input", data, *JOB, "--no-trials")

    assert (code, findings(report)) == (1, {"client error"})
    assert 'expected a number, got "x"' in json.dumps(report).replace('\\"', '"')


@pytest.mark.parametrize(
    ("model", "words"),
    [
        pytest.param(False, '/opt/ml/model" is empty', id="no-model"),
        pytest.param(True, "onnx-serve: ", id="broken"),
    ],
)
def test_a_container_that_ends_is_reported_with_its_log(tmp_path: Path, model: bool, words: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if model:
        (folder / "model.onnx").write_bytes(b"no model")
    (tmp_path / "data.csv").write_text("1,2,3,4\n")
    code, report = rehearse("--model-dir", folder, "--input", tmp_path / "data.csv", *JOB)

    assert (code, findings(report)) == (1, {"exited"})
    assert any(words in line for line in report["container_log"]), report["container_log"]
    assert left_over() == ""


def test_an_image_that_is_not_there_is_reported_in_dockers_words(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1,2,3,4\n")
    code, report = rehearse(
        "--input", tmp_path / "data.csv", *JOB, "--env", "X=1", image="localhost:1/no:image"
    )

    assert (code, findings(report)) == (1, {"exited"})
    assert any("localhost:1" in line for line in report["container_log"]), report["container_log"]


def test_a_container_that_is_killed_in_the_middle(tmp_path: Path) -> None:
    """As the kernel does when memory is out: what was answered by then is no success."""
    onnx_models.slow(tmp_path / "model" / "m.onnx", iterations=20_000)
    (tmp_path / "data.csv").write_text("3,0,0,0\n" * 2000)
    command = [sys.executable, "-m", "onnx_serve", "rehearse", "--image", IMAGE, "--host-network", "--container-port",
               str(free_port()), "--format", "json", "--model-dir", str(tmp_path / "model"), "--input",
               str(tmp_path / "data.csv"), *JOB]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRON
    ) as process:
        assert process.stderr is not None
        assert any("sending 1 files" in line for line in process.stderr)
        docker("kill", "--signal=KILL", left_over().strip())
        printed, _ = process.communicate(timeout=120)

    report = json.loads(printed)
    assert (process.returncode, findings(report)) == (1, {"exited"})
    assert "exit code 137" in json.dumps(report)
