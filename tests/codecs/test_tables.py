"""What Parquet files and Arrow streams share: how columns become inputs, and outputs columns."""

import io
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from codec_laws import check_round_trip, decode, decode_rows, encode, signature
from onnx_serve.codecs import arrow_stream, parquet
from onnx_serve.codecs.interface import Body, Codec, CodecOptions, MediaType
from onnx_serve.errors import DecodeError, EncodeError, MismatchError
from onnx_serve.tensors import DataType, MapTable, RowAxis, Signature, TensorSpec, Values

Array: TypeAlias = npt.NDArray[Any]
FORMATS = {"parquet": parquet.codec, "arrow": arrow_stream.codec}
MATRIX = signature(("x", "float", ["N", 3]))
MIXED = signature(("age", "float", ["N", 1]), ("city", "string", ["N"]), ("n", "int64", ["N"]))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


def single(values: Any) -> Array:
    return np.array(values, np.float32)


def write(codec: Codec, table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    if codec is parquet.codec:
        pq.write_table(table, sink, **options)
    else:
        with pa.ipc.new_stream(sink, table.schema, **options) as writer:
            writer.write_table(table)
    return sink.getvalue()


def read(codec: Codec, data: bytes) -> pa.Table:
    if codec is parquet.codec:
        return pq.read_table(io.BytesIO(data))
    return pa.ipc.open_stream(data).read_all()


@pytest.fixture(params=FORMATS.values(), ids=list(FORMATS))
def codec(request: pytest.FixtureRequest) -> Codec:
    chosen: Codec = request.param
    return chosen


# Requests.


def test_wide_tables_take_time_in_proportion_to_their_columns() -> None:
    """When each column was looked for among all, 20,000 took more than a minute."""
    names = [f"c{number}" for number in range(20_000)]
    body = write(arrow_stream.codec, pa.table([pa.array([1.5])] * len(names), names=names))
    started = time.process_time()
    rows = decode_rows(arrow_stream.codec, body, signature(("x", "float", ["N", None])))
    assert rows["x"].shape == (1, 20_000)
    assert time.process_time() - started < 10


def test_a_column_that_is_there_twice_among_many() -> None:
    names = [*(f"c{number}" for number in range(20_000)), "twice", "twice"]
    body = write(arrow_stream.codec, pa.table([pa.array([1.5])] * len(names), names=names))
    started = time.process_time()
    with pytest.raises(DecodeError, match='expected each column once, got "twice" again'):
        decode(arrow_stream.codec, body, MATRIX)
    assert time.process_time() - started < 3


def test_columns_match_inputs_by_name_in_any_order(codec: Codec) -> None:
    table = pa.table({"n": [7, 8], "city": ["Köln", ""], "age": [1.5, None]})
    rows = decode_rows(codec, write(codec, table), MIXED)

    np.testing.assert_array_equal(rows["age"], [[1.5], [np.nan]])
    assert rows["city"].tolist() == ["Köln", ""]
    assert rows["n"].tolist() == [7, 8]


def test_columns_fill_inputs_in_order(codec: Codec) -> None:
    """Their types may differ: each value is converted alone, so that integers stay exact."""
    model = signature(("x", "double", ["N", 2]), ("y", "int64", ["N", 1, 2]))
    table = pa.table({"a": pa.array([1], pa.int8()), "b": [0.5], "c": [2**62 + 1], "d": [True]})
    rows = decode_rows(codec, write(codec, table), model)

    assert rows["x"].tolist() == [[1.0, 0.5]]
    assert rows["y"].tolist() == [[[2**62 + 1, 1]]]


def test_one_input_may_have_a_free_dimension(codec: Codec) -> None:
    model = signature(("x", "float", ["N", "K"]), ("y", "float", ["N"]))
    rows = decode_rows(codec, write(codec, pa.table({str(i): [float(i)] for i in range(4)})), model)

    assert rows["x"].tolist() == [[0, 1, 2]]
    assert rows["y"].tolist() == [3]


LISTS: dict[str, tuple[Any, list[Any]]] = {
    "list": (pa.list_(pa.float32()), [1, 2, 3]),
    "large list": (pa.large_list(pa.float64()), [1, 2, 3]),
    "fixed": (pa.list_(pa.int32(), 3), [1, 2, 3]),
    "nested": (pa.list_(pa.list_(pa.float32())), [[1, 2, 3]]),
    "fixed nested": (pa.list_(pa.list_(pa.float32(), 3), 1), [[1, 2, 3]]),
}


@pytest.mark.parametrize(("kind", "row"), LISTS.values(), ids=LISTS)
@pytest.mark.parametrize("name", ["x", "features"])
def test_a_column_of_lists_is_an_input(codec: Codec, kind: Any, row: list[Any], name: str) -> None:
    table = pa.table({name: pa.array([row] * 5, kind)}).slice(2)

    assert decode_rows(codec, write(codec, table), MATRIX)["x"].tolist() == [[1, 2, 3]] * 3


def test_a_column_of_tensors_is_an_input(codec: Codec) -> None:
    """As Ray's datasets have them."""
    model = signature(("x", "float", ["N", "H", "W"]))
    values = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    table = pa.table({"any": pa.FixedShapeTensorArray.from_numpy_ndarray(values)})

    np.testing.assert_array_equal(decode_rows(codec, write(codec, table), model)["x"], values)
    permuted = pa.fixed_shape_tensor(pa.float32(), [2, 3], permutation=[1, 0])
    column = pa.ExtensionArray.from_storage(permuted, pa.array([[0] * 6], pa.list_(pa.float32(), 6)))
    with pytest.raises(DecodeError, match="not permuted"):
        decode(codec, write(codec, pa.table({"x": column})), model)


def test_a_free_dimension_may_be_left_nothing(codec: Codec) -> None:
    model = signature(("x", "float", ["N", "K"]), ("y", "float", ["N"]))
    rows = decode_rows(codec, write(codec, pa.table({"a": [5.0]})), model)

    assert rows["x"].shape == (1, 0)
    assert rows["y"].tolist() == [5]


def test_nested_lists_tell_several_free_dimensions(codec: Codec) -> None:
    model = signature(("x", "float", ["N", "H", "W"]))
    table = pa.table({"x": [[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]] * 2})

    assert decode_rows(codec, write(codec, table), model)["x"].shape == (2, 3, 2)


def test_rows_of_different_lengths_come_in_blocks_of_equal_ones(codec: Codec) -> None:
    model = signature(("ids", "int64", ["N", "T"]), ("mask", "int64", ["N", "T"]))
    ids = [[1, 2], [3, 4], [5], [], [6]]
    table = pa.table(
        {"ids": ids, "mask": [[1] * len(row) for row in ids]},
        pa.schema([("ids", pa.list_(pa.int64())), ("mask", pa.list_(pa.int64()))]),
    )

    [(_, blocks)] = decode(codec, write(codec, table), model)
    assert [block["ids"].tolist() for block in blocks] == [[[1, 2], [3, 4]], [[5]], [[]], [[6]]]


def test_dictionary_columns_are_decoded(codec: Codec) -> None:
    city = pa.array(["a", "b", "a"]).dictionary_encode()
    table = pa.table({"age": pa.array([1.0, None, 1.0]).dictionary_encode(), "city": city, "n": [1, 2, 3]})
    rows = decode_rows(codec, write(codec, table), MIXED)

    np.testing.assert_array_equal(rows["age"][:, 0], [1, np.nan, 1])
    assert rows["city"].tolist() == ["a", "b", "a"]


@pytest.mark.parametrize("kind", [pa.null(), pa.float16(), pa.int32(), pa.bool_(), pa.float64()], ids=str)
def test_nulls_are_nan_for_floats(codec: Codec, kind: Any) -> None:
    value = (
        None
        if pa.types.is_null(kind)
        else np.float16(1)
        if kind == pa.float16()
        else kind.to_pandas_dtype()(1)
    )
    table = pa.table({"a": pa.array([None, value], kind), "b": [1.0, 2.0], "c": [3, 4]})
    rows = decode_rows(codec, write(codec, table), MATRIX)["x"]

    np.testing.assert_array_equal(rows, [[np.nan, 1, 3], [np.nan if value is None else 1, 2, 4]])


def test_nulls_in_lists_are_nan_for_floats(codec: Codec) -> None:
    table = pa.table({"x": [[1.0, None, 3.0]]})

    np.testing.assert_array_equal(decode_rows(codec, write(codec, table), MATRIX)["x"], [[1, np.nan, 3]])


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.large_string()], ids=str)
def test_strings_come_in_several_types(codec: Codec, kind: Any) -> None:
    model = signature(("x", "string", ["N"]))
    table = pa.table({"x": pa.array(["é", ""]).cast(kind)})

    assert decode_rows(codec, write(codec, table), model)["x"].tolist() == ["é", ""]


def test_pandas_index_column_is_left_out(codec: Codec) -> None:
    table = pa.table({"x": [1.0], "__index_level_0__": [5]})

    assert decode_rows(codec, write(codec, table), signature(("x", "float", ["N"])))["x"].tolist() == [1]


def test_without_rows_a_row_is_a_run(codec: Codec) -> None:
    model = signature(("x", "float", ["H", 2]), row_axis=RowAxis.NONE)
    table = pa.table({"x": [[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]]})

    [(_, blocks)] = decode(codec, write(codec, table), model)
    assert [block["x"].tolist() for block in blocks] == [[[1, 2]], [[3, 4], [5, 6]]]


def test_a_table_without_rows_has_no_block(codec: Codec) -> None:
    [(_, blocks)] = decode(
        codec, write(codec, pa.table({"x": pa.array([], pa.float32())})), signature(("x", "float", ["N"]))
    )

    assert blocks == []


@pytest.mark.parametrize("chunk_bytes", [1, 1000, 1 << 20])
def test_blocks_are_of_the_size_asked_for(codec: Codec, chunk_bytes: int) -> None:
    table = pa.table({str(i): np.arange(500, dtype=np.float32) * (i + 1) for i in range(3)})
    data = write(codec, table, **({"row_group_size": 200} if codec is parquet.codec else {}))

    [(_, blocks)] = decode(codec, data, MATRIX, options=CodecOptions(chunk_bytes=chunk_bytes))
    assert max(len(block["x"]) for block in blocks) <= max(1, chunk_bytes // 12)
    np.testing.assert_array_equal(np.concatenate([block["x"] for block in blocks])[:, 2], np.arange(500) * 3)


def test_a_body_may_start_inside_its_stream_or_be_read_once_only(codec: Codec) -> None:
    data = write(codec, pa.table({"x": [1.0, 2.0]}))
    inside = io.BytesIO(b"front" + data)
    inside.seek(5)

    class Once(io.BytesIO):
        def seekable(self) -> bool:
            return False

    assert codec.decode is not None
    for stream in (inside, Once(data)):
        [document] = codec.decode(
            Body(stream, len(data)), MediaType(""), signature(("x", "float", ["N"])), CodecOptions()
        )
        assert [block["x"].tolist() for block in document.blocks] == [[1, 2]]
        assert not stream.closed


VECTOR = signature(("x", "float", ["N"]))
ERRORS: dict[str, tuple[Any, Signature, str]] = {
    "misnamed": (
        {"age": [1.0], "town": ["a"], "n": [1]}, MIXED,
        'expected a column for each of "age" FLOAT[N, 1], "city" STRING[N], "n" INT64[N]: missing "city"; unknown "town"',
    ),
    "missing": ({"age": [1.0], "n": [1]}, MIXED, 'missing "city"'),
    "extra": ({"age": [1.0], "city": ["a"], "n": [1], "m": [1]}, MIXED, 'unknown "m"'),
    "too few": ({"a": [1.0], "b": [1.0]}, MATRIX, "expected 3 columns of single values, or a column of lists an input for"),
    "two free": ({"a": [1.0]}, signature(("x", "float", ["N", "K"]), ("y", "float", ["N", "K"])), "a column of lists an input"),
    "lists and more": ({"a": [[1.0]], "b": [[1.0]]}, MATRIX, 'missing "x"; unknown "a", "b"'),
    "width": ({"x": [[1.0, 2.0]]}, MATRIX, 'input "x": expected FLOAT[N, 3], got 2 values for a record (record 1)'),
    "ragged": ({"x": [[1.0, 2.0, 3.0], [1.0]]}, MATRIX, "got 1 value for a record (record 2)"),
    "ragged inside": ({"x": [[[1.0], [1.0, 2.0]]]}, MATRIX, "expected lists of equal length, got 1 and 2 (record 1)"),
    "null list": ({"x": [[1.0, 2.0, 3.0], None]}, MATRIX, 'column "x": expected a list, got null (record 2)'),
    "null inside": ({"x": [[[1.0, 2.0, 3.0]], [None]]}, MATRIX, 'column "x": expected a list, got null (record 2)'),
    "null integer": ({"age": [1.0, 2.0], "city": ["a", "b"], "n": [1, None]}, MIXED, 'column "n": expected INT64, got null (record 2)'),
    "null string": ({"age": [1.0, 2.0], "city": ["a", None], "n": [1, 1]}, MIXED, 'column "city": expected STRING, got null (record 2)'),
    "text": ({"x": ["a"]}, VECTOR, 'column "x", input "x": expected FLOAT, got "a"'),
    "number": ({"age": [1.0], "city": [3], "n": [1]}, MIXED, 'column "city", input "city": expected STRING, got 3'),
    "fraction": ({"age": [1.0, 2.0], "city": ["a", "a"], "n": [1, 1.5]}, MIXED, "expected INT64, got 1.5"),
    "too large": ({"a": [1.0, 1.0], "b": [1.0, 1e39], "c": [1.0, 1.0]}, MATRIX, 'column "b", input "x": expected FLOAT, got 1e+39 at [0] (record 2)'),
    "date": ({"x": pa.array([0], pa.timestamp("s"))}, VECTOR, 'column "x": expected numbers, booleans, strings or lists of them, got "timestamp'),
    "struct": ({"x": [{"a": 1}]}, VECTOR, 'got "struct<a: int64>"'),
    "list of structs": ({"x": [[{"a": 1}]]}, VECTOR, "expected numbers, booleans, strings or lists"),
    "decimal": ({"x": pa.array([1], pa.decimal128(5))}, VECTOR, 'got "decimal128'),
    "no tensor": ({"x": [1.0]}, signature(("x", "seq(tensor(float))", [])), "columns cannot feed the inputs"),
    "no input": ({"x": [1.0]}, signature(), "columns cannot feed the inputs (none)"),
}  # fmt: skip


@pytest.mark.parametrize(("columns", "model", "problem"), ERRORS.values(), ids=ERRORS)
def test_errors_name_column_and_record(codec: Codec, columns: Any, model: Signature, problem: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(codec, write(codec, pa.table(columns)), model)

    assert problem in str(caught.value)


def test_nulls_in_dictionaries_are_nulls() -> None:
    """Parquet has no such thing."""
    encoded = pa.DictionaryArray.from_arrays(pa.array([0, None, 1]), pa.array([None, 2.0]))
    data = write(arrow_stream.codec, pa.table({"x": encoded}))
    np.testing.assert_array_equal(decode_rows(arrow_stream.codec, data, VECTOR)["x"], [np.nan, np.nan, 2])

    nothing = pa.DictionaryArray.from_arrays(pa.array([None, None], pa.int8()), pa.array([], pa.float32()))
    data = write(arrow_stream.codec, pa.table({"x": nothing}))
    np.testing.assert_array_equal(decode_rows(arrow_stream.codec, data, VECTOR)["x"], [np.nan, np.nan])

    text = pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["a", None]))
    with pytest.raises(DecodeError, match=r"expected STRING, got null \(record 2\)"):
        decode(
            arrow_stream.codec,
            write(arrow_stream.codec, pa.table({"x": text})),
            signature(("x", "string", ["N"])),
        )


def test_empty_lists_have_a_type_too(codec: Codec) -> None:
    table = pa.table({"x": pa.array([[]], pa.list_(pa.string()))})
    text = signature(("x", "string", ["N", "K"]))
    assert decode_rows(codec, write(codec, table), text)["x"].shape == (1, 0)

    with pytest.raises(MismatchError, match="expected FLOAT"):
        decode(codec, write(codec, table), signature(("x", "float", ["N", "K"])))


def test_columns_of_one_name_are_refused(codec: Codec) -> None:
    table = pa.Table.from_arrays([pa.array([1.0]), pa.array([1.0])], ["x", "x"])

    with pytest.raises(DecodeError, match='expected each column once, got "x" again'):
        decode(codec, write(codec, table), VECTOR)


def test_strings_that_are_no_utf_8_are_refused(codec: Codec) -> None:
    wrong = pa.StringArray.from_buffers(
        1, pa.py_buffer(np.array([0, 1], np.int32).tobytes()), pa.py_buffer(b"\xff")
    )
    for column in (wrong, pa.array([b"\xff"])):
        with pytest.raises(DecodeError, match=r"UTF-?8"):
            decode(codec, write(codec, pa.table({"x": column})), signature(("x", "string", ["N"])))


# Answers.

SHAPES: dict[str, Callable[[tuple[int, ...]], tuple[int | None, ...]]] = {
    "fixed": lambda shape: (None, *shape[1:]),
    "free": lambda shape: (None,) * len(shape),
}
NATIVE = [dtype for dtype in DataType if dtype.is_native]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", NATIVE, ids=lambda dtype: dtype.name)
@given(data=st.data())
@settings(max_examples=6)
def test_tensors_survive_the_round_trip(dtype: DataType, shape: Any, data: st.DataObject) -> None:
    elements = TEXT if dtype is DataType.STRING else None
    array = data.draw(hnp.arrays(dtype.numpy, hnp.array_shapes(max_dims=4, max_side=3), elements=elements))
    for chosen in FORMATS.values():
        check_round_trip(chosen, {"x": array}, [TensorSpec("x", f"tensor({dtype.ort})", shape(array.shape))])


def test_outputs_are_columns_that_other_readers_read(codec: Codec) -> None:
    model = signature(
        outputs=[
            ("label", "string", ["N"]),
            ("probability", "seq(map(int64,tensor(float)))", []),
            ("embedding", "float", ["N", 2]),
            ("tokens", "int64", ["N", "T"]),
        ]
    )
    blocks: list[Values] = [
        {
            "label": np.array(["a", "b"], object),
            "probability": MapTable((3, 5), single([[0.25, 0.75], [1, 0]])),
            "embedding": single([[1, 2], [3, 4]]),
            "tokens": np.array([[1, 2], [3, 4]]),
        },
        {
            "label": np.array(["c"], object),
            "probability": MapTable((3,), single([[0.5]])),
            "embedding": single([[5, 6]]),
            "tokens": np.array([[7]]),
        },
    ]
    table = read(codec, encode(codec, blocks, model))

    assert table.column("label").to_pylist() == ["a", "b", "c"]
    assert table.column("probability").to_pylist() == [[(3, 0.25), (5, 0.75)], [(3, 1), (5, 0)], [(3, 0.5)]]
    assert table.column("embedding").to_pylist() == [[1, 2], [3, 4], [5, 6]]
    assert table.column("embedding").type == pa.list_(pa.float32(), 2)
    assert table.column("tokens").to_pylist() == [[1, 2], [3, 4], [7]]


def test_string_maps_and_labels_of_text(codec: Codec) -> None:
    model = signature(outputs=[("y", "seq(map(string,tensor(float)))", [])])
    table = read(codec, encode(codec, [{"y": MapTable(("a", "b"), single([[1, 2]]))}], model))

    assert table.column("y").to_pylist() == [[("a", 1), ("b", 2)]]


def test_without_rows_an_answer_has_a_row_a_run(codec: Codec) -> None:
    outputs: list[tuple[str, str, list[int | str | None]]] = [
        ("y", "float", ["M", 2]),
        ("z", "float", []),
        ("m", "seq(map(int64,tensor(float)))", []),
    ]
    model = signature(outputs=outputs, row_axis=RowAxis.NONE)
    maps = MapTable((0,), single([[1], [2]]))
    block: Values = {"y": single([[1, 2], [3, 4]]), "z": np.array(5, np.float32), "m": maps}
    table = read(codec, encode(codec, [block, block], model))

    assert table.column("y").to_pylist() == [[[1, 2], [3, 4]]] * 2
    assert table.column("z").to_pylist() == [5, 5]
    assert table.column("m").to_pylist() == [[[(0, 1)], [(0, 2)]]] * 2


def test_no_answer_is_a_table_without_rows(codec: Codec) -> None:
    outputs: list[tuple[str, str, list[int | str | None]]] = [
        ("y", "float", ["N", 2]),
        ("s", "string", ["N"]),
        ("m", "seq(map(int64,tensor(float)))", []),
    ]
    model = signature(outputs=outputs)
    table = read(codec, encode(codec, [], model))

    assert table.schema.names == ["y", "s", "m"]
    assert table.num_rows == 0


def test_small_blocks_are_written_together(codec: Codec) -> None:
    model = signature(outputs=[("y", "float", ["N"])])
    data = encode(codec, [{"y": single([i])} for i in range(100)], model)

    if codec is parquet.codec:
        assert pq.ParquetFile(io.BytesIO(data)).num_row_groups == 1
    else:
        assert len(list(pa.ipc.open_stream(data))) == 1


def test_large_answers_are_written_in_parts(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_GROUP_BYTES", 100)
    monkeypatch.setattr(arrow_stream, "_BATCH_BYTES", 100)
    model = signature(outputs=[("y", "float", ["N"])])
    data = encode(codec, [{"y": np.arange(30, dtype=np.float32)} for _ in range(3)], model)

    assert read(codec, data).column("y").to_pylist() == list(range(30)) * 3
    if codec is parquet.codec:
        assert pq.ParquetFile(io.BytesIO(data)).num_row_groups == 3
    else:
        assert len(list(pa.ipc.open_stream(data))) == 3


UNENCODABLE: dict[str, tuple[str, Any, Any, str]] = {
    "sequence": ("seq(tensor(float))", [], [np.zeros(1)], 'output "y" is seq(tensor(float))'),
    "unknown type": ("tensor(complex64)", ["N"], np.zeros(1), 'output "y" is tensor(complex64)'),
    "other width": ("float", ["N", 2], np.zeros((1, 3), np.float32), 'output "y": expected FLOAT[N, 2]'),
    "other rank": ("float", ["N", 2], np.zeros(2, np.float32), 'output "y": expected FLOAT[N, 2]'),
    "no value": ("float", ["N"], None, 'output "y": expected FLOAT[N]'),
    "surrogate": ("string", ["N"], np.array(["\ud800"], object), 'output "y": expected STRING[N]'),
}


@pytest.mark.parametrize(("kind", "shape", "value", "problem"), UNENCODABLE.values(), ids=UNENCODABLE)
def test_outputs_without_a_form_are_refused(
    codec: Codec, kind: str, shape: Any, value: Any, problem: str
) -> None:
    with pytest.raises(EncodeError) as caught:
        encode(codec, [{"y": value}], signature(outputs=[("y", kind, shape)]))

    assert problem in str(caught.value)


def test_outputs_of_different_numbers_of_rows_are_refused(codec: Codec) -> None:
    model = signature(outputs=[("y", "float", ["N"]), ("z", "float", ["M"])])

    with pytest.raises(EncodeError, match="different numbers of rows"):
        encode(codec, [{"y": np.zeros(1, np.float32), "z": np.zeros(2, np.float32)}], model)
