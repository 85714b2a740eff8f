"""What an operator may choose: the only reader of ``config.yaml`` and of the environment's settings.

Every setting is one field of ``Settings``; its checks, its variables, ``SETTINGS`` (for ``inspect`` and the
command line), ``config.yaml`` and ``docs/configuration.md`` follow from that declaration.

Later sources win::

    default < config file < onnx_serve.yaml < ONNX_SERVE_* < SageMaker's variables < command line

Each value remembers its source, so a model's ``onnx_serve.yaml``, read last, still takes its place.
"""

# _setting() gives a dataclasses.field, which the rule against calls as defaults cannot know.
# ruff: noqa: RUF009

import dataclasses
import re
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from onnx_serve import setting_kinds as kinds
from onnx_serve.errors import SettingsError, quote
from onnx_serve.setting_kinds import MAX_COUNT, MAX_INT32, MAX_INT64, Auto, Kind
from onnx_serve.setting_sources import (
    CONFIG_VARIABLE,
    PREFIX,
    JobVariable,
    Setting,
    Values,
    file_values,
    flag_values,
    job_values,
    variable_values,
)
from onnx_serve.yaml_file import render_yaml

__all__ = ["SETTINGS", "Setting", "Settings", "load_settings", "reference_file", "with_model_settings"]

_MODEL_FILE = "onnx_serve.yaml"

# Options that make onnxruntime read or write files, or load code. Those without "path" or "file" in their
# names: a folder of a cache, of sources, a file in the value, and a file written beside the model.
# https://github.com/microsoft/onnxruntime/blob/main/include/onnxruntime/core/session/onnxruntime_session_options_config_keys.h
_TOUCHES_FILES = re.compile(
    r"path|file|folder|library|_dir\b|_root\b|partitioning_settings|context_enable|profiling", re.IGNORECASE
)

# Sources of a model_dir that means the platform's folder of one model.
_PLATFORM_FOLDERS = ("default", "SM_MODEL_DIR", "SAGEMAKER_BASE_DIR")

_T = TypeVar("_T")


def _setting(default: _T, kind: Kind[_T], meaning: str, *variables: str, model_level: bool = False) -> _T:
    """A field of ``Settings``; said to be a ``_T``, so that mypy compares the field, its default and kind."""
    note = Setting(kind, meaning, variables, model_level)
    return field(default_factory=lambda: copy(default), metadata={"note": note})


def _job(default: _T, kind: Kind[_T], variable: str) -> _T:
    note = JobVariable(kind, variable)
    return field(default_factory=lambda: copy(default), metadata={"note": note})


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting's value. Immutable: share it between threads, and do not change the maps in it.

    Attributes that ``config.yaml`` does not have: ``batch`` to ``max_concurrent_transforms`` are what the
    Batch Transform job says of itself (None: nothing); ``sources`` tells for every key where its value came
    from; ``warnings`` are lines that the caller should log.
    """

    model_dir: Path = _setting(
        Path("/opt/ml/model"),
        kinds.path(),
        "Folder of the model; SAGEMAKER_BASE_DIR names the folder above it.",
        "SM_MODEL_DIR",
        "SAGEMAKER_BASE_DIR",
    )
    host: str = _setting("0.0.0.0", kinds.text("an address", r"\S+"), "Address to listen on.")  # noqa: S104 - the platform calls from outside the container
    port: int = _setting(
        8080,
        kinds.integer(0, 65535),
        "Port to listen on; 0 lets the system choose.",
        "SAGEMAKER_BIND_TO_PORT",
    )
    mode: Literal["single", "multi"] = _setting(
        "single",
        kinds.choice("single", "multi"),
        "single: what the model folder holds; multi: what callers load from it, as SageMaker's multi-model endpoints do.",
        "SAGEMAKER_MULTI_MODEL",
    )
    default_model: str | None = _setting(
        None,
        kinds.text_or_null("a model's name", ".+"),
        "Model that /invocations uses when the folder holds several.",
    )
    allow_links: bool = _setting(
        False, kinds.boolean(), "Whether a model file may be a link to a place outside the model folder."
    )
    replay_golden_rows: bool = _setting(
        False,
        kinds.boolean(),
        "Whether a converted model must answer its golden rows as it did at its conversion before it serves.",
    )
    outputs: tuple[str, ...] = _setting(
        (),
        kinds.names(),
        "Outputs to answer, in this order; an empty list means all.",
        "SAGEMAKER_INFERENCE_OUTPUT",
        model_level=True,
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", kinds.log_level(), "Least level of the lines in the log.", "SAGEMAKER_CONTAINER_LOG_LEVEL"
    )
    default_accept: str | None = _setting(
        None,
        kinds.media_type(),
        "Format of the answer when Accept leaves it open; null: the request's in a batch job, else JSON.",
        "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT",
    )
    providers: tuple[str, ...] | Auto = _setting(
        "auto",
        kinds.providers(),
        "Execution providers of onnxruntime, most wanted first; auto: CUDA if there is one, else the CPU.",
    )
    provider_options: Mapping[str, Mapping[str, str]] = _setting(
        {},
        kinds.provider_options(),
        "Options of the execution providers, passed to onnxruntime as they are.",
    )
    session_options: Mapping[str, str] = _setting(
        {},
        kinds.options(),
        "Configuration entries of the session, passed to onnxruntime as they are.",
        model_level=True,
    )
    # Code that runs with the server's rights: never the model folder's to name.
    custom_op_libraries: tuple[str, ...] = _setting(
        (),
        kinds.names(),
        "Shared libraries of operators that onnxruntime has not: paths, or onnxruntime-extensions for that package's.",
    )
    slots: int | Auto = _setting(
        "auto",
        kinds.auto_or_integer(1, MAX_COUNT),
        "Runs of the model at once; auto: as many as CPUs, 2 on a GPU, or fewer where memory is short.",
        "SAGEMAKER_MODEL_SERVER_WORKERS",
    )
    intra_op_threads: int | Auto = _setting(
        "auto",
        kinds.auto_or_integer(1, MAX_COUNT),
        "Threads inside one run; auto: the CPUs divided by the slots.",
    )
    block_rows: int | Auto = _setting(
        "auto",
        kinds.auto_or_integer(1, MAX_INT32),
        "Rows of one run at most; auto: measured for speed and memory.",
        model_level=True,
    )
    objective: Literal["auto", "throughput", "latency"] = _setting(
        "auto",
        kinds.choice("auto", "throughput", "latency"),
        "What to favour: records a second, or the time of a lone request; auto: by the kind of job and the measured time of a record.",
    )
    rows: Literal["auto", "free", "alone", "as_sent"] = _setting(
        "auto",
        kinds.choice("auto", "free", "alone", "as_sent"),
        "How records become rows: in any number a run, each in a run alone, or as one request sends them; auto: tried at the start.",
        model_level=True,
    )
    merging: Literal["auto", "always", "never"] = _setting(
        "auto",
        kinds.choice("auto", "always", "never"),
        "Whether small requests share a run while all slots are busy; auto: where that was measured to pay.",
    )
    brief_requests: Literal["auto", "never"] = _setting(
        "auto",
        kinds.choice("auto", "never"),
        "Whether small requests to a model that takes fractions of a millisecond are answered without a change of threads, while no other request is at work.",
    )
    calibration: Literal["auto", "never"] = _setting(
        "auto",
        kinds.choice("auto", "never"),
        "Whether a model is measured at the start, in a process of its own; never: its needs are guessed.",
    )
    calibration_cache: str | None = _setting(
        None,
        kinds.text_or_null("a path", ".+"),
        "Folder that keeps what was measured of a model for the next start; null: none.",
    )
    max_inflight: int | Auto = _setting(
        "auto",
        kinds.auto_or_integer(1, MAX_COUNT),
        "Requests that are decoded, run or encoded at once; auto: from slots and memory.",
    )
    waiting_room: int = _setting(
        64, kinds.integer(0, MAX_COUNT), "Requests that may wait for one of those places."
    )
    queue_timeout_ms: int | Auto = _setting(
        "auto",
        kinds.auto_or_integer(0, MAX_INT32),
        "How long a request may wait before the answer is 503; auto: 10000, without bound in a batch job.",
    )
    request_timeout_ms: int = _setting(
        0,
        kinds.integer(0, MAX_INT32),
        "How long a request may take, 0: without bound; SAGEMAKER_MODEL_SERVER_TIMEOUT counts seconds.",
        "SAGEMAKER_MODEL_SERVER_TIMEOUT",
    )
    max_body_bytes: int | Auto = _setting(
        "auto",
        kinds.auto_or_integer(0, MAX_INT64),
        "Largest body of a request, 0: without bound; auto: what the batch job announces, else 1 GiB.",
        "MAX_CONTENT_LENGTH",
    )
    body_memory_bytes: int = _setting(
        64 << 20,
        kinds.integer(0, MAX_INT64),
        "Larger bodies are kept in the temporary directory, not in memory.",
    )
    answer_memory_bytes: int = _setting(
        16 << 20,
        kinds.integer(0, MAX_INT64),
        "Larger answers are kept in the temporary directory, not in memory.",
    )
    chunk_bytes: int = _setting(
        512 << 10,
        kinds.integer(4096, 1 << 30),
        "Bytes of a body that are decoded at once, in formats of records.",
    )
    csv_header: Literal["auto", "present", "absent", "skip"] = _setting(
        "auto",
        kinds.choice("auto", "present", "absent", "skip"),
        "What the first line of a CSV body is; skip: a header that one placeholder row answers.",
        model_level=True,
    )
    json_non_finite: Literal["string", "null", "literal"] = _setting(
        "string",
        kinds.choice("string", "null", "literal"),
        'Infinity and NaN in JSON answers: "Infinity" and null, null for both (written "null"), or bare words.',
        model_level=True,
    )
    text_trailing_newline: bool = _setting(
        True, kinds.boolean(), "Whether answers in text end with a newline.", model_level=True
    )
    record_errors: Literal["fail", "placeholder"] = _setting(
        "fail",
        kinds.choice("fail", "placeholder"),
        "Whether a bad record fails the request, or is answered in its place: an error in JSON, the word ERROR in CSV.",
        model_level=True,
    )
    image: Mapping[str, Any] = _setting(
        {},
        kinds.image(),
        "How images become the model's input; what is left out follows from the input.",
        model_level=True,
    )
    connection_limit: int | Auto = _setting(
        "auto", kinds.auto_or_integer(100, MAX_COUNT), "Connections that may be open at once."
    )
    drain_timeout_ms: int = _setting(
        25_000,
        kinds.integer(0, MAX_INT32),
        "How long open requests may take after SIGTERM; SageMaker kills the container after 30000.",
    )

    batch: bool = _job(False, kinds.boolean(), "SAGEMAKER_BATCH")
    # The platform's own limit is 100 MB; a job in the SDK's local mode may send more.
    max_payload_mb: int | None = _job(None, kinds.integer(0, 100_000), "SAGEMAKER_MAX_PAYLOAD_IN_MB")
    batch_strategy: Literal["MULTI_RECORD", "SINGLE_RECORD"] | None = _job(
        None, kinds.strategy(), "SAGEMAKER_BATCH_STRATEGY"
    )
    max_concurrent_transforms: int | None = _job(
        None, kinds.integer(0, 10_000), "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS"
    )

    sources: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys((*SETTINGS, *_JOB), "default"))
    warnings: tuple[str, ...] = ()

    def describe(self) -> list[str]:
        """One line a key: ``port: 8080 (SAGEMAKER_BIND_TO_PORT)``."""
        return [
            f"{key}: {render_yaml(getattr(self, key))} ({source})" for key, source in self.sources.items()
        ]


_NOTES = {item.name: item.metadata.get("note") for item in dataclasses.fields(Settings)}
SETTINGS: Mapping[str, Setting] = {key: note for key, note in _NOTES.items() if isinstance(note, Setting)}
_JOB: Mapping[str, JobVariable] = {key: note for key, note in _NOTES.items() if isinstance(note, JobVariable)}


def load_settings(
    *, config_file: Path | None, environ: Mapping[str, str], flags: Mapping[str, object] = {}
) -> Settings:
    """Settings from everywhere but the model folder.

    Args:
        config_file: What ``--config`` names; else ``ONNX_SERVE_CONFIG``, else the ``config.yaml`` that ships
            with the package. It may hold any part of the settings.
        environ: The environment; variables without a visible character count as unset.
        flags: Values of the command line by key: text, or what YAML would give; None means not given.

    Raises:
        SettingsError: A key or variable is unknown, a value is not what its setting takes, or the file
            cannot be read.
    """
    environ = {name: text for name, text in environ.items() if text.strip()}
    settings = _merge(Settings(), _config_values(config_file, environ))
    settings = _merge(settings, variable_values(environ, SETTINGS))
    settings = _merge(settings, flag_values(flags, SETTINGS))
    if settings.mode == "multi" and settings.sources["model_dir"] in _PLATFORM_FOLDERS:
        # Where the platform puts several models:
        # https://docs.aws.amazon.com/sagemaker/latest/dg/mms-container-apis.html
        settings = dataclasses.replace(settings, model_dir=settings.model_dir.with_name("models"))
    of_job, warnings = job_values(environ, _JOB)
    return dataclasses.replace(_merge(settings, of_job), warnings=warnings)


def with_model_settings(settings: Settings, file: Path) -> Settings:
    """These settings with those of a model: ``file`` is the ``onnx_serve.yaml`` of its folder.

    Values that the environment or the command line chose stay.

    Raises:
        SettingsError: As ``load_settings``; also for a setting that is not a model's, for a session option
            that names files or loads code, and for a link unless ``allow_links``.
    """
    # Messages may reach a caller who loads a model over HTTP: no path of the server.
    where = f"{file.parent.name}/{file.name}"
    if file.is_symlink() and not settings.allow_links:
        raise SettingsError(f"{where}: expected a file, got a link (allow_links is false)")
    values = file_values(file, where, SETTINGS)
    for key in values:
        if not SETTINGS[key].model_level:
            keys = ", ".join(name for name, setting in SETTINGS.items() if setting.model_level)
            raise SettingsError(f'{where}: "{key}" is not a model\'s setting; expected one of {keys}')
    # The model's author is not the operator: what the folder's files were checked for must stay true.
    for option in filter(_TOUCHES_FILES.search, values.get("session_options", ())):
        raise SettingsError(
            f'{where}: setting "session_options": {quote(option)} names a file or folder, or loads code: only '
            "the operator of the server may set it, in the config file"
        )
    return _merge(settings, ((key, _MODEL_FILE, value) for key, value in values.items()))


def reference_file() -> Path | None:
    """The ``config.yaml`` of this installation: in the package (a wheel) or beside it (a checkout)."""
    package = Path(__file__).parent
    candidates = (package / "config.yaml", package.parent / "config.yaml")
    return next((file for file in candidates if file.is_file()), None)


def _config_values(config_file: Path | None, environ: Mapping[str, str]) -> Values:
    if config_file is None and CONFIG_VARIABLE in environ:
        config_file = Path(environ[CONFIG_VARIABLE])
    if config_file is not None:
        values = file_values(config_file, str(config_file), SETTINGS)
        return [(key, "config file", value) for key, value in values.items()]
    reference = reference_file()
    if reference is None:
        return []
    # The shipped file repeats the defaults; only what someone changed in it is a choice.
    default = Settings()
    values = file_values(reference, str(reference), SETTINGS)
    return [(key, "config file", value) for key, value in values.items() if value != getattr(default, key)]


def _merge(settings: Settings, values: Values) -> Settings:
    """Takes over each (key, source, value) whose source does not rank below that of the present value."""
    changes: dict[str, Any] = {}
    sources = dict(settings.sources)
    for key, source, value in values:
        if _rank(source) >= _rank(sources[key]):
            changes[key] = value
            sources[key] = source
    return dataclasses.replace(settings, **changes, sources=sources)


def _rank(source: str) -> int:
    if source in (order := ("default", "config file", _MODEL_FILE)):
        return order.index(source)
    return 3 if source.startswith(PREFIX) else 5 if source.startswith("--") else 4
