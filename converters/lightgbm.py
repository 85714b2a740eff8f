"""LightGBM's boosters, from its text format or Python objects.

``Booster.dump_model`` is the source of everything. How a row finds its way is told by ``include/LightGBM/tree.h``
(``NumericalDecision``, ``CategoricalDecision``) and ``docs/Parameters.rst``: features and thresholds are
float64, ``feature <= threshold`` goes left, as do categories in a node's set; a feature has one way to treat
missing values: ``None`` (NaN is 0), ``Zero`` (NaN and zeros are missing) or ``NaN``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.artifact import Format
from converters.boosting import KZERO, Boosting
from converters.boosting_proof import category_properties, class_answers, prove_boosting, request_sample
from converters.conversion import Conversion, Progress, Request, say_nothing
from converters.errors import ConversionError, MissingExtra
from converters.parity import Original
from converters.samples import Sample
from converters.trees import Ensemble, Leaf, Split
from onnx_serve.errors import quote
from onnx_serve.tensors import Array, Tensors

try:
    import lightgbm
except ModuleNotFoundError as ex:
    raise MissingExtra("convert-boosting", ex.name or "lightgbm") from None

__all__ = ["convert", "convert_file", "read"]

# Objective -> link, as each objective's ConvertOutput does (src/objective/*.hpp).
_LINKS = {
    "regression": "identity", "regression_l1": "identity", "huber": "identity", "fair": "identity",
    "quantile": "identity", "mape": "identity", "poisson": "exp", "gamma": "exp", "tweedie": "exp",
    "binary": "logistic", "multiclass": "softmax", "multiclassova": "logistic",
    "cross_entropy": "logistic", "cross_entropy_lambda": "log1p_exp",
    "lambdarank": "identity", "rank_xendcg": "identity", "custom": "identity",
}  # fmt: skip
# How infinity is written (Common::AvoidInf, include/LightGBM/utils/common.h).
_NO_LIMIT = 1e300


def convert_file(request: Request, _kind: Format, progress: Progress = say_nothing) -> Conversion:
    """Converts a file that ``Booster.save_model`` wrote.

    Raises:
        ConversionError: LightGBM cannot read it.
        ConversionRefused: No graph answers as it does.
    """
    path = Path(request.artifact)
    progress("reading the booster")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as ex:
        raise ConversionError(
            f"{quote(path.name)}: expected LightGBM's text, got bytes that are no UTF-8"
        ) from ex
    # LightGBM ends the process, or reads beyond the text, when the trees announced are not there.
    sizes = re.search(r"^tree_sizes=([\d ]*)$", text, re.MULTILINE)
    if sizes is None or "end of trees" not in text or text.count("\nTree=") != len(sizes[1].split()):
        raise ConversionError(f"{quote(path.name)}: LightGBM's text is damaged or truncated")
    try:
        booster = lightgbm.Booster(model_str=text)
    except (lightgbm.basic.LightGBMError, ValueError) as ex:
        raise ConversionError(f"{quote(path.name)}: LightGBM cannot read the model: {quote(ex)}") from ex
    return convert(booster, request_sample(request), progress=progress, tolerances=request.tolerances)


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
        ConversionError: It is not fitted, has linear trees, or the sample has other columns.
        ConversionRefused: No graph answers as it does.
    """
    boosting, original = read(model)
    return prove_boosting(
        boosting, original, framework="lightgbm", family=type(model).__name__, sample=sample,
        tolerances=tolerances, progress=progress,
    )  # fmt: skip


def read(model: Any) -> tuple[Boosting, Original]:
    """What a booster or wrapper computes, and its own way to compute it.

    Raises:
        ConversionError: It is not fitted, or has linear trees or an unknown objective.
    """
    booster, classes = _open(model)
    facts = booster.dump_model()
    objective, *words = (facts.get("objective") or "custom").split()
    link = _LINKS.get(objective)
    if link is None:
        raise ConversionError(
            f"LightGBM: the objective {quote(objective)} has no known way from sums to answers"
        )
    options = dict(word.split(":", 1) for word in words if ":" in word)
    if "sqrt" in words:
        link = "signed_square"
    if link == "log1p_exp" and "sigmoid" in options:
        raise ConversionError("LightGBM: cross_entropy_lambda with a factor has no converter")
    targets = facts["num_tree_per_iteration"]
    trees = Ensemble(facts["max_feature_idx"] + 1, targets, np.float64)
    missing: dict[int, set[str]] = {}
    for index, tree in enumerate(facts["tree_info"]):
        if _is_linear(tree["tree_structure"]):
            raise ConversionError("LightGBM: linear trees (linear_tree=true) have no converter")
        trees.grow(tree["tree_structure"], _visitor(index % targets, missing))
    ways = {feature: sorted(found) for feature, found in missing.items() if len(found) > 1}
    if ways:
        raise ConversionError(f"LightGBM: feature {next(iter(ways))} treats missing values in several ways")
    rounds = max(len(facts["tree_info"]) // targets, 1)
    boosting = Boosting(
        trees,
        [0.0] * targets,
        "identity" if objective == "custom" else link,
        sigmoid=float(options.get("sigmoid", 1.0)),
        classes=classes,
        nan_as_zero=frozenset(feature for feature, found in missing.items() if found == {"None"}),
        zero_as_nan=frozenset(feature for feature, found in missing.items() if found == {"Zero"}),
        integral=frozenset(trees.categories),
        toward_zero=True,  # static_cast<int> in CategoricalDecision
        scale=1.0 / rounds if facts.get("average_output") else 1.0,
        names=_names(booster),
        properties=category_properties(booster.pandas_categorical or ()),
    )
    return boosting, _original(booster, classes)


def _open(model: Any) -> tuple[Any, Sequence[Any]]:
    if isinstance(model, lightgbm.Booster):
        return model, ()
    try:
        booster = model.booster_
    except Exception as ex:  # LGBMNotFittedError, whose base depends on whether sklearn is installed
        raise ConversionError(f"{type(model).__name__} is not fitted") from ex
    # With an objective of the user's own, a classifier answers sums: nobody says how they become classes.
    if not isinstance(model, lightgbm.LGBMClassifier) or callable(model.objective_):
        return booster, ()
    return booster, tuple(np.asarray(model.classes_).tolist())


def _names(booster: Any) -> tuple[str, ...]:
    """The features' names, unless LightGBM made them up."""
    names = tuple(booster.feature_name())
    made_up = all(re.fullmatch(r"Column_\d+", name) for name in names)
    return () if made_up else names


def _is_linear(root: Mapping[str, Any]) -> bool:
    return any("leaf_coeff" in node for node in _nodes(root))


def _nodes(root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    pending = [root]
    while pending:
        node = pending.pop()
        yield node
        pending += [node[side] for side in ("left_child", "right_child") if side in node]


def _visitor(target: int, missing: dict[int, set[str]]) -> Any:
    def visit(node: Mapping[str, Any]) -> Split | Leaf:
        if "split_feature" not in node:
            return Leaf([node["leaf_value"]], target)
        feature, left, right = node["split_feature"], node["left_child"], node["right_child"]
        if node["decision_type"] == "==":
            members = tuple(int(word) for word in str(node["threshold"]).split("||"))
            # A missing category is in no set, whatever default_left says (CategoricalDecision).
            return Split(feature, "", 0.0, left, right, members=members)
        missing.setdefault(feature, set()).add(node["missing_type"])
        threshold = _beyond_zero(float(node["threshold"]))
        return Split(feature, "BRANCH_LEQ", threshold, left, right, missing_true=bool(node["default_left"]))

    return visit


def _beyond_zero(threshold: float) -> float:
    """The threshold that tells what LightGBM tells once it has taken tiny features for 0.

    ``Predictor`` drops features up to ``kZeroThreshold`` from a dense row (src/c_api.cpp).
    """
    if threshold >= _NO_LIMIT:
        return float(np.finfo(np.float64).max)
    if -KZERO <= threshold < 0:
        return float(np.nextafter(-KZERO, -np.inf))
    return KZERO if 0 <= threshold < KZERO else threshold


def _original(booster: Any, classes: Sequence[Any]) -> Original:
    def answer(feed: Tensors) -> Tensors:
        rows = feed["features"]
        # The booster itself: the wrappers warn of arrays without names, and add nothing but labels.
        if not classes:
            return {"prediction": np.asarray(booster.predict(rows))}
        return class_answers(booster.predict(rows), classes)

    return answer
