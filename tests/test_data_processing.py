import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_serve.batch.data_processing import DataProcessing, data_format
from onnx_serve.batch.json_path import parse_path
from onnx_serve.errors import RequestError, UnsupportedMediaType

CSV, JSON, JSONL = "text/csv", "application/json", "application/jsonlines"


def processing(input_filter: str = "$", output_filter: str = "$", *, join: bool = False) -> DataProcessing:
    return DataProcessing(parse_path(input_filter), join, parse_path(output_filter))


def test_without_choices_every_byte_passes() -> None:
    none = processing()

    assert not none.active
    assert none.request(b"\xff\r\n\n x", None, whole=False) == b"\xff\r\n\n x"
    assert none.answer(b"in", b"\xff\r\n", "image/png", whole=False) == b"\xff\r\n"


@pytest.mark.parametrize(
    ("media_type", "whole", "path", "data", "sent"),
    [
        (CSV, False, "$[1:]", b"id,1,2\r\nid2,3,4", b"1,2\n3,4\n"),
        (CSV, False, "$[-1]", b"1,2,3\n", b"3\n"),
        (CSV, False, "$[0,2]", b'"a,b",x,"say ""hi"""\n', b'"a,b","say ""hi"""\n'),
        (CSV, False, "$[1]", b'"a",1e30\n', b"1e30\n"),
        (CSV, True, "$[1:]", b"1,2\n3,4\n", b"2\n4\n"),
        ("text/csv; charset=utf-8", False, "$[0]", 'ü,"ä"\n'.encode(), "ü\n".encode()),
        (JSONL, False, "$.features", b'{"id":1,"features":[1.5,2]}\n{"features":[3]}\n', b"[1.5,2]\n[3]\n"),
        (JSON, False, "$['a','b']", b'{"a":1,"b":2,"c":3}\n', b'{"a":1,"b":2}\n'),
        (JSON, True, "$.x", b'{\n "x": [1,\n 2]\n}\n', b"[1,2]\n"),
    ],
)  # fmt: skip
def test_input_filter(media_type: str, whole: bool, path: str, data: bytes, sent: bytes) -> None:
    assert processing(path).request(data, media_type, whole=whole) == sent


@pytest.mark.parametrize(
    ("media_type", "whole", "data", "answer", "joined"),
    [
        (CSV, False, b"1,2\r\n3,4", b"0.5\n0.6\n", b"1,2,0.5\n3,4,0.6\n"),
        (JSONL, False, b'{"key":1}\n', b'{"label":1}\n', b'{"key":1,"SageMakerOutput":{"label":1}}\n'),
        (JSONL, False, b" {} \n", b"[1]\n", b'{"SageMakerOutput":[1]}\n'),
        (JSONL, False, b"[1,2]\n", b"3\n", b'{"SageMakerInput":[1,2],"SageMakerOutput":3}\n'),
        (JSON, True, b'{\n"k": 12345678901234567890.5 }\n', b'{"predictions":[1]}\n',
         b'{\n"k": 12345678901234567890.5,"SageMakerOutput":{"predictions":[1]}}\n'),
    ],
)  # fmt: skip
def test_join(media_type: str, whole: bool, data: bytes, answer: bytes, joined: bytes) -> None:
    """The record comes first, as it was written, then its answer."""
    assert processing(join=True).answer(data, answer, media_type, whole=whole) == joined


@pytest.mark.parametrize(
    ("media_type", "path", "data", "answer", "kept"),
    [
        (CSV, "$[0,-1]", b"id1,1,2\nid2,3,4\n", b"0.5\n0.6\n", b"id1,0.5\nid2,0.6\n"),
        (JSONL, "$['id','SageMakerOutput']", b'{"id":1,"x":[1]}\n', b"[0.5]\n", b'{"id":1,"SageMakerOutput":[0.5]}\n'),
        (JSONL, "$.SageMakerOutput.label", b'{"x":1}\n', b'{"label":"a"}\n', b'"a"\n'),
    ],
)  # fmt: skip
def test_output_filter_selects_from_the_joined_record(
    media_type: str, path: str, data: bytes, answer: bytes, kept: bytes
) -> None:
    assert processing(output_filter=path, join=True).answer(data, answer, media_type, whole=False) == kept


def test_output_filter_without_join_selects_from_the_answer() -> None:
    assert processing(output_filter="$[1]").answer(b"x\n", b"0,0.9\n", CSV, whole=False) == b"0.9\n"


@pytest.mark.parametrize(
    ("chosen", "media_type", "data", "answer", "words"),
    [
        (processing(join=True), CSV, b"1\n2\n", b"1\n", "each of 2, got 1"),
        (processing(join=True), JSONL, b"{\n", b"1\n", r'expected JSON, got "\{" \(record 5\)'),
        (processing(join=True), JSONL, b"{}\n", b"oops\n", 'expected JSON, got "oops"'),
        (processing(join=True), JSONL, b'{"SageMakerOutput":1}\n', b"1\n", "reserved"),
        (processing(output_filter="$[4]"), CSV, b"", b"1,2\n", r"no index 4 \(record 5\)"),
        (processing(output_filter="$[4:]"), CSV, b"", b"1,2\n", "selects none of 2 columns"),
        (processing(output_filter="$.name"), CSV, b"", b"1,2\n", "expected an object, got an array"),
        (processing(output_filter="$[0]"), CSV, b"", b'1,"2\n', "a row of CSV"),
        (processing(output_filter="$[0]"), CSV, b"", b'a"b,"c"d\n', "a row of CSV"),
        (processing(output_filter="$[0]"), "image/png", b"", b"", 'got "image/png"'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error_with_its_record(
    chosen: DataProcessing, media_type: str, data: bytes, answer: bytes, words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        chosen.answer(data, answer, media_type, whole=False, first=5)


def test_only_csv_and_json_have_records() -> None:
    assert data_format("Text/CSV;header=absent") == "csv"
    assert data_format("application/x-ndjson") == "json"
    with pytest.raises(UnsupportedMediaType):
        data_format(None)


def test_ragged_rows_do_not_fill_the_memory() -> None:
    chosen = processing("$[0]")
    data = b"".join(b"x" + b",y" * width + b"\n" for width in range(100))

    assert chosen.request(data, CSV, whole=False) == b"x\n" * 100
    assert len(chosen._columns) <= 16


cells = st.text(st.characters(exclude_characters="\r\n\x00", exclude_categories=["Cs"]), max_size=8)


@given(st.lists(st.lists(cells, min_size=2, max_size=5), min_size=1, max_size=5))
def test_csv_columns_are_those_of_the_csv_module(rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)

    kept = processing("$[0,-1]").request(text.getvalue().encode(), CSV, whole=False).decode()
    # newline="" as the csv module wants it, and only the newline ends a line here.
    assert list(csv.reader(kept.split("\n")[:-1])) == [[row[0], row[-1]] for row in rows]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.tuples(values, values), min_size=1, max_size=4))
def test_a_join_is_what_json_says_it_is(pairs: list[tuple[object, object]]) -> None:
    data = b"".join(json.dumps(record).encode() + b"\n" for record, _ in pairs)
    answer = b"".join(json.dumps(answer).encode() + b"\n" for _, answer in pairs)

    joined = processing(join=True).answer(data, answer, JSONL, whole=False).splitlines()

    for line, (record, given_) in zip(joined, pairs, strict=True):
        expected = record if isinstance(record, dict) else {"SageMakerInput": record}
        assert json.loads(line) == {**expected, "SageMakerOutput": given_}
