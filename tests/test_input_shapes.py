from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import value_models
from onnx_serve.model_files.input_shapes import undeclared
from value_models import FLOAT, INT64, mapping, sequence, tensor


def test_scalars_and_undeclared_shapes_are_told_apart(tmp_path: Path) -> None:
    inputs = [tensor("scalar", FLOAT, []), tensor("free", INT64, None), tensor("x", FLOAT, ["N"]),
              sequence("s"), mapping("m", INT64)]  # fmt: skip
    path = value_models.save(tmp_path / "m.onnx", [], inputs, [])

    assert undeclared(path) == frozenset({"free"})


@pytest.mark.parametrize("data", [b"ORTM", b"\x3a\x7f", b"\x08\x09"])
def test_other_files_do_not_say(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.ort"
    path.write_bytes(data)

    assert not undeclared(path)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 200), byte=st.integers(0, 255))
def test_any_bytes_are_read(tmp_path: Path, place: int, byte: int) -> None:
    """A changed byte gives other names or none, never an error."""
    path = value_models.any_shape(tmp_path / "m.onnx")
    data = bytearray(path.read_bytes())
    data[place % len(data)] = byte
    path.write_bytes(data)

    assert undeclared(path) is None or len(undeclared(path) or ()) <= 1
