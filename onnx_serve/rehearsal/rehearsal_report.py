"""The report of a rehearsal: what would have become of the job, why, how fast it was, and what to change."""

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from onnx_serve.batch.command_process import printable
from onnx_serve.batch.transform_job import TransformJob
from onnx_serve.rehearsal.rehearsal_findings import Finding
from onnx_serve.rehearsal.rehearsal_output import Totals

__all__ = ["Report", "Settled"]

_MIB = 1 << 20
_MAX_PRODUCT_MB = 100
_SHOWN_FILES = 20
_MILLION = 1_000_000
# More at once must pay for itself by this much; less is noise.
_GAIN = 1.1
_SHORT_S = 0.1
_MANY = 10
_SPLIT = (
    "SplitType: without one a whole file is one request; files of lines are cut by Line, so that they may be "
    "longer than MaxPayloadInMB and a bad record is named sooner"
)
_SEVERAL = (
    "BatchStrategy: MultiRecord; two records in one request were answered by two lines, and each request costs "
    "its own way"
)
_VERDICTS = {
    True: "PASSED: the job would have succeeded",
    False: "FAILED: the job would have failed, or its output would have been wrong",
}


@dataclass(frozen=True, slots=True)
class Settled:
    """How requests were made, and who chose it: ``job``, ``container`` or ``default``."""

    max_concurrent: int
    strategy: str
    max_payload_mb: int
    sources: tuple[str, str, str]

    def lines(self) -> list[str]:
        """One line a parameter."""
        values = (self.max_concurrent, self.strategy, self.max_payload_mb)
        names = ("MaxConcurrentTransforms", "BatchStrategy", "MaxPayloadInMB")
        return [f"{n}: {v} ({s})" for n, v, s in zip(names, values, self.sources, strict=True)]


@dataclass(slots=True)
class Report:
    """Everything a rehearsal has to tell.

    Attributes:
        container: What was rehearsed.
        ready_s: Seconds to the first good ping, or None.
        settled: How requests were made; None if none were.
        totals: What the job took.
        findings: The gravest first.
        pings: How many there were while the job ran.
        slowest_ping_s: Of these.
        rates: Requests a second by requests at once, as tried after the job.
        takes_several: Whether two records in one request were answered by two lines; None if not tried.
        compared: Records whose answers alone and in company were compared.
        log: The last lines of the container's log.
    """

    container: str
    job: TransformJob
    ready_s: float | None = None
    settled: Settled | None = None
    totals: Totals = field(default_factory=Totals)
    findings: list[Finding] = field(default_factory=list)
    pings: int = 0
    slowest_ping_s: float = 0.0
    rates: dict[int, float] = field(default_factory=dict)
    takes_several: bool | None = None
    compared: int = 0
    log: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether the job would have succeeded, with a right output."""
        grave = any(finding.severity != "warns" for finding in self.findings)
        return not grave and self.ready_s is not None and all(file.done for file in self.totals.files)

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON document."""
        return {
            "passed": self.passed,
            "container": self.container,
            "ready_seconds": self.ready_s,
            "parameters": None if self.settled is None else asdict(self.settled),
            "stopped": self.totals.stopped or None,
            "files": [asdict(file) for file in self.totals.files],
            "throughput": self._throughput(),
            "findings": [finding.to_json() for finding in self.findings],
            "advice": self.advice(),
            "pings_while_busy": {"count": self.pings, "slowest_seconds": self.slowest_ping_s},
            "trials": {
                "records_compared": self.compared,
                "takes_several": self.takes_several,
                "requests_per_second": {str(number): rate for number, rate in self.rates.items()},
            },
            "container_log": self.log,
        }

    def to_text(self) -> str:
        """The report for a person."""
        lines = [_VERDICTS[self.passed], "", f"container: {self.container}"]
        if self.ready_s is not None:
            lines.append(f"ready after {self.ready_s:.1f} s")
        if self.settled is not None:
            lines += self.settled.lines()
        lines += ["", *self._file_lines(), *self._finding_lines()]
        advice = self.advice()
        if advice:
            lines += ["", "advice", *(f"  - {line}" for line in advice)]
        if self.log and not self.passed:
            lines += ["", "the end of the container's log", *(f"  {line}" for line in self.log)]
        return "".join(f"{printable(line)}\n" for line in lines)

    def advice(self) -> list[str]:
        """What to change, most of all in the three parameters."""
        if self.settled is None or not self.totals.requests:
            return []
        return [*self._split_advice(), *self._payload_advice(self.settled), *self._concurrency_advice(self.settled),
                *self._time_advice()]  # fmt: skip

    def _throughput(self) -> dict[str, float | int]:
        totals = self.totals
        latencies = sorted(totals.latencies_s) or [0.0]
        seconds = max(totals.seconds, 1e-9)
        return {
            "seconds": totals.seconds,
            "requests": totals.requests,
            "records": totals.records,
            "bytes_in": totals.bytes_in,
            "bytes_out": sum(file.bytes_out for file in totals.files),
            "records_per_second": totals.records / seconds,
            "megabytes_per_second": totals.bytes_in / _MIB / seconds,
            "latency_median_seconds": statistics.median(latencies),
            "latency_max_seconds": latencies[-1],
        }

    def _file_lines(self) -> list[str]:
        totals = self.totals
        done = sum(file.done for file in totals.files)
        lines = [f"files: {done} of {len(totals.files)} would have an output"]
        problems = [file for file in totals.files if not file.done]
        lines += [f"  {file.name}: {file.problem}" for file in problems[:_SHOWN_FILES]]
        if len(problems) > _SHOWN_FILES:
            lines.append(f"  and {len(problems) - _SHOWN_FILES} more")
        if totals.requests:
            figures = self._throughput()
            lines.append(
                f"requests: {totals.requests:,} with {totals.records:,} records and {totals.bytes_in:,} bytes in "
                f"{totals.seconds:.2f} s: {figures['records_per_second']:,.0f} records/s, "
                f"{figures['megabytes_per_second']:.1f} MB/s"
            )
            lines.append(
                f"time of a request: median {figures['latency_median_seconds'] * 1000:.0f} ms, "
                f"at most {figures['latency_max_seconds'] * 1000:.0f} ms"
            )
        if self.pings:
            lines.append(f"pings while busy: {self.pings}, the slowest {self.slowest_ping_s * 1000:.0f} ms")
        return lines

    def _finding_lines(self) -> list[str]:
        lines = []
        for finding in self.findings:
            rule = finding.rule
            times = f", {finding.count} times, first" if finding.count > 1 else ""
            lines += ["", f"{finding.severity}: {finding.name}{times} at {finding.where}"]
            if finding.detail:
                lines.append(f"  what: {finding.detail}")
            lines += [f"  why:  {rule.why}", f"  do:   {rule.fix}", f"  rule: {rule.basis}, {rule.url}"]
        return lines or ["", "no findings"]

    def _split_advice(self) -> list[str]:
        if self.job.split_type == "none":
            return [_SPLIT]
        single = self.settled is not None and self.settled.strategy == "SINGLE_RECORD"
        return [_SEVERAL] if single and self.takes_several else []

    def _payload_advice(self, settled: Settled) -> list[str]:
        slowest = max(self.totals.latencies_s)
        limit = self.job.timeout_s
        if slowest > limit / 2:
            smaller = max(int(settled.max_payload_mb * limit / (3 * slowest)), 1)
            why = f"the slowest request took {slowest:.1f} s of the {limit} s that InvocationsTimeoutInSeconds allows"
            return [f"MaxPayloadInMB: {smaller}; {why}"]
        most = _MAX_PRODUCT_MB // settled.max_concurrent
        median = statistics.median(self.totals.latencies_s)
        splits = self.job.split_type != "none" and settled.strategy == "MULTI_RECORD"
        if (
            splits
            and self.totals.requests >= _MANY
            and median < _SHORT_S
            and 0 < settled.max_payload_mb < most
        ):
            why = f"a request takes {median * 1000:.0f} ms only, and larger ones are fewer"
            return [f"MaxPayloadInMB: up to {most}; {why}"]
        return []

    def _concurrency_advice(self, settled: Settled) -> list[str]:
        if len(self.rates) < 2:  # noqa: PLR2004  nothing to compare
            return []
        best = max(self.rates.values())
        enough = next(number for number, rate in self.rates.items() if rate * _GAIN >= best)
        tried = ", ".join(f"{number}: {rate:.1f}" for number, rate in self.rates.items())
        if enough != settled.max_concurrent:
            return [f"MaxConcurrentTransforms: {enough}; requests a second by how many at once: {tried}"]
        return [f"MaxConcurrentTransforms: {enough} is right; requests a second by how many at once: {tried}"]

    def _time_advice(self) -> list[str]:
        if self.job.split_type == "none":
            return []
        seconds = _MILLION * self.totals.seconds / max(self.totals.records, 1)
        return [f"time: at this rate a million records take {_duration(seconds)} on a machine like this one"]


def _duration(seconds: float) -> str:
    if seconds < 90:  # noqa: PLR2004  a matter of taste
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
