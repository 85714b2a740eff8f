"""What follows from a calibration's figures, and the guess."""

from dataclasses import replace

import pytest

from calibrations import MIB, make, make_key
from codec_laws import signature
from onnx_serve.calibration_record import Calibration, Rung, guess
from onnx_serve.run_plan import default_block_rows
from onnx_serve.tensors import RowAxis, Signature


def test_activations_are_what_was_seen_or_what_the_arena_says_whichever_is_more() -> None:
    seen = make(burst_bytes=50 * MIB, run_fixed_bytes=0, run_row_bytes=MIB, block_rows=4, slots=2)
    told = replace(seen, run_row_bytes=10 * MIB)

    assert seen.activation_bytes == 50 * MIB
    assert told.activation_bytes == 2 * 4 * 10 * MIB


def test_outputs_are_held_twice_and_the_warm_up_has_paid_already() -> None:
    record = make(
        burst_bytes=0, run_fixed_bytes=3, run_row_bytes=10, row_output_bytes=5, block_rows=8, slots=2
    )

    assert record.run_bytes(8) == 3 + 15 * 8
    assert record.activation_bytes == 2 * (3 + 15 * 8)
    assert replace(record, warm_up_bytes=100).activation_bytes == 2 * (3 + 15 * 8) - 100
    assert replace(record, warm_up_bytes=MIB).activation_bytes == 0


@pytest.mark.parametrize(("data_dependent", "margin"), [(False, 1.15), (True, 1.5)])
def test_the_reserve_has_a_margin(*, data_dependent: bool, margin: float) -> None:
    record = make(burst_bytes=100 * MIB, data_dependent=data_dependent)

    assert record.reserve_bytes == pytest.approx(margin * 100 * MIB + 8 * MIB, abs=1)
    assert record.needed_bytes == record.session_bytes + record.reserve_bytes
    assert replace(record, load_peak_bytes=1000 * MIB).needed_bytes == 1000 * MIB


def test_speed_comes_from_the_ladder() -> None:
    record = make(
        ladder=(Rung(1, 1e-3, 0.9e-3), Rung(2, 1.1e-3, 1e-3), Rung(4, 1.5e-3, 1.4e-3)), block_rows=3, slots=2
    )

    assert record.one_row_s == 1e-3
    assert record.block_s == 1.1e-3
    assert record.rows_per_s == pytest.approx(2 * 2 / 1.1e-3)
    assert record.merge_gain == pytest.approx((4 / 1.4e-3) / (1 / 0.9e-3))
    assert record.merges


@pytest.mark.parametrize(
    ("ladder", "merges"),
    [
        ((Rung(1, 20e-6, 20e-6), Rung(8, 20e-6, 20e-6)), True),
        ((Rung(1, 9e-3, 9e-3), Rung(2, 14e-3, 14e-3)), False),
        ((Rung(1, 9e-3, 9e-3), Rung(2, 9e-3, 9e-3)), True),
        ((Rung(16, 9e-3, 9e-3),), False),
        ((), False),
    ],
    ids=["quick runs", "no gain", "gain", "fixed rows", "unknown"],
)
def test_company_pays_where_rows_get_cheaper(ladder: tuple[Rung, ...], *, merges: bool) -> None:
    assert make(ladder=ladder).merges is merges


def test_on_a_device_the_clock_counts_and_not_the_processor() -> None:
    key = make_key(providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    ladder = (Rung(1, 1e-3, 0.1e-3), Rung(2, 1e-3, 0.2e-3))

    assert make(key=key, ladder=ladder).merge_gain == pytest.approx(2)
    assert make(ladder=ladder).merge_gain == pytest.approx(1)


def test_threads_fill_the_processors() -> None:
    key = make_key(cpus=8)

    assert [make(key=key, slots=slots).intra_op_threads for slots in (8, 4, 3, 1)] == [1, 2, 2, 8]
    assert make(key=key, slots=16).intra_op_threads == 1


@pytest.mark.parametrize(
    ("record", "memory", "suits"),
    [
        (make(), 1 << 40, True),
        (make(), 1, False),
        (make(fits=False), 1 << 40, False),
        (make(limited=True, memory_bytes=500 * MIB), 500 * MIB, True),
        (make(limited=True, memory_bytes=500 * MIB), 1000 * MIB, False),
    ],
    ids=["roomy", "too small", "does not fit", "as limited as before", "less limited than before"],
)
def test_a_record_serves_under_budgets_that_lead_to_it(
    record: Calibration, memory: int, *, suits: bool
) -> None:
    assert record.suits(memory) is suits


WIDE = signature(("x", "float", ["N", 1 << 20]), outputs=[("y", "float", ["N", 1 << 20])])
FREE = signature(("x", "float", ["N", 4]), outputs=[("y", "float", ["N", "M"])])
FIXED = signature(("x", "float", [16, 4]), row_axis=RowAxis.FIXED, fixed_rows=16)
NONE = signature(("x", "float", [3, "a"]), row_axis=RowAxis.NONE)


@pytest.mark.parametrize(
    ("model", "rows"),
    [(FREE, default_block_rows(FREE)), (FIXED, 16), (NONE, 1), (WIDE, 1), (None, 1)],
    ids=["free", "fixed", "none", "wide", "unknown"],
)
def test_a_guess_has_the_usual_blocks(model: Signature | None, rows: int) -> None:
    assert guess(make_key(), model, slots=2, memory_bytes=1).block_rows == rows


def test_a_guess_is_the_most_of_three() -> None:
    key = make_key()
    few = guess(key, FREE, slots=2, memory_bytes=1)
    wide = guess(key, WIDE, slots=2, memory_bytes=1)
    heavy = guess(key, FREE, slots=2, memory_bytes=1, session_bytes=900 * MIB, reached="loaded", reason="so")

    assert few.activation_bytes == 64 * MIB
    assert wide.activation_bytes == 8 * 2 * 4 * (1 << 20)
    assert heavy.activation_bytes == 900 * MIB
    assert (heavy.origin, heavy.reason, heavy.reached) == ("guessed", "so", "loaded")
    assert (few.one_row_s, few.block_s, few.rows_per_s, few.merge_gain, few.merges) == (0, 0, 0, 1, False)
    assert (few.row_input_bytes, few.row_elements) == (16, 4)
