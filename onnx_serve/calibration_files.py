"""Calibrations as JSON, and where they are kept: beside a model, or in a folder of this machine.

What is read may have been written by anyone: a record with a missing or unknown entry, or a value out of bounds, is
refused whole.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import secrets
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NoReturn, get_args

from onnx_serve.calibration_record import (
    Calibration,
    CalibrationKey,
    FeedKind,
    Origin,
    Reached,
    Rung,
)
from onnx_serve.errors import CalibrationError, quote
from onnx_serve.gpu_driver import read_driver_version
from onnx_serve.model_files.onnx_file import OnnxFile

__all__ = ["SHIPPED_NAME", "find_calibration", "from_json", "make_key", "store_calibration", "to_json"]

_log = logging.getLogger("onnx_serve")

SHIPPED_NAME = "calibration.json"
_PACKAGES = ("onnxruntime", "onnxruntime-gpu")
_MAX_JSON_BYTES = 1 << 16
_MAX_BYTES = 1 << 50
_MAX_SECONDS = 1e6
_MAX_ROWS = 1 << 30
_MAX_ITEMS = 64
_MAX_TEXT = 500


def make_key(
    model: Path,
    summary: OnnxFile,
    *,
    providers: str | Sequence[str],
    cpus: int,
    options: Mapping[str, object],
) -> CalibrationKey:
    """What a calibration of a model on this machine holds for. Reads the whole model file.

    Args:
        model: Its file.
        summary: What that says of itself.
        providers: Execution providers, or ``"auto"``.
        cpus: Processors that may be kept busy.
        options: Whatever else decides what a run costs; as JSON has it.

    Raises:
        CalibrationError: The file, or one of its external data, cannot be read.
    """
    try:
        with model.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        places = sorted({data.location for data in summary.external_data})
        sizes = [(place, (model.parent / place).stat().st_size) for place in places]
    except OSError as ex:
        raise CalibrationError(f"{quote(model.name)} cannot be read: {ex.strerror}") from None
    if sizes:
        digest.update(json.dumps(sizes).encode())
    package, version = _installed()
    if isinstance(providers, str):
        # "auto" is what the package and the machine have.
        device = package == "onnxruntime-gpu" and read_driver_version() is not None
        providers = ("CUDAExecutionProvider",) * device + ("CPUExecutionProvider",)
    text = json.dumps(options, sort_keys=True, default=str)
    return CalibrationKey(
        digest.hexdigest(),
        f"{package} {version}".strip(),
        tuple(providers),
        cpus,
        platform.machine(),
        hashlib.sha256(text.encode()).hexdigest()[:32],
    )


def find_calibration(
    shipped: Sequence[Path], cache: Path | None, key: CalibrationKey, memory_bytes: int
) -> Calibration | None:
    """A calibration of exactly this key that serves under this budget, or None.

    Files that are of another key or broken are passed over, each with a line in the log.

    Args:
        shipped: Folders that may hold a ``calibration.json``: the model's, and the root of its model folder.
        cache: A folder of records of this machine, or None.
        key: What the calibration must hold for.
        memory_bytes: The budget of the session and its runs.
    """
    places: list[tuple[Path, Origin]] = [
        (folder / SHIPPED_NAME, "shipped") for folder in dict.fromkeys(shipped)
    ]
    if cache is not None:
        places.append((_cache_file(cache, key), "cached"))
    for path, origin in places:
        try:
            found = from_json(_read_text(path))
            _check_key(found.key, key)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, CalibrationError) as ex:
            _log.warning("%s calibration %s is not used: %s", origin, quote(path.name), ex)
            continue
        if found.origin == "guessed" or not found.suits(memory_bytes):
            _log.info(
                "%s calibration %s is not used: it was made under another memory limit",
                origin,
                quote(path.name),
            )
            continue
        return replace(found, origin=origin)
    return None


def store_calibration(cache: Path, calibration: Calibration) -> None:
    """Keeps a measured record for later starts on such a machine; whoever reads meanwhile sees all or nothing of it.

    A guess is not kept. What cannot be written is a line in the log.

    Args:
        cache: The folder; made if it is not there.
        calibration: The record.
    """
    if calibration.origin == "guessed":
        return
    path = _cache_file(cache, calibration.key)
    unfinished = cache / f".{path.stem}-{secrets.token_hex(8)}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(to_json(calibration) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as ex:
        _log.warning("the calibration is not kept in %s: %s", quote(cache), ex.strerror)
        with contextlib.suppress(OSError):
            unfinished.unlink()


def to_json(calibration: Calibration) -> str:
    """One line of JSON; ``from_json`` makes an equal record of it."""
    return json.dumps(asdict(calibration), allow_nan=False)


def from_json(text: str) -> Calibration:
    """Reads a record that may be damaged or forged.

    Raises:
        CalibrationError: It is no JSON object with exactly a record's entries, each within its bounds.
    """
    if len(text) > _MAX_JSON_BYTES:
        raise CalibrationError(f"expected at most {_MAX_JSON_BYTES} characters, got more")
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise CalibrationError(f"expected JSON, got {quote(text)}") from None
    entries = _entries(document, Calibration, "the record")
    record = Calibration(**{name: _READERS[name](value, name) for name, value in entries.items()})
    rows = [rung.rows for rung in record.ladder]
    if rows != sorted(set(rows)):
        raise CalibrationError("ladder: expected rising numbers of rows")
    return record


def _installed() -> tuple[str, str]:
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return package, importlib.metadata.version(package)
    return "onnxruntime", ""


def _read_text(path: Path) -> str:
    """The start of a plain file: what came with a model may be a link out of its folder, or a pipe without end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise CalibrationError("expected a regular file")
        return file.read(_MAX_JSON_BYTES + 1).decode()


def _cache_file(cache: Path, key: CalibrationKey) -> Path:
    return cache / f"calibration-{key.digest}.json"


def _check_key(found: CalibrationKey, wanted: CalibrationKey) -> None:
    for field in fields(CalibrationKey):
        got, expected = getattr(found, field.name), getattr(wanted, field.name)
        if got != expected:
            raise CalibrationError(f"{field.name}: expected {quote(expected)}, got {quote(got)}")


_Reader = Callable[[Any, str], Any]


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(word)


def _entries(document: Any, record: Any, place: str) -> Mapping[str, Any]:
    """A JSON object with exactly a dataclass's fields."""
    names = [field.name for field in fields(record)]
    if not isinstance(document, dict):
        raise CalibrationError(f"expected {place} to be an object, got {quote(document)}")
    for name in names:
        if name not in document:
            raise CalibrationError(f'expected an entry "{name}", got none')
    for name in document:
        if name not in names:
            raise CalibrationError(f"expected no entry {quote(name)}")
    return dict(document)


def _wrong(name: str, expected: str, value: Any) -> CalibrationError:
    return CalibrationError(f"{name}: expected {expected}, got {quote(value)}")


def _whole(low: int, high: int) -> _Reader:
    def read(value: Any, name: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise _wrong(name, f"a whole number of {low} to {high}", value)
        return value

    return read


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def _seconds(value: Any, name: str) -> float:
    if type(value) not in {int, float} or not 0 <= value <= _MAX_SECONDS:
        raise _wrong(name, f"seconds of 0 to {_MAX_SECONDS:g}", value)
    return float(value)


def _share(value: Any, name: str) -> float:
    if type(value) not in {int, float} or not 0 <= value <= 1:
        raise _wrong(name, "a share of 0 to 1", value)
    return float(value)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise _wrong(name, f"a line of at most {_MAX_TEXT} characters", value)
    return value


def _one_of(words: tuple[str, ...]) -> _Reader:
    def read(value: Any, name: str) -> str:
        if not isinstance(value, str) or value not in words:
            raise _wrong(name, f"one of {', '.join(words)}", value)
        return value

    return read


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _MAX_ITEMS:
        raise _wrong(name, "a list of names", value)
    return tuple(_text(item, name) for item in value)


def _ladder(value: Any, name: str) -> tuple[Rung, ...]:
    if not isinstance(value, list) or len(value) > _MAX_ITEMS:
        raise _wrong(name, f"a list of at most {_MAX_ITEMS} runs", value)
    return tuple(_rung(item, name) for item in value)


def _rung(value: Any, name: str) -> Rung:
    if not isinstance(value, list) or len(value) != len(Rung._fields):
        raise _wrong(name, "[rows, wall_s, cpu_s]", value)
    return Rung(_rows(value[0], name), _seconds(value[1], name), _seconds(value[2], name))


def _key(value: Any, name: str) -> CalibrationKey:
    entries = _entries(value, CalibrationKey, name)
    return CalibrationKey(**{part: _KEY_READERS[part](entry, part) for part, entry in entries.items()})


_rows = _whole(1, _MAX_ROWS)
_bytes = _whole(0, _MAX_BYTES)
_KEY_READERS: Mapping[str, _Reader] = {
    **dict.fromkeys(("model_sha256", "onnxruntime", "machine", "options"), _text),
    "providers": _texts,
    "cpus": _whole(1, 1 << 16),
}
_READERS: Mapping[str, _Reader] = {
    **{field.name: _bytes for field in fields(Calibration) if field.name.endswith("_bytes")},
    **dict.fromkeys(("fits", "limited", "data_dependent", "arena_only"), _flag),
    "key": _key,
    "origin": _one_of(get_args(Origin)),
    "reason": _text,
    "reached": _one_of(get_args(Reached)),
    "slots": _whole(1, 1 << 16),
    "block_rows": _rows,
    "ladder": _ladder,
    "row_elements": _whole(0, _MAX_BYTES),
    "feed": _one_of(get_args(FeedKind)),
    "seconds": _seconds,
    **dict.fromkeys(("cpu_node_share", "cpu_time_share"), _share),
    "cpu_operators": _texts,
}
