"""The measurements of a calibration: of this process's memory, and of a function that runs feeds."""

import json
import math
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from onnx_serve.calibration_record import Rung
from onnx_serve.cuda import CUDA
from onnx_serve.errors import InferenceError, InputRefused, OutOfMemory, ServeError
from onnx_serve.tensors import Feed, Values

__all__ = [
    "MAX_ROWS",
    "ArenaUse",
    "Growth",
    "best_block",
    "burst",
    "climb",
    "clocks",
    "fit_line",
    "limit_memory",
    "profile_events",
    "read_profile",
    "time_run",
]

Run = Callable[[Feed], Values]
Clock = Callable[[], tuple[float, float]]

# https://man7.org/linux/man-pages/man5/proc_pid_status.5.html and proc_pid_clear_refs.5.html
_STATUS = Path("/proc/self/status")
_PEAK_RESET = Path("/proc/self/clear_refs")

MAX_ROWS = 8192
# Runs that take longer are not made longer still: a block is also what a client waits for.
_MAX_RUN_S = 0.25
_REPEAT_S = 0.025
_PASSES = 3
_MAX_REPEATS = 50
_GOOD_SHARE = 0.95
_BAD_SHARE = 0.9
_GAIN = 1.02
_PATIENCE = 3


class Growth:
    """How much this process's resident memory has grown since, now and at its peak."""

    def __init__(self) -> None:
        self._resettable = _reset_peak()
        self._base = self._most = _status("VmRSS")

    def now(self) -> int:
        """Bytes more than at the start."""
        resident = _status("VmRSS")
        self._most = max(self._most, resident)
        return max(resident - self._base, 0)

    def peak(self) -> int:
        """Bytes more than at the start, at the peak; where that cannot be reset, at the largest ``now``."""
        now = self.now()
        peak = _status("VmHWM") if self._resettable else self._most
        return max(peak - self._base, now)


def _status(name: str) -> int:
    """Bytes of an entry; 0 where there is none."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


def _reset_peak() -> bool:
    """Makes VmHWM start anew; whether the kernel can."""
    try:
        _PEAK_RESET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def limit_memory(growth_bytes: int) -> None:
    """Lets this process grow by so much and no more: an allocation beyond fails, and fails cleanly.

    The limit is on private writable memory (RLIMIT_DATA,
    https://man7.org/linux/man-pages/man2/getrlimit.2.html), which is never less than what is resident of it.
    RLIMIT_AS would also count libraries, mapped weights and the addresses that CUDA reserves. onnxruntime's arena
    asks for twice what it needs and makes do with less when refused, so that a limit of what is resident in the
    end, plus a tenth, refuses no run: measured, docs/decisions/0008.

    Args:
        growth_bytes: Beyond what the process has now.
    """
    held = _status("VmData")
    if held:
        resource.setrlimit(resource.RLIMIT_DATA, (held + growth_bytes, held + growth_bytes))


class ArenaUse(NamedTuple):
    """Bytes in use in onnxruntime's arena, as its profile tells.

    Attributes:
        loaded: Before the first run: weights.
        warm_up: Beyond that, at the peak of the runs before those asked about.
        runs: Beyond ``loaded``, at the peak of each run asked about.
    """

    loaded: int
    warm_up: int
    runs: tuple[int, ...]


def read_profile(path: Path, runs: int, *, on_device: bool = False) -> ArenaUse | None:
    """What a profile says of the arena, or None if it says nothing: onnxruntime does from 1.28 on.

    The peak in it only rises. In a run that does not reach an earlier run's, the most that was in use after a node
    stands in for it.

    Args:
        path: The file: JSON, an event a line.
        runs: How many of the last runs to tell apart.
        on_device: Whether to look at the GPU's arena, which the nodes of CUDA use, and not at the processors'.
    """
    loaded: int | None = None
    peak = in_use = 0
    ends: list[tuple[int, int]] = []
    for event in profile_events(path):
        if event.get("name") == "model_run":
            ends.append((peak, in_use))
            in_use = 0
            continue
        arguments = event.get("args", {})
        if "mem_in_use_peak" not in arguments or (arguments.get("provider") == CUDA) != on_device:
            continue
        now = int(arguments["mem_bytes_in_use"])
        if loaded is None:
            loaded = now - int(arguments["mem_in_use_delta"])
        peak = max(peak, int(arguments["mem_in_use_peak"]))
        in_use = max(in_use, now)
    if loaded is None or len(ends) < runs:
        return None
    before = ends[-runs - 1][0] if len(ends) > runs else loaded
    uses = []
    reached = before
    for end, most in ends[-runs:]:
        uses.append(max((end if end > reached else most) - loaded, 0))
        reached = end
    return ArenaUse(max(loaded, 0), max(before - loaded, 0), tuple(uses))


def profile_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a profile, which may be cut short."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    event = json.loads(line.strip().rstrip(",") or "null")
                except ValueError:
                    continue
                if isinstance(event, dict):
                    yield event
    except OSError:
        return


def fit_line(points: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Fixed and per-row bytes of runs, from (rows, bytes) of one or two; never negative, never below the points."""
    rows, most = points[-1]
    if len(points) == 1:
        return 0, -(-most // rows)
    fewer, least = points[-2]
    slope = max(-(-(most - least) // (rows - fewer)), 0)
    return max(most - slope * rows, 0), slope


def clocks() -> tuple[float, float]:
    """Seconds by the clock, and of processor time of all threads of this process."""
    return time.perf_counter(), time.process_time()


def time_run(run: Run, feeds: Sequence[Feed], rows: int, clock: Clock = clocks) -> Rung:
    """The best of several runs; of one or two if they take long.

    Args:
        run: The model.
        feeds: Of so many rows each, run in turn: rows seen a moment ago are quicker than any real ones.
        rows: Of a feed.
        clock: See ``clocks``.
    """
    started, _ = clock()
    best = Rung(rows, math.inf, math.inf)
    for repeat in range(_MAX_REPEATS):
        wall, cpu = clock()
        run(feeds[repeat % len(feeds)])
        ended, cpu_ended = clock()
        best = _better(best, Rung(rows, ended - wall, cpu_ended - cpu))
        spent = ended - started
        if (repeat and spent > _REPEAT_S) or spent > _MAX_RUN_S:
            break
    return best


def _better(one: Rung, other: Rung) -> Rung:
    return Rung(one.rows, min(one.wall_s, other.wall_s), min(one.cpu_s, other.cpu_s))


def climb(
    run: Run,
    feeds_of: Callable[[int], Sequence[Feed]],
    rate: Callable[[Rung], float],
    *,
    may: Callable[[int], bool],
    seconds: float,
    clock: Clock = clocks,
) -> list[Rung]:
    """Runs 1, 2, 4, ... rows until that stops paying, or one of the bounds is met; at least 1 row.

    While there is time, the whole ladder is timed again, for the best of both: what neighbours on the machine slow
    down for a moment is then slow at another rung.

    Args:
        run: The model.
        feeds_of: Feeds of so many rows each; none if they would be too large.
        rate: What is to be made the most of.
        may: Whether so many rows are expected to fit in memory.
        seconds: After which no further run is started.
        clock: See ``clocks``.

    Raises:
        ServeError: Not even one row could be run.
    """
    started, _ = clock()
    ladder: list[Rung] = []
    rows = 1
    while rows <= MAX_ROWS and (not ladder or may(rows)) and (feeds := feeds_of(rows)):
        try:
            ladder.append(time_run(run, feeds, rows, clock))
        except (OutOfMemory, InputRefused, InferenceError):
            if not ladder:
                raise
            break
        late = clock()[0] - started > seconds
        if late or ladder[-1].wall_s > _MAX_RUN_S or _is_past([*map(rate, ladder)]):
            break
        rows *= 2
    for _ in range(_PASSES - 1):
        for index, rung in enumerate(ladder):
            if clock()[0] - started + rung.wall_s > seconds:
                return ladder
            ladder[index] = _better(rung, time_run(run, feeds_of(rung.rows), rung.rows, clock))
    return ladder


def _is_past(rates: Sequence[float]) -> bool:
    """Whether more rows have stopped to pay: the last few gained nothing, or the last two lost a tenth."""
    if len(rates) <= _PATIENCE:
        return False
    best = max(rates[:-_PATIENCE])
    return max(rates[-_PATIENCE:]) < _GAIN * best or max(rates[-2:]) < _BAD_SHARE * max(rates)


def best_block(ladder: Sequence[Rung], rate: Callable[[Rung], float]) -> int:
    """The fewest rows with 95 % of the best rate."""
    good = _GOOD_SHARE * max(map(rate, ladder))
    return next(rung.rows for rung in ladder if rate(rung) >= good)


def burst(run: Run, feeds: Sequence[Feed], slots: int, seconds: float) -> None:
    """Runs on all slots at once, each thread the feeds in another order, so that peaks meet as in a server.

    Args:
        run: The model.
        feeds: The first is the largest; all threads begin with it.
        slots: Threads.
        seconds: After which no run is started; each thread makes one.

    Raises:
        ServeError: A run failed; the first error of any thread.
    """
    deadline = time.monotonic() + seconds
    ready = threading.Barrier(slots)
    errors: list[ServeError] = []

    def work(slot: int) -> None:
        ready.wait()
        turn = 0
        while not errors and (not turn or time.monotonic() < deadline):
            try:
                run(feeds[turn * (slot + 1) % len(feeds)])
            except ServeError as ex:
                errors.append(ex)
            turn += 1

    threads = [threading.Thread(target=work, args=(slot,), daemon=True) for slot in range(slots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
