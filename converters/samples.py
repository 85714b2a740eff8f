"""The user's sample: rows in a file, with names and types where the format has them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from converters.errors import ConversionError
from converters.parity import Probe
from onnx_serve.errors import quote
from onnx_serve.tensors import Array

__all__ = ["Sample", "as_sample", "check_sample", "matrix_sample", "numbers_or_text", "read_sample"]

_MAX_ROWS = 100_000
_FORMATS = ".csv, .jsonl, .json, .parquet, .npy or .npz"


@dataclass(frozen=True, slots=True)
class Sample:
    """Columns of equal length, or one matrix.

    Attributes:
        columns: By name, arrays [N] of numbers or text; empty when there is a matrix.
        matrix: ``[N, ...]``, or None.
        named: Whether the columns' names mean something.
    """

    columns: dict[str, Array]
    matrix: Array | None = None
    named: bool = True

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.matrix if self.matrix is not None else next(iter(self.columns.values())))


def read_sample(path: Path) -> Sample:
    """Reads a sample; CSV has a header line, JSON holds records.

    Raises:
        ConversionError: It cannot be read, has no rows, or more than a hundred thousand.
    """
    name = quote(path.name)
    check_sample(path)
    try:
        sample = _read(path)
    except OSError as ex:
        raise ConversionError(f"--sample {name} cannot be read: {ex.strerror or 'it is damaged'}") from ex
    except (pa.ArrowException, ValueError, UnicodeDecodeError, EOFError) as ex:
        raise ConversionError(f"--sample {name}: expected rows in {_FORMATS}: {quote(ex)}") from ex
    if not sample.rows:
        raise ConversionError(f"--sample {name} has no rows")
    if sample.rows > _MAX_ROWS:
        raise ConversionError(f"--sample {name}: expected at most {_MAX_ROWS} rows, got {sample.rows}")
    return sample


def check_sample(path: Path) -> None:
    """Refuses what is no file, before any work is done.

    Raises:
        ConversionError: See above.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "none"
        raise ConversionError(f"--sample {quote(path.name)}: expected a file, found {found}")


def _read(path: Path) -> Sample:
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _of_table(pyarrow.csv.read_csv(path))
    if suffix in {".parquet", ".pq"}:
        return _of_table(pyarrow.parquet.read_table(path))
    if suffix in {".jsonl", ".ndjson"}:
        return _of_records(
            [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        )
    if suffix == ".json":
        return _of_records(json.loads(path.read_text("utf-8")))
    if suffix == ".npy":
        matrix = np.load(path, allow_pickle=False)
        if matrix.ndim == 0:
            raise ValueError("an array without rows")
        return Sample({}, matrix, named=False)
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            columns = dict(arrays)
        if not columns or len({array.shape[:1] for array in columns.values()}) != 1:
            raise ValueError("arrays of equal length")
        return Sample(columns)
    raise ValueError(f"the ending {suffix or 'is missing'}")


def _of_table(table: pa.Table) -> Sample:
    return Sample({name: _of_column(table[name]) for name in table.column_names})


def _of_column(column: Any) -> Array:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_boolean(kind) or (pa.types.is_integer(kind) and column.null_count == 0):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind):
        return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False))
    # Absent text is empty text, as it is for the model.
    return np.array([str(value) if value is not None else "" for value in column.to_pylist()], object)


def _of_records(records: Any) -> Sample:
    if isinstance(records, dict):
        records = next((records[key] for key in ("instances", "inputs", "data") if key in records), None)
    if not isinstance(records, list) or not records:
        raise ValueError("a list of records")
    if all(isinstance(record, dict) for record in records):
        names = list(records[0])
        if any(list(record) != names for record in records):
            raise ValueError("records with the same names")
        return _of_table(pa.table({name: [record[name] for record in records] for name in names}))
    return Sample({}, np.array(records), named=False)


def as_sample(value: Any) -> Sample | None:
    """A sample made of what Python has: a ``Sample``, an array, a pandas data frame, or None."""
    if value is None or isinstance(value, Sample):
        return value
    if hasattr(value, "iloc") and hasattr(value, "columns"):
        columns = {str(name): value[name].to_numpy() for name in value.columns}
        return Sample({name: numbers_or_text(array) for name, array in columns.items()})
    if isinstance(value, list) and value and isinstance(value[0], str):
        return Sample({}, np.array(value, object), named=False)
    return Sample({}, np.asarray(value), named=False)


def numbers_or_text(array: Array) -> Array:
    """Columns of objects as numbers where they are numbers, else as text."""
    if array.dtype.kind in "biuf":
        return array
    try:
        return np.asarray(array, np.float64)
    except (TypeError, ValueError):
        return np.array(["" if value is None or value != value else str(value) for value in array], object)  # noqa: PLR0124  NaN


def matrix_sample(sample: Any, features: int, names: Sequence[str], *, name: str = "features") -> list[Probe]:
    """The probe ``sample`` of a model that takes one matrix of numbers, or nothing without a sample.

    Args:
        sample: What ``as_sample`` takes.
        features: Columns of the matrix.
        names: The model's names of them, or none: named columns are then taken in order.
        name: The model's input.

    Raises:
        ConversionError: The sample has other columns, or text.
    """
    found = as_sample(sample)
    if found is None:
        return []
    matrix = found.matrix
    if matrix is None:
        columns = found.columns
        if names and set(names) <= set(columns):
            columns = {column: columns[column] for column in names}
        elif names and found.named and set(names) & set(columns):
            missing = [column for column in names if column not in columns]
            raise ConversionError(f"--sample: missing the columns {', '.join(map(quote, missing[:5]))}")
        text = [column for column, array in columns.items() if array.dtype.kind not in "biuf"]
        if text:
            raise ConversionError(f"--sample: expected numbers, the column {quote(text[0])} holds text")
        matrix = np.stack([array.reshape(len(array)) for array in columns.values()], axis=1)
    if matrix.ndim != 2 or matrix.shape[1] != features or matrix.dtype.kind not in "biuf":  # noqa: PLR2004  rows and columns
        raise ConversionError(
            f"--sample: expected rows of {features} numbers, got {matrix.dtype} of shape {list(matrix.shape)}"
        )
    return [Probe("sample", {name: matrix.astype(np.float64)})]
