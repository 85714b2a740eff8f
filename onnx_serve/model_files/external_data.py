"""Where a tensor's values lie outside the model file, as the file says; nothing of it is trusted.

Source: https://github.com/onnx/onnx/blob/main/docs/ExternalData.md
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from onnx_serve.errors import quote
from onnx_serve.protobuf_wire import MalformedError

__all__ = ["ExternalData", "parse_external_data"]

_MAX_LOCATION_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ExternalData:
    """A place outside the model file.

    Attributes:
        tensor: The tensor's name; empty for most constants.
        location: The path as the file spells it, unchecked: relative to the model's folder if it is honest.
        offset: First byte, at least 0.
        length: Bytes, at least 0; None when the file does not say.
    """

    tensor: str
    location: str
    offset: int = 0
    length: int | None = None


def parse_external_data(tensor: str, pairs: Iterable[tuple[bytes, bytes]], at: int) -> ExternalData:
    """The place that a tensor's key/value pairs describe; keys such as ``checksum`` are ignored.

    Args:
        tensor: Its name.
        pairs: Keys and values, in the file's order.
        at: Where the tensor starts in the file; for messages.

    Raises:
        MalformedError: A key stands twice, a number is none, or the location is no UTF-8 or too long.
    """
    place: dict[bytes, bytes] = {}
    for key, value in pairs:
        # Readers differ in which of two locations they take: one may not be shown and another used.
        if key in place:
            raise MalformedError(f"external data of {quote(tensor)} has two entries {quote(key)}", at)
        if key in {b"location", b"offset", b"length"}:
            place[key] = value
    problem = f"external data of {quote(tensor)}: expected"
    numbers: dict[bytes, int] = {}
    for key in place.keys() & {b"offset", b"length"}:
        if not re.fullmatch(rb"[0-9]{1,19}", place[key]):
            got = f"{key.decode()} to be a whole number, got {quote(place[key])}"
            raise MalformedError(f"{problem} {got}", at)
        numbers[key] = int(place[key])
    location = place.get(b"location", b"")
    try:
        # Replacing bytes would let another file be checked than the one that is opened.
        path = location.decode()
    except UnicodeDecodeError:
        raise MalformedError(f"{problem} a location in UTF-8, got {quote(location)}", at) from None
    if len(location) > _MAX_LOCATION_BYTES:
        raise MalformedError(f"{problem} a location of at most {_MAX_LOCATION_BYTES} bytes", at)
    return ExternalData(tensor, path, numbers.get(b"offset", 0), numbers.get(b"length"))
