"""The model in this process, as a batch job asks it: the way of a request without HTTP."""

from collections.abc import Callable
from typing import BinaryIO

from onnx_serve.batch.request_plan import Answered
from onnx_serve.codecs.interface import BadRecord, Body
from onnx_serve.execution_parameters import ExecutionParameters
from onnx_serve.repository import Repository
from onnx_serve.tensors import Values, row_count

__all__ = ["LocalModel"]


class LocalModel:
    """Answers requests with the repository's default model. Thread-safe.

    Args:
        repository: Loaded; closed with this.
        on_rows: Told of the rows that are answered, as they are.

    Raises:
        ModelNotFound: The repository has several models and none is the default.
    """

    counts_rows = True

    def __init__(self, repository: Repository, on_rows: Callable[[int], None]) -> None:
        self._repository = repository
        self._inference = repository.default()
        self._on_rows = on_rows

    @property
    def slots(self) -> int:
        """Runs of the model at once."""
        return self._inference.engine.slots

    def execution_parameters(self) -> ExecutionParameters:
        """What the container would answer."""
        return self._repository.execution_parameters()

    def __call__(
        self, body: Body, content_type: str | None, accept: str | None, sink: BinaryIO | None = None
    ) -> Answered:
        """The answer to one request; a model without rows answers one record a run.

        With a sink the answer goes there as blocks end, and the reply has no content.

        Raises:
            ServeError: As ``Inference``.
        """
        rows = bad = 0
        has_rows = self._inference.signature.has_rows

        def count(block: Values) -> None:
            nonlocal rows, bad
            is_bad = isinstance(block, BadRecord)
            more = (row_count(next(iter(block.values()))) or 0) if has_rows and not is_bad else 1
            rows += more
            bad += is_bad
            self._on_rows(more)

        reply = self._inference(body, content_type, accept, sink, count)
        return Answered(reply, rows, bad)

    def close(self) -> None:
        """Ends the engine's threads."""
        self._repository.close()
