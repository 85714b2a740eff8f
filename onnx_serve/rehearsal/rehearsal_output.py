"""What a rehearsed job has made: its outputs, put together of answers, and its figures."""

from dataclasses import dataclass, field
from pathlib import Path

from onnx_serve.batch.input_files import InputFile
from onnx_serve.batch.output_folder import OutputFile, OutputFolder
from onnx_serve.batch.transform_job import TransformJob
from onnx_serve.rehearsal.answer_checks import AnswerChecks

__all__ = ["Assembly", "FileOutcome", "Totals"]


@dataclass(slots=True)
class FileOutcome:
    """What became of one input.

    Attributes:
        name: Of its output, without ``.out``.
        done: Whether the output would have been written.
        requests: Answered with 200.
        records: In them; of a file that is not split, 1.
        bytes_in: Of the requests.
        bytes_out: Of the output.
        problem: Why it failed.
    """

    name: str
    done: bool = False
    requests: int = 0
    records: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    problem: str = ""


@dataclass(slots=True)
class Totals:
    """What a job has taken.

    Attributes:
        seconds: From its first request to its last answer.
        latencies_s: Of all requests that were answered with 200.
        files: In their order.
        stopped: Why it ended before its time; empty if it did not.
    """

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    files: list[FileOutcome] = field(default_factory=list)
    stopped: str = ""

    @property
    def requests(self) -> int:
        """Answered with 200."""
        return len(self.latencies_s)

    @property
    def records(self) -> int:
        """In the requests that were answered."""
        return sum(file.records for file in self.files)

    @property
    def bytes_in(self) -> int:
        """Of the requests that were answered."""
        return sum(file.bytes_in for file in self.files)


class Assembly:
    """One output, put together of answers in order; written only where there is a folder for it."""

    def __init__(self, file: InputFile, job: TransformJob, output: OutputFolder | None) -> None:
        self.outcome = FileOutcome(file.name)
        self.checks = AnswerChecks(
            job.accept,
            job.split_type,
            assemble_line=job.assemble_with == "line",
            processing=job.processing.active,
        )
        self._ends_lines = job.assemble_with == "line"
        self._place = output.place(file.name) if output is not None else None
        self._file: OutputFile | None = None

    def append(self, answer: bytes) -> None:
        """Adds an answer."""
        if self._ends_lines and not answer.endswith(b"\n"):
            answer += b"\n"
        self.outcome.bytes_out += len(answer)
        if self._place is not None:
            self._open(self._place).append(answer)

    def commit(self) -> None:
        """Makes the output appear."""
        if self._place is not None:
            self._open(self._place).commit()
        self.outcome.done = True

    def discard(self) -> None:
        """Leaves nothing of the output."""
        if self._file is not None:
            self._file.discard()

    def _open(self, place: Path) -> OutputFile:
        if self._file is None:
            self._file = OutputFile(place)
        return self._file
