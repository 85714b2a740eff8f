"""``application/json``: a body is a sequence of documents, each answered in its own layout.

===============================================================  ==================================
a document                                                       its answer
===============================================================  ==================================
a record; a list of records; ``{"instances": [...]}``;           ``{"predictions": [...]}``
``{"dataframe_split": ...}``; ``{"dataframe_records": [...]}``
``{"inputs": {name: array}}``; ``{"inputs": array}``             ``{"outputs": {name: array}}``
``{"inputs": [{"name", "shape", "datatype", "data"}]}``          ``{"outputs": [{...}]}``
===============================================================  ==================================

Where the shapes come from: TensorFlow Serving (https://www.tensorflow.org/tfx/serving/api_rest), MLflow
(https://github.com/mlflow/mlflow/blob/master/mlflow/pyfunc/scoring_server/__init__.py), SageMaker's
built-in algorithms (https://docs.aws.amazon.com/sagemaker/latest/dg/cdf-inference.html) and the Open
Inference Protocol (https://github.com/kserve/open-inference-protocol).
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import BinaryIO

from onnx_serve.codecs import oip_json, records
from onnx_serve.codecs.interface import Answer, Body, Codec, CodecOptions, Document, Layout, MediaType
from onnx_serve.codecs.json_documents import read_document
from onnx_serve.codecs.json_outputs import merge
from onnx_serve.codecs.json_plain import read_plain
from onnx_serve.codecs.json_syntax import BOM, check_charset, parse_sequence
from onnx_serve.codecs.json_text import join_records, text
from onnx_serve.codecs.records import Grammar
from onnx_serve.errors import DecodeError
from onnx_serve.tensors import Signature, Tensors, Values

__all__ = ["codec"]


def decode(
    body: Body, media_type: MediaType, signature: Signature, options: CodecOptions
) -> Iterator[Document]:
    """Every document of a body, which is held whole.

    Raises:
        DecodeError: The body is no JSON, or a document is none of the shapes; arises while iterating.
    """
    del options
    check_charset(media_type)
    model = records.grammar(signature)
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
    values = parse_sequence(data)
    for number, value in enumerate(values, 1):
        try:
            document = read_document(value, model, signature)
            if len(values) > 1:
                document = replace(document, blocks=_numbered(document.blocks, number))
        except DecodeError as ex:
            raise _in_document(ex, number, len(values)) from None
        yield document


def _numbered(blocks: Iterable[Tensors], number: int) -> Iterator[Tensors]:
    try:
        yield from blocks
    except DecodeError as ex:
        raise _in_document(ex, number, number + 1) from None


def _in_document(ex: DecodeError, number: int, documents: int) -> DecodeError:
    """The error with the document's number, when there are several."""
    return DecodeError(f"document {number}: {ex.problem}", record=ex.record) if documents > 1 else ex


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
        if answer.layout is Layout.RECORDS:
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


def _columns_text(outputs: Values, options: CodecOptions) -> bytes:
    return b'{"outputs":' + text(outputs, options) + b"}"


codec = Codec(
    media_types=("application/json",),
    decode=decode,
    encode=encode,
    # Measured worst case: integers of one digit, two bytes of body each, by way of Python values.
    whole=20.0,
)
