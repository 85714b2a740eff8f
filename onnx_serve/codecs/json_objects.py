"""Lists of records like ``{"features": [1, 2]}``, read without a Python object for each.

The records of one client differ in their numbers only. What stands between the first two lists of numbers is
replaced by a comma wherever it stands, and the rest is a list of lists for ``json_numbers``.
"""

import re
from typing import Any, TypeAlias

import numpy.typing as npt
import simdjson

from onnx_serve.codecs.json_numbers import regular
from onnx_serve.codecs.json_values import Field, Irregular
from onnx_serve.codecs.records import Grammar
from onnx_serve.tensors import Dimension

__all__ = ["read_objects"]

Array: TypeAlias = npt.NDArray[Any]

# Possessive: a run of spaces is looked at once, however long it is.
_SPACE = rb"[ \t\r\n]*+"
_KEY = rb'\{%b"[^"\\\x00-\x1f]*"%b:%b' % (_SPACE, _SPACE, _SPACE)
_NAME = re.compile(rb'"([^"]*)"')
# Up to the first list of numbers, with the envelope's brace if there is one, and the first record's keys.
_HEAD = re.compile(
    rb'%b(?P<envelope>\{%b"instances"%b:%b)?\[%b(?P<keys>(?:%b){1,3})(?=\[)'
    % (_SPACE, _SPACE, _SPACE, _SPACE, _SPACE, _KEY)
)
# Bytes at the end of a body that the closing brackets, with their whitespace, are searched in.
_TAIL_BYTES = 256


def read_objects(data: bytes, model: Grammar) -> Array | None:
    """The records of a body as one array ``[N, *field.shape]``, or None when it does not begin with such one.

    Args:
        data: A whole body: a list of objects, or one in ``{"instances": ...}``.
        model: How records are written.

    Raises:
        Irregular, ValueError, TypeError, RuntimeError: It begins so, but is not proven to go on so.
    """
    head = _HEAD.match(data)
    if head is None:
        return None
    field = model.only
    if field is None or (head["envelope"] and "instances" in model.names):
        raise Irregular
    names = _names(head["keys"])
    shape = _list_shape(names, field)
    lists = data[head.end() : _end_of_lists(data, len(names), envelope=bool(head["envelope"]))]
    between = b"]" * len(shape) + b"," + b"[" * len(shape)
    separator = _separator(lists, names, len(shape)) or between
    joined = b"[" + lists.replace(separator, between) + b"]"
    # Two records in one list's place, or a list in two records' place, would be one list too many.
    records = 1
    if separator != between:
        records += (len(lists) + 2 - len(joined)) // (len(separator) - len(between))
    array, count = regular(simdjson.Parser().parse(joined), shape, field.dtype)
    if len(array) != records or joined.count(b"[") != count:
        raise Irregular
    return array if len(shape) == len(field.shape) else array.reshape(_sizes(records, field))


def _names(keys: bytes) -> list[str]:
    return [name.decode() for name in _NAME.findall(keys)]


def _list_shape(names: list[str], field: Field) -> tuple[Dimension, ...]:
    """The shape of a record's list, which ``features`` have flat and an input's name as the input's is."""
    if names == [field.name]:
        shape = field.shape
    elif names == ["features"] or (names == ["data", "features", "values"] and field.name != "data"):
        shape = field.shape if len(field.shape) == 1 else (field.width,)
    else:
        raise Irregular
    if not shape or (field.width is None and len(field.shape) != len(shape)):
        raise Irregular
    return shape


def _end_of_lists(data: bytes, braces: int, *, envelope: bool) -> int:
    """Where the last record's list ends."""
    closing = (_SPACE + rb"\}") * braces + _SPACE + rb"\]" + (_SPACE + rb"\}") * envelope + _SPACE
    start = max(0, len(data) - _TAIL_BYTES)
    tail = re.search(rb"\]" + closing + rb"\Z", data[start:])
    if tail is None:
        raise Irregular
    return start + tail.start() + 1


def _separator(lists: bytes, names: list[str], depth: int) -> bytes | None:
    """What stands between the first list and the second, from bracket to bracket; None if there is no other.

    Args:
        lists: From the first list to the end of the last.
        names: The keys that lead to a list.
        depth: Brackets that a list begins and ends with.
    """
    closing = b"]" * depth
    pattern = (
        re.escape(closing)
        + (_SPACE + rb"\}") * len(names)
        + rb"%b,%b(?P<keys>(?:%b){%d})\[{%d}" % (_SPACE, _SPACE, _KEY, len(names), depth)
    )
    match = re.compile(pattern).match(lists, lists.find(closing))
    return match[0] if match and _names(match["keys"]) == names else None


def _sizes(records: int, field: Field) -> tuple[int, ...]:
    return (records, *(size for size in field.shape if isinstance(size, int)))
