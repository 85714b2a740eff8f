"""``application/vnd.apache.parquet``: a table in Parquet's format, https://parquet.apache.org/docs/file-format/.

Which columns feed which input is said in ``arrow_inputs``, what an answer's columns are in ``arrow_outputs``.

Nothing a file declares is trusted: its footer may take 16 MiB, a page unpack to 128 MiB, and all of it to a
hundred times the body (in any case to 64 MiB).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from onnx_serve.codecs.interface import Answer, Body, Codec, CodecOptions, Document, MediaType
from onnx_serve.codecs.parquet_footer import Footer, read_footer
from onnx_serve.codecs.parquet_pages import DELTA_STRINGS, pages
from onnx_serve.codecs.sections import Appended, Bounded
from onnx_serve.errors import DecodeError, quote
from onnx_serve.tensors import Signature, Tensors

__all__ = ["codec", "decode", "encode"]

_MAX_PAGE = 1 << 27
_MAX_LISTS = 1 << 30
_MAX_BATCH_ROWS = 1 << 16
# What a batch may repeat of strings and their prefixes that a page holds once.
_REPEATED_BYTES = 1 << 26
_READ_BYTES = 1 << 20
_GROUP_BYTES = 1 << 23
_VALUE_BYTES = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4}


def decode(
    body: Body, media_type: MediaType, signature: Signature, options: CodecOptions
) -> Iterator[Document]:
    """One document: the rows of the table, read by row group in batches of about ``options.chunk_bytes``.

    Memory: a few batches, and for each column one page and its dictionary.

    Raises:
        DecodeError: The file is damaged, refused or too large, or its columns are not what the model takes.
    """
    del media_type
    # pyarrow is loaded by the first request that needs it.
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet as pq  # noqa: PLC0415

    from onnx_serve.codecs import arrow_inputs  # noqa: PLC0415

    file: Any = Bounded(body)  # pyarrow's annotations know Python's own files only
    footer = read_footer(file)
    # Every element of the footer takes a byte at least: none of its lists can be longer than itself.
    size = len(footer.alone)
    limits: dict[str, Any] = {"thrift_string_size_limit": size, "thrift_container_size_limit": size}
    try:
        alone = pq.ParquetFile(pa.BufferReader(footer.alone), **limits)
        schema, metadata = alone.schema_arrow, alone.metadata
        plan = arrow_inputs.plan(schema, signature)
        leaves = [metadata.schema.column(i) for i in range(metadata.num_columns)]
        columns = set(plan.columns)
        chosen = [i for i, leaf in enumerate(leaves) if _belongs(leaf.path, columns)]
        delta = _check_pages(file, footer, leaves, chosen, arrow_inputs.decoded_limit(body.length))
        # Strings stay in their dictionaries, where pyarrow can do that: a long one may be meant by every row.
        text = [i for i in chosen if leaves[i].physical_type == "BYTE_ARRAY" and i not in delta]
        settings: dict[str, Any] = {"pre_buffer": False, "buffer_size": _READ_BYTES, "metadata": metadata}
        table = pq.ParquetFile(file, read_dictionary=[leaves[i].path for i in text], **settings)
    except arrow_inputs.DAMAGE as ex:
        raise _damaged(ex) from None
    rows = max(1, min(_MAX_BATCH_ROWS, options.chunk_bytes // max(1, _row_bytes(footer, plan.row_bytes()))))
    if delta:
        rows = max(1, min(rows, _REPEATED_BYTES // max(1, *delta.values())))
    yield Document(_blocks(table, plan, rows, options.chunk_bytes))


def _row_bytes(footer: Footer, known: int) -> int:
    """About how many bytes a row has in memory, by the model and by the footer."""
    return max(known, sum(group.unpacked for group in footer.groups) // max(1, footer.rows))


def _blocks(table: Any, plan: Any, rows: int, block_bytes: int) -> Iterator[Tensors]:
    from onnx_serve.codecs import arrow_inputs  # noqa: PLC0415 - loads pyarrow

    done = 0
    for group in range(table.metadata.num_row_groups):
        batches = table.iter_batches(rows, row_groups=[group], columns=plan.columns, use_threads=False)
        while True:
            try:
                batch = next(batches, None)
                if batch is None:
                    break
                yield from arrow_inputs.blocks(batch, plan, done + 1, block_bytes)
            except arrow_inputs.DAMAGE as ex:
                raise _damaged(ex) from None
            done += batch.num_rows
    if done != table.metadata.num_rows:
        raise DecodeError(f"expected {table.metadata.num_rows} rows, as the footer says, got {done}")


def _belongs(path: str, columns: set[str]) -> bool:
    """Whether a leaf of the schema is a part of one of these columns: ``x.list.element`` is of ``x``."""
    parts = path.split(".")
    return any(".".join(parts[:stop]) in columns for stop in range(1, len(parts) + 1))


def _check_pages(
    file: Bounded, footer: Footer, leaves: Sequence[Any], chosen: Sequence[int], limit: int
) -> dict[int, int]:
    """Refuses a file that unpacks to too much.

    Returns:
        The leaves with strings encoded by what they share with their neighbours, and the largest page of each.
    """
    total = 0
    largest = dict.fromkeys(chosen, 0)
    delta: set[int] = set()
    for group in footer.groups:
        if len(group.chunks) != len(leaves):
            raise DecodeError(f"expected {len(leaves)} columns in a row group, got {len(group.chunks)}")
        lists = 0
        for place in chosen:
            is_list, kind = "." in leaves[place].path, leaves[place].physical_type
            chunk = group.chunks[place]
            if not is_list and chunk.values != group.rows:
                raise DecodeError(f"a column of {group.rows} rows has {chunk.values} values")
            for page in pages(file, chunk):
                if page.unpacked > _MAX_PAGE:
                    raise DecodeError(f"expected pages of at most {_MAX_PAGE} bytes, got {page.unpacked}")
                size = page.unpacked + page.values * _VALUE_BYTES.get(kind, 8)
                total += size
                lists += size if is_list else 0
                largest[place] = max(largest[place], page.unpacked)
                if page.encoding in DELTA_STRINGS and kind == "BYTE_ARRAY":
                    delta.add(place)
            if total > limit or lists > _MAX_LISTS:
                raise DecodeError(
                    f"expected a file that unpacks to at most {limit} bytes, and lists of a row group to {_MAX_LISTS}"
                )
    return {place: largest[place] for place in delta}


def _damaged(ex: BaseException) -> DecodeError:
    return DecodeError(f"expected a Parquet file, got a damaged one ({quote(ex)})")


def encode(
    answers: Iterable[Answer],
    sink: BinaryIO,
    media_type: MediaType,
    signature: Signature,
    options: CodecOptions,
) -> None:
    """Writes a table of one row a prediction and one column an output, in row groups of some MiB.

    Raises:
        EncodeError: An output has no form in a table, or another number of rows than the others.
    """
    del media_type, options
    import pyarrow as pa  # noqa: PLC0415 - loaded by the first answer that needs it
    from pyarrow import parquet as pq  # noqa: PLC0415

    from onnx_serve.codecs import arrow_outputs  # noqa: PLC0415

    columns = arrow_outputs.schema(signature)
    text = [field.name for field in columns if field.type == pa.string()]
    tables = arrow_outputs.tables(answers, signature, columns, _GROUP_BYTES)
    first = next(tables, None)
    # Dictionaries and statistics cost more time than they save for floats that hardly repeat.
    settings: dict[str, Any] = {"use_dictionary": text, "write_statistics": False}
    file: Any = Appended(sink)
    with pq.ParquetWriter(file, columns, **settings) as writer:
        writer.write_table(columns.empty_table() if first is None else first)
        for table in tables:
            writer.write_table(table)


codec = Codec(("application/vnd.apache.parquet", "application/x-parquet"), decode, encode, mirrored=True)
