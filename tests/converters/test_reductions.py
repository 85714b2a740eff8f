"""Steps after a conversion: what they do when onnxruntime's tools fail, are missing, or make nothing better."""

import itertools
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.errors import ConversionError, ConversionRefused, MissingExtra

try:
    import onnx
    from onnxruntime import quantization
    from sklearn.linear_model import Ridge

    from converters import conversion, reductions, sklearn
except (ModuleNotFoundError, MissingExtra) as ex:
    pytest.skip(f"models cannot be converted here: {ex}", allow_module_level=True)

RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def converted() -> conversion.Conversion:
    rows = RNG.normal(size=(40, 6))
    return sklearn.convert(Ridge().fit(rows, rows[:, :2]))


def said(words: list[str]) -> Any:
    return words.append


@pytest.mark.parametrize(
    ("step", "module"),
    [("float16", "onnxruntime.transformers.float16"), ("quantize", "onnxruntime.quantization")],
)
def test_a_tool_that_is_not_there_is_named_with_what_installs_it(
    step: str, module: str, converted: conversion.Conversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match="convert-torch"):
        reductions.apply(converted, [step], {}, print)


def test_a_tool_that_fails_is_one_line(
    converted: conversion.Conversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("weights")

    monkeypatch.setattr(quantization, "quantize_dynamic", fail)
    with pytest.raises(ConversionError, match="--quantize: onnxruntime's tool cannot handle this model"):
        reductions.apply(converted, ["quantize"], {}, print)


def test_a_changed_model_that_cannot_be_loaded_is_refused(
    converted: conversion.Conversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(source: Path, target: Path, **_: object) -> None:
        model = onnx.load(str(source))
        model.graph.node[0].op_type = "NoSuchOperator"
        onnx.save(model, str(target))

    monkeypatch.setattr(quantization, "quantize_dynamic", spoil)
    with pytest.raises(ConversionRefused, match="--quantize: the changed model cannot be served"):
        reductions.apply(converted, ["quantize"], {}, print)


def test_an_optimised_graph_that_is_slower_is_not_kept(
    converted: conversion.Conversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which each run after the change takes twice as long as before it."""
    ticks = itertools.accumulate(itertools.cycle([0.0, 1.0, 0.0, 2.0]))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    words: list[str] = []
    after, figures = reductions.apply(converted, ["optimize"], {}, said(words))
    assert after.model is converted.model
    assert [step["kept"] for step in figures["steps"]] == [False]
    assert words[-1] == "optimize: slower, so the graph stays as it was"


def test_an_optimised_graph_that_is_faster_is_kept(
    converted: conversion.Conversion, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = itertools.accumulate(itertools.cycle([0.0, 2.0, 0.0, 1.0]))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    after, figures = reductions.apply(converted, ["optimize"], {}, print)
    assert after.model is not converted.model
    assert [step["kept"] for step in figures["steps"]] == [True]
    assert conversion.judge(after).passed


def test_a_quantised_model_says_that_its_rows_depend_on_each_other(converted: conversion.Conversion) -> None:
    after, _ = reductions.apply(converted, ["quantize"], {}, print)
    assert any("the server runs rows alone" in note for note in after.notes)


def test_half_precision_keeps_the_types_outside(converted: conversion.Conversion) -> None:
    after, figures = reductions.apply(converted, ["float16"], {}, print)
    assert [step["step"] for step in figures["steps"]] == ["float16"]
    assert [value.type for value in after.model.graph.input] == [
        value.type for value in converted.model.graph.input
    ]


def test_external_weights_are_refused(converted: conversion.Conversion, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="--optimize: weights in external files"):
        reductions.apply(replace(converted, external={"w": tmp_path / "w"}), ["optimize"], {}, print)


def test_no_steps_change_nothing(converted: conversion.Conversion) -> None:
    assert reductions.apply(converted, [], {}, print) == (converted, {})


def test_a_step_outside_its_tolerance_is_refused(converted: conversion.Conversion) -> None:
    cases = tuple(
        replace(case, expected={name: array + 1 for name, array in case.expected.items()})
        for case in converted.cases
    )
    with pytest.raises(ConversionRefused, match="does not answer as the original does"):
        reductions.apply(replace(converted, cases=cases), ["optimize"], {}, print)
