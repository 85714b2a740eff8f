"""Rows of CSV as the platform's agent reads them: strictly.

It parses with Go's encoding/csv, which refuses a quote within a cell that does not begin with one, as RFC 4180 does:
https://pkg.go.dev/encoding/csv#pkg-variables and, from a job's log,
https://github.com/aws/amazon-sagemaker-examples/issues/898 ('bare " in non quoted field found').
"""

import re

from onnx_serve.errors import DecodeError, quote

__all__ = ["cells", "is_number"]

# A quote stands around a cell or is doubled within one. No character is looked at twice.
_CELL = re.compile(rb'("[^"]*+(?:""[^"]*+)*+"|[^",]*+)(,|\Z)')


def cells(row: bytes) -> list[bytes]:
    """The cells of a row, as they are written, their quotes too.

    Args:
        row: Without its line end.

    Raises:
        DecodeError: A quote is out of place.
    """
    if b'"' not in row:
        return row.split(b",")
    found: list[bytes] = []
    end = 0
    while True:
        match = _CELL.match(row, end)
        if match is None:
            raise DecodeError(f"expected a row of CSV as in RFC 4180, got {quote(row)}")
        found.append(match[1])
        if not match[2]:
            return found
        end = match.end()


def is_number(cell: bytes) -> bool:
    """Whether a cell reads as a number; an empty one does, as a missing number."""
    try:
        float(cell.strip(b' "') or b"0")
    except ValueError:
        return False
    return True
