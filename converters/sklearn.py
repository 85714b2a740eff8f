"""scikit-learn's estimators and pipelines, by way of skl2onnx, with what it gets wrong put right.

The graph is made in double first, as scikit-learn computes, unless everything that meets the input casts it
to float32 anyway (trees do); if that graph cannot be made, loaded or proven, in float32. Only a proven one is
returned. Class labels go to the metadata, never into a ZipMap; what has no counterpart in the original is no
output.
"""

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from converters.artifact import Format
from converters.conversion import Conversion, Progress, Request, prove, say_nothing
from converters.errors import ConversionError, ConversionRefused, MissingExtra
from converters.parity import Original, Probe, Tolerances
from onnx_serve.errors import MismatchError, quote

try:
    import skl2onnx
    from skl2onnx.common.data_types import (
        DoubleTensorType,
        FloatTensorType,
        Int64TensorType,
        StringTensorType,
    )
    from sklearn.base import BaseEstimator, is_classifier
    from sklearn.exceptions import NotFittedError
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.pipeline import Pipeline
    from sklearn.svm import SVC, NuSVC
    from sklearn.utils.validation import check_is_fitted
except ModuleNotFoundError as ex:
    raise MissingExtra("convert-sklearn", ex.name or "skl2onnx") from None

from converters import sklearn_graph
from converters.samples import as_sample, read_sample
from converters.sklearn_answers import accepted, answers_of, check_answers, classes_of, original_of
from converters.sklearn_composites import allowed_options, delegated
from converters.sklearn_file import check_options, read_skops
from converters.sklearn_imputers import fills_text
from converters.sklearn_inputs import MATRIX, TEXT, Inputs, children, describe, first_steps
from converters.sklearn_messages import explain, family_of, one_line, walk
from converters.sklearn_operators import SINGLE_PRECISION, register, zeros_missing
from converters.sklearn_plain import plain
from converters.sklearn_probes import make_probes

__all__ = ["convert", "convert_file", "convert_object"]

_TOLERANCES = Tolerances(rtol=1e-4, atol=1e-5)
# libsvm stops coupling the probabilities of several classes at 0.005 / classes, so that the last bit of a score
# decides on one step more or less (sklearn/svm/src/libsvm/svm.cpp, multiclass_probability).
_COUPLED = Tolerances(rtol=1e-4, atol=5e-3)


def convert_file(request: Request, _kind: Format, progress: Progress = say_nothing) -> Conversion:
    """Converts a skops file; pickles come by way of ``convert_object``.

    Raises:
        ConversionError: It is damaged, or has types that ``--option trusted=`` does not list.
        ConversionRefused: No graph answers as the estimator does.
    """
    progress("reading the estimator")
    return convert_object(read_skops(Path(request.artifact), request.options), request, progress)


def convert_object(model: Any, request: Request, progress: Progress = say_nothing) -> Conversion:
    """Converts an estimator with the request's sample, options and tolerances."""
    check_options(request.options)
    sample = read_sample(Path(request.sample)) if request.sample else None
    return convert(
        model,
        sample,
        precision=request.options.get("float", "auto"),
        progress=progress,
        tolerances=request.tolerances,
    )


def convert(
    estimator: Any,
    sample: Any = None,
    *,
    precision: str = "auto",
    progress: Progress = say_nothing,
    tolerances: Mapping[str, float] | None = None,
) -> Conversion:
    """Converts a fitted estimator or pipeline.

    Args:
        estimator: The estimator.
        sample: Rows to prove it on and to tell the columns' types: a data frame, an array, a list of texts
            or a ``Sample``; made up if absent.
        precision: ``64``, ``32`` or ``auto``: floating-point type of the inputs.
        progress: Told what is being done.
        tolerances: Overrides of ``parity.Tolerances``.

    Raises:
        ConversionError: It is no estimator, not fitted, or the sample has other columns.
        ConversionRefused: A step has no converter, or no graph answers as the estimator does.
    """
    _check_estimator(estimator)
    estimator = _bare(estimator)
    register()
    given = as_sample(sample)
    inputs = describe(estimator, given)
    answers = answers_of(estimator)
    original = original_of(inputs, answers)
    probes = [Probe("sample", inputs.feed(given))] if given is not None else []
    check_answers(original, probes)
    probes += accepted(original, list(make_probes(estimator, inputs)))
    if not probes:
        raise ConversionError(
            f"{family_of(estimator)} takes none of the rows made up for it: give it some with --sample"
        )
    problems: list[str] = []
    for kind, sparse in itertools.product(_kinds(estimator, precision), _sparse(estimator)):
        progress(f"converting in {'double' if kind is DoubleTensorType else 'single'} precision")
        try:
            with zeros_missing(missing=sparse):
                model = _to_onnx(estimator, inputs, kind, answers)
        except ConversionRefused as ex:
            problems.append(str(ex))
            continue
        for variant in _variants(model, answers, _label_count(estimator)):
            try:
                return _prove(estimator, inputs, variant, original, probes, tolerances, progress)
            except ConversionRefused as ex:
                problems.append(str(ex))
    # Wrong answers tell more than what skl2onnx cannot do in one precision.
    raise ConversionRefused(
        next((text for text in problems if text.startswith("the converted")), problems[-1])
    )


def _prove(
    estimator: Any, inputs: Inputs, model: Any, original: Original, probes: Sequence[Probe],
    tolerances: Mapping[str, float] | None, progress: Progress,
) -> Conversion:  # fmt: skip
    notes = list(_text_notes(estimator))
    if "scores" in original(probes[0].feed) and "scores" not in {
        output.name for output in model.graph.output
    }:
        notes.append("the estimator's decision function is left out: it cannot be reproduced")
    try:
        return prove(
            model, original, probes,
            framework="sklearn", family=family_of(estimator), tolerances=_tolerances(estimator), overrides=tolerances,
            columns=[column.name for column in inputs.columns] if inputs.form == "matrix" and inputs.named else (),
            classes=classes_of(estimator), notes=tuple(notes), progress=progress,
        )  # fmt: skip
    except MismatchError as ex:
        raise ConversionRefused(f"the converted model takes other inputs: {ex}") from ex


def _variants(model: Any, answers: Mapping[str, Any], labels: int) -> Iterator[Any]:
    """The outputs to prove: all that the original has, and these put right in ways that skl2onnx gets them wrong."""
    names = [output.name for output in model.graph.output if output.name.removesuffix("_") in answers]
    kept = sklearn_graph.keep_outputs(model, names)
    yield kept
    if "label" in names:
        yield sklearn_graph.flat_labels(kept)
    if "probabilities" in names and labels > 1:
        yield sklearn_graph.rows_first(kept, "probabilities")
        yield sklearn_graph.columns(kept, "probabilities", range(labels, 2 * labels))
    if "scores" in names:
        yield sklearn_graph.columns(kept, "scores", [1])
        if len(names) > 1:
            yield sklearn_graph.keep_outputs(model, [name for name in names if name != "scores"])


def _label_count(estimator: Any) -> int:
    """How many labels a classifier gives each row."""
    last = children(estimator)[-1][1] if isinstance(estimator, Pipeline) else estimator
    classes = getattr(last, "classes_", ())
    if isinstance(classes, list):
        return len(classes)
    return (
        len(classes)
        if getattr(getattr(last, "_label_binarizer", None), "y_type_", "").startswith("multilabel")
        else 1
    )


def _tolerances(estimator: Any) -> Tolerances:
    return _COUPLED if any(isinstance(step, SVC | NuSVC) for _, step in walk(estimator, "")) else _TOLERANCES


# --- The graph --------------------------------------------------------------------------------------


def _kinds(estimator: Any, precision: str) -> list[Any]:
    if precision != "auto":
        return [FloatTensorType if precision == "32" else DoubleTensorType]
    trees = all(
        isinstance(step, SINGLE_PRECISION) or _boosted_in_single(step) for step in first_steps(estimator)
    )
    return [FloatTensorType, DoubleTensorType] if trees else [DoubleTensorType, FloatTensorType]


def _sparse(estimator: Any) -> list[bool]:
    """Whether to try zeros as missing values: xgboost behind steps that may make sparse matrices takes them so."""
    steps = [step for _, step in walk(estimator, "")]
    boosted = any(type(step).__module__.partition(".")[0] == "xgboost" for step in steps)
    return [False, True] if boosted and len(steps) > 1 else [False]


def _boosted_in_single(step: Any) -> bool:
    return type(step).__module__.partition(".")[0] in {"xgboost", "catboost"}


def _to_onnx(estimator: Any, inputs: Inputs, kind: Any, answers: Mapping[str, Any]) -> Any:
    """The graph, with inputs and outputs under their own names."""
    types: list[tuple[str, Any]]
    if inputs.form == "text":
        types = [(TEXT, StringTensorType([None, 1]))]
    elif inputs.form == "matrix":
        types = [(MATRIX, kind([None, len(inputs.columns)]))]
    else:
        of = {"number": kind, "integer": Int64TensorType, "text": StringTensorType}
        types = [(column.name, of[column.kind]([None, 1])) for column in inputs.columns]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = _convert_sklearn(estimator, types, answers)
    except ConversionError as ex:
        raise ConversionRefused(str(ex)) from ex
    except Exception as ex:  # skl2onnx raises RuntimeError, NotImplementedError, AttributeError, ...
        raise ConversionRefused(explain(estimator, ex)) from ex
    return sklearn_graph.tidy(model, [name for name, _ in types], list(answers))


def _convert_sklearn(estimator: Any, types: Sequence[Any], answers: Mapping[str, Any]) -> Any:
    options: dict[Any, Any] = {}
    for step in _vectorizers(estimator):
        options[id(step)] = {"locale": "C.UTF-8", **sklearn_graph.tokenizer_options(step)}
    if is_classifier(estimator):
        last = estimator
        while isinstance(last, Pipeline):
            last = children(last)[-1][1]
        wanted = {"zipmap": False, "raw_scores": "probabilities" not in answers and "scores" in answers}
        allowed = allowed_options(last)
        options[id(last)] = {name: value for name, value in wanted.items() if name in allowed}
    for _, step in walk(estimator, ""):
        if is_classifier(step):  # else a pipeline asks some of them for a ZipMap
            options.setdefault(id(step), {})
    with plain(estimator):
        return skl2onnx.convert_sklearn(
            estimator,
            initial_types=list(types),
            target_opset=sklearn_graph.OPSET,
            options=options or None,
        )


def _bare(estimator: Any) -> Any:
    """What answers: of a search the best estimator, of a delegate whom it asks, of a pipeline the steps that do something."""
    estimator = delegated(estimator)
    if not isinstance(estimator, Pipeline) or not children(estimator):
        return estimator
    return Pipeline([(name, delegated(step)) for name, step in children(estimator)])


def _vectorizers(estimator: Any) -> Iterator[Any]:
    if isinstance(estimator, CountVectorizer):
        yield estimator
    for _, child in children(estimator):
        yield from _vectorizers(child)


def _text_notes(estimator: Any) -> Iterator[str]:
    if any(step.lowercase for step in _vectorizers(estimator)):
        yield (
            "text is put in lower case letter by letter: the capitals İ and a final Σ, which Python lowers by "
            "context, come out otherwise"
        )
    if any(fills_text(step) for _, step in walk(estimator, "")):
        yield "an imputer fills in text that is missing, which no request can hold: an empty text stays an empty text"


def _check_estimator(estimator: Any) -> None:
    if not isinstance(estimator, BaseEstimator):
        raise ConversionError(f"expected a scikit-learn estimator, got {quote(type(estimator).__name__)}")
    try:
        check_is_fitted(estimator)
    except NotFittedError as ex:
        raise ConversionError(f"{family_of(estimator)} is not fitted: convert it after fit()") from ex
    except TypeError as ex:
        raise ConversionError(f"{family_of(estimator)} cannot be converted: {one_line(ex)}") from ex
