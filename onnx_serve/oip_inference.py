"""The Open Inference Protocol's way of a request: one message in, one message out.

It is ``inference``'s way with one difference: a message names its outputs and how each is written, and how long
its JSON header is stands outside of it. So the codec is fixed, and the reply says what its header measures.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from onnx_serve.abandonment import Deadline, Gone
from onnx_serve.admission import Admission
from onnx_serve.batching import Engine
from onnx_serve.codecs import oip_binary
from onnx_serve.codecs.interface import Body, CodecOptions
from onnx_serve.codecs.json_outputs import merge
from onnx_serve.codecs.oip_json import requested
from onnx_serve.errors import Abandoned
from onnx_serve.inference import SMALL_BYTES, Limits, check_wanted
from onnx_serve.tensors import DataType, Feed, Signature, Values, conform

__all__ = ["OipInference", "OipReply"]

# Bytes of memory at the peak for a byte of JSON (as ``json`` measured it), and for one of binary data: that of
# BYTES becomes Python's strings, 80 bytes for two characters behind their length.
_JSON_MULTIPLE = 20
_BYTES_MULTIPLE = 20
_BINARY_MULTIPLE = 2


@dataclass(frozen=True, slots=True)
class OipReply:
    """A complete answer.

    Attributes:
        content: The bytes, or for a long answer a file at its start, closed by whoever reads it.
        length: Bytes of content.
        header_length: Bytes of its JSON header, or None when it is all JSON.
    """

    content: bytes | BinaryIO
    length: int
    header_length: int | None


class OipInference:
    """Answers inference requests of the protocol for one model. Thread-safe.

    Args:
        engine: Runs the model.
        admission: Shared by all models of the server.
        options: The operator's choices about formats.
        limits: What one request may take.
        version: The model's version as answers name it, or None to leave it out.
    """

    def __init__(
        self,
        engine: Engine,
        admission: Admission,
        options: CodecOptions,
        limits: Limits,
        version: str | None = None,
    ) -> None:
        self._engine = engine
        self._admission = admission
        self._options = options
        self._limits = limits
        self._version = version

    @property
    def signature(self) -> Signature:
        """What the model takes and gives."""
        return self._engine.signature

    def __call__(self, body: Body, header_length: int | None) -> OipReply:
        """One request.

        Args:
            body: Read once, to its end unless an error comes first.
            header_length: Bytes of the JSON header, see ``oip_binary.read_request``.

        Raises:
            ServeError: Whatever was wrong; see ``errors``.
        """
        self._check_room(replace(body, room=self._limits.available_bytes), header_length)
        since = time.monotonic()
        with self._admission.permit(small=self._engine.merges and body.length <= SMALL_BYTES):
            check_wanted(body, since)
            request = oip_binary.read_request(body.read_all(), header_length, self.signature)
            blocks = list(self._run(request.tensors, body.gone))
            outputs = merge(blocks, requested(self.signature, request.outputs))
            # The sink is handed on with the reply; it is closed here only when there is none.
            sink = cast("BinaryIO", SpooledTemporaryFile(self._limits.answer_memory_bytes))  # noqa: SIM115
            try:
                header_length = oip_binary.write_response(
                    outputs, request, self.signature, self._options, sink, self._version
                )
            except BaseException:
                sink.close()
                raise
        length = sink.tell()
        sink.seek(0)
        if length > self._limits.answer_memory_bytes:
            return OipReply(sink, length, header_length)
        with sink:
            return OipReply(sink.read(), length, header_length)

    def _run(self, tensors: Feed, gone: Gone | None) -> Iterator[Values]:
        """The outputs of a request's rows; of none, none."""
        deadline = Deadline(self._limits.timeout_s)
        feed = conform(tensors, self.signature)
        if self.signature.has_rows and not len(next(iter(feed.values()))):
            return
        try:
            for outputs in self._engine.map((feed,), deadline.gone(gone)):
                deadline.check()
                yield outputs
        except Abandoned:
            deadline.check()
            raise

    def _check_room(self, body: Body, header_length: int | None) -> None:
        """A message is decoded whole, so it must fit in memory, its JSON several times over."""
        json_length = body.length if header_length is None else min(header_length, body.length)
        takes_text = any(spec.dtype is DataType.STRING for spec in self.signature.inputs)
        multiple = _BYTES_MULTIPLE if takes_text else _BINARY_MULTIPLE
        body.check_room(
            _JSON_MULTIPLE * json_length + multiple * (body.length - json_length),
            f"a request of {body.length} bytes, {json_length} of them JSON,",
            "send less in one" if takes_text else "send tensors as binary data",
        )
