"""Kinds of values that settings take: what they are called, how they are checked, how text becomes one.

A file gives a kind what YAML made of it; a variable or a flag gives text, which ``Kind.lex`` first turns into
what YAML would have given.
"""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from onnx_serve.errors import quote
from onnx_serve.yaml_file import InvalidYaml, parse_yaml, show_yaml

__all__ = [
    "MAX_COUNT",
    "MAX_INT32",
    "MAX_INT64",
    "Auto",
    "Kind",
    "UnfitError",
    "auto_or_integer",
    "boolean",
    "choice",
    "image",
    "integer",
    "log_level",
    "media_type",
    "names",
    "options",
    "path",
    "provider_options",
    "providers",
    "strategy",
    "text",
    "text_or_null",
]

MAX_COUNT = 1 << 16
MAX_INT32 = (1 << 31) - 1
MAX_INT64 = (1 << 63) - 1

Auto: TypeAlias = Literal["auto"]
T_co = TypeVar("T_co", covariant=True)
W = TypeVar("W", bound=str)


class UnfitError(Exception):
    """A value is not what its setting takes; the text says what came."""


class Kind(NamedTuple, Generic[T_co]):
    """A type of settings.

    Attributes:
        expected: What the values are, for messages and documents.
        check: A value as YAML gives it to the setting's value, or ``UnfitError``.
        lex: The text of a variable or flag to what YAML would give; raises nothing but ``UnfitError``.
    """

    expected: str
    check: Callable[[object], T_co]
    lex: Callable[[str], object]


def integer(low: int, high: int) -> Kind[int]:
    """A whole number between two bounds, which belong to it."""

    def check(value: object) -> int:
        if type(value) is not int or not low <= value <= high:
            raise UnfitError(show_yaml(value))
        return value

    # The largest bound tells a reader nothing.
    numbers = f"an integer of at least {low}" if high == MAX_INT64 else f"an integer from {low} to {high}"
    return Kind(numbers, check, _lex_word)


def auto_or_integer(low: int, high: int) -> Kind[int | Auto]:
    """The word ``auto``, or a whole number between two bounds."""
    number = integer(low, high)

    def check(value: object) -> int | Auto:
        return "auto" if value == "auto" else number.check(value)

    return Kind(f"auto or {number.expected}", check, number.lex)


def boolean() -> Kind[bool]:
    """True or false; as text also 1, yes, on and 0, no, off."""
    words = {"true": True, "1": True, "yes": True, "on": True}
    words |= {"false": False, "0": False, "no": False, "off": False}

    def check(value: object) -> bool:
        if not isinstance(value, bool):
            raise UnfitError(show_yaml(value))
        return value

    return Kind("true or false", check, lambda text: words.get(text.strip().lower(), text))


def choice(*words: W) -> Kind[W]:
    """One of some words, which are in lower case."""

    def check(value: object) -> W:
        # A bare null in YAML is no string, but someone who writes it means the word.
        given = "null" if value is None else value
        found = next((word for word in words if isinstance(given, str) and given.lower() == word), None)
        if found is None:
            raise UnfitError(show_yaml(value))
        return found

    return Kind(f"{', '.join(words[:-1])} or {words[-1]}", check, _lex_word)


def text(expected: str, pattern: str) -> Kind[str]:
    """Printable text that a pattern matches as a whole."""

    def check(value: object) -> str:
        # Control characters would forge lines of the log.
        if not isinstance(value, str) or not value.isprintable() or not re.fullmatch(pattern, value):
            raise UnfitError(show_yaml(value))
        return value

    return Kind(expected, check, str.strip)


def text_or_null(expected: str, pattern: str) -> Kind[str | None]:
    """Null, or printable text that a pattern matches; as text, null is the word."""
    some = text(expected, pattern)

    def check(value: object) -> str | None:
        return None if value is None else some.check(value)

    def lex(text: str) -> object:
        return None if text.strip().lower() in {"", "null"} else text.strip()

    return Kind(f"{expected} or null", check, lex)


def path() -> Kind[Path]:
    """A path, which need not exist."""
    some = text("a path", ".+")
    return Kind(some.expected, lambda value: Path(some.check(value)), some.lex)


def media_type() -> Kind[str | None]:
    """Null, or a media type without wildcards; parameters are dropped, because answers carry none."""
    # https://www.rfc-editor.org/rfc/rfc6838#section-4.2 and
    # https://www.rfc-editor.org/rfc/rfc9110#section-5.6.6; possessive, so that no text is read twice.
    name = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
    word = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
    parameter = rf'{word}=(?:{word}|"(?:[^"\\]|\\.)*+")'
    some = text_or_null("a media type", rf"{name}/{name}(?:\s*+;\s*+(?:{parameter})?+)*+\s*+")

    def check(value: object) -> str | None:
        checked = some.check(value)
        return checked and checked.partition(";")[0].strip().lower()

    return Kind(some.expected, check, some.lex)


def log_level() -> Kind[Literal["debug", "info", "warning", "error"]]:
    """A level's name or number as Python's logging has them, cut down to four.

    https://docs.python.org/3/library/logging.html#logging-levels
    """
    numbers = {"notset": 0, "debug": 10, "info": 20, "warning": 30, "warn": 30, "error": 40}
    numbers |= {"critical": 50, "fatal": 50}

    def check(value: object) -> Literal["debug", "info", "warning", "error"]:
        level = numbers.get(value.lower()) if isinstance(value, str) else value
        if type(level) is not int or not 0 <= level <= numbers["critical"]:
            raise UnfitError(show_yaml(value))
        if level <= numbers["debug"]:
            return "debug"
        if level <= numbers["info"]:
            return "info"
        return "warning" if level <= numbers["warning"] else "error"

    return Kind("debug, info, warning, error or Python's number of a level", check, _lex_word)


def names() -> Kind[tuple[str, ...]]:
    """A list of different printable names; as text, separated by commas."""
    return Kind("a list of different names", _names, _lex_list)


def providers() -> Kind[tuple[str, ...] | Auto]:
    """The word ``auto``, or a list of execution providers, of which the full names come out."""

    def check(value: object) -> tuple[str, ...] | Auto:
        if value == "auto":
            return "auto"
        found = _names([_provider(name) for name in value] if isinstance(value, list) else value)
        if not found:
            raise UnfitError("an empty list")
        return found

    return Kind("auto or a list of cpu, cuda and names like CPUExecutionProvider", check, _lex_list)


def options() -> Kind[Mapping[str, str]]:
    """A map of names to text, integers or booleans; text comes out, as onnxruntime takes it.

    https://github.com/microsoft/onnxruntime/blob/main/include/onnxruntime/core/session/onnxruntime_session_options_config_keys.h
    """
    return Kind("a map of names to text, integers or booleans", _options, _lex_yaml)


def provider_options() -> Kind[Mapping[str, Mapping[str, str]]]:
    """A map of execution providers to maps of options."""

    def check(value: object) -> Mapping[str, Mapping[str, str]]:
        if not isinstance(value, dict):
            raise UnfitError(show_yaml(value))
        # As a list first: "cuda" and its full name are the same key.
        full = _names([_provider(name) for name in value])
        return {name: _options(options) for name, options in zip(full, value.values(), strict=True)}

    return Kind("a map of execution providers to maps of options", check, _lex_yaml)


def image() -> Kind[Mapping[str, Any]]:
    """A map of what images become: ``codecs.interface.ImageOptions`` says what each key does."""
    checks: Mapping[str, Callable[[object], Any]] = {
        "layout": choice("chw", "hwc").check,
        "size": _pixels,
        "scale": _number,
        "mean": _numbers,
        "std": _divisors,
        "channel_order": choice("rgb", "bgr").check,
    }

    def check(value: object) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise UnfitError(show_yaml(value))
        for key in value:
            if key not in checks:
                raise UnfitError(f"the key {quote(key)}")
        return {key: checks[key](item) for key, item in value.items()}

    expected = (
        "a map of layout (chw, hwc), size ([height, width]), scale, mean, std, channel_order (rgb, bgr)"
    )
    return Kind(expected, check, _lex_yaml)


def _pixels(value: object) -> tuple[int, ...]:
    side = integer(1, MAX_COUNT)
    if not isinstance(value, list) or len(value) != len(("height", "width")):
        raise UnfitError(show_yaml(value))
    return tuple(side.check(item) for item in value)


def _number(value: object) -> float:
    if type(value) not in {int, float} or not math.isfinite(value):  # type: ignore[arg-type]  # is one of them
        raise UnfitError(show_yaml(value))
    return float(value)  # type: ignore[arg-type]  # is one of them


def _numbers(value: object) -> tuple[float, ...]:
    return tuple(_number(item) for item in (value if isinstance(value, list) else [value]))


def _divisors(value: object) -> tuple[float, ...]:
    numbers = _numbers(value)
    if 0 in numbers:
        raise UnfitError("a std of 0")
    return numbers


def strategy() -> Kind[Literal["MULTI_RECORD", "SINGLE_RECORD"]]:
    """``MULTI_RECORD`` as the platform writes it, ``MultiRecord`` as its API does, in any case."""
    word = choice("multirecord", "singlerecord")

    def check(value: object) -> Literal["MULTI_RECORD", "SINGLE_RECORD"]:
        return "MULTI_RECORD" if word.check(value) == "multirecord" else "SINGLE_RECORD"

    return Kind("MULTI_RECORD or SINGLE_RECORD", check, lambda text: text.strip().replace("_", ""))


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise UnfitError(show_yaml(value))
    seen: dict[str, None] = {}
    for item in value:
        if not isinstance(item, str) or not item or not item.isprintable():
            raise UnfitError(f"{show_yaml(item)} in it")
        if item in seen:
            raise UnfitError(f"{show_yaml(item)} twice")
        seen[item] = None
    return tuple(seen)


def _provider(name: object) -> str:
    """The full name of an execution provider; ``cpu`` and ``cuda`` stand for theirs."""
    short = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
    if not isinstance(name, str):
        raise UnfitError(show_yaml(name))
    full = short.get(name.lower(), name)
    if not re.fullmatch("[A-Za-z0-9]+ExecutionProvider", full):
        raise UnfitError(show_yaml(name))
    return full


def _options(value: object) -> dict[str, str]:
    """Text to text, booleans as ``1`` and ``0``."""
    if not isinstance(value, dict):
        raise UnfitError(show_yaml(value))
    found: dict[str, str] = {}
    for key, item in value.items():
        if not isinstance(key, str) or not key.isprintable() or not key:
            raise UnfitError(f"the key {show_yaml(key)}")
        in_range = not isinstance(item, int) or -MAX_INT64 <= item <= MAX_INT64
        if not isinstance(item, str | int) or not in_range or not str(item).isprintable():
            raise UnfitError(f"{show_yaml(item)} for {quote(key)}")
        found[key] = str(int(item)) if isinstance(item, bool) else str(item)
    return found


def _lex_word(text: str) -> object:
    """Digits as an integer, anything else as a lower-case word."""
    word = text.strip().lower()
    return int(word) if re.fullmatch(r"-?[0-9]{1,19}", word) else word


def _lex_list(text: str) -> object:
    """``a, b``; a lone ``auto`` is the word."""
    return "auto" if text.strip().lower() == "auto" else [item.strip() for item in text.split(",")]


def _lex_yaml(text: str) -> object:
    """``{gpu_mem_limit: 1000000}``, and so JSON too."""
    try:
        return parse_yaml(text)
    except InvalidYaml as error:
        raise UnfitError(str(error)) from None
