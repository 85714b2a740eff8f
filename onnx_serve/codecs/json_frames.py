"""Data frames in JSON documents, as pandas writes and MLflow sends them, as records.

https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/#json-input
"""

from collections import Counter
from typing import Any

from onnx_serve.codecs.interface import BadRecord
from onnx_serve.codecs.json_syntax import check_keys, describe
from onnx_serve.codecs.records import Grammar
from onnx_serve.errors import DecodeError, quote

__all__ = ["records_of_lists", "records_of_objects"]

_NO_OBJECT = "expected an object by column name, got "


def records_of_lists(frame: Any, model: Grammar) -> list[Any]:
    """The records of ``{"columns": [...], "data": [[...], ...]}``, which MLflow calls ``dataframe_split``.

    Without names columns are numbered, as pandas does.

    Raises:
        DecodeError: It is none, or its columns are not what the model takes.
    """
    if not isinstance(frame, dict) or "data" not in frame:
        raise DecodeError(
            f'"dataframe_split": expected an object with "data" and perhaps "columns", got {describe(frame)}'
        )
    check_keys(frame, {"columns", "data", "index"}, 'in "dataframe_split"')
    data = frame["data"]
    columns = frame["columns"] if "columns" in frame else _numbers(data)
    if not isinstance(columns, list) or not isinstance(data, list):
        raise DecodeError(f'"dataframe_split": expected lists, got {describe(columns)} and {describe(data)}')
    rows = []
    for number, row in enumerate(data, 1):
        problem = ""
        if not isinstance(row, list) or len(row) != len(columns):
            problem = f"expected {len(columns)} values, one a column, got {describe(row)}"
        rows.append(_row(row, problem, number, model))
    return _frame(columns, rows, model) if columns or rows else []


def records_of_objects(frame: list[Any], model: Grammar) -> list[Any]:
    """The records of a list of objects by column name, which MLflow calls ``dataframe_records``.

    Raises:
        DecodeError: It is none, or its columns are not what the model takes.
    """
    objects = [row for row in frame if isinstance(row, dict)]
    if not objects:
        return [_row(row, _NO_OBJECT + describe(row), number, model) for number, row in enumerate(frame, 1)]
    first = objects[0]
    if model.marks_errors:
        first = next((row for row in objects if _is_whole(row, model)), first)
    whose = "first record" if first is frame[0] else "other records"
    rows = []
    for number, row in enumerate(frame, 1):
        problem = ""
        if not isinstance(row, dict):
            problem = _NO_OBJECT + describe(row)
        elif row.keys() != first.keys():
            problem = f"expected the columns of the {whose}, {describe(first)}, got {describe(row)}"
        rows.append(_row(row if problem else list(map(row.__getitem__, first)), problem, number, model))
    return _frame(list(first), rows, model)


def _numbers(data: Any) -> list[int]:
    """A number for each value of the first row that is one."""
    rows = data if isinstance(data, list) else []
    return list(range(next((len(row) for row in rows if isinstance(row, list)), 0)))


def _is_whole(row: dict[str, Any], model: Grammar) -> bool:
    """Whether an object has the model's columns, as far as names and their number tell."""
    return row.keys() == model.names or len(row) == model.width


def _row(row: Any, problem: str, number: int, model: Grammar) -> Any:
    """A row, or what is wrong with it, if bad records are marked."""
    if not problem:
        return row
    ex = DecodeError(problem, record=number)
    if not model.marks_errors:
        raise ex
    return BadRecord(str(ex))


def _frame(columns: list[Any], rows: list[Any], model: Grammar) -> list[Any]:
    """A data frame's rows as records: by name where columns are inputs, else in order; bad ones as they are.

    Several inputs of one value each are columns themselves: filled in order, a renamed one would go unseen.
    """
    names = [column if isinstance(column, str) else str(column) for column in columns]
    again = next((name for name, count in Counter(names).items() if count > 1), None)
    if again is not None:
        raise DecodeError(f"expected each column once, got {quote(again)} again")
    by_name = set(names) == model.names
    if not by_name and len(model.fields) > 1 and all(field.width == 1 for field in model.fields):
        raise DecodeError(f"columns: {model.names_differ(names)}")
    if by_name:
        return [dict(zip(names, row, strict=True)) if isinstance(row, list) else row for row in rows]
    free = model.width is None and model.only is not None and len(model.only.shape) == 1
    if model.width != len(names) and not free:
        expected = f"{model.width} columns, or " if model.width else ""
        raise DecodeError(f"expected {expected}columns named {model.inputs}, got {len(names)} columns")
    if model.names == {"features"}:
        return [{"data": {"features": {"values": row}}} if isinstance(row, list) else row for row in rows]
    return [{"features": row} if isinstance(row, list) else row for row in rows]
