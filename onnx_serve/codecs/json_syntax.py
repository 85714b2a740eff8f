"""JSON texts as Python values, and such values in the words of an error message.

Two parsers read a text: orjson, and Python's own where orjson refuses, for ``NaN``, ``Infinity`` and numbers
beyond the range of floats, and to say what is wrong and where.
"""

import io
import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

import orjson

from onnx_serve.codecs.interface import BadRecord, MediaType
from onnx_serve.errors import DecodeError, quote

__all__ = [
    "BOM",
    "check_charset",
    "check_keys",
    "describe",
    "is_text",
    "parse",
    "parse_lines",
    "parse_sequence",
]

BOM = b"\xef\xbb\xbf"
# Digits that every 64-bit integer fits in.
_INTEGER_DIGITS = 20
# Python's own limit, https://docs.python.org/3/library/stdtypes.html#int-max-str-digits
_MAX_DIGITS = 4300
_KEYS_SHOWN = 5
_SPACE = re.compile(r"[ \t\r\n]*")


def check_charset(media_type: MediaType) -> None:
    """Refuses a ``charset`` parameter other than UTF-8, the only encoding of JSON (RFC 8259, 8.1).

    Raises:
        DecodeError: It names another one.
    """
    charset = media_type.parameters.get("charset", "utf-8")
    if charset.lower() not in {"utf-8", "utf8"}:
        raise DecodeError(f"expected charset=utf-8, got {quote(charset)}")


def parse(text: bytes) -> Any:
    """One JSON value, with ``NaN``, ``Infinity`` and numbers beyond the range of floats.

    Numbers are ``int`` when they are written without fraction and exponent and have at most 64 bits, else
    the nearest ``float``, infinite beyond its range.

    Raises:
        DecodeError: The text is something else; with line and column.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return _DECODER.decode(text.decode())
    except (ValueError, RecursionError) as ex:
        raise _syntax_error(text, ex) from None


def parse_sequence(data: bytes) -> list[Any]:
    """The values of a sequence of JSON texts with whitespace between them.

    Raises:
        DecodeError: The body is something else, or empty; with line and column.
    """
    try:
        return [orjson.loads(data)]
    except orjson.JSONDecodeError:
        pass
    try:
        # A text that is whole on its line is one of the sequence: lines need no search for their ends.
        values = [orjson.loads(line) for line in data.split(b"\n") if line.strip(b" \t\r")]
    except orjson.JSONDecodeError:
        values = _scan(data)
    if not values:
        raise DecodeError("expected a JSON document, got an empty body")
    return values


def parse_lines(data: bytes, problem: DecodeError) -> Iterator[Any]:
    """The values of lines that are JSON texts, and for the others a ``BadRecord`` in their places.

    Args:
        data: No sequence of JSON texts, but lines of which the first or the last is one; or one line.
        problem: What is wrong with the sequence.

    Raises:
        DecodeError: The problem: nothing tells that a line is a document.
    """
    text = data.strip(b" \t\r\n")
    first, _, rest = text.partition(b"\n")
    last = rest[rest.rfind(b"\n") + 1 :]
    if not text or (rest and not _is_sequence(first) and not _is_sequence(last)):
        raise problem
    for number, line in enumerate(io.BytesIO(data), 1):
        if line := line.rstrip(b" \t\r\n"):
            try:
                yield from _scan(line)
            except DecodeError as ex:
                yield BadRecord(str(DecodeError(ex.problem, line=number, column=ex.column)))


def _is_sequence(text: bytes) -> bool:
    try:
        _scan(text)
    except DecodeError:
        return False
    return True


def _scan(data: bytes) -> list[Any]:
    values = []
    try:
        string = data.decode()
        end = _skip_space(string, 0)
        while end < len(string):
            value, stop = _DECODER.raw_decode(string, end)
            values.append(value)
            end = _skip_space(string, stop)
            if end == stop < len(string):
                raise json.JSONDecodeError("Expecting whitespace after a document", string, stop)
    except (ValueError, RecursionError) as ex:
        raise _syntax_error(data, ex) from None
    return values


def _skip_space(string: str, start: int) -> int:
    match = _SPACE.match(string, start)
    return match.end() if match else start


def _integer(digits: str) -> int | float:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"expected JSON numbers of at most {_MAX_DIGITS} digits, got one of {len(digits)}")
    # No tensor holds more than 64 bits but as a float.
    return int(digits) if len(digits) <= _INTEGER_DIGITS else float(digits)


_DECODER = json.JSONDecoder(parse_int=_integer)


def _syntax_error(text: bytes, ex: ValueError | RecursionError) -> DecodeError:
    """What Python's parser found wrong with a text: its syntax, encoding, depth, or a number's length."""
    if isinstance(ex, json.JSONDecodeError):
        problem = ex.msg[0].lower() + ex.msg[1:]
        return DecodeError(f"expected JSON: {problem}", line=ex.lineno, column=ex.colno)
    if isinstance(ex, UnicodeDecodeError):
        line = text.count(b"\n", 0, ex.start) + 1
        return DecodeError(
            f"expected UTF-8, got the byte 0x{text[ex.start]:02x}",
            line=line,
            column=ex.start - text.rfind(b"\n", 0, ex.start),
        )
    if isinstance(ex, RecursionError):
        return DecodeError("expected JSON, got lists or objects that are nested too deeply")
    return DecodeError(str(ex))


def describe(value: Any) -> str:
    """A parsed JSON value in a few words; nothing in it is rendered whole."""
    if isinstance(value, dict):
        keys = ", ".join(quote(key) for key in islice(value, _KEYS_SHOWN))
        return (
            f"an object with the keys {keys}{', ...' if len(value) > _KEYS_SHOWN else ''}" if value else "{}"
        )
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return quote(value)
    return json.dumps(value)


def check_keys(value: dict[str, Any], allowed: set[str], place: str) -> None:
    """Refuses keys that nothing is done with.

    Args:
        value: A parsed object.
        allowed: The keys it may have.
        place: Where it stands, for the message: ``in the request``.

    Raises:
        DecodeError: It has another one.
    """
    if unknown := [key for key in value if key not in allowed]:
        raise DecodeError(f"unknown key {quote(unknown[0])} {place}")


def is_text(text: str) -> bool:
    """Whether a string has a form in UTF-8; JSON can escape half a surrogate pair, which has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
