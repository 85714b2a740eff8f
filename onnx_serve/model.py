"""One loaded model: the only door to onnxruntime.

Everything else sees a ``Model``: its signature, and ``run`` from a feed to outputs. Sessions are shared by
threads; onnxruntime releases the interpreter's lock while it runs.
"""

import contextlib
import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnx_serve import cuda, ort_values, rows
from onnx_serve.errors import ModelError, OutOfMemory, quote
from onnx_serve.gpu_driver import driver_problem, read_driver_version
from onnx_serve.machine import read_gpus
from onnx_serve.model_files import input_shapes
from onnx_serve.run_errors import one_line, run_error
from onnx_serve.tensors import Feed, RowAxis, Signature, TensorSpec, Values

# From 1.29 on, onnxruntime's wheels report usage to their maker unless this is set before the import
# (https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
try:
    import onnxruntime as ort
except ModuleNotFoundError:
    raise ModelError(
        'onnxruntime is not installed: pip install "onnx-serve[cpu]" or "onnx-serve[gpu]"'
    ) from None

__all__ = ["EXTENSIONS", "Model", "SessionOptions", "choose_providers", "load_model", "register_arena"]

_log = logging.getLogger("onnx_serve")

Run = Callable[[Feed], Values]

EXTENSIONS = "onnxruntime-extensions"

# Azure's provider calls a remote service and is listed by every wheel; it is never chosen by "auto".
_AUTO_PROVIDERS = (cuda.CUDA, "CPUExecutionProvider")
# core/graph/graph.cc: what it says of an operator, or a version of one, that nobody has registered.
_UNKNOWN_OPERATOR = "is not a registered function/op"


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a session is made.

    Attributes:
        providers: Names of execution providers, or ``"auto"``.
        provider_options: Options by provider name.
        intra_op_threads: Threads that share one run.
        config: onnxruntime's session configuration entries, passed on as they are.
        outputs: Names of the outputs to answer, in order; empty for all.
        custom_op_libraries: Shared libraries of operators that onnxruntime has not: paths, or
            ``onnxruntime-extensions`` for the one of that package. They run with the server's rights, so only its
            operator names them, never a model folder or a request.
        row_wish: How records become rows, if the operator knows; see ``rows.warm_up``.
        shared_arena: Whether the session allocates from the arena of ``register_arena``, which must be there.
        profile: Where onnxruntime's profile is written, without the suffix it adds; None for no profile.
        sample: A request that came with the model, which is run first; None for made-up inputs.
        io_binding: Whether plain tensors are bound to the first provider's device; see ``ort_values.make_call``.
    """

    providers: str | Sequence[str] = "auto"
    provider_options: Mapping[str, Mapping[str, Any]] | None = None
    intra_op_threads: int = 1
    config: Mapping[str, str] | None = None
    outputs: Sequence[str] = ()
    custom_op_libraries: Sequence[str] = ()
    row_wish: rows.RowWish = "auto"
    shared_arena: bool = False
    profile: Path | None = None
    sample: rows.Sample | None = None
    io_binding: bool = False


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


def register_arena(limit_bytes: int) -> None:
    """Makes the one arena of this process that sessions with ``shared_arena`` allocate from, up to a limit.

    Only sessions made afterwards use it; an allocation beyond the limit fails with ``OutOfMemory`` and leaves the
    session usable. Once a process.

    Args:
        limit_bytes: Of everything in the arena: weights, and what runs need for their tensors.

    Raises:
        ModelError: onnxruntime refuses, for instance because there is one already.
    """
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # https://onnxruntime.ai/docs/api/python/api_summary.html#onnxruntime.OrtArenaCfg; -1 and 0 keep its defaults.
    arena = ort.OrtArenaCfg(
        {
            "max_mem": limit_bytes,
            "arena_extend_strategy": 0,
            "initial_chunk_size_bytes": -1,
            "max_dead_bytes_per_chunk": -1,
        }
    )
    try:
        ort.create_and_register_allocator(info, arena)
    except Exception as ex:  # onnxruntime's own classes and RuntimeError
        raise ModelError(f"onnxruntime cannot make an arena of {limit_bytes} bytes: {one_line(ex)}") from ex


def load_model(path: Path, name: str, options: SessionOptions) -> Model:
    """Loads a model file and runs it, so that what it declares is known to be true.

    The caller has checked the file (``model_check.check_model_file``).

    Raises:
        ModelError: onnxruntime cannot load it, an execution provider is missing, an output is unknown, or
            an input or output has a type that Python cannot feed or get.
    """
    providers = choose_providers(options.providers, ort.get_available_providers())
    if cuda.CUDA in providers:
        problem = driver_problem(
            read_driver_version(), f"{ort.package_name} {ort.__version__}", ort.cuda_version or ""
        )
        providers = _prepare_cuda(providers, problem, required=options.providers != "auto")
    if cuda.CUDA in providers:
        options = replace(options, provider_options=cuda.with_defaults(options.provider_options, read_gpus()))
    session = _open_session(path, options, providers)
    declared = Signature(
        _inputs(session, path),
        _select(tuple(map(_spec, session.get_outputs())), options.outputs),
        RowAxis.NONE,
        defaults=tuple(map(_spec, session.get_overridable_initializers())),
    )
    run = _runner(session, declared, io_binding=options.io_binding, arena=_arena(session))
    model = Model(
        name,
        rows.warm_up(run, rows.infer_row_axis(declared), name, options.row_wish, options.sample),
        run,
        tuple(session.get_providers()),
        session.get_provider_options(),
        _echo(session.get_session_options(), options.config or {}),
        dict(session.get_modelmeta().custom_metadata_map),
        (lambda: Path(session.end_profiling())) if options.profile else None,
    )
    _check_started(providers, model, required=options.providers != "auto")
    return model


def choose_providers(wanted: str | Sequence[str], available: Sequence[str]) -> list[str]:
    """The execution providers to ask for, in order.

    ``"auto"`` takes CUDA where the installed onnxruntime has it, then the CPU. A list is taken as it is.

    Raises:
        ModelError: One that was asked for is not in the installed onnxruntime.
    """
    if isinstance(wanted, str):
        return [name for name in _AUTO_PROVIDERS if name in available]
    for name in wanted:
        if name not in available:
            raise ModelError(
                f"{name} was asked for, but the installed onnxruntime has only {', '.join(available)}"
            )
    return list(wanted)


def _prepare_cuda(providers: list[str], problem: str | None, *, required: bool) -> list[str]:
    """Loads CUDA's libraries, which come as wheels of their own, or leaves CUDA out if the driver is too old.

    Args:
        providers: What the session is to run on.
        problem: What ``driver_problem`` says.
        required: Whether CUDA was asked for by name.

    Raises:
        ModelError: It was, and cannot start.
    """
    if problem is None:
        ort.preload_dlls()
        return providers
    if required:
        raise ModelError(problem)
    _log.warning("%s; running on the CPU", problem)
    return [name for name in providers if name != cuda.CUDA]


def _check_started(providers: Sequence[str], model: Model, *, required: bool) -> None:
    """Whether the session has every provider that was asked for; onnxruntime itself falls back silently."""
    for provider in providers:
        if provider not in model.providers:
            message = f"{provider} could not be started; the session runs on {', '.join(model.providers)}"
            if required:
                raise ModelError(message)
            _log.warning("%s: %s", model.name, message)


def _open_session(path: Path, options: SessionOptions, providers: list[str]) -> ort.InferenceSession:
    """A session on these providers; under "auto" one on the CPU alone if CUDA cannot start."""
    try:
        return _create_session(path, options, providers)
    except ModelError as ex:
        if options.providers != "auto" or cuda.CUDA not in providers:
            raise
        _log.warning("%s", ex)
        return _create_session(path, options, [name for name in providers if name != cuda.CUDA])


def _create_session(path: Path, options: SessionOptions, providers: Sequence[str]) -> ort.InferenceSession:
    # One thread a run and several runs at once give the most rows per CPU-second, and the memory pattern
    # doubles the peak from the second run on at no gain in time: both measured, docs/decisions/0002.
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = options.intra_op_threads
    session_options.inter_op_num_threads = 1
    session_options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    session_options.enable_mem_pattern = False
    # Fatal only: what goes wrong is raised, and said once, by us.
    session_options.log_severity_level = 4
    if options.shared_arena:
        session_options.add_session_config_entry("session.use_env_allocators", "1")
    if options.profile is not None:
        session_options.enable_profiling = True
        session_options.profile_file_prefix = str(options.profile)
    for library in options.custom_op_libraries:
        _register_operators(session_options, library)
    if options.intra_op_threads > 1:
        session_options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        for key, value in (options.config or {}).items():
            session_options.add_session_config_entry(key, value)
        given = options.provider_options or {}
        # onnxruntime's own fall-back prints to standard output, and would also act in the middle of a run.
        return ort.InferenceSession(
            str(path),
            session_options,
            providers=[(name, dict(given.get(name, {}))) for name in providers],
            enable_fallback=0,
        )
    except Exception as ex:  # onnxruntime raises classes of its own, plain RuntimeError and others
        reason = one_line(ex, path)
        if _UNKNOWN_OPERATOR in reason:
            reason += "; a library of custom operators has to be listed in custom_op_libraries"
        raise ModelError(f"{path.name}: onnxruntime cannot load the model: {reason}") from ex


def _register_operators(session_options: ort.SessionOptions, library: str) -> None:
    """Makes a library's operators known to a session.

    https://onnxruntime.ai/docs/reference/operators/add-custom-op.html,
    https://github.com/microsoft/onnxruntime-extensions#python-installation
    """
    path = library
    if library == EXTENSIONS:
        try:
            path = importlib.import_module("onnxruntime_extensions").get_library_path()
        except ModuleNotFoundError:
            raise ModelError(
                f'custom_op_libraries: {EXTENSIONS} is not installed: pip install "onnx-serve[extensions]"'
            ) from None
    elif not Path(library).is_file():
        # The name only: who loads a model over HTTP reads this too.
        raise ModelError(
            f"custom_op_libraries: expected a file, found none called {quote(Path(library).name)}"
        )
    try:
        session_options.register_custom_ops_library(path)
    except Exception as ex:  # onnxruntime's own classes and RuntimeError
        # The loader's words name the file by its path, which may reach a caller who loads a model.
        reason = one_line(ex).replace(path, Path(path).name)
        raise ModelError(f"custom_op_libraries: {Path(library).name} cannot be loaded: {reason}") from ex


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


def _select(outputs: tuple[TensorSpec, ...], names: Sequence[str]) -> tuple[TensorSpec, ...]:
    by_name = {spec.name: spec for spec in outputs}
    for name in names:
        if name not in by_name:
            raise ModelError(f'outputs: the model has no output "{name}", only {", ".join(by_name)}')
    return tuple(by_name[name] for name in names) if names else outputs


def _runner(session: ort.InferenceSession, declared: Signature, *, io_binding: bool, arena: str = "") -> Run:
    """A run whose errors say whose fault they are.

    Args:
        session: The session.
        declared: Its inputs, and the outputs wanted.
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
            session, declared, ort.OrtValue, io_binding=io_binding, run_options=run_options
        )

        def run(feed: Feed) -> Values:
            try:
                return call(feed)
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
