"""The JSONPath expressions of Batch Transform's input and output filters.

The platform takes a subset, of at most 63 characters: ``$``, ``.name``, ``*``, ``['a','b']``, ``[1,3]``,
``[a:b]``, and indices and slices in one bracket (``$[0,5:]``); negative indices count from the end:
https://docs.aws.amazon.com/sagemaker/latest/dg/batch-transform-data-processing.html#data-processing-operators and
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_DataProcessing.html.

The page's prose calls the end of a slice inclusive; its table refers to https://github.com/json-path/JsonPath,
where the end is exclusive, which is what is done here.
"""

import re
from dataclasses import dataclass
from typing import Any

from onnx_serve.errors import MismatchError, SettingsError, quote

__all__ = ["ROOT", "JsonPath", "parse_path"]

_MAX_LENGTH = 63
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_RANGE = r"-?\d+(?:\s*:\s*(?:-?\d+)?)?|:\s*(?:-?\d+)?"
_STEP = re.compile(
    rf"""\.(?P<name>[^\s.\[\]'"*(),?@:$]+)
    |(?P<every>\.\*|\.?\[\s*\*\s*\])
    |\.?\[\s*(?P<keys>(?:{_QUOTED})(?:\s*,\s*(?:{_QUOTED}))*)\s*\]
    |\.?\[\s*(?P<items>(?:{_RANGE})(?:\s*,\s*(?:{_RANGE}))*)\s*\]""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class _Keys:
    """Members of an object; one alone gives its value, several an object of them."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Items:
    """Elements of an array; one index alone gives its element, anything else an array."""

    places: tuple[int | slice, ...]


@dataclass(frozen=True, slots=True)
class _Every:
    """All members of an object, or all elements of an array, as an array."""


@dataclass(frozen=True, slots=True)
class JsonPath:
    """A parsed expression.

    Attributes:
        text: As it was written.
        steps: From the root outwards.
    """

    text: str
    steps: tuple[_Keys | _Items | _Every, ...] = ()

    @property
    def is_root(self) -> bool:
        """Whether it selects everything, unchanged."""
        return not self.steps

    def select(self, value: Any) -> Any:
        """What the expression selects of a record, as parsed JSON.

        Raises:
            MismatchError: A name or an index is not there, or the record has another structure.
        """
        return _select(value, self.steps, self.text)


ROOT = JsonPath("$")


def parse_path(text: str) -> JsonPath:
    """The expression.

    Raises:
        SettingsError: It is longer than the platform allows, or not of its subset.
    """
    if len(text) > _MAX_LENGTH:
        raise SettingsError(f"expected a JSONPath of at most {_MAX_LENGTH} characters, got {len(text)}")
    if not text.startswith("$"):
        raise SettingsError(f"expected a JSONPath that starts with $, got {quote(text)}")
    steps = []
    end = 1
    while end < len(text):
        match = _STEP.match(text, end)
        if match is None:
            raise SettingsError(
                f"expected a JSONPath of $, .name, *, ['a','b'], [1,3] and [a:b], got {quote(text)} "
                f"(character {end + 1})"
            )
        steps.append(_step(match))
        end = match.end()
    return JsonPath(text, tuple(steps))


def _step(match: re.Match[str]) -> _Keys | _Items | _Every:
    if match["name"]:
        return _Keys((match["name"],))
    if match["every"]:
        return _Every()
    if match["keys"]:
        names = re.findall(_QUOTED, match["keys"])
        return _Keys(tuple(re.sub(r"\\(.)", r"\1", name[1:-1]) for name in names))
    return _Items(tuple(_place(part.strip()) for part in match["items"].split(",")))


def _place(text: str) -> int | slice:
    start, colon, end = (part.strip() for part in text.partition(":"))
    if not colon:
        return int(start)
    return slice(int(start) if start else None, int(end) if end else None)


def _select(value: Any, steps: tuple[_Keys | _Items | _Every, ...], text: str) -> Any:
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if isinstance(step, _Every):
        if not isinstance(value, dict | list):
            raise _mismatch(text, "an object or array", value)
        return [_select(item, rest, text) for item in (value.values() if isinstance(value, dict) else value)]
    if isinstance(step, _Keys):
        if not isinstance(value, dict):
            raise _mismatch(text, "an object", value)
        for name in step.names:
            if name not in value:
                raise MismatchError(f"{text}: the record has no attribute {quote(name)}")
        if len(step.names) == 1:
            return _select(value[step.names[0]], rest, text)
        return {name: _select(value[name], rest, text) for name in step.names}
    return _items(value, step.places, rest, text)


def _items(
    value: Any, places: tuple[int | slice, ...], rest: tuple[_Keys | _Items | _Every, ...], text: str
) -> Any:
    if not isinstance(value, list):
        raise _mismatch(text, "an array", value)
    chosen: list[Any] = []
    for place in places:
        if isinstance(place, slice):
            chosen += value[place]
        elif -len(value) <= place < len(value):
            chosen.append(value[place])
        else:
            raise MismatchError(
                f"{text}: expected more than {len(value)} elements, there is no index {place}"
            )
    if len(places) == 1 and isinstance(places[0], int):
        return _select(chosen[0], rest, text)
    return [_select(item, rest, text) for item in chosen]


def _mismatch(text: str, expected: str, value: Any) -> MismatchError:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return MismatchError(f"{text}: expected {expected}, got {kinds.get(type(value), 'a number')}")
