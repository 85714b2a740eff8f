"""Media types: the ``Content-Type`` of a request, and the answer's type chosen by its ``Accept``.

Syntax and meaning: https://www.rfc-editor.org/rfc/rfc9110.html#section-8.3.1 and #section-12.5.1.
"""

import re
from collections.abc import Sequence
from itertools import islice

from onnx_serve.codecs.interface import MediaType
from onnx_serve.errors import UnsupportedMediaType, quote

__all__ = ["negotiate", "parse"]

# SageMaker passes ContentType and Accept on verbatim, at most 256 characters each:
# https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_TransformInput.html
_MEDIA_TYPE_LENGTH = 1024
_ACCEPT_LENGTH = 8192
_ACCEPT_RANGES = 50

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_TYPE = re.compile(rf"{_WORD}/{_WORD}")
_PARAMETER = re.compile(rf'[ \t]*;[ \t]*(?:({_WORD})=({_WORD}|"(?:[^"\\]|\\.)*+"))?')
# An unclosed quote takes the rest, so that no character is looked at twice.
_ELEMENT = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.?)*+(?:"|$))++', re.DOTALL)


def parse(text: str) -> MediaType:
    """A media type with its parameters; of two parameters of one name the first counts.

    Raises:
        UnsupportedMediaType: The text is no media type, or longer than 1,024 characters.
    """
    stripped = text.strip(" \t")
    start = _TYPE.match(stripped) if len(stripped) <= _MEDIA_TYPE_LENGTH else None
    if start is None:
        raise _malformed(text)
    parameters: dict[str, str] = {}
    end = start.end()
    while end < len(stripped):
        parameter = _PARAMETER.match(stripped, end)
        if parameter is None:
            raise _malformed(text)
        name, value = parameter.groups()
        if name is not None:
            parameters.setdefault(name.lower(), _unquoted(value))
        end = parameter.end()
    return MediaType(start[0].lower(), parameters)


def negotiate(accept: str, offered: Sequence[str]) -> str | None:
    """The media type to answer in, or None when ``accept`` allows none of ``offered``.

    The most specific range that matches a type gives its weight, and the heaviest type wins. Ties go to
    the range that comes first in ``accept``, then to the type that comes first in ``offered``. Parameters
    other than ``q`` are ignored; a ``q`` that is no number from 0 to 1 counts as 1, because the client did
    name the type; a range that cannot be read is skipped. A blank header accepts anything.

    Args:
        accept: The header's value; what exceeds 8 KiB or 50 ranges is ignored.
        offered: Bare media types, the preferred one first.
    """
    if not accept.strip(" \t,"):
        return offered[0] if offered else None
    ranges = _ranges(accept)
    best: tuple[float, int] | None = None
    chosen = None
    for media_type in offered:
        rank = _rank(media_type.lower(), ranges)
        if rank is not None and (best is None or rank > best):
            best, chosen = rank, media_type
    return chosen


def _ranges(accept: str) -> list[tuple[str, float]]:
    """Each range of the header in order, with its weight."""
    if len(accept) > _ACCEPT_LENGTH:
        accept = accept[:_ACCEPT_LENGTH].rpartition(",")[0]
    ranges = []
    for element in islice(_ELEMENT.finditer(accept), _ACCEPT_RANGES):
        try:
            media_range = parse(element[0])
        except UnsupportedMediaType:
            continue
        ranges.append((media_range.name, _weight(media_range.parameters.get("q", "1"))))
    return ranges


def _rank(media_type: str, ranges: Sequence[tuple[str, float]]) -> tuple[float, int] | None:
    """The weight of a type and the negated place of the range that gives it; None if not acceptable."""
    for pattern in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        matches = [(weight, -place) for place, (name, weight) in enumerate(ranges) if name == pattern]
        if matches:
            rank = max(matches)
            return rank if rank[0] > 0 else None
    return None


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        return 1.0
    return weight if 0 <= weight <= 1 else 1.0


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _malformed(text: str) -> UnsupportedMediaType:
    return UnsupportedMediaType(f"expected a media type such as text/csv, got {quote(text)}")
