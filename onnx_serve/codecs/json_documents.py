"""What a parsed JSON document means, told by its shape; the table is in ``json``."""

from collections.abc import Sequence
from typing import Any

from onnx_serve.codecs import oip_json
from onnx_serve.codecs.interface import BadRecord, Document, Layout
from onnx_serve.codecs.json_frames import records_of_lists, records_of_objects
from onnx_serve.codecs.json_syntax import check_keys, describe
from onnx_serve.codecs.json_values import column, tensor
from onnx_serve.codecs.record_blocks import Records
from onnx_serve.codecs.records import Grammar
from onnx_serve.errors import DecodeError
from onnx_serve.tensors import Signature

__all__ = ["read_document"]

_ENVELOPES = ("instances", "inputs", "dataframe_split", "dataframe_records")


def read_document(value: Any, model: Grammar, signature: Signature) -> Document:
    """One document of ``application/json``.

    Args:
        value: It, parsed; or a ``BadRecord`` that says why it could not be.
        model: How the model's records are written.
        signature: The model's.

    Raises:
        DecodeError: The value is none of the shapes, unless bad records are marked: then it is one of them; an
            envelope is wrong; from its blocks, that a record is none.
        MismatchError: Tensors of the Open Inference Protocol without rows are not what the model takes.
    """
    if isinstance(value, list):
        return _list(value, model)
    if isinstance(value, BadRecord):
        return _rows([value], model)
    if not isinstance(value, dict):
        if model.width == 1:
            return _rows([value], model)
        return _bad(_unknown(value, model), model)
    if model.fits(value.keys(), defaults=not model.has_rows) or "features" in value or "data" in value:
        return _rows([value], model)
    envelope = next((key for key in _ENVELOPES if key in value), None)
    if envelope is None:
        return _bad(_unknown(value, model), model)
    content = value[envelope]
    if envelope == "inputs" and _is_oip(content, model):
        return oip_json.read_request(value, signature)
    check_keys(value, {envelope, "params"}, f'beside "{envelope}"')
    if envelope == "inputs":
        return _columns(content, model)
    if envelope == "dataframe_split":
        return _rows(records_of_lists(content, model), model)
    if not isinstance(content, list):
        raise DecodeError(f'"{envelope}": expected a list of records, got {describe(content)}')
    if envelope == "dataframe_records":
        return _rows(records_of_objects(content, model), model)
    return _rows(content, model)


def _is_oip(content: Any, model: Grammar) -> bool:
    if not isinstance(content, list):
        return False
    if not content:
        return not model.fields
    # An item of a sequence may be an object too.
    return isinstance(content[0], dict) and (model.are_tensors or "name" in content[0])


def _rows(values: Sequence[Any], model: Grammar) -> Document:
    return Document(Records(values, model))


def _bad(ex: DecodeError, model: Grammar) -> Document:
    """A document that is nothing known: one bad record, or an error."""
    if not model.marks_errors:
        raise ex
    return _rows([BadRecord(str(ex))], model)


def _unknown(value: Any, model: Grammar) -> DecodeError:
    return DecodeError(
        f'expected {{"instances": [...]}}, {{"inputs": ...}}, {{"dataframe_split": ...}}, '
        f'{{"dataframe_records": [...]}}, a list of records, or an object with the inputs {model.inputs}, '
        f"got {describe(value)}"
    )


def _list(values: list[Any], model: Grammar) -> Document:
    """A bare list: records, or one record, as its depth says."""
    if not values or isinstance(values[0], dict) or not model.are_tensors:
        return _rows(values, model)
    only = model.only
    rank = len(only.shape) if only else 1
    depth = _depth(values)
    if depth == rank + 1 or (depth == 1 and only and only.width == 1):
        return _rows(values, model)
    if model.marks_errors and any(isinstance(value, dict) or _depth(value) >= rank for value in values):
        # A bad record in front does not decide what the others are.
        return _rows(values, model)
    if depth != rank:
        return _bad(
            DecodeError(
                f"expected a list of records of the inputs {model.inputs}, {rank + 1} lists deep, or one record, "
                f"{rank} deep, got a list {depth} deep"
            ),
            model,
        )
    if depth == 1 and model.width not in {None, len(values)}:
        return _bad(
            DecodeError(
                f"a flat list of {len(values)} values is neither one record of {model.width} values "
                "nor a list of records, which are lists themselves"
            ),
            model,
        )
    return _rows([values], model)


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, list):
        depth += 1
        value = value[0] if value else None
    return depth


def _columns(content: Any, model: Grammar) -> Document:
    """``{"inputs": ...}``: an array for each input."""
    if isinstance(content, dict):
        if not model.fits(content.keys(), defaults=True):
            raise DecodeError(f'"inputs": {model.names_differ(content)}')
        columns = content
    elif len(model.fields) == 1:
        columns = {model.fields[0].name: content}
    else:
        raise DecodeError(f'"inputs": expected an object with {model.inputs}, got {describe(content)}')
    if not model.has_rows:
        return Document((model.read(columns),), Layout.COLUMNS)
    tensors = {field.name: column(columns[field.name], field) for field in model.fields}
    # All inputs without a record: nothing to run. Unequal numbers are the judge's business.
    empty = not any(map(len, tensors.values()))
    tensors |= {
        field.name: tensor(columns[field.name], field) for field in model.defaults if field.name in columns
    }
    return Document(() if empty else (tensors,), Layout.COLUMNS)
