"""``application/json``: a body is a sequence of documents, each answered in its own layout.

===============================================================  ==================================
a document                                                       its answer
===============================================================  ==================================
a record; a list of records; ``{"instances": [...]}``;           ``{"predictions": [...]}``
``{"dataframe_split": ...}``; ``{"dataframe_records": [...]}``
``{"inputs": {name: array}}``; ``{"inputs": array}``             ``{"outputs": {name: array}}``
``{"inputs": [{"name", "shape", "datatype", "data"}]}``          ``{"outputs": [{...}]}``
===============================================================  ==================================

With ``record_errors: placeholder``, a document that is none of these is one bad record; what is wrong with an envelope
rather than with a record still fails the request.

Where the shapes come from: TensorFlow Serving (https://www.tensorflow.org/tfx/serving/api_rest), MLflow
(https://github.com/mlflow/mlflow/blob/master/mlflow/pyfunc/scoring_server/__init__.py), SageMaker's
built-in algorithms (https://docs.aws.amazon.com/sagemaker/latest/dg/cdf-inference.html) and the Open
Inference Protocol (https://github.com/kserve/open-inference-protocol).
"""

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, BinaryIO

from onnx_serve.codecs import oip_json, records
from onnx_serve.codecs.interface import Answer, Body, Codec, CodecOptions, Document, Layout, MediaType
from onnx_serve.codecs.json_documents import read_document
from onnx_serve.codecs.json_outputs import merge
from onnx_serve.codecs.json_plain import read_plain
from onnx_serve.codecs.json_sequences import read_documents
from onnx_serve.codecs.json_syntax import BOM, check_charset, parse_lines, parse_sequence
from onnx_serve.codecs.json_text import join_records, text
from onnx_serve.codecs.records import Grammar
from onnx_serve.errors import DecodeError
from onnx_serve.tensors import Signature, Values

__all__ = ["codec"]


def decode(
    body: Body, media_type: MediaType, signature: Signature, options: CodecOptions
) -> Iterator[Document]:
    """Every document of a body, which is held whole.

    Raises:
        DecodeError: The body is no JSON, or a document is none of the shapes; arises while iterating.
    """
    check_charset(media_type)
    model = records.grammar(signature, marks_errors=options.marks_errors)
    data = body.read_all().removeprefix(BOM)
    document = read_plain(data, model, signature)
    if document:
        yield document
    else:
        yield from exact(data, model, signature)


def exact(data: bytes, model: Grammar, signature: Signature) -> Iterator[Document]:
    """Documents by way of Python values: what this decides is what ``application/json`` is.

    Raises:
        DecodeError: As ``decode``.
        MismatchError: Tensors of the Open Inference Protocol without rows are not what the model takes.
    """
    values: Iterable[Any]
    try:
        values = parsed = parse_sequence(data)
        several = len(parsed) > 1
    except DecodeError as ex:
        if not model.marks_errors:
            raise
        values, several = parse_lines(data, ex), data.count(b"\n", 0, -1) > 0
    if several:
        yield from read_documents(values, model, signature)
    else:
        yield from (read_document(value, model, signature) for value in values)


def encode(
    answers: Iterable[Answer],
    sink: BinaryIO,
    media_type: MediaType,
    signature: Signature,
    options: CodecOptions,
) -> None:
    """One compact line for each document. Rows are written block by block, arrays when all are there.

    Raises:
        EncodeError: An output has no form in JSON, or blocks do not make one array.
    """
    del media_type
    lead = b""
    for answer in answers:
        if answer.sizes:
            _write_joined(answer, sink, lead, signature, options)
        elif answer.layout is Layout.RECORDS:
            _write_predictions(answer, sink, lead, signature, options)
        else:
            wanted = oip_json.requested(signature, answer.outputs)
            merged = merge(list(answer.blocks), wanted)
            sink.write(lead)
            if answer.layout is Layout.COLUMNS:
                sink.write(_columns_text(merged, options))
            else:
                sink.write(oip_json.response_text(merged, answer.request_id, wanted, options))
        lead = b"\n"
    if lead and options.text_trailing_newline:
        sink.write(b"\n")


def _write_predictions(
    answer: Answer, sink: BinaryIO, lead: bytes, signature: Signature, options: CodecOptions
) -> None:
    before = opening = lead + b'{"predictions":['
    for values in answer.blocks:
        if rows := join_records(values, b",", signature, options):
            sink.write(before)
            sink.write(rows)
            before = b","
    sink.write(opening + b"]}" if before is opening else b"]}")


def _write_joined(
    answer: Answer, sink: BinaryIO, lead: bytes, signature: Signature, options: CodecOptions
) -> None:
    """The answers to documents that are joined."""
    blocks = (join_records(values, b"\n", signature, options) for values in answer.blocks)
    # No JSON text has a newline but between its parts, and these have none there.
    texts = chain.from_iterable(rows.split(b"\n") for rows in blocks if rows)
    for size in answer.sizes:
        sink.write(b'%b{"predictions":[%b]}' % (lead, b",".join(islice(texts, size))))
        lead = b"\n"


def _columns_text(outputs: Values, options: CodecOptions) -> bytes:
    return b'{"outputs":' + text(outputs, options) + b"}"


codec = Codec(
    media_types=("application/json",),
    decode=decode,
    encode=encode,
    # Measured worst case: integers of one digit, two bytes of body each, by way of Python values.
    whole=20.0,
    marks_errors=True,
)
