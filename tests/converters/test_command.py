"""The commands from outside: exit codes, messages, what is left on the disk; hostile and damaged artifacts."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tarfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters import command
from converters.errors import ConversionError, ConversionRefused, MissingExtra
from onnx_serve import cli
from onnx_serve.model import SessionOptions, load_model
from onnx_serve.tensors import conform

try:
    import catboost
    import joblib
    import lightgbm
    import xgboost
    from sklearn import linear_model, neural_network, pipeline, preprocessing

    from converters import conversion, reductions, sklearn
    from converters.isolation import convert_apart
except (ModuleNotFoundError, MissingExtra) as ex:
    pytest.skip(f"sklearn and boosting models cannot be converted here: {ex}", allow_module_level=True)

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(5).normal(size=(200, 4))
Y = (X[:, 0] > 0).astype(int)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    joblib.dump(pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression()).fit(X, Y),
                folder / "pipeline.joblib")  # fmt: skip
    xgboost.XGBClassifier(n_estimators=4).fit(X, Y).save_model(folder / "x.ubj")
    xgboost.XGBClassifier(n_estimators=4).fit(X, Y).save_model(folder / "x.json")
    lightgbm.LGBMClassifier(n_estimators=4, verbose=-1).fit(X, Y).booster_.save_model(folder / "l.txt")
    catboost.CatBoostClassifier(iterations=4, verbose=0, allow_writing_files=False).fit(X, Y).save_model(
        str(folder / "c.cbm")
    )
    return folder


def run(*words: Any, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = command.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_pickle_becomes_a_served_model(
    artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the command line to the folder, the archive, and the answers of the model in it."""
    output = tmp_path / "m"
    code, out, err = run(
        "convert", artifacts / "pipeline.joblib", "-o", output, "--trust-pickle", capsys=capsys
    )
    assert (code, "written: " in out, "comparing with the original" in err) == (0, True, True)
    facts = json.loads((output / "parity.json").read_text())
    assert facts["family"] == "StandardScaler -> LogisticRegression"
    assert facts["parity"]["passed"]
    assert {"scikit-learn", "onnxruntime"} <= facts["versions"].keys()
    model = load_model(output / "model.onnx", "m", SessionOptions())
    assert model.metadata["onnx_serve.artifact_sha256"] == facts["artifact_sha256"]
    assert json.loads(model.metadata["onnx_serve.labels.probabilities"]) == [0, 1]
    expected = joblib.load(artifacts / "pipeline.joblib").predict_proba(X)
    answers: Any = model.run(conform({"features": X}, model.signature))
    assert np.allclose(answers["probabilities"], expected)

    code, out, _ = run("package", output, "-o", tmp_path / "model.tar.gz", capsys=capsys)
    assert (code, "4 files" in out) == (0, True)
    first = (tmp_path / "model.tar.gz").read_bytes()
    for path in output.iterdir():
        os.utime(path, (1, 1))
    assert run("package", output, "-o", tmp_path / "model.tar.gz", "--force", capsys=capsys)[0] == 0
    assert (tmp_path / "model.tar.gz").read_bytes() == first
    with tarfile.open(tmp_path / "model.tar.gz") as packed:
        assert {entry.name for entry in packed} == {"model.onnx", "parity.json", "sample.npz", "golden.npz"}
        assert all(entry.isreg() and entry.mtime == 0 for entry in packed)


def test_dimensions_are_named_for_the_framework(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def convert(*_: Any, **request: Any) -> Any:
        seen.update(request)
        raise ConversionError("enough")

    monkeypatch.setattr(command, "convert", convert)
    words = ["--dynamic", "x:0=batch", "--dynamic", "x:1=length"]
    assert command.main(["convert", str(artifacts / "x.ubj"), "-o", str(tmp_path / "m"), *words]) == 2
    assert seen["options"] == {"dynamic": "x:0=batch,x:1=length"}


@pytest.mark.parametrize("name", ["x.ubj", "l.txt", "c.cbm"])
def test_native_formats_need_no_trust(
    name: str, artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("convert", artifacts / name, "-o", tmp_path / "m", capsys=capsys)[0] == 0
    assert (tmp_path / "m" / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("pipeline.joblib",), 2, "add --trust-pickle"),
        (("none.ubj",), 2, "found none"),
        (("x.ubj", "--framework", "catboost"), 2, "expected an artifact of catboost"),
        (("x.ubj", "--option", "float"), 2, "expected key=value"),
        (("x.ubj", "--dynamic", "x:0=batch"), 2, '--option: xgboost takes none, got "dynamic"'),
        (("x.ubj", "--dynamic", "x:0=a", "--option", "dynamic=x:0=a"), 2, "named by --option dynamic= too"),
        (("x.ubj", "--tolerance", "rtol=x"), 2, "expected key=number"),
        (("x.ubj", "--tolerance", "rtol=-1"), 2, "a number from 0 on"),
        (("x.ubj", "--tolerance", "rtol=0", "--tolerance", "atol=0"), 3, "outside the tolerances"),
        (("x.ubj", "--sample", "none.csv"), 2, '--sample "none.csv": expected a file, found none'),
        (("x.ubj", "--timeout", "0"), 2, "--timeout: expected seconds above 0, got 0"),
        (("x.ubj", "--timeout", "nan"), 2, "--timeout: expected seconds above 0, got nan"),
        (("x.ubj", "--option", "float=32"), 2, '--option: xgboost takes none, got "float"'),
        (("x.ubj", "--float16", "--tolerance", "speed=1"), 2, "expected one of rtol"),
    ],
)
def test_a_failure_is_one_message_and_leaves_nothing(
    words: tuple[str, ...],
    code: int,
    message: str,
    artifacts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = run("convert", artifacts / words[0], "-o", tmp_path / "m", *words[1:], capsys=capsys)
    assert result[0] == code
    assert message in result[2]
    assert "Traceback" not in result[2]
    assert list(tmp_path.iterdir()) == []


def test_the_servers_command_line_passes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["package", str(tmp_path / "none"), "-o", str(tmp_path / "m.tar.gz")]) == 2
    assert "expected a model folder" in capsys.readouterr().err


def test_a_conversion_passes_from_process_to_process(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"1234")
    made = replace(
        sklearn.convert(linear_model.LogisticRegression().fit(X, np.where(Y, "é", "b"))),
        external={"parts/w.bin": weights},
    )
    conversion.save(made, tmp_path / "c")
    weights.unlink()
    read = conversion.load(tmp_path / "c")
    assert read.external["parts/w.bin"].read_bytes() == b"1234"
    assert (read.model, read.labels, read.tolerances) == (made.model, made.labels, made.tolerances)
    for case, other in zip(read.cases, made.cases, strict=True):
        assert all(np.array_equal(case.expected[name], array) for name, array in other.expected.items())
    facts = json.loads((tmp_path / "c" / "conversion.json").read_text())
    (tmp_path / "c" / "conversion.json").write_text(json.dumps(facts | {"external": ["../../weights"]}))
    with pytest.raises(ConversionError, match="a place in the model folder"):
        conversion.load(tmp_path / "c")


def test_without_the_extra_one_line_says_what_to_install(
    artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, err = run("convert", artifacts / "x.ubj", "-o", tmp_path / "m", capsys=capsys)
    assert (code, err) == (
        2,
        'onnx-serve: onnx is not installed: pip install "onnx-serve[convert-boosting,cpu]"\n',
    )


def test_an_existing_output_is_refused_before_any_work(
    artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept").touch()
    code, _, err = run("convert", artifacts / "x.ubj", "-o", tmp_path, capsys=capsys)
    assert (code, err.count("\n"), "add --force" in err) == (2, 1, True)


@pytest.mark.parametrize("name", ["x.ubj", "x.json", "l.txt", "c.cbm"])
def test_truncated_artifacts_are_one_paragraph(name: str, artifacts: Path, tmp_path: Path) -> None:
    """In a process of its own: some libraries end theirs."""
    content = (artifacts / name).read_bytes()
    path = tmp_path / "cut"
    path.write_bytes(content[: len(content) // 3])
    assert "\n" not in str(failure(path))


@pytest.mark.parametrize("start", [["-m", "converters"], ["converters/__main__.py"]])
def test_only_the_module_starts(start: list[str]) -> None:
    """As a script, converters/torch.py would stand for torch: refused in one line."""
    done = subprocess.run(
        [sys.executable, *start, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if start[0] == "-m":
        assert (done.returncode, "convert" in done.stdout) == (0, True)
    else:
        assert (done.returncode, done.stderr) == (1, "converters: start with python -m converters\n")


def test_the_help_says_that_trust_is_no_sandbox(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["convert", "--help"])
    assert "This is not a sandbox" in " ".join(capsys.readouterr().out.split())


# --- Hostile pickles ----------------------------------------------------------------------------------


class Calls:
    """Pickled as a call: what unpickling runs."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def failure(path: Path, **limits: Any) -> ConversionError:
    request = conversion.Request(str(path), trust_pickle=True)
    with pytest.raises(ConversionError) as caught, convert_apart(request, **{"timeout_s": 120, **limits}):
        pass
    return caught.value


def hostile(tmp_path: Path, function: Any, *arguments: Any) -> Path:
    path = tmp_path / "hostile.pkl"
    path.write_bytes(pickle.dumps(Calls(function, *arguments)))
    return path


def test_without_trust_no_code_runs(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = hostile(tmp_path, os.mkdir, str(mark))
    with pytest.raises(ConversionError, match="runs code"):
        command.convert(path, tmp_path / "m")
    assert not mark.exists()


def test_trusted_code_sees_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    report = failure(hostile(tmp_path, eval, "__import__('os').environ['SECRET_TOKEN']"))
    assert "SECRET_TOKEN" in str(report)
    assert "s3cret" not in str(report)


def test_trusted_code_that_never_ends_is_ended(tmp_path: Path) -> None:
    start = time.monotonic()
    assert "longer than 3 s" in str(failure(hostile(tmp_path, time.sleep, 3600), timeout_s=3))
    assert time.monotonic() - start < 60


def test_trusted_code_prints_no_control_characters(tmp_path: Path) -> None:
    """As progress they would reach the user's terminal."""
    path = hostile(tmp_path, print, "progress: \x1b[31mred\x07")
    seen: list[str] = []
    with (
        pytest.raises(ConversionError),
        convert_apart(conversion.Request(str(path), trust_pickle=True), timeout_s=120, progress=seen.append),
    ):
        pass
    assert "?[31mred?" in seen


def test_trusted_code_has_no_more_memory_than_given(tmp_path: Path) -> None:
    path = hostile(tmp_path, bytearray, 1 << 42)
    assert "more memory" in str(failure(path, memory_bytes=8 << 30))


def test_trusted_code_that_kills_its_process_is_reported(tmp_path: Path) -> None:
    assert "ended with exit code 7" in str(failure(hostile(tmp_path, os._exit, 7)))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_of_a_library_is_reported(number: signal.Signals, tmp_path: Path) -> None:
    """The command itself goes on, and says which signal ended the process that read the artifact."""
    path = hostile(tmp_path, eval, f"__import__('os').kill(__import__('os').getpid(), {int(number)})")
    message = str(failure(path))
    assert f"a library crashed ({number.name})" in message
    assert "\n" not in message


def test_trusted_code_that_needs_too_long_is_not_called_a_crash(tmp_path: Path) -> None:
    path = hostile(tmp_path, eval, "__import__('os').kill(__import__('os').getpid(), 9)")
    assert "ended by SIGKILL: the artifact may be damaged, or need more memory" in str(failure(path))


def test_trusted_code_has_no_network_where_the_kernel_allows_it(tmp_path: Path) -> None:
    """A listener here, on loopback: the child's own loopback has none."""
    probe = "__import__('ctypes').CDLL(None).unshare(0x40000000)"
    allowed = (
        subprocess.run([sys.executable, "-c", f"raise SystemExit({probe})"], check=False).returncode == 0
    )
    if not allowed:
        pytest.skip("this kernel lets no process leave its network")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        report = failure(hostile(tmp_path, socket.create_connection, ("127.0.0.1", port), 5))
    assert "cannot be unpickled" in str(report)


def test_a_pickle_of_an_unknown_module_names_it(tmp_path: Path) -> None:
    path = tmp_path / "unknown.pkl"
    path.write_bytes(b"\x80\x04\x8c\x0bmissing_mod\x8c\x05Model\x93.")
    assert 'needs the module "missing_mod"' in str(failure(path))


# --- Optional steps -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a training that is cut short
        made = neural_network.MLPRegressor(hidden_layer_sizes=(64, 64), max_iter=5, random_state=1).fit(
            X, X[:, 0]
        )
    return sklearn.convert(made, precision="32")


@pytest.mark.parametrize("step", ["optimize", "float16", "quantize"])
def test_optional_steps_pass_a_gate_of_their_own(step: str, network: Any, tmp_path: Path) -> None:
    said: list[str] = []
    changed, figures = reductions.apply(network, [step], {}, said.append)
    [entry] = figures["steps"]
    assert entry["step"] == step
    assert entry["us_before"] > 0
    assert any("bytes" in line for line in said)
    if step == "optimize":
        assert conversion.judge(changed).passed
    else:
        assert entry["bytes_after"] < 0.7 * entry["bytes_before"]
        with pytest.raises(ConversionRefused, match="outside the tolerances"):
            reductions.apply(network, [step], {"rtol": 0, "atol": 0, "rows": 0}, said.append)
    conversion.finish(changed, tmp_path / "m", figures=figures)
    assert json.loads((tmp_path / "m" / "parity.json").read_text())["steps"] == [entry]
