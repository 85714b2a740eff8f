"""What ``GET /execution-parameters`` answers, and the limits that follow from it.

The platform asks once, after the first successful ping, and runs a transform job with the answer wherever
the job's author did not choose (https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-batch-code.html).
Its API bounds the numbers: ``MaxPayloadInMB`` at most 100, and its product with ``MaxConcurrentTransforms``
too (https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTransformJob.html).
"""

from dataclasses import dataclass

from onnx_serve.settings import Settings
from onnx_serve.tensors import Signature

__all__ = ["ExecutionParameters", "body_limit_bytes", "compute", "max_inflight"]

_MIB = 1 << 20
_MAX_PRODUCT_MB = 100
_MAX_CONCURRENT = 5
# A payload is a little larger than its records: the platform counts, it does not promise.
_SLACK_BYTES = 64 << 10
# Real-time callers are limited by the platform (6 to 25 MB), asynchronous ones to 1 GB.
_ENDPOINT_BODY_BYTES = 1 << 30
# Bytes of host memory at the peak for a byte of payload being decoded, run and encoded, beside the body
# itself: text formats decode in blocks, so this is dominated by the answer.
_HOST_MULTIPLE = 2
_MIN_RESERVE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class ExecutionParameters:
    """One answer, in the platform's terms.

    Attributes:
        max_concurrent_transforms: Requests that the agent keeps in flight on this container.
        batch_strategy: ``MULTI_RECORD`` or ``SINGLE_RECORD``.
        max_payload_mb: MiB of one request at most; 0 for any size, sent in chunks.
    """

    max_concurrent_transforms: int
    batch_strategy: str
    max_payload_mb: int

    def to_json(self, *, api_spelling: bool = False) -> dict[str, int | str]:
        """The document with exactly the platform's keys.

        Args:
            api_spelling: ``MultiRecord`` instead of ``MULTI_RECORD``: the platform's documentation has the
                latter, the local mode of the SageMaker Python SDK v2 fails unless it gets the former.
        """
        strategy = self.batch_strategy
        return {
            "MaxConcurrentTransforms": self.max_concurrent_transforms,
            "BatchStrategy": strategy.title().replace("_", "") if api_spelling else strategy,
            "MaxPayloadInMB": self.max_payload_mb,
        }


def compute(
    settings: Settings, signature: Signature, slots: int, available_bytes: int
) -> ExecutionParameters:
    """The numbers that use all slots and fit in memory; the job's own variables win over all of them.

    One payload already fills every slot, because its rows are spread over them, so a large payload matters
    more than many at once; one more than the slots keeps a request decoding while others run.

    Args:
        settings: For the job's variables.
        signature: The model's: only one with rows can take several records at once.
        slots: Concurrent runs of the engine.
        available_bytes: Memory left once the model is loaded.
    """
    budget = available_bytes - max(_MIN_RESERVE_BYTES, available_bytes // 20)
    wanted = settings.max_payload_mb or 1
    concurrent = settings.max_concurrent_transforms or max(
        min(slots + 1, _MAX_CONCURRENT, _MAX_PRODUCT_MB // wanted), 1
    )
    payload = settings.max_payload_mb
    if payload is None:
        payload = max(_MAX_PRODUCT_MB // concurrent, 1)
    # Concurrency is given up before payload: fewer, larger requests lose less throughput.
    while (
        concurrent > 1 and settings.max_concurrent_transforms is None and _needs(concurrent, payload) > budget
    ):
        concurrent -= 1
    while payload > 1 and settings.max_payload_mb is None and _needs(concurrent, payload) > budget:
        payload -= 1
    strategy = settings.batch_strategy or ("MULTI_RECORD" if signature.has_rows else "SINGLE_RECORD")
    return ExecutionParameters(concurrent, strategy, payload)


def max_inflight(settings: Settings, slots: int) -> int:
    """Requests worked on at once: one decodes while the slots run; never fewer than the job sends, plus one."""
    if isinstance(settings.max_inflight, int):
        return settings.max_inflight
    return max(slots + 1, (settings.max_concurrent_transforms or 0) + 1)


def body_limit_bytes(settings: Settings) -> int:
    """The longest body that is read; 0 for any length.

    A job's ``SAGEMAKER_MAX_PAYLOAD_IN_MB`` decides, else ``max_body_bytes``, else what fits the platform:
    in a batch job whatever ``compute`` may answer, elsewhere 1 GiB.
    """
    if settings.max_payload_mb is not None:
        return settings.max_payload_mb * _MIB + _SLACK_BYTES if settings.max_payload_mb else 0
    if isinstance(settings.max_body_bytes, int):
        return settings.max_body_bytes
    return _MAX_PRODUCT_MB * _MIB + _SLACK_BYTES if settings.batch else _ENDPOINT_BODY_BYTES


def _needs(concurrent: int, payload_mb: int) -> int:
    """Bytes of memory for that many bodies of that size, in whatever state of being answered."""
    return concurrent * payload_mb * _MIB * (1 + _HOST_MULTIPLE)
