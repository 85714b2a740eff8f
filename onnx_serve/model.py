"""One loaded model.

Everything else sees a ``Model``: its signature, and ``run`` from a feed to outputs. Sessions are shared by
threads; onnxruntime releases the interpreter's lock while it runs.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnx_serve import cuda, ort_values, rows
from onnx_serve.errors import InputRefused, ModelError, OutOfMemory
from onnx_serve.model_files import input_shapes
from onnx_serve.model_files.zip_maps import UnzippedModel, ZipMap
from onnx_serve.run_errors import one_line, run_error
from onnx_serve.session import SessionOptions, open_session, ort
from onnx_serve.tensors import Feed, RowAxis, Signature, TensorSpec, Values

__all__ = ["Model", "SessionOptions", "load_model"]

Run = Callable[[Feed], Values]


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be run.

    Attributes:
        name: What callers call it.
        signature: Its inputs and outputs, and how they relate to records.
        run: From a feed (arrays of exactly the signature's types and shapes) to the outputs by name.
            Thread-safe. Raises ``InferenceError``, ``InputRefused`` or ``OutOfMemory``.
        providers: The execution providers of the session, in order of preference.
        provider_options: By provider, the options that onnxruntime took, spelled its way.
        session_options: What the session was made with, spelled onnxruntime's way.
        metadata: The model's own key-value pairs.
        end_profiling: Ends the profile that the session options asked for and gives the path of its file.
    """

    name: str
    signature: Signature
    run: Run
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    provider_options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    session_options: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    end_profiling: Callable[[], Path] | None = None


def load_model(path: Path, name: str, options: SessionOptions) -> Model:
    """Loads a model file and runs it, so that what it declares is known to be true.

    The caller has checked the file (``model_check.check_model_file``).

    Raises:
        ModelError: onnxruntime cannot load it, an execution provider is missing, an output is unknown, or
            an input or output has a type that Python cannot feed or get.
    """
    session, unzipped = open_session(path, name, options)
    declared = Signature(
        _inputs(session, path),
        _select(_outputs(session, unzipped), options.outputs),
        RowAxis.NONE,
        defaults=tuple(map(_spec, session.get_overridable_initializers())),
    )
    zip_maps = {} if unzipped is None else unzipped.zip_maps
    run = _runner(session, declared, zip_maps=zip_maps, io_binding=options.io_binding, arena=_arena(session))
    return Model(
        name,
        rows.warm_up(run, rows.infer_row_axis(declared), name, options.row_wish, options.sample),
        run,
        tuple(session.get_providers()),
        session.get_provider_options(),
        _echo(session.get_session_options(), options.config or {}),
        dict(session.get_modelmeta().custom_metadata_map),
        (lambda: Path(session.end_profiling())) if options.profile else None,
    )


def _arena(session: ort.InferenceSession) -> str:
    """The arena of the GPU that a session runs on first of all, or nothing."""
    options = session.get_provider_options().get(cuda.CUDA)
    return "" if options is None else f"gpu:{options.get('device_id', 0)}"


def _echo(taken: ort.SessionOptions, config: Mapping[str, str]) -> dict[str, str]:
    entries = {key: taken.get_session_config_entry(key) for key in config}
    return {
        "intra_op_num_threads": str(taken.intra_op_num_threads),
        "inter_op_num_threads": str(taken.inter_op_num_threads),
        "enable_mem_pattern": str(taken.enable_mem_pattern),
        **entries,
    }


def _spec(node: ort.NodeArg) -> TensorSpec:
    shape = node.shape if isinstance(node.shape, list) else []
    # Paddle's exporter writes "?" for every size that it does not know: no symbol, for two of them may differ.
    return TensorSpec(node.name, node.type, tuple(None if size == "?" else size for size in shape))


def _inputs(session: ort.InferenceSession, path: Path) -> tuple[TensorSpec, ...]:
    specs = tuple(map(_spec, session.get_inputs()))
    if all(spec.shape or not spec.is_tensor for spec in specs):
        return specs
    names = input_shapes.undeclared(path)
    return tuple(
        replace(spec, any_shape=spec.is_tensor and not spec.shape and (names is None or spec.name in names))
        for spec in specs
    )


def _outputs(session: ort.InferenceSession, unzipped: UnzippedModel | None) -> tuple[TensorSpec, ...]:
    """Those of the file: maps where the session gives what they are made of."""
    specs = tuple(map(_spec, session.get_outputs()))
    if unzipped is None:
        return specs
    by_name = {spec.name: spec for spec in specs}
    maps = {name: TensorSpec(name, zip_map.onnx_type, ()) for name, zip_map in unzipped.zip_maps.items()}
    return tuple(maps.get(name) or by_name[name] for name in unzipped.outputs)


def _select(outputs: tuple[TensorSpec, ...], names: Sequence[str]) -> tuple[TensorSpec, ...]:
    by_name = {spec.name: spec for spec in outputs}
    for name in names:
        if name not in by_name:
            raise ModelError(f'outputs: the model has no output "{name}", only {", ".join(by_name)}')
    return tuple(by_name[name] for name in names) if names else outputs


def _runner(
    session: ort.InferenceSession,
    declared: Signature,
    *,
    zip_maps: Mapping[str, ZipMap],
    io_binding: bool,
    arena: str = "",
) -> Run:
    """A run whose errors say whose fault they are.

    Args:
        session: The session.
        declared: The model's inputs, and the outputs wanted.
        zip_maps: What the session is without, by output.
        io_binding: See ``SessionOptions``.
        arena: The arena to tidy up when a run does not fit, in onnxruntime's words (``"gpu:0"``); empty for none. One
            that grows by what is asked for ends up in pieces where shapes vary, too small for a run that fits easily.
            What no run uses is given back at the end of a run with that option, also of one that fails:
            onnxruntime_run_options_config_keys.h.

    Raises:
        ModelError: A value has a type that onnxruntime's Python interface does not take or give.
    """

    def make(run_options: ort.RunOptions | None) -> Run:
        call = ort_values.make_call(
            session,
            declared,
            ort.OrtValue,
            zip_maps=zip_maps,
            io_binding=io_binding,
            run_options=run_options,
        )

        def run(feed: Feed) -> Values:
            try:
                return call(feed)
            except InputRefused:
                raise
            except Exception as ex:  # onnxruntime's own classes, RuntimeError, and others
                raise run_error(one_line(ex)) from ex

        return run

    run = make(None)
    if not arena:
        return run
    tidying = ort.RunOptions()
    tidying.log_severity_level = 4
    tidying.add_run_config_entry("memory.enable_memory_arena_shrinkage", arena)
    run_and_tidy = make(tidying)

    def run_or_tidy(feed: Feed) -> Values:
        with contextlib.suppress(OutOfMemory):
            return run(feed)
        with contextlib.suppress(OutOfMemory):
            return run_and_tidy(feed)
        return run(feed)

    return run_or_tidy
