"""The user's rows, from every format, and what is wrong with those that do not fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from converters.errors import ConversionError
from converters.samples import as_sample, matrix_sample, read_sample

ROWS = [{"a": 1.5, "b": "x"}, {"a": None, "b": None}]
TABLE = pa.table(
    {"a": [1.5, None], "b": pa.array(["x", None]).dictionary_encode(), "c": [1, 2], "d": [True, False]}
)


def save(folder: Path, name: str) -> Path:
    path = folder / name
    match path.suffix:
        case ".csv":
            path.write_text("a,b\n1.5,x\n,\n")
        case ".jsonl":
            path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS) + "\n")
        case ".json":
            path.write_text(json.dumps(ROWS if name == "list.json" else {"instances": ROWS}))
        case ".parquet":
            pyarrow.parquet.write_table(TABLE, path)
        case _:
            np.savez(path, a=np.array([1.5, np.nan]), b=np.array(["x", ""]))
    return path


@pytest.mark.parametrize("name", ["s.csv", "s.jsonl", "s.json", "list.json", "s.parquet", "s.npz"])
def test_formats_agree(name: str, tmp_path: Path) -> None:
    sample = read_sample(save(tmp_path, name))
    assert sample.rows == 2
    assert np.array_equal(sample.columns["a"], [1.5, np.nan], equal_nan=True)
    assert sample.columns["b"].tolist() == ["x", ""]


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    columns = read_sample(save(tmp_path, "s.parquet")).columns
    assert (columns["c"].dtype.kind, columns["d"].dtype.kind) == ("i", "b")


def test_matrices(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", np.arange(6).reshape(2, 3))
    (tmp_path / "m.json").write_text("[[1, 2, 3]]")
    for name, rows in (("m.npy", 2), ("m.json", 1)):
        sample = read_sample(tmp_path / name)
        assert sample.matrix is not None
        assert sample.rows == rows
        [probe] = matrix_sample(sample, 3, ("a", "b", "c"))
        assert probe.feed["features"].shape == (rows, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.txt", b"x", "the ending .txt"),
        ("s", b"x", "is missing"),
        ("s.csv", b"", "expected rows in"),
        ("s.csv", b"a,b\n", "has no rows"),
        ("s.json", b"{", "expected rows in"),
        ("s.json", b"{}", "a list of records"),
        ("s.json", b'[{"a": 1}, {"b": 1}]', "records with the same names"),
        ("s.npy", b"\x93NUMPY", "expected rows in"),
        ("s.npz", b"PK", "expected rows in"),
        ("s.parquet", b"PAR1", "expected rows in"),
        ("s.jsonl", b"\xff", "expected rows in"),
    ],
)
def test_what_is_no_sample_is_described(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConversionError) as caught:
        read_sample(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("array", [np.array(5), np.zeros((100_001, 1)), np.array([{}], object)])
def test_arrays_that_are_no_rows_are_refused(array: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", array, allow_pickle=array.dtype == object)
    with pytest.raises(ConversionError, match="rows"):
        read_sample(tmp_path / "s.npy")


def test_unequal_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", a=np.zeros(2), b=np.zeros(3))
    with pytest.raises(ConversionError, match="arrays of equal length"):
        read_sample(tmp_path / "s.npz")


def test_named_columns_are_put_in_the_models_order() -> None:
    sample = read_columns({"b": [2.0], "a": [1.0], "more": [3.0]})
    [probe] = matrix_sample(sample, 2, ("a", "b"))
    assert probe.feed["features"].tolist() == [[1.0, 2.0]]
    [probe] = matrix_sample(read_columns({"x": [1.0], "y": [2.0]}), 2, ("a", "b"))
    assert probe.feed["features"].tolist() == [[1.0, 2.0]]
    with pytest.raises(ConversionError, match='missing the columns "b"'):
        matrix_sample(read_columns({"a": [1.0], "y": [2.0]}), 2, ("a", "b"))


def read_columns(columns: dict[str, list[float]]) -> Any:
    from converters.samples import Sample  # noqa: PLC0415  used here alone

    return Sample({name: np.array(values) for name, values in columns.items()})


def test_what_python_has_becomes_a_sample() -> None:
    assert as_sample(None) is None
    texts = as_sample(["a", "b"])
    assert texts is not None
    assert texts.rows == 2
    assert matrix_sample(None, 3, ()) == []
