"""What follows from settings, machine and measurements for the way a model is run."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from codec_laws import signature
from onnx_serve.calibration_record import Calibration, CalibrationKey, Rung, guess
from onnx_serve.machine import Machine
from onnx_serve.settings import Settings
from onnx_serve.tensors import RowAxis
from onnx_serve.tuning import choose_slots, choose_threads, make_plan, reserve_bytes

MIB = 1 << 20
MODEL = signature(("x", "float", ["N", 30]), outputs=[("y", "float", ["N", 3])])
MACHINE = Machine(8, 8, None, 1 << 33, 1 << 33, (), Path("/"))
KEY = CalibrationKey("0" * 64, "onnxruntime 1", ("CPUExecutionProvider",), 8, "x86_64", "")


def settings(**values: Any) -> Settings:
    return dataclasses.replace(Settings(), **values)


def measured(**values: Any) -> Calibration:
    """32 rows in 4 ms, one row in 1 ms: company makes a row eight times as cheap."""
    guessed = guess(KEY, MODEL, slots=8, memory_bytes=1 << 33)
    usual: dict[str, Any] = {
        "origin": "measured",
        "reached": "all",
        "block_rows": 32,
        "ladder": (Rung(1, 1e-3, 1e-3), Rung(32, 4e-3, 4e-3)),
        "burst_bytes": 100 * MIB,
    }
    return dataclasses.replace(guessed, **(usual | values))


def slow(seconds: float) -> Calibration:
    return measured(ladder=(Rung(1, seconds, seconds),))


@pytest.mark.parametrize(
    ("values", "calibration", "expected"),
    [
        ({}, None, (8, 1)),
        ({}, measured(), (8, 1)),
        ({"slots": 3}, measured(), (3, 2)),
        ({"intra_op_threads": 5}, None, (8, 5)),
        ({"slots": 4, "intra_op_threads": 1}, None, (4, 1)),
        # Memory for fewer runs leaves processors for each.
        ({}, measured(slots=2), (2, 4)),
        ({}, measured(slots=3), (3, 2)),
        ({"objective": "latency"}, None, (2, 8)),
        ({"objective": "latency"}, measured(slots=1), (1, 8)),
        ({}, slow(0.02), (2, 8)),
        ({"batch": True}, slow(0.02), (8, 1)),
        ({"objective": "throughput"}, slow(0.02), (8, 1)),
        ({}, slow(0.002), (8, 1)),
        ({}, dataclasses.replace(slow(0.02), origin="guessed"), (8, 1)),
    ],
)
def test_slots_and_threads(
    values: dict[str, Any], calibration: Calibration | None, expected: tuple[int, int]
) -> None:
    slots = choose_slots(settings(**values), MACHINE, calibration)

    assert (slots, choose_threads(settings(**values), MACHINE, slots, calibration)) == expected


def test_without_a_measurement_the_plan_is_careful() -> None:
    plan = make_plan(settings(), MODEL, 8, None, 1000)

    assert (plan.block_rows, plan.slots, plan.merges, plan.limit_bytes) == (2048, 8, False, 0)


def test_what_was_measured_becomes_the_plan() -> None:
    plan = make_plan(settings(), MODEL, 8, measured(row_elements=30, run_row_bytes=7), 1000)

    assert (plan.block_rows, plan.slots, plan.merges) == (32, 8, True)
    assert (plan.record_elements, plan.run_row_bytes, plan.limit_bytes) == (30, 7, 1000)


@pytest.mark.parametrize(
    ("merging", "gains", "expected"),
    [("auto", True, True), ("auto", False, False), ("always", False, True), ("never", True, False)],
)
def test_merging(merging: Any, gains: Any, expected: Any) -> None:
    calibration = measured() if gains else measured(ladder=(Rung(1, 1e-3, 1e-3), Rung(32, 32e-3, 32e-3)))

    assert make_plan(settings(merging=merging), MODEL, 8, calibration, 0).merges is expected


@pytest.mark.parametrize(("values", "expected"), [({}, 1), ({"slots": 8}, 8)])
def test_runs_of_no_time_take_turns(values: dict[str, Any], expected: int) -> None:
    calibration = measured(ladder=(Rung(1, 5e-6, 5e-6), Rung(32, 1e-4, 1e-4)))

    assert make_plan(settings(**values), MODEL, 8, calibration, 0).slots == expected


@pytest.mark.parametrize(
    ("rows", "outputs", "run_s", "answer_bytes", "expected"),
    [
        (0, [3], 1e-4, 12, 1),  # a free number of rows
        (1, [3], 1e-4, 12, 100),
        (1, [3], 1e-6, 12, 256),
        (1, [3], 30e-3, 12, 1),
        (1, [3], 1e-4, 100_000, 10),  # what they answer is held
        (4, [3], 1e-4, 100_000, 2),
        (1, [3], None, 0, 8),  # not measured
        (1, ["T"], None, 0, 1),
    ],
)
def test_runs_in_a_row(
    rows: int, outputs: Any, run_s: float | None, answer_bytes: int, expected: int
) -> None:
    """Only runs of a fixed number of rows need company: others have as many rows as pay."""
    model = signature(
        ("x", "float", [rows or "N", 30]),
        outputs=[("y", "float", [rows or "N", *outputs])],
        row_axis=RowAxis.FIXED if rows else RowAxis.FREE,
        fixed_rows=rows,
    )
    calibration = run_s and measured(
        ladder=(Rung(rows or 1, run_s, run_s),), block_rows=rows or 1, row_output_bytes=answer_bytes
    )
    plan = make_plan(settings(), model, 8, calibration or None, 0)
    assert plan.consecutive_runs == expected
    # Runs of no time are not spread over slots one by one, but many in a row are.
    assert plan.slots == (1 if run_s and run_s * expected < 0.2e-3 else 8)


def test_a_guess_keeps_its_rows_only() -> None:
    """A child that was killed for its memory says that fewer rows must do."""
    calibration = measured(origin="guessed", block_rows=2, row_elements=30, limited=True)
    plan = make_plan(settings(), MODEL, 8, calibration, 1000)

    assert (plan.block_rows, plan.merges, plan.record_elements) == (2, False, 0)
    other = dataclasses.replace(calibration, limited=False)
    assert make_plan(settings(), MODEL, 8, other, 1000).block_rows == 2048


def test_the_operators_rows_win_and_cost_their_memory() -> None:
    calibration = measured()
    plan = make_plan(settings(block_rows=64), MODEL, 8, calibration, 0)

    assert plan.block_rows == 64
    assert reserve_bytes(calibration, plan) == 2 * calibration.reserve_bytes
    assert reserve_bytes(calibration, dataclasses.replace(plan, block_rows=4)) == calibration.reserve_bytes
