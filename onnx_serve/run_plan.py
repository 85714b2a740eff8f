"""How a model is run: rows of a run, runs at once, and what a run may need."""

from dataclasses import dataclass

from onnx_serve.errors import OutOfMemory
from onnx_serve.tensors import Signature

__all__ = ["RunPlan", "default_block_rows"]

# Without a measurement of the model: this much input a block keeps small models busy for longer than a
# hand-over between threads takes, and large ones to the few rows that fit a core's cache.
_BLOCK_BYTES = 256 << 10
_MAX_BLOCK_ROWS = 4096
# A tenth of the runs that a thread makes in a row is too little to be spread over several.
_WORTH_SHARING = 10
_MIB = 1 << 20


def default_block_rows(signature: Signature) -> int:
    """Rows of a block for a model that has not been measured: a power of two, at most 4096."""
    record_bytes = sum(
        (signature.record_width(spec) or 1) * spec.dtype.numpy.itemsize for spec in signature.inputs
    )
    rows = min(max(_BLOCK_BYTES // max(record_bytes, 1), 1), _MAX_BLOCK_ROWS)
    return 1 << (rows.bit_length() - 1)


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What the engine keeps to. Immutable: a better one takes its place whole.

    Attributes:
        block_rows: Rows of one run at most, for records like those that were measured.
        slots: Runs at once.
        merges: Whether small blocks of different requests share a run while all slots are busy.
        record_elements: Input elements of a record that was measured; 0 if none was.
        run_fixed_bytes: Bytes that a run needs whatever its rows.
        run_row_bytes: Bytes more for each row of such records.
        limit_bytes: What all runs together may need; 0 if that is not known.
        consecutive_runs: Runs of one request that a thread makes in a row at most, where a run takes a fixed number of
            rows: handing over and writing what one row gives can cost more than the run.
    """

    block_rows: int
    slots: int
    merges: bool = False
    record_elements: int = 0
    run_fixed_bytes: int = 0
    run_row_bytes: int = 0
    limit_bytes: int = 0
    consecutive_runs: int = 1

    def runs_in_a_row(self, runs: int) -> int:
        """How many of a request's runs one thread makes: as many on each slot, but not too few to be worth it."""
        least = -(-self.consecutive_runs // _WORTH_SHARING)
        return min(max(-(-runs // self.slots), least), self.consecutive_runs)

    def rows_for(self, elements: int) -> int:
        """Rows of one run for records of so many input elements: fewer where they are larger than measured.

        Raises:
            OutOfMemory: One such record alone is expected to need more than there is.
        """
        if not self.record_elements or elements <= self.record_elements:
            return self.block_rows
        growth = elements / self.record_elements
        needed = self.run_fixed_bytes + self.run_row_bytes * growth
        if self.limit_bytes and needed > self.limit_bytes:
            raise OutOfMemory(
                f"a record of {elements} input elements is expected to need {needed / _MIB:.0f} MiB to run, of "
                f"which there are {self.limit_bytes / _MIB:.0f} MiB; send smaller records"
            )
        return max(int(self.block_rows / growth), 1)
