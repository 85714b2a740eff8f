"""Why an estimator has no ONNX form, in words that name the step and what can be done."""

from collections.abc import Iterator
from typing import Any

from skl2onnx._supported_operators import sklearn_operator_name_map

from converters.sklearn_inputs import children

__all__ = ["explain", "family_of", "one_line", "quote_long", "walk"]


def explain(estimator: Any, ex: Exception) -> str:
    """Which step has no converter, and what can be done."""
    for path, step in walk(estimator, ""):
        if type(step) not in sklearn_operator_name_map and not children(step):
            where = f'step "{path}"' if path else "the estimator"
            return (
                f"{where}: {type(step).__name__} has no ONNX converter: replace it, or apply it outside the model, "
                "before requests are sent"
            )
    return f"{family_of(estimator)} has no ONNX form: skl2onnx says {quote_long(one_line(ex))}"


def walk(estimator: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The estimator and all that it is made of, with their places: ``clf.base``."""
    yield path, estimator
    for name, child in children(estimator):
        yield from walk(child, f"{path}.{name}" if path else name)


def quote_long(text: str) -> str:
    """A library's own message in quotes, cut to a length that still explains."""
    return f'"{text[:200]}{"..." if len(text) > 200 else ""}"'  # noqa: PLR2004  about two lines


def one_line(ex: Exception) -> str:
    """A library's message without line breaks and invitations."""
    text = " ".join(str(ex).split()).partition(" You may raise an issue")[0]
    return text or type(ex).__name__


def family_of(estimator: Any) -> str:
    """The class, for a pipeline the classes of its steps."""
    steps = getattr(estimator, "steps", None)
    return " -> ".join(type(step).__name__ for _, step in steps) if steps else type(estimator).__name__
