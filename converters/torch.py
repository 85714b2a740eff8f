"""PyTorch models: exported, scripted, pickled, or a state dict with the factory of its module.

The exporters are tried in turn, each with the free dimensions that the original was seen to have, and
each graph is judged before it is taken: at the sample's rows, at fresh rows in batches of 1, 2, 7 and 9,
and at other lengths. The first that answers as the original does is the conversion; what the ones before
it failed on becomes a note.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from converters.errors import ConversionError, ConversionRefused, MissingExtra

try:
    import onnx  # noqa: F401  as is onnxscript
    import onnxscript  # noqa: F401  the exporter imports it only when it runs
    import torch
except ModuleNotFoundError as ex:
    raise MissingExtra("convert-torch", ex.name or "torch") from None

from converters import parity, torch_sample
from converters.artifact import Format
from converters.conversion import Conversion, Progress, Request, load_graph, override, say_nothing
from converters.external_data import EXTERNAL_BYTES, split_weights
from converters.graph import OPSET
from converters.torch_axes import Axes, batch_positions, infer, parse, runs_again
from converters.torch_exporters import (
    CAPTURE,
    TRACE,
    CannotExport,
    DependsOnData,
    Export,
    by_capture,
    by_trace,
    name_outputs,
)
from converters.torch_feeds import CannotRun, resize, unlike_all
from converters.torch_file import read_model
from converters.torch_inputs import exported_axes
from converters.torch_probes import example_for, make_probes
from converters.torch_program import Program, bind, fast_path_differs
from onnx_serve.errors import ServeError, quote
from onnx_serve.model import SessionOptions, load_model
from onnx_serve.tensors import Array, Tensors

__all__ = ["TOLERANCES", "Options", "convert", "convert_file", "convert_object"]

# Float32 sums in another order; torch's own check of exported models allows the same share
# (https://docs.pytorch.org/docs/2.9/onnx_verification.html).
TOLERANCES = parity.Tolerances(rtol=1e-3, atol=5e-5)
_MIN_OPSET, _MAX_OPSET = 18, 23
_OPTIONS = ("factory", "import_path", "dynamic", "opset")


@dataclass(frozen=True, slots=True)
class Options:
    """How a torch model is converted.

    Attributes:
        dynamic: Free dimensions, ``("x:0=batch", "x:1=length")``; if any are named, none are inferred. A
            ``batch`` (or ``N``, ``rows``) on another dimension than 0 is moved there.
        opset: The ONNX operator set, 18 to 23; by default that of ``targets.converting_for``.
        external_bytes: Weights of more bytes than that in all go to a file beside the graph.
    """

    dynamic: tuple[str, ...] = ()
    opset: int = field(default_factory=lambda: OPSET[""])
    external_bytes: int = EXTERNAL_BYTES


def convert_file(request: Request, kind: Format, progress: Progress = say_nothing) -> Conversion:
    """Converts a ``.pt2`` archive, TorchScript, or what ``torch.save`` or safetensors wrote.

    The request's options: ``factory`` (``module:callable``), ``import_path`` (the absolute path of the folder
    it is in), ``dynamic`` (``x:0=batch,x:1=length``) and ``opset``. Trusted code of the artifact runs in this
    process.

    Raises:
        ConversionError: The artifact, the sample or an option is not what was expected.
        ConversionRefused: No graph answers as the original does.
    """
    options = _options(request)
    progress("reading the artifact")
    model = read_model(
        Path(request.artifact),
        kind,
        factory=request.options.get("factory", ""),
        import_path=request.options.get("import_path", ""),
        trust_pickle=request.trust_pickle,
    )
    return _convert(model, request, options, progress)


def convert_object(model: Any, request: Request, progress: Progress = say_nothing) -> Conversion:
    """Converts a module that has been unpickled; for options and errors see ``convert_file``."""
    if "factory" in request.options:
        raise ConversionError("factory: the pickle holds its module; a factory is for state dicts")
    return _convert(model, request, _options(request), progress)


def _convert(model: Any, request: Request, options: Options, progress: Progress) -> Conversion:
    sample = torch_sample.read(Path(request.sample)) if request.sample else None
    return convert(model, sample, options=options, progress=progress, tolerances=request.tolerances)


def _options(request: Request) -> Options:
    unknown = [name for name in request.options if name not in _OPTIONS]
    if unknown:
        raise ConversionError(f"option: expected one of {', '.join(_OPTIONS)}, got {quote(unknown[0])}")
    opset = request.options.get("opset", str(OPSET[""]))
    if not opset.isdecimal():
        raise ConversionError(f"opset: expected a number, got {quote(opset)}")
    words = request.options.get("dynamic", "").split(",")
    return Options(tuple(word.strip() for word in words if word.strip()), int(opset[:9]))


def convert(
    model: Any,
    sample: Mapping[str, Array] | Array | None = None,
    *,
    options: Options | None = None,
    progress: Progress = say_nothing,
    tolerances: Mapping[str, float] | None = None,
) -> Conversion:
    """Converts an ``nn.Module`` (which is put in evaluation mode), ``ScriptModule`` or ``ExportedProgram``.

    Args:
        model: The original, on the CPU.
        sample: Arrays by the names of ``forward``'s parameters, or one array for the first; one row
            will do. Only an exported program that carries its example can do without.
        options: Dimensions and versions.
        progress: Told what is being done.
        tolerances: Overrides of ``TOLERANCES``, by field.

    Returns:
        The graph; if its weights are external, their file is in a temporary folder that the caller removes.

    Raises:
        ConversionError: The model cannot run the sample, or an option does not fit it.
        ConversionRefused: Its control flow depends on data, it is random, or no graph answers as it does.
    """
    options = options or Options()
    if not _MIN_OPSET <= options.opset <= _MAX_OPSET:
        raise ConversionError(f"opset: expected {_MIN_OPSET} to {_MAX_OPSET}, got {options.opset}")
    notes: list[str] = []
    progress("running the original at other sizes")
    feed = torch_sample.to_feed(model, sample, notes)
    given = parse(options.dynamic, feed)
    if isinstance(model, torch.export.ExportedProgram) and not given:
        given = exported_axes(model)
    program, feed, given = _bound(model, feed, given, notes)
    for name, array in runs_again(program, feed).items():
        if not array.ndim:
            raise ConversionRefused(
                f"output {quote(name)} is one number for the whole request, of no dimension: give it one in the "
                "module's forward, such as y.reshape(1)"
            )
    if fast_path_differs(program, feed):
        notes.append(
            "the model answers as torch does after torch.backends.mha.set_fastpath_enabled(False); the fast path for "
            "transformers answers padded positions otherwise"
        )
    axes = _axes(program, feed, given)
    allowed = override(TOLERANCES, tolerances or {})
    conversion = _first_proven(program, feed, axes, options, allowed, progress)
    return replace(conversion, notes=(*notes, *conversion.notes))


def _bound(
    model: Any, feed: Tensors, given: dict[tuple[str, int], str], notes: list[str]
) -> tuple[Program, Tensors, dict[tuple[str, int], str]]:
    """The program, its feed and its named dimensions, with the batch first wherever the model has it."""
    program, feed = _bound_in_kind(model, feed, notes)
    feed = {name: feed[name] for name in program.inputs}
    places = batch_positions(given)
    if not places:
        return program, feed, given
    before = program(feed)
    rows = {feed[name].shape[axis] for name, axis in places.items()}
    size = unlike_all(feed)
    after = program(resize(feed, dict.fromkeys(places.items(), size)))
    moves = []
    for name, array in before.items():
        changed = [
            axis
            for axis in range(array.ndim)
            if array.shape[axis] in rows and after[name].shape[axis : axis + 1] == (size,)
        ]
        moves.append(changed[0] if changed else 0)
    notes.append(
        "the batch comes first in the served model: "
        + ", ".join(
            f"{quote(name)} has it on dimension {axis} in torch" for name, axis in places.items() if axis
        )
    )
    feed = {name: np.moveaxis(array, places.get(name, 0), 0) for name, array in feed.items()}
    moved = {
        (name, 0 if axis == place else axis + (axis < place)): symbol
        for (name, axis), symbol in given.items()
        for place in (places.get(name, 0),)
    }
    return bind(model, feed, batch_inputs=places, batch_outputs=moves), feed, moved


def _bound_in_kind(model: Any, feed: Tensors, notes: list[str]) -> tuple[Program, Tensors]:
    """The program and its feed; whole numbers, as text has them, become floats if it takes no others."""
    try:
        return bind(model, feed), feed
    except CannotRun:
        kind = torch_sample.weight_type(model)
        floats = {
            name: array.astype(kind) if array.dtype.kind in "iu" else array for name, array in feed.items()
        }
        try:
            program = bind(model, floats)
        except CannotRun:
            program = None
        if program is None:
            raise
    notes.append(f"the sample's whole numbers were taken as {kind}, the type of the weights")
    return program, floats


def _axes(program: Program, feed: Tensors, given: dict[tuple[str, int], str]) -> Axes:
    """The free dimensions; where rows depend on each other, perhaps because a branch looks at values."""
    try:
        return infer(program, feed, given, declared=program.exported is not None)
    except ConversionRefused:
        if not program.scripted:
            with contextlib.suppress(CannotExport):
                by_capture(program, feed, Axes(), OPSET[""])
        raise


def _first_proven(
    program: Program,
    feed: Tensors,
    axes: Axes,
    options: Options,
    tolerances: parity.Tolerances,
    progress: Progress,
) -> Conversion:
    """Tries exporters and dimensions in turn.

    Raises:
        ConversionRefused: None answers as the original does; the reason of each is given.
    """
    failures: list[str] = []
    bounds: dict[str, int] = {}
    captured = program.scripted
    for exporter, free in _attempts(program, axes):
        attempt = exporter if free is axes else f"{exporter} at a fixed length"
        progress(f"exporting with the {attempt}")
        example = example_for(feed, free)
        try:
            if exporter == CAPTURE:
                export = by_capture(program, example, free, options.opset)
                captured = True
                bounds |= export.bounds
            else:
                export = by_trace(program, example, free, options.opset, follow_values=captured)
            found = _proven(program, feed, free, export, bounds, tolerances, options.external_bytes)
            failed = tuple(f"not with the {failure}" for failure in failures)
            return replace(found, notes=(found.notes[0], *failed, *found.notes[1:]))
        except DependsOnData as ex:
            # What the capture failed on comes first: it may be all there is to mend.
            raise DependsOnData("; ".join([*failures, str(ex)])) from ex
        except (CannotExport, ServeError) as ex:
            captured = captured or (isinstance(ex, CannotExport) and ex.captured)
            failures.append(f"{attempt}: {' '.join(str(ex).splitlines()[:3])[:300]}")
    raise ConversionRefused(
        "no graph could be made that answers as the module does; tried the " + "; the ".join(failures)
    )


def _attempts(program: Program, axes: Axes) -> Iterator[tuple[str, Axes]]:
    exporters = (TRACE,) if program.scripted else (CAPTURE, TRACE)
    fixed = axes.without_lengths()
    # An exported program has the free dimensions that it was exported with.
    for free in (axes,) if fixed.names == axes.names or program.exported else (axes, fixed):
        for exporter in exporters:
            yield exporter, free


def _proven(
    program: Program,
    feed: Tensors,
    axes: Axes,
    export: Export,
    bounds: Mapping[str, int],
    tolerances: parity.Tolerances,
    external_bytes: int,
) -> Conversion:
    """The conversion, if the graph answers as the original does.

    Raises:
        ServeError: onnxruntime cannot load the graph, or it answers otherwise.
    """
    probes = tuple(make_probes(program, feed, axes, bounds))
    cases = tuple(parity.Case(probe, program(probe.feed)) for probe in probes)
    name_outputs(export.model, axes, [(case.probe.feed, case.expected) for case in cases])
    opset = next(entry.version for entry in export.model.opset_import if not entry.domain)
    notes = (f"exported with the {export.exporter}, opset {opset}", *_describe(axes, bounds))
    folder = Path(tempfile.mkdtemp(prefix="onnx-serve-torch-"))
    external: dict[str, Path] = {}
    try:
        graph, external = split_weights(export.model, folder, external_bytes)
        model = (
            load_model(folder / "model.onnx", "model", SessionOptions()) if external else load_graph(graph)
        )
        parity.gate(parity.judge(model, cases, tolerances))
    except BaseException:
        external = {}
        raise
    finally:
        if not external:
            shutil.rmtree(folder, ignore_errors=True)
    return Conversion(
        graph,
        "torch",
        program.family,
        cases,
        tolerances,
        notes=notes,
        external=external,
        properties={"onnx_serve.exporter": export.exporter},
    )


def _describe(axes: Axes, bounds: Mapping[str, int]) -> Iterator[str]:
    if not axes.names:
        yield "no dimension is free: the module runs at the sample's sizes alone"
    for symbol in dict.fromkeys(axes.names.values()):
        places = ", ".join(f"dimension {axis} of {quote(name)}" for name, axis in axes.of(symbol))
        most = f", at most {bounds[symbol]}" if symbol in bounds else ""
        yield f"{symbol} is free{most}: {places}"
    if axes.names and not axes.rows:
        yield (
            "dimension 0 does not count rows, so each request is one run; if another dimension is the batch, name it "
            "with --dynamic input:1=batch"
        )
