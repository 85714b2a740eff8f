"""Whether dimension 0 of a model counts records: told by its declared shapes, then tried.

docs/decisions/0005-rows.md has the reasons.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import numpy as np

from onnx_serve import feeds
from onnx_serve.blocks import block_rows, first_rows, pad
from onnx_serve.errors import DeadlineExceeded, InferenceError, InputRefused, OutOfMemory, ServeError
from onnx_serve.tensors import (
    DataType,
    Dimension,
    Feed,
    MapTable,
    RowAxis,
    Signature,
    TensorSpec,
    Value,
    Values,
    row_count,
)

__all__ = ["RowWish", "Sample", "infer_row_axis", "warm_up"]

_log = logging.getLogger("onnx_serve")

Run = Callable[[Feed], Values]
# A real request as a feed of so many rows; None where it would be too large.
Sample = Callable[[Signature, int], Feed | None]
_ROWS = 3
RowWish = Literal["auto", "free", "alone", "as_sent"]

# How much two neighbours differ at most, in types where that is more than the noise of a sum.
_NOISE = {
    DataType.FLOAT16: 2**-10,
    DataType.BFLOAT16: 2**-7,
    DataType.FLOAT8E4M3FN: 2**-3,
    DataType.FLOAT8E4M3FNUZ: 2**-3,
    DataType.FLOAT8E5M2: 2**-2,
    DataType.FLOAT8E5M2FNUZ: 2**-2,
}


def infer_row_axis(declared: Signature) -> Signature:
    """The signature with the row axis that the declared shapes suggest.

    Rows are dimension 0 if it is free in every input and not contradicted by an output (exporters invent
    a new symbol for it there), or the same fixed number everywhere.
    """
    outputs_fit = all(spec.is_tensor or spec.is_map_sequence for spec in declared.outputs)
    if not outputs_fit or not all(spec.is_tensor for spec in declared.inputs):
        return declared
    first: list[Dimension] = [spec.shape[0] if spec.shape else 0 for spec in declared.inputs]
    outputs: list[Dimension] = [
        spec.shape[0] if spec.shape else 0 for spec in declared.outputs if spec.is_tensor
    ]
    if not first or 0 in first or 0 in outputs:
        return declared
    symbols = {size for size in first if isinstance(size, str)}
    numbers = {size for size in first if isinstance(size, int)}
    fixed = {size for size in outputs if isinstance(size, int)}
    if not numbers and len(symbols) <= 1 and not fixed:
        return replace(declared, row_axis=RowAxis.FREE)
    if len(numbers) == 1 and numbers == set(first) and numbers == set(outputs):
        [rows] = numbers
        return replace(declared, row_axis=RowAxis.FIXED, fixed_rows=rows)
    return declared


def warm_up(
    run: Run, signature: Signature, name: str, wish: RowWish = "auto", sample: Sample | None = None
) -> Signature:
    """Runs the model on a real feed, else a made-up one; what comes out may correct what the shapes suggested.

    Args:
        run: The model. Raises ``DeadlineExceeded`` where it may not end.
        signature: What ``infer_row_axis`` made of the declared shapes.
        name: The model's, for the log.
        wish: The operator's: ``free`` trusts that a row's answer is its own, ``alone`` runs each row by itself,
            ``as_sent`` makes one request one run.
        sample: A request that came with the model: some models refuse whatever is made up.
    """
    if wish == "as_sent":
        signature = replace(signature, row_axis=RowAxis.NONE, fixed_rows=0)
    if wish == "alone" and signature.row_axis is RowAxis.FREE:
        signature = replace(signature, row_axis=RowAxis.FIXED, fixed_rows=1)
    cause: ServeError | None = None
    for feed in _candidates(signature, name, sample):
        try:
            return _confirm_rows(run, signature, feed, run(feed), name, check=wish == "auto")
        except (InferenceError, InputRefused, OutOfMemory) as ex:
            cause = cause or ex
        except DeadlineExceeded as ex:
            # Another one would most likely take as long.
            _log.warning("%s: the model is served untried: %s", name, ex)
            return signature
    _log.warning("%s: no made-up input runs, so the model is served untried: %s", name, cause)
    return signature


def _candidates(signature: Signature, name: str, sample: Sample | None) -> Iterator[Feed]:
    """Feeds to try, the best first; of one row too, which may fit where memory is short for more."""
    for rows in (_ROWS, 1):
        if sample is None:
            break
        try:
            feed = sample(signature, rows)
        except (ServeError, OSError) as ex:
            _log.warning("%s: the sample request is not used, inputs are made up: %s", name, ex)
            break
        if feed is not None:
            yield feed
    yield from itertools.chain(feeds.guesses(signature, _ROWS), feeds.guesses(signature, 1))


def _confirm_rows(
    run: Run, signature: Signature, feed: Feed, outputs: Values, name: str, *, check: bool
) -> Signature:
    """Rows are rows only if every output has as many, and if each one's answer is its own."""
    if not signature.has_rows:
        return signature
    rows = len(next(iter(feed.values())))
    for spec in signature.outputs:
        if row_count(outputs[spec.name]) != rows:
            _log.warning(
                '%s: output "%s" has no row for each input row: one request is one run', name, spec.name
            )
            return replace(signature, row_axis=RowAxis.NONE, fixed_rows=0)
    if check and rows > 1 and signature.row_axis is RowAxis.FREE:
        difference = _largest_difference(run, feed, outputs, signature)
        if difference is not None:
            _log.warning(
                "%s: a row's answer depends on the rows beside it (%s): rows are run one by one. "
                "Dynamically quantised models do this.", name, difference,
            )  # fmt: skip
            return replace(signature, row_axis=RowAxis.FIXED, fixed_rows=1)
    return signature


def _largest_difference(run: Run, feed: Feed, together: Values, signature: Signature) -> str | None:
    """How much an answer changes when its rows are run apart, or beside a repeated one; None within noise."""
    rows = block_rows(feed)
    cuts = [slice(1), slice(1, None)]
    apart = [(cut, run({key: array[cut] for key, array in feed.items()})) for cut in cuts]
    padded = (slice(rows), first_rows(run(pad(feed, rows + 1)), rows))
    found = [
        difference
        for cut, outputs in [*apart, padded]
        for spec in signature.outputs
        if (difference := _difference(outputs[spec.name], together[spec.name], cut, spec)) is not None
    ]
    return max(found)[1] if found else None


def _difference(value: Value, together: Value, cut: slice, spec: TensorSpec) -> tuple[float, str] | None:
    """The largest difference, relative to the output's scale, and what to say of it; None within noise."""
    if isinstance(value, MapTable) and isinstance(together, MapTable):
        value, together = value.values, together.values
    if not isinstance(value, np.ndarray) or not isinstance(together, np.ndarray):
        return None
    expected = together[cut]
    if value.shape != expected.shape:
        shapes = f"{list(value.shape)} apart and {list(expected.shape)} together"
        return math.inf, f'output "{spec.name}" has shape {shapes}'
    if value.dtype.kind != "f":
        return None if np.array_equal(value, expected) else (math.inf, f'output "{spec.name}" differs')
    scale = max(float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected))), 1e-30)
    noise = _NOISE.get(spec.dtype, 1e-4)
    if np.allclose(value, expected, rtol=noise, atol=1e-5 * scale, equal_nan=True):
        return None
    largest = float(np.nanmax(np.abs(value - expected)))
    return largest / scale, f'output "{spec.name}" differs by {largest:.3g}'
