"""What every codec takes and gives."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import BinaryIO, Literal, TypeAlias

from onnx_serve.tensors import Signature, Tensors, Values

__all__ = ["Answer", "Body", "Codec", "CodecOptions", "Document", "Layout", "MediaType"]


@dataclass(frozen=True, slots=True)
class MediaType:
    """A parsed ``Content-Type``: ``text/csv; header=present``.

    Attributes:
        name: Type and subtype in lower case.
        parameters: Parameters by lower-case name, quotes removed.
    """

    name: str
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body.

    Attributes:
        stream: Read from its current position to its end, once.
        length: Bytes it holds.
    """

    stream: BinaryIO
    length: int

    def read_all(self) -> bytes:
        """The whole body, for formats that cannot be cut."""
        return self.stream.read()

    def lines(self, chunk_bytes: int) -> Iterator[bytes]:
        """The body in pieces that end with a newline, each of about ``chunk_bytes`` or one longer line.

        Only the last piece may lack the newline. No piece is empty.
        """
        rest: list[bytes] = []
        while chunk := self.stream.read(chunk_bytes):
            end = chunk.rfind(b"\n") + 1
            if not end:
                rest.append(chunk)
                continue
            yield b"".join((*rest, chunk[:end])) if rest else chunk[:end]
            rest = [chunk[end:]] if end < len(chunk) else []
        if rest:
            yield b"".join(rest)


class Layout(Enum):
    """How the records of a document were laid out, and so how its answer is.

    RECORDS: one record after the other; an answer has one prediction a record, in order.
    COLUMNS: one array an input; an answer has one array an output.
    OIP: the Open Inference Protocol's tensors; an answer has them too.
    """

    RECORDS = "records"
    COLUMNS = "columns"
    OIP = "oip"


@dataclass(frozen=True, slots=True)
class Document:
    """One thing to be answered.

    Attributes:
        blocks: Arrays by input name. With rows, dimension 0 counts the records of the block, any number but
            0 (no records: no block). Without rows, a block is what one run takes, and one record.
        layout: How the answer is laid out.
        request_id: The Open Inference Protocol's ``id``, echoed in the answer.
    """

    blocks: Iterable[Tensors]
    layout: Layout = Layout.RECORDS
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The outputs of one document.

    Attributes:
        blocks: Outputs by name in the signature's order, for each input block or piece of one, in order.
        layout: The document's.
        request_id: The document's.
    """

    blocks: Iterable[Values]
    layout: Layout = Layout.RECORDS
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class CodecOptions:
    """What the operator may choose about formats; see ``config.yaml``.

    Attributes:
        model_name: For formats that name the model in their answers.
        batch: Whether a Batch Transform job is the client (``SAGEMAKER_BATCH``).
        csv_header: What a CSV body's first line is.
        json_non_finite: What NaN and infinities become in JSON: ``null`` and ``"Infinity"``, both ``null``,
            or the bare words ``NaN`` and ``Infinity``.
        text_trailing_newline: Whether text answers end with a newline.
        chunk_bytes: Bytes of a record format that are decoded at once.
    """

    model_name: str = "model"
    batch: bool = False
    csv_header: Literal["auto", "present", "absent", "skip"] = "auto"
    json_non_finite: Literal["string", "null", "literal"] = "string"
    text_trailing_newline: bool = True
    chunk_bytes: int = 1 << 20


Decode: TypeAlias = Callable[[Body, MediaType, Signature, CodecOptions], Iterator[Document]]
Encode: TypeAlias = Callable[[Iterable[Answer], BinaryIO, MediaType, Signature, CodecOptions], None]


@dataclass(frozen=True, slots=True)
class Codec:
    """One wire format.

    Attributes:
        media_types: Its names; the first is the one that answers carry.
        decode: Bytes to documents, or None when the format is for answers only.
        encode: Outputs to bytes, or None when the format is for requests only. It writes nothing before the
            first block is there, and only appends, except that it may seek back over what it wrote.
        whole: Bytes of memory that a byte of body needs at the peak, for formats that cannot be cut into
            blocks; 0 for the others.
    """

    media_types: tuple[str, ...]
    decode: Decode | None
    encode: Encode | None
    whole: float = 0
