"""Records, written as ``records`` says, as blocks of arrays."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from onnx_serve.codecs.interface import BadRecord, Place
from onnx_serve.codecs.json_values import Irregular, gather, only_index, tensor
from onnx_serve.codecs.records import Grammar
from onnx_serve.errors import DecodeError
from onnx_serve.tensors import Tensors

__all__ = ["Records", "at_line", "at_record", "blocks"]

# Values of one block: bounds what sparse records, written in a few bytes each, become in memory.
_BLOCK_VALUES = 1 << 20


@dataclass(frozen=True, slots=True)
class Records:
    """The records of a document, which iterating reads; errors number them from 1.

    Attributes:
        values: As ``blocks`` takes them.
        model: How they are written.
    """

    values: Sequence[Any]
    model: Grammar

    def __iter__(self) -> Iterator[Tensors]:
        return blocks(self.values, self.model, at_record)


def at_record(problem: str, number: int) -> DecodeError:
    """What is wrong with a record of a document."""
    return DecodeError(problem, record=number)


def at_line(problem: str, number: int) -> DecodeError:
    """What is wrong with a line."""
    return DecodeError(problem, line=number)


def blocks(records: Sequence[Any], model: Grammar, place: Place, first: int = 1) -> Iterator[Tensors]:
    """Records as arrays by input name: a block for each run of records that share their free dimensions.

    Args:
        records: Parsed values; a ``BadRecord`` where one is known to be bad, if they are marked.
        model: How they are written.
        place: Makes an error of a problem and a record's number.
        first: The number of the first record in errors.

    Raises:
        DecodeError: A record is not what the model takes; the message names its place, input and value.
    """
    if not model.has_rows and (model.optional or model.defaults or not model.are_tensors):
        for number, record in enumerate(records, first):
            yield _checked(_run, record, model, place, number)
        return
    step = max(1, _BLOCK_VALUES // (model.width or 1)) if model.has_rows else 1
    for start in range(0, len(records), step):
        some = records[start : start + step]
        try:
            block = _stack(some, model)
        except (Irregular, DecodeError):
            # Which record, and why; or all are good and differ in a free dimension.
            alone = (
                _checked(_one, record, model, place, number)
                for number, record in enumerate(some, first + start)
            )
            yield from _join(alone)
        else:
            yield block if model.has_rows else {name: only_index(array) for name, array in block.items()}


def _checked(
    read: Callable[[Any, Grammar], Tensors], record: Any, model: Grammar, place: Place, number: int
) -> Tensors:
    """One record as ``read`` makes it, or what is wrong with it and where."""
    if isinstance(record, BadRecord):
        return record
    try:
        return read(record, model)
    except DecodeError as ex:
        placed = place(ex.problem, number)
        if model.marks_errors:
            return BadRecord(str(placed))
        raise placed from None


def _stack(records: Sequence[Any], model: Grammar) -> Tensors:
    """All records as one block, or Irregular or DecodeError when they form none."""
    only = model.only
    if model.marks_errors and BadRecord in set(map(type, records)):
        raise Irregular
    if only and only.shape and set(map(type, records)) == {list}:
        return {only.name: gather(records, only.shape, only.dtype)}
    columns = zip(*map(model.split, records), strict=True)
    return {
        field.name: gather(values, field.shape, field.dtype)
        for field, values in zip(model.fields, columns, strict=True)
    }


def _run(record: Any, model: Grammar) -> dict[str, Any]:
    """The values of one run, for models whose inputs need not all be there, or are not all tensors."""
    if isinstance(record, dict) and model.fits(record.keys(), defaults=True):
        return model.read(record)
    first = model.fields[0] if len(model.fields) == 1 else None
    if first and (not isinstance(record, dict) or first.is_map):
        return model.read({first.name: record})
    names = [field.name for field in model.fields]
    return model.read(dict(zip(names, model.split(record), strict=True)))


def _one(record: Any, model: Grammar) -> Tensors:
    """One record as a block of one row."""
    values = model.split(record)
    return {field.name: tensor(value, field)[None] for field, value in zip(model.fields, values, strict=True)}


def _join(alone: Iterable[Tensors]) -> Iterator[Tensors]:
    """Blocks of one record each, those of equal shapes that follow each other made one."""

    def kind(block: Tensors) -> str | list[tuple[int, ...]]:
        return block.error if isinstance(block, BadRecord) else [array.shape for array in block.values()]

    for _, run in groupby(alone, kind):
        first, *others = run
        if not others or isinstance(first, BadRecord):
            yield from (first, *others)
        else:
            same = (first, *others)
            yield {name: np.concatenate([block[name] for block in same]) for name in first}
