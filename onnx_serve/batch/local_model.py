"""The model in this process, as a batch job asks it: the way of a request without HTTP."""

import threading
from collections.abc import Callable, Iterable, Iterator

from onnx_serve.batching import Engine
from onnx_serve.codecs.interface import Body
from onnx_serve.execution_parameters import ExecutionParameters
from onnx_serve.inference import Reply
from onnx_serve.repository import Repository
from onnx_serve.tensors import Feed, RowAxis, Values, row_count

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
        self._count = threading.local()
        self._on_rows = on_rows
        self._inference.engine = _CountedEngine(self._inference.engine, self._add)

    @property
    def slots(self) -> int:
        """Runs of the model at once."""
        return self._inference.engine.slots

    def execution_parameters(self) -> ExecutionParameters:
        """What the container would answer."""
        return self._repository.execution_parameters()

    def __call__(self, body: Body, content_type: str | None, accept: str | None) -> tuple[Reply, int]:
        """The answer to one request, and the rows that the model ran for it.

        Raises:
            ServeError: As ``Inference``.
        """
        self._count.rows = 0
        reply = self._inference(body, content_type, accept)
        return reply, self._count.rows

    def close(self) -> None:
        """Ends the engine's threads."""
        self._repository.close()

    def _add(self, rows: int) -> None:
        # The blocks of a request come out in the thread that asked.
        self._count.rows += rows
        self._on_rows(rows)


class _CountedEngine(Engine):
    """An engine that tells how many rows it has answered; without rows, a run counts as one."""

    def __init__(self, engine: Engine, on_rows: Callable[[int], None]) -> None:
        self.signature = engine.signature
        self.slots = engine.slots
        self.block_rows = engine.block_rows
        self._engine = engine
        self._on_rows = on_rows

    def map(self, blocks: Iterable[Feed]) -> Iterator[Values]:
        has_rows = self.signature.row_axis is not RowAxis.NONE
        for outputs in self._engine.map(blocks):
            rows = row_count(next(iter(outputs.values()))) if has_rows else 1
            self._on_rows(rows or 0)
            yield outputs

    def close(self) -> None:
        self._engine.close()
