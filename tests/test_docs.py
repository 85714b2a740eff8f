"""What the documents show is what the server does."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import requests

from onnx_serve.app import STATUS
from onnx_serve.codecs import table
from serving import SAMPLES, ServerProcess, start

ROOT = Path(__file__).parent.parent
DEFAULT_MODEL = "iris-classifier"


def examples(path: Path) -> Iterator[tuple[str, str, str]]:
    """Each curl command with the model that the last heading names and the answer shown below it."""
    model = DEFAULT_MODEL
    text = path.read_text()
    for match in re.finditer(
        r"^### (?P<model>[\w-]+)$|```sh\n(?P<command>curl .*?)```\n+```(?:json|text)\n(?P<answer>.*?)```",
        text,
        re.MULTILINE | re.DOTALL,
    ):
        if match["model"]:
            model = match["model"]
        else:
            yield model, match["command"], match["answer"]


CASES = [
    pytest.param(*example, id=f"{path.stem}-{number}")
    for path in (ROOT / "README.md", ROOT / "docs" / "formats.md")
    for number, example in enumerate(examples(path))
]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ServerProcess]]:
    with ExitStack() as stack:

        class Servers(dict[str, ServerProcess]):
            def __missing__(self, model: str) -> ServerProcess:
                log_file = tmp_path_factory.mktemp(model) / "log"
                self[model] = stack.enter_context(start(SAMPLES / model, log_file))
                return self[model]

        yield Servers()


def run_curl(command: str, server: ServerProcess) -> requests.Response:
    words = shlex.split(command)
    url = words.pop()
    headers: dict[str, str] = {}
    body = ""
    for flag, value in zip(words[1::2], words[2::2], strict=True):
        if flag == "-H":
            name, _, text = value.partition(": ")
            headers[name] = text
        else:
            assert flag == "--data-binary"
            body = value
    path = url.removeprefix("http://127.0.0.1:8080")
    return requests.post(server.url + path, data=body.encode(), headers=headers, timeout=60)


@pytest.mark.parametrize(("model", "command", "answer"), CASES)
def test_examples_answer_as_shown(
    servers: dict[str, ServerProcess], model: str, command: str, answer: str
) -> None:
    response = run_curl(command, servers[model])

    if response.headers["Content-Type"].startswith("application/json"):
        got = [rounded(json.loads(line)) for line in response.text.splitlines()]
        assert got == [rounded(json.loads(line)) for line in answer.splitlines()]
    else:
        assert len(response.text.splitlines()) == len(answer.splitlines())
        assert [cell[:6] for cell in response.text.split(",")] == [cell[:6] for cell in answer.split(",")]


def rounded(value: Any) -> Any:
    """Numbers to five digits: processors differ in the last one."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def test_examples_are_found() -> None:
    """A changed layout of the documents would leave nothing to test."""
    assert len(CASES) >= 10
    assert {case.values[0] for case in CASES} >= {"iris-classifier", "wine-classifier", "text-classifier"}


def test_every_media_type_and_status_is_documented() -> None:
    text = (ROOT / "docs" / "formats.md").read_text()

    assert [name for name in table.BY_MEDIA_TYPE if name not in text] == []
    assert [status for status in STATUS.values() if status[:3] not in text] == []


def test_links_between_documents_lead_somewhere() -> None:
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_readmes_first_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()

    commands = re.findall(r"^make ([\w-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert commands[:2] == ["serve", "test"]
    assert [name for name in commands if f"\n{name}:" not in makefile] == []
