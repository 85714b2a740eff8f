"""The gate: what it lets pass, what it stops, and what it says."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from codec_laws import signature
from converters.errors import ConversionRefused
from converters.parity import Probe, Report, Tolerances, compare, gate, golden_rows, judge, record
from onnx_serve.model import Model
from onnx_serve.tensors import Array, MapTable, RowAxis, Signature, Tensors, Values

ROWS = np.random.default_rng(3).normal(size=(1024, 2))
FLOAT = signature(("x", "float", ["N", 2]), outputs=[("y", "float", ["N", 1])])
DOUBLE = signature(("x", "double", ["N", 2]), outputs=[("y", "double", ["N", 1])])
CLASSIFIER = signature(
    ("x", "double", ["N", 2]), outputs=[("label", "int64", ["N"]), ("probabilities", "float", ["N", 2])]
)


def model(run: Any, declared: Signature = DOUBLE) -> Model:
    return Model("m", declared, lambda feed: {"y": run(feed["x"])})


def total(x: Array) -> Array:
    return np.asarray(x.sum(axis=1, keepdims=True))


def original(feed: Tensors) -> Tensors:
    return {"y": feed["x"].sum(axis=1)}


def check(run: Any, declared: Signature = DOUBLE, **tolerances: float) -> Report:
    return compare(model(run, declared), original, [Probe("ranges", {"x": ROWS})], Tolerances(**tolerances))


def test_the_same_answers_pass_in_every_cut() -> None:
    sizes = []

    def run(x: Array) -> Array:
        sizes.append(len(x))
        return total(x)

    report = check(run)
    assert report.passed
    assert sizes == [1024, *[7] * 10, *[1] * 70]
    [output] = report.outputs
    assert (output.rows, output.max_abs, output.rows_outside) == (1024 + 140, 0.0, 0)
    gate(report)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        pytest.param(lambda x: total(x) + 8.7, "1164 outside", id="off by a constant"),
        pytest.param(lambda x: total(x) * np.where(np.arange(len(x)) == 9, 2, 1)[:, None], "1 outside", id="one row"),
        pytest.param(lambda x: total(x) + (len(x) == 7), "70 outside", id="wrong in company of seven"),
        pytest.param(lambda x: np.where(total(x) > 3, np.nan, total(x)), "outside", id="not a number"),
        pytest.param(lambda x: np.zeros((len(x), 3)), "answers with shape", id="another shape"),
        pytest.param(lambda x: total(x).astype(str), "expected numbers", id="text"),
        pytest.param(lambda x: [1], "type list", id="no array"),
    ],
)  # fmt: skip
def test_other_answers_are_stopped_and_shown(run: Any, words: str) -> None:
    with pytest.raises(ConversionRefused) as caught:
        gate(check(run))
    assert words in str(caught.value)


COLUMNS = signature(("x", "double", ["N", 2]), outputs=[("prediction", "double", ["N", 2])])


def test_each_column_of_a_prediction_has_its_own_scale() -> None:
    """A target in millions beside one in thousandths: the latter may not be wrong by the former's tolerance."""
    probes = [Probe("ranges", {"x": ROWS})]
    scales = np.array([1e6, 1e-3])
    wrong = Model("m", COLUMNS, lambda feed: {"prediction": feed["x"] * [1e6, 2e-3]})

    def answer(feed: Tensors) -> Tensors:
        return {"prediction": feed["x"] * scales}

    assert not compare(wrong, answer, probes).passed
    right = Model("m", COLUMNS, lambda feed: {"prediction": feed["x"] * scales * (1 + 1e-5)})
    assert compare(right, answer, probes).passed


def test_the_users_rows_are_measured_by_themselves() -> None:
    """Rows that are made up may reach answers a million times as large, which excuse no error in the user's."""
    probes = [Probe("sample", {"x": ROWS}), Probe("ranges", {"x": ROWS * 1e6})]

    report = compare(model(lambda x: total(x) + 1.0 * (np.abs(x).max() < 1e3)), original, probes)
    assert not report.passed
    assert report.outputs[0].scale == pytest.approx(np.abs(ROWS.sum(axis=1)).max())


def test_a_refusal_for_ties_says_how_to_allow_them() -> None:
    def answer(feed: Tensors) -> Tensors:
        count = len(feed["x"])
        return {"label": np.zeros(count, np.int64), "probabilities": np.full((count, 2), 0.5)}

    def run(feed: Any) -> Values:
        return {**answer(feed), "label": np.ones(len(feed["x"]), np.int64)}

    tied, probes = Model("m", CLASSIFIER, run), [Probe("ranges", {"x": ROWS})]
    with pytest.raises(ConversionRefused, match=r"are 1 of the rows: --tolerance ties="):
        gate(compare(tied, answer, probes))
    gate(compare(tied, answer, probes, Tolerances(ties=1)))


def over(x: Array) -> Array:
    return (x[:, :1].astype(np.float64) > 0.1) * 1.0


def test_rows_that_the_models_type_rounds_across_a_threshold_are_counted_apart() -> None:
    """0.1 in double is below the threshold, and as float32 above it: right for other inputs, and stopped."""
    x = np.full((8, 2), 0.1)
    x[4:] = 0.3
    step = Model("m", FLOAT, lambda feed: {"y": over(feed["x"]).astype(np.float32)})
    cases = record(lambda feed: {"y": over(feed["x"])}, [Probe("p", {"x": x})], FLOAT)
    assert cases[0].rounded is not None
    report = judge(step, cases, Tolerances())
    assert not report.passed
    assert (report.outputs[0].rows_crossing, report.outputs[0].rows_outside) == (12, 0)
    assert judge(step, cases, Tolerances(rows=0.5)).passed


def test_nothing_is_rounded_where_the_types_are_equal() -> None:
    assert record(original, [Probe("p", {"x": ROWS})], DOUBLE)[0].rounded is None


def test_small_errors_are_judged_by_the_outputs_scale() -> None:
    """Outputs of a billionth may not be wrong by a millionth."""
    tiny = [Probe("p", {"x": ROWS * 1e-9})]
    assert not compare(model(lambda x: total(x) + 1e-9), original, tiny).passed
    assert check(lambda x: total(x) + 1e-9).passed


def labelled(label: Any, shares: Any = None) -> Model:
    def run(feed: Tensors) -> Values:
        x = feed["x"]
        return {"label": label(x), "probabilities": chances(x) if shares is None else shares(x)}

    return Model("m", CLASSIFIER, run)


def chances(x: Array) -> Array:
    one = np.clip(x[:, 0], 0, 1)
    return np.stack([1 - one, one], axis=1)


def truth(feed: Tensors) -> Tensors:
    return {
        "label": np.array(["b", "a"])[chances(feed["x"]).argmin(axis=1)],
        "probabilities": chances(feed["x"]),
    }


def test_a_label_may_differ_only_where_two_scores_tie() -> None:
    x = np.full((200, 2), 0.9)
    x[7] = 0.5
    probes = [Probe("p", {"x": x})]
    tie = labelled(lambda x: np.where(x[:, 0] == 0.5, "a", "b").astype(object))
    report = compare(tie, truth, probes)
    assert report.passed, list(report.lines())
    assert (report.outputs[0].label_disagreements, report.outputs[0].ties) == (3, 3)
    assert not compare(tie, truth, probes, Tolerances(ties=0.001)).passed
    other = labelled(lambda x: np.where(np.arange(len(x)) == 3, "a", truth({"x": x})["label"]).astype(object))
    assert not compare(other, truth, probes).passed


def test_the_outputs_of_zipmap_are_compared_by_their_values() -> None:
    zipped = Model(
        "m",
        CLASSIFIER,
        lambda feed: {"label": truth(feed)["label"], "probabilities": MapTable((0, 1), chances(feed["x"]))},
    )
    assert compare(zipped, truth, [Probe("p", {"x": ROWS})]).passed


def test_an_output_without_counterpart_is_named_and_a_model_without_any_refused() -> None:
    report = compare(labelled(lambda x: truth({"x": x})["label"]), lambda feed: {"label": truth(feed)["label"]},
                     [Probe("p", {"x": ROWS})])  # fmt: skip
    assert report.unchecked == ("probabilities",)
    assert any('"probabilities": the original has no such answer' in line for line in report.lines())
    with pytest.raises(ConversionRefused, match="no output that the original has too"):
        gate(compare(model(total), lambda feed: {}, [Probe("p", {"x": ROWS})]))


@pytest.mark.parametrize(("axis", "rows"), [(RowAxis.FIXED, 8), (RowAxis.NONE, 0)])
def test_models_without_free_rows_are_run_as_they_are(axis: RowAxis, rows: int) -> None:
    declared = replace(DOUBLE, row_axis=axis, fixed_rows=rows)
    sizes = []

    def run(x: Array) -> Array:
        sizes.append(len(x))
        return total(x)

    assert check(run, declared).passed
    assert set(sizes) == {8 if axis is RowAxis.FIXED else 1024}


def test_a_fixed_number_of_rows_is_padded() -> None:
    declared = replace(DOUBLE, row_axis=RowAxis.FIXED, fixed_rows=100)
    assert check(total, declared).outputs[0].rows == 1024


def test_golden_rows_are_the_models_own_answers() -> None:
    golden = golden_rows(model(total), {"x": ROWS[:3]})
    assert np.array_equal(golden.outputs["y"], total(ROWS[:3]))
    assert np.array_equal(golden.inputs["x"], ROWS[:3])


@settings(max_examples=20, deadline=None)
@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 20), st.just(2)), elements=st.floats(-1e6, 1e6)),
    st.floats(1e-3, 1e3),
)
def test_an_error_beyond_the_tolerance_never_passes(rows: Array, error: float) -> None:
    """Whatever the rows: an error of ten times what is allowed is stopped, a tenth of it passes."""
    expected = total(rows)
    allowed = 1e-4 * np.abs(expected).max() + 1e-5 * np.abs(expected).max()
    probes = [Probe("p", {"x": rows})]
    assert not compare(model(lambda x: total(x) + 10 * allowed + error), original, probes).passed
    assert compare(model(total), original, probes).passed


def test_the_report_holds_no_rows_in_json() -> None:
    facts = check(lambda x: total(x) + 1).to_json()
    assert facts["passed"] is False
    assert facts["probes"] == {"ranges": 1024}
    assert "worst" not in facts
