"""What every codec takes and gives."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, BinaryIO, Literal, TypeAlias

from onnx_serve.errors import DecodeError, PayloadTooLarge
from onnx_serve.tensors import Signature, Tensors, Values

__all__ = [
    "Answer",
    "BadRecord",
    "Body",
    "Codec",
    "CodecOptions",
    "Document",
    "ImageOptions",
    "Layout",
    "MediaType",
    "Place",
]


# So much always fits, and asking the kernel for its memory costs more than a small request.
_ALWAYS_FITS_BYTES = 16 << 20
# Bytes of memory for a byte of a line at the most: JSON's shortest values as Python's objects.
_LINE_MULTIPLE = 20


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
        gone: Tells whether whoever sent it has gone, so that nobody waits for an answer; None if that is not known.
        room: Tells how many bytes of memory are left; None if that is not known.
    """

    stream: BinaryIO
    length: int
    gone: Callable[[], bool] | None = None
    room: Callable[[], int] | None = None

    def check_room(self, needed: int, what: str, advice: str) -> None:
        """Refuses what is decoded whole where memory has no room for it.

        Args:
            needed: Bytes of memory that it takes at the peak.
            what: Names it: ``a line of 20 bytes``.
            advice: What its sender can do instead.

        Raises:
            PayloadTooLarge: More is needed than is left.
        """
        if self.room is None or needed <= _ALWAYS_FITS_BYTES:
            return
        available = self.room()
        if needed > available:
            raise PayloadTooLarge(
                f"{what} is decoded whole and needs about {needed >> 20} MiB, of which {max(available, 0) >> 20} MiB "
                f"are left; {advice}"
            )

    def read_all(self) -> bytes:
        """The whole body, for formats that cannot be cut."""
        return self.stream.read(self.length)

    def lines(self, chunk_bytes: int) -> Iterator[bytes]:
        """The body in pieces that end with a newline, each of about ``chunk_bytes`` or one longer line.

        Only the last piece may lack the newline. It is a line alone only where no newline is read along with it,
        or the body's length is a multiple of ``chunk_bytes``. No piece is empty.

        Raises:
            PayloadTooLarge: A line is longer than memory can hold decoded.
        """
        rest: list[bytes] = []
        while chunk := self._read(chunk_bytes):
            is_last = len(chunk) < chunk_bytes
            end = len(chunk) if is_last else chunk.rfind(b"\n") + 1
            if not end:
                rest.append(chunk)
                length = len(rest) * chunk_bytes
                self.check_room(
                    _LINE_MULTIPLE * length, f"a line of {length} bytes or more", "send shorter lines"
                )
                continue
            yield b"".join((*rest, chunk[:end])) if rest else chunk[:end]
            rest = [chunk[end:]] if end < len(chunk) else []
        if rest:
            yield b"".join(rest)

    def _read(self, size: int) -> bytes:
        """So many bytes, or fewer at the stream's end only, whatever the stream gives at once."""
        parts = [self.stream.read(size)]
        missing = size - len(parts[0])
        while missing and parts[-1]:
            parts.append(self.stream.read(missing))
            missing -= len(parts[-1])
        return b"".join(parts)


class Layout(Enum):
    """How the records of a document were laid out, and so how its answer is.

    RECORDS: one record after the other; an answer has one prediction a record, in order.
    COLUMNS: one array an input; an answer has one array an output.
    OIP: the Open Inference Protocol's tensors; an answer has them too.
    """

    RECORDS = "records"
    COLUMNS = "columns"
    OIP = "oip"


Place: TypeAlias = Callable[[str, int], DecodeError]


class BadRecord(dict[str, Any]):
    """One record that has no answer, in place of a block: a block without tensors, which says why.

    Codecs meet it only where ``CodecOptions.record_errors`` is ``placeholder``, and decoders need not make any.

    Attributes:
        error: What is wrong with the record and where, in one line.
    """

    __slots__ = ("error",)

    def __init__(self, error: str) -> None:
        super().__init__()
        self.error = error


@dataclass(frozen=True, slots=True)
class Document:
    """One thing to be answered.

    Attributes:
        blocks: Arrays by input name. With rows, dimension 0 counts the records of the block, any number but
            0 (no records: no block). Without rows, a block is what one run takes, and one record.
            With the layout RECORDS, some may be a ``BadRecord``.
        layout: How the answer is laid out.
        request_id: The Open Inference Protocol's ``id``, echoed in the answer.
        outputs: Names of the outputs that an OIP answer holds, in its order; none for all of them.
        sizes: How many records each document has, where several are joined, with the layout RECORDS, to be run
            together; the answer shows nothing of that.
        place: Makes an error of what is wrong with a record and the record's number, from 1, where only the model's
            run shows it; None: the number says enough.
    """

    blocks: Iterable[Tensors]
    layout: Layout = Layout.RECORDS
    request_id: str | None = None
    outputs: tuple[str, ...] = ()
    sizes: Sequence[int] = ()
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The outputs of one document.

    Attributes:
        blocks: Outputs by name in the signature's order, for each input block or piece of one, in order.
            Some may be a ``BadRecord``, if the codec says that it marks them.
        layout: The document's.
        request_id: The document's.
        outputs: The document's.
        sizes: The document's.
    """

    blocks: Iterable[Values]
    layout: Layout = Layout.RECORDS
    request_id: str | None = None
    outputs: tuple[str, ...] = ()
    sizes: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How a model wants its images; what is None follows from the model's input.

    Attributes:
        layout: The order of an image's dimensions in the input, ``chw`` or ``hwc``.
        size: Height and width to resize to, where the input leaves them free.
        scale: What pixels of 0 to 255 are multiplied by first; 1/255 if None.
        mean: Subtracted next, one number or one a channel.
        std: What is divided by last, one number or one a channel.
        channel_order: The order of a colour image's channels in the input.
        max_pixels: Larger images are refused before they are decoded.
    """

    layout: Literal["chw", "hwc"] | None = None
    size: tuple[int, int] | None = None
    scale: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channel_order: Literal["rgb", "bgr"] = "rgb"
    max_pixels: int = 1 << 25


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
        record_errors: Whether a bad record fails the request, or is answered by a placeholder.
        image: How the model wants its images; None for what follows from its input.
    """

    model_name: str = "model"
    batch: bool = False
    csv_header: Literal["auto", "present", "absent", "skip"] = "auto"
    json_non_finite: Literal["string", "null", "literal"] = "string"
    text_trailing_newline: bool = True
    chunk_bytes: int = 512 << 10
    record_errors: Literal["fail", "placeholder"] = "fail"
    image: ImageOptions | None = None

    @property
    def marks_errors(self) -> bool:
        """Whether a bad record becomes a ``BadRecord`` where it stands."""
        return self.record_errors == "placeholder"


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
        mirrored: Whether a caller who sends this format and has no wish is answered in it.
        marks_errors: Whether an answer has a place for what is wrong with a record: ``encode`` takes a ``BadRecord``.
    """

    media_types: tuple[str, ...]
    decode: Decode | None
    encode: Encode | None
    whole: float = 0
    mirrored: bool = False
    marks_errors: bool = False
