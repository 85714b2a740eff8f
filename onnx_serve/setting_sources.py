"""Where settings come from: files, environment variables, command-line flags, and what a batch job says.

Each function gives checked values of one source as (key, source, value), for a table of declarations that
the caller has; which source wins is the caller's business too.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from onnx_serve.errors import SettingsError, quote
from onnx_serve.setting_kinds import Kind, UnfitError
from onnx_serve.yaml_file import read_yaml_map, show_yaml

__all__ = [
    "CONFIG_VARIABLE",
    "PREFIX",
    "JobVariable",
    "Setting",
    "Values",
    "file_values",
    "flag_values",
    "job_values",
    "variable_values",
]

PREFIX = "ONNX_SERVE_"
CONFIG_VARIABLE = "ONNX_SERVE_CONFIG"

Values: TypeAlias = Iterable[tuple[str, str, Any]]


@dataclass(frozen=True)
class Setting:
    """How one setting is written, checked and explained.

    Attributes:
        kind: Its values: what they are, and how they are read.
        meaning: What it does.
        variables: SageMaker's variables for it; an earlier one wins.
        model_level: Whether a model's ``onnx_serve.yaml`` may hold it.
    """

    kind: Kind[object]
    meaning: str
    variables: tuple[str, ...] = ()
    model_level: bool = False


@dataclass(frozen=True)
class JobVariable:
    """What a Batch Transform job says of itself in a variable; no setting."""

    kind: Kind[object]
    variable: str


def file_values(file: Path, where: str, settings: Mapping[str, Setting]) -> dict[str, Any]:
    """A file's settings by key.

    Args:
        file: A YAML file of any part of ``settings``.
        where: What messages call it.
        settings: The declarations.

    Raises:
        SettingsError: The file cannot be read, a key is unknown, or a value is not what its setting takes.
    """
    values: dict[str, Any] = {}
    for key, value in read_yaml_map(file, where).items():
        if not isinstance(key, str) or key not in settings:
            hint = _suggest(key, settings) if isinstance(key, str) else ""
            raise SettingsError(f"{where}: unknown setting {show_yaml(key)}{hint}")
        values[key] = _convert(key, value, where, settings[key].kind)
    return values


def variable_values(
    environ: Mapping[str, str], settings: Mapping[str, Setting]
) -> Iterator[tuple[str, str, Any]]:
    """Values of the project's own variables, then of SageMaker's.

    Raises:
        SettingsError: A variable with the project's prefix is unknown, or a value is not what its setting
            takes.
    """
    own = {f"{PREFIX}{key.upper()}": key for key in settings}
    for name in sorted(environ):
        if name.startswith(PREFIX) and name != CONFIG_VARIABLE:
            if name not in own:
                raise SettingsError(f"{name[:64]}: unknown variable{_suggest(name, own)}")
            kind = settings[own[name]].kind
            yield own[name], name, _convert(own[name], environ[name], name, kind, kind.lex)
    for key, setting in settings.items():
        for name in setting.variables:
            if name in environ:
                lex = _LEXERS.get(name, setting.kind.lex)
                yield key, name, _convert(key, environ[name], name, setting.kind, lex)
                break


def flag_values(
    flags: Mapping[str, object], settings: Mapping[str, Setting]
) -> Iterator[tuple[str, str, Any]]:
    """Values of the flags that were given: text, or what YAML would give; None means not given.

    Raises:
        SettingsError: A flag is unknown, or a value is not what its setting takes.
    """
    for key, value in flags.items():
        flag = f"--{key.replace('_', '-')}"
        if key not in settings:
            raise SettingsError(f"{flag}: unknown flag{_suggest(key, settings)}")
        if value is not None:
            kind = settings[key].kind
            yield key, flag, _convert(key, value, flag, kind, kind.lex)


def job_values(environ: Mapping[str, str], jobs: Mapping[str, JobVariable]) -> tuple[Values, tuple[str, ...]]:
    """What the job says of itself, and a warning for each nonsense, which must not fail a job."""
    values, warnings = [], []
    for key, job in jobs.items():
        name, kind = job.variable, job.kind
        if name in environ:
            try:
                value = kind.check(kind.lex(environ[name]))
            except UnfitError:
                warnings.append(f"{name} is ignored: expected {kind.expected}, got {quote(environ[name])}")
                continue
            # 0 asks for the platform's default, as if unset:
            # https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_CreateTransformJob.html
            if (key, value) != ("max_concurrent_transforms", 0):
                values.append((key, name, value))
    return values, tuple(warnings)


def _lex_multi(text: str) -> object:
    """``SAGEMAKER_MULTI_MODEL`` is a boolean."""
    words = {"true": "multi", "1": "multi", "false": "single", "0": "single"}
    return words.get(text.strip().lower(), text)


def _lex_seconds(text: str) -> object:
    """Seconds as whole milliseconds."""
    return round(float(text) * 1000) if re.fullmatch(r"\s*[0-9]{1,9}(\.[0-9]{1,9})?\s*", text) else text


# Variables whose text means something else than in the project's own variable.
_LEXERS: Mapping[str, Callable[[str], object]] = {
    "SAGEMAKER_MULTI_MODEL": _lex_multi,
    "SAGEMAKER_BASE_DIR": lambda text: str(Path(text.strip(), "model")),
    "SAGEMAKER_MODEL_SERVER_TIMEOUT": _lex_seconds,
}


def _convert(
    key: str, value: object, where: str, kind: Kind[object], lex: Callable[[str], object] | None = None
) -> object:
    """The setting's value; ``lex`` reads text that is not YAML."""
    try:
        return kind.check(lex(value) if lex and isinstance(value, str) else value)
    except UnfitError as error:
        raise SettingsError(f'{where}: setting "{key}": expected {kind.expected}, got {error}') from None


def _suggest(name: str, known: Iterable[str]) -> str:
    # Cut, because difflib's time grows with the square of the length.
    close = difflib.get_close_matches(name[:64], known, n=1)
    return f'; did you mean "{close[0]}"?' if close else ""
