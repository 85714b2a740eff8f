"""CatBoost's models, from its binary format (cbm) or Python objects.

The model's JSON is the source of everything: https://catboost.ai/docs/en/concepts/export-models and
``catboost/docs/en/_includes/work_src/reusable-formats/json-model.md``. Features and borders are float32, a
feature beyond a border goes right. Categorical, text and embedding features are hashed or counted inside
CatBoost: models that have them are refused.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from converters.artifact import Format
from converters.boosting import Boosting
from converters.boosting_proof import prove_boosting, request_sample
from converters.conversion import Conversion, Progress, Request, say_nothing
from converters.errors import ConversionError, MissingExtra
from converters.parity import Original
from converters.samples import Sample
from converters.trees import Ensemble, Leaf, Split
from onnx_serve.errors import quote
from onnx_serve.tensors import Array, Tensors

try:
    import catboost
except ModuleNotFoundError as ex:
    raise MissingExtra("convert-boosting", ex.name or "catboost") from None

__all__ = ["convert", "convert_file", "read"]

_IDENTITY = frozenset(
    {"RMSE", "MAE", "Quantile", "LogLinQuantile", "MAPE", "Huber", "Expectile", "Lq", "MultiRMSE", "MultiQuantile",
     "QueryRMSE", "YetiRank", "PairLogit", "QuerySoftMax", "PairLogitPairwise", "YetiRankPairwise"}
)  # fmt: skip
_EXPONENT = frozenset({"Poisson", "Tweedie"})
_BINARY = frozenset({"Logloss", "CrossEntropy"})


def convert_file(request: Request, _kind: Format, progress: Progress = say_nothing) -> Conversion:
    """Converts a file that ``save_model`` wrote in its own format.

    Raises:
        ConversionError: CatBoost cannot read it.
        ConversionRefused: It has features or leaves that no graph can be made of.
    """
    path = Path(request.artifact)
    progress("reading the model")
    model = catboost.CatBoost()
    try:
        model.load_model(blob=path.read_bytes())
    except catboost.CatBoostError as ex:
        raise ConversionError(
            f"{quote(path.name)}: CatBoost cannot read the model: it is damaged or truncated"
        ) from ex
    return convert(model, request_sample(request), progress=progress, tolerances=request.tolerances)


def convert(
    model: Any,
    sample: Sample | Array | None = None,
    *,
    progress: Progress = say_nothing,
    tolerances: Mapping[str, float] | None = None,
) -> Conversion:
    """Converts a ``CatBoost`` or one of its classes.

    Args:
        model: A fitted model.
        sample: Rows to prove it on; made up if absent.
        progress: Told what is being done.
        tolerances: Overrides of ``parity.Tolerances``.

    Raises:
        ConversionError: It is not fitted, has features of other kinds, or the sample has other columns.
        ConversionRefused: No graph answers as it does.
    """
    boosting, original = read(model)
    return prove_boosting(
        boosting, original, framework="catboost", family=type(model).__name__, sample=sample,
        tolerances=tolerances, progress=progress,
    )  # fmt: skip


def read(model: Any) -> tuple[Boosting, Original]:
    """What a model computes, and its own way to compute it.

    Raises:
        ConversionError: It is not fitted, or of a kind that has no graph.
    """
    if not model.is_fitted():
        raise ConversionError(f"{type(model).__name__} is not fitted")
    for kind, indices in {
        "categorical": model.get_cat_feature_indices(),
        "text": model.get_text_feature_indices(),
        "embedding": model.get_embedding_feature_indices(),
    }.items():
        if indices:
            raise ConversionError(
                f"CatBoost: {kind} features ({indices[:5]}) have no ONNX form, as CatBoost counts and hashes "
                "them inside: encode them before training, for instance in a pipeline with OrdinalEncoder"
            )
    facts = _facts(model)
    loss = str(facts["model_info"]["params"]["loss_function"]["type"])
    classes = tuple(np.asarray(model.classes_).tolist()) if len(model.classes_) else ()
    scale, base = facts["scale_and_bias"]
    features = facts["features_info"].get("float_features", [])
    # A feature may lack borders: the trees never ask for it, but rows have it.
    names = tuple(model.feature_names_)
    trees = Ensemble(len(names), len(base), np.float32)
    missing = {feature["feature_index"]: feature["nan_value_treatment"] == "AsTrue" for feature in features}
    columns = {feature["feature_index"]: feature["flat_feature_index"] for feature in features}
    for tree in facts.get("oblivious_trees", ()):
        trees.grow((0, 0), _oblivious(tree, len(base), scale, missing, columns))
    for tree in facts.get("trees", ()):
        trees.grow(tree, _branching(scale, missing, columns))
    boosting = Boosting(
        trees, base, _link(loss, classes), classes=classes,
        names=() if names == tuple(map(str, range(len(names)))) else names,
    )  # fmt: skip
    return boosting, _original(model, loss, classes)


def _facts(model: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="onnx-serve-") as folder:
        path = Path(folder) / "model.json"
        model.save_model(str(path), format="json")
        facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return facts


def _link(loss: str, classes: Sequence[Any]) -> str:
    if loss in _BINARY:
        return "logistic"
    if loss == "MultiClass":
        return "softmax"
    if loss == "MultiClassOneVsAll":
        return "logistic"
    if loss in _EXPONENT:
        return "exp"
    if loss in _IDENTITY and not classes:
        return "identity"
    raise ConversionError(f"CatBoost: the loss {quote(loss)} has no known way from sums to answers")


def _split(
    split: Mapping[str, Any], left: Any, right: Any, missing: Mapping[int, bool], columns: Mapping[int, int]
) -> Split:
    feature = split.get("float_feature_index")
    if feature is None or split.get("split_type") != "FloatFeature":
        raise ConversionError("CatBoost: splits on other than numbers have no converter")
    border = float(np.float32(split["border"]))
    # A missing value is below or beyond all borders of its feature.
    return Split(columns[feature], "BRANCH_GT", border, right, left, missing_true=missing[feature])


def _oblivious(
    tree: Mapping[str, Any], width: int, scale: float, missing: Mapping[int, bool], columns: Mapping[int, int]
) -> Any:
    """A tree that asks one question a level; the answers are the bits of the leaf's number."""
    splits = tree.get("splits") or []
    values = tree["leaf_values"]

    def visit(key: tuple[int, int]) -> Split | Leaf:
        depth, leaf = key
        if depth == len(splits):
            return Leaf([scale * value for value in values[leaf * width : (leaf + 1) * width]])
        right = (depth + 1, leaf | 1 << depth)
        return _split(splits[depth], (depth + 1, leaf), right, missing, columns)

    return visit


def _branching(scale: float, missing: Mapping[int, bool], columns: Mapping[int, int]) -> Any:
    def visit(node: Mapping[str, Any]) -> Split | Leaf:
        if "split" not in node:
            values = node["value"] if isinstance(node["value"], list) else [node["value"]]
            return Leaf([scale * value for value in values])
        return _split(node["split"], node["left"], node["right"], missing, columns)

    return visit


def _original(model: Any, loss: str, classes: Sequence[Any]) -> Original:
    def answer(feed: Tensors) -> Tensors:
        rows = feed["features"]
        if classes:
            shares = np.asarray(model.predict(rows, prediction_type="Probability"))
            label = np.asarray(model.predict(rows, prediction_type="Class")).reshape(len(rows))
            # A model read from a file answers classes as text.
            kind = np.asarray(classes).dtype
            return {"label": label.astype(kind) if kind.kind in "iuf" else label, "probabilities": shares}
        wanted = "Exponent" if loss in _EXPONENT else "RawFormulaVal"
        return {"prediction": np.asarray(catboost.CatBoost.predict(model, rows, prediction_type=wanted))}

    return answer
