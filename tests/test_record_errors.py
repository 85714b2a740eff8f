"""Bad records in their places: count and order hold, and a good record's answer knows nothing of the bad ones."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec_laws import signature
from onnx_serve import batching, record_errors
from onnx_serve.admission import Admission
from onnx_serve.batching import Engine
from onnx_serve.codecs.interface import BadRecord, Body, CodecOptions, Document
from onnx_serve.errors import (
    Abandoned,
    DeadlineExceeded,
    DecodeError,
    InferenceError,
    InputRefused,
    MismatchError,
    OutOfMemory,
    ServeError,
)
from onnx_serve.inference import Inference, Limits
from onnx_serve.tensors import Feed, MapTable, RowAxis, Signature, Tensors, Values, conform

Run = Callable[[Feed], Values]

CSV, JSON, LINES = "text/csv", "application/json", "application/jsonlines"
PAIR = signature(("x", "float", ["N", 2]), outputs=[("y", "float", ["N", 2])])
FIXED = signature(
    ("x", "float", [3, 2]), outputs=[("y", "float", [3, 2])], row_axis=RowAxis.FIXED, fixed_rows=3
)
ALONE = replace(PAIR, row_axis=RowAxis.FIXED, fixed_rows=1)
ONE_RUN = signature(("x", "float", [2]), outputs=[("y", "float", [2])], row_axis=RowAxis.NONE)
# What the operator of the models below cannot take.
REFUSED = 13


def double(feed: Feed) -> dict[str, Any]:
    """Twice x, for values other than 13."""
    if (feed["x"] == REFUSED).any():
        raise InputRefused("Gather: an index is out of bounds")
    return {"y": feed["x"] * 2}


def inference(
    run: Run = double, model: Signature = PAIR, *, block_rows: int = 4, **options: Any
) -> Inference:
    options = {"record_errors": "placeholder", **options}
    limits = Limits(1 << 20, lambda: 1 << 30, timeout_s=options.pop("timeout_s", 0))
    engine = Engine(run, model, slots=2, block_rows=block_rows)
    return Inference(engine, Admission(2, 2, 1.0), CodecOptions(**options), limits)


def ask(target: Inference, body: str | bytes, content_type: str = CSV, accept: str = JSON) -> str:
    data = body.encode() if isinstance(body, str) else body
    reply = target(Body(io.BytesIO(data), len(data)), content_type, accept)
    assert isinstance(reply.content, bytes)
    return reply.content.decode()


def predictions(answer: str) -> list[Any]:
    return [item for line in answer.splitlines() for item in json.loads(line)["predictions"]]


def is_error(item: Any) -> bool:
    return isinstance(item, dict) and item.keys() == {"error"}


# The text of a record in each format, None for what only another format can hold.
Texts = tuple[str | None, str | None]
GOOD_CELLS = st.integers(-9, 9).map(float) | st.just(0.5)
BAD: list[Texts] = [
    ("", ""),
    ("1", "[1]"),
    ("1,2,3", "[1,2,3]"),
    ("x,2", '["x",2]'),
    ("1,1e99", "[1,1e99]"),
    ("13,2", "[13,2]"),
    ('1,"2" ', '{"features":[1]}'),
    ('1,2"', "[1,2"),
    ("1,\0", '{"y":[1,2]}'),
    (None, "[1,2]]"),
    (None, "null"),
    (None, '"\\ud800"'),
]


@st.composite
def bodies(draw: st.DrawFn, content_type: str) -> list[tuple[str, bool]]:
    """Records as texts, and whether each is good."""
    place = 0 if content_type == CSV else 1
    good = st.tuples(GOOD_CELLS, GOOD_CELLS).map(
        lambda row: (f"{row[0]},{row[1]}" if content_type == CSV else json.dumps(row), True)
    )
    bad = st.sampled_from([(text, False) for texts in BAD if (text := texts[place]) is not None])
    return draw(st.lists(good | good | bad, min_size=1, max_size=24))


@pytest.mark.parametrize("model", [PAIR, FIXED, ALONE, ONE_RUN], ids=["free", "fixed", "alone", "one run"])
@pytest.mark.parametrize("content_type", [CSV, LINES])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_good_records_are_answered_as_if_they_were_alone(
    content_type: str, model: Signature, data: st.DataObject
) -> None:
    """For any body, cut anyhow: one answer a record, in order, and the good ones as without the bad ones."""
    records = data.draw(bodies(content_type))
    chunk_bytes = data.draw(st.sampled_from([1, 8, 64, 1 << 20]))
    end = data.draw(st.sampled_from(["", "\n"])) or "\n" * (not records[-1][0])
    target = inference(model=model, chunk_bytes=chunk_bytes, csv_header="absent", batch=True)
    body = "\n".join(text for text, _ in records) + end
    good = "\n".join(text for text, is_good in records if is_good)

    expected = iter(predictions(ask(target, good, content_type))) if good else iter([])
    got = predictions(ask(target, body, content_type))
    assert len(got) == len(records)
    for item, (_, is_good) in zip(got, records, strict=True):
        assert (item == next(expected)) if is_good else is_error(item)
    lines = [json.loads(line) for line in ask(target, body, content_type, LINES).splitlines()]
    assert lines == got
    rows = list(csv.reader(io.StringIO(ask(target, body, content_type, CSV))))
    assert rows == [["ERROR"] * 2 if is_error(item) else [str(cell) for cell in item] for item in got]


JSON_BAD = [
    "[1]",
    "[1,2,3]",
    '["x",2]',
    "[13,2]",
    '{"features":[1]}',
    "null",
    "5",
    '{"y":[1,2]}',
    "[[[1]]]",
]
LAYOUTS: dict[str, Callable[[Sequence[str]], str]] = {
    "instances": lambda records: f'{{"instances": [{",".join(records)}]}}',
    "bare list": lambda records: f"[{','.join(records)}]",
    "documents": "\n".join,
    "frame": lambda records: (
        f'{{"dataframe_split": {{"columns": ["a", "b"], "data": [{",".join(records)}]}}}}'
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(GOOD_CELLS, GOOD_CELLS).map(json.dumps) | st.sampled_from(JSON_BAD), min_size=1)
)
def test_bad_records_in_json(layout: str, rows: list[str]) -> None:
    """In every layout of records, each bad one is an object with its error among the predictions."""
    if layout == "bare list" and not any(row.startswith(("[", "{")) for row in rows):
        rows.append("[1,2]")  # a list of scalars would be one record
    target = inference()
    good = [row for row in rows if row not in JSON_BAD]

    expected = [[2 * value for value in json.loads(row)] for row in good]
    got = predictions(ask(target, LAYOUTS[layout](rows), JSON))
    assert [is_error(item) for item in got] == [row in JSON_BAD for row in rows]
    assert [item for item in got if not is_error(item)] == expected


@pytest.mark.parametrize(
    ("content_type", "body", "errors"),
    [
        (
            CSV,
            '1,2\n\n3\n4,x\n5,6,7\n8,"9\n',
            [
                None,
                "expected 2 columns, got an empty line (line 2)",
                "expected 2 columns, got 1 (line 3)",
                'expected a number, got "x" (line 4, column 2)',
                "expected 2 columns, got 3 (line 5)",
                "a quoted cell has no end (line 6, column 2)",
            ],
        ),
        (
            CSV,
            "1,2\nx,0\n13,13\n3,4\n13,0\n",
            [
                None,
                'expected a number, got "x" (line 2, column 1)',
                "Gather: an index is out of bounds (record 3)",
                None,
                "Gather: an index is out of bounds (record 5)",
            ],
        ),
        (
            LINES,
            "[1,2]\n\n[3,\n[4,5,6]\n{}\n",
            [
                None,
                "expected a record, got an empty line (line 2)",
                "expected JSON: expecting value (line 3, column 4)",
                'input "x": expected FLOAT[2], got 3 values (line 4)',
                "expected a list, an object with the inputs",
            ],
        ),
        (
            JSON,
            '{"instances": [[1,2], [3,null], [4,true], 5]}',
            [None, None, 'input "x": expected FLOAT[2], got true at [1] (record 3)', "got 5 (record 4)"],
        ),
        (
            JSON,
            '[1,2]\n[3,4\n{"instances": [[5,6],["x",0]]}\n{"foo": 1}\n \r\n"z"\n[[[1]]]\n[1,2,3]\n[7,8]',
            [
                None,
                "document 2: expected JSON: expecting ',' delimiter (line 2, column 5)",
                None,
                'document 3: input "x": expected FLOAT[2], got "x" at [0] (record 2)',
                'document 4: expected {"instances": [...]}',
                "document 5: expected",
                'document 6: input "x": expected FLOAT[2], got 1 values (record 1)',
                "document 7: a flat list of 3 values is neither one record of 2 values",
                None,
            ],
        ),
        (LINES, "[1,2]\n[13,0]\n", [None, "Gather: an index is out of bounds (line 2)"]),
        (
            JSON,
            "[1,2]\n[]\n[[3,4],[13,0]]\n[[5,6]]",
            [None, None, "document 3: Gather: an index is out of bounds (record 2)", None],
        ),
        (JSON, '{"instances": [[1,2]', ["expected JSON: expecting"]),
        (JSON, "nonsense", ["expected JSON: expecting value (line 1, column 1)"]),
        (
            JSON,
            '{"dataframe_records": [{"a": 1}, 7, {"a": 1, "b": 2}, {"b": 3, "a": 4, "c": 5}]}',
            [
                'expected the columns of the other records, an object with the keys "a", "b", got',
                "expected an object by column name, got 7 (record 2)",
                None,
                'got an object with the keys "b", "a", "c" (record 4)',
            ],
        ),
        (JSON, '{"dataframe_records": [7, null]}', ["got 7 (record 1)", "got null (record 2)"]),
    ],
)
def test_an_error_says_what_and_where(content_type: str, body: str, errors: list[str | None]) -> None:
    got = predictions(ask(inference(), body, content_type))

    assert [is_error(item) for item in got] == [error is not None for error in errors]
    for item, error in zip(got, errors, strict=True):
        if error is not None:
            assert error in item["error"]
            assert "\n" not in item["error"]


def test_a_bare_list_that_is_no_record_is_one_bad_record() -> None:
    model = signature(("x", "float", ["N", 2, 2]), outputs=[("y", "float", ["N", 2, 2])])

    got = predictions(ask(inference(model=model), "[1,2]\n[[1,2],[3,4]]\n[[[1,2],[3,4]],5]", JSON))
    assert got[0]["error"].startswith("document 1: expected a list of records of the inputs")
    assert got[1:3] == [[[2, 4], [6, 8]]] * 2
    assert got[3]["error"] == 'document 3: input "x": expected FLOAT[2, 2], got 5 (record 2)'


@pytest.mark.parametrize(
    ("content_type", "accept", "body", "kind"),
    [
        (CSV, "application/x-npy", "1,2\n3,x\n", DecodeError),
        (CSV, "application/x-npy", "1,2\n13,0\n", InputRefused),
        (JSON, JSON, '{"inputs": {"x": [[1,2],[3,"x"]]}}', DecodeError),
        (JSON, JSON, '{"inputs": {"x": [[13,2]]}}', InputRefused),
        (
            JSON,
            CSV,
            '{"inputs": [{"name": "x", "shape": [1,2], "datatype": "FP32", "data": [1]}]}',
            DecodeError,
        ),
        (JSON, JSON, '{"instances": 5}', DecodeError),
        (JSON, JSON, '{"dataframe_split": {"columns": ["a"], "data": [[1]]}}', DecodeError),
        (JSON, JSON, '{"dataframe_records": [{"a": 1}, {"a": 2}]}', DecodeError),
        (JSON, JSON, '[1,2]\n{"inputs": [[1,2,3]]}', DecodeError),
        (JSON, JSON, "", DecodeError),
        (JSON, JSON, '{"instances":\n[[1,2],\n[3,4}\n', DecodeError),
        (CSV + "; charset=latin-1", JSON, "1,2", DecodeError),
    ],
)
def test_what_has_no_place_fails_the_request(
    content_type: str, accept: str, body: str, kind: type[Exception]
) -> None:
    """Answers without a place for it, columns, and what is wrong with a whole body or envelope."""
    with pytest.raises(kind):
        ask(inference(), body, content_type, accept)


@pytest.mark.parametrize("content_type", [CSV, LINES, JSON])
def test_by_default_a_bad_record_fails_the_request(content_type: str) -> None:
    target = inference(record_errors="fail")

    for body in ("x,1", "13,0") if content_type == CSV else ('["x",1]', "[13,0]"):
        with pytest.raises((DecodeError, InputRefused)):
            ask(target, body, content_type)


@pytest.mark.parametrize("error", [InferenceError("no"), OutOfMemory("no")])
def test_the_servers_own_failures_are_no_records_fault(error: ServeError) -> None:
    def run(feed: Feed) -> Values:
        if (feed["x"] == REFUSED).any():
            raise error
        return {"y": feed["x"]}

    target = inference(run)
    with pytest.raises(type(error)):
        ask(target, "1,2\nx\n13,0\n")
    target.engine.close()


def test_a_request_may_take_so_long_only() -> None:
    with pytest.raises(DeadlineExceeded):
        ask(inference(timeout_s=1e-9), "13,2\n13,4\n")


HEADERS: list[tuple[str, dict[str, Any], str, list[Any]]] = [
    ("auto", {}, "a,b\n1,2\nx,4\n", [[2, 4], "(line 3, column 1)"]),
    ("auto, no names", {}, "1\n1,2\n", ["got 1 (line 1)", [2, 4]]),
    ("auto, blank", {}, "\n1,2\n", ["got an empty line (line 1)", [2, 4]]),
    ("auto, quotes", {}, '"1"2,3\n1,2\n', ["out of place (line 1, column 1)", [2, 4]]),
    # In a mini-batch nothing tells a header from a bad record, and either way it is answered in its place.
    ("auto in a job", {"batch": True}, "a,b\n1,2\n", ['got "a" (line 1, column 1)', [2, 4]]),
    ("present", {"csv_header": "present"}, "a,b\n1,2\n3\n", [[2, 4], "got 1 (line 3)"]),
    ("skip", {"csv_header": "skip"}, "a,b\n1,2\n3\n", [[0, 0], [2, 4], "got 1 (line 3)"]),
    ("skip, short", {"csv_header": "skip"}, "a\n1,2\n", ["got 1 (line 1)", [2, 4]]),
]


@pytest.mark.parametrize(
    ("options", "body", "expected"), [h[1:] for h in HEADERS], ids=[h[0] for h in HEADERS]
)
def test_headers(options: dict[str, Any], body: str, expected: list[Any]) -> None:
    got = predictions(ask(inference(**options), body))

    assert len(got) == len(expected)
    for item, wanted in zip(got, expected, strict=True):
        assert wanted in item["error"] if isinstance(wanted, str) else item == wanted


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ("a,c\n1,2\n", {}),
        ("1,2\n3,4\n", {"batch": True, "csv_header": "present"}),
        ('"a\n1,2\n', {"csv_header": "present"}),
    ],
)
def test_a_wrong_header_fails_the_request(body: str, options: dict[str, Any]) -> None:
    """Without its names, columns could feed the wrong inputs."""
    two = signature(("a", "float", ["N"]), ("b", "float", ["N"]), outputs=[("y", "float", ["N"])])

    with pytest.raises(DecodeError):
        ask(inference(lambda feed: {"y": feed["a"]}, two, **options), body)


FREE = signature(("x", "float", ["N", "L"]), outputs=[("y", "float", ["N", "L"])])
FREE_RUN = signature(("x", "float", ["L"]), outputs=[("y", "float", ["L"])], row_axis=RowAxis.NONE)


@pytest.mark.parametrize(
    ("model", "body", "expected"),
    [
        (FREE, "\nx,1,2\n1,2\n3\n4,5\n", ["", "", [2, 4], "", [8, 10]]),
        (FREE, '1"\n\n', ["", ""]),
        (FREE, "\n" * 40 + "1,2,3\n", [*[""] * 40, [2, 4, 6]]),
        (FREE_RUN, "\n1\nx\n2,3\n13\n", ["", [2], "", [4, 6], ""]),
    ],
    ids=["first good record", "none is good", "in a later chunk", "runs of any size"],
)
def test_the_first_good_record_sets_the_width(model: Signature, body: str, expected: list[Any]) -> None:
    got = predictions(ask(inference(model=model, chunk_bytes=8, csv_header="absent"), body))

    assert [item if isinstance(item, list) else "" for item in got] == expected


MAP = signature(
    ("x", "float", ["N", 2]), outputs=[("label", "int64", ["N"]), ("p", "seq(map(int64,tensor(float)))", [])]
)
WIDE = signature(("x", "float", ["N", 2]), outputs=[("a", "float", ["N", 2, 2]), ("s", "string", ["N"])])


def zip_map(feed: Feed) -> Values:
    return {"label": feed["x"][:, 0].astype(np.int64), "p": MapTable((0, 1, 2), np.ones((len(feed["x"]), 3)))}


def wide(feed: Feed) -> Values:
    rows = len(feed["x"])
    return {"a": np.zeros((rows, 2, 2), np.float32), "s": np.array(["t"] * rows, object)}


def ragged(feed: Feed) -> Values:
    return {"y": np.ones((len(feed["x"]), 3), np.float32)}


@pytest.mark.parametrize(
    ("run", "model", "body", "widths"),
    [
        (wide, WIDE, "x\nx\n", [5, 5]),
        (wide, WIDE, "x\n1,2\n", [5, 5]),
        (zip_map, MAP, "x\nx\n1,2\nx\n", [4, 4, 4, 4]),
        (zip_map, MAP, "x\nx\n", [2, 2]),
        (ragged, FREE, "x\n1,2\nx\n", [3, 3, 3]),
        (ragged, FREE, "x\nx\n", [1, 1]),
    ],
    ids=["declared", "declared, good", "good one behind", "map", "good one before", "free"],
)
def test_no_line_of_csv_is_ragged(run: Run, model: Signature, body: str, widths: list[int]) -> None:
    text = ask(inference(run, model, csv_header="absent"), body, accept=CSV)

    assert [line.count(",") + 1 for line in text.splitlines()] == widths
    assert [set(line.split(",")) == {"ERROR"} for line in text.splitlines()] == [
        line == "x" for line in body.splitlines()
    ]


def test_quotes_out_of_place_cost_their_line_only() -> None:
    model = signature(("s", "string", ["N"]), outputs=[("t", "string", ["N"])])
    body = 'a"b\n"open, and closed\nhere"x\n"c\nd"\n"no end\ne\n'

    got = predictions(ask(inference(lambda feed: {"t": feed["s"]}, model), body))
    assert [item if isinstance(item, str) else "" for item in got] == ["", "", "", "c\nd", "", "e"]


def test_lines_with_values_of_other_inputs_are_mismatches_of_their_own() -> None:
    """What only ``conform`` sees is found record by record too."""
    model = signature(("a", "float", ["N", "L"]), ("b", "float", ["N", "L"]), outputs=[("y", "float", ["N"])])
    lines = ['{"a":[1],"b":[2]}', '{"a":[1,2],"b":[3]}', '{"a":[3],"b":[4]}', '{"a":[3,4],"b":[4,5]}']
    target = inference(lambda feed: {"y": feed["a"][:, 0] + feed["b"][:, 0]}, model)

    got = predictions(ask(target, "\n".join(lines), LINES))
    assert [got[0], got[2], got[3]] == [3, 7, 7]
    assert got[1]["error"].endswith("(line 2)")


def test_records_that_hold_no_tensors() -> None:
    """Sequences, run by run; a bad record is one run that is not made."""
    model = signature(("s", "seq(tensor(float))", []), outputs=[("y", "float", [])], row_axis=RowAxis.NONE)
    target = inference(lambda feed: {"y": np.array(len(feed["s"]), np.float32)}, model)

    got = predictions(ask(target, '{"instances": [[[1],[2]], 5, [], [["x"]]]}', JSON))
    assert [got[0], got[2]] == [2, 0]
    assert [item["error"][-10:] for item in (got[1], got[3])] == ["(record 2)", "(record 4)"]


class Counting:
    """An engine that counts its runs, on top of a real one."""

    def __init__(self, run: Run, model: Signature = PAIR, block_rows: int = 1024) -> None:
        self.runs = 0
        self.signature = model
        self.block_rows = block_rows
        self._run = run
        self._engine = Engine(self._count, model, slots=2, block_rows=block_rows)

    def close(self) -> None:
        self._engine.close()

    def map(self, blocks: Iterable[Feed], gone: Callable[[], bool] | None = None) -> Iterator[Values]:
        return self._engine.map(blocks, gone)

    def _count(self, feed: Feed) -> Values:
        self.runs += 1
        return self._run(feed)


def block(*firsts: float) -> Tensors:
    return {"x": np.array([[first, 1] for first in firsts], np.float32)}


def answers(engine: Counting, blocks: Iterable[Tensors]) -> list[Any]:
    """One item a record: the first value of its answer, or the error's text."""
    found: list[Any] = []
    for outputs in record_errors.answer(
        Document(blocks), engine, lambda each: conform(each, engine.signature)
    ):
        if isinstance(outputs, BadRecord):
            found.append(outputs.error)
        else:
            found += np.asarray(outputs["y"])[:, 0].tolist()
    return found


def test_a_lone_bad_record_costs_few_runs() -> None:
    rows = np.arange(20, 20 + 8192.0)
    for place in (0, 1, 511, 1023, 1024, 5000, 8191):
        engine = Counting(double)
        values = rows.copy()
        values[place] = REFUSED

        found = answers(engine, [block(*values)])
        assert found.pop(place) == f"Gather: an index is out of bounds (record {place + 1})"
        assert found == np.delete(rows * 2, place).tolist()
        # Eight runs, those in flight once more, and 2 log2(1024) to find it.
        assert engine.runs <= 8 + 4 + 20 + 2


def test_many_bad_records_cost_two_runs_each_at_most() -> None:
    rng = np.random.default_rng(3)
    for share in (0.01, 0.5, 1):
        engine = Counting(double)
        bad = rng.random(3000) < share
        values = np.where(bad, REFUSED, np.arange(20, 3020.0))

        found = answers(engine, [block(*part) for part in np.split(values, 5)])
        assert [isinstance(item, str) for item in found] == bad.tolist()
        assert [item for item in found if not isinstance(item, str)] == (values[~bad] * 2).tolist()
        assert engine.runs <= 2 * 3000 + 100
        assert engine.runs <= bad.sum() * (2 * 10 + 2) + 50


def test_good_records_between_bad_ones_share_a_run() -> None:
    def records() -> Iterator[Tensors]:
        for number in range(20, 1020):
            yield block(number)
            yield BadRecord(f"no {number}")

    engine = Counting(double)

    assert answers(engine, records()) == [
        item for number in range(20, 1020) for item in (2 * number, f"no {number}")
    ]
    assert engine.runs <= 5


def test_blocks_of_different_kinds_are_not_merged() -> None:
    engine = Counting(lambda feed: {"y": feed["x"]}, FREE)
    blocks: list[Tensors] = [
        BadRecord("first"),
        {"x": np.ones((1, 2), np.float32)},
        {"x": np.ones((1, 3), np.float32)},
        {"x": np.ones((1, 3), np.float64)},
    ]

    assert answers(engine, blocks) == ["first", 1, 1, 1]
    assert engine.runs == 3


def test_inputs_with_defaults_stay_whole() -> None:
    model = replace(PAIR, defaults=signature(("k", "float", [2])).inputs)
    engine = Counting(lambda feed: {"y": double(feed)["y"] + feed["k"][0]}, model)
    given_k = {"k": np.array([100, 0], np.float32)}

    found = answers(
        engine, [block(1) | given_k, BadRecord("b"), block(2, 13, 3) | given_k, block(4) | given_k]
    )
    assert found == [102, "b", 104, "Gather: an index is out of bounds (record 4)", 106, 108]


def test_bad_records_do_not_pile_up() -> None:
    """However many there are, few wait: the answer begins before the body ends."""
    read = 0

    def records() -> Iterator[Tensors]:
        nonlocal read
        while read < 20_000:
            read += 1
            yield BadRecord("bad")

    found = record_errors.answer(Document(records()), Counting(double), lambda each: each)
    next(found)
    assert read < 5000
    assert sum(1 for _ in found) == 19_999


def test_nobody_waits_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine is told, and what it raises then is no record's fault."""
    monkeypatch.setattr(batching, "PATIENCE_S", 0.0)
    for blocks in ([block(1)], [block(1), BadRecord("b"), block(13, 2)]):
        engine = Counting(double)
        found = record_errors.answer(Document(blocks), engine, lambda each: each, lambda: True)
        with pytest.raises(Abandoned):
            list(found)
        engine.close()


def test_a_mismatch_of_a_whole_block_is_no_records_fault() -> None:
    """Inputs that do not even have as many records cannot be cut into records."""
    model = signature(("a", "float", ["N"]), ("b", "float", ["N"]), outputs=[("y", "float", ["N"])])
    uneven = {"a": np.ones(3, np.float32), "b": np.ones(2, np.float32)}

    with pytest.raises(MismatchError, match="expected 3 rows"):
        answers(Counting(lambda feed: {"y": feed["a"]}, model), [uneven])


@settings(max_examples=150, deadline=None)
@given(
    items=st.lists(st.integers(20, 99) | st.sampled_from([REFUSED, 1000, None]), max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    block_rows=st.sampled_from([1, 2, 5, 16]),
)
def test_any_mixture_is_answered_in_order(items: list[int | None], cuts: list[int], block_rows: int) -> None:
    """Undecodable (None), refused by the model (13) or by ``conform`` (1000), in blocks cut anyhow."""
    model = signature(("x", "int8", ["N", 2]), outputs=[("y", "int8", ["N", 2])])
    blocks: list[Tensors] = []
    run: list[int] = []
    for place, item in enumerate([*items, None]):
        if run and (item is None or place in cuts):
            blocks.append({"x": np.array([[value, 0] for value in run], np.int64)})
            run = []
        if item is not None:
            run.append(item)
        elif place < len(items):
            blocks.append(BadRecord(f"undecodable (record {place + 1})"))
    engine = Counting(lambda feed: {"y": double(feed)["y"] - feed["x"]}, model, block_rows)

    found = answers(engine, blocks)
    assert [item if isinstance(item, int) else None for item in found] == [
        None if item in {REFUSED, 1000, None} else item for item in items
    ]
    for place, item in enumerate(found, 1):
        assert isinstance(item, int) or item.endswith(f"(record {place})")
