"""What the server's process holds and what requests add to it: the memory model.

The process at its peak is the sum of four parts::

    base      the interpreter, the libraries and the server, before any model
    session   what loading the model and its first run added, for good
    runs      what concurrent runs need beside that; bounded by rows of a run times slots, never by a payload
    host      bodies, records being decoded, answers being encoded: by concurrency and payload

The first two are measured in this very process, the third in a child process (``calibration``), the fourth is
computed here. docs/decisions/0009-memory.md has the figures.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from onnx_serve import allocator

__all__ = [
    "FORMATS",
    "INTEGERS_DOCUMENT",
    "NUMBERS_DOCUMENT",
    "OBJECTS_DOCUMENT",
    "DocumentMemory",
    "FormatMemory",
    "HostMemory",
    "MemoryEstimate",
    "MemoryWatch",
    "margin_bytes",
    "release_and_settle",
]

_MIB = 1 << 20
# What a heap in use has lost between buffers that come and go.
_LOST_BYTES = 32 * _MIB
_MARGIN_BYTES = 256 * _MIB
_MARGIN_SHARE = 20
_MARGIN_SMALL_SHARE = 8
# A look reads a dozen files, each of which gives the interpreter's lock to whoever waits for it.
_LOOK_EVERY_S = 1.0
_RELIEF_S = 2.0
_SHORT_SHARE = 20


def margin_bytes(limit_bytes: int) -> int:
    """Bytes of a machine that are never planned with: 256 MiB or 5 %, in small containers an eighth."""
    return max(min(_MARGIN_BYTES, limit_bytes // _MARGIN_SMALL_SHARE), limit_bytes // _MARGIN_SHARE)


def release_and_settle(resident: Callable[[], int]) -> int:
    """Gives back what loading a model has left free in the heap, and tells what will be resident in the end.

    That memory lies in holes between objects that stay. Requests fill some of the holes and leave others: about half of
    what was given back returns. Measured, docs/decisions/0003-allocator.md.

    Args:
        resident: Tells the bytes that are resident now.
    """
    before = resident()
    allocator.release()
    return (before + resident()) // 2


class FormatMemory(NamedTuple):
    """What a format holds beside the bodies, as multiples: measured, docs/decisions/0009-memory.md.

    Attributes:
        decoding: Bytes for each byte of a chunk being decoded, in every request that has a permit.
        is_whole: Whether bodies are decoded whole.
        answer: Bytes for each byte of an answer until it is sent.
        answer_length: Bytes of an answer for a byte of a request with as many values.
    """

    decoding: float
    is_whole: bool
    answer: float
    answer_length: float


FORMATS: Mapping[str, FormatMemory] = {
    "text/csv": FormatMemory(decoding=16, is_whole=False, answer=2.5, answer_length=1.15),
    "application/jsonlines": FormatMemory(decoding=20, is_whole=False, answer=2.2, answer_length=1.5),
    "application/x-npy": FormatMemory(decoding=2, is_whole=False, answer=1.5, answer_length=1),
    "application/json": FormatMemory(decoding=0, is_whole=True, answer=2.5, answer_length=1.5),
}
# Strings of a chunk: being decoded, waiting for a slot, running.
_STRING_COPIES = 3
# Several outputs are an NPZ archive, which is put together from whole arrays.
_NPZ_ANSWER = 2.5


class DocumentMemory(NamedTuple):
    """What JSON documents hold beside their bodies, as multiples of their length.

    Attributes:
        parsing: While one is parsed, which is done one after the other.
        held: Of each, while its records run.
    """

    parsing: float
    held: float


# Records of one input are numbers in lists, and become one array, which of integers is about as long as their text; of
# several inputs each record is an object of Python's, and all of them live until the last has run.
NUMBERS_DOCUMENT = DocumentMemory(parsing=5.1, held=0.4)
INTEGERS_DOCUMENT = DocumentMemory(parsing=5.1, held=1.1)
OBJECTS_DOCUMENT = DocumentMemory(parsing=0.0, held=10.5)


@dataclass(frozen=True, slots=True)
class HostMemory:
    """What requests hold outside of the model's runs.

    Attributes:
        permits: Requests that are decoded, run and encoded at once.
        chunk_bytes: Bytes of a body that are decoded at once.
        body_memory_bytes: Larger bodies are kept in the temporary directory.
        answer_memory_bytes: Larger answers are, too.
        spool_is_memory: Whether that directory lives in memory.
        output_share: Bytes of a record's outputs for a byte of its inputs, as tensors.
        several_outputs: Whether the model has more than one.
        document: Of JSON documents of its records.
        worst_multiple: Bytes for a byte of a JSON document at the most, by which each is admitted.
        string_share: Bytes of Python's strings for a byte of a record as text, in formats that are decoded in chunks; 0
            for records without.
    """

    permits: int
    chunk_bytes: int
    body_memory_bytes: int
    answer_memory_bytes: int
    spool_is_memory: bool
    output_share: float
    several_outputs: bool
    document: DocumentMemory
    worst_multiple: float
    string_share: float = 0

    def bodies_bytes(self, concurrent: int, payload_bytes: int) -> int:
        """Bytes that so many bodies take while they are received and answered."""
        kept = payload_bytes <= self.body_memory_bytes or self.spool_is_memory
        return concurrent * payload_bytes if kept else 0

    def bytes(self, concurrent: int, payload_bytes: int, media_type: str) -> int:
        """All that requests in a format of ``FORMATS`` hold, bodies included."""
        at_once = min(concurrent, self.permits)
        form = FORMATS[media_type]
        decoding = at_once * (form.decoding + _STRING_COPIES * self.string_share)
        decoding *= min(self.chunk_bytes, payload_bytes)
        if form.is_whole:
            decoding = (self.document.parsing + at_once * self.document.held) * payload_bytes
        return (
            self.bodies_bytes(concurrent, payload_bytes)
            + int(decoding)
            + concurrent * self._answer_bytes(payload_bytes, media_type)
            + min(_LOST_BYTES, concurrent * payload_bytes)
        )

    def worst_bytes(self, concurrent: int, payload_bytes: int) -> int:
        """The most that they can hold: every body is a JSON document as hard to decode as any."""
        at_once = min(concurrent, self.permits)
        documents = int(at_once * payload_bytes * self.worst_multiple)
        return documents + self.bodies_bytes(concurrent, payload_bytes)

    def _answer_bytes(self, payload_bytes: int, media_type: str) -> int:
        form = FORMATS[media_type]
        length = payload_bytes * self.output_share * form.answer_length
        in_memory = length if self.spool_is_memory else min(length, self.answer_memory_bytes)
        is_archive = self.several_outputs and media_type == "application/x-npy"
        # Arrays are put together before anything is spooled.
        return int(length * _NPZ_ANSWER if is_archive else in_memory * form.answer)


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What the process holds whatever it is sent, and what runs of the model need.

    Attributes:
        base_bytes: Measured before the model was loaded.
        session_bytes: Measured growth from loading it and running it once.
        runs_bytes: Reserved for runs.
        past_bytes: The peak of the process so far, which loading a model may have set for good.
    """

    base_bytes: int
    session_bytes: int
    runs_bytes: int
    past_bytes: int = 0

    def peak_bytes(self, host_bytes: int) -> int:
        """The whole process at its peak."""
        return max(self.base_bytes + self.session_bytes + self.runs_bytes + host_bytes, self.past_bytes)


class MemoryWatch:
    """Looks at the machine's memory after runs: what lives outside onnxruntime's arena has no other bound.

    Thread-safe: a lost race costs one more look.

    Args:
        available: Tells how many bytes of memory are left.
        limit_bytes: The machine's memory.
        relieve: Gives back what can be given back; called before anybody is told that memory is short.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        available: Callable[[], int],
        limit_bytes: int,
        relieve: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._available = available
        self._short_bytes = limit_bytes // _SHORT_SHARE
        self._relieve = relieve
        self._clock = clock
        self._next_look = float("-inf")

    def pressed(self) -> bool:
        """Whether runs must become smaller, because less than a twentieth of the memory is left.

        Says so once in two seconds at most: what has been made smaller needs time to show.
        """
        now = self._clock()
        if now < self._next_look:
            return False
        self._next_look = now + _LOOK_EVERY_S
        if self._available() >= self._short_bytes:
            return False
        self._relieve()
        self._next_look = now + _RELIEF_S
        return self._available() < self._short_bytes
