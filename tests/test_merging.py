"""Small blocks of different requests that share a run: who waits, who runs, and what everybody gets."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec_laws import signature
from onnx_serve import batching
from onnx_serve.batching import Engine
from onnx_serve.blocks import first_rows, join, merge, pad, split
from onnx_serve.errors import Abandoned, InferenceError, InputRefused, OutOfMemory
from onnx_serve.run_plan import RunPlan
from onnx_serve.tensors import Feed, MapTable, RowAxis, Signature, TensorSpec, Values

MODEL = signature(("x", "float", ["N", "W"]), outputs=[("y", "float", ["N", "W"])])
WAIT_S = 30


def rows(first: int, count: int, width: int = 2) -> Feed:
    return {"x": np.arange(first, first + count * width, dtype=np.float32).reshape(count, width)}


def double(feed: Feed) -> Values:
    return {"y": feed["x"] * 2}


class Recorder:
    """A model that doubles, remembers the rows of its runs, and waits at a gate."""

    def __init__(self, fail: Callable[[Feed], None] = lambda _: None) -> None:
        self.sizes: list[int] = []
        self.gate = threading.Event()
        self.started = threading.Semaphore(0)
        self._fail = fail

    def __call__(self, feed: Feed) -> Values:
        self.sizes.append(len(feed["x"]))
        self.started.release()
        assert self.gate.wait(WAIT_S)
        self._fail(feed)
        return double(feed)


def engine_of(
    run: Callable[[Feed], Values], model: Signature = MODEL, *, slots: int = 1, block_rows: int = 8
) -> Engine:
    engine = Engine(run, model, slots=slots, block_rows=block_rows)
    engine.plan = replace(engine.plan, merges=True)
    return engine


def answer(engine: Engine, feed: Feed, gone: Callable[[], bool] | None = None) -> Values:
    return join(list(engine.map([feed], gone)))


@contextmanager
def queued(
    engine: Engine, run: Recorder, feeds: list[Feed], gone: Callable[[], bool] | None = None
) -> Iterator[list[Future[Values]]]:
    """One block that runs, and others that wait behind it in order; the gate opens at the end of the block."""
    with ThreadPoolExecutor(len(feeds) + 1) as threads:
        first = threads.submit(answer, engine, rows(0, 1))
        assert run.started.acquire(timeout=WAIT_S)
        futures = []
        for position, feed in enumerate(feeds, 1):
            futures.append(threads.submit(answer, engine, feed, gone))
            wait_for(lambda position=position: engine._slots.waiting == position)  # type: ignore[misc]
        yield futures
        run.gate.set()
        assert np.array_equal(first.result(WAIT_S)["y"], rows(0, 1)["x"] * 2)  # type: ignore[arg-type]
    engine.close()


def wait_for(condition: Callable[[], bool]) -> None:
    tick = threading.Event()
    for _ in range(WAIT_S * 1000):
        if condition():
            return
        tick.wait(0.001)
    raise AssertionError("it never came to that")


@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_merge_and_split_are_inverse(counts: list[int]) -> None:
    blocks = [rows(10 * index, count) for index, count in enumerate(counts)]
    merged = merge(blocks)

    assert len(merged["x"]) == sum(counts)
    for block, part in zip(blocks, split(double(merged), counts), strict=True):
        np.testing.assert_array_equal(part["y"], block["x"] * 2)


def test_split_takes_tables_and_lists_apart() -> None:
    outputs: Values = {"p": MapTable((0, 1), np.arange(6.0).reshape(3, 2)), "s": ["a", "b", "c"]}
    first, second = split(outputs, [1, 2])

    assert isinstance(first["p"], MapTable)
    assert first["p"].values.tolist() == [[0, 1]]
    assert (first["s"], second["s"]) == (["a"], ["b", "c"])


def test_pad_and_first_rows_are_inverse() -> None:
    padded = pad(rows(0, 2), 5)

    assert padded["x"].tolist() == [[0, 1], [2, 3], [2, 3], [2, 3], [2, 3]]
    np.testing.assert_array_equal(first_rows(double(padded), 2)["y"], rows(0, 2)["x"] * 2)


def test_blocks_that_wait_share_the_next_run() -> None:
    run = Recorder()
    engine = engine_of(run)
    feeds = [rows(10, 1), rows(20, 2), rows(30, 3)]
    with queued(engine, run, feeds) as futures:
        pass
    assert run.sizes == [1, 6]
    for feed, future in zip(feeds, futures, strict=True):
        np.testing.assert_array_equal(future.result(0)["y"], feed["x"] * 2)


def test_blocks_are_freed_without_a_collection() -> None:
    """A feed may be a view of a request's body: megabytes that nobody needs any more."""

    class Rows(np.ndarray):  # one that can be watched
        pass

    run = Recorder()
    feeds = [{"x": rows(index, 2)["x"].view(Rows)} for index in range(3)]
    alive = [weakref.ref(feed["x"]) for feed in feeds]
    gc.disable()
    try:
        with queued(engine_of(run, block_rows=4), run, feeds) as futures:
            feeds.clear()
        futures.clear()
        assert [ref() for ref in alive] == [None] * 3
    finally:
        gc.enable()


def test_a_run_takes_no_more_rows_than_the_plan_allows() -> None:
    run = Recorder()
    with queued(engine_of(run, block_rows=4), run, [rows(0, 3), rows(0, 3), rows(0, 1)]):
        pass
    assert run.sizes == [1, 4, 3]


def test_only_blocks_of_the_same_dimensions_share_a_run() -> None:
    run = Recorder()
    feeds = [rows(0, 1, 2), rows(0, 1, 3), rows(5, 1, 2)]
    with queued(engine_of(run), run, feeds) as futures:
        pass
    assert run.sizes == [1, 2, 1]
    for feed, future in zip(feeds, futures, strict=True):
        np.testing.assert_array_equal(future.result(0)["y"], feed["x"] * 2)


@pytest.mark.parametrize("block_rows", [1, 8])
def test_without_merging_each_block_is_one_run(block_rows: int) -> None:
    run = Recorder()
    engine = engine_of(run, block_rows=block_rows)
    engine.plan = replace(engine.plan, merges=block_rows == 1)
    assert not engine.merges
    with queued(engine, run, [rows(0, 1), rows(0, 1)]):
        pass
    assert run.sizes == [1, 1, 1]


def test_blocks_fill_up_a_fixed_number_of_rows() -> None:
    run = Recorder()
    fixed = signature(
        ("x", "float", [4, 2]), outputs=[("y", "float", [4, 2])], row_axis=RowAxis.FIXED, fixed_rows=4
    )
    feeds = [rows(10, 1), rows(20, 2)]
    with queued(engine_of(run, fixed), run, feeds) as futures:
        pass
    assert run.sizes == [4, 4]
    for feed, future in zip(feeds, futures, strict=True):
        np.testing.assert_array_equal(future.result(0)["y"], feed["x"] * 2)


def test_a_block_with_an_input_that_has_a_default_stays_alone() -> None:
    run = Recorder()
    model = replace(MODEL, defaults=(TensorSpec("k", "tensor(float)", (1,)),))
    feeds = [rows(0, 1), {**rows(0, 1), "k": np.ones(1, np.float32)}, rows(0, 1)]
    with queued(engine_of(run, model), run, feeds):
        pass
    assert run.sizes == [1, 2, 1]


def refuse_negative(feed: Feed) -> None:
    if (feed["x"] < 0).any():
        raise InputRefused("negative")


def test_a_merged_run_that_fails_is_repeated_one_by_one() -> None:
    """The caller at fault gets its error, the others their answers."""
    run = Recorder(refuse_negative)
    feeds = [rows(1, 1), rows(-9, 1), rows(5, 2)]
    with queued(engine_of(run), run, feeds) as futures:
        pass
    assert run.sizes == [1, 4, 1, 2, 1]
    with pytest.raises(InputRefused, match="negative"):
        futures[1].result(0)
    for index in (0, 2):
        np.testing.assert_array_equal(futures[index].result(0)["y"], feeds[index]["x"] * 2)


def test_an_unforeseen_failure_reaches_everybody_who_waits() -> None:
    def fail(feed: Feed) -> None:
        if len(feed["x"]) > 1:
            raise ZeroDivisionError

    run = Recorder(fail)
    with queued(engine_of(run), run, [rows(0, 1), rows(0, 1)]) as futures:
        pass
    for future in futures:
        with pytest.raises(ZeroDivisionError):
            future.result(0)


def test_abandoned_blocks_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "PATIENCE_S", 0.0)
    run = Recorder()
    with queued(engine_of(run), run, [rows(0, 1), rows(0, 1)], gone=lambda: True) as futures:
        pass
    assert run.sizes == [1]
    for future in futures:
        with pytest.raises(Abandoned):
            future.result(0)


def test_a_shared_run_is_ended_once_all_have_gone() -> None:
    """Whoever waits for a run says whether all of them have left; a caller that cannot tell never leaves."""
    asked: list[list[bool]] = []
    left = iter([False, True, True])

    def run_watched(feed: Feed, gone: Callable[[], bool]) -> Values:
        asked.append([gone(), gone()])
        return double(feed)

    run = Recorder()
    engine = Engine(run, MODEL, slots=1, block_rows=8, run_watched=run_watched)
    engine.plan = replace(engine.plan, merges=True)
    feeds = [rows(0, 1), rows(9, 1)]
    # The first one occupies the slot and has nobody who may leave.
    with queued(engine, run, feeds, gone=lambda: next(left)) as futures:
        pass
    assert run.sizes == [1]
    assert asked == [[False, True]]
    for future, feed in zip(futures, feeds, strict=True):
        np.testing.assert_array_equal(future.result(0)["y"], feed["x"] * 2)


def test_a_run_over_the_memory_is_halved_and_smaller_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    def run(feed: Feed) -> Values:
        sizes.append(len(feed["x"]))
        if len(feed["x"]) > 3:
            raise OutOfMemory("no")
        return double(feed)

    sizes: list[int] = []
    engine = Engine(run, MODEL, slots=1, block_rows=16)
    feed = rows(0, 16)
    np.testing.assert_array_equal(answer(engine, feed)["y"], feed["x"] * 2)
    assert max(sizes) == 16
    assert sum(size for size in sizes if size <= 3) == 16
    assert engine.block_rows == 2
    assert "blocks of 8 rows instead of 16" in caplog.text
    sizes.clear()
    answer(engine, feed)
    assert max(sizes) <= 3
    engine.close()


def test_a_row_over_the_memory_is_an_error() -> None:
    def run(_: Feed) -> Values:
        raise OutOfMemory("1000 bytes")

    engine = Engine(run, MODEL, slots=1, block_rows=4)
    with pytest.raises(OutOfMemory, match="1000 bytes"):
        answer(engine, rows(0, 4))
    engine.close()


def test_larger_records_run_in_smaller_blocks_and_leave_the_plan_alone() -> None:
    """The plan was made for records of two elements; records of eight get a quarter of the rows."""
    sizes: list[int] = []

    def run(feed: Feed) -> Values:
        sizes.append(len(feed["x"]))
        if feed["x"].size > 16:
            raise OutOfMemory("no")
        return double(feed)

    engine = Engine(run, MODEL, slots=1, block_rows=16)
    engine.plan = RunPlan(16, 1, record_elements=2, run_row_bytes=10, limit_bytes=1000)
    feed = rows(0, 16, 8)
    np.testing.assert_array_equal(answer(engine, feed)["y"], feed["x"] * 2)
    assert sizes[0] == 4
    assert engine.block_rows == 16
    with pytest.raises(OutOfMemory, match="a record of 400 input elements is expected to need"):
        answer(engine, rows(0, 1, 400))
    engine.close()


def test_short_memory_makes_runs_smaller() -> None:
    pressed = iter([False, True, True, False])
    engine = Engine(double, MODEL, slots=1, block_rows=16, pressed=lambda: next(pressed, False))
    sizes = []
    for _ in range(4):
        answer(engine, rows(0, 1))
        sizes.append(engine.block_rows)
    engine.close()
    assert sizes == [16, 8, 4, 4]


def test_fewer_slots_hold_for_the_blocks_that_come() -> None:
    run = Recorder()
    engine = Engine(run, MODEL, slots=2, block_rows=8)
    engine.plan = replace(engine.plan, slots=1)
    with queued(engine, run, [rows(0, 1)]):
        assert run.sizes == [1]
    assert run.sizes == [1, 1]


def run_with_rules(feed: Feed) -> Values:
    """Doubles; negative numbers are refused, 13 fails, and more than six rows need too much memory."""
    refuse_negative(feed)
    if len(feed["x"]) > 6:
        raise OutOfMemory("no")
    if (feed["x"] == 13).any():
        raise InferenceError("13")
    return double(feed)


def is_wrong(engine: Engine, feed: Feed) -> bool:
    """Whether a request gets anything but what it would get alone."""
    errors = {InputRefused: (feed["x"] < 0).any(), InferenceError: (feed["x"] == 13).any()}
    try:
        outputs = answer(engine, feed)
    except (InputRefused, InferenceError) as ex:
        # Of both kinds of values in a long block, those in the first piece decide.
        return not errors[type(ex)]
    return any(errors.values()) or not np.array_equal(outputs["y"], feed["x"] * 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_every_answer_is_the_one_that_the_request_alone_would_get(slots: int) -> None:
    """Thousands of requests of mixed sizes, dimensions and failures at once."""
    engine = engine_of(run_with_rules, slots=slots)
    wrong: list[Feed] = []

    def client(number: int) -> None:
        random = np.random.default_rng(number)
        for _ in range(300):
            shape = int(random.integers(1, 20)), int(random.integers(1, 4))
            lowest = -1 if random.random() < 0.05 else 0
            feed = {"x": random.integers(lowest, 300, shape).astype(np.float32)}
            if is_wrong(engine, feed):
                wrong.append(feed)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    engine.close()
    assert wrong == []
    assert not engine._slots.waiting
    assert engine._slots.busy == 0


def test_a_sender_is_not_asked_about_before_it_may_have_lost_patience() -> None:
    """Asking costs each of many small requests more than all else."""
    run = Recorder()
    with queued(engine_of(run), run, [rows(0, 1)], gone=lambda: pytest.fail("asked")):
        pass
    assert run.sizes == [1, 1]
