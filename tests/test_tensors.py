from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from codec_laws import signature
from onnx_serve.errors import MismatchError
from onnx_serve.tensors import DataType, MapTable, RowAxis, Signature, TensorSpec, cast, conform, row_count

ROWS_OF_4 = signature(("x", "float", ["N", 4]))
TWO = signature(("a", "float", ["N", 2]), ("b", "int64", ["N"]))


def spec(kind: str, shape: tuple[int | str | None, ...] = ("N",)) -> TensorSpec:
    return TensorSpec("x", f"tensor({kind})", shape)


@pytest.mark.parametrize(
    ("shape", "text"),
    [((), "FLOAT[]"), (("N", 4), "FLOAT[N, 4]"), ((None, None), "FLOAT[N, ?]"), ((3, "h"), "FLOAT[3, h]")],
)
def test_spec_reads_like_documentation(shape: tuple[int | str | None, ...], text: str) -> None:
    assert str(spec("float", shape)) == text


def test_spec_of_a_sequence() -> None:
    zipmap = TensorSpec("p", "seq(map(int64,tensor(float)))", ())

    assert zipmap.is_map_sequence
    assert not zipmap.is_tensor
    assert zipmap.dtype is DataType.FLOAT
    assert str(zipmap) == "seq(map(int64,tensor(float)))"
    with pytest.raises(MismatchError, match=r'"p": the type sparse_tensor\(float\) is not supported'):
        _ = TensorSpec("p", "sparse_tensor(float)", ()).dtype


def test_spec_of_any_shape() -> None:
    free = TensorSpec("x", "tensor(float)", (), any_shape=True)
    model = Signature((free,), (), RowAxis.NONE)

    assert str(free) == "FLOAT of any shape"
    for shape in [(), (3,), (0, 2)]:
        assert conform({"x": np.zeros(shape)}, model)["x"].dtype == np.float32
    with pytest.raises(MismatchError, match=r'input "x": expected a tensor, got a list'):
        conform({"x": [1.0]}, model)


DEFAULTED = Signature(
    (TensorSpec("x", "tensor(float)", ("N", 2)), TensorSpec("y", "tensor(float)", ("N", 2))),
    (),
    RowAxis.FREE,
    defaults=(TensorSpec("t", "tensor(float)", (1,)),),
)
XY = {"x": np.zeros((3, 2)), "y": np.zeros((3, 2))}


def test_an_input_with_a_default_may_be_left_out_and_has_no_rows() -> None:
    assert list(conform(XY, DEFAULTED)) == ["x", "y"]
    assert conform(XY | {"t": np.array([5])}, DEFAULTED)["t"].tolist() == [5.0]
    with pytest.raises(MismatchError, match=r'input "t": expected FLOAT\[1\], got DOUBLE\[3\]'):
        conform(XY | {"t": np.zeros(3)}, DEFAULTED)
    with pytest.raises(MismatchError, match=r': missing "y"; unknown "z"'):
        conform({"x": np.zeros((1, 2)), "t": np.zeros(1), "z": np.zeros(1)}, DEFAULTED)


def test_an_optional_may_be_left_out_and_a_tensor_may_not() -> None:
    maybe = TensorSpec("m", "optional(tensor(float))", ())
    model = Signature((TensorSpec("x", "tensor(float)", (2,)), maybe), (), RowAxis.NONE)

    x = np.zeros(2, np.float32)
    assert conform({"x": x}, model) == {"x": pytest.approx(x), "m": None}
    assert conform({"x": x, "m": np.array(1)}, model)["m"].dtype == np.float32
    with pytest.raises(MismatchError, match='missing "x"'):
        conform({"m": None}, model)
    with pytest.raises(MismatchError, match=r'input "x": expected FLOAT\[2\], got nothing'):
        conform({"x": None, "m": None}, model)


def test_record_shape_and_width() -> None:
    image = signature(("x", "float", ["N", 3, "h", 8]))
    whole = signature(("x", "float", [2, 3]), row_axis=RowAxis.NONE)

    assert image.record_shape(image.inputs[0]) == (3, "h", 8)
    assert image.record_width(image.inputs[0]) is None
    assert whole.record_width(whole.inputs[0]) == 6
    assert TWO.describe_inputs() == '"a" FLOAT[N, 2], "b" INT64[N]'


def test_an_array_that_fits_is_not_copied() -> None:
    x = np.zeros((5, 4), np.float32)

    assert conform({"x": x}, ROWS_OF_4)["x"] is x


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x": np.zeros((3, 5), np.float32)}, 'input "x": expected FLOAT[N, 4], got FLOAT[3, 5]'),
        ({"x": np.zeros(4, np.float64)}, 'input "x": expected FLOAT[N, 4], got DOUBLE[4]'),
        ({"x": np.zeros((1, 5), complex)}, 'input "x": expected FLOAT[N, 4], got complex128[1, 5]'),
        ({"y": np.zeros((3, 4))}, 'expected the inputs "x" FLOAT[N, 4]: missing "x"; unknown "y"'),
        ({}, 'expected the inputs "x" FLOAT[N, 4]: missing "x"'),
        ({"x": np.array([["a"] * 4])}, 'input "x": expected FLOAT, got "a" at [0, 0]'),
        ({"x": np.full((2, 4), 1e39)}, 'input "x": expected FLOAT, got 1e+39 at [0, 0]'),
        (
            {"x": np.zeros((1, 4), "M8[s]")},
            'input "x": expected FLOAT, got elements of type datetime64[s]',
        ),
    ],
)
def test_what_does_not_fit_is_named(tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(MismatchError) as caught:
        conform(tensors, ROWS_OF_4)
    assert str(caught.value) == message


def test_inputs_have_equally_many_rows() -> None:
    with pytest.raises(MismatchError, match='"b": expected 3 rows like "a", got 2'):
        conform({"a": np.zeros((3, 2)), "b": np.zeros(2)}, TWO)


def test_equal_symbols_have_equal_sizes() -> None:
    model = signature(("ids", "int64", ["N", "t"]), ("mask", "int64", ["N", "t"]))

    conform({"ids": np.ones((1, 5), int), "mask": np.ones((1, 5), int)}, model)
    with pytest.raises(MismatchError, match=r"with t = 5 as in the inputs before, got \[1, 6\]"):
        conform({"ids": np.ones((1, 5), int), "mask": np.ones((1, 6), int)}, model)


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("int8", np.array([1, -128, 127]), np.array([1, -128, 127], np.int8)),
        ("int8", np.array([1.0, -2.0]), np.array([1, -2], np.int8)),
        ("uint64", np.array([2**63], np.uint64), np.array([2**63], np.uint64)),
        ("int64", np.array([True, False]), np.array([1, 0], np.int64)),
        ("float", np.array([2**60], np.int64), np.array([2**60], np.float32)),
        ("float", np.array([np.inf, np.nan]), np.array([np.inf, np.nan], np.float32)),
        ("bool", np.array([0, 1]), np.array([False, True])),
        ("bool", np.array([0.0, 1.0]), np.array([False, True])),
        ("string", np.array(["a", "é"]), np.array(["a", "é"], object)),
        ("string", np.array(["é".encode()]), np.array(["é"], object)),
        ("float", np.array([1.5], ">f4"), np.array([1.5], np.float32)),
        ("bfloat16", np.array([1.00390625, -np.inf]), np.array([1, -np.inf], np.float32)),
        ("bfloat16", np.array([257], np.int64), np.array([256], np.float32)),
        ("float8e4m3fn", np.array([449.0, -0.0]), np.array([448, -0.0], np.float32)),
        ("float8e5m2", np.array([np.inf, np.nan]), np.array([np.inf, np.nan], np.float32)),
        ("float8e8m0", np.array([3.0, 0.4]), np.array([4, 0.5], np.float32)),
        ("float4e2m1", np.array([5.0, 0.25]), np.array([4, 0], np.float32)),
        ("int4", np.array([-8.0, 7.0]), np.array([-8, 7], np.int8)),
        ("uint2", np.array([True, False]), np.array([1, 0], np.uint8)),
        ("uint4", np.array([15], np.uint8), np.array([15], np.uint8)),
    ],
)
def test_values_change_type_without_loss(kind: str, values: Any, expected: Any) -> None:
    result = cast(values, spec(kind))

    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("kind", "values", "shown"),
    [
        ("int8", np.array([0, 300]), "got 300 at [1]"),
        ("int8", np.array([-129]), "got -129 at [0]"),
        ("uint8", np.array([-1]), "got -1 at [0]"),
        ("int64", np.array([2**63], np.uint64), f"got {2**63} at [0]"),
        ("uint64", np.array([-1], np.int64), "got -1 at [0]"),
        ("int64", np.array([2.0**63]), "got 9.223372036854775807e+18".replace("5807", "5808")[:15]),
        ("int32", np.array([1.0, 0.5]), "got 0.5 at [1]"),
        ("int32", np.array([np.nan]), "got nan at [0]"),
        ("int32", np.array([np.inf]), "got inf at [0]"),
        ("bool", np.array([2]), "got 2 at [0]"),
        ("bool", np.array([np.nan]), "got nan at [0]"),
        ("string", np.array([1]), "got 1 at [0]"),
        ("string", np.array(["a", 2], object), "got 2 at [1]"),
        ("string", np.array([b"\xff"]), "got bytes that are no UTF-8"),
        ("float16", np.array([1e5]), "got 100000.0 at [0]"),
        ("float", np.array([object()], object), "expected FLOAT"),
        (
            "bfloat16",
            np.array([0, 3.4e38], np.float32),
            "expected BFLOAT16, got 3.3999999521443642e+38 at [1]",
        ),
        ("bfloat16", np.array([1e39]), "expected BFLOAT16, got 1e+39 at [0]"),
        ("float8e4m3fn", np.array([465]), "expected FLOAT8E4M3FN, got 465 at [0]"),
        ("float8e4m3fn", np.array([np.inf]), "expected FLOAT8E4M3FN, got inf at [0]"),
        ("float8e4m3fnuz", np.array([248.0]), "got 248.0 at [0]"),
        ("float8e8m0", np.array([1.0, 0.0]), "expected FLOAT8E8M0, got 0.0 at [1]"),
        ("float8e8m0", np.array([-1.0]), "got -1.0 at [0]"),
        ("float4e2m1", np.array([np.nan]), "expected FLOAT4E2M1, got nan at [0]"),
        ("int4", np.array([0, 8], np.int8), "expected INT4, got 8 at [1]"),
        ("int4", np.array([-9]), "got -9 at [0]"),
        ("int2", np.array([2], np.int8), "expected INT2, got 2 at [0]"),
        ("uint4", np.array([16], np.uint8), "expected UINT4, got 16 at [0]"),
        ("uint2", np.array([0.5]), "expected UINT2, got 0.5 at [0]"),
    ],
)
def test_values_that_would_change_are_refused(kind: str, values: Any, shown: str) -> None:
    with pytest.raises(MismatchError) as caught:
        cast(values, spec(kind))
    assert shown in str(caught.value)


@given(hnp.arrays(hnp.integer_dtypes() | hnp.unsigned_integer_dtypes() | hnp.floating_dtypes(sizes=(16, 32, 64)), 3),
       st.sampled_from([dtype for dtype in DataType if dtype.is_integer]))  # fmt: skip
def test_integers_are_exact_or_refused(values: Any, dtype: DataType) -> None:
    """Whatever passes has the same mathematical values, compared as Python numbers."""
    try:
        result = cast(values, spec(dtype.ort))
    except MismatchError:
        least, greatest = dtype.limits
        items = values.tolist()
        assert any(
            not np.isfinite(item) or item != int(item) or not least <= int(item) <= greatest for item in items
        )
    else:
        assert result.dtype == dtype.numpy
        assert result.tolist() == values.tolist()


def test_map_table_slices_and_expands() -> None:
    table = MapTable(("a", "b"), np.array([[1, 2], [3, 4]], np.float32))

    assert len(table) == 2
    assert list(table[1:].dicts()) == [{"a": 3.0, "b": 4.0}]


@pytest.mark.parametrize(
    ("value", "rows"),
    [(np.zeros((3, 2)), 3), (np.zeros(()), None), ([1, 2], 2), ({"a": 1}, None), (None, None)],
)
def test_row_count(value: Any, rows: int | None) -> None:
    assert row_count(value) == rows
