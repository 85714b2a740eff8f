"""The two exporters of torch: programs to graphs, with the names and free dimensions that were found.

The first captures the program with ``torch.export`` and translates it; it proves that no step depends on
the values of a tensor (https://docs.pytorch.org/docs/stable/onnx_export.html). The second traces it, or takes
TorchScript as it is (``dynamo=False``, https://docs.pytorch.org/docs/2.9/onnx_torchscript.html); it has an
operator for recurrent networks of any length, which the first unrolls, and follows TorchScript's own If and
Loop, but a trace of Python that depends on values is silently wrong: ``Tracing`` tells what it had to assume.
"""

import contextlib
import io
import linecache
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from converters.errors import ConversionRefused
from converters.torch_axes import Axes
from converters.torch_program import Program
from onnx_serve.errors import quote
from onnx_serve.tensors import Tensors

__all__ = [
    "CAPTURE",
    "TRACE",
    "CannotExport",
    "DependsOnData",
    "Export",
    "by_capture",
    "by_trace",
    "name_outputs",
]

_TRACE_MAX_OPSET = 20
_SYMBOL = re.compile(r"[A-Za-z_]\w*")
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
_CAPTURE_LOGGERS = ("torch", "onnxscript", "onnx_ir")
_OWN = Path(__file__).parent
_TORCH = Path(torch.__file__).parent


CAPTURE, TRACE = "torch.export exporter", "TorchScript exporter"


class DependsOnData(ConversionRefused):
    """Which operators run depends on the values of the inputs."""


class CannotExport(Exception):
    """An exporter gives up, which need not be the end.

    Args:
        reason: One line.
        captured: Whether the program was captured, so that its control flow is known not to depend on data.
    """

    def __init__(self, reason: str, *, captured: bool = False) -> None:
        super().__init__(reason)
        self.captured = captured


@dataclass(frozen=True, slots=True)
class Export:
    """A graph.

    Attributes:
        model: With all weights inside.
        exporter: Which one made it.
        bounds: For some symbols, the largest size for which the captured program stands.
    """

    model: onnx.ModelProto
    exporter: str
    bounds: Mapping[str, int] = field(default_factory=dict)


def by_capture(program: Program, example: Tensors, axes: Axes, opset: int) -> Export:
    """Exports with torch.export, ``dynamo=True``.

    Raises:
        CannotExport: A free dimension became fixed, or an operator has no translation.
        DependsOnData: The program's control flow depends on data.
    """
    with _quiet():
        captured = program.exported or _capture(program, example, axes)
        try:
            made = torch.onnx.export(
                captured, dynamo=True, opset_version=opset, verbose=False, optimize=True,
                input_names=list(program.inputs), output_names=list(program.outputs),
            )  # fmt: skip
            model: onnx.ModelProto = made.model_proto
        except Exception as ex:  # torch and what it captures raise what they like
            raise CannotExport(_reason(ex), captured=True) from ex
    _forget_sources(model.graph)
    _name_inputs(model, axes)
    return Export(model, CAPTURE, _bounds(captured, program, axes))


def by_trace(program: Program, example: Tensors, axes: Axes, opset: int, *, follow_values: bool) -> Export:
    """Exports with the TorchScript exporter, ``dynamo=False``.

    Args:
        program: The program.
        example: Its inputs.
        axes: Its free dimensions.
        opset: At most 20 is used.
        follow_values: Whether Python that looks at values may be traced, because it is known to look at
            sizes alone.

    Raises:
        CannotExport: An operator has no translation.
        DependsOnData: The trace fixed what depends on data.
    """
    dynamic: dict[str, dict[int, str]] = {}
    for (name, axis), symbol in axes.names.items():
        dynamic.setdefault(name, {})[axis] = symbol
    buffer = io.BytesIO()
    with _quiet(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            torch.onnx.export(
                program.module, program.tensors(example), buffer, dynamo=False, dynamic_axes=dynamic,
                input_names=list(program.inputs), output_names=list(program.outputs),
                opset_version=min(opset, _TRACE_MAX_OPSET),
            )  # fmt: skip
            model = onnx.load_model_from_string(buffer.getvalue())
        except Exception as ex:  # torch and what it captures raise what they like
            raise CannotExport(_reason(ex)) from ex
    if not follow_values:
        for warning in caught:
            if issubclass(warning.category, torch.jit.TracerWarning) and not _is_library(warning.filename):
                raise _depends_on_data(warning.filename, warning.lineno, str(warning.message).split(".")[0])
    _forget_sources(model.graph)
    _name_inputs(model, axes)
    return Export(model, TRACE)


def name_outputs(model: onnx.ModelProto, axes: Axes, runs: list[tuple[Tensors, Tensors]]) -> None:
    """Gives the outputs the dimensions that they were seen to have.

    Exporters sometimes declare a fixed size, or another symbol, where an output follows an input.

    Args:
        model: Changed in place.
        axes: The free dimensions.
        runs: Feeds of different sizes, each with the original's answers.
    """
    for output in model.graph.output:
        shapes = [answers[output.name].shape for _, answers in runs]
        dims = output.type.tensor_type.shape.dim
        if len(dims) != len(shapes[0]) or len({len(shape) for shape in shapes}) > 1:
            continue
        for axis, dim in enumerate(dims):
            sizes = [shape[axis] for shape in shapes]
            if len(set(sizes)) == 1:
                continue
            symbol = next((symbol for symbol in dict.fromkeys(axes.names.values())
                           if sizes == [_size(feed, axes, symbol) for feed, _ in runs]), None)  # fmt: skip
            if symbol is not None and (axis == 0) <= axes.rows:
                dim.dim_param = symbol
            elif dim.HasField("dim_value"):
                dim.dim_param = f"{output.name}_{axis}"


def _capture(program: Program, example: Tensors, axes: Axes) -> Any:
    free = torch.export.Dim.DYNAMIC
    shapes = tuple(
        {axis: free for axis in range(example[name].ndim) if (name, axis) in axes.names}
        for name in program.inputs
    )
    try:
        with torch.no_grad():
            return torch.export.export(
                program.module, program.tensors(example), dynamic_shapes={"tensors": shapes}, strict=False
            )
    except Exception as ex:
        for cause in (ex, ex.__cause__, ex.__context__):
            if isinstance(cause, GuardOnDataDependentSymNode):
                place, line = _place(cause)
                raise _depends_on_data(place, line, str(cause).split(" (")[0]) from ex
        raise CannotExport(_reason(ex), captured="Constraints violated" in str(ex)) from ex


def _depends_on_data(file: str, line: int, reason: str) -> DependsOnData:
    code = linecache.getline(file, line).strip()
    place = f"{Path(file).name}:{line}" if file else "an unknown place"
    return DependsOnData(
        f"the module's control flow depends on the values of its inputs, at {place}"
        f"{f': {quote(code)}' if code else ''} ({reason}). A graph has no such branch: use torch.where or torch.cond, "
        "or give the module as TorchScript (torch.jit.script), whose if and for are kept"
    )


def _place(ex: BaseException) -> tuple[str, int]:
    """The innermost line of the user's own code that an exception passed through."""
    found = ("", 0)
    traceback = ex.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not _is_library(file):
            found = (file, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def _is_library(file: str) -> bool:
    return file.startswith("<") or Path(file).is_relative_to(_TORCH) or Path(file).parent == _OWN


def _reason(ex: BaseException) -> str:
    """The first telling line of the innermost cause."""
    while ex.__cause__ is not None:
        ex = ex.__cause__
    lines = [line.strip(" -") for line in str(ex).splitlines() if line.strip()]
    # "Constraints violated (L['x'].size()[1])!" is explained by the line after it.
    line = lines[1] if len(lines) > 1 and lines[0].startswith("Constraints violated") else (lines or [""])[0]
    return f"{type(ex).__name__}: {line}"[:300]


def _forget_sources(graph: onnx.GraphProto) -> None:
    """Drops the stack traces that exporters note at each node: they hold paths of the machine, and code."""
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in _GRAPHS else ():
                _forget_sources(inner)


def _name_inputs(model: onnx.ModelProto, axes: Axes) -> None:
    """Renames the exporter's symbols to those of the axes, everywhere in the graph.

    Raises:
        CannotExport: A free dimension has become fixed.
    """
    symbols: dict[str, str] = {}
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            symbol = axes.names.get((value.name, axis))
            if symbol is None:
                continue
            if not dim.dim_param:
                raise CannotExport(
                    f"dimension {axis} of input {quote(value.name)} became fixed at {dim.dim_value}",
                    captured=True,
                )
            symbols.setdefault(dim.dim_param, symbol)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = _SYMBOL.sub(lambda found: symbols.get(found[0], found[0]), dim.dim_param)


def _bounds(captured: Any, program: Program, axes: Axes) -> dict[str, int]:
    """The largest sizes that the captured program allows, for symbols that have one."""
    placeholders = {node.name: node for node in captured.graph.nodes if node.op == "placeholder"}
    bounds: dict[str, int] = {}
    names = dict(zip(captured.graph_signature.user_inputs, program.inputs, strict=False))
    for node_name, name in names.items():
        value = placeholders[node_name].meta.get("val") if node_name in placeholders else None
        for axis, size in enumerate(getattr(value, "shape", ())):
            symbol = axes.names.get((name, axis))
            allowed = captured.range_constraints.get(getattr(getattr(size, "node", None), "expr", None))
            if symbol is not None and allowed is not None and _is_finite(allowed.upper):
                bounds[symbol] = int(allowed.upper)
    return bounds


def _is_finite(bound: Any) -> bool:
    # Unbounded sizes end at sympy's int_oo, or at sys.maxsize - 1.
    return bool(bound.is_Integer) and int(bound) < 1 << 31


def _size(feed: Tensors, axes: Axes, symbol: str) -> int:
    name, axis = axes.of(symbol)[0]
    return int(feed[name].shape[axis])


@contextlib.contextmanager
def _nowhere() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters log, warn and print page after page; what matters of it is in the exceptions."""
    loggers = [logging.getLogger(name) for name in _CAPTURE_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), _nowhere():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
