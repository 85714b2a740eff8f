"""Matrices of ``scipy.sparse.save_npz``, which SageMaker's SparseMatrixSerializer sends, as rows of a model's input.

CSR, CSC, BSR, COO and DIA, as the arrays of their archives:
https://docs.scipy.org/doc/scipy/reference/generated/scipy.sparse.save_npz.html
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from onnx_serve.codecs.interface import CodecOptions
from onnx_serve.errors import DecodeError, MismatchError, quote
from onnx_serve.tensors import Signature, Tensors, format_shape

__all__ = ["MEMBERS", "dense_blocks"]

Array: TypeAlias = npt.NDArray[Any]

# The arrays that every such archive has, whatever the matrix's format.
MEMBERS = {"format", "shape", "data"}
_MAX_DENSE = 1 << 30
# Dimensions of the array of values.
_FORMATS = {"csr": 1, "csc": 1, "bsr": 3, "coo": 1, "dia": 2}
_MAJOR_AXIS = {"csr": 0, "csc": 1, "bsr": 0}
# In the other formats an entry may be one byte, and gets its two indices here.
_INDEXED = {"csr", "csc", "coo"}
_ENTRY_BYTES = 24
_INDEX_TYPES = (np.int32, np.int64)


def dense_blocks(
    matrix: dict[str, Array], signature: Signature, options: CodecOptions, limit: int
) -> Iterator[Tensors]:
    """The rows of a sparse matrix, made dense; without rows, all of it as one block.

    Memory: ``options.chunk_bytes`` or one longer row, and 24 bytes an entry.

    Args:
        matrix: The archive's arrays by name, ``MEMBERS`` among them.
        signature: The model's.
        options: Gives the size of a block.
        limit: Bytes that a block may have where it is more than ``options.chunk_bytes``, that entries without
            indices of their own may need, and that rows may have, made dense, beyond one for each entry: in
            some formats a row without entries takes no byte.

    Raises:
        DecodeError: The arrays are no matrix, or one too large, or the model has not one input.
        MismatchError: The matrix has not the input's shape.
    """
    if len(signature.inputs) != 1:
        raise DecodeError(
            f"a sparse matrix is for a model's only input, and this model takes {signature.describe_inputs()}"
        )
    [spec] = signature.inputs
    (height, width), row, column, values = _triplets(matrix, limit)
    given = (width,) if signature.has_rows else (height, width)
    fixed = zip(signature.record_shape(spec), given, strict=False)
    if len(spec.shape) != 2 or any(isinstance(size, int) and size != n for size, n in fixed):  # noqa: PLR2004 - a matrix
        raise MismatchError(
            f"input {quote(spec.name)}: expected {spec}, got a sparse matrix {format_shape((height, width))}"
        )
    row_bytes = max(1, width * values.itemsize)
    step = max(1, options.chunk_bytes // row_bytes) if signature.has_rows else max(1, height)
    is_bomb = height > len(values) + limit // row_bytes
    too_large = height * row_bytes > _MAX_DENSE or min(step, height) * row_bytes > max(
        limit, options.chunk_bytes
    )
    if is_bomb or too_large:
        raise DecodeError(
            f"a sparse matrix {format_shape((height, width))} is too large to be made dense; send fewer rows a request"
        )
    for start in range(0, height if signature.has_rows else 1, step):
        stop = min(start + step, height)
        dense = np.zeros((stop - start, width), values.dtype)
        first, last = np.searchsorted(row, (start, stop))
        index = (row[first:last] - start) * width + column[first:last]
        with np.errstate(over="ignore", invalid="ignore"):
            # Entries of one place add up, as in SciPy.
            np.add.at(dense.reshape(-1), index, values[first:last])
        yield {spec.name: dense}


def _triplets(matrix: dict[str, Array], limit: int) -> tuple[tuple[int, int], Array, Array, Array]:
    """A sparse matrix as its shape, and the rows (ascending), columns and values of its entries."""
    kind, shape = _sparse_format(matrix["format"]), _sparse_shape(matrix["shape"])
    values = matrix["data"]
    if values.dtype.kind not in "biuf" or values.ndim != _FORMATS[kind]:
        raise _malformed("data", "numbers")
    if kind not in _INDEXED and values.size * _ENTRY_BYTES > limit:
        raise DecodeError(f"a sparse matrix of {values.size} entries is too large; send fewer rows a request")
    if kind == "coo":
        row, column = _coordinates(matrix)
    elif kind == "dia":
        row, column, values = _diagonals(matrix, shape, values)
    else:
        major, minor, values = _uncompressed(matrix, kind, shape, values)
        row, column = (minor, major) if kind == "csc" else (major, minor)
    if not len(row) == len(column) == len(values):
        raise _malformed("data", "one value an index")
    if row.size:
        if row.min() < 0 or row.max() >= shape[0] or column.min() < 0 or column.max() >= shape[1]:
            raise DecodeError(f"sparse matrix: an index is outside the shape {format_shape(shape)}")
        if (row[1:] < row[:-1]).any():
            order = np.argsort(row, kind="stable")
            row, column, values = row[order], column[order], values[order]
    return shape, row.astype(np.int64, copy=False), column, values


def _uncompressed(
    matrix: dict[str, Array], kind: str, shape: tuple[int, int], values: Array
) -> tuple[Array, Array, Array]:
    """Entries of a compressed format: index along the compressed axis, along the other one, and value."""
    height, width = values.shape[1:] if kind == "bsr" else (1, 1)
    if not height or not width or shape[0] % height or shape[1] % width:
        raise _malformed("data", "blocks that tile the matrix")
    indptr, minor = _indices(matrix, "indptr"), _indices(matrix, "indices")
    size = shape[_MAJOR_AXIS[kind]] // height
    if len(indptr) != size + 1 or indptr[0] != 0 or (indptr[1:] < indptr[:-1]).any():
        raise _malformed("indptr", f"{size + 1} ascending offsets from 0")
    count = int(indptr[-1])
    if count > len(minor) or len(minor) != len(values):
        raise _malformed("indptr", "to end within indices, and one value an index")
    major = np.repeat(np.arange(size), np.diff(indptr))
    minor, values = minor[:count], values[:count]
    if kind == "bsr":
        at = (slice(None), np.newaxis, np.newaxis)
        tiles = (major[at] * height + np.arange(height)[:, np.newaxis], minor[at] * width + np.arange(width))
        major, minor = (np.broadcast_to(index, values.shape).reshape(-1) for index in tiles)
        values = values.reshape(-1)
    return major, minor, values


def _diagonals(matrix: dict[str, Array], shape: tuple[int, int], values: Array) -> tuple[Array, Array, Array]:
    """Entries by diagonal: row, column and value. A diagonal's values begin at column 0, in the matrix or not."""
    offsets = _indices(matrix, "offsets").astype(np.int64)
    if len(offsets) != len(values) or len(np.unique(offsets)) != len(offsets):
        raise _malformed("offsets", "one a diagonal, each once")
    column = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    row = column - offsets[:, np.newaxis]
    inside = (row >= 0) & (row < shape[0]) & (column < shape[1])
    return row[inside], column[inside], values[inside]


def _coordinates(matrix: dict[str, Array]) -> tuple[Array, Array]:
    """Rows and columns of COO: an array each, or both in ``coords``, which SciPy means to write in future."""
    coords = matrix.get("coords")
    if coords is None:
        return _indices(matrix, "row"), _indices(matrix, "col")
    if coords.ndim != 2 or len(coords) != 2 or coords.dtype not in _INDEX_TYPES:  # noqa: PLR2004 - a matrix
        raise _malformed("coords", "two vectors of int32 or int64")
    row, column = coords
    return row, column


def _indices(matrix: dict[str, Array], name: str) -> Array:
    array = matrix.get(name)
    if array is None or array.ndim != 1 or array.dtype not in _INDEX_TYPES:
        raise _malformed(name, "a vector of int32 or int64")
    return array


def _sparse_format(array: Array) -> str:
    word = array.item() if array.ndim == 0 else ""
    text = word.decode("latin-1") if isinstance(word, bytes) else word
    if text not in _FORMATS:
        raise DecodeError(f"sparse matrix: expected the format csr, csc, bsr, coo or dia, got {quote(text)}")
    return str(text)


def _sparse_shape(array: Array) -> tuple[int, int]:
    if array.shape != (2,) or array.dtype.kind not in "iu" or (array < 0).any():
        raise _malformed("shape", "two sizes")
    height, width = array.tolist()
    return height, width


def _malformed(name: str, expected: str) -> DecodeError:
    return DecodeError(f'sparse matrix: member "{name}.npy": expected {expected}')
