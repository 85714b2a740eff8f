"""How many records the answers of a server have, told from their text alone."""

import re
from collections.abc import Iterable, Iterator

from onnx_serve.batch.media_types import CSV, JSON_LINES, bare
from onnx_serve.inference import Reply

__all__ = ["count_lines", "count_placeholders", "count_records", "has_lines", "slices"]

_COUNT_BYTES = 1 << 20
# What ``record_errors: placeholder`` puts in the place of an answer (docs/formats.md).
_CSV_PLACEHOLDER = re.compile(rb"^ERROR(?:,ERROR)*\r?$", re.MULTILINE)
_JSON_PLACEHOLDER = re.compile(rb'^\{"error": ?"', re.MULTILINE)


def has_lines(media_type: str) -> bool:
    """Whether it is a text format of records."""
    return bare(media_type) in (CSV, *JSON_LINES)


def count_records(reply: Reply) -> int:
    """Records of an answer in a text format of records; 0 for any other."""
    if not has_lines(reply.media_type):
        return 0
    return count_lines(_chunks(reply), quoted=bare(reply.media_type) == CSV)


def count_placeholders(reply: Reply) -> int:
    """Records of an answer in lines that are placeholders of bad ones; 0 for any other format."""
    if not has_lines(reply.media_type):
        return 0
    pattern = _CSV_PLACEHOLDER if bare(reply.media_type) == CSV else _JSON_PLACEHOLDER
    found = 0
    rest = b""
    for chunk in _chunks(reply):
        lines, newline, rest = (rest + chunk).rpartition(b"\n")
        found += sum(1 for _ in pattern.finditer(lines + newline))
    return found + sum(1 for _ in pattern.finditer(rest))


def count_lines(chunks: Iterable[bytes], *, quoted: bool) -> int:
    """Newlines, those within quotes left out, and a last line without one.

    Args:
        chunks: Of a text, from its start.
        quoted: Whether quotes are CSV's.
    """
    records = 0
    inside = 0
    last = b"\n"
    for chunk in chunks:
        if quoted and b'"' in chunk:
            parts = chunk.split(b'"')
            records += sum(part.count(b"\n") for part in parts[inside::2])
            inside = (inside + len(parts) - 1) % 2
        elif not inside:
            records += chunk.count(b"\n")
        last = chunk[-1:]
    return records + (last != b"\n")


def slices(data: bytes) -> Iterator[bytes]:
    """The data in parts of a MiB."""
    return (data[start : start + _COUNT_BYTES] for start in range(0, len(data), _COUNT_BYTES))


def _chunks(reply: Reply) -> Iterator[bytes]:
    """The content, which is at its start again afterwards."""
    if isinstance(reply.content, bytes):
        yield from slices(reply.content)
        return
    while chunk := reply.content.read(_COUNT_BYTES):
        yield chunk
    reply.content.seek(0)
