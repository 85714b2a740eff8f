"""Whether dimension 0 of a model counts records: told by its declared shapes, then tried.

docs/decisions/0005-rows.md has the reasons.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from onnx_serve import feeds
from onnx_serve.errors import InferenceError, InputRefused, OutOfMemory, ServeError
from onnx_serve.tensors import (
    DataType,
    Dimension,
    Feed,
    MapTable,
    RowAxis,
    Signature,
    Values,
    row_count,
)

__all__ = ["infer_row_axis", "warm_up"]

_log = logging.getLogger("onnx_serve")

Run = Callable[[Feed], Values]

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


def warm_up(run: Run, signature: Signature, name: str) -> Signature:
    """Runs the model on a made-up feed; what comes out may correct what the shapes suggested."""
    cause: ServeError | None = None
    for feed in feeds.guesses(signature, 3):
        try:
            outputs = run(feed)
        except (InferenceError, InputRefused, OutOfMemory) as ex:
            cause = cause or ex
            continue
        return _confirm_rows(run, signature, feed, outputs, name)
    _log.warning("%s: no made-up input runs, so the model is served untried: %s", name, cause)
    return signature


def _confirm_rows(run: Run, signature: Signature, feed: Feed, outputs: Values, name: str) -> Signature:
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
    if signature.row_axis is RowAxis.FREE:
        alone = run({key: array[:1] for key, array in feed.items()})
        difference = _largest_difference(alone, outputs, signature)
        if difference is not None:
            _log.warning(
                "%s: a row's answer depends on the rows beside it (%s): rows are run one by one. "
                "Dynamically quantised models do this.", name, difference,
            )  # fmt: skip
            return replace(signature, row_axis=RowAxis.FIXED, fixed_rows=1)
    return signature


def _largest_difference(alone: Values, together: Values, signature: Signature) -> str | None:
    """What row 0 says alone against what it says in company, or None within a float's noise."""
    for spec in signature.outputs:
        name = spec.name
        value, other = alone[name], together[name]
        if isinstance(value, MapTable) and isinstance(other, MapTable):
            value, other = value.values, other.values
        if not isinstance(value, np.ndarray) or not isinstance(other, np.ndarray):
            continue
        row = other[:1]
        if value.shape != row.shape:
            return f'output "{name}" has shape {list(value.shape)} alone and {list(row.shape)} in company'
        if value.dtype.kind == "f":
            scale = float(np.max(np.abs(row), initial=0.0, where=np.isfinite(row)))
            noise = _NOISE.get(spec.dtype, 1e-4)
            if not np.allclose(value, row, rtol=noise, atol=1e-5 * max(scale, 1e-30), equal_nan=True):
                return f'output "{name}" differs by {float(np.nanmax(np.abs(value - row))):.3g}'
        elif not np.array_equal(value, row):
            return f'output "{name}" differs'
    return None
