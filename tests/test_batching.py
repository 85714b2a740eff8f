import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codec_laws import signature
from onnx_serve.batching import Engine
from onnx_serve.blocks import cut, join
from onnx_serve.errors import InferenceError, OutOfMemory
from onnx_serve.run_plan import RunPlan, default_block_rows
from onnx_serve.tensors import Feed, MapTable, RowAxis, Tensors, TensorSpec, Values

MODEL = signature(("x", "float", ["N", 2]), outputs=[("y", "float", ["N", 2])])


def rows(first: int, count: int) -> Tensors:
    return {"x": np.arange(2 * first, 2 * (first + count), dtype=np.float32).reshape(count, 2)}


def double(feed: Tensors) -> Values:
    return {"y": feed["x"] * 2}


@given(total=st.integers(1, 60), size=st.integers(1, 70))
def test_cut_and_join_are_inverse(total: int, size: int) -> None:
    """Pieces are within the size, differ by one row at most, and put together are the block."""
    block = rows(0, total)
    pieces = list(cut(block, size))
    lengths = [len(piece["x"]) for piece in pieces]

    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    np.testing.assert_array_equal(join([dict(piece) for piece in pieces])["x"], block["x"])


def test_cut_does_not_copy() -> None:
    block = rows(0, 10)

    assert all(np.shares_memory(piece["x"], block["x"]) for piece in cut(block, 3))


def test_join_of_tables_and_lists() -> None:
    one = MapTable((0, 1), np.zeros((2, 2), np.float32))
    other = MapTable((0, 2), np.ones((1, 2), np.float32))

    same = join([{"p": one}, {"p": one}])["p"]
    assert isinstance(same, MapTable)
    assert len(same) == 4
    assert join([{"p": one}, {"p": other}])["p"] == [{0: 0, 1: 0}, {0: 0, 1: 0}, {0: 1, 2: 1}]
    assert join([{"s": ["a"]}, {"s": ["b", "c"]}]) == {"s": ["a", "b", "c"]}


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("blocks", [[1], [7], [3, 3, 3], [1, 100, 2], [50] * 20])
def test_outputs_come_in_order(slots: int, blocks: list[int]) -> None:
    engine = Engine(double, MODEL, slots=slots, block_rows=8)
    starts = np.cumsum([0, *blocks[:-1]])

    outputs = list(engine.map(rows(int(start), count) for start, count in zip(starts, blocks, strict=True)))
    engine.close()
    assert max(len(output["y"]) for output in outputs) <= 8  # type: ignore[arg-type]
    np.testing.assert_array_equal(join(outputs)["y"], rows(0, sum(blocks))["x"] * 2)


def test_no_blocks_no_outputs() -> None:
    assert list(Engine(double, MODEL, slots=1, block_rows=8).map([])) == []


def test_a_lone_block_runs_in_the_callers_thread() -> None:
    threads: list[threading.Thread] = []

    def run(feed: Tensors) -> Values:
        threads.append(threading.current_thread())
        return double(feed)

    list(Engine(run, MODEL, slots=2, block_rows=8).map([rows(0, 3)]))
    assert threads == [threading.current_thread()]


def test_one_payload_uses_all_slots_and_no_more() -> None:
    """Each run waits until as many run as there are slots; if they never did, the barrier would break."""
    slots = 3
    together = threading.Barrier(slots)
    lock = threading.Lock()
    running = most = 0

    def run(feed: Tensors) -> Values:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(timeout=30)
        with lock:
            running -= 1
        return double(feed)

    engine = Engine(run, MODEL, slots=slots, block_rows=1)
    assert len(list(engine.map([rows(0, 9)]))) == 9
    engine.close()
    assert most == slots


def test_callers_share_the_slots() -> None:
    slots, callers = 2, 6
    lock = threading.Lock()
    running = most = 0

    def run(feed: Tensors) -> Values:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        result = double(feed)
        with lock:
            running -= 1
        return result

    engine = Engine(run, MODEL, slots=slots, block_rows=4)
    wrong: list[int] = []

    def call(caller: int) -> None:
        for count in (1, 3, 9, 2, 17):
            outputs = join(list(engine.map([rows(caller, count)])))
            if not np.array_equal(outputs["y"], rows(caller, count)["x"] * 2):  # type: ignore[arg-type]
                wrong.append(caller)

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    engine.close()
    assert wrong == []
    assert most <= slots


def test_decoding_stays_few_blocks_ahead() -> None:
    """A long body is not decoded as a whole before its first answer is taken."""
    decoded = 0

    def blocks() -> Iterator[Tensors]:
        nonlocal decoded
        for start in range(100):
            decoded += 1
            yield rows(start, 1)

    engine = Engine(double, MODEL, slots=2, block_rows=8)
    outputs = engine.map(blocks())
    next(outputs)
    assert decoded <= 6
    assert sum(1 for _ in outputs) == 99
    engine.close()


@pytest.mark.parametrize("error", [OutOfMemory("no"), InferenceError("no")])
def test_a_failed_block_fails_its_request_only(error: Exception) -> None:
    def run(feed: Tensors) -> Values:
        if feed["x"][0, 0] == 6:
            raise error
        return double(feed)

    engine = Engine(run, MODEL, slots=2, block_rows=1)
    with pytest.raises(type(error)):
        list(engine.map([rows(0, 9)]))
    assert len(list(engine.map([rows(10, 9)]))) == 9
    engine.close()


def test_an_error_while_decoding_reaches_the_caller() -> None:
    def blocks() -> Iterator[Tensors]:
        yield rows(0, 1)
        yield rows(1, 1)
        yield rows(2, 1)
        raise ValueError("line 4")

    engine = Engine(double, MODEL, slots=1, block_rows=8)
    with pytest.raises(ValueError, match="line 4"):
        list(engine.map(blocks()))
    engine.close()


def test_fixed_rows_are_cut_and_padded() -> None:
    sizes: list[int] = []

    def run(feed: Tensors) -> Values:
        sizes.append(len(feed["x"]))
        return double(feed)

    fixed = signature(("x", "float", [4, 2]), row_axis=RowAxis.FIXED, fixed_rows=4)
    engine = Engine(run, fixed, slots=1, block_rows=64)
    outputs = join(list(engine.map([rows(0, 6)])))
    engine.close()
    assert sizes == [4, 4]
    np.testing.assert_array_equal(outputs["y"], rows(0, 6)["x"] * 2)


@pytest.mark.parametrize(
    ("slots", "consecutive", "expected"),
    [
        (1, 1, [2, 2, 2, 2, 2, 2, 1]),
        (1, 3, [4, 4, 5]),
        (2, 50, [6, 7]),
        (1, 100, [13]),
        (2, 2, [2, 4, 4, 3]),
    ],
)
def test_a_thread_makes_several_runs_of_fixed_rows_in_a_row(
    slots: int, consecutive: int, expected: list[int]
) -> None:
    """What is handed over, and what is answered, is the rows of all of them; none but the last run is padded."""
    sizes: list[int] = []

    def run(feed: Tensors) -> Values:
        sizes.append(len(feed["x"]))
        return double(feed)

    fixed = signature(("x", "float", [2, 2]), row_axis=RowAxis.FIXED, fixed_rows=2)
    engine = Engine(run, fixed, slots=slots, block_rows=2)
    engine.plan = replace(engine.plan, consecutive_runs=consecutive)
    outputs = list(engine.map([rows(0, 13)]))
    engine.close()
    assert [len(output["y"]) for output in outputs] == expected  # type: ignore[arg-type]
    assert sizes == [2] * 7
    np.testing.assert_array_equal(join(outputs)["y"], rows(0, 13)["x"] * 2)


@pytest.mark.parametrize(
    ("runs", "slots", "consecutive", "expected"),
    [(1, 2, 256, 26), (60, 2, 256, 30), (1000, 2, 256, 256), (1000, 2, 1, 1), (3, 4, 8, 1), (9, 4, 8, 3)],
)
def test_runs_are_spread_over_the_slots_where_they_are_worth_it(
    runs: int, slots: int, consecutive: int, expected: int
) -> None:
    assert RunPlan(1, slots, consecutive_runs=consecutive).runs_in_a_row(runs) == expected


@given(total=st.integers(1, 60), multiple=st.integers(1, 5), times=st.integers(1, 5))
def test_pieces_are_multiples_but_for_the_last(total: int, multiple: int, times: int) -> None:
    whole = rows(0, total)
    pieces = list(cut(whole, multiple * times, multiple=multiple))
    sizes = [len(piece["x"]) for piece in pieces]
    assert all(size % multiple == 0 for size in sizes[:-1])
    assert max(sizes) <= multiple * times
    assert -(-sum(sizes) // multiple) == sum(-(-size // multiple) for size in sizes)
    np.testing.assert_array_equal(np.concatenate([piece["x"] for piece in pieces]), whole["x"])


def test_without_rows_a_block_is_one_run() -> None:
    whole = signature(("x", "float", [3, 2]), row_axis=RowAxis.NONE)
    engine = Engine(lambda feed: {"y": feed["x"].sum(keepdims=False)}, whole, slots=1, block_rows=1)

    assert [float(output["y"]) for output in engine.map([rows(0, 3), rows(0, 3)])] == [15.0, 15.0]  # type: ignore[arg-type]
    engine.close()


def test_an_answer_with_other_rows_is_an_error() -> None:
    engine = Engine(lambda _: {"y": np.zeros((2, 2))}, MODEL, slots=1, block_rows=8)

    with pytest.raises(InferenceError, match='output "y" has 2 rows for 3 rows of input'):
        list(engine.map([rows(0, 3)]))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [(["N", 30], 2048), (["N", 3, 224, 224], 1), (["N"], 4096), (["N", 1000], 64), (["N", "t"], 4096)],
)
def test_default_block_rows(shape: list[Any], expected: int) -> None:
    assert default_block_rows(signature(("x", "float", shape))) == expected


def test_inputs_with_defaults_are_neither_cut_nor_padded() -> None:
    whole = np.array([2.0], np.float32)
    model = replace(
        signature(("x", "float", [4]), outputs=[("y", "float", [4])], row_axis=RowAxis.FIXED, fixed_rows=4),
        defaults=(TensorSpec("k", "tensor(float)", (1,)),),
    )
    seen = []

    def scale(feed: Feed) -> Values:
        seen.append(feed["k"])
        return {"y": feed["x"] * feed["k"]}

    engine = Engine(scale, model, slots=1, block_rows=4)
    blocks = engine.map([{"x": np.arange(6, dtype=np.float32), "k": whole}])
    assert np.concatenate([block["y"] for block in blocks]).tolist() == [0, 2, 4, 6, 8, 10]
    assert len(seen) == 2
    assert all(k is whole for k in seen)
