"""Blocks of records, taken apart and put together: pure functions.

A *block* is a feed whose arrays have as many rows. ``cut`` and ``join`` take one request's block into runs and
back; ``merge`` and ``split`` put blocks of different requests into one run and take its outputs apart.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import cast

import numpy as np

from onnx_serve.tensors import Array, Feed, MapTable, Value, Values

__all__ = ["block_rows", "cut", "first_rows", "join", "merge", "pad", "split"]


def block_rows(block: Feed) -> int:
    """The rows of a block, whose first input is one with rows."""
    return len(next(iter(block.values())))


def cut(block: Feed, rows: int, whole: Collection[str] = (), *, multiple: int = 1) -> Iterator[Feed]:
    """The block in pieces of at most ``rows`` rows, as equal as they can be, in order, without copying.

    Args:
        block: Inputs by name, the first of them one with rows.
        rows: At least 1.
        whole: Names of inputs that every piece has as they are, because they have no rows.
        multiple: Of which the rows of every piece but the last are one; so is ``rows``.
    """
    total = block_rows(block)
    if total <= rows:
        yield block
        return
    units = -(-total // multiple)
    pieces = -(-units * multiple // rows)
    for piece in range(pieces):
        part = slice(piece * units // pieces * multiple, (piece + 1) * units // pieces * multiple)
        yield {name: array if name in whole else array[part] for name, array in block.items()}


def join(blocks: Sequence[Values]) -> Values:
    """One set of outputs from those of consecutive blocks; the inverse of ``cut``."""
    if len(blocks) == 1:
        return blocks[0]
    return {name: _concatenate([block[name] for block in blocks]) for name in blocks[0]}


def merge(blocks: Sequence[Feed]) -> Feed:
    """One block of the rows of several, in order; all have the same inputs and the same dimensions beside rows."""
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def split(outputs: Values, counts: Sequence[int]) -> list[Values]:
    """The outputs of merged blocks, one set for each, without copying; the inverse of ``merge``.

    Args:
        outputs: With a row for each row of the merged block.
        counts: The rows of each block.
    """
    ends = np.cumsum(counts).tolist()
    return [
        {name: _rows(value, slice(end - count, end)) for name, value in outputs.items()}
        for count, end in zip(counts, ends, strict=True)
    ]


def pad(block: Feed, rows: int, whole: Collection[str] = ()) -> Feed:
    """The block with its last row repeated up to ``rows`` rows, for models that take a fixed number."""
    missing = rows - block_rows(block)
    return {
        name: array if name in whole else np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
        for name, array in block.items()
    }


def first_rows(outputs: Values, rows: int) -> Values:
    """The outputs of the first rows: those that ``pad`` has not added."""
    return {name: _rows(value, slice(rows)) for name, value in outputs.items()}


def _rows(value: Value, rows: slice) -> Value:
    return cast("Array | MapTable | list[Value]", value)[rows]


def _concatenate(values: list[Value]) -> Value:
    first = values[0]
    if isinstance(first, np.ndarray):
        return np.concatenate(cast("list[Array]", values))
    if isinstance(first, MapTable) and all(
        isinstance(value, MapTable) and value.keys == first.keys for value in values
    ):
        return MapTable(first.keys, np.concatenate([cast("MapTable", value).values for value in values]))
    return [
        item
        for value in values
        for item in (value.dicts() if isinstance(value, MapTable) else cast("list[Value]", value))
    ]
