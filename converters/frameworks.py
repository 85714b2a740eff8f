"""Which framework an artifact belongs to, and the reading of pickles to find out."""

import importlib
import warnings
from pathlib import Path
from typing import Any

from converters.artifact import EXTRAS, FRAMEWORKS, Format, detect
from converters.conversion import Conversion, Progress, Request, say_nothing
from converters.errors import ConversionError, MissingExtra
from converters.targets import converting_for, find_target, fit
from onnx_serve.errors import quote

__all__ = ["check_request", "convert_artifact", "framework_of"]


def check_request(request: Request) -> Format:
    """The artifact's format, if it may be read as the request says.

    Raises:
        ConversionError: It is no artifact, belongs to another framework, needs trust that was not given, or the
            target is unknown.
    """
    path = Path(request.artifact)
    kind = detect(path)
    if request.framework not in {"auto", *FRAMEWORKS}:
        raise ConversionError(
            f"--framework: expected auto, {', '.join(FRAMEWORKS)}, got {quote(request.framework)}"
        )
    if request.framework != "auto" and kind.framework not in {None, request.framework}:
        raise ConversionError(
            f"--framework: expected an artifact of {request.framework}, {quote(path.name)} is {kind.title}"
        )
    if kind.runs_code and not request.trust_pickle:
        raise ConversionError(
            f"{quote(path.name)} is {kind.title}, and reading it runs code that is in it: add --trust-pickle if you "
            "trust its author, or save the model in a format without code (skops, xgboost JSON or UBJ, LightGBM text, "
            "CatBoost cbm, torch.export pt2, safetensors)"
        )
    find_target(request.target)
    return kind


def convert_artifact(request: Request, progress: Progress = say_nothing) -> Conversion:
    """Reads and converts an artifact in this process; pickles run their code.

    Raises:
        ConversionError: See ``check_request``; or the file is damaged.
        ConversionRefused: No graph answers as the original does.
    """
    kind = check_request(request)
    with converting_for(request.target) as target:
        conversion = _convert_artifact(kind, request, progress)
    fit(conversion.model, target)
    return conversion


def _convert_artifact(kind: Format, request: Request, progress: Progress) -> Conversion:
    if kind is not Format.PICKLE:
        framework = kind.framework
        assert framework is not None
        module = _module(framework)
        _check_options(module, framework, request)
        conversion: Conversion = module.convert_file(request, kind, progress)
        return conversion
    progress("reading the pickle")
    model = _unpickle(Path(request.artifact))
    framework = framework_of(model)
    if framework is None:
        raise ConversionError(
            f"the pickle holds {quote(f'{type(model).__module__}.{type(model).__qualname__}')}, expected a model of "
            f"{', '.join(FRAMEWORKS)}"
        )
    if request.framework not in {"auto", framework}:
        raise ConversionError(
            f"--framework: expected a model of {request.framework}, the pickle holds one of {framework}"
        )
    return _convert_object(framework, model, request, progress)


def framework_of(model: Any) -> str | None:
    """The framework of an object: the first of its classes that belongs to one."""
    for kind in type(model).__mro__:
        root = kind.__module__.partition(".")[0]
        if root in FRAMEWORKS:
            return root
    return None


def _convert_object(framework: str, model: Any, request: Request, progress: Progress) -> Conversion:
    module = _module(framework)
    _check_options(module, framework, request)
    if hasattr(module, "convert_object"):
        conversion: Conversion = module.convert_object(model, request, progress)
        return conversion
    from converters.samples import read_sample  # noqa: PLC0415  reads Parquet: not needed by most

    sample = read_sample(Path(request.sample)) if request.sample else None
    converted: Conversion = module.convert(model, sample, progress=progress, tolerances=request.tolerances)
    return converted


def _check_options(module: Any, framework: str, request: Request) -> None:
    """Refuses options of a framework that has none; the others have a ``convert_object``, and check them themselves."""
    if request.options and not hasattr(module, "convert_object"):
        raise ConversionError(f"--option: {framework} takes none, got {quote(next(iter(request.options)))}")


def _module(framework: str) -> Any:
    try:
        return importlib.import_module(f"converters.{framework}")
    except ModuleNotFoundError as ex:
        raise MissingExtra(EXTRAS[framework], ex.name or framework) from None


def _unpickle(path: Path) -> Any:
    """What a pickle or joblib file holds; its code runs here.

    Raises:
        ConversionError: It is damaged, or needs a module that is not installed.
    """
    try:
        import joblib  # noqa: PLC0415  only for pickles
    except ModuleNotFoundError:
        raise MissingExtra("convert-sklearn", "joblib") from None
    name = quote(path.name)
    try:
        with warnings.catch_warnings():
            # A version that differs shows in the answers, which are compared with this version's own.
            warnings.simplefilter("ignore")
            return joblib.load(path)
    except ModuleNotFoundError as ex:
        raise ConversionError(f"{name} needs the module {quote(ex.name)}, which is not installed") from ex
    except (MemoryError, RecursionError):
        raise
    except Exception as ex:  # the code in a pickle raises what it likes
        reason = " ".join(str(ex).split()) or type(ex).__name__
        raise ConversionError(f"{name} cannot be unpickled: {quote(reason)}") from ex
