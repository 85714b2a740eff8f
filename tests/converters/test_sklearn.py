"""Estimators inside estimators, and parameters: what skl2onnx converts wrongly or not at all, and what is refused."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from converters.errors import ConversionError, MissingExtra
from onnx_serve.errors import InputRefused
from onnx_serve.tensors import Array

try:
    import lightgbm
    import pandas as pd
    import skl2onnx
    import xgboost
    from sklearn import (
        calibration,
        cluster,
        compose,
        covariance,
        cross_decomposition,
        decomposition,
        discriminant_analysis,
        dummy,
        ensemble,
        feature_extraction,
        feature_selection,
        frozen,
        gaussian_process,
        impute,
        isotonic,
        kernel_approximation,
        kernel_ridge,
        linear_model,
        model_selection,
        multiclass,
        multioutput,
        naive_bayes,
        neighbors,
        neural_network,
        preprocessing,
        semi_supervised,
        svm,
        tree,
    )
    from sklearn.base import BaseEstimator
    from sklearn.experimental import enable_halving_search_cv, enable_iterative_imputer  # noqa: F401  they enable
    from sklearn.pipeline import Pipeline, make_pipeline, make_union

    from converters import sklearn as estimators
    from converters import sklearn_inputs, sklearn_operators, sklearn_probes
    from converters.conversion import judge, load_graph
except (ModuleNotFoundError, MissingExtra) as ex:
    pytest.skip(f"sklearn models cannot be converted here: {ex}", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")  # what fitting says on so few rows is not the matter

RNG = np.random.default_rng(11)
N = 120
X: Array = RNG.normal(size=(N, 4)) * [1, 10, 3, 1] + [0, 5, -1, 2]
X_NAN: Array = np.where(RNG.random(X.shape) < 0.1, np.nan, X)
POSITIVE: Array = np.abs(X) + 0.1
CODES: Array = RNG.integers(0, 4, (N, 3))
CODES_NAN: Array = np.where(RNG.random(CODES.shape) < 0.1, np.nan, CODES)
TWO: Array = (X[:, 0] + X[:, 2] > -1).astype(int)
THREE: Array = (X[:, 0] > 0).astype(int) + (X[:, 1] > 5)
SOME: Array = np.where(RNG.random(N) < 0.3, -1, THREE)
NAMES: Array = np.array(["non", "oui", "peut-être"], object)[THREE]
YES_NO: Array = np.where(TWO, "yes", "no")
LABELS: Array = np.column_stack([TWO, X[:, 3] > 2]).astype(int)
TARGET: Array = X[:, 0] * 2 + X[:, 1] - X[:, 2]
TARGETS: Array = np.column_stack([TARGET, X[:, 3] + X[:, 0]])
SKEWED: Array = np.exp(TARGET / 20)
TEXTS = [str(text) for text in RNG.choice(["good café", "bad thing here", "so so", "l'été à Paris"], N)]
FRAME: Any = pd.DataFrame(
    {"age": X[:, 0], "city": RNG.choice(["Paris", "Ōsaka", "NY"], N), "size": CODES[:, 0], "text": TEXTS}
)

Scale, Logistic, Ridge = preprocessing.StandardScaler, linear_model.LogisticRegression, linear_model.Ridge
Tree, OneHot = tree.DecisionTreeClassifier, preprocessing.OneHotEncoder
LinearSVC, Forest = svm.LinearSVC, ensemble.RandomForestClassifier
Target, Calibrated = compose.TransformedTargetRegressor, calibration.CalibratedClassifierCV
Function, Power, Spline = (
    preprocessing.FunctionTransformer, preprocessing.PowerTransformer, preprocessing.SplineTransformer,
)  # fmt: skip
Tfidf = feature_extraction.text.TfidfVectorizer
WORDS = r"(?u)\b\w+\b"
XGB: dict[str, Any] = {"n_estimators": 4, "max_depth": 3}
LGB: dict[str, Any] = {"n_estimators": 4, "verbose": -1, "min_child_samples": 5}
Make = Callable[[], Any]


def table(*steps: tuple[Any, ...], **parameters: Any) -> Any:
    return compose.ColumnTransformer(
        [(str(i), step, columns) for i, (step, columns) in enumerate(steps)], **parameters
    )


def xgb(**parameters: Any) -> Any:
    return xgboost.XGBClassifier(**XGB, **parameters)


def lgb() -> Any:
    return lightgbm.LGBMClassifier(**LGB)


def kernelled(kernel: str) -> Make:
    sampler = kernel_approximation.Nystroem(kernel=kernel, n_components=8, random_state=1)
    return lambda: make_pipeline(Scale(), sampler, Ridge()).fit(X, TARGET)


PARITY: dict[str, Make] = {
    # --- targets that are transformed
    "target, scaled": lambda: Target(Ridge(), transformer=Scale()).fit(X, TARGET),
    "target, two of them": lambda: Target(Ridge(), transformer=preprocessing.MinMaxScaler()).fit(X, TARGETS),
    "target, Yeo-Johnson": lambda: Target(Ridge(), transformer=Power()).fit(X, SKEWED),
    "target, Box-Cox": lambda: Target(Ridge(), transformer=Power(method="box-cox")).fit(X, SKEWED),
    "target, logarithm and scale": lambda: Target(
        Ridge(), transformer=make_pipeline(Function(np.log, np.exp, check_inverse=False), "passthrough", Scale())
    ).fit(X, SKEWED),
    "target, xgboost in a pipeline": lambda: make_pipeline(
        Scale(), Target(xgboost.XGBRegressor(**XGB), func=np.log, inverse_func=np.exp)
    ).fit(X, SKEWED),
    "target, no function": lambda: Target(Ridge()).fit(X, TARGET),
    # --- thresholds
    "threshold on a label": lambda: model_selection.FixedThresholdClassifier(
        Logistic(), threshold=0.3, pos_label="no"
    ).fit(X, YES_NO),
    "threshold, tuned in a pipeline": lambda: make_pipeline(
        Scale(), model_selection.TunedThresholdClassifierCV(make_pipeline(Scale(), Logistic()), cv=2)
    ).fit(X, TWO),
    "threshold on scores": lambda: model_selection.FixedThresholdClassifier(
        LinearSVC(), threshold="auto", pos_label=0
    ).fit(X, TWO),
    "threshold on xgboost": lambda: model_selection.FixedThresholdClassifier(xgb()).fit(X, TWO),
    # --- calibration
    "calibrated, frozen forest": lambda: Calibrated(
        frozen.FrozenEstimator(Forest(6, random_state=1).fit(X, THREE))
    ).fit(X, THREE),
    "calibrated, isotonic on scores": lambda: Calibrated(Logistic(), method="isotonic", cv=2).fit(X, THREE),
    "calibrated, isotonic on shares": lambda: Calibrated(Forest(6), method="isotonic", cv=2).fit(X, TWO),
    "calibrated, xgboost": lambda: Calibrated(xgb(), cv=2).fit(X, THREE),
    "calibrated, LightGBM": lambda: Calibrated(lgb(), cv=2).fit(X, YES_NO),
    "calibrated, histogram": lambda: Calibrated(ensemble.HistGradientBoostingClassifier(max_iter=4), cv=2).fit(X_NAN, TWO),
    "calibrated, pipeline": lambda: Calibrated(make_pipeline(Scale(), LinearSVC()), cv=2).fit(X, THREE),
    "calibrated, temperature of scores": lambda: Calibrated(Logistic(), method="temperature", cv=2).fit(X, THREE),
    "calibrated, temperature of one score": lambda: Calibrated(LinearSVC(), method="temperature", cv=2).fit(X, TWO),
    "calibrated, temperature of shares": lambda: Calibrated(Forest(6), method="temperature", cv=2).fit(X, THREE),
    "calibrated, a class that a fold lacks": lambda: Calibrated(
        naive_bayes.GaussianNB(), cv=[(np.flatnonzero(THREE < 2), np.arange(N)), (np.arange(N), np.arange(N))]
    ).fit(X, THREE),
    # --- stacks, votes, bags
    "stack, xgboost and LightGBM": lambda: ensemble.StackingClassifier([("x", xgb()), ("l", lgb())], cv=2).fit(X, NAMES),
    "stack, passing on": lambda: ensemble.StackingClassifier(
        [("x", xgb()), ("l", Logistic())], cv=2, passthrough=True
    ).fit(X, TWO),
    "stack, scores beside shares": lambda: ensemble.StackingClassifier(
        [("s", make_pipeline(Scale(), LinearSVC())), ("l", Logistic())], cv=2
    ).fit(X, TWO),
    "stack, labels": lambda: ensemble.StackingClassifier(
        [("s", Tree(max_depth=3)), ("l", Logistic())], cv=2, stack_method="predict", final_estimator=LinearSVC()
    ).fit(X, THREE),
    "stack, searches": lambda: ensemble.StackingRegressor(
        [
            ("g", model_selection.GridSearchCV(Ridge(), {"alpha": [1, 2]}, cv=2)),
            ("t", Target(Ridge(), func=np.log1p, inverse_func=np.expm1)),
        ],
        final_estimator=xgboost.XGBRegressor(**XGB), passthrough=True,
    ).fit(X, SKEWED),
    "votes with weights": lambda: ensemble.VotingClassifier(
        [("x", xgb()), ("l", Logistic()), ("d", dummy.DummyClassifier())], weights=[1, 3, 1], voting="soft"
    ).fit(X, THREE),
    "votes with weights, regression": lambda: ensemble.VotingRegressor(
        [("x", xgboost.XGBRegressor(**XGB)), ("l", Ridge()), ("d", dummy.DummyRegressor())], weights=[1, 3, 1]
    ).fit(X, TARGET),
    "votes of frozen ones": lambda: ensemble.VotingClassifier(
        [("f", frozen.FrozenEstimator(Logistic().fit(X, THREE))), ("t", Tree(max_depth=3))], voting="soft"
    ).fit(X, THREE),
    "bag of LightGBM": lambda: ensemble.BaggingClassifier(lgb(), 3, random_state=1).fit(X, THREE),
    "one against the rest, scores": lambda: multiclass.OneVsRestClassifier(LinearSVC()).fit(X, NAMES),
    "one against the rest, labels": lambda: multiclass.OneVsRestClassifier(lgb()).fit(X, LABELS),
    "codes of scores": lambda: multiclass.OutputCodeClassifier(Logistic(), code_size=3, random_state=1).fit(X, NAMES),
    "codes of shares": lambda: multiclass.OutputCodeClassifier(naive_bayes.GaussianNB(), random_state=1).fit(X, NAMES),
    # --- chains, several labels
    "chain of shares, in another order": lambda: multioutput.ClassifierChain(
        Logistic(), chain_method="predict_proba", order=[1, 0]
    ).fit(X, LABELS),
    "chain of xgboost": lambda: multioutput.RegressorChain(xgboost.XGBRegressor(**XGB), order=[1, 0]).fit(X, TARGETS),
    "labels, neighbours": lambda: neighbors.KNeighborsClassifier().fit(X, LABELS),
    "labels, network": lambda: make_pipeline(
        Scale(), neural_network.MLPClassifier((6,), max_iter=30, random_state=1)
    ).fit(X, LABELS),
    "labels, xgboost": lambda: multioutput.MultiOutputClassifier(xgb()).fit(X, LABELS),
    # --- searches and delegates
    "search in a pipeline": lambda: make_pipeline(
        Scale(), model_selection.HalvingGridSearchCV(Logistic(), {"C": [0.1, 1]}, cv=2)
    ).fit(X, THREE),
    "search over a pipeline": lambda: model_selection.GridSearchCV(
        make_pipeline(Scale(), LinearSVC()), {"linearsvc__C": [0.1, 1]}, cv=2
    ).fit(X, THREE),
    "self-trained forest": lambda: make_pipeline(
        Scale(), semi_supervised.SelfTrainingClassifier(Forest(6))
    ).fit(X, SOME),
    # --- functions and curves
    "functions": lambda: table(
        *[
            (Function(function), [i % 4])
            for i, function in enumerate(
                (np.abs, np.ceil, np.cos, np.exp2, np.floor, np.log10, np.log1p, np.log2, np.negative, np.positive,
                 np.reciprocal, np.rint, np.sign, np.sin, np.sqrt, np.square, np.tanh, None)
            )
        ]
    ).fit(POSITIVE),
    "a function of named columns": lambda: make_pipeline(
        table((Function(np.abs), ["age", "size"]), (OneHot(), ["city"])), Logistic()
    ).fit(FRAME, THREE),
    "powers of missing values": lambda: make_pipeline(Power(), impute.SimpleImputer(), Ridge()).fit(X_NAN, TARGET),
    "powers as logarithms": lambda: _power([0.0, 2.0, 1.5, -0.5], method="yeo-johnson"),
    "powers as logarithms, Box-Cox": lambda: _power([0.0, 2.0, 1.0, -0.5], method="box-cox", standardize=False),
    "splines": lambda: make_pipeline(Spline(n_knots=4), Ridge()).fit(X, TARGET),
    "splines, periodic": lambda: Spline(n_knots=5, degree=2, extrapolation="periodic", include_bias=False).fit(X),
    "splines, steps that coincide": lambda: Spline(knots="quantile", degree=1).fit(CODES.astype(float)),
    "bins, one column each": lambda: make_pipeline(
        preprocessing.KBinsDiscretizer(4, quantile_method="averaged_inverted_cdf"), Logistic()
    ).fit(X, THREE),
    "isotonic, nan beyond": lambda: isotonic.IsotonicRegression(out_of_bounds="nan").fit(X[:, 0], TARGET),
    "isotonic, one value": lambda: isotonic.IsotonicRegression(out_of_bounds="clip").fit(np.ones(5), np.arange(5)),
    "dummy, most frequent": lambda: dummy.DummyClassifier(strategy="most_frequent").fit(X, NAMES),
    "dummy, two targets": lambda: dummy.DummyRegressor(strategy="quantile", quantile=0.3).fit(X, TARGETS),
    # --- missing values
    "imputer with an indicator": lambda: make_pipeline(impute.SimpleImputer(add_indicator=True), Logistic()).fit(X_NAN, THREE),
    "imputer with an indicator of a number": lambda: make_pipeline(
        impute.SimpleImputer(add_indicator=True, missing_values=2, strategy="most_frequent"), Ridge()
    ).fit(CODES.astype(float), TARGET),
    "imputer of text": lambda: make_pipeline(
        table(
            (make_pipeline(impute.SimpleImputer(strategy="most_frequent"), OneHot(handle_unknown="ignore")), ["city", "text"]),
            (impute.SimpleImputer(strategy="median"), ["age"]),
        ),
        Logistic(),
    ).fit(FRAME, THREE),
    "neighbours' values, weighted": lambda: make_pipeline(impute.KNNImputer(weights="distance"), Ridge()).fit(X_NAN, TARGET),
    "neighbours' values, an empty column": lambda: impute.KNNImputer(keep_empty_features=True).fit(
        np.column_stack([X_NAN, np.full(N, np.nan)])
    ),
    "neighbours' values, an empty column gone": lambda: impute.KNNImputer().fit(
        np.column_stack([X_NAN, np.full(N, np.nan)])
    ),
    "indicator of a number": lambda: impute.MissingIndicator(missing_values=2).fit(CODES.astype(float)),
    "indicator beside an imputer": lambda: make_pipeline(
        make_union(impute.SimpleImputer(), impute.MissingIndicator(features="all")), Logistic()
    ).fit(X_NAN, THREE),
    "histogram of encoded text": lambda: make_pipeline(
        table(
            (preprocessing.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=np.nan), ["city"]),
            ("passthrough", ["age", "size"]),
        ),
        ensemble.HistGradientBoostingClassifier(max_iter=4, categorical_features=[0], min_samples_leaf=5),
    ).fit(FRAME, THREE),
    "histogram of missing categories": lambda: ensemble.HistGradientBoostingRegressor(
        max_iter=4, categorical_features=[0], min_samples_leaf=5
    ).fit(CODES_NAN, TARGET),
    # --- distances and kernels
    "neighbours, weighted": lambda: neighbors.KNeighborsClassifier(weights="distance").fit(X, NAMES),
    "neighbours, weighted regression": lambda: neighbors.KNeighborsRegressor(
        weights="distance", metric="manhattan"
    ).fit(X, TARGETS),
    "neighbours themselves": lambda: neighbors.NearestNeighbors(metric="chebyshev").fit(X),
    "radius, outliers are errors": lambda: make_pipeline(Scale(), neighbors.RadiusNeighborsClassifier(1.5)).fit(X, THREE),
    "radius, outliers of a new class": lambda: make_pipeline(
        Scale(), neighbors.RadiusNeighborsClassifier(0.5, outlier_label=9)
    ).fit(X, THREE),
    "radius, weighted": lambda: make_pipeline(Scale(), neighbors.RadiusNeighborsRegressor(1.0, weights="distance")).fit(X, TARGET),
    "centroids, shrunk": lambda: neighbors.NearestCentroid(shrink_threshold=0.2, priors="empirical").fit(X, YES_NO),
    "centroids, Manhattan": lambda: neighbors.NearestCentroid(metric="manhattan").fit(X, NAMES),
    "k-means as a step": lambda: make_pipeline(
        make_union(Scale(), cluster.KMeans(3, random_state=1, n_init=1)), Logistic()
    ).fit(X, THREE),
    "k-means of columns": lambda: make_pipeline(
        table((cluster.Birch(n_clusters=3), [0, 1]), (Scale(), [2])), cluster.BisectingKMeans(3, random_state=1), Ridge()
    ).fit(X, TARGET),
    "discriminant as a step": lambda: make_pipeline(
        discriminant_analysis.LinearDiscriminantAnalysis(), Scale(), Tree(max_depth=3)
    ).fit(X, THREE),
    "ellipse": lambda: make_pipeline(Scale(), covariance.EllipticEnvelope(random_state=1)).fit(X),
    **{
        f"kernel, {kernel}": kernelled(kernel)
        for kernel in ("rbf", "laplacian", "polynomial", "sigmoid", "linear", "cosine")
    },
    "kernel ridge": lambda: make_pipeline(Scale(), kernel_ridge.KernelRidge(kernel="poly", degree=2)).fit(X, TARGETS),
    "chi squared": lambda: kernel_approximation.AdditiveChi2Sampler(sample_steps=3).fit(POSITIVE),
    "chi squared, an interval": lambda: kernel_approximation.AdditiveChi2Sampler(sample_interval=0.3).fit(POSITIVE),
    "gaussian process": lambda: gaussian_process.GaussianProcessClassifier().fit(X[:40], TWO[:40]),
    # --- matrices
    "independent components": lambda: make_pipeline(decomposition.FastICA(3, random_state=1), Logistic()).fit(X, THREE),
    "wide matrix": lambda: cross_decomposition.PLSSVD(1).fit(RNG.normal(size=(20, 300)), TARGETS[:20]),
    "features in groups": lambda: make_pipeline(cluster.FeatureAgglomeration(2), Logistic()).fit(X, THREE),
    "forest as a step": lambda: make_pipeline(
        Scale(), ensemble.RandomTreesEmbedding(4, max_depth=3, random_state=1), Logistic()
    ).fit(X, THREE),
    "classifier that selects": lambda: make_pipeline(
        feature_selection.RFE(Logistic(), n_features_to_select=2), Logistic()
    ).fit(X, THREE),
    # --- text and records
    "text to xgboost": lambda: make_pipeline(Tfidf(), xgb()).fit(TEXTS, THREE),
    "text to LightGBM": lambda: make_pipeline(Tfidf(), lgb()).fit(TEXTS, THREE),
    "records": lambda: make_pipeline(feature_extraction.DictVectorizer(), Logistic()).fit(
        FRAME[["city", "age"]].to_dict("records"), THREE
    ),
    "labels of text in columns": lambda: preprocessing.LabelBinarizer().fit(THREE),
    "text of single letters": lambda: make_pipeline(Tfidf(token_pattern=WORDS), Logistic()).fit(TEXTS, THREE),
    "text, by position": lambda: make_pipeline(table((Tfidf(), 0)), Logistic()).fit(
        np.array(TEXTS, object)[:, None], THREE
    ),
    # --- what the rest of the project's own code meets seldom
    "encoder alone": lambda: OneHot(handle_unknown="ignore").fit(CODES),
    "numbers of categories to trees": lambda: make_pipeline(
        OneHot(handle_unknown="ignore"), Tree(max_depth=3)
    ).fit(CODES.astype(float), TWO),
    "encoder of numbers that are not whole": lambda: OneHot(handle_unknown="ignore").fit(CODES + 0.5),
    "encoder of numbers, some missing": lambda: make_pipeline(OneHot(handle_unknown="ignore"), Ridge()).fit(CODES_NAN, TARGET),
    "encoder of seldom ones, and one dropped": lambda: OneHot(
        handle_unknown="infrequent_if_exist", max_categories=3, drop="first"
    ).fit(CODES.astype(float)),
    "encoder of whole numbers beyond float32": lambda: OneHot(handle_unknown="ignore").fit(CODES + 2**53),
    "encoder that drops one of two": lambda: OneHot(drop="if_binary").fit(np.column_stack([TWO, CODES[:, 0]])),
    "encoder of a table with missing numbers": lambda: make_pipeline(
        table((OneHot(handle_unknown="ignore", min_frequency=0.2), ["city", "size", "age"])), Ridge()
    ).fit(FRAME.assign(age=CODES_NAN[:, 0]), TARGET),
    "ordinals of missing numbers": lambda: preprocessing.OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2
    ).fit(CODES_NAN),
    "ordinals of missing numbers that stay missing": lambda: preprocessing.OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=9, max_categories=3
    ).fit(CODES_NAN),
    "targets' means of three classes": lambda: make_pipeline(
        preprocessing.TargetEncoder(random_state=1), Logistic()
    ).fit(CODES.astype(float), THREE),
    "bins": lambda: preprocessing.KBinsDiscretizer(4, encode="ordinal", strategy="uniform").fit(X),
    "bins of different numbers, one column each": lambda: make_pipeline(
        preprocessing.KBinsDiscretizer([2, 3, 4, 5], encode="onehot-dense"), Ridge()
    ).fit(X, TARGET),
    "beyond a threshold": lambda: make_pipeline(preprocessing.Binarizer(threshold=0.1), Ridge()).fit(X, TARGET),
    "rows of length one": lambda: preprocessing.Normalizer("max").fit(X),
    "layers to several targets": lambda: make_pipeline(
        Scale(), neural_network.MLPRegressor(
            hidden_layer_sizes=(5, 4), activation="tanh", max_iter=20, random_state=1
        )
    ).fit(X, TARGETS),
    "frozen scaler in a union": lambda: make_pipeline(
        make_union(frozen.FrozenEstimator(Scale().fit(X)), "passthrough", Scale()), Logistic()
    ).fit(X, THREE),
    "passed through inside votes": lambda: ensemble.VotingRegressor(
        [("p", Pipeline([("none", "passthrough"), ("tree", tree.DecisionTreeRegressor(max_depth=3))])), ("r", Ridge())]
    ).fit(X, TARGET),
    "selected one by one": lambda: make_pipeline(
        feature_selection.SequentialFeatureSelector(Ridge(), n_features_to_select=2, cv=2), Ridge()
    ).fit(X, TARGET),
    "forest of two sets of labels": lambda: Forest(4, random_state=1).fit(X, np.column_stack([TWO, TWO + 2])),
    "histogram of a frame's categories": lambda: ensemble.HistGradientBoostingClassifier(
        max_iter=4, min_samples_leaf=5
    ).fit(pd.DataFrame({"a": X[:, 0], "b": pd.Categorical(CODES[:, 0] * 10)}), THREE),
    "histogram of some columns' categories": lambda: ensemble.HistGradientBoostingClassifier(
        max_iter=4, min_samples_leaf=5, categorical_features=["b"]
    ).fit(pd.DataFrame({"a": X[:, 0], "b": CODES[:, 0] * 10}), THREE),
    "target, powers as they are": lambda: Target(Ridge(), transformer=Power(standardize=False)).fit(X, SKEWED),
    "random waves": lambda: make_pipeline(
        kernel_approximation.RBFSampler(n_components=8, random_state=1), Ridge()
    ).fit(X, TARGET),
    "random waves of logarithms": lambda: kernel_approximation.SkewedChi2Sampler(n_components=8, random_state=1).fit(POSITIVE),
    "labels spread": lambda: make_pipeline(Scale(), semi_supervised.LabelSpreading(gamma=1)).fit(X, SOME),
    "hidden units": lambda: make_pipeline(
        preprocessing.MinMaxScaler(), neural_network.BernoulliRBM(4, random_state=1), Logistic()
    ).fit(X, THREE),
    "means that shifted": lambda: make_pipeline(Scale(), cluster.MeanShift()).fit(X),
    "bisected": lambda: cluster.BisectingKMeans(4, random_state=1).fit(X),
}  # fmt: skip


def _power(lambdas: list[float], **parameters: Any) -> Any:
    """A transformer with exponents at which its formula has another form."""
    model = Power(**parameters).fit(POSITIVE)
    model.lambdas_ = np.array(lambdas)
    return model


@pytest.mark.parametrize("name", PARITY)
def test_the_converted_model_answers_as_the_original(name: str) -> None:
    conversion = estimators.convert(PARITY[name]())
    report = judge(conversion)
    assert report.passed, "\n".join(report.lines())
    assert sum(report.cases.values()) >= 8
    assert not report.unchecked


@pytest.mark.parametrize(
    "encoder",
    [
        lambda: OneHot(handle_unknown="ignore"),
        lambda: preprocessing.OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
        lambda: preprocessing.TargetEncoder(random_state=1),
    ],
    ids=["one hot", "ordinal", "target"],
)
def test_what_is_no_category_is_not_taken_for_one(encoder: Make) -> None:
    """skl2onnx cast to int64 or float32 first: 1.5 became the category 1, NaN the category 0."""
    model = encoder().fit(CODES.astype(float), TARGET)
    rows = np.array(
        [[1.5, 0.5, 2], [np.nan, -0.5, np.nextafter(3, 4)], [9, -1, 2**32], [0, 1, 2]], np.float64
    )

    expected = model.transform(rows)
    answers: Any = load_graph(estimators.convert(model).model).run({"features": rows})
    assert np.allclose(
        answers["transformed"], expected.toarray() if hasattr(expected, "toarray") else expected
    )


@pytest.mark.parametrize("encoder", [OneHot, preprocessing.OrdinalEncoder])
def test_an_encoder_that_knows_no_unknown_values_ends_the_run(encoder: Any) -> None:
    model = load_graph(estimators.convert(encoder().fit(CODES)).model)

    feed = {f"column_{i}": np.full((1, 1), 99, np.int64) for i in range(3)}
    with pytest.raises(InputRefused, match="out of data bounds"):
        model.run(feed)


def test_values_at_the_edges_fall_where_they_fall_in_the_original() -> None:
    """skl2onnx compared in float32, where an edge and its neighbours are one."""
    model = preprocessing.KBinsDiscretizer(4, encode="ordinal").fit(X)
    edges = np.column_stack(model.bin_edges_)
    rows = np.vstack([edges, np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf)])

    answers: Any = load_graph(estimators.convert(model).model).run({"features": rows})
    assert np.array_equal(answers["transformed"], model.transform(rows))


def test_categories_are_proven_on_numbers_that_a_cast_takes_for_one() -> None:
    model = OneHot(handle_unknown="ignore").fit(CODES.astype(float))
    probes = {
        probe.name: probe.feed["features"][:, 0]
        for probe in sklearn_probes.make_probes(model, sklearn_inputs.describe(model, None))
    }

    assert {0.5, 1.5, -1, 4} <= set(probes["unseen column_0"].tolist())
    assert np.isnan(probes["missing column_0"]).any()


def test_the_categories_of_boosted_trees_are_proven() -> None:
    model = ensemble.HistGradientBoostingRegressor(
        max_iter=4, categorical_features=[0], min_samples_leaf=5
    ).fit(CODES * 10.0, TARGET + CODES[:, 0] % 2 * 20)
    probes = {
        probe.name: probe.feed["features"][:, 0]
        for probe in sklearn_probes.make_probes(model, sklearn_inputs.describe(model, None))
    }

    assert set(probes["ranges"].tolist()) <= {0.0, 10.0, 20.0, 30.0}
    assert np.any(probes["unseen column_0"] % 10 != 0)


def lambda_of(y: Array) -> Array:
    return y * 2


def even(distances: Array) -> Array:
    return np.array([np.ones_like(row) for row in distances] + [None], object)[:-1]


def _with_loss(model: Any) -> Any:
    model._loss = object()
    return model


class Stubborn(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    def __init__(self) -> None:
        self.n_features_in_ = 2

    def fit(self, rows: Array) -> "Stubborn":
        return self

    def predict(self, rows: Array) -> Array:
        raise ValueError("never")


class Unhashable:
    __hash__ = None  # type: ignore[assignment]  # the point

    def __call__(self, rows: Array) -> Array:
        return rows


def own_objective(target: Array, sums: Array) -> tuple[Array, Array]:
    return sums - target, np.ones_like(sums)


REFUSED: dict[str, tuple[Make, str]] = {
    "boosted by an objective of one's own": (
        lambda: make_pipeline(Scale(), lightgbm.LGBMClassifier(objective=own_objective, **LGB)).fit(X, TWO),
        "by an objective of your own it answers sums",
    ),
    "target, a function of one's own": (
        lambda: Target(Ridge(), func=lambda_of, inverse_func=lambda_of, check_inverse=False).fit(X, TARGET),
        "the function lambda_of has no converter; those that have one are np.absolute",
    ),
    "target, quantiles": (
        lambda: Target(Ridge(), transformer=preprocessing.QuantileTransformer(n_quantiles=9)).fit(X, TARGET),
        "QuantileTransformer: its inverse has no converter",
    ),
    "target, clipped": (
        lambda: Target(Ridge(), transformer=preprocessing.MinMaxScaler(clip=True)).fit(X, TARGET),
        "the inverse of clip=True",
    ),
    "target, arguments": (
        lambda: Target(Ridge(), transformer=Function(np.log, np.exp, inv_kw_args={"dtype": "f8"})).fit(X, SKEWED),
        "inv_kw_args have no converter",
    ),
    "function, arguments": (lambda: Function(np.round, kw_args={"decimals": 2}).fit(X), "kw_args have no converter"),
    "function without a hash": (lambda: Function(Unhashable()).fit(X), "the function Unhashable has no converter"),
    "threshold on the other answer": (
        lambda: model_selection.FixedThresholdClassifier(
            Logistic(), threshold=0.2, response_method="decision_function"
        ).fit(X, TWO),
        "where there are probabilities too",
    ),
    "stack of labels": (
        lambda: ensemble.StackingClassifier([("k", neighbors.KNeighborsClassifier())], cv=2,
                                            final_estimator=neighbors.KNeighborsClassifier()).fit(X, LABELS),
        "several labels have no converter",
    ),
    "labels of different classes": (
        lambda: multioutput.MultiOutputClassifier(Logistic()).fit(X, np.column_stack([TWO, THREE])),
        "different numbers of classes",
    ),
    "dummy, at random": (
        lambda: dummy.DummyClassifier(strategy="stratified", random_state=1).fit(X, TWO), "drawn at random"
    ),
    "splines, linear": (lambda: Spline(extrapolation="linear").fit(X), "extrapolation='linear' has no converter"),
    "splines, missing values": (lambda: Spline(handle_missing="zeros").fit(X), "handle_missing has no converter"),
    "isotonic, errors": (
        lambda: isotonic.IsotonicRegression(out_of_bounds="raise").fit(X[:, 0], TARGET), 'out_of_bounds="raise"'
    ),
    "groups by their maximum": (
        lambda: cluster.FeatureAgglomeration(2, pooling_func=np.max).fit(X), "the only pooling_func"
    ),
    "a kernel of one's own": (
        lambda: kernel_ridge.KernelRidge(kernel=np.dot).fit(X, TARGET), "expected one of the kernels rbf"
    ),
    "labels spread by neighbours": (
        lambda: semi_supervised.LabelSpreading(kernel="knn").fit(X, SOME), "the only kernel with a converter is rbf"
    ),
    "a metric": (
        lambda: neighbors.NearestNeighbors(metric="cosine").fit(X), "the metric cosine has no converter"
    ),
    "radius, another power": (
        lambda: neighbors.RadiusNeighborsRegressor(30.0, p=3).fit(X, TARGET),
        "the metric minkowski with p=3 has no converter",
    ),
    "radius, weights by a function": (
        lambda: neighbors.RadiusNeighborsRegressor(30.0, weights=even).fit(X, TARGET), "weights by a function"
    ),
    "radius, several labels": (
        lambda: neighbors.RadiusNeighborsClassifier(300.0).fit(X, LABELS), "several labels have no converter"
    ),
    "imputer by neighbours, a number": (
        lambda: impute.KNNImputer(missing_values=-1).fit(CODES.astype(float)), "missing_values=nan"
    ),
    "imputer by neighbours, a function": (
        lambda: impute.KNNImputer(weights=np.exp).fit(X_NAN), "weights by a function"
    ),
    "imputer of text with an indicator": (
        lambda: make_pipeline(
            table((make_pipeline(impute.SimpleImputer(strategy="most_frequent", add_indicator=True), OneHot()), ["city"])),
            Logistic(),
        ).fit(FRAME.assign(city=FRAME["city"].where(FRAME["age"] > 0)), THREE),
        "add_indicator=True has no converter for text",
    ),
    "clusters that were not found": (
        lambda: cluster.AffinityPropagation(max_iter=1, convergence_iter=1, random_state=1).fit(X), "found no clusters"
    ),
    "iterations": (
        lambda: make_pipeline(impute.IterativeImputer(random_state=1), Logistic()).fit(X_NAN, THREE),
        'step "iterativeimputer": IterativeImputer has no ONNX converter',
    ),
    "accents taken off": (
        lambda: make_pipeline(Tfidf(strip_accents="unicode"), Logistic()).fit(TEXTS, THREE), "only strip_accents=None"
    ),
    "labels of xgboost in a pipeline": (
        lambda: make_pipeline(Scale(), xgb()).fit(X, LABELS),
        "several labels inside another estimator have no converter",
    ),
    "a loss of another library": (
        lambda: _with_loss(ensemble.HistGradientBoostingRegressor(max_iter=2).fit(X, TARGET)),
        "the loss object has no converter",
    ),
    "records of any length": (
        lambda: feature_extraction.FeatureHasher(4).fit([{"a": 1}]), "does not say which columns it takes"
    ),
    "no estimator": (lambda: {"weights": 1}, 'expected a scikit-learn estimator, got "dict"'),
    "an estimator that cannot be fitted": (BaseEstimator, "cannot be converted"),
    "an estimator that takes nothing": (Stubborn, "takes none of the rows made up for it"),
    "a million columns": (
        lambda: feature_extraction.text.HashingVectorizer().fit(TEXTS), "too many for the dense arrays of ONNX"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused_with_a_reason(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(ConversionError) as caught:
        estimators.convert(make())
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_an_outlier_that_scikit_learn_refuses_is_no_answer_of_the_model() -> None:
    """Without a label for outliers, the graph fails as the original does, instead of naming the first class."""
    original = make_pipeline(Scale(), neighbors.RadiusNeighborsClassifier(1.5)).fit(X, THREE)
    model = load_graph(estimators.convert(original).model)
    far = np.full((1, 4), 1e3)
    with pytest.raises(ValueError, match="No neighbors found"):
        original.predict(far)
    with pytest.raises(Exception, match="cannot run this input"):
        model.run({"features": far})


def test_the_estimator_is_left_as_it_was() -> None:
    """Steps and parameters are changed for the time of a conversion only."""
    model = make_pipeline(
        table(
            (cluster.KMeans(2, random_state=1, n_init=1), slice(0, 2)), (Scale(), [False, False, True, True])
        ),
        preprocessing.KBinsDiscretizer(3, quantile_method="averaged_inverted_cdf"),
        ensemble.VotingClassifier(
            [("l", Logistic()), ("t", Tree(max_depth=2))], weights=[1, 2], voting="soft"
        ),
    ).fit(X, THREE)
    before = repr(model), model.predict_proba(X)
    estimators.convert(model)
    assert (repr(model), model[0].transformers_[0][2]) == (before[0], slice(0, 2))
    assert np.array_equal(model.predict_proba(X), before[1])


def test_text_that_an_imputer_fills_in_is_noted() -> None:
    assert any(
        "an empty text stays an empty text" in note
        for note in estimators.convert(PARITY["imputer of text"]()).notes
    )


def test_a_pipeline_of_nothing_but_a_search_is_what_the_search_found() -> None:
    search = model_selection.GridSearchCV(Ridge(), {"alpha": [1, 2]}, cv=2)
    conversion = estimators.convert(Pipeline([("search", search)]).fit(X, TARGET))
    assert [output.name for output in conversion.model.graph.output] == ["prediction"]


def test_scores_that_cannot_be_told_are_left_out_and_noted() -> None:
    """``NuSVC`` breaks ties between pairs of classes by scores that skl2onnx computes otherwise."""
    conversion = estimators.convert(make_pipeline(Scale(), svm.NuSVC(nu=0.1)).fit(X, TWO))
    names = [output.name for output in conversion.model.graph.output]
    assert ("scores" in names) != any("decision function is left out" in note for note in conversion.notes)


@pytest.mark.parametrize(
    ("make", "sample", "message"),
    [
        (lambda: Ridge().fit(X, TARGET), np.zeros((2, 2, 2)), r"expected 4 columns, got an array of shape \[2, 2, 2\]"),
        (
            lambda: multioutput.MultiOutputClassifier(Logistic()).fit(X, np.column_stack([TWO, THREE])), X,
            "different numbers of classes",
        ),
    ],
    ids=["dimensions", "answers"],
)  # fmt: skip
def test_a_sample_from_python_that_does_not_fit_is_refused(make: Make, sample: Any, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        estimators.convert(make(), sample)


def test_columns_that_nothing_reads_take_their_type_from_the_sample() -> None:
    conversion = estimators.convert(
        make_pipeline(table((Scale(), ["age"])), Ridge()).fit(FRAME, TARGET), FRAME
    )
    kinds = {value.name: value.type.tensor_type.elem_type for value in conversion.model.graph.input}
    assert kinds == {"age": 11, "city": 8, "size": 11, "text": 8}


def test_trees_beside_named_columns_are_probed_at_their_thresholds() -> None:
    model = ensemble.VotingRegressor(
        [
            ("t", tree.DecisionTreeRegressor(max_depth=3)),
            ("c", make_pipeline(table((Scale(), ["age"])), Ridge())),
        ]
    ).fit(FRAME[["age", "size"]], TARGET)
    inputs = sklearn_inputs.describe(model, None)
    probes = {probe.name: probe.feed for probe in sklearn_probes.make_probes(model, inputs)}
    splits = model.estimators_[0].tree_.threshold[model.estimators_[0].tree_.feature == 0]
    assert set(splits) & set(probes["thresholds"]["age"][:, 0])


@pytest.mark.parametrize(
    ("missing", "program"),
    [
        ("skl2onnx", "import converters.sklearn"),
        ("skops", "from converters.sklearn_file import read_skops; read_skops('x', {})"),
    ],
)
def test_a_library_that_is_not_there_is_named_with_what_installs_it(missing: str, program: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None\n{program}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "MissingExtra" in ran.stderr
    assert "convert-sklearn" in ran.stderr


def test_a_tree_of_different_sets_of_labels_is_refused_wherever_it_is() -> None:
    """At the top, its own answers tell; inside others, the converter does."""
    model = Tree(max_depth=3).fit(X, np.column_stack([TWO, THREE]))
    sklearn_operators.register()
    with pytest.raises(ConversionError, match="different numbers of classes"):
        skl2onnx.to_onnx(model, X.astype(np.float32), options={"zipmap": False})


def test_named_columns_need_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Ridge().fit(FRAME[["age", "size"]], TARGET)
    monkeypatch.setitem(sys.modules, "pandas", None)
    inputs = sklearn_inputs.describe(model, None)
    with pytest.raises(ConversionError, match="pandas is not installed"):
        inputs.rows({"features": np.zeros((2, 2))})
