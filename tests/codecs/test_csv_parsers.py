"""No parser of text/csv differs from the exact one, and no cut between chunks changes what a body means."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_laws import decode_rows, signature
from onnx_serve.codecs import csv, csv_parsers
from onnx_serve.codecs.csv_arrow import parse_columns, parse_uniform
from onnx_serve.codecs.csv_parsers import parse_exactly, parse_plain, parse_with_loadtxt
from onnx_serve.codecs.csv_table import fixed_table
from onnx_serve.codecs.interface import CodecOptions
from onnx_serve.errors import DecodeError
from onnx_serve.tensors import Signature, Tensors

Parser = Callable[[bytes, Any], Tensors | None]

MODELS = {
    "float": signature(("x", "float", ["N", 2])),
    "double": signature(("x", "double", ["N", 2])),
    "half": signature(("x", "float16", ["N", 2])),
    "one float": signature(("x", "float", ["N"])),
    "int8": signature(("x", "int8", ["N", 2])),
    "int64": signature(("x", "int64", ["N", 2])),
    "uint64": signature(("x", "uint64", ["N", 2])),
    "bool": signature(("x", "bool", ["N", 2])),
    "string": signature(("x", "string", ["N"])),
    "strings": signature(("x", "string", ["N", 2])),
    "int, string": signature(("i", "int32", ["N", 1]), ("s", "string", ["N"])),
    "float, string": signature(("f", "float", ["N", 1]), ("s", "string", ["N"])),
    "float, int": signature(("f", "double", ["N", 1]), ("i", "int64", ["N"])),
    "int8, uint16": signature(("a", "int8", ["N", 1]), ("b", "uint16", ["N"])),
    "string, bool": signature(("s", "string", ["N", 1]), ("b", "bool", ["N"])),
}
PARSERS: dict[str, Parser] = {
    "plain": parse_plain,
    "loadtxt": parse_with_loadtxt,
    "uniform": parse_uniform,
    "columns": parse_columns,
}
# Where the libraries are known to differ from each other or from RFC 4180.
CELLS = [
    *(
        "1",
        "-1",
        "+1",
        " 1\t",
        "007",
        "-0",
        "1.",
        ".5",
        "-.5e1",
        "1e2",
        "1E+2",
        "3.0",
        "3.5",
        "1e-400",
        "0e99",
    ),
    *("128", "-129", "255", "70000", "9007199254740993", "9223372036854775808", "18446744073709551616"),
    *(
        "65519.99",
        "65520",
        "3.4028235677973365e38",
        "3.4028235677973366e38",
        "1e39",
        "1e308",
        "1e309",
        "1e999",
    ),
    *("1e99999999999999999999", "-1e99999999999999999999", "1.00000000000000000000000001", "1" * 400),
    *(
        "nan",
        "-NaN",
        "+nan",
        "nAn",
        "inf",
        "-Infinity",
        "+iNf",
        "infinit",
        "nan(1)",
        "inf1",
        "",
        " ",
        "NA",
        " NA ",
    ),
    *(
        "N/A",
        "null",
        "None",
        "<NA>",
        "#N/A",
        "Nan",
        "1_0",
        "0x10",
        "0X1f",
        "-0x1",
        "1e0x1",
        "0b1",
        "1d5",
        "1j",
    ),
    *(
        "abc",
        "1 2",
        "- 1",
        "--1",
        "+-1",
        "e5",
        ".",
        "1..2",
        "#1",
        "1;2",
        "\u0661",
        "\uff11",
        "1\xa0",
        "\x0b1",
    ),
    *(
        "\x1c1",
        "1\x0c",
        "\u2028",
        "true",
        "FALSE",
        "tRuE",
        " true",
        "yes",
        "t",
        "\ufeff1",
        "\\n",
        "'1'",
        "0.1",
    ),
    *('"1"', '" 1 "', '""', '"1,2"', '"a""b"', '"1"2', '1"2"', ' "1"', '"1" ', '"', '"""', '"1\n"', '"\n1"'),
    *('"a\r\nb"', '"a\rb"', '"\r"', "a\rb", "1\r", "\x00", "1\x002", '"NA"', '"true"', '"x', "x\t", '"0x1"'),
]
SHAPES = [
    b"",
    b"\n",
    b"\r\n",
    b"\n\n",
    b"\r",
    b"\r\r\n",
    b",",
    b",\n",
    b" \n",
    b",,\n",
    b"1\n",
    b"1,2",
    b"1,2\r\n3,4\r\n",
    b"1,2\r3,4\n",
    b"1,2\n\n3,4\n",
    b"\n1,2\n",
    b"1,2\n\n",
    b"1,2\n\r\n",
    b",,\n\r\n",
    b"1,2\n3\n",
    b"1,2\n3,4,5\n",
    b"1\n2,3,4\n",
    b"1,2\n3,4\r",
    b"1\n\n2",
    b"1\n\n2\n\r\n3\n",
    b"\n\n\n1\n",
    b"\xef\xbb\xbf1,2\n",
    b"\xef\xbb\xbf\xef\xbb\xbf1,2\n",
    b"1,2\n\xef\xbb\xbf3,4\n",
    b"\xff\n",
    b"1,\xc3\n",
    b'1,"2\n3,4\n',
    b'"1,2\n',
    b'"1","2"\n"3","4"\n',
    b'"a\nb",1\n2,"c\n\n"\n',
    b'a"b,c\nd"e,f\n',
    b'1,2\na"b",1\n',
    b'1,2\n"a"b,""\n',
    b'1,2\n"1"2,""\n',
    b'""\n""\n',
    b"1,0x\n2,3\n",
    b"0x10,1\n",
]
BODIES = SHAPES + [f"{cell},1\n".encode() for cell in CELLS] + [f"1,{cell}\n0,0".encode() for cell in CELLS]
BODIES += [f"{cell}\n".encode() for cell in CELLS]


def outcome(parse: Callable[[], Tensors]) -> str | tuple[Any, ...]:
    """Arrays down to their bits, or the error's text."""
    try:
        tensors = parse()
    except DecodeError as ex:
        return str(ex)
    return tuple((name, a.dtype, a.shape, values(a)) for name, a in tensors.items())


def values(array: npt.NDArray[Any]) -> Any:
    # NaNs of equal meaning may differ in sign: parsers are free there.
    return (np.where(array != array, np.nan, array) if array.dtype.kind == "f" else array).tolist().__repr__()  # noqa: PLR0124 - finds NaN


def check_agreement(chunk: bytes, model: Signature) -> int:
    """Each fast parser declines or agrees with the exact one; returns how many did not decline."""
    table = fixed_table(model)
    assert table is not None
    exact = outcome(lambda: parse_exactly(chunk, table, 1))
    agreed = 0
    for name, parser in PARSERS.items():
        if table.uniform is None and name != "columns":
            continue
        block = parser(chunk, table)
        if block is not None:
            assert outcome(lambda block=block: block) == exact, (name, chunk)  # type: ignore[misc]
            agreed += 1
    return agreed


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_fast_parsers_agree_with_the_exact_one_on_nasty_bodies(model: Signature) -> None:
    agreed = sum(check_agreement(body.removeprefix(b"\xef\xbb\xbf"), model) for body in BODIES[1:])
    assert agreed > 10


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(CELLS), min_size=1, max_size=3).map(",".join), min_size=1, max_size=4),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(list(MODELS)),
)
def test_fast_parsers_agree_with_the_exact_one_on_any_mix_of_cells(
    lines: list[str], ending: str, name: str
) -> None:
    check_agreement((ending.join(lines) + ending).encode(), MODELS[name])


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.sampled_from('01-+.eExn,,"\n\r \tNa('), min_size=1, max_size=16), st.sampled_from(list(MODELS))
)
def test_fast_parsers_agree_with_the_exact_one_on_any_text(text: str, name: str) -> None:
    check_agreement(text.encode(), MODELS[name])


@pytest.mark.parametrize("name", ["float", "int64", "uint64", "int, string", "float, int"])
def test_large_bodies_mean_what_small_ones_do(name: str) -> None:
    """Behind enough good rows to reach pyarrow, a body has the same rows or the same error further down."""
    model, good = MODELS[name], b"1%s,2\n" % (b" " * 40)
    table = fixed_table(model)
    assert table is not None
    rows = 3000
    assert parse_uniform(good * rows, table) if table.uniform else parse_columns(good * rows, table)
    options = CodecOptions(csv_header="absent")

    def tail_of(body: bytes, rows_before: int) -> Any:
        try:
            tensors = decode_rows(csv.codec, body, model, options=options)
        except DecodeError as ex:
            return ex.problem, (ex.line or 0) - rows_before, ex.column
        return [values(array[rows_before - 1 :]) for array in tensors.values()]

    for body in [*BODIES[1::20], b"1,2\n3,4", b"1,\n", b"5,0x1\n"]:
        tail = body.removeprefix(b"\xef\xbb\xbf")
        assert tail_of(good * rows + tail, rows) == tail_of(good + tail, 1), body


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk_bytes", [1, 7, 64])
def test_the_size_of_chunks_changes_nothing(name: str, chunk_bytes: int) -> None:
    for body in BODIES[1::3]:
        results = []
        for size in (1 << 20, chunk_bytes):
            options = CodecOptions(csv_header="absent", chunk_bytes=size)
            results.append(
                outcome(lambda o=options, b=body: decode_rows(csv.codec, b, MODELS[name], options=o))  # type: ignore[misc]
            )
        assert results[0] == results[1], body


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("float", b"1,-2.5e-3\n0.0,12345678901234567890\n"),
        ("double", b"0.1,-0.0\r\n1E5,3"),
        ("half", b"1,65504\n"),
        ("one float", b"1"),
        ("int8", b"-128,127\n"),
        ("int64", b"9007199254740993,-9223372036854775808\n"),
        ("uint64", b"18446744073709551615,0\n"),
    ],
)
def test_plain_numbers_need_no_other_parser(name: str, body: bytes) -> None:
    table = fixed_table(MODELS[name])
    assert table is not None
    assert parse_plain(body, table) is not None
    check_agreement(body, MODELS[name])


def test_the_exact_parser_joins_what_it_reads_in_pieces() -> None:
    rows = csv_parsers._EXACT_CELLS + 3
    table = fixed_table(MODELS["float, string"])
    assert table is not None
    block = parse_exactly(b"".join(b"%d,v\n" % row for row in range(rows)), table, 1)
    assert block["f"].tolist() == [[row] for row in range(rows)]
    assert block["s"].tolist() == ["v"] * rows


def test_pyarrow_is_imported_by_the_first_body_that_goes_through_it() -> None:
    """Importing it costs tens of milliseconds, which a start or a small request should not pay."""
    program = """
import sys
from codec_laws import decode_rows, signature
from onnx_serve.codecs import table
model = signature(("x", "float", ["N", 2]))
for rows in (1000, 100_000):
    decode_rows(table.BY_MEDIA_TYPE["text/csv"], b"1,NA\\n" * rows, model)
    print("pyarrow" in sys.modules)
"""
    search = f"import sys; sys.path[:0] = {sys.path!r}\n"
    result = subprocess.run(
        [sys.executable, "-c", search + program], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["False", "True"]
