import os
import subprocess
import sys
from pathlib import Path

import pytest

import onnx_models
from onnx_serve import __version__, allocator
from onnx_serve.cli import main
from serving import SAMPLES


def run(*arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "onnx_serve", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        timeout=60,
        check=False,
    )


def test_inspect_tells_everything() -> None:
    result = run("inspect", "--model-dir", str(SAMPLES / "iris-classifier"), ONNX_SERVE_SLOTS="3",
                 ONNX_SERVE_SESSION_OPTIONS="{session.disable_prepacking: 1}")  # fmt: skip

    assert result.returncode == 0, result.stderr
    for words in (
        "features: FLOAT[N, 4]",
        "label: INT64[N]",
        "probabilities: FLOAT[N, 3]",
        "rows: dimension 0, any number a run",
        "CPUExecutionProvider",
        "MaxConcurrentTransforms",
        "slots: 3 (ONNX_SERVE_SLOTS)",
        "port: 8080 (default)",
        "'session.disable_prepacking': '1'",
        "ai.onnx.ml",
        "CPUs:",
    ):
        assert words in result.stdout, words


def test_inspect_in_this_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx_models.linear(tmp_path / "m.onnx", rows=5)

    assert main(["inspect", "--model-dir", str(tmp_path)]) == 0
    assert "rows: dimension 0, exactly 5 a run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "usage: onnx-serve"),
        (["train"], "invalid choice: 'train'"),
        (["serve", "--port", "eighty"], "--port"),
        (["serve", "--port", "99999"], "--port"),
        (["serve", "--config", "/nowhere.yaml"], "nowhere.yaml"),
        (["serve", "--model-dir"], "--model-dir"),
    ],
)
def test_wrong_usage_is_exit_2(arguments: list[str], words: str) -> None:
    result = run(*arguments)

    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_no_model_is_exit_3(tmp_path: Path) -> None:
    for command in ("inspect", "serve"):
        result = run(command, "--model-dir", str(tmp_path / "nothing"), ONNX_SERVE_PORT="0")
        assert result.returncode == 3
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith("onnx-serve: ")


def test_an_address_that_cannot_be_had_is_exit_2(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "m.onnx")
    result = run("serve", "--model-dir", str(tmp_path), "--host", "192.0.2.1")

    assert result.returncode == 2
    assert "192.0.2.1" in result.stderr


def test_help_teaches() -> None:
    result = run("--help")

    assert result.returncode == 0
    assert "curl" in result.stdout
    assert run("--version").stdout.strip() == f"onnx-serve {__version__}"
    assert "/opt/ml/model" in run("serve", "--help").stdout


def test_config_file_of_the_operators(tmp_path: Path) -> None:
    onnx_models.linear(tmp_path / "m.onnx")
    (tmp_path / "my.yaml").write_text("slots: 7\n")
    result = run("inspect", "--model-dir", str(tmp_path), "--config", str(tmp_path / "my.yaml"))

    assert "slots: 7 (config file)" in result.stdout


def test_allocator_leaves_the_environments_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what nobody has chosen is set."""
    calls: list[int] = []

    class Libc:
        def __init__(self, _name: None) -> None:
            pass

        def mallopt(self, parameter: int, _value: int) -> None:
            calls.append(parameter)

    monkeypatch.setattr("ctypes.CDLL", Libc)
    monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    allocator.tune(1 << 30)

    assert calls == [-1, -2, -3]
    assert os.environ["ARROW_DEFAULT_MEMORY_POOL"] == "jemalloc"


def test_allocator_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _name: object())
    monkeypatch.delenv("ARROW_DEFAULT_MEMORY_POOL", raising=False)
    allocator.tune(1 << 30)

    assert os.environ["ARROW_DEFAULT_MEMORY_POOL"] == "system"
