"""What the first run says of rows, with plain functions in place of a model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from codec_laws import signature
from onnx_serve.errors import DecodeError, InputRefused
from onnx_serve.rows import infer_row_axis, warm_up
from onnx_serve.tensors import MapTable, RowAxis, Signature, TensorSpec, Values

X: tuple[str, str, list[int | str | None]] = ("x", "float", ["N", 2])


def tried(run: Callable[[Any], Values], kind: str = "float") -> Signature:
    return warm_up(run, signature(X, outputs=[("y", kind, ["N"])]), "m")


@pytest.mark.parametrize(
    ("kind", "run", "difference"),
    [
        ("int64", lambda feed: {"y": np.arange(len(feed["x"])) + len(feed["x"])}, 'output "y" differs'),
        ("string", lambda feed: {"y": np.array([str(len(feed["x"]))] * len(feed["x"]), object)}, 'output "y" differs'),
        ("float", lambda feed: {"y": feed["x"][:, 0] * len(feed["x"])}, 'output "y" differs by'),
        ("float", lambda feed: {"y": np.ones((len(feed["x"]), len(feed["x"])))}, "has shape [3, 4] apart and [3, 3] together"),
        ("float16", lambda feed: {"y": (feed["x"][:, 0] * (1 + len(feed["x"]) / 100)).astype(np.float16)}, "differs by"),
        ("seq(map(int64,tensor(float)))",
         lambda feed: {"y": MapTable((0,), feed["x"][:, :1] * len(feed["x"]))}, 'output "y" differs by'),
    ],
)  # fmt: skip
def test_a_row_that_depends_on_its_company_is_run_alone(
    kind: str, run: Callable[[Any], Values], difference: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = tried(run, kind)

    assert (found.row_axis, found.fixed_rows) == (RowAxis.FIXED, 1)
    assert difference in caplog.text


@pytest.mark.parametrize(
    ("kind", "run"),
    [
        ("float", lambda feed: {"y": feed["x"][:, 0] * np.float32(1 + 1e-6 * len(feed["x"]))}),
        ("bfloat16", lambda feed: {"y": feed["x"][:, 0] * np.float32(1 + 2e-3 * len(feed["x"]))}),
        ("float", lambda feed: {"y": np.full(len(feed["x"]), np.nan, np.float32)}),
        ("int64", lambda feed: {"y": np.ones(len(feed["x"]), np.int64)}),
        ("seq(map(int64,tensor(float)))", lambda feed: {"y": [{1: 2.0}, {}, {}][: len(feed["x"])]}),
    ],
)
def test_noise_of_the_type_is_no_difference(kind: str, run: Callable[[Any], Values]) -> None:
    assert tried(run, kind).row_axis is RowAxis.FREE


def test_a_model_that_refuses_every_guess_is_believed(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(feed: Any) -> Values:
        raise InputRefused("not this")

    assert tried(refuse).row_axis is RowAxis.FREE
    assert "served untried: not this" in caplog.text


def test_a_sample_is_run_before_anything_is_made_up(caplog: pytest.LogCaptureFixture) -> None:
    def only_sevens(feed: Any) -> Values:
        if not (feed["x"] == 7).all():
            raise InputRefused("not this")
        return {"y": np.array(len(feed["x"]), np.float32)}

    def sample(_: Signature, rows: int) -> Any:
        return {"x": np.full((rows, 2), 7, np.float32)}

    declared = signature(X, outputs=[("y", "float", ["N"])])
    assert warm_up(only_sevens, declared, "m", sample=sample).row_axis is RowAxis.NONE
    assert "served untried" not in caplog.text


def test_a_sample_that_cannot_be_read_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    def sample(_: Signature, rows: int) -> Any:
        raise DecodeError(f"expected {rows} records")

    declared = signature(X, outputs=[("y", "float", ["N"])])
    run = lambda feed: {"y": feed["x"][:, 0]}  # noqa: E731
    assert warm_up(run, declared, "m", sample=sample).row_axis is RowAxis.FREE
    assert "the sample request is not used, inputs are made up: expected 3 records" in caplog.text


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ([X], [("y", "float", ["N"])], RowAxis.FREE),
        ([X], [("y", "float", [None, 3])], RowAxis.FREE),
        ([X], [("y", "float", [])], RowAxis.NONE),
        ([X], [("y", "float", [1])], RowAxis.NONE),
        ([X], [("y", "seq(tensor(float))", [])], RowAxis.NONE),
        ([X], [("y", "optional(tensor(float))", ["N"])], RowAxis.NONE),
        ([X], [("y", "seq(map(int64,tensor(float)))", [])], RowAxis.FREE),
        ([X, ("s", "seq(tensor(float))", [])], [("y", "float", ["N"])], RowAxis.NONE),
        ([X, ("k", "float", ["M"])], [("y", "float", ["N"])], RowAxis.NONE),
        ([("x", "float", [3, 2])], [("y", "float", [3])], RowAxis.FIXED),
        ([], [("y", "float", ["N"])], RowAxis.NONE),
    ],
)
def test_what_the_declared_shapes_suggest(inputs: Any, outputs: Any, expected: RowAxis) -> None:
    declared = signature(*inputs, outputs=outputs, row_axis=RowAxis.NONE)

    assert infer_row_axis(declared).row_axis is expected


def test_an_undeclared_shape_has_no_rows() -> None:
    free = TensorSpec("x", "tensor(float)", (), any_shape=True)

    assert infer_row_axis(Signature((free,), (), RowAxis.NONE)).row_axis is RowAxis.NONE
