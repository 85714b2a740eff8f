"""What ``GET /execution-parameters`` answers, why, and the limits that follow from it.

The platform asks once, after the first successful ping, and runs a transform job with the answer wherever
the job's author did not choose (https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-batch-code.html).
Its API bounds the numbers: ``MaxPayloadInMB`` at most 100, and its product with ``MaxConcurrentTransforms``
too (https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTransformJob.html).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from onnx_serve.machine import Machine
from onnx_serve.memory import FORMATS, HostMemory, MemoryEstimate
from onnx_serve.settings import Settings

__all__ = ["ExecutionParameters", "Load", "Term", "body_limit_bytes", "compute", "max_inflight"]

_MIB = 1 << 20
_MAX_PRODUCT_MB = 100
_MAX_CONCURRENT = 5
# What the platform assumes when nobody says otherwise; less only when memory or time forces it.
_USUAL_PAYLOAD_MB = 6
# A payload is a little larger than its records: the platform counts, it does not promise.
_SLACK_BYTES = 64 << 10
# Real-time callers are limited by the platform (6 to 25 MB), asynchronous ones to 1 GB.
_ENDPOINT_BODY_BYTES = 1 << 30
# The platform gives up on a request after InvocationsTimeoutInSeconds, 600 by default
# (https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_ModelClientConfig.html). Half of it is the bound; a
# tenth keeps a retry cheap.
_BOUND_S = 300.0
_GOAL_S = 60.0

_PLATFORM = "the platform's limit"
_MEMORY = "memory"
_TIME = "time"


class Term(NamedTuple):
    """One number that went into the answer.

    Attributes:
        name: What it is.
        value: The number, or a word.
        unit: Of the number.
        source: Where it comes from.
    """

    name: str
    value: float | str
    unit: str
    source: str

    @property
    def shown(self) -> str:
        """The number with its unit, for people; bytes as MiB."""
        if self.unit == "bytes" and not isinstance(self.value, str):
            return f"{self.value / _MIB:.1f} MiB"
        return f"{self.value} {self.unit}".strip()


@dataclass(frozen=True, slots=True)
class Load:
    """What a payload asks of the server.

    Attributes:
        has_rows: Whether several records can be one request.
        slots: Runs at once.
        memory: What the process holds and its runs need.
        host: What requests hold beside that.
        available_bytes: Memory left once the model is loaded, less what its runs need and a margin.
        bytes_per_s: Bytes of records in text that all slots together run in a second; 0 if that is not known.
        terms: What these come from.
    """

    has_rows: bool
    slots: int
    memory: MemoryEstimate
    host: HostMemory
    available_bytes: int
    bytes_per_s: float = 0
    terms: Sequence[Term] = ()


@dataclass(frozen=True, slots=True)
class ExecutionParameters:
    """One answer, in the platform's terms.

    Attributes:
        max_concurrent_transforms: Requests that the agent keeps in flight on this container.
        batch_strategy: ``MULTI_RECORD`` or ``SINGLE_RECORD``.
        max_payload_mb: MiB of one request at most; 0 for any size, sent in chunks.
        predicted_peak_bytes: Of the whole process, under these numbers, in the format that takes most.
        terms: Everything that went into them.
        decided_by: For each key of the answer, what its value follows from.
        warnings: What may happen with what the job's author chose.
    """

    max_concurrent_transforms: int
    batch_strategy: str
    max_payload_mb: int
    predicted_peak_bytes: int = 0
    terms: Sequence[Term] = ()
    decided_by: dict[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    def to_json(self, *, api_spelling: bool = False, explain: bool = False) -> dict[str, Any]:
        """The document with exactly the platform's keys.

        Args:
            api_spelling: ``MultiRecord`` instead of ``MULTI_RECORD``: the platform's documentation has the
                latter, the local mode of the SageMaker Python SDK v2 fails unless it gets the former.
            explain: Whether one more key, ``explain``, says where the numbers come from.
        """
        strategy = self.batch_strategy
        document: dict[str, Any] = {
            "MaxConcurrentTransforms": self.max_concurrent_transforms,
            "BatchStrategy": strategy.title().replace("_", "") if api_spelling else strategy,
            "MaxPayloadInMB": self.max_payload_mb,
        }
        if explain:
            document["explain"] = {
                "predicted_peak_bytes": self.predicted_peak_bytes,
                "terms": [term._asdict() for term in self.terms],
                "decided_by": self.decided_by,
            }
        return document

    def describe(self) -> list[str]:
        """Lines for people: the answer with its reasons, then every term."""
        answer = [f"{key}: {value} ({self.decided_by.get(key, '')})" for key, value in self.to_json().items()]
        peak = f"predicted peak of the process: {self.predicted_peak_bytes / _MIB:.0f} MiB"
        return [*answer, peak, *(f"{term.name}: {term.shown} ({term.source})" for term in self.terms)]


@dataclass(slots=True)
class _Choice:
    """Concurrency and payload while they are being decided."""

    load: Load
    concurrent: int
    payload: int
    chosen: set[str]
    decided_by: dict[str, str]

    @property
    def payload_bytes(self) -> int:
        """Bytes of a payload; where the job sends any size, as many as the platform would at most."""
        return (self.payload or _MAX_PRODUCT_MB) * _MIB

    def fits(self) -> bool:
        """Whether bodies, decoding and answers fit in memory, in any format."""
        return self.load.host.worst_bytes(self.concurrent, self.payload_bytes) <= self.load.available_bytes

    def peak_bytes(self, media_type: str) -> int:
        """The whole process at its peak, if all payloads are of one format."""
        host_bytes = self.load.host.bytes(self.concurrent, self.payload_bytes, media_type)
        return self.load.memory.peak_bytes(host_bytes)

    def seconds(self) -> float:
        """How long a payload takes while all of them share the slots; 0 if that is not known."""
        if not self.load.bytes_per_s or not self.load.has_rows:
            return 0.0
        return self.concurrent * self.payload_bytes / self.load.bytes_per_s

    def lower(self, key: str, least: int, reason: str) -> bool:
        """Takes one off a number, unless the job chose it or it is at its least."""
        name = "concurrent" if key == "MaxConcurrentTransforms" else "payload"
        value: int = getattr(self, name)
        if key in self.chosen or value <= least:
            return False
        setattr(self, name, value - 1)
        self.decided_by[key] = reason
        return True


def compute(settings: Settings, load: Load) -> ExecutionParameters:
    """The numbers that use all slots and fit in memory and time; the job's own variables win over all of them.

    One payload already fills every slot, because its rows are spread over them, so a large payload matters
    more than many at once; one more than the slots keeps a request decoding while others run. Concurrency is
    therefore given up first.

    Args:
        settings: For the job's variables.
        load: What the model and this machine are like.
    """
    choice = _first_choice(settings, load)
    while not choice.fits() and (
        choice.lower("MaxConcurrentTransforms", 1, _MEMORY) or choice.lower("MaxPayloadInMB", 1, _MEMORY)
    ):
        pass
    while choice.seconds() > _GOAL_S and choice.lower("MaxPayloadInMB", _USUAL_PAYLOAD_MB, _TIME):
        pass
    while choice.seconds() > _BOUND_S and (
        choice.lower("MaxConcurrentTransforms", 1, _TIME) or choice.lower("MaxPayloadInMB", 1, _TIME)
    ):
        pass
    strategy, choice.decided_by["BatchStrategy"] = _strategy(settings, load)
    return ExecutionParameters(
        choice.concurrent,
        strategy,
        choice.payload,
        max(map(choice.peak_bytes, FORMATS)),
        _terms(load, choice),
        {
            key: choice.decided_by[key]
            for key in ("MaxConcurrentTransforms", "BatchStrategy", "MaxPayloadInMB")
        },
        _warnings(choice),
    )


def _first_choice(settings: Settings, load: Load) -> _Choice:
    concurrent, payload = settings.max_concurrent_transforms, settings.max_payload_mb
    decided_by = {"MaxConcurrentTransforms": "slots + 1", "MaxPayloadInMB": _PLATFORM}
    chosen = set()
    if payload is not None:
        chosen.add("MaxPayloadInMB")
        decided_by["MaxPayloadInMB"] = "the job (SAGEMAKER_MAX_PAYLOAD_IN_MB)"
    if concurrent:
        chosen.add("MaxConcurrentTransforms")
        decided_by["MaxConcurrentTransforms"] = "the job (SAGEMAKER_MAX_CONCURRENT_TRANSFORMS)"
    else:
        concurrent = max(min(load.slots + 1, _MAX_CONCURRENT, _MAX_PRODUCT_MB // (payload or 1)), 1)
    if payload is None:
        payload = max(_MAX_PRODUCT_MB // concurrent, 1)
    return _Choice(load, concurrent, payload, chosen, decided_by)


def _strategy(settings: Settings, load: Load) -> tuple[str, str]:
    if settings.batch_strategy is not None:
        return settings.batch_strategy, "the job (SAGEMAKER_BATCH_STRATEGY)"
    if load.has_rows:
        return "MULTI_RECORD", "the model has rows"
    return "SINGLE_RECORD", "the model has no rows: a request is one run"


def _warnings(choice: _Choice) -> list[str]:
    """What may happen because the job's author chose otherwise."""
    warnings = []
    chosen = " and ".join(sorted(choice.chosen))
    if chosen and not choice.fits():
        warnings.append(
            f"{chosen} of the job ask for up to {choice.concurrent} x {choice.payload} MB at once, more than the "
            f"{max(choice.load.available_bytes, 0) // _MIB} MiB that are left for requests: some may get 413 or 507"
        )
    if chosen and choice.seconds() > _BOUND_S:
        warnings.append(
            f"{chosen} of the job make a payload take about {choice.seconds():.0f} s; the platform gives up after "
            "InvocationsTimeoutInSeconds, 600 by default"
        )
    return warnings


def _terms(load: Load, choice: _Choice) -> list[Term]:
    bodies = load.host.bodies_bytes(choice.concurrent, choice.payload_bytes)
    worst = load.host.worst_bytes(choice.concurrent, choice.payload_bytes)
    peaks = [
        Term(
            f"peak_bytes {name}",
            choice.peak_bytes(name),
            "bytes",
            f"the whole process, if payloads are {name}",
        )
        for name in FORMATS
    ]
    return [
        *peaks,
        Term("base_bytes", load.memory.base_bytes, "bytes", "resident memory before the model was loaded"),
        Term("session_bytes", load.memory.session_bytes, "bytes", "growth by loading and the first run"),
        Term("runs_bytes", load.memory.runs_bytes, "bytes", "reserved for runs in all slots"),
        Term(
            "past_bytes", load.memory.past_bytes, "bytes", "the process at its peak so far, loading included"
        ),
        Term("bodies_bytes", bodies, "bytes", "request bodies in memory"),
        Term("worst_bytes", worst, "bytes", "what requests hold at the most, in any format"),
        Term("available_bytes", load.available_bytes, "bytes", "left for requests, after runs and a margin"),
        Term("slots", load.slots, "runs", "runs at once"),
        Term("payload_seconds", round(choice.seconds(), 3), "s", "a payload in text, at the measured speed"),
        *load.terms,
    ]


def max_inflight(settings: Settings, machine: Machine, slots: int) -> int:
    """Requests worked on at once, never fewer than the job sends, plus one.

    One decodes while the slots run; where slots are few, as on a GPU, the processors decode.
    """
    if isinstance(settings.max_inflight, int):
        return settings.max_inflight
    return max(max(slots, machine.cpus) + 1, (settings.max_concurrent_transforms or 0) + 1)


def body_limit_bytes(settings: Settings, answered: ExecutionParameters | None = None) -> int:
    """The longest body that is read; 0 for any length.

    A job's ``SAGEMAKER_MAX_PAYLOAD_IN_MB`` decides, else ``max_body_bytes``, else what fits the platform: in a batch
    job what was answered, elsewhere 1 GiB.

    Args:
        settings: The server's.
        answered: The answer to the platform, or None while there is none.
    """
    if settings.max_payload_mb is not None:
        return settings.max_payload_mb * _MIB + _SLACK_BYTES if settings.max_payload_mb else 0
    if isinstance(settings.max_body_bytes, int):
        return settings.max_body_bytes
    if not settings.batch:
        return _ENDPOINT_BODY_BYTES
    # The platform's default, whatever was answered: a job may have been set up by an agent that did not ask.
    payload_mb = _MAX_PRODUCT_MB if answered is None else max(answered.max_payload_mb, _USUAL_PAYLOAD_MB)
    return payload_mb * _MIB + _SLACK_BYTES
