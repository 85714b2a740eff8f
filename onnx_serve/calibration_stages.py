"""The stages of a calibration, in the process that is there for nothing else.

Load; find a feed that runs; read from onnxruntime's profile what a row needs; climb a ladder of row counts; choose
blocks and slots that fit the budget; load anew, and measure what a burst over all slots really takes. After each
stage the record so far is reported: what is not measured yet is a guess in it.
"""

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from onnx_serve import allocator, calibration_graph
from onnx_serve.calibration_device import device_entries, device_of
from onnx_serve.calibration_feeds import Feeder, element_count, feeders, read_sample, sample_of, value_bytes
from onnx_serve.calibration_measures import (
    ArenaUse,
    Growth,
    best_block,
    burst,
    climb,
    clocks,
    fit_line,
    read_profile,
    time_run,
)
from onnx_serve.calibration_process import CalibrationRequest
from onnx_serve.calibration_record import Calibration, Rung, guess
from onnx_serve.errors import InferenceError, InputRefused, ModelError, OutOfMemory, ServeError
from onnx_serve.memory import release_and_settle
from onnx_serve.model import Model, SessionOptions, load_model
from onnx_serve.run_errors import is_out_of_memory
from onnx_serve.tensors import Feed, RowAxis, Signature, Values

__all__ = ["measure"]

_MIB = 1 << 20
# Shares of the request's seconds of work; the rest is for loading twice and for what cannot be interrupted.
_PROFILE_SHARE = 0.2
_LADDER_SHARE = 0.25
_BURST_SHARE = 0.2
_SHORT_BURST_S = 0.5
# A burst is worth some more than was asked for: without it all is a guess.
_OVERTIME_SHARE = 0.5
_PROFILE_ROWS = (4, 8)
_MAX_BURSTS = 4
# What a block costs beside its run: cut, handed to a thread that wants the interpreter's lock while another one decodes,
# encoded, and joined. docs/decisions/0008-calibration.md has the figures.
_HANDOVER_S = 300e-6
# Sizes of runs in a burst, as shares of a block: what shares the slots is rarely of equal size.
_UNEVEN = (1, 1 / 2, 1, 1 / 3, 1, 3 / 4, 1)


Report = Callable[[Calibration], None]
Remark = Callable[[str], None]


def measure(request: CalibrationRequest, report: Report, remark: Remark) -> None:
    """Does what a request asks for, and reports a record after each stage; the last one says how it ended.

    Args:
        request: What to measure, and within which bounds.
        report: Takes each record.
        remark: Takes a line for the log.
    """
    measurement = _Measurement(request, report, remark)
    try:
        measurement.run()
    except (ServeError, MemoryError, RuntimeError) as ex:
        # RuntimeError: no new thread, within the limit of memory.
        measurement.fail(ex)


class _Measurement:
    """One calibration, as far as it has got."""

    def __init__(self, request: CalibrationRequest, report: Report, remark: Remark) -> None:
        self._request = request
        self._report = report
        self._remark = remark
        self._started = time.monotonic()
        self._operators = calibration_graph.operators_of(request.model)
        self._record = guess(
            request.key,
            None,
            slots=request.slots,
            memory_bytes=request.memory_bytes,
            reason="it is not loaded yet",
        )
        # Rows of each run while the profile is written; 0 for one that failed.
        self._tried: list[int] = []
        # What one run of so many rows made resident, at most; and of the GPU's memory, all runs up to that.
        self._grown: dict[int, int] = {}
        self._device = device_of(request)
        self._device_grown: dict[int, int] = {}

    def run(self) -> None:
        """All stages; ends early where the model allows no more."""
        growth = Growth()
        model = self._load(profile=True)
        self._know_session(model, growth)
        growth = Growth()
        feeder = self._find_feeder(model)
        self._know_runs(model, feeder)
        self._know_ladder(model, feeder, growth)
        if self._left() <= -_OVERTIME_SHARE * self._request.work_s:
            self._say(reason="there was no time left to measure a burst")
            return
        signature = model.signature
        # The burst begins with what the ladder has touched given back.
        del model
        self._know_burst(signature, feeder)

    def fail(self, ex: Exception) -> None:
        """Reports what is known, and why there is no more."""
        reason = str(ex) or "there is not enough memory"
        if isinstance(ex, OutOfMemory | MemoryError) or _is_memory(reason):
            need = self._record.session_bytes // _MIB
            what = f"the session needs {need} MiB" if need else "while the model was loaded"
            reason = f"{reason} ({what}, of {self._request.memory_bytes // _MIB} MiB)"
            # What failed is the least that can be asked of it.
            self._record = replace(self._record, fits=self._fits_somehow(), limited=True)
        self._say(reason=reason[:400])

    def _left(self) -> float:
        return self._request.work_s - (time.monotonic() - self._started)

    def _say(self, **known: object) -> None:
        elapsed = time.monotonic() - self._started
        self._record = replace(self._record, **known, seconds=elapsed)  # type: ignore[arg-type]  # by field name
        self._report(self._record)

    def _load(self, *, profile: bool) -> Model:
        request = self._request
        own = request.intra_op_threads
        # Written to the folder that the parent made for this process.
        file = Path(tempfile.mkdtemp(dir=".")) / "profile"
        options = SessionOptions(
            request.providers,
            request.provider_options,
            # One thread: rows a second of work are compared.
            1 if profile else own or self._record.intra_op_threads,
            request.config,
            request.outputs,
            request.custom_op_libraries,
            row_wish=request.row_wish,
            sample=sample_of(request.sample),
            profile=file.resolve() if profile and not calibration_graph.has_loops(self._operators) else None,
        )
        return load_model(request.model, request.name, options)

    def _know_session(self, model: Model, growth: Growth) -> None:
        signature = model.signature
        peak = growth.peak()
        # Else runs would use what loading has left in the heap, and seem to need nothing.
        session_bytes = release_and_settle(growth.now)
        record = guess(
            self._request.key,
            signature,
            slots=self._request.slots,
            memory_bytes=self._request.memory_bytes,
            reached="loaded",
            session_bytes=session_bytes,
        )
        self._record = replace(
            record,
            load_peak_bytes=peak,
            device_memory_bytes=self._device.budget_bytes,
            device_session_bytes=self._device.used(),
            data_dependent=calibration_graph.data_dependent(signature, self._operators),
            arena_only=calibration_graph.arena_only(signature, self._operators),
        )
        self._say(reason="it was ended before a run")

    def _find_feeder(self, model: Model) -> Feeder:
        """What runs, tried with one row."""
        cause: ServeError | None = None
        for feeder in feeders(model.signature, self._read_sample(model.signature)):
            [feed, *_] = feeder.several(1)
            rows = feeder.rows_of(feed)
            try:
                outputs, rung = self._try(model, feed, rows)
            except (InferenceError, InputRefused, OutOfMemory) as ex:
                cause = cause or ex
                if feeder.kind == "sample":
                    self._remark(f"the sample does not run, inputs are made up: {ex}")
                continue
            self._record = replace(
                self._record,
                feed=feeder.kind,
                row_input_bytes=value_bytes(feed) // rows,
                row_output_bytes=-(-value_bytes(outputs) // rows),
                row_elements=element_count(feed) // rows,
                ladder=(rung,),
            )
            return feeder
        if isinstance(cause, OutOfMemory):
            raise cause
        raise ModelError(f"no made-up input runs: {cause}")

    def _try(self, model: Model, feed: Feed, rows: int) -> tuple[Values, Rung]:
        """A run that the profile sees, and that is found in it again."""
        self._tried.append(0)
        wall, cpu = clocks()
        outputs = model.run(feed)
        ended, cpu_ended = clocks()
        self._tried[-1] = rows
        return outputs, Rung(rows, ended - wall, cpu_ended - cpu)

    def _read_sample(self, signature: Signature) -> Feed | None:
        if self._request.sample is None:
            return None
        try:
            return read_sample(self._request.sample, signature)
        except OSError as ex:
            self._remark(f"the sample cannot be read, inputs are made up: {ex.strerror}")
        except ServeError as ex:
            self._remark(f"the sample is not used, inputs are made up: {ex}")
        return None

    def _know_runs(self, model: Model, feeder: Feeder) -> None:
        """What is in use in the arena by runs: a line through those of the two largest row counts."""
        [one] = self._record.ladder
        affordable = sum(_PROFILE_ROWS) * one.wall_s < _PROFILE_SHARE * self._request.work_s
        if model.signature.row_axis is RowAxis.FREE and affordable:
            with contextlib.suppress(OutOfMemory):
                for rows in _PROFILE_ROWS:
                    if (feed := feeder(rows)) is not None:
                        self._try(model, feed, rows)
        if self._request.key.on_device and (feed := feeder(max(self._tried))) is not None:
            # Once more for the processors' share: the first run of a shape looks for the best algorithms.
            self._tried.append(0)
            with contextlib.suppress(OutOfMemory):
                model.run(feed)
        use = self._end_profile(model)
        reason = "it was ended before all runs were timed"
        if use is None:
            self._say(reached="ran", arena_only=False, reason=reason)
            return
        points = [(rows, most) for rows, most in zip(self._tried, use.runs, strict=True) if rows]
        fixed, row = fit_line(points)
        self._say(
            reached="ran",
            reason=reason,
            arena_bytes=use.loaded,
            warm_up_bytes=use.warm_up,
            run_fixed_bytes=fixed,
            run_row_bytes=row,
        )

    def _end_profile(self, model: Model) -> ArenaUse | None:
        if model.end_profiling is None:
            return None
        path = model.end_profiling()
        runs = len(self._tried)
        use = read_profile(path, runs)
        if self._request.key.on_device:
            self._record = replace(self._record, **device_entries(path, self._tried))
        path.unlink(missing_ok=True)
        return use

    def _know_ladder(self, model: Model, feeder: Feeder, growth: Growth) -> None:
        """Times runs of more and more rows."""
        if model.signature.row_axis is not RowAxis.FREE:
            [feed] = feeder.several(1)
            ladder = [time_run(model.run, [feed], feeder.rows_of(feed))]
        else:

            def may(rows: int) -> bool:
                self._note_growth(rows // 2, growth)
                # What runs of half the rows took, twice.
                slots, half = self._request.slots, rows // 2
                return self._fits(slots, rows, 2 * self._grown[half], 2 * self._device_grown[half])

            ladder = climb(
                model.run,
                feeder.several,
                self._worth,
                may=may,
                seconds=_LADDER_SHARE * self._request.work_s,
            )
        self._note_growth(ladder[-1].rows, growth)
        self._record = replace(self._record, ladder=tuple(ladder))
        slots, rows = next(self._plans(), (1, ladder[0].rows))
        self._say(
            reached="ladder", slots=slots, block_rows=rows, reason="it was ended before a burst was measured"
        )

    def _worth(self, rung: Rung) -> float:
        """Rows per second of work, the engine's included."""
        return rung.rows / (rung.rows / self._record.rate(rung) + _HANDOVER_S)

    def _note_growth(self, rows: int, growth: Growth) -> None:
        """Keeps what runs of so many rows took, without their inputs."""
        self._grown[rows] = max(growth.peak() - rows * self._record.row_input_bytes, 0)
        self._device_grown[rows] = max(self._device.used() - self._record.device_session_bytes, 0)

    def _fits(self, slots: int, rows: int, grown: int, device_grown: int) -> bool:
        record = self._record
        if not record.fits_device(slots, rows, device_grown):
            return False
        in_use = slots * record.run_bytes(rows) - record.warm_up_bytes
        needed = record.session_bytes + record.with_margin(max(in_use, slots * grown))
        return needed <= record.memory_bytes

    def _fits_somehow(self) -> bool:
        """Whether the smallest run that was seen to end would fit on one slot."""
        return any(self._fits_as_seen(1, rung) for rung in self._record.ladder[:1])

    def _fits_as_seen(self, slots: int, rung: Rung) -> bool:
        rows = rung.rows
        return self._fits(slots, rows, self._grown.get(rows, 0), self._device_grown.get(rows, 0))

    def _plans(self) -> Iterator[tuple[int, int]]:
        """Slots and rows that are expected to fit the budget, the best first: smaller blocks before fewer slots."""
        record, wanted = self._record, self._request.slots
        # With these every processor has a thread of some run.
        counts = dict.fromkeys(max(wanted // share, 1) for share in range(1, wanted + 1))
        for slots in counts:
            fitting = [rung for rung in record.ladder if self._fits_as_seen(slots, rung)]
            while fitting:
                rows = best_block(fitting, self._worth)
                yield slots, rows
                fitting = [rung for rung in fitting if rung.rows < rows]

    def _know_burst(self, signature: Signature, feeder: Feeder) -> None:
        """What a burst over all slots makes resident, with blocks and slots that fit once it is known."""
        wish = (self._request.slots, best_block(self._record.ladder, self._worth))
        plans = [*itertools.islice(self._plans(), _MAX_BURSTS - 1), (1, self._record.ladder[0].rows)]
        for slots, rows in dict.fromkeys(plans):
            record = replace(self._record, slots=slots, block_rows=rows, limited=(slots, rows) != wish)
            grown, refused = self._burst(signature, feeder, record)
            self._record = replace(record, burst_bytes=grown, device_burst_bytes=self._device.growth)
            if refused is None and self._record.within_budget:
                self._say(reached="all", origin="measured", reason="")
                return
        record = self._record
        needed = record.session_bytes + record.reserve_bytes
        reason = f"loaded and running one row it needs about {needed // _MIB} MiB, of {record.memory_bytes // _MIB} MiB"
        if record.device_memory_bytes:
            reason += f", and {record.device_needed_bytes // _MIB} MiB of the GPU's {record.device_memory_bytes // _MIB} MiB"
        self._say(reached="all", origin="measured", fits=False, reason=reason)

    def _burst(
        self, signature: Signature, feeder: Feeder, record: Calibration
    ) -> tuple[int, OutOfMemory | None]:
        """Growth of resident memory at the peak, and whether the limit of memory stopped it."""
        self._record = record
        allocator.release()
        model = self._load(profile=False)
        sizes = [record.block_rows]
        if signature.row_axis is RowAxis.FREE:
            sizes = [max(int(record.block_rows * share), 1) for share in _UNEVEN]
        block = [feed for size in sizes if (feed := feeder(size)) is not None]
        allocator.release()
        growth = Growth()
        try:
            with self._device.watched():
                burst(model.run, block, record.slots, self._burst_s(record))
        except OutOfMemory as ex:
            return growth.peak(), ex
        return growth.peak(), None

    def _burst_s(self, record: Calibration) -> float:
        """Long enough for every thread to have run all sizes, if that is not too long."""
        once = len(_UNEVEN) * record.block_s * max(record.slots / record.key.cpus, 1)
        return min(max(once, _SHORT_BURST_S), _BURST_SHARE * self._request.work_s, max(self._left(), 0))


def _is_memory(text: str) -> bool:
    return is_out_of_memory(text) or "new thread" in text
