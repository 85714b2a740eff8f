"""What the server holds while a job follows its answer, against what it said it would hold."""

from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from bench.agent import JobFailedError, JobResult, run_job
from bench.parameter_sweep import SINGLE, job_records, measure
from bench.payloads import MIB, Payload, Source
from bench.server_process import Answer, ServerProcess, StartFailedError, serving

_EXIT_MODEL = 3
_CONTAINER_PAYLOADS, _CONTAINER_PAYLOAD_MB = 100, 6


@dataclass(frozen=True)
class MemoryJob:
    """A job that follows the answer, with payloads as large as it allows, on a server of its own.

    Attributes:
        answer: Of that server.
        content_type: Of the payloads.
        actual_bytes: The most that the process held resident.
        group_bytes: The most that its container held, file cache and the measuring child included.
        start_s: Until the first 200 for a ping.
        requests: That were answered.
        finished: Whether the job ended by itself, not by the time allowed.
        client_share: Processors that the client kept busy.
        failure: Why it failed, or nothing.
    """

    answer: Answer
    content_type: str
    actual_bytes: int
    group_bytes: int
    start_s: float
    requests: int
    finished: bool
    client_share: float
    failure: str = ""

    @property
    def predicted_bytes(self) -> int | None:
        """What was predicted for payloads of this format, or for the format that takes most."""
        own = self.answer.terms.get(f"peak_bytes {self.content_type}")
        return self.answer.predicted_bytes if own is None else int(own)

    @property
    def ratio(self) -> float | None:
        """Predicted over actual; None if nothing was predicted, or the process died."""
        predicted = self.predicted_bytes
        return predicted / self.actual_bytes if predicted and self.actual_bytes else None


def memory_job(
    model_dir: Path, source: Source, limits: tuple[int, float] | None, limit_s: float
) -> MemoryJob:
    """Runs it: twice as many payloads as are in flight at once, and two more.

    Raises:
        StartFailedError: The server does not start.
    """
    with serving(model_dir, {"SAGEMAKER_BATCH": "true"}, limits) as server:
        answer = server.answer()
        fits = source.fits(answer.limit_mb * MIB)
        if not fits:
            return _outcome(server, answer, source, None, "one record exceeds the payload")
        if answer.strategy == SINGLE:
            made, count = list(source.single(len(source.records))), 10_000
            payloads = (made[index % len(made)] for index in range(count))
        else:
            payloads = repeat(source.pack(fits), 2 * answer.concurrent + 2)  # type: ignore[assignment]  # both give payloads
        try:
            result = run_job(server.port, source.content_type, payloads, answer.concurrent, limit_s)
        except JobFailedError as ex:
            return _outcome(server, answer, source, None, str(ex))
        return _outcome(server, answer, source, result, "")


def _outcome(
    server: ServerProcess, answer: Answer, source: Source, result: JobResult | None, failure: str
) -> MemoryJob:
    if not server.alive:
        failure, peak = f"the server died: {server.last_line}", 0
    else:
        peak = server.peak_bytes
    return MemoryJob(
        answer,
        source.content_type,
        peak,
        server.group.peak_bytes if server.group else 0,
        server.start_s,
        result.requests if result else 0,
        result.finished if result else False,
        result.client_s / result.seconds if result else 0.0,
        failure,
    )


@dataclass(frozen=True)
class ContainerJob:
    """A hundred payloads of 6 MB in a small container.

    Attributes:
        verdict: completed, cut (time ran out, nothing failed), refused (at the start, exit code 3) or failed.
        detail: What was sent, what the server said, or what went wrong.
        kills: Processes of the container that were killed for memory while the job ran.
    """

    verdict: str
    detail: str
    kills: int = 0


def container_job(
    model_dir: Path, sources: list[Source], limits: tuple[int, float], limit_s: float
) -> ContainerJob:
    """Runs it with the answered concurrency and strategy; payloads are no larger than answered.

    A model too slow for a hundred full payloads in the time gets fewer records a payload, in JSON lines padded
    with blanks to the same size, or, where it takes none, as many payloads as the time allows.

    Args:
        model_dir: The model's folder.
        sources: Its records in all formats, the usual one first.
        limits: Bytes of memory and processors of the container.
        limit_s: Time for the job.
    """
    try:
        with serving(model_dir, {"SAGEMAKER_BATCH": "true"}, limits) as server:
            return _run_in_container(server, sources, limit_s)
    except StartFailedError as ex:
        return ContainerJob("refused" if ex.code == _EXIT_MODEL else "failed", f"exit {ex.code}: {ex}")


def _run_in_container(server: ServerProcess, sources: list[Source], limit_s: float) -> ContainerJob:
    assert server.group is not None
    answer, kills = server.answer(), server.group.kills
    try:
        source, payload = _container_payload(server, sources, answer, limit_s)
        count = _CONTAINER_PAYLOADS
        if answer.strategy == SINGLE:
            count = _CONTAINER_PAYLOADS * max(source.fits(_CONTAINER_PAYLOAD_MB * MIB), 1)
        result = run_job(server.port, source.content_type, repeat(payload, count), answer.concurrent, limit_s)
    except JobFailedError as ex:
        died = "" if server.alive else f"; the server died: {server.last_line}"
        return ContainerJob("failed", f"{answer}: {ex}{died}", server.group.kills - kills)
    kills = server.group.kills - kills
    sent = f"{answer.concurrent} at once, {result.requests} of {count} payloads of {len(payload.body) / MIB:.1f} MB"
    detail = f"{sent} ({payload.records} records of {source.content_type}) in {result.seconds:.0f} s"
    if kills:
        return ContainerJob("failed", f"killed for memory; {detail}", kills)
    return ContainerJob("completed" if result.finished else "cut", detail)


def _container_payload(
    server: ServerProcess, sources: list[Source], answer: Answer, limit_s: float
) -> tuple[Source, Payload]:
    """One payload such that a hundred fit in two thirds of the time, if that is possible."""
    usual = sources[0]
    size = min(_CONTAINER_PAYLOAD_MB, answer.limit_mb) * MIB
    if answer.strategy == SINGLE:
        return usual, next(usual.single(1))
    fits = usual.fits(size)
    if not fits:
        raise JobFailedError(f"a record of {usual.mean_bytes / MIB:.1f} MB exceeds the payload")
    rate = measure(server, usual, job_records(server, usual, answer, 1), answer)
    affordable = max(int(rate * limit_s * 2 / 3 / _CONTAINER_PAYLOADS), 1)
    for source in sources:
        if affordable < fits and "jsonlines" in source.content_type and source.fits(size) > affordable:
            return source, source.pack(affordable, padded_to=size)
    return usual, usual.pack(fits)
