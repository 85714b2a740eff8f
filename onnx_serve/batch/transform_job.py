"""What the author of a batch job chooses, in the terms and within the bounds of ``CreateTransformJob``.

https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTransformJob.html, with TransformInput,
TransformOutput, ModelClientConfig and DataProcessing beside it.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from onnx_serve.batch.data_processing import DataProcessing, data_format
from onnx_serve.errors import ServeError, SettingsError

if TYPE_CHECKING:
    from onnx_serve.execution_parameters import ExecutionParameters

__all__ = ["MAX_RETRIES", "MAX_TIMEOUT_S", "SplitType", "TransformJob"]

SplitType = Literal["none", "line", "recordio"]

MAX_TIMEOUT_S = 3600
MAX_RETRIES = 3
_MAX_PRODUCT_MB = 100
# What the platform takes when neither the job nor the container says:
# https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-batch-code.html
_DEFAULT_CONCURRENT, _DEFAULT_STRATEGY, _DEFAULT_PAYLOAD_MB = 1, "MULTI_RECORD", 6


@dataclass(frozen=True)
class TransformJob:
    """One job.

    Attributes:
        content_type: Of all inputs; None for what each file's name says.
        accept: Asked of every answer; None for the container's choice.
        compression: ``auto`` takes files that end with ``.gz`` for compressed.
        platform: Whether requests are made as Batch Transform makes them. Otherwise every file is one request
            of any size.
        split_type: What ends a record.
        batch_strategy: ``MULTI_RECORD``, ``SINGLE_RECORD`` or None for the container's choice.
        max_payload_mb: MiB of a request; 0 for any size, sent in chunks; None for the container's choice.
        max_concurrent: Requests at once; 0 or None for the container's choice.
        assemble_with: ``line`` ends each answer with a newline.
        processing: Filters and join.
        record_errors: ``placeholder`` lets a bad record be answered by a placeholder, ``fail`` makes it fail its
            file; None for what the model's settings say.
        timeout_s: Seconds that one request over HTTP may take.
        max_retries: Times that a request over HTTP is repeated.
    """

    content_type: str | None = None
    accept: str | None = None
    compression: Literal["auto", "none", "gzip"] = "auto"
    platform: bool = False
    split_type: SplitType = "none"
    batch_strategy: str | None = None
    max_payload_mb: int | None = None
    max_concurrent: int | None = None
    assemble_with: Literal["none", "line"] = "none"
    processing: DataProcessing = field(default_factory=DataProcessing)
    record_errors: Literal["fail", "placeholder"] | None = None
    timeout_s: int = 600
    max_retries: int = MAX_RETRIES

    def check(self) -> None:
        """Refuses what ``CreateTransformJob`` would refuse, and what cannot be bounded in memory.

        Raises:
            SettingsError: Naming the option.
        """
        self._check_numbers()
        if self.batch_strategy == "SINGLE_RECORD" and self.split_type == "none":
            raise SettingsError("--strategy single: expected --split-type line or recordio with it")
        if self.processing.active:
            self._check_processing()

    def environment(self) -> dict[str, str]:
        """The variables that the platform would set for a container: of the job's own choices only.

        https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-batch-code.html
        """
        chosen = {
            "SAGEMAKER_MAX_PAYLOAD_IN_MB": self.max_payload_mb,
            "SAGEMAKER_BATCH_STRATEGY": self.batch_strategy,
            "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": self.max_concurrent or None,
        }
        set_ = {name: str(value) for name, value in chosen.items() if value is not None}
        return {"SAGEMAKER_BATCH": "true", **set_}

    def resolve(self, answered: "ExecutionParameters | None") -> tuple[int, str, int]:
        """Concurrency, strategy and payload in MiB: the job's choice, else the container's, else the default.

        Payload times concurrency is at most 100 MiB, as in ``check``; what the job has chosen stays.

        Args:
            answered: By the container to ``/execution-parameters``; None if it does not answer that.
        """
        concurrent, strategy, payload = _DEFAULT_CONCURRENT, _DEFAULT_STRATEGY, _DEFAULT_PAYLOAD_MB
        if answered is not None:
            concurrent = answered.max_concurrent_transforms
            strategy = answered.batch_strategy
            payload = answered.max_payload_mb
        concurrent = self.max_concurrent or min(max(concurrent, 1), _MAX_PRODUCT_MB)
        payload = min(payload, _MAX_PRODUCT_MB) if self.max_payload_mb is None else self.max_payload_mb
        if concurrent * payload > _MAX_PRODUCT_MB:
            if self.max_concurrent:
                payload = max(_MAX_PRODUCT_MB // concurrent, 1)
            else:
                concurrent = _MAX_PRODUCT_MB // payload
        return concurrent, self.batch_strategy or strategy, payload

    def _check_numbers(self) -> None:
        for option, value, least, most in (
            ("--max-payload-mb", self.max_payload_mb, 0, _MAX_PRODUCT_MB),
            ("--max-concurrent", self.max_concurrent, 0, None),
            ("--timeout-s", self.timeout_s, 1, MAX_TIMEOUT_S),
            ("--max-retries", self.max_retries, 0, MAX_RETRIES),
        ):
            if value is not None and (value < least or (most is not None and value > most)):
                expected = f"{least} to {most}" if most is not None else f"{least} or more"
                raise SettingsError(f"{option}: expected {expected}, got {value}")
        if (self.max_concurrent or 0) * (self.max_payload_mb or 0) > _MAX_PRODUCT_MB:
            raise SettingsError(
                f"--max-concurrent times --max-payload-mb: expected at most {_MAX_PRODUCT_MB}, "
                f"got {self.max_concurrent} x {self.max_payload_mb}"
            )

    def _check_processing(self) -> None:
        if self.max_payload_mb == 0:
            raise SettingsError("--max-payload-mb 0: expected 1 to 100 with a filter or a join")
        if self.split_type == "recordio":
            raise SettingsError("--split-type recordio: filters and joins take CSV and JSON only")
        if self.content_type is not None:
            try:
                data_format(self.content_type)
            except ServeError as ex:
                raise SettingsError(f"--content-type: {ex}") from ex
        if not self.processing.join:
            return
        if self.split_type != self.assemble_with:
            raise SettingsError(
                f"--join-source input: expected --assemble-with as --split-type, "
                f"got {self.assemble_with} and {self.split_type}"
            )
        if self.accept is None or (self.content_type is not None and self.accept != self.content_type):
            raise SettingsError("--join-source input: expected --accept as the content type of the input")
