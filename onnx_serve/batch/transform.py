"""Batch jobs over files: each input file becomes one output file, whole or not at all.

A job has one of two shapes. Plain: every file is one request of any size, which ``Inference`` decodes, runs and
encodes block by block, into the output while it still has its hidden name. As the platform: files are split to
records and packed into requests the way SageMaker's Batch Transform does it. Both flow the same way::

    files -> requests -> target, several at once -> answers in order -> output files

A pool of threads sends the requests; this module's caller takes their answers in order, and no more than one
beyond those at work is in memory. A file that fails leaves nothing behind; the others go on.
"""

import errno
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from onnx_serve.batch.input_files import InputFile
from onnx_serve.batch.output_folder import OutputFile, OutputFolder, output_suffix
from onnx_serve.batch.progress import Progress
from onnx_serve.batch.request_plan import Plan, Target
from onnx_serve.batch.transform_job import TransformJob
from onnx_serve.batch.transform_requests import Event, Requests
from onnx_serve.inference import Reply

__all__ = ["FileResult", "transform"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class FileResult:
    """What became of one input.

    Attributes:
        name: The input's.
        outcome: ``done``, ``finished`` (by an earlier run) or ``failed``.
        rows: Records answered; of a container's answers that have no lines, requests.
        bad_records: Of them, those answered by a placeholder.
        read_bytes: On disk.
        written_bytes: Of the output.
        error: Why it failed.
    """

    name: str
    outcome: str
    rows: int = 0
    bad_records: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    error: str = ""

    @property
    def problem(self) -> str:
        """What the job's author should know, in one line; empty if nothing."""
        if self.bad_records:
            return f"{self.bad_records:,} of {self.rows:,} records are bad"
        return self.error


def transform(
    files: Sequence[InputFile], output: OutputFolder, target: Target, plan: Plan, progress: Progress
) -> Generator[FileResult, None, None]:
    """Runs a job, and tells of each file when it is done, in order.

    The output folder must be locked. Closing the iterator stops the job and closes the target, so that requests
    under way end; the files that are not done leave nothing.

    Args:
        files: To be worked on, in that order.
        output: Where the outputs go.
        target: Answers the requests; after a job that was not stopped it stays open.
        plan: How requests are made.
        progress: Told of everything.
    """
    stop = threading.Event()

    def on_bytes(count: int) -> None:
        if stop.is_set():
            # Not InterruptedError, after which a buffered reader would read on.
            raise OSError(errno.ECANCELED, "the job was stopped")
        progress.add(read_bytes=count)

    requests = Requests(plan, target, output, on_bytes)
    pool = ThreadPoolExecutor(plan.concurrent, thread_name_prefix="onnx-serve-transform")
    window = plan.concurrent + 1 if plan.holds_bodies else 2 * plan.concurrent
    output_file: _Assembly | None = None
    stopped = True
    try:
        for event in _in_order(pool, requests.of(files), window):
            if event.file.name in requests.failed:
                _close_reply(event)
                continue
            if output_file is None:
                output_file = _Assembly(event.file, output, plan.job)
            result = output_file.take(event)
            requests.release(event.file.name)
            if not target.counts_rows:
                progress.add(rows=event.rows)
            if result is not None:
                output_file = None
                if result.outcome == "failed":
                    requests.failed.add(result.name)
                progress.add(files=1)
                yield result
        stopped = False
    finally:
        stop.set()
        if stopped:
            target.close()
        if output_file is not None:
            output_file.discard()
        pool.shutdown(wait=True, cancel_futures=True)
        requests.close()


class _Assembly:
    """One output, put together of answers in order."""

    def __init__(self, file: InputFile, output: OutputFolder, job: TransformJob) -> None:
        self._file = file
        self._place = output.place(file.name)
        self._job = job
        self._output: OutputFile | None = None
        self._suffix = ""
        self._rows = self._bad_records = 0

    def take(self, event: Event) -> FileResult | None:
        """Appends an answer; tells the result when the file is done or has failed."""
        if event.error:
            return self._fail(event.error)
        try:
            if self._output is None:
                self._output = event.output or OutputFile(self._place)
            if event.reply is None:
                self._output.commit(self._suffix)
                return FileResult(
                    self._file.name,
                    "done",
                    self._rows,
                    self._bad_records,
                    self._file.size,
                    self._output.length,
                )
            self._rows += event.rows
            self._bad_records += event.bad_records
            self._append(self._output, event.reply, starts_line=event.starts_line)
        except OSError as ex:
            return self._fail(f"cannot write the output: {ex.strerror or ex}")
        finally:
            _close_reply(event)
        return None

    def discard(self) -> None:
        """Leaves nothing of the output."""
        if self._output is not None:
            with suppress(OSError):
                self._output.discard()

    def _append(self, output: OutputFile, reply: Reply, *, starts_line: bool) -> None:
        if not self._job.platform:
            self._suffix = output_suffix(reply.media_type)
        if starts_line:
            output.end_line()
        output.append(reply.content)
        if self._job.assemble_with == "line":
            output.end_line()

    def _fail(self, error: str) -> FileResult:
        self.discard()
        return FileResult(self._file.name, "failed", read_bytes=self._file.size, error=error)


def _in_order(pool: ThreadPoolExecutor, calls: Iterator[Callable[[], _T]], window: int) -> Iterator[_T]:
    """What the calls give, in their order; at most ``window`` of them are under way or waiting to be taken."""
    ahead: deque[Future[_T]] = deque()
    for call in calls:
        ahead.append(pool.submit(call))
        if len(ahead) >= window:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def _close_reply(event: Event) -> None:
    if event.reply is not None and not isinstance(event.reply.content, bytes):
        event.reply.content.close()
