from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_serve.batch.json_path import ROOT, parse_path
from onnx_serve.errors import MismatchError, ServeError, SettingsError

RECORD: dict[str, Any] = {
    "id": 7,
    "features": [1, 2, 3],
    "nested": {"a": 1, "b": {"c": [10, 20]}},
    "items": [{"x": 1, "y": 2}, {"x": 3, "y": 4}],
    "it's": True,
}


@pytest.mark.parametrize(
    ("path", "value", "selected"),
    [
        ("$", RECORD, RECORD),
        ("$.id", RECORD, 7),
        ("$['id']", RECORD, 7),
        ("$.features", RECORD, [1, 2, 3]),
        ("$.nested.b.c[1]", RECORD, 20),
        ("$['id','features']", RECORD, {"id": 7, "features": [1, 2, 3]}),
        ("$.nested.['a','b']", RECORD, {"a": 1, "b": {"c": [10, 20]}}),
        ('$["id"]', RECORD, 7),
        (r"$['it\'s']", RECORD, True),
        ("$.items[*].x", RECORD, [1, 3]),
        ("$.nested.*", RECORD, [1, {"c": [10, 20]}]),
        ("$.items[0,1].y", RECORD, [2, 4]),
        ("$.items[0]['x','y']", RECORD, {"x": 1, "y": 2}),
        ("$[0]", [1, 2, 3], 1),
        ("$[-1]", [1, 2, 3], 3),
        ("$[0,-1]", [1, 2, 3], [1, 3]),
        ("$[ 0 , 2 ]", [1, 2, 3], [1, 3]),
        ("$[1:]", [1, 2, 3], [2, 3]),
        ("$[:2]", [1, 2, 3], [1, 2]),
        ("$[:-1]", [1, 2, 3], [1, 2]),
        ("$[1:2]", [1, 2, 3], [2]),
        ("$[0,5:]", list(range(8)), [0, 5, 6, 7]),
        ("$[*]", [1, 2], [1, 2]),
        ("$[7:]", [1], []),
    ],
)
def test_selects_what_the_platform_documents(path: str, value: object, selected: object) -> None:
    assert parse_path(path).select(value) == selected


@pytest.mark.parametrize(
    "text",
    ["", "id", ".id", "$.", "$..id", "$[", "$[]", "$['a'", "$[?(@.x)]", "$[::2]", "$[a]", "$.a b", "$[1,'a']",
     "$['a',]", "$.length()", "$$", "$[1:2:3]", "x$", "$.a" + "b" * 61],
)  # fmt: skip
def test_refuses_what_is_outside_the_subset(text: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_path(text)

    assert "\n" not in str(error.value)


def test_takes_63_characters() -> None:
    assert parse_path("$." + "a" * 61).select({"a" * 61: 1}) == 1


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("$.id", {"x": 1}, 'no attribute "id"'),
        ("$['id','x']", {"x": 1}, 'no attribute "id"'),
        ("$.id", [1], "expected an object, got an array"),
        ("$[0]", {"x": 1}, "expected an array, got an object"),
        ("$[3]", [1, 2, 3], "no index 3"),
        ("$[-4]", [1, 2, 3], "no index -4"),
        ("$[0,9]", [1], "no index 9"),
        ("$.*", "text", "got a string"),
        ("$[0]", 5, "got a number"),
        ("$.x", None, "got null"),
        ("$.x", True, "got a boolean"),
    ],
)
def test_a_record_that_does_not_fit_is_an_error(path: str, value: object, words: str) -> None:
    with pytest.raises(MismatchError, match="^.*" + words.replace("[", r"\[")):
        parse_path(path).select(value)


def test_root_changes_nothing() -> None:
    assert ROOT.is_root
    assert parse_path("$").is_root
    assert not parse_path("$[0]").is_root


bound = st.none() | st.integers(-9, 9)


@given(st.lists(st.integers(), max_size=6), bound, bound)
def test_a_slice_is_pythons(values: list[int], start: int | None, end: int | None) -> None:
    text = f"$[{'' if start is None else start}:{'' if end is None else end}]"

    assert parse_path(text).select(values) == values[start:end]


@given(st.text("$.*[]'\",:0123ab- ", max_size=20), st.recursive(st.integers() | st.none(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3), max_leaves=6))  # fmt: skip
def test_any_text_and_record_raise_nothing_else(text: str, value: object) -> None:
    try:
        parse_path("$" + text).select(value)
    except ServeError as error:
        assert "\n" not in str(error)  # noqa: PT017  the property holds for whatever is raised
