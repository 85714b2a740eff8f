"""Batches of Ray Data as requests: which columns are sent, tensors as Arrow has them, bad records in place."""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import ipc

from onnx_serve.codecs import arrow_inputs
from onnx_serve.codecs.interface import Body
from onnx_serve.errors import DecodeError, InputRefused, MismatchError

if TYPE_CHECKING:
    from onnx_serve.tensors import Signature

__all__ = ["ARROW", "answer_each", "as_lines", "as_stream", "fed_columns", "plain_tensors"]

ARROW = "application/vnd.apache.arrow.stream"
ERROR = "error"


def plain_tensors(table: pa.Table) -> pa.Table:
    """The table with Ray's tensors of one shape as Arrow's own.

    https://docs.ray.io/en/latest/data/working-with-tensors.html; their type is known by its shape, so that Ray
    need not be imported.
    """
    for index, field in enumerate(table.schema):
        shape = getattr(field.type, "shape", None)
        if shape is None or isinstance(field.type, pa.FixedShapeTensorType):
            continue
        column: Any = table.column(index)
        # Chunks of an extension type are joined as what they are stored as.
        stored = pa.chunked_array([chunk.storage for chunk in column.chunks], field.type.storage_type)
        joined: Any = stored.combine_chunks()
        size = 1
        for dimension in shape:
            size *= dimension
        values = joined.flatten()
        kind = pa.fixed_shape_tensor(values.type, shape)
        storage = pa.FixedSizeListArray.from_arrays(values, size)
        table = table.set_column(index, field.name, pa.ExtensionArray.from_storage(kind, storage))
    return table


def fed_columns(table: pa.Table, kept: Sequence[str], signature: "Signature") -> list[str]:
    """The columns that the model gets: all, or where that does not fit, all but those that are only kept.

    Raises:
        DecodeError: Neither fits.
    """
    inputs = {spec.name for spec in signature.inputs}
    rest = [name for name in table.column_names if name in inputs or name not in kept]
    try:
        arrow_inputs.plan(table.schema, signature)
    except DecodeError as ex:
        try:
            arrow_inputs.plan(table.select(rest).schema, signature)
        except DecodeError:
            raise ex from None
        return rest
    return list(table.column_names)


def as_stream(table: pa.Table) -> Body:
    """A table as the body of a request."""
    sink = io.BytesIO()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return _body(sink)


def as_lines(table: pa.Table) -> Body:
    """The column ``text`` as the body of a request, a line a row."""
    sink = io.BytesIO()
    lines: Any = table.column("text").to_pylist()
    for line in lines:
        sink.write(line.encode() + b"\n")
    return _body(sink)


def answer_each(table: pa.Table, ask: Callable[[pa.Table], pa.Table], columns: pa.Schema) -> pa.Table:
    """The answers to all rows, and a last column that says what is wrong with those that have none.

    A batch that fails is halved until the bad rows are found: at most about two requests a row.

    Args:
        table: What is asked.
        ask: Gives the outputs for rows, or raises what is wrong with them.
        columns: Of the outputs.

    Raises:
        MismatchError: The model has an output of the column's name.
        ServeError: Something that is no record's fault.
    """
    if ERROR in columns.names:
        raise MismatchError(f'record_errors: the column "{ERROR}" has the name of an output')
    answers = []
    waiting = [table]
    while waiting:
        part = waiting.pop()
        error: str | None = None
        try:
            outputs = ask(part)
        except (DecodeError, MismatchError, InputRefused) as ex:
            if part.num_rows > 1:
                half = part.num_rows // 2
                waiting += [part.slice(half), part.slice(0, half)]
                continue
            error = str(ex)
            outputs = pa.table([pa.nulls(1, field.type) for field in columns], schema=columns)
        errors: Any = pa.array([error] * outputs.num_rows, pa.string())
        answers.append(outputs.append_column(ERROR, errors))
    return pa.concat_tables(answers)


def _body(sink: io.BytesIO) -> Body:
    length = sink.tell()
    sink.seek(0)
    return Body(sink, length)
