"""text/csv's first line: names, a record, or a placeholder; alone and as a mini-batch of Batch Transform."""

from typing import Any

import numpy as np
import pytest

from codec_laws import decode, signature
from onnx_serve.codecs import csv
from onnx_serve.codecs.interface import CodecOptions, MediaType
from onnx_serve.errors import DecodeError
from onnx_serve.tensors import RowAxis, Signature

NUMBERS = signature(("x", "float", ["N", 2]))
ONE_RUN = signature(("x", "float", [2]), row_axis=RowAxis.NONE)
TEXTS = signature(("x", "string", ["N", 2]))
PAIR = signature(("a", "float", ["N", 1]), ("b", "float", ["N"]))
MIXED = signature(("i", "int32", ["N", 1]), ("s", "string", ["N"]))
WIDE_MIXED = signature(("x", "float", ["N", 2]), ("s", "string", ["N"]))
FLAGS = signature(("x", "bool", ["N", 2]))


def first_column(
    body: bytes, model: Signature, *, media: dict[str, str] | None = None, **options: Any
) -> list[Any]:
    media_type = MediaType("text/csv", media or {})
    [(_, blocks)] = decode(csv.codec, body, model, media_type=media_type, options=CodecOptions(**options))
    return [value for block in blocks for value in block[model.inputs[0].name].reshape(-1).tolist()]


@pytest.mark.parametrize(
    ("body", "model", "options", "expected"),
    [
        (b"u,v\n1,2\n", NUMBERS, {}, [1, 2]),
        (b"2020_a,1e\n1,2\n", NUMBERS, {}, [1, 2]),
        (b"u,v\r\n", NUMBERS, {}, []),
        (b"u,v\r\n", ONE_RUN, {}, []),
        (b"u,v\n1,2", NUMBERS, {"chunk_bytes": 4}, [1, 2]),
        (b"nan,inf\n", NUMBERS, {}, [np.nan, np.inf]),
        (b",\n", NUMBERS, {}, [np.nan, np.nan]),
        (b"True,false\n", FLAGS, {}, [True, False]),
        (b"u,v\n1,0\n", FLAGS, {}, [True, False]),
        (b"b,a\n1,2\n3,4\n", PAIR, {}, [2, 4]),
        (b'"b","a"\n1,2\n', PAIR, {"csv_header": "present"}, [2]),
        (b"u,v\n", TEXTS, {}, ["u", "v"]),
        (b"u,v\nw,x\n", TEXTS, {"csv_header": "present"}, ["w", "x"]),
        (b"u,v\nw,x\n", TEXTS, {"csv_header": "skip"}, ["u", "v", "w", "x"]),
        (b"1,2\n3,4\n", NUMBERS, {"csv_header": "present"}, [3, 4]),
        (b"u,v\r\n1,2\n", NUMBERS, {"csv_header": "skip"}, [0, 0, 1, 2]),
        (b"u,v", FLAGS, {"csv_header": "skip"}, [False, False]),
        (b"u,v\n1,2\n", NUMBERS, {"csv_header": "skip", "batch": True}, [0, 0, 1, 2]),
        (b"y,x\n1,2\n", PAIR, {"csv_header": "skip"}, [0, 1]),
        (b"1,2\n", NUMBERS, {"csv_header": "skip"}, [1, 2]),
        (b"1,2\n", NUMBERS, {"batch": True}, [1, 2]),
        (b"u,v\n1,2\n", NUMBERS, {"batch": True, "csv_header": "present"}, [1, 2]),
        (b"u,v\n1,2\n", NUMBERS, {"batch": True, "media": {"header": "present"}}, [1, 2]),
        (b"b,a\n1,2\n", PAIR, {"batch": True, "csv_header": "present"}, [2]),
        (b"s,i\n1,2\n", MIXED, {"batch": True, "csv_header": "present"}, [2]),
        (b"1,2\n3,4\n", TEXTS, {"batch": True, "csv_header": "present"}, ["3", "4"]),
        (b"u,v,4\n1,2,w\n", WIDE_MIXED, {"batch": True, "csv_header": "present"}, [1, 2]),
        (b"u,v\n1,2\n", NUMBERS, {"media": {"header": "present"}, "csv_header": "absent"}, [1, 2]),
        (b"u,v\n1,2\n", TEXTS, {"media": {"header": "PRESENT"}}, ["1", "2"]),
        (b"1,2\n", NUMBERS, {"media": {"header": "absent"}, "csv_header": "present"}, [1, 2]),
        (b"1,2\n", NUMBERS, {"media": {"charset": "UTF-8"}}, [1, 2]),
    ],
)
def test_header(body: bytes, model: Signature, options: dict[str, Any], expected: list[Any]) -> None:
    np.testing.assert_array_equal(first_column(body, model, **options), expected)


@pytest.mark.parametrize(
    ("body", "model", "options", "message"),
    [
        (
            b"u,v\n1,2\n",
            NUMBERS,
            {"batch": True},
            "where it comes with all of its records, say so: text/csv; header=present (line 1)",
        ),
        (b"u,v\n1,2\n", NUMBERS, {"csv_header": "absent"}, 'got "u" (line 1, column 1)'),
        (b"u,1\n1,2\n", NUMBERS, {}, 'got "u" (line 1, column 1)'),
        (b"u,v\n1,x\n", NUMBERS, {}, 'got "x" (line 2, column 2)'),
        (b"u,v\n1,x\n", NUMBERS, {"csv_header": "skip"}, 'got "x" (line 2, column 2)'),
        (b'"u\nu",v\n1,x\n', NUMBERS, {"csv_header": "skip"}, 'got "x" (line 3, column 2)'),
        (
            b"u,2\n1,2\n",
            NUMBERS,
            {"batch": True, "csv_header": "present"},
            'as "present" says, got "2"; Batch Transform sends the header in the first mini-batch only',
        ),
        (
            b"1,2\n",
            NUMBERS,
            {"batch": True, "media": {"header": "present"}},
            'csv_header to "skip" instead to answer it with a placeholder row (line 1, column 1)',
        ),
        (b"u,True\n", FLAGS, {"batch": True, "csv_header": "present"}, 'says, got "True"'),
        (b"1,2\n", PAIR, {"batch": True, "csv_header": "present"}, 'says, got "1"'),
        (b"a,b,3\n", PAIR, {"batch": True, "csv_header": "present"}, 'says, got "3"'),
        (b"7,w\n", MIXED, {"batch": True, "csv_header": "present"}, 'says, got "7"'),
        (
            b"w,7\n",
            MIXED,
            {"batch": True, "csv_header": "present"},
            'missing "i", "s"; unknown "w", "7" (line 1)',
        ),
        (b"1,2,w\n", WIDE_MIXED, {"batch": True, "csv_header": "present"}, 'says, got "1"'),
        (b"u\n", NUMBERS, {"batch": True, "csv_header": "present"}, "expected 2 columns, got 1 (line 1)"),
        (b"u,v,w\n1,2\n", NUMBERS, {}, "expected 2 columns, got 3 (line 1)"),
        (b"u\n", NUMBERS, {"csv_header": "skip"}, "expected 2 columns, got 1 (line 1)"),
        (b"a,c\n1,2\n", PAIR, {}, 'missing "b"; unknown "c" (line 1)'),
        (b"a,b,a\n1,2,3\n", PAIR, {}, 'repeated "a" (line 1)'),
        (b"z,y,x,w,v,u,t\n", PAIR, {}, 'unknown "z", "y", "x", "w", "v" and 2 more'),
        (b"a," * 50_000 + b"b\n", PAIR, {}, "expected 2 columns, got 50001 (line 1)"),
        (b"1,2\n", NUMBERS, {"media": {"header": "maybe"}}, 'header=absent, got "maybe"'),
        (b"1,2\n", NUMBERS, {"media": {"charset": "latin-1"}}, 'charset=utf-8, got "latin-1"'),
    ],
)
def test_header_errors(body: bytes, model: Signature, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DecodeError) as caught:
        first_column(body, model, **options)
    assert message in str(caught.value)


def test_a_run_with_a_free_dimension_may_have_a_header() -> None:
    model = signature(("x", "float", ["L"]), row_axis=RowAxis.NONE)
    assert first_column(b"u,v\n1,2\n3\n", model) == [1, 2, 3]
    assert first_column(b"u,v\n1,2\n3\n", model, csv_header="skip") == [0, 0, 1, 2, 3]
