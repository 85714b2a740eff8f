"""The outputs of all blocks of a document as one, for answers that have one array an output."""

from itertools import chain

import numpy as np

from onnx_serve.errors import EncodeError
from onnx_serve.tensors import MapTable, RowAxis, Signature, TensorSpec, Value, Values

__all__ = ["merge"]


def merge(blocks: list[Values], signature: Signature) -> Values:
    """The outputs of all blocks as those of one.

    Args:
        blocks: Outputs by name, at least those of the signature.
        signature: What to give, in its order; with rows, blocks are joined along them.

    Raises:
        EncodeError: They form no array, because a dimension other than the rows differs.
    """
    if len(blocks) == 1:
        return {spec.name: blocks[0][spec.name] for spec in signature.outputs}
    if signature.row_axis is RowAxis.NONE:
        raise EncodeError(f'expected one run, got {len(blocks)}: send {{"instances": [...]}} instead')
    return {
        spec.name: _concatenate([block[spec.name] for block in blocks], spec) for spec in signature.outputs
    }


def _concatenate(values: list[Value], spec: TensorSpec) -> Value:
    if not values:
        return _nothing(spec)
    first = values[0]
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    if len(arrays) == len(values):
        if len({array.shape[1:] for array in arrays}) > 1:
            raise EncodeError(
                f'output "{spec.name}": the rows have different shapes and form no one array: '
                'send {"instances": [...]} instead'
            )
        return np.concatenate(arrays)
    tables = [value for value in values if isinstance(value, MapTable)]
    if (
        isinstance(first, MapTable)
        and len(tables) == len(values)
        and {table.keys for table in tables} == {first.keys}
    ):
        return MapTable(first.keys, np.concatenate([table.values for table in tables]))
    lists = [list(v.dicts()) if isinstance(v, MapTable) else v for v in values]
    if not all(isinstance(items, list) for items in lists):
        raise EncodeError(f'output "{spec.name}": expected a value for each row, got one for all')
    return list(chain.from_iterable(lists))  # type: ignore[arg-type]  # all of them are lists


def _nothing(spec: TensorSpec) -> Value:
    """An output of no rows."""
    if not spec.is_tensor:
        return []
    sizes = [size if isinstance(size, int) else 0 for size in spec.shape[1:]]
    return np.empty((0, *sizes), spec.dtype.numpy)
