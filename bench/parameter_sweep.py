"""What a job could have chosen instead: concurrency x payload x strategy, screened, the best run against the answer."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench.agent import JobFailedError, run_job
from bench.intervals import Interval, ratio_interval
from bench.payloads import MIB, Payload, Source
from bench.server_process import Answer, ServerProcess, StartFailedError, serving

MULTI, SINGLE = "MULTI_RECORD", "SINGLE_RECORD"
_CONCURRENT, _PAYLOADS_MB, _PRODUCT_MB = (1, 2, 3, 4, 8), (1, 6, 25, 50), 100
_PROBE_S = 0.4
_MAX_JOB_BYTES = 512 * MIB
_CONTENDERS = 3
# Times a measurement's length that a job may take; one of single records may take a hundred times as long.
_PATIENCE, _SINGLE_PATIENCE = 3, 1


class Choice(NamedTuple):
    """A job's own parameters, in the order of ``Answer``."""

    concurrent: int
    payload_mb: int
    strategy: str

    def variables(self) -> dict[str, str]:
        """What the platform sets for them."""
        return {
            "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": str(self.concurrent),
            "SAGEMAKER_MAX_PAYLOAD_IN_MB": str(self.payload_mb),
            "SAGEMAKER_BATCH_STRATEGY": self.strategy,
        }

    def __str__(self) -> str:
        return f"{self.concurrent} x {self.payload_mb} MB, {self.strategy}"


@dataclass(frozen=True)
class Bench:
    """Where jobs run.

    Attributes:
        model_dir: The model's folder.
        source: Its records.
        variables: Of every server beside the job's own.
        limits: Of its container.
        rounds: Interleaved pairs.
        seconds: Of one measurement, about.
    """

    model_dir: Path
    source: Source
    variables: Mapping[str, str]
    limits: tuple[int, float] | None
    rounds: int
    seconds: float


@dataclass(frozen=True)
class Sweep:
    """The answer against what could have been chosen; intervals are of the ratio of throughputs.

    Attributes:
        own: What the server answers.
        records: Of one job.
        own_rate: Median records a second under the answer.
        rates: Records a second of every choice that was screened, None where the job failed.
        contenders: The best of them, and the answer's throughput over theirs.
        forced: What the server answers to a job of one request at a time, and its throughput over theirs.
    """

    own: Choice
    records: int
    own_rate: float
    rates: dict[Choice, float | None] = field(default_factory=dict)
    contenders: dict[Choice, Interval] = field(default_factory=dict)
    forced: dict[Choice, Interval] = field(default_factory=dict)

    @property
    def worst(self) -> tuple[Choice, Interval]:
        """The contender that leaves the answer furthest behind."""
        return min(self.contenders.items(), key=lambda item: item[1].median)

    @property
    def worst_forced(self) -> Interval:
        """The same with one request at a time."""
        return min(self.forced.values(), key=lambda interval: interval.median)


def payloads(source: Source, records: int, answer: Answer | Choice) -> Iterator[Payload]:
    """A file of so many records, cut as the platform cuts it.

    Raises:
        JobFailedError: One record is larger than a payload.
    """
    limit = (answer.payload_mb or _PRODUCT_MB) * MIB
    if answer.strategy == SINGLE:
        return source.single(records)
    fits = source.fits(limit)
    if not fits:
        raise JobFailedError(f"a record of {source.mean_bytes / MIB:.1f} MB exceeds the payload")
    return source.cut(records, fits)


def measure(
    server: ServerProcess, source: Source, records: int, answer: Answer | Choice, limit_s: float = 600
) -> float:
    """Records a second of one job, or of what was answered of it in the time allowed."""
    made = list(payloads(source, records, answer))
    return run_job(server.port, source.content_type, made, answer.concurrent, limit_s).rate


def job_records(server: ServerProcess, source: Source, answer: Answer | Choice, seconds: float) -> int:
    """Records of a job that takes about that long; also warms the server."""
    records = 8
    while True:
        rate = measure(server, source, records, answer)
        most = max(int(_MAX_JOB_BYTES / source.mean_bytes), 1)
        if records / rate >= _PROBE_S or records >= most:
            return max(min(int(rate * seconds), most), 1)
        records = min(max(records * 2, int(rate * _PROBE_S * 1.2)), most)


def distinct(source: Source, records: int) -> list[Choice]:
    """Choices that cut and send a job's file in different ways, of equal ones that with the smallest payload."""
    found: dict[tuple[object, ...], Choice] = {}
    for concurrent in _CONCURRENT:
        most = _PRODUCT_MB // concurrent
        for payload_mb in sorted({mb for mb in _PAYLOADS_MB if mb < most} | {most}):
            fits = source.fits(payload_mb * MIB)
            if not fits:
                continue
            requests = math.ceil(records / fits)
            multi = (min(fits, records), min(concurrent, requests))
            found.setdefault(multi, Choice(concurrent, payload_mb, MULTI))
            found.setdefault((SINGLE, concurrent), Choice(concurrent, payload_mb, SINGLE))
    return list(found.values())


def sweep(bench: Bench) -> Sweep:
    """Screens every choice once, then runs the server's answer and the best of them in turn.

    Raises:
        JobFailedError: A job that follows the answer fails.
        StartFailedError: The server does not start.
    """
    with serving(bench.model_dir, bench.variables, bench.limits) as server:
        own = server.answer()
        records = job_records(server, bench.source, own, bench.seconds)
        mine = Choice(own.concurrent, own.limit_mb, own.strategy)
        choices = [choice for choice in distinct(bench.source, records) if choice != mine]
        own_rate = measure(server, bench.source, records, own)
    rates = _screen(bench, choices, records)
    ranked = sorted((rate, choice) for choice, rate in rates.items() if rate is not None)
    best = [choice for _, choice in reversed(ranked[-_CONTENDERS:])]
    if not best:
        return Sweep(mine, records, own_rate, rates)
    return _pairs(bench, mine, best, records, rates)


def _screen(bench: Bench, choices: Iterable[Choice], records: int) -> dict[Choice, float | None]:
    """One job for each choice, on one server for each payload size; a failed job's server is not used again."""
    rates: dict[Choice, float | None] = {}
    by_payload: dict[int, list[Choice]] = {}
    for choice in choices:
        by_payload.setdefault(choice.payload_mb, []).append(choice)
    for payload_mb, group in by_payload.items():
        widest = Choice(max(choice.concurrent for choice in group), payload_mb, MULTI)
        left = list(group)
        while left:
            done = _screen_with(bench, widest, left, records)
            rates |= done
            left = left[len(done) :]
    return rates


def _screen_with(
    bench: Bench, widest: Choice, choices: list[Choice], records: int
) -> dict[Choice, float | None]:
    """Rates of the choices up to the first that fails."""
    rates: dict[Choice, float | None] = {}
    try:
        with serving(bench.model_dir, {**bench.variables, **widest.variables()}, bench.limits) as server:
            measure(server, bench.source, max(records // 8, 1), choices[0], bench.seconds)
            for choice in choices:
                rates[choice] = None
                # What was answered by then tells enough.
                patience = _SINGLE_PATIENCE if choice.strategy == SINGLE else _PATIENCE
                rates[choice] = measure(server, bench.source, records, choice, patience * bench.seconds)
    except (JobFailedError, StartFailedError):
        rates.setdefault(choices[0], None)
    return rates


def _pairs(
    bench: Bench, own: Choice, best: list[Choice], records: int, rates: dict[Choice, float | None]
) -> Sweep:
    """Everyone's server stays up; jobs take turns, each round starting with another."""
    with ExitStack() as stack:

        def start(variables: Mapping[str, str]) -> ServerProcess:
            wanted = {**bench.variables, **variables}
            return stack.enter_context(serving(bench.model_dir, wanted, bench.limits))

        one = start({"SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": "1"})
        runners: list[tuple[ServerProcess, Answer | Choice]] = [(start({}), own), (one, one.answer())]
        runners += [(start(choice.variables()), choice) for choice in best]
        took: list[list[float]] = [[] for _ in runners]
        for server, answer in runners:
            measure(server, bench.source, max(records // 4, 1), answer)
        for turn in range(bench.rounds):
            for index in _rotated(len(runners), turn):
                server, answer = runners[index]
                took[index].append(measure(server, bench.source, records, answer))
    ratio: Callable[[int, int], Interval] = lambda above, below: ratio_interval(took[above], took[below])  # noqa: E731
    return Sweep(
        own,
        records,
        sorted(took[0])[len(took[0]) // 2],
        rates,
        {choice: ratio(0, index + 2) for index, choice in enumerate(best)},
        {choice: ratio(1, index + 2) for index, choice in enumerate(best)},
    )


def _rotated(count: int, start: int) -> list[int]:
    return [(start + index) % count for index in range(count)]
