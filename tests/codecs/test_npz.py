import base64
import io
import math
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from codec_laws import (
    OPTIONS,
    arrays_of,
    check_arbitrary_bytes,
    check_round_trip,
    decode,
    decode_rows,
    encode,
    signature,
)
from onnx_serve.codecs.interface import Answer, Body, CodecOptions, Layout, MediaType
from onnx_serve.codecs.npz import codec
from onnx_serve.errors import DecodeError, EncodeError, MismatchError
from onnx_serve.tensors import DataType, MapTable, RowAxis, Signature, TensorSpec, Values

Array = npt.NDArray[Any]
PAIR = signature(("x", "float", ["N", 3]), ("n", "int64", ["N"]))
ONE = signature(("x", "float", ["N", 3]))
MATRIX = np.array([[0, 0, 3], [4, 0, 0], [0, 0, 0], [0, 5, 0]], np.float32)
# scipy 1.17.1: scipy.sparse.save_npz(file, scipy.sparse.csr_matrix(MATRIX))
SCIPY_CSR = base64.b64decode(
    "UEsDBC0AAAAIAAAAIQDt3Zmb//////////8LABQAaW5kaWNlcy5ucHkBABAAjAAAAAAAAABKAAAAAAAAAJvsF+obEMnIUMZQrZ6S"
    "WpxcpG6loG6TaaKuo6Cell9UUpSYF59flJIKEndLzClOBYoXZyQWpAL5GsY6mjoKtQoUAC4mBghgBGIAUEsDBC0AAAAIAAAAIQAS"
    "xBgy//////////8KABQAaW5kcHRyLm5weQEAEACUAAAAAAAAAE4AAAAAAAAAm+wX6hsQychQxlCtnpJanFykbqWgbpNpoq6joJ6W"
    "X1RSlJgXn1+UkgoSd0vMKU4FihdnJBakAvkapjqaOgq1ChQALgYgYARiJihmBmIAUEsDBC0AAAAIAAAAIQCjw3SX//////////8K"
    "ABQAZm9ybWF0Lm5weQEAEACDAAAAAAAAAEUAAAAAAAAAm+wX6hsQychQxlCtnpJanFykbqWgXhNsrK6joJ6WX1RSlJgXn1+UkgoS"
    "d0vMKU4FihdnJBakAvkamjoKtQoUAa7k4iIAUEsDBC0AAAAIAAAAIQCEIe9f//////////8JABQAc2hhcGUubnB5AQAQAJAAAAAA"
    "AAAASgAAAAAAAACb7BfqGxDJyFDGUK2eklqcXKRupaBuk2mhrqOgnpZfVFKUmBefX5SSChJ3S8wpTgWKF2ckFqQC+RpGOpo6CrUK"
    "FAAuFgYIYIbSAFBLAwQtAAAACAAAACEA5kMrxv//////////CAAUAGRhdGEubnB5AQAQAIwAAAAAAAAATwAAAAAAAACb7BfqGxDJ"
    "yFDGUK2eklqcXKRupaBuk2airqOgnpZfVFKUmBefX5SSChJ3S8wpTgWKF2ckFqQC+RrGOpo6CrUKFAAuBgYHBwaGBiBe4AAAUEsB"
    "Ai0DLQAAAAgAAAAhAO3dmZtKAAAAjAAAAAsAAAAAAAAAAAAAAIABAAAAAGluZGljZXMubnB5UEsBAi0DLQAAAAgAAAAhABLEGDJO"
    "AAAAlAAAAAoAAAAAAAAAAAAAAIABhwAAAGluZHB0ci5ucHlQSwECLQMtAAAACAAAACEAo8N0l0UAAACDAAAACgAAAAAAAAAAAAAA"
    "gAERAQAAZm9ybWF0Lm5weVBLAQItAy0AAAAIAAAAIQCEIe9fSgAAAJAAAAAJAAAAAAAAAAAAAACAAZIBAABzaGFwZS5ucHlQSwEC"
    "LQMtAAAACAAAACEA5kMrxk8AAACMAAAACAAAAAAAAAAAAAAAgAEXAgAAZGF0YS5ucHlQSwUGAAAAAAUABQAWAQAAoAIAAAAA"
)


def saved(*arrays: Array, compressed: bool = False, **named: Any) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, *arrays, **named)
    return file.getvalue()


def loaded(data: bytes) -> dict[str, Array]:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return dict(archive)


def npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def archive(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as zipped:
        for name, data in members:
            zipped.writestr(zipfile.ZipInfo(name), data, compression)
    return file.getvalue()


def patched(data: bytes, *changes: tuple[bytes, int, bytes]) -> bytes:
    """The archive with bytes replaced at an offset from each record that begins with a signature."""
    body = bytearray(data)
    for signature_bytes, offset, new in changes:
        at = body.find(signature_bytes)
        while at >= 0:
            body[at + offset : at + offset + len(new)] = new
            at = body.find(signature_bytes, at + 4)
    return bytes(body)


LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
GOOD = saved(x=np.ones((2, 3), np.float32), n=np.array([1, 2]))

# Round trips.


@given(st.data())
@settings(max_examples=60)
def test_all_types_survive_the_round_trip(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 4))
    dtypes = data.draw(st.lists(st.sampled_from(list(DataType)), min_size=1, max_size=4))
    values: Values = {}
    specs = []
    for place, dtype in enumerate(dtypes):
        shape = (rows, *data.draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3)))
        text = st.text("aé€", max_size=3) if dtype is DataType.STRING else None
        values[f"a/{place}"] = data.draw(arrays_of(dtype, shape, text))
        specs.append(TensorSpec(f"a/{place}", f"tensor({dtype.ort})", (None,) * len(shape)))
    check_round_trip(codec, values, specs, Layout.COLUMNS)


@given(
    hnp.arrays(
        hnp.floating_dtypes(endianness="?", sizes=[16, 32])
        | hnp.integer_dtypes(endianness="?", sizes=[8, 16]),
        hnp.array_shapes(max_dims=3, max_side=4),
    ),
    st.booleans(),
    st.sampled_from("CF"),
)
@settings(max_examples=100)
def test_what_numpy_saved_is_decoded(array: Array, compressed: bool, order: Any) -> None:
    ranks = [None] * array.ndim
    model = signature(("a", "double", ranks), ("b", "double", ranks))
    data = saved(a=np.asarray(array, order=order), b=array, compressed=compressed)
    [(layout, [block])] = decode(codec, data, model)
    assert layout is Layout.COLUMNS
    for decoded in block.values():
        np.testing.assert_array_equal(decoded, array.astype(np.float64))


def test_numpy_loads_what_is_written() -> None:
    model = signature(
        outputs=[
            ("label", "string", ["N"]),
            ("scores", "seq(map(int64,tensor(float)))", []),
            ("names", "seq(map(string,tensor(float)))", []),
            ("deep/x:0", "int8", ["N", 2]),
        ]
    )
    values: Values = {
        "label": np.array(["a", "béc"], object),
        "scores": MapTable((1, 5), np.array([[0.5, 0.5], [0.25, 0.75]], np.float32)),
        "names": MapTable(("no", "yes"), np.array([[1, 0], [0, 1]], np.float32)),
        "deep/x:0": np.array([[1, 2], [3, 4]], np.int8),
    }
    found = loaded(encode(codec, [values, values], model))
    assert {name: (array.dtype.str, array.tolist()) for name, array in found.items()} == {
        "label": ("<U3", ["a", "béc"] * 2),
        "scores": ("<f4", [[0.5, 0.5], [0.25, 0.75]] * 2),
        "scores.keys": ("<i8", [1, 5]),
        "names": ("<f4", [[1, 0], [0, 1]] * 2),
        "names.keys": ("<U3", ["no", "yes"]),
        "deep/x:0": ("|i1", [[1, 2], [3, 4]] * 2),
    }


def test_equal_answers_are_equal_bytes_stored_with_sizes_up_front() -> None:
    model = signature(outputs=[("y", "float", ["N"])])
    data = encode(codec, [{"y": np.ones(5, np.float32)}], model)
    with zipfile.ZipFile(io.BytesIO(data)) as zipped:
        [info] = zipped.infolist()
    assert (info.date_time, info.compress_type, info.create_system) == ((1980, 1, 1, 0, 0, 0), 0, 3)
    # Readers that stream, such as cnpy, need the sizes in the local header.
    assert struct.unpack_from("<II", data, 18) == (info.file_size, info.file_size) == (148, 148)
    assert data == encode(codec, [{"y": np.ones(2, np.float32)}, {"y": np.ones(3, np.float32)}], model)


def written(found: list[Answer], model: Signature, before: bytes = b"") -> bytes:
    assert codec.encode is not None
    sink = io.BytesIO(before)
    sink.seek(len(before))
    codec.encode(found, sink, MediaType("application/x-npz"), model, OPTIONS)
    assert sink.tell() == len(sink.getvalue())
    return sink.getvalue()[len(before) :]


def test_an_answer_is_the_same_wherever_the_sink_stands() -> None:
    model = signature(outputs=[("y", "float", ["N"])])
    found = [Answer([{"y": np.ones(5, np.float32)}])]
    assert written(found, model, b"before") == written(found, model)


@pytest.mark.parametrize("row_axis", [RowAxis.FREE, RowAxis.NONE])
def test_no_blocks_give_the_declared_shapes(row_axis: RowAxis) -> None:
    outputs: Any = [("y", "float", ["N", 2]), ("m", "seq(map(string,tensor(float)))", []),
               ("k", "seq(map(int64,tensor(double)))", [])]  # fmt: skip
    found = loaded(written([Answer([])], signature(outputs=outputs, row_axis=row_axis)))
    shape = (0, 2) if row_axis is RowAxis.FREE else (0, 0, 2)
    assert {name: (array.dtype.str, array.shape) for name, array in found.items()} == {
        "y": ("<f4", shape),
        "m": ("<f4", (0, 0)),
        "m.keys": ("<U1", (0,)),
        "k": ("<f8", (0, 0)),
        "k.keys": ("<i8", (0,)),
    }


def test_without_rows_one_run_is_as_it_is_and_several_are_stacked() -> None:
    model = signature(outputs=[("y", "float", []), ("z", "float", [None])], row_axis=RowAxis.NONE)
    block: Values = {"y": np.array(2, np.float32), "z": np.array([1, 2], np.float32)}
    assert {name: array.tolist() for name, array in loaded(written([Answer([block])], model)).items()} == {
        "y": 2,
        "z": [1, 2],
    }
    found = loaded(written([Answer([block]), Answer([block])], model))
    assert {name: array.tolist() for name, array in found.items()} == {"y": [2, 2], "z": [[1, 2], [1, 2]]}


@pytest.mark.parametrize(
    ("outputs", "values", "message"),
    [
        ([("y", "seq(tensor(float))", [])], [{"y": [np.ones(1)]}], r'output "y": .* got list'),
        ([("y", "seq(tensor(float))", [])], [], r'output "y": .* got seq\(tensor\(float\)\)'),
        (
            [("y", "seq(map(int64,tensor(float)))", [])],
            [{"y": MapTable((1,), np.ones((1, 1)))}, {"y": MapTable((2,), np.ones((1, 1)))}],
            r'output "y": the maps differ in their keys',
        ),
        (
            [("y", "float", ["N", None])],
            [{"y": np.ones((1, 2))}, {"y": np.ones((1, 3))}],
            r'output "y": expected',
        ),
        (
            [("y", "seq(map(int64,tensor(float)))", []), ("y.keys", "float", ["N"])],
            [],
            r'one array a name, and two outputs would be "y.keys"',
        ),
    ],
    ids=["sequence", "declared sequence", "keys", "shape", "name"],
)
def test_what_has_no_form_is_an_error(outputs: Any, values: list[Any], message: str) -> None:
    with pytest.raises(EncodeError, match=message):
        written([Answer(values)], signature(outputs=outputs))


# Names.


@pytest.mark.parametrize(
    "data", [saved(MATRIX), saved(x=MATRIX), saved(other=MATRIX)], ids=["arr_0", "x", "other"]
)
def test_one_array_is_for_the_only_input_whatever_its_name(data: bytes) -> None:
    np.testing.assert_array_equal(decode_rows(codec, data, ONE)["x"], MATRIX)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (saved(x=MATRIX), r'missing "n"'),
        (saved(x=MATRIX, m=MATRIX), r'missing "n"; unknown "m"'),
        (saved(x=MATRIX, n=MATRIX, m=MATRIX), r'unknown "m"'),
        (archive(("../../x.npy", b""), ("n.npy", b"")), r'missing "x"; unknown "../../x"'),
        (archive(), r'missing "x", "n"'),
    ],
    ids=["missing", "renamed", "extra", "climbing", "empty"],
)
def test_other_names_are_a_mismatch_before_any_member_is_read(data: bytes, message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        decode(codec, data, PAIR)


def test_an_array_too_many_for_one_input_is_a_mismatch() -> None:
    with pytest.raises(MismatchError, match='unknown "y"'):
        decode(codec, saved(x=MATRIX, y=MATRIX), ONE)


def test_no_rows_are_no_blocks() -> None:
    assert decode(codec, saved(x=MATRIX[:0], n=np.empty(0, np.int64)), PAIR) == [(Layout.COLUMNS, [])]


def test_no_rows_in_one_input_only_are_a_mismatch() -> None:
    with pytest.raises(MismatchError, match=r'"n": expected 0 rows like "x", got 4'):
        decode(codec, saved(x=MATRIX[:0], n=np.arange(4)), PAIR)


def test_a_model_without_rows_takes_its_arrays_as_they_are() -> None:
    model = signature(("x", "float", [None, 3]), ("n", "int64", []), row_axis=RowAxis.NONE)
    [(_, [block])] = decode(codec, saved(x=MATRIX[:0], n=np.array(7)), model)
    assert block["x"].shape == (0, 3)
    assert block["n"].shape == ()


@pytest.mark.parametrize("prefix", [b"", b"prefix"], ids=["start", "later"])
def test_the_body_begins_where_the_stream_stands(prefix: bytes) -> None:
    stream = io.BytesIO(prefix + GOOD)
    stream.seek(len(prefix))
    assert codec.decode is not None
    [document] = codec.decode(Body(stream, len(GOOD)), MediaType("a/b"), PAIR, OPTIONS)
    [block] = document.blocks
    np.testing.assert_array_equal(block["n"], [1, 2])
    assert not stream.closed


def test_a_stream_that_cannot_seek_is_read() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    assert codec.decode is not None
    [document] = codec.decode(Body(Pipe(GOOD), len(GOOD)), MediaType("a/b"), PAIR, OPTIONS)
    assert len(list(document.blocks)) == 1


# Bad archives.

ZEROS = npy(np.zeros(1 << 20, np.uint8))
SMALL = npy(np.ones((2, 3), np.float32))


def forged_npy(shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize("dtype", ["S2", "U1"])
def test_strings_count_with_what_they_take_in_python(dtype: str) -> None:
    """A few kilobytes of packed strings would be gigabytes of them."""
    words = np.full((1 << 20) + 1, "a", dtype)
    texts = signature(("x", "string", ["N"]))

    with pytest.raises(DecodeError, match="at most 67108864 bytes unpacked, for a body of this size, got"):
        decode(codec, saved(x=words, compressed=True), texts)
    assert decode_rows(codec, saved(x=words), texts)["x"][-1] == "a"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(
            b"", r"expected a ZIP archive of .npy files, got a damaged or other file", id="empty body"
        ),
        pytest.param(SMALL, r"expected a ZIP archive", id="npy"),
        pytest.param(GOOD[: len(GOOD) // 2], r"expected a ZIP archive", id="first half"),
        pytest.param(archive(("x.npy", SMALL))[100:], r"expected a ZIP archive|damaged", id="second half"),
        pytest.param(GOOD[:-1], r"expected a ZIP archive|damaged", id="last byte missing"),
        pytest.param(archive(("x", SMALL)), r'named <input name>.npy, got "x"', id="no suffix"),
        pytest.param(archive(("x/", b"")), r'named <input name>.npy, got "x/"', id="folder"),
        pytest.param(
            archive(("x.npy", b"abc")), r'member "x.npy": expected an .npy file, .* got "abc"', id="text"
        ),
        pytest.param(archive(("x.npy", b"")), r'member "x.npy": expected an .npy file', id="empty member"),
        pytest.param(
            archive(("x.npy", SMALL[:-1])), r'member "x.npy": expected 24 bytes .* got 23', id="short"
        ),
        pytest.param(
            archive(("x.npy", forged_npy("(1000000000, 3)"))), r"expected 12000000000 bytes", id="huge"
        ),
        pytest.param(
            archive(("x.npy", forged_npy("(-1, 3)"))), r'member "x.npy": expected a shape', id="negative"
        ),
        pytest.param(
            archive(("x.npy", SMALL), compression=zipfile.ZIP_BZIP2), r"or 8 \(deflated\), got 12", id="bzip2"
        ),
        pytest.param(
            archive(("x.npy", SMALL), compression=zipfile.ZIP_LZMA), r"or 8 \(deflated\), got 14", id="lzma"
        ),
        pytest.param(
            patched(archive(("x.npy", SMALL)), (CENTRAL, 8, b"\1")), r'"x.npy": encrypted', id="encrypted"
        ),
        pytest.param(
            patched(archive(("x.npy", SMALL)), (CENTRAL, 10, b"\x63")), r"deflated\), got 99", id="method 99"
        ),
        pytest.param(
            patched(archive(("x.npy", SMALL)), (CENTRAL, 16, b"abcd")),
            r'"x.npy": damaged \("Bad CRC',
            id="CRC",
        ),
        pytest.param(
            patched(archive(("x.npy", SMALL)), (LOCAL, 30, b"y")), r'"x.npy": damaged', id="other local name"
        ),
        pytest.param(
            patched(archive(("x.npy", SMALL)), (LOCAL, 0, b"QK")), r'"x.npy": damaged', id="no local header"
        ),
        pytest.param(
            patched(archive(("x.npy", SMALL)), (CENTRAL, 42, b"\xff\xff\xff\x7f")),
            r"damaged|ZIP",
            id="offset",
        ),
        pytest.param(patched(archive(("x.npy", SMALL)), (CENTRAL, 6, b"\xff")), r"damaged|ZIP", id="version"),
        pytest.param(
            patched(archive(("x.npy", SMALL), ("y.npy", SMALL)), (CENTRAL, 46, b"x"), (LOCAL, 30, b"x")),
            r'member "x.npy": expected each name once',
            id="duplicate",
        ),
        pytest.param(
            patched(archive(("x.npy", SMALL), compression=zipfile.ZIP_DEFLATED), (LOCAL, 35, b"\xff" * 20)),
            r'"x.npy": damaged',
            id="deflate data",
        ),
        pytest.param(
            patched(
                archive(("x.npy", SMALL)), (CENTRAL, 20, b"\xff\xff\0\0"), (CENTRAL, 24, b"\xff\xff\0\0")
            ),
            r'member "x.npy"',
            id="sizes past the end",
        ),
        pytest.param(
            archive(*((f"{n}.npy", b"") for n in range(1001))),
            r"at most 1000 arrays, got 1001",
            id="many members",
        ),
        pytest.param(
            archive(*((f"{n:0200}.npy", b"") for n in range(1500))),
            r"expected a ZIP archive",
            id="large directory",
        ),
        pytest.param(
            archive(*((f"{n}.npy", ZEROS) for n in range(65)), compression=zipfile.ZIP_DEFLATED),
            r"at most 67108864 bytes unpacked, for a body of this size, got 681",
            id="bomb",
        ),
    ],
)
def test_a_bad_archive_says_what_was_expected(body: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message) as caught:
        decode(codec, body, ONE)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_a_member_that_unpacks_to_more_than_it_declares_is_cut_and_refused() -> None:
    """The forged size is consistent with the array's header, and what follows it is never unpacked."""
    data = forged_npy("(1, 3)", bytes(12))
    body = archive(("x.npy", data + bytes(50 << 20)), compression=zipfile.ZIP_DEFLATED)
    size = struct.pack("<I", len(data))
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match=r'"x.npy": damaged \("Bad CRC'):
            decode(codec, patched(body, (CENTRAL, 24, size), (LOCAL, 22, size)), ONE)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_member_that_unpacks_to_less_than_it_declares_is_refused() -> None:
    body = archive(("x.npy", forged_npy("(100, 3)", bytes(600))), compression=zipfile.ZIP_DEFLATED)
    size = struct.pack("<I", len(forged_npy("(100, 3)")) + 1200)
    with pytest.raises(DecodeError, match=r'"x.npy": (the member ends 600 bytes early|damaged)'):
        decode(codec, patched(body, (CENTRAL, 24, size), (LOCAL, 22, size)), ONE)


def test_large_members_unpack_in_pieces() -> None:
    array = np.arange(1_500_000, dtype=np.float32).reshape(-1, 3)
    np.testing.assert_array_equal(decode_rows(codec, saved(array, compressed=True), ONE)["x"], array)


@given(st.binary(max_size=200) | st.binary(max_size=30).map(lambda end: GOOD[:-30] + end))
def test_arbitrary_bytes_are_decoded_or_refused(data: bytes) -> None:
    check_arbitrary_bytes(codec, data, PAIR)


@pytest.mark.parametrize(
    ("body", "model"),
    [(GOOD, PAIR), (saved(compressed=True, x=MATRIX), ONE), (SCIPY_CSR, ONE)],
    ids=["stored", "deflated", "sparse"],
)
@given(data=st.data())
@settings(max_examples=150)
def test_a_damaged_archive_is_decoded_or_refused(body: bytes, model: Signature, data: st.DataObject) -> None:
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    check_arbitrary_bytes(codec, bytes(damaged), model)


# Sparse matrices.


def test_scipys_own_archive_becomes_dense() -> None:
    np.testing.assert_array_equal(decode_rows(codec, SCIPY_CSR, ONE)["x"], MATRIX)


def csr(matrix: Array, **changes: Any) -> dict[str, Any]:
    row, column = np.nonzero(matrix)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(matrix)))]).astype(np.int32)
    members = {"format": b"csr", "shape": matrix.shape, "data": matrix[row, column],
               "indices": column.astype(np.int32), "indptr": indptr}  # fmt: skip
    return {**members, **changes}


def csc(matrix: Array) -> dict[str, Any]:
    return {**csr(matrix.T), "format": "csc", "shape": matrix.shape}


def coo(matrix: Array, **changes: Any) -> dict[str, Any]:
    row, column = np.nonzero(matrix)
    # Any order of entries is a matrix.
    members = {"format": b"coo", "shape": matrix.shape, "data": matrix[row, column][::-1], "_is_array": True,
               "row": row[::-1], "col": column[::-1]}  # fmt: skip
    return {**members, **changes}


def bsr(matrix: Array) -> dict[str, Any]:
    """Tiles of two rows by one column."""
    tiles = matrix.reshape(len(matrix) // 2, 2, matrix.shape[1], 1).transpose(0, 2, 1, 3)
    used = np.array(tiles.any(axis=(2, 3)))
    kept = csr(used)
    row, column = np.nonzero(used)
    return {**kept, "format": b"bsr", "shape": matrix.shape, "data": tiles[row, column]}


def dia(matrix: Array, **changes: Any) -> dict[str, Any]:
    """All diagonals, in no order; what lies outside the matrix is never looked at."""
    height, width = matrix.shape
    offsets = np.roll(np.arange(1 - height, width), 1).astype(np.int32)
    column = np.broadcast_to(np.arange(width + 1), (len(offsets), width + 1))
    row = column - offsets[:, None]
    inside = (row >= 0) & (row < height) & (column < width)
    data = np.ones(column.shape, matrix.dtype)
    data[inside] = matrix[row[inside], column[inside]]
    return {"format": b"dia", "shape": matrix.shape, "data": data, "offsets": offsets, **changes}


@pytest.mark.parametrize("layout", [csr, csc, coo, bsr, dia])
@given(
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int8, np.bool_]),
        st.tuples(st.integers(1, 4).map(lambda n: 2 * n), st.integers(1, 5)),
        elements=st.integers(0, 1),
    ),
    st.integers(1, 60),
    st.booleans(),
)
@settings(max_examples=40)
def test_sparse_layouts_become_dense_rows(
    layout: Callable[[Array], dict[str, Any]],
    matrix: Array,
    chunk_bytes: int,
    compressed: bool,
) -> None:
    model = signature(("x", "float", ["N", "K"]))
    data = saved(compressed=compressed, **layout(matrix))
    rows = decode_rows(codec, data, model, options=CodecOptions(chunk_bytes=chunk_bytes))
    np.testing.assert_array_equal(rows["x"], matrix)


def test_entries_of_one_place_add_up() -> None:
    data = saved(
        **coo(MATRIX, row=np.array([1, 1, 1]), col=np.array([2, 2, 0]), data=np.array([1, 2, 4], np.float32))
    )
    np.testing.assert_array_equal(decode_rows(codec, data, ONE)["x"][1], [4, 0, 3])


def test_a_sum_beyond_the_type_is_infinite_as_in_scipy() -> None:
    big = np.array([3e38, 3e38], np.float32)
    data = saved(**coo(MATRIX, row=np.array([0, 0]), col=np.array([0, 0]), data=big))
    assert np.isinf(decode_rows(codec, data, ONE)["x"][0, 0])


def test_a_sparse_matrix_without_rows_gives_no_block() -> None:
    assert decode(codec, saved(**csr(MATRIX[:0])), ONE) == [(Layout.COLUMNS, [])]


@pytest.mark.parametrize("matrix", [MATRIX, MATRIX[:0]], ids=["rows", "none"])
def test_a_model_without_rows_takes_the_whole_matrix(matrix: Array) -> None:
    model = signature(("x", "float", [len(matrix), 3]), row_axis=RowAxis.NONE)
    [(_, [block])] = decode(codec, saved(**csr(matrix)), model, options=CodecOptions(chunk_bytes=1))
    np.testing.assert_array_equal(block["x"], matrix)


@pytest.mark.parametrize(
    "model",
    [
        signature(("x", "float", ["N", 4])),
        signature(("x", "float", ["N"])),
        signature(("x", "float", ["N", 3, 1])),
        signature(("x", "float", [5, 3]), row_axis=RowAxis.NONE),
    ],
    ids=["width", "rank 1", "rank 3", "height"],
)
def test_a_matrix_of_another_shape_is_a_mismatch(model: Signature) -> None:
    with pytest.raises(MismatchError, match=r'input "x": expected FLOAT.*, got a sparse matrix \[4, 3\]'):
        decode(codec, saved(**csr(MATRIX)), model)


def test_a_sparse_matrix_for_several_inputs_is_refused() -> None:
    with pytest.raises(
        DecodeError, match=r'only input, and this model takes "x" FLOAT\[N, 3\], "n" INT64\[N\]'
    ):
        decode(codec, saved(**csr(MATRIX)), PAIR)


def test_inputs_named_like_sparse_members_are_inputs() -> None:
    model = signature(*((name, "double", ["N"]) for name in ("format", "shape", "data")))
    values: dict[str, Any] = {
        name: np.array([place]) for place, name in enumerate(("format", "shape", "data"))
    }
    assert decode_rows(codec, saved(**values), model) == values


INT32 = np.int32


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (csr(MATRIX, format=b"lil"), r'expected the format csr, csc, bsr, coo or dia, got "lil"'),
        (csr(MATRIX, format=np.array([b"csr"])), r'coo or dia, got ""'),
        (csr(MATRIX, format=7), r'coo or dia, got "7"'),
        (csr(MATRIX, shape=(4, 3, 1)), r'member "shape.npy": expected two sizes'),
        (csr(MATRIX, shape=(4.0, 3.0)), r'member "shape.npy": expected two sizes'),
        (csr(MATRIX, shape=(-4, 3)), r'member "shape.npy": expected two sizes'),
        (csr(MATRIX, shape=np.array(["4", "3"])), r'member "shape.npy": expected two sizes'),
        (csr(MATRIX, shape=(4, 2)), r"an index is outside the shape \[4, 2\]"),
        (csr(MATRIX, shape=(5, 3)), r'member "indptr.npy": expected 6 ascending offsets from 0'),
        (csr(MATRIX, shape=(2**62, 3)), r'member "indptr.npy": expected'),
        (csr(MATRIX, data=np.array(["a"] * 3)), r'member "data.npy": expected numbers'),
        (csr(MATRIX, data=np.ones((3, 1, 1))), r'member "data.npy": expected numbers'),
        (csr(MATRIX, data=np.ones(2)), r'member "indptr.npy": expected to end within indices, and one value an index'),
        (csr(MATRIX, indices=np.array([2, -1, 1], INT32)), r"an index is outside the shape \[4, 3\]"),
        (csr(MATRIX, indices=np.array([2, 3, 1], INT32)), r"an index is outside"),
        (csr(MATRIX, indices=np.array([2, 2**62, 1], np.int64)), r"an index is outside"),
        (csr(MATRIX, indices=np.array([2, 0, 1], np.float32)), r'member "indices.npy": expected a vector of int32 or int64'),
        (csr(MATRIX, indices=np.array([[2, 0, 1]], INT32)), r'member "indices.npy": expected a vector'),
        (csr(MATRIX, indptr=np.array([0, 1, 2, 2, 9], INT32)), r'member "indptr.npy": expected to end within'),
        (csr(MATRIX, indptr=np.array([0, 3, 2, 2, 3], INT32)), r"5 ascending offsets from 0"),
        (csr(MATRIX, indptr=np.array([1, 1, 2, 2, 3], INT32)), r"5 ascending offsets from 0"),
        (csr(MATRIX, indptr=np.array([0, -(2**63), 2**63 - 1, 0, 3])), r"5 ascending offsets from 0"),
        ({k: v for k, v in csr(MATRIX).items() if k != "indptr"}, r'member "indptr.npy": expected a vector'),
        (coo(MATRIX, row=np.array([0, 1, 4])), r"an index is outside"),
        (coo(MATRIX, row=np.array([0, 1])), r'member "data.npy": expected one value an index'),
        (coo(MATRIX, shape=(10**12, 3)), r"too large to be made dense"),
        (coo(MATRIX, shape=(10**18, 3), row=np.array([], INT32), col=np.array([], INT32), data=np.array([], np.float32)), r"too large"),
        ({**bsr(MATRIX), "shape": (3, 3)}, r'member "data.npy": expected blocks that tile the matrix'),
        ({**bsr(MATRIX), "data": np.ones((3, 0, 1))}, r"blocks that tile the matrix"),
        (dia(MATRIX, data=np.ones(3)), r'member "data.npy": expected numbers'),
        (dia(MATRIX, offsets=np.array([0, 1], INT32)), r'member "offsets.npy": expected one a diagonal, each once'),
        (dia(MATRIX, offsets=np.array([0, 1, 2, 3, 4, 0], INT32)), r"each once"),
        (dia(MATRIX, offsets=np.zeros(6)), r'member "offsets.npy": expected a vector of int32 or int64'),
    ],
)  # fmt: skip
def test_a_malformed_sparse_matrix_is_refused(members: dict[str, Any], message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        decode(codec, saved(**members), ONE)


@pytest.mark.parametrize("shape", [(1, 10**8), (2**20, 2**20), (10**15, 0), (1, 2**62)], ids=str)
def test_a_forged_dense_size_allocates_nothing(shape: tuple[int, int]) -> None:
    empty = coo(
        MATRIX, shape=shape, row=np.array([], INT32), col=np.array([], INT32), data=np.array([], np.float32)
    )
    body = saved(**empty)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="too large to be made dense"):
            decode(codec, body, signature(("x", "float", ["N", "K"])))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_coordinates_in_one_array(dtype: type) -> None:
    """As SciPy says that it will write COO, and reads it already."""
    members = coo(MATRIX)
    coords: Array = np.array([members.pop("row"), members.pop("col")], dtype)

    rows = decode_rows(codec, saved(**members, coords=coords), ONE)["x"]
    np.testing.assert_array_equal(rows, MATRIX)
    for wrong in (coords[:1], coords[0], coords.astype(np.float64)):
        with pytest.raises(DecodeError, match=r'"coords\.npy": expected two vectors'):
            decode(codec, saved(**members, coords=wrong), ONE)


@pytest.mark.parametrize("entries", [0, 1_000_000])
def test_rows_that_take_no_byte_are_bounded(entries: int) -> None:
    """As many as entries, and 64 MiB of others once they are dense."""
    at = np.arange(entries, dtype=np.int32)
    most = entries + (64 << 20) // 12

    def coo(rows: int) -> bytes:
        values = np.ones(entries, np.float32)
        return saved(compressed=True, format=b"coo", shape=[rows, 3], row=at, col=at % 3, data=values)

    with pytest.raises(DecodeError, match="too large to be made dense"):
        decode(codec, coo(most + (200 << 20) // 12), ONE)
    body = Body(io.BytesIO(data := coo(most)), len(data))
    assert codec.decode is not None
    [document] = codec.decode(body, MediaType("application/x-npz"), ONE, CodecOptions())
    assert sum(len(block["x"]) for block in document.blocks) == most


def test_dense_rows_are_made_a_block_at_a_time() -> None:
    matrix = np.zeros((1 << 14, 256), np.float32)
    matrix[::7, 3] = 1
    body = saved(**csr(matrix))
    model = signature(("x", "float", ["N", 256]))
    assert codec.decode is not None
    options = CodecOptions(chunk_bytes=1 << 16)
    [document] = codec.decode(Body(io.BytesIO(body), len(body)), MediaType("a/b"), model, options)
    tracemalloc.start()
    try:
        counts = [(len(block["x"]), int(block["x"].sum())) for block in document.blocks]
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert {rows for rows, _ in counts} == {64}
    assert sum(total for _, total in counts) == math.ceil(len(matrix) / 7)


@pytest.mark.parametrize(
    "members",
    [{**bsr(MATRIX), "data": np.zeros((3, 1000, 1000), np.int8)}, dia(MATRIX, data=np.zeros((6, 500_000), np.int8))],
    ids=["bsr", "dia"],
)  # fmt: skip
def test_many_small_entries_get_no_indices(members: dict[str, Any]) -> None:
    """They deflate to nothing, and would need 72 MB."""
    with pytest.raises(DecodeError, match="a sparse matrix of 3000000 entries is too large"):
        decode(codec, saved(compressed=True, **members), ONE)


def test_diagonals_far_outside_hold_nothing() -> None:
    """Offsets at the ends of int64 wrap around nothing."""
    far = np.array([-(2**63), 2**63 - 1, 0])
    body = saved(**dia(MATRIX, data=np.ones((3, 3)), offsets=far))

    np.testing.assert_array_equal(decode_rows(codec, body, ONE)["x"], np.eye(4, 3))
