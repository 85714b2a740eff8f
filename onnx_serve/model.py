"""One loaded model.

Everything else sees a ``Model``: its signature, and ``run`` from a feed to outputs. Sessions are shared by
threads; onnxruntime releases the interpreter's lock while it runs.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnx_serve import cuda, ort_values, rows
from onnx_serve.abandonment import Deadline, Gone, RunWatch
from onnx_serve.errors import Abandoned, DeadlineExceeded, InputRefused, ModelError, OutOfMemory
from onnx_serve.model_files import input_shapes
from onnx_serve.model_files.zip_maps import UnzippedModel
from onnx_serve.run_errors import one_line, run_error
from onnx_serve.session import SessionOptions, open_session, ort
from onnx_serve.tensors import Feed, RowAxis, Signature, TensorSpec, Values

__all__ = ["Model", "SessionOptions", "load_model"]

# No caller of a real-time endpoint waits longer for an answer
# (https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html).
_TRIAL_S = 60.0


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be run.

    Attributes:
        name: What callers call it.
        signature: Its inputs and outputs, and how they relate to records.
        run: From a feed (arrays of exactly the signature's types and shapes) to the outputs by name.
            Thread-safe. Raises ``InferenceError``, ``InputRefused`` or ``OutOfMemory``.
        run_watched: The same for somebody who may leave, as the second argument tells: then it ends before the next
            node and raises ``Abandoned``. None if its runs cannot be ended.
        providers: The execution providers of the session, in order of preference.
        provider_options: By provider, the options that onnxruntime took, spelled its way.
        session_options: What the session was made with, spelled onnxruntime's way.
        metadata: The model's own key-value pairs.
        end_profiling: Ends the profile that the session options asked for and gives the path of its file.
    """

    name: str
    signature: Signature
    run: Callable[[Feed], Values]
    run_watched: Callable[[Feed, Gone], Values] | None = None
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
    call = ort_values.make_call(
        session, declared, ort.OrtValue, zip_maps=zip_maps, io_binding=options.io_binding
    )
    runner = _Runner(call, _arena(session))
    signature = rows.infer_row_axis(declared)
    return Model(
        name,
        rows.warm_up(runner.try_out, signature, name, options.row_wish, options.sample),
        runner.run,
        runner.run_watched,
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


class _Runner:
    """Runs of a session whose errors say whose fault they are. Thread-safe.

    Args:
        call: A run of the session.
        arena: The arena to tidy up when a run does not fit, in onnxruntime's words (``"gpu:0"``); empty for none. One
            that grows by what is asked for ends up in pieces where shapes vary, too small for a run that fits easily.
            What no run uses is given back at the end of a run with that option, also of one that fails:
            onnxruntime_run_options_config_keys.h.
    """

    def __init__(self, call: ort_values.Call, arena: str) -> None:
        self._call = call
        self._arena = arena
        self._watch = RunWatch()

    def run(self, feed: Feed) -> Values:
        """See ``Model.run``."""
        return self._run_or_tidy(feed, None)

    def run_watched(self, feed: Feed, gone: Gone) -> Values:
        """See ``Model.run_watched``."""
        options = _run_options()
        with self._watch.over(options, gone):
            return self._run_or_tidy(feed, options)

    def try_out(self, feed: Feed) -> Values:
        """A run that is not known to end.

        Raises:
            DeadlineExceeded: It does not, or not soon.
        """
        deadline = Deadline(_TRIAL_S)
        try:
            return self.run_watched(feed, lambda: deadline.passed)
        except Abandoned:
            raise DeadlineExceeded(f"a run to try it did not end within {_TRIAL_S:g} s") from None

    def _run_or_tidy(self, feed: Feed, options: ort.RunOptions | None) -> Values:
        if not self._arena:
            return self._run(feed, options)
        with contextlib.suppress(OutOfMemory):
            return self._run(feed, options)
        options = options or _run_options()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", self._arena)
        with contextlib.suppress(OutOfMemory):
            return self._run(feed, options)
        return self._run(feed, options)

    def _run(self, feed: Feed, options: ort.RunOptions | None) -> Values:
        try:
            return self._call(feed, options)
        except InputRefused:
            raise
        except Exception as ex:  # onnxruntime's own classes, RuntimeError, and others
            raise run_error(one_line(ex)) from ex


def _run_options() -> ort.RunOptions:
    options = ort.RunOptions()
    # As in the session's own: what goes wrong is raised, and said once, by us.
    options.log_severity_level = 4
    return options
