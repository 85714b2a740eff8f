"""Sessions: what onnxruntime makes of a model file, on which providers, with which memory.

The only door to onnxruntime: ``model.py`` and ``ort_values.py`` run what is made here.
"""

import contextlib
import importlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx_serve import cuda, rows
from onnx_serve.errors import ModelError, quote
from onnx_serve.gpu_driver import driver_problem, read_driver_version
from onnx_serve.machine import read_gpus
from onnx_serve.model_files.zip_maps import UnzippedModel, unzip
from onnx_serve.run_errors import one_line

# From 1.29 on, onnxruntime's wheels report usage to their maker unless this is set before the import
# (https://github.com/microsoft/onnxruntime/blob/main/docs/Privacy.md).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
try:
    import onnxruntime as ort
except ModuleNotFoundError:
    raise ModelError(
        'onnxruntime is not installed: pip install "onnx-serve[cpu]" or "onnx-serve[gpu]"'
    ) from None

__all__ = ["EXTENSIONS", "SessionOptions", "choose_providers", "open_session", "ort", "register_arena"]

_log = logging.getLogger("onnx_serve")

EXTENSIONS = "onnxruntime-extensions"

# Azure's provider calls a remote service and is listed by every wheel; it is never chosen by "auto".
_AUTO_PROVIDERS = (cuda.CUDA, "CPUExecutionProvider")
# onnxruntime_session_options_config_keys.h
_EXTERNAL_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
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


def open_session(
    path: Path, name: str, options: SessionOptions
) -> tuple[ort.InferenceSession, UnzippedModel | None]:
    """A session of a model file, on the providers that are wanted and can be had.

    Args:
        path: The file; the caller has checked it (``model_check.check_model_file``).
        name: What callers call it, for the log.
        options: How it is made.

    Returns:
        The session; and, where it is of the model without the ZipMaps that end it, what was left out, without the bytes.

    Raises:
        ModelError: onnxruntime cannot load it, or an execution provider is missing.
    """
    providers = choose_providers(options.providers, ort.get_available_providers())
    required = options.providers != "auto"
    if cuda.CUDA in providers:
        problem = driver_problem(
            read_driver_version(), f"{ort.package_name} {ort.__version__}", ort.cuda_version or ""
        )
        providers = _prepare_cuda(providers, problem, required=required)
    if cuda.CUDA in providers:
        options = replace(options, provider_options=cuda.with_defaults(options.provider_options, read_gpus()))
    session, unzipped = _open_session(path, options, providers)
    _check_started(providers, session.get_providers(), name, required=required)
    return session, unzipped


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


def _check_started(asked: Sequence[str], started: Sequence[str], name: str, *, required: bool) -> None:
    """Whether the session has every provider that was asked for; onnxruntime itself falls back silently."""
    for provider in asked:
        if provider not in started:
            message = f"{provider} could not be started; the session runs on {', '.join(started)}"
            if required:
                raise ModelError(message)
            _log.warning("%s: %s", name, message)


def _open_session(
    path: Path, options: SessionOptions, providers: list[str]
) -> tuple[ort.InferenceSession, UnzippedModel | None]:
    """A session on these providers; under "auto" one on the CPU alone if CUDA cannot start."""
    try:
        return _open_unzipped(path, options, providers)
    except ModelError as ex:
        if options.providers != "auto" or cuda.CUDA not in providers:
            raise
        _log.warning("%s", ex)
        return _open_unzipped(path, options, [name for name in providers if name != cuda.CUDA])


def _open_unzipped(
    path: Path, options: SessionOptions, providers: Sequence[str]
) -> tuple[ort.InferenceSession, UnzippedModel | None]:
    """A session of the model without its last ZipMaps, or of the whole file where it has none or needs them."""
    unzipped = unzip(path)
    if unzipped is not None:
        with contextlib.suppress(ModelError):
            session = _create_session(path, options, providers, unzipped.data)
            # The wrapper keeps the bytes, which it would need for other providers.
            session._model_bytes = None  # noqa: SLF001
            return session, replace(unzipped, data=b"")
    return _create_session(path, options, providers), None


def _create_session(
    path: Path, options: SessionOptions, providers: Sequence[str], data: bytes | None = None
) -> ort.InferenceSession:
    """A session of a model file, or of bytes that stand for it."""
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
    if data is not None:
        # Bytes lie in no folder that a relative name could start from.
        session_options.add_session_config_entry(_EXTERNAL_DATA_FOLDER, str(path.parent))
    try:
        for key, value in (options.config or {}).items():
            session_options.add_session_config_entry(key, value)
        given = options.provider_options or {}
        # onnxruntime's own fall-back prints to standard output, and would also act in the middle of a run.
        return ort.InferenceSession(
            str(path) if data is None else data,
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
