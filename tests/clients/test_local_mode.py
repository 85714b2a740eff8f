"""The local mode of the SageMaker Python SDK v2: an agent that nobody here wrote, against our server process.

The SDK's code pings, asks for the execution parameters, splits, packs, posts and assembles; only docker's place is
taken by a process of the main environment, whose Python ``SERVER_PYTHON`` names. ``make test-clients`` runs this.

What the local mode does not do is in https://github.com/aws/sagemaker-python-sdk/blob/master/src/sagemaker/local:
one request at a time, no retries, no look at a status.
"""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import SAMPLES, free_port

CONFIG = Path(__file__).with_name("sagemaker_config.yaml")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    os.environ.setdefault("AWS_DEFAULT_REGION", "eu-west-1")
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "none")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "none")
    os.environ["SAGEMAKER_ADMIN_CONFIG_OVERRIDE"] = str(CONFIG)
    os.environ["SAGEMAKER_USER_CONFIG_OVERRIDE"] = str(CONFIG)
    pytest.importorskip("sagemaker", reason="the SDK is in the clients' environment: make test-clients")
    from sagemaker.amazon.common import read_records, write_numpy_to_dense_tensor
    from sagemaker.local import LocalSession, entities

# The SDK and what it is made of warn of their own business.
pytestmark = pytest.mark.filterwarnings("ignore")
MODEL = SAMPLES / "iris-classifier"
LINES = "5.1,3.5,1.4,0.2\n6.7,3.0,5.2,2.3\n5.9,3.0,4.2,1.5\n"


class Process:
    """Stands where the SDK would run docker: the image and the model are those of this repository."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self.log = log
        self.environment: Mapping[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def serve(self, _model_data: str, environment: Mapping[str, str]) -> None:
        self.environment = environment
        command = [os.environ.get("SERVER_PYTHON", sys.executable), "-m", "onnx_serve", "serve",
                   "--model-dir", str(MODEL), "--host", "127.0.0.1", "--port", str(self.port)]  # fmt: skip
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment}
            )

    def stop_serving(self) -> None:
        if self._process is not None:
            self._process.terminate()
            assert self._process.wait(40) == 0, self.log.read_text()


Transform = Callable[..., bytes]


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    container = Process(free_port(), tmp_path / "log")
    monkeypatch.setattr(entities, "_SageMakerContainer", lambda *_: container)
    # Five seconds between two pings are the SDK's; here they would only be waited for. It counts pings, not time.
    monkeypatch.setattr(entities, "HEALTH_CHECK_TIMEOUT_LIMIT", 3000)
    wait = entities.time.sleep
    monkeypatch.setattr(entities.time, "sleep", lambda seconds: wait(min(seconds, 0.1)))
    yield container
    if container._process is not None and container._process.poll() is None:
        container._process.kill()
        container._process.wait()


@pytest.fixture
def transform(process: Process, tmp_path: Path) -> Transform:
    """Runs a job over one file, and gives its output."""

    def run(content: bytes, content_type: str, accept: str | None = None, split: str | None = "Line",
            assemble: str | None = None, **options: Any) -> bytes:  # fmt: skip
        session = LocalSession()
        session.config = {"local": {"serving_port": process.port, "container_root": str(tmp_path)}}
        client = session.sagemaker_client
        (tmp_path / "in").mkdir()
        (tmp_path / "out").mkdir()
        (tmp_path / "in" / "data").write_bytes(content)
        container = {"Image": "onnx-serve", "ModelDataUrl": f"file://{MODEL}", "Environment": {}}
        client.create_model(ModelName="iris", PrimaryContainer=container)
        source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"file://{tmp_path / 'in'}"}}
        client.create_transform_job(
            TransformJobName="job",
            ModelName="iris",
            TransformInput={"DataSource": source, "ContentType": content_type,
                            **({"SplitType": split} if split else {})},
            TransformOutput={"S3OutputPath": f"file://{tmp_path / 'out'}",
                             **({"Accept": accept} if accept else {}),
                             **({"AssembleWith": assemble} if assemble else {})},
            TransformResources={"InstanceType": "local", "InstanceCount": 1},
            **options,
        )  # fmt: skip
        job = client.describe_transform_job("job")
        assert job["TransformJobStatus"] == "Completed"
        [output] = (tmp_path / "out").rglob("*.out")
        return output.read_bytes()

    return run


def labels(text: bytes) -> list[str]:
    return [line.split(",")[0] for line in text.decode().splitlines()]


def test_csv_with_the_servers_own_parameters(transform: Transform, process: Process) -> None:
    """The strategy comes from /execution-parameters, in the one spelling that the SDK understands."""
    output = transform(LINES.encode() * 40, "text/csv", "text/csv")

    assert labels(output) == ["0", "2", "1"] * 40
    assert process.environment["SAGEMAKER_BATCH"] == "True"
    assert output.endswith(b"\n")


def test_one_record_a_request(transform: Transform) -> None:
    output = transform(LINES.encode(), "text/csv", "text/csv", BatchStrategy="SingleRecord")

    assert labels(output) == ["0", "2", "1"]


def test_without_accept_the_answer_has_the_inputs_format(transform: Transform) -> None:
    assert labels(transform(LINES.encode(), "text/csv")) == ["0", "2", "1"]


def test_assembled_with_lines(transform: Transform) -> None:
    """The SDK adds a newline to every answer; ours are left without one where the model's author asks for that."""
    output = transform(LINES.encode(), "text/csv", "text/csv", assemble="Line", BatchStrategy="SingleRecord",
                       Environment={"ONNX_SERVE_TEXT_TRAILING_NEWLINE": "false"})  # fmt: skip

    assert labels(output) == ["0", "2", "1"]
    assert b"\n\n" not in output


def test_mini_batches_of_many_megabytes(transform: Transform) -> None:
    """Several requests, each as full as the payload allows, are one output without a seam."""
    lines = LINES.encode() * 30_000
    output = transform(lines, "text/csv", "text/csv", MaxPayloadInMB=1)

    assert labels(output) == ["0", "2", "1"] * 30_000


def test_json_lines(transform: Transform) -> None:
    lines = b"".join(
        json.dumps([float(c) for c in line.split(",")]).encode() + b"\n" for line in LINES.split()
    )
    output = transform(lines, "application/jsonlines", "application/jsonlines")

    assert len([json.loads(line) for line in output.splitlines()]) == 3


def test_a_whole_file(transform: Transform) -> None:
    output = transform(LINES.encode(), "text/csv", "text/csv", split=None, BatchStrategy="SingleRecord")

    assert labels(output) == ["0", "2", "1"]


def test_recordio_record_by_record(transform: Transform, tmp_path: Path) -> None:
    """The SDK writes the records, strips their frames, and reads the answers."""
    with (tmp_path / "records").open("wb+") as file:
        rows = np.array([line.split(",") for line in LINES.split()], np.float32)
        write_numpy_to_dense_tensor(file, rows)
        file.seek(0)
        content = file.read()
    media_type = "application/x-recordio-protobuf"
    output = transform(content, media_type, media_type, split="RecordIO", BatchStrategy="SingleRecord")

    answers = tmp_path / "answers"
    answers.write_bytes(output)
    with answers.open("rb") as file:
        records = read_records(file)
    assert [list(record.label["label"].int32_tensor.values) for record in records] == [[0], [2], [1]]


def test_a_bad_record_is_named_in_the_output(transform: Transform) -> None:
    """The SDK never looks at a status: what our server answers is what its user finds in the file."""
    output = transform(b"1,2,3,4\n1,2,x,4\n", "text/csv", "text/csv")

    assert "line 2, column 3" in json.loads(output)["error"]
