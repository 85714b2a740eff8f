"""Boosted trees beyond the collection: what the libraries' files may hold, and what cannot be converted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.errors import ConversionError, MissingExtra

try:
    import catboost
    import lightgbm
    import xgboost

    from converters import boosting as boosted
    from converters import catboost as catboost_converter
    from converters import frameworks, trees
    from converters import lightgbm as lightgbm_converter
    from converters import xgboost as xgboost_converter
    from converters.boosting_proof import class_answers
    from converters.conversion import Request, judge, load_graph
    from converters.isolation import convert_apart
except (ModuleNotFoundError, MissingExtra) as ex:
    pytest.skip(f"boosting models cannot be converted here: {ex}", allow_module_level=True)

RNG = np.random.default_rng(11)
X = RNG.normal(size=(120, 3))
Y = X[:, 0] * 2 + X[:, 1]
SHARE = RNG.random(120)
LGB: dict[str, Any] = {"verbose": -1, "min_data_in_leaf": 3, "num_leaves": 5, "seed": 1}


def lightgbm_text(**params: Any) -> str:
    label = params.pop("label", Y)
    booster = lightgbm.train(LGB | params, lightgbm.Dataset(X, label), 4)
    return str(booster.model_to_string())


def lightgbm_of(text: str) -> Any:
    return lightgbm.Booster(model_str=text)


def proven(model: Any, convert: Callable[..., Any]) -> Any:
    conversion = convert(model)
    assert judge(conversion).passed
    return conversion


@pytest.mark.parametrize(
    ("params", "edit"),
    [
        ({}, lambda text: text.replace("objective=regression", "objective=regression sqrt")),
        ({}, lambda text: text.replace("objective=regression\n", "")),
        ({"objective": "cross_entropy_lambda", "label": SHARE}, lambda text: text),
        ({"objective": "cross_entropy", "label": SHARE}, lambda text: text),
        ({"objective": "poisson", "label": np.exp(X[:, 0])}, lambda text: text),
        ({"objective": "multiclass", "num_class": 3, "label": np.arange(120) % 3}, lambda text: text),
        ({}, lambda text: text.replace("feature_names=Column_0 Column_1 Column_2", "feature_names=a b c")),
    ],
    ids=["square root", "no objective", "entropy lambda", "entropy", "poisson", "classes", "names"],
)
def test_what_lightgbm_writes_is_read(params: dict[str, Any], edit: Callable[[str], str]) -> None:
    proven(lightgbm_of(edit(lightgbm_text(**params))), lightgbm_converter.convert)


@pytest.mark.parametrize(
    ("params", "edit", "words"),
    [
        ({}, lambda text: text.replace("objective=regression", "objective=novel"), 'the objective "novel" has no'),
        ({"objective": "cross_entropy_lambda", "label": SHARE},
         lambda text: text.replace("objective=cross_entropy_lambda", "objective=cross_entropy_lambda sigmoid:2"),
         "cross_entropy_lambda with a factor"),
    ],
)  # fmt: skip
def test_what_lightgbm_may_mean_is_not_guessed(
    params: dict[str, Any], edit: Callable[[str], str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objectives that this LightGBM does not read itself come from its description of the model."""
    booster = lightgbm_of(lightgbm_text(**params))
    facts = booster.dump_model()
    objective = edit(f"objective={facts['objective']}").removeprefix("objective=")
    monkeypatch.setattr(booster, "dump_model", lambda: facts | {"objective": objective})

    with pytest.raises(ConversionError, match=words):
        lightgbm_converter.read(booster)


def test_a_feature_with_several_ways_to_treat_missing_values_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Training gives a feature one way; an edited file may not."""
    booster = lightgbm_of(lightgbm_text())
    facts = booster.dump_model()
    root = facts["tree_info"][0]["tree_structure"]
    child = next(root[side] for side in ("left_child", "right_child") if "split_feature" in root[side])
    child["split_feature"], child["missing_type"] = root["split_feature"], "Zero"
    monkeypatch.setattr(booster, "dump_model", lambda: facts)

    with pytest.raises(ConversionError, match="treats missing values in several ways"):
        lightgbm_converter.read(booster)


def test_a_text_that_ends_lightgbms_process_is_one_message(tmp_path: Path) -> None:
    """Trees of other sizes than announced: LightGBM aborts, in the process that reads artifacts."""
    path = tmp_path / "model.txt"
    path.write_text(
        lightgbm_text().replace("shrinkage=1", "shrinkage=1 ", 1).replace("leaf_value=", "leaf_value=  ", 1)
    )

    with pytest.raises(ConversionError) as caught, convert_apart(Request(str(path)), timeout_s=120):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"tree\n\xff\xfe", "bytes that are no UTF-8"),
        (b"tree\nversion=v4\n", "damaged or truncated"),
        (b"tree\nversion=v4\ntree_sizes=\nend of trees\n", "LightGBM cannot read the model"),
    ],
)
def test_damaged_lightgbm_text_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    path.write_bytes(content)

    with pytest.raises(ConversionError, match=words):
        frameworks.convert_artifact(Request(str(path)))


def test_a_damaged_xgboost_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"learner": {}}')

    with pytest.raises(ConversionError, match="xgboost cannot read the model"):
        frameworks.convert_artifact(Request(str(path)))


def test_an_objective_of_xgboost_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(xgboost_converter._LINKS, "reg:squarederror")

    with pytest.raises(ConversionError, match='the objective "reg:squarederror" has no known way'):
        xgboost_converter.convert(xgboost.XGBRegressor(n_estimators=1).fit(X, Y))


def test_a_classifier_answers_probabilities_whatever_its_objective() -> None:
    """multi:softmax gives a booster's labels; the wrapper asks it for probabilities all the same."""
    model = xgboost.XGBClassifier(n_estimators=2, objective="multi:softmax").fit(X, np.arange(120) % 3)

    conversion = proven(model, xgboost_converter.convert)
    assert conversion.cases[0].expected["probabilities"].shape[1] == 3


@pytest.mark.parametrize(
    ("model", "convert"),
    [
        (xgboost.XGBRegressor, xgboost_converter.convert),
        (lightgbm.LGBMClassifier, lightgbm_converter.convert),
        (catboost.CatBoostRegressor, catboost_converter.convert),
    ],
    ids=["xgboost", "lightgbm", "catboost"],
)
def test_what_is_not_fitted_is_refused(model: Callable[[], Any], convert: Callable[..., Any]) -> None:
    with pytest.raises(ConversionError, match="is not fitted"):
        convert(model())


@pytest.mark.parametrize("shares", [[0.2, 0.9], [[0.8, 0.2], [0.1, 0.9]]], ids=["one of two", "each"])
def test_class_answers_are_labels_and_shares(shares: Any) -> None:
    answers = class_answers(shares, ("a", "b"))

    assert list(answers["label"]) == ["a", "b"]
    assert np.allclose(answers["probabilities"], [[0.8, 0.2], [0.1, 0.9]])


@pytest.mark.parametrize(
    ("classes", "kind"),
    [((True, False), np.int64), ((1.0, 2.0), np.int64), (("a", "b"), np.str_), (np.array(["a"], object), np.str_)],
)  # fmt: skip
def test_labels_are_what_onnx_carries(classes: Any, kind: Any) -> None:
    assert boosted.label_array(classes).dtype.type is kind


@pytest.mark.parametrize("classes", [(0.5, 1.5), np.array([b"x", None], object)], ids=["fractions", "bytes"])
def test_other_labels_are_refused(classes: Any) -> None:
    with pytest.raises(ConversionError, match="expected whole numbers or text"):
        boosted.label_array(classes)


def test_an_unknown_link_is_refused() -> None:
    with pytest.raises(ConversionError, match="the link cubic is unknown"):
        boosted.to_model(boosted.Boosting(trees.Ensemble(1, 1), [0.0], "cubic"))


def test_an_ensemble_without_trees_answers_its_base() -> None:
    """The operator takes no empty ensemble."""
    made = boosted.to_model(boosted.Boosting(trees.Ensemble(2, 1), [1.5], "identity"))

    answers: Any = load_graph(made).run({"features": np.zeros((3, 2))})
    assert np.array_equal(answers["prediction"], np.full((3, 1), 1.5, np.float32))


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-46, -1e-46, 3.5e38, -3.5e38, 0.5])
def test_rounding_down_never_rounds_up(value: float) -> None:
    rounded = trees.round_down(value)

    assert rounded <= value
    with np.errstate(over="ignore"):
        following = float(np.nextafter(np.float32(rounded), np.float32(np.inf)))
    assert following > value
