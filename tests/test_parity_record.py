"""parity.json is read as what it is: a file of somebody else's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converted_folders import parity_facts
from onnx_serve.errors import ModelError
from onnx_serve.parity_record import read_bounded, read_parity_record

OUTPUTS = {"y": np.zeros((1, 2), np.float32)}


def changed(place: str, value: Any) -> dict[str, Any]:
    """The facts with one field replaced, or without it if the value is ``...``."""
    facts = json.loads(json.dumps(parity_facts(OUTPUTS)))
    *parents, last = place.split(".")
    table: Any = facts
    for key in parents:
        table = table[int(key)] if isinstance(table, list) else table[key]
    if value is ...:
        del table[last]
    else:
        table[int(last) if isinstance(table, list) else last] = value
    return dict(facts)


def read(folder: Path, content: Any) -> Any:
    (folder / "parity.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return read_parity_record(folder)


def test_a_record_is_read_whole(tmp_path: Path) -> None:
    record = read(tmp_path, parity_facts(OUTPUTS))

    assert (record.passed, record.framework, record.seed) == (True, "sklearn", 20240607)
    assert (record.tolerances.rtol, record.outputs[0].name, record.outputs[0].scale) == (1e-4, "y", 1.0)
    assert list(record.hashes) == ["model", "artifact", "probes"]


def test_no_file_is_no_record(tmp_path: Path) -> None:
    assert read_parity_record(tmp_path) is None


@pytest.mark.parametrize(
    "place", ["seed", "converted_at", "versions", "artifact_sha256", "parity.outputs.0.scale"]
)
def test_fields_that_older_records_lack_may_be_missing(place: str, tmp_path: Path) -> None:
    assert read(tmp_path, changed(place, ...)).passed


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("parity", ..., '"parity" is missing'),
        ("parity.passed", "yes", '"parity.passed": expected true or false, got "yes"'),
        ("parity.tolerances.rtol", -1, '"parity.tolerances.rtol": expected a number from 0 on, got "-1"'),
        ("parity.tolerances.rtol", True, 'got "True"'),
        ("parity.tolerances", [], "expected an object of at most 1000 fields, got a list"),
        ("parity.outputs", {}, "expected a list of at most 1000 entries, got a dict"),
        ("parity.outputs", [{}] * 1001, "expected a list of at most 1000 entries, got a list"),
        ("parity.outputs.0", 1, r'"parity.outputs\[0\]": expected an object'),
        ("parity.outputs.0.rows", 1.5, "expected a whole number from 0 on"),
        ("parity.outputs.0.max_abs", "0", "expected a number from 0 on"),
        ("parity.unchecked_outputs", [1], "expected text of at most 200 printable characters"),
        ("family", "x" * 201, "expected text of at most 200 printable"),
        ("family", "\x1b[31mred", "expected text of at most 200 printable"),
        ("framework", None, 'got "None"'),
        ("versions", {"numpy": 2}, '"versions.numpy": expected text'),
        ("versions", {str(n): "" for n in range(1001)}, "at most 1000 fields, got a dict"),
        ("seed", "x", "expected a whole number"),
        ("seed", -1, "expected a whole number"),
    ],
)  # fmt: skip
def test_a_field_of_another_kind_is_named(place: str, value: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        read(tmp_path, changed(place, value))
    assert str(caught.value).startswith("parity.json: ")


@pytest.mark.parametrize("text", ["", "[1]", "[" * 100_000, '{"seed": NaN}', "\ufeff{}", '{"parity": 1e999}'])
def test_other_content_is_a_model_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"parity\.json: "):
        read(tmp_path, text)


@settings(max_examples=100)
@given(data=st.binary(max_size=60) | st.text(max_size=40).map(lambda text: json.dumps({text: text}).encode()))
def test_arbitrary_bytes_are_model_errors(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("parity")
    (folder / "parity.json").write_bytes(data)

    with pytest.raises(ModelError):
        read_parity_record(folder)


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"12345")

    assert read_bounded(path, 5, allow_links=False) == b"12345"
    assert read_bounded(tmp_path / "none", 5, allow_links=False) is None
    with pytest.raises(ModelError, match="f: expected at most 4 bytes, got 5"):
        read_bounded(path, 4, allow_links=False)
    with pytest.raises(ModelError, match="expected a regular file, got a folder"):
        read_bounded(tmp_path, 4, allow_links=False)
    (tmp_path / "link").symlink_to("f")
    with pytest.raises(ModelError, match="link is a link: copy the file, or set allow_links"):
        read_bounded(tmp_path / "link", 5, allow_links=False)
    assert read_bounded(tmp_path / "link", 5, allow_links=True) == b"12345"
    with pytest.raises(ModelError, match="cannot be read"):
        read_bounded(path / "below", 5, allow_links=False)
