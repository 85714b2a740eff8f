"""Records as JSON and as files: what is damaged, foreign or of another model is not used."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnx_models
from calibrations import make, make_key
from onnx_serve import calibration_files
from onnx_serve.calibration_files import (
    SHIPPED_NAME,
    find_calibration,
    from_json,
    store_calibration,
    to_json,
)
from onnx_serve.calibration_record import Calibration, CalibrationKey, Rung, guess
from onnx_serve.errors import CalibrationError
from onnx_serve.model_files.onnx_file import read_onnx_file

ROOMY = 1 << 40

whole = st.integers(0, 1 << 50)
rungs = st.tuples(st.floats(0, 1e3), st.floats(0, 1e3))
records = st.builds(
    make,
    memory_bytes=whole,
    load_peak_bytes=whole,
    burst_bytes=whole,
    block_rows=st.integers(1, 1 << 30),
    ladder=st.lists(rungs, max_size=14).map(
        lambda times: tuple(Rung(1 << index, *time) for index, time in enumerate(times))
    ),
    reason=st.text(st.characters(categories=["L", "N", "P", "Zs"], max_codepoint=0x2FF), max_size=50).filter(
        str.isprintable
    ),
    seconds=st.floats(0, 1e6),
    fits=st.booleans(),
    feed=st.sampled_from(["sample", "made up"]),
)


@given(records)
def test_json_round_trip(record: Calibration) -> None:
    text = to_json(record)

    assert from_json(text) == record
    assert "\n" not in text


@given(st.text(max_size=200) | st.recursive(st.none() | st.integers(), st.lists).map(json.dumps))
def test_arbitrary_text_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slots", 0),
        ("slots", True),
        ("slots", 1.0),
        ("block_rows", 10**12),
        ("burst_bytes", -1),
        ("burst_bytes", 1 << 51),
        ("burst_bytes", None),
        ("fits", 1),
        ("origin", "guess"),
        ("origin", ["measured"]),
        ("reason", "a\nb"),
        ("reason", "x" * 501),
        ("seconds", -1),
        ("seconds", "1"),
        ("ladder", {}),
        ("ladder", [[1, 1]]),
        ("ladder", [[2, 1, 1], [1, 1, 1]]),
        ("ladder", [[1, 1, 1]] * 65),
        ("ladder", [[1, 1e9, 1]]),
        ("key", []),
        ("key", {}),
    ],
    ids=repr,
)
def test_values_out_of_bounds_are_refused_by_name(name: str, value: Any) -> None:
    document = {**json.loads(to_json(make())), name: value}

    with pytest.raises(CalibrationError, match=f"{name}|model_sha256"):
        from_json(json.dumps(document))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"seconds": 1.5', '"seconds": NaN'),
        lambda text: text.replace('"seconds": 1.5', '"seconds": 1.5, "more": 1'),
        lambda text: text.replace('"seconds": 1.5', '"second": 1.5'),
        lambda text: text.replace('["CPUExecutionProvider"]', '"CPUExecutionProvider"'),
        lambda text: text + " " * 70_000,
        lambda _text: "[" * 30_000,
    ],
    ids=["NaN", "unknown entry", "missing entry", "no list", "long", "deep"],
)
def test_damaged_documents_are_refused(change: Callable[[str], str]) -> None:
    with pytest.raises(CalibrationError):
        from_json(change(to_json(make())))


def test_what_is_stored_is_found_again(tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache"
    record = make()

    store_calibration(cache, record)
    found = find_calibration([], cache, record.key, ROOMY)
    assert found is not None
    assert found.origin == "cached"
    assert found.ladder == record.ladder
    assert [path.name for path in cache.iterdir()] == [f"calibration-{record.key.digest}.json"]
    assert find_calibration([], cache, make_key(cpus=3), ROOMY) is None
    assert find_calibration([], cache, record.key, 1) is None


def test_a_shipped_record_comes_first(tmp_path: Path) -> None:
    store_calibration(tmp_path / "cache", make(seconds=1.0))
    (tmp_path / SHIPPED_NAME).write_text(to_json(make(seconds=2.0)))

    found = find_calibration([tmp_path / "none", tmp_path], tmp_path / "cache", make_key(), ROOMY)
    assert found is not None
    assert (found.origin, found.seconds) == ("shipped", 2.0)


def test_a_guess_is_not_kept(tmp_path: Path) -> None:
    store_calibration(tmp_path, guess(make_key(), None, slots=1, memory_bytes=1))

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "expected JSON"),
        (b"\xff", "can't decode"),
        (to_json(make(key=make_key(machine="aarch64"))).encode(), 'machine: expected "x86_64"'),
        (to_json(make(key=make_key(onnxruntime="onnxruntime 1.0"))).encode(), "onnxruntime: expected"),
        (to_json(make(fits=False)).encode(), "another memory limit"),
    ],
    ids=["no JSON", "no text", "other machine", "other version", "does not fit"],
)
def test_files_of_others_are_passed_over_with_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, words: str
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / SHIPPED_NAME).write_bytes(content)

    assert find_calibration([tmp_path, tmp_path], None, make_key(), ROOMY) is None
    [line] = caplog.messages
    assert words in line


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_what_is_no_plain_file_is_not_opened(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    place = tmp_path / SHIPPED_NAME
    if kind == "link":
        (tmp_path / "elsewhere").write_text(to_json(make()))
        place.symlink_to(tmp_path / "elsewhere")
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()

    assert find_calibration([tmp_path], None, make_key(), ROOMY) is None
    assert len(caplog.messages) == 1


def test_a_cache_that_cannot_be_written_is_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")

    store_calibration(tmp_path / "file" / "cache", make())
    assert "not kept" in caplog.text


def key_of(path: Path, **changes: Any) -> CalibrationKey:
    options = {"providers": "auto", "cpus": 2, "options": {"a": 1}, **changes}
    return calibration_files.make_key(path, read_onnx_file(path), **options)


def test_a_key_changes_with_all_that_it_holds_for(tmp_path: Path) -> None:
    path = onnx_models.linear(tmp_path / "a.onnx")
    key = key_of(path)

    assert key == key_of(onnx_models.linear(tmp_path / "b.onnx"))
    assert key.onnxruntime.startswith("onnxruntime")
    assert key.providers == ("CPUExecutionProvider",)
    assert not key.on_device
    others = [
        key_of(onnx_models.linear(tmp_path / "c.onnx", width=5)),
        key_of(path, cpus=3),
        key_of(path, options={"a": 2}),
        key_of(path, providers=["CUDAExecutionProvider"]),
    ]
    assert len({key.digest, *(other.digest for other in others)}) == 5


def test_external_data_counts_by_its_size_not_its_values(tmp_path: Path) -> None:
    path = onnx_models.linear(tmp_path / "m.onnx", width=64, outputs=64)
    model = onnx.load(path)
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
        convert_attribute=True,
    )
    key = key_of(path)
    weights = tmp_path / "weights"

    values = np.fromfile(weights, np.float32)
    (-values).tofile(weights)
    assert key_of(path) == key
    with weights.open("ab") as file:
        file.write(b"more")
    assert key_of(path) != key
    summary = read_onnx_file(path)
    weights.unlink()
    with pytest.raises(CalibrationError, match="cannot be read"):
        calibration_files.make_key(path, summary, providers="auto", cpus=1, options={})
