"""What a cell of CSV means: the words and numbers of each input type."""

import decimal
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from onnx_serve.errors import DecodeError, quote
from onnx_serve.tensors import DataType

__all__ = ["DECIMAL", "FALSE_WORDS", "MISSING_WORDS", "NUMERIC_BYTES", "READERS", "TRUE_WORDS", "is_number"]

# The spellings that pandas and pyarrow read as a missing value:
# https://pandas.pydata.org/docs/reference/api/pandas.read_csv.html (na_values),
# https://arrow.apache.org/docs/python/generated/pyarrow.csv.ConvertOptions.html (null_values).
MISSING_WORDS = frozenset(
    {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"}
    | {"<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
)
TRUE_WORDS, FALSE_WORDS = ("true", "1"), ("false", "0")  # in any case
DECIMAL = re.compile(r"[+-]?(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][+-]?\d++)?", re.ASCII)
# Bytes of numbers and missing values, without "nan(1)" and "0x1f", which pyarrow reads as numbers, and without
# blanks beyond space and tab, which NumPy drops.
NUMERIC_BYTES = (bytes(range(0x20, 0x7F)) + b"\t\r\n").translate(None, b"(xX")
_NON_FINITE = re.compile(r"[+-]?(?:nan|inf(?:inity)?)", re.ASCII | re.IGNORECASE)
# No 64-bit integer has more digits; int() is only given text of about that length.
_MAX_DIGITS = 20
_MAX_INTEGER_TEXT = _MAX_DIGITS + 4


def is_number(word: str) -> bool:
    """Whether a cell without blanks around it can be a float: a decimal, not finite, or missing."""
    return word in MISSING_WORDS or bool(DECIMAL.fullmatch(word) or _NON_FINITE.fullmatch(word))


def _read_float(cell: str, dtype: DataType) -> float:
    word = cell.strip(" \t")
    if not DECIMAL.fullmatch(word):
        if word in MISSING_WORDS:
            return math.nan
        if not _NON_FINITE.fullmatch(word):
            raise DecodeError(f"expected a number, got {quote(cell)}")
    value = float(word)
    if _FLOAT_LIMITS[dtype] <= abs(value) < math.inf:
        raise DecodeError(f"expected a number in the range of {dtype.name}, got {quote(cell)}")
    return value


def _float_limit(dtype: DataType) -> float:
    """The least float64 that rounds to infinity in this type: half a step above its greatest value."""
    info = np.finfo(dtype.numpy)
    return math.inf if dtype is DataType.DOUBLE else 2.0**info.maxexp - 2.0 ** (info.maxexp - info.nmant - 2)


_FLOAT_LIMITS = {dtype: _float_limit(dtype) for dtype in DataType if dtype.is_float}


def _read_integer(cell: str, dtype: DataType) -> int:
    word = cell.strip(" \t")
    if not DECIMAL.fullmatch(word):
        raise DecodeError(f"expected an integer, got {quote(cell)}")
    value = int(word) if len(word) < _MAX_INTEGER_TEXT and word.lstrip("+-").isdigit() else _whole(word, cell)
    low, high = _INTEGER_LIMITS[dtype]
    if not low <= value <= high:
        raise DecodeError(f"expected an integer from {low} to {high}, got {quote(cell)}")
    return value


def _whole(word: str, cell: str) -> int:
    """A whole decimal of any length; one far beyond 64 bits becomes another one that is, at no cost."""
    if not word.upper().partition("E")[0].strip("+-.0"):
        return 0
    try:
        number = decimal.Decimal(word)
        if number.adjusted() > _MAX_DIGITS:
            return int(math.copysign(1, number)) << 70
        if number.adjusted() >= 0 and number == number.to_integral_value():
            return int(number)
    except (decimal.InvalidOperation, decimal.Overflow):
        pass  # an exponent of twenty digits
    raise DecodeError(f"expected an integer, got {quote(cell)}")


_INTEGER_LIMITS = {
    dtype: (int(np.iinfo(dtype.numpy).min), int(np.iinfo(dtype.numpy).max))
    for dtype in DataType
    if dtype.is_integer
}


def _read_bool(cell: str) -> bool:
    word = cell.strip(" \t").lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise DecodeError(f"expected true, false, 1 or 0, got {quote(cell)}")


def _reader(dtype: DataType) -> Callable[[str], Any]:
    if dtype.is_float:
        return lambda cell: _read_float(cell, dtype)
    if dtype.is_integer:
        return lambda cell: _read_integer(cell, dtype)
    return _read_bool if dtype is DataType.BOOL else str


# By input type: a cell's text to its value, or a DecodeError without a place.
READERS = {dtype: _reader(dtype) for dtype in DataType}
