"""Boosted trees beyond the collection: what the libraries' files may hold, and what cannot be converted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.errors import ConversionError, MissingExtra

try:
    import catboost
    import lightgbm
    import pandas as pd
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


@pytest.mark.parametrize("kind", ["regressor", "classifier", "ranker"])
def test_a_wrappers_file_answers_up_to_the_best_iteration(kind: str, tmp_path: Path) -> None:
    """A booster by itself answers with all trees that are in the file."""
    options: dict[str, Any] = {"n_estimators": 40, "learning_rate": 0.9, "early_stopping_rounds": 2}
    group: dict[str, Any] = {}
    wrapper: Any = {
        "regressor": xgboost.XGBRegressor, "classifier": xgboost.XGBClassifier, "ranker": xgboost.XGBRanker,
    }[kind]  # fmt: skip
    target = Y + RNG.normal(size=120) if kind == "regressor" else (Y + RNG.normal(size=120) > 0).astype(int)
    if kind == "ranker":
        group = {"qid": np.arange(60) // 10, "eval_qid": [np.arange(60) // 10]}
    model = wrapper(**options)
    model.fit(X[:60], target[:60], eval_set=[(X[60:], target[60:])], verbose=False, **group)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    path = tmp_path / "model.ubj"
    model.save_model(path)

    conversion = frameworks.convert_artifact(Request(str(path)))
    answers: Any = load_graph(conversion.model).run({"features": X.astype(np.float32)})
    found = answers["probabilities"] if kind == "classifier" else answers["prediction"][:, 0]
    expected = model.predict_proba(X) if kind == "classifier" else model.predict(X)
    assert np.allclose(found, expected, atol=1e-5)


def test_a_missing_value_adds_nothing_to_a_linear_booster() -> None:
    model = xgboost.XGBRegressor(booster="gblinear", n_estimators=4).fit(X, Y)
    holes = np.where(RNG.random(X.shape) < 0.3, np.nan, X).astype(np.float32)

    answers: Any = load_graph(proven(model, xgboost_converter.convert).model).run({"features": holes})
    assert np.allclose(answers["prediction"][:, 0], model.predict(holes), atol=1e-5)


def test_a_linear_booster_of_named_columns_is_asked_by_name() -> None:
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    proven(
        xgboost.XGBClassifier(booster="gblinear", n_estimators=4).fit(frame, Y > 0), xgboost_converter.convert
    )


def categories() -> Any:
    """A data frame with categories of text, and its codes as the converted model takes them."""
    frame = pd.DataFrame({"a": X[:, 0], "b": pd.Categorical(RNG.choice(list("xyzuvw"), 120))})
    return frame, np.column_stack([frame["a"], frame["b"].cat.codes])


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_numbers_that_are_no_category(library: str) -> None:
    """The one takes all below 0 for unknown; the other casts to int first, which makes -0.5 the category 0."""
    frame, codes = categories()
    target = Y + codes[:, 1]
    if library == "xgboost":
        model: Any = xgboost.XGBRegressor(n_estimators=4, enable_categorical=True).fit(frame, target)
        conversion = proven(model, xgboost_converter.convert)
        booster = model.get_booster()
    else:
        model = lightgbm.LGBMRegressor(n_estimators=4, verbose=-1, min_data_per_group=2, cat_smooth=1).fit(
            frame, target
        )
        conversion = proven(model, lightgbm_converter.convert)
    graph = load_graph(conversion.model)
    for odd in (-0.5, -1, -1.5, 0.5, 1.7, 40, 1e7, 3e9, np.nan):
        rows = codes.astype(np.float32 if library == "xgboost" else np.float64)
        rows[:, 1] = odd
        if library == "xgboost":
            matrix = xgboost.DMatrix(
                rows, feature_names=["a", "b"], feature_types=["float", "c"], enable_categorical=True
            )
            expected = booster.predict(matrix)
        else:
            expected = model.booster_.predict(rows)
        answers: Any = graph.run({"features": rows})
        assert np.allclose(answers["prediction"][:, 0], expected, atol=1e-5), odd


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_the_metadata_tell_which_category_a_number_is(library: str) -> None:
    frame, _ = categories()
    if library == "xgboost":
        made = xgboost_converter.convert(
            xgboost.XGBRegressor(n_estimators=2, enable_categorical=True).fit(frame, Y)
        )
        expected: Any = {"b": sorted("xyzuvw")}
    else:
        made = lightgbm_converter.convert(lightgbm.LGBMRegressor(n_estimators=2, verbose=-1).fit(frame, Y))
        expected = [sorted("xyzuvw")]

    assert json.loads(made.properties["onnx_serve.categories"]) == expected
    assert any("categorical columns take the numbers" in note for note in made.notes)


def test_a_set_of_no_category_takes_no_number_for_a_member() -> None:
    ensemble = trees.Ensemble(1, 1)
    nodes: dict[int, Any] = {
        0: trees.Split(0, "", 0.0, 1, 2, members=()),
        1: trees.Leaf([1.0]),
        2: trees.Leaf([0.0]),
    }
    ensemble.grow(0, lambda key: nodes[key])

    rows = np.array([[-1.0], [0.0], [np.nan]])
    answers: Any = load_graph(boosted.to_model(boosted.Boosting(ensemble, [0.0], "identity"))).run(
        {"features": rows}
    )
    assert not answers["prediction"].any()


@pytest.mark.filterwarnings("ignore:Cannot compute class probabilities")
def test_a_classifier_by_an_objective_of_ones_own_answers_sums() -> None:
    """As LightGBM's ``predict`` does: the sums are neither probabilities nor compared with 0.5."""

    def logistic(target: Any, sums: Any) -> Any:
        share = 1 / (1 + np.exp(-sums))
        return share - target, share * (1 - share)

    model = lightgbm.LGBMClassifier(objective=logistic, n_estimators=4, verbose=-1).fit(X, Y > 0)
    conversion = proven(model, lightgbm_converter.convert)

    answers: Any = load_graph(conversion.model).run({"features": X})
    assert set(answers) == {"prediction"}
    assert np.allclose(answers["prediction"][:, 0], model.predict(X), atol=1e-5)


def test_options_that_a_library_does_not_have_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    xgboost.XGBRegressor(n_estimators=1).fit(X, Y).save_model(path)

    with pytest.raises(ConversionError, match='--option: xgboost takes none, got "float"'):
        frameworks.convert_artifact(Request(str(path), options={"float": "32"}))


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
