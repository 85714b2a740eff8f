"""Optional steps after a proven conversion: offline optimisation, half precision, 8-bit weights.

Each step passes the same gate with a tolerance of its own, and is dropped with a note if it makes the model
slower (optimisation) or cannot be loaded; sizes and speeds before and after go to ``parity.json``.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from converters import parity
from converters.conversion import Conversion, Progress, load_graph, model_bytes, override
from converters.errors import ConversionError, ConversionRefused, MissingExtra
from onnx_serve.errors import ModelError, quote
from onnx_serve.model import Model
from onnx_serve.tensors import conform

__all__ = ["STEPS", "apply"]

_REPEATS = 15


def _optimize(model: onnx.ModelProto) -> onnx.ModelProto:
    """What onnxruntime makes of the graph with fusions that hold on any CPU (level "extended")."""
    with tempfile.TemporaryDirectory(prefix="onnx-serve-optimize-") as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "optimized.onnx"
        source.write_bytes(model_bytes(model))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(target)
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
        return onnx.load(str(target))


def _float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Half precision inside, the same types outside."""
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415  needs packages of its own
    except ImportError as ex:
        raise MissingExtra("convert-torch", ex.name or "onnxruntime.transformers") from None
    changed: onnx.ModelProto = convert_float_to_float16(
        onnx.shape_inference.infer_shapes(model), keep_io_types=True
    )
    return changed


def _quantize(model: onnx.ModelProto) -> onnx.ModelProto:
    """8-bit weights; activations are quantised at run time, by the range of all rows of the run."""
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415
    except ImportError as ex:
        raise MissingExtra("convert-torch", ex.name or "onnxruntime.quantization") from None
    with tempfile.TemporaryDirectory(prefix="onnx-serve-quantize-") as folder:
        target = Path(folder) / "quantized.onnx"
        source = Path(folder) / "model.onnx"
        source.write_bytes(model_bytes(model))
        quantize_dynamic(source, target, weight_type=QuantType.QInt8)
        return onnx.load(str(target))


STEPS: Mapping[str, tuple[Callable[[onnx.ModelProto], onnx.ModelProto], parity.Tolerances | None]] = {
    "optimize": (_optimize, None),
    "float16": (_float16, parity.Tolerances(rtol=1e-2, atol=2e-3, ties=0.05)),
    # A few rows in a hundred may get another label: that is the price, and the report states it.
    "quantize": (_quantize, parity.Tolerances(rtol=0.1, atol=0.1, ties=0.05, rows=0.05)),
}


def apply(
    conversion: Conversion, steps: Sequence[str], overrides: Mapping[str, float], progress: Progress
) -> tuple[Conversion, dict[str, Any]]:
    """Applies the steps in order; returns the conversion and the figures of each.

    Raises:
        ConversionRefused: A step's model is outside its tolerance.
        ConversionError: The weights are external, or a step cannot handle the graph.
    """
    figures: list[dict[str, Any]] = []
    for name in steps:
        if conversion.external:
            raise ConversionError(f"--{name}: weights in external files are not supported")
        progress(f"{name}: changing the graph")
        change, own = STEPS[name]
        before = load_graph(conversion.model)
        try:
            model = change(conversion.model)
            after = load_graph(model)
        except ConversionError:
            raise
        except ModelError as ex:
            raise ConversionRefused(f"--{name}: the changed model cannot be served: {ex}") from ex
        except Exception as ex:  # tools of onnxruntime, which raise what they like
            raise ConversionError(
                f"--{name}: onnxruntime's tool cannot handle this model: {quote(ex)}"
            ) from ex
        changed = replace(
            conversion, model=model, tolerances=override(own or conversion.tolerances, overrides)
        )
        parity.gate(parity.judge(after, changed.cases, changed.tolerances))
        entry = _figures(name, conversion, changed, before, after)
        figures.append(entry)
        progress(
            "{step}: {bytes_before} -> {bytes_after} bytes, {us_before} -> {us_after} us a run".format(
                **entry
            )
        )
        if name == "optimize" and entry["us_after"] > 1.05 * entry["us_before"]:
            entry["kept"] = False
            progress("optimize: slower, so the graph stays as it was")
            continue
        if name == "quantize":
            note = "quantised dynamically: a row's answer depends on the rows beside it, so the server runs rows alone"
            changed = replace(changed, notes=(*changed.notes, note))
            progress(f"note: {note}")
        conversion = changed
    return conversion, {"steps": figures} if figures else {}


def _figures(name: str, old: Conversion, new: Conversion, before: Model, after: Model) -> dict[str, Any]:
    feed = old.cases[0].probe.feed
    first, second = _alternate(before, after, feed)
    return {
        "step": name,
        "kept": True,
        "bytes_before": old.model.ByteSize(),
        "bytes_after": new.model.ByteSize(),
        "us_before": round(first * 1e6),
        "us_after": round(second * 1e6),
    }


def _alternate(before: Model, after: Model, feed: Mapping[str, Any]) -> tuple[float, float]:
    """Median seconds of a run of each, measured in turn, so that a busy machine slows both."""
    feeds = [conform(feed, model.signature) for model in (before, after)]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_REPEATS):
        for model, rows, spent in zip((before, after), feeds, times, strict=True):
            start = time.perf_counter()
            model.run(rows)
            spent.append(time.perf_counter() - start)
    return float(np.median(times[0])), float(np.median(times[1]))
