"""The process that reads artifacts, started as ``isolation`` starts it, and the reading of pickles in it."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.errors import ConversionError, MissingExtra

try:
    import joblib
    import xgboost

    from converters import catboost, conversion, frameworks
    from converters.conversion import Request
except (ModuleNotFoundError, MissingExtra) as ex:
    pytest.skip(f"boosting models cannot be converted here: {ex}", allow_module_level=True)

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(5).normal(size=(60, 3))


class Calls:
    """Pickled as a call: what unpickling runs."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def work(folder: Path, artifact: Path, **job: Any) -> dict[str, Any]:
    """What the worker says of a job."""
    request = {
        "artifact": str(artifact), "framework": "auto", "sample": None, "trust_pickle": False, "options": {},
        "tolerances": {}, "target": "installed", "memory_bytes": 32 << 30, "timeout_s": 100.0, **job,
    }  # fmt: skip
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps(request))
    subprocess.run([sys.executable, "-P", "-m", "converters.worker", str(folder)], check=True, timeout=120,
                   env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    return dict(json.loads((folder / "result.json").read_text()))


@pytest.fixture(scope="module")
def model() -> Any:
    return xgboost.XGBClassifier(n_estimators=2).fit(X, (X[:, 0] > 0).astype(int))


def pickled(folder: Path, value: Any) -> Path:
    path = folder / "value.pkl"
    path.write_bytes(pickle.dumps(value))
    return path


def test_a_worker_leaves_the_conversion_and_says_so(model: Any, tmp_path: Path) -> None:
    model.save_model(tmp_path / "x.ubj")

    assert work(tmp_path / "job", tmp_path / "x.ubj") == {"ok": True}
    read = conversion.load(tmp_path / "job" / "conversion")
    assert (read.framework, read.family) == ("xgboost", "XGBClassifier")


@pytest.mark.parametrize(
    ("value", "job", "error", "words"),
    [
        ({"a": 1}, {}, "ConversionError", 'the pickle holds "builtins.dict"'),
        (Calls(bytearray, 1 << 42), {}, "ConversionError", "needs more memory than it was given"),
        (Calls(eval, "(lambda f: f(f))(lambda f: f(f))"), {}, "ConversionError", "nested too deeply"),
        ("model", {"tolerances": {"rtol": 0.0, "atol": 0.0}}, "ConversionRefused", "outside the tolerances"),
    ],
    ids=["no model", "memory", "depth", "parity"],
)
def test_failures_come_back_as_what_they_are(
    value: Any, job: dict[str, Any], error: str, words: str, model: Any, tmp_path: Path
) -> None:
    path = pickled(tmp_path, model if value == "model" else value)

    result = work(tmp_path / "job", path, trust_pickle=True, **job)
    assert result["error"] == error
    assert words in result["message"]


# --- Reading pickles ------------------------------------------------------------------------------------


def test_a_pickle_of_a_booster_is_converted(model: Any, tmp_path: Path) -> None:
    joblib.dump(model, tmp_path / "x.joblib", compress=3)

    made = frameworks.convert_artifact(Request(str(tmp_path / "x.joblib"), trust_pickle=True))
    assert made.family == "XGBClassifier"


@pytest.mark.parametrize(
    ("value", "request_fields", "words"),
    [
        ({"a": 1}, {}, "expected a model of sklearn, torch"),
        ("model", {"framework": "catboost"}, "the pickle holds one of xgboost"),
        ("model", {"options": {"float": "32"}}, "--option: xgboost takes none"),
        ("model", {"framework": "keras"}, "--framework: expected auto, sklearn"),
        ("model", {"target": "1"}, "--target-onnxruntime: expected a version"),
        (Calls(eval, "1/0"), {}, 'cannot be unpickled: "division by zero"'),
        (Calls(eval, "__import__('no_such_module')"), {}, 'needs the module "no_such_module"'),
    ],
)
def test_pickles_that_cannot_be_converted_say_why(
    value: Any, request_fields: dict[str, Any], words: str, model: Any, tmp_path: Path
) -> None:
    path = pickled(tmp_path, model if value == "model" else value)

    with pytest.raises(ConversionError, match=words):
        frameworks.convert_artifact(Request(str(path), trust_pickle=True, **request_fields))


def test_a_missing_library_is_named_with_its_extra(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pickled(tmp_path, model)
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(MissingExtra, match=r"joblib is not installed: .*convert-sklearn"):
        frameworks.convert_artifact(Request(str(path), trust_pickle=True))
    monkeypatch.undo()
    for name in ("converters.xgboost", "xgboost"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(MissingExtra, match=r"xgboost is not installed: .*convert-boosting"):
        frameworks._module("xgboost")


def test_a_damaged_catboost_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.cbm"
    path.write_bytes(b"CBM1" + bytes(200))

    with pytest.raises(ConversionError, match="CatBoost cannot read the model"):
        frameworks.convert_artifact(Request(str(path)))


def test_a_loss_of_catboost_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConversionError, match='the loss "Novel" has no known way'):
        catboost._link("Novel", ())
