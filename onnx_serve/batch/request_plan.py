"""How the requests of a batch job are made, and who answers them."""

from dataclasses import dataclass
from typing import BinaryIO, Protocol

from onnx_serve.batch.transform_job import TransformJob
from onnx_serve.codecs.interface import Body
from onnx_serve.execution_parameters import ExecutionParameters
from onnx_serve.inference import Reply

__all__ = ["Answered", "Plan", "Target"]

_MIB = 1 << 20
_DEFAULT_PAYLOAD_MB = 6


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to one request.

    Attributes:
        reply: The answer.
        rows: Records that it answers; 0 if that is not known.
        bad_records: Of them, those answered by a placeholder.
    """

    reply: Reply
    rows: int = 0
    bad_records: int = 0


class Target(Protocol):
    """What answers requests: a model in this process, or a container.

    Attributes:
        counts_rows: Whether a call tells the records it answered, and shows them as they are.
    """

    counts_rows: bool

    def __call__(
        self, body: Body, content_type: str | None, accept: str | None, sink: BinaryIO | None = None
    ) -> Answered:
        """The answer to one request.

        Args:
            body: What is sent.
            content_type: Its media type.
            accept: That of the answer; None for no wish.
            sink: If there is one, the answer may go there as it is made, and the reply then has no content. After
                an error what it holds means nothing.
        """
        ...

    def execution_parameters(self) -> ExecutionParameters | None:
        """What it answers to ``/execution-parameters``, or None."""
        ...

    def close(self) -> None:
        """Ends it; requests under way may fail."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """How requests are made.

    Attributes:
        job: What the author chose.
        concurrent: Requests at once.
        single: One record a request.
        max_bytes: Of one request; 0 for any size. What cannot be cut is sent whole in a plain job all the same.
    """

    job: TransformJob
    concurrent: int
    single: bool = False
    max_bytes: int = 0

    @classmethod
    def whole_files(cls, job: TransformJob, concurrent: int) -> "Plan":
        """Every file is one request."""
        return cls(job, concurrent)

    @classmethod
    def of_server(cls, job: TransformJob, answered: ExecutionParameters | None) -> "Plan":
        """Every file is one request, unless it is larger than the server takes at once."""
        concurrent, _, payload_mb = job.resolve(answered)
        return cls(job, max(concurrent, 1), max_bytes=payload_mb * _MIB)

    @classmethod
    def of_platform(cls, job: TransformJob, answered: ExecutionParameters | None) -> "Plan":
        """As Batch Transform would, from the job's choices and the container's answer."""
        concurrent, strategy, payload_mb = job.resolve(answered)
        single = strategy == "SINGLE_RECORD" and job.split_type != "none"
        if payload_mb == 0 and job.processing.active:
            payload_mb = _DEFAULT_PAYLOAD_MB
        return cls(job, concurrent, single, payload_mb * _MIB)

    @property
    def splits(self) -> bool:
        """Whether files are cut; a job of any payload sends them whole, unless record by record."""
        return self.job.split_type != "none" and (self.single or self.max_bytes > 0)

    @property
    def holds_bodies(self) -> bool:
        """Whether requests are in memory while they wait; whole files are not."""
        return self.splits or (not self.job.platform and self.max_bytes > 0)
