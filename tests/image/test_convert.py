"""A trained model becomes a served image in one build, and leaves nothing there but its model folder."""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from image.container import LOCKED_DOWN, build, container, docker, inspect
from onnx_serve.model import SessionOptions, load_model

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = [REPOSITORY / "examples" / f"convert_{framework}.py" for framework in ("sklearn", "torch")]

with_image = pytest.mark.skipif("TEST_IMAGE" not in os.environ, reason="needs an engine: make test-image")


def make(tag: str, target: str | None = None, **build_args: str) -> str:
    """Builds, and gives what the build said."""
    done = build(tag, target, **build_args)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Converted:
    """An image with a converted model.

    Attributes:
        image: Its name.
        build_log: What its build said.
        rows: The sample, with a header line.
        original: What the example printed: a row, and the pipeline's answer to it.
    """

    image: str
    build_log: str
    rows: list[str]
    original: dict[str, Any]


@pytest.fixture(scope="module")
def converted() -> Iterator[Converted]:
    """The example, run with the conversion's own libraries, and the documented build."""
    libraries, image = "onnx-serve:test-conversion", "onnx-serve:test-converted"
    make(libraries, "conversion-dependencies")
    with tempfile.TemporaryDirectory(prefix="trained ", dir=REPOSITORY) as name:
        folder = Path(name)
        printed = docker(
            "run", "--rm", "--network=none", f"--user={os.getuid()}:{os.getgid()}",
            f"--volume={REPOSITORY / 'examples'}:/examples:ro", f"--volume={folder}:/trained", libraries,
            "/opt/convert/bin/python", "/examples/convert_sklearn.py", "/trained",
        ).stdout  # fmt: skip
        rows = (folder / "rows.csv").read_text().splitlines()
        log = make(
            image,
            ARTIFACT=f"{folder.name}/pipeline.skops",
            CONVERT_OPTIONS=f"--sample '{folder.name}/rows.csv'",
        )
    yield Converted(image, log, rows, json.loads(printed))
    docker("rmi", image, libraries, check=False)


@with_image
def test_image_answers_as_the_original(converted: Converted) -> None:
    with container(*LOCKED_DOWN, "--tmpfs=/tmp", image=converted.image) as running:
        answer = running.post(converted.rows[-1], "text/csv", "application/jsonlines")

    assert answer.status_code == 200, answer.text
    got = answer.json()
    assert got["label"] == converted.original["label"]
    assert got["probabilities"] == pytest.approx(converted.original["probabilities"], rel=1e-5, abs=1e-7)


@with_image
def test_image_holds_the_model_folder_and_nothing_else_of_the_conversion(converted: Converted) -> None:
    """One layer above the server's, and in it the folder: no library of the converters, no artifact, no sample."""
    make("onnx-serve:test-server", "server")
    server = inspect("onnx-serve:test-server")["RootFS"]["Layers"]
    *below, _model = inspect(converted.image)["RootFS"]["Layers"]
    docker("rmi", "onnx-serve:test-server", check=False)
    files = docker(
        "run", "--rm", "--network=none", "--entrypoint=find", converted.image, "/opt/ml", "-type", "f"
    ).stdout

    assert below == server
    assert sorted(files.split()) == [
        f"/opt/ml/model/{file}" for file in ("golden.npz", "model.onnx", "parity.json", "sample.npz")
    ]


@with_image
def test_libraries_of_the_conversion_are_fetched_for_an_artifact_only(converted: Converted) -> None:
    plain = make("onnx-serve:test-plain")
    docker("rmi", "onnx-serve:test-plain", check=False)

    assert "[server " in plain
    assert "convert.txt" not in plain
    # The same words find them where they are.
    assert "convert.txt" in converted.build_log


@with_image
@pytest.mark.parametrize(
    ("build_args", "words"),
    [
        pytest.param(
            {"MODEL_DIR": "sample_models/iris-classifier", "ARTIFACT": "model.ubj"},
            "give-model_dir-or-artifact-not-both", id="both",
        ),
        pytest.param({"ARTIFACT": "config.yaml"}, '"config.yaml": expected a trained model', id="no artifact"),
        pytest.param({"ARTIFACT": "missing.ubj"}, '"missing.ubj"', id="no such file"),
        pytest.param({"ARTIFACT": "config.yaml", "CONVERT_OPTIONS": "--float 8"}, "--float", id="wrong option"),
    ],
)  # fmt: skip
def test_build_refuses(build_args: dict[str, str], words: str) -> None:
    done = build("onnx-serve:test-refused", **build_args)

    assert done.returncode != 0
    assert words in done.stdout + done.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_documented_build_arguments_exist(example: Path) -> None:
    """Those of the examples and of docs/image.md are the Dockerfile's and the Makefile's."""
    named = set(re.findall(r"--build-arg (\w+)=", example.read_text()))
    page = (REPOSITORY / "docs/image.md").read_text()

    assert "ARTIFACT" in named
    for name in named:
        assert re.search(rf"^ARG {name}=", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
        assert f'--build-arg {name}="$({name})"' in (REPOSITORY / "Makefile").read_text()
        assert f"| `{name}` |" in page


def test_torch_example_becomes_a_model_that_answers_the_same(tmp_path: Path) -> None:
    """In the converters' environment, as this one has no torch: ``make setup-convert``."""
    python = os.environ.get("CONVERT_PYTHON", str(REPOSITORY / ".venv-convert/bin/python"))
    if not Path(python).exists():
        pytest.skip("torch is not installed: make setup-convert")
    run = partial(subprocess.run, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True)
    printed = run([python, "examples/convert_torch.py", str(tmp_path)]).stdout
    folder = tmp_path / "model"
    run([python, "-m", "converters", "convert", str(tmp_path / "network.pt2"), "--output", str(folder)])
    model = load_model(folder / "model.onnx", "model", SessionOptions())

    original = json.loads(printed)
    for rows in (1, 2, 7):
        answers: Any
        [answers] = model.run({"input": np.array([original["row"]] * rows, np.float32)}).values()
        assert np.allclose(answers, [original["answer"]] * rows, rtol=1e-4, atol=1e-6)
