"""Trained artifacts of every family and format, each with its verdict: parity, or a refusal with a reason.

Everything is trained here, from fixed seeds, on a few hundred rows.
"""

import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.errors import ConversionError, ConversionRefused, MissingExtra
from onnx_serve.tensors import Array

try:
    import catboost
    import joblib
    import lightgbm
    import pandas as pd
    import skl2onnx
    import skops.io
    import xgboost
    from sklearn import (
        calibration,
        cluster,
        compose,
        decomposition,
        discriminant_analysis,
        ensemble,
        feature_extraction,
        feature_selection,
        gaussian_process,
        impute,
        linear_model,
        mixture,
        model_selection,
        multiclass,
        multioutput,
        naive_bayes,
        neighbors,
        neural_network,
        pipeline,
        preprocessing,
        svm,
        tree,
    )  # fmt: skip

    from converters import frameworks, sklearn_graph
    from converters import sklearn as estimators
    from converters.conversion import Conversion, Request, judge, load_graph
except (ModuleNotFoundError, MissingExtra) as ex:
    pytest.skip(f"sklearn and boosting models cannot be converted here: {ex}", allow_module_level=True)

RNG = np.random.default_rng(20240607)
N = 240
X: Array = RNG.normal(size=(N, 5)) * [1, 10, 100, 1, 1000]
X_NAN: Array = np.where(RNG.random(X.shape) < 0.1, np.nan, X)
CODES: Array = np.column_stack([X[:, :3], RNG.integers(0, 9, N), X[:, 4]])
CODES_NAN: Array = np.where(RNG.random(X.shape) < 0.1, np.nan, CODES)
BINARY: Array = (X[:, 0] + X[:, 1] / 10 + (CODES[:, 3] % 2) > 0.5).astype(int)
THREE: Array = RNG.integers(0, 3, N)
NAMES: Array = np.where(BINARY, "yes", "no")
TARGET: Array = X[:, 0] * 3 + X[:, 1] + CODES[:, 3]
POSITIVE: Array = np.exp(X[:, 0])
SHARE: Array = RNG.random(N)
BOTH: Array = np.column_stack([BINARY, 1 - BINARY])
TEXTS: list[str] = [
    str(text) for text in RNG.choice(["good café", "bad thing here", "so so", "l'été à Paris"], N)
]
TABLE: dict[str, Any] = {
    "age (years)": X[:, 0],
    "city": RNG.choice(["Paris", "Ōsaka", "NY"], N),
    "size": RNG.integers(0, 4, N),
    "text": TEXTS,
}
PARITY = ""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A recipe and its verdict.

    Attributes:
        make: Trains the model.
        verdict: Words of the refusal, or ``PARITY``.
        outputs: The outputs that the converted model must have, where they are not plain.
        saved: How it is stored: ``pickle``, ``joblib``, ``skops`` or a library's own format.
    """

    make: Callable[[], Any]
    verdict: str = PARITY
    outputs: tuple[str, ...] = ()
    saved: str = "joblib"


def frame() -> Any:
    return pd.DataFrame(TABLE)


def columns() -> Any:
    return compose.ColumnTransformer(
        [
            (
                "number",
                pipeline.make_pipeline(impute.SimpleImputer(), preprocessing.StandardScaler()),
                ["age (years)"],
            ),
            ("category", preprocessing.OneHotEncoder(handle_unknown="ignore"), ["city", "size"]),
            ("text", feature_extraction.text.TfidfVectorizer(), "text"),
        ]
    )


def piped(*steps: Any) -> Any:
    return pipeline.make_pipeline(*steps)


def booster(objective: str, label: Array, **params: Any) -> Any:
    return xgboost.train(
        {"objective": objective, "max_depth": 3, "seed": 1, **params}, xgboost.DMatrix(X, label), 6
    )


XGB: dict[str, Any] = {"n_estimators": 8, "max_depth": 3, "random_state": 1}
LGB: dict[str, Any] = {"n_estimators": 8, "random_state": 1, "verbose": -1, "min_child_samples": 5}
CAT: dict[str, Any] = {
    "iterations": 8,
    "depth": 3,
    "random_seed": 1,
    "verbose": 0,
    "allow_writing_files": False,
}
TREES: dict[str, Any] = {"n_estimators": 8, "random_state": 1}
LINEAR: dict[str, Any] = {"max_iter": 500}

ARTIFACTS = {
    # --- scikit-learn: linear, kernels, neighbours, networks
    "logistic": Artifact(lambda: linear_model.LogisticRegression(**LINEAR).fit(X, BINARY), saved="pickle"),
    "logistic, names": Artifact(
        lambda: linear_model.LogisticRegression(**LINEAR).fit(X, NAMES), saved="skops"
    ),
    "logistic, three classes": Artifact(lambda: linear_model.LogisticRegression(**LINEAR).fit(X, THREE)),
    "ridge": Artifact(lambda: linear_model.Ridge().fit(X, TARGET), outputs=("prediction",), saved="skops"),
    "ridge classifier": Artifact(
        lambda: linear_model.RidgeClassifier().fit(X, BINARY), outputs=("label", "scores")
    ),
    "poisson regression": Artifact(lambda: linear_model.PoissonRegressor().fit(X[:, :1], POSITIVE)),
    "lasso, two targets": Artifact(lambda: linear_model.MultiTaskLasso().fit(X, BOTH)),
    "sgd": Artifact(
        lambda: piped(preprocessing.StandardScaler(), linear_model.SGDClassifier(random_state=1)).fit(
            X, THREE
        )
    ),
    "linear svc": Artifact(
        lambda: svm.LinearSVC(random_state=1).fit(X / 100, BINARY), outputs=("label", "scores")
    ),
    "svc": Artifact(lambda: svm.SVC(random_state=1).fit(X, BINARY), outputs=("label", "scores")),
    "svr": Artifact(lambda: piped(preprocessing.RobustScaler(), svm.SVR()).fit(X, TARGET)),
    "gaussian nb": Artifact(lambda: naive_bayes.GaussianNB().fit(X, THREE)),
    "multinomial nb": Artifact(lambda: naive_bayes.MultinomialNB().fit(np.abs(X), THREE)),
    "neighbours": Artifact(lambda: neighbors.KNeighborsClassifier().fit(X, THREE)),
    "network": Artifact(
        lambda: piped(
            preprocessing.StandardScaler(), neural_network.MLPClassifier((8,), max_iter=30, random_state=1)
        ).fit(X, THREE)
    ),
    "gaussian process": Artifact(
        lambda: gaussian_process.GaussianProcessRegressor().fit(X[:40, :2], TARGET[:40])
    ),
    "discriminant, linear": Artifact(
        lambda: discriminant_analysis.LinearDiscriminantAnalysis().fit(X, THREE)
    ),
    "discriminant, quadratic": Artifact(
        lambda: discriminant_analysis.QuadraticDiscriminantAnalysis().fit(X, THREE)
    ),
    # --- trees, where float32 thresholds and missing values are the trap
    "tree": Artifact(lambda: tree.DecisionTreeClassifier(max_depth=5, random_state=1).fit(X, THREE)),
    "tree, missing values": Artifact(
        lambda: tree.DecisionTreeRegressor(max_depth=5, random_state=1).fit(X_NAN, TARGET)
    ),
    "forest": Artifact(lambda: ensemble.RandomForestClassifier(**TREES).fit(X, NAMES), saved="pickle"),
    "forest, missing values": Artifact(lambda: ensemble.RandomForestClassifier(**TREES).fit(X_NAN, THREE)),
    "forest, scaled": Artifact(
        lambda: piped(preprocessing.StandardScaler(), ensemble.RandomForestClassifier(**TREES)).fit(X, BINARY)
    ),
    "forest, two targets": Artifact(lambda: ensemble.RandomForestRegressor(**TREES).fit(X, BOTH)),
    "forest, two labels": Artifact(lambda: ensemble.RandomForestClassifier(**TREES).fit(X, BOTH)),
    "extra trees": Artifact(lambda: ensemble.ExtraTreesRegressor(**TREES).fit(X, TARGET)),
    "gradient boosting": Artifact(lambda: ensemble.GradientBoostingClassifier(**TREES).fit(X, THREE)),
    "gradient boosting, scaled": Artifact(
        lambda: piped(preprocessing.MinMaxScaler(), ensemble.GradientBoostingRegressor(**TREES)).fit(
            X, TARGET
        )
    ),
    "histogram": Artifact(
        lambda: ensemble.HistGradientBoostingClassifier(max_iter=8, random_state=1).fit(X_NAN, THREE)
    ),
    "histogram, categories": Artifact(
        lambda: ensemble.HistGradientBoostingClassifier(
            max_iter=8, categorical_features=[3], min_samples_leaf=5, random_state=1
        ).fit(CODES_NAN, BINARY)
    ),
    "histogram, poisson": Artifact(
        lambda: ensemble.HistGradientBoostingRegressor(max_iter=8, loss="poisson", random_state=1).fit(
            X, POSITIVE
        )
    ),
    "histogram, categories of text": Artifact(
        lambda: ensemble.HistGradientBoostingRegressor(max_iter=3, categorical_features=["city"]).fit(
            frame()[["age (years)", "city"]].astype({"city": "category"}), TARGET
        ),
        verdict="the categories of column 1 are text",
    ),
    "adaboost, scaled": Artifact(
        lambda: piped(preprocessing.StandardScaler(), ensemble.AdaBoostClassifier(**TREES)).fit(X, BINARY)
    ),
    "bagging": Artifact(lambda: ensemble.BaggingClassifier(**TREES).fit(X, BINARY)),
    "isolation forest": Artifact(
        lambda: ensemble.IsolationForest(**TREES).fit(X), outputs=("label", "scores")
    ),
    # --- ensembles of several kinds
    "stacking": Artifact(
        lambda: ensemble.StackingClassifier(
            [
                ("forest", ensemble.RandomForestClassifier(**TREES)),
                ("histogram", ensemble.HistGradientBoostingClassifier(max_iter=4)),
                ("linear", linear_model.LogisticRegression(**LINEAR)),
            ],
            cv=2,
        ).fit(X, BINARY)
    ),
    "voting, soft": Artifact(
        lambda: ensemble.VotingClassifier(
            [
                ("x", xgboost.XGBClassifier(**XGB)),
                ("l", lightgbm.LGBMClassifier(**LGB)),
                ("n", naive_bayes.GaussianNB()),
            ],
            voting="soft",
        ).fit(X, BINARY)
    ),
    "voting, hard": Artifact(
        lambda: ensemble.VotingClassifier(
            [
                ("t", tree.DecisionTreeClassifier(max_depth=3)),
                ("n", naive_bayes.GaussianNB()),
                ("l", linear_model.RidgeClassifier()),
            ]
        ).fit(X, THREE),
        outputs=("label",),
    ),
    "calibrated": Artifact(
        lambda: calibration.CalibratedClassifierCV(ensemble.RandomForestClassifier(**TREES), cv=2).fit(
            X, BINARY
        )
    ),
    "grid search": Artifact(
        lambda: model_selection.GridSearchCV(linear_model.Ridge(), {"alpha": [1, 2]}).fit(X, TARGET)
    ),
    "random search": Artifact(
        lambda: model_selection.RandomizedSearchCV(
            tree.DecisionTreeRegressor(), {"max_depth": [2, 3]}, n_iter=2
        ).fit(X, TARGET)
    ),
    "one against the rest, labels": Artifact(
        lambda: multiclass.OneVsRestClassifier(linear_model.LogisticRegression(**LINEAR)).fit(X, BOTH)
    ),
    "several outputs": Artifact(
        lambda: multioutput.MultiOutputClassifier(linear_model.LogisticRegression(**LINEAR)).fit(X, BOTH)
    ),
    "several targets": Artifact(lambda: multioutput.MultiOutputRegressor(linear_model.Ridge()).fit(X, BOTH)),
    # --- transformers, clusters, mixtures
    "scaler and pca": Artifact(
        lambda: piped(preprocessing.StandardScaler(), decomposition.PCA(3)).fit(X), outputs=("transformed",)
    ),
    "imputer and polynomials": Artifact(
        lambda: piped(impute.SimpleImputer(), preprocessing.PolynomialFeatures(2), linear_model.Ridge()).fit(
            X_NAN, TARGET
        )
    ),
    "selection": Artifact(lambda: feature_selection.SelectKBest(k=2).fit(X, THREE)),
    "quantiles": Artifact(lambda: preprocessing.QuantileTransformer(n_quantiles=20).fit(X)),
    "k-means": Artifact(
        lambda: cluster.KMeans(3, n_init=1, random_state=1).fit(X), outputs=("label", "scores")
    ),
    "mixture": Artifact(lambda: mixture.GaussianMixture(2, random_state=1).fit(X)),
    # --- tables and texts
    "table": Artifact(
        lambda: piped(columns(), linear_model.LogisticRegression(**LINEAR)).fit(frame(), BINARY)
    ),
    "table, forest": Artifact(
        lambda: piped(columns(), ensemble.RandomForestClassifier(**TREES)).fit(frame(), NAMES)
    ),
    "text, accents": Artifact(
        lambda: piped(
            feature_extraction.text.TfidfVectorizer(), linear_model.LogisticRegression(**LINEAR)
        ).fit(TEXTS, BINARY)
    ),
    "text, pairs of words": Artifact(
        lambda: piped(
            feature_extraction.text.CountVectorizer(ngram_range=(1, 2), lowercase=False),
            naive_bayes.MultinomialNB(),
        ).fit(TEXTS, THREE)
    ),
    "text, characters in words": Artifact(
        lambda: piped(
            feature_extraction.text.TfidfVectorizer(analyzer="char_wb"),
            linear_model.LogisticRegression(**LINEAR),
        ).fit(TEXTS, BINARY),
        verdict="only tokenizer='word' is fully supported",
    ),
    "text, hashed": Artifact(
        lambda: piped(
            feature_extraction.text.HashingVectorizer(), linear_model.LogisticRegression(**LINEAR)
        ).fit(TEXTS, BINARY),
        verdict='step "hashingvectorizer": HashingVectorizer has no ONNX converter',
    ),
    "a function": Artifact(
        lambda: piped(preprocessing.FunctionTransformer(np.log1p), linear_model.Ridge()).fit(
            np.abs(X), TARGET
        ),
        saved="pickle",
    ),
    "a function without a converter": Artifact(
        lambda: piped(preprocessing.FunctionTransformer(np.cbrt), linear_model.Ridge()).fit(X, TARGET),
        verdict="the function cbrt has no converter",
    ),
    "tuned threshold": Artifact(
        lambda: model_selection.TunedThresholdClassifierCV(
            linear_model.LogisticRegression(**LINEAR), cv=2
        ).fit(X, BINARY)
    ),
    "not fitted": Artifact(linear_model.LogisticRegression, verdict="is not fitted"),
    "no prediction": Artifact(lambda: cluster.DBSCAN().fit(X), verdict="neither predict nor transform"),
    "no model": Artifact(lambda: {"weights": [1, 2]}, verdict='holds "builtins.dict"'),
    # --- xgboost
    "xgboost, binary, missing values": Artifact(
        lambda: xgboost.XGBClassifier(**XGB).fit(X_NAN, BINARY), saved="ubj"
    ),
    "xgboost, three classes": Artifact(lambda: xgboost.XGBClassifier(**XGB).fit(X, THREE), saved="json"),
    "xgboost, several labels": Artifact(lambda: xgboost.XGBClassifier(**XGB).fit(X, BOTH), saved="ubj"),
    "xgboost, regressor of probabilities": Artifact(
        lambda: xgboost.XGBRegressor(objective="binary:logistic", **XGB).fit(X, SHARE), saved="ubj"
    ),
    "xgboost, poisson": Artifact(lambda: booster("count:poisson", POSITIVE), saved="json"),
    "xgboost, softmax": Artifact(lambda: booster("multi:softmax", THREE, num_class=3), saved="ubj"),
    "xgboost, linear": Artifact(
        lambda: booster("reg:squarederror", TARGET, booster="gblinear"), saved="json"
    ),
    "xgboost, dart": Artifact(
        lambda: xgboost.XGBRegressor(booster="dart", rate_drop=0.4, **XGB).fit(X, TARGET)
    ),
    "xgboost, quantiles": Artifact(
        lambda: xgboost.XGBRegressor(objective="reg:quantileerror", quantile_alpha=[0.1, 0.9], **XGB).fit(
            X, TARGET
        )
    ),
    "xgboost, ranking": Artifact(
        lambda: xgboost.XGBRanker(**XGB).fit(X, THREE, qid=np.repeat(np.arange(N // 10), 10))
    ),
    "xgboost, a number that is missing": Artifact(
        lambda: xgboost.XGBRegressor(missing=3.0, **XGB).fit(CODES, TARGET)
    ),
    "xgboost, early stop": Artifact(
        lambda: xgboost.XGBClassifier(early_stopping_rounds=1, **XGB | {"n_estimators": 30}).fit(
            X, BINARY, eval_set=[(X[:40], THREE[:40] > 0)], verbose=0
        )
    ),
    "xgboost, categories": Artifact(
        lambda: xgboost.train(
            {"objective": "binary:logistic", "max_depth": 3, "max_cat_to_onehot": 2},
            xgboost.DMatrix(CODES_NAN, BINARY, feature_types=list("qqqcq"), enable_categorical=True),
            6,
        ),
        saved="ubj",
    ),
    "xgboost, trees of several targets": Artifact(
        lambda: xgboost.XGBRegressor(multi_strategy="multi_output_tree", **XGB).fit(X, BOTH),
        verdict="train with multi_strategy=one_output_per_tree",
    ),
    "xgboost, in a pipeline": Artifact(
        lambda: piped(preprocessing.StandardScaler(), xgboost.XGBClassifier(**XGB)).fit(X, THREE),
        saved="pickle",
    ),
    "xgboost, hinge": Artifact(lambda: xgboost.XGBClassifier(objective="binary:hinge", **XGB).fit(X, BINARY)),
    "xgboost, categories in a classifier": Artifact(
        lambda: xgboost.XGBClassifier(enable_categorical=True, feature_types=list("qqqcq"), **XGB).fit(
            CODES, THREE
        )
    ),
    "xgboost, logits": Artifact(lambda: booster("binary:logitraw", BINARY), saved="ubj"),
    "xgboost, not fitted": Artifact(xgboost.XGBClassifier, verdict="is not fitted"),
    "lightgbm, not fitted": Artifact(lightgbm.LGBMClassifier, verdict="is not fitted"),
    "catboost, not fitted": Artifact(lambda: catboost.CatBoostClassifier(**CAT), verdict="is not fitted"),
    "lightgbm, categories of a frame": Artifact(
        lambda: lightgbm.LGBMRegressor(**LGB).fit(
            frame()[["age (years)", "city"]].astype({"city": "category"}), TARGET
        )
    ),
    "lightgbm, an objective of one's own": Artifact(
        lambda: (
            lightgbm.LGBMRegressor(objective=lambda truth, guess: (guess - truth, np.ones_like(truth)), **LGB)
            .fit(X, TARGET)
            .booster_
        ),
        saved="txt",
    ),
    "catboost, one against all": Artifact(
        lambda: catboost.CatBoostClassifier(loss_function="MultiClassOneVsAll", **CAT).fit(X, THREE),
        saved="cbm",
    ),
    # --- LightGBM
    "lightgbm, binary, missing values": Artifact(lambda: lightgbm.LGBMClassifier(**LGB).fit(X_NAN, NAMES)),
    "lightgbm, text": Artifact(
        lambda: lightgbm.LGBMClassifier(**LGB).fit(X, THREE), outputs=("prediction",), saved="txt"
    ),
    "lightgbm, categories": Artifact(
        lambda: lightgbm.LGBMRegressor(**LGB).fit(CODES_NAN, TARGET, categorical_feature=[3]), saved="txt"
    ),
    "lightgbm, zeros are missing": Artifact(
        lambda: lightgbm.LGBMRegressor(zero_as_missing=True, **LGB).fit(np.where(X < -1, 0, X), TARGET),
        saved="txt",
    ),
    "lightgbm, random forest": Artifact(
        lambda: lightgbm.LGBMClassifier(boosting_type="rf", bagging_freq=1, bagging_fraction=0.7, **LGB).fit(
            X, BINARY
        )
    ),
    "lightgbm, one against all": Artifact(
        lambda: lightgbm.LGBMClassifier(objective="multiclassova", **LGB).fit(X, THREE)
    ),
    "lightgbm, root": Artifact(lambda: lightgbm.LGBMRegressor(reg_sqrt=True, **LGB).fit(X, POSITIVE)),
    "lightgbm, gamma": Artifact(lambda: lightgbm.LGBMRegressor(objective="gamma", **LGB).fit(X, POSITIVE)),
    "lightgbm, entropy": Artifact(
        lambda: lightgbm.LGBMRegressor(objective="cross_entropy_lambda", **LGB).fit(X, SHARE)
    ),
    "lightgbm, large values": Artifact(
        lambda: lightgbm.LGBMRegressor(**LGB | {"n_estimators": 100}).fit(X, TARGET * 1e4)
    ),
    "lightgbm, linear trees": Artifact(
        lambda: lightgbm.LGBMRegressor(linear_tree=True, **LGB).fit(X, TARGET), verdict="linear trees"
    ),
    "lightgbm, in a pipeline": Artifact(
        lambda: piped(preprocessing.MinMaxScaler(), lightgbm.LGBMRegressor(**LGB)).fit(X, TARGET)
    ),
    # --- CatBoost
    "catboost, binary": Artifact(lambda: catboost.CatBoostClassifier(**CAT).fit(X_NAN, BINARY), saved="cbm"),
    "catboost, names": Artifact(lambda: catboost.CatBoostClassifier(**CAT).fit(X, NAMES), saved="cbm"),
    "catboost, three classes": Artifact(lambda: catboost.CatBoostClassifier(**CAT).fit(X, THREE)),
    "catboost, deep on one side": Artifact(
        lambda: catboost.CatBoostRegressor(grow_policy="Lossguide", **CAT).fit(X_NAN, TARGET), saved="cbm"
    ),
    "catboost, two targets": Artifact(
        lambda: catboost.CatBoostRegressor(loss_function="MultiRMSE", **CAT).fit(X, BOTH), saved="cbm"
    ),
    "catboost, poisson": Artifact(
        lambda: catboost.CatBoostRegressor(loss_function="Poisson", **CAT).fit(X, POSITIVE), saved="cbm"
    ),
    "catboost, categories": Artifact(
        lambda: catboost.CatBoostClassifier(cat_features=[1], **CAT).fit(
            frame()[["age (years)", "city"]], BINARY
        ),
        verdict="categorical features",
        saved="cbm",
    ),
    "catboost, uncertainty": Artifact(
        lambda: catboost.CatBoostRegressor(loss_function="RMSEWithUncertainty", **CAT).fit(X, TARGET),
        verdict='the loss "RMSEWithUncertainty"',
        saved="cbm",
    ),
    "catboost, in a pipeline": Artifact(
        lambda: piped(preprocessing.StandardScaler(), catboost.CatBoostClassifier(**CAT)).fit(X, THREE)
    ),
}


@cache
def stored(name: str, folder: Path) -> Path:
    """The artifact in a file whose name tells nothing of its format."""
    artifact = ARTIFACTS[name]
    path = folder / f"{list(ARTIFACTS).index(name)}.model"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the libraries say while they train is not the matter
        model = artifact.make()
    match artifact.saved:
        case "pickle":
            path.write_bytes(pickle.dumps(model))
        case "joblib":
            joblib.dump(model, path)
        case "skops":
            skops.io.dump(model, path)
        case "txt":
            getattr(model, "booster_", model).save_model(path)
        case "json" | "ubj":
            named = path.with_suffix(f".{artifact.saved}")
            model.save_model(named)
            named.rename(path)
        case _:
            model.save_model(str(path))
    return path


def convert(path: Path, **fields: Any) -> Conversion:
    return frameworks.convert_artifact(Request(artifact=str(path), trust_pickle=True, **fields))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.mark.parametrize("name", [name for name, found in ARTIFACTS.items() if not found.verdict])
def test_the_converted_model_answers_as_the_original(name: str, folder: Path) -> None:
    """Judged once more here, by the serving session, on probes that are not empty."""
    artifact = ARTIFACTS[name]
    conversion = convert(stored(name, folder))
    report = judge(conversion)
    assert report.passed, "\n".join(report.lines())
    assert sum(report.cases.values()) >= 64
    assert not report.unchecked
    if artifact.outputs:
        assert tuple(output.name for output in report.outputs) == artifact.outputs


@pytest.mark.parametrize("name", [name for name, found in ARTIFACTS.items() if found.verdict])
def test_what_cannot_be_converted_is_refused_with_a_reason(name: str, folder: Path) -> None:
    with pytest.raises(ConversionError) as caught:
        convert(stored(name, folder))
    assert ARTIFACTS[name].verdict in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_the_collection_covers_every_format_and_both_verdicts() -> None:
    assert len(ARTIFACTS) >= 60
    assert {found.saved for found in ARTIFACTS.values()} == {
        "pickle", "joblib", "skops", "txt", "json", "ubj", "cbm"
    }  # fmt: skip
    assert sum(bool(found.verdict) for found in ARTIFACTS.values()) >= 10


# --- Samples, options, types --------------------------------------------------------------------------


def test_a_sample_is_the_first_probe_and_tells_the_columns(folder: Path) -> None:
    rows = folder / "rows.csv"
    frame().to_csv(rows, index=False)
    conversion = convert(stored("table", folder), sample=str(rows))
    assert conversion.cases[0].probe.name == "sample"
    assert list(conversion.cases[0].probe.feed) == list(TABLE)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("table", "age (years),city\n1,NY\n", 'missing "size", "text"'),
        ("logistic", "a,b\n1,2\n", "expected 5 columns, got 2"),
        ("logistic", "a,b,c,d,e\n1,2,3,4,x\n", "takes numbers, not text"),
        ("xgboost, three classes", "a,b,c,d,e\n1,2,3,4,x\n", "expected numbers"),
        ("xgboost, three classes", "a,b\n1,2\n", "expected rows of 5 numbers"),
        ("logistic", "a,b,c,d,e\n", "has no rows"),
        ("logistic", "a,b,c,d,e\n1,2,3,4,\n", "does not take these rows"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(
    name: str, text: str, message: str, folder: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(text)
    with pytest.raises(ConversionError, match=message.replace("(", r"\(")):
        convert(stored(name, folder), sample=str(rows))


def test_class_labels_are_kept_in_order(folder: Path) -> None:
    assert convert(stored("forest", folder)).labels == {"probabilities": ["no", "yes"]}


def test_inputs_are_double_where_the_original_tells_doubles_apart(folder: Path) -> None:
    """Forests cast to float32 themselves; a scaler before one does not."""
    kinds = {
        name: convert(stored(name, folder)).model.graph.input[0].type.tensor_type.elem_type
        for name in ("forest", "forest, scaled", "lightgbm, text", "xgboost, three classes")
    }
    assert kinds == {"forest": 1, "forest, scaled": 11, "lightgbm, text": 11, "xgboost, three classes": 1}


def test_single_precision_behind_a_scaler_is_refused_for_rows_that_cross(folder: Path) -> None:
    """The measured silent trap: asked for float32, the scaled features fall on the other side of thresholds."""
    with pytest.raises(ConversionRefused, match="crossing a threshold"):
        convert(stored("forest, scaled", folder), options={"float": "32"})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"float": "16"}, "expected one of auto, 32, 64"), ({"speed": "1"}, 'got "speed"')],
)
def test_unknown_options_are_refused(options: dict[str, str], message: str, folder: Path) -> None:
    with pytest.raises(ConversionError, match=message):
        convert(stored("ridge", folder), options=options)


def test_unknown_tolerances_are_refused(folder: Path) -> None:
    with pytest.raises(ConversionError, match="expected one of rtol"):
        convert(stored("ridge", folder), tolerances={"speed": 1.0})


def test_an_artifact_of_another_framework_is_refused(folder: Path) -> None:
    with pytest.raises(ConversionError, match="is xgboost UBJ"):
        convert(stored("xgboost, softmax", folder), framework="lightgbm")
    with pytest.raises(ConversionError, match="the pickle holds one of sklearn"):
        convert(stored("logistic", folder), framework="xgboost")


def test_skops_types_need_trust(tmp_path: Path) -> None:
    path = tmp_path / "tree.skops"
    skops.io.dump(tree.DecisionTreeClassifier(max_depth=2).fit(X, THREE), path)
    assert "add --option trusted=sklearn.tree._tree.Tree if you do" in str(convert_error(path))
    assert judge(convert(path, options={"trusted": "sklearn.tree._tree.Tree"})).passed
    path.write_bytes(path.read_bytes().replace(b"sklearn", b"sklaern"))
    assert "skops cannot read the file" in str(
        convert_error(path, options={"trusted": "sklaern.tree._tree.Tree"})
    )


def convert_error(path: Path, **fields: Any) -> ConversionError:
    with pytest.raises(ConversionError) as caught:
        convert(path, **fields)
    return caught.value


# --- How inputs are told ------------------------------------------------------------------------------


INPUTS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "names, one type": (
        lambda: linear_model.Ridge().fit(pd.DataFrame(X, columns=list("abcde")), TARGET),
        ["features"],
    ),
    "numbers of categories": (
        lambda: piped(preprocessing.OneHotEncoder(), linear_model.LogisticRegression()).fit(
            CODES[:, [3]].astype(int), BINARY
        ),
        ["column_0"],
    ),
    "text of categories": (
        lambda: piped(preprocessing.OrdinalEncoder(), linear_model.LogisticRegression()).fit(
            np.column_stack([TABLE["city"], NAMES]).astype(object), BINARY
        ),
        ["column_0", "column_1"],
    ),
    "columns by position": (
        lambda: piped(
            compose.ColumnTransformer(
                [
                    ("a", preprocessing.StandardScaler(), slice(0, 2)),
                    ("b", preprocessing.MinMaxScaler(), [False, False, True, False, False]),
                    ("c", "passthrough", [3]),
                    ("d", "drop", [4]),
                ]
            ),
            linear_model.Ridge(),
        ).fit(X, TARGET),
        ["features"],
    ),
    "columns by name, in slices": (
        lambda: compose.ColumnTransformer(
            [("a", preprocessing.StandardScaler(), slice("a", "c")), ("b", "passthrough", ["d", "e"])]
        ).fit(pd.DataFrame(X, columns=list("abcde"))),
        list("abcde"),
    ),
    "a union": (
        lambda: pipeline.make_union(preprocessing.StandardScaler(), preprocessing.MinMaxScaler()).fit(X),
        ["features"],
    ),
    "passed through first": (
        lambda: pipeline.Pipeline([("none", "passthrough"), ("scale", preprocessing.RobustScaler())]).fit(X),
        ["features"],
    ),
    "bins": (
        lambda: preprocessing.KBinsDiscretizer(
            4, encode="ordinal", quantile_method="averaged_inverted_cdf"
        ).fit(X),
        ["features"],
    ),
    "labels": (lambda: preprocessing.LabelEncoder().fit(NAMES), ["labels"]),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_are_what_the_estimator_was_fitted_on(name: str) -> None:
    make, expected = INPUTS[name]
    conversion = estimators.convert(make())
    assert [value.name for value in conversion.model.graph.input] == expected
    assert judge(conversion).passed


@pytest.mark.parametrize(
    ("model", "sample"),
    [
        ("text, accents", ["good café", "l'été"]),
        ("table", None),
        ("table", [list(row) for row in zip(*TABLE.values(), strict=True)]),
        ("logistic", X),
        ("grid search", [list(row) for row in X[:4]]),
    ],
)
def test_samples_from_python(model: str, sample: Any, folder: Path) -> None:
    rows = frame() if sample is None else np.array(sample, object) if model == "table" else sample
    conversion = estimators.convert(joblib_or_pickle(stored(model, folder)), rows)
    assert conversion.cases[0].probe.name == "sample"


def joblib_or_pickle(path: Path) -> Any:
    return joblib.load(path)


def test_zipmap_becomes_a_tensor() -> None:
    """skl2onnx's default for classifiers, wherever its option does not reach."""
    model = linear_model.LogisticRegression(**LINEAR).fit(X.astype(np.float32), NAMES)
    made = skl2onnx.convert_sklearn(
        model,
        initial_types=[("x", skl2onnx.common.data_types.FloatTensorType([None, 5]))],
        target_opset=sklearn_graph.OPSET,
    )
    tidy = load_graph(sklearn_graph.tidy(made, ["features"], ["label", "probabilities"]))
    answers: Any = tidy.run({"features": X.astype(np.float32)})
    assert np.allclose(answers["probabilities"], model.predict_proba(X.astype(np.float32)), atol=1e-5)
    assert [spec.onnx_type for spec in tidy.signature.outputs] == ["tensor(string)", "tensor(float)"]
