"""The ladder, the burst and the reading of profiles, on functions instead of models."""

import json
import mmap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_serve import calibration_measures
from onnx_serve.calibration_measures import (
    MAX_ROWS,
    ArenaUse,
    Growth,
    best_block,
    burst,
    climb,
    fit_line,
    read_profile,
)
from onnx_serve.calibration_record import Rung
from onnx_serve.errors import InputRefused, OutOfMemory
from onnx_serve.tensors import Feed, Values

MIB = 1 << 20


class Laboratory:
    """A model whose runs take what ``cost`` says, by a clock that nothing else moves."""

    def __init__(self, cost: Callable[[int], float], fails_at: int = 1 << 40) -> None:
        self.now = 0.0
        self.ran: list[int] = []
        self._cost = cost
        self._fails_at = fails_at

    def clock(self) -> tuple[float, float]:
        return self.now, self.now

    def run(self, feed: Feed) -> Values:
        rows = len(feed["x"])
        if rows >= self._fails_at:
            raise OutOfMemory("no more")
        self.ran.append(rows)
        self.now += self._cost(rows)
        return {}

    def climb(self, seconds: float = 100, may: Callable[[int], bool] = lambda _: True) -> list[int]:
        ladder = climb(
            self.run,
            lambda rows: [{"x": np.zeros(rows)}],
            lambda rung: rung.rows / rung.cpu_s,
            may=may,
            seconds=seconds,
            clock=self.clock,
        )
        for rung in ladder:
            assert rung.wall_s == pytest.approx(self._cost(rung.rows))
        return [rung.rows for rung in ladder]


def powers(last: int) -> list[int]:
    return [1 << power for power in range(last.bit_length())]


@pytest.mark.parametrize(
    ("cost", "last"),
    [
        (lambda rows: 1e-4 + 1e-9 * rows, MAX_ROWS),
        (lambda rows: 1e-3 * rows, 8),
        (lambda rows: 1e-3 + 1e-6 * rows**2, 64),
        (lambda rows: 0.3 + 1e-9 * rows, 1),
        (lambda rows: 0.1 * rows, 4),
    ],
    ids=["always pays", "never pays", "pays up to a point", "slow", "slower with each"],
)
def test_the_ladder_ends_where_more_rows_stop_to_pay(cost: Callable[[int], float], last: int) -> None:
    rows = Laboratory(cost).climb()

    assert rows == powers(rows[-1])
    assert rows[-1] <= 4 * last
    assert rows[-1] >= last


def test_a_moment_of_bad_luck_does_not_end_the_ladder() -> None:
    """The first time that 4 rows are run, a neighbour has the processor."""
    unlucky = iter([1.0] * 50)
    laboratory = Laboratory(lambda rows: 1e-4 + 1e-6 * rows)
    run = laboratory.run

    def slowed(feed: Feed) -> Values:
        if len(feed["x"]) == 4 and laboratory.ran[-1] in {2, 4}:
            laboratory.now += 1e-3 * next(unlucky, 0)
        return run(feed)

    ladder = climb(
        slowed,
        lambda rows: [{"x": np.zeros(rows)}],
        lambda rung: rung.rows / rung.cpu_s,
        may=lambda _: True,
        seconds=100,
        clock=laboratory.clock,
    )
    assert ladder[-1].rows > 256
    assert ladder[2].wall_s == pytest.approx(1.04e-4)


def test_bounds_end_the_ladder() -> None:
    quick = 1e-4

    assert Laboratory(lambda _: quick, fails_at=16).climb() == powers(8)
    assert Laboratory(lambda _: quick).climb(may=lambda rows: rows <= 32) == powers(32)
    assert Laboratory(lambda _: quick).climb(seconds=0) == [1]
    with pytest.raises(OutOfMemory):
        Laboratory(lambda _: quick, fails_at=1).climb()
    assert (
        climb(
            Laboratory(lambda _: quick).run,
            lambda rows: [{"x": np.zeros(rows)}] if rows < 4 else [],
            lambda rung: rung.rows,
            may=lambda _: True,
            seconds=1,
        )[-1].rows
        == 2
    )


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=14))
def test_the_best_block_is_the_smallest_of_the_good_ones(times: Sequence[float]) -> None:
    ladder = [Rung(1 << index, time, time) for index, time in enumerate(times)]
    rates = {rung.rows: rung.rows / rung.cpu_s for rung in ladder}

    rows = best_block(ladder, lambda rung: rates[rung.rows])
    assert rates[rows] >= 0.95 * max(rates.values())
    assert all(rates[fewer] < 0.95 * max(rates.values()) for fewer in rates if fewer < rows)


@given(
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 30),
    st.integers(1, 100),
    st.integers(1, 100),
)
def test_a_line_is_recovered(fixed: int, slope: int, rows: int, more: int) -> None:
    points = [(n, fixed + slope * n) for n in (rows, rows + more)]

    assert fit_line(points) == (fixed, slope)


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=3))
def test_a_line_is_never_negative_nor_below_its_last_point(sizes: list[int]) -> None:
    points = [(1 << index, size) for index, size in enumerate(sizes)]

    fixed, slope = fit_line(points)
    assert min(fixed, slope) >= 0
    rows, size = points[-1]
    assert fixed + slope * rows >= size


def node(in_use: int, delta: int, peak: int) -> Any:
    """An event as onnxruntime 1.28 and later write it."""
    return {
        "cat": "Node",
        "name": "MatMul_kernel_time",
        "args": {
            "mem_bytes_in_use": str(in_use),
            "mem_in_use_delta": str(delta),
            "mem_in_use_peak": str(peak),
        },
    }


END: Any = {"cat": "Session", "name": "model_run", "args": {}}


def profile(folder: Path, events: list[Any], tail: str = "\n]\n") -> Path:
    path = folder / "profile.json"
    path.write_text("[\n" + ",\n".join(map(json.dumps, events)) + tail)
    return path


def test_profiles_tell_the_arena(tmp_path: Path) -> None:
    events = [
        node(1100, 100, 1300),
        END,
        node(1200, 100, 1300),
        END,
        node(1400, 300, 1500),
        node(1500, 300, 2000),
        END,
    ]

    assert read_profile(profile(tmp_path, events), 2) == ArenaUse(1000, 300, (200, 1000))
    assert read_profile(profile(tmp_path, events), 3) == ArenaUse(1000, 0, (300, 200, 1000))
    assert read_profile(profile(tmp_path, events, ',\n{"cut sho'), 1) == ArenaUse(1000, 300, (1000,))
    assert read_profile(profile(tmp_path, events), 4) is None
    assert read_profile(profile(tmp_path, [END, END]), 1) is None
    assert read_profile(tmp_path / "absent", 1) is None


def touched(mebibytes: int) -> mmap.mmap:
    """Pages of their own: a heap may have so much left over from other tests."""
    block = mmap.mmap(-1, mebibytes * MIB)
    for start in range(0, len(block), mmap.PAGESIZE):
        block[start] = 1
    return block


def test_growth_is_seen_at_its_peak() -> None:
    growth = Growth()
    block = touched(64)
    seen = growth.now()
    block.close()

    assert seen > 30 * MIB
    assert growth.peak() > 30 * MIB


def test_growth_without_the_means_of_linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A kernel that cannot reset the peak still tells the largest size that was looked at."""
    monkeypatch.setattr(calibration_measures, "_PEAK_RESET", tmp_path / "absent" / "file")
    growth = Growth()
    block = touched(64)
    growth.now()
    block.close()
    assert growth.peak() > 30 * MIB

    monkeypatch.setattr(calibration_measures, "_STATUS", tmp_path / "absent")
    assert Growth().peak() == 0


def test_a_burst_runs_on_all_slots_at_once() -> None:
    together = threading.Barrier(3, timeout=30)

    def run(_feed: Feed) -> Values:
        together.wait()
        return {}

    burst(run, [{"x": np.zeros(1)}], slots=3, seconds=0)
    assert not together.broken


def test_a_burst_runs_every_size_and_begins_with_the_largest() -> None:
    sizes: list[int] = []
    enough = threading.Event()

    def run(feed: Feed) -> Values:
        sizes.append(len(feed["x"]))
        if len(sizes) >= 60:
            enough.set()
            raise InputRefused("enough")
        return {}

    with pytest.raises(InputRefused):
        burst(run, [{"x": np.zeros(n)} for n in (8, 4, 2)], slots=2, seconds=30)
    assert enough.is_set()
    assert sizes[0] == 8
    assert set(sizes) == {8, 4, 2}
