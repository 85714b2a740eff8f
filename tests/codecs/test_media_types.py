import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_serve.codecs.interface import MediaType
from onnx_serve.codecs.media_types import negotiate, parse
from onnx_serve.errors import UnsupportedMediaType

JSON, CSV, LINES, NPY = "application/json", "text/csv", "application/jsonlines", "application/x-npy"
OFFERED = (JSON, CSV, LINES, NPY)
TOKEN = st.text("!#$%&'*+-.^_`|~abcXYZ019", min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        pytest.param("text/csv", "text/csv", {}, id="bare"),
        pytest.param(" Text/CSV\t", "text/csv", {}, id="case and space"),
        pytest.param("text/csv; charset=utf-8", "text/csv", {"charset": "utf-8"}, id="parameter"),
        pytest.param("text/csv;Header=Present", "text/csv", {"header": "Present"}, id="value keeps its case"),
        pytest.param(
            "text/csv ; charset=utf-8 ;header=skip",
            "text/csv",
            {"charset": "utf-8", "header": "skip"},
            id="two",
        ),
        pytest.param('a/b;c="d;e, \\"f\\\\g"', "a/b", {"c": 'd;e, "f\\g'}, id="quoted string with escapes"),
        pytest.param('a/b;c=""', "a/b", {"c": ""}, id="empty quoted string"),
        pytest.param("text/csv;", "text/csv", {}, id="trailing semicolon"),
        pytest.param("text/csv;;header=skip", "text/csv", {"header": "skip"}, id="empty parameter"),
        pytest.param("a/b;c=1;C=2", "a/b", {"c": "1"}, id="the first of a name counts"),
        pytest.param("application/jsonlines;data=text", LINES, {"data": "text"}, id="SparkML"),
        pytest.param(
            "application/vnd.sagemaker-triton.binary+json;json-header-size=12",
            "application/vnd.sagemaker-triton.binary+json",
            {"json-header-size": "12"},
            id="Triton",
        ),
    ],
)
def test_a_media_type_is_parsed(text: str, name: str, parameters: dict[str, str]) -> None:
    assert parse(text) == MediaType(name, parameters)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "csv", "text/", "/csv", "text /csv", "text/ csv", "text/csv charset=utf-8", "text/csv; charset",
        "text/csv; charset =utf-8", "text/csv; charset= utf-8", 'text/csv; a="b', 'text/csv; a="b"c', "text/csv, a/b",
        "téxt/csv", "text/csv\n", "a/" + "b" * 2000,
    ],
)  # fmt: skip
def test_a_malformed_media_type_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(
        UnsupportedMediaType, match=r'^expected a media type such as text/csv, got ".*"$'
    ) as caught:
        parse(text)
    assert len(str(caught.value)) < 120


@given(TOKEN, TOKEN, st.dictionaries(TOKEN.map(str.lower), st.text('abc \t;,="\\/é', max_size=8), max_size=4))
def test_any_parameters_survive_quoting(kind: str, subtype: str, parameters: dict[str, str]) -> None:
    def quoted(value: str) -> str:
        return '"' + "".join("\\" + c if c in '"\\' else c for c in value) + '"'

    text = f"{kind}/{subtype}" + "".join(f"; {name}={quoted(value)}" for name, value in parameters.items())
    assert parse(text) == MediaType(f"{kind}/{subtype}".lower(), parameters)


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", JSON),
        ("  ", JSON),
        (",,", JSON),
        ("*/*", JSON),
        ("text/csv", CSV),
        ("TEXT/CSV", CSV),
        ("text/csv, application/json", CSV),
        ("application/json, text/csv", JSON),
        ("application/jsonlines;data=text", LINES),
        ("text/csv; charset=utf-8", CSV),
        ("*/*;q=0.1, text/csv;q=0.5", CSV),
        ("text/*", CSV),
        ("text/*;q=0.5, application/x-npy;q=0.4", CSV),
        ("application/*", JSON),
        ("application/*, application/json;q=0", LINES),
        ("*/*, application/json;q=0", CSV),
        ("*/*;q=0", None),
        ("text/csv;q=0", None),
        ("text/csv;q=0.000", None),
        ("text/csv;q=0, text/*", None),
        ("text/*;q=0, */*;q=0.1", JSON),
        ("text/csv;q=0.2, application/json;q=0.3", JSON),
        ("application/json;q=0.5, */*", CSV),
        ("text/csv;q=0.5, text/csv;header=present", CSV),
        ("application/json;q=0.9, text/csv;q=0.5, text/csv;header=present", CSV),
        ("text/csv;Q=0.2, application/json;q=0.1", CSV),
        ("text/csv;q=high, application/json;q=0.9", CSV),
        ("text/csv;q=7, application/json;q=0.9", CSV),
        ("text/csv;q=-1, application/json;q=0.9", CSV),
        ("text/csv;q=nan, application/json;q=0.9", CSV),
        ("text/csv;q=, application/json;q=0.9", JSON),
        ("csv", None),
        ("csv, application/x-npy", NPY),
        ("*, application/x-npy", NPY),
        ("*/csv", None),
        ("image/png", None),
        ("image/png, */*;q=0.01", JSON),
        ('text/csv;a="x, application/json", application/x-npy', CSV),
        ('application/xml;a="x, text/csv, application/json', None),
        ('a"b, text/csv', None),
        (";;;===\0\\", None),
    ],
)
def test_the_answer_is_what_accept_prefers(accept: str, chosen: str | None) -> None:
    assert negotiate(accept, OFFERED) == chosen


def test_the_offered_spelling_is_returned() -> None:
    assert negotiate("application/JSON", ["Application/Json"]) == "Application/Json"


@pytest.mark.parametrize("accept", ["", "*/*", "text/csv"])
def test_nothing_offered_nothing_chosen(accept: str) -> None:
    assert negotiate(accept, []) is None


def test_ranges_past_the_fiftieth_are_ignored() -> None:
    others = ",".join(f"a/b{n}" for n in range(49))
    assert negotiate(f"{others},text/csv", OFFERED) == CSV
    assert negotiate(f"{others},a/b,text/csv", OFFERED) is None


def test_what_exceeds_8_kib_is_ignored_with_the_range_it_cuts() -> None:
    padding = "text/plain;a=" + "b" * 8000
    assert negotiate(f"{padding},text/csv", OFFERED) == CSV
    # Cut in the middle, text/csv;a=bbb... would still read as text/csv.
    assert negotiate(f"{padding},text/csv;a={'b' * 500}", OFFERED) is None


@given(st.text('"\\,;=q/*abc. 01é\n', max_size=60) | st.text(max_size=60))
def test_any_accept_is_answered_with_an_offered_type_or_none(accept: str) -> None:
    assert negotiate(accept, OFFERED) in {*OFFERED, None}


@pytest.mark.parametrize("piece", ['"', '\\"', '"\\', ",", ";", ' "', 'a/b;c="\\"'])
def test_a_hostile_accept_takes_linear_time(piece: str) -> None:
    started = time.process_time()
    negotiate(piece * 100_000, OFFERED)
    # A few milliseconds; generous for slow machines, and far from what backtracking would take.
    assert time.process_time() - started < 0.5
