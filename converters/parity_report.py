"""What is compared, what may differ, and what came of it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from onnx_serve.tensors import Tensors

__all__ = ["Case", "Difference", "OutputReport", "Probe", "Report", "Tolerances"]


@dataclass(frozen=True, slots=True)
class Probe:
    """Rows to compare on.

    Attributes:
        name: What they are for: ``sample``, ``ranges``, ``thresholds``; appears in reports.
        feed: Arrays by the model's input names in the original's types, which may be wider than the
            model's; rows along dimension 0.
    """

    name: str
    feed: Tensors


@dataclass(frozen=True, slots=True)
class Case:
    """A probe with the original's answers; plain arrays, so that it passes from process to process.

    Attributes:
        probe: The rows.
        expected: The original's answers by output name.
        rounded: Its answers to the rows as the model's input types round them; None if they do not.
    """

    probe: Probe
    expected: Tensors
    rounded: Tensors | None = None


@dataclass(frozen=True, slots=True)
class Tolerances:
    """What may differ.

    Attributes:
        rtol: Share of a number's own magnitude.
        atol: Share of the largest magnitude of the output, or of its column, as ``parity`` tells.
        ties: Share of rows whose label may differ because the original's two best scores are as good
            as equal.
        rows: Share of rows that may be outside these tolerances, crossing rows included; for models that
            are known to differ on purpose, 0 otherwise.
    """

    rtol: float = 1e-4
    atol: float = 1e-5
    ties: float = 0.01
    rows: float = 0.0


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that differs: the probe and the row in it, and both answers, shortened."""

    probe: str
    row: int
    output: str
    excess: float
    expected: str
    actual: str
    inputs: str


@dataclass(frozen=True, slots=True)
class OutputReport:
    """How one output compares, over all cases and cuts.

    Attributes:
        name: The output.
        kind: ``number`` or ``label`` (integers, booleans and strings).
        rows: Compared rows; a row counts once for each cut it is run in.
        label_disagreements: Rows with another label, ties included; 0 for numbers.
        ties: Those of them where the original's two best scores are as good as equal.
        max_abs, p99_abs: Absolute error of finite numbers.
        max_rel, p99_rel: Error relative to the expected value, where that is not 0.
        rows_outside: Rows outside the tolerances, neither ties nor crossing.
        rows_crossing: Rows outside because the model's input type rounds them across a threshold.
        scale: The largest finite magnitude that the original answers to the user's rows, or to those made up if there
            are none.
    """

    name: str
    kind: str
    rows: int
    label_disagreements: int
    ties: int
    max_abs: float
    p99_abs: float
    max_rel: float
    p99_rel: float
    rows_outside: int
    rows_crossing: int
    scale: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """The outcome of a comparison.

    Attributes:
        outputs: One entry an output of the model that the original has too.
        unchecked: Outputs of the model that the original has no answer for.
        problem: Why nothing could be compared (a failed run, a wrong shape), or empty.
        worst: The rows that differ most, worst first.
        tolerances: What was allowed.
        cases: Names of the probes and their rows.
    """

    outputs: tuple[OutputReport, ...]
    unchecked: tuple[str, ...]
    problem: str
    worst: tuple[Difference, ...]
    tolerances: Tolerances
    cases: dict[str, int] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the model may be written."""
        return not self.problem and bool(self.outputs) and all(map(self._allows, self.outputs))

    def _allows(self, output: OutputReport) -> bool:
        wrong = output.rows_outside + output.rows_crossing
        return (
            output.ties <= self.tolerances.ties * output.rows and wrong <= self.tolerances.rows * output.rows
        )

    def to_json(self) -> dict[str, Any]:
        """What ``parity.json`` holds of it: plain values, no inputs of rows."""
        return {
            "passed": self.passed,
            "outputs": [asdict(output) for output in self.outputs],
            "unchecked_outputs": list(self.unchecked),
            "probes": self.cases,
            "tolerances": asdict(self.tolerances),
        }

    def lines(self) -> Iterator[str]:
        """The report for a person: one line an output, then the rows that differ most."""
        for output in self.outputs:
            if output.kind == "label":
                figures = f"{output.label_disagreements} labels differ, {output.ties} of them ties"
            else:
                figures = (
                    f"max abs {output.max_abs:.3g} (p99 {output.p99_abs:.3g}), "
                    f"max rel {output.max_rel:.3g} (p99 {output.p99_rel:.3g})"
                )
            yield (
                f'output "{output.name}": {output.rows} rows, {figures}; '
                f"{output.rows_outside} outside the tolerances, {output.rows_crossing} crossing a threshold"
            )
        for name in self.unchecked:
            yield f'output "{name}": the original has no such answer, not compared'
        for row in self.worst:
            yield (
                f'  probe "{row.probe}", row {row.row}: {row.output} expected {row.expected}, '
                f"got {row.actual}; inputs {row.inputs}"
            )
