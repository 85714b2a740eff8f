"""Protobuf's wire format: the wanted fields of a message, found without copying or trusting anything.

Every length is checked against its parent, and what is skipped costs no memory. What protobuf would merge or
skip although it is wanted is refused, so that nothing is read that was not seen here.

Wire format: https://protobuf.dev/programming-guides/encoding/
"""

import mmap
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TypeAlias

__all__ = [
    "LEN",
    "MAX_DEPTH",
    "NUMBERS",
    "ONCE",
    "VARINT",
    "Buffer",
    "MalformedError",
    "Message",
    "encode_varint",
    "field_head",
    "varint",
    "wanted_fields",
]

Buffer: TypeAlias = bytes | mmap.mmap

MAX_DEPTH = 64

VARINT, _I64, LEN, _START_GROUP, _END_GROUP, _I32 = range(6)
ONCE = LEN | 8  # a message that is no list: protobuf would merge two, which no writer makes and we refuse
NUMBERS = 16  # a list of numbers, packed (one field) or not (one field each)
_MORE = 0x80  # the bit of a number's byte that says that another byte follows

# Fields by number: name and kind, as far as they are read.
Message: TypeAlias = Mapping[int, tuple[str, int]]


class MalformedError(Exception):
    """The bytes are not the message that is read; says what is wrong, and at which byte."""

    def __init__(self, problem: str, at: int) -> None:
        super().__init__(f"{problem} (byte {at})")


def wanted_fields(data: Buffer, pos: int, end: int, message: Message) -> Iterator[tuple[str, int, int]]:
    """The fields of the message between two offsets that are wanted: name, start and stop of the value.

    Fields of other numbers are skipped, groups with all they hold.

    Args:
        data: The whole file.
        pos: Where the message starts.
        end: Where it ends, at most at the end of ``data``.
        message: The fields that are wanted.

    Raises:
        MalformedError: At the field that cannot be read; those before it have been given.
    """
    previous = 0
    groups: list[int] = []
    seen: set[str] = set()
    while pos < end:
        at = pos
        tag, pos = (data[pos], pos + 1) if data[pos] < _MORE else varint(data, pos, end)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 2**29:
            raise MalformedError(f"a field has the number {number}", at)
        wanted = None if groups else message.get(number)
        if wanted is None and wire in {_START_GROUP, _END_GROUP}:
            _enter_or_leave(groups, number, wire, at)
            continue
        start, stop = _payload(data, wire, pos, end)
        if wanted is not None:
            name, kind = wanted
            _check_kind(name, kind, wire, seen, at)
            yield name, start, stop
        elif tag == previous and wire != LEN and tag < _MORE:
            run = _run_of(tag).match(data, stop, end)
            stop = run.end() if run else stop
        previous = tag
        pos = stop
    if groups:
        raise MalformedError("a group has no end", end)


def varint(data: Buffer, pos: int, end: int) -> tuple[int, int]:
    """The unsigned number of 64 bits at ``pos`` and where it ends.

    Raises:
        MalformedError: It does not end before ``end``, or has more than ten bytes.
    """
    value = 0
    for index, at in enumerate(range(pos, min(pos + 10, end))):
        byte = data[at]
        value |= (byte & ~_MORE) << (7 * index)
        if byte < _MORE:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at + 1
    raise MalformedError("a number has no end" if pos + 10 <= end else "a number is cut off", pos)


def encode_varint(value: int) -> bytes:
    """A number that is not negative, as ``varint`` reads it."""
    out = bytearray()
    while value >= _MORE:
        out.append(value & 0xFF | _MORE)
        value >>= 7
    out.append(value)
    return bytes(out)


def field_head(number: int, size: int) -> bytes:
    """What stands before the value of a field of ``size`` bytes."""
    return encode_varint(number << 3 | LEN) + encode_varint(size)


def _payload(data: Buffer, wire: int, pos: int, end: int) -> tuple[int, int]:
    """Where the value after a tag starts and stops."""
    if wire == LEN:
        size, pos = (data[pos], pos + 1) if pos < end and data[pos] < _MORE else varint(data, pos, end)
        stop = pos + size
    elif wire == VARINT:
        stop = pos + 1 if pos < end and data[pos] < _MORE else varint(data, pos, end)[1]
    elif wire in {_I32, _I64}:
        stop = pos + (4 if wire == _I32 else 8)
    else:
        raise MalformedError(f"a field has the wire type {wire}", pos - 1)
    if stop > end:
        parent = "the file, which may be truncated" if end == len(data) else "its message"
        raise MalformedError(f"a field of {stop - pos} bytes ends {stop - end} bytes after {parent}", pos)
    return pos, stop


def _check_kind(name: str, kind: int, wire: int, seen: set[str], at: int) -> None:
    """Refuses what protobuf would skip or merge, so that nothing is read that was not checked."""
    if kind != NUMBERS and kind & 7 != wire:
        raise MalformedError(f"the field {name} has the wire type {wire}, expected {kind & 7}", at)
    if kind == ONCE:
        if name in seen:
            raise MalformedError(f"the field {name} is there twice", at)
        seen.add(name)


def _enter_or_leave(groups: list[int], number: int, wire: int, at: int) -> None:
    if wire == _START_GROUP:
        groups.append(number)
        if len(groups) > MAX_DEPTH:
            raise MalformedError(f"more than {MAX_DEPTH} groups lie in each other", at)
    elif not groups or groups.pop() != number:
        raise MalformedError("a group ends that has not begun", at)


@cache
def _run_of(tag: int) -> re.Pattern[bytes]:
    """Matches many numbers under one tag.

    The attributes of a tree ensemble are millions of unpacked numbers; a regular expression steps over
    them many times as fast as the loop. The count is bounded because each repetition costs memory.
    """
    value = {VARINT: rb"[\x80-\xff]{0,9}[\x00-\x7f]", _I64: rb".{8}", _I32: rb".{4}"}[tag & 7]
    return re.compile(b"(?:%b%b){1,4096}" % (re.escape(bytes([tag])), value), re.DOTALL)
