"""xgboost's boosters: trees (``gbtree``, ``dart``) and linear models, from JSON, UBJSON or Python objects.

The model's JSON is the source of everything: https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html
and ``doc/model.schema`` beside it. Features and thresholds are float32, a row goes left if ``feature <
threshold``, and right if a category is in a node's set (``src/common/categorical.h``).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.artifact import Format
from converters.boosting import Boosting
from converters.boosting_proof import category_properties, class_answers, prove_boosting, request_sample
from converters.conversion import Conversion, Progress, Request, say_nothing
from converters.errors import ConversionError, MissingExtra
from converters.parity import Original
from converters.samples import Sample
from converters.trees import Ensemble, Leaf, Split
from onnx_serve.errors import quote
from onnx_serve.tensors import Array, Tensors

try:
    import xgboost
except ModuleNotFoundError as ex:
    raise MissingExtra("convert-boosting", ex.name or "xgboost") from None

__all__ = ["convert", "convert_file", "read"]

# Objective -> link, as each objective's PredTransform does (src/objective/*.cu).
_LINKS = {
    "reg:squarederror": "identity", "reg:squaredlogerror": "identity", "reg:absoluteerror": "identity",
    "reg:pseudohubererror": "identity", "reg:quantileerror": "identity", "reg:expectileerror": "identity",
    "reg:logistic": "logistic", "binary:logistic": "logistic", "binary:logitraw": "identity",
    "binary:hinge": "positive", "multi:softprob": "softmax", "multi:softmax": "argmax",
    "count:poisson": "exp", "reg:gamma": "exp", "reg:tweedie": "exp",
    "survival:cox": "exp", "survival:aft": "exp",
    "rank:pairwise": "identity", "rank:ndcg": "identity", "rank:map": "identity",
}  # fmt: skip

# What a wrapper calls itself in its file; the random forests are of the same kinds.
_WRAPPERS = {
    "classifier": xgboost.XGBClassifier,
    "regressor": xgboost.XGBRegressor,
    "ranker": xgboost.XGBRanker,
}


def convert_file(request: Request, _kind: Format, progress: Progress = say_nothing) -> Conversion:
    """Converts a file that ``save_model`` wrote.

    Raises:
        ConversionError: xgboost cannot read it.
        ConversionRefused: It has what no graph can be made of.
    """
    path = Path(request.artifact)
    progress("reading the booster")
    booster = xgboost.Booster()
    try:
        # From memory: by a file's name xgboost would guess the format.
        booster.load_model(bytearray(path.read_bytes()))
    except (xgboost.core.XGBoostError, ValueError, TypeError) as ex:
        raise ConversionError(
            f"{quote(path.name)}: xgboost cannot read the model: it is damaged or truncated"
        ) from ex
    # The sklearn wrappers note themselves in the file. They answer otherwise than a booster: a classifier with labels, and
    # all of them with the trees up to the best iteration only.
    notes = json.loads((booster.attributes() or {}).get("scikit_learn", "{}"))
    wrapper = _WRAPPERS.get(notes.get("_estimator_type"))
    model: Any = booster
    if wrapper is not None:
        model = wrapper()
        model.load_model(bytearray(path.read_bytes()))
    return convert(model, request_sample(request), progress=progress, tolerances=request.tolerances)


def convert(
    model: Any,
    sample: Sample | Array | None = None,
    *,
    progress: Progress = say_nothing,
    tolerances: Mapping[str, float] | None = None,
) -> Conversion:
    """Converts a ``Booster``, or one of the sklearn wrappers.

    Args:
        model: A fitted model.
        sample: Rows to prove it on; made up if absent.
        progress: Told what is being done.
        tolerances: Overrides of ``parity.Tolerances``.

    Raises:
        ConversionError: It is not fitted, or the sample has other columns.
        ConversionRefused: No graph answers as it does.
    """
    boosting, original = read(model)
    return prove_boosting(
        boosting, original, framework="xgboost", family=type(model).__name__, sample=sample,
        tolerances=tolerances, progress=progress,
    )  # fmt: skip


def read(model: Any) -> tuple[Boosting, Original]:
    """What a booster or wrapper computes, and the booster's own way to compute it.

    Raises:
        ConversionError: It is not fitted, or of a kind that has no graph.
    """
    booster, classes, missing = _open(model)
    facts = json.loads(bytes(booster.save_raw("json")))["learner"]
    objective = facts["objective"]["name"]
    link = _LINKS.get(objective)
    if link is None:
        raise ConversionError(
            f"xgboost: the objective {quote(objective)} has no known way from sums to answers"
        )
    if classes and link == "argmax":
        link = "softmax"  # the wrapper asks for probabilities whatever the objective
    param = facts["learner_model_param"]
    features = int(param["num_feature"])
    groups = max(int(param["num_class"]), int(param["num_target"]), 1)
    base = _base(param["base_score"], objective, groups)
    boosted = facts["gradient_booster"]
    names = tuple(facts.get("feature_names") or ())
    trees = Ensemble(features, groups, np.float32)
    linear = None
    if boosted["name"] == "gblinear":
        weights = np.array(boosted["model"]["weights"], np.float32).reshape(features + 1, groups)
        linear, base = weights[:-1], [start + bias for start, bias in zip(base, weights[-1], strict=True)]
    else:
        _grow(trees, boosted)
    integral = frozenset(trees.categories)
    boosting = Boosting(
        trees, base, link, classes=classes, multilabel=bool(classes) and int(param["num_target"]) > 1,
        integral=integral, missing=missing, names=names, linear=linear,
        # A linear booster adds nothing for a missing value.
        nan_as_zero=frozenset(range(features)) if linear is not None else frozenset(),
        properties=category_properties(_category_names(booster)),
    )  # fmt: skip
    return boosting, _original(model, booster, boosting)


def _category_names(booster: Any) -> dict[str, list[Any]]:
    """By column, the categories of the data frame that the booster was trained on, in the order of their numbers."""
    if "c" not in (booster.feature_types or ()):
        return {}
    found = booster.get_categories(export_to_arrow=True).to_arrow() or ()
    return {name: values.to_pylist() for name, values in found if values is not None}


def _open(model: Any) -> tuple[Any, Sequence[Any], float | None]:
    """The booster (cut to its best iteration where the wrapper does), the classes, the missing value."""
    if isinstance(model, xgboost.Booster):
        return model, (), None
    try:
        booster = model.get_booster()
    except Exception as ex:  # sklearn's NotFittedError, by way of xgboost's own compatibility layer
        raise ConversionError(f"{type(model).__name__} is not fitted") from ex
    # booster.attr and not best_iteration: the latter raises without early stopping.
    best = booster.attr("best_iteration")
    if best is not None and model.booster != "gblinear":
        booster = booster[: int(best) + 1]
    classes = tuple(np.asarray(model.classes_).tolist()) if isinstance(model, xgboost.XGBClassifier) else ()
    missing = model.missing
    return booster, classes, None if missing is None else float(missing)


def _base(text: str, objective: str, groups: int) -> list[float]:
    """The base score as a sum before the link: the file holds it after it (ObjFunction::ProbToMargin)."""
    values = np.array(json.loads(text if text.startswith("[") else f"[{text}]"), np.float32)
    if objective in {"binary:logistic", "reg:logistic"}:
        values = -np.log(np.float32(1) / values - np.float32(1))
    elif _LINKS[objective] == "exp":
        values = np.log(values)
    return [float(value) for value in np.broadcast_to(values, groups)]


def _grow(trees: Ensemble, boosted: Mapping[str, Any]) -> None:
    dropped = boosted.get("weight_drop")  # dart scales each tree
    model = boosted["gbtree"]["model"] if boosted["name"] == "dart" else boosted["model"]
    for index, (tree, target) in enumerate(zip(model["trees"], model["tree_info"], strict=True)):
        if int(tree["tree_param"]["size_leaf_vector"]) > 1:
            raise ConversionError(
                "xgboost: trees whose leaves hold several targets (multi_strategy=multi_output_tree) have no "
                "converter: train with multi_strategy=one_output_per_tree"
            )
        trees.grow(0, _visitor(tree, target, dropped[index] if dropped else 1.0))


def _visitor(tree: Mapping[str, Any], target: int, weight: float) -> Any:
    sets = {
        node: tuple(tree["categories"][start : start + size])
        for node, start, size in zip(
            tree["categories_nodes"], tree["categories_segments"], tree["categories_sizes"], strict=True
        )
    }

    def visit(node: int) -> Split | Leaf:
        left, right = tree["left_children"][node], tree["right_children"][node]
        value = float(np.float32(tree["split_conditions"][node]))
        if left == -1:
            return Leaf([value * weight], target)
        feature, default_left = tree["split_indices"][node], bool(tree["default_left"][node])
        if node in sets:
            return Split(feature, "", 0.0, right, left, missing_true=not default_left, members=sets[node])
        return Split(feature, "BRANCH_LT", value, left, right, missing_true=default_left)

    return visit


def _original(model: Any, booster: Any, boosting: Boosting) -> Original:
    types, names, classes = booster.feature_types, booster.feature_names, boosting.classes
    # The wrappers take arrays, which have no names and no categories: linear boosters insist on the former.
    wrapped = (
        isinstance(model, xgboost.XGBModel)
        and "c" not in (types or ())
        and not (names and boosting.linear is not None)
    )

    def answer(feed: Tensors) -> Tensors:
        rows = feed["features"]
        if wrapped and classes:
            return {"label": model.predict(rows), "probabilities": model.predict_proba(rows)}
        if wrapped:
            return {"prediction": model.predict(rows)}
        missing = np.nan if boosting.missing is None else boosting.missing
        matrix = xgboost.DMatrix(
            rows, missing=missing, feature_names=names, feature_types=types, enable_categorical=True
        )
        answers = booster.predict(matrix)
        return class_answers(answers, classes) if classes else {"prediction": answers}

    return answer
