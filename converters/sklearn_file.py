"""skops files and the options of scikit-learn's conversions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.errors import ConversionError, MissingExtra
from converters.sklearn_messages import one_line, quote_long
from onnx_serve.errors import quote

__all__ = ["check_options", "read_skops"]

_OPTIONS = {"float": ("auto", "32", "64"), "trusted": None}


def check_options(options: Mapping[str, str]) -> None:
    """Refuses unknown options and values.

    Raises:
        ConversionError: There is one.
    """
    for key, value in options.items():
        if key not in _OPTIONS:
            raise ConversionError(f"--option: expected one of {', '.join(_OPTIONS)}, got {quote(key)}")
        allowed = _OPTIONS[key]
        if allowed and value not in allowed:
            raise ConversionError(f"--option {key}: expected one of {', '.join(allowed)}, got {quote(value)}")


def read_skops(path: Path, options: Mapping[str, str]) -> Any:
    """The object in a skops file, whose types are trusted by skops or by the option ``trusted``.

    Raises:
        ConversionError: It is damaged, or holds other types.
        MissingExtra: skops is not installed.
    """
    try:
        import skops.io  # noqa: PLC0415  only for its own files
    except ModuleNotFoundError as ex:
        raise MissingExtra("convert-sklearn", ex.name or "skops") from None
    allowed = [name for name in options.get("trusted", "").split(",") if name]
    try:
        unknown = sorted(set(skops.io.get_untrusted_types(file=path)) - set(allowed))
        if not unknown:
            return skops.io.load(path, trusted=allowed)
    except Exception as ex:  # a zip archive of JSON whose damage shows as any exception
        raise ConversionError(
            f"{quote(path.name)}: skops cannot read the file: {quote_long(one_line(ex))}"
        ) from ex
    raise ConversionError(
        f"{quote(path.name)} holds types that skops does not trust: add --option trusted="
        f"{','.join([*allowed, *unknown])} if you do"
    )
