"""What the documents show is what the server does.

Examples in Python that need a client's package run where that is: ``make test-clients``.
"""

import ast
import io
import json
import re
import shlex
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import requests

import value_models
from onnx_serve.app import STATUS
from onnx_serve.codecs import table
from onnx_serve.codecs.interface import Codec
from serving import SAMPLES, ServerProcess, start

ROOT = Path(__file__).parent.parent
DEFAULT_MODEL = "iris-classifier"
ADDRESS = "127.0.0.1:8080"
# What a heading names that is no folder of sample_models.
BUILT: dict[str, Callable[[Path], Path]] = {"nonzero": value_models.positions}
# What the text below a heading says that its model is served with.
ENVIRONMENT = {
    "digits-convnet": {"ONNX_SERVE_IMAGE": "{scale: 0.0627451}"},
    "diabetes-regressor": {"ONNX_SERVE_RECORD_ERRORS": "placeholder"},
}
CLIENTS = {"sagemaker", "scipy", "tritonclient"}


def examples(path: Path, language: str, opening: str = "") -> Iterator[tuple[str, str, str]]:
    """Each piece of code with the model that the last heading names and the answer shown below it."""
    model = DEFAULT_MODEL
    text = path.read_text()
    for match in re.finditer(
        rf"^### (?P<model>[\w-]+)$|^```{language}\n(?P<code>{opening}(?:(?!^```).)*)^```\n+```(?:json|text)\n(?P<answer>.*?)```",
        text,
        re.MULTILINE | re.DOTALL,
    ):
        if match["model"]:
            model = match["model"]
        else:
            yield model, match["code"], match["answer"]


def cases(language: str, opening: str = "") -> list[Any]:
    return [
        pytest.param(*example, id=f"{path.stem}-{number}")
        for path in (ROOT / "README.md", ROOT / "docs" / "formats.md")
        for number, example in enumerate(examples(path, language, opening))
    ]


CASES = cases("sh", "curl ")
SCRIPTS = cases("python")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ServerProcess]]:
    with ExitStack() as stack:

        class Servers(dict[str, ServerProcess]):
            def __missing__(self, model: str) -> ServerProcess:
                folder = SAMPLES / model
                if model in BUILT:
                    folder = tmp_path_factory.mktemp(model)
                    BUILT[model](folder / "model.onnx")
                log_file = tmp_path_factory.mktemp("server") / "log"
                self[model] = stack.enter_context(start(folder, log_file, ENVIRONMENT.get(model)))
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
    path = url.removeprefix(f"http://{ADDRESS}")
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


def imported(code: str) -> set[str]:
    """The packages that a script imports."""
    nodes = list(ast.walk(ast.parse(code)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(("model", "code", "printed"), SCRIPTS)
def test_scripts_print_what_is_shown(
    servers: dict[str, ServerProcess], model: str, code: str, printed: str
) -> None:
    output = io.StringIO()
    with warnings.catch_warnings():
        # The clients warn of their own business.
        for package in sorted(imported(code) & CLIENTS):
            warnings.simplefilter("ignore")
            pytest.importorskip(
                package, reason=f"{package} is in the clients' environment: make test-clients"
            )
        with redirect_stdout(output):
            script = compile(code.replace(ADDRESS, f"127.0.0.1:{servers[model].port}"), "example", "exec")
            exec(script, {})  # noqa: S102 - our own documents

    assert [short(line) for line in output.getvalue().split("\n") if line] == [
        short(line) for line in printed.splitlines()
    ]


def short(line: str) -> str:
    """The line with its fractions to five digits: processors differ in the last one."""
    return re.sub(r"-?\d+\.\d+(?:e[-+]?\d+)?", lambda match: f"{float(match[0]):.5g}", line)


def rounded(value: Any) -> Any:
    """Numbers to five digits: processors differ in the last one."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def test_examples_are_found() -> None:
    """A changed layout of the documents would leave nothing to test."""
    assert len(CASES) >= 15
    assert len(SCRIPTS) >= 10
    assert {case.values[0] for case in CASES} >= {
        "iris-classifier",
        "wine-classifier",
        "text-classifier",
        "nonzero",
    }


def test_every_example_is_run() -> None:
    """None is left without an answer below it."""
    text = (ROOT / "docs" / "formats.md").read_text()
    run = [case for case in (*CASES, *SCRIPTS) if case.id is not None and case.id.startswith("formats")]

    assert len(run) == len(re.findall(r"^```(?:sh|python)$", text, re.MULTILINE))
    assert all(value in text for variables in ENVIRONMENT.values() for value in variables.values())


@pytest.mark.parametrize("codec", table.TABLE, ids=lambda codec: codec.media_types[0])
def test_every_format_has_an_example(codec: Codec) -> None:
    code = "".join(str(case.values[1]) for case in (*CASES, *SCRIPTS))

    assert any(name in code for name in codec.media_types)


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
