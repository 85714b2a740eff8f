"""Documents that follow each other in a JSON body.

Small ones made of records are joined, so that all their records are read and run together: a file of one document a
line is as fast as one of JSON lines. Their answers, and their errors, are those that each would have alone.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

from onnx_serve.codecs.interface import BadRecord, Document, Place
from onnx_serve.codecs.json_documents import read_document
from onnx_serve.codecs.record_blocks import Records, blocks
from onnx_serve.codecs.records import Grammar
from onnx_serve.errors import DecodeError
from onnx_serve.tensors import Signature, Tensors

__all__ = ["read_documents"]

# Larger documents are run by themselves, and their answers written as they come.
_SMALL_RECORDS = 1024
_JOINED_DOCUMENTS = 1 << 16


def read_documents(values: Iterable[Any], model: Grammar, signature: Signature) -> Iterator[Document]:
    """The documents of a body, some of them joined; errors number them from 1.

    Args:
        values: Parsed, as ``read_document`` takes them.
        model: How the model's records are written.
        signature: The model's.

    Raises:
        DecodeError: As ``read_document``.
        MismatchError: As ``read_document``.
    """
    joined = _Joined(1, model)
    for number, value in enumerate(values, 1):
        try:
            document = read_document(value, model, signature)
        except DecodeError as ex:
            if joined.sizes:
                yield joined.document()  # whose errors come first
            raise _in_document(ex.problem, number, ex.record) from None
        found = document.blocks
        is_small = isinstance(found, Records) and len(found.values) <= _SMALL_RECORDS
        if joined.sizes and (not is_small or len(joined.sizes) == _JOINED_DOCUMENTS):
            yield joined.document()
            joined = _Joined(number, model)
        if isinstance(found, Records) and is_small:
            joined.add(found.values)
        else:
            yield replace(document, blocks=_numbered(found, number), place=_place_in(number))
            joined = _Joined(number + 1, model)
    if joined.sizes:
        yield joined.document()


class _Joined:
    """Documents made of records, one after the other.

    Args:
        first: The number of the first one.
        model: How records are written.
    """

    def __init__(self, first: int, model: Grammar) -> None:
        self.sizes: list[int] = []
        self._first = first
        self._model = model
        self._values: list[Any] = []
        self._ends: list[int] = []

    def add(self, values: Iterable[Any]) -> None:
        """The records of the next document."""
        before = len(self._values)
        self._values += values
        self.sizes.append(len(self._values) - before)

    def document(self) -> Document:
        """All of them as one."""
        return Document(self._blocks(), sizes=self.sizes, place=self._place)

    def _blocks(self) -> Iterator[Tensors]:
        if self._model.marks_errors:
            for index, value in enumerate(self._values):
                if isinstance(value, BadRecord):
                    self._values[index] = BadRecord(str(self._place(value.error, index + 1, named=False)))
        return blocks(self._values, self._model, self._place)

    def _place(self, problem: str, number: int, *, named: bool = True) -> DecodeError:
        """What is wrong with one of all records, in its document."""
        if not self._ends:
            self._ends = list(accumulate(self.sizes))
        index = bisect_left(self._ends, number)
        record = number - (self._ends[index - 1] if index else 0)
        return _in_document(problem, self._first + index, record if named else None)


def _numbered(found: Iterable[Tensors], number: int) -> Iterator[Tensors]:
    """A document's blocks, whose errors name it."""
    try:
        for block in found:
            if isinstance(block, BadRecord):
                yield BadRecord(str(_in_document(block.error, number, None)))
            else:
                yield block
    except DecodeError as ex:
        raise _in_document(ex.problem, number, ex.record) from None


def _place_in(number: int) -> Place:
    """Names records of a document."""

    def place(problem: str, record: int) -> DecodeError:
        return _in_document(problem, number, record)

    return place


def _in_document(problem: str, number: int, record: int | None) -> DecodeError:
    return DecodeError(f"document {number}: {problem}", record=record)
