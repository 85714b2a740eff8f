"""Outputs as lines of CSV."""

import math
import re
from itertools import chain
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson

from onnx_serve.errors import EncodeError, quote
from onnx_serve.tensors import DataType, MapTable, Signature, TensorSpec, Value, Values

__all__ = ["LineWriter"]

Array: TypeAlias = npt.NDArray[Any]

_ERROR = b"ERROR"
_NEEDS_QUOTES = re.compile(r'[",\r\n]|\A[ \t]|[ \t]\Z|\A\Z')


class LineWriter:
    """Writes the records of an answer, each line as wide as the others.

    A bad record is as wide as the model's outputs are declared, else as the good record before it, else as the
    one behind it: its line waits until there is one. Where none is good, an unknown size counts as one column.

    Args:
        sink: Appended to.
        signature: The model's.
    """

    def __init__(self, sink: BinaryIO, signature: Signature) -> None:
        self._sink = sink
        self._signature = signature
        self._separator = b""
        self._is_declared = all(_is_known(spec, signature) for spec in signature.outputs)
        self._last: Values | None = None
        self._error_line = b""  # made when it is first needed
        self._waiting = 0

    def write(self, block: Values) -> None:
        """A block of good records.

        Raises:
            EncodeError: An output is no table.
        """
        text = _encode_block(block, self._signature)
        if not text:
            return
        if not self._is_declared:
            self._last, self._error_line = block, b""
            self._write_waiting()
        self._append(text)

    def write_error(self) -> None:
        """A bad record."""
        if not self._error_line:
            if not self._is_declared and self._last is None:
                self._waiting += 1
                return
            self._error_line = self._make_error_line()
        self._append(self._error_line)

    def end(self, *, newline: bool) -> None:
        """Writes what still waits, and the newline that ends the text, if there is any text."""
        self._write_waiting()
        if newline:
            self._sink.write(self._separator)

    def _make_error_line(self) -> bytes:
        if self._last is None:
            columns = sum(_declared_columns(spec, self._signature) for spec in self._signature.outputs)
        else:
            columns = sum(_columns(value, self._signature) for value in self._last.values())
        return b",".join([_ERROR] * max(1, columns))

    def _write_waiting(self) -> None:
        if self._waiting:
            line = self._make_error_line()
            for _ in range(self._waiting):
                self._append(line)
            self._waiting = 0

    def _append(self, text: bytes) -> None:
        self._sink.write(self._separator)
        self._sink.write(text)
        self._separator = b"\n"


def _is_known(spec: TensorSpec, signature: Signature) -> bool:
    """Whether the declared shape tells the number of columns."""
    return spec.is_tensor and all(isinstance(size, int) for size in signature.record_shape(spec))


def _declared_columns(spec: TensorSpec, signature: Signature) -> int:
    """The columns of an output as far as its declared shape tells."""
    return math.prod(size for size in signature.record_shape(spec) if isinstance(size, int))


def _columns(value: Value, signature: Signature) -> int:
    """The columns of an output that ``_encode_block`` took."""
    array = value.values if isinstance(value, MapTable) else value
    assert isinstance(array, np.ndarray)
    return math.prod(array.shape[1:]) if signature.has_rows else array.size


def _encode_block(block: Values, signature: Signature) -> bytes:
    """The lines of a block, without the last newline."""
    matrices = [_matrix(name, value, has_rows=signature.has_rows) for name, value in block.items()]
    if len({len(matrix) for matrix in matrices}) > 1:
        sizes = ", ".join(f"{quote(name)} {len(m)}" for name, m in zip(block, matrices, strict=True))
        raise EncodeError(
            f"text/csv cannot hold outputs of different numbers of rows ({sizes}); application/jsonlines can"
        )
    if matrices and not len(matrices[0]):
        return b""
    matrices = [matrix for matrix in matrices if matrix.shape[1]]
    if not matrices:
        raise EncodeError("text/csv cannot hold records without values; application/jsonlines can")
    if len(matrices) > 1 and len({m.dtype for m in matrices}) == 1 and matrices[0].dtype.kind in "fiub":
        matrices = [np.concatenate(matrices, axis=1)]
    if len(matrices) == 1 and matrices[0].dtype.kind in "fiub":
        return _number_lines(matrices[0])
    columns = [
        _number_lines(matrix).split(b"\n") if matrix.dtype.kind in "fiub" else _string_lines(matrix)
        for matrix in matrices
    ]
    return b"\n".join(columns[0] if len(columns) == 1 else map(b",".join, zip(*columns, strict=True)))


def _matrix(name: str, value: Value, *, has_rows: bool) -> Array:
    """An output as ``[rows, values of a record]``."""
    array = value.values if isinstance(value, MapTable) else value
    if not isinstance(array, np.ndarray):
        kind = "no value" if array is None else "a sequence" if isinstance(array, list) else "a map"
        raise EncodeError(f"text/csv cannot hold output {quote(name)}, {kind}; application/jsonlines can")
    if DataType.of_array(array) is None:
        raise EncodeError(f"text/csv cannot hold output {quote(name)} of type {array.dtype}")
    if not has_rows:
        return array.reshape(1, array.size)
    if not array.ndim:
        raise EncodeError(f"text/csv cannot hold output {quote(name)}, one value for all rows")
    return array.reshape(len(array), math.prod(array.shape[1:]))


def _number_lines(matrix: Array) -> bytes:
    native = np.ascontiguousarray(matrix, matrix.dtype.newbyteorder("="))
    text = orjson.dumps(native, option=orjson.OPT_SERIALIZE_NUMPY)[2:-2].replace(b"],[", b"\n")
    if matrix.dtype.kind != "f" or b"null" not in text:
        return text
    # JSON has no word for these: its nulls stand where they are, in order.
    pieces = text.split(b"null")
    words = [
        b"nan" if math.isnan(value) else b"inf" if value > 0 else b"-inf"
        for value in native[~np.isfinite(native)].tolist()
    ]
    return b"".join(chain.from_iterable(zip(pieces, [*words, b""], strict=True)))


def _string_lines(matrix: Array) -> list[bytes]:
    cells = matrix.ravel().tolist()
    # Labels repeat: each is quoted and encoded once.
    quoted = {cell: _quoted(cell) for cell in set(cells)}
    texts = [quoted[cell] for cell in cells]
    width = matrix.shape[1]
    return texts if width == 1 else [b",".join(row) for row in zip(*[iter(texts)] * width, strict=True)]


def _quoted(cell: object) -> bytes:
    text = cell.decode("utf-8", "surrogateescape") if isinstance(cell, bytes) else cell
    if not isinstance(text, str):
        raise EncodeError(f"text/csv: expected strings, got {quote(cell)}")
    if _NEEDS_QUOTES.search(text):
        text = '"' + text.replace('"', '""') + '"'
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise EncodeError(f"text/csv: the string {quote(cell)} has no form in UTF-8") from None
