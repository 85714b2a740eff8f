"""Data frames in JSON documents, as pandas writes and MLflow sends them, as records.

https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/#json-input
"""

from typing import Any

from onnx_serve.codecs.json_syntax import check_keys, describe
from onnx_serve.codecs.records import Grammar
from onnx_serve.errors import DecodeError

__all__ = ["records_of_lists", "records_of_objects"]


def records_of_lists(frame: Any, model: Grammar) -> list[Any]:
    """The records of ``{"columns": [...], "data": [[...], ...]}``, which MLflow calls ``dataframe_split``.

    Raises:
        DecodeError: It is none, or its columns are not what the model takes.
    """
    if not isinstance(frame, dict) or not frame.keys() >= {"columns", "data"}:
        raise DecodeError(
            f'"dataframe_split": expected an object with "columns" and "data", got {describe(frame)}'
        )
    check_keys(frame, {"columns", "data", "index"}, 'in "dataframe_split"')
    columns, data = frame["columns"], frame["data"]
    if not isinstance(columns, list) or not isinstance(data, list):
        raise DecodeError(f'"dataframe_split": expected lists, got {describe(columns)} and {describe(data)}')
    for number, row in enumerate(data, 1):
        if not isinstance(row, list) or len(row) != len(columns):
            raise DecodeError(
                f"expected {len(columns)} values, one a column, got {describe(row)}", record=number
            )
    return _frame(columns, data, model)


def records_of_objects(frame: list[Any], model: Grammar) -> list[Any]:
    """The records of a list of objects by column name, which MLflow calls ``dataframe_records``.

    Raises:
        DecodeError: It is none, or its columns are not what the model takes.
    """
    columns = list(frame[0]) if frame and isinstance(frame[0], dict) else []
    for number, row in enumerate(frame, 1):
        if not isinstance(row, dict):
            raise DecodeError(f"expected an object by column name, got {describe(row)}", record=number)
        if row.keys() != frame[0].keys():
            raise DecodeError(
                f"expected the columns of the first record, {describe(frame[0])}, got {describe(row)}",
                record=number,
            )
    return _frame(columns, [list(map(row.__getitem__, columns)) for row in frame], model) if frame else []


def _frame(columns: list[Any], rows: list[list[Any]], model: Grammar) -> list[Any]:
    """A data frame's rows as records: by name where columns are inputs, else in order.

    Several inputs of one value each are columns themselves: filled in order, a renamed one would go unseen.
    """
    names = [column if isinstance(column, str) else str(column) for column in columns]
    if len(set(names)) != len(names):
        raise DecodeError("expected each column once")
    by_name = set(names) == model.names
    if not by_name and len(model.fields) > 1 and all(field.width == 1 for field in model.fields):
        raise DecodeError(f"columns: {model.names_differ(names)}")
    if by_name:
        return [dict(zip(names, row, strict=True)) for row in rows]
    free = model.width is None and model.only is not None and len(model.only.shape) == 1
    if model.width != len(names) and not free:
        expected = f"{model.width} columns, or " if model.width else ""
        raise DecodeError(f"expected {expected}columns named {model.inputs}, got {len(names)} columns")
    if model.names == {"features"}:
        return [{"data": {"features": {"values": row}}} for row in rows]
    return [{"features": row} for row in rows]
