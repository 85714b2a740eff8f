"""Every estimator that scikit-learn has, fitted on a few rows and converted: parity, or a refusal with a reason."""

import re
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from converters.errors import ConversionError, MissingExtra
from onnx_serve.tensors import Array

try:
    from sklearn import linear_model, preprocessing, svm, tree
    from sklearn.base import is_classifier
    from sklearn.experimental import enable_halving_search_cv, enable_iterative_imputer  # noqa: F401  they enable
    from sklearn.utils import all_estimators

    from converters import sklearn as estimators
    from converters.conversion import judge
except (ModuleNotFoundError, MissingExtra) as ex:
    pytest.skip(f"sklearn models cannot be converted here: {ex}", allow_module_level=True)

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(7)
N = 160
X: Array = RNG.normal(size=(N, 4)) * [1, 10, 3, 1] + [0, 5, -1, 2]
X_NAN: Array = np.where(RNG.random(X.shape) < 0.1, np.nan, X)
POSITIVE: Array = np.abs(X)
CODES: Array = RNG.integers(0, 3, (N, 4))
TWO: Array = (X[:, 0] + X[:, 2] > -1).astype(int)
THREE: Array = (X[:, 0] > 0).astype(int) + (X[:, 1] > 5)
SOME: Array = np.where(RNG.random(N) < 0.3, -1, THREE)
LABELS: Array = np.column_stack([TWO, X[:, 3] > 2]).astype(int)
TARGET: Array = X[:, 0] * 2 + X[:, 1] - X[:, 2]
TARGETS: Array = np.column_stack([TARGET, X[:, 3] + X[:, 0]])
SKEWED: Array = np.exp(TARGET / 20)
TEXTS = [str(text) for text in RNG.choice(["good café", "bad thing here", "so so", "l'été à Paris"], N)]
RECORDS = [
    {"size": float(row[0]), "city": city} for row, city in zip(X, RNG.choice(["NY", "Ōsaka"], N), strict=True)
]

Logistic, Ridge, Tree = linear_model.LogisticRegression, linear_model.Ridge, tree.DecisionTreeClassifier
Fit = Callable[[Any], Any]


def on(*rows: Any, **parameters: Any) -> Fit:
    """How a class is made and fitted that needs more, or other data, than the rest."""
    return lambda kind: kind(**parameters).fit(*rows)


def over(inner: Any, *rows: Any, **parameters: Any) -> Fit:
    """The same, for a class whose first argument is another estimator or several."""
    return lambda kind: kind(inner, **parameters).fit(*rows)


RECIPES: dict[str, Fit] = {
    # --- estimators over others
    "CalibratedClassifierCV": over(Logistic(), X, THREE),
    "ClassifierChain": over(Logistic(), X, LABELS),
    "ColumnTransformer": over(
        [("a", preprocessing.StandardScaler(), [0, 1]), ("b", preprocessing.MinMaxScaler(), [2])], X
    ),
    "FeatureUnion": over([("a", preprocessing.StandardScaler()), ("b", preprocessing.MinMaxScaler())], X),
    "FixedThresholdClassifier": over(Logistic(), X, TWO, threshold=0.3),
    "FrozenEstimator": over(Logistic().fit(X, THREE), X, THREE),
    "GridSearchCV": over(Logistic(), X, THREE, param_grid={"C": [0.1, 1]}, cv=2),
    "HalvingGridSearchCV": over(Logistic(), X, THREE, param_grid={"C": [0.1, 1]}, cv=2),
    "HalvingRandomSearchCV": over(Logistic(), X, THREE, param_distributions={"C": [0.1, 1]}, cv=2, n_candidates=2),
    "MultiOutputClassifier": over(Logistic(), X, LABELS),
    "MultiOutputRegressor": over(Ridge(), X, TARGETS),
    "OneVsOneClassifier": over(Logistic(), X, THREE),
    "OneVsRestClassifier": over(Logistic(), X, THREE),
    "OutputCodeClassifier": over(svm.LinearSVC(), X, THREE, random_state=1),
    "Pipeline": over([("a", preprocessing.StandardScaler()), ("b", Logistic())], X, THREE),
    "RandomizedSearchCV": over(Logistic(), X, THREE, param_distributions={"C": [0.1, 1]}, n_iter=2, cv=2),
    "RegressorChain": over(Ridge(), X, TARGETS),
    "RFE": over(Ridge(), X, TARGET, n_features_to_select=2),
    "RFECV": over(Ridge(), X, TARGET),
    "SelectFromModel": over(Ridge(), X, TARGET),
    "SelfTrainingClassifier": over(Logistic(), X, SOME),
    "SequentialFeatureSelector": over(Ridge(), X, TARGET, n_features_to_select=2),
    "SparseCoder": over(np.eye(3, 4), X),
    "StackingClassifier": over([("a", Logistic()), ("b", Tree(max_depth=3))], X, THREE),
    "StackingRegressor": over([("a", Ridge()), ("b", tree.DecisionTreeRegressor(max_depth=3))], X, TARGET),
    "TransformedTargetRegressor": over(Ridge(), X, SKEWED, func=np.log1p, inverse_func=np.expm1),
    "TunedThresholdClassifierCV": over(Logistic(), X, TWO, cv=2),
    "VotingClassifier": over([("a", Logistic()), ("b", Tree(max_depth=3))], X, THREE),
    "VotingRegressor": over([("a", Ridge()), ("b", tree.DecisionTreeRegressor(max_depth=3))], X, TARGET),
    # --- what is no matrix of numbers
    "CountVectorizer": on(TEXTS),
    "DictVectorizer": on(RECORDS),
    "FeatureHasher": on(RECORDS, n_features=8),
    "HashingVectorizer": on(TEXTS),
    "IsotonicRegression": on(X[:, 0], TARGET, out_of_bounds="clip"),
    "KernelCenterer": on(X @ X.T),
    "LabelBinarizer": on(THREE),
    "LabelEncoder": on(THREE),
    "MultiLabelBinarizer": on([[1, 2], [3], [1]]),
    "PatchExtractor": on(RNG.random((3, 8, 8)), patch_size=(2, 2)),
    "TfidfVectorizer": on(TEXTS),
    # --- categories
    "CategoricalNB": on(CODES, THREE),
    "OneHotEncoder": on(CODES, handle_unknown="ignore"),
    "OrdinalEncoder": on(CODES),
    "TargetEncoder": on(CODES, TWO),
    "TfidfTransformer": on(CODES),
    # --- a certain kind of rows or targets
    **dict.fromkeys(
        ("AdditiveChi2Sampler", "LatentDirichletAllocation", "MiniBatchNMF", "NMF", "SkewedChi2Sampler",
         "SpectralBiclustering", "SpectralCoclustering"),
        on(POSITIVE),
    ),
    **dict.fromkeys(("ComplementNB", "MultinomialNB"), on(POSITIVE, THREE)),
    **dict.fromkeys(("CCA", "PLSCanonical", "PLSRegression", "PLSSVD"), on(X, TARGETS, n_components=1)),
    **dict.fromkeys(("GammaRegressor", "PoissonRegressor"), on(X, SKEWED)),
    **dict.fromkeys(("GaussianRandomProjection", "SparseRandomProjection"), on(X, n_components=2, random_state=1)),
    **dict.fromkeys(("KNNImputer", "MissingIndicator"), on(X_NAN)),
    **dict.fromkeys(
        ("MultiTaskElasticNet", "MultiTaskElasticNetCV", "MultiTaskLasso", "MultiTaskLassoCV"), on(X, TARGETS)
    ),
    "GaussianProcessClassifier": on(X[:40], TWO[:40]),
    "GaussianProcessRegressor": on(X[:40], TARGET[:40]),
    "GenericUnivariateSelect": on(X, THREE, mode="k_best", param=2),
    "KBinsDiscretizer": on(X, quantile_method="averaged_inverted_cdf"),
    "LabelPropagation": on(X, THREE),
    "LocalOutlierFactor": on(X, novelty=True),
    "NeighborhoodComponentsAnalysis": on(X, THREE, random_state=1),
    "QuantileTransformer": on(X, n_quantiles=20),
    "RadiusNeighborsClassifier": on(X, THREE, radius=20.0, outlier_label=0),
    "RadiusNeighborsRegressor": on(X, TARGET, radius=20.0),
    **dict.fromkeys(("SelectFdr", "SelectFpr", "SelectFwe"), on(X, THREE)),
    "SelectPercentile": on(X, THREE, percentile=60),
}  # fmt: skip

ESTIMATORS = dict(all_estimators())
# Reasons that tell the user all there is to know; none is that an answer was wrong.
REASONS = re.compile(
    "has no ONNX converter: replace it|has neither predict nor transform|does not say which columns it takes"
    "|too many for the dense arrays"
)
FLOOR = 177  # of 211 in scikit-learn 1.9 with its 3 experimental ones; skl2onnx 1.20 has converters for 139


def fitted(name: str) -> Any:
    kind = ESTIMATORS[name]
    if name in RECIPES:
        return RECIPES[name](kind)
    known = kind().get_params()
    parameters: dict[str, Any] = {"random_state": 1} if "random_state" in known else {}
    if known.get("n_estimators") == 100:
        parameters["n_estimators"] = 8
    model = kind(**parameters)
    return model.fit(X, THREE if is_classifier(model) else TARGET)


@cache
def verdict(name: str) -> str:
    """Empty for parity, else the reason of the refusal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what fitting says on so few rows is not the matter
        model = fitted(name)
    try:
        conversion = estimators.convert(model)
    except ConversionError as ex:
        return str(ex)
    report = judge(conversion)
    assert report.passed
    assert sum(report.cases.values()) >= 8
    return ""


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_ends_in_parity_or_in_a_refusal_with_a_reason(name: str) -> None:
    reason = verdict(name)
    print(f"{name}: {reason or 'parity'}")
    assert not reason or REASONS.search(reason)


def test_the_number_of_estimators_that_convert_does_not_fall() -> None:
    refused = [name for name in ESTIMATORS if verdict(name)]
    print(f"{len(ESTIMATORS) - len(refused)} of {len(ESTIMATORS)} in parity; refused: {', '.join(refused)}")
    assert len(ESTIMATORS) - len(refused) >= FLOOR
