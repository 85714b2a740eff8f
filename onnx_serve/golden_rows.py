"""The golden rows of a converted model: replayed, they show that this server answers as the converter's did.

A converter leaves a few rows in ``sample.npz`` (arrays by input name) and what the model answered to them in
``golden.npz`` (arrays by output name), beside ``parity.json``, which holds the tolerances. Another processor,
onnxruntime or execution provider than the converter's may round otherwise; it must not answer otherwise.

The files come with the model, and nothing in them is trusted: ``codecs.npz`` reads them as it reads requests,
without pickle and within bounds.
"""

import hashlib
import io
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_serve.codecs import npz
from onnx_serve.codecs.interface import Body, CodecOptions, MediaType
from onnx_serve.errors import DecodeError, MismatchError, ModelError, OutOfMemory, ServeError, quote
from onnx_serve.parity_record import (
    PARITY_FILE,
    OutputParity,
    ParityRecord,
    read_bounded,
    read_parity_record,
)
from onnx_serve.tensors import (
    Array,
    Feed,
    MapTable,
    RowAxis,
    Signature,
    Tensors,
    TensorSpec,
    Value,
    Values,
    conform,
)

__all__ = [
    "GOLDEN_FILE",
    "SAMPLE_FILE",
    "GoldenRows",
    "compare",
    "model_hash",
    "read_golden_rows",
    "replay",
]

SAMPLE_FILE, GOLDEN_FILE = "sample.npz", "golden.npz"

_MODEL_FILE = "model.onnx"  # what a converter calls it
_MAX_BYTES = 1 << 28
_NPZ = MediaType("application/x-npz")

_log = logging.getLogger("onnx_serve")


@dataclass(frozen=True, slots=True)
class GoldenRows:
    """A few rows with the answers to expect.

    Attributes:
        feed: Inputs by name, as the model takes them.
        outputs: Answers by output name, as many rows; those of the model's outputs that are answered here.
        record: The conversion's, for its tolerances.
    """

    feed: Feed
    outputs: Tensors
    record: ParityRecord


def replay(
    path: Path, signature: Signature, run: Callable[[Feed], Values], *, allow_links: bool = False
) -> None:
    """Runs a model's golden rows, if it has some, and compares; a line in the log says which.

    Args:
        path: The model's file.
        signature: The model's.
        run: The model: from a feed of any number of rows to its outputs.
        allow_links: Whether the files may be links.

    Raises:
        ModelError: An answer differs, the model does not run the rows, or the files are incomplete, damaged or
            of another model.
        OutOfMemory: There is not enough memory to run the rows.
    """
    golden = read_golden_rows(path, signature, allow_links=allow_links)
    if golden is None:
        _log.warning("%s: there are no golden rows beside the model, so none are replayed", path.name)
        return
    try:
        answers = run(golden.feed)
    except OutOfMemory:
        raise
    except ServeError as ex:
        raise ModelError(f"golden rows: the model does not run them: {ex}") from ex
    compare(golden, answers)
    _log.info("%s: the golden rows are answered as they were at the conversion", path.name)


def read_golden_rows(path: Path, signature: Signature, *, allow_links: bool = False) -> GoldenRows | None:
    """The golden rows beside a model's file, or None if there are none.

    A converter calls its model ``model.onnx``; another model beside one of that name has no golden rows.

    Raises:
        ModelError: One of the three files is missing, damaged, too large, or of another model.
    """
    folder = path.parent
    if path.name != _MODEL_FILE and (folder / _MODEL_FILE).exists():
        return None
    record = read_parity_record(folder, allow_links=allow_links)
    names = (SAMPLE_FILE, GOLDEN_FILE)
    contents = [read_bounded(folder / name, _MAX_BYTES, allow_links=allow_links) for name in names]
    if record is None and all(content is None for content in contents):
        return None
    files = dict(zip((PARITY_FILE, *names), (record, *contents), strict=True))
    missing = [name for name, content in files.items() if content is None]
    if missing or record is None:
        raise ModelError(f"golden rows: {' and '.join(missing)} is missing beside the model")
    expected = record.hashes.get("model", "")
    if expected != (actual := model_hash(path)):
        raise ModelError(
            f"golden rows: {PARITY_FILE} is of another model file: its SHA-256 is {expected[:16] or 'missing'}, "
            f"that of {path.name} is {actual[:16]}"
        )
    sample, golden = (content or b"" for content in contents)
    known = {output.name for output in record.outputs} | {*record.unchecked}
    outputs = _arrays(golden, GOLDEN_FILE, _any_of(known | {spec.name for spec in signature.outputs}))
    answered = {spec.name for spec in signature.outputs}
    try:
        feed = conform(_arrays(sample, SAMPLE_FILE, signature), signature)
    except MismatchError as ex:
        raise ModelError(f"{SAMPLE_FILE}: {ex}") from ex
    return GoldenRows(feed, {name: array for name, array in outputs.items() if name in answered}, record)


def compare(golden: GoldenRows, answers: Values) -> None:
    """Passes answers that are the golden ones, within the tolerances of the conversion.

    A label may differ where the two best scores of its row are closer than that.

    Raises:
        ModelError: One is not; it names output, row and both values.
    """
    tolerances = golden.record.tolerances
    scales = {output.name: output for output in golden.record.outputs}
    for name, expected in golden.outputs.items():
        actual = _array(answers.get(name), name)
        if actual.shape != expected.shape:
            raise ModelError(
                f"golden rows: output {quote(name)}: expected shape {list(expected.shape)}, got {list(actual.shape)}"
            )
        if expected.dtype.kind == "f":
            wrong = _outside(expected, actual, golden, scales.get(name))
        else:
            wrong = _other_labels(expected, actual, golden)
        if int(_row_any(wrong).sum()) > math.ceil(tolerances.rows * _rows(expected)):
            raise _difference(name, expected, actual, wrong)


def model_hash(path: Path) -> str:
    """The SHA-256 of a model's file, in hexadecimal, which is read once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _any_of(names: set[str]) -> Signature:
    """What an archive of some of these arrays conforms to."""
    specs = tuple(TensorSpec(name, "tensor(float)", ()) for name in sorted(names))
    return Signature((), (), RowAxis.NONE, defaults=specs)


def _arrays(content: bytes, name: str, signature: Signature) -> Tensors:
    body = Body(io.BytesIO(content), len(content))
    try:
        blocks = [
            block
            for document in npz.decode(body, _NPZ, signature, CodecOptions())
            for block in document.blocks
        ]
    except (DecodeError, MismatchError) as ex:
        raise ModelError(f"{name}: {ex}") from ex
    if len(blocks) != 1:
        raise ModelError(f"{name}: expected arrays with rows, got none")
    return dict(blocks[0])


def _array(value: Value, name: str) -> Array:
    if isinstance(value, MapTable):
        return value.values
    if not isinstance(value, np.ndarray):
        raise ModelError(f"golden rows: output {quote(name)}: expected an array, got {type(value).__name__}")
    return value


def _outside(expected: Array, actual: Array, golden: GoldenRows, output: OutputParity | None) -> Array:
    """Where numbers differ by more than is allowed; equal infinities and two NaNs agree."""
    if actual.dtype.kind not in "fiub":
        return np.ones(expected.shape, np.bool_)
    wanted, got = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(wanted) & np.isfinite(got)
    same = (wanted == got) | (np.isnan(wanted) & np.isnan(got))
    largest = float(np.max(np.abs(wanted), initial=0.0, where=np.isfinite(wanted)))
    allowed = _allowed(np.where(finite, wanted, 0.0), max(largest, output.scale if output else 0.0), golden)
    error = np.abs(np.where(finite, wanted, 0.0) - np.where(finite, got, 0.0))
    return np.asarray(np.where(finite, error > allowed, ~same))


def _other_labels(expected: Array, actual: Array, golden: GoldenRows) -> Array:
    """Where labels, whole numbers or text differ although no two scores of their row tie."""
    if expected.dtype.kind == "U":
        # Text comes as objects from onnxruntime, and at a fixed width from a file.
        actual = actual.astype(np.str_)
    elif actual.dtype.kind not in "biuf":
        return np.ones(expected.shape, np.bool_)
    tied = _tied(golden, _rows(expected))
    per_row = tied.reshape(-1, *(1,) * (expected.ndim - 1)) if expected.ndim else tied.reshape(())
    return np.asarray((expected != actual) & ~per_row)


def _allowed(values: Array, scale: float, golden: GoldenRows) -> Array:
    tolerances = golden.record.tolerances
    return np.asarray(tolerances.atol * scale + tolerances.rtol * np.abs(values))


def _tied(golden: GoldenRows, rows: int) -> Array:
    """[N], where two of a row's golden scores are the best, within what is allowed."""
    tied = np.zeros(rows, np.bool_)
    for scores in golden.outputs.values():
        if scores.dtype.kind == "f" and scores.ndim == 2 and len(scores) == rows and scores.shape[1] > 1:  # noqa: PLR2004  rows and scores
            best = np.sort(scores.astype(np.float64), axis=1)[:, -2:]
            scale = float(np.max(np.abs(best), initial=0.0, where=np.isfinite(best)))
            tied |= best[:, 1] - best[:, 0] <= _allowed(best[:, 1], scale, golden)
    return tied


def _row_any(wrong: Array) -> Array:
    return np.asarray(wrong.reshape(_rows(wrong), -1).any(axis=1))


def _rows(array: Array) -> int:
    return len(array) if array.ndim else 1


def _difference(name: str, expected: Array, actual: Array, wrong: Array) -> ModelError:
    place = tuple(int(index) for index in np.argwhere(wrong)[0])
    row, *inside = place or (0,)
    element = f", element {inside}" if inside else ""
    return ModelError(
        f"golden rows: output {quote(name)}, row {row + 1} of {_rows(expected)}{element}: expected "
        f"{_show(expected[place])}, got {_show(actual[place])}: this server does not answer as the converted model did"
    )


def _show(value: Any) -> str:
    return quote(value) if isinstance(value, str) else str(value)
