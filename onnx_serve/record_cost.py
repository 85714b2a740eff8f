"""How long requests of few records will take, judged by their bodies and by the measured time of a run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from onnx_serve.calibration_graph import sizes_by_value
from onnx_serve.calibration_record import Calibration
from onnx_serve.tensors import Signature

__all__ = ["RecordCost", "record_cost"]

# Longer answers may not be taken by a socket at once.
_ANSWER_BYTES = 64 << 10
# A number of four bytes as text.
_TEXT_GROWTH = 4


@dataclass(frozen=True, slots=True)
class RecordCost:
    """What runs of few records take.

    Attributes:
        run_s: Seconds of a run of the fewest records.
        run_records: How many these are.
        elements: Values of one record.
        input_bytes: Of these values in tensors; strings by their UTF-8 bytes.
        answer_bytes: Of the outputs of one record, as tensors.
        has_strings: Whether a record's length says how long it takes.
    """

    run_s: float
    run_records: int
    elements: int
    input_bytes: int
    answer_bytes: int
    has_strings: bool

    def of_text(self, body: bytes) -> float:
        """Seconds that a body in CSV or JSON takes: a comma or a new line stands between two values."""
        records = (body.count(b",") + body.count(b"\n") + 1) / self.elements
        if self.has_strings:
            records = max(records, len(body) / self.input_bytes)
        return self.of_records(records)

    def of_tensors(self, body: bytes) -> float:
        """Seconds that a body takes whose values are as long as in tensors."""
        return self.of_records(len(body) / self.input_bytes)

    def of_records(self, records: float) -> float:
        """Seconds of so many records, one run after the other; infinite where the answer may be long."""
        if records * self.answer_bytes * _TEXT_GROWTH > _ANSWER_BYTES:
            return math.inf
        return math.ceil(records / self.run_records) * self.run_s


def record_cost(
    signature: Signature, calibration: Calibration | None, operators: Mapping[str, int] | None
) -> RecordCost | None:
    """What runs of a model take; None where that is not known, or depends on more than the number of records.

    Args:
        signature: The model's.
        calibration: What was measured of it, or None.
        operators: How often the model calls ``domain::Operator``; None if that is not known.
    """
    if calibration is None or calibration.origin == "guessed" or not calibration.ladder:
        return None
    if sizes_by_value(signature, operators):
        return None
    if any(signature.record_width(spec) is None for spec in signature.inputs):
        return None
    fewest = calibration.ladder[0]
    return RecordCost(
        run_s=fewest.wall_s,
        run_records=fewest.rows,
        elements=max(calibration.row_elements, 1),
        input_bytes=max(calibration.row_input_bytes, 1),
        answer_bytes=calibration.row_output_bytes,
        has_strings=any(not spec.dtype.bits for spec in signature.inputs),
    )
