"""Laws that every codec obeys; each codec's tests supply the cases."""

import io
from collections.abc import Iterator, Sequence

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnx_serve.codecs.interface import Answer, Body, Codec, CodecOptions, Layout, MediaType
from onnx_serve.errors import DecodeError, MismatchError
from onnx_serve.raw_data import from_raw, raw_size
from onnx_serve.tensors import (
    Array,
    DataType,
    MapTable,
    RowAxis,
    Signature,
    Tensors,
    TensorSpec,
    Value,
    Values,
    conform,
)

OPTIONS = CodecOptions()


def signature(
    *inputs: tuple[str, str, Sequence[int | str | None]],
    outputs: Sequence[tuple[str, str, Sequence[int | str | None]]] = (),
    row_axis: RowAxis = RowAxis.FREE,
    fixed_rows: int = 0,
) -> Signature:
    """``signature(("x", "float", ["N", 4]))``: a signature in one line; types without ``tensor(...)``."""
    return Signature(_specs(inputs), _specs(outputs), row_axis, fixed_rows)


def decode(
    codec: Codec,
    data: bytes,
    model: Signature,
    *,
    options: CodecOptions = OPTIONS,
    media_type: MediaType | None = None,
) -> list[tuple[Layout, list[Tensors]]]:
    """Every document of a body as its layout and its conforming blocks."""
    assert codec.decode is not None
    body = Body(io.BytesIO(data), len(data))
    media_type = media_type or MediaType(codec.media_types[0])
    return [
        (document.layout, [conform(block, model) for block in document.blocks])
        for document in codec.decode(body, media_type, model, options)
    ]


def decode_rows(
    codec: Codec,
    data: bytes,
    model: Signature,
    *,
    options: CodecOptions = OPTIONS,
    media_type: MediaType | None = None,
) -> Tensors:
    """The arrays of a body of one document, its blocks joined along dimension 0."""
    [(_, blocks)] = decode(codec, data, model, options=options, media_type=media_type)
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def encode(
    codec: Codec,
    blocks: Sequence[Values],
    model: Signature,
    *,
    layout: Layout = Layout.RECORDS,
    options: CodecOptions = OPTIONS,
) -> bytes:
    """The answer to one document with these output blocks."""
    assert codec.encode is not None
    sink = io.BytesIO()
    codec.encode([Answer(blocks, layout)], sink, MediaType(codec.media_types[0]), model, options)
    return sink.getvalue()


def arrays_of(
    dtype: DataType, shape: Sequence[int], text: st.SearchStrategy[str] | None = None
) -> st.SearchStrategy[Array]:
    """Arrays of any values of the type, and no others where ``dtype.numpy`` holds more."""
    if dtype.is_native:
        return hnp.arrays(dtype.numpy, tuple(shape), elements=text)
    raw = hnp.arrays(np.uint8, raw_size(int(np.prod(shape)), dtype))
    return raw.map(lambda codes: from_raw(codes, dtype, shape))


def check_round_trip(
    codec: Codec, values: Values, specs: Sequence[TensorSpec], layout: Layout = Layout.RECORDS
) -> None:
    """What is encoded as outputs and decoded as inputs is the same to the last bit, in one block or many."""
    model = Signature(tuple(specs), tuple(specs), RowAxis.FREE)
    for blocks in ([values], list(_rows_apart(values))):
        data = encode(codec, blocks, model, layout=layout)
        decoded = decode_rows(codec, data, model)
        for spec in specs:
            expected = values[spec.name]
            assert isinstance(expected, np.ndarray)
            assert decoded[spec.name].dtype == expected.dtype
            np.testing.assert_array_equal(decoded[spec.name], expected)


def check_arbitrary_bytes(
    codec: Codec, data: bytes, model: Signature, options: CodecOptions = OPTIONS
) -> None:
    """Any bytes decode, or raise one of the caller's errors with a one-line text; never anything else."""
    try:
        decode(codec, data, model, options=options)
    except (DecodeError, MismatchError) as ex:
        text = str(ex)
        assert text
        assert "\n" not in text
        assert len(text) < 1000


def _rows_apart(values: Values) -> Iterator[Values]:
    first: Value = next(iter(values.values()))
    assert isinstance(first, np.ndarray | MapTable | list)
    for row in range(len(first)):
        yield {name: value[row : row + 1] for name, value in values.items()}  # type: ignore[index]


def _specs(declared: Sequence[tuple[str, str, Sequence[int | str | None]]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, kind if "(" in kind else f"tensor({kind})", tuple(shape))
        for name, kind, shape in declared
    )
