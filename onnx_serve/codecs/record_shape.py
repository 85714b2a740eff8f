"""The shape of one record's values in an input, for formats that carry lists of values."""

import math

from onnx_serve.errors import DecodeError
from onnx_serve.tensors import Signature, TensorSpec, format_shape

__all__ = ["fit"]

_SHOWN = 8


def fit(count: int, written: tuple[int, ...], spec: TensorSpec, signature: Signature) -> tuple[int, ...]:
    """The shape that ``count`` values of one record have in an input.

    One free dimension takes what the others leave; several need ``written`` to tell them.

    Args:
        count: Values of the record.
        written: The shape that the request gives them, or empty.
        spec: The input.
        signature: The model's.

    Raises:
        DecodeError: The input takes no such record; without its place.
    """
    declared = signature.record_shape(spec)
    sizes = [size if isinstance(size, int) else None for size in declared]
    known = math.prod(size for size in sizes if size is not None)
    if math.prod(written or (count,)) == count:
        pairs = list(zip(sizes, written, strict=False))
        if len(written) == len(sizes) and written and all(size in {None, given} for size, given in pairs):
            return written
        # A flat list, and a shape like the input's that differs in ones: [1, 4] for [4].
        is_flat = len(written) <= 1 or [n for n in written if n != 1] == [n for n in sizes if n != 1]
        if is_flat and None not in sizes and known == count:
            return tuple(size for size in sizes if size is not None)
        if is_flat and sizes.count(None) == 1 and known and count % known == 0:
            return tuple(count // known if size is None else size for size in sizes)
    got = f"{count} value{'s' * (count != 1)}"
    if len(written) > 1:
        got += f" of shape {format_shape(written[:_SHOWN])}"
    raise DecodeError(f'input "{spec.name}": expected {spec}, got {got} for a record')
