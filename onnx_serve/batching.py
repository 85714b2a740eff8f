"""The engine: shares one model between requests and spreads the rows of one request over all cores.

``cut`` and ``join`` are pure: they take blocks apart by rows and put outputs together. ``Engine`` runs
blocks on a fixed number of slots. A block that comes alone runs in its caller's thread, because handing a
small request to another thread costs more than the request; the blocks of a longer body are run by the
engine's own threads while the caller decodes the next one, and come back in order.
"""

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import numpy as np

from onnx_serve.errors import InferenceError
from onnx_serve.tensors import Array, Feed, MapTable, RowAxis, Signature, Value, Values, row_count

__all__ = ["Engine", "cut", "default_block_rows", "join"]

# Without a measurement of the model: this much input a block keeps small models busy for longer than a
# hand-over between threads takes, and large ones to the few rows that fit a core's cache.
_BLOCK_BYTES = 256 << 10
_MAX_BLOCK_ROWS = 4096


def default_block_rows(signature: Signature) -> int:
    """Rows of a block for a model that has not been measured: a power of two, at most 4096."""
    record_bytes = sum(
        (signature.record_width(spec) or 1) * spec.dtype.numpy.itemsize for spec in signature.inputs
    )
    rows = min(max(_BLOCK_BYTES // max(record_bytes, 1), 1), _MAX_BLOCK_ROWS)
    return 1 << (rows.bit_length() - 1)


def cut(block: Feed, rows: int, whole: Collection[str] = ()) -> Iterator[Feed]:
    """The block in pieces of at most ``rows`` rows, as equal as they can be, in order, without copying.

    Args:
        block: Inputs by name, the first of them one with rows.
        rows: At least 1.
        whole: Names of inputs that every piece has as they are, because they have no rows.
    """
    total = len(next(iter(block.values())))
    if total <= rows:
        yield block
        return
    pieces = -(-total // rows)
    for piece in range(pieces):
        part = slice(piece * total // pieces, (piece + 1) * total // pieces)
        yield {name: array if name in whole else array[part] for name, array in block.items()}


def join(blocks: list[Values]) -> Values:
    """One set of outputs from those of consecutive blocks; the inverse of ``cut``."""
    if len(blocks) == 1:
        return blocks[0]
    return {name: _concatenate([block[name] for block in blocks]) for name in blocks[0]}


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


class Engine:
    """Runs blocks of many requests on a model, at most ``slots`` at once. Thread-safe.

    It lives as long as its model; ``close`` ends its threads after the blocks that have started.

    Args:
        run: From a feed to outputs; called by up to ``slots`` threads at once.
        signature: The model's.
        slots: Concurrent runs.
        block_rows: Rows of one run at most.
    """

    def __init__(
        self, run: Callable[[Feed], Values], signature: Signature, *, slots: int, block_rows: int
    ) -> None:
        self.signature = signature
        self.slots = slots
        self.block_rows = signature.fixed_rows if signature.row_axis is RowAxis.FIXED else block_rows
        self._whole = frozenset(spec.name for spec in signature.defaults)
        self._run = run
        self._free = threading.Semaphore(slots)
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="onnx-serve-slot")

    def map(self, blocks: Iterable[Feed]) -> Iterator[Values]:
        """The outputs of each block, or of each piece of a longer block, in order.

        At most ``slots + 1`` pieces are decoded ahead of the one that is being waited for, so memory does
        not grow with the number of blocks.

        Args:
            blocks: Feeds, consumed lazily; with rows, of one row or more.

        Raises:
            InferenceError: The model failed, or answered with another number of rows.
            OutOfMemory: A run needs more memory than there is.
        """
        pieces = self._pieces(blocks)
        first = next(pieces, None)
        if first is None:
            return
        second = next(pieces, None)
        if second is None:
            yield self._run_piece(first)
            return
        ahead: deque[Future[Values]] = deque()
        try:
            for piece in (first, second):
                ahead.append(self._threads.submit(self._run_piece, piece))
            for piece in pieces:
                if len(ahead) > self.slots:
                    yield ahead.popleft().result()
                ahead.append(self._threads.submit(self._run_piece, piece))
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def close(self) -> None:
        """Ends the engine's threads; blocks that have started finish, others are dropped."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _pieces(self, blocks: Iterable[Feed]) -> Iterator[Feed]:
        if not self.signature.has_rows:
            yield from blocks
            return
        for block in blocks:
            yield from cut(block, self.block_rows, self._whole)

    def _run_piece(self, feed: Feed) -> Values:
        if not self.signature.has_rows:
            with self._free:
                return self._run(feed)
        rows = len(next(iter(feed.values())))
        padding = self.signature.fixed_rows - rows
        if padding > 0:
            feed = {
                name: array if name in self._whole else _pad(array, padding) for name, array in feed.items()
            }
        with self._free:
            outputs = self._run(feed)
        for name, value in outputs.items():
            if row_count(value) != rows + max(padding, 0):
                raise InferenceError(f'output "{name}" has {row_count(value)} rows for {rows} rows of input')
        if padding > 0:
            return {name: cast("Array", value)[:rows] for name, value in outputs.items()}
        return outputs


def _pad(array: Array, rows: int) -> Array:
    """The array with its last row repeated, for models that take a fixed number of rows."""
    return np.concatenate([array, np.repeat(array[-1:], rows, axis=0)])
