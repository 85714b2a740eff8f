"""``application/jsonlines``: one record a line, one prediction a line, as https://jsonlines.org has it."""

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
import simdjson

from onnx_serve.codecs import records
from onnx_serve.codecs.interface import Answer, BadRecord, Body, Codec, CodecOptions, Document, MediaType
from onnx_serve.codecs.json_numbers import regular
from onnx_serve.codecs.json_syntax import BOM, check_charset, parse
from onnx_serve.codecs.json_text import join_records
from onnx_serve.codecs.json_values import Field, Irregular
from onnx_serve.codecs.record_blocks import at_line, blocks
from onnx_serve.codecs.records import Grammar
from onnx_serve.errors import DecodeError
from onnx_serve.tensors import Signature, Tensors

__all__ = ["codec"]

Array: TypeAlias = npt.NDArray[Any]

# Below this one line is parsed faster by itself than with the proof.
_WORTHWHILE = 4096
# Bounds the memory for what is wrong with lines.
_MARKED_LINES = 4096


def decode(
    body: Body, media_type: MediaType, signature: Signature, options: CodecOptions
) -> Iterator[Document]:
    """One document, a block for each chunk of lines.

    Raises:
        DecodeError: A line is no record of the model; the message names it. Arises while iterating.
    """
    check_charset(media_type)
    model = records.grammar(signature, marks_errors=options.marks_errors)
    yield Document(_blocks(body, model, options.chunk_bytes), place=at_line)


def _blocks(body: Body, model: Grammar, chunk_bytes: int) -> Iterator[Tensors]:
    first = 1
    for piece in body.lines(chunk_bytes):
        lines = piece.removeprefix(BOM) if first == 1 else piece
        only = model.only
        array = uniform(lines, model, only) if only and model.has_rows else None
        if only and array is not None:
            yield {only.name: array}
        else:
            yield from exact(lines, model, first)
        first += piece.count(b"\n")


def exact(lines: bytes, model: Grammar, first: int) -> Iterator[Tensors]:
    """Every line parsed by itself: what this decides is what JSON lines are.

    Args:
        lines: Whole lines; the last may lack its newline.
        model: How records are written.
        first: The number of the first line in errors.

    Raises:
        DecodeError: A line is no record of the model; the message names it.
    """
    texts = lines.removesuffix(b"\n").split(b"\n")
    try:
        values = [_parse_line(text, number) for number, text in enumerate(texts, first)]
    except DecodeError:
        if not model.marks_errors:
            raise
        return _marked(texts, model, first)
    return blocks(values, model, at_line, first)


def _marked(texts: list[bytes], model: Grammar, first: int) -> Iterator[Tensors]:
    """The records of lines of which some are no JSON."""
    for start in range(0, len(texts), _MARKED_LINES):
        number = first + start
        some = [
            _try_line(text, place) for place, text in enumerate(texts[start : start + _MARKED_LINES], number)
        ]
        yield from blocks(some, model, at_line, number)


def _try_line(text: bytes, number: int) -> Any:
    try:
        return _parse_line(text, number)
    except DecodeError as ex:
        return BadRecord(str(ex))


def _parse_line(line: bytes, number: int) -> Any:
    try:
        return parse(line)
    except DecodeError as ex:
        if not line.strip():
            raise DecodeError("expected a record, got an empty line", line=number) from None
        raise DecodeError(ex.problem, line=number, column=ex.column) from None


def uniform(lines: bytes, model: Grammar, field: Field) -> Array | None:
    """The records of lines that differ in their numbers only, or None when they are not that plain.

    The first line is split at its outermost list into prefix, list and suffix: ``{"features": [1, 2]}``.
    When every line break stands between a suffix and a prefix, with all brackets of the list beside them,
    then each line is one list, and breaks may become commas for simdjson to read all lists at once.
    """
    text = lines.removesuffix(b"\n")
    if b"\r" in text:
        text = text.removesuffix(b"\r").replace(b"\r\n", b"\n")
    first, newline, _ = text.partition(b"\n")
    if not newline and len(first) < _WORTHWHILE:
        return None
    start, stop = first.find(b"["), first.rfind(b"]") + 1
    if start < 0 or stop <= start or not _is_frame(first[:start], first[stop:]):
        return None
    depth = len(first) - start - len(first[start:].lstrip(b"["))
    opening, closing = b"[" * depth, b"]" * depth
    prefix, suffix = first[:start], first[stop:]
    if not text.endswith(closing + suffix):
        return None
    joined = _join(text, closing + suffix, prefix + opening, depth)
    if joined is None:
        return None
    try:
        [expected] = exact(first, model, 1)
        shape = field.shape if depth == len(field.shape) else (field.width,)
        array, lists = regular(simdjson.Parser().parse(joined), shape, field.dtype)
        array = array.reshape(text.count(b"\n") + 1, *expected[field.name].shape[1:])
    except (Irregular, DecodeError, ValueError, TypeError, RuntimeError, LookupError):
        return None
    if joined.count(b"[") != lists:
        return None
    # The first line's meaning, decided by the exact way, is that of its numbers in order.
    return array if np.array_equal(array[:1], expected[field.name]) else None


def _join(text: bytes, end: bytes, start: bytes, depth: int) -> bytes | None:
    """The lists of lines as one list, or None unless every line break stands between ``end`` and ``start``.

    ``depth`` bytes of ``end`` and ``start`` are the list's own brackets; the others are left out.
    """
    if len(end) == len(start) == depth:
        # Nothing to leave out: looking beside the breaks is four times as fast as looking for them.
        codes = np.frombuffer(text, np.uint8)
        breaks = np.flatnonzero(codes == ord("\n"))
        # A break nearer to an end of the text than depth fails before an index leaves the text.
        for i in range(1, depth + 1):
            if not ((codes[breaks - i] == ord("]")).all() and (codes[breaks + i] == ord("[")).all()):
                return None
        return b"[" + text.replace(b"\n", b",") + b"]"
    closing, opening = end[:depth], start[len(start) - depth :]
    lists = text[len(start) - depth : len(text) - len(end) + depth]
    lists = lists.replace(end + b"\n" + start, closing + b"," + opening)
    return None if b"\n" in lists else b"[" + lists + b"]"


def _is_frame(prefix: bytes, suffix: bytes) -> bool:
    """Whether a list between these two is a value of its own: not in a string, not in another list."""
    key = prefix.rstrip()
    return (not key or key.endswith(b":")) and not suffix.strip(b" \t}")


def encode(
    answers: Iterable[Answer],
    sink: BinaryIO,
    media_type: MediaType,
    signature: Signature,
    options: CodecOptions,
) -> None:
    """One line a record: the output's value, or an object by output name when there are several.

    Raises:
        EncodeError: An output has no form in JSON.
    """
    del media_type
    wrote = False
    for answer in answers:
        for values in answer.blocks:
            if lines := join_records(values, b"\n", signature, options):
                sink.write(b"\n" + lines if wrote else lines)
                wrote = True
    if wrote and options.text_trailing_newline:
        sink.write(b"\n")


codec = Codec(
    media_types=(
        "application/jsonlines",
        "application/jsonl",
        "application/x-ndjson",
        "application/x-jsonlines",
    ),
    decode=decode,
    encode=encode,
    marks_errors=True,
)
