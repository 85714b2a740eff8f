"""Free dimensions of plain functions: what holds for them holds for modules; and feeds made of a sample."""

import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from converters.errors import ConversionError, ConversionRefused, MissingExtra
from converters.torch_axes import Axes, batch_positions, infer, parse, runs_again
from converters.torch_feeds import CannotRun, fresh, mix, quoted_shapes, resize, unlike_all
from onnx_serve.tensors import Array, Tensors

Call = Callable[[Tensors], Tensors]


def of(function: Callable[..., Any]) -> Call:
    """A function of arrays as an original; what NumPy refuses, it cannot run."""

    def call(feed: Tensors) -> Tensors:
        try:
            result = function(**feed)
        except (ValueError, IndexError) as ex:
            raise CannotRun(str(ex)) from ex
        return {"y": np.asarray(result)}

    return call


WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)
ROWS, LONG = np.ones((2, 4), np.float32), np.ones((2, 5, 4), np.float32)
IDS = np.ones((2, 5), np.int64)


def axes(call: Call, sample: Tensors, *words: str) -> Axes:
    return infer(call, sample, parse(words, sample))


@pytest.mark.parametrize(
    ("function", "sample", "expected", "rows"),
    [
        (lambda x: x @ WEIGHTS, {"x": ROWS}, {("x", 0): "N"}, True),
        (lambda x: x @ WEIGHTS, {"x": LONG}, {("x", 0): "N", ("x", 1): "length"}, True),
        (lambda x: x.sum(axis=1) @ WEIGHTS, {"x": LONG}, {("x", 0): "N", ("x", 1): "length"}, True),
        (lambda x: np.swapaxes(x, 1, 2) @ np.ones((5, 1)), {"x": LONG}, {("x", 0): "N", ("x", 2): "length"}, True),
        (lambda x: x.reshape(-1, 20) @ np.ones((20, 1)), {"x": LONG}, {("x", 0): "N"}, True),
        (lambda x, mask: (x * mask[..., None]) @ WEIGHTS, {"x": LONG, "mask": np.ones((2, 5), np.float32)},
         {("x", 0): "N", ("mask", 0): "N", ("x", 1): "length", ("mask", 1): "length"}, True),
        (lambda a, b: a @ WEIGHTS[:, :1] + b.sum(axis=1, keepdims=True)[:, :, :1], {"a": LONG, "b": LONG},
         {("a", 0): "N", ("b", 0): "N", ("a", 1): "length", ("b", 1): "length_2"}, True),
        (lambda ids: ids, {"ids": IDS}, {("ids", 0): "N", ("ids", 1): "length"}, True),
        (lambda ids, x: (ids % 3) @ np.ones((5, 1)) + x @ WEIGHTS, {"ids": IDS, "x": ROWS},
         {("ids", 0): "N", ("x", 0): "N"}, True),
        (lambda ids: ids[:, 0] + ids[:, 4], {"ids": IDS}, {("ids", 0): "N"}, True),
        (lambda ids: ids + np.arange(5)[: ids.shape[1]], {"ids": IDS}, {("ids", 0): "N", ("ids", 1): "length"}, True),
        (lambda ids: ids.sum(axis=1), {"ids": IDS[:, :1]}, {("ids", 0): "N", ("ids", 1): "length"}, True),
        (lambda ids: ids + np.ones(3), {"ids": IDS[:, :3]}, {("ids", 0): "N"}, True),
        (lambda x: x.mean(), {"x": ROWS}, {("x", 0): "size"}, False),
        (lambda x: x.T @ x, {"x": ROWS}, {("x", 0): "size"}, False),
        (lambda x: np.ones((2, 4)) * x, {"x": ROWS[:, :1].repeat(4, 1)}, {}, False),
        (lambda x, w: x @ w, {"x": ROWS, "w": WEIGHTS}, {}, False),
        (lambda x: x + 1, {"x": np.float32(3).reshape(())}, {}, False),
    ],
    ids=["rows", "states", "sum over time", "channels first", "fixed length", "mask", "two lengths", "codes",
         "fixed codes", "columns by number", "at most as long", "of length 1", "broadcast", "scalar", "no rows", "fixed rows", "weights as input", "rank 0"],
)  # fmt: skip
def test_inferred(
    function: Callable[..., Any], sample: Tensors, expected: dict[tuple[str, int], str], rows: bool
) -> None:
    found = axes(of(function), sample)
    assert (dict(found.names), found.rows) == (expected, rows)
    for symbol, sizes in found.sizes.items():
        assert sizes
        for size in sizes:
            assert of(function)(found.resized(sample, {symbol: size}))


def test_rows_that_depend_on_each_other_are_refused_unless_named_otherwise() -> None:
    company = of(lambda x: x - x.mean(axis=0))
    sample = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
    with pytest.raises(ConversionRefused, match="another answer alone"):
        axes(company, sample)
    with pytest.raises(ConversionRefused, match="another answer alone"):
        axes(company, sample, "x:0=batch")
    found = axes(company, sample, "x:0=points")
    assert not found.rows
    assert found.sizes["points"]


def test_rows_whose_shapes_depend_on_each_other_are_refused() -> None:
    """A row's answer is as wide as the largest number in any row."""
    widest = of(lambda x: np.ones((len(x), int(x.max()))))
    with pytest.raises(ConversionRefused, match="another answer alone"):
        axes(widest, {"x": np.array([[1.0], [3.0]], np.float32)})


def test_named_dimensions_are_taken_as_said_and_nothing_else_is_inferred() -> None:
    found = axes(of(lambda x: x @ WEIGHTS), {"x": LONG}, "x:0=batch")
    assert found.names == {("x", 0): "batch"}
    assert found.rows
    assert not found.sizes
    assert axes(of(lambda x: x @ WEIGHTS), {"x": LONG}, "x:1=steps").names == {("x", 1): "steps"}


def test_dimensions_that_a_program_declares_need_not_be_free_alone() -> None:
    """Two symbols of an exported program may be tied, so that neither moves without the other."""
    added = of(lambda a, b: a + b)
    declared = {("a", 0): "N", ("b", 0): "N", ("a", 1): "length", ("b", 1): "b_1"}
    found = infer(added, {"a": IDS, "b": IDS}, declared, declared=True)
    assert found.names == declared
    assert found.sizes == {"length": (), "b_1": ()}


@pytest.mark.parametrize(
    "word", ["x", "x:0", "x:0=", ":0=batch", "x:a=batch", "x:-1=batch", "x:0=two words", "x:²=n", "x:99999=n"]
)
def test_other_forms_of_dynamic_are_refused(word: str) -> None:
    with pytest.raises(ConversionError, match="dynamic: "):
        parse([word], {"x": ROWS})


def test_where_the_batch_is_named() -> None:
    assert batch_positions({("x", 1): "batch", ("x", 0): "time"}) == {"x": 1}
    assert batch_positions({("x", 1): "N", ("h", 0): "n"}) == {"x": 1, "h": 0}
    assert batch_positions({("x", 0): "batch", ("x", 1): "time"}) == {}


def test_an_original_that_answers_twice_the_same_is_no_random_one() -> None:
    generator = np.random.default_rng(0)
    assert runs_again(of(lambda x: x), {"x": IDS})["y"] is not None
    with pytest.raises(ConversionRefused, match="differs from one run to the next"):
        runs_again(of(lambda x: x + generator.random(x.shape)), {"x": ROWS})
    with pytest.raises(ConversionRefused, match="differs from one run to the next"):
        runs_again(of(lambda x: x[: generator.integers(len(x))]), {"x": np.ones((50, 1), np.float32)})


def test_without_lengths_only_dimension_0_is_free() -> None:
    found = axes(of(lambda x: x @ WEIGHTS), {"x": LONG})
    assert found.without_lengths() == Axes({("x", 0): "N"}, rows=True)


# --- Feeds ----------------------------------------------------------------------------------------

ARRAYS = st.one_of(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=4), elements=st.floats(width=32)),
    hnp.arrays(np.int64, hnp.array_shapes(max_dims=3, max_side=4), elements=st.integers(-3, 3)),
    hnp.arrays(np.bool_, hnp.array_shapes(max_dims=3, max_side=4)),
    hnp.arrays(np.float64, (0, 2)),
    hnp.arrays(np.int32, (2, 0)),
)


@settings(max_examples=100, deadline=None)
@given(array=ARRAYS, seed=st.integers(0, 9))
def test_fresh_values_stay_in_the_samples_range(array: Array, seed: int) -> None:
    made = fresh({"x": array}, np.random.default_rng(seed))["x"]
    assert (made.dtype, made.shape) == (array.dtype, array.shape)
    if array.dtype.kind != "f":
        assert set(made.ravel()) <= set(array.ravel())
        return
    finite = np.isfinite(array)
    np.testing.assert_array_equal(made[~finite], array[~finite])
    if finite.any() and array[finite].min() < array[finite].max():
        assert array[finite].min() <= made[finite].min()
        assert made[finite].max() <= array[finite].max()


@settings(max_examples=60, deadline=None)
@given(array=ARRAYS, size=st.integers(1, 9))
def test_resized_feeds_repeat_the_sample(array: Array, size: int) -> None:
    if not array.size:
        return
    resized = resize({"x": array, "z": ROWS}, {("x", 0): size})
    assert resized["z"] is ROWS
    assert resized["x"].shape == (size, *array.shape[1:])
    for row in range(size):
        np.testing.assert_array_equal(resized["x"][row], array[row % len(array)])


@settings(max_examples=100, deadline=None)
@given(
    array=hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=4)),
    width=st.integers(2, 4),
)
def test_masks_leave_something_of_each_row_if_the_samples_do(array: Array, width: int) -> None:
    made = mix(resize({"x": array}, {("x", 1): width}), {"x": array})["x"]
    known = {bool(row[0]) for row in array if row.all() or not row.any()}
    for row in made:
        assert len(set(row)) > 1 or bool(row[0]) in known


def test_feeds_without_masks_are_left_alone() -> None:
    feed: Tensors = {"x": ROWS, "ids": np.ones((2, 3, 3), np.int64), "none": np.ones((0, 3), np.int64)}
    assert all(mix(feed, feed)[name] is array for name, array in feed.items())


def test_a_size_unlike_all() -> None:
    assert unlike_all({"x": np.ones((3, 5)), "y": np.ones(7)}) == 9
    assert unlike_all({"x": np.ones((1, 2))}) == 3


def test_shapes_in_messages_are_few() -> None:
    assert quoted_shapes({"x": ROWS}) == '"x" float32[2, 4]'
    assert quoted_shapes({str(index): ROWS for index in range(9)}).endswith(", ...")


def test_without_torch_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "converters.torch", raising=False)
    with pytest.raises(MissingExtra, match=r"is not installed: pip install .*convert-torch"):
        importlib.import_module("converters.torch")
