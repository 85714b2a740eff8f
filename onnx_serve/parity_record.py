"""``parity.json``: what the converter that made a model folder found when it compared the model with its original.

The file lies beside the model and comes with it, so nothing in it is trusted: it may take 1 MiB, and whatever is
not of the expected kind is a ``ModelError``.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from onnx_serve.errors import ModelError, quote
from onnx_serve.model_files.regular_file import reason_of, require_regular

__all__ = ["PARITY_FILE", "OutputParity", "ParityRecord", "Tolerances", "read_bounded", "read_parity_record"]

PARITY_FILE = "parity.json"

_MAX_BYTES = 1 << 20
_MAX_ENTRIES = 1000
_MAX_TEXT = 200


@dataclass(frozen=True, slots=True)
class Tolerances:
    """What may differ between the model and its original.

    Attributes:
        rtol: Share of a number's own magnitude.
        atol: Share of the output's largest magnitude.
        rows: Share of rows that may be outside of both.
    """

    rtol: float
    atol: float
    rows: float


@dataclass(frozen=True, slots=True)
class OutputParity:
    """How one output compared, over all rows.

    Attributes:
        name: The output.
        kind: ``number`` or ``label``.
        rows: Compared rows.
        label_disagreements: Rows with another label.
        max_abs: Largest absolute error of a number.
        max_rel: Largest error relative to the expected number.
        scale: Largest magnitude that the original answered; 0 if the record does not say.
    """

    name: str
    kind: str
    rows: int
    label_disagreements: int
    max_abs: float
    max_rel: float
    scale: float


@dataclass(frozen=True, slots=True)
class ParityRecord:
    """A converter's record of one conversion.

    Attributes:
        passed: The verdict.
        framework: Whose the original is: ``sklearn``, ``torch`` and the like.
        family: What the original is, such as ``RandomForestClassifier``.
        tolerances: What was allowed to differ.
        outputs: One entry an output that was compared.
        unchecked: Outputs that the original has no answer for.
        versions: Of the packages that played a part, by name.
        hashes: SHA-256 by what they are of: ``model``, ``artifact``, ``probes``; only those that are known.
        seed: Of the rows that were made up; None if the record does not say.
        converted_at: When, as ISO 8601; empty if the record does not say.
    """

    passed: bool
    framework: str
    family: str
    tolerances: Tolerances
    outputs: tuple[OutputParity, ...]
    unchecked: tuple[str, ...]
    versions: Mapping[str, str]
    hashes: Mapping[str, str]
    seed: int | None
    converted_at: str


def read_parity_record(folder: Path, *, allow_links: bool = False) -> ParityRecord | None:
    """The record of a model's folder, or None if it has none.

    Raises:
        ModelError: The file cannot be read, or is not what a converter writes.
    """
    data = read_bounded(folder / PARITY_FILE, _MAX_BYTES, allow_links=allow_links)
    if data is None:
        return None
    try:
        # Deep nesting and numbers without end are errors to it.
        content = orjson.loads(data)
    except orjson.JSONDecodeError as ex:
        raise ModelError(f"{PARITY_FILE}: expected JSON: {quote(ex)}") from None
    return _record(_Table(content, ""))


def read_bounded(path: Path, limit: int, *, allow_links: bool) -> bytes | None:
    """A regular file's bytes, or None if there is none.

    Args:
        path: The file; messages name it by its last part.
        limit: Bytes that it may hold.
        allow_links: Whether it may be a link.

    Raises:
        ModelError: It cannot be read, is larger, is a link, or no regular file.
    """
    # Opening a FIFO would wait for a writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if allow_links else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return None
    except OSError as ex:
        if path.is_symlink():
            raise ModelError(f"{path.name} is a link: copy the file, or set allow_links") from None
        raise ModelError(f"{path.name} cannot be read: {reason_of(ex)}") from None
    try:
        status = os.fstat(descriptor)
        require_regular(status.st_mode, path.name)
        if status.st_size > limit:
            raise ModelError(f"{path.name}: expected at most {limit} bytes, got {status.st_size}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)
    except OSError as ex:
        raise ModelError(f"{path.name} cannot be read: {reason_of(ex)}") from None
    finally:
        os.close(descriptor)


def _record(table: "_Table") -> ParityRecord:
    parity = table.table("parity")
    allowed = parity.table("tolerances")
    return ParityRecord(
        passed=parity.flag("passed"),
        framework=table.text("framework"),
        family=table.text("family"),
        tolerances=Tolerances(*(allowed.number(name) for name in ("rtol", "atol", "rows"))),
        outputs=tuple(map(_output, parity.tables("outputs"))),
        unchecked=parity.texts("unchecked_outputs"),
        versions={name: text for name, text in table.table("versions", {}).all_texts().items() if text},
        hashes={
            name: text
            for name in ("model", "artifact", "probes")
            if (text := table.text(f"{name}_sha256", ""))
        },
        seed=table.whole("seed", None),
        converted_at=table.text("converted_at", ""),
    )


def _output(table: "_Table") -> OutputParity:
    rows, differ = table.whole("rows"), table.whole("label_disagreements")
    assert rows is not None
    assert differ is not None
    return OutputParity(
        table.text("name"), table.text("kind"), rows, differ,
        table.number("max_abs"), table.number("max_rel"), table.number("scale", 0.0),
    )  # fmt: skip


_REQUIRED: Any = object()


class _Table:
    """An object of the file, whose fields are of the kinds asked for or an error."""

    def __init__(self, content: Any, place: str) -> None:
        if not isinstance(content, dict) or len(content) > _MAX_ENTRIES:
            raise _malformed(place or "the file", f"an object of at most {_MAX_ENTRIES} fields", content)
        self._content = content
        self._place = place

    def _get(self, key: str, default: Any) -> Any:
        if key not in self._content and default is _REQUIRED:
            raise ModelError(f'{PARITY_FILE}: "{self._name(key)}" is missing')
        return self._content.get(key, default)

    def _name(self, key: str) -> str:
        return f"{self._place}.{key}" if self._place else key

    def table(self, key: str, default: Any = _REQUIRED) -> "_Table":
        return _Table(self._get(key, default), self._name(key))

    def tables(self, key: str) -> list["_Table"]:
        return [_Table(item, f"{self._name(key)}[{index}]") for index, item in enumerate(self._list(key))]

    def texts(self, key: str) -> tuple[str, ...]:
        return tuple(_text(item, self._name(key)) for item in self._list(key))

    def _list(self, key: str) -> list[Any]:
        value = self._get(key, _REQUIRED)
        if not isinstance(value, list) or len(value) > _MAX_ENTRIES:
            raise _malformed(self._name(key), f"a list of at most {_MAX_ENTRIES} entries", value)
        return value

    def all_texts(self) -> dict[str, str]:
        return {
            _text(key, self._place): _text(value, self._name(key)) for key, value in self._content.items()
        }

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        return _text(self._get(key, default), self._name(key))

    def flag(self, key: str) -> bool:
        value = self._get(key, _REQUIRED)
        if not isinstance(value, bool):
            raise _malformed(self._name(key), "true or false", value)
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise _malformed(self._name(key), "a number from 0 on", value)
        return float(value)

    def whole(self, key: str, default: Any = _REQUIRED) -> int | None:
        value = self._get(key, default)
        if value is None and default is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise _malformed(self._name(key), "a whole number from 0 on", value)
        return value


def _text(value: Any, place: str) -> str:
    # It is shown in terminals and logs.
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise _malformed(place, f"text of at most {_MAX_TEXT} printable characters", value)
    return value


def _malformed(place: str, expected: str, value: Any) -> ModelError:
    shown = f"a {type(value).__name__}" if isinstance(value, dict | list) else quote(value)
    return ModelError(f"{PARITY_FILE}: {quote(place)}: expected {expected}, got {shown}")
